#!/bin/sh
# demo.sh: build loopwatch, and have it tell what blocks examples/orders.py.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
venv=$("$root/tools/venv.sh" demo demo)
cd "$root"
exec "$venv/bin/loopwatch" run examples/orders.py
