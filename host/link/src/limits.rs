//! How much a peer may ask of us, and how long it may take.

use std::time::Duration;

const MESSAGE_BYTES: usize = 16 << 20;
const CALLS_IN_FLIGHT: usize = 32;
const CONNECTIONS: usize = 64;
const CONNECT: Duration = Duration::from_secs(5);
const FIRST_BYTE: Duration = Duration::from_secs(2);
const HANDSHAKE: Duration = Duration::from_secs(5);
const HELLO: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_secs(1);
const HEARTBEAT_STRIKES: u32 = 3;
const IDLE: Duration = Duration::from_secs(30);

/// The limits of one server or one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest message in either direction. The peer's own limit counts as well, if it is lower.
    pub message_bytes: usize,
    /// Calls of one connection that are not answered yet. A server answers more with
    /// [`Busy`](crate::FaultKind::Busy); a client makes them wait.
    pub calls_in_flight: usize,
    /// Connections of a server. One more takes the place of whoever has been there longest without saying who it is; if
    /// all have, it is accepted, counted and closed at once.
    pub connections: usize,
    /// Client: until the TCP connection stands.
    pub connect: Duration,
    /// Server: until the peer's first byte.
    pub first_byte: Duration,
    /// Until TLS stands.
    pub handshake: Duration,
    /// Until both sides have said hello.
    pub hello: Duration,
    /// Client: how often a quiet server is asked for a sign of life.
    pub heartbeat: Duration,
    /// Client: so many heartbeats in a row without one, and the connection is given up.
    pub heartbeat_strikes: u32,
    /// Server: the longest time without a sign of life. Must exceed the client's heartbeat.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            message_bytes: MESSAGE_BYTES,
            calls_in_flight: CALLS_IN_FLIGHT,
            connections: CONNECTIONS,
            connect: CONNECT,
            first_byte: FIRST_BYTE,
            handshake: HANDSHAKE,
            hello: HELLO,
            heartbeat: HEARTBEAT,
            heartbeat_strikes: HEARTBEAT_STRIKES,
            idle: IDLE,
        }
    }
}
