//! Which plan: Algorithm 1 of the Edgent paper, extended.
//!
//! As published: for each exit, deepest first, take the cut of least predicted latency; the first
//! exit whose least latency is within the deadline wins. What differs here, and why:
//!
//! * exits are tried by *measured* accuracy: a deeper exit is not always a better one;
//! * both orders of the hosts are searched (the paper runs the first segments on the edge; for most
//!   networks the other order sends less), and both ends, device-only and edge-only, are plain cases;
//! * a round trip, the time spent coding, the wait at the edge and the answer's own bytes count:
//!   leaving them out is what others regret;
//! * the activation may cross in any codec that both hosts take, where the accuracy lost by it was measured
//!   and is small;
//! * if nothing fits, the answer says so, and the plan of least latency is taken.
//!
//! Any figures are taken: what is no time counts as unknown, so no plan relies on it.

use crate::codec::Codec;
use crate::network::{Direction, Exit, Network, Plan, Profile};
use crate::residuals::Margin;

/// The link as it is now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Bits a second, in either direction.
    pub rate_bps: f64,
    /// Round trip of an empty message.
    pub rtt_us: f64,
    /// Bytes that a message takes beside its activation.
    pub message_bytes: u64,
}

/// What a plan must keep to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constraints {
    /// Time from the request to the answer.
    pub deadline_us: f64,
    /// How much accuracy coding an activation may cost.
    pub codec_loss_max: f64,
    /// Whether the network's raw input may leave the device (the privacy floor).
    pub input_may_leave: bool,
    /// The lowest measured accuracy of an exit that may answer. Where none has it, the best one answers.
    pub accuracy_min: f64,
    /// The link, if there is an edge at the other end of it.
    pub link: Option<Link>,
    /// How much longer than predicted a plan must be allowed to take, to be in time as often as wanted.
    pub margin: Margin,
}

/// What a plan is predicted to cost, by part.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Segments on the device.
    pub device_us: f64,
    /// Segments on the edge.
    pub edge_us: f64,
    /// The wait at the edge before they run.
    pub queue_us: f64,
    /// Bytes over the link, both ways.
    pub transfer_us: f64,
    /// The round trip.
    pub rtt_us: f64,
    /// Coding and decoding.
    pub codec_us: f64,
}

impl Cost {
    /// All parts together.
    pub fn total_us(&self) -> f64 {
        self.device_us + self.edge_us + self.queue_us + self.transfer_us + self.rtt_us + self.codec_us
    }
}

/// A plan that could be taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// What would be done.
    pub plan: Plan,
    /// What it would cost.
    pub cost: Cost,
    /// How often it would be right.
    pub accuracy: f64,
}

/// The plan to take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// What to do, and what it is predicted to cost.
    pub candidate: Candidate,
    /// Whether it is likely enough to keep the deadline. If not, no plan was, and this is the one of least
    /// predicted latency.
    pub fits: bool,
}

/// A plan, and what became of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Explained {
    /// The plan.
    pub candidate: Candidate,
    /// Why it was taken, or was not.
    pub verdict: Verdict,
}

/// Why a plan was taken, or was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was taken.
    Chosen,
    /// It would send the raw input, which must stay.
    InputMustStay,
    /// Coding the activation there costs too much accuracy.
    CodecTooLossy,
    /// It is predicted to miss the deadline.
    TooSlow,
    /// It fits, and so does one for the same exit that is no slower.
    Slower,
    /// It fits, and so does one for an exit that is at least as accurate.
    LessAccurate,
}

impl Verdict {
    /// The same for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Chosen => "chosen",
            Self::InputMustStay => "the input must stay",
            Self::CodecTooLossy => "the codec costs too much accuracy",
            Self::TooSlow => "not likely to be in time",
            Self::Slower => "slower, for the same exit",
            Self::LessAccurate => "a better exit is in time",
        }
    }
}

/// The plan to take now.
pub fn choose(network: &Network, profile: &Profile, constraints: &Constraints) -> Choice {
    choose_by(network, profile, constraints, |way| way.best_of(&|_| true))
}

/// The exit to take on the device alone, which has run these segments, the first of a way, and has kept what they gave.
pub(crate) fn choose_alone(network: &Network, profile: &Profile, constraints: &Constraints, done: &[usize]) -> Choice {
    choose_by(network, profile, constraints, |way| way.device_only_after(done))
}

