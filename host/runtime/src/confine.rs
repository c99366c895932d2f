//! A process of our own for work on what strangers give: importing, compiling, trying.
//!
//! tract and the compiler are trusted, but they read what is not, and nothing stops them from within: a hostile file
//! can have them allocate without end, loop without end, or crash. So this very program runs itself again under the
//! name [`CONFINED_PROGRAM`]; the new process takes its limits upon itself before it reads the first byte, and what
//! becomes of it is an error message here.
//!
//! The limits: address space, processor time, file sizes and open files by `setrlimit`; on Linux, by Landlock, no file
//! but those named, no network, no signals to others. A kernel without Landlock leaves the other limits, and that is
//! said. The environment is empty, and the process ends with its parent.

use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, getrlimit, kill_process_group, setrlimit, waitid,
};
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// The name under which this program is the confined process.
pub const CONFINED_PROGRAM: &str = "edgent-confined";

/// Of what the process says, so much is kept: its last words tell what was wrong.
const SAID_BYTES_MAX: usize = 4 << 10;

/// More than the program needs for itself, few enough to be no burden to the machine.
const OPEN_FILES_MAX: u64 = 64;

/// A process that waits rather than works is ended after this many times its processor time.
const WAITING_FACTOR: u32 = 4;

/// What a process takes upon itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confinement {
    /// Address space, of which memory is a part.
    pub memory_bytes: u64,
    /// Processor time of all threads together.
    pub cpu_s: u64,
    /// The same once the process has said that it has [read what is foreign](granted_time).
    pub cpu_later_s: u64,
    /// The largest file that it may write.
    pub file_bytes: u64,
    /// Files, and folders with all that is in them, that it may read.
    pub read: Vec<PathBuf>,
    /// Folders whose files' names it may read, and those of all folders in them.
    pub list: Vec<PathBuf>,
    /// Files and folders that it may change, too.
    pub write: Vec<PathBuf>,
}

/// This very program, as [`Confinement::run`] wants it: even if another one has taken its place on the disk.
pub fn this_program() -> io::Result<PathBuf> {
    let running = Path::new("/proc/self/exe");
    if cfg!(target_os = "linux") && running.exists() { Ok(running.to_owned()) } else { std::env::current_exe() }
}

/// How a confined process ended well: what it wrote to its standard output.
#[derive(Debug)]
pub struct Finished {
    /// Nothing if the caller had it inherited.
    pub stdout: Vec<u8>,
}

