//! Cuts that another one is always as good as, or better.
//!
//! Behind many a cut come operators that make less of what crosses it, for next to nothing: a normalisation and a pool behind
//! a convolution. Whoever is to run them, it is better that the host before the cut does: fewer bytes cross then, and fewer
//! elements are coded on both sides. Nothing is lost for either order of the hosts. (Neurosurgeon, Kang et al. 2017, saw that
//! the best cuts lie behind pools; ARCHITECTURE.md has the proof.) What such a cut costs is real: a segment more for each
//! request, and operators that could have been one.

use crate::cut::Dominators;
use crate::graph::concrete;
use crate::layer::work;
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
        for boundary in inner.iter().rev() {
            // Where ways part, each of them starts here. Where they do not, what follows is the same for all exits, and so is
            // what becomes of the cut.
            let is_on_one_way = next[boundary].len() == 1 && !ends.contains(boundary);
            if !is_on_one_way || !is_dominated(model, tree, boundary, &kept[kept.len() - 1])? {
                kept.push(boundary.clone());
            }
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
    let between = work_between(model, tree, here, later)?;
    Ok(later_bytes <= bytes && between <= CALL_WORK || later_bytes <= bytes / 2 && between <= PASSES_MAX * elements)
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

/// What the operators between two boundaries have to do.
fn work_between(model: &TypedModel, tree: &Dominators, here: &Boundary, later: &Boundary) -> TractResult<u64> {
    let (mut waiting, mut seen, mut total) = (later.clone(), HashSet::new(), 0_u64);
    while let Some(outlet) = waiting.pop() {
        // Constants take no time.
        if !here.contains(&outlet) && tree.depends_on_input(outlet.node) && seen.insert(outlet.node) {
            total = total.saturating_add(work(model, outlet.node)?);
            waiting.extend(&model.node(outlet.node).inputs);
        }
    }
    Ok(total)
}
