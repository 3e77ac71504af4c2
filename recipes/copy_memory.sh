#!/usr/bin/env bash
# Copy memory: remember ten symbols over T blanks, with 5,313 parameters.
#
#   bash recipes/copy_memory.sh [T] [OPTION …]     T: blanks (default 100); options of fairseq-train
#
# Solved at T = 100 within a few hundred updates, minutes on two cores.
set -euo pipefail
. "$(dirname "$0")/common.sh"

delay=100
if [[ ${1:-} =~ ^-?[0-9]+$ ]]; then delay=$1; shift; fi

train "copy_memory_T$delay" \
    --task copy_memory --delay "$delay" \
    --arch kru --hidden-size 128 \
    --criterion soft_unitary --unitary-penalty 0.01 \
    --optimizer kron_rmsprop --lr 1e-3 --factor-lr-scale 0.1 --clip-norm 1 \
    --lr-scheduler polynomial_decay --total-num-update 600 --max-update 600 \
    --batch-size 32 --batch-size-valid 250 --log-interval 20 \
    --validate-interval-updates 100 --best-checkpoint-metric bits "$@"
report bits "Copy memory, T = $delay"
