//! Why a bundle cannot be read or written: what, where, and what to do.

use crate::{Blob, ComponentError, Digest, Reference, SIGNATURES_MAX};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Why a bundle cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The file system said no.
    #[error("cannot {doing} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A document in the bundle does not say what it must.
    #[error("{}: {why}", path.display())]
    Manifest {
        /// The document.
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
    #[error(
        "{} holds {found}, not {expected}: it was damaged or changed; build, copy or install the bundle again",
        path.display()
    )]
    Rotten {
        /// The blob.
        path: PathBuf,
        /// What it should hash to.
        expected: Digest,
        /// What it hashes to.
        found: Digest,
    },
    /// Bytes that were handed over are not the blob that they were said to be.
    #[error(
        "the blob handed over as {} of {} bytes is {found} of {bytes} bytes; send it again",
        expected.digest, expected.bytes
    )]
    OtherBlob {
        /// What was expected.
        expected: Blob,
        /// What came.
        found: Digest,
        /// How large it is.
        bytes: u64,
    },
    /// A segment's blob is no component.
    #[error("{}: {source}", path.display())]
    Component {
        /// The blob.
        path: PathBuf,
        /// What it is.
        source: ComponentError,
    },
    /// A folder that is not ours to replace.
    #[error("{} exists and is not a bundle alone; give another --out", .0.display())]
    Occupied(PathBuf),
    /// Another process, or another thread of this one, writes to the store.
    #[error("{} is being written to by another process; try again when it is done", .0.display())]
    Locked(PathBuf),
    /// A bundle with as many signatures as it may have.
    #[error("the bundle in {} has {SIGNATURES_MAX} signatures, as many as it may have; build it anew to sign it", .0.display())]
    Signatures(PathBuf),
    /// No such bundle.
    #[error("{} has no {reference}; it has {known}", dir.display())]
    Unknown {
        /// The store.
        dir: PathBuf,
        /// What was asked for.
        reference: Reference,
        /// What there is.
        known: String,
    },
    /// Several bundles, and none was named.
    #[error("{} has {known}; name one of them, as in {}@NAME:VERSION", .dir.display(), .dir.display())]
    Ambiguous {
        /// The store.
        dir: PathBuf,
        /// What there is.
        known: String,
    },
    /// There is nothing to roll back to.
    #[error("no version of '{name}' was current before in {}; install one and make it current", dir.display())]
    NoPrevious {
        /// The store.
        dir: PathBuf,
        /// The model.
        name: String,
    },
    /// The version that was asked for is not free.
    #[error("'{name}' cannot get version {version} in {}: {why}", dir.display())]
    Version {
        /// The store.
        dir: PathBuf,
        /// The model.
        name: String,
        /// What was asked for.
        version: u64,
        /// What is in the way.
        why: String,
    },
    /// A name that does not fit into a reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
}

/// Text that is no reference.
#[derive(Debug, thiserror::Error)]
#[error(
    "'{0}' names no bundle; write NAME, NAME:VERSION or @sha256:DIGEST, a name being letters and digits with single -._ \
     between them, a version a number from 1 on"
)]
pub struct ReferenceError(pub(crate) String);

/// Puts what was tried, and where, to what the file system says.
pub(crate) fn cannot(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BundleError + use<> {
    let path = path.to_owned();
    move |source| BundleError::Io { doing, path, source }
}

/// Error numbers that [`ErrorKind`] has no name for, the same on every Unix.
const EIO: i32 = 5;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

fn advice(error: &io::Error) -> &'static str {
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::StorageFull | ErrorKind::QuotaExceeded, _) => "; free space there, or collect what is not in use",
        (ErrorKind::ReadOnlyFilesystem, _) => "; mount it writable, or give a folder elsewhere",
        (ErrorKind::PermissionDenied, _) => "; check whose the folder is",
        (ErrorKind::NotFound, _) => "; is this a folder that `edgent build --out` wrote?",
        (_, Some(EIO)) => "; the disk may be failing: look into the kernel's log, and put the store on another disk",
        (_, Some(EMFILE | ENFILE)) => "; raise the limit of open files (ulimit -n, LimitNOFILE=)",
        _ => "",
    }
}
