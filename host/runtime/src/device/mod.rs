//! The device: has the data and the deadline, and answers.
//!
//! A request follows the plan in force. While its activation is on the way, the device watches the
//! clock: at the last moment at which a local exit still fits, it starts that exit, and the first
//! good answer wins. A lost edge is the same case, only sooner.
//!
//! In force is one version of a model, [`Serving`]; each request stays with the version that it began with.

mod connection;
mod edges;
mod pin;
mod probe;
mod race;
mod ranking;
mod serving;
mod slot;
mod swap;
mod trial;

use crate::answer::{Answered, Said, accuracy_min};
use crate::codec::to_wire;
use crate::discovery::Whereabouts;
use crate::edge::{fault, us};
use crate::metrics::Metrics;
use crate::shelf::{Prepared, Shelf};
use crate::state::{DeviceState, State};
use crate::trace::{self, Kind, Span};
use crate::{Deployment, Workers, codec};
use bytes::Bytes;
use edgent_link::{
    Answer, AskRequest, BlobName, Description, Digest, Direction, EdgeState, Fault, FaultKind, Hello, Limits, Link,
    ModelProfile, Placement, Plan, Reply, Role, Service, Signature, Stats, Trial, Version, Which,
};
use edgent_nn::{Fact, Tensor};
use edgent_planner::{self as planner, Action, Choice, Controller, Doubt, Event, Explained, Planned};
use edges::{Edges, Joined};
use serving::{Asked, Outcome, Serving};
use slot::Slot;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;
use trial::Tally;

/// How often the controller is told that time passed.
const TICK: Duration = Duration::from_millis(100);
/// A call to the edge that takes longer than this is given up; a request's, if it has no more time than this.
const CALL_TIME_MAX: Duration = Duration::from_secs(5);
/// Strategies without a fallback wait this long for the edge before the device answers all the same.
const WAIT_MAX: Duration = CALL_TIME_MAX;
/// While others are late, a request may use this share of its time; again of that when they are late by its time, and so on.
const WHILE_OTHERS_ARE_LATE: f64 = 0.5;
/// Kept in hand when the last moment for a local exit is computed, and behind what waits for a worker.
const LOCAL_MARGIN_US: f64 = 3_000.0;
const ACTIONS_WAITING_MAX: usize = 64;
const SMALL_PROBES: usize = 3;

/// Why an answer is the device's own although an edge was asked.
pub const LATE: &str = "the edge's answer was not there in time";

/// What a device is told at its start.
#[derive(Clone, Debug)]
pub struct DeviceSettings {
    /// Addresses of edges, in order of preference.
    pub edges: Vec<String>,
    /// Where those are of which only the name was told.
    pub(crate) whereabouts: Arc<Whereabouts>,
    /// Connect to each edge anew after about so long; never, if not given.
    pub reconnect: Option<Duration>,
    /// Deadline, codec and privacy bounds.
    pub plan: planner::Settings,
    /// Stay at an exit on the way that is sure of its answer.
    pub leave_when_sure: bool,
    /// Limits of the link to the edge.
    pub limits: Limits,
    /// Who we say we are.
    pub hello: Hello,
}

/// Answers requests, alone or with an edge.
#[derive(Debug)]
pub struct Device {
    versions: Slot<Serving>,
    /// Held while another version comes into force.
    changing: tokio::sync::Mutex<()>,
    shelf: Arc<Shelf>,
    shared: Arc<Shared>,
    /// Where requests run: they wait for the link's calls, and for nothing else but workers.
    beside_link: Handle,
    counts: Counts,
    metrics: Arc<Metrics>,
}

/// What all versions of the model share.
#[derive(Debug)]
struct Shared {
    actions: mpsc::Sender<(Arc<Serving>, Action)>,
    edges: Edges,
    edges_configured: bool,
    /// What was in force when that was last settled with each edge, by its address.
    settled: Mutex<HashMap<String, InForce>>,
    next_id: AtomicU64,
    workers: Workers,
    /// For what may take long.
    runtime: Handle,
    plan: planner::Settings,
    leave_when_sure: bool,
    started: Instant,
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    answered: AtomicU64,
    errors: AtomicU64,
    deadline_met: AtomicU64,
    degraded: AtomicU64,
}

/// What is in force at an edge, and here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct InForce {
    theirs: Digest,
    ours: Digest,
}

