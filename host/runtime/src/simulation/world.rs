//! One run: a device and its edges, somebody who asks, and what goes wrong.

use super::model::{Model, hello};
use super::network::Network;
use super::{DEADLINE, TROUBLES, Tally, Trouble};
use crate::device::{Device, DeviceService, DeviceSettings};
use crate::metrics::Metrics;
use crate::push::{PushError, push};
use crate::{Edge, Workers, codec};
use edgent_link::{
    Answer, AskRequest, FaultKind, InferRequest, Limits, Link, LinkError, Placement, Role, Security, Server, Version,
};
use edgent_planner::{Settings, Strategy};
use fastrand::Rng;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

const EDGES: usize = 2;
/// Where the device is told of versions.
const DEVICE: usize = EDGES;
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
/// Of answers, the last of this many things that happened are told when something fails; all of what went wrong is.
const STORY: usize = 60;
const ANSWERED: &str = "answered";
/// What others ask an edge for at once, when it is crowded.
const CROWD: u64 = 30;
/// In one of so many runs, hosts have stores, and versions change.
const CHANGING: u64 = 4;

/// An edge, and where it listens.
type Running = (Arc<Edge>, Server);

pub(super) struct World<'a> {
    model: &'a Model,
    network: Arc<Network>,
    /// A device's, and that of edges; whoever else asks has the keys of either.
    links: [Link; 2],
    /// What may go wrong.
    troubles: Vec<Trouble>,
    /// Where hosts keep their versions.
    stores: Option<TempDir>,
    device: Arc<Device>,
    edges: Vec<Mutex<Option<Running>>>,
    pushes: Mutex<Vec<JoinHandle<Result<Version, PushError>>>>,
    tally: Mutex<Tally>,
    since: Instant,
    /// What happened, in words.
    story: Mutex<Vec<String>>,
    /// Where the device listens.
    _server: Server,
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let story = self.story.lock().unwrap();
            let last = story.len().saturating_sub(STORY);
            let told = story.iter().enumerate().filter(|(at, said)| *at >= last || !said.contains(ANSWERED));
            told.for_each(|(_, said)| eprintln!("{said}"));
        }
    }
}

impl<'a> World<'a> {
    pub(super) async fn new(model: &'a Model, random: &mut Rng) -> Self {
        let network = Arc::new(Network::new(EDGES + 1, random));
        let is_tls = random.bool();
        let security = if is_tls { model.security.clone() } else { [Security::insecure(), Security::insecure()] };
        let links = security.map(|security| Link::within(Arc::clone(&network) as _, security));
        let stores = (random.u64(..CHANGING) == 0).then(|| tempfile::tempdir().unwrap());
        let can_be = |trouble: &Trouble| match trouble {
            // Plain bytes do not show that they were changed.
            Trouble::Flip => is_tls,
            Trouble::Push => stores.is_some(),
            _ => true,
        };
        let pushed_more = [Trouble::Push; 2];
        let troubles = TROUBLES.into_iter().chain(pushed_more).filter(can_be).collect();
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
        let store = stores.as_ref().map(|stores| stores.path().join(DEVICE.to_string()));
        let (prepared, shelf) = model.device.start(store.as_deref());
        let workers = Workers::start(1).unwrap();
        let device = Device::start(prepared, shelf, workers, links[0].clone(), Metrics::new(), settings);
        let (address, service) = (DEVICE.to_string(), Arc::new(DeviceService(Arc::clone(&device))));
        let served = links[0].serve(&address, hello(Role::Device), Limits::default(), service).await;
        let (edges, pushes, tally, story) =
            ((0..EDGES).map(|_| Mutex::default()).collect(), Default::default(), Mutex::default(), Mutex::default());
        let (since, _server) = (Instant::now(), served.unwrap());
        Self { model, network, links, troubles, stores, device, edges, pushes, tally, since, story, _server }
    }

    fn say(&self, what: std::fmt::Arguments<'_>) {
        self.story.lock().unwrap().push(format!("{:>9.3?} {what}", self.since.elapsed()));
    }

