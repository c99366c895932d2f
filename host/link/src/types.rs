//! What is said, as plain values. `convert` knows how they look on the wire.

use std::fmt;

use bytes::Bytes;

use crate::error::ActivationError;
use crate::trace::TraceParent;

/// The version of the protocol. Raised when the schema's evolution rules do not allow a change.
pub const PROTOCOL_VERSION: u16 = 1;

/// The most tensors that may cross a boundary beside the first.
pub const BESIDE_MAX: usize = 63;
/// The most axes that an activation may have.
pub const RANK_MAX: usize = 8;
/// The pieces in which blobs go: small, so that a request is not stuck behind one for long.
pub const PIECE_BYTES: usize = 256 << 10;
/// The most blobs that an offer may find missing.
pub const BLOBS_MAX: usize = 8192;
/// The most signatures that a bundle may have.
pub const SIGNATURES_MAX: usize = 8;
/// The most bytes that a signature, or what it signs, may have.
pub const SIGNATURE_BYTES_MAX: usize = 1 << 10;
/// The most versions that a host may tell of.
pub const VERSIONS_MAX: usize = 1024;
/// The most exits that a model may have.
pub const EXITS_MAX: usize = 64;
/// The most backends and numbers of threads that a host may tell of.
pub const COMPUTED_MAX: usize = 64;
/// The most edges that a device may be told of.
pub const EDGES_MAX: usize = 16;

/// Who is speaking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Has the data and the deadline.
    Device,
    /// Has the speed.
    Edge,
    /// A person's or a script's command.
    Tool,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Device => "device",
            Role::Edge => "edge",
            Role::Tool => "tool",
        })
    }
}

/// The first thing that both sides say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`], unless this is a test.
    pub protocol: u16,
    /// Who is speaking.
    pub role: Role,
    /// Name and version of the program, for people.
    pub build: String,
}

impl Hello {
    /// A hello in this version of the protocol.
    pub fn new(role: Role, build: impl Into<String>) -> Self {
        Hello { protocol: PROTOCOL_VERSION, role, build: build.into() }
    }
}

/// The SHA-256 of a bundle's manifest, its name everywhere; or of a blob, named by the manifest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(
    /// The hash itself.
    pub [u8; 32],
);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ElementType {
    F16,
    F32,
    F64,
    Bf16,
    U8,
    I32,
    I64,
}

impl ElementType {
    /// The size of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            ElementType::U8 => 1,
            ElementType::F16 | ElementType::Bf16 => 2,
            ElementType::F32 | ElementType::I32 => 4,
            ElementType::F64 | ElementType::I64 => 8,
        }
    }
}

/// How a tensor's elements look on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// As they are, little-endian.
    Raw,
    /// One byte an element: `value = offset + scale * byte`.
    U8,
    /// Half-precision floats, little-endian.
    F16,
    /// As [`Codec::U8`], the bytes as one LZ4 block.
    U8Lz4,
    /// A picture as PNG.
    Png,
    /// A picture as JPEG.
    Jpeg,
}

impl Codec {
    /// Every codec, as the schema numbers them.
    pub const ALL: [Self; 6] = [Self::Raw, Self::U8, Self::F16, Self::U8Lz4, Self::Png, Self::Jpeg];

    /// What it is called where peers, files and people name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::U8 => "u8",
            Self::F16 => "f16",
            Self::U8Lz4 => "u8-lz4",
            Self::Png => "png",
            Self::Jpeg => "jpeg",
        }
    }

    /// The codec of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| codec.name() == name)
    }

    /// Whether every peer knows it: the protocol began with it.
    pub const fn is_known_to_all(self) -> bool {
        matches!(self, Self::Raw | Self::U8)
    }
}

/// A tensor on the wire.
#[derive(Clone, Debug, PartialEq)]
pub struct Activation {
    /// How `bytes` are to be read.
    pub codec: Codec,
    /// What the elements are once decoded.
    pub element_type: ElementType,
    /// At most [`RANK_MAX`]; none is a scalar.
    pub dims: Vec<u32>,
    /// [`Codec::U8`] and [`Codec::U8Lz4`]: one, or one for each channel (`dims[1]`). The others: none.
    pub scales: Vec<f32>,
    /// As many as `scales`.
    pub offsets: Vec<f32>,
    /// The elements, row by row; or what the codec made of them.
    pub bytes: Bytes,
}

/// How many bytes an activation's dimensions give.
enum Size {
    /// So many for each element.
    Exactly(usize),
    /// At most so many for each element: who compresses in vain sends what is plainer.
    AtMost(usize),
}

