//! Good versions, and bad ones of several kinds.

use crate::build::layer;
use crate::keys;
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use edgent_bundle::{Blob, Boundary, Bundle, Draft, Manifest, Segment, compose, split, standard_guest};
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

/// Puts a convolution with a huge window behind the first segment, which every exit needs.
fn slow_down(manifest: &mut Manifest, draft: &mut Draft) -> Result<()> {
    let first = manifest.segments[0].clone();
    let [given] = first.gives[..] else { bail!("the first segment gives several tensors") };
    let mut convolved = manifest.tensors[given].clone();
    let [1, maps, side_px, width_px] = convolved.dims[..] else { bail!("the first segment gives no image") };
    ensure!(side_px == width_px && convolved.element_type == "f32", "the first segment gives no square image of f32");
    // Odd, so that the image keeps its size; larger than it is, since what lies around it costs as much.
    let window_px = 4 * side_px - 1;
    let made = synthetic_layer(Shape::Conv { maps, filters: maps, side_px, window_px, stride_px: 1 }, 1)?;
    convolved.name.push_str(".convolved");
    let (tensor, boundary) = (manifest.tensors.len(), manifest.boundaries.len());
    for segment in manifest.segments.iter_mut().filter(|segment| segment.from == first.to) {
        segment.from = boundary;
        segment.takes.iter_mut().filter(|taken| **taken == given).for_each(|taken| *taken = tensor);
    }
    manifest.tensors.push(convolved);
    manifest.boundaries.push(Boundary { tensors: vec![tensor], coded: Vec::new() });
    let convolution = Segment {
        name: format!("{}.convolved", first.name),
        from: first.to,
        to: boundary,
        takes: vec![given],
        gives: vec![tensor],
        layers: made.layers.iter().map(layer).collect(),
        macs: made.layers.iter().map(|layer| layer.macs).sum(),
        component: draft.add(compose(standard_guest(), &made.graph)?),
        ..first
    };
    manifest.segments.insert(1, convolution);
    for exit in &mut manifest.exits {
        exit.path = [0, 1].into_iter().chain(exit.path[1..].iter().map(|segment| segment + 1)).collect();
        exit.coded.clear();
    }
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
