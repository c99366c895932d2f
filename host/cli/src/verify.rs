//! `edgent verify`: whether a bundle does what the network it was cut from does.

use crate::build::answer;
use crate::output::{BadInput, Output};
use crate::samples::{self, Golden};
use anyhow::{Context, Result, bail};
use edgent_bundle::{Blob, Bundle};
use edgent_link::Codec;
use edgent_nn::{Imported, Stop, Tensor};
use edgent_runtime::{Deployment, codec};
use edgent_sandbox::Engine;
use serde::Serialize;
use std::path::PathBuf;

/// The largest difference from another runtime's outputs that is taken for rounding.
const TOLERANCE: f32 = 1e-4;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The bundle's folder, or FOLDER@NAME:VERSION.
    bundle: PathBuf,
}

#[derive(Serialize)]
struct Report {
    cuts_checked: usize,
    cuts_bit_exact: usize,
    golden_inputs: usize,
    max_abs_diff: f32,
    samples: usize,
    accuracy_per_exit: Vec<f64>,
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let bundle = Bundle::open(&arguments.bundle).map_err(BadInput::error)?;
    let deployment = Deployment::prepare(&bundle, &Engine::new()?, 1.0)?;
    let evidence = &bundle.manifest().evidence;
    let blob = |blob: &Option<Blob>, what: &str| -> Result<Vec<u8>> {
        let blob =
            blob.as_ref().ok_or_else(|| BadInput::error(format!("the bundle has no {what} to be verified with")))?;
        Ok(bundle.blob(blob)?)
    };
    let exits: Vec<String> = bundle.manifest().exits.iter().map(|exit| exit.name.clone()).collect();
    let golden = Golden::read(&blob(&evidence.golden, "golden outputs")?, &exits)?;
    let whole = Imported::from_onnx(&blob(&evidence.source, "source")?)?.whole()?;

    let mut report = Report {
        cuts_checked: 0,
        cuts_bit_exact: 0,
        golden_inputs: golden.inputs.len(),
        max_abs_diff: 0.0,
        samples: 0,
        accuracy_per_exit: Vec::new(),
    };
    for (index, input) in golden.inputs.iter().enumerate() {
        let expected = whole.run_once(input.clone())?;
        for (exit, expected) in expected.iter().enumerate() {
            // Every cut of the path: as if the activation there crossed the wire between two hosts.
            let end = bundle.manifest().exits[exit].path.len();
            for cut in 0..=end {
                let before = deployment.run(exit, 0..cut, input.clone(), &Stop::never())?.output;
                let crossed = codec::round_trip(&before, Codec::Raw)?;
                let split = deployment.run(exit, cut..end, crossed, &Stop::never())?.output;
                report.cuts_checked += 1;
                report.cuts_bit_exact += usize::from(split.bytes() == expected.bytes());
            }
            let theirs = &golden.outputs[exit][index];
            report.max_abs_diff = report.max_abs_diff.max(difference(expected, theirs)?);
        }
    }
    let tile_px = deployment.boundary(0).dims.last().copied().unwrap_or(0);
    let samples =
        samples::sheet(&blob(&evidence.samples, "labelled samples")?, &blob(&evidence.labels, "labels")?, tile_px)?;
    report.samples = samples.len();
    output.progress(format_args!("answering {} labelled samples at every exit", samples.len()));
    for exit in 0..exits.len() {
        let end = bundle.manifest().exits[exit].path.len();
        let mut right = 0;
        for sample in &samples {
            let logits = deployment.run(exit, 0..end, sample.image.clone(), &Stop::never())?.output;
            right += usize::from(answer(&logits) == sample.label);
        }
        report.accuracy_per_exit.push(right as f64 / samples.len().max(1) as f64);
    }

    output.line(format_args!(
        "cuts      {} of {} bit-exact against the undivided network, each through the sandbox",
        report.cuts_bit_exact, report.cuts_checked
    ));
    output.line(format_args!(
        "golden    largest difference {:.1e} over {} inputs (tolerance {TOLERANCE:.0e})",
        report.max_abs_diff, report.golden_inputs
    ));
    for (name, accuracy) in exits.iter().zip(&report.accuracy_per_exit) {
        output.line(format_args!("{name:<9} {accuracy:.3} of {} labelled samples answered rightly", report.samples));
    }
    output.result(&report)?;
    if report.cuts_bit_exact != report.cuts_checked {
        bail!("{} cuts change the answer", report.cuts_checked - report.cuts_bit_exact);
    }
    if report.max_abs_diff.is_nan() || report.max_abs_diff > TOLERANCE {
        bail!("the outputs differ by {} from the golden ones", report.max_abs_diff);
    }
    Ok(())
}

fn difference(ours: &Tensor, theirs: &[f32]) -> Result<f32> {
    let ours = ours.as_f32().context("an exit's output is not f32")?;
    if ours.len() != theirs.len() {
        bail!("an exit gives {} values, the golden output has {}", ours.len(), theirs.len());
    }
    // NaN must not pass for small.
    Ok(ours
        .iter()
        .zip(theirs)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |most, d| if d.is_nan() || d > most { d } else { most }))
}
