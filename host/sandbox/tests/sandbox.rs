//! What guests do, good and bad, and that the host lives on.
#![allow(clippy::unwrap_used)]

use edgent_nn::{ElementType, Fact, Graph, Stop, Tensor, bytes_copied};
use edgent_sandbox::{Code, Engine, Fault, Limits, Segment};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

/// The count of copied bytes is the process's, so tests that look at it take turns.
static TURN: Mutex<()> = Mutex::new(());

const HOSTILE: &[u8] = include_bytes!("../../../guest-layers/prebuilt/hostile.wasm");

fn image(bytes: usize) -> Tensor {
    Tensor::from_bytes(ElementType::U8, &[bytes], &vec![7; bytes]).unwrap()
}

fn segment(engine: &Engine, code: &Code, name: &str, bytes: usize) -> Segment {
    let graph = Graph::identity(name, &Fact::new(ElementType::U8, &[bytes]).unwrap()).unwrap();
    Segment::new(engine, name, code, graph, Limits::default()).unwrap()
}

#[test]
fn a_bad_guest_is_an_error_with_its_name_and_the_host_lives_on() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let engine = Engine::new().unwrap();
    let hostile = engine.compile(HOSTILE).unwrap();
    let good = segment(&engine, &engine.compile(edgent_bundle::standard_guest()).unwrap(), "good", 1024);
    let cases = [
        ("trap", "wasm `unreachable` instruction"),
        ("spin", "time was up"),
        ("read", "time was up|more tensor bytes"),
        ("memory", "wasm `unreachable` instruction"),
        ("recurse", "out of bounds memory access"),
        ("nothing", "returned 0 tensors"),
        ("extra", "returned 2 tensors"),
        ("other-shape", "returned u8[1] instead of u8[1024]"),
        ("handles", "resource table"),
        ("bytes", "stopped: "),
        ("lying-tensor", "over the limit"),
        ("load", "may not load graphs from bytes"),
        ("load-other", "only graph here is"),
        ("long-error", "xxx"),
    ];
    for (behaviour, expected) in cases {
        let bad = segment(&engine, &hostile, behaviour, 1024);
        for _ in 0..3 {
            let stop = Stop::at(Instant::now() + Duration::from_millis(100));
            let error = bad.run(image(1024), &stop).expect_err(behaviour).to_string();
            assert!(error.starts_with(&format!("segment '{behaviour}': ")), "{error}");
            assert!(expected.split('|').any(|said| error.contains(said)), "{behaviour}: {error}");
            assert!(error.len() < 5_000, "{behaviour}: {} bytes of error", error.len());
            assert_eq!(good.run(image(1024), &Stop::never()).unwrap().bytes(), image(1024).bytes());
        }
    }
}

#[test]
fn a_guest_that_was_told_to_stop_stops() {
    let engine = Engine::new().unwrap();
    let spin = segment(&engine, &engine.compile(HOSTILE).unwrap(), "spin", 1);
    let stop = Stop::at(Instant::now());
    assert_eq!(spin.run(image(1), &stop).unwrap_err().fault, Fault::TimeUp);
}

#[test]
fn running_a_segment_copies_no_tensor_bytes() {
    let _turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    let engine = Engine::new().unwrap();
    let code = engine.compile(edgent_bundle::standard_guest()).unwrap();
    let echo = segment(&engine, &code, "echo", 1 << 20);
    let input = image(1 << 20);
    let before = bytes_copied();
    for _ in 0..1_000 {
        let output = echo.run(input.clone(), &Stop::never()).unwrap();
        assert!(output.same_memory(&input));
    }
    assert_eq!(bytes_copied(), before);
}

#[test]
fn one_segment_serves_many_threads() {
    let engine = Engine::new().unwrap();
    let echo = segment(&engine, &engine.compile(edgent_bundle::standard_guest()).unwrap(), "echo", 64);
    thread::scope(|scope| {
        for caller in 0..8_u8 {
            let echo = &echo;
            scope.spawn(move || {
                let input = Tensor::from_bytes(ElementType::U8, &[64], &[caller; 64]).unwrap();
                for _ in 0..200 {
                    assert_eq!(echo.run(input.clone(), &Stop::never()).unwrap().bytes(), [caller; 64]);
                }
            });
        }
    });
}

#[test]
fn what_is_no_segment_is_refused() {
    let engine = Engine::new().unwrap();
    for bytes in [&b""[..], b"\0asm\x01\0\0\0", b"\0asm\x0d\0\x01\0", b"garbage"] {
        assert!(engine.compile(bytes).is_err(), "{bytes:?}");
    }
}
