#!/usr/bin/env bash
# Adding: the sum of two marked numbers among T.
#
#   bash recipes/adding.sh [smoke|quick|paper] [OPTION …]     (see common.sh)
#
# quick: T = 200; the loss stays at the baseline for the first thousands of updates.
# paper: T = 750; `--steps` for others.
set -euo pipefail
. "$(dirname "$0")/common.sh" "$@"

case $profile in
    smoke) sizes=(--steps 10 --hidden-size 32 --eval-examples 100); updates=800 ;;
    quick) sizes=(--steps 200); updates=12000 ;;
    paper) sizes=(--steps 750); updates=40000 ;;
esac

train adding --task adding --arch kru --hidden-size 512 --train-examples 6400 "${sizes[@]}" \
    --criterion soft_unitary --unitary-penalty 0.01 \
    --optimizer kron_adam --lr 5e-3 --factor-lr-scale 0.1 --clip-norm 1 \
    --lr-scheduler polynomial_decay --total-num-update "$updates" --max-update "$updates" \
    --batch-size 32 --batch-size-valid 250 --log-interval 100 --best-checkpoint-metric mse
report mse "Adding ($profile)"
