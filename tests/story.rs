//! The user's story: a bundle is built, two hosts are started, images are answered, things go wrong,
//! and images are still answered. Two real processes, a real model, real images.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/tool.rs"]
mod tool;

use bytes::Bytes;
use edgent_bundle::{Bundle, Draft, Manifest};
use edgent_cli::hosts::HostProcess;
use edgent_cli::relay::{Relay, Shape};
use edgent_cli::trace::Trace;
use edgent_link::{
    AskRequest, Codec, Digest, Direction, Hello, InferRequest, Limits, Link, Plan, Role, Security, Signature,
    TensorDescription,
};
use edgent_nn::{ElementType, Stop, Tensor, synthetic};
use edgent_runtime::codec::{decode, encode_all};
use edgent_runtime::confine::Confinement;
use edgent_runtime::golden::{Golden, difference};
use edgent_runtime::trial::{Bounds, Job, TRY};
use edgent_runtime::{Deployment, LATE, tell_signatures};
use edgent_sandbox::Engine;
use rustix::process::Signal;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tool::{edgent, project, run};

const EDGENT: &str = env!("CARGO_BIN_EXE_edgent");
const EDGENT_HOST: &str = env!("CARGO_BIN_EXE_edgent-host");

/// Long enough for a busy machine, short enough to notice a hang.
const PATIENCE: Duration = Duration::from_secs(60);

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
    let mut edge_host = edge().await;
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
    relay.follow(&Trace::constant(100_000));
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

fn edges_of(device: &HostProcess) -> Vec<Value> {
    edgent(&["status", &device.address().to_string()])["edges"].as_array().unwrap().clone()
}

/// What becomes of a stream of images while something happens that is waited for.
fn ask_while(device: &HostProcess, happens: impl FnOnce()) -> Vec<Value> {
    let address = device.address().to_string();
    let images: Vec<String> = examples().into_iter().map(|(path, _)| path).cycle().take(300).collect();
    let answered = || edgent(&["status", &address])["answered"].as_u64().unwrap();
    let before = answered();
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let stream = ["infer", "--device", &address].into_iter().chain(images.iter().map(String::as_str));
            edgent(&stream.collect::<Vec<_>>())["answers"].as_array().unwrap().clone()
        });
        wait_until("there is load", || answered() >= before + 20);
        happens();
        asking.join().unwrap()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_goes_to_its_second_edge_and_comes_back_to_the_first() {
    let (mut first, second) = (edge().await, edge().await);
    let addresses = [&first, &second].map(|edge| edge.address().to_string());
    let [one, two] = &addresses;
    let slow = ["--emulate-slowdown", "30", "--deadline-ms", "2000"];
    let device = device(&[&["--edge", one, "--edge", two], &slow[..]].concat()).await;
    let is_in_force = |place: usize| {
        let (edges, other) = (edges_of(&device), 1 - place);
        edges[place]["in_force"] == true && (edges[other]["agreed"] == true || edges[other]["connected"] == false)
    };
    wait_until("the first edge is in force, and the second one ready", || {
        is_in_force(0) && edges_of(&device)[1]["agreed"] == true
    });
    let by_an_edge = |answer: &Value| answer["placement"] != "device-only" && answer["degraded"].is_null();
    ask_until(&device, "with an edge", by_an_edge);

    let mut killed = Some(&mut first);
    let answers = ask_while(&device, || {
        let first = killed.take().unwrap();
        first.signal(Signal::KILL).unwrap();
        wait_until("the second edge is in force", || is_in_force(1));
    });
    assert_eq!(answers.len(), 300, "nothing is lost");
    assert!(answers.iter().all(|answer| answer["deadline_met"] == true), "{answers:?}");
    // A plan for the device alone is none: on a busy machine, an edge seems slow until its end is seen.
    let as_planned = |answer: &Value| answer["degraded"].is_null();
    assert!(answers.iter().all(as_planned), "the second edge knew the plan: {answers:?}");
    first.kill().await.unwrap();

    let model = bundle().to_str().unwrap();
    let again = ["--role", "edge", "--listen", one, "--model", model];
    let again = HostProcess::start(Path::new(EDGENT_HOST), &again, true).await.unwrap();
    wait_until("it comes back to the first", || is_in_force(0) && edges_of(&device)[1]["agreed"] == true);
    // One that is told to end says so before it goes.
    let answers = ask_while(&device, || {
        again.signal(Signal::TERM).unwrap();
        wait_until("the second edge is in force", || is_in_force(1));
    });
    assert!(answers.iter().all(|answer| as_planned(answer) && answer["deadline_met"] == true), "{answers:?}");
    assert!(again.ended().await.unwrap().success(), "an edge that is told to end ends in good order");
    assert!(device.end().await.unwrap().success());
}

