//! `edgent push`, `rollback` and `status`: the versions that running hosts keep and serve.

use crate::ask::connect;
use crate::identity::Connection;
use crate::output::{BadInput, Output};
use crate::progress::Unit;
use crate::top::Counts;
use anyhow::{Context, Result};
use edgent_bundle::Bundle;
use edgent_link::{Client, Computed, EdgeState, Fault, FaultKind, LinkError, ModelDescription, Trial, Version};
use edgent_runtime::{Given, PushError, give_to, make_ready, push};
use serde::Serialize;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often a folder is looked at.
const WATCH_EVERY: Duration = Duration::from_millis(500);

const TRIAL_S_MAX: f64 = 3_600.0;

#[derive(clap::Args)]
pub(crate) struct Push {
    /// The bundle's folder.
    bundle: PathBuf,
    #[command(flatten)]
    how: How,
}

/// Where a version goes, and on what terms.
#[derive(clap::Args)]
pub(crate) struct How {
    /// Address of a host that was started with --store.
    #[arg(long, value_name = "ADDR")]
    to: String,
    /// Give it to this host, too, before, so that the two need not pass it over their link; it comes into force there
    /// together with the other.
    #[arg(long, value_name = "ADDR")]
    ready: Vec<String>,
    /// Try it on this share of the requests first; it comes into force if it fails at none, is not late more often, and
    /// takes exits as accurate (a device only).
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    trial: Option<f32>,
    /// How long it is tried.
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, allow_negative_numbers = true, requires = "trial")]
    trial_s: f64,
    #[command(flatten)]
    connection: Connection,
}

#[derive(clap::Args)]
pub(crate) struct Watch {
    /// The folder of a bundle; it need not be there yet.
    dir: PathBuf,
    #[command(flatten)]
    how: How,
}

#[derive(clap::Args)]
pub(crate) struct Rollback {
    /// Address of a host that was started with --store.
    #[arg(long, value_name = "ADDR")]
    to: String,
    /// The model; not needed where there is only one.
    #[arg(long, default_value = "")]
    model: String,
    #[command(flatten)]
    connection: Connection,
}

#[derive(clap::Args)]
pub(crate) struct Status {
    /// Address of a host.
    #[arg(default_value = "127.0.0.1:7400")]
    host: String,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Serialize)]
struct Changed {
    #[serde(flatten)]
    version: Row,
    took_ms: f64,
}

#[derive(Serialize)]
struct Row {
    model: String,
    version: u64,
    digest: String,
    current: bool,
    previous: bool,
    on_trial: bool,
    quarantined: bool,
}

#[derive(Serialize)]
struct State {
    uptime_ms: u64,
    #[serde(flatten)]
    counts: Counts,
    /// Of a device, in its order of preference.
    edges: Vec<Edge>,
    /// What is served now.
    serving: Vec<Served>,
    /// What the host keeps.
    versions: Vec<Row>,
}

#[derive(Serialize)]
struct Edge {
    address: String,
    connected: bool,
    in_force: bool,
    agreed: bool,
    strikes: u32,
    rate_bps: u64,
    rtt_us: u64,
}

#[derive(Serialize)]
struct Served {
    model: String,
    digest: String,
    /// Who computes those of its segments that are held there.
    computed: Vec<Group>,
}

/// Segments that are computed in the same way.
#[derive(Serialize)]
struct Group {
    backend: String,
    /// At most.
    threads: u16,
    segments: u32,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {}", self.segments, self.backend)?;
        if self.threads > 1 { write!(f, " on {} threads", self.threads) } else { Ok(()) }
    }
}

impl From<Computed> for Group {
    fn from(Computed { backend, threads, segments }: Computed) -> Self {
        Self { backend, threads, segments }
    }
}

impl From<Version> for Row {
    fn from(version: Version) -> Self {
        let Version { model, version, digest, current, previous, on_trial, quarantined, .. } = version;
        let digest = edgent_bundle::Digest(digest.0).to_string();
        Self { model, version, digest, current, previous, on_trial, quarantined }
    }
}

