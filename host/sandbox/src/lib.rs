//! Runs segments: WebAssembly components that see nothing of the host but `wasi:nn`.
//!
//! This is the only crate that names wasmtime. An [`Engine`] compiles a guest's code once, however
//! many segments share it; a [`Segment`] is that code with a graph of its own and runs one
//! activation at a time on each of a few instances. Tensors are handles (`edgent_nn::Tensor`): a call
//! costs the same whatever their size.
//!
//! What a guest can do is bounded by [`Limits`] and by the caller's `Stop`; whatever it does wrong is
//! a [`SegmentError`] with its name in it, and its instance is thrown away.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bindings;
mod clock;
mod engine;
mod imports;
mod limits;
mod segment;

pub use engine::{CODE_BYTES_MAX, Code, Engine, SandboxError};
pub use limits::Limits;
pub use segment::{Fault, Segment, SegmentError};
