//! A version on trial: it answers some of the requests, beside the one in force, which it must not be worse than.

use super::Device;
use super::serving::Serving;
use crate::edge::fault;
use edgent_link::{Answer, Fault, FaultKind, Trial};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A longer trial is refused: no other version can come meanwhile.
const TRIAL_MAX: Duration = Duration::from_hours(1);

/// As many requests must have been answered by both versions before their answers are compared…
const COMPARED_MIN: u64 = 20;

/// …and as many by the one on trial before it comes into force.
const TRIED_MIN: u64 = 10;

/// A good version fails at no request. One failure may be the machine's; two are the version's.
const FAILED_MAX: u64 = 1;

/// By how much a larger share of the requests it may be late.
const LATER_MAX: f64 = 0.1;

/// By how much less accurate the exits may be that it takes. A slow version keeps the deadline by leaving early.
const LESS_ACCURATE_MAX: f64 = 0.02;

/// What became of a version's requests.
#[derive(Debug, Default)]
pub(super) struct Tally {
    answered: AtomicU64,
    failed: AtomicU64,
    late: AtomicU64,
    /// The accuracies of the exits taken, added up, in millionths.
    accuracy_ppm: AtomicU64,
}

/// The same, at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    answered: u64,
    failed: u64,
    late: u64,
    accuracy_ppm: u64,
}

impl Device {
    /// Has a version answer a share of the requests, and says whether it may come into force; it goes on doing so until
    /// the trial is ended.
    pub(super) async fn try_out(&self, next: &Arc<Serving>, trial: Trial) -> Result<(), Fault> {
        let time = Duration::from_millis(trial.time_ms.into());
        if time > TRIAL_MAX {
            let why = format!("a trial of {} s is too long; {} s is the most", time.as_secs(), TRIAL_MAX.as_secs());
            return Err(fault(FaultKind::BadRequest, why));
        }
        let current = self.serving();
        let (end, before) = (Instant::now() + time, current.tally.seen());
        self.versions.begin_trial(Arc::clone(next), trial.share.into());
        let verdict = loop {
            let (tried, compared) = (next.tally.seen(), current.tally.seen().since(before));
            if let Err(why) = judge(tried, compared) {
                break Err(why);
            }
            if Instant::now() >= end {
                break enough(tried);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        let refused = |why| fault(FaultKind::Refused, format!("its trial was ended: {why}"));
        verdict.map_err(refused)
    }
}

/// What speaks against a version, by what became of its requests and, meanwhile, of those of the version in force.
fn judge(tried: Seen, current: Seen) -> Result<(), String> {
    if tried.failed > FAILED_MAX {
        return Err(format!("it failed at {} of {} requests", tried.failed, tried.failed + tried.answered));
    }
    if tried.answered.min(current.answered) < COMPARED_MIN {
        return Ok(());
    }
    let (late, usual) = (tried.share_late(), current.share_late());
    if late > usual + LATER_MAX {
        let percent = |share: f64| (share * 100.0).round();
        return Err(format!("{} % of its answers were late, and {} % of the others", percent(late), percent(usual)));
    }
    let (accuracy, usual) = (tried.accuracy(), current.accuracy());
    if accuracy < usual - LESS_ACCURATE_MAX {
        return Err(format!(
            "it takes exits of accuracy {accuracy:.3} on average, and the other version of {usual:.3}"
        ));
    }
    Ok(())
}

fn enough(tried: Seen) -> Result<(), String> {
    if tried.answered >= TRIED_MIN {
        return Ok(());
    }
    Err(format!("it got {} requests; for less than {TRIED_MIN}, try a larger share or a longer time", tried.answered))
}

/// Whether a request failed by the version's fault, rather than by its own or for want of room.
pub(super) fn is_its_own(fault: &Fault) -> bool {
    matches!(fault.kind, FaultKind::SegmentFailed | FaultKind::Internal)
}

impl Tally {
    pub(super) fn count(&self, serving: &Serving, answer: &Result<Answer, Fault>) {
        let add = |counter: &AtomicU64, count: u64| counter.fetch_add(count, Ordering::Relaxed);
        match answer {
            Ok(answer) => {
                let exit = serving.deployment.manifest().exits.get(usize::from(answer.exit));
                let accuracy = exit.map_or(0.0, |exit| exit.accuracy);
                add(&self.late, (!answer.deadline_met).into());
                add(&self.accuracy_ppm, (accuracy * 1e6) as u64);
                add(&self.answered, 1);
            }
            Err(fault) => _ = add(&self.failed, is_its_own(fault).into()),
        }
    }

    fn seen(&self) -> Seen {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (answered, failed) = (read(&self.answered), read(&self.failed));
        Seen { answered, failed, late: read(&self.late), accuracy_ppm: read(&self.accuracy_ppm) }
    }
}

impl Seen {
    fn since(self, before: Self) -> Self {
        Self {
            answered: self.answered - before.answered,
            failed: self.failed - before.failed,
            late: self.late - before.late,
            accuracy_ppm: self.accuracy_ppm - before.accuracy_ppm,
        }
    }

    fn share_late(self) -> f64 {
        self.late as f64 / self.answered as f64
    }

    fn accuracy(self) -> f64 {
        self.accuracy_ppm as f64 / 1e6 / self.answered as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(answered: u64, failed: u64, late: u64, accuracy: f64) -> Seen {
        Seen { answered, failed, late, accuracy_ppm: (accuracy * 1e6) as u64 * answered }
    }

    #[test]
    fn a_version_may_not_be_worse_than_the_one_in_force() {
        let cases = [
            (seen(0, 0, 0, 0.0), seen(0, 0, 0, 0.0), ""),
            (seen(50, 0, 5, 0.9), seen(500, 0, 10, 0.91), ""),
            (seen(50, 1, 5, 0.9), seen(500, 0, 0, 0.9), ""),
            (seen(0, 2, 0, 0.9), seen(0, 0, 0, 0.9), "it failed at 2 of 2 requests"),
            (seen(98, 2, 0, 0.9), seen(500, 9, 0, 0.9), "it failed at 2 of 100 requests"),
            (seen(50, 0, 8, 0.9), seen(500, 0, 10, 0.9), "16 % of its answers were late, and 2 % of the others"),
            // The machine is slow, not the version.
            (seen(50, 0, 25, 0.9), seen(500, 0, 250, 0.9), ""),
            (seen(50, 0, 0, 0.83), seen(500, 0, 0, 0.91), "it takes exits of accuracy 0.830 on average"),
            // Too few to tell.
            (seen(19, 0, 19, 0.1), seen(500, 0, 0, 0.9), ""),
            (seen(50, 0, 50, 0.1), seen(19, 0, 0, 0.9), ""),
        ];
        for (tried, current, expected) in cases {
            let verdict = judge(tried, current).err().unwrap_or_default();
            let is_expected = if expected.is_empty() { verdict.is_empty() } else { verdict.starts_with(expected) };
            assert!(is_expected, "{tried:?} against {current:?}: '{verdict}' in place of '{expected}'");
        }
        assert!(enough(seen(9, 0, 0, 0.9)).is_err());
        assert!(enough(seen(10, 0, 0, 0.9)).is_ok());
    }
}
