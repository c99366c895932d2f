#!/usr/bin/env bash
# Builds the guests into prebuilt/. With --check: builds them from nothing in a temporary folder and compares
# bytes with the committed ones, which only the compiler that made those can do.
set -euo pipefail
cd "$(dirname "$0")"
guests=(segment hostile template normalise portable)
scratch=$(mktemp -d); trap 'rm -rf "$scratch"' EXIT
compilers=("$(./toolchain.sh rustc)" "$(arg-max/build.sh compiler)")
for compiler in "${compilers[@]}"; do
  echo "guests' compiler: $compiler" >&2
  if [ "${1:-}" = --check ] && ! grep -qF "$compiler" prebuilt/README.md; then
    echo "the committed guests were built with another compiler (prebuilt/README.md): cannot compare bytes" >&2
    exit 2
  fi
done

# No path of this machine may get into a guest: its bytes must not depend on where it was built.
prefix=${EDGENT_WASM_TOOLCHAIN:-$HOME/.cache/edgent-wasm-toolchain}
flags=("--remap-path-prefix=$(dirname "$PWD")=/edgent" "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
  "--remap-path-prefix=$prefix=/toolchain" "--remap-path-prefix=$scratch=/target")
for guest in "${guests[@]}"; do
  std=core,alloc more=() target=$scratch/guests size=s
  if [ "$guest" = portable ]; then
    # tract, for processors' vectors; and no source of randomness, which no guest has.
    mapfile -t more < <(./toolchain.sh flags)
    more+=(-Ctarget-feature=+simd128,+relaxed-simd --cfg 'getrandom_backend="unsupported"')
    # All but what computes (Cargo.toml) is made as small as can be: a fifth less than by "s".
    std=std,panic_abort target=$scratch/portable size=z
  fi
  all=("${flags[@]}" "${more[@]}")
  CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f'; echo "${all[*]}") \
    CARGO_PROFILE_RELEASE_OPT_LEVEL=$size GUEST_STD=$std CARGO_TARGET_DIR=$target ./toolchain.sh build --locked --release -p "edgent-guest-$guest"
  ln -sf "$target/wasm32-unknown-unknown/release/edgent_guest_$guest.wasm" "$scratch/$guest.wasm"
done
env -u RUSTC CARGO_TARGET_DIR="$PWD/target" cargo build --locked --release -p componentize
CARGO_TARGET_DIR="$PWD/target" arg-max/build.sh "$scratch/arg-max.wasm"
guests+=(arg-max)
mkdir "$scratch/prebuilt"
for guest in "${guests[@]}"; do
  target/release/componentize "$scratch/$guest.wasm" "$scratch/prebuilt/$guest.wasm"
done

cat > "$scratch/prebuilt/README.md" <<END
# Guests, built

Written by \`guest-layers/build.sh\` from the sources beside this folder; committed so that the host builds
without a WebAssembly compiler. \`build.sh --check\` builds them again and compares bytes. The same bytes come
out on any machine and in any folder, but only with these compilers (Debian's \`rustc-web\`, and \`clang\` for arg-max):

$(printf '    %s\n' "${compilers[@]}")

$(cd "$scratch/prebuilt" && sha256sum -- *.wasm | sed 's/^/    /')
END

if [ "${1:-}" = --check ]; then
  diff -r prebuilt "$scratch/prebuilt" >&2 || {
    echo "prebuilt/ is not what its source gives; run guest-layers/build.sh and commit" >&2
    exit 1
  }
  echo "prebuilt guests are fresh"
else
  mkdir -p prebuilt && cp "$scratch/prebuilt/"* prebuilt/
fi
