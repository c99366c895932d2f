#!/usr/bin/env bash
# Bundles go to Debian's docker-registry and come back the same, signed and not; what is not there, or is not what it
# was named by, is said. Usage: tests/registry.sh EDGENT, a program built with the feature `registry`.
set -euo pipefail
edgent=$1
dir=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$dir"' EXIT

cat > "$dir/config.yml" <<CONFIG
version: 0.1
log: { level: info }
storage: { filesystem: { rootdirectory: $dir/registry } }
http: { addr: "127.0.0.1:0" }
CONFIG
docker-registry serve "$dir/config.yml" > "$dir/registry.log" 2>&1 &
server=$!
listening() { grep --only-matching --extended-regexp 'listening on 127.0.0.1:[0-9]+' "$dir/registry.log"; }
until listening > /dev/null; do kill -0 "$server"; done

repository=$(listening | sed 's/listening on //')/models/alex
refused() { # WORDS COMMAND…: fails, and says so
    local words=$1; shift
    if "$@" > "$dir/out" 2>&1; then echo "not refused: $*"; exit 1; fi
    grep --quiet -- "$words" "$dir/out" || { echo "said otherwise: $*"; cat "$dir/out"; exit 1; }
}

"$edgent" build models/branchy-alexnet/branchy-alexnet.onnx --out "$dir/built" --samples 20
"$edgent" keygen --out "$dir/key" --no-password
"$edgent" sign "$dir/built" --secret-key "$dir/key.key" --version 2
"$edgent" registry push "$dir/built" "$repository:2"
"$edgent" registry push "$dir/built" "$repository:2" # is there already

echo "what comes back is the same, to the byte, and does what the network does"
"$edgent" registry pull "$repository:2" --out "$dir/pulled"
diff -r "$dir/built/blobs" "$dir/pulled/blobs"
"$edgent" verify "$dir/pulled" --key "$dir/key.pub"

echo "other tools see what they know of it, and copy it"
skopeo inspect --raw --tls-verify=false "docker://$repository:2" | grep --quiet application/vnd.edgent.bundle.v1+json
skopeo copy --quiet --all --preserve-digests --src-tls-verify=false "docker://$repository:2" "oci:$dir/copy:alex"
"$edgent" verify "$dir/copy" --key "$dir/key.pub"
skopeo copy --quiet --all --preserve-digests --dest-tls-verify=false "oci:$dir/copy:alex" "docker://$repository:theirs"
"$edgent" registry pull "$repository:theirs" --out "$dir/theirs"
diff -r "$dir/built/blobs" "$dir/theirs/blobs"

echo "what is wrong is said"
refused 'manifest unknown' "$edgent" registry pull "$repository:3" --out "$dir/none"
refused 'name the registry, too' "$edgent" registry pull models/alex:2 --out "$dir/none"
refused 'the registry was asked for' "$edgent" registry pull "127.0.0.1:1/models/alex:2" --out "$dir/none"
layer=$(find "$dir/registry" -path '*/blobs/sha256/*/data' -size +80k | sort | head -n 1)
printf X | dd of="$layer" bs=1 seek=50000 conv=notrunc status=none
refused 'sha256:' "$edgent" registry pull "$repository:2" --out "$dir/none"
test ! -e "$dir/none"
kill -0 "$server"
echo "the registry's test passed"
