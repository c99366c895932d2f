//! The portable tier: a network that nobody trusts is computed inside the sandbox, and answers as it would outside.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/tool.rs"]
mod tool;

use edgent_bundle::{Bundle, Store, portable_guest};
use edgent_cli::hosts::HostProcess;
use edgent_nn::{Stop, example, graphs_read};
use edgent_runtime::golden::difference;
use edgent_runtime::{Deployment, Terms, Tiers};
use edgent_sandbox::{Engine, Purpose};
use serde_json::{Value, json};
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tool::edgent;

const EDGENT_HOST: &str = env!("CARGO_BIN_EXE_edgent-host");

/// What is promised; where values are greater than 1, as a share of the greatest.
const TOLERANCE: f64 = 1e-5;

fn scratch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// A bundle whose segments are native, as bundles usually are.
fn bundle() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(|| {
        let dir = scratch("portable-bundle");
        let model = "models/branchy-alexnet/branchy-alexnet.onnx";
        edgent(&["build", model, "--out", dir.to_str().unwrap(), "--samples", "1"]);
        dir
    })
}

/// Compiling the guest takes seconds: it is done once for all tests, and kept.
fn code() -> PathBuf {
    static CODE: OnceLock<PathBuf> = OnceLock::new();
    let made = CODE.get_or_init(|| {
        let folder = scratch("portable-code");
        Engine::keeping(Some(folder.clone())).unwrap().compile_shipped(Purpose::Computes, portable_guest()).unwrap();
        folder
    });
    made.clone()
}

/// A store of a host that has been started before: the guest's code is there.
fn store(name: &str) -> PathBuf {
    let store = scratch(name);
    let _ = fs::remove_dir_all(&store);
    let bundle = Bundle::open(bundle()).unwrap();
    Store::at(&store).lock().unwrap().install(&bundle.manifest().name, None, &bundle).unwrap();
    let kept = store.join("edgent-code");
    DirBuilder::new().recursive(true).mode(0o700).create(&kept).unwrap();
    for file in fs::read_dir(code()).unwrap().map(|entry| entry.unwrap().path()) {
        fs::copy(&file, kept.join(file.file_name().unwrap())).unwrap();
    }
    store
}

#[test]
fn every_exit_answers_as_in_the_host_and_the_host_reads_no_graph() {
    let bundle = Bundle::open(bundle()).unwrap();
    let engine = Engine::keeping(Some(code())).unwrap();
    let native = Deployment::prepare(&bundle, &engine, 1.0).unwrap();
    let read = graphs_read();
    assert!(read >= bundle.manifest().segments.len() as u64, "the native ones are counted");
    let portable = Terms { tiers: Tiers::Portable, ..Terms::default() };
    let portable = Deployment::prepare_on(&bundle, &engine, &portable).unwrap();
    assert_eq!(portable.portable(), bundle.manifest().segments.len());
    assert_eq!(native.portable(), 0);
    for seed in 1..4 {
        let input: Vec<_> = native.inputs().map(|fact| example(fact, seed).unwrap()).collect();
        for (exit, path) in bundle.manifest().exits.iter().map(|exit| &exit.path).enumerate() {
            let answer = |deployment: &Deployment| {
                let ran = deployment.run(exit, 0..path.len(), input.clone(), &Stop::never()).unwrap();
                ran.output.into_iter().next().unwrap()
            };
            let apart = difference(&answer(&portable), &answer(&native)).unwrap();
            assert!(apart <= TOLERANCE, "exit {exit}, seed {seed}: {apart}");
        }
    }
    assert_eq!(graphs_read(), read, "a graph was read outside the sandbox");
    // Whoever tries bundles in a process of its own has nothing to try.
    let trial = Terms { tiers: Tiers::Portable, shipped_code: false, ..Terms::default() };
    assert_eq!(Deployment::prepare_on(&bundle, &engine, &trial).unwrap().held(), 0);
}

#[test]
fn a_bundle_that_is_built_portable_says_so_and_is_verified() {
    let dir = scratch("portable-built");
    let out = dir.to_str().unwrap();
    let model = "host/nn/tests/data/branching.onnx";
    edgent(&["build", model, "--out", out, "--tier", "portable"]);
    let inspected = edgent(&["inspect", out]);
    let segments = inspected["segments"].as_array().unwrap();
    assert!(segments.iter().all(|segment| segment["tier"] == "portable"), "{segments:?}");
    // The code is the host's: a bundle grows by none of it.
    let bytes: u64 = segments.iter().map(|segment| segment["component_bytes"].as_u64().unwrap()).sum();
    assert!(bytes < 1 << 20, "{bytes} bytes");
    let manifest = Bundle::open(&dir).unwrap();
    assert_eq!(manifest.manifest().format, 3);
    let verified = edgent(&["verify", out]);
    assert_eq!(verified["portable_segments"], segments.len(), "{verified}");
    assert_eq!(verified["cuts_close"], verified["cuts_checked"]);
    assert!(verified["cuts_max_diff"].as_f64().unwrap() <= TOLERANCE, "{verified}");
    let scanned = edgent(&["scan", out]);
    assert!(scanned["admitted"] == true && scanned["segments"][0]["tier"] == "portable", "{scanned}");
    assert_eq!(scanned["segments"][0]["macs_graph"], Value::Null, "scanning it reads no graph");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_trusts_nobody_with_native_computes_all_in_the_sandbox() {
    let policy = scratch("portable-policy.toml");
    fs::write(&policy, "format = 1\nunsigned = \"portable-only\"\n").unwrap();
    let (policy, model) = (policy.to_str().unwrap(), bundle().to_str().unwrap());
    let common = ["--listen", "127.0.0.1:0", "--model", model, "--policy", policy, "--deadline-ms", "5000"];
    let start = async |role: &[&str], store: &Path| {
        let arguments = [role, &common, &["--store", store.to_str().unwrap()]].concat();
        HostProcess::start(Path::new(EDGENT_HOST), &arguments, true).await.unwrap()
    };
    let edge = start(&["--role", "edge"], &store("portable-edge")).await;
    let edge_address = edge.address().to_string();
    let device = start(&["--role", "device", "--edge", &edge_address], &store("portable-device")).await;
    let segments = Bundle::open(bundle()).unwrap().manifest().segments.len();
    for host in [&edge, &device] {
        let state = edgent(&["status", &host.address().to_string()]);
        let all_portable = json!([{ "backend": "portable", "threads": 1, "segments": segments }]);
        assert_eq!(state["serving"][0]["computed"], all_portable, "{state}");
    }
    let (address, folder) = (device.address().to_string(), "models/branchy-alexnet/samples/examples");
    let names = ["bag", "sandal", "trouser", "ankle-boot"];
    let images = names.map(|name| format!("{folder}/{name}.png"));
    let mut arguments = vec!["infer", "--device", &address];
    arguments.extend(images.iter().map(String::as_str));
    let answers = edgent(&arguments);
    let answers = answers["answers"].as_array().unwrap();
    let right = answers.iter().zip(names).filter(|(answer, name)| answer["label"] == **name).count();
    assert!(right >= 3, "{answers:?}");
    assert!(device.end().await.unwrap().success() && edge.end().await.unwrap().success());
}
