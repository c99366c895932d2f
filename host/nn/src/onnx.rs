//! An ONNX file before tract reads it.
//!
//! What tract or `wasi:nn` would stumble over is settled here, in the file itself: dimensions that are left open
//! are pinned, branches that are thereby decided are put in place, inputs and outputs of types that have no name in
//! `wasi:nn` cross in a wider one, and operators that tract lacks are refused by name. And a part of the file can be cut out of it: the last resort for a segment that
//! NNEF cannot write.

use crate::branches::{decide, rename};
use crate::graph::onnx;
use crate::guard::guarded;
use crate::{ElementType, Fact, ImportError, Port};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::Dimension;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dim;
use tract_onnx::pb::type_proto::{Tensor as TensorType, Value as Type};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    attribute_proto,
};
use tract_onnx::prelude::Framework;

/// The largest ONNX file that is read.
pub const MODEL_BYTES_MAX: usize = 1 << 30;

/// Sets of operators that tract implements something of. It looks operators up by their names alone, so one of
/// another set would silently be taken for its namesake.
const DOMAINS: [&str; 4] = ["", "ai.onnx", "ai.onnx.ml", "com.microsoft"];

/// How deep graphs may be nested in the attributes of operators.
pub(crate) const NESTING_MAX: usize = 16;

/// What the user fixes of a file that leaves dimensions open.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pins {
    /// The size of each named dimension.
    pub dims: BTreeMap<String, usize>,
    /// The dimensions of whole inputs; they count more than `dims`.
    pub inputs: BTreeMap<String, Vec<usize>>,
    /// Inputs that are always the same, and what they are, element by element: they are no inputs any more.
    pub values: BTreeMap<String, Vec<f64>>,
    /// How many of them come at once, of inputs that begin with a dimension of one: to measure what batches are worth.
    pub batch: Option<usize>,
}

/// A file that has been read, and what was changed in it.
#[derive(Clone, Debug)]
pub(crate) struct OnnxFile {
    pub(crate) proto: ModelProto,
    /// What else stood in the file: who made it, by what licence. Not for tract, which would have it travel into each
    /// segment, where NNEF cannot always write it.
    about: ModelProto,
    /// For people: what was pinned, which branches are taken, and what crosses in a wider type.
    pub(crate) notes: Vec<String>,
}

impl OnnxFile {
    pub(crate) fn read(bytes: &[u8], pins: &Pins) -> Result<Self, ImportError> {
        if bytes.len() > MODEL_BYTES_MAX {
            return Err(ImportError::TooLarge(bytes.len()));
        }
        let mut about = guarded(|| onnx().proto_model_for_read(&mut &*bytes)).map_err(ImportError::NotOnnx)?;
        let mut graph = about.graph.take().ok_or_else(|| ImportError::NotOnnx("it has no graph".to_owned()))?;
        let mut notes = pin(&mut graph, pins)?;
        let (ir_version, opset_import) = (about.ir_version, about.opset_import.clone());
        let mut proto = ModelProto { ir_version, opset_import, graph: Some(graph), ..ModelProto::default() };
        let inputs = inputs(&proto);
        notes.extend(decide(&mut proto, &inputs)?);
        if let Some(graph) = &mut proto.graph {
            check_operators(graph, 0)?;
            notes.extend(widen(graph)?);
        }
        Ok(Self { proto, about, notes })
    }

    /// The file as it is now, if it was changed.
    pub(crate) fn changed(&self) -> Option<Vec<u8>> {
        let whole = || ModelProto { graph: self.proto.graph.clone(), ..self.about.clone() };
        (!self.notes.is_empty()).then(|| whole().encode_to_vec())
    }

    fn graph(&self) -> Option<&GraphProto> {
        self.proto.graph.as_ref()
    }

    /// The names of the outputs, in the file's order.
    pub(crate) fn output_names(&self) -> Vec<String> {
        self.graph().into_iter().flat_map(|graph| &graph.output).map(|output| output.name.clone()).collect()
    }

    /// The names of all values that the file's operators give, and of its inputs.
    pub(crate) fn values(&self) -> BTreeSet<&str> {
        let graph = self.graph().into_iter();
        let given = graph.clone().flat_map(|graph| &graph.node).flat_map(|node| &node.output);
        let inputs = graph.flat_map(|graph| &graph.input).map(|input| &input.name);
        given.chain(inputs).map(String::as_str).filter(|name| !name.is_empty()).collect()
    }

