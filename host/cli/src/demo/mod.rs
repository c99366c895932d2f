//! `edgent demo`: two hosts, a real network, real images, a link whose rate changes.

mod events;
mod record;

use crate::ask::ask;
use crate::bounds;
use crate::build::{CODEC_SAMPLES, build_confined};
use crate::output::Output;
use crate::relay::Shape;
use crate::rig::{DELAY, PAUSE, Rig, test_samples};
use crate::samples::Sample;
use crate::trace::Trace;
use anyhow::{Context, Result, bail, ensure};
use edgent_bundle::Bundle;
use edgent_link::{Answer, LinkError, Stats};
use events::Events;
use record::{Record, Request};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The live table says something at least this often.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// On a busy machine, what is to happen takes longer; the demo goes on for so long at most, to show it.
const OVERTIME_MAX: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How long to go on.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Folder for the report, its SVG and the bundle.
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    out: PathBuf,
    /// The network.
    #[arg(long, default_value = "models/branchy-alexnet/branchy-alexnet.onnx")]
    model: PathBuf,
    /// The version that both hosts change to half way; retrained.onnx beside the network, if it is there.
    #[arg(long, value_name = "MODEL")]
    next: Option<PathBuf>,
    /// Time from a request to its answer.
    #[arg(long, allow_negative_numbers = true, default_value_t = 100.0)]
    deadline_ms: f64,
    /// How much slower than this machine the emulated device is.
    #[arg(long, allow_negative_numbers = true, default_value_t = 50.0)]
    slowdown: f64,
    /// Seed of the link's rate over time.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Show what the hosts log.
    #[arg(long)]
    logs: bool,
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    bounds::check(arguments.deadline_ms, arguments.slowdown)?;
    let bundle = build_confined(&arguments.model, &arguments.out.join("bundle"), CODEC_SAMPLES, output)
        .context("the demo runs from the project's folder; elsewhere, give --model")?;
    let beside = arguments.model.with_file_name("retrained.onnx");
    let next = arguments.next.clone().or_else(|| Some(beside).filter(|file| file.is_file()));
    let next =
        next.map(|file| build_confined(&file, &arguments.out.join("next"), CODEC_SAMPLES, output)).transpose()?;
    let samples = test_samples(&bundle)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let record = runtime.block_on(show(arguments, &bundle, next.as_ref(), &samples, output))?;
    let page = record.write(&arguments.out, &samples)?;
    let summary = record.summary();
    output.line("");
    summary.print(output);
    output.line(format_args!("report: {}", page.display()));
    output.result(&summary)?;
    ensure!(summary.lost == 0, "{} requests were not answered", summary.lost);
    ensure!(summary.answered > 0, "no request was answered");
    ensure!(next.is_none() || summary.swaps == 1, "the second version did not come into force");
    Ok(())
}

/// Starts both hosts, asks until the time is over, ends both hosts.
async fn show(
    arguments: &Arguments,
    bundle: &Bundle,
    next: Option<&Bundle>,
    samples: &[Sample],
    output: &Output,
) -> Result<Record> {
    output.progress("starting the edge, and the device behind a slow link");
    let trace = Trace::seeded(arguments.seed, arguments.seconds);
    let (deadline, slowdown) = (arguments.deadline_ms.to_string(), arguments.slowdown.to_string());
    // Of this demo alone: the next one begins with the first version again.
    let stores = tempfile::tempdir()?;
    let store = |host: &str| stores.path().join(host).display().to_string();
    let (device_store, edge_store) = (store("device"), store("edge"));
    let device = ["--deadline-ms", &deadline, "--emulate-slowdown", &slowdown, "--store", &device_store];
    let (edge, shape) = (["--store", &edge_store], Shape { trace: trace.clone(), delay: DELAY });
    let mut rig = Rig::start(bundle, shape, &device, &edge, arguments.logs).await?;

    let mut events = Events::new(Duration::from_secs(arguments.seconds), next);
    let start = Instant::now();
    // The link has been changing since the relay started; the device needed a moment to prepare.
    let before = start - rig.since;
    let mut record =
        Record::new(bundle.manifest(), &trace, before, arguments.seconds, arguments.deadline_ms, arguments.slowdown);
    record.print_head(output);
    let mut said = Duration::ZERO;
    let mut index = 0;
    let length = Duration::from_secs(arguments.seconds);
    while start.elapsed() < length || (!events.are_over() && start.elapsed() < length + OVERTIME_MAX) {
        // A stride that has no factor in common with the number of samples visits them all, mixed.
        let sample = index * 7 % samples.len();
        let at = start.elapsed();
        for event in events.due(at, &mut rig).await? {
            record.happened(event, output);
        }
        let asked = ask(&rig.client, &samples[sample].image, 0.0);
        let (answered, killed) = tokio::join!(asked, events.kill_if_due(at, &rig));
        if let Some(killed) = killed? {
            record.happened(killed, output);
        }
        let latency = start.elapsed() - at;
        let truth = samples[sample].label;
        let changed = record.add(Request { at, latency, sample, truth, answer: outcome(answered)? });
        if changed || start.elapsed() >= said + LINE_EVERY {
            said = start.elapsed();
            record.print_line(trace.rate_at(before + at), output);
        }
        index += 1;
        tokio::time::sleep(PAUSE).await;
    }
    for event in events.finish(start, &mut rig).await? {
        record.happened(event, output);
    }
    record.finish(start.elapsed(), &rig.client.stats().await.unwrap_or_else(|_| Stats::default()));
    rig.end().await?;
    Ok(record)
}

/// An error that the device told is an outcome; a device that is gone ends the demo.
pub(crate) fn outcome(answered: Result<Answer>) -> Result<Result<Answer, String>> {
    match answered {
        Ok(answer) => Ok(Ok(answer)),
        Err(error) => match error.downcast_ref::<LinkError>() {
            Some(LinkError::Fault(fault)) => Ok(Err(fault.message.clone())),
            _ => bail!("the device is gone: {error:#}"),
        },
    }
}

/// Where an answer came from, for people.
fn place(answer: &Answer) -> String {
    let way = answer.placement.name();
    match (answer.placement, answer.direction) {
        (edgent_link::Placement::Split, edgent_link::Direction::EdgeFirst) => format!("{way}, edge first"),
        _ => way.to_owned(),
    }
}
