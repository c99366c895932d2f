//! Every codec on every kind of tensor, and on what no codec wrote.

use super::*;

fn floats(dims: &[usize]) -> Tensor {
    let count: usize = dims.iter().product();
    Tensor::from_f32(dims, &(0..count).map(|i| (i as f32 * 0.7).sin() * (i / 5) as f32).collect::<Vec<_>>()).unwrap()
}

/// As behind a ReLU and a pool: runs of zeros.
fn sparse(dims: &[usize]) -> Tensor {
    let count: usize = dims.iter().product();
    let value = |i| if i / 16 % 2 == 0 { 0.0 } else { (i as f32).sin() + 1.0 };
    Tensor::from_f32(dims, &(0..count).map(value).collect::<Vec<_>>()).unwrap()
}

fn picture(colours: usize, height: usize, width: usize) -> Tensor {
    let pixels: Vec<u8> = (0..colours * height * width).map(|i| (i % width * 2 + i / width % height) as u8).collect();
    Tensor::from_bytes(ElementType::U8, &[1, colours, height, width], &pixels).unwrap()
}

/// Peak signal to noise: 30 and over is what people call good.
fn psnr_db(a: &Tensor, b: &Tensor) -> f64 {
    let square = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b)).powi(2);
    let mean = a.bytes().iter().zip(b.bytes()).map(square).sum::<f64>() / a.bytes().len() as f64;
    10.0 * (255.0_f64.powi(2) / mean.max(1e-9)).log10()
}

#[test]
fn what_is_read_is_what_was_written_as_far_as_the_codec_goes() {
    let tensors = [
        floats(&[2, 3, 5]),
        floats(&[1, 64, 16, 16]),
        floats(&[4]),
        floats(&[]),
        floats(&[1, 0]),
        picture(3, 64, 64),
        picture(1, 33, 50),
        Tensor::from_bytes(ElementType::U8, &[2, 2], &[1, 2, 3, 4]).unwrap(),
        Tensor::from_bytes(ElementType::I64, &[2], &[7; 16]).unwrap(),
    ];
    for tensor in &tensors {
        let fact = tensor.fact();
        for codec in Codec::ALL {
            let coded = encode(tensor, codec);
            coded.check().unwrap();
            if !choices(&[&fact]).contains(&codec) {
                assert_eq!(coded.codec, Codec::Raw, "{fact} as {}", codec.name());
                continue;
            }
            let back = decode(&coded, &fact).unwrap();
            assert_eq!(back.fact(), fact);
            if is_lossless(codec) {
                assert_eq!(back.bytes(), tensor.bytes(), "{fact} as {}", codec.name());
            }
            if let Some(bytes) = fixed_bytes(&[&fact], codec) {
                assert_eq!(wire_bytes(&coded, &[]), bytes, "{fact} as {}", codec.name());
            }
            let (Some(a), Some(b)) = (tensor.as_f32(), back.as_f32()) else {
                assert!(psnr_db(tensor, &back) > 30.0, "{fact} as {}: {} dB", codec.name(), psnr_db(tensor, &back));
                continue;
            };
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                let off = match codec {
                    Codec::Raw => 0.0,
                    Codec::F16 => a.abs() / 1_000.0,
                    _ => {
                        coded.scales
                            [i / fact.dims.get(2..).map_or(1, |inner| inner.iter().product()) % coded.scales.len()]
                            * 0.51
                    }
                };
                assert!((a - b).abs() <= off, "{fact} as {}, element {i}: {a} became {b}", codec.name());
            }
        }
    }
}

