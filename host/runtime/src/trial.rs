//! A bundle from outside is tried in a confined process before this one reads its code or its graphs.
//!
//! The process does all that a host does to serve the bundle: compiles each guest, loads and optimises each graph,
//! makes every instance, and runs every segment once, on zeros. If it ends well, the same ends well here, within the
//! same limits: compiler and tract do the same thing for the same bytes. Segments that run in the sandbox with this
//! program's own guest are left out: of those, neither reads anything here. What it found out is thrown away; compiled
//! code is not handed over (ARCHITECTURE.md says why). That a bundle passed is remembered by its digest, so that only
//! the first start of a bundle takes longer.

use crate::confine::{ConfinedError, Confinement};
use crate::{Admission, Deployment, Terms, Tiers, admission, build_name};
use edgent_bundle::{Bundle, Digest, Reference, Store};
use edgent_nn::{Cost, Graph, Imported, Onnxruntime, Pins, Port, Tensor};
use edgent_sandbox::Engine;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::iter;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// The first argument of a confined process that is to try something.
pub const TRY: &str = "try";

/// Address space for the program itself, and for what it does beside the bundle's own bytes.
const MEMORY_BYTES: u64 = 512 << 20;

/// So many times a bundle's bytes are in memory at once: as read, as parsed, as optimised.
const MEMORY_FACTOR: u64 = 6;

/// Processor time for small bundles.
const CPU_S: u64 = 30;

/// No file can be written; but wasmtime keeps a guest's first memory in one without a name.
const FILE_BYTES: u64 = 64 << 20;

/// Bytes of components that take one second more.
const BYTES_PER_CPU_S: u64 = 4 << 20;

/// The list of bundles that passed is begun anew when it is longer.
const PROVEN_BYTES_MAX: u64 = 1 << 20;

/// Tries bundles.
#[derive(Debug)]
pub struct Trial {
    program: PathBuf,
    bounds: Bounds,
    /// Where onnxruntime is, for bundles that it may read.
    onnxruntime: Option<PathBuf>,
    /// What passed, and where that is written down.
    proven: Mutex<HashSet<Proof>>,
    file: Option<PathBuf>,
    warned: AtomicBool,
}

/// A bundle that was found good, and whether onnxruntime read it, too: having passed without proves nothing with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Proof {
    pub(crate) digest: Digest,
    pub(crate) with_onnxruntime: bool,
}

/// An operator's own limits, in place of those that follow from a bundle's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Address space.
    pub memory_bytes: Option<u64>,
    /// Processor time.
    pub cpu_s: Option<u64>,
}

/// What a confined process is to try.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Job {
    /// Everything that a host does to serve a bundle.
    Bundle {
        /// The folder that it lies in.
        dir: PathBuf,
        /// Which one of those there.
        digest: String,
        /// What it may cost.
        macs_max: u64,
        /// The same of all components.
        components_bytes_max: u64,
        /// The same of one tensor.
        tensor_bytes_max: u64,
        /// Where its arithmetic is to be done.
        tiers: Tiers,
        /// The library of a second backend that is to read it, too.
        onnxruntime: Option<PathBuf>,
    },
    /// Compiling a guest.
    Guest(PathBuf),
    /// Importing an ONNX file, cutting it, loading the segments.
    Onnx {
        /// The file.
        path: PathBuf,
        /// What it may cost.
        macs_max: u64,
    },
}

impl Trial {
    /// `program` is this one; what passed is remembered in `file`, too, if there is one.
    pub fn new(program: PathBuf, bounds: Bounds, file: Option<PathBuf>) -> Self {
        let proven = file.as_deref().map(read_proven).unwrap_or_default();
        Self { program, bounds, onnxruntime: None, proven: Mutex::new(proven), file, warned: AtomicBool::new(false) }
    }

    /// The same where there is a second backend, whose library this is.
    pub fn with_onnxruntime(self, library: Option<PathBuf>) -> Self {
        Self { onnxruntime: library, ..self }
    }

