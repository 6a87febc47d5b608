#!/bin/sh
# bench.sh: what watching costs, beside its peers, and how right it is. BENCH_ARGS go to benchmarks/overhead.py.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
venv=$("$root/tools/venv.sh" bench bench,test)
cd "$root"
# shellcheck disable=SC2086
"$venv/bin/python" benchmarks/overhead.py ${BENCH_ARGS:-}
exec "$venv/bin/python" benchmarks/accuracy.py
