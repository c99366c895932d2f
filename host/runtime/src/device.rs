//! The device: has the data and the deadline, and answers.
//!
//! A request follows the plan in force. While its activation is on the way, the device watches the
//! clock: at the last moment at which a local exit still fits, it starts that exit, and the first
//! good answer wins. A lost edge is the same case, only sooner.

use crate::codec::{to_wire, wire_bytes};
use crate::edge::{fault, us};
use crate::{Deployment, Workers, codec, confidence};
use edgent_link::{
    Activation, Answer, AskRequest, Client, Codec, CodecTime, Description, Digest, Direction, Fault, FaultKind, Hello,
    InferReply, InferRequest, Limits, Link, LinkError, ModelProfile, Placement, Plan, Reply, Service, Stats,
};
use edgent_nn::{Fact, Stop, Tensor};
use edgent_planner::{self as planner, Action, Controller, Event, Exchange, Installed, Planned, Timings};
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

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
    deployment: Arc<Deployment>,
    controller: Mutex<Controller>,
    actions: mpsc::Sender<Action>,
    edge: Mutex<Option<Joined>>,
    edges_configured: bool,
    /// How long segments lately waited for a worker: a device that is asked for more than it can do must
    /// take faster exits, or what waits grows without end.
    queue_us: AtomicU64,
    /// Activations that were sent and not answered yet, and when the device stops waiting for each.
    in_flight: Mutex<HashMap<u64, Instant>>,
    workers: Workers,
    runtime: Handle,
    deadline_us: f64,
    leave_when_sure: bool,
    started: Instant,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    next_id: AtomicU64,
    requests: AtomicU64,
    answered: AtomicU64,
    errors: AtomicU64,
    deadline_met: AtomicU64,
    degraded: AtomicU64,
}

/// An exit's output, and how it came about.
struct Outcome {
    output: Vec<Tensor>,
    plan: planner::Plan,
    epoch: u64,
    degraded: Option<String>,
    /// If it is as planned: how much of its time went into looking in at other exits, which is not predicted.
    looked_in_us: Option<f64>,
}

/// What the device's first segments led to.
enum Part {
    /// An exit on the way is sure.
    Sure(Outcome),
    /// The activation behind them, and how long other exits were looked in at on the way.
    Activation(Vec<Tensor>, f64),
}

/// An edge that told its profile.
#[derive(Clone, Debug)]
struct Joined {
    client: Client,
    /// What is sent there is written in one of these.
    codecs: Vec<CodecTime>,
}

/// One request on its way through the device.
#[derive(Clone, Copy)]
struct Asked {
    arrived: Instant,
    deadline_us: f64,
}

impl Asked {
    fn elapsed_us(&self) -> f64 {
        self.arrived.elapsed().as_secs_f64() * 1e6
    }

    fn remaining_us(&self) -> f64 {
        self.deadline_us - self.elapsed_us()
    }
}

/// A request with its plan.
#[derive(Clone, Copy)]
struct Trip {
    asked: Asked,
    planned: Planned,
    /// Until then the plan's answer is waited for.
    last_moment: Instant,
}

impl Trip {
    fn is_late(&self) -> bool {
        Instant::now() > self.last_moment
    }
}

impl Device {
    /// Starts answering, alone at first, and looks for an edge in the background.
    pub fn start(
        deployment: Deployment,
        timings: Timings,
        workers: Workers,
        link: Link,
        settings: DeviceSettings,
    ) -> Arc<Self> {
        let (actions, waiting) = mpsc::channel(ACTIONS_WAITING_MAX);
        let device = Arc::new(Self {
            controller: Mutex::new(Controller::new(
                deployment.network().clone(),
                settings.plan,
                timings,
                first_epoch(),
            )),
            deployment: Arc::new(deployment),
            actions,
            edge: Mutex::default(),
            edges_configured: !settings.edges.is_empty(),
            queue_us: AtomicU64::new(0),
            in_flight: Mutex::default(),
            workers,
            runtime: Handle::current(),
            deadline_us: settings.plan.deadline_us,
            leave_when_sure: settings.leave_when_sure,
            started: Instant::now(),
            counts: Counts::default(),
        });
        tokio::spawn(Arc::clone(&device).keep_connected(link, settings, waiting));
        device
    }