    /// Tries a bundle, unless it passed before. Blocks for as long as that takes.
    pub fn bundle(
        &self,
        bundle: &Bundle,
        admission: &Admission,
        tiers: Tiers,
        with_onnxruntime: bool,
    ) -> Result<(), ConfinedError> {
        let digest = bundle.digest();
        let onnxruntime = self.onnxruntime.clone().filter(|_| with_onnxruntime);
        if self.has_passed(Proof { digest, with_onnxruntime: onnxruntime.is_some() }) {
            return Ok(());
        }
        let since = Instant::now();
        let dir = fs::canonicalize(bundle.dir()).map_err(ConfinedError::Start)?;
        let Admission { macs_max, components_bytes_max, tensor_bytes_max } = *admission;
        let digest_text = digest.to_string();
        let job = Job::Bundle {
            dir: dir.clone(),
            digest: digest_text,
            macs_max,
            components_bytes_max,
            tensor_bytes_max,
            tiers,
            onnxruntime: onnxruntime.clone(),
        };
        let libraries = onnxruntime.iter().map(PathBuf::as_path).flat_map(libraries);
        let read = iter::once(dir.clone()).chain(libraries).collect();
        self.run_reading(&job, read, admission::components_bytes(bundle.manifest()))?;
        tracing::info!(digest = %digest.short(), took_ms = since.elapsed().as_millis(), "passed its trial");
        Ok(())
    }

    /// Tries something of so many bytes that lies at `path`.
    pub fn run(&self, job: &Job, path: &Path, bytes: u64) -> Result<(), ConfinedError> {
        self.run_reading(job, vec![path.to_owned()], bytes)
    }

    fn run_reading(&self, job: &Job, read: Vec<PathBuf>, bytes: u64) -> Result<(), ConfinedError> {
        let job = serde_json::to_string(job).unwrap_or_default();
        let confinement = self.bounds.confinement(bytes, read);
        let finished = confinement.run(&self.program, &[OsStr::new(TRY), OsStr::new(&job)])?;
        // What of the limits its kernel lacks.
        let missing = String::from_utf8_lossy(&finished.stdout);
        if !missing.trim().is_empty() && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!("{}", missing.trim());
        }
        Ok(())
    }

    /// Whether a bundle was found good here before, on this or an earlier start.
    pub(crate) fn has_passed(&self, proof: Proof) -> bool {
        self.proven.lock().unwrap_or_else(PoisonError::into_inner).contains(&proof)
    }

    /// Remembers that a bundle passed its trial and all that came after. With all of it in the sandbox, no graph was
    /// read, and that proves nothing for a host that would read them.
    pub(crate) fn remember(&self, proof: Proof, tiers: Tiers) {
        if tiers != Tiers::AsBuilt || self.has_passed(proof) {
            return;
        }
        self.proven.lock().unwrap_or_else(PoisonError::into_inner).insert(proof);
        let Some(file) = &self.file else { return };
        let written = || {
            if let Some(dir) = file.parent() {
                fs::create_dir_all(dir)?;
            }
            let is_long = fs::metadata(file).is_ok_and(|found| found.len() > PROVEN_BYTES_MAX);
            let mut options = OpenOptions::new();
            let mut file = options.create(true).append(!is_long).write(true).truncate(is_long).open(file)?;
            file.write_all(proof.line().as_bytes())
        };
        if let Err(error) = written() {
            tracing::warn!(%error, file = %file.display(), "a trial is not remembered");
        }
    }
}

impl Bounds {
    /// Limits for work on so many bytes.
    pub fn confinement(&self, bytes: u64, read: Vec<PathBuf>) -> Confinement {
        let memory_bytes = MEMORY_BYTES.saturating_add(bytes.saturating_mul(MEMORY_FACTOR));
        let cpu_s = self.cpu_s.unwrap_or(CPU_S.saturating_add(bytes / BYTES_PER_CPU_S));
        Confinement {
            memory_bytes: self.memory_bytes.unwrap_or(memory_bytes),
            cpu_s,
            cpu_later_s: cpu_s,
            file_bytes: FILE_BYTES,
            read,
            list: Vec::new(),
            write: Vec::new(),
        }
    }
}

impl Proof {
    /// A line of the file: another build of this program, or another processor, may load a graph in another way.
    fn line(self) -> String {
        let beside = if self.with_onnxruntime { " onnxruntime" } else { "" };
        format!("{} {} {}{beside}\n", self.digest, build_name(), std::env::consts::ARCH)
    }

