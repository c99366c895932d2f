//! What the device does next: `(state, event, now) → actions`.

use crate::changepoint::{ChangePoints, ChangeSettings};
use crate::choose::{Candidate, Choice, Constraints, Explained, Link, choose_alone, explain, predict};
use crate::codec::{Coding, PerCodec};
use crate::estimate::{Exchange, LinkEstimate};
use crate::map::{ConfigurationMap, Dynamic, SWITCH_COST_REWARD};
use crate::network::{Network, Placement, Plan, Profile};
use crate::residuals::{Margin, Residuals};
use crate::strategy::Strategy;
use crate::timing::Timings;
use std::cmp::Ordering;
use std::time::Duration;

/// A new plan for an equally good exit must be faster by this factor to be worth a change.
const WORTHWHILE: f64 = 0.85;

/// What was asked for and neither done nor refused for this long is not going to be.
const PATIENCE: Duration = Duration::from_secs(10);

/// After a refusal the edge is left alone for this long.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The states of the dynamic mode's map, spaced evenly on a logarithmic scale.
const MAP_STATES: i32 = 25;
const MAP_RATE_MIN_BPS: f64 = 20e3;
const MAP_RATE_MAX_BPS: f64 = 100e6;

/// A plan in force may be less likely to be in time than a new one by so much.
const PATIENT_SHARE: f64 = 0.25;

/// A latency is explained by what is known now if that predicts at least this share of it.
const EXPLAINED: f64 = 0.8;

/// What is known of the wait at the edge is worth so much less after each tick: a device that leaves an edge with a
/// long queue hears no more of it, and is to come back. It halves in 3.4 s, with ten ticks a second.
const QUEUE_KEPT: f64 = 0.98;

/// How much one request's wait at the edge moves what is known of the next one's.
const QUEUE_WEIGHT: f64 = 0.125;

/// What the operator asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Time from a request to its answer.
    pub deadline_us: f64,
    /// How much accuracy coding an activation may cost.
    pub codec_loss_max: f64,
    /// Whether the network's raw input may leave the device.
    pub input_may_leave: bool,
    /// How likely a plan must be to be in time, from 0 to 1.
    pub in_time_share: f64,
    /// How plans are chosen.
    pub strategy: Strategy,
    /// Bytes that a message takes beside its activation.
    pub message_bytes: u64,
}

/// The device's knowledge and its current plan.
#[derive(Debug)]
pub struct Controller {
    network: Network,
    settings: Settings,
    device: Timings,
    edge: Option<Edge>,
    link: LinkEstimate,
    residuals: Residuals,
    /// Of [`Strategy::Dynamic`], while there is an edge.
    dynamic: Option<Dynamic>,
    /// What the operator wants instead of a choice, wherever it can be run.
    pinned: Option<Plan>,
    installed: Installed,
    /// The plan that the edge was asked to accept, and when.
    asked: Option<(Installed, Duration)>,
    refused_at: Option<Duration>,
    probing_since: Option<Duration>,
    /// The last epoch given to a plan. Never given twice: two plans under one epoch would let the
    /// hosts run different halves.
    last_epoch: u64,
    plan_changes: u64,
}

#[derive(Debug)]
struct Edge {
    timings: Timings,
    coding: PerCodec<Coding>,
    queue_us: f64,
}

/// A plan and the epoch in which both hosts agreed on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Grows with each plan.
    pub epoch: u64,
    /// The plan.
    pub plan: Plan,
}

