//! Where a network can be cut, and the segments between the cuts.
//!
//! A *boundary* is a set of tensors through which everything that an exit needs must pass: cut there, and
//! they carry all that the rest of the way to that exit depends on. Most are a single tensor. In terms of
//! the graph, those of an exit are the dominators of its output, seen from the input. The dominators of all
//! nodes form a tree, so the boundaries of all exits do too: its root is the network's input, its edges are
//! the segments, and an exit's *path* is the way from the root to its output. Trunk segments lie on several
//! paths, an exit's branch on one.
//!
//! Between two such tensors the network may branch and join. There it can be cut through several tensors at
//! once, in more ways than anyone could try; [`nested`](crate::nested) finds those that pay for some speed of
//! the link and the hosts, and they are boundaries as well.
//!
//! Two kinds of place are left out. That between an operator and an element-wise one behind it (a
//! convolution and its bias or ReLU): as many elements cross after the element-wise operator as
//! before it, so cutting there gains nothing, and it would keep tract from fusing the two. And that
//! behind element-wise operators on the input (its normalisation): what crosses there is the input
//! itself in other numbers, no smaller, and no more private. For the same reason the input never crosses
//! beside other tensors.

use crate::graph::{Graph, concrete, nnef};
use crate::guard::guarded;
use crate::layer::{describe, is_element_wise, work};
use crate::nested::{Block, Crossing};
use crate::{Fact, GraphError, GraphFormat, Imported, Layer, Port};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use tract_onnx::prelude::{OutletId, TractResult, TypedModel};
use tract_onnx::tract_core::ops::source::TypedSource;

/// A network as a tree of segments.
#[derive(Debug)]
pub struct Cut {
    /// The tensors that cross somewhere, by their names in the network; the first is its input.
    pub tensors: Vec<Port>,
    /// Which tensors cross each boundary, as indices into `tensors`; the first is the network's input alone.
    pub boundaries: Vec<Vec<usize>>,
    /// Each segment comes after those it depends on.
    pub segments: Vec<SegmentGraph>,
    /// The exits in the network's order.
    pub exits: Vec<Exit>,
}

/// The layers between two neighbouring boundaries, as a graph of its own.
#[derive(Debug)]
pub struct SegmentGraph {
    /// The boundary it starts from.
    pub from: usize,
    /// The boundary it leads to.
    pub to: usize,
    /// Those tensors of `from` that it uses, in the order of the graph's inputs. Others pass it by.
    pub takes: Vec<usize>,
    /// Those tensors of `to` that it makes, in the order of the graph's outputs.
    pub gives: Vec<usize>,
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
        let mut making = Making {
            cut: Self { tensors: Vec::new(), boundaries: Vec::new(), segments: Vec::new(), exits: Vec::new() },
            known: BTreeMap::new(),
            arriving: BTreeMap::new(),
        };
        making.cut.tensors.push(imported.input.clone());
        making.known.insert(root, 0);
        making.cut.boundaries.push(vec![0]);
        for (port, outlet) in imported.outputs.iter().zip(&model.outputs) {
            let chain = tree.chain(*outlet).ok_or_else(|| CutError::Detached(port.name.clone()))?;
            let (mut at, mut path, mut here) = (0, Vec::new(), vec![root]);
            for pair in chain.windows(2) {
                let between = guarded(|| tree.between(model, pair[0], pair[1])).map_err(CutError::Graph)?;
                for next in between.into_iter().chain([vec![pair[1]]]) {
                    let name = (next == [*outlet]).then(|| port.name.clone());
                    let segment = match making.arriving.get(&(at, next.clone())) {
                        Some(segment) => *segment,
                        None => making.segment(model, at, &here, &next, name)?,
                    };
                    path.push(segment);
                    (at, here) = (making.cut.segments[segment].to, next);
                }
            }
            making.cut.exits.push(Exit { name: port.name.clone(), path });
        }
        Ok(making.cut)
    }

    /// The boundary behind an exit's last segment, which its output crosses alone.
    pub fn end(&self, exit: usize) -> usize {
        self.exits[exit].path.last().map_or(0, |segment| self.segments[*segment].to)
    }
}

/// A cut in the making.
struct Making {
    cut: Cut,
    /// The tensors that have been met.
    known: BTreeMap<OutletId, usize>,
    /// The segment that leads from a boundary to these tensors.
    arriving: BTreeMap<(usize, Vec<OutletId>), usize>,
}

