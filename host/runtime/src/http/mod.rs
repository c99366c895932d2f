//! The HTTP front: the Open Inference Protocol, version 2, for who asks with curl, Python or a dashboard.
//!
//! `oip` is the protocol over REST and `json` its bodies, `grpc` the same over gRPC and `messages` its; both come to
//! `tensors`, which fits them to a model, and to `asking`, which asks the host as the link does. `live` is the dashboard
//! and the metrics, `serve` the connections; `limits` says how much of each there may be.

mod asking;
mod error;
mod grpc;
#[rustfmt::skip]
#[allow(clippy::all, clippy::unwrap_used, dead_code, missing_docs, unused_qualifications)]
mod inference;
mod json;
mod limits;
mod live;
mod messages;
mod oip;
mod serve;
mod tensors;

use crate::HostError;
use crate::metrics::Metrics;
use crate::running::Running;
use axum::Router;
use axum::http::StatusCode;
use error::Refusal;
use limits::{BODIES_MAX, REQUESTS_MAX};
use serve::Accepting;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// A host's HTTP front, listening.
#[derive(Debug)]
pub(crate) struct Front {
    shared: Arc<Shared>,
    accepting: Accepting,
}

/// What all requests share.
#[derive(Debug)]
struct Shared {
    running: Running,
    metrics: Arc<Metrics>,
    versions: asking::VersionNames,
    /// Places of bodies that come.
    bodies: Semaphore,
    /// Places of requests for inference.
    places: Semaphore,
    /// Dashboards that are open.
    watchers: AtomicUsize,
    /// Set once the host has been told to end…
    is_ending: AtomicBool,
    /// …and once it waits for nothing but its connections.
    has_ended: AtomicBool,
}

impl Front {
    /// Listens.
    pub(crate) async fn start(address: &str, running: Running, metrics: Arc<Metrics>) -> Result<Self, HostError> {
        let failed = |source| HostError::Http { address: address.to_owned(), source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let shared = Arc::new(Shared {
            running,
            metrics,
            versions: asking::VersionNames::default(),
            bodies: Semaphore::new(BODIES_MAX),
            places: Semaphore::new(REQUESTS_MAX),
            watchers: AtomicUsize::new(0),
            is_ending: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
        });
        let accepting = serve::accept(listener, router(Arc::clone(&shared))).map_err(failed)?;
        if !accepting.local_addr.ip().is_loopback() {
            tracing::warn!(
                address = %accepting.local_addr,
                "HTTP has neither encryption nor keys: who reaches this address may ask; put a proxy before it, or listen on loopback"
            );
        }
        Ok(Self { shared, accepting })
    }

    /// Where it listens.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.accepting.local_addr
    }

    /// Is not ready any more, and takes no more requests for inference; answers all the same.
    pub(crate) fn announce_end(&self) {
        self.shared.is_ending.store(true, Ordering::Release);
    }

    /// Answers what is in flight, until `end` at most, and closes.
    pub(crate) async fn shutdown(self, end: Instant) {
        self.shared.has_ended.store(true, Ordering::Release);
        self.accepting.shutdown(end).await;
    }
}

impl Shared {
    fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Acquire)
    }

    fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }
}

fn router(shared: Arc<Shared>) -> Router {
    let unknown = async || Refusal::new(StatusCode::NOT_FOUND, "there is nothing at this path");
    let wrong = async || Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method");
    let routes = oip::routes().merge(grpc::routes()).merge(live::routes());
    routes.fallback(unknown).method_not_allowed_fallback(wrong).with_state(shared)
}
