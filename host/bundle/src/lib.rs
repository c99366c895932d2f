//! A model on disk: a manifest, and blobs named by their SHA-256, in an OCI image layout.
//!
//! ```text
//! DIR/oci-layout
//! DIR/index.json             which bundles there are, by name and version
//! DIR/blobs/sha256/<hex>     one WebAssembly component a segment; the ONNX it was cut from; golden
//!                            outputs and labelled samples, so that it can be verified; the manifest,
//!                            which says what the network is; what OCI wants around all that
//! ```
//!
//! The SHA-256 of the manifest is the bundle's name between hosts: since the manifest names its blobs by
//! digest, it covers every byte. [`Bundle`] reads one, [`Draft`] writes one alone, [`Store`] keeps many.
//! Nothing read here is believed before it is checked: sizes before memory is taken, digests before bytes
//! are used, and the manifest's own indices in [`Manifest::check`].
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bundle;
mod component;
#[cfg(test)]
mod crash_tests;
mod digest;
mod disk;
mod error;
#[cfg(test)]
mod fake_disk;
mod layout;
mod manifest;
pub mod oci;
mod reference;
mod refs;
mod sealed;
mod signature;
mod store;

pub use bundle::{BLOB_BYTES_MAX, Bundle, Draft, MANIFEST_BYTES_MAX};
pub use component::{
    ComponentError, GRAPH_SECTION, compose, imported_functions, imports, portable_guest, split, standard_guest,
};
pub use digest::{Digest, DigestError};
pub use error::{BundleError, ReferenceError};
pub use manifest::{
    Blob, Boundary, CodedAccuracy, CodedBytes, Evidence, Exit, FORMAT, Layer, LayerKind, Manifest, ManifestError,
    NO_GRAPH, Segment, Tensor, Tier,
};
pub use reference::Reference;
pub use sealed::SealedManifest;
pub use signature::{
    KeyId, PublicKey, SIGNATURE_BYTES_MAX, SIGNATURES_MAX, STATEMENT_BYTES_MAX, Signature, SignatureError, Statement,
};
pub use store::{Collected, Installed, Store, Writer};
