//! A guest that misbehaves on demand, for the sandbox's tests: the name of its input says how.
#![no_std]

extern crate alloc;

use alloc::string::String;
use alloc::vec::Vec;
use core::hint::black_box;

wit_bindgen::generate!({ world: "segment", path: "../../wit", generate_all });

use exports::edgent::segment::layers::{Guest, NamedTensor};
use wasi::nn::graph::{ExecutionTarget, GraphEncoding, load, load_by_name};
use wasi::nn::tensor::{Tensor, TensorType};

#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    core::arch::wasm32::unreachable()
}

struct Hostile;

impl Guest for Hostile {
    fn prepare() -> Result<(), String> {
        Ok(())
    }

    fn run(mut inputs: Vec<NamedTensor>) -> Result<Vec<NamedTensor>, String> {
        let byte = || Tensor::new(&[1], TensorType::U8, &[0]);
        match inputs.first().map(|(name, _)| name.as_str()).unwrap_or("") {
            "trap" => core::arch::wasm32::unreachable(),
            "spin" => loop {
                black_box(());
            },
            "memory" => {
                while core::arch::wasm32::memory_grow::<0>(16) != usize::MAX {}
                core::arch::wasm32::unreachable()
            }
            "recurse" => return Err(alloc::format!("{}", recurse(black_box(1)))),
            "nothing" => inputs.clear(),
            "extra" => inputs.push((String::from("extra"), byte())),
            "other-shape" => inputs[0].1 = byte(),
            "handles" => {
                let mut kept = Vec::new();
                loop {
                    kept.push(byte());
                }
            }
            "bytes" => {
                let data = alloc::vec![0; 1 << 20];
                let mut kept = Vec::new();
                loop {
                    kept.push(Tensor::new(&[1 << 20], TensorType::U8, &data));
                }
            }
            "read" => loop {
                black_box(inputs[0].1.data());
            },
            "lying-tensor" => drop(Tensor::new(&[u32::MAX, u32::MAX], TensorType::Fp32, &[0])),
            "load" => {
                let error = load(&[Vec::from([0; 16])], GraphEncoding::Onnx, ExecutionTarget::Cpu).err();
                return Err(error.map_or_else(|| String::from("loaded"), |e| e.data()));
            }
            "load-other" => {
                let error = load_by_name("../../etc/passwd").err();
                return Err(error.map_or_else(|| String::from("loaded"), |e| e.data()));
            }
            "long-error" => return Err("x".repeat(1 << 20)),
            _ => {}
        }
        Ok(inputs)
    }
}

#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    if depth == 0 { 0 } else { recurse(depth + 1) + frame[(depth % 64) as usize] }
}

export!(Hostile);