impl Confinement {
    /// Runs `program`, which must be this one, confined, on `arguments`. Blocks until it has ended.
    ///
    /// # Errors
    /// What became of it, unless it ended with exit code 0.
    pub fn run(&self, program: &Path, arguments: &[&OsStr]) -> Result<Finished, ConfinedError> {
        let mut child = self
            .command(program, arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(ConfinedError::Start)?;
        let stdout = child.stdout.take().map(|pipe| thread::spawn(move || tail(pipe)));
        let stderr = child.stderr.take().map(|pipe| thread::spawn(move || tail(pipe)));
        let ended = self.wait(&mut child)?;
        let (stdout, said) = (read(stdout), printable(&read(stderr)));
        match self.judge(ended, &said) {
            None => Ok(Finished { stdout }),
            Some(error) => Err(error),
        }
    }

    /// The same in front of the user: `show` gets each line that it says as it comes, and tells whether that was about
    /// how far it is rather than about what is wrong; an exit code of its own is the caller's to pass on.
    pub fn run_in_front(
        &self,
        program: &Path,
        arguments: &[&OsStr],
        show: impl FnMut(&[u8]) -> bool + Send + 'static,
    ) -> Result<ExitStatus, ConfinedError> {
        let mut command = self.command(program, arguments);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(ConfinedError::Start)?;
        let stderr = child.stderr.take().map(|pipe| thread::spawn(move || tail_of_lines(pipe, show)));
        let ended = self.wait(&mut child)?;
        let said = printable(&read(stderr));
        match (ended.status.code(), ended.was_too_long, is_out_of_memory(&said)) {
            (Some(0), false, _) | (Some(_), false, false) => Ok(ended.status),
            _ => Err(self.judge(ended, &said).unwrap_or(ConfinedError::Time { wall_s: self.wall().as_secs() })),
        }
    }

    /// Takes these limits upon this process, for good. Says what of it the kernel did not have.
    pub fn enter(&self) -> io::Result<Option<String>> {
        let limit = |resource, most| setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) });
        // One second between the signal that says why and the one that cannot be ignored.
        let hard_s = self.cpu_s.max(self.cpu_later_s).saturating_add(1);
        setrlimit(Resource::Cpu, Rlimit { current: Some(self.cpu_s), maximum: Some(hard_s) })?;
        limit(Resource::Fsize, self.file_bytes)?;
        limit(Resource::Nofile, OPEN_FILES_MAX)?;
        limit(Resource::Core, 0)?;
        let missing = self.shut_in()?;
        limit(Resource::As, self.memory_bytes)?;
        Ok(missing)
    }

    #[cfg(target_os = "linux")]
    fn shut_in(&self) -> io::Result<Option<String>> {
        use landlock::{
            ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
            RulesetError, RulesetStatus, Scope, path_beneath_rules,
        };
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        let abi = ABI::V6;
        let reading = AccessFs::ReadFile | AccessFs::ReadDir;
        let changing = AccessFs::from_all(abi) & !AccessFs::Execute;
        let restricted = || -> Result<_, RulesetError> {
            Ruleset::default()
                .set_compatibility(CompatLevel::BestEffort)
                .handle_access(AccessFs::from_all(abi))?
                .handle_access(AccessNet::from_all(abi))?
                .scope(Scope::from_all(abi))?
                .create()?
                // What tract and the compiler look up of the processor; on x86-64 they ask it itself.
                .add_rules(path_beneath_rules(["/proc/cpuinfo", "/sys/devices/system/cpu"], reading))?
                .add_rules(path_beneath_rules(&self.read, reading))?
                .add_rules(path_beneath_rules(&self.list, AccessFs::ReadDir))?
                .add_rules(path_beneath_rules(&self.write, changing))?
                .restrict_self()
        };
        Ok(match restricted().map_err(io::Error::other)?.ruleset {
            RulesetStatus::FullyEnforced => None,
            RulesetStatus::PartiallyEnforced => {
                Some("this kernel's Landlock is an old one: not all that it should forbid is forbidden".to_owned())
            }
            RulesetStatus::NotEnforced => {
                Some("this kernel has no Landlock: a confined process can open the files that its user can".to_owned())
            }
        })
    }

    #[cfg(not(target_os = "linux"))]
    fn shut_in(&self) -> io::Result<Option<String>> {
        Ok(Some("this system has no Landlock: a confined process can open the files that its user can".to_owned()))
    }

    fn command(&self, program: &Path, arguments: &[&OsStr]) -> Command {
        let told = serde_json::to_string(self).unwrap_or_default();
        let mut command = Command::new(program);
        // A group of its own: whatever it may have started ends with it.
        command.arg0(CONFINED_PROGRAM).arg(told).args(arguments).env_clear().process_group(0);
        command
    }

    fn wall(&self) -> Duration {
        Duration::from_secs(self.cpu_s.max(self.cpu_later_s)) * WAITING_FACTOR
    }

    /// Waits for the end, or ends it when it takes too long.
    fn wait(&self, child: &mut Child) -> Result<Ended, ConfinedError> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| ConfinedError::Start(io::Error::other("a process without a number")))?;
        let was_too_long = Arc::new(AtomicBool::new(false));
        let (over, told) = mpsc::channel::<()>();
        let (wall, said) = (self.wall(), Arc::clone(&was_too_long));
        let watch = thread::spawn(move || {
            if told.recv_timeout(wall) == Err(RecvTimeoutError::Timeout) {
                said.store(true, Ordering::Release);
                let _ = kill_process_group(pid, Signal::KILL);
            }
        });
        // Not reaped before the watch has ended: until then its number is nobody else's.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let seen = loop {
            match waitid(WaitId::Pid(pid), options) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other,
            }
        };
        drop(over);
        let _ = watch.join();
        let _ = kill_process_group(pid, Signal::KILL);
        seen.map_err(|e| ConfinedError::Start(e.into()))?;
        let status = child.wait().map_err(ConfinedError::Start)?;
        Ok(Ended { status, was_too_long: was_too_long.load(Ordering::Acquire) })
    }

    fn judge(&self, Ended { status, was_too_long }: Ended, said: &str) -> Option<ConfinedError> {
        let memory = ConfinedError::Memory { memory_bytes: self.memory_bytes };
        let is_memory = is_out_of_memory(said);
        Some(match (status.code(), status.signal()) {
            _ if was_too_long => ConfinedError::Time { wall_s: self.wall().as_secs() },
            (Some(0), _) => return None,
            (_, Some(signal)) if signal == Signal::XCPU.as_raw() || signal == Signal::KILL.as_raw() => {
                ConfinedError::Processor { cpu_s: self.cpu_s }
            }
            _ if is_memory => memory,
            (_, Some(signal)) => ConfinedError::Crashed { signal, said: said.to_owned() },
            (_, None) => ConfinedError::Refused(said.rsplit("error: ").next().unwrap_or(said).to_owned()),
        })
    }
}

