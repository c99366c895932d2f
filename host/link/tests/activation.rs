//! Which activations are believed.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use edgent_link::*;

#[test]
fn an_activation_agrees_with_itself() {
    use Codec::{F16 as Half, Jpeg, Png, Raw, U8, U8Lz4};
    use ElementType::{Bf16, F16, F32, F64, I32, I64};
    const NAN: f32 = f32::NAN;
    const INF: f32 = f32::INFINITY;
    type Case = (Codec, ElementType, &'static [u32], &'static [f32], &'static [f32], usize, &'static str);
    let cases: &[Case] = &[
        (Raw, F32, &[], &[], &[], 4, "ok"),
        (Raw, F32, &[2, 3], &[], &[], 24, "ok"),
        (Raw, F16, &[2, 3], &[], &[], 12, "ok"),
        (Raw, Bf16, &[2, 3], &[], &[], 12, "ok"),
        (Raw, F64, &[2, 3], &[], &[], 48, "ok"),
        (Raw, I32, &[2, 3], &[], &[], 24, "ok"),
        (Raw, I64, &[2, 3], &[], &[], 48, "ok"),
        (Raw, ElementType::U8, &[2, 3], &[], &[], 6, "ok"),
        (Raw, F32, &[0, u32::MAX, 7], &[], &[], 0, "ok"),
        (Raw, F32, &[1; 8], &[], &[], 4, "ok"),
        (Raw, F32, &[1; 9], &[], &[], 4, "rank"),
        (Raw, F32, &[2, 3], &[], &[], 23, "length"),
        (Raw, F32, &[2, 3], &[], &[], 25, "length"),
        (Raw, F32, &[], &[], &[], 0, "length"),
        // 2^64 elements, which are none if nobody looks.
        (Raw, ElementType::U8, &[1 << 16, 1 << 16, 1 << 16, 1 << 16], &[], &[], 0, "length"),
        (Raw, F64, &[1 << 31, 1 << 31], &[], &[], 0, "length"),
        (Raw, F32, &[1, 2], &[1.0], &[1.0], 8, "scales"),
        (U8, F32, &[1, 2, 3], &[0.5], &[-1.0], 6, "ok"),
        (U8, F32, &[1, 2, 3], &[0.5, 1.0], &[-1.0, 0.0], 6, "ok"),
        (U8, F32, &[6], &[0.5], &[0.0], 6, "ok"),
        (U8, F32, &[1, 2, 3], &[0.5], &[-1.0], 24, "length"),
        (U8, F32, &[1, 2, 3], &[], &[], 6, "scales"),
        (U8, F32, &[1, 2, 3], &[1.0; 3], &[1.0; 3], 6, "scales"),
        (U8, F32, &[1, 2, 3], &[1.0, 1.0], &[1.0], 6, "scales"),
        (U8, F32, &[1, 0], &[], &[], 0, "ok"),
        (U8, F32, &[2], &[1.0, 1.0], &[1.0, 1.0], 2, "scales"),
        (U8, F32, &[6], &[NAN], &[0.0], 6, "finite"),
        (U8, F32, &[6], &[1.0], &[INF], 6, "finite"),
        (U8, F32, &[1, 2], &[1.0, -INF], &[0.0, 0.0], 2, "finite"),
        (Half, F32, &[2, 3], &[], &[], 12, "ok"),
        (Half, F32, &[2, 3], &[], &[], 24, "length"),
        (Half, F32, &[2, 3], &[1.0], &[1.0], 12, "scales"),
        (U8Lz4, F32, &[1, 2, 3], &[0.5], &[-1.0], 6, "ok"),
        (U8Lz4, F32, &[1, 2, 3], &[0.5, 1.0], &[-1.0, 0.0], 0, "ok"),
        (U8Lz4, F32, &[1, 2, 3], &[0.5], &[-1.0], 7, "length"),
        (U8Lz4, F32, &[1 << 31, 1 << 31, 1 << 31], &[0.5], &[-1.0], 7, "length"),
        (U8Lz4, F32, &[1, 2, 3], &[], &[], 6, "scales"),
        (U8Lz4, F32, &[6], &[NAN], &[0.0], 6, "finite"),
        (Png, ElementType::U8, &[1, 3, 4, 4], &[], &[], 48, "ok"),
        (Png, ElementType::U8, &[1, 3, 4, 4], &[], &[], 49, "length"),
        (Jpeg, ElementType::U8, &[1, 1, 4, 4], &[], &[], 7, "ok"),
        (Jpeg, ElementType::U8, &[1, 1, 4, 4], &[1.0], &[1.0], 7, "scales"),
        (Jpeg, ElementType::U8, &[1, 1, u32::MAX, u32::MAX], &[], &[], 7, "ok"),
        (Png, ElementType::U8, &[1, 2, 4, 4], &[], &[], 7, "picture"),
        (Png, ElementType::U8, &[2, 3, 4, 4], &[], &[], 7, "picture"),
        (Png, ElementType::U8, &[3, 4, 4], &[], &[], 7, "picture"),
        (Jpeg, F32, &[1, 3, 4, 4], &[], &[], 7, "picture"),
    ];
    for &(codec, element_type, dims, scales, offsets, bytes, expected) in cases {
        let activation = Activation {
            codec,
            element_type,
            dims: dims.to_vec(),
            scales: scales.to_vec(),
            offsets: offsets.to_vec(),
            bytes: Bytes::from(vec![0; bytes]),
        };
        let found = match activation.check() {
            Ok(()) => "ok",
            Err(ActivationError::Rank(_)) => "rank",
            Err(ActivationError::Length { .. }) => "length",
            Err(ActivationError::Picture { .. }) => "picture",
            Err(ActivationError::Scales { .. }) => "scales",
            Err(ActivationError::NotFinite) => "finite",
        };
        assert_eq!(found, expected, "{activation:?}");
    }
}
