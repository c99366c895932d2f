#!/usr/bin/env bash
# cargo for wasm32-unknown-unknown.
#   usage: toolchain.sh build --release …     toolchain.sh rustc     (prints the compiler's version)
#          toolchain.sh flags                 (flags for guests that need all of the standard library)
# GUEST_STD names the crates of the standard library that are built with the guest (default: core,alloc).
# On Debian (amd64) it uses the compiler that the committed guests were built with, Debian's `rustc-web`,
# laid into a private folder; nothing is installed system-wide but the libraries it is linked to. Elsewhere,
# or with EDGENT_WASM_TOOLCHAIN=rustup, it uses rustup's: the guests are as good, their bytes are others.
set -euo pipefail
prefix=${EDGENT_WASM_TOOLCHAIN:-$HOME/.cache/edgent-wasm-toolchain}
if [ ! -e "$prefix/ready" ] && ! { command -v apt-get && [ "$(dpkg --print-architecture)" = amd64 ]; } >/dev/null; then
  prefix=rustup
fi

bootstrap() {
  local sudo='' debs dynamic tool
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
  for tool in rustc wasm-ld-22; do
    printf '#!/bin/sh\nLD_LIBRARY_PATH="%s${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" exec "%s" "$@"\n' \
      "$prefix/usr/lib/x86_64-linux-gnu" "$prefix/usr/bin/$tool" > "$prefix/$tool"
    chmod +x "$prefix/$tool"
  done
  touch "$prefix/ready"
}

verb=$1; shift
std=()
if [ "$prefix" = rustup ]; then
  rustup target add wasm32-unknown-unknown >&2
else
  [ -e "$prefix/ready" ] || bootstrap >&2
  export RUSTC="$prefix/rustc" RUSTC_BOOTSTRAP=1 CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER="$prefix/wasm-ld-22"
  std=("-Zbuild-std=${GUEST_STD:-core,alloc}")
fi
if [ "$verb" = flags ]; then
  # Nobody reads what a guest prints, nor its panics' words: they are left out, where the compiler can.
  [ "$prefix" = rustup ] || printf '%s\n' -Zunstable-options -Cpanic=immediate-abort -Zlocation-detail=none -Zfmt-debug=none
  exit
fi
[ "$verb" != rustc ] || exec "${RUSTC:-rustc}" --version
exec cargo "$verb" --target wasm32-unknown-unknown "${std[@]}" "$@"
