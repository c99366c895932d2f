#!/usr/bin/env bash
# Makes the Debian package of what `cargo build --release --workspace` built.
#   usage: packaging/build.sh [OPTION of cargo deb]...   e.g. --deb-revision 2
# For another processor, build there what `--target` names; completions and manuals are this machine's tool's.
set -euo pipefail
cd "$(dirname "$0")/.."

tool=target/release/edgent out=target/package
rm -rf "$out"
mkdir -p "$out"/{bash,zsh,fish}
"$tool" man "$out/man" >/dev/null
for program in edgent edgent-host; do
    "$tool" completions bash --program "$program" > "$out/bash/$program"
    "$tool" completions zsh --program "$program" > "$out/zsh/_$program"
    "$tool" completions fish --program "$program" > "$out/fish/$program.fish"
done
# It warns of what is not built by cargo; nothing of that is.
cargo deb --no-build --quiet --package edgent --output target/debian/ "$@"
