//! Traces generated from a seed: the same for the same seed, on every machine.

use super::{Step, Trace};
use crate::random::Random;
use std::time::Duration;

/// The range that a seeded trace moves in: from a link that is hardly one to a good one.
const RATE_MIN_BPS: f64 = 50e3;
const RATE_MAX_BPS: f64 = 20e6;

/// Rates of a seeded trace, spaced evenly on a logarithmic scale.
const STATES: usize = 9;

const DWELL_MIN_MS: u64 = 1_200;
const DWELL_MAX_MS: u64 = 2_600;

/// A Markov chain decides this often.
const MARKOV_STEP_MS: u64 = 500;
/// How many of a hundred decisions are to stay in the state.
const MARKOV_STAY_PERCENT: u64 = 92;
/// A state one further away is less likely by this factor.
const MARKOV_DISTANCE: u64 = 3;
/// How far the rate wavers around its state's, as two traces of one state never look the same.
const MARKOV_WAVER: f64 = 0.08;

impl Trace {
    /// A random walk over logarithmically spaced rates between 50 kbit/s and 20 Mbit/s, the same for
    /// the same seed. Within each round of the states, each is visited once, so that the least, the
    /// middle and the greatest rates all come up within about twenty seconds.
    pub fn seeded(seed: u64, seconds: u64) -> Self {
        let mut random = Random::new(seed);
        let mut steps = Vec::new();
        let mut length = Duration::ZERO;
        let mut last = STATES;
        while length < Duration::from_secs(seconds.max(1)) {
            let mut states: Vec<usize> = (0..STATES).collect();
            (1..STATES).rev().for_each(|i| states.swap(i, random.below(i as u64 + 1) as usize));
            if states[0] == last {
                states.rotate_left(1);
            }
            last = states[STATES - 1];
            for state in states {
                let duration = Duration::from_millis(DWELL_MIN_MS + random.below(DWELL_MAX_MS - DWELL_MIN_MS));
                length += duration;
                steps.push(Step { duration, rate_bps: rate_bps(state) as u64 });
            }
        }
        Self::new(steps)
    }

    /// A Markov chain over the same rates, as real links behave: it stays in a state for some six
    /// seconds on average, then moves, mostly to a neighbouring one. Within a state the rate wavers by
    /// a few percent. The same for the same seed; between one second and a day long.
    pub fn markov(seed: u64, seconds: u64) -> Self {
        let mut random = Random::new(seed);
        let mut state = random.below(STATES as u64) as usize;
        let count = seconds.clamp(1, 24 * 3_600) * 1_000 / MARKOV_STEP_MS;
        let steps = (0..count).map(|_| {
            if random.below(100) >= MARKOV_STAY_PERCENT {
                state = weighted(&mut random, |other| match other.abs_diff(state) {
                    0 => 0,
                    distance => MARKOV_DISTANCE.pow((STATES - distance) as u32),
                });
            }
            let waver = (random.below(2_001) as f64 / 1_000.0 - 1.0) * MARKOV_WAVER;
            let rate_bps = rate_bps(state) * (1.0 + waver);
            Step { duration: Duration::from_millis(MARKOV_STEP_MS), rate_bps: rate_bps as u64 }
        });
        Self::new(steps.collect())
    }
}

fn rate_bps(state: usize) -> f64 {
    let share = state as f64 / (STATES - 1) as f64;
    RATE_MIN_BPS * (RATE_MAX_BPS / RATE_MIN_BPS).powf(share)
}

/// A state, as likely as its weight; not all may be 0.
fn weighted(random: &mut Random, weight: impl Fn(usize) -> u64) -> usize {
    let mut left = random.below((0..STATES).map(&weight).sum());
    let mut state = 0;
    while left >= weight(state) {
        left -= weight(state);
        state += 1;
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_trace_and_it_covers_the_range() {
        for seed in 0..50 {
            let trace = Trace::seeded(seed, 20);
            assert_eq!(trace, Trace::seeded(seed, 20));
            let rates: Vec<u64> = (0..2_500).map(|i| trace.rate_at(Duration::from_millis(i * 10))).collect();
            for (low, high) in [(50_000, 100_000), (300_000, 3_000_000), (9_000_000, 20_000_000)] {
                assert!(
                    rates.iter().any(|rate| (low..=high).contains(rate)),
                    "seed {seed} never between {low} and {high}"
                );
            }
        }
        assert_ne!(Trace::seeded(1, 20), Trace::seeded(2, 20));
    }

    #[test]
    fn a_markov_chain_stays_for_a_while_and_mostly_moves_to_a_neighbour() {
        let nearest = |rate: u64| {
            let off = |state: &usize| ((rate_bps(*state) / rate as f64).ln().abs() * 1e6) as u64;
            (0..STATES).min_by_key(off).unwrap()
        };
        let mut visits = [0; STATES];
        let (mut moves, mut near, mut steps) = (0, 0, 0);
        for seed in 0..50 {
            let trace = Trace::markov(seed, 600);
            assert_eq!(trace, Trace::markov(seed, 600));
            assert_eq!(trace.length(), Duration::from_secs(600));
            let states: Vec<usize> = trace.steps().iter().map(|step| nearest(step.rate_bps)).collect();
            states.iter().for_each(|state| visits[*state] += 1);
            steps += states.len();
            for two in states.windows(2).filter(|two| two[0] != two[1]) {
                moves += 1;
                near += usize::from(two[0].abs_diff(two[1]) == 1);
            }
        }
        assert!((steps / 20..steps / 10).contains(&moves), "{moves} moves in {steps} steps");
        assert!(near > moves / 2 && near < moves, "{near} of {moves} moves to a neighbour");
        assert!(visits.iter().all(|count| *count > steps / STATES / 3), "{visits:?}");
        assert_ne!(Trace::markov(1, 20), Trace::markov(2, 20));
        let lengths = [0, 1, u64::MAX].map(|seconds| Trace::markov(1, seconds).length().as_secs());
        assert_eq!(lengths, [1, 1, 86_400]);
    }
}
