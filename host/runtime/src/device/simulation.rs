//! A device and its edges in virtual time: thousands of runs, each of which follows from its seed.
//!
//! What decides is the device's and the edge's own: [`Controller`], [`Ranking`], [`Race`], [`Plans`]. What carries it out,
//! that is connections, workers and timers, is modelled here: every message takes a time of its own, so that messages
//! overtake each other; edges are killed, freeze, end in good order, and are crowded with the work of others, behind which
//! requests wait or are refused; links become slow, and stop without a word.
//!
//! In every run: each request is answered once, and in time; an edge runs a request's segments only as the device meant
//! them; and once nothing goes wrong any more, the preferred edge is in force and asked again.

use super::LOCAL_MARGIN_US;
use super::race::{Race, Runner, Step, Terms};
use super::ranking::Ranking;
use crate::edge::plans::Plans;
use edgent_link::{Codec, Digest, Direction, Plan};
use edgent_planner::{self as planner, *};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

/// Runs in the usual tests; `EDGENT_SEEDS=FROM..TO` runs others.
const SEEDS: std::ops::Range<u64> = 0..500;

const EDGES: usize = 2;
const DEADLINE: Duration = Duration::from_millis(100);
/// Things go wrong until then, and nothing does for as long again.
const TROUBLE: Duration = Duration::from_secs(40);
const END: Duration = Duration::from_secs(80);
const PACE: Duration = Duration::from_millis(110);
const TICK: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_millis(500);
/// A connection on which nothing comes is given up after this.
const HEARTBEATS: Duration = Duration::from_secs(4);
const STANDBY_TIME_MAX: Duration = Duration::from_secs(1);
const STANDBY_MEET: Duration = Duration::from_secs(5);
/// A host that ends answers what is on its way for so long.
const LINGER: Duration = Duration::from_millis(250);
/// Behind the work of others, a request waits for up to so long at an edge.
const CROWD_WAIT_MAX_US: f64 = 150_000.0;
const RATE_BPS: f64 = 50e6;
const SLOW_BPS: f64 = 200e3;
const US: f64 = 1e6;

/// A trunk of three segments with a branch behind the first. The device has the time for the branch alone.
fn network() -> Network {
    let exit = |accuracy, path: &[usize], boundaries: &[usize]| Exit {
        accuracy,
        path: path.to_vec(),
        boundaries: boundaries.to_vec(),
        coded_accuracy: vec![PerCodec::default(); boundaries.len()],
    };
    let boundaries = [30_000, 8_000, 40, 4_000, 40].map(Boundary::new).to_vec();
    Network::new(boundaries, vec![exit(0.8, &[0, 1], &[0, 1, 2]), exit(0.9, &[0, 2, 3], &[0, 1, 3, 4])], 4).unwrap()
}

const DEVICE_US: [f64; 4] = [8_000.0, 9_000.0, 150_000.0, 40_000.0];
const EDGE_US: [f64; 4] = [400.0, 400.0, 4_000.0, 1_000.0];

fn settings() -> Settings {
    Settings {
        deadline_us: DEADLINE.as_secs_f64() * US,
        codec_loss_max: 0.0,
        input_may_leave: true,
        in_time_share: 0.95,
        strategy: Strategy::Edgent,
        message_bytes: 300,
    }
}

