//! Ways to choose a plan: ours, the paper's, and what both are compared with.

use crate::choose::{Choice, Constraints, Way, choose, predict};
use crate::codec::Codec;
use crate::map::ConfigurationMap;
use crate::network::{Direction, Network, Plan, Profile};
use crate::paper::algorithm_1;

/// How plans are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// The most accurate exit that is likely to be in time, at its fastest cut, order and codec; and a
    /// local exit when the edge is late.
    #[default]
    Edgent,
    /// Algorithm 1 as published, with its placement; least latency by our prediction where it finds nothing.
    Paper,
    /// The journal paper's dynamic mode: a plan made beforehand for each state of the link, followed when a
    /// change point says that the state is another (see [`Dynamic`](crate::Dynamic)).
    Dynamic,
    /// The best exit at its fastest cut, device first, whatever the deadline: Neurosurgeon (Kang et al. 2017).
    PartitionOnly,
    /// The best exit that the device alone reaches in time: right-sizing without an edge.
    ExitOnly,
    /// The best exit on the device.
    DeviceOnly,
    /// The best exit on the edge, which is sent the input as it is.
    EdgeOnly,
    /// The same, with the input sent as PNG where it is a picture: what one does without a runtime like this.
    EdgeOnlyPng,
    /// The same as JPEG, whatever accuracy that costs.
    EdgeOnlyJpeg,
}

impl Strategy {
    /// Every strategy, ours first.
    pub const ALL: [Self; 9] = [
        Self::Edgent,
        Self::Paper,
        Self::Dynamic,
        Self::PartitionOnly,
        Self::ExitOnly,
        Self::DeviceOnly,
        Self::EdgeOnly,
        Self::EdgeOnlyPng,
        Self::EdgeOnlyJpeg,
    ];

    /// What it is called in commands and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Edgent => "edgent",
            Self::Paper => "paper",
            Self::Dynamic => "dynamic",
            Self::PartitionOnly => "partition-only",
            Self::ExitOnly => "exit-only",
            Self::DeviceOnly => "device-only",
            Self::EdgeOnly => "edge-only",
            Self::EdgeOnlyPng => "edge-only-png",
            Self::EdgeOnlyJpeg => "edge-only-jpeg",
        }
    }

    /// The strategy of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|strategy| strategy.name() == name)
    }

    /// Whether a request whose plan is late is answered by a local exit meanwhile. The others are run
    /// as they were published: they wait.
    pub const fn falls_back(self) -> bool {
        matches!(self, Self::Edgent)
    }

    /// How much accuracy a codec may cost: as much as the operator says, but who always sends JPEG does not ask.
    pub const fn codec_loss_max(self, wanted: f64) -> f64 {
        match self {
            Self::EdgeOnlyJpeg => 1.0,
            _ => wanted,
        }
    }

    /// The plan to take now. Without an edge, every strategy stays on the device. What the dynamic mode
    /// remembers of the link's past is the controller's; here, its plan for the present rate is given.
    pub fn choose(self, network: &Network, profile: &Profile, constraints: &Constraints) -> Choice {
        let constraints =
            &Constraints { codec_loss_max: self.codec_loss_max(constraints.codec_loss_max), ..*constraints };
        let best = best_exit(network);
        let of_best = |allowed: &dyn Fn(Plan) -> bool| {
            let way = Way::new(network, profile, constraints, best);
            let candidate = way.best_of(allowed);
            Choice { candidate, fits: way.fits(&candidate) }
        };
        let edge_only = |codec| {
            let way = Way::new(network, profile, constraints, best);
            let there = |codec| way.allowed(Plan { exit: best, cut: 0, direction: Direction::DeviceFirst, codec });
            let candidate = there(codec).or_else(|| there(Codec::Raw)).unwrap_or_else(|| way.device_only());
            Choice { candidate, fits: way.fits(&candidate) }
        };
        match self {
            Self::Edgent => choose(network, profile, constraints),
            Self::ExitOnly => choose(network, profile, &Constraints { link: None, ..*constraints }),
            Self::Dynamic => {
                let rate_bps = constraints.link.map_or(1.0, |link| link.rate_bps);
                let map = ConfigurationMap::build(network, profile, constraints, &[rate_bps]);
                let state = map.ok().map(|map| *map.lookup(rate_bps));
                let known =
                    state.and_then(|state| Some((predict(network, profile, constraints, state.plan)?, state.fits)));
                known.map_or_else(
                    || choose(network, profile, constraints),
                    |(candidate, fits)| Choice { candidate, fits },
                )
            }
            Self::PartitionOnly => {
                of_best(&|plan| plan.codec == Codec::Raw && plan.direction == Direction::DeviceFirst)
            }
            Self::DeviceOnly => of_best(&|_| false),
            Self::EdgeOnly => edge_only(Codec::Raw),
            Self::EdgeOnlyPng => edge_only(Codec::Png),
            Self::EdgeOnlyJpeg => edge_only(Codec::Jpeg),
            Self::Paper => {
                let found = constraints.link.filter(|_| constraints.input_may_leave);
                let rate_bps = found.map_or(0.0, |link| link.rate_bps);
                let found = algorithm_1(network, profile, rate_bps, constraints.deadline_us);
                let candidate = found.and_then(|(plan, _)| {
                    let way = Way::new(network, profile, constraints, plan.exit);
                    way.allowed(plan)
                });
                // NULL: nothing fits by the paper's cost.
                let least = || choose(network, profile, &Constraints { deadline_us: 0.0, ..*constraints });
                candidate.map_or_else(least, |candidate| Choice { candidate, fits: true })
            }
        }
    }
}

/// The exit of greatest measured accuracy; of equals the deeper one.
fn best_exit(network: &Network) -> usize {
    let exits = network.exits().iter().enumerate();
    exits.max_by(|a, b| a.1.accuracy.total_cmp(&b.1.accuracy)).map_or(0, |(index, _)| index)
}
