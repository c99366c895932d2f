//! What can go wrong between two hosts, and whose fault it is.

use std::io;

use crate::trust::Fingerprint;
use crate::types::{Codec, RANK_MAX};

/// A call's refusal by the peer: the connection is well.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct Fault {
    /// What to do about it.
    pub kind: FaultKind,
    /// For people: what, where, and what would help.
    pub message: String,
}

impl Fault {
    /// A fault of this kind.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Fault { kind, message: message.into() }
    }
}

/// The kinds of [`Fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum FaultKind {
    /// The model is not on this host.
    #[error("unknown model")]
    UnknownModel,
    /// The host does not know the plan of this epoch, or no longer.
    #[error("unknown epoch")]
    UnknownEpoch,
    /// The request contradicts itself or the model.
    #[error("bad request")]
    BadRequest,
    /// The request or its reply is over a size limit.
    #[error("too large")]
    TooLarge,
    /// The budget ran out before the answer was there.
    #[error("time up")]
    TimeUp,
    /// Too many calls; try again, or elsewhere.
    #[error("busy")]
    Busy,
    /// The two sides speak different versions of the protocol.
    #[error("version")]
    Version,
    /// A segment trapped, or gave something that is not its output.
    #[error("segment failed")]
    SegmentFailed,
    /// This host does not do this.
    #[error("unsupported")]
    Unsupported,
    /// The host is going away; other hosts may be there.
    #[error("shutting down")]
    ShuttingDown,
    /// A version that was not taken: the message says what is wrong with it.
    #[error("refused")]
    Refused,
    /// The host has nothing of this name.
    #[error("not found")]
    NotFound,
    /// The caller may not do this here: the message says which right it lacks.
    #[error("denied")]
    Denied,
    /// An error of the answering host itself.
    #[error("internal error")]
    Internal,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nobody answers at the address, or the address cannot be listened at.
    #[error("{address}: {source}")]
    Connect {
        /// As it was given.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The address is not this machine's own, and this side has no key to speak TLS with.
    #[error(
        "{address} is not this machine's own: this needs TLS, with a key of this side (--identity DIR), or --insecure"
    )]
    NoKey {
        /// As it was given.
        address: String,
    },
    /// The peer showed a key that is not known here: it is another than was meant, or somebody stands in between.
    #[error(
        "{address} shows the key {key}, which is not known here. If `edgent id` prints the same there, make the two \
         known to each other (`edgent pair`); if it does not, somebody stands in between"
    )]
    Stranger {
        /// As it was given.
        address: String,
        /// What it showed.
        key: Fingerprint,
    },
    /// The peer is known, but not as one whose answers are believed.
    #[error(
        "{address} shows the key {key}, which is known here but may not `serve`: if it is the host that you mean, \
         grant it that (\"serve\" in `may` of this key in peers.toml, or `edgent pair`)"
    )]
    MayNotServe {
        /// As it was given.
        address: String,
        /// What it showed.
        key: Fingerprint,
    },
    /// The peer is known, but is another than the one that was named.
    #[error(
        "{address} shows the key of '{found}', which is known here, too, but is not who was asked for: is it the right \
         address?"
    )]
    AnotherPeer {
        /// As it was given.
        address: String,
        /// Whose key it is.
        found: String,
    },
    /// A peer was named, and this connection would not prove who answers.
    #[error("{address}: only TLS tells who answers, and this would be plain bytes; give --tls, or leave the name out")]
    Nameless {
        /// As it was given.
        address: String,
    },
    /// The peer does not know this side.
    #[error(
        "{address} does not know this side's key {key}: make the two known to each other (`edgent pair`), or give the \
         --identity that it knows"
    )]
    UnknownThere {
        /// As it was given.
        address: String,
        /// This side's.
        key: Fingerprint,
    },
    /// What answers does not speak TLS, or not as this side does.
    #[error("{address}: {why}. Does it speak plain bytes (--insecure, or its own machine's address)?")]
    NoTls {
        /// As it was given.
        address: String,
        /// What went wrong.
        why: String,
    },
    /// The peer speaks another version of the protocol: one of both has to be updated.
    #[error("protocol version {theirs} there, {ours} here: update the older side")]
    Version {
        /// Our version.
        ours: u16,
        /// The peer's version.
        theirs: u16,
    },
    /// The peer did not let us in.
    #[error("refused by the peer: {0}")]
    Refused(Fault),
    /// The peer answered the call with a fault.
    #[error("the peer answered: {0}")]
    Fault(Fault),
    /// The request was not sent: it is larger than one side's limit.
    #[error("a request of {bytes} bytes is over the limit of {limit} bytes")]
    TooLarge {
        /// About what it would have been on the wire.
        bytes: usize,
        /// The lower of both sides' limits.
        limit: usize,
    },
    /// The request was not sent: its activation contradicts itself.
    #[error("not sent: {0}")]
    Activation(#[from] ActivationError),
    /// The connection is gone, and with it every call that was not answered.
    #[error("connection lost: {0}")]
    Lost(String),
    /// This took longer than its limit.
    #[error("timeout: {0}")]
    Timeout(&'static str),
    /// The peer sent something that is not the protocol.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
}

/// How an [`Activation`](crate::Activation) contradicts itself.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ActivationError {
    /// Too many axes.
    #[error("activation of rank {0}; at most {RANK_MAX} are allowed")]
    Rank(usize),
    /// The dimensions do not give the number of bytes.
    #[error(
        "activation of dimensions {dims:?} has {bytes} bytes, not the {expected:?} that they give (or fewer, if compressed)"
    )]
    Length {
        /// Its dimensions.
        dims: Vec<u32>,
        /// What it has.
        bytes: usize,
        /// What its dimensions ask for; nothing if that overflows.
        expected: Option<usize>,
    },
    /// What is no picture cannot be coded as one.
    #[error("activation of dimensions {dims:?} in {codec:?}; that is for u8 in [1, 3, height, width] or [1, 1, …]")]
    Picture {
        /// Its codec.
        codec: Codec,
        /// Its dimensions.
        dims: Vec<u32>,
    },
    /// The number of scales does not suit the codec and the dimensions.
    #[error("activation of dimensions {dims:?} in {codec:?} has {scales} scales and {offsets} offsets")]
    Scales {
        /// Its codec.
        codec: Codec,
        /// Its dimensions.
        dims: Vec<u32>,
        /// How many scales it has.
        scales: usize,
        /// How many offsets it has.
        offsets: usize,
    },
    /// A scale or an offset is infinite or not a number.
    #[error("activation with a scale or offset that is not finite")]
    NotFinite,
}
