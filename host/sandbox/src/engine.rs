//! The compiler and the code it has compiled.

use crate::bindings::{Segment as World, SegmentPre};
use crate::clock::{Clock, Ticking};
use crate::imports::Imports;
use crate::kept;
use crate::segment::Instance;
use rustix::process::{Resource, getrlimit};
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Config, OptLevel};

/// The largest component that is compiled; the portable guest, tract and all, has 6 MB.
pub const CODE_BYTES_MAX: usize = 32 << 20;

/// Stack of a guest; its callers' threads must have this much and what tract needs.
const STACK_BYTES: usize = 256 << 10;

/// Small, so that hundreds of instances fit into 2 GiB of address space. wasmtime's default of 4 GiB
/// each saves bounds checks, but a segment's work is done by tract, outside the guest.
const MEMORY_RESERVED_BYTES: u64 = 1 << 20;
const MEMORY_GUARD_BYTES: u64 = 64 << 10;

/// With this much, an address that 32 bits can hold is never outside: the checks are left to the processor. It is
/// address space, not memory.
const ROOMY_MEMORY_RESERVED_BYTES: u64 = 4 << 30;
const ROOMY_MEMORY_GUARD_BYTES: u64 = 32 << 20;

/// Compiles guests. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Engine(Arc<Shared>);

struct Shared {
    calling: Compiler,
    /// Made when the first guest comes that computes.
    computing: OnceLock<Result<Compiler, String>>,
    /// Where code that ships with this program is kept, compiled.
    kept: Option<PathBuf>,
}

/// What code is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It has the host do the arithmetic. Many instances of it fit into little address space.
    Calls,
    /// It does the arithmetic itself, and gets fast memory and all vector instructions.
    Computes,
}

/// wasmtime with one set of options, and the code it has compiled.
struct Compiler {
    engine: wasmtime::Engine,
    linker: Linker<Imports>,
    /// By the components' bytes; code that no segment uses any more is forgotten.
    compiled: Mutex<HashMap<Vec<u8>, Weak<Compiled>>>,
    clock: Arc<Clock>,
}

/// A guest's code, compiled and checked to fit the world that segments live in. Cheap to clone.
#[derive(Clone)]
pub struct Code(Arc<Compiled>);

struct Compiled {
    world: SegmentPre<Imports>,
    engine: wasmtime::Engine,
    clock: Arc<Clock>,
    /// Whether it ships with this program.
    is_shipped: AtomicBool,
    /// Instances that may run any segment of this code.
    idle: Mutex<Vec<Instance>>,
}

impl Engine {
    /// An engine and the thread of its clock. Nothing is kept on disk.
    pub fn new() -> Result<Self, SandboxError> {
        Self::keeping(None)
    }

    /// The same, with a folder for compiled code that ships with this program. It must be this user's alone: what is
    /// in there is run as it is.
    pub fn keeping(folder: Option<PathBuf>) -> Result<Self, SandboxError> {
        let calling = Compiler::new(options(Purpose::Calls)).map_err(SandboxError::Engine)?;
        Ok(Self(Arc::new(Shared { calling, computing: OnceLock::new(), kept: folder })))
    }

    /// Compiles a guest (a component without its graph) that has the host do the arithmetic, unless a segment runs
    /// the same code already. One at a time: a thread that asks for what another compiles waits for it.
    pub fn compile(&self, component: &[u8]) -> Result<Code, SandboxError> {
        self.compile_for(Purpose::Calls, component)
    }

    /// The same of any guest.
    pub fn compile_for(&self, purpose: Purpose, component: &[u8]) -> Result<Code, SandboxError> {
        self.compile_kept(purpose, component, None)
    }

    /// The same of a guest that ships with this program: compiled once, it is kept on disk; and where the host does the
    /// arithmetic, segments share its instances.
    pub fn compile_shipped(&self, purpose: Purpose, component: &[u8]) -> Result<Code, SandboxError> {
        let code = self.compile_kept(purpose, component, self.0.kept.as_deref())?;
        code.0.is_shipped.store(true, Ordering::Relaxed);
        Ok(code)
    }

