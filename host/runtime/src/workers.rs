//! A bounded pool of threads for guest and tract work, which must never run on the link's thread.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Jobs that may wait; more are refused, so that waiting is bounded too.
const QUEUE_MAX: usize = 64;

type Job = Box<dyn FnOnce() + Send>;

/// Threads that run jobs in the order in which they came.
#[derive(Clone, Debug)]
pub struct Workers {
    jobs: SyncSender<Job>,
}

impl Workers {
    /// Starts `threads` workers; they end when the last clone is dropped.
    pub fn start(threads: usize) -> io::Result<Self> {
        let (jobs, queue) = sync_channel::<Job>(QUEUE_MAX);
        let queue = Arc::new(Mutex::new(queue));
        for index in 0..threads.max(1) {
            let queue = Arc::clone(&queue);
            thread::Builder::new().name(format!("edgent-work-{index}")).spawn(move || work(&queue))?;
        }
        Ok(Self { jobs })
    }

    /// Queues a job.
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) -> Result<(), Busy> {
        self.jobs.try_send(Box::new(job)).map_err(|refused| match refused {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => Busy,
        })
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        // Locked only while taking a job, not while running it.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a job panicked; its caller is told that it failed");
        }
    }
}

/// The queue is full.
#[derive(Debug, thiserror::Error)]
#[error("too much is waiting to run here: {QUEUE_MAX} jobs; send less, or later")]
pub struct Busy;
