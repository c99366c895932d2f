//! How long planning takes, and whether what it chooses is the best there is.
//!
//! Networks are generated from a seed: a trunk with a branch to each exit, random times and sizes. The
//! best plan is also looked for by trying every exit, cut, order and codec, each summed anew.

use crate::output::{Output, quantile};
use crate::random::Random;
use anyhow::{Result, ensure};
use edgent_planner::{Boundary, Codec, Coding, Constraints, Exit, Link, Margin, Network, PerCodec, Profile, choose};
use serde::Serialize;
use std::hint::black_box;
use std::time::Instant;

const LAYERS: [usize; 5] = [10, 22, 50, 100, 200];
const EXITS: [usize; 3] = [1, 3, 5];
const NETWORKS: usize = 50;
const ROUNDS: usize = 40;

#[derive(Serialize)]
struct Report {
    cases: Vec<Case>,
}

#[derive(Serialize)]
struct Case {
    layers: usize,
    exits: usize,
    plan_us: f64,
    brute_force_us: f64,
    networks: usize,
    /// For how many networks the choice is brute force's.
    optimal: usize,
}

pub(crate) fn run(output: &Output) -> Result<()> {
    let mut random = Random::new(1);
    let mut report = Report { cases: Vec::new() };
    output.line("layers  exits     planning   brute force   best found (medians)");
    for layers in LAYERS {
        for exits in EXITS {
            let case = measure(layers, exits, &mut random)?;
            output.line(format_args!(
                "{layers:>6} {exits:>6} {:>9.1} us {:>10.0} us   {} of {}",
                case.plan_us, case.brute_force_us, case.optimal, case.networks
            ));
            report.cases.push(case);
        }
    }
    output.result(&report)?;
    ensure!(report.cases.iter().all(|case| case.optimal == case.networks), "a better plan was missed");
    Ok(())
}

fn measure(layers: usize, exits: usize, random: &mut Random) -> Result<Case> {
    let (mut plan_us, mut brute_us) = (Vec::new(), Vec::new());
    let mut optimal = 0;
    for _ in 0..NETWORKS {
        let (network, profile) = network(layers, exits, random)?;
        let constraints = Constraints {
            deadline_us: random.within(1e4, 2e5),
            codec_loss_max: 0.005,
            input_may_leave: random.within(0.0, 1.0) < 0.8,
            link: Some(Link { rate_bps: 10f64.powf(random.within(4.5, 7.5)), rtt_us: 5e3, message_bytes: 500 }),
            accuracy_min: 0.0,
            margin: Margin { alone: 1.1, together: 1.2 },
        };
        let mut choice = choose(&network, &profile, &constraints);
        for _ in 0..ROUNDS {
            let start = Instant::now();
            choice = black_box(choose(black_box(&network), &profile, &constraints));
            plan_us.push(start.elapsed().as_secs_f64() * 1e6);
        }
        let start = Instant::now();
        let best = brute_force(&network, &profile, &constraints);
        brute_us.push(start.elapsed().as_secs_f64() * 1e6);
        let found =
            (choice.fits, network.exits()[choice.candidate.plan.exit].accuracy, choice.candidate.cost.total_us());
        let same_exit = !found.0 || found.1 == best.1;
        optimal += usize::from(found.0 == best.0 && same_exit && (found.2 - best.2).abs() <= 1e-6 * best.2);
    }
    let (plan_us, brute_force_us) = (quantile(&mut plan_us, 0.5), quantile(&mut brute_us, 0.5));
    Ok(Case { layers, exits, plan_us, brute_force_us, networks: NETWORKS, optimal })
}

