//! Where a network's channels are.
//!
//! Compiled for WebAssembly, tract has a kernel for depthwise convolutions whose channels come last, and moves them there. Ours
//! want them first. But without the pass that moves axes, a reshape stays around each product and each depthwise convolution, and
//! nothing that follows one is taken in by it. So the pass runs, with depthwise convolutions that wish for nothing.

use tract_nnef::internal::*;
use tract_nnef::tract_core::ops::cnn::Conv;
use tract_nnef::tract_core::optim::Optimizer;

/// Declutters a network; channels stay where they are.
pub(crate) fn declutter(model: &mut TypedModel) -> TractResult<()> {
    hold(model);
    Optimizer::declutter().optimize(model)?;
    for node in &mut model.nodes {
        if let Some(ChannelsStay(conv)) = node.op_as::<ChannelsStay>() {
            node.op = Box::new(conv.clone());
        }
    }
    Ok(())
}

fn hold(model: &mut TypedModel) {
    for node in &mut model.nodes {
        if let Some(conv) = node.op_as::<Conv>().filter(|conv| is_depthwise(conv)) {
            node.op = Box::new(ChannelsStay(conv.clone()));
        }
    }
}

fn is_depthwise(conv: &Conv) -> bool {
    conv.group > 1 && conv.group == conv.input_channels() && conv.group == conv.output_channels()
}

/// A depthwise convolution that is content with the axes that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ChannelsStay(Conv);

impl Op for ChannelsStay {
    fn name(&self) -> StaticName {
        self.0.name()
    }

    op_as_typed_op!();
}

impl EvalOp for ChannelsStay {
    op_out_of_plan!();

    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        self.0.eval(context, inputs)
    }
}

impl TypedOp for ChannelsStay {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.0.output_facts(inputs)
    }

    fn axes_mapping(&self, inputs: &[&TypedFact], outputs: &[&TypedFact]) -> TractResult<AxesMapping> {
        self.0.axes_mapping(inputs, outputs)
    }

    fn declutter(&self, model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
        let mut patch = self.0.declutter(model, node)?;
        if let Some(patch) = &mut patch {
            hold(&mut patch.model);
        }
        Ok(patch)
    }

    fn change_axes(
        &self,
        model: &TypedModel,
        node: &TypedNode,
        io: InOut,
        change: &AxisOp,
    ) -> TractResult<Option<AxisChangeConsequence>> {
        let mut changed = self.0.change_axes(model, node, io, change)?;
        if let Some(op) = changed.as_mut().and_then(|changed| changed.substitute_op.as_mut())
            && let Some(conv) = op.downcast_ref::<Conv>()
        {
            *op = Box::new(Self(conv.clone()));
        }
        Ok(changed)
    }
}
