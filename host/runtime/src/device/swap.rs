//! Another version of the model comes into force, on both hosts or on neither, while requests go on.
//!
//! It is prepared here, beside the one in force; then the edge takes it, prepares it, too, and agrees on a plan for
//! it under an epoch of its own. It may be on trial then, for a share of the requests. Only then does one pointer
//! change, and the edge puts it in force, too. Each request holds the version that it began with, names it to the
//! edge, and the edge runs nothing else for it; so no request sees both. The old version goes when its last request
//! has been answered.

use super::edges::Joined;
use super::serving::Serving;
use super::{CALL_TIME_MAX, Device, InForce};
use crate::edge::{fault, us};
use crate::push::{Pieces, make_ready, push};
use crate::shelf::{Shelf, give_way};
use crate::threads;
use edgent_bundle::{Bundle, Digest, MANIFEST_BYTES_MAX};
use edgent_link::{Client, CodecTime, Fault, FaultKind, LinkError, Trial, Version};
use edgent_planner::Event;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// How often it is looked whether the last request of an old version has been answered.
const RETIRE_EVERY: Duration = Duration::from_millis(50);

impl Device {
    /// Takes a version whose blobs are here, and puts it in force, after a trial if there is to be one.
    pub(super) async fn install(self: Arc<Self>, digest: Digest, trial: Option<Trial>) -> Result<Version, Fault> {
        let _alone = self.changing.lock().await;
        let (version, bundle) = self.on_shelf(move |shelf| shelf.take(digest)).await?;
        self.change_to(version, bundle, trial).await
    }

    /// Puts the bundle in force that now lies where the host was told to look, or what is in force in its store by now.
    pub(crate) async fn reload(&self, changed: Option<Bundle>) -> Result<(), Fault> {
        let _alone = self.changing.lock().await;
        let name = self.serving().deployment.manifest().name.clone();
        let found = self.on_shelf(move |shelf| match changed {
            Some(bundle) => shelf.take_from(&bundle).map(Some),
            None => shelf.current(&name),
        });
        match found.await? {
            Some((version, bundle)) => self.change_to(version, bundle, None).await.map(drop),
            None => Ok(()),
        }
    }

    /// Puts the version in force that was so before.
    pub(super) async fn rollback(self: Arc<Self>, model: String) -> Result<Version, Fault> {
        let _alone = self.changing.lock().await;
        let (version, bundle) = self.on_shelf(move |shelf| shelf.previous(&model)).await?;
        self.change_to(version, bundle, None).await
    }

    /// The same with the version that is in force at the edge, if it was told first. If that cannot be served here,
    /// the edge goes back to the one that is in force here.
    pub(super) async fn follow_edge(
        self: Arc<Self>,
        client: &Client,
        digest: edgent_link::Digest,
    ) -> Result<(), Fault> {
        let _alone = self.changing.lock().await;
        let serving = self.serving();
        // Either may have been told something else meanwhile.
        if serving.model() == digest || self.in_force_at(client).await != Some(digest) {
            return Ok(());
        }
        let followed = async {
            let (mut pieces, mut manifest) = (Pieces::new(), Vec::new());
            loop {
                let piece = pieces.next_of(client, digest, manifest.len() as u64).await.map_err(said)?;
                if piece.is_empty() || manifest.len() as u64 > MANIFEST_BYTES_MAX {
                    break;
                }
                manifest.extend_from_slice(&piece);
            }
            let signatures = match client.signatures(digest).await {
                Err(LinkError::Fault(fault)) if fault.kind == FaultKind::Unsupported => Vec::new(),
                told => told.map_err(said)?,
            };
            self.on_shelf(move |shelf| shelf.sign(Digest(digest.0), &signatures)).await?;
            for wanted in self.on_shelf(move |shelf| shelf.offer(&manifest)).await? {
                let mut offset = 0;
                while offset < wanted.bytes {
                    let piece = pieces.next_of(client, wanted.digest, offset).await.map_err(said)?;
                    let (at, digest) = (offset, Digest(wanted.digest.0));
                    offset += piece.len() as u64;
                    self.on_shelf(move |shelf| shelf.put(digest, at, &piece)).await?;
                }
            }
            let (version, bundle) = self.on_shelf(move |shelf| shelf.take(Digest(digest.0))).await?;
            self.change_to(version, bundle, None).await.map(drop)
        };
        let followed = followed.await;
        if followed.is_err() {
            let back = push(client, &serving.bundle, None).await;
            if let Err(error) = back {
                tracing::warn!(%error, "the edge did not go back to the version that is in force here");
            }
        }
        followed
    }

