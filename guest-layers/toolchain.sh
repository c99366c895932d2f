#!/usr/bin/env bash
# cargo for wasm32-unknown-unknown with the one compiler that the committed guests were built with:
# Debian's `rustc-web`, laid into a private folder, nothing installed system-wide but its libraries.
#   usage: toolchain.sh build --release …
# People with rustup can build guests with `rustup target add wasm32-unknown-unknown` and plain cargo;
# the bytes are then good, but not the same as the committed ones.
set -euo pipefail
prefix=${EDGENT_WASM_TOOLCHAIN:-$HOME/.cache/edgent-wasm-toolchain}

bootstrap() {
  local sudo='' debs dynamic lib tool
  [ "$(id -u)" = 0 ] || sudo=sudo
  $sudo apt-get update -qq
  $sudo apt-get install -y -qq --no-install-recommends libxml2 libz3-4 libedit2 libzstd1 gcc binutils >/dev/null
  debs=$(mktemp -d)
  dynamic=$(apt-cache depends libstd-rust-web-dev | awk '/Depends: libstd-rust-web-/{print $2; exit}')
  (cd "$debs" && apt-get download -qq rustc-web libstd-rust-web-dev rust-web-src libllvm22 lld-22 "$dynamic")
  rm -rf "$prefix"; mkdir -p "$prefix"
  for deb in "$debs"/*.deb; do dpkg -x "$deb" "$prefix"; done
  rm -rf "$debs"
  # Where rustc looks for the standard library's source.
  mkdir -p "$prefix/usr/lib/rustlib/src"
  ln -sfn "$(echo "$prefix"/usr/src/rustc-*)" "$prefix/usr/lib/rustlib/src/rust"
  lib=$prefix/usr/lib/x86_64-linux-gnu
  for tool in rustc wasm-ld-22; do
    printf '#!/bin/sh\nLD_LIBRARY_PATH="%s${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" exec "%s" "$@"\n' \
      "$lib" "$prefix/usr/bin/$tool" > "$prefix/$tool"
    chmod +x "$prefix/$tool"
  done
  touch "$prefix/ready"
}

[ -e "$prefix/ready" ] || bootstrap >&2
export RUSTC="$prefix/rustc" RUSTC_BOOTSTRAP=1 CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER="$prefix/wasm-ld-22"
verb=$1; shift
exec cargo "$verb" --target wasm32-unknown-unknown -Zbuild-std=core,alloc "$@"
