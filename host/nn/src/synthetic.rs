//! Graphs of one layer, of any size, with made-up weights: what layers cost is measured on them.

use crate::guard::guarded;
use crate::layer::describe;
use crate::written::write;
use crate::{Fact, GraphError, GraphFormat, Layer, Tensor, TensorError};
use tract_onnx::prelude::{
    Datum, OutletId, SpecialOps, Tensor as TractTensor, TractResult, TypedFact, TypedModel, tvec,
};
use tract_onnx::tract_core::ops::cnn::pools::PoolSpec;
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat, MaxPool, PaddingSpec};
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::math::{add, max, mul};
use tract_onnx::tract_core::ops::nn::DataFormat;
use tract_onnx_opl::lrn::Lrn;

/// A layer that can be made. Images have `maps` channels of `side_px` × `side_px`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Shape {
    /// Padded, so that with a stride of 1 the image keeps its size; an odd `window_px` is needed for that.
    Conv {
        maps: usize,
        filters: usize,
        side_px: usize,
        window_px: usize,
        stride_px: usize,
    },
    Relu {
        maps: usize,
        side_px: usize,
    },
    /// The greatest of each window; no padding.
    Pool {
        maps: usize,
        side_px: usize,
        window_px: usize,
        stride_px: usize,
    },
    /// Over five neighbouring maps, as in AlexNet.
    Lrn {
        maps: usize,
        side_px: usize,
    },
    /// With a bias.
    FullyConnected {
        inputs: usize,
        outputs: usize,
    },
    /// A product with one constant, as in a normalisation.
    Scale {
        maps: usize,
        side_px: usize,
    },
}

/// A graph of one layer.
#[derive(Debug)]
pub struct Synthetic {
    /// What it consists of: the layer, and for a fully connected one its bias.
    pub layers: Vec<Layer>,
    /// The graph, written as segments' graphs are.
    pub graph: Vec<u8>,
    /// How it is written.
    pub format: GraphFormat,
}

const LRN_MAPS: usize = 5;

impl Shape {
    fn is_possible(self) -> bool {
        let (least, window_px, side_px) = match self {
            // Padded: its window may be larger than the image.
            Self::Conv { maps, filters, side_px, window_px, stride_px } => {
                (maps.min(filters).min(stride_px), window_px.min(side_px), side_px)
            }
            Self::Pool { maps, side_px, window_px, stride_px } => (maps.min(stride_px), window_px, side_px),
            Self::Relu { maps, side_px } | Self::Lrn { maps, side_px } | Self::Scale { maps, side_px } => {
                (maps, side_px.min(1), side_px)
            }
            Self::FullyConnected { inputs, outputs } => (inputs.min(outputs), 1, 1),
        };
        least > 0 && (1..=side_px).contains(&window_px)
    }
}

/// Makes a graph of one layer. The same seed gives the same weights.
pub fn layer(shape: Shape, seed: u64) -> Result<Synthetic, GraphError> {
    if !shape.is_possible() {
        return Err(GraphError::Unusable(format!("{shape:?} has a size of zero or a window larger than its image")));
    }
    let made = guarded(|| {
        let model = model(shape, &mut Noise(seed))?.into_decluttered()?;
        Ok((describe(&model)?, model))
    });
    let (layers, model) = made.map_err(GraphError::Unusable)?;
    let graph = write(&model).map_err(GraphError::Unusable)?;
    Ok(Synthetic { layers, graph, format: GraphFormat::Nnef })
}

/// A tensor of 32-bit floats between -1 and 1. The same seed gives the same.
pub fn noise(fact: &Fact, seed: u64) -> Result<Tensor, TensorError> {
    Tensor::from_f32(&fact.dims, &Noise(seed).values(fact.elements()))
}

