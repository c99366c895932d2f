//! The user's story: a bundle is built, two hosts are started, images are answered, things go wrong,
//! and images are still answered. Two real processes, a real model, real images.
#![allow(clippy::unwrap_used, missing_docs)]

use edgent_bundle::Bundle;
use edgent_cli::hosts::HostProcess;
use edgent_cli::relay::{Relay, Shape};
use edgent_cli::trace::Trace;
use edgent_link::{
    AskRequest, Codec, Digest, Direction, Hello, InferRequest, Limits, Link, Plan, Role, TensorDescription,
};
use edgent_nn::{Stop, synthetic};
use edgent_runtime::Deployment;
use edgent_runtime::codec::{decode, encode_all};
use edgent_runtime::golden::{Golden, difference};
use edgent_sandbox::Engine;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const EDGENT: &str = env!("CARGO_BIN_EXE_edgent");
const EDGENT_HOST: &str = env!("CARGO_BIN_EXE_edgent-host");

/// Long enough for a busy machine, short enough to notice a hang.
const PATIENCE: Duration = Duration::from_secs(60);

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The bundle that all tests share, built once by the command that users run.
fn bundle() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("branchy-alexnet");
        let built = edgent(&[
            "build",
            "models/branchy-alexnet/branchy-alexnet.onnx",
            "--out",
            dir.to_str().unwrap(),
            "--samples",
            "50",
        ]);
        assert_eq!(built["exits"], 5);
        dir
    })
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(EDGENT).args(arguments).arg("--json").current_dir(project()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Runs a command that must succeed and print exactly one JSON object.
fn edgent(arguments: &[&str]) -> Value {
    let (code, stdout, stderr) = run(arguments);
    assert_eq!(code, 0, "{arguments:?}: {stderr}");
    serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{arguments:?} printed {stdout:?}: {e}"))
}

async fn edge() -> HostProcess {
    let model = bundle().to_str().unwrap();
    HostProcess::start(Path::new(EDGENT_HOST), &["--role", "edge", "--listen", "127.0.0.1:0", "--model", model], true)
        .await
        .unwrap()
}

async fn device(more: &[&str]) -> HostProcess {
    let model = bundle().to_str().unwrap();
    let arguments = [&["--role", "device", "--listen", "127.0.0.1:0", "--model", model], more].concat();
    HostProcess::start(Path::new(EDGENT_HOST), &arguments, true).await.unwrap()
}

/// One example image of each class.
fn examples() -> Vec<(String, String)> {
    let folder = project().join("models/branchy-alexnet/samples/examples");
    let mut images: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    images.sort();
    let name = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    images.iter().map(|path| (path.to_str().unwrap().to_owned(), name(path))).collect()
}

fn ask(device: &HostProcess) -> Vec<Value> {
    let address = device.address().to_string();
    let images = examples();
    let mut arguments = vec!["infer", "--device", &address];
    arguments.extend(images.iter().map(|(path, _)| path.as_str()));
    let answers = edgent(&arguments)["answers"].as_array().unwrap().clone();
    assert_eq!(answers.len(), 10, "every image is answered");
    let right = answers.iter().zip(&images).filter(|(answer, (_, class))| answer["label"] == **class).count();
    assert!(right >= 6, "{right} of 10 answered rightly: {answers:?}");
    answers
}

/// Asks until all ten answers are as wanted.
fn ask_until(device: &HostProcess, what: &str, wanted: impl Fn(&Value) -> bool) {
    let start = Instant::now();
    loop {
        let answers = ask(device);
        if answers.iter().all(&wanted) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "never {what}: {answers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_answers_alone_then_with_an_edge_and_alone_again_when_the_edge_dies() {
    let edge_host = edge().await;
    let shape = Shape { trace: Trace::constant(20_000_000), delay: Duration::from_millis(1) };
    let relay = Relay::start("127.0.0.1:0", edge_host.address(), shape).await.unwrap();
    relay.cut();
    let behind = relay.local_addr().to_string();
    // So slow that a good link makes the edge worth its while.
    let device = device(&["--edge", &behind, "--emulate-slowdown", "30", "--deadline-ms", "2000"]).await;

    ask_until(&device, "alone, and saying so", |a| {
        a["placement"] == "device-only" && a["degraded"] == "no edge is connected"
    });
    relay.restore();
    ask_until(&device, "with the edge", |a| a["placement"] != "device-only" && a["degraded"].is_null());
    edge_host.kill().await.unwrap();
    ask_until(&device, "alone again", |a| a["placement"] == "device-only");
    // A new edge at another address, behind the same link.
    drop(relay);
    assert!(device.end().await.unwrap().success(), "SIGTERM ends a device in good order");
}

/// The activations that were under way when the rate fell are what tells of its fall.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_leaves_a_link_that_has_become_too_slow_and_returns_to_it() {
    let edge_host = edge().await;
    let good = Trace::constant(20_000_000);
    let shape = Shape { trace: good.clone(), delay: Duration::from_millis(1) };
    let relay = Relay::start("127.0.0.1:0", edge_host.address(), shape).await.unwrap();
    let behind = relay.local_addr().to_string();
    let device = device(&["--edge", &behind, "--emulate-slowdown", "50", "--deadline-ms", "100"]).await;
    let placed = |answer: &Value, where_: &str| answer["placement"] == where_ && answer["degraded"].is_null();

    ask_until(&device, "by the edge", |a| placed(a, "edge-only"));
    relay.follow(&Trace::constant(50_000));
    let images: Vec<String> = examples().into_iter().map(|(path, _)| path).cycle().take(60).collect();
    let address = device.address().to_string();
    let stream: Vec<&str> =
        ["infer", "--device", &address].into_iter().chain(images.iter().map(String::as_str)).collect();
    let answers = edgent(&stream)["answers"].as_array().unwrap().clone();
    let settled = answers.iter().rev().take_while(|answer| placed(answer, "device-only")).count();
    assert!(settled >= 5, "still sends what cannot come back in time: {answers:?}");
    relay.follow(&good);
    ask_until(&device, "by the edge again", |a| placed(a, "edge-only"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_comes_back_is_used_again() {
    let first = edge().await;
    let address = first.address().to_string();
    let device = device(&["--edge", &address, "--emulate-slowdown", "30", "--deadline-ms", "2000"]).await;
    ask_until(&device, "with the edge", |a| a["placement"] != "device-only");
    assert!(first.end().await.unwrap().success(), "SIGTERM ends an edge in good order");
    ask_until(&device, "alone", |a| a["placement"] == "device-only");
    let model = bundle().to_str().unwrap();
    let second = ["--role", "edge", "--listen", &address, "--model", model];
    let _second = HostProcess::start(Path::new(EDGENT_HOST), &second, true).await.unwrap();
    ask_until(&device, "with the second edge", |a| a["placement"] != "device-only");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_no_exit_can_answer_in_time_is_answered_late_and_says_so() {
    let device = device(&["--emulate-slowdown", "20"]).await;
    let address = device.address().to_string();
    let image = &examples()[0].0;
    let answer = &edgent(&["infer", "--device", &address, "--deadline-ms", "0.5", image])["answers"][0];
    assert_eq!(answer["deadline_met"], false);
    assert!(answer["degraded"].as_str().unwrap().contains("the fastest"), "it says by which rule: {answer}");
    let answer = &edgent(&["infer", "--device", &address, "--deadline-ms", "5000", image])["answers"][0];
    assert_eq!(answer["deadline_met"], true);
    assert_eq!(answer["exit"], best_exit(), "with time to spare the best exit answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_may_leave_when_sure_leaves_early_with_time_to_spare() {
    let device = device(&["--leave-when-sure", "--deadline-ms", "5000"]).await;
    let answers = ask(&device);
    let early = answers.iter().filter(|answer| answer["exit"] != best_exit()).count();
    assert!(early >= 3, "{early} of 10 left early: {answers:?}");
}

#[test]
fn a_plan_is_explained_and_keeps_to_what_it_must() {
    let model = bundle().to_str().unwrap();
    let plan = |more: &[&str]| edgent(&[&["plan", model, "--explain"], more].concat());
    for more in [&[][..], &["--rate-bps", "20e6"], &["--deadline-ms", "1"], &["--keep-input", "--rate-bps", "20e6"]] {
        let report = plan(more);
        let candidates = report["candidates"].as_array().unwrap();
        let chosen: Vec<&Value> = candidates.iter().filter(|row| row["verdict"] == "chosen").collect();
        assert_eq!(chosen.len(), 1, "{more:?}");
        for part in ["exit", "cut", "direction", "codec", "total_us"] {
            assert_eq!(chosen[0][part], report["plan"][part], "{more:?}");
        }
        let parts = ["device_us", "edge_us", "queue_us", "transfer_us", "rtt_us", "codec_us"];
        for row in candidates {
            let sum: f64 = parts.iter().map(|part| row[part].as_f64().unwrap()).sum();
            assert!((sum - row["total_us"].as_f64().unwrap()).abs() < 1.0, "{row}");
        }
    }
    assert_eq!(plan(&["--rate-bps", "0"])["plan"]["placement"], "device-only");
    assert_eq!(plan(&["--rate-bps", "1e9", "--rtt-ms", "0"])["plan"]["placement"], "edge-only");
    assert_ne!(plan(&["--rate-bps", "1e9", "--rtt-ms", "0", "--keep-input"])["plan"]["placement"], "edge-only");
    assert_eq!(plan(&["--deadline-ms", "0.01"])["fits"], false);
    // The input may cross as a picture, unless it must stay.
    let codecs = |more: &[&str], cut: u64| -> Vec<String> {
        let report = plan(more);
        let candidates = report["candidates"].as_array().unwrap();
        let here = candidates.iter().filter(|row| row["cut"] == cut && row["direction"] == "device-first");
        let allowed = here.filter(|row| row["verdict"] != "the input must stay");
        let mut codecs: Vec<String> = allowed.map(|row| row["codec"].as_str().unwrap().to_owned()).collect();
        codecs.sort();
        codecs.dedup();
        codecs
    };
    assert_eq!(codecs(&[], 0), ["jpeg", "png", "raw"]);
    assert_eq!(codecs(&[], 3), ["f16", "raw", "u8", "u8-lz4"]);
    assert_eq!(codecs(&["--keep-input"], 0), Vec::<String>::new());
    let jpeg = plan(&["--strategy", "edge-only-jpeg", "--rate-bps", "5e4"]);
    assert_eq!((&jpeg["plan"]["codec"], &jpeg["plan"]["placement"]), (&"jpeg".into(), &"edge-only".into()));
}

#[test]
fn strategies_are_compared_on_real_hosts() {
    let quick = [
        "bench",
        "deadline",
        "--quick",
        "--requests",
        "2",
        "--seconds",
        "2",
        "--strategy",
        "edgent",
        "--strategy",
        "paper",
        "--strategy",
        "edge-only-png",
    ];
    let report = edgent(&quick);
    let rows = report["rows"].as_array().unwrap();
    for strategy in ["edgent", "paper", "edge-only-png"] {
        for experiment in ["rate", "trace", "deadline"] {
            let of = |row: &&Value| row["strategy"] == strategy && row["experiment"] == experiment;
            assert!(rows.iter().filter(of).all(|row| row["requests"].as_u64().unwrap() > 0));
            assert!(rows.iter().any(|row| of(&row)), "no {experiment} of {strategy}");
        }
    }
    assert!(report["prediction_error"]["edgent"]["answers"].as_u64().unwrap() > 0);
}

#[test]
fn planning_finds_what_brute_force_finds() {
    let cases = edgent(&["bench", "plan"])["cases"].as_array().unwrap().clone();
    assert!(cases.iter().any(|case| case["layers"] == 200 && case["exits"] == 5));
    assert!(cases.iter().all(|case| case["optimal"] == case["networks"]), "{cases:?}");
}

fn best_exit() -> String {
    let exits = edgent(&["inspect", bundle().to_str().unwrap()])["exits"].as_array().unwrap().clone();
    let best = exits.iter().max_by(|a, b| a["accuracy"].as_f64().unwrap().total_cmp(&b["accuracy"].as_f64().unwrap()));
    best.unwrap()["name"].as_str().unwrap().to_owned()
}

#[test]
fn a_bundle_does_what_the_network_does() {
    let report = edgent(&["verify", bundle().to_str().unwrap()]);
    assert!(report["cuts_checked"].as_u64().unwrap() > 100);
    assert_eq!(report["cuts_bit_exact"], report["cuts_checked"]);
    // Raw at every cut, and the input as PNG as well.
    assert!(report["lossless_checked"].as_u64() > report["cuts_checked"].as_u64());
    assert_eq!(report["lossless_exact"], report["lossless_checked"]);
    let of_input = report["input_codecs"].as_array().unwrap();
    let codecs: Vec<&str> = of_input.iter().map(|row| row["codec"].as_str().unwrap()).collect();
    assert_eq!(codecs, ["png", "jpeg"]);
    assert_eq!(of_input[0]["lost_here"], 0.0);
    assert!(report["max_abs_diff"].as_f64().unwrap() <= 1e-4);
    let accuracies: Vec<f64> =
        report["accuracy_per_exit"].as_array().unwrap().iter().map(|a| a.as_f64().unwrap()).collect();
    assert!(accuracies[0] >= 0.7 && accuracies.iter().any(|a| *a >= 0.85), "{accuracies:?}");
}

#[test]
fn a_profile_tells_what_layers_and_segments_take() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("profile.json");
    let bundle = bundle().to_str().unwrap();
    let report = edgent(&["profile", bundle, "--quick", "--out", out.to_str().unwrap()]);
    let profile: Value = serde_json::from_str(&std::fs::read_to_string(&out).unwrap()).unwrap();
    for read in [&report, &profile] {
        assert_eq!(read["format"], 1);
        assert_eq!(read["host_build"], concat!("edgent ", env!("CARGO_PKG_VERSION")));
        for layer_type in ["conv", "relu", "pool", "lrn", "fully-connected", "other"] {
            for set in ["paper", "work"] {
                let fitted = &read["layers"][layer_type][set];
                let (features, coefficients) = (&fitted["features"], &fitted["coefficients_us"]);
                assert_eq!(features.as_array().unwrap().len(), coefficients.as_array().unwrap().len(), "{layer_type}");
                assert!(fitted["samples"].as_u64().unwrap() >= 20, "{layer_type}: {fitted}");
                assert!(fitted["r2"].is_f64() && fitted["median_relative_error"].is_f64(), "{layer_type}: {fitted}");
            }
        }
        assert!(read["call_us"].is_f64() && read["codec_us_per_mib"].is_f64() && read["load"]["work"]["r2"].is_f64());
    }
    let inspected = edgent(&["inspect", bundle]);
    assert_eq!(profile["bundle"]["digest"], inspected["digest"]);
    let count = |value: &Value| value.as_array().unwrap().len();
    let compared = &report["comparison"];
    assert_eq!(count(&profile["bundle"]["segments"]), count(&inspected["segments"]));
    assert_eq!(count(&compared["segments"]), count(&inspected["segments"]));
    assert_eq!(count(&compared["exits"]), 5);
    assert!(compared["load"]["p50_us"].is_f64() && compared["load"]["predicted_us"]["work"].is_f64());
    // The same file says what an edge, or a device, takes.
    let file = out.to_str().unwrap();
    let plan = edgent(&[
        "plan",
        bundle,
        "--edge-profile",
        file,
        "--device-profile",
        file,
        "--rate-bps",
        "0",
        "--deadline-ms",
        "1e3",
    ]);
    let exit = &compared["exits"].as_array().unwrap()[4];
    let (planned, measured) = (plan["plan"]["device_us"].as_f64().unwrap(), exit["p50_us"].as_f64().unwrap());
    assert!(plan["plan"]["exit"] == "exit5" && (planned / measured - 1.0).abs() < 0.2, "{planned} of {measured} us");
    for row in compared["segments"].as_array().unwrap().iter().chain(compared["exits"].as_array().unwrap()) {
        assert!(row["p50_us"].as_f64() <= row["p90_us"].as_f64() && row["runs"].as_u64().unwrap() > 0, "{row}");
        assert!(row["predicted_us"]["work"].is_f64() && row["relative_error"]["paper"].is_f64(), "{row}");
    }
}

#[test]
fn building_twice_gives_the_same_bundle() {
    let again = Path::new(env!("CARGO_TARGET_TMPDIR")).join("again");
    let built = edgent(&[
        "build",
        "models/branchy-alexnet/branchy-alexnet.onnx",
        "--out",
        again.to_str().unwrap(),
        "--samples",
        "50",
    ]);
    let dir = bundle().to_str().unwrap();
    let digest = built["digest"].as_str().unwrap();
    for path in
        [dir, &format!("{dir}@branchy-alexnet"), &format!("{dir}@branchy-alexnet:1"), &format!("{dir}@{digest}")]
    {
        assert_eq!(edgent(&["inspect", path])["digest"], digest, "{path}");
    }
    let (code, _, stderr) = run(&["inspect", &format!("{dir}@branchy-alexnet:2")]);
    assert!(code == 2 && stderr.contains("it has branchy-alexnet"), "{stderr}");
}

#[test]
fn bad_input_is_named_and_exits_with_2() {
    let here = project();
    let file = |name: &str| here.join(name).to_str().unwrap().to_owned();
    let (manifest, onnx, missing) =
        (file("Cargo.toml"), file("models/branchy-alexnet/branchy-alexnet.onnx"), file("no-such"));
    let model = bundle().to_str().unwrap();
    let cases: [(&[&str], &str); 14] = [
        (&["build", &missing, "--out", "x"], "no-such"),
        (&["inspect", &missing], "no-such"),
        (&["verify", &missing], "no-such"),
        (&["profile", &missing, "--quick"], "no-such"),
        (&["infer", &manifest], "127.0.0.1:7400"),
        (&["infer", "--deadline-ms", "-1", &onnx], "deadline"),
        (&["infer"], "IMAGE"),
        (&["plan", &missing], "no-such"),
        (&["plan", model, "--device-profile", &manifest], "Cargo.toml"),
        (&["bench", "deadline", "--strategy", "magic"], "edge-only"),
        (&["plan", model, "--slowdown", "1e30"], "slowdown"),
        (&["plan", model, "--rtt-ms", "-0.5"], "round trip"),
        (&["demo", "--deadline-ms", "1e23"], "deadline"),
        (&["conquer"], "conquer"),
    ];
    for (arguments, named) in cases {
        let (code, stdout, stderr) = run(arguments);
        let expected = if named == "127.0.0.1:7400" { 1 } else { 2 };
        assert_eq!(code, expected, "{arguments:?}: {stderr}");
        assert!(stderr.contains(named), "{arguments:?} says {stderr:?}, not {named:?}");
        assert_eq!(stdout, "");
    }
}

#[test]
fn a_damaged_bundle_is_not_served() {
    let damaged = Path::new(env!("CARGO_TARGET_TMPDIR")).join("damaged");
    let _ = std::fs::remove_dir_all(&damaged);
    copy(bundle(), &damaged);
    let inspected = edgent(&["inspect", damaged.to_str().unwrap()]);
    let digest = inspected["segments"][3]["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    let blob = damaged.join("blobs/sha256").join(&digest);
    let mut bytes = std::fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    let host = Command::new(EDGENT_HOST)
        .args(["--role", "edge", "--listen", "127.0.0.1:0", "--model"])
        .arg(&damaged)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&host.stderr).into_owned();
    assert!(!host.status.success());
    assert!(said.contains(&digest) && said.contains("damaged"), "{said}");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target)
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn the_demo_answers_every_request_and_leaves_a_report() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("demo");
    let demo = edgent(&["demo", "--seconds", "6", "--out", out.to_str().unwrap()]);
    assert!(demo["requests"].as_u64().unwrap() >= 10, "{demo}");
    assert_eq!(demo["lost"], 0);
    assert_eq!(demo["errors"], 0);
    assert_eq!(demo["answered"], demo["requests"]);
    for key in
        ["deadline_ms", "deadline_hit_ratio", "accuracy", "exits", "cuts", "bandwidth_changes", "plan_changes", "swaps"]
    {
        assert!(!demo[key].is_null(), "{key} is missing: {demo}");
    }
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("Emulated"));
    assert!(out.join("timeline.svg").exists());
}

/// A device without the memory for the whole network answers alone by an exit that it can hold; with an edge it
/// runs what it holds, and the better exits' other segments run there.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_holds_what_its_memory_allows() {
    let model = bundle().to_str().unwrap();
    let start = ["--role", "device", "--listen", "127.0.0.1:0", "--model", model, "--memory-max-mib"];
    let output = Command::new(EDGENT_HOST).args(start).arg("0.5").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("0.5 MiB may be used, but the smallest exit takes"), "{said}");

    let edge_host = edge().await;
    let alone = device(&["--memory-max-mib", "3", "--deadline-ms", "10000"]).await;
    let address = edge_host.address().to_string();
    // The input may not leave: what the edge runs, the device has begun.
    let more = ["--memory-max-mib", "3", "--deadline-ms", "10000", "--edge", &address, "--keep-input"];
    let with_edge = device(&more).await;
    ask_until(&with_edge, "answered by both", |answer| answer["exit"] == best_exit() && answer["placement"] == "split");
    assert!(ask(&alone).iter().all(|answer| answer["exit"] != best_exit() && answer["degraded"].is_null()));
}

/// While requests go on, a version is pushed to the device and comes into force on both hosts; a bad one does not;
/// the edge is told to go back, and the device follows it; and a restart begins with what was in force.
#[tokio::test(flavor = "multi_thread")]
async fn versions_come_into_force_while_requests_go_on() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let (second, stores) = (path("second"), [path("edge"), path("device")]);
    // Other samples measure another accuracy: another version.
    edgent(&["build", "models/branchy-alexnet/branchy-alexnet.onnx", "--out", &second, "--samples", "20"]);
    let first_digest = edgent(&["inspect", bundle().to_str().unwrap()])["digest"].clone();
    let second_digest = edgent(&["inspect", &second])["digest"].clone();
    assert_ne!(first_digest, second_digest);
    let model = bundle().to_str().unwrap();
    let common = ["--listen", "127.0.0.1:0", "--model", model, "--store"];
    let arguments = [&["--role", "edge"], &common[..], &[&stores[0]]].concat();
    let edge = HostProcess::start(Path::new(EDGENT_HOST), &arguments, true).await.unwrap();
    let edge_address = edge.address().to_string();
    let arguments = [&["--role", "device", "--edge", &edge_address], &common[..], &[&stores[1]]].concat();
    let device = HostProcess::start(Path::new(EDGENT_HOST), &arguments, true).await.unwrap();
    let device_address = device.address().to_string();
    let in_force = |address: &str| {
        let status = edgent(&["status", address]);
        let versions = status["versions"].as_array().unwrap();
        versions.iter().find(|version| version["current"] == true).unwrap()["digest"].clone()
    };
    ask_until(&device, "by the first", |answer| answer["model"] == first_digest && answer["degraded"].is_null());

    let pushed = edgent(&["push", &second, "--to", &device_address]);
    assert_eq!((&pushed["version"], &pushed["digest"]), (&Value::from(2), &second_digest));
    assert!(ask(&device).iter().all(|answer| answer["model"] == second_digest), "it was said to be in force");
    assert_eq!(in_force(&edge_address), second_digest);

    // A network for other inputs, under another name.
    let branching = path("branching");
    edgent(&["build", "host/nn/tests/data/branching.onnx", "--out", &branching]);
    let (code, _, said) = run(&["push", &branching, "--to", &device_address]);
    assert!(code == 1 && said.contains("keeps the version it has") && said.contains("another model"), "{said}");
    assert!(ask(&device).iter().all(|answer| answer["model"] == second_digest));

    edgent(&["rollback", "--to", &edge_address]);
    ask_until(&device, "by the first again", |answer| answer["model"] == first_digest);
    assert_eq!(in_force(&device_address), first_digest);

    assert!(device.end().await.unwrap().success());
    edgent(&["push", &second, "--to", &edge_address]);
    let arguments = [&["--role", "edge"], &common[..], &[&stores[0]]].concat();
    edge.kill().await.unwrap();
    let edge = HostProcess::start(Path::new(EDGENT_HOST), &arguments, true).await.unwrap();
    assert_eq!(in_force(&edge.address().to_string()), second_digest, "whatever --model says");
}

