//! How long requests for a model wait for a worker, as an edge tells it to those who plan.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// What one request waited counts this much, beside those before it.
const WEIGHT: f64 = 1.0 / 8.0;

/// What was true is half as true after so long: those who are told that they would wait here ask elsewhere, and nobody is
/// left to find out that they would not any more.
const HALVED_AFTER: Duration = Duration::from_secs(1);

/// Of all requests, the last counting most.
#[derive(Debug)]
pub(super) struct Queue(Mutex<Seen>);

#[derive(Debug)]
struct Seen {
    us: f64,
    at: Instant,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Seen { us: 0.0, at: Instant::now() }))
    }

    /// A request began after so long.
    pub(super) fn waited(&self, us: u64) {
        let (mut seen, now) = (self.seen(), Instant::now());
        let before = seen.us_at(now);
        *seen = Seen { us: before + WEIGHT * (us as f64 - before), at: now };
    }

    /// What one is likely to wait now.
    pub(super) fn us(&self) -> f64 {
        self.seen().us_at(Instant::now())
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn us_at(&self, now: Instant) -> f64 {
        let halvings = now.saturating_duration_since(self.at).as_secs_f64() / HALVED_AFTER.as_secs_f64();
        self.us * (-halvings).exp2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    #[tokio::test(start_paused = true)]
    async fn what_was_waited_is_forgotten_when_nobody_asks() {
        let queue = Queue::new();
        (0..50).for_each(|_| queue.waited(80_000));
        assert!((79_000.0..=80_000.0).contains(&queue.us()), "{}", queue.us());
        advance(3 * HALVED_AFTER).await;
        assert!((9_000.0..=10_000.0).contains(&queue.us()), "{}", queue.us());
        queue.waited(0);
        assert!(queue.us() < 9_000.0, "{}", queue.us());
    }
}
