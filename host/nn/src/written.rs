//! A segment's graph, written down so that another host can read it.
//!
//! NNEF is tract's own way to write what it has decluttered, and the first choice. It has no words for some
//! operators; those that are simple get words here. For the rest there is the way back to where the network came
//! from: the part of the ONNX file that does the same. Either way, what was written is read back and has to give the
//! same values for the same inputs: a network that does not survive being written is refused, not served wrong.

use crate::graph::nnef;
use crate::guard::guarded;
use crate::onnx::OnnxFile;
use crate::{ElementType, Fact, Graph, GraphFormat, Port, Tensor, TensorError, synthetic};
use tract_onnx::prelude::TypedModel;

/// How far apart two outputs may be that are meant to be the same, as a share of the largest value: operators are
/// put together in another order after reading, and round otherwise.
pub(crate) const ROUNDING: f64 = 1e-4;

/// Inputs on which what was written is compared with what was meant.
const INPUTS_TRIED: u64 = 3;

/// A graph as bytes.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) graph: Vec<u8>,
    pub(crate) format: GraphFormat,
}

impl Written {
    /// As NNEF.
    pub(crate) fn nnef(part: &TypedModel) -> Result<Self, String> {
        Self { graph: write(part)?, format: GraphFormat::Nnef }.checked(part)
    }

    /// As a part of the file that it came from.
    pub(crate) fn onnx(part: &TypedModel, file: &OnnxFile, takes: &[Port], gives: &[Port]) -> Result<Self, String> {
        let graph = file.part(takes, gives).ok_or("no part of the file is the same")?;
        Self { graph, format: GraphFormat::Onnx }.checked(part)
    }

    fn checked(self, part: &TypedModel) -> Result<Self, String> {
        let read = Graph::load(&self.graph, self.format).map_err(|e| e.to_string())?;
        let meant = Graph::unoptimised(part.clone()).map_err(|e| e.to_string())?;
        let facts = |ports: &[Port]| ports.iter().map(|port| port.fact.clone()).collect::<Vec<_>>();
        if facts(read.inputs()) != facts(meant.inputs()) || facts(read.outputs()) != facts(meant.outputs()) {
            return Err(format!(
                "it was written as {:?} -> {:?} but is read back as {:?} -> {:?}",
                meant.inputs(),
                meant.outputs(),
                read.inputs(),
                read.outputs()
            ));
        }
        let mut could_not_run = None;
        let mut compared = false;
        for seed in 1..=INPUTS_TRIED {
            let inputs = meant.inputs().iter().map(|port| example(&port.fact, seed));
            let inputs: Vec<Tensor> = inputs.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
            // Not every network takes whatever it is given: an index may be out of range.
            let expected = match meant.run_once(inputs.clone()) {
                Ok(expected) => expected,
                Err(why) => {
                    could_not_run = Some(why);
                    continue;
                }
            };
            compared = true;
            let outputs = read.run_once(inputs).map_err(|e| format!("it cannot be run after reading: {e}"))?;
            for ((expected, output), port) in expected.iter().zip(&outputs).zip(meant.outputs()) {
                let same = |apart: Difference| apart.most <= ROUNDING * apart.greatest;
                if !Difference::of(output, expected).is_some_and(same) {
                    return Err(format!("it gives another '{}' after it was written and read back", port.name));
                }
            }
        }
        match could_not_run.filter(|_| !compared) {
            Some(why) => Err(format!("it could not be run on any input that was tried: {why}")),
            None => Ok(self),
        }
    }
}

/// The bytes of NNEF, unchecked.
pub(crate) fn write(part: &TypedModel) -> Result<Vec<u8>, String> {
    let deterministic = true;
    guarded(|| nnef().write_to_tar_with_config(part, Vec::new(), false, deterministic))
}

/// An input of that kind: noise; or zeros and ones, all ones for every third seed, by which anything can be divided.
pub fn example(fact: &Fact, seed: u64) -> Result<Tensor, TensorError> {
    if fact.element_type == ElementType::F32 {
        return synthetic::noise(fact, seed);
    }
    let digit = |at: usize| if seed.is_multiple_of(3) { 1 } else { (at as u64 * 7_919 + seed) % 251 % 2 };
    let bytes: Vec<u8> = match fact.element_type {
        ElementType::F16 => (0..fact.elements()).flat_map(|at| [0, if digit(at) == 1 { 0x3c } else { 0x34 }]).collect(),
        ElementType::F32 | ElementType::F64 => {
            (0..fact.elements()).flat_map(|at| (digit(at) as f64 - 0.25).to_le_bytes()).collect()
        }
        ElementType::U8 => (0..fact.elements()).map(|at| digit(at) as u8).collect(),
        ElementType::I32 => (0..fact.elements()).flat_map(|at| (digit(at) as i32).to_le_bytes()).collect(),
        ElementType::I64 => (0..fact.elements()).flat_map(|at| (digit(at) as i64).to_le_bytes()).collect(),
    };
    Tensor::from_bytes(fact.element_type, &fact.dims, &bytes)
}

/// How far two tensors of one kind are apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// The largest difference of two elements; NaN if one of them is no finite number and the other is another.
    pub most: f64,
    /// The greatest finite value of the second tensor, whatever its sign.
    pub greatest: f64,
}

impl Difference {
    /// Compares two tensors; none if they differ in type or dimensions.
    pub fn of(a: &Tensor, b: &Tensor) -> Option<Self> {
        if a.fact() != b.fact() {
            return None;
        }
        let (a, b) = (a.to_f64(), b.to_f64());
        let greatest = b.iter().filter(|x| x.is_finite()).fold(0.0_f64, |most, x| most.max(x.abs()));
        let apart = |(a, b): (&f64, &f64)| match () {
            () if a == b || a.is_nan() && b.is_nan() => 0.0,
            () if a.is_finite() && b.is_finite() => (a - b).abs(),
            () => f64::NAN,
        };
        let larger = |most: f64, d: f64| if d.is_nan() || d > most { d } else { most };
        Some(Self { most: a.iter().zip(&b).map(apart).fold(0.0, larger), greatest })
    }
}
