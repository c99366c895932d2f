//! What carries connections in place of the system's network.

use futures::future::BoxFuture;
use std::{fmt, io};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// The bytes of a connection, both ways.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Carries connections in place of the system's network: a simulation's, in virtual time ([`Link::within`](crate::Link::within)).
/// What is spoken on it is what would be on loopback.
pub trait Road: fmt::Debug + Send + Sync {
    /// Connects to whoever listens at an address.
    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Stream>>>;

    /// Listens at an address; gives those who connect to it. Dropped, nobody listens there any more.
    fn listen(&self, address: &str) -> io::Result<mpsc::Receiver<Box<dyn Stream>>>;
}