impl Making {
    /// Makes the segment that leads from a boundary, which these tensors cross, to the next, under the name that
    /// the file gives to its only tensor, if it does.
    fn segment(
        &mut self,
        model: &TypedModel,
        from: usize,
        here: &[OutletId],
        next: &[OutletId],
        name: Option<String>,
    ) -> Result<usize, CutError> {
        let made: Vec<OutletId> = next.iter().copied().filter(|outlet| !here.contains(outlet)).collect();
        let name = name.unwrap_or_else(|| made.last().map_or_else(String::new, |outlet| outlet_name(model, *outlet)));
        let failed = |why: String| CutError::Segment { name: name.clone(), why };
        let used: Vec<OutletId> = reached_back(model, &made, here).into_iter().collect();
        for outlet in &made {
            let fact = guarded(|| Ok(model.outlet_fact(*outlet)?.clone())).map_err(failed)?;
            let name = if made.len() == 1 { name.clone() } else { outlet_name(model, *outlet) };
            let port = Port { name, fact: concrete(&fact).map_err(failed)? };
            let tensors = &mut self.cut.tensors;
            self.known.entry(*outlet).or_insert_with(|| {
                tensors.push(port);
                tensors.len() - 1
            });
        }
        let part = guarded(|| extract(model, &used, &made)).map_err(failed)?;
        let layers = guarded(|| describe(&part)).map_err(failed)?;
        let macs = layers.iter().map(|layer| layer.macs).sum();
        let graph = write(&part).map_err(failed)?;
        let indices = |outlets: &[OutletId]| outlets.iter().map(|outlet| self.known[outlet]).collect::<Vec<_>>();
        let (takes, gives) = (indices(&used), indices(&made));
        let facts = |tensors: &[usize]| tensors.iter().map(|at| self.cut.tensors[*at].fact.clone()).collect::<Vec<_>>();
        read_back(&graph, &facts(&takes), &facts(&gives)).map_err(failed)?;
        let (to, segment) = (self.cut.boundaries.len(), self.cut.segments.len());
        self.cut.boundaries.push(indices(next));
        self.arriving.insert((from, next.to_vec()), segment);
        let format = GraphFormat::Nnef;
        self.cut.segments.push(SegmentGraph { from, to, takes, gives, layers, macs, graph, format });
        Ok(segment)
    }
}

/// Those of the tensors `here` that the tensors `made` are made of.
fn reached_back(model: &TypedModel, made: &[OutletId], here: &[OutletId]) -> BTreeSet<OutletId> {
    let (mut waiting, mut seen, mut reached) = (made.to_vec(), HashSet::new(), BTreeSet::new());
    while let Some(outlet) = waiting.pop() {
        if here.contains(&outlet) {
            reached.insert(outlet);
        } else if seen.insert(outlet.node) {
            waiting.extend(&model.node(outlet.node).inputs);
        }
    }
    reached
}

/// The part of the network that leads from some tensors to others. It is not decluttered again: the network was,
/// and where a part has two like branches one of which it gives, tract 0.23 would put one in place of the other
/// for ever.
fn extract(model: &TypedModel, used: &[OutletId], made: &[OutletId]) -> TractResult<TypedModel> {
    let mut part = model.clone();
    part.set_input_outlets(used)?;
    part.select_output_outlets(made)?;
    part.compact()?;
    // tract would happily leave another, undeclared source in the cone: a skip that crosses the cut.
    let sources = part.nodes().iter().filter(|node| node.op_is::<TypedSource>()).count();
    if sources != used.len() {
        let why = format!("it depends on {sources} tensors, not on {}", used.len());
        return Err(tract_onnx::prelude::TractError::msg(why));
    }
    Ok(part)
}

pub(crate) fn write(part: &TypedModel) -> Result<Vec<u8>, String> {
    let deterministic = true;
    guarded(|| nnef().write_to_tar_with_config(part, Vec::new(), false, deterministic))
}

