# What the recipes share; sourced, never run.
#
# Sets up the environment and defines:
#   train NAME ARGS…     fairseq-train with the plugin, into $out, with its log beside it
#   report METRIC TITLE  evaluate the best checkpoint and draw the learning curve
#
# Environment: KRON_RUNS, where runs are kept (default: runs/ in the checkout); KRON_DATA, where the
# data sets lie (default: ../shared/data).

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash recipes/setup.sh
# Relative where they can be, so that logs read the same on every machine.
venv=${KRON_VENV:-.venv}
runs=${KRON_RUNS:-runs}
data=${KRON_DATA:-../shared/data}

die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 2; }

train() {
    out=$runs/$1
    mkdir -p "$out"
    # Without the multiple of 1 the toolkit drops the rest of an epoch.
    "$venv/bin/fairseq-train" "${@:2}" \
        --user-dir kron_plugin --save-dir "$out" --seed 1 \
        --required-batch-size-multiple 1 --num-workers 0 --no-epoch-checkpoints \
        --log-format json --log-file "$out/train.log"
}

report() {
    "$venv/bin/kron-eval" "$out/checkpoint_best.pt" --output "$out/result.json"
    "$venv/bin/kron-eval" curve "$out/train.log" --metric "$1" --title "$2" --output "$out/curve.png"
    printf '\ncheckpoint  %s\nlog         %s\nresult      %s\ncurve       %s\n' \
        "$out/checkpoint_best.pt" "$out/train.log" "$out/result.json" "$out/curve.png"
}
