//! The best places to cut a part of a network that no single tensor divides.
//!
//! Which operators should run before the cut, if what crosses it costs its bytes, and each operator before it
//! costs its work times some price? For one price, that is a minimum cut of a flow network (DADS, Hu et al.
//! 2019; the price there is the difference between two hosts' times). A slow link or a slow host is another
//! price, so the answers for *every* price are wanted. They are nested: a lower price only adds operators
//! (Gallo, Grigoriadis and Tarjan 1989). So they are a chain of boundaries, as a plan needs it, and whatever
//! the link and the hosts turn out to be like, as far as time goes with work the best cut is among them.
//!
//! They are found from the outside in (Eisner and Severance 1976): at the price at which two known cuts cost
//! the same, either a third one is cheaper, and the search goes on on both sides of it, or there is none between.

use std::collections::VecDeque;

/// Operators between two boundaries, and the tensors between them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Block {
    /// What each operator has to do; never zero.
    pub(crate) work: Vec<u64>,
    pub(crate) tensors: Vec<Crossing>,
}

/// A tensor that would cross a cut between the operator that gives it and one that takes it.
#[derive(Clone, Debug)]
pub(crate) struct Crossing {
    /// None if nothing may be cut there.
    pub(crate) bytes: Option<u64>,
    /// The operator that gives it; none if it is what the block starts from.
    pub(crate) giver: Option<usize>,
    /// The operators that take it.
    pub(crate) takers: Vec<usize>,
    /// Whether it is what the block leads to.
    pub(crate) leaves: bool,
}

/// Whether each operator runs before the cut.
pub(crate) type Before = Vec<bool>;

impl Block {
    /// The cuts inside the block that are the cheapest for some price, each holding the one before it.
    pub(crate) fn cuts(&self) -> Vec<Before> {
        let (none, all) = (vec![false; self.work.len()], vec![true; self.work.len()]);
        let mut found = Vec::new();
        self.between(&none, &all, &mut found);
        found
    }

    /// The tensors that cross a cut, as indices.
    pub(crate) fn crossing<'a>(&'a self, before: &'a Before) -> impl Iterator<Item = usize> + 'a {
        let given = |tensor: &Crossing| tensor.giver.is_none_or(|giver| before[giver]);
        let taken = |tensor: &Crossing| tensor.leaves || tensor.takers.iter().any(|taker| !before[*taker]);
        (0..self.tensors.len()).filter(move |index| given(&self.tensors[*index]) && taken(&self.tensors[*index]))
    }

    fn between(&self, low: &Before, high: &Before, found: &mut Vec<Before>) {
        let ((low_bytes, low_work), (high_bytes, high_work)) = (self.cost(low), self.cost(high));
        // At this price, as a fraction, both cost the same.
        let (price, unit) = (low_bytes - high_bytes, high_work - low_work);
        if unit == 0 {
            return;
        }
        let middle = self.cheapest(low, high, price, unit);
        let total = |(bytes, work): (i128, i128)| unit * bytes + price * work;
        if total(self.cost(&middle)) >= total((low_bytes, low_work)) {
            return;
        }
        self.between(low, &middle, found);
        found.push(middle.clone());
        self.between(&middle, high, found);
    }

    /// Bytes that cross and work before. What may not be cut counts with its bytes unknown as none: the
    /// block's own ends are given, not chosen.
    fn cost(&self, before: &Before) -> (i128, i128) {
        let bytes = self.crossing(before).map(|index| i128::from(self.tensors[index].bytes.unwrap_or(0))).sum();
        let done = self.work.iter().zip(before).filter(|(_, before)| **before);
        (bytes, done.map(|(work, _)| i128::from(*work)).sum())
    }

