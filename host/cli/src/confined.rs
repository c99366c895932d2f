//! Commands that read what strangers give run in a confined process, as whole commands: `build`, `inspect`, `verify`,
//! `scan`, `plan`, `profile`, `map build`.
//!
//! The tool starts itself again with its own arguments, under limits and with no file to open but those the command
//! is about. Nothing foreign is read by the tool itself, and nothing needs to be read twice.

use crate::output::BadInput;
use crate::progress::{Parent, Shown};
use anyhow::{Context, Result};
use edgent_bundle::{Bundle, Segment, Tier};
use edgent_runtime::components_bytes;
use edgent_runtime::confine::{CONFINED_PROGRAM, Confinement, this_program, told};
use edgent_runtime::trial::{self, TRY};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

/// Address space of a command that measures, too, beside a bundle's or a model's own bytes.
const MEMORY_BYTES: u64 = 2 << 30;

/// Processor time of all that a command does once the foreign file is read.
const LATER_CPU_S: u64 = 3_600;

/// Processor time where the portable guest has to be compiled before what is foreign is read.
const COMPILING_CPU_S: u64 = 120;

/// The flag that says so to a confined process; one of the tool's own.
const PROGRESS_TO_PARENT: &str = "--progress-to-parent";

/// A bundle, with samples.
const FILE_BYTES_MAX: u64 = 4 << 30;

/// Of mebibytes or seconds; more is a slip.
const BOUND_MAX: u64 = 1 << 30;

/// What a confined process may take.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct Bounds {
    /// How much address space reading what is foreign may take, in a process of its own [default: by its size].
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=BOUND_MAX))]
    confined_memory_mib: Option<u64>,
    /// How much processor time reading it may take [default: by its size].
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=BOUND_MAX))]
    confined_cpu_s: Option<u64>,
}

impl Bounds {
    /// With time to compile the portable guest.
    pub(crate) fn compiling(self) -> Self {
        Self { confined_cpu_s: self.confined_cpu_s.or(Some(COMPILING_CPU_S)), ..self }
    }

    /// The same for whoever tries bundles.
    pub(crate) fn for_trial(self) -> trial::Bounds {
        trial::Bounds { memory_bytes: self.confined_memory_mib.map(|mib| mib << 20), cpu_s: self.confined_cpu_s }
    }
}

/// Whether this process has been called as the confined one.
pub(crate) fn is_called() -> bool {
    env::args_os().next().is_some_and(|name| name == CONFINED_PROGRAM)
}

/// The confined process: takes its limits, then does what it is told; a command by `run`.
pub(crate) fn main(run: impl FnOnce(Vec<OsString>) -> ExitCode) -> ExitCode {
    let entered = told(env::args_os().skip(1)).and_then(|(confinement, work)| {
        let missing = confinement.enter().map_err(|e| format!("the limits cannot be taken: {e}"))?;
        Ok((missing, work))
    });
    let failed = |error: &dyn std::fmt::Display| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    };
    match entered {
        Err(error) => failed(&error),
        Ok((missing, work)) if work.first().is_some_and(|first| first == TRY) => {
            missing.iter().for_each(|missing| println!("{missing}"));
            trial::attempt(&work[1..]).map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
        }
        Ok((missing, work)) => {
            missing.iter().for_each(|missing| eprintln!("warning: {missing}"));
            run(work)
        }
    }
}

/// Runs this very command again, confined, on a bundle; it may read other files, and write one.
pub(crate) fn on_bundle(path: &Path, read: &[&Path], written: Option<&Path>) -> Result<ExitCode> {
    let bundle = Bundle::open(path).map_err(BadInput::error)?;
    let is_portable = |segment: &Segment| segment.tier == Tier::Portable && segment.has_graph();
    let is_portable = bundle.manifest().segments.iter().any(is_portable);
    let bounds = if is_portable { Bounds::default().compiling() } else { Bounds::default() };
    let read: Vec<&Path> = read.iter().copied().chain([bundle.dir()]).collect();
    // A file that is not there yet is its folder's business.
    let folder = written.map(|file| match file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => folder,
        None => Path::new("."),
    });
    again(bounds, components_bytes(bundle.manifest()), &read, folder.as_slice())
}

/// Runs this very command again, confined; returns its exit code.
pub(crate) fn again(bounds: Bounds, bytes: u64, read: &[&Path], write: &[&Path]) -> Result<ExitCode> {
    again_told(bounds, bytes, read, write, &[])
}

/// The same, told something that this process found out.
pub(crate) fn again_told(
    bounds: Bounds,
    bytes: u64,
    read: &[&Path],
    write: &[&Path],
    told: &[OsString],
) -> Result<ExitCode> {
    // Whether --json forbids it, the confined process sees for itself.
    let is_seen = (Shown::on_terminal() == Shown::Here).then(|| OsString::from(PROGRESS_TO_PARENT));
    let arguments: Vec<OsString> =
        is_seen.into_iter().chain(env::args_os().skip(1)).chain(told.iter().cloned()).collect();
    let arguments: Vec<_> = arguments.iter().map(OsString::as_os_str).collect();
    let confinement = confinement(bounds, bytes, read, write)?;
    let mut parent = Parent::new();
    let show = move |line: &[u8]| parent.show(line);
    let ended = confinement.run_in_front(&this_program()?, &arguments, show).context("in a process of its own")?;
    let code = ended.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

/// Limits for a command on so many foreign bytes, and the files that it may open.
pub(crate) fn confinement(bounds: Bounds, bytes: u64, read: &[&Path], write: &[&Path]) -> Result<Confinement> {
    let real = |paths: &[&Path]| -> Result<Vec<PathBuf>> {
        let real =
            |path: &&Path| fs::canonicalize(path).map_err(|e| BadInput::error(format!("{}: {e}", path.display())));
        paths.iter().map(real).collect()
    };
    let bounds = bounds.for_trial();
    let mut confinement = bounds.confinement(bytes, real(read)?);
    confinement.write = real(write)?;
    // What is written into a folder is only safe once the folder's own name is.
    confinement.list = confinement.write.iter().filter_map(|path| path.parent()).map(Path::to_owned).collect();
    confinement.file_bytes = FILE_BYTES_MAX;
    confinement.cpu_later_s = LATER_CPU_S;
    if bounds.memory_bytes.is_none() {
        confinement.memory_bytes += MEMORY_BYTES;
    }
    Ok(confinement)
}