/// Where the edge hangs, the device goes on from the activation that it has.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_goes_on_from_the_cut_when_the_edge_hangs() {
    let bundle = Bundle::open(bundle()).unwrap();
    let Manifest { segments, exits, .. } = bundle.manifest();
    let path = &exits.iter().find(|exit| exit.name == best_exit()).unwrap().path;
    // A device takes 30 ms for each segment; all but the last three are before the cut.
    let times = vec![json!({ "p50_us": 30e3, "p90_us": 30e3, "runs": 1 }); segments.len()];
    let profile = json!({
        "format": 1, "host_build": "a test", "call_us": 0.0, "codec_us_per_mib": 0.0, "layers": {}, "load": {},
        "bundle": { "digest": bundle.digest().to_string(), "segments": times },
    });
    let (deadline_ms, cut) = (30 * path.len() + 60, path.len() - 3);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, profile.to_string()).unwrap();

    let edge = edge().await;
    let (address, profile) = (edge.address().to_string(), file.path().to_str().unwrap());
    let slow = ["--emulate-profile", profile, "--workers", "1", "--deadline-ms", "60000"];
    let device = device(&[&["--edge", &address], &slow[..]].concat()).await;
    let (address, (image, _)) = (device.address().to_string(), &examples()[0]);
    let infer = |deadline_ms: usize| {
        let deadline_ms = deadline_ms.to_string();
        edgent(&["infer", "--device", &address, "--deadline-ms", &deadline_ms, image])["answers"][0].clone()
    };
    wait_until("with the edge", || infer(60_000)["placement"] != "device-only");
    edgent(&["pin", "--to", &address, "--exit", &best_exit(), "--cut", &cut.to_string()]);
    wait_until("as pinned", || infer(60_000)["cut"] == cut);

    let pid = rustix::process::Pid::from_raw(edge.pid().unwrap() as i32).unwrap();
    rustix::process::kill_process(pid, Signal::STOP).unwrap();
    let answer = infer(deadline_ms);
    rustix::process::kill_process(pid, Signal::CONT).unwrap();
    assert!(answer["degraded"].as_str().is_some_and(|why| why.starts_with(LATE)), "{answer}");
    assert_eq!(answer["placement"], "device-only", "{answer}");
    // The best exit, or on a busy machine the one before; were the first segments run again, there would be time for no
    // more than those that are left.
    let segments = answer["cut"].as_u64().unwrap() as usize;
    assert!(segments > path.len() - cut, "an early exit of {segments} segments: {answer}");
    assert!(edge.end().await.unwrap().success() && device.end().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_pins_a_plan() {
    let edge_host = edge().await;
    let device = device(&["--edge", &edge_host.address().to_string(), "--deadline-ms", "10000"]).await;
    let address = device.address().to_string();
    ask_until(&device, "with the edge", |answer| answer["degraded"].is_null());
    for (exit, cut, order) in [("exit2", "3", "device-first"), ("1", "2", "edge-first"), ("exit3", "0", "device-first")]
    {
        let mut arguments = vec!["pin", "--to", &address, "--exit", exit, "--cut", cut];
        arguments.extend((order == "edge-first").then_some("--edge-first"));
        let pinned = edgent(&arguments);
        assert_eq!((&pinned["cut"], &pinned["direction"]), (&json!(cut.parse::<u16>().unwrap()), &json!(order)));
        for answer in ask(&device) {
            for what in ["exit", "cut", "direction", "epoch"] {
                assert_eq!(answer[what], pinned[what], "{what} of {answer}");
            }
        }
    }
    for (arguments, why) in [
        (&["--exit", "exit2", "--cut", "99"][..], "exit 1 has cuts 0 to 4, and not 99"),
        (&["--exit", "best", "--cut", "1"], "no exit 'best'; there are exit1, exit2"),
        (&["--exit", "exit2", "--cut", "3", "--codec", "png"], "as things are, that plan cannot be run"),
        (&["--exit", "exit2"], "--cut"),
    ] {
        let (code, _, said) = run(&[&["pin", "--to", &address], arguments].concat());
        assert!(code != 0 && said.contains(why), "{arguments:?}: {code} {said}");
    }
    // It chooses again, and with so much time, the best exit.
    edgent(&["pin", "--to", &address, "--off"]);
    ask_until(&device, "as chosen", |answer| answer["exit"] == best_exit());
    // Alone, a plan that needs an edge is none.
    edge_host.end().await.unwrap();
    ask_until(&device, "alone", |answer| answer["degraded"] == "no edge is connected");
    let (code, _, said) = run(&["pin", "--to", &address, "--exit", "exit2", "--cut", "3"]);
    assert!(code == 1 && said.contains("there is no edge"), "{said}");
    let alone = edgent(&["pin", "--to", &address, "--exit", "exit2", "--cut", "4"]);
    assert!(ask(&device).iter().all(|answer| answer["exit"] == "exit2" && answer["epoch"] == alone["epoch"]));
    assert!(device.end().await.unwrap().success());
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

/// More at once than can be done in any time that an answer is worth waiting for: who waits too long is told, and the
/// others are answered.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_for_too_long_are_told_so() {
    let device = device(&["--workers", "1", "--emulate-slowdown", "600"]).await;
    let link = Link::start(Security::plain_on_loopback(None)).unwrap();
    let (address, hello) = (device.address().to_string(), Hello::new(Role::Tool, "test"));
    let client = link.connect(&address, hello, Limits::default()).await.unwrap();
    let image = Tensor::from_bytes(ElementType::U8, &[1, 3, 64, 64], &[7; 3 * 64 * 64]).unwrap();
    let exits = Bundle::open(bundle()).unwrap().manifest().exits.clone();
    let accuracy_floor = exits.iter().map(|exit| exit.accuracy).fold(0.0, f64::max);
    let mut asking = tokio::task::JoinSet::new();
    for id in 0..24 {
        let (client, input) = (client.clone(), edgent_runtime::codec::encode(&image, Codec::Raw));
        let (model, beside) = (String::new(), Vec::new());
        let request = AskRequest { id, model, deadline_us: 1_000, accuracy_floor, input, beside, trace: None };
        asking.spawn(async move { client.ask(request).await });
    }
    let (mut answered, mut refused) = (0, 0);
    while let Some(became) = asking.join_next().await {
        match became.unwrap() {
            Ok(answer) => {
                assert!(!answer.deadline_met && answer.degraded.is_some(), "{answer:?}");
                answered += 1;
            }
            Err(error) => {
                // At once, or when it turned out.
                let is_told = ["it cannot be in time here", "asked for more than it can do"];
                assert!(is_told.iter().any(|why| error.to_string().contains(why)), "{error}");
                refused += 1;
            }
        }
    }
    assert!(answered >= 2 && refused >= 2, "{answered} answered, {refused} refused");
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
    let path = inspected["exits"][4]["path"].as_array().unwrap();
    let segment_us = |index: &Value| &profile["bundle"]["segments"][index.as_u64().unwrap() as usize]["p50_us"];
    let measured: f64 = path.iter().map(|index| segment_us(index).as_f64().unwrap()).sum();
    let planned = plan["plan"]["device_us"].as_f64().unwrap();
    assert!(plan["plan"]["exit"] == "exit5" && (planned / measured - 1.0).abs() < 1e-9, "{planned} of {measured} us");
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
    assert_eq!((&demo["swaps"], demo["versions"].as_object().unwrap().len()), (&Value::from(1), 2), "{demo}");
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("Emulated"));
    for event in ["version 2 is in force on both hosts", "the edge is killed", "an edge is there again"] {
        assert!(page.contains(event), "{event}");
    }
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
    let (second, edge_store) = (path("second"), path("edge"));
    let (first_digest, second_digest) = (digest_of(bundle().to_str().unwrap()), build_second(&second));
    let (mut edge, device) = hosts_with_stores(scratch.path(), "127.0.0.1:0").await;
    let (edge_address, device_address) = (edge.address().to_string(), device.address().to_string());
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

    // A manifest that does not come as it was announced.
    let link = Link::start(Security::plain_on_loopback(None)).unwrap();
    let client = link.connect(&device_address, Hello::new(Role::Tool, "test"), Limits::default()).await.unwrap();
    for (total, offset, said) in [
        (10, 5, "is here up to byte 0 of 10"),
        (2, 0, "is here up to byte 0 of 2"),
        (3, 0, "is not the manifest"),
        (u64::MAX, 0, "a manifest of 18446744073709551615 bytes, over"),
    ] {
        let refused = client.offer_piece(Digest([9; 32]), total, offset, Bytes::from_static(b"abc")).await;
        assert!(refused.as_ref().is_err_and(|e| e.to_string().contains(said)), "{said}: {refused:?}");
    }

    edgent(&["rollback", "--to", &edge_address]);
    ask_until(&device, "by the first again", |answer| answer["model"] == first_digest);
    assert_eq!(in_force(&device_address), first_digest);

    assert!(device.end().await.unwrap().success());
    edgent(&["push", &second, "--to", &edge_address]);
    edge.kill().await.unwrap();
    let edge = host_with_store(&edge_store, &["--role", "edge", "--listen", "127.0.0.1:0"]).await;
    assert_eq!(in_force(&edge.address().to_string()), second_digest, "whatever --model says");
}

