//! Code that ships with this program, compiled once and kept on disk: the portable guest takes seconds to compile.
//!
//! Whoever writes such a file writes this process's machine code. So nothing of a bundle is ever kept, only what is
//! part of this very program; and a file is believed only in a folder that is this user's and that nobody else can
//! write to. Then who could change the file could as well change this program's settings, or the program. A checksum
//! finds what a disk or a crash has damaged.

use rustix::process::geteuid;
use sha2::{Digest, Sha256};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use wasmtime::Engine;
use wasmtime::component::Component;

/// The largest file that is read.
const KEPT_BYTES_MAX: u64 = 256 << 20;

const CHECKSUM_BYTES: usize = 32;

/// Others' permission to write.
const OTHERS_MAY_WRITE: u32 = 0o022;

/// The component, as it was compiled before; or compiled now, and kept. That it cannot be kept is no failure.
pub(crate) fn component(engine: &Engine, bytes: &[u8], folder: &Path) -> wasmtime::Result<Component> {
    let file = file(engine, bytes, folder);
    if let Some(kept) = read(&file).ok().and_then(|compiled| revive(engine, &compiled)) {
        return Ok(kept);
    }
    let component = Component::from_binary(engine, bytes)?;
    // Whoever cannot write it compiles again at the next start.
    let _ = write(&file, &component.serialize()?);
    Ok(component)
}

#[allow(unsafe_code)]
fn revive(engine: &Engine, compiled: &[u8]) -> Option<Component> {
    // SAFETY: the bytes are what `Component::serialize` gave this user: nobody else can write there, and the checksum
    // tells that they are whole. What another version of wasmtime, or one with other options, gave is refused by it.
    unsafe { Component::deserialize(engine, compiled) }.ok()
}

/// Named by the code, by this version of wasmtime, and by its options.
fn file(engine: &Engine, bytes: &[u8], folder: &Path) -> PathBuf {
    let mut options = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut options);
    let digest: String = Sha256::digest(bytes).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    folder.join(format!("edgent-code-{digest}-{:016x}", options.finish()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    must_be_ours(path.parent().unwrap_or(Path::new("")))?;
    let file = File::open(path)?;
    let found = file.metadata()?;
    if !is_ours(&found) {
        return Err(ErrorKind::PermissionDenied.into());
    }
    let mut kept = Vec::with_capacity(usize::try_from(found.len().min(KEPT_BYTES_MAX)).unwrap_or(0));
    file.take(KEPT_BYTES_MAX).read_to_end(&mut kept)?;
    let (compiled, checksum) = kept.split_last_chunk::<CHECKSUM_BYTES>().ok_or(ErrorKind::UnexpectedEof)?;
    if Sha256::digest(compiled).as_slice() != checksum {
        return Err(ErrorKind::InvalidData.into());
    }
    kept.truncate(kept.len() - CHECKSUM_BYTES);
    Ok(kept)
}

/// In one step: a process that reads meanwhile finds a whole file or none.
fn write(path: &Path, compiled: &[u8]) -> Result<()> {
    let folder = path.parent().ok_or(ErrorKind::NotFound)?;
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    must_be_ours(folder)?;
    let unfinished = path.with_extension(std::process::id().to_string());
    let written = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        file.write_all(compiled)?;
        file.write_all(&Sha256::digest(compiled))?;
        fs::rename(&unfinished, path)
    };
    written().inspect_err(|_| drop(fs::remove_file(&unfinished)))
}

fn must_be_ours(folder: &Path) -> Result<()> {
    if is_ours(&fs::metadata(folder)?) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::PermissionDenied, "the folder is another user's, or others can write there"))
}

fn is_ours(found: &fs::Metadata) -> bool {
    found.uid() == geteuid().as_raw() && found.mode() & OTHERS_MAY_WRITE == 0
}
