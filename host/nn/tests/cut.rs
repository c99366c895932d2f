//! Cutting a real network changes nothing about its answers.
#![allow(clippy::unwrap_used)]

use edgent_nn::{Cut, Difference, ElementType, Graph, GraphFormat, Imported, Pins, Stop, Tensor, example, synthetic};
use std::collections::BTreeMap;

fn branchy() -> Imported {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/branchy-alexnet/branchy-alexnet.onnx");
    Imported::from_onnx(&std::fs::read(path).unwrap(), &Pins::default()).unwrap()
}

/// Each output an exit.
fn each_alone(imported: &Imported) -> Vec<Vec<usize>> {
    (0..imported.outputs().len()).map(|output| vec![output]).collect()
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

/// What an exit gives, by its segments; tensors that a segment does not take pass it by.
fn by_segments(cut: &Cut, exit: usize, input: &[Tensor]) -> Vec<Tensor> {
    let mut crossing: BTreeMap<usize, Tensor> = input.iter().cloned().enumerate().collect();
    for index in &cut.exits[exit].path {
        let segment = &cut.segments[*index];
        let graph = Graph::load(&segment.graph, segment.format).unwrap();
        let taken = segment.takes.iter().map(|tensor| crossing[tensor].clone()).collect();
        crossing.extend(segment.gives.iter().copied().zip(graph.run_once(taken).unwrap()));
        crossing.retain(|tensor, _| cut.boundaries[segment.to].contains(tensor));
        assert_eq!(crossing.len(), cut.boundaries[segment.to].len(), "a tensor of the next boundary is missing");
    }
    cut.boundaries[cut.end(exit)].iter().map(|tensor| crossing[tensor].clone()).collect()
}

#[test]
fn every_exit_by_its_segments_gives_the_bits_of_the_whole() {
    let branching = Imported::from_onnx(include_bytes!("data/branching.onnx"), &Pins::default()).unwrap();
    let floats = synthetic::noise(&branching.inputs()[0].fact, 3).unwrap();
    for (imported, input, segments) in [(branchy(), image(), 10), (branching, floats, 7)] {
        let cut = imported.cut(&each_alone(&imported)).unwrap();
        assert!(cut.segments.len() >= segments, "{} segments", cut.segments.len());
        let whole = imported.whole().unwrap().run_once(vec![input.clone()]).unwrap();
        for (exit, expected) in whole.iter().enumerate() {
            let given = by_segments(&cut, exit, std::slice::from_ref(&input));
            assert_eq!(given.len(), 1);
            assert_eq!(given[0].bytes(), expected.bytes(), "{}", cut.exits[exit].name);
        }
    }
}

/// Three branches narrow at once, and can be cut through where they do. Not so the skip beside two convolutions:
/// what it skips is wider than what they start from. The input never crosses beside something else.
#[test]
fn a_network_that_branches_is_cut_through_several_tensors() {
    let imported = Imported::from_onnx(include_bytes!("data/branching.onnx"), &Pins::default()).unwrap();
    let cut = imported.cut(&each_alone(&imported)).unwrap();
    let names = |boundary: &Vec<usize>| -> Vec<String> {
        boundary.iter().map(|tensor| cut.tensors[*tensor].name.clone()).collect()
    };
    let several: Vec<_> = cut.boundaries.iter().filter(|boundary| boundary.len() > 1).map(names).collect();
    assert!(several.contains(&["a1.low", "b1.low", "c1"].map(str::to_owned).to_vec()), "{several:?}");
    assert!(!several.iter().flatten().any(|name| name.starts_with("r1")), "{several:?}");
    assert!(cut.boundaries[1..].iter().all(|boundary| !boundary.contains(&0)));
}

/// Its inputs and outputs in any grouping; one operator has a word of our own in NNEF, one segment has none at all.
#[test]
fn a_network_of_several_inputs_and_outputs_is_cut() {
    let pins = Pins { dims: BTreeMap::from([("rows".to_owned(), 3)]), ..Pins::default() };
    let imported = Imported::from_onnx(include_bytes!("data/several/several.onnx"), &pins).unwrap();
    let whole = imported.whole().unwrap();
    let inputs = imported.inputs().iter().map(|port| example(&port.fact, 7));
    let inputs: Vec<Tensor> = inputs.collect::<Result<_, _>>().unwrap();
    let expected = whole.run_once(inputs.clone()).unwrap();
    for exits in [vec![vec![0, 1, 2]], vec![vec![1], vec![0, 2]], vec![vec![2, 0], vec![1]]] {
        let cut = imported.cut(&exits).unwrap();
        let formats = |format| cut.segments.iter().filter(|segment| segment.format == format).count();
        assert!(formats(GraphFormat::Nnef) > 0 && formats(GraphFormat::Onnx) > 0, "{exits:?}");
        assert_eq!(cut.boundaries[0], [0, 1]);
        for (exit, outputs) in exits.iter().enumerate() {
            let given = by_segments(&cut, exit, &inputs);
            assert_eq!(given.len(), outputs.len());
            for (given, output) in given.iter().zip(outputs) {
                let Difference { most, greatest } = Difference::of(given, &expected[*output]).unwrap();
                assert!(most <= 1e-6 * greatest, "output {output} of {exits:?}: {most} of {greatest}");
            }
        }
    }
}

/// tract's recurrent operators go on from where the last run ended.
#[test]
fn a_recurrent_network_forgets_the_last_run() {
    let imported = Imported::from_onnx(include_bytes!("data/recurrent.onnx"), &Pins::default()).unwrap();
    let cut = imported.cut(&each_alone(&imported)).unwrap();
    let graph = Graph::load(&cut.segments[0].graph, cut.segments[0].format).unwrap();
    let port = &graph.inputs()[0];
    let mut context = graph.context().unwrap();
    let mut run = |seed| {
        let input = vec![(port.name.clone(), synthetic::noise(&port.fact, seed).unwrap())];
        context.compute(input, &Stop::never()).unwrap().remove(0).1.as_f32().unwrap().to_vec()
    };
    let (first, other, again) = (run(1), run(2), run(1));
    assert_ne!(first, other);
    assert_eq!(first, again);
}

#[test]
fn what_is_not_a_network_is_refused() {
    let onnx = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/branchy-alexnet/branchy-alexnet.onnx"))
        .unwrap();
    for (bytes, said) in [(&b"hello"[..], "not an ONNX file"), (b"", ""), (&onnx[..onnx.len() / 2], "")] {
        let error = Imported::from_onnx(bytes, &Pins::default()).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}
