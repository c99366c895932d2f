//! What happened in a demo: the live table, the summary, and what the report is made of.

use super::events::{Event, What};
use super::place;
use crate::output::Output;
use crate::report::{Example, ExitInfo, Placement, RatePoint, Report, RequestRow, render, timeline_svg};
use crate::samples::{Sample, to_png};
use crate::trace::Trace;
use anyhow::{Context, Result};
use edgent_bundle::Manifest;
use edgent_link::{Answer, Stats};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const EXAMPLES: usize = 12;

/// A request and what came of it.
pub(super) struct Request {
    pub(super) at: Duration,
    pub(super) latency: Duration,
    pub(super) sample: usize,
    pub(super) truth: usize,
    pub(super) answer: Result<Answer, String>,
}

/// Everything that happened.
pub(super) struct Record {
    manifest: Manifest,
    trace: Trace,
    /// How long the link had followed it.
    before: Duration,
    rates: Vec<RatePoint>,
    seconds: u64,
    deadline_ms: f64,
    slowdown: f64,
    requests: Vec<Request>,
    events: Vec<Event>,
    plan_changes: u64,
}

/// The result for programs; durations carry their unit in the key.
#[derive(Serialize)]
pub(super) struct Summary {
    pub(super) requests: usize,
    pub(super) answered: usize,
    pub(super) lost: usize,
    pub(super) errors: usize,
    deadline_ms: f64,
    deadline_hit_ratio: f64,
    accuracy: f64,
    degraded: usize,
    p50_ms: f64,
    p99_ms: f64,
    exits: BTreeMap<String, usize>,
    cuts: BTreeMap<String, usize>,
    placements: BTreeMap<String, usize>,
    bandwidth_changes: usize,
    plan_changes: u64,
    pub(super) swaps: usize,
    /// Requests by the version that answered.
    versions: BTreeMap<String, usize>,
    emulated_slowdown: f64,
}

impl Record {
    pub(super) fn new(
        manifest: &Manifest,
        trace: &Trace,
        before: Duration,
        seconds: u64,
        deadline_ms: f64,
        slowdown: f64,
    ) -> Self {
        Self {
            manifest: manifest.clone(),
            trace: trace.clone(),
            before,
            rates: Vec::new(),
            seconds,
            deadline_ms,
            slowdown,
            requests: Vec::new(),
            events: Vec::new(),
            plan_changes: 0,
        }
    }

    /// Adds a request; says whether it was answered by another plan than the one before.
    pub(super) fn add(&mut self, request: Request) -> bool {
        let plan = |request: &Request| request.answer.as_ref().ok().map(|a| (a.exit, a.cut, a.direction, a.codec));
        let before = self.requests.last().and_then(plan);
        let changed = plan(&request) != before;
        self.requests.push(request);
        changed
    }

    /// Notes an event, and says it.
    pub(super) fn happened(&mut self, event: Event, output: &Output) {
        output.line(format_args!("{:>6.1}s {}", event.at.as_secs_f64(), event.what.in_words()));
        self.events.push(event);
    }

    /// It is over, after so long.
    pub(super) fn finish(&mut self, after: Duration, stats: &Stats) {
        self.seconds = self.seconds.max(after.as_secs());
        self.rates = rates(&self.trace, self.before, Duration::from_secs(self.seconds));
        self.plan_changes = stats.plan_changes;
    }

    pub(super) fn print_head(&self, output: &Output) {
        output.line(format_args!(
            "deadline {} ms; EMULATED: a device {} times slower than this machine, and the link's rate",
            self.deadline_ms, self.slowdown
        ));
        output.line(
            "   time  link rate   estimate  exit   cut  where                  wire  latency         right so far",
        );
    }

    pub(super) fn print_line(&self, rate_bps: u64, output: &Output) {
        let Some(request) = self.requests.last() else { return };
        let at = request.at.as_secs_f64();
        let latency_ms = request.latency.as_secs_f64() * 1e3;
        match &request.answer {
            Ok(answer) => output.line(format_args!(
                "{at:>6.1}s {:>10} {:>10}  {:<6} {:>3}  {:<20} {:>6} {latency_ms:>7.1} ms {:<5} {:>6.1} %{}",
                rate(rate_bps as f64),
                rate(answer.rate_bps as f64),
                self.exit_name(answer),
                answer.cut,
                place(answer),
                answer.codec.name(),
                if answer.deadline_met { "ok" } else { "LATE" },
                self.accuracy() * 100.0,
                answer.degraded.as_ref().map_or_else(String::new, |why| format!("  degraded: {why}")),
            )),
            Err(error) => output.line(format_args!("{at:>6.1}s error: {error}")),
        }
    }

