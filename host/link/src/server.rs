//! The side that answers.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Acquire};
use std::time::Duration;
use std::{fmt, io};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet, spawn_local};
use tokio::time::{Instant, sleep, timeout};

use crate::convert::{
    Malformed, Message, Padding, read_digest, read_hello, read_trial, write_fault, write_hello, write_outcome,
};
use crate::edgent_capnp::{gate, host};
use crate::error::{Fault, FaultKind};
use crate::frame::share;
use crate::guard::{Caller, Guarded, check_model};
use crate::limits::Limits;
use crate::link::{Link, NOWHERE};
use crate::meter::{Meter, Metered, Traffic, TrafficCounter};
use crate::pair::{self, Bound, Door, Invitation, PairError, Paired};
use crate::road::Stream;
use crate::service::{Reply, Service, Slot, Which};
use crate::tls::{self, Speech, TlsError};
use crate::trust::{Credentials, Fingerprint, KnownPeer};
use crate::types::{AskRequest, Description, Hello, InferRequest, ModelDescription, Plan, Signature, Stats};
use crate::wire::{Cause, ENVELOPE_BYTES, Session, Side, Wire, silence};

/// After the system failed to accept a connection: most of the time it is out of files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A peer that asked to be told when this host ends may be on its way with a call then: for so long, it is answered.
const LINGER: Duration = Duration::from_millis(250);
/// How often the service is told of who was turned away.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// A service that can be reached. Dropped, it closes at once; see [`Server::shutdown`].
#[derive(Debug)]
pub struct Server {
    local_addr: SocketAddr,
    traffic: Arc<TrafficCounter>,
    is_tls: bool,
    door: Door,
    stop: oneshot::Sender<Duration>,
    stopped: oneshot::Receiver<()>,
    _link: Link,
}

impl Server {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What went over all of its connections.
    pub fn traffic(&self) -> Traffic {
        self.traffic.get()
    }

    /// Pairs with one who knows the invitation's code, and tells with whom; so long as this is waited for.
    pub fn invite(&self, invitation: Invitation) -> impl Future<Output = Result<Paired, PairError>> + Send + 'static {
        let (door, is_tls) = (self.door.clone(), self.is_tls);
        async move { if is_tls { door.open(invitation).await } else { Err(PairError::Plain) } }
    }

    /// Whether it speaks TLS; otherwise plain bytes.
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// Stops accepting, answers new calls with [`ShuttingDown`](FaultKind::ShuttingDown) and those in
    /// flight with what becomes of them, then closes; after `grace` in any case.
    pub async fn shutdown(self, grace: Duration) {
        // Both fail only if the link's thread has ended, and the server with it.
        let _ = self.stop.send(grace);
        let _ = self.stopped.await;
    }
}

/// Starts to accept, on the link's thread.
pub(crate) fn start(
    link: Link,
    listener: Listener,
    local_addr: SocketAddr,
    credentials: Option<Credentials>,
    hello: Hello,
    limits: Limits,
    service: Arc<dyn Service>,
) -> Server {
    let traffic = Arc::new(TrafficCounter::default());
    let (is_tls, door) = (credentials.is_some(), Door::default());
    let shared = Rc::new(Shared {
        credentials,
        door: door.clone(),
        hello,
        limits,
        service,
        traffic: traffic.clone(),
        draining: watch::Sender::new(false),
        calls_in_flight: Arc::default(),
        connections: Cell::new(0),
        connections_refused: Cell::new(0),
        protocol_errors: Cell::new(0),
        told: Cell::new(None),
    });
    let (stop, stopping) = oneshot::channel();
    let (done, stopped) = oneshot::channel();
    spawn_local(async move {
        shared.accept(listener, stopping).await;
        let _ = done.send(());
    });
    Server { local_addr, traffic, is_tls, door, stop, stopped, _link: link }
}

/// Where connections come from.
pub(crate) enum Listener {
    Tcp(TcpListener),
    /// A road.
    Given(mpsc::Receiver<Box<dyn Stream>>),
}

enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Given(Box<dyn Stream>),
}

impl Listener {
    async fn accept(&mut self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Without, calls would wait for one another; it fails where the peer is gone already.
                let _ = stream.set_nodelay(true);
                Ok(Accepted::Tcp(stream, address))
            }
            Self::Given(incoming) => match incoming.recv().await {
                Some(stream) => Ok(Accepted::Given(stream)),
                // The road has ended.
                None => std::future::pending().await,
            },
        }
    }
}

