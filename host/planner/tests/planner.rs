//! The planner against brute force, against the shape of the paper's figures, and as a story.
#![allow(clippy::unwrap_used)]

use edgent_planner::*;
use std::time::Duration;

/// A small seeded generator: the same networks on every machine.
struct Seeded(u64);

impl Seeded {
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() * n as f64) as usize
    }
}

/// A trunk with branches; the last exit is the trunk's end.
fn network(seeded: &mut Seeded) -> (Network, Profile) {
    let trunk = 2 + seeded.below(12);
    let exits = 1 + seeded.below(5);
    let mut boundaries = vec![];
    let mut boundary = |seeded: &mut Seeded| {
        let bytes = 10 + seeded.below(60_000) as u64;
        boundaries.push(Boundary { raw_bytes: bytes, u8_bytes: (seeded.next() < 0.7).then_some(bytes / 4) });
        boundaries.len() - 1
    };
    let trunk_boundaries: Vec<usize> = (0..=trunk).map(|_| boundary(seeded)).collect();
    let mut segments = trunk;
    let exits: Vec<Exit> = (0..exits)
        .map(|index| {
            let shared = if index + 1 == exits { trunk } else { 1 + seeded.below(trunk) };
            let branch = if index + 1 == exits { 0 } else { 1 + seeded.below(4) };
            let path = (0..shared).chain(segments..segments + branch).collect();
            segments += branch;
            let mut along = trunk_boundaries[..=shared].to_vec();
            along.extend((0..branch).map(|_| boundary(seeded)));
            let accuracy = seeded.next();
            let u8_accuracy =
                along.iter().map(|_| (seeded.next() < 0.8).then(|| (accuracy - seeded.next() * 0.02).max(0.0))).collect();
            Exit { accuracy, path, boundaries: along, u8_accuracy }
        })
        .collect();
    let profile = Profile {
        device_us: (0..segments).map(|_| seeded.next() * 20_000.0).collect(),
        edge_us: (0..segments).map(|_| seeded.next() * 1_000.0).collect(),
        edge_queue_us: seeded.next() * 500.0,
        codec_us_per_byte: seeded.next() * 0.01,
    };
    (Network::new(boundaries, exits, segments).unwrap(), profile)
}

/// The definition, spelled out without any of the planner's code.
fn brute_force(network: &Network, boundaries: &[Boundary], profile: &Profile, constraints: &Constraints) -> (bool, f64) {
    let mut best: Option<(f64, f64)> = None; // accuracy of the exit, latency
    let mut least = f64::INFINITY;
    for exit in network.exits() {
        let n = exit.path.len();
        let mut latency = exit.path.iter().map(|s| profile.device_us[*s]).sum::<f64>();
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
                    let other_bytes = boundaries[exit.boundaries[other]].raw_bytes;
                    let fixed = time + profile.edge_queue_us + link.rtt_us;
                    latency = latency.min(fixed + (at_cut.raw_bytes + other_bytes) as f64 * 8e6 / link.rate_bps);
                    if let (Some(bytes), Some(accuracy)) = (at_cut.u8_bytes, exit.u8_accuracy[cut]) {
                        if accuracy >= exit.accuracy - constraints.codec_loss_max {
                            let coding = bytes as f64 * profile.codec_us_per_byte;
                            latency = latency.min(fixed + coding + (bytes + other_bytes) as f64 * 8e6 / link.rate_bps);
                        }
                    }
                }
            }
        }
        least = least.min(latency);
        if latency <= constraints.deadline_us && best.is_none_or(|(accuracy, _)| exit.accuracy > accuracy) {
            best = Some((exit.accuracy, latency));
        }
    }
    best.map_or((false, least), |(_, latency)| (true, latency))
}

#[test]
fn the_choice_is_that_of_brute_force() {
    let mut seeded = Seeded(0x9e37_79b9_7f4a_7c15);
    let mut fitting = 0;
    for case in 0..5_000 {
        let before = Seeded(seeded.0);
        let (network, profile) = network(&mut seeded);
        let boundaries = boundaries_of(before);
        let constraints = Constraints {
            deadline_us: seeded.next() * 200_000.0,
            codec_loss_max: seeded.next() * 0.02,
            input_may_leave: seeded.next() < 0.8,
            link: (seeded.next() < 0.9)
                .then(|| Link { rate_bps: 10f64.powf(4.0 + 4.0 * seeded.next()), rtt_us: seeded.next() * 40_000.0 }),
        };
        let choice = choose(&network, &profile, &constraints);
        let (fits, latency) = brute_force(&network, &boundaries, &profile, &constraints);
        assert_eq!(choice.fits, fits, "case {case}");
        let total = choice.candidate.cost.total_us();
        assert!((total - latency).abs() <= 1e-6 * latency, "case {case}: {total} against {latency}");
        fitting += usize::from(fits);
    }
    assert!((1_000..4_500).contains(&fitting), "the cases are one-sided: {fitting} of 5000 fit");
}

