//! What a host does when it is asked for more than it can do.
//!
//! Several clients ask a host at one to ten times of what it can do, at a steady pace, whether they have been answered or
//! not. What counts are answers in time: a host that takes whatever comes is late for all of it. The host is a real
//! process with one worker, made so slow that those who ask cost nothing beside it.

use crate::ask::{ask, connect};
use crate::build::build;
use crate::hosts::HostProcess;
use crate::output::{BadInput, Output, quantile};
use crate::rig::test_samples;
use anyhow::{Context, Result, ensure};
use edgent_bundle::Bundle;
use edgent_link::{Client, Codec, Digest, Direction, Fault, FaultKind, InferRequest, Link, LinkError, Plan, Security};
use edgent_nn::Tensor;
use edgent_runtime::codec;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How long each load lasts.
    #[arg(long, default_value_t = 12.0)]
    seconds: f64,
    /// An ONNX file with its model.toml.
    #[arg(long, default_value = "models/branchy-alexnet/branchy-alexnet.onnx")]
    model: PathBuf,
}

const SECONDS_MAX: f64 = 3_600.0;
const SAMPLES: usize = 20;

/// Each with a connection of its own, as devices have.
const CLIENTS: usize = 8;
const DEADLINE: Duration = Duration::from_millis(100);
const SLOWDOWN: &str = "20";
/// Times of what the host can do.
const LOADS: [f64; 6] = [0.5, 1.0, 2.0, 4.0, 7.0, 10.0];
/// Of answers in time a second at the largest load, against the best load.
const GOODPUT_MIN: f64 = 0.8;
/// What a host can do is measured for so long, by as many as keep it busy.
const MEASURED: Duration = Duration::from_secs(3);
const KEEP_BUSY: usize = 2;
/// What is not answered by now is lost.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct Report {
    hosts: Vec<Host>,
    deadline_ms: f64,
    clients: usize,
}

#[derive(Serialize)]
struct Host {
    role: &'static str,
    /// Requests a second, each asked when another is answered.
    capacity_per_s: f64,
    loads: Vec<Load>,
    /// At the largest load, against the best one.
    goodput_ratio: f64,
}

#[derive(Serialize)]
struct Load {
    times_capacity: f64,
    requests: usize,
    in_time: usize,
    late: usize,
    /// Told that there is not the time for it.
    refused: usize,
    /// Neither.
    lost: usize,
    /// Answers in time a second.
    goodput_per_s: f64,
    refused_ms: Quantiles,
}

#[derive(Serialize)]
struct Quantiles {
    p50: f64,
    p99: f64,
}

/// What a request came to, and after how long.
enum Became {
    InTime,
    Late,
    Refused(Duration),
    Lost(String),
}

pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    if !(arguments.seconds > 0.0 && arguments.seconds <= SECONDS_MAX) {
        return Err(BadInput::error(format_args!("--seconds must be over 0 and at most {SECONDS_MAX}")));
    }
    let scratch = tempfile::tempdir()?;
    let bundle = build(&arguments.model, scratch.path(), SAMPLES, output)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(measure(&bundle, Duration::from_secs_f64(arguments.seconds), output))?;
    output.result(&report)?;
    for Host { role, goodput_ratio, loads, .. } in &report.hosts {
        let lost: usize = loads.iter().map(|load| load.lost).sum();
        ensure!(lost == 0, "the {role} lost {lost} requests");
        ensure!(*goodput_ratio >= GOODPUT_MIN, "the {role} keeps {goodput_ratio:.2} of its best, below {GOODPUT_MIN}");
    }
    Ok(())
}

async fn measure(bundle: &Bundle, lasts: Duration, output: &Output) -> Result<Report> {
    let images: Arc<Vec<Tensor>> = Arc::new(test_samples(bundle)?.into_iter().map(|sample| sample.image).collect());
    output.line(format_args!(
        "{:<8} {:>6} {:>9} {:>8} {:>6} {:>8} {:>5} {:>10} {:>20}",
        "host", "load", "requests", "in time", "late", "refused", "lost", "in time/s", "refused ms p50 / p99"
    ));
    let mut hosts = Vec::new();
    for role in ["edge", "device"] {
        hosts.push(overload(role, bundle, &images, lasts, output).await?);
    }
    Ok(Report { hosts, deadline_ms: DEADLINE.as_secs_f64() * 1e3, clients: CLIENTS })
}

