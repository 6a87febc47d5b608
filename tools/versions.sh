#!/bin/bash
# versions.sh: build and test loopwatch on every CPython from 3.11 on that can be found.
#
# Looked for, in this order: python3.X on PATH, pyenv's, and, for root, Debian releases in folders made by debootstrap
# (about a minute and 750 MB each the first time; kept in LOOPWATCH_ROOTS, by default the cache folder).
# VERSIONS="3.11 3.15" chooses; one that is chosen by name and cannot be had is a failure, else it is only told.
# Each version gets LIMIT seconds. PYTEST_ARGS are added to pytest's. Tests marked slow run on the version that SLOW names
# only, by default the last one; SLOW=all: on every version.
set -uo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
if [ "$(id -u)" -eq 0 ]; then cache=${XDG_CACHE_HOME:-/var/cache}; else cache=${XDG_CACHE_HOME:-$HOME/.cache}; fi
roots=${LOOPWATCH_ROOTS:-$cache/loopwatch}
limit=${LIMIT:-900}
chosen=${VERSIONS:-}
known="3.11 3.12 3.13 3.14 3.15"
last=${chosen:-$known}
slow=${SLOW:-${last##* }}
work=$(mktemp -d)
trap 'rm -rf "$work"; [ -z "${copy_in_root:-}" ] || rm -rf "$copy_in_root"' EXIT
trap 'exit 130' INT TERM

# The Debian release that has a version, and all the versions to install with it.
release_of() {
    case $1 in
    3.11) echo bookworm ;;
    3.13) echo trixie ;;
    3.14 | 3.15) echo sid ;;
    esac
}
versions_in() {
    case $1 in
    bookworm) echo 3.11 ;;
    trixie) echo 3.13 ;;
    sid) echo 3.14 3.15 ;;
    esac
}

# Prints the path of an interpreter of that version, a shim resolved to what it runs.
find_python() {
    local version=$1 candidate found without_headers=""
    local shims=${PYENV_ROOT:-$HOME/.pyenv}
    for candidate in $(type -aP "python$version" 2>/dev/null) "$shims/versions/$version".*/bin/python; do
        found=$("$candidate" -c '
import os, sys, sysconfig
if sys.implementation.name == "cpython" and "%d.%d" % sys.version_info[:2] == sys.argv[1]:
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        headers = os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h"))
        print("headers" if headers else "bare", sys.executable)
' "$version" 2>/dev/null) || continue
        case $found in
        "headers "*)
            echo "${found#headers }"
            return 0
            ;;
        "bare "*) without_headers=${without_headers:-${found#bare }} ;;
        esac
    done
    [ -n "$without_headers" ] || return 1
    PYTHON=$without_headers "$here/tools/bootstrap.sh" python >&2 || return 1
    echo "$without_headers"
}

apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -qq "$@" </dev/null >&2
}

# Makes the folder of a Debian release, unless it is there, and prints its path.
debian_root() {
    local release=$1 root=$roots/$1 version packages=gcc,libc6-dev,ca-certificates
    [ "$(id -u)" -eq 0 ] || return 1
    mkdir -p "$roots"
    exec 8>"$roots/$release.lock"
    flock 8
    for version in $(versions_in "$release"); do
        packages=$packages,python$version,python$version-dev,python$version-venv
    done
    # What its venv needs is a virtual package there, which debootstrap does not look for.
    [ "$release" != bookworm ] || packages=$packages,python3-distutils
    if [ ! -e "$root/.complete" ]; then
        if ! complete "$root" "$release"; then
            if ! command -v debootstrap >/dev/null; then
                apt update
                apt install -y --no-install-recommends debootstrap || return 1
            fi
            echo "making $root (once)" >&2
            rm -rf "$root"
            # In a mount namespace of its own: the /proc it mounts there must not outlive a run that fails.
            # shellcheck disable=SC2086
            unshare --mount --propagation private \
                debootstrap --variant=minbase --include="$packages" "$release" "$root" ${DEBIAN_MIRROR:-} \
                >"$roots/$release.log" 2>&1 </dev/null || {
                tail -n 20 "$roots/$release.log" >&2
                return 1
            }
        fi
        complete "$root" "$release" || return 1
        touch "$root/.complete"
    fi
    echo "$root"
}

