//! What it costs to have a network computed inside the sandbox, by code that ships with this program, instead of by
//! the host: time, size, and how far the answers are apart.

use crate::build::build;
use crate::output::{Output, geometric_mean, quantile};
use anyhow::{Context, Result};
use edgent_bundle::{portable_guest, standard_guest};
use edgent_nn::{Graph, Published, Stop, Tensor, synthetic};
use edgent_runtime::golden::difference;
use edgent_runtime::{Deployment, Terms, Tiers};
use edgent_sandbox::{Engine, Limits, OwnGraph, Purpose, Segment, Work};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

const WARM_UP: usize = 2;
const SEED: u64 = 1;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// An ONNX file, cut into segments and run to its last exit, beside the published networks.
    #[arg(long, default_value = "models/branchy-alexnet/branchy-alexnet.onnx")]
    model: PathBuf,
    /// Times that each network is run both ways.
    #[arg(long, default_value_t = 30)]
    rounds: usize,
}

#[derive(Serialize)]
struct Report {
    rows: Vec<Row>,
    /// Geometric mean of the networks' ratios.
    ratio: f64,
    max_abs_diff: f64,
    code: Code,
}

/// The code that all portable segments share.
#[derive(Serialize)]
struct Code {
    bytes: usize,
    /// Once for each host and version of this program…
    compile_ms: f64,
    /// …and at each later start.
    reuse_ms: f64,
}

#[derive(Serialize)]
struct Row {
    network: String,
    segments: usize,
    graph_bytes: usize,
    native_ms: f64,
    portable_ms: f64,
    /// Median of the ratios of neighbouring runs: what the machine does meanwhile hits both.
    ratio: f64,
    /// Where values are greater than 1, as a share of the greatest.
    max_abs_diff: f64,
    /// The median of the segments' times to be ready for the first call, their code being there.
    prepare_ms: f64,
}

/// One network, both ways.
struct Case {
    network: String,
    segments: usize,
    graph_bytes: usize,
    input: Vec<Tensor>,
    native: Run,
    portable: Run,
    prepare_ms: f64,
}

type Run = Box<dyn Fn(Vec<Tensor>) -> Result<Vec<Tensor>>>;

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let (engine, code) = code(output)?;
    let mut cases = vec![cut(arguments, scratch.path().join("bundle"), &engine, output)?];
    for network in Published::ALL {
        cases.push(whole(network, &engine)?);
    }
    let rows = cases.into_iter().map(|case| measure(case, arguments.rounds)).collect::<Result<Vec<_>>>()?;
    let report = Report {
        ratio: geometric_mean(rows.iter().map(|row| row.ratio)),
        max_abs_diff: rows.iter().map(|row| row.max_abs_diff).fold(0.0, f64::max),
        code,
        rows,
    };
    for row in &report.rows {
        output.line(format_args!(
            "{:<16} {:>2} segments  native {:>8.3} ms  portable {:>8.3} ms  ratio {:.2}  difference {:.1e}  ready in {:.0} ms",
            row.network, row.segments, row.native_ms, row.portable_ms, row.ratio, row.max_abs_diff, row.prepare_ms
        ));
    }
    output.line(format_args!(
        "geometric mean {:.2}; {} bytes of code, compiled in {:.1} s, later starts {:.0} ms",
        report.ratio,
        report.code.bytes,
        report.code.compile_ms / 1e3,
        report.code.reuse_ms
    ));
    output.result(&report)
}

/// Compiles the guest as a host does at its first start, and then as at a later one.
fn code(output: &Output) -> Result<(Engine, Code)> {
    let cache = tempfile::tempdir()?;
    let start = || -> Result<(Engine, f64)> {
        let engine = Engine::keeping(Some(cache.path().join("code")))?;
        let since = Instant::now();
        engine.compile_shipped(Purpose::Computes, portable_guest())?;
        Ok((engine, since.elapsed().as_secs_f64() * 1e3))
    };
    output.progress("compiling the portable guest");
    let (_, compile_ms) = start()?;
    let (_, reuse_ms) = start()?;
    let (engine, _) = start()?;
    Ok((engine, Code { bytes: portable_guest().len(), compile_ms, reuse_ms }))
}

