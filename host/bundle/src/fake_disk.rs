//! A disk for tests: it remembers every operation, so that what a power cut may leave can be rebuilt, and it fails
//! when it is told to.

use crate::disk::{Disk, DiskFile, Lock};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// What was done to the disk. Files are numbered in the order in which they were made: names come and go.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    CreateDir(PathBuf),
    Create(PathBuf, usize),
    Write(usize, Vec<u8>),
    SyncFile(usize),
    Rename(PathBuf, PathBuf, usize),
    Remove(PathBuf),
    SyncDir(PathBuf),
}

impl Op {
    /// The folder whose names it changes.
    fn folder(&self) -> Option<&Path> {
        match self {
            Self::CreateDir(path) | Self::Create(path, _) | Self::Rename(_, path, _) | Self::Remove(path) => {
                path.parent()
            }
            Self::Write(..) | Self::SyncFile(_) | Self::SyncDir(_) => None,
        }
    }
}

/// What a power cut leaves of bytes that were not synced.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bytes {
    All,
    None,
    Half,
    Garbage,
}

/// Which changes of names that were not synced outlive a power cut; numbered in their order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Names {
    First(usize),
    AllBut(usize),
    Only(usize),
}

impl Names {
    fn keep(self, index: usize) -> bool {
        match self {
            Self::First(count) => index < count,
            Self::AllBut(one) => index != one,
            Self::Only(one) => index == one,
        }
    }
}

/// When, and how, the disk fails.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    /// Operations before the first failure.
    pub after: usize,
    /// Whether every later operation that writes fails, too.
    pub lasts: bool,
    /// The error number.
    pub errno: i32,
}

#[derive(Clone, Debug, Default)]
struct State {
    names: BTreeMap<PathBuf, Option<usize>>,
    files: Vec<Vec<u8>>,
    log: Vec<Op>,
    fault: Option<Fault>,
    asked: usize,
    failed: Vec<String>,
}

/// Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeDisk(Arc<Mutex<State>>);

impl FakeDisk {
    pub fn log(&self) -> Vec<Op> {
        self.0.lock().unwrap().log.clone()
    }

    /// Another disk in the same state, which fails as told.
    pub fn copy(&self, fault: Option<Fault>) -> Self {
        let state = self.0.lock().unwrap().clone();
        Self(Arc::new(Mutex::new(State { fault, asked: 0, failed: Vec::new(), ..state })))
    }

    /// The operations that were made to fail.
    pub fn failed(&self) -> Vec<String> {
        self.0.lock().unwrap().failed.clone()
    }

    /// Changes a file behind everybody's back.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.0.lock().unwrap();
        let file = state.names[path].unwrap();
        change(&mut state.files[file]);
    }

    pub fn files(&self) -> Vec<(PathBuf, usize)> {
        let state = self.0.lock().unwrap();
        state.names.iter().filter_map(|(path, file)| Some((path.clone(), state.files[(*file)?].len()))).collect()
    }

    /// How many changes of names in `log` are not synced.
    pub fn loose_names(log: &[Op]) -> usize {
        (0..log.len()).filter(|at| is_loose(log, *at)).count()
    }

    /// What a power cut after `log` leaves.
    pub fn after_power_cut(log: &[Op], bytes: Bytes, names: Names) -> Self {
        let mut state = State::default();
        let mut loose = 0;
        let mut unsynced: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        for (at, op) in log.iter().enumerate() {
            if op.folder().is_some() && is_loose(log, at) {
                loose += 1;
                if !names.keep(loose - 1) {
                    if let Op::Create(..) = op {
                        state.files.push(Vec::new());
                    }
                    continue;
                }
            }
            match op {
                Op::Write(file, written) => unsynced.entry(*file).or_default().extend(written),
                Op::SyncFile(file) => {
                    let written = unsynced.remove(file).unwrap_or_default();
                    state.files[*file].extend(written);
                }
                other => state.apply(other),
            }
        }
        for (file, written) in unsynced {
            let left = match bytes {
                Bytes::All => written,
                Bytes::None => Vec::new(),
                Bytes::Half => written[..written.len() / 2].to_vec(),
                Bytes::Garbage => vec![0xa5; written.len()],
            };
            state.files[file].extend(left);
        }
        // What lies in a folder whose own name is lost is lost with it.
        let all: BTreeSet<PathBuf> = state.names.keys().cloned().collect();
        let has_folder = |path: &Path| path.ancestors().skip(1).all(|dir| dir == Path::new("/") || all.contains(dir));
        state.names.retain(|path, _| has_folder(path));
        Self(Arc::new(Mutex::new(state)))
    }
}