    fn compile_kept(&self, purpose: Purpose, component: &[u8], kept: Option<&Path>) -> Result<Code, SandboxError> {
        if component.len() > CODE_BYTES_MAX {
            return Err(SandboxError::TooLarge(component.len()));
        }
        let computing = || Compiler::new(options(purpose));
        let compiler = match purpose {
            Purpose::Calls => &self.0.calling,
            Purpose::Computes => {
                let made = self.0.computing.get_or_init(computing).as_ref();
                made.map_err(|why| SandboxError::Engine(why.clone()))?
            }
        };
        compiler.compile(component, kept).map_err(|e| SandboxError::Code(format!("{e:#}")))
    }
}

fn options(purpose: Purpose) -> Config {
    let mut config = Config::new();
    config
        .cranelift_opt_level(OptLevel::Speed)
        .epoch_interruption(true)
        .consume_fuel(true)
        .max_wasm_stack(STACK_BYTES)
        // What segments do without; threads, exceptions and garbage collection are not compiled in.
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .wasm_tail_call(false);
    let (reserved_bytes, guard_bytes) = match purpose {
        // Where address space is limited, a guest that computes is slower, but there is one.
        Purpose::Computes if is_address_space_unlimited() => (ROOMY_MEMORY_RESERVED_BYTES, ROOMY_MEMORY_GUARD_BYTES),
        _ => (MEMORY_RESERVED_BYTES, MEMORY_GUARD_BYTES),
    };
    config
        .wasm_relaxed_simd(purpose != Purpose::Calls)
        .memory_reservation(reserved_bytes)
        .memory_reservation_for_growth(MEMORY_RESERVED_BYTES)
        .memory_guard_size(guard_bytes);
    config
}

fn is_address_space_unlimited() -> bool {
    cfg!(target_pointer_width = "64") && getrlimit(Resource::As).current.is_none()
}

impl Compiler {
    fn new(config: Config) -> Result<Self, String> {
        let refused = |e: wasmtime::Error| format!("{e:#}");
        let engine = wasmtime::Engine::new(&config).map_err(refused)?;
        let mut linker = Linker::new(&engine);
        World::add_to_linker::<Imports, HasSelf<Imports>>(&mut linker, |imports| imports).map_err(refused)?;
        let clock = Clock::start(engine.clone()).map_err(|e| format!("the clock's thread did not start: {e}"))?;
        Ok(Self { engine, linker, compiled: Mutex::default(), clock: Arc::new(clock) })
    }

    fn compile(&self, component: &[u8], kept: Option<&Path>) -> wasmtime::Result<Code> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(code) = compiled.get(component).and_then(Weak::upgrade) {
            return Ok(Code(code));
        }
        let parsed = match kept {
            Some(folder) => kept::component(&self.engine, component, folder)?,
            None => Component::from_binary(&self.engine, component)?,
        };
        let world = SegmentPre::new(self.linker.instantiate_pre(&parsed)?)?;
        let (engine, clock) = (self.engine.clone(), Arc::clone(&self.clock));
        let (is_shipped, idle) = (AtomicBool::new(false), Mutex::default());
        let code = Arc::new(Compiled { world, engine, clock, is_shipped, idle });
        compiled.retain(|_, code| code.strong_count() > 0);
        compiled.insert(component.to_vec(), Arc::downgrade(&code));
        Ok(Code(code))
    }
}

impl Code {
    /// Whether both are the same compiled code, not merely equal.
    pub fn is_shared_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn world(&self) -> &SegmentPre<Imports> {
        &self.0.world
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.0.engine
    }

    pub(crate) fn is_shipped(&self) -> bool {
        self.0.is_shipped.load(Ordering::Relaxed)
    }

    pub(crate) fn idle(&self) -> &Mutex<Vec<Instance>> {
        &self.0.idle
    }

    /// Lets running guests be looked at, and interrupted, until the result is dropped.
    pub(crate) fn ticking(&self) -> Ticking<'_> {
        self.0.clock.ticking()
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
