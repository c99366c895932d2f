//! `model.toml`: what a model's maker says of it. Where a folder has several versions of a network, `NAME.toml` is what
//! is said of `NAME.onnx`.

use crate::output::BadInput;
use anyhow::Result;
use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};

const FORMAT: u32 = 1;

/// Beside the ONNX file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelFile {
    format: u32,
    pub(crate) name: String,
    /// For the maker's own scripts; `edgent build` is given the file.
    #[serde(rename = "onnx")]
    _onnx: PathBuf,
    /// None: it is no classifier.
    #[serde(default)]
    pub(crate) classes: Vec<String>,
    /// Whether NaN and infinity are wrong wherever tensors cross.
    #[serde(default)]
    pub(crate) finite: bool,
    /// The only input…
    input: Option<Input>,
    /// …or several. What the file leaves open of their dimensions is taken from here.
    #[serde(default)]
    inputs: Vec<Input>,
    /// None: one, which gives all outputs.
    #[serde(default)]
    pub(crate) exits: Vec<Exit>,
    pub(crate) samples: Option<Samples>,
    /// A guest that makes the network's inputs of others…
    pub(crate) before: Option<Before>,
    /// …and one that makes the answer of what each exit gives.
    pub(crate) after: Option<After>,
    #[serde(skip)]
    pub(crate) path: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Input {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Exit {
    /// The only output…
    output: Option<String>,
    /// …or several that belong together.
    #[serde(default)]
    outputs: Vec<String>,
    /// What plans are made with; 0: nobody knows.
    #[serde(default)]
    pub(crate) accuracy_validation: f64,
    /// What is quoted; nothing is chosen by it.
    #[serde(default, rename = "accuracy_test")]
    _accuracy_test: f64,
}

/// Paths are relative to the file, and in its folder.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Before {
    /// The component.
    pub(crate) guest: PathBuf,
    /// Bytes for it to read.
    pub(crate) data: Option<PathBuf>,
    /// What it takes; it gives what the network takes.
    pub(crate) takes: Vec<OwnTensor>,
}

/// As [`Before`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct After {
    pub(crate) guest: PathBuf,
    pub(crate) data: Option<PathBuf>,
    /// What it gives; it takes what an exit gives.
    pub(crate) gives: Vec<OwnTensor>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OwnTensor {
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) element_type: String,
    pub(crate) shape: Vec<usize>,
}

/// Paths are relative to the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Samples {
    pub(crate) validation: PathBuf,
    pub(crate) test: PathBuf,
    pub(crate) golden: PathBuf,
    pub(crate) tile_px: usize,
}

impl ModelFile {
    /// What is said of `model`, an ONNX file, by NAME.toml or model.toml beside it. One of which nothing is said is a network
    /// without classes or samples, all of whose outputs are one exit's.
    pub(crate) fn beside(model: &Path) -> Result<Self> {
        let files = [model.with_extension("toml"), model.with_file_name("model.toml")];
        match files.into_iter().find(|path| path.exists()) {
            Some(path) => Self::read(&path),
            None => Ok(Self {
                format: FORMAT,
                name: model.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned(),
                _onnx: model.to_owned(),
                classes: Vec::new(),
                finite: false,
                input: None,
                inputs: Vec::new(),
                exits: Vec::new(),
                samples: None,
                before: None,
                after: None,
                path: PathBuf::new(),
            }),
        }
    }

    fn read(path: &Path) -> Result<Self> {
        let said = |why: &dyn std::fmt::Display| BadInput::error(format!("{}: {why}", path.display()));
        let text = fs::read_to_string(path).map_err(|e| said(&e))?;
        let mut file: Self = toml::from_str(&text).map_err(|e| said(&e))?;
        if file.format != FORMAT {
            return Err(said(&format!("format {} is not {FORMAT}", file.format)));
        }
        path.clone_into(&mut file.path);
        Ok(file)
    }

    pub(crate) fn inputs(&self) -> impl Iterator<Item = &Input> {
        self.input.iter().chain(&self.inputs)
    }

    /// A path of the file, from where we are.
    pub(crate) fn at(&self, path: &Path) -> PathBuf {
        self.path.with_file_name(path)
    }
}

impl Exit {
    pub(crate) fn outputs(&self) -> impl Iterator<Item = &String> {
        self.output.iter().chain(&self.outputs)
    }
}
