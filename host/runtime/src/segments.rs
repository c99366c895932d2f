//! A bundle's segments made ready to run: their code compiled, their graphs loaded, a first instance of each.
//!
//! Several at a time, since a host that starts has nothing else to do, and each graph once however many versions share
//! it: what a new version did not change is in memory already.

use crate::deployment::{PrepareError, Terms, is_offered};
use edgent_bundle::{Bundle, Digest, Segment as Described, Tier, imports, portable_guest, split, standard_guest};
use edgent_nn::{Backend, Cost, Fact, Graph, GraphError, GraphFormat, Port, WeakGraph};
use edgent_sandbox::{Code, Engine, Limits, OwnGraph, Purpose, Segment, Work};
use rustix::process::{Resource, getrlimit};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;

/// More threads gain little: reading is over by then, and each keeps memory of its own (an arena of glibc's).
const THREADS_MAX: usize = 4;

/// The graphs that this process runs.
static GRAPHS: LazyLock<Graphs> = LazyLock::new(Graphs::default);

/// A segment that can be run, and what its graph costs; none if it is not to be held.
type Ready = Option<(Segment, Cost)>;

/// What segments are prepared from.
pub(crate) struct Preparing<'a> {
    pub(crate) bundle: &'a Bundle,
    pub(crate) engine: &'a Engine,
    pub(crate) tensors: &'a [Fact],
    pub(crate) terms: &'a Terms,
}

impl Preparing<'_> {
    /// Those that are to be held, in the manifest's order.
    pub(crate) fn all(&self, held: &[bool]) -> Result<Vec<Ready>, PrepareError> {
        let (next, made) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(held.len())));
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(is_held) = held.get(index) else { return };
                let ready = if *is_held { self.one(index) } else { Ok(None) };
                if ready.is_err() {
                    // Those that are under way are the last.
                    next.store(held.len(), Ordering::Relaxed);
                }
                made.lock().unwrap_or_else(PoisonError::into_inner).push((index, ready));
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads() {
                // Where there are no more threads, this one does it all.
                if thread::Builder::new().name("edgent-prepare".to_owned()).spawn_scoped(scope, work).is_err() {
                    break;
                }
            }
            work();
        });
        let mut made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
        made.sort_by_key(|(index, _)| *index);
        made.into_iter().map(|(_, ready)| ready).collect()
    }

    fn one(&self, index: usize) -> Result<Ready, PrepareError> {
        let described = &self.bundle.manifest().segments[index];
        let component = self.bundle.blob(&described.component)?;
        let in_segment = |source| PrepareError::Component(described.name.clone(), source);
        let (code, graph) = split(&component).map_err(in_segment)?;
        let tier = self.terms.tiers.of(described);
        if !self.terms.shipped_code && tier == Tier::Portable && code == standard_guest() {
            return Ok(None);
        }
        if let Some(import) = imports(&code).map_err(in_segment)?.into_iter().find(|name| !is_offered(name, tier)) {
            return Err(PrepareError::Import(described.name.clone(), import));
        }
        let (segment, cost) = match tier {
            Tier::Native => self.native(described, &code, graph)?,
            Tier::Portable => (self.portable(described, &code, graph)?, Cost::default()),
        };
        self.terms.admission.check_graph(&described.name, cost)?;
        Ok(Some((segment, cost)))
    }

    /// A segment whose graph the host runs.
    fn native(&self, described: &Described, code: &[u8], graph: &[u8]) -> Result<(Segment, Cost), PrepareError> {
        let format = GraphFormat::from_name(&described.graph_format)
            .ok_or_else(|| PrepareError::Format(described.name.clone(), described.graph_format.clone()))?;
        let code = self.calling(code)?;
        let graph = match &self.terms.onnxruntime {
            None => GRAPHS.get((described.component.digest, format, Backend::Tract), || Graph::load(graph, format)),
            // Where there are both, what this graph's bytes were chosen to run on counts for every version.
            Some(theirs) => GRAPHS.get((described.component.digest, format, Backend::Onnxruntime), || {
                Graph::load_fastest(graph, format, theirs)
            }),
        };
        let graph = graph.map_err(|e| PrepareError::Graph(described.name.clone(), e))?;
        let as_told = |ports: &[Port], told: &[usize]| {
            ports.iter().map(|port| &port.fact).eq(told.iter().map(|tensor| &self.tensors[*tensor]))
        };
        if !as_told(graph.inputs(), &described.takes) || !as_told(graph.outputs(), &described.gives) {
            return Err(PrepareError::Mismatch(described.name.clone()));
        }
        let cost = graph.cost();
        Ok((Segment::new(&described.name, &code, graph, Limits::default())?, cost))
    }

    /// A segment whose guest does the arithmetic: this program's own, if the component's would leave it to the host.
    /// What it takes and gives is what the manifest says, and its graph is bytes; so is whatever a segment has that has
    /// none.
    fn portable(&self, described: &Described, code: &[u8], graph: &[u8]) -> Result<Segment, PrepareError> {
        let code = if !described.has_graph() {
            // It computes, but not much.
            self.engine.compile(code)?
        } else if code != standard_guest() {
            self.engine.compile_for(Purpose::Computes, code)?
        } else if described.graph_format == GraphFormat::Nnef.name() {
            self.engine.compile_shipped(Purpose::Computes, portable_guest())?
        } else {
            return Err(PrepareError::NotPortable(described.name.clone(), described.graph_format.clone()));
        };
        let manifest = self.bundle.manifest();
        let port =
            |tensor: &usize| Port { name: manifest.tensors[*tensor].name.clone(), fact: self.tensors[*tensor].clone() };
        let ports = |tensors: &[usize]| tensors.iter().map(port).collect::<Vec<_>>();
        let (inputs, outputs) = (ports(&described.takes), ports(&described.gives));
        let crossing_bytes = inputs.iter().chain(&outputs).map(|port| port.fact.bytes()).fold(0, usize::saturating_add);
        let limits = Limits::computing(graph.len(), crossing_bytes, described.macs);
        let work = Work::InGuest(OwnGraph::new(graph.to_vec(), inputs, outputs));
        Ok(Segment::new(&described.name, &code, work, limits)?)
    }

    /// Code that has the host do the arithmetic; nearly always this program's own.
    fn calling(&self, code: &[u8]) -> Result<Code, PrepareError> {
        Ok(match code == standard_guest() {
            true => self.engine.compile_shipped(Purpose::Calls, code)?,
            false => self.engine.compile(code)?,
        })
    }
}

/// As many as there are processors; one where address space is limited, of which each thread's arena takes 64 MiB.
fn threads() -> usize {
    match getrlimit(Resource::As).current {
        None => thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX),
        Some(_) => 1,
    }
}

/// A graph by the component that brought it, how it is written there, and the most that may compute it.
type Key = (Digest, GraphFormat, Backend);

/// Graphs for as long as somebody runs them.
#[derive(Default)]
struct Graphs(Mutex<HashMap<Key, WeakGraph>>);

impl Graphs {
    /// The graph, if it is here; otherwise it is loaded.
    fn get(&self, key: Key, load: impl FnOnce() -> Result<Graph, GraphError>) -> Result<Graph, GraphError> {
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(graph) = known().get(&key).and_then(WeakGraph::upgrade) {
            return Ok(graph);
        }
        // Others load theirs meanwhile.
        let loaded = load()?;
        let mut known = known();
        if let Some(graph) = known.get(&key).and_then(WeakGraph::upgrade) {
            return Ok(graph);
        }
        known.retain(|_, graph| graph.upgrade().is_some());
        known.insert(key, loaded.downgrade());
        Ok(loaded)
    }
}
