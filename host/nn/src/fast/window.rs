//! Windows that slide over an image: where each of them finds what it covers.
//!
//! The channels are *staged* first: copied once, with the padding around them, so that no window is a special case. Of
//! strides along a row, each phase is staged by itself: then whatever the stride, what neighbouring windows see at one
//! place of theirs (a *tap*) lies side by side in memory, and loops over it need no gathering.

use tract_nnef::internal::*;
use tract_nnef::tract_core::ops::cnn::PoolSpec;

/// Staging may take as much memory as a tensor.
const STAGED_ELEMENTS_MAX: usize = crate::TENSOR_BYTES_MAX / size_of::<f32>();

/// Places of a window. Nobody's are larger, and a list of them is made.
const TAPS_MAX: usize = 1 << 14;

/// Behind the staged channels, so that loops may read on to the end of a vector.
pub(super) const SLACK: usize = 32;

/// Sizes are in pixels; rows before columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Windows {
    pub(super) images: usize,
    pub(super) channels: usize,
    pub(super) input: [usize; 2],
    pub(super) output: [usize; 2],
    pub(super) kernel: [usize; 2],
    pub(super) stride: [usize; 2],
    pub(super) dilation: [usize; 2],
    pub(super) before: [usize; 2],
    /// Whether a pixel's channels lie side by side (NHWC).
    pub(super) channels_last: bool,
    /// Rows of a staged channel, and the elements from one to the next.
    rows: usize,
    pitch: usize,
}

/// What a phase of a staged row has of the image's columns.
#[derive(Clone, Copy)]
struct Columns {
    /// Those before the first that is there.
    skipped: usize,
    /// That one's place in the image.
    first: usize,
    there: usize,
}

impl Windows {
    /// None: it is not for images of at most two dimensions and fixed size, or staging it would take too much.
    pub(super) fn of(spec: &PoolSpec, input: &TypedFact) -> TractResult<Option<Self>> {
        let Some(dims) = input.shape.as_concrete().filter(|_| input.datum_type == f32::datum_type()) else {
            return Ok(None);
        };
        let rank = spec.rank();
        if !(1..=2).contains(&rank) || dims.contains(&0) {
            return Ok(None);
        }
        let (input, output) = (spec.data_format.shape(dims)?, spec.output_shape(dims)?);
        let padding = spec.computed_padding(input.hw_dims());
        // An image of one dimension is one row.
        let two = |values: &[usize], single: usize| match values {
            [columns] => [single, *columns],
            both => [both[0], both[1]],
        };
        let before: TVec<usize> = padding.iter().map(|padding| padding.pad_before).collect();
        let mut windows = Self {
            images: input.n().copied().unwrap_or(1),
            channels: *input.c(),
            input: two(input.hw_dims(), 1),
            output: two(output.hw_dims(), 1),
            kernel: two(&spec.kernel_shape, 1),
            stride: two(&spec.strides(), 1),
            dilation: two(&spec.dilations(), 1),
            before: two(&before, 0),
            channels_last: spec.data_format.c_is_last(),
            rows: 0,
            pitch: 0,
        };
        Ok(windows.lay_out().map(|()| windows))
    }

    /// Windows of one pixel each, over any number of them: a product of matrices.
    pub(super) fn single_pixels(channels: usize, pixels: usize) -> Self {
        Self {
            images: 1,
            channels,
            input: [1, pixels],
            output: [1, pixels],
            kernel: [1; 2],
            stride: [1; 2],
            dilation: [1; 2],
            before: [0; 2],
            channels_last: false,
            rows: 1,
            pitch: pixels,
        }
    }

    fn lay_out(&mut self) -> Option<()> {
        let all = [self.output, self.kernel, self.stride, self.dilation];
        if all.iter().flatten().any(|size| *size == 0) || self.kernel[0].checked_mul(self.kernel[1])? > TAPS_MAX {
            return None;
        }
        if self.is_untouched() {
            // Every window is one pixel: rows need not be told apart.
            let pixels = self.input[0] * self.input[1];
            (self.input, self.output) = ([1, pixels], [1, pixels]);
        }
        let needed = |axis: usize| {
            let last = (self.output[axis] - 1).checked_mul(self.stride[axis])?;
            last.checked_add((self.kernel[axis] - 1).checked_mul(self.dilation[axis])?)?.checked_add(1)
        };
        let (rows, columns) = (needed(0)?, needed(1)?);
        let is_plain = self.before == [0; 2]
            && self.stride[1] == 1
            && !self.channels_last
            && rows <= self.input[0]
            && columns <= self.input[1];
        (self.rows, self.pitch) = match is_plain {
            true => (self.input[0], self.input[1]),
            false => (rows, columns.div_ceil(self.stride[1]).checked_mul(self.stride[1])?),
        };
        let staged = self.rows.checked_mul(self.pitch)?.checked_mul(self.channels)?.checked_add(SLACK)?;
        (staged <= STAGED_ELEMENTS_MAX).then_some(())
    }

