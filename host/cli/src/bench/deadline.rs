//! Strategies side by side, each on two real hosts behind an emulated link: the paper's figures.
//!
//! Three experiments: the link's rate varied at one deadline, the deadline varied at one rate (Li, Zhou
//! and Chen 2018, section 4.3), and rates that change over time: by leaps over the whole range
//! (`trace`), mostly to neighbouring rates (`markov`), or as recorded. Before a sweep's point is
//! counted, the device is given requests until it knows the new rate. Beside them, how soon ours follows a change.
//!
//! All strategies run on the same device: one that is emulated by the times that segments take here, measured once.

mod change;
mod oracle;
mod page;
mod tally;

use crate::ask::ask;
use crate::bounds;
use crate::build::{CODEC_SAMPLES, build};
use crate::demo::outcome;
use crate::output::{BadInput, Output};
use crate::plan;
use crate::profile::ProfileFile;
use crate::relay::Shape;
use crate::rig::{DELAY, PAUSE, Rig, test_samples};
use crate::samples::Sample;
use crate::trace::Trace;
use anyhow::{Context, Result};
use change::Change;
use edgent_bundle::Bundle;
use edgent_link::Client;
use edgent_planner::Strategy;
use edgent_runtime::codec;
use oracle::Oracle;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tally::{Asked, Loss, Point, PredictionError, Row, losses, prediction_error};
use tokio::task::JoinSet;

/// Of the requests while the rate changes: a slow camera's pace.
const PERIOD: Duration = Duration::from_millis(150);

/// A point of a sweep ends after this long, however few requests a slow strategy has answered by then.
const POINT: Duration = Duration::from_secs(6);
/// The device knows a rate when its estimate is off by no more than this factor.
const KNOWN_FACTOR: f64 = 1.3;
const SETTLE: Duration = Duration::from_secs(5);
const SETTLE_REQUESTS_MIN: usize = 3;
/// So many are asked for after a change of rate.
const PAUSED_REQUESTS_MAX: usize = 30;
/// What a codec may cost, as a device has it.
const CODEC_LOSS_MAX: f64 = 0.005;

const RATES_BPS: [u64; 8] = [50_000, 100_000, 200_000, 400_000, 800_000, 1_500_000, 5_000_000, 20_000_000];
const DEADLINES_MS: [f64; 7] = [10.0, 25.0, 50.0, 75.0, 100.0, 150.0, 250.0];
const QUICK: usize = 3;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The network.
    #[arg(long, default_value = "models/branchy-alexnet/branchy-alexnet.onnx")]
    model: PathBuf,
    /// The deadline of the sweep of rates and of the trace.
    #[arg(long, allow_negative_numbers = true, default_value_t = 100.0)]
    deadline_ms: f64,
    /// The rate of the sweep of deadlines.
    #[arg(long, default_value_t = 1_000_000)]
    rate_bps: u64,
    /// How much slower than this machine the emulated device is: by default, such that it does not reach its best exit
    /// alone in time.
    #[arg(long, allow_negative_numbers = true, default_value_t = 100.0)]
    slowdown: f64,
    /// Requests of a sweep's point.
    #[arg(long, default_value_t = 40)]
    requests: usize,
    /// Seconds of the changing rate; 0 leaves it out.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Its seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A recorded rate (Oboe, Belgium LTE, Mahimahi) in place of the seeded one; may be given several times.
    #[arg(long, value_name = "FILE")]
    trace: Vec<PathBuf>,
    /// Scale each recorded rate so that its greatest is this.
    #[arg(long, value_name = "BPS")]
    trace_max_bps: Option<u64>,
    /// Only the traces, no sweeps.
    #[arg(long)]
    no_sweeps: bool,
    /// Strategies to compare; all if none is named.
    #[arg(long, value_parser = contender)]
    strategy: Vec<Contender>,
    /// Few points and requests.
    #[arg(long)]
    quick: bool,
    /// Write a page with the paper's plots.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

/// A way to run a device.
#[derive(Clone, Copy)]
struct Contender {
    name: &'static str,
    strategy: Strategy,
    leave_when_sure: bool,
}

