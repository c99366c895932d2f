//! The planner against brute force, against the shape of the paper's figures, and as a story.
#![allow(clippy::unwrap_used)]

mod support;

use edgent_planner::*;
use std::time::Duration;
use support::{Seeded, network};

/// The definition, spelled out without any of the planner's code.
fn brute_force(network: &Network, profile: &Profile, constraints: &Constraints) -> (Option<f64>, f64) {
    let boundaries = network.boundaries();
    let mut best: Option<(f64, f64)> = None; // accuracy of the exit, latency
    let mut least = f64::INFINITY;
    for exit in network.exits() {
        let n = exit.path.len();
        // Of each way to this exit: its latency, and what that must be multiplied with to be in time.
        let mut ways = vec![(exit.path.iter().map(|s| profile.device_us[*s]).sum::<f64>(), constraints.margin.alone)];
        let mut together = |latency: f64| ways.push((latency, constraints.margin.together));
        if let Some(link) = constraints.link {
            for edge_from in 0..n {
                for edge_to in edge_from + 1..=n {
                    if edge_from != 0 && edge_to != n {
                        continue; // one crossing each way at most
                    }
                    if edge_from == 0 && !constraints.input_may_leave {
                        continue;
                    }
                    let time: f64 = (0..n)
                        .map(|i| if (edge_from..edge_to).contains(&i) { &profile.edge_us } else { &profile.device_us }[exit.path[i]])
                        .sum();
                    let cut = if edge_from == 0 && edge_to < n { edge_to } else { edge_from };
                    let other = if edge_from == 0 && edge_to < n { 0 } else { n };
                    let at_cut = &boundaries[exit.boundaries[cut]];
                    let other_bytes = boundaries[exit.boundaries[other]].raw_bytes();
                    let fixed = time + profile.edge_queue_us + link.rtt_us;
                    for codec in Codec::ALL {
                        let measured = if codec == Codec::Raw {
                            Some((at_cut.raw_bytes(), exit.accuracy))
                        } else {
                            at_cut.bytes(codec).zip(exit.coded_accuracy[cut][codec])
                        };
                        let Some((bytes, accuracy)) = measured else { continue };
                        if codec != Codec::Raw && accuracy < exit.accuracy - constraints.codec_loss_max {
                            continue;
                        }
                        let Coding { up_us_per_byte, down_us_per_byte } = profile.coding[codec];
                        let us_per_byte = if other == 0 { down_us_per_byte } else { up_us_per_byte };
                        let coding = at_cut.raw_bytes() as f64 * us_per_byte;
                        let on_link = (bytes + other_bytes + link.message_bytes) as f64 * 8e6 / link.rate_bps;
                        together(fixed + coding + on_link);
                    }
                }
            }
        }
        least = ways.iter().fold(least, |least, (latency, _)| least.min(*latency));
        let in_time = ways.iter().filter(|(latency, margin)| latency * margin <= constraints.deadline_us);
        let fastest = in_time.map(|(latency, _)| *latency).reduce(f64::min);
        if let Some(latency) = fastest.filter(|_| best.is_none_or(|(accuracy, _)| exit.accuracy > accuracy)) {
            best = Some((exit.accuracy, latency));
        }
    }
    best.map_or((None, least), |(accuracy, latency)| (Some(accuracy), latency))
}

#[test]
fn the_choice_is_that_of_brute_force() {
    let mut seeded = Seeded(0x9e37_79b9_7f4a_7c15);
    let mut fitting = 0;
    for case in 0..5_000 {
        let (network, profile) = network(&mut seeded);
        let constraints = Constraints {
            deadline_us: seeded.next() * 200_000.0,
            codec_loss_max: seeded.next() * 0.02,
            input_may_leave: seeded.next() < 0.8,
            accuracy_min: 0.0,
            margin: Margin { alone: 0.9 + 0.3 * seeded.next(), together: 0.9 + 0.6 * seeded.next() },
            link: (seeded.next() < 0.9).then(|| Link {
                rate_bps: 10f64.powf(4.0 + 4.0 * seeded.next()),
                rtt_us: seeded.next() * 40_000.0,
                message_bytes: seeded.below(1_000) as u64,
            }),
        };
        let choice = choose(&network, &profile, &constraints);
        let (accuracy, latency) = brute_force(&network, &profile, &constraints);
        assert_eq!(choice.fits, accuracy.is_some(), "case {case}");
        if let Some(accuracy) = accuracy {
            assert_eq!(network.exits()[choice.candidate.plan.exit].accuracy, accuracy, "case {case}");
        }
        let total = choice.candidate.cost.total_us();
        assert!((total - latency).abs() <= 1e-6 * latency, "case {case}: {total} against {latency}");
        fitting += usize::from(choice.fits);
        explains(&choice, &network, &profile, &constraints);
    }
    assert!((1_000..4_500).contains(&fitting), "the cases are one-sided: {fitting} of 5000 fit");
}

