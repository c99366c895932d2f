//! Labelled images: single PNG files, and sheets of square tiles.

use crate::output::BadInput;
use anyhow::{Context, Result, bail, ensure};
use edgent_nn::{ElementType, Tensor};
use std::io::Cursor;
use std::path::Path;

const IMAGE_BYTES_MAX: usize = 256 << 20;
const CHANNELS: usize = 3;

/// An image and the class it shows.
pub(crate) struct Sample {
    pub(crate) image: Tensor,
    pub(crate) label: usize,
}

/// Reads one image: `[1, 3, height, width]`, u8.
pub(crate) fn image(path: &Path) -> Result<Tensor> {
    let bytes = std::fs::read(path).map_err(|e| BadInput::error(format!("{}: {e}", path.display())))?;
    let picture = Picture::decode(&bytes).with_context(|| format!("{}", path.display()))?;
    picture.tile(0, 0, picture.width, picture.height)
}

/// Reads a sheet of square tiles, row by row, with a class index a line.
pub(crate) fn sheet(png: &[u8], labels: &[u8], tile_px: usize) -> Result<Vec<Sample>> {
    let picture = Picture::decode(png)?;
    ensure!(tile_px > 0, "a tile cannot have no pixels");
    let (columns, rows) = (picture.width / tile_px, picture.height / tile_px);
    let labels = std::str::from_utf8(labels)?.lines().map(str::parse).collect::<Result<Vec<usize>, _>>()?;
    ensure!(labels.len() == columns * rows, "{} labels for {} tiles", labels.len(), columns * rows);
    labels
        .into_iter()
        .enumerate()
        .map(|(index, label)| {
            let (left, top) = (index % columns * tile_px, index / columns * tile_px);
            Ok(Sample { image: picture.tile(left, top, tile_px, tile_px)?, label })
        })
        .collect()
}

/// Writes an image `[1, 3, height, width]` as PNG.
pub(crate) fn to_png(image: &Tensor) -> Result<Vec<u8>> {
    let [1, CHANNELS, height, width] = *image.dims() else { bail!("{} is no image", image.fact()) };
    let plane = width * height;
    let pixels: Vec<u8> = (0..plane).flat_map(|at| (0..CHANNELS).map(move |c| image.bytes()[c * plane + at])).collect();
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, u32::try_from(width)?, u32::try_from(height)?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&pixels)?;
    writer.finish()?;
    Ok(png)
}

struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Picture {
    fn decode(bytes: &[u8]) -> Result<Self> {
        let bad = |e: png::DecodingError| BadInput::error(format!("not a PNG that can be read: {e}"));
        let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), png::Limits { bytes: IMAGE_BYTES_MAX });
        decoder.set_transformations(png::Transformations::normalize_to_color8() | png::Transformations::STRIP_16);
        let mut reader = decoder.read_info().map_err(bad)?;
        let size = reader.output_buffer_size().filter(|size| *size <= IMAGE_BYTES_MAX);
        let mut pixels = vec![0; size.ok_or_else(|| BadInput::error("the image is too large"))?];
        let info = reader.next_frame(&mut pixels).map_err(bad)?;
        if info.color_type != png::ColorType::Rgb {
            return Err(BadInput::error(format!(
                "the image is {:?}, not RGB; convert it to RGB without transparency",
                info.color_type
            )));
        }
        pixels.truncate(info.buffer_size());
        Ok(Self { width: info.width as usize, height: info.height as usize, pixels })
    }

    fn tile(&self, left: usize, top: usize, width: usize, height: usize) -> Result<Tensor> {
        let mut planes = Vec::with_capacity(CHANNELS * width * height);
        for channel in 0..CHANNELS {
            for y in top..top + height {
                let row = &self.pixels[(y * self.width + left) * CHANNELS..][..width * CHANNELS];
                planes.extend(row.iter().skip(channel).step_by(CHANNELS));
            }
        }
        Ok(Tensor::from_bytes(ElementType::U8, &[1, CHANNELS, height, width], &planes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_survives_png() {
        let bytes: Vec<u8> = (0..3 * 4 * 6).collect();
        let image = Tensor::from_bytes(ElementType::U8, &[1, 3, 4, 6], &bytes).unwrap();
        let png = to_png(&image).unwrap();
        let picture = Picture::decode(&png).unwrap();
        assert_eq!(picture.tile(0, 0, 6, 4).unwrap().bytes(), bytes);
        let tiles = sheet(&png, b"1\n0\n1\n0\n1\n0\n", 2).unwrap();
        assert_eq!(tiles.len(), 6);
        // The second tile is the third and fourth column of the first two rows.
        assert_eq!(&tiles[1].image.bytes()[..4], [2, 3, 8, 9]);
    }

    #[test]
    fn what_is_no_image_is_refused() {
        for bytes in [&b""[..], b"GIF89a", b"\x89PNG\r\n\x1a\n"] {
            assert!(Picture::decode(bytes).is_err());
        }
        assert!(
            sheet(
                &to_png(&Tensor::from_bytes(ElementType::U8, &[1, 3, 2, 2], &[0; 12]).unwrap()).unwrap(),
                b"1\n2\n",
                2
            )
            .is_err()
        );
    }
}