/// Ours with exits by confidence.
const SURE: Contender = Contender { name: "edgent-sure", strategy: Strategy::Edgent, leave_when_sure: true };

fn contenders() -> Vec<Contender> {
    let plain = |strategy: Strategy| Contender { name: strategy.name(), strategy, leave_when_sure: false };
    let mut all: Vec<Contender> = Strategy::ALL.into_iter().map(plain).collect();
    all.insert(1, SURE);
    all
}

fn contender(name: &str) -> Result<Contender, String> {
    let names: Vec<&str> = contenders().iter().map(|contender| contender.name).collect();
    let found = contenders().into_iter().find(|contender| contender.name == name);
    found.ok_or_else(|| format!("the strategies are {}", names.join(", ")))
}

#[derive(Serialize)]
struct Report {
    model: String,
    emulated_slowdown: f64,
    emulated_delay_ms: f64,
    rows: Vec<Row>,
    prediction_error: BTreeMap<&'static str, PredictionError>,
    /// How soon ours follows.
    changes: Vec<Change>,
    /// Where ours was not the best.
    losses: Vec<Loss>,
    #[serde(skip)]
    exits: Vec<(String, f64)>,
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    bounds::check(arguments.deadline_ms, arguments.slowdown)?;
    if arguments.requests == 0 || arguments.rate_bps == 0 {
        return Err(BadInput::error("a rate and a number of requests are over 0"));
    }
    let traces = traces(arguments)?;
    let scratch = tempfile::tempdir()?;
    let bundle = build(&arguments.model, &scratch.path().join("bundle"), CODEC_SAMPLES, output)?;
    output.progress("measuring each segment for the oracle");
    let (deployment, profile) = plan::measured(&bundle, arguments.slowdown)?;
    let oracle = Oracle::new(deployment.network(), &profile, CODEC_LOSS_MAX);
    let digest = bundle.digest().to_string();
    let codecs = codec::slowed(codec::times(), arguments.slowdown);
    let device = scratch.path().join("device.json");
    std::fs::write(&device, serde_json::to_vec(&ProfileFile::of_bundle(digest, &profile.device_us, &codecs))?)?;
    let exits = bundle.manifest().exits.iter().map(|exit| (exit.name.clone(), exit.accuracy)).collect();
    let bench =
        Bench { arguments, samples: Arc::new(test_samples(&bundle)?), traces, bundle, oracle, device, exits, output };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(bench.all())?;
    if let Some(file) = &arguments.report {
        std::fs::write(file, page::render(&report)).with_context(|| format!("cannot write {}", file.display()))?;
        output.line(format_args!("report: {}", file.display()));
    }
    output.result(&report)
}

struct Bench<'a> {
    arguments: &'a Arguments,
    bundle: Bundle,
    samples: Arc<Vec<Sample>>,
    /// Each with its name.
    traces: Vec<(String, Trace)>,
    oracle: Oracle,
    /// The profile of the device that is emulated: each strategy has the same.
    device: PathBuf,
    /// By their names, with their accuracy.
    exits: Vec<(String, f64)>,
    output: &'a Output,
}

