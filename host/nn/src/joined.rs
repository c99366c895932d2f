//! Graphs that follow each other as one, for a host that runs them in one go.
//!
//! tract has prepared each of them already; its operators are taken over as they are, with the weights that they share, and
//! only the edges between them are new. So answers keep their bits, nothing is optimised again, and next to no memory is
//! taken. What is spared is what it costs to begin and end each of them.

use crate::graph::{Loaded, Parts, Runner};
use crate::guard::guarded;
use crate::worth::Chosen;
use crate::{Cost, Graph, GraphError, Port};
use std::collections::HashMap;
use tract_nnef::internal::{InletId, IntoRunnable, OutletId, TractResult, TypedModel, TypedOp, bail};
use tract_onnx::tract_core::ops::source::TypedSource;

/// One of the graphs. Tensors have numbers of the caller's own.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// What is run.
    pub graph: &'a Graph,
    /// The tensors that it takes, in the graph's order.
    pub takes: &'a [usize],
    /// The tensors that it gives, in the graph's order.
    pub gives: &'a [usize],
}

impl Graph {
    /// Joins graphs, each behind those that it depends on. The result takes what none of them gives, in the order in which it
    /// is met first, and gives the tensors `gives`.
    pub fn joined(parts: &[Part<'_>], gives: &[usize]) -> Result<Self, GraphError> {
        let mut joining = Joining::default();
        for (number, part) in parts.iter().enumerate() {
            guarded(|| joining.add(number, part)).map_err(GraphError::Unusable)?;
        }
        let cost = parts.iter().fold(Cost::default(), |sum, part| sum.with(part.graph.cost()));
        joining.finish(parts.iter().map(|part| part.graph.clone()).collect(), gives, cost)
    }

    /// Whether it can be part of a joined one: another backend's cannot.
    pub fn can_be_joined(&self) -> bool {
        matches!(self.runner(), Runner::Tract(_))
    }
}

#[derive(Default)]
struct Joining {
    model: TypedModel,
    tensors: HashMap<usize, (OutletId, Port)>,
    inputs: Vec<Port>,
    /// By node, the number of its part.
    part_of: Vec<usize>,
}

impl Joining {
    fn add(&mut self, number: usize, part: &Part<'_>) -> TractResult<()> {
        let Runner::Tract(plan) = part.graph.runner() else { bail!("another backend runs it") };
        let from = plan.model();
        let mut placed: HashMap<OutletId, OutletId> = HashMap::new();
        for ((source, port), tensor) in from.inputs.iter().zip(part.graph.inputs()).zip(part.takes) {
            let outlet = match self.tensors.get(tensor) {
                Some((outlet, _)) => *outlet,
                None => {
                    let outlet = self.model.add_source(port.name.clone(), from.outlet_fact(*source)?.clone())?;
                    self.inputs.push(port.clone());
                    self.tensors.insert(*tensor, (outlet, port.clone()));
                    outlet
                }
            };
            placed.insert(*source, outlet);
        }
        for id in from.eval_order()? {
            let node = from.node(id);
            if node.op_is::<TypedSource>() {
                continue;
            }
            let facts = node.outputs.iter().map(|output| output.fact.clone()).collect();
            let op: Box<dyn TypedOp> = node.op.clone();
            let here = self.model.add_node(format!("{number}/{}", node.name), op, facts)?;
            for (slot, inlet) in node.inputs.iter().enumerate() {
                let Some(outlet) = placed.get(inlet) else { bail!("'{}' reads what is not there", node.name) };
                self.model.add_edge(*outlet, InletId::new(here, slot))?;
            }
            placed.extend((0..node.outputs.len()).map(|slot| (OutletId::new(id, slot), OutletId::new(here, slot))));
        }
        self.part_of.resize(self.model.nodes().len(), number);
        for ((end, port), tensor) in from.outputs.iter().zip(part.graph.outputs()).zip(part.gives) {
            let Some(outlet) = placed.get(end) else { bail!("'{}' is not there", port.name) };
            self.tensors.insert(*tensor, (*outlet, port.clone()));
        }
        Ok(())
    }

