#!/usr/bin/env bash
# Builds the guest in C: build.sh MODULE.wasm, with clang, wasm-ld and wasi-libc (Debian: clang lld wasi-libc).
# `build.sh compiler` prints the compiler's version. wasi-libc is for malloc, memcpy and expf, which ask nothing of a
# host; componentize says so if anything else came along.
set -euo pipefail
cd "$(dirname "$0")"
if [ "$1" = compiler ]; then
  clang --version | head -n 1
  exit
fi
scratch=$(mktemp -d); trap 'rm -rf "$scratch"' EXIT
env -u RUSTC cargo run --quiet --locked --release --manifest-path ../componentize/Cargo.toml -- --c-bindings ../../wit "$scratch"
# No path of this machine in it.
objects=()
for source in arg_max.c "$scratch/segment.c"; do
  objects+=("$scratch/$(basename "$source" .c).o")
  clang --target=wasm32-wasi -Oz -Wall -Wextra -Werror -Wno-unused-parameter "-ffile-prefix-map=$scratch=." -I "$scratch" \
    -c "$source" -o "${objects[-1]}"
done
# No entry point. By itself, and without -O: else clang would have wasm-opt change the result where there is one.
clang --target=wasm32-wasi -nostartfiles -nodefaultlibs -Wl,--no-entry -Wl,--strip-all -Wl,--gc-sections -Wl,-z,stack-size=65536 \
  "${objects[@]}" "$scratch/segment_component_type.o" -lc -o "$1"
