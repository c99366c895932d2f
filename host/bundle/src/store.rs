//! Many bundles in one folder, by name and version.

use crate::disk::{Disk, Lock, RealDisk};
use crate::layout::Layout;
use crate::oci::{Descriptor, Document};
use crate::reference::check_name;
use crate::refs::{Refs, is_ours};
use crate::{Blob, Bundle, BundleError, Digest, KeyId, Reference, SIGNATURES_MAX, SealedManifest, Signature};
use std::io::ErrorKind;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

/// A folder of bundles. It is an OCI image layout, which `skopeo` and `oras` copy.
///
/// Anyone may read at any time. To write, [`lock`](Self::lock) it. A new version arrives in three steps, and only
/// the last one changes what is in force:
///
/// ```no_run
/// # use edgent_bundle::*;
/// # fn from_peer(_: &Blob) -> Vec<u8> { vec![] }
/// # fn install(manifest: SealedManifest) -> Result<(), BundleError> {
/// let store = Store::at("/var/lib/edgent".as_ref()).lock()?;
/// for blob in store.missing(&manifest) {
///     store.put_blob(&blob, &from_peer(&blob))?;
/// }
/// let version = store.publish("model", None, &manifest, &[])?;
/// store.set_current("model", version)?;
/// # Ok(())
/// # }
/// ```
///
/// A crash or a power cut between any two file operations leaves the version that was current before, or the new
/// one, complete; and an error too.
#[derive(Clone, Debug)]
pub struct Store {
    layout: Layout,
}

/// A version in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The model's name.
    pub name: String,
    /// Its version: 1, 2, and so on.
    pub version: u64,
    /// The bundle's digest; none if its documents are damaged.
    pub digest: Option<Digest>,
    /// Whether it is the one in force.
    pub is_current: bool,
    /// Whether it is the one that a rollback goes to.
    pub is_previous: bool,
}

/// What was garbage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Names and versions that are gone.
    pub versions: Vec<(String, u64)>,
    /// How many files were removed.
    pub blobs: usize,
}

impl Store {
    /// The store in a folder, which need not exist before something is installed.
    pub fn at(dir: &Path) -> Self {
        Self::on(dir, Arc::new(RealDisk))
    }

    pub(crate) fn on(dir: &Path, disk: Arc<dyn Disk>) -> Self {
        Self { layout: Layout::new(dir, disk) }
    }

    /// Every version of every name.
    pub fn list(&self) -> Result<Vec<Installed>, BundleError> {
        let refs = self.refs()?;
        let installed = |(name, version, entry): (String, u64, &Descriptor)| {
            Ok(Installed {
                digest: self.digest_of(entry)?,
                is_current: refs.current_version(&name) == Some(version),
                is_previous: refs.previous(&name) == Some(version),
                name,
                version,
            })
        };
        let mut list = refs.versions().map(installed).collect::<Result<Vec<_>, BundleError>>()?;
        list.sort_by(|a, b| (&a.name, a.version).cmp(&(&b.name, b.version)));
        Ok(list)
    }

    /// The version that is in force; none before one was made so.
    pub fn current(&self, name: &str) -> Result<Option<u64>, BundleError> {
        Ok(self.refs()?.current_version(name))
    }

    /// Opens a bundle. Its blobs are checked when they are read, or by [`Bundle::check_blobs`].
    pub fn open(&self, reference: &Reference) -> Result<Bundle, BundleError> {
        let refs = Refs::new(self.layout.index()?);
        let entry = match reference {
            Reference::Current(name) => refs.current(name),
            Reference::Version(name, version) => refs.version(name, *version),
            Reference::Digest(digest) => self.find(digest, refs.bundles())?,
        };
        let entry = entry.ok_or_else(|| self.unknown(reference.clone(), &refs))?;
        let (sealed, signatures) = (self.layout.manifest(entry)?, self.layout.signatures(entry)?);
        Ok(Bundle::new(self.layout.clone(), reference, sealed, signatures))
    }

