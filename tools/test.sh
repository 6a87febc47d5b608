#!/bin/sh
# test.sh: the C core's tests, then Python's against the installed package. PYTEST_ARGS are added.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
venv=$("$root/tools/venv.sh" test test)
cd "$root"
tests/c/run.sh plain
# -P keeps the current folder off sys.path: it is the installed package that is tested.
# shellcheck disable=SC2086
exec "$venv/bin/python" -P -m pytest -q tests/unit tests/integration tests/leaks tests/examples ${PYTEST_ARGS:-}
