//! How soon a device answers after its start, and the memory that it takes.
//!
//! The device is a real process, once with nothing kept on disk, then with what its first start kept: that the bundle
//! passed its trial, and the standard guest, compiled. Once more, it starts where address space is as short as on a
//! small board. What an instance and a second version of the same segments take is measured in this process.

use crate::ask::{ask, connect};
use crate::build::build_confined;
use crate::hosts::HostProcess;
use crate::output::{Output, quantile};
use crate::rig::test_samples;
use anyhow::{Context, Result, ensure};
use edgent_bundle::{Bundle, split};
use edgent_link::{Link, Security};
use edgent_nn::{Graph, GraphFormat, Stop, Tensor};
use edgent_runtime::Deployment;
use edgent_sandbox::{Code, Engine, Limits, Segment};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Samples with which the bundle is built: no figure here depends on how well codecs do.
const SAMPLES: usize = 1;

/// So many more instances of each segment are made, to see what one takes.
const INSTANCES: usize = 16;

/// Of a small board.
const ADDRESS_SPACE_BYTES: u64 = 2 << 30;

const RESIDENT_MIB_MAX: f64 = 64.0;
const INSTANCE_MIB_MAX: f64 = 2.0;
const FIRST_ANSWER_MS_MAX: f64 = 300.0;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// An ONNX file with its model.toml.
    #[arg(long, default_value = "models/branchy-alexnet/branchy-alexnet.onnx")]
    model: PathBuf,
    /// Starts with what the first one kept.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    starts: u32,
}

#[derive(Serialize)]
struct Report {
    segments: usize,
    /// Of all components: the weights, and a copy of the standard guest for each segment.
    components_mib: f64,
    first_start: Start,
    /// The median of the later ones.
    later_start: Start,
    /// Under a limit on address space.
    short_of_space: Start,
    address_space_mib: f64,
    /// A second deployment of the same segments.
    second_version_mib: f64,
    /// One more instance of every segment: what one more request at a time takes.
    instances_mib: f64,
    /// The mean of them.
    instance_mib: f64,
}

/// From the moment in which the process is asked for.
#[derive(Clone, Serialize)]
struct Start {
    ready_ms: f64,
    first_answer_ms: f64,
    /// After that answer.
    resident_mib: f64,
    /// Of it, what is the process's alone; the rest is this program's file, shared with whoever runs it.
    anonymous_mib: f64,
    /// The most address space that it had.
    address_space_mib: f64,
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let bundle = build_confined(&arguments.model, &scratch.path().join("bundle"), SAMPLES, output)?;
    // First, while this process is small.
    let (second_version_mib, instances_mib) = (second_version_mib(&bundle)?, instances_mib(&bundle)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let [first_start, later_start, short_of_space] =
        runtime.block_on(starts(&bundle, scratch.path(), arguments.starts, output))?;
    let segments = bundle.manifest().segments.len();
    let report = Report {
        segments,
        components_mib: edgent_runtime::components_bytes(bundle.manifest()) as f64 / MIB,
        first_start,
        later_start,
        short_of_space,
        address_space_mib: ADDRESS_SPACE_BYTES as f64 / MIB,
        second_version_mib,
        instances_mib,
        instance_mib: instances_mib / segments as f64,
    };
    print(&report, output);
    output.result(&report)
}

/// The first start with an empty store, the median of later ones, and one where address space is short.
async fn starts(bundle: &Bundle, scratch: &Path, later: u32, output: &Output) -> Result<[Start; 3]> {
    let image = test_samples(bundle)?.into_iter().next().context("the model has no samples")?.image;
    let device =
        Device { bundle, store: scratch.join("store"), image, link: Link::start(Security::plain_on_loopback(None))? };
    output.progress("starting devices");
    let first = device.start().await?;
    let mut all = Vec::new();
    for _ in 0..later {
        all.push(device.start().await?);
    }
    let median = |of: fn(&Start) -> f64| quantile(&mut all.iter().map(of).collect::<Vec<_>>(), 0.5);
    let median = Start {
        ready_ms: median(|start| start.ready_ms),
        first_answer_ms: median(|start| start.first_answer_ms),
        resident_mib: median(|start| start.resident_mib),
        anonymous_mib: median(|start| start.anonymous_mib),
        address_space_mib: median(|start| start.address_space_mib),
    };
    let before = getrlimit(Resource::As);
    // The device inherits it.
    setrlimit(Resource::As, Rlimit { current: Some(ADDRESS_SPACE_BYTES), ..before })?;
    let short = device.start().await;
    setrlimit(Resource::As, before)?;
    Ok([first, median, short.context("with 2 GiB of address space")?])
}

/// A device to be started again and again.
struct Device<'a> {
    bundle: &'a Bundle,
    store: PathBuf,
    image: Tensor,
    link: Link,
}

