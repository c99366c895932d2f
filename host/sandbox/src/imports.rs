//! `wasi:nn`, as guests see it.
//!
//! A host function that returns an outer error traps the guest; the inner error of `wasi:nn` is a
//! value that it can look at.

use crate::Limits;
use crate::bindings::edgent::segment::own_graph;
use crate::bindings::wasi::nn::{errors, graph, inference, tensor};
use crate::limits::OverLimit;
use crate::segment::OwnGraph;
use edgent_nn::{ComputeError, Context, ElementType, Stop, Tensor, count_copied};
use std::result::Result as StdResult;
use std::time::{Duration, Instant};
use wasmtime::component::{Resource, ResourceTable};
use wasmtime::{Result, StoreLimits, UpdateDeadline, bail};

/// The only name a segment can load: the graph in its own component.
const OWN_GRAPH: &str = "self";

/// What one instance holds in the host.
pub(crate) struct Imports {
    pub(crate) store_limits: StoreLimits,
    limits: Limits,
    /// Whose segment the instance runs now; nobody's between two calls.
    own: Option<Own>,
    table: ResourceTable,
    held_bytes: usize,
    call: Call,
}

/// The graph that belongs to the segment in whose place a guest is called.
pub(crate) enum Own {
    /// The host computes it.
    InHost(Box<Context>),
    /// The guest does, and may have its bytes.
    InGuest(OwnGraph),
}

/// A guest's handle for its graph. It says nothing of which one that is: there is no other that a guest could have.
pub struct GraphHandle;

/// A guest's handle for an execution context. Each run begins from nothing, so one context does for all of them.
pub struct ContextHandle;

/// What is known of the call in progress.
struct Call {
    stop: Stop,
    /// When the guest's own limit of time ends.
    ends: Option<Instant>,
    copied_bytes: usize,
    graph_failure: Option<String>,
}

/// An error as `wasi:nn` hands it to guests.
pub struct NnError {
    code: errors::ErrorCode,
    data: String,
}

impl Imports {
    pub(crate) fn new(own: Own, limits: &Limits) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits.handles);
        let store_limits = limits.store_limits();
        let limits = limits.clone();
        Self { store_limits, limits, own: Some(own), table, held_bytes: 0, call: Call::new(Stop::never(), None) }
    }

    /// From now on the guest's graph is this one.
    pub(crate) fn serve(&mut self, own: Own) {
        self.own = Some(own);
    }

    /// The guest's graph is taken away: an instance that waits keeps nobody's weights in memory.
    pub(crate) fn leave(&mut self) -> Option<Own> {
        self.own.take()
    }

    /// What each part of a joined graph took in the last run.
    pub(crate) fn parts_us(&self) -> &[f64] {
        match &self.own {
            Some(Own::InHost(context)) => context.parts_us(),
            _ => &[],
        }
    }

    /// A call begins, and with it what it may use up.
    pub(crate) fn begin(&mut self, stop: &Stop) {
        let ends = Instant::now().checked_add(Duration::from_millis(self.limits.call_ms));
        self.call = Call::new(stop.clone(), ends);
    }

    /// Whether the guest goes on; asked at every tick of the clock.
    pub(crate) fn tick(&self) -> Result<UpdateDeadline> {
        if self.call.stop.reached() {
            return Ok(UpdateDeadline::Interrupt);
        }
        if self.call.ends.is_some_and(|ends| Instant::now() >= ends) {
            return Err(OverLimit(format!("it ran for more than {} ms", self.limits.call_ms)).into());
        }
        Ok(UpdateDeadline::Continue(1))
    }

    /// What the graph failed with during this call, if it did.
    pub(crate) fn graph_failure(&mut self) -> Option<String> {
        self.call.graph_failure.take()
    }

    /// A handle for the guest.
    pub(crate) fn hold(&mut self, tensor: Tensor) -> Result<Resource<Tensor>> {
        let held = self.held_bytes.saturating_add(tensor.bytes().len());
        if held > self.limits.held_bytes {
            return Err(OverLimit(format!("it holds more than {} tensor bytes", self.limits.held_bytes)).into());
        }
        self.held_bytes = held;
        self.push(tensor)
    }

    /// The guest's handle, taken back.
    pub(crate) fn release(&mut self, tensor: Resource<Tensor>) -> Result<Tensor> {
        let tensor = self.table.delete(tensor)?;
        self.held_bytes = self.held_bytes.saturating_sub(tensor.bytes().len());
        Ok(tensor)
    }

    fn push<T: Send + 'static>(&mut self, resource: T) -> Result<Resource<T>> {
        self.table
            .push(resource)
            .map_err(|_| OverLimit(format!("it holds more than {} handles", self.limits.handles)).into())
    }

    fn spend(&mut self, bytes: usize) -> Result<()> {
        self.call.copied_bytes = self.call.copied_bytes.saturating_add(bytes);
        if self.call.copied_bytes > self.limits.copied_bytes {
            let limit = self.limits.copied_bytes;
            return Err(OverLimit(format!("it copied more than {limit} tensor bytes in one call")).into());
        }
        Ok(())
    }

    fn fail<T>(&mut self, code: errors::ErrorCode, data: impl Into<String>) -> Result<StdResult<T, Resource<NnError>>> {
        Ok(Err(self.push(NnError { code, data: data.into() })?))
    }
}

