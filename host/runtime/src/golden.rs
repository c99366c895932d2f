//! Inputs that a bundle brings with the outputs that another runtime gave for them.

use crate::{Deployment, PrepareError, RunError};
use edgent_bundle::Bundle;
use edgent_nn::{ElementType, Fact, Stop, Tensor, TensorError};
use safetensors::SafeTensors;
use std::time::{Duration, Instant};

/// The largest difference from another runtime's outputs that is taken for rounding.
pub const TOLERANCE: f32 = 1e-4;

/// After so long no further input is tried before a version is served.
const ENOUGH: Duration = Duration::from_millis(100);

/// A version that takes longer for one input is not served.
const TIME_MAX: Duration = Duration::from_secs(120);

/// Inputs and the outputs that another runtime gave for them.
#[derive(Debug)]
pub struct Golden {
    /// Each as the network takes it.
    pub inputs: Vec<Tensor>,
    /// For each exit, an output for each input.
    pub outputs: Vec<Vec<Vec<f32>>>,
}

impl Golden {
    /// Reads safetensors: an input tensor, whose first dimension counts them, named as the network's, and a tensor
    /// for each exit.
    pub fn read(bytes: &[u8], input: (&str, &Fact), exits: &[String]) -> Result<Self, GoldenError> {
        let file = SafeTensors::deserialize(bytes).map_err(|e| GoldenError::File(e.to_string()))?;
        let (name, fact) = input;
        let missing = |name: &str| GoldenError::Missing(name.to_owned());
        let inputs = file.tensor(name).map_err(|_| missing(name))?;
        let chunks = inputs.data().chunks_exact(fact.bytes().max(1));
        let inputs = chunks.map(|chunk| Tensor::from_bytes(fact.element_type, &fact.dims, chunk));
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
        let outputs = exits.iter().map(|exit| {
            let outputs = file.tensor(exit).map_err(|_| missing(exit))?;
            let size = (outputs.data().len() / inputs.len().max(1)).max(ElementType::F32.bytes());
            Ok(outputs.data().chunks(size).map(floats).collect())
        });
        Ok(Self { outputs: outputs.collect::<Result<_, GoldenError>>()?, inputs })
    }

    /// Those of a bundle, if it brings any.
    pub fn of(bundle: &Bundle, input: &Fact) -> Result<Option<Self>, PrepareError> {
        let Some(blob) = &bundle.manifest().evidence.golden else { return Ok(None) };
        let exits: Vec<String> = bundle.manifest().exits.iter().map(|exit| exit.name.clone()).collect();
        let name = &bundle.manifest().tensors[0].name;
        Ok(Some(Self::read(&bundle.blob(blob)?, (name, input), &exits)?))
    }
}

/// Whether a bundle answers its golden inputs as it should, at every exit that is held here: the first at least,
/// and others while there is time.
pub(crate) fn check(bundle: &Bundle, deployment: &Deployment) -> Result<(), PrepareError> {
    let Some(golden) = Golden::of(bundle, deployment.input())? else { return Ok(()) };
    let (start, stop) = (Instant::now(), Stop::at(Instant::now() + TIME_MAX));
    for (index, input) in golden.inputs.iter().enumerate() {
        if index > 0 && start.elapsed() > ENOUGH {
            break;
        }
        for (number, (exit, expected)) in deployment.manifest().exits.iter().zip(&golden.outputs).enumerate() {
            let output = match deployment.run(number, 0..exit.path.len(), vec![input.clone()], &stop) {
                Ok(ran) => ran.output,
                Err(RunError::NotHeld(_)) => continue,
                Err(other) => return Err(other.into()),
            };
            let difference = output.first().zip(expected.get(index)).and_then(|(a, b)| difference(a, b));
            if difference.is_none_or(|difference| difference.is_nan() || difference > TOLERANCE) {
                let (exit, difference) = (exit.name.clone(), difference.unwrap_or(f32::NAN));
                return Err(GoldenError::Differs { exit, difference }.into());
            }
        }
    }
    Ok(())
}

/// The largest difference between two outputs; none if they cannot be compared.
pub fn difference(ours: &Tensor, theirs: &[f32]) -> Option<f32> {
    let ours = ours.as_f32().filter(|ours| ours.len() == theirs.len())?;
    let differences = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs());
    // NaN must not pass for small.
    Some(differences.fold(0.0, |most, d| if d.is_nan() || d > most { d } else { most }))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Why golden inputs and outputs are none, or are not kept to.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// Not a file of them.
    #[error("the golden outputs are not safetensors: {0}")]
    File(String),
    /// A tensor that should be there.
    #[error("the golden file has no tensor '{0}'")]
    Missing(String),
    /// Bytes that are no tensor.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// Another answer than the golden one.
    #[error(
        "exit '{exit}' differs by {difference} from its golden output, over {TOLERANCE}; it is not what its maker built"
    )]
    Differs {
        /// Which exit.
        exit: String,
        /// By how much at most.
        difference: f32,
    },
}