/// What the connections of a server have in common.
struct Shared {
    /// Whom it knows, if it speaks TLS.
    credentials: Option<Credentials>,
    /// Through which others may become known.
    door: Door,
    hello: Hello,
    limits: Limits,
    service: Arc<dyn Service>,
    traffic: Arc<TrafficCounter>,
    draining: watch::Sender<bool>,
    calls_in_flight: Arc<AtomicUsize>,
    connections: Cell<u64>,
    connections_refused: Cell<u64>,
    protocol_errors: Cell<u64>,
    /// When the service was last told of somebody who was turned away.
    told: Cell<Option<Instant>>,
}

impl Shared {
    async fn accept(self: Rc<Self>, mut listener: Listener, mut stopping: oneshot::Receiver<Duration>) {
        let (mut connections, mut strangers) = (JoinSet::new(), Strangers::default());
        let grace = loop {
            tokio::select! {
                biased;
                // Nobody to say when: the `Server` was dropped.
                stop = &mut stopping => break stop.unwrap_or(Duration::ZERO),
                Some(ended) = connections.join_next() => {
                    // capnp-rpc panics where it cannot go on: that was this one connection.
                    if ended.is_err_and(|error| error.is_panic()) {
                        bump(&self.protocol_errors);
                    }
                }
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => {
                        if connections.len() >= self.limits.connections {
                            bump(&self.connections_refused);
                            if !strangers.turn_one_out() {
                                continue;
                            }
                            // Its place is free once it has ended.
                            let _ = connections.join_next().await;
                        }
                        let is_known = Rc::new(Cell::new(false));
                        let connection = match accepted {
                            Accepted::Tcp(stream, address) => {
                                connections.spawn_local(receive(self.clone(), stream, address, is_known.clone()))
                            }
                            Accepted::Given(stream) => {
                                connections.spawn_local(receive(self.clone(), stream, NOWHERE, is_known.clone()))
                            }
                        };
                        strangers.came(is_known, connection);
                    }
                    Err(_) => sleep(ACCEPT_PAUSE).await,
                },
            }
            self.connections.set(connections.len() as u64);
        };
        drop(listener);
        self.draining.send_replace(true);
        let _ = timeout(grace, async { while connections.join_next().await.is_some() {} }).await;
        connections.shutdown().await;
    }

    /// Has the service say that somebody was turned away; not more often than a log can take.
    fn tell(&self, address: SocketAddr, why: &dyn fmt::Display) {
        if self.told.get().is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.told.set(Some(Instant::now()));
            let (service, why) = (self.service.clone(), why.to_string());
            let _ = catch_unwind(AssertUnwindSafe(|| service.turned_away(address, &why)));
        }
    }
}

/// Connections of which it is not known yet whose they are; the first that came is the first.
#[derive(Default)]
struct Strangers(VecDeque<(Rc<Cell<bool>>, AbortHandle)>);

impl Strangers {
    fn came(&mut self, is_known: Rc<Cell<bool>>, connection: AbortHandle) {
        self.0.retain(|(is_known, connection)| !is_known.get() && !connection.is_finished());
        self.0.push_back((is_known, connection));
    }

    /// Ends the one that has been here longest without saying who it is, so that no number of them keeps others out.
    fn turn_one_out(&mut self) -> bool {
        while let Some((is_known, connection)) = self.0.pop_front() {
            if !is_known.get() && !connection.is_finished() {
                connection.abort();
                return true;
            }
        }
        false
    }
}

fn bump(count: &Cell<u64>) {
    count.set(count.get() + 1);
}