    /// The part of the file that makes some values of others, as a file of its own; none if it needs others still.
    pub(crate) fn part(&self, takes: &[Port], gives: &[Port]) -> Option<Vec<u8>> {
        Some(part(&self.proto, takes, gives)?.encode_to_vec())
    }
}

/// The part of a file that makes some values of others; none if it needs others still. Inputs that it does not take
/// are zero in it: once dimensions are fixed, a network may depend on no more than an input's shape.
pub(crate) fn part(whole: &ModelProto, takes: &[Port], gives: &[Port]) -> Option<ModelProto> {
    let graph = whole.graph.as_ref()?;
    let outputs = |(at, node)| {
        let node: &NodeProto = node;
        node.output.iter().map(move |output| (output.as_str(), at))
    };
    let giver: BTreeMap<&str, usize> = graph.node.iter().enumerate().flat_map(outputs).collect();
    let constant: BTreeSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    let taken: BTreeSet<&str> = takes.iter().map(|port| port.name.as_str()).collect();
    let inputs = inputs(whole);
    let mut unused: BTreeMap<&str, &Port> = BTreeMap::new();
    let (mut nodes, mut constants) = (BTreeSet::new(), BTreeSet::new());
    let mut waiting: Vec<&str> = gives.iter().map(|port| port.name.as_str()).collect();
    while let Some(name) = waiting.pop() {
        if taken.contains(name) {
            continue;
        } else if constant.contains(name) {
            constants.insert(name);
        } else if let Some(input) = inputs.iter().find(|input| input.name == name) {
            unused.insert(name, input);
        } else {
            let at = *giver.get(name)?;
            if nodes.insert(at) {
                waiting.extend(uses(&graph.node[at]));
            }
        }
    }
    let constants = graph.initializer.iter().filter(|constant| constants.contains(constant.name.as_str()));
    let part = GraphProto {
        name: graph.name.clone(),
        node: nodes.into_iter().map(|at| graph.node[at].clone()).collect(),
        initializer: constants.cloned().chain(unused.into_values().map(zeros)).collect(),
        input: takes.iter().map(value_info).collect(),
        output: gives.iter().map(value_info).collect(),
        ..GraphProto::default()
    };
    let (ir_version, opset_import) = (whole.ir_version, whole.opset_import.clone());
    Some(ModelProto { ir_version, opset_import, graph: Some(part), ..ModelProto::default() })
}

fn zeros(port: &Port) -> TensorProto {
    TensorProto {
        name: port.name.clone(),
        dims: port.fact.dims.iter().map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX)).collect(),
        data_type: data_type(port.fact.element_type) as i32,
        raw_data: vec![0; port.fact.bytes()],
        ..TensorProto::default()
    }
}

/// The inputs of a file whose types have names here.
fn inputs(file: &ModelProto) -> Vec<Port> {
    let port = |input: &ValueInfoProto| {
        let Some(TypeProto { value: Some(Type::TensorType(tensor)), .. }) = &input.r#type else { return None };
        let dims = tensor.shape.as_ref()?.dim.iter().map(size).collect::<Option<Vec<_>>>()?;
        let element_type = match DataType::try_from(tensor.elem_type).ok()? {
            DataType::Float16 => ElementType::F16,
            DataType::Float => ElementType::F32,
            DataType::Double => ElementType::F64,
            DataType::Uint8 => ElementType::U8,
            DataType::Int32 => ElementType::I32,
            DataType::Int64 => ElementType::I64,
            _ => return None,
        };
        Some(Port { name: input.name.clone(), fact: Fact::new(element_type, &dims).ok()? })
    };
    file.graph.iter().flat_map(|graph| &graph.input).filter_map(port).collect()
}

fn check_operators(graph: &GraphProto, depth: usize) -> Result<(), ImportError> {
    if depth > NESTING_MAX {
        return Err(ImportError::Unsupported(format!("graphs are nested more than {NESTING_MAX} deep")));
    }
    for node in &graph.node {
        let is_known = DOMAINS.contains(&node.domain.as_str()) && onnx().op_register.0.contains_key(&node.op_type);
        if !is_known {
            let domain = if node.domain.is_empty() { String::new() } else { format!("{}.", node.domain) };
            let operator = format!("{domain}{}", node.op_type);
            return Err(ImportError::Operator { operator, node: node_name(node) });
        }
        if let Some(what) = known_to_be_wrong(node) {
            let operator = format!("{} {what}", node.op_type);
            return Err(ImportError::Operator { operator, node: node_name(node) });
        }
        for inner in subgraphs(node) {
            check_operators(inner, depth + 1)?;
        }
    }
    Ok(())
}

