//! One bundle: read, and first written.

use crate::disk::RealDisk;
use crate::layout::Layout;
use crate::oci::Document;
use crate::refs::Refs;
use crate::{Blob, BundleError, Digest, Manifest, ManifestError, Reference, SealedManifest, Signature, Store};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The largest manifest that is read.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// The largest blob that is read.
pub const BLOB_BYTES_MAX: u64 = 1 << 30;

/// A bundle on disk whose manifest has been read and checked.
#[derive(Clone, Debug)]
pub struct Bundle {
    layout: Layout,
    path: PathBuf,
    sealed: SealedManifest,
    signatures: Vec<Signature>,
}

impl Bundle {
    /// Reads and checks the manifest. Blobs are read, and checked, when asked for.
    ///
    /// `path` is a folder that is an OCI image layout, of which the only bundle is taken, or the current version
    /// of the only name; or that folder, `@` and a [`Reference`], as in `DIR@model:2` or `DIR@sha256:…`.
    pub fn open(path: &Path) -> Result<Self, BundleError> {
        let opened = Self::open_only(Layout::new(path, Arc::new(RealDisk)));
        match (&opened, split(path)) {
            (Err(BundleError::Io { source, .. }), Some((dir, reference))) if source.kind() == ErrorKind::NotFound => {
                Store::at(dir).open(&reference.parse()?)
            }
            _ => opened,
        }
    }

    pub(crate) fn open_only(layout: Layout) -> Result<Self, BundleError> {
        let refs = Refs::new(layout.index()?);
        let bundles: BTreeMap<Digest, _> = refs.bundles().map(|entry| (entry.digest, entry)).collect();
        let names = refs.names();
        let entry = match bundles.len() {
            1 => bundles.values().next().copied(),
            _ if names.len() == 1 => names.first().and_then(|name| refs.current(name)),
            _ => None,
        };
        let entry =
            entry.ok_or_else(|| BundleError::Ambiguous { dir: layout.dir().to_owned(), known: refs.known() })?.clone();
        let (sealed, signatures) = (layout.manifest(&entry)?, layout.signatures(&entry)?);
        Ok(Self { path: layout.dir().to_owned(), layout, sealed, signatures })
    }

    pub(crate) fn new(
        layout: Layout,
        reference: &Reference,
        sealed: SealedManifest,
        signatures: Vec<Signature>,
    ) -> Self {
        let mut path = layout.dir().as_os_str().to_owned();
        path.push(format!("@{}", reference.to_string().trim_start_matches('@')));
        Self { path: path.into(), layout, sealed, signatures }
    }

    /// The checked manifest.
    pub fn manifest(&self) -> &Manifest {
        self.sealed.manifest()
    }

    /// The manifest with the bytes that hosts agree on.
    pub fn sealed(&self) -> &SealedManifest {
        &self.sealed
    }

    /// The SHA-256 of the manifest: the bundle's name.
    pub fn digest(&self) -> Digest {
        self.sealed.digest()
    }

    /// Who signed it, by their own account: a [`PublicKey`](crate::PublicKey) tells whether a signature holds.
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// The folder that it lies in.
    pub fn dir(&self) -> &Path {
        self.layout.dir()
    }

    /// What it was opened by, and can be opened by again.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a blob and makes sure that it is the one that is meant.
    pub fn blob(&self, blob: &Blob) -> Result<Vec<u8>, BundleError> {
        self.layout.blob(blob)
    }

    /// What OCI wants around its blobs, each before what names it: the index is the last.
    pub fn documents(&self) -> Result<Vec<Document>, BundleError> {
        Ok(self.layout.documents(&self.sealed, &self.signatures)?.0.all)
    }

    /// Reads every blob, to find those that are gone or damaged before they are needed.
    pub fn check_blobs(&self) -> Result<(), BundleError> {
        self.sealed.blobs().iter().try_for_each(|blob| self.blob(blob).map(drop))
    }
}

/// `DIR@REFERENCE`.
fn split(path: &Path) -> Option<(&Path, &str)> {
    let (dir, reference) = path.to_str()?.rsplit_once('@')?;
    (!dir.is_empty()).then_some((Path::new(dir), reference))
}

/// A bundle in the making.
#[derive(Default, Debug)]
pub struct Draft {
    blobs: BTreeMap<Digest, Vec<u8>>,
}

impl Draft {
    /// Adds a blob; the same bytes twice are one blob.
    pub fn add(&mut self, bytes: Vec<u8>) -> Blob {
        let blob = Blob { digest: Digest::of(&bytes), bytes: bytes.len() as u64 };
        self.blobs.insert(blob.digest, bytes);
        blob
    }

    /// Writes a layout with this bundle alone, under its name and without a version: a [`Store`] gives it one.
    /// An earlier bundle at `dir` is replaced, in one step; anything else there is left alone and is an error.
    pub fn write(self, dir: &Path, manifest: &Manifest) -> Result<Bundle, BundleError> {
        let sealed = SealedManifest::seal(manifest)
            .map_err(|ManifestError(why)| BundleError::Manifest { path: dir.to_owned(), why })?;
        self.write_sealed(dir, &sealed)
    }

    /// The same of a manifest that somebody else wrote.
    pub fn write_sealed(self, dir: &Path, sealed: &SealedManifest) -> Result<Bundle, BundleError> {
        self.write_to(&Store::at(dir), sealed)?;
        Bundle::open(dir)
    }

    pub(crate) fn write_to(self, store: &Store, sealed: &SealedManifest) -> Result<(), BundleError> {
        let store = store.lock()?;
        for blob in store.missing(sealed) {
            if let Some(bytes) = self.blobs.get(&blob.digest) {
                store.put_blob(&blob, bytes)?;
            }
        }
        store.replace(&sealed.manifest().name, sealed)
    }
}
