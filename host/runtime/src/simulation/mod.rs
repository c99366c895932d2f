//! A device and its edges, whole, in virtual time: thousands of runs, each of which follows from its seed.
//!
//! Everything is the hosts' own: the device, the edges, their workers, the segments in their sandbox, Cap'n Proto and the
//! frames below it. Simulated are what they run on: the clock, the network ([`network`]) and threads ([`thread`]). Only how
//! long segments take is given, and not measured.
//!
//! Edges are killed in the midst of whatever they do, stand still, end in good order, and are crowded with the work of
//! others; links become slow, stop without a word, and are cut wherever a message is. In every run: each request is answered once, in
//! time, and to the bit by the exit that the answer names; and once nothing goes wrong any more, the preferred edge is in
//! force and asked again.

mod network;
mod slow_edge;
pub(crate) mod thread;

use crate::answer::Said;
use crate::device::{Device, DeviceSettings};
use crate::metrics::Metrics;
use crate::shelf::{Judged, Prepared, Shelf};
use crate::{Admission, Edge, Emulation, MeasuredHost, Policy, Workers, codec};
use edgent_bundle::{
    Boundary, Bundle, Draft, Evidence, Exit, Manifest, Segment, Tensor, Tier, compose, standard_guest,
};
use edgent_link::{
    Activation, Answer, AskRequest, Codec, CodecTime, Digest, Direction, FaultKind, Hello, InferRequest, Limits, Link,
    LinkError, PROTOCOL_VERSION, Placement, Plan, Role, Server,
};
use edgent_nn::{Imported, Pins, Stop, synthetic};
use edgent_planner::{Settings, Strategy};
use edgent_sandbox::Engine;
use fastrand::Rng;
use network::Network;
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, sleep_until};

/// Runs in the usual tests; `EDGENT_SEEDS=FROM..TO` runs others.
const SEEDS: Range<u64> = 0..150;

const EDGES: usize = 2;
/// The usual one, and those that requests bring.
const DEADLINE: Duration = Duration::from_millis(100);
const DEADLINES_MS: [u64; 4] = [0, 50, 80, 200];
/// Things go wrong until then…
const TROUBLE: Duration = Duration::from_secs(12);
/// …and nothing does until then: what began last may last for 5 s, the way back is tried after 3 s at most, and an edge is
/// trusted again after up to 10 s.
const END: Duration = Duration::from_secs(32);
const PACE: Duration = Duration::from_millis(110);
/// Half of the devices connect anew after this.
const RECONNECT: Duration = Duration::from_secs(4);
const GRACE: Duration = Duration::from_secs(1);
/// So much of what happened is told when something fails.
const STORY: usize = 60;
/// What others ask an edge for at once, when it is crowded.
const CROWD: u64 = 30;

/// What segments take: on the way to the first exit, and beyond it.
const DEVICE_US: [f64; 2] = [4_000.0, 150_000.0];
const EDGE_US: [f64; 2] = [1_000.0, 3_000.0];

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
    let Tally { by_edge, alone, degraded, shed, troubles } = sum;
    let all_happened = [by_edge, alone, degraded, shed].iter().all(|count| *count > 0);
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
}

const TROUBLES: [Trouble; 7] =
    [Trouble::Kill, Trouble::End, Trouble::Cut, Trouble::Silence, Trouble::Freeze, Trouble::Slow, Trouble::Crowd];

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
        for (trouble, count) in &other.troubles {
            *self.troubles.entry(*trouble).or_default() += count;
        }
    }
}

/// A network that branches, ready to run on either host, and what its exits give.
struct Model {
    device: (Prepared, Arc<Shelf>),
    edge: (Prepared, Arc<Shelf>),
    input: Activation,
    /// By exit.
    scores: Vec<Vec<f32>>,
}

