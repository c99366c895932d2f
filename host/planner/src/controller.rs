//! What the device does next: `(state, event, now) → actions`.

use crate::choose::{Candidate, Choice, Constraints, Link, choose};
use crate::estimate::{Exchange, LinkEstimate};
use crate::network::{Network, Plan, Profile};
use crate::timing::Timings;
use std::time::Duration;

/// A plan is planned with this share of the deadline, so that a little bad luck does not miss it.
const DEADLINE_SHARE: f64 = 0.9;

/// A new plan that is no more accurate must be faster by this factor to be worth a change.
const WORTHWHILE: f64 = 0.85;

/// The link is probed when nothing has told of its rate for this long.
const PROBE_AFTER: Duration = Duration::from_millis(400);

/// What the operator asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Time from a request to its answer.
    pub deadline_us: f64,
    /// How much accuracy coding an activation may cost.
    pub codec_loss_max: f64,
    /// Whether the network's raw input may leave the device.
    pub input_may_leave: bool,
}

/// The device's knowledge and its current plan.
#[derive(Debug)]
pub struct Controller {
    network: Network,
    settings: Settings,
    device: Timings,
    edge: Option<Edge>,
    link: LinkEstimate,
    installed: Installed,
    wanted: Plan,
    probing_since: Option<Duration>,
    plan_changes: u64,
}

