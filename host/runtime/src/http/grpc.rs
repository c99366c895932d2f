//! The Open Inference Protocol over gRPC, at the same address as REST: HTTP/2 without TLS, as its clients begin it.
//!
//! A call's body is read as REST's are, within the same limits, and screened; then tonic decodes it. What is asked and
//! answered is `asking`'s.

use super::Shared;
use super::asking::{EXTENSIONS, PLATFORM, Row, SERVER_NAME, TRACEPARENT, inputs, no_loading, outputs, trace};
use super::error::Refusal;
use super::inference::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};
use super::inference::model_metadata_response::TensorMetadata;
use super::inference::repository_index_response::ModelIndex;
use super::inference::{
    ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest,
    ModelReadyResponse, RepositoryIndexRequest, RepositoryIndexResponse, RepositoryModelLoadRequest,
    RepositoryModelLoadResponse, RepositoryModelUnloadRequest, RepositoryModelUnloadResponse, ServerLiveRequest,
    ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
};
use super::limits::{BODY_BYTES_MAX, MESSAGE_BYTES_BESIDE_MAX};
use super::messages;
use super::tensors::{Port, datatype};
use crate::build_name;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Request, StatusCode, Version};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;
use tonic::codegen::Service;
use tonic::metadata::MetadataMap;

/// Before a message: whether it is compressed, and its length.
const MESSAGE_HEAD_BYTES: usize = 5;

type Answer<T> = Result<tonic::Response<T>, Status>;

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new().route("/inference.GRPCInferenceService/{method}", post(call))
}

async fn call(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    let is_grpc = |kind: &axum::http::HeaderValue| kind.as_bytes().starts_with(b"application/grpc");
    if request.version() != Version::HTTP_2 || !request.headers().get(CONTENT_TYPE).is_some_and(is_grpc) {
        let why = "this path is for gRPC: HTTP/2, and a content type of 'application/grpc'";
        return Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, why).into_response();
    }
    match read(&shared, request).await {
        Err(refusal) => Status::from(refusal).into_http(),
        Ok(request) => {
            // How long a message may be has been seen to.
            let server = GrpcInferenceServiceServer::new(Asked(shared)).max_decoding_message_size(BODY_BYTES_MAX);
            let Ok(response) = { server }.call(request).await;
            response.map(Body::new)
        }
    }
}

/// A call with its body, which is one message as it should be.
async fn read(shared: &Shared, request: Request<Body>) -> Result<Request<Body>, Refusal> {
    let (head, body) = request.into_parts();
    let served = shared.running.served();
    let largest = served.iter().map(|version| messages::elements_bytes_max(&inputs(version))).max().unwrap_or(0);
    let bytes_max = largest.saturating_add(MESSAGE_BYTES_BESIDE_MAX).min(BODY_BYTES_MAX);
    let body = shared.body(&head.headers, body, bytes_max).await?;
    let malformed = |why: &str| Refusal::new(StatusCode::BAD_REQUEST, why);
    let (&[compressed, length @ ..], message) =
        body.split_first_chunk::<MESSAGE_HEAD_BYTES>().ok_or_else(|| malformed("the body has no message"))?;
    if compressed != 0 {
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "messages are taken as they are, not compressed"));
    }
    if u32::from_be_bytes(length) as usize != message.len() {
        return Err(malformed("the body is not one message of the length that it says"));
    }
    messages::screen(message)?;
    Ok(Request::from_parts(head, Body::from(body)))
}

/// A host that is asked by gRPC.
struct Asked(Arc<Shared>);

