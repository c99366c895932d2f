//! How far predictions were off, and so how likely a plan is to be in time.
//!
//! For each request, the ratio of its latency to the predicted one is remembered. The share of the
//! remembered ratios with which a plan would be in time is its probability of being in time: no model
//! of the noise is assumed (split conformal prediction; Vovk et al. 2005). Since the world drifts, the
//! quantile that is asked for is itself corrected online by whether it was kept: adaptive conformal
//! inference (Gibbs and Candès 2021, equation 2), which keeps the wanted share in the long run whatever
//! the drift. Plans that cross the link and plans that do not are remembered apart.

/// Ratios that are remembered for each kind of plan.
const WINDOW: usize = 64;

/// What is assumed before anything was seen: ratios spread evenly within so much of 1.
const PRIOR_SPREAD: f64 = 0.15;

/// How much one request moves the quantile that is asked for.
const STEP: f64 = 0.01;
const LEVEL_MIN: f64 = 0.5;
/// A level over 1 asks for more than anything that was seen…
const LEVEL_MAX: f64 = 1.1;
/// …by this share of the greatest ratio for each whole level.
const BEYOND: f64 = 5.0;

/// Beyond this a plan was not slow but stuck; by how much says nothing of the next one.
const RATIO_MAX: f64 = 4.0;

/// What predictions must be multiplied with to be kept to as often as wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Margin {
    /// Of plans that stay on the device.
    pub alone: f64,
    /// Of plans that cross the link.
    pub together: f64,
}

impl Margin {
    /// Predictions taken as they are.
    pub const NONE: Self = Self { alone: 1.0, together: 1.0 };
}

/// The remembered ratios of latency to prediction.
#[derive(Clone, Debug)]
pub struct Residuals {
    in_time_share: f64,
    alone: Window,
    together: Window,
}

impl Residuals {
    /// Nothing seen yet; `in_time_share` of the requests are wanted in time.
    pub fn new(in_time_share: f64) -> Self {
        Self { in_time_share, alone: Window::new(in_time_share), together: Window::new(in_time_share) }
    }

    /// A request took `actual_us`, or at least that long if it was given up then.
    pub fn record(&mut self, crosses: bool, predicted_us: f64, actual_us: f64) {
        let ratio = actual_us / predicted_us;
        if ratio.is_finite() && ratio > 0.0 {
            let share = self.in_time_share;
            self.window_mut(crosses).record(ratio.min(RATIO_MAX), share);
        }
    }

    /// Time passed without plans of that kind: what was seen of them counts a little less.
    pub fn forget(&mut self, crosses: bool) {
        let share = self.in_time_share;
        self.window_mut(crosses).forget(share);
    }

    /// What to multiply predictions with.
    pub fn margin(&self) -> Margin {
        Margin { alone: self.alone.margin(), together: self.together.margin() }
    }

    /// How likely a plan with that predicted latency is to be in time.
    pub fn in_time(&self, crosses: bool, predicted_us: f64, deadline_us: f64) -> f64 {
        let window = if crosses { &self.together } else { &self.alone };
        window.share_below(deadline_us / predicted_us)
    }

    fn window_mut(&mut self, crosses: bool) -> &mut Window {
        if crosses { &mut self.together } else { &mut self.alone }
    }
}

#[derive(Clone, Debug)]
struct Window {
    ratios: [f64; WINDOW],
    next: usize,
    level: f64,
}

impl Window {
    fn new(level: f64) -> Self {
        let ratios = std::array::from_fn(prior);
        Self { ratios, next: 0, level: level.clamp(LEVEL_MIN, LEVEL_MAX) }
    }

    fn record(&mut self, ratio: f64, wanted_share: f64) {
        let kept = if ratio <= self.margin() { 1.0 } else { 0.0 };
        self.level = (self.level + STEP * (wanted_share - kept)).clamp(LEVEL_MIN, LEVEL_MAX);
        self.push(ratio);
    }

