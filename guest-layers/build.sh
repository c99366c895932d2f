#!/usr/bin/env bash
# Builds the guests into prebuilt/. With --check: builds them elsewhere and compares bytes.
set -euo pipefail
cd "$(dirname "$0")"
guests=(segment hostile)
target=${CARGO_TARGET_DIR:-$PWD/target}
out=prebuilt
[ "${1:-}" = --check ] && out=$(mktemp -d)

prefix=${EDGENT_WASM_TOOLCHAIN:-$HOME/.cache/edgent-wasm-toolchain}
cargo_home=${CARGO_HOME:-$HOME/.cargo}
# No path of this machine may get into a guest: its bytes must not depend on where it was built.
export RUSTFLAGS="--remap-path-prefix=$(dirname "$PWD")=/edgent --remap-path-prefix=$cargo_home=/cargo --remap-path-prefix=$prefix=/toolchain"
for guest in "${guests[@]}"; do
  CARGO_TARGET_DIR=$target ./toolchain.sh build --locked --release -p "edgent-guest-$guest"
done
unset RUSTFLAGS
CARGO_TARGET_DIR=$target cargo build --locked --release -p componentize
for guest in "${guests[@]}"; do
  "$target/release/componentize" "$target/wasm32-unknown-unknown/release/edgent_guest_$guest.wasm" "$out/$guest.wasm"
done

if [ "$out" != prebuilt ]; then
  for guest in "${guests[@]}"; do
    cmp "$out/$guest.wasm" "prebuilt/$guest.wasm" || {
      echo "prebuilt/$guest.wasm is not what its source gives; run guest-layers/build.sh and commit" >&2
      exit 1
    }
  done
  rm -rf "$out"
  echo "prebuilt guests are fresh"
fi
