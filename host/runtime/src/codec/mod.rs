//! How tensors are written for the wire, and read again.
//!
//! `raw` is the elements as they are. The other codecs trade a little accuracy, or this processor's
//! time, for bytes: [`choices`] tells which of them suit a tensor. What each costs in accuracy, and in
//! bytes where that depends on what is in the tensor, is measured when a bundle is built and stands in
//! its manifest; what it costs in time is measured by each host at its start ([`times`]).
//!
//! A codec never makes more bytes than its plain form (`u8` for `u8-lz4`, `raw` for pictures): what does
//! not become smaller is sent plain.

mod f16;
mod picture;
mod time;
mod u8;

pub use time::{coding, slowed, times, times_of_u8, u8_us_per_mib};

use edgent_link::{Activation, Codec, ElementType as Wire};
use edgent_nn::{ElementType, Fact, Tensor, TensorError};
use edgent_planner as planner;

/// Bytes that a call takes beside its activation: RPC headers, ids, dimensions. Measured.
pub const CALL_BYTES: u64 = 300;
/// The same for its return and finish.
pub const RETURN_BYTES: u64 = 200;
/// Both together.
pub const MESSAGE_BYTES: u64 = CALL_BYTES + RETURN_BYTES;

/// Writes a tensor. What does not suit the codec goes raw.
pub fn encode(tensor: &Tensor, codec: Codec) -> Activation {
    let values = tensor.as_f32();
    let coded = match codec {
        Codec::Raw => None,
        Codec::F16 => values.map(f16::encode),
        Codec::U8 => values.map(|values| u8::encode(tensor.dims(), values)),
        Codec::U8Lz4 => values.map(|values| u8::compress(u8::encode(tensor.dims(), values))),
        Codec::Png | Codec::Jpeg => picture::encode(tensor, codec),
    };
    let Coded { codec, scales, offsets, bytes } = coded.unwrap_or_else(|| Coded {
        codec: Codec::Raw,
        scales: Vec::new(),
        offsets: Vec::new(),
        bytes: tensor.bytes().to_vec(),
    });
    let dims = tensor.dims().iter().map(|dim| u32::try_from(*dim).unwrap_or(u32::MAX)).collect();
    Activation { codec, element_type: wire(tensor.element_type()), dims, scales, offsets, bytes: bytes.into() }
}

/// Reads a tensor that a peer sent. It must be what is expected: before that is sure, and for anything
/// larger, no memory is taken.
pub fn decode(activation: &Activation, expected: &Fact) -> Result<Tensor, CodecError> {
    let dims: Vec<usize> = activation.dims.iter().map(|dim| *dim as usize).collect();
    let element_type = native(activation.element_type);
    if element_type != Some(expected.element_type) || dims != expected.dims {
        let got = format!("{:?}{dims:?}", activation.element_type).to_lowercase();
        return Err(CodecError::Unexpected { expected: expected.clone(), got });
    }
    let bytes = &activation.bytes[..];
    let damaged = |what| CodecError::Damaged { codec: activation.codec.name(), what };
    match activation.codec {
        Codec::Raw => Ok(Tensor::from_bytes(expected.element_type, &dims, bytes)?),
        Codec::Png | Codec::Jpeg => {
            let elements = picture::decode(bytes, activation.codec, expected).map_err(damaged)?;
            Ok(Tensor::from_bytes(expected.element_type, &dims, &elements)?)
        }
        Codec::F16 | Codec::U8 | Codec::U8Lz4 => {
            if expected.element_type != ElementType::F32 {
                return Err(damaged(format!("it is for f32, not {expected}")));
            }
            let (scales, offsets) = (&activation.scales[..], &activation.offsets[..]);
            let values = match activation.codec {
                Codec::F16 => f16::decode(bytes, expected.elements()),
                Codec::U8 => u8::decode(bytes, scales, offsets, &dims),
                _ => u8::decompress(bytes, expected.elements())
                    .and_then(|bytes| u8::decode(&bytes, scales, offsets, &dims)),
            };
            Ok(Tensor::from_f32(&dims, &values.map_err(damaged)?)?)
        }
    }
}

/// Writes what crosses a boundary: the first tensor, and those beside it. None if nothing does.
pub fn encode_all(tensors: &[Tensor], codec: Codec) -> Option<(Activation, Vec<Activation>)> {
    let (first, beside) = tensors.split_first()?;
    Some((encode(first, codec), beside.iter().map(|tensor| encode(tensor, codec)).collect()))
}

/// Reads what crossed a boundary.
pub fn decode_all(first: &Activation, beside: &[Activation], expected: &[&Fact]) -> Result<Vec<Tensor>, CodecError> {
    if 1 + beside.len() != expected.len() {
        return Err(CodecError::Count { expected: expected.len(), got: 1 + beside.len() });
    }
    let activations = std::iter::once(first).chain(beside);
    activations.zip(expected).map(|(activation, expected)| decode(activation, expected)).collect()
}

/// The tensor as its receiver would see it.
pub fn round_trip(tensor: &Tensor, codec: Codec) -> Result<Tensor, CodecError> {
    decode(&encode(tensor, codec), &tensor.fact())
}

