//! A bundle's way to another host, over the link.

use bytes::Bytes;
use edgent_bundle::{Bundle, BundleError, Signature};
use edgent_link::{BlobName, Client, Digest, FaultKind, LinkError, PIECE_BYTES, Trial, Version};
use std::time::Duration;
use tokio::time::Instant;

/// About how long a piece of a blob may hold up a request that comes behind it.
const HOLDS_UP: Duration = Duration::from_micros(1_500);

const PIECE_BYTES_MIN: usize = 1 << 10;

/// A piece that took longer met something else than its own bytes; nobody waits for as long after it.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// Gives a host a bundle, and has it serve it: after a trial, if it is to have one. Returns once it is in force there.
pub async fn push(client: &Client, bundle: &Bundle, trial: Option<Trial>) -> Result<Version, PushError> {
    give_to(client, bundle, |_| ()).await?;
    Ok(client.install(Digest(bundle.digest().0), trial).await?)
}

/// Gives a host a bundle, and has it serve it to who asks for it by its digest, whatever is in force there.
pub async fn make_ready(client: &Client, bundle: &Bundle) -> Result<Version, PushError> {
    give_to(client, bundle, |_| ()).await?;
    Ok(client.prepare(Digest(bundle.digest().0)).await?)
}

/// So much of a bundle that a host lacks is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// Of its blobs' bytes.
    pub bytes: u64,
    /// What it lacked.
    pub total_bytes: u64,
}

/// Tells who signed a bundle, and gives its manifest and the blobs that the host lacks, all in pieces; after each of
/// those, `tell` hears of it. The host does not serve it for that.
pub async fn give_to(client: &Client, bundle: &Bundle, mut tell: impl FnMut(Given)) -> Result<(), PushError> {
    tell_signatures(client, bundle).await?;
    let mut pieces = Pieces::new();
    let missing = offer(client, bundle, &mut pieces).await?;
    let total_bytes = missing.iter().map(|blob| blob.bytes).fold(0, u64::saturating_add);
    let mut given = Given { bytes: 0, total_bytes };
    for wanted in missing {
        give(client, bundle, &wanted, &mut pieces, |piece_bytes| {
            given.bytes += piece_bytes;
            tell(given);
        })
        .await?;
    }
    Ok(())
}

/// Shows a bundle's manifest; gives the blobs that the host lacks.
async fn offer(client: &Client, bundle: &Bundle, pieces: &mut Pieces) -> Result<Vec<BlobName>, LinkError> {
    let (digest, manifest) = (Digest(bundle.digest().0), Bytes::copy_from_slice(bundle.sealed().bytes()));
    let (total, mut offset) = (manifest.len(), 0);
    loop {
        let piece = manifest.slice(offset..total.min(offset + pieces.bytes));
        let (at, since) = (offset as u64, Instant::now());
        offset += piece.len();
        let missing = client.offer_piece(digest, total as u64, at, piece).await?;
        if offset == total {
            return Ok(missing);
        }
        pieces.took(since.elapsed()).await;
    }
}

async fn give(
    client: &Client,
    bundle: &Bundle,
    wanted: &BlobName,
    pieces: &mut Pieces,
    mut tell: impl FnMut(u64),
) -> Result<(), PushError> {
    let blobs = bundle.sealed().blobs();
    let blob = blobs.iter().find(|blob| blob.digest.0 == wanted.digest.0).ok_or(PushError::Wanted)?;
    let (bytes, mut offset) = (Bytes::from(bundle.blob(blob)?), 0);
    while offset < bytes.len() {
        let piece = bytes.slice(offset..bytes.len().min(offset + pieces.bytes));
        let since = Instant::now();
        offset += piece.len();
        let piece_bytes = piece.len();
        client.put_blob(wanted.digest, (offset - piece_bytes) as u64, piece).await?;
        tell(piece_bytes as u64);
        pieces.took(since.elapsed()).await;
    }
    Ok(())
}

/// How large the pieces of a blob are: so that each holds the link for a moment only, and leaves it to requests as long
/// again. What a piece takes longer than the fastest one is what it holds the link for; the rest is the way there and
/// back, on which others do not wait for it.
#[derive(Debug)]
pub(crate) struct Pieces {
    bytes: usize,
    fastest: Duration,
}

impl Pieces {
    pub(crate) fn new() -> Self {
        Self { bytes: PIECE_BYTES_MIN, fastest: Duration::MAX }
    }

    /// The next one of a blob or a manifest that a host has; empty behind its end.
    pub(crate) async fn next_of(&mut self, client: &Client, digest: Digest, offset: u64) -> Result<Bytes, LinkError> {
        let since = Instant::now();
        let piece = client.blob(digest, offset, self.bytes as u32).await?;
        self.took(since.elapsed()).await;
        Ok(piece)
    }

    /// One took so long; pauses for the requests that have come meanwhile.
    async fn took(&mut self, time: Duration) {
        let held = self.fit(time);
        if !held.is_zero() {
            tokio::time::sleep(held.min(PAUSE_MAX)).await;
        }
    }

    /// Makes the next one as large as fits; gives how long this one held the link.
    fn fit(&mut self, time: Duration) -> Duration {
        self.fastest = self.fastest.min(time);
        let held = time.saturating_sub(self.fastest);
        if held < HOLDS_UP / 3 {
            self.bytes *= 2;
        } else if held > HOLDS_UP {
            self.bytes /= 2;
        }
        self.bytes = self.bytes.clamp(PIECE_BYTES_MIN, PIECE_BYTES);
        held
    }
}

/// Tells a host who signed the bundle that it is offered next.
pub async fn tell_signatures(client: &Client, bundle: &Bundle) -> Result<(), LinkError> {
    let signature = |signature: &Signature| edgent_link::Signature {
        statement: Bytes::from(signature.statement().text()),
        minisig: Bytes::copy_from_slice(signature.text().as_bytes()),
    };
    let signatures: Vec<_> = bundle.signatures().iter().map(signature).collect();
    if !signatures.is_empty() {
        match client.sign(Digest(bundle.digest().0), signatures).await {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_hold_the_link_for_a_moment_only_at_every_rate_and_delay() {
        for rate_bps in [20e3, 1e6, 20e6, 1e9, 1e11] {
            for delay_us in [50.0, 4_000.0, 300_000.0] {
                let mut pieces = Pieces::new();
                for _ in 0..100 {
                    let on_link_us = pieces.bytes as f64 * 8e6 / rate_bps;
                    pieces.fit(Duration::from_secs_f64((delay_us + on_link_us) / 1e6));
                }
                let held_us = pieces.bytes as f64 * 8e6 / rate_bps;
                let is_short = held_us <= 2.0 * HOLDS_UP.as_secs_f64() * 1e6 || pieces.bytes == PIECE_BYTES_MIN;
                let is_used = held_us * 8.0 > HOLDS_UP.as_secs_f64() * 1e6 || pieces.bytes == PIECE_BYTES;
                assert!(is_short && is_used, "{} bytes hold {rate_bps} bit/s for {held_us} us", pieces.bytes);
            }
        }
    }
}
