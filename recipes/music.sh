#!/usr/bin/env bash
# Polyphonic music: predict the next chord of JSB Chorales, or of another set of piano rolls.
#
#   bash recipes/music.sh [SET] [OPTION …]     SET: a .pickle in $KRON_DATA/music, without its ending
#
# 20 epochs of JSB Chorales take a minute or two on two cores.
set -euo pipefail
. "$(dirname "$0")/common.sh"

set="JSB Chorales"
if [[ $# -gt 0 && $1 != -* ]]; then set=$1; shift; fi

train "music_${set// /_}" "$data/music" --task music --music-set "$set" \
    --arch kru --hidden-size 256 \
    --criterion soft_unitary --unitary-penalty 0.01 \
    --optimizer kron_adam --lr 1e-2 --factor-lr-scale 0.1 --clip-norm 1 \
    --lr-scheduler polynomial_decay --total-num-update 300 --max-epoch 20 \
    --batch-size 16 --log-interval 10 --best-checkpoint-metric nll "$@"
report nll "$set"
