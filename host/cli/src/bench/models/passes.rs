//! What each of the things that are done for speed gains: networks without it, and with all of them, by turns.

use super::{Arguments, Net, TURN_MS, TURN_RUNS_MAX, nets, turn};
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
    ours_ms: f64,
    /// How many times as long it takes without each.
    without: BTreeMap<&'static str, f64>,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let columns: String = Pass::ALL.iter().map(|pass| format!(" {:>12}", pass.name())).collect();
    output.line(format_args!("times as long without…\nnetwork            all, ms{columns}"));
    let mut rows = Vec::new();
    for path in nets(arguments)? {
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

fn measure(net: &Net, rounds: usize) -> Result<Row> {
    let mut all = net.imported.whole()?.context()?;
    let mut others = Pass::ALL.map(|pass| (pass.name(), net.imported.without(pass), Vec::new()));
    let first_ms = quantile(&mut turn(&mut all, &net.inputs, 2)?, 0.0);
    let runs = ((TURN_MS / first_ms) as usize).clamp(1, TURN_RUNS_MAX);
    let mut all_ms = Vec::new();
    for _ in 0..rounds.max(1) {
        let ms = quantile(&mut turn(&mut all, &net.inputs, runs)?, 0.5);
        all_ms.push(ms);
        for (_, without, ratios) in &mut others {
            let graph = without.as_ref().map_err(|e| anyhow::anyhow!("{e}"))?;
            ratios.push(quantile(&mut turn(&mut graph.context()?, &net.inputs, runs)?, 0.5) / ms);
        }
    }
    let without = others.map(|(name, _, mut ratios)| (name, quantile(&mut ratios, 0.5)));
    Ok(Row { model: net.name.clone(), ours_ms: quantile(&mut all_ms, 0.5), without: without.into() })
}
