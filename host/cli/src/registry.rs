//! `edgent registry`: bundles in an OCI registry, where other people's tools find them, too.
//!
//! A bundle goes there as the index that it is on disk, under a tag. Nothing that comes back is believed: every
//! document and blob must have the digest and the size by which it was named, and be no larger than a bundle's may be.

use crate::output::{BadInput, Output};
use anyhow::{Context, Result, anyhow, ensure};
use edgent_bundle::oci::{Artifact, DOCUMENT_BYTES_MAX, Descriptor, INDEX, Index, MANIFEST};
use edgent_bundle::{
    BLOB_BYTES_MAX, Blob, Bundle, Digest, Draft, MANIFEST_BYTES_MAX, SIGNATURE_BYTES_MAX, SIGNATURES_MAX,
    STATEMENT_BYTES_MAX, SealedManifest, Signature, Store,
};
use futures::TryStreamExt;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use serde::Serialize;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How long a registry may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(30);

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Give a registry a bundle, with its signatures.
    Push(Push),
    /// Take a bundle from a registry, with its signatures.
    Pull(Pull),
}

#[derive(clap::Args)]
pub(crate) struct Push {
    /// The bundle's folder.
    bundle: PathBuf,
    #[command(flatten)]
    place: Place,
}

#[derive(clap::Args)]
pub(crate) struct Pull {
    #[command(flatten)]
    place: Place,
    /// Folder to write; an earlier bundle there is replaced.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(clap::Args)]
struct Place {
    /// As in `registry.example:5000/models/alex:2`, or `…/alex@sha256:…` of what was pushed.
    #[arg(value_name = "REFERENCE", value_parser = reference)]
    reference: Reference,
    /// Who to be at the registry; nobody in particular without it.
    #[arg(long, value_name = "NAME", requires = "password_file")]
    user: Option<String>,
    /// Whose first line is the password, or the token.
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// Without TLS, as a registry on this machine is asked anyway.
    #[arg(long)]
    plain_http: bool,
}

#[derive(Serialize)]
struct Report {
    model: String,
    /// Of the bundle, as hosts name it.
    digest: String,
    /// Of what the registry has of it.
    index: String,
    blobs: usize,
    signatures: usize,
    bytes: u64,
}

fn reference(text: &str) -> Result<Reference, String> {
    // Without a registry, it would be taken for one of Docker's.
    let (registry, _) = text.split_once('/').unwrap_or_default();
    if !(registry.contains(['.', ':']) || registry == "localhost") {
        return Err("name the registry, too, as in registry.example/models/alex:2".to_owned());
    }
    text.parse().map_err(|e| format!("{e}"))
}

pub(crate) fn run(command: &Command, output: &Output) -> Result<()> {
    // Who has installed one already has a good reason.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(async {
        match command {
            Command::Push(push) => push.run(output).await,
            Command::Pull(pull) => pull.run(output).await,
        }
    })?;
    output.line(format_args!(
        "{} {}  {} blobs, {} signatures, {} bytes; {}",
        report.model, report.digest, report.blobs, report.signatures, report.bytes, report.index
    ));
    output.result(&report)
}

impl Push {
    async fn run(&self, output: &Output) -> Result<Report> {
        let bundle = Bundle::open(&self.bundle).map_err(BadInput::error)?;
        let registry = self.place.open(RegistryOperation::Push).await?;
        let (blobs, documents) = (bundle.sealed().blobs(), bundle.documents()?);
        let mut bytes = 0;
        for blob in &blobs {
            registry.put_blob(blob, bundle.blob(blob)?, output).await?;
            bytes += blob.bytes;
        }
        let (index, others) = documents.split_last().context("a bundle has an index")?;
        for document in others {
            bytes += document.blob.bytes;
            if document.media_type == MANIFEST {
                registry.put_manifest(Some(&document.blob.digest), &document.media_type, &document.bytes).await?;
            } else {
                registry.put_blob(&document.blob, document.bytes.clone(), output).await?;
            }
        }
        // Last, so that whoever finds it finds everything.
        registry.put_manifest(None, INDEX, &index.bytes).await?;
        Ok(Report::of(&bundle, index.blob.digest, blobs.len(), bytes + index.blob.bytes))
    }
}