impl Model {
    fn new(dir: &Path) -> Self {
        let onnx = include_bytes!("../../../nn/tests/data/branching.onnx");
        let imported = Imported::from_onnx(onnx, &Pins::default()).unwrap();
        let input = synthetic::noise(&imported.inputs()[0].fact, 3).unwrap();
        let bundle = bundle(&imported, dir);
        let host = |us: [f64; 2]| {
            let policy = Policy::without_file(true);
            let judged = Judged { policy, admission: Admission::default(), trial: None };
            let emulation = Emulation::Measured(Arc::new(Given(us)));
            let shelf = Arc::new(Shelf::new(None, judged, Engine::new().unwrap(), emulation, u64::MAX));
            (shelf.prepare(bundle.clone()).unwrap(), shelf)
        };
        let (device, edge) = (host(DEVICE_US), host(EDGE_US));
        let deployment = &edge.0.deployment;
        let scores = deployment.network().exits().iter().enumerate().map(|(exit, way)| {
            let ran = deployment.run(exit, 0..way.path.len(), vec![input.clone()], &Stop::never()).unwrap();
            Said::new(deployment.manifest(), &ran.output).unwrap().scores
        });
        let scores = scores.collect();
        let input = codec::encode_all(&[input], Codec::Raw).unwrap().0;
        Self { device, edge, input, scores }
    }

    async fn start_edge(&self, link: &Link, place: usize) -> (Arc<Edge>, Server) {
        let (prepared, shelf) = self.edge.clone();
        let deadline_us = DEADLINE.as_secs_f64() * 1e6;
        let edge = Arc::new(Edge::new(vec![prepared], shelf, 1, Metrics::new(), deadline_us).unwrap());
        let (address, service) = (place.to_string(), Arc::clone(&edge));
        let server = link.serve(&address, hello(Role::Edge), Limits::default(), service).await.unwrap();
        (edge, server)
    }

    /// A plan by which an edge does everything, and a request for that.
    fn whole(&self, epoch: u64) -> (Plan, InferRequest) {
        let deployment = &self.edge.0.deployment;
        let (model, path) = (Digest(deployment.digest().0), &deployment.network().exits()[1].path);
        let (exit, direction, codec) = (1, Direction::DeviceFirst, Codec::Raw);
        let request = InferRequest {
            id: 0,
            model,
            epoch,
            from_segment: 0,
            to_segment: path.len() as u16,
            reply_codec: Codec::Raw,
            remaining_budget_us: 0,
            activation: self.input.clone(),
            beside: Vec::new(),
            trace: None,
        };
        (Plan { epoch, model, exit, cut: 0, direction, codec }, request)
    }
}

fn bundle(imported: &Imported, dir: &Path) -> Bundle {
    let cut = imported.cut(&[vec![0], vec![1]]).unwrap();
    let mut draft = Draft::default();
    let tensors = cut.tensors.iter().map(|port| Tensor {
        name: port.name.clone(),
        element_type: port.fact.element_type.name().to_owned(),
        dims: port.fact.dims.clone(),
        finite: false,
    });
    let segments = cut.segments.iter().enumerate().map(|(index, segment)| Segment {
        name: format!("segment-{index}"),
        from: segment.from,
        to: segment.to,
        takes: segment.takes.clone(),
        gives: segment.gives.clone(),
        layers: Vec::new(),
        macs: segment.macs,
        graph_format: segment.format.name().to_owned(),
        tier: Tier::Native,
        component: draft.add(compose(standard_guest(), &segment.graph).unwrap()),
    });
    let exits = cut.exits.iter().zip([0.8, 0.9]).map(|(exit, accuracy)| Exit {
        name: exit.name.clone(),
        path: exit.path.clone(),
        accuracy,
        sure_at: None,
        coded: Vec::new(),
    });
    let manifest = Manifest {
        format: 1,
        name: "branching".to_owned(),
        classes: (0..10).map(|class| class.to_string()).collect(),
        tensors: tensors.collect(),
        boundaries: cut.boundaries.iter().map(|tensors| Boundary { tensors: tensors.clone(), coded: vec![] }).collect(),
        segments: segments.collect(),
        exits: exits.collect(),
        evidence: Evidence::default(),
    };
    let format = manifest.least_format();
    draft.write(dir, &Manifest { format, ..manifest }).unwrap()
}