    fn forget(&mut self, wanted_share: f64) {
        // A stride without a common factor with the window's length, so that the spread stays even.
        self.push(prior(self.next * 37 % WINDOW));
        self.level = (self.level + STEP * (wanted_share - self.level)).clamp(LEVEL_MIN, LEVEL_MAX);
    }

    fn push(&mut self, ratio: f64) {
        self.ratios[self.next % WINDOW] = ratio;
        self.next = (self.next + 1) % WINDOW;
    }

    fn margin(&self) -> f64 {
        let mut ratios = self.ratios;
        let position = ((WINDOW as f64 * self.level) as usize).min(WINDOW - 1);
        let seen = *ratios.select_nth_unstable_by(position, f64::total_cmp).1;
        (seen * (1.0 + BEYOND * (self.level - 1.0).max(0.0))).min(RATIO_MAX)
    }

    fn share_below(&self, ratio: f64) -> f64 {
        self.ratios.iter().filter(|seen| **seen <= ratio).count() as f64 / WINDOW as f64
    }
}

fn prior(index: usize) -> f64 {
    1.0 - PRIOR_SPREAD + 2.0 * PRIOR_SPREAD * (index as f64 + 0.5) / WINDOW as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Even over (0, 1), the same on every machine.
    fn seeded(state: &mut u64) -> f64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 11) as f64 / (1_u64 << 53) as f64
    }

    #[test]
    fn the_wanted_share_is_kept_whatever_the_noise_and_however_it_drifts() {
        type Noise = fn(usize, f64) -> f64;
        let noises: [(&str, Noise); 4] = [
            ("narrow", |_, u| 0.98 + 0.04 * u),
            ("heavy tail", |_, u| 0.9 / (1.0 - u).powf(0.3)),
            ("biased", |_, u| 1.8 + 0.2 * u),
            ("drifting", |i, u| 1.0 + (i as f64 / 300.0).sin() * 0.4 + 0.1 * u),
        ];
        for (name, noise) in noises {
            for wanted in [0.8, 0.9, 0.95] {
                let (mut residuals, mut state, mut kept) = (Residuals::new(wanted), 7, 0);
                for i in 0..10_000 {
                    let actual_us = 100.0 * noise(i, seeded(&mut state));
                    kept += usize::from(actual_us <= 100.0 * residuals.margin().together);
                    residuals.record(true, 100.0, actual_us);
                }
                let share = kept as f64 / 10_000.0;
                assert!((-0.02..0.07).contains(&(share - wanted)), "{name}: {share} in place of {wanted}");
                assert_eq!(residuals.margin().alone, Residuals::new(wanted).margin().alone, "kinds are apart");
            }
        }
    }

    #[test]
    fn a_probability_is_the_share_of_what_was_seen() {
        let mut residuals = Residuals::new(0.9);
        (0..WINDOW).for_each(|i| residuals.record(false, 10.0, if i % 4 == 0 { 20.0 } else { 10.0 }));
        for (deadline_us, expected) in [(9.0, 0.0), (10.0, 0.75), (19.9, 0.75), (20.0, 1.0)] {
            assert_eq!(residuals.in_time(false, 10.0, deadline_us), expected, "{deadline_us}");
        }
    }

    #[test]
    fn bad_luck_is_forgotten_and_nonsense_teaches_nothing() {
        let fresh = Residuals::new(0.95);
        let mut residuals = fresh.clone();
        let nonsense = [(0.0, 1.0), (1.0, 0.0), (f64::NAN, 1.0), (1.0, f64::INFINITY), (-1.0, 1.0)];
        nonsense.iter().for_each(|(predicted, actual)| residuals.record(true, *predicted, *actual));
        assert_eq!(residuals.margin(), fresh.margin());
        (0..WINDOW).for_each(|_| residuals.record(true, 1.0, 1e9));
        assert_eq!(residuals.margin().together, RATIO_MAX);
        (0..3 * WINDOW).for_each(|_| residuals.forget(true));
        assert!((residuals.margin().together - fresh.margin().together).abs() < 0.02);
    }
}
