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
    cargo clippy --release --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps

# Committed schema code and guests are what their sources give.
fresh:
    schema/generate.sh --check
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

# Good and bad versions pushed to two hosts while they answer: nothing lost, nothing mixed.
swap:
    cargo run --release -- bench swap --swaps 16

# Python with the runtime that Edgent is compared with.
peers:
    test -x target/peers/bin/python || python3 -m venv target/peers
    target/peers/bin/pip install --quiet --requirement tests/peers/requirements.txt

# The node tests of the onnx package, through the import and the sandbox.
onnx-suite: peers
    cargo build --release --workspace
    target/peers/bin/python tests/peers/onnx_suite.py

# Published networks, compared with onnxruntime at every cut: the table of docs/models.md. Downloads 150 MB of packages.
models: peers
    cargo build --release --workspace
    target/peers/bin/python tests/peers/models.py

# Both sides of each ratio in one run.
bench:
    cargo run --release -- bench sandbox
    cargo run --release -- bench chain
    cargo run --release -- bench link
    cargo run --release -- bench plan

# All of CI's steps.
ci: test lint fresh audit demo oci swap onnx-suite bench
