//! A slow link, emulated: a TCP relay in user space with a rate, a delay, outages and mishaps.
//!
//! Bytes of one direction share one pacer, whatever connection they belong to, as on a real link.
//! Little is buffered, here or in the sockets, so that the sender feels the rate.

use crate::trace::Trace;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::sleep_until;

/// At most this much is sent at once, so that a change of rate is felt soon even on a slow link.
const CHUNK_BYTES: usize = 2 << 10;

/// Chunks between reading and sending; with the sockets' buffers, all that is in flight.
const CHUNKS_MAX: usize = 16;

/// Timers fire up to a millisecond or two late.
const CATCH_UP: Duration = Duration::from_millis(4);

const SOCKET_BUFFER_BYTES: u32 = 16 << 10;

/// What the relay does to what goes through it.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Bits a second, in each direction.
    pub trace: Trace,
    /// One way.
    pub delay: Duration,
}

/// Something that goes wrong once, when so many bytes of a connection have gone in a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mishap {
    /// Which bytes are counted.
    pub way: Way,
    /// So many go through before.
    pub after_bytes: u64,
    /// What goes wrong then.
    pub kind: MishapKind,
}

/// A direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From who connected.
    Up,
    /// To who connected.
    Down,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MishapKind {
    /// The direction ends as if its sender had closed it; the other goes on.
    HalfClosed,
    /// Who sends that way sees a reset; the other end is closed.
    Reset,
    /// Nothing goes that way any more, and nobody is told.
    Frozen,
    /// The next byte has one bit changed.
    Flipped,
}

/// A running relay; stops when dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    accepting: AbortHandle,
    pacers: [Arc<Mutex<Pacer>>; 2],
    outage: Arc<AtomicBool>,
    cut: watch::Sender<u64>,
    mishap: Arc<watch::Sender<Option<Mishap>>>,
}

