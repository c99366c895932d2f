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
//! Three kinds of place are left out. That behind which next to nothing makes less of what crosses, as a pool does
//! ([`dominated`](crate::dominated)). That between an operator and an element-wise one behind it (a
//! convolution and its bias or ReLU): as many elements cross after the element-wise operator as
//! before it, so cutting there gains nothing, and it would keep tract from fusing the two. And that
//! behind element-wise operators on the input (its normalisation): what crosses there is the input
//! itself in other numbers, no smaller, and no more private. For the same reason the input never crosses
//! beside other tensors.
//!
//! A network may have several inputs, and an exit several outputs: they cross the first boundary, and the last,
//! together. In the graph, a root before all inputs stands for the former.
//!
//! Where a segment cannot be written down as NNEF, or is not wanted so, it is a part of the ONNX file, between the closest boundaries
//! whose tensors the file knows: [`written`](crate::written).

use crate::dominated::without_dominated;
use crate::graph::concrete;
use crate::guard::guarded;
use crate::layer::{describe, is_element_wise, work};
use crate::nested::{Block, Crossing};
use crate::written::Written;
use crate::{GraphFormat, Imported, Layer, Port};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use tract_onnx::prelude::{OutletId, TractResult, TypedModel};
use tract_onnx::tract_core::ops::source::TypedSource;

/// The most tensors that cross a boundary inside the network.
const CROSSING_MAX: usize = 64;

/// A network as a tree of segments.
#[derive(Debug, Default)]
pub struct Cut {
    /// The tensors that cross somewhere, by their names in the network; the first are its inputs.
    pub tensors: Vec<Port>,
    /// Which tensors cross each boundary, as indices into `tensors`; the first is crossed by the network's inputs.
    pub boundaries: Vec<Vec<usize>>,
    /// Each segment comes after those it depends on.
    pub segments: Vec<SegmentGraph>,
    /// The exits in the network's order.
    pub exits: Vec<Exit>,
    /// For people: what could not be done in the best way, and why.
    pub notes: Vec<String>,
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

/// Outputs of the network that belong together, and the way to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The first output's name in the file.
    pub name: String,
    /// The segments to run, from the inputs to these outputs.
    pub path: Vec<usize>,
}

impl Cut {
    pub(crate) fn of(imported: &Imported, exits: &[Vec<usize>], preferred: GraphFormat) -> Result<Self, CutError> {
        let model = &imported.model;
        let tree = Dominators::of(model).map_err(CutError::Graph)?;
        let mut making = Making {
            cut: Self::default(),
            imported,
            preferred,
            values: imported.file.values(),
            known: BTreeMap::new(),
            arriving: BTreeMap::new(),
            tried: BTreeMap::new(),
        };
        making.cut.boundaries.push((0..imported.inputs.len()).collect());
        making.cut.tensors.extend(imported.inputs.iter().cloned());
        making.known.extend(model.inputs.iter().enumerate().map(|(at, input)| (*input, at)));
        let mut chains = Vec::with_capacity(exits.len());
        for outputs in exits {
            let ends: Vec<OutletId> = outputs.iter().map(|output| model.outputs[*output]).collect();
            for (output, end) in outputs.iter().zip(&ends) {
                if !tree.order.contains_key(&end.node) {
                    return Err(CutError::Detached(imported.outputs[*output].name.clone()));
                }
            }
            let single = tree.chain(&model.inputs, &ends);
            let mut chain = vec![model.inputs.to_vec()];
            for pair in single.windows(2) {
                chain.extend(guarded(|| tree.between(model, &pair[0], &pair[1])).map_err(CutError::Graph)?);
                chain.push(pair[1].clone());
            }
            chains.push(chain);
        }
        let chains = guarded(|| without_dominated(model, &tree, &chains)).map_err(CutError::Graph)?;
        for (outputs, chain) in exits.iter().zip(&chains) {
            let name = outputs.first().map_or_else(String::new, |output| imported.outputs[*output].name.clone());
            let path = making.path(chain)?;
            making.cut.exits.push(Exit { name, path });
        }
        Ok(making.cut)
    }

    /// The boundary behind an exit's last segment, which its outputs cross.
    pub fn end(&self, exit: usize) -> usize {
        self.exits[exit].path.last().map_or(0, |segment| self.segments[*segment].to)
    }
}

/// From these tensors to those; whether as a part of the file.
type Trial = (Vec<OutletId>, Vec<OutletId>, bool);

