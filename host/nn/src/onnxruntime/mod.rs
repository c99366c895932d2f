//! onnxruntime as a second backend, for graphs that are written as ONNX.
//!
//! It comes from a library that the operator names, and is native code that reads what a publisher wrote: its holes
//! would be this process's. So it is there only where it is asked for, and for publishers that a policy trusts with it.
//!
//! One thread a run, as tract's: requests are what is done side by side here. A session runs one request at a time:
//! `ort` knows of races in onnxruntime where several share one.

#[cfg(test)]
mod tests;
mod watch;

use crate::backend::BackendError;
use crate::context::{ComputeError, Stop};
use crate::guard::guarded;
use crate::{ElementType, Port, Tensor};
use ort::environment::Environment;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{RunOptions, Session as OrtSession, SessionInputValue, SessionOutputs};
use ort::value::{DynValue, PrimitiveTensorElementType, TensorRef};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tract_onnx::prelude::{Datum, TractError};

/// onnxruntime, loaded into this process.
#[derive(Clone)]
pub struct Onnxruntime(Environment);

impl Onnxruntime {
    /// Loads it from its library (libonnxruntime.so). Once for a process: later paths are not looked at.
    pub fn open(library: &Path) -> Result<Self, BackendError> {
        static OPENED: OnceLock<Result<Onnxruntime, String>> = OnceLock::new();
        let open = || {
            let environment = guarded(|| {
                let builder = ort::init_from(library).map_err(TractError::msg)?;
                builder.with_name("edgent").with_telemetry(false).build().map_err(TractError::msg)
            })?;
            watch::start().map_err(|e| format!("a thread did not start: {e}"))?;
            Ok(Self(environment))
        };
        let library = library.to_owned();
        OPENED.get_or_init(open).clone().map_err(|why| BackendError::Library { library, why })
    }

    /// Reads an ONNX file and prepares to run it.
    pub(crate) fn session(&self, graph: &[u8], inputs: &[Port], outputs: &[Port]) -> Result<Session, String> {
        if let Some(port) = inputs.iter().chain(outputs).find(|port| port.fact.element_type == ElementType::F16) {
            return Err(format!("'{}' is of f16, which is left to tract", port.name));
        }
        let session = guarded(|| self.build(graph).map_err(TractError::msg))?;
        let (takes, gives) = (session.inputs().len(), session.outputs().len());
        if (takes, gives) != (inputs.len(), outputs.len()) {
            return Err(format!("onnxruntime reads it as a graph with {takes} inputs and {gives} outputs"));
        }
        Ok(Session(Mutex::new(session)))
    }

    fn build(&self, graph: &[u8]) -> Result<OrtSession, ort::Error> {
        let mut builder = OrtSession::builder(&self.0)?
            .with_optimization_level(GraphOptimizationLevel::Level3)?
            .with_intra_threads(1)?
            .with_inter_threads(1)?;
        builder.commit_from_memory(graph)
    }
}

impl fmt::Debug for Onnxruntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Onnxruntime")
    }
}

/// A graph that onnxruntime has read.
pub(crate) struct Session(Mutex<OrtSession>);

impl Session {
    /// Runs it on tensors that fit its inputs. `stop` is looked at every few milliseconds; onnxruntime ends between two
    /// operators then.
    pub(crate) fn run(&self, inputs: &[Tensor], outputs: &[Port], stop: &Stop) -> Result<Vec<Tensor>, ComputeError> {
        let failed = |e: ort::Error| match stop.reached() {
            true => ComputeError::Stopped,
            false => ComputeError::Failed(e.to_string()),
        };
        let options = Arc::new(RunOptions::new().map_err(failed)?);
        let mut session = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if stop.reached() {
            return Err(ComputeError::Stopped);
        }
        let _watched = watch::over(stop, &options);
        let inputs = inputs.iter().map(view).collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let given = session.run_with_options(inputs.as_slice(), &*options).map_err(failed)?;
        outputs.iter().enumerate().map(|(at, port)| output(&given, at, port)).collect()
    }
}

/// A tensor's elements where they are.
fn view(tensor: &Tensor) -> Result<SessionInputValue<'_>, ort::Error> {
    fn of<T: Datum + PrimitiveTensorElementType + fmt::Debug + Clone + 'static>(
        tensor: &Tensor,
    ) -> Result<SessionInputValue<'_>, ort::Error> {
        let elements = tensor.elements::<T>().unwrap_or_default();
        Ok(TensorRef::from_array_view((tensor.dims().to_vec(), elements))?.into())
    }
    match tensor.element_type() {
        ElementType::F32 => of::<f32>(tensor),
        ElementType::F64 => of::<f64>(tensor),
        ElementType::U8 => of::<u8>(tensor),
        ElementType::I32 => of::<i32>(tensor),
        ElementType::I64 => of::<i64>(tensor),
        ElementType::F16 => Err(ort::Error::new("tensors of f16 are left to tract")),
    }
}

/// One of the values that a run gave, copied out of onnxruntime's memory, if it is what the graph declares.
fn output(given: &SessionOutputs<'_>, at: usize, port: &Port) -> Result<Tensor, ComputeError> {
    fn of<T: Datum + PrimitiveTensorElementType + Copy>(value: &DynValue, port: &Port) -> Result<Tensor, String> {
        let (shape, elements) = value.try_extract_tensor::<T>().map_err(|e| e.to_string())?;
        let dims: Vec<usize> = shape.iter().map(|dim| usize::try_from(*dim).unwrap_or(usize::MAX)).collect();
        if dims != port.fact.dims {
            return Err(format!("it is of {dims:?} instead of {:?}", port.fact.dims));
        }
        Tensor::from_elements(&dims, elements).map_err(|e| e.to_string())
    }
    let wrong = |why: String| ComputeError::Failed(format!("output '{}': {why}", port.name));
    let value = given.values().nth(at).ok_or_else(|| wrong("onnxruntime did not give it".to_owned()))?;
    let value: &DynValue = &value;
    match port.fact.element_type {
        ElementType::F32 => of::<f32>(value, port),
        ElementType::F64 => of::<f64>(value, port),
        ElementType::U8 => of::<u8>(value, port),
        ElementType::I32 => of::<i32>(value, port),
        ElementType::I64 => of::<i64>(value, port),
        ElementType::F16 => Err("f16 is left to tract".to_owned()),
    }
    .map_err(wrong)
}
