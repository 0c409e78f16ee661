#!/bin/sh
# Print the path of a Python 3.12 or newer that can make virtual environments; exit 1 with the remedy if none.
# Every candidate is run: version managers leave commands on the PATH that exist and only print an error.
set -u

usable() {
    "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    usable "$PYTHON" && exec "$PYTHON" -c 'import sys; print(sys.executable)'
    echo "PYTHON=$PYTHON is not a Python 3.12 or newer with the modules venv and ensurepip." >&2
    exit 1
fi

for candidate in python3.12 python3.13 python3.14 python3 python \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python; do
    usable "$candidate" && exec "$candidate" -c 'import sys; print(sys.executable)'
done

echo "No Python 3.12 or newer with the modules venv and ensurepip was found: not as python3.12, python3.13,
python3.14, python3 or python on the PATH, and not among pyenv's versions.
Install one (on Debian and Ubuntu: apt install python3.12 python3.12-venv; with pyenv: pyenv install 3.12)
or name it: make setup PYTHON=/path/to/python3.12" >&2
exit 1
