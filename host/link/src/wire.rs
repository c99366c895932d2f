//! The network below capnp-rpc: one connection's bytes, bounded and watched.
//!
//! In place of `capnp_rpc::twoparty`, whose write queue has no bound and whose reader has no
//! deadline. See `frame` for sizes and `screen` for kinds of messages.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use capnp::capability::Promise;
use capnp::message::{self, Builder, HeapAllocator, ReaderOptions};
use capnp_rpc::rpc_capnp;
use capnp_rpc::{Connection, Disconnector, IncomingMessage, OutgoingMessage, RpcSystem, VatNetwork};
use futures::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use crate::frame::{self, Frame, FrameError};
use crate::limits::Limits;
use crate::meter::Meter;
use crate::screen::{Screen, Verdict};
use crate::splice::{FIRST_SEGMENT_WORDS, Outgoing};
use crate::tls::TlsError;

/// A message until both have said hello: strangers get no memory.
const STRANGER_MESSAGE_BYTES: usize = 16 << 10;
/// What a message takes beside what `Message::weight_bytes` counts: envelopes, fixed fields, padding.
pub(crate) const ENVELOPE_BYTES: usize = 4 << 10;
/// Small messages come with one call to the system; large ones pass the buffer by.
const READ_BUFFER_BYTES: usize = 16 << 10;
/// So many messages go to the system in one call, if so many wait.
const WRITE_BATCH_MESSAGES: usize = 16;
/// How long a connection that is being closed may take to write what is left.
const FAREWELL: Duration = Duration::from_millis(500);
/// A struct's data and pointers, at most.
const STRUCT_WORDS_MAX: usize = 2 * 0xffff;
/// capnp-rpc reads the same few structs again and again, and panics when its budget ends in between.
const STRUCT_READINGS: usize = 32;
/// A message may be read so many times over: pointers may point to the same thing, but not often.
const READINGS: usize = 4;
const NESTING_MAX: i32 = 32;

/// Who called whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// One connection, shared by the parts of capnp-rpc that read and write it and by those who watch it.
pub(crate) struct Wire {
    side: Side,
    message_bytes: Cell<usize>,
    queue_bytes_max: usize,
    meter: Rc<Meter>,
    screen: RefCell<Screen>,
    queue: RefCell<VecDeque<Outgoing>>,
    /// Of messages that are queued or being written.
    queued_bytes: Cell<usize>,
    closing: Cell<bool>,
    /// Why the connection is over; the first reason counts.
    reason: RefCell<Option<Closed>>,
    /// Something for the writer.
    work: Notify,
    /// Something has been written.
    progress: Notify,
}

/// Why a connection is over.
#[derive(Clone, Debug)]
pub(crate) struct Closed {
    pub(crate) why: String,
    pub(crate) cause: Cause,
}

/// Whose doing it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Somebody closed it, or the network did.
    End,
    /// The peer does not know our key.
    UnknownThere,
    /// What the peer sent.
    Protocol,
}

impl Wire {
    pub(crate) fn new(side: Side, limits: &Limits, meter: Rc<Meter>) -> Rc<Self> {
        Rc::new(Wire {
            side,
            message_bytes: Cell::new(STRANGER_MESSAGE_BYTES.min(limits.message_bytes)),
            queue_bytes_max: limits.message_bytes,
            meter,
            screen: RefCell::new(Screen::new(side, limits.calls_in_flight)),
            queue: RefCell::default(),
            queued_bytes: Cell::new(0),
            closing: Cell::new(false),
            reason: RefCell::default(),
            work: Notify::new(),
            progress: Notify::new(),
        })
    }

    /// Both have said hello.
    pub(crate) fn trust(&self, limits: &Limits) {
        self.message_bytes.set(limits.message_bytes);
    }

    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Says why the connection is about to be over.
    fn blame(&self, why: impl ToString, cause: Cause) {
        self.reason.borrow_mut().get_or_insert_with(|| Closed { why: why.to_string(), cause });
    }

    /// Lets the writer end once nothing is left to write.
    fn close(&self) {
        self.closing.set(true);
        self.work.notify_one();
    }

    /// Why the connection is over, if it is.
    pub(crate) fn closed(&self) -> Closed {
        let unknown = || Closed { why: "closed".to_owned(), cause: Cause::End };
        self.reason.borrow().clone().unwrap_or_else(unknown)
    }

    /// Until every question is answered, and every answer written.
    pub(crate) async fn quiet(&self) {
        while self.screen.borrow().open() > 0 || self.queued_bytes.get() > 0 {
            self.progress.notified().await;
        }
    }

