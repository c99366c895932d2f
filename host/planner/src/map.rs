//! The dynamic mode of the journal paper ("Edge AI", 2019): plans made beforehand for each state of the
//! link, and looked up when its state changes.
//!
//! Its Algorithm 2 ([`ConfigurationMap`]) takes for each state the plan of the greatest reward,
//! `exp(accuracy) + 1 / latency in seconds` for a plan that keeps the deadline and 0 for any other. Its
//! Algorithm 3 ([`Dynamic`]) looks up another plan when the change-point detector says that the state
//! changed. What differs here, and why:
//!
//! * the plans are those of [`choose`], with both orders of the hosts and their codecs, at its costs;
//! * where nothing keeps the deadline, the plan of least latency is taken, and is marked;
//! * a plan that is hardly better than the one in force does not replace it: a change costs, too.
//!
//! The reward is the paper's. Mind that latencies far below a second make its second term the larger
//! one: at 10 ms it is 100, and no accuracy earns more than 2.72. Then the map prefers fast exits to
//! accurate ones, unlike [`choose`], which takes the most accurate that fits.

use crate::changepoint::ChangePoints;
use crate::choose::{Candidate, Constraints, Link, Verdict, choose, explain, predict};
use crate::network::{Network, Plan, Profile};
use crate::residuals::Margin;

/// More states than this are a mistake; a map takes memory by their square.
pub const STATES_MAX: usize = 256;

/// For each state of the link, what to do in it.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigurationMap {
    /// By growing rate; at least one.
    states: Vec<State>,
    /// `forecasts[now][plan]`: what the plan of state `plan` is worth in state `now`.
    forecasts: Vec<Vec<Forecast>>,
}

/// A state of the link, and the plan to follow in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct State {
    /// Bits a second.
    pub rate_bps: f64,
    /// What to do.
    pub plan: Plan,
    /// What that is worth; 0 if it does not fit.
    pub reward: f64,
    /// Predicted time from the request to the answer.
    pub latency_us: f64,
    /// How often the answer is right.
    pub accuracy: f64,
    /// Whether the deadline is predicted to be kept. If not, nothing keeps it.
    pub fits: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Forecast {
    reward: f64,
    latency_us: f64,
    fits: bool,
}

/// Why there is no map.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum MapError {
    /// There is nothing to look up.
    #[error("a map needs at least one rate")]
    NoRate,
    /// More than a map is made for.
    #[error("{got} rates; a map has at most {STATES_MAX} states")]
    TooMany {
        /// How many there are.
        got: usize,
    },
    /// A rate that is none.
    #[error("{rate_bps} bit/s is no rate; it must be finite and above 0")]
    Rate {
        /// The rate.
        rate_bps: f64,
    },
}

impl ConfigurationMap {
    /// The best plan for each of the rates. Of the constraints' link only the round trip counts; without
    /// a link, every plan is for the device alone.
    pub fn build(
        network: &Network,
        profile: &Profile,
        constraints: &Constraints,
        rates_bps: &[f64],
    ) -> Result<Self, MapError> {
        if rates_bps.len() > STATES_MAX {
            return Err(MapError::TooMany { got: rates_bps.len() });
        }
        if let Some(rate_bps) = rates_bps.iter().copied().find(|rate| !rate.is_finite() || *rate <= 0.0) {
            return Err(MapError::Rate { rate_bps });
        }
        let mut rates_bps = rates_bps.to_vec();
        rates_bps.sort_by(f64::total_cmp);
        rates_bps.dedup();
        if rates_bps.is_empty() {
            return Err(MapError::NoRate);
        }
        let at = |rate_bps| {
            let link = constraints.link.map(|link| Link { rate_bps, ..link });
            Constraints { link, ..*constraints }
        };
        let best = |rate_bps: &f64| State::best(network, profile, &at(*rate_bps), *rate_bps);
        let states: Vec<State> = rates_bps.iter().map(best).collect();
        let forecast = |now: &State, plan: Plan| {
            let candidate = predict(network, profile, &at(now.rate_bps), plan);
            let nothing = Forecast { reward: 0.0, latency_us: f64::INFINITY, fits: false };
            candidate.map_or(nothing, |candidate| Forecast::of(&candidate, constraints.deadline_us))
        };
        let forecasts =
            states.iter().map(|now| states.iter().map(|other| forecast(now, other.plan)).collect()).collect();
        Ok(Self { states, forecasts })
    }

    /// The state that is nearest on a logarithmic scale; between two, the slower. What is no rate is the
    /// slowest state.
    pub fn lookup(&self, rate_bps: f64) -> &State {
        &self.states[self.index(rate_bps)]
    }

    /// All of them, by growing rate.
    pub fn states(&self) -> &[State] {
        &self.states
    }