/// In a confined process: reading is done, and the work that follows may take the time that it takes.
pub fn granted_time() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Cpu);
    // Where that fails, the process ends earlier.
    let _ = setrlimit(Resource::Cpu, Rlimit { current: maximum.map(|hard_s| hard_s.saturating_sub(1)), maximum });
}

struct Ended {
    status: ExitStatus,
    was_too_long: bool,
}

/// What the confined process is told, from its command line: its limits, and its work.
pub fn told(arguments: impl IntoIterator<Item = OsString>) -> Result<(Confinement, Vec<OsString>), String> {
    let mut arguments = arguments.into_iter();
    let limits = arguments.next().and_then(|limits| limits.into_string().ok());
    let limits =
        limits.ok_or("this is no program to start by hand: it is told its limits by the one that starts it")?;
    let confinement = serde_json::from_str(&limits).map_err(|e| format!("the limits: {e}"))?;
    Ok((confinement, arguments.collect()))
}

/// Whether these are the last words of who got no more memory, here or in what it calls.
fn is_out_of_memory(said: &str) -> bool {
    let words = ["memory allocation of", "Cannot allocate memory", "failed to allocate", "out of memory"];
    words.iter().any(|words| said.contains(words))
}

fn read(reader: Option<thread::JoinHandle<Vec<u8>>>) -> Vec<u8> {
    reader.and_then(|thread| thread.join().ok()).unwrap_or_default()
}

/// The last bytes that come; all is read, so that the writer is never held up.
fn tail(mut pipe: impl Read) -> Vec<u8> {
    let (mut kept, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = pipe.read(&mut piece) {
        keep_last(&mut kept, &piece[..read]);
    }
    kept
}

/// The same, line by line, without those that `show` takes. A line that does not end is shown in pieces.
fn tail_of_lines(pipe: impl Read, mut show: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let (mut kept, mut line, mut pipe) = (Vec::new(), Vec::new(), BufReader::new(pipe));
    while let Ok(1..) = pipe.by_ref().take(SAID_BYTES_MAX as u64).read_until(b'\n', &mut line) {
        if !show(&line) {
            keep_last(&mut kept, &line);
        }
        line.clear();
    }
    kept
}

fn keep_last(kept: &mut Vec<u8>, more: &[u8]) {
    kept.extend_from_slice(more);
    kept.drain(..kept.len().saturating_sub(SAID_BYTES_MAX));
}

/// A confined process's words as one line, without what would let them rewrite a log or a terminal.
fn printable(said: &[u8]) -> String {
    let harmless = |c: char| match c {
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => ' ',
        c if c.is_control() => ' ',
        c => c,
    };
    String::from_utf8_lossy(said).trim().chars().map(harmless).collect()
}

/// What became of a confined process.
#[derive(Debug, thiserror::Error)]
pub enum ConfinedError {
    /// There was none.
    #[error("a confined process did not start: {0}")]
    Start(io::Error),
    /// It wanted more memory than it may have.
    #[error("it needs more than {} MiB of memory; if it may have more, allow more (--confined-memory-mib)", memory_bytes >> 20)]
    Memory {
        /// Its limit.
        memory_bytes: u64,
    },
    /// It worked for longer than it may.
    #[error(
        "reading it takes more than {cpu_s} s of processor time; if it may take more, allow more (--confined-cpu-s)"
    )]
    Processor {
        /// Its limit.
        cpu_s: u64,
    },
    /// It did not end.
    #[error("it did not end within {wall_s} s")]
    Time {
        /// How long was waited.
        wall_s: u64,
    },
    /// It ended by a signal.
    #[error("it crashed what read it (signal {signal}): {said}")]
    Crashed {
        /// Which one.
        signal: i32,
        /// Its last words.
        said: String,
    },
    /// It said no, in good order.
    #[error("{0}")]
    Refused(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_shown_as_they_come_and_those_about_progress_are_not_kept() {
        let long = "x".repeat(3 * SAID_BYTES_MAX);
        let said = format!("a note\n#1 of 2\nerror: why\n{long}\n#2 of 2\nthe end");
        let mut shown = Vec::new();
        let kept = tail_of_lines(said.as_bytes(), |line| {
            shown.extend_from_slice(line);
            line.starts_with(b"#")
        });
        assert_eq!(shown, said.as_bytes());
        assert_eq!(kept.len(), SAID_BYTES_MAX);
        assert!(kept.ends_with(b"xx\nthe end"), "{}", String::from_utf8_lossy(&kept));
    }
}