/// A connection, from accept to close.
async fn receive(
    shared: Rc<Shared>,
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    address: SocketAddr,
    is_known: Rc<Cell<bool>>,
) {
    let meter = Rc::new(Meter::new(shared.traffic.clone(), None));
    let stream = Metered::new(stream, meter.clone());
    let Some(credentials) = &shared.credentials else {
        return converse(shared, stream, meter, None, is_known).await;
    };
    let mut draining = shared.draining.subscribe();
    let shaken = tokio::select! {
        biased;
        shaken = tls::accept(credentials, shared.door.is_open(), stream) => shaken,
        why = shakes_no_hand(&shared.limits, &meter) => return shared.tell(address, &why),
        _ = draining.wait_for(|draining| *draining) => return,
    };
    match shaken {
        Ok((stream, Speech::Host, key)) => {
            is_known.set(true);
            converse(shared, stream, meter, Some(key), is_known).await;
        }
        Ok((stream, Speech::Pairing, key)) => {
            let Ok(session) = tls::session(&stream) else { return };
            let bound = Bound { connecting: key, inviting: credentials.identity().fingerprint(), session };
            if let Err(error) = pair::answer(stream, &bound, &shared.door).await {
                shared.tell(address, &format_args!("not paired: {error}"));
            }
        }
        Err(error) => {
            let counter = match error {
                TlsError::Broken(_) => &shared.protocol_errors,
                TlsError::Distrust(_) | TlsError::UnknownThere | TlsError::NotNow => &shared.connections_refused,
            };
            bump(counter);
            shared.tell(address, &error);
        }
    }
}

/// Until a peer has taken too long for its part of TLS.
async fn shakes_no_hand(limits: &Limits, meter: &Meter) -> &'static str {
    sleep(limits.first_byte.min(limits.handshake)).await;
    if !meter.heard() {
        return "not a byte came";
    }
    sleep(limits.handshake.saturating_sub(limits.first_byte)).await;
    "TLS did not come to stand in time"
}

/// A connection on which both sides may speak; by whom, if that is known.
async fn converse(
    shared: Rc<Shared>,
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    meter: Rc<Meter>,
    key: Option<Fingerprint>,
    is_known: Rc<Cell<bool>>,
) {
    let limits = shared.limits;
    let wire = Wire::new(Side::Server, &limits, meter);
    let peer = Rc::new(Peer {
        shared: shared.clone(),
        key,
        wire: wire.clone(),
        greeted: Cell::new(false),
        is_known,
        reply_bytes_max: Cell::new(limits.message_bytes),
        calls_in_flight: Arc::default(),
        cancels: RefCell::default(),
        is_told: Cell::new(false),
        has_lingered: Cell::new(false),
    });
    let gate: gate::Client = capnp_rpc::new_client(Gate(peer.clone()));
    let (reader, writer) = tokio::io::split(stream);
    let mut session = Session::new(wire.clone(), reader, writer, Some(gate.client));

    let mut draining = shared.draining.subscribe();
    let drained = async {
        let _ = draining.wait_for(|draining| *draining).await;
        if peer.is_told.get() {
            sleep(LINGER).await;
        }
        peer.has_lingered.set(true);
        wire.quiet().await;
    };
    let why = tokio::select! {
        biased;
        closed = session.run() => {
            if closed.cause == Cause::Protocol {
                bump(&shared.protocol_errors);
            }
            return;
        }
        why = peer.hesitates() => why,
        () = silence(&wire, limits.idle) => "no sign of life",
        () = peer.forgotten() => "your key is not known here any more",
        () = drained => "shutting down",
    };
    session.close(why).await;
}

/// What a server knows of one connection.
struct Peer {
    shared: Rc<Shared>,
    /// Who it is; nobody in particular on a plain connection.
    key: Option<Fingerprint>,
    wire: Rc<Wire>,
    greeted: Cell<bool>,
    /// Whether it has a place here that others cannot take: by its key or, on a plain connection, its hello.
    is_known: Rc<Cell<bool>>,
    reply_bytes_max: Cell<usize>,
    calls_in_flight: Arc<AtomicUsize>,
    /// By the caller's number of the call.
    cancels: RefCell<HashMap<u64, oneshot::Sender<()>>>,
    /// It asked to be told when this host ends…
    is_told: Cell<bool>,
    /// …and has had the time since then to go elsewhere.
    has_lingered: Cell<bool>,
}

