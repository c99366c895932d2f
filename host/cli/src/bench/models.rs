//! What it costs to compute networks with tract, as hosts prepare them, instead of with onnxruntime; both on as many threads,
//! in one run, by turns. Beside them, if it is wanted, a host that has both and chooses for each segment.
//!
//! onnxruntime is a child in Python (tests/peers/onnxruntime_turns.py), which times its own runs: the pipe is in neither's
//! time. `just bench-models` installs it and makes the networks.

mod both;
mod operators;
mod passes;
mod peer;

use crate::chart::Bars;
use crate::output::{BadInput, Output, geometric_mean, quantile};
use anyhow::{Context as _, Result};
use both::Both;
use edgent_nn::{Context, Difference, Graph, Imported, Onnxruntime, Pins, Stop, Tensor, example, threads_or_max};
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
    /// How many threads a run may have, of both sides; 0 for one a processor. Ours has as many of them as pay, as on a host.
    #[arg(long, value_name = "N", value_parser = crate::bounds::threads, default_value_t = 1)]
    threads: usize,
    /// Has tract alone run, too, without what is done here for speed.
    #[arg(long)]
    plain: bool,
    /// Has each network run by its segments, too, each computed by tract or by onnxruntime from this library, whichever is
    /// faster; as a host does that has both.
    #[arg(long, value_name = "LIBRARY")]
    onnxruntime: Option<PathBuf>,
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
    threads: usize,
    rows: Vec<Row>,
    /// Geometric means of the networks' ratios.
    ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    plain_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    both_ratio: Option<f64>,
}

#[derive(Serialize)]
struct Row {
    model: String,
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
    /// The same ratio for a host that has both backends.
    #[serde(skip_serializing_if = "Option::is_none")]
    both_ratio: Option<f64>,
    /// How many segments that host has onnxruntime compute, and how many there are on the way to the last exit.
    #[serde(skip_serializing_if = "Option::is_none")]
    by_onnxruntime: Option<[usize; 2]>,
    /// The largest difference of two outputs' elements, as a share of that output's greatest.
    max_difference: f64,
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    if arguments.passes {
        return passes::run(arguments, output);
    }
    let threads = threads_or_max(arguments.threads);
    let mut peer = Peer::start(&arguments.python, threads)?;
    if let Some(name) = &arguments.operators {
        let net = Net::read(&arguments.nets.folder.join(format!("{name}.onnx")))?;
        return operators::run(&net, &mut peer, threads, output);
    }
    let onnxruntime = arguments.onnxruntime.as_deref().map(Onnxruntime::open).transpose().map_err(BadInput::error)?;
    output.line("network             tract ms  (least)    ort ms  (least)  ratio  (least)  difference");
    let mut rows = Vec::new();
    for path in arguments.nets.files()? {
        let net = Net::read(&path)?;
        let both = onnxruntime.clone().map(|theirs| Both::prepare(&net, theirs, threads)).transpose()?;
        let row = Sides::prepare(&net, &mut peer, both, threads, arguments.plain)?.measure(arguments.rounds)?;
        output.line(row.line());
        rows.push(row);
    }
    let mean_of = |of: fn(&Row) -> Option<f64>| geometric_mean(rows.iter().filter_map(of));
    let ratio = mean_of(|row| Some(row.ratio));
    let plain_ratio = arguments.plain.then(|| mean_of(|row| row.plain_ratio));
    let both_ratio = onnxruntime.map(|_| mean_of(|row| row.both_ratio));
    output.line(format_args!(
        "geometric mean of {} networks, {threads} threads: {ratio:.2}{}{}",
        rows.len(),
        plain_ratio.map_or_else(String::new, |ratio| format!("; tract alone {ratio:.2}")),
        both_ratio.map_or_else(String::new, |ratio| format!("; with both {ratio:.2}"))
    ));
    let report = Report { threads, rows, ratio, plain_ratio, both_ratio };
    if let Some(path) = &arguments.chart {
        let file = chart(&report).file();
        fs::write(path, file).map_err(|e| BadInput::error(format!("{}: {e}", path.display())))?;
    }
    output.result(&report)
}

impl Row {
    fn line(&self) -> String {
        let ratio = |name, ratio: Option<f64>| ratio.map_or_else(String::new, |ratio| format!("  {name} {ratio:.2}"));
        let of = self.by_onnxruntime.map_or_else(String::new, |[theirs, all]| format!(" ({theirs} of {all})"));
        format!(
            "{:<18} {:>9.3} {:>8.3} {:>9.3} {:>8.3} {:>6.2} {:>8.2}  {:>10.1e}{}{}{of}",
            self.model,
            self.ours_ms,
            self.ours_min_ms,
            self.ort_ms,
            self.ort_min_ms,
            self.ratio,
            self.min_ratio,
            self.max_difference,
            ratio("tract alone", self.plain_ratio),
            ratio("with both", self.both_ratio)
        )
    }
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

/// Those who take turns.
struct Sides<'a> {
    net: &'a Net,
    ours: Context,
    plain: Option<Context>,
    both: Option<Both>,
    peer: &'a mut Peer,
    max_difference: f64,
}

