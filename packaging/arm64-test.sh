#!/usr/bin/env bash
# Tries the arm64 package on this machine, under qemu's emulation of the processor: the programs check a bundle, and a device
# of that kind answers with an edge of this machine's. Needs root (to have the kernel start such programs by qemu, as
# Debian's qemu-user-binfmt does for good), qemu-user, libc6:arm64 and libgcc-s1:arm64. An emulated processor is slow: no times.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { echo "ok: $*"; }
[ "$(id -u)" = 0 ] || { echo "the kernel takes an emulator from root alone" >&2; exit 1; }

registry=/proc/sys/fs/binfmt_misc name=edgent-aarch64
scratch=$(mktemp -d) device= edge= mounted=
clean() {
    for host in $device $edge; do kill "$host" 2>/dev/null || true; done
    [ ! -e "$registry/$name" ] || echo -1 > "$registry/$name"
    [ -z "$mounted" ] || umount "$registry" || true
    rm -rf "$scratch"
}
trap clean EXIT
# A handler that is there stays; it must hand on the name by which a program is called (P), since that says what it is to do.
[ -e "$registry/register" ] || { mount -t binfmt_misc binfmt_misc "$registry"; mounted=yes; }
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
[ -e "$registry/qemu-aarch64" ] || echo ":$name:M::$magic:$mask:$(command -v qemu-aarch64):P" > "$registry/register"

deb=$(ls target/debian/edgent_*_arm64.deb)
[ "$(dpkg-deb --field "$deb" Architecture)" = arm64 ]
dpkg-deb --extract "$deb" "$scratch/root"
arm=$scratch/root/usr/bin ours=target/release
file=$(od -An -tx1 -j18 -N2 "$arm/edgent" | tr -d ' ')
[ "$file" = b700 ] || { echo "$arm/edgent is for another processor" >&2; exit 1; }
say "$(basename "$deb"), which depends on $(dpkg-deb --field "$deb" Depends)"

"$ours/edgent" build host/nn/tests/data/branching.onnx --out "$scratch/small" >/dev/null 2>&1
"$arm/edgent" verify "$scratch/small" --json > "$scratch/verified"
say "verified under emulation: $(python3 -c '
import json, sys
told = json.load(open(sys.argv[1]))
print(told["cuts_bit_exact"], "of", told["cuts_checked"], "checks bit-exact, off by", told["max_abs_diff"], "at most")' "$scratch/verified")"

start() { # NAME PROGRAM ARGUMENT...
    local -n pid=$1
    : > "$scratch/$1"
    "${@:2}" --listen 127.0.0.1:0 --model "$scratch/bundle" > "$scratch/$1" 2> "$scratch/$1.log" &
    pid=$!
    until grep -q 'listening on' "$scratch/$1"; do
        kill -0 "$pid" 2>/dev/null || { cat "$scratch/$1.log" >&2; exit 1; }
        read -rt 0.2 <> <(:) || true
    done
    address=$(sed -n 's/.*listening on //p' "$scratch/$1")
}
"$ours/edgent" build models/branchy-alexnet/branchy-alexnet.onnx --out "$scratch/bundle" --samples 20 >/dev/null 2>&1
start edge "$ours/edgent-host" --role edge
start device "$arm/edgent-host" --role device --edge "$address" --deadline-ms 5000
at=$address
until "$ours/edgent" status "$at" --json | grep -q '"in_force":true'; do kill -0 "$device"; done
for picture in models/branchy-alexnet/samples/examples/*.png; do
    "$ours/edgent" infer "$picture" --device "$at" --json >> "$scratch/answers"
done
python3 - "$scratch/answers" <<'END'
import collections, json, pathlib, sys
answers = [json.loads(line)["answers"][0] for line in open(sys.argv[1])]
right = sum(pathlib.Path(answer["image"]).stem == answer["label"] for answer in answers)
where = collections.Counter(answer["placement"] for answer in answers)
assert right >= 8, answers
assert where["split"] + where["edge-only"], where
print(f"ok: a device of that kind and an edge of this one: {right} of {len(answers)} pictures right, {dict(where)}")
END
for host in $device $edge; do kill "$host"; wait "$host"; done
device= edge=
say "both end in good order"