impl Device {
    /// Starts answering, alone at first, and looks for an edge in the background.
    pub(crate) fn start(
        prepared: Prepared,
        shelf: Arc<Shelf>,
        workers: Workers,
        link: Link,
        metrics: Arc<Metrics>,
        settings: DeviceSettings,
    ) -> Arc<Self> {
        let (actions, waiting) = mpsc::channel(ACTIONS_WAITING_MAX);
        let shared = Arc::new(Shared {
            actions,
            // Other devices draw other numbers.
            edges: Edges::new(settings.edges.clone(), fastrand::u64(..)),
            edges_configured: !settings.edges.is_empty(),
            settled: Mutex::default(),
            next_id: AtomicU64::new(0),
            workers,
            runtime: Handle::current(),
            plan: settings.plan,
            leave_when_sure: settings.leave_when_sure,
            started: Instant::now(),
        });
        let first = Serving::new(Arc::clone(&shared), prepared);
        let device = Arc::new(Self {
            versions: Slot::new(Arc::new(first)),
            changing: tokio::sync::Mutex::default(),
            shelf,
            shared,
            beside_link: link.runtime().clone(),
            counts: Counts::default(),
            metrics,
        });
        device.look_for_edges(&link, &settings, waiting);
        device
    }

    pub(crate) fn shelf(&self) -> &Arc<Shelf> {
        &self.shelf
    }

    /// The version in force.
    fn serving(&self) -> Arc<Serving> {
        self.versions.current()
    }

    /// Lets every version know, the one on trial, too.
    fn tell_all(&self, event: &Event) {
        self.serving().tell(event.clone());
        if let Some(on_trial) = self.versions.on_trial() {
            on_trial.tell(event.clone());
        }
    }

    /// Its edges, in its order of preference.
    pub(crate) fn edge_states(&self) -> Vec<EdgeState> {
        self.shared.edges.states(self.serving().lock().link())
    }

    /// The versions that answer: the one in force, and perhaps one on trial.
    pub(crate) fn served(&self) -> Vec<Arc<Deployment>> {
        let versions = [Some(self.serving()), self.versions.on_trial()];
        versions.into_iter().flatten().map(|serving| Arc::clone(&serving.deployment)).collect()
    }

    /// What it does now.
    pub(crate) fn state(&self) -> State {
        let serving = self.serving();
        let controller = serving.lock();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let stats = Stats {
            uptime_ms: us(self.shared.started.elapsed()) / 1_000,
            requests: count(&self.counts.requests),
            answered: count(&self.counts.answered),
            errors: count(&self.counts.errors),
            deadline_met: count(&self.counts.deadline_met),
            degraded: count(&self.counts.degraded),
            plan_changes: controller.plan_changes(),
            rate_bps: controller.link().rate_bps().unwrap_or(0.0) as u64,
            rtt_us: controller.link().rtt_us() as u64,
            tensor_bytes_copied: edgent_nn::bytes_copied(),
            faults: crate::deployment::faults(),
            quarantined: self.shelf.quarantined().len() as u64,
            ..Stats::default()
        };
        let deadline_us = self.shared.plan.deadline_us;
        let planned = controller.for_request(deadline_us, 0.0);
        let device = DeviceState {
            planned,
            in_time: controller.in_time(&planned, deadline_us),
            edge_is_configured: self.shared.edges_configured,
            edge_is_connected: !self.shared.edge_is_lost(),
        };
        let version = Some(Arc::clone(&serving.deployment));
        State { role: Role::Device, version, stats, deadline_us, device: Some(device) }
    }

    /// How long a request with the usual deadline would wait for its turn, and that deadline.
    pub(crate) fn wait_us(&self) -> (f64, f64) {
        let deadline_us = self.shared.plan.deadline_us;
        (self.shared.queued_us(Instant::now() + Duration::from_micros(deadline_us as u64)), deadline_us)
    }

    /// What would be planned, were the link at this rate; and all plans there are.
    pub(crate) fn explain(&self, rate_bps: Option<f64>) -> (Arc<Deployment>, Choice, Vec<Explained>) {
        let serving = self.serving();
        let (choice, explained) = serving.lock().explain(rate_bps);
        (Arc::clone(&serving.deployment), choice, explained)
    }

