//! What a bundle looks like to tools that know OCI and not us.
//!
//! ```text
//! index of a bundle
//! ├─ manifest of a Wasm component     one for each distinct component, as `wkg` and `wash` pull them
//! ├─ manifest of a ModelPack          layer: the ONNX file that the segments were cut from
//! ├─ manifest, artifactType of ours   config: the bundle's own manifest; layers: evidence
//! └─ manifest of a signature          subject: the one before; layers: what is signed, and the signature
//! ```
//!
//! All of it but the signatures follows from the bundle's own manifest and its components, byte for byte: two hosts
//! that hold the same bundle hold the same documents. Signatures come and go without changing it. Tools that copy write an index anew, and some leave out what they do not
//! know, `artifactType` among it. So the index has but fields of OCI 1.0, in the order in which those tools write
//! them: then their copy is the same bytes. Nothing here does IO.

use crate::component::Interfaces;
use crate::{Blob, Digest, MANIFEST_BYTES_MAX, SealedManifest, Signature};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The media type of an index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The media type of an artifact's manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// What a bundle is: the artifact type of the manifest of ours, and of the entries in `index.json` that we wrote.
pub(crate) const BUNDLE: &str = "application/vnd.edgent.bundle.v1+json";
const BUNDLE_CONFIG: &str = "application/vnd.edgent.bundle.config.v1+json";
/// What each of a bundle's signatures is.
pub(crate) const SIGNATURE: &str = "application/vnd.edgent.signature.v1";
const STATEMENT: &str = "text/plain";
const MINISIG: &str = "application/vnd.edgent.minisig.v1";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const WASM: &str = "application/wasm";
const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
const MODEL: &str = "application/vnd.cncf.model.manifest.v1+json";
const MODEL_CONFIG: &str = "application/vnd.cncf.model.config.v1+json";
const MODEL_WEIGHTS: &str = "application/vnd.cncf.model.weight.v1.raw";
const MODEL_FILE: &str = "org.cncf.model.filepath";
/// On manifests of ours, in a bundle's index: [`BUNDLE`] or [`SIGNATURE`].
const KIND: &str = "vnd.edgent.type";
const TITLE: &str = "org.opencontainers.image.title";
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The largest index or manifest that is read: what registries take.
pub const DOCUMENT_BYTES_MAX: u64 = MANIFEST_BYTES_MAX;

/// Descriptors in one document.
const DESCRIPTORS_MAX: usize = 10_000;

/// The config of a Wasm artifact must have a time; a real one would make each build another bundle.
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// What names a blob, wherever one document refers to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// Its SHA-256.
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// What an artifact is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// What else is said of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What others wrote, kept when the document is written again.
    #[serde(flatten)]
    pub(crate) rest: Map<String, Value>,
}

impl Descriptor {
    /// Names a blob.
    pub fn of(media_type: &str, blob: &Blob) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: blob.digest,
            size: blob.bytes,
            artifact_type: None,
            annotations: BTreeMap::new(),
            rest: Map::new(),
        }
    }

    pub(crate) fn annotated(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }
}

/// A list of manifests, or of further indexes; also the layout's own `index.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    /// What it lists.
    pub manifests: Vec<Descriptor>,
    /// What else is said of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            media_type: Some(INDEX.to_owned()),
            manifests: Vec::new(),
            annotations: BTreeMap::new(),
            rest: Map::new(),
        }
    }
}

/// One artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Artifact {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    /// What it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// What says what it is made of; of a bundle, its own manifest.
    pub config: Descriptor,
    /// What it is made of.
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<Descriptor>,
}

const SCHEMA_VERSION: u32 = 2;

impl Index {
    /// Reads what somebody else wrote.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let index: Self = read(bytes)?;
        check(index.schema_version, index.manifests.len())?;
        Ok(index)
    }

    /// The manifest of ours in a bundle's index.
    pub fn bundle(&self) -> Result<&Descriptor, String> {
        let mut ours = self.of_kind(BUNDLE);
        match (ours.next(), ours.next()) {
            (Some(one), None) => Ok(one),
            (None, _) => Err(format!("no {BUNDLE} in it: this is not a bundle")),
            (Some(_), Some(_)) => Err(format!("more than one {BUNDLE} in it")),
        }
    }

    /// The manifests of its signatures.
    pub fn signatures(&self) -> impl Iterator<Item = &Descriptor> {
        self.of_kind(SIGNATURE)
    }

    fn of_kind(&self, wanted: &'static str) -> impl Iterator<Item = &Descriptor> {
        self.manifests.iter().filter(move |entry| entry.annotations.get(KIND).is_some_and(|kind| kind == wanted))
    }
}

impl Artifact {
    /// Reads what somebody else wrote.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let artifact: Self = read(bytes)?;
        check(artifact.schema_version, artifact.layers.len())?;
        Ok(artifact)
    }

    /// The same of the manifest of ours: that of a bundle.
    pub fn read_bundle(bytes: &[u8]) -> Result<Self, String> {
        let artifact = Self::read(bytes)?;
        if artifact.artifact_type.as_deref() != Some(BUNDLE) {
            return Err(format!("its artifactType is not {BUNDLE}"));
        }
        Ok(artifact)
    }

    /// The two layers of the manifest of a signature: what is signed, and the signature.
    pub fn signature(&self) -> Result<[&Descriptor; 2], String> {
        let [statement, signature] = &self.layers[..] else {
            return Err("it has not the two layers of a signature".to_owned());
        };
        Ok([statement, signature])
    }
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|e| e.to_string())
}

