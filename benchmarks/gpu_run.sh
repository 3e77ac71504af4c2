#!/usr/bin/env bash
# All that a GPU has to show, the most important first, each step with a time limit of its own. It needs
# torch, CuPy, pytest, tabulate and matplotlib for Python (pytest-xdist makes it faster), and no network.
#
#   bash benchmarks/gpu_run.sh [FOLDER [STEP …]]     STEPs: as below; all by default
#
# FOLDER (default benchmarks/results) gets <gpu>.json and pictures, rewritten after each step, and
# gpu_run.log. `training` wants fairseq, `mnist` the files of MNIST in the folder KRON_MNIST; without
# them they are left out. The status is 1 if a step failed.
set -uo pipefail
folder=$(realpath -m "${1:-$(dirname "$0")/results}")
mapfile -t known < <(sed -n 's/^ *step \([a-z]*\) [0-9].*/\1/p' "$0")
cd "$(dirname "$0")/.."
steps=("${@:2}")
[ ${#steps[@]} -gt 0 ] || steps=("${known[@]}")
for name in "${steps[@]}"; do
    [[ " ${known[*]} " == *" $name "* ]] || { printf 'gpu_run: no step %s; choose from %s\n' "$name" "${known[*]}" >&2; exit 2; }
done
mkdir -p "$folder"
log=$folder/gpu_run.log
: > "$log"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
gpu=("$python" benchmarks/gpu.py)
outcomes=() failed=0

# A step: its limit in seconds, its command. What it prints goes to the log, its end to the terminal.
step() {
    local name=$1 limit=$2 started=$SECONDS status
    case " ${steps[*]} " in *" $name "*) ;; *) return 0 ;; esac
    printf '=== %s\n' "$name" | tee -a "$log"
    timeout --signal=INT --kill-after=5 "$limit" "${@:3}" > "$folder/$name.out" 2>&1
    status=$?
    cat "$folder/$name.out" >> "$log"
    tail -n 25 "$folder/$name.out"
    rm -f "$folder/$name.out"
    outcomes+=("$name: status $status in $((SECONDS - started)) s")
    [ "$status" = 0 ] || failed=1
}

nvidia-smi 2>&1 | tee -a "$log"
step backend 150 "${gpu[@]}" test backend
step speed 150 "${gpu[@]}" bench recurrence --results "$folder"
step memcheck 90 "${gpu[@]}" test memcheck
step racecheck 90 "${gpu[@]}" test racecheck
step product 40 "${gpu[@]}" bench product --results "$folder"
step scaling 90 "${gpu[@]}" bench scaling --results "$folder"
step training 120 "${gpu[@]}" test training
if [ -d "${KRON_MNIST:-}" ]; then
    step mnist 300 "$python" benchmarks/gpu_mnist.py "$KRON_MNIST" --results "$folder"
else
    outcomes+=("mnist: left out, KRON_MNIST names no folder")
fi
printf '%s\n' "=== outcomes" "${outcomes[@]}" | tee -a "$log"
exit $failed
