//! How many threads a graph's runs are worth, by measurement.

use crate::threads::{WORK_MIN, threads_max, wanted};
use crate::written::example;
use crate::{ComputeError, Graph, Stop, Tensor, TensorError};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// So many times shorter a run must be on twice the threads: others could have used their processors.
const GAIN_MIN: f64 = 1.2;

/// A graph that takes fewer is over before another thread is of any use, and is not measured.
const MACS_MIN: u64 = 16 * WORK_MIN as u64;

/// Each number of threads is measured so often, by turns, but not for longer than this…
const ROUNDS: usize = 5;
const MEASURING: Duration = Duration::from_millis(60);

/// …unless it was so few times, and for less than this. Once at least.
const ROUNDS_MIN: usize = 3;
const MEASURING_MAX: Duration = Duration::from_secs(1);

/// After [`ROUNDS_MIN`], it is over where none was so many times as fast as one.
const GAIN_SEEN: f64 = 1.05;

/// Others may have used the machine meanwhile, so what was chosen is measured again after so long…
const AGAIN_MIN: Duration = Duration::from_secs(60);

/// …and after so many times as long from then on, up to this.
const AGAIN_FACTOR: u32 = 4;
const AGAIN_MAX: Duration = Duration::from_secs(3_600);

/// How many threads a graph runs on, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Threads {
    /// As many as are worth it.
    pub threads: usize,
    /// What it takes on so many, in microseconds: the shortest of some runs. Nothing, if no operator of it is worth several.
    pub times_us: Vec<(usize, f64)>,
}

impl Threads {
    fn one() -> Self {
        Self { threads: 1, times_us: Vec::new() }
    }
}

/// What was chosen for a graph, if it was, and when it is measured next.
#[derive(Debug, Default)]
pub(crate) struct Chosen {
    /// As `how` has it, without a lock: each operator looks. None yet: 0.
    threads: AtomicUsize,
    how: Mutex<How>,
}

#[derive(Debug, Default)]
struct How {
    threads: Option<Threads>,
    /// None: at once.
    next: Option<Instant>,
    pause: Duration,
}

impl Chosen {
    fn how(&self) -> MutexGuard<'_, How> {
        self.how.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_due(&self, now: Instant) -> bool {
        let how = self.how();
        // Where there is nothing to divide, there never will be.
        let is_settled = how.threads.as_ref().is_some_and(|threads| threads.times_us.is_empty());
        !is_settled && how.next.is_none_or(|next| next <= now)
    }

    /// Takes what was measured; nothing, if that said nothing. Whether other runs than before are the consequence.
    fn set(&self, threads: Option<Threads>, now: Instant) -> bool {
        let mut how = self.how();
        let longer = if threads.is_some() { how.pause * AGAIN_FACTOR } else { how.pause };
        how.pause = longer.clamp(AGAIN_MIN, AGAIN_MAX);
        how.next = now.checked_add(how.pause);
        let Some(threads) = threads else { return false };
        let before = self.threads.swap(threads.threads, Ordering::Relaxed);
        let is_other = before.max(1) != threads.threads;
        how.threads = Some(threads);
        is_other
    }
}

impl Graph {
    /// How many threads its runs may have: one, until that was measured.
    pub fn threads(&self) -> usize {
        self.chosen_threads().threads.load(Ordering::Relaxed).max(1)
    }

    /// How that was chosen, if it was.
    pub fn threads_chosen(&self) -> Option<Threads> {
        self.chosen_threads().how().threads.clone()
    }

    pub(crate) fn threads_of(&self, operator: usize) -> usize {
        self.parts().map_or_else(|| self.threads(), |parts| parts.graphs[parts.of[operator]].threads())
    }

    /// Whether [`Self::choose_threads`] would measure: it never did, or so long ago that it should again.
    pub fn threads_are_due(&self, most: usize) -> bool {
        most.min(threads_max()) > 1 && self.can_be_joined() && self.chosen_threads().is_due(Instant::now())
    }

    /// Measures how many threads are worth it, of at most so many, if that is due. It stays as it was if other runs had the
    /// processors meanwhile, or if the graph cannot be run on examples. Whether it is another number now.
    pub fn choose_threads(&self, most: usize) -> bool {
        self.threads_are_due(most) && {
            let measured = self.measure_threads(most.min(threads_max())).ok().flatten();
            self.chosen_threads().set(measured, Instant::now())
        }
    }

