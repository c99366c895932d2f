//! The versions that a host keeps: taken from peers piece by piece, prepared, tried, and put in force.
//!
//! Everything here blocks, on the disk or on work; callers are on threads of their own.

use crate::edge::fault;
use crate::trial::Trial;
use crate::{Admission, Deployment, PrepareError, golden};
use edgent_bundle::{Blob, Bundle, BundleError, Digest, Reference, SealedManifest, Store};
use edgent_link::{BLOBS_MAX, BlobName, Fault, FaultKind, Reply, VERSIONS_MAX, Version};
use edgent_planner::Timings;
use edgent_sandbox::Engine;
use rustix::process::setpriority_process;
use rustix::thread::gettid;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::Handle;

/// Runs of each segment before a version is served: the profile that planning starts from.
const PROFILE_RUNS: usize = 9;

/// What is measured then counts as much as so many runs in service.
const PROFILE_WEIGHT: usize = 3;

/// How far loading a version gives way to requests; 19 is the most.
const NICE: i32 = 19;

/// So many offers are remembered until their blobs have come.
const OFFERED_MAX: usize = 8;

/// Bytes of blobs that are on their way here at once.
const ARRIVING_BYTES_MAX: u64 = 1 << 30;

/// What a host keeps its versions in.
#[derive(Debug)]
pub(crate) struct Shelf {
    /// None: the host serves what it was started with.
    store: Option<Store>,
    engine: Engine,
    slowdown: f64,
    memory_max_bytes: u64,
    admission: Admission,
    /// None: bundles are loaded untried.
    trial: Option<Trial>,
    /// Versions whose segments failed again and again, until the next start.
    quarantined: Mutex<HashMap<Digest, String>>,
    arriving: Mutex<HashMap<Digest, Arriving>>,
    /// The bundles that were offered last.
    offered: Mutex<VecDeque<SealedManifest>>,
    /// The blob that was read last: a peer reads it in pieces.
    last_read: Mutex<Option<(Digest, Vec<u8>)>>,
}

#[derive(Debug)]
struct Arriving {
    blob: Blob,
    bytes: Vec<u8>,
}

/// A bundle that can be served.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) bundle: Bundle,
    pub(crate) deployment: Deployment,
    pub(crate) timings: Timings,
}

impl Shelf {
    pub(crate) fn new(
        store: Option<Store>,
        engine: Engine,
        slowdown: f64,
        memory_max_bytes: u64,
        admission: Admission,
        trial: Option<Trial>,
    ) -> Self {
        let (quarantined, arriving, offered, last_read) = Default::default();
        Self { store, engine, slowdown, memory_max_bytes, admission, trial, quarantined, arriving, offered, last_read }
    }

    /// Has a version not run here any more.
    pub(crate) fn quarantine(&self, digest: Digest, why: &str) {
        tracing::error!(digest = %digest.short(), why, "quarantined");
        self.quarantined().insert(digest, why.to_owned());
    }

    fn not_quarantined(&self, digest: Digest) -> Result<(), Fault> {
        let why = self.quarantined().get(&digest).cloned();
        why.map_or(Ok(()), |why| Err(fault(FaultKind::Refused, PrepareError::Quarantined(why).to_string())))
    }