    fn finish(self, graphs: Vec<Graph>, gives: &[usize], cost: Cost) -> Result<Graph, GraphError> {
        let Self { mut model, tensors, inputs, part_of } = self;
        let given: Option<Vec<_>> = gives.iter().map(|tensor| tensors.get(tensor).cloned()).collect();
        let given = given.ok_or_else(|| GraphError::Unusable("it is to give what no part of it makes".to_owned()))?;
        let (ends, outputs): (Vec<OutletId>, Vec<Port>) = given.into_iter().unzip();
        let plan = guarded(|| {
            model.select_output_outlets(&ends)?;
            model.into_runnable()
        });
        let plan = plan.map_err(GraphError::Unusable)?;
        // Where the next operator is of another part, a look at the clock tells what this one took.
        let order = plan.order_without_consts();
        let mut ends = vec![None; part_of.len()];
        for (at, node) in order.iter().enumerate() {
            let next = order.get(at + 1).map(|next| part_of[*next]);
            ends[*node] = (next != Some(part_of[*node])).then_some(part_of[*node]);
        }
        let (runner, threads) = (Runner::Tract(plan), Chosen::default());
        let parts = Some(Parts { graphs, of: part_of, ends });
        Ok(Graph::from_loaded(Loaded { runner, inputs, outputs, cost, choice: None, threads, parts }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cut, Imported, Pins, Stop, Tensor, synthetic};

    /// A network that branches: of every run of its segments, the joined one gives the bits of one after the other.
    #[test]
    fn a_run_in_one_go_gives_the_same_bits() {
        let imported = Imported::from_onnx(include_bytes!("../tests/data/branching.onnx"), &Pins::default()).unwrap();
        let Cut { segments, boundaries, exits, .. } = imported.cut(&[vec![0], vec![1]]).unwrap();
        let graphs: Vec<Graph> = segments.iter().map(|s| Graph::load(&s.graph, s.format).unwrap()).collect();
        let input = synthetic::noise(&imported.inputs()[0].fact, 3).unwrap();
        let mut runs = 0;
        for exit in &exits {
            let mut before = vec![HashMap::from([(0, input.clone())])];
            for index in &exit.path {
                let mut crossing: HashMap<usize, Tensor> = before[before.len() - 1].clone();
                let taken = segments[*index].takes.iter().map(|tensor| crossing[tensor].clone()).collect();
                crossing.extend(segments[*index].gives.iter().copied().zip(graphs[*index].run_once(taken).unwrap()));
                crossing.retain(|tensor, _| boundaries[segments[*index].to].contains(tensor));
                before.push(crossing);
            }
            for start in 0..exit.path.len() {
                for end in start + 1..=exit.path.len() {
                    let part = |index: &usize| Part {
                        graph: &graphs[*index],
                        takes: &segments[*index].takes,
                        gives: &segments[*index].gives,
                    };
                    let parts: Vec<Part<'_>> = exit.path[start..end].iter().map(part).collect();
                    let is_given = |tensor: &usize| parts.iter().any(|part| part.gives.contains(tensor));
                    let to = &boundaries[segments[exit.path[end - 1]].to];
                    let gives: Vec<usize> = to.iter().copied().filter(is_given).collect();
                    let joined = Graph::joined(&parts, &gives).unwrap();
                    let named = joined.inputs().iter().map(|port| {
                        let found = before[start].iter().find(|(tensor, _)| {
                            parts.iter().any(|part| {
                                let names = part.graph.inputs().iter().map(|port| &port.name);
                                part.takes.iter().zip(names).any(|(takes, name)| takes == *tensor && *name == port.name)
                            })
                        });
                        (port.name.clone(), found.unwrap().1.clone())
                    });
                    let mut context = joined.context().unwrap();
                    let given = context.compute(named.collect(), &Stop::never()).unwrap();
                    for ((_, tensor), number) in given.iter().zip(&gives) {
                        assert_eq!(tensor.bytes(), before[end][number].bytes(), "{start}..{end}");
                    }
                    let parts_us = context.parts_us();
                    assert!(parts_us.len() == end - start && parts_us.iter().all(|us| *us > 0.0), "{parts_us:?}");
                    runs += 1;
                }
            }
        }
        assert!(runs > 10, "{runs} runs");
    }
}
