//! What an ONNX file holds, read without building anything of it.

use crate::graph::nnef;
use crate::guard::guarded;
use crate::{GraphError, ImportError, MODEL_BYTES_MAX};
use std::collections::{BTreeMap, BTreeSet};
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, TensorProto, tensor_proto::DataLocation};
use tract_onnx::prelude::Framework;

/// Operators of this set belong to ONNX itself.
const ONNX_DOMAINS: [&str; 2] = ["", "ai.onnx"];

/// What an ONNX file says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Who wrote the file.
    pub producer: String,
    /// Each set of operators that it refers to, and its version.
    pub opsets: BTreeMap<String, i64>,
    /// How often each operator appears, those of graphs inside operators, too.
    pub operators: BTreeMap<String, usize>,
    /// Domains of operators that are not ONNX's own.
    pub custom_domains: BTreeSet<String>,
    /// Files besides this one that it wants read.
    pub external_data: BTreeSet<String>,
    /// Bytes of its weights, as they lie in the file.
    pub weights_bytes: u64,
    /// How deep graphs lie in operators of graphs.
    pub depth: usize,
    /// Names of what goes in.
    pub inputs: Vec<String>,
    /// Names of what comes out.
    pub outputs: Vec<String>,
}

impl Survey {
    /// Reads the file; nothing of it is built or run, and no other file is opened.
    pub fn of_onnx(bytes: &[u8]) -> Result<Self, ImportError> {
        if bytes.len() > MODEL_BYTES_MAX {
            return Err(ImportError::TooLarge(bytes.len()));
        }
        let proto = guarded(|| tract_onnx::onnx().proto_model_for_read(&mut &*bytes)).map_err(ImportError::NotOnnx)?;
        Ok(Self::of(&proto))
    }

    fn of(proto: &ModelProto) -> Self {
        let opsets = proto.opset_import.iter().map(|set| (set.domain.clone(), set.version)).collect();
        let mut survey = Self { producer: proto.producer_name.clone(), opsets, ..Self::default() };
        if let Some(graph) = &proto.graph {
            let initial: BTreeSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
            let inputs = graph.input.iter().map(|input| input.name.clone());
            survey.inputs = inputs.filter(|name| !initial.contains(name.as_str())).collect();
            survey.outputs = graph.output.iter().map(|output| output.name.clone()).collect();
            survey.graph(graph, 1);
        }
        proto.functions.iter().flat_map(|function| &function.node).for_each(|node| survey.node(node, 1));
        survey
    }

    // As deep as the protobuf reader let it be: 100.
    fn graph(&mut self, graph: &GraphProto, depth: usize) {
        self.depth = self.depth.max(depth);
        graph.initializer.iter().for_each(|tensor| self.tensor(tensor));
        graph.node.iter().for_each(|node| self.node(node, depth));
    }

    fn node(&mut self, node: &NodeProto, depth: usize) {
        let is_onnx = ONNX_DOMAINS.contains(&node.domain.as_str());
        let name = if is_onnx { node.op_type.clone() } else { format!("{}.{}", node.domain, node.op_type) };
        *self.operators.entry(name).or_default() += 1;
        if !is_onnx {
            self.custom_domains.insert(node.domain.clone());
        }
        for attribute in &node.attribute {
            attribute.t.iter().chain(&attribute.tensors).for_each(|tensor| self.tensor(tensor));
            attribute.g.iter().chain(&attribute.graphs).for_each(|graph| self.graph(graph, depth + 1));
        }
    }

    fn tensor(&mut self, tensor: &TensorProto) {
        let inside = tensor.raw_data.len()
            + 4 * (tensor.float_data.len() + tensor.int32_data.len())
            + 8 * (tensor.int64_data.len() + tensor.double_data.len() + tensor.uint64_data.len());
        self.weights_bytes = self.weights_bytes.saturating_add(inside as u64);
        if tensor.data_location == Some(DataLocation::External as i32) || !tensor.external_data.is_empty() {
            let location = tensor.external_data.iter().find(|entry| entry.key == "location");
            self.external_data.insert(location.map_or_else(String::new, |entry| entry.value.clone()));
        }
    }
}

/// How often each operator appears in a segment's graph, whatever its manifest says.
pub fn operators(graph: &[u8]) -> Result<BTreeMap<String, usize>, GraphError> {
    let model = guarded(|| nnef().model_for_read(&mut &*graph)?.into_decluttered()).map_err(GraphError::Unreadable)?;
    let mut found = BTreeMap::new();
    for node in &model.nodes {
        *found.entry(node.op.name().into_owned()).or_default() += 1;
    }
    Ok(found)
}
