//! A client of gRPC: tonic's, on a connection of h2 that also sends what no client would.

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use std::future::ready;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tonic::body::Body;
use tonic::codegen::{Service, StdError};
use tonic::{Code, Status};

#[rustfmt::skip]
#[allow(clippy::all, clippy::unwrap_used, dead_code, missing_docs, unused_qualifications)]
#[path = "../../host/runtime/src/http/inference.rs"]
pub mod inference;

/// Long enough for a busy machine, short enough to notice a hang.
const PATIENCE: Duration = Duration::from_secs(60);

pub type Client = GrpcInferenceServiceClient<Connection>;

/// A connection to a host.
#[derive(Clone)]
pub struct Connection {
    sender: SendRequest<Bytes>,
    origin: http::Uri,
}

pub async fn connect(host: SocketAddr) -> Connection {
    let stream = tokio::net::TcpStream::connect(host).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    Connection { sender, origin: format!("http://{host}").parse().unwrap() }
}

impl Connection {
    pub fn client(&self) -> Client {
        Client::with_origin(self.clone(), self.origin.clone())
    }

    /// Calls a method with these bytes for a body, right or wrong; all of it, or all but its end.
    pub async fn call(
        &self,
        method: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
        ends: bool,
    ) -> Result<Bytes, Status> {
        let uri = format!("{}inference.GRPCInferenceService/{method}", self.origin);
        let mut request = Request::post(uri);
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/grpc");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let exchanged = exchange(self.sender.clone(), request.body(()).unwrap(), body.into(), ends).await;
        let (head, body, trailers) = exchanged.map_err(|e| Status::unknown(format!("no answer: {e}")))?;
        let told =
            trailers.as_ref().and_then(Status::from_header_map).or_else(|| Status::from_header_map(head.headers()));
        match told {
            Some(status) if status.code() == Code::Ok => Ok(body),
            Some(status) => Err(status),
            None => Err(Status::unknown(format!("HTTP {}", head.status().as_u16()))),
        }
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Body>;
    type Error = StdError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, StdError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let sender = self.sender.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let (head, body, trailers) = exchange(sender, Request::from_parts(head, ()), body, true).await?;
            let body = Full::new(body).with_trailers(ready(trailers.map(Ok)));
            Ok(head.map(|()| Body::new(body)))
        })
    }
}

type Exchanged = (Response<()>, Bytes, Option<HeaderMap>);

async fn exchange(
    sender: SendRequest<Bytes>,
    request: Request<()>,
    body: Bytes,
    ends: bool,
) -> Result<Exchanged, StdError> {
    let exchanging = async {
        let (response, mut sends) = sender.ready().await?.send_request(request, false)?;
        // A host that has said no may have closed before it has read everything.
        let _ = sends.send_data(body, ends);
        let (head, mut receives) = response.await?.into_parts();
        let mut whole = Vec::new();
        while let Some(piece) = receives.data().await {
            let piece = piece?;
            receives.flow_control().release_capacity(piece.len())?;
            whole.extend_from_slice(&piece);
        }
        let trailers = receives.trailers().await?;
        Ok((Response::from_parts(head, ()), whole.into(), trailers))
    };
    tokio::time::timeout(PATIENCE, exchanging).await?
}