    async fn answer(self: Arc<Self>, request: AskRequest) -> Result<Answer, Fault> {
        let arrived = Instant::now();
        let bad = |message: String| fault(FaultKind::BadRequest, message);
        let name = &self.deployment.manifest().name;
        if !request.model.is_empty() && request.model != *name {
            return Err(fault(FaultKind::UnknownModel, format!("this device runs '{name}', not '{}'", request.model)));
        }
        let input = codec::decode(&request.input, self.deployment.input()).map_err(|e| bad(e.to_string()))?;
        let deadline_us = if request.deadline_us == 0 { self.deadline_us } else { request.deadline_us as f64 };
        let asked = Asked { arrived, deadline_us };
        let (planned, in_time, takes_fastest) = {
            let controller = self.lock();
            let planned = controller.for_request(deadline_us - self.queued_us());
            (planned, controller.in_time(&planned, deadline_us), controller.strategy().falls_back())
        };
        let mut outcome = self.run(vec![input], asked, planned).await?;
        let is_late = planned.predicted_us.is_none_or(|us| us > deadline_us);
        if outcome.degraded.is_none() && takes_fastest && is_late {
            outcome.degraded = Some("no plan is likely to be in time; this is the fastest".to_owned());
        }
        self.to_answer(&request, outcome, asked, planned, in_time)
    }

    async fn run(self: &Arc<Self>, input: Vec<Tensor>, asked: Asked, planned: Planned) -> Result<Outcome, Fault> {
        let Installed { plan, epoch } = planned.installed;
        let network = self.deployment.network();
        if plan.placement(network) == planner::Placement::DeviceOnly {
            let degraded = (self.edges_configured && self.edge_is_lost()).then(|| "no edge is connected".to_owned());
            let trip = Trip { asked, planned, last_moment: asked.arrived };
            return Ok(match self.first_segments(trip, input).await? {
                Part::Sure(outcome) => Outcome { degraded, ..outcome },
                Part::Activation(output, looked_in_us) => {
                    self.answered(trip, looked_in_us);
                    Outcome { output, plan, epoch, degraded, looked_in_us: Some(looked_in_us) }
                }
            });
        }
        let edge = self.edge.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(edge) = edge else {
            return self.alone(input, asked, "no edge is connected").await;
        };
        let falls_back = self.lock().strategy().falls_back();
        if falls_back && self.link_is_clogged() {
            return self.alone(input, asked, "an earlier activation is still on the link").await;
        }
        let last_moment = if falls_back { self.last_moment(asked) } else { asked.arrived + WAIT_MAX };
        // First good answer wins: the plan's, or from the last moment on, the device's own.
        let trip = Trip { asked, planned, last_moment };
        let together = self.together(&edge, trip, input.clone());
        tokio::pin!(together);
        tokio::select! {
            outcome = &mut together => match outcome {
                Ok(outcome) => {
                    if let Some(looked_in_us) = outcome.looked_in_us {
                        self.answered(trip, looked_in_us);
                    }
                    return Ok(outcome);
                }
                Err(fault) => return self.alone(input, asked, &fault.message).await,
            },
            () = tokio::time::sleep_until(last_moment.into()) => {}
        };
        let local = self.alone(input, asked, LATE);
        tokio::pin!(local);
        tokio::select! {
            outcome = &mut together => match outcome {
                Ok(outcome) => Ok(outcome),
                Err(_) => local.await,
            },
            outcome = &mut local => match outcome {
                Ok(outcome) => Ok(outcome),
                Err(_) => together.await,
            },
        }
    }

    /// When a local exit must start to be in time. Where none fits, the edge is the only chance until the
    /// deadline has passed.
    fn last_moment(&self, asked: Asked) -> Instant {
        let local = self.lock().local(asked.deadline_us);
        let local_us = if local.fits { local.candidate.cost.total_us() + LOCAL_MARGIN_US } else { 0.0 };
        asked.arrived + Duration::from_secs_f64((asked.deadline_us - local_us).max(0.0) / 1e6)
    }

    /// The best exit that the device can still reach alone; if none is in time, the fastest.
    async fn alone(&self, input: Vec<Tensor>, asked: Asked, why: &str) -> Result<Outcome, Fault> {
        let (local, epoch) = {
            let controller = self.lock();
            (controller.local(asked.remaining_us() - self.queued_us()), controller.installed().epoch)
        };
        let plan = local.candidate.plan;
        let output = self.segments(plan.exit, 0..plan.cut, input).await?;
        let late = if local.fits { "" } else { "; no exit fits the time that is left, this is the fastest" };
        Ok(Outcome { output, plan, epoch, degraded: Some(format!("{why}{late}")), looked_in_us: None })
    }

