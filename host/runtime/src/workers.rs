//! A bounded pool of threads for guest and tract work, which must never run on the link's thread.
//!
//! A pool belongs to one tenant: whoever floods it, waits in it, and the system shares the processors between the
//! threads of all pools. Within a pool, what is due first runs first (earliest deadline first: Liu and Layland 1973).
//! What cannot be in time any more does not run, or only when nothing waits that still can: it would make others late,
//! too. So under any load, what is done is mostly done in time.

use crate::threads::{self, Changed};
use edgent_link::{Fault, FaultKind};
use edgent_nn::Stop;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

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

/// A request that was not begun by its deadline is worth an answer for as long again, and for at least this.
const LATE_MIN: Duration = Duration::from_secs(5);

/// When a job must be done, and how long it takes.
#[derive(Clone, Copy, Debug)]
pub struct Due {
    /// Until then.
    pub at: Instant,
    /// For so long, as far as that is known; zero if it is not.
    pub takes: Duration,
    /// Until when it may begin although it will be late, if nothing else can be in time instead; none: not at all.
    pub late_until: Option<Instant>,
}

impl Workers {
    /// Starts `threads` workers.
    pub fn start(threads: usize) -> io::Result<Self> {
        let pool = Arc::new(Pool { state: Mutex::new(State::new(threads.max(1))), changed: Changed::default() });
        // If a thread does not start, those before it end.
        let open = Open(Arc::clone(&pool));
        for index in 0..threads.max(1) {
            let pool = Arc::clone(&pool);
            threads::start(format!("edgent-work-{index}"), move || pool.work(index))?;
        }
        Ok(Self { pool: Arc::new(open) })
    }

    /// How long a job that is due then would wait for its turn, about.
    pub fn wait(&self, at: Instant) -> Duration {
        self.pool.0.lock().wait(at)
    }

    /// By how much the latest of those is late that wait until nothing that can be in time does; none, if none does.
    pub fn late_by(&self) -> Option<Duration> {
        let first_due = self.pool.0.lock().late.iter().map(|Reverse(waiting)| waiting.due.at).min()?;
        Some(Instant::now().saturating_duration_since(first_due))
    }

    /// Queues a job. Refused at once if it cannot be in time behind those that are due before it, nor be late behind all
    /// others; if that turns out only later, it is told.
    pub fn submit(&self, due: Due, job: impl FnOnce(Turn) + Send + 'static) -> Result<(), Busy> {
        let mut state = self.pool.0.lock();
        let (now, mut wait) = (Instant::now(), state.wait(due.at));
        let late_until = due.late_until.filter(|_| due.misses(now + wait));
        if due.misses(now + wait) {
            if late_until.is_some() {
                wait = state.wait_for_all(now);
            }
            if late_until.is_none_or(|until| until < now + wait) {
                let ms = |time: Duration| time.as_secs_f64() * 1e3;
                return Err(Busy::Late { wait_ms: ms(wait), takes_ms: ms(due.takes) });
            }
        }
        let is_full = state.waiting.len() + state.late.len() >= QUEUE_MAX;
        let hopeless = if is_full && late_until.is_none() { state.late.pop() } else { None };
        if is_full && hopeless.is_none() {
            return Err(Busy::Full);
        }
        let number = state.next_number;
        state.next_number += 1;
        let waiting = Reverse(Waiting { due, until: late_until.unwrap_or(due.at), number, job: Box::new(job) });
        if late_until.is_some() {
            state.late.push(waiting)
        } else {
            state.waiting.push(waiting)
        }
        drop(state);
        self.pool.0.changed.notify_one();
        // It made room for one that can be in time.
        if let Some(Reverse(Waiting { job, .. })) = hopeless {
            do_job(job, Turn::TooLate);
        }
        Ok(())
    }
}

impl Due {
    /// Of a request that is worth a late answer, as the only one that it will get.
    pub fn or_late(arrived: Instant, at: Instant, takes: Duration) -> Self {
        let late = at.saturating_duration_since(arrived).max(LATE_MIN);
        Self { at, takes, late_until: at.checked_add(late).or(Some(at)) }
    }

    /// Whether it is too late for a job to begin then and be in time.
    fn misses(&self, begin: Instant) -> bool {
        begin + self.takes > self.at
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
    changed: Changed,
}

#[derive(Debug)]
struct State {
    /// The first one due on top.
    waiting: BinaryHeap<Reverse<Waiting>>,
    /// What cannot be in time any more and is worth doing all the same, for a while; what has the least time on top.
    late: BinaryHeap<Reverse<Waiting>>,
    /// Until when each thread is expected to be at work.
    busy_until: Vec<Instant>,
    next_number: u64,
    is_closed: bool,
}

struct Waiting {
    due: Due,
    /// When it is due; when it is hopeless, once it is late.
    until: Instant,
    /// Of jobs that are due at the same time, the one that came first.
    number: u64,
    job: Job,
}

impl Pool {
    fn work(&self, index: usize) {
        while let Some(Waiting { due, job, .. }) = self.next(index) {
            let now = Instant::now();
            let is_too_late = due.late_until.map_or_else(|| due.misses(now), |until| until < now);
            do_job(job, if is_too_late { Turn::TooLate } else { Turn::Run });
        }
    }