    fn read(line: &str) -> Option<Self> {
        let digest = line.split(' ').next()?.parse().ok()?;
        let proofs = [false, true].map(|with_onnxruntime| Self { digest, with_onnxruntime });
        proofs.into_iter().find(|proof| proof.line().trim_end() == line)
    }
}

/// What a process may read to load a library: that, and where the system has those that it needs itself.
pub fn libraries(library: &Path) -> impl Iterator<Item = PathBuf> {
    let system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"].map(PathBuf::from);
    let own = fs::canonicalize(library).unwrap_or_else(|_| library.to_owned());
    iter::once(own).chain(system.into_iter().filter(|path| path.exists()))
}

fn read_proven(file: &Path) -> HashSet<Proof> {
    let mut text = String::new();
    let read = File::open(file).and_then(|file| file.take(2 * PROVEN_BYTES_MAX).read_to_string(&mut text));
    if read.is_err() {
        return HashSet::new();
    }
    text.lines().filter_map(Proof::read).collect()
}

/// What the confined process does: `arguments` are those behind [`TRY`].
pub fn attempt(arguments: &[OsString]) -> Result<(), String> {
    let job = arguments.first().and_then(|job| job.to_str()).ok_or("nothing to try")?;
    match serde_json::from_str(job).map_err(|e| format!("what to try: {e}"))? {
        Job::Bundle { dir, digest, macs_max, components_bytes_max, tensor_bytes_max, tiers, onnxruntime } => {
            let onnxruntime = onnxruntime.map(|library| Onnxruntime::open(&library)).transpose();
            let onnxruntime = onnxruntime.map_err(|e| e.to_string())?;
            let digest = digest.parse::<Digest>().map_err(|e| e.to_string())?;
            let bundle = Store::at(&dir).open(&Reference::Digest(digest)).map_err(|e| e.to_string())?;
            let admission = Admission { macs_max, components_bytes_max, tensor_bytes_max };
            let engine = Engine::new().map_err(|e| e.to_string())?;
            let terms = Terms { admission, tiers, onnxruntime, shipped_code: false, ..Terms::default() };
            let deployment = Deployment::prepare_on(&bundle, &engine, &terms);
            deployment.and_then(|deployment| deployment.measure(1)).map(drop).map_err(|e| e.to_string())
        }
        Job::Guest(path) => {
            let bytes = fs::read(path).map_err(|e| e.to_string())?;
            let engine = Engine::new().map_err(|e| e.to_string())?;
            engine.compile(&bytes).map(drop).map_err(|e| e.to_string())
        }
        Job::Onnx { path, macs_max } => onnx(&path, macs_max),
    }
}

fn onnx(path: &Path, macs_max: u64) -> Result<(), String> {
    let bytes = fs::read(path).map_err(|e| e.to_string())?;
    let imported = Imported::from_onnx(&bytes, &Pins::default()).map_err(|e| e.to_string())?;
    // As one exit, as `edgent build` has it of a file of which nothing is said.
    let all = (0..imported.outputs().len()).collect();
    let cut = imported.cut(&[all]).map_err(|e| e.to_string())?;
    let graphs = cut.segments.iter().map(|segment| Graph::load(&segment.graph, segment.format));
    let graphs = graphs.collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    // All of it, before any of it runs.
    let add = |sum: Cost, graph: &Graph| Cost {
        macs: sum.macs.saturating_add(graph.cost().macs),
        largest_bytes: sum.largest_bytes.max(graph.cost().largest_bytes),
    };
    let cost = graphs.iter().fold(Cost::default(), add);
    let admission = Admission { macs_max, ..Admission::default() };
    admission.check_graph("of the file", cost).map_err(|e| format!("it costs too much: {e}"))?;
    for graph in &graphs {
        let zeros =
            |port: &Port| Tensor::from_bytes(port.fact.element_type, &port.fact.dims, &vec![0; port.fact.bytes()]);
        let inputs = graph.inputs().iter().map(zeros).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
        graph.run_once(inputs).map_err(|e| e.to_string())?;
    }
    Ok(())
}
