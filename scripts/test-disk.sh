#!/usr/bin/env bash
# Makes the disk from which the VMM's contract suite boots: the base image's files as ext4.
#
# usage: test-disk.sh ASSETS
# makes: ASSETS/base/debian-12.ext4, when it is missing or older than ASSETS/base/debian-12.tar
set -euo pipefail

base=$1/base
[ "$base/debian-12.tar" -nt "$base/debian-12.ext4" ] || exit 0
work=$(mktemp -d -p "$base")
trap 'rm -rf "$work"' EXIT
mkdir "$work/root"
tar -C "$work/root" -xpf "$base/debian-12.tar"
truncate -s 2G "$work/disk"
mke2fs -q -t ext4 -d "$work/root" "$work/disk"
mv "$work/disk" "$base/debian-12.ext4"
