//! Inference requests and responses of the Open Inference Protocol over gRPC: tensors as bytes beside the message, or in
//! fields of their type.
//!
//! Pure, as `json` is.

use super::asking::Reply;
use super::inference::infer_parameter::ParameterChoice;
use super::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use super::inference::model_infer_response::InferOutputTensor;
use super::inference::{InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse};
use super::limits::MESSAGE_FIELDS_MAX;
use super::tensors::{Inputs, Malformed, Output, Port, Request, Signature, Wanted, Wishes};
use super::tensors::{bad, check_counts, datatype, flag};
use bytes::{Buf, Bytes};
use edgent_nn::{ElementType, Fact};
use prost::decode_length_delimiter;
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Reads a request for a model. Tensors are answered in the form in which they came, unless the request says another.
pub(super) fn read(message: ModelInferRequest, model: &Signature) -> Result<Request, Malformed> {
    check_counts(message.inputs.len(), message.outputs.len(), &message.id)?;
    let is_raw = !message.raw_input_contents.is_empty();
    let inputs = if is_raw {
        read_raw(&message.inputs, message.raw_input_contents, &model.inputs)?
    } else {
        read_typed(&message.inputs, &model.inputs)?
    };
    let wanted = |InferRequestedOutputTensor { name, parameters }: InferRequestedOutputTensor| {
        Wanted::new(name, &as_json(parameters), &model.outputs)
    };
    let outputs = message.outputs.into_iter().map(wanted).collect::<Result<Vec<_>, _>>()?;
    let parameters = as_json(message.parameters);
    Ok(Request {
        id: Some(message.id),
        inputs,
        outputs: (!outputs.is_empty()).then_some(outputs),
        binary_output: flag(&parameters, "binary_data_output")?.unwrap_or(is_raw),
        wishes: Wishes::new(&parameters)?,
    })
}

fn read_raw(given: &[InferInputTensor], contents: Vec<Bytes>, ports: &[Port]) -> Result<Vec<Bytes>, Malformed> {
    if contents.len() != given.len() {
        let (raw, named) = (contents.len(), given.len());
        return bad(format!("'raw_input_contents' has the elements of {raw} inputs, and {named} are named"));
    }
    let mut inputs = Inputs::new(ports);
    for (tensor, bytes) in given.iter().zip(contents) {
        let (at, fact) = inputs.find(&tensor.name, &tensor.datatype, &tensor.shape)?;
        if tensor.contents.is_some() {
            return bad(format!("input '{}': both 'contents' and 'raw_input_contents' are given", tensor.name));
        }
        if bytes.len() != fact.bytes() {
            let (given, wanted) = (bytes.len(), fact.bytes());
            return bad(format!("input '{}': {given} bytes of raw contents; the tensor has {wanted}", tensor.name));
        }
        inputs.put(at, bytes)?;
    }
    inputs.whole()
}

fn read_typed(given: &[InferInputTensor], ports: &[Port]) -> Result<Vec<Bytes>, Malformed> {
    let mut inputs = Inputs::new(ports);
    for tensor in given {
        let (at, fact) = inputs.find(&tensor.name, &tensor.datatype, &tensor.shape)?;
        let of_input = |why: String| Malformed(format!("input '{}': {why}", tensor.name));
        let missing = || of_input("neither 'contents' nor 'raw_input_contents' is given".to_owned());
        let contents = tensor.contents.as_ref().ok_or_else(missing)?;
        inputs.put(at, elements(contents, fact).map_err(of_input)?)?;
    }
    inputs.whole()
}

/// A tensor's elements, which must be in the field of their type and nowhere else.
fn elements(contents: &InferTensorContents, fact: &Fact) -> Result<Bytes, String> {
    let InferTensorContents { int_contents, int64_contents, uint_contents, fp32_contents, fp64_contents } = contents;
    let given = match fact.element_type {
        ElementType::F16 => return Err("FP16 has no typed contents; send it in 'raw_input_contents'".to_owned()),
        ElementType::F32 => fp32_contents.len(),
        ElementType::F64 => fp64_contents.len(),
        ElementType::U8 => uint_contents.len(),
        ElementType::I32 => int_contents.len(),
        ElementType::I64 => int64_contents.len(),
    };
    let all =
        int_contents.len() + int64_contents.len() + uint_contents.len() + fp32_contents.len() + fp64_contents.len();
    if all != given {
        return Err(format!(
            "{} elements are given in fields that are not for {}",
            all - given,
            datatype(fact.element_type)
        ));
    }
    if given != fact.elements() {
        return Err(format!("{given} elements are given, the shape has {}", fact.elements()));
    }
    let byte = |number: &u32| u8::try_from(*number).map_err(|_| format!("{number} is no UINT8"));
    Ok(match fact.element_type {
        ElementType::F16 => Bytes::new(),
        ElementType::F32 => fp32_contents.iter().flat_map(|number| number.to_le_bytes()).collect(),
        ElementType::F64 => fp64_contents.iter().flat_map(|number| number.to_le_bytes()).collect(),
        ElementType::U8 => uint_contents.iter().map(byte).collect::<Result<Vec<_>, _>>()?.into(),
        ElementType::I32 => int_contents.iter().flat_map(|number| number.to_le_bytes()).collect(),
        ElementType::I64 => int64_contents.iter().flat_map(|number| number.to_le_bytes()).collect(),
    })
}

