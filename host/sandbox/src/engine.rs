//! The compiler and the code it has compiled.

use crate::bindings::{Segment as World, SegmentPre};
use crate::clock::{Clock, Ticking};
use crate::imports::Imports;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Config, OptLevel};

/// The largest component that is compiled; the portable guest, tract and all, has 13 MB.
pub const CODE_BYTES_MAX: usize = 32 << 20;

/// Stack of a guest; its callers' threads must have this much and what tract needs.
const STACK_BYTES: usize = 256 << 10;

/// Small, so that hundreds of instances fit into 2 GiB of address space. wasmtime's default of 4 GiB
/// each saves bounds checks, but a segment's work is done by tract, outside the guest.
const MEMORY_RESERVED_BYTES: u64 = 1 << 20;
const MEMORY_GUARD_BYTES: u64 = 64 << 10;

/// Compiles guests. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Engine(Arc<Shared>);

struct Shared {
    engine: wasmtime::Engine,
    linker: Linker<Imports>,
    /// By the components' bytes; code that no segment uses any more is forgotten.
    compiled: Mutex<HashMap<Vec<u8>, Weak<SegmentPre<Imports>>>>,
    clock: Clock,
}

/// A guest's code, compiled and checked to fit the world that segments live in. Cheap to clone.
#[derive(Clone)]
pub struct Code(pub(crate) Arc<SegmentPre<Imports>>);

impl Engine {
    /// An engine and the thread of its clock.
    pub fn new() -> Result<Self, SandboxError> {
        let refused = |e: wasmtime::Error| SandboxError::Engine(format!("{e:#}"));
        let mut config = Config::new();
        config
            .cranelift_opt_level(OptLevel::Speed)
            .epoch_interruption(true)
            .consume_fuel(true)
            .max_wasm_stack(STACK_BYTES)
            .memory_reservation(MEMORY_RESERVED_BYTES)
            .memory_reservation_for_growth(MEMORY_RESERVED_BYTES)
            .memory_guard_size(MEMORY_GUARD_BYTES)
            // What segments do without; threads, exceptions and garbage collection are not compiled in.
            .wasm_memory64(false)
            .wasm_multi_memory(false)
            .wasm_relaxed_simd(false)
            .wasm_tail_call(false);
        let engine = wasmtime::Engine::new(&config).map_err(refused)?;
        let mut linker = Linker::new(&engine);
        World::add_to_linker::<Imports, HasSelf<Imports>>(&mut linker, |imports| imports).map_err(refused)?;
        let clock = Clock::start(engine.clone())
            .map_err(|e| SandboxError::Engine(format!("the clock's thread did not start: {e}")))?;
        Ok(Self(Arc::new(Shared { engine, linker, compiled: Mutex::default(), clock })))
    }

    /// Compiles a guest (a component without its graph), unless a segment runs the same code already.
    /// One at a time: a thread that asks for what another compiles waits for it.
    pub fn compile(&self, component: &[u8]) -> Result<Code, SandboxError> {
        if component.len() > CODE_BYTES_MAX {
            return Err(SandboxError::TooLarge(component.len()));
        }
        let mut compiled = self.0.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(code) = compiled.get(component).and_then(Weak::upgrade) {
            return Ok(Code(code));
        }
        let refused = |e: wasmtime::Error| SandboxError::Code(format!("{e:#}"));
        let parsed = Component::from_binary(&self.0.engine, component).map_err(refused)?;
        let linked = self.0.linker.instantiate_pre(&parsed).map_err(refused)?;
        let code = Arc::new(SegmentPre::new(linked).map_err(refused)?);
        compiled.retain(|_, code| code.strong_count() > 0);
        compiled.insert(component.to_vec(), Arc::downgrade(&code));
        Ok(Code(code))
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.0.engine
    }

    /// Lets running guests be looked at, and interrupted, until the result is dropped.
    pub(crate) fn ticking(&self) -> Ticking<'_> {
        self.0.clock.ticking()
    }
}

impl Code {
    /// Whether both are the same compiled code, not merely equal.
    pub fn is_shared_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Engine")
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Code")
    }
}

/// Why code cannot be run here at all.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// This host has no sandbox to offer.
    #[error("the WebAssembly engine did not start: {0}")]
    Engine(String),
    /// Over [`CODE_BYTES_MAX`].
    #[error("the component has {0} bytes of code, over the limit of {CODE_BYTES_MAX}")]
    TooLarge(usize),
    /// The code is malformed, asks for what segments do not get, or lacks what they must have.
    #[error("the component is no segment for this host: {0}; build guests with guest-layers/build.sh")]
    Code(String),
}
