//! Operators that are faster here than tract's own, put in their place once a network is decluttered.
//!
//! One pass over the network, in the order in which it runs. A convolution takes in what follows it alone: a scale and a
//! shift go into its weights and bias, then one sum with another tensor, bounds, and steps for each element. Nothing is
//! taken in that somebody else reads, or that is an output of the network. What is not understood stays tract's.

mod conv;
mod matrix;
mod pool;
mod scratch;
mod sixteen;
mod slide;
mod steps;
mod team;
mod window;

use crate::vector::is_wide;
use conv::FastConv;
use matrix::FastMatrix;
use pool::{FastPool, Kind};
use std::collections::{HashMap, HashSet};
use steps::{FastSteps, PerChannel, Step};
use tract_nnef::internal::translator::{self, Translate};
use tract_nnef::internal::*;
use tract_nnef::tract_core::ops::binary::TypedBinOp;
use tract_nnef::tract_core::ops::cnn::{Conv, MaxPool, PaddingSpec, PoolSpec, SumPool};
use tract_nnef::tract_core::ops::einsum::EinSum;
use tract_nnef::tract_core::ops::nn::DataFormat;
use window::Windows;

/// A chain of fewer steps is left to tract.
const STEPS_MIN: usize = 2;
/// So few pixels to a matrix are tract's: its kernels for thin products are better.
const PIXELS_MIN: usize = 8;

/// A part of what is done here. What each gains is measured by doing without it.
#[allow(dead_code)] // Nobody does without any but to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Convolutions,
    Depthwise,
    /// What convolutions take in.
    Following,
    Pools,
    Chains,
}

/// Replaces what is faster here, but for one part; on processors without wide vectors, nothing is.
pub(crate) fn speed_up(model: TypedModel, without: Option<Part>) -> TractResult<TypedModel> {
    if !is_wide() {
        return Ok(model);
    }
    let outputs = model.output_outlets()?.iter().copied().collect();
    let mut found = Found { outputs, without, ..Found::default() };
    for id in model.eval_order()? {
        if !found.taken.contains(&id) {
            found.look(&model, id)?;
        }
    }
    found.translate_model(&model)
}

/// What is put in whose place.
#[derive(Debug, Default)]
struct Found {
    outputs: HashSet<OutletId>,
    without: Option<Part>,
    /// By the node that gives the result: the operator, and what it reads.
    made: HashMap<usize, (Box<dyn TypedOp>, TVec<OutletId>)>,
    /// Nodes that became part of one.
    taken: HashSet<usize>,
}

/// A convolution in the making: the network's node whose result it gives so far.
struct Growing {
    end: usize,
    taken: Vec<usize>,
}

impl Found {
    fn look(&mut self, model: &TypedModel, id: usize) -> TractResult<()> {
        let node = model.node(id);
        if let Some(op) = node.op_as::<Conv>() {
            let Some((conv, axis)) = convolution(model, node, op)? else { return Ok(()) };
            self.grow(model, id, conv, node.inputs[0], axis)
        } else if let Some(op) = node.op_as::<EinSum>() {
            let Some(product) = Product::of(model, node, op)? else { return Ok(()) };
            self.product(model, node, product)
        } else if let Some(op) = node.op_as::<MaxPool>() {
            let is_plain = op.with_index_outputs.is_none() && !op.pool_spec.data_format.c_is_last();
            self.pool(model, node, is_plain.then_some(&op.pool_spec), Kind::Greatest)
        } else if let Some(op) = node.op_as::<SumPool>() {
            // Of windows that reach past what is around the image, only a part is counted.
            let reaches_past = matches!(op.pool_spec.padding, PaddingSpec::ExplicitOnnxPool(_, _, true));
            let is_understood = op.normalize && !(op.count_include_pad && reaches_past);
            let is_plain = is_understood && !op.pool_spec.data_format.c_is_last();
            let kind = Kind::Mean { around_counts: op.count_include_pad };
            self.pool(model, node, is_plain.then_some(&op.pool_spec), kind)
        } else {
            self.chain(model, id)
        }
    }

