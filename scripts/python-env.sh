#!/usr/bin/env bash
# Makes the Python environment of the demo, the bench and the end-to-end tests, with the AWS CLI and boto3 in
# fixed versions, in the cache folder. Prints its path.
#
# usage: python-env.sh
set -euo pipefail

cd "$(dirname "$0")/.."
venv=$(realpath -m "${DORMOUSE_CACHE:-.cache}")/venv
# Debian's own: `make test-kvm` runs the same packages in a Debian of this release.
python=/usr/bin/python3

wanted=$("$python" --version; sha256sum <scripts/requirements.txt; echo "$venv")
if [ "$(cat "$venv/stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "setup: installing the AWS CLI and boto3 into $venv" >&2
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps -r scripts/requirements.txt >&2 </dev/null
    echo "$wanted" >"$venv/stamp"
fi
echo "$venv"
