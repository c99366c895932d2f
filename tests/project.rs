//! What the project promises of itself: its layers, its floors, and the commands in its README.
#![allow(clippy::unwrap_used, missing_docs)]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// What our own manifests say. Without dependencies: those of other platforms are not on this machine.
fn metadata() -> Value {
    let arguments = ["metadata", "--format-version", "1", "--locked", "--offline", "--no-deps"];
    let cargo = Command::new(env!("CARGO")).args(arguments).current_dir(project()).output().unwrap();
    assert!(cargo.status.success(), "{}", String::from_utf8_lossy(&cargo.stderr));
    serde_json::from_slice(&cargo.stdout).unwrap()
}

/// Direct dependencies of each of our crates, but for those of tests.
fn dependencies(metadata: &Value) -> Vec<(String, Vec<String>)> {
    let packages = metadata["packages"].as_array().unwrap();
    let ours = packages.iter().filter(|package| package["source"].is_null());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    ours.map(|package| {
        let all = package["dependencies"].as_array().unwrap().iter();
        let kept = all.filter(|dependency| dependency["kind"] != "dev").map(|dependency| text(&dependency["name"]));
        (text(&package["name"]), kept.collect())
    })
    .collect()
}

#[test]
fn crates_depend_only_on_those_they_may() {
    let metadata = metadata();
    let allowed = [
        ("edgent-planner", &[][..]),
        ("edgent-nn", &[]),
        ("edgent-bundle", &[]),
        ("edgent-link", &[]),
        ("edgent-sandbox", &["edgent-nn"]),
        ("edgent-runtime", &["edgent-planner", "edgent-nn", "edgent-sandbox", "edgent-bundle", "edgent-link"]),
        (
            "edgent",
            &["edgent-planner", "edgent-nn", "edgent-sandbox", "edgent-bundle", "edgent-link", "edgent-runtime"],
        ),
    ];
    let found = dependencies(&metadata);
    assert_eq!(found.len(), allowed.len(), "a crate came or went: say here what it may depend on");
    for (name, dependencies) in &found {
        let (_, may) =
            allowed.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("{name} is unknown here"));
        for dependency in dependencies.iter().filter(|d| d.starts_with("edgent")) {
            assert!(may.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn each_foreign_world_has_one_crate() {
    let worlds = [
        ("tract", "edgent-nn"),
        ("ort", "edgent-nn"),
        ("wasmtime", "edgent-sandbox"),
        ("capnp", "edgent-link"),
        ("tokio-rustls", "edgent-link"),
        ("ring", "edgent-link"),
        ("spake2", "edgent-link"),
        ("tonic", "edgent-runtime"),
        ("opentelemetry", "edgent-runtime"),
        ("mdns-sd", "edgent-runtime"),
        ("indicatif", "edgent"),
    ];
    for (name, dependencies) in dependencies(&metadata()) {
        for (world, home) in worlds {
            let named = dependencies.iter().find(|dependency| dependency.starts_with(world));
            assert!(name == home || named.is_none(), "{name} names {named:?}; only {home} may");
        }
    }
    let planner = dependencies(&metadata()).into_iter().find(|(name, _)| name == "edgent-planner").unwrap().1;
    assert_eq!(planner, ["thiserror"], "the planner is pure");
}

#[test]
fn dependencies_with_known_holes_are_above_their_floor() {
    // Security fixes that this project relies on; raise a floor when an advisory says so.
    let floors = [
        ("wasmtime", [48, 0, 8]),
        ("cranelift-codegen", [0, 135, 8]),
        ("tract-onnx", [0, 23, 9]),
        ("capnp", [0, 27, 3]),
        ("capnp-rpc", [0, 27, 3]),
        ("lz4_flex", [0, 14, 0]),
        ("rustls", [0, 23, 18]),
        ("ring", [0, 17, 12]),
    ];
    let lock: toml::Table = std::fs::read_to_string(project().join("Cargo.lock")).unwrap().parse().unwrap();
    let packages = lock["package"].as_array().unwrap();
    for (name, floor) in floors {
        let versions: Vec<&str> = packages
            .iter()
            .filter(|package| package["name"].as_str() == Some(name))
            .filter_map(|package| package["version"].as_str())
            .collect();
        assert!(!versions.is_empty(), "{name} is gone");
        for version in versions {
            let parts: Vec<u64> = version.split('.').map(|part| part.parse().unwrap()).collect();
            assert!(parts >= floor.to_vec(), "{name} {version} is below {floor:?}");
        }
    }
}

/// A clock that is set must change no deadline: everything that decides counts on the monotonic one.
#[test]
fn nobody_reads_the_wall_clock() {
    let mut folders = vec![project().join("host")];
    let mut looked_at = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() && entry.file_name().is_none_or(|name| name != "tests") {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&entry).unwrap();
                assert!(!text.contains("SystemTime") && !text.contains("UNIX_EPOCH"), "{}", entry.display());
                looked_at += 1;
            }
        }
    }
    assert!(looked_at > 100, "only {looked_at} files");
}

#[test]
fn the_readme_shows_commands_that_exist() {
    let readme = std::fs::read_to_string(project().join("README.md")).unwrap();
    let fenced = readme.split("```").skip(1).step_by(2).filter_map(|block| block.strip_prefix("sh\n"));
    let commands: Vec<&str> =
        fenced.flat_map(str::lines).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert!(commands.contains(&"cargo run --release -- demo"), "{commands:?}");
    assert!(commands.contains(&"cargo test --release --workspace"), "{commands:?}");
    let mut checked = 0;
    for command in commands {
        let mut words = command.split_whitespace();
        let program = words.next().unwrap().rsplit('/').next().unwrap();
        let (binary, rest): (_, Vec<&str>) = match program {
            "edgent" => (env!("CARGO_BIN_EXE_edgent"), words.collect()),
            "edgent-host" => (env!("CARGO_BIN_EXE_edgent-host"), words.collect()),
            _ => continue,
        };
        // Subcommands and flags must be known; values are the reader's.
        let subcommand: Vec<&str> =
            rest.iter().copied().take_while(|word| word.chars().all(|c| c.is_ascii_lowercase())).collect();
        // Only built with its feature: tests/registry.sh uses it.
        if subcommand.first() == Some(&"registry") && !cfg!(feature = "registry") {
            continue;
        }
        let help = Command::new(binary).args(&subcommand).arg("--help").output().unwrap();
        let text = String::from_utf8_lossy(&help.stdout).into_owned();
        assert!(help.status.success(), "{command}");
        for flag in rest.iter().filter(|word| word.starts_with("--")) {
            assert!(text.contains(flag), "{command}: no {flag} in\n{text}");
        }
        checked += 1;
    }
    assert!(checked >= 5, "only {checked} commands of ours in the README");
}
