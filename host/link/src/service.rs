//! What a host does for its peers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::AcqRel, Ordering::Acquire};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::error::{Fault, FaultKind};
use crate::types::{
    Answer, AskRequest, BlobName, Description, Digest, EdgeState, InferReply, InferRequest, ModelProfile, Plan, Role,
    Signature, Stats, Trial, Version,
};

/// What a host does for its peers. It may leave out what its role does not do.
///
/// Called on the link's thread, on which every connection waits: a method must not block, but hand
/// its [`Reply`] to whoever does the work.
#[allow(unused_variables)]
pub trait Service: Send + Sync + 'static {
    /// The name of one of the host's models; none if it has no such model. Asked for callers that may ask about
    /// certain models only: a host that does not tell lets them ask about none.
    fn model_name(&self, which: Which<'_>) -> Option<String> {
        None
    }

    /// Somebody was not let in, for the host's log.
    fn turned_away(&self, address: SocketAddr, why: &str) {}

    /// What the host has.
    fn describe(&self, reply: Reply<Description>) {
        reply.refuse();
    }

    /// Makes the plan known under its epoch.
    fn install_plan(&self, plan: Plan, reply: Reply<()>) {
        reply.refuse();
    }

    /// Runs segments on an activation.
    fn infer(&self, request: InferRequest, reply: Reply<InferReply>) {
        reply.refuse();
    }

    /// Answers for an input.
    fn ask(&self, request: AskRequest, reply: Reply<Answer>) {
        reply.refuse();
    }

    /// How fast the host is with a model.
    fn profile(&self, model: Digest, reply: Reply<ModelProfile>) {
        reply.refuse();
    }

    /// The host's counters; those of the link are filled in afterwards.
    fn stats(&self, reply: Reply<Stats>) {
        reply.refuse();
    }

    /// Takes who answers for the bundle that is offered next.
    fn sign(&self, model: Digest, signatures: Vec<Signature>, reply: Reply<()>) {
        reply.refuse();
    }

    /// The signatures of a bundle that the host has.
    fn signatures(&self, model: Digest, reply: Reply<Vec<Signature>>) {
        reply.refuse();
    }

    /// Which of a bundle's blobs the host has not; at most [`BLOBS_MAX`](crate::BLOBS_MAX).
    fn offer(&self, manifest: Bytes, reply: Reply<Vec<BlobName>>) {
        reply.refuse();
    }

    /// The same of a manifest that comes in pieces, in order; told with the last one.
    fn offer_piece(&self, manifest: Digest, total: u64, offset: u64, bytes: Bytes, reply: Reply<Vec<BlobName>>) {
        reply.refuse();
    }

    /// Takes a piece of a blob that an offer found missing. They come in order.
    fn put_blob(&self, digest: Digest, offset: u64, bytes: Bytes, reply: Reply<()>) {
        reply.refuse();
    }

    /// Keeps, prepares, checks and serves a bundle that was offered and whose blobs are all there; answers when it is
    /// in force. It is first tried on some of the requests if there is to be a trial.
    fn install(&self, model: Digest, trial: Option<Trial>, reply: Reply<Version>) {
        reply.refuse();
    }

    /// The same, but it does not come into force: it is there for who asks for it by its digest.
    fn prepare(&self, model: Digest, reply: Reply<Version>) {
        reply.refuse();
    }

    /// Goes back to the model's version before; no name: the only model.
    fn rollback(&self, model: String, reply: Reply<Version>) {
        reply.refuse();
    }

    /// The versions that the host has; at most [`VERSIONS_MAX`](crate::VERSIONS_MAX).
    fn versions(&self, reply: Reply<Vec<Version>>) {
        reply.refuse();
    }

    /// The manifest of a bundle that the host has.
    fn manifest(&self, digest: Digest, reply: Reply<Bytes>) {
        reply.refuse();
    }

    /// At most so many bytes of a blob or a manifest that the host has; none behind its end.
    fn blob(&self, digest: Digest, offset: u64, max_bytes: u32, reply: Reply<Bytes>) {
        reply.refuse();
    }

    /// Runs this plan and no other; none: chooses again. Answers with the plan in force, once that is agreed on.
    fn pin(&self, plan: Option<Plan>, reply: Reply<Plan>) {
        reply.refuse();
    }

    /// The edges that the device was told of, in its order of preference; at most [`EDGES_MAX`](crate::EDGES_MAX).
    fn edges(&self, reply: Reply<Vec<EdgeState>>) {
        reply.refuse();
    }

    /// The caller asks for this bundle no more.
    fn retire(&self, model: Digest, reply: Reply<()>) {
        reply.refuse();
    }
}

/// A model, as callers name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which<'a> {
    /// By its bundle.
    Digest(Digest),
    /// By its name; empty: the only one.
    Name(&'a str),
}

/// The way back to a caller. Dropped unsent, the caller gets an [`Internal`](FaultKind::Internal) fault.
#[derive(Debug)]
pub struct Reply<T> {
    method: &'static str,
    role: Role,
    slot: Slot,
    to: oneshot::Sender<Result<T, Fault>>,
}

impl<T> Reply<T> {
    pub(crate) fn new(method: &'static str, role: Role, slot: Slot) -> (Self, oneshot::Receiver<Result<T, Fault>>) {
        let (to, answer) = oneshot::channel();
        (Reply { method, role, slot, to }, answer)
    }

    /// Answers, from any thread. If nobody waits any more, nothing happens.
    pub fn send(self, outcome: Result<T, Fault>) {
        // Before the caller can know: its next call must find the place free.
        drop(self.slot);
        let _ = self.to.send(outcome);
    }

    /// Whether the caller has gone, so that the work may be left.
    pub fn is_cancelled(&self) -> bool {
        self.to.is_closed()
    }

    fn refuse(self) {
        let message = format!("a host in the role `{}` does not answer `{}`", self.role, self.method);
        self.send(Err(Fault::new(FaultKind::Unsupported, message)));
    }
}

/// A place among the calls in flight. It is the work that has it, not the waiting: a caller that asks,
/// cancels and asks again does not get more work done.
#[derive(Debug)]
pub(crate) struct Slot {
    taken: [Arc<AtomicUsize>; 2],
}

impl Slot {
    /// Takes a place of the connection's and counts it for the whole server.
    pub(crate) fn take(connection: &Arc<AtomicUsize>, server: &Arc<AtomicUsize>, places: usize) -> Option<Self> {
        if connection.load(Acquire) >= places {
            return None;
        }
        let taken = [connection.clone(), server.clone()];
        taken.iter().for_each(|count| _ = count.fetch_add(1, AcqRel));
        Some(Slot { taken })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.taken.iter().for_each(|count| _ = count.fetch_sub(1, AcqRel));
    }
}
