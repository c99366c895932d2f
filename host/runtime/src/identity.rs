//! The folder with a host's key and with those whom it knows.
//!
//! ```toml
//! # peers.toml
//! format = 1
//!
//! [[peer]]
//! name = "edge"
//! # What `edgent id` prints there.
//! fingerprint = "sha256:2c26b46b…"
//! # "ask": have requests answered. "push": change versions. "read": counters, versions and what they consist of.
//! # "serve": be connected to and believed. What is not here is denied.
//! may = ["serve"]
//! # Which models it may ask about; all, if this is left out.
//! models = ["branchy-alexnet"]
//! ```
//!
//! `edgent pair` writes it, and people may: what they wrote stays as it is.

use edgent_link::{Credentials, Fingerprint, Identity, KnownPeer, Peers, Right};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;
use toml::Spanned;

/// The version of `peers.toml` that is read.
const FORMAT: u32 = 1;
const KEY_FILE: &str = "key.pk8";
const PEERS_FILE: &str = "peers.toml";
const KEY_BYTES_MAX: u64 = 4 << 10;
const PEERS_BYTES_MAX: u64 = 1 << 20;
/// Nobody but the owner.
const DIR_MODE: u32 = 0o700;
const OTHERS_MODE: u32 = 0o077;

/// A folder with a key and those whom its owner knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFolder(PathBuf);

/// What became of a peer that was to be known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is in the file now.
    Added,
    /// Its key was there, under this name; what it may do is as asked for now.
    Changed(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PeersFile {
    format: u32,
    #[serde(default)]
    peer: Vec<PeerEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerEntry {
    name: Spanned<String>,
    fingerprint: Spanned<String>,
    may: Spanned<Vec<Spanned<String>>>,
    models: Option<BTreeSet<String>>,
}

impl IdentityFolder {
    /// The folder at this path, which need not be there yet.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The key, made now if there is none, and those who are known.
    pub fn credentials(&self) -> Result<Credentials, IdentityFolderError> {
        Ok(Credentials::new(self.identity()?, self.peers()?))
    }

    /// The key, made now if there is none.
    pub fn identity(&self) -> Result<Identity, IdentityFolderError> {
        let path = self.0.join(KEY_FILE);
        let wrong = |why: &dyn fmt::Display| IdentityFolderError::new(&path, why);
        let read = match read_secret(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.make_key(&path).map_err(|e| wrong(&e))?;
                read_secret(&path)
            }
            read => read,
        };
        Identity::read(&read.map_err(|e| wrong(&e))?).map_err(|e| wrong(&e))
    }

    /// Whole or not at all; if somebody else is as far at the same time, the first one's key is both's.
    fn make_key(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(DIR_MODE).create(&self.0)?;
        let key = Identity::generate().map_err(io::Error::other)?;
        // Nobody else can read it, from its first moment.
        let mut file = NamedTempFile::new_in(&self.0)?;
        file.write_all(&key)?;
        file.as_file().sync_all()?;
        match file.persist_noclobber(path) {
            Ok(_) => File::open(&self.0)?.sync_all(),
            Err(lost) if lost.error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(lost) => Err(lost.error),
        }
    }

    /// Those who are known; nobody, if nobody ever was.
    pub fn peers(&self) -> Result<Peers, IdentityFolderError> {
        Ok(self.read()?.peers)
    }

    fn read(&self) -> Result<PeersText, IdentityFolderError> {
        let path = self.0.join(PEERS_FILE);
        let text = match read_at_most(File::open(&path), PEERS_BYTES_MAX) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(PeersText::default()),
            text => text.and_then(|bytes| String::from_utf8(bytes).map_err(io::Error::other)),
        };
        let text = text.map_err(|e| IdentityFolderError::new(&path, &e))?;
        PeersText::parse(text).map_err(|why| IdentityFolderError::new(&path, &why))
    }

    /// Knows a peer from now on; if its key is known already, what it may do changes, and nothing else.
    pub fn know(&self, peer: KnownPeer) -> Result<Known, IdentityFolderError> {
        // There must be a key before there are peers; and it is what two that write here at once wait at.
        self.identity()?;
        let path = self.0.join(PEERS_FILE);
        let wrong = |why: &dyn fmt::Display| IdentityFolderError::new(&path, why);
        let alone = File::open(self.0.join(KEY_FILE)).map_err(|e| wrong(&e))?;
        alone.lock().map_err(|e| wrong(&e))?;
        let PeersText { mut text, mut peers, entries } = self.read()?;
        let rights: Vec<String> = peer.may.iter().map(|right| format!("{:?}", right.name())).collect();
        let may = format!("[{}]", rights.join(", "));
        let known = match peers.find(&peer.fingerprint).map(|known| known.name.clone()) {
            Some(name) => {
                if peer.models.is_some() && peers.find(&peer.fingerprint).is_some_and(|p| p.models != peer.models) {
                    return Err(wrong(&format_args!("'{name}' is known already; change its `models` here")));
                }
                let place = entries.into_iter().find(|(known, _)| *known == peer.fingerprint);
                let (_, place) = place.ok_or_else(|| wrong(&"a key without a place"))?;
                text.replace_range(place, &may);
                Known::Changed(name)
            }
            None => {
                if text.is_empty() {
                    text = format!("# Those whom this host knows; `edgent pair` adds to it.\nformat = {FORMAT}\n");
                }
                let (name, fingerprint, models) = (peer.name.clone(), peer.fingerprint, peer.models.clone());
                peers.add(peer).map_err(|e| wrong(&e))?;
                text += &format!("\n[[peer]]\nname = {name:?}\nfingerprint = \"{fingerprint}\"\nmay = {may}\n");
                if let Some(models) = models {
                    text += &format!("models = {}\n", toml::Value::from(Vec::from_iter(models)));
                }
                Known::Added
            }
        };
        // What was just written is what will be read.
        PeersText::parse(text.clone()).map_err(|why| wrong(&why))?;
        self.replace(&path, text.as_bytes()).map_err(|e| wrong(&e))?;
        Ok(known)
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = NamedTempFile::new_in(&self.0)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(&self.0)?.sync_all()
    }
}

