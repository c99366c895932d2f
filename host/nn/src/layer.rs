//! What a graph does, operator by operator, and the numbers that its time can be told from.

use tract_onnx::prelude::{OutletId, TDim, TractResult, TypedModel};
use tract_onnx::tract_core::internal::Cost as Costs;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cast::Cast;
use tract_onnx::tract_core::ops::cnn::pools::PoolSpec;
use tract_onnx::tract_core::ops::cnn::{Conv, MaxPool, SumPool};
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_core::ops::scan::{Scan, iteration_count};
use tract_onnx::tract_core::ops::source::TypedSource;
use tract_onnx_opl::lrn::Lrn;

/// One operator of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its name in the network.
    pub name: String,
    /// tract's name of the operator.
    pub operator: String,
    /// Which type of layer it is.
    pub kind: LayerKind,
    /// Elements of the activation that it reads.
    pub input_elements: u64,
    /// Elements that it writes.
    pub output_elements: u64,
    /// Constant elements that it reads: weights, biases, bounds.
    pub weights: u64,
    /// Multiply-accumulates of one run.
    pub macs: u64,
    /// Whether tract makes it part of the operator before it, where it takes next to no time.
    pub fused: bool,
}

/// A type of layer, as the Edgent paper tells them apart. Its dropout is not among them: exporters
/// leave it out, since it does nothing but in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// A convolution; a product of a constant matrix with many columns, which is one of 1 × 1, too.
    Conv {
        /// Input feature maps.
        input_maps: u64,
        /// How many filters there are, and so output feature maps.
        filters: u64,
        /// Places that a filter covers on a map: 25 of one of 5 × 5.
        window_elements: u64,
        /// Input places for each output place: 4 for steps of 2 in both dimensions.
        stride_elements: u64,
    },
    /// What is below zero becomes zero.
    Relu,
    /// The greatest or the mean value of each window.
    Pool {
        /// Places that the window covers on a map.
        window_elements: u64,
        /// Input places for each output place.
        stride_elements: u64,
    },
    /// Local response normalisation.
    Lrn,
    /// A product of a constant matrix with one column.
    FullyConnected,
    /// Anything else; element by element, most often.
    Other,
}

/// What a run of a graph takes, read off the graph itself, whatever a manifest says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Multiply-accumulates, those of loops as often as they go round.
    pub macs: u64,
    /// Bytes of the largest tensor that appears in it.
    pub largest_bytes: u64,
}

impl Cost {
    /// What two runs take, one after the other.
    pub(crate) fn with(self, other: Self) -> Self {
        Self { macs: self.macs.saturating_add(other.macs), largest_bytes: self.largest_bytes.max(other.largest_bytes) }
    }
}

/// Adds up what a graph's operators take. Nothing overflows: too much is the most that there is.
pub(crate) fn cost(part: &TypedModel) -> TractResult<Cost> {
    let mut total = Cost::default();
    for node in &part.nodes {
        let facts = part.node_input_facts(node.id)?;
        // A size that is not known is not a small one.
        let known = |amount: &TDim| amount.to_i64().map_or(u64::MAX, |amount| u64::try_from(amount).unwrap_or(0));
        for (cost, amount) in node.op.cost(&facts)? {
            if matches!(cost, Costs::FMA(_)) {
                total.macs = total.macs.saturating_add(known(&amount));
            }
        }
        if let Some(scan) = node.op_as::<Scan>() {
            let body = cost(&scan.body)?;
            let rounds = iteration_count(&scan.input_mapping, &facts).as_ref().map_or(u64::MAX, known);
            total.macs = total.macs.saturating_add(body.macs.max(1).saturating_mul(rounds));
            total.largest_bytes = total.largest_bytes.max(body.largest_bytes);
        }
        for output in &node.outputs {
            let element_bytes = output.fact.datum_type.size_of() as u64;
            let bytes = output.fact.shape.iter().fold(element_bytes, |bytes, dim| bytes.saturating_mul(known(dim)));
            total.largest_bytes = total.largest_bytes.max(bytes);
        }
    }
    Ok(total)
}

/// The operators of a graph in the order in which they run.
pub(crate) fn describe(part: &TypedModel) -> TractResult<Vec<Layer>> {
    let order = part.eval_order()?;
    let working = order.into_iter().filter(|id| !part.node(*id).op_is::<TypedSource>());
    working.filter(|id| !part.node(*id).op_is::<Const>()).map(|id| layer(part, id)).collect()
}

/// What an operator has to do, roughly, and never nothing: its multiply-accumulates and the elements it writes.
pub(crate) fn work(model: &TypedModel, id: usize) -> TractResult<u64> {
    layer(model, id).map(|layer| (layer.macs + layer.output_elements).max(1))
}

