//! Local response normalisation, fast.
//!
//! tract computes it element by element with a general power, which took two thirds of an AlexNet's
//! time. AlexNet's exponent is 3/4 (Krizhevsky et al. 2012, section 3.3), and `t^¾ = √t · √√t`; with
//! that, and with loops along the pixels of a channel, the compiler makes vector code of it. Both tiers
//! compute it so: the portable guest (`guest-layers/portable`) is built with this file, too.

use tract_nnef::internal::*;
use tract_onnx_opl::lrn::Lrn;

const EXPONENT: f32 = 0.75;

/// Replaces tract's operator wherever the fast one does the same.
pub(crate) fn speed_up(model: &mut TypedModel) {
    for node in model.nodes_mut() {
        let plain = node
            .outputs
            .first()
            .is_some_and(|output| output.fact.datum_type == f32::datum_type() && output.fact.rank() >= 2);
        let fast =
            node.op_as::<Lrn>().filter(|lrn| plain && lrn.beta == EXPONENT && lrn.size > 0).cloned().map(FastLrn);
        if let Some(fast) = fast {
            node.op = Box::new(fast);
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FastLrn(Lrn);

impl FastLrn {
    fn apply(&self, input: &[f32], output: &mut [f32], channels: usize, pixels: usize) {
        let Lrn { alpha, bias, size, .. } = self.0;
        let (before, behind) = ((size - 1) / 2, (size - 1).div_ceil(2));
        let factor = alpha / size as f32;
        let mut sums = vec![0.0_f32; pixels];
        let image = channels * pixels;
        for (input, output) in input.chunks_exact(image).zip(output.chunks_exact_mut(image)) {
            for channel in 0..channels {
                sums.fill(0.0);
                let window = channel.saturating_sub(before)..(channel + behind + 1).min(channels);
                for neighbour in input[window.start * pixels..window.end * pixels].chunks_exact(pixels) {
                    for (sum, x) in sums.iter_mut().zip(neighbour) {
                        *sum += x * x;
                    }
                }
                let here = channel * pixels..(channel + 1) * pixels;
                for ((y, x), sum) in output[here.clone()].iter_mut().zip(&input[here]).zip(&sums) {
                    let root = (bias + factor * sum).sqrt();
                    *y = x / (root * root.sqrt());
                }
            }
        }
    }
}

impl Op for FastLrn {
    fn name(&self) -> StaticName {
        "FastLrn".into()
    }

    op_as_typed_op!();
}

impl EvalOp for FastLrn {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let [_, channels, inner @ ..] = input.shape() else { bail!("LRN wants channels, not {:?}", input.shape()) };
        let (channels, pixels) = (*channels, inner.iter().product::<usize>());
        let mut output = Tensor::zero::<f32>(input.shape())?;
        if channels * pixels > 0 {
            let from = input.try_as_plain_ram()?;
            let mut to = output.try_as_plain_ram_mut()?;
            self.apply(from.as_slice::<f32>()?, to.as_slice_mut::<f32>()?, channels, pixels);
        }
        Ok(tvec!(output.into_tvalue()))
    }
}

impl TypedOp for FastLrn {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(inputs[0].clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two roots round otherwise than one power: by a few units in the last place.
    const ROUNDING: f32 = 4.0 * f32::EPSILON;

    #[test]
    fn it_gives_what_tract_gives() {
        for (shape, size) in [([2, 7, 3, 5], 5), ([1, 2, 4, 4], 5), ([1, 6, 1, 1], 2), ([1, 9, 2, 2], 1)] {
            let lrn = Lrn { alpha: 0.05, beta: EXPONENT, bias: 1.0, size };
            let values: Vec<f32> =
                (0..shape.iter().product::<usize>()).map(|i| (i as f32 * 0.37).sin() * 9.0).collect();
            let input = Tensor::from_shape(&shape, &values).unwrap().into_tvalue();
            let theirs = lrn.eval(&EvalContext::out_of_plan(), tvec!(input.clone())).unwrap();
            let ours = FastLrn(lrn).eval(&EvalContext::out_of_plan(), tvec!(input)).unwrap();
            let values = |tensor: &TValue| tensor.try_as_plain_ram().unwrap().as_slice::<f32>().unwrap().to_vec();
            for (ours, theirs) in values(&ours[0]).into_iter().zip(values(&theirs[0])) {
                assert!((ours - theirs).abs() <= ROUNDING * theirs.abs(), "{ours} is not {theirs}");
            }
        }
    }
}
