//! Host processes: started, awaited until they are ready, and ended, as an operator would.

use crate::config::VARIABLE_PREFIX;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

/// How long a host may take to prepare its models.
const READY: Duration = Duration::from_secs(120);

/// How long a host may take to end after SIGTERM.
const END: Duration = Duration::from_secs(20);

/// A running `edgent-host`. Killed when dropped.
#[derive(Debug)]
pub struct HostProcess {
    child: Child,
    address: SocketAddr,
    stdout: BufReader<ChildStdout>,
    http: Option<SocketAddr>,
    agent: Option<SocketAddr>,
}

impl HostProcess {
    /// Runs `program` as `edgent-host` with `arguments` and waits for the line that says it is ready.
    /// What it logs goes to this process's stderr if `logs`.
    pub async fn start(program: &Path, arguments: &[&str], logs: bool) -> Result<Self> {
        let mut command = Command::new(program);
        // What this process's environment says is for hosts that the user starts.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with(VARIABLE_PREFIX)) {
            command.env_remove(name);
        }
        let mut child = command
            .arg0(crate::HOST_PROGRAM)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(if logs { Stdio::inherit() } else { Stdio::null() })
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let mut stdout = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut line = String::new();
        let read = tokio::time::timeout(READY, stdout.read_line(&mut line)).await;
        read.with_context(|| format!("the host said nothing for {} s", READY.as_secs()))??;
        let at = |what: &str| line.split([',', '\n']).find_map(|part| part.split_once(what)?.1.parse().ok());
        let Some(address) = at("listening on ") else {
            let status = child.wait().await?;
            bail!("the host ended with {status} before it was ready; its arguments were {arguments:?}");
        };
        let (http, agent) = (at("HTTP on "), at("agent check on "));
        Ok(Self { child, address, stdout, http, agent })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it says next, after the line that it is ready.
    pub async fn next_line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = tokio::time::timeout(READY, self.stdout.read_line(&mut line)).await;
        read.context("the host said nothing")??;
        Ok(line)
    }

    /// Where it listens for HTTP, if it was told to.
    pub fn http(&self) -> Option<SocketAddr> {
        self.http
    }

    /// Where it tells a balancer how much room it has, if it was told to.
    pub fn agent(&self) -> Option<SocketAddr> {
        self.agent
    }

    /// The process; none once it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid =
            self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)).context("the host has ended")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Sends SIGTERM and waits for the end.
    pub async fn end(self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.ended().await
    }

    /// Waits for the end of a host that was told to end.
    pub async fn ended(mut self) -> Result<ExitStatus> {
        Ok(tokio::time::timeout(END, self.child.wait()).await.context("the host did not end after SIGTERM")??)
    }

    /// Sends SIGKILL and waits for the end: its address is free then.
    pub async fn kill(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }
}
