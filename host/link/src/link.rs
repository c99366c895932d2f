//! The thread on which everything of Cap'n Proto lives.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;

use tokio::net::TcpListener;
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local};

use crate::client::{self, Client};
use crate::error::LinkError;
use crate::limits::Limits;
use crate::pair::{PairError, Paired, PairingCode};
use crate::road::Road;
use crate::security::{NoCredentials, Security};
use crate::server::{self, Listener, Server};
use crate::service::Service;
use crate::types::Hello;

/// Connects and listens; owns the thread that does it. Clones share the thread, which ends with the
/// last of them and of their servers and clients.
#[derive(Clone, Debug)]
pub struct Link {
    tasks: mpsc::Sender<Task>,
    runtime: runtime::Handle,
    security: Security,
    /// In place of the system's network.
    road: Option<Arc<dyn Road>>,
}

/// Servers and connections that wait to be started; whoever starts more, waits.
const TASKS_WAITING_MAX: usize = 64;

type Task = Box<dyn FnOnce() + Send>;

impl Link {
    /// Starts the thread of what is spoken like this.
    pub fn start(security: Security) -> io::Result<Link> {
        let runtime = runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let (tasks, waiting) = mpsc::channel(TASKS_WAITING_MAX);
        let handle = runtime.handle().clone();
        thread::Builder::new()
            .name("edgent-link".to_owned())
            .spawn(move || LocalSet::new().block_on(&runtime, carry_out(waiting)))?;
        Ok(Link { tasks, runtime: handle, security, road: None })
    }

    /// Lives on a road of its own, within the [`LocalSet`] that this is called in, and on no other thread. Where the
    /// runtime's time is virtual, so is the link's.
    pub fn within(road: Arc<dyn Road>, security: Security) -> Link {
        let (tasks, waiting) = mpsc::channel(TASKS_WAITING_MAX);
        spawn_local(carry_out(waiting));
        Link { tasks, runtime: runtime::Handle::current(), security, road: Some(road) }
    }

    /// Offers the service at `listen` (`host:port`; port 0 lets the system choose one).
    pub async fn serve(
        &self,
        listen: &str,
        hello: Hello,
        limits: Limits,
        service: Arc<dyn Service>,
    ) -> Result<Server, LinkError> {
        let (link, address) = (self.clone(), listen.to_owned());
        self.run(async move || {
            let listener = match &link.road {
                Some(road) => road.listen(&address).map(|incoming| (NOWHERE, Listener::Given(incoming))),
                None => listen_on(&address).await,
            };
            let listener = listener.map_err(|source| LinkError::Connect { address: address.clone(), source });
            let (local_addr, listener) = listener?;
            let credentials = link.security.at(local_addr.ip());
            let credentials = credentials.map_err(|NoCredentials| LinkError::NoKey { address })?.cloned();
            Ok(server::start(link, listener, local_addr, credentials, hello, limits, service))
        })
        .await
    }

    /// Connects to `address` (`host:port`) and says hello.
    pub async fn connect(&self, address: &str, hello: Hello, limits: Limits) -> Result<Client, LinkError> {
        let (link, address) = (self.clone(), address.to_owned());
        self.run(async move || client::connect(link, address, hello, limits).await).await
    }

    /// Pairs with the host at `address`, which invites to it ([`Server::invite`]), by its code; TLS in any case.
    /// `name` is what this side calls itself. To be kept by who calls this.
    pub async fn pair(
        &self,
        address: &str,
        code: PairingCode,
        name: &str,
        limits: Limits,
    ) -> Result<Paired, PairError> {
        let (link, address, name) = (self.clone(), address.to_owned(), name.to_owned());
        self.run(async move || Ok(client::pair(link, address, code, name, limits).await)).await?
    }

    /// Returns once its thread has had a turn: soon, unless that thread is stuck. For who watches it.
    pub async fn turn(&self) -> Result<(), LinkError> {
        self.run(async || Ok(())).await
    }

    /// Of its thread. What waits for calls all the time does so sooner there, where no thread is woken for another: two
    /// wake-ups fewer for each call. It must not block, or the link does.
    pub fn runtime(&self) -> &runtime::Handle {
        &self.runtime
    }

    pub(crate) fn security(&self) -> &Security {
        &self.security
    }

    pub(crate) fn road(&self) -> Option<&Arc<dyn Road>> {
        self.road.as_ref()
    }

    /// Runs something on the link's thread, for as long as the caller waits for it.
    async fn run<T, F, R>(&self, task: F) -> Result<T, LinkError>
    where
        T: Send + 'static,
        F: FnOnce() -> R + Send + 'static,
        R: Future<Output = Result<T, LinkError>> + 'static,
    {
        let (mut to, result) = oneshot::channel();
        let start: Task = Box::new(move || {
            spawn_local(async move {
                tokio::select! {
                    biased;
                    outcome = task() => {
                        let _ = to.send(outcome);
                    }
                    () = to.closed() => {}
                }
            });
        });
        let gone = || LinkError::Lost("the link's thread has ended".to_owned());
        self.tasks.send(start).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }
}

/// Where the ends of a road are: on no machine but this one.
pub(crate) const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

async fn listen_on(address: &str) -> io::Result<(SocketAddr, Listener)> {
    let listener = TcpListener::bind(address).await?;
    Ok((listener.local_addr()?, Listener::Tcp(listener)))
}

async fn carry_out(mut waiting: mpsc::Receiver<Task>) {
    while let Some(task) = waiting.recv().await {
        task();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    /// What a watchdog relies on.
    #[tokio::test]
    async fn a_turn_comes_only_when_the_thread_is_free() {
        let link = Link::start(Security::insecure()).unwrap();
        link.turn().await.unwrap();
        let (free, stuck) = mpsc::channel::<()>();
        let (begun, has_begun) = oneshot::channel();
        let other = link.clone();
        let sticking = tokio::spawn(async move {
            let stick = async move || {
                let _ = begun.send(());
                let _ = stuck.recv();
                Ok(())
            };
            other.run(stick).await
        });
        has_begun.await.unwrap();
        let turn = link.turn();
        tokio::pin!(turn);
        let waited = tokio::time::timeout(Duration::from_millis(50), &mut turn).await;
        assert!(waited.is_err(), "a turn of a thread that is stuck");
        free.send(()).unwrap();
        turn.await.unwrap();
        sticking.await.unwrap().unwrap();
    }
}
