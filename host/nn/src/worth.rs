//! How many threads a graph's runs are worth, by measurement.

use crate::threads::{WORK_MIN, threads_max, wanted};
use crate::written::example;
use crate::{ComputeError, Graph, Stop, Tensor, TensorError};
use std::time::{Duration, Instant};

/// So many times shorter a run must be on twice the threads: others could have used their processors.
const GAIN_MIN: f64 = 1.2;

/// A graph that takes fewer is over before another thread is of any use, and is not measured.
const MACS_MIN: u64 = 4 * WORK_MIN as u64;

/// Each number of threads is measured so often, by turns, but not for longer than this; once at least.
const ROUNDS: usize = 5;
const MEASURING: Duration = Duration::from_millis(60);

/// After so many, it is over where none was so many times as fast as one.
const ROUNDS_MIN: usize = 2;
const GAIN_SEEN: f64 = 1.05;

/// How many threads a graph runs on, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Threads {
    /// As many as are worth it.
    pub threads: usize,
    /// What it takes on so many, in microseconds: the shortest of some runs. Nothing, if no operator of it is worth several.
    pub times_us: Vec<(usize, f64)>,
}

impl Graph {
    /// How many threads its runs may have: one, until that was measured.
    pub fn threads(&self) -> usize {
        self.chosen_threads().get().map_or(1, |chosen| chosen.threads)
    }

    /// How that was chosen, if it was.
    pub fn threads_chosen(&self) -> Option<&Threads> {
        self.chosen_threads().get()
    }

    pub(crate) fn threads_of(&self, operator: usize) -> usize {
        self.parts().map_or_else(|| self.threads(), |parts| parts.graphs[parts.of[operator]].threads())
    }

    /// Measures how many threads are worth it, of at most so many. It stays as it was if other runs had the processors
    /// meanwhile, or if the graph cannot be run on examples.
    pub fn choose_threads(&self, most: usize) {
        let most = most.min(threads_max());
        if most < 2 || !self.can_be_joined() || self.chosen_threads().get().is_some() {
            return;
        }
        if let Ok(Some(chosen)) = self.measure_threads(most) {
            // Whoever was first.
            let _ = self.chosen_threads().set(chosen);
        }
    }

    fn measure_threads(&self, most: usize) -> Result<Option<Threads>, ComputeError> {
        let one = || Threads { threads: 1, times_us: Vec::new() };
        if self.cost().macs < MACS_MIN {
            return Ok(Some(one()));
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
                    return Ok(Some(one()));
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
            if round > 0 && start.elapsed() > MEASURING || round >= ROUNDS_MIN && !gains {
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
        let expected = (threads_max() > 1).then(|| Threads { threads: 1, times_us: Vec::new() });
        assert_eq!(graph.threads_chosen(), expected.as_ref());
    }
}
