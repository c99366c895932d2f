//! The device's side of the connections to its edges: made, watched, lost, and made again.
//!
//! All edges are kept connected, with the version in force prepared there. Which one is in force, `ranking.rs` says;
//! the others are asked for a sign of life now and then, and agree to each plan after the one in force has, so that a
//! request can be sent there at once.

use super::edges::{Changed, Joined};
use super::probe;
use super::serving::{Serving, Waiting};
use super::{CALL_TIME_MAX, Device, DeviceSettings, InForce, SMALL_PROBES, TICK, position};
use crate::again;
use crate::codec::{self, to_wire};
use edgent_link::{Client, CodecTime, Digest, Direction, Fault, FaultKind, Link, LinkError, Plan};
use edgent_planner::{self as planner, Action, Event, Exchange, Installed, LinkEstimate};
use futures::TryFutureExt;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// How often the edge in force is asked which version is in force there.
const LOOK_AT_VERSIONS: Duration = Duration::from_secs(1);

/// How often an edge that is not in force is asked for a sign of life…
const STANDBY_LOOK: Duration = Duration::from_millis(500);

/// …how long it may take for that…
const STANDBY_TIME_MAX: Duration = Duration::from_secs(1);

/// …how often it is asked how fast it is and the link to it is measured…
const STANDBY_MEET: Duration = Duration::from_secs(5);

/// …with so many bytes.
const STANDBY_PROBE_BYTES: u64 = 16 << 10;

/// A device that connects anew does so up to this share of the time earlier, so that those that began together do not do
/// so together.
const RECONNECT_JITTER: f64 = 0.5;

impl Device {
    /// Keeps its edges connected, and follows the controllers' wishes.
    pub(super) fn look_for_edges(
        self: &Arc<Self>,
        link: &Link,
        settings: &DeviceSettings,
        actions: mpsc::Receiver<(Arc<Serving>, Action)>,
    ) {
        for place in 0..settings.edges.len() {
            tokio::spawn(Arc::clone(self).keep_connected(place, link.clone(), settings.clone()));
        }
        if !settings.edges.is_empty() {
            tokio::spawn(Arc::clone(self).follow(actions));
        }
        tokio::spawn(Arc::clone(self).keep_measured());
    }

    async fn keep_measured(self: Arc<Self>) {
        let mut look = interval(again::LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            self.serving().measure_again().await;
        }
    }

    async fn keep_connected(self: Arc<Self>, place: usize, link: Link, settings: DeviceSettings) {
        let address = &settings.edges[place];
        loop {
            let why = match self.join(&link, place, &settings).await {
                Ok(mut joined) => loop {
                    tracing::info!(%address, "the edge is connected");
                    self.meet_first(address, &joined.client).await;
                    tokio::select! {
                        biased;
                        why = joined.client.closed() => break why.to_string(),
                        Ok(()) = joined.client.leaving() => break "it is shutting down".to_owned(),
                        never = self.stand_by(joined.clone()) => match never {},
                        anew = self.join_anew(&link, place, &settings) => joined = anew,
                    }
                },
                Err(error) => error.to_string(),
            };
            // What it was asked before may still be answered: those who wait hold the connection.
            let wait = self.shared.edges.lost(place, self.shared.started.elapsed());
            tracing::warn!(%address, %why, "no edge there; trying again in {} ms", wait.as_millis());
            tokio::time::sleep(wait).await;
        }
    }

    /// Connects to an edge that is connected, when it is time to: what answers at its address may be another one now.
    async fn join_anew(&self, link: &Link, place: usize, settings: &DeviceSettings) -> Joined {
        let Some(after) = settings.reconnect else { return pending().await };
        loop {
            tokio::time::sleep(after.mul_f64(1.0 - RECONNECT_JITTER * fastrand::f64())).await;
            match self.join(link, place, settings).await {
                Ok(joined) => return joined,
                // What stands goes on.
                Err(error) => tracing::warn!(address = %settings.edges[place], %error, "not connected anew"),
            }
        }
    }

    async fn join(&self, link: &Link, place: usize, settings: &DeviceSettings) -> Result<Joined, LinkError> {
        let address = &settings.edges[place];
        let now = settings.whereabouts.now(address);
        let now = now.map_err(|source| LinkError::Connect { address: address.clone(), source })?;
        let client = link.connect(&now, settings.hello.clone(), settings.limits).await?;
        loop {
            let serving = self.serving();
            let met = serving.meet_or_push(&client).await?;
            let joined = Joined::new(place, address, &client, serving.model(), met);
            for _ in 0..SMALL_PROBES {
                self.shared.probe(&joined, 0).await?;
            }
            if let Some(before) = self.shared.edges.at(place) {
                // It takes the other one's place without a pause: the way there is known, and so is the plan in force.
                let is_in_force = self.shared.edges.is_in_force(&before);
                joined.keep_link(if is_in_force { serving.lock().link().clone() } else { before.link() });
                serving.agree_with(&joined).await;
            }
            // Another version may be in force by now; then it is that one which meets the edge.
            if self.versions.when_current(&serving, || self.shared.edges.join(joined.clone())) {
                return Ok(joined);
            }
        }
    }