/// What is pushed to a host without a store is refused, with what to do about it.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_a_store_keeps_its_version() {
    let device = device(&[]).await;
    let model = bundle().to_str().unwrap();
    let (code, _, said) = run(&["push", model, "--to", &device.address().to_string()]);
    assert!(code == 1 && said.contains("start it with --store DIR"), "{said}");
}

/// A network that branches is cut through several tensors at once, and they cross to the edge together.
#[tokio::test(flavor = "multi_thread")]
async fn several_tensors_cross_one_cut() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("branching");
    let model = dir.to_str().unwrap();
    edgent(&["build", "host/nn/tests/data/branching.onnx", "--out", model]);
    let verified = edgent(&["verify", model]);
    assert_eq!(verified["cuts_bit_exact"], verified["cuts_checked"]);

    let bundle = Bundle::open(&dir).unwrap();
    let deployment = Deployment::prepare(&bundle, &Engine::new().unwrap(), 1.0).unwrap();
    let exit = 1;
    let along: Vec<usize> = deployment.network().exits()[exit].boundaries.clone();
    let cut = along.iter().position(|boundary| bundle.manifest().boundaries[*boundary].tensors.len() == 3).unwrap();
    let input = synthetic::noise(deployment.input(), 5).unwrap();
    let whole = deployment.run(exit, 0..along.len() - 1, vec![input.clone()], &Stop::never()).unwrap().output;
    let crossing = deployment.run(exit, 0..cut, vec![input], &Stop::never()).unwrap().output;

    let arguments = ["--role", "edge", "--listen", "127.0.0.1:0", "--model", model];
    let edge = HostProcess::start(Path::new(EDGENT_HOST), &arguments, true).await.unwrap();
    let link = Link::start().unwrap();
    let (address, hello) = (edge.address().to_string(), Hello::new(Role::Tool, "test"));
    let client = link.connect(&address, hello, Limits::default()).await.unwrap();
    let model = Digest(deployment.digest().0);
    let (direction, codec) = (Direction::DeviceFirst, Codec::Raw);
    let plan = Plan { epoch: 1, model, exit: exit as u16, cut: cut as u16, direction, codec };
    client.install_plan(plan).await.unwrap();
    let (activation, beside) = encode_all(&crossing, Codec::Raw).unwrap();
    assert_eq!(beside.len(), 2);
    let request = InferRequest {
        id: 1,
        model,
        epoch: 1,
        from_segment: cut as u16,
        to_segment: (along.len() - 1) as u16,
        reply_codec: Codec::Raw,
        remaining_budget_us: PATIENCE.as_micros() as u64,
        activation,
        beside,
    };
    let answered = client.infer(request.clone()).await.unwrap();
    assert_eq!(answered.activation.bytes, whole[0].bytes());
    let one_short = InferRequest { beside: request.beside[..1].to_vec(), ..request };
    let refused = client.infer(one_short).await.unwrap_err().to_string();
    assert!(refused.contains("2 tensors came, where 3 cross"), "{refused}");
}