impl Activation {
    /// Whether the parts agree. Both ends of the link ask this of every activation.
    pub fn check(&self) -> Result<(), ActivationError> {
        if self.dims.len() > RANK_MAX {
            return Err(ActivationError::Rank(self.dims.len()));
        }
        let is_picture = self.element_type == ElementType::U8 && matches!(self.dims[..], [1, 1 | 3, _, _]);
        if matches!(self.codec, Codec::Png | Codec::Jpeg) && !is_picture {
            return Err(ActivationError::Picture { codec: self.codec, dims: self.dims.clone() });
        }
        let no_scales = self.scales.is_empty();
        let scales = self.scales.len() == 1 || self.dims.get(1).is_some_and(|&n| n as usize == self.scales.len());
        let (size, scales_fit) = match self.codec {
            Codec::Raw => (Size::Exactly(self.element_type.size_bytes()), no_scales),
            Codec::F16 => (Size::Exactly(ElementType::F16.size_bytes()), no_scales),
            Codec::U8 => (Size::Exactly(1), scales),
            Codec::U8Lz4 => (Size::AtMost(1), scales),
            Codec::Png | Codec::Jpeg => (Size::AtMost(1), no_scales),
        };
        if !scales_fit || self.offsets.len() != self.scales.len() {
            return Err(ActivationError::Scales {
                codec: self.codec,
                dims: self.dims.clone(),
                scales: self.scales.len(),
                offsets: self.offsets.len(),
            });
        }
        if !self.scales.iter().chain(&self.offsets).all(|value| value.is_finite()) {
            return Err(ActivationError::NotFinite);
        }
        let (Size::Exactly(element_bytes) | Size::AtMost(element_bytes)) = size;
        let expected = self.dims.iter().try_fold(element_bytes, |bytes, &dim| bytes.checked_mul(dim as usize));
        let fits = |expected| match size {
            Size::Exactly(_) => self.bytes.len() == expected,
            Size::AtMost(_) => self.bytes.len() <= expected,
        };
        if !expected.is_some_and(fits) {
            return Err(ActivationError::Length { dims: self.dims.clone(), bytes: self.bytes.len(), expected });
        }
        Ok(())
    }
}

/// Which host runs the first segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The device, and the edge the rest.
    DeviceFirst,
    /// The edge, and the device the rest.
    EdgeFirst,
}

/// Where an answer was computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Placement {
    /// All on the device.
    DeviceOnly,
    /// Some on each.
    Split,
    /// All on the edge.
    EdgeOnly,
}

impl Placement {
    /// What it is called where people and programs read it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DeviceOnly => "device-only",
            Self::Split => "split",
            Self::EdgeOnly => "edge-only",
        }
    }
}

/// Who runs what, from an epoch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The number that both hosts know it by.
    pub epoch: u64,
    /// The bundle.
    pub model: Digest,
    /// Where the network is left.
    pub exit: u16,
    /// So many segments of the exit's path run on the first host.
    pub cut: u16,
    /// Which host is the first.
    pub direction: Direction,
    /// How what crosses the cut looks.
    pub codec: Codec,
}

/// Run these segments on this activation.
#[derive(Clone, Debug, PartialEq)]
pub struct InferRequest {
    /// The caller's number of the request; comes back with the reply.
    pub id: u64,
    /// The bundle.
    pub model: Digest,
    /// The plan under which the request runs from start to answer.
    pub epoch: u64,
    /// The first segment, as an index in the exit's path.
    pub from_segment: u16,
    /// The segment after the last.
    pub to_segment: u16,
    /// How the reply's activation should look.
    pub reply_codec: Codec,
    /// What is left of the deadline when the request is sent: clocks differ, so never a time of day.
    pub remaining_budget_us: u64,
    /// The input of the first segment.
    pub activation: Activation,
    /// What crosses the same boundary beside it, in the boundary's order; at most [`BESIDE_MAX`].
    pub beside: Vec<Activation>,
    /// The trace that the request belongs to.
    pub trace: Option<TraceParent>,
}

/// The last segment's output.
#[derive(Clone, Debug, PartialEq)]
pub struct InferReply {
    /// The request's.
    pub id: u64,
    /// The request's.
    pub epoch: u64,
    /// The output of the last segment.
    pub activation: Activation,
    /// What crosses the same boundary beside it, in the boundary's order; at most [`BESIDE_MAX`].
    pub beside: Vec<Activation>,
    /// From the request's arrival to the first segment's start.
    pub queue_us: u64,
    /// For each segment that ran.
    pub segment_us: Vec<u32>,
    /// Decoding the request's activation and coding the reply's.
    pub codec_us: u64,
}

