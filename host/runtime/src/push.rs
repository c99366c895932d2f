//! A bundle's way to another host, over the link.

use bytes::Bytes;
use edgent_bundle::{Bundle, BundleError, Signature};
use edgent_link::{Client, FaultKind, LinkError, PIECE_BYTES, Version};
use std::time::{Duration, Instant};

/// About how long a piece of a blob may hold up a request that comes behind it.
const PIECE_TIME: Duration = Duration::from_millis(10);

const PIECE_BYTES_MIN: usize = 4 << 10;

/// Tells a host who signed a bundle, gives it the blobs that it lacks, and has it serve the bundle. Blobs go in pieces as
/// large as the link takes in a few milliseconds, so that requests need not wait long behind one. Returns once it is in force there.
pub async fn push(client: &Client, bundle: &Bundle) -> Result<Version, PushError> {
    tell_signatures(client, bundle).await?;
    let manifest = Bytes::copy_from_slice(bundle.sealed().bytes());
    let missing = client.offer(manifest).await?;
    let mut piece_bytes = PIECE_BYTES_MIN;
    for wanted in missing {
        let blobs = bundle.sealed().blobs();
        let blob = blobs.iter().find(|blob| blob.digest.0 == wanted.digest.0).ok_or(PushError::Wanted)?;
        let (bytes, mut offset) = (Bytes::from(bundle.blob(blob)?), 0);
        while offset < bytes.len() {
            let piece = bytes.slice(offset..bytes.len().min(offset + piece_bytes));
            let since = Instant::now();
            offset += piece.len();
            client.put_blob(wanted.digest, (offset - piece.len()) as u64, piece).await?;
            let took = since.elapsed();
            let fitting = if took < PIECE_TIME { piece_bytes * 2 } else { piece_bytes / 2 };
            piece_bytes = fitting.clamp(PIECE_BYTES_MIN, PIECE_BYTES);
            // As long again, the link is left to requests.
            tokio::time::sleep(took.min(PIECE_TIME)).await;
        }
    }
    Ok(client.install(edgent_link::Digest(bundle.digest().0)).await?)
}

/// Tells a host who signed the bundle that it is offered next.
pub async fn tell_signatures(client: &Client, bundle: &Bundle) -> Result<(), LinkError> {
    let signature = |signature: &Signature| edgent_link::Signature {
        statement: Bytes::from(signature.statement().text()),
        minisig: Bytes::copy_from_slice(signature.text().as_bytes()),
    };
    let signatures: Vec<_> = bundle.signatures().iter().map(signature).collect();
    if !signatures.is_empty() {
        match client.sign(edgent_link::Digest(bundle.digest().0), signatures).await {
            // It knows of no signatures, or takes no bundles, which it says next.
            Err(LinkError::Fault(said)) if said.kind == FaultKind::Unsupported => {}
            told => told?,
        }
    }
    Ok(())
}

/// Why a bundle did not get to another host, or is not served there.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The bundle cannot be read here.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The link failed, or the host said no.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The host asked for what is not part of the bundle.
    #[error("the host asked for a blob that is not part of the bundle")]
    Wanted,
}
