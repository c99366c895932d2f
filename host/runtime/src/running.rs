//! A host of either role, as the HTTP front sees it.

use crate::answer::Answered;
use crate::device::Device;
use crate::edge::fault;
use crate::shelf::{Shelf, give_way};
use crate::state::State;
use crate::{Deployment, Edge};
use edgent_link::{AskRequest, Digest, Fault, FaultKind, Version};
use std::sync::Arc;

/// What a host runs.
#[derive(Clone, Debug)]
pub(crate) enum Running {
    Device(Arc<Device>),
    Edge(Arc<Edge>),
}

impl Running {
    /// The versions that answer; of each model, the one first that answers who names no version.
    pub(crate) fn served(&self) -> Vec<Arc<Deployment>> {
        match self {
            Self::Device(device) => device.served(),
            Self::Edge(edge) => edge.served(),
        }
    }

    /// Answers by a version that is served: by it alone if the request insists on it, else as the host does.
    pub(crate) async fn ask(&self, request: AskRequest, version: Digest, insists: bool) -> Answered {
        match self {
            Self::Device(device) => device.ask(request, insists.then_some(version)).await,
            Self::Edge(edge) => edge.ask(request, version).await,
        }
    }

    /// Whether a model is served that is not quarantined.
    pub(crate) fn is_ready(&self) -> bool {
        self.served().iter().any(|version| version.quarantine().is_none())
    }

    /// How much of its time a request that came now would have left after waiting for its turn, from 0 to 1; of several
    /// models, for that which waits longest.
    pub(crate) fn room(&self) -> f64 {
        let (wait_us, deadline_us) = match self {
            Self::Device(device) => device.wait_us(),
            Self::Edge(edge) => edge.wait_us(),
        };
        (1.0 - wait_us / deadline_us).clamp(0.0, 1.0)
    }

    /// What the host does now.
    pub(crate) fn state(&self) -> State {
        match self {
            Self::Device(device) => device.state(),
            Self::Edge(edge) => edge.state(),
        }
    }

    /// What the host keeps in its store.
    pub(crate) async fn kept(&self) -> Result<Vec<Version>, Fault> {
        let shelf = Arc::clone(self.shelf());
        let listed = tokio::task::spawn_blocking(move || {
            give_way();
            shelf.versions()
        });
        listed.await.unwrap_or_else(|_| Err(fault(FaultKind::Internal, "looking into the store panicked")))
    }

    fn shelf(&self) -> &Arc<Shelf> {
        match self {
            Self::Device(device) => device.shelf(),
            Self::Edge(edge) => edge.shelf(),
        }
    }
}
