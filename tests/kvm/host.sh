#!/usr/bin/env bash
# Makes the KVM test host: its disk, a Debian of this machine's release with QEMU, a kernel and Python, and the QEMU that
# emulates it.
#
# usage: host.sh FOLDER
# makes: FOLDER/{host.ext4,vmlinuz,initrd,emulator}; does nothing when this recipe made them before
set -euo pipefail

folder=$1
here=$(cd "$(dirname "$0")" && pwd)
sources=$here/../../scripts/debian-sources.sh
# shellcheck source=/dev/null
. /etc/os-release
codename=$VERSION_CODENAME

recipe=$(cat "$0" "$here/init" "$sources" - <<<"$codename" | sha256sum)
[ "$(cat "$folder/stamp" 2>/dev/null)" != "$recipe" ] || exit 0
[ "$(id -u)" = 0 ] || { echo "kvm: the test host's disk is made as root" >&2; exit 1; }

mkdir -p "$folder"
rm -f "$folder/stamp"
work=$(mktemp -d -p "$folder")
trap 'rm -rf "$work"' EXIT

echo "kvm: making the test host (once)" >&2
release=$codename
if [ "$codename" = bookworm ]; then
    release+=' --backports'
fi
apt-config dump --format '%F "%v";%n' |
    grep -E '^Acquire::(Check-Valid-Until|Check-Date|https?::(Proxy|CAInfo)) ' >"$work/apt.conf" || true
echo 'APT::Install-Recommends "false";' >>"$work/apt.conf"

# Makes a Debian in $work/NAME: `debian NAME "RELEASE [--backports]" OPTIONS...`, the options being mmdebstrap's.
debian() {
    local name=$1 release
    read -ra release <<<"$2"
    shift 2
    "$sources" "${release[@]}" >"$work/sources.list"
    # Nothing comes from backports by itself; where there are none, the pin has no effect.
    printf '%s\n' 'Package: src:qemu src:seabios src:linux*' "Pin: release n=${release[0]}-backports" 'Pin-Priority: 600' \
        >"$work/preferences"
    mmdebstrap --quiet --variant=minbase --format=directory "$@" \
        --aptopt="$work/apt.conf" \
        --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --setup-hook='install -D -m 644 "'"$work"'/preferences" "$1/etc/apt/preferences.d/test-host"' \
        "${release[0]}" "$work/$name" "$work/sources.list" </dev/null >&2
}

# Only what the host itself needs to find its disk goes into its initrd: emulated, each megabyte counts.
debian root "$release" \
    --include=qemu-system-x86,qemu-utils,linux-image-cloud-amd64,initramfs-tools,kmod \
    --include=python3,e2fsprogs,iproute2,nftables,procps,curl,zip,ca-certificates \
    --customize-hook='printf "MODULES=list\nCOMPRESS=gzip\n" >"$1/etc/initramfs-tools/conf.d/test-host"' \
    --customize-hook='echo virtio_blk >"$1/etc/initramfs-tools/modules"' \
    --customize-hook='chroot "$1" update-initramfs -u -k all' \
    --customize-hook='install -m 755 "'"$here"'/init" "$1/sbin/test-host"' \
    --customize-hook='echo test-host >"$1/etc/hostname"; echo "nameserver 10.0.2.3" >"$1/etc/resolv.conf"'

cp "$work"/root/boot/vmlinuz-* "$folder/vmlinuz"
cp "$work"/root/boot/initrd.img-* "$folder/initrd"
rm -f "$folder/host.ext4"
truncate -s 12G "$folder/host.ext4"
mke2fs -q -t ext4 -d "$work/root" -E lazy_itable_init=1 "$folder/host.ext4"

# Older QEMUs change the word of a processor's pending interrupts without a lock where they enter and leave a guest, newer
# ones in one step. On 10.0 guests now and then wait for minutes, as if one were lost; on 11.1 none was seen to. Only the
# emulator is of a newer release; what is tested is the host's own.
debian emulator 'trixie --backports' --include=qemu-system-x86
rm -rf "$folder/emulator"
mv "$work/emulator" "$folder/emulator"
echo "$recipe" >"$folder/stamp"