pub(crate) fn push_bundle(arguments: &Push, output: &Output) -> Result<()> {
    let bundle = Bundle::open(&arguments.bundle).map_err(BadInput::error)?;
    arguments.how.push(&bundle, output)
}

impl How {
    fn push(&self, bundle: &Bundle, output: &Output) -> Result<()> {
        let trial = self.trial()?;
        for address in &self.ready {
            with_host(address, &self.connection, async |client| {
                give(&client, bundle, address, output).await?;
                Ok(make_ready(&client, bundle).await?)
            })
            .with_context(|| format!("{address} cannot serve it"))?;
            output.progress(format_args!("{address} is ready"));
        }
        change(&self.to, &self.connection, output, async |client| {
            give(&client, bundle, &self.to, output).await?;
            Ok(push(&client, bundle, trial).await?)
        })
    }

    fn trial(&self) -> Result<Option<Trial>> {
        let Some(share) = self.trial else { return Ok(None) };
        if !(share > 0.0 && share <= 1.0) {
            return Err(BadInput::error("--trial must be over 0 and at most 1"));
        }
        if !(0.0..=TRIAL_S_MAX).contains(&self.trial_s) {
            return Err(BadInput::error(format_args!("--trial-s must be within 0 and {TRIAL_S_MAX}")));
        }
        Ok(Some(Trial { share, time_ms: (self.trial_s * 1e3) as u32 }))
    }
}

/// Gives a host what it lacks of a bundle, where it is seen how far that is.
async fn give(client: &Client, bundle: &Bundle, to: &str, output: &Output) -> Result<()> {
    let mut progress = None;
    let tell = |Given { bytes, total_bytes }| {
        let total = usize::try_from(total_bytes).unwrap_or(usize::MAX);
        progress.get_or_insert_with(|| output.count(&format!("sending to {to}"), Unit::Bytes, total)).set(bytes);
    };
    Ok(give_to(client, bundle, tell).await?)
}

/// Pushes what lies in a folder, and again each time that it changes. A version that is refused, or a host that is
/// away, is said and waited out: the next change, or the host's return, is another chance.
pub(crate) fn watch(arguments: &Watch, output: &Output) -> Result<()> {
    arguments.how.trial()?;
    let (mut done, mut said) = (None, String::new());
    loop {
        let attempt = Bundle::open(&arguments.dir).map_err(BadInput::error).and_then(|bundle| {
            if done == Some(bundle.digest()) {
                return Ok(());
            }
            let pushed = arguments.how.push(&bundle, output);
            let refused = pushed.as_ref().err().is_some_and(is_refusal);
            if pushed.is_ok() || refused {
                done = Some(bundle.digest());
            }
            pushed
        });
        // Once for each new trouble: a folder half written or a host away is looked at again and again.
        let trouble = attempt.err().map(|error| format!("{error:#}")).unwrap_or_default();
        if trouble != said && !trouble.is_empty() {
            output.progress(format_args!("{trouble}"));
        }
        said = trouble;
        std::thread::sleep(WATCH_EVERY);
    }
}

fn is_refusal(error: &anyhow::Error) -> bool {
    let push_error = error.chain().find_map(|cause| cause.downcast_ref::<PushError>());
    matches!(push_error, Some(PushError::Link(LinkError::Fault(Fault { kind: FaultKind::Refused, .. }))))
}

pub(crate) fn rollback(arguments: &Rollback, output: &Output) -> Result<()> {
    change(&arguments.to, &arguments.connection, output, async |client| Ok(client.rollback(&arguments.model).await?))
}

fn change<F: Future<Output = Result<Version>>>(
    to: &str,
    connection: &Connection,
    output: &Output,
    how: impl FnOnce(Client) -> F,
) -> Result<()> {
    with_host(to, connection, async |client| {
        let start = Instant::now();
        let version = how(client).await.with_context(|| format!("{to} keeps the version it has"))?;
        let changed = Changed { version: version.into(), took_ms: start.elapsed().as_secs_f64() * 1e3 };
        output.line(format_args!(
            "{}:{} is in force at {to}, after {:.0} ms  {}",
            changed.version.model, changed.version.version, changed.took_ms, changed.version.digest
        ));
        output.result(&changed)
    })
}

