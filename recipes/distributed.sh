#!/usr/bin/env bash
# Train a recipe's model in N processes: on N GPUs, or on the CPU where there are none.
#
#   bash recipes/distributed.sh N RECIPE [smoke|quick|paper] [OPTION …]
#
# Every process takes batches of --batch-size, so that an update takes N times as many examples.
# `--cpu` uses no GPU. On several machines call it on each; the first is number 0:
#
#   KRON_NODES=2 KRON_NODE=0 KRON_MASTER=HOST:PORT bash recipes/distributed.sh N RECIPE …
#
# with a free port of the first machine, and KRON_RUNS in a folder that all of them see.
#
# A process waits at most KRON_TIMEOUT seconds (default: 600) for another. Then it says which one
# does not answer, and all of them end.
set -euo pipefail
die() { printf 'distributed: %s\n' "$*" >&2; exit 2; }

[[ ${1:-} =~ ^[1-9][0-9]*$ ]] || die "first the number of processes on this machine, not '${1:-}'"
export KRON_PROCESSES=$1 KRON_NODES=${KRON_NODES:-1} KRON_NODE=${KRON_NODE:-0}
export KRON_WORKERS=$((KRON_PROCESSES * KRON_NODES))
export KRON_TIMEOUT=${KRON_TIMEOUT:-600}
[[ $KRON_TIMEOUT =~ ^[1-9][0-9]*$ ]] || die "KRON_TIMEOUT=$KRON_TIMEOUT: must be whole seconds above 0"
script=$(dirname "$0")/${2:-}.sh
grep -qs '^train ' "$script" || die "no recipe '${2:-}'"
if [ "$KRON_NODES" != 1 ] && [[ ${KRON_MASTER:-} != *:* ]]; then
    die "KRON_NODES=$KRON_NODES wants KRON_MASTER=HOST:PORT"
fi

# This replaces fairseq-train in common.sh and uses its names.
launch() {
    local gpus place meeting=(--standalone)
    gpus=$("$venv/bin/python" -c 'import torch; print(torch.cuda.device_count())')
    case " $* " in
        *" --distributed-"* | *" --ddp-backend"*) die "chooses --distributed-… and --ddp-backend" ;;
        *" --cpu "*) gpus=0 ;;
    esac
    if [ "$gpus" = 0 ]; then
        place=(--cpu --distributed-backend gloo)
    elif [ "$gpus" -ge "$KRON_PROCESSES" ]; then
        place=(--distributed-backend nccl)
    else
        die "$KRON_PROCESSES processes, but $gpus GPUs; add --cpu to train on the CPU"
    fi
    if [ "$KRON_NODES" != 1 ]; then
        meeting=(--nnodes "$KRON_NODES" --node-rank "$KRON_NODE")
        meeting+=(--master-addr "${KRON_MASTER%:*}" --master-port "${KRON_MASTER##*:}")
    fi
    local told=0  # a resumed run's log begins with the lines of the run before
    [ ! -e "$out/train.log" ] || told=$(wc -c < "$out/train.log")
    # Cores that two processes share are many times slower.
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + KRON_PROCESSES - 1) / KRON_PROCESSES))}
    # If any of these is missing, fairseq trains separate copies, fails, or does nothing and reports
    # success.
    "$venv/bin/python" recipes/torchrun.py --nproc-per-node "$KRON_PROCESSES" "${meeting[@]}" --no-python bash -c '
        exec "$0" "$@" --distributed-world-size "$WORLD_SIZE" --distributed-rank "$RANK" \
            --device-id "$LOCAL_RANK" --distributed-init-method env:// --distributed-no-spawn' \
        "$venv/bin/fairseq-train" "$@" "${place[@]}" \
        --ddp-backend legacy_ddp --load-checkpoint-on-all-dp-ranks
    [ "$KRON_NODE" = 0 ] || return 0
    local said
    said=$(tail -c +$((told + 1)) "$out/train.log" | grep -o 'training on [0-9]* devices') || true
    if [ "$said" != "training on $KRON_WORKERS devices" ]; then
        die "$KRON_WORKERS processes did not train one model together; $out/train.log says '$said'"
    fi
}
export -f launch

exec bash "$script" "${@:3}"
