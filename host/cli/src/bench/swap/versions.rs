//! Good versions, and bad ones of several kinds.

use crate::build::layer;
use crate::keys;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use edgent_bundle::{Blob, Bundle, Draft, Manifest, compose, split, standard_guest};
use edgent_link::{Client, Version};
use edgent_nn::synthetic::{Shape, layer as synthetic_layer};
use edgent_runtime::tell_signatures;
use minisign::SecretKey;
use std::path::Path;

/// A guest that hands its input back instead of what the graph gives.
const LIAR: &[u8] = include_bytes!("../../../../../guest-layers/prebuilt/hostile.wasm");

/// What is wrong with a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing.
    Good,
    /// A segment's guest returns something else than its graph gives.
    Lying,
    /// The manifest tells another shape than a segment has.
    WrongShape,
    /// A weight was changed: it runs, and answers wrongly.
    WrongWeights,
    /// A layer takes a hundred times as long: no exit is in time any more. It has no golden samples that would tell.
    Slow,
    /// Bytes were changed on the way.
    Corrupt,
    /// Nobody signed it.
    Unsigned,
}

impl Kind {
    pub(super) const BAD: [Self; 6] =
        [Self::Lying, Self::WrongShape, Self::WrongWeights, Self::Slow, Self::Corrupt, Self::Unsigned];

    /// Every second version is bad, in turns.
    pub(super) fn of(swap: usize) -> Self {
        if swap.is_multiple_of(2) { Self::Good } else { Self::BAD[swap / 2 % Self::BAD.len()] }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Lying => "lying guest",
            Self::WrongShape => "wrong shape",
            Self::WrongWeights => "wrong weights",
            Self::Slow => "slow",
            Self::Corrupt => "corrupt",
            Self::Unsigned => "unsigned",
        }
    }
}

/// Versions of a bundle, made before anything is measured; they come round.
pub(super) struct Versions {
    made: Vec<(Kind, Bundle)>,
    next: usize,
}

/// So many are made: more than a store keeps, so that one that comes round is new to it.
const MADE: usize = 16;

impl Versions {
    pub(super) fn make(first: &Bundle, dir: &Path, secret: &SecretKey) -> Result<Self> {
        let maker = Maker { first, secret };
        let make = |index: usize| {
            let kind = Kind::of(index);
            Ok((kind, maker.make(kind, index, &dir.join(format!("version-{index}")))?))
        };
        Ok(Self { made: (0..MADE).map(make).collect::<Result<_>>()?, next: 0 })
    }

    pub(super) fn next(&mut self) -> (Kind, Bundle) {
        let (kind, bundle) = &self.made[self.next % MADE];
        self.next += 1;
        (*kind, bundle.clone())
    }
}

struct Maker<'a> {
    first: &'a Bundle,
    secret: &'a SecretKey,
}

impl Maker<'_> {
    fn make(&self, kind: Kind, index: usize, dir: &Path) -> Result<Bundle> {
        let mut draft = Draft::default();
        let mut manifest = self.first.manifest().clone();
        // So little that it changes no plan, and so much that it is another version.
        manifest.exits[0].accuracy += (1 + index) as f64 * 1e-9;
        for blob in self.first.sealed().blobs() {
            draft.add(self.first.blob(&blob)?);
        }
        match kind {
            Kind::Good | Kind::Unsigned => {}
            Kind::Lying => self.change_component(&mut manifest, &mut draft, |graph| Ok(compose(LIAR, graph)?))?,
            Kind::WrongShape => manifest.tensors[manifest.segments[0].gives[0]].dims.reverse(),
            Kind::WrongWeights => self.change_component(&mut manifest, &mut draft, |graph| {
                let mut changed = graph.to_vec();
                // Weights are what an archive mostly consists of; its end is padding.
                let at = changed.len() * 2 / 3;
                changed[at..at + 64].iter_mut().for_each(|byte| *byte = 0x41);
                Ok(compose(standard_guest(), &changed)?)
            })?,
            Kind::Slow => slow_down(&mut manifest, &mut draft)?,
            Kind::Corrupt => {
                // A component of its own, or nothing would be sent.
                self.change_component(&mut manifest, &mut draft, |graph| {
                    let padded = [graph, &vec![0; 512 * (1 + index)]].concat();
                    Ok(compose(standard_guest(), &padded)?)
                })?;
            }
        }
        let bundle = draft.write(dir, &manifest)?;
        if kind != Kind::Unsigned {
            // They come round, so that none may forbid those before it.
            keys::sign_bundle(&bundle, self.secret, 2 + index as u64, 1)?;
        }
        Ok(Bundle::open(dir)?)
    }

    /// Makes another component of the first segment's graph.
    fn change_component(
        &self,
        manifest: &mut Manifest,
        draft: &mut Draft,
        change: impl FnOnce(&[u8]) -> Result<Vec<u8>>,
    ) -> Result<()> {
        let component = self.first.blob(&manifest.segments[0].component)?;
        let (_, graph) = split(&component)?;
        manifest.segments[0].component = draft.add(change(graph)?);
        Ok(())
    }
}

/// Puts a convolution with huge windows in the place of the first segment that leaves an image as large as it was.
fn slow_down(manifest: &mut Manifest, draft: &mut Draft) -> Result<()> {
    let shape_of = |manifest: &Manifest, segment: &edgent_bundle::Segment| {
        let ([taken], [given]) = (&segment.takes[..], &segment.gives[..]) else { return None };
        let (taken, given) = (&manifest.tensors[*taken], &manifest.tensors[*given]);
        let [1, maps, side_px, width_px] = taken.dims[..] else { return None };
        let fits = taken.dims == given.dims && side_px == width_px && taken.element_type == given.element_type;
        // Odd, so that the image keeps its size.
        let window_px = side_px - usize::from(side_px.is_multiple_of(2));
        fits.then_some(Shape::Conv { maps, filters: maps, side_px, window_px, stride_px: 1 })
    };
    let found = manifest.segments.iter().enumerate().find_map(|(at, of)| Some((at, shape_of(manifest, of)?)));
    let (at, shape) = found.context("no segment leaves an image as large as it was")?;
    let made = synthetic_layer(shape, 1)?;
    let segment = &mut manifest.segments[at];
    segment.layers = made.layers.iter().map(layer).collect();
    segment.macs = made.layers.iter().map(|layer| layer.macs).sum();
    segment.component = draft.add(compose(standard_guest(), &made.graph)?);
    manifest.evidence.golden = None;
    Ok(())
}

/// Pushes a bundle with one byte of each blob changed on the way.
pub(super) async fn push_corrupt(client: &Client, bundle: &Bundle) -> Result<Version> {
    tell_signatures(client, bundle).await?;
    let manifest = Bytes::copy_from_slice(bundle.sealed().bytes());
    let missing = client.offer(manifest).await?;
    ensure!(!missing.is_empty(), "there is nothing to send");
    for wanted in missing {
        let blobs: Vec<Blob> = bundle.sealed().blobs();
        let blob = blobs.iter().find(|blob| blob.digest.0 == wanted.digest.0).context("not a blob of the bundle")?;
        let mut bytes = bundle.blob(blob)?;
        bytes[blob.bytes as usize / 2] ^= 1;
        client.put_blob(wanted.digest, 0, Bytes::from(bytes)).await?;
    }
    Ok(client.install(edgent_link::Digest(bundle.digest().0), None).await?)
}
