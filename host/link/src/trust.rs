//! Who a peer is, and what it may do here.
//!
//! A host is known by its key alone: no certificate, no authority, no date. Two hosts know each other once each has
//! the other's [`Fingerprint`] among its [`Peers`]; what one may do at the other stands there, too.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use tokio::sync::watch;

use crate::identity::Identity;

/// The most peers that a host may know.
pub const PEERS_MAX: usize = 1024;
/// The most bytes of a peer's name.
pub const PEER_NAME_BYTES_MAX: usize = 64;

/// What a peer may do, if it was given this right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Right {
    /// Have requests answered, and plans kept.
    Ask,
    /// Offer, install, sign and roll back versions.
    Push,
    /// See counters and versions, and fetch what versions consist of.
    Read,
    /// Be connected to: its answers are believed here.
    Serve,
}

impl Right {
    /// Every right.
    pub const ALL: [Self; 4] = [Self::Ask, Self::Push, Self::Read, Self::Serve];

    /// What it is called in files and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ask => "ask",
            Self::Push => "push",
            Self::Read => "read",
            Self::Serve => "serve",
        }
    }

    /// The right of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|right| right.name() == name)
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The SHA-256 of a host's public key, as TLS sends it (its SubjectPublicKeyInfo).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

const PREFIX: &str = "sha256:";

impl Fingerprint {
    pub(crate) fn of(public_key: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, public_key).as_ref());
        Fingerprint(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What should be a fingerprint is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is `sha256:` and 64 hexadecimal digits; `edgent id` prints a host's")]
pub struct NoFingerprint;

impl FromStr for Fingerprint {
    type Err = NoFingerprint;

    fn from_str(text: &str) -> Result<Self, NoFingerprint> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(NoFingerprint)?.as_bytes();
        let mut bytes = [0; 32];
        if digits.len() != 2 * bytes.len() {
            return Err(NoFingerprint);
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            for digit in pair {
                let value = char::from(*digit).to_digit(16).ok_or(NoFingerprint)?;
                *byte = *byte << 4 | value as u8;
            }
        }
        Ok(Fingerprint(bytes))
    }
}

/// Another host, or somebody's tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPeer {
    /// For people: letters, digits, `-`, `_` and `.`; at most [`PEER_NAME_BYTES_MAX`].
    pub name: String,
    /// Its key.
    pub fingerprint: Fingerprint,
    /// What it may do here.
    pub may: BTreeSet<Right>,
    /// The models that it may ask about; none given: all.
    pub models: Option<BTreeSet<String>>,
}

/// Whether this may be a peer's name.
pub fn is_peer_name(name: &str) -> bool {
    (1..=PEER_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Those who are known here, each with a name and a key of its own.
#[derive(Clone, Debug, Default)]
pub struct Peers(HashMap<Fingerprint, Arc<KnownPeer>>);

/// Two peers are not told apart, or a name is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum PeersError {
    #[error("{0:?} is no name: it takes 1 to {PEER_NAME_BYTES_MAX} letters, digits, `-`, `_` or `.`")]
    Name(String),
    #[error("the name '{0}' is another peer's already")]
    NameTaken(String),
    #[error("this key is '{0}' already")]
    KeyTaken(String),
    #[error("over {PEERS_MAX} peers")]
    TooMany,
}

impl Peers {
    /// Adds one.
    pub fn add(&mut self, peer: KnownPeer) -> Result<(), PeersError> {
        if !is_peer_name(&peer.name) {
            return Err(PeersError::Name(peer.name));
        }
        if let Some(known) = self.0.get(&peer.fingerprint) {
            return Err(PeersError::KeyTaken(known.name.clone()));
        }
        if self.0.values().any(|known| known.name == peer.name) {
            return Err(PeersError::NameTaken(peer.name));
        }
        if self.0.len() == PEERS_MAX {
            return Err(PeersError::TooMany);
        }
        self.0.insert(peer.fingerprint, Arc::new(peer));
        Ok(())
    }

    /// The peer with this key.
    pub fn find(&self, fingerprint: &Fingerprint) -> Option<&Arc<KnownPeer>> {
        self.0.get(fingerprint)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &KnownPeer> {
        let mut peers: Vec<&KnownPeer> = self.0.values().map(|peer| &**peer).collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        peers.into_iter()
    }
}

/// Who this side is, and whom it knows. Clones share both: what [`Credentials::replace`] changes, changes for all
/// connections at once.
#[derive(Clone, Debug)]
pub struct Credentials {
    identity: Arc<Identity>,
    peers: Arc<watch::Sender<Peers>>,
    /// The same key: another program of whoever can read it. There is nothing to keep from that one.
    own: Arc<KnownPeer>,
}

impl Credentials {
    /// This identity, and those whom it knows.
    pub fn new(identity: Identity, peers: Peers) -> Self {
        let own = KnownPeer {
            name: "itself".to_owned(),
            fingerprint: identity.fingerprint(),
            may: Right::ALL.into(),
            models: None,
        };
        Credentials { identity: Arc::new(identity), peers: Arc::new(watch::Sender::new(peers)), own: Arc::new(own) }
    }

    /// Who this side is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Knows these from now on, and nobody else. Connections of others end.
    pub fn replace(&self, peers: Peers) {
        self.peers.send_replace(peers);
    }

    /// The peer with this key, if it is known.
    pub(crate) fn find(&self, fingerprint: &Fingerprint) -> Option<Arc<KnownPeer>> {
        if *fingerprint == self.own.fingerprint {
            return Some(self.own.clone());
        }
        self.peers.borrow().find(fingerprint).cloned()
    }

    /// Until this peer is not known any more, or has no longer this right, if one is given.
    pub(crate) async fn forgotten(&self, fingerprint: Fingerprint, needs: Option<Right>) {
        let mut peers = self.peers.subscribe();
        let is_good =
            || self.find(&fingerprint).is_some_and(|peer| needs.is_none_or(|right| peer.may.contains(&right)));
        while is_good() {
            if peers.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_as_it_is_written() {
        let fingerprint = Fingerprint::of(b"a key");
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        assert_eq!(format!(" {fingerprint}\n").parse(), Ok(fingerprint));
        for wrong in ["", "sha256:", "sha256:00", &"0".repeat(64), &format!("sha256:{}", "g".repeat(64)), "sha256:é"] {
            assert_eq!(wrong.parse::<Fingerprint>(), Err(NoFingerprint), "{wrong}");
        }
    }

    #[test]
    fn peers_are_told_apart_by_name_and_key() {
        let peer = |name: &str, key: &[u8]| KnownPeer {
            name: name.to_owned(),
            fingerprint: Fingerprint::of(key),
            may: BTreeSet::new(),
            models: None,
        };
        let mut peers = Peers::default();
        peers.add(peer("edge", b"1")).unwrap();
        assert_eq!(peers.add(peer("edge", b"2")), Err(PeersError::NameTaken("edge".to_owned())));
        assert_eq!(peers.add(peer("other", b"1")), Err(PeersError::KeyTaken("edge".to_owned())));
        let long = "x".repeat(PEER_NAME_BYTES_MAX + 1);
        for name in ["", "a b", "a\n", "\"", "é", &long] {
            assert_eq!(peers.add(peer(name, b"3")), Err(PeersError::Name(name.to_owned())));
        }
        peers.add(peer("anna-2_b.c", b"3")).unwrap();
        assert_eq!(peers.iter().map(|peer| peer.name.as_str()).collect::<Vec<_>>(), ["anna-2_b.c", "edge"]);
    }
}
