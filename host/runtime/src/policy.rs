//! What the operator allows: whose bundles are run here, and what they may be.
//!
//! ```toml
//! format = 1
//! # Bundles that no trusted key signed: "refuse", "portable-only" (all their arithmetic is done in the sandbox), "allow".
//! unsigned = "refuse"
//!
//! [[publisher]]
//! name = "acme"
//! # A key, or a file with one, beside this file. Several, while one takes another's place: first the new one is
//! # added, then bundles are signed with it, then the old one is removed, and what only it signed is run no more.
//! keys = ["RWQ…", "acme-2027.pub"]
//! # Which models; all, if this is left out.
//! models = ["branchy-alexnet"]
//! # What is not allowed here is denied. "native": the host itself does the arithmetic, on graphs that it has read.
//! # Without it, all is done in the sandbox, whatever the bundle says: slower, and the host reads no graph.
//! allow = ["native"]
//! # With "onnxruntime", too, the host may have that compute instead of tract, if its operator has named its library
//! # (`--onnxruntime`): native code that reads the publisher's graphs in the host itself.
//! # Each may be left out.
//! limits = { bundle-mib = 200.0, components-mib = 150.0, segments = 100, macs = 1e9, memory-mib = 400.0, workers-share = 0.5 }
//! ```
//!
//! [`Policy::judge`] is the one place where it is decided; nothing of a bundle is compiled or run before.

use crate::admission::{components_bytes, macs};
use crate::deployment::manifest_memory_bytes;
use crate::{Admission, Tiers};
use edgent_bundle::{Bundle, BundleError, Digest, KeyId, PublicKey, SealedManifest, Signature, SignatureError, Tier};
use edgent_nn::GraphFormat;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use toml::Spanned;

/// The version of the file that is read.
const FORMAT: u32 = 1;

const FILE_BYTES_MAX: u64 = 1 << 20;
const PUBLISHERS_MAX: usize = 256;
const KEYS_MAX: usize = 16;

/// What the operator allows.
#[derive(Debug)]
pub struct Policy {
    source: Source,
    unsigned: Unsigned,
    publishers: Vec<Publisher>,
}

/// Where a policy comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    /// No file, and nobody reaches the host but this machine's users and peers who were given the right to push.
    Nobody,
    /// No file, and others may reach it.
    NobodyButReachable,
}

/// What becomes of bundles that no trusted key signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Unsigned {
    Refuse,
    PortableOnly,
    Allow,
}

