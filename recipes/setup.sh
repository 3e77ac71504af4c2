#!/usr/bin/env bash
# Make the virtual environment of the recipes and the tests, or find it already made.
#
#   bash recipes/setup.sh [EXTRA]      EXTRA: an extra of setup.py, such as `test`
#
# Environment:
#   KRON_VENV   its folder (default: .venv in the checkout)
#   PYTHON      the Python that makes it (default: python3, 3.11 or newer)
#   KRON_TORCH  the torch to install: a wheel file, or the address of a package index that has it.
#               By default it comes from pip's own index; on Linux that one has CUDA.
set -euo pipefail
trap 'printf "setup: interrupted\n" >&2; exit 130' INT
case ${KRON_TORCH:-} in
    *.whl) KRON_TORCH=$(realpath -m "$KRON_TORCH") ;;  # relative to the user's folder
esac
cd "$(dirname "$0")/.."

extra=${1:-}
venv=${KRON_VENV:-$PWD/.venv}
python=${PYTHON:-python3}

die() { printf 'setup: %s\n' "$*" >&2; exit 1; }
say() { printf 'setup: %s\n' "$*"; }

# One stamp per extra holds pip's input, by content, so that a second run has nothing to do.
stamp=$venv/.kron-setup${extra:+-$extra}
wanted=$(cat setup.py constraints.txt recipes/setup.sh | cksum; echo "$PWD")
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi
log=$venv/setup.log

command -v "$python" >/dev/null || die "no '$python' found; install Python 3.11 or newer, or set PYTHON"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || die "$("$python" --version) is too old; 3.11 or newer is needed (set PYTHON to one)"
command -v g++ >/dev/null || command -v c++ >/dev/null \
    || die "no C++ compiler found; fairseq is built from source (Debian, Ubuntu: apt install g++)"
"$python" -c 'import os, sys, sysconfig as s; sys.exit(not os.path.exists(s.get_path("include") + "/Python.h"))' \
    || die "no Python.h for $python; fairseq is built from source (Debian, Ubuntu: apt install python3-dev)"
"$python" -c 'import ensurepip, venv' 2>/dev/null \
    || die "$python cannot make virtual environments (Debian, Ubuntu: apt install python3-venv)"
case ${KRON_TORCH:-} in
    *.whl) [ -f "$KRON_TORCH" ] || die "KRON_TORCH is $KRON_TORCH, which is no file" ;;
esac

# An interrupted setup may leave an environment without pip.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    share=()
    # An installed torch, with its CUDA, is better than any we would choose. A torch in another
    # virtual environment cannot be shared.
    if "$python" -c 'import sys, torch; sys.exit(sys.prefix != sys.base_prefix)' 2>/dev/null; then
        say "reusing the torch of $("$python" -c 'import sys; print(sys.executable)')"
        share=(--system-site-packages)
    fi
    say "making $venv"
    "$python" -m venv "${share[@]}" "$venv"
fi

# Show the log's last line on a terminal while this script runs.
follow() {
    [ -t 2 ] || return 0
    while sleep 1 && kill -0 $$ 2>/dev/null; do
        printf '\r\033[K  %s' "$(tail -n 1 "$log" | cut -c "1-$((${COLUMNS:-80} - 4))")" >&2
    done
}
# pip's output goes into the log. If pip fails, the end of the log is shown.
pip() {
    local follower status=0
    follow &
    follower=$!
    "$venv/bin/python" -m pip "$1" --disable-pip-version-check "${@:2}" >> "$log" 2>&1 || status=$?
    kill "$follower" 2>/dev/null || true
    wait "$follower" 2>/dev/null || true
    [ ! -t 2 ] || printf '\r\033[K' >&2
    if [ "$status" != 0 ]; then
        tail -n 25 "$log" >&2
        die "pip failed as shown; all that it said is in $log"
    fi
}

if ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
    torch=$(sed -n 's/^torch==/&/p' constraints.txt)
    case ${KRON_TORCH:-} in
        "") from=() ;;
        *.whl) torch=$KRON_TORCH from=() ;;
        *) from=(--index-url "$KRON_TORCH") ;;
    esac
    say "installing $torch${from[1]:+ from the index of KRON_TORCH}"
    if [ -z "${KRON_TORCH:-}" ] && [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then
        say "there is no NVIDIA GPU here, but this torch may bring CUDA: 3 GB to load, 5.8 GB on the"
        say "disk; KRON_TORCH can name a smaller wheel, or an index that has one (README.md)"
    fi
    pip install "${from[@]}" "$torch"
elif [ -n "${KRON_TORCH:-}" ]; then
    say "a torch is installed already, so KRON_TORCH is not looked at; remove $venv to change it"
fi
# pip must keep the present torch, whichever it is. A torch for CUDA needs a compiler of its version.
unpinned='^torch=='
if "$venv/bin/python" -W ignore -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then
    unpinned='^(torch|nvidia-cuda-nvrtc)=='
fi
keep=$(mktemp)
config=$(mktemp)
trap 'rm -f "$keep" "$config"' EXIT
grep -Ev "$unpinned" constraints.txt > "$keep"
"$venv/bin/python" -c 'from importlib.metadata import version; print("torch==" + version("torch"))' \
    >> "$keep"

say "installing the build tools"
pip install -c "$keep" setuptools wheel cython numpy
if ! "$venv/bin/python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("fairseq") is None)'; then
    say "building fairseq (a minute or two)"
    # Isolation would download a second torch for the build. -O0 saves minutes in a library of
    # fairseq that KRU does not use; its Cython modules set -O3 themselves.
    printf '[build_ext]\nparallel=2\n' > "$config"
    DIST_EXTRA_CONFIG=$config CFLAGS="-O0 -g0" pip install -c "$keep" --no-build-isolation fairseq-fixed
fi
# The tests compile the CUDA kernels, with or without a GPU; CuPy must fit torch's CUDA.
extras=$extra
if [ "$extra" = test ] && [ "$(uname -s)" = Linux ]; then
    extras=$extra,cuda$("$venv/bin/python" -c 'import torch; print((torch.version.cuda or "13").split(".")[0])')
fi
say "installing the plugin${extras:+ with its extras $extras}"
pip install -c "$keep" --no-build-isolation -e ".${extras:+[$extras]}"
# A later request for less finds it done.
printf '%s\n' "$wanted" | tee "$venv/.kron-setup" > "$stamp"
say "done"