/// The most accurate exit whose plan fits; if none does, the fastest.
fn choose_by(
    network: &Network,
    profile: &Profile,
    constraints: &Constraints,
    best_of: impl Fn(&Way) -> Candidate,
) -> Choice {
    let exits = network.exits();
    let mut order: Vec<usize> = (0..exits.len()).collect();
    order.sort_by(|a, b| exits[*b].accuracy.total_cmp(&exits[*a].accuracy));
    let enough = order.iter().take_while(|exit| exits[**exit].accuracy >= constraints.accuracy_min).count();
    order.truncate(enough.max(1));
    let mut least: Option<Candidate> = None;
    for exit in order {
        let way = Way::new(network, profile, constraints, exit);
        let best = best_of(&way);
        if way.fits(&best) {
            return Choice { candidate: best, fits: true };
        }
        if least.is_none_or(|least| best.cost.total_us() < least.cost.total_us()) {
            least = Some(best);
        }
    }
    let candidate = least.unwrap_or_else(|| Way::new(network, profile, constraints, 0).device_only());
    Choice { candidate, fits: false }
}

/// Every plan that is possible, with what it would cost and why it was taken or not. Not listed:
/// plans with an edge while there is none or it is not known what it costs, and codecs that were
/// not measured at a cut.
pub fn explain(network: &Network, profile: &Profile, constraints: &Constraints) -> Vec<Explained> {
    let chosen = choose(network, profile, constraints).candidate.plan;
    let ways = (0..network.exits().len()).map(|exit| Way::new(network, profile, constraints, exit));
    ways.flat_map(|way| {
        let explained = |plan| {
            let candidate = way.candidate(plan)?;
            let verdict = match way.refusal(&candidate) {
                Some(refusal) => refusal,
                None if plan == chosen => Verdict::Chosen,
                None if !way.fits(&candidate) => Verdict::TooSlow,
                None if plan.exit == chosen.exit => Verdict::Slower,
                None => Verdict::LessAccurate,
            };
            Some(Explained { candidate, verdict })
        };
        way.plans().filter_map(explained).collect::<Vec<_>>()
    })
    .collect()
}

/// One plan with its cost, or `None` if it may not or cannot be taken.
pub(crate) fn predict(
    network: &Network,
    profile: &Profile,
    constraints: &Constraints,
    plan: Plan,
) -> Option<Candidate> {
    network.has(&plan).then(|| Way::new(network, profile, constraints, plan.exit))?.allowed(plan)
}

/// The way to one exit, with the times of its ends summed, so that each cut costs the same to judge.
pub(crate) struct Way<'a> {
    network: &'a Network,
    profile: &'a Profile,
    constraints: &'a Constraints,
    index: usize,
    exit: &'a Exit,
    device: Sums,
    edge: Sums,
}

impl<'a> Way<'a> {
    pub(crate) fn new(network: &'a Network, profile: &'a Profile, constraints: &'a Constraints, index: usize) -> Self {
        let exit = &network.exits()[index];
        let device = Sums::new(&profile.device_us, &exit.path);
        let edge = Sums::new(&profile.edge_us, &exit.path);
        Self { network, profile, constraints, index, exit, device, edge }
    }

    fn plans(&self) -> impl Iterator<Item = Plan> {
        let (exit, segments) = (self.index, self.exit.path.len());
        // The two ends are the same in either direction; they are counted once, as device first.
        let cuts = (0..=segments).map(|cut| (cut, Direction::DeviceFirst));
        let cuts = cuts.chain((1..segments).map(|cut| (cut, Direction::EdgeFirst)));
        cuts.flat_map(move |(cut, direction)| Codec::ALL.map(|codec| Plan { exit, cut, direction, codec }))
    }

    /// The fastest of those that are likely to be in time; if none is, the fastest.
    pub(crate) fn best_of(&self, allowed: &dyn Fn(Plan) -> bool) -> Candidate {
        let candidates = self.plans().filter(|plan| allowed(*plan)).filter_map(|plan| self.allowed(plan));
        candidates.fold(self.device_only(), |best, next| if self.is_preferred(&next, &best) { next } else { best })
    }

    /// The plan with its cost, or `None` if it may not or cannot be taken.
    pub(crate) fn allowed(&self, plan: Plan) -> Option<Candidate> {
        self.candidate(plan).filter(|candidate| self.refusal(candidate).is_none())
    }

    /// Whether it is likely enough to be in time. Without a deadline (infinity), an unknown cost still
    /// does not fit.
    pub(crate) fn fits(&self, candidate: &Candidate) -> bool {
        let Margin { alone, together } = self.constraints.margin;
        let margin = if candidate.plan.edge_segments(self.exit.path.len()) == 0 { alone } else { together };
        let slow_us = candidate.cost.total_us() * margin;
        slow_us.is_finite() && slow_us <= self.constraints.deadline_us
    }

