//! What a host counts, and how Prometheus is told.
//!
//! Two kinds: what is counted here as it happens, and what is known elsewhere and looked up when somebody asks
//! ([`Sample`]). Names keep to Prometheus' conventions; `docs/http.md` lists them.

use crate::Deployment;
use crate::answer::Answered;
use edgent_link::{Answer, EXITS_MAX, FaultKind, Now, Placement};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, PoisonError};

/// Different label sets that are kept apart; what comes beyond is counted under [`OTHER`]. Names of models and exits come
/// with bundles, and a peer may push many.
const LABEL_SETS_MAX: usize = 512;

const OTHER: &str = "other";

/// Answers that a dashboard is shown when it opens.
const SEEN_MAX: usize = 120;

/// From 1 ms, each bucket twice the one before, to 16 s.
const DURATION_BUCKETS: u16 = 15;

/// How an answer's time compares with its prediction: 1 is as predicted.
const RATIO_BUCKETS: [f64; 10] = [0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0];

/// Which answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    model: String,
    exit: String,
    cut: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Model {
    model: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Swapped {
    result: &'static str,
}

/// What a host counts as it happens.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    durations: Family<Model, Histogram, fn() -> Histogram>,
    missed: Family<Model, Counter>,
    degraded: Family<Model, Counter>,
    planned: Family<Model, Histogram, fn() -> Histogram>,
    parts: Family<Outcome, Counter>,
    swaps: Family<Swapped, Counter>,
    shed: Counter,
    in_flight: Gauge,
    label_sets: Mutex<HashSet<Request>>,
    seen: Mutex<VecDeque<Seen>>,
}

/// One of the last answers.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Counted from 1.
    pub(crate) number: u64,
    pub(crate) latency_us: u64,
    pub(crate) deadline_us: u64,
    pub(crate) deadline_met: bool,
    pub(crate) degraded: bool,
    pub(crate) exit: u16,
    pub(crate) placement: Placement,
}

/// What is known elsewhere when somebody asks.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) value: Value,
}