    /// Goes back to the version before one that does wrong again and again, if that is the one in force.
    pub(super) fn leave(self: &Arc<Self>, serving: &Arc<Serving>, why: &str) {
        let digest = serving.deployment.digest();
        self.shelf.quarantine(digest, why);
        let (device, name) = (Arc::clone(self), serving.deployment.manifest().name.clone());
        self.shared.runtime.spawn(async move {
            let _alone = device.changing.lock().await;
            let back = async {
                let of = name.clone();
                let (version, bundle) = device.on_shelf(move |shelf| shelf.instead_of(&of, digest)).await?;
                device.change_to(version, bundle, None).await
            };
            match back.await {
                Ok(to) => tracing::warn!(model = %name, version = to.version, "went back to the version before"),
                Err(fault) => tracing::error!(model = %name, why = fault.message, "there is nothing to go back to"),
            }
        });
    }

    async fn change_to(&self, version: u64, bundle: Bundle, trial: Option<Trial>) -> Result<Version, Fault> {
        let changed = self.bring_into_force(version, bundle, trial).await;
        self.metrics.swapped(changed.is_ok());
        changed
    }

    async fn bring_into_force(&self, version: u64, bundle: Bundle, trial: Option<Trial>) -> Result<Version, Fault> {
        let old = self.serving();
        let name = bundle.manifest().name.clone();
        let installed = |commit_us| Version {
            model: name.clone(),
            version,
            digest: edgent_link::Digest(bundle.digest().0),
            current: true,
            previous: false,
            commit_us,
            on_trial: false,
            quarantined: false,
        };
        if old.deployment.digest() == bundle.digest() {
            self.put_in_force(&name, version, vec![bundle.digest()]).await?;
            return Ok(installed(0));
        }
        if old.deployment.manifest().name != name {
            let why = format!("this device serves '{}'; '{name}' is another model", old.deployment.manifest().name);
            return Err(fault(FaultKind::Refused, why));
        }
        let preparing = bundle.clone();
        let cannot = |e| fault(FaultKind::Refused, format!("it cannot be served here: {e}"));
        let prepared = self.on_shelf(move |shelf| shelf.prepare(preparing).map_err(cannot)).await?;
        let next = Arc::new(Serving::new(Arc::clone(&self.shared), prepared));
        self.can_replace(&next, &old)?;
        next.lock().inherit(old.lock().link().clone());
        let met = match self.shared.edge() {
            Some(edge) => self.meet_early(&next, &edge).await?,
            None => false,
        };
        let accepted = async {
            if let Some(trial) = trial {
                self.try_out(&next, trial).await?;
            }
            self.put_in_force(&name, version, vec![bundle.digest(), old.deployment.digest()]).await
        };
        if let Err(why) = accepted.await {
            self.versions.end_trial();
            self.retire(next);
            return Err(why);
        }
        let began = Instant::now();
        self.versions.replace(Arc::clone(&next));
        // Rounded up: it took some time.
        let commit_us = us(began.elapsed()) + 1;
        tracing::info!(model = %name, version, digest = %bundle.digest().short(), commit_us, "in force");
        match self.shared.edge() {
            None => next.tell(Event::EdgeLost),
            // It came while this version was being prepared.
            Some(Joined { client, .. }) if !met => next.introduce(&client),
            Some(Joined { address, client, .. }) => {
                let theirs = self.shared.settled(&address).map_or(old.model(), |settled| settled.theirs);
                let were = InForce { theirs, ours: next.model() };
                self.have_it_in_force(&address, &client, were).await;
            }
        }
        self.retire(old);
        Ok(installed(commit_us))
    }

    /// What no guest and no golden sample shows: whether a version is of use to who asked for the one in force.
    fn can_replace(&self, next: &Serving, old: &Serving) -> Result<(), Fault> {
        let refused = |why| Err(fault(FaultKind::Refused, why));
        let inputs =
            |serving: &Serving| -> Vec<String> { serving.deployment.inputs().map(ToString::to_string).collect() };
        let (takes, sent) = (inputs(next).join(", "), inputs(old).join(", "));
        if takes != sent {
            return refused(format!("it takes {takes}, and who asks sends {sent}; give another model another name"));
        }
        let deadline_us = self.shared.plan.deadline_us;
        let alone = |serving: &Serving| serving.lock().local(deadline_us, 0.0);
        if alone(old).fits && !alone(next).fits {
            let takes_ms = alone(next).candidate.cost.total_us() / 1e3;
            return refused(format!(
                "its fastest exit takes {takes_ms:.0} ms here, over the deadline of {:.0} ms; the version in force keeps it",
                deadline_us / 1e3
            ));
        }
        Ok(())
    }