impl Peer {
    /// Until the peer has taken too long to say hello.
    async fn hesitates(&self) -> &'static str {
        let Limits { first_byte, hello, .. } = self.shared.limits;
        sleep(first_byte.min(hello)).await;
        if !self.wire.meter().heard() {
            return "not a byte came";
        }
        sleep(hello.saturating_sub(first_byte)).await;
        if !self.greeted.get() {
            return "no hello came";
        }
        std::future::pending().await
    }

    /// Until it is struck off.
    async fn forgotten(&self) {
        match (&self.shared.credentials, self.key) {
            (Some(credentials), Some(key)) => credentials.forgotten(key, None).await,
            _ => std::future::pending().await,
        }
    }

    /// Who it is, as far as that is known here.
    fn known(&self) -> Result<Option<Arc<KnownPeer>>, Fault> {
        let (Some(credentials), Some(key)) = (&self.shared.credentials, self.key) else { return Ok(None) };
        let unknown = || Fault::new(FaultKind::Denied, format!("the key {key} is not known here any more"));
        credentials.find(&key).map(Some).ok_or_else(unknown)
    }

    /// [`Peer::call`] of a method that is about a model: the caller may have been given certain ones only.
    async fn call_about<T: Message>(
        &self,
        which: Which<'_>,
        method: &'static str,
        number: Option<u64>,
        start: impl FnOnce(&dyn Service, Reply<T>),
    ) -> Result<T, Fault> {
        if let Some(peer) = self.known()?.filter(|peer| peer.models.is_some()) {
            let service = AssertUnwindSafe(&*self.shared.service);
            let name = catch_unwind(|| service.model_name(which)).unwrap_or_default();
            check_model(&peer, name.as_deref())?;
        }
        self.call(method, number, start).await
    }

    /// Has the service answer a call; `number` is the caller's, for those that it may cancel.
    async fn call<T: Message>(
        &self,
        method: &'static str,
        number: Option<u64>,
        start: impl FnOnce(&dyn Service, Reply<T>),
    ) -> Result<T, Fault> {
        if *self.shared.draining.borrow() && (self.has_lingered.get() || !self.is_told.get()) {
            return Err(Fault::new(FaultKind::ShuttingDown, "this host is shutting down"));
        }
        let places = self.shared.limits.calls_in_flight;
        let slot = Slot::take(&self.calls_in_flight, &self.shared.calls_in_flight, places).ok_or_else(|| {
            Fault::new(FaultKind::Busy, format!("{places} calls of this connection are in flight already"))
        })?;
        let (reply, mut answer) = Reply::new(method, self.shared.hello.role, slot);
        // A panic drops the reply, which is an answer too.
        let _ = catch_unwind(AssertUnwindSafe(|| start(&*self.shared.service, reply)));

        let answer = match number {
            Some(number) => {
                let (cancel, mut cancelled) = oneshot::channel();
                self.cancels.borrow_mut().insert(number, cancel);
                let answer = tokio::select! {
                    biased;
                    answer = &mut answer => answer,
                    Ok(()) = &mut cancelled => return Err(Fault::new(FaultKind::TimeUp, "the caller did not wait")),
                };
                self.cancels.borrow_mut().remove(&number);
                answer
            }
            None => answer.await,
        };
        let dropped = |_| Fault::new(FaultKind::Internal, format!("this host dropped a call of `{method}`"));
        let value = answer.map_err(dropped)??;
        self.fits(value.weight_bytes())?;
        Ok(value)
    }

    /// Whether a reply of this weight can be sent.
    fn fits(&self, weight_bytes: usize) -> Result<(), Fault> {
        let (bytes, limit) = (weight_bytes.saturating_add(ENVELOPE_BYTES), self.reply_bytes_max.get());
        if bytes <= limit {
            return Ok(());
        }
        let message = format!("a reply of {bytes} bytes is over the limit of {limit} bytes");
        Err(Fault::new(FaultKind::TooLarge, message))
    }

    fn fill_in(&self, stats: Stats) -> Stats {
        let Traffic { bytes_in, bytes_out } = self.shared.traffic.get();
        Stats {
            calls_in_flight: self.shared.calls_in_flight.load(Acquire) as u64,
            connections: self.shared.connections.get(),
            connections_refused: self.shared.connections_refused.get(),
            protocol_errors: self.shared.protocol_errors.get(),
            bytes_in,
            bytes_out,
            ..stats
        }
    }
}

/// The door: gives the host to those who speak our version.
struct Gate(Rc<Peer>);

impl gate::Server for Gate {
    async fn hello(
        self: Rc<Self>,
        params: gate::HelloParams,
        mut results: gate::HelloResults,
    ) -> Result<(), capnp::Error> {
        let peer = &self.0;
        if peer.greeted.get() {
            return Err(capnp::Error::failed("hello was said already".to_owned()));
        }
        let Shared { hello: ours, limits, .. } = &*peer.shared;
        let mut reply = results.get().init_reply();
        write_hello(reply.reborrow().init_hello(), ours, limits.message_bytes);
        match read_hello(params.get()?.get_hello()?) {
            Ok((theirs, bytes_max)) if theirs.protocol == ours.protocol => {
                peer.greeted.set(true);
                peer.is_known.set(true);
                peer.reply_bytes_max.set(bytes_max.min(limits.message_bytes));
                peer.wire.trust(limits);
                let Guarded(host) = capnp_rpc::new_client(Host(peer.clone()));
                reply.set_host(host);
            }
            Ok((theirs, _)) => {
                let message = format!("protocol version {} here, {} there", ours.protocol, theirs.protocol);
                write_fault(reply.init_fault(), &Fault::new(FaultKind::Version, message));
            }
            Err(malformed) => write_fault(reply.init_fault(), &bad_request(malformed)),
        }
        Ok(())
    }
}

