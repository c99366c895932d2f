//! Half-precision floats: half the bytes of f32, for about three decimal digits.

use super::Coded;
use edgent_link::Codec;
use half::f16;
use half::slice::HalfFloatSliceExt;

const VALUE_BYTES: usize = 2;

/// What is beyond f16's range becomes its greatest value, not infinity, which layers make NaN of.
pub(super) fn encode(values: &[f32]) -> Coded {
    let (least, greatest) = (f16::MIN.to_f32(), f16::MAX.to_f32());
    let within: Vec<f32> = values.iter().map(|value| value.clamp(least, greatest)).collect();
    let mut halves = vec![f16::ZERO; values.len()];
    halves.convert_from_f32_slice(&within);
    Coded::plain(Codec::F16, halves.iter().flat_map(|half| half.to_le_bytes()).collect())
}

pub(super) fn decode(bytes: &[u8], elements: usize) -> Result<Vec<f32>, String> {
    if bytes.len() != elements * VALUE_BYTES {
        return Err(format!("{} bytes for {elements} elements of {VALUE_BYTES}", bytes.len()));
    }
    let (pairs, _) = bytes.as_chunks();
    let halves: Vec<f16> = pairs.iter().map(|pair| f16::from_le_bytes(*pair)).collect();
    let mut values = vec![0.0; elements];
    halves.convert_to_f32_slice(&mut values);
    Ok(values)
}
