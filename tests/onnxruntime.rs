//! onnxruntime as a second backend of two real hosts; only in a program that was built with it. `just onnxruntime` says
//! in the environment where its library is.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/tool.rs"]
mod tool;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use tool::{edgent, project};

const MODEL: &str = "models/branchy-alexnet/branchy-alexnet.onnx";

fn library() -> String {
    std::env::var("EDGENT_ONNXRUNTIME").expect("`just onnxruntime` says where the library is")
}

fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("onnxruntime").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Its segments are parts of the ONNX file.
fn bundle() -> &'static str {
    static BUNDLE: OnceLock<String> = OnceLock::new();
    BUNDLE.get_or_init(|| {
        let dir = scratch("bundle").to_str().unwrap().to_owned();
        let built = edgent(&["build", MODEL, "--out", &dir, "--graphs", "onnx", "--samples", "1"]);
        assert_eq!(built["formats"].as_object().unwrap().keys().collect::<Vec<_>>(), ["onnx"]);
        dir
    })
}

/// Every segment is run by both, gives the same, and is left to the one that was faster.
#[test]
fn a_profile_says_who_runs_each_segment() {
    let profile = edgent(&["profile", bundle(), "--quick", "--onnxruntime", &library()]);
    let backends = profile["backends"].as_array().unwrap();
    assert!(backends.len() > 10, "{backends:?}");
    for row in backends {
        let [tract_us, onnxruntime_us] = ["tract_us", "onnxruntime_us"].map(|key| row[key].as_f64());
        let is_theirs = onnxruntime_us.unwrap() < tract_us.unwrap();
        assert_eq!(row["backend"], if is_theirs { "onnxruntime" } else { "tract" }, "{row}");
    }
}

/// A host that has it uses it for who is allowed it, and for nobody else; the answers are the same.
#[test]
fn a_host_has_it_read_only_what_its_policy_allows() {
    let folder = scratch("policy");
    let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    edgent(&["keygen", "--out", &at("acme"), "--no-password"]);
    edgent(&["sign", bundle(), "--secret-key", &at("acme.key"), "--version", "1"]);
    for (grants, is_allowed) in [("\"native\"", false), ("\"native\", \"onnxruntime\"", true)] {
        let publisher = format!("[[publisher]]\nname = \"acme\"\nkeys = [\"acme.pub\"]\nallow = [{grants}]\n");
        std::fs::write(at("policy.toml"), format!("format = 1\nunsigned = \"refuse\"\n{publisher}")).unwrap();
        let mut host = Command::new(env!("CARGO_BIN_EXE_edgent-host"));
        host.args(["--role", "device", "--listen", "127.0.0.1:0", "--model", bundle(), "--onnxruntime", &library()]);
        host.args(["--policy", &at("policy.toml"), "--log-format", "json", "--store"]);
        host.arg(scratch("store")).current_dir(project()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut host = Ended(host.spawn().unwrap());
        let mut ready = String::new();
        BufReader::new(host.0.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let address = ready.split_whitespace().last().expect("the device ended before it was ready");
        let answered = edgent(&["infer", "models/branchy-alexnet/samples/examples/bag.png", "--device", address]);
        assert_eq!(answered["answers"][0]["label"], "bag");
        let mut log = String::new();
        let mut stderr = host.0.stderr.take().unwrap();
        drop(host);
        stderr.read_to_string(&mut log).unwrap();
        assert_eq!(log.contains("does not let its publisher use onnxruntime"), !is_allowed, "{log}");
        assert!(is_allowed || log.contains("\"onnxruntime\":0"), "{log}");
    }
}

#[test]
fn what_is_no_library_is_refused_with_its_name() {
    let file = project().join("README.md");
    let mut host = Command::new(env!("CARGO_BIN_EXE_edgent-host"));
    host.args(["--role", "device", "--listen", "127.0.0.1:0", "--model", bundle(), "--onnxruntime"]).arg(&file);
    let ended = host.output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(2), "{said}");
    assert!(said.contains("onnxruntime cannot be loaded from") && said.contains("README.md"), "{said}");
}

/// Ends what it started, however the test ends.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