fn node_name(node: &NodeProto) -> String {
    let name = if node.name.is_empty() { node.output.first() } else { Some(&node.name) };
    name.cloned().unwrap_or_default()
}

/// What tract 0.23.9 takes an operator for that it is not: it looks over an attribute or an input, and computes
/// something else. Found by the node tests of the `onnx` package (tests/peers/onnx_suite.py).
fn known_to_be_wrong(node: &NodeProto) -> Option<&'static str> {
    let attribute = |name: &str| node.attribute.iter().find(|attribute| attribute.name == name);
    let text_is = |name: &str, value: &str| attribute(name).is_some_and(|attribute| attribute.s == value.as_bytes());
    let is_set = |name: &str| attribute(name).is_some_and(|attribute| attribute.i != 0);
    let given = |place: usize| node.input.get(place).is_some_and(|name| !name.is_empty());
    match node.op_type.as_str() {
        "Attention" if attribute("left_window_size").or(attribute("right_window_size")).is_some() => {
            Some("with a window")
        }
        "Attention" if is_set("is_causal") && given(4) => Some("that is causal and has a past"),
        "GRU" | "LSTM" | "RNN" if text_is("direction", "reverse") => Some("in the reverse direction alone"),
        "Swish" if attribute("alpha").is_some_and(|alpha| alpha.f != 1.0) => Some("with an alpha"),
        "SpaceToDepth" if text_is("mode", "CRD") => Some("in the mode CRD"),
        _ => None,
    }
}

/// Gives every input dimensions that are fixed, or says which are not.
fn pin(graph: &mut GraphProto, pins: &Pins) -> Result<Vec<String>, ImportError> {
    let constant: BTreeSet<String> = graph.initializer.iter().map(|tensor| tensor.name.clone()).collect();
    let inputs = || graph.input.iter().filter(|input| !constant.contains(&input.name));
    let names = inputs().map(|input| input.name.clone()).collect::<Vec<_>>();
    if let Some(unknown) = pins.inputs.keys().find(|name| !names.contains(name)) {
        let why = format!("there is no input '{unknown}'; the network has {}", names.join(", "));
        return Err(ImportError::Pin(why));
    }
    let mut symbols = BTreeSet::new();
    let (mut notes, mut open) = (Vec::new(), Vec::new());
    for input in graph.input.iter_mut().filter(|input| !constant.contains(&input.name)) {
        let Some(TypeProto { value: Some(Type::TensorType(tensor)), .. }) = &mut input.r#type else {
            let why = "it is not a tensor".to_owned();
            return Err(ImportError::Port { name: input.name.clone(), why });
        };
        let declared = tensor.shape.as_ref().map(|shape| shape.dim.as_slice());
        symbols.extend(declared.into_iter().flatten().filter_map(symbol).map(str::to_owned));
        let mut pinned = pinned(&input.name, declared, pins)?;
        if let (Some(batch), Some(first @ Some(1))) = (pins.batch, pinned.first_mut()) {
            *first = Some(batch);
        }
        let shown = declared.map_or_else(|| "of any shape".to_owned(), show);
        if pinned.iter().any(Option::is_none) || declared.is_none() && !pins.inputs.contains_key(&input.name) {
            open.push(format!("'{}' {shown}", input.name));
            continue;
        }
        let dims: Vec<Dimension> = pinned.into_iter().flatten().map(fixed).collect();
        if declared.is_none_or(|declared| declared.iter().any(|dim| size(dim).is_none())) {
            notes.push(format!("input '{}' {shown} is pinned to {}", input.name, show(&dims)));
        }
        tensor.shape = Some(TensorShapeProto { dim: dims });
    }
    if let Some(unknown) = pins.dims.keys().find(|name| !symbols.contains(*name)) {
        let known = symbols.into_iter().collect::<Vec<_>>().join(", ");
        return Err(ImportError::Pin(format!("no input has a dimension '{unknown}'; there are: {known}")));
    }
    if !open.is_empty() {
        return Err(ImportError::Open(open.join(", ")));
    }
    for (name, values) in &pins.values {
        notes.push(fix(graph, name, values)?);
    }
    Ok(notes)
}