    pub(crate) fn quarantined(&self) -> MutexGuard<'_, HashMap<Digest, String>> {
        self.quarantined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a peer from a thread that may block.
    pub(crate) fn answer<T: Send + 'static>(
        self: &Arc<Self>,
        runtime: &Handle,
        reply: Reply<T>,
        work: impl FnOnce(&Self) -> Result<T, Fault> + Send + 'static,
    ) {
        let shelf = Arc::clone(self);
        runtime.spawn_blocking(move || {
            give_way();
            reply.send(work(&shelf));
        });
    }

    /// The blobs of a bundle that are not here; they may come now.
    pub(crate) fn offer(&self, manifest: &[u8]) -> Result<Vec<BlobName>, Fault> {
        let (store, sealed) = (self.store()?, read(manifest)?);
        let missing = store.missing(&sealed);
        let bytes: u64 = missing.iter().map(|blob| blob.bytes).sum();
        if missing.len() > BLOBS_MAX || bytes > ARRIVING_BYTES_MAX {
            let why = format!("{} blobs of {bytes} bytes are more than are taken at once", missing.len());
            return Err(fault(FaultKind::TooLarge, why));
        }
        let mut offered = self.offered.lock().unwrap_or_else(PoisonError::into_inner);
        offered.retain(|other| other.digest() != sealed.digest());
        if offered.len() == OFFERED_MAX {
            offered.pop_front();
        }
        offered.push_back(sealed);
        drop(offered);
        let mut arriving = self.arriving();
        let others: u64 = arriving.values().map(|arriving| arriving.blob.bytes).sum();
        if others + bytes > ARRIVING_BYTES_MAX {
            // Left over from offers that were not followed up.
            arriving.clear();
        }
        for blob in &missing {
            arriving.entry(blob.digest).or_insert_with(|| Arriving { blob: blob.clone(), bytes: Vec::new() });
        }
        Ok(missing
            .iter()
            .map(|blob| BlobName { digest: edgent_link::Digest(blob.digest.0), bytes: blob.bytes })
            .collect())
    }

    /// A piece of a blob that is missing. The last one puts it into the store.
    pub(crate) fn put(&self, digest: Digest, offset: u64, piece: &[u8]) -> Result<(), Fault> {
        let store = self.store()?;
        let complete = {
            let mut all = self.arriving();
            let unknown = || fault(FaultKind::NotFound, format!("nobody offered the blob {digest}"));
            let arriving = all.get_mut(&digest).ok_or_else(unknown)?;
            if offset == 0 {
                arriving.bytes.clear();
            }
            let size = arriving.bytes.len() as u64;
            if offset != size || piece.is_empty() || size + piece.len() as u64 > arriving.blob.bytes {
                let why = format!("the blob {digest} is here up to byte {size} of {}", arriving.blob.bytes);
                return Err(fault(FaultKind::BadRequest, why));
            }
            arriving.bytes.extend_from_slice(piece);
            (arriving.bytes.len() as u64 == arriving.blob.bytes).then(|| all.remove(&digest)).flatten()
        };
        match complete {
            Some(Arriving { blob, bytes }) => Ok(store.lock().and_then(|s| s.put_blob(&blob, &bytes)).map_err(disk)?),
            None => Ok(()),
        }
    }

    /// Makes a bundle that was offered, and whose blobs are here, a version, which is not in force yet.
    pub(crate) fn take(&self, digest: Digest) -> Result<(u64, Bundle), Fault> {
        let store = self.store()?;
        let offered = self.offered.lock().unwrap_or_else(PoisonError::into_inner);
        let sealed = offered.iter().find(|sealed| sealed.digest() == digest).cloned();
        drop(offered);
        let sealed = sealed.ok_or_else(|| fault(FaultKind::NotFound, format!("nobody offered {digest}")))?;
        let name = sealed.manifest().name.clone();
        self.not_quarantined(digest)?;
        let version = store.lock().and_then(|store| store.publish(&name, None, &sealed)).map_err(disk)?;
        Ok((version, store.open(&Reference::Version(name, version)).map_err(disk)?))
    }

    /// The same of a bundle that lies elsewhere on this host.
    pub(crate) fn take_from(&self, bundle: &Bundle) -> Result<(u64, Bundle), Fault> {
        let (store, name) = (self.store()?, bundle.manifest().name.clone());
        let version = store.lock().and_then(|store| store.install(&name, None, bundle)).map_err(disk)?;
        Ok((version, store.open(&Reference::Version(name, version)).map_err(disk)?))
    }

    /// Tries a bundle, compiles and loads it, compares its answers with the golden ones that it brings, and measures it.
    pub(crate) fn prepare(&self, bundle: Bundle) -> Result<Prepared, PrepareError> {
        self.admission.check_manifest(bundle.manifest())?;
        if let Some(trial) = &self.trial {
            trial.bundle(&bundle, &self.admission)?;
        }
        let deployment =
            Deployment::prepare_within(&bundle, &self.engine, self.slowdown, self.memory_max_bytes, &self.admission)?;
        golden::check(&bundle, &deployment)?;
        let measured = deployment.measure(PROFILE_RUNS)?;
        let segments = deployment.network().segments();
        let (mut alone, mut timings) = (Timings::new(segments), Timings::new(segments));
        measured.into_iter().for_each(|(segment, us)| alone.record(segment, us));
        // A segment that is not held never ran: no plan counts on it.
        for (segment, us) in alone.medians_us().into_iter().enumerate() {
            (0..PROFILE_WEIGHT).for_each(|_| timings.record(segment, us));
        }
        let (name, held) = (&deployment.manifest().name, deployment.held());
        tracing::info!(model = %name, digest = %deployment.digest().short(), "prepared {held} of {segments} segments");
        Ok(Prepared { bundle, deployment, timings })
    }

    /// Puts a version in force in the store, for the next start, and forgets those before the last two.
    pub(crate) fn put_in_force(&self, name: &str, version: u64, in_use: &[Digest]) -> Result<(), Fault> {
        let writer = self.store()?.lock().map_err(disk)?;
        writer.set_current(name, version).map_err(disk)?;
        if let Err(error) = writer.collect(in_use) {
            tracing::warn!(%error, "old versions could not be removed");
        }
        Ok(())
    }

    /// The version that was in force before, of this model or of the only one.
    pub(crate) fn previous(&self, name: &str) -> Result<(u64, Bundle), Fault> {
        let store = self.store()?;
        let versions = store.list().map_err(disk)?;
        let wanted = |name_of: &str| name.is_empty() || name_of == name;
        let mut previous = versions.iter().filter(|version| version.is_previous && wanted(&version.name));
        let (Some(version), None) = (previous.next(), previous.next()) else {
            let why = format!("there is no version of '{name}' to go back to, or there are several models; name one");
            return Err(fault(FaultKind::NotFound, why));
        };
        let reference = Reference::Version(version.name.clone(), version.version);
        let bundle = store.open(&reference).map_err(disk)?;
        self.not_quarantined(bundle.digest())?;
        Ok((version.version, bundle))
    }

    /// The version to go back to from one that is in force and must not be so any more.
    pub(crate) fn instead_of(&self, name: &str, bad: Digest) -> Result<(u64, Bundle), Fault> {
        self.store()?;
        let in_force = self.versions()?.into_iter().find(|version| version.current && version.model == name);
        if in_force.is_none_or(|version| version.digest.0 != bad.0) {
            return Err(fault(FaultKind::NotFound, "another version is in force"));
        }
        self.previous(name)
    }

    pub(crate) fn versions(&self) -> Result<Vec<Version>, Fault> {
        let Some(store) = &self.store else { return Ok(Vec::new()) };
        let versions = store.list().map_err(disk)?.into_iter().filter_map(|version| {
            Some(Version {
                digest: edgent_link::Digest(version.digest?.0),
                model: version.name,
                version: version.version,
                current: version.is_current,
                previous: version.is_previous,
                commit_us: 0,
                quarantined: self.quarantined().contains_key(&version.digest?),
            })
        });
        Ok(versions.take(VERSIONS_MAX).collect())
    }

    /// A bundle's manifest.
    pub(crate) fn manifest(&self, digest: Digest) -> Result<Vec<u8>, Fault> {
        let found = self.store()?.open(&Reference::Digest(digest));
        found.map(|bundle| bundle.sealed().bytes().to_vec()).map_err(|e| fault(FaultKind::NotFound, e.to_string()))
    }

    /// A piece of a blob of one of the versions that are here.
    pub(crate) fn blob(&self, digest: Digest, offset: u64, bytes_max: usize) -> Result<Vec<u8>, Fault> {
        let mut last_read = self.last_read.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = match last_read.take() {
            Some((last, bytes)) if last == digest => bytes,
            _ => self.read_blob(digest)?,
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let piece = bytes[start..bytes.len().min(start.saturating_add(bytes_max))].to_vec();
        if start + piece.len() < bytes.len() {
            *last_read = Some((digest, bytes));
        }
        Ok(piece)
    }

    fn read_blob(&self, digest: Digest) -> Result<Vec<u8>, Fault> {
        let store = self.store()?;
        for version in store.list().map_err(disk)? {
            let bundle = store.open(&Reference::Version(version.name, version.version)).map_err(disk)?;
            if let Some(blob) = bundle.sealed().blobs().iter().find(|blob| blob.digest == digest) {
                return bundle.blob(blob).map_err(disk);
            }
        }
        Err(fault(FaultKind::NotFound, format!("no version here has the blob {digest}")))
    }

    fn store(&self) -> Result<&Store, Fault> {
        let why = "this host keeps no versions; start it with --store DIR";
        self.store.as_ref().ok_or_else(|| fault(FaultKind::Unsupported, why))
    }

    fn arriving(&self) -> MutexGuard<'_, HashMap<Digest, Arriving>> {
        self.arriving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has this thread, and those that it starts, run when nothing else of the machine wants to: requests come first.
/// Where that is not possible, it runs as any other.
pub(crate) fn give_way() {
    let _ = setpriority_process(Some(gettid()), NICE);
}

fn read(manifest: &[u8]) -> Result<SealedManifest, Fault> {
    SealedManifest::read(manifest.to_vec()).map_err(|e| fault(FaultKind::Refused, format!("the manifest: {e}")))
}

fn disk(error: BundleError) -> Fault {
    fault(FaultKind::Refused, error.to_string())
}
