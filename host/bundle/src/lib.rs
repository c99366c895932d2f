//! A model on disk: a manifest, and blobs named by their SHA-256.
//!
//! ```text
//! DIR/manifest.json          what the network is: boundaries, segments, exits, accuracies
//! DIR/blobs/sha256/<hex>     one WebAssembly component a segment; the ONNX it was cut from;
//!                            golden outputs and labelled samples, so that it can be verified
//! ```
//!
//! The SHA-256 of the manifest is the bundle's name everywhere: since the manifest names its blobs by
//! digest, it covers every byte. Nothing read here is believed before it is checked: sizes before
//! memory is taken, digests before bytes are used, and the manifest's own indices in
//! [`Manifest::check`].
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod component;
mod digest;
mod manifest;
mod store;

pub use component::{ComponentError, GRAPH_SECTION, compose, split, standard_guest};
pub use digest::{Digest, DigestError};
pub use manifest::{
    Blob, Boundary, CodedAccuracy, CodedBytes, Evidence, Exit, FORMAT, Layer, LayerKind, Manifest, ManifestError,
    Segment, Tensor, Tier,
};
pub use store::{BLOB_BYTES_MAX, Bundle, BundleError, Draft, MANIFEST_BYTES_MAX};
