//! The device's side of the connection to an edge: made, lost, and made again.

use super::serving::{Serving, Waiting};
use super::{
    CALL_TIME_MAX, Device, DeviceSettings, Joined, Looked, RECONNECT_AFTER, RECONNECT_AFTER_MAX, SMALL_PROBES, TICK,
    position,
};
use crate::codec::{self, to_wire};
use edgent_link::{Client, CodecTime, Digest, Direction, Fault, FaultKind, Link, LinkError, Plan};
use edgent_planner::{self as planner, Action, Event, Exchange, Installed};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How often the edge is asked which version is in force there.
const LOOK_AT_VERSIONS: Duration = Duration::from_secs(1);

impl Device {
    /// Connects, follows the controller's wishes while connected, and connects again.
    pub(super) async fn keep_connected(
        self: Arc<Self>,
        link: Link,
        settings: DeviceSettings,
        mut actions: mpsc::Receiver<(Arc<Serving>, Action)>,
    ) {
        let mut wait = RECONNECT_AFTER;
        while !settings.edges.is_empty() {
            for address in &settings.edges {
                match self.join(&link, address, &settings).await {
                    Ok(client) => {
                        tracing::info!(%address, "the edge is connected");
                        wait = RECONNECT_AFTER;
                        let why = self.follow(address, &client, &mut actions).await;
                        tracing::warn!(%address, %why, "the edge is lost; answering alone");
                        self.shared.set_edge(None);
                        self.tell_all(&Event::EdgeLost);
                    }
                    Err(error) => tracing::warn!(%address, %error, "no edge; trying again in {} ms", wait.as_millis()),
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RECONNECT_AFTER_MAX);
        }
    }

    async fn join(&self, link: &Link, address: &str, settings: &DeviceSettings) -> Result<Client, LinkError> {
        let client = link.connect(address, settings.hello.clone(), settings.limits).await?;
        loop {
            let serving = self.serving();
            let (connected, codecs) = serving.meet_or_push(&client).await?;
            let joined = Joined { address: address.to_owned(), client: client.clone(), codecs };
            for _ in 0..SMALL_PROBES {
                serving.probe(&client, 0).await?;
            }
            // Another version may be in force by now; then it is that one which meets the edge.
            if self.versions.when_current(&serving, || self.shared.set_edge(Some(joined))) {
                serving.tell(connected);
                if let Some(on_trial) = self.versions.on_trial() {
                    on_trial.introduce(&client);
                }
                return Ok(client);
            }
        }
    }

    /// Does what the controller asks for until the edge is gone; says why it is.
    async fn follow(
        self: &Arc<Self>,
        address: &str,
        client: &Client,
        actions: &mut mpsc::Receiver<(Arc<Serving>, Action)>,
    ) -> String {
        let mut look = tokio::time::interval(LOOK_AT_VERSIONS);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                why = client.closed() => return why.to_string(),
                _ = tick.tick() => self.tell_all(&Event::Tick),
                _ = look.tick() => self.look(address, client).await,
                Some((serving, action)) = actions.recv() => {
                    // Beside this loop: a probe over a slow link must not hold up a change of plan.
                    let client = client.clone();
                    tokio::spawn(async move { serving.act(&client, action).await });
                }
            }
        }
    }
}

impl Device {
    /// Has both hosts agree again on what is in force, if one of them was told something else since they were last
    /// looked at, be it while they did not see each other. Where both were, the edge's wins: others follow it, too.
    async fn look(self: &Arc<Self>, address: &str, client: &Client) {
        // While a version comes into force, they differ.
        let Ok(_alone) = self.changing.try_lock() else { return };
        let Some(theirs) = self.in_force_at(client).await else { return };
        let ours = self.serving().model();
        // What was so when they first met is nobody's wish.
        let before = self.shared.looked(address, Looked { theirs, ours }).unwrap_or(Looked { theirs, ours });
        if theirs == ours || (theirs == before.theirs && ours == before.ours) {
            return;
        }
        let (device, client, address) = (Arc::clone(self), client.clone(), address.to_owned());
        tokio::spawn(async move {
            if theirs == before.theirs {
                device.have_it_in_force(&address, &client, ours).await;
            } else if let Err(Fault { message, .. }) = device.follow_edge(&client, theirs).await {
                tracing::warn!(why = %message, "the edge's new version cannot be served here; both stay");
            }
        });
    }