    /// Tells the controller how long a plan took, but for what looking in at other exits took.
    fn answered(&self, trip: Trip, looked_in_us: f64) {
        if let Some(predicted_us) = trip.planned.predicted_us {
            let plan = trip.planned.installed.plan;
            self.tell(Event::Answered { plan, predicted_us, actual_us: trip.asked.elapsed_us() - looked_in_us });
        }
    }

    /// A plan was late, or given up: it took at least as long as it was waited for.
    fn missed(&self, trip: Trip) {
        if trip.planned.predicted_us.is_some_and(|us| us < trip.asked.elapsed_us()) {
            self.answered(trip, 0.0);
        }
    }

    /// As the plan says: one part here, one on the edge.
    async fn together(self: &Arc<Self>, edge: &Joined, trip: Trip, input: Vec<Tensor>) -> Result<Outcome, Fault> {
        let Installed { plan, epoch } = trip.planned.installed;
        let end = self.deployment.network().exits()[plan.exit].path.len();
        let (there, here_last, up, down) = match plan.direction {
            planner::Direction::DeviceFirst => (plan.cut..end, end..end, to_wire(plan.codec), Codec::Raw),
            planner::Direction::EdgeFirst => (0..plan.cut, plan.cut..end, Codec::Raw, to_wire(plan.codec)),
        };
        // The plan may be of the edge before this one.
        if !edge.codecs.iter().any(|time| time.codec == to_wire(plan.codec)) {
            let message = format!("the edge takes no {}", plan.codec.name());
            return Err(fault(FaultKind::Unsupported, message));
        }
        let (activation, looked_in_us) = match self.first_segments(trip, input).await? {
            Part::Sure(outcome) => return Ok(outcome),
            Part::Activation(activation, looked_in_us) => (activation, looked_in_us),
        };
        // Who waits however long it takes must not have the edge give up.
        let falls_back = self.lock().strategy().falls_back();
        let budget_us = if falls_back { trip.asked.remaining_us().max(0.0) } else { WAIT_MAX.as_secs_f64() * 1e6 };
        let (activation, beside) = self.encode(activation, up).await?;
        let request = InferRequest {
            id: self.counts.next_id.fetch_add(1, Ordering::Relaxed),
            model: self.model(),
            epoch,
            from_segment: position(there.start),
            to_segment: position(there.end),
            reply_codec: down,
            remaining_budget_us: budget_us as u64,
            activation,
            beside,
        };
        let reply = self.exchange(&edge.client, trip, there, request).await?;
        let output = self.decode(reply, plan.exit, if here_last.is_empty() { end } else { plan.cut }).await?;
        let output = self.segments(plan.exit, here_last, output).await?;
        Ok(Outcome { output, plan, epoch, degraded: None, looked_in_us: Some(looked_in_us) })
    }