#[tonic::async_trait]
impl GrpcInferenceService for Asked {
    async fn model_infer(&self, request: tonic::Request<ModelInferRequest>) -> Answer<ModelInferResponse> {
        let Self(shared) = self;
        let patience = patience(request.metadata());
        let trace = trace(request.metadata().get_all(TRACEPARENT));
        let message = request.into_inner();
        let found = shared.find(&message.model_name, named(&message.model_version)).await?;
        shared.check_open()?;
        let own_ms = shared.running.state().deadline_us / 1e3;
        let bytes = message.encoded_len();
        let read = move |model: &_| {
            let mut request = messages::read(message, model)?;
            // An answer after the client has gone is worth nothing, whatever else it asked for.
            if let Some(patience) = patience {
                let wished_ms = request.wishes.deadline_ms.filter(|ms| *ms > 0.0).unwrap_or(own_ms);
                request.wishes.deadline_ms = Some(wished_ms.min(patience.as_secs_f64() * 1e3));
            }
            Ok(request)
        };
        let reply = shared.infer(&found, trace, bytes, read).await?;
        Ok(messages::write(reply).into())
    }

    async fn server_live(&self, _: tonic::Request<ServerLiveRequest>) -> Answer<ServerLiveResponse> {
        Ok(ServerLiveResponse { live: true }.into())
    }

    async fn server_ready(&self, _: tonic::Request<ServerReadyRequest>) -> Answer<ServerReadyResponse> {
        Ok(ServerReadyResponse { ready: self.0.is_ready() }.into())
    }

    async fn model_ready(&self, request: tonic::Request<ModelReadyRequest>) -> Answer<ModelReadyResponse> {
        let ModelReadyRequest { name, version } = request.into_inner();
        let found = self.0.find(&name, named(&version)).await?;
        Ok(ModelReadyResponse { ready: self.0.is_model_ready(&found) }.into())
    }

    async fn server_metadata(&self, _: tonic::Request<ServerMetadataRequest>) -> Answer<ServerMetadataResponse> {
        let extensions = EXTENSIONS.map(str::to_owned).to_vec();
        Ok(ServerMetadataResponse { name: SERVER_NAME.to_owned(), version: build_name(), extensions }.into())
    }

    async fn model_metadata(&self, request: tonic::Request<ModelMetadataRequest>) -> Answer<ModelMetadataResponse> {
        let ModelMetadataRequest { name, version } = request.into_inner();
        let found = self.0.find(&name, named(&version)).await?;
        let tensor = |Port { name, fact }: Port| TensorMetadata {
            name,
            datatype: datatype(fact.element_type).to_owned(),
            shape: messages::shape(&fact),
        };
        let metadata = ModelMetadataResponse {
            name,
            platform: PLATFORM.to_owned(),
            inputs: inputs(&found.version).into_iter().map(tensor).collect(),
            outputs: outputs(&found.version).into_iter().map(tensor).collect(),
            versions: found.versions,
        };
        Ok(metadata.into())
    }

    async fn repository_index(
        &self,
        request: tonic::Request<RepositoryIndexRequest>,
    ) -> Answer<RepositoryIndexResponse> {
        let index = |row: Row| {
            let state = row.state().to_owned();
            ModelIndex { name: row.name, version: row.version, state, reason: row.reason }
        };
        let rows = self.0.index(request.into_inner().ready).await?;
        Ok(RepositoryIndexResponse { models: rows.into_iter().map(index).collect() }.into())
    }

    async fn repository_model_load(
        &self,
        _: tonic::Request<RepositoryModelLoadRequest>,
    ) -> Answer<RepositoryModelLoadResponse> {
        Err(no_loading().into())
    }

    async fn repository_model_unload(
        &self,
        _: tonic::Request<RepositoryModelUnloadRequest>,
    ) -> Answer<RepositoryModelUnloadResponse> {
        Err(no_loading().into())
    }
}

/// The protocol's "none".
fn named(version: &str) -> Option<&str> {
    (!version.is_empty()).then_some(version)
}

/// How long the client waits, if it says so: `grpc-timeout`, a number and its unit. What is no such thing says nothing.
fn patience(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_number = (1..=8).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = number.parse().ok().filter(|_| is_number)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}