#[test]
fn compression_is_worth_it_or_not_done() {
    let sparse = sparse(&[1, 1, 64, 64]);
    let plain = wire_bytes(&encode(&sparse, Codec::U8), &[]);
    assert!(wire_bytes(&encode(&sparse, Codec::U8Lz4), &[]) < plain * 3 / 4);
    let as_u8 = |codec| round_trip(&sparse, codec).unwrap().bytes().to_vec();
    assert_eq!(as_u8(Codec::U8Lz4), as_u8(Codec::U8));
    for codec in [Codec::Png, Codec::Jpeg] {
        let picture = picture(3, 64, 64);
        assert!(wire_bytes(&encode(&picture, codec), &[]) < picture.bytes().len() as u64 / 2, "{}", codec.name());
    }
    // What does not become smaller goes plain: noise, and a picture smaller than a file's head.
    let mut state = 1_u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let values: Vec<f32> = (0..4096).map(|_| f32::from(noise())).collect();
    assert_eq!(encode(&Tensor::from_f32(&[1, 1, 4096], &values).unwrap(), Codec::U8Lz4).codec, Codec::U8);
    let pixels: Vec<u8> = (0..3 * 64 * 64).map(|_| noise()).collect();
    let picture = Tensor::from_bytes(ElementType::U8, &[1, 3, 64, 64], &pixels).unwrap();
    assert_eq!(encode(&picture, Codec::Png).codec, Codec::Raw);
    assert_eq!(encode(&self::picture(1, 4, 4), Codec::Jpeg).codec, Codec::Raw);
}

#[test]
fn odd_values_survive() {
    for values in [[f32::NAN, f32::INFINITY], [f32::NEG_INFINITY, 1e30], [f32::MIN, f32::MAX], [-0.0, 1e-40]] {
        let tensor = Tensor::from_f32(&[1, 2], &values).unwrap();
        for codec in choices(&[&tensor.fact()]) {
            let back = round_trip(&tensor, codec).unwrap();
            let is_finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
            assert_eq!(back.dims(), [1, 2]);
            // f16 alone can tell NaN; none makes infinity of a finite value.
            assert!(!is_finite(&values) || is_finite(back.as_f32().unwrap()), "{values:?} as {}", codec.name());
        }
    }
}

/// What comes is compared with what is expected before memory is taken for it.
#[test]
fn another_tensor_than_expected_is_refused_at_once() {
    for (tensor, codec) in Codec::ALL.map(|codec| {
        let is_picture = matches!(codec, Codec::Png | Codec::Jpeg);
        (if is_picture { picture(3, 64, 64) } else { floats(&[1, 64, 16, 16]) }, codec)
    }) {
        let (good, fact) = (encode(&tensor, codec), tensor.fact());
        let huge = vec![1, 3, u32::from(u16::MAX), u32::from(u16::MAX)];
        for dims in [huge, vec![u32::MAX; 8], vec![1, 3, 64], vec![], vec![1, 3, 64, 63], vec![0, 3, 64, 64]] {
            let lie = Activation { dims, ..good.clone() };
            assert!(matches!(decode(&lie, &fact), Err(CodecError::Unexpected { .. })), "{lie:?}");
        }
        let lie = Activation { element_type: Wire::Bf16, ..good.clone() };
        assert!(matches!(decode(&lie, &fact), Err(CodecError::Unexpected { .. })), "{}", codec.name());
    }
}

/// A file is what it is, whatever the message around it says.
#[test]
fn pictures_of_another_size_or_kind_are_refused() {
    let expected = picture(3, 64, 64);
    for codec in [Codec::Png, Codec::Jpeg] {
        let good = encode(&expected, codec);
        let other = |tensor: &Tensor, codec| Activation { bytes: encode(tensor, codec).bytes, ..good.clone() };
        let others = [
            other(&picture(3, 64, 65), codec),
            other(&picture(3, 65, 64), codec),
            other(&picture(3, 32, 32), codec),
            other(&picture(3, 600, 600), codec),
            other(&picture(1, 64, 64), codec),
            other(&expected, if codec == Codec::Png { Codec::Jpeg } else { Codec::Png }),
            Activation { bytes: bomb(codec).into(), ..good.clone() },
        ];
        for (index, other) in others.iter().enumerate() {
            let refused = decode(other, &expected.fact());
            assert!(matches!(refused, Err(CodecError::Damaged { .. })), "{}, case {index}: {refused:?}", codec.name());
        }
    }
}

