#!/usr/bin/env bash
# Pixel-by-pixel MNIST, the pixels permuted: 512 units, 12,882 parameters, 72 of them recurrent.
#
#   bash recipes/pixel_mnist.sh [smoke|quick|paper] [OPTION …]     (see common.sh)
#
# quick: two epochs. paper: sixteen epochs in 40 minutes, with 7,762 parameters, because it reads the
# moduli of the state. `--no-permute` leaves the pixels in reading order; paper then reads the parts
# and takes forty epochs, in 80 minutes.
set -euo pipefail
. "$(dirname "$0")/common.sh" "$@"
need_data mnist 'train-images-idx3-ubyte*' mnist

case $profile in
    smoke) sizes=(--hidden-size 32 --valid-images 50 --unverified --max-epoch 8); updates=72 ;;
    quick) sizes=(--max-epoch 2); updates=860 ;;
    paper)
        sizes=(--batch-size 32 --optimizer kron_adam --power 2)
        given=" ${options[*]} "
        if [[ $given == *" --no-permute "* ]]; then
            sizes+=(--max-epoch 40 --factor-lr-scale 0.03); updates=68760
            angle=0.2 reads=parts
        else
            sizes+=(--max-epoch 16 --lr 2e-3 --factor-lr-scale 0.01 --bias-lr-scale 0.3); updates=27504
            sizes+=(--dropout 0.2)
            angle=0.5 reads=moduli
        fi
        # Other cells have no such start, and real states have no moduli.
        [[ $given == *" --cell "* ]] || sizes+=(--angle-init "$angle")
        [[ $given == *" --cell "* || $given == *" --kron-real "* ]] || sizes+=(--readout "$reads")
        ;;
esac

train pixel_mnist "$folder" --task pixel_mnist --permute --arch kru --hidden-size 512 \
    --criterion soft_unitary --unitary-penalty 0.01 \
    --optimizer kron_rmsprop --lr 1e-3 --factor-lr-scale 0.1 --clip-norm 1 \
    --lr-scheduler polynomial_decay --total-num-update "$updates" \
    --batch-size 128 --batch-size-valid 250 --log-interval 20 \
    --best-checkpoint-metric accuracy --maximize-best-checkpoint-metric "${sizes[@]}"
report accuracy "Pixel MNIST ($profile)"
