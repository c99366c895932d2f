//! Windows that slide over a channel, without staging it: what is not there is masked out of what is read, and what several
//! rows of windows see is read once for them.

use super::is_there;
use crate::fast::window::Windows;
use std::ops::RangeInclusive;

/// What is made of what a window covers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::fast) enum Kind {
    /// Each element times its weight, in all.
    Products,
    Greatest,
}

/// Some windows that this is written out for: as high as wide, of steps as long down as along.
#[derive(Clone, Copy)]
pub(in crate::fast) struct Slide<'a> {
    windows: &'a Windows,
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
    fold: Fold,
}

type Fold = fn(Channel<'_>);

/// A channel, and what becomes of it.
struct Channel<'a> {
    input: &'a [f32],
    windows: &'a Windows,
    /// Of a window, row by row; where windows step over every second column, those of even ones first.
    weights: &'a [f32],
    output: &'a mut [f32],
    /// What each window begins with, and what is around the image.
    start: f32,
    around: f32,
    within: RangeInclusive<f32>,
}

impl<'a> Slide<'a> {
    /// None: it is not written out, or the processor has no such vectors.
    pub(in crate::fast) fn of(windows: &'a Windows, kind: Kind) -> Option<Self> {
        let ([height, width], [down, along]) = (windows.kernel, windows.stride);
        if !is_there() || windows.channels_last || windows.dilation != [1; 2] || height != width || down != along {
            return None;
        }
        let fold: Fold = match (kind, width, along) {
            (Kind::Products, 3, 1) => all::<3, 1, false>,
            (Kind::Products, 3, 2) => all::<3, 2, false>,
            (Kind::Products, 5, 1) => all::<5, 1, false>,
            (Kind::Products, 5, 2) => all::<5, 2, false>,
            (Kind::Greatest, 2, 2) => all::<2, 2, true>,
            (Kind::Greatest, 3, 1) => all::<3, 1, true>,
            (Kind::Greatest, 3, 2) => all::<3, 2, true>,
            _ => return None,
        };
        Some(Self { windows, fold })
    }

