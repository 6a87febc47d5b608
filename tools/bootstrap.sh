#!/bin/sh
# bootstrap.sh [cc] [python] [clang] [fuzzer]: see that these are there.
#
# What is missing is installed with apt-get when root runs this, else one line says what to install.
# PYTHON is the interpreter whose headers and venv module are meant.
set -eu

python=${PYTHON:-python3}
missing=""

need() {
    missing="$missing $*"
}

headers_there() {
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))'
}

venv_there() {
    "$python" -c 'import ensurepip, venv' 2>/dev/null
}

compiles() {
    folder=$(mktemp -d)
    printf '#include <stdio.h>\nint main(void) { return 0; }\n' >"$folder/a.c"
    status=0
    "$1" -o "$folder/a" "$folder/a.c" >/dev/null 2>&1 || status=1
    rm -rf "$folder"
    return $status
}

fuzzer_there() {
    runtime=$(clang -print-runtime-dir 2>/dev/null) || return 1
    ls "$runtime"/libclang_rt.fuzzer* >/dev/null 2>&1
}

for wanted in "${@:-cc python}"; do
    for item in $wanted; do
        case $item in
        cc) compiles "${CC:-gcc}" || need gcc libc6-dev ;;
        clang) compiles clang || need clang libc6-dev ;;
        # The runtime's package carries the compiler's version in its name; "clang" depends on that compiler.
        fuzzer) fuzzer_there || need clang FUZZER ;;
        python)
            if ! command -v "$python" >/dev/null; then
                need python3
                name=python3
            else
                # Debian's default interpreter has packages without a version, the others have one.
                name=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
                default=$(readlink -f /usr/bin/python3 2>/dev/null || true)
                [ "$default" != "/usr/bin/$name" ] || name=python3
                "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
                    echo "loopwatch needs Python 3.11 or later: PYTHON=$python is $("$python" -V)" >&2
                    exit 1
                }
            fi
            headers_there 2>/dev/null || need "$name-dev"
            venv_there || need "$name-venv"
            ;;
        *)
            echo "usage: $0 [cc] [python] [clang] [fuzzer]" >&2
            exit 2
            ;;
        esac
    done
done

[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "loopwatch needs what is missing here; install it first: apt-get install$missing" |
        sed 's/FUZZER/libclang-rt-dev/' >&2
    exit 1
fi

export DEBIAN_FRONTEND=noninteractive
apt() {
    apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -qq "$@" </dev/null
}
echo "installing$missing" | sed 's/FUZZER/its fuzzer/' >&2
apt update || true # one list of many that fails need not matter
case $missing in
*FUZZER*)
    version=$(apt-cache depends clang | sed -n 's/.*Depends: clang-\([0-9]*\)$/\1/p' | head -n 1)
    missing=$(echo "$missing" | sed "s/FUZZER/libclang-rt-$version-dev/")
    ;;
esac
# shellcheck disable=SC2086
apt install -y --no-install-recommends $missing >/dev/null