    /// The version of this device's model that is in force at the edge, if it says so.
    pub(super) async fn in_force_at(&self, client: &Client) -> Option<Digest> {
        let name = self.serving().deployment.manifest().name.clone();
        let versions = tokio::time::timeout(CALL_TIME_MAX, client.versions()).await.ok()?.ok()?;
        versions.into_iter().find(|version| version.current && version.model == name).map(|version| version.digest)
    }
}

impl Serving {
    /// Learns what an edge says of this version.
    pub(super) async fn meet(&self, client: &Client) -> Result<(Event, Vec<CodecTime>), LinkError> {
        let profile = client.profile(self.model()).await?;
        let mut segments_us = vec![f64::INFINITY; self.deployment.network().segments()];
        for time in &profile.segments {
            if let Some(us) = segments_us.get_mut(usize::from(time.segment)) {
                *us = time.p50_us;
            }
        }
        // An older edge names none.
        let older = || codec::times_of_u8(profile.codec_us_per_mib);
        let codecs = if profile.codecs.is_empty() { older() } else { profile.codecs };
        let coding = codec::coding(&codec::slowed(codec::times(), self.deployment.coding_slowdown()), &codecs);
        let connected = Event::EdgeConnected { segments_us, coding, queue_us: profile.queue_us };
        Ok((connected, codecs))
    }

    pub(super) async fn act(self: &Arc<Self>, client: &Client, action: Action) {
        match action {
            Action::Install(installed) => {
                let agreed = tokio::time::timeout(CALL_TIME_MAX, client.install_plan(self.to_wire(installed))).await;
                match agreed {
                    Ok(Ok(())) => self.tell(Event::Accepted(installed)),
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "the edge refused a plan; keeping the old one");
                        self.tell(Event::Refused);
                        if matches!(error, LinkError::Fault(Fault { kind: FaultKind::UnknownModel, .. })) {
                            self.introduce(client);
                        }
                    }
                    Err(_) => {
                        tracing::warn!("the edge did not answer to a plan; keeping the old one");
                        self.tell(Event::Refused);
                    }
                }
            }
            Action::Probe { bytes } => {
                // What is still on the link will tell as much, and sooner.
                if !self.shared.link_is_clogged() {
                    let _ = tokio::time::timeout(CALL_TIME_MAX, self.probe(client, bytes)).await;
                }
                self.tell(Event::Probed);
            }
        }
    }

    async fn probe(self: &Arc<Self>, client: &Client, bytes: u64) -> Result<(), LinkError> {
        let on_wire = bytes + codec::MESSAGE_BYTES;
        let waiting = Waiting { serving: self, bytes: on_wire, since: Instant::now(), finished: false };
        let sent = client.probe(usize::try_from(bytes).unwrap_or(usize::MAX), 0).await;
        let elapsed_us = waiting.finish();
        sent?;
        self.tell(Event::Exchanged(Exchange { bytes: on_wire, elapsed_us, busy_us: 0.0 }));
        Ok(())
    }

    pub(super) fn to_wire(&self, installed: Installed) -> Plan {
        Plan {
            epoch: installed.epoch,
            model: self.model(),
            exit: position(installed.plan.exit),
            cut: position(installed.plan.cut),
            direction: match installed.plan.direction {
                planner::Direction::DeviceFirst => Direction::DeviceFirst,
                planner::Direction::EdgeFirst => Direction::EdgeFirst,
            },
            codec: to_wire(installed.plan.codec),
        }
    }
}
