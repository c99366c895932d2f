//! Many segments fit into the address space of a small device.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use edgent_nn::Stop;
use edgent_sandbox::{Engine, Limits};
use std::env;
use std::process::Command;
use support::{STANDARD, run, segment, tensor};

const ADDRESS_SPACE_KIB: u32 = 2 << 20;
const SEGMENTS: usize = 500;
const INSIDE: &str = "EDGENT_TEST_INSIDE";

#[test]
fn five_hundred_segments_fit_into_2_gib() {
    if env::var_os(INSIDE).is_none() {
        // This very test again, where address space is short.
        let again = Command::new("sh")
            .args(["-c", &format!("ulimit -v {ADDRESS_SPACE_KIB} && exec \"$@\""), "sh"])
            .arg(env::current_exe().unwrap())
            .args(["--exact", "five_hundred_segments_fit_into_2_gib"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&again.stdout);
        assert!(again.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let engine = Engine::new().unwrap();
    let code = engine.compile(STANDARD).unwrap();
    let segments: Vec<_> =
        (0..SEGMENTS).map(|index| segment(&code, &index.to_string(), 64, Limits::default())).collect();
    for segment in &segments {
        run(segment, tensor(&[1; 64]), &Stop::never()).unwrap();
    }
}