/// What was written must be what is read: not every network survives NNEF.
fn read_back(graph: &[u8], inputs: &[Fact], outputs: &[Fact]) -> Result<(), String> {
    let loaded = Graph::load(graph, GraphFormat::Nnef).map_err(|e: GraphError| e.to_string())?;
    let facts = |ports: &[Port]| ports.iter().map(|port| port.fact.clone()).collect::<Vec<_>>();
    if facts(loaded.inputs()) != inputs || facts(loaded.outputs()) != outputs {
        return Err(format!(
            "it was written as {inputs:?} -> {outputs:?} but is read back as {:?} -> {:?}",
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
    /// Nodes that nothing is cut behind: what follows is fused, or they only rescale the input.
    kept: HashSet<usize>,
    /// Nodes of which several outputs are used: none of them is a boundary by itself.
    several: HashSet<usize>,
    root: OutletId,
}

impl Dominators {
    fn of(model: &TypedModel) -> Result<Self, String> {
        let root = model.inputs[0];
        let mut tree = Self {
            order: BTreeMap::from([(root.node, 0)]),
            closest: BTreeMap::new(),
            kept: HashSet::new(),
            several: HashSet::new(),
            root,
        };
        let mut rescaled = HashSet::from([root.node]);
        for id in model.eval_order().map_err(|e| format!("{e:#}"))? {
            let node = model.node(id);
            let preceding = node.inputs.iter().map(|inlet| inlet.node).filter(|n| tree.order.contains_key(n));
            let preceding: Vec<usize> = preceding.collect();
            if preceding.iter().any(|before| rescaled.contains(before)) && is_element_wise(model, root, id) {
                rescaled.insert(id);
                tree.kept.insert(id);
            }
            if let Some(dominator) = preceding.into_iter().reduce(|a, b| tree.common(a, b)) {
                tree.order.insert(id, tree.order.len());
                tree.closest.insert(id, dominator);
            }
            let used = |slot: usize| {
                !node.outputs[slot].successors.is_empty() || model.outputs.contains(&OutletId::new(id, slot))
            };
            if (0..node.outputs.len()).filter(|slot| used(*slot)).count() > 1 {
                tree.several.insert(id);
            } else if only_fused_use(model, id) {
                tree.kept.insert(id);
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

    /// The single tensors from the input to `end`, both included, that all of what leads to `end` must pass; `None` if `end` does not depend on
    /// the input.
    fn chain(&self, end: OutletId) -> Option<Vec<OutletId>> {
        self.order.get(&end.node)?;
        let mut chain = vec![end];
        let mut node = end.node;
        while let Some(dominator) = self.closest.get(&node) {
            node = *dominator;
            if node == self.root.node {
                chain.push(self.root);
            } else if !self.kept.contains(&node) && !self.several.contains(&node) {
                chain.push(OutletId::new(node, 0));
            }
        }
        chain.reverse();
        Some(chain)
    }

    /// The boundaries of several tensors between two neighbours of a chain, each a set in the network's order.
    fn between(&self, model: &TypedModel, start: OutletId, end: OutletId) -> TractResult<Vec<Vec<OutletId>>> {
        let (mut operators, mut waiting) = (BTreeSet::new(), vec![end.node]);
        while let Some(node) = waiting.pop() {
            if node != start.node && self.order.contains_key(&node) && operators.insert((self.order[&node], node)) {
                waiting.extend(model.node(node).inputs.iter().map(|inlet| inlet.node));
            }
        }
        let operators: Vec<usize> = operators.into_iter().map(|(_, node)| node).collect();
        let position: BTreeMap<usize, usize> = operators.iter().enumerate().map(|(at, node)| (*node, at)).collect();
        let work = operators.iter().map(|node| work(model, *node)).collect::<TractResult<_>>()?;
        let given = operators.iter().flat_map(|node| {
            (0..model.node(*node).outputs.len()).map(|slot| OutletId::new(*node, slot)).collect::<Vec<_>>()
        });
        let outlets: Vec<OutletId> = [start].into_iter().chain(given).collect();
        let crossing = |outlet: &OutletId| {
            let fact = model.outlet_fact(*outlet)?;
            let may_cross = *outlet != self.root && !self.kept.contains(&outlet.node);
            let bytes = concrete(fact).ok().filter(|_| may_cross || *outlet == end).map(|fact| fact.bytes() as u64);
            let successors = &model.node(outlet.node).outputs[outlet.slot].successors;
            let mut takers: Vec<usize> =
                successors.iter().filter_map(|inlet| position.get(&inlet.node).copied()).collect();
            takers.sort_unstable();
            takers.dedup();
            let giver = position.get(&outlet.node).copied();
            Ok(Crossing { bytes, giver, takers, leaves: *outlet == end })
        };
        let tensors = outlets.iter().map(crossing).collect::<TractResult<_>>()?;
        let block = Block { work, tensors };
        let boundary = |before| block.crossing(before).map(|index| outlets[index]).collect::<Vec<_>>();
        let cuts = block.cuts();
        // One tensor alone is a boundary only where it is a dominator, or it was left out for a reason.
        Ok(cuts.iter().map(boundary).filter(|crossing| crossing.len() > 1).collect())
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
