//! When a host should measure its segments again.
//!
//! A host that seems slow is given less to do, and segments that do not run are not measured: one bad moment would keep
//! them from ever running again. So a time that is worse than usual is believed only for a while.

use crate::timing::Timings;
use std::time::Duration;

/// A segment that takes so many times its usual time is doubted.
const WORSE: f64 = 1.5;

/// What nobody has seen for this long is measured again…
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// …and after twice as long each time that it proves true, up to this.
const PAUSE_MAX: Duration = Duration::from_secs(64);

/// What is known of a host's segments, and since when.
#[derive(Clone, Debug)]
pub struct Doubt {
    usual_us: Vec<f64>,
    /// When each segment ran last.
    seen: Vec<Duration>,
    pause: Duration,
}

impl Doubt {
    /// Nothing is doubted of a host whose times were measured in peace, at its start.
    pub fn new(measured: &Timings, now: Duration) -> Self {
        let usual_us = measured.medians_us();
        Self { seen: vec![now; usual_us.len()], usual_us, pause: PAUSE_MIN }
    }

    /// A segment ran.
    pub fn ran(&mut self, segment: usize, now: Duration) {
        if let Some(seen) = self.seen.get_mut(segment) {
            *seen = now;
        }
    }

    /// Whether all segments should be run until their times are forgotten ([`Timings::MEDIAN_RUNS`] times), since one of
    /// them has not run for long and was slow then. Said once; it is then taken as done.
    pub fn is_due(&mut self, known: &Timings, now: Duration) -> bool {
        let is_slow = |segment: usize| known.median_us(segment) > WORSE * self.usual_us[segment];
        let slow: Vec<usize> = (0..self.usual_us.len()).filter(|segment| is_slow(*segment)).collect();
        if slow.is_empty() {
            self.pause = PAUSE_MIN;
            return false;
        }
        let is_due = slow.iter().any(|segment| now >= self.seen[*segment] + self.pause);
        if is_due {
            self.seen.fill(now);
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn timings(us: [f64; 2]) -> Timings {
        let mut timings = Timings::new(2);
        us.iter().enumerate().for_each(|(segment, us)| timings.record(segment, *us));
        timings
    }

    fn due(doubt: &mut Doubt, known: &Timings, within: std::ops::Range<u64>) -> Vec<u64> {
        within.filter(|now| doubt.is_due(known, s(*now))).collect()
    }

    #[test]
    fn what_was_slow_and_does_not_run_is_measured_again_ever_more_rarely() {
        let mut doubt = Doubt::new(&timings([100.0, 200.0]), s(0));
        assert!(due(&mut doubt, &timings([140.0, 200.0]), 0..1_000).is_empty(), "about as usual");
        let slow = timings([100.0, 900.0]);
        assert_eq!(
            due(&mut doubt, &slow, 1_000..1_300),
            [1_000, 1_002, 1_006, 1_014, 1_030, 1_062, 1_126, 1_190, 1_254]
        );
        assert!(due(&mut doubt, &timings([100.0, 200.0]), 1_300..1_400).is_empty());
        assert_eq!(due(&mut doubt, &slow, 1_400..1_404), [1_400, 1_402], "what was well is soon doubted again");
    }

    #[test]
    fn what_runs_is_not_measured_beside() {
        let mut doubt = Doubt::new(&timings([100.0, 200.0]), s(0));
        let slow = timings([100.0, 900.0]);
        for now in 1..100 {
            doubt.ran(1, s(now));
            assert!(!doubt.is_due(&slow, s(now)));
        }
        // The other one is no reason: it is as fast as ever.
        doubt.ran(0, s(101));
        assert!(doubt.is_due(&slow, s(101)));
    }

    #[test]
    fn a_segment_that_never_runs_here_is_not_doubted() {
        let mut doubt = Doubt::new(&timings([100.0, f64::INFINITY]), s(0));
        assert!(!doubt.is_due(&timings([100.0, f64::INFINITY]), s(1_000)));
    }
}
