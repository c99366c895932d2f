//! The tool, run as its users run it.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The project's folder, where commands are run.
pub fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Runs a command. Gives its exit code, stdout and stderr.
pub fn run(arguments: &[&str]) -> (i32, String, String) {
    let tool = env!("CARGO_BIN_EXE_edgent");
    let output = Command::new(tool).args(arguments).arg("--json").current_dir(project()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Runs a command that must succeed and print exactly one JSON object.
pub fn edgent(arguments: &[&str]) -> Value {
    let (code, stdout, stderr) = run(arguments);
    assert_eq!(code, 0, "{arguments:?}: {stderr}");
    serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{arguments:?} printed {stdout:?}: {e}"))
}