/// A version answers half of the requests before it comes into force. One that takes worse exits does not come into
/// force, nor one that nobody asked; and every request is answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_tried_on_some_of_the_requests() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let (good, worse) = (path("good"), path("worse"));
    let (first_digest, good_digest) = (digest_of(bundle().to_str().unwrap()), build_second(&good));
    let (edge, device) = hosts_with_stores(scratch.path(), "127.0.0.1:0").await;
    let device_address = device.address().to_string();

    let first = Bundle::open(bundle()).unwrap();
    let (mut manifest, mut draft) = (first.manifest().clone(), Draft::default());
    manifest.exits.iter_mut().for_each(|exit| exit.accuracy /= 2.0);
    for blob in first.sealed().blobs() {
        draft.add(first.blob(&blob).unwrap());
    }
    draft.write(Path::new(&worse), &manifest).unwrap();

    let push = |bundle: &str, seconds: &str, asking: bool| {
        let arguments = ["push", bundle, "--to", &device_address, "--trial", "0.5", "--trial-s", seconds, "--json"];
        let pushing = Command::new(EDGENT).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let (mut pushing, mut answers, mut statuses) = (pushing.unwrap(), Vec::new(), Vec::new());
        while pushing.try_wait().unwrap().is_none() {
            if asking {
                answers.extend(ask(&device));
            }
            statuses.push(edgent(&["status", &device_address]));
        }
        let output = pushing.wait_with_output().unwrap();
        let answered_by = |digest: &Value| answers.iter().filter(|answer| answer["model"] == *digest).count();
        let was_on_trial = statuses.iter().any(|status| status["versions"].to_string().contains(r#""on_trial":true"#));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said, answered_by(&first_digest), answers.len(), was_on_trial)
    };
    let (taken, said, by_first, all, was_on_trial) = push(&worse, "60", true);
    assert!(!taken && said.contains("its trial was ended: it takes exits of accuracy 0.4"), "{said}");
    assert!(was_on_trial && by_first < all, "{by_first} of {all}");
    let (taken, said, ..) = push(&good, "0.1", false);
    assert!(!taken && said.contains("it got 0 requests; for less than 10"), "{said}");
    assert!(ask(&device).iter().all(|answer| answer["model"] == first_digest));
    assert_eq!(in_force(&edge.address().to_string()), first_digest, "the edge prepares, and waits for the verdict");
    let (taken, said, by_first, all, was_on_trial) = push(&good, "5", true);
    assert!(taken && was_on_trial && by_first < all, "{by_first} of {all}: {said}");
    assert!(ask(&device).iter().all(|answer| answer["model"] == good_digest));
    assert_eq!(in_force(&edge.address().to_string()), good_digest);

    let (code, _, said) = run(&["push", &good, "--to", &edge.address().to_string(), "--trial", "0.5"]);
    assert!(code == 1 && said.contains("push the version to a device"), "{said}");
    let (code, _, said) = run(&["push", &good, "--to", &device_address, "--trial", "1.5"]);
    assert!(code == 2 && said.contains("--trial must be over 0"), "{said}");
}

/// Hosts agree again on what is in force after one was told while they did not see each other, after a bundle's
/// folder was written anew and the host was told to look, and when a folder is watched.
#[tokio::test(flavor = "multi_thread")]
async fn hosts_follow_what_was_told_meanwhile() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let (second, model, edge_store) = (path("second"), path("model"), path("edge"));
    let (first_digest, second_digest) = (digest_of(bundle().to_str().unwrap()), build_second(&second));
    copy(bundle(), Path::new(&model));
    let edge = host_with_store(&edge_store, &["--role", "edge", "--listen", "127.0.0.1:0"]).await;
    let (edge_address, device_store) = (edge.address().to_string(), path("device"));
    let device = ["--role", "device", "--listen", "127.0.0.1:0", "--edge", &edge_address, "--store", &device_store];
    let arguments = [&device[..], &["--model", &model]].concat();
    let device = HostProcess::start(Path::new(EDGENT_HOST), &arguments, true).await.unwrap();
    let device_address = device.address().to_string();
    ask_until(&device, "by the first", |answer| answer["model"] == first_digest && answer["degraded"].is_null());
    edgent(&["push", &second, "--to", &edge_address]);
    ask_until(&device, "by the second", |answer| answer["model"] == second_digest && answer["degraded"].is_null());

    // The edge is told to go back at an address that the device does not know, and returns to the one that it does.
    assert!(edge.end().await.unwrap().success());
    let elsewhere = host_with_store(&edge_store, &["--role", "edge", "--listen", "127.0.0.1:0"]).await;
    edgent(&["rollback", "--to", &elsewhere.address().to_string()]);
    assert!(ask(&device).iter().all(|answer| answer["model"] == second_digest));
    assert!(elsewhere.end().await.unwrap().success());
    let _edge = host_with_store(&edge_store, &["--role", "edge", "--listen", &edge_address]).await;
    ask_until(&device, "by the first again", |answer| answer["model"] == first_digest && answer["degraded"].is_null());
    assert_eq!(in_force(&device_address), first_digest);

    // What lies in the folder now is another version.
    std::fs::remove_dir_all(&model).unwrap();
    copy(Path::new(&second), Path::new(&model));
    device.signal(Signal::HUP).unwrap();
    ask_until(&device, "by the second again", |answer| answer["model"] == second_digest);
    wait_until("the edge puts it in force, too", || in_force(&edge_address) == second_digest);

    let watched = path("watched");
    let watching = ["watch", &watched, "--to", &edge_address];
    let _watching = Killed(Command::new(EDGENT).args(watching).stderr(Stdio::null()).spawn().unwrap());
    copy(bundle(), Path::new(&watched));
    ask_until(&device, "by what was put into the folder", |answer| answer["model"] == first_digest);
}

/// A process that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
    }
}

/// Builds another version of the model, the network trained further. Gives its digest.
fn build_second(dir: &str) -> Value {
    edgent(&["build", "models/branchy-alexnet/retrained.onnx", "--out", dir, "--samples", "20"]);
    let digest = digest_of(dir);
    assert_ne!(digest, digest_of(bundle().to_str().unwrap()));
    digest
}

fn digest_of(bundle: &str) -> Value {
    edgent(&["inspect", bundle])["digest"].clone()
}

/// What is in force in a host's store.
fn in_force(address: &str) -> Value {
    let status = edgent(&["status", address]);
    let versions = status["versions"].as_array().unwrap();
    versions.iter().find(|version| version["current"] == true).unwrap()["digest"].clone()
}

async fn host_with_store(store: &str, arguments: &[&str]) -> HostProcess {
    let arguments = [&["--model", bundle().to_str().unwrap(), "--store", store], arguments].concat();
    HostProcess::start(Path::new(EDGENT_HOST), &arguments, true).await.unwrap()
}

/// An edge that listens there, and a device of it.
async fn hosts_with_stores(scratch: &Path, listen: &str) -> (HostProcess, HostProcess) {
    let store = |name: &str| scratch.join(name).to_str().unwrap().to_owned();
    let edge = host_with_store(&store("edge"), &["--role", "edge", "--listen", listen]).await;
    let address = edge.address().to_string();
    let device = ["--role", "device", "--listen", "127.0.0.1:0", "--edge", &address];
    let device = host_with_store(&store("device"), &device).await;
    (edge, device)
}

/// A version of the bundle that answers as it does and is another one; where it lies.
fn version(number: u32, dir: &Path) -> String {
    let (first, mut draft) = (Bundle::open(bundle()).unwrap(), Draft::default());
    let mut manifest = first.manifest().clone();
    manifest.exits[0].accuracy += f64::from(number) * 1e-9;
    for blob in first.sealed().blobs() {
        draft.add(first.blob(&blob).unwrap());
    }
    let dir = dir.join(format!("version-{number}"));
    draft.write(&dir, &manifest).unwrap();
    dir.to_str().unwrap().to_owned()
}

