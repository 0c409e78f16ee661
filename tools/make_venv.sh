#!/bin/sh
# Make the virtual environment $1 unless it is there and works; one that is broken or too old is made anew.
set -eu

if "$1/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; then
    exit 0
fi
python=$("$(dirname "$0")/find_python.sh")
echo "Making $1 with $python"
"$python" -m venv --clear "$1"
