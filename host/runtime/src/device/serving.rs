//! One version of a model in service, and a request's way through it.
//!
//! A request stays with the version that it began with, whatever is in force when it ends: it holds the version,
//! and what it learns goes to the version's own controller.

use super::edges::{Joined, Sent};
use super::race::{Race, Runner, Step, Terms};
use super::trial::Tally;
use super::{CALL_TIME_MAX, LATE, LOCAL_MARGIN_US, Shared, WAIT_MAX, position};
use crate::answer::logits;
use crate::codec::{to_wire, wire_bytes};
use crate::edge::{duration, fault};
use crate::workers::{CancelOnDrop, Turn, hopeless};
use crate::{Deployment, Due, again, codec, confidence, trace};
use edgent_bundle::Bundle;
use edgent_link::{
    Activation, Codec, CodecTime, Digest, Fault, FaultKind, InferReply, InferRequest, LinkError, TraceParent,
};
use edgent_nn::{Fact, Stop, Tensor};
use edgent_planner::{self as planner, Choice, Controller, Doubt, Event, Exchange, Installed, Planned};
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OnceCell, oneshot};
use tokio::time::Instant;
use tokio::time::error::Elapsed;

/// Requests are put in order by when they are due, which is a moment of the clock: no later than this.
const DEADLINE_MAX: Duration = Duration::from_secs(24 * 3_600);

/// A version of a model in service.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) shared: Arc<Shared>,
    pub(super) deployment: Arc<Deployment>,
    /// Where it lies; an edge that has it not is given it from there.
    pub(super) bundle: Bundle,
    pub(super) controller: Mutex<Controller>,
    /// Whether an edge that has forgotten this version is being given it again.
    pub(super) introducing: AtomicBool,
    pub(super) tally: Tally,
    /// Of what the segments take here.
    pub(super) doubt: Mutex<Doubt>,
}

/// An exit's output, and how it came about.
#[derive(Clone)]
pub(super) struct Outcome {
    pub(super) output: Vec<Tensor>,
    pub(super) plan: planner::Plan,
    pub(super) epoch: u64,
    pub(super) degraded: Option<String>,
    /// If it is as planned: how much of its time went into looking in at other exits, which is not predicted.
    pub(super) looked_in_us: Option<f64>,
}

/// What the device's first segments led to.
#[derive(Clone)]
enum Part {
    /// An exit on the way is sure.
    Sure(Outcome),
    /// The activation behind them, and how long other exits were looked in at on the way.
    Activation(Vec<Tensor>, f64),
}

/// What a plan that needs an edge leads to before one is asked: done once for each request, however many edges it is
/// sent to, and whoever goes on with it.
#[derive(Default)]
struct Begun {
    /// Whether somebody runs the device's first segments, or has.
    runs: AtomicBool,
    first: OnceCell<Result<Part, Fault>>,
    /// What is to be sent, but for its number and the time that is left.
    packed: OnceCell<Result<InferRequest, Fault>>,
}

/// What the first segments of an exit's way gave: from there the device can go on alone.
struct Reached<'a> {
    segments: &'a [usize],
    activation: Vec<Tensor>,
}

/// One request on its way through the device.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) arrived: Instant,
    pub(super) deadline_us: f64,
    /// No exit below it may answer.
    pub(super) accuracy_min: f64,
    /// Of the request's own span.
    pub(super) trace: Option<TraceParent>,
}

impl Asked {
    fn elapsed_us(&self) -> f64 {
        self.arrived.elapsed().as_secs_f64() * 1e6
    }

    fn remaining_us(&self) -> f64 {
        self.deadline_us - self.elapsed_us()
    }

