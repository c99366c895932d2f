//! What one would do who knew the link's future and each segment's time: what all strategies are measured by.
//!
//! It is reckoned, not run: each plan's latency follows from the times that segments and codecs take here in the median,
//! and from the bits that the trace lets through from the moment at which the plan would send. So it is never surprised,
//! and no strategy on real hosts can be expected to reach it. Requests do not wait for each other: an answer in
//! time is there before the next request of a trace.

use crate::rig::DELAY;
use crate::trace::Trace;
use edgent_planner::{Candidate, Constraints, Direction, Link, Margin, Network, Placement, Profile, Verdict, explain};
use edgent_runtime::codec;
use std::time::Duration;

/// All plans, each with what it does when.
pub(super) struct Oracle {
    plans: Vec<Course>,
}

/// The course of one plan.
struct Course {
    exit: usize,
    /// The exit's, as ours compares plans: what a codec loses was found small enough to trade for time.
    accuracy: f64,
    /// Before something is sent.
    before_us: f64,
    /// What is sent there and back; nothing if all is done on the device.
    sent_bytes: Option<(u64, u64)>,
    between_us: f64,
    after_us: f64,
}

/// The best plan for a request, and what it would take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ideal {
    pub(super) exit: usize,
    pub(super) accuracy: f64,
    pub(super) latency_ms: f64,
}

impl Oracle {
    /// For a network whose segments take these times.
    pub(super) fn new(network: &Network, profile: &Profile, codec_loss_max: f64) -> Self {
        let constraints = Constraints {
            deadline_us: f64::INFINITY,
            codec_loss_max,
            input_may_leave: true,
            accuracy_min: 0.0,
            // Any rate: which plans there are does not depend on it.
            link: Some(Link { rate_bps: 1e6, rtt_us: 0.0, message_bytes: codec::MESSAGE_BYTES }),
            margin: Margin::NONE,
        };
        let explained = explain(network, profile, &constraints);
        let allowed = explained.iter().filter(|plan| plan.verdict != Verdict::CodecTooLossy);
        Self { plans: allowed.filter_map(|plan| Course::of(network, plan.candidate)).collect() }
    }

    /// The most accurate exit that would be in time for a request at that moment of the trace, by its fastest plan; none
    /// if nothing would.
    pub(super) fn best(&self, trace: &Trace, at: Duration, deadline_ms: f64) -> Option<Ideal> {
        let ideal = |course: &Course| Ideal {
            exit: course.exit,
            accuracy: course.accuracy,
            latency_ms: course.latency_us(trace, at) / 1e3,
        };
        let in_time = self.plans.iter().map(ideal).filter(|ideal| ideal.latency_ms <= deadline_ms);
        in_time.max_by(|a, b| a.accuracy.total_cmp(&b.accuracy).then(b.latency_ms.total_cmp(&a.latency_ms)))
    }
}

impl Course {
    fn of(network: &Network, candidate: Candidate) -> Option<Self> {
        let (plan, cost) = (candidate.plan, candidate.cost);
        let exit = &network.exits()[plan.exit];
        let bytes = |cut: usize| &network.boundaries()[exit.boundaries[cut]];
        let (device_us, edge_us, codec_us) = (cost.device_us, cost.edge_us, cost.codec_us);
        let coded_bytes = bytes(plan.cut).bytes(plan.codec)?;
        let (exit_index, accuracy) = (plan.exit, exit.accuracy);
        Some(match (plan.placement(network), plan.direction) {
            (Placement::DeviceOnly, _) => Self {
                exit: exit_index,
                accuracy,
                before_us: device_us,
                sent_bytes: None,
                between_us: 0.0,
                after_us: 0.0,
            },
            (_, Direction::DeviceFirst) => Self {
                exit: exit_index,
                accuracy,
                before_us: device_us + codec_us,
                sent_bytes: Some((coded_bytes + codec::MESSAGE_BYTES, bytes(exit.path.len()).raw_bytes())),
                between_us: edge_us,
                after_us: 0.0,
            },
            (_, Direction::EdgeFirst) => Self {
                exit: exit_index,
                accuracy,
                before_us: 0.0,
                sent_bytes: Some((bytes(0).raw_bytes() + codec::MESSAGE_BYTES, coded_bytes)),
                between_us: edge_us,
                after_us: codec_us + device_us,
            },
        })
    }

    fn latency_us(&self, trace: &Trace, at: Duration) -> f64 {
        let mut us = self.before_us;
        if let Some((there, back)) = self.sent_bytes {
            for (bytes, then_us) in [(there, self.between_us), (back, self.after_us)] {
                let sent_at = at + Duration::from_secs_f64(us / 1e6);
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                us += (trace.transfer(sent_at, bytes) + DELAY).as_secs_f64() * 1e6 + then_us;
            }
        }
        us
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Step;
    use edgent_planner::{Boundary, Codec, Coding, Exit, PerCodec};

    /// Two segments of 100 ms on the device and 1 ms on the edge; an exit after each. 1,000 bytes in, 100 between, 10 out.
    fn oracle() -> Oracle {
        let boundaries = [1_000, 100, 10, 10].map(Boundary::new).to_vec();
        let exit = |accuracy, path: Vec<usize>, boundaries: Vec<usize>| Exit {
            accuracy,
            coded_accuracy: vec![
                PerCodec::from_fn(|codec| (codec == Codec::Raw).then_some(accuracy));
                boundaries.len()
            ],
            path,
            boundaries,
        };
        let exits = vec![exit(0.7, vec![0, 1], vec![0, 1, 2]), exit(0.9, vec![0, 2], vec![0, 1, 3])];
        let network = Network::new(boundaries, exits, 3).unwrap();
        let profile = Profile {
            device_us: vec![50e3, 10e3, 50e3],
            edge_us: vec![1e3; 3],
            edge_queue_us: 0.0,
            coding: PerCodec::from_fn(|_| Coding::FREE),
        };
        Oracle::new(&network, &profile, 0.0)
    }

    #[test]
    fn it_knows_what_the_link_will_be() {
        let step = |ms, rate_bps| Step { duration: Duration::from_millis(ms), rate_bps };
        // A megabit a second for a second, then nothing for a second.
        let trace = Trace::new(vec![step(1_000, 1_000_000), step(1_000, 0)]);
        let oracle = oracle();
        let best = |at_ms, deadline_ms| oracle.best(&trace, Duration::from_millis(at_ms), deadline_ms);
        let now = best(0, 60.0).unwrap();
        let bits_ms = |bytes: u64| bytes as f64 * 8.0 / 1e3;
        let expected_ms = 2.0 * 2.0 + bits_ms(1_000 + codec::MESSAGE_BYTES) + bits_ms(10) + 2.0;
        assert_eq!(now.exit, 1);
        assert!((now.latency_ms - expected_ms).abs() < 0.01, "{now:?}, not {expected_ms} ms");
        let before_the_outage = best(990, 60.0);
        assert!(before_the_outage.is_some_and(|ideal| ideal.exit == 0), "on the device, which has 60 ms for it");
        assert!(best(1_500, 110.0).is_some_and(|ideal| ideal.exit == 1 && ideal.latency_ms == 100.0));
        assert!(best(1_500, 50.0).is_none());
    }
}
