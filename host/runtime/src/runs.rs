//! Segments that a host runs one behind the other, made one.
//!
//! With a plan in force, a host runs the same few segments for each request. Where each of them would leave its graph to the
//! host by the standard guest, one call of that guest does for all: the host joins what tract made of their graphs, which
//! costs no memory for weights and changes no bit. What is spared is a call and a start of tract for each of them, and the
//! processor's caches, which those fill with other things: a quarter of the time of a network that takes a millisecond.
//!
//! Segments with guests of their makers, of the portable tier, of another backend, or with something between them that is to
//! be looked at run by themselves, as all do where a slow device is emulated.

use crate::deployment::{Deployment, Wiring};
use edgent_nn::{Graph, Part};
use edgent_sandbox::{Segment, Work};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// So many plans' ways are remembered; what they take is a copy of the operators without their weights.
const WAYS_MAX: usize = 16;

/// How the segments at some positions of an exit's path are run.
pub(crate) type Way = Vec<Run>;

/// One call.
#[derive(Debug)]
pub(crate) enum Run {
    /// Of a segment.
    One(usize),
    /// Of some at once.
    Joined(Box<Joined>),
}

/// Segments as one.
#[derive(Debug)]
pub(crate) struct Joined {
    /// Which ones.
    pub(crate) indices: Vec<usize>,
    pub(crate) segment: Segment,
    pub(crate) wiring: Wiring,
    /// It failed: from now on each runs by itself, so that it shows which of them does wrong.
    pub(crate) has_failed: AtomicBool,
}

/// An exit, and positions on its path.
type Stretch = (usize, Range<usize>);

/// The ways that were taken lately.
#[derive(Debug, Default)]
pub(crate) struct Ways(Mutex<HashMap<Stretch, Arc<Way>>>);

impl Ways {
    /// The way that is known, or a new one.
    pub(crate) fn get(&self, deployment: &Deployment, exit: usize, range: &Range<usize>) -> Arc<Way> {
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (exit, range.clone());
        if let Some(way) = known().get(&key) {
            return way.clone();
        }
        // Others run meanwhile.
        let way = Arc::new(deployment.way(exit, range.clone()));
        let mut known = known();
        if known.len() == WAYS_MAX {
            known.clear();
        }
        known.insert(key, way.clone());
        way
    }
}

impl Deployment {
    /// As few calls as may be.
    fn way(&self, exit: usize, range: Range<usize>) -> Way {
        let path = &self.manifest().exits[exit].path[range];
        let (mut way, mut rest) = (Way::new(), path);
        while let [first, ..] = rest {
            let many = 1 + rest.windows(2).take_while(|pair| self.is_joinable(pair[0], pair[1])).count();
            let (these, others) = rest.split_at(many);
            match self.join(these) {
                Some(joined) => way.push(Run::Joined(Box::new(joined))),
                None if many > 1 => way.extend(these.iter().map(|index| Run::One(*index))),
                None => way.push(Run::One(*first)),
            }
            rest = others;
        }
        way
    }

    fn is_joinable(&self, before: usize, behind: usize) -> bool {
        let is_left_to_host = |index: usize| {
            self.segment(index).is_some_and(|segment| {
                segment.is_standard() && matches!(segment.work(), Work::InHost(graph) if graph.can_be_joined())
            })
        };
        let manifest = self.manifest();
        let between = &manifest.boundaries[manifest.segments[before].to].tensors;
        is_left_to_host(before)
            && is_left_to_host(behind)
            && !between.iter().any(|tensor| manifest.tensors[*tensor].finite)
    }

    /// None of a single segment; nor if tract will not have it, which is no reason not to answer.
    fn join(&self, indices: &[usize]) -> Option<Joined> {
        let [first, .., last] = indices else { return None };
        let (manifest, mut parts) = (self.manifest(), Vec::with_capacity(indices.len()));
        for index in indices {
            let Work::InHost(graph) = self.segment(*index)?.work() else { return None };
            let described = &manifest.segments[*index];
            parts.push(Part { graph, takes: &described.takes, gives: &described.gives });
        }
        let is_given = |tensor: &usize| parts.iter().any(|part| part.gives.contains(tensor));
        let (from, to) = (&manifest.segments[*first].from, &manifest.segments[*last].to);
        let (from, to) = (&manifest.boundaries[*from].tensors, &manifest.boundaries[*to].tensors);
        let gives: Vec<usize> = to.iter().copied().filter(is_given).collect();
        let mut takes = Vec::new();
        for tensor in parts.iter().flat_map(|part| part.takes) {
            if !is_given(tensor) && !takes.contains(tensor) {
                takes.push(*tensor);
            }
        }
        let graph = Graph::joined(&parts, &gives).ok()?;
        let name = format!("{}' to '{}", manifest.segments[*first].name, manifest.segments[*last].name);
        let segment = self.segment(*first)?.like(&name, graph).ok()?;
        let finite = |tensors: &[usize]| tensors.iter().map(|at| manifest.tensors[*at].finite).collect::<Vec<_>>();
        Some(Joined {
            indices: indices.to_vec(),
            segment: segment.with_finite(finite(&takes), finite(&gives)),
            wiring: Wiring::between(from, to, &takes, &gives),
            has_failed: AtomicBool::new(false),
        })
    }
}

impl Joined {
    pub(crate) fn is_sound(&self) -> bool {
        !self.has_failed.load(Ordering::Relaxed)
    }
}