    /// Waits for a job; none when there will be no more. What waits when nobody gives work any more is still done.
    fn next(&self, index: usize) -> Option<Waiting> {
        let mut state = self.lock();
        state.busy_until[index] = Instant::now();
        loop {
            if let Some(next) = state.next() {
                state.busy_until[index] = Instant::now() + next.due.takes;
                return Some(next);
            }
            if state.is_closed {
                return None;
            }
            state = self.changed.wait(&self.state, state);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn do_job(job: Job, turn: Turn) {
    if catch_unwind(AssertUnwindSafe(|| job(turn))).is_err() {
        tracing::error!("a job panicked; its caller is told that it failed");
    }
}

impl State {
    fn new(threads: usize) -> Self {
        let busy_until = vec![Instant::now(); threads];
        Self { waiting: BinaryHeap::new(), late: BinaryHeap::new(), busy_until, next_number: 0, is_closed: false }
    }

    /// How long a job waits, about, that gives way to all others.
    fn wait_for_all(&self, now: Instant) -> Duration {
        let at_work: Duration = self.busy_until.iter().map(|until| until.saturating_duration_since(now)).sum();
        let all = self.waiting.iter().chain(&self.late).map(|Reverse(waiting)| waiting.due.takes);
        (at_work + all.sum::<Duration>()) / self.busy_until.len() as u32
    }

    /// What is hopeless by now, so that it is told so; else what is due first and can be in time; else what is late.
    fn next(&mut self) -> Option<Waiting> {
        let now = Instant::now();
        self.set_aside(now);
        let is_hopeless = self.late.peek().is_some_and(|Reverse(late)| late.until < now);
        let next = if is_hopeless { self.late.pop() } else { self.waiting.pop().or_else(|| self.late.pop()) };
        next.map(|Reverse(next)| next)
    }

    /// What cannot be in time any more gives way to those behind it.
    fn set_aside(&mut self, now: Instant) {
        while let Some(Reverse(first)) = self.waiting.peek() {
            let Some(until) = first.due.late_until.filter(|_| first.due.misses(now)) else { break };
            if let Some(Reverse(first)) = self.waiting.pop() {
                self.late.push(Reverse(Waiting { until, ..first }));
            }
        }
    }

    /// How long a job that is due then waits for its turn, about: for those at work, and those due before it.
    fn wait(&mut self, at: Instant) -> Duration {
        let now = Instant::now();
        self.set_aside(now);
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
        (self.until, self.number)
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

/// What a request is told that could not begin in time, nor when a late answer was still worth anything.
pub(crate) fn hopeless(arrived: Instant) -> Fault {
    let waited_ms = arrived.elapsed().as_secs_f64() * 1e3;
    let why = format!(
        "it waited {waited_ms:.0} ms behind others: this host is asked for more than it can do; ask less often"
    );
    Fault { kind: FaultKind::TimeUp, message: why }
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
    use std::thread;

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
        Due { at: Instant::now() + after, takes, late_until: None }
    }

    fn whenever() -> Due {
        let due = due(LONG * 10, Duration::ZERO);
        Due { late_until: Some(due.at), ..due }
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
        let anyhow = Due { late_until: Some(Instant::now() + LONG * 3), ..due(LONG * 2, LONG) };
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
    fn what_is_late_gives_way_to_what_can_be_in_time_and_is_dropped_when_it_is_hopeless() {
        let (workers, go_on) = held_up();
        let (tell, told) = channel();
        let put = |name, due| {
            let tell = tell.clone();
            workers.submit(due, move |turn| tell.send((name, turn)).unwrap())
        };
        let (now, soon) = (Instant::now(), Duration::from_millis(100));
        let late = |until| Due { at: now + soon, takes: soon, late_until: Some(until) };
        put("late", late(now + LONG)).unwrap();
        put("hopeless", late(now + soon * 2)).unwrap();
        put("in time", due(LONG, soon)).unwrap();
        let after_all = put("after all others", late(now + soon * 2));
        assert!(matches!(after_all, Err(Busy::Late { wait_ms, .. }) if wait_ms > 250.0), "{after_all:?}");
        while Instant::now() <= now + soon * 2 {
            thread::yield_now();
        }
        go_on.send(()).unwrap();
        let expected = [("hopeless", Turn::TooLate), ("in time", Turn::Run), ("late", Turn::Run)];
        assert_eq!(turns(&told, 3), expected);
        let asked = Due::or_late(now, now + soon, soon);
        assert_eq!(asked.late_until, Some(now + soon + LATE_MIN), "at the least");
        assert_eq!(Due::or_late(now, now + LONG, soon).late_until, Some(now + LONG * 2));
    }

    #[test]
    fn what_is_late_makes_room_for_what_can_be_in_time() {
        let (workers, go_on) = held_up();
        let (tell, told) = channel();
        let now = Instant::now();
        for _ in 0..QUEUE_MAX {
            let (tell, due) = (tell.clone(), Due { at: now, takes: LONG / 1_000, late_until: Some(now + LONG) });
            workers.submit(due, move |turn| tell.send(("late", turn)).unwrap()).unwrap();
        }
        workers.submit(due(LONG, Duration::ZERO), move |turn| tell.send(("in time", turn)).unwrap()).unwrap();
        assert_eq!(turns(&told, 1), [("late", Turn::TooLate)], "told at once");
        go_on.send(()).unwrap();
        assert_eq!(turns(&told, 1), [("in time", Turn::Run)]);
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
