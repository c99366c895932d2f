//! Inference requests and responses of the Open Inference Protocol over REST: JSON, with tensors in it or as bytes behind it.
//!
//! Pure: bytes and a model's signature in, tensors out. What a request may take of memory follows from the model: a
//! tensor's elements are read one by one into as many bytes as the model's tensor has, and not one more.

use super::limits::{HEADER_JSON_BYTES_MAX, NESTING_MAX};
use super::tensors::{Inputs, Malformed, Output, Port, Request, Signature, Wanted, Wishes};
use super::tensors::{bad, check_counts, datatype, flag};
use bytes::{BufMut, Bytes, BytesMut};
use edgent_nn::{ElementType, Fact};
use half::f16;
use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::fmt;

#[derive(Deserialize)]
struct Body<'a> {
    id: Option<String>,
    parameters: Option<Map<String, Value>>,
    #[serde(borrow)]
    inputs: Vec<Tensor<'a>>,
    outputs: Option<Vec<OutputTensor>>,
}

#[derive(Deserialize)]
struct Tensor<'a> {
    name: String,
    shape: Vec<u64>,
    datatype: String,
    parameters: Option<Map<String, Value>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct OutputTensor {
    name: String,
    parameters: Option<Map<String, Value>>,
}

/// Reads a request for a model. `json_bytes` of the body are JSON, the rest tensors; none: all is JSON.
pub(super) fn read(body: &Bytes, json_bytes: Option<usize>, model: &Signature) -> Result<Request, Malformed> {
    let split = json_bytes.unwrap_or(body.len());
    if split > body.len() {
        let why = format!("the JSON is said to have {split} bytes, and the body has {}", body.len());
        return Err(Malformed(why));
    }
    if json_bytes.is_some() && split > HEADER_JSON_BYTES_MAX {
        return bad(format!(
            "JSON of {split} bytes before binary tensors is over the limit of {HEADER_JSON_BYTES_MAX}"
        ));
    }
    let json: Body = serde_json::from_slice(&body[..split])
        .map_err(|e| Malformed(format!("the body is no inference request: {e}")))?;
    let outputs_named = json.outputs.as_ref().map_or(0, Vec::len);
    check_counts(json.inputs.len(), outputs_named, json.id.as_deref().unwrap_or_default())?;
    let inputs = read_inputs(&json.inputs, body.slice(split..), json_bytes.is_some(), &model.inputs)?;
    let parameters = json.parameters.unwrap_or_default();
    let wanted = |OutputTensor { name, parameters }: OutputTensor| {
        Wanted::new(name, &parameters.unwrap_or_default(), &model.outputs)
    };
    let outputs = json.outputs.map(|outputs| outputs.into_iter().map(wanted).collect::<Result<_, _>>()).transpose()?;
    Ok(Request {
        id: json.id,
        inputs,
        outputs,
        binary_output: flag(&parameters, "binary_data_output")?.unwrap_or(false),
        wishes: Wishes::new(&parameters)?,
    })
}

