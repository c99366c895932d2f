//! A link's rate over time.

use std::time::Duration;

/// The range that a seeded trace moves in: from a link that is hardly one to a good one.
const RATE_MIN_BPS: f64 = 50e3;
const RATE_MAX_BPS: f64 = 20e6;

/// Rates of a seeded trace, spaced evenly on a logarithmic scale.
const STATES: usize = 9;

const DWELL_MIN_MS: u64 = 1_200;
const DWELL_MAX_MS: u64 = 2_600;

/// Piecewise constant; starts again at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    steps: Vec<Step>,
}

/// A rate, and how long it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// How long.
    pub duration: Duration,
    /// Bits a second.
    pub rate_bps: u64,
}

impl Trace {
    /// Always the same rate.
    pub fn constant(rate_bps: u64) -> Self {
        Self { steps: vec![Step { duration: Duration::from_secs(3_600), rate_bps }] }
    }

    /// A random walk over logarithmically spaced rates between 50 kbit/s and 20 Mbit/s, the same for
    /// the same seed. Within each round of the states, each is visited once, so that the least, the
    /// middle and the greatest rates all come up within about twenty seconds.
    pub fn seeded(seed: u64, seconds: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
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
                let share = state as f64 / (STATES - 1) as f64;
                let rate_bps = (RATE_MIN_BPS * (RATE_MAX_BPS / RATE_MIN_BPS).powf(share)) as u64;
                let duration = Duration::from_millis(DWELL_MIN_MS + random.below(DWELL_MAX_MS - DWELL_MIN_MS));
                length += duration;
                steps.push(Step { duration, rate_bps });
            }
        }
        Self { steps }
    }

    /// The rate at that time.
    pub fn rate_at(&self, elapsed: Duration) -> u64 {
        let length: Duration = self.steps.iter().map(|step| step.duration).sum();
        let mut left = Duration::from_nanos((elapsed.as_nanos() % length.as_nanos().max(1)) as u64);
        for step in &self.steps {
            match left.checked_sub(step.duration) {
                Some(later) => left = later,
                None => return step.rate_bps,
            }
        }
        RATE_MIN_BPS as u64
    }

    /// Its parts.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % n
    }
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
    fn a_trace_starts_again_at_its_end() {
        let step = |ms, rate_bps| Step { duration: Duration::from_millis(ms), rate_bps };
        let trace = Trace { steps: vec![step(10, 1), step(20, 2)] };
        for (ms, rate_bps) in [(0, 1), (9, 1), (10, 2), (29, 2), (30, 1), (45, 2)] {
            assert_eq!(trace.rate_at(Duration::from_millis(ms)), rate_bps, "at {ms} ms");
        }
    }
}
