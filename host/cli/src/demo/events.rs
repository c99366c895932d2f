//! What happens to the hosts while they answer: another version comes into force, and the edge is killed.

use crate::hosts::HostProcess;
use crate::rig::Rig;
use anyhow::Result;
use edgent_bundle::Bundle;
use edgent_runtime::{make_ready, push};
use rustix::process::Signal;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// The second version comes after this share of the demo's time…
const SWAP_AFTER: f64 = 0.35;

/// …and the edge is killed after this share.
const KILL_AFTER: f64 = 0.7;

/// A request is this far on its way when the edge is killed.
const INTO_A_REQUEST: Duration = Duration::from_millis(15);

/// So long there is no edge.
const AWAY: Duration = Duration::from_secs(1);

/// Something that happened.
pub(super) struct Event {
    pub(super) at: Duration,
    pub(super) what: What,
}

pub(super) enum What {
    /// A version came into force, or did not, for this reason.
    Swap {
        version: u64,
        refused: Option<String>,
    },
    EdgeKilled,
    EdgeStarted,
}

/// What is to happen, and what is under way.
pub(super) struct Events {
    length: Duration,
    next: Option<Bundle>,
    swapping: Option<JoinHandle<(Instant, What)>>,
    killed: bool,
    starting: Option<JoinHandle<Result<HostProcess>>>,
}

impl Events {
    pub(super) fn new(length: Duration, next: Option<&Bundle>) -> Self {
        Self { length, next: next.cloned(), swapping: None, killed: false, starting: None }
    }

    /// Has happen what is due; gives what has happened.
    pub(super) async fn due(&mut self, at: Duration, rig: &mut Rig) -> Result<Vec<Event>> {
        let mut happened = Vec::new();
        if at >= self.length.mul_f64(SWAP_AFTER)
            && let Some(bundle) = self.next.take()
        {
            self.swapping = Some(tokio::spawn(swap(rig.beside_the_relay().await?, rig.client.clone(), bundle)));
        }
        if let Some(swapping) = self.swapping.take_if(|swapping| swapping.is_finished()) {
            let (when, what) = swapping.await?;
            happened.push(Event { at: at.saturating_sub(when.elapsed()), what });
        }
        if let Some(starting) = self.starting.take_if(|starting| starting.is_finished()) {
            rig.set_edge(starting.await??);
            happened.push(Event { at, what: What::EdgeStarted });
        }
        Ok(happened)
    }

    /// Kills the edge while a request is under way, if it is time to.
    pub(super) async fn kill_if_due(&mut self, at: Duration, rig: &Rig) -> Result<Option<Event>> {
        let is_busy = self.swapping.is_some();
        if self.killed || is_busy || at < self.length.mul_f64(KILL_AFTER) {
            return Ok(None);
        }
        tokio::time::sleep(INTO_A_REQUEST).await;
        rig.signal_edge(Signal::KILL)?;
        self.killed = true;
        let another = rig.another_edge();
        self.starting = Some(tokio::spawn(async move {
            tokio::time::sleep(AWAY).await;
            another.await
        }));
        Ok(Some(Event { at: at + INTO_A_REQUEST, what: What::EdgeKilled }))
    }

    /// Whether all has happened that is to happen.
    pub(super) fn are_over(&self) -> bool {
        self.next.is_none() && self.swapping.is_none() && self.killed && self.starting.is_none()
    }

    /// Waits for what is still under way.
    pub(super) async fn finish(&mut self, start: Instant, rig: &mut Rig) -> Result<Vec<Event>> {
        let mut happened = Vec::new();
        if let Some(swapping) = self.swapping.take() {
            let (when, what) = swapping.await?;
            happened.push(Event { at: when - start, what });
        }
        if let Some(starting) = self.starting.take() {
            rig.set_edge(starting.await??);
            happened.push(Event { at: start.elapsed(), what: What::EdgeStarted });
        }
        Ok(happened)
    }
}

/// An operator has both hosts at hand: the edge is given the version directly, so that it need not cross the slow link.
async fn swap(edge: edgent_link::Client, device: edgent_link::Client, bundle: Bundle) -> (Instant, What) {
    let pushed = match make_ready(&edge, &bundle).await {
        Ok(_) => push(&device, &bundle, None).await,
        Err(error) => Err(error),
    };
    let what = match pushed {
        Ok(version) => What::Swap { version: version.version, refused: None },
        Err(error) => What::Swap { version: 0, refused: Some(error.to_string()) },
    };
    (Instant::now(), what)
}
