//! The edge: runs parts of networks for devices; and whole ones for who asks it over HTTP.

mod ask;
pub(crate) mod plans;
mod queue;

use crate::codec;
use crate::metrics::Metrics;
use crate::shelf::{Prepared, Shelf, give_way};
use crate::state::State;
use crate::{Deployment, Due, Turn, Workers, again, threads, trace};
use bytes::Bytes;
use edgent_bundle::Bundle;
use edgent_link::{
    BlobName, Description, Digest, Direction, Fault, FaultKind, InferReply, InferRequest, ModelProfile, PIECE_BYTES,
    Plan, Reply, Role, SegmentTime, Service, Signature, Stats, Trial, Version, Which,
};
use edgent_nn::Stop;
use edgent_planner::{Doubt, Timings};
use plans::Plans;
use queue::Queue;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// Versions that are served at once.
const SERVED_MAX: usize = 16;

/// A version that a device asks for no more is let go when nobody has asked for it this long.
const RETIRE_IDLE: Duration = Duration::from_secs(2);

/// Serves every model that it was started with to every device that asks.
#[derive(Debug)]
pub struct Edge {
    served: Served,
    runtime: Handle,
    started: Instant,
    /// Of who asks it for an answer and says nothing else.
    deadline_us: f64,
    requests: AtomicU64,
    /// By the whole network, for who asked this host itself.
    answered: AtomicU64,
    /// Of those.
    deadline_met: AtomicU64,
    /// Of those.
    degraded: AtomicU64,
    errors: AtomicU64,
}

/// The bundles that are served: several versions of a model, while one takes the other's place.
#[derive(Clone, Debug)]
struct Served {
    models: Arc<Models>,
    shelf: Arc<Shelf>,
    /// By name, the version that answers who names none.
    in_force: Arc<RwLock<HashMap<String, Digest>>>,
    /// Held while a version comes into force.
    changing: Arc<tokio::sync::Mutex<()>>,
    /// Of each model's pool.
    threads: usize,
    metrics: Arc<Metrics>,
}

type Models = RwLock<HashMap<Digest, Arc<Model>>>;

#[derive(Debug)]
struct Model {
    deployment: Arc<Deployment>,
    /// Shared with the other versions of the model, and with nobody else.
    workers: Workers,
    /// How many they are.
    threads: usize,
    /// When a request last asked for it.
    asked: Mutex<Instant>,
    /// Whether a device has said that it asks no more, and none has shown interest since.
    is_going: AtomicBool,
    plans: Mutex<Plans>,
    measured: Mutex<Measured>,
    queue: Queue,
}

/// What a model's segments take here.
#[derive(Debug)]
struct Measured {
    timings: Timings,
    doubt: Doubt,
    /// What the doubt's time counts from.
    since: Instant,
}

impl Edge {
    /// An edge with these models; what was measured of each is what devices plan with at first.
    pub(crate) fn new(
        prepared: Vec<Prepared>,
        shelf: Arc<Shelf>,
        threads: usize,
        metrics: Arc<Metrics>,
        deadline_us: f64,
    ) -> io::Result<Self> {
        let named = |prepared: &Prepared| (prepared.bundle.manifest().name.clone(), Digest(prepared.bundle.digest().0));
        let in_force = Arc::new(RwLock::new(prepared.iter().map(named).collect()));
        let served = Served { models: Arc::default(), shelf, in_force, changing: Arc::default(), threads, metrics };
        prepared.into_iter().try_for_each(|prepared| served.serve(prepared))?;
        Handle::current().spawn(measure_again(Arc::downgrade(&served.models)));
        let (requests, answered, deadline_met, degraded, errors) = Default::default();
        Ok(Self {
            served,
            runtime: Handle::current(),
            started: Instant::now(),
            deadline_us,
            requests,
            answered,
            deadline_met,
            degraded,
            errors,
        })
    }

    /// As if segments had run just now, and taken so many times as long as they are known to.
    #[cfg(test)]
    pub(crate) fn seem_slow(&self, times: f64) {
        for model in self.served.models().values() {
            let slow_us = model.measured().timings.medians_us().into_iter().map(|us| us * times).enumerate();
            let slow_us: Vec<_> = slow_us.collect();
            (0..Timings::MEDIAN_RUNS).for_each(|_| model.learn(&slow_us));
        }
    }

