//! A device and its edges, whole, in virtual time: thousands of runs, each of which follows from its seed.
//!
//! Everything is the hosts' own: the device, the edges, their workers, the segments in their sandbox, Cap'n Proto and the
//! frames below it. Simulated are what they run on: the clock, the network ([`network`]) and threads ([`thread`]). Only how
//! long segments take is given, and not measured.
//!
//! Edges are killed in the midst of whatever they do, stand still, end in good order, and are crowded with the work of
//! others. Links become slow, stop without a word, are cut wherever a message is, and change bits of it where that is seen: half
//! of all runs speak TLS. In a quarter of them versions are pushed meanwhile, to the device or to an edge.
//!
//! In every run: each request is answered once, in time, and to the bit by the exit that the answer names, by one version; and
//! once nothing goes wrong any more, the preferred edge is in force and asked again, for the version that both have in force.

mod model;
mod network;
mod slow_edge;
pub(crate) mod thread;
mod world;

use edgent_link::{Answer, Codec, CodecTime, Placement};
use fastrand::Rng;
use model::Model;
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::task::LocalSet;
use world::World;

/// Runs in the usual tests; `EDGENT_SEEDS=FROM..TO` runs others.
const SEEDS: Range<u64> = 0..150;

/// Of requests that bring none.
const DEADLINE: Duration = Duration::from_millis(100);

pub(crate) const CODEC_TIMES: &[CodecTime] =
    &[CodecTime { codec: Codec::Raw, encode_us_per_mib: 500.0, decode_us_per_mib: 500.0 }];

#[test]
fn whole_hosts_answer_every_request_in_time_whatever_becomes_of_the_edges() {
    let given = std::env::var("EDGENT_SEEDS").ok();
    let is_usual = given.is_none();
    let seeds = given.map_or(SEEDS, |given| {
        let (from, to) = given.split_once("..").expect("EDGENT_SEEDS is FROM..TO");
        from.parse().unwrap()..to.parse().unwrap()
    });
    let dir = tempfile::tempdir().unwrap();
    let model = Model::new(dir.path());
    let (next, sum) = (AtomicU64::new(seeds.start), Mutex::new(Tally::default()));
    // As many at once as there are processors; each has a clock of its own.
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            let run = || {
                while let Some(seed) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| seeds.contains(seed)) {
                    let (tally, _) = catch_unwind(AssertUnwindSafe(|| run(seed, &model))).unwrap_or_else(|_| {
                        next.store(seeds.end, Ordering::Relaxed);
                        let again = format!("EDGENT_SEEDS={seed}..{} cargo test --release --workspace --lib", seed + 1);
                        panic!("seed {seed} fails; again: {again} whole_hosts")
                    });
                    sum.lock().unwrap().add(&tally);
                }
            };
            scope.spawn(run);
        }
    });
    let sum = sum.into_inner().unwrap();
    println!("{} runs: {sum:?}", seeds.end - seeds.start);
    // What is tested did happen.
    let Tally { by_edge, alone, degraded, shed, changed, troubles } = sum;
    let all_happened = [by_edge, alone, degraded, shed, changed].iter().all(|count| *count > 0);
    assert!(!is_usual || all_happened && troubles.len() == TROUBLES.len());
}

#[test]
fn a_run_follows_from_its_seed() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::new(dir.path());
    for seed in 0..3 {
        assert_eq!(run(seed, &model).1, run(seed, &model).1, "seed {seed}");
    }
}

/// What happened in a run.
#[derive(Clone, Debug, Default, PartialEq)]
struct Tally {
    by_edge: u64,
    alone: u64,
    degraded: u64,
    /// Of the others' requests, those that an edge refused.
    shed: u64,
    /// Versions that came into force.
    changed: u64,
    troubles: BTreeMap<Trouble, u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Kill,
    End,
    Cut,
    Silence,
    Freeze,
    Slow,
    Crowd,
    Flip,
    Push,
}

const TROUBLES: [Trouble; 9] = [
    Trouble::Kill,
    Trouble::End,
    Trouble::Cut,
    Trouble::Silence,
    Trouble::Freeze,
    Trouble::Slow,
    Trouble::Crowd,
    Trouble::Flip,
    Trouble::Push,
];

impl Tally {
    fn count(&mut self, answer: &Answer) {
        self.degraded += u64::from(answer.degraded.is_some());
        match answer.placement {
            Placement::DeviceOnly => self.alone += 1,
            Placement::EdgeOnly | Placement::Split => self.by_edge += 1,
        }
    }

    fn add(&mut self, other: &Self) {
        self.by_edge += other.by_edge;
        self.alone += other.alone;
        self.degraded += other.degraded;
        self.shed += other.shed;
        self.changed += other.changed;
        for (trouble, count) in &other.troubles {
            *self.troubles.entry(*trouble).or_default() += count;
        }
    }
}

/// What happened, in numbers and in words.
fn run(seed: u64, model: &Model) -> (Tally, Vec<String>) {
    let mut random = Rng::with_seed(seed);
    in_virtual_time(random.u64(..), async {
        let world = World::new(model, &mut random).await;
        let (asked, ()) = tokio::join!(world.ask(), world.trouble(random));
        world.sum(asked).await
    })
}

/// Runs what hosts are part of. Their own chance is from the seed, too.
fn in_virtual_time<T>(seed: u64, work: impl Future<Output = T>) -> T {
    fastrand::seed(seed);
    thread::call_for();
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, work)
}
