//! The side that asks.

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_local;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::backlog::Backlog;
use crate::convert::{Malformed, Message, Padding, bounded, read_fault, read_hello, read_outcome, write_hello};
use crate::edgent_capnp::{gate, hello_reply, host};
use crate::error::{Fault, LinkError};
use crate::limits::Limits;
use crate::link::{Link, NOWHERE};
use crate::meter::{Meter, Metered, Traffic, TrafficCounter};
use crate::pair::{self, Bound, PairError, Paired, PairingCode};
use crate::place::Place;
use crate::road::Stream;
use crate::security::NoCredentials;
use crate::splice;
use crate::tls::{self, Distrust, Speech, TlsError, Whom};
use crate::trust::{Credentials, Fingerprint, Right};
use crate::types::{
    Activation, Answer, AskRequest, BlobName, Description, Digest, EdgeState, Hello, InferReply, InferRequest,
    ModelProfile, Plan, Signature, Stats, Trial, Version,
};
use crate::wire::{Cause, ENVELOPE_BYTES, Session, Side, Wire};

/// A connection to a host. Clones share it; it is closed when the last of them is dropped.
///
/// Every future of it may be dropped at any time, so any timeout may be wrapped around it: the peer
/// is told, and the connection stays good.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    calls: mpsc::Sender<Call>,
    closed: watch::Receiver<Option<String>>,
    peer: Hello,
    request_bytes_max: usize,
    traffic: Arc<TrafficCounter>,
    _link: Link,
}

/// Makes the call, given the host and a number that no other call of the connection has.
type Call = Box<dyn FnOnce(host::Client, u64) -> LocalBoxFuture<'static, ()> + Send>;

/// How long a [`Client::probe`] took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeTimes {
    /// From before the first byte was sent until the last one had come.
    pub elapsed: Duration,
    /// Padding sent.
    pub up_bytes: usize,
    /// Padding received.
    pub down_bytes: usize,
}

