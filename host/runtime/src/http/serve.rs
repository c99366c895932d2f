//! Connections: so many of them, each with limits on what comes and how slowly.

use super::limits::{
    CONNECTIONS_MAX, HEADERS_BYTES_MAX, HEADERS_MAX, HEADERS_TIME, IDLE_TIME, PING_TIME, STREAMS_MAX, WINDOW_BYTES,
};
use axum::Router;
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io::Cursor;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

/// After the system failed to accept a connection: most of the time it is out of files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How a client begins that knows the host to speak HTTP/2; what follows is checked by hyper.
const HTTP2_BEGINS: &[u8] = b"PRI";

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

/// Speaks HTTP/1.1 or, if the client begins so, HTTP/2.
async fn converse(stream: TcpStream, router: Router, ending: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true);
    let (mut reads, writes) = stream.into_split();
    let Ok(Ok(begin)) = timeout(HEADERS_TIME, beginning(&mut reads)).await else { return };
    let is_http2 = begin == HTTP2_BEGINS;
    let stream = TokioIo::new(tokio::io::join(Cursor::new(begin).chain(reads), writes));
    let service = TowerToHyperService::new(router);
    if is_http2 {
        let (asked, seen) = watch::channel(0);
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEADERS_BYTES_MAX as u32)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .keep_alive_interval(PING_TIME)
            .keep_alive_timeout(PING_TIME)
            .serve_connection(stream, Counted { service, asked });
        let mut connection = pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return,
            () = told(ending) => connection.as_mut().graceful_shutdown(),
            // Who does not even take its answers is not waited for.
            () = idle(seen) => {
                connection.as_mut().graceful_shutdown();
                let _ = timeout(HEADERS_TIME, connection).await;
                return;
            }
        }
        let _ = connection.await;
    } else {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS_TIME)
            .max_headers(HEADERS_MAX)
            .max_header_size(HEADERS_BYTES_MAX)
            .serve_connection(stream, service);
        let mut connection = pin!(connection);
        // An error is the client's: it went away, or sent what is no HTTP and was told so.
        tokio::select! {
            _ = connection.as_mut() => return,
            () = told(ending) => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    }
}

/// As many of a connection's first bytes as tell its protocol: no request of HTTP/1.1 begins as HTTP/2 does.
async fn beginning(reads: &mut OwnedReadHalf) -> std::io::Result<Vec<u8>> {
    let mut begin = Vec::with_capacity(HTTP2_BEGINS.len());
    while begin.len() < HTTP2_BEGINS.len() && HTTP2_BEGINS.starts_with(&begin) {
        let mut byte = [0];
        if reads.read(&mut byte).await? == 0 {
            break;
        }
        begin.extend(byte);
    }
    Ok(begin)
}

/// Until nothing is asked any more, and has not been for a while.
async fn idle(mut asked: watch::Receiver<usize>) {
    loop {
        let _ = asked.wait_for(|asked| *asked == 0).await;
        if timeout(IDLE_TIME, asked.changed()).await.is_err() {
            return;
        }
    }
}

/// Counts the requests that are being answered.
struct Counted<S> {
    service: S,
    asked: watch::Sender<usize>,
}

impl<S, R> Service<R> for Counted<S>
where
    S: Service<R>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn call(&self, request: R) -> Self::Future {
        let asking = Asking::new(self.asked.clone());
        let answer = self.service.call(request);
        Box::pin(async move {
            let answer = answer.await;
            drop(asking);
            answer
        })
    }
}

/// A request that is being answered, counted until this is dropped.
struct Asking(watch::Sender<usize>);

impl Asking {
    fn new(asked: watch::Sender<usize>) -> Self {
        asked.send_modify(|asked| *asked += 1);
        Self(asked)
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.send_modify(|asked| *asked -= 1);
    }
}

/// Until the end has been told, or nobody is there any more to tell it.
async fn told(mut ending: watch::Receiver<bool>) {
    let _ = ending.wait_for(|ending| *ending).await;
}