    /// Answers, by the plan in force; by one version alone if the request insists on it. Goes on when its caller does
    /// not: what it learns of the link counts.
    pub(crate) async fn ask(self: &Arc<Self>, request: AskRequest, version: Option<Digest>) -> Answered {
        let device = Arc::clone(self);
        let answering = self.beside_link.spawn(async move { device.answer_and_count(request, version).await });
        answering.await.unwrap_or_else(|_| Err(fault(FaultKind::Internal, "answering the request panicked")))
    }

    async fn answer_and_count(self: &Arc<Self>, request: AskRequest, version: Option<Digest>) -> Answered {
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        let _in_flight = self.metrics.begin();
        let mut span = trace::request(request.trace);
        let answered = self.answer(AskRequest { trace: span.context(), ..request }, version).await;
        span.answered(&answered);
        self.counts.count(&answered);
        self.metrics.answered(&answered);
        answered
    }

    async fn answer(self: &Arc<Self>, request: AskRequest, version: Option<Digest>) -> Answered {
        let arrived = Instant::now();
        // The version that the request stays with.
        let serving = match version {
            None => self.versions.for_request(),
            Some(version) => {
                let served = [Some(self.serving()), self.versions.on_trial()];
                let found = served.into_iter().flatten().find(|serving| serving.model() == version);
                let gone = || fault(FaultKind::UnknownModel, "that version has just gone; another one is in force");
                found.ok_or_else(gone)?
            }
        };
        let (input, asked) = self.read(&request, &serving, arrived)?;
        let answer = self.answer_by(&serving, &request, input.clone(), asked).await;
        serving.tally.count(&serving, &answer);
        let current = self.serving();
        match answer {
            // A version on trial must not cost an answer, except of who insists on it.
            Err(fault) if version.is_none() && trial::is_its_own(&fault) && !Arc::ptr_eq(&serving, &current) => {
                let mut answer = self.answer_by(&current, &request, input, asked).await?;
                answer.degraded = Some(format!("another version failed: {}", fault.message));
                Ok((answer, Arc::clone(&current.deployment)))
            }
            answer => answer.map(|answer| (answer, Arc::clone(&serving.deployment))),
        }
    }

    fn read(&self, request: &AskRequest, serving: &Serving, arrived: Instant) -> Result<(Vec<Tensor>, Asked), Fault> {
        let bad = |message: String| fault(FaultKind::BadRequest, message);
        let name = &serving.deployment.manifest().name;
        if !request.model.is_empty() && request.model != *name {
            return Err(fault(FaultKind::UnknownModel, format!("this device runs '{name}', not '{}'", request.model)));
        }
        let inputs: Vec<&Fact> = serving.deployment.inputs().collect();
        let input = codec::decode_all(&request.input, &request.beside, &inputs).map_err(|e| bad(e.to_string()))?;
        let deadline_us =
            if request.deadline_us == 0 { self.shared.plan.deadline_us } else { request.deadline_us as f64 };
        let accuracy_min = accuracy_min(&serving.deployment, request)?;
        Ok((input, Asked { arrived, deadline_us, accuracy_min, trace: request.trace }))
    }

    async fn answer_by(
        self: &Arc<Self>,
        serving: &Arc<Serving>,
        request: &AskRequest,
        input: Vec<Tensor>,
        asked: Asked,
    ) -> Result<Answer, Fault> {
        let deadline_us = asked.deadline_us;
        let crosses = serving.crosses();
        let mut planning = Span::start("plan", Kind::Internal, asked.trace);
        let (planned, in_time, takes_fastest) = {
            let controller = serving.lock();
            let queued_us = self.shared.queued_us(asked.due());
            // What waits for a worker may take longer than it usually does, and then all behind it would be late by a little.
            let left_us = deadline_us - queued_us - if queued_us > 0.0 { LOCAL_MARGIN_US } else { 0.0 };
            let left_us = if crosses { left_us } else { self.shared.allowed_us(left_us, asked) };
            let mut planned = controller.for_request(left_us, asked.accuracy_min);
            // What is learned from how long it took must not take the wait for a slow plan.
            if !serving.before(&planned.installed.plan).is_empty() {
                planned.predicted_us = planned.predicted_us.map(|us| us + queued_us);
            }
            (planned, controller.in_time(&planned, deadline_us), controller.strategy().falls_back())
        };
        planning.planned(&planned, in_time);
        planning.end();
        let outcome = serving.run(input, asked, planned).await;
        if let Some(why) = serving.deployment.new_quarantine() {
            self.leave(serving, why);
        }
        let mut outcome = outcome?;
        let is_late = planned.predicted_us.is_none_or(|us| us > deadline_us);
        if outcome.degraded.is_none() && takes_fastest && is_late {
            outcome.degraded =
                Some("no plan that is ready is likely to be in time; this is the fastest of them".to_owned());
        }
        serving.to_answer(request, outcome, asked, planned, in_time)
    }
}

