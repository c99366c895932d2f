//! Two hosts on this machine with an emulated link between them: what the demo and the benches ask.

use crate::ask::connect;
use crate::hosts::HostProcess;
use crate::relay::{Relay, Shape};
use crate::samples::{self, Sample};
use anyhow::{Context, Result, ensure};
use edgent_bundle::Bundle;
use edgent_link::{Client, Link, Security};
use rustix::process::Signal;
use std::future::Future;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A request follows the last answer after this long: a camera's pace, not a flood.
pub(crate) const PAUSE: Duration = Duration::from_millis(25);

/// One way, on the relay.
pub(crate) const DELAY: Duration = Duration::from_millis(2);

/// An edge, a relay before it, a device behind the relay, and a client of the device.
pub(crate) struct Rig {
    pub(crate) client: Client,
    pub(crate) relay: Relay,
    /// When the relay's trace began.
    pub(crate) since: Instant,
    device: HostProcess,
    edge: HostProcess,
    /// What the edge was started with, and where it listens.
    edge_arguments: Vec<String>,
    logs: bool,
    link: Link,
}

impl Rig {
    /// Starts both hosts from this very program, each with one worker, and waits until they are ready.
    pub(crate) async fn start(
        bundle: &Bundle,
        shape: Shape,
        device: &[&str],
        edge: &[&str],
        logs: bool,
    ) -> Result<Self> {
        Self::start_over(Security::plain_on_loopback(None), bundle, shape, device, edge, logs).await
    }

    /// The same where the link is spoken otherwise; what the hosts are told says so, too.
    pub(crate) async fn start_over(
        security: Security,
        bundle: &Bundle,
        shape: Shape,
        device: &[&str],
        edge: &[&str],
        logs: bool,
    ) -> Result<Self> {
        let program = std::env::current_exe()?;
        let model = bundle.path().to_str().context("the bundle's path is not UTF-8")?;
        let common = ["--listen", "127.0.0.1:0", "--workers", "1", "--model", model];
        let edge_arguments = [&["--role", "edge"], &common[..], edge].concat();
        let edge = HostProcess::start(&program, &edge_arguments, logs).await?;
        let edge_arguments = edge_arguments.into_iter().map(str::to_owned).collect();
        let relay = Relay::start("127.0.0.1:0", edge.address(), shape).await?;
        let since = Instant::now();
        let behind = relay.local_addr().to_string();
        let arguments = [&["--role", "device", "--edge", &behind], &common[..], device].concat();
        let device = HostProcess::start(&program, &arguments, logs).await?;
        let link = Link::start(security)?;
        let client = connect(&link, &device.address().to_string()).await?;
        Ok(Self { client, relay, since, device, edge, edge_arguments, logs, link })
    }

    /// Gives a client of the edge that does not go through the relay.
    pub(crate) async fn beside_the_relay(&self) -> Result<Client> {
        connect(&self.link, &self.edge.address().to_string()).await
    }

    /// Kills the edge, in the middle of whatever it does, and waits for its end.
    pub(crate) async fn kill_edge(&mut self) -> Result<()> {
        self.edge.kill().await
    }

    /// Sends the edge a signal.
    pub(crate) fn signal_edge(&self, signal: Signal) -> Result<()> {
        self.edge.signal(signal)
    }

    /// Where the device and the edge listen.
    pub(crate) fn addresses(&self) -> [SocketAddr; 2] {
        [&self.device, &self.edge].map(HostProcess::address)
    }

    /// Starts another edge in the place of one that was killed.
    pub(crate) fn another_edge(&self) -> impl Future<Output = Result<HostProcess>> + Send + 'static {
        let (mut arguments, logs, listen) = (self.edge_arguments.clone(), self.logs, self.edge.address().to_string());
        async move {
            if let Some(address) = arguments.iter_mut().skip_while(|argument| *argument != "--listen").nth(1) {
                *address = listen;
            }
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            HostProcess::start(&std::env::current_exe()?, &arguments, logs).await
        }
    }

    /// Has it be this rig's edge.
    pub(crate) fn set_edge(&mut self, edge: HostProcess) {
        self.edge = edge;
    }

    /// The processes of the device and the edge.
    pub(crate) fn processes(&self) -> [u32; 2] {
        [&self.device, &self.edge].map(|host| host.pid().unwrap_or(0))
    }

    /// Ends both hosts as an operator would, and makes sure that they ended well.
    pub(crate) async fn end(self) -> Result<()> {
        for (name, host) in [("device", self.device), ("edge", self.edge)] {
            let status = host.end().await?;
            ensure!(status.success(), "the {name} ended with {status}");
        }
        Ok(())
    }
}

/// The labelled test samples that a bundle carries.
pub(crate) fn test_samples(bundle: &Bundle) -> Result<Vec<Sample>> {
    let evidence = &bundle.manifest().evidence;
    let sheet = evidence.samples.as_ref().zip(evidence.labels.as_ref());
    let (samples, labels) = sheet.context("the model has no labelled samples")?;
    let tile_px = bundle.manifest().tensors[0].dims.last().copied().unwrap_or(0);
    samples::sheet(&bundle.blob(samples)?, &bundle.blob(labels)?, tile_px)
}