impl Bench<'_> {
    async fn all(&self) -> Result<Report> {
        let Arguments { deadline_ms, rate_bps, slowdown, seconds, quick, no_sweeps, .. } = *self.arguments;
        let rates_bps = if no_sweeps { Vec::new() } else { few(&RATES_BPS, quick) };
        let deadlines_ms = if no_sweeps { Vec::new() } else { few(&DEADLINES_MS, quick) };
        self.output.line(format_args!(
            "EMULATED: a device {slowdown} times slower than this machine, and the link's rate; 2 ms each way"
        ));
        self.output.line(
            "experiment strategy             rate  deadline  in time   right  right in time       p50       p99  reward  exits",
        );
        let named = &self.arguments.strategy;
        let strategies = if named.is_empty() { contenders() } else { named.clone() };
        let mut report = Report {
            model: self.bundle.manifest().name.clone(),
            emulated_slowdown: slowdown,
            emulated_delay_ms: DELAY.as_secs_f64() * 1e3,
            rows: self.oracle_rows(&rates_bps, &deadlines_ms),
            prediction_error: BTreeMap::new(),
            changes: Vec::new(),
            losses: Vec::new(),
            exits: self.exits.clone(),
        };
        report.rows.iter().for_each(|row| self.print(row));
        for contender in strategies {
            let mut all = Vec::new();
            let mut add = |point: Point, asked: Vec<Asked>| {
                let row = Row::of(point, contender.name, &self.exits, &asked);
                self.print(&row);
                report.rows.push(row);
                all.extend(asked);
            };
            let rig = self.rig(contender, deadline_ms).await?;
            for bandwidth_bps in rates_bps.iter().copied() {
                add(point("rate", bandwidth_bps, deadline_ms), self.point(&rig, bandwidth_bps).await?);
            }
            for (name, trace) in self.traces.iter().filter(|_| seconds > 0) {
                add(point(name, 0, deadline_ms), self.trace(&rig, trace).await?);
            }
            if contender.name == tally::OURS && !no_sweeps {
                report.changes = self.changes(&rig).await?;
                self.print_changes(&report.changes);
            }
            rig.end().await?;
            for deadline_ms in deadlines_ms.iter().copied() {
                let rig = self.rig(contender, deadline_ms).await?;
                add(point("deadline", rate_bps, deadline_ms), self.point(&rig, rate_bps).await?);
                rig.end().await?;
            }
            if let Some(error) = prediction_error(&all) {
                self.print_error(contender.name, &error);
                report.prediction_error.insert(contender.name, error);
            }
        }
        report.losses = losses(&report.rows);
        self.print_losses(&report);
        Ok(report)
    }

    /// What the oracle would have done at each point.
    fn oracle_rows(&self, rates_bps: &[u64], deadlines_ms: &[f64]) -> Vec<Row> {
        let Arguments { deadline_ms, rate_bps, seconds, .. } = *self.arguments;
        let row = |point: Point, trace: &Trace, count: u32| {
            let best = |index| self.oracle.best(trace, PERIOD * index, point.deadline_ms);
            let ideals: Vec<_> = (0..count).map(best).collect();
            Row::of_oracle(point, &self.exits, &ideals)
        };
        let mut rows = Vec::new();
        for bandwidth_bps in rates_bps.iter().copied() {
            rows.push(row(point("rate", bandwidth_bps, deadline_ms), &Trace::constant(bandwidth_bps), 1));
        }
        for (name, trace) in self.traces.iter().filter(|_| seconds > 0) {
            rows.push(row(point(name, 0, deadline_ms), trace, self.trace_requests()));
        }
        for deadline_ms in deadlines_ms.iter().copied() {
            rows.push(row(point("deadline", rate_bps, deadline_ms), &Trace::constant(rate_bps), 1));
        }
        rows
    }

    fn trace_requests(&self) -> u32 {
        (self.arguments.seconds as f64 / PERIOD.as_secs_f64()) as u32
    }

    async fn rig(&self, contender: Contender, deadline_ms: f64) -> Result<Rig> {
        let (deadline, profile) = (deadline_ms.to_string(), self.device.display().to_string());
        let device =
            ["--deadline-ms", &deadline, "--emulate-profile", &profile, "--strategy", contender.strategy.name()];
        let sure = if contender.leave_when_sure { &["--leave-when-sure"][..] } else { &[] };
        let device = [&device[..], sure].concat();
        let shape = Shape { trace: Trace::constant(self.arguments.rate_bps), delay: DELAY };
        Rig::start(&self.bundle, shape, &device, &[], false).await
    }

    /// Has the device answer at a rate until it knows it.
    async fn settle(&self, rig: &Rig, rate_bps: u64) -> Result<()> {
        rig.relay.follow(&Trace::constant(rate_bps));
        let start = Instant::now();
        let known = |estimate_bps: u64| {
            let factor = estimate_bps.max(1) as f64 / rate_bps as f64;
            (1.0 / KNOWN_FACTOR..=KNOWN_FACTOR).contains(&factor)
        };
        for index in 0.. {
            self.ask(rig, index).await?;
            let settled = index + 1 >= SETTLE_REQUESTS_MIN && known(rig.client.stats().await?.rate_bps);
            if settled || start.elapsed() > SETTLE {
                break;
            }
        }
        Ok(())
    }

    async fn point(&self, rig: &Rig, rate_bps: u64) -> Result<Vec<Asked>> {
        self.settle(rig, rate_bps).await?;
        let start = Instant::now();
        let mut asked = Vec::new();
        let requests = if self.arguments.quick { self.arguments.requests.min(8) } else { self.arguments.requests };
        while asked.len() < requests && start.elapsed() < POINT {
            asked.push(self.ask(rig, asked.len()).await?);
        }
        Ok(asked)
    }

    /// Requests come at a steady pace, whether or not those before them are answered, and each one's
    /// latency counts from when it came: a stuck link is not let off what came meanwhile.
    async fn trace(&self, rig: &Rig, trace: &Trace) -> Result<Vec<Asked>> {
        rig.relay.follow(trace);
        let start = Instant::now();
        let mut asking = JoinSet::new();
        for index in 0..self.trace_requests() {
            tokio::time::sleep_until((start + PERIOD * index).into()).await;
            asking.spawn(ask_one(rig.client.clone(), Arc::clone(&self.samples), index as usize));
        }
        let mut asked = Vec::new();
        while let Some(one) = asking.join_next().await {
            asked.push(one??);
        }
        Ok(asked)
    }

    async fn ask(&self, rig: &Rig, index: usize) -> Result<Asked> {
        tokio::time::sleep(PAUSE).await;
        self.ask_now(rig, index).await
    }

    async fn ask_now(&self, rig: &Rig, index: usize) -> Result<Asked> {
        ask_one(rig.client.clone(), Arc::clone(&self.samples), index).await
    }

    fn print(&self, row: &Row) {
        let Point { experiment, deadline_ms, .. } = &row.point;
        let exits: Vec<String> = row.exits.iter().map(|(exit, count)| format!("{exit} {count}")).collect();
        self.output.line(format_args!(
            "{experiment:<10} {:<14} {:>13} {deadline_ms:>6} ms {:>6.1} % {:>5.1} % {:>12.1} % {:>6.1} ms {:>6.1} ms {:>7.1}  {}",
            row.strategy,
            row.point.rate(),
            row.hit_ratio * 100.0,
            row.accuracy * 100.0,
            row.right_in_time * 100.0,
            row.p50_ms,
            row.p99_ms,
            row.reward,
            exits.join(", ")
        ));
    }

    fn print_error(&self, strategy: &str, error: &PredictionError) {
        self.output.line(format_args!(
            "{strategy}: predictions off by {:.1} % in the median, {:.1} % at the 90th percentile of {} answers; \
             said to be in time {:.1} %, were {:.1} %",
            error.median_relative * 100.0,
            error.p90_relative * 100.0,
            error.answers,
            error.predicted_in_time * 100.0,
            error.in_time * 100.0
        ));
    }

    fn print_changes(&self, changes: &[Change]) {
        for Change { from_bps, to_bps, settled_on, requests_before, after_ms, late, requests } in changes {
            let (from, to) = (kbps(*from_bps), kbps(*to_bps));
            let followed = match (settled_on, requests_before.zip(*after_ms)) {
                (Some(plan), Some((before, after_ms))) => {
                    format!("in time with {plan} after {before} requests, {after_ms:.0} ms")
                }
                _ => "no plan that lasted and was in time".to_owned(),
            };
            self.output.line(format_args!("change     from {from} to {to}: {followed}; {late} of {requests} late"));
        }
    }

    fn print_losses(&self, report: &Report) {
        for (trace, of_best, of_reward) in report.of_oracle() {
            self.output.line(format_args!(
                "{trace}: {:.1} % of the accuracy in time that the oracle would have had; {:.1} % of its reward",
                of_best * 100.0,
                of_reward * 100.0
            ));
        }
        for Loss { point, strategy, hit_ratio, expected_in_time, our_hit_ratio, our_expected_in_time, is_clear } in
            &report.losses
        {
            self.output.line(format_args!(
                "not the best: {} {}, {} ms: {strategy} was in time for {:.1} % (accuracy in time {:.3}), edgent for {:.1} % ({:.3}){}",
                point.experiment,
                point.rate(),
                point.deadline_ms,
                hit_ratio * 100.0,
                expected_in_time,
                our_hit_ratio * 100.0,
                our_expected_in_time,
                if *is_clear { "" } else { "; may be chance" }
            ));
        }
        let points = report.rows.iter().filter(|row| row.strategy == tally::OURS).count();
        self.output.line(format_args!("{} of {points} points where another was better", report.points_lost()));
    }
}

