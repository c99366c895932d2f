//! Algorithm 1 of the Edgent paper, as published: exit point and partition point search (Li, Zhou and
//! Chen 2018, section 3.3).
//!
//! The edge runs the first layers and the device the rest: the input goes up, the activation comes down,
//! the answer is born on the device. One bandwidth for both ways; no round trip, no codec, no queue.
//! Exits are tried from the deepest; the first whose least latency is within the deadline wins. As
//! printed, the sums would leave one layer on the device where the text means edge-only; here, as in
//! the text, a cut is the number of layers on the edge, from none (nothing is sent) to all (nothing
//! comes back but the answer, which counts as nothing).

use crate::codec::Codec;
use crate::network::{Direction, Exit, Network, Plan, Profile};

/// The plan that Algorithm 1 returns, with its predicted latency; `None` where it returns NULL.
pub fn algorithm_1(network: &Network, profile: &Profile, rate_bps: f64, deadline_us: f64) -> Option<(Plan, f64)> {
    let deepest_first = (0..network.exits().len()).rev();
    deepest_first
        .map(|exit| fastest(network, profile, rate_bps, exit))
        .find(|(_, latency_us)| *latency_us <= deadline_us)
}

/// The plan of least latency for one exit, by the paper's cost.
fn fastest(network: &Network, profile: &Profile, rate_bps: f64, index: usize) -> (Plan, f64) {
    let exit = &network.exits()[index];
    let mut least = (plan(index, 0, exit.path.len()), f64::INFINITY);
    for on_edge in 0..=exit.path.len() {
        let latency_us = latency_us(network, profile, rate_bps, exit, on_edge);
        if latency_us < least.1 {
            least = (plan(index, on_edge, exit.path.len()), latency_us);
        }
    }
    least
}

/// Microseconds; infinite where a time is not known.
fn latency_us(network: &Network, profile: &Profile, rate_bps: f64, exit: &Exit, on_edge: usize) -> f64 {
    let time = |times_us: &[f64], segment: &usize| {
        times_us.get(*segment).copied().filter(|us| *us >= 0.0).unwrap_or(f64::INFINITY)
    };
    let (there, here) = exit.path.split_at(on_edge);
    let edge_us: f64 = there.iter().map(|segment| time(&profile.edge_us, segment)).sum();
    let device_us: f64 = here.iter().map(|segment| time(&profile.device_us, segment)).sum();
    let transfer_us = |cut: usize| network.boundary(exit, cut).raw_bytes() as f64 * 8e6 / rate_bps;
    let up_us = if there.is_empty() { 0.0 } else { transfer_us(0) };
    let down_us = if there.is_empty() || here.is_empty() { 0.0 } else { transfer_us(on_edge) };
    let latency_us = edge_us + device_us + up_us + down_us;
    if latency_us >= 0.0 { latency_us } else { f64::INFINITY }
}

fn plan(exit: usize, on_edge: usize, segments: usize) -> Plan {
    match on_edge {
        0 => Plan { exit, cut: segments, direction: Direction::DeviceFirst, codec: Codec::Raw },
        all if all == segments => Plan { exit, cut: 0, direction: Direction::DeviceFirst, codec: Codec::Raw },
        some => Plan { exit, cut: some, direction: Direction::EdgeFirst, codec: Codec::Raw },
    }
}
