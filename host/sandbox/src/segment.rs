//! One segment, ready to run.

use crate::bindings::Segment as World;
use crate::engine::{Code, Engine, ticks};
use crate::imports::Imports;
use crate::limits::Limits;
use edgent_nn::{Fact, Graph, Stop, Tensor};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use wasmtime::component::Resource;
use wasmtime::{Store, Trap};

/// How long a guest may take to prepare, and to run when the caller gives no deadline.
const CALL_TIME_MAX: Duration = Duration::from_secs(30);

/// Idle instances that are kept for the next calls.
const INSTANCES_KEPT: usize = 8;

/// A guest's code with its graph. Shared between threads; each call has an instance to itself.
pub struct Segment {
    name: String,
    engine: Engine,
    code: Code,
    graph: Graph,
    input: String,
    output: Fact,
    limits: Limits,
    ready: Mutex<Vec<Instance>>,
}

struct Instance {
    store: Store<Imports>,
    world: World,
}

impl Segment {
    /// Makes a first instance and has it prepare itself, so that the first call is no slower than
    /// the others and a guest that cannot start is found now.
    pub fn new(engine: &Engine, name: &str, code: &Code, graph: Graph, limits: Limits) -> Result<Self, SegmentError> {
        let fault = |fault| SegmentError { segment: name.to_owned(), fault };
        let ([input], [output]) = (graph.inputs(), graph.outputs()) else {
            return Err(fault(Fault::Output(format!(
                "the graph has {} inputs and {} outputs, a segment has one of each",
                graph.inputs().len(),
                graph.outputs().len()
            ))));
        };
        let segment = Self {
            name: name.to_owned(),
            engine: engine.clone(),
            code: code.clone(),
            input: input.name.clone(),
            output: output.fact.clone(),
            graph,
            limits,
            ready: Mutex::default(),
        };
        let instance = segment.instantiate().map_err(fault)?;
        segment.keep(instance);
        Ok(segment)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it takes and gives.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Runs the segment on one activation. What comes back has the type and dimensions that the
    /// graph declares, whoever wrote the guest.
    pub fn run(&self, input: Tensor, stop: &Stop) -> Result<Tensor, SegmentError> {
        self.try_run(input, stop).map_err(|fault| SegmentError { segment: self.name.clone(), fault })
    }

    fn try_run(&self, input: Tensor, stop: &Stop) -> Result<Tensor, Fault> {
        if stop.reached() {
            return Err(Fault::TimeUp);
        }
        let kept = self.ready.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut instance = kept.map_or_else(|| self.instantiate(), Ok)?;
        // An instance whose call failed is dropped here: nobody knows what state it is in.
        let output = self.call(&mut instance, input, stop)?;
        self.keep(instance);
        Ok(output)
    }

    fn call(&self, instance: &mut Instance, input: Tensor, stop: &Stop) -> Result<Tensor, Fault> {
        let Instance { store, world } = instance;
        let imports = store.data_mut();
        imports.stop = stop.clone();
        imports.tensor_bytes_left = self.limits.tensor_bytes;
        let input = imports.table.push(input).map_err(|e| Fault::Trap(e.to_string()))?;
        let allowed = stop.moment().map_or(CALL_TIME_MAX, |at| at.saturating_duration_since(Instant::now()).min(CALL_TIME_MAX));
        store.set_epoch_deadline(ticks(allowed));
        let ticking = self.engine.ticking();
        let returned = world.edgent_segment_layers().call_run(&mut *store, &[(self.input.clone(), input)]);
        drop(ticking);
        let outputs = returned.map_err(|e| fault_of(&e, stop))?.map_err(|said| Fault::Refused(shorten(said, &self.limits)))?;
        self.check(store, outputs)
    }

    fn check(&self, store: &mut Store<Imports>, outputs: Vec<(String, Resource<Tensor>)>) -> Result<Tensor, Fault> {
        let count = outputs.len();
        let mut tensors = Vec::with_capacity(count);
        for (_, handle) in outputs {
            tensors.push(store.data_mut().table.delete(handle).map_err(|e| Fault::Trap(e.to_string()))?);
        }
        let tensor = tensors.pop().filter(|_| count == 1);
        let tensor = tensor.ok_or_else(|| Fault::Output(format!("it returned {count} tensors instead of one")))?;
        if tensor.fact() != self.output {
            return Err(Fault::Output(format!("it returned {} instead of {}", tensor.fact(), self.output)));
        }
        Ok(tensor)
    }

    fn instantiate(&self) -> Result<Instance, Fault> {
        let mut store = Store::new(self.engine.wasmtime(), Imports::new(self.graph.clone(), &self.limits));
        store.limiter(|imports| &mut imports.store_limits);
        store.set_hostcall_fuel(self.limits.tensor_bytes);
        store.set_epoch_deadline(ticks(CALL_TIME_MAX));
        let ticking = self.engine.ticking();
        let never = Stop::never();
        let world = self.code.0.instantiate(&mut store).map_err(|e| fault_of(&e, &never))?;
        let prepared = world.edgent_segment_layers().call_prepare(&mut store).map_err(|e| fault_of(&e, &never))?;
        drop(ticking);
        prepared.map_err(|said| Fault::Refused(shorten(said, &self.limits)))?;
        Ok(Instance { store, world })
    }

    fn keep(&self, instance: Instance) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if ready.len() < INSTANCES_KEPT {
            ready.push(instance);
        }
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment").field("name", &self.name).finish_non_exhaustive()
    }
}

fn fault_of(error: &wasmtime::Error, stop: &Stop) -> Fault {
    if stop.reached() || matches!(error.downcast_ref::<Trap>(), Some(Trap::Interrupt)) {
        return Fault::TimeUp;
    }
    Fault::Trap(error.downcast_ref::<Trap>().map_or_else(|| format!("{}", error.root_cause()), ToString::to_string))
}

/// A guest's words, cut to a length and without control characters: they go into logs and terminals.
fn shorten(said: String, limits: &Limits) -> String {
    let mut kept = String::new();
    for char in said.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if kept.len() + char.len_utf8() > limits.text_bytes {
            kept.push('…');
            break;
        }
        kept.push(char);
    }
    kept
}

/// A segment's failure.
#[derive(Debug, thiserror::Error)]
#[error("segment '{segment}': {fault}")]
pub struct SegmentError {
    /// Which one.
    pub segment: String,
    /// What it did.
    #[source]
    pub fault: Fault,
}

/// What went wrong in a segment.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Fault {
    /// The guest broke a rule: a trap, or more than its limits allow.
    #[error("the guest was stopped: {0}")]
    Trap(String),
    /// The time was up, or the call was cancelled.
    #[error("the time was up")]
    TimeUp,
    /// The guest returned an error.
    #[error("the guest says: {0}")]
    Refused(String),
    /// The guest returned something other than what was declared.
    #[error("wrong output: {0}")]
    Output(String),
}
