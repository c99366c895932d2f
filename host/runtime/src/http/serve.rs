//! Connections: so many of them, each with limits on what comes and how slowly.

use super::limits::{CONNECTIONS_MAX, HEADERS_BYTES_MAX, HEADERS_MAX, HEADERS_TIME};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// After the system failed to accept a connection: most of the time it is out of files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listener that is accepted from.
#[derive(Debug)]
pub(super) struct Accepting {
    pub(super) local_addr: SocketAddr,
    ending: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Answers who connects, by the router.
pub(super) fn accept(listener: TcpListener, router: Router) -> std::io::Result<Accepting> {
    let local_addr = listener.local_addr()?;
    let (ending, told) = watch::channel(false);
    Ok(Accepting { local_addr, ending, task: tokio::spawn(run(listener, router, told)) })
}

impl Accepting {
    /// Accepts no more, lets each connection finish what it is at, and closes; at `end` in any case.
    pub(super) async fn shutdown(mut self, end: Instant) {
        self.ending.send_replace(true);
        if tokio::time::timeout_at(end.into(), &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(listener: TcpListener, router: Router, ending: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    let mut end = pin!(told(ending.clone()));
    loop {
        tokio::select! {
            () = &mut end => break,
            accepted = listener.accept() => {
                // Those that have ended count no more.
                while connections.try_join_next().is_some() {}
                match accepted {
                    Ok((stream, _)) if connections.len() < CONNECTIONS_MAX => {
                        connections.spawn(converse(stream, router.clone(), ending.clone()));
                    }
                    // One too many: closed at once.
                    Ok(_) => {}
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn converse(stream: TcpStream, router: Router, ending: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIME)
        .max_headers(HEADERS_MAX)
        .max_header_size(HEADERS_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    // An error is the client's: it went away, or sent what is no HTTP and was told so.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = told(ending) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// Until the end has been told, or nobody is there any more to tell it.
async fn told(mut ending: watch::Receiver<bool>) {
    let _ = ending.wait_for(|ending| *ending).await;
}
