//! `wasi:nn`, as guests see it.
//!
//! A host function that returns an outer error traps the guest; the inner error of `wasi:nn` is a
//! value that it can look at.

use crate::Limits;
use crate::bindings::wasi::nn::{errors, graph, inference, tensor};
use edgent_nn::{ComputeError, Context, ElementType, Graph, Stop, Tensor, count_copied};
use wasmtime::component::{Resource, ResourceTable};
use wasmtime::{Result, StoreLimits, bail};

/// The only name a segment can load: the graph in its own component.
const OWN_GRAPH: &str = "self";

/// What one instance holds in the host.
pub(crate) struct Imports {
    pub(crate) table: ResourceTable,
    pub(crate) store_limits: StoreLimits,
    /// When the current call must end.
    pub(crate) stop: Stop,
    /// Tensor bytes that the current call may still copy.
    pub(crate) tensor_bytes_left: usize,
    graph: Graph,
}

/// An error as `wasi:nn` hands it to guests.
pub struct NnError {
    code: errors::ErrorCode,
    data: String,
}

impl Imports {
    pub(crate) fn new(graph: Graph, limits: &Limits) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits.handles);
        Self { table, store_limits: limits.store_limits(), stop: Stop::never(), tensor_bytes_left: limits.tensor_bytes, graph }
    }

    fn fail<T>(&mut self, code: errors::ErrorCode, data: impl Into<String>) -> Result<std::result::Result<T, Resource<NnError>>> {
        Ok(Err(self.table.push(NnError { code, data: data.into() })?))
    }

    fn spend(&mut self, bytes: usize) -> Result<()> {
        match self.tensor_bytes_left.checked_sub(bytes) {
            Some(left) => self.tensor_bytes_left = left,
            None => bail!("the guest copied more tensor bytes in one call than its limit"),
        }
        Ok(())
    }
}

impl graph::Host for Imports {
    fn load(
        &mut self,
        _: Vec<Vec<u8>>,
        _: graph::GraphEncoding,
        _: graph::ExecutionTarget,
    ) -> Result<std::result::Result<Resource<Graph>, Resource<NnError>>> {
        self.fail(errors::ErrorCode::Security, "segments may not load graphs from bytes; load-by-name(\"self\") gives their own")
    }

    fn load_by_name(&mut self, name: String) -> Result<std::result::Result<Resource<Graph>, Resource<NnError>>> {
        if name != OWN_GRAPH {
            return self.fail(errors::ErrorCode::NotFound, "the only graph here is \"self\"");
        }
        Ok(Ok(self.table.push(self.graph.clone())?))
    }
}

impl graph::HostGraph for Imports {
    fn init_execution_context(
        &mut self,
        graph: Resource<Graph>,
    ) -> Result<std::result::Result<Resource<Context>, Resource<NnError>>> {
        match self.table.get(&graph)?.context() {
            Ok(context) => Ok(Ok(self.table.push(context)?)),
            Err(e) => self.fail(errors::ErrorCode::RuntimeError, e.to_string()),
        }
    }

    fn drop(&mut self, graph: Resource<Graph>) -> Result<()> {
        self.table.delete(graph)?;
        Ok(())
    }
}

impl inference::Host for Imports {}

impl inference::HostGraphExecutionContext for Imports {
    fn compute(
        &mut self,
        context: Resource<Context>,
        inputs: Vec<(String, Resource<Tensor>)>,
    ) -> Result<std::result::Result<Vec<(String, Resource<Tensor>)>, Resource<NnError>>> {
        // The handles are the callee's now: without another holder, tract may compute in place.
        let mut given = Vec::with_capacity(inputs.len());
        for (name, tensor) in inputs {
            given.push((name, self.table.delete(tensor)?));
        }
        let stop = self.stop.clone();
        match self.table.get_mut(&context)?.compute(given, &stop) {
            Ok(outputs) => {
                let mut handles = Vec::with_capacity(outputs.len());
                for (name, tensor) in outputs {
                    handles.push((name, self.table.push(tensor)?));
                }
                Ok(Ok(handles))
            }
            // Not an error to look at: the caller wants the segment to end.
            Err(ComputeError::Stopped) => bail!("stopped"),
            Err(e @ ComputeError::Input(_)) => self.fail(errors::ErrorCode::InvalidArgument, e.to_string()),
            Err(e @ ComputeError::Failed(_)) => self.fail(errors::ErrorCode::RuntimeError, e.to_string()),
        }
    }

    fn drop(&mut self, context: Resource<Context>) -> Result<()> {
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
        Ok(self.table.push(tensor)?)
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
        self.table.delete(tensor)?;
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