    /// Has an edge run at its place.
    async fn start(&self, place: usize) {
        let store = self.stores.as_ref().map(|stores| stores.path().join(place.to_string()));
        let edge = self.model.start_edge(store.as_deref(), &self.links[1], place).await;
        *self.edges[place].lock().unwrap() = Some(edge);
    }

    /// Asks the device again and again; gives the last answer.
    pub(super) async fn ask(&self) -> Answer {
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
            assert!(self.version_of(&answer).is_some(), "by exit {} of no version: {answer:?}", answer.exit);
            let Answer { placement, exit, degraded, .. } = &answer;
            let edges = self.device.edge_states();
            let edges: Vec<_> = edges.iter().map(|edge| (edge.connected, edge.in_force, edge.strikes)).collect();
            self.say(format_args!(
                "{id} {ANSWERED} after {took:?}: {placement:?}, exit {exit}, {degraded:?}; edges are there, in force, struck {edges:?}"
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
    pub(super) async fn trouble(&self, mut random: Rng) {
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
            let trouble = self.troubles[random.usize(..self.troubles.len())];
            self.say(format_args!("edge {place}: {trouble:?}, for {lasts:?}, or away for {away:?}"));
            *self.tally.lock().unwrap().troubles.entry(trouble).or_default() += 1;
            match trouble {
                Trouble::Kill | Trouble::End => {
                    let edge = self.edges[place].lock().unwrap().take();
                    if let Some((_, server)) = edge.filter(|_| trouble == Trouble::End) {
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
                Trouble::Flip => line.flip(),
                Trouble::Crowd => self.crowd(place, &mut random).await,
                Trouble::Push => self.push(if random.bool() { DEVICE } else { place }, random.usize(..2)),
            }
        }
    }

    /// Others ask an edge for much at once.
    async fn crowd(&self, place: usize, random: &mut Rng) {
        let Ok(client) = self.links[0].connect(&place.to_string(), hello(Role::Device), Limits::default()).await else {
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

    /// Has somebody push a version to a host, and goes on.
    fn push(&self, place: usize, version: usize) {
        let bundle = self.model.bundles[version].clone();
        // A device is known to edges, and an edge to devices.
        let link = self.links[usize::from(place == DEVICE)].clone();
        self.say(format_args!("version {version} for the host at {place}"));
        let pushing = tokio::spawn(async move {
            let client = link.connect(&place.to_string(), hello(Role::Tool), Limits::default()).await?;
            push(&client, &bundle, None).await
        });
        self.pushes.lock().unwrap().push(pushing);
    }

    /// By which version a request was answered.
    fn version_of(&self, answer: &Answer) -> Option<usize> {
        self.model.scores.iter().position(|scores| answer.scores == scores[usize::from(answer.exit)])
    }

    /// What was so once nothing went wrong any more; and what happened, in words.
    pub(super) async fn sum(&self, last: Answer) -> (Tally, Vec<String>) {
        let states = self.device.edge_states();
        assert!(states[0].in_force, "the preferred edge is in force in the end: {states:?}");
        let plans = self.device.explain(None);
        assert_ne!(last.placement, Placement::DeviceOnly, "and asked: {last:?}, planned by {:#?}", plans.2);
        let at_device = self.device.served()[0].digest();
        let at_edge = self.edges[0].lock().unwrap().as_ref().map(|(edge, _)| edge.served()[0].digest());
        assert_eq!(at_edge, Some(at_device), "both have one version in force");
        let by = self.version_of(&last).map(|version| self.model.bundles[version].digest());
        assert_eq!(by, Some(at_device), "it answers");
        let pushes = std::mem::take(&mut *self.pushes.lock().unwrap());
        for push in pushes {
            match push.await.unwrap() {
                Ok(_) => self.tally.lock().unwrap().changed += 1,
                Err(error) => self.say(format_args!("not pushed: {error}")),
            }
        }
        (self.tally.lock().unwrap().clone(), self.story.lock().unwrap().clone())
    }
}

fn within_ms(random: &mut Rng, low: u64, high: u64) -> Duration {
    Duration::from_millis(random.u64(low..high))
}