fn bad_request(malformed: impl Into<Malformed>) -> Fault {
    Fault::new(FaultKind::BadRequest, malformed.into().to_string())
}

/// The service, on the wire.
struct Host(Rc<Peer>);

impl Caller for Host {
    fn caller(&self) -> Result<Option<Arc<KnownPeer>>, Fault> {
        self.0.known()
    }
}

impl host::Server for Host {
    async fn describe(
        self: Rc<Self>,
        _: host::DescribeParams,
        mut results: host::DescribeResults,
    ) -> Result<(), capnp::Error> {
        let outcome = self.0.call("describe", None, |service, reply| service.describe(reply)).await;
        let outcome = outcome.and_then(|described: Description| {
            let peer = self.0.known()?;
            let may = |model: &ModelDescription| {
                peer.as_ref().is_none_or(|peer| check_model(peer, Some(&model.name)).is_ok())
            };
            Ok(Description { models: described.models.into_iter().filter(may).collect() })
        });
        write_outcome(results.get().init_outcome(), &outcome);
        Ok(())
    }

    async fn install_plan(
        self: Rc<Self>,
        params: host::InstallPlanParams,
        mut results: host::InstallPlanResults,
    ) -> Result<(), capnp::Error> {
        let outcome = match Plan::read(params.get()?.get_plan()?) {
            Ok(plan) => {
                let install = |service: &dyn Service, reply| service.install_plan(plan, reply);
                self.0.call_about(Which::Digest(plan.model), "install_plan", None, install).await
            }
            Err(malformed) => Err(bad_request(malformed)),
        };
        write_outcome(results.get().init_outcome(), &outcome);
        Ok(())
    }

    async fn infer(
        self: Rc<Self>,
        params: host::InferParams,
        mut results: host::InferResults,
    ) -> Result<(), capnp::Error> {
        let (number, request) = {
            let params = params.get()?;
            (params.get_call(), InferRequest::read(params.get_request()?))
        };
        // The activation is in memory of its own now; the message need not wait for the answer.
        drop(params);
        let outcome = match request {
            Ok(request) => {
                let which = Which::Digest(request.model);
                let infer = |service: &dyn Service, reply| service.infer(request, reply);
                self.0.call_about(which, "infer", Some(number), infer).await
            }
            Err(malformed) => Err(bad_request(malformed)),
        };
        write_outcome(results.get().init_outcome(), &outcome);
        Ok(())
    }

    async fn ask(self: Rc<Self>, params: host::AskParams, mut results: host::AskResults) -> Result<(), capnp::Error> {
        let (number, request) = {
            let params = params.get()?;
            (params.get_call(), AskRequest::read(params.get_request()?))
        };
        drop(params);
        let outcome = match request {
            Ok(request) => {
                let model = request.model.clone();
                let ask = |service: &dyn Service, reply| service.ask(request, reply);
                self.0.call_about(Which::Name(&model), "ask", Some(number), ask).await
            }
            Err(malformed) => Err(bad_request(malformed)),
        };
        write_outcome(results.get().init_outcome(), &outcome);
        Ok(())
    }

    async fn cancel(self: Rc<Self>, params: host::CancelParams, _: host::CancelResults) -> Result<(), capnp::Error> {
        if let Some(cancel) = self.0.cancels.borrow_mut().remove(&params.get()?.get_call()) {
            let _ = cancel.send(());
        }
        Ok(())
    }

    async fn profile(
        self: Rc<Self>,
        params: host::ProfileParams,
        mut results: host::ProfileResults,
    ) -> Result<(), capnp::Error> {
        let outcome = match read_digest(params.get()?.get_model()?) {
            Ok(model) => {
                let profile = |service: &dyn Service, reply| service.profile(model, reply);
                self.0.call_about(Which::Digest(model), "profile", None, profile).await
            }
            Err(malformed) => Err(bad_request(malformed)),
        };
        write_outcome(results.get().init_outcome(), &outcome);
        Ok(())
    }

