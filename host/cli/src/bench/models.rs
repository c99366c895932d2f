//! What it costs to compute networks with tract, as hosts prepare them, instead of with onnxruntime; both on one thread, in
//! one run, by turns.
//!
//! onnxruntime is a child in Python (tests/peers/onnxruntime_turns.py), which times its own runs: the pipe is in neither's
//! time. `just bench-models` installs it and makes the networks.

mod operators;
mod passes;
mod peer;

use crate::chart::Bars;
use crate::output::{BadInput, Output, geometric_mean, quantile};
use anyhow::{Context as _, Result};
use edgent_nn::{Context, Difference, Graph, Imported, Pins, Stop, Tensor, example};
use peer::Peer;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The first runs of a turn find other code's data in the caches.
const WARM_UP: usize = 1;
/// A turn has as many runs as fit into this, one at least.
const TURN_MS: f64 = 60.0;
const TURN_RUNS_MAX: usize = 20;
const SEED: u64 = 1;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    nets: Nets,
    /// A Python that has onnxruntime.
    #[arg(long, value_name = "FILE", default_value = "target/peers/bin/python")]
    python: PathBuf,
    /// Turns of each side.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Has tract alone run, too, without what is done here for speed.
    #[arg(long)]
    plain: bool,
    /// Where one network's time goes, by kinds of operators and for the slowest of them, instead.
    #[arg(long, value_name = "NET")]
    operators: Option<String>,
    /// What each of the things that are done here for speed gains, instead: times without it. Needs no onnxruntime.
    #[arg(long, conflicts_with = "operators")]
    passes: bool,
    /// Draws the ratios.
    #[arg(long, value_name = "FILE.svg")]
    chart: Option<PathBuf>,
}

/// Which networks.
#[derive(clap::Args)]
pub(super) struct Nets {
    /// A folder of ONNX files whose dimensions are fixed, as tests/peers/nets.py writes it.
    #[arg(long = "nets", value_name = "DIR", default_value = "target/peers/nets")]
    folder: PathBuf,
    /// Only networks whose name has this in it.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

#[derive(Serialize)]
struct Report {
    rows: Vec<Row>,
    /// Geometric means of the networks' ratios.
    ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    plain_ratio: Option<f64>,
}

#[derive(Serialize)]
struct Row {
    model: String,
    threads: usize,
    /// Medians…
    ours_ms: f64,
    ort_ms: f64,
    /// …and the shortest runs, which other work on the machine disturbed least.
    ours_min_ms: f64,
    ort_min_ms: f64,
    /// Median of the ratios of neighbouring turns: what the machine does meanwhile hits both.
    ratio: f64,
    min_ratio: f64,
    /// The same ratio for tract alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    plain_ratio: Option<f64>,
    /// The largest difference of two outputs' elements, as a share of that output's greatest.
    max_difference: f64,
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    if arguments.passes {
        return passes::run(arguments, output);
    }
    let mut peer = Peer::start(&arguments.python)?;
    if let Some(name) = &arguments.operators {
        let net = Net::read(&arguments.nets.folder.join(format!("{name}.onnx")))?;
        return operators::run(&net, &mut peer, output);
    }
    let mut report = Report { rows: Vec::new(), ratio: 0.0, plain_ratio: None };
    output.line("network             tract ms  (least)    ort ms  (least)  ratio  (least)  difference");
    for path in arguments.nets.files()? {
        let row = measure(&Net::read(&path)?, &mut peer, arguments)?;
        output.line(format_args!(
            "{:<18} {:>9.3} {:>8.3} {:>9.3} {:>8.3} {:>6.2} {:>8.2}  {:>10.1e}{}",
            row.model,
            row.ours_ms,
            row.ours_min_ms,
            row.ort_ms,
            row.ort_min_ms,
            row.ratio,
            row.min_ratio,
            row.max_difference,
            row.plain_ratio.map_or_else(String::new, |ratio| format!("  tract alone {ratio:.2}"))
        ));
        report.rows.push(row);
    }
    report.ratio = geometric_mean(report.rows.iter().map(|row| row.ratio));
    report.plain_ratio = arguments.plain.then(|| geometric_mean(report.rows.iter().filter_map(|row| row.plain_ratio)));
    output.line(format_args!(
        "geometric mean of {} networks: {:.2}{}",
        report.rows.len(),
        report.ratio,
        report.plain_ratio.map_or_else(String::new, |ratio| format!("; tract alone {ratio:.2}"))
    ));
    if let Some(path) = &arguments.chart {
        let file = chart(&report).file();
        fs::write(path, file).map_err(|e| BadInput::error(format!("{}: {e}", path.display())))?;
    }
    output.result(&report)
}

impl Nets {
    /// The folder's ONNX files, or those that are wanted.
    pub(super) fn files(&self) -> Result<Vec<PathBuf>> {
        let missing = |why: &dyn std::fmt::Display| {
            BadInput::error(format!("{}: {why}; `just bench-models` makes the networks", self.folder.display()))
        };
        let entries = fs::read_dir(&self.folder).map_err(|e| missing(&e))?;
        let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        let wanted = |path: &PathBuf| self.only.as_ref().is_none_or(|only| name(path).contains(only));
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "onnx") && wanted(path));
        paths.sort();
        if paths.is_empty() {
            return Err(missing(&"there is no such network"));
        }
        Ok(paths)
    }
}

