#!/bin/sh
# bench.sh: what it costs, beside its peers, and how right it is. BENCH_ARGS go to benchmarks/overhead.py.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
venv=$("$root/tools/venv.sh" bench bench,test)
cd "$root"
# shellcheck disable=SC2086
"$venv/bin/python" benchmarks/overhead.py ${BENCH_ARGS:-}
for name in leaks plugin calls memory monitor; do
    "$venv/bin/python" "benchmarks/$name.py"
done
exec "$venv/bin/python" benchmarks/accuracy.py