/// The plan for one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Planned {
    /// The plan, and the epoch in which it is agreed on.
    pub installed: Installed,
    /// From the request to its answer; `None` if that cannot be told.
    pub predicted_us: Option<f64>,
    /// What the prediction must be multiplied with to be kept to as often as wanted.
    pub margin: f64,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A segment ran on the device.
    DeviceRan {
        /// Which one.
        segment: usize,
        /// For how long.
        us: f64,
    },
    /// A segment ran on the edge.
    EdgeRan {
        /// Which one.
        segment: usize,
        /// For how long.
        us: f64,
    },
    /// A request waited at the edge before it ran.
    EdgeQueued {
        /// For how long.
        us: f64,
    },
    /// A request was answered as planned, in time or not.
    Answered {
        /// Its plan.
        plan: Plan,
        /// The latency that was predicted.
        predicted_us: f64,
        /// The latency.
        actual_us: f64,
    },
    /// An edge answered and told its profile.
    EdgeConnected {
        /// Time of each segment there.
        segments_us: Vec<f64>,
        /// What coding takes; no time for the codecs that it does not take.
        coding: PerCodec<Coding>,
        /// The wait before a request runs.
        queue_us: f64,
    },
    /// The edge is gone.
    EdgeLost,
    /// Something was sent and something came back.
    Exchanged(Exchange),
    /// Something was sent, by the plan in force or as a probe, and nothing has come back yet, or too late.
    Waiting {
        /// Bytes of the request.
        bytes: u64,
        /// For how long.
        waited_us: f64,
        /// How much of that the edge worked or queued, if that is known.
        busy_us: Option<f64>,
    },
    /// The edge no longer knows the plan in force.
    Forgotten,
    /// A probe ended, well or not.
    Probed,
    /// The edge accepted a plan.
    Accepted(Installed),
    /// The edge did not accept the plan it was asked to.
    Refused,
    /// The operator wants answers within another time.
    DeadlineChanged {
        /// From the request to its answer.
        deadline_us: f64,
    },
    /// The operator wants this plan and no other, or none in particular any more.
    Pinned(Option<Plan>),
    /// Time passed.
    Tick,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Agree on this plan with the edge, under a new epoch, then report [`Event::Accepted`].
    Install(Installed),
    /// Send this many bytes and have them acknowledged, then report what it took and [`Event::Probed`].
    Probe {
        /// How many.
        bytes: u64,
    },
}

impl Controller {
    /// Starts on the device alone, with the exit that its profile allows; epochs count from `first_epoch`.
    pub fn new(network: Network, settings: Settings, device: Timings, first_epoch: u64) -> Self {
        let mut controller = Self {
            installed: Installed { epoch: first_epoch, plan: Plan::device_only(&network, 0) },
            network,
            settings,
            device,
            edge: None,
            link: LinkEstimate::default(),
            residuals: Residuals::new(settings.in_time_share),
            dynamic: None,
            pinned: None,
            asked: None,
            refused_at: None,
            probing_since: None,
            last_epoch: first_epoch,
            plan_changes: 0,
        };
        controller.installed.plan = controller.choose().candidate.plan;
        controller
    }

    /// Takes over what another version's controller knows of the link.
    pub fn inherit(&mut self, link: LinkEstimate) {
        self.link = link;
    }

    /// Takes in an event and says what to do about it.
    pub fn handle(&mut self, event: Event, now: Duration) -> Vec<Action> {
        match event {
            Event::DeviceRan { segment, us } => {
                self.device.record(segment, us);
                return Vec::new();
            }
            Event::EdgeRan { segment, us } => {
                if let Some(edge) = &mut self.edge {
                    edge.timings.record(segment, us);
                }
                return Vec::new();
            }
            Event::EdgeQueued { us } => {
                if let Some(edge) = self.edge.as_mut().filter(|_| us.is_finite() && us >= 0.0) {
                    edge.queue_us += QUEUE_WEIGHT * (us - edge.queue_us);
                }
                return Vec::new();
            }
            Event::Answered { plan, predicted_us, actual_us } => {
                let crosses = self.network.has(&plan) && plan.placement(&self.network) != Placement::DeviceOnly;
                // What the link's change explains is no error of the prediction: the next one knows better.
                let known_by_now = self.predicted(plan).is_some_and(|now| now.cost.total_us() >= EXPLAINED * actual_us);
                if !(crosses && actual_us > predicted_us && known_by_now) {
                    self.residuals.record(crosses, predicted_us, actual_us);
                }
                return Vec::new();
            }
            Event::EdgeConnected { segments_us, coding, queue_us } => {
                let mut timings = Timings::new(self.network.segments());
                segments_us.iter().enumerate().for_each(|(segment, us)| timings.record(segment, *us));
                self.edge = Some(Edge { timings, coding, queue_us });
                self.dynamic = (self.settings.strategy == Strategy::Dynamic).then(|| self.map()).flatten();
            }
            Event::EdgeLost => {
                (self.edge, self.dynamic) = (None, None);
                // What comes back may be another link, to another host.
                self.link = LinkEstimate::default();
                (self.asked, self.refused_at, self.probing_since) = (None, None, None);
                let plan = self.choose().candidate.plan;
                // A new epoch even for the same plan: what the lost edge still accepts comes too late.
                let alone = self.next(plan);
                self.move_to(alone);
                return Vec::new();
            }
            Event::Exchanged(exchange) => {
                let (before, _) = self.link.samples();
                self.link.exchanged(exchange, now);
                self.follow(before);
            }
            Event::Forgotten => {
                if self.edge.is_none() || self.asked.is_some() {
                    return Vec::new();
                }
                // The same plan under a new epoch.
                let again = self.next(self.installed.plan);
                self.asked = Some((again, now));
                return vec![Action::Install(again)];
            }
            Event::Waiting { bytes, waited_us, busy_us } => {
                // Part of the wait may be the edge at work rather than the link.
                let predicted =
                    || self.predicted(self.installed.plan).map(|plan| plan.cost.edge_us + plan.cost.queue_us);
                let busy = busy_us.or_else(predicted);
                let (before, _) = self.link.samples();
                self.link.waiting(bytes, waited_us - busy.unwrap_or(0.0), now);
                self.follow(before);
            }
            Event::Probed => self.probing_since = None,
            Event::Accepted(installed) => {
                let is_news = installed.epoch > self.installed.epoch && installed.epoch <= self.last_epoch;
                if is_news && self.edge.is_some() && self.network.has(&installed.plan) {
                    self.move_to(installed);
                }
                return Vec::new();
            }
            Event::Refused => {
                // Asked for again later, if it is still worthwhile then.
                (self.asked, self.refused_at) = (None, Some(now));
                return Vec::new();
            }
            Event::DeadlineChanged { deadline_us } => {
                if deadline_us > 0.0 {
                    self.settings.deadline_us = deadline_us;
                }
            }
            Event::Pinned(plan) => {
                self.pinned = plan;
                // What was asked for before is not waited for, and a refusal of another plan says nothing of this one.
                (self.asked, self.refused_at) = (None, None);
            }
            Event::Tick => {
                let alone = self.installed.plan.placement(&self.network) == Placement::DeviceOnly;
                self.residuals.forget(alone);
                if let Some(edge) = &mut self.edge {
                    edge.queue_us *= QUEUE_KEPT;
                }
            }
        }
        self.replan(now)
    }

