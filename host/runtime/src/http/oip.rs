//! The Open Inference Protocol's paths over REST, version 2, with the extensions `binary_tensor_data` and, as far as it
//! only looks, `model_repository`.

use super::Shared;
use super::asking::{EXTENSIONS, Found, PLATFORM, Row, SERVER_NAME, TRACEPARENT, inputs, no_loading, outputs, trace};
use super::error::Refusal;
use super::json::{self, Head};
use super::limits::{BODY_BYTES_MAX, HEADER_JSON_BYTES_MAX, NUMBER_BYTES_MAX};
use super::tensors::{Port, datatype};
use crate::build_name;
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;

/// How many of a body's bytes are JSON; tensors follow.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

type Named = Result<Path<HashMap<String, String>>, PathRejection>;

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/v2", get(server))
        .route("/v2/", get(server))
        .route("/v2/health/live", get(async || answer(&json!({ "live": true }))))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models/{model}", get(metadata))
        .route("/v2/models/{model}/ready", get(model_ready))
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}", get(metadata))
        .route("/v2/models/{model}/versions/{version}/ready", get(model_ready))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer))
        .route("/v2/repository/index", post(index))
        .route("/v2/repository/models/{model}/load", post(async || no_loading()))
        .route("/v2/repository/models/{model}/unload", post(async || no_loading()))
}

async fn server() -> Response {
    answer(&json!({ "name": SERVER_NAME, "version": build_name(), "extensions": EXTENSIONS }))
}

// The status is what the protocol asks for; KServe's client looks at the body.
async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let is_ready = shared.is_ready();
    (status(is_ready), answer(&json!({ "ready": is_ready }))).into_response()
}

async fn model_ready(State(shared): State<Arc<Shared>>, named: Named) -> Result<Response, Refusal> {
    let found = find(&shared, named).await?;
    let is_ready = shared.is_model_ready(&found);
    let body = json!({ "name": found.version.manifest().name, "ready": is_ready });
    Ok((status(is_ready), answer(&body)).into_response())
}

const fn status(is_ready: bool) -> StatusCode {
    if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

async fn metadata(State(shared): State<Arc<Shared>>, named: Named) -> Result<Response, Refusal> {
    let found = find(&shared, named).await?;
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
        "platform": PLATFORM,
        "inputs": ports(inputs(&found.version)),
        "outputs": ports(outputs(&found.version)),
        "exits": exits.collect::<Vec<_>>(),
        "classes": manifest.classes,
    })))
}

async fn index(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Body) -> Result<Response, Refusal> {
    let body = shared.body(&headers, body, HEADER_JSON_BYTES_MAX).await?;
    let asked: Value = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).map_err(no_json)? };
    let only_ready = asked.get("ready").and_then(Value::as_bool).unwrap_or(false);
    let row =
        |row: &Row| json!({ "name": row.name, "version": row.version, "state": row.state(), "reason": row.reason });
    Ok(answer(&shared.index(only_ready).await?.iter().map(row).collect()))
}

async fn infer(
    State(shared): State<Arc<Shared>>,
    named: Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let found = find(&shared, named).await?;
    shared.check_open()?;
    let json_bytes = json_length(&headers)?;
    let body = shared.body(&headers, body, body_bytes_max(&inputs(&found.version))).await?;
    let (bytes, trace) = (body.len(), trace(headers.get_all(TRACEPARENT)));
    let reply = shared.infer(&found, trace, bytes, move |model| json::read(&body, json_bytes, model)).await?;
    let head = Head {
        model_name: &reply.model,
        model_version: &reply.version,
        id: reply.id.as_deref(),
        parameters: Value::Object(reply.parameters),
    };
    let written = json::write(head, &reply.outputs);
    let (body, json_bytes) = written.map_err(|e| Refusal::new(StatusCode::BAD_REQUEST, e.to_string()))?;
    Ok(match json_bytes {
        None => ([(CONTENT_TYPE, "application/json")], body).into_response(),
        Some(length) => {
            let headers = [(CONTENT_TYPE, "application/octet-stream".to_owned()), (JSON_LENGTH, length.to_string())];
            (headers, body).into_response()
        }
    })
}

/// The version that a path names.
async fn find(shared: &Shared, named: Named) -> Result<Found, Refusal> {
    let Path(named) = named.map_err(|e| Refusal::new(StatusCode::BAD_REQUEST, e.body_text()))?;
    let model = named.get("model").map(String::as_str).unwrap_or_default();
    shared.find(model, named.get("version").map(String::as_str)).await
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

fn no_json(error: serde_json::Error) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, format!("the body is no JSON: {error}"))
}

pub(super) fn answer(value: &Value) -> Response {
    ([(CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}
