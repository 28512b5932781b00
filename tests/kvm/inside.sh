#!/bin/bash
# What the KVM test host runs: see test.sh.
set -euo pipefail

cd "$(dirname "$0")"
payload=$PWD
export DORMOUSE_CACHE=$payload/cache DORMOUSE_BINARY=$payload/target/release/dormouse
export DORMOUSE_TEST_ASSETS=$DORMOUSE_CACHE/assets DORMOUSE_TEST_ACCEL=kvm
export DORMOUSE_E2E_SDK_TEST=$payload/sdk-test
export PYTHONPATH=$payload/site-packages PYTHONDONTWRITEBYTECODE=1
ln -sfn "$DORMOUSE_TEST_ASSETS" target/release/dormouse-assets

# The same AWS CLI as outside, at the place where the tests look for it.
mkdir -p cache/venv/bin
printf '%s\n' '#!/bin/sh' 'exec python3 -m awscli "$@"' >cache/venv/bin/aws
chmod +x cache/venv/bin/aws

say() { echo "[$(cut -d' ' -f1 /proc/uptime) s] $*"; }

say "test host: $(uname -r), $(qemu-system-x86_64 --version | head -1)"
[ -c /dev/kvm ] || { say "there is no /dev/kvm"; exit 1; }
"$DORMOUSE_BINARY" doctor --data-dir /var/tmp/doctor || say "doctor has remarks"

say "VMM contract suite on KVM"
./vmm-contract --test-threads 1

say "end-to-end flow on KVM"
python3 -m pytest tests/e2e/py -k "test_flow or test_clones or test_next_daemon" \
    --deselect tests/e2e/py/test_clones.py::test_twenty_at_once_each_with_its_own_state
say "passed"
