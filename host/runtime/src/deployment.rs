//! A bundle made ready to run.

use crate::codec;
use edgent_bundle::{Bundle, BundleError, ComponentError, Digest, Manifest, split};
use edgent_nn::{ElementType, Fact, Graph, GraphError, GraphFormat, Stop, Tensor, TensorError};
use edgent_planner::{Boundary, Codec, Exit, Network, NetworkError, PerCodec, Timings};
use edgent_sandbox::{Engine, Limits, SandboxError, Segment, SegmentError};
use rustix::time::{ClockId, clock_gettime};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How soon an emulated segment notices that nobody waits for it.
const PRETEND_SLICE: Duration = Duration::from_millis(5);

/// The longest pause between two segments that are measured.
const PAUSE_MAX: Duration = Duration::from_millis(2);

/// Every segment of a bundle compiled, instantiated and prepared. Shared between threads.
#[derive(Debug)]
pub struct Deployment {
    digest: Digest,
    manifest: Manifest,
    network: Network,
    boundaries: Vec<Fact>,
    segments: Vec<Segment>,
    slowdown: f64,
    /// What each segment usually takes of this processor's time; only kept where a slow one is emulated.
    usual: Mutex<Timings>,
}

/// Some segments ran.
#[derive(Debug)]
pub struct Ran {
    /// The activation behind the last of them.
    pub output: Tensor,
    /// Each segment, and how long it took.
    pub segments_us: Vec<(usize, f64)>,
}

impl Deployment {
    /// Reads and prepares everything. With a `slowdown` K over 1, each segment sleeps K − 1 times as
    /// long as it usually works: a slow device, emulated. Usually: this machine's caches and neighbours
    /// make single runs vary, and that must not be made K times larger.
    pub fn prepare(bundle: &Bundle, engine: &Engine, slowdown: f64) -> Result<Self, PrepareError> {
        let manifest = bundle.manifest().clone();
        let boundaries = manifest
            .boundaries
            .iter()
            .map(|boundary| {
                let element_type = ElementType::from_name(&boundary.element_type)
                    .ok_or_else(|| PrepareError::ElementType(boundary.name.clone(), boundary.element_type.clone()))?;
                Ok(Fact::new(element_type, &boundary.dims)?)
            })
            .collect::<Result<Vec<_>, PrepareError>>()?;
        let mut segments = Vec::with_capacity(manifest.segments.len());
        for segment in &manifest.segments {
            if segment.graph_format != GraphFormat::Nnef.name() {
                return Err(PrepareError::Format(segment.name.clone(), segment.graph_format.clone()));
            }
            let component = bundle.blob(&segment.component)?;
            let in_segment = |source| PrepareError::Component(segment.name.clone(), source);
            let (code, graph) = split(&component).map_err(in_segment)?;
            let code = engine.compile(&code)?;
            let graph =
                Graph::load(graph, GraphFormat::Nnef).map_err(|e| PrepareError::Graph(segment.name.clone(), e))?;
            let facts = |ports: &[edgent_nn::Port]| ports.iter().map(|port| port.fact.clone()).collect::<Vec<_>>();
            if facts(graph.inputs()) != [boundaries[segment.from].clone()]
                || facts(graph.outputs()) != [boundaries[segment.to].clone()]
            {
                return Err(PrepareError::Mismatch(segment.name.clone()));
            }
            segments.push(Segment::new(engine, &segment.name, &code, graph, Limits::default())?);
        }
        let network = network(&manifest, &boundaries)?;
        let usual = Mutex::new(Timings::new(segments.len()));
        Ok(Self { digest: bundle.digest(), manifest, network, boundaries, segments, slowdown, usual })
    }

    /// Runs the segments of an exit's path whose positions are in `range`.
    pub fn run(&self, exit: usize, range: Range<usize>, input: Tensor, stop: &Stop) -> Result<Ran, SegmentError> {
        let mut activation = input;
        let mut segments_us = Vec::with_capacity(range.len());
        for index in &self.manifest.exits[exit].path[range] {
            let start = Instant::now();
            let (output, emulated) = self.run_one(*index, activation, stop)?;
            activation = output;
            pretend(emulated, stop);
            segments_us.push((*index, start.elapsed().as_secs_f64() * 1e6));
        }
        Ok(Ran { output: activation, segments_us })
    }

