//! What REST and gRPC have in common: which model is meant, a body within its limits, and the one way by which a request
//! that was read is answered.

use super::Shared;
use super::error::Refusal;
use super::limits::{BODY_TIME, INLINE_BYTES_MAX, NAME_BYTES_MAX};
use super::tensors::{self, Malformed, Output, Port, Request, Signature};
use crate::Deployment;
use crate::codec;
use axum::body::Body;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use axum::http::{HeaderMap, StatusCode};
use bytes::{Bytes, BytesMut};
use edgent_bundle::Digest;
use edgent_link::{Activation, Answer, AskRequest, Codec, TraceParent};
use edgent_nn::{ElementType, Fact};
use futures::StreamExt;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Versions whose number is remembered.
const VERSIONS_REMEMBERED_MAX: usize = 256;

/// Where a request says which trace it belongs to: W3C's Trace Context.
pub(super) const TRACEPARENT: &str = "traceparent";

pub(super) const SERVER_NAME: &str = "edgent";
pub(super) const PLATFORM: &str = "edgent_wasi-nn";
pub(super) const EXTENSIONS: [&str; 2] = ["binary_tensor_data", "model_repository"];

/// A version that a request names.
pub(super) struct Found {
    pub(super) version: Arc<Deployment>,
    /// Whether no other version may answer.
    insists: bool,
    /// What all served versions of the model are called.
    pub(super) versions: Vec<String>,
}

impl Found {
    pub(super) fn signature(&self) -> Signature {
        Signature { inputs: inputs(&self.version), outputs: outputs(&self.version) }
    }
}

/// An answer to a request for inference.
pub(super) struct Reply {
    pub(super) model: String,
    pub(super) version: String,
    pub(super) id: Option<String>,
    /// How the answer came about.
    pub(super) parameters: Map<String, Value>,
    /// What was asked for, and whether it is to be bytes.
    pub(super) outputs: Vec<(Output, bool)>,
}

/// A model in the repository's index.
pub(super) struct Row {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) is_ready: bool,
    pub(super) reason: String,
}

impl Row {
    pub(super) const fn state(&self) -> &'static str {
        if self.is_ready { "READY" } else { "UNAVAILABLE" }
    }
}

impl Shared {
    /// Answers a request that is there whole, `bytes` long; `read` makes out what it says.
    pub(super) async fn infer<R>(
        &self,
        found: &Found,
        trace: Option<TraceParent>,
        bytes: usize,
        read: R,
    ) -> Result<Reply, Refusal>
    where
        R: FnOnce(&Signature) -> Result<Request, Malformed> + Send + 'static,
    {
        // Not before the body is there: who sends slowly must not keep others out.
        let busy = |_| {
            self.metrics.shed();
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once; send less, or later")
        };
        let _place = self.places.try_acquire().map_err(busy)?;
        let model = found.signature();
        let reading = move || {
            let request = read(&model)?;
            Ok::<_, Refusal>((ask_request(&request, &model.inputs)?, request))
        };
        // Nobody else's request must wait for megabytes of numbers to be read.
        let (asked, request) = if bytes > INLINE_BYTES_MAX { apart(reading).await? } else { reading()? };
        let version = edgent_link::Digest(found.version.digest().0);
        let asked = AskRequest { trace, ..asked };
        let (said, by) = self.running.ask(asked, version, found.insists).await?;
        let outputs = tensors::select(&request, given(&said, &by));
        let (model, version) = (by.manifest().name.clone(), self.version_name(&by).await);
        Ok(Reply { model, version, id: request.id, parameters: parameters(&said, &by), outputs })
    }

