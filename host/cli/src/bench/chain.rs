//! What cutting a network into sandboxed segments costs altogether.

use crate::build::{CODEC_SAMPLES, build};
use crate::output::{Output, quantile};
use crate::verify::undivided;
use anyhow::{Context, Result};
use edgent_bundle::Bundle;
use edgent_nn::{Stop, Tensor};
use edgent_runtime::Deployment;
use edgent_sandbox::Engine;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

const ROUNDS: usize = 300;
const WARM_UP: usize = 20;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A bundle's folder, or an ONNX file to build one from.
    #[arg(long, default_value = "models/branchy-alexnet/branchy-alexnet.onnx")]
    model: PathBuf,
}

#[derive(Serialize)]
struct Report {
    segments: usize,
    whole_us: f64,
    chain_us: f64,
    /// Median of the ratios of neighbouring runs: what the machine does meanwhile hits both.
    ratio: f64,
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let bundle = open(&arguments.model, scratch.path(), output)?;
    let deployment = Deployment::prepare(&bundle, &Engine::new()?, 1.0)?;
    anyhow::ensure!(
        bundle.manifest().segments.iter().all(edgent_bundle::Segment::has_graph),
        "its maker's own guests stand around this network: there is no undivided one to compare with"
    );
    let whole = undivided(&bundle)?;
    let mut context = whole.context()?;
    let names: Vec<String> = whole.inputs().iter().map(|port| port.name.clone()).collect();
    let input =
        deployment.inputs().map(|fact| Tensor::from_bytes(fact.element_type, &fact.dims, &vec![100; fact.bytes()]));
    let input: Vec<Tensor> = input.collect::<Result<_, _>>()?;
    let stop = Stop::never();
    let (mut whole_us, mut chain_us, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..WARM_UP + ROUNDS {
        let start = Instant::now();
        context.compute(names.iter().cloned().zip(input.clone()).collect(), &stop)?;
        let undivided = start.elapsed().as_secs_f64() * 1e6;
        let start = Instant::now();
        chain(&deployment, &input, &stop)?;
        let divided = start.elapsed().as_secs_f64() * 1e6;
        if round >= WARM_UP {
            whole_us.push(undivided);
            chain_us.push(divided);
            ratios.push(divided / undivided);
        }
    }
    let report = Report {
        segments: bundle.manifest().segments.len(),
        whole_us: quantile(&mut whole_us, 0.5),
        chain_us: quantile(&mut chain_us, 0.5),
        ratio: quantile(&mut ratios, 0.5),
    };
    output.line(format_args!(
        "{}: undivided {:.0} us, {} segments through the sandbox {:.0} us, ratio {:.3}",
        bundle.manifest().name,
        report.whole_us,
        report.segments,
        report.chain_us,
        report.ratio
    ));
    output.result(&report)
}

/// Every segment once, so that every exit is answered, as the undivided network does; activations are
/// let go where they are used last, as tract does within a network.
fn chain(deployment: &Deployment, input: &[Tensor], stop: &Stop) -> Result<()> {
    let segments = &deployment.manifest().segments;
    let mut activations = vec![None; deployment.manifest().boundaries.len()];
    activations[0] = Some(input.to_vec());
    for (index, segment) in segments.iter().enumerate() {
        let used_later = segments[index + 1..].iter().any(|later| later.from == segment.from);
        let activation = if used_later { activations[segment.from].clone() } else { activations[segment.from].take() };
        let activation = activation.context("a segment before the one it depends on")?;
        activations[segment.to] = Some(deployment.step(index, activation, stop)?);
    }
    Ok(())
}

fn open(model: &Path, scratch: &Path, output: &Output) -> Result<Bundle> {
    if model.is_file() {
        build(model, &scratch.join("bundle"), CODEC_SAMPLES.min(1), output)
    } else {
        Ok(Bundle::open(model)?)
    }
}