/// Somebody whose bundles are run here.
#[derive(Debug)]
struct Publisher {
    name: String,
    keys: Vec<PublicKey>,
    models: Option<Vec<String>>,
    native: bool,
    onnxruntime: bool,
    limits: LimitsEntry,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    format: u32,
    unsigned: Unsigned,
    #[serde(default)]
    publisher: Vec<PublisherEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PublisherEntry {
    name: Spanned<String>,
    keys: Spanned<Vec<Spanned<String>>>,
    models: Option<Vec<String>>,
    #[serde(default)]
    allow: Vec<Grant>,
    #[serde(default)]
    limits: LimitsEntry,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Grant {
    Native,
    Onnxruntime,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct LimitsEntry {
    /// All blobs together.
    bundle_mib: Option<f64>,
    /// All components together.
    components_mib: Option<f64>,
    segments: Option<usize>,
    /// Multiply-accumulates on the way to the exit that takes most.
    macs: Option<f64>,
    /// What all segments take of a host's memory, about.
    memory_mib: Option<f64>,
    /// Of an edge's threads for a model.
    workers_share: Option<f64>,
}

/// Who asks for a bundle to be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Somebody on the link, who offers it.
    Peer,
    /// The operator, or the store: it was offered, and judged, before.
    Here,
}

/// A bundle may be run.
#[derive(Clone, Debug, PartialEq)]
pub struct Admitted {
    /// Who signed it; none if nobody did who is trusted here.
    pub by: Option<Signed>,
    /// Where its arithmetic must be done.
    pub tiers: Tiers,
    /// Whether onnxruntime may read its graphs.
    pub onnxruntime: bool,
    /// What its publisher's answers may take, by the graphs as well as by the manifest.
    pub macs_max: Option<u64>,
    /// How much of an edge's threads for a model it gets: over 0, up to 1.
    pub workers_share: f64,
}

/// A signature that holds, by a key that is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// Its name in the policy.
    pub publisher: String,
    /// With which of its keys.
    pub key: KeyId,
    /// By the publisher's own count.
    pub version: u64,
    /// From when this version is in force, none of the publisher's below this one may come into force here.
    pub minimum_version: u64,
}

impl Admitted {
    /// The operator's limits for all, or the publisher's own where they are lower.
    pub fn within(&self, admission: Admission) -> Admission {
        let macs_max = self.macs_max.map_or(admission.macs_max, |most| most.min(admission.macs_max));
        Admission { macs_max, ..admission }
    }
}

impl Policy {
    /// Reads the operator's file.
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        let said = |why: String| PolicyError { path: path.to_owned(), why };
        let text = read_file(path).map_err(|e| said(e.to_string()))?;
        let file: PolicyFile = toml::from_str(&text).map_err(|e| said(e.to_string()))?;
        let at = |place: usize, why: &dyn fmt::Display| {
            said(format!("line {}: {why}", text[..place.min(text.len())].matches('\n').count() + 1))
        };
        if file.format != FORMAT {
            return Err(said(format!("format {} is not {FORMAT}, the one this program reads", file.format)));
        }
        if file.publisher.len() > PUBLISHERS_MAX {
            return Err(said(format!("over {PUBLISHERS_MAX} publishers")));
        }
        let (mut names, mut lines) = (BTreeSet::new(), BTreeSet::new());
        let mut publishers = Vec::with_capacity(file.publisher.len());
        for PublisherEntry { name, keys: given, models, allow, limits } in file.publisher {
            let (here, name) = (name.span().start, name.into_inner());
            if name.is_empty() || name.chars().any(char::is_control) || !names.insert(name.clone()) {
                return Err(at(here, &format!("the publisher's name {name:?} is empty, no name, or another's")));
            }
            let whole = given.span().start;
            let given = given.into_inner();
            if given.is_empty() || given.len() > KEYS_MAX {
                return Err(at(whole, &format!("'{name}' needs 1 to {KEYS_MAX} keys")));
            }
            let mut keys = Vec::with_capacity(given.len());
            for key in given {
                let (here, key) = (key.span().start, key.into_inner());
                let read = read_key(path, &key).map_err(|why| at(here, &format!("the key '{key}': {why}")))?;
                if !lines.insert(read.line().to_owned()) {
                    return Err(at(here, &format!("the key {} is here twice", read.id())));
                }
                keys.push(read);
            }
            for (key, value, most) in [
                ("bundle-mib", limits.bundle_mib, f64::MAX),
                ("components-mib", limits.components_mib, f64::MAX),
                ("macs", limits.macs, f64::MAX),
                ("memory-mib", limits.memory_mib, f64::MAX),
                ("workers-share", limits.workers_share, 1.0),
            ] {
                if value.is_some_and(|value| !(value > 0.0 && value <= most)) {
                    let most = if most == 1.0 { " and at most 1" } else { "" };
                    return Err(at(here, &format!("{key} of '{name}' must be over 0{most}")));
                }
            }
            let [native, onnxruntime] = [Grant::Native, Grant::Onnxruntime].map(|grant| allow.contains(&grant));
            if onnxruntime && !native {
                return Err(at(
                    here,
                    &format!("'{name}' is allowed \"onnxruntime\", which is nothing without \"native\""),
                ));
            }
            publishers.push(Publisher { name, keys, models, native, onnxruntime, limits });
        }
        Ok(Self { source: Source::File(path.to_owned()), unsigned: file.unsigned, publishers })
    }

    /// That of a host without a file. What its operator names is run. What comes over the link, too, if the host is
    /// guarded: by being this machine's users' alone (whoever tries things out needs no keys), or by TLS, where the
    /// operator has said who may push. A host that anybody can reach takes nothing from them.
    pub fn without_file(is_guarded: bool) -> Self {
        let source = if is_guarded { Source::Nobody } else { Source::NobodyButReachable };
        Self { source, unsigned: Unsigned::Allow, publishers: Vec::new() }
    }

    /// What an operator should know who starts a host that takes bundles while it runs.
    pub(crate) fn warning(&self) -> Option<String> {
        match (&self.source, self.unsigned) {
            (Source::Nobody, _) => Some(
                "every user of this machine, or every peer that may `push`, can have this host run any bundle, signed \
                 or not; --policy FILE says whose are run"
                    .to_owned(),
            ),
            (Source::NobodyButReachable, _) => Some(
                "this host takes no bundles over the link: anybody can reach it (--insecure), \
                 and no --policy FILE says whose are run"
                    .to_owned(),
            ),
            (Source::File(path), Unsigned::Allow) => Some(format!(
                "{} allows bundles that nobody signed: whoever reaches this host can have it run any",
                path.display()
            )),
            _ => None,
        }
    }

    /// Whether a host with this policy, in which nothing has been in force yet, would run a bundle that is pushed to it.
    pub fn look_at(&self, bundle: &Bundle) -> Result<Admitted, Refusal> {
        self.judge(bundle.sealed(), bundle.signatures(), Origin::Peer, |_| Ok(0))
    }

