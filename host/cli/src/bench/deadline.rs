//! Strategies side by side, each on two real hosts behind an emulated link: the paper's figures.
//!
//! Three experiments: the link's rate varied at one deadline, the deadline varied at one rate (Li, Zhou
//! and Chen 2018, section 4.3), and rates that change over time: by leaps over the whole range
//! (`trace`), mostly to neighbouring rates (`markov`), or as recorded. Before a sweep's point is
//! counted, the device is given requests until it knows the new rate.

use crate::ask::ask;
use crate::bounds;
use crate::build::{CODEC_SAMPLES, build};
use crate::demo::outcome;
use crate::output::{BadInput, Output, quantile};
use crate::relay::Shape;
use crate::rig::{DELAY, PAUSE, Rig, test_samples};
use crate::samples::Sample;
use crate::trace::Trace;
use anyhow::Result;
use edgent_bundle::Bundle;
use edgent_link::{Answer, Client};
use edgent_planner::Strategy;
use edgent_runtime::LATE;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Of the requests while the rate changes: a slow camera's pace.
const PERIOD: Duration = Duration::from_millis(150);

/// A point of a sweep ends after this long, however few requests a slow strategy has answered by then.
const POINT: Duration = Duration::from_secs(6);
/// The device knows a rate when its estimate is off by no more than this factor.
const KNOWN_FACTOR: f64 = 1.3;
const SETTLE: Duration = Duration::from_secs(5);
const SETTLE_REQUESTS_MIN: usize = 3;

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
    /// How much slower than this machine the emulated device is.
    #[arg(long, allow_negative_numbers = true, default_value_t = 50.0)]
    slowdown: f64,
    /// Requests of a sweep's point.
    #[arg(long, default_value_t = 20)]
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
    emulated_slowdown: f64,
    rows: Vec<Row>,
    prediction_error: BTreeMap<&'static str, PredictionError>,
}

#[derive(Serialize)]
struct Row {
    experiment: String,
    strategy: &'static str,
    /// 0: it changed.
    bandwidth_bps: u64,
    deadline_ms: f64,
    requests: usize,
    hit_ratio: f64,
    /// Share of all requests that were answered rightly.
    accuracy: f64,
    /// The same, in time.
    right_in_time: f64,
    p50_ms: f64,
    p99_ms: f64,
    exits: BTreeMap<String, usize>,
    degraded: usize,
}

/// How far predictions were off, of the answers that are their plan's; and how often plans were in time.
#[derive(Serialize)]
struct PredictionError {
    answers: usize,
    median_relative: f64,
    p90_relative: f64,
    /// How likely the plans were said to be in time, on average…
    predicted_in_time: f64,
    /// …and how many were; one that was late and answered by the device itself was not.
    in_time: f64,
}

struct Asked {
    latency_ms: f64,
    right: bool,
    answer: Option<Answer>,
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    bounds::check(arguments.deadline_ms, arguments.slowdown)?;
    if arguments.requests == 0 || arguments.rate_bps == 0 {
        return Err(BadInput::error("a rate and a number of requests are over 0"));
    }
    let traces = traces(arguments)?;
    let scratch = tempfile::tempdir()?;
    let bundle = build(&arguments.model, &scratch.path().join("bundle"), CODEC_SAMPLES, output)?;
    let bench = Bench { arguments, samples: Arc::new(test_samples(&bundle)?), traces, bundle, output };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(bench.all())?;
    output.result(&report)
}

