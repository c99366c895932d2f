//! How much a client may ask of the HTTP front, and how long it may take.

use std::time::Duration;

/// Connections at once; more are closed as they come.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// Bodies that come at once, on all connections; more are answered with 503. One on each connection of HTTP/1.1.
pub(super) const BODIES_MAX: usize = CONNECTIONS_MAX;
/// Inference requests at once; more are answered with 503.
pub(super) const REQUESTS_MAX: usize = 32;
/// The request line and the headers.
pub(super) const HEADERS_BYTES_MAX: usize = 16 << 10;
/// Headers of a request; of HTTP/2 their bytes are what is limited.
pub(super) const HEADERS_MAX: usize = 64;
/// From a connection's last answer, or its beginning, to the end of the next request's headers.
pub(super) const HEADERS_TIME: Duration = Duration::from_secs(15);
/// From the headers to the end of the body.
pub(super) const BODY_TIME: Duration = Duration::from_secs(15);
/// Requests at once on a connection of HTTP/2.
pub(super) const STREAMS_MAX: u32 = 32;
/// What a client of HTTP/2 may send ahead of what has been read, on a stream and on all of them.
pub(super) const WINDOW_BYTES: u32 = 1 << 20;
/// A connection of HTTP/2 on which nothing is asked for so long is closed. Clients keep them, and connect anew.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(60);
/// How often a client of HTTP/2 is asked whether it is still there, and how long it may take to say so.
pub(super) const PING_TIME: Duration = Duration::from_secs(20);
/// A body, whatever the model; what a model's inputs can take is less, mostly, and that is the limit then.
pub(super) const BODY_BYTES_MAX: usize = 64 << 20;
/// A body over this is read by a thread of its own.
pub(super) const INLINE_BYTES_MAX: usize = 256 << 10;
/// What a number may take as JSON, with what is between it and the next one. Python writes up to 25.
pub(super) const NUMBER_BYTES_MAX: usize = 32;
/// The JSON of a request but for its tensors' elements.
pub(super) const HEADER_JSON_BYTES_MAX: usize = 64 << 10;
/// What a message of gRPC has beside its tensors' elements.
pub(super) const MESSAGE_BYTES_BESIDE_MAX: usize = 64 << 10;
/// Fields of a message of gRPC: tensors, their bytes, parameters.
pub(super) const MESSAGE_FIELDS_MAX: usize = 512;
/// Tensors that a request may name.
pub(super) const TENSORS_MAX: usize = 64;
/// How deep a tensor's elements may be nested.
pub(super) const NESTING_MAX: usize = 8;
/// A request's id.
pub(super) const ID_BYTES_MAX: usize = 256;
/// The name of a model or a version in a path.
pub(super) const NAME_BYTES_MAX: usize = 256;
/// A deadline that a request may ask for: an hour.
pub(super) const DEADLINE_MAX_MS: f64 = 3.6e6;
/// Dashboards that may be open at once: each holds a connection.
pub(super) const WATCHERS_MAX: usize = 16;
/// The fastest link that a plan may be asked for.
pub(super) const RATE_MAX_BPS: f64 = 1e11;
