//! What good segments do.
#![allow(clippy::unwrap_used)]

mod support;

use edgent_nn::{ElementType, Graph, GraphFormat, Stop, Tensor};
use edgent_sandbox::{Engine, Fault, Limits, Purpose, Segment};
use std::thread;
use support::{HOSTILE, STANDARD, run, segment, tensor};

#[test]
fn one_segment_serves_many_threads() {
    let engine = Engine::new().unwrap();
    let echo = segment(&engine.compile(STANDARD).unwrap(), "echo", 64, Limits::default());
    thread::scope(|scope| {
        for caller in 0..8 {
            let echo = &echo;
            scope.spawn(move || {
                for _ in 0..500 {
                    let output = run(echo, tensor(&[caller; 64]), &Stop::never()).unwrap();
                    assert_eq!(output.bytes(), [caller; 64]);
                }
            });
        }
    });
}

/// Segments of the guest that ships with this program share its instances, and each has its own graph all the same; when
/// one goes, so does its graph, whoever had the instance last.
#[test]
fn segments_share_instances_and_no_graph() {
    let engine = Engine::new().unwrap();
    let code = engine.compile_shipped(Purpose::Calls, STANDARD).unwrap();
    let echo = segment(&code, "echo", 64, Limits::default());
    let graph = Graph::load(&archive(PICKS), GraphFormat::Nnef).unwrap();
    let known = graph.downgrade();
    let picks = Segment::new("picks", &code, graph, Limits::default()).unwrap();
    assert!(echo.is_standard() && picks.is_standard());
    assert!(!segment(&engine.compile(HOSTILE).unwrap(), "echo", 64, Limits::default()).is_standard());
    let index = |index: i64| Tensor::from_bytes(ElementType::I64, &[1], &index.to_le_bytes()).unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    assert_eq!(run(&echo, tensor(&[7; 64]), &Stop::never()).unwrap().bytes(), [7; 64]);
                    assert_eq!(run(&picks, index(1), &Stop::never()).unwrap().as_f32(), Some(&[20.0][..]));
                }
            });
        }
    });
    // A failure is the segment's alone.
    assert!(matches!(run(&picks, index(2), &Stop::never()).unwrap_err().fault, Fault::Graph(_)));
    run(&echo, tensor(&[7; 64]), &Stop::never()).unwrap();
    drop(picks);
    assert!(known.upgrade().is_none(), "an idle instance keeps a graph");
}

#[test]
fn calls_leave_nothing_behind() {
    const PAGE_BYTES: usize = 64 << 10;
    let engine = Engine::new().unwrap();
    let tight = Limits {
        // What the guest starts with (1 MiB of stack, a page of data) and a page to allocate from.
        memory_bytes: (1 << 20) + 2 * PAGE_BYTES,
        // The context, and the input or the output.
        handles: 2,
        held_bytes: 64,
        ..Limits::default()
    };
    let echo = segment(&engine.compile(STANDARD).unwrap(), "echo", 64, tight);
    for _ in 0..50_000 {
        run(&echo, tensor(&[1; 64]), &Stop::never()).unwrap();
    }
}

#[test]
fn an_input_that_does_not_fit_is_the_callers_fault() {
    let engine = Engine::new().unwrap();
    let echo = segment(&engine.compile(STANDARD).unwrap(), "echo", 64, Limits::default());
    for (wrong, said) in [
        (tensor(&[0; 63]), "u8[63] instead of u8[64]"),
        (Tensor::from_f32(&[16], &[0.0; 16]).unwrap(), "f32[16] instead of u8[64]"),
        (Tensor::from_bytes(ElementType::U8, &[8, 8], &[0; 64]).unwrap(), "u8[8,8] instead of u8[64]"),
    ] {
        let error = run(&echo, wrong, &Stop::never()).unwrap_err();
        assert_eq!(error.fault, Fault::Input(format!("it is {said}")));
    }
}

