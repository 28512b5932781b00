#!/usr/bin/env bash
# Every check and test: lints, unit and contract tests, real virtual machines, end to end with AWS's own clients.
#
# DORMOUSE_TEST_ACCEL (default tcg) says how the guests are executed.
set -euo pipefail

cd "$(dirname "$0")/.."
export DORMOUSE_CACHE
DORMOUSE_CACHE=$(realpath -m "${DORMOUSE_CACHE:-.cache}")
export DORMOUSE_TEST_ASSETS=$DORMOUSE_CACHE/assets
export DORMOUSE_TEST_ACCEL=${DORMOUSE_TEST_ACCEL:-tcg}

passed=()
current=setup
trap '[ $? = 0 ] || printf "\ntest: FAILED in: %s (passed: %s)\n" "$current" "${passed[*]:-none}"' EXIT

step() {
    local began=$SECONDS
    current=$1
    shift
    printf '\n=== %s\n' "$current"
    "$@"
    passed+=("$current $((SECONDS - began))s")
}

unit_tests() {
    # The SDK test wants a daemon: the end-to-end suite runs it.
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --locked --release --workspace --exclude dormouse-e2e
    else
        cargo test --locked --release --workspace --exclude dormouse-e2e
    fi
}

drift() {
    local venv
    venv=$(scripts/python-env.sh)
    DORMOUSE_TEST_PROFILE=release "$venv/bin/python" -m pytest tests/drift
}

websockets() {
    local venv
    venv=$(scripts/python-env.sh)
    "$venv/bin/python" -m pytest tests/websocket
}

end_to_end() {
    local venv
    venv=$(scripts/python-env.sh)
    cargo test --locked --release -p dormouse-e2e --test sdk --no-run
    "$venv/bin/python" -m pytest tests/e2e/py
}

step setup scripts/setup.sh
step lint scripts/lint.sh
step build make --no-print-directory build
step base-disk scripts/test-disk.sh "$DORMOUSE_TEST_ASSETS"
step unit-and-contract unit_tests
step drift drift
step websockets websockets
step end-to-end end_to_end

printf '\ntest: all passed in %ss (%s)\n' "$SECONDS" "$(IFS=,; echo "${passed[*]}")"
