//! What can be planned: a network's exits, the segments on the way to each, and what crosses between.

use crate::codec::{Codec, Coding, PerCodec};

/// A network as the planner sees it. Indices have been checked by [`Network::new`].
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    boundaries: Vec<Boundary>,
    exits: Vec<Exit>,
    segments: usize,
}

/// What crosses a place where the network can be cut: its bytes on the wire by each codec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boundary {
    raw_bytes: u64,
    coded_bytes: PerCodec<Option<u64>>,
}

impl Boundary {
    /// An activation of so many bytes, for which no other codec is known yet.
    pub fn new(raw_bytes: u64) -> Self {
        Self { raw_bytes, coded_bytes: PerCodec::default() }
    }

    /// The same, but that it can be written by this codec, too.
    #[must_use]
    pub fn with(mut self, codec: Codec, bytes: u64) -> Self {
        self.coded_bytes[codec] = Some(bytes);
        self
    }

    /// Bytes of the activation as it is.
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    /// Bytes that a codec makes of it, as many as nearly every time; `None` if it cannot be written so.
    pub fn bytes(&self, codec: Codec) -> Option<u64> {
        if codec == Codec::Raw { Some(self.raw_bytes) } else { self.coded_bytes[codec] }
    }
}

/// A place where the network can stop and answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Exit {
    /// Measured share of right answers.
    pub accuracy: f64,
    /// Segments from the input to here.
    pub path: Vec<usize>,
    /// Boundaries before, between and behind those segments: one more than there are segments.
    pub boundaries: Vec<usize>,
    /// Measured share of right answers with the activation at each of `boundaries` written by each codec.
    pub coded_accuracy: Vec<PerCodec<Option<f64>>>,
}

impl Exit {
    /// Share of right answers with the activation at a cut written by a codec; `None` if it was not measured.
    pub fn accuracy_at(&self, cut: usize, codec: Codec) -> Option<f64> {
        if codec == Codec::Raw { Some(self.accuracy) } else { self.coded_accuracy[cut][codec] }
    }
}

/// Which host runs the first segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The device, and the edge the rest: the usual order (Neurosurgeon, DADS).
    DeviceFirst,
    /// The edge, and the device the rest: the order of the Edgent paper.
    EdgeFirst,
}

/// Which exit, and which host runs which of its segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Index of the exit.
    pub exit: usize,
    /// How many segments of the exit's path run on the first host.
    pub cut: usize,
    /// Which host is first.
    pub direction: Direction,
    /// How the activation at the cut is written for the wire.
    pub codec: Codec,
}

/// What a plan amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Nothing leaves the device.
    DeviceOnly,
    /// Both hosts run segments.
    Split,
    /// The device only sends and receives.
    EdgeOnly,
}

impl Plan {
    /// Everything on the device.
    pub fn device_only(network: &Network, exit: usize) -> Self {
        let cut = network.exits[exit].path.len();
        Self { exit, cut, direction: Direction::DeviceFirst, codec: Codec::Raw }
    }

    /// Where the segments run. The plan must be one of this network.
    pub fn placement(&self, network: &Network) -> Placement {
        let segments = network.exits[self.exit].path.len();
        match self.edge_segments(segments) {
            0 => Placement::DeviceOnly,
            n if n == segments => Placement::EdgeOnly,
            _ => Placement::Split,
        }
    }

    /// How many of the exit's segments run on the edge.
    pub(crate) fn edge_segments(&self, segments: usize) -> usize {
        match self.direction {
            Direction::DeviceFirst => segments - self.cut,
            Direction::EdgeFirst => self.cut,
        }
    }
}

/// More exits or segments than this are a mistake in a manifest, or an attack: planning takes time in
/// proportion to both.
pub const EXITS_MAX: usize = 64;
/// See [`EXITS_MAX`].
pub const SEGMENTS_MAX: usize = 4_096;

