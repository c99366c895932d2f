//! Requests at a steady pace, and what became of each.

use crate::ask::ask;
use crate::rig::test_samples;
use anyhow::{Context, Result};
use edgent_bundle::Bundle;
use edgent_link::{Answer, Client, Codec, Placement};
use edgent_nn::Tensor;
use edgent_runtime::Deployment;
use edgent_runtime::confidence::softmax;
use edgent_sandbox::Engine;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// Between two requests.
const PACE: Duration = Duration::from_millis(40);
const IMAGES: usize = 20;

/// The largest difference of a score from what the network gives. Activations that cross as they are change nothing;
/// codecs may, since they were found to cost no accuracy, but not as an activation does that is another image's.
const SCORE_DIFFERENCE_MAX: f32 = 1e-5;
const CODED_DIFFERENCE_MAX: f32 = 0.2;

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Record {
    asked: Instant,
    answered: Option<Instant>,
    /// None while it is on its way, or if it is lost.
    pub(super) answer: Option<Answer>,
    /// Why it is lost.
    pub(super) error: Option<String>,
    /// By the furthest score from what the network gives.
    difference: f32,
}

impl Record {
    pub(super) const CSV_HEAD: &str =
        "fault,asked_ms,latency_ms,deadline_ms,in_time,exit,cut,placement,degraded,error\n";

    /// A line of the table that [`Self::CSV_HEAD`] begins; what has no answer leaves its fields empty.
    pub(super) fn csv(&self, fault: &str, since: Instant) -> String {
        let quoted =
            |text: Option<&str>| text.map_or(String::new(), |text| format!("\"{}\"", text.replace('"', "\"\"")));
        let asked_ms = (self.asked - since).as_secs_f64() * 1e3;
        let answered = self.answer.as_ref().map_or(",,,,,,".to_owned(), |answer| {
            let Answer { deadline_met, exit, cut, placement, .. } = answer;
            let ms = |us: u64| us as f64 / 1e3;
            let (latency_ms, deadline_ms) = (ms(answer.latency_us), ms(answer.deadline_us));
            let (placement, degraded) = (placement.name(), quoted(answer.degraded.as_deref()));
            format!("{latency_ms:.3},{deadline_ms},{deadline_met},{exit},{cut},{placement},{degraded}")
        });
        format!("{},{asked_ms:.1},{answered},{}\n", quoted(Some(fault)), quoted(self.error.as_deref()))
    }

    pub(super) fn is_wrong(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| {
            let as_it_is = answer.codec == Codec::Raw || answer.placement == Placement::DeviceOnly;
            let most = if as_it_is { SCORE_DIFFERENCE_MAX } else { CODED_DIFFERENCE_MAX };
            self.difference > most
        })
    }

    pub(super) fn is_in_time(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| answer.deadline_met)
    }

    /// How much later than in time it was answered.
    pub(super) fn late_by_ms(&self) -> f64 {
        self.answer.as_ref().map_or(0.0, |answer| answer.latency_us.saturating_sub(answer.deadline_us) as f64 / 1e3)
    }

    pub(super) fn is_degraded(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| answer.degraded.is_some())
    }

    fn is_with_the_edge(&self) -> bool {
        self.answer
            .as_ref()
            .is_some_and(|answer| answer.degraded.is_none() && answer.placement != Placement::DeviceOnly)
    }
}

/// A steady load; ends when dropped.
pub(super) struct Load {
    records: watch::Receiver<Vec<Record>>,
    enough: watch::Sender<bool>,
    asking: JoinHandle<()>,
}

impl Load {
    pub(super) fn start(client: Client, bundle: &Bundle) -> Result<Self> {
        let images: Vec<Tensor> = test_samples(bundle)?.into_iter().take(IMAGES).map(|sample| sample.image).collect();
        let expected = expected(bundle, &images)?;
        let (records, seen) = watch::channel(Vec::new());
        let (enough, stop) = watch::channel(false);
        let asking = tokio::spawn(ask_on(client, Arc::new(images), Arc::new(expected), records, stop));
        Ok(Self { records: seen, enough, asking })
    }