    /// Folds each window of a channel, whose weights are in the order of [`Runs`](crate::fast::slide::Runs), from `start` on,
    /// with `around` where there is no image; and bounds it.
    pub(in crate::fast) fn fold(
        self,
        image: &[f32],
        channel: usize,
        weights: &[f32],
        output: &mut [f32],
        [start, around]: [f32; 2],
        within: RangeInclusive<f32>,
    ) {
        let Self { windows, fold } = self;
        let pixels = windows.input_pixels();
        let input = &image[channel * pixels..][..pixels];
        fold(Channel { input, windows, weights, output, start, around, within });
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn all<const KERNEL: usize, const STRIDE: usize, const GREATEST: bool>(_: Channel<'_>) {}

#[cfg(target_arch = "x86_64")]
use x86_64::all;

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use super::{Channel, is_there};
    use std::arch::x86_64::{
        _mm512_fmadd_ps, _mm512_mask_loadu_ps, _mm512_mask_storeu_ps, _mm512_max_ps, _mm512_min_ps,
        _mm512_permutex2var_ps, _mm512_set1_ps, _mm512_setr_epi32,
    };

    const LANES: usize = 16;

    /// Every window. So many rows of them are folded at once that the processor always has something to add up, and few
    /// elements are read twice.
    #[allow(unsafe_code)]
    pub(super) fn all<const KERNEL: usize, const STRIDE: usize, const GREATEST: bool>(channel: Channel<'_>) {
        #[target_feature(enable = "avx512f")]
        fn with_avx512<const KERNEL: usize, const STRIDE: usize, const GREATEST: bool>(mut channel: Channel<'_>) {
            let [height, width] = channel.windows.output;
            let mut y = 0;
            while y < height {
                y += match (width > LANES, height - y) {
                    (false, 7..) => rows::<KERNEL, STRIDE, GREATEST, 7, 1>(&mut channel, y),
                    (false, _) => rows::<KERNEL, STRIDE, GREATEST, 1, 1>(&mut channel, y),
                    (true, 4..) if STRIDE == 1 => rows::<KERNEL, STRIDE, GREATEST, 4, 2>(&mut channel, y),
                    (true, 2..) if STRIDE == 2 => rows::<KERNEL, STRIDE, GREATEST, 2, 2>(&mut channel, y),
                    (true, _) => rows::<KERNEL, STRIDE, GREATEST, 1, 2>(&mut channel, y),
                };
            }
        }
        assert!(is_there(), "vectors of sixteen lanes are used where there are none");
        // SAFETY: the processor has AVX-512F; that is all the function needs.
        unsafe { with_avx512::<KERNEL, STRIDE, GREATEST>(channel) }
    }

    /// So many rows of windows, so many vectors of them at once; says how many rows.
    #[target_feature(enable = "avx512f")]
    #[allow(unsafe_code)]
    fn rows<const KERNEL: usize, const STRIDE: usize, const GREATEST: bool, const ROWS: usize, const VECTORS: usize>(
        channel: &mut Channel<'_>,
        first_row: usize,
    ) -> usize {
        let (windows, weights) = (channel.windows, &channel.weights[..KERNEL * KERNEL]);
        let ([height, width], [above, left]) = (windows.input, windows.before);
        let input = &channel.input[..height * width];
        let (start, around) = (_mm512_set1_ps(channel.start), _mm512_set1_ps(channel.around));
        let (least, most) = (_mm512_set1_ps(*channel.within.start()), _mm512_set1_ps(*channel.within.end()));
        let evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let odds = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
        let columns = windows.output[1];
        for first_column in (0..columns).step_by(LANES * VECTORS) {
            let mut sums = [[start; VECTORS]; ROWS];
            for row in 0..(ROWS - 1) * STRIDE + KERNEL {
                let y = (first_row * STRIDE + row).wrapping_sub(above);
                let line = if y < height { &input[y * width..][..width] } else { &[] };
                for vector in 0..VECTORS {
                    // What the windows see at each column of theirs.
                    let mut values = [around; KERNEL];
                    let at = ((first_column + vector * LANES) * STRIDE).wrapping_sub(left);
                    if STRIDE == 1 {
                        for (column, values) in values.iter_mut().enumerate() {
                            let (lanes, from) = part(line, at.wrapping_add(column));
                            // SAFETY: of the lanes that are read, each is of the line.
                            *values = unsafe { _mm512_mask_loadu_ps(around, lanes, from) };
                        }
                    } else {
                        for pair in 0..KERNEL.div_ceil(2) {
                            let at = at.wrapping_add(2 * pair);
                            let ((lanes, from), (others, from_others)) =
                                (part(line, at), part(line, at.wrapping_add(LANES)));
                            // SAFETY: as above.
                            let one = unsafe { _mm512_mask_loadu_ps(around, lanes, from) };
                            // SAFETY: as above.
                            let other = unsafe { _mm512_mask_loadu_ps(around, others, from_others) };
                            values[pair] = _mm512_permutex2var_ps(one, evens, other);
                            if 2 * pair + 1 < KERNEL {
                                values[KERNEL.div_ceil(2) + pair] = _mm512_permutex2var_ps(one, odds, other);
                            }
                        }
                    }
                    for (above, sums) in sums.iter_mut().enumerate() {
                        // Which of their rows this is to the windows that begin so far below.
                        let own = row.wrapping_sub(above * STRIDE);
                        if own >= KERNEL {
                            continue;
                        }
                        for (values, weight) in values.iter().zip(&weights[own * KERNEL..][..KERNEL]) {
                            // Of two that are equal, or of which one is no number, the processor takes the second.
                            sums[vector] = match GREATEST {
                                true => _mm512_max_ps(*values, sums[vector]),
                                false => _mm512_fmadd_ps(_mm512_set1_ps(*weight), *values, sums[vector]),
                            };
                        }
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                let output = &mut channel.output[(first_row + row) * columns..][first_column..columns];
                for (results, sum) in output.chunks_mut(LANES).zip(sums) {
                    let lanes = u16::MAX >> (LANES - results.len());
                    let result = _mm512_min_ps(most, _mm512_max_ps(least, *sum));
                    // SAFETY: as many floats are there as there are lanes.
                    unsafe { _mm512_mask_storeu_ps(results.as_mut_ptr(), lanes, result) };
                }
            }
        }
        ROWS
    }

    /// Which lanes of a vector that begins at this column of a line are of the line, and where the vector begins: perhaps
    /// before the line (`at` is less than zero then, wrapped around) or behind it.
    #[inline(always)]
    fn part(line: &[f32], at: usize) -> (u16, *const f32) {
        let at = at as isize;
        let low = |lanes: isize| ((1_u32 << lanes.clamp(0, LANES as isize)) - 1) as u16;
        (low(line.len() as isize - at) & !low(-at), line.as_ptr().wrapping_offset(at))
    }
}