/// What `explain` says must be consistent with what was chosen.
fn explains(choice: &Choice, network: &Network, profile: &Profile, constraints: &Constraints) {
    let all = explain(network, profile, constraints);
    let chosen: Vec<_> = all.iter().filter(|explained| explained.verdict == Verdict::Chosen).collect();
    assert_eq!(chosen.len(), 1);
    assert_eq!(chosen[0].candidate, choice.candidate);
    let exit_accuracy = |candidate: &Candidate| network.exits()[candidate.plan.exit].accuracy;
    for Explained { candidate, verdict } in &all {
        let alone = candidate.plan.placement(network) == Placement::DeviceOnly;
        let margin = if alone { constraints.margin.alone } else { constraints.margin.together };
        let slow = candidate.cost.total_us() * margin > constraints.deadline_us;
        let lossy = candidate.accuracy < exit_accuracy(candidate) - constraints.codec_loss_max;
        let input_leaves = candidate.plan.direction == Direction::EdgeFirst || candidate.plan.cut == 0;
        let holds = match verdict {
            Verdict::Chosen => slow != choice.fits && !lossy && (constraints.input_may_leave || !input_leaves),
            Verdict::InputMustStay => !constraints.input_may_leave && input_leaves,
            Verdict::CodecTooLossy => lossy && candidate.plan.codec != Codec::Raw,
            Verdict::TooSlow => slow,
            Verdict::Slower => choice.fits && !slow && candidate.cost.total_us() >= choice.candidate.cost.total_us(),
            Verdict::LessAccurate => {
                choice.fits && !slow && exit_accuracy(candidate) <= exit_accuracy(&choice.candidate)
            }
        };
        assert!(holds, "{verdict:?} of {candidate:?} where {choice:?} was chosen");
    }
}

/// Algorithm 1 spelled out as the paper prints it, but for its ends, which follow the text.
fn algorithm_1_by_hand(network: &Network, profile: &Profile, rate_bps: f64, deadline_us: f64) -> Option<f64> {
    for exit in network.exits().iter().rev() {
        let n = exit.path.len();
        let bytes = |boundary: usize| network.boundaries()[exit.boundaries[boundary]].raw_bytes() as f64;
        let latencies = (1..=n + 1).map(|p| {
            let edge: f64 = (1..p).map(|j| profile.edge_us[exit.path[j - 1]]).sum();
            let device: f64 = (p..=n).map(|k| profile.device_us[exit.path[k - 1]]).sum();
            let up = if p == 1 { 0.0 } else { bytes(0) };
            let down = if p == 1 || p == n + 1 { 0.0 } else { bytes(p - 1) };
            edge + device + (up + down) * 8e6 / rate_bps
        });
        let least = latencies.fold(f64::INFINITY, f64::min);
        if least <= deadline_us {
            return Some(least);
        }
    }
    None
}

#[test]
fn the_papers_algorithm_is_the_papers() {
    let mut seeded = Seeded(11);
    let mut found = 0;
    for case in 0..3_000 {
        let (network, profile) = network(&mut seeded);
        let (rate_bps, deadline_us) = (10f64.powf(4.0 + 4.0 * seeded.next()), seeded.next() * 200_000.0);
        let ours = algorithm_1(&network, &profile, rate_bps, deadline_us);
        let by_hand = algorithm_1_by_hand(&network, &profile, rate_bps, deadline_us);
        assert_eq!(ours.is_some(), by_hand.is_some(), "case {case}");
        if let (Some((plan, latency_us)), Some(by_hand)) = (ours, by_hand) {
            assert!((latency_us - by_hand).abs() <= 1e-9 * by_hand, "case {case}: {latency_us} against {by_hand}");
            let edge_first = plan.direction == Direction::EdgeFirst;
            assert_eq!(edge_first, plan.placement(&network) == Placement::Split, "a split is edge first");
            assert_eq!(plan.codec, Codec::Raw);
            found += 1;
        }
    }
    assert!((500..2_900).contains(&found), "the cases are one-sided: {found}");
}

#[test]
fn every_strategy_does_what_its_name_says() {
    use Placement::*;
    let (network, profile) = pictured();
    let constraints = |link| Constraints {
        deadline_us: 60e3,
        codec_loss_max: 0.005,
        input_may_leave: true,
        link,
        accuracy_min: 0.0,
        margin: Margin::NONE,
    };
    let link = |rate_bps| Some(Link { rate_bps, rtt_us: 2_000.0, message_bytes: 0 });
    let cases = [
        (Strategy::Edgent, link(20e6), 2, EdgeOnly, true),
        (Strategy::Edgent, link(50e3), 1, DeviceOnly, true),
        (Strategy::Paper, link(20e6), 2, EdgeOnly, true),
        (Strategy::Paper, link(50e3), 1, DeviceOnly, true),
        (Strategy::Dynamic, link(20e6), 0, EdgeOnly, true),
        (Strategy::PartitionOnly, link(20e6), 2, EdgeOnly, true),
        (Strategy::PartitionOnly, link(400e3), 2, DeviceOnly, false),
        (Strategy::ExitOnly, link(20e6), 1, DeviceOnly, true),
        (Strategy::DeviceOnly, link(20e6), 2, DeviceOnly, false),
        (Strategy::EdgeOnly, link(20e6), 2, EdgeOnly, true),
        (Strategy::EdgeOnly, link(50e3), 2, EdgeOnly, false),
        (Strategy::EdgeOnlyPng, link(20e6), 2, EdgeOnly, true),
        (Strategy::EdgeOnlyJpeg, link(800e3), 2, EdgeOnly, true),
    ];
    for (strategy, link, exit, placement, fits) in cases {
        let choice = strategy.choose(&network, &profile, &constraints(link));
        let found = (choice.candidate.plan.exit, choice.candidate.plan.placement(&network), choice.fits);
        assert_eq!(found, (exit, placement, fits), "{strategy:?} over {link:?}");
    }
    for strategy in Strategy::ALL {
        let choice = strategy.choose(&network, &profile, &constraints(None));
        assert_eq!(choice.candidate.plan.placement(&network), DeviceOnly, "{strategy:?} without an edge");
        let floor = Constraints { input_may_leave: false, ..constraints(link(20e6)) };
        let plan = strategy.choose(&network, &profile, &floor).candidate.plan;
        let input_leaves =
            plan.placement(&network) != DeviceOnly && (plan.direction == Direction::EdgeFirst || plan.cut == 0);
        assert!(!input_leaves, "{strategy:?} sends the input as {}", plan.codec.name());
        assert_eq!(Strategy::from_name(strategy.name()), Some(strategy));
    }
}