impl Shared {
    /// The edge in force.
    fn edge(&self) -> Option<Joined> {
        self.edges.in_force()
    }

    /// What was in force at an edge and here when that was settled last.
    fn settled(&self, address: &str) -> Option<InForce> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner).get(address).copied()
    }

    fn settle(&self, address: &str, now: InForce) {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner).insert(address.to_owned(), now);
    }

    fn edge_is_lost(&self) -> bool {
        self.edge().is_none()
    }

    /// How long segments of a request that is due then will wait for a worker: a device that is asked for more than it
    /// can do must take faster exits, or what waits grows without end.
    fn queued_us(&self, due: Instant) -> f64 {
        self.workers.wait(due).as_secs_f64() * 1e6
    }

    /// What the device alone may use of the time that a request has left: while others are late, less, and ever less, or
    /// it would be busy with what is in time and they would wait on and on.
    fn allowed_us(&self, left_us: f64, asked: Asked) -> f64 {
        let share = |late: Duration| WHILE_OTHERS_ARE_LATE.powf(1.0 + late.as_secs_f64() * 1e6 / asked.deadline_us);
        left_us * self.workers.late_by().map_or(1.0, share)
    }
}

impl Serving {
    fn new(shared: Arc<Shared>, Prepared { bundle, deployment, timings, .. }: Prepared) -> Self {
        let network = deployment.network().clone();
        let doubt = Mutex::new(Doubt::new(&timings, shared.started.elapsed()));
        let controller = Mutex::new(Controller::new(network, shared.plan, timings, first_epoch()));
        let (introducing, tally) = (AtomicBool::new(false), Tally::default());
        Self { shared, deployment, bundle, controller, introducing, tally, doubt }
    }

    fn to_answer(
        &self,
        request: &AskRequest,
        outcome: Outcome,
        asked: Asked,
        planned: Planned,
        in_time: f64,
    ) -> Result<Answer, Fault> {
        let Outcome { output, plan, epoch, degraded, looked_in_us } = outcome;
        let Said { label, scores, outputs } = Said::new(self.deployment.manifest(), &output)?;
        let latency_us = us(asked.arrived.elapsed());
        let controller = self.lock();
        let network = controller.network();
        Ok(Answer {
            id: request.id,
            label,
            scores,
            outputs,
            exit: position(plan.exit),
            cut: position(plan.cut),
            direction: match plan.direction {
                planner::Direction::DeviceFirst => Direction::DeviceFirst,
                planner::Direction::EdgeFirst => Direction::EdgeFirst,
            },
            codec: to_wire(plan.codec),
            placement: match plan.placement(network) {
                planner::Placement::DeviceOnly => Placement::DeviceOnly,
                planner::Placement::Split => Placement::Split,
                planner::Placement::EdgeOnly => Placement::EdgeOnly,
            },
            latency_us,
            deadline_us: asked.deadline_us as u64,
            deadline_met: latency_us as f64 <= asked.deadline_us,
            degraded,
            epoch,
            rate_bps: controller.link().rate_bps().unwrap_or(0.0) as u64,
            predicted_us: looked_in_us.map_or(0.0, |us| planned.predicted_us.unwrap_or(0.0) + us) as u64,
            in_time: in_time as f32,
            model: Some(self.model()),
        })
    }
}

/// What the link serves: a share of the device, since a request outlives the call that brought it.
#[derive(Clone, Debug)]
pub(crate) struct DeviceService(pub(crate) Arc<Device>);

impl Service for DeviceService {
    fn model_name(&self, which: Which<'_>) -> Option<String> {
        let (current, on_trial) = (self.0.serving(), self.0.versions.on_trial());
        // All of a device's versions are of one model.
        let is_here =
            |digest: Digest| current.model() == digest || on_trial.is_some_and(|serving| serving.model() == digest);
        let name = current.deployment.manifest().name.clone();
        match which {
            Which::Digest(digest) => is_here(digest).then_some(name),
            Which::Name(wanted) => (wanted.is_empty() || wanted == name).then_some(name),
        }
    }

