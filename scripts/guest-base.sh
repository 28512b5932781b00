#!/usr/bin/env bash
# Makes the managed base image: a small Debian 12 root file system with Python, as one tar.
#
# usage: guest-base.sh ASSETS
# makes: ASSETS/base/debian-12.tar
set -euo pipefail

assets=$1
here=$(cd "$(dirname "$0")" && pwd)
tar=$assets/base/debian-12.tar
mkdir -p "$assets/base"
work=$(mktemp -d)
trap 'rm -rf "$work" "$tar.new"' EXIT

# What this machine needs to reach its mirror, the guests' apt needs while the image is made, not after.
apt-config dump --format '%F "%v";%n' |
    grep -E '^Acquire::(Check-Valid-Until|Check-Date|https?::(Proxy|CAInfo)) ' >"$work/apt.conf" || true
echo 'Acquire::Languages "none";' >>"$work/apt.conf"

echo "setup: making the base image debian:12" >&2
"$here/debian-sources.sh" bookworm >"$work/sources.list"
# One time stamp for all files: the same packages give the same tar.
SOURCE_DATE_EPOCH=1700000000 mmdebstrap --quiet --variant=minbase --format=tar \
    --include=python3,ca-certificates \
    --aptopt="$work/apt.conf" \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook='rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap" "$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap"' \
    --customize-hook='rm -f "$1/etc/hostname" "$1/etc/resolv.conf" "$1/etc/machine-id"' \
    bookworm "$tar.new" "$work/sources.list" </dev/null >&2
mv "$tar.new" "$tar"
