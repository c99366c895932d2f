//! The greatest, or the mean, of each window.

use super::scratch::Scratch;
use super::sixteen::{self, Slide};
use super::slide::{Fold, Runs};
use super::team::{Team, ranges, take};
use super::window::{SLACK, Windows};
use crate::vector::{Loops, wide};
use std::ops::Range;
use tract_nnef::internal::*;

/// What is made of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Greatest,
    /// Of those pixels that are there, or of all of the window's places, where what is around the image counts as zero.
    Mean {
        around_counts: bool,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct FastPool {
    windows: Windows,
    kind: Kind,
    output: TVec<usize>,
    runs: Runs,
    /// One for each tap: windows here have no weights.
    ones: Arc<[f32]>,
    /// For a mean: by how much each window's sum is multiplied.
    shares: Arc<[f32]>,
}

// Its only floats follow from the rest.
impl Eq for FastPool {}

impl FastPool {
    pub(super) fn new(windows: Windows, kind: Kind, output: TVec<usize>) -> Self {
        let (runs, ones) = (Runs::of(&windows), vec![1.0; windows.kernel[0] * windows.kernel[1]]);
        let shares = match kind {
            Kind::Greatest => Vec::new(),
            Kind::Mean { around_counts: true } => vec![(ones.len() as f32).recip(); windows.pixels()],
            Kind::Mean { around_counts: false } => {
                let [rows, columns] =
                    [0, 1].map(|axis| (0..windows.output[axis]).map(|at| windows.there(axis, at)).collect::<Vec<_>>());
                rows.iter()
                    .flat_map(|rows| columns.iter().map(move |columns| ((rows * columns) as f32).recip()))
                    .collect()
            }
        };
        Self { windows, kind, output, runs, ones: ones.into(), shares: shares.into() }
    }
}

impl Op for FastPool {
    fn name(&self) -> StaticName {
        "FastPool".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("{:?}, kernel {:?}, stride {:?}", self.kind, self.windows.kernel, self.windows.stride)])
    }

    op_as_typed_op!();
}

impl EvalOp for FastPool {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let mut scratch = Scratch::take();
        let mut output = scratch.tensor(&self.output)?;
        let (from, mut to) = (input.try_as_plain_ram()?, output.try_as_plain_ram_mut()?);
        let (windows, mut left) = (&self.windows, to.as_slice_mut::<f32>()?);
        let (planes, pixels) = (windows.images * windows.channels, windows.pixels());
        let team = Team::of(left.len().saturating_mul(self.ones.len()));
        let (input_elements, mut own) = (from.as_slice::<f32>()?, Some(&mut scratch));
        team.share(
            ranges(planes, team.size()).map(|planes| Planes {
                pool: self,
                input: input_elements,
                output: take(&mut left, planes.len() * pixels),
                planes,
                scratch: own.take(),
            }),
            Planes::compute,
        );
        scratch.keep(input);
        scratch.give_back();
        Ok(tvec!(output.into_tvalue()))
    }
}

impl TypedOp for FastPool {
    as_op!();

    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::datum_type().fact(&self.output)))
    }
}

struct Greatest;

impl Fold for Greatest {
    #[inline(always)]
    fn fold<const WINDOWS: usize>(most: &mut [f32; WINDOWS], _: f32, values: &[f32; WINDOWS]) {
        most.iter_mut().zip(values).for_each(|(most, x)| *most = if *most < *x { *x } else { *most });
    }
}

struct Sum;

impl Fold for Sum {
    #[inline(always)]
    fn fold<const WINDOWS: usize>(sums: &mut [f32; WINDOWS], _: f32, values: &[f32; WINDOWS]) {
        sums.iter_mut().zip(values).for_each(|(sum, x)| *sum += x);
    }
}

/// Some channels, of all images.
struct Planes<'a> {
    pool: &'a FastPool,
    input: &'a [f32],
    planes: Range<usize>,
    /// Of these channels alone.
    output: &'a mut [f32],
    /// None: this is another thread than that which began.
    scratch: Option<&'a mut Scratch>,
}

impl Planes<'_> {
    fn compute(mut self) {
        Scratch::with(self.scratch.take(), |scratch| wide(Computing { planes: self, staged: &mut scratch.channel }));
    }
}

struct Computing<'a> {
    planes: Planes<'a>,
    staged: &'a mut Vec<f32>,
}

impl Loops for Computing<'_> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Planes { pool, input, planes, output, .. } = self.planes;
        let FastPool { windows, kind, runs, ones, shares, .. } = pool;
        let channels = windows.channels;
        // Where nothing is greater than nothing at all, tract gives the least number.
        let is_greatest = *kind == Kind::Greatest;
        let around = if is_greatest { f32::MIN } else { 0.0 };
        let slide = Slide::of(windows, if is_greatest { sixteen::Kind::Greatest } else { sixteen::Kind::Products });
        if slide.is_none() {
            self.staged.resize(windows.staged() + SLACK, 0.0);
        }
        let pixels = windows.pixels();
        for (at, plane) in planes.enumerate() {
            let image = &input[plane / channels * channels * windows.input_pixels()..];
            let (channel, output) = (plane % channels, &mut output[at * pixels..]);
            if let Some(slide) = slide {
                slide.fold(image, channel, ones, output, [around; 2], f32::NEG_INFINITY..=f32::INFINITY);
            } else {
                windows.stage(image, channel, (at == 0).then_some(around), self.staged);
                match is_greatest {
                    true => runs.fold::<Greatest>(windows, self.staged, ones, output, around),
                    false => runs.fold::<Sum>(windows, self.staged, ones, output, around),
                }
            }
            if !is_greatest {
                output.iter_mut().zip(&**shares).for_each(|(sum, share)| *sum *= share);
            }
        }
    }
}
