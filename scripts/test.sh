#!/usr/bin/env bash
# Every check and test: lints, unit and contract tests, real virtual machines, end to end with AWS's own clients.
#
# usage: test.sh [beside]     beside: only what it runs beside the end-to-end suite, which is built by then
#
# DORMOUSE_TEST_ACCEL (default tcg) says how the guests are executed.
set -euo pipefail

cd "$(dirname "$0")/.."
export DORMOUSE_CACHE
DORMOUSE_CACHE=$(realpath -m "${DORMOUSE_CACHE:-.cache}")
export DORMOUSE_TEST_ASSETS=$DORMOUSE_CACHE/assets
export DORMOUSE_TEST_ACCEL=${DORMOUSE_TEST_ACCEL:-tcg}
# Built beside the end-to-end suite, which runs it: cargo's lock is taken by whatever is built after it.
export DORMOUSE_E2E_SDK_TEST=$DORMOUSE_CACHE/sdk-test

# The SDK test wants a daemon: the end-to-end suite runs it.
unit_tests=(cargo test --locked --release --workspace --exclude dormouse-e2e)
if cargo nextest --version >/dev/null 2>&1; then
    unit_tests=(cargo nextest run --locked --release --workspace --exclude dormouse-e2e)
fi

passed=()
current=setup

end() {
    if [ "$1" != 0 ]; then
        printf '\ntest: FAILED in: %s (passed: %s)\n' "$current" "${passed[*]:-none}"
        [ -z "$beside" ] || kill -- "-$beside" 2>/dev/null || true
    fi
    rm -f "$beside_log"
}

step() {
    local began=$SECONDS
    current=$1
    shift
    printf '\n=== %s\n' "$current"
    "$@"
    passed+=("$current $((SECONDS - began))s")
}

# What the tests that wait leave of the processors goes to all that asks for no promptness.
begin_beside() {
    # A session of its own is a scheduling group of its own, which has to be nice as a whole.
    # shellcheck disable=SC2016
    setsid nice -n 19 bash -c 'echo 19 2>/dev/null >/proc/self/autogroup; exec "$0" beside' \
        "$PWD/scripts/test.sh" >"$beside_log" 2>&1 </dev/null &
    beside=$!
}

run_beside() {
    local sdk_test
    # With the daemon's features most of its dependencies are there.
    sdk_test=$(scripts/test-executable.sh sdk -p dormouse-e2e -p dormouse)
    cp "$sdk_test" "$DORMOUSE_E2E_SDK_TEST.new"
    mv "$DORMOUSE_E2E_SDK_TEST.new" "$DORMOUSE_E2E_SDK_TEST"
    scripts/lint.sh
    "${unit_tests[@]}" --no-run
    DORMOUSE_TEST_PROFILE=release pytests tests/drift
    pytests tests/websocket
}

end_beside() {
    local status=0
    wait "$beside" || status=$?
    cat "$beside_log"
    return "$status"
}

pytests() {
    local venv
    venv=$(scripts/python-env.sh)
    "$venv/bin/python" -m pytest "$@"
}

if [ "${1:-}" = beside ]; then
    run_beside
    exit
fi

beside=
beside_log=$(mktemp)
trap 'end $?' EXIT

step setup scripts/setup.sh
step build make --no-print-directory build
step base-disk scripts/test-disk.sh "$DORMOUSE_TEST_ASSETS"
rm -f "$DORMOUSE_E2E_SDK_TEST"
begin_beside
step end-to-end pytests tests/e2e/py
step lint-drift-websockets end_beside
step unit-and-contract "${unit_tests[@]}"

printf '\ntest: all passed in %ss (%s)\n' "$SECONDS" "$(IFS=,; echo "${passed[*]}")"
