//! Published networks with made-up weights: what one network costs in two ways is measured on them, and needs no
//! download. Their shapes are those of the papers; their answers mean nothing.

use crate::guard::guarded;
use crate::synthetic::Noise;
use crate::written::write;
use crate::{GraphError, GraphFormat};
use tract_onnx::prelude::{Datum, OutletId, SpecialOps, Tensor, ToDim, TractResult, TypedFact, TypedModel, tvec};
use tract_onnx::tract_core::ops::change_axes::AxisOp;
use tract_onnx::tract_core::ops::cnn::pools::PoolSpec;
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat, MaxPool, PaddingSpec, SumPool};
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::math::{add, max, min};
use tract_onnx::tract_core::ops::nn::DataFormat;
use tract_onnx_opl::lrn::Lrn;

/// A network that is known by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// Krizhevsky et al. 2012: 61 million weights, most of them in layers that use each once.
    AlexNet,
    /// Sandler et al. 2018: 3.5 million weights, in many thin layers.
    MobileNetV2,
}

impl Published {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::AlexNet, Self::MobileNetV2];

    /// The name that it was published under.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AlexNet => "AlexNet",
            Self::MobileNetV2 => "MobileNetV2",
        }
    }

    /// Its graph, written as segments' graphs are. The same seed gives the same weights.
    pub fn graph(self, seed: u64) -> Result<(Vec<u8>, GraphFormat), GraphError> {
        let made = guarded(|| {
            let mut net = Net { model: TypedModel::default(), noise: Noise(seed), layers: 0 };
            let output = match self {
                Self::AlexNet => alexnet(&mut net),
                Self::MobileNetV2 => mobilenet_v2(&mut net),
            }?;
            net.model.select_output_outlets(&[output])?;
            net.model.into_decluttered()
        });
        let graph = write(&made.map_err(GraphError::Unusable)?).map_err(GraphError::Unusable)?;
        Ok((graph, GraphFormat::Nnef))
    }
}

fn alexnet(net: &mut Net) -> TractResult<OutletId> {
    let image = net.input(227)?;
    let x = net.conv(image, Window { filters: 96, side: 11, stride: 4, padding: 0, groups: 1 })?;
    let x = net.relu(x)?;
    let x = net.lrn(x)?;
    let x = net.max_pool(x)?;
    let x = net.conv(x, Window { filters: 256, side: 5, stride: 1, padding: 2, groups: 2 })?;
    let x = net.relu(x)?;
    let x = net.lrn(x)?;
    let mut x = net.max_pool(x)?;
    for (filters, groups) in [(384, 1), (384, 2), (256, 2)] {
        x = net.conv(x, Window { filters, side: 3, stride: 1, padding: 1, groups })?;
        x = net.relu(x)?;
    }
    let x = net.max_pool(x)?;
    let x = net.fully_connected(x, 4096)?;
    let x = net.relu(x)?;
    let x = net.fully_connected(x, 4096)?;
    let x = net.relu(x)?;
    net.fully_connected(x, 1000)
}

fn mobilenet_v2(net: &mut Net) -> TractResult<OutletId> {
    let image = net.input(224)?;
    let x = net.conv(image, Window { filters: 32, side: 3, stride: 2, padding: 1, groups: 1 })?;
    let mut x = net.relu6(x)?;
    // The paper's table 2: expansion, channels, repetitions, stride of the first.
    let rows =
        [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)];
    for (expansion, channels, repetitions, first_stride) in rows {
        for repetition in 0..repetitions {
            let stride = if repetition == 0 { first_stride } else { 1 };
            x = net.bottleneck(x, expansion, channels, stride)?;
        }
    }
    let x = net.point_wise(x, 1280)?;
    let x = net.relu6(x)?;
    let x = net.mean_pool(x)?;
    net.fully_connected(x, 1000)
}

/// A network in the making; images have one batch, and channels first.
struct Net {
    model: TypedModel,
    noise: Noise,
    layers: usize,
}

struct Window {
    filters: usize,
    side: usize,
    stride: usize,
    padding: usize,
    groups: usize,
}

impl Net {
    fn input(&mut self, side_px: usize) -> TractResult<OutletId> {
        self.model.add_source("input", TypedFact::dt_shape(f32::datum_type(), [1, 3, side_px, side_px]))
    }

    fn dims(&self, of: OutletId) -> TractResult<Vec<usize>> {
        Ok(self.model.outlet_fact(of)?.shape.as_concrete().unwrap_or_default().to_vec())
    }

    fn name(&mut self, what: &str) -> String {
        self.layers += 1;
        format!("{what}_{}", self.layers)
    }

    /// Of a size with which activations neither grow nor vanish, layer after layer (He et al. 2015).
    fn weights(&mut self, dims: &[usize]) -> TractResult<OutletId> {
        let inputs: usize = dims[1..].iter().product();
        let scale = (6.0 / inputs.max(1) as f32).sqrt();
        let mut values = self.noise.values(dims.iter().product());
        values.iter_mut().for_each(|value| *value *= scale);
        let name = self.name("weights");
        self.model.add_const(name, Tensor::from_shape(dims, &values)?)
    }

    fn bias(&mut self, dims: &[usize]) -> TractResult<OutletId> {
        let mut values = self.noise.values(dims.iter().product());
        values.iter_mut().for_each(|value| *value *= 0.1);
        let name = self.name("bias");
        self.model.add_const(name, Tensor::from_shape(dims, &values)?)
    }