    /// Those of the plan's segments that run here before anything is sent. Exits that branch off on the way
    /// are looked in at as long as the plan's exit stays in time all the same.
    async fn first_segments(&self, trip: Trip, input: Vec<Tensor>) -> Result<Part, Fault> {
        let Installed { plan, epoch } = trip.planned.installed;
        let cut = if plan.direction == planner::Direction::DeviceFirst { plan.cut } else { 0 };
        let (mut at, mut activation, mut looked_in_us) = (0, input, 0.0);
        if self.leave_when_sure {
            let manifest = self.deployment.manifest();
            // Looking in must not make the plan's exit late, not even where that takes its time.
            let slow_us = trip.planned.predicted_us.map(|us| us * trip.planned.margin);
            // Where an edge is waited for, only until a local exit must start.
            let crosses = plan.placement(self.deployment.network()) != planner::Placement::DeviceOnly;
            let waiting_us = trip.last_moment.saturating_duration_since(Instant::now()).as_secs_f64() * 1e6;
            let left_us = if crosses { waiting_us } else { trip.asked.remaining_us() };
            let mut spare_us = slow_us.map_or(0.0, |us| left_us - us);
            for passed in confidence::passed(manifest, plan.exit, cut) {
                let branch = &manifest.exits[passed.exit].path[passed.after..];
                let branch_us = self.lock().device_us(branch);
                if branch_us > spare_us {
                    continue;
                }
                activation = self.segments(plan.exit, at..passed.after, activation).await?;
                at = passed.after;
                let end = at + branch.len();
                let since = Instant::now();
                let output = self.segments(passed.exit, at..end, activation.clone()).await;
                let took_us = since.elapsed().as_secs_f64() * 1e6;
                (spare_us, looked_in_us) = (spare_us - took_us, looked_in_us + took_us);
                // Looking in is a favour: if it fails, the way goes on.
                let Ok(output) = output else { continue };
                let is_sure =
                    logits(&output).is_some_and(|logits| f64::from(confidence::confidence(logits)) >= passed.sure_at);
                if is_sure {
                    let plan = planner::Plan::device_only(self.deployment.network(), passed.exit);
                    return Ok(Part::Sure(Outcome { output, plan, epoch, degraded: None, looked_in_us: None }));
                }
            }
        }
        Ok(Part::Activation(self.segments(plan.exit, at..cut, activation).await?, looked_in_us))
    }

    /// Sends an activation and gets one back. A caller that no longer waits does not end the exchange:
    /// nothing tells more of the link than how long it took after all.
    async fn exchange(
        self: &Arc<Self>,
        edge: &Client,
        trip: Trip,
        there: Range<usize>,
        request: InferRequest,
    ) -> Result<InferReply, Fault> {
        let waiting = Waiting {
            device: self,
            bytes: wire_bytes(&request.activation, &request.beside) + codec::CALL_BYTES,
            since: Instant::now(),
            finished: false,
        };
        let in_flight = InFlight::new(Arc::clone(self), request.id, trip.last_moment);
        let edge = edge.clone();
        let exchanged =
            tokio::spawn(async move { in_flight.device.exchange_and_learn(&edge, trip, there, request).await });
        let reply = exchanged.await;
        waiting.finish();
        reply.map_err(|_| fault(FaultKind::Internal, "the exchange with the edge died"))?
    }

    async fn exchange_and_learn(
        &self,
        edge: &Client,
        trip: Trip,
        there: Range<usize>,
        request: InferRequest,
    ) -> Result<InferReply, Fault> {
        let up_bytes = wire_bytes(&request.activation, &request.beside) + codec::CALL_BYTES;
        let budget_us = request.remaining_budget_us as f64;
        let since = Instant::now();
        let reply = tokio::time::timeout(CALL_TIME_MAX, edge.infer(request)).await;
        let elapsed_us = since.elapsed().as_secs_f64() * 1e6;
        let learn = |bytes: u64, busy_us: f64| {
            if trip.is_late() {
                // The link was no faster than this; no second exchange need confirm it.
                self.tell(Event::Waiting { bytes, waited_us: elapsed_us, busy_us: Some(busy_us) });
            }
            self.tell(Event::Exchanged(Exchange { bytes, elapsed_us, busy_us }));
        };
        match reply {
            Err(_) => {
                self.tell(Event::Waiting { bytes: up_bytes, waited_us: elapsed_us, busy_us: None });
                self.missed(trip);
                Err(fault(FaultKind::TimeUp, "the edge did not answer"))
            }
            Ok(Err(LinkError::Fault(fault))) => {
                match fault.kind {
                    FaultKind::TimeUp => {
                        // The edge had the activation for all of the time that was left when it was sent.
                        self.tell(Event::EdgeQueued { us: budget_us });
                        learn(up_bytes, budget_us);
                        self.missed(trip);
                    }
                    kind => {
                        learn(up_bytes, 0.0);
                        if kind == FaultKind::UnknownEpoch {
                            self.tell(Event::Forgotten);
                        }
                    }
                }
                Err(fault)
            }
            Ok(Err(other)) => Err(fault(FaultKind::Internal, other.to_string())),
            Ok(Ok(reply)) => {
                let path = &self.deployment.network().exits()[trip.planned.installed.plan.exit].path[there];
                for (segment, us) in path.iter().zip(&reply.segment_us) {
                    self.tell(Event::EdgeRan { segment: *segment, us: f64::from(*us) });
                }
                self.tell(Event::EdgeQueued { us: reply.queue_us as f64 });
                let worked_us: f64 = reply.segment_us.iter().map(|us| f64::from(*us)).sum();
                let busy_us = worked_us + reply.queue_us as f64 + reply.codec_us as f64;
                learn(up_bytes + wire_bytes(&reply.activation, &reply.beside) + codec::RETURN_BYTES, busy_us);
                if trip.is_late() {
                    self.missed(trip);
                }
                Ok(reply)
            }
        }
    }

