//! What an inference request says, in whatever form it came: fitted to its model, or refused with words.
//!
//! Pure. `json` and `messages` read a request from its body and write what it is answered; what they have in common is here.

use super::limits::{DEADLINE_MAX_MS, ID_BYTES_MAX, TENSORS_MAX};
use bytes::Bytes;
use edgent_nn::{ElementType, Fact};
use serde_json::{Map, Value};
use std::fmt;

/// A request that fits its model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Request {
    pub(super) id: Option<String>,
    /// The elements of each of the model's inputs, in the model's order.
    pub(super) inputs: Vec<Bytes>,
    /// What is to be answered, in this order; none: all that the model gives.
    pub(super) outputs: Option<Vec<Wanted>>,
    /// How outputs come about which nothing else is said.
    pub(super) binary_output: bool,
    pub(super) wishes: Wishes,
}

/// What a model takes and gives, in its order.
#[derive(Clone, Debug)]
pub(super) struct Signature {
    pub(super) inputs: Vec<Port>,
    pub(super) outputs: Vec<Port>,
}

/// What goes into a model or comes out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) fact: Fact,
}

/// An output, as it is given.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Output {
    pub(super) port: Port,
    pub(super) elements: Bytes,
}

/// Why a request's body is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(pub(super) String);

/// A request's inputs, as they are found in it.
pub(super) struct Inputs<'a> {
    ports: &'a [Port],
    found: Vec<Option<Bytes>>,
}

impl<'a> Inputs<'a> {
    pub(super) fn new(ports: &'a [Port]) -> Self {
        Self { ports, found: vec![None; ports.len()] }
    }

    /// Which of the model's inputs a tensor is, if it is as that one must be.
    pub(super) fn find<D>(&self, name: &str, type_name: &str, shape: &[D]) -> Result<(usize, &'a Fact), Malformed>
    where
        D: Copy + fmt::Debug + TryInto<usize>,
    {
        let ports = self.ports;
        let at = ports.iter().position(|port| port.name == *name);
        let at = at.ok_or_else(|| Malformed(format!("the model has no input '{name}'; it takes {}", names(ports))))?;
        let fact = &ports[at].fact;
        let is_same_shape = shape.iter().map(|dim| (*dim).try_into().ok()).eq(fact.dims.iter().map(|dim| Some(*dim)));
        if type_name != datatype(fact.element_type) || !is_same_shape {
            let wanted = format!("{}{:?}", datatype(fact.element_type), fact.dims);
            return bad(format!("input '{name}' must be {wanted}, not {type_name}{shape:?}"));
        }
        Ok((at, fact))
    }

    /// Takes the elements of one.
    pub(super) fn put(&mut self, at: usize, elements: Bytes) -> Result<(), Malformed> {
        match self.found[at].replace(elements) {
            None => Ok(()),
            Some(_) => bad(format!("input '{}': it is given twice", self.ports[at].name)),
        }
    }

    /// All of them, in the model's order.
    pub(super) fn whole(self) -> Result<Vec<Bytes>, Malformed> {
        let named = self.found.into_iter().zip(self.ports);
        named.map(|(found, port)| found.ok_or_else(|| Malformed(format!("input '{}' is missing", port.name)))).collect()
    }
}

/// An output that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) name: String,
    /// None: as the request says for all.
    pub(super) binary: Option<bool>,
}

impl Wanted {
    pub(super) fn new(name: String, parameters: &Map<String, Value>, given: &[Port]) -> Result<Self, Malformed> {
        if !given.iter().any(|port| port.name == name) {
            return bad(format!("the model has no output '{name}'; it gives {}", names(given)));
        }
        if let Some(other) = ["classification", "shared_memory_region"].iter().find(|p| parameters.contains_key(**p)) {
            return bad(format!("output '{name}': '{other}' is not done here; take the whole tensor"));
        }
        let binary = flag(parameters, "binary_data").map_err(|e| Malformed(format!("output '{name}': {e}")))?;
        Ok(Self { name, binary })
    }
}

/// What a request's parameters ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Wishes {
    /// None: the host's own.
    pub(super) deadline_ms: Option<f64>,
    /// The lowest measured accuracy of an exit that may answer.
    pub(super) accuracy_floor: Option<f64>,
}

impl Wishes {
    pub(super) fn new(parameters: &Map<String, Value>) -> Result<Self, Malformed> {
        Ok(Self {
            deadline_ms: number(parameters, "deadline_ms", 0.0, DEADLINE_MAX_MS)?,
            accuracy_floor: number(parameters, "accuracy_floor", 0.0, 1.0)?,
        })
    }
}

/// Whether a request names no more than it may.
pub(super) fn check_counts(inputs: usize, outputs: usize, id: &str) -> Result<(), Malformed> {
    if inputs > TENSORS_MAX || outputs > TENSORS_MAX {
        return bad(format!("more than {TENSORS_MAX} tensors are named"));
    }
    if id.len() > ID_BYTES_MAX {
        return bad(format!("the id is longer than {ID_BYTES_MAX} bytes"));
    }
    Ok(())
}

/// Chooses the outputs that are wanted, and how each is written.
pub(super) fn select(request: &Request, outputs: Vec<Output>) -> Vec<(Output, bool)> {
    let Some(wanted) = &request.outputs else {
        return outputs.into_iter().map(|output| (output, request.binary_output)).collect();
    };
    let find = |Wanted { name, binary }: &Wanted| {
        let found = outputs.iter().find(|output| output.port.name == *name)?;
        Some((found.clone(), binary.unwrap_or(request.binary_output)))
    };
    wanted.iter().filter_map(find).collect()
}

/// What the protocol calls a type of elements.
pub(super) const fn datatype(element_type: ElementType) -> &'static str {
    match element_type {
        ElementType::F16 => "FP16",
        ElementType::F32 => "FP32",
        ElementType::F64 => "FP64",
        ElementType::U8 => "UINT8",
        ElementType::I32 => "INT32",
        ElementType::I64 => "INT64",
    }
}

pub(super) fn flag(parameters: &Map<String, Value>, name: &str) -> Result<Option<bool>, Malformed> {
    let Some(value) = parameters.get(name) else { return Ok(None) };
    value.as_bool().map(Some).ok_or_else(|| Malformed(format!("parameter '{name}' must be true or false, not {value}")))
}

fn number(parameters: &Map<String, Value>, name: &str, least: f64, most: f64) -> Result<Option<f64>, Malformed> {
    let Some(value) = parameters.get(name) else { return Ok(None) };
    let number = value.as_f64().filter(|number| (least..=most).contains(number));
    let wrong = || Malformed(format!("parameter '{name}' must be a number between {least} and {most}, not {value}"));
    number.map(Some).ok_or_else(wrong)
}

fn names(ports: &[Port]) -> String {
    ports.iter().map(|port| port.name.as_str()).collect::<Vec<_>>().join(", ")
}

pub(super) fn bad<T>(why: String) -> Result<T, Malformed> {
    Err(Malformed(why))
}
