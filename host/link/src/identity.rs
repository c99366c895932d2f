//! A host's key.

use std::fmt;
use std::sync::Arc;

use ring::rand::SystemRandom;
use ring::signature::{ED25519_PUBLIC_KEY_LEN, Ed25519KeyPair, KeyPair};
use rustls::crypto::ring::sign::any_eddsa_type;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use crate::trust::Fingerprint;

/// What stands before an Ed25519 key in its SubjectPublicKeyInfo (RFC 8410): nothing of it varies.
const PUBLIC_KEY_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// An Ed25519 key, as which this side shows itself. Peers see it as it is (RFC 7250), without a certificate: there is
/// no date in it that a clock must agree with.
pub struct Identity {
    fingerprint: Fingerprint,
    key: Arc<CertifiedKey>,
}

/// A key that cannot be used or made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IdentityError(String);

impl Identity {
    /// A new secret key, in PKCS #8 (DER): what [`Identity::read`] reads.
    pub fn generate() -> Result<Vec<u8>, IdentityError> {
        let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
        let made = made.map_err(|_| IdentityError("the system gave no random numbers for a key".to_owned()))?;
        Ok(made.as_ref().to_vec())
    }

    /// Reads a secret key.
    pub fn read(pkcs8: &[u8]) -> Result<Self, IdentityError> {
        let no_key = |why: &dyn fmt::Display| IdentityError(format!("no Ed25519 key in PKCS #8 (DER): {why}"));
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|e| no_key(&e))?;
        let public_key = [&PUBLIC_KEY_PREFIX[..], pair.public_key().as_ref()].concat();
        let signs = any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8)).map_err(|e| no_key(&e))?;
        Ok(Identity {
            fingerprint: Fingerprint::of(&public_key),
            key: Arc::new(CertifiedKey::new(vec![CertificateDer::from(public_key)], signs)),
        })
    }

    /// What peers know it by.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub(crate) fn key(&self) -> Arc<CertifiedKey> {
        self.key.clone()
    }
}

/// The fingerprint of a public key as a peer shows it, if it is one of ours: Ed25519, and nothing around it.
pub(crate) fn fingerprint(public_key: &[u8]) -> Option<Fingerprint> {
    let key = public_key.strip_prefix(&PUBLIC_KEY_PREFIX)?;
    (key.len() == ED25519_PUBLIC_KEY_LEN).then(|| Fingerprint::of(public_key))
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.fingerprint)
    }
}