/// A network in segments, as bundles have it.
fn cut(arguments: &Arguments, out: PathBuf, engine: &Engine, output: &Output) -> Result<Case> {
    let bundle = build(&arguments.model, &out, 1, output)?;
    // Keeps the code from being forgotten between the two.
    let _code = engine.compile_shipped(Purpose::Computes, portable_guest())?;
    let native = Deployment::prepare(&bundle, engine, 1.0)?;
    let since = Instant::now();
    let portable = Deployment::prepare_on(&bundle, engine, &Terms { tiers: Tiers::Portable, ..Terms::default() })?;
    let prepare_ms = since.elapsed().as_secs_f64() * 1e3 / bundle.manifest().segments.len() as f64;
    let mut exits = bundle.manifest().exits.iter().map(|exit| exit.path.len()).enumerate();
    let (exit, segments) = exits.next_back().context("a bundle without exits")?;
    let input = native.inputs().map(|fact| edgent_nn::example(fact, SEED)).collect::<Result<_, _>>()?;
    let run = |deployment: Deployment| -> Run {
        Box::new(move |input| Ok(deployment.run(exit, 0..segments, input, &Stop::never())?.output))
    };
    Ok(Case {
        network: bundle.manifest().name.clone(),
        segments,
        graph_bytes: bundle.manifest().segments.iter().map(|segment| segment.component.bytes as usize).sum(),
        input,
        native: run(native),
        portable: run(portable),
        prepare_ms,
    })
}

/// A network as one segment.
fn whole(network: Published, engine: &Engine) -> Result<Case> {
    let (bytes, format) = network.graph(SEED)?;
    let graph = Graph::load(&bytes, format)?;
    let (inputs, outputs) = (graph.inputs().to_vec(), graph.outputs().to_vec());
    let (name, graph_bytes, macs) = (network.name(), bytes.len(), graph.cost().macs);
    let input = vec![synthetic::noise(&inputs[0].fact, SEED)?];
    let crossing_bytes = inputs.iter().chain(&outputs).map(|port| port.fact.bytes()).sum();
    let native = Segment::new(name, &engine.compile(standard_guest())?, graph, Limits::default())?;
    let code = engine.compile_shipped(Purpose::Computes, portable_guest())?;
    let work = Work::InGuest(OwnGraph::new(bytes, inputs, outputs));
    let since = Instant::now();
    let portable = Segment::new(name, &code, work, Limits::computing(graph_bytes, crossing_bytes, macs))?;
    let prepare_ms = since.elapsed().as_secs_f64() * 1e3;
    let run = |segment: Segment| -> Run { Box::new(move |input| Ok(segment.run(input, &Stop::never())?)) };
    Ok(Case {
        network: name.to_owned(),
        segments: 1,
        graph_bytes,
        input,
        native: run(native),
        portable: run(portable),
        prepare_ms,
    })
}

fn measure(case: Case, rounds: usize) -> Result<Row> {
    let Case { network, segments, graph_bytes, input, native, portable, prepare_ms } = case;
    let timed = |run: &Run| -> Result<(Vec<Tensor>, f64)> {
        let input = input.clone();
        let since = Instant::now();
        let given = run(input)?;
        Ok((given, since.elapsed().as_secs_f64() * 1e3))
    };
    let (mut native_ms, mut portable_ms, mut ratios, mut max_abs_diff) = (Vec::new(), Vec::new(), Vec::new(), 0.0);
    for round in 0..WARM_UP + rounds {
        let ((theirs, there_ms), (ours, here_ms)) = (timed(&native)?, timed(&portable)?);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            let apart = difference(ours, theirs).context("the answers cannot be compared")?;
            max_abs_diff = if apart.is_nan() { f64::INFINITY } else { f64::max(max_abs_diff, apart) };
        }
        if round >= WARM_UP {
            native_ms.push(there_ms);
            portable_ms.push(here_ms);
            ratios.push(here_ms / there_ms);
        }
    }
    Ok(Row {
        network,
        segments,
        graph_bytes,
        native_ms: quantile(&mut native_ms, 0.5),
        portable_ms: quantile(&mut portable_ms, 0.5),
        ratio: quantile(&mut ratios, 0.5),
        max_abs_diff,
        prepare_ms,
    })
}