    /// Whether a bundle may be run. `minimum` tells the lowest version that may come into force with a key's signature,
    /// by what has been in force here; 0 if nothing has.
    pub(crate) fn judge(
        &self,
        bundle: &SealedManifest,
        signatures: &[Signature],
        origin: Origin,
        minimum: impl Fn(KeyId) -> Result<u64, BundleError>,
    ) -> Result<Admitted, Refusal> {
        let refused =
            |why| Refusal { name: bundle.manifest().name.clone(), digest: bundle.digest(), why: Box::new(why) };
        let mut false_ones = Vec::new();
        let mut refusals = Vec::new();
        for signature in signatures {
            let with_id = |key: &&PublicKey| key.id() == signature.key();
            for publisher in &self.publishers {
                for key in publisher.keys.iter().filter(with_id) {
                    if let Err(error) = key.verify(signature, bundle) {
                        false_ones.push(Why::False { publisher: publisher.name.clone(), error });
                        continue;
                    }
                    match self.judge_signed(bundle, signature, publisher, &minimum) {
                        Ok(signed) => {
                            let tiers = if publisher.native { Tiers::AsBuilt } else { Tiers::Portable };
                            let macs_max = publisher.limits.macs.map(|macs| macs as u64);
                            let workers_share = publisher.limits.workers_share.unwrap_or(1.0);
                            let onnxruntime = publisher.onnxruntime;
                            return Ok(Admitted { by: Some(signed), tiers, onnxruntime, macs_max, workers_share });
                        }
                        Err(why) => refusals.push(why),
                    }
                }
            }
        }
        // A signature that holds, of what is not to be run, says more than one that does not hold.
        if let Some(why) = refusals.into_iter().chain(false_ones).next() {
            return Err(refused(why));
        }
        let tiers = if self.unsigned == Unsigned::Allow { Tiers::AsBuilt } else { Tiers::Portable };
        let judged = self.judge_unsigned(bundle, signatures, origin, &minimum);
        let admitted = |()| Admitted { by: None, tiers, onnxruntime: false, macs_max: None, workers_share: 1.0 };
        judged.map(admitted).map_err(refused)
    }

    fn judge_signed(
        &self,
        bundle: &SealedManifest,
        signature: &Signature,
        publisher: &Publisher,
        minimum: &impl Fn(KeyId) -> Result<u64, BundleError>,
    ) -> Result<Signed, Why> {
        let (manifest, statement, policy) = (bundle.manifest(), signature.statement(), self.source.clone());
        let (name, key) = (publisher.name.clone(), signature.key());
        if publisher.models.as_ref().is_some_and(|models| !models.contains(&manifest.name)) {
            return Err(Why::Model { publisher: name, policy });
        }
        // The publisher's, with whichever of its keys: an old key must not bring back what the new one has replaced.
        let lowest = publisher.keys.iter().map(|key| minimum(key.id())).try_fold(0, |a, b| b.map(|b| a.max(b)));
        let lowest = lowest.map_err(|e| Why::Store(e.to_string()))?;
        if statement.version < lowest {
            return Err(Why::Old { publisher: name, key, version: statement.version, lowest });
        }
        if let Some(segment) = not_portable(bundle).filter(|_| !publisher.native) {
            return Err(Why::Native { publisher: name, segment, policy });
        }
        if let Some((what, limit)) = publisher.limits.broken(bundle, publisher.native) {
            return Err(Why::Limit { publisher: name, what, limit, policy });
        }
        Ok(Signed { publisher: name, key, version: statement.version, minimum_version: statement.minimum_version })
    }

    fn judge_unsigned(
        &self,
        bundle: &SealedManifest,
        signatures: &[Signature],
        origin: Origin,
        minimum: &impl Fn(KeyId) -> Result<u64, BundleError>,
    ) -> Result<(), Why> {
        let policy = self.source.clone();
        if self.unsigned == Unsigned::Refuse {
            let keys: Vec<String> = signatures.iter().map(|signature| signature.key().to_string()).collect();
            let keys = keys.join(", ");
            return Err(if keys.is_empty() { Why::Unsigned { policy } } else { Why::Untrusted { keys, policy } });
        }
        // Nobody may take a publisher's place by leaving the signature out.
        for publisher in &self.publishers {
            for key in &publisher.keys {
                if minimum(key.id()).map_err(|e| Why::Store(e.to_string()))? > 0 {
                    return Err(Why::Stripped { publisher: publisher.name.clone() });
                }
            }
        }
        if self.source == Source::NobodyButReachable && origin == Origin::Peer {
            return Err(Why::Reachable);
        }
        if let Some(segment) = not_portable(bundle).filter(|_| self.unsigned == Unsigned::PortableOnly) {
            return Err(Why::NotPortable { segment, policy });
        }
        Ok(())
    }
}

