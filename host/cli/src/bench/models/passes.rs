//! What each of the things that are done for speed gains: networks without it, and with all of them, by turns.

use super::{Arguments, Net, TURN_MS, TURN_RUNS_MAX, compute, turn};
use crate::output::{Output, geometric_mean, quantile};
use anyhow::Result;
use edgent_nn::Pass;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
struct Report {
    rows: Vec<Row>,
    /// Geometric means over the networks.
    without: BTreeMap<&'static str, f64>,
}

#[derive(Serialize)]
struct Row {
    model: String,
    /// The shortest run.
    ours_ms: f64,
    /// How many times as long it takes without each.
    without: BTreeMap<&'static str, f64>,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let columns: String = Pass::ALL.iter().map(|pass| format!(" {:>12}", pass.name())).collect();
    output.line(format_args!("times as long without…\nnetwork            all, ms{columns}"));
    let mut rows = Vec::new();
    for path in arguments.nets.files()? {
        let row = measure(&Net::read(&path)?, arguments.rounds)?;
        let columns: String = Pass::ALL.iter().map(|pass| format!(" {:>12.2}", row.without[pass.name()])).collect();
        output.line(format_args!("{:<18} {:>7.2}{columns}", row.model, row.ours_ms));
        rows.push(row);
    }
    let mean = |pass: &Pass| geometric_mean(rows.iter().map(|row| row.without[pass.name()]));
    let without: BTreeMap<_, _> = Pass::ALL.iter().map(|pass| (pass.name(), mean(pass))).collect();
    let columns: String = Pass::ALL.iter().map(|pass| format!(" {:>12.2}", without[pass.name()])).collect();
    output.line(format_args!("geometric mean            {columns}"));
    output.result(&Report { rows, without })
}

/// By the shortest runs, which other work on the machine disturbed least.
fn measure(net: &Net, rounds: usize) -> Result<Row> {
    let mut all = net.imported.whole()?.context()?;
    let least = |times_ms: &mut Vec<f64>| quantile(times_ms, 0.0);
    let runs = ((TURN_MS / least(&mut turn(2, || compute(&mut all, &net.inputs))?)) as usize).clamp(1, TURN_RUNS_MAX);
    let mut others = Vec::new();
    for pass in Pass::ALL {
        others.push((pass.name(), net.imported.without(pass)?.context()?, f64::INFINITY));
    }
    let mut all_ms = f64::INFINITY;
    for _ in 0..rounds.max(1) {
        all_ms = all_ms.min(least(&mut turn(runs, || compute(&mut all, &net.inputs))?));
        for (_, context, ms) in &mut others {
            *ms = ms.min(least(&mut turn(runs, || compute(context, &net.inputs))?));
        }
    }
    let without = others.into_iter().map(|(name, _, ms)| (name, ms / all_ms)).collect();
    Ok(Row { model: net.name.clone(), ours_ms: all_ms, without })
}
