//! A segment of your own: copy this folder and change `adjust`. How it becomes part of a bundle: docs/authors.md.
//!
//! It does something to the elements that come in, and has the graph in its component do the rest. Here: pixels that
//! are not between 0 and 1, as broken cameras and wrong decoders give them, are put there, so that the network sees
//! nothing that it was not trained on. Whatever is in range already is handed on without a copy.
#![no_std]

extern crate alloc;

use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;

wit_bindgen::generate!({ world: "segment", path: "../../wit", generate_all });

use exports::edgent::segment::layers::{Guest, NamedTensor};
use wasi::nn::errors::Error;
use wasi::nn::graph::load_by_name;
use wasi::nn::inference::GraphExecutionContext;
use wasi::nn::tensor::{Tensor, TensorType};

/// What the network was trained on.
const LOWEST: f32 = 0.0;
const HIGHEST: f32 = 1.0;

/// Changes the elements in place; says whether it changed any.
fn adjust(elements: &mut [u8]) -> bool {
    let mut changed = false;
    for element in elements.chunks_exact_mut(4) {
        let value = f32::from_le_bytes([element[0], element[1], element[2], element[3]]);
        // Written so that what is no number becomes the lowest, too.
        let fitting = if value > HIGHEST {
            HIGHEST
        } else if value >= LOWEST {
            value
        } else {
            LOWEST
        };
        if fitting.to_bits() != value.to_bits() {
            element.copy_from_slice(&fitting.to_le_bytes());
            changed = true;
        }
    }
    changed
}

fn adjusted((name, tensor): NamedTensor) -> NamedTensor {
    if tensor.ty() != TensorType::Fp32 {
        return (name, tensor);
    }
    let mut elements = tensor.data();
    if !adjust(&mut elements) {
        return (name, tensor);
    }
    let changed = Tensor::new(&tensor.dimensions(), TensorType::Fp32, &elements);
    (name, changed)
}

// From here on it is what every segment does.

#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    core::arch::wasm32::unreachable()
}

/// The context that `prepare` made. A component's instance is entered by one call at a time.
struct Prepared(RefCell<Option<GraphExecutionContext>>);
// SAFETY: this target has no threads.
unsafe impl Sync for Prepared {}
static PREPARED: Prepared = Prepared(RefCell::new(None));

struct Segment;

impl Guest for Segment {
    fn prepare() -> Result<(), String> {
        let context = load_by_name("self").and_then(|graph| graph.init_execution_context()).map_err(text)?;
        *PREPARED.0.borrow_mut() = Some(context);
        Ok(())
    }

    fn run(inputs: Vec<NamedTensor>) -> Result<Vec<NamedTensor>, String> {
        let prepared = PREPARED.0.borrow();
        let context = prepared.as_ref().ok_or("run was called before prepare")?;
        context.compute(inputs.into_iter().map(adjusted).collect()).map_err(text)
    }
}

fn text(error: Error) -> String {
    error.data()
}

export!(Segment);
