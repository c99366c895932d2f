//! One segment, ready to run.

use crate::bindings::Segment as World;
use crate::engine::Code;
use crate::imports::{Imports, Own};
use crate::limits::{Limits, OverLimit};
use edgent_nn::{Graph, Port, Stop, Tensor};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wasmtime::component::Resource;
use wasmtime::{Store, Trap};

/// Idle instances, and contexts of its graph, that a segment keeps for the next calls…
const INSTANCES_KEPT: usize = 8;

/// …and the instances that are kept for all segments whose code ships with this program.
const SHARED_INSTANCES_KEPT: usize = 32;

/// The most tensors that a segment may take, or give.
const TENSORS_MAX: usize = 64;

/// A guest's code with its graph. Shared between threads; each call has an instance to itself.
///
/// Segments of the standard guest share its instances, and each call brings its segment's graph along. That guest keeps
/// nothing but a handle for "its graph", and what a segment costs is mostly memory that is not in the processor's caches: an
/// instance that the segment before has just used is there. Guests of others have instances of their own.
pub struct Segment {
    name: String,
    code: Code,
    work: Work,
    limits: Limits,
    /// Which of its inputs and outputs must be free of NaN and infinities.
    finite: [Vec<bool>; 2],
    /// Those that run this segment alone.
    idle: Mutex<Vec<Instance>>,
    shares_instances: bool,
    /// What the host computes it with, when nobody does; none where the guest computes.
    contexts: Mutex<Vec<Own>>,
}

/// Who does a segment's arithmetic.
#[derive(Clone)]
pub enum Work {
    /// The host: the guest reaches the graph through `wasi:nn`.
    InHost(Graph),
    /// The guest: it gets the graph's bytes.
    InGuest(OwnGraph),
}

/// A graph that the host does not read. What it takes and gives is what the bundle's manifest says.
#[derive(Clone)]
pub struct OwnGraph(Arc<Described>);

struct Described {
    bytes: Vec<u8>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

/// A guest that got ready.
pub(crate) struct Instance {
    store: Store<Imports>,
    world: World,
}

impl Segment {
    /// Makes a first instance and has it prepare itself, so that the first call is no slower than
    /// the others and a guest that cannot start is found now.
    pub fn new(name: &str, code: &Code, work: impl Into<Work>, limits: Limits) -> Result<Self, SegmentError> {
        let work = work.into();
        let fault = |fault| SegmentError { segment: name.to_owned(), fault };
        let (inputs, outputs) = (work.inputs().len(), work.outputs().len());
        if !(1..=TENSORS_MAX).contains(&inputs) || !(1..=TENSORS_MAX).contains(&outputs) {
            let why =
                format!("it has {inputs} inputs and {outputs} outputs, a segment's has 1 to {TENSORS_MAX} of each");
            return Err(fault(Fault::Graph(why)));
        }
        let finite = [vec![false; inputs], vec![false; outputs]];
        let is_in_host = matches!(work, Work::InHost(_));
        let segment = Self {
            name: name.to_owned(),
            shares_instances: is_in_host && code.is_shipped() && limits == Limits::default(),
            code: code.clone(),
            work,
            limits,
            finite,
            idle: Mutex::default(),
            contexts: Mutex::default(),
        };
        let instance = segment.instance(&Stop::never()).map_err(fault)?;
        segment.keep(instance);
        Ok(segment)
    }

    /// Has those of its inputs and outputs, in the graph's order, refused in which a number is NaN or infinite.
    /// Inputs, too, so that a guest is not blamed for what it was given.
    pub fn with_finite(
        mut self,
        inputs: impl IntoIterator<Item = bool>,
        outputs: impl IntoIterator<Item = bool>,
    ) -> Self {
        self.finite = [inputs.into_iter().collect(), outputs.into_iter().collect()];
        self
    }

    /// Another segment with the same guest and limits.
    pub fn like(&self, name: &str, graph: Graph) -> Result<Self, SegmentError> {
        Self::new(name, &self.code, graph, self.limits.clone())
    }

