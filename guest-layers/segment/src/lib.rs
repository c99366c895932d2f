//! The guest of every segment that just runs its graph: it loads the graph that its component
//! carries and hands tensors to it. The tensors are handles, so their elements never come here.
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
        context.compute(inputs).map_err(text)
    }
}

fn text(error: Error) -> String {
    error.data()
}

export!(Segment);