/// Whether any plan is likely to be in time, the accuracy of the best such plan's exit, and its latency;
/// if none is, the least latency of all.
fn brute_force(network: &Network, profile: &Profile, constraints: &Constraints) -> (bool, f64, f64) {
    let mut best = (false, 0.0, f64::INFINITY);
    let Some(link) = constraints.link else { return best };
    for exit in network.exits() {
        let segments = exit.path.len();
        let bytes = |at: usize| network.boundaries()[exit.boundaries[at]].raw_bytes() as f64;
        for cut in 0..=segments {
            for edge_first in [false, true] {
                for codec in Codec::ALL {
                    let on_edge = |at: usize| (at < cut) == edge_first;
                    let all_here = (0..segments).all(|at| !on_edge(at));
                    let input_leaves = !all_here && on_edge(0);
                    let crossing = &network.boundaries()[exit.boundaries[cut]];
                    let coded = codec != Codec::Raw;
                    let accuracy = exit.coded_accuracy[cut][codec];
                    let lossy = accuracy.is_none_or(|a| a < exit.accuracy - constraints.codec_loss_max);
                    // Edge-only is one plan, not two: written as device first, with the input crossing.
                    let twice = edge_first && cut == segments;
                    if twice
                        || (input_leaves && !constraints.input_may_leave)
                        || (coded && (lossy || crossing.bytes(codec).is_none()))
                    {
                        continue;
                    }
                    let time =
                        |at: usize| if on_edge(at) { &profile.edge_us } else { &profile.device_us }[exit.path[at]];
                    let mut us: f64 = (0..segments).map(time).sum();
                    if !all_here {
                        let Coding { up_us_per_byte, down_us_per_byte } = profile.coding[codec];
                        let coding = bytes(cut) * if edge_first { down_us_per_byte } else { up_us_per_byte };
                        let crossing = crossing.bytes(codec).unwrap_or(0) as f64;
                        let other = bytes(if edge_first { 0 } else { segments });
                        let on_link = (crossing + other + link.message_bytes as f64) * 8e6 / link.rate_bps;
                        us += on_link + link.rtt_us + profile.edge_queue_us + coding;
                    }
                    let margin = if all_here { constraints.margin.alone } else { constraints.margin.together };
                    let fits = us * margin <= constraints.deadline_us;
                    let better = match (fits, best.0) {
                        (true, false) => true,
                        (false, true) => false,
                        (false, false) => us < best.2,
                        (true, true) => exit.accuracy > best.1 || exit.accuracy == best.1 && us < best.2,
                    };
                    if better {
                        best = (fits, exit.accuracy, us);
                    }
                }
            }
        }
    }
    best
}

fn network(layers: usize, exits: usize, random: &mut Random) -> Result<(Network, Profile)> {
    let mut boundaries = Vec::new();
    let mut boundary = |random: &mut Random| {
        let raw_bytes = random.within(40.0, 60_000.0) as u64;
        let pushed = Codec::ALL.into_iter().fold(Boundary::new(raw_bytes), |boundary, codec| {
            boundary.with(codec, (random.within(0.1, 1.1) * raw_bytes as f64) as u64)
        });
        boundaries.push(pushed);
        boundaries.len() - 1
    };
    let trunk: Vec<usize> = (0..=layers).map(|_| boundary(random)).collect();
    let mut segments = layers;
    let exits = (1..=exits).map(|index| {
        let shared = layers * index / exits;
        // The last exit is the trunk's end; the others leave it by a branch.
        let branch = if shared == layers { 0 } else { (layers / 10).max(1) };
        let mut along = trunk[..=shared].to_vec();
        along.extend((0..branch).map(|_| boundary(random)));
        let path = (0..shared).chain(segments..segments + branch).collect();
        segments += branch;
        let accuracy = random.within(0.5, 0.95);
        let mut measured = |_| Some(accuracy - random.within(0.0, 0.01));
        let coded_accuracy = along.iter().map(|_| PerCodec::from_fn(&mut measured)).collect();
        Exit { accuracy, path, boundaries: along, coded_accuracy }
    });
    let exits: Vec<Exit> = exits.collect();
    let profile = Profile {
        device_us: (0..segments).map(|_| random.within(10.0, 2e6 / layers as f64 / 10.0)).collect(),
        edge_us: (0..segments).map(|_| random.within(1.0, 2e5 / layers as f64 / 10.0)).collect(),
        edge_queue_us: 200.0,
        coding: PerCodec::from_fn(|_| Coding {
            up_us_per_byte: random.within(0.0, 0.02),
            down_us_per_byte: random.within(0.0, 0.02),
        }),
    };
    Ok((Network::new(boundaries, exits, segments)?, profile))
}
