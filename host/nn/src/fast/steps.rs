//! What networks do to one element after another: scales, shifts, bounds, as behind a convolution or as what is left of a
//! normalisation. A chain of them goes through the cache once, a piece of a channel at a time.

use super::conv::bounded;
use super::team::{Team, ranges, take};
use crate::vector::{Loops, wide};
use tract_nnef::internal::*;

/// Elements that go through all steps before the next: few enough for a processor's first cache.
const PIECE: usize = 1024;

/// One value for all channels, or one for each.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PerChannel(pub(super) Arc<[f32]>);

impl PerChannel {
    #[inline(always)]
    pub(super) fn of(&self, channel: usize) -> f32 {
        if self.0.len() == 1 { self.0[0] } else { self.0[channel] }
    }
}

/// Something that is done to each element.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    Scale(PerChannel),
    Shift(PerChannel),
    AtLeast(f32),
    AtMost(f32),
    /// The product of an element with itself, shifted and bounded: with a scale behind it, a hard swish.
    Gate {
        shift: f32,
        least: f32,
        most: f32,
    },
}

/// Does all steps with a channel's values.
#[inline(always)]
pub(super) fn apply(steps: &[Step], channel: usize, values: &mut [f32]) {
    let mut left = steps;
    while let Some(first) = left.first() {
        if let Step::Gate { shift, least, most } = first {
            values.iter_mut().for_each(|x| *x *= bounded(*x + shift, *least, *most));
            left = &left[1..];
            continue;
        }
        // Those that often come in a row are one loop; of one that is not there, nothing is changed. A loop for bounds alone
        // would write those elements only that are out of bounds: vectors under a mask, ten times slower.
        let (mut scale, mut shift, mut least, mut most) = (1.0, -0.0, f32::NEG_INFINITY, f32::INFINITY);
        if let [Step::Scale(by), others @ ..] = left {
            (scale, left) = (by.of(channel), others);
        }
        if let [Step::Shift(by), others @ ..] = left {
            (shift, left) = (by.of(channel), others);
        }
        if let [Step::AtLeast(bound), others @ ..] = left {
            (least, left) = (*bound, others);
        }
        if let [Step::AtMost(bound), others @ ..] = left {
            (most, left) = (*bound, others);
        }
        values.iter_mut().for_each(|x| *x = bounded(*x * scale + shift, least, most));
    }
}

/// A chain of steps.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct FastSteps {
    pub(super) channels: usize,
    /// Elements of a channel that lie side by side.
    pub(super) pixels: usize,
    pub(super) steps: Vec<Step>,
}

// Floats of a network are what they are: no two of them are compared to decide something.
impl Eq for FastSteps {}

impl Op for FastSteps {
    fn name(&self) -> StaticName {
        "FastSteps".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("{} steps, {} channels of {} elements", self.steps.len(), self.channels, self.pixels)])
    }

    op_as_typed_op!();
}

impl EvalOp for FastSteps {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        // In place, if nobody else holds it.
        let mut tensor = args_1!(inputs).into_tensor();
        let mut plain = tensor.try_as_plain_ram_mut()?;
        let mut left = plain.as_slice_mut::<f32>()?;
        let planes = left.len() / self.pixels;
        let team = Team::of(left.len().saturating_mul(self.steps.len()));
        team.share(
            ranges(planes, team.size()).map(|planes| {
                let values = take(&mut left, planes.len() * self.pixels);
                Planes { op: self, first: planes.start, values }
            }),
            wide,
        );
        Ok(tvec!(tensor.into_tvalue()))
    }
}

impl TypedOp for FastSteps {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(inputs[0].datum_type.fact(inputs[0].shape.clone())))
    }
}

/// Some channels, of all images.
struct Planes<'a> {
    op: &'a FastSteps,
    first: usize,
    /// Of these channels alone.
    values: &'a mut [f32],
}

impl Loops for Planes<'_> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        for (plane, values) in (self.first..).zip(self.values.chunks_exact_mut(self.op.pixels)) {
            for values in values.chunks_mut(PIECE) {
                apply(&self.op.steps, plane % self.op.channels, values);
            }
        }
    }
}