    fn measure_threads(&self, most: usize) -> Result<Option<Threads>, ComputeError> {
        if self.cost().macs < MACS_MIN {
            return Ok(Some(Threads::one()));
        }
        let failed = |e: &dyn std::fmt::Display| ComputeError::Failed(e.to_string());
        let inputs = self.inputs().iter().map(|port| Ok((port.name.clone(), example(&port.fact, 1)?)));
        let inputs: Vec<(String, Tensor)> = inputs.collect::<Result<_, _>>().map_err(|e: TensorError| failed(&e))?;
        let counts = || (0..).map(|power| 1 << power).take_while(|count| *count < most).chain([most]);
        let context = |count| Ok((count, self.context().map_err(|e| failed(&e))?.on_threads(count), f64::INFINITY));
        let mut all = counts().map(context).collect::<Result<Vec<_>, ComputeError>>()?;
        let (start, _) = (Instant::now(), wanted());
        for round in 0..=ROUNDS {
            for (_, context, least_us) in all.iter_mut().rev() {
                let since = Instant::now();
                context.compute(inputs.clone(), &Stop::never())?;
                let [wanted, went_without] = wanted();
                if round == 0 && context.threads_given() == Some(most) && !wanted {
                    return Ok(Some(Threads::one()));
                }
                if went_without {
                    return Ok(None);
                }
                // The first time is for warming up.
                if round > 0 {
                    *least_us = least_us.min(since.elapsed().as_secs_f64() * 1e6);
                }
            }
            let gains = all[1..].iter().any(|(_, _, us)| us * GAIN_SEEN < all[0].2);
            let most = if round < ROUNDS_MIN { MEASURING_MAX } else { MEASURING };
            if round > 0 && start.elapsed() > most || round >= ROUNDS_MIN && !gains {
                break;
            }
        }
        let times_us: Vec<(usize, f64)> = all.into_iter().map(|(count, _, us)| (count, us)).collect();
        Ok(Some(Threads { threads: worth_it(&times_us), times_us }))
    }
}

/// The greatest number of threads of which each that is more than the one before is worth it.
fn worth_it(times_us: &[(usize, f64)]) -> usize {
    let mut best: Option<(usize, f64)> = None;
    for (count, us) in times_us {
        if best.is_none_or(|(_, best_us)| us * GAIN_MIN <= best_us) {
            best = Some((*count, *us));
        }
    }
    best.map_or(1, |(count, _)| count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ElementType, Fact};

    #[test]
    fn threads_that_gain_little_are_left_to_others() {
        for (times_us, expected) in [
            (&[(1, 100.0)][..], 1),
            (&[(1, 100.0), (2, 60.0)], 2),
            (&[(1, 100.0), (2, 90.0)], 1),
            (&[(1, 100.0), (2, 60.0), (4, 55.0)], 2),
            (&[(1, 100.0), (2, 60.0), (4, 40.0)], 4),
            // Two are not worth it; but four are.
            (&[(1, 100.0), (2, 90.0), (4, 50.0)], 4),
        ] {
            assert_eq!(worth_it(times_us), expected, "{times_us:?}");
        }
    }

    /// On a machine with one processor there is nothing to choose, and none is chosen.
    #[test]
    fn what_has_nothing_to_divide_gets_one_thread() {
        let fact = Fact::new(ElementType::F32, &[1, 8]).unwrap();
        let graph = Graph::identity("x", &fact).unwrap();
        graph.choose_threads(usize::MAX);
        assert_eq!(graph.threads(), 1);
        assert_eq!(graph.threads_chosen(), (threads_max() > 1).then(Threads::one));
        assert!(!graph.threads_are_due(usize::MAX), "nor will it ever");
    }

    #[test]
    fn a_choice_is_measured_again_ever_more_rarely_and_may_change() {
        let (chosen, start) = (Chosen::default(), Instant::now());
        let two = || Some(Threads { threads: 2, times_us: vec![(1, 100.0), (2, 60.0)] });
        let one = || Some(Threads { threads: 1, times_us: vec![(1, 100.0), (2, 99.0)] });
        let mut now = start;
        // What was measured, whether that changed something, and after how many minutes it is due again.
        for (measured, changes, pause_min) in [
            (one(), false, 1),
            // Others had the processors: it stays as it was.
            (None, false, 1),
            (two(), true, 4),
            (two(), false, 16),
            (None, false, 16),
            (one(), true, 60),
            (one(), false, 60),
        ] {
            let before = chosen.how().threads.clone();
            assert!(chosen.is_due(now));
            assert_eq!(chosen.set(measured.clone(), now), changes, "{measured:?}");
            assert_eq!(chosen.how().threads, measured.or(before));
            now += Duration::from_secs(pause_min * 60);
            assert!(!chosen.is_due(now - Duration::from_secs(1)), "{pause_min}");
        }
    }
}
