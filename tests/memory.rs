//! What memory hosts take: weights once, however many versions and requests use them, and little address space.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/tool.rs"]
mod tool;

use edgent_bundle::Bundle;
use edgent_nn::graphs_read;
use edgent_runtime::Deployment;
use edgent_sandbox::Engine;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use tool::{edgent, project};

const ADDRESS_SPACE_KIB: u32 = 2 << 20;

fn bundle() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("memory-bundle");
        let model = "models/branchy-alexnet/branchy-alexnet.onnx";
        edgent(&["build", model, "--out", dir.to_str().unwrap(), "--samples", "1"]);
        dir
    })
}

/// Ends what it started, however the test ends.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Nothing else in this process reads graphs.
#[test]
fn versions_that_share_segments_share_their_weights_for_as_long_as_one_is_there() {
    let bundle = Bundle::open(bundle()).unwrap();
    let segments = bundle.manifest().segments.len() as u64;
    let engine = Engine::new().unwrap();
    let read = || {
        let before = graphs_read();
        let deployment = Deployment::prepare(&bundle, &engine, 1.0).unwrap();
        deployment.measure(1).unwrap();
        (deployment, graphs_read() - before)
    };
    let (first, of_first) = read();
    assert_eq!(of_first, segments);
    let (second, of_second) = read();
    assert_eq!(of_second, 0, "weights that were in memory were read again");
    drop(first);
    assert_eq!(read().1, 0, "the second version still has them");
    drop(second);
    assert_eq!(read().1, segments, "weights that nobody uses were kept");
}

#[test]
fn a_device_with_2_gib_of_address_space_tries_a_bundle_and_answers() {
    let store = Path::new(env!("CARGO_TARGET_TMPDIR")).join("memory-store");
    let _ = std::fs::remove_dir_all(&store);
    let mut host = Command::new("sh");
    host.args(["-c", &format!("ulimit -v {ADDRESS_SPACE_KIB} && exec \"$@\""), "sh"]);
    host.arg(env!("CARGO_BIN_EXE_edgent-host")).args(["--role", "device", "--listen", "127.0.0.1:0"]);
    host.arg("--model").arg(bundle()).arg("--store").arg(store).current_dir(project()).stdout(Stdio::piped());
    let mut host = Ended(host.spawn().unwrap());
    let mut ready = String::new();
    BufReader::new(host.0.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let address = ready.split_whitespace().last().expect("the device ended before it was ready");
    let image = "models/branchy-alexnet/samples/examples/bag.png";
    let answered = edgent(&["infer", image, "--device", address]);
    assert_eq!(answered["answers"][0]["label"], "bag");
}