/// The boundaries that `network` makes from the same seed (a network does not show its own).
fn boundaries_of(mut seeded: Seeded) -> Vec<Boundary> {
    let (network, _) = network(&mut seeded);
    let text = format!("{network:?}");
    let count = text.matches("raw_bytes").count();
    let field = |name: &str, from: &str| from.split(name).nth(1).unwrap().chars().take_while(char::is_ascii_digit).collect::<String>();
    let parts: Vec<&str> = text.split("Boundary {").skip(1).collect();
    assert_eq!(parts.len(), count);
    parts
        .into_iter()
        .map(|part| Boundary {
            raw_bytes: field("raw_bytes: ", part).parse().unwrap(),
            u8_bytes: part.contains("u8_bytes: Some(").then(|| field("u8_bytes: Some(", part).parse().unwrap()),
        })
        .collect()
}

/// Three exits on a trunk of four segments, a slow device and a fast edge; activations shrink.
fn small() -> (Network, Profile) {
    let boundary = |raw_bytes, u8_bytes| Boundary { raw_bytes, u8_bytes };
    let boundaries = vec![
        boundary(12_000, None),
        boundary(32_000, Some(8_000)),
        boundary(16_000, Some(4_000)),
        boundary(4_000, Some(1_000)),
        boundary(40, None),
        boundary(40, None),
        boundary(40, None),
    ];
    let exit = |accuracy: f64, path: &[usize], along: &[usize], loss: f64| Exit {
        accuracy,
        path: path.into(),
        boundaries: along.into(),
        u8_accuracy: along.iter().map(|_| Some(accuracy - loss)).collect(),
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
        codec_us_per_byte: 0.001,
    };
    (Network::new(boundaries, exits, 6).unwrap(), profile)
}

fn chosen(rate_bps: f64, deadline_us: f64, input_may_leave: bool) -> (usize, Placement, bool) {
    let (network, profile) = small();
    let link = Some(Link { rate_bps, rtt_us: 2_000.0 });
    let choice = choose(&network, &profile, &Constraints { deadline_us, codec_loss_max: 0.005, input_may_leave, link });
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
        let link = Some(Link { rate_bps: 3e5, rtt_us: 2_000.0 });
        let constraints = Constraints { deadline_us: 2e5, codec_loss_max, input_may_leave: false, link };
        explain(&network, &profile, &constraints).iter().any(|c| c.plan.exit == 2 && c.plan.codec == Codec::U8)
    };
    assert!(codec(0.002));
    assert!(!codec(0.0005));
}

#[test]
fn what_does_not_fit_together_is_no_network() {
    let (good, _) = small();
    type Break = fn(&mut Exit);
    let cases: [Break; 6] = [
        |e| e.path = vec![],
        |e| e.path[0] = 99,
        |e| e.boundaries[1] = 99,
        |e| e.boundaries.truncate(2),
        |e| e.accuracy = f64::NAN,
        |e| e.u8_accuracy[0] = Some(1.5),
    ];
    for damage in cases {
        let mut exits = good.exits().to_vec();
        damage(&mut exits[1]);
        let boundaries = vec![Boundary { raw_bytes: 1, u8_bytes: None }; 7];
        assert_eq!(Network::new(boundaries, exits, 6), Err(NetworkError::Exit(1)));
    }
    assert_eq!(Network::new(vec![], vec![], 0), Err(NetworkError::NoExit));
}

/// A device with its edge, as far as the controller can tell.
struct Device {
    controller: Controller,
    now: Duration,
}

impl Device {
    fn new(deadline_us: f64) -> Self {
        let (network, profile) = small();
        let mut timings = Timings::new(network.segments());
        profile.device_us.iter().enumerate().for_each(|(segment, us)| timings.record(segment, *us));
        let settings = Settings { deadline_us, codec_loss_max: 0.005, input_may_leave: true };
        Self { controller: Controller::new(network, settings, timings), now: Duration::ZERO }
    }

    fn connect(&mut self) {
        let segments_us = small().1.edge_us;
        self.handle(Event::EdgeConnected { segments_us, codec_us_per_byte: 0.001, queue_us: 0.0 });
    }

    /// Handles the event, and does at once what the controller asks for, but for probes.
    fn handle(&mut self, event: Event) {
        self.now += Duration::from_millis(10);
        for action in self.controller.handle(event, self.now) {
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
    device.handle(Event::Waiting { bytes: 12_000, waited_us: 2e6 });
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
    let mut device = Device::new(80e3);
    device.connect();
    (0..3).for_each(|_| device.exchange(12_000, 1e6));
    let changes = device.controller.plan_changes();
    for i in 0..100 {
        device.exchange(12_000, if i % 2 == 0 { 0.95e6 } else { 1.05e6 });
    }
    assert_eq!(device.controller.plan_changes(), changes);
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
}

#[test]
fn a_request_in_a_hurry_is_answered_by_the_device_alone_if_that_is_faster() {
    let mut device = Device::new(200e3);
    device.connect();
    (0..3).for_each(|_| device.exchange(12_000, 2e6));
    assert_ne!(device.placement(), Placement::DeviceOnly);
    let hurried = device.controller.for_request(16e3);
    assert_eq!(hurried.plan.placement(device.controller.network()), Placement::DeviceOnly);
    assert_eq!(hurried.plan.exit, 0);
    assert_eq!(device.controller.for_request(200e3), device.controller.installed());
}
