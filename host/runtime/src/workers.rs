//! A bounded pool of threads for guest and tract work, which must never run on the link's thread.
//!
//! A pool belongs to one tenant: whoever floods it, waits in it, and the system shares the processors between the
//! threads of all pools. Within a pool, what is due first runs first (earliest deadline first: Liu and Layland 1973),
//! and what cannot be in time any more does not run at all: it would only make others late, too.

use edgent_nn::Stop;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Jobs that may wait; more are refused, so that waiting is bounded too.
const QUEUE_MAX: usize = 64;

type Job = Box<dyn FnOnce(Turn) + Send>;

/// Threads that run jobs. Clones share them; they end with the last clone.
#[derive(Clone, Debug)]
pub struct Workers {
    pool: Arc<Open>,
}

/// What a job is told when it is its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// To do its work.
    Run,
    /// That there is not the time for it any more.
    TooLate,
}

/// When a job must be done, and how long it takes.
#[derive(Clone, Copy, Debug)]
pub struct Due {
    /// Until then.
    pub at: Instant,
    /// For so long, as far as that is known; zero if it is not.
    pub takes: Duration,
    /// Whether it is to be done even if it will be late.
    pub in_any_case: bool,
}

impl Workers {
    /// Starts `threads` workers.
    pub fn start(threads: usize) -> io::Result<Self> {
        let pool = Arc::new(Pool { state: Mutex::new(State::new(threads.max(1))), changed: Condvar::new() });
        // If a thread does not start, those before it end.
        let open = Open(Arc::clone(&pool));
        for index in 0..threads.max(1) {
            let pool = Arc::clone(&pool);
            thread::Builder::new().name(format!("edgent-work-{index}")).spawn(move || pool.work(index))?;
        }
        Ok(Self { pool: Arc::new(open) })
    }

    /// How long a job that is due then would wait for its turn, about.
    pub fn wait(&self, at: Instant) -> Duration {
        self.pool.0.lock().wait(at)
    }

    /// Queues a job. Refused at once if it cannot be in time behind those that are due before it; if that turns out
    /// only later, it is told.
    pub fn submit(&self, due: Due, job: impl FnOnce(Turn) + Send + 'static) -> Result<(), Busy> {
        let mut state = self.pool.0.lock();
        if state.waiting.len() >= QUEUE_MAX {
            return Err(Busy::Full);
        }
        let wait = state.wait(due.at);
        if due.misses(Instant::now() + wait) {
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            return Err(Busy::Late { wait_ms: ms(wait), takes_ms: ms(due.takes) });
        }
        let number = state.next_number;
        state.next_number += 1;
        state.waiting.push(Reverse(Waiting { due, number, job: Box::new(job) }));
        drop(state);
        self.pool.0.changed.notify_one();
        Ok(())
    }
}

impl Due {
    /// Whether it is too late for a job to begin then.
    fn misses(&self, begin: Instant) -> bool {
        !self.in_any_case && begin + self.takes > self.at
    }
}

/// The pool, as long as somebody can give it work.
#[derive(Debug)]
struct Open(Arc<Pool>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.changed.notify_all();
    }
}

#[derive(Debug)]
struct Pool {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// The first one due on top.
    waiting: BinaryHeap<Reverse<Waiting>>,
    /// Until when each thread is expected to be at work.
    busy_until: Vec<Instant>,
    next_number: u64,
    is_closed: bool,
}

struct Waiting {
    due: Due,
    /// Of jobs that are due at the same time, the one that came first.
    number: u64,
    job: Job,
}

impl Pool {
    fn work(&self, index: usize) {
        while let Some(Waiting { due, job, .. }) = self.next(index) {
            let turn = if due.misses(Instant::now()) { Turn::TooLate } else { Turn::Run };
            if catch_unwind(AssertUnwindSafe(|| job(turn))).is_err() {
                tracing::error!("a job panicked; its caller is told that it failed");
            }
        }
    }