impl Call {
    fn new(stop: Stop, ends: Option<Instant>) -> Self {
        Self { stop, ends, copied_bytes: 0, graph_failure: None }
    }
}

impl graph::Host for Imports {
    fn load(
        &mut self,
        _: Vec<Vec<u8>>,
        _: graph::GraphEncoding,
        _: graph::ExecutionTarget,
    ) -> Result<StdResult<Resource<GraphHandle>, Resource<NnError>>> {
        self.fail(
            errors::ErrorCode::Security,
            "segments may not load graphs from bytes; load-by-name(\"self\") gives their own",
        )
    }

    fn load_by_name(&mut self, name: String) -> Result<StdResult<Resource<GraphHandle>, Resource<NnError>>> {
        if name != OWN_GRAPH {
            return self.fail(errors::ErrorCode::NotFound, "the only graph here is \"self\"");
        }
        if !matches!(self.own, Some(Own::InHost(_))) {
            return self.fail(
                errors::ErrorCode::UnsupportedOperation,
                "this host runs the segment in the portable tier, and reads no graph of it; the guest would have to \
                 do the arithmetic itself",
            );
        }
        Ok(Ok(self.push(GraphHandle)?))
    }
}

impl graph::HostGraph for Imports {
    fn init_execution_context(
        &mut self,
        graph: Resource<GraphHandle>,
    ) -> Result<StdResult<Resource<ContextHandle>, Resource<NnError>>> {
        self.table.get(&graph)?;
        Ok(Ok(self.push(ContextHandle)?))
    }

    fn drop(&mut self, graph: Resource<GraphHandle>) -> Result<()> {
        self.table.delete(graph)?;
        Ok(())
    }
}

impl own_graph::Host for Imports {
    fn read(&mut self, offset: u64, count: u32) -> Result<Vec<u8>> {
        let Some(Own::InGuest(graph)) = &self.own else {
            bail!("it wants the bytes of its graph, which only segments of the portable tier get");
        };
        let bytes = graph.bytes();
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let piece = bytes[start..bytes.len().min(start.saturating_add(count as usize))].to_vec();
        self.spend(piece.len())?;
        Ok(piece)
    }
}

impl inference::Host for Imports {}