    /// No request for inference is begun when the host goes away.
    pub(super) fn check_open(&self) -> Result<(), Refusal> {
        if self.is_ending() {
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "this host is going away"));
        }
        Ok(())
    }

    pub(super) fn is_ready(&self) -> bool {
        !self.is_ending() && self.running.is_ready()
    }

    pub(super) fn is_model_ready(&self, found: &Found) -> bool {
        !self.is_ending() && found.version.quarantine().is_none()
    }

    /// What the host serves, and what it keeps beside.
    pub(super) async fn index(&self, only_ready: bool) -> Result<Vec<Row>, Refusal> {
        let served = self.running.served();
        let kept = self.running.kept().await?;
        let mut rows = Vec::new();
        for version in &served {
            let (name, quarantine) = (version.manifest().name.clone(), version.quarantine());
            let (is_ready, reason) = (quarantine.is_none(), quarantine.unwrap_or_default().to_owned());
            rows.push(Row { name, version: self.version_name(version).await, is_ready, reason });
        }
        let is_served = |digest: &edgent_link::Digest| served.iter().any(|version| version.digest().0 == digest.0);
        for version in kept.iter().filter(|version| !is_served(&version.digest)) {
            let reason = if version.quarantined { "quarantined" } else { "kept, and not in force" }.to_owned();
            let (name, version) = (version.model.clone(), version.version.to_string());
            rows.push(Row { name, version, is_ready: false, reason });
        }
        rows.retain(|row| !only_ready || row.is_ready);
        Ok(rows)
    }

    /// The version that answers for a model, or the one that is named.
    pub(super) async fn find(&self, model: &str, wanted: Option<&str>) -> Result<Found, Refusal> {
        if model.len() > NAME_BYTES_MAX || wanted.is_some_and(|name| name.len() > NAME_BYTES_MAX) {
            let why = format!("the name of a model or a version is longer than {NAME_BYTES_MAX} bytes");
            return Err(Refusal::new(StatusCode::BAD_REQUEST, why));
        }
        let served = self.running.served();
        let of_model: Vec<_> = served.iter().filter(|version| version.manifest().name == model).collect();
        let Some(first) = of_model.first() else {
            let mut names: Vec<&str> = served.iter().map(|version| version.manifest().name.as_str()).collect();
            names.dedup();
            let why = format!("there is no model '{model}' here; there is {}", names.join(", "));
            return Err(Refusal::new(StatusCode::NOT_FOUND, why));
        };
        let mut versions = Vec::with_capacity(of_model.len());
        for version in &of_model {
            versions.push(self.version_name(version).await);
        }
        let Some(wanted) = wanted else {
            return Ok(Found { version: Arc::clone(first), insists: false, versions });
        };
        let is_wanted =
            |(version, name): &(&&Arc<Deployment>, &String)| *name == wanted || version.digest().to_string() == wanted;
        let found = of_model.iter().zip(&versions).find(is_wanted).map(|(version, _)| Arc::clone(version));
        let served = || versions.join(", ");
        let unknown = || format!("version '{wanted}' of '{model}' is not served here; {} is", served());
        let version = found.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, unknown()))?;
        Ok(Found { version, insists: true, versions })
    }

    /// What a version is called: its number in the store, or its digest where there is none.
    pub(super) async fn version_name(&self, version: &Deployment) -> String {
        let digest = version.digest();
        if let Some(known) = self.versions.get(&digest) {
            return known;
        }
        let kept = self.running.kept().await.unwrap_or_default();
        let number = kept.iter().find(|kept| kept.digest.0 == digest.0).map(|kept| kept.version.to_string());
        self.versions.remember(digest, number.unwrap_or_else(|| digest.to_string()))
    }

    /// A body, whole, within limits on its size, its time, and on how many there are at once.
    pub(super) async fn body(&self, headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Bytes, Refusal> {
        if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            let why = "bodies are taken as they are, not compressed";
            return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
        }
        let too_large = || {
            let why = format!("the body is over the limit of {bytes_max} bytes, more than the model's inputs can take");
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, why)
        };
        // Told before it comes, where the client says how much there is.
        let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > bytes_max as u64) {
            return Err(too_large());
        }
        let busy = |_| {
            self.metrics.shed();
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too many bodies come at once; send less, or later")
        };
        let _place = self.bodies.try_acquire().map_err(busy)?;
        let mut pieces = body.into_data_stream();
        let reading = async {
            let mut whole = BytesMut::new();
            while let Some(piece) = pieces.next().await {
                let piece = piece.map_err(|e| Refusal::new(StatusCode::BAD_REQUEST, format!("the body: {e}")))?;
                if whole.len() + piece.len() > bytes_max {
                    return Err(too_large());
                }
                whole.extend_from_slice(&piece);
            }
            Ok(whole.freeze())
        };
        let late = |_| {
            let why = format!("the body was not there after {} s", BODY_TIME.as_secs());
            Refusal::new(StatusCode::REQUEST_TIMEOUT, why)
        };
        tokio::time::timeout(BODY_TIME, reading).await.map_err(late)?
    }
}

/// Why versions are not loaded one by one.
pub(super) fn no_loading() -> Refusal {
    let why = "versions come into force by 'edgent push' and go back by 'edgent rollback', on both hosts or on neither; \
               not one by one over HTTP";
    Refusal::new(StatusCode::NOT_IMPLEMENTED, why)
}

/// The trace that a request belongs to, if its headers name one and no more.
pub(super) fn trace<'a, T: AsRef<[u8]> + 'a>(named: impl IntoIterator<Item = &'a T>) -> Option<TraceParent> {
    let mut named = named.into_iter();
    let (one, none) = (named.next()?, named.next());
    std::str::from_utf8(one.as_ref()).ok().filter(|_| none.is_none()).and_then(TraceParent::read)
}

/// Has a thread for such things do something that takes a while.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T, Refusal> + Send + 'static) -> Result<T, Refusal> {
    let panicked = |_| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "reading the body panicked");
    tokio::task::spawn_blocking(work).await.map_err(panicked)?
}

