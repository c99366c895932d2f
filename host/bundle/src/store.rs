//! Reading and writing a bundle's folder.

use crate::{Blob, Digest, Manifest, ManifestError};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The largest manifest that is read.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// The largest blob that is read.
pub const BLOB_BYTES_MAX: u64 = 1 << 30;

const MANIFEST: &str = "manifest.json";
const BLOBS: &str = "blobs/sha256";

/// A bundle on disk whose manifest has been read and checked.
#[derive(Clone, Debug)]
pub struct Bundle {
    dir: PathBuf,
    manifest: Manifest,
    digest: Digest,
}

impl Bundle {
    /// Reads and checks the manifest. Blobs are read, and checked, when asked for.
    pub fn open(dir: &Path) -> Result<Self, BundleError> {
        let path = dir.join(MANIFEST);
        let bytes = read_limited(&path, MANIFEST_BYTES_MAX)?;
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|e| BundleError::Manifest { path: path.clone(), why: e.to_string() })?;
        manifest.check().map_err(|ManifestError(why)| BundleError::Manifest { path, why })?;
        Ok(Self { dir: dir.to_owned(), manifest, digest: Digest::of(&bytes) })
    }

    /// The checked manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The SHA-256 of the manifest: the bundle's name.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Where it lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads a blob and makes sure that it is the one that is meant.
    pub fn blob(&self, blob: &Blob) -> Result<Vec<u8>, BundleError> {
        let path = self.dir.join(BLOBS).join(blob.digest.hex());
        let bytes = read_limited(&path, BLOB_BYTES_MAX.min(blob.bytes))?;
        let found = Digest::of(&bytes);
        if found != blob.digest || bytes.len() as u64 != blob.bytes {
            return Err(BundleError::Rotten { path, expected: blob.digest, found });
        }
        Ok(bytes)
    }
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

    /// Writes everything beside `dir`, then moves it there in one step: nobody sees half a bundle.
    /// An earlier bundle at `dir` is replaced; anything else there is left alone and is an error.
    pub fn write(self, dir: &Path, manifest: &Manifest) -> Result<Bundle, BundleError> {
        manifest.check().map_err(|ManifestError(why)| BundleError::Manifest { path: dir.join(MANIFEST), why })?;
        let occupied = dir.exists() && !dir.join(MANIFEST).exists();
        if occupied && fs::read_dir(dir).map_err(at(dir))?.next().is_some() {
            return Err(BundleError::Occupied(dir.to_owned()));
        }
        let mut name = dir.file_name().unwrap_or_default().to_owned();
        name.push(format!(".new-{}", std::process::id()));
        let draft = dir.with_file_name(name);
        let written = self.write_to(&draft, manifest).and_then(|()| {
            if dir.exists() {
                fs::remove_dir_all(dir).map_err(at(dir))?;
            }
            fs::rename(&draft, dir).map_err(at(dir))
        });
        if written.is_err() {
            let _ = fs::remove_dir_all(&draft);
        }
        written?;
        Bundle::open(dir)
    }

    fn write_to(&self, dir: &Path, manifest: &Manifest) -> Result<(), BundleError> {
        let blobs = dir.join(BLOBS);
        fs::create_dir_all(&blobs).map_err(at(&blobs))?;
        for (digest, bytes) in &self.blobs {
            write_synced(&blobs.join(digest.hex()), bytes)?;
        }
        let text = serde_json::to_vec_pretty(manifest)
            .map_err(|e| BundleError::Manifest { path: dir.join(MANIFEST), why: e.to_string() })?;
        write_synced(&dir.join(MANIFEST), &text)
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), BundleError> {
    let mut file = File::create(path).map_err(at(path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(at(path))
}

fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, BundleError> {
    let file = File::open(path).map_err(at(path))?;
    let mut bytes = Vec::new();
    // One byte more than the limit tells a file that is too large from one that just fits.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(at(path))?;
    if bytes.len() as u64 > limit {
        return Err(BundleError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(bytes)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> BundleError {
    let path = path.to_owned();
    move |source| BundleError::Io { path, source }
}

/// Why a bundle cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The file system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The manifest is not one.
    #[error("{}: {why}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file is larger than it may be.
    #[error("{} is larger than the {limit} bytes it may have", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What it may have.
        limit: u64,
    },
    /// A blob is not what its name says.
    #[error("{} holds {found}, not {expected}: it was damaged or changed; build or copy the bundle again", path.display())]
    Rotten {
        /// The blob.
        path: PathBuf,
        /// What it should hash to.
        expected: Digest,
        /// What it hashes to.
        found: Digest,
    },
    /// A folder that is not ours to replace.
    #[error("{} exists and is not a bundle; give another --out", .0.display())]
    Occupied(PathBuf),
}
