//! Memory that a thread uses again. To ask for it anew, and to have it filled with zeros, costs more than many an operator.
//!
//! What is kept is written all over before anybody reads it: it tells a request nothing of another.

use super::sixteen::Places;
use std::cell::RefCell;
use tract_nnef::internal::*;

/// What a thread keeps for its next operator, in all.
const KEPT_BYTES_MAX: usize = 32 << 20;
/// Tensors that it keeps: one of each size that networks of some depth have.
const KEPT_TENSORS_MAX: usize = 24;

#[derive(Default)]
pub(super) struct Scratch {
    /// The channels of an image, with what is around it.
    pub(super) staged: Vec<f32>,
    /// The same of one channel alone, where one is done after another.
    pub(super) channel: Vec<f32>,
    pub(super) panels: Vec<f32>,
    /// Where a convolution's windows are, if it needs no panels.
    pub(super) places: Vec<Places>,
    /// Where each piece of a panel belongs, and where it comes from.
    pub(super) pieces: Vec<(usize, usize)>,
    tensors: Vec<Tensor>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Scratch {
    /// This thread's; it is to be given back.
    pub(super) fn take() -> Self {
        SCRATCH.take()
    }

    /// Has something done with that of the thread that began, or else with this thread's own.
    pub(super) fn with(handed: Option<&mut Self>, work: impl FnOnce(&mut Self)) {
        match handed {
            Some(scratch) => work(scratch),
            None => {
                let mut scratch = Self::take();
                work(&mut scratch);
                scratch.give_back();
            }
        }
    }

    pub(super) fn give_back(mut self) {
        let bytes = |scratch: &Self| {
            let floats = scratch.staged.capacity() + scratch.channel.capacity() + scratch.panels.capacity();
            let tensors: usize = scratch.tensors.iter().map(Tensor::len).sum();
            (floats + tensors) * size_of::<f32>()
        };
        while bytes(&self) > KEPT_BYTES_MAX && !self.tensors.is_empty() {
            self.tensors.remove(0);
        }
        if bytes(&self) <= KEPT_BYTES_MAX {
            SCRATCH.set(self);
        }
    }

    /// A tensor of floats, with anything in it.
    pub(super) fn tensor(&mut self, dims: &[usize]) -> TractResult<Tensor> {
        let elements = dims.iter().product::<usize>();
        match self.tensors.iter().rposition(|tensor| tensor.len() == elements) {
            Some(at) => {
                let mut tensor = self.tensors.remove(at);
                tensor.set_shape(dims)?;
                Ok(tensor)
            }
            None => Tensor::zero::<f32>(dims),
        }
    }

    /// Keeps a tensor that nobody reads any more.
    pub(super) fn keep(&mut self, value: TValue) {
        let Ok(tensor) = Arc::try_unwrap(value.into_arc_tensor()) else { return };
        if tensor.datum_type() == f32::datum_type() && tensor.is_plain() {
            if self.tensors.len() == KEPT_TENSORS_MAX {
                self.tensors.remove(0);
            }
            self.tensors.push(tensor);
        }
    }
}
