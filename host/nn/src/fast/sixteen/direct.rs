//! A block of filters on windows of several pixels, straight from the staged channels. Where vectors are this wide, to gather what
//! windows cover takes as long as to multiply it.

use crate::fast::conv::{Finish, Place};
use crate::fast::window::Windows;

const LANES: usize = 16;

/// Of the places that vectors have, so many must be windows: in hundredths. With fewer, panels are faster.
const USED_MIN: usize = 70;

/// Sixteen neighbouring places of a staged channel: where they start, and which of them are starts of windows.
pub(in crate::fast) type Places = (usize, u16);

/// All windows of an image, in their order. None where panels are faster, or something else than either.
pub(in crate::fast) fn places(windows: &Windows, is_depthwise: bool, places: &mut Vec<Places>) {
    places.clear();
    if is_depthwise || windows.channels_last || windows.kernel == [1; 2] || !super::is_there() {
        return;
    }
    let ([height, width], next_row) = (windows.output, windows.start(1));
    // Row by row; or, where rows follow upon each other closely, across them.
    let by_rows = height * width.div_ceil(LANES);
    let across = ((height - 1) * next_row + width).div_ceil(LANES);
    let low = |lanes: usize| ((1_u32 << lanes.min(LANES)) - 1) as u16;
    if by_rows.min(across) * LANES * USED_MIN > height * width * 100 {
        return;
    }
    if by_rows <= across {
        let row = |y| (0..width).step_by(LANES).map(move |x| (y * next_row + x, low(width - x)));
        places.extend((0..height).flat_map(row));
        return;
    }
    places.extend((0..across).map(|vector| {
        let start = vector * LANES;
        let (mut mask, mut row) = (0, start / next_row);
        while row < height && row * next_row < start + LANES {
            let (first, end) = (row * next_row, row * next_row + width);
            mask |= low(end.saturating_sub(start)) & !low(first.saturating_sub(start));
            row += 1;
        }
        (start, mask)
    }));
}

/// Channels of one group, staged, and what of them a window covers.
#[derive(Clone, Copy)]
pub(in crate::fast) struct Channels<'a> {
    pub(in crate::fast) staged: &'a [f32],
    pub(in crate::fast) count: usize,
    /// From one to the next.
    pub(in crate::fast) next: usize,
    pub(in crate::fast) taps: &'a [usize],
}

/// Results of so many filters for these windows. To be called where there are vectors of sixteen lanes.
pub(in crate::fast) fn direct<const ROWS: usize>(
    weights: &[f32],
    channels: Channels<'_>,
    places: &[Places],
    finish: Finish<'_>,
    to: Place,
    output: &mut [f32],
) {
    let mut to = to;
    for pair in places.chunks(2) {
        match pair {
            [one, other] => multiply::<ROWS, 2>(weights, channels, [*one, *other], finish, to, output),
            [one] => multiply::<ROWS, 1>(weights, channels, [*one], finish, to, output),
            _ => {}
        }
        to.pixel += count(pair);
    }
}

/// How many windows these are.
pub(in crate::fast) fn count(places: &[Places]) -> usize {
    places.iter().map(|(_, mask)| mask.count_ones() as usize).sum()
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply<const ROWS: usize, const VECTORS: usize>(
    _: &[f32],
    _: Channels<'_>,
    _: [Places; VECTORS],
    _: Finish<'_>,
    _: Place,
    _: &mut [f32],
) {
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
fn multiply<const ROWS: usize, const VECTORS: usize>(
    weights: &[f32],
    channels: Channels<'_>,
    places: [Places; VECTORS],
    finish: Finish<'_>,
    to: Place,
    output: &mut [f32],
) {
    use std::arch::x86_64::{
        _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps,
        _mm512_maskz_compress_ps, _mm512_maskz_loadu_ps, _mm512_max_ps, _mm512_min_ps, _mm512_set1_ps,
        _mm512_setzero_ps,
    };

    #[target_feature(enable = "avx512f")]
    fn with_avx512<const ROWS: usize, const VECTORS: usize>(
        weights: &[f32],
        channels: Channels<'_>,
        places: [Places; VECTORS],
        finish: Finish<'_>,
        to: Place,
        output: &mut [f32],
    ) {
        let Channels { staged, count, next, taps } = channels;
        let mut sums = [[_mm512_setzero_ps(); ROWS]; VECTORS];
        let (rows, _) = weights.as_chunks::<ROWS>();
        for (channel, rows) in rows.chunks_exact(taps.len()).take(count).enumerate() {
            for (row, tap) in rows.iter().zip(taps) {
                // Channels are too far apart for the processor to see what comes next. Nothing is read that is not there.
                let next_channel = staged.as_ptr().wrapping_add((channel + 1) * next + tap + places[0].0 + LANES);
                _mm_prefetch::<_MM_HINT_T0>(next_channel.cast());
                let mut values = [_mm512_setzero_ps(); VECTORS];
                for (values, (start, _)) in values.iter_mut().zip(places) {
                    let from = staged.as_ptr().wrapping_add(channel * next + tap + start);
                    // SAFETY: this was compared below: sixteen floats are there.
                    *values = unsafe { _mm512_loadu_ps(from) };
                }
                for (at, weight) in row.iter().enumerate() {
                    let weight = _mm512_set1_ps(*weight);
                    for (sums, values) in sums.iter_mut().zip(values) {
                        sums[at] = _mm512_fmadd_ps(weight, values, sums[at]);
                    }
                }
            }
        }
        // Of two that are equal, or of which one is no number, the processor takes the second, as `bounded` does.
        let (least, most) = (_mm512_set1_ps(finish.least), _mm512_set1_ps(finish.most));
        let Some(bias) = finish.bias[to.filter..].first_chunk::<ROWS>() else { return };
        let mut pixel = to.pixel;
        for (vector, (_, mask)) in places.into_iter().enumerate() {
            let windows = mask.count_ones() as usize;
            let lanes = ((1_u32 << windows) - 1) as u16;
            for (row, bias) in bias.iter().enumerate() {
                let start = (to.filter + row) * finish.strides[0] + pixel;
                let results = &mut output[start..][..windows];
                let sum = _mm512_maskz_compress_ps(mask, sums[vector][row]);
                let mut sum = _mm512_add_ps(sum, _mm512_set1_ps(*bias));
                if let Some(added) = finish.added {
                    let added = &added[start..][..windows];
                    // SAFETY: as many floats are there as there are lanes.
                    sum = _mm512_add_ps(sum, unsafe { _mm512_maskz_loadu_ps(lanes, added.as_ptr()) });
                }
                let result = _mm512_min_ps(most, _mm512_max_ps(least, sum));
                // SAFETY: as above.
                unsafe { _mm512_mask_storeu_ps(results.as_mut_ptr(), lanes, result) };
            }
            pixel += windows;
        }
    }
    let Channels { staged, count, next, taps } = channels;
    let furthest = |of: &mut dyn Iterator<Item = usize>| of.max().unwrap_or(0);
    let start = furthest(&mut places.iter().map(|(start, _)| *start)) + furthest(&mut taps.iter().copied());
    assert!(count.saturating_sub(1) * next + start + LANES <= staged.len(), "windows reach behind the staged channels");
    assert!(super::is_there(), "vectors of sixteen lanes are used where there are none");
    // SAFETY: the processor has AVX-512F; that is all the function needs.
    unsafe { with_avx512::<ROWS, VECTORS>(weights, channels, places, finish, to, output) };
}