/// An input, to be answered by whatever plan the host runs.
#[derive(Clone, Debug, PartialEq)]
pub struct AskRequest {
    /// The caller's number of the request; comes back with the answer.
    pub id: u64,
    /// The model's name; empty: the host's only one.
    pub model: String,
    /// 0: the host's default.
    pub deadline_us: u64,
    /// The lowest measured accuracy of an exit that may answer, from 0 to 1. An older host takes any.
    pub accuracy_floor: f64,
    /// The model's input; the first, if it has several.
    pub input: Activation,
    /// The others, in the order of [`ModelDescription::inputs`]; at most [`BESIDE_MAX`].
    pub beside: Vec<Activation>,
    /// The trace that the request belongs to.
    pub trace: Option<TraceParent>,
}

/// What the network says about an input, and how that came about.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The request's.
    pub id: u64,
    /// The class with the best score.
    pub label: u32,
    /// For each class; none if the model has none.
    pub scores: Vec<f32>,
    /// What the exit gives, in the order of [`ExitDescription::outputs`], if the model has no classes.
    pub outputs: Vec<Activation>,
    /// Where the network was left.
    pub exit: u16,
    /// So many segments ran on the first host.
    pub cut: u16,
    /// Which host was the first.
    pub direction: Direction,
    /// How the activation crossed.
    pub codec: Codec,
    /// Where it was computed.
    pub placement: Placement,
    /// From the request's arrival to the answer.
    pub latency_us: u64,
    /// The deadline that applied.
    pub deadline_us: u64,
    /// Whether it was kept.
    pub deadline_met: bool,
    /// Why the answer is not the plan's.
    pub degraded: Option<String>,
    /// The plan's epoch.
    pub epoch: u64,
    /// The device's estimate of the link.
    pub rate_bps: u64,
    /// What the plan was predicted to take; 0 if that could not be told, or the answer is not as planned.
    pub predicted_us: u64,
    /// How likely the plan was to be in time, from 0 to 1.
    pub in_time: f32,
    /// The bundle that answered; an older host does not tell.
    pub model: Option<Digest>,
}

/// What a host has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Description {
    /// The models that it answers for.
    pub models: Vec<ModelDescription>,
}

/// A model, as its users see it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelDescription {
    /// Its name in [`AskRequest::model`].
    pub name: String,
    /// Its bundle.
    pub digest: Digest,
    /// Of its first input.
    pub input_type: ElementType,
    /// Of its first input.
    pub input_dims: Vec<u32>,
    /// The names of its labels; none if it is no classifier.
    pub classes: Vec<String>,
    /// In the order of their accuracy.
    pub exits: Vec<ExitDescription>,
    /// All inputs; an older host does not tell.
    pub inputs: Vec<TensorDescription>,
    /// Who computes those of its segments that are held there; at most [`COMPUTED_MAX`], and an older host does not tell.
    pub computed: Vec<Computed>,
}

/// How many segments are computed in the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Computed {
    /// By whom. A later version's backend may not be known here.
    pub backend: String,
    /// On how many threads at most.
    pub threads: u16,
    /// So many segments.
    pub segments: u32,
}

/// What goes into a model or comes out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDescription {
    /// Its name in the network.
    pub name: String,
    /// The type of its elements.
    pub element_type: ElementType,
    /// Its dimensions.
    pub dims: Vec<u32>,
}

/// A place where the network can stop and answer.
#[derive(Clone, Debug, PartialEq)]
pub struct ExitDescription {
    /// For people.
    pub name: String,
    /// Measured, from 0 to 1.
    pub accuracy: f64,
    /// The names of its path's segments.
    pub segments: Vec<String>,
    /// What it gives; an older host does not tell.
    pub outputs: Vec<TensorDescription>,
}

/// A blob of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlobName {
    /// Of its bytes.
    pub digest: Digest,
    /// So many of them.
    pub bytes: u64,
}

/// Somebody's signature of a bundle, as two files of `minisign`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// What is signed.
    pub statement: Bytes,
    /// The signature of it.
    pub minisig: Bytes,
}

/// A version of a model that a host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The model's name.
    pub model: String,
    /// As its manifest numbers it.
    pub version: u64,
    /// Its bundle.
    pub digest: Digest,
    /// New requests run on it.
    pub current: bool,
    /// A rollback leads to it.
    pub previous: bool,
    /// How long requests could not begin while it came into force; 0 in lists.
    pub commit_us: u64,
    /// Some requests run on it, to see whether it is any good.
    pub on_trial: bool,
    /// Its segments failed again and again: it is not run there any more.
    pub quarantined: bool,
}