impl Device<'_> {
    async fn start(&self) -> Result<Start> {
        let model = self.bundle.path().to_str().context("the bundle's path is not UTF-8")?;
        let store = self.store.to_str().context("the store's path is not UTF-8")?;
        let arguments = ["--role", "device", "--listen", "127.0.0.1:0", "--model", model, "--store", store];
        let since = Instant::now();
        let ms = || since.elapsed().as_secs_f64() * 1e3;
        let host = HostProcess::start(&std::env::current_exe()?, &arguments, false).await?;
        let ready_ms = ms();
        let client = connect(&self.link, &host.address().to_string()).await?;
        ask(&client, &self.image, 0.0).await?;
        let first_answer_ms = ms();
        let usage = Usage::of(&host.pid().context("the device has ended")?.to_string())?;
        let ended = host.end().await?;
        ensure!(ended.success(), "the device ended with {ended}");
        let Usage { resident_mib, anonymous_mib, address_space_mib } = usage;
        Ok(Start { ready_ms, first_answer_ms, resident_mib, anonymous_mib, address_space_mib })
    }
}

fn second_version_mib(bundle: &Bundle) -> Result<f64> {
    let engine = Engine::new()?;
    let first = Deployment::prepare(bundle, &engine, 1.0)?;
    first.measure(1)?;
    let before = Usage::of("self")?.anonymous_mib;
    let second = Deployment::prepare(bundle, &engine, 1.0)?;
    second.measure(1)?;
    let grown_mib = Usage::of("self")?.anonymous_mib - before;
    drop(first);
    Ok(grown_mib)
}

fn instances_mib(bundle: &Bundle) -> Result<f64> {
    let engine = Engine::new()?;
    let mut segments = Vec::new();
    for described in bundle.manifest().segments.iter().filter(|segment| segment.has_graph()) {
        let component = bundle.blob(&described.component)?;
        let (code, graph) = split(&component)?;
        let format = GraphFormat::from_name(&described.graph_format).context("a graph in an unknown format")?;
        let (code, graph) = (engine.compile(&code)?, Graph::load(graph, format)?);
        // What all instances share is there before the first is counted.
        segments.push((instance(&described.name, &code, &graph)?, code, graph));
    }
    let before = Usage::of("self")?.anonymous_mib;
    let mut more = Vec::with_capacity(INSTANCES * segments.len());
    for (first, code, graph) in &segments {
        for _ in 0..INSTANCES {
            more.push(instance(first.name(), code, graph)?);
        }
    }
    Ok((Usage::of("self")?.anonymous_mib - before) / INSTANCES as f64)
}

/// An instance that has run, so that it has whatever it will have.
fn instance(name: &str, code: &Code, graph: &Graph) -> Result<Segment> {
    let segment = Segment::new(name, code, graph.clone(), Limits::default())?;
    let inputs = graph.inputs().iter().map(|port| edgent_nn::example(&port.fact, 1)).collect::<Result<_, _>>()?;
    segment.run(inputs, &Stop::never())?;
    Ok(segment)
}

/// What a process takes of memory.
struct Usage {
    resident_mib: f64,
    anonymous_mib: f64,
    address_space_mib: f64,
}

const MIB: f64 = (1 << 20) as f64;

impl Usage {
    /// By its number, or "self".
    fn of(process: &str) -> Result<Self> {
        let path = format!("/proc/{process}/status");
        let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let mib = |key: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
            Ok(kib.with_context(|| format!("{path} has no {key}"))? / 1_024.0)
        };
        let (resident_mib, anonymous_mib, address_space_mib) = (mib("VmRSS")?, mib("RssAnon")?, mib("VmPeak")?);
        Ok(Self { resident_mib, anonymous_mib, address_space_mib })
    }
}

fn print(report: &Report, output: &Output) {
    output.line(format_args!(
        "{:<34} {:>9} {:>13} {:>13} {:>13} {:>14}",
        "a device's start", "ready ms", "answered ms", "resident MiB", "its own MiB", "address space"
    ));
    let rows = [
        ("first, nothing kept", &report.first_start),
        ("later, median", &report.later_start),
        ("later, in 2 GiB of address space", &report.short_of_space),
    ];
    for (name, Start { ready_ms, first_answer_ms, resident_mib, anonymous_mib, address_space_mib }) in rows {
        output.line(format_args!(
            "{name:<34} {ready_ms:>9.0} {first_answer_ms:>13.0} {resident_mib:>13.1} {anonymous_mib:>13.1} {address_space_mib:>14.0}"
        ));
    }
    let goal = |what: &str, got: f64, most: f64, unit: &str| {
        let verdict = if got <= most { "within" } else { "MISSES" };
        output.line(format_args!("{what}: {got:.2} {unit}, {verdict} the goal of {most:.0}"));
    };
    goal("resident", report.later_start.resident_mib, RESIDENT_MIB_MAX, "MiB");
    goal("from a later start to the first answer", report.later_start.first_answer_ms, FIRST_ANSWER_MS_MAX, "ms");
    goal("one more instance of all segments", report.instances_mib, INSTANCE_MIB_MAX, "MiB");
    output.line(format_args!(
        "a second version of the same {} segments, {:.1} MiB of components: {:.2} MiB more",
        report.segments, report.components_mib, report.second_version_mib
    ));
}
