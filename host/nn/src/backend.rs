//! Who computes a graph: tract, or onnxruntime where it gives the same and is faster here.

use crate::onnxruntime::Onnxruntime;
use crate::written::{ROUNDING, example};
use crate::{ComputeError, Difference, Graph, GraphError, GraphFormat, Stop, Tensor};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Inputs on which the two are compared.
const INPUTS_TRIED: u64 = 3;

/// Each is timed so often, in turns, so that what the machine does meanwhile hits both…
const ROUNDS: usize = 15;

/// …but not for longer than this; once at least.
const TIMING: Duration = Duration::from_millis(200);

/// Who computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// Part of this program.
    Tract,
    /// Loaded from a library.
    Onnxruntime,
}

impl Backend {
    /// Its own name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tract => "tract",
            Self::Onnxruntime => "onnxruntime",
        }
    }
}

/// Who computes a graph where there are both, and why.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The faster of those that can.
    pub backend: Backend,
    /// What tract takes and what onnxruntime takes, in the median; or why the latter does not compute this graph,
    /// however fast it would be.
    pub times_us: Result<[f64; 2], String>,
}

impl Graph {
    /// Reads a graph and prepares it for both backends; what comes back runs on the faster, if both give the same.
    /// Whatever onnxruntime lacks, tract does.
    pub fn load_fastest(bytes: &[u8], format: GraphFormat, onnxruntime: &Onnxruntime) -> Result<Self, GraphError> {
        let ours = Self::load(bytes, format)?;
        let theirs = match format {
            GraphFormat::Nnef => Err("its graph is NNEF; `edgent build --graphs onnx` writes what it reads".to_owned()),
            GraphFormat::Onnx => onnxruntime.session(bytes, ours.inputs(), ours.outputs()),
        };
        let theirs = theirs.map(|session| ours.with_session(session));
        let compared = theirs.and_then(|theirs| compare(&ours, &theirs).map(|us| (theirs, us)));
        Ok(match compared {
            Ok((theirs, times_us @ [tract_us, onnxruntime_us])) if onnxruntime_us < tract_us => {
                theirs.chosen(Choice { backend: Backend::Onnxruntime, times_us: Ok(times_us) })
            }
            tract => ours.chosen(Choice { backend: Backend::Tract, times_us: tract.map(|(_, times_us)| times_us) }),
        })
    }
}

/// What each takes in the median, in microseconds, if both give the same.
fn compare(ours: &Graph, theirs: &Graph) -> Result<[f64; 2], String> {
    let mut last = None;
    for seed in 1..=INPUTS_TRIED {
        let inputs = ours.inputs().iter().map(|port| example(&port.fact, seed));
        let inputs: Vec<Tensor> = inputs.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
        // Not every network takes whatever it is given: an index may be out of range.
        let Ok(expected) = ours.run_once(inputs.clone()) else { continue };
        let given = theirs.run_once(inputs.clone()).map_err(|e| format!("onnxruntime: {e}"))?;
        for ((given, expected), port) in given.iter().zip(&expected).zip(ours.outputs()) {
            let is_same = |apart: Difference| apart.most <= ROUNDING * apart.greatest;
            if !Difference::of(given, expected).is_some_and(is_same) {
                return Err(format!("onnxruntime gives another '{}'", port.name));
            }
        }
        last = Some(inputs);
    }
    let inputs = last.ok_or("it could not be run on any input that was tried")?;
    time([ours, theirs], &inputs).map_err(|e| e.to_string())
}

fn time(graphs: [&Graph; 2], inputs: &[Tensor]) -> Result<[f64; 2], ComputeError> {
    let context = |graph: &Graph| graph.context().map_err(|e| ComputeError::Failed(e.to_string()));
    let mut contexts = [context(graphs[0])?, context(graphs[1])?];
    let names: Vec<&String> = graphs[0].inputs().iter().map(|port| &port.name).collect();
    let (start, mut us) = (Instant::now(), [Vec::new(), Vec::new()]);
    for round in 0..ROUNDS {
        if round > 1 && start.elapsed() > TIMING {
            break;
        }
        for (context, us) in contexts.iter_mut().zip(&mut us) {
            let inputs = names.iter().map(|name| (*name).clone()).zip(inputs.iter().cloned()).collect();
            let since = Instant::now();
            context.compute(inputs, &Stop::never())?;
            // The first time is for warming up.
            if round > 0 {
                us.push(since.elapsed().as_secs_f64() * 1e6);
            }
        }
    }
    Ok(us.map(|mut us| {
        us.sort_by(f64::total_cmp);
        us[us.len() / 2]
    }))
}

/// Why there is no second backend.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// This program does not know of it.
    #[error("this program was built without onnxruntime; build it with --features edgent/onnxruntime")]
    NotBuilt,
    /// The library is none.
    #[error("onnxruntime cannot be loaded from {}: {why}", library.display())]
    Library {
        /// Which one.
        library: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}
