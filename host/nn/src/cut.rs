//! Where a network can be cut, and the segments between the cuts.
//!
//! A *boundary* is a tensor through which everything that an exit needs must pass: cut there, and a
//! single activation carries all that the rest of the way to that exit depends on. In terms of the
//! graph, the boundaries of an exit are the dominators of its output, seen from the input. The
//! dominators of all nodes form a tree, so the boundaries of all exits do too: its root is the
//! network's input, its edges are the segments, and an exit's *path* is the way from the root to its
//! output. Trunk segments lie on several paths, an exit's branch on one.
//!
//! Two kinds of boundary are left out. That between an operator and an element-wise one behind it (a
//! convolution and its bias or ReLU): as many elements cross after the element-wise operator as
//! before it, so cutting there gains nothing, and it would keep tract from fusing the two. And that
//! behind element-wise operators on the input (its normalisation): what crosses there is the input
//! itself in other numbers, no smaller, and no more private.

use crate::graph::{Graph, concrete, nnef};
use crate::guard::guarded;
use crate::layer::{describe, is_element_wise};
use crate::{Fact, GraphError, GraphFormat, Imported, Layer};
use std::collections::{BTreeMap, HashSet};
use tract_onnx::prelude::{OutletId, TractResult, TypedModel};
use tract_onnx::tract_core::ops::source::TypedSource;

/// A network as a tree of segments.
#[derive(Debug)]
pub struct Cut {
    /// Type, dimensions and name of each boundary's activation; the first is the network's input.
    pub boundaries: Vec<Boundary>,
    /// Each segment comes after those it depends on.
    pub segments: Vec<SegmentGraph>,
    /// The exits in the network's order.
    pub exits: Vec<Exit>,
}

/// A place where the network can be cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// The tensor's name in the network.
    pub name: String,
    /// What crosses here.
    pub fact: Fact,
}

/// The layers between two neighbouring boundaries, as a graph of its own.
#[derive(Debug)]
pub struct SegmentGraph {
    /// The boundary it starts from.
    pub from: usize,
    /// The boundary it leads to.
    pub to: usize,
    /// What it does, in order.
    pub layers: Vec<Layer>,
    /// Multiply-accumulates of one run.
    pub macs: u64,
    /// The graph, written down.
    pub graph: Vec<u8>,
    /// How it is written.
    pub format: GraphFormat,
}

/// An output of the network and the way to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The output's name in the file.
    pub name: String,
    /// The segments to run, from the input to this output.
    pub path: Vec<usize>,
}

impl Cut {
    pub(crate) fn of(imported: &Imported) -> Result<Self, CutError> {
        let model = &imported.model;
        let tree = Dominators::of(model).map_err(CutError::Graph)?;
        let root = model.inputs[0];
        let mut cut = Self {
            boundaries: vec![Boundary { name: imported.input.name.clone(), fact: imported.input.fact.clone() }],
            segments: Vec::new(),
            exits: Vec::new(),
        };
        let mut known = BTreeMap::from([(root, 0)]);
        let mut arriving = BTreeMap::<usize, usize>::new();
        for (port, outlet) in imported.outputs.iter().zip(&model.outputs) {
            let mut path = Vec::new();
            for pair in tree.chain(*outlet).ok_or_else(|| CutError::Detached(port.name.clone()))?.windows(2) {
                let (from, to) = (pair[0], pair[1]);
                if !known.contains_key(&to) {
                    let name = if to == *outlet { port.name.clone() } else { outlet_name(model, to) };
                    let segment = cut.segments.len();
                    cut.add(model, known[&from], from, to, name)?;
                    known.insert(to, cut.boundaries.len() - 1);
                    arriving.insert(cut.boundaries.len() - 1, segment);
                }
                path.push(arriving[&known[&to]]);
            }
            cut.exits.push(Exit { name: port.name.clone(), path });
        }
        Ok(cut)
    }

    fn add(
        &mut self,
        model: &TypedModel,
        from: usize,
        start: OutletId,
        end: OutletId,
        name: String,
    ) -> Result<(), CutError> {
        let failed = |why: String| CutError::Segment { name: name.clone(), why };
        let fact = guarded(|| Ok(model.outlet_fact(end)?.clone())).map_err(failed)?;
        let fact = concrete(&fact).map_err(failed)?;
        let part = guarded(|| extract(model, start, end)).map_err(failed)?;
        let layers = guarded(|| describe(&part)).map_err(failed)?;
        let macs = layers.iter().map(|layer| layer.macs).sum();
        let graph = write(&part).map_err(failed)?;
        read_back(&graph, &self.boundaries[from].fact, &fact).map_err(failed)?;
        self.boundaries.push(Boundary { name, fact });
        let to = self.boundaries.len() - 1;
        self.segments.push(SegmentGraph { from, to, layers, macs, graph, format: GraphFormat::Nnef });
        Ok(())
    }
}