impl inference::HostGraphExecutionContext for Imports {
    fn compute(
        &mut self,
        context: Resource<ContextHandle>,
        inputs: Vec<(String, Resource<Tensor>)>,
    ) -> Result<StdResult<Vec<(String, Resource<Tensor>)>, Resource<NnError>>> {
        // The handles are the callee's now: without another holder, tract may compute in place.
        let mut given = Vec::with_capacity(inputs.len());
        for (name, tensor) in inputs {
            given.push((name, self.release(tensor)?));
        }
        self.table.get(&context)?;
        let Some(Own::InHost(context)) = &mut self.own else { bail!("it has a context, but the host has no graph") };
        match context.compute(given, &self.call.stop) {
            Ok(outputs) => {
                let mut handles = Vec::with_capacity(outputs.len());
                for (name, tensor) in outputs {
                    handles.push((name, self.hold(tensor)?));
                }
                Ok(Ok(handles))
            }
            // Not an error to look at: the caller wants the segment to end.
            Err(ComputeError::Stopped) => bail!("stopped"),
            Err(e @ ComputeError::Input(_)) => self.fail(errors::ErrorCode::InvalidArgument, e.to_string()),
            Err(ComputeError::Failed(why)) => {
                self.call.graph_failure = Some(why.clone());
                self.fail(errors::ErrorCode::RuntimeError, why)
            }
        }
    }

    fn drop(&mut self, context: Resource<ContextHandle>) -> Result<()> {
        self.table.delete(context)?;
        Ok(())
    }
}

impl tensor::Host for Imports {}

impl tensor::HostTensor for Imports {
    fn new(&mut self, dimensions: Vec<u32>, ty: tensor::TensorType, data: Vec<u8>) -> Result<Resource<Tensor>> {
        self.spend(data.len())?;
        let dims: Vec<usize> = dimensions.iter().map(|dim| *dim as usize).collect();
        let element_type = match ty {
            tensor::TensorType::Fp16 => ElementType::F16,
            tensor::TensorType::Fp32 => ElementType::F32,
            tensor::TensorType::Fp64 => ElementType::F64,
            tensor::TensorType::U8 => ElementType::U8,
            tensor::TensorType::I32 => ElementType::I32,
            tensor::TensorType::I64 => ElementType::I64,
            tensor::TensorType::Bf16 => bail!("tensors of bf16 are not supported here"),
        };
        // The constructor of wasi:nn has no way to say no, so a tensor that lies about its size traps.
        let tensor = Tensor::from_bytes(element_type, &dims, &data)?;
        self.hold(tensor)
    }

    fn dimensions(&mut self, tensor: Resource<Tensor>) -> Result<Vec<u32>> {
        Ok(self.table.get(&tensor)?.dims().iter().map(|dim| u32::try_from(*dim).unwrap_or(u32::MAX)).collect())
    }

    fn ty(&mut self, tensor: Resource<Tensor>) -> Result<tensor::TensorType> {
        Ok(match self.table.get(&tensor)?.element_type() {
            ElementType::F16 => tensor::TensorType::Fp16,
            ElementType::F32 => tensor::TensorType::Fp32,
            ElementType::F64 => tensor::TensorType::Fp64,
            ElementType::U8 => tensor::TensorType::U8,
            ElementType::I32 => tensor::TensorType::I32,
            ElementType::I64 => tensor::TensorType::I64,
        })
    }

    fn data(&mut self, tensor: Resource<Tensor>) -> Result<Vec<u8>> {
        let bytes = self.table.get(&tensor)?.bytes().len();
        self.spend(bytes)?;
        count_copied(bytes);
        Ok(self.table.get(&tensor)?.bytes().to_vec())
    }

    fn drop(&mut self, tensor: Resource<Tensor>) -> Result<()> {
        self.release(tensor)?;
        Ok(())
    }
}

impl errors::Host for Imports {}

impl errors::HostError for Imports {
    fn code(&mut self, error: Resource<NnError>) -> Result<errors::ErrorCode> {
        Ok(self.table.get(&error)?.code)
    }

    fn data(&mut self, error: Resource<NnError>) -> Result<String> {
        Ok(self.table.get(&error)?.data.clone())
    }

    fn drop(&mut self, error: Resource<NnError>) -> Result<()> {
        self.table.delete(error)?;
        Ok(())
    }
}