    fn push(&self, message: Rc<Builder<HeapAllocator>>) {
        let seen = message.get_root_as_reader().and_then(|root| self.screen.borrow_mut().outbound(root));
        if let Err(error) = seen {
            self.blame(format!("our own message: {error}"), Cause::End);
            return self.close();
        }
        let message = Outgoing::new(message);
        self.queued_bytes.set(self.queued_bytes.get() + message.size_bytes());
        self.queue.borrow_mut().push_back(message);
        self.work.notify_one();
    }

    /// Takes the next message that may pass from the stream.
    async fn receive(&self, from: &mut (impl AsyncRead + Unpin)) -> capnp::Result<Option<Incoming>> {
        loop {
            // A peer that asks but does not take the answers is not asked what else it wants. Only a
            // server waits: if both did, each could wait for the other.
            while self.side == Side::Server && self.queued_bytes.get() > self.queue_bytes_max {
                self.progress.notified().await;
            }
            let frame = match frame::read(from, &self.message_bytes).await {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(None),
                Err(FrameError::Io(error)) => {
                    let why = error.to_string();
                    let is_unknown = matches!(TlsError::from(error), TlsError::UnknownThere);
                    self.blame(&why, if is_unknown { Cause::UnknownThere } else { Cause::End });
                    return Err(capnp::Error::disconnected(why));
                }
                Err(error) => return Err(self.broken(capnp::Error::failed(format!("the peer sent {error}")))),
            };
            let message = Incoming::new(frame);
            let verdict = message.root().and_then(|root| self.screen.borrow_mut().inbound(root));
            match verdict {
                Ok(Verdict::Pass) => return Ok(Some(message)),
                Ok(Verdict::Swallow) => {}
                Err(error) => return Err(self.broken(error)),
            }
        }
    }

    fn broken(&self, error: capnp::Error) -> capnp::Error {
        self.blame(&error, Cause::Protocol);
        error
    }

    /// Writes what is queued, until the connection is closed and nothing is left.
    async fn write(&self, mut to: impl AsyncWrite + Unpin) -> capnp::Result<()> {
        let mut batch = Vec::with_capacity(WRITE_BATCH_MESSAGES);
        loop {
            let waiting = self.queue.borrow().len().min(WRITE_BATCH_MESSAGES);
            batch.extend(self.queue.borrow_mut().drain(..waiting));
            if batch.is_empty() {
                if self.closing.get() {
                    // The peer may be gone already: that is what closing is for.
                    let _ = to.shutdown().await;
                    return Ok(());
                }
                self.work.notified().await;
                continue;
            }
            if let Err(error) = frame::write(&mut to, &batch).await {
                self.blame(&error, Cause::End);
                return Err(capnp::Error::disconnected(error.to_string()));
            }
            let bytes: usize = batch.drain(..).map(|message| message.size_bytes()).sum();
            self.queued_bytes.set(self.queued_bytes.get() - bytes);
            self.progress.notify_waiters();
        }
    }
}

/// A connection as capnp-rpc sees it.
struct Network<R> {
    wire: Rc<Wire>,
    reader: Reader<R>,
    writing: futures::future::Shared<Promise<(), capnp::Error>>,
}

/// Between two messages it is here; while one is being read, it is with the reading future.
type Reader<R> = Rc<RefCell<Option<BufReader<R>>>>;

impl<R: AsyncRead + Unpin + 'static> Network<R> {
    fn handle(&self) -> Box<dyn Connection<()>> {
        Box::new(Handle { wire: self.wire.clone(), reader: self.reader.clone(), writing: self.writing.clone() })
    }
}

impl<R: AsyncRead + Unpin + 'static> VatNetwork<()> for Network<R> {
    fn connect(&mut self, (): ()) -> Option<Box<dyn Connection<()>>> {
        Some(self.handle())
    }

    fn accept(&mut self) -> Promise<Box<dyn Connection<()>>, capnp::Error> {
        match self.wire.side {
            Side::Client => Promise::from_future(futures::future::pending()),
            Side::Server => Promise::ok(self.handle()),
        }
    }

    fn drive_until_shutdown(&mut self) -> Promise<(), capnp::Error> {
        Promise::from_future(self.writing.clone())
    }
}

struct Handle<R> {
    wire: Rc<Wire>,
    reader: Reader<R>,
    writing: futures::future::Shared<Promise<(), capnp::Error>>,
}

