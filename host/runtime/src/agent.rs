//! What a balancer is told that stands before several hosts and asks how much room there is here: HAProxy's agent
//! check, a line on a connection of its own.
//!
//! `ready` goes with every `up`: a balancer that was told `drain` once leaves a host out until it hears that word.

use crate::HostError;
use crate::running::Running;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Who asks at once; more are closed as they come.
const CONNECTIONS_MAX: usize = 16;
/// How long one may take to read its line and go.
const ANSWER_TIME: Duration = Duration::from_secs(1);
/// What one may send before it goes; it is not read for anything.
const SENT_BYTES_MAX: u64 = 256;
/// After the system failed to accept a connection: most of the time it is out of files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often it is looked how much room there is. Balancers ask seldom, and one quiet moment tells nothing of a second.
const LOOK: Duration = Duration::from_millis(100);
/// So much of what is told is the last look; the rest is what was told before.
const LAST_LOOK_SHARE: f64 = 0.1;
/// What is told of a host without room. With `0%` it would get nothing; were all hosts full, nobody would.
const PERCENT_MIN: u32 = 1;

/// An agent check, listening.
#[derive(Debug)]
pub(crate) struct Agent {
    local_addr: SocketAddr,
    is_ending: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Agent {
    /// Listens.
    pub(crate) async fn start(address: &str, running: Running) -> Result<Self, HostError> {
        let failed = |source| HostError::AgentCheck { address: address.to_owned(), source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let (local_addr, is_ending) = (listener.local_addr().map_err(failed)?, Arc::default());
        let task = tokio::spawn(run(listener, running, Arc::clone(&is_ending)));
        Ok(Self { local_addr, is_ending, task })
    }

    /// Where it listens.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Tells from now on that nobody is to be sent here.
    pub(crate) fn announce_end(&self) {
        self.is_ending.store(true, Ordering::Release);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(listener: TcpListener, running: Running, is_ending: Arc<AtomicBool>) {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut room, mut answering) = (1.0, JoinSet::new());
    loop {
        tokio::select! {
            _ = look.tick() => room += LAST_LOOK_SHARE * (running.room() - room),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if answering.len() < CONNECTIONS_MAX => {
                    let line = line(is_ending.load(Ordering::Acquire), running.is_ready(), room);
                    answering.spawn(timeout(ANSWER_TIME, tell(stream, line)));
                }
                // One too many: closed at once.
                Ok(_) => {}
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = answering.join_next() => {}
        }
    }
}

/// What is told, in the words of HAProxy's configuration manual (`agent-check`).
fn line(is_ending: bool, is_ready: bool, room: f64) -> String {
    match (is_ending, is_ready) {
        (true, _) => "drain\n".to_owned(),
        (false, false) => "down #no model is served\n".to_owned(),
        (false, true) => format!("ready up {}%\n", ((room * 100.0).round() as u32).clamp(PERCENT_MIN, 100)),
    }
}

async fn tell(mut stream: TcpStream, line: String) -> io::Result<()> {
    stream.write_all(line.as_bytes()).await?;
    stream.shutdown().await?;
    // Were something left unread, the connection would be reset, perhaps before the line is read.
    tokio::io::copy(&mut stream.take(SENT_BYTES_MAX), &mut tokio::io::sink()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_are_words_that_a_balancer_knows() {
        let cases = [
            (false, true, 1.0, "ready up 100%\n"),
            (false, true, 0.756, "ready up 76%\n"),
            // Smoothed, it comes close to all and never there.
            (false, true, 0.9999, "ready up 100%\n"),
            (false, true, 0.0, "ready up 1%\n"),
            (false, false, 1.0, "down #no model is served\n"),
            (true, true, 1.0, "drain\n"),
            (true, false, 0.0, "drain\n"),
        ];
        for (is_ending, is_ready, room, expected) in cases {
            assert_eq!(line(is_ending, is_ready, room), expected);
        }
    }
}
