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

# Both sides of each ratio in one run.
bench:
    cargo run --release -- bench sandbox
    cargo run --release -- bench chain
    cargo run --release -- bench link
    cargo run --release -- bench plan

# All of CI's steps.
ci: test lint fresh audit demo bench
