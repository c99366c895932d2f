//! Whatever a guest does, its caller gets an error with its name in it, and the host lives on.
#![allow(clippy::unwrap_used)]

mod support;

use edgent_nn::Stop;
use edgent_sandbox::{Engine, Fault, Limits, Segment};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};
use support::{HOSTILE, STANDARD, graph, run, segment, tensor};

const INPUT: &[u8] = &[7; 1024];

/// Behaviour, whose fault it is, and words that the error holds.
const CASES: [(&str, &str, &str); 26] = [
    ("trap", "trap", "unreachable"),
    ("panic", "trap", "unreachable"),
    ("memory", "trap", "unreachable"),
    ("recurse", "trap", "call stack exhausted"),
    ("overflow", "trap", "out of bounds memory access"),
    ("spin", "limit", "ran for more than"),
    ("compute", "limit", "ran for more than"),
    ("nothing", "output", "0 tensors instead of 1"),
    ("extra", "output", "2 tensors instead of 1"),
    ("other-shape", "output", "u8[1] instead of u8[1024]"),
    ("other-type", "output", "i32[256] instead of u8[1024]"),
    ("handles", "limit", "64 handles"),
    ("graphs", "limit", "64 handles"),
    ("contexts", "limit", "64 handles"),
    ("errors", "limit", "64 handles"),
    ("bytes", "limit", "holds more than 8388608 tensor bytes"),
    ("read", "limit", "copied more than 67108864 tensor bytes"),
    ("lying-tensor", "trap", "over the limit"),
    ("short-tensor", "trap", "takes 8 bytes, but 1 were given"),
    ("deep-tensor", "trap", "65536 dimensions"),
    ("wrong-name", "refused", "input 'wrong-name' is missing"),
    ("load", "refused", "ErrorCode::Security: segments may not load"),
    ("load-other", "refused", "ErrorCode::NotFound: the only graph here"),
    ("long-error", "refused", "xxx…"),
    ("rude-error", "refused", " [2J  gone"),
    ("well-behaved", "none", ""),
];

fn limits() -> Limits {
    Limits { held_bytes: 8 << 20, ..Limits::default() }
}

/// For guests that do not end by themselves; the others have all the time they need.
fn short() -> Limits {
    Limits { call_ms: 100, ..limits() }
}

fn whose(fault: &Fault) -> &'static str {
    match fault {
        Fault::Input(_) => "input",
        Fault::TimeUp => "time",
        Fault::Trap(_) => "trap",
        Fault::Limit(_) => "limit",
        Fault::Refused(_) => "refused",
        Fault::Output(_) => "output",
        Fault::Graph(_) => "graph",
    }
}

#[test]
fn a_bad_call_is_an_error_with_the_segments_name_and_the_host_lives_on() {
    let engine = Engine::new().unwrap();
    let hostile = engine.compile(HOSTILE).unwrap();
    let good = segment(&engine.compile(STANDARD).unwrap(), "good", INPUT.len(), Limits::default());
    for (behaviour, fault, said) in CASES {
        let limits = if ["spin", "compute"].contains(&behaviour) { short() } else { limits() };
        let bad = segment(&hostile, behaviour, INPUT.len(), limits);
        // Again, because what one call leaves behind must not change the next.
        for _ in 0..2 {
            match run(&bad, tensor(INPUT), &Stop::never()) {
                Ok(output) => assert_eq!((fault, output.bytes()), ("none", INPUT), "{behaviour}"),
                Err(error) => {
                    let text = error.to_string();
                    assert_eq!(whose(&error.fault), fault, "{text}");
                    assert!(text.starts_with(&format!("segment '{behaviour}': ")), "{text}");
                    assert!(text.contains(said), "{text}");
                    assert!(text.len() < 5_000, "{behaviour}: {} bytes of error", text.len());
                }
            }
            assert_eq!(run(&good, tensor(INPUT), &Stop::never()).unwrap().bytes(), INPUT, "after {behaviour}");
        }
    }
}

