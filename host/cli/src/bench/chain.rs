//! What cutting a network into sandboxed segments costs altogether.
//!
//! A host runs the segments of a plan in one call (`runtime/src/runs.rs`), so there are three ways to run a network by its
//! segments: all in one run, as a host does that runs all of it; cut once, in two runs, as two hosts do; and each segment by
//! itself. All take turns with the undivided network.

use crate::build::{CODEC_SAMPLES, build};
use crate::output::{BadInput, Output, geometric_mean, quantile};
use crate::verify::undivided_to;
use anyhow::Result;
use edgent_bundle::Bundle;
use edgent_nn::{Stop, Tensor, example};
use edgent_runtime::Deployment;
use edgent_sandbox::Engine;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const ROUNDS_MAX: usize = 300;
const WARM_UP: usize = 3;
/// A network that takes long gets fewer rounds, some at least.
const TURNS: Duration = Duration::from_secs(12);
const ROUNDS_MIN: usize = 9;
const SEED: u64 = 1;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A bundle's folder, or an ONNX file to build one from.
    #[arg(long, default_value = "models/branchy-alexnet/branchy-alexnet.onnx")]
    model: PathBuf,
    /// Every ONNX file in this folder instead, as `just bench-models` makes them.
    #[arg(long, value_name = "DIR", conflicts_with = "model")]
    nets: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    rows: Vec<Row>,
    /// The greatest ratio and the geometric mean of those that have cuts.
    worst_ratio: f64,
    mean_ratio: f64,
}

/// Times are medians; ratios those of neighbouring turns: what the machine does meanwhile hits both.
#[derive(Clone, Serialize)]
struct Row {
    model: String,
    /// On the way to the last exit.
    segments: usize,
    whole_us: f64,
    /// All segments in one run.
    chain_us: f64,
    ratio: f64,
    /// The same, by the shortest of each, which other work on the machine disturbed least.
    least_ratio: f64,
    /// Cut in the middle.
    cut_ratio: f64,
    /// Each segment by itself.
    single_ratio: f64,
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    output.line("network            segments   whole us    one run  ratio (least)  cut once  one by one");
    let Some(folder) = &arguments.nets else {
        let row = measure(&arguments.model, output)?;
        // The keys of the one network, as ever.
        return output.result(&row);
    };
    let mut rows = Vec::new();
    for path in files(folder)? {
        rows.push(measure(&path, output)?);
    }
    let cut = || rows.iter().filter(|row| row.segments > 1).map(|row| row.ratio);
    let (worst_ratio, mean_ratio) = (cut().fold(0.0, f64::max), geometric_mean(cut()));
    output.line(format_args!("of {} networks with cuts: mean {mean_ratio:.3}, worst {worst_ratio:.3}", cut().count()));
    output.result(&Report { rows, worst_ratio, mean_ratio })
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|e| BadInput::error(format!("{}: {e}", folder.display())))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "onnx"));
    paths.sort();
    Ok(paths)
}

fn measure(model: &Path, output: &Output) -> Result<Row> {
    let scratch = tempfile::tempdir()?;
    let bundle = open(model, scratch.path(), output)?;
    let deployment = Deployment::prepare(&bundle, &Engine::new()?, 1.0)?;
    let manifest = bundle.manifest();
    anyhow::ensure!(
        manifest.segments.iter().all(edgent_bundle::Segment::has_graph),
        "its maker's own guests stand around this network: there is no undivided one to compare with"
    );
    let exit = manifest.exits.len() - 1;
    let segments = manifest.exits[exit].path.len();
    let whole = undivided_to(&bundle, exit)?;
    let mut context = whole.context()?;
    let input = deployment.inputs().map(|fact| example(fact, SEED)).collect::<Result<Vec<Tensor>, _>>()?;
    let named = || whole.inputs().iter().map(|port| port.name.clone()).zip(input.clone()).collect();
    let stop = Stop::never();
    let in_runs = |cuts: &[usize]| -> Result<()> {
        let mut crossing = input.clone();
        for ends in cuts.windows(2) {
            crossing = deployment.run(exit, ends[0]..ends[1], crossing, &stop)?.output;
        }
        Ok(())
    };
    let (one_run, cut_once) = ([0, segments], [0, segments / 2, segments]);
    let one_by_one: Vec<usize> = (0..=segments).collect();
    let ways: [&mut dyn FnMut() -> Result<()>; 4] = [
        &mut || Ok(context.compute(named(), &stop).map(drop)?),
        &mut || in_runs(&one_run),
        &mut || in_runs(if segments > 1 { &cut_once } else { &one_run }),
        &mut || in_runs(&one_by_one),
    ];
    let mut times_us: [Vec<f64>; 4] = Default::default();
    let begun = Instant::now();
    for round in 0..WARM_UP + ROUNDS_MAX {
        if round >= WARM_UP + ROUNDS_MIN && begun.elapsed() > TURNS {
            break;
        }
        // Each comes first as often as the others.
        for turn in 0..ways.len() {
            let way = (round + turn) % ways.len();
            // The first run finds others' data in the caches: the undivided network has weights of its own.
            ways[way]()?;
            let start = Instant::now();
            ways[way]()?;
            if round >= WARM_UP {
                times_us[way].push(start.elapsed().as_secs_f64() * 1e6);
            }
        }
    }
    let ratio = |way: usize| {
        let mut ratios: Vec<f64> = times_us[way].iter().zip(&times_us[0]).map(|(us, whole)| us / whole).collect();
        quantile(&mut ratios, 0.5)
    };
    let quantiles = |way: usize, q: f64| quantile(&mut times_us[way].clone(), q);
    let row = Row {
        model: manifest.name.clone(),
        segments,
        whole_us: quantiles(0, 0.5),
        chain_us: quantiles(1, 0.5),
        ratio: ratio(1),
        least_ratio: quantiles(1, 0.0) / quantiles(0, 0.0),
        cut_ratio: ratio(2),
        single_ratio: ratio(3),
    };
    output.line(format_args!(
        "{:<18} {:>8} {:>10.0} {:>10.0} {:>6.3} {:>7.3} {:>9.3} {:>11.3}",
        row.model,
        row.segments,
        row.whole_us,
        row.chain_us,
        row.ratio,
        row.least_ratio,
        row.cut_ratio,
        row.single_ratio
    ));
    Ok(row)
}

fn open(model: &Path, scratch: &Path, output: &Output) -> Result<Bundle> {
    if model.is_file() {
        build(model, &scratch.join("bundle"), CODEC_SAMPLES.min(1), output)
    } else {
        Ok(Bundle::open(model)?)
    }
}