    fn accept(&self, plan: Plan) -> Result<(), Fault> {
        let model = self.served.model(&plan.model)?;
        let exits = model.deployment.network().exits();
        let fits = exits.get(usize::from(plan.exit)).is_some_and(|exit| usize::from(plan.cut) <= exit.path.len());
        if !fits {
            return Err(fault(FaultKind::BadRequest, "the plan names an exit or a cut that the model does not have"));
        }
        model.plans.lock().unwrap_or_else(PoisonError::into_inner).agree(plan);
        Ok(())
    }

    fn start(&self, request: InferRequest, reply: Reply<InferReply>) -> Result<(), (Fault, Reply<InferReply>)> {
        let checked =
            self.served.model(&request.model).and_then(|model| Ok((Arc::clone(&model), model.check(&request)?)));
        let (model, (exit, range)) = match checked {
            Ok(checked) => checked,
            Err(fault) => return Err((fault, reply)),
        };
        let arrived = Instant::now();
        let due_at = arrived + Duration::from_micros(request.remaining_budget_us);
        let (stop, takes) = (threads::stop_at(due_at), model.takes(exit, range.clone()));
        let workers = model.workers.clone();
        let mut span = trace::part_for(&request, &model.deployment, exit, &range);
        // The reply goes with the job, but a refused job must still answer.
        let slot = Arc::new(Mutex::new(Some(reply)));
        let theirs = Arc::clone(&slot);
        let (served, runtime) = (self.served.clone(), self.runtime.clone());
        let submitted = workers.submit(Due { at: due_at, takes, late_until: None }, move |turn| {
            let Some(reply) = theirs.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
            if turn == Turn::TooLate {
                let waited_ms = arrived.elapsed().as_secs_f64() * 1e3;
                let why = format!("it waited here for {waited_ms:.1} ms, and there is not the time for it any more");
                served.metrics.part(Some(FaultKind::TimeUp));
                let late = fault(FaultKind::TimeUp, why);
                span.failed(&late);
                return reply.send(Err(late));
            }
            let ran = model.infer(exit, range, &request, arrived, &stop).inspect_err(|fault| span.failed(fault));
            span.end();
            served.metrics.part(ran.as_ref().err().map(|fault| fault.kind));
            reply.send(ran);
            if let Some(why) = model.deployment.new_quarantine() {
                served.quarantine(&runtime, &model, why);
            }
        });
        let Err(busy) = submitted else { return Ok(()) };
        let reply = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        match reply {
            Some(reply) => Err((fault(FaultKind::Busy, busy.to_string()), reply)),
            None => Ok(()),
        }
    }
}

impl Edge {
    /// What it does now.
    pub(crate) fn state(&self) -> State {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let stats = Stats {
            uptime_ms: us(self.started.elapsed()) / 1_000,
            requests: count(&self.requests),
            answered: count(&self.answered),
            errors: count(&self.errors),
            deadline_met: count(&self.deadline_met),
            degraded: count(&self.degraded),
            tensor_bytes_copied: edgent_nn::bytes_copied(),
            faults: crate::deployment::faults(),
            quarantined: self.served.shelf.quarantined().len() as u64,
            ..Stats::default()
        };
        let version = self.served().into_iter().next();
        State { role: Role::Edge, version, stats, deadline_us: self.deadline_us, device: None }
    }

    fn change(
        &self,
        reply: Reply<Version>,
        to: impl FnOnce(&Shelf) -> Result<(u64, Bundle), Fault> + Send + 'static,
        put_in_force: bool,
    ) {
        let change = self.served.clone().alone(move |served| served.change_to(to(&served.shelf)?, put_in_force));
        self.runtime.spawn(async move { reply.send(change.await) });
    }
}

impl Edge {
    /// Puts these in force, and what else is so in the store by now.
    pub(crate) async fn reload(&self, changed: Vec<Bundle>) -> Result<(), Fault> {
        let reload = move |served: &Served| {
            for bundle in changed {
                served.change_to(served.shelf.take_from(&bundle)?, true)?;
            }
            for version in served.shelf.versions()?.into_iter().filter(|version| version.current) {
                if let Some(current) = served.shelf.current(&version.model)? {
                    served.change_to(current, true)?;
                }
            }
            Ok(())
        };
        self.served.clone().alone(reload).await
    }
}

