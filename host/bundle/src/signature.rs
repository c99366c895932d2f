//! Who answers for a bundle: signatures as `minisign` makes and checks them.
//!
//! What is signed is a short text that names the bundle's manifest, which covers every byte of it, and says which
//! version of the model it is and which versions may still be run beside it:
//!
//! ```text
//! edgent bundle statement 1
//! manifest: sha256:…
//! name: branchy-alexnet
//! version: 3
//! minimum-version: 2
//! ```
//!
//! Text and signature are files that `minisign -V` takes. There is one way to write each: who changes a byte of
//! either, even one that a signature does not cover, has something that is not read. Nothing here does IO.

use crate::{Digest, SealedManifest};
use ct_codecs::{Base64, Decoder, Encoder};
use std::fmt;

/// The largest statement: five lines, one of them with a model's name.
pub const STATEMENT_BYTES_MAX: usize = 1 << 10;

/// The largest signature: four lines, one of them a comment.
pub const SIGNATURE_BYTES_MAX: usize = 1 << 10;

/// Signatures of one bundle: by several keys, while one takes another's place.
pub const SIGNATURES_MAX: usize = 8;

const TITLE: &str = "edgent bundle statement 1";

/// The first line of each signature. Nothing covers it, so it says nothing.
const UNTRUSTED: &str = "untrusted comment: edgent bundle signature";

/// Two letters, the key's id, and an Ed25519 key or signature.
const KEY_BYTES: usize = 2 + 8 + 32;
const SIGNATURE_BYTES: usize = 2 + 8 + 64;

/// What is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The bundle.
    pub manifest: Digest,
    /// The model's name, as the manifest has it.
    pub name: String,
    /// Which version of the model it is; the publisher counts, from 1 on.
    pub version: u64,
    /// A host that has had this version in force runs none of the same publisher's below this one.
    pub minimum_version: u64,
}

impl Statement {
    /// The text that is signed.
    pub fn text(&self) -> String {
        let Self { manifest, name, version, minimum_version } = self;
        format!("{TITLE}\nmanifest: {manifest}\nname: {name}\nversion: {version}\nminimum-version: {minimum_version}\n")
    }

    /// Whether it can be signed.
    pub fn check(&self) -> Result<(), SignatureError> {
        let said = |why: String| Err(SignatureError::Statement(why));
        if self.text().len() > STATEMENT_BYTES_MAX {
            return said(format!("it is over {STATEMENT_BYTES_MAX} bytes"));
        }
        if self.name.is_empty() || self.name.chars().any(char::is_control) {
            return said("the model's name is empty or has control characters".to_owned());
        }
        if self.minimum_version == 0 || self.minimum_version > self.version {
            let Self { version, minimum_version, .. } = self;
            return said(format!(
                "the minimum version {minimum_version} of version {version} is not from 1 to {version}"
            ));
        }
        Ok(())
    }

    fn read(bytes: &[u8]) -> Result<Self, SignatureError> {
        let said = |why: &str| SignatureError::Statement(why.to_owned());
        if bytes.len() > STATEMENT_BYTES_MAX {
            return Err(said("it is longer than it may be"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| said("it is not UTF-8"))?;
        let mut lines = text.lines();
        if lines.next() != Some(TITLE) {
            return Err(SignatureError::Statement(format!("it does not begin with '{TITLE}'")));
        }
        let mut value = |key: &str| {
            let value = lines.next().and_then(|line| line.strip_prefix(key)?.strip_prefix(": "));
            value.ok_or_else(|| SignatureError::Statement(format!("the line '{key}: …' is not where it must be")))
        };
        let manifest = value("manifest")?.parse().map_err(|_| said("it names no manifest"))?;
        let name = value("name")?.to_owned();
        let mut number =
            |key| value(key)?.parse().map_err(|_| SignatureError::Statement(format!("no number in {key}")));
        let statement =
            Self { manifest, name, version: number("version")?, minimum_version: number("minimum-version")? };
        statement.check()?;
        // One way to write it: what two programs read differently is no statement.
        if statement.text() != text {
            return Err(said("it is not written as it must be"));
        }
        Ok(statement)
    }
}

/// A statement and a signature of it, whose form has been checked; whether it holds, a [`PublicKey`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    statement: Statement,
    text: String,
    key: KeyId,
}

impl Signature {
    /// Reads what somebody else wrote: the two files that `minisign -V` takes.
    pub fn read(statement: &[u8], signature: &[u8]) -> Result<Self, SignatureError> {
        let statement = Statement::read(statement)?;
        let said = |why: &str| SignatureError::Signature(why.to_owned());
        if signature.len() > SIGNATURE_BYTES_MAX {
            return Err(said("it is longer than it may be"));
        }
        let text = std::str::from_utf8(signature).map_err(|_| said("it is not UTF-8"))?;
        let lines: Vec<&str> = text.split('\n').collect();
        let [UNTRUSTED, signed, comment, global, ""] = lines[..] else {
            return Err(SignatureError::Signature(format!(
                "it is not four lines of which the first is '{UNTRUSTED}'; sign with `edgent sign`"
            )));
        };
        let bytes = decode::<SIGNATURE_BYTES>(signed).ok_or_else(|| said("its second line is no signature"))?;
        decode::<64>(global).ok_or_else(|| said("its fourth line is no signature"))?;
        if bytes[..2] != *b"ED" {
            return Err(said("it is not of the prehashed kind (Ed25519 over BLAKE2b)"));
        }
        if comment.chars().any(char::is_control) {
            return Err(said("its comment has control characters"));
        }
        Ok(Self { statement, text: text.to_owned(), key: KeyId::at(&bytes) })
    }

