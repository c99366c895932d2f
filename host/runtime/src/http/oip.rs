//! The Open Inference Protocol's paths, version 2, with the extensions `binary_tensor_data` and, as far as it only
//! looks, `model_repository`.

use super::Shared;
use super::error::Refusal;
use super::limits::{
    BODY_BYTES_MAX, BODY_TIME, HEADER_JSON_BYTES_MAX, INLINE_BYTES_MAX, NAME_BYTES_MAX, NUMBER_BYTES_MAX,
};
use super::tensors::{self, Head, Output, Port, Signature, datatype};
use crate::codec;
use crate::{Deployment, build_name};
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::{Bytes, BytesMut};
use edgent_bundle::Digest;
use edgent_link::{Activation, Answer, AskRequest, Codec};
use edgent_nn::{ElementType, Fact};
use futures::StreamExt;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// How many of a body's bytes are JSON; tensors follow.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// Versions whose number is remembered.
const VERSIONS_REMEMBERED_MAX: usize = 256;

type Named = Result<Path<HashMap<String, String>>, PathRejection>;

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/v2", get(server))
        .route("/v2/", get(server))
        .route("/v2/health/live", get(async || StatusCode::OK))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models/{model}", get(metadata))
        .route("/v2/models/{model}/ready", get(model_ready))
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}", get(metadata))
        .route("/v2/models/{model}/versions/{version}/ready", get(model_ready))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer))
        .route("/v2/repository/index", post(index))
        .route("/v2/repository/models/{model}/load", post(load))
        .route("/v2/repository/models/{model}/unload", post(load))
}

async fn server() -> Response {
    let extensions = ["binary_tensor_data", "model_repository"];
    answer(&json!({ "name": "edgent", "version": build_name(), "extensions": extensions }))
}

async fn ready(State(shared): State<Arc<Shared>>) -> StatusCode {
    let served = shared.running.served();
    let is_ready = !shared.is_ending() && served.iter().any(|version| version.quarantine().is_none());
    if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

async fn model_ready(State(shared): State<Arc<Shared>>, named: Named) -> Result<StatusCode, Refusal> {
    let found = shared.find(named).await?;
    let is_ready = !shared.is_ending() && found.version.quarantine().is_none();
    Ok(if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE })
}

async fn metadata(State(shared): State<Arc<Shared>>, named: Named) -> Result<Response, Refusal> {
    let found = shared.find(named).await?;
    let manifest = found.version.manifest();
    let ports = |ports: Vec<Port>| -> Vec<Value> {
        let port = |port: Port| {
            let datatype = datatype(port.fact.element_type);
            json!({ "name": port.name, "datatype": datatype, "shape": port.fact.dims })
        };
        ports.into_iter().map(port).collect()
    };
    let exits = manifest.exits.iter().map(|exit| json!({ "name": exit.name, "accuracy": exit.accuracy }));
    Ok(answer(&json!({
        "name": manifest.name,
        "versions": found.versions,
        "platform": "edgent_wasi-nn",
        "inputs": ports(inputs(&found.version)),
        "outputs": ports(outputs(&found.version)),
        "exits": exits.collect::<Vec<_>>(),
        "classes": manifest.classes,
    })))
}

/// What the host serves, and what it keeps beside.
async fn index(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Body) -> Result<Response, Refusal> {
    let body = read(&headers, body, HEADER_JSON_BYTES_MAX).await?;
    let asked: Value = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).map_err(no_json)? };
    let only_ready = asked.get("ready").and_then(Value::as_bool).unwrap_or(false);
    let served = shared.running.served();
    let kept = shared.running.kept().await?;
    let mut rows = Vec::new();
    for version in &served {
        let name = &version.manifest().name;
        let label = shared.version_name(version).await;
        let (state, reason) = match version.quarantine() {
            None => ("READY", ""),
            Some(why) => ("UNAVAILABLE", why),
        };
        rows.push(json!({ "name": name, "version": label, "state": state, "reason": reason }));
    }
    let is_served = |digest: &edgent_link::Digest| served.iter().any(|version| version.digest().0 == digest.0);
    for version in kept.iter().filter(|version| !is_served(&version.digest)) {
        let reason = if version.quarantined { "quarantined" } else { "kept, and not in force" };
        let label = version.version.to_string();
        rows.push(json!({ "name": version.model, "version": label, "state": "UNAVAILABLE", "reason": reason }));
    }
    rows.retain(|row| !only_ready || row["state"] == "READY");
    Ok(answer(&Value::Array(rows)))
}

async fn load() -> Refusal {
    let why = "versions come into force by 'edgent push' and go back by 'edgent rollback', on both hosts or on neither; \
               not one by one over HTTP";
    Refusal::new(StatusCode::NOT_IMPLEMENTED, why)
}