#[test]
fn a_graph_that_fails_is_not_the_guests_fault() {
    let engine = Engine::new().unwrap();
    let code = engine.compile(STANDARD).unwrap();
    let graph = Graph::load(&archive(PICKS), GraphFormat::Nnef).unwrap();
    let picks = Segment::new("picks", &code, graph, Limits::default()).unwrap();
    let index = |index: i64| Tensor::from_bytes(ElementType::I64, &[1], &index.to_le_bytes()).unwrap();
    assert_eq!(run(&picks, index(1), &Stop::never()).unwrap().as_f32(), Some(&[20.0][..]));
    let error = run(&picks, index(2), &Stop::never()).unwrap_err();
    assert!(matches!(error.fault, Fault::Graph(_)), "{error}");
    assert_eq!(run(&picks, index(0), &Stop::never()).unwrap().as_f32(), Some(&[10.0][..]));
}

#[test]
fn several_tensors_go_in_and_come_out_in_the_graphs_order() {
    let engine = Engine::new().unwrap();
    let graph = Graph::load(&archive(CROSSES), GraphFormat::Nnef).unwrap();
    let code = engine.compile(STANDARD).unwrap();
    let crosses = Segment::new("crosses", &code, graph, Limits::default()).unwrap();
    let (a, b) = (Tensor::from_f32(&[1], &[1.0]).unwrap(), Tensor::from_f32(&[2], &[10.0, 20.0]).unwrap());
    let given = crosses.run(vec![a.clone(), b.clone()], &Stop::never()).unwrap();
    let values: Vec<_> = given.iter().map(|tensor| tensor.as_f32().unwrap().to_vec()).collect();
    assert_eq!(values, [vec![9.0, 19.0], vec![2.0]]);
    for (wrong, said) in [
        (vec![a.clone()], "1 tensors instead of 2"),
        (vec![b.clone(), a.clone()], "it is f32[2] instead of f32[1]"),
        (vec![a.clone(), b, a], "3 tensors instead of 2"),
    ] {
        let error = crosses.run(wrong, &Stop::never()).unwrap_err();
        assert_eq!(error.fault, Fault::Input(said.to_owned()));
    }
}

/// Looks its input up in a list of two.
const PICKS: &str = "graph picks(index) -> (picked) {\n\
    index = tract_core_external(shape = [1], datum_type = \"i64\");\n\
    picked = tract_core_gather([10.0, 20.0], index, axis = 0);\n}\n";

/// Takes two tensors and gives two.
const CROSSES: &str = "graph crosses(a, b) -> (less, more) {\n\
    a = tract_core_external(shape = [1], datum_type = \"f32\");\n\
    b = tract_core_external(shape = [2], datum_type = \"f32\");\n\
    less = b - 1.0;\n\
    more = a + 1.0;\n}\n";

/// An NNEF archive with this graph.
fn archive(graph: &str) -> Vec<u8> {
    let text = format!("version 1.0;\nextension tract_registry tract_core;\n{graph}");
    let mut header = [0; 512];
    let mut put = |at: usize, field: &str| header[at..at + field.len()].copy_from_slice(field.as_bytes());
    put(0, "graph.nnef");
    put(100, "0000644");
    put(124, &format!("{:011o}", text.len()));
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = [&header, text.as_bytes()].concat();
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}

#[test]
fn code_is_compiled_once_for_all_that_use_it_and_forgotten_after() {
    let engine = Engine::new().unwrap();
    let first = engine.compile(STANDARD).unwrap();
    assert!(engine.clone().compile(STANDARD).unwrap().is_shared_with(&first));
    assert!(!engine.compile(HOSTILE).unwrap().is_shared_with(&first));
    let user = segment(&first, "user", 1, Limits::default());
    drop(first);
    let again = engine.compile(STANDARD).unwrap();
    drop(user);
    assert!(engine.compile(STANDARD).unwrap().is_shared_with(&again));
}
