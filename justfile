# What CI runs, one recipe a step. `just` lists them.

default:
    @just --list

# Every test: the story over two processes, the crates, the project's promises.
test:
    cargo test --release --workspace

# Formatting, lints as errors, docs without warnings.
lint:
    cargo fmt --all --check
    cargo fmt --all --check --manifest-path guest-layers/Cargo.toml
    cargo fmt --all --check --manifest-path tests/slot/Cargo.toml
    cargo clippy --release --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps

# Every order in which threads can meet where versions change.
model:
    cargo test --release --manifest-path tests/slot/Cargo.toml --target-dir target/slot

# Committed schema code and guests are what their sources give.
fresh:
    schema/generate.sh --check
    schema/generate-grpc.sh --check
    guest-layers/build.sh --check

# Licences, sources and banned crates; advisories would need a database that CI does not reach.
audit:
    cargo deny --locked check bans licenses sources

# A short run of the main job.
demo:
    cargo run --release -- demo --seconds 10

# Foreign tools copy a bundle, whole, and to the same bytes; the copy does what the network does.
oci:
    rm -rf target/oci
    mkdir -p target/oci
    cargo run --release -- build models/branchy-alexnet/branchy-alexnet.onnx --out target/oci/built --samples 20
    skopeo inspect --raw oci:target/oci/built:branchy-alexnet | grep -q application/vnd.edgent.bundle.v1+json
    skopeo copy --quiet --all --preserve-digests oci:target/oci/built:branchy-alexnet oci:target/oci/copy:model
    diff -r target/oci/built/blobs target/oci/copy/blobs
    cargo run --release -- inspect target/oci/copy@model:1
    cargo run --release -- verify target/oci/copy

# What is built with the features that are off by default; laid aside, since the next build without them takes its place.
features:
    cargo build --release --workspace --features edgent/registry,edgent/otel --bins
    install -D --target-directory target/features target/release/edgent target/release/edgent-host
    cargo clippy --release --workspace --features edgent/registry,edgent/otel --all-targets -- -D warnings

# Bundles go to a registry and back.
registry: features
    tests/registry.sh target/features/edgent

# Debian's minisign and edgent take each other's keys and signatures.
minisign:
    rm -rf target/minisign
    mkdir -p target/minisign
    cargo run --release -- build host/nn/tests/data/branching.onnx --out target/minisign/bundle
    cargo run --release -- keygen --out target/minisign/ours --no-password
    cargo run --release -- sign target/minisign/bundle --secret-key target/minisign/ours.key --version 3 --out target/minisign/ours.txt
    minisign -V -m target/minisign/ours.txt -p target/minisign/ours.pub
    printf 'correct horse\n' > target/minisign/password
    printf 'correct horse\ncorrect horse\n' | minisign -G -p target/minisign/theirs.pub -s target/minisign/theirs.key
    cargo run --release -- sign target/minisign/bundle --secret-key target/minisign/theirs.key --password-file target/minisign/password --version 4 --out target/minisign/theirs.txt
    minisign -V -m target/minisign/theirs.txt -p target/minisign/theirs.pub
    ! minisign -V -m target/minisign/theirs.txt -p target/minisign/ours.pub
    cargo run --release -- verify target/minisign/bundle --key target/minisign/theirs.pub
    skopeo copy --quiet --all --preserve-digests oci:target/minisign/bundle:branching oci:target/minisign/copy:model
    cargo run --release -- verify target/minisign/copy --key target/minisign/ours.pub

# Good and bad versions pushed to two hosts while they answer: nothing lost, nothing mixed.
swap:
    cargo run --release -- bench swap --swaps 16

# The edge killed and frozen, the link lost, connections that fare ill: a seeded twentieth of the full counts.
faults:
    cargo run --release -- bench faults --share 0.05

# Hosts asked for up to ten times of what they can do: answers in time must not become fewer.
overload:
    cargo run --release -- bench overload --seconds 5

# Runs of a device and its edges in virtual time, each from its seed.
simulate seeds="0..10000":
    EDGENT_SEEDS={{seeds}} cargo test --release --workspace --lib -- whole_hosts --nocapture

# Half an hour of lost links and frozen edges: memory and open files must not grow.
soak:
    cargo run --release -- bench faults --soak-s 1800

# The full counts: 200 kills, 100 stops of up to 10 s, 20 mishaps of each kind and direction, 10 minutes of a flapping link.
faults-long:
    cargo run --release -- bench faults --share 1

# Hostile guests and files, a seeded tenth of the full counts.
limits:
    cargo run --release -- bench limits --share 0.1

# The full counts: 1,000 of each endless guest and trap, 10,000 cancels, 20,000 mutated components, 20,000 mutated ONNX files;
# and the bounds on time, which want a machine that does nothing else.
limits-long:
    cargo run --release -- bench limits --share 1 --timed

# Python with the runtime that Edgent is compared with.
peers:
    test -x target/peers/bin/python || python3 -m venv target/peers
    target/peers/bin/pip install --quiet --requirement tests/peers/requirements.txt

