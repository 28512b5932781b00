#!/bin/bash
# What the KVM test host runs: see test.sh.
set -euo pipefail

cd "$(dirname "$0")"
payload=$PWD
export DORMOUSE_CACHE=$payload/cache DORMOUSE_BINARY=$payload/target/release/dormouse
export DORMOUSE_TEST_ASSETS=$DORMOUSE_CACHE/assets
export DORMOUSE_E2E_SDK_TEST=$payload/sdk-test
export PYTHONPATH=$payload/site-packages:$payload PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
ln -sfn "$DORMOUSE_TEST_ASSETS" target/release/dormouse-assets

# The same AWS CLI as outside, at the place where the tests look for it.
mkdir -p cache/venv/bin
printf '%s\n' '#!/bin/sh' 'exec python3 -m awscli "$@"' >cache/venv/bin/aws
chmod +x cache/venv/bin/aws

say() { echo "[$(cut -d' ' -f1 /proc/uptime) s] $*"; }

die() {
    say "$*"
    exit 1
}

say "test host: $(uname -r), $(qemu-system-x86_64 --version | head -1)"
[ -c /dev/kvm ] || die "there is no /dev/kvm"
"$DORMOUSE_BINARY" doctor --data-dir /var/tmp/doctor | tee doctor.txt || die "doctor found a failure"
grep -q 'a probe guest booted on KVM' doctor.txt || die "doctor does not see that KVM works"

read -ra wanted <tests-wanted
if [ "${#wanted[@]}" = 0 ]; then
    say "VMM contract suite, on KVM"
    DORMOUSE_TEST_ACCEL=kvm ./vmm-contract --test-threads 1 --nocapture

    # The main flow by each client, what a clone must not share, clocks, the walls around a MicroVM, what a hundred sleeps
    # leave as it was, and adoption: all of the suite would take hours on two emulated processors.
    wanted=(
        test_flow.py
        test_clones.py::test_random_numbers_differ
        test_clones.py::test_app_runs_nothing_between_restore_and_thaw
        test_clones.py::test_all_clocks_go_on_in_a_sleep
        test_clones.py::test_a_timer_that_was_due_in_the_sleep_fires_at_once
        test_isolation.py
        --deselect test_isolation.py::test_the_internet_answers_by_name
        --deselect test_isolation.py::test_a_build_updates_its_package_lists
        test_ledger.py::test_memory_and_disk_are_the_same_after_a_hundred_cycles
        test_restart.py::test_next_daemon_adopts_what_runs
    )
fi

# `auto` has to choose KVM by itself. The pipe keeps pytest from drawing on a console.
say "end-to-end tests, on what --accel auto chooses"
export DORMOUSE_TEST_ACCEL=auto
cd tests/e2e/py
python3 -m pytest -v -p report_at_once "${wanted[@]}" | cat || failed=true
cd "$payload"
if [ -n "${failed:-}" ]; then
    grep -E '"no (way to|answer from) the app"' cache/e2e.log | tail -20 || true
    # What ended by itself, and what was said last but for calls and changes of state, which are most of it.
    grep '"state":"TERMINATING"' cache/e2e.log | grep -vF '"reason":"Success."' | tail -20 || true
    grep -vE '"state":|"control call"' cache/e2e.log | tail -60
    die "the end-to-end tests failed"
fi
grep -q '"vmm":"qemu-kvm"' cache/e2e.log || die "--accel auto did not choose KVM"
say "passed"
