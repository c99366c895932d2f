//! A bundle made ready to run.

use crate::Refusal;
use crate::admission::{Admission, CostError};
use crate::codec;
use crate::confine::ConfinedError;
use crate::emulation::{Emulation, Pace};
use crate::golden::GoldenError;
use crate::memory::GiveBack;
use crate::runs::{Joined, Run, Ways};
use crate::segments::Preparing;
use crate::threads;
use edgent_bundle::{Bundle, BundleError, ComponentError, Digest, Manifest, Tier};
use edgent_nn::{Choice, Cost, ElementType, Fact, Graph, GraphError, Onnxruntime, Stop, Tensor, TensorError, Threads};
use edgent_planner::{Boundary, Codec, Exit, Network, NetworkError, PerCodec, Timings, least_bytes, resident};
use edgent_sandbox::{Engine, Fault, SandboxError, Segment, SegmentError, Work};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::mem;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How soon an emulated segment notices that nobody waits for it.
const PRETEND_SLICE: Duration = Duration::from_millis(5);

/// The longest pause between two segments that are measured.
const PAUSE_MAX: Duration = Duration::from_millis(2);

/// A segment that does wrong so often in a row has its version quarantined. Once may be an odd input; a fault that
/// only some inputs bring about does not take a good version out of service as long as others come between.
const FAULTS_MAX: u32 = 3;

/// What all segments of this process did wrong, by [`FAULT_KINDS`].
static FAULTS: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

const FAULT_KINDS: [&str; 5] = ["trap", "limit", "refused", "output", "graph"];

/// Every segment of a bundle compiled, instantiated and prepared. Shared between threads.
#[derive(Debug)]
pub struct Deployment {
    digest: Digest,
    manifest: Manifest,
    network: Network,
    tensors: Vec<Fact>,
    /// None where the memory that this host may use did not suffice.
    segments: Vec<Option<Segment>>,
    wiring: Vec<Wiring>,
    ways: Ways,
    pace: Pace,
    /// So many threads are tried for a segment.
    threads_max: usize,
    /// What each segment usually takes of this processor's time; only kept where one so many times slower is emulated.
    usual: Mutex<Timings>,
    /// How often in a row each segment did wrong.
    faults: Vec<AtomicU32>,
    /// Why none of it runs any more, and whether somebody saw to that.
    quarantine: OnceLock<String>,
    quarantine_seen: AtomicBool,
    /// The last to go.
    _gives_back: GiveBack,
}

/// On what terms a bundle is prepared.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The slow device that is emulated. Where it is K times slower, each segment sleeps K − 1 times as long as it
    /// usually works. Usually: this machine's caches and neighbours make single runs vary, and that must not be made K
    /// times larger. Where its times were measured, each segment sleeps for what is left of its own.
    pub emulation: Emulation,
    /// No more segments are prepared than take so much memory, by [`memory_bytes`]; but at least those of one exit.
    pub memory_max_bytes: u64,
    /// What the bundle may cost.
    pub admission: Admission,
    /// Where the arithmetic is done.
    pub tiers: Tiers,
    /// A second backend, for the graphs that it computes faster; tract alone computes if there is none.
    pub onnxruntime: Option<Onnxruntime>,
    /// How many threads one run may have, of those whose processors are idle. Where a slow device is emulated it has one.
    pub threads: usize,
    /// Whether segments whose code is part of this program are prepared, too. For a trial, they need not be: nothing
    /// of the bundle is read outside the sandbox then.
    pub shipped_code: bool,
}

/// Where a bundle's arithmetic is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tiers {
    /// Where its manifest says.
    #[default]
    AsBuilt,
    /// In the sandbox, all of it.
    Portable,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            emulation: Emulation::Off,
            memory_max_bytes: u64::MAX,
            admission: Admission::default(),
            tiers: Tiers::AsBuilt,
            onnxruntime: None,
            threads: 1,
            shipped_code: true,
        }
    }
}

impl Tiers {
    /// The tier in which a segment runs.
    pub fn of(self, segment: &edgent_bundle::Segment) -> Tier {
        match self {
            Self::AsBuilt => segment.tier,
            Self::Portable => Tier::Portable,
        }
    }
}