struct Bench<'a> {
    arguments: &'a Arguments,
    bundle: Bundle,
    samples: Arc<Vec<Sample>>,
    /// Each with its name.
    traces: Vec<(String, Trace)>,
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
            "experiment strategy             rate  deadline  in time   right  right in time       p50       p99  exits",
        );
        let named = &self.arguments.strategy;
        let strategies = if named.is_empty() { contenders() } else { named.clone() };
        let mut report = Report { emulated_slowdown: slowdown, rows: Vec::new(), prediction_error: BTreeMap::new() };
        for contender in strategies {
            let mut all = Vec::new();
            let rig = self.rig(contender, deadline_ms).await?;
            for rate_bps in &rates_bps {
                let rate_bps = *rate_bps;
                let asked = self.point(&rig, rate_bps).await?;
                self.add(&mut report, "rate", contender.name, rate_bps, deadline_ms, &asked);
                all.extend(asked);
            }
            for (name, trace) in self.traces.iter().filter(|_| seconds > 0) {
                let asked = self.trace(&rig, trace, Duration::from_secs(seconds)).await?;
                self.add(&mut report, name, contender.name, 0, deadline_ms, &asked);
                all.extend(asked);
            }
            rig.end().await?;
            for deadline_ms in &deadlines_ms {
                let deadline_ms = *deadline_ms;
                let rig = self.rig(contender, deadline_ms).await?;
                let asked = self.point(&rig, rate_bps).await?;
                self.add(&mut report, "deadline", contender.name, rate_bps, deadline_ms, &asked);
                all.extend(asked);
                rig.end().await?;
            }
            if let Some(error) = prediction_error(&all) {
                self.output.line(format_args!(
                    "{}: predictions off by {:.1} % in the median, {:.1} % at the 90th percentile of {} answers; \
                     said to be in time {:.1} %, were {:.1} %",
                    contender.name,
                    error.median_relative * 100.0,
                    error.p90_relative * 100.0,
                    error.answers,
                    error.predicted_in_time * 100.0,
                    error.in_time * 100.0
                ));
                report.prediction_error.insert(contender.name, error);
            }
        }
        Ok(report)
    }

    async fn rig(&self, contender: Contender, deadline_ms: f64) -> Result<Rig> {
        let (deadline, slowdown) = (deadline_ms.to_string(), self.arguments.slowdown.to_string());
        let device =
            ["--deadline-ms", &deadline, "--emulate-slowdown", &slowdown, "--strategy", contender.strategy.name()];
        let sure = if contender.leave_when_sure { &["--leave-when-sure"][..] } else { &[] };
        let device = [&device[..], sure].concat();
        let shape = Shape { trace: Trace::constant(self.arguments.rate_bps), delay: DELAY };
        Rig::start(&self.bundle, shape, &device, &[], false).await
    }

    async fn point(&self, rig: &Rig, rate_bps: u64) -> Result<Vec<Asked>> {
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
    async fn trace(&self, rig: &Rig, trace: &Trace, length: Duration) -> Result<Vec<Asked>> {
        rig.relay.follow(trace);
        let start = Instant::now();
        let mut asking = JoinSet::new();
        let requests = (length.as_secs_f64() / PERIOD.as_secs_f64()) as u32;
        for index in 0..requests {
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
        ask_one(rig.client.clone(), Arc::clone(&self.samples), index).await
    }

    fn add(
        &self,
        report: &mut Report,
        experiment: &str,
        strategy: &'static str,
        bandwidth_bps: u64,
        deadline_ms: f64,
        asked: &[Asked],
    ) {
        let share = |of: &dyn Fn(&Asked) -> bool| {
            asked.iter().filter(|asked| of(asked)).count() as f64 / asked.len().max(1) as f64
        };
        let in_time = |asked: &Asked| asked.answer.is_some() && asked.latency_ms <= deadline_ms;
        let mut latencies_ms: Vec<f64> = asked.iter().map(|asked| asked.latency_ms).collect();
        let mut exits = BTreeMap::new();
        for answer in asked.iter().filter_map(|asked| asked.answer.as_ref()) {
            *exits.entry(self.bundle.manifest().exits[usize::from(answer.exit)].name.clone()).or_insert(0) += 1;
        }
        let degraded = |asked: &&Asked| asked.answer.as_ref().is_some_and(|answer| answer.degraded.is_some());
        let row = Row {
            experiment: experiment.to_owned(),
            strategy,
            bandwidth_bps,
            deadline_ms,
            requests: asked.len(),
            hit_ratio: share(&in_time),
            accuracy: share(&|asked| asked.right),
            right_in_time: share(&|asked| asked.right && in_time(asked)),
            p50_ms: quantile(&mut latencies_ms, 0.5),
            p99_ms: quantile(&mut latencies_ms, 0.99),
            exits,
            degraded: asked.iter().filter(degraded).count(),
        };
        let rate = if bandwidth_bps == 0 { "changing".to_owned() } else { format!("{} kbit/s", bandwidth_bps / 1_000) };
        let exits: Vec<String> = row.exits.iter().map(|(exit, count)| format!("{exit} {count}")).collect();
        self.output.line(format_args!(
            "{experiment:<10} {:<14} {rate:>13} {deadline_ms:>6} ms {:>6.1} % {:>5.1} % {:>12.1} % {:>6.1} ms {:>6.1} ms  {}",
            row.strategy,
            row.hit_ratio * 100.0,
            row.accuracy * 100.0,
            row.right_in_time * 100.0,
            row.p50_ms,
            row.p99_ms,
            exits.join(", ")
        ));
        report.rows.push(row);
    }
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

fn prediction_error(asked: &[Asked]) -> Option<PredictionError> {
    let answers = || asked.iter().filter_map(|asked| asked.answer.as_ref());
    // As planned, or answered by the device itself because the plan was late: these were promised something.
    let was_late = |answer: &&Answer| answer.degraded.as_deref().is_some_and(|why| why.starts_with(LATE));
    let as_planned = |answer: &&Answer| answer.degraded.is_none() && answer.predicted_us > 0;
    let promised: Vec<&Answer> = answers().filter(|answer| as_planned(answer) || was_late(answer)).collect();
    let error = |answer: &Answer| (answer.latency_us as f64 / answer.predicted_us as f64 - 1.0).abs();
    let mut errors: Vec<f64> = answers().filter(as_planned).map(error).collect();
    let count = promised.len() as f64;
    let kept = promised.iter().filter(|answer| answer.deadline_met && !was_late(answer)).count();
    (!errors.is_empty()).then(|| PredictionError {
        answers: promised.len(),
        median_relative: quantile(&mut errors, 0.5),
        p90_relative: quantile(&mut errors, 0.9),
        predicted_in_time: promised.iter().map(|answer| f64::from(answer.in_time)).sum::<f64>() / count,
        in_time: kept as f64 / count,
    })
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