/// A value of a [`Sample`]; by kind where there are several.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// Only grows.
    Counter(u64),
    /// The same for each kind of something.
    Kinds(&'static str, Vec<(&'static str, u64)>),
    Gauge(f64),
    /// Always 1: what is told is in its labels.
    Info(Vec<(&'static str, String)>),
}

impl Metrics {
    /// Nothing has been counted yet.
    pub(crate) fn new() -> Arc<Self> {
        let durations: fn() -> Histogram = || Histogram::new(exponential_buckets(1e-3, 2.0, DURATION_BUCKETS));
        let ratios: fn() -> Histogram = || Histogram::new(RATIO_BUCKETS);
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            durations: Family::new_with_constructor(durations),
            missed: Family::default(),
            degraded: Family::default(),
            planned: Family::new_with_constructor(ratios),
            parts: Family::default(),
            swaps: Family::default(),
            shed: Counter::default(),
            in_flight: Gauge::default(),
            label_sets: Mutex::default(),
            seen: Mutex::default(),
        };
        metrics.register();
        // There from the start, at 0: what first appears when it is 1 has not grown, to Prometheus.
        ["in_force", "refused"].iter().for_each(|result| drop(metrics.swaps.get_or_create(&Swapped { result })));
        for outcome in ["done", "time_up", "busy", "failed"] {
            drop(metrics.parts.get_or_create(&Outcome { outcome }));
        }
        Arc::new(metrics)
    }

    fn register(&mut self) {
        let Self { registry, requests, durations, missed, degraded, planned, parts, swaps, shed, in_flight, .. } = self;
        let help = "Requests for an answer, by the exit that answered, the segments before the cut, and how it went";
        registry.register("edgent_requests", help, requests.clone());
        let help = "From a request to its answer";
        registry.register("edgent_request_duration_seconds", help, durations.clone());
        registry.register("edgent_deadline_missed", "Answers after their deadline", missed.clone());
        registry.register("edgent_degraded", "Answers that are not the plan's", degraded.clone());
        let help = "What answers took, as planned, divided by what was predicted";
        registry.register("edgent_actual_to_planned_ratio", help, planned.clone());
        registry.register("edgent_parts", "Parts of networks run for devices, by how that went", parts.clone());
        registry.register("edgent_swap", "Versions that came into force or were refused", swaps.clone());
        registry.register("edgent_shed", "Requests refused because there were too many", shed.clone());
        registry.register("edgent_requests_in_flight", "Requests that are being answered", in_flight.clone());
    }

    /// A request begins; it has ended when what is given is dropped.
    pub(crate) fn begin(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// A request has its answer, or none.
    pub(crate) fn answered(&self, answered: &Answered) {
        match answered {
            Ok((answer, by)) => self.answer(answer, by),
            Err(fault) => {
                if fault.kind == FaultKind::Busy {
                    self.shed();
                }
                self.count(Request { outcome: "failed", ..Request::default() });
            }
        }
    }

    fn answer(&self, answer: &Answer, by: &Deployment) {
        self.see(answer);
        let manifest = by.manifest();
        let exit = manifest.exits.get(usize::from(answer.exit)).map(|exit| exit.name.clone()).unwrap_or_default();
        let outcome = match (answer.deadline_met, answer.degraded.is_some()) {
            (false, _) => "missed",
            (true, true) => "fallback",
            (true, false) => "met",
        };
        let labels = Request { model: manifest.name.clone(), exit, cut: answer.cut.to_string(), outcome };
        let model = Model { model: self.count(labels) };
        self.durations.get_or_create(&model).observe(answer.latency_us as f64 / 1e6);
        // Created at 0, too: an alert on their growth must see it from the first on.
        self.missed.get_or_create(&model).inc_by(u64::from(!answer.deadline_met));
        self.degraded.get_or_create(&model).inc_by(u64::from(answer.degraded.is_some()));
        if answer.predicted_us > 0 {
            self.planned.get_or_create(&model).observe(answer.latency_us as f64 / answer.predicted_us as f64);
        }
    }

    fn see(&self, answer: &Answer) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() == SEEN_MAX {
            seen.pop_front();
        }
        let number = seen.back().map_or(1, |last| last.number + 1);
        seen.push_back(Seen {
            number,
            latency_us: answer.latency_us,
            deadline_us: answer.deadline_us,
            deadline_met: answer.deadline_met,
            degraded: answer.degraded.is_some(),
            exit: answer.exit,
            placement: answer.placement,
        });
    }

    /// What is told of the last answers over the link; of the host, nothing else.
    pub(crate) fn last_answers(&self) -> Now {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut latencies_us: Vec<u64> = seen.iter().map(|seen| seen.latency_us).collect();
        // No bundle has more exits.
        let gave: Vec<usize> =
            seen.iter().map(|seen| usize::from(seen.exit)).filter(|exit| *exit < EXITS_MAX).collect();
        drop(seen);
        let mut exits = vec![0; gave.iter().max().map_or(0, |last| last + 1)];
        gave.into_iter().for_each(|exit| exits[exit] += 1);
        latencies_us.sort_unstable();
        // The nearest rank.
        let quantile = |share: f64| {
            let rank = (latencies_us.len() as f64 * share).ceil() as usize;
            latencies_us.get(rank.saturating_sub(1)).copied().unwrap_or(0)
        };
        let answers = u32::try_from(latencies_us.len()).unwrap_or(u32::MAX);
        Now { answers, p50_us: quantile(0.5), p99_us: quantile(0.99), exits, ..Now::default() }
    }

    /// The last answers after that of a number, and the number of the last one.
    pub(crate) fn seen_since(&self, number: u64) -> (Vec<Seen>, u64) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<Seen> = seen.iter().filter(|seen| seen.number > number).cloned().collect();
        (new, seen.back().map_or(number, |last| last.number))
    }

    /// Requests that are being answered.
    pub(crate) fn in_flight(&self) -> i64 {
        self.in_flight.get()
    }

    /// Parts of networks that were run for devices.
    pub(crate) fn parts_done(&self) -> u64 {
        self.parts.get_or_create(&Outcome { outcome: "done" }).get()
    }

    /// Counts a request, and says under which model's name.
    fn count(&self, labels: Request) -> String {
        let mut known = self.label_sets.lock().unwrap_or_else(PoisonError::into_inner);
        let labels = if known.contains(&labels) {
            labels
        } else if known.len() < LABEL_SETS_MAX {
            known.insert(labels.clone());
            labels
        } else {
            let other = || OTHER.to_owned();
            Request { model: other(), exit: other(), cut: other(), outcome: labels.outcome }
        };
        drop(known);
        self.requests.get_or_create(&labels).inc();
        labels.model
    }

    /// A request was refused because there were too many.
    pub(crate) fn shed(&self) {
        self.shed.inc();
    }

    /// A part of a network was run for a device, or was not.
    pub(crate) fn part(&self, fault: Option<FaultKind>) {
        let outcome = match fault {
            None => "done",
            Some(FaultKind::TimeUp) => "time_up",
            Some(FaultKind::Busy) => "busy",
            Some(_) => "failed",
        };
        self.parts.get_or_create(&Outcome { outcome }).inc();
    }

    /// A version came into force, or was refused.
    pub(crate) fn swapped(&self, is_in_force: bool) {
        let result = if is_in_force { "in_force" } else { "refused" };
        self.swaps.get_or_create(&Swapped { result }).inc();
    }

    /// Everything as Prometheus reads it, with what is known elsewhere.
    pub(crate) fn text(&self, samples: Vec<Sample>) -> Result<String, fmt::Error> {
        let mut looked_up = Registry::default();
        looked_up.register_collector(Box::new(Samples(samples)));
        let mut text = String::new();
        prometheus_client::encoding::prometheus_text::encode(&mut text, &self.registry)?;
        prometheus_client::encoding::prometheus_text::encode(&mut text, &looked_up)?;
        Ok(text)
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct InFlight(Gauge<i64, AtomicI64>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[derive(Debug)]
struct Samples(Vec<Sample>);

impl Collector for Samples {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for Sample { name, help, value } in &self.0 {
            match value {
                Value::Counter(count) => {
                    let counter = ConstCounter::new(*count);
                    let descriptor = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
                    counter.encode(descriptor)?;
                }
                Value::Gauge(value) => {
                    let gauge = ConstGauge::new(*value);
                    let descriptor = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
                    gauge.encode(descriptor)?;
                }
                Value::Kinds(label, kinds) => {
                    let counter = ConstCounter::new(0_u64);
                    let mut descriptor = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
                    for (kind, count) in kinds {
                        ConstCounter::new(*count).encode(descriptor.encode_family(&[(*label, *kind)])?)?;
                    }
                }
                Value::Info(labels) => {
                    let gauge = ConstGauge::new(1_i64);
                    let mut descriptor = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
                    let labels: Vec<(&str, &str)> = labels.iter().map(|(key, value)| (*key, value.as_str())).collect();
                    gauge.encode(descriptor.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}

/// How much memory this process has now, where the system tells.
pub(crate) fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_peers_do_not_pile_up() {
        let metrics = Metrics::new();
        for number in 0..10 * LABEL_SETS_MAX {
            let labels = Request { model: format!("m{number}"), outcome: "met", ..Request::default() };
            let counted_as = metrics.count(labels);
            assert_eq!(counted_as == OTHER, number >= LABEL_SETS_MAX, "{number}");
        }
        // Those that are known still count as themselves.
        assert_eq!(metrics.count(Request { model: "m0".into(), outcome: "met", ..Request::default() }), "m0");
        let text = metrics.text(Vec::new()).unwrap();
        let series = text.lines().filter(|line| line.starts_with("edgent_requests_total{"));
        assert_eq!(series.count(), LABEL_SETS_MAX + 1);
        let other = r#"edgent_requests_total{model="other",exit="other",cut="other",outcome="met"}"#;
        assert!(text.contains(&format!("{other} {}", 9 * LABEL_SETS_MAX)));
        assert!(text.contains("edgent_requests_total{model=\"m0\",exit=\"\",cut=\"\",outcome=\"met\"} 2"));
    }

    #[test]
    fn names_and_values_are_written_as_prometheus_reads_them() {
        let sample = |value| Sample { name: "edgent_thing", help: "A thing", value };
        let cases = [
            (Value::Counter(7), "# TYPE edgent_thing_total counter\nedgent_thing_total 7\n"),
            (Value::Gauge(0.5), "# TYPE edgent_thing gauge\nedgent_thing 0.5\n"),
            (Value::Kinds("kind", vec![("a", 1), ("b", 2)]), "{kind=\"a\"} 1\nedgent_thing_total{kind=\"b\"} 2\n"),
            (Value::Info(vec![("role", "a \"b\"\\\n".into())]), "edgent_thing{role=\"a \\\"b\\\"\\\\\\n\"} 1\n"),
        ];
        for (value, expected) in cases {
            let text = Metrics::new().text(vec![sample(value.clone())]).unwrap();
            assert!(text.contains(expected), "{value:?}: {text}");
        }
    }

    fn answer(exit: u16) -> Answer {
        Answer {
            id: 0,
            label: 0,
            scores: Vec::new(),
            outputs: Vec::new(),
            exit,
            cut: 0,
            direction: edgent_link::Direction::DeviceFirst,
            codec: edgent_link::Codec::Raw,
            placement: Placement::Split,
            latency_us: 1,
            deadline_us: 2,
            deadline_met: true,
            degraded: None,
            epoch: 0,
            rate_bps: 0,
            predicted_us: 0,
            in_time: 1.0,
            model: None,
        }
    }

    #[test]
    fn only_what_is_new_is_seen_and_only_the_last_of_it() {
        let metrics = Metrics::new();
        assert!(metrics.seen_since(0).0.is_empty());
        (0..300).for_each(|exit| metrics.see(&answer(exit)));
        let (all, last) = metrics.seen_since(0);
        assert_eq!((all.len(), all[0].exit, last), (SEEN_MAX, 180, 300));
        metrics.see(&answer(7));
        let (new, last) = metrics.seen_since(last);
        assert_eq!((new.len(), new[0].exit, last), (1, 7, 301));
        assert_eq!(metrics.seen_since(last).0.len(), 0);
    }

    #[test]
    fn the_last_answers_are_told_in_few_numbers() {
        let metrics = Metrics::new();
        assert_eq!(metrics.last_answers(), Now::default());
        // 120 ms, 119 ms, …; of 118 the first exit, of 2 the third.
        (1..=120).for_each(|ms| {
            metrics.see(&Answer { latency_us: (121 - ms) * 1_000, ..answer(if ms <= 2 { 2 } else { 0 }) })
        });
        let told = metrics.last_answers();
        assert_eq!((told.answers, told.p50_us, told.p99_us), (120, 60_000, 119_000));
        assert_eq!(told.exits, [118, 0, 2]);
        // What a model cannot have is no reason to take memory.
        metrics.see(&answer(u16::MAX));
        assert_eq!(metrics.last_answers().exits, [118, 0, 1]);
    }
}
