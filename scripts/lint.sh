#!/usr/bin/env bash
# Checks format, lints, and the dependencies' licences and sources; the scripts' and tests' Python, too.
set -euo pipefail

cd "$(dirname "$0")/.."
venv=$(scripts/python-env.sh)
"$venv/bin/ruff" check --quiet .
cargo fmt --all --check
# The release profile is the one that is tested, so its dependencies are built once for all.
cargo clippy --locked --release --workspace --all-targets -- -D warnings
# What only the fuzzers build, which are no part of the workspace.
cargo clippy --locked --release --workspace --lib --features dormouse-ingress/fuzzing,dormouse-node/fuzzing -- -D warnings
if cargo deny --version >/dev/null 2>&1; then
    cargo deny --locked check bans licenses sources
else
    echo "lint: cargo-deny is not installed (cargo install --locked cargo-deny): dependencies are not checked" >&2
fi