/// A cut in the making.
struct Making<'a> {
    cut: Cut,
    imported: &'a Imported,
    preferred: GraphFormat,
    /// The values that the file knows.
    values: BTreeSet<&'a str>,
    /// The tensors that have been met.
    known: BTreeMap<OutletId, usize>,
    /// The segment that leads from a boundary to these tensors.
    arriving: BTreeMap<(usize, Vec<OutletId>), usize>,
    /// What came of writing the part between these tensors and those; exits share their first ones.
    tried: BTreeMap<Trial, Result<Written, String>>,
}

impl Making<'_> {
    /// The segments along a chain of boundaries, each as short as it can be.
    fn path(&mut self, chain: &[Vec<OutletId>]) -> Result<Vec<usize>, CutError> {
        let last = chain.len() - 1;
        let mut steps: Vec<(usize, usize, Written)> = Vec::new();
        let mut at = 0;
        while at < last {
            let step = |maker: &mut Self, format| match format {
                GraphFormat::Nnef => maker.nnef(&chain[at], &chain[at + 1]).map(|written| (at, at + 1, written)),
                GraphFormat::Onnx => maker.onnx_around(chain, &steps, at),
            };
            let (first, second) = match self.preferred {
                GraphFormat::Nnef => (("as NNEF", GraphFormat::Nnef), ("a part of the file", GraphFormat::Onnx)),
                GraphFormat::Onnx => (("as a part of the file", GraphFormat::Onnx), ("NNEF", GraphFormat::Nnef)),
            };
            let (from, to, written) = match step(self, first.1) {
                Ok(step) => step,
                Err(why) => {
                    let name = self.name(&chain[at + 1]);
                    let other = step(self, second.1).map_err(|other| CutError::Segment {
                        name: name.clone(),
                        why: format!("{}: {why}; and as {}: {other}", first.0, second.0),
                    })?;
                    self.cut.notes.push(format!("the segment with '{name}' is {}, since {}: {why}", second.0, first.0));
                    other
                }
            };
            steps.retain(|(_, end, _)| *end <= from);
            steps.push((from, to, written));
            at = to;
        }
        let mut boundary = 0;
        let mut path = Vec::with_capacity(steps.len());
        for (from, to, written) in steps {
            let segment = match self.arriving.get(&(boundary, chain[to].clone())) {
                Some(segment) => *segment,
                None => self.segment(boundary, &chain[from], &chain[to], written)?,
            };
            path.push(segment);
            boundary = self.cut.segments[segment].to;
        }
        Ok(path)
    }

    /// The part of the file around what lies behind the boundary `at`, as short as it can be: between boundaries that
    /// the file knows, and that earlier steps of the way do not lead past.
    fn onnx_around(
        &mut self,
        chain: &[Vec<OutletId>],
        steps: &[(usize, usize, Written)],
        at: usize,
    ) -> Result<(usize, usize, Written), String> {
        let last = chain.len() - 1;
        let (mut from, mut to, mut further) = (at, at + 1, 1);
        loop {
            while from > 0 && !self.is_in_file(&chain[from]) {
                from -= 1;
            }
            while to < last && !self.is_in_file(&chain[to]) {
                to += 1;
            }
            if let Some((start, ..)) = steps.iter().find(|(start, end, _)| (start + 1..*end).contains(&from)) {
                from = *start;
            }
            match self.onnx(&chain[from], &chain[to]) {
                Ok(written) => return Ok((from, to, written)),
                Err(why) if (from, to) == (0, last) => return Err(why),
                Err(_) => (from, to) = (from.saturating_sub(further), (to + further).min(last)),
            }
            further *= 2;
        }
    }

    fn is_in_file(&self, boundary: &[OutletId]) -> bool {
        boundary.iter().all(|outlet| self.values.contains(outlet_name(&self.imported.model, *outlet).as_str()))
    }

    fn nnef(&mut self, here: &[OutletId], next: &[OutletId]) -> Result<Written, String> {
        self.write(here, next, false)
    }

    fn onnx(&mut self, here: &[OutletId], next: &[OutletId]) -> Result<Written, String> {
        self.write(here, next, true)
    }

    fn write(&mut self, here: &[OutletId], next: &[OutletId], as_onnx: bool) -> Result<Written, String> {
        let key = (here.to_vec(), next.to_vec(), as_onnx);
        if let Some(known) = self.tried.get(&key) {
            return known.clone();
        }
        let model = &self.imported.model;
        let made = made(here, next);
        let used = reached_back(model, &made, here);
        let written = guarded(|| extract(model, &used, &made)).and_then(|part| match as_onnx {
            false => Written::nnef(&part),
            true => Written::onnx(&part, &self.imported.file, &ports(model, &used)?, &ports(model, &made)?),
        });
        self.tried.insert(key, written.clone());
        written
    }

    /// Makes the segment that leads from a boundary, which these tensors cross, to the next.
    fn segment(
        &mut self,
        from: usize,
        here: &[OutletId],
        next: &[OutletId],
        written: Written,
    ) -> Result<usize, CutError> {
        let model = &self.imported.model;
        let failed = |why: String| CutError::Segment { name: self.name(next), why };
        let made = made(here, next);
        let used = reached_back(model, &made, here);
        let ports = ports(model, &made).map_err(failed)?;
        let part = guarded(|| extract(model, &used, &made)).map_err(failed)?;
        let layers = guarded(|| describe(&part)).map_err(failed)?;
        for (outlet, port) in made.iter().zip(ports) {
            let tensors = &mut self.cut.tensors;
            self.known.entry(*outlet).or_insert_with(|| {
                tensors.push(port);
                tensors.len() - 1
            });
        }
        let macs = layers.iter().map(|layer| layer.macs).sum();
        let indices = |outlets: &[OutletId]| outlets.iter().map(|outlet| self.known[outlet]).collect::<Vec<_>>();
        let (takes, gives) = (indices(&used), indices(&made));
        let (to, segment) = (self.cut.boundaries.len(), self.cut.segments.len());
        self.cut.boundaries.push(indices(next));
        self.arriving.insert((from, next.to_vec()), segment);
        let Written { graph, format } = written;
        self.cut.segments.push(SegmentGraph { from, to, takes, gives, layers, macs, graph, format });
        Ok(segment)
    }

    fn name(&self, boundary: &[OutletId]) -> String {
        boundary.last().map_or_else(String::new, |outlet| outlet_name(&self.imported.model, *outlet))
    }
}