async fn overload(
    role: &'static str,
    bundle: &Bundle,
    images: &Arc<Vec<Tensor>>,
    lasts: Duration,
    output: &Output,
) -> Result<Host> {
    let model = bundle.path().to_str().context("the bundle's path is not UTF-8")?;
    let deadline_ms = DEADLINE.as_millis().to_string();
    let arguments = ["--listen", "127.0.0.1:0", "--workers", "1", "--model", model, "--emulate-slowdown", SLOWDOWN];
    let arguments = [&["--role", role, "--deadline-ms", &deadline_ms], &arguments[..]].concat();
    let host = HostProcess::start(&std::env::current_exe()?, &arguments, false).await?;
    let link = Link::start(Security::plain_on_loopback(None))?;
    let mut askers = Vec::new();
    for index in 0..CLIENTS {
        let client = connect(&link, &host.address().to_string()).await?;
        askers.push(Asker::new(role, client, bundle, Arc::clone(images), index as u64).await?);
    }
    let capacity_per_s = capacity(&askers).await?;
    let mut loads = Vec::new();
    for times_capacity in LOADS {
        let became = load(&askers, times_capacity * capacity_per_s, lasts).await;
        let count = |which: fn(&Became) -> bool| became.iter().filter(|became| which(became)).count();
        let in_time = count(|became| matches!(became, Became::InTime));
        if let Some(why) =
            became.iter().find_map(|became| if let Became::Lost(why) = became { Some(why) } else { None })
        {
            output.progress(format_args!("{role}: lost: {why}"));
        }
        let refusal =
            |became: &Became| if let Became::Refused(after) = became { Some(after.as_secs_f64() * 1e3) } else { None };
        let mut refused_ms: Vec<f64> = became.iter().filter_map(refusal).collect();
        let load = Load {
            times_capacity,
            requests: became.len(),
            in_time,
            late: count(|became| matches!(became, Became::Late)),
            refused: refused_ms.len(),
            lost: count(|became| matches!(became, Became::Lost(_))),
            goodput_per_s: in_time as f64 / lasts.as_secs_f64(),
            refused_ms: Quantiles { p50: quantile(&mut refused_ms, 0.5), p99: quantile(&mut refused_ms, 0.99) },
        };
        output.line(format_args!(
            "{role:<8} {:>4.1} × {:>9} {:>8} {:>6} {:>8} {:>5} {:>10.1} {:>12.1} / {:.1}",
            load.times_capacity,
            load.requests,
            load.in_time,
            load.late,
            load.refused,
            load.lost,
            load.goodput_per_s,
            load.refused_ms.p50,
            load.refused_ms.p99
        ));
        loads.push(load);
    }
    let best = loads.iter().map(|load| load.goodput_per_s).fold(0.0, f64::max);
    let goodput_ratio = loads.last().map_or(0.0, |load| load.goodput_per_s) / best;
    output.line(format_args!(
        "{role}: {capacity_per_s:.0} requests a second; {goodput_ratio:.2} of its best at the largest load"
    ));
    drop(askers);
    let ended = host.end().await?;
    ensure!(ended.success(), "the {role} ended with {ended}");
    Ok(Host { role, capacity_per_s, loads, goodput_ratio })
}

/// How many requests a second a host answers, if it always has something to do and never too much.
async fn capacity(askers: &[Asker]) -> Result<f64> {
    let end = Instant::now() + MEASURED;
    let mut busy = JoinSet::new();
    for asker in askers.iter().take(KEEP_BUSY) {
        let asker = asker.clone();
        busy.spawn(async move {
            let mut answered = 0;
            while Instant::now() < end {
                match asker.ask(answered).await {
                    Became::InTime | Became::Late => answered += 1,
                    Became::Refused(_) => {}
                    Became::Lost(why) => anyhow::bail!(why),
                }
            }
            Ok(answered)
        });
    }
    let mut answered = 0;
    while let Some(asker) = busy.join_next().await {
        answered += asker??;
    }
    ensure!(answered > 0, "the host answers nothing at all");
    Ok(answered as f64 / MEASURED.as_secs_f64())
}

