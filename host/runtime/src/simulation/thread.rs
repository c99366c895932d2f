//! Threads in virtual time. One runs while the simulation's own thread stands still, until it wants time to pass or
//! waits for something: so there is never more than one at work, and what happens follows from the seed.

use edgent_nn::Stop;
use std::cell::{Cell, RefCell};
use std::panic::resume_unwind;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use std::{io, thread};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

thread_local! {
    static IS_CALLED_FOR: Cell<bool> = const { Cell::new(false) };
    static SELF: RefCell<Option<Simulated>> = const { RefCell::new(None) };
}

/// What a simulated thread knows of the one that simulates it.
struct Simulated {
    wants: mpsc::Sender<Want>,
    turn: mpsc::Receiver<()>,
}

enum Want {
    Time(Duration),
    Change(Arc<Notify>),
}

/// What simulated threads are told of. One waits at a time.
#[derive(Debug, Default)]
pub(crate) struct Changed(Arc<Notify>);

impl Changed {
    pub(crate) fn wait(&self) {
        want(Want::Change(Arc::clone(&self.0)));
    }

    pub(crate) fn notify(&self) {
        self.0.notify_one();
    }
}

/// Has threads that this one starts from now on be simulated, and those that they start; in its runtime.
pub(super) fn call_for() {
    IS_CALLED_FOR.set(true);
}

pub(crate) fn is_called_for() -> bool {
    IS_CALLED_FOR.get() || is_one()
}

/// Whether this is a simulated thread.
pub(crate) fn is_one() -> bool {
    SELF.with_borrow(Option::is_some)
}

/// Lets virtual time pass, if this is a simulated thread.
pub(crate) fn sleep(time: Duration) -> bool {
    let is_one = is_one();
    if is_one {
        want(Want::Time(time));
    }
    is_one
}

/// Stops work at a moment of virtual time. The other's would come before it, where the machine has much else to do.
pub(crate) fn stop_at(moment: Instant) -> Stop {
    let stop = Stop::never();
    let stopping = stop.clone();
    tokio::spawn(async move {
        sleep_until(moment).await;
        stopping.cancel();
    });
    stop
}

fn want(want: Want) {
    let goes_on = SELF.with_borrow(|this| {
        let Some(Simulated { wants, turn }) = this else { return false };
        wants.send(want).is_ok() && turn.recv().is_ok()
    });
    if !goes_on {
        // The simulation is over, and with it this thread; without a word, since nothing went wrong.
        resume_unwind(Box::new("the simulation is over"));
    }
}

pub(crate) fn start(name: String, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let ((wants, wanted), (give_turn, turn)) = (mpsc::channel(), mpsc::channel());
    let runtime = Handle::current();
    thread::Builder::new().name(name).spawn(move || {
        // By its clock.
        let _runtime = runtime.enter();
        if turn.recv().is_ok() {
            SELF.set(Some(Simulated { wants, turn }));
            work();
            SELF.set(None);
        }
    })?;
    tokio::spawn(async move {
        while give_turn.send(()).is_ok() {
            match wanted.recv() {
                Ok(Want::Time(time)) => tokio::time::sleep(time).await,
                Ok(Want::Change(changed)) => changed.notified().await,
                Err(_) => return,
            }
        }
    });
    Ok(())
}
