#!/usr/bin/env bash
# Polyphonic music: which keys sound next, in JSB Chorales or another set of piano rolls.
#
#   bash recipes/music.sh [smoke|quick|paper] [OPTION …]     (see common.sh)
#
# `--music-set MuseData` takes another of the sets in $KRON_DATA/music; `kron-data prepare muse` puts
# it there. Its pieces are long, so add `--segment-steps 200`. RESULTS.md has, for each set, the
# settings that were best for each.
set -euo pipefail
. "$(dirname "$0")/common.sh" "$@"
need_data music '*.pickle' jsb

case $profile in
    smoke) sizes=(--hidden-size 64 --max-epoch 20); updates=60 ;;
    quick) sizes=(--hidden-size 256 --dropout 0.5 --max-epoch 20); updates=300 ;;
    paper) sizes=(--hidden-size 256 --dropout 0.5 --max-epoch 30); updates=450 ;;
esac

train music "$folder" --task music --music-set "JSB Chorales" --arch kru --cell kru_lstm "${sizes[@]}" \
    --criterion soft_unitary --unitary-penalty 0.01 \
    --optimizer kron_adam --lr 3e-2 --factor-lr-scale 1 --clip-norm 1 \
    --lr-scheduler polynomial_decay --total-num-update "$updates" \
    --batch-size 16 --log-interval 10 --best-checkpoint-metric nll
report nll "Polyphonic music ($profile)"