    fn is_untouched(&self) -> bool {
        self.kernel == [1; 2]
            && self.stride == [1; 2]
            && self.before == [0; 2]
            && self.input == self.output
            && !self.channels_last
    }

    /// Whether the channels are staged as they are: there is nothing to copy.
    pub(super) fn is_as_it_is(&self) -> bool {
        self.before == [0; 2]
            && self.stride[1] == 1
            && !self.channels_last
            && (self.rows, self.pitch) == (self.input[0], self.input[1])
    }

    /// Elements of a staged channel.
    pub(super) fn staged(&self) -> usize {
        self.rows * self.pitch
    }

    /// Pixels of an output channel.
    pub(super) fn pixels(&self) -> usize {
        self.output[0] * self.output[1]
    }

    /// Pixels of an input channel.
    pub(super) fn input_pixels(&self) -> usize {
        self.input[0] * self.input[1]
    }

    /// Where, from a window's start in a staged channel, each of its taps is.
    pub(super) fn taps(&self) -> Vec<usize> {
        let phase = self.pitch / self.stride[1];
        let row = |y: usize| {
            (0..self.kernel[1]).map(move |x| {
                let column = x * self.dilation[1];
                y * self.dilation[0] * self.pitch + column % self.stride[1] * phase + column / self.stride[1]
            })
        };
        (0..self.kernel[0]).flat_map(row).collect()
    }

    /// Where a row of windows starts in a staged channel; the next window of the row starts one element on.
    #[inline(always)]
    pub(super) fn start(&self, row: usize) -> usize {
        row * self.stride[0] * self.pitch
    }

    /// How many of a window's rows, or columns, are within the image.
    pub(super) fn there(&self, axis: usize, window: usize) -> usize {
        let start = window * self.stride[axis];
        let place = |at: &usize| (start + at * self.dilation[axis]).wrapping_sub(self.before[axis]) < self.input[axis];
        (0..self.kernel[axis]).filter(place).count()
    }

    #[inline(always)]
    fn columns(&self, phase: usize) -> Columns {
        let (before, phases) = (self.before[1], self.stride[1]);
        let phase_pitch = self.pitch / phases;
        let skipped = before.saturating_sub(phase).div_ceil(phases).min(phase_pitch);
        let first = skipped * phases + phase - before.min(skipped * phases + phase);
        let there = self.input[1].saturating_sub(first).div_ceil(phases).min(phase_pitch - skipped);
        Columns { skipped, first, there }
    }

    /// Copies a channel of an image (with all its channels, if they lie side by side), and puts around it what there is, if
    /// that is not there yet.
    #[inline(always)]
    pub(super) fn stage(&self, image: &[f32], channel: usize, around: Option<f32>, staged: &mut [f32]) {
        let surround = |part: &mut [f32]| {
            if let Some(around) = around {
                part.fill(around);
            }
        };
        let [height, width] = self.input;
        let (phases, phase_pitch) = (self.stride[1], self.pitch / self.stride[1]);
        let above = self.before[0].min(self.rows);
        let rows = height.min(self.rows - above);
        surround(&mut staged[..above * self.pitch]);
        surround(&mut staged[(above + rows) * self.pitch..self.staged()]);
        // Reckoned once for all rows: to divide takes longer than to copy a few pixels.
        let columns: [Columns; 2] = std::array::from_fn(|phase| self.columns(phase));
        for y in 0..rows {
            for phase in 0..phases {
                let known = columns.get(phase).copied();
                let Columns { skipped, first, there } = known.unwrap_or_else(|| self.columns(phase));
                let row = &mut staged[(above + y) * self.pitch + phase * phase_pitch..][..phase_pitch];
                surround(&mut row[..skipped]);
                surround(&mut row[skipped + there..]);
                let row = &mut row[skipped..skipped + there];
                if self.channels_last {
                    let pixels = image[y * width * self.channels..].chunks_exact(self.channels).skip(first);
                    row.iter_mut().zip(pixels.step_by(phases)).for_each(|(to, pixel)| *to = pixel[channel]);
                } else if there > 0 {
                    let line = &image[channel * height * width + y * width..][..width][first..];
                    match phases {
                        1 => row.copy_from_slice(&line[..there]),
                        2 => {
                            // Of pairs the compiler makes vectors; the last may be half a one.
                            let pairs = line.as_chunks::<2>().0;
                            row.iter_mut().zip(pairs).for_each(|(to, [first, _])| *to = *first);
                            if let Some(to) = row.get_mut(pairs.len()) {
                                *to = line[2 * pairs.len()];
                            }
                        }
                        _ => row.iter_mut().zip(line.iter().step_by(phases)).for_each(|(to, from)| *to = *from),
                    }
                }
            }
        }
    }
}