/// A host of which it is given what segments take.
#[derive(Debug)]
struct Given([f64; 2]);

impl MeasuredHost for Given {
    fn segments_us(&self, manifest: &Manifest, _: edgent_bundle::Digest) -> Result<Vec<f64>, String> {
        let is_before = |segment: usize| manifest.exits[0].path.contains(&segment);
        Ok((0..manifest.segments.len()).map(|segment| self.0[usize::from(!is_before(segment))]).collect())
    }

    fn coding_slowdown(&self) -> f64 {
        1.0
    }
}

/// What happened, in numbers and in words.
fn run(seed: u64, model: &Model) -> (Tally, Vec<String>) {
    let mut random = Rng::with_seed(seed);
    in_virtual_time(random.u64(..), async {
        let world = World::new(model, &mut random);
        let (asked, ()) = tokio::join!(world.ask(), world.trouble(random));
        (world.sum(asked), world.story.lock().unwrap().clone())
    })
}

/// Runs what hosts are part of. Their own chance is from the seed, too.
fn in_virtual_time<T>(seed: u64, work: impl Future<Output = T>) -> T {
    fastrand::seed(seed);
    thread::call_for();
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, work)
}

struct World<'a> {
    model: &'a Model,
    network: Arc<Network>,
    link: Link,
    device: Arc<Device>,
    edges: Vec<Mutex<Option<Server>>>,
    tally: Mutex<Tally>,
    since: Instant,
    /// What happened, in words.
    story: Mutex<Vec<String>>,
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let story = self.story.lock().unwrap();
            eprintln!("{}", story[story.len().saturating_sub(STORY)..].join("\n"));
        }
    }
}

impl<'a> World<'a> {
    fn new(model: &'a Model, random: &mut Rng) -> Self {
        let network = Arc::new(Network::new(EDGES, random));
        let link = Link::within(Arc::clone(&network) as _);
        let settings = DeviceSettings {
            edges: (0..EDGES).map(|place| place.to_string()).collect(),
            whereabouts: Arc::default(),
            reconnect: random.bool().then_some(RECONNECT),
            plan: Settings {
                deadline_us: DEADLINE.as_secs_f64() * 1e6,
                codec_loss_max: 0.0,
                input_may_leave: true,
                in_time_share: 0.95,
                strategy: Strategy::Edgent,
                message_bytes: codec::MESSAGE_BYTES,
            },
            leave_when_sure: false,
            limits: Limits::default(),
            hello: hello(Role::Device),
        };
        let (prepared, shelf) = model.device.clone();
        let workers = Workers::start(1).unwrap();
        let device = Device::start(prepared, shelf, workers, link.clone(), Metrics::new(), settings);
        let edges = (0..EDGES).map(|_| Mutex::default()).collect();
        Self {
            model,
            network,
            link,
            device,
            edges,
            tally: Mutex::default(),
            since: Instant::now(),
            story: Mutex::default(),
        }
    }

    fn say(&self, what: std::fmt::Arguments<'_>) {
        self.story.lock().unwrap().push(format!("{:>9.3?} {what}", self.since.elapsed()));
    }

    /// Has an edge run at its place.
    async fn start(&self, place: usize) {
        let (_, server) = self.model.start_edge(&self.link, place).await;
        *self.edges[place].lock().unwrap() = Some(server);
    }