/// How a segment makes one boundary's tensors of another's.
#[derive(Debug)]
pub(crate) struct Wiring {
    /// Where those that it takes stand among those of the boundary it starts from.
    takes: Vec<usize>,
    /// Where each of the boundary it leads to comes from.
    to: Vec<Source>,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    /// It passes the segment by, and stood there before.
    Passed(usize),
    /// The segment gives it, at this place.
    Given(usize),
}

/// Some segments ran.
#[derive(Debug)]
pub struct Ran {
    /// What crosses the boundary behind the last of them, in its order.
    pub output: Vec<Tensor>,
    /// Each segment, and how long it took.
    pub segments_us: Vec<(usize, f64)>,
}

impl Deployment {
    /// Reads and prepares everything, on the usual terms but for a `slowdown`.
    pub fn prepare(bundle: &Bundle, engine: &Engine, slowdown: f64) -> Result<Self, PrepareError> {
        Self::prepare_on(bundle, engine, &Terms { emulation: Emulation::Slowdown(slowdown), ..Terms::default() })
    }

    /// Reads and prepares what the terms allow.
    pub fn prepare_on(bundle: &Bundle, engine: &Engine, terms: &Terms) -> Result<Self, PrepareError> {
        let Terms { emulation, memory_max_bytes, admission, tiers, .. } = terms.clone();
        // The first here, and so the last to go, too, if something is refused.
        let gives_back = GiveBack;
        let manifest = bundle.manifest().clone();
        admission.check_manifest(&manifest)?;
        let pace = emulation.pace(&manifest, bundle.digest())?;
        let tensors = manifest
            .tensors
            .iter()
            .map(|tensor| {
                let element_type = ElementType::from_name(&tensor.element_type)
                    .ok_or_else(|| PrepareError::ElementType(tensor.name.clone(), tensor.element_type.clone()))?;
                Ok(Fact::new(element_type, &tensor.dims)?)
            })
            .collect::<Result<Vec<_>, PrepareError>>()?;
        let network = network(&manifest, &tensors)?;
        let segments_bytes: Vec<u64> =
            manifest.segments.iter().map(|segment| memory_bytes(segment, &tensors, tiers.of(segment))).collect();
        let held = resident(&network, &segments_bytes, memory_max_bytes).ok_or_else(|| PrepareError::Memory {
            allowed_bytes: memory_max_bytes,
            least_bytes: least_bytes(&network, &segments_bytes),
        })?;
        let ready = Preparing { bundle, engine, tensors: &tensors, terms }.all(&held)?;
        let costs: Vec<Cost> =
            ready.iter().map(|ready| ready.as_ref().map_or(Cost::default(), |(_, cost)| *cost)).collect();
        admission.check_graphs(&manifest, &costs)?;
        let finite = |tensors: &[usize]| tensors.iter().map(|at| manifest.tensors[*at].finite).collect::<Vec<_>>();
        let checked = |(ready, told): (Option<(Segment, Cost)>, &edgent_bundle::Segment)| {
            ready.map(|(segment, _)| segment.with_finite(finite(&told.takes), finite(&told.gives)))
        };
        let segments: Vec<Option<Segment>> = ready.into_iter().zip(&manifest.segments).map(checked).collect();
        let wiring = manifest.segments.iter().map(|segment| Wiring::new(&manifest, segment)).collect();
        let usual = Mutex::new(Timings::new(segments.len()));
        Ok(Self {
            digest: bundle.digest(),
            manifest,
            network,
            tensors,
            wiring,
            ways: Ways::default(),
            threads_max: if matches!(pace, Pace::Own) { terms.threads } else { 1 },
            pace,
            usual,
            faults: segments.iter().map(|_| AtomicU32::new(0)).collect(),
            quarantine: OnceLock::new(),
            quarantine_seen: AtomicBool::new(false),
            segments,
            _gives_back: gives_back,
        })
    }

