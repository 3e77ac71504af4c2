#!/usr/bin/env bash
# Copy memory: remember ten symbols over T blanks, with 5,313 parameters.
#
#   bash recipes/copy_memory.sh [smoke|quick|paper] [OPTION …]     (see common.sh)
#
# quick: T = 100. paper: T = 1000. For the paper's T = 2000 add `--delay 2000 --factor-lr-scale 0.03`
# (with 0.1, as for the others, the factors move too fast).
set -euo pipefail
. "$(dirname "$0")/common.sh" "$@"

case $profile in
    smoke) sizes=(--delay 5 --copy-length 3 --hidden-size 64 --eval-examples 100); updates=300 ;;
    quick) sizes=(--delay 100); updates=600 ;;
    paper) sizes=(--delay 1000); updates=3000 ;;
esac

train copy_memory --task copy_memory --arch kru --hidden-size 128 "${sizes[@]}" \
    --criterion soft_unitary --unitary-penalty 0.01 \
    --optimizer kron_rmsprop --lr 1e-3 --factor-lr-scale 0.1 --clip-norm 1 \
    --lr-scheduler polynomial_decay --total-num-update "$updates" --max-update "$updates" \
    --batch-size 32 --batch-size-valid 250 --log-interval 20 \
    --validate-interval-updates 100 --best-checkpoint-metric bits
report bits "Copy memory ($profile)"