    /// The convolution with all that it can take in.
    fn grow(
        &mut self,
        model: &TypedModel,
        id: usize,
        mut conv: FastConv,
        input: OutletId,
        axis: Option<usize>,
    ) -> TractResult<()> {
        if self.is_without(if conv.is_depthwise() { Part::Depthwise } else { Part::Convolutions }) {
            return Ok(());
        }
        let mut growing = Growing { end: id, taken: Vec::new() };
        let mut inputs = tvec!(input);
        // Of other layouts, what follows would have to be told apart by the place of its channels.
        if let Some(axis) = axis.filter(|_| !self.is_without(Part::Following)) {
            while let Some(next) = self.only_reader(model, growing.end) {
                if let Some(step) = step(model, growing.end, next, Some(axis))? {
                    conv.take_in(step);
                } else if let Some(other) = self.other_summand(model, growing.end, next).filter(|_| conv.can_add()) {
                    conv.adds = true;
                    inputs.push(other);
                } else {
                    break;
                }
                growing.taken.push(growing.end);
                growing.end = next;
            }
            while let Some((gate, inner, end)) = self.gate(model, growing.end)? {
                conv.take_in(gate);
                growing.taken.push(growing.end);
                growing.taken.extend(inner);
                growing.end = end;
                while let Some(next) = self.only_reader(model, growing.end) {
                    let Some(step) = step(model, growing.end, next, Some(axis))? else { break };
                    conv.take_in(step);
                    growing.taken.push(growing.end);
                    growing.end = next;
                }
            }
        }
        self.taken.extend(growing.taken);
        self.taken.insert(growing.end);
        self.made.insert(growing.end, (Box::new(conv), inputs));
        Ok(())
    }

    fn product(&mut self, model: &TypedModel, node: &TypedNode, product: Product) -> TractResult<()> {
        let output = product.output.clone();
        if product.columns >= PIXELS_MIN {
            let (input, axis) = (product.input, product.filters_at);
            self.grow(model, node.id, product.into_convolution()?, input, Some(axis))?;
        } else if product.columns == 1 {
            let matrix = FastMatrix::new(product.matrix, product.is_by_filters, output);
            self.taken.insert(node.id);
            self.made.insert(node.id, (Box::new(matrix), tvec!(product.input)));
        }
        Ok(())
    }

    fn pool(&mut self, model: &TypedModel, node: &TypedNode, spec: Option<&PoolSpec>, kind: Kind) -> TractResult<()> {
        let input = model.outlet_fact(node.inputs[0])?;
        let windows = spec.map(|spec| Windows::of(spec, input)).transpose()?.flatten();
        let output = node.outputs[0].fact.shape.as_concrete();
        if let (Some(windows), Some(output), false) = (windows, output, self.is_without(Part::Pools)) {
            let pool = FastPool::new(windows, kind, output.into());
            self.taken.insert(node.id);
            self.made.insert(node.id, (Box::new(pool), node.inputs.as_slice().into()));
        }
        Ok(())
    }

    /// A chain of steps that no convolution took in.
    fn chain(&mut self, model: &TypedModel, id: usize) -> TractResult<()> {
        if self.is_without(Part::Chains) {
            return Ok(());
        }
        let Some(input) = model.node(id).inputs.iter().copied().find(|inlet| constant(model, *inlet).is_none()) else {
            return Ok(());
        };
        let fact = model.outlet_fact(input)?;
        let Some(dims) = fact.shape.as_concrete().filter(|dims| fact.datum_type.is::<f32>() && !dims.contains(&0))
        else {
            return Ok(());
        };
        // The axis of the channels is that on which the first constant with several values has them. Of short rows, as where
        // channels come last, each would be a loop of its own.
        let pixels = |axis: Option<usize>| dims[axis.map_or(0, |axis| axis + 1)..].iter().product::<usize>();
        if pixels(None) < PIXELS_MIN {
            return Ok(());
        }
        let mut axis = None;
        let (mut steps, mut end, mut taken, mut from) = (Vec::new(), None, Vec::new(), input);
        loop {
            let next = match end {
                None => Some(id),
                Some(end) => self.only_reader(model, end),
            };
            let Some(next) = next else { break };
            if axis.is_none() {
                axis = channel_axis(model, next, dims).filter(|axis| pixels(Some(*axis)) >= PIXELS_MIN);
            }
            let Some(step) = step_of(model, from, next, axis)? else { break };
            steps.push(step);
            taken.extend(end);
            (end, from) = (Some(next), OutletId::new(next, 0));
        }
        let Some(end) = end.filter(|_| steps.len() >= STEPS_MIN) else { return Ok(()) };
        let (channels, pixels) = (axis.map_or(1, |axis| dims[axis]), pixels(axis));
        self.taken.extend(taken);
        self.taken.insert(end);
        self.made.insert(end, (Box::new(FastSteps { channels, pixels, steps }), tvec!(input)));
        Ok(())
    }

    fn is_without(&self, part: Part) -> bool {
        self.without == Some(part)
    }

