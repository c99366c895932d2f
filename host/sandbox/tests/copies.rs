//! Running a segment copies no tensor bytes. Alone in its file, because the count is the process's.
#![allow(clippy::unwrap_used)]

mod support;

use edgent_nn::{Stop, bytes_copied};
use edgent_sandbox::{Engine, Limits};
use support::{HOSTILE, STANDARD, run, segment, tensor};

#[test]
fn running_a_segment_copies_no_tensor_bytes() {
    let engine = Engine::new().unwrap();
    let echo = segment(&engine.compile(STANDARD).unwrap(), "echo", 1 << 20, Limits::default());
    let input = tensor(&vec![7; 1 << 20]);
    let before = bytes_copied();
    for _ in 0..1_000 {
        let output = run(&echo, input.clone(), &Stop::never()).unwrap();
        assert!(output.same_memory(&input));
    }
    assert_eq!(bytes_copied(), before);

    // The count is no constant: a guest that reads its input and writes another is counted.
    let copier = segment(&engine.compile(HOSTILE).unwrap(), "other-type", 1024, Limits::default());
    let input = tensor(&[7; 1024]);
    let before = bytes_copied();
    run(&copier, input, &Stop::never()).unwrap_err();
    assert_eq!(bytes_copied() - before, 2 * 1024);
}
