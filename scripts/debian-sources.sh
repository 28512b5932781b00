#!/bin/sh
# Prints apt source lines for a Debian release, with the mirrors that this machine already uses.
#
# usage: debian-sources.sh CODENAME [--backports]
set -eu

codename=${1:?usage: debian-sources.sh CODENAME [--backports]}

# The host may be on another release than the one asked for: only the mirror's address is taken from it.
mirror_of() {
    apt-get indextargets --format '$(ORIGIN)|$(SUITE)|$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk -F'|' -v security="$1" '
            $1 == "Debian" && ($2 ~ /-security$/) == (security == "security") { print $3; exit }'
}

archive=$(mirror_of archive)
security=$(mirror_of security)
archive=${archive:-http://deb.debian.org/debian}
security=${security:-http://deb.debian.org/debian-security}

echo "deb ${archive%/} $codename main"
echo "deb ${archive%/} $codename-updates main"
echo "deb ${security%/} $codename-security main"
if [ "${2:-}" = --backports ]; then
    echo "deb ${archive%/} $codename-backports main"
fi