impl Served {
    fn models(&self) -> RwLockReadGuard<'_, HashMap<Digest, Arc<Model>>> {
        self.models.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A model that somebody asks for.
    fn model(&self, digest: &Digest) -> Result<Arc<Model>, Fault> {
        let models = self.models();
        let known = models.get(digest).cloned().inspect(|model| model.is_going.store(false, Ordering::Release));
        known.ok_or_else(|| {
            let have: Vec<String> = models.values().map(|model| model.deployment.digest().short()).collect();
            let message = format!("the edge has no model {}; it has {}", short(digest), have.join(", "));
            fault(FaultKind::UnknownModel, message)
        })
    }

    /// Has a thread for such things change versions, when nobody else does.
    async fn alone<T: Send + 'static>(
        self,
        change: impl FnOnce(&Self) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let alone = Arc::clone(&self.changing).lock_owned().await;
        let change = move || {
            let _alone = alone;
            give_way();
            change(&self)
        };
        let panicked = || Err(fault(FaultKind::Internal, "a change of versions panicked"));
        threads::apart(change).await.unwrap_or_else(panicked)
    }

    /// Prepares a version, serves it beside the others, and perhaps puts it in force for the next start.
    fn change_to(&self, to: (u64, Bundle), put_in_force: bool) -> Result<Version, Fault> {
        let changed = self.bring_to(to, put_in_force);
        if put_in_force {
            self.metrics.swapped(changed.is_ok());
        }
        changed
    }

    fn bring_to(&self, (version, bundle): (u64, Bundle), put_in_force: bool) -> Result<Version, Fault> {
        let (name, digest) = (bundle.manifest().name.clone(), Digest(bundle.digest().0));
        if self.model(&digest).is_err() {
            self.make_room()?;
            let prepared = self.shelf.prepare(bundle);
            let prepared = prepared.map_err(|e| fault(FaultKind::Refused, format!("it cannot be served: {e}")))?;
            let no_thread = |e| fault(FaultKind::Internal, format!("it cannot be served: a thread did not start: {e}"));
            self.serve(prepared).map_err(no_thread)?;
        }
        if put_in_force {
            let in_use: Vec<_> = self.models().keys().map(|digest| edgent_bundle::Digest(digest.0)).collect();
            self.shelf.put_in_force(&name, version, &in_use)?;
            self.in_force.write().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), digest);
        }
        Ok(Version {
            model: name,
            version,
            digest,
            current: put_in_force,
            previous: false,
            commit_us: 0,
            on_trial: false,
            quarantined: false,
        })
    }

    /// Serves what is ready, on the threads of the model's other versions if there are any and as many as its publisher
    /// may have.
    fn serve(&self, prepared: Prepared) -> io::Result<()> {
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        let name = &prepared.bundle.manifest().name;
        let threads = ((self.threads as f64 * prepared.workers_share) as usize).max(1);
        let is_alike = |model: &&Arc<Model>| model.deployment.manifest().name == *name && model.threads == threads;
        let workers = match models.values().find(is_alike) {
            Some(model) => model.workers.clone(),
            None => Workers::start(threads)?,
        };
        models.insert(Digest(prepared.bundle.digest().0), Model::new(prepared, workers, threads));
        Ok(())
    }

    /// Lets the version go that nobody has asked for the longest time, if there are many.
    fn make_room(&self) -> Result<(), Fault> {
        let in_force = self.shelf.versions()?;
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        if models.len() < SERVED_MAX {
            return Ok(());
        }
        let is_in_force = |digest| in_force.iter().any(|version| version.current && version.digest == digest);
        let idle = |model: &Model| model.asked.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        let others = models.iter().filter(|(digest, _)| !is_in_force(**digest));
        let longest = others.map(|(digest, model)| (idle(model), *digest)).max_by_key(|(idle, _)| *idle);
        match longest {
            Some((idle, digest)) if idle >= RETIRE_IDLE => {
                models.remove(&digest);
                tracing::info!(digest = %short(&digest), "retired, to make room");
                Ok(())
            }
            _ => Err(fault(FaultKind::Busy, format!("{SERVED_MAX} versions are served already, and all are in use"))),
        }
    }

    /// Goes back to the version before one that does wrong again and again, if that is the one in force.
    fn quarantine(&self, runtime: &Handle, model: &Model, why: &str) {
        let (digest, name) = (model.deployment.digest(), model.deployment.manifest().name.clone());
        self.shelf.quarantine(digest, why);
        let of = name.clone();
        let back = self.clone().alone(move |served| served.change_to(served.shelf.instead_of(&of, digest)?, true));
        runtime.spawn(async move {
            match back.await {
                Ok(to) => tracing::warn!(model = %name, version = to.version, "went back to the version before"),
                Err(fault) => tracing::error!(model = %name, why = fault.message, "there is nothing to go back to"),
            }
        });
    }

    /// Lets a version go that one device asks for no more, unless others still do or it is in force.
    async fn retire(self, digest: Digest) {
        let Some(model) = self.models().get(&digest).cloned() else { return };
        model.is_going.store(true, Ordering::Release);
        loop {
            tokio::time::sleep(RETIRE_IDLE).await;
            if !model.is_going.load(Ordering::Acquire) {
                return;
            }
            let asked = *model.asked.lock().unwrap_or_else(PoisonError::into_inner);
            if asked.elapsed() < RETIRE_IDLE {
                continue;
            }
            let served = self.clone();
            let in_force = threads::apart(move || served.shelf.versions()).await;
            let in_force = in_force.is_some_and(|versions| {
                versions
                    .is_ok_and(|versions| versions.iter().any(|version| version.current && version.digest == digest))
            });
            let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
            // Somebody may have asked for it since; nobody does while it goes.
            if !in_force && model.is_going.load(Ordering::Acquire) {
                models.remove(&digest);
                tracing::info!(digest = %short(&digest), "retired");
            }
            return;
        }
    }
}