    /// The edge puts in force what is so here, too, for its own next start and for other devices. If it cannot now, since it is
    /// lost, or does not have the version yet, this is tried again when it is next looked at; if it refuses, they differ.
    pub(super) async fn have_it_in_force(&self, address: &str, client: &Client, before: InForce) {
        let ours = before.ours;
        match tokio::time::timeout(CALL_TIME_MAX, client.install(ours, None)).await {
            Ok(Ok(_)) => self.shared.settle(address, InForce { theirs: ours, ours }),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the edge runs the version in force here, but does not put it in force");
                if matches!(&error, LinkError::Fault(fault) if fault.kind == FaultKind::Refused) {
                    self.shared.settle(address, before);
                }
            }
            Err(_) => tracing::warn!("the edge did not say that it put the version in force"),
        }
    }

    /// Has the edge take a version that is not in force yet, and agree on a plan for it. False if the edge is lost
    /// meanwhile: then the device goes on alone.
    async fn meet_early(&self, next: &Arc<Serving>, edge: &Joined) -> Result<bool, Fault> {
        match next.meet_or_push(&edge.client).await {
            Ok((connected, _)) => {
                let actions = next.lock().handle(connected, self.shared.started.elapsed());
                for action in actions {
                    next.act(edge, action).await;
                }
                Ok(true)
            }
            Err(LinkError::Fault(said)) => {
                let why = format!("the edge cannot serve it: {}; both stay with the version in force", said.message);
                Err(fault(FaultKind::Refused, why))
            }
            Err(error) => {
                tracing::warn!(%error, "the edge was lost while it took a version");
                Ok(false)
            }
        }
    }

    async fn put_in_force(&self, name: &str, version: u64, in_use: Vec<Digest>) -> Result<(), Fault> {
        let name = name.to_owned();
        self.on_shelf(move |shelf| shelf.put_in_force(&name, version, &in_use)).await
    }

    /// Waits for an old version's last request, then lets it go, here and at the edge.
    fn retire(&self, old: Arc<Serving>) {
        tokio::spawn(async move {
            while Arc::strong_count(&old) > 1 {
                tokio::time::sleep(RETIRE_EVERY).await;
            }
            let digest = old.model();
            for edge in old.shared.edge().into_iter().chain(old.shared.edges.standing_by()) {
                let _ = edge.client.retire(digest).await;
            }
            tracing::info!(digest = %old.deployment.digest().short(), "retired");
        });
    }

    /// Has a thread for such things do something with the store.
    pub(super) async fn on_shelf<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shelf) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let shelf = Arc::clone(&self.shelf);
        let work = move || {
            give_way();
            work(&shelf)
        };
        threads::apart(work).await.unwrap_or_else(|| Err(fault(FaultKind::Internal, "work on the store panicked")))
    }
}

impl Serving {
    /// Gives this version to an edge that does not have it, in the background.
    pub(super) fn introduce(self: &Arc<Self>, client: &Client) {
        if self.introducing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (serving, client) = (Arc::clone(self), client.clone());
        self.shared.runtime.spawn(async move {
            match serving.meet_or_push(&client).await {
                Ok((connected, _)) => serving.tell(connected),
                Err(error) => tracing::warn!(%error, "the edge does not serve the version in force"),
            }
            serving.introducing.store(false, Ordering::Release);
        });
    }

    /// Learns what an edge says of this version; if it does not have it, it is given it first.
    pub(super) async fn meet_or_push(&self, client: &Client) -> Result<(Event, Vec<CodecTime>), LinkError> {
        match self.meet(client).await {
            Err(LinkError::Fault(Fault { kind: FaultKind::UnknownModel, message })) => {
                if let Err(error) = make_ready(client, &self.bundle).await {
                    let message = format!("{message}; it does not take it, either: {error}");
                    return Err(LinkError::Fault(fault(FaultKind::UnknownModel, message)));
                }
                self.meet(client).await
            }
            met => met,
        }
    }
}

fn said(error: LinkError) -> Fault {
    match error {
        LinkError::Fault(fault) => fault,
        other => fault(FaultKind::Internal, other.to_string()),
    }
}
