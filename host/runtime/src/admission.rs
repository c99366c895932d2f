//! What a bundle may cost a host: said by its operator, checked before anything of it runs.
//!
//! A manifest is its maker's word, so the graphs are asked, too, once they are loaded; the larger figure counts.

use edgent_bundle::Manifest;
use edgent_nn::Cost;

/// A hundred billion: an answer takes seconds then on one processor, and AlexNet takes 0.7 billion.
pub const MACS_MAX: u64 = 100_000_000_000;

/// All components of a bundle together: weights, mostly.
pub const COMPONENTS_BYTES_MAX: u64 = 1 << 30;

/// One tensor between two operators.
pub const TENSOR_BYTES_MAX: u64 = 256 << 20;

/// What bundles may cost here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Multiply-accumulates on the way to the exit that takes most.
    pub macs_max: u64,
    /// Bytes of all components.
    pub components_bytes_max: u64,
    /// Bytes of one tensor inside a graph.
    pub tensor_bytes_max: u64,
}

impl Default for Admission {
    fn default() -> Self {
        Self { macs_max: MACS_MAX, components_bytes_max: COMPONENTS_BYTES_MAX, tensor_bytes_max: TENSOR_BYTES_MAX }
    }
}

impl Admission {
    /// What a manifest says of itself.
    pub fn check_manifest(&self, manifest: &Manifest) -> Result<(), CostError> {
        let bytes = components_bytes(manifest);
        if bytes > self.components_bytes_max {
            return Err(CostError::Components { bytes, most: self.components_bytes_max });
        }
        self.check_macs(macs(manifest, &[]))
    }

    /// The graph of one segment, as it was loaded.
    pub fn check_graph(&self, segment: &str, cost: Cost) -> Result<(), CostError> {
        if cost.largest_bytes > self.tensor_bytes_max {
            let segment = segment.to_owned();
            return Err(CostError::Tensor { segment, bytes: cost.largest_bytes, most: self.tensor_bytes_max });
        }
        self.check_macs(cost.macs)
    }

    /// All of them.
    pub fn check_graphs(&self, manifest: &Manifest, costs: &[Cost]) -> Result<(), CostError> {
        self.check_macs(macs(manifest, costs))
    }

    fn check_macs(&self, macs: u64) -> Result<(), CostError> {
        if macs > self.macs_max {
            return Err(CostError::Macs { macs, most: self.macs_max });
        }
        Ok(())
    }
}

/// Bytes of all components of a bundle.
pub fn components_bytes(manifest: &Manifest) -> u64 {
    manifest.segments.iter().fold(0, |bytes, segment| bytes.saturating_add(segment.component.bytes))
}

/// Multiply-accumulates on the way to the exit that takes most: by the manifest or, where it is known and more, by
/// the graphs.
pub fn macs(manifest: &Manifest, costs: &[Cost]) -> u64 {
    let of = |index: &usize| {
        let measured = costs.get(*index).map_or(0, |cost| cost.macs);
        manifest.segments[*index].macs.max(measured)
    };
    let along = |path: &[usize]| path.iter().map(of).fold(0, u64::saturating_add);
    manifest.exits.iter().map(|exit| along(&exit.path)).max().unwrap_or(0)
}

/// A bundle costs more than it may here.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CostError {
    /// Over [`Admission::macs_max`].
    #[error("an answer takes {macs} multiply-accumulates, over the {most} that are allowed here (--macs-max)")]
    Macs {
        /// What it takes.
        macs: u64,
        /// What is allowed.
        most: u64,
    },
    /// Over [`Admission::components_bytes_max`].
    #[error("its components have {bytes} bytes, over the {most} that are allowed here (--components-max-mib)")]
    Components {
        /// What they have.
        bytes: u64,
        /// What is allowed.
        most: u64,
    },
    /// Over [`Admission::tensor_bytes_max`].
    #[error("segment '{segment}' has a tensor of {bytes} bytes inside, over the limit of {most}")]
    Tensor {
        /// Which segment.
        segment: String,
        /// The tensor's size.
        bytes: u64,
        /// What is allowed.
        most: u64,
    },
}
