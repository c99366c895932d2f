//! What a bundle says of itself.

use crate::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The newest version of the manifest that is read. What can be said in an older one is written in that, so that
/// older programs go on reading it: [`Manifest::least_format`].
pub const FORMAT: u32 = 4;

/// The `graph_format` of a segment that has no graph: what is in its component instead are bytes that its guest reads.
/// It is its maker's own, before the network or behind it, and always portable: there is nothing for a host to run.
pub const NO_GRAPH: &str = "none";

const NAME_BYTES_MAX: usize = 200;
const CODEC_NAME_BYTES_MAX: usize = 32;
const CLASSES_MAX: usize = 100_000;
const SEGMENTS_MAX: usize = 4_096;
const EXITS_MAX: usize = 64;
const TENSORS_MAX: usize = 16_384;
const TENSORS_CROSSING_MAX: usize = 64;

// ANCHOR: manifest
/// A network as a tree: its boundaries, the segments between them, and the exits at its leaves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// 1 for a classifier with one input whose graphs are all NNEF; 2 for other networks; 3 where a segment is
    /// portable; 4, [`FORMAT`], where one has no graph.
    pub format: u32,
    /// The model's name.
    pub name: String,
    /// What each element of an exit's output stands for. None if the network is no classifier: then its answer is what
    /// the exit gives, and an exit may give several tensors.
    pub classes: Vec<String>,
    /// What crosses somewhere; the first are the network's inputs.
    pub tensors: Vec<Tensor>,
    /// The places where the network can be cut. The first is crossed by the inputs, in the network's order.
    pub boundaries: Vec<Boundary>,
    /// Each comes after those it depends on.
    pub segments: Vec<Segment>,
    /// In the network's order.
    pub exits: Vec<Exit>,
    /// What the bundle can be verified with. Hosts that only serve never read it.
    pub evidence: Evidence,
}

/// A tensor between two segments, the input, or what an exit gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tensor {
    /// Its name in the network.
    pub name: String,
    /// `f32`, `u8` and so on.
    pub element_type: String,
    /// Its dimensions.
    pub dims: Vec<usize>,
    /// Whether it is wrong for a number of it to be NaN or infinite. A segment that gives such a one is at fault then,
    /// and its host says so; looking costs a pass over the tensor.
    #[serde(default, skip_serializing_if = "is_not")]
    pub finite: bool,
}

fn is_not(value: &bool) -> bool {
    !value
}

/// A place where the network can be cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boundary {
    /// Which tensors cross it.
    pub tensors: Vec<usize>,
    /// What they take on the wire in the codecs whose bytes depend on what is in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub coded: Vec<CodedBytes>,
}

/// What activations took on the wire in one codec, over the validation samples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodedBytes {
    /// The codec's name.
    pub codec: String,
    /// Half of them took no more.
    pub p50_bytes: u64,
    /// Nine in ten took no more.
    pub p90_bytes: u64,
}

/// The layers between two boundaries, as one component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// For people and messages; unique in the bundle.
    pub name: String,
    /// Index of the boundary it starts from.
    pub from: usize,
    /// Index of the boundary it leads to.
    pub to: usize,
    /// Those tensors of `from` that it uses, in the order of its graph's inputs. Others pass it by.
    pub takes: Vec<usize>,
    /// Those tensors of `to` that it makes, in the order of its graph's outputs.
    pub gives: Vec<usize>,
    /// What it does, in order.
    pub layers: Vec<Layer>,
    /// Multiply-accumulates of one run.
    pub macs: u64,
    /// How the graph in the component is written: `nnef`, `onnx` where NNEF has no words for it, or [`NO_GRAPH`].
    pub graph_format: String,
    /// Where the arithmetic runs.
    pub tier: Tier,
    /// The component.
    pub component: Blob,
}

/// One operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Its name in the network.
    pub name: String,
    /// What tract calls it.
    pub operator: String,
    /// Which type of layer it is.
    pub kind: LayerKind,
    /// Elements of the activation that it reads.
    pub input_elements: u64,
    /// Elements that it writes.
    pub output_elements: u64,
    /// Constant elements that it reads: weights, biases, bounds.
    pub weights: u64,
    /// Multiply-accumulates of one run.
    pub macs: u64,
    /// Whether it runs as part of the operator before it, where it takes next to no time.
    pub fused: bool,
}

/// A type of layer; with sizes that its time can be predicted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum LayerKind {
    /// A convolution.
    Conv {
        /// Input feature maps.
        input_maps: u64,
        /// How many filters there are.
        filters: u64,
        /// Places that a filter covers on a map.
        window_elements: u64,
        /// Input places for each output place.
        stride_elements: u64,
    },
    /// What is below zero becomes zero.
    Relu,
    /// The greatest or the mean value of each window.
    Pool {
        /// Places that the window covers on a map.
        window_elements: u64,
        /// Input places for each output place.
        stride_elements: u64,
    },
    /// Local response normalisation.
    Lrn,
    /// A product of a constant matrix with one column.
    FullyConnected,
    /// Anything else.
    Other,
}

