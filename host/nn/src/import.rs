//! An ONNX file as one decluttered network.

use crate::cut::Cut;
use crate::graph::{Graph, concrete, onnx};
use crate::guard::guarded;
use crate::onnx::{MODEL_BYTES_MAX, OnnxFile};
use crate::{CutError, Fact, GraphFormat, Pins, Port};
use std::collections::BTreeSet;
use std::fmt;
use tract_onnx::prelude::{Framework, InferenceModelExt, OutletId, SpecialOps, TractResult, TypedModel};
use tract_onnx::tract_core::ops::identity::Identity;

/// A whole network, decluttered: what segments are cut from and compared with.
pub struct Imported {
    pub(crate) model: TypedModel,
    pub(crate) file: OnnxFile,
    pub(crate) inputs: Vec<Port>,
    /// The graph's outputs in the file's order, under the file's names.
    pub(crate) outputs: Vec<Port>,
}

impl Imported {
    /// Reads an ONNX file that holds everything itself (external data is refused). Dimensions of inputs that it
    /// leaves open are taken from `pins`.
    pub fn from_onnx(bytes: &[u8], pins: &Pins) -> Result<Self, ImportError> {
        let file = OnnxFile::read(bytes, pins)?;
        let model = guarded(|| {
            let mut model = onnx().model_for_proto_model(&file.proto)?.into_typed()?.into_decluttered()?;
            name_outputs(&mut model, &file.output_names())?;
            Ok(model)
        });
        let model = model.map_err(ImportError::Unsupported)?;
        let (inputs, outputs) = Self::ports(&model, file.output_names())?;
        Ok(Self { model, file, inputs, outputs })
    }

    /// What goes in, in the file's order.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// What comes out, in the file's order.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// The file as it was understood, if that is not how it was given: reading it needs no pins.
    pub fn changed_file(&self) -> Option<Vec<u8>> {
        self.file.changed()
    }

    /// For people: which dimensions were pinned, and what crosses in a wider type than the file's.
    pub fn notes(&self) -> &[String] {
        &self.file.notes
    }

    /// The whole network as one graph with every output: the reference.
    pub fn whole(&self) -> Result<Graph, ImportError> {
        Graph::prepare(self.model.clone()).map_err(|e| ImportError::Unsupported(e.to_string()))
    }

    /// As much of the network as these outputs need, as indices, in one graph.
    pub fn whole_to(&self, outputs: &[usize]) -> Result<Graph, ImportError> {
        let mut model = self.model.clone();
        let ends: Vec<OutletId> =
            outputs.iter().filter_map(|output| self.model.outputs.get(*output).copied()).collect();
        guarded(|| {
            model.select_output_outlets(&ends)?;
            model.compact()
        })
        .map_err(ImportError::Unsupported)?;
        Graph::prepare(model).map_err(|e| ImportError::Unsupported(e.to_string()))
    }

    /// The whole network as tract alone would run it.
    pub fn plain(&self) -> Result<Graph, ImportError> {
        Graph::plain(self.model.clone()).map_err(|e| ImportError::Unsupported(e.to_string()))
    }

    /// Cuts the network into segments on the way to some exits, each of which gives these outputs, as indices.
    pub fn cut(&self, exits: &[Vec<usize>]) -> Result<Cut, CutError> {
        self.cut_into(GraphFormat::Nnef, exits)
    }

    /// The same, with segments that are written in this way where that can be. As ONNX they begin and end where the
    /// file has names for what crosses, so there may be fewer.
    pub fn cut_into(&self, preferred: GraphFormat, exits: &[Vec<usize>]) -> Result<Cut, CutError> {
        Cut::of(self, exits, preferred)
    }

    fn ports(model: &TypedModel, names: Vec<String>) -> Result<(Vec<Port>, Vec<Port>), ImportError> {
        let port = |outlet: &OutletId, name: String| {
            let unusable = |why: String| ImportError::Port { name: name.clone(), why };
            let fact = guarded(|| Ok(model.outlet_fact(*outlet)?.clone())).map_err(unusable)?;
            let fact: Fact = concrete(&fact).map_err(unusable)?;
            Ok(Port { fact, name })
        };
        let inputs = model.inputs.iter().map(|input| port(input, model.node(input.node).name.clone()));
        let inputs = inputs.collect::<Result<Vec<_>, ImportError>>()?;
        let outputs = names.into_iter().zip(&model.outputs).map(|(name, outlet)| port(outlet, name));
        let outputs = outputs.collect::<Result<Vec<_>, ImportError>>()?;
        match (inputs.is_empty(), outputs.is_empty()) {
            (true, _) => Err(ImportError::NoInput),
            (_, true) => Err(ImportError::NoOutput),
            _ => Ok((inputs, outputs)),
        }
    }
}

/// Has each output be a tensor of its own, under the file's name: not an input handed back, nor another output.
fn name_outputs(model: &mut TypedModel, names: &[String]) -> TractResult<()> {
    let mut taken: BTreeSet<OutletId> = model.inputs.iter().copied().collect();
    let mut outputs = Vec::with_capacity(names.len());
    for (outlet, name) in model.outputs.clone().into_iter().zip(names) {
        let own = match taken.contains(&outlet) {
            true => model.wire_node(format!("{name}.copy"), Identity, &[outlet])?[0],
            false => outlet,
        };
        taken.insert(own);
        model.set_outlet_label(own, name.clone())?;
        outputs.push(own);
    }
    model.select_output_outlets(&outputs)
}

impl fmt::Debug for Imported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Imported").field("inputs", &self.inputs).field("outputs", &self.outputs).finish_non_exhaustive()
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
    /// tract has no such operator.
    #[error("the operator {operator} (node '{node}') cannot be run here")]
    Operator {
        /// Its name, with that of its set if it is not ONNX's own.
        operator: String,
        /// The node that is one, or what it gives.
        node: String,
    },
    /// tract cannot run it.
    #[error("the network cannot be run here: {0}")]
    Unsupported(String),
    /// Dimensions of inputs are open.
    #[error("dimensions are not fixed: {0}; fix them with --dim NAME=SIZE or --input NAME=SIZE,SIZE,…")]
    Open(String),
    /// A pin that fits nothing.
    #[error("{0}")]
    Pin(String),
    /// Nothing to answer from.
    #[error("the network has no input")]
    NoInput,
    /// Nothing to answer with.
    #[error("the network has no output")]
    NoOutput,
    /// An input or output that is not a tensor of fixed size.
    #[error("'{name}' cannot be used: {why}")]
    Port {
        /// The input's or output's name in the file.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}
