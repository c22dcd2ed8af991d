#!/usr/bin/env bash
# Fills the virtual environment of the Makefile; `make setup` is the way to call it.
#
#   setup_venv.sh VENV [PY] [SYSTEM_SITE]
#
# VENV         folder of the environment. New or made by this script: (re)built with the versions of constraints.txt.
#              An environment of the user's own: kept, only what setup.py requires and it lacks is added.
# PY           interpreter to build with: a version ("3.12") or a path; empty: the first suitable one found.
# SYSTEM_SITE  non-empty: the new environment sees the interpreter's own packages and prefers them to constraints.txt.
#
# A detectron2 that the environment already has is used as it is, in every case.
set -euo pipefail

venv=$1 py=${2:-} system_site=${3:-}
marker=$venv/.mokd_det-environment
cd "$(dirname "$0")/.."

fail() {
    echo "setup: error: $*" >&2
    exit 2
}

# Prints the path of the interpreter behind a command, if it is one that can be used.
usable() {
    "$@" -c 'import ensurepip, sys, venv; assert (3, 10) <= sys.version_info[:2] < (3, 14); print(sys.executable)' 2>/dev/null
}

find_interpreter() {
    case $py in
        "")
            for name in python3 python3.13 python3.12 python3.11 python3.10; do
                usable "$name" && return
            done
            fail "no Python 3.10 to 3.13 with the modules venv and ensurepip found; name one with PY=/path/to/python" ;;
        */*)
            usable "$py" || fail "PY=$py is not a Python 3.10 to 3.13 with the modules venv and ensurepip" ;;
        *)
            # The second form is for pyenv, whose commands refuse a version that is installed but not selected.
            usable "python$py" || usable env PYENV_VERSION="$py" "python$py" ||
                fail "PY=$py: no usable python$py found; mokd_det runs on Python 3.10 to 3.13" ;;
    esac
}

own_environment=
if [ -e "$marker" ] || [ ! -e "$venv" ] || [ -z "$(ls -A "$venv")" ]; then
    interpreter=$(find_interpreter)
    echo "setup: building $venv with $interpreter"
    "$interpreter" -m venv --clear ${system_site:+--system-site-packages} "$venv"
    # Read by the Makefile.
    printf 'PY ?= %s\nSYSTEM_SITE ?= %s\n' "$py" "$system_site" >"$marker"
elif [ -x "$venv/bin/python" ]; then
    own_environment=1
    echo "setup: using the environment $venv as it is, adding what it lacks"
else
    fail "VENV=$venv exists and is no virtual environment"
fi

python=$venv/bin/python
requirements=(-e ".[balancers,evaluation,export,slurm,trackers,transformers,docs,dev]")
if "$python" -c 'import importlib.metadata as m; m.version("detectron2")' 2>/dev/null; then
    echo "setup: using the detectron2 that is already there"
else
    requirements+=(./third_party/detectron2)
fi
# As a variable the constraints also bind the isolated builds of source packages. Path relative: spaces would split it.
if [ -z "$own_environment$system_site" ]; then
    export PIP_CONSTRAINT=constraints.txt
fi
[ -n "$own_environment" ] || echo "setup: installing the packages: 6 GB, one to four minutes"
"$python" -m pip install --disable-pip-version-check -qq "${requirements[@]}"

# The Linux wheels of opencv-python need libGL, which servers seldom have; the headless build has the same Python API.
if ! problem=$("$python" -c 'import cv2' 2>&1); then
    [ -z "$own_environment" ] || fail "cv2 cannot be imported in $venv: ${problem##*$'\n'}"
    echo "setup: no libGL here, using opencv-python-headless"
    "$python" -m pip install --disable-pip-version-check -qq --no-deps opencv-python-headless
fi
