//! Who answers a request that needs an edge: the one in force, the next one, or the device alone. The first good answer
//! wins.
//!
//! The edge in force is asked first. If it fails, or is overdue, the next one is asked, too, as long as it can still be in
//! time; at the last moment at which a local exit fits, that is started beside them. If the edge has just let another
//! request wait until its last moment, that is not waited for: all who wait would want a worker one after the other, and
//! those who come later and ask no edge would have it before them. Pure, as `ranking.rs` is.

use std::time::Duration;

/// Who may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runner {
    /// The edge in force.
    First,
    /// Another edge that knows the plan in force.
    Next,
    /// The device.
    Alone,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Start(Runner),
    /// Until somebody answers or fails, or until then.
    Wait(Option<Duration>),
    /// Nobody is left.
    GiveUp,
}

/// Moments are counted from the same zero as `now`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// When the first edge's answer is later than predictions are in all but a few cases; none: it is waited for.
    pub(super) overdue: Option<Duration>,
    /// The last moment at which the next edge would be in time; none: there is no other.
    pub(super) next_until: Option<Duration>,
    /// When a local exit must start.
    pub(super) last_moment: Duration,
}

#[derive(Debug)]
pub(super) struct Race {
    terms: Terms,
    /// The first edge has let another request wait until its last moment.
    hangs: bool,
    first: State,
    next: State,
    alone: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waits,
    Runs,
    Failed,
}

impl Race {
    pub(super) fn new(terms: Terms) -> Self {
        Self { terms, hangs: false, first: State::Waits, next: State::Waits, alone: State::Waits }
    }

    /// What to do now; it is asked again after each start, failure and wait.
    pub(super) fn step(&mut self, now: Duration) -> Step {
        if self.first == State::Waits {
            self.first = State::Runs;
            return Step::Start(Runner::First);
        }
        let is_overdue =
            self.first == State::Failed || self.hangs || self.terms.overdue.is_some_and(|overdue| overdue <= now);
        let next_can = self.next == State::Waits && self.terms.next_until.is_some_and(|until| now <= until);
        if next_can && is_overdue {
            self.next = State::Runs;
            return Step::Start(Runner::Next);
        }
        let edges_run = self.first == State::Runs || self.next == State::Runs;
        let hangs = self.hangs && self.next != State::Runs;
        if self.alone == State::Waits && (!edges_run || hangs || self.terms.last_moment <= now) {
            self.alone = State::Runs;
            return Step::Start(Runner::Alone);
        }
        if !edges_run && self.alone == State::Failed {
            return Step::GiveUp;
        }
        let overdue = self.terms.overdue.filter(|overdue| next_can && *overdue > now);
        let last_moment = (self.alone == State::Waits).then_some(self.terms.last_moment);
        Step::Wait(overdue.into_iter().chain(last_moment).min())
    }

    pub(super) fn hangs(&mut self) {
        self.hangs = true;
    }

    pub(super) fn failed(&mut self, runner: Runner) {
        let state = match runner {
            Runner::First => &mut self.first,
            Runner::Next => &mut self.next,
            Runner::Alone => &mut self.alone,
        };
        *state = State::Failed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Runner::{Alone, First, Next};
    use Step::{GiveUp, Start, Wait};

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn race(overdue: Option<u64>, next_until: Option<u64>, last_moment: u64) -> Race {
        let terms = Terms { overdue: overdue.map(ms), next_until: next_until.map(ms), last_moment: ms(last_moment) };
        Race::new(terms)
    }

    #[test]
    fn an_overdue_edge_is_joined_by_the_next_and_at_the_last_moment_by_the_device() {
        let mut race = race(Some(30), Some(50), 80);
        assert_eq!(race.step(ms(0)), Start(First));
        assert_eq!(race.step(ms(0)), Wait(Some(ms(30))));
        assert_eq!(race.step(ms(30)), Start(Next));
        assert_eq!(race.step(ms(30)), Wait(Some(ms(80))));
        assert_eq!(race.step(ms(80)), Start(Alone));
        assert_eq!(race.step(ms(80)), Wait(None));
        race.failed(Alone);
        assert_eq!(race.step(ms(81)), Wait(None), "an edge may still answer");
        race.failed(First);
        race.failed(Next);
        assert_eq!(race.step(ms(82)), GiveUp);
    }

    #[test]
    fn a_failure_is_followed_by_the_next_edge_if_it_can_be_in_time_and_else_by_the_device() {
        for (failed_at, then) in [(10, Next), (50, Next), (51, Alone)] {
            let mut race = race(None, Some(50), 80);
            assert_eq!(race.step(ms(0)), Start(First));
            race.failed(First);
            assert_eq!(race.step(ms(failed_at)), Start(then), "failed at {failed_at} ms");
        }
        let mut race = race(None, Some(50), 80);
        race.step(ms(0));
        race.failed(First);
        race.step(ms(10));
        race.failed(Next);
        assert_eq!(race.step(ms(20)), Start(Alone));
    }

    #[test]
    fn nobody_waits_for_an_edge_that_let_another_wait_too_long() {
        for (next_until, then) in [(Some(50), Next), (Some(5), Alone), (None, Alone)] {
            let mut race = race(Some(30), next_until, 80);
            assert_eq!(race.step(ms(0)), Start(First));
            race.hangs();
            assert_eq!(race.step(ms(10)), Start(then), "{next_until:?}");
        }
        let mut race = race(Some(30), Some(50), 80);
        race.step(ms(0));
        race.hangs();
        race.step(ms(10));
        assert_eq!(race.step(ms(11)), Wait(Some(ms(80))), "the next one is another");
        assert_eq!(race.step(ms(80)), Start(Alone));
    }

    #[test]
    fn without_another_edge_only_the_last_moment_counts() {
        let mut race = race(Some(30), None, 80);
        assert_eq!(race.step(ms(0)), Start(First));
        assert_eq!(race.step(ms(40)), Wait(Some(ms(80))));
        assert_eq!(race.step(ms(90)), Start(Alone));
    }
}
