#!/bin/sh
# sanitize.sh asan|tsan: the tests with the core and the extension built under sanitizers of gcc.
#
# The interpreter itself is not: the runtime is preloaded, and only what loopwatch's own code does is judged.
# PYTEST_ARGS are added.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
case ${1:-} in
asan) options="-Db_sanitize=address,undefined" runtimes="libasan.so libubsan.so" marker="" ;;
tsan) options="-Db_sanitize=thread" runtimes="libtsan.so" marker="-m tsan" ;;
*)
    echo "usage: $0 asan|tsan" >&2
    exit 2
    ;;
esac
export CC=gcc
# shellcheck disable=SC2086
venv=$("$root/tools/venv.sh" "$1" test $options -Db_lundef=false -Dbuildtype=debugoptimized)
tests/c/run.sh "$1"

preload=""
for runtime in $runtimes; do
    preload="$preload $(gcc -print-file-name="$runtime")"
done
export LD_PRELOAD="${preload# }"
export PYTHONMALLOC=malloc
# Leaks: the interpreter leaves much behind by design; tests/leaks counts loopwatch's own.
export ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:abort_on_error=1
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
# The interpreter's own accesses are not seen, but its locks are: the GIL orders what happens under it. A race ends no
# program, so that pytest can say which test it was; the exit code tells it. Programs fork while threads live.
TSAN_OPTIONS=ignore_noninstrumented_modules=1:halt_on_error=0:exitcode=66:second_deadlock_stack=1:die_after_fork=0
export TSAN_OPTIONS="$TSAN_OPTIONS:suppressions=$root/tools/tsan.supp"
export LOOPWATCH_RACE_SECONDS="${LOOPWATCH_RACE_SECONDS:-3}"
# shellcheck disable=SC2086
exec "$venv/bin/python" -P -m pytest -q -o timeout=600 $marker tests/unit tests/integration tests/leaks ${PYTEST_ARGS:-}