/// `peers.toml`, and where in it each peer's rights stand.
#[derive(Default)]
struct PeersText {
    text: String,
    peers: Peers,
    entries: Vec<(Fingerprint, Range<usize>)>,
}

impl PeersText {
    fn parse(text: String) -> Result<Self, String> {
        let file: PeersFile = toml::from_str(&text).map_err(|e| e.to_string())?;
        let at = |place: usize, why: &dyn fmt::Display| {
            format!("line {}: {why}", text[..place.min(text.len())].matches('\n').count() + 1)
        };
        if file.format != FORMAT {
            return Err(format!("format {} is not {FORMAT}, the one this program reads", file.format));
        }
        let (mut peers, mut entries) = (Peers::default(), Vec::new());
        for PeerEntry { name, fingerprint, may, models } in file.peer {
            let key: Fingerprint =
                fingerprint.get_ref().parse().map_err(|e| at(fingerprint.span().start, &format_args!("{e}")))?;
            entries.push((key, may.span()));
            let right = |given: Spanned<String>| {
                let names = Right::ALL.map(Right::name).join(", ");
                let unknown = || format!("there is no right {:?}; there are {names}", given.get_ref());
                Right::from_name(given.get_ref()).ok_or_else(|| at(given.span().start, &unknown()))
            };
            let may = may.into_inner().into_iter().map(right).collect::<Result<BTreeSet<_>, _>>()?;
            let place = name.span().start;
            let peer = KnownPeer { name: name.into_inner(), fingerprint: key, may, models };
            peers.add(peer).map_err(|e| at(place, &e))?;
        }
        Ok(Self { text, peers, entries })
    }
}

/// Reads a secret, unless others can, too.
fn read_secret(path: &Path) -> io::Result<Vec<u8>> {
    let mode = fs::metadata(path)?.mode();
    if mode & OTHERS_MODE != 0 {
        let why =
            format!("others can read this secret key (mode {:04o}): chmod 600 it, or make another", mode & 0o7777);
        return Err(io::Error::new(ErrorKind::PermissionDenied, why));
    }
    read_at_most(File::open(path), KEY_BYTES_MAX)
}

fn read_at_most(file: io::Result<File>, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("over {bytes_max} bytes")));
    }
    Ok(bytes)
}

/// What is wrong with an identity's folder.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct IdentityFolderError {
    path: PathBuf,
    why: String,
}