fn read_inputs(
    given: &[Tensor<'_>],
    mut behind: Bytes,
    may_be_behind: bool,
    ports: &[Port],
) -> Result<Vec<Bytes>, Malformed> {
    let mut inputs = Inputs::new(ports);
    for tensor in given {
        let name = &tensor.name;
        let (at, fact) = inputs.find(name, &tensor.datatype, &tensor.shape)?;
        let of_input = |why: String| Malformed(format!("input '{name}': {why}"));
        let parameters = tensor.parameters.as_ref();
        let bytes = match (tensor.data, parameters.and_then(|given| given.get("binary_data_size"))) {
            (Some(data), None) => Elements::read(data, fact).map_err(|e| of_input(e.to_string()))?,
            (None, Some(size)) if may_be_behind => {
                let size = size.as_u64().and_then(|size| usize::try_from(size).ok());
                let size = size.ok_or_else(|| of_input("'binary_data_size' is no number of bytes".to_owned()))?;
                if size != fact.bytes() || size > behind.len() {
                    let (wanted, left) = (fact.bytes(), behind.len());
                    let why = format!("{size} bytes of binary data, of {left} that are left; the tensor has {wanted}");
                    return Err(of_input(why));
                }
                behind.split_to(size)
            }
            (None, Some(_)) => return Err(of_input("binary data needs 'Inference-Header-Content-Length'".to_owned())),
            (Some(_), Some(_)) => return Err(of_input("both 'data' and 'binary_data_size' are given".to_owned())),
            (None, None) => return Err(of_input("neither 'data' nor 'binary_data_size' is given".to_owned())),
        };
        inputs.put(at, bytes)?;
    }
    if !behind.is_empty() {
        return bad(format!("{} bytes are left behind the last binary tensor", behind.len()));
    }
    inputs.whole()
}

/// A response's body, and how many of its bytes are JSON if tensors follow.
pub(super) fn write(head: Head<'_>, outputs: &[(Output, bool)]) -> Result<(Bytes, Option<usize>), serde_json::Error> {
    let written = outputs.iter().map(|(output, binary)| {
        let size = output.elements.len();
        Ok(Written {
            name: &output.port.name,
            shape: &output.port.fact.dims,
            datatype: datatype(output.port.fact.element_type),
            parameters: binary.then_some(BinarySize { binary_data_size: size }),
            data: if *binary { None } else { Some(json_elements(output)?) },
        })
    });
    let outputs_json = written.collect::<Result<Vec<_>, serde_json::Error>>()?;
    let json = serde_json::to_vec(&Response { head, outputs: outputs_json })?;
    let behind = outputs.iter().filter(|(_, binary)| *binary).map(|(output, _)| &output.elements);
    let json_bytes = json.len();
    let is_binary = outputs.iter().any(|(_, binary)| *binary);
    let mut body = BytesMut::from(Bytes::from(json));
    behind.for_each(|elements| body.put_slice(elements));
    Ok((body.freeze(), is_binary.then_some(json_bytes)))
}

/// The part of a response that is not its tensors.
#[derive(Serialize)]
pub(super) struct Head<'a> {
    pub(super) model_name: &'a str,
    pub(super) model_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<&'a str>,
    pub(super) parameters: Value,
}

#[derive(Serialize)]
struct Response<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    outputs: Vec<Written<'a>>,
}

#[derive(Serialize)]
struct Written<'a> {
    name: &'a str,
    shape: &'a [usize],
    datatype: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<BinarySize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

#[derive(Serialize)]
struct BinarySize {
    binary_data_size: usize,
}

/// Reads a tensor's `data`, flat or nested, into the bytes of its elements.
struct Elements<'a> {
    bytes: BytesMut,
    fact: &'a Fact,
}

impl<'a> Elements<'a> {
    fn read(data: &RawValue, fact: &'a Fact) -> Result<Bytes, serde_json::Error> {
        let mut elements = Self { bytes: BytesMut::with_capacity(fact.bytes()), fact };
        let mut json = serde_json::Deserializer::from_str(data.get());
        Level { elements: &mut elements, depth: 0 }.deserialize(&mut json)?;
        json.end()?;
        let Self { bytes, fact } = elements;
        if bytes.len() != fact.bytes() {
            let (given, wanted) = (bytes.len() / fact.element_type.bytes(), fact.elements());
            return Err(serde_json::Error::custom(format!("{given} elements are given, the shape has {wanted}")));
        }
        Ok(bytes.freeze())
    }

