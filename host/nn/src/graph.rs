//! A segment's graph, optimised for the processor it was loaded on.

use crate::backend::{Backend, Choice};
use crate::guard::guarded;
use crate::onnxruntime::Session;
use crate::worth::Chosen;
use crate::{Context, Cost, ElementType, Fact, Pass, Tensor};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use tract_onnx::prelude::{Framework, InferenceModelExt, IntoRunnable, TractResult, TypedFact, TypedModel};
use tract_onnx::tract_core::model::TypedRunnableModel;
use tract_onnx::{Onnx, WithOnnx};

static GRAPHS_READ: AtomicU64 = AtomicU64::new(0);

/// Graphs that this process has read since its start, or tried to. None of a portable segment is among them.
pub fn graphs_read() -> u64 {
    GRAPHS_READ.load(Ordering::Relaxed)
}

/// A graph ready to run: shared, immutable, cheap to clone.
#[derive(Clone)]
pub struct Graph(Arc<Loaded>);

/// The same, as long as somebody else has it.
#[derive(Clone)]
pub struct WeakGraph(Weak<Loaded>);

pub(crate) struct Loaded {
    pub(crate) runner: Runner,
    pub(crate) inputs: Vec<Port>,
    pub(crate) outputs: Vec<Port>,
    pub(crate) cost: Cost,
    pub(crate) choice: Option<Choice>,
    /// How many threads it runs on.
    pub(crate) threads: Chosen,
    /// Of a joined graph: what was joined.
    pub(crate) parts: Option<Parts>,
}

/// What a joined graph was made of.
pub(crate) struct Parts {
    pub(crate) graphs: Vec<Graph>,
    /// By operator, the part it is of.
    pub(crate) of: Vec<usize>,
    /// By operator: the part that ends with it, if one does.
    pub(crate) ends: Vec<Option<usize>>,
}

/// What a backend has made of a graph. Shared: weights are in memory once.
#[derive(Clone)]
pub(crate) enum Runner {
    Tract(Arc<TypedRunnableModel>),
    Onnxruntime(Arc<Session>),
}

/// A named place where a tensor goes into a graph or comes out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The name that callers use.
    pub name: String,
    /// What fits it.
    pub fact: Fact,
}

/// How a segment's graph is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GraphFormat {
    /// A tar of NNEF with tract's extensions.
    Nnef,
    /// An ONNX file with fixed dimensions: a part of the network's own, where NNEF has no words for it.
    Onnx,
}

impl GraphFormat {
    /// The name used in manifests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nnef => "nnef",
            Self::Onnx => "onnx",
        }
    }

    /// The format of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Nnef, Self::Onnx].into_iter().find(|format| format.name() == name)
    }
}

impl Graph {
    /// Reads a graph and optimises it for this processor.
    pub fn load(bytes: &[u8], format: GraphFormat) -> Result<Self, GraphError> {
        GRAPHS_READ.fetch_add(1, Ordering::Relaxed);
        let model = guarded(|| match format {
            GraphFormat::Nnef => nnef().model_for_read(&mut &*bytes)?.into_decluttered(),
            GraphFormat::Onnx => onnx().model_for_read(&mut &*bytes)?.into_typed()?.into_decluttered(),
        });
        Self::prepare(model.map_err(GraphError::Unreadable)?)
    }

    /// A graph that hands its only input back: the same handle, no copy, no arithmetic. What is
    /// measured through it is the cost of the call alone.
    pub fn identity(name: &str, fact: &Fact) -> Result<Self, GraphError> {
        let mut model = TypedModel::default();
        let wired = guarded(|| {
            let source = model.add_source(name, typed(fact))?;
            model.select_output_outlets(&[source])
        });
        wired.map_err(GraphError::Unusable)?;
        Self::prepare(model)
    }

    /// A way to find this graph again that does not keep it.
    pub fn downgrade(&self) -> WeakGraph {
        WeakGraph(Arc::downgrade(&self.0))
    }

