//! `edgent bench conformance`: small networks with known answers, through the import and the sandbox.
//!
//! Who made them is no matter; tests/peers/onnx_suite.py makes them of the node tests of the `onnx` package, which
//! every runtime for ONNX can be measured with. What counts is that there are three ends and no fourth: a right
//! answer, a refusal that says why, and a failure, which a wrong answer is.

use crate::build::{Order, build_as};
use crate::output::{BadInput, Output};
use anyhow::{Result, bail};
use edgent_bundle::Tier;
use edgent_nn::{Difference, ElementType, GraphFormat, Pins, Stop, Tensor};
use edgent_runtime::Deployment;
use edgent_runtime::golden::Golden;
use edgent_sandbox::Engine;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What is near nothing is the difference of greater values, and as far off as they were: by this share of the greatest.
const ROUNDING: f64 = 1e-5;
/// The same for elements that have 11 bits.
const ROUNDING_F16: f64 = 2e-3;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A folder for each network: model.onnx; values.safetensors, its inputs and outputs by name; and tolerance.json.
    folder: PathBuf,
}

#[derive(Serialize)]
struct Report {
    passed: usize,
    refused: usize,
    failed: usize,
    cases: Vec<Case>,
}

#[derive(Serialize)]
struct Case {
    name: String,
    verdict: Verdict,
    /// Why it did not pass.
    why: String,
}

#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Passed,
    Refused,
    Failed,
}

/// How far an element may be off: by so much, and by so great a share of what it should be.
#[derive(Deserialize)]
struct Tolerance {
    difference: f64,
    share: f64,
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let unreadable = |e: std::io::Error| BadInput::error(format!("{}: {e}", arguments.folder.display()));
    let entries = fs::read_dir(&arguments.folder).map_err(unreadable)?;
    let mut folders = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    folders.retain(|folder| folder.join("model.onnx").is_file());
    folders.sort();
    let engine = Engine::new()?;
    let scratch = tempfile::tempdir()?;
    let mut cases = Vec::with_capacity(folders.len());
    for folder in folders {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (verdict, why) = match try_one(&folder, scratch.path(), &engine) {
            Ok(()) => (Verdict::Passed, String::new()),
            Err((verdict, error)) => (verdict, format!("{error:#}")),
        };
        if verdict == Verdict::Failed {
            output.progress(format_args!("{name}: {why}"));
        }
        cases.push(Case { name, verdict, why });
    }
    let count = |verdict| cases.iter().filter(|case| case.verdict == verdict).count();
    let (passed, refused, failed) = (count(Verdict::Passed), count(Verdict::Refused), count(Verdict::Failed));
    output.line(format_args!("{passed} passed, {refused} refused, {failed} failed"));
    output.result(&Report { passed, refused, failed, cases })
}

fn try_one(folder: &Path, scratch: &Path, engine: &Engine) -> Result<(), (Verdict, anyhow::Error)> {
    let quiet = Output::new(true).silent();
    let (model, out) = (&folder.join("model.onnx"), &scratch.join("bundle"));
    let (pins, guests, tier) = (Pins::default(), BTreeMap::new(), Tier::Native);
    let order =
        Order { model, out, codec_samples: 0, name: Some("case"), pins, guests, tier, graphs: GraphFormat::Nnef };
    let bundle = build_as(order, &quiet).map_err(|error| (Verdict::Refused, error))?;
    let answer = || {
        let deployment = Deployment::prepare(&bundle, engine, 1.0)?;
        let manifest = deployment.manifest();
        let values = fs::read(folder.join("values.safetensors"))?;
        let tolerance: Tolerance = serde_json::from_slice(&fs::read(folder.join("tolerance.json"))?)?;
        let golden = Golden::read(&values, manifest, deployment.tensors())?;
        let input: Vec<Tensor> = golden.at(&manifest.boundaries[0].tensors, 0).flatten().cloned().collect();
        let given = deployment.run(0, 0..manifest.exits[0].path.len(), input, &Stop::never())?.output;
        for ((tensor, ours), theirs) in manifest.outputs(0).iter().zip(&given).zip(golden.at(manifest.outputs(0), 0)) {
            if golden.count != 1 || !theirs.is_some_and(|theirs| is_same(ours, theirs, &tolerance)) {
                bail!("'{}' is not what it should be", manifest.tensors[*tensor].name);
            }
        }
        Ok(())
    };
    answer().map_err(|error| (Verdict::Failed, error))
}

fn is_same(ours: &Tensor, theirs: &Tensor, tolerance: &Tolerance) -> bool {
    let Some(Difference { greatest, .. }) = Difference::of(ours, theirs) else { return false };
    let rounding = if theirs.element_type() == ElementType::F16 { ROUNDING_F16 } else { ROUNDING };
    let off_max = |value: f64| tolerance.difference + rounding * greatest + tolerance.share * value.abs();
    let close = |(a, b): (f64, f64)| a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= off_max(b);
    ours.to_f64().into_iter().zip(theirs.to_f64()).all(close)
}
