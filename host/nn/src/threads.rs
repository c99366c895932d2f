//! Several threads for one run of a graph.
//!
//! A run has its own thread, and may be allowed more. For each operator that is worth it, it is lent those whose processors
//! are idle, and gives them back behind it. So a run never takes a processor from another: of two at once on two processors,
//! each has one, from the next operator on. What an operator gives does not depend on how many computed it: each element of
//! the result is computed by one of them, as it would be by the only one.

use rayon::{ThreadPool, ThreadPoolBuilder, Yield};
use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// More threads than this gain little for one operator.
pub const THREADS_MAX: usize = 16;

/// Multiply-adds, about, for which another thread is asked: some microseconds of work. To ask one that is awake takes one.
pub(crate) const WORK_MIN: usize = 1 << 17;

/// To wake a thread takes some 50 µs where processors are virtual ones, longer than many an operator. So one that has helped,
/// and one that waits for those who do, stay awake for so long.
const LINGER: Duration = Duration::from_micros(500);

/// This machine's.
static PROCESSORS: Processors = Processors::new();

thread_local! {
    /// Whether this thread stays awake already.
    static LINGERS: Cell<bool> = const { Cell::new(false) };
    static THIS: Cell<This> = const { Cell::new(This { allowed: 1, is_counted: false, wanted: false, went_without: false }) };
}

/// What this thread runs, if it does.
#[derive(Clone, Copy)]
struct This {
    /// So many threads may compute an operator.
    allowed: usize,
    /// Whether it counts as one that computes.
    is_counted: bool,
    /// Whether an operator was to have more threads…
    wanted: bool,
    /// …but there were no processors for them.
    went_without: bool,
}

/// As many threads as one run may have at most on this machine: one for each processor.
pub fn threads_max() -> usize {
    PROCESSORS.count().min(THREADS_MAX)
}

/// As many threads as one run may have that is to have so many; one for each processor, if that is 0.
pub fn threads_or_max(told: usize) -> usize {
    if told == 0 { threads_max() } else { told.min(threads_max()) }
}

/// Starts those who help, rather than when somebody first needs them.
pub fn start_helpers() {
    pool();
}

/// Says that this thread computes, until what comes back is dropped: its processor is not idle.
pub fn at_work() -> AtWork {
    let this = THIS.get();
    if this.is_counted {
        return AtWork { counted: 0 };
    }
    THIS.set(This { is_counted: true, ..this });
    PROCESSORS.at_work.fetch_add(1, Ordering::Relaxed);
    AtWork { counted: 1 }
}

/// A thread that computes.
#[derive(Debug)]
pub struct AtWork {
    /// None, if it was counted before.
    counted: usize,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        if self.counted > 0 {
            PROCESSORS.at_work.fetch_sub(self.counted, Ordering::Relaxed);
            THIS.set(This { is_counted: false, ..THIS.get() });
        }
    }
}

/// From now on, this thread's operators may have so many threads.
pub(crate) fn allow(threads: usize) {
    let this = THIS.get();
    if this.allowed != threads {
        THIS.set(This { allowed: threads, ..this });
    }
}

/// Whether an operator was to have more threads since this was asked last; and whether one went without, since there were
/// not the processors.
pub(crate) fn wanted() -> [bool; 2] {
    let this = THIS.get();
    THIS.set(This { wanted: false, went_without: false, ..this });
    [this.wanted, this.went_without]
}

/// Threads that compute one operator: this one, and those that it is lent.
pub(crate) struct Team {
    lent: Lent<'static>,
    pool: Option<&'static ThreadPool>,
}

impl Team {
    /// As many as are allowed and idle, if so many multiply-adds, about, are worth it.
    pub(crate) fn of(work: usize) -> Self {
        #[cfg(test)]
        if let Some(team) = tests::forced() {
            return team;
        }
        let this = THIS.get();
        let wanted = this.allowed.min(work / WORK_MIN + 1) - 1;
        let pool = if wanted > 0 { pool() } else { None };
        let lent = PROCESSORS.lend(if pool.is_some() { wanted } else { 0 });
        if wanted > 0 {
            THIS.set(This { wanted: true, went_without: this.went_without || lent.threads < wanted, ..this });
        }
        Self { lent, pool }
    }

    /// How many there are.
    pub(crate) fn size(&self) -> usize {
        self.lent.threads + 1
    }

    /// Has each part be done, by as many threads as there are parts; there are to be as many as threads. A panic in one of
    /// them is this one's, once all are done.
    pub(crate) fn share<P: Send>(&self, parts: impl IntoIterator<Item = P>, work: impl Fn(P) + Sync) {
        let mut parts = parts.into_iter();
        let Some(first) = parts.next() else { return };
        let Some(pool) = self.pool.filter(|_| self.lent.threads > 0) else {
            return std::iter::once(first).chain(parts).for_each(work);
        };
        let (work, left) = (&work, &AtomicUsize::new(0));
        pool.in_place_scope(|scope| {
            for part in parts {
                left.fetch_add(1, Ordering::Relaxed);
                scope.spawn(move |_| {
                    work(part);
                    left.fetch_sub(1, Ordering::Relaxed);
                    linger();
                });
            }
            work(first);
            // The others need about as long as this one did: to sleep and be woken would take longer.
            let since = Instant::now();
            while left.load(Ordering::Relaxed) > 0 && since.elapsed() < LINGER {
                thread::yield_now();
            }
        });
    }
}

