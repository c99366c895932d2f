//! What becomes of requests when the edge, or the link to it, breaks.
//!
//! Two real hosts, a relay between them, and a steady load on the device. Each fault is brought about many times; it is
//! over when a request is answered with the edge again. No request may be lost, and each for which a local exit fits
//! must be answered in time; no answer may be another one than the network gives.

mod load;
mod soak;

use crate::build::build;
use crate::output::{BadInput, Output, quantile};
use crate::random::Random;
use crate::relay::{Mishap, MishapKind, Shape, Way};
use crate::rig::{DELAY, Rig};
use crate::trace::{Step, Trace};
use anyhow::{Context, Result, ensure};
use edgent_bundle::Bundle;
use edgent_link::Security;
use edgent_runtime::IdentityFolder;
use load::{Load, Record};
use rustix::process::Signal;
use serde::Serialize;
use soak::Soak;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::time::sleep;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What share of the full counts is tried.
    #[arg(long, default_value_t = 0.1)]
    share: f64,
    /// Only faults whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// Instead: lose the link and freeze the edge for so long, and look at memory and open files.
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    soak_s: Option<f64>,
    /// Write what became of each request, as CSV.
    #[arg(long, value_name = "FILE")]
    requests: Option<PathBuf>,
    /// What the moments of faults follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// An ONNX file with its model.toml.
    #[arg(long, default_value = "models/branchy-alexnet/branchy-alexnet.onnx")]
    model: PathBuf,
}

const LINK_BPS: u64 = 20_000_000;
/// So slow that the edge is worth asking, and so fast that the device alone can do what is asked here.
const SLOWDOWN: &str = "20";
const DEADLINE_MS: &str = "100";
const SAMPLES: usize = 20;

/// How long a device may take to come back to an edge that is there again, before this gives up.
const RECOVERY_MAX: Duration = Duration::from_secs(30);
/// How long a mishap may take to happen: so long that a connection has been tried again.
const MISHAP_MAX: Duration = Duration::from_secs(20);
/// How long the load runs before the first fault, and on after the last.
const SETTLED: Duration = Duration::from_secs(2);

/// How often each fault is brought about at a share of 1.
const KILLS: f64 = 200.0;
const STOPS: f64 = 100.0;
const DROPS: f64 = 100.0;
/// Of each kind of mishap, in each direction.
const MISHAPS: f64 = 20.0;
const FLAPPING_S: f64 = 600.0;
const CONNECTIONS: f64 = 10_000.0;

const SOAK_S_MAX: f64 = 7.0 * 86_400.0;

const MISHAPS_OF_ANY: [(&str, MishapKind); 3] = [
    ("connection half closed", MishapKind::HalfClosed),
    ("connection reset", MishapKind::Reset),
    ("connection frozen", MishapKind::Frozen),
];
/// Only TLS promises that nothing is believed that was not sent.
const BIT_FLIPPED: (&str, MishapKind) = ("a bit flipped, over TLS", MishapKind::Flipped);

/// A stopped edge goes on after one of these.
const STOPPED_MS: [u64; 5] = [100, 300, 1_000, 3_000, 10_000];
/// Bytes of a connection in either direction, from the first to some after many requests.
const MISHAP_BYTES_MAX: u64 = 200_000;

#[derive(Serialize)]
struct Report {
    faults: Vec<Row>,
    seed: u64,
    device_alive: bool,
    /// What requests got when nothing was wrong.
    in_time_without: f64,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    tried: usize,
    requests: usize,
    /// Without an answer.
    lost: usize,
    /// Another answer than the network gives at that exit.
    wrong: usize,
    /// Of all requests; a local exit fits for each.
    answered_in_deadline: f64,
    /// How much later than in time the latest answer was.
    late_by_max_ms: f64,
    /// Answered by the device alone though it had meant to ask the edge.
    degraded: usize,
    /// From the end of a fault to the first answer with the edge.
    recover_ms: Quantiles,
    plan_changes: u64,
}