    /// Waits for an answer with the edge to a request asked since then; says when it came.
    pub(super) async fn answered_with_the_edge(&mut self, since: Instant, patience: Duration) -> Result<Instant> {
        let found = |records: &Vec<Record>| {
            let asked_since = records.iter().rev().take_while(|record| record.asked >= since);
            asked_since.filter(|record| record.is_with_the_edge()).filter_map(|record| record.answered).min()
        };
        let waiting = self.records.wait_for(|records| found(records).is_some());
        let records = tokio::time::timeout(patience, waiting).await.context("no answer with the edge")?;
        found(&*records?).context("no answer with the edge")
    }

    /// The requests asked in that time, when each has been answered or lost.
    pub(super) async fn asked_within(&mut self, from: Instant, to: Instant) -> Vec<Record> {
        let within = |record: &&Record| record.asked >= from && record.asked < to;
        let done =
            self.records.wait_for(|records| records.iter().filter(within).all(|record| record.answered.is_some()));
        done.await.map(|records| records.iter().filter(within).cloned().collect()).unwrap_or_default()
    }

    pub(super) async fn end(self) {
        self.enough.send_replace(true);
        let _ = self.asking.await;
    }
}

/// What the network gives at each exit, of each image.
fn expected(bundle: &Bundle, images: &[Tensor]) -> Result<Vec<Vec<Vec<f32>>>> {
    let deployment = Deployment::prepare(bundle, &Engine::new()?, 1.0)?;
    let exits = deployment.network().exits();
    let at_exit = |image: &Tensor, exit: usize| {
        let ran = deployment.run(exit, 0..exits[exit].path.len(), vec![image.clone()], &edgent_nn::Stop::never())?;
        Ok(softmax(ran.output.first().and_then(Tensor::as_f32).context("the exit gives no f32")?))
    };
    let of_image = |image: &Tensor| (0..exits.len()).map(|exit| at_exit(image, exit)).collect();
    images.iter().map(of_image).collect()
}

async fn ask_on(
    client: Client,
    images: Arc<Vec<Tensor>>,
    expected: Arc<Vec<Vec<Vec<f32>>>>,
    records: watch::Sender<Vec<Record>>,
    mut enough: watch::Receiver<bool>,
) {
    let records = Arc::new(records);
    let mut tick = tokio::time::interval(PACE);
    let mut asked = JoinSet::new();
    for index in 0.. {
        tokio::select! {
            _ = tick.tick() => {}
            _ = enough.wait_for(|enough| *enough) => break,
        }
        let (client, images, expected, records) = (client.clone(), images.clone(), expected.clone(), records.clone());
        let record = Record { asked: Instant::now(), answered: None, answer: None, error: None, difference: 0.0 };
        records.send_modify(|records| records.push(record));
        asked.spawn(async move {
            let image = index % images.len();
            let (answer, error) = match ask(&client, &images[image], 0.0).await {
                Ok(answer) => (Some(answer), None),
                Err(error) => (None, Some(format!("{error:#}"))),
            };
            records.send_modify(|records| {
                let record = &mut records[index];
                let right = answer.as_ref().and_then(|answer| expected[image].get(usize::from(answer.exit)));
                record.difference = answer.as_ref().map_or(0.0, |answer| furthest(&answer.scores, right));
                (record.answered, record.answer, record.error) = (Some(Instant::now()), answer, error);
            });
        });
        while asked.try_join_next().is_some() {}
    }
    while asked.join_next().await.is_some() {}
}

fn furthest(scores: &[f32], right: Option<&Vec<f32>>) -> f32 {
    let Some(right) = right.filter(|right| right.len() == scores.len()) else { return f32::INFINITY };
    let differences = scores.iter().zip(right).map(|(score, right)| (score - right).abs());
    differences.fold(0.0, |most, next| if next.is_nan() { f32::INFINITY } else { most.max(next) })
}
