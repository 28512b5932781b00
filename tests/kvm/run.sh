#!/usr/bin/env bash
# Boots the KVM test host, an emulated AMD machine with SVM and so with a true /dev/kvm, and runs a payload.
#
# usage: run.sh FOLDER PAYLOAD     FOLDER as made by host.sh; PAYLOAD a folder with an executable `run`
# The payload's output comes out here, and its exit status is this script's.
set -euo pipefail

folder=$1 payload=$2
timeout_s=${DORMOUSE_KVM_TIMEOUT:-2400}
work=$(mktemp -d -p "$folder")
trap 'rm -rf "$work"' EXIT

truncate -s 16G "$work/payload.ext4"
mke2fs -q -t ext4 -d "$payload" -E lazy_itable_init=1 "$work/payload.ext4"
# The tests write to a layer of their own: the next run finds the host as it was made.
qemu-img create -q -f qcow2 -F raw -b "$(realpath "$folder/host.ext4")" "$work/host.qcow2"

emulator=$folder/emulator
system=$emulator/usr/lib/x86_64-linux-gnu
# SVM is emulated in software, so this needs no KVM of its own and tells the truth about KVM's behaviour, not
# about its speed. Page tables of four levels instead of five: they are walked twice over for a guest of a guest.
# Errors of the host's kernel are shown: they tell a host that fails from a test that does.
timeout --foreground "$timeout_s" "$system/ld-linux-x86-64.so.2" --library-path "$system" "$emulator/usr/bin/qemu-system-x86_64" \
    -L "$emulator/usr/share/qemu" -L "$emulator/usr/share/seabios" \
    -M q35 -accel tcg,thread=multi -cpu max,+svm,la57=off -m "${DORMOUSE_KVM_MEMORY_MIB:-6144}" -smp 2 \
    -nodefaults -no-user-config -display none -no-reboot \
    -kernel "$folder/vmlinuz" -initrd "$folder/initrd" \
    -append 'console=ttyS0 root=/dev/vda rw init=/sbin/test-host quiet loglevel=4 panic=-1 mitigations=off' \
    -drive "file=$work/host.qcow2,format=qcow2,if=virtio,cache=unsafe,discard=unmap" \
    -drive "file=$work/payload.ext4,format=raw,if=virtio,cache=unsafe,discard=unmap" \
    -nic user,model=virtio-net-pci \
    -device virtio-rng-pci \
    -serial stdio -serial "file:$work/status" </dev/null || true

status=$(tr -dc 0-9 <"$work/status" 2>/dev/null || true)
if [ -z "$status" ]; then
    echo "kvm: the test host ended without a result" >&2
    exit 1
fi
exit "$status"