    fn index(&self, rate_bps: f64) -> usize {
        let off = |state: &State| (state.rate_bps.ln() - rate_bps.ln()).abs();
        let faster = self.states.partition_point(|state| state.rate_bps < rate_bps);
        match faster.checked_sub(1) {
            Some(slower) if faster == self.states.len() => slower,
            Some(slower) if off(&self.states[slower]) <= off(&self.states[faster]) => slower,
            _ => faster,
        }
    }
}

impl State {
    fn best(network: &Network, profile: &Profile, constraints: &Constraints, rate_bps: f64) -> Self {
        let constraints = &Constraints { margin: Margin::NONE, ..*constraints };
        // Fits if anything does; if not, it is the fastest.
        let fastest = choose(network, profile, constraints);
        let reward = |candidate: &Candidate| Forecast::of(candidate, constraints.deadline_us).reward;
        let is_allowed = |verdict| !matches!(verdict, Verdict::InputMustStay | Verdict::CodecTooLossy);
        let mut best = fastest.candidate;
        if fastest.fits {
            for explained in explain(network, profile, constraints).iter().filter(|e| is_allowed(e.verdict)) {
                let (new, old) = (explained.candidate, best);
                let sends = |candidate: &Candidate| candidate.cost.transfer_us;
                if reward(&new).total_cmp(&reward(&old)).then(sends(&old).total_cmp(&sends(&new))).is_gt() {
                    best = new;
                }
            }
        }
        Self {
            rate_bps,
            plan: best.plan,
            reward: reward(&best),
            latency_us: best.cost.total_us(),
            accuracy: best.accuracy,
            fits: fastest.fits,
        }
    }
}

/// No plan is rewarded as faster than this.
const LATENCY_MIN_US: f64 = 1.0;

impl Forecast {
    fn of(candidate: &Candidate, deadline_us: f64) -> Self {
        let latency_us = candidate.cost.total_us();
        // Without a deadline (infinity), an unknown latency still does not fit.
        let fits = latency_us.is_finite() && latency_us <= deadline_us;
        let reward = if fits { candidate.accuracy.exp() + 1e6 / latency_us.max(LATENCY_MIN_US) } else { 0.0 };
        Self { reward, latency_us, fits }
    }
}

/// By how much another plan's reward must exceed that of the plan in force to be worth a change, unless
/// the operator says otherwise.
pub const SWITCH_COST_REWARD: f64 = 0.1;

/// Where nothing keeps the deadline, another plan must be faster by this factor to be worth a change.
const CLEARLY_FASTER: f64 = 0.85;

/// Follows the link by a map made beforehand.
#[derive(Clone, Debug)]
pub struct Dynamic {
    map: ConfigurationMap,
    changes: ChangePoints,
    switch_cost_reward: f64,
    /// The state whose plan is in force.
    in_force: Option<usize>,
}

impl Dynamic {
    /// Knows nothing of the link yet. A cost that is none (not a number, below 0) is
    /// [`SWITCH_COST_REWARD`]; an infinite one keeps a plan as long as it fits.
    pub fn new(map: ConfigurationMap, changes: ChangePoints, switch_cost_reward: f64) -> Self {
        let switch_cost_reward = if switch_cost_reward >= 0.0 { switch_cost_reward } else { SWITCH_COST_REWARD };
        Self { map, changes, switch_cost_reward, in_force: None }
    }

    /// Learns from a measured rate; the state whose plan to switch to, if a switch is worthwhile. The
    /// first rate is followed at once, since no plan is in force yet.
    pub fn observe(&mut self, rate_bps: f64) -> Option<&State> {
        let is_change = self.changes.observe(rate_bps);
        let known_bps = self.changes.rate_bps()?;
        let next = self.map.index(known_bps);
        let is_switch = match self.in_force {
            None => true,
            Some(old) => is_change && self.is_worthwhile(old, next),
        };
        if !is_switch {
            return None;
        }
        self.in_force = Some(next);
        self.map.states.get(next)
    }

    /// The state whose plan is in force; `None` before the first rate.
    pub fn in_force(&self) -> Option<&State> {
        self.in_force.map(|index| &self.map.states[index])
    }

    /// The map it follows.
    pub fn map(&self) -> &ConfigurationMap {
        &self.map
    }

    /// What it knows of the link.
    pub fn changes(&self) -> &ChangePoints {
        &self.changes
    }

    fn is_worthwhile(&self, old: usize, next: usize) -> bool {
        let (state, kept) = (&self.map.states[next], self.map.forecasts[next][old]);
        if state.plan == self.map.states[old].plan {
            return false;
        }
        match (state.fits, kept.fits) {
            (true, true) => state.reward > kept.reward + self.switch_cost_reward,
            // The deadline is worth any change.
            (true, false) => true,
            (false, _) => state.latency_us < CLEARLY_FASTER * kept.latency_us,
        }
    }
}