#[test]
fn no_figure_upsets_it() {
    let figures = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 0.0, -0.0, f64::MIN_POSITIVE, f64::MAX, 1e4];
    let mut seeded = Seeded(7);
    let mut figure = || figures[seeded.below(figures.len())];
    let boundary = |raw_bytes| Boundary::new(raw_bytes).with(Codec::U8, raw_bytes / 4);
    let bytes = [u64::MAX, 1 << 63, 0, 40];
    let exit = |path: Vec<usize>, boundaries: Vec<usize>| Exit {
        accuracy: 0.9,
        coded_accuracy: vec![PerCodec::from_fn(|_| Some(0.1)); boundaries.len()],
        path,
        boundaries,
    };
    let exits = vec![exit(vec![0], vec![0, 1]), exit(vec![1, 2], vec![0, 2, 3])];
    let network = Network::new(bytes.map(boundary).to_vec(), exits, 3).unwrap();
    for case in 0..20_000 {
        let profile = Profile {
            device_us: (0..case % 4).map(|_| figure()).collect(),
            edge_us: (0..case % 5).map(|_| figure()).collect(),
            edge_queue_us: figure(),
            coding: PerCodec::from_fn(|_| Coding { up_us_per_byte: figure(), down_us_per_byte: figure() }),
        };
        let constraints = Constraints {
            deadline_us: figure(),
            codec_loss_max: figure(),
            input_may_leave: case % 3 != 0,
            accuracy_min: 0.0,
            margin: if case % 2 == 0 { Margin::NONE } else { Margin { alone: figure(), together: figure() } },
            link: (case % 7 != 0).then(|| Link {
                rate_bps: figure(),
                rtt_us: figure(),
                message_bytes: bytes[case % 4],
            }),
        };
        let choice = choose(&network, &profile, &constraints);
        let total_us = choice.candidate.cost.total_us();
        assert!(total_us >= 0.0, "{choice:?} for {profile:?}, {constraints:?}");
        let kept = total_us.is_finite() && (constraints.margin != Margin::NONE || total_us <= constraints.deadline_us);
        assert!(!choice.fits || kept, "{choice:?}");
        let coded = choice.candidate.plan.codec == Codec::U8;
        assert!(!coded || constraints.codec_loss_max >= 0.8, "{choice:?} for {constraints:?}");
        assert!(!explain(&network, &profile, &constraints).is_empty());
    }
    // The sum of these bytes is 0 if it wraps.
    let two = Network::new(vec![boundary(1 << 63); 2], vec![exit(vec![0], vec![0, 1])], 1).unwrap();
    let profile = Profile { device_us: vec![1e9], edge_us: vec![1.0], edge_queue_us: 0.0, coding: free() };
    let link = Some(Link { rate_bps: 1e9, rtt_us: 1.0, message_bytes: 0 });
    let constraints = Constraints {
        deadline_us: 1e9,
        codec_loss_max: 0.0,
        input_may_leave: true,
        link,
        accuracy_min: 0.0,
        margin: Margin::NONE,
    };
    assert_eq!(choose(&two, &profile, &constraints).candidate.plan.placement(&two), Placement::DeviceOnly);
}

#[test]
fn between_equals_what_sends_less_is_taken_and_then_what_runs_here() {
    let coded_accuracy = vec![PerCodec::default(); 3];
    let exit = Exit { accuracy: 0.9, path: vec![0, 1], boundaries: vec![0, 1, 2], coded_accuracy };
    let chosen = |bytes: [u64; 3], device_us: [f64; 2], edge_us: [f64; 2]| {
        let network = Network::new(bytes.map(Boundary::new).to_vec(), vec![exit.clone()], 2).unwrap();
        let profile =
            Profile { device_us: device_us.into(), edge_us: edge_us.into(), edge_queue_us: 0.0, coding: free() };
        let link = Some(Link { rate_bps: 8e6, rtt_us: 0.0, message_bytes: 0 });
        let constraints = Constraints {
            deadline_us: 1e6,
            codec_loss_max: 0.0,
            input_may_leave: true,
            link,
            accuracy_min: 0.0,
            margin: Margin::NONE,
        };
        choose(&network, &profile, &constraints).candidate.plan
    };
    let device_first = |cut| Plan { exit: 0, cut, direction: Direction::DeviceFirst, codec: Codec::Raw };
    assert_eq!(chosen([64, 64, 64], [64.0, 128.0], [0.0, 0.0]), device_first(0), "128 us here, 192 us there");
    assert_eq!(chosen([64, 64, 64], [64.0, 64.0], [0.0, 0.0]), device_first(2), "sends nothing");
    assert_eq!(chosen([64, 128, 64], [0.0, 512.0], [64.0, 0.0]), device_first(0), "192 us, but 128 bytes or 192");
    assert_eq!(chosen([64, 64, 64], [64.0, 512.0], [64.0, 64.0]), device_first(1), "as many bytes, more here");
}

fn free() -> PerCodec<Coding> {
    PerCodec::from_fn(|_| Coding::FREE)
}

/// The device's times of a profile, each seen once.
fn usual(profile: &Profile) -> Timings {
    let mut timings = Timings::new(profile.device_us.len());
    profile.device_us.iter().enumerate().for_each(|(segment, us)| timings.record(segment, *us));
    timings
}

