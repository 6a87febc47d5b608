#!/bin/sh
# suites.sh [PROJECT...]: the test suites of other projects, unchanged, bare and under `loopwatch run`, compared.
#
# Takes some ten minutes, and needs a package registry: each project gets an environment of its own, in a folder that is
# gone afterwards. SUITES_ARGS are handed to tests/suites/run_suites.py.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
cd "$root"
tools/bootstrap.sh cc python
# shellcheck disable=SC2086
exec "$python" tests/suites/run_suites.py ${SUITES_ARGS:-} "$@"