/// Hosts whose operator trusts one publisher take that publisher's versions and nobody else's, and none that the
/// publisher has called back; whatever else is sent, they stay alive and answer.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_a_trusted_key_signed_is_run() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    // Keys: one without a password, one with, which is asked for; and a stranger's.
    let acme = edgent(&["keygen", "--out", &path("acme"), "--no-password"]);
    std::fs::write(path("password"), "correct horse\n").unwrap();
    std::fs::write(path("wrong"), "wrong horse\n").unwrap();
    let next = edgent(&["keygen", "--out", &path("next"), "--password-file", &path("password")]);
    edgent(&["keygen", "--out", &path("stranger"), "--no-password"]);
    for key in ["acme.key", "next.key"] {
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path(key)).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600, "{key} is its owner's alone");
    }
    let (code, _, said) = run(&["keygen", "--out", &path("acme"), "--no-password"]);
    assert!(code == 2 && said.contains("is there already"), "{said}");

    let versions: Vec<String> = (1..=4).map(|number| version(number, scratch.path())).collect();
    let unsigned = version(5, scratch.path());
    let sign = |number: usize, key: &str, more: &[&str]| {
        let (key, number_text) = (path(key), number.to_string());
        let command = ["sign", &versions[number - 1], "--secret-key", &key, "--version", &number_text];
        run(&[&command, more].concat())
    };
    for number in 1..=2 {
        assert_eq!(sign(number, "acme.key", &[]).0, 0);
    }
    let (code, _, said) = sign(3, "next.key", &["--password-file", &path("wrong")]);
    assert!(code == 2 && said.contains("Wrong password"), "{said}");
    let statement = path("statement.txt");
    let more = ["--minimum-version", "3", "--password-file", &path("password"), "--out", &statement];
    assert_eq!(sign(3, "next.key", &more).0, 0);
    assert!(std::fs::read_to_string(&statement).unwrap().contains("minimum-version: 3"));
    assert!(std::fs::read_to_string(format!("{statement}.minisig")).unwrap().starts_with("untrusted comment: "));
    assert_eq!(sign(4, "stranger.key", &[]).0, 0);
    let (code, _, said) = sign(4, "acme.key", &["--minimum-version", "5"]);
    assert!(code == 2 && said.contains("not from 1 to 4"), "{said}");

    // Whoever gets a bundle can look before anything of it is run.
    let verified = edgent(&["verify", &versions[0], "--key", &path("acme.pub")]);
    let signer = &verified["signatures"][0];
    assert_eq!((&signer["key_id"], &signer["holds"], &signer["version"]), (&acme["key_id"], &true.into(), &1.into()));
    let (code, stdout, said) = run(&["verify", &versions[3], "--key", &path("acme.pub"), "--key", &path("next.pub")]);
    assert!(code == 1 && stdout.is_empty() && said.contains("none of the keys"), "{said}");
    let digest = digest_of;

    let policy = path("policy.toml");
    let trusting = |keys: &str| {
        let head = "format = 1\nunsigned = \"refuse\"\n[[publisher]]\nname = \"acme\"\nallow = [\"native\"]\n";
        std::fs::write(&policy, format!("{head}keys = [{keys}]\nlimits = {{ workers-share = 0.5 }}\n")).unwrap();
    };
    let acme_line = acme["public_key"].as_str().unwrap();
    trusting(&format!("\"{acme_line}\", \"next.pub\""));
    let (edge_store, device_store) = (path("edge"), path("device"));
    let common = ["--listen", "127.0.0.1:0", "--model", &versions[0], "--policy", &policy, "--store"];
    let start = async |arguments: &[&str], store: &str| {
        let arguments = [arguments, &common[..], &[store]].concat();
        HostProcess::start(Path::new(EDGENT_HOST), &arguments, true).await
    };
    let edge = start(&["--role", "edge", "--workers", "4"], &edge_store).await.unwrap();
    let edge_address = edge.address().to_string();
    let device = start(&["--role", "device", "--edge", &edge_address], &device_store).await.unwrap();
    let address = device.address().to_string();
    let first = digest(&versions[0]);
    ask_until(&device, "by the first", |answer| answer["model"] == first && answer["degraded"].is_null());
    // By now each of its threads has begun, and so has its name.
    assert_eq!(workers(&edge), 2, "of an edge's threads, a publisher's model gets what its limits say");

    let push = |path: &str, to: &str| run(&["push", path, "--to", to]);
    for to in [&address, &edge_address] {
        let (code, _, said) = push(&unsigned, to);
        assert!(code == 1 && said.contains("nobody signed it") && said.contains("policy.toml"), "{said}");
        let (code, _, said) = push(&versions[3], to);
        assert!(code == 1 && said.contains("trusts no such key"), "{said}");
    }
    // With the old key, and back; then with the new one, which calls back everything before.
    for (number, pushed) in [(1, true), (0, false), (2, true)] {
        if pushed {
            edgent(&["push", &versions[number], "--to", &address]);
        } else {
            edgent(&["rollback", "--to", &address]);
        }
        let digest = digest(&versions[number]);
        assert!(ask(&device).iter().all(|answer| answer["model"] == digest), "version {} is in force", number + 1);
        // An edge that was busy when the device changed hears of it later.
        wait_until("signed for the edge, too", || in_force(&edge_address) == digest);
    }
    for to in [&address, &edge_address] {
        for back in [run(&["rollback", "--to", to]), push(&versions[1], to), push(&versions[0], to)] {
            assert!(back.0 == 1 && back.2.contains("nothing below 3 is to be run"), "{}", back.2);
        }
    }

    // Every other way in, over the link, for a bundle that no host here has: none is taken, and the hosts go on.
    let by_acme = version(6, scratch.path());
    edgent(&["sign", &by_acme, "--secret-key", &path("acme.key"), "--version", "9"]);
    let [fresh, unsigned] = [&by_acme, &unsigned].map(|path| Bundle::open(Path::new(path)).unwrap());
    let link = Link::start(Security::plain_on_loopback(None)).unwrap();
    let hello = Hello::new(Role::Tool, "test");
    for to in [&address, &edge_address] {
        let client = link.connect(to, hello.clone(), Limits::default()).await.unwrap();
        let mutated = mutations(&fresh, &unsigned);
        assert!(mutated.len() >= 1_000);
        for (kind, model, signature, manifest) in mutated {
            // What is no signature is refused as such; what is one is remembered, and then found not to hold.
            let told = client.sign(model, vec![signature]).await;
            let offered = client.offer(manifest).await;
            assert!(offered.is_err(), "{kind}: {told:?}, {offered:?}");
        }
        tell_signatures(&client, &fresh).await.unwrap();
        client.offer(Bytes::copy_from_slice(fresh.sealed().bytes())).await.expect("as it is, it would be taken");
    }
    let third = digest(&versions[2]);
    assert!(ask(&device).iter().all(|answer| answer["model"] == third && answer["degraded"].is_null()));

    // A key is trusted no more while the hosts run; a policy that cannot be read changes nothing.
    trusting("\"next.pub\"");
    edge.signal(Signal::HUP).unwrap();
    let refused = |to: &str| push(&by_acme, to).2.contains("trusts no such key");
    wait_until("the edge has read its policy", || refused(&edge_address));
    std::fs::write(&policy, "format = 1\nunsigned = \"perhaps\"\n").unwrap();
    device.signal(Signal::HUP).unwrap();
    assert!(ask(&device).iter().all(|answer| answer["model"] == third));

    // A key that is trusted no more takes what it signed with it, also at the next start.
    assert!(device.end().await.unwrap().success() && edge.end().await.unwrap().success());
    trusting("\"next.pub\"");
    start(&["--role", "edge"], &edge_store).await.unwrap().end().await.unwrap();
    trusting(&format!("\"{acme_line}\""));
    let arguments = [&["--role", "edge"], &common[..], &[&edge_store]].concat();
    let host = Command::new(EDGENT_HOST).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&host.stderr).into_owned();
    let next_id = next["key_id"].as_str().unwrap();
    assert!(!host.status.success() && said.contains(next_id) && said.contains("trusts no such key"), "{said}");
}

/// The threads of a host that compute.
fn workers(host: &HostProcess) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", host.pid().unwrap())).unwrap();
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default());
    names.filter(|name| name.starts_with("edgent-work-")).count()
}