#[test]
fn a_guest_that_cannot_prepare_is_no_segment() {
    let engine = Engine::new().unwrap();
    let hostile = engine.compile(HOSTILE).unwrap();
    let cases = [
        ("prepare-trap", "trap", "unreachable"),
        ("prepare-spin", "limit", "ran for more than 100 ms"),
        ("prepare-error", "refused", "not today"),
    ];
    for (behaviour, fault, said) in cases {
        let error = Segment::new(behaviour, &hostile, graph(behaviour, 1), short()).unwrap_err();
        assert_eq!(whose(&error.fault), fault, "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
    let starved = Limits { memory_bytes: 1 << 16, ..limits() };
    let error = Segment::new("starved", &hostile, graph("starved", 1), starved).unwrap_err();
    assert!(error.to_string().contains("memory"), "{error}");
}

#[test]
fn what_a_guest_keeps_between_calls_is_bounded() {
    let engine = Engine::new().unwrap();
    let hoard = segment(&engine.compile(HOSTILE).unwrap(), "hoard", INPUT.len(), limits());
    // Each call keeps 1 MiB of the 8 MiB allowed, of which the input takes a part.
    for _ in 0..7 {
        run(&hoard, tensor(INPUT), &Stop::never()).unwrap();
    }
    let error = run(&hoard, tensor(INPUT), &Stop::never()).unwrap_err();
    assert_eq!(whose(&error.fault), "limit", "{error}");
    run(&hoard, tensor(INPUT), &Stop::never()).expect("the hoarder was not replaced by a fresh instance");
}

#[test]
fn a_call_ends_at_its_deadline_or_when_cancelled() {
    let engine = Engine::new().unwrap();
    let hostile = engine.compile(HOSTILE).unwrap();
    let good = segment(&engine.compile(STANDARD).unwrap(), "good", INPUT.len(), Limits::default());
    // Reaching the guest's own limit would be another fault.
    let patient = || Limits { call_ms: 20_000, ..limits() };
    for behaviour in ["spin", "compute"] {
        let endless = segment(&hostile, behaviour, INPUT.len(), patient());
        for deadline_ms in [0, 20] {
            let stop = Stop::at(Instant::now() + Duration::from_millis(deadline_ms));
            assert_eq!(run(&endless, tensor(INPUT), &stop).unwrap_err().fault, Fault::TimeUp, "{behaviour}");
        }
        let (stop, started) = (Stop::never(), Barrier::new(2));
        thread::scope(|scope| {
            let call = scope.spawn(|| {
                started.wait();
                run(&endless, tensor(INPUT), &stop)
            });
            started.wait();
            for _ in 0..2_000 {
                run(&good, tensor(INPUT), &Stop::never()).unwrap();
            }
            stop.cancel();
            assert_eq!(call.join().unwrap().unwrap_err().fault, Fault::TimeUp, "{behaviour}");
        });
    }
}

#[test]
fn what_is_no_segment_is_refused() {
    let importing_a_function =
        [b"\0asm\x0d\0\x01\0".as_slice(), b"\x07\x05\x01\x40\0\x01\0", b"\x0a\x14\x01\0\x0fget-environment\x01\0"]
            .concat();
    let engine = Engine::new().unwrap();
    let cases: [(&[u8], &str); 5] = [
        (b"", "no segment"),
        (b"garbage", "no segment"),
        (b"\0asm\x01\0\0\0", "no segment"),
        (b"\0asm\x0d\0\x01\0", "no exported instance named `edgent:segment/layers@0.1.0`"),
        (&importing_a_function, "imports function `get-environment`"),
    ];
    for (bytes, said) in cases {
        let error = engine.compile(bytes).expect_err(said).to_string();
        assert!(error.contains(said), "{error}");
    }
    let cut = engine.compile(&HOSTILE[..HOSTILE.len() / 2]);
    assert!(cut.is_err());
    let huge = engine.compile(&vec![0; edgent_sandbox::CODE_BYTES_MAX + 1]).unwrap_err();
    assert!(huge.to_string().contains("over the limit"), "{huge}");
}

#[test]
fn fuel_ends_what_time_would_not() {
    let engine = Engine::new().unwrap();
    let limits = Limits { call_fuel: 1_000_000, ..limits() };
    let spin = segment(&engine.compile(HOSTILE).unwrap(), "spin", INPUT.len(), limits.clone());
    for _ in 0..2 {
        let error = run(&spin, tensor(INPUT), &Stop::never()).unwrap_err();
        assert_eq!(error.fault, Fault::Limit("it used up its 1000000 of fuel".to_owned()));
    }
    // What one call used is not missing in the next.
    let good = segment(&engine.compile(STANDARD).unwrap(), "good", INPUT.len(), limits);
    for _ in 0..10_000 {
        run(&good, tensor(INPUT), &Stop::never()).unwrap();
    }
}

#[test]
fn numbers_that_are_none_are_refused_where_they_must_not_be() {
    let engine = Engine::new().unwrap();
    let code = engine.compile(STANDARD).unwrap();
    let fact = edgent_nn::Fact::new(edgent_nn::ElementType::F32, &[2]).unwrap();
    let echo = || Segment::new("echo", &code, edgent_nn::Graph::identity("x", &fact).unwrap(), limits()).unwrap();
    let input = || edgent_nn::Tensor::from_f32(&[2], &[1.0, f32::NAN]).unwrap();
    assert!(run(&echo(), input(), &Stop::never()).is_ok(), "nobody said that it is wrong");
    let said = |segment: Segment| run(&segment, input(), &Stop::never()).unwrap_err().to_string();
    let guests = said(echo().with_finite([false], [true]));
    assert_eq!(guests, "segment 'echo': the guest returned NaN or infinity in 'x', at element 1");
    let callers = said(echo().with_finite([true], [true]));
    assert_eq!(callers, "segment 'echo': wrong input: NaN or infinity in 'x', at element 1");
}
