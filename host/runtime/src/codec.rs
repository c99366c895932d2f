//! How tensors are written for the wire, and read again.
//!
//! `raw` is the elements as they are. `u8` is one byte an element: `value = offset + scale × byte`,
//! with an offset and a scale for each channel (axis 1), from the channel's own least and greatest
//! value. What that costs in accuracy is measured when a bundle is built and stands in its manifest.

use edgent_link::{Activation, Codec, ElementType as Wire};
use edgent_nn::{ElementType, Fact, Tensor, TensorError};
use std::sync::OnceLock;
use std::time::Instant;

/// Bytes that a call takes beside its activation: RPC headers, ids, dimensions. Measured.
pub const CALL_BYTES: u64 = 300;
/// The same for its return and finish.
pub const RETURN_BYTES: u64 = 200;
/// Both together.
pub const MESSAGE_BYTES: u64 = CALL_BYTES + RETURN_BYTES;

/// Of these the fastest tells what coding costs; the others were interrupted.
const CODING_RUNS: usize = 5;

/// Bytes on the wire of one channel's offset and scale.
const CHANNEL_BYTES: usize = 8;

/// Writes a tensor. Only 32-bit floats can be written as u8; anything else goes raw.
pub fn encode(tensor: &Tensor, codec: Codec) -> Activation {
    match (codec, tensor.as_f32()) {
        (Codec::U8, Some(values)) => encode_u8(tensor, values),
        _ => Activation {
            codec: Codec::Raw,
            element_type: wire(tensor.element_type()),
            dims: dims(tensor),
            scales: Vec::new(),
            offsets: Vec::new(),
            bytes: tensor.bytes().to_vec().into(),
        },
    }
}

/// Reads a tensor that a peer sent.
pub fn decode(activation: &Activation) -> Result<Tensor, TensorError> {
    let dims: Vec<usize> = activation.dims.iter().map(|dim| *dim as usize).collect();
    match activation.codec {
        Codec::Raw => Tensor::from_bytes(native(activation.element_type)?, &dims, &activation.bytes),
        Codec::U8 => {
            let fact = Fact::new(ElementType::F32, &dims)?;
            let expected = fact.elements();
            // Nothing to read, however many times the channels were said to come round.
            if expected == 0 && activation.bytes.is_empty() {
                return Tensor::from_f32(&dims, &[]);
            }
            let (outer, inner) = channels(&dims);
            let pairs = activation.scales.len();
            if activation.bytes.len() != expected
                || pairs != activation.offsets.len()
                || pairs != dims.get(1).copied().unwrap_or(1)
            {
                return Err(TensorError::Length { dims, expected, got: activation.bytes.len() });
            }
            let mut values = Vec::with_capacity(expected);
            for _ in 0..outer {
                for (scale, offset) in activation.scales.iter().zip(&activation.offsets) {
                    let channel = &activation.bytes[values.len()..values.len() + inner];
                    values.extend(channel.iter().map(|byte| offset + scale * f32::from(*byte)));
                }
            }
            Tensor::from_f32(&dims, &values)
        }
    }
}

/// Writes what crosses a boundary: the first tensor, and those beside it. None if nothing does.
pub fn encode_all(tensors: &[Tensor], codec: Codec) -> Option<(Activation, Vec<Activation>)> {
    let (first, beside) = tensors.split_first()?;
    Some((encode(first, codec), beside.iter().map(|tensor| encode(tensor, codec)).collect()))
}

/// Reads what crossed a boundary.
pub fn decode_all(first: &Activation, beside: &[Activation]) -> Result<Vec<Tensor>, TensorError> {
    std::iter::once(first).chain(beside).map(decode).collect()
}

/// What a tensor of that kind takes on the wire as u8; `None` if it cannot be coded so.
pub fn u8_bytes(fact: &Fact) -> Option<u64> {
    let pairs = fact.dims.get(1).copied().unwrap_or(1);
    (fact.element_type == ElementType::F32).then_some((fact.elements() + pairs * CHANNEL_BYTES) as u64)
}

/// The tensor as its receiver would see it.
pub fn round_trip(tensor: &Tensor, codec: Codec) -> Result<Tensor, TensorError> {
    decode(&encode(tensor, codec))
}

/// What coding and decoding a mebibyte (on the wire) as u8 takes on this host, measured once; the peer does
/// half of it.
pub fn us_per_mib() -> f64 {
    static MEASURED: OnceLock<f64> = OnceLock::new();
    *MEASURED.get_or_init(|| {
        let values: Vec<f32> = (0..1 << 18).map(|i| (i as f32).sin()).collect();
        let Ok(tensor) = Tensor::from_f32(&[1, 64, 1 << 12], &values) else { return 0.0 };
        let run = |_| {
            let start = Instant::now();
            round_trip(&tensor, Codec::U8).map_or(0.0, |_| start.elapsed().as_secs_f64() * 1e6)
        };
        let least_us = (0..CODING_RUNS).map(run).fold(f64::INFINITY, f64::min);
        least_us * 4.0 / 2.0
    })
}

