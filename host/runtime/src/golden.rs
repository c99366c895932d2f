//! Inputs that a bundle brings with the outputs that another runtime gave for them.

use crate::{Deployment, PrepareError, RunError};
use edgent_bundle::{Bundle, Manifest};
use edgent_nn::{Difference, Fact, Stop, Tensor, TensorError};
use safetensors::SafeTensors;
use std::time::{Duration, Instant};

/// The largest difference from another runtime's outputs that is taken for rounding; where they are greater than 1,
/// as a share of the greatest.
pub const TOLERANCE: f64 = 1e-4;

/// After so long no further input is tried before a version is served for the first time.
pub(crate) const ENOUGH: Duration = Duration::from_millis(100);

/// The same of a version that was found good here before: a start need not wait for all of that again.
pub(crate) const ENOUGH_AGAIN: Duration = Duration::from_millis(10);

/// More inputs than that are not read where each of them has no elements.
const COUNT_MAX: usize = 1 << 16;

/// A version that takes longer for one input is not served.
const TIME_MAX: Duration = Duration::from_secs(120);

/// Inputs and what another runtime made of them.
#[derive(Debug)]
pub struct Golden {
    /// How many inputs there are.
    pub count: usize,
    /// For each of the manifest's tensors its values, one for each input. Inputs and outputs have them; others may.
    pub tensors: Vec<Option<Vec<Tensor>>>,
}

impl Golden {
    /// Reads safetensors, with a tensor for each input and each exit's output, by their names in the manifest; its first
    /// dimensions count the inputs. There may be tensors for what crosses inside the network, too.
    pub fn read(bytes: &[u8], manifest: &Manifest, facts: &[Fact]) -> Result<Self, GoldenError> {
        let file = SafeTensors::deserialize(bytes).map_err(|e| GoldenError::File(e.to_string()))?;
        let read = |(tensor, fact): (&edgent_bundle::Tensor, &Fact)| {
            let Ok(found) = file.tensor(&tensor.name) else { return Ok(None) };
            let nothing: &[u8] = &[];
            let each: Vec<&[u8]> = match fact.bytes() {
                // As many as are said to be there, since bytes do not tell; but not without end.
                0 => vec![nothing; found.shape().first().map_or(0, |count| (*count).min(COUNT_MAX))],
                bytes => found.data().chunks(bytes).collect(),
            };
            let tensors = each.into_iter().map(|one| Tensor::from_bytes(fact.element_type, &fact.dims, one));
            tensors.collect::<Result<_, _>>().map(Some)
        };
        let tensors = manifest.tensors.iter().zip(facts).map(read).collect::<Result<Vec<Option<Vec<_>>>, _>>()?;
        let outputs = (0..manifest.exits.len()).flat_map(|exit| manifest.outputs(exit));
        let needed: Vec<usize> = manifest.boundaries[0].tensors.iter().chain(outputs).copied().collect();
        let count = needed.first().and_then(|first| tensors[*first].as_ref()).map_or(0, Vec::len);
        for index in needed {
            let name = || manifest.tensors[index].name.clone();
            match tensors[index].as_ref().map(Vec::len) {
                None => return Err(GoldenError::Missing(name())),
                Some(got) if got != count => return Err(GoldenError::Count { name: name(), count, got }),
                Some(_) => {}
            }
        }
        Ok(Self { count, tensors })
    }

    /// Those of a bundle, if it brings any.
    pub fn of(bundle: &Bundle, deployment: &Deployment) -> Result<Option<Self>, PrepareError> {
        let Some(blob) = &bundle.manifest().evidence.golden else { return Ok(None) };
        Ok(Some(Self::read(&bundle.blob(blob)?, bundle.manifest(), deployment.tensors())?))
    }

    /// Some of the manifest's tensors for one of the inputs; those that there are.
    pub fn at<'a>(&'a self, tensors: &'a [usize], input: usize) -> impl Iterator<Item = Option<&'a Tensor>> + 'a {
        tensors.iter().map(move |tensor| self.tensors[*tensor].as_ref()?.get(input))
    }
}

/// Whether a bundle answers its golden inputs as it should, at every exit that is held here: the first at least,
/// and others until it is `enough`.
pub(crate) fn check(bundle: &Bundle, deployment: &Deployment, enough: Duration) -> Result<(), PrepareError> {
    let Some(golden) = Golden::of(bundle, deployment)? else { return Ok(()) };
    let (start, stop) = (Instant::now(), Stop::at(Instant::now() + TIME_MAX));
    let manifest = deployment.manifest();
    for index in 0..golden.count {
        if index > 0 && start.elapsed() > enough {
            break;
        }
        let input: Vec<Tensor> = golden.at(&manifest.boundaries[0].tensors, index).flatten().cloned().collect();
        for (number, exit) in manifest.exits.iter().enumerate() {
            let outputs = match deployment.run(number, 0..exit.path.len(), input.clone(), &stop) {
                Ok(ran) => ran.output,
                Err(RunError::NotHeld(_)) => continue,
                Err(other) => return Err(other.into()),
            };
            for (ours, theirs) in outputs.iter().zip(golden.at(manifest.outputs(number), index)) {
                let difference = theirs.and_then(|theirs| difference(ours, theirs));
                if difference.is_none_or(|difference| difference.is_nan() || difference > TOLERANCE) {
                    let (exit, difference) = (exit.name.clone(), difference.unwrap_or(f64::NAN));
                    return Err(GoldenError::Differs { exit, difference }.into());
                }
            }
        }
    }
    Ok(())
}

/// The largest difference between two outputs, as a share of the greatest value of theirs where that is over 1; none
/// if they cannot be compared, NaN if one is no number where the other is one.
pub fn difference(ours: &Tensor, theirs: &Tensor) -> Option<f64> {
    Difference::of(ours, theirs).map(|difference| difference.most / difference.greatest.max(1.0))
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
    /// A tensor for more inputs than others, or fewer.
    #[error("the golden file has '{name}' for {got} inputs, and another tensor for {count}")]
    Count {
        /// Which tensor.
        name: String,
        /// How many there should be.
        count: usize,
        /// How many there are.
        got: usize,
    },
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
        difference: f64,
    },
}