impl Client {
    /// What the peer said of itself.
    pub fn peer(&self) -> &Hello {
        &self.shared.peer
    }

    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        self.shared.calls.is_closed()
    }

    /// Waits until the connection is gone, and says why.
    pub async fn closed(&self) -> LinkError {
        let mut closed = self.shared.closed.clone();
        let why = closed.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        LinkError::Lost(why.unwrap_or_else(|| "the link's thread has ended".to_owned()))
    }

    /// What went over the connection.
    pub fn traffic(&self) -> Traffic {
        self.shared.traffic.get()
    }

    /// What the host has.
    pub async fn describe(&self) -> Result<Description, LinkError> {
        self.call(async |host, _| {
            let response = host.describe_request().send().promise.await?;
            read_outcome(response.get()?.get_outcome()?)
        })
        .await
    }

    /// Makes a plan known to the host.
    pub async fn install_plan(&self, plan: Plan) -> Result<(), LinkError> {
        self.call(async move |host, _| {
            let mut request = host.install_plan_request();
            plan.write(request.get().init_plan());
            let response = request.send().promise.await?;
            read_outcome(response.get()?.get_outcome()?)
        })
        .await
    }

    /// Has the host run segments. Dropped, the work is cancelled there.
    pub async fn infer(&self, request: InferRequest) -> Result<InferReply, LinkError> {
        request.activation.check()?;
        request.beside.iter().try_for_each(Activation::check)?;
        self.fits(request.weight_bytes())?;
        self.call(async move |host, number| {
            let mut call = host.infer_request();
            call.get().set_call(number);
            request.write(call.get().init_request());
            // What was sent is not needed for the answer.
            drop(request);
            let response = call.send().promise.await?;
            read_outcome(response.get()?.get_outcome()?)
        })
        .await
    }

    /// Has the host answer for an input. Dropped, the work is cancelled there.
    pub async fn ask(&self, request: AskRequest) -> Result<Answer, LinkError> {
        request.input.check()?;
        request.beside.iter().try_for_each(Activation::check)?;
        self.fits(request.weight_bytes())?;
        self.call(async move |host, number| {
            let mut call = host.ask_request();
            call.get().set_call(number);
            request.write(call.get().init_request());
            drop(request);
            let response = call.send().promise.await?;
            read_outcome(response.get()?.get_outcome()?)
        })
        .await
    }

    /// How fast the host is with a model.
    pub async fn profile(&self, model: Digest) -> Result<ModelProfile, LinkError> {
        self.call(async move |host, _| {
            let mut request = host.profile_request();
            request.get().set_model(&model.0);
            let response = request.send().promise.await?;
            read_outcome(response.get()?.get_outcome()?)
        })
        .await
    }

    /// The host's counters.
    pub async fn stats(&self) -> Result<Stats, LinkError> {
        self.call(async |host, _| {
            let response = host.stats_request().send().promise.await?;
            read_outcome(response.get()?.get_outcome()?)
        })
        .await
    }

    /// Tells who answers for the bundle that is offered next.
    pub async fn sign(&self, model: Digest, signatures: Vec<Signature>) -> Result<(), LinkError> {
        self.fits(signatures.weight_bytes())?;
        self.call(async move |host, _| {
            let mut request = host.sign_request();
            request.get().set_model(&model.0);
            signatures.write(request.get().init_signatures());
            let response = request.send().promise.await?;
            read_outcome(response.get()?.get_outcome()?)
        })
        .await
    }

    /// The signatures of a bundle that the host has.
    pub async fn signatures(&self, model: Digest) -> Result<Vec<Signature>, LinkError> {
        self.call(async move |host, _| {
            let mut request = host.signatures_request();
            request.get().set_model(&model.0);
            let response = request.send().promise.await?;
            read_outcome(response.get()?.get_outcome()?)
        })
        .await
    }

    /// Shows a bundle's manifest; gives those of its blobs that the host has not.
    pub async fn offer(&self, manifest: Bytes) -> Result<Vec<BlobName>, LinkError> {
        self.fits(manifest.weight_bytes())?;
        self.call(async move |host, _| {
            let mut request = host.offer_request();
            splice::write(&manifest, |bytes| request.get().init_manifest(bytes));
            drop(manifest);
            let response = request.send().promise.await?;
            read_outcome(response.get()?.get_outcome()?)
        })
        .await
    }

    /// The same of a manifest of `total` bytes in pieces, in order; the blobs are told with the last one.
    pub async fn offer_piece(
        &self,
        manifest: Digest,
        total: u64,
        offset: u64,
        bytes: Bytes,
    ) -> Result<Vec<BlobName>, LinkError> {
        self.fits(bytes.weight_bytes())?;
        self.call(async move |host, _| {
            let mut request = host.offer_piece_request();
            // First, as an activation's.
            splice::write(&bytes, |bytes| request.get().init_bytes(bytes));
            drop(bytes);
            request.get().set_manifest(&manifest.0);
            request.get().set_total(total);
            request.get().set_offset(offset);
            let response = request.send().promise.await?;
            read_outcome(response.get()?.get_outcome()?)
        })
        .await
    }

    /// Sends a piece of a blob that an offer found missing: in order, and best of
    /// [`PIECE_BYTES`](crate::PIECE_BYTES).
    pub async fn put_blob(&self, digest: Digest, offset: u64, bytes: Bytes) -> Result<(), LinkError> {
        self.fits(bytes.weight_bytes())?;
        self.call(async move |host, _| {
            let mut request = host.put_blob_request();
            // First, as an activation's.
            splice::write(&bytes, |bytes| request.get().init_bytes(bytes));
            drop(bytes);
            request.get().set_digest(&digest.0);
            request.get().set_offset(offset);
            let response = request.send().promise.await?;
            read_outcome(response.get()?.get_outcome()?)
        })
        .await
    }

    /// Has the host serve a bundle whose blobs are all there, after a trial if it is to have one; gives what is in
    /// force then. Dropped, the work goes on there.
    pub async fn install(&self, model: Digest, trial: Option<Trial>) -> Result<Version, LinkError> {
        self.call(async move |host, _| {
            let mut request = host.install_request();
            request.get().set_model(&model.0);
            if let Some(Trial { share, time_ms }) = trial {
                request.get().set_trial_share(share);
                request.get().set_trial_ms(time_ms);
            }
            let response = request.send().promise.await?;
            read_outcome(response.get()?.get_outcome()?)
        })
        .await
    }

    /// Has the host make a bundle ready whose blobs are all there, without putting it in force.
    pub async fn prepare(&self, model: Digest) -> Result<Version, LinkError> {
        self.call(async move |host, _| {
            let mut request = host.prepare_request();
            request.get().set_model(&model.0);
            let response = request.send().promise.await?;
            read_outcome(response.get()?.get_outcome()?)
        })
        .await
    }

    /// Has the host go back to the model's version before; no name: its only model.
    pub async fn rollback(&self, model: &str) -> Result<Version, LinkError> {
        self.fits(model.len())?;
        let model = model.to_owned();
        self.call(async move |host, _| {
            let mut request = host.rollback_request();
            request.get().set_model(&model);
            let response = request.send().promise.await?;
            read_outcome(response.get()?.get_outcome()?)
        })
        .await
    }

    /// The versions that the host has.
    pub async fn versions(&self) -> Result<Vec<Version>, LinkError> {
        self.call(async |host, _| {
            let response = host.versions_request().send().promise.await?;
            read_outcome(response.get()?.get_outcome()?)
        })
        .await
    }

    /// The manifest of a bundle that the host has.
    pub async fn manifest(&self, digest: Digest) -> Result<Bytes, LinkError> {
        self.call(async move |host, _| {
            let mut request = host.manifest_request();
            request.get().set_digest(&digest.0);
            let response = request.send().promise.await?;
            read_outcome(response.get()?.get_outcome()?)
        })
        .await
    }

    /// At most so many bytes of a blob that the host has, best [`PIECE_BYTES`](crate::PIECE_BYTES); none
    /// behind its end.
    pub async fn blob(&self, digest: Digest, offset: u64, max_bytes: u32) -> Result<Bytes, LinkError> {
        self.call(async move |host, _| {
            let mut request = host.blob_request();
            request.get().set_digest(&digest.0);
            request.get().set_offset(offset);
            request.get().set_max_bytes(max_bytes);
            let response = request.send().promise.await?;
            let outcome: Result<Bytes, Fault> = read_outcome(response.get()?.get_outcome()?)?;
            if let Ok(piece) = &outcome {
                bounded("bytes", piece.len() as u32, max_bytes)?;
            }
            Ok(outcome)
        })
        .await
    }

    /// Has a device run this plan and no other, whatever its epoch; none: choose again. Gives the plan in force.
    pub async fn pin(&self, plan: Option<Plan>) -> Result<Plan, LinkError> {
        self.call(async move |host, _| {
            let mut request = host.pin_request();
            if let Some(plan) = plan {
                plan.write(request.get().init_plan());
            }
            let response = request.send().promise.await?;
            read_outcome(response.get()?.get_outcome()?)
        })
        .await
    }

    /// The edges that a device was told of, in its order of preference.
    pub async fn edges(&self) -> Result<Vec<EdgeState>, LinkError> {
        self.call(async |host, _| {
            let response = host.edges_request().send().promise.await?;
            read_outcome(response.get()?.get_outcome()?)
        })
        .await
    }

    /// Waits until the host begins to end: it still answers what is on its way, and soon nothing more. Has one of the
    /// places of the connection's calls meanwhile. An older host does not tell, which is an error at once.
    pub async fn leaving(&self) -> Result<(), LinkError> {
        self.call(async |host, _| {
            let response = host.leaving_request().send().promise.await?;
            read_outcome(response.get()?.get_outcome()?)
        })
        .await
    }

    /// Tells the host that this side asks for a bundle no more.
    pub async fn retire(&self, model: Digest) -> Result<(), LinkError> {
        self.call(async move |host, _| {
            let mut request = host.retire_request();
            request.get().set_model(&model.0);
            let response = request.send().promise.await?;
            read_outcome(response.get()?.get_outcome()?)
        })
        .await
    }

    /// Sends so many bytes there and so many back, to measure the link.
    pub async fn probe(&self, up_bytes: usize, down_bytes: usize) -> Result<ProbeTimes, LinkError> {
        self.fits(up_bytes.max(down_bytes))?;
        self.call(async move |host, _| {
            let start = Instant::now();
            let outcome = send_probe(&host, up_bytes as u32, down_bytes as u32).await?;
            Ok(outcome.map(|_| ProbeTimes { elapsed: start.elapsed(), up_bytes, down_bytes }))
        })
        .await
    }

    fn fits(&self, weight_bytes: usize) -> Result<(), LinkError> {
        let (bytes, limit) = (weight_bytes.saturating_add(ENVELOPE_BYTES), self.shared.request_bytes_max);
        if bytes > limit { Err(LinkError::TooLarge { bytes, limit }) } else { Ok(()) }
    }

    /// Makes a call on the link's thread, and cancels it if the caller goes away.
    async fn call<T, F, R>(&self, call: F) -> Result<T, LinkError>
    where
        T: Send + 'static,
        F: FnOnce(host::Client, u64) -> R + Send + 'static,
        R: Future<Output = Outcome<T>> + 'static,
    {
        let (mut to, outcome) = oneshot::channel();
        let call: Call = Box::new(move |host, number| {
            let answer = call(host.clone(), number);
            async move {
                let mut answer = std::pin::pin!(answer);
                tokio::select! {
                    biased;
                    outcome = &mut answer => {
                        let _ = to.send(outcome);
                    }
                    () = to.closed() => {
                        let mut cancel = host.cancel_request();
                        cancel.get().set_call(number);
                        // Until the answer is there, the call has its place on both sides.
                        let _ = futures::join!(cancel.send().promise, answer);
                    }
                }
            }
            .boxed_local()
        });
        if self.shared.calls.send(call).await.is_err() {
            return Err(self.closed().await);
        }
        match outcome.await {
            Ok(outcome) => outcome?.map_err(LinkError::Fault),
            Err(_) => Err(self.closed().await),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("peer", self.peer()).field("closed", &self.is_closed()).finish()
    }
}