/// How a version is tried before it comes into force.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    /// The share of the requests that run on it, over 0 and at most 1.
    pub share: f32,
    /// For how long.
    pub time_ms: u32,
}

/// How fast a host is with a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelProfile {
    /// The bundle.
    pub model: Digest,
    /// For each segment that was timed.
    pub segments: Vec<SegmentTime>,
    /// How long a request waits for a worker now.
    pub queue_us: f64,
    /// Coding or decoding an activation as u8, a mebibyte on the wire.
    pub codec_us_per_mib: f64,
    /// The codecs that the host takes. Who names none takes those that [all know](Codec::is_known_to_all).
    pub codecs: Vec<CodecTime>,
}

/// What a codec takes on a host, for each mebibyte that the activation has as it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodecTime {
    /// Which codec.
    pub codec: Codec,
    /// Writing.
    pub encode_us_per_mib: f64,
    /// Reading.
    pub decode_us_per_mib: f64,
}

/// The times of one segment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SegmentTime {
    /// Its index in the bundle.
    pub segment: u16,
    /// Half of the runs were faster.
    pub p50_us: f64,
    /// Nine in ten were faster.
    pub p90_us: f64,
    /// So many runs.
    pub samples: u32,
}

/// A host's counters since its start.
///
/// A server's link fills in `connections`, `connections_refused`, `protocol_errors`, `calls_in_flight`,
/// `bytes_in` and `bytes_out` itself: the service need not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Since the start.
    pub uptime_ms: u64,
    /// Requests for an answer.
    pub requests: u64,
    /// Those that got one.
    pub answered: u64,
    /// Those that got an error.
    pub errors: u64,
    /// Answers in time.
    pub deadline_met: u64,
    /// Answers that are not the plan's.
    pub degraded: u64,
    /// Plans that replaced another.
    pub plan_changes: u64,
    /// Calls that are being answered now.
    pub calls_in_flight: u64,
    /// Open connections.
    pub connections: u64,
    /// Connections closed at once, because there were too many.
    pub connections_refused: u64,
    /// Connections closed because of what the peer sent.
    pub protocol_errors: u64,
    /// Received.
    pub bytes_in: u64,
    /// Sent.
    pub bytes_out: u64,
    /// The estimate of the link's rate.
    pub rate_bps: u64,
    /// The estimate of the link's round trip.
    pub rtt_us: u64,
    /// Tensor bytes that entered or left guest memory.
    pub tensor_bytes_copied: u64,
    /// What segments' guests or graphs did wrong.
    pub faults: u64,
    /// Versions that are not run any more for it.
    pub quarantined: u64,
    /// What no counter tells; an older host does not.
    pub now: Option<Now>,
}

/// What a host does at this moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Now {
    /// Of who names none.
    pub deadline_us: u64,
    /// What the next request would be planned with; an edge makes no plans.
    pub plan: Option<RunningPlan>,
    /// A device was told of edges.
    pub edge_configured: bool,
    /// One of them is there.
    pub edge_connected: bool,
    /// So many of the last answers are told of here.
    pub answers: u32,
    /// Half of their latencies were lower.
    pub p50_us: u64,
    /// 99 in a hundred were lower.
    pub p99_us: u64,
    /// How many of them each exit gave; at most [`EXITS_MAX`].
    pub exits: Vec<u32>,
}

/// A plan in force, as people are told of it.
#[derive(Clone, Debug, PartialEq)]
pub struct RunningPlan {
    /// Where the network is left.
    pub exit: u16,
    /// So many segments of the exit's path run on the first host.
    pub cut: u16,
    /// Which host is the first.
    pub direction: Direction,
    /// Where the answer is computed.
    pub placement: Placement,
    /// The name of the codec that what crosses the cut is in. A later version's may not be known here.
    pub codec: String,
    /// The number that both hosts know it by.
    pub epoch: u64,
    /// What it is predicted to take; 0 if that cannot be told.
    pub predicted_us: u64,
    /// How likely it is to be in time, from 0 to 1.
    pub in_time: f32,
}

/// An edge as a device sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EdgeState {
    /// As the device was told.
    pub address: String,
    /// It is there and has the version in force.
    pub connected: bool,
    /// Plans are agreed on with it.
    pub in_force: bool,
    /// It knows the plan in force, so a request may be sent there at once.
    pub agreed: bool,
    /// What went wrong with it since the last thing that went well.
    pub strikes: u32,
    /// The estimate of the link to it; 0: unknown.
    pub rate_bps: u64,
    /// The estimate of its round trip.
    pub rtt_us: u64,
}