impl<R: AsyncRead + Unpin + 'static> Connection<()> for Handle<R> {
    fn get_peer_vat_id(&self) {}

    fn new_outgoing_message(&mut self, _first_segment_words: u32) -> Box<dyn OutgoingMessage> {
        // capnp-rpc would zero 8 KiB for every call.
        let message = Builder::new(HeapAllocator::new().first_segment_words(FIRST_SEGMENT_WORDS));
        Box::new(Draft { message, wire: self.wire.clone() })
    }

    fn receive_incoming_message(&mut self) -> Promise<Option<Box<dyn IncomingMessage>>, capnp::Error> {
        let (wire, slot) = (self.wire.clone(), self.reader.clone());
        Promise::from_future(async move {
            // Empty once the session is over.
            let Some(mut reader) = slot.take() else { return Ok(None) };
            let message = wire.receive(&mut reader).await?;
            slot.replace(Some(reader));
            Ok(message.map(|message| Box::new(message) as Box<dyn IncomingMessage>))
        })
    }

    fn shutdown(&mut self, result: capnp::Result<()>) -> Promise<(), capnp::Error> {
        if let Err(error) = result {
            self.wire.blame(error, Cause::End);
        }
        self.wire.close();
        Promise::from_future(self.writing.clone().map(|_| Ok(())))
    }
}

struct Draft {
    message: Builder<HeapAllocator>,
    wire: Rc<Wire>,
}

impl OutgoingMessage for Draft {
    fn get_body(&mut self) -> capnp::Result<capnp::any_pointer::Builder<'_>> {
        self.message.get_root()
    }

    fn get_body_as_reader(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        self.message.get_root_as_reader()
    }

    fn send(self: Box<Self>) -> (Promise<(), capnp::Error>, Rc<Builder<HeapAllocator>>) {
        let message = Rc::new(self.message);
        self.wire.push(message.clone());
        // Only the flow control of streaming methods waits for this; we have none.
        (Promise::ok(()), message)
    }

    fn take(self: Box<Self>) -> Builder<HeapAllocator> {
        self.message
    }

    fn size_in_words(&self) -> usize {
        self.message.size_in_words()
    }
}

struct Incoming(message::Reader<Frame>);

impl Incoming {
    fn new(frame: Frame) -> Self {
        let words = frame.size_bytes() / 8;
        let mut options = ReaderOptions::new();
        options
            .traversal_limit_in_words(Some(READINGS * words + STRUCT_READINGS * STRUCT_WORDS_MAX))
            .nesting_limit(NESTING_MAX);
        Incoming(message::Reader::new(frame, options))
    }

    fn root(&self) -> capnp::Result<rpc_capnp::message::Reader<'_>> {
        self.0.get_root()
    }
}

impl IncomingMessage for Incoming {
    fn get_body(&self) -> capnp::Result<capnp::any_pointer::Reader<'_>> {
        self.0.get_root()
    }
}

/// A connection that runs. Dropped, it is gone from capnp-rpc's tables, which refer to each other.
pub(crate) struct Session {
    rpc: RpcSystem<()>,
    disconnector: Disconnector<()>,
    wire: Rc<Wire>,
}

impl Session {
    /// What happens on this pair of streams; `bootstrap` is what the peer may reach.
    pub(crate) fn new(
        wire: Rc<Wire>,
        reader: impl AsyncRead + Unpin + 'static,
        writer: impl AsyncWrite + Unpin + 'static,
        bootstrap: Option<capnp::capability::Client>,
    ) -> Self {
        let writing = {
            let wire = wire.clone();
            Promise::from_future(async move { wire.write(writer).await })
        };
        let network = Network {
            wire: wire.clone(),
            reader: Rc::new(RefCell::new(Some(BufReader::with_capacity(READ_BUFFER_BYTES, reader)))),
            writing: writing.shared(),
        };
        let rpc = RpcSystem::new(Box::new(network), bootstrap);
        let disconnector = rpc.get_disconnector();
        Session { rpc, disconnector, wire }
    }

    /// What the peer offers.
    pub(crate) fn bootstrap<T: capnp::capability::FromClientHook>(&mut self) -> T {
        self.rpc.bootstrap(())
    }

    /// Runs until the connection is over, and says why.
    pub(crate) async fn run(&mut self) -> Closed {
        if let Err(error) = (&mut self.rpc).await {
            self.wire.blame(error, Cause::Protocol);
        }
        self.wire.closed()
    }

    /// Ends the connection from this side, and tells the peer if it still listens.
    pub(crate) async fn close(&mut self, why: &str) {
        self.wire.blame(why, Cause::End);
        let _ = (&mut self.disconnector).now_or_never();
        // A peer that does not listen has lost its right to a farewell.
        let _ = timeout(FAREWELL, &mut self.rpc).await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = (&mut self.disconnector).now_or_never();
    }
}

/// Until the peer has shown no life for this long.
pub(crate) async fn silence(wire: &Wire, longest: Duration) {
    loop {
        let due = wire.meter().alive() + longest;
        if due <= Instant::now() {
            return;
        }
        sleep_until(due).await;
    }
}
