//! Hosts with an HTTP front, and what they are asked with.
#![allow(dead_code)]

use edgent_cli::hosts::HostProcess;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const EDGENT: &str = env!("CARGO_BIN_EXE_edgent");
const EDGENT_HOST: &str = env!("CARGO_BIN_EXE_edgent-host");

/// Long enough for a busy machine, short enough to notice a hang.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the branchy-alexnet takes: a picture.
pub const PIXELS: usize = 3 * 64 * 64;

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn said(arguments: &[&str]) -> Output {
    Command::new(EDGENT).args(arguments).arg("--json").current_dir(project()).output().unwrap()
}

/// Tries until a host can do it: one that listens may have no edge yet.
pub fn edgent_in_time(arguments: &[&str]) {
    let start = Instant::now();
    loop {
        let output = said(arguments);
        if output.status.success() {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

pub fn edgent(arguments: &[&str]) -> Value {
    let output = said(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{arguments:?}: {e}; {said}"))
}

/// A bundle that all tests share, built once by the command that users run.
pub fn built(model: &str, name: &str, more: &[&str]) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    edgent(&[&["build", model, "--out", dir.to_str().unwrap(), "--samples", "50"], more].concat());
    dir
}

pub fn bundle() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(|| built("models/branchy-alexnet/branchy-alexnet.onnx", "http-branchy-alexnet", &[]))
}

pub fn several() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(|| built("host/nn/tests/data/several/several.onnx", "http-several", &["--dim", "rows=3"]))
}

pub async fn host(role: &str, model: &Path, more: &[&str]) -> (HostProcess, SocketAddr) {
    let model = model.to_str().unwrap();
    let own = ["--role", role, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--model", model];
    let host = HostProcess::start(Path::new(EDGENT_HOST), &[&own, more].concat(), true).await.unwrap();
    let http = host.http().expect("the host says where it listens for HTTP");
    (host, http)
}

/// An example image and its class; its pixels as the network takes them.
pub fn example() -> (String, Vec<u8>) {
    let path = project().join("models/branchy-alexnet/samples/examples/bag.png");
    let mut reader =
        png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&path).unwrap())).read_info().unwrap();
    let mut rows = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut rows).unwrap();
    let channels = info.color_type.samples();
    let planes = (0..channels).flat_map(|channel| rows.iter().skip(channel).step_by(channels).copied());
    (path.to_str().unwrap().to_owned(), planes.collect())
}

/// Damages requests at random places, the same ones in each run.
pub struct Damage(fastrand::Rng);

impl Default for Damage {
    fn default() -> Self {
        Self(fastrand::Rng::with_seed(1))
    }
}

impl Damage {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0.usize(..bound)
    }

    /// Flips bits, leaves bytes out and adds some of those that mean something; mostly in the head, since a changed pixel
    /// is a picture like any other.
    pub fn spoil(&mut self, good: &[u8], head: usize, telling: &[u8]) -> Vec<u8> {
        let mut spoilt = good.to_vec();
        for _ in 0..=self.below(3) {
            let within = if self.below(4) > 0 { head } else { good.len() };
            let at = self.below(within).min(spoilt.len() - 1);
            match self.below(3) {
                0 => spoilt[at] ^= 1 << self.below(8),
                1 => drop(spoilt.drain(at..(at + 1 + self.below(3)).min(spoilt.len()))),
                _ => spoilt.insert(at, telling[self.below(telling.len())]),
            }
        }
        spoilt
    }
}