impl Report {
    /// For each trace, the share that ours has of what the oracle would have: of accuracy in time, and of reward.
    fn of_oracle(&self) -> Vec<(String, f64, f64)> {
        let traces = self.rows.iter().filter(|row| row.strategy == "oracle" && row.point.bandwidth_bps == 0);
        let share = |oracle: &Row| {
            let ours = self.rows.iter().find(|row| row.strategy == tally::OURS && row.point == oracle.point)?;
            let of = |ours: f64, best: f64| if best > 0.0 { ours / best } else { 1.0 };
            let accuracy = of(ours.expected_in_time, oracle.expected_in_time);
            Some((oracle.point.experiment.clone(), accuracy, of(ours.reward, oracle.reward)))
        };
        traces.filter_map(share).collect()
    }

    fn points_lost(&self) -> usize {
        let mut points: Vec<&Point> = Vec::new();
        for loss in &self.losses {
            if !points.contains(&&loss.point) {
                points.push(&loss.point);
            }
        }
        points.len()
    }
}

fn point(experiment: &str, bandwidth_bps: u64, deadline_ms: f64) -> Point {
    Point { experiment: experiment.to_owned(), bandwidth_bps, deadline_ms }
}

impl Point {
    fn rate(&self) -> String {
        if self.bandwidth_bps == 0 { "changing".to_owned() } else { kbps(self.bandwidth_bps) }
    }
}

