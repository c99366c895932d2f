//! The clock that has running guests looked at.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};

/// How often a running guest is looked at; it overstays its time by at most two of these.
const TICK: Duration = Duration::from_millis(2);

/// Ticks without a call after which the clock sleeps. Not at once: waking it costs a busy host more
/// than letting it tick between two calls.
const IDLE_TICKS_MAX: u32 = 500;

/// Advances an engine's epoch on a thread of its own for as long as calls are in progress. An idle
/// host's clock sleeps. The thread ends when this is dropped.
pub(crate) struct Clock(Arc<Shared>);

#[derive(Default)]
struct Shared {
    calls: AtomicUsize,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    asleep: bool,
    closed: bool,
}

/// A call in progress.
pub(crate) struct Ticking<'a>(&'a Shared);

impl Clock {
    pub(crate) fn start(engine: wasmtime::Engine) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let clock = Self(shared.clone());
        thread::Builder::new().name("edgent-epochs".into()).spawn(move || shared.tick(&engine))?;
        Ok(clock)
    }

    /// Keeps the clock ticking until the result is dropped.
    pub(crate) fn ticking(&self) -> Ticking<'_> {
        // SeqCst pairs with `tick`: it says that it sleeps before it looks at the count again.
        if self.0.calls.fetch_add(1, Ordering::SeqCst) == 0 {
            let mut state = self.0.state();
            if state.asleep {
                state.asleep = false;
                self.0.wake.notify_one();
            }
        }
        Ticking(&self.0)
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.wake.notify_one();
    }
}

impl Drop for Ticking<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    fn tick(&self, engine: &wasmtime::Engine) {
        let mut idle_ticks = 0;
        let mut state = self.state();
        while !state.closed {
            if idle_ticks < IDLE_TICKS_MAX {
                (state, _) = self.wake.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner);
                engine.increment_epoch();
                idle_ticks = if self.is_idle() { idle_ticks + 1 } else { 0 };
            } else {
                state.asleep = true;
                let asleep = |state: &mut State| state.asleep && !state.closed && self.is_idle();
                state = self.wake.wait_while(state, asleep).unwrap_or_else(PoisonError::into_inner);
                state.asleep = false;
                idle_ticks = 0;
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.calls.load(Ordering::SeqCst) == 0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
