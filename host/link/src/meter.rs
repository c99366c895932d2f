//! What went over a connection, and when its peer last showed that it is there.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// Bytes of one connection, or of all of a server's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Received.
    pub bytes_in: u64,
    /// Sent.
    pub bytes_out: u64,
}

/// [`Traffic`] that other threads may look at.
#[derive(Debug, Default)]
pub(crate) struct TrafficCounter {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

impl TrafficCounter {
    pub(crate) fn get(&self) -> Traffic {
        Traffic { bytes_in: self.bytes_in.load(Relaxed), bytes_out: self.bytes_out.load(Relaxed) }
    }
}

/// A connection's, on the link's thread.
pub(crate) struct Meter {
    traffic: Arc<TrafficCounter>,
    alive: Cell<Instant>,
    heard: Cell<bool>,
}

impl Meter {
    pub(crate) fn new(traffic: Arc<TrafficCounter>) -> Self {
        Meter { traffic, alive: Cell::new(Instant::now()), heard: Cell::new(false) }
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.traffic.bytes_in.fetch_add(bytes as u64, Relaxed);
        self.heard.set(true);
        self.show_life();
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.traffic.bytes_out.fetch_add(bytes as u64, Relaxed);
    }

    /// The peer did something that a dead or frozen one cannot: it sent, or it made room for more.
    pub(crate) fn show_life(&self) {
        self.alive.set(Instant::now());
    }

    /// The last sign of life.
    pub(crate) fn alive(&self) -> Instant {
        self.alive.get()
    }

    /// Whether the peer ever sent a byte.
    pub(crate) fn heard(&self) -> bool {
        self.heard.get()
    }
}
