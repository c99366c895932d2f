//! What coding takes on this host, measured once: it is part of what a plan costs.

use super::{decode, encode, to_wire};
use edgent_link::{Codec, CodecTime};
use edgent_nn::{ElementType, Tensor, TensorError};
use edgent_planner::{self as planner, Coding, PerCodec};
use std::hint::black_box;
use std::sync::OnceLock;
use std::time::Instant;

/// The median of these is what coding usually takes.
const RUNS: usize = 9;

const MIB: f64 = (1 << 20) as f64;

/// An activation and a picture of the usual sizes: what coding takes beside its work on each byte, which is
/// much for a small picture, is spread over as many bytes as there usually are.
const VALUES_DIMS: [usize; 4] = [1, 64, 16, 16];
const PICTURE_DIMS: [usize; 4] = [1, 3, 64, 64];

/// What each codec takes on this host.
pub fn times() -> &'static [CodecTime] {
    #[cfg(test)]
    if crate::simulation::thread::is_called_for() {
        return crate::simulation::CODEC_TIMES;
    }
    static MEASURED: OnceLock<Vec<CodecTime>> = OnceLock::new();
    MEASURED.get_or_init(|| planner::Codec::ALL.map(to_wire).into_iter().filter_map(measure).collect())
}

/// What each codec takes between a device and an edge. One that either does not take, takes forever.
pub fn coding(device: &[CodecTime], edge: &[CodecTime]) -> PerCodec<Coding> {
    let of = |times: &[CodecTime], codec| times.iter().find(|time| time.codec == to_wire(codec)).copied();
    PerCodec::from_fn(|codec| match of(device, codec).zip(of(edge, codec)) {
        Some((here, there)) => Coding {
            up_us_per_byte: (here.encode_us_per_mib + there.decode_us_per_mib) / MIB,
            down_us_per_byte: (there.encode_us_per_mib + here.decode_us_per_mib) / MIB,
        },
        None => Coding::NONE,
    })
}

/// The same on a host that is so many times slower.
pub fn slowed(times: &[CodecTime], slowdown: f64) -> Vec<CodecTime> {
    let slowed = |time: &CodecTime| CodecTime {
        encode_us_per_mib: time.encode_us_per_mib * slowdown,
        decode_us_per_mib: time.decode_us_per_mib * slowdown,
        ..*time
    };
    times.iter().map(slowed).collect()
}

/// What the codecs take on a host of which only [`u8_us_per_mib`] is told: it takes `raw` and `u8`.
pub fn times_of_u8(u8_us_per_mib: f64) -> Vec<CodecTime> {
    let u8_us = u8_us_per_mib / F32_BYTES;
    let time = |codec, us| CodecTime { codec, encode_us_per_mib: us, decode_us_per_mib: us };
    vec![time(Codec::Raw, 0.0), time(Codec::U8, u8_us)]
}

/// Of `u8`, for each mebibyte on the wire, half of what coding and decoding take: all that older peers
/// are told, and all that older profiles say.
pub fn u8_us_per_mib() -> f64 {
    let u8 = times().iter().find(|time| time.codec == Codec::U8);
    u8.map_or(0.0, |time| (time.encode_us_per_mib + time.decode_us_per_mib) / 2.0 * F32_BYTES)
}

const F32_BYTES: f64 = 4.0;

fn measure(codec: Codec) -> Option<CodecTime> {
    let is_picture = matches!(codec, Codec::Png | Codec::Jpeg);
    let tensor = if is_picture { picture() } else { values() }.ok()?;
    let fact = tensor.fact();
    let coded = encode(&tensor, codec);
    let per_mib = |work: &dyn Fn()| median_us(work) * MIB / fact.bytes() as f64;
    Some(CodecTime {
        codec,
        encode_us_per_mib: per_mib(&|| drop(black_box(encode(black_box(&tensor), codec)))),
        decode_us_per_mib: per_mib(&|| drop(black_box(decode(black_box(&coded), &fact)))),
    })
}

fn median_us(work: &dyn Fn()) -> f64 {
    let mut runs_us = [0.0; RUNS];
    for us in &mut runs_us {
        let start = Instant::now();
        work();
        *us = start.elapsed().as_secs_f64() * 1e6;
    }
    runs_us.sort_by(f64::total_cmp);
    runs_us[RUNS / 2]
}

/// As behind a ReLU: half of it is zero.
fn values() -> Result<Tensor, TensorError> {
    let count = VALUES_DIMS.iter().product();
    Tensor::from_f32(&VALUES_DIMS, &(0..count).map(|i: usize| (i as f32).sin().max(0.0)).collect::<Vec<_>>())
}

/// Smooth, with a fine texture.
fn picture() -> Result<Tensor, TensorError> {
    let [_, _, height, width] = PICTURE_DIMS;
    let pixel = |i: usize| {
        let (colour, y, x) = (i / (width * height), i / width % height, i % width);
        (x * 2 + y * (colour + 1) + i * 7 % 13) as u8
    };
    let pixels: Vec<u8> = (0..PICTURE_DIMS.iter().product()).map(pixel).collect();
    Tensor::from_bytes(ElementType::U8, &PICTURE_DIMS, &pixels)
}