/// The part of the network that leads from one tensor to another.
fn extract(model: &TypedModel, start: OutletId, end: OutletId) -> TractResult<TypedModel> {
    let mut part = model.clone();
    part.set_input_outlets(&[start])?;
    part.select_output_outlets(&[end])?;
    part.compact()?;
    // tract would happily leave a second, undeclared source in the cone: a skip that crosses the cut.
    let sources = part.nodes().iter().filter(|node| node.op_is::<TypedSource>()).count();
    if sources != 1 {
        return Err(tract_onnx::prelude::TractError::msg(format!("it depends on {sources} tensors, not on one")));
    }
    part.into_decluttered()
}

pub(crate) fn write(part: &TypedModel) -> Result<Vec<u8>, String> {
    let deterministic = true;
    guarded(|| nnef().write_to_tar_with_config(part, Vec::new(), false, deterministic))
}

/// What was written must be what is read: not every network survives NNEF.
fn read_back(graph: &[u8], input: &Fact, output: &Fact) -> Result<(), String> {
    let loaded = Graph::load(graph, GraphFormat::Nnef).map_err(|e: GraphError| e.to_string())?;
    let facts = |ports: &[crate::Port]| ports.iter().map(|port| port.fact.clone()).collect::<Vec<_>>();
    if facts(loaded.inputs()) != [input.clone()] || facts(loaded.outputs()) != [output.clone()] {
        return Err(format!(
            "it was written as {input} -> {output} but is read back as {:?} -> {:?}",
            loaded.inputs(),
            loaded.outputs()
        ));
    }
    Ok(())
}

pub(crate) fn outlet_name(model: &TypedModel, outlet: OutletId) -> String {
    model.outlet_label(outlet).map_or_else(|| model.node(outlet.node).name.clone(), str::to_owned)
}

/// For every node that depends on the input, its closest dominator (Cooper, Harvey and Kennedy's
/// algorithm; on a graph without cycles one pass in topological order is enough).
struct Dominators {
    /// Position in topological order, closest dominator; both by node.
    order: BTreeMap<usize, usize>,
    closest: BTreeMap<usize, usize>,
    /// Nodes that are no boundary: several of their outputs are used, what follows is fused, or they
    /// only rescale the input.
    passed_over: HashSet<usize>,
    root: OutletId,
}

impl Dominators {
    fn of(model: &TypedModel) -> Result<Self, String> {
        let root = model.inputs[0];
        let mut tree = Self {
            order: BTreeMap::from([(root.node, 0)]),
            closest: BTreeMap::new(),
            passed_over: HashSet::new(),
            root,
        };
        let mut rescaled = HashSet::from([root.node]);
        for id in model.eval_order().map_err(|e| format!("{e:#}"))? {
            let node = model.node(id);
            let preceding = node.inputs.iter().map(|inlet| inlet.node).filter(|n| tree.order.contains_key(n));
            let preceding: Vec<usize> = preceding.collect();
            if preceding.iter().any(|before| rescaled.contains(before)) && is_element_wise(model, root, id) {
                rescaled.insert(id);
                tree.passed_over.insert(id);
            }
            if let Some(dominator) = preceding.into_iter().reduce(|a, b| tree.common(a, b)) {
                tree.order.insert(id, tree.order.len());
                tree.closest.insert(id, dominator);
            }
            let used = |slot: usize| {
                !node.outputs[slot].successors.is_empty() || model.outputs.contains(&OutletId::new(id, slot))
            };
            if (0..node.outputs.len()).filter(|slot| used(*slot)).count() > 1 || only_fused_use(model, id) {
                tree.passed_over.insert(id);
            }
        }
        Ok(tree)
    }

    fn common(&self, mut a: usize, mut b: usize) -> usize {
        while a != b {
            let later = if self.order[&a] > self.order[&b] { &mut a } else { &mut b };
            *later = self.closest[later];
        }
        a
    }

    /// The boundaries from the input to `end`, both included; `None` if `end` does not depend on
    /// the input.
    fn chain(&self, end: OutletId) -> Option<Vec<OutletId>> {
        self.order.get(&end.node)?;
        let mut chain = vec![end];
        let mut node = end.node;
        while let Some(dominator) = self.closest.get(&node) {
            node = *dominator;
            if node == self.root.node {
                chain.push(self.root);
            } else if !self.passed_over.contains(&node) {
                chain.push(OutletId::new(node, 0));
            }
        }
        chain.reverse();
        Some(chain)
    }
}

/// Whether the node's output goes into one element-wise operator of the same size and nowhere else.
fn only_fused_use(model: &TypedModel, id: usize) -> bool {
    let outlet = OutletId::new(id, 0);
    let [use_] = model.node(id).outputs[0].successors.as_slice() else { return false };
    is_element_wise(model, outlet, use_.node) && !model.outputs.contains(&outlet)
}

/// Why a network cannot be cut into segments.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// The graph itself is broken.
    #[error("the network's graph is broken: {0}")]
    Graph(String),
    /// An output that is a constant.
    #[error("output '{0}' does not depend on the network's input")]
    Detached(String),
    /// A segment cannot be written down and read back.
    #[error("the segment that ends at '{name}' cannot be made: {why}")]
    Segment {
        /// The tensor the segment leads to.
        name: String,
        /// What went wrong.
        why: String,
    },
}