    /// Runs the segments of an exit's path whose positions are in `range` on what crosses the boundary before them.
    pub fn run(&self, exit: usize, range: Range<usize>, input: Vec<Tensor>, stop: &Stop) -> Result<Ran, RunError> {
        let mut ran = Ran { output: input, segments_us: Vec::with_capacity(range.len()) };
        if range.len() < 2 || !matches!(self.pace, Pace::Own) {
            for index in &self.manifest.exits[exit].path[range] {
                self.run_next(*index, &mut ran, stop)?;
            }
            return Ok(ran);
        }
        for run in self.ways.get(self, exit, &range).iter() {
            let indices = match run {
                Run::Joined(joined) if joined.is_sound() && self.run_joined(joined, &mut ran, stop)? => continue,
                Run::Joined(joined) => &joined.indices[..],
                Run::One(index) => std::slice::from_ref(index),
            };
            for index in indices {
                self.run_next(*index, &mut ran, stop)?;
            }
        }
        Ok(ran)
    }

    fn run_next(&self, index: usize, ran: &mut Ran, stop: &Stop) -> Result<(), RunError> {
        let start = Instant::now();
        let (output, emulated) = self.run_one(index, mem::take(&mut ran.output), stop)?;
        ran.output = output;
        pretend(emulated, stop);
        ran.segments_us.push((index, start.elapsed().as_secs_f64() * 1e6));
        Ok(())
    }

    /// Runs some segments in one call. If they fail by a fault of their own, says so and has changed nothing: run by
    /// themselves, it shows which of them it was.
    fn run_joined(&self, joined: &Joined, ran: &mut Ran, stop: &Stop) -> Result<bool, RunError> {
        self.check_quarantine()?;
        let (start, first) = (Instant::now(), ran.segments_us.len());
        let mut parts_us = Vec::new();
        let through = joined.wiring.through(ran.output.clone(), |taken| {
            let (given, us) = joined.segment.run_timed(taken, stop)?;
            parts_us = us;
            Ok::<_, SegmentError>(given)
        });
        match through {
            Err(error) if is_own_fault(&error.fault) => {
                joined.has_failed.store(true, Ordering::Relaxed);
                return Ok(false);
            }
            through => ran.output = through?,
        }
        joined.indices.iter().for_each(|index| self.judge(*index, None));
        ran.segments_us.extend(joined.indices.iter().copied().zip(parts_us));
        // The call itself is nobody's; the first has it, so that the sum is right.
        let within: f64 = ran.segments_us[first..].iter().map(|(_, us)| us).sum();
        if let Some((_, us)) = ran.segments_us.get_mut(first) {
            *us += (start.elapsed().as_secs_f64() * 1e6 - within).max(0.0);
        }
        Ok(true)
    }

    pub(crate) fn segment(&self, index: usize) -> Option<&Segment> {
        self.segments[index].as_ref()
    }

    /// Measures for each segment how many threads its runs are worth. Those that were measured lately, also as part of
    /// another version, are not again.
    pub fn choose_threads(&self) {
        for index in 0..self.segments.len() {
            self.choose_threads_of(index);
        }
    }

    /// The same for one segment; whether it is another number now.
    pub(crate) fn choose_threads_of(&self, index: usize) -> bool {
        self.graph(index).is_some_and(|graph| graph.choose_threads(self.threads_max))
    }

    /// The segments of which that was measured long ago, or never.
    pub(crate) fn threads_due(&self) -> Vec<usize> {
        let is_due = |index: &usize| self.graph(*index).is_some_and(|graph| graph.threads_are_due(self.threads_max));
        (0..self.segments.len()).filter(is_due).collect()
    }

    fn graph(&self, index: usize) -> Option<&Graph> {
        match self.segment(index)?.work() {
            Work::InHost(graph) => Some(graph),
            Work::InGuest(_) => None,
        }
    }

