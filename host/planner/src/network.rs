//! What can be planned: a network's exits, the segments on the way to each, and what crosses between.

/// A network as the planner sees it. Indices have been checked by [`Network::new`].
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    boundaries: Vec<Boundary>,
    exits: Vec<Exit>,
    segments: usize,
}

/// What crosses a place where the network can be cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// Bytes of the activation as it is.
    pub raw_bytes: u64,
    /// Bytes of the activation with one byte an element; `None` if it cannot be coded so.
    pub u8_bytes: Option<u64>,
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
    /// Measured share of right answers with the activation at each of `boundaries` coded as u8.
    pub u8_accuracy: Vec<Option<f64>>,
}

/// How an activation is written for the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// The elements as they are.
    Raw,
    /// One byte an element.
    U8,
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

    /// Where the plan's segments run.
    pub fn placement(&self, network: &Network) -> Placement {
        let segments = network.exits[self.exit].path.len();
        let on_device = match self.direction {
            Direction::DeviceFirst => self.cut,
            Direction::EdgeFirst => segments - self.cut,
        };
        match on_device {
            0 => Placement::EdgeOnly,
            n if n == segments => Placement::DeviceOnly,
            _ => Placement::Split,
        }
    }
}

impl Network {
    /// Checks that everything refers to something that exists and that every figure is a number.
    pub fn new(boundaries: Vec<Boundary>, exits: Vec<Exit>, segments: usize) -> Result<Self, NetworkError> {
        if exits.is_empty() {
            return Err(NetworkError::NoExit);
        }
        for (index, exit) in exits.iter().enumerate() {
            let accuracies = exit.u8_accuracy.iter().flatten().chain([&exit.accuracy]);
            let fits = !exit.path.is_empty()
                && exit.boundaries.len() == exit.path.len() + 1
                && exit.u8_accuracy.len() == exit.boundaries.len()
                && exit.boundaries[0] == exits[0].boundaries[0]
                && exit.path.iter().all(|segment| *segment < segments)
                && exit.boundaries.iter().all(|boundary| *boundary < boundaries.len())
                && accuracies.into_iter().all(|accuracy| (0.0..=1.0).contains(accuracy));
            if !fits {
                return Err(NetworkError::Exit(index));
            }
        }
        Ok(Self { boundaries, exits, segments })
    }

    /// The exits in the network's order.
    pub fn exits(&self) -> &[Exit] {
        &self.exits
    }

    /// How many segments there are.
    pub fn segments(&self) -> usize {
        self.segments
    }

    pub(crate) fn boundary(&self, exit: &Exit, cut: usize) -> &Boundary {
        &self.boundaries[exit.boundaries[cut]]
    }
}

/// Why something is no network.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NetworkError {
    /// There is nothing to answer with.
    #[error("the network has no exit")]
    NoExit,
    /// An exit does not hang together.
    #[error("exit {0} names segments, boundaries or accuracies that do not fit together")]
    Exit(usize),
}

/// What running costs, measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Time of each segment on the device.
    pub device_us: Vec<f64>,
    /// Time of each segment on the edge.
    pub edge_us: Vec<f64>,
    /// Time a request waits at the edge before it runs.
    pub edge_queue_us: f64,
    /// Coding and decoding an activation as u8: microseconds for each byte on the wire, both hosts together.
    pub codec_us_per_byte: f64,
}
