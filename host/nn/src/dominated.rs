//! Cuts that another one is always as good as, or better.
//!
//! Behind many a cut come operators that make less of what crosses it, for next to nothing: a normalisation and a pool behind
//! a convolution. Whoever is to run them, it is better that the host before the cut does: fewer bytes cross then, and fewer
//! elements are coded on both sides. Nothing is lost for either order of the hosts. (Neurosurgeon, Kang et al. 2017, saw that
//! the best cuts lie behind pools; ARCHITECTURE.md has the proof.) Or what comes is element-wise, as a gate behind a
//! convolution: as many bytes cross behind it as before. What such a cut costs is real: a segment more for each request, and
//! operators that could have been one.

use crate::cut::Dominators;
use crate::graph::concrete;
use crate::layer::{is_element_wise, work};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use tract_onnx::prelude::{OutletId, TractResult, TypedModel};

/// The tensors that cross a cut.
type Boundary = Vec<OutletId>;

/// Operators that touch each element of what crosses so often at most cost no more than coding and sending what they spare.
const PASSES_MAX: u64 = 2;

/// Multiply-accumulates and elements: a host has done so much before it has called the segment that would do it.
const CALL_WORK: u64 = 2_000;

/// The chains of boundaries, one for each exit and from the inputs to its outputs, without those cuts.
pub(crate) fn without_dominated(
    model: &TypedModel,
    tree: &Dominators,
    chains: &[Vec<Boundary>],
) -> TractResult<Vec<Vec<Boundary>>> {
    let ends: HashSet<&Boundary> = chains.iter().filter_map(|chain| chain.last()).collect();
    let mut next: BTreeMap<&Boundary, BTreeSet<&Boundary>> = BTreeMap::new();
    for pair in chains.iter().flat_map(|chain| chain.windows(2)) {
        next.entry(&pair[0]).or_default().insert(&pair[1]);
    }
    let thin = |chain: &Vec<Boundary>| {
        let [first, inner @ .., last] = &chain[..] else { return Ok(chain.clone()) };
        let mut kept = vec![last.clone()];
        // The one that was kept last, and those before it that were not: what is no better than one of those is no better than it.
        let mut behind = vec![last];
        for boundary in inner.iter().rev() {
            // Where ways part, each of them starts here. Where they do not, what follows is the same for all exits, and so is
            // what becomes of the cut.
            let mut is_left_out = false;
            if next[boundary].len() == 1 && !ends.contains(boundary) {
                for later in &behind {
                    is_left_out |= is_dominated(model, tree, boundary, later)?;
                }
            }
            if !is_left_out {
                kept.push(boundary.clone());
                behind.clear();
            }
            behind.push(boundary);
        }
        kept.push(first.clone());
        kept.reverse();
        Ok(kept)
    };
    chains.iter().map(thin).collect()
}

/// Whether no plan with the first cut is better than the same with the second.
fn is_dominated(model: &TypedModel, tree: &Dominators, here: &Boundary, later: &Boundary) -> TractResult<bool> {
    let (Some((elements, bytes)), Some((_, later_bytes))) = (size(model, here)?, size(model, later)?) else {
        return Ok(false);
    };
    if later_bytes > bytes {
        return Ok(false);
    }
    let between = operators_between(model, tree, here, later);
    let is_gate = |id: &usize| model.node(*id).inputs.iter().any(|inlet| is_element_wise(model, *inlet, *id));
    let mut total = 0_u64;
    for id in &between {
        total = total.saturating_add(work(model, *id)?);
    }
    let is_pass = later_bytes <= bytes / 2 && total <= PASSES_MAX * elements;
    Ok(is_pass || total <= CALL_WORK || between.iter().all(is_gate))
}

/// Elements and bytes that cross; none if they are not known.
fn size(model: &TypedModel, boundary: &Boundary) -> TractResult<Option<(u64, u64)>> {
    let (mut elements, mut bytes) = (0, 0);
    for outlet in boundary {
        let Ok(fact) = concrete(model.outlet_fact(*outlet)?) else { return Ok(None) };
        elements += fact.dims.iter().product::<usize>() as u64;
        bytes += fact.bytes() as u64;
    }
    Ok(Some((elements, bytes)))
}

/// The operators between two boundaries; constants are none.
fn operators_between(model: &TypedModel, tree: &Dominators, here: &Boundary, later: &Boundary) -> HashSet<usize> {
    let (mut waiting, mut between) = (later.clone(), HashSet::new());
    while let Some(outlet) = waiting.pop() {
        if !here.contains(&outlet) && tree.depends_on_input(outlet.node) && between.insert(outlet.node) {
            waiting.extend(&model.node(outlet.node).inputs);
        }
    }
    between
}

#[cfg(test)]
mod tests {
    use crate::{Cut, Imported, Pins};

    fn cut(onnx: &[u8], exits: &[Vec<usize>]) -> Cut {
        Imported::from_onnx(onnx, &Pins::default()).unwrap().cut(exits).unwrap()
    }

    /// Convolution, normalisation and pool are one segment, and so is each exit's last product with what is before it; but
    /// where the ways to two exits part there is a cut, and behind each convolution that another one follows.
    #[test]
    fn no_cut_is_left_before_what_makes_less_for_nothing() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/branchy-alexnet/branchy-alexnet.onnx");
        let each: Vec<Vec<usize>> = (0..5).map(|output| vec![output]).collect();
        let Cut { segments, .. } = cut(&std::fs::read(path).unwrap(), &each);
        let operators: Vec<Vec<&str>> = segments
            .iter()
            .map(|segment| segment.layers.iter().map(|layer| layer.operator.as_str()).collect())
            .collect();
        assert_eq!(operators[0], ["Cast", "Sub", "Mul", "Conv", "Max", "Lrn", "MaxPool"]);
        assert_eq!(operators[1], ["MaxPool"], "it starts where two ways part");
        assert_eq!(operators[2], ["Conv", "Max", "MaxPool"]);
        assert_eq!(operators[3], ["EinSum", "Add", "Max", "EinSum", "Add"]);
        let alone = |wanted: &[&str]| operators.iter().filter(|operators| **operators == wanted).count();
        assert_eq!(alone(&["Conv", "Max"]), 2, "{operators:?}");
        assert_eq!(segments.len(), 16);
    }
}