#[test]
fn every_request_is_answered_once_and_in_time_whatever_becomes_of_the_edges() {
    let given = std::env::var("EDGENT_SEEDS").ok();
    let seeds = given.map_or(SEEDS, |given| {
        let (from, to) = given.split_once("..").expect("EDGENT_SEEDS is FROM..TO");
        from.parse().unwrap()..to.parse().unwrap()
    });
    let mut sum = Tally::default();
    for seed in seeds.clone() {
        let run = std::panic::catch_unwind(|| World::new(seed).run());
        let tally = run.unwrap_or_else(|_| {
            panic!(
                "seed {seed} fails; again: EDGENT_SEEDS={seed}..{} cargo test --release --workspace --lib simulation",
                seed + 1
            )
        });
        sum.add(tally);
    }
    println!("{} runs: {sum:?}", seeds.end - seeds.start);
    // What is tested did happen.
    let Tally { first, next, alone, killed, frozen, ended, silent, slowed, queued, shed, changes } = sum;
    for (what, count) in [
        ("first", first),
        ("next", next),
        ("alone", alone),
        ("killed", killed),
        ("frozen", frozen),
        ("ended", ended),
        ("silent", silent),
        ("slowed", slowed),
        ("queued", queued),
        ("shed", shed),
        ("changes", changes),
    ] {
        assert!(count > 0, "no '{what}' in any run");
    }
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    first: u64,
    next: u64,
    alone: u64,
    killed: u64,
    frozen: u64,
    ended: u64,
    silent: u64,
    slowed: u64,
    /// Requests that waited at an edge, and those that it refused, since they would have waited for too long.
    queued: u64,
    shed: u64,
    /// Of the edge in force.
    changes: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.first += other.first;
        self.next += other.next;
        self.alone += other.alone;
        self.killed += other.killed;
        self.frozen += other.frozen;
        self.ended += other.ended;
        self.silent += other.silent;
        self.slowed += other.slowed;
        self.queued += other.queued;
        self.shed += other.shed;
        self.changes += other.changes;
    }
}

#[derive(Clone, Copy, Debug)]
enum Happens {
    Tick,
    Look,
    Asked,
    Trouble,
    /// The device tries to reach an edge.
    Connect(usize),
    /// A message reached an edge.
    AtEdge(Way, Message),
    /// What an edge answered reached the device.
    AtDevice(Way, Message),
    /// The device learns that a connection is over…
    Gone(Way),
    /// …or that it will be soon.
    Leaving(Way),
    /// An edge that was told to end has ended.
    Ended(usize, u64),
    Back(usize, u64),
    /// What was to be measured is told by what is on the link already.
    Probed,
    /// Somebody has an answer.
    Done(u64, Runner),
    Awake(u64),
}

/// A connection: to which edge, to which run of it, and which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    place: usize,
    run: u64,
    number: u64,
}

/// A question, and its answer.
#[derive(Clone, Copy, Debug)]
enum Message {
    Hello,
    Probe { bytes: u64, sent: Duration },
    Install(Installed),
    Infer { request: u64, runner: Runner, installed: Installed, bytes: u64, sent: Duration, budget_us: f64, said: Said },
}

/// What an edge says to a request.
#[derive(Clone, Copy, Debug)]
enum Said {
    Nothing,
    /// It does not know its plan.
    Unknown,
    /// It has not the time.
    Busy,
    Answer {
        work_us: f64,
        queue_us: f64,
    },
}

/// An edge, and what the device knows of it.
#[derive(Default)]
struct Edge {
    is_up: bool,
    is_ending: bool,
    run: u64,
    plans: Plans,
    frozen_until: Duration,
    /// Nothing goes through until then, and nobody is told.
    silent_until: Duration,
    slow_until: Duration,
    /// Others have it work until then.
    crowded_until: Duration,
    way: Option<Way>,
    is_joined: bool,
    heard: Duration,
    agreed: u64,
    link: LinkEstimate,
    measured: Option<Duration>,
}

struct Request {
    arrived: Duration,
    race: Race,
    planned: Planned,
    last_moment: Duration,
    first: Way,
    next: Option<Way>,
    /// When it was sent to the first edge, as long as nothing came back.
    first_since: Option<Duration>,
    bytes: u64,
}

#[derive(Clone, Copy)]
struct Sent {
    bytes: u64,
    since: Duration,
    /// Until then it is waited for.
    last_moment: Duration,
}

