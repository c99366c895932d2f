//! Versions and plans that come into force while requests go on: what is lost, mixed or late because of it.

mod check;
mod plans;
mod versions;

use crate::build::build;
use crate::keys;
use crate::output::{Output, quantile};
use crate::relay::Shape;
use crate::rig::{DELAY, Rig, test_samples};
use crate::trace::Trace;
use anyhow::{Context, Result, ensure};
use check::{InForce, Record, Verdict, check, crossing};
use edgent_bundle::Bundle;
use edgent_link::{Client, Digest};
use edgent_nn::Tensor;
use edgent_runtime::push;
use minisign::KeyPair;
use plans::plans;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use versions::{Kind, Versions};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Versions that are pushed; every second one is bad.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    swaps: u32,
    /// Changes of plan after that, as fast as both hosts agree on them.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    repartitions: u32,
    /// An ONNX file with its model.toml.
    #[arg(long, default_value = "models/branchy-alexnet/branchy-alexnet.onnx")]
    model: PathBuf,
}

/// Requests a second.
const RATE: u64 = 50;
/// How long requests go on before the first swap, to compare with.
const BEFORE: Duration = Duration::from_secs(10);
/// Between two swaps.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a version that was replaced is still kept, and some more.
const SETTLE: Duration = Duration::from_secs(8);
const LINK_BPS: u64 = 20_000_000;
const SLOWDOWN: &str = "10";
const SAMPLES: usize = 20;
/// Without its keys.
const POLICY: &str = "format = 1\nunsigned = \"refuse\"\n[[publisher]]\nname = \"bench\"\nallow = [\"native\"]\n";

