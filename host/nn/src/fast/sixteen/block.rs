//! A block of filters: with two panels at once, since of one, half of what is read would be weights.

use super::is_there;
use crate::fast::conv::{Finish, PANEL, Place, panel_elements};

/// Results of so many filters for all pixels that the panels are of. To be called where such vectors are.
pub(in crate::fast) fn block<const ROWS: usize>(
    weights: &[f32],
    panels: &[f32],
    places: usize,
    finish: Finish<'_>,
    to: Place,
    output: &mut [f32],
) {
    let size = panel_elements(places);
    for (pair, first) in panels.chunks(2 * size).zip((0..to.pixels).step_by(2 * PANEL)) {
        let to = Place { pixel: to.pixel + first, pixels: (to.pixels - first).min(2 * PANEL), ..to };
        let one = &pair[..places * PANEL];
        match pair.get(size..size + places * PANEL).filter(|_| to.pixels > PANEL) {
            Some(other) => some::<ROWS, 2>(weights, [one, other], finish, to, output),
            None => some::<ROWS, 1>(weights, [one], finish, to, output),
        }
    }
}

/// The same of one or two panels.
fn some<const ROWS: usize, const PANELS: usize>(
    weights: &[f32],
    panels: [&[f32]; PANELS],
    finish: Finish<'_>,
    to: Place,
    output: &mut [f32],
) {
    if finish.strides[1] == 1 {
        return multiply::<ROWS, PANELS>(weights, panels, End::Rows(finish, to, output));
    }
    let mut tiles = [[[0.0; PANEL]; ROWS]; PANELS];
    multiply(weights, panels, End::Tiles(&mut tiles));
    for (tile, first) in tiles.into_iter().zip((0..to.pixels).step_by(PANEL)) {
        let to = Place { pixel: to.pixel + first, pixels: (to.pixels - first).min(PANEL), ..to };
        finish.write(tile, to, output);
    }
}

/// Where sums go.
enum End<'a, const ROWS: usize, const PANELS: usize> {
    /// To where they belong, done with; a filter's results lie side by side.
    Rows(Finish<'a>, Place, &'a mut [f32]),
    /// As they are.
    Tiles(&'a mut [[[f32; PANEL]; ROWS]; PANELS]),
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply<const ROWS: usize, const PANELS: usize>(_: &[f32], _: [&[f32]; PANELS], _: End<'_, ROWS, PANELS>) {}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
fn multiply<const ROWS: usize, const PANELS: usize>(
    weights: &[f32],
    panels: [&[f32]; PANELS],
    end: End<'_, ROWS, PANELS>,
) {
    use std::arch::x86_64::{
        _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_max_ps,
        _mm512_min_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    #[target_feature(enable = "avx512f")]
    fn with_avx512<const ROWS: usize, const PANELS: usize>(
        weights: &[f32],
        panels: [&[f32]; PANELS],
        end: End<'_, ROWS, PANELS>,
    ) {
        let mut sums = [[_mm512_setzero_ps(); ROWS]; PANELS];
        for (place, row) in weights.as_chunks::<ROWS>().0.iter().enumerate() {
            let mut values = [_mm512_setzero_ps(); PANELS];
            // Loops, and no closures: functions that are given one cannot be compiled for such vectors.
            for (values, panel) in values.iter_mut().zip(panels) {
                let panel = &panel[place * PANEL..][..PANEL];
                // SAFETY: sixteen floats are there; they need not be aligned.
                *values = unsafe { _mm512_loadu_ps(panel.as_ptr()) };
            }
            for (at, weight) in row.iter().enumerate() {
                let weight = _mm512_set1_ps(*weight);
                for (sums, values) in sums.iter_mut().zip(values) {
                    sums[at] = _mm512_fmadd_ps(weight, values, sums[at]);
                }
            }
        }
        let (finish, to, output) = match end {
            End::Rows(finish, to, output) => (finish, to, output),
            End::Tiles(tiles) => {
                for (tile, sum) in tiles.as_flattened_mut().iter_mut().zip(sums.as_flattened()) {
                    // SAFETY: sixteen floats are there; they need not be aligned.
                    unsafe { _mm512_storeu_ps(tile.as_mut_ptr(), *sum) };
                }
                return;
            }
        };
        // Of two that are equal, or of which one is no number, the processor takes the second, as `bounded` does.
        let (least, most) = (_mm512_set1_ps(finish.least), _mm512_set1_ps(finish.most));
        // Loops whose counts are known, so that sums stay in registers.
        let Some(bias) = finish.bias[to.filter..].first_chunk::<ROWS>() else { return };
        for (row, bias) in bias.iter().enumerate() {
            let start = (to.filter + row) * finish.strides[0] + to.pixel;
            for (panel, sums) in sums.iter().enumerate() {
                let (start, there) = (start + panel * PANEL, to.pixels.saturating_sub(panel * PANEL).min(PANEL));
                let (results, lanes) = (&mut output[start..][..there], ((1_u32 << there) - 1) as u16);
                let mut sum = _mm512_add_ps(sums[row], _mm512_set1_ps(*bias));
                if let Some(added) = finish.added {
                    let added = &added[start..][..there];
                    // SAFETY: as many floats are there as there are lanes.
                    sum = _mm512_add_ps(sum, unsafe { _mm512_maskz_loadu_ps(lanes, added.as_ptr()) });
                }
                let result = _mm512_min_ps(most, _mm512_max_ps(least, sum));
                // SAFETY: as above.
                unsafe { _mm512_mask_storeu_ps(results.as_mut_ptr(), lanes, result) };
            }
        }
    }
    assert!(is_there(), "vectors of sixteen lanes are used where there are none");
    // SAFETY: the processor has AVX-512F; that is all the function needs.
    unsafe { with_avx512(weights, panels, end) };
}
