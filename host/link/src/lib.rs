//! What device, edge and the `edgent` tool say to each other: Cap'n Proto RPC over TLS, or over plain TCP.
//!
//! This is the only crate that knows Cap'n Proto; what it offers is plain Rust. Its schema is
//! `schema/edgent.capnp`, its generated code is committed (`schema/generate.sh` renews it).
//!
//! * [`Link`] owns the one thread on which everything of Cap'n Proto lives: its objects are `!Send`.
//! * Its [`Security`] says where it speaks TLS, with which [`Credentials`], and where plain bytes.
//! * [`Link::serve`] offers a [`Service`]; the service answers through a [`Reply`], from any thread.
//! * [`Server::invite`] and [`Link::pair`] make two sides known to each other by a code.
//! * [`Link::connect`] gives a [`Client`], whose futures are `Send` and may be dropped at any time.
//!
//! The peer is not trusted. capnp-rpc has no inbound limits and panics in states that a peer can
//! reach, so it gets its bytes from our own network: `frame` refuses sizes before it allocates,
//! `screen` lets through the few kinds of RPC message that this protocol needs, and `wire` bounds
//! what is queued. All figures are in [`Limits`].
#![deny(unsafe_code)] // But for one question to the system: backlog.rs.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod backlog;
mod client;
mod convert;
mod error;
mod frame;
mod guard;
mod identity;
mod limits;
mod link;
mod meter;
mod pair;
mod place;
mod road;
mod screen;
mod security;
mod server;
mod service;
mod splice;
mod tls;
mod trace;
mod trust;
mod types;
mod wire;

#[rustfmt::skip]
#[allow(clippy::all, clippy::unwrap_used, missing_docs, unused_qualifications)]
mod edgent_capnp;

pub use client::{Client, ProbeTimes};
pub use error::{ActivationError, Fault, FaultKind, LinkError};
pub use identity::{Identity, IdentityError};
pub use limits::Limits;
pub use link::Link;
pub use meter::Traffic;
pub use pair::{Invitation, Keep, NoCode, PAIRING_TIME, PAIRING_TRIES, PairError, Paired, PairingCode};
pub use place::Place;
pub use road::{Road, Stream};
pub use security::Security;
pub use server::Server;
pub use service::{Reply, Service, Which};
pub use tls::{bare_accept, bare_connect};
pub use trace::TraceParent;
pub use trust::{
    Credentials, Fingerprint, KnownPeer, NoFingerprint, PEER_NAME_BYTES_MAX, PEERS_MAX, Peers, PeersError, Right,
    is_peer_name,
};
pub use types::{
    Activation, Answer, AskRequest, BESIDE_MAX, BLOBS_MAX, BlobName, COMPUTED_MAX, Codec, CodecTime, Computed,
    Description, Digest, Direction, EDGES_MAX, EXITS_MAX, EdgeState, ElementType, ExitDescription, Hello, InferReply,
    InferRequest, ModelDescription, ModelProfile, Now, PIECE_BYTES, PROTOCOL_VERSION, Placement, Plan, RANK_MAX, Role,
    RunningPlan, SIGNATURE_BYTES_MAX, SIGNATURES_MAX, SegmentTime, Signature, Stats, TensorDescription, Trial,
    VERSIONS_MAX, Version,
};