/// What a segment between two boundaries makes: what crosses the second and not the first.
fn made(here: &[OutletId], next: &[OutletId]) -> Vec<OutletId> {
    next.iter().copied().filter(|outlet| !here.contains(outlet)).collect()
}

fn ports(model: &TypedModel, outlets: &[OutletId]) -> Result<Vec<Port>, String> {
    let port = |outlet: &OutletId| {
        let fact = guarded(|| Ok(model.outlet_fact(*outlet)?.clone()))?;
        Ok(Port { name: outlet_name(model, *outlet), fact: concrete(&fact)? })
    };
    outlets.iter().map(port).collect()
}

/// Those of the tensors `here` that the tensors `made` are made of.
fn reached_back(model: &TypedModel, made: &[OutletId], here: &[OutletId]) -> Vec<OutletId> {
    let (mut waiting, mut seen, mut reached) = (made.to_vec(), HashSet::new(), BTreeSet::new());
    while let Some(outlet) = waiting.pop() {
        if here.contains(&outlet) {
            reached.insert(outlet);
        } else if seen.insert(outlet.node) {
            waiting.extend(&model.node(outlet.node).inputs);
        }
    }
    reached.into_iter().collect()
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

pub(crate) fn outlet_name(model: &TypedModel, outlet: OutletId) -> String {
    model.outlet_label(outlet).map_or_else(|| model.node(outlet.node).name.clone(), str::to_owned)
}

/// Stands for what is before all inputs.
const ROOT: usize = usize::MAX;

/// For every node that depends on an input, its closest dominator (Cooper, Harvey and Kennedy's
/// algorithm; on a graph without cycles one pass in topological order is enough).
pub(crate) struct Dominators {
    /// Position in topological order, closest dominator; both by node.
    order: BTreeMap<usize, usize>,
    closest: BTreeMap<usize, usize>,
    /// Nodes that nothing is cut behind: what follows is fused, they only rescale an input, or what they give is
    /// nothing that can cross.
    kept: HashSet<usize>,
    /// Nodes of which several outputs are used: none of them is a boundary by itself.
    several: HashSet<usize>,
}

impl Dominators {
    fn of(model: &TypedModel) -> Result<Self, String> {
        let mut tree = Self {
            order: BTreeMap::from([(ROOT, 0)]),
            closest: BTreeMap::new(),
            kept: HashSet::new(),
            several: HashSet::new(),
        };
        let mut rescaled = HashSet::new();
        for id in model.eval_order().map_err(|e| format!("{e:#}"))? {
            let node = model.node(id);
            if model.inputs.iter().any(|input| input.node == id) {
                rescaled.insert(id);
                tree.add(id, ROOT);
                tree.kept.insert(id);
                continue;
            }
            let preceding = node.inputs.iter().filter(|inlet| tree.order.contains_key(&inlet.node));
            let preceding: Vec<OutletId> = preceding.copied().collect();
            let rescales = |before: &OutletId| rescaled.contains(&before.node) && is_element_wise(model, *before, id);
            if !preceding.is_empty() && preceding.iter().all(rescales) {
                rescaled.insert(id);
                tree.kept.insert(id);
            }
            if let Some(dominator) = preceding.iter().map(|inlet| inlet.node).reduce(|a, b| tree.common(a, b)) {
                tree.add(id, dominator);
            }
            let used = |slot: usize| {
                !node.outputs[slot].successors.is_empty() || model.outputs.contains(&OutletId::new(id, slot))
            };
            let can_cross = node.outputs.first().is_some_and(|output| concrete(&output.fact).is_ok());
            if (0..node.outputs.len()).filter(|slot| used(*slot)).count() > 1 || !used(0) {
                tree.several.insert(id);
            } else if !can_cross || only_fused_use(model, id) {
                tree.kept.insert(id);
            }
        }
        Ok(tree)
    }

    pub(crate) fn depends_on_input(&self, node: usize) -> bool {
        self.order.contains_key(&node)
    }

    fn add(&mut self, node: usize, dominator: usize) {
        self.order.insert(node, self.order.len());
        self.closest.insert(node, dominator);
    }

    fn common(&self, mut a: usize, mut b: usize) -> usize {
        while a != b {
            let later = if self.order[&a] > self.order[&b] { &mut a } else { &mut b };
            *later = self.closest[later];
        }
        a
    }

    /// The inputs, the single tensors that all of what leads from them to the ends must pass, and the ends, which
    /// depend on an input.
    fn chain(&self, inputs: &[OutletId], ends: &[OutletId]) -> Vec<Vec<OutletId>> {
        let mut chain = vec![ends.to_vec()];
        let mut node = match ends {
            [end] => self.closest[&end.node],
            _ => ends.iter().map(|end| end.node).reduce(|a, b| self.common(a, b)).unwrap_or(ROOT),
        };
        while node != ROOT {
            if !self.kept.contains(&node) && !self.several.contains(&node) {
                chain.push(vec![OutletId::new(node, 0)]);
            }
            node = self.closest[&node];
        }
        chain.push(inputs.to_vec());
        chain.reverse();
        chain
    }

    /// The boundaries of several tensors between two neighbours of a chain, each a set in the network's order.
    fn between(&self, model: &TypedModel, start: &[OutletId], end: &[OutletId]) -> TractResult<Vec<Vec<OutletId>>> {
        let (mut operators, mut waiting) = (BTreeSet::new(), end.iter().map(|end| end.node).collect::<Vec<_>>());
        while let Some(node) = waiting.pop() {
            let is_inside = self.order.contains_key(&node) && !start.iter().any(|start| start.node == node);
            if is_inside && operators.insert((self.order[&node], node)) {
                waiting.extend(model.node(node).inputs.iter().map(|inlet| inlet.node));
            }
        }
        let operators: Vec<usize> = operators.into_iter().map(|(_, node)| node).collect();
        let position: BTreeMap<usize, usize> = operators.iter().enumerate().map(|(at, node)| (*node, at)).collect();
        let work = operators.iter().map(|node| work(model, *node)).collect::<TractResult<_>>()?;
        let given = operators.iter().flat_map(|node| {
            (0..model.node(*node).outputs.len()).map(|slot| OutletId::new(*node, slot)).collect::<Vec<_>>()
        });
        let outlets: Vec<OutletId> = start.iter().copied().chain(given).collect();
        let crossing = |outlet: &OutletId| {
            let fact = model.outlet_fact(*outlet)?;
            let leaves = end.contains(outlet);
            let may_cross = !self.kept.contains(&outlet.node);
            let bytes = concrete(fact).ok().filter(|_| may_cross || leaves).map(|fact| fact.bytes() as u64);
            let successors = &model.node(outlet.node).outputs[outlet.slot].successors;
            let mut takers: Vec<usize> =
                successors.iter().filter_map(|inlet| position.get(&inlet.node).copied()).collect();
            takers.sort_unstable();
            takers.dedup();
            let giver = position.get(&outlet.node).copied();
            Ok(Crossing { bytes, giver, takers, leaves })
        };
        let tensors = outlets.iter().map(crossing).collect::<TractResult<_>>()?;
        let block = Block { work, tensors };
        let boundary = |before| block.crossing(before).map(|index| outlets[index]).collect::<Vec<_>>();
        let cuts = block.cuts();
        // One tensor alone is a boundary only where it is a dominator, or it was left out for a reason.
        let several = 2..=CROSSING_MAX;
        Ok(cuts.iter().map(boundary).filter(|crossing| several.contains(&crossing.len())).collect())
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
    #[error("output '{0}' does not depend on an input: it is a constant")]
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
