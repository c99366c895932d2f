//! A bundle's way to another host, over the link.

use bytes::Bytes;
use edgent_bundle::{Bundle, BundleError};
use edgent_link::{Client, LinkError, PIECE_BYTES, Version};

/// Gives a host the blobs of a bundle that it lacks, and has it serve the bundle. Returns once it is in force there.
pub async fn push(client: &Client, bundle: &Bundle) -> Result<Version, PushError> {
    let manifest = Bytes::copy_from_slice(bundle.sealed().bytes());
    let missing = client.offer(manifest.clone()).await?;
    for wanted in missing {
        let blobs = bundle.sealed().blobs();
        let blob = blobs.iter().find(|blob| blob.digest.0 == wanted.digest.0).ok_or(PushError::Wanted)?;
        let bytes = Bytes::from(bundle.blob(blob)?);
        for offset in (0..bytes.len()).step_by(PIECE_BYTES) {
            let piece = bytes.slice(offset..bytes.len().min(offset + PIECE_BYTES));
            client.put_blob(wanted.digest, offset as u64, piece).await?;
        }
    }
    Ok(client.install(manifest).await?)
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