    pub(super) fn summary(&self) -> Summary {
        let answers = || self.requests.iter().filter_map(|request| request.answer.as_ref().ok());
        let count = |key: &dyn Fn(&Answer) -> String| {
            let mut counts = BTreeMap::new();
            answers().for_each(|answer| *counts.entry(key(answer)).or_insert(0) += 1);
            counts
        };
        let answered = answers().count();
        let errors = self.requests.iter().filter(|request| request.answer.is_err()).count();
        let met = answers().filter(|answer| answer.deadline_met).count();
        let mut latencies_ms: Vec<f64> =
            self.requests.iter().map(|request| request.latency.as_secs_f64() * 1e3).collect();
        Summary {
            requests: self.requests.len(),
            answered,
            lost: self.requests.len() - answered - errors,
            errors,
            deadline_ms: self.deadline_ms,
            deadline_hit_ratio: share(met, self.requests.len()),
            accuracy: self.accuracy(),
            degraded: answers().filter(|answer| answer.degraded.is_some()).count(),
            p50_ms: crate::output::quantile(&mut latencies_ms, 0.5),
            p99_ms: crate::output::quantile(&mut latencies_ms, 0.99),
            exits: count(&|answer| self.exit_name(answer)),
            cuts: count(&|answer| answer.cut.to_string()),
            placements: count(&|answer| place(answer)),
            bandwidth_changes: self.rates.windows(2).filter(|pair| pair[0].rate_bps != pair[1].rate_bps).count(),
            plan_changes: self.plan_changes,
            swaps: self.events.iter().filter(|event| matches!(event.what, What::Swap { refused: None, .. })).count(),
            versions: count(&|answer| self.version(answer)),
            emulated_slowdown: self.slowdown,
        }
    }

    /// Writes the page and its SVG; says where the page is.
    pub(super) fn write(&self, folder: &Path, samples: &[Sample]) -> Result<PathBuf> {
        let report = self.report(samples)?;
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let page = folder.join("report.html");
        fs::write(&page, render(&report)).with_context(|| page.display().to_string())?;
        fs::write(folder.join("timeline.svg"), timeline_svg(&report))?;
        Ok(page)
    }

    fn report(&self, samples: &[Sample]) -> Result<Report> {
        let stride = (self.requests.len() / EXAMPLES).max(1);
        let examples = self.requests.iter().step_by(stride).take(EXAMPLES).filter_map(|request| {
            let answer = request.answer.as_ref().ok()?;
            Some(to_png(&samples[request.sample].image).map(|png| Example {
                png,
                truth: self.class(request.truth),
                answer: self.class(answer.label as usize),
                right: answer.label as usize == request.truth,
                plan: format!("{}, {}", self.exit_name(answer), place(answer)),
            }))
        });
        Ok(Report {
            title: "Edgent demo".to_owned(),
            model: self.manifest.name.clone(),
            seconds: self.seconds as f64,
            deadline_ms: self.deadline_ms,
            emulated_slowdown: self.slowdown,
            emulated_link: "a relay on loopback: 50 kbit/s to 20 Mbit/s, 2 ms each way".to_owned(),
            exits: self
                .manifest
                .exits
                .iter()
                .map(|e| ExitInfo { name: e.name.clone(), accuracy: e.accuracy })
                .collect(),
            requests: self.requests.iter().map(|request| self.row(request)).collect(),
            rate: self.rates.clone(),
            tiles: self.summary().tiles(),
            examples: examples.collect::<Result<_>>()?,
            events: self.events.iter().map(|event| (event.at.as_secs_f64(), event.what.in_words())).collect(),
        })
    }

    fn row(&self, request: &Request) -> RequestRow {
        let answer = request.answer.as_ref().ok();
        let exit = answer.map_or(0, |answer| usize::from(answer.exit));
        RequestRow {
            at_s: request.at.as_secs_f64(),
            latency_ms: request.latency.as_secs_f64() * 1e3,
            deadline_met: answer.is_some_and(|answer| answer.deadline_met),
            answered: answer.is_some(),
            right: answer.is_some_and(|answer| answer.label as usize == request.truth),
            exit,
            plan: answer.map_or_else(
                || "no answer".to_owned(),
                |a| format!("{}, {}, cut {}", self.exit_name(a), place(a), a.cut),
            ),
            placement: match answer.map(|answer| answer.placement) {
                Some(edgent_link::Placement::Split) => Placement::Split,
                Some(edgent_link::Placement::EdgeOnly) => Placement::EdgeOnly,
                Some(edgent_link::Placement::DeviceOnly) | None => Placement::DeviceOnly,
            },
            version: answer.map_or_else(String::new, |answer| self.version(answer)),
            degraded: answer.and_then(|answer| answer.degraded.clone()),
            estimated_rate_bps: answer.map_or(0.0, |answer| answer.rate_bps as f64),
        }
    }