pub(crate) fn status(arguments: &Status, output: &Output) -> Result<()> {
    with_host(&arguments.host, &arguments.connection, async |client| {
        let (stats, described) = (client.stats().await?, client.describe().await?);
        let digest = |digest: edgent_link::Digest| edgent_bundle::Digest(digest.0).to_string();
        let serving = described.models.into_iter();
        let state = State {
            uptime_ms: stats.uptime_ms,
            counts: Counts::from(&stats),
            edges: edges(&client).await?,
            serving: serving
                .map(|ModelDescription { name: model, digest: of, computed, .. }| Served {
                    model,
                    digest: digest(of),
                    computed: computed.into_iter().map(Group::from).collect(),
                })
                .collect(),
            versions: client.versions().await?.into_iter().map(Row::from).collect(),
        };
        let counts = state.counts;
        output.line(format_args!(
            "up {:.0} s; {} requests, {} answered, {} errors, {} in time, {} degraded; {} changes of plan",
            state.uptime_ms as f64 / 1e3,
            counts.requests,
            counts.answered,
            counts.errors,
            counts.deadline_met,
            counts.degraded,
            counts.plan_changes
        ));
        if counts.faults > 0 {
            let Counts { faults, quarantined, .. } = counts;
            output.line(format_args!("{faults} faults of segments, {quarantined} versions quarantined"));
        }
        for Edge { address, connected, in_force, agreed, strikes, rate_bps, rtt_us } in &state.edges {
            let what = match (in_force, connected, agreed) {
                (true, ..) => "in force",
                (_, true, true) => "ready to take over",
                (_, true, false) => "connected",
                _ => "away",
            };
            let link = if *connected {
                format!("  {:.1} Mbit/s, {:.1} ms", *rate_bps as f64 / 1e6, *rtt_us as f64 / 1e3)
            } else {
                String::new()
            };
            let strikes = if *strikes > 0 { format!("  {strikes} strikes") } else { String::new() };
            output.line(format_args!("edge   {address:<24} {what}{link}{strikes}"));
        }
        for served in &state.serving {
            output.line(format_args!("serves {:<24} {}", served.model, served.digest));
            if !served.computed.is_empty() {
                let groups: Vec<String> = served.computed.iter().map(Group::to_string).collect();
                output.line(format_args!("       segments: {}", groups.join(", ")));
            }
        }
        for Row { model, version, digest, current, previous, on_trial, quarantined } in &state.versions {
            let mark = if *quarantined {
                "quarantined"
            } else if *current {
                "in force"
            } else if *on_trial {
                "on trial"
            } else if *previous {
                "before"
            } else {
                ""
            };
            output.line(format_args!("keeps  {:<24} {digest}  {mark}", format!("{model}:{version}")));
        }
        output.result(&state)
    })
}

/// Those of a device; an edge has none, and an older device does not tell.
async fn edges(client: &Client) -> Result<Vec<Edge>> {
    let told = match client.edges().await {
        Err(LinkError::Fault(Fault { kind: FaultKind::Unsupported, .. })) => Vec::new(),
        told => told?,
    };
    let edge = |EdgeState { address, connected, in_force, agreed, strikes, rate_bps, rtt_us }| Edge {
        address,
        connected,
        in_force,
        agreed,
        strikes,
        rate_bps,
        rtt_us,
    };
    Ok(told.into_iter().map(edge).collect())
}

pub(crate) fn with_host<T, F: Future<Output = Result<T>>>(
    address: &str,
    connection: &Connection,
    work: impl FnOnce(Client) -> F,
) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let link = connection.link(&[address])?;
        work(connect(&link, address).await?).await
    })
}