#[derive(Debug)]
struct Edge {
    timings: Timings,
    codec_us_per_byte: f64,
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
    /// An edge answered and told its profile.
    EdgeConnected {
        /// Time of each segment there.
        segments_us: Vec<f64>,
        /// Coding, for each byte, both hosts together.
        codec_us_per_byte: f64,
        /// The wait before a request runs.
        queue_us: f64,
    },
    /// The edge is gone.
    EdgeLost,
    /// Something was sent and something came back.
    Exchanged(Exchange),
    /// Something was sent and nothing has come back yet.
    Waiting {
        /// Bytes of the request.
        bytes: u64,
        /// For how long.
        waited_us: f64,
    },
    /// A probe ended, well or not.
    Probed,
    /// The edge accepted a plan.
    Accepted(Installed),
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
    /// Starts on the device alone, with the exit that its profile allows.
    pub fn new(network: Network, settings: Settings, device: Timings) -> Self {
        let mut controller = Self {
            installed: Installed { epoch: 0, plan: Plan::device_only(&network, 0) },
            wanted: Plan::device_only(&network, 0),
            network,
            settings,
            device,
            edge: None,
            link: LinkEstimate::default(),
            probing_since: None,
            plan_changes: 0,
        };
        let plan = controller.choose(None, controller.planned_us()).candidate.plan;
        controller.installed.plan = plan;
        controller.wanted = plan;
        controller
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
            Event::EdgeConnected { segments_us, codec_us_per_byte, queue_us } => {
                let mut timings = Timings::new(self.network.segments());
                segments_us.iter().enumerate().for_each(|(segment, us)| timings.record(segment, *us));
                self.edge = Some(Edge { timings, codec_us_per_byte, queue_us });
                self.probing_since = None;
            }
            Event::EdgeLost => {
                self.edge = None;
                // What comes back may be another link.
                self.link = LinkEstimate::default();
                let plan = self.choose(None, self.planned_us()).candidate.plan;
                // No peer to agree with: the device alone moves on at once.
                self.move_to(Installed { epoch: self.installed.epoch + 1, plan });
                return Vec::new();
            }
            Event::Exchanged(exchange) => self.link.exchanged(exchange, now),
            Event::Waiting { bytes, waited_us } => self.link.waiting(bytes, waited_us, now),
            Event::Probed => self.probing_since = None,
            Event::Accepted(installed) => {
                if installed.epoch > self.installed.epoch && self.edge.is_some() {
                    self.move_to(installed);
                }
                return Vec::new();
            }
            Event::Tick => {}
        }
        self.replan(now)
    }

    /// The plan in force.
    pub fn installed(&self) -> Installed {
        self.installed
    }

    /// The network that is planned.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// What is known of the link.
    pub fn link(&self) -> &LinkEstimate {
        &self.link
    }

    /// How often the plan in force has changed.
    pub fn plan_changes(&self) -> u64 {
        self.plan_changes
    }

    /// The best the device can do alone in the time that is left: what a request falls back on.
    pub fn local(&self, remaining_us: f64) -> Choice {
        self.choose(None, remaining_us)
    }

    /// The plan for one request: the one in force, unless it cannot keep this request's deadline
    /// and the device alone can.
    pub fn for_request(&self, deadline_us: f64) -> Installed {
        if self.predicted(self.installed.plan).is_some_and(|candidate| candidate.cost.total_us() <= deadline_us) {
            return self.installed;
        }
        let alone = self.local(deadline_us);
        if alone.fits { Installed { plan: alone.candidate.plan, ..self.installed } } else { self.installed }
    }

    fn move_to(&mut self, installed: Installed) {
        self.plan_changes += u64::from(installed.plan != self.installed.plan);
        self.installed = installed;
        self.wanted = installed.plan;
    }

    fn replan(&mut self, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.edge.is_none() {
            return actions;
        }
        let stale = self.link.age(now).is_none_or(|age| age >= PROBE_AFTER);
        if stale && self.probing_since.is_none() {
            self.probing_since = Some(now);
            actions.push(Action::Probe { bytes: self.link.probe_bytes() });
        }
        let Some(link) = self.usable_link() else { return actions };
        let choice = self.choose(Some(link), self.planned_us());
        if choice.candidate.plan != self.wanted && self.is_worthwhile(&choice) {
            self.wanted = choice.candidate.plan;
            actions.push(Action::Install(Installed { epoch: self.installed.epoch + 1, plan: self.wanted }));
        }
        actions
    }

    /// Hysteresis: the plan in force stays unless it no longer fits, or the new one answers better
    /// or clearly faster.
    fn is_worthwhile(&self, choice: &Choice) -> bool {
        let Some(wanted) = self.predicted(self.wanted) else { return true };
        let new = &choice.candidate;
        if wanted.cost.total_us() > self.settings.deadline_us {
            return new.cost.total_us() < wanted.cost.total_us();
        }
        new.accuracy > wanted.accuracy || new.cost.total_us() < WORTHWHILE * wanted.cost.total_us()
    }

    fn predicted(&self, plan: Plan) -> Option<Candidate> {
        let constraints = self.constraints(self.usable_link(), self.settings.deadline_us);
        crate::explain(&self.network, &self.profile(), &constraints).into_iter().find(|candidate| candidate.plan == plan)
    }

    fn usable_link(&self) -> Option<Link> {
        self.edge.as_ref()?;
        Some(Link { rate_bps: self.link.rate_bps()?, rtt_us: self.link.rtt_us() })
    }

    fn planned_us(&self) -> f64 {
        self.settings.deadline_us * DEADLINE_SHARE
    }

    fn choose(&self, link: Option<Link>, deadline_us: f64) -> Choice {
        choose(&self.network, &self.profile(), &self.constraints(link, deadline_us))
    }

    fn constraints(&self, link: Option<Link>, deadline_us: f64) -> Constraints {
        let Settings { codec_loss_max, input_may_leave, .. } = self.settings;
        Constraints { deadline_us, codec_loss_max, input_may_leave, link }
    }

    fn profile(&self) -> Profile {
        let unknown = || vec![f64::INFINITY; self.network.segments()];
        Profile {
            device_us: self.device.medians_us(),
            edge_us: self.edge.as_ref().map_or_else(unknown, |edge| edge.timings.medians_us()),
            edge_queue_us: self.edge.as_ref().map_or(0.0, |edge| edge.queue_us),
            codec_us_per_byte: self.edge.as_ref().map_or(0.0, |edge| edge.codec_us_per_byte),
        }
    }
}