    /// A signature that was made of `statement` just now; its first line is set to what it must be.
    pub fn of(statement: &Statement, minisig: &str) -> Result<Self, SignatureError> {
        let (_, rest) = minisig.split_once('\n').unwrap_or_default();
        let text = format!("{UNTRUSTED}\n{}\n", rest.trim_end_matches('\n'));
        Self::read(statement.text().as_bytes(), text.as_bytes())
    }

    /// What is signed, if it holds.
    pub fn statement(&self) -> &Statement {
        &self.statement
    }

    /// The signature's own file: four lines.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The key that it says it was made with.
    pub fn key(&self) -> KeyId {
        self.key
    }
}

/// A key that signatures are checked with.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    id: KeyId,
    line: String,
    key: minisign_verify::PublicKey,
}

impl PublicKey {
    /// Reads the line that begins with `RW`, or a file of `edgent keygen` or `minisign -G`, in which a comment stands
    /// before that line.
    pub fn read(text: &str) -> Result<Self, SignatureError> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let first = lines.next().unwrap_or_default();
        let line = if first.starts_with("untrusted comment:") { lines.next().unwrap_or_default() } else { first };
        let bytes = decode::<KEY_BYTES>(line).filter(|_| lines.next().is_none()).ok_or(SignatureError::Key)?;
        let key = minisign_verify::PublicKey::from_base64(line).map_err(|_| SignatureError::Key)?;
        Ok(Self { id: KeyId::at(&bytes), line: line.to_owned(), key })
    }

    /// The line that begins with `RW`.
    pub fn line(&self) -> &str {
        &self.line
    }

    /// What people call it by.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Whether a signature was made with the secret half of this key, and of this bundle.
    pub fn verify(&self, signature: &Signature, bundle: &SealedManifest) -> Result<(), SignatureError> {
        let does_not_hold = |_| SignatureError::False(self.id);
        let decoded = minisign_verify::Signature::decode(&signature.text).map_err(does_not_hold)?;
        self.key.verify(signature.statement.text().as_bytes(), &decoded, false).map_err(does_not_hold)?;
        let Statement { manifest, name, .. } = &signature.statement;
        if *manifest != bundle.digest() || *name != bundle.manifest().name {
            return Err(SignatureError::Other { key: self.id, signed: *manifest, name: name.clone() });
        }
        Ok(())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id)
    }
}

/// What people call a key by, as `minisign` writes it. Anybody can make a key with any id: it finds a key, it
/// proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(u64);

impl KeyId {
    /// Behind the two letters.
    fn at(bytes: &[u8]) -> Self {
        let mut id = [0; 8];
        id.copy_from_slice(&bytes[2..10]);
        Self(u64::from_le_bytes(id))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", self.0)
    }
}

/// So many bytes, written in the one way in which they can be.
fn decode<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    let decoded = Base64::decode(&mut bytes, text, None).ok()?.len();
    let again = Base64::encode_to_string(bytes).ok()?;
    (decoded == BYTES && again == text).then_some(bytes)
}

/// Why a signature, or a key, is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The text that is signed is not what it must be.
    #[error("the signed statement: {0}")]
    Statement(String),
    /// The signature is not written as it must be.
    #[error("the signature: {0}")]
    Signature(String),
    /// It was not made with that key, or was changed since.
    #[error("the signature was not made with the key {0}, or was changed since")]
    False(KeyId),
    /// It is of another bundle.
    #[error("the key {key} signed another bundle, '{name}' {signed}")]
    Other {
        /// Whose it is.
        key: KeyId,
        /// What was signed.
        signed: Digest,
        /// The name there.
        name: String,
    },
    /// Text that is no key.
    #[error("this is no public key; give the line that begins with RW, or the .pub file of `edgent keygen`")]
    Key,
}
