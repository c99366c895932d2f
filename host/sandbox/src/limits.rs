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

// Of a guest that does the arithmetic itself:

/// tract's code and what it works with, beside the graph and the tensors.
const COMPUTING_MEMORY_BYTES: usize = 256 << 20;

/// What a guest's 32-bit memory can grow to, less what wasmtime wants to itself.
const COMPUTING_MEMORY_BYTES_MAX: usize = (4 << 30) - (64 << 10);

/// So many times a graph's bytes are in its memory at once: as read, as parsed, as optimised.
const GRAPH_COPIES: usize = 6;

/// So many tensors of the size of those that go in and out together are in its memory at once.
const CROSSING_COPIES: usize = 32;

/// Its tables hold a reference to each function that is called through a pointer.
const COMPUTING_TABLE_ELEMENTS: usize = 100_000;

/// What it may execute whatever the size of its network: to get ready to read a graph, and for what is all control
/// flow. About two seconds.
const COMPUTING_FUEL: u64 = 5_000_000_000;

/// For each multiply-accumulate. Vector code takes less than one instruction; an operator without such code, ten.
const FUEL_PER_MAC: u64 = 20;

/// For each byte that goes in or out: operators without multiplications.
const FUEL_PER_CROSSING_BYTE: u64 = 200;

/// For each byte of the graph, to read it and put it into order.
const FUEL_PER_GRAPH_BYTE: u64 = 50;

/// Bounds on one instance of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// For a guest that does the arithmetic itself: by the size of its graph, by what crosses its boundaries, and by
    /// the multiply-accumulates of a run.
    pub fn computing(graph_bytes: usize, crossing_bytes: usize, macs: u64) -> Self {
        let graph = graph_bytes.saturating_mul(GRAPH_COPIES);
        let crossing = crossing_bytes.saturating_mul(CROSSING_COPIES);
        let memory_bytes = COMPUTING_MEMORY_BYTES.saturating_add(graph).saturating_add(crossing);
        let for_graph = (graph_bytes as u64).saturating_mul(FUEL_PER_GRAPH_BYTE);
        let for_crossing = (crossing_bytes as u64).saturating_mul(FUEL_PER_CROSSING_BYTE);
        let for_run = macs.saturating_mul(FUEL_PER_MAC).saturating_add(for_crossing);
        Self {
            memory_bytes: memory_bytes.min(COMPUTING_MEMORY_BYTES_MAX),
            table_elements: COMPUTING_TABLE_ELEMENTS,
            copied_bytes: COPIED_BYTES_MAX.saturating_add(graph_bytes).saturating_add(crossing_bytes),
            call_fuel: COMPUTING_FUEL.saturating_add(for_graph).saturating_add(for_run),
            ..Self::default()
        }
    }

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