complete() {
    local version
    [ -x "$1/usr/bin/gcc" ] && [ ! -d "$1/debootstrap" ] || return 1
    for version in $(versions_in "$2"); do
        [ -x "$1/usr/bin/python$version" ] && [ -e "$1/usr/include/python$version/Python.h" ] || return 1
        chroot "$1" "/usr/bin/python$version" -c 'import ensurepip, venv' 2>/dev/null || return 1
    done
}

# Which tests a version runs, for pytest -m.
tests_of() {
    if [ "$slow" = all ] || [ "$slow" = "$1" ]; then echo "slow or not slow"; else echo "not slow"; fi
}

# A copy of what git tracks (and of what it would): builds leave nothing in the checkout, nor it in them.
copy_to() {
    mkdir -p "$1"
    (cd "$here" && git ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done |
        tar --null -T - -cf -) | tar -xf - -C "$1"
}

# What runs on the machine itself and, through stdin, in a Debian folder: $1 python, $2 checkout, rest to pytest.
steps='
set -eu
python=$1
checkout=$2
shift 2
cd "$checkout"
mkdir -p "$checkout.tmp"
export TMPDIR="$checkout.tmp"
"$python" -m venv "$checkout.venv"
"$checkout.venv/bin/python" -m pip --disable-pip-version-check install -q ".[test]"
exec "$checkout.venv/bin/python" -P -m pytest -q -p no:cacheprovider \
    tests/unit tests/integration tests/leaks tests/examples "$@"
'

run_here() {
    local python=$1 checkout=$work/$2/loopwatch
    copy_to "$checkout" || return 1
    # shellcheck disable=SC2086
    timeout --kill-after=10 "$limit" sh -c "$steps" sh "$python" "$checkout" -m "$(tests_of "$2")" ${PYTEST_ARGS:-} \
        </dev/null
}

# In a mount namespace of its own: what is mounted goes with its last process, however that ends.
run_in_root() {
    local root=$1 version=$2 file
    copy_in_root=$(mktemp -d "$root/tmp/loopwatch.XXXXXX")
    local inside=${copy_in_root#"$root"}/loopwatch
    copy_to "$copy_in_root/loopwatch" || return 1
    # The machine's way to the package registry: certificates and pip's settings.
    for file in /etc/ssl/certs/ca-certificates.crt /etc/pip.conf /etc/resolv.conf /etc/hosts; do
        [ ! -e "$file" ] || install -D -m 644 "$file" "$root$file"
    done
    for file in .config/pip/pip.conf .pip/pip.conf; do
        [ ! -e "$HOME/$file" ] || install -D -m 600 "$HOME/$file" "$root/root/$file"
    done
    # shellcheck disable=SC2016,SC2086
    timeout --kill-after=10 "$limit" unshare --mount --propagation private sh -c '
        set -eu
        root=$1
        steps=$2
        shift 2
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        export HOME=/root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
        exec chroot "$root" sh -c "$steps" sh "$@"
    ' sh "$root" "$steps" "/usr/bin/python$version" "$inside" -m "$(tests_of "$version")" ${PYTEST_ARGS:-} \
        </dev/null
    local status=$?
    rm -rf "$copy_in_root"
    copy_in_root=""
    return $status
}

table=""
failed=0
for version in ${chosen:-$known}; do
    log=$work/$version.log
    begun=$SECONDS
    status=0
    if python=$(find_python "$version"); then
        echo "== $version: $python"
        run_here "$python" "$version" 2>&1 | tee "$log"
        status=${PIPESTATUS[0]}
    elif release=$(release_of "$version") && [ -n "$release" ] && root=$(debian_root "$release"); then
        echo "== $version: Debian $release in $root"
        run_in_root "$root" "$version" 2>&1 | tee "$log"
        status=${PIPESTATUS[0]}
    else
        table+="$version: skipped, no interpreter found"
        if [ "$(id -u)" -ne 0 ] && [ -n "$(release_of "$version")" ]; then
            table+=" (root could have Debian $(release_of "$version")'s)"
        fi
        table+=$'\n'
        [ -z "$chosen" ] || failed=1
        continue
    fi
    summary=$(grep -E '[0-9]+ (passed|failed|error)' "$log" | tail -n 1 | sed -E 's/^=+ ?//; s/ ?=+$//')
    case $status in
    0) ;;
    124 | 137) summary="not done in $limit s" failed=1 ;;
    *) summary="FAILED: ${summary:-see above}" failed=1 ;;
    esac
    table+="$version: $summary ($((SECONDS - begun)) s with the build)"$'\n'
    rm -rf "${work:?}/$version"
done
echo
printf '%s' "$table"
exit $failed