    /// Watches an edge for as long as it is there, and has it ready to take the place of the one in force.
    async fn stand_by(&self, mut edge: Joined) -> Infallible {
        let mut look = interval(STANDBY_LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut met_at, mut measured_at) = (Instant::now(), None::<Instant>);
        loop {
            look.tick().await;
            let serving = self.serving();
            if self.shared.edges.is_in_force(&edge) {
                // Its requests tell of it, if there are any. If not, something small must: a round trip that was
                // measured in a bad moment would keep the device alone for ever.
                if !serving.crosses() && !edge.is_clogged() {
                    let _ = timeout(STANDBY_TIME_MAX, serving.probe(&edge.client, 0)).await;
                    // So does how fast it was: by now it may have less to do.
                    if met_at.elapsed() >= STANDBY_MEET && edge.model == serving.model() {
                        if let Ok(Ok(met)) = timeout(STANDBY_TIME_MAX, serving.meet(&edge.client)).await {
                            edge = edge.met_again(serving.model(), met);
                            self.shared.edges.renew(edge.clone());
                            serving.tell(edge.connected());
                        }
                        met_at = Instant::now();
                    }
                }
                continue;
            }
            if edge.model != serving.model() || met_at.elapsed() >= STANDBY_MEET {
                match serving.meet_or_push(&edge.client).await {
                    Ok(met) => edge = edge.met_again(serving.model(), met),
                    Err(error) => {
                        tracing::warn!(address = %edge.address, %error, "this edge does not serve the version in force");
                        self.shared.edges.struck(&edge, self.shared.started.elapsed());
                        continue;
                    }
                }
                self.shared.edges.renew(edge.clone());
                met_at = Instant::now();
            }
            let is_measured = measured_at.is_some_and(|at| at.elapsed() < STANDBY_MEET);
            let bytes = if is_measured { 0 } else { STANDBY_PROBE_BYTES };
            measured_at = if is_measured { measured_at } else { Some(Instant::now()) };
            match timeout(STANDBY_TIME_MAX, self.shared.probe(&edge, bytes)).await {
                Ok(Ok(())) => self.shared.edges.answered(&edge),
                Ok(Err(_)) | Err(_) => self.shared.edges.struck(&edge, self.shared.started.elapsed()),
            }
            serving.agree_with(&edge).await;
        }
    }

