//! Where looks at hosts come from: the link, which is asked again and again, or HTTP, which tells of itself.

use super::look::{Answer, Counts, Latencies, Look, Memory, Plan};
use crate::ask;
use crate::identity::Connection;
use crate::output::BadInput;
use anyhow::{Context, Result, bail, ensure};
use edgent_link::{Link, Now, RunningPlan};
use serde::Deserialize;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch as channel;
use tokio::time::{sleep, timeout};

const HTTP: &str = "http://";

/// How often the link is asked, and how long nobody tries again to reach a host that is away.
const EVERY: Duration = Duration::from_secs(1);

/// How long a host may say nothing. Events come twice a second.
const PATIENCE: Duration = Duration::from_secs(5);

/// An event with as many answers as a host keeps has a tenth of this.
const LINE_BYTES_MAX: u64 = 256 << 10;

/// Looks at each host for as long as somebody wants them.
pub(super) fn all(addresses: &[String], connection: &Connection) -> Result<Vec<channel::Receiver<Look>>> {
    let by_link: Vec<&str> =
        addresses.iter().map(String::as_str).filter(|address| !address.starts_with(HTTP)).collect();
    let link = connection.link(&by_link)?;
    addresses
        .iter()
        .map(|address| {
            let (to, watched) = channel::channel(Look { address: address.clone(), ..Look::default() });
            match address.strip_prefix(HTTP).map(|rest| rest.trim_end_matches('/')) {
                Some(host) if host.contains(['/', ' ', '\r', '\n']) => {
                    return Err(BadInput::error(format!(
                        "{address}: only the host and its port, as in {HTTP}HOST:PORT"
                    )));
                }
                Some(host) => drop(tokio::spawn(by_http(host.to_owned(), to))),
                None => drop(tokio::spawn(by_link_of(link.clone(), address.clone(), to))),
            }
            Ok(watched)
        })
        .collect()
}

async fn by_link_of(link: Link, address: String, to: channel::Sender<Look>) {
    while !to.is_closed() {
        let why = asked(&link, &address, &to).await.err();
        told_away(&to, why);
        sleep(EVERY).await;
    }
}

async fn by_http(host: String, to: channel::Sender<Look>) {
    while !to.is_closed() {
        let why = listened(&host, &to).await.err();
        told_away(&to, why);
        sleep(EVERY).await;
    }
}

fn told_away(to: &channel::Sender<Look>, why: Option<anyhow::Error>) {
    let why = why.map_or_else(|| "it has ended".to_owned(), |error| format!("{error:#}"));
    to.send_modify(|look| look.away = Some(why));
}

/// Asks until the host is lost.
async fn asked(link: &Link, address: &str, to: &channel::Sender<Look>) -> Result<()> {
    let client = ask::connect(link, address).await?;
    let mut memory = Memory::default();
    while !to.is_closed() {
        let stats = client.stats().await?;
        let described = client.describe().await?;
        let model = described.models.first();
        let versions = client.versions().await?;
        let current = model.and_then(|model| versions.iter().find(|one| one.digest == model.digest));
        let look = Look {
            address: address.to_owned(),
            role: client.peer().role.to_string(),
            model: model.map_or_else(String::new, |model| model.name.clone()),
            version: match (current, model) {
                (Some(version), _) => version.version.to_string(),
                (None, Some(model)) => edgent_bundle::Digest(model.digest.0).to_string(),
                (None, None) => String::new(),
            },
            uptime_s: stats.uptime_ms as f64 / 1e3,
            counts: Counts::from(&stats),
            rate_bps: stats.rate_bps,
            rtt_ms: stats.rtt_us as f64 / 1e3,
            ..Look::default()
        };
        let look = match stats.now {
            Some(now) => with_now(look, now),
            None => look,
        };
        to.send_replace(memory.complete(look, Instant::now()));
        sleep(EVERY).await;
    }
    Ok(())
}

/// A look, with what newer hosts tell beside their counters.
fn with_now(look: Look, now: Now) -> Look {
    let plan = |plan: RunningPlan| Plan {
        exit: plan.exit.into(),
        cut: plan.cut.into(),
        direction: ask::direction(plan.direction).to_owned(),
        placement: plan.placement.name().to_owned(),
        codec: plan.codec,
        epoch: plan.epoch,
        predicted_ms: (plan.predicted_us > 0).then(|| plan.predicted_us as f64 / 1e3),
        in_time: plan.in_time.into(),
    };
    let ms = |us: u64| us as f64 / 1e3;
    let gave = (0..).zip(now.exits).filter(|(_, answers)| *answers > 0);
    Look {
        deadline_ms: Some(ms(now.deadline_us)),
        plan: now.plan.map(plan),
        edge_is_connected: now.edge_configured.then_some(now.edge_connected),
        latencies: (now.answers > 0).then(|| Latencies {
            answers: now.answers as usize,
            p50_ms: ms(now.p50_us),
            p99_ms: ms(now.p99_us),
        }),
        exits: Some(gave.map(|(exit, answers)| (exit, answers.into())).collect()),
        ..look
    }
}

/// An event, as the dashboard gets it. What else is told is not looked at.
#[derive(Deserialize)]
struct Event {
    role: String,
    model: String,
    version: String,
    uptime_s: f64,
    deadline_ms: f64,
    plan: Option<Plan>,
    edge: Edge,
    link: Measured,
    counts: Counts,
    answers: Vec<Answer>,
}

#[derive(Deserialize)]
struct Edge {
    configured: bool,
    connected: bool,
}

#[derive(Deserialize)]
struct Measured {
    rate_bps: u64,
    rtt_ms: f64,
}

/// Listens until the host ends or is lost.
async fn listened(host: &str, to: &channel::Sender<Look>) -> Result<()> {
    let stream = timeout(PATIENCE, TcpStream::connect(host)).await.context("it cannot be reached")??;
    let mut stream = BufReader::new(stream);
    // In this version of HTTP, what follows the head is the events and nothing else.
    let request = format!("GET /events HTTP/1.0\r\nhost: {host}\r\naccept: text/event-stream\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let status = line(&mut stream).await?.context("it closed without an answer")?;
    ensure!(status.split(' ').nth(1) == Some("200"), "it answered '{status}'");
    let mut memory = Memory::default();
    while let Some(line) = line(&mut stream).await? {
        let Some(data) = line.strip_prefix("data: ") else { continue };
        let Event { role, model, version, uptime_s, deadline_ms, plan, edge, link, counts, answers } =
            serde_json::from_str(data).context("an event that is none of Edgent's")?;
        let look = Look {
            address: format!("{HTTP}{host}"),
            role,
            model,
            version,
            uptime_s,
            counts,
            rate_bps: link.rate_bps,
            rtt_ms: link.rtt_ms,
            deadline_ms: Some(deadline_ms),
            plan,
            edge_is_connected: edge.configured.then_some(edge.connected),
            ..Look::default()
        };
        to.send_replace(memory.complete_with(look, answers, Instant::now()));
        if to.is_closed() {
            break;
        }
    }
    Ok(())
}

/// The next line without its end; none at the end of all.
async fn line(stream: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<String>> {
    let mut line = String::new();
    let mut limited = stream.take(LINE_BYTES_MAX);
    let read = timeout(PATIENCE, limited.read_line(&mut line)).await.context("it says nothing")??;
    if read == 0 {
        return Ok(None);
    }
    if !line.ends_with('\n') {
        bail!("it broke off, or says more than {LINE_BYTES_MAX} bytes at once");
    }
    Ok(Some(line.trim_end().to_owned()))
}
