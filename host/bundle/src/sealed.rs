//! A manifest together with the very bytes that its digest covers.

use crate::{BLOB_BYTES_MAX, Blob, Digest, MANIFEST_BYTES_MAX, Manifest, ManifestError};
use std::collections::BTreeMap;

/// A checked manifest, its bytes, and their SHA-256: the bundle's name between hosts.
///
/// The bytes travel and are stored as they are. Written anew by another version of this program, the same
/// manifest might have another digest.
#[derive(Clone, Debug, PartialEq)]
pub struct SealedManifest {
    manifest: Manifest,
    bytes: Vec<u8>,
    digest: Digest,
}

impl SealedManifest {
    /// Reads and checks what somebody else wrote.
    pub fn read(bytes: Vec<u8>) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(ManifestError(format!("{} bytes are over {MANIFEST_BYTES_MAX}", bytes.len())));
        }
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| ManifestError(e.to_string()))?;
        manifest.check()?;
        let mut sizes = BTreeMap::new();
        for blob in named(&manifest) {
            if blob.bytes > BLOB_BYTES_MAX {
                return Err(ManifestError(format!("{} of {} bytes is over {BLOB_BYTES_MAX}", blob.digest, blob.bytes)));
            }
            if sizes.insert(blob.digest, blob.bytes).is_some_and(|bytes| bytes != blob.bytes) {
                return Err(ManifestError(format!("{} has two sizes", blob.digest)));
            }
        }
        Ok(Self { manifest, digest: Digest::of(&bytes), bytes })
    }

    /// Writes a manifest, and checks it as if somebody else had.
    pub fn seal(manifest: &Manifest) -> Result<Self, ManifestError> {
        Self::read(serde_json::to_vec(manifest).map_err(|e| ManifestError(e.to_string()))?)
    }

    /// What it says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What it is made of.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The SHA-256 of [`bytes`](Self::bytes).
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Every blob that belongs to the bundle, each once: components in the order of their segments, then evidence.
    pub fn blobs(&self) -> Vec<Blob> {
        distinct(named(&self.manifest))
    }

    /// The components, each once, in the order of their segments.
    pub(crate) fn components(&self) -> Vec<Blob> {
        distinct(self.manifest.segments.iter().map(|segment| &segment.component))
    }
}

fn named(manifest: &Manifest) -> impl Iterator<Item = &Blob> {
    let evidence = &manifest.evidence;
    let evidence = [&evidence.source, &evidence.golden, &evidence.samples, &evidence.labels];
    manifest.segments.iter().map(|segment| &segment.component).chain(evidence.into_iter().flatten())
}

fn distinct<'a>(blobs: impl Iterator<Item = &'a Blob>) -> Vec<Blob> {
    let mut seen = BTreeMap::new();
    blobs.filter(|blob| seen.insert(blob.digest, ()).is_none()).cloned().collect()
}
