#!/usr/bin/env bash
# Makes the Debian package for arm64 (a Raspberry Pi with a 64-bit system) on another Debian machine. That takes, once,
#   rustup target add aarch64-unknown-linux-gnu
#   dpkg --add-architecture arm64 && apt update
#   apt install gcc-aarch64-linux-gnu g++-aarch64-linux-gnu libc6:arm64 libgcc-s1:arm64
# Without rustup: RUSTC=FILE, a compiler in whose sysroot the standard library for aarch64 lies, as Debian's with
# libstd-rust-dev:arm64 of the same version. A folder of its own, so that a build for this machine stays as it is.
#   usage: packaging/arm64.sh [OPTION of cargo build]...   e.g. -j1
set -euo pipefail
cd "$(dirname "$0")/.."

triple=aarch64-unknown-linux-gnu
sysroot=$("${RUSTC:-rustc}" --print sysroot)
[ -d "$sysroot/lib/rustlib/$triple" ] || { echo "$sysroot has no standard library for $triple; see $0" >&2; exit 1; }
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc CXX_aarch64_unknown_linux_gnu=aarch64-linux-gnu-g++ \
    AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc

cargo build --release --workspace --bins --target "$triple" --target-dir target/arm64 "$@"
[ -x target/release/edgent ] || { echo "completions and manuals are this machine's tool's: cargo build --release --workspace" >&2; exit 1; }
CARGO_TARGET_DIR=target/arm64 packaging/build.sh --target "$triple"
