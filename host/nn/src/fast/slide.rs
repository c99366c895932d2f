//! Rows of windows, folded tap by tap: neighbouring windows at once, in registers.

use super::window::{SLACK, Windows};
use crate::vector::COMPARES_ONCE;

/// Neighbouring taps that are read together; a longer row of them is several runs.
const RUN_MAX: usize = 8;
/// Windows that are folded at once.
const AT_ONCE: usize = 32;

/// A window's taps, put in order: those that lie side by side in a staged channel are one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Runs {
    /// Where each starts, and how many taps it has.
    runs: Vec<(usize, usize)>,
    /// Which tap comes where.
    pub(super) order: Vec<usize>,
}

/// What is made of the elements of neighbouring windows, a place of all of them after another.
pub(super) trait Fold {
    fn fold<const WINDOWS: usize>(so_far: &mut [f32; WINDOWS], weight: f32, values: &[f32; WINDOWS]);
}

impl Runs {
    pub(super) fn of(windows: &Windows) -> Self {
        let taps = windows.taps();
        let mut order: Vec<usize> = (0..taps.len()).collect();
        order.sort_unstable_by_key(|tap| taps[*tap]);
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for tap in &order {
            match runs.last_mut() {
                Some((start, count)) if *start + *count == taps[*tap] && *count < RUN_MAX => *count += 1,
                _ => runs.push((taps[*tap], 1)),
            }
        }
        Self { runs, order }
    }

    /// Folds each window of a row, from `start` on; `weights` are in the runs' order. What `output` has behind the row may be
    /// overwritten: results are written some at once.
    #[inline(always)]
    pub(super) fn fold<F: Fold>(&self, from: &[f32], weights: &[f32], width: usize, output: &mut [f32], start: f32) {
        let mut at = 0;
        while at < width {
            let (from, output) = (&from[at..], &mut output[at..]);
            at += match width - at {
                0..=8 => self.fold_some::<F, 8>(from, weights, output, start),
                9..=16 => self.fold_some::<F, 16>(from, weights, output, start),
                _ => self.fold_some::<F, AT_ONCE>(from, weights, output, start),
            };
        }
    }

    #[inline(always)]
    fn fold_some<F: Fold, const WINDOWS: usize>(
        &self,
        from: &[f32],
        mut weights: &[f32],
        output: &mut [f32],
        start: f32,
    ) -> usize {
        let mut sums = [start; WINDOWS];
        for (start, count) in &self.runs {
            let (these, others) = weights.split_at(*count);
            weights = others;
            let from = &from[*start..];
            match count {
                1 => run::<F, WINDOWS, 1>(from, these, &mut sums),
                2 => run::<F, WINDOWS, 2>(from, these, &mut sums),
                3 => run::<F, WINDOWS, 3>(from, these, &mut sums),
                4 => run::<F, WINDOWS, 4>(from, these, &mut sums),
                5 => run::<F, WINDOWS, 5>(from, these, &mut sums),
                6 => run::<F, WINDOWS, 6>(from, these, &mut sums),
                7 => run::<F, WINDOWS, 7>(from, these, &mut sums),
                _ => run::<F, WINDOWS, RUN_MAX>(from, these, &mut sums),
            }
        }
        match output.first_chunk_mut::<WINDOWS>() {
            Some(to) => *to = sums,
            None => output.iter_mut().zip(sums).for_each(|(to, sum)| *to = sum),
        }
        WINDOWS
    }
}

/// Of a known number of taps, so that one comparison tells that all are there.
#[inline(always)]
fn run<F: Fold, const WINDOWS: usize, const TAPS: usize>(from: &[f32], weights: &[f32], sums: &mut [f32; WINDOWS]) {
    const { assert!(AT_ONCE <= SLACK && WINDOWS <= AT_ONCE) };
    let all = if COMPARES_ONCE { from.get(..WINDOWS + TAPS - 1) } else { Some(from) };
    let (Some(from), Some(weights)) = (all, weights.first_chunk::<TAPS>()) else {
        // Behind a staged channel there is SLACK, so this is never so.
        return;
    };
    for (tap, weight) in weights.iter().enumerate() {
        let Some(values) = from.get(tap..).and_then(|from| from.first_chunk::<WINDOWS>()) else { return };
        F::fold(sums, *weight, values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Taps of a row that are stepped over in twos come from two phases, each of which lies side by side.
    #[test]
    fn neighbours_in_memory_are_one_run() {
        use tract_nnef::internal::*;
        use tract_nnef::tract_core::ops::{
            cnn::{PaddingSpec, PoolSpec},
            nn::DataFormat,
        };
        for (stride, expected) in [(1, vec![(0, 3), (10, 3)]), (2, vec![(0, 2), (5, 1), (10, 2), (15, 1)])] {
            let around = PaddingSpec::Explicit(tvec!(0, 1), tvec!(0, 1));
            let spec = PoolSpec::new(DataFormat::NCHW, tvec!(2, 3), around, None, Some(tvec!(stride; 2)), 1, 1);
            let windows = Windows::of(&spec, &f32::fact([1, 1, 4, 8])).unwrap().unwrap();
            assert_eq!(Runs::of(&windows).runs, expected, "stride {stride}");
        }
    }
}