    /// The one node that reads what this one gives, if nobody else does.
    fn only_reader(&self, model: &TypedModel, id: usize) -> Option<usize> {
        let node = model.node(id);
        let [output] = &node.outputs[..] else { return None };
        let [reader] = &output.successors[..] else { return None };
        (!self.outputs.contains(&OutletId::new(id, 0)) && !self.taken.contains(&reader.node)).then_some(reader.node)
    }

    /// What `next` adds to what this node gives, if it is as large.
    fn other_summand(&self, model: &TypedModel, id: usize, next: usize) -> Option<OutletId> {
        let node = model.node(next);
        let is_sum = node.op_as::<TypedBinOp>().is_some_and(|op| op.0.name() == "Add" && op.1.is_none());
        let [a, b] = node.inputs[..] else { return None };
        let other = if a.node == id { b } else { a };
        let (ours, others) = (&model.node(id).outputs[0].fact, model.outlet_fact(other).ok()?);
        let fits = ours.shape == others.shape && others.datum_type.is::<f32>() && others.konst.is_none();
        (is_sum && fits && other.node != id && node.outputs[0].fact.shape == ours.shape).then_some(other)
    }

    /// A gate behind the node: it is shifted, bounded, and multiplied with itself. The nodes in between, and the product's.
    fn gate(&self, model: &TypedModel, id: usize) -> TractResult<Option<(Step, Vec<usize>, usize)>> {
        let node = model.node(id);
        let [output] = &node.outputs[..] else { return Ok(None) };
        if output.successors.len() != 2 || self.outputs.contains(&OutletId::new(id, 0)) {
            return Ok(None);
        }
        let (mut shift, mut least, mut most) = (0.0, f32::NEG_INFINITY, f32::INFINITY);
        for (first, product) in [(0, 1), (1, 0)].map(|(a, b)| (output.successors[a].node, output.successors[b].node)) {
            let is_product =
                model.node(product).op_as::<TypedBinOp>().is_some_and(|op| op.0.name() == "Mul" && op.1.is_none());
            if !is_product || first == product {
                continue;
            }
            let (mut inner, mut at, mut next) = (Vec::new(), id, Some(first));
            while let Some(here) = next.filter(|next| *next != product) {
                match step(model, at, here, None)? {
                    Some(Step::Shift(by)) if inner.is_empty() && by.0.len() == 1 => shift = by.0[0],
                    Some(Step::AtLeast(bound)) => least = f32::max(least, bound),
                    Some(Step::AtMost(bound)) if bound >= least => most = f32::min(most, bound),
                    _ => return Ok(None),
                }
                inner.push(here);
                (at, next) = (here, self.only_reader(model, here));
            }
            if next == Some(product) && !inner.is_empty() && !self.taken.contains(&product) {
                return Ok(Some((Step::Gate { shift, least, most }, inner, product)));
            }
        }
        Ok(None)
    }
}

impl Translate<TypedFact, Box<dyn TypedOp>, TypedFact, Box<dyn TypedOp>> for Found {
    fn translate_node(
        &self,
        source: &TypedModel,
        node: &TypedNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
    ) -> TractResult<TVec<OutletId>> {
        if let Some((op, inputs)) = self.made.get(&node.id) {
            let inputs: TVec<OutletId> = inputs.iter().map(|inlet| mapping[inlet]).collect();
            return target.wire_node(&node.name, op.clone(), &inputs);
        }
        if self.taken.contains(&node.id) {
            return Ok(tvec!());
        }
        translator::IntoTranslator.translate_node(source, node, target, mapping)
    }
}

impl FastConv {
    /// A sum is put in before bounds and steps.
    fn can_add(&self) -> bool {
        !self.adds && self.least == f32::NEG_INFINITY && self.most == f32::INFINITY && self.steps.is_empty()
    }

    fn take_in(&mut self, step: Step) {
        match step {
            Step::Scale(by) if self.can_add() => self.scale(&by),
            Step::Shift(by) if self.can_add() => {
                self.bias = self.bias.iter().enumerate().map(|(filter, bias)| bias + by.of(filter)).collect();
            }
            Step::AtLeast(bound) if self.steps.is_empty() && self.most == f32::INFINITY => {
                self.least = f32::max(self.least, bound);
            }
            Step::AtMost(bound) if self.steps.is_empty() && bound >= self.least => {
                self.most = f32::min(self.most, bound);
            }
            step => self.steps.push(step),
        }
    }
}