/// What a call gives: the peer's answer or its refusal, unless what came is neither.
type Outcome<T> = Result<Result<T, Fault>, Malformed>;

async fn send_probe(host: &host::Client, up_bytes: u32, down_bytes: u32) -> Outcome<Padding> {
    let mut request = host.probe_request();
    request.get().init_padding(up_bytes);
    request.get().set_reply_bytes(down_bytes);
    let response = request.send().promise.await?;
    read_outcome(response.get()?.get_outcome()?)
}

/// Connects and says hello, on the link's thread.
pub(crate) async fn connect(link: Link, address: String, hello: Hello, limits: Limits) -> Result<Client, LinkError> {
    if let Some(road) = link.road() {
        let stream = timeout(limits.connect, road.connect(&address)).await;
        let stream = stream.map_err(|_| LinkError::Timeout("connecting"))?;
        let stream = stream.map_err(|source| LinkError::Connect { address: address.clone(), source })?;
        return speak(link, address, hello, limits, (stream, None), NOWHERE.ip()).await;
    }
    let (ip, stream) = reach(Place::of(&address).address, &limits).await?;
    let backlog = Backlog::of(&stream);
    speak(link, address, hello, limits, (stream, backlog), ip).await
}

/// Says hello to whoever was reached.
async fn speak(
    link: Link,
    address: String,
    hello: Hello,
    limits: Limits,
    (stream, backlog): (impl Stream + 'static, Option<Backlog>),
    reached: IpAddr,
) -> Result<Client, LinkError> {
    // The address that was reached decides, not the name that led there.
    let credentials = link.security().at(reached);
    let credentials = credentials.map_err(|NoCredentials| LinkError::NoKey { address: address.clone() })?.cloned();
    let place = Place::of(&address);
    let traffic = Arc::new(TrafficCounter::default());
    let meter = Rc::new(Meter::new(traffic.clone(), backlog));
    let wire = Wire::new(Side::Client, &limits, meter.clone());
    let stream = Metered::new(stream, meter);
    let (mut session, trust) = match &credentials {
        None if place.name.is_some() => return Err(LinkError::Nameless { address }),
        None => {
            let (reader, writer) = tokio::io::split(stream);
            (Session::new(wire.clone(), reader, writer, None), None)
        }
        Some(credentials) => {
            let whom = Whom { speech: Speech::Host, name: place.name };
            let shaken = timeout(limits.handshake, tls::connect(credentials, whom, stream)).await;
            let shaken = shaken.map_err(|_| LinkError::Timeout("waiting for TLS to stand"))?;
            let (stream, key) = shaken.map_err(|error| refusal(&address, credentials, error))?;
            let (reader, writer) = tokio::io::split(stream);
            (Session::new(wire.clone(), reader, writer, None), Some((credentials.clone(), key)))
        }
    };
    let gate: gate::Client = session.bootstrap();
    let greeting = tokio::select! {
        biased;
        greeting = timeout(limits.hello, greet(gate, &hello, &limits)) => match greeting {
            Ok(greeting) => greeting.map_err(LinkError::from),
            Err(_) => Err(LinkError::Timeout("waiting for the peer's hello")),
        },
        closed = session.run() => Err(LinkError::Lost(closed.why)),
    };
    let greeting = match (greeting, &credentials) {
        // Of TLS, the side that connected hears only now what the other one thinks of its key.
        (Err(_), Some(credentials)) if wire.closed().cause == Cause::UnknownThere => {
            return Err(refusal(&address, credentials, TlsError::UnknownThere));
        }
        (greeting, _) => greeting?,
    };
    let (peer, peer_bytes_max, host) = greeting?;
    wire.trust(&limits);

    let (calls, waiting) = mpsc::channel(limits.calls_in_flight.max(1));
    let (closing, closed) = watch::channel(None);
    spawn_local(async move {
        let why = converse(session, wire, host, waiting, limits, trust).await;
        closing.send_replace(Some(why));
    });
    let request_bytes_max = limits.message_bytes.min(peer_bytes_max);
    Ok(Client { shared: Arc::new(Shared { calls, closed, peer, request_bytes_max, traffic, _link: link }) })
}

async fn reach(address: &str, limits: &Limits) -> Result<(IpAddr, TcpStream), LinkError> {
    let stream = timeout(limits.connect, TcpStream::connect(address)).await;
    let stream = stream.map_err(|_| LinkError::Timeout("connecting"))?;
    let stream = stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
    let stream = stream.and_then(|stream| Ok((stream.peer_addr()?.ip(), stream)));
    stream.map_err(|source| LinkError::Connect { address: address.to_owned(), source })
}

/// Connects and pairs, on the link's thread.
pub(crate) async fn pair(
    link: Link,
    address: String,
    code: PairingCode,
    name: String,
    limits: Limits,
) -> Result<Paired, PairError> {
    let no_key = || LinkError::NoKey { address: address.clone() };
    let credentials = link.security().credentials().ok_or_else(no_key)?;
    let (_, stream) = reach(&address, &limits).await?;
    let whom = Whom { speech: Speech::Pairing, name: None };
    let shaken = timeout(limits.handshake, tls::connect(credentials, whom, stream)).await;
    let (stream, key) = match shaken.map_err(|_| LinkError::Timeout("waiting for TLS to stand"))? {
        Ok(shaken) => shaken,
        Err(TlsError::NotNow) => return Err(PairError::NotNow(address)),
        Err(error) => return Err(refusal(&address, credentials, error).into()),
    };
    let session = tls::session(&stream)?;
    let bound = Bound { connecting: credentials.identity().fingerprint(), inviting: key, session };
    pair::ask(stream, &bound, &code, &name).await
}

/// Why there is no connection, for who asked for one.
pub(crate) fn refusal(address: &str, credentials: &Credentials, error: TlsError) -> LinkError {
    let address = address.to_owned();
    match error {
        TlsError::Distrust(Distrust::Stranger(key)) => LinkError::Stranger { address, key },
        TlsError::Distrust(Distrust::Useless(key)) => LinkError::MayNotServe { address, key },
        TlsError::Distrust(Distrust::Another(key)) => {
            // Struck off since then, it has no name any more.
            let found = credentials.find(&key).map_or_else(|| key.to_string(), |peer| peer.name.clone());
            LinkError::AnotherPeer { address, found }
        }
        TlsError::UnknownThere => LinkError::UnknownThere { address, key: credentials.identity().fingerprint() },
        TlsError::NotNow | TlsError::Broken(_) => LinkError::NoTls { address, why: error.to_string() },
    }
}

/// Says hello; gives the peer's, the largest message it takes, and the host.
async fn greet(
    gate: gate::Client,
    ours: &Hello,
    limits: &Limits,
) -> Result<Result<(Hello, usize, host::Client), LinkError>, Malformed> {
    let mut request = gate.hello_request();
    write_hello(request.get().init_hello(), ours, limits.message_bytes);
    let response = request.send().promise.await?;
    let reply = response.get()?.get_reply()?;
    // The version comes first: of another one, nothing else can be relied on.
    let hello = reply.get_hello()?;
    if hello.get_protocol() != ours.protocol {
        return Ok(Err(LinkError::Version { ours: ours.protocol, theirs: hello.get_protocol() }));
    }
    let (theirs, bytes_max) = read_hello(hello)?;
    Ok(match reply.which()? {
        hello_reply::Host(host) => Ok((theirs, bytes_max, host?)),
        hello_reply::Fault(fault) => Err(LinkError::Refused(read_fault(fault?)?)),
    })
}

/// Makes the calls of a connection until it is over, and says why it is.
async fn converse(
    mut session: Session,
    wire: Rc<Wire>,
    host: host::Client,
    mut waiting: mpsc::Receiver<Call>,
    limits: Limits,
    trust: Option<(Credentials, Fingerprint)>,
) -> String {
    let mut calls = FuturesUnordered::new();
    let mut numbers = 0..;
    let mut heartbeat = interval(limits.heartbeat);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut strikes, mut last_tick) = (0, wire.meter().alive());
    let mut beating: Option<LocalBoxFuture<'static, Outcome<Padding>>> = None;
    let why = {
        let mut running = std::pin::pin!(session.run());
        let mut distrusted = std::pin::pin!(async {
            match &trust {
                Some((credentials, key)) => credentials.forgotten(*key, Some(Right::Serve)).await,
                None => std::future::pending().await,
            }
        });
        loop {
            tokio::select! {
                biased;
                closed = &mut running => return closed.why,
                () = &mut distrusted => break "its key is not known here any more, or may not serve".to_owned(),
                Some(()) = calls.next() => {}
                call = waiting.recv(), if calls.len() < limits.calls_in_flight.max(1) => match (call, numbers.next()) {
                    (Some(call), Some(number)) => calls.push(call(host.clone(), number)),
                    _ => break "closed by its owner".to_owned(),
                },
                // Any answer is a sign of life, be it a fault.
                Some(_) = async { Some(beating.as_mut()?.await) } => beating = None,
                _ = heartbeat.tick() => {
                    wire.meter().look();
                    // Ticks, not time: after a pause of our own, the peer's answer may be waiting for us.
                    let alive = wire.meter().alive();
                    strikes = if alive > last_tick { 0 } else { strikes + 1 };
                    last_tick = Instant::now();
                    if strikes >= limits.heartbeat_strikes {
                        break format!("no sign of life in {:.1?}", alive.elapsed());
                    }
                    if beating.is_none() && alive.elapsed() >= limits.heartbeat / 2 {
                        let host = host.clone();
                        beating = Some(async move { send_probe(&host, 0, 0).await }.boxed_local());
                    }
                }
            }
        }
    };
    // No more calls; those that wait learn why when this task ends.
    waiting.close();
    session.close(&why).await;
    why
}
