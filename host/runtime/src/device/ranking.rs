//! Which of a device's edges is in force: the most preferred one of those that are sound.
//!
//! `(state, event, now) → state`, without clocks or connections, so that what becomes of edges can be told to it in any order.

use std::time::Duration;

/// So many strikes in a row, and an edge is left for one that has fewer. A strike is a failed connect, a heartbeat
/// that was missed, or a request that failed there or was late.
const STRIKES_MAX: u32 = 3;

/// An edge that has failed is preferred again once nothing has gone wrong with it for so long…
const HEALTHY_FOR: Duration = Duration::from_secs(5);

/// …and for up to so much longer, so that the devices of an edge that comes back do not all come at once.
const FAIL_BACK_JITTER: Duration = Duration::from_secs(5);

/// The first wait before a lost edge is tried again, which doubles each time…
const BACK_OFF: Duration = Duration::from_millis(100);

/// …up to this.
const BACK_OFF_MAX: Duration = Duration::from_secs(3);

/// A wait is shortened by up to this share of it, so that devices that lost an edge together do not return together.
const BACK_OFF_JITTER: f64 = 0.5;

/// The edges, by their place in the order of preference.
#[derive(Debug)]
pub(super) struct Ranking {
    edges: Vec<Standing>,
    in_force: Option<usize>,
    random: fastrand::Rng,
}

#[derive(Clone, Debug, Default)]
struct Standing {
    is_there: bool,
    strikes: u32,
    /// From when on it may be preferred to the one in force.
    trusted_from: Duration,
    tries: u32,
}

impl Ranking {
    /// None of them is there yet. What is random follows from the seed.
    pub(super) fn new(edges: usize, seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { edges: vec![Standing::default(); edges], in_force: None, random }
    }

    /// It is connected and has the version in force.
    pub(super) fn joined(&mut self, edge: usize) {
        let standing = &mut self.edges[edge];
        (standing.is_there, standing.strikes, standing.tries) = (true, 0, 0);
    }

    /// Its connection is gone, or it said that it goes. Gives how long to wait before it is tried again.
    pub(super) fn lost(&mut self, edge: usize, now: Duration) -> Duration {
        self.edges[edge].is_there = false;
        self.struck(edge, now);
        let standing = &mut self.edges[edge];
        let wait = BACK_OFF.saturating_mul(1 << standing.tries.min(16)).min(BACK_OFF_MAX);
        standing.tries += 1;
        wait.mul_f64(1.0 - BACK_OFF_JITTER * self.random.f64())
    }

    /// Something went wrong with it.
    pub(super) fn struck(&mut self, edge: usize, now: Duration) {
        let jitter = FAIL_BACK_JITTER.mul_f64(self.random.f64());
        let standing = &mut self.edges[edge];
        standing.strikes = standing.strikes.saturating_add(1);
        standing.trusted_from = now + HEALTHY_FOR + jitter;
    }

    /// Something went well with it.
    pub(super) fn answered(&mut self, edge: usize) {
        self.edges[edge].strikes = 0;
    }

    pub(super) fn strikes(&self, edge: usize) -> u32 {
        self.edges[edge].strikes
    }

    pub(super) fn in_force(&self) -> Option<usize> {
        self.in_force
    }

    /// Which one is to be in force now. The one that is stays so, unless it is gone, a better one has been healthy for a
    /// while, or it has too many strikes and another one has fewer: where all are bad, changing helps nobody.
    pub(super) fn choose(&mut self, now: Duration) -> Option<usize> {
        let is_sound = |edge: &usize| self.is_sound(*edge);
        let stays = self.in_force.filter(|edge| self.edges[*edge].is_there);
        let better = |than: usize| (0..than).find(|edge| self.is_sound(*edge) && self.edges[*edge].trusted_from <= now);
        self.in_force = match stays {
            Some(edge) if is_sound(&edge) => better(edge).or(Some(edge)),
            Some(edge) => (0..self.edges.len()).find(is_sound).or(Some(edge)),
            None => {
                let there = (0..self.edges.len()).filter(|edge| self.edges[*edge].is_there);
                there.min_by_key(|edge| (!self.is_sound(*edge), *edge))
            }
        };
        self.in_force
    }

    /// Where a request may go that the first one fails.
    pub(super) fn next_after(&self, first: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.edges.len()).filter(move |edge| *edge != first && self.is_sound(*edge))
    }

    fn is_sound(&self, edge: usize) -> bool {
        self.edges[edge].is_there && self.edges[edge].strikes < STRIKES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn the_preferred_edge_is_left_after_several_strikes_and_comes_back_after_a_while() {
        let mut ranking = Ranking::new(3, 7);
        assert_eq!(ranking.choose(S), None);
        ranking.joined(1);
        assert_eq!(ranking.choose(S), Some(1));
        // What never failed need not wait.
        ranking.joined(0);
        assert_eq!(ranking.choose(S), Some(0));
        (1..STRIKES_MAX).for_each(|_| ranking.struck(0, S));
        assert_eq!((ranking.choose(S), ranking.next_after(0).collect::<Vec<_>>()), (Some(0), vec![1]));
        ranking.answered(0);
        (1..STRIKES_MAX).for_each(|_| ranking.struck(0, S));
        assert_eq!(ranking.choose(S), Some(0), "strikes count in a row");
        ranking.struck(0, S);
        assert_eq!(ranking.choose(S), Some(1));
        ranking.answered(0);
        assert_eq!(ranking.choose(S + HEALTHY_FOR / 2), Some(1), "healthy, but not for long enough");
        // A strike meanwhile, and the wait begins anew.
        ranking.struck(0, S + HEALTHY_FOR);
        assert_eq!(ranking.choose(S + HEALTHY_FOR * 2 - S), Some(1));
        assert_eq!(ranking.choose(S + HEALTHY_FOR * 2 + FAIL_BACK_JITTER), Some(0));
    }

    #[test]
    fn where_all_are_bad_nothing_changes_and_what_is_gone_is_left_at_once() {
        let mut ranking = Ranking::new(2, 7);
        ranking.joined(0);
        ranking.joined(1);
        assert_eq!(ranking.choose(S), Some(0));
        (0..STRIKES_MAX).for_each(|_| [0, 1].into_iter().for_each(|edge| ranking.struck(edge, S)));
        assert_eq!(ranking.choose(S), Some(0));
        assert_eq!(ranking.next_after(0).count(), 0);
        ranking.lost(0, S);
        assert_eq!(ranking.choose(S), Some(1), "better than none");
        ranking.lost(1, S);
        assert_eq!(ranking.choose(S), None);
    }

    #[test]
    fn waits_grow_are_bounded_and_differ_between_devices() {
        let waits = |seed| {
            let mut ranking = Ranking::new(1, seed);
            (0..40).map(|_| ranking.lost(0, S)).collect::<Vec<_>>()
        };
        let (ours, theirs) = (waits(1), waits(2));
        assert_ne!(ours, theirs);
        assert_eq!(ours, waits(1), "they follow from the seed");
        assert!(ours[0] <= BACK_OFF && ours[0] >= BACK_OFF.mul_f64(1.0 - BACK_OFF_JITTER));
        assert!(ours.iter().all(|wait| *wait <= BACK_OFF_MAX) && ours[39] >= BACK_OFF_MAX / 2);
        let mut ranking = Ranking::new(1, 1);
        (0..10).for_each(|_| _ = ranking.lost(0, S));
        ranking.joined(0);
        assert!(ranking.lost(0, S) <= BACK_OFF, "a connection that stood begins anew");
    }
}
