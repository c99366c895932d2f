//! Measures segments again: those that seemed slow and have not run since (see [`edgent_planner::Doubt`]), and, from time to
//! time, on how many threads each should run. Both only where the workers have nothing else that can be in time.

use crate::edge::duration;
use crate::{Deployment, Due, Turn, Workers};
use edgent_planner::Timings;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How often it is looked whether something should be.
pub(crate) const LOOK: Duration = Duration::from_millis(500);

/// A host that has no moment for it by then has enough to do, and is measured by that.
const PATIENCE: Duration = Duration::from_secs(60);

/// What segments take, if they are doubted; or if it is time to see on how many threads they should run, and some have others
/// now. `takes`, as [`takes`] guesses it, is how long one run of all takes.
pub(crate) async fn look(
    deployment: &Arc<Deployment>,
    workers: &Workers,
    is_doubted: bool,
    takes: Duration,
) -> Vec<(usize, f64)> {
    match is_doubted || choose_threads(deployment, workers, takes).await {
        true => measure(deployment, workers, takes).await,
        false => Vec::new(),
    }
}

/// Runs every segment that is held until older times are forgotten. What cannot be run gives no times.
async fn measure(deployment: &Arc<Deployment>, workers: &Workers, takes: Duration) -> Vec<(usize, f64)> {
    let mut all = Vec::new();
    for _ in 0..Timings::MEDIAN_RUNS {
        let measured = at_leisure(deployment, workers, takes, |deployment| deployment.measure(1).ok()).await;
        let Some(Some(segments_us)) = measured else { break };
        all.extend(segments_us);
    }
    all
}

/// Where that was long ago, measures on how many threads segments should run, one by one; whether some have others now.
async fn choose_threads(deployment: &Arc<Deployment>, workers: &Workers, takes: Duration) -> bool {
    let mut is_other = false;
    for index in deployment.threads_due() {
        let choose = move |deployment: &Deployment| deployment.choose_threads_of(index);
        let Some(chosen) = at_leisure(deployment, workers, takes, choose).await else { break };
        is_other |= chosen;
    }
    is_other
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
