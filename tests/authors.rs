//! Guests of a network's maker, around the network: a picture's bytes are made numbers before it, its scores a class with
//! a name behind it. The one is written in Rust, the other in C.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/tool.rs"]
mod tool;

use edgent_bundle::Bundle;
use edgent_cli::hosts::HostProcess;
use edgent_nn::{ElementType, Stop, Tensor};
use edgent_runtime::Deployment;
use edgent_sandbox::Engine;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use tool::{edgent, project, run};

const EDGENT_HOST: &str = env!("CARGO_BIN_EXE_edgent-host");

/// What the network takes.
const SIDE: usize = 16;
const MEANS: [f32; 3] = [0.485, 0.456, 0.406];
const SPREADS: [f32; 3] = [0.229, 0.224, 0.225];
const LABELS: [&str; 10] = ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"];

/// Without what stands around it.
const NETWORK: &str = r#"
format = 1
name = "framed"
onnx = "branching.onnx"
[input]
name = "input"
shape = [1, 3, 16, 16]
[[exits]]
output = "exit1"
accuracy_validation = 0.1
[[exits]]
output = "exit2"
accuracy_validation = 0.2
"#;

const BEFORE: &str = r#"
[before]
guest = "normalise.wasm"
data = "means.txt"
takes = [{ name = "picture", type = "u8", shape = [1, 3, 16, 16] }]
"#;

const AFTER: &str = r#"
[after]
guest = "arg-max.wasm"
data = "labels.txt"
gives = [
    { name = "class", type = "i64", shape = [1] },
    { name = "score", type = "f32", shape = [1] },
    { name = "label", type = "u8", shape = [32] },
]
"#;

/// A folder with a network, what may stand around it, and that description.
fn model(folder: &Path, described: &str) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    let from = |path: &str| project().join(path);
    for guest in ["normalise.wasm", "arg-max.wasm", "template.wasm"] {
        fs::copy(from("guest-layers/prebuilt").join(guest), folder.join(guest)).unwrap();
    }
    let onnx = folder.join("branching.onnx");
    fs::copy(from("host/nn/tests/data/branching.onnx"), &onnx).unwrap();
    let line = |numbers: [f32; 3]| numbers.map(|number| number.to_string()).join(" ");
    fs::write(folder.join("means.txt"), format!("{}\n{}\n", line(MEANS), line(SPREADS))).unwrap();
    fs::write(folder.join("labels.txt"), LABELS.join("\n")).unwrap();
    fs::write(folder.join("model.toml"), described).unwrap();
    onnx
}

