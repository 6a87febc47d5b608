#!/bin/sh
# venv.sh NAME EXTRAS [MESON-OPTION...]: a virtual environment with loopwatch installed in it.
#
# Prints the environment's path, .venv/TAG-NAME. EXTRAS are those of pyproject.toml, divided by commas; each
# MESON-OPTION is handed to the build (-Db_sanitize=address). What is installed is a copy, not the checkout, and is
# renewed when anything it is made from has changed.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
name=$1
extras=$2
shift 2

"$root/tools/bootstrap.sh" cc python >&2
cd "$root"
tag=$("$python" -c 'import sys, zlib
print("cp%d%d-%08x" % (*sys.version_info[:2], zlib.crc32((sys.version + sys.base_prefix).encode())))')
venv=$root/.venv/$tag-$name
mkdir -p "$root/.venv"
exec 9>"$venv.lock"
flock 9

digest() {
    find "$@" -type f -not -path '*/__pycache__/*' -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -d ' ' -f 1
}

pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@" </dev/null >&2
}

wanted="$extras $(digest pyproject.toml)"
if [ "$(cat "$venv/.requirements" 2>/dev/null)" != "$wanted" ]; then
    rm -rf "$venv"
    "$python" -m venv "$venv" >&2
    "$venv/bin/python" tools/requirements.py "build,$extras" >"$venv/requirements.txt"
    pip install -r "$venv/requirements.txt"
    echo "$wanted" >"$venv/.requirements"
fi

wanted="$* $(digest pyproject.toml meson.build LICENSE README.md csrc src)"
if [ "$(cat "$venv/.package" 2>/dev/null)" != "$wanted" ]; then
    rm -f "$venv/.package"
    count=$#
    while [ "$count" -gt 0 ]; do
        set -- "$@" "-Csetup-args=$1"
        shift
        count=$((count - 1))
    done
    # The build tools are in the environment already: no need to fetch them once more.
    PATH=$venv/bin:$PATH pip install --no-build-isolation --no-deps --force-reinstall "$@" .
    echo "$wanted" >"$venv/.package"
fi
echo "$venv"
