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

    /// Folds each window of a staged channel, from `start` on; `weights` are in the runs' order. What `output` has behind the
    /// channel may be overwritten: results are written some at once.
    #[inline(always)]
    pub(super) fn fold<F: Fold>(
        &self,
        windows: &Windows,
        staged: &[f32],
        weights: &[f32],
        output: &mut [f32],
        start: f32,
    ) {
        // Rows of three taps, as nearly all are, and what is left of them where windows step over every second pixel: in a
        // row of windows as short as those of most channels, to find out anew what is to be done takes as long as to do it.
        if let Some(known) = Known::<3, 0, 3>::of(&self.runs, weights) {
            return rows::<F>(&known, windows, staged, output, start);
        }
        if let Some(known) = Known::<2, 1, 3>::of(&self.runs, weights) {
            return rows::<F>(&known, windows, staged, output, start);
        }
        rows::<F>(&(&self.runs[..], weights), windows, staged, output, start);
    }
}

/// Runs with their weights.
trait Taps {
    /// Folds what they cover in neighbouring windows.
    fn fold<F: Fold, const WINDOWS: usize>(&self, from: &[f32], sums: &mut [f32; WINDOWS]);
}

/// Any runs.
impl Taps for (&[(usize, usize)], &[f32]) {
    #[inline(always)]
    fn fold<F: Fold, const WINDOWS: usize>(&self, from: &[f32], sums: &mut [f32; WINDOWS]) {
        let (runs, mut weights) = *self;
        for (start, count) in runs {
            let (these, others) = weights.split_at(*count);
            weights = others;
            let from = &from[*start..];
            match count {
                1 => run::<F, WINDOWS, 1>(from, these, sums),
                2 => run::<F, WINDOWS, 2>(from, these, sums),
                3 => run::<F, WINDOWS, 3>(from, these, sums),
                4 => run::<F, WINDOWS, 4>(from, these, sums),
                5 => run::<F, WINDOWS, 5>(from, these, sums),
                6 => run::<F, WINDOWS, 6>(from, these, sums),
                7 => run::<F, WINDOWS, 7>(from, these, sums),
                _ => run::<F, WINDOWS, RUN_MAX>(from, these, sums),
            }
        }
    }
}

/// So many times a run of `FIRST` taps and, if there are any, one of `SECOND`.
struct Known<const FIRST: usize, const SECOND: usize, const TIMES: usize>([[([f32; 3], usize); 2]; TIMES]);

impl<const FIRST: usize, const SECOND: usize, const TIMES: usize> Known<FIRST, SECOND, TIMES> {
    #[inline(always)]
    fn of(runs: &[(usize, usize)], mut weights: &[f32]) -> Option<Self> {
        let each = if SECOND == 0 { 1 } else { 2 };
        let counts = [FIRST, SECOND];
        if runs.len() != TIMES * each || runs.iter().enumerate().any(|(at, (_, count))| *count != counts[at % each]) {
            return None;
        }
        let mut known = [[([0.0; 3], 0); 2]; TIMES];
        for (runs, known) in runs.chunks_exact(each).zip(&mut known) {
            for ((start, count), (taps, from)) in runs.iter().zip(known) {
                let (these, others) = weights.split_at_checked(*count)?;
                taps.get_mut(..*count)?.copy_from_slice(these);
                (weights, *from) = (others, *start);
            }
        }
        Some(Self(known))
    }
}

impl<const FIRST: usize, const SECOND: usize, const TIMES: usize> Taps for Known<FIRST, SECOND, TIMES> {
    #[inline(always)]
    fn fold<F: Fold, const WINDOWS: usize>(&self, from: &[f32], sums: &mut [f32; WINDOWS]) {
        for [first, second] in &self.0 {
            run::<F, WINDOWS, FIRST>(&from[first.1..], &first.0, sums);
            if SECOND > 0 {
                run::<F, WINDOWS, SECOND>(&from[second.1..], &second.0, sums);
            }
        }
    }
}

#[inline(always)]
fn rows<F: Fold>(taps: &impl Taps, windows: &Windows, staged: &[f32], output: &mut [f32], start: f32) {
    let [height, width] = windows.output;
    for y in 0..height {
        let (from, output, mut at) = (&staged[windows.start(y)..], &mut output[y * width..], 0);
        while at < width {
            let (from, output) = (&from[at..], &mut output[at..]);
            at += match width - at {
                0..=8 => fold_some::<F, 8>(taps, from, output, start),
                9..=16 => fold_some::<F, 16>(taps, from, output, start),
                17..=24 => fold_some::<F, 24>(taps, from, output, start),
                _ => fold_some::<F, AT_ONCE>(taps, from, output, start),
            };
        }
    }
}

#[inline(always)]
fn fold_some<F: Fold, const WINDOWS: usize>(taps: &impl Taps, from: &[f32], output: &mut [f32], start: f32) -> usize {
    let mut sums = [start; WINDOWS];
    taps.fold::<F, WINDOWS>(from, &mut sums);
    match output.first_chunk_mut::<WINDOWS>() {
        Some(to) => *to = sums,
        None => output.iter_mut().zip(sums).for_each(|(to, sum)| *to = sum),
    }
    WINDOWS
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
