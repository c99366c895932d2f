//! What is not answered, as the protocol says it: a status and `{"error": …}`, or gRPC's code and message.

use super::tensors::Malformed;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use edgent_link::{Fault, FaultKind};
use serde_json::json;
use tonic::{Code, Status};

/// Why a request is not answered.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    why: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into() }
    }
}

impl From<Malformed> for Refusal {
    fn from(Malformed(why): Malformed) -> Self {
        Self::new(StatusCode::BAD_REQUEST, why)
    }
}

impl From<Fault> for Refusal {
    fn from(Fault { kind, message }: Fault) -> Self {
        let status = match kind {
            FaultKind::BadRequest => StatusCode::BAD_REQUEST,
            FaultKind::UnknownModel | FaultKind::NotFound => StatusCode::NOT_FOUND,
            FaultKind::Denied => StatusCode::FORBIDDEN,
            FaultKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            FaultKind::Refused => StatusCode::CONFLICT,
            FaultKind::Busy | FaultKind::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            FaultKind::TimeUp => StatusCode::GATEWAY_TIMEOUT,
            FaultKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
            FaultKind::UnknownEpoch | FaultKind::Version | FaultKind::SegmentFailed | FaultKind::Internal => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        Self::new(status, message)
    }
}

impl From<Refusal> for Status {
    fn from(Refusal { status, why }: Refusal) -> Self {
        let code = match status {
            StatusCode::BAD_REQUEST => Code::InvalidArgument,
            StatusCode::NOT_FOUND => Code::NotFound,
            StatusCode::FORBIDDEN => Code::PermissionDenied,
            StatusCode::PAYLOAD_TOO_LARGE => Code::ResourceExhausted,
            StatusCode::CONFLICT => Code::FailedPrecondition,
            StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
            StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => Code::DeadlineExceeded,
            StatusCode::NOT_IMPLEMENTED | StatusCode::UNSUPPORTED_MEDIA_TYPE => Code::Unimplemented,
            _ => Code::Internal,
        };
        Self::new(code, why)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({ "error": self.why }).to_string();
        (self.status, [(CONTENT_TYPE, "application/json")], body).into_response()
    }
}
