//! `edgent push`, `rollback` and `status`: the versions that running hosts keep and serve.

use crate::ask::connect;
use crate::output::{BadInput, Output};
use anyhow::{Context, Result};
use edgent_bundle::Bundle;
use edgent_link::{Client, Link, Version};
use edgent_runtime::push;
use serde::Serialize;
use std::future::Future;
use std::path::PathBuf;
use std::time::Instant;

#[derive(clap::Args)]
pub(crate) struct Push {
    /// The bundle's folder.
    bundle: PathBuf,
    /// Address of a host that was started with --store.
    #[arg(long, value_name = "ADDR")]
    to: String,
}

#[derive(clap::Args)]
pub(crate) struct Rollback {
    /// Address of a host that was started with --store.
    #[arg(long, value_name = "ADDR")]
    to: String,
    /// The model; not needed where there is only one.
    #[arg(long, default_value = "")]
    model: String,
}

#[derive(clap::Args)]
pub(crate) struct Status {
    /// Address of a host.
    #[arg(default_value = "127.0.0.1:7400")]
    host: String,
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
    quarantined: bool,
}

#[derive(Serialize)]
struct State {
    uptime_ms: u64,
    requests: u64,
    answered: u64,
    errors: u64,
    deadline_met: u64,
    degraded: u64,
    plan_changes: u64,
    /// What segments' guests or graphs did wrong.
    faults: u64,
    /// Versions that are not run any more for it.
    quarantined: u64,
    /// What is served now.
    serving: Vec<Served>,
    /// What the host keeps.
    versions: Vec<Row>,
}

#[derive(Serialize)]
struct Served {
    model: String,
    digest: String,
}

impl From<Version> for Row {
    fn from(version: Version) -> Self {
        let Version { model, version, digest, current, previous, quarantined, .. } = version;
        let digest = edgent_bundle::Digest(digest.0).to_string();
        Self { model, version, digest, current, previous, quarantined }
    }
}

pub(crate) fn push_bundle(arguments: &Push, output: &Output) -> Result<()> {
    let bundle = Bundle::open(&arguments.bundle).map_err(BadInput::error)?;
    change(&arguments.to, output, async |client| Ok(push(&client, &bundle).await?))
}

pub(crate) fn rollback(arguments: &Rollback, output: &Output) -> Result<()> {
    change(&arguments.to, output, async |client| Ok(client.rollback(&arguments.model).await?))
}

fn change<F: Future<Output = Result<Version>>>(to: &str, output: &Output, how: impl FnOnce(Client) -> F) -> Result<()> {
    with_host(to, async |client| {
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
    with_host(&arguments.host, async |client| {
        let (stats, described) = (client.stats().await?, client.describe().await?);
        let digest = |digest: edgent_link::Digest| edgent_bundle::Digest(digest.0).to_string();
        let serving = described.models.into_iter();
        let state = State {
            uptime_ms: stats.uptime_ms,
            requests: stats.requests,
            answered: stats.answered,
            errors: stats.errors,
            deadline_met: stats.deadline_met,
            degraded: stats.degraded,
            plan_changes: stats.plan_changes,
            faults: stats.faults,
            quarantined: stats.quarantined,
            serving: serving.map(|model| Served { digest: digest(model.digest), model: model.name }).collect(),
            versions: client.versions().await?.into_iter().map(Row::from).collect(),
        };
        output.line(format_args!(
            "up {:.0} s; {} requests, {} answered, {} errors, {} in time, {} degraded; {} changes of plan",
            state.uptime_ms as f64 / 1e3,
            state.requests,
            state.answered,
            state.errors,
            state.deadline_met,
            state.degraded,
            state.plan_changes
        ));
        if state.faults > 0 {
            let (faults, quarantined) = (state.faults, state.quarantined);
            output.line(format_args!("{faults} faults of segments, {quarantined} versions quarantined"));
        }
        for served in &state.serving {
            output.line(format_args!("serves {:<24} {}", served.model, served.digest));
        }
        for Row { model, version, digest, current, previous, quarantined } in &state.versions {
            let mark = if *quarantined {
                "quarantined"
            } else if *current {
                "in force"
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

fn with_host<T, F: Future<Output = Result<T>>>(address: &str, work: impl FnOnce(Client) -> F) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let link = Link::start()?;
        work(connect(&link, address).await?).await
    })
}