    /// Runs every segment that is held `runs` times on zeros and tells how long each run takes here. Where a slow device
    /// is emulated, most of its time is reckoned rather than waited for; but after a pause a processor is
    /// slower than in a tight loop, as it will be in service, so there is a pause.
    pub fn measure(&self, runs: usize) -> Result<Vec<(usize, f64)>, PrepareError> {
        let mut all = Vec::with_capacity(runs * self.segments.len());
        for _ in 0..runs {
            let mut crossing = vec![None; self.manifest.boundaries.len()];
            crossing[0] = Some(self.inputs().map(zeros).collect::<Result<_, _>>()?);
            for (index, segment) in self.manifest.segments.iter().enumerate() {
                let Some(input) = crossing[segment.from].clone().filter(|_| self.segments[index].is_some()) else {
                    continue;
                };
                let start = Instant::now();
                let (output, emulated) = self.run_one(index, input, &Stop::never())?;
                let took = start.elapsed() + emulated;
                crossing[segment.to] = Some(output);
                pretend(emulated.min(PAUSE_MAX), &Stop::never());
                all.push((index, took.as_secs_f64() * 1e6));
            }
        }
        Ok(all)
    }

    /// Runs one segment; says, too, how much longer an emulated slow device would have taken. Of the
    /// processor's time, not the clock's: what this host does beside is not slowed down.
    fn run_one(&self, index: usize, input: Vec<Tensor>, stop: &Stop) -> Result<(Vec<Tensor>, Duration), RunError> {
        let (start, worked) = (Instant::now(), processor_time());
        let output = self.step(index, input, stop)?;
        let longer = match &self.pace {
            Pace::Own => Duration::ZERO,
            Pace::Slowed(times) => self.usual(index, processor_time().saturating_sub(worked)).mul_f64(times - 1.0),
            Pace::Given(segments, _) => segments[index].saturating_sub(start.elapsed()),
        };
        Ok((output, longer))
    }

    /// Has one segment make the next boundary's tensors of those before it.
    pub fn step(&self, index: usize, input: Vec<Tensor>, stop: &Stop) -> Result<Vec<Tensor>, RunError> {
        let not_held = || RunError::NotHeld(self.manifest.segments[index].name.clone());
        self.check_quarantine()?;
        let segment = self.segment(index).ok_or_else(not_held)?;
        let through = self.wiring[index].through(input, |taken| segment.run(taken, stop));
        self.judge(index, through.as_ref().err());
        Ok(through?)
    }

    fn check_quarantine(&self) -> Result<(), RunError> {
        self.quarantine().map_or(Ok(()), |why| Err(RunError::Quarantined(why.to_owned())))
    }

    /// Counts what a segment did wrong, and ends it all when that was too often.
    fn judge(&self, index: usize, error: Option<&SegmentError>) {
        let faults = &self.faults[index];
        let kind = match error.map(|error| &error.fault) {
            None => {
                // Nearly always; written only where it changes something, since threads share it.
                if faults.load(Ordering::Relaxed) != 0 {
                    faults.store(0, Ordering::Relaxed);
                }
                return;
            }
            Some(Fault::Input(_) | Fault::TimeUp) => return,
            Some(Fault::Trap(_)) => 0,
            Some(Fault::Limit(_)) => 1,
            Some(Fault::Refused(_)) => 2,
            Some(Fault::Output(_)) => 3,
            Some(Fault::Graph(_)) => 4,
        };
        FAULTS[kind].fetch_add(1, Ordering::Relaxed);
        if faults.fetch_add(1, Ordering::Relaxed) + 1 >= FAULTS_MAX {
            let why = error.map_or(String::new(), ToString::to_string);
            self.quarantine.get_or_init(|| format!("it failed {FAULTS_MAX} times in a row: {why}"));
        }
    }

    /// Why this version is not run here any more, if that is so.
    pub fn quarantine(&self) -> Option<&str> {
        self.quarantine.get().map(String::as_str)
    }

    /// The same, but only for who asks first: for it to see to what comes instead.
    pub(crate) fn new_quarantine(&self) -> Option<&str> {
        let why = self.quarantine()?;
        (!self.quarantine_seen.swap(true, Ordering::AcqRel)).then_some(why)
    }

    /// What a segment usually takes of the processor's time, given what it took now.
    fn usual(&self, segment: usize, now: Duration) -> Duration {
        let mut usual = self.usual.lock().unwrap_or_else(PoisonError::into_inner);
        usual.record(segment, now.as_secs_f64() * 1e6);
        Duration::from_secs_f64(usual.median_us(segment) / 1e6)
    }