impl Relay {
    /// Accepts connections at `listen` and joins each to `target`.
    pub async fn start(listen: &str, target: SocketAddr, shape: Shape) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let (cut, cuts) = watch::channel(0);
        let outage = Arc::new(AtomicBool::new(false));
        let down = Arc::clone(&outage);
        let mishap = Arc::new(watch::Sender::new(None));
        let mishaps = Arc::clone(&mishap);
        let start = Instant::now();
        let pacer = || Arc::new(Mutex::new(Pacer { trace: shape.trace.clone(), start, free_at: start }));
        let (up, back) = (pacer(), pacer());
        let pacers = [Arc::clone(&up), Arc::clone(&back)];
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if down.load(Ordering::Acquire) {
                    continue;
                }
                let (up, back, mut cuts) = (Arc::clone(&up), Arc::clone(&back), cuts.clone());
                let ward = |way| Ward { way, mishap: Arc::clone(&mishaps), passed: 0 };
                let (up_ward, down_ward) = (ward(Way::Up), ward(Way::Down));
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let joined = async {
                        let server = connect(target).await?;
                        client.set_nodelay(true)?;
                        let (from_client, to_client) = client.into_split();
                        let (from_server, to_server) = server.into_split();
                        tokio::try_join!(
                            carry(from_client, to_server, up, shape.delay, up_ward),
                            carry(from_server, to_client, back, shape.delay, down_ward)
                        )
                    };
                    // Dropping the sockets is what both ends see of an outage, or of the relay's end.
                    tokio::select! {
                        _ = joined => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Ok(Self { address, accepting: accepting.abort_handle(), pacers, outage, cut, mishap })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// From now on the rate follows another trace, from its beginning.
    pub fn follow(&self, trace: &Trace) {
        let start = Instant::now();
        for pacer in &self.pacers {
            let mut pacer = pacer.lock().unwrap_or_else(PoisonError::into_inner);
            (pacer.trace, pacer.start) = (trace.clone(), start);
        }
    }

    /// Drops every connection and refuses new ones until [`restore`](Self::restore).
    pub fn cut(&self) {
        self.outage.store(true, Ordering::Release);
        self.cut.send_modify(|cuts| *cuts += 1);
    }

    /// Has something go wrong, once, on the next connection that comes so far; or nothing any more.
    pub fn set_mishap(&self, mishap: Option<Mishap>) {
        self.mishap.send_replace(mishap);
    }

    /// Waits until the mishap has happened.
    pub async fn mishap_happened(&self) {
        let mut mishap = self.mishap.subscribe();
        let _ = mishap.wait_for(Option::is_none).await;
    }

    /// Ends an outage.
    pub fn restore(&self) {
        self.outage.store(false, Ordering::Release);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    let stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Carries one direction until its end, which it passes on. An error ends the other direction, too.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    pacer: Arc<Mutex<Pacer>>,
    delay: Duration,
    mut ward: Ward,
) -> io::Result<()> {
    let (sent, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_MAX);
    let reading = async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            match ward.mishap(count) {
                None => {}
                Some((at, MishapKind::Flipped)) => buffer[at] ^= 1,
                Some((_, MishapKind::Frozen)) => std::future::pending().await,
                Some((_, MishapKind::Reset)) => {
                    from.as_ref().set_zero_linger()?;
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                Some((at, MishapKind::HalfClosed)) => {
                    let _ = sent.send((Instant::now() + delay, buffer[..at].to_vec())).await;
                    break;
                }
            }
            let through = pacer.lock().unwrap_or_else(PoisonError::into_inner).due(count, Instant::now());
            // The chunk is on the link until then; only now is there room for the next one.
            reach(through).await;
            // By now, since what a pause lets catch up is rate, and not delay.
            if sent.send((Instant::now() + delay, buffer[..count].to_vec())).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    let writing = async move {
        while let Some((at, chunk)) = due.recv().await {
            reach(at).await;
            if to.write_all(&chunk).await.is_err() {
                return Ok(());
            }
        }
        let _ = to.shutdown().await;
        Ok(())
    };
    tokio::try_join!(reading, writing).map(drop)
}

/// Until then. A timer would take what has just passed for the next millisecond.
async fn reach(moment: Instant) {
    if moment > Instant::now() {
        sleep_until(moment.into()).await;
    }
}

/// Counts the bytes of one direction of a connection.
struct Ward {
    way: Way,
    mishap: Arc<watch::Sender<Option<Mishap>>>,
    passed: u64,
}

impl Ward {
    /// Whether something goes wrong among the next bytes, and at which of them.
    fn mishap(&mut self, count: usize) -> Option<(usize, MishapKind)> {
        let before = self.passed;
        self.passed += count as u64;
        let mut found = None;
        self.mishap.send_if_modified(|mishap| {
            let due = mishap.filter(|due| due.way == self.way && (before..self.passed).contains(&due.after_bytes));
            found = due.map(|due| ((due.after_bytes - before) as usize, due.kind));
            if due.is_some() {
                *mishap = None;
            }
            due.is_some()
        });
        found
    }
}

/// When bytes have gone through a link of changing rate.
#[derive(Debug)]
struct Pacer {
    trace: Trace,
    start: Instant,
    free_at: Instant,
}

impl Pacer {
    fn due(&mut self, bytes: usize, now: Instant) -> Instant {
        // A timer that fired a little late must not cost rate: what was due then is caught up.
        let begin = self.free_at.max(now.checked_sub(CATCH_UP).unwrap_or(now));
        // Over every rate on its way: a chunk sent just before an outage ends must not take for ever.
        self.free_at = begin + self.trace.transfer(begin.saturating_duration_since(self.start), bytes);
        self.free_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_their_time_one_after_another() {
        let start = Instant::now();
        let mut pacer = Pacer { trace: Trace::constant(8_000), start, free_at: start };
        let after = |ms| start + Duration::from_millis(ms);
        assert_eq!(pacer.due(100, start), after(100));
        assert_eq!(pacer.due(50, start), after(150));
        assert_eq!(pacer.due(50, after(152)), after(200), "a little late: caught up");
        assert_eq!(pacer.due(10, after(1_000)), after(1_006), "idle time is not saved up");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn bytes_arrive_unchanged_both_ways_and_ends_are_passed_on() {
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = echo.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = echo.accept().await.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            stream.write_all(&all).await.unwrap();
        });
        let shape = Shape { trace: Trace::constant(100_000_000), delay: Duration::from_millis(1) };
        let relay = Relay::start("127.0.0.1:0", target, shape).await.unwrap();
        let mut stream = TcpStream::connect(relay.local_addr()).await.unwrap();
        let sent: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.unwrap();
        assert!(got == sent, "{} of {} bytes came back", got.len(), sent.len());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn mishaps_happen_once_and_where_they_are_told_to() {
        for kind in [MishapKind::HalfClosed, MishapKind::Reset, MishapKind::Frozen, MishapKind::Flipped] {
            let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let shape = Shape { trace: Trace::constant(100_000_000), delay: Duration::ZERO };
            let relay = Relay::start("127.0.0.1:0", server.local_addr().unwrap(), shape).await.unwrap();
            relay.set_mishap(Some(Mishap { way: Way::Up, after_bytes: 10, kind }));
            for is_first in [true, false] {
                let mut here = TcpStream::connect(relay.local_addr()).await.unwrap();
                let (mut there, _) = server.accept().await.unwrap();
                here.write_all(&[7; 20]).await.unwrap();
                if !is_first {
                    let mut got = [0; 20];
                    there.read_exact(&mut got).await.unwrap();
                    assert_eq!(got, [7; 20], "{kind:?}: only once");
                    break;
                }
                relay.mishap_happened().await;
                // The other direction, where it is to go on.
                let mut got = Vec::new();
                if kind != MishapKind::Reset {
                    there.write_all(b"x").await.unwrap();
                    assert_eq!(here.read(&mut [0; 2]).await.unwrap(), 1, "{kind:?}");
                }
                if kind == MishapKind::Frozen {
                    relay.cut();
                    relay.restore();
                }
                drop(if kind == MishapKind::Flipped { Some(here) } else { None });
                let ended = there.read_to_end(&mut got).await;
                let expected: &[u8] = match kind {
                    MishapKind::HalfClosed => &[7; 10],
                    MishapKind::Reset | MishapKind::Frozen => &[],
                    MishapKind::Flipped => &[7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7],
                };
                assert_eq!(got, expected, "{kind:?}");
                assert!(ended.is_ok() || kind == MishapKind::Reset, "{kind:?}: {ended:?}");
            }
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_outage_drops_connections_and_refuses_new_ones() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shape = Shape { trace: Trace::constant(1_000_000), delay: Duration::ZERO };
        let relay = Relay::start("127.0.0.1:0", server.local_addr().unwrap(), shape).await.unwrap();
        let mut before = TcpStream::connect(relay.local_addr()).await.unwrap();
        let (mut there, _) = server.accept().await.unwrap();
        relay.cut();
        let ended = |read: io::Result<usize>| !matches!(read, Ok(1..));
        assert!(ended(before.read(&mut [0]).await));
        assert!(ended(there.read(&mut [0]).await));
        let mut during = TcpStream::connect(relay.local_addr()).await.unwrap();
        assert!(ended(during.read(&mut [0]).await));
        relay.restore();
        let mut after = TcpStream::connect(relay.local_addr()).await.unwrap();
        let (mut there, _) = server.accept().await.unwrap();
        there.write_all(b"x").await.unwrap();
        assert_eq!(after.read(&mut [0]).await.unwrap(), 1);
    }
}
