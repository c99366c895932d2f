//! Spans of OpenTelemetry, and their way to a collector: OTLP over HTTP.
//!
//! Its usual variables in the environment say where it is (`OTEL_EXPORTER_OTLP_ENDPOINT`), what this host is called
//! (`OTEL_SERVICE_NAME`), and which traces are kept (`OTEL_TRACES_SAMPLER`).

use super::{ENDPOINT_VARIABLES, Kind, TellingError, Value};
use crate::build_name;
use edgent_link::{Role, TraceParent};
use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer,
    TracerProvider,
};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use std::sync::OnceLock;
use std::time::Duration;
use tokio::runtime::Handle;

/// What OpenTelemetry sets to have nothing told, wherever the collector is.
const DISABLED_VARIABLE: &str = "OTEL_SDK_DISABLED";
/// How a service is called that has no name.
const UNNAMED: &str = "unknown_service";
/// How long the collector may take for what it is sent at once.
const SEND_TIME: Duration = Duration::from_secs(10);
/// How long a host that ends waits until its last spans are told.
const END_TIME: Duration = Duration::from_secs(2);

/// Who makes spans, once they are told.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Spans are told until this is ended.
#[derive(Debug)]
pub struct Telling(SdkTracerProvider);

impl Telling {
    /// Begins to tell, if the environment says whom. Must be called on the runtime that serves.
    pub fn start(role: Role) -> Result<Option<Self>, TellingError> {
        // An empty one is none.
        let said =
            |variable: &'static str| Some((variable, std::env::var(variable).ok().filter(|said| !said.is_empty())?));
        let is_disabled = said(DISABLED_VARIABLE).is_some_and(|(_, said)| said.eq_ignore_ascii_case("true"));
        let endpoints: Vec<_> = ENDPOINT_VARIABLES.into_iter().filter_map(said).collect();
        if is_disabled || endpoints.is_empty() {
            return Ok(None);
        }
        if let Some((variable, endpoint)) = endpoints.into_iter().find(|(_, said)| !said.starts_with("http://")) {
            return Err(TellingError::Endpoint { variable, endpoint });
        }
        let client = FromHere { client: HyperClient::with_default_connector(SEND_TIME, None), here: Handle::current() };
        let exporter = SpanExporter::builder().with_http().with_http_client(client).build();
        let exporter = exporter.map_err(|error| TellingError::Exporter(error.to_string()))?;
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource(role)).build();
        // A second host in one process tells its spans as the first one's.
        TRACER.get_or_init(|| provider.tracer("edgent"));
        Ok(Some(Self(provider)))
    }

    /// Tells what has not been told yet.
    pub async fn end(self) {
        let ending = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(END_TIME));
        if let Ok(Err(error)) = ending.await {
            tracing::warn!(%error, "the last spans may be lost");
        }
    }
}

/// Who tells: what the environment says, or the role where it does not.
fn resource(role: Role) -> Resource {
    let said = Resource::builder().build();
    let name = said.get(&Key::from_static_str("service.name"));
    let is_named = name.is_some_and(|name| !name.as_str().starts_with(UNNAMED));
    let ours = [KeyValue::new("service.version", build_name()), KeyValue::new("edgent.role", role.to_string())];
    let resource = Resource::builder().with_attributes(ours);
    if is_named { resource.build() } else { resource.with_service_name(format!("edgent-{role}")).build() }
}

/// Sends from the runtime that serves: the thread that gathers spans has none of its own.
#[derive(Debug)]
struct FromHere {
    client: HyperClient,
    here: Handle,
}

#[tonic::async_trait]
impl HttpClient for FromHere {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        self.here.spawn(async move { client.send_bytes(request).await }).await?
    }
}

/// Something that takes time, from its start until this is dropped.
pub(crate) struct Span {
    /// None where nobody is told.
    span: Option<opentelemetry_sdk::trace::Span>,
    of: Option<TraceParent>,
}

impl Span {
    /// Begins, within another one of this host or of another.
    pub(crate) fn start(name: &'static str, kind: Kind, of: Option<TraceParent>) -> Self {
        let span = TRACER.get().map(|tracer| {
            let within = of.map_or_else(Context::new, |of| {
                let flags = if of.is_sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
                let (trace, span) = (TraceId::from_bytes(of.trace_id), SpanId::from_bytes(of.span_id));
                let is_remote = kind == Kind::Server;
                let context = SpanContext::new(trace, span, flags, is_remote, TraceState::default());
                Context::new().with_remote_span_context(context)
            });
            let kind = match kind {
                Kind::Server => SpanKind::Server,
                Kind::Client => SpanKind::Client,
                Kind::Internal => SpanKind::Internal,
            };
            tracer.build_with_context(tracer.span_builder(name).with_kind(kind), &within)
        });
        Self { span, of }
    }

    /// For those within it.
    pub(crate) fn context(&self) -> Option<TraceParent> {
        let Some(span) = &self.span else { return self.of };
        let context = span.span_context();
        let (trace_id, span_id) = (context.trace_id().to_bytes(), context.span_id().to_bytes());
        context.is_valid().then_some(TraceParent { trace_id, span_id, is_sampled: context.is_sampled() })
    }

    /// Adds attributes, which are made up only if somebody is told.
    pub(crate) fn tell<const N: usize>(&mut self, attributes: impl FnOnce() -> [(&'static str, Value); N]) {
        if let Some(span) = self.span.as_mut().filter(|span| span.is_recording()) {
            let attribute = |(name, value)| KeyValue::new(name, value_of(value));
            span.set_attributes(attributes().into_iter().map(attribute));
        }
    }

    /// Now, and not when the scope does.
    pub(crate) fn end(self) {}

    pub(crate) fn fail(&mut self, why: &str) {
        if let Some(span) = &mut self.span {
            span.set_status(Status::error(why.to_owned()));
        }
    }
}

fn value_of(value: Value) -> opentelemetry::Value {
    match value {
        Value::Flag(flag) => flag.into(),
        Value::Count(count) => count.into(),
        Value::Number(number) => number.into(),
        Value::Text(text) => text.into(),
    }
}