/// Where a segment's arithmetic runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// In the host: the guest calls `wasi:nn`, and tract runs.
    Native,
    /// In the sandbox: the host reads nothing of the graph. If the component's guest is the standard one, the host's
    /// own portable guest runs in its place; any other must do the arithmetic itself.
    Portable,
}

impl Segment {
    /// Whether it is a part of the network, not a guest of its maker's own before or behind that.
    pub fn has_graph(&self) -> bool {
        self.graph_format != NO_GRAPH
    }
}

impl Tier {
    /// The name used in manifests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Portable => "portable",
        }
    }
}

/// Where the network can stop and answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exit {
    /// The name in the network of its first output. All its outputs are what crosses the boundary behind its path.
    pub name: String,
    /// The segments from the input to this exit.
    pub path: Vec<usize>,
    /// Share of the validation samples that it answers rightly; 0 if nobody knows.
    pub accuracy: f64,
    /// The confidence (greatest softmax probability) from which on it is right as often as the best exit, on
    /// the validation samples that have it; none if there is no such confidence, or it was not looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sure_at: Option<f64>,
    /// Its accuracy where the activation crosses a cut in a codec other than `raw`.
    pub coded: Vec<CodedAccuracy>,
}

/// An exit's accuracy with one cut's activation coded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodedAccuracy {
    /// How many segments of the exit's path lie before the cut.
    pub cut: usize,
    /// The codec's name. One that a host does not know is one that it does not use.
    pub codec: String,
    /// Share of the validation samples answered rightly.
    pub accuracy: f64,
}

/// What a bundle can be verified with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// The ONNX file that the segments were cut from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Blob>,
    /// Inputs, and the outputs that another runtime gave for them (safetensors).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub golden: Option<Blob>,
    /// Labelled test samples: a PNG sheet of square tiles…
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<Blob>,
    /// …and their class indices, one a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Blob>,
}

/// A file of the bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// What it must hash to; its name in the store.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
}
// ANCHOR_END: manifest