    /// The cut between two others for which `unit` × bytes + `price` × work is least.
    fn cheapest(&self, low: &Before, high: &Before, price: i128, unit: i128) -> Before {
        let operators = self.work.len();
        let mut flow = Flow::new(2 + operators + self.tensors.len());
        let node = |operator: usize| 2 + operator;
        for (operator, work) in self.work.iter().enumerate() {
            let cost = price * i128::from(*work);
            if low[operator] {
                flow.connect(BEFORE, node(operator), ENDLESS);
            } else if !high[operator] {
                flow.connect(node(operator), BEHIND, ENDLESS);
            } else if cost >= 0 {
                flow.connect(node(operator), BEHIND, cost);
            } else {
                flow.connect(BEFORE, node(operator), -cost);
            }
        }
        for (index, tensor) in self.tensors.iter().enumerate() {
            let (giver, crossing) = (tensor.giver.map_or(BEFORE, node), 2 + operators + index);
            // However many take it behind the cut, it crosses once.
            flow.connect(giver, crossing, tensor.bytes.map_or(ENDLESS, |bytes| unit * i128::from(bytes)));
            let takers = tensor.takers.iter().map(|taker| node(*taker)).chain(tensor.leaves.then_some(BEHIND));
            for taker in takers {
                flow.connect(crossing, taker, ENDLESS);
                // Nothing goes back over the cut.
                flow.connect(taker, giver, if taker == BEHIND { 0 } else { ENDLESS });
            }
        }
        let reached = flow.before_minimum_cut();
        (0..operators).map(|operator| reached[node(operator)]).collect()
    }
}

const BEFORE: usize = 0;
const BEHIND: usize = 1;
const ENDLESS: i128 = i128::MAX / 4;

/// A flow network, and Dinic's algorithm on it.
struct Flow {
    /// Where each arc leads and what more it can take. An arc's reverse is the one beside it.
    arcs: Vec<(usize, i128)>,
    /// The arcs that leave each node.
    leaving: Vec<Vec<usize>>,
}

impl Flow {
    fn new(nodes: usize) -> Self {
        Self { arcs: Vec::new(), leaving: vec![Vec::new(); nodes] }
    }

    fn connect(&mut self, from: usize, to: usize, capacity: i128) {
        for (from, to, capacity) in [(from, to, capacity), (to, from, 0)] {
            self.leaving[from].push(self.arcs.len());
            self.arcs.push((to, capacity));
        }
    }

    /// The nodes that a greatest flow leaves connected to [`BEFORE`]: the smallest side of a minimum cut.
    fn before_minimum_cut(&mut self) -> Vec<bool> {
        loop {
            let levels = self.levels();
            if levels[BEHIND].is_none() {
                return levels.iter().map(Option::is_some).collect();
            }
            let mut next = vec![0; self.leaving.len()];
            while self.augment(&levels, &mut next) {}
        }
    }

    /// Steps from [`BEFORE`] to each node over arcs that can take more.
    fn levels(&self) -> Vec<Option<usize>> {
        let mut levels = vec![None; self.leaving.len()];
        levels[BEFORE] = Some(0);
        let mut waiting = VecDeque::from([(BEFORE, 0)]);
        while let Some((node, level)) = waiting.pop_front() {
            for arc in &self.leaving[node] {
                let (to, capacity) = self.arcs[*arc];
                if capacity > 0 && levels[to].is_none() {
                    levels[to] = Some(level + 1);
                    waiting.push_back((to, level + 1));
                }
            }
        }
        levels
    }

    /// Sends what one more shortest way can take; false if there is none.
    fn augment(&mut self, levels: &[Option<usize>], next: &mut [usize]) -> bool {
        let mut way: Vec<usize> = Vec::new();
        let mut node = BEFORE;
        while node != BEHIND {
            let ahead = self.leaving[node].get(next[node]).copied();
            let Some(arc) = ahead else {
                // A dead end: back, and never here again.
                let Some(arc) = way.pop() else { return false };
                node = self.arcs[arc ^ 1].0;
                next[node] += 1;
                continue;
            };
            let (to, capacity) = self.arcs[arc];
            if capacity > 0 && levels[to] == levels[node].map(|level| level + 1) {
                way.push(arc);
                node = to;
            } else {
                next[node] += 1;
            }
        }
        let amount = way.iter().map(|arc| self.arcs[*arc].1).min().unwrap_or(0);
        for arc in way {
            self.arcs[arc].1 -= amount;
            self.arcs[arc ^ 1].1 += amount;
        }
        amount > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, end: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % end
        }