/// A signed bundle, and one that is not, offered as they were not signed: how, under which name, with what, and what
/// is shown.
fn mutations(signed: &Bundle, unsigned: &Bundle) -> Vec<(&'static str, Digest, Signature, Bytes)> {
    let name = |bundle: &Bundle| Digest(bundle.digest().0);
    let (manifest, other) = [signed, unsigned].map(|bundle| Bytes::copy_from_slice(bundle.sealed().bytes())).into();
    let files = &signed.signatures()[0];
    let files = [files.statement().text().into_bytes(), files.text().as_bytes().to_vec()];
    let signature =
        |[statement, minisig]: [Vec<u8>; 2]| Signature { statement: statement.into(), minisig: minisig.into() };
    let mut seed = 29_u64;
    let mut below = |end: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % end
    };
    let mut all = vec![("of another bundle", name(unsigned), signature(files.clone()), other.clone())];
    for index in 0..1_000 {
        let mut changed = files.clone();
        let file = &mut changed[index % 2];
        let at = below(file.len());
        if index % 4 < 2 {
            file[at] ^= 1 << below(8);
            all.push(("bit flipped", name(signed), signature(changed), manifest.clone()));
        } else {
            file.truncate(at);
            all.push(("truncated", name(signed), signature(changed), manifest.clone()));
        }
    }
    for _ in 0..100 {
        let mut changed = manifest.to_vec();
        let at = below(changed.len());
        changed[at] ^= 1 << below(8);
        let digest = Digest(edgent_bundle::Digest::of(&changed).0);
        all.push(("manifest changed", digest, signature(files.clone()), changed.into()));
    }
    all
}

/// What is pushed to a host without a store is refused, with what to do about it.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_a_store_keeps_its_version() {
    let device = device(&[]).await;
    let model = bundle().to_str().unwrap();
    let (code, _, said) = run(&["push", model, "--to", &device.address().to_string()]);
    assert!(code == 1 && said.contains("start it with --store DIR"), "{said}");
}

/// The template for authors, as the first segment's guest: it does what the standard one does with good pictures, and
/// puts pixels into range that are out of it.
#[test]
fn a_segment_of_an_authors_own_takes_the_standard_ones_place() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let (pictures, floats, plain) = (path("pictures"), path("floats"), path("plain"));
    let template = "0=guest-layers/prebuilt/template.wasm";
    let with =
        |onnx: &str, out: &str, guest: &str| run(&["build", onnx, "--out", out, "--samples", "1", "--guest", guest]);
    // A network that takes bytes, which are always in range.
    let onnx = "models/branchy-alexnet/branchy-alexnet.onnx";
    assert_eq!(with(onnx, &pictures, template).0, 0);
    let verified = edgent(&["verify", &pictures]);
    assert_eq!(verified["cuts_bit_exact"], verified["cuts_checked"]);
    let guest = |bundle: &str| edgent(&["inspect", bundle])["segments"][0]["digest"].clone();
    assert_ne!(guest(&pictures), guest(bundle().to_str().unwrap()));
    // One that takes floats: whoever verifies it sees that the guest changes what comes in.
    let branching = "host/nn/tests/data/branching.onnx";
    edgent(&["build", branching, "--out", &plain]);
    assert_eq!(with(branching, &floats, template).0, 0);
    let (code, _, said) = run(&["verify", &floats]);
    assert!(code == 1 && said.contains("cuts change the answer"), "{said}");

    let run_with = |path: &str, pixel: f32| {
        let bundle = Bundle::open(Path::new(path)).unwrap();
        let deployment = Deployment::prepare(&bundle, &Engine::new().unwrap(), 1.0).unwrap();
        let elements = deployment.input().bytes() / 4;
        let mut pixels = vec![0.25_f32; elements];
        pixels[7] = pixel;
        let bytes: Vec<u8> = pixels.iter().flat_map(|pixel| pixel.to_le_bytes()).collect();
        let input = Tensor::from_bytes(deployment.input().element_type, &deployment.input().dims, &bytes).unwrap();
        let end = bundle.manifest().exits[0].path.len();
        deployment.run(0, 0..end, vec![input], &Stop::never()).unwrap().output[0].bytes().to_vec()
    };
    for (given, fitting) in [(9.0, 1.0), (-3.0, 0.0), (f32::NAN, 0.0), (f32::INFINITY, 1.0)] {
        assert_eq!(run_with(&floats, given), run_with(&plain, fitting), "{given}");
        assert_ne!(run_with(&plain, given), run_with(&plain, fitting), "{given} makes a difference");
    }
    for (guest, code, expected) in [
        ("999=guest-layers/prebuilt/template.wasm", 2, "there is no segment 999"),
        ("0=Cargo.toml", 2, "Cargo.toml: malformed WebAssembly"),
        ("template.wasm", 2, "SEGMENT=FILE"),
    ] {
        let (found, _, said) = with(branching, &floats, guest);
        assert!(found == code && said.contains(expected), "{guest}: {said}");
    }
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
    let ran = deployment.run(exit, 0..along.len() - 1, vec![input.clone()], &Stop::never()).unwrap();
    // Several segments were one call, and still each of them has a time.
    let path = &bundle.manifest().exits[exit].path;
    assert!(ran.segments_us.iter().map(|(segment, _)| segment).eq(path), "{:?}", ran.segments_us);
    assert!(ran.segments_us.iter().all(|(_, us)| *us > 0.0), "{:?}", ran.segments_us);
    let one_by_one =
        |crossing: Vec<Tensor>, at: usize| deployment.run(exit, at..at + 1, crossing, &Stop::never()).unwrap().output;
    assert_eq!((0..path.len()).fold(vec![input.clone()], one_by_one)[0].bytes(), ran.output[0].bytes());
    let whole = ran.output;
    let crossing = deployment.run(exit, 0..cut, vec![input], &Stop::never()).unwrap().output;

    let arguments = ["--role", "edge", "--listen", "127.0.0.1:0", "--model", model];
    let edge = HostProcess::start(Path::new(EDGENT_HOST), &arguments, true).await.unwrap();
    let link = Link::start(Security::plain_on_loopback(None)).unwrap();
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
        trace: None,
    };
    let answered = client.infer(request.clone()).await.unwrap();
    assert_eq!(answered.activation.bytes, whole[0].bytes());
    let one_short = InferRequest { beside: request.beside[..1].to_vec(), ..request };
    let refused = client.infer(one_short).await.unwrap_err().to_string();
    assert!(refused.contains("2 tensors came, where 3 cross"), "{refused}");
}

/// What is foreign is read in a process that can open that and nothing else, and has limits.
#[test]
fn foreign_files_are_read_in_a_confined_process() {
    let model = project().join("models/branchy-alexnet/branchy-alexnet.onnx");
    let limits = Bounds::default().confinement(5 << 20, vec![model.clone()]);
    let try_it = |limits: &Confinement, path: &Path| {
        let job = serde_json::to_string(&Job::Onnx { path: path.to_owned(), macs_max: u64::MAX }).unwrap();
        limits.run(Path::new(EDGENT), &[TRY.as_ref(), job.as_ref()])
    };
    let finished = try_it(&limits, &model).unwrap();
    let said = try_it(&limits, Path::new("/etc/passwd")).unwrap_err().to_string();
    if finished.stdout.is_empty() {
        assert!(said.contains("Permission denied"), "{said}");
    } else {
        eprintln!("no Landlock here: {}", String::from_utf8_lossy(&finished.stdout));
    }
    let allowed = Confinement { read: vec!["/etc/passwd".into()], ..limits.clone() };
    let said = try_it(&allowed, Path::new("/etc/passwd")).unwrap_err().to_string();
    assert!(said.contains("this is not an ONNX file"), "{said}");
    let starved = Confinement { memory_bytes: 16 << 20, ..limits };
    let said = try_it(&starved, &model).unwrap_err().to_string();
    assert!(said.contains("needs more than 16 MiB"), "{said}");

    // The same where users see it.
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("starved");
    let arguments = ["build", model.to_str().unwrap(), "--out", out.to_str().unwrap(), "--confined-memory-mib", "16"];
    let (code, _, said) = run(&arguments);
    assert!(code == 1 && said.contains("needs more than 16 MiB"), "{said}");
    assert!(!out.exists(), "a folder is left of a build that failed");
}