    /// Whether its guest is the one that ships with this program, and does nothing but have the host compute the graph.
    pub fn is_standard(&self) -> bool {
        self.shares_instances
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Who does its arithmetic; and what it takes and gives.
    pub fn work(&self) -> &Work {
        &self.work
    }

    /// Runs the segment on the tensors that its graph takes, in its order. What comes back are those that it
    /// gives, with the type and dimensions that it declares, whoever wrote the guest.
    pub fn run(&self, inputs: Vec<Tensor>, stop: &Stop) -> Result<Vec<Tensor>, SegmentError> {
        Ok(self.run_timed(inputs, stop)?.0)
    }

    /// The same; says, too, what each part of a joined graph took of it, in microseconds.
    pub fn run_timed(&self, inputs: Vec<Tensor>, stop: &Stop) -> Result<(Vec<Tensor>, Vec<f64>), SegmentError> {
        self.try_run(inputs, stop).map_err(|fault| SegmentError { segment: self.name.clone(), fault })
    }

    fn try_run(&self, inputs: Vec<Tensor>, stop: &Stop) -> Result<(Vec<Tensor>, Vec<f64>), Fault> {
        let ports = self.work.inputs();
        if inputs.len() != ports.len() {
            return Err(Fault::Input(format!("{} tensors instead of {}", inputs.len(), ports.len())));
        }
        if let Some((input, port)) = inputs.iter().zip(ports).find(|(input, port)| !fits(input, port)) {
            return Err(Fault::Input(format!("it is {} instead of {}", input.fact(), port.fact)));
        }
        for (number, (input, port)) in inputs.iter().zip(ports).enumerate() {
            if let Some(at) = not_finite(input, self.finite[0].get(number)) {
                return Err(Fault::Input(format!("NaN or infinity in '{}', at element {at}", port.name)));
            }
        }
        if stop.reached() {
            return Err(Fault::TimeUp);
        }
        // Whoever does the arithmetic: its processor is not idle.
        let _at_work = edgent_nn::at_work();
        let mut instance = self.instance(stop)?;
        // An instance whose call failed is dropped here: nobody knows what state it is in.
        let outputs = self.call(&mut instance, inputs, stop)?;
        let parts_us = instance.store.data().parts_us().to_vec();
        self.keep(instance);
        Ok((outputs, parts_us))
    }

    fn call(
        &self,
        Instance { store, world }: &mut Instance,
        inputs: Vec<Tensor>,
        stop: &Stop,
    ) -> Result<Vec<Tensor>, Fault> {
        let _ticking = self.code.ticking();
        begin(store, stop, self.limits.call_fuel).map_err(|e| self.fault_of(&e, stop))?;
        let mut held = Vec::with_capacity(inputs.len());
        for (port, input) in self.work.inputs().iter().zip(inputs) {
            held.push((port.name.clone(), store.data_mut().hold(input).map_err(|e| self.fault_of(&e, stop))?));
        }
        let returned = world.edgent_segment_layers().call_run(&mut *store, &held);
        match returned.map_err(|e| self.fault_of(&e, stop))? {
            Ok(outputs) => self.check(store.data_mut(), outputs),
            // Guests pass on what their graph failed with; whose failure it was, the host knows better.
            Err(said) => Err(store.data_mut().graph_failure().map_or_else(|| self.refused(said), Fault::Graph)),
        }
    }

    /// The tensors that the graph declares, found by their names; or, of a graph that the host has not read, by their
    /// places: what it calls them is not known.
    fn check(&self, imports: &mut Imports, mut outputs: Vec<(String, Resource<Tensor>)>) -> Result<Vec<Tensor>, Fault> {
        let ports = self.work.outputs();
        if outputs.len() != ports.len() {
            return Err(Fault::Output(format!("{} tensors instead of {}", outputs.len(), ports.len())));
        }
        let mut checked = Vec::with_capacity(ports.len());
        for (number, port) in ports.iter().enumerate() {
            // Most segments have one output; however the guest calls it, it is meant.
            let by_place = ports.len() == 1 || matches!(self.work, Work::InGuest(_));
            let position = outputs.iter().position(|(name, _)| by_place || *name == port.name);
            let position = position.ok_or_else(|| Fault::Output(format!("no tensor named '{}'", port.name)))?;
            let (_, output) = outputs.remove(position);
            let output = imports.release(output).map_err(|e| Fault::Trap(e.to_string()))?;
            if !fits(&output, port) {
                return Err(Fault::Output(format!("{} instead of {}", output.fact(), port.fact)));
            }
            if let Some(at) = not_finite(&output, self.finite[1].get(number)) {
                return Err(Fault::Output(format!("NaN or infinity in '{}', at element {at}", port.name)));
            }
            checked.push(output);
        }
        Ok(checked)
    }

    /// A guest that is ready and has this segment's graph.
    fn instance(&self, stop: &Stop) -> Result<Instance, Fault> {
        let own = match &self.work {
            Work::InHost(graph) => {
                let kept = lock(&self.contexts).pop();
                let made = || graph.context().map(|context| Own::InHost(Box::new(context)));
                kept.map_or_else(made, Ok).map_err(|e| Fault::Graph(e.to_string()))?
            }
            Work::InGuest(bytes) => Own::InGuest(bytes.clone()),
        };
        let kept = lock(self.idle()).pop();
        match kept {
            Some(mut instance) => {
                instance.store.data_mut().serve(own);
                Ok(instance)
            }
            None => self.instantiate(own, stop),
        }
    }

    fn instantiate(&self, own: Own, stop: &Stop) -> Result<Instance, Fault> {
        let _ticking = self.code.ticking();
        let mut store = Store::new(self.code.wasmtime(), Imports::new(own, &self.limits));
        store.limiter(|imports| &mut imports.store_limits);
        store.epoch_deadline_callback(|store| store.data().tick());
        // What one call into the host may copy out of the guest, tensors or not.
        store.set_hostcall_fuel(self.limits.copied_bytes);
        begin(&mut store, stop, self.limits.call_fuel).map_err(|e| self.fault_of(&e, stop))?;
        let world = self.code.world().instantiate(&mut store).map_err(|e| self.fault_of(&e, stop))?;
        let prepared = world.edgent_segment_layers().call_prepare(&mut store).map_err(|e| self.fault_of(&e, stop))?;
        prepared.map_err(|said| self.refused(said))?;
        Ok(Instance { store, world })
    }

    fn fault_of(&self, error: &wasmtime::Error, stop: &Stop) -> Fault {
        if let Some(OverLimit(what)) = error.downcast_ref() {
            Fault::Limit(what.clone())
        } else if stop.reached() {
            Fault::TimeUp
        } else {
            match error.downcast_ref::<Trap>() {
                Some(Trap::OutOfFuel) => Fault::Limit(format!("it used up its {} of fuel", self.limits.call_fuel)),
                Some(trap) => Fault::Trap(trap.to_string()),
                None => Fault::Trap(error.root_cause().to_string()),
            }
        }
    }

    fn refused(&self, said: String) -> Fault {
        Fault::Refused(printable(&said, self.limits.text_bytes))
    }

    fn keep(&self, mut instance: Instance) {
        if let Some(own @ Own::InHost(_)) = instance.store.data_mut().leave() {
            keep(&self.contexts, own, INSTANCES_KEPT);
        }
        let most = if self.shares_instances { SHARED_INSTANCES_KEPT } else { INSTANCES_KEPT };
        keep(self.idle(), instance, most);
    }

    fn idle(&self) -> &Mutex<Vec<Instance>> {
        if self.shares_instances { self.code.idle() } else { &self.idle }
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Work {
    /// What goes in.
    pub fn inputs(&self) -> &[Port] {
        match self {
            Self::InHost(graph) => graph.inputs(),
            Self::InGuest(OwnGraph(graph)) => &graph.inputs,
        }
    }

    /// What comes out.
    pub fn outputs(&self) -> &[Port] {
        match self {
            Self::InHost(graph) => graph.outputs(),
            Self::InGuest(OwnGraph(graph)) => &graph.outputs,
        }
    }
}

impl From<Graph> for Work {
    fn from(graph: Graph) -> Self {
        Self::InHost(graph)
    }
}

impl OwnGraph {
    /// Bytes, and what a manifest says of them.
    pub fn new(bytes: Vec<u8>, inputs: Vec<Port>, outputs: Vec<Port>) -> Self {
        Self(Arc::new(Described { bytes, inputs, outputs }))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last that was kept is the first to be used again: the caches know it best.
fn keep<T>(kept: &Mutex<Vec<T>>, one: T, most: usize) {
    let mut kept = lock(kept);
    if kept.len() < most {
        kept.push(one);
    }
}

fn begin(store: &mut Store<Imports>, stop: &Stop, fuel: u64) -> wasmtime::Result<()> {
    store.data_mut().begin(stop);
    store.set_epoch_deadline(1);
    store.set_fuel(fuel)
}

/// Where a tensor that must not have them has its first NaN or infinity.
fn not_finite(tensor: &Tensor, must_be_finite: Option<&bool>) -> Option<usize> {
    (must_be_finite == Some(&true)).then(|| tensor.first_not_finite()).flatten()
}

fn fits(tensor: &Tensor, port: &Port) -> bool {
    tensor.element_type() == port.fact.element_type && tensor.dims() == port.fact.dims
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