        /// Each operator takes one to three earlier tensors; what nobody takes leads to the last operator.
        fn block(&mut self) -> Block {
            let operators = 2 + self.below(7) as usize;
            let mut block = Block { work: (0..operators).map(|_| 1 + self.below(50)).collect(), tensors: Vec::new() };
            for giver in std::iter::once(None).chain((0..operators).map(Some)) {
                let bytes = (self.below(8) > 0).then(|| 1 + self.below(100));
                block.tensors.push(Crossing { bytes, giver, takers: Vec::new(), leaves: false });
            }
            for operator in 0..operators {
                for _ in 0..=self.below(3) {
                    let takers = &mut block.tensors[self.below(operator as u64 + 1) as usize].takers;
                    if !takers.contains(&operator) {
                        takers.push(operator);
                    }
                }
            }
            for tensor in &mut block.tensors[..operators] {
                if tensor.takers.is_empty() {
                    tensor.takers.push(operators - 1);
                }
            }
            block.tensors[operators].leaves = true;
            block
        }
    }

    /// Whether nothing goes back over the cut and all of what crosses may.
    fn is_possible(block: &Block, before: &Before) -> bool {
        let goes_back = |tensor: &Crossing| {
            tensor.giver.is_some_and(|giver| !before[giver]) && tensor.takers.iter().any(|taker| before[*taker])
        };
        !block.tensors.iter().any(goes_back)
            && block.crossing(before).all(|crossing| block.tensors[crossing].bytes.is_some())
    }

    #[test]
    fn for_every_price_the_best_of_all_cuts_is_on_the_chain() {
        let mut dice = Dice(1);
        let mut longest = 0;
        for _ in 0..2_000 {
            let block = dice.block();
            let operators = block.work.len();
            let chain = block.cuts();
            longest = longest.max(chain.len());
            for (low, high) in chain.iter().zip(chain.iter().skip(1)) {
                assert!(low.iter().zip(high).all(|(low, high)| *high || !*low), "not nested: {chain:?} of {block:?}");
            }
            assert!(chain.iter().all(|cut| is_possible(&block, cut)), "{chain:?} of {block:?}");
            let ends = [vec![false; operators], vec![true; operators]];
            let all = (0..1_u32 << operators).map(|bits| (0..operators).map(|at| bits >> at & 1 == 1).collect());
            let all: Vec<Before> = all.filter(|cut| is_possible(&block, cut) && !ends.contains(cut)).collect();
            for price in (-40..40).map(|step| f64::from(step) / 8.0) {
                let cost = |cut: &Before| {
                    let (bytes, work) = block.cost(cut);
                    bytes as f64 + price * work as f64
                };
                let least = |cuts: &mut dyn Iterator<Item = &Before>| cuts.map(cost).fold(f64::INFINITY, f64::min);
                let (offered, possible) = (least(&mut chain.iter().chain(&ends)), least(&mut all.iter().chain(&ends)));
                assert!(offered <= possible + 1e-9, "{offered} instead of {possible} at {price}: {block:?}");
            }
        }
        assert!(longest >= 3, "no block had several cuts");
    }

    /// Two branches that narrow at once, one of them long: both narrow tensors cross together.
    #[test]
    fn branches_are_cut_where_both_are_narrow() {
        let tensor = |bytes, giver, takers: &[usize]| Crossing {
            bytes: Some(bytes),
            giver,
            takers: takers.to_vec(),
            leaves: giver == Some(4),
        };
        let block = Block {
            work: vec![10, 10, 500, 500, 1],
            tensors: vec![
                tensor(1000, None, &[0, 1]),
                tensor(10, Some(0), &[2]),
                tensor(20, Some(1), &[3]),
                tensor(950, Some(2), &[4]),
                tensor(950, Some(3), &[4]),
                tensor(1800, Some(4), &[]),
            ],
        };
        let cuts = block.cuts();
        assert_eq!(cuts, [[true, true, false, false, false]]);
        assert_eq!(block.crossing(&cuts[0]).collect::<Vec<_>>(), [1, 2]);
    }
}