/// A response: all tensors as bytes if one is to be so, or has a type that no field is for.
pub(super) fn write(reply: Reply) -> ModelInferResponse {
    let is_raw = reply.outputs.iter().any(|(output, raw)| *raw || output.port.fact.element_type == ElementType::F16);
    let tensor = |(output, _): &(Output, bool)| {
        let Port { name, fact } = &output.port;
        InferOutputTensor {
            name: name.clone(),
            datatype: datatype(fact.element_type).to_owned(),
            shape: shape(fact),
            parameters: HashMap::new(),
            contents: (!is_raw).then(|| typed(&output.elements, fact.element_type)),
        }
    };
    let outputs = reply.outputs.iter().map(tensor).collect();
    let raw = reply.outputs.into_iter().filter(|_| is_raw).map(|(output, _)| output.elements);
    ModelInferResponse {
        model_name: reply.model,
        model_version: reply.version,
        id: reply.id.unwrap_or_default(),
        parameters: reply.parameters.into_iter().filter_map(|(name, value)| Some((name, parameter(value)?))).collect(),
        outputs,
        raw_output_contents: raw.collect(),
    }
}

fn typed(elements: &[u8], element_type: ElementType) -> InferTensorContents {
    let mut contents = InferTensorContents::default();
    match element_type {
        ElementType::F16 => {}
        ElementType::F32 => contents.fp32_contents = numbers(elements, f32::from_le_bytes),
        ElementType::F64 => contents.fp64_contents = numbers(elements, f64::from_le_bytes),
        ElementType::U8 => contents.uint_contents = elements.iter().copied().map(u32::from).collect(),
        ElementType::I32 => contents.int_contents = numbers(elements, i32::from_le_bytes),
        ElementType::I64 => contents.int64_contents = numbers(elements, i64::from_le_bytes),
    }
    contents
}

fn numbers<const BYTES: usize, T>(elements: &[u8], number: impl Fn([u8; BYTES]) -> T) -> Vec<T> {
    elements.as_chunks().0.iter().map(|bytes| number(*bytes)).collect()
}

/// A tensor's shape, as gRPC has it.
pub(super) fn shape(fact: &Fact) -> Vec<i64> {
    fact.dims.iter().map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX)).collect()
}

/// Parameters, as REST would have had them.
fn as_json(parameters: HashMap<String, InferParameter>) -> Map<String, Value> {
    let value = |parameter: InferParameter| match parameter.parameter_choice {
        None => Value::Null,
        Some(ParameterChoice::BoolParam(value)) => value.into(),
        Some(ParameterChoice::Int64Param(value)) => value.into(),
        Some(ParameterChoice::Uint64Param(value)) => value.into(),
        Some(ParameterChoice::DoubleParam(value)) => value.into(),
        // KServe's clients know no fractions but as text.
        Some(ParameterChoice::StringParam(value)) => value.parse::<f64>().map_or_else(|_| value.into(), Value::from),
    };
    parameters.into_iter().map(|(name, parameter)| (name, value(parameter))).collect()
}

fn parameter(value: Value) -> Option<InferParameter> {
    let choice = match value {
        Value::Bool(value) => ParameterChoice::BoolParam(value),
        Value::String(value) => ParameterChoice::StringParam(value),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => ParameterChoice::Int64Param(whole),
            None => ParameterChoice::DoubleParam(number.as_f64()?),
        },
        _ => return None,
    };
    Some(InferParameter { parameter_choice: Some(choice) })
}

/// Refuses a message with too many fields: an empty tensor is two bytes there and two hundred once it is decoded.
pub(super) fn screen(mut message: &[u8]) -> Result<(), Malformed> {
    let no_message = || Malformed("the body's message is no protobuf".to_owned());
    let mut fields = 0;
    while message.has_remaining() {
        fields += 1;
        if fields > MESSAGE_FIELDS_MAX {
            return bad(format!("the message has more than {MESSAGE_FIELDS_MAX} fields"));
        }
        let key = decode_length_delimiter(&mut message).map_err(|_| no_message())?;
        // What follows a key, by the wire type in its last three bits.
        let bytes = match key & 7 {
            0 => decode_length_delimiter(&mut message).map(|_| 0).map_err(|_| no_message())?,
            1 => 8,
            2 => decode_length_delimiter(&mut message).map_err(|_| no_message())?,
            5 => 4,
            _ => return Err(no_message()),
        };
        message = message.get(bytes..).ok_or_else(no_message)?;
    }
    Ok(())
}

/// What a message for a model with these inputs can take at most: the most that an element takes in either form.
pub(super) fn elements_bytes_max(ports: &[Port]) -> usize {
    let element = |element_type: ElementType| match element_type {
        ElementType::F16 | ElementType::U8 => 2,
        ElementType::F32 => 4,
        ElementType::F64 => 8,
        // A negative number is ten bytes, whatever its type.
        ElementType::I32 | ElementType::I64 => 10,
    };
    let bytes = ports.iter().map(|port| port.fact.elements().saturating_mul(element(port.fact.element_type)));
    bytes.fold(0, usize::saturating_add)
}

#[cfg(test)]
#[path = "messages_tests.rs"]
mod tests;