/// Has this thread, which helped, look for something else to help with for a while before it sleeps; not where other runs
/// want its processor.
fn linger() {
    if LINGERS.get() {
        return;
    }
    rayon::spawn(|| {
        if LINGERS.replace(true) {
            return;
        }
        let mut since = Instant::now();
        while since.elapsed() < LINGER && !PROCESSORS.are_crowded() {
            match rayon::yield_now() {
                Some(Yield::Executed) => since = Instant::now(),
                _ => thread::yield_now(),
            }
        }
        LINGERS.set(false);
    });
}

/// Those who help, started when somebody first needs them; none if the system has no threads to give.
fn pool() -> Option<&'static ThreadPool> {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    let start = || {
        let helpers = threads_max() - 1;
        let named = |index| format!("edgent-help-{index}");
        (helpers > 0).then(|| ThreadPoolBuilder::new().num_threads(helpers).thread_name(named).build().ok()).flatten()
    };
    POOL.get_or_init(start).as_ref()
}

/// Processors, and how many threads of this process compute on them.
struct Processors {
    count: OnceLock<usize>,
    at_work: AtomicUsize,
}

impl Processors {
    const fn new() -> Self {
        Self { count: OnceLock::new(), at_work: AtomicUsize::new(0) }
    }

    fn count(&self) -> usize {
        *self.count.get_or_init(|| thread::available_parallelism().map_or(1, usize::from))
    }

    /// Whether more threads compute than there are processors.
    fn are_crowded(&self) -> bool {
        self.at_work.load(Ordering::Relaxed) > self.count()
    }

    /// So many threads more, as far as there are idle processors.
    fn lend(&self, wanted: usize) -> Lent<'_> {
        let mut threads = 0;
        if wanted > 0 {
            let _ = self.at_work.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at_work| {
                threads = wanted.min(self.count().saturating_sub(at_work));
                (threads > 0).then_some(at_work + threads)
            });
        }
        Lent { from: self, threads }
    }
}

/// Threads that are given back when this is dropped.
struct Lent<'a> {
    from: &'a Processors,
    threads: usize,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if self.threads > 0 {
            self.from.at_work.fetch_sub(self.threads, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::guard::guarded;

    /// There are always enough of them.
    static PLENTY: Processors = Processors::new();

    thread_local! {
        static FORCED: Cell<usize> = const { Cell::new(1) };
    }

    /// Has each operator of this thread be computed by so many threads, however small it is and whoever else computes.
    pub(crate) fn force(threads: usize) {
        FORCED.set(threads);
    }

    pub(super) fn forced() -> Option<Team> {
        static POOL: OnceLock<ThreadPool> = OnceLock::new();
        let threads = FORCED.get();
        let start = || ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        (threads > 1).then(|| {
            PLENTY.count.get_or_init(|| usize::MAX);
            Team { lent: PLENTY.lend(threads - 1), pool: Some(POOL.get_or_init(start)) }
        })
    }

    #[test]
    fn only_idle_processors_are_lent() {
        let processors = Processors::new();
        processors.count.get_or_init(|| 4);
        processors.at_work.store(1, Ordering::Relaxed);
        let lent = |wanted| processors.lend(wanted);
        assert_eq!(lent(0).threads, 0);
        let first = lent(2);
        assert_eq!((first.threads, lent(5).threads), (2, 1), "one of four is left");
        // Somebody else begins: a processor has two threads until the operator is done, and nobody gets another.
        processors.at_work.fetch_add(2, Ordering::Relaxed);
        assert_eq!(lent(1).threads, 0);
        drop(first);
        assert_eq!(lent(2).threads, 1);
        assert_eq!(processors.at_work.load(Ordering::Relaxed), 3, "all are given back");
    }

    #[test]
    fn a_thread_counts_once_however_many_runs_are_within_each_other() {
        let counted = || THIS.get().is_counted;
        let outer = at_work();
        drop(at_work());
        assert!(counted());
        drop(outer);
        assert!(!counted());
    }

    #[test]
    fn a_panic_of_one_who_helps_ends_the_operator_and_nothing_else() {
        force(3);
        let run = |bad: Option<usize>| {
            let sums: Vec<AtomicUsize> = (0..3).map(AtomicUsize::new).collect();
            let work = |part: usize| {
                assert_ne!(Some(part), bad, "as planned");
                sums[part].fetch_add(10, Ordering::Relaxed);
            };
            guarded(|| {
                Team::of(1).share(0..3, work);
                Ok(())
            })
            .map(|()| sums.into_iter().map(AtomicUsize::into_inner).collect::<Vec<_>>())
        };
        assert_eq!(run(None).unwrap(), [10, 11, 12]);
        for bad in 0..3 {
            assert!(run(Some(bad)).unwrap_err().contains("as planned"), "{bad}");
        }
        assert_eq!(run(None).unwrap(), [10, 11, 12]);
        force(1);
    }
}