    /// How many times slower than this machine the host is at coding that is emulated; 1 if none is.
    pub fn coding_slowdown(&self) -> f64 {
        self.pace.coding_slowdown()
    }

    /// Passes what so much coding takes longer on the slow host that is emulated.
    pub fn pretend_slow(&self, worked_us: f64, stop: &Stop) {
        pretend(Duration::from_secs_f64(worked_us * (self.coding_slowdown() - 1.0) / 1e6), stop);
    }

    /// The bundle's name.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The bundle's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The same as the planner sees it.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// How many of the segments that are held here do their arithmetic in the sandbox.
    pub fn portable(&self) -> usize {
        let is_portable = |segment: &&Segment| matches!(segment.work(), Work::InGuest(_));
        self.segments.iter().flatten().filter(is_portable).count()
    }

    /// Who computes each segment, by its index, and why; nothing of those for which there is nobody but tract.
    pub fn choices(&self) -> impl Iterator<Item = (usize, &Choice)> {
        (0..self.segments.len()).filter_map(|index| Some((index, self.graph(index)?.choice()?)))
    }

    /// How many threads each segment's runs may have, by its index, and why; nothing of those that were not measured.
    pub fn threads(&self) -> impl Iterator<Item = (usize, Threads)> {
        (0..self.segments.len()).filter_map(|index| Some((index, self.graph(index)?.threads_chosen()?)))
    }

    /// Who computes a segment here, and on how many threads at most; none, if it is not held.
    pub fn computed_by(&self, index: usize) -> Option<(&'static str, usize)> {
        Some(match self.segment(index)?.work() {
            Work::InHost(graph) => (graph.backend().name(), graph.threads()),
            Work::InGuest(_) => ("portable", 1),
        })
    }

    /// How many of the segments are held here.
    pub fn held(&self) -> usize {
        self.segments.iter().flatten().count()
    }

    /// What the network takes, in its order.
    pub fn inputs(&self) -> impl Iterator<Item = &Fact> {
        self.manifest.boundaries[0].tensors.iter().map(|tensor| &self.tensors[*tensor])
    }

    /// The first of what it takes: all of it, for a network of images.
    pub fn input(&self) -> &Fact {
        &self.tensors[0]
    }

    /// What is between segments, in the manifest's order.
    pub fn tensors(&self) -> &[Fact] {
        &self.tensors
    }

    /// What crosses a cut of an exit's path; behind the path's last segment, what the exit gives.
    pub fn crossing(&self, exit: usize, cut: usize) -> Vec<&Fact> {
        let boundary = &self.manifest.boundaries[self.network.exits()[exit].boundaries[cut]];
        boundary.tensors.iter().map(|tensor| &self.tensors[*tensor]).collect()
    }
}

/// Whether a segment did wrong, rather than who called it.
fn is_own_fault(fault: &Fault) -> bool {
    !matches!(fault, Fault::Input(_) | Fault::TimeUp)
}

fn zeros(fact: &Fact) -> Result<Tensor, TensorError> {
    Tensor::from_bytes(fact.element_type, &fact.dims, &vec![0; fact.bytes()])
}

impl Wiring {
    /// Of a segment whose manifest has been checked.
    fn new(manifest: &Manifest, segment: &edgent_bundle::Segment) -> Self {
        let (from, to) = (&manifest.boundaries[segment.from].tensors, &manifest.boundaries[segment.to].tensors);
        Self::between(from, to, &segment.takes, &segment.gives)
    }

    /// From what crosses one boundary to what crosses another.
    pub(crate) fn between(from: &[usize], to: &[usize], takes: &[usize], gives: &[usize]) -> Self {
        let place = |tensors: &[usize], tensor: &usize| tensors.iter().position(|other| other == tensor);
        let source = |tensor: &usize| {
            let given = place(gives, tensor).map(Source::Given);
            given.or_else(|| place(from, tensor).map(Source::Passed))
        };
        let takes = takes.iter().filter_map(|tensor| place(from, tensor)).collect();
        Self { takes, to: to.iter().filter_map(source).collect() }
    }