/// A good file whose head says that it has 65 535 × 65 535 pixels.
fn bomb(codec: Codec) -> Vec<u8> {
    let mut file = encode(&picture(3, 64, 64), codec).bytes.to_vec();
    if codec == Codec::Jpeg {
        let head = file.windows(2).position(|two| two == [0xff, 0xc0]).unwrap();
        file[head + 5..head + 9].fill(0xff);
    } else {
        file[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
        let crc = crc32(&file[12..29]);
        file[29..33].copy_from_slice(&crc.to_be_bytes());
    }
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[test]
fn blocks_of_another_length_are_refused() {
    let tensor = Tensor::from_f32(&[1, 2, 512], &[1.0; 1024]).unwrap();
    let good = encode(&tensor, Codec::U8Lz4);
    assert_eq!(good.codec, Codec::U8Lz4);
    let block = |bytes: usize| lz4_flex::block::compress(&vec![0; bytes]);
    for bytes in [0, 1, 1023, 1025, 1 << 20] {
        let lie = Activation { bytes: block(bytes).into(), ..good.clone() };
        assert!(decode(&lie, &tensor.fact()).is_err(), "a block of {bytes} bytes");
    }
    // A match that begins before the first byte: once, such blocks read what was in memory before.
    for block in [&[0x1f, 0, 1, 0][..], &[0x10, 7, 0xff, 0xff], &[0x0f, 1, 0, 255, 255, 255], &[]] {
        let lie = Activation { bytes: block.to_vec().into(), ..good.clone() };
        assert!(decode(&lie, &tensor.fact()).is_err(), "{block:?}");
    }
}

#[test]
fn activations_that_lie_are_refused() {
    type Break = fn(&mut Activation);
    let cases: [Break; 5] = [
        |a| a.bytes = a.bytes.slice(..a.bytes.len() - 1),
        |a| a.bytes = Vec::new().into(),
        |a| a.bytes = [&a.bytes[..], &[0]].concat().into(),
        |a| a.scales.truncate(1),
        |a| a.offsets.clear(),
    ];
    for codec in [Codec::Raw, Codec::F16, Codec::U8, Codec::U8Lz4] {
        let tensor = floats(&[1, 2, 256]);
        let good = encode(&tensor, codec);
        assert!(decode(&good, &tensor.fact()).is_ok());
        for (index, damage) in cases.iter().enumerate() {
            let mut bad = good.clone();
            damage(&mut bad);
            assert!(bad == good || decode(&bad, &tensor.fact()).is_err(), "{}, case {index}", codec.name());
        }
    }
    // No elements, four billion times over: answered at once.
    let nothing = Fact { element_type: ElementType::F32, dims: vec![u32::MAX as usize, 100_000, 0] };
    let (codec, element_type) = (Codec::U8, Wire::F32);
    let dims = vec![u32::MAX, 100_000, 0];
    let empty = Activation { codec, element_type, dims, scales: vec![], offsets: vec![], bytes: Vec::new().into() };
    assert!(decode(&empty, &nothing).is_ok_and(|tensor| tensor.bytes().is_empty()));
    let picture = picture(3, 64, 64);
    for codec in [Codec::F16, Codec::U8, Codec::U8Lz4] {
        let lie = Activation { codec, ..encode(&picture, Codec::Raw) };
        assert!(decode(&lie, &picture.fact()).is_err(), "a picture is no {}", codec.name());
    }
}

/// Files and blocks cut short at each byte, and with each byte changed: an error, or a tensor of the right
/// size; never a panic.
#[test]
fn no_damage_upsets_a_decoder() {
    for codec in Codec::ALL {
        let is_picture = matches!(codec, Codec::Png | Codec::Jpeg);
        let tensor = if is_picture { picture(3, 40, 40) } else { sparse(&[1, 8, 8, 8]) };
        let (good, fact) = (encode(&tensor, codec), tensor.fact());
        assert_eq!(good.codec, codec);
        let check = |bytes: Vec<u8>| {
            let read = decode(&Activation { bytes: bytes.into(), ..good.clone() }, &fact);
            assert!(read.as_ref().is_ok_and(|tensor| tensor.fact() == fact) || read.is_err());
            read.is_ok()
        };
        for length in 0..good.bytes.len() {
            // The last bytes of a PNG are a chunk without content; a JPEG's, its end.
            let may_do = is_picture && length + 14 >= good.bytes.len();
            assert!(!check(good.bytes[..length].to_vec()) || may_do, "{} cut at {length}", codec.name());
        }
        for at in 0..good.bytes.len() {
            for flip in [1, 0x80, 0xff] {
                let mut bytes = good.bytes.to_vec();
                bytes[at] ^= flip;
                check(bytes);
            }
        }
    }
}

#[test]
fn every_name_is_the_same_everywhere() {
    for codec in planner::Codec::ALL {
        assert_eq!(codec.name(), to_wire(codec).name());
    }
}

#[test]
fn an_edge_takes_what_it_says_it_takes() {
    let here = times();
    assert_eq!(here.len(), Codec::ALL.len());
    for time in here {
        assert!(time.encode_us_per_mib > 0.0 && time.decode_us_per_mib > 0.0, "{time:?}");
    }
    use planner::Codec::{Jpeg, Png, Raw, U8};
    // An older edge: raw and u8, as fast as it says.
    let older = coding(here, &times_of_u8(u8_us_per_mib()));
    assert!(older[Png] == planner::Coding::NONE && older[Raw] != planner::Coding::NONE);
    let same = coding(here, here);
    let both = |coding: planner::Coding| coding.up_us_per_byte + coding.down_us_per_byte;
    let mean = coding(&times_of_u8(u8_us_per_mib()), &times_of_u8(u8_us_per_mib()));
    assert!((both(mean[U8]) / both(same[U8]) - 1.0).abs() < 1e-6);
    // One that takes only some.
    let some: Vec<_> = here.iter().copied().filter(|time| time.codec == Codec::Png).collect();
    let some = coding(here, &some);
    assert!(some[Jpeg] == planner::Coding::NONE && some[Png] == same[Png]);
    // The slow device's part is slower, whichever it is.
    let slow = coding(&slowed(here, 10.0), here)[Png];
    assert!(slow.up_us_per_byte > same[Png].up_us_per_byte && slow.down_us_per_byte > same[Png].down_us_per_byte);
    assert!(both(slow) < 10.0 * both(same[Png]));
}

#[test]
fn tensors_that_cross_together_are_coded_each_as_suits_it() {
    let tensors = [sparse(&[1, 2, 8, 8]), Tensor::from_bytes(ElementType::I64, &[2], &[7; 16]).unwrap()];
    let facts: Vec<Fact> = tensors.iter().map(Tensor::fact).collect();
    let expected: Vec<&Fact> = facts.iter().collect();
    assert_eq!(choices(&expected), [Codec::Raw, Codec::F16, Codec::U8, Codec::U8Lz4]);
    let (first, beside) = encode_all(&tensors, Codec::U8).unwrap();
    assert_eq!((first.codec, beside[0].codec), (Codec::U8, Codec::Raw));
    assert_eq!(fixed_bytes(&expected, Codec::U8), Some(wire_bytes(&first, &beside)));
    let read = decode_all(&first, &beside, &expected).unwrap();
    assert_eq!(read[1].bytes(), tensors[1].bytes());
    let one_short = decode_all(&first, &[], &expected).unwrap_err();
    assert_eq!(one_short, CodecError::Count { expected: 2, got: 1 });
    assert!(matches!(decode_all(&beside[0], &[first], &expected), Err(CodecError::Unexpected { .. })));
}
