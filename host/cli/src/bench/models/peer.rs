//! The child that runs onnxruntime.

use crate::output::BadInput;
use anyhow::{Context, Result, ensure};
use edgent_nn::{ElementType, Fact, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use tempfile::TempDir;

const SCRIPT: &str = "tests/peers/onnxruntime_turns.py";

/// Takes one order a line and answers with one; it ends when its input does.
pub(super) struct Peer {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    folder: TempDir,
    /// The operators of the network that was loaded.
    pub(super) nodes: Vec<String>,
}

/// A kernel in one of the runs that were profiled.
#[derive(Deserialize)]
pub(super) struct Kernel {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) us: f64,
}

/// What onnxruntime gave.
pub(super) struct Outputs(Vec<u8>);

impl Outputs {
    pub(super) fn tensor(&self, name: &str, fact: &Fact) -> Option<Tensor> {
        let file = SafeTensors::deserialize(&self.0).ok()?;
        Tensor::from_bytes(fact.element_type, &fact.dims, file.tensor(name).ok()?.data()).ok()
    }
}

impl Peer {
    /// Its runs have so many threads.
    pub(super) fn start(python: &Path, threads: usize) -> Result<Self> {
        let mut command = Command::new(python);
        command.args([SCRIPT, &threads.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .map_err(|e| BadInput::error(format!("{}: {e}; `just peers` installs onnxruntime", python.display())))?;
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("the child has no output")?);
        Ok(Self { child, orders, answers, folder: tempfile::tempdir()?, nodes: Vec::new() })
    }

    /// Loads a network; what it gives for these inputs.
    pub(super) fn load(&mut self, net: &Path, inputs: &[(String, Tensor)]) -> Result<Outputs> {
        #[derive(Deserialize)]
        struct Loaded {
            nodes: Vec<String>,
        }
        let (given, outputs) = (self.write(inputs)?, self.folder.path().join("outputs.safetensors"));
        self.nodes = self.ask::<Loaded>(&json!({ "load": net, "inputs": given, "outputs": outputs }))?.nodes;
        Ok(Outputs(fs::read(outputs)?))
    }

    /// The times of some runs of the network that was loaded.
    pub(super) fn run(&mut self, runs: usize) -> Result<Vec<f64>> {
        #[derive(Deserialize)]
        struct Ran {
            ms: Vec<f64>,
        }
        let ran: Ran = self.ask(&json!({ "run": runs }))?;
        ensure!(ran.ms.len() == runs, "onnxruntime was asked for {runs} runs and timed {}", ran.ms.len());
        Ok(ran.ms)
    }

    /// Every kernel of every run.
    pub(super) fn profile(&mut self, net: &Path, inputs: &[(String, Tensor)], runs: usize) -> Result<Vec<Kernel>> {
        #[derive(Deserialize)]
        struct Profiled {
            operators: Vec<Kernel>,
        }
        let given = self.write(inputs)?;
        Ok(self.ask::<Profiled>(&json!({ "profile": net, "inputs": given, "run": runs }))?.operators)
    }

    fn write(&self, inputs: &[(String, Tensor)]) -> Result<PathBuf> {
        let path = self.folder.path().join("inputs.safetensors");
        let views = inputs.iter().map(|(name, tensor)| {
            let element_type = match tensor.element_type() {
                ElementType::F16 => Dtype::F16,
                ElementType::F32 => Dtype::F32,
                ElementType::F64 => Dtype::F64,
                ElementType::U8 => Dtype::U8,
                ElementType::I32 => Dtype::I32,
                ElementType::I64 => Dtype::I64,
            };
            Ok((name.clone(), TensorView::new(element_type, tensor.dims().to_vec(), tensor.bytes())?))
        });
        fs::write(&path, serialize(views.collect::<Result<Vec<_>>>()?, None)?)?;
        Ok(path)
    }

    fn ask<T: DeserializeOwned>(&mut self, order: &serde_json::Value) -> Result<T> {
        let orders = self.orders.as_mut().context("the child takes no orders any more")?;
        writeln!(orders, "{order}").and_then(|()| orders.flush()).context("onnxruntime's process ended")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        ensure!(!answer.is_empty(), "onnxruntime's process ended; what it said is above");
        serde_json::from_str(&answer).context("onnxruntime's process answers something else")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}
