#!/usr/bin/env bash
# Runs the VMM contract suite and the end-to-end flow with `--accel kvm` on a true /dev/kvm, whatever this machine
# has: inside a test host that is an emulated AMD machine (`make test-kvm`).
#
# DORMOUSE_KVM_TESTS (arguments of pytest, such as test_clones.py) runs those end-to-end tests alone.
set -euo pipefail

cd "$(dirname "$0")/../.."
cache=$(realpath -m "${DORMOUSE_CACHE:-.cache}")
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
kvm=$cache/kvm
payload=$kvm/payload

tests/kvm/host.sh "$kvm"
scripts/test-disk.sh "$cache/assets"
venv=$(scripts/python-env.sh)

echo "kvm: building the tests" >&2
# With the packages that `make test` builds together.
contract=$(scripts/test-executable.sh vmm_contract --workspace --exclude dormouse-e2e)
sdk=$(scripts/test-executable.sh sdk -p dormouse-e2e -p dormouse)

rm -rf "$payload"
mkdir -p "$payload"/{target/release,cache,tests,examples}
cp "$target/release/dormouse" "$payload/target/release/"
cp "$contract" "$payload/vmm-contract"
cp "$sdk" "$payload/sdk-test"
cp -r --sparse=always "$cache/assets" "$payload/cache/assets"
# With their times, or Python would compile them all again, at a tenth of its speed.
cp -a "$venv/lib/"python3*/site-packages "$payload/site-packages"
cp -r scripts "$payload/scripts"
cp -r tests/e2e "$payload/tests/e2e"
cp -r examples/hello "$payload/examples/hello"
cp tests/kvm/report_at_once.py "$payload/"
cp tests/kvm/inside.sh "$payload/run"
printf '%s\n' "${DORMOUSE_KVM_TESTS:-}" >"$payload/tests-wanted"

tests/kvm/run.sh "$kvm" "$payload"
echo "kvm: all passed"