    /// The signatures that are kept of a bundle; none if it is not here.
    pub fn signatures(&self, bundle: &Digest) -> Result<Vec<Signature>, BundleError> {
        let refs = self.refs()?;
        let entry = self.find(bundle, refs.bundles())?;
        entry.map_or(Ok(Vec::new()), |entry| self.layout.signatures(entry))
    }

    /// The lowest version of a model that may come into force, by what has been in force with a key's signature; 0
    /// if none has.
    pub fn minimum_version(&self, name: &str, key: KeyId) -> Result<u64, BundleError> {
        self.refs()?.minimum_version(name, key).map_err(|why| self.malformed_index(why))
    }

    /// The blobs of a bundle that are not here, or are damaged. Reads all that are.
    pub fn missing(&self, sealed: &SealedManifest) -> Vec<Blob> {
        sealed.blobs().into_iter().filter(|blob| self.layout.blob(blob).is_err()).collect()
    }

    /// Takes the right to write, and makes the folder if need be.
    ///
    /// # Errors
    /// [`BundleError::Locked`] at once if somebody else has that right; [`BundleError::Occupied`] if the folder is
    /// something else.
    pub fn lock(&self) -> Result<Writer, BundleError> {
        let lock = self.layout.lock()?;
        Ok(Writer { store: self.clone(), _lock: lock })
    }

    fn refs(&self) -> Result<Refs, BundleError> {
        Ok(Refs::new(self.layout.index_or_empty()?))
    }

    /// The digest of the bundle that an entry refers to; none if that cannot be told for damage.
    fn digest_of(&self, entry: &Descriptor) -> Result<Option<Digest>, BundleError> {
        match self.layout.manifest(entry) {
            Ok(sealed) => Ok(Some(sealed.digest())),
            // A disk that fails now may not fail the next time: to take that for damage would be to forget a version.
            Err(BundleError::Io { source, doing, path }) if source.kind() != ErrorKind::NotFound => {
                Err(BundleError::Io { source, doing, path })
            }
            Err(_) => Ok(None),
        }
    }

    fn find<'a>(
        &self,
        digest: &Digest,
        entries: impl Iterator<Item = &'a Descriptor>,
    ) -> Result<Option<&'a Descriptor>, BundleError> {
        for entry in entries {
            if self.digest_of(entry)? == Some(*digest) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    fn malformed_index(&self, why: String) -> BundleError {
        BundleError::Manifest { path: self.layout.dir().join("index.json"), why }
    }

    fn unknown(&self, reference: Reference, refs: &Refs) -> BundleError {
        BundleError::Unknown { dir: self.layout.dir().to_owned(), reference, known: refs.known() }
    }
}

/// The right to write to a store. Nobody else has it while this lives.
#[derive(Debug)]
pub struct Writer {
    store: Store,
    _lock: Box<dyn Lock>,
}

impl Deref for Writer {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

impl Writer {
    /// Copies a bundle from elsewhere, as far as it is not here, and publishes it. Returns its version.
    pub fn install(&self, name: &str, version: Option<u64>, bundle: &Bundle) -> Result<u64, BundleError> {
        for blob in self.missing(bundle.sealed()) {
            self.put_blob(&blob, &bundle.blob(&blob)?)?;
        }
        self.publish(name, version, bundle.sealed(), bundle.signatures())
    }

    /// Adds a blob. Until a bundle with it is published, it is garbage.
    ///
    /// # Errors
    /// [`BundleError::OtherBlob`] if the bytes are not that blob.
    pub fn put_blob(&self, expected: &Blob, bytes: &[u8]) -> Result<(), BundleError> {
        self.layout.put(expected, bytes)
    }