#[test]
fn a_scan_says_what_a_model_asks_for_and_whether_it_is_taken() {
    let model = bundle().to_str().unwrap();
    let scanned = edgent(&["scan", model]);
    assert_eq!(scanned["admitted"], true, "{scanned}");
    assert_eq!(scanned["other_imports"], serde_json::json!([]));
    let asked = scanned["segments"][0]["imports"].as_object().unwrap();
    assert!(asked.keys().all(|name| name.starts_with("wasi:nn/")) && asked.len() == 4, "{asked:?}");
    let (macs, bytes) = (scanned["macs"].as_u64().unwrap(), scanned["bytes"].as_u64().unwrap());
    assert!(macs > 1_000_000 && bytes > 1_000_000 && scanned["operators"]["Conv"] == 9, "{scanned}");
    let dear = edgent(&["scan", model, "--macs-max", "1000"]);
    assert_eq!(dear["admitted"], false);
    let said = dear["refused"].as_str().unwrap();
    assert!(said.contains(&format!("{macs} multiply-accumulates, over the 1000")), "{said}");

    // As a host sees it whose operator has limits for its publisher.
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let (signed, keys, policy) = (path("signed"), path("acme"), path("policy.toml"));
    copy(bundle(), Path::new(&signed));
    edgent(&["keygen", "--out", &keys, "--no-password"]);
    edgent(&["sign", &signed, "--secret-key", &format!("{keys}.key"), "--version", "3"]);
    let judged = |bundle: &str, limits: &str| {
        let publisher = "[[publisher]]\nname = \"acme\"\nkeys = [\"acme.pub\"]\n";
        let text = format!("format = 1\nunsigned = \"refuse\"\n{publisher}limits = {{ {limits} }}\n");
        std::fs::write(&policy, text).unwrap();
        edgent(&["scan", bundle, "--policy", &policy])
    };
    let taken = judged(&signed, "macs = 1e12, workers-share = 0.5");
    assert_eq!((&taken["admitted"], &taken["segments"][0]["tier"]), (&json!(true), &json!("portable")), "{taken}");
    let said = &taken["policy"];
    assert_eq!(
        (&said["publisher"], &said["version"], &said["workers_share"]),
        (&json!("acme"), &json!(3), &json!(0.5))
    );
    for (bundle, limits, expected) in [
        (&signed[..], "macs = 1000.0", "multiply-accumulates an answer, and"),
        (&signed[..], "memory-mib = 1.0", "of memory to take, and"),
        (model, "macs = 1e12", "nobody signed it"),
    ] {
        let refused = judged(bundle, limits);
        let said = refused["refused"].as_str().unwrap();
        assert!(refused["admitted"] == false && said.contains(expected), "{limits}: {said}");
    }

    let onnx = edgent(&["scan", "models/branchy-alexnet/branchy-alexnet.onnx"]);
    assert_eq!((&onnx["admitted"], &onnx["onnx"]["inputs"][0]), (&Value::from(true), &Value::from("image")));
    let (code, _, said) = run(&["scan", "Cargo.toml"]);
    assert!(code == 2 && said.contains("not an ONNX file"), "{said}");
    let start = ["--role", "edge", "--listen", "127.0.0.1:0", "--model", model, "--macs-max", "1000"];
    let host = Command::new(EDGENT_HOST).args(start).output().unwrap();
    let said = String::from_utf8_lossy(&host.stderr);
    assert!(!host.status.success() && said.contains("over the 1000 that are allowed here"), "{said}");
}

/// A version of a network, and one after it that promises what the network does not keep: large inputs overflow.
fn sound_and_unsound(scratch: &Path) -> [String; 2] {
    let path = |name: &str| scratch.join(name).to_str().unwrap().to_owned();
    let (model, first, second) = (path("branching.onnx"), path("first"), path("second"));
    // What it multiplies its input with is so large that large inputs overflow.
    let mut network = std::fs::read(project().join("host/nn/tests/data/branching.onnx")).unwrap();
    let scale = b"B\x05scaleJ\x04";
    let at = network.windows(scale.len()).position(|bytes| bytes == scale).unwrap() + scale.len();
    network[at..at + 4].copy_from_slice(&1e30_f32.to_le_bytes());
    std::fs::write(&model, network).unwrap();
    let described = std::fs::read_to_string(project().join("host/nn/tests/data/model.toml")).unwrap();
    // The second version promises what the network does not keep for every input.
    for (finite, out) in [("finite = false\n", &first), ("finite = true\n", &second)] {
        std::fs::write(path("model.toml"), finite.to_owned() + &described).unwrap();
        edgent(&["build", &model, "--out", out]);
    }
    [first, second]
}

/// The same on an edge, which devices ask: it goes back by itself, and whoever starts it again has it forget.
#[tokio::test(flavor = "multi_thread")]
async fn an_edge_quarantines_a_version_until_its_next_start() {
    let scratch = tempfile::tempdir().unwrap();
    let store = scratch.path().join("store").to_str().unwrap().to_owned();
    let [first, second] = sound_and_unsound(scratch.path());
    let arguments = ["--role", "edge", "--listen", "127.0.0.1:0", "--model", &first, "--store", &store];
    let edge = HostProcess::start(Path::new(EDGENT_HOST), &arguments, true).await.unwrap();
    let address = edge.address().to_string();
    edgent(&["push", &second, "--to", &address]);

    let link = Link::start(Security::plain_on_loopback(None)).unwrap();
    let client = link.connect(&address, Hello::new(Role::Device, "test"), Limits::default()).await.unwrap();
    let bundle = Bundle::open(Path::new(&second)).unwrap();
    let (model, dims, exit) = (Digest(bundle.digest().0), bundle.manifest().tensors[0].dims.clone(), 1);
    let (direction, codec) = (Direction::DeviceFirst, Codec::Raw);
    client.install_plan(Plan { epoch: 1, model, exit, cut: 0, direction, codec }).await.unwrap();
    let ask = async |value: f32| {
        let input = Tensor::from_f32(&dims, &vec![value; dims.iter().product()]).unwrap();
        let request = InferRequest {
            id: 1,
            model,
            epoch: 1,
            from_segment: 0,
            to_segment: bundle.manifest().exits[usize::from(exit)].path.len() as u16,
            reply_codec: Codec::Raw,
            remaining_budget_us: PATIENCE.as_micros() as u64,
            activation: edgent_runtime::codec::encode(&input, Codec::Raw),
            beside: Vec::new(),
            trace: None,
        };
        client.infer(request).await
    };
    ask(0.5).await.unwrap();
    let mut large = 1.0;
    while ask(large).await.is_ok() {
        large *= 2.0;
        assert!(large.is_finite(), "nothing overflows");
    }
    for _ in 1..3 {
        let said = ask(large).await.unwrap_err().to_string();
        assert!(said.contains("returned NaN or infinity"), "{said}");
    }
    let said = ask(0.5).await.unwrap_err().to_string();
    assert!(said.contains("quarantined"), "{said}");
    let is_in_force = |status: &Value, bundle: &str| {
        let current = status["versions"].as_array().unwrap().iter().find(|row| row["current"] == true).unwrap();
        current["digest"] == digest_of(bundle)
    };
    let state = || edgent(&["status", &address]);
    wait_until("went back to the version before", || is_in_force(&state(), &first));
    assert_eq!(state()["quarantined"], 1);
    let (code, _, said) = run(&["push", &second, "--to", &address]);
    assert!(code == 1 && said.contains("quarantined here"), "{said}");

    drop(client);
    assert!(edge.end().await.unwrap().success());
    let edge = HostProcess::start(Path::new(EDGENT_HOST), &arguments, true).await.unwrap();
    let address = edge.address().to_string();
    let status = edgent(&["status", &address]);
    assert!(is_in_force(&status, &first) && status["quarantined"] == 0, "{status}");
    edgent(&["push", &second, "--to", &address]);
}

