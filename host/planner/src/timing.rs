//! How long each segment takes, from the last times it ran.

/// Times of the last runs of every segment of a network on one host.
#[derive(Clone, Debug)]
pub struct Timings {
    windows: Vec<Window>,
}

/// Old times are forgotten after this many runs; a median over them shrugs off outliers.
const WINDOW: usize = 15;

#[derive(Clone, Debug, Default)]
struct Window {
    times_us: [f64; WINDOW],
    runs: usize,
}

impl Timings {
    /// No runs yet.
    pub fn new(segments: usize) -> Self {
        Self { windows: vec![Window::default(); segments] }
    }

    /// A segment ran. Times that are no times are ignored.
    pub fn record(&mut self, segment: usize, us: f64) {
        if let Some(window) = self.windows.get_mut(segment).filter(|_| us.is_finite() && us >= 0.0) {
            window.times_us[window.runs % WINDOW] = us;
            window.runs += 1;
        }
    }

    /// The median time of each segment; infinite for one that never ran, so that no plan counts on it.
    pub fn medians_us(&self) -> Vec<f64> {
        self.windows.iter().map(Window::median).collect()
    }
}

impl Window {
    fn median(&self) -> f64 {
        let filled = self.runs.min(WINDOW);
        let mut times = self.times_us;
        times[..filled].sort_by(f64::total_cmp);
        times[..filled].get(filled / 2).copied().unwrap_or(f64::INFINITY)
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
        timings.record(0, f64::NAN);
        timings.record(7, 1.0);
        assert_eq!(timings.medians_us()[0], 100.0);
        (0..WINDOW).for_each(|_| timings.record(0, 30.0));
        assert_eq!(timings.medians_us()[0], 30.0);
    }
}
