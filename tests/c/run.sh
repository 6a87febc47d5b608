#!/bin/sh
# run.sh: build the C core and run its tests.
#
#   tests/c/run.sh plain          optimised, warnings are errors
#   tests/c/run.sh asan           under AddressSanitizer and UBSan (the default)
#   tests/c/run.sh tsan           under ThreadSanitizer, after a program with a race that it must tell
#   tests/c/run.sh crosscheck     the line tables against $PYTHON (python3)
#   tests/c/run.sh fuzz SECONDS   each fuzzer for so long (60), under clang
#
# Everything built goes to $LW_BUILD, or build/c at the root of the project.
# CC, CLANG and PYTHON choose the programs. Each mode ends with the line
# "N passed, M failed" (fuzz: one "passed" a fuzzer) and a status to match.
# New fuzz inputs are kept in the build directory, so later runs start there.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
build=${LW_BUILD:-$root/build/c}
cc=${CC:-gcc}
clang=${CLANG:-clang}
mode=${1:-asan}
strict="-std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror -I$root/csrc/core"
sanitize="-g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"

races="-g -O1 -fno-omit-frame-pointer -fsanitize=thread"

mkdir -p "$build"

test_core() {
    # shellcheck disable=SC2086
    "$cc" $strict "$@" -o "$build/test_core_$mode" \
        "$root"/tests/c/test_*.c "$root"/csrc/core/*.c -pthread
    "$build/test_core_$mode"
}

test_threads() {
    # shellcheck disable=SC2086
    "$cc" $strict $races -o "$build/race" "$root/tests/c/control/race.c" -pthread
    if "$build/race" 2>/dev/null; then
        echo "ThreadSanitizer did not tell the race of tests/c/control/race.c"
        echo "0 passed, 1 failed"
        return 1
    fi
    # The tests fork while other threads live: the child starts none.
    # shellcheck disable=SC2086
    TSAN_OPTIONS="${TSAN_OPTIONS:-}:die_after_fork=0" test_core $races
}

# Whole inputs of the right shape, for the fuzzers to start from.
seed() {
    mkdir -p "$build/corpus_linetable" "$build/corpus_procfs"
    printf '\001\000\000\000\002\000\361\003\001\001\001\200\133\320\004\011\351\006\370' \
        >"$build/corpus_linetable/seed"
    printf 'running\n' >"$build/corpus_procfs/running"
    printf '%s\n' '-1 0x7ffdc0 0x7f8a' >"$build/corpus_procfs/no_call"
    printf '202 0x7f01 0x189 0x0 0x7e00 0x0 0xffffffffffffffff 0x7dc0 0x7f8a\n' \
        >"$build/corpus_procfs/call"
    cat /proc/self/schedstat >"$build/corpus_procfs/schedstat"
    cat /proc/self/stat >"$build/corpus_procfs/stat"
}

fuzz() {
    seconds=$1
    passed=0
    failed=0
    seed
    for name in linetable procfs; do
        # shellcheck disable=SC2086
        "$clang" $strict $sanitize -fsanitize=fuzzer -o "$build/fuzz_$name" \
            "$root/tests/fuzz/fuzz_$name.c" "$root/csrc/core/$name.c"
        if "$build/fuzz_$name" -max_total_time="$seconds" -max_len=512 \
            -print_final_stats=1 -verbosity=0 -timeout=5 \
            -artifact_prefix="$build/crash_$name-" "$build/corpus_$name" \
            >"$build/fuzz_$name.log" 2>&1; then
            passed=$((passed + 1))
            echo "$name: $(grep number_of_executed_units "$build/fuzz_$name.log")"
        else
            failed=$((failed + 1))
            tail -n 60 "$build/fuzz_$name.log"
        fi
    done
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ]
}

case $mode in
plain) test_core -O2 ;;
# shellcheck disable=SC2086
asan) test_core $sanitize ;;
tsan) test_threads ;;
crosscheck) LW_BUILD=$build "${PYTHON:-python3}" "$root/tests/c/linetable_crosscheck.py" ;;
fuzz) fuzz "${2:-60}" ;;
*)
    echo "usage: $0 [plain|asan|tsan|crosscheck|fuzz SECONDS]" >&2
    exit 2
    ;;
esac