    async fn segments(&self, exit: usize, range: Range<usize>, input: Vec<Tensor>) -> Result<Vec<Tensor>, Fault> {
        if range.is_empty() {
            return Ok(input);
        }
        let ran = self.on_worker(move |deployment, stop| deployment.run(exit, range, input, stop)).await?;
        let ran = ran.map_err(|e| fault(FaultKind::SegmentFailed, e.to_string()))?;
        for (segment, us) in ran.segments_us {
            self.tell(Event::DeviceRan { segment, us });
        }
        Ok(ran.output)
    }

    /// Writes what crosses to the edge. As a worker's job: a picture takes a while, more so on a slow device.
    async fn encode(&self, crossing: Vec<Tensor>, codec: Codec) -> Result<(Activation, Vec<Activation>), Fault> {
        let nothing = || fault(FaultKind::Internal, "nothing crosses the cut");
        if codec == Codec::Raw {
            return codec::encode_all(&crossing, codec).ok_or_else(nothing);
        }
        let coding = move |deployment: &Deployment, stop: &Stop| {
            let facts: Vec<Fact> = crossing.iter().map(Tensor::fact).collect();
            let us = coding_us(&facts.iter().collect::<Vec<_>>(), codec, |time| time.encode_us_per_mib);
            deployment.pretend_slow(us, stop);
            codec::encode_all(&crossing, codec)
        };
        self.on_worker(coding).await?.ok_or_else(nothing)
    }

    /// Reads the edge's reply, which must be what is at that cut. An answer is raw and is read here: the workers
    /// may be busy with the local exit that would have replaced it.
    async fn decode(&self, reply: InferReply, exit: usize, cut: usize) -> Result<Vec<Tensor>, Fault> {
        let codec = reply.activation.codec;
        let read = move |expected: &[&Fact]| {
            let read = codec::decode_all(&reply.activation, &reply.beside, expected);
            read.map_err(|e| fault(FaultKind::BadRequest, format!("the edge's answer: {e}")))
        };
        if codec == Codec::Raw {
            return read(&self.deployment.crossing(exit, cut));
        }
        let decoding = move |deployment: &Deployment, stop: &Stop| {
            let expected = deployment.crossing(exit, cut);
            deployment.pretend_slow(coding_us(&expected, codec, |time| time.decode_us_per_mib), stop);
            read(&expected)
        };
        self.on_worker(decoding).await?
    }

