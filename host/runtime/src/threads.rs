//! Threads that wait for work and for time to pass. A simulation has both pass in virtual time.

#[cfg(test)]
use crate::simulation::thread as simulated;
use edgent_nn::Stop;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Starts a thread.
pub(crate) fn start(name: String, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    #[cfg(test)]
    if simulated::is_called_for() {
        return simulated::start(name, work);
    }
    thread::Builder::new().name(name).spawn(work).map(drop)
}

/// Does what may block beside what a runtime does.
pub(crate) fn beside(runtime: &Handle, work: impl FnOnce() + Send + 'static) {
    #[cfg(test)]
    if simulated::is_called_for() {
        return simulated::start("beside".to_owned(), work).expect("a thread starts");
    }
    runtime.spawn_blocking(work);
}

/// The same; gives what comes of it, unless it panics.
pub(crate) async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = oneshot::channel();
    beside(&Handle::current(), move || drop(done.send(work())));
    result.await.ok()
}

/// Lets time pass.
pub(crate) fn sleep(time: Duration) {
    #[cfg(test)]
    if simulated::sleep(time) {
        return;
    }
    thread::sleep(time);
}

/// Stops work at a moment.
pub(crate) fn stop_at(moment: Instant) -> Stop {
    #[cfg(test)]
    if simulated::is_called_for() {
        return simulated::stop_at(moment);
    }
    Stop::at(moment.into_std())
}

/// By which threads that wait for a change learn of one.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    condition: Condvar,
    #[cfg(test)]
    simulated: simulated::Changed,
}

impl Changed {
    /// Waits for a change to what a mutex holds; perhaps in vain.
    pub(crate) fn wait<'a, T>(&self, held_by: &'a Mutex<T>, held: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        #[cfg(test)]
        if simulated::is_one() {
            drop(held);
            self.simulated.wait();
            return held_by.lock().unwrap_or_else(PoisonError::into_inner);
        }
        let _ = held_by;
        self.condition.wait(held).unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn notify_one(&self) {
        #[cfg(test)]
        self.simulated.notify();
        self.condition.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        #[cfg(test)]
        self.simulated.notify();
        self.condition.notify_all();
    }
}
