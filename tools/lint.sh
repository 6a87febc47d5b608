#!/bin/sh
# lint.sh [--fix]: style, types and compilers' warnings. With --fix, only formats.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
venv=$("$root/tools/venv.sh" lint lint)
cd "$root"
PATH=$venv/bin:$PATH

c_files() {
    find csrc tests/c tests/fuzz -name '*.[ch]' | sort
}

if [ "${1:-}" = --fix ]; then
    ruff check -q --fix .
    ruff format -q .
    c_files | xargs clang-format -i
    exit 0
fi

ruff check .
ruff format --check .
mypy
c_files | xargs clang-format --dry-run -Werror
echo "clang-format: $(c_files | wc -l) files"

compilers=gcc
if tools/bootstrap.sh clang; then
    compilers="gcc clang"
else
    echo "clang cannot be had here: warnings of gcc only"
fi
mkdir -p build
for cc in $compilers; do
    build=$root/build/lint-$cc
    rm -rf "$build"
    CC=$cc meson setup -Dwerror=true "$build" >"$root/build/lint-$cc.log" 2>&1 || {
        cat "$root/build/lint-$cc.log"
        exit 1
    }
    meson compile -C "$build" >"$root/build/lint-$cc.log" 2>&1 || {
        grep -vE '^\[|^INFO|^ninja' "$root/build/lint-$cc.log"
        exit 1
    }
    echo "$cc: no warnings"
done
