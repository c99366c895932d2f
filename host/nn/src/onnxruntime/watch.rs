//! Ends runs whose time is up, or that were cancelled, from a thread beside them: onnxruntime asks nobody between two
//! operators, but it can be told.

use crate::Stop;
use ort::session::RunOptions;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};

/// How often runs are looked at.
const TICK: Duration = Duration::from_millis(2);

/// Ticks without a run after which the thread sleeps. Not at once: waking it costs more than letting it tick.
const IDLE_TICKS_MAX: u32 = 500;

static WATCH: Watch =
    Watch { state: Mutex::new(State { runs: Vec::new(), next: 0, asleep: false }), wake: Condvar::new() };

struct Watch {
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    runs: Vec<Run>,
    next: u64,
    asleep: bool,
}

struct Run {
    number: u64,
    stop: Stop,
    options: Arc<RunOptions>,
}

/// A run is watched until this is dropped.
pub(super) struct Watched(u64);

/// Starts the thread. It lasts as long as the process.
pub(super) fn start() -> io::Result<()> {
    thread::Builder::new().name("edgent-watch".to_owned()).spawn(|| WATCH.keep()).map(drop)
}

/// Has a run end when `stop` is reached.
pub(super) fn over(stop: &Stop, options: &Arc<RunOptions>) -> Watched {
    let mut state = WATCH.state();
    let number = state.next;
    state.next += 1;
    state.runs.push(Run { number, stop: stop.clone(), options: Arc::clone(options) });
    if state.asleep {
        WATCH.wake.notify_one();
    }
    Watched(number)
}

impl Drop for Watched {
    fn drop(&mut self) {
        WATCH.state().runs.retain(|run| run.number != self.0);
    }
}

impl Watch {
    fn keep(&self) {
        let (mut state, mut idle_ticks) = (self.state(), 0);
        loop {
            if idle_ticks >= IDLE_TICKS_MAX {
                state.asleep = true;
                state =
                    self.wake.wait_while(state, |state| state.runs.is_empty()).unwrap_or_else(PoisonError::into_inner);
                state.asleep = false;
            }
            (state, _) = self.wake.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner);
            idle_ticks = if state.runs.is_empty() { idle_ticks + 1 } else { 0 };
            for run in state.runs.iter().filter(|run| run.stop.reached()) {
                // It fails for no run that is under way.
                let _ = run.options.terminate();
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
