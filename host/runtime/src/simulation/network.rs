//! A network in virtual time: lines to edges that are slow, silent, or cut, or change what they carry.

use edgent_link::{Road, Stream};
use fastrand::Rng;
use futures::future::BoxFuture;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex, split};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

const RATE_BPS: f64 = 50e6;
const SLOW_BPS: f64 = 200e3;
/// One way.
const LATENCY: Duration = Duration::from_millis(1);
/// What a piece takes longer now and then.
const JITTER: Duration = Duration::from_millis(2);
const PIECE_BYTES: usize = 4 << 10;
/// A system keeps so much that was not taken yet, on either side.
const BUFFER_BYTES: usize = 64 << 10;
/// Pieces under way on a line, in one direction.
const PIECES: usize = 16;
/// Bytes of a connection, in one direction, of which none is changed: TLS shakes hands with them, and they are others
/// in every run.
const HANDSHAKE_BYTES: usize = 4 << 10;

/// The lines to all places; an address is a place's number.
#[derive(Debug)]
pub(super) struct Network(Vec<Arc<Line>>);

#[derive(Debug)]
pub(super) struct Line(Mutex<State>);

#[derive(Debug)]
struct State {
    random: Rng,
    listener: Option<mpsc::Sender<Box<dyn Stream>>>,
    /// Nothing goes through until then, and nobody is told.
    silent_until: Option<Instant>,
    /// Who listens there stands still until then; its system takes connections and bytes.
    frozen_until: Option<Instant>,
    slow_until: Option<Instant>,
    /// Whether one bit of what arrives next is to be changed.
    flips: bool,
    /// What carries bytes.
    carriers: Vec<AbortHandle>,
}

impl Network {
    pub(super) fn new(places: usize, random: &mut Rng) -> Self {
        let line = |_| {
            let (listener, silent_until, frozen_until, slow_until, flips, carriers) = Default::default();
            let random = random.fork();
            let state = State { random, listener, silent_until, frozen_until, slow_until, flips, carriers };
            Arc::new(Line(Mutex::new(state)))
        };
        Self((0..places).map(line).collect())
    }

    pub(super) fn line(&self, place: usize) -> &Arc<Line> {
        &self.0[place]
    }

    fn find(&self, address: &str) -> io::Result<&Arc<Line>> {
        let place = address.parse::<usize>().ok().and_then(|place| self.0.get(place));
        place.ok_or_else(|| io::Error::from(ErrorKind::AddrNotAvailable))
    }
}

impl Line {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn silence(&self, time: Duration) {
        self.state().silent_until = Some(Instant::now() + time);
    }

    pub(super) fn freeze(&self, time: Duration) {
        self.state().frozen_until = Some(Instant::now() + time);
    }

    pub(super) fn slow(&self, time: Duration) {
        self.state().slow_until = Some(Instant::now() + time);
    }

    pub(super) fn flip(&self) {
        self.state().flips = true;
    }

    /// Changes a bit of a piece, if that is wanted.
    fn spoil(&self, piece: &mut [u8]) {
        let mut state = self.state();
        if std::mem::take(&mut state.flips) {
            let (at, bit) = (state.random.usize(..piece.len()), state.random.u32(..8));
            piece[at] ^= 1 << bit;
        }
    }

    /// Ends all connections, wherever a message is.
    pub(super) fn cut(&self) {
        self.state().carriers.drain(..).for_each(|carrier| carrier.abort());
    }

    /// The same, and nobody listens there any more.
    pub(super) fn close(&self) {
        self.state().listener = None;
        self.cut();
    }

    /// Until it goes through what is sent now, or also comes to somebody's knowledge.
    async fn passes(&self, is_to_be_known: bool) {
        loop {
            let until = {
                let state = self.state();
                state.silent_until.max(state.frozen_until.filter(|_| is_to_be_known))
            };
            match until.filter(|until| *until > Instant::now()) {
                Some(until) => sleep_until(until).await,
                None => return,
            }
        }
    }

    fn takes(&self, bytes: usize) -> Duration {
        let is_slow = self.state().slow_until.is_some_and(|until| until > Instant::now());
        Duration::from_secs_f64(bytes as f64 * 8.0 / if is_slow { SLOW_BPS } else { RATE_BPS })
    }

    /// Carries bytes from one end to the other, in order, until either is gone.
    fn carry(
        self: &Arc<Self>,
        mut from: impl AsyncRead + Send + Unpin + 'static,
        mut to: impl AsyncWrite + Send + Unpin + 'static,
    ) {
        let (line, arriving) = (Arc::clone(self), Arc::clone(self));
        let (sent, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
        let sends = tokio::spawn(async move {
            let (mut piece, mut free) = (vec![0; PIECE_BYTES], Instant::now());
            while let Ok(bytes @ 1..) = from.read(&mut piece).await {
                // The line is taken until the last bit is on it.
                free = free.max(Instant::now()) + line.takes(bytes);
                sleep_until(free).await;
                let arrives = free + LATENCY + JITTER.mul_f64(line.state().random.f64().powi(4));
                if sent.send((arrives, piece[..bytes].to_vec())).await.is_err() {
                    return;
                }
            }
        });
        let arrives = tokio::spawn(async move {
            let mut arrived_bytes = 0;
            while let Some((at, mut piece)) = under_way.recv().await {
                sleep_until(at).await;
                arriving.passes(true).await;
                if arrived_bytes >= HANDSHAKE_BYTES {
                    arriving.spoil(&mut piece);
                }
                arrived_bytes += piece.len();
                if to.write_all(&piece).await.is_err() {
                    return;
                }
            }
        });
        let mut state = self.state();
        state.carriers.retain(|carrier| !carrier.is_finished());
        state.carriers.extend([sends.abort_handle(), arrives.abort_handle()]);
    }

    async fn connect(self: Arc<Self>) -> io::Result<Box<dyn Stream>> {
        // There, and back.
        sleep(2 * LATENCY).await;
        self.passes(false).await;
        let refused = || io::Error::from(ErrorKind::ConnectionRefused);
        let listener = self.state().listener.clone().ok_or_else(refused)?;
        let [(ours, here), (theirs, there)]: [(DuplexStream, _); 2] = [duplex(BUFFER_BYTES), duplex(BUFFER_BYTES)];
        let ((from_here, to_here), (from_there, to_there)) = (split(here), split(there));
        self.carry(from_here, to_there);
        self.carry(from_there, to_here);
        listener.send(Box::new(theirs)).await.map_err(|_| refused())?;
        Ok(Box::new(ours))
    }
}

impl Road for Network {
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        let line = self.find(address).cloned();
        Box::pin(async move { line?.connect().await })
    }

    fn listen(&self, address: &str) -> io::Result<mpsc::Receiver<Box<dyn Stream>>> {
        let (listener, incoming) = mpsc::channel(1);
        self.find(address)?.state().listener = Some(listener);
        Ok(incoming)
    }
}
