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

    /// Of the largest windows, of steps of two.
    const ROWS_READ_MAX: usize = 6 * 2 + 5;

    /// Every window. So many rows of them at once that little is read twice.
    #[allow(unsafe_code)]
    pub(super) fn all<const KERNEL: usize, const STRIDE: usize, const GREATEST: bool>(channel: Channel<'_>) {
        #[target_feature(enable = "avx512f")]
        fn with_avx512<const KERNEL: usize, const STRIDE: usize, const GREATEST: bool>(mut channel: Channel<'_>) {
            let [height, width] = channel.windows.output;
            let mut y = 0;
            while y < height {
                y += match height - y {
                    7.. if width <= LANES => rows::<KERNEL, STRIDE, GREATEST, 7>(&mut channel, y),
                    4.. => rows::<KERNEL, STRIDE, GREATEST, 4>(&mut channel, y),
                    2.. => rows::<KERNEL, STRIDE, GREATEST, 2>(&mut channel, y),
                    _ => rows::<KERNEL, STRIDE, GREATEST, 1>(&mut channel, y),
                };
            }
        }
        assert!(is_there(), "vectors of sixteen lanes are used where there are none");
        // SAFETY: the processor has AVX-512F; that is all the function needs.
        unsafe { with_avx512::<KERNEL, STRIDE, GREATEST>(channel) }
    }

    /// So many rows of windows; says how many.
    #[target_feature(enable = "avx512f")]
    #[allow(unsafe_code)]
    fn rows<const KERNEL: usize, const STRIDE: usize, const GREATEST: bool, const ROWS: usize>(
        channel: &mut Channel<'_>,
        first_row: usize,
    ) -> usize {
        const { assert!((ROWS - 1) * STRIDE + KERNEL <= ROWS_READ_MAX) };
        let (windows, weights) = (channel.windows, &channel.weights[..KERNEL * KERNEL]);
        let ([height, width], [above, left], columns) = (windows.input, windows.before, windows.output[1]);
        let input = &channel.input[..height * width];
        let (start, around) = (_mm512_set1_ps(channel.start), _mm512_set1_ps(channel.around));
        let (least, most) = (_mm512_set1_ps(*channel.within.start()), _mm512_set1_ps(*channel.within.end()));
        let evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let odds = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
        for first_column in (0..columns).step_by(LANES) {
            // Before the line, if less than zero.
            let first = (first_column * STRIDE) as isize - left as isize;
            // Of vectors that begin at each column of the first window, and those behind them: what is of a line.
            let mut there = [[0; 2]; KERNEL];
            for (column, there) in there.iter_mut().enumerate() {
                let at = first + (column * STRIDE) as isize;
                *there = [lanes(width, at), lanes(width, at + LANES as isize)];
            }
            // What windows see: by rows, and by columns in the order of weights.
            let mut seen = [[around; KERNEL]; ROWS_READ_MAX];
            for (row, seen) in seen.iter_mut().enumerate().take((ROWS - 1) * STRIDE + KERNEL) {
                let y = (first_row * STRIDE + row).wrapping_sub(above);
                if y >= height {
                    continue;
                }
                let from = input[y * width..].as_ptr().wrapping_offset(first);
                if STRIDE == 1 {
                    for (column, seen) in seen.iter_mut().enumerate() {
                        // SAFETY: of the lanes that are read, each is of the line.
                        *seen = unsafe { _mm512_mask_loadu_ps(around, there[column][0], from.wrapping_add(column)) };
                    }
                    continue;
                }
                for pair in 0..KERNEL.div_ceil(2) {
                    let ([lanes, others], from) = (there[pair], from.wrapping_add(2 * pair));
                    // SAFETY: as above.
                    let one = unsafe { _mm512_mask_loadu_ps(around, lanes, from) };
                    // SAFETY: as above.
                    let other = unsafe { _mm512_mask_loadu_ps(around, others, from.wrapping_add(LANES)) };
                    seen[pair] = _mm512_permutex2var_ps(one, evens, other);
                    if 2 * pair + 1 < KERNEL {
                        seen[KERNEL.div_ceil(2) + pair] = _mm512_permutex2var_ps(one, odds, other);
                    }
                }
            }
            // In a register for each row, whatever the compiler makes of the loops; `seen` is not slow where it is in memory.
            for row in 0..ROWS {
                let mut sum = start;
                for (weights, seen) in weights.as_chunks::<KERNEL>().0.iter().zip(&seen[row * STRIDE..]) {
                    for (weight, seen) in weights.iter().zip(seen) {
                        // Of two that are equal, or of which one is no number, the processor takes the second.
                        sum = match GREATEST {
                            true => _mm512_max_ps(*seen, sum),
                            false => _mm512_fmadd_ps(_mm512_set1_ps(*weight), *seen, sum),
                        };
                    }
                }
                let result = _mm512_min_ps(most, _mm512_max_ps(least, sum));
                let output = &mut channel.output[(first_row + row) * columns..][first_column..columns];
                // SAFETY: of the lanes that are written, each is of the output.
                unsafe { _mm512_mask_storeu_ps(output.as_mut_ptr(), lanes(output.len(), 0), result) };
            }
        }
        ROWS
    }

    /// Which lanes of a vector that begins at this place of a line are of the line.
    #[inline(always)]
    fn lanes(line: usize, at: isize) -> u16 {
        let low = |lanes: isize| ((1_u32 << lanes.clamp(0, LANES as isize)) - 1) as u16;
        low(line as isize - at) & !low(-at)
    }
}