    /// Makes blobs that were put a version of `name`, and returns its number: the one given, or the next one. The
    /// version that is current stays so. A bundle that is a version already stays that version, and has its signatures
    /// and those given, the latter first, as far as there is room.
    ///
    /// # Errors
    /// [`BundleError::Io`] or [`BundleError::Rotten`] for a blob that is not here; [`BundleError::Version`] if the
    /// version given is not above all others.
    pub fn publish(
        &self,
        name: &str,
        version: Option<u64>,
        sealed: &SealedManifest,
        signatures: &[Signature],
    ) -> Result<u64, BundleError> {
        check_name(name)?;
        let mut refs = self.refs()?;
        let found = self.version_of(name, sealed, &refs)?;
        let newest = refs.newest(name);
        let refused = |version, why| {
            let (dir, name) = (self.layout.dir().to_owned(), name.to_owned());
            Err(BundleError::Version { dir, name, version, why })
        };
        let version = match (version, found) {
            (Some(given), Some(found)) if given != found => {
                return refused(given, format!("the bundle is version {found} already"));
            }
            (Some(given), None) if given <= newest => {
                return refused(given, format!("versions increase, and {newest} is the newest"));
            }
            (None, None) if newest == u64::MAX => return refused(newest, "there is none above it".to_owned()),
            (given, found) => found.or(given).unwrap_or(newest + 1),
        };
        let kept = match found.and_then(|found| refs.version(name, found)) {
            Some(entry) => self.layout.signatures(entry)?,
            None => Vec::new(),
        };
        let bundle = self.put_documents(sealed, &merged(signatures, &kept))?;
        match found.and_then(|found| refs.version(name, found)).map(|entry| entry.digest) {
            None => refs.add(name, version, bundle),
            Some(old) => refs.replace(&old, &bundle),
        }
        self.layout.commit(refs.index())?;
        Ok(version)
    }

    /// Adds a signature to a bundle that is here, in place of others that the same key made of it.
    ///
    /// # Errors
    /// [`BundleError::Unknown`]; [`BundleError::Signatures`] if it has as many as it may have.
    pub fn sign(&self, bundle: &Digest, signature: &Signature) -> Result<(), BundleError> {
        let mut refs = Refs::as_written(self.layout.index()?);
        let entry = self.find(bundle, refs.bundles())?.cloned();
        let entry = entry.ok_or_else(|| self.unknown(Reference::Digest(*bundle), &refs))?;
        let mut signatures = self.layout.signatures(&entry)?;
        signatures.retain(|other| other.key() != signature.key());
        if signatures.len() == SIGNATURES_MAX {
            return Err(BundleError::Signatures(self.layout.dir().to_owned()));
        }
        signatures.push(signature.clone());
        let signed = self.put_documents(&self.layout.manifest(&entry)?, &signatures)?;
        refs.replace(&entry.digest, &signed);
        self.layout.commit(refs.index())?;
        // A bundle alone has nothing on its way to it; elsewhere, what is superseded goes when somebody collects.
        if refs.is_one_bundle() && refs.versions().next().is_none() {
            self.layout.sweep(&self.layout.reachable(refs.index())?)?;
        }
        Ok(())
    }

    /// Puts a version in force, in one step. The one that was so stays, to roll back to.
    ///
    /// # Errors
    /// [`BundleError::Unknown`]; or, with nothing changed, what is wrong with one of its blobs.
    pub fn set_current(&self, name: &str, version: u64) -> Result<(), BundleError> {
        self.set_current_signed(name, version, None)
    }

    /// The same of a version that a key signed, with the lowest version that may come into force from then on. Both
    /// hold, or neither does.
    pub fn set_current_signed(
        &self,
        name: &str,
        version: u64,
        signed: Option<(KeyId, u64)>,
    ) -> Result<(), BundleError> {
        let reference = Reference::Version(name.to_owned(), version);
        let mut refs = self.refs()?;
        if refs.version(name, version).is_none() {
            return Err(self.unknown(reference, &refs));
        }
        self.open(&reference)?.check_blobs()?;
        if refs.current_version(name) != Some(version) {
            refs.point(name, version);
        }
        if let Some((key, minimum_version)) = signed {
            refs.raise_minimum_version(name, key, minimum_version).map_err(|why| self.malformed_index(why))?;
        }
        self.layout.commit(refs.index())
    }

