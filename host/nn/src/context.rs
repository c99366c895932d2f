//! One caller's execution of a graph, and the means to stop it.

use crate::graph::Runner;
use crate::guard::guarded;
use crate::onnxruntime::Session;
use crate::threads::{self, THREADS_MAX};
use crate::{Graph, Port, Tensor};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use std::{fmt, mem};
use tract_onnx::prelude::{TVec, TractResult};
use tract_onnx::tract_core::model::{TypedSimplePlan, TypedSimpleState};
use tract_onnx::tract_core::plan::eval;

/// Execution state of a [`Graph`] for one call at a time.
pub struct Context {
    graph: Graph,
    state: State,
    /// What each part of a joined graph took in the last run.
    parts_us: Vec<f64>,
    /// So many threads, whatever was chosen for the graph.
    threads: Option<usize>,
}

enum State {
    Tract(Arc<TypedSimplePlan>, TypedSimpleState),
    /// onnxruntime keeps none between two runs.
    Onnxruntime(Arc<Session>),
}

impl Context {
    pub(crate) fn new(graph: &Graph) -> TractResult<Self> {
        let state = match graph.runner() {
            Runner::Tract(plan) => State::Tract(plan.clone(), plan.spawn()?),
            Runner::Onnxruntime(session) => State::Onnxruntime(session.clone()),
        };
        let parts = graph.parts().map_or(0, |parts| parts.graphs.len());
        Ok(Self { graph: graph.clone(), state, parts_us: vec![0.0; parts], threads: None })
    }

    /// Has its runs be on at most so many threads, whatever was chosen for the graph.
    pub fn on_threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads.clamp(1, THREADS_MAX));
        self
    }

    pub(crate) fn threads_given(&self) -> Option<usize> {
        self.threads
    }

    /// What each part of a joined graph took in the last run, in microseconds; nothing of others.
    pub fn parts_us(&self) -> &[f64] {
        &self.parts_us
    }

    /// Runs the graph. Inputs may come in any order; they are matched by name, and each must have
    /// the declared type and dimensions. Outputs come in the graph's order.
    ///
    /// `stop` is looked at between operators: neither backend can be interrupted inside one.
    pub fn compute(
        &mut self,
        inputs: Vec<(String, Tensor)>,
        stop: &Stop,
    ) -> Result<Vec<(String, Tensor)>, ComputeError> {
        let graph = self.graph.clone();
        let Some(parts) = graph.parts() else { return self.observed(inputs, stop, |_| ()) };
        let mut parts_us = mem::take(&mut self.parts_us);
        parts_us.fill(0.0);
        let mut since = Instant::now();
        let outputs = self.observed(inputs, stop, |node| {
            if let Some(part) = parts.ends[node] {
                let now = Instant::now();
                parts_us[part] += now.duration_since(since).as_secs_f64() * 1e6;
                since = now;
            }
        });
        self.parts_us = parts_us;
        outputs
    }

    /// The same; `after_each` is told of each of tract's operators that ran, by its place among the graph's.
    pub(crate) fn observed(
        &mut self,
        inputs: Vec<(String, Tensor)>,
        stop: &Stop,
        mut after_each: impl FnMut(usize),
    ) -> Result<Vec<(String, Tensor)>, ComputeError> {
        let inputs = self.arrange(inputs)?;
        let _at_work = threads::at_work();
        let (plan, state) = match &mut self.state {
            State::Tract(plan, state) => (plan, state),
            State::Onnxruntime(session) => {
                let outputs = session.run(&inputs, self.graph.outputs(), stop)?;
                return self.name_outputs(outputs.into_iter().map(Some));
            }
        };
        let values = inputs.into_iter().map(Tensor::into_value).collect::<TVec<_>>();
        // Recurrent operators go on where they stopped. But each run is a request of its own, and must not know of
        // others.
        if state.op_states.iter().any(Option::is_some) {
            *state = guarded(|| plan.spawn()).map_err(ComputeError::Failed)?;
        }
        let (graph, given) = (&self.graph, self.threads);
        let ran = guarded(|| {
            state.run_plan_with_eval(values, |context, op_state, node, inputs| {
                if stop.reached() {
                    return Err(Stopped.into());
                }
                threads::allow(given.unwrap_or_else(|| graph.threads_of(node.id)));
                let outputs = eval(context, op_state, node, inputs);
                crate::vector::release();
                after_each(node.id);
                outputs
            })
        });
        threads::allow(1);
        match ran {
            Ok(values) => self.name_outputs(values.into_iter().map(Tensor::from_value)),
            Err(message) => {
                // The state is half-run now: the next call gets a fresh one.
                *state = guarded(|| plan.spawn()).map_err(ComputeError::Failed)?;
                Err(if stop.reached() { ComputeError::Stopped } else { ComputeError::Failed(message) })
            }
        }
    }

    fn arrange(&self, mut inputs: Vec<(String, Tensor)>) -> Result<Vec<Tensor>, ComputeError> {
        let ports = self.graph.inputs();
        if inputs.len() != ports.len() {
            return Err(ComputeError::Input(format!("{} inputs were given, {} are needed", inputs.len(), ports.len())));
        }
        ports
            .iter()
            .map(|Port { name, fact }| {
                let position = inputs
                    .iter()
                    .position(|(given, _)| given == name)
                    .ok_or_else(|| ComputeError::Input(format!("input '{name}' is missing")))?;
                let (_, tensor) = inputs.swap_remove(position);
                if tensor.fact() != *fact {
                    return Err(ComputeError::Input(format!("input '{name}' must be {fact}, not {}", tensor.fact())));
                }
                Ok(tensor)
            })
            .collect()
    }

    fn name_outputs(
        &self,
        values: impl Iterator<Item = Option<Tensor>>,
    ) -> Result<Vec<(String, Tensor)>, ComputeError> {
        self.graph
            .outputs()
            .iter()
            .zip(values)
            .map(|(port, value)| match value {
                Some(tensor) => Ok((port.name.clone(), tensor)),
                None => {
                    Err(ComputeError::Failed(format!("output '{}' has a type that wasi:nn does not name", port.name)))
                }
            })
            .collect()
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("graph", &self.graph).finish_non_exhaustive()
    }
}

/// A way to end a computation from outside: at a moment, or when told.
#[derive(Clone, Debug)]
pub struct Stop {
    at: Option<Instant>,
    told: Arc<AtomicBool>,
}

impl Stop {
    /// Stops only when [`cancel`](Self::cancel)led.
    pub fn never() -> Self {
        Self { at: None, told: Arc::default() }
    }

    /// Stops at `moment`, or when cancelled before it.
    pub fn at(moment: Instant) -> Self {
        Self { at: Some(moment), told: Arc::default() }
    }

    /// The moment, if there is one.
    pub fn moment(&self) -> Option<Instant> {
        self.at
    }

    /// Stops this and every clone of it.
    pub fn cancel(&self) {
        self.told.store(true, Ordering::Release);
    }

    /// Whether work should end now.
    pub fn reached(&self) -> bool {
        self.told.load(Ordering::Acquire) || self.at.is_some_and(|at| Instant::now() >= at)
    }
}

/// Why a computation gave no answer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ComputeError {
    /// The [`Stop`] was reached.
    #[error("stopped: the time was up or the call was cancelled")]
    Stopped,
    /// The caller's inputs do not fit the graph.
    #[error("{0}")]
    Input(String),
    /// An operator failed.
    #[error("the graph failed: {0}")]
    Failed(String),
}

#[derive(Debug, thiserror::Error)]
#[error("stopped")]
struct Stopped;