/// Requests at a steady pace, each client's in its turn, whatever becomes of those before.
async fn load(askers: &[Asker], per_s: f64, lasts: Duration) -> Vec<Became> {
    let mut tick = interval(Duration::from_secs_f64(1.0 / per_s));
    // What came late is caught up: nobody asks less because this machine is busy.
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (end, mut asked) = (Instant::now() + lasts, JoinSet::new());
    for index in 0.. {
        tick.tick().await;
        if Instant::now() >= end {
            break;
        }
        let asker = askers[index % askers.len()].clone();
        asked.spawn(async move {
            let answer = tokio::time::timeout(PATIENCE, asker.ask(index)).await;
            answer.unwrap_or_else(|_| Became::Lost("no answer came".to_owned()))
        });
    }
    let died = |error: tokio::task::JoinError| Became::Lost(error.to_string());
    let mut became = Vec::with_capacity(asked.len());
    while let Some(one) = asked.join_next().await {
        became.push(one.unwrap_or_else(died));
    }
    became
}

/// Somebody with a connection: of an edge, a device whose plan leaves all of the network to it.
#[derive(Clone)]
struct Asker {
    client: Client,
    images: Arc<Vec<Tensor>>,
    /// Of an edge.
    plan: Option<(Plan, u16)>,
}

impl Asker {
    async fn new(role: &str, client: Client, bundle: &Bundle, images: Arc<Vec<Tensor>>, epoch: u64) -> Result<Self> {
        if role == "device" {
            return Ok(Self { client, images, plan: None });
        }
        let exits = &bundle.manifest().exits;
        let best = exits.iter().enumerate().max_by(|(_, a), (_, b)| a.accuracy.total_cmp(&b.accuracy));
        let (exit, end) = best.map(|(exit, best)| (exit, best.path.len())).context("the model has no exit")?;
        let (model, exit) = (Digest(bundle.digest().0), u16::try_from(exit)?);
        let plan = Plan { epoch, model, exit, cut: 0, direction: Direction::DeviceFirst, codec: Codec::Raw };
        client.install_plan(plan).await?;
        Ok(Self { client, images, plan: Some((plan, u16::try_from(end)?)) })
    }

    async fn ask(&self, index: usize) -> Became {
        let (image, asked) = (&self.images[index % self.images.len()], Instant::now());
        let outcome = match self.plan {
            None => match ask(&self.client, image, DEADLINE.as_secs_f64() * 1e3).await {
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            },
            Some((plan, end)) => self.infer(plan, end, image, index as u64).await,
        };
        let took = asked.elapsed();
        match outcome {
            Ok(()) if took <= DEADLINE => Became::InTime,
            Ok(()) => Became::Late,
            Err(error) => match error.chain().find_map(|cause| cause.downcast_ref()) {
                Some(LinkError::Fault(Fault { kind: FaultKind::Busy | FaultKind::TimeUp, .. })) => {
                    Became::Refused(took)
                }
                _ => Became::Lost(format!("{error:#}")),
            },
        }
    }

    async fn infer(&self, plan: Plan, end: u16, image: &Tensor, id: u64) -> Result<()> {
        let image = std::slice::from_ref(image);
        let (activation, beside) = codec::encode_all(image, Codec::Raw).context("an image cannot be sent")?;
        let request = InferRequest {
            id,
            model: plan.model,
            epoch: plan.epoch,
            from_segment: 0,
            to_segment: end,
            reply_codec: Codec::Raw,
            remaining_budget_us: DEADLINE.as_micros() as u64,
            activation,
            beside,
            trace: None,
        };
        Ok(self.client.infer(request).await.map(drop)?)
    }
}
