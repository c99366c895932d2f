//! The versions that a host keeps: taken from peers piece by piece, prepared, tried, and put in force.
//!
//! Everything here blocks, on the disk or on work; callers are on threads of their own.

use crate::edge::fault;
use crate::policy::{Admitted, Origin, Signed};
use crate::trial::{Proof, Trial};
use crate::{Admission, Deployment, Emulation, Policy, PrepareError, Refusal, Terms, golden, threads};
use bytes::Bytes;
use edgent_bundle::{
    Blob, Bundle, BundleError, Digest, MANIFEST_BYTES_MAX, Reference, SealedManifest, Signature, Store,
};
use edgent_link::{BLOBS_MAX, BlobName, Fault, FaultKind, Reply, VERSIONS_MAX, Version};
use edgent_nn::{Backend, Onnxruntime};
use edgent_planner::Timings;
use edgent_sandbox::Engine;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};
use tokio::runtime::Handle;

/// Runs of each segment before a version is served: the profile that planning starts from.
const PROFILE_RUNS: usize = 9;

/// What is measured then counts as much as so many runs in service.
const PROFILE_WEIGHT: usize = 3;

/// So many offers are remembered until their blobs have come.
const OFFERED_MAX: usize = 8;

/// Bytes of blobs that are on their way here at once.
const ARRIVING_BYTES_MAX: u64 = 1 << 30;

/// What a bundle must pass before it is run here.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) policy: Policy,
    pub(crate) admission: Admission,
    /// None: bundles are loaded untried.
    pub(crate) trial: Option<Trial>,
}

/// What a host keeps its versions in.
#[derive(Debug)]
pub(crate) struct Shelf {
    /// None: the host serves what it was started with.
    store: Option<Store>,
    policy: RwLock<Policy>,
    engine: Engine,
    /// Where there is a second backend: for publishers whom the policy allows it.
    onnxruntime: Option<Onnxruntime>,
    emulation: Emulation,
    memory_max_bytes: u64,
    /// So many threads may one run have.
    threads: usize,
    /// Signatures of bundles that are to be offered.
    told: Mutex<VecDeque<(Digest, Vec<Signature>)>>,
    admission: Admission,
    /// None: bundles are loaded untried.
    trial: Option<Trial>,
    /// Versions whose segments failed again and again, until the next start.
    quarantined: Mutex<HashMap<Digest, String>>,
    arriving: Mutex<HashMap<Digest, Arriving>>,
    /// The bundles that were offered last.
    offered: Mutex<VecDeque<(SealedManifest, Vec<Signature>)>>,
    /// Manifests of which the last piece has not come yet.
    half_offered: Mutex<VecDeque<(Digest, Vec<u8>)>>,
    /// The blob that was read last: a peer reads it in pieces.
    last_read: Mutex<Option<(Digest, Vec<u8>)>>,
}

#[derive(Debug)]
struct Arriving {
    blob: Blob,
    bytes: Vec<u8>,
}

/// A bundle that can be served.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) bundle: Bundle,
    pub(crate) deployment: Arc<Deployment>,
    pub(crate) timings: Timings,
    /// How much of an edge's threads for a model it gets.
    pub(crate) workers_share: f64,
}

impl Shelf {
    pub(crate) fn new(
        store: Option<Store>,
        judged: Judged,
        engine: Engine,
        emulation: Emulation,
        memory_max_bytes: u64,
    ) -> Self {
        let Judged { policy, admission, trial } = judged;
        let (told, quarantined, arriving, offered, half_offered, last_read) = Default::default();
        Self {
            store,
            policy: RwLock::new(policy),
            admission,
            trial,
            engine,
            onnxruntime: None,
            emulation,
            memory_max_bytes,
            threads: 1,
            told,
            quarantined,
            arriving,
            offered,
            half_offered,
            last_read,
        }
    }

    /// The same where there is a second backend.
    pub(crate) fn with_onnxruntime(self, onnxruntime: Option<Onnxruntime>) -> Self {
        Self { onnxruntime, ..self }
    }

