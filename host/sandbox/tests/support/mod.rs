//! Guests, graphs and tensors that the tests share.
#![allow(dead_code, clippy::unwrap_used)]

use edgent_nn::{ElementType, Fact, Graph, Stop, Tensor};
use edgent_sandbox::{Code, Limits, Segment, SegmentError};

pub const STANDARD: &[u8] = include_bytes!("../../../../guest-layers/prebuilt/segment.wasm");
pub const HOSTILE: &[u8] = include_bytes!("../../../../guest-layers/prebuilt/hostile.wasm");

/// A segment that should give its input back. Its graph's input has the segment's name: that is what
/// tells the hostile guest how to behave.
pub fn segment(code: &Code, name: &str, bytes: usize, limits: Limits) -> Segment {
    Segment::new(name, code, graph(name, bytes), limits).unwrap()
}

pub fn graph(input: &str, bytes: usize) -> Graph {
    Graph::identity(input, &Fact::new(ElementType::U8, &[bytes]).unwrap()).unwrap()
}

pub fn tensor(bytes: &[u8]) -> Tensor {
    Tensor::from_bytes(ElementType::U8, &[bytes.len()], bytes).unwrap()
}

/// Runs a segment that takes one tensor and gives one.
pub fn run(segment: &Segment, input: Tensor, stop: &Stop) -> Result<Tensor, SegmentError> {
    segment.run(vec![input], stop).map(|mut outputs| outputs.remove(0))
}
