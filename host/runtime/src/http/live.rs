//! What happens here, for people and for Prometheus: the dashboard, what it draws, and `/metrics`.

use super::Shared;
use super::asking::inputs;
use super::error::Refusal;
use super::limits::{RATE_MAX_BPS, WATCHERS_MAX};
use super::oip::answer;
use super::tensors::datatype;
use crate::Deployment;
use crate::metrics::{Seen, resident_bytes};
use crate::running::Running;
use crate::state::State;
use axum::Router;
use axum::extract::{RawQuery, State as Of};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderName, StatusCode};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use edgent_planner::{Direction, Explained, Verdict};
use futures::Stream;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often the dashboard is told what is new.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// Everything is this host's own: no script, style or picture from elsewhere, and the page in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn routes() -> Router<Arc<Shared>> {
    let page = include_str!("dashboard/index.html");
    let style = include_str!("dashboard/dashboard.css");
    let script = include_str!("dashboard/dashboard.js");
    Router::new()
        .route("/", get(async || file("text/html; charset=utf-8", page)))
        .route("/dashboard.css", get(async || file("text/css; charset=utf-8", style)))
        .route("/dashboard.js", get(async || file("text/javascript; charset=utf-8", script)))
        .route("/events", get(events))
        .route("/network", get(network))
        .route("/explain", get(explain))
        .route("/metrics", get(metrics))
}

