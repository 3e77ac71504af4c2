#!/usr/bin/env bash
# Make the virtual environment that the recipes and the tests use, or find it already made.
#
#   bash recipes/setup.sh [EXTRA]      EXTRA: an extra of setup.py, such as `test`
#
# Environment: KRON_VENV, where it lies (default: .venv in the checkout); PYTHON, what makes it
# (default: python3, 3.11 or newer).
set -euo pipefail
cd "$(dirname "$0")/.."

extra=${1:-}
venv=${KRON_VENV:-$PWD/.venv}
python=${PYTHON:-python3}

die() { printf 'setup: %s\n' "$*" >&2; exit 1; }
say() { printf 'setup: %s\n' "$*"; }

# One stamp per extra: what was asked of pip, by content, so that a second run has nothing to do.
stamp=$venv/.kron-setup${extra:+-$extra}
wanted=$(cat setup.py constraints.txt recipes/setup.sh | cksum; echo "$PWD")
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi

command -v "$python" >/dev/null || die "no '$python' found; install Python 3.11 or newer, or set PYTHON"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || die "$("$python" --version) is too old; 3.11 or newer is needed (set PYTHON to one)"
command -v g++ >/dev/null || command -v c++ >/dev/null \
    || die "no C++ compiler found; fairseq is built from source (Debian, Ubuntu: apt install g++ python3-dev)"

# One that was interrupted while it was made may lack pip.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    share=()
    # A torch that is installed already, with its CUDA, is better than any we would choose; one in
    # another virtual environment cannot be shared.
    if "$python" -c 'import sys, torch; sys.exit(sys.prefix != sys.base_prefix)' 2>/dev/null; then
        say "reusing the torch of $("$python" -c 'import sys; print(sys.executable)')"
        share=(--system-site-packages)
    fi
    say "making $venv"
    "$python" -m venv "${share[@]}" "$venv"
fi

pip() { "$venv/bin/python" -m pip "$1" --quiet --disable-pip-version-check "${@:2}"; }

if ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
    torch=$(sed -n 's/^\(torch==[0-9.]*\);.*>= "3.11".*/\1/p' constraints.txt)
    say "installing $torch"
    # Without a GPU the CPU build, a tenth of the size, where the package index has one.
    if command -v nvidia-smi >/dev/null || ! pip install "$torch+cpu" 2>/dev/null; then
        pip install "$torch"
    fi
fi
# The torch at hand is what pip has to keep, whichever it is; one for CUDA asks for a compiler of
# its version.
unpinned='^torch=='
if "$venv/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then
    unpinned='^(torch|nvidia-cuda-nvrtc)=='
fi
keep=$(mktemp)
config=$(mktemp)
trap 'rm -f "$keep" "$config"' EXIT
grep -Ev "$unpinned" constraints.txt > "$keep"
"$venv/bin/python" -c 'import torch; print("torch==" + torch.__version__)' >> "$keep"

say "installing the build tools"
pip install -c "$keep" setuptools wheel cython numpy
if ! "$venv/bin/python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("fairseq") is None)'; then
    say "building fairseq (a minute or two)"
    # Isolation would download a second torch to build with; -O0 spares minutes in a library of the
    # toolkit that KRU does not use, its Cython modules set -O3 themselves.
    printf '[build_ext]\nparallel=2\n' > "$config"
    DIST_EXTRA_CONFIG=$config CFLAGS="-O0 -g0" pip install -c "$keep" --no-build-isolation fairseq-fixed
fi
# The tests compile the CUDA kernels, with a GPU or without; CuPy has to fit torch's CUDA.
extras=$extra
if [ "$extra" = test ] && [ "$(uname -s)" = Linux ]; then
    extras=$extra,cuda$("$venv/bin/python" -c 'import torch; print((torch.version.cuda or "13").split(".")[0])')
fi
say "installing the plugin${extras:+ with its extras $extras}"
pip install -c "$keep" --no-build-isolation -e ".${extras:+[$extras]}"
# Who asks for less later has it already.
printf '%s\n' "$wanted" | tee "$venv/.kron-setup" > "$stamp"
say "done"