fn layer(part: &TypedModel, id: usize) -> TractResult<Layer> {
    let node = part.node(id);
    let facts = part.node_input_facts(id)?;
    let elements = |shape: Option<&[usize]>| shape.map_or(0, |dims| dims.iter().product::<usize>() as u64);
    let (mut input_elements, mut weights, mut macs) = (0, 0, 0);
    for fact in &facts {
        let read = if fact.konst.is_some() { &mut weights } else { &mut input_elements };
        *read += elements(fact.shape.as_concrete());
    }
    for (cost, amount) in node.op.cost(&facts)? {
        if matches!(cost, Costs::FMA(_)) {
            macs += u64::try_from(amount.to_i64().unwrap_or(0)).unwrap_or(0);
        }
    }
    let output_elements: u64 = node.outputs.iter().map(|output| elements(output.fact.shape.as_concrete())).sum();
    let product =
        (weights > 0 && macs > 0).then(|| Product { columns: (macs / weights).max(1), output_elements, weights });
    let kind = kind(part, id, product);
    let (name, operator) = (node.name.clone(), node.op.name().into_owned());
    let fused = is_fused(part, id);
    Ok(Layer { name, operator, kind, input_elements, output_elements, weights, macs, fused })
}

/// A product with a constant, or something that looks like one.
struct Product {
    columns: u64,
    output_elements: u64,
    weights: u64,
}

fn kind(part: &TypedModel, id: usize, product: Option<Product>) -> LayerKind {
    let op = &part.node(id).op;
    let area = |sides: &[usize]| sides.iter().product::<usize>() as u64;
    let pool = |spec: &PoolSpec| LayerKind::Pool {
        window_elements: area(&spec.kernel_shape),
        stride_elements: area(&spec.strides()),
    };
    let bounded_by_constant = |op: &TypedBinOp| {
        let is_constant = |inlet: &OutletId| part.node(inlet.node).op_is::<Const>();
        op.0.name() == "Max" && part.node(id).inputs.iter().any(is_constant)
    };
    if let Some(conv) = op.downcast_ref::<Conv>() {
        LayerKind::Conv {
            input_maps: conv.input_channels() as u64,
            filters: conv.output_channels() as u64,
            window_elements: area(&conv.pool_spec.kernel_shape),
            stride_elements: area(&conv.pool_spec.strides()),
        }
    } else if let Some(spec) = op.downcast_ref::<MaxPool>().map(|op| &op.pool_spec) {
        pool(spec)
    } else if let Some(spec) = op.downcast_ref::<SumPool>().map(|op| &op.pool_spec) {
        pool(spec)
    } else if op.is::<Lrn>() {
        LayerKind::Lrn
    } else if let Some(Product { columns, output_elements, weights }) = product.filter(|_| op.is::<EinSum>()) {
        let filters = (output_elements / columns).max(1);
        match columns {
            1 => LayerKind::FullyConnected,
            _ => LayerKind::Conv { input_maps: weights / filters, filters, window_elements: 1, stride_elements: 1 },
        }
    } else if op.downcast_ref::<TypedBinOp>().is_some_and(bounded_by_constant) {
        LayerKind::Relu
    } else {
        LayerKind::Other
    }
}

/// tract adds biases and applies bounds inside a matrix product, if nothing else wants the product.
/// A convolution ends in a change of shape, and what follows stays an operator of its own.
fn is_fused(part: &TypedModel, id: usize) -> bool {
    let product = |mut node: usize| {
        while !part.node(node).op_is::<EinSum>() {
            match part.node(node).inputs.iter().find(|inlet| !part.node(inlet.node).op_is::<Const>()) {
                Some(inlet) if is_fused(part, node) => node = inlet.node,
                _ => return false,
            }
        }
        true
    };
    part.node(id).inputs.iter().any(|inlet| {
        let only_use = part.node(inlet.node).outputs[inlet.slot].successors.len() == 1;
        only_use && is_element_wise(part, *inlet, id) && product(inlet.node)
    })
}

/// Whether the node computes each element of its only output from one element of `input`.
pub(crate) fn is_element_wise(model: &TypedModel, input: OutletId, id: usize) -> bool {
    let node = model.node(id);
    let element_wise = node.op_is::<ElementWiseOp>() || node.op_is::<TypedBinOp>() || node.op_is::<Cast>();
    let facts = (model.outlet_fact(input), model.outlet_fact(OutletId::new(id, 0)));
    let same_size = node.outputs.len() == 1 && matches!(facts, (Ok(a), Ok(b)) if a.shape == b.shape);
    element_wise && same_size
}