/// Measures models again that seemed slow when they last ran. Requests of which nobody thought that they could be in
/// time were refused, or never sent, so they tell nothing. And, from time to time, on how many threads they should run.
async fn measure_again(models: Weak<Models>) {
    let mut look = tokio::time::interval(again::LOOK);
    loop {
        look.tick().await;
        let Some(models) = models.upgrade() else { return };
        let served: Vec<Arc<Model>> =
            models.read().unwrap_or_else(PoisonError::into_inner).values().map(Arc::clone).collect();
        drop(models);
        for model in served {
            let (is_doubted, takes) = model.measured().is_doubted();
            let again = again::look(&model.deployment, &model.workers, is_doubted, takes).await;
            model.learn(&again);
        }
    }
}

impl Measured {
    fn new(timings: Timings) -> Self {
        Self { doubt: Doubt::new(&timings, Duration::ZERO), timings, since: Instant::now() }
    }

    fn record(&mut self, segment: usize, us: f64) {
        self.timings.record(segment, us);
        self.doubt.ran(segment, self.since.elapsed());
    }

    /// Whether it is, and how long all segments are thought to take.
    fn is_doubted(&mut self) -> (bool, Duration) {
        (self.doubt.is_due(&self.timings, self.since.elapsed()), again::takes(&self.timings))
    }
}

impl Model {
    fn new(Prepared { deployment, timings, .. }: Prepared, workers: Workers, threads: usize) -> Arc<Self> {
        Arc::new(Self {
            deployment,
            workers,
            threads,
            asked: Mutex::new(Instant::now()),
            is_going: AtomicBool::new(false),
            plans: Mutex::default(),
            measured: Mutex::new(Measured::new(timings)),
            queue: Queue::new(),
        })
    }