impl IdentityFolderError {
    fn new(path: &Path, why: &dyn fmt::Display) -> Self {
        Self { path: path.to_owned(), why: why.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn folder() -> (tempfile::TempDir, IdentityFolder) {
        let dir = tempfile::tempdir().unwrap();
        let folder = IdentityFolder::at(dir.path().join("not/there/yet"));
        (dir, folder)
    }

    fn somebody(name: &str, may: &[Right]) -> KnownPeer {
        let key = Identity::read(&Identity::generate().unwrap()).unwrap();
        let (may, fingerprint) = (may.iter().copied().collect(), key.fingerprint());
        KnownPeer { name: name.to_owned(), fingerprint, may, models: None }
    }

    #[test]
    fn a_key_is_made_once_and_for_its_owner_alone() {
        let (_dir, folder) = folder();
        // Several at the same first moment agree on one key.
        let made: BTreeSet<Fingerprint> = std::thread::scope(|scope| {
            let makers: Vec<_> = (0..8).map(|_| scope.spawn(|| folder.identity().unwrap().fingerprint())).collect();
            makers.into_iter().map(|maker| maker.join().unwrap()).collect()
        });
        assert_eq!(made.len(), 1);
        assert_eq!(folder.identity().unwrap().fingerprint(), *made.first().unwrap());
        let key = folder.path().join(KEY_FILE);
        assert_eq!(fs::metadata(&key).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::metadata(folder.path()).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");

        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        let told = folder.identity().unwrap_err().to_string();
        assert!(told.contains(KEY_FILE) && told.contains("chmod 600"), "{told}");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&key, b"no key").unwrap();
        let told = folder.identity().unwrap_err().to_string();
        assert!(told.contains("no Ed25519 key"), "{told}");
    }

    #[test]
    fn peers_are_added_and_their_rights_changed_and_the_rest_stays() {
        let (_dir, folder) = folder();
        assert_eq!(folder.peers().unwrap().iter().count(), 0);
        let (edge, tool) = (somebody("edge", &[Right::Serve]), somebody("tool", &[Right::Ask, Right::Read]));
        assert_eq!(folder.know(edge.clone()).unwrap(), Known::Added);
        let file = folder.path().join(PEERS_FILE);
        let mut text = fs::read_to_string(&file).unwrap();
        text += "# the one in the attic\n";
        fs::write(&file, &text).unwrap();
        let models = Some(BTreeSet::from(["a \"model\"".to_owned(), "vad".to_owned()]));
        let tool = KnownPeer { models, ..tool };
        assert_eq!(folder.know(tool.clone()).unwrap(), Known::Added);
        assert_eq!(folder.peers().unwrap().iter().cloned().collect::<Vec<_>>(), [edge.clone(), tool.clone()]);

        let more = KnownPeer { name: "other".to_owned(), may: Right::ALL.into(), ..edge.clone() };
        assert_eq!(folder.know(more.clone()).unwrap(), Known::Changed("edge".to_owned()));
        let peers = folder.peers().unwrap();
        assert_eq!(peers.find(&edge.fingerprint).unwrap().may, more.may);
        assert_eq!(**peers.find(&tool.fingerprint).unwrap(), tool);
        assert!(fs::read_to_string(&file).unwrap().contains("# the one in the attic"));
        let other_models = KnownPeer { models: Some(BTreeSet::new()), ..tool.clone() };
        let kept = folder.know(other_models).unwrap_err().to_string();
        assert!(kept.contains("change its `models`"), "{kept}");
        let taken = folder.know(somebody("edge", &[])).unwrap_err().to_string();
        assert!(taken.contains("the name 'edge' is another peer's"), "{taken}");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let key = somebody("x", &[]).fingerprint;
        let entry = |more: &str| format!("format = 1\n[[peer]]\nname = \"x\"\nfingerprint = \"{key}\"\n{more}");
        let cases = [
            ("format = 2\n".to_owned(), "format 2"),
            ("format = 1\npear = 1\n".to_owned(), "line 2"),
            ("format = 1\npear = 1\n".to_owned(), "pear"),
            (entry("may = []\ncolour = 3\n"), "colour"),
            (entry("may = []\ncolour = 3\n"), "line 6"),
            (
                entry("may = [\"ask\",\n\"rule\"]\n"),
                "line 6: there is no right \"rule\"; there are ask, push, read, serve",
            ),
            (entry("").replace("sha256", "md5"), "may"),
            (entry("may = []\n").replace("sha256", "md5"), "line 4: a fingerprint is"),
            (entry("may = []\n").replace("\"x\"", "\"x y\""), "line 3: \"x y\" is no name"),
            (entry("may = []\n") + &entry("may = []\n")["format = 1\n".len()..], "line 7: this key is 'x' already"),
        ];
        for (text, expected) in cases {
            let told = PeersText::parse(text.clone()).err().unwrap_or_else(|| panic!("taken: {text}"));
            assert!(told.contains(expected), "{told} does not say {expected}");
        }
    }
}
