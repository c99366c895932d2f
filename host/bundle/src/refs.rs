//! Names and versions, as annotations in a layout's `index.json`.
//!
//! A version is an entry named `NAME:VERSION`. What is current is one more entry, named `NAME`, that refers to the
//! same bundle and says which version was current before. Both are what `skopeo copy oci:DIR:NAME` expects, and
//! since they stand in one file, moving them is renaming that file.
//!
//! Other tools copy an entry alone. One named `NAME` without any version counts as the version after the newest.

use crate::oci::{self, Descriptor, Index, REF_NAME};
use crate::reference::Reference;
use crate::{Digest, KeyId};
use std::collections::BTreeSet;

/// On the entry of a current version: the version that was current before.
const PREVIOUS: &str = "vnd.edgent.previous";

/// On the index itself, with a key's id and a model's name behind it: the lowest version that may come into force.
/// It stands here so that it is raised in the step that puts the version in force which demands it.
const MINIMUM: &str = "vnd.edgent.minimum";

/// The entries of an index, understood.
#[derive(Debug, Default)]
pub(crate) struct Refs {
    index: Index,
}

impl Refs {
    pub fn new(index: Index) -> Self {
        let mut refs = Self { index };
        for name in refs.names() {
            if let Some(current) = refs.current(&name).cloned().filter(|_| refs.current_version(&name).is_none()) {
                let version = refs.newest(&name).saturating_add(1);
                refs.add(&name, version, current);
            }
        }
        refs
    }

    /// The entries as they stand there: nothing is made of what other tools copied.
    pub fn as_written(index: Index) -> Self {
        Self { index }
    }

    /// What to write.
    pub fn index(&self) -> &Index {
        &self.index
    }

    pub fn names(&self) -> BTreeSet<String> {
        let name = |(_, reference)| match reference {
            Reference::Current(name) | Reference::Version(name, _) => Some(name),
            Reference::Digest(_) => None,
        };
        self.entries().filter_map(name).collect()
    }

    /// All versions of all names.
    pub fn versions(&self) -> impl Iterator<Item = (String, u64, &Descriptor)> {
        self.entries().filter_map(|(entry, reference)| match reference {
            Reference::Version(name, version) => Some((name, version, entry)),
            _ => None,
        })
    }

    /// The newest version of a name; 0 if there is none.
    pub fn newest(&self, name: &str) -> u64 {
        self.versions().filter(|(of, ..)| of == name).map(|(_, version, _)| version).max().unwrap_or(0)
    }

    pub fn version(&self, name: &str, version: u64) -> Option<&Descriptor> {
        self.find(&Reference::Version(name.to_owned(), version))
    }

    pub fn current(&self, name: &str) -> Option<&Descriptor> {
        self.find(&Reference::Current(name.to_owned()))
    }

    pub fn current_version(&self, name: &str) -> Option<u64> {
        let current = self.current(name)?.digest;
        self.versions().filter(|(of, _, entry)| of == name && entry.digest == current).map(|(_, v, _)| v).max()
    }

    /// The version that was current before, if it is still there.
    pub fn previous(&self, name: &str) -> Option<u64> {
        let version = self.current(name)?.annotations.get(PREVIOUS)?.parse().ok()?;
        self.version(name, version).map(|_| version)
    }

    /// Every entry that may be a bundle, named or not.
    pub fn bundles(&self) -> impl Iterator<Item = &Descriptor> {
        self.index.manifests.iter().filter(|entry| may_be_bundle(entry))
    }

    /// Whether everything here is one bundle.
    pub fn is_one_bundle(&self) -> bool {
        let digests: BTreeSet<Digest> = self.index.manifests.iter().map(|entry| entry.digest).collect();
        digests.len() <= 1 && self.index.manifests.iter().all(may_be_bundle)
    }

    /// What there is, for messages.
    pub fn known(&self) -> String {
        let mut names: Vec<String> = self.entries().map(|(_, reference)| reference.to_string()).collect();
        names.sort();
        if names.is_empty() { "no bundle".to_owned() } else { names.join(", ") }
    }

    pub fn add(&mut self, name: &str, version: u64, bundle: Descriptor) {
        self.push(&Reference::Version(name.to_owned(), version), bundle, None);
    }

    /// Makes a bundle current without giving it a version.
    pub fn add_current(&mut self, name: &str, bundle: Descriptor) {
        self.push(&Reference::Current(name.to_owned()), bundle, None);
    }

    /// Moves `current`; whether there is such a version.
    pub fn point(&mut self, name: &str, version: u64) -> bool {
        let Some(bundle) = self.version(name, version).cloned() else {
            return false;
        };
        let before = self.current_version(name);
        let reference = Reference::Current(name.to_owned());
        self.index.manifests.retain(|entry| refers(entry).as_ref() != Some(&reference));
        self.push(&reference, bundle, before);
        true
    }

    pub fn remove(&mut self, name: &str, version: u64) {
        let reference = Reference::Version(name.to_owned(), version);
        self.index.manifests.retain(|entry| refers(entry).as_ref() != Some(&reference));
    }

    /// Has every entry that refers to one document refer to another, and say of it what it said.
    pub fn replace(&mut self, old: &Digest, new: &Descriptor) {
        for entry in self.index.manifests.iter_mut().filter(|entry| entry.digest == *old) {
            (entry.digest, entry.size) = (new.digest, new.size);
        }
    }

    /// The lowest version of a model that may come into force with a key's signature; 0 if nothing is known of it.
    pub fn minimum_version(&self, name: &str, key: KeyId) -> Result<u64, String> {
        let annotation = minimum(name, key);
        let Some(value) = self.index.annotations.get(&annotation) else { return Ok(0) };
        value.parse().map_err(|_| format!("the annotation {annotation} is not a number"))
    }

    pub fn raise_minimum_version(&mut self, name: &str, key: KeyId, to: u64) -> Result<(), String> {
        let raised = to.max(self.minimum_version(name, key)?);
        self.index.annotations.insert(minimum(name, key), raised.to_string());
        Ok(())
    }

    fn push(&mut self, reference: &Reference, mut bundle: Descriptor, previous: Option<u64>) {
        bundle.annotations.remove(PREVIOUS);
        let mut entry = bundle.annotated(REF_NAME, &reference.to_string());
        if let Some(previous) = previous {
            entry = entry.annotated(PREVIOUS, &previous.to_string());
        }
        self.index.manifests.push(entry);
    }

    fn find(&self, wanted: &Reference) -> Option<&Descriptor> {
        self.entries().find(|(_, reference)| reference == wanted).map(|(entry, _)| entry)
    }

    fn entries(&self) -> impl Iterator<Item = (&Descriptor, Reference)> {
        self.index.manifests.iter().filter_map(|entry| Some((entry, refers(entry)?)))
    }
}

fn minimum(name: &str, key: KeyId) -> String {
    format!("{MINIMUM}/{key}/{name}")
}

fn refers(entry: &Descriptor) -> Option<Reference> {
    let reference = entry.annotations.get(REF_NAME)?.parse().ok()?;
    (may_be_bundle(entry) && !matches!(reference, Reference::Digest(_))).then_some(reference)
}

/// Whether an entry was written here, and not by a tool that copied it here: those leave out the artifact type.
pub(crate) fn is_ours(entry: &Descriptor) -> bool {
    entry.artifact_type.as_deref() == Some(oci::BUNDLE)
}

fn may_be_bundle(entry: &Descriptor) -> bool {
    entry.media_type == oci::INDEX && entry.artifact_type.as_deref().is_none_or(|kind| kind == oci::BUNDLE)
}
