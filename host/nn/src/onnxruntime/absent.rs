//! In place of onnxruntime, in a program that was built without it: there is none.

use crate::backend::BackendError;
use crate::context::{ComputeError, Stop};
use crate::{Port, Tensor};
use std::path::Path;

/// onnxruntime, loaded into this process; which cannot be here.
#[derive(Clone, Debug)]
pub enum Onnxruntime {}

impl Onnxruntime {
    /// Says how to build a program that has it.
    pub fn open(_library: &Path) -> Result<Self, BackendError> {
        Err(BackendError::NotBuilt)
    }

    pub(crate) fn session(&self, _graph: &[u8], _inputs: &[Port], _outputs: &[Port]) -> Result<Session, String> {
        match *self {}
    }
}

/// A graph that onnxruntime has read.
pub(crate) enum Session {}

impl Session {
    pub(crate) fn run(&self, _inputs: &[Tensor], _outputs: &[Port], _stop: &Stop) -> Result<Vec<Tensor>, ComputeError> {
        match *self {}
    }
}
