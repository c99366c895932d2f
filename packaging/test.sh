#!/usr/bin/env bash
# Installs the package on this Debian machine, has it serve, upgrades it, and takes it off again. Needs root and an
# `edgent` that is not installed; leaves nothing. No systemd need run: the unit is checked by its own tools.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { echo "ok: $*"; }
[ "$(id -u)" = 0 ] || { echo "packages are installed by root" >&2; exit 1; }
! dpkg-query --status edgent >/dev/null 2>&1 || { echo "edgent is installed here; it would be taken off" >&2; exit 1; }

scratch=$(mktemp -d) host=
clean() { [ -z "$host" ] || kill "$host" 2>/dev/null || true; dpkg --purge edgent >/dev/null 2>&1 || true; rm -rf "$scratch"; }
trap clean EXIT

# Compressed little, which takes a minute less and changes nothing of what is in it.
deb=$(packaging/build.sh --fast | tail -1)
lintian --allow-root --fail-on error,warning "$deb"
say "lintian finds nothing in $(basename "$deb")"

dpkg --install "$deb" >/dev/null
systemd-analyze verify --man=no edgent-host@edge.service
# 0 is locked up, 10 wide open. It computes with code that it compiles and talks to the network, so it is not 0.
systemd-analyze security --offline=true --threshold=20 edgent-host@edge.service >"$scratch/security"
say "the unit: $(tail -1 "$scratch/security" | tr -d '\n')"
man --locale=C edgent-host | grep -q memory-max-mib
bash -c 'source /usr/share/bash-completion/completions/edgent; complete -p edgent' >/dev/null
say "manual and completions"

# As the unit would start it, by the user it would have.
edgent build host/nn/tests/data/branching.onnx --out "$scratch/bundle" 2>/dev/null >/dev/null
chmod -R a+rX "$scratch"
model=$scratch/bundle
install -d -o edgent -g edgent -m 0750 /var/lib/edgent/edge
serve() {
    coproc HOST { cd /var/lib/edgent/edge && exec setpriv --reuid edgent --regid edgent --clear-groups --no-new-privs \
        --bounding-set=-all "$@" env --ignore-environment PATH="$PATH" EDGENT_MODEL="$model" EDGENT_LISTEN=127.0.0.1:0 \
        edgent-host --config /etc/edgent/edge.toml 2>"$scratch/log"; }
    host=$HOST_PID
    read -r ready <&"${HOST[0]}" || { cat "$scratch/log" >&2; exit 1; }
    edgent status "${ready##* }" --json | grep -q '"model":"branching"'
}
stop() { kill -TERM "$host"; wait "$host"; host=; }
serve
stop
say "a host with the packaged settings serves, and ends in good order"
rm -r /var/lib/edgent/edge/store
install -o edgent /dev/null "$scratch/trace"
serve strace --follow-forks --output "$scratch/trace"
# strace ends as what it follows does.
tracer=$host host=$(pgrep --parent "$host" --exact edgent-host)
kill -TERM "$host"
wait "$tracer"
host=
packaging/syscalls.py packaging/edgent-host@.service "$scratch/trace"

sed -i 's/^# http = .*/http = "127.0.0.1:0"/' /etc/edgent/edge.toml
dpkg --install "$(packaging/build.sh --fast --deb-revision 2 | tail -1)" >/dev/null
dpkg-query --show edgent | grep -q -- -2
grep -q '^http' /etc/edgent/edge.toml
model=
serve
[[ $ready == *'HTTP on'* ]]
stop
say "an upgrade keeps the settings and the versions in the store"

dpkg --purge edgent >/dev/null
left=$(find /etc /usr /var/lib /run -xdev \( -name 'edgent*' -o -name '_edgent*' \) -not -path '*/lib/dpkg/*' -not -path "$PWD/*" 2>/dev/null || true)
[ -z "$left" ] || { echo "left: $left" >&2; exit 1; }
if getent passwd edgent; then echo "the user is left" >&2; exit 1; fi
say "nothing is left"