struct World {
    now: Duration,
    random: fastrand::Rng,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    events: BTreeMap<u64, Happens>,
    numbers: u64,
    controller: Controller,
    ranking: Ranking,
    /// What the controller plans with.
    in_force: Option<Way>,
    edges: Vec<Edge>,
    requests: BTreeMap<u64, Request>,
    /// What was sent and not answered.
    in_flight: BTreeMap<(Way, u64), Sent>,
    /// Plans that the controller waits for an answer to.
    installing: BTreeSet<(Way, u64)>,
    probing: BTreeSet<Way>,
    over: BTreeSet<Way>,
    last: Option<Runner>,
    tally: Tally,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut device = Timings::new(DEVICE_US.len());
        for (segment, us) in DEVICE_US.iter().enumerate() {
            (0..12).for_each(|_| device.record(segment, *us));
        }
        let mut world = Self {
            now: Duration::ZERO,
            random: fastrand::Rng::with_seed(seed),
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            numbers: 0,
            controller: Controller::new(network(), settings(), device, 1),
            ranking: Ranking::new(EDGES, seed),
            in_force: None,
            edges: (0..EDGES).map(|_| Edge { is_up: true, ..Edge::default() }).collect(),
            requests: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            installing: BTreeSet::new(),
            probing: BTreeSet::new(),
            over: BTreeSet::new(),
            last: None,
            tally: Tally::default(),
        };
        for happens in [Happens::Tick, Happens::Look, Happens::Asked, Happens::Trouble] {
            world.after(Duration::ZERO, happens);
        }
        (0..EDGES).for_each(|place| world.after(Duration::ZERO, Happens::Connect(place)));
        world
    }

    fn run(mut self) -> Tally {
        while let Some(Reverse((at, number))) = self.queue.pop() {
            if at > END {
                break;
            }
            self.now = at;
            if let Some(event) = self.events.remove(&number) {
                self.happens(event);
                self.settle();
            }
        }
        let waiting = self.requests.values().map(|request| request.arrived).find(|at| *at + DEADLINE < END);
        assert_eq!(waiting, None, "a request is never answered");
        assert_eq!(self.in_force.map(|way| way.place), Some(0), "the preferred edge is in force in the end");
        assert_eq!(self.last, Some(Runner::First), "and asked");
        self.tally
    }

    fn happens(&mut self, event: Happens) {
        match event {
            Happens::Tick => {
                self.tell(Event::Tick);
                self.after(TICK, Happens::Tick);
            }
            Happens::Look => {
                (0..EDGES).for_each(|place| self.look(place));
                self.after(LOOK, Happens::Look);
            }
            Happens::Asked => {
                self.asked();
                if self.now + PACE + DEADLINE < END {
                    self.after(PACE, Happens::Asked);
                }
            }
            Happens::Trouble if self.now < TROUBLE => {
                self.trouble();
                let pause = self.within_ms(200, 6_000);
                self.after(pause, Happens::Trouble);
            }
            Happens::Trouble => {}
            Happens::Connect(place) => self.connect(place),
            Happens::AtEdge(way, message) => self.at_edge(way, message),
            Happens::AtDevice(way, message) if !self.over.contains(&way) => self.at_device(way, message),
            Happens::AtDevice(..) => {}
            Happens::Gone(way) => self.gone(way),
            Happens::Leaving(way) => self.lose(way),
            Happens::Ended(place, run) if self.edges[place].run == run => self.kill(place),
            Happens::Ended(..) => {}
            Happens::Back(place, run) if self.edges[place].run == run => {
                let edge = &mut self.edges[place];
                (edge.is_up, edge.is_ending, edge.plans) = (true, false, Plans::default());
            }
            Happens::Back(..) => {}
            Happens::Done(request, runner) => self.answered(request, runner),
            Happens::Probed => self.tell(Event::Probed),
            Happens::Awake(request) => self.race(request),
        }
    }

    // What goes wrong.

    fn trouble(&mut self) {
        let place = self.random.usize(..EDGES);
        let (lasts, back) = (self.within_ms(50, 5_000), self.within_ms(100, 4_000));
        let until = self.now + lasts;
        let edge = &mut self.edges[place];
        match self.random.u8(..6) {
            0 | 1 if !edge.is_up || edge.is_ending => {}
            0 => {
                self.tally.killed += 1;
                self.kill(place);
                self.after(back, Happens::Back(place, self.edges[place].run));
            }
            1 => {
                self.tally.ended += 1;
                edge.is_ending = true;
                let (way, run) = (edge.way, edge.run);
                if let Some(way) = way {
                    self.send(way, 100, Happens::Leaving(way));
                }
                self.after(LINGER, Happens::Ended(place, run));
                self.after(LINGER + back, Happens::Back(place, run + 1));
            }
            2 => {
                self.tally.frozen += 1;
                edge.frozen_until = until;
            }
            3 => {
                self.tally.silent += 1;
                edge.silent_until = until;
            }
            4 => edge.crowded_until = until,
            _ => {
                self.tally.slowed += 1;
                edge.slow_until = until;
            }
        }
    }

    /// From now on its connections are over; who is connected learns it when a message can reach them.
    fn kill(&mut self, place: usize) {
        let edge = &mut self.edges[place];
        (edge.is_up, edge.run) = (false, edge.run + 1);
        let in_use = self.in_flight.keys().map(|(way, _)| *way).chain(edge.way).filter(|way| way.place == place);
        let ways: BTreeSet<Way> = in_use.collect();
        ways.into_iter().for_each(|way| self.send(way, 100, Happens::Gone(way)));
    }

    // What carries messages.

    fn after(&mut self, time: Duration, happens: Happens) {
        self.numbers += 1;
        self.events.insert(self.numbers, happens);
        self.queue.push(Reverse((self.now + time, self.numbers)));
    }

    fn send(&mut self, way: Way, bytes: u64, arrives: Happens) {
        self.send_after(Duration::ZERO, way, bytes, arrives);
    }

    /// Each message takes a time of its own. What is sent into a silence comes when it is over.
    fn send_after(&mut self, wait: Duration, way: Way, bytes: u64, arrives: Happens) {
        let (edge, sent) = (&self.edges[way.place], self.now + wait);
        let held = edge.silent_until.saturating_sub(sent);
        let rate_bps = if edge.slow_until > sent { SLOW_BPS } else { RATE_BPS };
        let us = 300.0 + 2_000.0 * self.random.f64().powi(4) + bytes as f64 * 8.0 * US / rate_bps;
        self.after(wait + held + Duration::from_secs_f64(us / US), arrives);
    }

    fn within_ms(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.random.u64(low..high))
    }

    fn connect(&mut self, place: usize) {
        self.numbers += 1;
        let edge = &mut self.edges[place];
        let way = Way { place, run: edge.run, number: self.numbers };
        (edge.way, edge.is_joined, edge.heard) = (Some(way), false, self.now);
        (edge.link, edge.agreed, edge.measured) = (LinkEstimate::default(), 0, None);
        self.send(way, 300, Happens::AtEdge(way, Message::Hello));
    }

    fn gone(&mut self, way: Way) {
        if !self.over.insert(way) {
            return;
        }
        let waits = self.installing.iter().any(|(of, _)| *of == way);
        self.installing.retain(|(of, _)| *of != way);
        if waits {
            self.tell(Event::Refused);
        }
        if self.probing.remove(&way) {
            self.tell(Event::Probed);
        }
        self.lose(way);
        self.in_flight.retain(|(of, _), _| *of != way);
        let asked: Vec<u64> = self.requests.keys().copied().collect();
        for number in asked {
            let Some(request) = self.requests.get_mut(&number) else { continue };
            if request.first == way {
                request.race.failed(Runner::First);
                request.first_since = None;
            } else if request.next == Some(way) {
                request.race.failed(Runner::Next);
            } else {
                continue;
            }
            self.race(number);
        }
    }

    /// The device uses a connection no more, and makes another one in a while.
    fn lose(&mut self, way: Way) {
        let edge = &mut self.edges[way.place];
        if edge.way != Some(way) {
            return;
        }
        (edge.way, edge.is_joined) = (None, false);
        let wait = self.ranking.lost(way.place, self.now);
        self.after(wait, Happens::Connect(way.place));
    }

    // The edge.

    fn at_edge(&mut self, way: Way, message: Message) {
        let edge = &mut self.edges[way.place];
        let is_new = matches!(message, Message::Hello);
        if !edge.is_up || edge.run != way.run || (edge.is_ending && is_new) {
            return self.send(way, 100, Happens::Gone(way));
        }
        if edge.frozen_until > self.now {
            let thaws = edge.frozen_until - self.now;
            return self.after(thaws, Happens::AtEdge(way, message));
        }
        let (mut answer, mut work_us) = (message, 50.0);
        match &mut answer {
            Message::Hello | Message::Probe { .. } => {}
            Message::Install(installed) => edge.plans.agree(to_wire(*installed)),
            Message::Infer { installed, budget_us, said, .. } => {
                let takes_us: f64 = parts(installed.plan).1.iter().map(|segment| EDGE_US[*segment]).sum();
                let is_crowded = edge.crowded_until > self.now;
                let queue_us = if is_crowded { CROWD_WAIT_MAX_US * self.random.f64() } else { 0.0 };
                *said = match edge.plans.of(installed.epoch) {
                    None => Said::Unknown,
                    Some(plan) if plan != to_wire(*installed) => panic!("an epoch is one plan on both hosts"),
                    // As `workers.rs` refuses what cannot be in time.
                    Some(_) if queue_us + takes_us > *budget_us => Said::Busy,
                    Some(_) => Said::Answer { work_us: takes_us, queue_us },
                };
                match said {
                    Said::Answer { .. } => work_us = queue_us + takes_us,
                    Said::Busy => self.tally.shed += 1,
                    Said::Nothing | Said::Unknown => {}
                }
                self.tally.queued += u64::from(is_crowded && matches!(said, Said::Answer { .. }));
            }
        }
        self.send_after(Duration::from_secs_f64(work_us / US), way, 200, Happens::AtDevice(way, answer));
    }

    // The device's connections, as `connection.rs` keeps them.

    fn at_device(&mut self, way: Way, answer: Message) {
        self.edges[way.place].heard = self.now;
        let is_in_force = self.in_force == Some(way);
        let is_current = self.edges[way.place].way == Some(way);
        match answer {
            Message::Hello if is_current => {
                self.edges[way.place].is_joined = true;
                self.ranking.joined(way.place);
            }
            Message::Hello => {}
            Message::Probe { bytes, sent } => {
                let elapsed = self.now - sent;
                let exchange = Exchange { bytes: bytes + 300, elapsed_us: elapsed.as_secs_f64() * US, busy_us: 50.0 };
                if is_in_force {
                    self.tell(Event::Exchanged(exchange));
                } else {
                    self.edges[way.place].link.exchanged(exchange, self.now);
                    match elapsed < STANDBY_TIME_MAX {
                        true => self.ranking.answered(way.place),
                        false => self.ranking.struck(way.place, self.now),
                    }
                }
                if self.probing.remove(&way) {
                    self.tell(Event::Probed);
                }
            }
            Message::Install(installed) => {
                let was_wanted = self.installing.remove(&(way, installed.epoch));
                if is_current {
                    self.edges[way.place].agreed = installed.epoch;
                }
                match (was_wanted, is_in_force) {
                    (true, true) => {
                        self.tell(Event::Accepted(installed));
                        (0..EDGES).for_each(|place| self.agree_with(place));
                    }
                    (true, false) => self.tell(Event::Refused),
                    (false, _) => {}
                }
            }
            Message::Infer { request, runner, installed, bytes, sent, budget_us, said } => {
                self.in_flight.remove(&(way, request));
                let elapsed_us = (self.now - sent).as_secs_f64() * US;
                let (busy_us, queued_us) = match said {
                    Said::Answer { work_us, queue_us } => (work_us + queue_us, Some(queue_us)),
                    Said::Busy => (0.0, Some(budget_us)),
                    Said::Nothing | Said::Unknown => (0.0, None),
                };
                if let Some(us) = queued_us.filter(|_| is_in_force) {
                    self.tell(Event::EdgeQueued { us });
                }
                let exchange = Exchange { bytes: bytes + 300, elapsed_us, busy_us };
                let is_late =
                    self.requests.get(&request).is_none_or(|asked| self.now > asked.arrived + asked.last_moment);
                if is_in_force {
                    if is_late {
                        let (bytes, busy_us) = (bytes + 300, Some(busy_us));
                        self.tell(Event::Waiting { bytes, waited_us: elapsed_us, busy_us });
                    }
                    self.tell(Event::Exchanged(exchange));
                } else {
                    self.edges[way.place].link.exchanged(exchange, self.now);
                }
                match said {
                    _ if is_late => {}
                    Said::Answer { .. } => self.ranking.answered(way.place),
                    Said::Busy => self.ranking.struck(way.place, self.now),
                    Said::Nothing | Said::Unknown => {}
                }
                if matches!(said, Said::Unknown) && is_in_force {
                    self.tell(Event::Forgotten);
                }
                if let Said::Answer { .. } = said {
                    self.after(device_time(&parts(installed.plan).2), Happens::Done(request, runner));
                } else if let Some(asked) = self.requests.get_mut(&request) {
                    asked.race.failed(runner);
                    self.race(request);
                }
            }
        }
    }

    fn look(&mut self, place: usize) {
        let edge = &mut self.edges[place];
        let Some(way) = edge.way else { return };
        let hears = edge.is_up && edge.run == way.run && edge.frozen_until <= self.now && edge.silent_until <= self.now;
        if hears && edge.is_joined {
            edge.heard = self.now;
        }
        if self.now > edge.heard + HEARTBEATS {
            return self.gone(way);
        }
        if !edge.is_joined {
            return;
        }
        if self.in_force == Some(way) {
            if !crosses(self.controller.installed().plan) {
                self.send(way, 300, Happens::AtEdge(way, Message::Probe { bytes: 0, sent: self.now }));
            }
            return;
        }
        let is_measured = edge.measured.is_some_and(|at| self.now < at + STANDBY_MEET);
        let bytes = if is_measured { 0 } else { 16 << 10 };
        edge.measured = if is_measured { edge.measured } else { Some(self.now) };
        self.send(way, bytes + 300, Happens::AtEdge(way, Message::Probe { bytes, sent: self.now }));
        self.agree_with(place);
    }

    fn agree_with(&mut self, place: usize) {
        let installed = self.controller.installed();
        let edge = &self.edges[place];
        let Some(way) = edge.way.filter(|way| edge.is_joined && self.in_force != Some(*way)) else { return };
        if edge.agreed != installed.epoch && crosses(installed.plan) {
            self.send(way, 300, Happens::AtEdge(way, Message::Install(installed)));
        }
    }

    fn settle(&mut self) {
        let place = self.ranking.choose(self.now);
        let to = place.and_then(|place| self.edges[place].way.filter(|_| self.edges[place].is_joined));
        if to == self.in_force {
            return;
        }
        self.tally.changes += 1;
        let from = std::mem::replace(&mut self.in_force, to);
        if let Some(from) = from.filter(|from| self.edges[from.place].way == Some(*from)) {
            self.edges[from.place].link = self.controller.link().clone();
        }
        let Some(to) = to else { return self.tell(Event::EdgeLost) };
        if from.is_some() && self.edges[to.place].agreed != self.controller.installed().epoch {
            self.tell(Event::EdgeLost);
        }
        self.controller.inherit(self.edges[to.place].link.clone());
        let coding = PerCodec::from_fn(|codec| if codec == planner::Codec::Raw { Coding::FREE } else { Coding::NONE });
        self.tell(Event::EdgeConnected { segments_us: EDGE_US.to_vec(), coding, queue_us: 0.0 });
    }

    fn tell(&mut self, event: Event) {
        for action in self.controller.handle(event, self.now) {
            let Some(way) = self.in_force else { continue };
            match action {
                Action::Install(installed) => {
                    self.installing.insert((way, installed.epoch));
                    self.send(way, 300, Happens::AtEdge(way, Message::Install(installed)));
                }
                Action::Probe { .. } if self.is_clogged(way) => self.after(TICK, Happens::Probed),
                Action::Probe { bytes } => {
                    self.probing.insert(way);
                    let probe = Message::Probe { bytes, sent: self.now };
                    self.send(way, bytes + 300, Happens::AtEdge(way, probe));
                }
            }
        }
    }

    fn clogged_by(&self, way: Way) -> Option<Sent> {
        let of_way = self.in_flight.iter().filter(|((of, _), sent)| *of == way && sent.last_moment <= self.now);
        of_way.map(|(_, sent)| *sent).min_by_key(|sent| sent.since)
    }

    fn is_clogged(&self, way: Way) -> bool {
        self.clogged_by(way).is_some()
    }

    // A request, as `serving.rs` runs it.

    fn asked(&mut self) {
        self.numbers += 1;
        let (number, deadline_us) = (self.numbers, settings().deadline_us);
        let planned = self.controller.for_request(deadline_us, 0.0);
        let Installed { plan, epoch } = planned.installed;
        let local = self.controller.local(deadline_us, 0.0);
        assert!(local.fits, "a local exit fits");
        let knows = |edge: &&Edge| edge.is_joined && edge.agreed == epoch;
        let first = self.in_force.filter(|way| self.edges[way.place].way == Some(*way));
        let first = first.or_else(|| self.edges.iter().find(knows).and_then(|edge| edge.way));
        let nobody = Way { place: 0, run: u64::MAX, number: 0 };
        let next = first.and_then(|first| {
            let mut others = self.ranking.next_after(first.place).map(|place| &self.edges[place]);
            others.find(knows).and_then(|edge| edge.way).filter(|way| !self.is_clogged(*way))
        });
        let (before, there, behind) = parts(plan);
        let bytes = network().boundaries()[network().exits()[plan.exit].boundaries[before.len()]].raw_bytes();
        let takes_us = |way: &Way| {
            let link = &self.edges[way.place].link;
            let work_us: f64 =
                there.iter().map(|s| EDGE_US[*s]).sum::<f64>() + behind.iter().map(|s| DEVICE_US[*s]).sum::<f64>();
            Some(work_us + link.rtt_us() + bytes as f64 * 8.0 * US / link.rate_bps()?)
        };
        let next_us = next.as_ref().and_then(takes_us).map(|us| (deadline_us - us * planned.margin).max(0.0));
        let last_moment = after_us(deadline_us - local.candidate.cost.total_us() - LOCAL_MARGIN_US).unwrap();
        let terms = Terms {
            overdue: planned.predicted_us.and_then(|us| after_us(us * planned.margin)),
            next_until: next.map(|_| next_us.and_then(after_us).unwrap_or(last_moment)),
            last_moment,
        };
        let mut race = Race::new(terms);
        let clogged_by = first.filter(|_| crosses(plan)).and_then(|first| self.clogged_by(first));
        if let Some(Sent { bytes, since, .. }) = clogged_by.filter(|_| first == self.in_force) {
            let waited_us = self.now.saturating_sub(since).as_secs_f64() * US;
            self.tell(Event::Waiting { bytes, waited_us, busy_us: None });
        }
        if !crosses(plan) || first.is_none() || clogged_by.is_some() {
            race.failed(Runner::First);
        }
        let next = next.filter(|_| crosses(plan));
        if next.is_none() {
            race.failed(Runner::Next);
        }
        let (arrived, first) = (self.now, first.unwrap_or(nobody));
        let request = Request { arrived, race, planned, last_moment, first, next, first_since: None, bytes };
        self.requests.insert(number, request);
        self.race(number);
    }

    fn race(&mut self, number: u64) {
        loop {
            let Some(request) = self.requests.get_mut(&number) else { return };
            let since_arrived = self.now - request.arrived;
            match request.race.step(since_arrived) {
                Step::Start(runner @ (Runner::First | Runner::Next)) => {
                    let (first, next, bytes, installed) =
                        (request.first, request.next, request.bytes, request.planned.installed);
                    let last_moment = request.arrived + request.last_moment;
                    let late = if runner == Runner::Next { request.first_since.take().map(|_| first) } else { None };
                    let way = if runner == Runner::First { first } else { next.unwrap_or(first) };
                    let before = device_time(&parts(installed.plan).0);
                    if runner == Runner::First {
                        request.first_since = Some(self.now);
                    }
                    if let Some(late) = late {
                        self.ranking.struck(late.place, self.now);
                    }
                    let sent = self.now + before;
                    let left = (request.arrived + DEADLINE).saturating_sub(sent);
                    let (request, budget_us, said) = (number, left.as_secs_f64() * US, Said::Nothing);
                    let infer = Message::Infer { request, runner, installed, bytes, sent, budget_us, said };
                    self.in_flight.insert((way, number), Sent { bytes: bytes + 300, since: sent, last_moment });
                    self.send_after(before, way, bytes + 300, Happens::AtEdge(way, infer));
                }
                Step::Start(Runner::Alone) => {
                    let (arrived, first) = (request.arrived, request.first);
                    let is_late = request.first_since.is_some();
                    if is_late {
                        self.ranking.struck(first.place, self.now);
                    }
                    let left_us = settings().deadline_us - (self.now - arrived).as_secs_f64() * US;
                    let plan = self.controller.local(left_us, 0.0).candidate.plan;
                    self.after(device_time(&parts(plan).0), Happens::Done(number, Runner::Alone));
                }
                Step::Wait(until) => {
                    if let Some(until) = until {
                        self.after(until.saturating_sub(since_arrived), Happens::Awake(number));
                    }
                    return;
                }
                Step::GiveUp => panic!("nobody is left to answer"),
            }
        }
    }

    /// The first answer counts; those after it find no request.
    fn answered(&mut self, number: u64, runner: Runner) {
        let Some(request) = self.requests.remove(&number) else { return };
        let took = self.now - request.arrived;
        assert!(took <= DEADLINE, "answered after {took:?}, by {runner:?}");
        let actual_us = took.as_secs_f64() * US;
        match runner {
            Runner::First => {
                self.tally.first += 1;
                if let Some(predicted_us) = request.planned.predicted_us {
                    let plan = request.planned.installed.plan;
                    self.tell(Event::Answered { plan, predicted_us, actual_us });
                }
            }
            Runner::Next => self.tally.next += 1,
            Runner::Alone => self.tally.alone += 1,
        }
        self.last = Some(runner);
        let is_waiting = runner != Runner::First && self.in_force == Some(request.first);
        if is_waiting && self.in_flight.contains_key(&(request.first, number)) {
            self.tell(Event::Waiting { bytes: request.bytes + 300, waited_us: actual_us, busy_us: None });
        }
    }
}