impl Network {
    /// Checks that the exits are paths of one tree, that everything named exists and that every
    /// accuracy is one.
    pub fn new(boundaries: Vec<Boundary>, exits: Vec<Exit>, segments: usize) -> Result<Self, NetworkError> {
        for (what, got, max) in [("exits", exits.len(), EXITS_MAX), ("segments", segments, SEGMENTS_MAX)] {
            if got > max {
                return Err(NetworkError::TooMany { what, got, max });
            }
        }
        let root = exits.first().ok_or(NetworkError::NoExit)?.boundaries.first().copied();
        // What each segment joins, wherever it has been met; and on which exit's path it was met last.
        let mut joins: Vec<Option<([usize; 2], usize)>> = vec![None; segments];
        for (index, exit) in exits.iter().enumerate() {
            if exit.path.is_empty() {
                return Err(NetworkError::NoSegment { exit: index });
            }
            let lengths_fit =
                exit.boundaries.len() == exit.path.len() + 1 && exit.coded_accuracy.len() == exit.boundaries.len();
            if !lengths_fit || exit.boundaries.iter().any(|boundary| *boundary >= boundaries.len()) {
                return Err(NetworkError::Boundaries { exit: index });
            }
            if exit.boundaries.first().copied() != root {
                return Err(NetworkError::Root { exit: index });
            }
            for (segment, ends) in exit.path.iter().zip(exit.boundaries.windows(2)) {
                let met = joins.get_mut(*segment).ok_or(NetworkError::Segment { exit: index, segment: *segment })?;
                if met.is_some_and(|(joined, last)| joined != ends || last == index) {
                    return Err(NetworkError::Segment { exit: index, segment: *segment });
                }
                *met = Some(([ends[0], ends[1]], index));
            }
            let known = |accuracy: Option<f64>| accuracy.is_none_or(|accuracy| (0.0..=1.0).contains(&accuracy));
            let mut cuts = 0..exit.boundaries.len();
            if !cuts.all(|cut| Codec::ALL.into_iter().all(|codec| known(exit.accuracy_at(cut, codec)))) {
                return Err(NetworkError::Accuracy { exit: index });
            }
        }
        Ok(Self { boundaries, exits, segments })
    }

    /// The exits in the network's order.
    pub fn exits(&self) -> &[Exit] {
        &self.exits
    }

    /// What can cross, by the indices that exits use.
    pub fn boundaries(&self) -> &[Boundary] {
        &self.boundaries
    }

    /// How many segments there are.
    pub fn segments(&self) -> usize {
        self.segments
    }

    /// Whether the plan names an exit and a cut that this network has.
    pub(crate) fn has(&self, plan: &Plan) -> bool {
        self.exits.get(plan.exit).is_some_and(|exit| plan.cut <= exit.path.len())
    }

    pub(crate) fn boundary(&self, exit: &Exit, cut: usize) -> &Boundary {
        &self.boundaries[exit.boundaries[cut]]
    }
}

/// Why something is no network. All of these are faults of the manifest it was made from.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NetworkError {
    /// There is nothing to answer with.
    #[error("the network has no exit; it needs at least one")]
    NoExit,
    /// More than is planned for.
    #[error("the network has {got} {what}; at most {max} are planned for")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        got: usize,
        /// How many there may be.
        max: usize,
    },
    /// An exit that nothing leads to.
    #[error("exit {exit} has an empty path; name the segments that lead to it")]
    NoSegment {
        /// Which exit.
        exit: usize,
    },
    /// A segment that does not exist, comes twice on a path, or joins other boundaries elsewhere.
    #[error(
        "exit {exit}: segment {segment} does not exist, is on the path twice, or joins other boundaries on another path"
    )]
    Segment {
        /// Which exit.
        exit: usize,
        /// Which segment on its path.
        segment: usize,
    },
    /// Boundaries that do not go with the path.
    #[error(
        "exit {exit} needs one existing boundary, and one entry of coded accuracy, more than its path has segments"
    )]
    Boundaries {
        /// Which exit.
        exit: usize,
    },
    /// A path that starts elsewhere.
    #[error("exit {exit} starts at another boundary than exit 0; all must start at the network's input")]
    Root {
        /// Which exit.
        exit: usize,
    },
    /// An accuracy that is none.
    #[error("exit {exit} has an accuracy that is not between 0 and 1")]
    Accuracy {
        /// Which exit.
        exit: usize,
    },
}

/// What running costs, measured. Peers tell some of these figures: one that is not a finite time of
/// zero or more means "unknown", and no plan counts on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Time of each segment on the device.
    pub device_us: Vec<f64>,
    /// Time of each segment on the edge.
    pub edge_us: Vec<f64>,
    /// Time a request waits at the edge before it runs.
    pub edge_queue_us: f64,
    /// What coding takes.
    pub coding: PerCodec<Coding>,
}