    /// When its answer must be there.
    pub(super) fn due(&self) -> Instant {
        let deadline = Duration::try_from_secs_f64(self.deadline_us / 1e6).unwrap_or(DEADLINE_MAX);
        self.arrived + deadline.min(DEADLINE_MAX)
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

impl Serving {
    pub(super) async fn run(
        self: &Arc<Self>,
        input: Vec<Tensor>,
        asked: Asked,
        planned: Planned,
    ) -> Result<Outcome, Fault> {
        let Installed { plan, epoch } = planned.installed;
        let network = self.deployment.network();
        if plan.placement(network) == planner::Placement::DeviceOnly {
            let degraded =
                (self.shared.edges_configured && self.shared.edge_is_lost()).then(|| "no edge is connected".to_owned());
            let trip = Trip { asked, planned, last_moment: asked.arrived };
            return Ok(match self.first_segments(trip, input).await? {
                Part::Sure(outcome) => Outcome { degraded, ..outcome },
                Part::Activation(output, looked_in_us) => {
                    self.answered(trip, looked_in_us);
                    Outcome { output, plan, epoch, degraded, looked_in_us: Some(looked_in_us) }
                }
            });
        }
        let Some(edge) = self.shared.edges.for_request(epoch) else {
            return self.alone(input, None, asked, "no edge is connected").await;
        };
        self.race(edge, Trip { asked, planned, last_moment: self.last_moment(asked, &plan) }, input).await
    }

    /// Has those who may answer do so, as [`Race`] says; the first good answer wins.
    async fn race(self: &Arc<Self>, edge: Joined, trip: Trip, input: Vec<Tensor>) -> Result<Outcome, Fault> {
        let (asked, falls_back) = (trip.asked, self.lock().strategy().falls_back());
        let next = self.shared.edges.next_after(&edge, trip.planned.installed.epoch).filter(|_| falls_back);
        let last_moment = trip.last_moment.saturating_duration_since(asked.arrived);
        let mut race = Race::new(Terms {
            overdue: trip.planned.predicted_us.filter(|_| falls_back).and_then(|us| after_us(us * trip.planned.margin)),
            // Of one that has just joined it is not known; it may try until a local exit must.
            next_until: next.as_ref().map(|next| self.next_until(next, trip).unwrap_or(last_moment)),
            last_moment,
        });
        let (begun, mut why) = (Begun::default(), fault(FaultKind::TimeUp, LATE));
        let mut running: FuturesUnordered<BoxFuture<'_, (Runner, Result<Outcome, Fault>)>> = FuturesUnordered::new();
        let (mut first_runs, mut hung) = (true, edge.hung());
        if let Some(sent) = edge.clogged_by().filter(|_| falls_back) {
            // Nobody waits for that one any more; who comes across it says how slow the link is by now.
            if self.shared.edges.is_in_force(&edge) {
                let waited_us = sent.since.elapsed().as_secs_f64() * 1e6;
                self.tell(Event::Waiting { bytes: sent.bytes, waited_us, busy_us: None });
            }
            why = fault(FaultKind::Busy, "an earlier activation is still on the link");
            race.failed(Runner::First);
            first_runs = false;
        }
        loop {
            let until = match race.step(asked.arrived.elapsed()) {
                Step::Start(runner @ Runner::First) => {
                    let together = self.together(&edge, trip, &begun, input.clone());
                    running.push(together.map(move |outcome| (runner, outcome)).boxed());
                    continue;
                }
                Step::Start(runner @ Runner::Next) => {
                    let Some(next) = &next else {
                        race.failed(runner);
                        continue;
                    };
                    if first_runs {
                        self.shared.edges.struck(&edge, self.shared.started.elapsed());
                        first_runs = false;
                    }
                    let together = self.together(next, trip, &begun, input.clone());
                    running.push(together.map(move |outcome| (runner, outcome)).boxed());
                    continue;
                }
                Step::Start(runner @ Runner::Alone) => {
                    if first_runs && trip.is_late() {
                        self.shared.edges.struck(&edge, self.shared.started.elapsed());
                        edge.hangs();
                    }
                    first_runs = false;
                    let (input, why) = (input.clone(), why.message.clone());
                    let begun = &begun;
                    let alone = async move { (runner, self.go_on_alone(trip, begun, input, &why).await) };
                    running.push(alone.boxed());
                    continue;
                }
                Step::Wait(until) => until,
                Step::GiveUp => return Err(why),
            };
            let waiting = async {
                match until {
                    Some(until) => tokio::time::sleep_until(asked.arrived + until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some((runner, outcome)) = running.next() => match outcome {
                    Ok(outcome) => {
                        if let (Runner::First, Some(looked_in_us)) = (runner, outcome.looked_in_us) {
                            self.answered(trip, looked_in_us);
                        }
                        return Ok(outcome);
                    }
                    Err(fault) => {
                        race.failed(runner);
                        first_runs &= runner != Runner::First;
                        why = fault;
                    }
                },
                () = waiting => {}
                Ok(()) = hung.changed(), if falls_back => race.hangs(),
            }
        }
    }

    /// The last moment at which the request may be sent to another edge and still be answered in time there, since it
    /// arrived; none if that is not known.
    fn next_until(&self, next: &Joined, trip: Trip) -> Option<Duration> {
        let plan = trip.planned.installed.plan;
        let network = self.deployment.network();
        let exit = &network.exits()[plan.exit];
        let (there, here, crosses, codec) = match plan.direction {
            planner::Direction::DeviceFirst => (&exit.path[plan.cut..], &[][..], plan.cut, plan.codec),
            planner::Direction::EdgeFirst => (&exit.path[..plan.cut], &exit.path[plan.cut..], 0, planner::Codec::Raw),
        };
        let bytes = network.boundaries()[exit.boundaries[crosses]].bytes(codec)?;
        let takes_us = next.takes_us(there, bytes + codec::MESSAGE_BYTES)? + self.lock().device_us(here);
        after_us((trip.asked.deadline_us - takes_us * trip.planned.margin).max(0.0))
    }

    /// When a local exit must start to be in time, behind what waits for a worker now. Where none fits, the edge is the
    /// only chance until the deadline has passed. Strategies without a fallback wait.
    fn last_moment(&self, asked: Asked, plan: &planner::Plan) -> Instant {
        let controller = self.lock();
        if !controller.strategy().falls_back() {
            return asked.arrived + WAIT_MAX;
        }
        let queued_us = self.shared.queued_us(asked.due());
        let last_us = |done: &[usize]| {
            let local = controller.local_after(done, asked.deadline_us - queued_us, asked.accuracy_min);
            let local_us = if local.fits { queued_us + local.candidate.cost.total_us() + LOCAL_MARGIN_US } else { 0.0 };
            (asked.deadline_us - local_us).max(0.0)
        };
        // The plan's first segments are not run again, if they have been by then.
        let done = self.before(plan);
        let going_on_us = last_us(done);
        let is_there = queued_us + controller.device_us(done) <= going_on_us;
        let last_us = if is_there { going_on_us } else { last_us(&[]) };
        asked.arrived + Duration::from_secs_f64(last_us / 1e6)
    }

    /// As [`Self::alone`], behind the plan's first segments where the device has run them, or is about to.
    async fn go_on_alone(
        self: &Arc<Self>,
        trip: Trip,
        begun: &Begun,
        input: Vec<Tensor>,
        why: &str,
    ) -> Result<Outcome, Fault> {
        let (asked, segments) = (trip.asked, self.before(&trip.planned.installed.plan));
        // Those at work count as what waits for a worker. An exit that branches off before their end may be all that
        // there is time for.
        let done = if begun.runs.load(Ordering::Relaxed) { segments } else { &[] };
        let wanted = self.choose_alone(asked, done).0.candidate.plan.exit;
        let is_on_the_way = !done.is_empty() && self.deployment.network().exits()[wanted].path.starts_with(done);
        let reached = if begun.first.initialized() || is_on_the_way {
            match begun.first.get_or_init(|| self.first_segments(trip, input.clone())).await.clone() {
                Ok(Part::Sure(outcome)) => return Ok(outcome),
                Ok(Part::Activation(activation, _)) => Some(Reached { segments, activation }),
                Err(_) => None,
            }
        } else {
            None
        };
        self.alone(input, reached, asked, why).await
    }

    /// The best exit that the device can still reach alone; if none is in time, the fastest.
    async fn alone(
        self: &Arc<Self>,
        input: Vec<Tensor>,
        reached: Option<Reached<'_>>,
        asked: Asked,
        why: &str,
    ) -> Result<Outcome, Fault> {
        let done = reached.as_ref().map_or(&[][..], |reached| reached.segments);
        let (local, is_in_time, epoch) = self.choose_alone(asked, done);
        let plan = local.candidate.plan;
        let path = &self.deployment.network().exits()[plan.exit].path;
        let (at, activation) = match reached {
            Some(reached) if path.starts_with(reached.segments) => (reached.segments.len(), reached.activation),
            _ => (0, input),
        };
        let output = self.segments(asked, plan.exit, at..plan.cut, activation).await?;
        let late = if is_in_time { "" } else { "; no exit fits the time that is left, this is the fastest" };
        Ok(Outcome { output, plan, epoch, degraded: Some(format!("{why}{late}")), looked_in_us: None })
    }

    /// The exit to take alone behind these segments, whether it fits the time that is left, and the epoch.
    fn choose_alone(&self, asked: Asked, done: &[usize]) -> (Choice, bool, u64) {
        let controller = self.lock();
        let left_us = asked.remaining_us() - self.shared.queued_us(asked.due());
        // What was kept in hand is for what goes wrong, and not for a better exit.
        let allowed_us = self.shared.allowed_us(left_us - LOCAL_MARGIN_US / 2.0, asked);
        let local = controller.local_after(done, allowed_us, asked.accuracy_min);
        (local, local.candidate.cost.total_us() <= left_us, controller.installed().epoch)
    }

    /// Tells the controller how long a plan took, but for what looking in at other exits took.
    fn answered(self: &Arc<Self>, trip: Trip, looked_in_us: f64) {
        if let Some(predicted_us) = trip.planned.predicted_us {
            let plan = trip.planned.installed.plan;
            self.tell(Event::Answered { plan, predicted_us, actual_us: trip.asked.elapsed_us() - looked_in_us });
        }
    }

    /// A plan was late, or given up: it took at least as long as it was waited for.
    fn missed(self: &Arc<Self>, trip: Trip) {
        if trip.planned.predicted_us.is_some_and(|us| us < trip.asked.elapsed_us()) {
            self.answered(trip, 0.0);
        }
    }

    /// As the plan says: one part here, one on this edge.
    async fn together(
        self: &Arc<Self>,
        edge: &Joined,
        trip: Trip,
        begun: &Begun,
        input: Vec<Tensor>,
    ) -> Result<Outcome, Fault> {
        let Installed { plan, epoch } = trip.planned.installed;
        let end = self.deployment.network().exits()[plan.exit].path.len();
        let (there, here_last) = match plan.direction {
            planner::Direction::DeviceFirst => (plan.cut..end, end..end),
            planner::Direction::EdgeFirst => (0..plan.cut, plan.cut..end),
        };
        // The plan may be of the edge before this one.
        if !edge.codecs.iter().any(|time| time.codec == to_wire(plan.codec)) {
            let message = format!("the edge takes no {}", plan.codec.name());
            return Err(fault(FaultKind::Unsupported, message));
        }
        begun.runs.store(true, Ordering::Relaxed);
        let first = begun.first.get_or_init(|| self.first_segments(trip, input)).await;
        let (activation, looked_in_us) = match first.clone()? {
            Part::Sure(outcome) => return Ok(outcome),
            Part::Activation(activation, looked_in_us) => (activation, looked_in_us),
        };
        let request = begun.packed.get_or_init(|| self.pack(trip, there.clone(), activation)).await.clone()?;
        // Who waits however long it takes must not have the edge give up.
        let falls_back = self.lock().strategy().falls_back();
        let budget_us = if falls_back { trip.asked.remaining_us().max(0.0) } else { WAIT_MAX.as_secs_f64() * 1e6 };
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let request = InferRequest { id, remaining_budget_us: budget_us as u64, ..request };
        let reply = self.exchange(edge, trip, there, request).await?;
        let output =
            self.decode(trip.asked, reply, plan.exit, if here_last.is_empty() { end } else { plan.cut }).await?;
        let output = self.segments(trip.asked, plan.exit, here_last, output).await?;
        Ok(Outcome { output, plan, epoch, degraded: None, looked_in_us: Some(looked_in_us) })
    }

    /// What is to be sent.
    async fn pack(&self, trip: Trip, there: Range<usize>, activation: Vec<Tensor>) -> Result<InferRequest, Fault> {
        let Installed { plan, epoch } = trip.planned.installed;
        let (up, down) = match plan.direction {
            planner::Direction::DeviceFirst => (to_wire(plan.codec), Codec::Raw),
            planner::Direction::EdgeFirst => (Codec::Raw, to_wire(plan.codec)),
        };
        let (activation, beside) = self.encode(trip.asked, activation, up).await?;
        Ok(InferRequest {
            id: 0,
            model: self.model(),
            epoch,
            from_segment: position(there.start),
            to_segment: position(there.end),
            reply_codec: down,
            remaining_budget_us: 0,
            activation,
            beside,
            trace: None,
        })
    }

    /// Those of the plan's segments that run here before anything is sent. Exits that branch off on the way
    /// are looked in at as long as the plan's exit stays in time all the same.
    async fn first_segments(self: &Arc<Self>, trip: Trip, input: Vec<Tensor>) -> Result<Part, Fault> {
        let Installed { plan, epoch } = trip.planned.installed;
        let cut = self.before(&plan).len();
        let (mut at, mut activation, mut looked_in_us) = (0, input, 0.0);
        if self.shared.leave_when_sure {
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
                if branch_us > spare_us || manifest.exits[passed.exit].accuracy < trip.asked.accuracy_min {
                    continue;
                }
                activation = self.segments(trip.asked, plan.exit, at..passed.after, activation).await?;
                at = passed.after;
                let end = at + branch.len();
                let since = Instant::now();
                let output = self.segments(trip.asked, passed.exit, at..end, activation.clone()).await;
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
        Ok(Part::Activation(self.segments(trip.asked, plan.exit, at..cut, activation).await?, looked_in_us))
    }

    /// Those of a plan's segments that run here before anything is sent.
    pub(super) fn before(&self, plan: &planner::Plan) -> &[usize] {
        let cut = if plan.direction == planner::Direction::DeviceFirst { plan.cut } else { 0 };
        &self.deployment.network().exits()[plan.exit].path[..cut]
    }

    /// Sends an activation and gets one back. A caller that no longer waits does not end the exchange:
    /// nothing tells more of the link than how long it took after all.
    async fn exchange(
        self: &Arc<Self>,
        edge: &Joined,
        trip: Trip,
        there: Range<usize>,
        request: InferRequest,
    ) -> Result<InferReply, Fault> {
        let bytes = wire_bytes(&request.activation, &request.beside) + codec::CALL_BYTES;
        let sent = Sent { bytes, since: Instant::now(), last_moment: trip.last_moment };
        let waiting = Waiting {
            serving: self,
            bytes,
            since: sent.since,
            // The controller is told of the link to the edge in force alone.
            finished: !self.shared.edges.is_in_force(edge),
        };
        let in_flight = InFlight::new(edge.clone(), request.id, sent);
        let serving = Arc::clone(self);
        let exchanged =
            tokio::spawn(async move { serving.exchange_and_learn(&in_flight.edge, trip, there, request).await });
        let reply = exchanged.await;
        waiting.finish();
        reply.map_err(|_| fault(FaultKind::Internal, "the exchange with the edge died"))?
    }

    async fn exchange_and_learn(
        self: &Arc<Self>,
        edge: &Joined,
        trip: Trip,
        there: Range<usize>,
        request: InferRequest,
    ) -> Result<InferReply, Fault> {
        let up_bytes = wire_bytes(&request.activation, &request.beside) + codec::CALL_BYTES;
        let budget_us = request.remaining_budget_us as f64;
        let mut span = trace::wire(trip.asked.trace, &edge.address, &request, up_bytes);
        let request = InferRequest { trace: span.context(), ..request };
        let since = Instant::now();
        // As long as an answer may be of use; and where little time was left, what it tells of the link is.
        let patience = CALL_TIME_MAX.max(Duration::from_micros(request.remaining_budget_us));
        let reply = tokio::time::timeout(patience, edge.client.infer(request)).await;
        let elapsed_us = since.elapsed().as_secs_f64() * 1e6;
        span.exchanged(&reply);
        span.end();
        self.judge(edge, trip, &reply);
        let is_in_force = self.shared.edges.is_in_force(edge);
        let tell = |event| {
            if is_in_force {
                self.tell(event);
            }
        };
        let missed = || {
            if is_in_force {
                self.missed(trip);
            }
        };
        let learn = |bytes: u64, busy_us: f64| {
            let exchange = Exchange { bytes, elapsed_us, busy_us };
            if !is_in_force {
                return edge.exchanged(exchange, self.shared.started.elapsed());
            }
            if trip.is_late() {
                // The link was no faster than this; no second exchange need confirm it.
                self.tell(Event::Waiting { bytes, waited_us: elapsed_us, busy_us: Some(busy_us) });
            }
            self.tell(Event::Exchanged(exchange));
        };
        match reply {
            Err(_) => {
                tell(Event::Waiting { bytes: up_bytes, waited_us: elapsed_us, busy_us: None });
                missed();
                Err(fault(FaultKind::TimeUp, "the edge did not answer"))
            }
            Ok(Err(LinkError::Fault(fault))) => {
                match fault.kind {
                    FaultKind::TimeUp => {
                        // The edge had the activation for all of the time that was left when it was sent.
                        tell(Event::EdgeQueued { us: budget_us });
                        learn(up_bytes, budget_us);
                        missed();
                    }
                    kind => {
                        learn(up_bytes, 0.0);
                        match kind {
                            // It did not wait, since it would have for longer than there was time.
                            FaultKind::Busy => tell(Event::EdgeQueued { us: budget_us }),
                            FaultKind::UnknownEpoch => tell(Event::Forgotten),
                            FaultKind::UnknownModel if is_in_force => self.introduce(&edge.client),
                            _ => {}
                        }
                    }
                }
                Err(fault)
            }
            Ok(Err(other)) => Err(fault(FaultKind::Internal, other.to_string())),
            Ok(Ok(reply)) => {
                let path = &self.deployment.network().exits()[trip.planned.installed.plan.exit].path[there];
                for (segment, us) in path.iter().zip(&reply.segment_us) {
                    tell(Event::EdgeRan { segment: *segment, us: f64::from(*us) });
                }
                tell(Event::EdgeQueued { us: reply.queue_us as f64 });
                let worked_us: f64 = reply.segment_us.iter().map(|us| f64::from(*us)).sum();
                let busy_us = worked_us + reply.queue_us as f64 + reply.codec_us as f64;
                learn(up_bytes + wire_bytes(&reply.activation, &reply.beside) + codec::RETURN_BYTES, busy_us);
                if trip.is_late() {
                    missed();
                }
                Ok(reply)
            }
        }
    }

    /// Whether what came back speaks for an edge or against it. That a request was late has been held against it when
    /// it was; and an edge that asks for something else first does nothing wrong.
    fn judge(&self, edge: &Joined, trip: Trip, reply: &Result<Result<InferReply, LinkError>, Elapsed>) {
        use FaultKind::{UnknownEpoch, UnknownModel, Unsupported};
        let asks_first = |kind| matches!(kind, UnknownEpoch | UnknownModel | Unsupported);
        match reply {
            _ if trip.is_late() => {}
            Ok(Ok(_)) => self.shared.edges.answered(edge),
            Ok(Err(LinkError::Fault(fault))) if asks_first(fault.kind) => {}
            Ok(Err(_)) | Err(_) => self.shared.edges.struck(edge, self.shared.started.elapsed()),
        }
    }

    async fn segments(
        self: &Arc<Self>,
        asked: Asked,
        exit: usize,
        range: Range<usize>,
        input: Vec<Tensor>,
    ) -> Result<Vec<Tensor>, Fault> {
        if range.is_empty() {
            return Ok(input);
        }
        let takes_us = self.lock().device_us(&self.deployment.network().exits()[exit].path[range.clone()]);
        let mut span = trace::part(asked.trace, &self.deployment, exit, &range);
        let run = move |deployment: &Deployment, stop: &Stop| deployment.run(exit, range, input, stop);
        let ran = self.on_worker(asked, takes_us, run).await;
        let ran = ran.and_then(|ran| ran.map_err(|e| fault(FaultKind::SegmentFailed, e.to_string())));
        let ran = ran.inspect_err(|fault| span.failed(fault))?;
        self.learn(ran.segments_us);
        Ok(ran.output)
    }

    fn learn(self: &Arc<Self>, segments_us: Vec<(usize, f64)>) {
        let now = self.shared.started.elapsed();
        for (segment, us) in segments_us {
            self.doubt.lock().unwrap_or_else(PoisonError::into_inner).ran(segment, now);
            self.tell(Event::DeviceRan { segment, us });
        }
    }

    /// Measures segments again that seemed slow: a plan that leaves them to the edge would not show that they are well. And,
    /// from time to time, on how many threads they should run.
    pub(super) async fn measure_again(self: &Arc<Self>) {
        let now = self.shared.started.elapsed();
        let (is_doubted, takes) = {
            let controller = self.lock();
            let mut doubt = self.doubt.lock().unwrap_or_else(PoisonError::into_inner);
            (doubt.is_due(controller.device(), now), again::takes(controller.device()))
        };
        let again = again::look(&self.deployment, &self.shared.workers, is_doubted, takes).await;
        self.learn(again);
    }

    /// Writes what crosses to the edge. As a worker's job: a picture takes a while, more so on a slow device.
    async fn encode(
        &self,
        asked: Asked,
        crossing: Vec<Tensor>,
        codec: Codec,
    ) -> Result<(Activation, Vec<Activation>), Fault> {
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
        self.on_worker(asked, 0.0, coding).await?.ok_or_else(nothing)
    }

    /// Reads the edge's reply, which must be what is at that cut. An answer is raw and is read here: the workers
    /// may be busy with the local exit that would have replaced it.
    async fn decode(&self, asked: Asked, reply: InferReply, exit: usize, cut: usize) -> Result<Vec<Tensor>, Fault> {
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
        self.on_worker(asked, 0.0, decoding).await?
    }

    /// Has a worker do something for a request, in its turn.
    async fn on_worker<T: Send + 'static>(
        &self,
        asked: Asked,
        takes_us: f64,
        work: impl FnOnce(&Deployment, &Stop) -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let (done, result) = oneshot::channel();
        let deployment = Arc::clone(&self.deployment);
        let stop = Stop::never();
        // A request that was answered otherwise meanwhile must not hold up those behind it.
        let _unwanted = CancelOnDrop(stop.clone());
        // A late answer is one, too; and on a device, nobody else would give it.
        let due = Due::or_late(asked.arrived, asked.due(), duration(takes_us));
        let job = move |turn| drop(done.send((turn == Turn::Run).then(|| work(&deployment, &stop))));
        self.shared.workers.submit(due, job).map_err(|busy| fault(FaultKind::Busy, busy.to_string()))?;
        let done = result.await.map_err(|_| fault(FaultKind::Internal, "the device's worker died"))?;
        done.ok_or_else(|| hopeless(asked.arrived))
    }

    /// Has the controller know, and what it wants be done.
    pub(super) fn tell(self: &Arc<Self>, event: Event) {
        let now = self.shared.started.elapsed();
        for action in self.lock().handle(event, now) {
            if self.shared.actions.try_send((Arc::clone(self), action)).is_err() {
                tracing::warn!(?action, "too many actions are waiting; the controller will ask again");
            }
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Controller> {
        self.controller.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn model(&self) -> Digest {
        Digest(self.deployment.digest().0)
    }
}

/// Has the device know of an activation on its way until this is dropped.
struct InFlight {
    edge: Joined,
    id: u64,
}

impl InFlight {
    fn new(edge: Joined, id: u64, sent: Sent) -> Self {
        edge.in_flight().insert(id, sent);
        Self { edge, id }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.edge.in_flight().remove(&self.id);
    }
}

/// Something that was sent and has not been answered. If it is given up before the answer comes, the
/// controller still learns how long nothing came.
pub(super) struct Waiting<'a> {
    pub(super) serving: &'a Arc<Serving>,
    pub(super) bytes: u64,
    pub(super) since: Instant,
    pub(super) finished: bool,
}

impl Waiting<'_> {
    pub(super) fn finish(mut self) -> f64 {
        self.finished = true;
        self.since.elapsed().as_secs_f64() * 1e6
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.finished {
            let waited_us = self.since.elapsed().as_secs_f64() * 1e6;
            self.serving.tell(Event::Waiting { bytes: self.bytes, waited_us, busy_us: None });
        }
    }
}

/// What coding tensors takes this machine.
fn coding_us(facts: &[&Fact], codec: Codec, us_per_mib: impl Fn(&CodecTime) -> f64) -> f64 {
    let time = codec::times().iter().find(|time| time.codec == codec);
    let bytes = facts.iter().map(|fact| fact.bytes()).sum::<usize>();
    time.map_or(0.0, us_per_mib) * bytes as f64 / f64::from(1 << 20)
}

/// Microseconds that are predicted; none if that is no time at all.
fn after_us(us: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(us / 1e6).ok()
}
