//! What a guest may take.

use wasmtime::{StoreLimits, StoreLimitsBuilder};

const MEMORY_BYTES_MAX: usize = 16 << 20;
const TABLE_ELEMENTS_MAX: usize = 10_000;
const CORE_INSTANCES_MAX: usize = 16;
const HANDLES_MAX: usize = 64;
const HELD_BYTES_MAX: usize = 256 << 20;
const COPIED_BYTES_MAX: usize = 64 << 20;
const TEXT_BYTES_MAX: usize = 4 << 10;
const CALL_MS_MAX: u64 = 30_000;

/// About ten seconds of a guest that computes.
const CALL_FUEL_MAX: u64 = 20_000_000_000;

/// Bounds on one instance of a segment.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Linear memory.
    pub memory_bytes: usize,
    /// Elements of all tables.
    pub table_elements: usize,
    /// Core instances that the component may consist of.
    pub core_instances: usize,
    /// Tensors, graphs, contexts and errors held at a time.
    pub handles: usize,
    /// Tensor bytes behind those handles, whoever made the tensors; they may be kept between calls.
    pub held_bytes: usize,
    /// Tensor bytes that one call may copy into or out of the guest.
    pub copied_bytes: usize,
    /// Bytes of a guest's error message that are kept.
    pub text_bytes: usize,
    /// Time of one call, whatever deadline its caller has; the graph's own time counts, but only the
    /// caller's `Stop` interrupts that.
    pub call_ms: u64,
    /// What one call may execute in the guest: about an instruction each. Unlike time, it is the same on every host
    /// and however busy that is.
    pub call_fuel: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: MEMORY_BYTES_MAX,
            table_elements: TABLE_ELEMENTS_MAX,
            core_instances: CORE_INSTANCES_MAX,
            handles: HANDLES_MAX,
            held_bytes: HELD_BYTES_MAX,
            copied_bytes: COPIED_BYTES_MAX,
            text_bytes: TEXT_BYTES_MAX,
            call_ms: CALL_MS_MAX,
            call_fuel: CALL_FUEL_MAX,
        }
    }
}

impl Limits {
    pub(crate) fn store_limits(&self) -> StoreLimits {
        StoreLimitsBuilder::new()
            .memory_size(self.memory_bytes)
            .table_elements(self.table_elements)
            .instances(self.core_instances)
            .memories(1)
            .tables(self.core_instances)
            .build()
    }
}

/// A guest wanted more than its [`Limits`] allow.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct OverLimit(pub(crate) String);
