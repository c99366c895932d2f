//! An ONNX file as one decluttered network.

use crate::cut::Cut;
use crate::graph::{Graph, concrete};
use crate::guard::guarded;
use crate::{CutError, Fact, Port};
use std::fmt;
use tract_onnx::prelude::{Framework, InferenceModelExt, TypedModel};

/// The largest ONNX file that is read.
pub const MODEL_BYTES_MAX: usize = 1 << 30;

/// A whole network, decluttered: what segments are cut from and compared with.
pub struct Imported {
    pub(crate) model: TypedModel,
    pub(crate) input: Port,
    /// The graph's outputs in the file's order, under the file's names: the exits.
    pub(crate) outputs: Vec<Port>,
}

impl Imported {
    /// Reads an ONNX file that holds everything itself (external data is refused), has one input,
    /// and fixed dimensions.
    pub fn from_onnx(bytes: &[u8]) -> Result<Self, ImportError> {
        if bytes.len() > MODEL_BYTES_MAX {
            return Err(ImportError::TooLarge(bytes.len()));
        }
        // Exporters leave symbolic shapes on inner values that refuse to unify with the concrete
        // input; they are only hints, so they are ignored.
        let onnx = tract_onnx::onnx().with_ignore_value_info(true);
        let mut proto = guarded(|| onnx.proto_model_for_read(&mut &*bytes)).map_err(ImportError::NotOnnx)?;
        // Free text that would otherwise travel into each segment, where NNEF cannot always write it.
        proto.metadata_props.clear();
        let names: Vec<String> =
            proto.graph.iter().flat_map(|graph| &graph.output).map(|output| output.name.clone()).collect();
        let model = guarded(|| onnx.model_for_proto_model(&proto)?.into_typed()?.into_decluttered())
            .map_err(ImportError::Unsupported)?;
        let (input, outputs) = Self::ports(&model, names)?;
        Ok(Self { model, input, outputs })
    }

    /// The one input.
    pub fn input(&self) -> &Port {
        &self.input
    }

    /// The exits' outputs, in the file's order.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// The whole network as one graph with every exit as an output: the reference.
    pub fn whole(&self) -> Result<Graph, ImportError> {
        Graph::prepare(self.model.clone()).map_err(|e| ImportError::Unsupported(e.to_string()))
    }

    /// Cuts the network wherever a single tensor separates what comes before from what comes after.
    pub fn cut(&self) -> Result<Cut, CutError> {
        Cut::of(self)
    }

    fn ports(model: &TypedModel, names: Vec<String>) -> Result<(Port, Vec<Port>), ImportError> {
        let unusable = |name: &str, why: String| ImportError::Port { name: name.to_owned(), why };
        let [input] = model.inputs.as_slice() else {
            return Err(ImportError::Inputs(model.inputs.len()));
        };
        let name = model.node(input.node).name.clone();
        let fact = |outlet, name: &str| -> Result<Fact, ImportError> {
            let fact = model.outlet_fact(outlet).map_err(|e| unusable(name, format!("{e:#}")))?;
            concrete(fact).map_err(|why| unusable(name, why))
        };
        let input = Port { fact: fact(*input, &name)?, name };
        let outputs = names
            .into_iter()
            .zip(&model.outputs)
            .map(|(name, outlet)| Ok(Port { fact: fact(*outlet, &name)?, name }))
            .collect::<Result<Vec<_>, ImportError>>()?;
        if outputs.is_empty() {
            return Err(ImportError::NoOutput);
        }
        Ok((input, outputs))
    }
}

impl fmt::Debug for Imported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Imported").field("input", &self.input).field("outputs", &self.outputs).finish_non_exhaustive()
    }
}

/// Why a file cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Over [`MODEL_BYTES_MAX`].
    #[error("the file has {0} bytes, over the limit of {MODEL_BYTES_MAX}")]
    TooLarge(usize),
    /// The bytes are no ONNX protobuf.
    #[error("this is not an ONNX file: {0}")]
    NotOnnx(String),
    /// tract cannot run it.
    #[error("the network cannot be run here: {0}")]
    Unsupported(String),
    /// More or fewer inputs than one.
    #[error("the network has {0} inputs; only networks with exactly one can be cut")]
    Inputs(usize),
    /// Nothing to answer with.
    #[error("the network has no output")]
    NoOutput,
    /// An input or output that is not a tensor of fixed size.
    #[error("'{name}' cannot be used: {why}; export the model with fixed dimensions")]
    Port {
        /// The input's or output's name in the file.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}