    /// Does what the controllers ask for, with the edge in force.
    async fn follow(self: Arc<Self>, mut actions: mpsc::Receiver<(Arc<Serving>, Action)>) {
        let mut look = interval(LOOK_AT_VERSIONS);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.shared.edges.changed.notified() => self.settle(),
                _ = tick.tick() => {
                    self.settle();
                    self.tell_all(&Event::Tick);
                }
                _ = look.tick() => {
                    if let Some(edge) = self.shared.edge() {
                        self.look_soon(edge);
                    }
                }
                Some((serving, action)) = actions.recv() => {
                    if let Some(edge) = self.shared.edge() {
                        // Beside this loop: a probe over a slow link must not hold up a change of plan.
                        tokio::spawn(async move { serving.act(&edge, action).await });
                    }
                }
            }
        }
    }

    /// Looks what is in force there, beside what else is done: an edge that stands still must not hold up the change to
    /// another one.
    fn look_soon(self: &Arc<Self>, edge: Joined) {
        let device = Arc::clone(self);
        tokio::spawn(async move { device.look(&edge.address, &edge.client).await });
    }

    /// Has the controllers plan with the edge that is to be in force now.
    fn settle(self: &Arc<Self>) {
        let Some(Changed { from, to }) = self.shared.edges.choose(self.shared.started.elapsed()) else { return };
        let current = self.serving();
        if let Some(from) = &from {
            from.keep_link(current.lock().link().clone());
        }
        let Some(to) = to else {
            tracing::warn!("no edge is left; answering alone");
            return self.tell_all(&Event::EdgeLost);
        };
        tracing::info!(address = %to.address, "this edge is in force");
        // Now, and not when it is time to: what comes into force there from now on is somebody's wish.
        self.look_soon(to.clone());
        for serving in [Some(Arc::clone(&current)), self.versions.on_trial()].into_iter().flatten() {
            let is_met = serving.model() == to.model;
            // The plan in force may go on if the new edge knows it.
            if from.is_some() && !(is_met && to.agreed() == serving.lock().installed().epoch) {
                serving.tell(Event::EdgeLost);
            }
            serving.lock().inherit(to.link());
            if is_met {
                serving.tell(to.connected());
            } else {
                serving.introduce(&to.client);
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
        let now = InForce { theirs, ours };
        // What was so when they first met is nobody's wish.
        let before = self.shared.settled(address).unwrap_or(now);
        if theirs == ours || now == before {
            return self.shared.settle(address, now);
        }
        let (device, client, address) = (Arc::clone(self), client.clone(), address.to_owned());
        tokio::spawn(async move {
            if theirs == before.theirs {
                return device.have_it_in_force(&address, &client, now).await;
            }
            let followed = Arc::clone(&device).follow_edge(&client, theirs).await;
            if let Err(Fault { message, .. }) = &followed {
                tracing::warn!(why = %message, "the edge's new version cannot be served here; both stay");
            }
            // Lost in the midst of it, they have not settled anything: it is tried again when they meet.
            if followed.is_ok() || !client.is_closed() {
                let ours = device.serving().model();
                device.shared.settle(&address, InForce { theirs, ours });
            }
        });
    }

    /// Remembers what was in force when they first met, also of an edge that is not in force itself: what changes from then on
    /// is somebody's wish.
    async fn meet_first(&self, address: &str, client: &Client) {
        if self.shared.settled(address).is_none()
            && let Some(theirs) = self.in_force_at(client).await
        {
            self.shared.settle(address, InForce { theirs, ours: self.serving().model() });
        }
    }

    /// The version of this device's model that is in force at the edge, if it says so.
    pub(super) async fn in_force_at(&self, client: &Client) -> Option<Digest> {
        let name = self.serving().deployment.manifest().name.clone();
        let versions = timeout(CALL_TIME_MAX, client.versions()).await.ok()?.ok()?;
        versions.into_iter().find(|version| version.current && version.model == name).map(|version| version.digest)
    }
}

impl super::Shared {
    /// Measures the link to an edge that is not in force, or not yet.
    async fn probe(&self, edge: &Joined, bytes: u64) -> Result<(), LinkError> {
        let since = Instant::now();
        let bytes = send(&edge.client, bytes, &edge.link(), since).await?;
        let elapsed_us = since.elapsed().as_secs_f64() * 1e6;
        edge.exchanged(Exchange { bytes, elapsed_us, busy_us: 0.0 }, self.started.elapsed());
        Ok(())
    }
}

async fn send(client: &Client, bytes: u64, link: &LinkEstimate, since: Instant) -> Result<u64, LinkError> {
    let ask = |piece: usize| client.probe(piece, 0).map_ok(drop);
    probe::send(bytes, link.window_bytes(), ask, || since.elapsed()).await
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

    pub(super) async fn act(self: &Arc<Self>, edge: &Joined, action: Action) {
        let client = &edge.client;
        match action {
            Action::Install(installed) => {
                let agreed = timeout(CALL_TIME_MAX, client.install_plan(self.to_wire(installed))).await;
                match agreed {
                    // What an edge agreed to that is not in force any more, the one in force need not know.
                    Ok(Ok(())) if !self.shared.edges.is_in_force(edge) => self.tell(Event::Refused),
                    Ok(Ok(())) => {
                        edge.agree(installed.epoch);
                        self.tell(Event::Accepted(installed));
                        for other in self.shared.edges.standing_by() {
                            let serving = Arc::clone(self);
                            tokio::spawn(async move { serving.agree_with(&other).await });
                        }
                    }
                    // It is lost: that is told, and a refusal after it would hold up the plan with the next one.
                    Ok(Err(_)) if self.shared.edge_is_lost() => {}
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
                if edge.is_clogged() {
                    // What is still on the link will tell as much, and sooner. Not at once: the controller would ask
                    // for a probe again, and again.
                    tokio::time::sleep(TICK).await;
                } else {
                    let _ = timeout(CALL_TIME_MAX, self.probe(client, bytes)).await;
                }
                self.tell(Event::Probed);
            }
        }
    }

    /// Has an edge that is not in force know the plan that is.
    async fn agree_with(self: &Arc<Self>, edge: &Joined) {
        let installed = self.lock().installed();
        if !self.crosses() || edge.agreed() == installed.epoch || edge.model != self.model() {
            return;
        }
        // If it cannot, it is no place to go to; the next look asks again.
        if let Ok(Ok(())) = timeout(STANDBY_TIME_MAX, edge.client.install_plan(self.to_wire(installed))).await {
            edge.agree(installed.epoch);
        }
    }

    /// Whether the plan in force needs an edge.
    pub(super) fn crosses(&self) -> bool {
        let plan = self.lock().installed().plan;
        plan.placement(self.deployment.network()) != planner::Placement::DeviceOnly
    }

    async fn probe(self: &Arc<Self>, client: &Client, bytes: u64) -> Result<(), LinkError> {
        let link = self.lock().link().clone();
        let since = Instant::now();
        let waiting = Waiting { serving: self, bytes, since, finished: false };
        let sent = send(client, bytes, &link, since).await;
        let elapsed_us = waiting.finish();
        self.tell(Event::Exchanged(Exchange { bytes: sent?, elapsed_us, busy_us: 0.0 }));
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
