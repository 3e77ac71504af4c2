#!/usr/bin/env bash
# Penn Treebank by characters.
#
#   bash recipes/char_lm.sh [smoke|quick|paper] [OPTION …]     (see common.sh)
#
# quick: 512 units in 2x2 factors, 72 recurrent parameters. paper: a KRU-LSTM of 1,216 units with
# 2,532, as good as an LSTM with a hundred times as many.
#
# It needs $KRON_DATA/ptb with train.txt, valid.txt and test.txt. Mikolov's files ptb.*.txt are first
# prepared into a folder of the run.
set -euo pipefail
. "$(dirname "$0")/common.sh" "$@"
need_data ptb '*train.txt' ptb
if [ -e "$folder/ptb.train.txt" ]; then
    prepared=$runs/data/ptb
    [ -e "$prepared" ] || "$venv/bin/kron-data" prepare ptb --source "$folder" --dest "$prepared"
    folder=$prepared
fi

case $profile in
    smoke) sizes=(--hidden-size 32 --tokens-per-sample 20 --batch-size 32); updates=60 ;;
    quick) sizes=(--hidden-size 512 --tokens-per-sample 100 --batch-size 128); updates=1200 ;;
    paper)
        sizes=(--hidden-size 1216 --tokens-per-sample 100 --batch-size 128 --lr 6e-2
            --cell kru_lstm --kron-factors 4,16,19 --factor-lr-scale 1)
        updates=1200
        ;;
esac

train char_lm "$folder" --task char_lm --arch kru_lm \
    --criterion soft_unitary --unitary-penalty 0.01 \
    --optimizer kron_adam --lr 2e-2 --factor-lr-scale 0.1 --clip-norm 1 \
    --lr-scheduler polynomial_decay --total-num-update "$updates" --max-update "$updates" \
    --log-interval 20 --best-checkpoint-metric bpc "${sizes[@]}"
report bpc "Text by characters ($profile)"
