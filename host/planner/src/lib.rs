//! Decides where a network is cut, where it is left, and when that decision changes.
//!
//! Pure: no IO, no clock, no randomness. Everything that happened, and the time at which it did,
//! comes in as arguments; what should be done comes out as values. All durations are `f64`
//! microseconds unless their type says otherwise.
//!
//! * [`Network`] and [`Profile`]: what can be planned, and what it costs.
//! * [`choose`]: Algorithm 1 of Li, Zhou and Chen (2018, section 3.3), extended.
//! * [`Strategy`]: that, the paper's own algorithm ([`algorithm_1`]), and what both are compared with.
//! * [`Residuals`]: how likely a predicted latency is to be kept to.
//! * [`LinkEstimate`]: the link's rate and round trip, from what was sent anyway.
//! * [`ChangePoints`]: whether the link is in another state than before.
//! * [`ConfigurationMap`] and [`Dynamic`]: plans made beforehand for each state of the link.
//! * [`Regression`]: how long a layer takes, from its sizes (the same paper's Table 1).
//! * [`Doubt`]: when a host measures its segments again.
//! * [`Controller`]: `(state, event, now) → actions` of the device.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod changepoint;
mod choose;
mod codec;
mod controller;
mod doubt;
mod estimate;
mod map;
mod network;
mod paper;
mod regression;
mod resident;
mod residuals;
mod strategy;
mod timing;

pub use changepoint::{ChangePoints, ChangeSettings};
pub use choose::{Candidate, Choice, Constraints, Cost, Explained, Link, Verdict, choose, explain};
pub use codec::{Codec, Coding, PerCodec};
pub use controller::{Action, Controller, Event, Installed, Planned, Settings};
pub use doubt::Doubt;
pub use estimate::{Exchange, LinkEstimate};
pub use map::{ConfigurationMap, Dynamic, MapError, STATES_MAX, SWITCH_COST_REWARD, State};
pub use network::{
    Boundary, Direction, EXITS_MAX, Exit, Network, NetworkError, Placement, Plan, Profile, SEGMENTS_MAX,
};
pub use paper::algorithm_1;
pub use regression::{FEATURES_MAX, Quality, Regression, RegressionError, SAMPLES_MAX, Sample};
pub use resident::{least_bytes, resident};
pub use residuals::{Margin, Residuals};
pub use strategy::Strategy;
pub use timing::Timings;
