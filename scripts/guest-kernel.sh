#!/usr/bin/env bash
# Fetches Debian's cloud kernel for the guests and unpacks it. Nothing is installed on this machine, and its
# apt configuration is only read: the package lists are this script's own.
#
# usage: guest-kernel.sh ASSETS CODENAME
# makes: ASSETS/vmlinuz, ASSETS/kernel.version, ASSETS/modules/*.ko and ASSETS/modules/order
set -euo pipefail

assets=$1 codename=$2
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"

suite=$codename
[ "$codename" != bookworm ] || suite=bookworm-backports # its own kernel is too old

"$here/debian-sources.sh" "$codename" --backports |
    awk -v suite="$suite" '$3 == suite' >"$work/sources.list"

apt_get() {
    apt-get -qq -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" \
        -o APT::Sandbox::User=root "$@" </dev/null
}

# Downloads a package as PACKAGE.deb, in the version given or the newest.
download() {
    (cd "$work" && apt_get download "$1${2:+=$2}" && mv "$1"_*.deb "$1.deb")
}

echo "setup: fetching the guest kernel from $suite" >&2
apt_get update
download linux-image-cloud-amd64
# The package of this name is empty and names the one that holds the kernel of the day.
depends=$(dpkg-deb -f "$work/linux-image-cloud-amd64.deb" Depends)
[[ $depends =~ (linux-image-[^ ]+-cloud-amd64)\ \(=\ ([^\)]+)\) ]] ||
    { echo "setup: cannot tell the kernel from: $depends" >&2; exit 1; }
package=${BASH_REMATCH[1]} version=${BASH_REMATCH[2]}
download "$package" "$version"
dpkg-deb -x "$work/$package.deb" "$work/root"

rm -rf "$assets/modules"
mkdir -p "$assets/modules"
while read -r module; do
    file=$(find "$work/root" -name "$module.ko*" -print -quit)
    [ -n "$file" ] || { echo "setup: $package has no module $module" >&2; exit 1; }
    case $file in
        *.xz) xz -dc "$file" ;;
        *.zst) zstd -dc "$file" ;;
        *) cat "$file" ;;
    esac >"$assets/modules/$module.ko"
done <"$here/guest-modules"
# The agent loads files, in this order.
sed "s/\$/.ko/" "$here/guest-modules" > "$assets/modules/order"
cp "$work"/root/boot/config-* "$assets/kernel.config"
echo "${package#linux-image-} $version" >"$assets/kernel.version"
# Last, so that a kernel which is there is whole.
cp "$work"/root/boot/vmlinuz-* "$assets/vmlinuz.new"
mv "$assets/vmlinuz.new" "$assets/vmlinuz"
