//! Cutting a real network changes nothing about its answers.
#![allow(clippy::unwrap_used)]

use edgent_nn::{ElementType, Graph, Imported, Tensor};

fn branchy() -> Imported {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/branchy-alexnet/branchy-alexnet.onnx");
    Imported::from_onnx(&std::fs::read(path).unwrap()).unwrap()
}

fn image() -> Tensor {
    let mut state = 7_u32;
    let pixels: Vec<u8> = (0..3 * 64 * 64)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    Tensor::from_bytes(ElementType::U8, &[1, 3, 64, 64], &pixels).unwrap()
}

#[test]
fn every_exit_by_its_segments_gives_the_bits_of_the_whole() {
    let imported = branchy();
    let cut = imported.cut().unwrap();
    assert!(cut.segments.len() >= 10, "{} segments", cut.segments.len());
    let graphs: Vec<Graph> = cut.segments.iter().map(|s| Graph::load(&s.graph, s.format).unwrap()).collect();
    let whole = imported.whole().unwrap().run_once(image()).unwrap();
    for (exit, expected) in cut.exits.iter().zip(&whole) {
        let mut activation = image();
        for index in &exit.path {
            activation = graphs[*index].run_once(activation).unwrap().remove(0);
        }
        assert_eq!(activation.bytes(), expected.bytes(), "{}", exit.name);
    }
}

#[test]
fn what_is_not_a_network_is_refused() {
    let onnx = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/branchy-alexnet/branchy-alexnet.onnx"))
        .unwrap();
    for (bytes, said) in [(&b"hello"[..], "not an ONNX file"), (b"", ""), (&onnx[..onnx.len() / 2], "")] {
        let error = Imported::from_onnx(bytes).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}