fn kbps(rate_bps: u64) -> String {
    format!("{} kbit/s", rate_bps / 1_000)
}

async fn ask_one(client: Client, samples: Arc<Vec<Sample>>, index: usize) -> Result<Asked> {
    // A stride that has no factor in common with the number of samples visits them all, mixed.
    let sample = &samples[index * 7 % samples.len()];
    let start = Instant::now();
    let answer = outcome(ask(&client, &sample.image, 0.0).await)?.ok();
    let latency_ms = start.elapsed().as_secs_f64() * 1e3;
    let right = answer.as_ref().is_some_and(|answer| answer.label as usize == sample.label);
    Ok(Asked { latency_ms, right, answer })
}

/// What the rate changes by: as recorded, or seeded.
fn traces(arguments: &Arguments) -> Result<Vec<(String, Trace)>> {
    if arguments.trace.is_empty() {
        let Arguments { seed, seconds, .. } = *arguments;
        let seeded = [("trace", Trace::seeded(seed, seconds)), ("markov", Trace::markov(seed, seconds))];
        return Ok(seeded.map(|(name, trace)| (name.to_owned(), trace)).into());
    }
    let load = |path: &PathBuf| {
        let trace = Trace::load(path)?;
        let name = path.file_stem().map_or_else(|| "trace".to_owned(), |stem| stem.to_string_lossy().into_owned());
        Ok((name, arguments.trace_max_bps.map_or(trace.clone(), |max_bps| trace.scaled(max_bps))))
    };
    arguments.trace.iter().map(load).collect()
}

fn few<T: Copy>(all: &[T], quick: bool) -> Vec<T> {
    let step = if quick { all.len().div_ceil(QUICK) } else { 1 };
    all.iter().copied().step_by(step).collect()
}
