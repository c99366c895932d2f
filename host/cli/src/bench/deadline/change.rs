//! How soon a device follows a link whose rate changes all at once.

use super::tally::Asked;
use super::{Bench, PAUSED_REQUESTS_MAX};
use crate::rig::{PAUSE, Rig};
use crate::trace::Trace;
use anyhow::Result;
use serde::Serialize;
use std::time::Instant;

/// From and to, in bits a second: a good link becomes a bad one and the other way round.
const CHANGES_BPS: [(u64, u64); 6] = [
    (5_000_000, 200_000),
    (200_000, 5_000_000),
    (1_500_000, 100_000),
    (100_000, 1_500_000),
    (20_000_000, 400_000),
    (400_000, 20_000_000),
];

/// So many answers at the end of what is looked at say which exit the new rate is good for.
const SETTLED: usize = 8;

/// One change of rate.
#[derive(Serialize)]
pub(super) struct Change {
    pub(super) from_bps: u64,
    pub(super) to_bps: u64,
    /// The exit and the placement that most of the last answers had; none if no plan lasted.
    pub(super) settled_on: Option<String>,
    /// How many answers after the change came from another plan or were late, before the first that the new plan gave
    /// in time.
    pub(super) requests_before: Option<usize>,
    /// From the change until that one was asked for.
    pub(super) after_ms: Option<f64>,
    /// Of all that were looked at.
    pub(super) late: usize,
    pub(super) requests: usize,
}

impl Bench<'_> {
    /// Changes the rate under a device that knows it, and looks at each answer from then on.
    pub(super) async fn changes(&self, rig: &Rig) -> Result<Vec<Change>> {
        let mut changes = Vec::new();
        for (from_bps, to_bps) in CHANGES_BPS {
            self.settle(rig, from_bps).await?;
            rig.relay.follow(&Trace::constant(to_bps));
            let start = Instant::now();
            let mut asked = Vec::new();
            for index in 0..PAUSED_REQUESTS_MAX {
                let at_ms = start.elapsed().as_secs_f64() * 1e3;
                asked.push((at_ms, self.ask_now(rig, index).await?));
                tokio::time::sleep(PAUSE).await;
            }
            changes.push(self.change(from_bps, to_bps, &asked));
        }
        Ok(changes)
    }

    fn change(&self, from_bps: u64, to_bps: u64, asked: &[(f64, Asked)]) -> Change {
        let deadline_ms = self.arguments.deadline_ms;
        let plan = |asked: &Asked| asked.answer.as_ref().map(|answer| (answer.exit, answer.placement));
        let last = &asked[asked.len().saturating_sub(SETTLED)..];
        let common = last
            .iter()
            .filter_map(|(_, one)| plan(one))
            .find(|wanted| last.iter().filter(|(_, one)| plan(one) == Some(*wanted)).count() * 2 > last.len());
        let is_late = |one: &Asked| one.answer.is_none() || one.latency_ms > deadline_ms;
        let first = asked.iter().position(|(_, one)| common.is_some() && plan(one) == common && !is_late(one));
        Change {
            from_bps,
            to_bps,
            settled_on: common
                .map(|(exit, placement)| format!("{}, {}", self.exits[usize::from(exit)].0, placement.name())),
            requests_before: first,
            after_ms: first.map(|first| asked[first].0),
            late: asked.iter().filter(|(_, one)| is_late(one)).count(),
            requests: asked.len(),
        }
    }
}
