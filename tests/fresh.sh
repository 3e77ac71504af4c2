#!/usr/bin/env bash
# Try the README's two commands in new systems: a fresh clone of the last commit, an unprivileged
# user, a path with a space, a home elsewhere, only pip's own index.
#
#   bash tests/fresh.sh FOLDER [SUITE …]     SUITEs of Debian (default: bookworm trixie)
#
# Each suite becomes FOLDER/SUITE, which must not exist yet and stays there. The script needs root,
# debootstrap and the network, and for each suite 8 GB of disk and some ten minutes.
#
# Environment: KRON_TORCH as in recipes/setup.sh, but it must be the address of an index; the new
# system gets the proxies and certificates (https_proxy, SSL_CERT_FILE …).
set -euo pipefail

die() { printf 'fresh: %s\n' "$*" >&2; exit 2; }
say() { printf 'fresh: %s\n' "$*"; }

[ $# -ge 1 ] || die "first the folder to make the systems in: bash tests/fresh.sh FOLDER [SUITE …]"
[ "$(id -u)" = 0 ] || die "only root can make a system and enter it (chroot); try it with sudo"
command -v debootstrap >/dev/null || die "no debootstrap found (Debian, Ubuntu: apt install debootstrap)"
# The script runs in its own mount namespace, so that its mounts end with it.
[ -n "${KRON_FRESH_APART:-}" ] || KRON_FRESH_APART=1 exec unshare --mount --propagation private bash "$0" "$@"
trap 'exit 130' INT
mkdir -p "$1"
folder=$(cd "$1" && pwd)
suites=("${@:2}")
[ ${#suites[@]} -gt 0 ] || suites=(bookworm trixie)
cd "$(dirname "$0")/.."
bundle=$folder/kron.bundle
git bundle create --quiet "$bundle" HEAD
[ -z "$(git status --porcelain)" ] || say "what is not committed is not tried"

# The README's requirements, and certificates, which every desktop has.
NEEDS=python3,python3-venv,python3-dev,g++,make,git,ca-certificates

enter() { chroot "$root" env -i PATH=/usr/bin:/bin:/usr/sbin:/sbin LANG=C.UTF-8 "${network[@]}" "$@"; }

make_system() {
    [ ! -e "$root" ] || die "$root exists already; remove it, it is to be made from nothing"
    say "$suite: making $root"
    debootstrap --variant=minbase --include="$NEEDS" "$suite" "$root" > "$folder/$suite.log" 2>&1 \
        || die "debootstrap failed; $folder/$suite.log tells why"
    network=()
    for name in http_proxy https_proxy no_proxy KRON_TORCH; do
        [ -z "${!name:-}" ] || network+=("$name=${!name}")
    done
    if [ -n "${SSL_CERT_FILE:-}" ]; then
        cp "$SSL_CERT_FILE" "$root/etc/ssl/certs/of-the-network.crt"
        for name in SSL_CERT_FILE PIP_CERT REQUESTS_CA_BUNDLE; do
            network+=("$name=/etc/ssl/certs/of-the-network.crt")
        done
    fi
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    printf '127.0.0.1 localhost %s\n' "$(hostname)" > "$root/etc/hosts"
    mount --bind /proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs tmpfs "$root/dev/shm"
    enter useradd --create-home --home-dir /srv/elsewhere reader
    enter install -d -o reader "/srv/a folder"
    cp "$bundle" "$root/srv/kron.bundle"
    as_user "git -c advice.detachedHead=false -c init.defaultBranch=main clone --quiet /srv/kron.bundle '/srv/a folder/kron'"
}

as_user() { enter setpriv --reuid reader --regid reader --clear-groups \
    env HOME=/srv/elsewhere bash -c "cd '/srv/a folder/kron' 2>/dev/null || cd; $1"; }

# Run a command with its output in a log, and set `outcome` to its result.
try() {
    local log=$folder/$suite-$1.log started=$SECONDS
    say "$suite: $2"
    if as_user "$2" > "$log" 2>&1; then outcome="passed"; else outcome="failed"; fi
    outcome="$outcome in $(((SECONDS - started) / 60))m$(((SECONDS - started) % 60))s"
    say "$suite: $2 $outcome; its last lines ($log):"
    tail -n "$3" "$log"
}

table=("| system | Python | compiler | torch | date | \`copy_memory.sh\` | \`make test\` |"
    "|---|---|---|---|---|---|---|")
failed=0
for suite in "${suites[@]}"; do
    root=$folder/$suite
    make_system
    try first "bash recipes/copy_memory.sh" 24
    first=$outcome
    try test "make test" 5
    [[ $first$outcome != *failed* ]] || failed=1
    table+=("| $(. "$root/etc/os-release" && echo "$PRETTY_NAME") \
| $(as_user "python3 --version" | cut -d' ' -f2) | g++ $(as_user "g++ -dumpfullversion") \
| $(as_user ".venv/bin/python -c 'import torch; print(torch.__version__)'" 2>/dev/null) \
| $(date +%Y-%m-%d) | $first | $outcome |")
done
printf '%s\n' "${table[@]}"
exit $failed