    async fn stats(self: Rc<Self>, _: host::StatsParams, mut results: host::StatsResults) -> Result<(), capnp::Error> {
        let outcome = self.0.call("stats", None, |service, reply| service.stats(reply)).await;
        write_outcome(results.get().init_outcome(), &outcome.map(|stats| self.0.fill_in(stats)));
        Ok(())
    }

    async fn offer(
        self: Rc<Self>,
        params: host::OfferParams,
        mut results: host::OfferResults,
    ) -> Result<(), capnp::Error> {
        let manifest = share(params.get()?.get_manifest()?);
        drop(params);
        let outcome = self.0.call("offer", None, |service, reply| service.offer(manifest, reply)).await;
        write_outcome(results.get().init_outcome(), &outcome);
        Ok(())
    }

    async fn offer_piece(
        self: Rc<Self>,
        params: host::OfferPieceParams,
        mut results: host::OfferPieceResults,
    ) -> Result<(), capnp::Error> {
        let (manifest, total, offset, bytes) = {
            let params = params.get()?;
            let manifest = read_digest(params.get_manifest()?);
            (manifest, params.get_total(), params.get_offset(), share(params.get_bytes()?))
        };
        drop(params);
        let outcome = match manifest {
            Ok(manifest) => {
                let offer = |service: &dyn Service, reply| service.offer_piece(manifest, total, offset, bytes, reply);
                self.0.call("offer_piece", None, offer).await
            }
            Err(malformed) => Err(bad_request(malformed)),
        };
        write_outcome(results.get().init_outcome(), &outcome);
        Ok(())
    }

    async fn sign(
        self: Rc<Self>,
        params: host::SignParams,
        mut results: host::SignResults,
    ) -> Result<(), capnp::Error> {
        let read = {
            let params = params.get()?;
            read_digest(params.get_model()?)
                .and_then(|model| Ok((model, Vec::<Signature>::read(params.get_signatures()?)?)))
        };
        let outcome = match read {
            Ok((model, signatures)) => {
                self.0.call("sign", None, |service, reply| service.sign(model, signatures, reply)).await
            }
            Err(malformed) => Err(bad_request(malformed)),
        };
        write_outcome(results.get().init_outcome(), &outcome);
        Ok(())
    }

    async fn signatures(
        self: Rc<Self>,
        params: host::SignaturesParams,
        mut results: host::SignaturesResults,
    ) -> Result<(), capnp::Error> {
        let outcome = match read_digest(params.get()?.get_model()?) {
            Ok(model) => self.0.call("signatures", None, |service, reply| service.signatures(model, reply)).await,
            Err(malformed) => Err(bad_request(malformed)),
        };
        write_outcome(results.get().init_outcome(), &outcome);
        Ok(())
    }

    async fn put_blob(
        self: Rc<Self>,
        params: host::PutBlobParams,
        mut results: host::PutBlobResults,
    ) -> Result<(), capnp::Error> {
        let (digest, offset, bytes) = {
            let params = params.get()?;
            (read_digest(params.get_digest()?), params.get_offset(), share(params.get_bytes()?))
        };
        drop(params);
        let outcome = match digest {
            Ok(digest) => {
                self.0.call("put_blob", None, |service, reply| service.put_blob(digest, offset, bytes, reply)).await
            }
            Err(malformed) => Err(bad_request(malformed)),
        };
        write_outcome(results.get().init_outcome(), &outcome);
        Ok(())
    }

    async fn install(
        self: Rc<Self>,
        params: host::InstallParams,
        mut results: host::InstallResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let trial = read_trial(params.get_trial_share(), params.get_trial_ms());
        let outcome = match read_digest(params.get_model()?).and_then(|model| Ok((model, trial?))) {
            Ok((model, trial)) => {
                self.0.call("install", None, |service, reply| service.install(model, trial, reply)).await
            }
            Err(malformed) => Err(bad_request(malformed)),
        };
        write_outcome(results.get().init_outcome(), &outcome);
        Ok(())
    }

