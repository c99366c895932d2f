//! Runs segments: WebAssembly components that see nothing of the host but `wasi:nn`.
//!
//! This is the only crate that names wasmtime. An [`Engine`] compiles a guest's code once, however
//! many segments share it; a [`Segment`] is that code with a graph of its own and runs one
//! activation at a time on each of a few instances. Tensors are handles (`edgent_nn::Tensor`): a call
//! costs the same whatever their size.
//!
//! That is the native tier, where the host does the arithmetic. In the portable one the guest does it
//! ([`Work::InGuest`]): it gets its graph as bytes, of which the host reads none, and copies tensors into its memory.
//!
//! What a guest can do is bounded by [`Limits`] and by the caller's `Stop`; whatever it does wrong is
//! a [`SegmentError`] with its name in it, and its instance is thrown away.
#![deny(unsafe_code)] // But for one call: kept.rs.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bindings;
mod clock;
mod engine;
mod imports;
mod kept;
mod limits;
mod segment;

pub use engine::{CODE_BYTES_MAX, Code, Engine, Purpose, SandboxError};
pub use limits::Limits;
pub use segment::{Fault, OwnGraph, Segment, SegmentError, Work};