/// A plan's segments: here before, there, and here behind.
fn parts(plan: planner::Plan) -> (Vec<usize>, Vec<usize>, Vec<usize>) {
    let path = network().exits()[plan.exit].path.clone();
    let (one, other) = path.split_at(plan.cut);
    match plan.direction {
        planner::Direction::DeviceFirst => (one.to_vec(), other.to_vec(), Vec::new()),
        planner::Direction::EdgeFirst => (Vec::new(), one.to_vec(), other.to_vec()),
    }
}

fn device_time(segments: &[usize]) -> Duration {
    Duration::from_secs_f64(segments.iter().map(|segment| DEVICE_US[*segment]).sum::<f64>() / US)
}

fn crosses(plan: planner::Plan) -> bool {
    plan.placement(&network()) != Placement::DeviceOnly
}

fn to_wire(Installed { plan, epoch }: Installed) -> Plan {
    let direction = match plan.direction {
        planner::Direction::DeviceFirst => Direction::DeviceFirst,
        planner::Direction::EdgeFirst => Direction::EdgeFirst,
    };
    let (exit, cut) = (super::position(plan.exit), super::position(plan.cut));
    Plan { epoch, model: Digest([0; 32]), exit, cut, direction, codec: Codec::Raw }
}

fn after_us(us: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(us / US).ok()
}