fn model(shape: Shape, noise: &mut Noise) -> TractResult<TypedModel> {
    let mut model = TypedModel::default();
    let dims = match shape {
        Shape::FullyConnected { inputs, .. } => tvec!(inputs),
        Shape::Conv { maps, side_px, .. }
        | Shape::Relu { maps, side_px }
        | Shape::Pool { maps, side_px, .. }
        | Shape::Lrn { maps, side_px }
        | Shape::Scale { maps, side_px } => tvec!(1, maps, side_px, side_px),
    };
    let input = model.add_source("input", TypedFact::dt_shape(f32::datum_type(), &dims))?;
    let mut constant = |model: &mut TypedModel, name: &str, dims: &[usize]| -> TractResult<OutletId> {
        let values = noise.values(dims.iter().product());
        model.add_const(name, TractTensor::from_shape(dims, &values)?)
    };
    let output = match shape {
        Shape::Conv { maps, filters, window_px, stride_px, .. } => {
            let kernel = constant(&mut model, "kernel", &[filters, maps, window_px, window_px])?;
            let bias = constant(&mut model, "bias", &[filters])?;
            let around = PaddingSpec::Explicit(tvec!(window_px / 2; 2), tvec!(window_px / 2; 2));
            let spec = windows(around, [maps, filters], window_px, stride_px);
            model.wire_node("output", Conv::new(spec, KernelFormat::OIHW, 1, None), &[input, kernel, bias])
        }
        Shape::Relu { .. } => {
            let zero = model.add_const("zero", TractTensor::from_shape(&[1, 1, 1, 1], &[0_f32])?)?;
            model.wire_node("output", max(), &[input, zero])
        }
        Shape::Pool { maps, window_px, stride_px, .. } => {
            let spec = windows(PaddingSpec::Valid, [maps, maps], window_px, stride_px);
            model.wire_node("output", MaxPool::new(spec, None), &[input])
        }
        Shape::Lrn { .. } => {
            let lrn = Lrn { alpha: 0.05, beta: 0.75, bias: 1.0, size: LRN_MAPS };
            model.wire_node("output", lrn, &[input])
        }
        Shape::FullyConnected { inputs, outputs } => {
            let matrix = constant(&mut model, "matrix", &[outputs, inputs])?;
            let bias = constant(&mut model, "bias", &[outputs])?;
            let einsum = EinSum::new("k,nk->n".parse()?, f32::datum_type());
            let product = model.wire_node("product", einsum, &[input, matrix])?;
            model.wire_node("output", add(), &[product[0], bias])
        }
        Shape::Scale { .. } => {
            let factor = constant(&mut model, "factor", &[1, 1, 1, 1])?;
            model.wire_node("output", mul(), &[input, factor])
        }
    }?;
    model.select_output_outlets(&output)?;
    Ok(model)
}

fn windows(padding: PaddingSpec, [maps, filters]: [usize; 2], window_px: usize, stride_px: usize) -> PoolSpec {
    let strides = Some(tvec!(stride_px; 2));
    PoolSpec::new(DataFormat::NCHW, tvec!(window_px; 2), padding, None, strides, maps, filters)
}

/// Knuth's linear congruential generator: no more is asked of weights that nobody looks at.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn values(&mut self, count: usize) -> Vec<f32> {
        let mut next = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // 24 bits, which an f32 holds exactly.
            (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Graph, LayerKind};

    #[test]
    fn layers_are_what_was_asked_for() {
        let conv = LayerKind::Conv { input_maps: 3, filters: 8, window_elements: 25, stride_elements: 4 };
        let cases = [
            (
                Shape::Conv { maps: 3, filters: 8, side_px: 16, window_px: 5, stride_px: 2 },
                conv,
                [768, 512, 608, 38_400],
            ),
            (
                Shape::Conv { maps: 3, filters: 8, side_px: 4, window_px: 1, stride_px: 1 },
                LayerKind::Conv { input_maps: 3, filters: 8, window_elements: 1, stride_elements: 1 },
                [48, 128, 24, 384],
            ),
            (Shape::Relu { maps: 4, side_px: 5 }, LayerKind::Relu, [100, 100, 1, 0]),
            (
                Shape::Pool { maps: 4, side_px: 8, window_px: 2, stride_px: 2 },
                LayerKind::Pool { window_elements: 4, stride_elements: 4 },
                [256, 64, 0, 0],
            ),
            (Shape::Lrn { maps: 8, side_px: 4 }, LayerKind::Lrn, [128, 128, 0, 0]),
            (Shape::FullyConnected { inputs: 40, outputs: 10 }, LayerKind::FullyConnected, [40, 10, 400, 400]),
            (Shape::Scale { maps: 2, side_px: 4 }, LayerKind::Other, [32, 32, 1, 32]),
        ];
        for (shape, kind, numbers) in cases {
            let made = layer(shape, 7).unwrap();
            assert_eq!(made.graph, layer(shape, 7).unwrap().graph, "{shape:?}: the seed decides");
            let Layer { input_elements, output_elements, weights, macs, fused, .. } = made.layers[0];
            assert_eq!(([input_elements, output_elements, weights, macs], fused), (numbers, false), "{shape:?}");
            assert_eq!(made.layers[0].kind, kind);
            assert!(made.layers[1..].iter().all(|bias| bias.fused), "{:?}", made.layers);
            let graph = Graph::load(&made.graph, made.format).unwrap();
            let input = noise(&graph.inputs()[0].fact, 1).unwrap();
            let output = graph.run_once(vec![input]).unwrap().remove(0);
            assert_eq!(output.fact().elements() as u64, output_elements, "{shape:?}");
        }
    }

    #[test]
    fn what_cannot_be_made_is_an_error() {
        let shapes = [
            Shape::Pool { maps: 1, side_px: 2, window_px: 3, stride_px: 1 },
            Shape::Conv { maps: 1, filters: 1, side_px: 4, window_px: 3, stride_px: 0 },
            Shape::Relu { maps: 4, side_px: 0 },
            Shape::FullyConnected { inputs: 0, outputs: 10 },
        ];
        for shape in shapes {
            let said = layer(shape, 1).unwrap_err().to_string();
            assert!(said.contains("size of zero"), "{shape:?}: {said}");
        }
    }
}