fn file(content_type: &'static str, text: &'static str) -> Response {
    let headers: [(HeaderName, &str); 4] = [
        (CONTENT_TYPE, content_type),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}

async fn metrics(Of(shared): Of<Arc<Shared>>) -> Result<Response, Refusal> {
    let text = shared.metrics.text(shared.running.state().samples());
    let text = text.map_err(|_| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written"))?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

/// What the network consists of; it stays so as long as a version is in force.
async fn network(Of(shared): Of<Arc<Shared>>) -> Result<Response, Refusal> {
    let nothing = || Refusal::new(StatusCode::NOT_FOUND, "no model is served");
    let version = shared.running.state().version.ok_or_else(nothing)?;
    let manifest = version.manifest();
    let exit = |exit: &edgent_bundle::Exit| json!({ "name": exit.name, "accuracy": exit.accuracy, "path": exit.path });
    let inputs = inputs(&version).into_iter().map(
        |port| json!({ "name": port.name, "datatype": datatype(port.fact.element_type), "shape": port.fact.dims }),
    );
    let segments = manifest.segments.iter().enumerate().map(|(index, segment)| {
        let (backend, threads) = version.computed_by(index).unzip();
        json!({ "name": segment.name, "macs": segment.macs, "backend": backend, "threads": threads })
    });
    Ok(answer(&json!({
        "model": manifest.name,
        "version": shared.version_name(&version).await,
        "inputs": inputs.collect::<Vec<_>>(),
        "segments": segments.collect::<Vec<_>>(),
        "exits": manifest.exits.iter().map(exit).collect::<Vec<_>>(),
        "classes": manifest.classes,
    })))
}

/// The plans there are: of each exit and placement the fastest, and the one that would be taken; with the link at
/// another rate, if the query says one.
async fn explain(Of(shared): Of<Arc<Shared>>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let Running::Device(device) = &shared.running else {
        return Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, "devices plan; an edge runs what their plans say"));
    };
    let rate_bps = query.as_deref().filter(|query| !query.is_empty()).map(rate).transpose()?;
    let (version, choice, mut explained) = device.explain(rate_bps);
    let chosen = choice.candidate.plan;
    explained.sort_by(|a, b| a.candidate.cost.total_us().total_cmp(&b.candidate.cost.total_us()));
    let network = version.network();
    let mut shown: Vec<(usize, _)> = Vec::new();
    explained.retain(|one| {
        let plan = one.candidate.plan;
        let kind = (plan.exit, plan.placement(network));
        let is_first = !shown.contains(&kind);
        if is_first {
            shown.push(kind);
        }
        is_first || plan == chosen
    });
    explained.sort_by(|a, b| b.candidate.accuracy.total_cmp(&a.candidate.accuracy));
    let row = |one: &Explained| {
        let (plan, cost) = (one.candidate.plan, one.candidate.cost);
        let verdict = match one.verdict {
            _ if plan == chosen => Verdict::Chosen.words(),
            // Ours; another strategy took another.
            Verdict::Chosen => "what edgent would take",
            other => other.words(),
        };
        let mut row = plan_json(&version, plan);
        let parts = [
            ("device_ms", cost.device_us),
            ("edge_ms", cost.edge_us),
            ("queue_ms", cost.queue_us),
            ("transfer_ms", cost.transfer_us),
            ("rtt_ms", cost.rtt_us),
            ("codec_ms", cost.codec_us),
            ("total_ms", cost.total_us()),
        ];
        parts.into_iter().for_each(|(name, us)| row[name] = (us / 1e3).into());
        row["accuracy"] = one.candidate.accuracy.into();
        row["verdict"] = verdict.into();
        row
    };
    let state = device.state();
    let known_bps = state.device.filter(|device| device.edge_is_connected).map(|_| state.stats.rate_bps as f64);
    Ok(answer(&json!({
        "rate_bps": rate_bps.or(known_bps),
        "deadline_ms": state.deadline_us / 1e3,
        "fits": choice.fits,
        "plans": explained.iter().map(row).collect::<Vec<_>>(),
    })))
}

fn rate(query: &str) -> Result<f64, Refusal> {
    let given = query.strip_prefix("rate_bps=").and_then(|text| text.parse::<f64>().ok());
    let wrong = || format!("the query must be 'rate_bps=' with a number over 0 and at most {RATE_MAX_BPS}");
    given
        .filter(|rate_bps| *rate_bps > 0.0 && *rate_bps <= RATE_MAX_BPS)
        .ok_or_else(|| Refusal::new(StatusCode::BAD_REQUEST, wrong()))
}

/// Tells what is new, again and again, until the host ends or nobody listens.
async fn events(Of(shared): Of<Arc<Shared>>) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refusal> {
    let watching = Watching::new(&shared)?;
    let begin = (watching, 0, tokio::time::interval(TELL_EVERY));
    Ok(Sse::new(futures::stream::unfold(begin, |(watching, told, mut every)| async move {
        every.tick().await;
        let shared = &watching.0;
        if shared.has_ended() {
            return None;
        }
        let (answers, told) = shared.metrics.seen_since(told);
        let state = shared.running.state();
        let version = match &state.version {
            Some(version) => shared.version_name(version).await,
            None => String::new(),
        };
        let event = Event::default().data(state_json(&state, shared, &version, &answers).to_string());
        Some((Ok(event), (watching, told, every)))
    })))
}

fn state_json(state: &State, shared: &Shared, version: &str, answers: &[Seen]) -> Value {
    let stats = &state.stats;
    let answers = answers.iter().map(|seen| {
        json!({
            "number": seen.number,
            "latency_ms": seen.latency_us as f64 / 1e3,
            "deadline_ms": seen.deadline_us as f64 / 1e3,
            "deadline_met": seen.deadline_met,
            "degraded": seen.degraded,
            "exit": seen.exit,
            "placement": seen.placement.name(),
        })
    });
    let plan = state.device.as_ref().zip(state.version.as_ref()).map(|(device, version)| {
        let installed = device.planned.installed;
        let mut plan = plan_json(version, installed.plan);
        plan["epoch"] = installed.epoch.into();
        plan["predicted_ms"] = device.planned.predicted_us.map(|us| us / 1e3).into();
        plan["in_time"] = device.in_time.into();
        plan
    });
    let device = state.device;
    json!({
        "role": state.role.to_string(),
        "model": state.version.as_ref().map_or("", |version| version.manifest().name.as_str()),
        "version": version,
        "uptime_s": stats.uptime_ms as f64 / 1e3,
        "ending": shared.is_ending(),
        "deadline_ms": state.deadline_us / 1e3,
        "plan": plan,
        "edge": {
            "configured": device.is_some_and(|device| device.edge_is_configured),
            "connected": device.is_some_and(|device| device.edge_is_connected),
        },
        "link": { "rate_bps": stats.rate_bps, "rtt_ms": stats.rtt_us as f64 / 1e3 },
        "counts": {
            "requests": stats.requests,
            "answered": stats.answered,
            "errors": stats.errors,
            "deadline_met": stats.deadline_met,
            "degraded": stats.degraded,
            "plan_changes": stats.plan_changes,
            "faults": stats.faults,
            "quarantined": stats.quarantined,
            "in_flight": shared.metrics.in_flight(),
            "parts": shared.metrics.parts_done(),
        },
        "memory_bytes": resident_bytes().unwrap_or(0),
        "answers": answers.collect::<Vec<_>>(),
    })
}

fn plan_json(version: &Deployment, plan: edgent_planner::Plan) -> Value {
    json!({
        "exit": plan.exit,
        "cut": plan.cut,
        "direction": match plan.direction {
            Direction::DeviceFirst => "device-first",
            Direction::EdgeFirst => "edge-first",
        },
        "codec": plan.codec.name(),
        "placement": match plan.placement(version.network()) {
            edgent_planner::Placement::DeviceOnly => edgent_link::Placement::DeviceOnly.name(),
            edgent_planner::Placement::Split => edgent_link::Placement::Split.name(),
            edgent_planner::Placement::EdgeOnly => edgent_link::Placement::EdgeOnly.name(),
        },
    })
}

/// A dashboard that is open, counted until this is dropped.
struct Watching(Arc<Shared>);

impl Watching {
    fn new(shared: &Arc<Shared>) -> Result<Self, Refusal> {
        let watching = Self(Arc::clone(shared));
        if shared.watchers.fetch_add(1, Ordering::AcqRel) >= WATCHERS_MAX {
            let why = format!("{WATCHERS_MAX} dashboards are open already; close one");
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why));
        }
        Ok(watching)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.watchers.fetch_sub(1, Ordering::AcqRel);
    }
}