/// Segments that a host runs in one call: if that fails, it is the one at fault that is named, and answers stay the same.
#[test]
fn a_segment_that_fails_is_named_though_it_ran_with_others() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("lookup");
    edgent(&["build", "host/nn/tests/data/lookup/lookup.onnx", "--out", out.to_str().unwrap()]);
    let bundle = Bundle::open(&out).unwrap();
    let deployment = Deployment::prepare(&bundle, &Engine::new().unwrap(), 1.0).unwrap();
    let end = bundle.manifest().exits[0].path.len();
    assert!(end > 1, "nothing to run in one call");
    let run = |range, value: f32| {
        let input = Tensor::from_f32(&[1, 3, 16, 16], &[value; 768]).unwrap();
        deployment.run(0, range, vec![input], &Stop::never())
    };
    let answer = |value| run(0..end, value).unwrap().output[0].bytes().to_vec();
    let before = [1.5, 3.5].map(answer);
    assert_ne!(before[0], before[1]);
    let looks_up = &bundle.manifest().segments[*bundle.manifest().exits[0].path.last().unwrap()].name;
    for _ in 0..2 {
        let said = run(0..end, 1e6).unwrap_err().to_string();
        assert!(said.contains(&format!("segment '{looks_up}'")), "{said}");
        assert_eq!([1.5, 3.5].map(answer), before);
    }
}

/// A version whose segment does wrong again and again is left for the version before; it is shown, and not taken again.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_does_wrong_again_and_again_is_quarantined() {
    let scratch = tempfile::tempdir().unwrap();
    let store = scratch.path().join("store").to_str().unwrap().to_owned();
    let [first, second] = sound_and_unsound(scratch.path());
    let digest =
        |of: &str| edgent(&["inspect", of])["digest"].as_str().unwrap().parse::<edgent_bundle::Digest>().unwrap();
    let arguments = ["--role", "device", "--listen", "127.0.0.1:0", "--model", &first, "--store", &store];
    let device = HostProcess::start(Path::new(EDGENT_HOST), &arguments, true).await.unwrap();
    let address = device.address().to_string();
    edgent(&["push", &second, "--to", &address]);

    let link = Link::start(Security::plain_on_loopback(None)).unwrap();
    let client = link.connect(&address, Hello::new(Role::Tool, "test"), Limits::default()).await.unwrap();
    let deployed = Bundle::open(Path::new(&first)).unwrap();
    let dims: Vec<usize> = deployed.manifest().tensors[0].dims.clone();
    let elements: usize = dims.iter().product();
    let ask = async |value: f32| {
        let input = Tensor::from_f32(&dims, &vec![value; elements]).unwrap();
        let input = edgent_runtime::codec::encode(&input, Codec::Raw);
        let (model, beside) = (String::new(), Vec::new());
        client
            .ask(AskRequest { id: 0, model, deadline_us: 10_000_000, accuracy_floor: 0.0, input, beside, trace: None })
            .await
    };
    let second_digest = Digest(digest(&second).0);
    assert_eq!(ask(0.5).await.unwrap().model, Some(second_digest));
    // One's own fault is not the model's.
    for _ in 0..5 {
        let said = ask(f32::NAN).await.unwrap_err().to_string();
        assert!(said.contains("wrong input: NaN or infinity"), "{said}");
    }
    assert_eq!(edgent(&["status", &address])["quarantined"], 0);
    // As large as it takes for a sum to overflow; where a product does, a ReLU makes zero of it.
    let mut large = 1.0;
    while ask(large).await.is_ok() {
        large *= 2.0;
        assert!(large.is_finite(), "nothing overflows");
    }
    for _ in 1..3 {
        let said = ask(large).await.unwrap_err().to_string();
        assert!(said.contains("segment '") && said.contains("returned NaN or infinity"), "{said}");
    }
    let start = Instant::now();
    let went_back = loop {
        match ask(0.5).await {
            Ok(answer) if answer.model != Some(second_digest) => break answer,
            Ok(answer) => panic!("a quarantined version answers: {answer:?}"),
            Err(error) => assert!(error.to_string().contains("quarantined"), "{error}"),
        }
        assert!(start.elapsed() < PATIENCE, "the version before never came into force");
    };
    assert_eq!(went_back.model, Some(Digest(digest(&first).0)));
    let status = edgent(&["status", &address]);
    assert_eq!((&status["quarantined"], &status["faults"]), (&Value::from(1), &Value::from(3)));
    let marked = |row: &&Value| row["quarantined"] == true && row["current"] == false;
    assert_eq!(status["versions"].as_array().unwrap().iter().filter(marked).count(), 1, "{status}");
    for again in [&["push", &second, "--to", &address][..], &["rollback", "--to", &address]] {
        let (code, _, said) = run(again);
        assert!(code == 1 && said.contains("quarantined here"), "{said}");
    }
}