    fn turned_away(&self, address: SocketAddr, why: &str) {
        tracing::warn!(%address, why, "turned away");
    }

    fn describe(&self, reply: Reply<Description>) {
        reply.send(Ok(Description { models: vec![crate::host::describe(&self.0.serving().deployment)] }));
    }

    fn ask(&self, request: AskRequest, reply: Reply<Answer>) {
        let device = Arc::clone(&self.0);
        self.0.beside_link.spawn(async move {
            reply.send(device.answer_and_count(request, None).await.map(|(answer, _)| answer));
        });
    }

    fn profile(&self, model: Digest, reply: Reply<ModelProfile>) {
        let _ = model;
        reply.send(Err(fault(FaultKind::Unsupported, "devices keep their profile to themselves; ask the edge")));
    }

    fn sign(&self, model: Digest, signatures: Vec<Signature>, reply: Reply<()>) {
        let digest = edgent_bundle::Digest(model.0);
        self.0.shelf.answer(&self.0.shared.runtime, reply, move |shelf| shelf.sign(digest, &signatures));
    }

    fn offer(&self, manifest: Bytes, reply: Reply<Vec<BlobName>>) {
        self.0.shelf.answer(&self.0.shared.runtime, reply, move |shelf| shelf.offer(&manifest));
    }

    fn offer_piece(&self, manifest: Digest, total: u64, offset: u64, bytes: Bytes, reply: Reply<Vec<BlobName>>) {
        let manifest = edgent_bundle::Digest(manifest.0);
        self.0
            .shelf
            .answer(&self.0.shared.runtime, reply, move |shelf| shelf.offer_piece(manifest, total, offset, &bytes));
    }

    fn put_blob(&self, digest: Digest, offset: u64, bytes: Bytes, reply: Reply<()>) {
        self.0.shelf.answer(&self.0.shared.runtime, reply, move |shelf| {
            shelf.put(edgent_bundle::Digest(digest.0), offset, &bytes)
        });
    }

    fn install(&self, model: Digest, trial: Option<Trial>, reply: Reply<Version>) {
        let device = Arc::clone(&self.0);
        self.0
            .shared
            .runtime
            .spawn(async move { reply.send(device.install(edgent_bundle::Digest(model.0), trial).await) });
    }

    fn rollback(&self, model: String, reply: Reply<Version>) {
        let device = Arc::clone(&self.0);
        self.0.shared.runtime.spawn(async move { reply.send(device.rollback(model).await) });
    }

    fn pin(&self, plan: Option<Plan>, reply: Reply<Plan>) {
        let device = Arc::clone(&self.0);
        self.0.shared.runtime.spawn(async move { reply.send(device.pin(plan).await) });
    }

    fn versions(&self, reply: Reply<Vec<Version>>) {
        let on_trial = self.0.versions.on_trial().map(|serving| serving.model());
        self.0.shelf.answer(&self.0.shared.runtime, reply, move |shelf| {
            let mut versions = shelf.versions()?;
            versions.iter_mut().for_each(|version| version.on_trial = Some(version.digest) == on_trial);
            Ok(versions)
        });
    }

    fn stats(&self, reply: Reply<Stats>) {
        reply.send(Ok(self.0.state().told(&self.0.metrics)));
    }

    fn edges(&self, reply: Reply<Vec<EdgeState>>) {
        reply.send(Ok(self.0.edge_states()));
    }
}

impl Counts {
    fn count(&self, answer: &Answered) {
        let add = |counter: &AtomicU64, condition: bool| counter.fetch_add(u64::from(condition), Ordering::Relaxed);
        add(&self.answered, answer.is_ok());
        add(&self.errors, answer.is_err());
        if let Ok((answer, _)) = answer {
            add(&self.deadline_met, answer.deadline_met);
            add(&self.degraded, answer.degraded.is_some());
        }
    }
}

/// Epochs of different devices, and of one device before and after a restart, must not be the same: an
/// edge knows plans by them. Below 2^53, so that they survive JSON.
fn first_epoch() -> u64 {
    (fastrand::u64(..) >> 40) << 24
}

fn position(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}
