//! onnxruntime beside tract. Its library is the one that `just onnxruntime` names in the environment.

use super::*;
use crate::written::example;
use crate::{Difference, Graph, GraphFormat, Imported, Pins};
use prost::Message;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto};
use tract_onnx::pb::{TensorShapeProto, TypeProto, tensor_shape_proto, type_proto};

const SEVERAL: &[u8] = include_bytes!("../../tests/data/several/several.onnx");

fn onnxruntime() -> Onnxruntime {
    let library = std::env::var_os("EDGENT_ONNXRUNTIME").expect("`just onnxruntime` says where the library is");
    Onnxruntime::open(&PathBuf::from(library)).unwrap()
}

fn on_onnxruntime(bytes: &[u8]) -> (Graph, Graph) {
    let ours = Graph::load(bytes, GraphFormat::Onnx).unwrap();
    let session = onnxruntime().session(bytes, ours.inputs(), ours.outputs()).unwrap();
    let theirs = ours.with_session(session);
    (ours, theirs)
}

/// Inputs and outputs of several types, several of each.
#[test]
fn both_give_the_same() {
    let pins = Pins { dims: BTreeMap::from([("rows".to_owned(), 3)]), ..Pins::default() };
    let bytes = Imported::from_onnx(SEVERAL, &pins).unwrap().changed_file().unwrap();
    let (ours, theirs) = on_onnxruntime(&bytes);
    for seed in 1..=3 {
        let inputs = ours.inputs().iter().map(|port| example(&port.fact, seed));
        let inputs: Vec<Tensor> = inputs.collect::<Result<_, _>>().unwrap();
        let (expected, given) = (ours.run_once(inputs.clone()).unwrap(), theirs.run_once(inputs).unwrap());
        assert_eq!(expected.len(), ours.outputs().len());
        for (given, expected) in given.iter().zip(&expected) {
            let apart = Difference::of(given, expected).unwrap();
            assert!(apart.most <= 1e-5 * apart.greatest.max(1.0), "{apart:?}");
        }
    }
    let choice = Graph::load_fastest(&bytes, GraphFormat::Onnx, &onnxruntime()).unwrap().choice().unwrap().clone();
    let [tract_us, onnxruntime_us] = choice.times_us.unwrap();
    assert_eq!(choice.backend == crate::Backend::Onnxruntime, onnxruntime_us < tract_us);
}

/// A chain of large products, and the time that it takes.
#[test]
fn a_run_ends_when_it_is_cancelled_and_the_session_lives_on() {
    let (_, theirs) = on_onnxruntime(&products(100));
    let input = example(&theirs.inputs()[0].fact, 1).unwrap();
    let mut context = theirs.context().unwrap();
    let name = theirs.inputs()[0].name.clone();
    let stop = Stop::at(Instant::now() + Duration::from_millis(20));
    let ended = context.compute(vec![(name.clone(), input.clone())], &stop);
    assert_eq!(ended.map(|_| ()), Err(ComputeError::Stopped));
    let (_, short) = on_onnxruntime(&products(1));
    assert_eq!(short.run_once(vec![input]).unwrap()[0].dims(), [SIDE, SIDE]);
}

#[test]
fn what_is_no_graph_for_it_is_left_to_tract_with_the_reason() {
    let graph = crate::Published::MobileNetV2.graph(1).unwrap();
    let choice = Graph::load_fastest(&graph.0, graph.1, &onnxruntime()).unwrap().choice().unwrap().clone();
    assert_eq!(choice.backend, crate::Backend::Tract);
    assert!(choice.times_us.unwrap_err().contains("--graphs onnx"));
    let ours = Graph::load(&products(1), GraphFormat::Onnx).unwrap();
    for damaged in [&products(1)[..100], b"no protobuf", &[]] {
        assert!(onnxruntime().session(damaged, ours.inputs(), ours.outputs()).is_err());
    }
}

const SIDE: usize = 512;

/// So many products of square matrices, one after another.
fn products(count: usize) -> Vec<u8> {
    let weights = TensorProto {
        name: "weights".to_owned(),
        dims: vec![SIDE as i64; 2],
        data_type: DataType::Float as i32,
        float_data: vec![1.0 / SIDE as f32; SIDE * SIDE],
        ..TensorProto::default()
    };
    let value = |at: usize| format!("x{at}");
    let node = |at: usize| NodeProto {
        op_type: "MatMul".to_owned(),
        name: format!("product{at}"),
        input: vec![value(at), "weights".to_owned()],
        output: vec![value(at + 1)],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        name: "products".to_owned(),
        node: (0..count).map(node).collect(),
        initializer: vec![weights],
        input: vec![square(value(0))],
        output: vec![square(value(count))],
        ..GraphProto::default()
    };
    let opset_import = vec![OperatorSetIdProto { version: 13, ..OperatorSetIdProto::default() }];
    ModelProto { ir_version: 7, opset_import, graph: Some(graph), ..ModelProto::default() }.encode_to_vec()
}

fn square(name: String) -> ValueInfoProto {
    let dim = || tensor_shape_proto::Dimension {
        value: Some(tensor_shape_proto::dimension::Value::DimValue(SIDE as i64)),
        ..tensor_shape_proto::Dimension::default()
    };
    let shape = Some(TensorShapeProto { dim: vec![dim(), dim()] });
    let tensor = type_proto::Tensor { elem_type: DataType::Float as i32, shape };
    let r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() });
    ValueInfoProto { name, r#type, ..ValueInfoProto::default() }
}
