//! One segment, ready to run.

use crate::bindings::Segment as World;
use crate::engine::{Code, Engine};
use crate::imports::Imports;
use crate::limits::{Limits, OverLimit};
use edgent_nn::{Graph, Port, Stop, Tensor};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use wasmtime::component::Resource;
use wasmtime::{Store, Trap};

/// Idle instances that are kept for the next calls.
const INSTANCES_KEPT: usize = 8;

/// A guest's code with its graph. Shared between threads; each call has an instance to itself.
pub struct Segment {
    name: String,
    engine: Engine,
    code: Code,
    graph: Graph,
    input: Port,
    output: Port,
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
            return Err(fault(Fault::Graph(format!(
                "it has {} inputs and {} outputs, a segment's has one of each",
                graph.inputs().len(),
                graph.outputs().len()
            ))));
        };
        let segment = Self {
            name: name.to_owned(),
            engine: engine.clone(),
            code: code.clone(),
            input: input.clone(),
            output: output.clone(),
            graph,
            limits,
            ready: Mutex::default(),
        };
        let instance = segment.instantiate(&Stop::never()).map_err(fault)?;
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
        if !fits(&input, &self.input) {
            return Err(Fault::Input(format!("it is {} instead of {}", input.fact(), self.input.fact)));
        }
        if stop.reached() {
            return Err(Fault::TimeUp);
        }
        let kept = self.ready.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut instance = kept.map_or_else(|| self.instantiate(stop), Ok)?;
        // An instance whose call failed is dropped here: nobody knows what state it is in.
        let output = self.call(&mut instance, input, stop)?;
        self.keep(instance);
        Ok(output)
    }

    fn call(&self, Instance { store, world }: &mut Instance, input: Tensor, stop: &Stop) -> Result<Tensor, Fault> {
        let _ticking = self.engine.ticking();
        begin(store, stop);
        let input = store.data_mut().hold(input).map_err(|e| fault_of(&e, stop))?;
        let returned = world.edgent_segment_layers().call_run(&mut *store, &[(self.input.name.clone(), input)]);
        match returned.map_err(|e| fault_of(&e, stop))? {
            Ok(outputs) => self.check(store.data_mut(), outputs),
            // Guests pass on what their graph failed with; whose failure it was, the host knows better.
            Err(said) => Err(store.data_mut().graph_failure().map_or_else(|| self.refused(said), Fault::Graph)),
        }
    }

    fn check(&self, imports: &mut Imports, outputs: Vec<(String, Resource<Tensor>)>) -> Result<Tensor, Fault> {
        let [(_, output)]: [_; 1] = outputs
            .try_into()
            .map_err(|outputs: Vec<_>| Fault::Output(format!("{} tensors instead of one", outputs.len())))?;
        let output = imports.release(output).map_err(|e| Fault::Trap(e.to_string()))?;
        if !fits(&output, &self.output) {
            return Err(Fault::Output(format!("{} instead of {}", output.fact(), self.output.fact)));
        }
        Ok(output)
    }

    fn instantiate(&self, stop: &Stop) -> Result<Instance, Fault> {
        let _ticking = self.engine.ticking();
        let mut store = Store::new(self.engine.wasmtime(), Imports::new(self.graph.clone(), &self.limits));
        store.limiter(|imports| &mut imports.store_limits);
        store.epoch_deadline_callback(|store| store.data().tick());
        // What one call into the host may copy out of the guest, tensors or not.
        store.set_hostcall_fuel(self.limits.copied_bytes);
        begin(&mut store, stop);
        let world = self.code.0.instantiate(&mut store).map_err(|e| fault_of(&e, stop))?;
        let prepared = world.edgent_segment_layers().call_prepare(&mut store).map_err(|e| fault_of(&e, stop))?;
        prepared.map_err(|said| self.refused(said))?;
        Ok(Instance { store, world })
    }

    fn refused(&self, said: String) -> Fault {
        Fault::Refused(printable(&said, self.limits.text_bytes))
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

fn begin(store: &mut Store<Imports>, stop: &Stop) {
    store.data_mut().begin(stop);
    store.set_epoch_deadline(1);
}

fn fits(tensor: &Tensor, port: &Port) -> bool {
    tensor.element_type() == port.fact.element_type && tensor.dims() == port.fact.dims
}

fn fault_of(error: &wasmtime::Error, stop: &Stop) -> Fault {
    if let Some(OverLimit(what)) = error.downcast_ref() {
        Fault::Limit(what.clone())
    } else if stop.reached() {
        Fault::TimeUp
    } else if let Some(trap) = error.downcast_ref::<Trap>() {
        Fault::Trap(trap.to_string())
    } else {
        Fault::Trap(error.root_cause().to_string())
    }
}

/// A guest's words, cut to a length and without what would let them rewrite a log or a terminal.
fn printable(said: &str, bytes_max: usize) -> String {
    let harmless = |c: char| match c {
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => ' ',
        c if c.is_control() => ' ',
        c => c,
    };
    let kept = said.floor_char_boundary(bytes_max);
    let mut printable: String = said[..kept].chars().map(harmless).collect();
    if kept < said.len() {
        printable.push('…');
    }
    printable
}

/// A segment's failure.
#[derive(Debug, thiserror::Error)]
#[error("segment '{segment}': {fault}")]
pub struct SegmentError {
    /// Which one.
    pub segment: String,
    /// What it did.
    pub fault: Fault,
}

/// What went wrong in a segment, by whose fault it is.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Fault {
    /// The caller's: the input is not what the segment takes.
    #[error("wrong input: {0}")]
    Input(String),
    /// Nobody's: the caller's [`Stop`] was reached.
    #[error("the time was up or the call was cancelled")]
    TimeUp,
    /// The guest's: it broke a rule.
    #[error("the guest was stopped: {0}")]
    Trap(String),
    /// The guest's: it wanted more than its [`Limits`] allow.
    #[error("the guest was stopped at a limit: {0}")]
    Limit(String),
    /// The guest's: it returned an error.
    #[error("the guest says: {0}")]
    Refused(String),
    /// The guest's: it returned something other than what the graph declares.
    #[error("the guest returned {0}")]
    Output(String),
    /// The graph's: an operator failed, or it is no graph for a segment.
    #[error("the graph failed: {0}")]
    Graph(String),
}