/// Three exits on a trunk of four segments, a slow device and a fast edge; activations shrink.
fn small() -> (Network, Profile) {
    let boundaries = vec![
        Boundary::new(12_000),
        Boundary::new(32_000).with(Codec::U8, 8_000),
        Boundary::new(16_000).with(Codec::U8, 4_000),
        Boundary::new(4_000).with(Codec::U8, 1_000),
        Boundary::new(40),
        Boundary::new(40),
        Boundary::new(40),
    ];
    let accuracy_of = |codec, accuracy: f64, loss| match codec {
        Codec::Jpeg => Some(accuracy - 0.05),
        Codec::Png => Some(accuracy),
        _ => Some(accuracy - loss),
    };
    let exit = |accuracy: f64, path: &[usize], along: &[usize], loss: f64| Exit {
        accuracy,
        path: path.into(),
        boundaries: along.into(),
        coded_accuracy: vec![PerCodec::from_fn(|codec| accuracy_of(codec, accuracy, loss)); along.len()],
    };
    let exits = vec![
        exit(0.80, &[0, 4], &[0, 1, 5], 0.0),
        exit(0.86, &[0, 1, 5], &[0, 1, 2, 6], 0.0),
        exit(0.92, &[0, 1, 2, 3], &[0, 1, 2, 3, 4], 0.001),
    ];
    let profile = Profile {
        device_us: vec![10_000.0, 40_000.0, 40_000.0, 5_000.0, 5_000.0, 10_000.0],
        edge_us: vec![200.0, 800.0, 800.0, 100.0, 100.0, 200.0],
        edge_queue_us: 0.0,
        coding: PerCodec::from_fn(|_| Coding { up_us_per_byte: 0.0003, down_us_per_byte: 0.0003 }),
    };
    (Network::new(boundaries, exits, 6).unwrap(), profile)
}

/// The same, but that the input is a picture, which JPEG spoils.
fn pictured() -> (Network, Profile) {
    let (network, profile) = small();
    let mut boundaries = network.boundaries().to_vec();
    boundaries[0] = Boundary::new(12_000).with(Codec::Png, 9_000).with(Codec::Jpeg, 1_500);
    (Network::new(boundaries, network.exits().to_vec(), network.segments()).unwrap(), profile)
}

fn chosen(rate_bps: f64, deadline_us: f64, input_may_leave: bool) -> (usize, Placement, bool) {
    let (network, profile) = small();
    let link = Some(Link { rate_bps, rtt_us: 2_000.0, message_bytes: 0 });
    let choice = choose(
        &network,
        &profile,
        &Constraints {
            deadline_us,
            codec_loss_max: 0.005,
            input_may_leave,
            link,
            accuracy_min: 0.0,
            margin: Margin::NONE,
        },
    );
    (choice.candidate.plan.exit, choice.candidate.plan.placement(&network), choice.fits)
}

#[test]
fn the_plan_follows_the_link_and_the_deadline() {
    use Placement::*;
    let cases = [
        // rate, deadline, input may leave, expected
        (50e3, 55e3, true, (0, DeviceOnly, true)),
        (50e3, 70e3, true, (1, DeviceOnly, true)),
        (50e3, 100e3, true, (2, DeviceOnly, true)),
        (1.2e6, 80e3, true, (2, Split, true)),
        (20e6, 60e3, true, (2, EdgeOnly, true)),
        (20e6, 60e3, false, (2, Split, true)),
        (20e6, 1e3, true, (0, EdgeOnly, false)),
        (50e3, 1e3, true, (0, DeviceOnly, false)),
    ];
    for (rate_bps, deadline_us, input_may_leave, expected) in cases {
        assert_eq!(chosen(rate_bps, deadline_us, input_may_leave), expected, "{rate_bps} bit/s, {deadline_us} us");
    }
}

#[test]
fn more_rate_or_more_time_never_means_a_worse_exit() {
    let sorted = |exits: Vec<usize>| exits.is_sorted();
    assert!(sorted((0..60).map(|i| chosen(5e4 * 1.1f64.powi(i), 50e3, true).0).collect()));
    assert!(sorted((16..200).map(|ms| chosen(4e5, f64::from(ms) * 1e3, true).0).collect()));
}

#[test]
fn a_codec_that_costs_too_much_accuracy_is_not_used() {
    let (network, profile) = small();
    let codec = |codec_loss_max| {
        let link = Some(Link { rate_bps: 1e6, rtt_us: 2_000.0, message_bytes: 0 });
        let constraints = Constraints {
            deadline_us: 96e3,
            codec_loss_max,
            input_may_leave: true,
            link,
            accuracy_min: 0.0,
            margin: Margin::NONE,
        };
        let of_interest = |c: &Candidate| c.plan.exit == 2 && c.plan.codec == Codec::U8;
        let all = explain(&network, &profile, &constraints);
        let mut lossy = all.iter().filter(|e| of_interest(&e.candidate)).map(|e| e.verdict == Verdict::CodecTooLossy);
        (choose(&network, &profile, &constraints).candidate.plan.codec, lossy.all(|lossy| lossy))
    };
    assert_eq!(codec(0.002), (Codec::U8, false));
    assert_eq!(codec(0.0005), (Codec::Raw, true));
    assert_eq!(codec(f64::NAN), (Codec::Raw, true));
}

