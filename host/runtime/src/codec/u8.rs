//! One byte an element: `value = offset + scale × byte`, with an offset and a scale for each channel
//! (axis 1), from the channel's own least and greatest value. And the same as one LZ4 block: behind a
//! ReLU, many bytes are zero.

use super::Coded;
use edgent_link::Codec;
use lz4_flex::block;

/// Bytes on the wire of one channel's offset and scale.
pub(super) const CHANNEL_BYTES: usize = 8;

pub(super) fn encode(dims: &[usize], values: &[f32]) -> Coded {
    let (outer, inner) = around(dims);
    let count = channels(dims);
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
    Coded { codec: Codec::U8, scales, offsets, bytes }
}

pub(super) fn decode(bytes: &[u8], scales: &[f32], offsets: &[f32], dims: &[usize]) -> Result<Vec<f32>, String> {
    let elements = dims.iter().product();
    let (outer, inner) = around(dims);
    // Nothing to read, however many times the channels were said to come round.
    if elements == 0 && bytes.is_empty() {
        return Ok(Vec::new());
    }
    if bytes.len() != elements || scales.len() != offsets.len() || scales.len() != channels(dims) {
        return Err(format!(
            "{} bytes, {} scales and {} offsets for dimensions {dims:?}",
            bytes.len(),
            scales.len(),
            offsets.len()
        ));
    }
    let mut values = Vec::with_capacity(elements);
    for _ in 0..outer {
        for (scale, offset) in scales.iter().zip(offsets) {
            let channel = &bytes[values.len()..values.len() + inner];
            values.extend(channel.iter().map(|byte| offset + scale * f32::from(*byte)));
        }
    }
    Ok(values)
}

/// The same with its bytes as one LZ4 block, if that makes them fewer.
pub(super) fn compress(plain: Coded) -> Coded {
    let bytes = block::compress(&plain.bytes);
    if bytes.len() < plain.bytes.len() { Coded { codec: Codec::U8Lz4, bytes, ..plain } } else { plain }
}

/// So many bytes from an LZ4 block, in fresh memory: a block that refers to more than it wrote must not
/// find another frame's.
pub(super) fn decompress(block: &[u8], bytes: usize) -> Result<Vec<u8>, String> {
    let mut plain = vec![0; bytes];
    match block::decompress_into(block, &mut plain) {
        Ok(written) if written == bytes => Ok(plain),
        Ok(written) => Err(format!("a block of {written} bytes, where {bytes} belong")),
        Err(error) => Err(error.to_string()),
    }
}

pub(super) fn channels(dims: &[usize]) -> usize {
    dims.get(1).copied().unwrap_or(1)
}

/// How many times the channels come round (axis 0), and how many elements each has.
fn around(dims: &[usize]) -> (usize, usize) {
    match dims {
        [outer, _, inner @ ..] => (*outer, inner.iter().product()),
        _ => (1, dims.iter().product()),
    }
}
