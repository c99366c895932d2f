//! The device: has the data and the deadline, and answers.
//!
//! A request follows the plan in force. While its activation is on the way, the device watches the
//! clock: at the last moment at which a local exit still fits, it starts that exit, and the first
//! good answer wins. A lost edge is the same case, only sooner.
//!
//! In force is one version of a model, [`Serving`]; each request stays with the version that it began with.

mod connection;
mod pin;
mod serving;
mod slot;
mod swap;
mod trial;

use crate::codec::to_wire;
use crate::edge::{fault, us};
use crate::shelf::{Prepared, Shelf};
use crate::{Workers, codec, confidence};
use bytes::Bytes;
use edgent_link::{
    Answer, AskRequest, BlobName, Client, Codec, CodecTime, Description, Digest, Direction, Fault, FaultKind, Hello,
    Limits, Link, ModelProfile, Placement, Plan, Reply, Service, Signature, Stats, Trial, Version, Which,
};
use edgent_nn::{Fact, Tensor};
use edgent_planner::{self as planner, Action, Controller, Event, Planned};
use serving::{Asked, Outcome, Serving, logits};
use slot::Slot;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use trial::Tally;

/// How often the controller is told that time passed.
const TICK: Duration = Duration::from_millis(100);
const RECONNECT_AFTER: Duration = Duration::from_millis(100);
const RECONNECT_AFTER_MAX: Duration = Duration::from_secs(3);
/// A call to the edge that takes longer than this is given up.
const CALL_TIME_MAX: Duration = Duration::from_secs(5);
/// Strategies without a fallback wait this long for the edge before the device answers all the same.
const WAIT_MAX: Duration = CALL_TIME_MAX;
/// Kept in hand when the last moment for a local exit is computed.
const LOCAL_MARGIN_US: f64 = 3_000.0;
const ACTIONS_WAITING_MAX: usize = 64;
const SMALL_PROBES: usize = 3;

/// Why an answer is the device's own although an edge was asked.
pub const LATE: &str = "the edge's answer was not there in time";

/// What a device is told at its start.
#[derive(Clone, Debug)]
pub struct DeviceSettings {
    /// Addresses of edges; the first that answers is used.
    pub edges: Vec<String>,
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
    runtime: Handle,
    counts: Counts,
}