/// The fastest way over a slow link is the smallest form of the input that the two hosts share.
#[test]
fn a_codec_that_a_host_does_not_take_or_that_costs_too_much_time_is_not_used() {
    use Codec::{Jpeg, Png, Raw};
    let (network, profile) = pictured();
    let chosen = |codec_loss_max, taken: &[Codec], png_us_per_byte| {
        let link = Some(Link { rate_bps: 1e6, rtt_us: 2_000.0, message_bytes: 0 });
        let coding = PerCodec::from_fn(|codec| if taken.contains(&codec) { Coding::FREE } else { Coding::NONE });
        let mut profile = Profile { coding, ..profile.clone() };
        profile.coding[Png].up_us_per_byte += png_us_per_byte;
        let constraints = Constraints {
            deadline_us: 110e3,
            codec_loss_max,
            input_may_leave: true,
            link,
            accuracy_min: 0.0,
            margin: Margin::NONE,
        };
        let edge_only = |plan: Plan| plan.placement(&network) == Placement::EdgeOnly;
        let all = explain(&network, &profile, &constraints);
        assert!(all.iter().all(|e| taken.contains(&e.candidate.plan.codec) || e.candidate.cost.edge_us == 0.0));
        let of_interest = |e: &&Explained| {
            e.candidate.plan.exit == 2 && edge_only(e.candidate.plan) && e.verdict != Verdict::CodecTooLossy
        };
        let latency = |e: &&Explained| e.candidate.cost.total_us();
        let fastest = all.iter().filter(of_interest).min_by(|a, b| latency(a).total_cmp(&latency(b)));
        let choice = choose(&network, &profile, &constraints).candidate.plan;
        let fastest = fastest.unwrap().candidate.plan;
        assert!(choice == fastest || !edge_only(choice));
        fastest.codec
    };
    let cases = [
        (0.06, &[Raw, Png, Jpeg][..], 0.0, Jpeg),
        (0.005, &[Raw, Png, Jpeg], 0.0, Png),
        (0.06, &[Raw, Png], 0.0, Png),
        (0.06, &[Raw], 0.0, Raw),
        // 24 ms are saved on the link.
        (0.005, &[Raw, Png], 1.9, Png),
        (0.005, &[Raw, Png], 2.1, Raw),
    ];
    for (codec_loss_max, taken, png_us_per_byte, expected) in cases {
        let found = chosen(codec_loss_max, taken, png_us_per_byte);
        assert_eq!(found, expected, "{codec_loss_max}, {taken:?}, {png_us_per_byte}");
    }
}

#[test]
fn the_input_stays_in_whatever_codec() {
    let mut seeded = Seeded(23);
    for _ in 0..500 {
        let (network, profile) = network(&mut seeded);
        let link = Some(Link { rate_bps: 1e9, rtt_us: 0.0, message_bytes: 0 });
        let constraints = Constraints {
            deadline_us: 1e9,
            codec_loss_max: 1.0,
            input_may_leave: false,
            link,
            accuracy_min: 0.0,
            margin: Margin::NONE,
        };
        let leaves = |plan: Plan| plan.direction == Direction::EdgeFirst || plan.cut == 0;
        for explained in explain(&network, &profile, &constraints) {
            let plan = explained.candidate.plan;
            assert_eq!(explained.verdict == Verdict::InputMustStay, leaves(plan), "{plan:?}");
        }
        for strategy in Strategy::ALL {
            assert!(!leaves(strategy.choose(&network, &profile, &constraints).candidate.plan), "{strategy:?}");
        }
    }
}

#[test]
fn what_does_not_fit_together_is_no_network() {
    let (good, _) = small();
    type Damage = fn(&mut Exit);
    let exit = 1;
    let cases: [(Damage, NetworkError); 11] = [
        (|e| e.path.clear(), NetworkError::NoSegment { exit }),
        (|e| e.path[0] = 99, NetworkError::Segment { exit, segment: 99 }),
        (|e| e.path[2] = 0, NetworkError::Segment { exit, segment: 0 }),
        // Exit 0 reaches boundary 1 by segment 0.
        (|e| e.boundaries[1] = 3, NetworkError::Segment { exit, segment: 0 }),
        (|e| e.boundaries[1] = 99, NetworkError::Boundaries { exit }),
        (|e| e.boundaries.truncate(2), NetworkError::Boundaries { exit }),
        (|e| e.coded_accuracy.truncate(2), NetworkError::Boundaries { exit }),
        (|e| e.boundaries[0] = 5, NetworkError::Root { exit }),
        (|e| e.accuracy = f64::NAN, NetworkError::Accuracy { exit }),
        (|e| e.accuracy = -0.1, NetworkError::Accuracy { exit }),
        (|e| e.coded_accuracy[0][Codec::Jpeg] = Some(1.5), NetworkError::Accuracy { exit }),
    ];
    for (damage, expected) in cases {
        let mut exits = good.exits().to_vec();
        damage(&mut exits[exit]);
        assert_eq!(Network::new(good.boundaries().to_vec(), exits, 6), Err(expected));
    }
    let looped = Exit { path: vec![0, 0], boundaries: vec![0, 0, 0], ..good.exits()[0].clone() };
    assert_eq!(
        Network::new(good.boundaries().to_vec(), vec![looped], 6),
        Err(NetworkError::Segment { exit: 0, segment: 0 })
    );
    assert_eq!(Network::new(vec![], vec![], 0), Err(NetworkError::NoExit));
    let too_many = |what, got, max| Err(NetworkError::TooMany { what, got, max });
    let exits = vec![good.exits()[0].clone(); EXITS_MAX + 1];
    assert_eq!(Network::new(vec![], exits, 6), too_many("exits", EXITS_MAX + 1, EXITS_MAX));
    assert_eq!(Network::new(vec![], vec![], usize::MAX), too_many("segments", usize::MAX, SEGMENTS_MAX));
}

fn settings(deadline_us: f64) -> Settings {
    let strategy = Strategy::Edgent;
    Settings {
        deadline_us,
        codec_loss_max: 0.005,
        input_may_leave: true,
        in_time_share: 0.9,
        strategy,
        message_bytes: 0,
    }
}

/// A device with its edge, as far as the controller can tell.
struct Device {
    controller: Controller,
    now: Duration,
}

