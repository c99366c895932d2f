//! A guest that misbehaves on demand, for the sandbox's tests: the name of its graph's input says how.
//! Names that start with `prepare-` take effect in `prepare`, the others in `run`; any other name makes
//! it hand its input back.
#![no_std]

extern crate alloc;

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::RefCell;
use core::hint::black_box;

wit_bindgen::generate!({ world: "segment", path: "../../wit", generate_all });

use exports::edgent::segment::layers::{Guest, NamedTensor};
use wasi::nn::errors::Error;
use wasi::nn::graph::{ExecutionTarget, Graph, GraphEncoding, load, load_by_name};
use wasi::nn::tensor::{Tensor, TensorType};

#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    core::arch::wasm32::unreachable()
}

/// What is kept from call to call, in order to run out of something.
struct Hoard(RefCell<Vec<Tensor>>);
// SAFETY: this target has no threads.
unsafe impl Sync for Hoard {}
static HOARD: Hoard = Hoard(RefCell::new(Vec::new()));

struct Hostile;

impl Guest for Hostile {
    fn prepare() -> Result<(), String> {
        // Nobody tells a guest the names of its graph's inputs, but an error message does.
        let context = own_graph().init_execution_context().map_err(|e| e.data())?;
        let refused = context.compute(Vec::from([(String::from("?"), byte())])).map_err(|e| e.data());
        match refused.err().as_deref().and_then(|said| said.split('\'').nth(1)) {
            Some("prepare-trap") => core::arch::wasm32::unreachable(),
            Some("prepare-spin") => spin(),
            Some("prepare-error") => Err(String::from("not today")),
            _ => Ok(()),
        }
    }

    fn run(mut inputs: Vec<NamedTensor>) -> Result<Vec<NamedTensor>, String> {
        match inputs.first().map(|(name, _)| name.as_str()).unwrap_or("") {
            "trap" => core::arch::wasm32::unreachable(),
            "panic" => panic!("{}", inputs.len()),
            "spin" => spin(),
            "memory" => {
                while core::arch::wasm32::memory_grow::<0>(16) != usize::MAX {}
                core::arch::wasm32::unreachable()
            }
            "recurse" => return Err(recurse(1).to_string()),
            "overflow" => return Err(overflow(1).to_string()),
            "nothing" => inputs.clear(),
            "extra" => inputs.push((String::from("extra"), byte())),
            "other-shape" => inputs[0].1 = byte(),
            "other-type" => {
                let [bytes] = inputs[0].1.dimensions()[..] else { core::arch::wasm32::unreachable() };
                inputs[0].1 = Tensor::new(&[bytes / 4], TensorType::I32, &inputs[0].1.data());
            }
            "handles" => forever(byte),
            "graphs" => forever(own_graph),
            "contexts" => forever(|| own_graph().init_execution_context()),
            "errors" => forever(|| load_by_name("other")),
            "bytes" => {
                let data = alloc::vec![0; 1 << 20];
                forever(|| Tensor::new(&[1 << 20], TensorType::U8, &data))
            }
            "read" => loop {
                black_box(inputs[0].1.data());
            },
            "compute" => {
                // The graph gives the input back, so this can go on without end.
                let context = own_graph().init_execution_context().map_err(|e| e.data())?;
                loop {
                    inputs = context.compute(inputs).map_err(|e| e.data())?;
                }
            }
            "hoard" => {
                let data = alloc::vec![0; 1 << 20];
                HOARD.0.borrow_mut().push(Tensor::new(&[1 << 20], TensorType::U8, &data));
            }
            "lying-tensor" => drop(Tensor::new(&[u32::MAX, u32::MAX], TensorType::Fp32, &[0])),
            "short-tensor" => drop(Tensor::new(&[2], TensorType::Fp32, &[0])),
            "deep-tensor" => drop(Tensor::new(&alloc::vec![1; 1 << 16], TensorType::U8, &[0])),
            "wrong-name" => {
                let context = own_graph().init_execution_context().map_err(|e| e.data())?;
                inputs[0].0 = "x".repeat(1 << 20);
                return context.compute(inputs).map_err(|e| e.data());
            }
            "load" => {
                let error = load(&[Vec::from([0; 16])], GraphEncoding::Onnx, ExecutionTarget::Cpu).err();
                return Err(error.map_or_else(|| String::from("loaded"), coded));
            }
            "load-other" => {
                let error = load_by_name("../../etc/passwd").err();
                return Err(error.map_or_else(|| String::from("loaded"), coded));
            }
            "long-error" => return Err("x".repeat(1 << 20)),
            "rude-error" => return Err(String::from("\x1b[2J\u{202e}\ngone")),
            _ => {}
        }
        Ok(inputs)
    }
}

fn byte() -> Tensor {
    Tensor::new(&[1], TensorType::U8, &[0])
}

fn own_graph() -> Graph {
    load_by_name("self").unwrap_or_else(|_| core::arch::wasm32::unreachable())
}

fn coded(error: Error) -> String {
    alloc::format!("{:?}: {}", error.code(), error.data())
}

fn spin() -> ! {
    loop {
        black_box(());
    }
}

fn forever<T>(make: impl Fn() -> T) -> ! {
    let mut kept = Vec::new();
    loop {
        kept.push(make());
    }
}

/// Uses up the engine's stack long before its own in linear memory.
fn recurse(depth: u64) -> u64 {
    if black_box(depth) == 0 { 0 } else { recurse(depth + 1) + 1 }
}

/// Uses up its own stack first, and writes below it.
fn overflow(depth: u64) -> u64 {
    let frame = black_box([depth; 8 << 10]);
    if depth == 0 { 0 } else { overflow(depth + 1) + frame[(depth % 64) as usize] }
}

export!(Hostile);