    /// What goes in.
    pub fn inputs(&self) -> &[Port] {
        &self.0.inputs
    }

    /// What comes out.
    pub fn outputs(&self) -> &[Port] {
        &self.0.outputs
    }

    /// What a run takes.
    pub fn cost(&self) -> Cost {
        self.0.cost
    }

    /// Who computes it, and why; none where there is nobody but tract.
    pub fn choice(&self) -> Option<&Choice> {
        self.0.choice.as_ref()
    }

    /// Who computes it.
    pub fn backend(&self) -> Backend {
        match self.0.runner {
            Runner::Tract(_) => Backend::Tract,
            Runner::Onnxruntime(_) => Backend::Onnxruntime,
        }
    }

    /// A new execution state.
    pub fn context(&self) -> Result<Context, GraphError> {
        guarded(|| Context::new(self)).map_err(GraphError::Unusable)
    }

    /// Runs the graph once, with a context of its own, on inputs in its order: the undivided reference that
    /// segments are compared with.
    pub fn run_once(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, crate::ComputeError> {
        let mut context = self.context().map_err(|e| crate::ComputeError::Failed(e.to_string()))?;
        let names = self.inputs().iter().map(|port| port.name.clone());
        let outputs = context.compute(names.zip(inputs).collect(), &crate::Stop::never())?;
        Ok(outputs.into_iter().map(|(_, tensor)| tensor).collect())
    }

    /// As tract alone would run it: what is done here for speed is measured against that.
    pub(crate) fn plain(decluttered: TypedModel) -> Result<Self, GraphError> {
        let cost = guarded(|| crate::layer::cost(&decluttered)).map_err(GraphError::Unusable)?;
        Self::of(decluttered, cost, |model| model.into_optimized()?.into_runnable())
    }

    pub(crate) fn prepare(decluttered: TypedModel) -> Result<Self, GraphError> {
        Self::prepare_without(decluttered, None)
    }

    /// Without one of the things that are done for speed, to measure what that gains.
    pub(crate) fn prepare_without(mut decluttered: TypedModel, pass: Option<Pass>) -> Result<Self, GraphError> {
        let cost = guarded(|| crate::layer::cost(&decluttered)).map_err(GraphError::Unusable)?;
        if pass != Some(Pass::Lrn) {
            crate::lrn::speed_up(&mut decluttered);
        }
        let part = pass.and_then(Pass::part);
        Self::of(decluttered, cost, |model| crate::fast::speed_up(model, part)?.into_optimized()?.into_runnable())
    }

    /// The network as it is, operator by operator: slow, but where a part has two like branches one of which it gives,
    /// tract 0.23 would put one in place of the other for ever while it optimises.
    pub(crate) fn unoptimised(decluttered: TypedModel) -> Result<Self, GraphError> {
        let cost = guarded(|| crate::layer::cost(&decluttered)).map_err(GraphError::Unusable)?;
        Self::of(decluttered, cost, |model| model.into_runnable())
    }

    fn of(
        model: TypedModel,
        cost: Cost,
        plan: impl FnOnce(TypedModel) -> TractResult<Arc<TypedRunnableModel>>,
    ) -> Result<Self, GraphError> {
        let inputs = ports(&model, model.input_outlets()).map_err(GraphError::Unusable)?;
        let outputs = ports(&model, model.output_outlets()).map_err(GraphError::Unusable)?;
        let plan = guarded(|| plan(model)).map_err(GraphError::Unusable)?;
        let (runner, threads) = (Runner::Tract(plan), Chosen::default());
        Ok(Self::from_loaded(Loaded { runner, inputs, outputs, cost, choice: None, threads, parts: None }))
    }

    pub(crate) fn from_loaded(loaded: Loaded) -> Self {
        Self(Arc::new(loaded))
    }

    pub(crate) fn parts(&self) -> Option<&Parts> {
        self.0.parts.as_ref()
    }

    pub(crate) fn chosen_threads(&self) -> &Chosen {
        &self.0.threads
    }

    /// The same graph, run by onnxruntime.
    pub(crate) fn with_session(&self, session: Session) -> Self {
        self.with(Runner::Onnxruntime(Arc::new(session)), None)
    }

    /// The same, with how it was chosen.
    pub(crate) fn chosen(&self, choice: Choice) -> Self {
        self.with(self.0.runner.clone(), Some(choice))
    }

    fn with(&self, runner: Runner, choice: Option<Choice>) -> Self {
        let Loaded { inputs, outputs, cost, .. } = &*self.0;
        let (inputs, outputs) = (inputs.clone(), outputs.clone());
        let threads = Chosen::default();
        Self::from_loaded(Loaded { runner, inputs, outputs, cost: *cost, choice, threads, parts: None })
    }

    pub(crate) fn runner(&self) -> &Runner {
        &self.0.runner
    }
}

impl WeakGraph {
    /// The graph, if it is still there.
    pub fn upgrade(&self) -> Option<Graph> {
        self.0.upgrade().map(Graph)
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").field("inputs", &self.0.inputs).field("outputs", &self.0.outputs).finish()
    }
}

/// NNEF as segments use it: tract's core operators and the ONNX ones that NNEF lacks. Made once: its
/// standard library is parsed from text, which takes longer than reading a graph.
pub(crate) fn nnef() -> &'static tract_nnef::framework::Nnef {
    static NNEF: OnceLock<tract_nnef::framework::Nnef> = OnceLock::new();
    NNEF.get_or_init(|| {
        let mut nnef = tract_nnef::nnef().with_onnx().with_registry(crate::operators::own_operators());
        nnef.allow_extended_identifier_syntax(true);
        nnef
    })
}

