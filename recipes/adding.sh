#!/usr/bin/env bash
# Adding: the sum of two marked numbers among T, by a KRU-LSTM with 929 parameters.
#
#   bash recipes/adding.sh [smoke|quick|paper] [OPTION …]     (see common.sh)
#
# quick: T = 200. paper: T = 750; for others add `--steps 2000 --chrono-init 2000`.
set -euo pipefail
. "$(dirname "$0")/common.sh" "$@"

case $profile in
    smoke) steps=10; sizes=(--hidden-size 32 --eval-examples 100); updates=400 ;;
    quick) steps=200; sizes=(--hidden-size 64); updates=3000 ;;
    paper) steps=750; sizes=(--hidden-size 64); updates=6000 ;;
esac

train adding --task adding --steps "$steps" --arch kru --cell kru_lstm "${sizes[@]}" \
    --chrono-init "$steps" --criterion soft_unitary --train-examples 6400 \
    --optimizer kron_adam --lr 2e-2 --factor-lr-scale 1 --clip-norm 1 \
    --lr-scheduler polynomial_decay --total-num-update "$updates" --max-update "$updates" \
    --batch-size 32 --batch-size-valid 250 --log-interval 50 --best-checkpoint-metric mse
report mse "Adding ($profile)"