impl Device {
    fn new(deadline_us: f64) -> Self {
        let (network, profile) = small();
        let timings = usual(&profile);
        Self { controller: Controller::new(network, settings(deadline_us), timings, 1), now: Duration::ZERO }
    }

    fn connect(&mut self) {
        let segments_us = small().1.edge_us;
        self.handle(Event::EdgeConnected { segments_us, coding: free(), queue_us: 0.0 });
    }

    /// Handles the event a little later, and returns what the controller asks for.
    fn tell(&mut self, event: Event) -> Vec<Action> {
        self.now += Duration::from_millis(10);
        self.controller.handle(event, self.now)
    }

    /// The same for an exchange; returns the plans it asks for.
    fn installs(&mut self, rate_bps: f64) -> Vec<Installed> {
        let elapsed_us = 2_000.0 + 12_000.0 * 8e6 / rate_bps;
        let actions = self.tell(Event::Exchanged(Exchange { bytes: 12_000, elapsed_us, busy_us: 0.0 }));
        let install = |action| if let Action::Install(installed) = action { Some(installed) } else { None };
        actions.into_iter().filter_map(install).collect()
    }

    /// Handles the event, and does at once what the controller asks for, but for probes.
    fn handle(&mut self, event: Event) {
        for action in self.tell(event) {
            if let Action::Install(installed) = action {
                self.controller.handle(Event::Accepted(installed), self.now);
            }
        }
    }

    fn exchange(&mut self, bytes: u64, rate_bps: f64) {
        let elapsed_us = 2_000.0 + bytes as f64 * 8e6 / rate_bps;
        self.handle(Event::Exchanged(Exchange { bytes, elapsed_us, busy_us: 0.0 }));
    }

    fn placement(&self) -> Placement {
        self.controller.installed().plan.placement(self.controller.network())
    }
}

#[test]
fn the_device_follows_its_link() {
    let mut device = Device::new(80e3);
    assert_eq!(device.placement(), Placement::DeviceOnly);
    device.connect();
    device.exchange(40, 20e6);
    (0..3).for_each(|_| device.exchange(12_000, 20e6));
    assert_eq!(device.placement(), Placement::EdgeOnly);
    (0..3).for_each(|_| device.exchange(12_000, 1.2e6));
    assert_eq!(device.placement(), Placement::Split);
    device.handle(Event::Waiting { bytes: 12_000, waited_us: 2e6, busy_us: None });
    assert_eq!(device.placement(), Placement::DeviceOnly);
    let epoch = device.controller.installed().epoch;
    (0..3).for_each(|_| device.exchange(12_000, 20e6));
    assert_eq!(device.placement(), Placement::EdgeOnly);
    device.handle(Event::EdgeLost);
    assert_eq!(device.placement(), Placement::DeviceOnly);
    assert!(device.controller.installed().epoch > epoch + 1);
    assert_eq!(device.controller.plan_changes(), 5);
}

#[test]
fn small_changes_of_the_link_change_nothing() {
    let mut placements = Vec::new();
    for step in 0..120 {
        let rate_bps = 1e5 * 1.05f64.powi(step);
        let mut device = Device::new(80e3);
        device.connect();
        let swing = |device: &mut Device| {
            (0..3).for_each(|_| device.exchange(12_000, rate_bps * 0.95));
            (0..3).for_each(|_| device.exchange(12_000, rate_bps * 1.05));
        };
        swing(&mut device);
        let changes = device.controller.plan_changes();
        (0..20).for_each(|_| swing(&mut device));
        assert_eq!(device.controller.plan_changes(), changes, "at {rate_bps} bit/s");
        if !placements.contains(&device.placement()) {
            placements.push(device.placement());
        }
    }
    assert_eq!(placements.len(), 3, "the rates must lead to every placement: {placements:?}");
}

#[test]
fn no_epoch_is_given_to_two_plans_however_late_the_edge_answers() {
    let mut device = Device::new(80e3);
    device.connect();
    let mut asked = Vec::new();
    for rate_bps in [20e6, 1.2e6, 1e4, 20e6, 1.2e6] {
        (0..3).for_each(|_| asked.extend(device.installs(rate_bps)));
    }
    assert!(asked.len() >= 4, "{asked:?}");
    assert!(asked.windows(2).all(|two| two[0].epoch < two[1].epoch), "{asked:?}");
    // Answers out of order: the newest stays.
    let newest = asked[asked.len() - 1];
    [newest, asked[0]].into_iter().for_each(|installed| device.handle(Event::Accepted(installed)));
    assert_eq!(device.controller.installed(), newest);
    // An answer from before the loss must not bring the lost plan back.
    device.handle(Event::EdgeLost);
    device.connect();
    device.handle(Event::Accepted(newest));
    assert_eq!(device.placement(), Placement::DeviceOnly);
    // Nor may one that was never asked for.
    device.handle(Event::Accepted(Installed { epoch: u64::MAX, ..newest }));
    assert_eq!(device.placement(), Placement::DeviceOnly);
    // Nor one that is none of this network, under an epoch that is waited for.
    let epoch = device.installs(20e6)[0].epoch;
    let before = device.controller.installed();
    device.handle(Event::Accepted(Installed { epoch, plan: Plan { exit: 99, ..newest.plan } }));
    device.handle(Event::Accepted(Installed { epoch, plan: Plan { cut: 99, ..newest.plan } }));
    assert_eq!(device.controller.installed(), before);
}