    /// The plan in force.
    pub fn installed(&self) -> Installed {
        self.installed
    }

    /// What the segments take on the device.
    pub fn device(&self) -> &Timings {
        &self.device
    }

    /// The network that is planned.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// What a plan would take now; nothing if it is none of this network, or cannot be run as things are: without an
    /// edge, with a codec that it does not take, or against what the operator allows.
    pub fn can_run(&self, plan: Plan) -> Option<Candidate> {
        self.predicted(plan)
    }

    /// What is known of the link.
    pub fn link(&self) -> &LinkEstimate {
        &self.link
    }

    /// How often the plan in force has changed.
    pub fn plan_changes(&self) -> u64 {
        self.plan_changes
    }

    /// The best the device can do alone in the time that is left: what a request falls back on. There
    /// is no second chance behind it, so it counts on slow runs rather than on usual ones. Exits below the accuracy
    /// do not answer.
    pub fn local(&self, remaining_us: f64, accuracy_min: f64) -> Choice {
        self.local_after(&[], remaining_us, accuracy_min)
    }

    /// The same for a request for which the device has run these segments, the first of an exit's way, and has kept what
    /// they gave: they cost nothing any more on any way that begins with them.
    pub fn local_after(&self, done: &[usize], remaining_us: f64, accuracy_min: f64) -> Choice {
        let device_us = (0..self.network.segments()).map(|segment| self.device.p90_us(segment)).collect();
        let profile = Profile { device_us, ..self.profile() };
        let constraints = Constraints { link: None, accuracy_min, ..self.constraints(remaining_us) };
        choose_alone(&self.network, &profile, &constraints, done)
    }

    /// The plan for one request: the one in force, unless it cannot keep this request's deadline and the device alone
    /// can, or is at least faster; or unless its exit is not accurate enough. Then the device answers alone, since
    /// a plan for both hosts is one that both have agreed on.
    pub fn for_request(&self, deadline_us: f64, accuracy_min: f64) -> Planned {
        let Margin { alone, together } = self.residuals.margin();
        let planned = |plan: Plan, predicted_us| Planned {
            installed: Installed { plan, ..self.installed },
            predicted_us,
            margin: if plan.placement(&self.network) == Placement::DeviceOnly { alone } else { together },
        };
        let predicted = self.predicted(self.installed.plan).map(|candidate| candidate.cost.total_us());
        let as_planned = planned(self.installed.plan, predicted);
        let is_accurate = self.network.exits()[self.installed.plan.exit].accuracy >= accuracy_min;
        // As likely as a plan must be, or of those that wait in a queue, half would be late by a little.
        let slow_us = predicted.map(|us| us * as_planned.margin);
        let is_in_time = !self.settings.strategy.falls_back() || slow_us.is_some_and(|us| us <= deadline_us);
        if is_accurate && is_in_time {
            return as_planned;
        }
        let hurried = self.local(deadline_us, accuracy_min);
        let plan = hurried.candidate.plan;
        // What it usually takes, as for any plan; that even its slow runs fit is what it was chosen for.
        let usual = self.predicted(plan).map(|candidate| candidate.cost.total_us());
        let is_faster = usual.is_some_and(|usual| predicted.is_none_or(|us| usual < us));
        if hurried.fits || is_faster || !is_accurate { planned(plan, usual) } else { as_planned }
    }