    /// In time rather than not; then less latency; between equals, what sends less and leaves more on the
    /// device, so that ties do not flap.
    fn is_preferred(&self, a: &Candidate, b: &Candidate) -> bool {
        let on_edge = |candidate: &Candidate| candidate.plan.edge_segments(self.exit.path.len());
        let in_time = self.fits(b).cmp(&self.fits(a));
        let latency = in_time.then(a.cost.total_us().total_cmp(&b.cost.total_us()));
        latency.then(a.cost.transfer_us.total_cmp(&b.cost.transfer_us)).then(on_edge(a).cmp(&on_edge(b))).is_lt()
    }

    pub(crate) fn device_only(&self) -> Candidate {
        self.device_only_after(&[])
    }

    /// What is left to do on the device that has run these segments, if they are the first of this way; else all of it.
    fn device_only_after(&self, done: &[usize]) -> Candidate {
        let segments = self.exit.path.len();
        let left = if self.exit.path.starts_with(done) { segments - done.len() } else { segments };
        let cost = Cost { device_us: self.device.last(left), ..Cost::default() };
        Candidate { plan: Plan::device_only(self.network, self.index), cost, accuracy: self.exit.accuracy }
    }

    /// The plan with its cost and accuracy, or `None` if it cannot be told or does not exist.
    fn candidate(&self, plan: Plan) -> Option<Candidate> {
        let Self { network, profile, exit, .. } = self;
        let segments = exit.path.len();
        let on_edge = plan.edge_segments(segments);
        if on_edge == 0 {
            return (plan == Plan::device_only(network, self.index)).then(|| self.device_only());
        }
        let link = self.constraints.link?;
        let crossing = network.boundary(exit, plan.cut);
        let (bytes, accuracy) = (crossing.bytes(plan.codec)?, exit.accuracy_at(plan.cut, plan.codec)?);
        let coding = profile.coding[plan.codec];
        let (device_us, edge_us, coding_us_per_byte, others) = match plan.direction {
            // Up goes the activation, down comes the answer.
            Direction::DeviceFirst => (
                self.device.first(plan.cut),
                self.edge.last(on_edge),
                coding.up_us_per_byte,
                network.boundary(exit, segments),
            ),
            // Up goes the input, down comes the activation.
            Direction::EdgeFirst => (
                self.device.last(segments - plan.cut),
                self.edge.first(on_edge),
                coding.down_us_per_byte,
                network.boundary(exit, 0),
            ),
        };
        let cost = Cost {
            device_us,
            edge_us,
            queue_us: known(profile.edge_queue_us),
            transfer_us: known(
                (bytes as f64 + others.raw_bytes() as f64 + link.message_bytes as f64) * 8e6 / link.rate_bps,
            ),
            rtt_us: known(link.rtt_us),
            codec_us: known(crossing.raw_bytes() as f64 * coding_us_per_byte),
        };
        cost.total_us().is_finite().then_some(Candidate { plan, cost, accuracy })
    }

    /// Why a plan may not be taken, however fast it is.
    fn refusal(&self, candidate: &Candidate) -> Option<Verdict> {
        let Plan { cut, direction, codec, .. } = candidate.plan;
        let input_leaves = direction == Direction::EdgeFirst || cut == 0;
        // A bound that is no number (NaN) is kept by no codec.
        let loss_is_small = candidate.accuracy >= self.exit.accuracy - self.constraints.codec_loss_max;
        if input_leaves && !self.constraints.input_may_leave {
            Some(Verdict::InputMustStay)
        } else if codec != Codec::Raw && !loss_is_small {
            Some(Verdict::CodecTooLossy)
        } else {
            None
        }
    }
}

/// Times of a path's first and last segments. Both are added up rather than one subtracted from the
/// whole: beside an unknown time, a known one must stay known.
struct Sums {
    first_us: Vec<f64>,
    last_us: Vec<f64>,
}

impl Sums {
    fn new(times_us: &[f64], path: &[usize]) -> Self {
        let time = |segment: &usize| times_us.get(*segment).map_or(f64::INFINITY, |us| known(*us));
        let add = |sum: &mut f64, us: f64| {
            *sum += us;
            Some(*sum)
        };
        let start = || std::iter::once(0.0);
        Self {
            first_us: start().chain(path.iter().map(time).scan(0.0, add)).collect(),
            last_us: start().chain(path.iter().rev().map(time).scan(0.0, add)).collect(),
        }
    }

    fn first(&self, segments: usize) -> f64 {
        self.first_us[segments]
    }

    fn last(&self, segments: usize) -> f64 {
        self.last_us[segments]
    }
}

/// A time, or infinity for what is none.
fn known(us: f64) -> f64 {
    if us >= 0.0 { us } else { f64::INFINITY }
}
