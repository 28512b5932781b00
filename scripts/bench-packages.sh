#!/usr/bin/env bash
# Installs what `make bench` measures the endpoint's proxy against and with, where it is missing.
set -euo pipefail

packages=(nginx haproxy wrk nghttp2-client curl openssl)

say() { printf 'bench: %s\n' "$*" >&2; }
installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" </dev/null >&2; }

missing=()
for package in "${packages[@]}"; do
    installed "$package" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
[ "$(id -u)" = 0 ] || {
    say "packages are missing (${missing[*]}): run this once as root, as in: sudo scripts/bench-packages.sh"
    exit 1
}

# Debian starts a service when it installs one, on port 80 for all to see. The bench starts its own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
say "installing ${missing[*]}"
apt_get update
apt_get install --yes --no-install-recommends "${missing[@]}"