    fn wire(
        &mut self,
        what: &str,
        op: impl Into<Box<dyn tract_nnef::internal::TypedOp>>,
        inputs: &[OutletId],
    ) -> TractResult<OutletId> {
        let name = self.name(what);
        Ok(self.model.wire_node(name, op, inputs)?[0])
    }

    fn conv(&mut self, x: OutletId, window: Window) -> TractResult<OutletId> {
        let Window { filters, side, stride, padding, groups } = window;
        let maps = self.dims(x)?[1];
        let kernel = self.weights(&[filters, maps / groups, side, side])?;
        let bias = self.bias(&[filters])?;
        let around = PaddingSpec::Explicit(tvec!(padding; 2), tvec!(padding; 2));
        let spec = windows(around, [maps, filters], side, stride);
        self.wire("conv", Conv::new(spec, KernelFormat::OIHW, groups, None), &[x, kernel, bias])
    }

    fn point_wise(&mut self, x: OutletId, filters: usize) -> TractResult<OutletId> {
        self.conv(x, Window { filters, side: 1, stride: 1, padding: 0, groups: 1 })
    }

    /// The paper's inverted residual.
    fn bottleneck(&mut self, x: OutletId, expansion: usize, channels: usize, stride: usize) -> TractResult<OutletId> {
        let before = self.dims(x)?[1];
        let wide = before * expansion;
        let mut y = x;
        if expansion > 1 {
            y = self.point_wise(y, wide)?;
            y = self.relu6(y)?;
        }
        y = self.conv(y, Window { filters: wide, side: 3, stride, padding: 1, groups: wide })?;
        y = self.relu6(y)?;
        y = self.point_wise(y, channels)?;
        if stride == 1 && before == channels { self.wire("sum", add(), &[x, y]) } else { Ok(y) }
    }

    fn constant(&mut self, value: f32, rank: usize) -> TractResult<OutletId> {
        let name = self.name("constant");
        self.model.add_const(name, Tensor::from_shape(&vec![1; rank], &[value])?)
    }

    fn relu(&mut self, x: OutletId) -> TractResult<OutletId> {
        let rank = self.dims(x)?.len();
        let zero = self.constant(0.0, rank)?;
        self.wire("relu", max(), &[x, zero])
    }

    fn relu6(&mut self, x: OutletId) -> TractResult<OutletId> {
        let x = self.relu(x)?;
        let rank = self.dims(x)?.len();
        let six = self.constant(6.0, rank)?;
        self.wire("relu6", min(), &[x, six])
    }

    fn lrn(&mut self, x: OutletId) -> TractResult<OutletId> {
        self.wire("lrn", Lrn { alpha: 5e-4, beta: 0.75, bias: 2.0, size: 5 }, &[x])
    }

    fn max_pool(&mut self, x: OutletId) -> TractResult<OutletId> {
        let maps = self.dims(x)?[1];
        let spec = windows(PaddingSpec::Valid, [maps, maps], 3, 2);
        self.wire("pool", MaxPool::new(spec, None), &[x])
    }

    fn mean_pool(&mut self, x: OutletId) -> TractResult<OutletId> {
        let dims = self.dims(x)?;
        let spec = windows(PaddingSpec::Valid, [dims[1]; 2], dims[2], 1);
        self.wire("mean", SumPool { pool_spec: spec, count_include_pad: false, normalize: true }, &[x])
    }

    fn fully_connected(&mut self, x: OutletId, outputs: usize) -> TractResult<OutletId> {
        let dims = self.dims(x)?;
        let inputs: usize = dims.iter().product();
        let from = dims.iter().map(ToDim::to_dim).collect();
        let flat = self.wire("flat", AxisOp::Reshape(0, from, tvec!(inputs.to_dim())), &[x])?;
        let matrix = self.weights(&[outputs, inputs])?;
        let product = EinSum::new("k,nk->n".parse()?, f32::datum_type());
        let product = self.wire("product", product, &[flat, matrix])?;
        let bias = self.bias(&[outputs])?;
        self.wire("fully_connected", add(), &[product, bias])
    }
}

fn windows(padding: PaddingSpec, [maps, filters]: [usize; 2], side: usize, stride: usize) -> PoolSpec {
    PoolSpec::new(DataFormat::NCHW, tvec!(side; 2), padding, None, Some(tvec!(stride; 2)), maps, filters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Graph, synthetic::noise};

    #[test]
    fn they_have_the_size_that_was_published_and_answer() {
        for (net, macs) in
            [(Published::AlexNet, 720_000_000..730_000_000), (Published::MobileNetV2, 295_000_000..305_000_000)]
        {
            let (bytes, format) = net.graph(1).unwrap();
            let graph = Graph::load(&bytes, format).unwrap();
            assert!(macs.contains(&graph.cost().macs), "{}: {} multiply-accumulates", net.name(), graph.cost().macs);
            let image = noise(&graph.inputs()[0].fact, 2).unwrap();
            let scores = graph.run_once(vec![image]).unwrap().remove(0);
            let scores = scores.as_f32().unwrap();
            let (least, most) = scores.iter().fold((f32::MAX, f32::MIN), |(a, b), x| (a.min(*x), b.max(*x)));
            assert_eq!(scores.len(), 1000);
            assert!(most - least > 0.1 && most.abs().max(least.abs()) < 1e3, "{}: {least} to {most}", net.name());
        }
    }
}