    /// Asks the device again and again; gives the last answer.
    async fn ask(&self) -> Answer {
        let mut id = 0;
        loop {
            let (since, at) = (Instant::now(), self.since.elapsed());
            let request = AskRequest {
                id,
                model: String::new(),
                deadline_us: DEADLINES_MS[id as usize % DEADLINES_MS.len()] * 1_000,
                accuracy_floor: 0.0,
                input: self.model.input.clone(),
                beside: Vec::new(),
                trace: None,
            };
            let (answer, _) =
                self.device.ask(request, None).await.unwrap_or_else(|fault| panic!("at {at:?}: {fault:?}"));
            let took = since.elapsed();
            assert!(
                took <= Duration::from_micros(answer.deadline_us),
                "asked at {at:?}, answered after {took:?}: {answer:?}"
            );
            assert_eq!(answer.id, id);
            assert_eq!(answer.scores, self.model.scores[usize::from(answer.exit)], "by exit {}", answer.exit);
            let Answer { placement, exit, degraded, .. } = &answer;
            let edges = self.device.edge_states();
            let edges: Vec<_> = edges.iter().map(|edge| (edge.connected, edge.in_force, edge.strikes)).collect();
            self.say(format_args!(
                "{id} after {took:?}: {placement:?}, exit {exit}, {degraded:?}; edges are there, in force, struck {edges:?}"
            ));
            self.tally.lock().unwrap().count(&answer);
            if self.since.elapsed() > END {
                return answer;
            }
            id += 1;
            sleep_until(since + PACE).await;
        }
    }

    /// What goes wrong.
    async fn trouble(&self, mut random: Rng) {
        for place in 0..EDGES {
            self.start(place).await;
        }
        loop {
            sleep(within_ms(&mut random, 200, 3_000)).await;
            if self.since.elapsed() > TROUBLE {
                break;
            }
            let place = random.usize(..EDGES);
            let (lasts, line) = (within_ms(&mut random, 50, 5_000), self.network.line(place));
            let away = within_ms(&mut random, 100, 2_000);
            let trouble = TROUBLES[random.usize(..TROUBLES.len())];
            self.say(format_args!("edge {place}: {trouble:?}, for {lasts:?}, or away for {away:?}"));
            *self.tally.lock().unwrap().troubles.entry(trouble).or_default() += 1;
            match trouble {
                Trouble::Kill | Trouble::End => {
                    let server = self.edges[place].lock().unwrap().take();
                    if let Some(server) = server.filter(|_| trouble == Trouble::End) {
                        server.shutdown(GRACE).await;
                    }
                    line.close();
                    sleep(away).await;
                    self.start(place).await;
                }
                Trouble::Cut => line.cut(),
                Trouble::Silence => line.silence(lasts),
                Trouble::Freeze => line.freeze(lasts),
                Trouble::Slow => line.slow(lasts),
                Trouble::Crowd => self.crowd(place, &mut random).await,
            }
        }
    }

    /// Others ask an edge for much at once.
    async fn crowd(&self, place: usize, random: &mut Rng) {
        let Ok(client) = self.link.connect(&place.to_string(), hello(Role::Device), Limits::default()).await else {
            return;
        };
        let (plan, request) = self.model.whole(random.u64(..1 << 20));
        if client.install_plan(plan).await.is_err() {
            return;
        }
        let one = |id: u64| {
            let remaining_budget_us = random.u64(20_000..300_000);
            client.infer(InferRequest { id, remaining_budget_us, ..request.clone() })
        };
        let all = futures::future::join_all((0..CROWD).map(one)).await;
        let is_shed = |answer: &&Result<_, LinkError>| matches!(answer, Err(LinkError::Fault(fault)) if matches!(fault.kind, FaultKind::Busy | FaultKind::TimeUp));
        self.tally.lock().unwrap().shed += all.iter().filter(is_shed).count() as u64;
    }

    /// What was so once nothing went wrong any more.
    fn sum(&self, last: Answer) -> Tally {
        let edges = self.device.edge_states();
        assert!(edges[0].in_force, "the preferred edge is in force in the end: {edges:?}");
        let plans = self.device.explain(None);
        assert_ne!(last.placement, Placement::DeviceOnly, "and asked: {last:?}, planned by {:#?}", plans.2);
        self.tally.lock().unwrap().clone()
    }
}

fn within_ms(random: &mut Rng, low: u64, high: u64) -> Duration {
    Duration::from_millis(random.u64(low..high))
}

fn hello(role: Role) -> Hello {
    Hello { protocol: PROTOCOL_VERSION, role, build: "simulated".to_owned() }
}