    fn push<E: serde::de::Error>(&mut self, number: Number) -> Result<(), E> {
        if self.bytes.len() + self.fact.element_type.bytes() > self.fact.bytes() {
            return Err(E::custom(format!("more elements are given than the {} of the shape", self.fact.elements())));
        }
        let name = datatype(self.fact.element_type);
        let whole = || number.whole().ok_or_else(|| E::custom(format!("{number} is no {name}")));
        let outside = |_| E::custom(format!("{number} is no {name}"));
        let too_large = || E::custom(format!("{number} is no {name}"));
        match self.fact.element_type {
            ElementType::F16 => {
                let float = f16::from_f64(number.float());
                self.bytes.put_slice(&float.is_finite().then_some(float).ok_or_else(too_large)?.to_le_bytes());
            }
            ElementType::F32 => {
                let float = number.float() as f32;
                self.bytes.put_f32_le(float.is_finite().then_some(float).ok_or_else(too_large)?);
            }
            ElementType::F64 => self.bytes.put_f64_le(number.float()),
            ElementType::U8 => self.bytes.put_u8(u8::try_from(whole()?).map_err(outside)?),
            ElementType::I32 => self.bytes.put_i32_le(i32::try_from(whole()?).map_err(outside)?),
            ElementType::I64 => self.bytes.put_i64_le(i64::try_from(whole()?).map_err(outside)?),
        }
        Ok(())
    }
}

/// An element as JSON gives it.
#[derive(Clone, Copy)]
enum Number {
    Whole(i128),
    Float(f64),
}

impl Number {
    fn float(self) -> f64 {
        match self {
            Self::Whole(number) => number as f64,
            Self::Float(number) => number,
        }
    }

    fn whole(self) -> Option<i128> {
        match self {
            Self::Whole(number) => Some(number),
            Self::Float(_) => None,
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(number) => number.fmt(f),
            Self::Float(number) => number.fmt(f),
        }
    }
}

/// An array of elements, or of arrays of them; or an element.
struct Level<'e, 'a> {
    elements: &'e mut Elements<'a>,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Level<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.depth == 0 { "an array of numbers" } else { "a number, or an array of them" })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        if self.depth == NESTING_MAX {
            return Err(A::Error::custom(format!("arrays are nested more than {NESTING_MAX} deep")));
        }
        while array.next_element_seed(Level { elements: &mut *self.elements, depth: self.depth + 1 })?.is_some() {}
        Ok(())
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<(), E> {
        self.element(Number::Whole(number.into()))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<(), E> {
        self.element(Number::Whole(number.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<(), E> {
        self.element(Number::Float(number))
    }
}

impl Level<'_, '_> {
    fn element<E: serde::de::Error>(self, number: Number) -> Result<(), E> {
        if self.depth == 0 {
            return Err(E::custom("a number is no array of numbers"));
        }
        self.elements.push(number)
    }
}

/// A tensor's elements as JSON. A number that JSON lacks (NaN, infinity) is an error there: ask for binary data.
fn json_elements(output: &Output) -> Result<Value, serde_json::Error> {
    let element_type = output.port.fact.element_type;
    let chunks = output.elements.chunks_exact(element_type.bytes());
    let element = |bytes: &[u8]| -> Option<Value> {
        let float = |number: f64| serde_json::Number::from_f64(number).map(Value::Number);
        Some(match element_type {
            ElementType::F16 => float(f16::from_le_bytes(bytes.try_into().ok()?).to_f64())?,
            ElementType::F32 => float(f32::from_le_bytes(bytes.try_into().ok()?).into())?,
            ElementType::F64 => float(f64::from_le_bytes(bytes.try_into().ok()?))?,
            ElementType::U8 => Value::from(*bytes.first()?),
            ElementType::I32 => Value::from(i32::from_le_bytes(bytes.try_into().ok()?)),
            ElementType::I64 => Value::from(i64::from_le_bytes(bytes.try_into().ok()?)),
        })
    };
    let name = &output.port.name;
    let no_json =
        || serde_json::Error::custom(format!("output '{name}' has numbers that JSON lacks; ask for binary data"));
    chunks.map(|bytes| element(bytes).ok_or_else(no_json)).collect::<Result<Vec<_>, _>>().map(Value::Array)
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