/// Makes a constant of an input.
fn fix(graph: &mut GraphProto, name: &str, values: &[f64]) -> Result<String, ImportError> {
    let wrong = |why: String| ImportError::Pin(format!("input '{name}' {why}"));
    let input = graph.input.iter().position(|input| input.name == name);
    let at = input.ok_or_else(|| wrong("cannot be fixed: there is none".to_owned()))?;
    let Some(TypeProto { value: Some(Type::TensorType(tensor)), .. }) = &graph.input[at].r#type else {
        return Err(wrong("is not a tensor".to_owned()));
    };
    let dims: Vec<usize> = tensor.shape.iter().flat_map(|shape| &shape.dim).filter_map(size).collect();
    let elements = dims.iter().try_fold(1_usize, |all, dim| all.checked_mul(*dim));
    if elements != Some(values.len()) {
        return Err(wrong(format!("is of {dims:?}, which are not {} values", values.len())));
    }
    let mut constant = TensorProto {
        name: name.to_owned(),
        dims: dims.iter().map(|dim| *dim as i64).collect(),
        data_type: tensor.elem_type,
        ..TensorProto::default()
    };
    match DataType::try_from(tensor.elem_type) {
        Ok(DataType::Float) => constant.float_data = values.iter().map(|value| *value as f32).collect(),
        Ok(DataType::Double) => constant.double_data = values.to_vec(),
        Ok(DataType::Int64) => constant.int64_data = values.iter().map(|value| *value as i64).collect(),
        Ok(DataType::Int32 | DataType::Uint8 | DataType::Int8 | DataType::Bool) => {
            constant.int32_data = values.iter().map(|value| *value as i32).collect();
        }
        _ => return Err(wrong("has elements of a type that cannot be fixed".to_owned())),
    }
    graph.initializer.push(constant);
    graph.input.remove(at);
    Ok(format!("input '{name}' is always {values:?}"))
}

/// The dimensions of one input, as far as they are known.
fn pinned(name: &str, declared: Option<&[Dimension]>, pins: &Pins) -> Result<Vec<Option<usize>>, ImportError> {
    let declared = declared.map(|dims| dims.iter().map(|dim| (size(dim), symbol(dim))).collect::<Vec<_>>());
    let Some(given) = pins.inputs.get(name) else {
        let of = |(size, symbol): (Option<usize>, Option<&str>)| {
            size.or_else(|| symbol.and_then(|symbol| pins.dims.get(symbol).copied()))
        };
        return Ok(declared.unwrap_or_default().into_iter().map(of).collect());
    };
    let fits = declared.as_ref().is_none_or(|declared| {
        declared.len() == given.len()
            && declared.iter().zip(given).all(|((size, _), given)| size.is_none_or(|size| size == *given))
    });
    if !fits {
        let fixed: Vec<_> = declared.unwrap_or_default().into_iter().map(|(size, _)| size).collect();
        let why = format!("input '{name}' cannot be {given:?}: the file fixes its dimensions to {fixed:?}");
        return Err(ImportError::Pin(why));
    }
    Ok(given.iter().copied().map(Some).collect())
}

/// A size that the file gives; exporters write less than nothing for what they do not know.
fn size(dim: &Dimension) -> Option<usize> {
    let Some(Dim::DimValue(size)) = &dim.value else { return None };
    usize::try_from(*size).ok()
}

fn symbol(dim: &Dimension) -> Option<&str> {
    let Some(Dim::DimParam(name)) = &dim.value else { return None };
    Some(name)
}

fn fixed(size: usize) -> Dimension {
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    Dimension { value: Some(Dim::DimValue(size)), ..Dimension::default() }
}

fn show(dims: &[Dimension]) -> String {
    let one = |dim: &Dimension| match (size(dim), symbol(dim)) {
        (Some(size), _) => size.to_string(),
        (None, Some(name)) if !name.is_empty() => name.to_owned(),
        _ => "?".to_owned(),
    };
    format!("[{}]", dims.iter().map(one).collect::<Vec<_>>().join(","))
}