/// A convolution as it is here; and the axis of its channels, if they come before its pixels.
fn convolution(model: &TypedModel, node: &TypedNode, op: &Conv) -> TractResult<Option<(FastConv, Option<usize>)>> {
    let [input, kernel, bias] = node.inputs[..] else { return Ok(None) };
    let fact = model.outlet_fact(input)?;
    let (Some(kernel), Some(bias)) = (constant(model, kernel), constant(model, bias)) else { return Ok(None) };
    let output = &node.outputs[0].fact;
    let Some(output) = output.shape.as_concrete().filter(|_| op.q_params.is_none() && output.datum_type.is::<f32>())
    else {
        return Ok(None);
    };
    if !kernel.datum_type().is::<f32>() || !bias.datum_type().is::<f32>() || op.group == 0 {
        return Ok(None);
    }
    let Some(windows) = Windows::of(&op.pool_spec, fact)? else { return Ok(None) };
    let (groups, filters) = (op.group, op.output_channels());
    let taps = windows.kernel[0] * windows.kernel[1];
    if windows.channels % groups != 0 || filters % groups != 0 || filters == 0 {
        return Ok(None);
    }
    let is_depthwise = groups == windows.channels && groups == filters;
    if is_depthwise && windows.channels_last || !is_depthwise && windows.pixels() < PIXELS_MIN {
        return Ok(None);
    }
    // By groups, filters, channels and taps.
    let mut kernel = kernel.into_tensor();
    for axis in op.kernel_fmt.kernel_as_group_o_i_hw_ops(kernel.shape(), groups) {
        axis.change_tensor(&mut kernel, false)?;
    }
    let kernel = kernel.try_as_plain_ram()?;
    let weights = kernel.as_slice::<f32>()?;
    let bias = bias.try_as_plain_ram()?;
    let bias = match bias.as_slice::<f32>()? {
        [one] => vec![*one; filters],
        all => all.to_vec(),
    };
    if bias.len() != filters || weights.len() != filters * windows.channels / groups * taps {
        return Ok(None);
    }
    let axis = match op.pool_spec.data_format {
        DataFormat::NCHW => Some(1),
        DataFormat::CHW => Some(0),
        DataFormat::NHWC | DataFormat::HWC => None,
    };
    Ok(Some((FastConv::new(windows, groups, weights, bias, output.into()), axis)))
}

/// A product of a constant matrix with columns: a convolution of single pixels.
struct Product {
    input: OutletId,
    matrix: Arc<Tensor>,
    /// Whether a row of the matrix has the weights of one filter, and not those of one channel.
    is_by_filters: bool,
    channels: usize,
    filters: usize,
    /// Where in the output the filters are.
    filters_at: usize,
    columns: usize,
    output: TVec<usize>,
}

impl Product {
    fn of(model: &TypedModel, node: &TypedNode, op: &EinSum) -> TractResult<Option<Self>> {
        let [a, b] = node.inputs[..] else { return Ok(None) };
        let (slot, input, matrix) = match (constant(model, a), constant(model, b)) {
            (None, Some(matrix)) => (0, a, matrix),
            (Some(matrix), None) => (1, b, matrix),
            _ => return Ok(None),
        };
        let (fact, output) = (model.outlet_fact(input)?, &node.outputs[0].fact);
        let (Some(dims), Some(given)) = (fact.shape.as_concrete(), output.shape.as_concrete()) else { return Ok(None) };
        let is_float = fact.datum_type.is::<f32>() && output.datum_type.is::<f32>() && matrix.datum_type().is::<f32>();
        if !is_float || op.q_params.is_some() || [dims, given].concat().contains(&0) {
            return Ok(None);
        }
        // Where each axis is: in what is read, in the matrix, in what is given.
        let (mut summed, mut filter, mut pixels) = (Vec::new(), None, Vec::new());
        for axis in op.axes.iter_all_axes() {
            match (&axis.inputs[slot][..], &axis.inputs[1 - slot][..], &axis.outputs[0][..]) {
                ([at], [row], []) => summed.push((*at, *row)),
                ([], [row], [to]) if filter.is_none() => filter = Some((*to, *row)),
                ([at], [], [to]) => pixels.push((*at, Some(*to))),
                ([at], [], []) if dims[*at] == 1 => pixels.push((*at, None)),
                ([], [], [to]) if given[*to] == 1 => {}
                _ => return Ok(None),
            }
        }
        // Of several axes that are summed (an image, in a fully connected layer), the order is to be the same on both sides.
        summed.sort_unstable();
        let ([(first, _), ..], Some((filters_at, filters_in))) = (&summed[..], filter) else { return Ok(None) };
        let is_by_filters = filters_in == 0;
        let is_a_matrix = (is_by_filters || filters_in + 1 == matrix.rank())
            && summed.iter().map(|(_, row)| *row).eq((0..matrix.rank()).filter(|axis| *axis != filters_in));
        if !is_a_matrix {
            return Ok(None);
        }
        let channels_at = if summed.len() == 1 { *first } else { dims.len() };
        // Channels first, then pixels in the same order on both sides; what comes before is a single one.
        pixels.retain(|(at, _)| dims[*at] > 1);
        pixels.sort_unstable();
        let is_in_order = pixels.iter().all(|(at, to)| *at > channels_at && to.is_some_and(|to| to > filters_at))
            && pixels.is_sorted_by_key(|(_, to)| *to);
        if !is_in_order {
            return Ok(None);
        }
        Ok(Some(Self {
            input,
            matrix,
            is_by_filters,
            channels: summed.iter().map(|(at, _)| dims[*at]).product(),
            filters: given[filters_at],
            filters_at,
            columns: pixels.iter().map(|(at, _)| dims[*at]).product(),
            output: given.into(),
        }))
    }

