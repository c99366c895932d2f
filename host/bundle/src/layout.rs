//! A folder that is an OCI image layout, and the steps by which it changes.
//!
//! ```text
//! DIR/oci-layout            that this is one
//! DIR/index.json            what there is, by name: the one file that ever changes
//! DIR/blobs/sha256/<hex>    everything else, by digest
//! DIR/lock                  held by who writes
//! ```
//!
//! A file is written under another name, synced, renamed, and its folder synced. Blobs are there for good before
//! an index names them, and no longer named for good before they are removed. So whenever the power goes, the
//! index that is found then names only what is there.

use crate::bundle::MANIFEST_BYTES_MAX;
use crate::component::interfaces;
use crate::disk::{Disk, Lock};
use crate::error::cannot;
use crate::oci::{self, Artifact, DOCUMENT_BYTES_MAX, Descriptor, Documents, Index};
use crate::{
    BLOB_BYTES_MAX, Blob, BundleError, Digest, ManifestError, SIGNATURE_BYTES_MAX, SIGNATURES_MAX, STATEMENT_BYTES_MAX,
    SealedManifest, Signature,
};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MARK: &str = "oci-layout";
const MARK_TEXT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX: &str = "index.json";
const LOCK: &str = "lock";
const BLOBS: &str = "blobs";
const SHA256: &str = "sha256";

/// What a file is called until it is complete.
const NEW: &str = "new";

/// Indexes in indexes; ours are two deep.
const DEPTH_MAX: usize = 8;

/// A folder that is, or is to be, an OCI image layout.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
}

