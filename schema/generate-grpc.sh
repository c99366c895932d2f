#!/usr/bin/env bash
# Turns inference.proto into host/runtime/src/http/inference.rs, which is committed: building Edgent needs neither `protoc` nor
# the generator. With --check, compares instead, and fails if the committed file is stale. Builds the generator itself, once.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly committed=host/runtime/src/http/inference.rs

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo run --quiet --release --locked --manifest-path schema/inference/Cargo.toml \
  --target-dir "${CARGO_TARGET_DIR:-target}/tools/grpc" -- schema/inference.proto "$work"

if [ "${1-}" = --check ]; then
  diff -u "$committed" "$work/inference.rs" >&2 || {
    echo "generate-grpc.sh: $committed is not what schema/inference.proto says; run schema/generate-grpc.sh" >&2
    exit 1
  }
else
  cp "$work/inference.rs" "$committed"
fi