fn encode_u8(tensor: &Tensor, values: &[f32]) -> Activation {
    let (outer, inner) = channels(tensor.dims());
    let count = tensor.dims().get(1).copied().unwrap_or(1);
    let channel = |batch: usize, index: usize| &values[(batch * count + index) * inner..][..inner];
    let (mut scales, mut offsets) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for index in 0..count {
        let all = (0..outer).flat_map(|batch| channel(batch, index)).copied().filter(|value| value.is_finite());
        let (least, greatest) = all.fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        let range = if greatest > least { greatest - least } else { 0.0 };
        offsets.push(if least.is_finite() { least } else { 0.0 });
        scales.push(range / 255.0);
    }
    let mut bytes = Vec::with_capacity(values.len());
    for batch in 0..outer {
        for index in 0..count {
            let (offset, scale) = (offsets[index], scales[index]);
            let steps = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            // `as` saturates and takes NaN to zero: nothing here can fail.
            bytes.extend(channel(batch, index).iter().map(|value| ((value - offset) * steps + 0.5) as u8));
        }
    }
    Activation { codec: Codec::U8, element_type: Wire::F32, dims: dims(tensor), scales, offsets, bytes: bytes.into() }
}

/// How many times the channels come round (axis 0), and how many elements each has.
fn channels(dims: &[usize]) -> (usize, usize) {
    match dims {
        [outer, _, inner @ ..] => (*outer, inner.iter().product()),
        _ => (1, dims.iter().product()),
    }
}

fn dims(tensor: &Tensor) -> Vec<u32> {
    tensor.dims().iter().map(|dim| u32::try_from(*dim).unwrap_or(u32::MAX)).collect()
}

/// The element type of a boundary, as the wire names it.
pub fn element_type(fact: &Fact) -> Wire {
    wire(fact.element_type)
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

fn native(element_type: Wire) -> Result<ElementType, TensorError> {
    Ok(match element_type {
        Wire::F16 => ElementType::F16,
        Wire::F32 => ElementType::F32,
        Wire::F64 => ElementType::F64,
        Wire::U8 => ElementType::U8,
        Wire::I32 => ElementType::I32,
        Wire::I64 => ElementType::I64,
        other => return Err(TensorError::Unsupported(format!("elements of type {other:?}"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_is_exact_and_u8_is_within_half_a_step() {
        let values: Vec<f32> = (0..2 * 3 * 5).map(|i| (i as f32 * 0.7).sin() * (i / 5) as f32).collect();
        let tensor = Tensor::from_f32(&[2, 3, 5], &values).unwrap();
        assert_eq!(round_trip(&tensor, Codec::Raw).unwrap().bytes(), tensor.bytes());
        let coded = encode(&tensor, Codec::U8);
        assert_eq!(coded.bytes.len(), 30);
        let back = decode(&coded).unwrap();
        for (i, (a, b)) in values.iter().zip(back.as_f32().unwrap()).enumerate() {
            assert!((a - b).abs() <= coded.scales[i / 5 % 3] * 0.51, "element {i}: {a} became {b}");
        }
    }

    #[test]
    fn odd_tensors_survive() {
        for (dims, values) in [
            (&[4][..], &[1.0, 1.0, 1.0, 1.0][..]),
            (&[], &[3.5]),
            (&[1, 2], &[f32::NAN, f32::INFINITY]),
            (&[1, 0], &[]),
        ] {
            let tensor = Tensor::from_f32(dims, values).unwrap();
            assert_eq!(round_trip(&tensor, Codec::U8).unwrap().dims(), dims);
        }
        let image = Tensor::from_bytes(ElementType::U8, &[2, 2], &[1, 2, 3, 4]).unwrap();
        assert_eq!(encode(&image, Codec::U8).codec, Codec::Raw);
    }

    #[test]
    fn activations_that_lie_are_refused() {
        let good = encode(&Tensor::from_f32(&[1, 2, 2], &[0.0, 1.0, 2.0, 3.0]).unwrap(), Codec::U8);
        type Break = fn(&mut Activation);
        let cases: [Break; 5] = [
            |a| a.bytes = vec![0; 3].into(),
            |a| a.dims = vec![1, 3, 2],
            |a| a.dims = vec![u32::MAX, u32::MAX, u32::MAX],
            |a| a.scales.truncate(1),
            |a| a.offsets.clear(),
        ];
        // No elements, four billion times over: answered at once.
        let nothing = Activation { dims: vec![u32::MAX, 100_000, 0], bytes: Vec::new().into(), ..good.clone() };
        assert!(decode(&nothing).is_ok_and(|tensor| tensor.bytes().is_empty()));
        for damage in cases {
            let mut bad = good.clone();
            damage(&mut bad);
            assert!(decode(&bad).is_err(), "{bad:?}");
        }
    }
}