    /// The exit and the range of its path that a request means, if its epoch's plan says the same.
    fn check(&self, request: &InferRequest) -> Result<(usize, Range<usize>), Fault> {
        let known = self.plans.lock().unwrap_or_else(PoisonError::into_inner).of(request.epoch);
        let plan = known.ok_or_else(|| {
            fault(FaultKind::UnknownEpoch, format!("epoch {} is not agreed on; install its plan again", request.epoch))
        })?;
        let exit = usize::from(plan.exit);
        let (cut, end) = (usize::from(plan.cut), self.deployment.network().exits()[exit].path.len());
        let range = match plan.direction {
            Direction::DeviceFirst => cut..end,
            Direction::EdgeFirst => 0..cut,
        };
        let asked = usize::from(request.from_segment)..usize::from(request.to_segment);
        if asked != range {
            let message = format!("epoch {} runs segments {range:?} here, not {asked:?}", request.epoch);
            return Err(fault(FaultKind::BadRequest, message));
        }
        Ok((exit, range))
    }

    /// How long some segments of an exit's path usually take; zero if that is not known.
    fn takes(&self, exit: usize, range: Range<usize>) -> Duration {
        let measured = self.measured();
        let path = &self.deployment.network().exits()[exit].path[range];
        duration(path.iter().map(|segment| measured.timings.median_us(*segment)).sum())
    }

    /// Takes in how long a request that begins now has waited, and says so.
    fn started(&self, arrived: Instant) -> u64 {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = arrived;
        let queue_us = us(arrived.elapsed());
        self.queue.waited(queue_us);
        queue_us
    }

    fn learn(&self, segments_us: &[(usize, f64)]) {
        let mut measured = self.measured();
        segments_us.iter().for_each(|(segment, us)| measured.record(*segment, *us));
    }

    fn measured(&self) -> MutexGuard<'_, Measured> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn infer(
        &self,
        exit: usize,
        range: Range<usize>,
        request: &InferRequest,
        arrived: Instant,
        stop: &Stop,
    ) -> Result<InferReply, Fault> {
        let queue_us = self.started(arrived);
        let coding = Instant::now();
        let expected = self.deployment.crossing(exit, range.start);
        let input = codec::decode_all(&request.activation, &request.beside, &expected);
        let input = input.map_err(|e| fault(FaultKind::BadRequest, e.to_string()))?;
        let decode_us = us(coding.elapsed());
        let ran = self.deployment.run(exit, range, input, stop).map_err(|e| {
            let kind = if stop.reached() { FaultKind::TimeUp } else { FaultKind::SegmentFailed };
            fault(kind, e.to_string())
        })?;
        self.learn(&ran.segments_us);
        let coding = Instant::now();
        let (activation, beside) = codec::encode_all(&ran.output, request.reply_codec)
            .ok_or_else(|| fault(FaultKind::Internal, "the segments gave nothing"))?;
        Ok(InferReply {
            id: request.id,
            epoch: request.epoch,
            activation,
            beside,
            queue_us,
            segment_us: ran.segments_us.iter().map(|(_, us)| *us as u32).collect(),
            codec_us: decode_us + us(coding.elapsed()),
        })
    }
}

impl Service for Edge {
    fn model_name(&self, which: Which<'_>) -> Option<String> {
        let models = self.served.models();
        let name = |model: &Arc<Model>| model.deployment.manifest().name.clone();
        match which {
            Which::Digest(digest) => models.get(&digest).map(name),
            Which::Name(wanted) => models.values().map(name).find(|name| name == wanted),
        }
    }

    fn turned_away(&self, address: SocketAddr, why: &str) {
        tracing::warn!(%address, why, "turned away");
    }

    fn describe(&self, reply: Reply<Description>) {
        let models = self.served.models().values().map(|model| crate::host::describe(&model.deployment)).collect();
        reply.send(Ok(Description { models }));
    }

    fn install_plan(&self, plan: Plan, reply: Reply<()>) {
        reply.send(self.accept(plan));
    }

    fn infer(&self, request: InferRequest, reply: Reply<InferReply>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if let Err((fault, reply)) = self.start(request, reply) {
            self.served.metrics.part(Some(fault.kind));
            self.errors.fetch_add(1, Ordering::Relaxed);
            reply.send(Err(fault));
        }
    }