impl Pull {
    async fn run(&self, output: &Output) -> Result<Report> {
        let registry = self.place.open(RegistryOperation::Pull).await?;
        let bytes = registry.manifest(None, INDEX).await?;
        let found = Digest::of(&bytes);
        if let Some(asked) = registry.reference.digest() {
            ensure!(asked == found.to_string(), "the registry gave {found} for {asked}");
        }
        let malformed = |why| anyhow!("{}: {why}", registry.reference);
        let index = Index::read(&bytes).map_err(malformed)?;
        let ours = registry.document(index.bundle().map_err(malformed)?).await?;
        let ours = Artifact::read_bundle(&ours).map_err(malformed)?;
        let manifest = registry.blob(&ours.config, MANIFEST_BYTES_MAX).await?;
        let sealed = SealedManifest::read(manifest).map_err(|e| malformed(e.to_string()))?;
        ensure!(index.signatures().count() <= SIGNATURES_MAX, "it has over {SIGNATURES_MAX} signatures");
        let mut signatures = Vec::new();
        for entry in index.signatures() {
            let artifact = Artifact::read(&registry.document(entry).await?).map_err(malformed)?;
            let [statement, signature] = artifact.signature().map_err(malformed)?;
            let statement = registry.blob(statement, STATEMENT_BYTES_MAX as u64).await?;
            let signature = registry.blob(signature, SIGNATURE_BYTES_MAX as u64).await?;
            signatures.push(Signature::read(&statement, &signature)?);
        }
        let (mut draft, blobs, mut bytes) = (Draft::default(), sealed.blobs(), sealed.bytes().len() as u64);
        for blob in &blobs {
            output.progress(format_args!("{} of {} bytes", blob.digest.short(), blob.bytes));
            let descriptor = Descriptor::of("application/octet-stream", blob);
            draft.add(registry.blob(&descriptor, BLOB_BYTES_MAX).await?);
            bytes += blob.bytes;
        }
        draft.write_sealed(&self.out, &sealed)?;
        let store = Store::at(&self.out);
        let writer = store.lock()?;
        signatures.iter().try_for_each(|signature| writer.sign(&sealed.digest(), signature))?;
        drop(writer);
        Ok(Report::of(&Bundle::open(&self.out)?, found, blobs.len(), bytes))
    }
}

impl Report {
    fn of(bundle: &Bundle, index: Digest, blobs: usize, bytes: u64) -> Self {
        Self {
            model: bundle.manifest().name.clone(),
            digest: bundle.digest().to_string(),
            index: index.to_string(),
            blobs,
            signatures: bundle.signatures().len(),
            bytes,
        }
    }
}

