//! The configuration map against brute force, and the dynamic mode as a story.
#![allow(clippy::unwrap_used)]

mod support;

use edgent_planner::*;
use support::{Seeded, network};

/// The best reward, and the least latency in microseconds, over every plan that is allowed; spelled out
/// without any of the planner's code.
fn brute_force(network: &Network, profile: &Profile, constraints: &Constraints) -> (f64, f64) {
    let boundaries = network.boundaries();
    let (mut best, mut least) = (0.0_f64, f64::INFINITY);
    let mut count = |accuracy: f64, latency_us: f64| {
        least = least.min(latency_us);
        if latency_us <= constraints.deadline_us {
            best = best.max(accuracy.exp() + 1.0 / (latency_us / 1e6));
        }
    };
    for exit in network.exits() {
        let n = exit.path.len();
        let sum = |times: &[f64], positions: std::ops::Range<usize>| -> f64 {
            exit.path[positions].iter().map(|segment| times[*segment]).sum()
        };
        count(exit.accuracy, sum(&profile.device_us, 0..n));
        let Some(link) = constraints.link else { continue };
        for cut in 0..=n {
            for edge_first in [false, true] {
                let (on_edge, on_device) = if edge_first { (0..cut, cut..n) } else { (cut..n, 0..cut) };
                let input_leaves = on_edge.start == 0;
                // Edge-only is counted once, with the input as what crosses.
                if on_edge.is_empty() || (edge_first && cut == n) || (input_leaves && !constraints.input_may_leave) {
                    continue;
                }
                let other = &boundaries[exit.boundaries[if edge_first { 0 } else { n }]];
                let crossing = &boundaries[exit.boundaries[cut]];
                for codec in Codec::ALL {
                    let measured = if codec == Codec::Raw {
                        Some((crossing.raw_bytes(), exit.accuracy))
                    } else {
                        crossing.bytes(codec).zip(exit.coded_accuracy[cut][codec])
                    };
                    let Some((bytes, accuracy)) = measured else { continue };
                    if accuracy < exit.accuracy - constraints.codec_loss_max {
                        continue;
                    }
                    let Coding { up_us_per_byte, down_us_per_byte } = profile.coding[codec];
                    let us_per_byte = if edge_first { down_us_per_byte } else { up_us_per_byte };
                    let codec_us = crossing.raw_bytes() as f64 * us_per_byte;
                    let transfer_us = (bytes + other.raw_bytes()) as f64 * 8e6 / link.rate_bps;
                    let compute_us =
                        sum(&profile.device_us, on_device.clone()) + sum(&profile.edge_us, on_edge.clone());
                    count(accuracy, compute_us + profile.edge_queue_us + link.rtt_us + transfer_us + codec_us);
                }
            }
        }
    }
    (best, least)
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

#[test]
fn every_state_has_the_plan_that_brute_force_finds() {
    let mut seeded = Seeded(0x2545_f491_4f6c_dd1d);
    let (mut fitting, mut states, mut unlike_choose) = (0, 0, 0);
    for case in 0..1_500 {
        let (network, profile) = network(&mut seeded);
        let link = Link { rate_bps: f64::NAN, rtt_us: seeded.next() * 40_000.0, message_bytes: 0 };
        let constraints = Constraints {
            // Accuracy and latency must both matter to some.
            deadline_us: 10f64.powf(4.0 + 2.0 * seeded.next()),
            codec_loss_max: seeded.next() * 0.02,
            input_may_leave: seeded.next() < 0.8,
            link: (seeded.next() < 0.95).then_some(link),
            accuracy_min: 0.0,
            margin: Margin::NONE,
        };
        let rates: Vec<f64> = (0..6).map(|_| 10f64.powf(4.0 + 4.0 * seeded.next())).collect();
        let map = ConfigurationMap::build(&network, &profile, &constraints, &rates).unwrap();
        assert_eq!(map.states().len(), rates.len());
        assert!(map.states().windows(2).all(|two| two[0].rate_bps < two[1].rate_bps));
        for state in map.states() {
            let link = constraints.link.map(|link| Link { rate_bps: state.rate_bps, ..link });
            let constraints = Constraints { link, ..constraints };
            let (best, least_us) = brute_force(&network, &profile, &constraints);
            assert_eq!(state.fits, best > 0.0, "case {case}: {state:?}");
            assert!(close(state.reward, best), "case {case}: {state:?}, but {best}");
            if state.fits {
                let reward = state.accuracy.exp() + 1e6 / state.latency_us;
                assert!(state.latency_us <= constraints.deadline_us && close(state.reward, reward), "{state:?}");
            } else {
                assert!(close(state.latency_us, least_us), "case {case}: {state:?}, but {least_us}");
            }
            let explained = explain(&network, &profile, &constraints);
            let told = explained.iter().find(|e| e.candidate.plan == state.plan).unwrap().candidate;
            assert_eq!((told.cost.total_us(), told.accuracy), (state.latency_us, state.accuracy));
            fitting += usize::from(state.fits);
            states += 1;
            unlike_choose += usize::from(choose(&network, &profile, &constraints).candidate.plan != state.plan);
        }
    }
    assert!((states / 4..states * 9 / 10).contains(&fitting), "one-sided: {fitting} of {states} fit");
    assert!(unlike_choose > states / 10, "the reward decides nothing: {unlike_choose} of {states}");
}

/// One segment and two exits behind it: a fast one and a better one.
fn small() -> (Network, Profile, Constraints) {
    let exit = |accuracy, path: &[usize], boundaries: &[usize]| Exit {
        accuracy,
        path: path.into(),
        boundaries: boundaries.into(),
        coded_accuracy: vec![PerCodec::default(); boundaries.len()],
    };
    let exits = vec![exit(0.6, &[0, 1], &[0, 1, 2]), exit(0.9, &[0, 2], &[0, 1, 3])];
    let network = Network::new([12_500, 12_500, 40, 40].map(Boundary::new).to_vec(), exits, 3).unwrap();
    let profile = Profile {
        device_us: vec![300e3, 500e3, 1_500e3],
        edge_us: vec![3e3, 5e3, 15e3],
        edge_queue_us: 0.0,
        coding: PerCodec::from_fn(|_| Coding::FREE),
    };
    let link = Some(Link { rate_bps: f64::NAN, rtt_us: 2e3, message_bytes: 0 });
    (
        network,
        profile,
        Constraints {
            deadline_us: 1e6,
            codec_loss_max: 0.0,
            input_may_leave: true,
            link,
            accuracy_min: 0.0,
            margin: Margin::NONE,
        },
    )
}

const RATES_BPS: [f64; 4] = [100e3, 300e3, 1e6, 10e6];

fn dynamic(switch_cost_reward: f64) -> Dynamic {
    let (network, profile, constraints) = small();
    let map = ConfigurationMap::build(&network, &profile, &constraints, &RATES_BPS).unwrap();
    Dynamic::new(map, ChangePoints::new(ChangeSettings::default()), switch_cost_reward)
}

#[test]
fn the_nearest_state_is_looked_up() {
    let (network, profile, constraints) = small();
    let build = |rates: &[f64]| ConfigurationMap::build(&network, &profile, &constraints, rates);
    let map = build(&[10e6, 100e3, 1e6, 1e6]).unwrap();
    assert_eq!(map.states().iter().map(|state| state.rate_bps).collect::<Vec<_>>(), [100e3, 1e6, 10e6]);
    let nonsense = [f64::NAN, -1.0, 0.0, f64::NEG_INFINITY].map(|rate| (rate, 100e3));
    let cases = [(1.0, 100e3), (310e3, 100e3), (320e3, 1e6), (3e6, 1e6), (3.3e6, 10e6), (f64::INFINITY, 10e6)];
    for (rate_bps, expected) in cases.into_iter().chain(nonsense) {
        assert_eq!(map.lookup(rate_bps).rate_bps, expected, "{rate_bps}");
    }
    assert_eq!(build(&[]), Err(MapError::NoRate));
    assert_eq!(build(&[1e6; STATES_MAX + 1]), Err(MapError::TooMany { got: STATES_MAX + 1 }));
    for rate_bps in [0.0, -1.0, f64::INFINITY] {
        assert_eq!(build(&[1e6, rate_bps]), Err(MapError::Rate { rate_bps }));
    }
    assert!(build(&[f64::NAN]).is_err());
}

#[test]
fn a_map_holds_what_nothing_fits_too() {
    let (network, profile, constraints) = small();
    let constraints = Constraints { deadline_us: 20e3, ..constraints };
    let map = ConfigurationMap::build(&network, &profile, &constraints, &RATES_BPS).unwrap();
    let fits: Vec<bool> = map.states().iter().map(|state| state.fits).collect();
    assert_eq!(fits, [false, false, false, false]);
    for state in map.states() {
        assert_eq!((state.reward, state.plan.exit), (0.0, 0), "the fastest, though late: {state:?}");
    }
    // Where nothing is known, nothing is promised, deadline or not.
    let unknown = Profile { device_us: vec![], edge_us: vec![f64::NAN; 3], ..profile };
    for deadline_us in [f64::INFINITY, f64::NAN, 1e6] {
        let constraints = Constraints { deadline_us, ..constraints };
        let map = ConfigurationMap::build(&network, &unknown, &constraints, &RATES_BPS).unwrap();
        assert!(map.states().iter().all(|state| !state.fits && state.reward == 0.0), "{map:?}");
    }
}

#[test]
fn the_plan_is_switched_when_the_state_changes_and_only_then() {
    let mut dynamic = dynamic(0.1);
    assert_eq!(dynamic.in_force(), None);
    assert!(dynamic.observe(f64::NAN).is_none());
    assert_eq!(dynamic.observe(105e3).unwrap().rate_bps, 100e3, "the first rate is followed at once");
    let switches = |dynamic: &mut Dynamic, rate_bps: f64, noise: f64| -> Vec<(usize, f64)> {
        (0..40)
            .filter_map(|at: usize| {
                let rate_bps = rate_bps * if at.is_multiple_of(2) { 1.0 + noise } else { 1.0 - noise };
                dynamic.observe(rate_bps).map(|state| (at, state.rate_bps))
            })
            .collect()
    };
    assert_eq!(switches(&mut dynamic, 105e3, 0.05), []);
    let up = switches(&mut dynamic, 9e6, 0.05);
    assert!(matches!(up[..], [(1..=4, 10e6)]), "{up:?}");
    assert_eq!(dynamic.in_force().unwrap().rate_bps, 10e6);
    // One outlier changes nothing.
    assert!(dynamic.observe(100e3).is_none());
    assert_eq!(switches(&mut dynamic, 9e6, 0.05), []);
    let down = switches(&mut dynamic, 95e3, 0.05);
    assert!(matches!(down[..], [(1..=4, 100e3)]), "{down:?}");
}

#[test]
fn a_switch_must_be_worth_its_cost_unless_the_deadline_is_at_stake() {
    let switched = |switch_cost_reward: f64, from_bps: f64, to_bps: f64| {
        let mut dynamic = dynamic(switch_cost_reward);
        dynamic.observe(from_bps);
        let before = dynamic.in_force().unwrap().plan;
        for rate_bps in [from_bps, to_bps] {
            (0..20).for_each(|_| _ = dynamic.observe(rate_bps));
        }
        assert_ne!(dynamic.map().lookup(from_bps).plan, dynamic.map().lookup(to_bps).plan, "the case tests nothing");
        before != dynamic.in_force().unwrap().plan
    };
    let cases = [
        // The device alone keeps the deadline at any rate, so it is a matter of reward: 51.7 against 3.1.
        (0.1, 100e3, 10e6, true),
        (48.0, 100e3, 10e6, true),
        (49.0, 100e3, 10e6, false),
        (f64::INFINITY, 100e3, 10e6, false),
        (f64::NAN, 100e3, 10e6, true),
        (-1.0, 100e3, 10e6, true),
        // At 100 kbit/s sending the input takes a second.
        (f64::INFINITY, 10e6, 100e3, true),
    ];
    for (cost, from_bps, to_bps, expected) in cases {
        assert_eq!(switched(cost, from_bps, to_bps), expected, "cost {cost}, {from_bps} to {to_bps}");
    }
}