impl<'a> Sides<'a> {
    fn prepare(net: &'a Net, peer: &'a mut Peer, both: Option<Both>, threads: usize, plain: bool) -> Result<Self> {
        let graph = net.imported.whole().with_context(|| net.name.clone())?;
        // As many as pay, like a host.
        graph.choose_threads(threads);
        let mut ours = graph.context()?;
        let plain = if plain { Some(net.imported.plain()?.context()?) } else { None };
        let theirs = peer.load(&net.path, &net.inputs)?;
        let max_difference = difference(&graph, &mut ours, &net.inputs, &theirs)?;
        Ok(Self { net, ours, plain, both, peer, max_difference })
    }

    fn measure(mut self, rounds: usize) -> Result<Row> {
        let runs = |ms: Vec<f64>| ((TURN_MS / quantile(&mut ms.clone(), 0.5)) as usize).clamp(1, TURN_RUNS_MAX);
        let (our_runs, their_runs) = (runs(self.our_turn(3)?), runs(self.their_turn(3)?));
        let (mut ours_ms, mut ort_ms, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        let (mut plain_ratios, mut both_ratios) = (Vec::new(), Vec::new());
        for round in 0..rounds.max(1) {
            let (mut us, mut them);
            if round % 2 == 0 {
                us = self.our_turn(our_runs)?;
                them = self.their_turn(their_runs)?;
            } else {
                them = self.their_turn(their_runs)?;
                us = self.our_turn(our_runs)?;
            }
            let theirs = quantile(&mut them, 0.5);
            ratios.push(quantile(&mut us, 0.5) / theirs);
            let inputs = &self.net.inputs;
            if let Some(plain) = &mut self.plain {
                plain_ratios.push(quantile(&mut turn(our_runs, || compute(plain, inputs))?, 0.5) / theirs);
            }
            if let Some(both) = &self.both {
                both_ratios.push(quantile(&mut turn(our_runs, || both.compute(inputs))?, 0.5) / theirs);
            }
            ours_ms.append(&mut us);
            ort_ms.append(&mut them);
        }
        let [ours_min_ms, ort_min_ms] = [&mut ours_ms, &mut ort_ms].map(|times| quantile(times, 0.0));
        Ok(Row {
            model: self.net.name.clone(),
            ours_ms: quantile(&mut ours_ms, 0.5),
            ort_ms: quantile(&mut ort_ms, 0.5),
            ours_min_ms,
            ort_min_ms,
            ratio: quantile(&mut ratios, 0.5),
            min_ratio: ours_min_ms / ort_min_ms,
            plain_ratio: self.plain.map(|_| quantile(&mut plain_ratios, 0.5)),
            both_ratio: self.both.as_ref().map(|_| quantile(&mut both_ratios, 0.5)),
            by_onnxruntime: self.both.map(|both| both.by_onnxruntime()),
            max_difference: self.max_difference,
        })
    }

    fn our_turn(&mut self, runs: usize) -> Result<Vec<f64>> {
        turn(runs, || compute(&mut self.ours, &self.net.inputs))
    }

    fn their_turn(&mut self, runs: usize) -> Result<Vec<f64>> {
        Ok(self.peer.run(WARM_UP + runs)?.split_off(WARM_UP))
    }
}

/// The times of some runs after the first.
fn turn(runs: usize, mut run: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let mut times_ms = Vec::with_capacity(runs);
    for number in 0..WARM_UP + runs {
        let since = Instant::now();
        run()?;
        if number >= WARM_UP {
            times_ms.push(since.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(times_ms)
}

fn compute(context: &mut Context, inputs: &[(String, Tensor)]) -> Result<()> {
    Ok(context.compute(inputs.to_vec(), &Stop::never()).map(drop)?)
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
    measures.extend(report.both_ratio.map(|_| "with both backends".to_owned()));
    measures.extend(report.plain_ratio.map(|_| "tract alone".to_owned()));
    let ratios = |row: &Row| [Some(row.ratio), row.both_ratio, row.plain_ratio].into_iter().flatten().collect();
    let rows = report.rows.iter().map(|row| (row.model.clone(), ratios(row))).collect();
    let threads = if report.threads == 1 { "one thread".to_owned() } else { format!("{} threads", report.threads) };
    Bars { title: format!("Time on {threads}, as a multiple of onnxruntime's"), measures, rows, mark: 1.0 }
}