impl Place {
    async fn open(&self, operation: RegistryOperation) -> Result<Registry> {
        let auth = match self.user.as_ref().zip(self.password_file.as_ref()) {
            None => RegistryAuth::Anonymous,
            Some((user, path)) => {
                let text =
                    std::fs::read_to_string(path).map_err(|e| BadInput::error(format!("{}: {e}", path.display())))?;
                RegistryAuth::Basic(user.clone(), text.lines().next().unwrap_or_default().to_owned())
            }
        };
        let plain = self.plain_http || is_this_machine(self.reference.registry());
        let client = Client::new(ClientConfig {
            protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
            read_timeout: Some(SILENCE_MAX),
            connect_timeout: Some(SILENCE_MAX),
            user_agent: concat!("edgent/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        });
        let registry = Registry { client, reference: self.reference.clone(), auth };
        registry.client.auth(&registry.reference, &registry.auth, operation).await.with_context(|| registry.said())?;
        Ok(registry)
    }
}

/// Whether an address is this machine's alone.
fn is_this_machine(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    host == "localhost" || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// A repository of a registry, and the tag or digest in it that is meant.
struct Registry {
    client: Client,
    reference: Reference,
    auth: RegistryAuth,
}

impl Registry {
    async fn put_blob(&self, blob: &Blob, bytes: Vec<u8>, output: &Output) -> Result<()> {
        let digest = blob.digest.to_string();
        if !self.client.blob_exists(&self.reference, &digest).await.with_context(|| self.said())? {
            output.progress(format_args!("{} of {} bytes", blob.digest.short(), blob.bytes));
            self.client.push_blob(&self.reference, bytes, &digest).await.with_context(|| self.said())?;
        }
        Ok(())
    }

    /// Under its digest, or under the tag that is meant.
    async fn put_manifest(&self, digest: Option<&Digest>, media_type: &str, bytes: &[u8]) -> Result<()> {
        let reference = self.named(digest);
        self.client
            .push_manifest_raw(&reference, bytes.to_vec(), media_type.parse()?)
            .await
            .with_context(|| self.said())
            .map(drop)
    }

    /// An index or an artifact's manifest that another document names.
    async fn document(&self, named: &Descriptor) -> Result<Vec<u8>> {
        ensure!(
            named.size <= DOCUMENT_BYTES_MAX,
            "{} of {} bytes is over {DOCUMENT_BYTES_MAX}",
            named.digest,
            named.size
        );
        let bytes = self.manifest(Some(&named.digest), MANIFEST).await?;
        self.is_what_was_named(named, &bytes)?;
        Ok(bytes)
    }

    async fn manifest(&self, digest: Option<&Digest>, media_type: &str) -> Result<Vec<u8>> {
        let pulled = self.client.pull_manifest_raw(&self.named(digest), &self.auth, &[media_type]).await;
        let (bytes, _) = pulled.with_context(|| self.said())?;
        ensure!(
            bytes.len() as u64 <= DOCUMENT_BYTES_MAX,
            "{}: a document over {DOCUMENT_BYTES_MAX} bytes",
            self.reference
        );
        Ok(bytes.into())
    }

    async fn blob(&self, named: &Descriptor, bytes_max: u64) -> Result<Vec<u8>> {
        ensure!(named.size <= bytes_max, "{} of {} bytes is over {bytes_max}", named.digest, named.size);
        let descriptor =
            OciDescriptor { digest: named.digest.to_string(), size: named.size as i64, ..OciDescriptor::default() };
        let pulled = self.client.pull_blob_stream(&self.reference, &descriptor).await;
        let mut stream = pulled.with_context(|| self.said())?.stream;
        let mut bytes = Vec::new();
        while let Some(piece) = stream.try_next().await.with_context(|| self.said())? {
            ensure!(
                (bytes.len() + piece.len()) as u64 <= named.size,
                "{} goes on over {} bytes",
                named.digest,
                named.size
            );
            bytes.extend_from_slice(&piece);
        }
        self.is_what_was_named(named, &bytes)?;
        Ok(bytes)
    }

    fn is_what_was_named(&self, named: &Descriptor, bytes: &[u8]) -> Result<()> {
        let found = Digest::of(bytes);
        ensure!(
            found == named.digest && bytes.len() as u64 == named.size,
            "{}: the registry gave {found} of {} bytes for {} of {}",
            self.reference,
            bytes.len(),
            named.digest,
            named.size
        );
        Ok(())
    }

    fn named(&self, digest: Option<&Digest>) -> Reference {
        digest.map_or_else(|| self.reference.clone(), |digest| self.reference.clone_with_digest(digest.to_string()))
    }

    fn said(&self) -> String {
        format!("the registry was asked for {}", self.reference)
    }
}