    /// Runs every segment `runs` times on zeros and tells how long each run takes here. Where a slow device
    /// is emulated, most of its time is reckoned rather than waited for; but after a pause a processor is
    /// slower than in a tight loop, as it will be in service, so there is a pause.
    pub fn measure(&self, runs: usize) -> Result<Vec<(usize, f64)>, PrepareError> {
        let mut all = Vec::with_capacity(runs * self.segments.len());
        for _ in 0..runs {
            let mut activations = vec![None; self.boundaries.len()];
            activations[0] = Some(self.zeros(0)?);
            for (index, segment) in self.manifest.segments.iter().enumerate() {
                let Some(input) = activations[segment.from].clone() else { continue };
                let start = Instant::now();
                let (output, emulated) = self.run_one(index, input, &Stop::never())?;
                let took = start.elapsed() + emulated;
                activations[segment.to] = Some(output);
                pretend(emulated.min(PAUSE_MAX), &Stop::never());
                all.push((index, took.as_secs_f64() * 1e6));
            }
        }
        Ok(all)
    }

    /// Runs one segment; says, too, how much longer an emulated slow device would have taken. Of the
    /// processor's time, not the clock's: what this host does beside is not slowed down.
    fn run_one(&self, index: usize, input: Tensor, stop: &Stop) -> Result<(Tensor, Duration), SegmentError> {
        if self.slowdown <= 1.0 {
            return Ok((self.segments[index].run(input, stop)?, Duration::ZERO));
        }
        let worked = processor_time();
        let output = self.segments[index].run(input, stop)?;
        let usual = self.usual(index, processor_time().saturating_sub(worked));
        Ok((output, usual.mul_f64(self.slowdown - 1.0)))
    }

    /// What a segment usually takes of the processor's time, given what it took now.
    fn usual(&self, segment: usize, now: Duration) -> Duration {
        let mut usual = self.usual.lock().unwrap_or_else(PoisonError::into_inner);
        usual.record(segment, now.as_secs_f64() * 1e6);
        Duration::from_secs_f64(usual.median_us(segment) / 1e6)
    }

    /// How many times slower than this machine the host is that is emulated; 1 if none is.
    pub fn slowdown(&self) -> f64 {
        self.slowdown.max(1.0)
    }

    /// Passes what so much of this machine's work takes longer on the slow host that is emulated.
    pub fn pretend_slow(&self, worked_us: f64, stop: &Stop) {
        pretend(Duration::from_secs_f64(worked_us * (self.slowdown() - 1.0) / 1e6), stop);
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

    /// What crosses a boundary.
    pub fn boundary(&self, index: usize) -> &Fact {
        &self.boundaries[index]
    }

    /// What the segment at a position of an exit's path takes; at the path's end, what the exit gives.
    pub fn at_cut(&self, exit: usize, cut: usize) -> &Fact {
        &self.boundaries[self.network.exits()[exit].boundaries[cut]]
    }

    /// One segment.
    pub fn segment(&self, index: usize) -> &Segment {
        &self.segments[index]
    }

    fn zeros(&self, boundary: usize) -> Result<Tensor, TensorError> {
        let fact = &self.boundaries[boundary];
        Tensor::from_bytes(fact.element_type, &fact.dims, &vec![0; fact.bytes()])
    }
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
        thread::sleep(left.min(PRETEND_SLICE));
    }
}

fn network(manifest: &Manifest, facts: &[Fact]) -> Result<Network, NetworkError> {
    let boundary = |(told, fact): (&edgent_bundle::Boundary, &Fact)| {
        // As many bytes as nearly every activation takes: a plan is to be kept.
        let measured = |name| told.coded.iter().find(|coded| coded.codec == name).map(|coded| coded.p90_bytes);
        let bytes = |codec: Codec| codec::fixed_bytes(fact, codec::to_wire(codec)).or_else(|| measured(codec.name()));
        let known = Codec::ALL.into_iter().filter_map(|codec| Some((codec, bytes(codec)?)));
        known.fold(Boundary::new(fact.bytes() as u64), |boundary, (codec, bytes)| boundary.with(codec, bytes))
    };
    let boundaries = manifest.boundaries.iter().zip(facts).map(boundary).collect();
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
    #[error("segment '{0}' takes or gives something else than the manifest says")]
    Mismatch(String),
    #[error("boundary '{0}' has elements of type '{1}', which this program does not know")]
    ElementType(String, String),
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Segment(#[from] SegmentError),
    #[error(transparent)]
    Network(#[from] NetworkError),
}