#[derive(Serialize)]
struct Quantiles {
    p50: f64,
    max: f64,
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    if !(arguments.share > 0.0 && arguments.share <= 1.0) {
        return Err(BadInput::error("--share must be over 0 and at most 1"));
    }
    if arguments.soak_s.is_some_and(|seconds| !(seconds > 0.0 && seconds <= SOAK_S_MAX)) {
        return Err(BadInput::error(format_args!("--soak-s must be over 0 and at most {SOAK_S_MAX}")));
    }
    let scratch = tempfile::tempdir()?;
    let bundle = build(&arguments.model, &scratch.path().join("bundle"), SAMPLES, output)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if let Some(seconds) = arguments.soak_s {
        let soak = runtime.block_on(soak(&bundle, Duration::from_secs_f64(seconds), arguments, output))?;
        output.result(&soak)?;
        return soak.check();
    }
    let report = runtime.block_on(measure(&bundle, &scratch.path().join("identity"), arguments, output))?;
    output.result(&report)?;
    for Row { name, lost, wrong, .. } in &report.faults {
        ensure!(lost + wrong == 0, "{name}: {lost} requests lost, {wrong} answered wrongly");
    }
    ensure!(report.device_alive, "the device's process has ended");
    Ok(())
}

/// Two hosts under load, and what has been found.
struct Bench<'a> {
    rig: Rig,
    load: Load,
    random: Random,
    arguments: &'a Arguments,
    output: &'a Output,
    rows: Vec<Row>,
    requests: String,
}

impl<'a> Bench<'a> {
    /// With a key, both hosts and their client speak TLS and know each other by it.
    async fn start(
        bundle: &Bundle,
        key: Option<&IdentityFolder>,
        arguments: &'a Arguments,
        output: &'a Output,
    ) -> Result<Self> {
        let shape = Shape { trace: Trace::constant(LINK_BPS), delay: DELAY };
        let path = key.map(|folder| folder.path().to_str().context("the key's path is not UTF-8")).transpose()?;
        let edge: Vec<&str> = path.into_iter().flat_map(|path| ["--tls", "--identity", path]).collect();
        // Answers are compared: no codec that is known to cost any.
        let device = ["--emulate-slowdown", SLOWDOWN, "--deadline-ms", DEADLINE_MS, "--codec-loss-max", "0"];
        let device = [&device[..], &edge].concat();
        let security = match key {
            Some(folder) => Security::tls(folder.credentials()?),
            None => Security::plain_on_loopback(None),
        };
        let rig = Rig::start_over(security, bundle, shape, &device, &edge, false).await?;
        let load = Load::start(rig.client.clone(), bundle)?;
        let (random, rows, requests) = (Random::new(arguments.seed), Vec::new(), String::new());
        let mut bench = Bench { rig, load, random, arguments, output, rows, requests };
        bench.load.answered_with_the_edge(Instant::now(), RECOVERY_MAX).await.context("at first")?;
        Ok(bench)
    }

    /// What was found, once both hosts have ended in good order.
    async fn end(self) -> Result<(Vec<Row>, String)> {
        self.load.end().await;
        self.rig.end().await?;
        Ok((self.rows, self.requests))
    }
}

async fn soak(bundle: &Bundle, lasts: Duration, arguments: &Arguments, output: &Output) -> Result<Soak> {
    let mut bench = Bench::start(bundle, None, arguments, output).await?;
    let soak = bench.soak(lasts).await?;
    bench.end().await?;
    Ok(soak)
}

async fn measure(bundle: &Bundle, identity: &Path, arguments: &Arguments, output: &Output) -> Result<Report> {
    let mut bench = Bench::start(bundle, None, arguments, output).await?;
    let [device_pid, _] = bench.rig.processes();
    let settled = Instant::now();
    sleep(SETTLED).await;
    let in_time_without = in_time(&bench.load.asked_within(settled, Instant::now()).await);
    output.line(format_args!(
        "{:<28} {:>6} {:>8} {:>5} {:>6} {:>8} {:>7} {:>9} {:>18}",
        "fault", "tried", "requests", "lost", "wrong", "in time", "late ms", "degraded", "back ms p50 / max"
    ));
    bench.kills().await?;
    bench.stops().await?;
    bench.drops().await?;
    bench.mishaps(&MISHAPS_OF_ANY).await?;
    bench.connections().await?;
    bench.flapping().await?;
    let device_alive = bench.rig.processes()[0] == device_pid;
    let (mut rows, mut requests) = bench.end().await?;
    if BIT_FLIPPED.0.contains(&arguments.only) {
        let mut over_tls = Bench::start(bundle, Some(&IdentityFolder::at(identity)), arguments, output).await?;
        over_tls.mishaps(&[BIT_FLIPPED]).await?;
        let (more_rows, more_requests) = over_tls.end().await?;
        rows.extend(more_rows);
        requests += &more_requests;
    }
    if let Some(file) = &arguments.requests {
        std::fs::write(file, format!("{}{requests}", Record::CSV_HEAD)).with_context(|| file.display().to_string())?;
    }
    Ok(Report { faults: rows, seed: arguments.seed, device_alive, in_time_without })
}

