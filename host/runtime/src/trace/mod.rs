//! What becomes of a request, as spans that a collector of OpenTelemetry is told; on both hosts they are of one trace.
//!
//! Built without the feature `otel`, nothing is told (`absent.rs`). The trace that a request belongs to goes on to the edge
//! all the same: the caller may see both of them, whoever is silent in between.
//!
//! A span is a value, not the state of a thread: requests change threads, and wait beside each other on one. It ends when
//! it is dropped. `docs/tracing.md` lists spans and attributes.

#[cfg(not(feature = "otel"))]
mod absent;
#[cfg(feature = "otel")]
mod otel;

#[cfg(not(feature = "otel"))]
use absent as told;
#[cfg(feature = "otel")]
use otel as told;

pub(crate) use told::Span;
pub use told::Telling;

use crate::Deployment;
use crate::answer::Answered;
use edgent_link::{Answer, Digest, Fault, InferReply, InferRequest, LinkError, TraceParent};
use edgent_planner::{Installed, Planned};
use std::ops::Range;
use tokio::time::error::Elapsed;

/// Where the collector is, in the words of OpenTelemetry; nothing is told without one of them.
pub const ENDPOINT_VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

/// Why spans cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum TellingError {
    /// Certificates are not looked at here.
    #[error(
        "{variable} is '{endpoint}': spans are told by plain HTTP alone; name a collector on this machine, as in \
         http://127.0.0.1:4318, which tells them on"
    )]
    Endpoint {
        /// Which variable says so.
        variable: &'static str,
        /// What it says.
        endpoint: String,
    },
    /// What else OpenTelemetry finds wrong with its variables.
    #[error("the exporter of spans: {0}")]
    Exporter(String),
}

/// On which side of a call a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Answers somebody; its parent, if it has one, is elsewhere.
    Server,
    /// Waits for another host.
    Client,
    /// Neither.
    Internal,
}

/// An attribute's value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Flag(bool),
    Count(i64),
    Number(f64),
    Text(String),
}

/// The whole of a request that came to this host.
pub(crate) fn request(of: Option<TraceParent>) -> Span {
    Span::start("request", Kind::Server, of)
}

/// A part of a network that this host runs for itself.
pub(crate) fn part(of: Option<TraceParent>, deployment: &Deployment, exit: usize, range: &Range<usize>) -> Span {
    let mut span = Span::start("part", Kind::Internal, of);
    span.tell(|| about_part(deployment, exit, range));
    span
}

/// The same for another host, whose request it is.
pub(crate) fn part_for(request: &InferRequest, deployment: &Deployment, exit: usize, range: &Range<usize>) -> Span {
    let mut span = Span::start("part", Kind::Server, request.trace);
    span.tell(|| about_part(deployment, exit, range));
    span.tell(|| [("edgent.epoch", count(request.epoch))]);
    span
}

/// From an activation's sending until the edge's answer is there.
pub(crate) fn wire(of: Option<TraceParent>, edge: &str, request: &InferRequest, bytes: u64) -> Span {
    let mut span = Span::start("wire", Kind::Client, of);
    span.tell(|| {
        [
            ("server.address", Value::Text(edge.to_owned())),
            ("edgent.codec", Value::Text(request.activation.codec.name().to_owned())),
            ("edgent.bytes_sent", count(bytes)),
            ("edgent.budget_ms", Value::Number(request.remaining_budget_us as f64 / 1e3)),
        ]
    });
    span
}

impl Span {
    /// The plan that a request is to follow.
    pub(crate) fn planned(&mut self, planned: &Planned, in_time: f64) {
        let Installed { plan, epoch } = planned.installed;
        self.tell(|| {
            [
                ("edgent.exit", count(plan.exit as u64)),
                ("edgent.cut", count(plan.cut as u64)),
                ("edgent.codec", Value::Text(plan.codec.name().to_owned())),
                ("edgent.epoch", count(epoch)),
                ("edgent.predicted_ms", Value::Number(planned.predicted_us.unwrap_or(0.0) / 1e3)),
                ("edgent.in_time", Value::Number(in_time)),
            ]
        });
    }

    /// What became of a request.
    pub(crate) fn answered(&mut self, answered: &Answered) {
        match answered {
            Ok((answer, by)) => {
                self.tell(|| about_model(by));
                self.tell(|| about_answer(answer));
                if let Some(why) = &answer.degraded {
                    self.tell(|| [("edgent.degraded_because", Value::Text(why.clone()))]);
                }
            }
            Err(fault) => self.failed(fault),
        }
    }

    /// What became of what an edge was sent.
    pub(crate) fn exchanged(&mut self, reply: &Result<Result<InferReply, LinkError>, Elapsed>) {
        match reply {
            Ok(Ok(reply)) => self.tell(|| {
                let segments_us: u64 = reply.segment_us.iter().map(|us| u64::from(*us)).sum();
                let ms = |us: u64| Value::Number(us as f64 / 1e3);
                [
                    ("edgent.edge.queue_ms", ms(reply.queue_us)),
                    ("edgent.edge.segments_ms", ms(segments_us)),
                    ("edgent.edge.codec_ms", ms(reply.codec_us)),
                ]
            }),
            Ok(Err(LinkError::Fault(fault))) => self.failed(fault),
            Ok(Err(error)) => self.fail(&error.to_string()),
            Err(_) => self.fail("the edge did not answer"),
        }
    }

    /// It came to nothing.
    pub(crate) fn failed(&mut self, fault: &Fault) {
        self.tell(|| [("error.type", Value::Text(fault.kind.to_string()))]);
        self.fail(&fault.message);
    }
}

fn about_model(deployment: &Deployment) -> [(&'static str, Value); 2] {
    let version = Digest(deployment.digest().0).to_string();
    [
        ("edgent.model", Value::Text(deployment.manifest().name.clone())),
        ("edgent.version", Value::Text(format!("sha256:{version}"))),
    ]
}

fn about_part(deployment: &Deployment, exit: usize, range: &Range<usize>) -> [(&'static str, Value); 5] {
    let [model, version] = about_model(deployment);
    let (from, to) = (count(range.start as u64), count(range.end as u64));
    [model, version, ("edgent.exit", count(exit as u64)), ("edgent.from_segment", from), ("edgent.to_segment", to)]
}

fn about_answer(answer: &Answer) -> [(&'static str, Value); 8] {
    [
        ("edgent.exit", Value::Count(answer.exit.into())),
        ("edgent.cut", Value::Count(answer.cut.into())),
        ("edgent.placement", Value::Text(answer.placement.name().to_owned())),
        ("edgent.epoch", count(answer.epoch)),
        ("edgent.latency_ms", Value::Number(answer.latency_us as f64 / 1e3)),
        ("edgent.deadline_ms", Value::Number(answer.deadline_us as f64 / 1e3)),
        ("edgent.deadline_met", Value::Flag(answer.deadline_met)),
        ("edgent.degraded", Value::Flag(answer.degraded.is_some())),
    ]
}

fn count(count: u64) -> Value {
    Value::Count(i64::try_from(count).unwrap_or(i64::MAX))
}