fn name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// One network and what it is asked.
pub(super) struct Net {
    pub(super) name: String,
    path: PathBuf,
    pub(super) imported: Imported,
    pub(super) inputs: Vec<(String, Tensor)>,
}

impl Net {
    pub(super) fn read(path: &Path) -> Result<Self> {
        Self::pinned(path, &Pins::default())
    }

    pub(super) fn pinned(path: &Path, pins: &Pins) -> Result<Self> {
        let bytes = fs::read(path).map_err(|e| BadInput::error(format!("{}: {e}", path.display())))?;
        let imported = Imported::from_onnx(&bytes, pins)?;
        let inputs = imported.inputs().iter().map(|port| Ok((port.name.clone(), example(&port.fact, SEED)?)));
        let inputs = inputs.collect::<Result<_>>()?;
        Ok(Self { name: name(path), path: path.to_owned(), imported, inputs })
    }
}

/// Has each side run by turns.
fn measure(net: &Net, peer: &mut Peer, arguments: &Arguments) -> Result<Row> {
    let graph = net.imported.whole().with_context(|| net.name.clone())?;
    let mut ours = graph.context()?;
    let mut plain = match arguments.plain {
        true => Some(net.imported.plain()?.context()?),
        false => None,
    };
    let theirs = peer.load(&net.path, &net.inputs)?;
    let max_difference = difference(&graph, &mut ours, &net.inputs, &theirs)?;
    let runs = |ms: Vec<f64>| ((TURN_MS / quantile(&mut ms.clone(), 0.5)) as usize).clamp(1, TURN_RUNS_MAX);
    let (our_runs, their_runs) = (runs(turn(&mut ours, &net.inputs, 3)?), runs(peer.run(3)?));
    let (mut ours_ms, mut ort_ms, mut ratios, mut plain_ratios) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..arguments.rounds.max(1) {
        let (mut us, mut them);
        if round % 2 == 0 {
            us = turn(&mut ours, &net.inputs, our_runs)?;
            them = peer.run(WARM_UP + their_runs)?.split_off(WARM_UP);
        } else {
            them = peer.run(WARM_UP + their_runs)?.split_off(WARM_UP);
            us = turn(&mut ours, &net.inputs, our_runs)?;
        }
        let theirs = quantile(&mut them, 0.5);
        ratios.push(quantile(&mut us, 0.5) / theirs);
        if let Some(plain) = &mut plain {
            plain_ratios.push(quantile(&mut turn(plain, &net.inputs, our_runs)?, 0.5) / theirs);
        }
        ours_ms.append(&mut us);
        ort_ms.append(&mut them);
    }
    let [ours_min_ms, ort_min_ms] = [&mut ours_ms, &mut ort_ms].map(|times| quantile(times, 0.0));
    Ok(Row {
        model: net.name.clone(),
        threads: 1,
        ours_ms: quantile(&mut ours_ms, 0.5),
        ort_ms: quantile(&mut ort_ms, 0.5),
        ours_min_ms,
        ort_min_ms,
        ratio: quantile(&mut ratios, 0.5),
        min_ratio: ours_min_ms / ort_min_ms,
        plain_ratio: plain.is_some().then(|| quantile(&mut plain_ratios, 0.5)),
        max_difference,
    })
}

/// The times of some runs after the first.
fn turn(context: &mut Context, inputs: &[(String, Tensor)], runs: usize) -> Result<Vec<f64>> {
    let mut times_ms = Vec::with_capacity(runs);
    for run in 0..WARM_UP + runs {
        let given = inputs.to_vec();
        let since = Instant::now();
        context.compute(given, &Stop::never())?;
        if run >= WARM_UP {
            times_ms.push(since.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(times_ms)
}

fn difference(graph: &Graph, ours: &mut Context, inputs: &[(String, Tensor)], theirs: &peer::Outputs) -> Result<f64> {
    let outputs = ours.compute(inputs.to_vec(), &Stop::never())?;
    let mut most = 0.0;
    for ((name, tensor), port) in outputs.iter().zip(graph.outputs()) {
        let peers = theirs.tensor(name, &port.fact).with_context(|| format!("onnxruntime gives no '{name}'"))?;
        let apart = Difference::of(tensor, &peers).with_context(|| format!("'{name}' cannot be compared"))?;
        let share = if apart.most == 0.0 { 0.0 } else { apart.most / apart.greatest };
        most = if share.is_nan() { f64::INFINITY } else { f64::max(most, share) };
    }
    Ok(most)
}

fn chart(report: &Report) -> Bars {
    let mut measures = vec!["as hosts prepare it".to_owned()];
    measures.extend(report.plain_ratio.map(|_| "tract alone".to_owned()));
    let ratios = |row: &Row| [Some(row.ratio), row.plain_ratio].into_iter().flatten().collect();
    let rows = report.rows.iter().map(|row| (row.model.clone(), ratios(row))).collect();
    Bars { title: "Time on one thread, as a multiple of onnxruntime's".to_owned(), measures, rows, mark: 1.0 }
}