impl LimitsEntry {
    /// What a bundle has too much of, and how much may be.
    fn broken(&self, bundle: &SealedManifest, native: bool) -> Option<(String, String)> {
        let manifest = bundle.manifest();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let blobs_bytes = bundle.blobs().iter().fold(0_u64, |all, blob| all.saturating_add(blob.bytes));
        let tiers = if native { Tiers::AsBuilt } else { Tiers::Portable };
        let sizes = [
            (self.bundle_mib, blobs_bytes, ""),
            (self.components_mib, components_bytes(manifest), " of components"),
            (self.memory_mib, manifest_memory_bytes(manifest, tiers), " of memory to take"),
        ];
        for (limit, bytes, of) in sizes {
            if let Some(limit) = limit.filter(|limit| mib(bytes) > *limit) {
                return Some((format!("{:.1} MiB{of}", mib(bytes)), format!("{limit} MiB")));
            }
        }
        if let Some(limit) = self.segments.filter(|limit| manifest.segments.len() > *limit) {
            return Some((format!("{} segments", manifest.segments.len()), limit.to_string()));
        }
        let macs = macs(manifest, &[]);
        let limit = self.macs.filter(|limit| macs as f64 > *limit)?;
        Some((format!("{macs} multiply-accumulates an answer"), limit.to_string()))
    }
}

/// The first segment that cannot run in the portable tier, by the manifest: its guest reads NNEF alone. What else may
/// stand in the way, only preparing tells.
fn not_portable(bundle: &SealedManifest) -> Option<String> {
    let mut segments = bundle.manifest().segments.iter();
    let found =
        segments.find(|segment| segment.tier == Tier::Native && segment.graph_format != GraphFormat::Nnef.name());
    found.map(|segment| segment.name.clone())
}

fn read_key(policy: &Path, given: &str) -> Result<PublicKey, String> {
    PublicKey::read(given).or_else(|error| {
        let path = policy.parent().unwrap_or(Path::new("")).join(given);
        let text = read_file(&path).map_err(|e| format!("{error}; and {}: {e}", path.display()))?;
        PublicKey::read(&text).map_err(|e| format!("{}: {e}", path.display()))
    })
}

fn read_file(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is over {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "the policy {}", path.display()),
            Self::Nobody | Self::NobodyButReachable => f.write_str("a host without --policy"),
        }
    }
}

/// Why the operator's file is not used.
#[derive(Debug, thiserror::Error)]
#[error("the policy {}: {why}", path.display())]
pub struct PolicyError {
    path: PathBuf,
    why: String,
}

/// Why a bundle is not run here.
#[derive(Debug, thiserror::Error)]
#[error("'{name}' {} is not run here: {why}", digest.short())]
pub struct Refusal {
    name: String,
    digest: Digest,
    why: Box<Why>,
}

#[derive(Debug, thiserror::Error)]
enum Why {
    #[error(
        "nobody signed it, and {policy} takes only what is; sign it (`edgent sign`) with a key that is trusted there"
    )]
    Unsigned { policy: Source },
    #[error("it is signed with {keys}, and {policy} trusts no such key; add the key there if you trust its owner")]
    Untrusted { keys: String, policy: Source },
    #[error(
        "nobody who is trusted signed it, {policy} runs such bundles in the portable tier alone, and segment \
         '{segment}' cannot run there: its graph is not NNEF"
    )]
    NotPortable { segment: String, policy: Source },
    #[error(
        "this host can be reached from other machines and has no --policy FILE that says whose bundles it takes; write one (docs/signatures.md)"
    )]
    Reachable,
    #[error("it pretends to be signed by '{publisher}', but {error}; get it from them again")]
    False { publisher: String, error: SignatureError },
    #[error(
        "'{publisher}' signed an earlier version that was in force here, and nobody who is trusted signed this one; sign it, or give it another name"
    )]
    Stripped { publisher: String },
    #[error(
        "it is version {version}, signed by '{publisher}' with {key}, who has since said that nothing below {lowest} is to be run; take a newer one"
    )]
    Old { publisher: String, key: KeyId, version: u64, lowest: u64 },
    #[error(
        "'{publisher}' signed it, and {policy} does not let them publish a model of this name; add it to their `models`"
    )]
    Model { publisher: String, policy: Source },
    #[error(
        "'{publisher}' signed it, segment '{segment}' can only run as native, since its graph is not NNEF, and {policy} \
         does not allow them that; add \"native\" to their `allow`"
    )]
    Native { publisher: String, segment: String, policy: Source },
    #[error("'{publisher}' signed it, it has {what}, and {policy} allows them {limit}; raise it in their `limits`")]
    Limit { publisher: String, what: String, limit: String, policy: Source },
    #[error("what was in force here cannot be told: {0}")]
    Store(String),
}
