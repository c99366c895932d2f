//! The comparison as one HTML page, with the plots of the paper (Li, Zhou and Chen 2018, figures 8 to 10; journal
//! version 2019, figures 11 to 13).

use super::tally::{OURS, Row, TakenPlan};
use super::{Report, kbps};
use crate::chart::{Axis, Chart, Line, distribution};
use crate::report::{CSS, escape, table};
use std::fmt::Write;

/// Ticks of an axis of rates.
const RATES_BPS: [u64; 6] = [50_000, 200_000, 800_000, 1_500_000, 5_000_000, 20_000_000];

pub(super) fn render(report: &Report) -> String {
    let title = format!("Strategies for {}", report.model);
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>\
         <title>{title}</title><style>{CSS}</style><h1>{title}</h1>\
         <p class=note>Emulated, in each plot: the device is this machine made {} times slower, and the link's rate and its \
         {} ms each way are a relay's. Real: two processes for each strategy, the trained network, its test images. The oracle \
         is reckoned, not run: it knows the link's future and each segment's time.</p>",
        report.emulated_slowdown,
        report.emulated_delay_ms,
        title = escape(&title)
    );
    for (heading, charts) in [
        ("Over the link's rate", over(report, "rate")),
        ("Over the deadline", over(report, "deadline")),
        ("Over links that change", traces(report)),
    ] {
        if !charts.is_empty() {
            let cards: String = charts.iter().map(Chart::card).collect();
            let _ = write!(page, "<h2>{heading}</h2><div class=charts>{cards}</div>");
        }
    }
    let _ = write!(page, "<h2>Against the oracle</h2>{}", oracle_table(report));
    let _ = write!(page, "<h2>Where another strategy did better</h2>{}", losses_table(report));
    if !report.changes.is_empty() {
        let _ = write!(page, "<h2>How soon a change of rate is followed</h2>{}", changes_table(report));
    }
    let _ = write!(page, "<h2>Predictions</h2>{}<h2>All points</h2>{}", errors_table(report), rows_table(report));
    page
}

/// The charts of a sweep.
fn over(report: &Report, experiment: &str) -> Vec<Chart> {
    let rows: Vec<&Row> = report.rows.iter().filter(|row| row.point.experiment == experiment).collect();
    if rows.is_empty() {
        return Vec::new();
    }
    let is_rate = experiment == "rate";
    let x = |row: &Row| if is_rate { row.point.bandwidth_bps as f64 } else { row.point.deadline_ms };
    let axis = || {
        let (from, to) = rows.iter().map(|row| x(row)).fold((f64::MAX, 0.0_f64), |(a, b), x| (a.min(x), b.max(x)));
        if is_rate {
            let ticks = RATES_BPS.iter().map(|rate_bps| (*rate_bps as f64, short_rate(*rate_bps)));
            let ticks = ticks.filter(|(rate, _)| (from..=to).contains(rate)).collect();
            Axis::log("rate of the link (emulated), bit/s", from, to, ticks)
        } else {
            Axis::linear("deadline, ms", 0.0, to)
        }
    };
    let lines = |value: &dyn Fn(&Row) -> f64| -> Vec<Line> {
        let points = |strategy: &str| {
            let of_it = rows.iter().filter(|row| row.strategy == strategy);
            of_it.map(|row| (x(row), value(row))).collect::<Vec<_>>()
        };
        let named = strategies(report).into_iter().enumerate();
        named
            .map(|(look, name)| Line { points: points(name), name: name.to_owned(), look, is_stepped: false })
            .collect()
    };
    let ours: Vec<&&Row> = rows.iter().filter(|row| row.strategy == OURS).collect();
    let line = |name: &str, look, value: &dyn Fn(&Row) -> Option<f64>| {
        let points = ours.iter().filter_map(|row| Some((x(row), value(row)?))).collect();
        Line { name: name.to_owned(), look, points, is_stepped: false }
    };
    let taken = |of: fn(&TakenPlan) -> f64| move |row: &Row| row.plan.as_ref().map(of);
    let names: Vec<String> = report.exits.iter().map(|(name, _)| name.clone()).collect();
    let cut_max = ours.iter().filter_map(|row| Some(row.plan.as_ref()?.cut)).max().unwrap_or(1);
    let latency_max_ms = ours.iter().map(|row| row.p50_ms).fold(0.0, f64::max);
    let chart = |title: &str, y, lines| Chart { title: title.to_owned(), x: axis(), y, lines };
    vec![
        chart(
            "Exit that edgent took most often",
            Axis::names("exit", &names),
            vec![line("", 0, &taken(|plan| plan.exit as f64))],
        ),
        chart(
            "Segments before the cut",
            Axis::linear("segments on the first host", 0.0, f64::from(cut_max)),
            vec![line("", 0, &taken(|plan| plan.cut.into()))],
        ),
        chart(
            "Latency of edgent, in the median",
            Axis::linear("ms", 0.0, latency_max_ms * 1.1),
            vec![line("predicted", 1, &|row| row.predicted_p50_ms), line("measured", 0, &|row| Some(row.p50_ms))],
        ),
        chart(
            "Accuracy, negative where the deadline was missed",
            Axis::linear("accuracy", -1.0, 1.0),
            lines(&|row| row.signed_accuracy),
        ),
        chart("Answers in time", Axis::linear("share", 0.0, 1.0), lines(&|row| row.hit_ratio)),
        chart(
            "Reward, exp(accuracy) + 1 / latency",
            Axis::linear("reward", 0.0, rows.iter().map(|row| row.reward).fold(0.0, f64::max)),
            lines(&|row| row.reward),
        ),
    ]
}