async fn infer(
    State(shared): State<Arc<Shared>>,
    named: Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let found = shared.find(named).await?;
    if shared.is_ending() {
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "this host is going away"));
    }
    let model = Signature { inputs: inputs(&found.version), outputs: outputs(&found.version) };
    let json_bytes = json_length(&headers)?;
    let body = read(&headers, body, body_bytes_max(&model.inputs)).await?;
    // Not before the body is there: who sends slowly must not keep others out.
    let busy = |_| {
        shared.metrics.shed();
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once; send less, or later")
    };
    let _place = shared.places.try_acquire().map_err(busy)?;
    // Nobody else's request must wait for megabytes of numbers to be read.
    let is_large = body.len() > INLINE_BYTES_MAX;
    let reading = move || {
        let request = tensors::read(&body, json_bytes, &model)?;
        Ok::<_, Refusal>((ask_request(&request, &model.inputs)?, request))
    };
    let (asked, request) = if is_large { apart(reading).await? } else { reading()? };
    let version = edgent_link::Digest(found.version.digest().0);
    let (said, by) = shared.running.ask(asked, version, found.insists).await?;
    let selected = tensors::select(&request, given(&said, &by));
    let head = Head {
        model_name: &by.manifest().name,
        model_version: &shared.version_name(&by).await,
        id: request.id.as_deref(),
        parameters: parameters(&said, &by),
    };
    let written = tensors::write(head, &selected);
    let (body, json_bytes) = written.map_err(|e| Refusal::new(StatusCode::BAD_REQUEST, e.to_string()))?;
    Ok(match json_bytes {
        None => ([(CONTENT_TYPE, "application/json")], body).into_response(),
        Some(length) => {
            let headers = [(CONTENT_TYPE, "application/octet-stream".to_owned()), (JSON_LENGTH, length.to_string())];
            (headers, body).into_response()
        }
    })
}

/// Has a thread for such things do something that takes a while.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T, Refusal> + Send + 'static) -> Result<T, Refusal> {
    let panicked = |_| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "reading the body panicked");
    tokio::task::spawn_blocking(work).await.map_err(panicked)?
}

/// How an answer came about.
fn parameters(said: &Answer, by: &Deployment) -> Value {
    let manifest = by.manifest();
    let exit = manifest.exits.get(usize::from(said.exit));
    let mut parameters = json!({
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
    if let Some(why) = &said.degraded {
        parameters["degraded_because"] = why.as_str().into();
    }
    if let Some(class) = manifest.classes.get(said.label as usize) {
        parameters["class"] = class.as_str().into();
    }
    parameters
}

/// What a request says, as over the link.
fn ask_request(request: &tensors::Request, ports: &[Port]) -> Result<AskRequest, Refusal> {
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
    Ok(AskRequest { id: 0, model: String::new(), deadline_us, accuracy_floor, input, beside: inputs.collect() })
}

pub(super) fn inputs(version: &Deployment) -> Vec<Port> {
    let tensors = &version.manifest().boundaries[0].tensors;
    tensors.iter().map(|tensor| port(version, *tensor)).collect()
}

/// What a model gives, whatever exit it is left at: of a classifier a score for each class, and the best one; of others
/// what its most accurate exit gives.
fn outputs(version: &Deployment) -> Vec<Port> {
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

/// A version that a path names.
struct Found {
    version: Arc<Deployment>,
    /// Whether no other version may answer.
    insists: bool,
    /// What all served versions of the model are called.
    versions: Vec<String>,
}

impl Shared {
    async fn find(&self, named: Named) -> Result<Found, Refusal> {
        let Path(named) = named.map_err(|e| Refusal::new(StatusCode::BAD_REQUEST, e.body_text()))?;
        if named.values().any(|name| name.len() > NAME_BYTES_MAX) {
            let why = format!("a name in the path is longer than {NAME_BYTES_MAX} bytes");
            return Err(Refusal::new(StatusCode::BAD_REQUEST, why));
        }
        let model = named.get("model").map(String::as_str).unwrap_or_default();
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
        let Some(wanted) = named.get("version") else {
            return Ok(Found { version: Arc::clone(first), insists: false, versions });
        };
        let is_wanted =
            |(version, name): &(&&Arc<Deployment>, &String)| *name == wanted || version.digest().to_string() == *wanted;
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

/// What a request for a model with these inputs can take at most.
fn body_bytes_max(ports: &[Port]) -> usize {
    let numbers: usize = ports.iter().map(|port| port.fact.elements()).sum();
    numbers.saturating_mul(NUMBER_BYTES_MAX).saturating_add(HEADER_JSON_BYTES_MAX).min(BODY_BYTES_MAX)
}

fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Refusal> {
    let Some(value) = headers.get(JSON_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    let no_number = || Refusal::new(StatusCode::BAD_REQUEST, format!("'{JSON_LENGTH}' is no number of bytes"));
    length.map(Some).ok_or_else(no_number)
}

/// A body, whole, within limits on its size and its time.
async fn read(headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Bytes, Refusal> {
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "bodies are taken as they are, not compressed"));
    }
    let too_large = || {
        let why = format!("the body is over the limit of {bytes_max} bytes, more than this model's inputs can take");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, why)
    };
    // Told before it comes, where the client says how much there is.
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > bytes_max as u64) {
        return Err(too_large());
    }
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

fn no_json(error: serde_json::Error) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, format!("the body is no JSON: {error}"))
}

pub(super) fn answer(value: &Value) -> Response {
    ([(CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}
