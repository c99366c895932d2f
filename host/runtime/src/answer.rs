//! What an exit gives, as a host answers with it.

use crate::edge::fault;
use crate::{Deployment, codec, confidence};
use edgent_bundle::Manifest;
use edgent_link::{Activation, Answer, AskRequest, Codec, Fault, FaultKind};
use edgent_nn::Tensor;
use std::sync::Arc;

/// An answer, and the version that gave it.
pub(crate) type Answered = Result<(Answer, Arc<Deployment>), Fault>;

/// The part of an answer that the network gave.
pub(crate) struct Said {
    /// The class with the best score.
    pub(crate) label: u32,
    /// For each class; none if the model has none.
    pub(crate) scores: Vec<f32>,
    /// What the exit gives, if the model has no classes.
    pub(crate) outputs: Vec<Activation>,
}

impl Said {
    pub(crate) fn new(manifest: &Manifest, output: &[Tensor]) -> Result<Self, Fault> {
        if manifest.classes.is_empty() {
            let outputs = output.iter().map(|output| codec::encode(output, Codec::Raw)).collect();
            return Ok(Self { label: 0, scores: Vec::new(), outputs });
        }
        let logits = logits(output).ok_or_else(|| fault(FaultKind::Internal, "the exit's output is not f32"))?;
        let scores = confidence::softmax(logits);
        let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(index, _)| index);
        Ok(Self { label: u32::try_from(best).unwrap_or(u32::MAX), scores, outputs: Vec::new() })
    }
}

/// How accurate an exit must be to answer a request, if there is one that is.
pub(crate) fn accuracy_min(deployment: &Deployment, request: &AskRequest) -> Result<f64, Fault> {
    let floor = request.accuracy_floor;
    let best = deployment.network().exits().iter().map(|exit| exit.accuracy).fold(0.0, f64::max);
    if (0.0..=best).contains(&floor) {
        return Ok(floor);
    }
    let name = &deployment.manifest().name;
    let why = format!("the accuracy floor is {floor}, and the best exit of '{name}' has {best}; ask for less");
    Err(fault(FaultKind::BadRequest, why))
}

/// What a classifier's exit gives.
pub(crate) fn logits(output: &[Tensor]) -> Option<&[f32]> {
    output.first()?.as_f32()
}
