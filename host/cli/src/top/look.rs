//! What a host is seen to do.

use crate::output::quantile;
use edgent_link::Stats;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Latencies that quantiles are of: as many as a host keeps for those who come.
const ANSWERS_MAX: usize = 120;

/// Requests are counted over so long for their rate.
const RATE_OVER: Duration = Duration::from_secs(1);

/// A host, as it was last seen. What it does not tell, as older ones over the link, is none.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Look {
    pub(crate) address: String,
    /// Why it tells nothing now; what else stands here is then as it was.
    pub(crate) away: Option<String>,
    pub(crate) role: String,
    pub(crate) model: String,
    pub(crate) version: String,
    pub(crate) uptime_s: f64,
    pub(crate) requests_per_s: Option<f64>,
    pub(crate) counts: Counts,
    /// Nothing is known of the link where this is 0.
    pub(crate) rate_bps: u64,
    pub(crate) rtt_ms: f64,
    pub(crate) deadline_ms: Option<f64>,
    pub(crate) plan: Option<Plan>,
    pub(crate) edge_is_connected: Option<bool>,
    pub(crate) latencies: Option<Latencies>,
    /// Of the last answers, how many each exit gave.
    pub(crate) exits: Option<BTreeMap<u64, u64>>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    pub(crate) answered: u64,
    pub(crate) errors: u64,
    pub(crate) deadline_met: u64,
    pub(crate) degraded: u64,
    pub(crate) plan_changes: u64,
    pub(crate) faults: u64,
    pub(crate) quarantined: u64,
    /// Requests that are being answered, or wait.
    pub(crate) in_flight: u64,
}

impl From<&Stats> for Counts {
    fn from(stats: &Stats) -> Self {
        Self {
            requests: stats.requests,
            answered: stats.answered,
            errors: stats.errors,
            deadline_met: stats.deadline_met,
            degraded: stats.degraded,
            plan_changes: stats.plan_changes,
            faults: stats.faults,
            quarantined: stats.quarantined,
            in_flight: stats.calls_in_flight,
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) exit: u64,
    pub(crate) cut: u64,
    pub(crate) direction: String,
    pub(crate) placement: String,
    pub(crate) codec: String,
    pub(crate) epoch: u64,
    pub(crate) predicted_ms: Option<f64>,
    pub(crate) in_time: f64,
}

/// Of the last answers.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Latencies {
    pub(crate) answers: usize,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// One of a host's answers.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Answer {
    latency_ms: f64,
    exit: u64,
}

impl Look {
    /// Why it tells nothing, and who.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.away.as_ref().map(|why| format!("{}: {why}", self.address))
    }
}

/// What must be remembered from one look to the next.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    answers: VecDeque<Answer>,
    counted: Option<(Instant, u64)>,
    requests_per_s: Option<f64>,
}

impl Memory {
    /// Adds to a look what only several tell.
    pub(crate) fn complete(&mut self, mut look: Look, now: Instant) -> Look {
        let requests = look.counts.requests;
        let (since, before) = *self.counted.get_or_insert((now, requests));
        // Fewer than before: the host is another one.
        if now - since >= RATE_OVER || requests < before {
            let more = requests.saturating_sub(before) as f64;
            self.requests_per_s = (requests >= before).then(|| more / (now - since).as_secs_f64());
            self.counted = Some((now, requests));
        }
        look.requests_per_s = self.requests_per_s;
        look
    }

    /// The same where the host tells its answers.
    pub(crate) fn complete_with(&mut self, mut look: Look, answers: Vec<Answer>, now: Instant) -> Look {
        self.answers.extend(answers);
        self.answers.drain(..self.answers.len().saturating_sub(ANSWERS_MAX));
        let mut latencies: Vec<f64> = self.answers.iter().map(|answer| answer.latency_ms).collect();
        let mut exits = BTreeMap::new();
        self.answers.iter().for_each(|answer| *exits.entry(answer.exit).or_default() += 1);
        look.exits = Some(exits);
        look.latencies = (!latencies.is_empty()).then(|| Latencies {
            answers: latencies.len(),
            p50_ms: quantile(&mut latencies, 0.5),
            p99_ms: quantile(&mut latencies, 0.99),
        });
        self.complete(look, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_quantiles_are_of_what_came_last() {
        let (mut memory, start) = (Memory::default(), Instant::now());
        let look = |requests| Look { counts: Counts { requests, ..Counts::default() }, ..Look::default() };
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(memory.complete(look(100), at(0)).requests_per_s, None);
        assert_eq!(memory.complete(look(104), at(500)).requests_per_s, None);
        assert_eq!(memory.complete(look(120), at(2_000)).requests_per_s, Some(10.0));
        assert_eq!(memory.complete(look(3), at(2_500)).requests_per_s, None, "it was started again");

        let answers = |exit, latency_ms| vec![Answer { exit, latency_ms }; 100];
        memory.complete_with(look(3), answers(1, 5.0), start);
        let seen = memory.complete_with(look(3), answers(2, 9.0), start);
        let latencies = seen.latencies.unwrap();
        assert_eq!((latencies.answers, latencies.p50_ms, latencies.p99_ms), (120, 9.0, 9.0));
        assert_eq!(seen.exits.unwrap(), BTreeMap::from([(1, 20), (2, 100)]));
    }
}