/// Keys in the order of the fields, or as [`json!`] is given them: sorted, since serde_json sorts or not as some
/// other crate's features have it.
pub(crate) fn write(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("text and numbers under textual keys are always JSON")
}

fn check(schema_version: u32, descriptors: usize) -> Result<(), String> {
    if schema_version != SCHEMA_VERSION {
        return Err(format!("schemaVersion {schema_version} is not {SCHEMA_VERSION}"));
    }
    if descriptors > DESCRIPTORS_MAX {
        return Err(format!("{descriptors} descriptors are over {DESCRIPTORS_MAX}"));
    }
    Ok(())
}

/// The documents that make blobs a bundle.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    /// Those that others name before those that name them: the index is the last.
    pub all: Vec<Document>,
}

/// One of them.
#[derive(Debug)]
pub struct Document {
    /// What it is; [`INDEX`] and [`MANIFEST`] are manifests to a registry, all else are blobs.
    pub media_type: String,
    /// What it is named by.
    pub blob: Blob,
    /// What it is made of.
    pub bytes: Vec<u8>,
}

impl Documents {
    /// Those of a bundle, and the descriptor of its index, which is the last. `interfaces` are those of each distinct component.
    pub fn of(sealed: &SealedManifest, interfaces: &[Interfaces], signatures: &[Signature]) -> (Self, Descriptor) {
        let mut documents = Self::default();
        let mut index = Index::default();
        for (component, interfaces) in sealed.components().iter().zip(interfaces) {
            let segment = sealed.manifest().segments.iter().find(|segment| segment.component == *component);
            let title = segment.map_or("", |segment| &segment.name);
            index.manifests.push(documents.component(component, interfaces).annotated(TITLE, title));
        }
        if let Some(source) = &sealed.manifest().evidence.source {
            index.manifests.push(documents.model(&sealed.manifest().name, source));
        }
        let bundle = documents.bundle(sealed);
        index.manifests.push(bundle.clone().annotated(KIND, BUNDLE));
        for signature in signatures {
            index.manifests.push(documents.signature(signature, &bundle).annotated(KIND, SIGNATURE));
        }
        let descriptor = documents.add(INDEX, write(&index));
        (documents, Descriptor { artifact_type: Some(BUNDLE.to_owned()), ..descriptor })
    }

    fn bundle(&mut self, sealed: &SealedManifest) -> Descriptor {
        let config = self.add(BUNDLE_CONFIG, sealed.bytes().to_vec());
        let evidence = &sealed.manifest().evidence;
        let files = [
            (&evidence.golden, "application/vnd.safetensors", "golden.safetensors"),
            (&evidence.samples, "image/png", "samples.png"),
            (&evidence.labels, "text/plain", "samples.labels"),
        ];
        let layer = |(blob, media_type, title): (&Option<Blob>, _, _)| {
            blob.as_ref().map(|blob| Descriptor::of(media_type, blob).annotated(TITLE, title))
        };
        let layers = files.into_iter().filter_map(layer).collect();
        self.artifact(Some(BUNDLE), config, layers, None)
    }

    /// As registries list what refers to a manifest.
    fn signature(&mut self, signature: &Signature, bundle: &Descriptor) -> Descriptor {
        let config = self.add(EMPTY, b"{}".to_vec());
        let layers = vec![
            self.add(STATEMENT, signature.statement().text().into_bytes()).annotated(TITLE, "statement.txt"),
            self.add(MINISIG, signature.text().as_bytes().to_vec()).annotated(TITLE, "statement.txt.minisig"),
        ];
        self.artifact(Some(SIGNATURE), config, layers, Some(bundle.clone()))
    }

    fn component(&mut self, component: &Blob, interfaces: &Interfaces) -> Descriptor {
        let config = json!({
            "architecture": "wasm",
            "component": { "exports": interfaces.exports, "imports": interfaces.imports },
            "created": EPOCH,
            "layerDigests": [component.digest],
            "os": "wasip2",
        });
        let config = self.add(WASM_CONFIG, write(&config));
        self.artifact(None, config, vec![Descriptor::of(WASM, component)], None)
    }

    fn model(&mut self, name: &str, source: &Blob) -> Descriptor {
        let config = json!({
            "config": { "format": "onnx" },
            "descriptor": { "name": name },
            "modelfs": { "diffIds": [source.digest], "type": "layers" },
        });
        let config = self.add(MODEL_CONFIG, write(&config));
        let layer = Descriptor::of(MODEL_WEIGHTS, source).annotated(MODEL_FILE, "model.onnx");
        self.artifact(Some(MODEL), config, vec![layer], None)
    }

    fn artifact(
        &mut self,
        artifact_type: Option<&str>,
        config: Descriptor,
        layers: Vec<Descriptor>,
        subject: Option<Descriptor>,
    ) -> Descriptor {
        let artifact = Artifact {
            schema_version: SCHEMA_VERSION,
            media_type: Some(MANIFEST.to_owned()),
            artifact_type: artifact_type.map(str::to_owned),
            config,
            layers,
            subject,
        };
        self.add(MANIFEST, write(&artifact))
    }

    fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Descriptor {
        let blob = Blob { digest: Digest::of(&bytes), bytes: bytes.len() as u64 };
        let descriptor = Descriptor::of(media_type, &blob);
        self.all.push(Document { media_type: media_type.to_owned(), blob, bytes });
        descriptor
    }
}