    fn accuracy(&self) -> f64 {
        let right = |r: &&Request| r.answer.as_ref().is_ok_and(|answer| answer.label as usize == r.truth);
        share(self.requests.iter().filter(right).count(), self.requests.len())
    }

    fn exit_name(&self, answer: &Answer) -> String {
        let exit = usize::from(answer.exit);
        self.manifest.exits.get(exit).map_or_else(|| exit.to_string(), |exit| exit.name.clone())
    }

    /// The version that answered, by the start of its digest.
    fn version(&self, answer: &Answer) -> String {
        answer.model.map_or_else(String::new, |model| edgent_bundle::Digest(model.0).short())
    }

    fn class(&self, index: usize) -> String {
        self.manifest.classes.get(index).cloned().unwrap_or_else(|| index.to_string())
    }
}

impl Summary {
    pub(super) fn print(&self, output: &Output) {
        self.pairs().into_iter().for_each(|(what, value)| output.line(format_args!("{what:<22} {value}")));
    }

    fn tiles(&self) -> Vec<(String, String)> {
        [
            ("requests answered", format!("{} of {}", self.answered, self.requests)),
            ("in time", format!("{:.1} %", self.deadline_hit_ratio * 100.0)),
            ("answered rightly", format!("{:.1} %", self.accuracy * 100.0)),
            ("median latency", format!("{:.1} ms", self.p50_ms)),
            ("changes of the link", self.bandwidth_changes.to_string()),
            ("changes of plan", self.plan_changes.to_string()),
        ]
        .map(|(what, value)| (what.to_owned(), value))
        .into()
    }

    fn pairs(&self) -> Vec<(String, String)> {
        let list = |counts: &BTreeMap<String, usize>| {
            counts.iter().map(|(what, count)| format!("{what} {count}")).collect::<Vec<_>>().join(", ")
        };
        [
            (
                "requests",
                format!("{} ({} answered, {} errors, {} lost)", self.requests, self.answered, self.errors, self.lost),
            ),
            ("in time", format!("{:.1} % within {} ms", self.deadline_hit_ratio * 100.0, self.deadline_ms)),
            ("latency", format!("{:.1} ms median, {:.1} ms 99th percentile", self.p50_ms, self.p99_ms)),
            ("answered rightly", format!("{:.1} %", self.accuracy * 100.0)),
            ("exits", list(&self.exits)),
            ("where", list(&self.placements)),
            ("degraded", self.degraded.to_string()),
            ("versions", format!("{}; {} swapped", list(&self.versions), self.swaps)),
            ("changes", format!("{} of the link's rate, {} of the plan", self.bandwidth_changes, self.plan_changes)),
        ]
        .map(|(what, value)| (what.to_owned(), value))
        .into()
    }
}

impl What {
    fn in_words(&self) -> String {
        match self {
            Self::Swap { version, refused: None } => format!("version {version} is in force on both hosts"),
            Self::Swap { refused: Some(why), .. } => format!("the next version was refused: {why}"),
            Self::EdgeKilled => "the edge is killed".to_owned(),
            Self::EdgeStarted => "an edge is there again".to_owned(),
        }
    }
}

fn share(part: usize, all: usize) -> f64 {
    if all == 0 { 0.0 } else { part as f64 / all as f64 }
}

fn rate(bps: f64) -> String {
    if bps <= 0.0 {
        "unknown".to_owned()
    } else if bps < 1e6 {
        format!("{:.0} kbit/s", bps / 1e3)
    } else {
        format!("{:.1} Mbit/s", bps / 1e6)
    }
}

/// The link's rate wherever it changes during the demo.
fn rates(trace: &Trace, before: Duration, length: Duration) -> Vec<RatePoint> {
    let step = Duration::from_millis(50);
    let steps = length.as_millis() / step.as_millis();
    let mut points: Vec<RatePoint> = Vec::new();
    for at in (0..=steps).map(|index| step * u32::try_from(index).unwrap_or(u32::MAX)) {
        let rate_bps = trace.rate_at(before + at);
        if points.last().is_none_or(|last| last.rate_bps != rate_bps as f64) {
            points.push(RatePoint { at_s: at.as_secs_f64(), rate_bps: rate_bps as f64 });
        }
    }
    points
}