#[test]
fn a_refused_or_forgotten_plan_is_asked_for_again_but_not_at_once() {
    let mut device = Device::new(80e3);
    device.connect();
    let first = device.installs(20e6);
    assert_eq!(first.len(), 1);
    assert_eq!(device.installs(20e6), [], "it has been asked for");
    device.handle(Event::Refused);
    assert_eq!(device.installs(20e6), [], "the edge is left alone for a while");
    device.now += Duration::from_secs(1);
    let second = device.installs(20e6);
    assert_eq!(second.len(), 1);
    assert!(second[0].plan == first[0].plan && second[0].epoch > first[0].epoch);
    device.now += Duration::from_secs(10);
    assert_eq!(device.installs(20e6).len(), 1, "nobody answered");
    assert_eq!(device.controller.plan_changes(), 0);
}

#[test]
fn a_plan_that_the_edge_forgot_is_agreed_on_anew() {
    let mut device = Device::new(80e3);
    device.connect();
    (0..3).for_each(|_| device.exchange(12_000, 20e6));
    let before = device.controller.installed();
    assert_eq!(before.plan.placement(device.controller.network()), Placement::EdgeOnly);
    let actions = device.tell(Event::Forgotten);
    let [Action::Install(again)] = actions[..] else { panic!("{actions:?}") };
    assert!(again.plan == before.plan && again.epoch > before.epoch);
    assert_eq!(device.tell(Event::Forgotten), [], "it has been asked for");
    device.handle(Event::Accepted(again));
    assert_eq!(device.controller.installed(), again);
}

#[test]
fn what_the_edge_worked_is_no_fault_of_the_link() {
    let rate_after = |busy_us| {
        let mut device = Device::new(1e6);
        device.connect();
        (0..3).for_each(|_| device.exchange(12_000, 20e6));
        device.handle(Event::Waiting { bytes: 12_000, waited_us: 100e3, busy_us });
        device.controller.link().rate_bps().unwrap()
    };
    assert!(rate_after(None) < 2e6);
    assert!(rate_after(Some(95e3)) > 15e6);
}

#[test]
fn another_deadline_is_another_plan() {
    let mut device = Device::new(60e3);
    assert_eq!(device.controller.installed().plan.exit, 0);
    for (deadline_us, exit) in [(120e3, 2), (70e3, 1), (f64::NAN, 1), (-1.0, 1), (1e6, 2)] {
        device.handle(Event::DeadlineChanged { deadline_us });
        assert_eq!(device.controller.installed().plan.exit, exit, "{deadline_us}");
    }
}

#[test]
fn a_pinned_plan_stays_where_it_can_be_run() {
    let mut device = Device::new(80e3);
    device.connect();
    (0..3).for_each(|_| device.exchange(12_000, 20e6));
    let chosen = device.controller.installed();
    let pin = Plan { exit: 1, cut: 1, direction: Direction::EdgeFirst, codec: Codec::Raw };
    assert!(chosen.plan != pin && device.controller.can_run(pin).is_some());
    assert_eq!(device.controller.can_run(Plan { exit: 99, ..pin }), None);
    // Whatever was asked for before, and however the edge answered to it.
    device.tell(Event::Refused);
    let actions = device.tell(Event::Pinned(Some(pin)));
    let [Action::Install(asked)] = actions[..] else { panic!("{actions:?}") };
    assert!(asked.plan == pin && asked.epoch > chosen.epoch);
    device.handle(Event::Accepted(asked));
    assert_eq!(device.controller.installed(), asked);
    // No rate of the link moves it.
    for rate_bps in [20e6, 200e3, 50e6] {
        assert_eq!(device.installs(rate_bps), [], "{rate_bps}");
    }
    assert_eq!(device.tell(Event::Pinned(Some(pin))), [], "it is in force");
    // Without an edge it cannot be run; with one, it is again.
    device.handle(Event::EdgeLost);
    assert_eq!(device.placement(), Placement::DeviceOnly);
    device.connect();
    (0..3).for_each(|_| device.exchange(12_000, 20e6));
    assert_eq!(device.controller.installed().plan, pin);
    device.handle(Event::Pinned(None));
    assert_eq!(device.controller.installed().plan, chosen.plan);
}

#[test]
fn an_edge_that_lies_about_its_times_is_not_relied_on() {
    for lie in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1e9] {
        let honest = small().1.edge_us;
        for (segments_us, queue_us) in [(vec![lie; 99], 0.0), (honest, lie)] {
            let mut device = Device::new(80e3);
            device.handle(Event::EdgeConnected { segments_us, coding: free(), queue_us });
            (0..3).for_each(|_| device.exchange(12_000, 20e6));
            assert_eq!(device.placement(), Placement::DeviceOnly, "{lie}");
        }
    }
}

#[test]
fn a_wait_for_the_edge_at_work_says_nothing_of_the_link() {
    let rate_after = |queue_us| {
        let mut device = Device::new(1e6);
        let segments_us = small().1.edge_us;
        device.handle(Event::EdgeConnected { segments_us, coding: free(), queue_us });
        (0..3).for_each(|_| device.exchange(12_000, 20e6));
        assert_eq!(device.placement(), Placement::EdgeOnly);
        device.handle(Event::Waiting { bytes: 12_000, waited_us: 50e3, busy_us: None });
        device.controller.link().rate_bps().unwrap()
    };
    assert!(rate_after(0.0) < 3e6);
    assert!(rate_after(60e3) > 15e6);
}

#[test]
fn a_device_leaves_an_edge_with_a_long_queue_and_comes_back() {
    let mut device = Device::new(80e3);
    device.connect();
    (0..3).for_each(|_| device.exchange(12_000, 20e6));
    assert_eq!(device.placement(), Placement::EdgeOnly);
    // Refused there again and again.
    for _ in 0..10 {
        device.handle(Event::EdgeQueued { us: 200e3 });
        device.handle(Event::Tick);
    }
    assert_eq!(device.placement(), Placement::DeviceOnly);
    for _ in 0..200 {
        device.now += Duration::from_millis(100);
        device.handle(Event::Tick);
    }
    assert_eq!(device.placement(), Placement::EdgeOnly, "nothing was heard of the queue for 20 s");
}