    /// The same where a run may have so many threads.
    pub(crate) fn with_threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// Judges by another policy from now on. What runs already goes on.
    pub(crate) fn set_policy(&self, policy: Policy) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = policy;
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
        threads::beside(runtime, move || {
            give_way();
            reply.send(work(&shelf));
        });
    }

    /// Who answers for a bundle that is to be offered.
    pub(crate) fn sign(&self, digest: Digest, signatures: &[edgent_link::Signature]) -> Result<(), Fault> {
        self.store()?;
        let read = |given: &edgent_link::Signature| Signature::read(&given.statement, &given.minisig);
        let signatures = signatures.iter().map(read).collect::<Result<Vec<_>, _>>();
        let signatures = signatures.map_err(|e| fault(FaultKind::Refused, format!("of {}: {e}", digest.short())))?;
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|(other, _)| *other != digest);
        remember(&mut told, (digest, signatures));
        Ok(())
    }

    /// What was said of a bundle.
    fn told(&self, digest: &Digest) -> Vec<Signature> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.iter().find(|(of, _)| of == digest).map(|(_, signatures)| signatures.clone()).unwrap_or_default()
    }

    /// The signatures of a bundle that is here.
    pub(crate) fn signatures(&self, digest: Digest) -> Result<Vec<edgent_link::Signature>, Fault> {
        let to_wire = |signature: Signature| edgent_link::Signature {
            statement: Bytes::from(signature.statement().text()),
            minisig: Bytes::copy_from_slice(signature.text().as_bytes()),
        };
        Ok(self.store()?.signatures(&digest).map_err(disk)?.into_iter().map(to_wire).collect())
    }

    /// The blobs of a bundle that are not here; they may come now, if it may be run.
    pub(crate) fn offer(&self, manifest: &[u8]) -> Result<Vec<BlobName>, Fault> {
        let (store, sealed) = (self.store()?, read(manifest)?);
        let signatures = self.told(&sealed.digest());
        self.judge(&sealed, &signatures, Origin::Peer).map_err(refused)?;
        let missing = store.missing(&sealed);
        let bytes: u64 = missing.iter().map(|blob| blob.bytes).sum();
        if missing.len() > BLOBS_MAX || bytes > ARRIVING_BYTES_MAX {
            let why = format!("{} blobs of {bytes} bytes are more than are taken at once", missing.len());
            return Err(fault(FaultKind::TooLarge, why));
        }
        let mut offered = self.offered.lock().unwrap_or_else(PoisonError::into_inner);
        offered.retain(|(other, _)| other.digest() != sealed.digest());
        remember(&mut offered, (sealed, signatures));
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

    /// The same of a manifest that comes in pieces; with the last one, the blobs that are not here.
    pub(crate) fn offer_piece(
        &self,
        digest: Digest,
        total: u64,
        offset: u64,
        piece: &[u8],
    ) -> Result<Vec<BlobName>, Fault> {
        self.store()?;
        if total > MANIFEST_BYTES_MAX {
            let why = format!("a manifest of {total} bytes, over {MANIFEST_BYTES_MAX}");
            return Err(fault(FaultKind::TooLarge, why));
        }
        let mut half = self.half_offered.lock().unwrap_or_else(PoisonError::into_inner);
        let found = half.iter().position(|(other, _)| *other == digest).and_then(|index| half.remove(index));
        let mut bytes = found.map(|(_, bytes)| bytes).filter(|_| offset > 0).unwrap_or_default();
        let size = bytes.len() as u64;
        if offset != size || piece.is_empty() || size + piece.len() as u64 > total {
            let why = format!("the manifest {digest} is here up to byte {size} of {total}; send it anew");
            return Err(fault(FaultKind::BadRequest, why));
        }
        bytes.extend_from_slice(piece);
        if (bytes.len() as u64) < total {
            remember(&mut half, (digest, bytes));
            return Ok(Vec::new());
        }
        drop(half);
        if Digest::of(&bytes) != digest {
            return Err(fault(FaultKind::Refused, format!("what came is not the manifest {digest}")));
        }
        self.offer(&bytes)
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

    /// Makes a bundle that was offered, and whose blobs are here, a version, which is not in force yet; or finds it, if
    /// it is one already.
    pub(crate) fn take(&self, digest: Digest) -> Result<(u64, Bundle), Fault> {
        let store = self.store()?;
        let offered = self.offered.lock().unwrap_or_else(PoisonError::into_inner);
        let found = offered.iter().find(|(sealed, _)| sealed.digest() == digest).cloned();
        drop(offered);
        self.not_quarantined(digest)?;
        let Some((sealed, signatures)) = found else {
            let known = store.list().map_err(disk)?.into_iter().find(|version| version.digest == Some(digest));
            let known = known.ok_or_else(|| fault(FaultKind::NotFound, format!("nobody offered {digest}")))?;
            let reference = Reference::Version(known.name, known.version);
            return Ok((known.version, store.open(&reference).map_err(disk)?));
        };
        // Who offered it may be in the midst of it.
        let missing = store.missing(&sealed).len();
        if missing > 0 {
            return Err(fault(
                FaultKind::NotFound,
                format!("{missing} blobs of {digest} have not come; put them first"),
            ));
        }
        let name = sealed.manifest().name.clone();
        let version = store.lock().and_then(|store| store.publish(&name, None, &sealed, &signatures)).map_err(disk)?;
        Ok((version, store.open(&Reference::Version(name, version)).map_err(disk)?))
    }

    /// The same of a bundle that lies elsewhere on this host. Without a store it stays there.
    pub(crate) fn take_from(&self, bundle: &Bundle) -> Result<(u64, Bundle), Fault> {
        self.judge(bundle.sealed(), bundle.signatures(), Origin::Here).map_err(refused)?;
        let Some(store) = &self.store else { return Ok((0, bundle.clone())) };
        let name = bundle.manifest().name.clone();
        let version = store.lock().and_then(|store| store.install(&name, None, bundle)).map_err(disk)?;
        Ok((version, store.open(&Reference::Version(name, version)).map_err(disk)?))
    }

    /// Whether a bundle may be run here, by its signatures: those given, and those that are kept of it.
    fn judge(&self, bundle: &SealedManifest, given: &[Signature], origin: Origin) -> Result<Admitted, Refusal> {
        let store = self.store.as_ref();
        // What cannot be read is not there: then it is those given that must hold.
        let kept = store.and_then(|store| store.signatures(&bundle.digest()).ok()).unwrap_or_default();
        let signatures: Vec<Signature> = given.iter().chain(&kept).cloned().collect();
        let name = &bundle.manifest().name;
        let minimum = |key| store.map_or(Ok(0), |store| store.minimum_version(name, key));
        self.policy.read().unwrap_or_else(PoisonError::into_inner).judge(bundle, &signatures, origin, minimum)
    }

    /// Looks whether a bundle may be run, and tries it; then compiles and loads it, compares its answers with the golden
    /// ones that it brings, and measures it.
    pub(crate) fn prepare(&self, bundle: Bundle) -> Result<Prepared, PrepareError> {
        let admitted = self.judge(bundle.sealed(), bundle.signatures(), Origin::Here)?;
        let admission = admitted.within(self.admission);
        let Admitted { by, tiers, onnxruntime: may_onnxruntime, workers_share, .. } = admitted;
        if let Some(Signed { publisher, key, version, .. }) = by {
            let name = &bundle.manifest().name;
            tracing::info!(model = %name, digest = %bundle.digest().short(), %publisher, %key, version, "signed");
        }
        admission.check_manifest(bundle.manifest())?;
        let onnxruntime = self.onnxruntime.clone().filter(|_| may_onnxruntime);
        if self.onnxruntime.is_some() && !may_onnxruntime {
            let model = &bundle.manifest().name;
            tracing::info!(%model, "left to tract: the policy does not let its publisher use onnxruntime");
        }
        let proof = Proof { digest: bundle.digest(), with_onnxruntime: onnxruntime.is_some() };
        let is_known = self.trial.as_ref().is_some_and(|trial| trial.has_passed(proof));
        if let Some(trial) = &self.trial {
            trial.bundle(&bundle, &admission, tiers, proof.with_onnxruntime)?;
        }
        let (emulation, memory_max_bytes, threads) = (self.emulation.clone(), self.memory_max_bytes, self.threads);
        let terms = Terms { emulation, memory_max_bytes, admission, tiers, onnxruntime, threads, ..Terms::default() };
        let deployment = Deployment::prepare_on(&bundle, &self.engine, &terms)?;
        golden::check(&bundle, &deployment, if is_known { golden::ENOUGH_AGAIN } else { golden::ENOUGH })?;
        if let Some(trial) = &self.trial {
            trial.remember(proof, tiers);
        }
        deployment.choose_threads();
        let measured = deployment.measure(PROFILE_RUNS)?;
        let segments = deployment.network().segments();
        let (mut alone, mut timings) = (Timings::new(segments), Timings::new(segments));
        measured.into_iter().for_each(|(segment, us)| alone.record(segment, us));
        // A segment that is not held never ran: no plan counts on it.
        for (segment, us) in alone.medians_us().into_iter().enumerate() {
            (0..PROFILE_WEIGHT).for_each(|_| timings.record(segment, us));
        }
        let (name, held, portable) = (&deployment.manifest().name, deployment.held(), deployment.portable());
        let digest = deployment.digest();
        let onnxruntime = deployment.choices().filter(|(_, choice)| choice.backend == Backend::Onnxruntime).count();
        let threads = deployment.threads().map(|(_, chosen)| chosen.threads).max().unwrap_or(1);
        tracing::info!(
            model = %name, digest = %digest.short(), portable, onnxruntime, threads, "prepared {held} of {segments} segments"
        );
        Ok(Prepared { bundle, deployment: Arc::new(deployment), timings, workers_share })
    }

    /// The version that is in force in the store, if there are both.
    pub(crate) fn current(&self, name: &str) -> Result<Option<(u64, Bundle)>, Fault> {
        let Some(store) = &self.store else { return Ok(None) };
        let Some(version) = store.current(name).map_err(disk)? else { return Ok(None) };
        Ok(Some((version, store.open(&Reference::Version(name.to_owned(), version)).map_err(disk)?)))
    }

    /// Puts a version in force in the store, if there is one, for the next start, and forgets those before the last two.
    pub(crate) fn put_in_force(&self, name: &str, version: u64, in_use: &[Digest]) -> Result<(), Fault> {
        let Some(store) = &self.store else { return Ok(()) };
        let writer = store.lock().map_err(disk)?;
        let bundle = writer.open(&Reference::Version(name.to_owned(), version)).map_err(disk)?;
        // Once more, now that nobody else can change what is in force.
        let admitted = self.judge(bundle.sealed(), bundle.signatures(), Origin::Here).map_err(refused)?;
        let signed = admitted.by.map(|signed| (signed.key, signed.minimum_version));
        writer.set_current_signed(name, version, signed).map_err(disk)?;
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
                on_trial: false,
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

    /// A blob of one of the versions, or a version's manifest.
    fn read_blob(&self, digest: Digest) -> Result<Vec<u8>, Fault> {
        let store = self.store()?;
        if let Ok(bundle) = store.open(&Reference::Digest(digest)) {
            return Ok(bundle.sealed().bytes().to_vec());
        }
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

/// Has this thread, and those that it starts, run when nothing else of the machine wants to: requests come first. Being
/// nice is not enough: who wakes up has to wait for the end of a nice thread's time slice, and not of an idle one's.
/// Where that is not possible, it runs as any other.
pub(crate) fn give_way() {
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    let _ = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle);
}

/// The last few: what nobody follows up must not pile up.
fn remember<T>(those: &mut VecDeque<T>, one: T) {
    if those.len() == OFFERED_MAX {
        those.pop_front();
    }
    those.push_back(one);
}

fn refused(refusal: Refusal) -> Fault {
    fault(FaultKind::Refused, refusal.to_string())
}

fn read(manifest: &[u8]) -> Result<SealedManifest, Fault> {
    SealedManifest::read(manifest.to_vec()).map_err(|e| fault(FaultKind::Refused, format!("the manifest: {e}")))
}

/// A disk that fails says nothing about the bundle: who asked may ask again.
fn disk(error: BundleError) -> Fault {
    let kind = if matches!(error, BundleError::Io { .. }) { FaultKind::Internal } else { FaultKind::Refused };
    fault(kind, error.to_string())
}
