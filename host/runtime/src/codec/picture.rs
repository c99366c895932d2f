//! Pictures: a network's input, mostly. PNG keeps every pixel; JPEG is smaller and spoils a little.
//!
//! A tensor has its colours one behind the other, a picture file beside each other. What a file says of
//! its size is compared with what is expected before memory is taken for its pixels, and all that it
//! may hold beside them is passed over.

use super::Coded;
use edgent_link::Codec;
use edgent_nn::{ElementType, Fact, Tensor};
use std::io::Cursor;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// Of 100. The highest at which the encoder still halves the resolution of colours: above it, files are
/// larger by half; at 75, they are smaller by a quarter, but cost branchy-alexnet's best exit 0.6 points.
const JPEG_QUALITY: u8 = 89;

/// Ours has one; more of them take time by their number, and make a small file expensive.
const JPEG_SCANS_MAX: usize = 4;

/// What a PNG decoder may take beside the pixels.
const PNG_BYTES_MAX: usize = 1 << 20;

/// A picture's size.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    colours: usize,
    width: u16,
    height: u16,
}

/// The size of the picture that a tensor is, if it is one.
pub(super) fn shape(fact: &Fact) -> Option<Shape> {
    let [1, colours @ (1 | 3), height, width] = fact.dims[..] else { return None };
    let side = |pixels: usize| u16::try_from(pixels).ok().filter(|pixels| *pixels > 0);
    let shape = Shape { colours, width: side(width)?, height: side(height)? };
    (fact.element_type == ElementType::U8).then_some(shape)
}

/// A picture as a file; `None` if the tensor is none, or if the file is no smaller.
pub(super) fn encode(tensor: &Tensor, codec: Codec) -> Option<Coded> {
    let shape = shape(&tensor.fact())?;
    let pixels = beside(tensor.bytes(), shape.colours);
    let file = if codec == Codec::Png { to_png(&pixels, shape) } else { to_jpeg(&pixels, shape) };
    file.filter(|file| file.len() < pixels.len()).map(|file| Coded::plain(codec, file))
}

/// The elements of the picture in a file.
pub(super) fn decode(file: &[u8], codec: Codec, expected: &Fact) -> Result<Vec<u8>, String> {
    let shape = shape(expected).ok_or_else(|| format!("{expected} is no picture"))?;
    let pixels = if codec == Codec::Png { from_png(file, shape) } else { from_jpeg(file, shape) }?;
    Ok(behind(&pixels, shape.colours))
}

fn to_png(pixels: &[u8], shape: Shape) -> Option<Vec<u8>> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, u32::from(shape.width), u32::from(shape.height));
    encoder.set_color(if shape.colours == 1 { png::ColorType::Grayscale } else { png::ColorType::Rgb });
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().ok()?;
    writer.write_image_data(pixels).ok()?;
    writer.finish().ok()?;
    Some(file)
}

fn from_png(file: &[u8], shape: Shape) -> Result<Vec<u8>, String> {
    let bad = |e: png::DecodingError| e.to_string();
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(file), png::Limits { bytes: PNG_BYTES_MAX });
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let mut reader = decoder.read_info().map_err(bad)?;
    let info = reader.info();
    let colours = match (info.color_type, info.bit_depth) {
        (png::ColorType::Grayscale, png::BitDepth::Eight) => 1,
        (png::ColorType::Rgb, png::BitDepth::Eight) => 3,
        other => return Err(format!("pixels of {other:?}")),
    };
    check(shape, colours, info.width as usize, info.height as usize)?;
    let mut pixels = vec![0; shape.bytes()];
    reader.next_frame(&mut pixels).map_err(bad)?;
    Ok(pixels)
}

fn to_jpeg(pixels: &[u8], shape: Shape) -> Option<Vec<u8>> {
    let mut file = Vec::new();
    let colours = if shape.colours == 1 { jpeg_encoder::ColorType::Luma } else { jpeg_encoder::ColorType::Rgb };
    let encoder = jpeg_encoder::Encoder::new(&mut file, JPEG_QUALITY);
    encoder.encode(pixels, shape.width, shape.height, colours).ok()?;
    Some(file)
}

fn from_jpeg(file: &[u8], shape: Shape) -> Result<Vec<u8>, String> {
    let options = DecoderOptions::new_safe()
        .set_strict_mode(true)
        .set_max_width(usize::from(shape.width))
        .set_max_height(usize::from(shape.height))
        .jpeg_set_max_scans(JPEG_SCANS_MAX)
        .jpeg_set_out_colorspace(if shape.colours == 1 { ColorSpace::Luma } else { ColorSpace::RGB });
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options);
    decoder.decode_headers().map_err(|e| e.to_string())?;
    let info = decoder.info().ok_or("it has no header")?;
    check(shape, usize::from(info.components), usize::from(info.width), usize::from(info.height))?;
    let mut pixels = vec![0; shape.bytes()];
    decoder.decode_into(&mut pixels).map_err(|e| e.to_string())?;
    Ok(pixels)
}

impl Shape {
    fn bytes(self) -> usize {
        self.colours * usize::from(self.width) * usize::from(self.height)
    }
}

fn check(expected: Shape, colours: usize, width: usize, height: usize) -> Result<(), String> {
    let Shape { colours: c, width: w, height: h } = expected;
    if (colours, width, height) == (c, usize::from(w), usize::from(h)) {
        return Ok(());
    }
    Err(format!("a picture of {colours} colours and {width} × {height}, where {c} and {w} × {h} belong"))
}

/// Colours beside each other, of colours behind each other.
fn beside(elements: &[u8], colours: usize) -> Vec<u8> {
    let plane = elements.len() / colours;
    (0..plane).flat_map(|at| (0..colours).map(move |colour| elements[colour * plane + at])).collect()
}

/// The reverse.
fn behind(pixels: &[u8], colours: usize) -> Vec<u8> {
    (0..colours).flat_map(|colour| pixels.iter().skip(colour).step_by(colours).copied()).collect()
}