/// What all versions of the model share.
#[derive(Debug)]
struct Shared {
    actions: mpsc::Sender<(Arc<Serving>, Action)>,
    edge: Mutex<Option<Joined>>,
    edges_configured: bool,
    /// What was in force when each edge was last looked at, by its address.
    looked: Mutex<HashMap<String, Looked>>,
    /// Activations that were sent and not answered yet, and when the device stops waiting for each.
    in_flight: Mutex<HashMap<u64, Instant>>,
    next_id: AtomicU64,
    workers: Workers,
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

/// An edge that told its profile.
#[derive(Clone, Debug)]
struct Joined {
    address: String,
    client: Client,
    /// What is sent there is written in one of these.
    codecs: Vec<CodecTime>,
}

/// What is in force at an edge, and here.
#[derive(Clone, Copy, Debug)]
struct Looked {
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
        settings: DeviceSettings,
    ) -> Arc<Self> {
        let (actions, waiting) = mpsc::channel(ACTIONS_WAITING_MAX);
        let shared = Arc::new(Shared {
            actions,
            edge: Mutex::default(),
            edges_configured: !settings.edges.is_empty(),
            looked: Mutex::default(),
            in_flight: Mutex::default(),
            next_id: AtomicU64::new(0),
            workers,
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
            runtime: Handle::current(),
            counts: Counts::default(),
        });
        tokio::spawn(Arc::clone(&device).keep_connected(link, settings, waiting));
        device
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

    async fn answer(self: &Arc<Self>, request: AskRequest) -> Result<Answer, Fault> {
        let arrived = Instant::now();
        // The version that the request stays with.
        let serving = self.versions.for_request();
        let (input, asked) = self.read(&request, &serving, arrived)?;
        let answer = self.answer_by(&serving, &request, input.clone(), asked).await;
        serving.tally.count(&serving, &answer);
        let current = self.serving();
        match answer {
            // A version on trial must not cost an answer.
            Err(fault) if trial::is_its_own(&fault) && !Arc::ptr_eq(&serving, &current) => {
                let mut answer = self.answer_by(&current, &request, input, asked).await?;
                answer.degraded = Some(format!("another version failed: {}", fault.message));
                Ok(answer)
            }
            answer => answer,
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
        Ok((input, Asked { arrived, deadline_us }))
    }

    async fn answer_by(
        self: &Arc<Self>,
        serving: &Arc<Serving>,
        request: &AskRequest,
        input: Vec<Tensor>,
        asked: Asked,
    ) -> Result<Answer, Fault> {
        let deadline_us = asked.deadline_us;
        let (planned, in_time, takes_fastest) = {
            let controller = serving.lock();
            let planned = controller.for_request(deadline_us - self.shared.queued_us(asked.due()));
            (planned, controller.in_time(&planned, deadline_us), controller.strategy().falls_back())
        };
        let outcome = serving.run(input, asked, planned).await;
        if let Some(why) = serving.deployment.new_quarantine() {
            self.leave(serving, why);
        }
        let mut outcome = outcome?;
        let is_late = planned.predicted_us.is_none_or(|us| us > deadline_us);
        if outcome.degraded.is_none() && takes_fastest && is_late {
            outcome.degraded = Some("no plan is likely to be in time; this is the fastest".to_owned());
        }
        serving.to_answer(request, outcome, asked, planned, in_time)
    }
}

impl Shared {
    fn edge(&self) -> Option<Joined> {
        self.edge.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_edge(&self, edge: Option<Joined>) {
        *self.edge.lock().unwrap_or_else(PoisonError::into_inner) = edge;
    }

    /// Remembers what is in force at an edge and here, and tells what was so before.
    fn looked(&self, address: &str, now: Looked) -> Option<Looked> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner).insert(address.to_owned(), now)
    }

    fn edge_is_lost(&self) -> bool {
        self.edge.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// How long segments of a request that is due then will wait for a worker: a device that is asked for more than it
    /// can do must take faster exits, or what waits grows without end.
    fn queued_us(&self, due: Instant) -> f64 {
        self.workers.wait(due).as_secs_f64() * 1e6
    }

    /// Whether something that the device no longer waits for is still on its way: what is sent now
    /// would have to wait behind it.
    fn link_is_clogged(&self) -> bool {
        let in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        in_flight.values().any(|last_moment| *last_moment <= Instant::now())
    }
}

impl Serving {
    fn new(shared: Arc<Shared>, Prepared { bundle, deployment, timings }: Prepared) -> Self {
        let network = deployment.network().clone();
        let controller = Mutex::new(Controller::new(network, shared.plan, timings, first_epoch()));
        let (deployment, introducing, tally) = (Arc::new(deployment), AtomicBool::new(false), Tally::default());
        Self { shared, deployment, bundle, controller, introducing, tally }
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
        let (scores, outputs) = if self.deployment.manifest().classes.is_empty() {
            (Vec::new(), output.iter().map(|output| codec::encode(output, Codec::Raw)).collect())
        } else {
            let logits = logits(&output).ok_or_else(|| fault(FaultKind::Internal, "the exit's output is not f32"))?;
            (confidence::softmax(logits), Vec::new())
        };
        let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(index, _)| index);
        let latency_us = us(asked.arrived.elapsed());
        let controller = self.lock();
        let network = controller.network();
        Ok(Answer {
            id: request.id,
            label: u32::try_from(best).unwrap_or(u32::MAX),
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
        self.0.counts.requests.fetch_add(1, Ordering::Relaxed);
        let device = Arc::clone(&self.0);
        self.0.runtime.spawn(async move {
            let answer = device.answer(request).await;
            device.counts.count(&answer);
            reply.send(answer);
        });
    }

    fn profile(&self, model: Digest, reply: Reply<ModelProfile>) {
        let _ = model;
        reply.send(Err(fault(FaultKind::Unsupported, "devices keep their profile to themselves; ask the edge")));
    }

    fn sign(&self, model: Digest, signatures: Vec<Signature>, reply: Reply<()>) {
        let digest = edgent_bundle::Digest(model.0);
        self.0.shelf.answer(&self.0.runtime, reply, move |shelf| shelf.sign(digest, &signatures));
    }

    fn offer(&self, manifest: Bytes, reply: Reply<Vec<BlobName>>) {
        self.0.shelf.answer(&self.0.runtime, reply, move |shelf| shelf.offer(&manifest));
    }

    fn offer_piece(&self, manifest: Digest, total: u64, offset: u64, bytes: Bytes, reply: Reply<Vec<BlobName>>) {
        let manifest = edgent_bundle::Digest(manifest.0);
        self.0.shelf.answer(&self.0.runtime, reply, move |shelf| shelf.offer_piece(manifest, total, offset, &bytes));
    }

    fn put_blob(&self, digest: Digest, offset: u64, bytes: Bytes, reply: Reply<()>) {
        self.0
            .shelf
            .answer(&self.0.runtime, reply, move |shelf| shelf.put(edgent_bundle::Digest(digest.0), offset, &bytes));
    }

    fn install(&self, model: Digest, trial: Option<Trial>, reply: Reply<Version>) {
        let device = Arc::clone(&self.0);
        self.0.runtime.spawn(async move { reply.send(device.install(edgent_bundle::Digest(model.0), trial).await) });
    }

    fn rollback(&self, model: String, reply: Reply<Version>) {
        let device = Arc::clone(&self.0);
        self.0.runtime.spawn(async move { reply.send(device.rollback(model).await) });
    }

    fn pin(&self, plan: Option<Plan>, reply: Reply<Plan>) {
        let device = Arc::clone(&self.0);
        self.0.runtime.spawn(async move { reply.send(device.pin(plan).await) });
    }

    fn versions(&self, reply: Reply<Vec<Version>>) {
        let on_trial = self.0.versions.on_trial().map(|serving| serving.model());
        self.0.shelf.answer(&self.0.runtime, reply, move |shelf| {
            let mut versions = shelf.versions()?;
            versions.iter_mut().for_each(|version| version.on_trial = Some(version.digest) == on_trial);
            Ok(versions)
        });
    }

    fn stats(&self, reply: Reply<Stats>) {
        let serving = self.0.serving();
        let controller = serving.lock();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        reply.send(Ok(Stats {
            uptime_ms: us(self.0.shared.started.elapsed()) / 1_000,
            requests: count(&self.0.counts.requests),
            answered: count(&self.0.counts.answered),
            errors: count(&self.0.counts.errors),
            deadline_met: count(&self.0.counts.deadline_met),
            degraded: count(&self.0.counts.degraded),
            plan_changes: controller.plan_changes(),
            rate_bps: controller.link().rate_bps().unwrap_or(0.0) as u64,
            rtt_us: controller.link().rtt_us() as u64,
            tensor_bytes_copied: edgent_nn::bytes_copied(),
            faults: crate::deployment::faults(),
            quarantined: self.0.shelf.quarantined().len() as u64,
            ..Stats::default()
        }));
    }
}

impl Counts {
    fn count(&self, answer: &Result<Answer, Fault>) {
        let add = |counter: &AtomicU64, condition: bool| counter.fetch_add(u64::from(condition), Ordering::Relaxed);
        add(&self.answered, answer.is_ok());
        add(&self.errors, answer.is_err());
        if let Ok(answer) = answer {
            add(&self.deadline_met, answer.deadline_met);
            add(&self.degraded, answer.degraded.is_some());
        }
    }
}

/// Epochs of different devices, and of one device before and after a restart, must not be the same: an
/// edge knows plans by them. Below 2^53, so that they survive JSON.
fn first_epoch() -> u64 {
    (RandomState::new().build_hasher().finish() >> 40) << 24
}

fn position(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}