impl Manifest {
    /// Whether everything in it refers to something that exists and hangs together. Code that gets a
    /// checked manifest indexes into it without looking again.
    pub fn check(&self) -> Result<(), ManifestError> {
        let wrong = |what: String| Err(ManifestError(what));
        if !(1..=FORMAT).contains(&self.format) {
            return wrong(format!(
                "format {} is not one that this program reads, 1 to {FORMAT}; rebuild the bundle",
                self.format
            ));
        }
        for (what, count, limit) in [
            ("segments", self.segments.len(), SEGMENTS_MAX),
            ("exits", self.exits.len(), EXITS_MAX),
            ("tensors", self.tensors.len(), TENSORS_MAX),
            ("boundaries", self.boundaries.len(), SEGMENTS_MAX + 1),
        ] {
            if count == 0 || count > limit {
                return wrong(format!("{count} {what}; there must be 1 to {limit}"));
            }
        }
        if self.classes.len() > CLASSES_MAX {
            return wrong(format!("{} classes; there must be at most {CLASSES_MAX}", self.classes.len()));
        }
        let names = [&self.name].into_iter().chain(&self.classes);
        let names = names.chain(self.tensors.iter().map(|t| &t.name)).chain(self.segments.iter().map(|s| &s.name));
        for name in names.chain(self.exits.iter().map(|e| &e.name)) {
            if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
                return wrong(format!(
                    "the name {name:?} is empty, has control characters or is over {NAME_BYTES_MAX} bytes"
                ));
            }
        }
        for (index, boundary) in self.boundaries.iter().enumerate() {
            let crossing = &boundary.tensors;
            let distinct = crossing.iter().collect::<BTreeSet<_>>().len() == crossing.len();
            let fits = !crossing.is_empty() && crossing.len() <= TENSORS_CROSSING_MAX;
            if !distinct || !fits || crossing.iter().any(|tensor| *tensor >= self.tensors.len()) {
                return wrong(format!(
                    "boundary {index} must be crossed by 1 to {TENSORS_CROSSING_MAX} different tensors that exist"
                ));
            }
            let sound = |coded: &CodedBytes| is_codec(&coded.codec) && coded.p50_bytes <= coded.p90_bytes;
            if !boundary.coded.iter().all(sound) {
                return wrong(format!("boundary {index} has a codec without a name, or a median over p90"));
            }
        }
        if !self.boundaries[0].tensors.iter().copied().eq(0..self.boundaries[0].tensors.len()) {
            return wrong("the first boundary is not crossed by the first tensors, the inputs".to_owned());
        }
        self.segments.iter().try_for_each(|segment| self.check_segment(segment))?;
        self.exits.iter().try_for_each(|exit| self.check_exit(exit))?;
        match self.least_format() {
            least if self.format < least => {
                wrong(format!("format {} has no words for what it says, format {least} has", self.format))
            }
            _ => Ok(()),
        }
    }

    /// The oldest format in which this can be said.
    pub fn least_format(&self) -> u32 {
        let is_nnef = |segment: &Segment| segment.graph_format == "nnef";
        let one_input = self.boundaries.first().is_some_and(|inputs| inputs.tensors.len() == 1);
        if !self.segments.iter().all(Segment::has_graph) {
            4
        } else if self.segments.iter().any(|segment| segment.tier == Tier::Portable) {
            3
        } else if !self.classes.is_empty() && one_input && self.segments.iter().all(is_nnef) {
            1
        } else {
            2
        }
    }

    /// The network's inputs, in its order.
    pub fn inputs(&self) -> impl Iterator<Item = &Tensor> {
        self.boundaries[0].tensors.iter().map(|tensor| &self.tensors[*tensor])
    }

    /// What an exit gives, in its order, as indices into `tensors`.
    pub fn outputs(&self, exit: usize) -> &[usize] {
        let end = self.exits[exit].path.last().map_or(0, |segment| self.segments[*segment].to);
        &self.boundaries[end].tensors
    }

    fn check_segment(&self, segment: &Segment) -> Result<(), ManifestError> {
        let wrong = |what: &str| Err(ManifestError(format!("segment '{}' {what}", segment.name)));
        let (Some(from), Some(to)) = (self.boundaries.get(segment.from), self.boundaries.get(segment.to)) else {
            return wrong("joins boundaries that do not exist");
        };
        if !segment.has_graph() && segment.tier != Tier::Portable {
            return wrong("has no graph, so no host can run it as native");
        }
        let (from, to) = (&from.tensors, &to.tensors);
        let distinct = |tensors: &[usize]| tensors.iter().collect::<BTreeSet<_>>().len() == tensors.len();
        let takes_fit = !segment.takes.is_empty() && segment.takes.iter().all(|tensor| from.contains(tensor));
        if !takes_fit || !distinct(&segment.takes) {
            return wrong("takes nothing, something twice, or what does not cross the boundary it starts from");
        }
        let gives_fit = segment.gives.iter().all(|tensor| to.contains(tensor) && !from.contains(tensor));
        if segment.gives.is_empty() || !gives_fit || !distinct(&segment.gives) {
            return wrong("gives nothing, something twice, or what does not cross first where it leads to");
        }
        if !to.iter().all(|tensor| from.contains(tensor) || segment.gives.contains(tensor)) {
            return wrong("leads to a boundary with a tensor that it neither gives nor lets pass");
        }
        Ok(())
    }

    fn check_exit(&self, exit: &Exit) -> Result<(), ManifestError> {
        let wrong = |what: &str| Err(ManifestError(format!("exit '{}': {what}", exit.name)));
        let mut at = 0;
        for index in &exit.path {
            match self.segments.get(*index) {
                Some(segment) if segment.from == at => at = segment.to,
                Some(_) => return wrong("its segments do not follow one another from the input"),
                None => return wrong("its path names a segment that does not exist"),
            }
        }
        let known = |accuracy: f64| (0.0..=1.0).contains(&accuracy);
        if !exit.coded.iter().all(|coded| is_codec(&coded.codec)) {
            return wrong("a codec's name is empty or no name");
        }
        if exit.path.is_empty() || exit.path.len() > SEGMENTS_MAX {
            return wrong("its path is empty or endless");
        }
        if self.classes.is_empty() {
            if exit.sure_at.is_some() {
                return wrong("it has a confidence that is enough, but no classes to be sure of");
            }
        } else {
            let [output] = self.boundaries[at].tensors.as_slice() else {
                return wrong("its output is not one tensor, as a classifier's is");
            };
            // Dimensions are as hostile as the rest.
            let elements = self.tensors[*output].dims.iter().try_fold(1_usize, |all, dim| all.checked_mul(*dim));
            if elements != Some(self.classes.len()) {
                return wrong("its output has not one element for each class");
            }
        }
        if exit.sure_at.is_some_and(|sure_at| !known(sure_at)) {
            return wrong("the confidence that is enough is not between 0 and 1");
        }
        if !known(exit.accuracy) || !exit.coded.iter().all(|coded| known(coded.accuracy) && coded.cut < exit.path.len())
        {
            return wrong("an accuracy is not between 0 and 1, or of a cut that does not exist");
        }
        Ok(())
    }
}

/// Whether that could be a codec's name.
fn is_codec(name: &str) -> bool {
    (1..=CODEC_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// What is wrong with a manifest.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ManifestError(pub(crate) String);