/// What a request says, as over the link.
fn ask_request(request: &Request, ports: &[Port]) -> Result<AskRequest, Refusal> {
    let activation = |(bytes, port): (&Bytes, &Port)| Activation {
        codec: Codec::Raw,
        element_type: codec::element_type(&port.fact),
        dims: port.fact.dims.iter().map(|dim| u32::try_from(*dim).unwrap_or(u32::MAX)).collect(),
        scales: Vec::new(),
        offsets: Vec::new(),
        bytes: bytes.clone(),
    };
    let mut inputs = request.inputs.iter().zip(ports).map(activation);
    let input = inputs.next().ok_or_else(|| Refusal::new(StatusCode::BAD_REQUEST, "the model has no inputs"))?;
    // 0 is the host's own, as over the link.
    let deadline_us = request.wishes.deadline_ms.filter(|ms| *ms > 0.0).map_or(0, |ms| (ms * 1e3).max(1.0) as u64);
    let accuracy_floor = request.wishes.accuracy_floor.unwrap_or(0.0);
    let (model, beside) = (String::new(), inputs.collect());
    Ok(AskRequest { id: 0, model, deadline_us, accuracy_floor, input, beside, trace: None })
}

/// How an answer came about.
fn parameters(said: &Answer, by: &Deployment) -> Map<String, Value> {
    let manifest = by.manifest();
    let exit = manifest.exits.get(usize::from(said.exit));
    let told = json!({
        "exit": exit.map_or("", |exit| exit.name.as_str()),
        "accuracy": exit.map_or(0.0, |exit| exit.accuracy),
        "cut": said.cut,
        "placement": said.placement.name(),
        "latency_ms": said.latency_us as f64 / 1e3,
        "deadline_ms": said.deadline_us as f64 / 1e3,
        "deadline_met": said.deadline_met,
        "degraded": said.degraded.is_some(),
        "epoch": said.epoch,
    });
    let Value::Object(mut parameters) = told else { return Map::new() };
    if let Some(why) = &said.degraded {
        parameters.insert("degraded_because".to_owned(), why.as_str().into());
    }
    if let Some(class) = manifest.classes.get(said.label as usize) {
        parameters.insert("class".to_owned(), class.as_str().into());
    }
    parameters
}

pub(super) fn inputs(version: &Deployment) -> Vec<Port> {
    let tensors = &version.manifest().boundaries[0].tensors;
    tensors.iter().map(|tensor| port(version, *tensor)).collect()
}

/// What a model gives, whatever exit it is left at: of a classifier a score for each class, and the best one; of others
/// what its most accurate exit gives.
pub(super) fn outputs(version: &Deployment) -> Vec<Port> {
    let manifest = version.manifest();
    if !manifest.classes.is_empty() {
        let scores = Fact { element_type: ElementType::F32, dims: vec![1, manifest.classes.len()] };
        let label = Fact { element_type: ElementType::I64, dims: vec![1] };
        return vec![Port { name: "scores".to_owned(), fact: scores }, Port { name: "label".to_owned(), fact: label }];
    }
    let exits = manifest.exits.iter().enumerate();
    let best = exits.max_by(|a, b| a.1.accuracy.total_cmp(&b.1.accuracy)).map_or(0, |(index, _)| index);
    manifest.outputs(best).iter().map(|tensor| port(version, *tensor)).collect()
}

fn port(version: &Deployment, tensor: usize) -> Port {
    Port { name: version.manifest().tensors[tensor].name.clone(), fact: version.tensors()[tensor].clone() }
}

/// An answer's tensors, under the names that [`outputs`] tells.
fn given(said: &Answer, by: &Deployment) -> Vec<Output> {
    let ports = outputs(by);
    if !by.manifest().classes.is_empty() {
        let scores: Bytes = said.scores.iter().flat_map(|score| score.to_le_bytes()).collect();
        let label = Bytes::copy_from_slice(&i64::from(said.label).to_le_bytes());
        return ports.into_iter().zip([scores, label]).map(|(port, elements)| Output { port, elements }).collect();
    }
    let output = |(port, output): (Port, &Activation)| {
        let fact = codec::fact(output).unwrap_or(port.fact);
        Output { port: Port { fact, ..port }, elements: output.bytes.clone() }
    };
    ports.into_iter().zip(&said.outputs).map(output).collect()
}

/// What versions are called, so that a request need not look into the store.
#[derive(Debug, Default)]
pub(super) struct VersionNames(Mutex<HashMap<Digest, String>>);

impl VersionNames {
    fn get(&self, digest: &Digest) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }

    fn remember(&self, digest: Digest, name: String) -> String {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= VERSIONS_REMEMBERED_MAX {
            names.clear();
        }
        names.insert(digest, name.clone());
        name
    }
}