/// ONNX as it is read here. Exporters leave symbolic shapes on inner values that refuse to unify with concrete
/// inputs; they are only hints, so they are ignored.
pub(crate) fn onnx() -> &'static Onnx {
    static ONNX: OnceLock<Onnx> = OnceLock::new();
    ONNX.get_or_init(|| tract_onnx::onnx().with_ignore_value_info(true).with_ignore_output_shapes(true))
}

pub(crate) fn typed(fact: &Fact) -> TypedFact {
    TypedFact::dt_shape(fact.element_type.into(), &fact.dims)
}

/// The concrete type and dimensions of a fact; symbolic ones are refused, since a segment's host
/// must know what a stranger's tensor may be before it asks for memory.
pub(crate) fn concrete(fact: &TypedFact) -> Result<Fact, String> {
    let dims = fact.shape.as_concrete().ok_or_else(|| format!("the dimensions {:?} are not fixed", fact.shape))?;
    let element_type = ElementType::of(fact.datum_type)
        .ok_or_else(|| format!("elements of type {:?} have no name in wasi:nn", fact.datum_type))?;
    Fact::new(element_type, dims).map_err(|e| e.to_string())
}

fn ports(model: &TypedModel, outlets: TractResult<&[tract_onnx::prelude::OutletId]>) -> Result<Vec<Port>, String> {
    outlets
        .map_err(|e| format!("{e:#}"))?
        .iter()
        .map(|outlet| {
            let name = crate::cut::outlet_name(model, *outlet);
            let fact = model.outlet_fact(*outlet).map_err(|e| format!("{e:#}"))?;
            Ok(Port { fact: concrete(fact).map_err(|why| format!("'{name}': {why}"))?, name })
        })
        .collect()
}

/// Why bytes are no graph that can run here.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// The bytes cannot be read.
    #[error("the graph cannot be read: {0}; rebuild the bundle with `edgent build`")]
    Unreadable(String),
    /// It was read, but cannot be prepared on this host.
    #[error("the graph cannot be prepared: {0}")]
    Unusable(String),
}
