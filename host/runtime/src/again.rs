//! Measures segments again that seemed slow and have not run since: see [`edgent_planner::Doubt`].

use crate::edge::duration;
use crate::{Deployment, Due, Turn, Workers};
use edgent_planner::Timings;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A host that has no moment for it by then has enough to do, and is measured by that.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs every segment that is held, whenever its workers have nothing that can be in time, until older times are
/// forgotten; `takes`, as [`takes`] guesses it, is how long one run takes. What cannot be run gives no times.
pub(crate) async fn measure(deployment: &Arc<Deployment>, workers: &Workers, takes: Duration) -> Vec<(usize, f64)> {
    let mut all = Vec::new();
    for _ in 0..Timings::MEDIAN_RUNS {
        let (done, measured) = oneshot::channel();
        let deployment = Arc::clone(deployment);
        // Due at once, so late from the start, and behind whoever is not.
        let now = Instant::now();
        let due = Due { at: now, takes, late_until: Some(now + PATIENCE) };
        let job = move |turn| drop(done.send((turn == Turn::Run).then(|| deployment.measure(1).ok()).flatten()));
        if workers.submit(due, job).is_err() {
            break;
        }
        let Ok(Some(segments_us)) = measured.await else { break };
        all.extend(segments_us);
    }
    all
}

/// How long one run of all segments takes by what is known; those that never ran are not held.
pub(crate) fn takes(known: &Timings) -> Duration {
    duration(known.medians_us().into_iter().filter(|us| us.is_finite()).sum())
}
