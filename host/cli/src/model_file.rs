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
    pub(crate) classes: Vec<String>,
    /// Whether NaN and infinity are wrong wherever tensors cross.
    #[serde(default)]
    pub(crate) finite: bool,
    pub(crate) input: Input,
    pub(crate) exits: Vec<Exit>,
    pub(crate) samples: Option<Samples>,
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
    pub(crate) output: String,
    /// What plans are made with.
    pub(crate) accuracy_validation: f64,
    /// What is quoted; nothing is chosen by it.
    #[serde(rename = "accuracy_test")]
    _accuracy_test: f64,
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
    /// What is said of `model`, an ONNX file.
    pub(crate) fn beside(model: &Path) -> Result<Self> {
        let own = model.with_extension("toml");
        Self::read(&if own.exists() { own } else { model.with_file_name("model.toml") })
    }

    fn read(path: &Path) -> Result<Self> {
        let said = |why: &dyn std::fmt::Display| BadInput::error(format!("{}: {why}", path.display()));
        let text = fs::read_to_string(path).map_err(|e| {
            said(&format!("{e}; a model needs a model.toml beside it that names its classes, exits and their accuracies (see models/branchy-alexnet)"))
        })?;
        let mut file: Self = toml::from_str(&text).map_err(|e| said(&e))?;
        if file.format != FORMAT {
            return Err(said(&format!("format {} is not {FORMAT}", file.format)));
        }
        path.clone_into(&mut file.path);
        Ok(file)
    }

    /// A path of the file, from where we are.
    pub(crate) fn at(&self, path: &Path) -> PathBuf {
        self.path.with_file_name(path)
    }
}
