//! What went over a connection, and when its peer last showed that it is there.

use crate::backlog::Backlog;
use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

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
    /// Of a connection whose traffic is counted by itself.
    backlog: Option<Backlog>,
    /// What was in it when it was last looked at, and how many bytes had been acknowledged.
    looked: Cell<(u64, u64)>,
}

impl Meter {
    pub(crate) fn new(traffic: Arc<TrafficCounter>, backlog: Option<Backlog>) -> Self {
        let (alive, heard) = (Cell::new(Instant::now()), Cell::new(false));
        Meter { traffic, alive, heard, backlog, looked: Cell::default() }
    }

    fn received(&self, bytes: usize) {
        self.traffic.bytes_in.fetch_add(bytes as u64, Relaxed);
        self.heard.set(true);
        self.show_life();
    }

    fn sent(&self, bytes: usize) {
        self.traffic.bytes_out.fetch_add(bytes as u64, Relaxed);
    }

    /// The peer did something that a dead or frozen one cannot: it sent, or it made room for more.
    fn show_life(&self) {
        self.alive.set(Instant::now());
    }

    /// Asks the system for what the peer cannot show by itself: that it takes what has been under way since the last look.
    /// What a peer's system takes at once is none of its doing, and shows nothing.
    pub(crate) fn look(&self) {
        let Some(waiting) = self.backlog.as_ref().and_then(Backlog::bytes) else { return };
        let acknowledged = self.traffic.get().bytes_out.saturating_sub(waiting);
        let (waited, before) = self.looked.replace((waiting, acknowledged));
        if waited > 0 && acknowledged > before {
            self.show_life();
        }
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

/// A stream of bytes with a meter on it. It stands below TLS: a record shows nothing of itself before it is whole,
/// and on a slow link one takes longer than a peer may be silent.
pub(crate) struct Metered<S> {
    stream: S,
    meter: Rc<Meter>,
    /// There was no room for what is to be sent.
    waits: bool,
}

impl<S> Metered<S> {
    pub(crate) fn new(stream: S, meter: Rc<Meter>) -> Self {
        Metered { stream, meter, waits: false }
    }

    fn wrote(&mut self, poll: &Poll<io::Result<usize>>) {
        match poll {
            Poll::Pending => self.waits = true,
            Poll::Ready(Ok(bytes)) => {
                self.meter.sent(*bytes);
                if std::mem::take(&mut self.waits) {
                    // Now there is: the peer has taken something.
                    self.meter.show_life();
                }
            }
            Poll::Ready(Err(_)) => {}
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        match buffer.filled().len() - before {
            0 => {}
            bytes => self.meter.received(bytes),
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(&poll);
        poll
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.wrote(&poll);
        poll
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