/// Reading: nothing is believed before it is checked.
impl Layout {
    pub fn new(dir: &Path, disk: Arc<dyn Disk>) -> Self {
        Self { dir: dir.to_owned(), disk }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn path_of(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    /// The index, of a folder that must be a layout.
    pub fn index(&self) -> Result<Index, BundleError> {
        let mark = self.dir.join(MARK);
        let text = self.read(&mark, DOCUMENT_BYTES_MAX)?;
        let version = serde_json::from_slice::<serde_json::Value>(&text).map_err(|e| wrong(&mark)(e.to_string()))?;
        if version["imageLayoutVersion"] != "1.0.0" {
            return Err(wrong(&mark)("this is not version 1.0.0 of the OCI image layout".to_owned()));
        }
        let path = self.dir.join(INDEX);
        Index::read(&self.read(&path, DOCUMENT_BYTES_MAX)?).map_err(wrong(&path))
    }

    /// The index, or an empty one where there is none yet.
    pub fn index_or_empty(&self) -> Result<Index, BundleError> {
        match self.index() {
            Err(BundleError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(Index::default()),
            result => result,
        }
    }

    /// A blob that is the one that is meant.
    pub fn blob(&self, blob: &Blob) -> Result<Vec<u8>, BundleError> {
        let path = self.path_of(&blob.digest);
        let bytes = self.read(&path, BLOB_BYTES_MAX.min(blob.bytes))?;
        let found = Digest::of(&bytes);
        if found != blob.digest || bytes.len() as u64 != blob.bytes {
            return Err(BundleError::Rotten { path, expected: blob.digest, found });
        }
        Ok(bytes)
    }

    /// The bundle's own manifest, by its index.
    pub fn manifest(&self, bundle: &Descriptor) -> Result<SealedManifest, BundleError> {
        let malformed = |descriptor: &Descriptor| wrong(&self.path_of(&descriptor.digest));
        let index = Index::read(&self.document(bundle)?).map_err(malformed(bundle))?;
        let ours = index.bundle().map_err(malformed(bundle))?;
        let artifact = Artifact::read_bundle(&self.document(ours)?).map_err(malformed(ours))?;
        let bytes = self.limited(&artifact.config, MANIFEST_BYTES_MAX)?;
        SealedManifest::read(bytes).map_err(|ManifestError(why)| malformed(&artifact.config)(why))
    }

    /// The signatures of a bundle, by its index. Their form is checked here, and whether they hold by who trusts a key.
    pub fn signatures(&self, bundle: &Descriptor) -> Result<Vec<Signature>, BundleError> {
        let malformed = |descriptor: &Descriptor| wrong(&self.path_of(&descriptor.digest));
        let index = Index::read(&self.document(bundle)?).map_err(malformed(bundle))?;
        if index.signatures().nth(SIGNATURES_MAX).is_some() {
            return Err(malformed(bundle)(format!("it has over {SIGNATURES_MAX} signatures")));
        }
        let read = |entry: &Descriptor| {
            let artifact = Artifact::read(&self.document(entry)?).map_err(malformed(entry))?;
            let [statement, signature] = artifact.signature().map_err(malformed(entry))?;
            let text = self.limited(statement, STATEMENT_BYTES_MAX as u64)?;
            let minisig = self.limited(signature, SIGNATURE_BYTES_MAX as u64)?;
            Signature::read(&text, &minisig).map_err(|e| malformed(entry)(e.to_string()))
        };
        index.signatures().map(read).collect()
    }

    /// What makes a bundle's blobs a bundle, once every one of them is found here and sound; and its index.
    pub fn documents(
        &self,
        sealed: &SealedManifest,
        signatures: &[Signature],
    ) -> Result<(Documents, Descriptor), BundleError> {
        let components = sealed.components();
        let mut found = Vec::with_capacity(components.len());
        for blob in sealed.blobs() {
            let bytes = self.blob(&blob)?;
            if components.contains(&blob) {
                let component = |source| BundleError::Component { path: self.path_of(&blob.digest), source };
                found.push(interfaces(&bytes).map_err(component)?);
            }
        }
        Ok(Documents::of(sealed, &found, signatures))
    }

    /// Every blob that can be reached from `index`, and not only those of bundles: what others put here stays.
    pub fn reachable(&self, index: &Index) -> Result<BTreeSet<Digest>, BundleError> {
        let mut walked = BTreeSet::new();
        index.manifests.iter().try_for_each(|descriptor| self.reach(descriptor, 0, &mut walked))?;
        Ok(walked.into_iter().map(|(digest, _)| digest).collect())
    }

    fn reach(
        &self,
        descriptor: &Descriptor,
        depth: usize,
        walked: &mut BTreeSet<(Digest, &str)>,
    ) -> Result<(), BundleError> {
        let malformed = || wrong(&self.path_of(&descriptor.digest));
        if depth > DEPTH_MAX {
            return Err(malformed()(format!("it is more than {DEPTH_MAX} indexes deep")));
        }
        let kind = [oci::INDEX, oci::MANIFEST].into_iter().find(|kind| *kind == descriptor.media_type).unwrap_or("");
        // The same bytes may be named once as a document and once as anything: as a document, they are walked.
        if !walked.insert((descriptor.digest, kind)) {
            return Ok(());
        }
        let further = match kind {
            oci::INDEX => Index::read(&self.document(descriptor)?).map_err(malformed())?.manifests,
            oci::MANIFEST => {
                let artifact = Artifact::read(&self.document(descriptor)?).map_err(malformed())?;
                artifact.layers.into_iter().chain([artifact.config]).collect()
            }
            _ => Vec::new(),
        };
        further.iter().try_for_each(|descriptor| self.reach(descriptor, depth + 1, walked))
    }

    fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, BundleError> {
        self.limited(descriptor, DOCUMENT_BYTES_MAX)
    }

    fn limited(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, BundleError> {
        if descriptor.size > limit {
            return Err(BundleError::TooLarge { path: self.path_of(&descriptor.digest), limit });
        }
        self.blob(&Blob { digest: descriptor.digest, bytes: descriptor.size })
    }

    fn read(&self, path: &Path, limit: u64) -> Result<Vec<u8>, BundleError> {
        let bytes = self.disk.read(path, limit).map_err(cannot("read", path))?;
        if bytes.len() as u64 > limit {
            return Err(BundleError::TooLarge { path: path.to_owned(), limit });
        }
        Ok(bytes)
    }

    fn blobs(&self) -> PathBuf {
        self.dir.join(BLOBS).join(SHA256)
    }
}

/// Writing, by who holds the lock.
impl Layout {
    /// Makes the folder a layout, unless it is one, and takes the lock.
    pub fn lock(&self) -> Result<Box<dyn Lock>, BundleError> {
        self.create_dir(&self.dir)?;
        let lock = self.dir.join(LOCK);
        if !self.disk.list(&self.dir).map_err(cannot("list", &self.dir))?.iter().all(|name| is_ours(name)) {
            // Not only ours: then somebody's layout, or no business of ours.
            self.index().map_err(|e| match e {
                BundleError::Io { source, .. } if source.kind() == ErrorKind::NotFound => {
                    BundleError::Occupied(self.dir.clone())
                }
                other => other,
            })?;
        }
        let held = self.disk.lock(&lock).map_err(|e| match e.kind() {
            ErrorKind::WouldBlock => BundleError::Locked(self.dir.clone()),
            _ => cannot("lock", &lock)(e),
        })?;
        self.create_dir(&self.dir.join(BLOBS))?;
        self.create_dir(&self.blobs())?;
        let mark = self.dir.join(MARK);
        if self.read(&mark, DOCUMENT_BYTES_MAX).is_err() {
            self.write(&mark, MARK_TEXT)?;
        }
        Ok(held)
    }

    /// Writes a blob; [`settle`](Self::settle) makes that it stays.
    pub fn put(&self, blob: &Blob, bytes: &[u8]) -> Result<(), BundleError> {
        let found = Digest::of(bytes);
        if found != blob.digest || bytes.len() as u64 != blob.bytes || blob.bytes > BLOB_BYTES_MAX {
            return Err(BundleError::OtherBlob { expected: blob.clone(), found, bytes: bytes.len() as u64 });
        }
        self.write(&self.path_of(&blob.digest), bytes)
    }

    /// Makes `index` the one that holds, after all blobs that were put: the one moment at which anything changes.
    pub fn commit(&self, index: &Index) -> Result<(), BundleError> {
        self.sync_dir(&self.blobs())?;
        self.write(&self.dir.join(INDEX), &oci::write(index))?;
        self.settle()
    }

    /// Makes that the index that is seen now is the one that is seen after a power cut. That it is seen does not
    /// say so: who wrote it may have been killed before it got so far.
    pub fn settle(&self) -> Result<(), BundleError> {
        self.sync_dir(&self.dir)
    }

    /// Removes every blob but those; returns how many that were.
    pub fn sweep(&self, kept: &BTreeSet<Digest>) -> Result<usize, BundleError> {
        self.settle()?;
        let kept: BTreeSet<OsString> = kept.iter().map(|digest| digest.hex().into()).collect();
        let dir = self.blobs();
        let mut removed = 0;
        for name in self.disk.list(&dir).map_err(cannot("list", &dir))? {
            if !kept.contains(&name) {
                let path = dir.join(name);
                self.disk.remove(&path).map_err(cannot("remove", &path))?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), BundleError> {
        let new = path.with_extension(NEW);
        let written = self
            .write_new(&new, bytes)
            .and_then(|()| self.disk.rename(&new, path).map_err(cannot("rename the new file to", path)));
        if written.is_err() {
            // Where there is no space, half a file must not keep it. What the disk says to that adds nothing.
            let _ = self.disk.remove(&new);
        }
        written
    }

    fn write_new(&self, path: &Path, bytes: &[u8]) -> Result<(), BundleError> {
        let mut file = self.disk.create(path).map_err(cannot("create", path))?;
        file.write(bytes).map_err(cannot("write", path))?;
        file.sync().map_err(cannot("sync", path))
    }

    /// Makes a folder and those above it, for good.
    fn create_dir(&self, dir: &Path) -> Result<(), BundleError> {
        let parent = match dir.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let made = match self.disk.create_dir(dir) {
            Err(e) if e.kind() == ErrorKind::NotFound && dir.parent().is_some() => {
                self.create_dir(parent)?;
                self.disk.create_dir(dir)
            }
            result => result,
        };
        made.map_err(cannot("make the folder", dir))?;
        self.sync_dir(parent)
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), BundleError> {
        self.disk.sync_dir(dir).map_err(cannot("sync the folder", dir))
    }
}

fn is_ours(name: &OsStr) -> bool {
    let of = |file: &str| Path::new(file).with_extension(NEW).into_os_string();
    [INDEX, MARK, LOCK, BLOBS].iter().any(|ours| name == *ours) || [INDEX, MARK].iter().any(|file| name == of(file))
}

fn wrong(path: &Path) -> impl FnOnce(String) -> BundleError + use<> {
    let path = path.to_owned();
    move |why| BundleError::Manifest { path, why }
}