    /// Has a worker do something.
    async fn on_worker<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Deployment, &Stop) -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let (done, result) = oneshot::channel();
        let deployment = Arc::clone(&self.deployment);
        let stop = Stop::never();
        // A request that was answered otherwise meanwhile must not hold up those behind it.
        let _unwanted = CancelOnDrop(stop.clone());
        let submitted = Instant::now();
        let job = move || {
            let queued = submitted.elapsed();
            drop(done.send((work(&deployment, &stop), queued)));
        };
        self.workers.submit(job).map_err(|busy| fault(FaultKind::Busy, busy.to_string()))?;
        let (result, queued) = result.await.map_err(|_| fault(FaultKind::Internal, "the device's worker died"))?;
        let before = self.queue_us.load(Ordering::Relaxed);
        self.queue_us.store((before * 3 + us(queued)) / 4, Ordering::Relaxed);
        Ok(result)
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
        let scores = confidence::softmax(
            logits(&output).ok_or_else(|| fault(FaultKind::Internal, "the exit's output is not f32"))?,
        );
        let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(index, _)| index);
        let latency_us = us(asked.arrived.elapsed());
        let controller = self.lock();
        let network = controller.network();
        Ok(Answer {
            id: request.id,
            label: u32::try_from(best).unwrap_or(u32::MAX),
            scores,
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
        })
    }

    /// Connects, follows the controller's wishes while connected, and connects again.
    async fn keep_connected(
        self: Arc<Self>,
        link: Link,
        settings: DeviceSettings,
        mut actions: mpsc::Receiver<Action>,
    ) {
        let mut wait = RECONNECT_AFTER;
        while !settings.edges.is_empty() {
            for address in &settings.edges {
                match self.join(&link, address, &settings).await {
                    Ok(client) => {
                        tracing::info!(%address, "the edge is connected");
                        wait = RECONNECT_AFTER;
                        let why = self.follow(&client, &mut actions).await;
                        tracing::warn!(%address, %why, "the edge is lost; answering alone");
                        *self.edge.lock().unwrap_or_else(PoisonError::into_inner) = None;
                        self.tell(Event::EdgeLost);
                    }
                    Err(error) => tracing::warn!(%address, %error, "no edge; trying again in {} ms", wait.as_millis()),
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RECONNECT_AFTER_MAX);
        }
    }

    async fn join(&self, link: &Link, address: &str, settings: &DeviceSettings) -> Result<Client, LinkError> {
        let client = link.connect(address, settings.hello.clone(), settings.limits).await?;
        let profile = client.profile(self.model()).await?;
        for _ in 0..SMALL_PROBES {
            self.probe(&client, 0).await?;
        }
        let mut segments_us = vec![f64::INFINITY; self.deployment.network().segments()];
        for time in &profile.segments {
            if let Some(us) = segments_us.get_mut(usize::from(time.segment)) {
                *us = time.p50_us;
            }
        }
        // An older edge names none.
        let older = || codec::times_of_u8(profile.codec_us_per_mib);
        let codecs = if profile.codecs.is_empty() { older() } else { profile.codecs };
        let coding = codec::coding(&codec::slowed(codec::times(), self.deployment.slowdown()), &codecs);
        let joined = Joined { client: client.clone(), codecs };
        *self.edge.lock().unwrap_or_else(PoisonError::into_inner) = Some(joined);
        self.tell(Event::EdgeConnected { segments_us, coding, queue_us: profile.queue_us });
        Ok(client)
    }

    /// Does what the controller asks for until the edge is gone; says why it is.
    async fn follow(self: &Arc<Self>, client: &Client, actions: &mut mpsc::Receiver<Action>) -> String {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                why = client.closed() => return why.to_string(),
                _ = tick.tick() => self.tell(Event::Tick),
                Some(action) = actions.recv() => {
                    // Beside this loop: a probe over a slow link must not hold up a change of plan.
                    let (device, client) = (Arc::clone(self), client.clone());
                    tokio::spawn(async move { device.act(&client, action).await });
                }
            }
        }
    }

    async fn act(&self, client: &Client, action: Action) {
        match action {
            Action::Install(installed) => {
                let agreed = tokio::time::timeout(CALL_TIME_MAX, client.install_plan(self.to_wire(installed))).await;
                match agreed {
                    Ok(Ok(())) => self.tell(Event::Accepted(installed)),
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "the edge refused a plan; keeping the old one");
                        self.tell(Event::Refused);
                    }
                    Err(_) => {
                        tracing::warn!("the edge did not answer to a plan; keeping the old one");
                        self.tell(Event::Refused);
                    }
                }
            }
            Action::Probe { bytes } => {
                // What is still on the link will tell as much, and sooner.
                if !self.link_is_clogged() {
                    let _ = tokio::time::timeout(CALL_TIME_MAX, self.probe(client, bytes)).await;
                }
                self.tell(Event::Probed);
            }
        }
    }

    async fn probe(&self, client: &Client, bytes: u64) -> Result<(), LinkError> {
        let on_wire = bytes + codec::MESSAGE_BYTES;
        let waiting = Waiting { device: self, bytes: on_wire, since: Instant::now(), finished: false };
        let sent = client.probe(usize::try_from(bytes).unwrap_or(usize::MAX), 0).await;
        let elapsed_us = waiting.finish();
        sent?;
        self.tell(Event::Exchanged(Exchange { bytes: on_wire, elapsed_us, busy_us: 0.0 }));
        Ok(())
    }

    fn tell(&self, event: Event) {
        let now = self.started.elapsed();
        for action in self.lock().handle(event, now) {
            if self.actions.try_send(action).is_err() {
                tracing::warn!(?action, "too many actions are waiting; the controller will ask again");
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Controller> {
        self.controller.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queued_us(&self) -> f64 {
        self.queue_us.load(Ordering::Relaxed) as f64
    }

    /// Whether something that the device no longer waits for is still on its way: what is sent now
    /// would have to wait behind it.
    fn link_is_clogged(&self) -> bool {
        let in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        in_flight.values().any(|last_moment| *last_moment <= Instant::now())
    }

    fn edge_is_lost(&self) -> bool {
        self.edge.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    fn model(&self) -> Digest {
        Digest(self.deployment.digest().0)
    }

    fn to_wire(&self, installed: Installed) -> Plan {
        Plan {
            epoch: installed.epoch,
            model: self.model(),
            exit: position(installed.plan.exit),
            cut: position(installed.plan.cut),
            direction: match installed.plan.direction {
                planner::Direction::DeviceFirst => Direction::DeviceFirst,
                planner::Direction::EdgeFirst => Direction::EdgeFirst,
            },
            codec: to_wire(installed.plan.codec),
        }
    }
}

/// Ends the work of a caller that no longer waits for it.
struct CancelOnDrop(Stop);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// An activation on its way, or its answer; known to the device until this is dropped.
struct InFlight {
    device: Arc<Device>,
    id: u64,
}

impl InFlight {
    fn new(device: Arc<Device>, id: u64, last_moment: Instant) -> Self {
        device.in_flight.lock().unwrap_or_else(PoisonError::into_inner).insert(id, last_moment);
        Self { device, id }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.device.in_flight.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// Something that was sent and has not been answered. If it is given up before the answer comes, the
/// controller still learns how long nothing came.
struct Waiting<'a> {
    device: &'a Device,
    bytes: u64,
    since: Instant,
    finished: bool,
}

impl Waiting<'_> {
    fn finish(mut self) -> f64 {
        self.finished = true;
        self.since.elapsed().as_secs_f64() * 1e6
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.finished {
            let waited_us = self.since.elapsed().as_secs_f64() * 1e6;
            self.device.tell(Event::Waiting { bytes: self.bytes, waited_us, busy_us: None });
        }
    }
}

/// What the link serves: a share of the device, since a request outlives the call that brought it.
#[derive(Clone, Debug)]
pub(crate) struct DeviceService(pub(crate) Arc<Device>);

impl Service for DeviceService {
    fn describe(&self, reply: Reply<Description>) {
        reply.send(Ok(Description { models: vec![crate::host::describe(&self.0.deployment)] }));
    }

    fn ask(&self, request: AskRequest, reply: Reply<Answer>) {
        self.0.counts.requests.fetch_add(1, Ordering::Relaxed);
        let device = Arc::clone(&self.0);
        self.0.runtime.spawn(async move {
            let answer = Arc::clone(&device).answer(request).await;
            device.counts.count(&answer);
            reply.send(answer);
        });
    }

    fn profile(&self, model: Digest, reply: Reply<ModelProfile>) {
        let _ = model;
        reply.send(Err(fault(FaultKind::Unsupported, "devices keep their profile to themselves; ask the edge")));
    }

    fn stats(&self, reply: Reply<Stats>) {
        let controller = self.0.lock();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        reply.send(Ok(Stats {
            uptime_ms: us(self.0.started.elapsed()) / 1_000,
            requests: count(&self.0.counts.requests),
            answered: count(&self.0.counts.answered),
            errors: count(&self.0.counts.errors),
            deadline_met: count(&self.0.counts.deadline_met),
            degraded: count(&self.0.counts.degraded),
            plan_changes: controller.plan_changes(),
            rate_bps: controller.link().rate_bps().unwrap_or(0.0) as u64,
            rtt_us: controller.link().rtt_us() as u64,
            tensor_bytes_copied: edgent_nn::bytes_copied(),
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

/// What coding tensors takes this machine.
fn coding_us(facts: &[&Fact], codec: Codec, us_per_mib: impl Fn(&CodecTime) -> f64) -> f64 {
    let time = codec::times().iter().find(|time| time.codec == codec);
    let bytes = facts.iter().map(|fact| fact.bytes()).sum::<usize>();
    time.map_or(0.0, us_per_mib) * bytes as f64 / f64::from(1 << 20)
}

/// What an exit gives.
fn logits(output: &[Tensor]) -> Option<&[f32]> {
    output.first()?.as_f32()
}

fn position(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}
