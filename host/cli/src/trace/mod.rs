//! A link's rate over time: constant, generated from a seed, or read from a file.

mod load;
mod random;

use std::time::Duration;

/// Piecewise constant; starts again at its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// At least one; none without a duration.
    steps: Vec<Step>,
    /// When each step ends, so that finding one does not mean adding up those before it.
    ends: Vec<Duration>,
    /// What goes through from its beginning to its end.
    round_bits: f64,
}

/// A rate, and how long it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// How long.
    pub duration: Duration,
    /// Bits a second; 0 while nothing gets through.
    pub rate_bps: u64,
}

/// No transfer takes longer than this, however little gets through.
const TRANSFER_MAX: Duration = Duration::from_secs(30 * 24 * 3_600);

impl Trace {
    /// Always the same rate.
    pub fn constant(rate_bps: u64) -> Self {
        Self::new(vec![Step { duration: Duration::from_secs(3_600), rate_bps }])
    }

    /// The steps must have a duration altogether.
    pub(crate) fn new(mut steps: Vec<Step>) -> Self {
        steps.retain(|step| !step.duration.is_zero());
        let add = |end: &mut Duration, step: &Step| {
            *end += step.duration;
            Some(*end)
        };
        let ends = steps.iter().scan(Duration::ZERO, add).collect();
        let round_bits = steps.iter().map(|step| step.bps() * step.duration.as_secs_f64()).sum();
        Self { steps, ends, round_bits }
    }

    /// The same with every rate multiplied so that the greatest becomes `max_bps`. (The Edgent paper
    /// scales its LTE logs to 10 Mbit/s.)
    pub fn scaled(&self, max_bps: u64) -> Self {
        let most = self.steps.iter().map(|step| step.rate_bps).max().unwrap_or(0).max(1);
        let scale = |rate_bps: u64| (u128::from(rate_bps) * u128::from(max_bps) / u128::from(most)) as u64;
        Self::new(self.steps.iter().map(|step| Step { rate_bps: scale(step.rate_bps), ..*step }).collect())
    }

    /// The rate at that time.
    pub fn rate_at(&self, elapsed: Duration) -> u64 {
        self.steps[self.position(elapsed).0].rate_bps
    }

    /// How long so many bytes take that are sent from then on. While the rate is 0, one bit a second
    /// gets through, so that everything ends.
    pub fn transfer(&self, from: Duration, bytes: usize) -> Duration {
        let (mut index, mut rest) = self.position(from);
        let bits = bytes as f64 * 8.0;
        let rounds = (bits / self.round_bits).floor();
        let mut bits = bits - rounds * self.round_bits;
        let mut seconds = rounds * self.length().as_secs_f64();
        // At most once round, but for the last digits of the division.
        for _ in 0..=self.steps.len() + 1 {
            let step = self.steps[index];
            let fitting = step.bps() * rest.as_secs_f64();
            if bits <= fitting {
                break;
            }
            bits -= fitting;
            seconds += rest.as_secs_f64();
            index = (index + 1) % self.steps.len();
            rest = self.steps[index].duration;
        }
        seconds += bits / self.steps[index].bps();
        Duration::try_from_secs_f64(seconds).unwrap_or(TRANSFER_MAX).min(TRANSFER_MAX)
    }

    /// How long it takes to its end.
    pub fn length(&self) -> Duration {
        self.ends.last().copied().unwrap_or_default()
    }

    /// Its parts.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The step at that time, and how much of it is left.
    fn position(&self, elapsed: Duration) -> (usize, Duration) {
        let length_ns = self.length().as_nanos().max(1);
        let within = Duration::from_nanos((elapsed.as_nanos() % length_ns) as u64);
        let index = self.ends.partition_point(|end| *end <= within).min(self.steps.len() - 1);
        (index, self.ends[index].saturating_sub(within))
    }
}

impl Step {
    fn bps(&self) -> f64 {
        self.rate_bps.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Milliseconds and bits a second.
    type Steps = [(u64, u64)];

    fn trace(steps: &Steps) -> Trace {
        let step = |(ms, rate_bps): &(u64, u64)| Step { duration: Duration::from_millis(*ms), rate_bps: *rate_bps };
        Trace::new(steps.iter().map(step).collect())
    }

    #[test]
    fn a_trace_starts_again_at_its_end() {
        let trace = trace(&[(10, 1), (0, 7), (20, 2)]);
        for (ms, rate_bps) in [(0, 1), (9, 1), (10, 2), (29, 2), (30, 1), (45, 2)] {
            assert_eq!(trace.rate_at(Duration::from_millis(ms)), rate_bps, "at {ms} ms");
        }
    }

    #[test]
    fn a_transfer_takes_what_the_rates_on_its_way_allow() {
        let cases: [(&Steps, u64, usize, u64); 8] = [
            // steps, from ms, bytes, ms
            (&[(1_000, 8_000)], 0, 0, 0),
            (&[(1_000, 8_000)], 900, 500, 500),
            (&[(1_000, 8_000)], 0, 1_000_000, 1_000_000),
            (&[(100, 8_000), (100, 80_000)], 50, 50, 50),
            (&[(100, 8_000), (100, 80_000)], 50, 150, 60),
            (&[(100, 8_000), (100, 80_000)], 50, 1_150, 50 + 100 + 100),
            (&[(1_000, 0), (100, 80_000)], 0, 1_500, 1_100 + 1_050),
            (&[(1_000, 0)], 0, 1, 8_000),
        ];
        for (steps, from_ms, bytes, expected_ms) in cases {
            let took = trace(steps).transfer(Duration::from_millis(from_ms), bytes);
            let off_ms = took.as_secs_f64() * 1e3 - expected_ms as f64;
            // In a pause, one bit a second gets through.
            assert!(off_ms.abs() < 0.1, "{bytes} bytes from {from_ms} ms over {steps:?}: {took:?}");
        }
        assert_eq!(Trace::constant(0).transfer(Duration::MAX, usize::MAX), TRANSFER_MAX);
    }

    #[test]
    fn scaling_keeps_the_shape() {
        let scaled = |steps: &Steps, max| -> Vec<u64> {
            trace(steps).scaled(max).steps().iter().map(|step| step.rate_bps).collect()
        };
        let steps = [(10, 0), (10, 50_000_000), (5, 100_000_000)];
        assert_eq!(scaled(&steps, 10_000_000), [0, 5_000_000, 10_000_000]);
        assert_eq!(scaled(&steps, 0), [0, 0, 0]);
        assert_eq!(scaled(&steps, u64::MAX), [0, u64::MAX / 2, u64::MAX]);
        assert_eq!(scaled(&[(10, 0)], 1_000), [0]);
        assert_eq!(trace(&steps).scaled(1).length(), Duration::from_millis(25));
    }
}