/// A stranger's network, as it comes: a size is open, several tensors go in and come out, one of them of bool, and two
/// operators are such that NNEF has no words for them. It is built without a word about it but that size, gives what
/// onnxruntime gives at every cut, and answers over the link with what it gives.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_of_several_inputs_and_outputs_is_served() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("several");
    let (model, data) = (dir.to_str().unwrap(), "host/nn/tests/data/several");
    let (onnx, golden) = (format!("{data}/several.onnx"), project().join(data).join("several.safetensors"));
    let (code, _, said) = run(&["build", &onnx, "--out", model]);
    assert!(code == 2 && said.contains("'x' [rows,8]") && said.contains("--dim"), "{said}");
    let (code, _, said) = run(&["build", &onnx, "--out", model, "--dim", "columns=3"]);
    assert!(code == 2 && said.contains("columns") && said.contains("rows"), "{said}");
    let built = edgent(&["build", &onnx, "--out", model, "--dim", "rows=3"]);
    assert_eq!(built["exits"], 1);
    assert!(built["formats"]["nnef"].as_u64() >= Some(1) && built["formats"]["onnx"] == 1, "{built}");
    let verified = edgent(&["verify", model, "--golden", golden.to_str().unwrap()]);
    assert_eq!((&verified["golden_inputs"], &verified["cuts_close"]), (&json!(2), &verified["cuts_checked"]));
    assert!(verified["tensors_compared"].as_u64() >= Some(4), "{verified}");

    let bundle = Bundle::open(&dir).unwrap();
    assert_eq!(bundle.manifest().format, 2);
    let deployment = Deployment::prepare(&bundle, &Engine::new().unwrap(), 1.0).unwrap();
    let golden = Golden::read(&std::fs::read(golden).unwrap(), bundle.manifest(), deployment.tensors()).unwrap();
    let arguments = ["--role", "edge", "--listen", "127.0.0.1:0", "--model", model];
    let edge = HostProcess::start(Path::new(EDGENT_HOST), &arguments, true).await.unwrap();
    let edge_address = edge.address().to_string();
    let arguments = ["--role", "device", "--listen", "127.0.0.1:0", "--model", model, "--edge", &edge_address];
    let device = HostProcess::start(Path::new(EDGENT_HOST), &arguments, true).await.unwrap();
    let link = Link::start().unwrap();
    let (address, hello) = (device.address().to_string(), Hello::new(Role::Tool, "test"));
    let client = link.connect(&address, hello, Limits::default()).await.unwrap();
    let described = client.describe().await.unwrap().models.remove(0);
    let names = |tensors: &[TensorDescription]| tensors.iter().map(|tensor| tensor.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&described.inputs), ["x", "state"]);
    assert_eq!(names(&described.exits[0].outputs), ["y", "new_state", "is_high"]);
    for index in 0..golden.count {
        let inputs: Vec<_> = golden.at(&[0, 1], index).flatten().cloned().collect();
        let (input, beside) = encode_all(&inputs, Codec::Raw).unwrap();
        let request = AskRequest { id: 1, model: String::new(), deadline_us: 1_000_000, input, beside };
        let answer = client.ask(request.clone()).await.unwrap();
        assert!(answer.scores.is_empty() && answer.outputs.len() == 3);
        let outputs = bundle.manifest().outputs(0);
        for ((tensor, given), expected) in outputs.iter().zip(&answer.outputs).zip(golden.at(outputs, index)) {
            let given = decode(given, &deployment.tensors()[*tensor]).unwrap();
            assert!(difference(&given, expected.unwrap()).unwrap() < 1e-6, "{given:?} is not {expected:?}");
        }
        let named = [("x", &inputs[0]), ("state", &inputs[1])];
        let views = named
            .map(|(name, tensor)| (name, TensorView::new(Dtype::F32, tensor.dims().to_vec(), tensor.bytes()).unwrap()));
        let file = dir.with_extension("safetensors");
        std::fs::write(&file, safetensors::serialize(views, None).unwrap()).unwrap();
        let asked = edgent(&["infer", file.to_str().unwrap(), "--device", &address]);
        let high = &asked["answers"][0]["outputs"][2];
        assert_eq!((&high["name"], &high["dims"]), (&json!("is_high"), &json!([3, 4])), "{asked}");
        let refused = client.ask(AskRequest { beside: vec![], ..request }).await.unwrap_err().to_string();
        assert!(refused.contains("1 tensors came, where 2 cross"), "{refused}");
    }
}
