//! Plain values to and from the wire.
//!
//! Reading trusts nothing: every list's length is checked before memory is taken for it, every
//! activation is checked as a whole, and what this version does not know is an error.

use bytes::Bytes;
use capnp::traits::Owned;

use crate::edgent_capnp as wire;
use crate::error::{ActivationError, Fault, FaultKind, LinkError};
use crate::frame::share;
use crate::splice;
use crate::trace::TraceParent;
use crate::types::*;

const MODELS_MAX: u32 = 256;
const CLASSES_MAX: u32 = 1 << 16;
const SEGMENTS_MAX: u32 = 4096;
const CODECS_MAX: u32 = 64;
const SCORES_MAX: u32 = 1 << 20;
const FAULT_MESSAGE_BYTES_MAX: usize = 1024;
const NAME_BYTES_MAX: usize = 64;

/// Something in a message that this protocol does not allow.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("{0}")]
    Encoding(#[from] capnp::Error),
    #[error("{0}")]
    Unknown(#[from] capnp::NotInSchema),
    #[error("{0}")]
    Text(#[from] std::str::Utf8Error),
    #[error("{0}")]
    Activation(#[from] ActivationError),
    #[error("{count} {what}, where at most {max} are allowed")]
    TooMany { what: &'static str, count: u32, max: u32 },
    #[error("a digest of {0} bytes")]
    Digest(usize),
    #[error("a share of {0}, which is not within 0 and 1")]
    Share(f32),
}

impl From<Malformed> for LinkError {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            // Not what came, but that nothing will come any more.
            Malformed::Encoding(error) if error.kind == capnp::ErrorKind::Disconnected => LinkError::Lost(error.extra),
            // An older version, to which the method was not appended yet.
            Malformed::Encoding(error) if error.kind == capnp::ErrorKind::Unimplemented => {
                LinkError::Fault(Fault::new(FaultKind::Unsupported, "the host is older than this call"))
            }
            malformed => LinkError::Protocol(malformed.to_string()),
        }
    }
}

/// A value that can stand in a message.
pub(crate) trait Message: Sized {
    type Wire: Owned;
    /// An activation comes before anything whose size is not fixed: see `splice`.
    fn write(&self, to: <Self::Wire as Owned>::Builder<'_>);
    fn read(from: <Self::Wire as Owned>::Reader<'_>) -> Result<Self, Malformed>;

    /// About how much of a message this takes, without its fixed part: to refuse it before it is built.
    fn weight_bytes(&self) -> usize {
        0
    }
}

/// Writes what became of a call.
pub(crate) fn write_outcome<T: Message>(to: wire::outcome::Builder<'_, T::Wire>, outcome: &Result<T, Fault>) {
    match outcome {
        Ok(value) => value.write(to.init_ok()),
        Err(fault) => write_fault(to.init_fault(), fault),
    }
}

/// Reads what became of a call.
pub(crate) fn read_outcome<T: Message>(
    from: wire::outcome::Reader<'_, T::Wire>,
) -> Result<Result<T, Fault>, Malformed> {
    Ok(match from.which()? {
        wire::outcome::Ok(value) => Ok(T::read(value?)?),
        wire::outcome::Fault(fault) => Err(read_fault(fault?)?),
    })
}

pub(crate) fn write_fault(mut to: wire::fault::Builder<'_>, fault: &Fault) {
    to.set_kind(fault.kind.into());
    to.set_message(clip(&fault.message));
}

pub(crate) fn read_fault(from: wire::fault::Reader<'_>) -> Result<Fault, Malformed> {
    // A later version's kind: what it means is not known here, that it is a fault is.
    let kind = from.get_kind().map_or(FaultKind::Internal, FaultKind::from);
    Ok(Fault::new(kind, clip(from.get_message()?.to_str()?)))
}

/// Messages are for people, and end up in logs: neither side may make them endless.
fn clip(message: &str) -> &str {
    &message[..message.floor_char_boundary(FAULT_MESSAGE_BYTES_MAX)]
}

pub(crate) fn write_hello(mut to: wire::hello::Builder<'_>, hello: &Hello, message_bytes: usize) {
    to.set_protocol(hello.protocol);
    to.set_role(hello.role.into());
    to.set_build(clip(&hello.build));
    to.set_message_bytes(message_bytes as u64);
}

/// A hello, and the largest message that its sender takes.
pub(crate) fn read_hello(from: wire::hello::Reader<'_>) -> Result<(Hello, usize), Malformed> {
    let build = clip(from.get_build()?.to_str()?).to_owned();
    let hello = Hello { protocol: from.get_protocol(), role: from.get_role()?.into(), build };
    Ok((hello, usize::try_from(from.get_message_bytes()).unwrap_or(usize::MAX)))
}

/// What is none is ignored: a trace must not cost an answer.
fn read_trace(from: capnp::text::Reader<'_>) -> Option<TraceParent> {
    from.to_str().ok().and_then(TraceParent::read)
}

pub(crate) fn read_digest(bytes: &[u8]) -> Result<Digest, Malformed> {
    bytes.try_into().map(Digest).map_err(|_| Malformed::Digest(bytes.len()))
}

/// No share: no trial.
pub(crate) fn read_trial(share: f32, time_ms: u32) -> Result<Option<Trial>, Malformed> {
    match share {
        0.0 => Ok(None),
        share if share > 0.0 && share <= 1.0 => Ok(Some(Trial { share, time_ms })),
        other => Err(Malformed::Share(other)),
    }
}

pub(crate) fn bounded(what: &'static str, count: u32, max: u32) -> Result<usize, Malformed> {
    if count > max { Err(Malformed::TooMany { what, count, max }) } else { Ok(count as usize) }
}

fn write_texts(mut to: capnp::text_list::Builder<'_>, texts: &[String]) {
    for (index, text) in (0..).zip(texts) {
        to.set(index, text);
    }
}

fn read_texts(what: &'static str, from: capnp::text_list::Reader<'_>, max: u32) -> Result<Vec<String>, Malformed> {
    let mut texts = Vec::with_capacity(bounded(what, from.len(), max)?);
    for text in from.iter() {
        texts.push(text?.to_str()?.to_owned());
    }
    Ok(texts)
}

/// The same enumeration here and on the wire.
macro_rules! same_enum {
    ($($here:ident = $wire:ident { $($name:ident),+ $(,)? })+) => {$(
        impl From<$here> for wire::$wire {
            fn from(value: $here) -> Self {
                match value { $($here::$name => wire::$wire::$name),+ }
            }
        }
        impl From<wire::$wire> for $here {
            fn from(value: wire::$wire) -> Self {
                match value { $(wire::$wire::$name => $here::$name),+ }
            }
        }
    )+};
}

same_enum! {
    Role = Role { Device, Edge, Tool }
    ElementType = ElementType { F16, F32, F64, Bf16, U8, I32, I64 }
    Codec = Codec { Raw, U8, F16, U8Lz4, Png, Jpeg }
    Direction = Direction { DeviceFirst, EdgeFirst }
    Placement = Placement { DeviceOnly, Split, EdgeOnly }
    FaultKind = FaultKind {
        UnknownModel, UnknownEpoch, BadRequest, TooLarge, TimeUp, Busy, Version, SegmentFailed, Unsupported,
        ShuttingDown, Refused, NotFound, Denied, Internal,
    }
}

impl Message for () {
    type Wire = wire::done::Owned;

    fn write(&self, _: wire::done::Builder<'_>) {}

    fn read(_: wire::done::Reader<'_>) -> Result<Self, Malformed> {
        Ok(())
    }
}

/// What a probe brings back; of interest is only that it came.
pub(crate) struct Padding {
    pub(crate) bytes: u32,
}

impl Message for Padding {
    type Wire = wire::padding::Owned;

    fn write(&self, to: wire::padding::Builder<'_>) {
        to.init_bytes(self.bytes);
    }

    fn read(from: wire::padding::Reader<'_>) -> Result<Self, Malformed> {
        Ok(Padding { bytes: from.get_bytes()?.len() as u32 })
    }

    fn weight_bytes(&self) -> usize {
        self.bytes as usize
    }
}

impl Message for Activation {
    type Wire = wire::activation::Owned;

    fn write(&self, mut to: wire::activation::Builder<'_>) {
        // First, while nothing stands between their pointer and them.
        splice::write(&self.bytes, |bytes| to.reborrow().init_bytes(bytes));
        write_but_bytes(self, to);
    }

    fn read(from: wire::activation::Reader<'_>) -> Result<Self, Malformed> {
        let dims = from.get_dims()?;
        bounded("dimensions", dims.len(), RANK_MAX as u32)?;
        let activation = Activation {
            codec: from.get_codec()?.into(),
            element_type: from.get_element_type()?.into(),
            dims: dims.iter().collect(),
            scales: from.get_scales()?.iter().collect(),
            offsets: from.get_offsets()?.iter().collect(),
            bytes: share(from.get_bytes()?),
        };
        activation.check()?;
        Ok(activation)
    }

    fn weight_bytes(&self) -> usize {
        self.bytes.len() + 4 * (self.dims.len() + self.scales.len() + self.offsets.len())
    }
}

fn write_but_bytes(activation: &Activation, mut to: wire::activation::Builder<'_>) {
    to.set_codec(activation.codec.into());
    to.set_element_type(activation.element_type.into());
    write_numbers(to.reborrow().init_dims(activation.dims.len() as u32), &activation.dims);
    write_numbers(to.reborrow().init_scales(activation.scales.len() as u32), &activation.scales);
    write_numbers(to.reborrow().init_offsets(activation.offsets.len() as u32), &activation.offsets);
}

/// Tensors beside the first are most often small, and a message has room for one splice: they are copied.
fn write_beside(mut to: capnp::struct_list::Builder<'_, wire::activation::Owned>, beside: &[Activation]) {
    for (index, activation) in (0..).zip(beside) {
        let mut to = to.reborrow().get(index);
        to.set_bytes(&activation.bytes);
        write_but_bytes(activation, to);
    }
}

fn read_beside(from: capnp::struct_list::Reader<'_, wire::activation::Owned>) -> Result<Vec<Activation>, Malformed> {
    bounded("tensors beside the first", from.len(), BESIDE_MAX as u32)?;
    from.iter().map(Activation::read).collect()
}

fn weight_bytes(activation: &Activation, beside: &[Activation]) -> usize {
    activation.weight_bytes() + beside.iter().map(Activation::weight_bytes).sum::<usize>()
}

fn write_numbers<T: capnp::private::layout::PrimitiveElement + Copy + capnp::introspect::Introspect>(
    mut to: capnp::primitive_list::Builder<'_, T>,
    numbers: &[T],
) {
    for (index, &number) in (0..).zip(numbers) {
        to.set(index, number);
    }
}

impl Message for Plan {
    type Wire = wire::plan::Owned;

    fn write(&self, mut to: wire::plan::Builder<'_>) {
        to.set_epoch(self.epoch);
        to.set_model(&self.model.0);
        to.set_exit(self.exit);
        to.set_cut(self.cut);
        to.set_direction(self.direction.into());
        to.set_codec(self.codec.into());
    }

    fn read(from: wire::plan::Reader<'_>) -> Result<Self, Malformed> {
        Ok(Plan {
            epoch: from.get_epoch(),
            model: read_digest(from.get_model()?)?,
            exit: from.get_exit(),
            cut: from.get_cut(),
            direction: from.get_direction()?.into(),
            codec: from.get_codec()?.into(),
        })
    }
}

impl Message for InferRequest {
    type Wire = wire::infer_request::Owned;

    fn write(&self, mut to: wire::infer_request::Builder<'_>) {
        to.set_id(self.id);
        to.set_model(&self.model.0);
        to.set_epoch(self.epoch);
        to.set_from_segment(self.from_segment);
        to.set_to_segment(self.to_segment);
        to.set_reply_codec(self.reply_codec.into());
        to.set_remaining_budget_us(self.remaining_budget_us);
        self.activation.write(to.reborrow().init_activation());
        write_beside(to.reborrow().init_beside(self.beside.len() as u32), &self.beside);
        if let Some(trace) = &self.trace {
            to.set_traceparent(&*trace.to_string());
        }
    }

    fn read(from: wire::infer_request::Reader<'_>) -> Result<Self, Malformed> {
        Ok(InferRequest {
            id: from.get_id(),
            model: read_digest(from.get_model()?)?,
            epoch: from.get_epoch(),
            from_segment: from.get_from_segment(),
            to_segment: from.get_to_segment(),
            reply_codec: from.get_reply_codec()?.into(),
            remaining_budget_us: from.get_remaining_budget_us(),
            activation: Activation::read(from.get_activation()?)?,
            beside: read_beside(from.get_beside()?)?,
            trace: read_trace(from.get_traceparent()?),
        })
    }

    fn weight_bytes(&self) -> usize {
        weight_bytes(&self.activation, &self.beside)
    }
}

impl Message for InferReply {
    type Wire = wire::infer_reply::Owned;

    fn write(&self, mut to: wire::infer_reply::Builder<'_>) {
        to.set_id(self.id);
        to.set_epoch(self.epoch);
        to.set_queue_us(self.queue_us);
        to.set_codec_us(self.codec_us);
        self.activation.write(to.reborrow().init_activation());
        write_beside(to.reborrow().init_beside(self.beside.len() as u32), &self.beside);
        write_numbers(to.init_segment_us(self.segment_us.len() as u32), &self.segment_us);
    }

    fn read(from: wire::infer_reply::Reader<'_>) -> Result<Self, Malformed> {
        let segment_us = from.get_segment_us()?;
        bounded("segment times", segment_us.len(), SEGMENTS_MAX)?;
        Ok(InferReply {
            id: from.get_id(),
            epoch: from.get_epoch(),
            activation: Activation::read(from.get_activation()?)?,
            beside: read_beside(from.get_beside()?)?,
            queue_us: from.get_queue_us(),
            segment_us: segment_us.iter().collect(),
            codec_us: from.get_codec_us(),
        })
    }

    fn weight_bytes(&self) -> usize {
        weight_bytes(&self.activation, &self.beside) + 4 * self.segment_us.len()
    }
}

impl Message for AskRequest {
    type Wire = wire::ask_request::Owned;

    fn write(&self, mut to: wire::ask_request::Builder<'_>) {
        to.set_id(self.id);
        to.set_deadline_us(self.deadline_us);
        to.set_accuracy_floor(self.accuracy_floor);
        self.input.write(to.reborrow().init_input());
        to.set_model(&self.model);
        write_beside(to.reborrow().init_beside(self.beside.len() as u32), &self.beside);
        if let Some(trace) = &self.trace {
            to.set_traceparent(&*trace.to_string());
        }
    }

    fn read(from: wire::ask_request::Reader<'_>) -> Result<Self, Malformed> {
        Ok(AskRequest {
            id: from.get_id(),
            model: from.get_model()?.to_str()?.to_owned(),
            deadline_us: from.get_deadline_us(),
            accuracy_floor: from.get_accuracy_floor(),
            input: Activation::read(from.get_input()?)?,
            beside: read_beside(from.get_beside()?)?,
            trace: read_trace(from.get_traceparent()?),
        })
    }

    fn weight_bytes(&self) -> usize {
        weight_bytes(&self.input, &self.beside) + self.model.len()
    }
}

impl Message for Answer {
    type Wire = wire::answer::Owned;

    fn write(&self, mut to: wire::answer::Builder<'_>) {
        to.set_id(self.id);
        to.set_label(self.label);
        to.set_exit(self.exit);
        to.set_cut(self.cut);
        to.set_direction(self.direction.into());
        if self.codec.is_known_to_all() {
            to.set_codec(self.codec.into());
        } else {
            to.set_codec_name(self.codec.name());
        }
        to.set_placement(self.placement.into());
        to.set_latency_us(self.latency_us);
        to.set_deadline_us(self.deadline_us);
        to.set_deadline_met(self.deadline_met);
        if let Some(why) = &self.degraded {
            to.set_degraded(clip(why));
        }
        to.set_epoch(self.epoch);
        to.set_rate_bps(self.rate_bps);
        to.set_predicted_us(self.predicted_us);
        to.set_in_time(self.in_time);
        if let Some(model) = &self.model {
            to.set_model(&model.0);
        }
        write_beside(to.reborrow().init_outputs(self.outputs.len() as u32), &self.outputs);
        write_numbers(to.init_scores(self.scores.len() as u32), &self.scores);
    }

    fn read(from: wire::answer::Reader<'_>) -> Result<Self, Malformed> {
        let scores = from.get_scores()?;
        bounded("scores", scores.len(), SCORES_MAX)?;
        let degraded = match from.has_degraded() {
            true => Some(clip(from.get_degraded()?.to_str()?).to_owned()),
            false => None,
        };
        // A later version's codec is told by a name that is not known here: then it stays untold.
        let codec_name = Codec::from_name(from.get_codec_name()?.to_str()?);
        Ok(Answer {
            id: from.get_id(),
            label: from.get_label(),
            scores: scores.iter().collect(),
            outputs: read_beside(from.get_outputs()?)?,
            exit: from.get_exit(),
            cut: from.get_cut(),
            direction: from.get_direction()?.into(),
            codec: codec_name.map_or_else(|| from.get_codec().map(Codec::from), Ok)?,
            placement: from.get_placement()?.into(),
            latency_us: from.get_latency_us(),
            deadline_us: from.get_deadline_us(),
            deadline_met: from.get_deadline_met(),
            degraded,
            epoch: from.get_epoch(),
            rate_bps: from.get_rate_bps(),
            predicted_us: from.get_predicted_us(),
            in_time: from.get_in_time(),
            model: match from.get_model()? {
                [] => None,
                model => Some(read_digest(model)?),
            },
        })
    }

    fn weight_bytes(&self) -> usize {
        4 * self.scores.len() + self.outputs.iter().map(Activation::weight_bytes).sum::<usize>()
    }
}

impl Message for Description {
    type Wire = wire::description::Owned;

    fn write(&self, to: wire::description::Builder<'_>) {
        let mut models = to.init_models(self.models.len() as u32);
        for (index, model) in (0..).zip(&self.models) {
            model.write(models.reborrow().get(index));
        }
    }

    fn read(from: wire::description::Reader<'_>) -> Result<Self, Malformed> {
        let models = from.get_models()?;
        bounded("models", models.len(), MODELS_MAX)?;
        Ok(Description { models: models.iter().map(ModelDescription::read).collect::<Result<_, _>>()? })
    }

    fn weight_bytes(&self) -> usize {
        self.models.iter().map(Message::weight_bytes).sum()
    }
}

/// A text's bytes, its end, its padding and the pointer to it, at most.
const TEXT_BYTES: usize = 16;
/// The fixed part of a struct in a list, at most.
const STRUCT_BYTES: usize = 64;

fn weight_of_texts(texts: &[String]) -> usize {
    texts.iter().map(|text| text.len() + TEXT_BYTES).sum()
}

impl Message for ModelDescription {
    type Wire = wire::model_description::Owned;

    fn write(&self, mut to: wire::model_description::Builder<'_>) {
        to.set_name(&self.name);
        to.set_digest(&self.digest.0);
        to.set_input_type(self.input_type.into());
        write_numbers(to.reborrow().init_input_dims(self.input_dims.len() as u32), &self.input_dims);
        write_texts(to.reborrow().init_classes(self.classes.len() as u32), &self.classes);
        let mut exits = to.reborrow().init_exits(self.exits.len() as u32);
        for (index, exit) in (0..).zip(&self.exits) {
            exit.write(exits.reborrow().get(index));
        }
        write_tensors(to.reborrow().init_inputs(self.inputs.len() as u32), &self.inputs);
        let mut computed = to.init_computed(self.computed.len() as u32);
        for (index, group) in (0..).zip(&self.computed) {
            let mut to = computed.reborrow().get(index);
            to.set_backend(&group.backend);
            to.set_threads(group.threads);
            to.set_segments(group.segments);
        }
    }

    fn read(from: wire::model_description::Reader<'_>) -> Result<Self, Malformed> {
        let (input_dims, exits, computed) = (from.get_input_dims()?, from.get_exits()?, from.get_computed()?);
        bounded("dimensions", input_dims.len(), RANK_MAX as u32)?;
        bounded("exits", exits.len(), EXITS_MAX as u32)?;
        bounded("groups of segments", computed.len(), COMPUTED_MAX as u32)?;
        Ok(ModelDescription {
            name: from.get_name()?.to_str()?.to_owned(),
            digest: read_digest(from.get_digest()?)?,
            input_type: from.get_input_type()?.into(),
            input_dims: input_dims.iter().collect(),
            classes: read_texts("classes", from.get_classes()?, CLASSES_MAX)?,
            exits: exits.iter().map(ExitDescription::read).collect::<Result<_, _>>()?,
            inputs: read_tensors(from.get_inputs()?)?,
            computed: computed.iter().map(read_computed).collect::<Result<_, _>>()?,
        })
    }

    fn weight_bytes(&self) -> usize {
        let exits: usize = self.exits.iter().map(Message::weight_bytes).sum();
        let computed: usize = self.computed.iter().map(|group| STRUCT_BYTES + group.backend.len()).sum();
        let tensors = weight_of_tensors(&self.inputs);
        STRUCT_BYTES + self.name.len() + weight_of_texts(&self.classes) + exits + tensors + computed
    }
}

fn read_computed(from: wire::computed::Reader<'_>) -> Result<Computed, Malformed> {
    let backend = from.get_backend()?.to_str()?;
    bounded("bytes of a backend's name", backend.len() as u32, NAME_BYTES_MAX as u32)?;
    Ok(Computed { backend: backend.to_owned(), threads: from.get_threads(), segments: from.get_segments() })
}

fn write_tensors(
    mut to: capnp::struct_list::Builder<'_, wire::tensor_description::Owned>,
    tensors: &[TensorDescription],
) {
    for (index, tensor) in (0..).zip(tensors) {
        let mut to = to.reborrow().get(index);
        to.set_name(&tensor.name);
        to.set_element_type(tensor.element_type.into());
        write_numbers(to.init_dims(tensor.dims.len() as u32), &tensor.dims);
    }
}

fn read_tensors(
    from: capnp::struct_list::Reader<'_, wire::tensor_description::Owned>,
) -> Result<Vec<TensorDescription>, Malformed> {
    bounded("tensors", from.len(), 1 + BESIDE_MAX as u32)?;
    let read = |from: wire::tensor_description::Reader<'_>| {
        let dims = from.get_dims()?;
        bounded("dimensions", dims.len(), RANK_MAX as u32)?;
        Ok(TensorDescription {
            name: from.get_name()?.to_str()?.to_owned(),
            element_type: from.get_element_type()?.into(),
            dims: dims.iter().collect(),
        })
    };
    from.iter().map(read).collect()
}

fn weight_of_tensors(tensors: &[TensorDescription]) -> usize {
    tensors.iter().map(|tensor| STRUCT_BYTES + TEXT_BYTES + tensor.name.len() + 4 * tensor.dims.len()).sum()
}

impl Message for ExitDescription {
    type Wire = wire::exit_description::Owned;

    fn write(&self, mut to: wire::exit_description::Builder<'_>) {
        to.set_name(&self.name);
        to.set_accuracy(self.accuracy);
        write_texts(to.reborrow().init_segments(self.segments.len() as u32), &self.segments);
        write_tensors(to.init_outputs(self.outputs.len() as u32), &self.outputs);
    }

    fn read(from: wire::exit_description::Reader<'_>) -> Result<Self, Malformed> {
        Ok(ExitDescription {
            name: from.get_name()?.to_str()?.to_owned(),
            accuracy: from.get_accuracy(),
            segments: read_texts("segments", from.get_segments()?, SEGMENTS_MAX)?,
            outputs: read_tensors(from.get_outputs()?)?,
        })
    }

    fn weight_bytes(&self) -> usize {
        STRUCT_BYTES + self.name.len() + weight_of_texts(&self.segments) + weight_of_tensors(&self.outputs)
    }
}

/// Bytes of a manifest or of a blob.
impl Message for Bytes {
    type Wire = wire::piece::Owned;

    fn write(&self, to: wire::piece::Builder<'_>) {
        splice::write(self, |bytes| to.init_bytes(bytes));
    }

    fn read(from: wire::piece::Reader<'_>) -> Result<Self, Malformed> {
        Ok(share(from.get_bytes()?))
    }

    fn weight_bytes(&self) -> usize {
        self.len()
    }
}

impl Message for Vec<Signature> {
    type Wire = wire::signatures::Owned;

    fn write(&self, to: wire::signatures::Builder<'_>) {
        let mut signatures = to.init_signatures(self.len() as u32);
        for (index, signature) in (0..).zip(self) {
            let mut to = signatures.reborrow().get(index);
            to.set_statement(&signature.statement);
            to.set_minisig(&signature.minisig);
        }
    }

    fn read(from: wire::signatures::Reader<'_>) -> Result<Self, Malformed> {
        let signatures = from.get_signatures()?;
        bounded("signatures", signatures.len(), SIGNATURES_MAX as u32)?;
        let bytes = |from: &[u8]| {
            bounded("bytes of a signature", from.len() as u32, SIGNATURE_BYTES_MAX as u32)?;
            Ok::<_, Malformed>(Bytes::copy_from_slice(from))
        };
        let signature = |from: wire::signature::Reader<'_>| {
            Ok(Signature { statement: bytes(from.get_statement()?)?, minisig: bytes(from.get_minisig()?)? })
        };
        signatures.iter().map(signature).collect()
    }

    fn weight_bytes(&self) -> usize {
        self.iter().map(|signature| STRUCT_BYTES + signature.statement.len() + signature.minisig.len()).sum()
    }
}

impl Message for Vec<BlobName> {
    type Wire = wire::wanted::Owned;

    fn write(&self, to: wire::wanted::Builder<'_>) {
        let mut blobs = to.init_blobs(self.len() as u32);
        for (index, blob) in (0..).zip(self) {
            let mut to = blobs.reborrow().get(index);
            to.set_digest(&blob.digest.0);
            to.set_bytes(blob.bytes);
        }
    }

    fn read(from: wire::wanted::Reader<'_>) -> Result<Self, Malformed> {
        let blobs = from.get_blobs()?;
        bounded("blobs", blobs.len(), BLOBS_MAX as u32)?;
        let blob = |from: wire::blob_name::Reader<'_>| {
            Ok(BlobName { digest: read_digest(from.get_digest()?)?, bytes: from.get_bytes() })
        };
        blobs.iter().map(blob).collect()
    }

    fn weight_bytes(&self) -> usize {
        STRUCT_BYTES * self.len()
    }
}

impl Message for Version {
    type Wire = wire::version::Owned;

    fn write(&self, mut to: wire::version::Builder<'_>) {
        to.set_model(&self.model);
        to.set_version(self.version);
        to.set_digest(&self.digest.0);
        to.set_current(self.current);
        to.set_previous(self.previous);
        to.set_commit_us(self.commit_us);
        to.set_on_trial(self.on_trial);
        to.set_quarantined(self.quarantined);
    }

    fn read(from: wire::version::Reader<'_>) -> Result<Self, Malformed> {
        Ok(Version {
            model: from.get_model()?.to_str()?.to_owned(),
            version: from.get_version(),
            digest: read_digest(from.get_digest()?)?,
            current: from.get_current(),
            previous: from.get_previous(),
            commit_us: from.get_commit_us(),
            on_trial: from.get_on_trial(),
            quarantined: from.get_quarantined(),
        })
    }

    fn weight_bytes(&self) -> usize {
        STRUCT_BYTES + self.model.len() + TEXT_BYTES
    }
}

impl Message for Vec<Version> {
    type Wire = wire::versions::Owned;

    fn write(&self, to: wire::versions::Builder<'_>) {
        let mut versions = to.init_versions(self.len() as u32);
        for (index, version) in (0..).zip(self) {
            version.write(versions.reborrow().get(index));
        }
    }

    fn read(from: wire::versions::Reader<'_>) -> Result<Self, Malformed> {
        let versions = from.get_versions()?;
        bounded("versions", versions.len(), VERSIONS_MAX as u32)?;
        versions.iter().map(Version::read).collect()
    }

    fn weight_bytes(&self) -> usize {
        self.iter().map(Message::weight_bytes).sum()
    }
}

impl Message for EdgeState {
    type Wire = wire::edge_state::Owned;

    fn write(&self, mut to: wire::edge_state::Builder<'_>) {
        to.set_address(&self.address);
        to.set_connected(self.connected);
        to.set_in_force(self.in_force);
        to.set_agreed(self.agreed);
        to.set_strikes(self.strikes);
        to.set_rate_bps(self.rate_bps);
        to.set_rtt_us(self.rtt_us);
    }

    fn read(from: wire::edge_state::Reader<'_>) -> Result<Self, Malformed> {
        Ok(EdgeState {
            address: from.get_address()?.to_str()?.to_owned(),
            connected: from.get_connected(),
            in_force: from.get_in_force(),
            agreed: from.get_agreed(),
            strikes: from.get_strikes(),
            rate_bps: from.get_rate_bps(),
            rtt_us: from.get_rtt_us(),
        })
    }

    fn weight_bytes(&self) -> usize {
        STRUCT_BYTES + self.address.len() + TEXT_BYTES
    }
}

impl Message for Vec<EdgeState> {
    type Wire = wire::edges::Owned;

    fn write(&self, to: wire::edges::Builder<'_>) {
        let mut edges = to.init_edges(self.len() as u32);
        for (index, edge) in (0..).zip(self) {
            edge.write(edges.reborrow().get(index));
        }
    }

    fn read(from: wire::edges::Reader<'_>) -> Result<Self, Malformed> {
        let edges = from.get_edges()?;
        bounded("edges", edges.len(), EDGES_MAX as u32)?;
        edges.iter().map(EdgeState::read).collect()
    }

    fn weight_bytes(&self) -> usize {
        self.iter().map(Message::weight_bytes).sum()
    }
}

impl Message for ModelProfile {
    type Wire = wire::model_profile::Owned;

    fn write(&self, mut to: wire::model_profile::Builder<'_>) {
        to.set_model(&self.model.0);
        to.set_queue_us(self.queue_us);
        to.set_codec_us_per_mib(self.codec_us_per_mib);
        let mut codecs = to.reborrow().init_codecs(self.codecs.len() as u32);
        for (index, time) in (0..).zip(&self.codecs) {
            let mut to = codecs.reborrow().get(index);
            to.set_name(time.codec.name());
            to.set_encode_us_per_mib(time.encode_us_per_mib);
            to.set_decode_us_per_mib(time.decode_us_per_mib);
        }
        let mut segments = to.init_segments(self.segments.len() as u32);
        for (index, time) in (0..).zip(&self.segments) {
            let mut to = segments.reborrow().get(index);
            to.set_segment(time.segment);
            to.set_p50_us(time.p50_us);
            to.set_p90_us(time.p90_us);
            to.set_samples(time.samples);
        }
    }

    fn read(from: wire::model_profile::Reader<'_>) -> Result<Self, Malformed> {
        let segments = from.get_segments()?;
        bounded("segments", segments.len(), SEGMENTS_MAX)?;
        let codecs = from.get_codecs()?;
        let mut known = Vec::with_capacity(bounded("codecs", codecs.len(), CODECS_MAX)?);
        for from in codecs {
            // A later version's codec is none of ours.
            if let Some(codec) = Codec::from_name(from.get_name()?.to_str()?) {
                known.push(CodecTime {
                    codec,
                    encode_us_per_mib: from.get_encode_us_per_mib(),
                    decode_us_per_mib: from.get_decode_us_per_mib(),
                });
            }
        }
        let time = |from: wire::segment_time::Reader<'_>| SegmentTime {
            segment: from.get_segment(),
            p50_us: from.get_p50_us(),
            p90_us: from.get_p90_us(),
            samples: from.get_samples(),
        };
        Ok(ModelProfile {
            model: read_digest(from.get_model()?)?,
            segments: segments.iter().map(time).collect(),
            queue_us: from.get_queue_us(),
            codec_us_per_mib: from.get_codec_us_per_mib(),
            codecs: known,
        })
    }

    fn weight_bytes(&self) -> usize {
        STRUCT_BYTES * (self.segments.len() + self.codecs.len())
    }
}

/// Every field of [`Stats`] but the last is a number.
macro_rules! stats {
    ($($field:ident $set:ident $get:ident),+ $(,)?) => {
        impl Message for Stats {
            type Wire = wire::stats::Owned;

            fn write(&self, mut to: wire::stats::Builder<'_>) {
                $(to.$set(self.$field);)+
                if let Some(now) = &self.now {
                    now.write(to.init_now());
                }
            }

            fn read(from: wire::stats::Reader<'_>) -> Result<Self, Malformed> {
                let now = from.has_now().then(|| Now::read(from.get_now()?)).transpose()?;
                Ok(Stats { $($field: from.$get(),)+ now })
            }
        }
    };
}

stats! {
    uptime_ms set_uptime_ms get_uptime_ms,
    requests set_requests get_requests,
    answered set_answered get_answered,
    errors set_errors get_errors,
    deadline_met set_deadline_met get_deadline_met,
    degraded set_degraded get_degraded,
    plan_changes set_plan_changes get_plan_changes,
    calls_in_flight set_calls_in_flight get_calls_in_flight,
    connections set_connections get_connections,
    connections_refused set_connections_refused get_connections_refused,
    protocol_errors set_protocol_errors get_protocol_errors,
    bytes_in set_bytes_in get_bytes_in,
    bytes_out set_bytes_out get_bytes_out,
    rate_bps set_rate_bps get_rate_bps,
    rtt_us set_rtt_us get_rtt_us,
    tensor_bytes_copied set_tensor_bytes_copied get_tensor_bytes_copied,
    faults set_faults get_faults,
    quarantined set_quarantined get_quarantined,
}

impl Message for Now {
    type Wire = wire::now::Owned;

    fn write(&self, mut to: wire::now::Builder<'_>) {
        to.set_deadline_us(self.deadline_us);
        to.set_edge_configured(self.edge_configured);
        to.set_edge_connected(self.edge_connected);
        to.set_answers(self.answers);
        to.set_p50_us(self.p50_us);
        to.set_p99_us(self.p99_us);
        if let Some(plan) = &self.plan {
            plan.write(to.reborrow().init_plan());
        }
        write_numbers(to.init_exits(self.exits.len() as u32), &self.exits);
    }

    fn read(from: wire::now::Reader<'_>) -> Result<Self, Malformed> {
        let exits = from.get_exits()?;
        bounded("exits", exits.len(), EXITS_MAX as u32)?;
        Ok(Now {
            deadline_us: from.get_deadline_us(),
            plan: from.has_plan().then(|| RunningPlan::read(from.get_plan()?)).transpose()?,
            edge_configured: from.get_edge_configured(),
            edge_connected: from.get_edge_connected(),
            answers: from.get_answers(),
            p50_us: from.get_p50_us(),
            p99_us: from.get_p99_us(),
            exits: exits.iter().collect(),
        })
    }
}

impl Message for RunningPlan {
    type Wire = wire::running_plan::Owned;

    fn write(&self, mut to: wire::running_plan::Builder<'_>) {
        to.set_exit(self.exit);
        to.set_cut(self.cut);
        to.set_direction(self.direction.into());
        to.set_placement(self.placement.into());
        to.set_codec(&self.codec);
        to.set_epoch(self.epoch);
        to.set_predicted_us(self.predicted_us);
        to.set_in_time(self.in_time);
    }

    fn read(from: wire::running_plan::Reader<'_>) -> Result<Self, Malformed> {
        let codec = from.get_codec()?.to_str()?;
        bounded("bytes of a codec's name", codec.len() as u32, NAME_BYTES_MAX as u32)?;
        Ok(RunningPlan {
            exit: from.get_exit(),
            cut: from.get_cut(),
            direction: from.get_direction()?.into(),
            placement: from.get_placement()?.into(),
            codec: codec.to_owned(),
            epoch: from.get_epoch(),
            predicted_us: from.get_predicted_us(),
            in_time: from.get_in_time(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use capnp::message::Builder;

    /// What `value` becomes on the wire, spoiled, and read.
    fn check<T: Message>(value: &T, spoil: impl FnOnce(<T::Wire as Owned>::Builder<'_>), expected: &str) {
        let mut message = Builder::new_default();
        value.write(message.init_root());
        spoil(message.get_root().unwrap());
        let mut flat = Vec::new();
        capnp::serialize::write_message(&mut flat, &message).unwrap();
        let message = capnp::serialize::read_message(flat.as_slice(), Default::default()).unwrap();
        let outcome = T::read(message.get_root().unwrap());
        assert_eq!(outcome.err().map(|malformed| malformed.to_string()).unwrap_or_default(), expected);
    }

    /// What `value` becomes on the wire, changed as another version would have written it, and read.
    fn as_read<T: Message>(value: &T, change: impl FnOnce(<T::Wire as Owned>::Builder<'_>)) -> T {
        let mut message = Builder::new_default();
        value.write(message.init_root());
        change(message.get_root().unwrap());
        T::read(message.get_root_as_reader().unwrap()).unwrap()
    }

    #[test]
    fn versions_that_know_other_codecs_understand_each_other() {
        let time = |codec, us| CodecTime { codec, encode_us_per_mib: us, decode_us_per_mib: 2.0 * us };
        let codecs = vec![time(Codec::Raw, 1.0), time(Codec::Png, 9.5)];
        let model = Digest([0; 32]);
        let profile = ModelProfile { model, segments: vec![], queue_us: 0.0, codec_us_per_mib: 300.0, codecs };
        assert_eq!(as_read(&profile, |_| {}), profile);
        let later = as_read(&profile, |to| to.get_codecs().unwrap().get(1).set_name("webp"));
        assert_eq!(later.codecs, profile.codecs[..1], "what is not known is left out");
        assert_eq!(as_read(&profile, |mut to| _ = to.reborrow().init_codecs(0)).codecs, []);

        let answer = |codec| Answer {
            outputs: vec![],
            id: 1,
            label: 0,
            scores: vec![],
            exit: 0,
            cut: 0,
            direction: Direction::DeviceFirst,
            codec,
            placement: Placement::EdgeOnly,
            latency_us: 1,
            deadline_us: 1,
            deadline_met: true,
            degraded: None,
            epoch: 1,
            rate_bps: 1,
            predicted_us: 1,
            in_time: 1.0,
            model: Some(model),
        };
        for codec in Codec::ALL {
            let told = as_read(&answer(codec), |to| {
                // All that an older version looks at.
                assert!(matches!(to.get_codec().unwrap(), wire::Codec::Raw | wire::Codec::U8));
            });
            assert_eq!(told, answer(codec));
        }
        assert_eq!(as_read(&answer(Codec::Jpeg), |mut to| to.set_codec_name("webp")).codec, Codec::Raw);
        // Older versions do not tell which bundle answered.
        let older = Answer { model: None, ..answer(Codec::Raw) };
        assert_eq!(as_read(&older, |to| assert!(!to.has_model())), older);
    }

    #[test]
    fn a_traceparent_that_is_none_costs_nothing() {
        let trace = TraceParent::read("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let (model, input, beside) = (String::new(), plain(), vec![]);
        let asked = AskRequest { id: 1, model, deadline_us: 1, accuracy_floor: 0.0, input, beside, trace };
        assert_eq!(as_read(&asked, |_| {}), asked);
        for text in ["", "00-xyz", &"00-".repeat(1 << 16), "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"] {
            assert_eq!(as_read(&asked, |mut to| to.set_traceparent(text)), AskRequest { trace: None, ..asked.clone() });
        }
        let spoil = |to: wire::ask_request::Builder<'_>| to.init_traceparent(4).push_ascii(b'0');
        assert_eq!(as_read(&asked, spoil), AskRequest { trace: None, ..asked.clone() });
    }

    #[test]
    fn an_older_host_does_not_break_the_protocol() {
        let error = LinkError::from(Malformed::from(capnp::Error::unimplemented("no such method".to_owned())));
        assert_eq!(error.to_string(), "the peer answered: unsupported: the host is older than this call");
    }

    fn plain() -> Activation {
        Activation {
            codec: Codec::Raw,
            element_type: ElementType::U8,
            dims: vec![3],
            scales: vec![],
            offsets: vec![],
            bytes: Bytes::from_static(&[1, 2, 3]),
        }
    }

    #[test]
    fn what_comes_is_checked() {
        let activation = plain();
        check(&activation, |_| {}, "");
        check(
            &activation,
            |mut to| to.set_bytes(&[1, 2]),
            "activation of dimensions [3] has 2 bytes, not the Some(3) that they give (or fewer, if compressed)",
        );
        check(&activation, |mut to| _ = to.reborrow().init_dims(9), "9 dimensions, where at most 8 are allowed");
        let profile = ModelProfile {
            model: Digest([0; 32]),
            segments: vec![],
            queue_us: 0.0,
            codec_us_per_mib: 0.0,
            codecs: vec![],
        };
        check(&profile, |mut to| to.set_model(&[0; 31]), "a digest of 31 bytes");
        check(&profile, |to| _ = to.init_segments(SEGMENTS_MAX + 1), "4097 segments, where at most 4096 are allowed");
        check(&profile, |to| _ = to.init_codecs(CODECS_MAX + 1), "65 codecs, where at most 64 are allowed");
        let version = Version {
            model: String::new(),
            version: 1,
            digest: Digest([0; 32]),
            current: true,
            previous: false,
            commit_us: 3,
            on_trial: true,
            quarantined: true,
        };
        check(&version, |_| {}, "");
        check(&version, |mut to| to.set_digest(&[0; 33]), "a digest of 33 bytes");
        check(&vec![version], |to| _ = to.init_versions(1025), "1025 versions, where at most 1024 are allowed");
        let blobs = vec![BlobName { digest: Digest([0; 32]), bytes: 1 }];
        check(&blobs, |to| _ = to.init_blobs(8193), "8193 blobs, where at most 8192 are allowed");
        check(&blobs, |to| to.get_blobs().unwrap().get(0).set_digest(&[]), "a digest of 0 bytes");
        let signatures = vec![Signature { statement: Bytes::from_static(b"a"), minisig: Bytes::from_static(b"b") }];
        check(&signatures, |_| {}, "");
        check(&signatures, |to| _ = to.init_signatures(9), "9 signatures, where at most 8 are allowed");
        for part in [0, 1] {
            let change = |to: wire::signatures::Builder<'_>| {
                let signature = to.get_signatures().unwrap().get(0);
                _ = if part == 0 { signature.init_statement(1025) } else { signature.init_minisig(1025) };
            };
            check(&signatures, change, "1025 bytes of a signature, where at most 1024 are allowed");
        }
        check(&Now::default(), |to| _ = to.init_exits(65), "65 exits, where at most 64 are allowed");
        let too_long = |to: wire::now::Builder<'_>| to.init_plan().set_codec(&*"x".repeat(65));
        check(&Now::default(), too_long, "65 bytes of a codec's name, where at most 64 are allowed");
        let description = Description::default();
        check(&description, |to| _ = to.init_models(MODELS_MAX + 1), "257 models, where at most 256 are allowed");
        check(
            &description,
            |to| {
                let mut model = to.init_models(1).get(0);
                model.set_digest(&[0; 32]);
                model.init_classes(CLASSES_MAX + 1);
            },
            "65537 classes, where at most 65536 are allowed",
        );
        for (groups, name_bytes, expected) in [
            (65, 0, "65 groups of segments, where at most 64 are allowed"),
            (1, 65, "65 bytes of a backend's name, where at most 64 are allowed"),
        ] {
            let change = |to: wire::description::Builder<'_>| {
                let mut model = to.init_models(1).get(0);
                model.set_digest(&[0; 32]);
                model.init_computed(groups).get(0).set_backend(&*"x".repeat(name_bytes));
            };
            check(&description, change, expected);
        }
    }
}