fn build(folder: &Path, described: &str) -> (i32, PathBuf, String) {
    let (onnx, out) = (model(folder, described), folder.join("bundle"));
    let (code, _, said) = run(&["build", onnx.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    (code, out, said)
}

/// Neither all the same nor in order.
fn pixels() -> Vec<u8> {
    (0..3 * SIDE * SIDE).map(|at| (at * 7_919 % 251) as u8).collect()
}

/// What the guests should make of it, by the network alone: the class, and how sure that is.
fn expected(plain: &Deployment, exit: usize) -> (usize, f32) {
    let channel = |at: usize| at / (SIDE * SIDE);
    let number = |(at, pixel): (usize, u8)| (f32::from(pixel) / 255.0 - MEANS[channel(at)]) / SPREADS[channel(at)];
    let numbers: Vec<f32> = pixels().into_iter().enumerate().map(number).collect();
    let input = Tensor::from_f32(&[1, 3, SIDE, SIDE], &numbers).unwrap();
    let end = plain.manifest().exits[exit].path.len();
    let output = plain.run(exit, 0..end, vec![input], &Stop::never()).unwrap().output.remove(0);
    let scores = output.as_f32().unwrap();
    let best = (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap();
    (best, 1.0 / scores.iter().map(|score| (score - scores[best]).exp()).sum::<f32>())
}

fn prepared(bundle: &Path) -> Deployment {
    Deployment::prepare(&Bundle::open(bundle).unwrap(), &Engine::new().unwrap(), 1.0).unwrap()
}

/// A picture goes in, a class and its name come out, at every exit and through a running host.
#[tokio::test(flavor = "multi_thread")]
async fn guests_before_and_behind_a_network_change_its_tensors() {
    let scratch = tempfile::tempdir().unwrap();
    let (code, plain, said) = build(&scratch.path().join("plain"), NETWORK);
    assert_eq!(code, 0, "{said}");
    let (code, framed, said) = build(&scratch.path().join("framed"), &[NETWORK, BEFORE, AFTER].concat());
    assert_eq!(code, 0, "{said}");
    let bundle = Bundle::open(&framed).unwrap();
    let manifest = bundle.manifest();
    assert_eq!(manifest.format, 4);
    let inspected = edgent(&["inspect", framed.to_str().unwrap()]);
    let segments = inspected["segments"].as_array().unwrap();
    let fact = |at: usize| (segments[at]["input"].clone(), segments[at]["output"].clone());
    assert_eq!(fact(0), (json!("u8[1,3,16,16]"), json!("f32[1,3,16,16]")));
    assert_eq!(fact(segments.len() - 1), (json!("f32[1,10]"), json!("i64[1] + f32[1] + u8[32]")));

    // Every cut, those around the guests, too.
    let verified = edgent(&["verify", framed.to_str().unwrap()]);
    assert_eq!(verified["cuts_bit_exact"], verified["cuts_checked"], "{verified}");

    let (plain, framed_here) = (prepared(&plain), prepared(&framed));
    let picture = Tensor::from_bytes(ElementType::U8, &[1, 3, SIDE, SIDE], &pixels()).unwrap();
    for (exit, path) in manifest.exits.iter().map(|exit| &exit.path).enumerate() {
        let given = framed_here.run(exit, 0..path.len(), vec![picture.clone()], &Stop::never()).unwrap().output;
        let (class, score) = expected(&plain, exit);
        assert_eq!(given[0].bytes(), (class as i64).to_le_bytes());
        assert!((given[1].as_f32().unwrap()[0] - score).abs() < 1e-5, "{given:?} is not {score}");
        let label = LABELS[class].as_bytes();
        assert_eq!((&given[2].bytes()[..label.len()], given[2].bytes()[label.len()]), (label, 0));
    }

    // The input in other numbers is still the input: no plan sends it, however fast the link is.
    for rate in ["1e5", "1e8", "1e12"] {
        let arguments = ["plan", framed.to_str().unwrap(), "--rate-bps", rate, "--keep-input", "--rtt-ms", "0"];
        assert_ne!(edgent(&arguments)["plan"]["cut"], 1);
    }

    // As users ask.
    let arguments = ["--role", "device", "--listen", "127.0.0.1:0", "--model", framed.to_str().unwrap()];
    let device = HostProcess::start(Path::new(EDGENT_HOST), &arguments, true).await.unwrap();
    let png = scratch.path().join("picture.png");
    fs::write(&png, to_png()).unwrap();
    let asked = edgent(&["infer", png.to_str().unwrap(), "--device", &device.address().to_string()]);
    let outputs = asked["answers"][0]["outputs"].as_array().unwrap();
    let (class, _) = expected(&plain, 1);
    assert_eq!(outputs[0]["name"], "exit2.class");
    assert_eq!((&outputs[0]["values"], &outputs[2]["text"]), (&json!([class as f64]), &json!(LABELS[class])));
    assert!(device.end().await.unwrap().success());
}

/// A guest that does not give what is said of it is found when the bundle is built.
#[test]
fn what_does_not_fit_around_a_network_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    for (number, (from, to, expected)) in [
        ("shape = [32]", "shape = [31]", "[after]: segment 'arg-max': the guest returned u8[32] instead of u8[31]"),
        ("type = \"u8\", shape = [1, 3", "type = \"f32\", shape = [1, 3", "the guest says: a picture is u8"),
        ("type = \"i64\"", "type = \"i65\"", "[after]: 'class' is of type 'i65', which there is not"),
        ("\"arg-max.wasm\"", "\"../arg-max.wasm\"", "must lie in the model's folder"),
        ("\"labels.txt\"", "\"means.txt\"", "the guest says: there must be one f32 for each name"),
        ("\"labels.txt\"", "\"branching.onnx\"", "the guest says: there are"),
        // It leaves the arithmetic to its host, which has no graph for it.
        ("\"arg-max.wasm\"", "\"template.wasm\"", "the guest says: this host runs the segment in the portable tier"),
        ("gives = [", "gives = []\nothers = [", "unknown field `others`"),
        ("[input]", "classes = [\"a\"]\n[input]", "leave them out"),
    ]
    .into_iter()
    .enumerate()
    {
        let described = [NETWORK, BEFORE, AFTER].concat();
        assert!(described.contains(from), "{from}");
        let (code, out, said) = build(&scratch.path().join(number.to_string()), &described.replace(from, to));
        assert!(code == 2 && said.contains(expected), "{to}: {code} {said}");
        assert!(!out.exists(), "{to}: a folder is left");
    }
}

/// The picture as a file.
fn to_png() -> Vec<u8> {
    let (pixels, plane) = (pixels(), SIDE * SIDE);
    let interleaved: Vec<u8> =
        (0..plane).flat_map(|at| [0, 1, 2].map(|channel| pixels[channel * plane + at])).collect();
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, SIDE as u32, SIDE as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&interleaved).unwrap();
    writer.finish().unwrap();
    file
}