#[test]
fn hostile_guests_and_files_are_contained() {
    let report = edgent(&["bench", "limits", "--share", "0.002"]);
    let cases = report["cases"].as_array().unwrap();
    assert!(cases.len() > 100, "{}", cases.len());
    for case in cases {
        assert!(case["tried"] == case["contained"] && case["host_alive"] == true, "{case}");
    }
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
    assert!(verified["tensors_compared"].as_u64() >= Some(3), "{verified}");

    let bundle = Bundle::open(&dir).unwrap();
    assert_eq!(bundle.manifest().format, 2);
    let deployment = Deployment::prepare(&bundle, &Engine::new().unwrap(), 1.0).unwrap();
    let golden = Golden::read(&std::fs::read(golden).unwrap(), bundle.manifest(), deployment.tensors()).unwrap();
    let arguments = ["--role", "edge", "--listen", "127.0.0.1:0", "--model", model];
    let edge = HostProcess::start(Path::new(EDGENT_HOST), &arguments, true).await.unwrap();
    let edge_address = edge.address().to_string();
    let arguments = ["--role", "device", "--listen", "127.0.0.1:0", "--model", model, "--edge", &edge_address];
    let device = HostProcess::start(Path::new(EDGENT_HOST), &arguments, true).await.unwrap();
    let link = Link::start(Security::plain_on_loopback(None)).unwrap();
    let (address, hello) = (device.address().to_string(), Hello::new(Role::Tool, "test"));
    let client = link.connect(&address, hello, Limits::default()).await.unwrap();
    let described = client.describe().await.unwrap().models.remove(0);
    let names = |tensors: &[TensorDescription]| tensors.iter().map(|tensor| tensor.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&described.inputs), ["x", "state"]);
    assert_eq!(names(&described.exits[0].outputs), ["y", "new_state", "is_high"]);
    for index in 0..golden.count {
        let inputs: Vec<_> = golden.at(&[0, 1], index).flatten().cloned().collect();
        let (input, beside) = encode_all(&inputs, Codec::Raw).unwrap();
        let model = String::new();
        let request =
            AskRequest { id: 1, model, deadline_us: 1_000_000, accuracy_floor: 0.0, input, beside, trace: None };
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

/// The fingerprint of an identity, by the command that people use.
fn fingerprint_in(identity: &str) -> String {
    edgent(&["id", "--identity", identity])["fingerprint"].as_str().unwrap().to_owned()
}

/// A device and an edge that are strangers get to know each other by a code, a tool and the device by their
/// fingerprints; then a request is answered by both hosts, all of it over TLS; and who is not known gets no answer.
#[tokio::test(flavor = "multi_thread")]
async fn machines_are_paired_and_answer_over_tls() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let [of_edge, of_device, of_tool, of_stranger] = ["edge", "device", "tool", "stranger"].map(folder);
    let model = bundle().to_str().unwrap();
    let start = async |role: &str, identity: &str, more: &[&str]| {
        let common = ["--role", role, "--listen", "127.0.0.1:0", "--model", model, "--tls", "--identity", identity];
        HostProcess::start(Path::new(EDGENT_HOST), &[&common[..], more].concat(), true).await.unwrap()
    };
    let mut edge = start("edge", &of_edge, &["--pair"]).await;
    let edge_address = edge.address().to_string();
    let said = edge.next_line().await.unwrap();
    let code = said.split_whitespace().find(|word| word.len() == 9 && word.contains('-') && word != &"edgent-host");
    let code = code.unwrap_or_else(|| panic!("no code: {said}"));

    // A wrong code first; then the right one.
    let pair = |code: &str| {
        run(&["pair", &edge_address, "--code", code, "--name", "edge", "--call-me", "attic", "--identity", &of_device])
    };
    let wrong = if code == "0000-0000" { "0000-0001" } else { "0000-0000" };
    let (failed, _, said) = pair(wrong);
    assert!(failed == 1 && said.contains("the codes differ"), "{said}");
    let (good, paired, said) = pair(code);
    assert_eq!(good, 0, "{said}");
    let paired: Value = serde_json::from_str(&paired).unwrap();
    assert_eq!((&paired["name"], &paired["may"]), (&json!("edge"), &json!(["serve"])));
    assert_eq!(paired["fingerprint"], fingerprint_in(&of_edge));
    let known_there = &edgent(&["id", "--identity", &of_edge])["peers"][0];
    assert_eq!((&known_there["name"], &known_there["may"]), (&json!("attic"), &json!(["ask", "read"])));
    assert_eq!(known_there["fingerprint"], fingerprint_in(&of_device));

    let (device_key, tool_key) = (fingerprint_in(&of_device), fingerprint_in(&of_tool));
    let know = |identity: &str, key: &str, name: &str, may: &str| {
        edgent(&["pair", "--fingerprint", key, "--name", name, "--may", may, "--identity", identity])
    };
    know(&of_device, &tool_key, "tool", "ask,read");
    know(&of_tool, &device_key, "device", "serve");
    let more = ["--edge", &edge_address, "--emulate-slowdown", "30", "--deadline-ms", "2000"];
    let device = start("device", &of_device, &more).await;
    let address = device.address().to_string();
    let image = &examples()[0].0;
    let ask = |identity: &str, how: &str| run(&["infer", image, "--device", &address, how, "--identity", identity]);
    let since = Instant::now();
    loop {
        let (code, answers, said) = ask(&of_tool, "--tls");
        assert_eq!(code, 0, "{said}");
        let answer = &serde_json::from_str::<Value>(&answers).unwrap()["answers"][0];
        if answer["placement"] != "device-only" && answer["degraded"].is_null() {
            break;
        }
        assert!(since.elapsed() < PATIENCE, "never with the edge: {answer}");
    }

    let (code, _, said) = ask(&of_stranger, "--tls");
    assert!(code == 1 && said.contains("edgent pair") && said.contains("not known"), "{said}");
    know(&of_stranger, &device_key, "device", "serve");
    let (code, _, said) = ask(&of_stranger, "--tls");
    assert!(code == 1 && said.contains("does not know this side's key") && said.contains("edgent pair"), "{said}");
    let (code, _, said) = ask(&of_tool, "--insecure");
    assert!(code == 1 && said.contains("TLS"), "{said}");

    // What was not granted is missed by name; granted, it is there after SIGHUP.
    let push = || run(&["push", model, "--to", &address, "--tls", "--identity", &of_tool]).2;
    let said = push();
    assert!(said.contains("`push`") && said.contains("'tool'") && said.contains("peers.toml"), "{said}");
    know(&of_device, &tool_key, "tool", "push");
    device.signal(Signal::HUP).unwrap();
    let since = Instant::now();
    loop {
        let said = push();
        if said.contains("--store") {
            break;
        }
        assert!(since.elapsed() < PATIENCE, "never more than {said}");
    }
    let (code, _, said) = ask(&of_tool, "--tls");
    assert!(code == 1 && said.contains("`ask`"), "it was taken: {said}");
    assert!(device.end().await.unwrap().success());
    assert!(edge.end().await.unwrap().success());
}

/// What can be reached from elsewhere is not plain unless that was said, and then it is said back.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_others_reach_speaks_tls() {
    let scratch = tempfile::tempdir().unwrap();
    let model = bundle().to_str().unwrap();
    let common = ["--role", "edge", "--listen", "0.0.0.0:0", "--model", model];
    let mut no_home = Command::new(EDGENT_HOST);
    let output = no_home.args(common).env_remove("HOME").env_remove("XDG_CONFIG_HOME").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("--identity"), "{said}");

    let identity = scratch.path().join("identity").to_str().unwrap().to_owned();
    let with = [&common[..], &["--identity", &identity]].concat();
    let host = HostProcess::start(Path::new(EDGENT_HOST), &with, true).await.unwrap();
    // From this very machine: the same key is no stranger.
    let address = format!("127.0.0.1:{}", host.address().port());
    assert_eq!(edgent(&["status", &address, "--tls", "--identity", &identity])["errors"], 0);
    let (code, _, said) = run(&["status", &address]);
    assert!(code == 1 && said.contains("TLS"), "{said}");

    // What is wrong with the folder is said before anything is served.
    let peers = Path::new(&identity).join("peers.toml");
    std::fs::write(&peers, "format = 1\n[[peer]]\nname = \"x\"\ncolour = \"red\"\n").unwrap();
    let output = Command::new(EDGENT_HOST).args(&with).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("line 4") && said.contains("colour"), "{said}");

    let mut open = Command::new(EDGENT_HOST);
    let open = open.args(common).arg("--insecure").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let said = said_until(open, "listening on");
    assert!(said.contains("WARN") && said.contains("--insecure: 0.0.0.0:0 in plain bytes"), "{said}");
}

/// What a host has logged by the time that it says this on stdout; it is ended then.
fn said_until(mut host: Child, words: &str) -> String {
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(host.stdout.take().unwrap()), &mut line).unwrap();
    host.kill().unwrap();
    assert!(line.contains(words), "{line}");
    String::from_utf8_lossy(&host.wait_with_output().unwrap().stderr).into_owned()
}
