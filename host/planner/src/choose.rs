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
//! * the activation may cross as u8 where the accuracy lost by that was measured and is small;
//! * if nothing fits, the answer says so, and the plan of least latency is taken.

use crate::network::{Codec, Direction, Exit, Network, Placement, Plan, Profile};

/// The link as it is now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Bits a second, in either direction.
    pub rate_bps: f64,
    /// Round trip of an empty message.
    pub rtt_us: f64,
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
    /// The link, if there is an edge at the other end of it.
    pub link: Option<Link>,
}

/// What a plan is predicted to cost, by part.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Segments on the device.
    pub device_us: f64,
    /// Segments on the edge, and the wait before them.
    pub edge_us: f64,
    /// Bytes over the link, both ways, and the round trip.
    pub transfer_us: f64,
    /// Coding and decoding.
    pub codec_us: f64,
}

impl Cost {
    /// All parts together.
    pub fn total_us(&self) -> f64 {
        self.device_us + self.edge_us + self.transfer_us + self.codec_us
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
    /// Whether it is predicted to keep the deadline. If not, nothing was.
    pub fits: bool,
}

/// The plan to take now.
pub fn choose(network: &Network, profile: &Profile, constraints: &Constraints) -> Choice {
    let mut order: Vec<usize> = (0..network.exits().len()).collect();
    order.sort_by(|a, b| network.exits()[*b].accuracy.total_cmp(&network.exits()[*a].accuracy));
    let fastest = |exit: usize| {
        let mut best: Option<Candidate> = None;
        each_candidate(network, profile, constraints, exit, &mut |candidate| {
            if best.is_none_or(|best| preferred(&candidate, &best)) {
                best = Some(candidate);
            }
        });
        best
    };
    let mut least: Option<Candidate> = None;
    for candidate in order.into_iter().filter_map(fastest) {
        if candidate.cost.total_us() <= constraints.deadline_us {
            return Choice { candidate, fits: true };
        }
        if least.is_none_or(|least| preferred(&candidate, &least)) {
            least = Some(candidate);
        }
    }
    let device_only = || candidate(network, profile, constraints, Plan::device_only(network, 0));
    Choice { candidate: least.or_else(device_only).unwrap_or_else(|| nothing_known(network)), fits: false }
}

/// Every plan that the constraints allow, whatever its latency.
pub fn explain(network: &Network, profile: &Profile, constraints: &Constraints) -> Vec<Candidate> {
    let mut all = Vec::new();
    for exit in 0..network.exits().len() {
        each_candidate(network, profile, constraints, exit, &mut |candidate| all.push(candidate));
    }
    all
}

/// Less latency; between equals, the plan that leaves more on the device, so that ties do not flap.
fn preferred(a: &Candidate, b: &Candidate) -> bool {
    let latency = a.cost.total_us().total_cmp(&b.cost.total_us());
    latency.then(a.cost.transfer_us.total_cmp(&b.cost.transfer_us)).is_lt()
}

fn each_candidate(
    network: &Network,
    profile: &Profile,
    constraints: &Constraints,
    exit: usize,
    visit: &mut dyn FnMut(Candidate),
) {
    let segments = network.exits()[exit].path.len();
    let mut consider = |cut, direction, codec| {
        if let Some(candidate) = candidate(network, profile, constraints, Plan { exit, cut, direction, codec }) {
            visit(candidate);
        }
    };
    // The two ends are the same in either direction; they are counted once, as device first.
    for codec in [Codec::Raw, Codec::U8] {
        (0..=segments).for_each(|cut| consider(cut, Direction::DeviceFirst, codec));
        (1..segments).for_each(|cut| consider(cut, Direction::EdgeFirst, codec));
    }
}

/// The plan with its cost and accuracy, or `None` if it is not allowed.
fn candidate(network: &Network, profile: &Profile, constraints: &Constraints, plan: Plan) -> Option<Candidate> {
    let exit = &network.exits()[plan.exit];
    let (first, second) = exit.path.split_at(plan.cut);
    let sum = |times: &[f64], segments: &[usize]| -> f64 {
        segments.iter().map(|s| times.get(*s).copied().unwrap_or(f64::INFINITY)).sum()
    };
    if plan.placement(network) == Placement::DeviceOnly {
        let cost = Cost { device_us: sum(&profile.device_us, first), ..Cost::default() };
        return (plan.codec == Codec::Raw).then_some(Candidate { plan, cost, accuracy: exit.accuracy });
    }
    let link = constraints.link?;
    let input_leaves = plan.direction == Direction::EdgeFirst || plan.cut == 0;
    if input_leaves && !constraints.input_may_leave {
        return None;
    }
    let (bytes, accuracy) = crossing(network, exit, &plan)?;
    if accuracy < exit.accuracy - constraints.codec_loss_max {
        return None;
    }
    let (on_device, on_edge, others) = match plan.direction {
        // Up goes the activation, down comes the answer.
        Direction::DeviceFirst => (first, second, network.boundary(exit, exit.path.len()).raw_bytes),
        // Up goes the input, down comes the activation.
        Direction::EdgeFirst => (second, first, network.boundary(exit, 0).raw_bytes),
    };
    let coded_bytes = if plan.codec == Codec::U8 { bytes } else { 0 };
    let cost = Cost {
        device_us: sum(&profile.device_us, on_device),
        edge_us: sum(&profile.edge_us, on_edge) + profile.edge_queue_us,
        transfer_us: (bytes + others) as f64 * 8e6 / link.rate_bps + link.rtt_us,
        codec_us: coded_bytes as f64 * profile.codec_us_per_byte,
    };
    cost.total_us().is_finite().then_some(Candidate { plan, cost, accuracy })
}

/// Bytes of the activation at the cut, and the exit's accuracy when it crosses there.
fn crossing(network: &Network, exit: &Exit, plan: &Plan) -> Option<(u64, f64)> {
    let boundary = network.boundary(exit, plan.cut);
    match plan.codec {
        Codec::Raw => Some((boundary.raw_bytes, exit.accuracy)),
        Codec::U8 => Some((boundary.u8_bytes?, exit.u8_accuracy[plan.cut]?)),
    }
}

/// Before anything has been measured: the first exit, here.
fn nothing_known(network: &Network) -> Candidate {
    let cost = Cost { device_us: f64::INFINITY, ..Cost::default() };
    Candidate { plan: Plan::device_only(network, 0), cost, accuracy: network.exits()[0].accuracy }
}
