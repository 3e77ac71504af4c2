# The shared part of the recipes. A recipe sources it with its arguments, as `. common.sh "$@"`.
#
# Every recipe is called as  bash recipes/NAME.sh [smoke|quick|paper] [OPTION …]:
#   smoke   seconds, on small data that the recipe makes itself
#   quick   minutes on two cores, on the real data (the default)
#   paper   an experiment of the literature, with the setting that did best here
# OPTIONs of fairseq-train override the recipe's own; `--no-SWITCH` removes a switch of the recipe.
#
# Sets up the environment and defines
#   $profile, $options      what the recipe was called with
#   need_data FOLDER FILE SET   the folder to train from: one in $KRON_DATA that holds such a file
#                           of a set that kron-data knows, or one made by the smoke profile
#   train NAME ARGS…        fairseq-train with the plugin, into $out, with its log beside it
#   report METRIC TITLE     record the run, with the scores of the best checkpoint, for
#                           `kron-eval report`, and draw the learning curve
#
# Environment: KRON_RUNS, the folder of the runs (default: runs/ in the checkout); KRON_DATA, the
# folder of the data sets (default: ../shared/data if it exists, else data/ in the checkout).

cd "$(dirname "${BASH_SOURCE[0]}")/.."
recipe=$(basename "$0" .sh)
die() { printf '%s: %s\n' "$recipe" "$*" >&2; exit 2; }
trap 'printf "%s: interrupted\n" "$recipe" >&2; exit 130' INT

profile=quick
case ${1:-} in
    smoke | quick | paper) profile=$1; shift ;;
    -h | --help) sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' "$0"; exit ;;
    -* | "") ;;
    *) die "unknown profile '$1'; choose smoke, quick or paper" ;;
esac
options=("$@")

bash recipes/setup.sh
# Paths are relative if possible, so that logs are the same on every machine.
venv=${KRON_VENV:-.venv}
runs=${KRON_RUNS:-runs}
data=${KRON_DATA:-$([ -d ../shared/data ] && echo ../shared/data || echo data)}

need_data() {
    folder=$data/$1
    if [ "$profile" = smoke ]; then
        folder=$runs/smoke_data/$1
        "$venv/bin/python" recipes/smoke_data.py "$recipe" "$folder"
    elif ! compgen -G "$folder/$2" > /dev/null; then
        die "no '$2' in '$folder'; get it by
    $venv/bin/kron-data prepare $3 --download --dest '$folder'
or set KRON_DATA to the folder that holds '$1'"
    fi
}

# distributed.sh defines its own.
declare -F launch > /dev/null || launch() { "$venv/bin/fairseq-train" "$@"; }
# The terminal shows a bar; fairseq's lines go into the log.
export LOGLEVEL=${LOGLEVEL:-WARNING}

train() {
    # Each set of options has a folder: fairseq would go on from the checkpoint of another set.
    out=$runs/${1}_$profile
    if [ ${#options[@]} -gt 0 ]; then
        out+=$(printf '_%s' "${options[@]}" | tr -c 'A-Za-z0-9._-' _)
    fi
    out+=${KRON_WORKERS:+_on_${KRON_WORKERS}_workers}
    if [ -e "$out/result.json" ]; then
        printf '%s: trained already; remove %s to train anew\n' "$recipe" "$out"
        return
    fi
    mkdir -p "$out"
    set -- "${@:2}" --user-dir kron_plugin --save-dir "$out" --seed 1 \
        --num-workers 0 --no-epoch-checkpoints --log-format json --log-file "$out/train.log"
    local word words=()
    for word in "$@"; do
        [[ " ${options[*]} " == *" --no-${word#--} "* ]] || words+=("$word")
    done
    for word in "${options[@]}"; do
        [[ $word == --no-* && " $* " == *" --${word#--no-} "* ]] || words+=("$word")
    done
    printf '%s: training (%s) into %s\n' "$recipe" "$profile" "$out"
    launch "${words[@]}"
}

report() {
    [ "${KRON_NODE:-0}" = 0 ] || return 0
    local script=("recipes/$recipe.sh") place=(${folder:+--data "$folder"})
    [ -z "${KRON_PROCESSES:-}" ] || script=(recipes/distributed.sh "$KRON_PROCESSES" "$recipe")
    if [ -e "$out/result.json" ]; then  # it names the machine and the commit that trained
        "$venv/bin/kron-eval" "$out/checkpoint_best.pt" "${place[@]}"
    else
        command=$(printf '%q ' bash "${script[@]}" "$profile" "${options[@]}")
        "$venv/bin/kron-eval" record "$out/checkpoint_best.pt" --log "$out/train.log" \
            --command "${command% }" --output "$out/result.json" "${place[@]}"
    fi
    "$venv/bin/kron-eval" curve "$out/train.log" --metric "$1" --title "$2" --output "$out/curve.png"
    printf '%s: the checkpoint is %s, the log %s\n' \
        "$recipe" "$out/checkpoint_best.pt" "$out/train.log"
}