/// The distributions over each trace.
fn traces(report: &Report) -> Vec<Chart> {
    let traces = report.rows.iter().filter(|row| row.strategy == OURS && row.point.bandwidth_bps == 0);
    let mut charts = Vec::new();
    for trace in traces {
        let name = &trace.point.experiment;
        let mut chart = |title: String, label: &str, value: fn(&(f64, f64)) -> f64| {
            let all = strategies(report).into_iter().enumerate();
            let lines: Vec<Line> = all
                .filter_map(|(look, strategy)| {
                    let row = report.rows.iter().find(|row| row.strategy == strategy && row.point == trace.point)?;
                    let points = distribution(row.each.iter().map(value).collect());
                    Some(Line { name: strategy.to_owned(), look, points, is_stepped: true })
                })
                .collect();
            let to = lines.iter().flat_map(|line| &line.points).map(|(x, _)| *x).fold(0.0, f64::max);
            charts.push(Chart { title, x: Axis::linear(label, 0.0, to), y: Axis::linear("share", 0.0, 1.0), lines });
        };
        chart(format!("Throughput over '{name}'"), "answers a second, 1 / latency", |(latency_ms, _)| 1e3 / latency_ms);
        chart(format!("Reward over '{name}'"), "reward, 0 where late", |(_, reward)| *reward);
    }
    charts
}

/// In the order of the rows; the oracle first, ours second.
fn strategies(report: &Report) -> Vec<&'static str> {
    let mut names = Vec::new();
    for row in &report.rows {
        if !names.contains(&row.strategy) {
            names.push(row.strategy);
        }
    }
    names
}

fn oracle_table(report: &Report) -> String {
    let rows = report
        .of_oracle()
        .into_iter()
        .map(|(trace, accuracy, reward)| [escape(&trace), percent(accuracy), percent(reward)]);
    table(&["link", "accuracy in time, of the oracle's", "reward, of the oracle's"], rows)
}

fn losses_table(report: &Report) -> String {
    if report.losses.is_empty() {
        return "<p>Nowhere.</p>".to_owned();
    }
    let rows = report.losses.iter().map(|loss| {
        [
            escape(&loss.point.experiment),
            loss.point.rate(),
            format!("{} ms", loss.point.deadline_ms),
            loss.strategy.to_owned(),
            format!("{} ({:.3})", percent(loss.hit_ratio), loss.expected_in_time),
            format!("{} ({:.3})", percent(loss.our_hit_ratio), loss.our_expected_in_time),
            if loss.is_clear { "clear" } else { "may be chance" }.to_owned(),
        ]
    });
    table(&["experiment", "rate", "deadline", "strategy", "in time (accuracy in time)", "edgent", ""], rows)
}

fn changes_table(report: &Report) -> String {
    let rows = report.changes.iter().map(|change| {
        [
            kbps(change.from_bps),
            kbps(change.to_bps),
            escape(change.settled_on.as_deref().unwrap_or("–")),
            change.requests_before.map_or("–".to_owned(), |count| count.to_string()),
            change.after_ms.map_or("–".to_owned(), |ms| format!("{ms:.0} ms")),
            format!("{} of {}", change.late, change.requests),
        ]
    });
    table(&["from", "to", "new plan", "requests before it", "after", "late"], rows)
}

fn errors_table(report: &Report) -> String {
    let rows = report.prediction_error.iter().map(|(strategy, error)| {
        [
            (*strategy).to_owned(),
            error.answers.to_string(),
            percent(error.median_relative),
            percent(error.p90_relative),
            percent(error.predicted_in_time),
            percent(error.in_time),
        ]
    });
    table(&["strategy", "answers", "off, median", "off, 90th percentile", "said to be in time", "were"], rows)
}

fn rows_table(report: &Report) -> String {
    let rows = report.rows.iter().map(|row| {
        [
            escape(&row.point.experiment),
            row.point.rate(),
            format!("{} ms", row.point.deadline_ms),
            row.strategy.to_owned(),
            row.requests.to_string(),
            format!("{} ({}–{})", percent(row.hit_ratio), percent(row.hit_ratio_from), percent(row.hit_ratio_to)),
            percent(row.right_in_time),
            format!("{:.1} ms", row.p50_ms),
            format!("{:.1} ms", row.p99_ms),
        ]
    });
    table(
        &[
            "experiment",
            "rate",
            "deadline",
            "strategy",
            "requests",
            "in time (95 % interval)",
            "right in time",
            "median",
            "p99",
        ],
        rows,
    )
}

fn short_rate(rate_bps: u64) -> String {
    if rate_bps >= 1_000_000 { format!("{}M", rate_bps as f64 / 1e6) } else { format!("{}k", rate_bps / 1_000) }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}
