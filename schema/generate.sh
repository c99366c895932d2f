#!/usr/bin/env bash
# Turns edgent.capnp into host/link/src/edgent_capnp.rs, which is committed: building Edgent needs no
# Cap'n Proto compiler. With --check, compares instead, and fails if the committed file is stale.
# Needs `capnp` (Debian: capnproto, 0.9.2 or later); builds the Rust back end itself, once.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly capnpc_version=0.27.0
readonly committed=host/link/src/edgent_capnp.rs
readonly tools="${CARGO_TARGET_DIR:-target}/tools"
readonly plugin="$tools/bin/capnpc-rust"

command -v capnp >/dev/null || { echo "generate.sh: no \`capnp\` here; on Debian: apt install capnproto" >&2; exit 1; }
# Cargo does nothing when this very version is there already.
cargo install --quiet --locked capnpc --version "$capnpc_version" --root "$tools"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The back end names its file after the schema, and refers to its own module by that name: `edgent_capnp`.
capnp compile --src-prefix=schema -o"$(realpath "$plugin"):$work" schema/edgent.capnp
# The line that names the compiler's version would make the check depend on it.
sed -i '/^\/\/ capnp binary version/d' "$work/edgent_capnp.rs"

if [ "${1-}" = --check ]; then
  diff -u "$committed" "$work/edgent_capnp.rs" >&2 || {
    echo "generate.sh: $committed is not what schema/edgent.capnp says; run schema/generate.sh" >&2
    exit 1
  }
else
  cp "$work/edgent_capnp.rs" "$committed"
fi