    /// How likely the plan in force is to keep a deadline.
    pub fn in_time(&self, planned: &Planned, deadline_us: f64) -> f64 {
        let crosses = planned.installed.plan.placement(&self.network) != Placement::DeviceOnly;
        planned.predicted_us.map_or(0.0, |us| self.residuals.in_time(crosses, us, deadline_us))
    }

    /// What would be planned now, and all plans there are, as [`explain`] tells them; with the link at another rate
    /// than it has, if one is given and there is an edge.
    pub fn explain(&self, rate_bps: Option<f64>) -> (Choice, Vec<Explained>) {
        let now = self.constraints(self.settings.deadline_us);
        let other = rate_bps.filter(|_| self.edge.is_some()).map(|rate_bps| Link {
            rate_bps,
            rtt_us: self.link.rtt_us(),
            message_bytes: self.settings.message_bytes,
        });
        let constraints = Constraints { margin: self.residuals.margin(), link: other.or(now.link), ..now };
        let profile = self.profile();
        let pinned = self.pinned.and_then(|plan| predict(&self.network, &profile, &constraints, plan));
        let choice = match pinned {
            Some(candidate) => Choice { fits: candidate.cost.total_us() <= constraints.deadline_us, candidate },
            None => self.settings.strategy.choose(&self.network, &profile, &constraints),
        };
        (choice, explain(&self.network, &profile, &constraints))
    }

    /// How long these segments usually take on the device.
    pub fn device_us(&self, segments: &[usize]) -> f64 {
        segments.iter().map(|segment| self.device.median_us(*segment)).sum()
    }

    /// How plans are chosen.
    pub fn strategy(&self) -> Strategy {
        self.settings.strategy
    }

    fn next(&mut self, plan: Plan) -> Installed {
        self.last_epoch += 1;
        Installed { epoch: self.last_epoch, plan }
    }

    fn move_to(&mut self, installed: Installed) {
        self.plan_changes += u64::from(installed.plan != self.installed.plan);
        self.installed = installed;
        self.asked = self.asked.filter(|(asked, _)| asked.epoch > installed.epoch);
    }

    /// Planning is cheap, so there is no test for "has enough changed?" before it: what keeps small
    /// changes from changing the plan is the hysteresis behind it.
    fn replan(&mut self, now: Duration) -> Vec<Action> {
        let overdue = |since: Duration, after: Duration| now.saturating_sub(since) >= after;
        self.asked = self.asked.filter(|(_, since)| !overdue(*since, PATIENCE));
        self.probing_since = self.probing_since.filter(|since| !overdue(*since, PATIENCE));
        self.refused_at = self.refused_at.filter(|since| !overdue(*since, ASK_AGAIN_AFTER));

        let mut actions = Vec::new();
        if self.edge.is_some() && self.probing_since.is_none() && self.link.should_probe(now) {
            self.probing_since = Some(now);
            actions.push(Action::Probe { bytes: self.link.probe_bytes() });
        }
        let choice = self.choose();
        if self.refused_at.is_none() && self.is_worthwhile(&choice.candidate) {
            let next = self.next(choice.candidate.plan);
            if self.edge.is_some() {
                self.asked = Some((next, now));
                actions.push(Action::Install(next));
            } else {
                // No peer to agree with: the device alone moves on at once.
                self.move_to(next);
            }
        }
        actions
    }