#[derive(Serialize)]
struct Report {
    swaps: usize,
    taken: usize,
    refused: usize,
    /// Bad versions that were taken, and good ones that were not.
    wrongly_judged: usize,
    requests: usize,
    #[serde(flatten)]
    verdict: Verdict,
    commit_us: Quantiles,
    /// From the push to the new version in force on both hosts.
    taken_ms: Quantiles,
    /// From the push to the refusal, by what was wrong.
    refused_ms: Vec<(&'static str, Quantiles)>,
    latency_ms_before: Quantiles,
    latency_ms_during: Quantiles,
    latency_p99_during_ratio: f64,
    /// Of the hosts' processes, from before the first swap to after the last.
    swapping: Growth,
    repartitions: usize,
    /// From the wish for another plan to both hosts' agreement.
    repartition_us: Quantiles,
    latency_ms_repartitioning: Quantiles,
    repartitioning: Growth,
}

#[derive(Serialize)]
struct Quantiles {
    p50: f64,
    p99: f64,
}

#[derive(Serialize)]
struct Growth {
    device: HostGrowth,
    edge: HostGrowth,
}

#[derive(Serialize)]
struct HostGrowth {
    resident_kib_before: u64,
    resident_kib_after: u64,
    files_before: usize,
    files_after: usize,
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let bundle = build(&arguments.model, &scratch.path().join("first"), SAMPLES, output)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let report = runtime.block_on(measure(&bundle, scratch.path(), arguments, output))?;
    print(&report, output);
    output.result(&report)?;
    let Verdict { lost, mixed_epochs, of_another_version } = report.verdict;
    ensure!(lost + mixed_epochs + of_another_version + report.wrongly_judged == 0, "a swap did harm; see above");
    Ok(())
}

async fn measure(bundle: &Bundle, scratch: &Path, arguments: &Arguments, output: &Output) -> Result<Report> {
    let (swaps, repartitions) = (arguments.swaps as usize, arguments.repartitions as usize);
    let pair = KeyPair::generate_unencrypted_keypair().context("making a key")?;
    keys::sign_bundle(bundle, &pair.sk, 1, 1)?;
    let policy = scratch.join("policy.toml");
    std::fs::write(&policy, format!("{POLICY}keys = [\"{}\"]\n", pair.pk.to_base64()))?;
    let policy = policy.display().to_string();
    let mut versions = Versions::make(bundle, scratch, &pair.sk)?;
    let stores = ["device", "edge"].map(|host| scratch.join(host).display().to_string());
    let shape = Shape { trace: Trace::constant(LINK_BPS), delay: DELAY };
    let device = ["--policy", &policy, "--store", &stores[0], "--emulate-slowdown", SLOWDOWN, "--deadline-ms", "100"];
    let rig = Rig::start(bundle, shape, &device, &["--policy", &policy, "--store", &stores[1]], false).await?;
    let (images, records) = (Arc::new(images(bundle)?), Arc::new(Mutex::new(Vec::new())));
    let enough = Arc::new(AtomicBool::new(false));
    let asking = tokio::spawn(ask_on(rig.client.clone(), images, Arc::clone(&records), Arc::clone(&enough)));
    output.progress(format_args!("{RATE} requests a second, {} s without a swap", BEFORE.as_secs()));
    tokio::time::sleep(BEFORE).await;
    let started = Instant::now();
    let before = rig.processes().map(usage);
    let mut in_force = vec![InForce { digest: Digest(bundle.digest().0), from: started, until: None }];
    let (mut commit_us, mut taken_ms, mut wrongly_judged) = (Vec::new(), Vec::new(), 0);
    let mut refused_ms: Vec<(&'static str, Vec<f64>)> = Kind::BAD.map(|kind| (kind.name(), Vec::new())).into();
    for swap in 0..swaps {
        let (kind, next) = versions.next();
        let asked = Instant::now();
        let answer = match kind {
            Kind::Corrupt => versions::push_corrupt(&rig.client, &next).await,
            _ => push(&rig.client, &next, None).await.map_err(anyhow::Error::from),
        };
        let took_ms = asked.elapsed().as_secs_f64() * 1e3;
        wrongly_judged += usize::from(answer.is_ok() != (kind == Kind::Good));
        match answer {
            Ok(version) => {
                if let Some(last) = in_force.last_mut() {
                    last.until = Some(Instant::now());
                }
                in_force.push(InForce { digest: version.digest, from: asked, until: None });
                commit_us.push(version.commit_us as f64);
                taken_ms.push(took_ms);
            }
            Err(why) => {
                if swap < 2 * Kind::BAD.len() {
                    output.progress(format_args!("refused ({}): {why:#}", kind.name()));
                }
                let of_kind = refused_ms.iter_mut().find(|(name, _)| *name == kind.name());
                of_kind.context("a good version was refused")?.1.push(took_ms);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    let swapped = Instant::now();
    // The last version that was replaced is let go by then.
    tokio::time::sleep(SETTLE).await;
    let between = rig.processes().map(usage);
    let repartitioning = Instant::now();
    let mut repartition_us = Vec::new();
    for plan in plans(&rig.client.describe().await?)?.into_iter().cycle().take(repartitions) {
        let asked = Instant::now();
        rig.client.pin(Some(plan)).await.with_context(|| format!("{plan:?}"))?;
        repartition_us.push(asked.elapsed().as_secs_f64() * 1e6);
    }
    let ended = Instant::now();
    enough.store(true, Ordering::Relaxed);
    let after = rig.processes().map(usage);
    asking.await?;
    rig.end().await?;
    let records = std::mem::take(&mut *records.lock().unwrap_or_else(PoisonError::into_inner));
    let latencies = |from: Instant, to: Instant| {
        let of_part = records.iter().filter(|record| record.asked >= from && record.asked < to);
        let ms = |record: &Record| Some(record.answered?.duration_since(record.asked).as_secs_f64() * 1e3);
        Quantiles::of(of_part.filter_map(ms).collect())
    };
    let first = records.first().map_or(started, |record| record.asked);
    let (before_ms, during_ms) = (latencies(first, started), latencies(started, swapped));
    Ok(Report {
        swaps,
        taken: taken_ms.len(),
        refused: swaps - taken_ms.len(),
        wrongly_judged,
        requests: records.len(),
        verdict: check(&records, &in_force),
        commit_us: Quantiles::of(commit_us),
        taken_ms: Quantiles::of(taken_ms),
        refused_ms: refused_ms.into_iter().map(|(name, ms)| (name, Quantiles::of(ms))).collect(),
        latency_p99_during_ratio: during_ms.p99 / before_ms.p99,
        latency_ms_before: before_ms,
        latency_ms_during: during_ms,
        swapping: Growth::between(&before, &between),
        repartitions,
        repartition_us: Quantiles::of(repartition_us),
        latency_ms_repartitioning: latencies(repartitioning, ended),
        repartitioning: Growth::between(&between, &after),
    })
}

/// Asks until it is enough, at a steady pace, whatever becomes of the answers; waits for those that were asked last.
async fn ask_on(client: Client, images: Arc<Vec<Tensor>>, records: Arc<Mutex<Vec<Record>>>, enough: Arc<AtomicBool>) {
    let mut tick = tokio::time::interval(Duration::from_micros(1_000_000 / RATE));
    let mut asked = JoinSet::new();
    let mut index = 0;
    while !enough.load(Ordering::Relaxed) {
        tick.tick().await;
        let (client, images, records) = (client.clone(), Arc::clone(&images), Arc::clone(&records));
        asked.spawn(async move {
            let asked = Instant::now();
            let place = {
                let mut records = records.lock().unwrap_or_else(PoisonError::into_inner);
                records.push(Record { asked, answered: None, epoch: 0, model: None, crossing: None });
                records.len() - 1
            };
            let Ok(answer) = crate::ask::ask(&client, &images[index % images.len()], 0.0).await else { return };
            let mut records = records.lock().unwrap_or_else(PoisonError::into_inner);
            records[place] = Record {
                asked,
                answered: Some(Instant::now()),
                epoch: answer.epoch,
                model: answer.model,
                crossing: crossing(&answer),
            };
        });
        while asked.try_join_next().is_some() {}
        index += 1;
    }
    while asked.join_next().await.is_some() {}
}

fn images(bundle: &Bundle) -> Result<Vec<Tensor>> {
    Ok(test_samples(bundle)?.into_iter().take(100).map(|sample| sample.image).collect())
}

impl Growth {
    fn between(before: &[Usage; 2], after: &[Usage; 2]) -> Self {
        let [device, edge] = [0, 1].map(|host| HostGrowth {
            resident_kib_before: before[host].0,
            resident_kib_after: after[host].0,
            files_before: before[host].1,
            files_after: after[host].1,
        });
        Self { device, edge }
    }
}

/// Resident memory in KiB, and open files.
pub(super) type Usage = (u64, usize);

pub(super) fn usage(pid: u32) -> Usage {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    (kib, std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count))
}

impl Quantiles {
    fn of(mut values: Vec<f64>) -> Self {
        if values.is_empty() {
            return Self { p50: 0.0, p99: 0.0 };
        }
        Self { p50: quantile(&mut values, 0.5), p99: quantile(&mut values, 0.99) }
    }
}

fn print(report: &Report, output: &Output) {
    let Report { swaps, taken, refused, wrongly_judged, requests, verdict, .. } = report;
    output.line(format_args!(
        "{swaps} versions pushed: {taken} taken, {refused} refused, {wrongly_judged} judged wrongly"
    ));
    output.line(format_args!(
        "{requests} requests: {} lost, {} epochs with two versions, {} answered by a version not in force",
        verdict.lost, verdict.mixed_epochs, verdict.of_another_version
    ));
    let line = |what: &str, Quantiles { p50, p99 }: &Quantiles, unit: &str| {
        output.line(format_args!("{what:<28} p50 {p50:>8.1} {unit}   p99 {p99:>8.1} {unit}"));
    };
    line("commit", &report.commit_us, "us");
    line("push to in force, both hosts", &report.taken_ms, "ms");
    report.refused_ms.iter().for_each(|(what, times)| line(&format!("push to refusal: {what}"), times, "ms"));
    line("latency before", &report.latency_ms_before, "ms");
    line("latency during", &report.latency_ms_during, "ms");
    output.line(format_args!("p99 during swaps is {:.2} times that before", report.latency_p99_during_ratio));
    let grown = |Growth { device, edge }: &Growth| {
        for (name, host) in [("device", device), ("edge", edge)] {
            output.line(format_args!(
                "{name:<7} resident {} -> {} KiB, open files {} -> {}",
                host.resident_kib_before, host.resident_kib_after, host.files_before, host.files_after
            ));
        }
    };
    grown(&report.swapping);
    if report.repartitions > 0 {
        output.line(format_args!("{} changes of plan", report.repartitions));
        line("agreed on, both hosts", &report.repartition_us, "us");
        line("latency meanwhile", &report.latency_ms_repartitioning, "ms");
        grown(&report.repartitioning);
    }
}
