#!/bin/sh
# Makes .venv and installs what a lock file says, and microtome itself: install.sh run|dev|docs
#
# PYTHON  the interpreter to use; else the first of python3, python3.13, python3.12, python3.11 that is recent enough
# TORCH   the torch to install where none is installed; a torch already in .venv, or in the interpreter, is used as it is
set -eu
cd "$(dirname "$0")/.."
want=${1:-run}
venv=.venv
pip="$venv/bin/python -m pip --disable-pip-version-check"

stop() {
    printf '\nmicrotome: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '  %s\n' "$line" >&2; done
    exit 1
}

recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if recent "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    stop "no Python 3.11 or later found (${PYTHON:-python3} is $("${PYTHON:-python3}" -V 2>&1 || true))" \
        "Debian 12, Ubuntu 24.04 and later:  apt-get install python3 python3-venv" \
        "Ubuntu 22.04:                       apt-get install python3.11 python3.11-venv" \
        "elsewhere:                          make ... PYTHON=/path/to/python3.11"
}

make_venv() {
    python=$(find_python)
    system=
    if "$python" -c 'import torch' 2>/dev/null; then
        echo "using the torch that $python has"
        system=--system-site-packages
    fi
    if "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        "$python" -m venv $system "$venv"
    elif "$python" -c 'import venv, pip' 2>/dev/null; then # Debian without python3-venv, but with python3-pip
        "$python" -m venv --without-pip $system "$venv"
        "$python" -m pip --python "$venv/bin/python" install --quiet pip
    else
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        stop "$python cannot make virtual environments" \
            "on Debian and Ubuntu:  apt-get install python3-venv    (or python$version-venv)" \
            "then run the same make command again"
    fi
}

if [ ! -x $venv/bin/python ] || ! recent $venv/bin/python || ! $venv/bin/python -c 'import pip' 2>/dev/null; then
    rm -rf "$venv"
    make_venv
fi
if ! $venv/bin/python -c 'import torch' 2>/dev/null; then
    $pip install "${TORCH:-torch==2.13.0}"
fi
$pip install --quiet --no-deps --require-hashes --requirement "requirements/$want.txt"
$pip install --quiet --no-deps --no-build-isolation --editable .
$venv/bin/python -c 'import torch; print("torch", torch.__version__, "· CUDA", torch.version.cuda or "no")'
