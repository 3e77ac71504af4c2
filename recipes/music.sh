#!/usr/bin/env bash
# Polyphonic music: predict the next chord of JSB Chorales, or of another set of piano rolls.
#
#   bash recipes/music.sh [PICKLE] [OPTION …]     PICKLE: default JSB Chorales.pickle in $KRON_DATA/music
set -euo pipefail
. "$(dirname "$0")/common.sh"

pickle="$data/music/JSB Chorales.pickle"
if [[ $# -gt 0 && $1 != -* ]]; then pickle=$1; shift; fi
[ -e "$pickle" ] || die "no piano rolls at '$pickle'; give a .pickle, or set KRON_DATA to its folder"
name=$(basename "$pickle" .pickle | tr ' ' '_')

train "music_$name" "$pickle" \
    --task music \
    --arch kru --hidden-size 256 \
    --criterion soft_unitary --unitary-penalty 0.01 \
    --optimizer kron_adam --lr 3e-3 --factor-lr-scale 0.1 --clip-norm 1 \
    --lr-scheduler polynomial_decay --total-num-update 300 --max-epoch 20 \
    --batch-size 16 --log-interval 10 --best-checkpoint-metric nll "$@"
report nll "$name"