/// Whether nobody synced the folder after the operation at `at` had changed a name in it.
fn is_loose(log: &[Op], at: usize) -> bool {
    let Some(folder) = log[at].folder() else { return false };
    !log[at..].iter().any(|later| matches!(later, Op::SyncDir(dir) if dir == folder))
}

impl State {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::CreateDir(path) => drop(self.names.insert(path.clone(), None)),
            Op::Create(path, file) => {
                assert_eq!(self.files.len(), *file);
                self.files.push(Vec::new());
                self.names.insert(path.clone(), Some(*file));
            }
            Op::Write(file, bytes) => self.files[*file].extend(bytes),
            Op::Rename(from, to, file) => {
                self.names.remove(from);
                self.names.insert(to.clone(), Some(*file));
            }
            Op::Remove(path) => drop(self.names.remove(path)),
            Op::SyncFile(_) | Op::SyncDir(_) => {}
        }
    }

    fn file(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().flatten().ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn is_dir(&self, dir: &Path) -> bool {
        dir == Path::new("/") || self.names.get(dir) == Some(&None)
    }

    fn needs_dir(&self, dir: Option<&Path>) -> io::Result<()> {
        if dir.is_some_and(|dir| self.is_dir(dir)) { Ok(()) } else { Err(ErrorKind::NotFound.into()) }
    }

    /// Counts an operation, and fails it if it is its turn.
    fn ask(&mut self, what: impl FnOnce() -> String, writes: bool) -> io::Result<()> {
        let turn = self.asked;
        self.asked += 1;
        match self.fault {
            Some(fault) if turn == fault.after || fault.lasts && writes && turn > fault.after => {
                self.failed.push(what());
                Err(io::Error::from_raw_os_error(fault.errno))
            }
            _ => Ok(()),
        }
    }

    fn record(&mut self, op: Op) {
        self.apply(&op);
        self.log.push(op);
    }
}

impl Disk for FakeDisk {
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut state = self.0.lock().unwrap();
        state.ask(|| format!("read {}", path.display()), false)?;
        let file = &state.files[state.file(path)?];
        let limit = usize::try_from(limit.saturating_add(1)).unwrap_or(usize::MAX);
        Ok(file[..file.len().min(limit)].to_vec())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let mut state = self.0.lock().unwrap();
        state.ask(|| format!("list {}", dir.display()), false)?;
        state.needs_dir(Some(dir))?;
        let inside = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| path.file_name()).map(OsString::from).collect())
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.ask(|| format!("create_dir {}", dir.display()), true)?;
        state.needs_dir(dir.parent())?;
        if !state.is_dir(dir) {
            state.record(Op::CreateDir(dir.to_owned()));
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.0.lock().unwrap();
        state.ask(|| format!("create {}", path.display()), true)?;
        state.needs_dir(path.parent())?;
        let file = state.files.len();
        state.record(Op::Create(path.to_owned(), file));
        Ok(Box::new(FakeFile { disk: self.clone(), path: path.to_owned(), file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.ask(|| format!("rename {}", to.display()), true)?;
        let file = state.file(from)?;
        state.record(Op::Rename(from.to_owned(), to.to_owned(), file));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.ask(|| format!("remove {}", path.display()), true)?;
        state.file(path)?;
        state.record(Op::Remove(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.ask(|| format!("sync_dir {}", dir.display()), true)?;
        state.record(Op::SyncDir(dir.to_owned()));
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        self.0.lock().unwrap().ask(|| format!("lock {}", path.display()), true)?;
        Ok(Box::new(NoLock))
    }
}

struct FakeFile {
    disk: FakeDisk,
    path: PathBuf,
    file: usize,
}

impl DiskFile for FakeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.0.lock().unwrap();
        if let Err(e) = state.ask(|| format!("write {}", self.path.display()), true) {
            // A disk that becomes full takes the first part.
            state.record(Op::Write(self.file, bytes[..bytes.len() / 2].to_vec()));
            return Err(e);
        }
        // In two parts, so that the power may go between them.
        let (first, second) = bytes.split_at(bytes.len() / 2);
        state.record(Op::Write(self.file, first.to_vec()));
        state.record(Op::Write(self.file, second.to_vec()));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.0.lock().unwrap();
        state.ask(|| format!("sync {}", self.path.display()), true)?;
        state.record(Op::SyncFile(self.file));
        Ok(())
    }
}

#[derive(Debug)]
struct NoLock;

impl Lock for NoLock {}