    /// Waits for a job; none when there will be no more. What waits when nobody gives work any more is still done.
    fn next(&self, index: usize) -> Option<Waiting> {
        let mut state = self.lock();
        state.busy_until[index] = Instant::now();
        loop {
            if let Some(Reverse(next)) = state.waiting.pop() {
                state.busy_until[index] = Instant::now() + next.due.takes;
                return Some(next);
            }
            if state.is_closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(threads: usize) -> Self {
        let busy_until = vec![Instant::now(); threads];
        Self { waiting: BinaryHeap::new(), busy_until, next_number: 0, is_closed: false }
    }

    /// How long a job that is due then waits for its turn, about: for those at work, and those due before it.
    fn wait(&self, at: Instant) -> Duration {
        let now = Instant::now();
        let at_work: Duration = self.busy_until.iter().map(|until| until.saturating_duration_since(now)).sum();
        let before = self.waiting.iter().filter(|Reverse(waiting)| waiting.due.at <= at);
        let before: Duration = before.map(|Reverse(waiting)| waiting.due.takes).sum();
        // A free thread begins at once, whatever the others do.
        let is_free = before.is_zero() && self.busy_until.iter().any(|until| *until <= now);
        if is_free { Duration::ZERO } else { (at_work + before) / self.busy_until.len() as u32 }
    }
}

impl Waiting {
    fn key(&self) -> (Instant, u64) {
        (self.due.at, self.number)
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").field("due", &self.due).field("number", &self.number).finish_non_exhaustive()
    }
}

/// Ends the work of a caller that no longer waits for it.
pub(crate) struct CancelOnDrop(pub(crate) Stop);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Why a job was not taken.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Busy {
    /// There is no room for it.
    #[error("too much is waiting to run here: {QUEUE_MAX} jobs; send less, or later")]
    Full,
    /// It could not be in time.
    #[error("it cannot be in time here: its turn would come in {wait_ms:.1} ms, and it takes {takes_ms:.1} ms")]
    Late {
        /// How long it would wait.
        wait_ms: f64,
        /// How long it would take then.
        takes_ms: f64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    const LONG: Duration = Duration::from_secs(60);

    /// A pool of one thread that is held up, and what lets it go on.
    fn held_up() -> (Workers, std::sync::mpsc::Sender<()>) {
        let workers = Workers::start(1).unwrap();
        let ((begun, has_begun), (go_on, held)) = (channel(), channel::<()>());
        workers
            .submit(whenever(), move |_| {
                begun.send(()).unwrap();
                let _ = held.recv();
            })
            .unwrap();
        has_begun.recv().unwrap();
        (workers, go_on)
    }

    fn due(after: Duration, takes: Duration) -> Due {
        Due { at: Instant::now() + after, takes, in_any_case: false }
    }

    fn whenever() -> Due {
        Due { in_any_case: true, ..due(LONG * 10, Duration::ZERO) }
    }

    fn turns(told: &Receiver<(&'static str, Turn)>, count: usize) -> Vec<(&'static str, Turn)> {
        (0..count).map(|_| told.recv_timeout(LONG).unwrap()).collect()
    }

    #[test]
    fn what_is_due_first_runs_first() {
        let (workers, go_on) = held_up();
        let (tell, told) = channel();
        for (name, after_s) in [("third", 30), ("first", 10), ("second", 20), ("fourth", 30)] {
            let tell = tell.clone();
            let job = move |turn| tell.send((name, turn)).unwrap();
            workers.submit(due(Duration::from_secs(after_s), Duration::from_millis(1)), job).unwrap();
        }
        let last = tell.clone();
        workers.submit(whenever(), move |turn| last.send(("last", turn)).unwrap()).unwrap();
        go_on.send(()).unwrap();
        let order: Vec<_> = turns(&told, 5).into_iter().map(|(name, _)| name).collect();
        assert_eq!(order, ["first", "second", "third", "fourth", "last"]);
    }

    #[test]
    fn what_cannot_be_in_time_is_refused_or_told() {
        let (workers, go_on) = held_up();
        let (tell, told) = channel();
        let put = |name, due| {
            let tell = tell.clone();
            workers.submit(due, move |turn| tell.send((name, turn)).unwrap())
        };
        // It has the time now; but that is up before its turn comes.
        let soon = due(Duration::from_millis(20), Duration::from_millis(20));
        let soon = Due { at: soon.at + Duration::from_millis(5), ..soon };
        put("soon", soon).unwrap();
        put("long", due(LONG, LONG / 2)).unwrap();
        // Behind those two, there is not the time; before them, there is.
        assert!(matches!(put("behind", due(LONG * 2, LONG * 2)), Err(Busy::Late { wait_ms, .. }) if wait_ms > 30e3));
        put("before", due(LONG / 2, Duration::from_millis(1))).unwrap();
        // What is to be done in any case is, and those behind it wait for it.
        let anyhow = Due { in_any_case: true, ..due(LONG * 2, LONG) };
        put("anyhow", anyhow).unwrap();
        assert!(workers.wait(Instant::now() + LONG * 3) > LONG && workers.wait(Instant::now()).is_zero());
        while Instant::now() < soon.at {
            thread::yield_now();
        }
        go_on.send(()).unwrap();
        let run = |name| (name, Turn::Run);
        assert_eq!(turns(&told, 4), [("soon", Turn::TooLate), run("before"), run("long"), run("anyhow")]);
    }

    #[test]
    fn what_waits_is_bounded_and_done_all_the_same() {
        let (workers, go_on) = held_up();
        let (tell, told) = channel();
        for _ in 0..QUEUE_MAX {
            let tell = tell.clone();
            workers.submit(whenever(), move |turn| tell.send(("waiting", turn)).unwrap()).unwrap();
        }
        assert_eq!(workers.submit(whenever(), |_| ()), Err(Busy::Full));
        let panics = workers.clone();
        drop(workers);
        go_on.send(()).unwrap();
        assert_eq!(turns(&told, QUEUE_MAX).len(), QUEUE_MAX);
        // A job that panics ends itself, and no worker.
        panics.submit(whenever(), |_| panic!("as planned")).unwrap();
        panics.submit(whenever(), move |turn| tell.send(("after", turn)).unwrap()).unwrap();
        assert_eq!(turns(&told, 1), [("after", Turn::Run)]);
        // With the last one who can give work, the threads go.
        let pool = Arc::downgrade(&panics.pool.0);
        drop(panics);
        while pool.strong_count() > 0 {
            thread::yield_now();
        }
    }
}
