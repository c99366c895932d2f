//! Where one network's time goes: tract's operators beside onnxruntime's kernels.
//!
//! Both make several kernels of one operator of the network, and one kernel of several. Each is named after the first
//! operator that it stands for, with something added; times are summed by the network's own names.

use super::Net;
use super::peer::Peer;
use crate::output::Output;
use anyhow::Result;
use edgent_nn::Timed;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

const RUNS: usize = 30;
const SLOWEST: usize = 10;

#[derive(Serialize)]
struct Report {
    model: String,
    ours_us: f64,
    ort_us: f64,
    /// By the kinds that each side has, the slowest first.
    ours: Vec<Kind>,
    ort: Vec<Kind>,
    /// The network's operators for which tract takes longest.
    slowest: Vec<Slow>,
}

#[derive(Serialize)]
struct Kind {
    kind: String,
    count: usize,
    us: f64,
}

#[derive(Serialize)]
struct Slow {
    operator: String,
    ours_us: f64,
    /// None: it became part of another.
    ort_us: Option<f64>,
    parts: Vec<Part>,
}

#[derive(Serialize)]
struct Part {
    kind: String,
    us: f64,
    shapes: String,
    choices: Vec<String>,
}

pub(super) fn run(net: &Net, peer: &mut Peer, threads: usize, output: &Output) -> Result<()> {
    peer.load(&net.path, &net.inputs)?;
    let ours = net.imported.whole()?.timed(&net.inputs, threads, RUNS)?;
    let kernels = peer.profile(&net.path, &net.inputs, RUNS)?;
    let mut times_us: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
    for kernel in kernels {
        times_us.entry((kernel.name, kernel.kind)).or_default().push(kernel.us);
    }
    let ort: Vec<(String, String, f64)> = times_us
        .into_iter()
        .map(|((name, kind), mut us)| (name, kind, crate::output::quantile(&mut us, 0.5)))
        .collect();
    let names: BTreeSet<&str> = peer.nodes.iter().map(String::as_str).collect();
    let report = Report {
        model: net.name.clone(),
        ours_us: ours.iter().map(|timed| timed.us).sum(),
        ort_us: ort.iter().map(|(_, _, us)| us).sum(),
        ours: kinds(ours.iter().map(|timed| (&timed.operator, timed.us))),
        ort: kinds(ort.iter().map(|(_, kind, us)| (kind, *us))),
        slowest: slowest(&names, &ours, &ort),
    };
    print(&report, output);
    output.result(&report)
}

fn kinds<'a>(operators: impl Iterator<Item = (&'a String, f64)>) -> Vec<Kind> {
    let mut sums: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
    for (kind, us) in operators {
        let sum = sums.entry(kind).or_default();
        *sum = (sum.0 + 1, sum.1 + us);
    }
    let mut kinds: Vec<Kind> =
        sums.into_iter().map(|(kind, (count, us))| Kind { kind: kind.to_owned(), count, us }).collect();
    kinds.sort_by(|a, b| b.us.total_cmp(&a.us));
    kinds
}

fn slowest(names: &BTreeSet<&str>, ours: &[Timed], ort: &[(String, String, f64)]) -> Vec<Slow> {
    let mut theirs: BTreeMap<&str, f64> = BTreeMap::new();
    for (name, _, us) in ort {
        *theirs.entry(origin(names, name)).or_default() += us;
    }
    let mut parts: BTreeMap<&str, Vec<Part>> = BTreeMap::new();
    for Timed { name, operator, choices, shapes, us } in ours {
        let part = Part { kind: operator.clone(), us: *us, shapes: shapes.clone(), choices: choices.clone() };
        parts.entry(origin(names, name)).or_default().push(part);
    }
    let mut all: Vec<Slow> = parts
        .into_iter()
        .map(|(operator, parts)| Slow {
            operator: operator.to_owned(),
            ours_us: parts.iter().map(|part| part.us).sum(),
            ort_us: theirs.get(operator).copied(),
            parts,
        })
        .collect();
    all.sort_by(|a, b| b.ours_us.total_cmp(&a.ours_us));
    all.truncate(SLOWEST);
    all
}

/// The network's operator with the longest name with which this one begins; if there is none, itself.
fn origin<'a>(names: &BTreeSet<&'a str>, name: &'a str) -> &'a str {
    let ends = name.char_indices().map(|(at, c)| at + c.len_utf8()).rev();
    ends.map(|end| &name[..end]).find_map(|start| names.get(start).copied()).unwrap_or(name)
}

fn print(report: &Report, output: &Output) {
    let Report { model, ours_us, ort_us, .. } = report;
    output.line(format_args!("{model}: tract {ours_us:.0} us, onnxruntime's profile {ort_us:.0} us"));
    for (side, kinds) in [("tract", &report.ours), ("onnxruntime", &report.ort)] {
        output.line(format_args!("\n{side:<32} count        us"));
        kinds
            .iter()
            .for_each(|Kind { kind, count, us }| output.line(format_args!("  {kind:<30} {count:>5} {us:>9.1}")));
    }
    output.line("\nslowest operators                    tract us    ort us");
    for Slow { operator, ours_us, ort_us, parts } in &report.slowest {
        let ort = ort_us.map_or_else(|| "-".to_owned(), |us| format!("{us:.1}"));
        output.line(format_args!("  {operator:<32} {ours_us:>10.1} {ort:>9}"));
        for Part { kind, us, shapes, choices } in parts {
            let choices: String = choices.iter().flat_map(|choice| [" | ", choice]).collect();
            output.line(format_args!("      {kind:<28} {us:>10.1}            {shapes}{choices}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_belong_to_the_operator_that_they_are_named_after() {
        let names = BTreeSet::from(["conv_1", "conv_10", "relu"]);
        for (name, expected) in
            [("conv_1.im2col", "conv_1"), ("conv_10_nchwc", "conv_10"), ("relu", "relu"), ("reorder", "reorder")]
        {
            assert_eq!(origin(&names, name), expected);
        }
    }
}