/// The type in which elements of a type without a name in `wasi:nn` cross, each with its value.
fn wider(data_type: i32) -> Option<DataType> {
    Some(match DataType::try_from(data_type).ok()? {
        DataType::Bool => DataType::Uint8,
        DataType::Int8 | DataType::Int16 | DataType::Uint16 => DataType::Int32,
        DataType::Uint32 => DataType::Int64,
        _ => return None,
    })
}

/// Puts a cast behind each input, and before each output, whose elements have no name in `wasi:nn`.
fn widen(graph: &mut GraphProto) -> Result<Vec<String>, ImportError> {
    let constant: BTreeSet<String> = graph.initializer.iter().map(|tensor| tensor.name.clone()).collect();
    let mut notes = Vec::new();
    let (mut inputs, mut outputs) = (std::mem::take(&mut graph.input), std::mem::take(&mut graph.output));
    for (ports, is_input) in [(&mut inputs, true), (&mut outputs, false)] {
        for port in ports.iter_mut().filter(|port| !constant.contains(&port.name)) {
            let Some(TypeProto { value: Some(Type::TensorType(tensor)), .. }) = &mut port.r#type else { continue };
            let Some(wide) = wider(tensor.elem_type) else { continue };
            let narrow = std::mem::replace(&mut tensor.elem_type, wide as i32);
            let inner = format!("{}.narrow", port.name);
            rename(graph, &BTreeMap::from([(port.name.clone(), inner.clone())]), 0)?;
            let (from, to, elem_type) =
                if is_input { (&port.name, &inner, narrow) } else { (&inner, &port.name, wide as i32) };
            let cast = cast(from, to, elem_type);
            graph.node.insert(if is_input { 0 } else { graph.node.len() }, cast);
            let (what, narrow) = (if is_input { "input" } else { "output" }, DataType::try_from(narrow));
            let narrow = narrow.map_or("", |narrow| narrow.as_str_name()).to_lowercase();
            notes.push(format!("{what} '{}' of {narrow} crosses as {}", port.name, wide.as_str_name().to_lowercase()));
        }
    }
    (graph.input, graph.output) = (inputs, outputs);
    Ok(notes)
}

fn cast(from: &str, to: &str, elem_type: i32) -> NodeProto {
    let attribute = AttributeProto {
        name: "to".to_owned(),
        r#type: attribute_proto::AttributeType::Int as i32,
        i: i64::from(elem_type),
        ..AttributeProto::default()
    };
    NodeProto {
        op_type: "Cast".to_owned(),
        name: format!("{to}.cast"),
        input: vec![from.to_owned()],
        output: vec![to.to_owned()],
        attribute: vec![attribute],
        ..NodeProto::default()
    }
}

fn subgraphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs))
}

/// The values that an operator uses: its inputs, and what the graphs inside it take from around them.
fn uses(node: &NodeProto) -> BTreeSet<&str> {
    let mut used: BTreeSet<&str> = node.input.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
    for graph in subgraphs(node) {
        let own = graph.input.iter().map(|input| &input.name);
        let own = own.chain(graph.initializer.iter().map(|tensor| &tensor.name));
        let own: BTreeSet<&str> =
            own.chain(graph.node.iter().flat_map(|node| &node.output)).map(String::as_str).collect();
        let inside = graph.node.iter().flat_map(uses).chain(graph.output.iter().map(|output| output.name.as_str()));
        used.extend(inside.filter(|name| !own.contains(name)));
    }
    used
}

