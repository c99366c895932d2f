//! The edge as a host that is asked itself: it runs the whole network, at the most accurate exit that is in time.

use super::{Edge, Model, fault, us};
use crate::answer::{Answered, Said, accuracy_min};
use crate::shelf::Shelf;
use crate::workers::{CancelOnDrop, Turn, hopeless};
use crate::{Deployment, Due, codec, trace};
use edgent_link::{Answer, AskRequest, Codec, Digest, Direction, Fault, FaultKind, Placement};
use edgent_nn::{Fact, Stop};
use edgent_planner::{self as planner, Choice, Coding, Constraints, Margin, PerCodec, Profile};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

impl Edge {
    pub(crate) fn shelf(&self) -> &Arc<Shelf> {
        &self.served.shelf
    }

    /// The versions that are served; the one in force of each model before its others.
    pub(crate) fn served(&self) -> Vec<Arc<Deployment>> {
        let models = self.served.models();
        let in_force = self.served.in_force.read().unwrap_or_else(PoisonError::into_inner);
        let mut served: Vec<_> = models.iter().collect();
        let rank = |(digest, model): &(&Digest, &Arc<Model>)| {
            let name = model.deployment.manifest().name.clone();
            (in_force.get(&name) != Some(digest), name, **digest)
        };
        served.sort_by_cached_key(rank);
        served.into_iter().map(|(_, model)| Arc::clone(&model.deployment)).collect()
    }

    /// How long a request with the usual deadline would wait for its turn, and that deadline.
    pub(crate) fn wait_us(&self) -> (f64, f64) {
        let due = Instant::now() + Duration::from_micros(self.deadline_us as u64);
        let models = self.served.models();
        let waits = models.values().map(|model| model.workers.wait(due));
        (waits.max().unwrap_or_default().as_secs_f64() * 1e6, self.deadline_us)
    }

    /// Answers by one of the versions that are served.
    pub(crate) async fn ask(&self, request: AskRequest, version: Digest) -> Answered {
        let add = |counter: &AtomicU64, condition: bool| counter.fetch_add(condition.into(), Ordering::Relaxed);
        let _in_flight = self.served.metrics.begin();
        add(&self.requests, true);
        let mut span = trace::request(request.trace);
        let answered = self.answer(AskRequest { trace: span.context(), ..request }, version).await;
        span.answered(&answered);
        add(&self.answered, answered.is_ok());
        add(&self.errors, answered.is_err());
        if let Ok((answer, _)) = &answered {
            add(&self.deadline_met, answer.deadline_met);
            add(&self.degraded, answer.degraded.is_some());
        }
        self.served.metrics.answered(&answered);
        answered
    }

    async fn answer(&self, request: AskRequest, version: Digest) -> Answered {
        let arrived = Instant::now();
        let model = self.served.model(&version)?;
        let inputs: Vec<&Fact> = model.deployment.inputs().collect();
        let input = codec::decode_all(&request.input, &request.beside, &inputs);
        let input = input.map_err(|e| fault(FaultKind::BadRequest, e.to_string()))?;
        let deadline_us = if request.deadline_us == 0 { self.deadline_us } else { request.deadline_us as f64 };
        let choice = model.choose(deadline_us, accuracy_min(&model.deployment, &request)?);
        let exit = choice.candidate.plan.exit;
        let range = 0..model.deployment.network().exits()[exit].path.len();

        let mut span = trace::part(request.trace, &model.deployment, exit, &range);
        let (done, result) = oneshot::channel();
        let stop = Stop::never();
        let _unwanted = CancelOnDrop(stop.clone());
        // In its turn by its deadline: a little late is better than never, and is said.
        let takes = model.takes(exit, range.clone());
        let due = Due::or_late(arrived, arrived + Duration::from_micros(deadline_us as u64), takes);
        let work = {
            let model = Arc::clone(&model);
            move |turn| {
                model.started(arrived);
                let ran = (turn == Turn::Run).then(|| model.deployment.run(exit, range, input, &stop));
                drop(done.send(ran));
            }
        };
        model.workers.submit(due, work).map_err(|busy| fault(FaultKind::Busy, busy.to_string()))?;
        let ran = result.await.map_err(|_| fault(FaultKind::Internal, "the edge's worker died"))?;
        let ran = ran.ok_or_else(|| hopeless(arrived))?;
        if let Some(why) = model.deployment.new_quarantine() {
            self.served.quarantine(&self.runtime, &model, why);
        }
        let ran = ran.map_err(|e| fault(FaultKind::SegmentFailed, e.to_string()));
        let ran = ran.inspect_err(|fault| span.failed(fault))?;
        span.end();
        model.learn(&ran.segments_us);
        let answer = answer(&model.deployment, &request, &choice, &ran.output, (arrived, deadline_us))?;
        Ok((answer, Arc::clone(&model.deployment)))
    }
}

impl Model {
    /// The most accurate exit that is in time here, counting on slow runs; the fastest if none is.
    fn choose(&self, deadline_us: f64, accuracy_min: f64) -> Choice {
        let network = self.deployment.network();
        let measured = self.measured();
        let device_us = (0..network.segments()).map(|segment| measured.timings.p90_us(segment)).collect();
        drop(measured);
        let coding = PerCodec::from_fn(|_| Coding::NONE);
        // To the planner, who runs all of it alone is the device.
        let profile = Profile { device_us, edge_us: Vec::new(), edge_queue_us: 0.0, coding };
        let deadline_us = deadline_us - self.queue.us();
        let (codec_loss_max, input_may_leave, link, margin) = (0.0, true, None, Margin::NONE);
        planner::choose(
            network,
            &profile,
            &Constraints { deadline_us, codec_loss_max, input_may_leave, link, accuracy_min, margin },
        )
    }
}

fn answer(
    deployment: &Deployment,
    request: &AskRequest,
    choice: &Choice,
    output: &[edgent_nn::Tensor],
    (arrived, deadline_us): (Instant, f64),
) -> Result<Answer, Fault> {
    let Said { label, scores, outputs } = Said::new(deployment.manifest(), output)?;
    let latency_us = us(arrived.elapsed());
    Ok(Answer {
        id: request.id,
        label,
        scores,
        outputs,
        exit: u16::try_from(choice.candidate.plan.exit).unwrap_or(u16::MAX),
        cut: 0,
        direction: Direction::DeviceFirst,
        codec: Codec::Raw,
        placement: Placement::EdgeOnly,
        latency_us,
        deadline_us: deadline_us as u64,
        deadline_met: latency_us as f64 <= deadline_us,
        degraded: (!choice.fits).then(|| "no exit is likely to be in time; this is the fastest".to_owned()),
        // No two hosts had to agree.
        epoch: 0,
        rate_bps: 0,
        predicted_us: choice.candidate.cost.total_us() as u64,
        in_time: if choice.fits { 1.0 } else { 0.0 },
        model: Some(Digest(deployment.digest().0)),
    })
}