    /// Has what is taken made into what is given; the rest passes by.
    fn through<E>(
        &self,
        input: Vec<Tensor>,
        run: impl FnOnce(Vec<Tensor>) -> Result<Vec<Tensor>, E>,
    ) -> Result<Vec<Tensor>, E> {
        let mut here: Vec<Option<Tensor>> = input.into_iter().map(Some).collect();
        let passed: Vec<Option<Tensor>> = self.to.iter().map(|source| source.passed(&here)).collect();
        // They are handed over: without another holder, tract may compute in place.
        let taken = self.takes.iter().filter_map(|at| here.get_mut(*at)?.take()).collect();
        drop(here);
        let mut given: Vec<Option<Tensor>> = run(taken)?.into_iter().map(Some).collect();
        let sources = self.to.iter().zip(passed);
        Ok(sources.filter_map(|(source, passed)| source.given(&mut given).or(passed)).collect())
    }
}

impl Source {
    fn passed(self, here: &[Option<Tensor>]) -> Option<Tensor> {
        let Self::Passed(at) = self else { return None };
        here.get(at)?.clone()
    }

    fn given(self, given: &mut [Option<Tensor>]) -> Option<Tensor> {
        let Self::Given(at) = self else { return None };
        given.get_mut(at)?.take()
    }
}

/// About what a segment takes of a host's memory: its weights, once as they are kept for running and for a part of
/// them as they were read; its instance; what goes in and out. Measured on networks of 5 to 100 MB: the resident
/// memory of a host grows by 1.4 to 1.6 times its components. In the portable tier, by reckoning: the bytes of the
/// graph are kept for the next instance, and each instance has the weights as read and as optimised, and its own heap.
pub fn memory_bytes(segment: &edgent_bundle::Segment, tensors: &[Fact], tier: Tier) -> u64 {
    const INSTANCE_BYTES: u64 = 64 << 10;
    const COMPUTING_INSTANCE_BYTES: u64 = 4 << 20;
    let crossing = segment.takes.iter().chain(&segment.gives).map(|tensor| tensors[*tensor].bytes() as u64);
    let component = segment.component.bytes;
    let own = match tier {
        Tier::Native => component.saturating_add(component / 2).saturating_add(INSTANCE_BYTES),
        Tier::Portable => component.saturating_mul(3).saturating_add(COMPUTING_INSTANCE_BYTES),
    };
    crossing.fold(own, u64::saturating_add)
}

/// The same of all segments of a bundle, by its manifest. Tensors that there cannot be count for all there is.
pub(crate) fn manifest_memory_bytes(manifest: &Manifest, tiers: Tiers) -> u64 {
    let fact =
        |tensor: &edgent_bundle::Tensor| Fact::new(ElementType::from_name(&tensor.element_type)?, &tensor.dims).ok();
    let Some(facts) = manifest.tensors.iter().map(fact).collect::<Option<Vec<_>>>() else { return u64::MAX };
    let of = |segment: &edgent_bundle::Segment| memory_bytes(segment, &facts, tiers.of(segment));
    manifest.segments.iter().map(of).fold(0, u64::saturating_add)
}

/// Whether segments may have that of their host: nothing but `wasi:nn`, be it a clock or a log; and in the portable
/// tier, their own graph.
pub fn is_offered(import: &str, tier: Tier) -> bool {
    import.starts_with("wasi:nn/") || tier == Tier::Portable && import.starts_with("edgent:segment/own-graph@")
}

/// How long this thread has worked.
fn processor_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// Passes time, as a slower processor would, until the caller no longer waits.
fn pretend(time: Duration, stop: &Stop) {
    if time.is_zero() {
        return;
    }
    let end = Instant::now() + time;
    while !stop.reached() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        threads::sleep(left.min(PRETEND_SLICE));
    }
}

