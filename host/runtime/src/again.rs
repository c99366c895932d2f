//! Measures segments again: those that seemed slow and have not run since (see [`edgent_planner::Doubt`]), and, from time to
//! time, on how many threads each should run. Both only where the workers have nothing else that can be in time.

use crate::edge::duration;
use crate::{Deployment, Due, Turn, Workers};
use edgent_planner::Timings;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How often it is looked whether something should be.
pub(crate) const LOOK: Duration = Duration::from_millis(500);

/// A host that has no moment for it by then has enough to do, and is measured by that.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs every segment that is held until older times are forgotten; `takes`, as [`takes`] guesses it, is how long one run
/// takes. What cannot be run gives no times.
pub(crate) async fn measure(deployment: &Arc<Deployment>, workers: &Workers, takes: Duration) -> Vec<(usize, f64)> {
    let mut all = Vec::new();
    for _ in 0..Timings::MEDIAN_RUNS {
        let measured = at_leisure(deployment, workers, takes, |deployment| deployment.measure(1).ok()).await;
        let Some(Some(segments_us)) = measured else { break };
        all.extend(segments_us);
    }
    all
}

/// Measures again on how many threads segments should run, where that was long ago, one by one. If some have others now, times
/// of all segments, as [`measure`] gives them.
pub(crate) async fn choose_threads(
    deployment: &Arc<Deployment>,
    workers: &Workers,
    takes: Duration,
) -> Vec<(usize, f64)> {
    let mut is_other = false;
    for index in deployment.threads_due() {
        // Segments share graphs, and versions do.
        let chosen =
            at_leisure(deployment, workers, takes, move |deployment| deployment.choose_threads_of(index)).await;
        let Some(chosen) = chosen else { break };
        is_other |= chosen;
    }
    if is_other { measure(deployment, workers, takes).await } else { Vec::new() }
}

/// Has a worker do something, late from the start, and so behind whoever is not; nothing, if it never is its turn.
async fn at_leisure<T: Send + 'static>(
    deployment: &Arc<Deployment>,
    workers: &Workers,
    takes: Duration,
    work: impl FnOnce(&Deployment) -> T + Send + 'static,
) -> Option<T> {
    let (done, result) = oneshot::channel();
    let deployment = Arc::clone(deployment);
    let now = Instant::now();
    let due = Due { at: now, takes, late_until: Some(now + PATIENCE) };
    let job = move |turn| drop(done.send((turn == Turn::Run).then(|| work(&deployment))));
    workers.submit(due, job).ok()?;
    result.await.ok().flatten()
}

/// How long one run of all segments takes by what is known; those that never ran are not held.
pub(crate) fn takes(known: &Timings) -> Duration {
    duration(known.medians_us().into_iter().filter(|us| us.is_finite()).sum())
}
