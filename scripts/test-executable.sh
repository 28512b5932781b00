#!/usr/bin/env bash
# Builds an integration test and prints the path of its executable.
#
# usage: test-executable.sh TEST PACKAGES...     PACKAGES as cargo's options: those that are built together elsewhere have
#                                                their dependencies there
set -euo pipefail

cd "$(dirname "$0")/.."
test=$1
shift
cargo test --locked --release "$@" --test "$test" --no-run --message-format json-render-diagnostics |
    python3 -c 'import json, sys
found = [m["executable"] for m in map(json.loads, sys.stdin)
         if m.get("executable") and m["target"]["name"] == sys.argv[1]]
print(found[0])' "$test"