    fn profile(&self, model: Digest, reply: Reply<ModelProfile>) {
        reply.send(self.served.model(&model).map(|known| {
            let Measured { timings, .. } = &*known.measured();
            let segments = timings.medians_us().into_iter().enumerate().map(|(segment, p50_us)| SegmentTime {
                segment: u16::try_from(segment).unwrap_or(u16::MAX),
                p50_us,
                p90_us: timings.p90_us(segment),
                samples: u32::try_from(timings.runs(segment)).unwrap_or(u32::MAX),
            });
            ModelProfile {
                model,
                segments: segments.collect(),
                queue_us: known.queue.us(),
                codec_us_per_mib: codec::u8_us_per_mib(),
                codecs: codec::times().to_vec(),
            }
        }));
    }

    fn sign(&self, model: Digest, signatures: Vec<Signature>, reply: Reply<()>) {
        let digest = edgent_bundle::Digest(model.0);
        self.served.shelf.answer(&self.runtime, reply, move |shelf| shelf.sign(digest, &signatures));
    }

    fn signatures(&self, model: Digest, reply: Reply<Vec<Signature>>) {
        let digest = edgent_bundle::Digest(model.0);
        self.served.shelf.answer(&self.runtime, reply, move |shelf| shelf.signatures(digest));
    }

    fn offer(&self, manifest: Bytes, reply: Reply<Vec<BlobName>>) {
        self.served.shelf.answer(&self.runtime, reply, move |shelf| shelf.offer(&manifest));
    }

    fn offer_piece(&self, manifest: Digest, total: u64, offset: u64, bytes: Bytes, reply: Reply<Vec<BlobName>>) {
        let manifest = edgent_bundle::Digest(manifest.0);
        self.served.shelf.answer(&self.runtime, reply, move |shelf| shelf.offer_piece(manifest, total, offset, &bytes));
    }

    fn put_blob(&self, digest: Digest, offset: u64, bytes: Bytes, reply: Reply<()>) {
        let digest = edgent_bundle::Digest(digest.0);
        self.served.shelf.answer(&self.runtime, reply, move |shelf| shelf.put(digest, offset, &bytes));
    }

    fn install(&self, model: Digest, trial: Option<Trial>, reply: Reply<Version>) {
        if trial.is_some() {
            let why = "an edge sees no answers, so a trial is the device's to make; push the version to a device";
            return reply.send(Err(fault(FaultKind::Unsupported, why)));
        }
        self.change(reply, move |shelf| shelf.take(edgent_bundle::Digest(model.0)), true);
    }

    fn prepare(&self, model: Digest, reply: Reply<Version>) {
        self.change(reply, move |shelf| shelf.take(edgent_bundle::Digest(model.0)), false);
    }

    fn rollback(&self, model: String, reply: Reply<Version>) {
        self.change(reply, move |shelf| shelf.previous(&model), true);
    }

    fn versions(&self, reply: Reply<Vec<Version>>) {
        self.served.shelf.answer(&self.runtime, reply, Shelf::versions);
    }

    fn manifest(&self, digest: Digest, reply: Reply<Bytes>) {
        let digest = edgent_bundle::Digest(digest.0);
        self.served.shelf.answer(&self.runtime, reply, move |shelf| shelf.manifest(digest).map(Bytes::from));
    }

    fn blob(&self, digest: Digest, offset: u64, max_bytes: u32, reply: Reply<Bytes>) {
        let (digest, bytes_max) = (edgent_bundle::Digest(digest.0), (max_bytes as usize).min(PIECE_BYTES));
        self.served
            .shelf
            .answer(&self.runtime, reply, move |shelf| shelf.blob(digest, offset, bytes_max).map(Bytes::from));
    }

    fn retire(&self, model: Digest, reply: Reply<()>) {
        self.runtime.spawn(self.served.clone().retire(model));
        reply.send(Ok(()));
    }

    fn stats(&self, reply: Reply<Stats>) {
        reply.send(Ok(self.state().told(&self.served.metrics)));
    }
}

pub(crate) fn fault(kind: FaultKind, message: impl Into<String>) -> Fault {
    Fault { kind, message: message.into() }
}

pub(crate) fn duration(us: f64) -> Duration {
    Duration::try_from_secs_f64(us / 1e6).unwrap_or_default()
}

pub(crate) fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn short(digest: &Digest) -> String {
    edgent_bundle::Digest(digest.0).short()
}
