//! Tensors, graphs and execution contexts in the sense of `wasi:nn`, on tract; and the import and
//! cutting of ONNX models.
//!
//! This is the only crate that names tract, and none of tract's types appear in its public API.
//! The types climb the ladder of `wasi:nn`: a [`Graph`] is loaded from a segment's bytes, a
//! [`Context`] is one caller's execution state, and [`Tensor`]s go in and out of it as handles.
//! Building a bundle goes the other way, by stages: [`Imported`] (an ONNX file as one decluttered
//! network) → [`Cut`] (its tree of segments) → the bytes of each segment, read back and compared.
//!
//! tract is trusted code that parses untrusted files. Its panics are caught here and become
//! errors; limits on sizes are checked before memory is asked for.
#![deny(unsafe_code)] // But for vector.rs and the kernels of fast/sixteen.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod backend;
mod branches;
mod context;
mod cut;
mod dominated;
mod fast;
mod graph;
mod guard;
mod import;
mod joined;
mod layer;
mod lrn;
mod nested;
mod onnx;
#[cfg_attr(not(feature = "onnxruntime"), path = "onnxruntime/absent.rs")]
mod onnxruntime;
mod operators;
mod passes;
mod published;
mod survey;
pub mod synthetic;
mod tensor;
mod threads;
mod timing;
mod vector;
mod worth;
mod written;

pub use backend::{Backend, BackendError, Choice};
pub use context::{ComputeError, Context, Stop};
pub use cut::{Cut, CutError, Exit, SegmentGraph};
pub use graph::{Graph, GraphError, GraphFormat, Port, WeakGraph, graphs_read};
pub use import::{ImportError, Imported};
pub use joined::Part;
pub use layer::{Cost, Layer, LayerKind};
pub use onnx::{MODEL_BYTES_MAX, Pins};
pub use onnxruntime::Onnxruntime;
pub use passes::Pass;
pub use published::Published;
pub use survey::{Survey, operators};
pub use tensor::{ElementType, Fact, TENSOR_BYTES_MAX, Tensor, TensorError, bytes_copied, count_copied};
pub use threads::{AtWork, THREADS_MAX, at_work, start_helpers, threads_max, threads_or_max};
pub use timing::Timed;
pub use worth::Threads;
pub use written::{Difference, example};