# The second backend, with the library of PyPI's wheel; a folder of its own, since the feature changes what half of the
# tree is built with. Its first build takes minutes.
onnxruntime: peers
    EDGENT_ONNXRUNTIME=$(ls "$PWD"/target/peers/lib/python*/site-packages/onnxruntime/capi/libonnxruntime.so.*) \
    && export EDGENT_ONNXRUNTIME \
    && cargo test --release --workspace --features edgent/onnxruntime --target-dir target/onnxruntime --lib onnxruntime \
    && cargo test --release --workspace --features edgent/onnxruntime --target-dir target/onnxruntime --test onnxruntime

# One trace over both hosts, as a receiver of OpenTelemetry's protocol sees it.
otel: features
    cargo build --release --workspace
    test -x target/otel-peers/bin/python || python3 -m venv target/otel-peers
    target/otel-peers/bin/pip install --quiet --requirement tests/peers/otel.txt
    BUILT=target/features target/otel-peers/bin/python tests/peers/otel.py

# Two hosts beside two processes of Python, onnxruntime and gRPC, over the same slow link: docs/split-peer.md.
split-peer: peers
    cargo build --release --workspace
    target/peers/bin/python tests/peers/split_bench.py

# The node tests of the onnx package, through the import and the sandbox.
onnx-suite: peers
    cargo build --release --workspace
    target/peers/bin/python tests/peers/onnx_suite.py

# NVIDIA's and KServe's clients of the Open Inference Protocol, REST and gRPC, ask both roles; their answers are the tool's.
http-clients: peers
    cargo build --release --workspace
    target/peers/bin/python tests/peers/http_clients.py
    target/peers/bin/python tests/peers/grpc_clients.py
    test -x target/kserve/bin/python || python3 -m venv target/kserve
    target/kserve/bin/pip install --quiet --requirement tests/peers/kserve.txt
    target/kserve/bin/python tests/peers/kserve_clients.py

# The manifest for KServe, against the models of its Python package; no cluster.
kserve:
    cargo build --release --workspace
    test -x target/kserve/bin/python || python3 -m venv target/kserve
    target/kserve/bin/pip install --quiet --requirement tests/peers/kserve.txt
    target/kserve/bin/python tests/peers/kserve_manifest.py

# A real Prometheus scrapes both roles; what the alerts and the Grafana dashboard ask for is there.
metrics:
    cargo build --release --workspace
    python3 tests/peers/metrics.py

# The dashboard in Chromium, by keyboard; screenshots in target/dashboard.
dashboard:
    cargo build --release --workspace
    python3 tests/peers/dashboard.py

# `edgent top` in a real pseudo-terminal.
top:
    cargo build --release --workspace
    python3 tests/peers/top.py

# Edges that announce themselves and devices that find them, on two machines: network namespaces. Needs root.
discover:
    cargo build --release --workspace
    test -x target/discover/bin/python || python3 -m venv target/discover
    target/discover/bin/pip install --quiet --requirement tests/peers/discover.txt
    target/discover/bin/python tests/peers/discover.py

# An activation that takes seconds to cross a slow link, between two machines: network namespaces. Needs root.
slow-link:
    cargo build --release --workspace
    python3 tests/peers/slow_link.py

# Bars of what commands still have to do, in a real pseudo-terminal.
progress:
    cargo build --release --workspace
    python3 tests/peers/progress.py

# The Debian package: made, checked, installed, upgraded and purged on this machine. Needs root.
package:
    cargo build --release --workspace
    packaging/test.sh

# Three edges and twenty devices behind HAProxy, for half a minute; edges are killed, frozen, drained and added.
haproxy seconds="30": peers
    cargo build --release --workspace
    SECONDS={{seconds}} target/peers/bin/python tests/peers/haproxy.py

# The book, in book/, and whether its links lead somewhere. Its commands are run by `just test`.
book:
    mdbook build docs
    python3 tests/peers/book_links.py

# The Debian package for arm64, made here and tried under emulation. Needs root, and what packaging/arm64.sh names; half an hour
# of processor time, so CI leaves it out.
arm64:
    cargo build --release --workspace
    packaging/arm64.sh
    packaging/arm64-test.sh

# Published networks, compared with onnxruntime at every cut: the table of docs/models.md. Downloads 150 MB of packages.
models: peers
    cargo build --release --workspace
    target/peers/bin/python tests/peers/models.py

# Published networks' times beside onnxruntime's: docs/speed.md. Downloads 150 MB of packages.
bench-models: peers
    cargo build --release --workspace
    target/peers/bin/python tests/peers/nets.py target/peers/nets
    target/release/edgent bench models --plain --chart target/models.svg

# Both sides of each ratio in one run.
bench:
    cargo run --release -- bench sandbox
    cargo run --release -- bench chain
    cargo run --release -- bench portable
    cargo run --release -- bench link
    cargo run --release -- bench plan
    cargo run --release -- bench start
    cargo run --release -- bench deadline --quick --seconds 5 --strategy edgent --strategy paper --report target/deadline.html

# All of CI's steps.
ci: test (simulate "0..500") lint model fresh audit demo oci registry otel minisign swap faults limits onnx-suite http-clients kserve metrics dashboard top progress discover slow-link haproxy package book bench
