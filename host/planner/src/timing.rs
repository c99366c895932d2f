//! How long each segment takes, from the last times it ran.

/// Times of the last runs of every segment of a network on one host.
#[derive(Clone, Debug)]
pub struct Timings {
    windows: Vec<Window>,
}

/// Old times are forgotten after this many runs; a quantile over them shrugs off outliers.
const WINDOW_RUNS: usize = 12;

#[derive(Clone, Debug)]
struct Window {
    times_us: [f64; WINDOW_RUNS],
    runs: usize,
}

impl Timings {
    /// After so many runs, the median is one of theirs.
    pub const MEDIAN_RUNS: usize = WINDOW_RUNS / 2 + 1;

    /// No runs yet.
    pub fn new(segments: usize) -> Self {
        Self { windows: vec![Window { times_us: [0.0; WINDOW_RUNS], runs: 0 }; segments] }
    }

    /// A segment ran. Times that are no times are ignored.
    pub fn record(&mut self, segment: usize, us: f64) {
        if let Some(window) = self.windows.get_mut(segment).filter(|_| us.is_finite() && us >= 0.0) {
            window.times_us[window.runs % WINDOW_RUNS] = us;
            window.runs += 1;
        }
    }

    /// The median time of each segment; infinite for one that never ran, so that no plan counts on it.
    pub fn medians_us(&self) -> Vec<f64> {
        self.windows.iter().map(|window| window.quantile(0.5)).collect()
    }

    /// The median time of one segment; infinite if it never ran.
    pub fn median_us(&self, segment: usize) -> f64 {
        self.windows.get(segment).map_or(f64::INFINITY, |window| window.quantile(0.5))
    }

    /// The time that nine of ten of a segment's last runs kept to; infinite for one that never ran.
    pub fn p90_us(&self, segment: usize) -> f64 {
        self.windows.get(segment).map_or(f64::INFINITY, |window| window.quantile(0.9))
    }

    /// How many runs of a segment are remembered.
    pub fn runs(&self, segment: usize) -> usize {
        self.windows.get(segment).map_or(0, |window| window.runs.min(WINDOW_RUNS))
    }
}

impl Window {
    fn quantile(&self, share: f64) -> f64 {
        let mut times = self.times_us;
        let filled = &mut times[..self.runs.min(WINDOW_RUNS)];
        filled.sort_unstable_by(f64::total_cmp);
        filled.get((filled.len() as f64 * share) as usize).copied().unwrap_or(f64::INFINITY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_forgets_old_times_and_outliers() {
        let mut timings = Timings::new(2);
        assert_eq!(timings.medians_us(), [f64::INFINITY; 2]);
        (0..10).for_each(|_| timings.record(0, 100.0));
        timings.record(0, 1e9);
        for (segment, us) in [(0, f64::NAN), (0, -1.0), (0, f64::INFINITY), (7, 1.0)] {
            timings.record(segment, us);
        }
        assert_eq!(timings.medians_us(), [100.0, f64::INFINITY]);
        (0..WINDOW_RUNS).for_each(|_| timings.record(0, 30.0));
        assert_eq!(timings.medians_us()[0], 30.0);
    }

    #[test]
    fn quantiles_are_those_of_the_last_runs() {
        let mut timings = Timings::new(1);
        timings.record(0, 7.0);
        assert_eq!((timings.medians_us()[0], timings.p90_us(0)), (7.0, 7.0));
        (0..1_000).for_each(|run| timings.record(0, f64::from(run)));
        assert_eq!((timings.runs(0), timings.runs(7), timings.p90_us(7)), (WINDOW_RUNS, 0, f64::INFINITY));
        // The last 12 are 988 to 999.
        assert_eq!((timings.medians_us()[0], timings.p90_us(0)), (994.0, 998.0));
    }
}