impl Bench<'_> {
    fn count(&self, full: f64) -> usize {
        (full * self.arguments.share).ceil() as usize
    }

    /// Some of the time that a request takes, so that a fault may strike at any moment of one.
    async fn at_random(&mut self) {
        sleep(Duration::from_micros(self.random.below(100_000))).await;
    }

    /// The edge dies in the middle of whatever it does, and is started again.
    async fn kills(&mut self) -> Result<()> {
        let Some(mut fault) = self.begin("edge killed").await? else { return Ok(()) };
        for _ in 0..self.count(KILLS) {
            self.at_random().await;
            self.rig.kill_edge().await?;
            let edge = self.rig.another_edge().await?;
            self.rig.set_edge(edge);
            self.recover(&mut fault).await?;
        }
        self.finish(fault).await
    }

    /// The edge stands still and goes on: its late answers are nobody's.
    async fn stops(&mut self) -> Result<()> {
        let Some(mut fault) = self.begin("edge frozen").await? else { return Ok(()) };
        for index in 0..self.count(STOPS) {
            self.at_random().await;
            self.rig.signal_edge(Signal::STOP)?;
            sleep(Duration::from_millis(STOPPED_MS[index % STOPPED_MS.len()])).await;
            self.rig.signal_edge(Signal::CONT)?;
            self.recover(&mut fault).await?;
        }
        self.finish(fault).await
    }

    /// Every connection is dropped, and new ones are refused for a while.
    async fn drops(&mut self) -> Result<()> {
        let Some(mut fault) = self.begin("link lost").await? else { return Ok(()) };
        for _ in 0..self.count(DROPS) {
            self.at_random().await;
            self.rig.relay.cut();
            self.at_random().await;
            self.rig.relay.restore();
            self.recover(&mut fault).await?;
        }
        self.finish(fault).await
    }

    /// A connection fares ill after any number of bytes, from its first to those of activations.
    async fn mishaps(&mut self, kinds: &[(&'static str, MishapKind)]) -> Result<()> {
        for (name, kind) in kinds.iter().copied() {
            let Some(mut fault) = self.begin(name).await? else { continue };
            for way in [Way::Up, Way::Down] {
                for _ in 0..self.count(MISHAPS) {
                    // As often among the first few bytes as among the last many.
                    let after_bytes = (MISHAP_BYTES_MAX as f64).powf(self.random.within(0.0, 1.0)) as u64 - 1;
                    self.rig.relay.set_mishap(Some(Mishap { way, after_bytes, kind }));
                    self.rig.relay.cut();
                    self.rig.relay.restore();
                    let happened = tokio::time::timeout(MISHAP_MAX, self.rig.relay.mishap_happened()).await;
                    happened.with_context(|| format!("{after_bytes} bytes never went {way:?}"))?;
                    self.recover(&mut fault).await?;
                }
            }
            self.finish(fault).await?;
        }
        Ok(())
    }

    /// Strangers connect to both hosts and go again, or stay and say nothing.
    async fn connections(&mut self) -> Result<()> {
        let files_before = self.rig.processes().map(open_files);
        let Some(mut fault) = self.begin("strangers' connections").await? else { return Ok(()) };
        fault.tried = self.count(CONNECTIONS);
        let addresses = self.rig.addresses();
        for index in 0..fault.tried {
            let stranger = TcpStream::connect(addresses[index % 2]).await?;
            if index % 100 == 0 {
                // It stays until the host has had enough of it.
                tokio::spawn(async move {
                    let _ = stranger.readable().await;
                });
            }
        }
        self.recover(&mut fault).await?;
        fault.tried -= 1;
        let gone = Instant::now();
        while self.rig.processes().map(open_files).iter().zip(files_before).any(|(now, before)| *now > before) {
            ensure!(gone.elapsed() < RECOVERY_MAX, "files stay open: {files_before:?} before");
            sleep(Duration::from_millis(100)).await;
        }
        self.finish(fault).await
    }

    /// The link is good and bad by turns, each for half a second.
    async fn flapping(&mut self) -> Result<()> {
        let Some(mut fault) = self.begin("link flapping, 1 Hz").await? else { return Ok(()) };
        let seconds = self.count(FLAPPING_S);
        let half = Duration::from_millis(500);
        let steps = (0..2 * seconds).map(|index| {
            let rate_bps = if index % 2 == 0 { 50_000 } else { 100_000_000 };
            Step { duration: half, rate_bps }
        });
        self.rig.relay.follow(&Trace::new(steps.collect()));
        sleep(Duration::from_secs(seconds as u64)).await;
        self.rig.relay.follow(&Trace::constant(LINK_BPS));
        self.recover(&mut fault).await?;
        fault.tried = seconds;
        self.finish(fault).await
    }

    /// Nothing if this fault is not wanted.
    async fn begin(&mut self, name: &'static str) -> Result<Option<Fault>> {
        if !name.contains(&self.arguments.only) {
            return Ok(None);
        }
        let plan_changes = self.rig.client.stats().await?.plan_changes;
        Ok(Some(Fault { name, since: Instant::now(), tried: 0, recover_ms: Vec::new(), plan_changes }))
    }

    /// The fault is over: waits until a request is answered with the edge.
    async fn recover(&mut self, fault: &mut Fault) -> Result<()> {
        let over = Instant::now();
        let answered = self.load.answered_with_the_edge(over, RECOVERY_MAX).await.context(fault.name)?;
        fault.recover_ms.push((answered - over).as_secs_f64() * 1e3);
        fault.tried += 1;
        Ok(())
    }

    async fn finish(&mut self, fault: Fault) -> Result<()> {
        let Fault { name, since, tried, mut recover_ms, plan_changes } = fault;
        let records = self.load.asked_within(since, Instant::now()).await;
        if let Some(error) = records.iter().find_map(|record| record.error.as_ref()) {
            self.output.progress(format_args!("{name}: lost: {error}"));
        }
        self.requests.extend(records.iter().map(|record| record.csv(name, since)));
        let row = Row {
            name,
            tried,
            requests: records.len(),
            lost: records.iter().filter(|record| record.answer.is_none()).count(),
            wrong: records.iter().filter(|record| record.is_wrong()).count(),
            answered_in_deadline: in_time(&records),
            late_by_max_ms: records.iter().map(Record::late_by_ms).fold(0.0, f64::max),
            degraded: records.iter().filter(|record| record.is_degraded()).count(),
            recover_ms: Quantiles { p50: quantile(&mut recover_ms, 0.5), max: quantile(&mut recover_ms, 1.0) },
            plan_changes: self.rig.client.stats().await?.plan_changes - plan_changes,
        };
        self.output.line(format_args!(
            "{:<28} {:>6} {:>8} {:>5} {:>6} {:>6.1} % {:>7.0} {:>9} {:>9.0} / {:.0}",
            row.name,
            row.tried,
            row.requests,
            row.lost,
            row.wrong,
            row.answered_in_deadline * 100.0,
            row.late_by_max_ms,
            row.degraded,
            row.recover_ms.p50,
            row.recover_ms.max
        ));
        self.rows.push(row);
        Ok(())
    }
}

struct Fault {
    name: &'static str,
    since: Instant,
    tried: usize,
    recover_ms: Vec<f64>,
    plan_changes: u64,
}

fn in_time(records: &[Record]) -> f64 {
    let met = records.iter().filter(|record| record.is_in_time()).count();
    met as f64 / records.len().max(1) as f64
}

fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}