    /// Hysteresis. A plan that keeps the deadline gives way to one for a better exit, or to a clearly
    /// faster one for an equally good exit; never to a worse exit. Since an old plan need not be quite as
    /// likely to be in time as a new one, by [`PATIENT_SHARE`], a link that wavers a little changes nothing.
    /// Strategies that are there to be compared with ours change as they were published: at once.
    fn is_worthwhile(&self, new: &Candidate) -> bool {
        let old = self.asked.map_or(self.installed.plan, |(asked, _)| asked.plan);
        if new.plan == old {
            return false;
        }
        if self.pinned == Some(new.plan) {
            return true;
        }
        let Some(old) = self.predicted(old).filter(|_| self.settings.strategy == Strategy::Edgent) else { return true };
        let (old_us, new_us) = (old.cost.total_us(), new.cost.total_us());
        let is_clearly_faster = new_us < WORTHWHILE * old_us;
        let likely = |candidate: &Candidate| {
            let crosses = candidate.plan.placement(&self.network) != Placement::DeviceOnly;
            self.residuals.in_time(crosses, candidate.cost.total_us(), self.settings.deadline_us)
        };
        let share = self.settings.in_time_share;
        let enough = (share - PATIENT_SHARE).max(share / 2.0);
        if likely(&old) < enough {
            return likely(new) >= enough || is_clearly_faster;
        }
        // Of the exits, not of the plans: what a codec loses was found small enough to trade for time.
        let accuracy = |plan: Plan| self.network.exits()[plan.exit].accuracy;
        match accuracy(new.plan).total_cmp(&accuracy(old.plan)) {
            Ordering::Greater => true,
            Ordering::Equal => is_clearly_faster,
            Ordering::Less => false,
        }
    }

    fn predicted(&self, plan: Plan) -> Option<Candidate> {
        predict(&self.network, &self.profile(), &self.constraints(self.settings.deadline_us), plan)
    }

    /// Has the dynamic mode look at each new sample of the rate.
    fn follow(&mut self, samples_before: usize) {
        if let (Some(dynamic), (samples, Some(rate_bps))) = (&mut self.dynamic, self.link.samples()) {
            for _ in samples_before..samples {
                dynamic.observe(rate_bps);
            }
        }
    }

    /// The plans of the dynamic mode, made from what is known of both hosts when they meet.
    fn map(&self) -> Option<Dynamic> {
        let step = (MAP_RATE_MAX_BPS / MAP_RATE_MIN_BPS).powf(1.0 / (MAP_STATES - 1) as f64);
        let rates_bps: Vec<f64> = (0..MAP_STATES).map(|state| MAP_RATE_MIN_BPS * step.powi(state)).collect();
        let link =
            Link { rate_bps: MAP_RATE_MIN_BPS, rtt_us: self.link.rtt_us(), message_bytes: self.settings.message_bytes };
        let constraints = Constraints { link: Some(link), ..self.constraints(self.settings.deadline_us) };
        let map = ConfigurationMap::build(&self.network, &self.profile(), &constraints, &rates_bps).ok()?;
        Some(Dynamic::new(map, ChangePoints::new(ChangeSettings::default()), SWITCH_COST_REWARD))
    }

    fn choose(&self) -> Choice {
        if let Some(candidate) = self.pinned.and_then(|plan| self.predicted(plan)) {
            return Choice { fits: candidate.cost.total_us() <= self.settings.deadline_us, candidate };
        }
        let in_force = self.dynamic.as_ref().and_then(Dynamic::in_force);
        if let Some((state, candidate)) = in_force.and_then(|state| Some((state, self.predicted(state.plan)?))) {
            return Choice { candidate, fits: state.fits };
        }
        let constraints =
            Constraints { margin: self.residuals.margin(), ..self.constraints(self.settings.deadline_us) };
        self.settings.strategy.choose(&self.network, &self.profile(), &constraints)
    }

    fn constraints(&self, deadline_us: f64) -> Constraints {
        let Settings { input_may_leave, message_bytes, strategy, .. } = self.settings;
        let codec_loss_max = strategy.codec_loss_max(self.settings.codec_loss_max);
        let rate_bps = self.link.rate_bps().filter(|_| self.edge.is_some());
        let link = rate_bps.map(|rate_bps| Link { rate_bps, rtt_us: self.link.rtt_us(), message_bytes });
        Constraints { deadline_us, codec_loss_max, input_may_leave, link, accuracy_min: 0.0, margin: Margin::NONE }
    }

    fn profile(&self) -> Profile {
        let device_us = self.device.medians_us();
        let Some(edge) = &self.edge else {
            let coding = PerCodec::from_fn(|_| Coding::NONE);
            return Profile { device_us, edge_us: Vec::new(), edge_queue_us: 0.0, coding };
        };
        let Edge { timings, coding, queue_us } = edge;
        Profile { device_us, edge_us: timings.medians_us(), edge_queue_us: *queue_us, coding: *coding }
    }
}
