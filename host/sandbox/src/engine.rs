//! The compiler, the code it has compiled, and the clock that interrupts guests.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Config, OptLevel};

use crate::bindings::{Segment as World, SegmentPre};
use crate::imports::Imports;

/// How often running guests are looked at; a guest overstays its time by at most two of these.
const TICK: Duration = Duration::from_millis(2);

const STACK_BYTES: usize = 256 << 10;

/// Small enough that hundreds of instances fit into 2 GiB of address space; guests stay far below it.
const MEMORY_RESERVED_BYTES: u64 = 1 << 20;
const MEMORY_GUARD_BYTES: u64 = 64 << 10;

/// Compiles guests. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Engine(Arc<Shared>);

struct Shared {
    engine: wasmtime::Engine,
    linker: Linker<Imports>,
    compiled: Mutex<HashMap<Vec<u8>, Code>>,
    running: Arc<Running>,
}

/// A guest's code, compiled and checked to fit the world that segments live in.
#[derive(Clone)]
pub struct Code(pub(crate) SegmentPre<Imports>);

impl Engine {
    /// An engine and its clock's thread.
    pub fn new() -> Result<Self, SandboxError> {
        let mut config = Config::new();
        config
            .cranelift_opt_level(OptLevel::Speed)
            .epoch_interruption(true)
            .max_wasm_stack(STACK_BYTES)
            .memory_reservation(MEMORY_RESERVED_BYTES)
            .memory_reservation_for_growth(MEMORY_RESERVED_BYTES)
            .memory_guard_size(MEMORY_GUARD_BYTES)
            .wasm_memory64(false)
            .wasm_multi_memory(false)
            .wasm_relaxed_simd(false)
            .wasm_tail_call(false);
        let engine = wasmtime::Engine::new(&config).map_err(|e| SandboxError::Engine(format!("{e:#}")))?;
        let mut linker = Linker::new(&engine);
        World::add_to_linker::<Imports, HasSelf<Imports>>(&mut linker, |imports| imports)
            .map_err(|e| SandboxError::Engine(format!("{e:#}")))?;
        let running = Arc::new(Running::default());
        spawn_clock(engine.clone(), Arc::downgrade(&running))?;
        Ok(Self(Arc::new(Shared { engine, linker, compiled: Mutex::default(), running })))
    }

    /// Compiles a guest (a component without its graph), unless it has been compiled before.
    pub fn compile(&self, component: &[u8]) -> Result<Code, SandboxError> {
        let mut compiled = self.0.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(code) = compiled.get(component) {
            return Ok(code.clone());
        }
        let refused = |e: wasmtime::Error| SandboxError::Code(format!("{e:#}"));
        let parsed = Component::from_binary(&self.0.engine, component).map_err(refused)?;
        let code = Code(SegmentPre::new(self.0.linker.instantiate_pre(&parsed).map_err(refused)?).map_err(refused)?);
        compiled.insert(component.to_vec(), code.clone());
        Ok(code)
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.0.engine
    }

    /// Keeps the clock ticking while a guest runs that may have to be interrupted.
    pub(crate) fn ticking(&self) -> Ticking<'_> {
        self.0.running.start();
        Ticking(&self.0.running)
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engine")
    }
}

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Code")
    }
}

/// Calls in progress. The clock sleeps while there are none, so an idle host costs nothing.
#[derive(Default)]
struct Running {
    calls: AtomicUsize,
    asleep: Mutex<bool>,
    wake: Condvar,
}

impl Running {
    fn start(&self) {
        // SeqCst pairs with the clock: it says that it sleeps before it looks at the count again.
        if self.calls.fetch_add(1, Ordering::SeqCst) == 0 {
            let mut asleep = self.asleep.lock().unwrap_or_else(PoisonError::into_inner);
            if std::mem::take(&mut *asleep) {
                self.wake.notify_one();
            }
        }
    }
}

pub(crate) struct Ticking<'a>(&'a Running);

impl Drop for Ticking<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

fn spawn_clock(engine: wasmtime::Engine, running: std::sync::Weak<Running>) -> Result<(), SandboxError> {
    let tick = move || {
        let mut idle_ticks = 0;
        while let Some(running) = running.upgrade() {
            engine.increment_epoch();
            idle_ticks = if running.calls.load(Ordering::SeqCst) == 0 { idle_ticks + 1 } else { 0 };
            // Some idle ticks first: waking the clock costs a busy host more than letting it tick.
            if idle_ticks > 500 {
                let mut asleep = running.asleep.lock().unwrap_or_else(PoisonError::into_inner);
                *asleep = true;
                if running.calls.load(Ordering::SeqCst) == 0 {
                    let woken = running.wake.wait_timeout_while(asleep, Duration::from_secs(1), |asleep| *asleep);
                    drop(woken);
                } else {
                    *asleep = false;
                }
                idle_ticks = 0;
            }
            drop(running);
            thread::sleep(TICK);
        }
    };
    let spawned = thread::Builder::new().name("edgent-epochs".into()).spawn(tick);
    spawned.map(drop).map_err(|e| SandboxError::Engine(format!("the clock's thread did not start: {e}")))
}

pub(crate) fn ticks(time: Duration) -> u64 {
    // One more than the whole ticks: the next tick may come at once.
    u64::try_from(time.as_micros() / TICK.as_micros()).unwrap_or(u64::MAX / 2) + 1
}

/// Why code cannot be run here at all.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// This host has no sandbox to offer.
    #[error("the WebAssembly engine did not start: {0}")]
    Engine(String),
    /// The code is malformed, asks for what segments do not get, or lacks what they must have.
    #[error("the component is no segment for this host: {0}")]
    Code(String),
}
