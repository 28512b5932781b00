#!/usr/bin/env bash
# Makes this machine able to build, run and test Dormouse: Debian packages, the guest kernel and the managed
# base image. Does nothing, quickly, when all of it is there.
#
# usage: setup.sh [--refresh]     --refresh fetches the kernel and the base image again
#
# Everything but the Debian packages goes into DORMOUSE_CACHE (default: .cache in the project).
set -euo pipefail

cd "$(dirname "$0")/.."
cache=$(realpath -m "${DORMOUSE_CACHE:-.cache}")
assets=$cache/assets

# QEMU before 10 cannot leave a guest's memory in its file when it saves the rest.
qemu_major_min=10
qemu_packages=(qemu-system-x86 qemu-utils)
other_packages=(mmdebstrap e2fsprogs iproute2 nftables zip curl xz-utils python3-venv gcc make ca-certificates docker-registry
    chromium libnss3-tools pebble)

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

main() {
    case ${1:-} in
        '') ;;
        --refresh) rm -f "$assets"/.*.stamp ;;
        *) die "unknown option $1" ;;
    esac
    check_machine
    mkdir -p "$assets"
    # One setup at a time: two test runs may share the cache.
    exec 9>"$cache/setup.lock"
    flock 9
    install_packages
    make_once kernel scripts/guest-kernel.sh
    make_once base scripts/guest-base.sh
}

check_machine() {
    [ "$(dpkg --print-architecture 2>/dev/null)" = amd64 ] || die "this needs Debian on amd64"
    # shellcheck source=/dev/null
    . /etc/os-release
    case "${ID:-}:${VERSION_ID:-}" in
        debian:12 | debian:13) codename=$VERSION_CODENAME ;;
        *) die "this needs Debian 12 or 13; found ${PRETTY_NAME:-another system}" ;;
    esac
    command -v cargo >/dev/null ||
        die "Rust is missing: install it with rustup (https://rustup.rs), then run this again"
}

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

qemu_is_new() {
    local version
    version=$(dpkg-query -W -f '${Version}' qemu-system-x86 2>/dev/null || echo 0)
    dpkg --compare-versions "$version" ge "1:$qemu_major_min"
}

install_packages() {
    local package wanted=("${other_packages[@]}") missing=()
    if qemu_is_new; then wanted+=("${qemu_packages[@]}"); else missing=("${qemu_packages[@]}"); fi
    for package in "${wanted[@]}"; do
        installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] ||
        die "packages are missing (${missing[*]}): run this once as root, as in: sudo scripts/setup.sh"

    say "installing ${missing[*]}"
    apt_get update
    qemu_is_new || install_qemu
    apt_get install --yes --no-install-recommends "${missing[@]}"
}

# Debian 12 has the newer QEMU in its backports only.
install_qemu() {
    local from=$codename
    if [ "$codename" = bookworm ]; then
        from=bookworm-backports
        add_backports
    fi
    apt_get install --yes --no-install-recommends --target-release "$from" "${qemu_packages[@]}"
    qemu_is_new || die "no QEMU $qemu_major_min or newer could be installed"
}

add_backports() {
    local list=/etc/apt/sources.list.d/dormouse-backports.list
    ! apt-get indextargets --format '$(RELEASE)' | grep -qx bookworm-backports || return 0
    say "adding bookworm-backports to the apt sources ($list)"
    scripts/debian-sources.sh bookworm --backports | grep bookworm-backports >"$list"
    apt_get update
}

apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" </dev/null >&2; }

# Runs a recipe that fills the assets folder, unless this very recipe already did.
make_once() {
    local stamp=$assets/.$1.stamp recipe=$2 wanted
    wanted=$(cat "$recipe" scripts/debian-sources.sh scripts/guest-modules | sha256sum)
    [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || return 0
    rm -f "$stamp"
    "$recipe" "$assets" "$codename"
    echo "$wanted" >"$stamp"
}

main "$@"