fn network(manifest: &Manifest, facts: &[Fact]) -> Result<Network, NetworkError> {
    // Behind its maker's own guest stands the input itself in other numbers, as behind a network's normalisation, and
    // there is no cut there either: one that no link is fast enough for.
    let is_input =
        |boundary: usize| manifest.segments.iter().any(|s| !s.has_graph() && s.from == 0 && s.to == boundary);
    let boundary = |(index, told): (usize, &edgent_bundle::Boundary)| {
        if is_input(index) {
            return Boundary::new(u64::MAX);
        }
        let crossing: Vec<&Fact> = told.tensors.iter().map(|tensor| &facts[*tensor]).collect();
        // As many bytes as nearly every activation takes: a plan is to be kept.
        let measured = |name| told.coded.iter().find(|coded| coded.codec == name).map(|coded| coded.p90_bytes);
        let fixed = |codec| codec::fixed_bytes(&crossing, codec::to_wire(codec));
        let bytes = |codec: Codec| fixed(codec).or_else(|| measured(codec.name()));
        let known = Codec::ALL.into_iter().filter_map(|codec| Some((codec, bytes(codec)?)));
        let raw_bytes = crossing.iter().map(|fact| fact.bytes() as u64).sum();
        known.fold(Boundary::new(raw_bytes), |boundary, (codec, bytes)| boundary.with(codec, bytes))
    };
    let boundaries = manifest.boundaries.iter().enumerate().map(boundary).collect();
    let exits = manifest
        .exits
        .iter()
        .map(|exit| {
            let behind = exit.path.iter().map(|segment| manifest.segments[*segment].to);
            let along: Vec<usize> = std::iter::once(0).chain(behind).collect();
            let coded = |cut, codec: Codec| exit.coded.iter().find(|c| c.cut == cut && c.codec == codec.name());
            let at_cut = |cut| PerCodec::from_fn(|codec| coded(cut, codec).map(|coded| coded.accuracy));
            Exit {
                accuracy: exit.accuracy,
                path: exit.path.clone(),
                coded_accuracy: (0..along.len()).map(at_cut).collect(),
                boundaries: along,
            }
        })
        .collect();
    Network::new(boundaries, exits, manifest.segments.len())
}

/// Why segments did not run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RunError {
    #[error(transparent)]
    Segment(#[from] SegmentError),
    #[error("segment '{0}' is not held here: there was not the memory for it")]
    NotHeld(String),
    #[error("this version is quarantined here, since {0}")]
    Quarantined(String),
}

/// What segments of any bundle did wrong in this process.
pub(crate) fn faults() -> u64 {
    FAULTS.iter().map(|count| count.load(Ordering::Relaxed)).sum()
}

/// The same, by kind.
pub(crate) fn faults_by_kind() -> Vec<(&'static str, u64)> {
    FAULT_KINDS.into_iter().zip(FAULTS.iter().map(|count| count.load(Ordering::Relaxed))).collect()
}

/// Why a bundle cannot be run here.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PrepareError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error("segment '{0}': {1}")]
    Component(String, ComponentError),
    #[error("segment '{0}': {1}")]
    Graph(String, GraphError),
    #[error("segment '{0}' has a graph in the format '{1}', which this program does not read")]
    Format(String, String),
    #[error(
        "segment '{0}' cannot run in the portable tier: its graph is written as {1}, and only NNEF is read there; a \
         host that allows native segments can run it"
    )]
    NotPortable(String, String),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("segment '{0}' asks its host for {1}; segments get wasi:nn and nothing else: build it without that")]
    Import(String, String),
    #[error("segment '{0}' takes or gives something else than the manifest says")]
    Mismatch(String),
    #[error("tensor '{0}' has elements of type '{1}', which this program does not know")]
    ElementType(String, String),
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Segment(#[from] SegmentError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Golden(#[from] GoldenError),
    #[error("the device that is to be emulated cannot run it: {0}")]
    Emulation(String),
    #[error("it costs too much: {0}")]
    Cost(#[from] CostError),
    #[error("its trial in a confined process failed: {0}")]
    Trial(#[from] ConfinedError),
    #[error("it is quarantined here, since {0}; push another version, or restart the host to try it again")]
    Quarantined(String),
    #[error("{} may be used, but the smallest exit takes {}; allow more", mib(*allowed_bytes), mib(*least_bytes))]
    Memory { allowed_bytes: u64, least_bytes: u64 },
    #[error(transparent)]
    Network(#[from] NetworkError),
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