#[test]
fn the_fallback_counts_on_slow_runs() {
    let (network, profile) = small();
    let mut timings = Timings::new(network.segments());
    for run in 0..30 {
        let slow = if run % 5 == 0 { 2.0 } else { 1.0 };
        profile.device_us.iter().enumerate().for_each(|(segment, us)| timings.record(segment, us * slow));
    }
    let controller = Controller::new(network, settings(120e3), timings, 1);
    assert_eq!(controller.installed().plan.exit, 2, "95 ms as a rule");
    assert_eq!(controller.local(100e3, 0.0).candidate.plan.exit, 0, "but 190 ms at times; and 120 ms for exit 1");
    assert!(controller.local(100e3, 0.0).fits && !controller.local(20e3, 0.0).fits);
}

#[test]
fn the_fallback_goes_on_where_the_device_has_come_to() {
    let (network, profile) = small();
    let timings = usual(&profile);
    let controller = Controller::new(network, settings(120e3), timings, 1);
    // Segment 0 takes 10 ms, 1 and 2 take 40, 3 takes 5; the first exit branches off behind 0, the second behind 1.
    for (done, left_ms, exit, takes_ms) in [
        (&[][..], 60.0, 1, 60.0),
        (&[0][..], 60.0, 1, 50.0),
        (&[0, 1][..], 60.0, 2, 45.0),
        (&[0, 1, 2][..], 10.0, 2, 5.0),
        // What was done for another exit's branch is of no use.
        (&[0, 1, 5][..], 100.0, 2, 95.0),
        (&[0, 4][..], 59.0, 0, 0.0),
    ] {
        let Choice { candidate, fits } = controller.local_after(done, left_ms * 1e3, 0.0);
        assert!(fits && candidate.plan.exit == exit, "{done:?}, {left_ms} ms: {candidate:?}");
        assert!((candidate.cost.total_us() - takes_ms * 1e3).abs() < 1.0, "{done:?}, {left_ms} ms: {candidate:?}");
    }
}

#[test]
fn a_request_is_answered_by_an_exit_that_is_accurate_enough_or_by_none_below_it() {
    let (network, profile) = small();
    let timings = usual(&profile);
    // 20 ms is time for the first exit alone.
    let controller = Controller::new(network, settings(20e3), timings, 1);
    let exits = controller.network().exits().to_vec();
    assert_eq!(controller.installed().plan.exit, 0);
    for floor in exits.iter().map(|exit| exit.accuracy) {
        for deadline_us in [1.0, 20e3, 60e3, 1e9] {
            let planned = controller.for_request(deadline_us, floor);
            assert!(
                exits[planned.installed.plan.exit].accuracy >= floor,
                "{floor} within {deadline_us} us: {planned:?}"
            );
            let local = controller.local(deadline_us, floor);
            assert!(exits[local.candidate.plan.exit].accuracy >= floor, "{floor} within {deadline_us} us: {local:?}");
        }
    }
    assert!(!controller.local(20e3, exits[2].accuracy).fits, "late, and it says so");
}

#[test]
fn a_silent_link_is_probed_once_at_a_time() {
    let mut device = Device::new(80e3);
    device.connect();
    let probe = |device: &mut Device, ms: u64, event| {
        device.now += Duration::from_millis(ms);
        device.controller.handle(event, device.now).iter().any(|action| matches!(action, Action::Probe { .. }))
    };
    assert!(!probe(&mut device, 0, Event::Tick), "the probe asked for on connecting is still under way");
    assert!(probe(&mut device, 0, Event::Probed), "it told nothing, so another is due");
    device.exchange(12_000, 1e6);
    assert!(!probe(&mut device, 10, Event::Probed));
    assert!(probe(&mut device, 1_000, Event::Tick));
    assert!(!probe(&mut device, 1_000, Event::Tick));
    assert!(probe(&mut device, 10_000, Event::Tick), "that one is not going to end");
}

#[test]
fn a_request_in_a_hurry_is_answered_by_the_device_alone_if_that_is_faster() {
    let mut device = Device::new(200e3);
    device.connect();
    (0..3).for_each(|_| device.exchange(12_000, 2e6));
    assert_ne!(device.placement(), Placement::DeviceOnly);
    let hurried = device.controller.for_request(16e3, 0.0).installed;
    assert_eq!(hurried.plan.placement(device.controller.network()), Placement::DeviceOnly);
    assert_eq!(hurried.plan.exit, 0);
    assert_eq!(device.controller.for_request(200e3, 0.0).installed, device.controller.installed());
}

#[test]
fn a_request_that_nothing_can_answer_in_time_is_answered_by_the_fastest_plan_there_is() {
    let (network, profile) = small();
    let timings = usual(&profile);
    let controller = Controller::new(network, settings(1e9), timings, 1);
    assert_eq!(controller.installed().plan.exit, 2, "there is time for the best exit, as a rule");
    assert_eq!(controller.for_request(1.0, 0.0).installed.plan.exit, 0);
    let accurate = controller.network().exits()[1].accuracy;
    assert_eq!(controller.for_request(1.0, accurate).installed.plan.exit, 1, "the fastest that is accurate enough");

    // The plan in force goes over the edge, and is faster than whatever the device does alone.
    let mut device = Device::new(200e3);
    device.connect();
    (0..3).for_each(|_| device.exchange(12_000, 2e9));
    assert_ne!(device.placement(), Placement::DeviceOnly);
    assert_eq!(device.controller.for_request(1.0, 0.0).installed, device.controller.installed());
}