/// The codecs that suit one of the tensors that cross a boundary, `raw` first.
pub fn choices(facts: &[&Fact]) -> Vec<Codec> {
    let suits_one = |codec: &Codec| facts.iter().any(|fact| suits(fact, *codec));
    planner::Codec::ALL.into_iter().map(to_wire).filter(suits_one).collect()
}

fn suits(fact: &Fact, codec: Codec) -> bool {
    match codec {
        Codec::Raw => true,
        Codec::F16 | Codec::U8 | Codec::U8Lz4 => fact.element_type == ElementType::F32,
        Codec::Png | Codec::Jpeg => picture::shape(fact).is_some(),
    }
}

/// Bytes on the wire of the elements of all that crosses a boundary; `None` if the codec suits none of it, or
/// if that depends on what is in it.
pub fn fixed_bytes(facts: &[&Fact], codec: Codec) -> Option<u64> {
    let bytes = |fact: &&Fact| match codec {
        // What does not suit the codec goes raw.
        codec if codec == Codec::Raw || !suits(fact, codec) => Some(fact.bytes()),
        Codec::F16 => Some(fact.elements() * ElementType::F16.bytes()),
        Codec::U8 => Some(fact.elements() + u8::channels(&fact.dims) * u8::CHANNEL_BYTES),
        _ => None,
    };
    facts
        .iter()
        .any(|fact| suits(fact, codec))
        .then(|| facts.iter().map(bytes).sum::<Option<usize>>())?
        .map(|b| b as u64)
}

/// Bytes on the wire of the elements of all that crosses a boundary.
pub fn wire_bytes(first: &Activation, beside: &[Activation]) -> u64 {
    let bytes = |activation: &Activation| activation.bytes.len() + activation.scales.len() * u8::CHANNEL_BYTES;
    std::iter::once(first).chain(beside).map(bytes).sum::<usize>() as u64
}

/// Whether what is read is what was written, to the bit.
pub const fn is_lossless(codec: Codec) -> bool {
    matches!(codec, Codec::Raw | Codec::Png)
}

/// What a codec made of a tensor.
struct Coded {
    codec: Codec,
    scales: Vec<f32>,
    offsets: Vec<f32>,
    bytes: Vec<u8>,
}

impl Coded {
    fn plain(codec: Codec, bytes: Vec<u8>) -> Self {
        Self { codec, scales: Vec::new(), offsets: Vec::new(), bytes }
    }
}

/// Why what came is not read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CodecError {
    /// More or fewer tensors than cross there.
    #[error("{got} tensors came, where {expected} cross")]
    Count {
        /// How many cross.
        expected: usize,
        /// How many came.
        got: usize,
    },
    /// Another tensor than belongs here.
    #[error("the activation must be {expected}, not {got}")]
    Unexpected {
        /// What belongs here.
        expected: Fact,
        /// What was said to come.
        got: String,
    },
    /// Bytes that the codec did not write.
    #[error("the activation is no {codec}: {what}; send it again, or as raw")]
    Damaged {
        /// Which codec.
        codec: &'static str,
        /// What is wrong.
        what: String,
    },
    /// Bytes that are no tensor.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// A codec as the link names it.
pub const fn to_wire(codec: planner::Codec) -> Codec {
    match codec {
        planner::Codec::Raw => Codec::Raw,
        planner::Codec::F16 => Codec::F16,
        planner::Codec::U8 => Codec::U8,
        planner::Codec::U8Lz4 => Codec::U8Lz4,
        planner::Codec::Png => Codec::Png,
        planner::Codec::Jpeg => Codec::Jpeg,
    }
}

/// The same as the planner names it.
pub const fn from_wire(codec: Codec) -> planner::Codec {
    match codec {
        Codec::Raw => planner::Codec::Raw,
        Codec::F16 => planner::Codec::F16,
        Codec::U8 => planner::Codec::U8,
        Codec::U8Lz4 => planner::Codec::U8Lz4,
        Codec::Png => planner::Codec::Png,
        Codec::Jpeg => planner::Codec::Jpeg,
    }
}

/// The element type of a boundary, as the wire names it.
pub fn element_type(fact: &Fact) -> Wire {
    wire(fact.element_type)
}

/// Type and dimensions of what came, where nobody knows better what belongs there; none if there is no such tensor.
pub fn fact(activation: &Activation) -> Option<Fact> {
    let dims: Vec<usize> = activation.dims.iter().map(|dim| *dim as usize).collect();
    Fact::new(native(activation.element_type)?, &dims).ok()
}

fn wire(element_type: ElementType) -> Wire {
    match element_type {
        ElementType::F16 => Wire::F16,
        ElementType::F32 => Wire::F32,
        ElementType::F64 => Wire::F64,
        ElementType::U8 => Wire::U8,
        ElementType::I32 => Wire::I32,
        ElementType::I64 => Wire::I64,
    }
}

fn native(element_type: Wire) -> Option<ElementType> {
    Some(match element_type {
        Wire::F16 => ElementType::F16,
        Wire::F32 => ElementType::F32,
        Wire::F64 => ElementType::F64,
        Wire::U8 => ElementType::U8,
        Wire::I32 => ElementType::I32,
        Wire::I64 => ElementType::I64,
        Wire::Bf16 => return None,
    })
}

#[cfg(test)]
mod tests;