fn value_info(port: &Port) -> ValueInfoProto {
    let Fact { element_type, dims } = &port.fact;
    let elem_type = data_type(*element_type);
    let shape = Some(TensorShapeProto { dim: dims.iter().copied().map(fixed).collect() });
    let tensor = TensorType { elem_type: elem_type as i32, shape };
    let r#type = Some(TypeProto { value: Some(Type::TensorType(tensor)), ..TypeProto::default() });
    ValueInfoProto { name: port.name.clone(), r#type, ..ValueInfoProto::default() }
}

fn data_type(element_type: ElementType) -> DataType {
    match element_type {
        ElementType::F16 => DataType::Float16,
        ElementType::F32 => DataType::Float,
        ElementType::F64 => DataType::Double,
        ElementType::U8 => DataType::Uint8,
        ElementType::I32 => DataType::Int32,
        ElementType::I64 => DataType::Int64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEVERAL: &[u8] = include_bytes!("../tests/data/several/several.onnx");

    fn rows(rows: usize) -> Pins {
        Pins { dims: BTreeMap::from([("rows".to_owned(), rows)]), ..Pins::default() }
    }

    #[test]
    fn what_is_open_must_be_pinned_and_fit() {
        let inputs = |dims: &[(&str, &[usize])]| -> Pins {
            let inputs = dims.iter().map(|(name, dims)| ((*name).to_owned(), dims.to_vec())).collect();
            Pins { inputs, ..Pins::default() }
        };
        let value = |name: &str, values: &[f64]| Pins {
            values: BTreeMap::from([(name.to_owned(), values.to_vec())]),
            ..rows(2)
        };
        let cases = [
            (Pins::default(), "'x' [rows,8], 'state' [rows,4]"),
            (inputs(&[("x", &[2, 8])]), "'state' [rows,4]"),
            (inputs(&[("x", &[2, 9]), ("state", &[2, 4])]), "cannot be [2, 9]"),
            (inputs(&[("x", &[2])]), "cannot be [2]"),
            (inputs(&[("z", &[2])]), "no input 'z'; the network has x, state"),
            (
                Pins {
                    dims: BTreeMap::from([("lines".to_owned(), 1)]),
                    ..inputs(&[("x", &[2, 8]), ("state", &[2, 4])])
                },
                "no input has a dimension 'lines'; there are: rows",
            ),
            (value("state", &[1.0]), "not 1 values"),
            (value("y", &[1.0]), "there is none"),
            (rows(2), ""),
            (inputs(&[("x", &[2, 8]), ("state", &[2, 4])]), ""),
            (value("state", &[0.5; 8]), ""),
        ];
        for (pins, expected) in cases {
            let said = OnnxFile::read(SEVERAL, &pins).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{said:?} is not {expected:?}");
        }
        let fixed = OnnxFile::read(SEVERAL, &value("state", &[0.5; 8])).unwrap();
        assert_eq!(inputs(&[]).inputs.len() + super::inputs(&fixed.proto).len(), 1);
    }

    /// The bytes of the file that was understood need no pins, and say the same.
    #[test]
    fn what_was_settled_stays_settled() {
        let file = OnnxFile::read(SEVERAL, &rows(2)).unwrap();
        assert!(file.notes.iter().any(|note| note.contains("'x' [rows,8] is pinned to [2,8]")), "{:?}", file.notes);
        assert!(file.notes.iter().any(|note| note.contains("'is_high' of bool crosses as uint8")), "{:?}", file.notes);
        let again = OnnxFile::read(&file.changed().unwrap(), &Pins::default()).unwrap();
        assert_eq!(again.proto, file.proto);
        assert!(again.changed().is_none());
    }

    /// One branch fits only what is never so; the other depends on the values.
    #[test]
    fn a_branch_that_is_decided_is_put_in_place() {
        let file = OnnxFile::read(SEVERAL, &rows(2)).unwrap();
        let left: Vec<&str> =
            file.graph().unwrap().node.iter().filter(|node| node.op_type == "If").map(|node| &node.name[..]).collect();
        assert_eq!(left, ["by_sum"]);
        assert!(file.notes.iter().any(|note| note == "'by_rank' always takes its then_branch"), "{:?}", file.notes);
    }

    #[test]
    fn operators_that_cannot_be_run_are_named_with_their_place() {
        let mut proto = ModelProto::decode(include_bytes!("../tests/data/recurrent.onnx").as_slice()).unwrap();
        let lstm = &mut proto.graph.as_mut().unwrap().node[0];
        let (name, s) = ("direction".to_owned(), b"reverse".to_vec());
        lstm.attribute.push(AttributeProto { name, s, ..AttributeProto::default() });
        let said = OnnxFile::read(&proto.encode_to_vec(), &Pins::default()).unwrap_err().to_string();
        assert!(said.contains("LSTM in the reverse direction alone (node 'lstm')"), "{said}");
        let cases =
            [("", "Conjure", "Conjure (node 'y')"), ("com.example", "Softmax", "com.example.Softmax (node 'y')")];
        for (domain, operator, expected) in cases {
            let mut proto = ModelProto::decode(SEVERAL).unwrap();
            let node = proto.graph.as_mut().unwrap().node.iter_mut().find(|node| node.op_type == "Softmax").unwrap();
            (node.domain, node.op_type) = (domain.to_owned(), operator.to_owned());
            let said = OnnxFile::read(&proto.encode_to_vec(), &rows(2)).unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
        }
    }
}
