#!/usr/bin/env bash
# Runs each fuzzer under fuzz/ for a while, and keeps what it learned in fuzz/corpus.
#
# usage: fuzz.sh [TARGET ...]     all of them without an argument
#
# DORMOUSE_FUZZ_SECONDS (default 60) is the time of each. An input that breaks a rule stays in fuzz/artifacts.
set -euo pipefail

cd "$(dirname "$0")/.."
seconds=${DORMOUSE_FUZZ_SECONDS:-60}
triple=x86_64-unknown-linux-gnu
target_dir=$(realpath -m "${CARGO_TARGET_DIR:-target}")/fuzz
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(basename -s .rs fuzz/fuzz_targets/*.rs)

# What `cargo fuzz` would pass, less what needs a nightly compiler. --target keeps it away from build scripts.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares"
cargo build --quiet --locked --release --manifest-path fuzz/Cargo.toml --target $triple --target-dir "$target_dir"

for target in "${targets[@]}"; do
    printf 'fuzz: %s for %s seconds\n' "$target" "$seconds"
    corpus=fuzz/corpus/$target found=$target_dir/corpus/$target
    mkdir -p "$found" "fuzz/artifacts/$target"
    binary=$target_dir/$triple/release/$target
    "$binary" -max_total_time="$seconds" -timeout=5 -rss_limit_mb=1024 -max_len=4096 -verbosity=0 \
        -print_final_stats=1 -artifact_prefix="fuzz/artifacts/$target/" "$found" "$corpus"
    # Only what reaches code that nothing else reaches.
    "$binary" -merge=1 -verbosity=0 "$corpus" "$found"
done