    fn into_convolution(self) -> TractResult<FastConv> {
        let mut matrix = self.matrix.into_tensor();
        if !self.is_by_filters {
            matrix = matrix.permute_axes(&[1, 0])?;
        }
        let weights = matrix.try_as_plain_ram()?;
        let windows = Windows::single_pixels(self.channels, self.columns);
        Ok(FastConv::new(windows, 1, weights.as_slice::<f32>()?, vec![0.0; self.filters], self.output))
    }
}

fn constant(model: &TypedModel, outlet: OutletId) -> Option<Arc<Tensor>> {
    model.outlet_fact(outlet).ok()?.konst.clone()
}

/// What `next` does to each element that this node gives, if that is a step.
fn step(model: &TypedModel, id: usize, next: usize, axis: Option<usize>) -> TractResult<Option<Step>> {
    step_of(model, OutletId::new(id, 0), next, axis)
}

fn step_of(model: &TypedModel, from: OutletId, next: usize, axis: Option<usize>) -> TractResult<Option<Step>> {
    let node = model.node(next);
    let (Some(op), [a, b]) = (node.op_as::<TypedBinOp>().filter(|op| op.1.is_none()), &node.inputs[..]) else {
        return Ok(None);
    };
    let is_first = *a == from;
    let Some(by) = constant(model, if is_first { *b } else { *a }).filter(|_| is_first || *b == from) else {
        return Ok(None);
    };
    let fact = model.outlet_fact(from)?;
    let is_float = fact.datum_type.is::<f32>() && by.datum_type().is::<f32>();
    if !is_float || fact.shape != node.outputs[0].fact.shape || !is_per_channel(by.shape(), axis) {
        return Ok(None);
    }
    let by = by.try_as_plain_ram()?;
    let (values, negated) = (by.as_slice::<f32>()?, by.as_slice::<f32>()?.iter().map(|value| -value));
    Ok(match (op.0.name(), values) {
        ("Mul", values) => Some(Step::Scale(PerChannel(values.into()))),
        ("Add", values) => Some(Step::Shift(PerChannel(values.into()))),
        ("Sub", _) if is_first => Some(Step::Shift(PerChannel(negated.collect()))),
        ("Max", [bound]) if !bound.is_nan() => Some(Step::AtLeast(*bound)),
        ("Min", [bound]) if !bound.is_nan() => Some(Step::AtMost(*bound)),
        _ => None,
    })
}

/// One value, or several along the axis.
fn is_per_channel(dims: &[usize], axis: Option<usize>) -> bool {
    dims.iter().enumerate().all(|(at, size)| *size == 1 || Some(at) == axis)
}

/// The only axis along which the node's constant has several values, as many as there are channels.
fn channel_axis(model: &TypedModel, id: usize, dims: &[usize]) -> Option<usize> {
    let constant = model.node(id).inputs.iter().find_map(|inlet| constant(model, *inlet))?;
    let axis = constant.shape().iter().position(|size| *size > 1)?;
    (constant.shape().get(axis) == dims.get(axis)).then_some(axis)
}

impl FastConv {
    /// Has the filters give what they gave times this.
    fn scale(&mut self, by: &PerChannel) {
        self.bias = self.bias.iter().enumerate().map(|(filter, bias)| bias * by.of(filter)).collect();
        self.scale_weights(by);
    }
}

#[cfg(test)]
mod tests;