    async fn prepare(
        self: Rc<Self>,
        params: host::PrepareParams,
        mut results: host::PrepareResults,
    ) -> Result<(), capnp::Error> {
        let outcome = match read_digest(params.get()?.get_model()?) {
            Ok(model) => self.0.call("prepare", None, |service, reply| service.prepare(model, reply)).await,
            Err(malformed) => Err(bad_request(malformed)),
        };
        write_outcome(results.get().init_outcome(), &outcome);
        Ok(())
    }

    async fn rollback(
        self: Rc<Self>,
        params: host::RollbackParams,
        mut results: host::RollbackResults,
    ) -> Result<(), capnp::Error> {
        let outcome = match params.get()?.get_model()?.to_str() {
            Ok(model) => {
                self.0.call("rollback", None, |service, reply| service.rollback(model.to_owned(), reply)).await
            }
            Err(malformed) => Err(bad_request(malformed)),
        };
        write_outcome(results.get().init_outcome(), &outcome);
        Ok(())
    }

    async fn versions(
        self: Rc<Self>,
        _: host::VersionsParams,
        mut results: host::VersionsResults,
    ) -> Result<(), capnp::Error> {
        let outcome = self.0.call("versions", None, |service, reply| service.versions(reply)).await;
        write_outcome(results.get().init_outcome(), &outcome);
        Ok(())
    }

    async fn manifest(
        self: Rc<Self>,
        params: host::ManifestParams,
        mut results: host::ManifestResults,
    ) -> Result<(), capnp::Error> {
        let outcome = match read_digest(params.get()?.get_digest()?) {
            Ok(digest) => self.0.call("manifest", None, |service, reply| service.manifest(digest, reply)).await,
            Err(malformed) => Err(bad_request(malformed)),
        };
        write_outcome(results.get().init_outcome(), &outcome);
        Ok(())
    }

    async fn blob(
        self: Rc<Self>,
        params: host::BlobParams,
        mut results: host::BlobResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let (offset, max_bytes) = (params.get_offset(), params.get_max_bytes());
        let outcome = match read_digest(params.get_digest()?) {
            Ok(digest) => {
                self.0.call("blob", None, |service, reply| service.blob(digest, offset, max_bytes, reply)).await
            }
            Err(malformed) => Err(bad_request(malformed)),
        };
        write_outcome(results.get().init_outcome(), &outcome);
        Ok(())
    }

    async fn retire(
        self: Rc<Self>,
        params: host::RetireParams,
        mut results: host::RetireResults,
    ) -> Result<(), capnp::Error> {
        let outcome = match read_digest(params.get()?.get_model()?) {
            Ok(model) => self.0.call("retire", None, |service, reply| service.retire(model, reply)).await,
            Err(malformed) => Err(bad_request(malformed)),
        };
        write_outcome(results.get().init_outcome(), &outcome);
        Ok(())
    }

    async fn pin(self: Rc<Self>, params: host::PinParams, mut results: host::PinResults) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let plan = if params.has_plan() { Plan::read(params.get_plan()?).map(Some) } else { Ok(None) };
        let outcome = match plan {
            Ok(plan) => self.0.call("pin", None, |service, reply| service.pin(plan, reply)).await,
            Err(malformed) => Err(bad_request(malformed)),
        };
        write_outcome(results.get().init_outcome(), &outcome);
        Ok(())
    }

    async fn edges(self: Rc<Self>, _: host::EdgesParams, mut results: host::EdgesResults) -> Result<(), capnp::Error> {
        let outcome = self.0.call("edges", None, |service, reply| service.edges(reply)).await;
        write_outcome(results.get().init_outcome(), &outcome);
        Ok(())
    }

    // Has no place among the calls in flight, on which nobody waits for ever.
    async fn leaving(
        self: Rc<Self>,
        _: host::LeavingParams,
        mut results: host::LeavingResults,
    ) -> Result<(), capnp::Error> {
        self.0.is_told.set(true);
        let mut draining = self.0.shared.draining.subscribe();
        let _ = draining.wait_for(|draining| *draining).await;
        write_outcome(results.get().init_outcome(), &Ok(()));
        Ok(())
    }

    // Has no place among the calls in flight: it is answered here and now, and a busy host still shows life.
    async fn probe(
        self: Rc<Self>,
        params: host::ProbeParams,
        mut results: host::ProbeResults,
    ) -> Result<(), capnp::Error> {
        let padding = Padding { bytes: params.get()?.get_reply_bytes() };
        let outcome = self.0.fits(padding.weight_bytes()).map(|()| padding);
        write_outcome(results.get().init_outcome(), &outcome);
        Ok(())
    }
}