    /// Puts the version in force that was so before, and returns it. Rolling back again undoes that.
    ///
    /// # Errors
    /// [`BundleError::NoPrevious`], and those of [`set_current`](Self::set_current).
    pub fn rollback(&self, name: &str) -> Result<u64, BundleError> {
        let previous = self
            .refs()?
            .previous(name)
            .ok_or_else(|| BundleError::NoPrevious { dir: self.layout.dir().to_owned(), name: name.to_owned() })?;
        self.set_current(name, previous)?;
        Ok(previous)
    }

    /// Removes what nobody needs: of each name, every version but the current one and the one before it (the newest
    /// one, as long as none is current), unless its digest is in `keep`; then every blob that cannot be reached.
    ///
    /// What others put into the layout stays, and so does a version that a tool copied there.
    /// Whoever uses a bundle that is neither must have it kept: blobs are read when they are asked for. Blobs that
    /// were put for a bundle not yet published go, too.
    pub fn collect(&self, keep: &[Digest]) -> Result<Collected, BundleError> {
        let mut refs = self.refs()?;
        let mut versions = Vec::new();
        for (name, version, entry) in refs.versions() {
            let in_force = [refs.current_version(&name).or(Some(refs.newest(&name))), refs.previous(&name)];
            let is_kept = in_force.contains(&Some(version)) || !is_ours(entry);
            if !is_kept && !self.digest_of(entry)?.is_some_and(|digest| keep.contains(&digest)) {
                versions.push((name, version));
            }
        }
        versions.iter().for_each(|(name, version)| refs.remove(name, *version));
        let reachable = self.layout.reachable(refs.index())?;
        if !versions.is_empty() {
            self.layout.commit(refs.index())?;
        }
        Ok(Collected { versions, blobs: self.layout.sweep(&reachable)? })
    }

    /// Makes a bundle whose blobs were put the only one, without a version.
    pub(crate) fn replace(&self, name: &str, sealed: &SealedManifest) -> Result<(), BundleError> {
        check_name(name)?;
        if !self.refs()?.is_one_bundle() {
            return Err(BundleError::Occupied(self.layout.dir().to_owned()));
        }
        let mut refs = Refs::default();
        refs.add_current(name, self.put_documents(sealed, &[])?);
        let reachable = self.layout.reachable(refs.index())?;
        self.layout.commit(refs.index())?;
        self.layout.sweep(&reachable).map(drop)
    }

    /// Makes sure that every blob is here and sound, and writes what makes them a bundle.
    fn put_documents(&self, sealed: &SealedManifest, signatures: &[Signature]) -> Result<Descriptor, BundleError> {
        let (documents, bundle) = self.layout.documents(sealed, signatures)?;
        for Document { blob, bytes, .. } in &documents.all {
            if self.layout.blob(blob).is_err() {
                self.layout.put(blob, bytes)?;
            }
        }
        Ok(bundle)
    }

    fn version_of(&self, name: &str, sealed: &SealedManifest, refs: &Refs) -> Result<Option<u64>, BundleError> {
        for (of, version, entry) in refs.versions() {
            if of == name && self.digest_of(entry)? == Some(sealed.digest()) {
                return Ok(Some(version));
            }
        }
        Ok(None)
    }
}

/// Those given and those kept, each once, the given first; no more than a bundle may have.
fn merged(given: &[Signature], kept: &[Signature]) -> Vec<Signature> {
    let mut all: Vec<Signature> = Vec::with_capacity(SIGNATURES_MAX);
    for signature in given.iter().chain(kept) {
        if !all.contains(signature) && all.len() < SIGNATURES_MAX {
            all.push(signature.clone());
        }
    }
    all
}
