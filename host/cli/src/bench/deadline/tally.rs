//! What came of the requests of one point, and how strategies compare by it.

use crate::output::quantile;
use edgent_link::Answer;
use edgent_runtime::LATE;
use serde::Serialize;
use std::collections::BTreeMap;

use super::oracle::Ideal;

/// One request.
pub(super) struct Asked {
    pub(super) latency_ms: f64,
    pub(super) right: bool,
    pub(super) answer: Option<Answer>,
}

/// Which point of which experiment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Point {
    pub(super) experiment: String,
    /// 0: it changed.
    pub(super) bandwidth_bps: u64,
    pub(super) deadline_ms: f64,
}

/// What one strategy made of a point.
#[derive(Serialize)]
pub(super) struct Row {
    #[serde(flatten)]
    pub(super) point: Point,
    pub(super) strategy: &'static str,
    pub(super) requests: usize,
    pub(super) hit_ratio: f64,
    /// Where the hit ratio lies, with 95 % confidence (Wilson 1927).
    pub(super) hit_ratio_from: f64,
    pub(super) hit_ratio_to: f64,
    /// Share of all requests that were answered rightly.
    pub(super) accuracy: f64,
    /// The same, in time.
    pub(super) right_in_time: f64,
    /// The same as it is to be expected of the exits taken, by their measured accuracy.
    pub(super) expected_in_time: f64,
    /// The exits' accuracy, counted negative where the deadline was missed, as in the paper's figures.
    pub(super) signed_accuracy: f64,
    /// Of the journal paper: exp(accuracy) + 1 / latency in seconds, 0 for what is late.
    pub(super) reward: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    /// Of the plans, where they were predicted.
    pub(super) predicted_p50_ms: Option<f64>,
    pub(super) exits: BTreeMap<String, usize>,
    /// The exit, the cut and the placement taken most often.
    pub(super) plan: Option<TakenPlan>,
    pub(super) degraded: usize,
    /// Of each request: its latency, and the reward for it.
    #[serde(skip)]
    pub(super) each: Vec<(f64, f64)>,
}

/// A plan by what the plots show of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct TakenPlan {
    pub(super) exit: usize,
    pub(super) cut: u16,
    pub(super) placement: &'static str,
}

/// How far predictions were off, of the answers that are their plan's; and how often plans were in time.
#[derive(Serialize)]
pub(super) struct PredictionError {
    pub(super) answers: usize,
    pub(super) median_relative: f64,
    pub(super) p90_relative: f64,
    /// How likely the plans were said to be in time, on average…
    pub(super) predicted_in_time: f64,
    /// …and how many were; one that was late and answered by the device itself was not.
    pub(super) in_time: f64,
}

/// A point at which a strategy did better than ours.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Loss {
    #[serde(flatten)]
    pub(super) point: Point,
    pub(super) strategy: &'static str,
    pub(super) hit_ratio: f64,
    pub(super) expected_in_time: f64,
    pub(super) our_hit_ratio: f64,
    pub(super) our_expected_in_time: f64,
    /// Whether it is more than chance: the intervals of the hit ratios do not meet, or the ratios are one and the exits better.
    pub(super) is_clear: bool,
}

/// An exit by its name and measured accuracy.
pub(super) type Exits = [(String, f64)];

impl Row {
    /// Of requests to real hosts.
    pub(super) fn of(point: Point, strategy: &'static str, exits: &Exits, asked: &[Asked]) -> Self {
        let taken = |asked: &Asked| asked.answer.as_ref().map(|answer| usize::from(answer.exit));
        let outcome = |one: &Asked| Outcome { exit: taken(one), latency_ms: one.latency_ms };
        let mut row = Self::reckoned(point, strategy, exits, asked.iter().map(outcome).collect());
        let share = |of: &dyn Fn(&Asked) -> bool| {
            asked.iter().filter(|asked| of(asked)).count() as f64 / asked.len().max(1) as f64
        };
        let deadline_ms = row.point.deadline_ms;
        row.accuracy = share(&|asked| asked.right);
        row.right_in_time = share(&|asked| asked.right && asked.latency_ms <= deadline_ms);
        let answers = || asked.iter().filter_map(|asked| asked.answer.as_ref());
        let mut predicted_ms: Vec<f64> = answers()
            .filter(|answer| answer.degraded.is_none() && answer.predicted_us > 0)
            .map(|answer| answer.predicted_us as f64 / 1e3)
            .collect();
        row.predicted_p50_ms = (!predicted_ms.is_empty()).then(|| quantile(&mut predicted_ms, 0.5));
        let mut plans: BTreeMap<TakenPlan, usize> = BTreeMap::new();
        for answer in answers() {
            let plan = TakenPlan { exit: answer.exit.into(), cut: answer.cut, placement: answer.placement.name() };
            *plans.entry(plan).or_insert(0) += 1;
        }
        row.plan = plans.into_iter().max_by_key(|(_, count)| *count).map(|(plan, _)| plan);
        row.degraded = answers().filter(|answer| answer.degraded.is_some()).count();
        row
    }

    /// Of what the oracle would have done.
    pub(super) fn of_oracle(point: Point, exits: &Exits, ideals: &[Option<Ideal>]) -> Self {
        let outcome = |ideal: &Option<Ideal>| match ideal {
            Some(ideal) => Outcome { exit: Some(ideal.exit), latency_ms: ideal.latency_ms },
            None => Outcome { exit: None, latency_ms: f64::INFINITY },
        };
        let mut row = Self::reckoned(point, "oracle", exits, ideals.iter().map(outcome).collect());
        (row.accuracy, row.right_in_time) = (row.expected_in_time, row.expected_in_time);
        row
    }

    fn reckoned(point: Point, strategy: &'static str, exits: &Exits, outcomes: Vec<Outcome>) -> Self {
        let deadline_ms = point.deadline_ms;
        let mean = |of: &dyn Fn(&Outcome) -> f64| outcomes.iter().map(of).sum::<f64>() / outcomes.len().max(1) as f64;
        let in_time = |outcome: &Outcome| outcome.exit.is_some() && outcome.latency_ms <= deadline_ms;
        let accuracy = |outcome: &Outcome| outcome.exit.map_or(0.0, |exit| exits[exit].1);
        let if_in_time = |outcome: &Outcome, value: f64| if in_time(outcome) { value } else { 0.0 };
        let reward = |outcome: &Outcome| if_in_time(outcome, accuracy(outcome).exp() + 1e3 / outcome.latency_ms);
        let hit_ratio = mean(&|outcome| if_in_time(outcome, 1.0));
        let (hit_ratio_from, hit_ratio_to) = wilson(hit_ratio, outcomes.len());
        let mut taken = BTreeMap::new();
        for exit in outcomes.iter().filter_map(|outcome| outcome.exit) {
            *taken.entry(exits[exit].0.clone()).or_insert(0) += 1;
        }
        let mut latencies_ms: Vec<f64> = outcomes.iter().map(|outcome| outcome.latency_ms).collect();
        Self {
            strategy,
            requests: outcomes.len(),
            hit_ratio,
            hit_ratio_from,
            hit_ratio_to,
            accuracy: 0.0,
            right_in_time: 0.0,
            expected_in_time: mean(&|outcome| if_in_time(outcome, accuracy(outcome))),
            signed_accuracy: mean(&|outcome| if in_time(outcome) { accuracy(outcome) } else { -accuracy(outcome) }),
            reward: mean(&reward),
            p50_ms: quantile(&mut latencies_ms, 0.5),
            p99_ms: quantile(&mut latencies_ms, 0.99),
            predicted_p50_ms: None,
            exits: taken,
            plan: None,
            degraded: 0,
            each: outcomes.iter().map(|outcome| (outcome.latency_ms, reward(outcome))).collect(),
            point,
        }
    }
}

struct Outcome {
    /// None: there was no answer.
    exit: Option<usize>,
    latency_ms: f64,
}

/// The points at which one of the others did better than ours: more in time; of as many, by better exits.
pub(super) fn losses(rows: &[Row]) -> Vec<Loss> {
    let others = rows.iter().filter(|row| !row.strategy.starts_with(OURS) && row.strategy != "oracle");
    let lost = |other: &Row| {
        let ours = rows.iter().find(|row| row.strategy == OURS && row.point == other.point)?;
        let same = (other.hit_ratio - ours.hit_ratio).abs() < 1e-9;
        let is_better =
            if same { other.expected_in_time > ours.expected_in_time + 1e-9 } else { other.hit_ratio > ours.hit_ratio };
        is_better.then(|| Loss {
            point: other.point.clone(),
            strategy: other.strategy,
            hit_ratio: other.hit_ratio,
            expected_in_time: other.expected_in_time,
            our_hit_ratio: ours.hit_ratio,
            our_expected_in_time: ours.expected_in_time,
            is_clear: same || other.hit_ratio_from > ours.hit_ratio_to,
        })
    };
    others.filter_map(lost).collect()
}

/// Ours; so do the names of its variants begin.
pub(super) const OURS: &str = "edgent";

pub(super) fn prediction_error(asked: &[Asked]) -> Option<PredictionError> {
    let answers = || asked.iter().filter_map(|asked| asked.answer.as_ref());
    // As planned, or answered by the device itself because the plan was late: these were promised something.
    let was_late = |answer: &&Answer| answer.degraded.as_deref().is_some_and(|why| why.starts_with(LATE));
    let as_planned = |answer: &&Answer| answer.degraded.is_none() && answer.predicted_us > 0;
    let promised: Vec<&Answer> = answers().filter(|answer| as_planned(answer) || was_late(answer)).collect();
    let error = |answer: &Answer| (answer.latency_us as f64 / answer.predicted_us as f64 - 1.0).abs();
    let mut errors: Vec<f64> = answers().filter(as_planned).map(error).collect();
    let count = promised.len() as f64;
    let kept = promised.iter().filter(|answer| answer.deadline_met && !was_late(answer)).count();
    (!errors.is_empty()).then(|| PredictionError {
        answers: promised.len(),
        median_relative: quantile(&mut errors, 0.5),
        p90_relative: quantile(&mut errors, 0.9),
        predicted_in_time: promised.iter().map(|answer| f64::from(answer.in_time)).sum::<f64>() / count,
        in_time: kept as f64 / count,
    })
}

/// The interval in which a share lies with 95 % confidence, if it was seen of so many.
fn wilson(share: f64, count: usize) -> (f64, f64) {
    const Z: f64 = 1.96;
    if count == 0 {
        return (0.0, 1.0);
    }
    let n = count as f64;
    let middle = share + Z * Z / (2.0 * n);
    let half = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    let whole = 1.0 + Z * Z / n;
    (((middle - half) / whole).max(0.0), ((middle + half) / whole).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE_MS: f64 = 100.0;

    fn row(strategy: &'static str, outcomes: &[(usize, f64)]) -> Row {
        let exits = [("a".to_owned(), 0.5), ("b".to_owned(), 0.9)];
        let point = Point { experiment: "rate".to_owned(), bandwidth_bps: 1, deadline_ms: DEADLINE_MS };
        let outcome = |(exit, latency_ms): &(usize, f64)| Outcome { exit: Some(*exit), latency_ms: *latency_ms };
        Row::reckoned(point, strategy, &exits, outcomes.iter().map(outcome).collect())
    }

    #[test]
    fn what_is_late_earns_nothing_and_counts_against() {
        let row = row(OURS, &[(1, 50.0), (0, 100.0), (1, 101.0), (0, 10.0)]);
        assert_eq!((row.hit_ratio, row.exits["a"]), (0.75, 2));
        assert!((row.expected_in_time - (0.9 + 0.5 + 0.5) / 4.0).abs() < 1e-12);
        assert!((row.signed_accuracy - (0.9 + 0.5 - 0.9 + 0.5) / 4.0).abs() < 1e-12);
        let reward = (0.9_f64.exp() + 20.0 + 0.5_f64.exp() + 10.0 + 0.5_f64.exp() + 100.0) / 4.0;
        assert!((row.reward - reward).abs() < 1e-12, "{} and {reward}", row.reward);
    }

    #[test]
    fn a_loss_is_clear_where_it_is_more_than_chance() {
        let all = |exit: usize, late: usize| -> Vec<(usize, f64)> {
            (0..20).map(|i| (exit, if i < late { 200.0 } else { 20.0 })).collect()
        };
        let cases = [
            // ours, the other, whether it is a loss, whether that is clear
            (all(1, 0), all(1, 0), None),
            (all(1, 0), all(1, 1), None),
            (all(1, 1), all(0, 0), Some(false)),
            (all(1, 10), all(0, 0), Some(true)),
            (all(0, 0), all(1, 0), Some(true)),
            (all(0, 0), all(1, 1), None),
        ];
        for (index, (ours, other, expected)) in cases.into_iter().enumerate() {
            let rows =
                [row(OURS, &ours), row("paper", &other), row("oracle", &all(1, 0)), row("edgent-sure", &all(1, 0))];
            assert_eq!(losses(&rows).iter().map(|loss| loss.is_clear).next(), expected, "case {index}");
            assert!(losses(&rows).len() < 2, "case {index}");
        }
    }

    #[test]
    fn an_interval_is_that_of_wilson() {
        for (share, count, from, to) in [(0.5, 10, 0.2366, 0.7634), (1.0, 20, 0.8389, 1.0), (0.0, 0, 0.0, 1.0)] {
            let (low, high) = wilson(share, count);
            assert!((low - from).abs() < 1e-4 && (high - to).abs() < 1e-4, "{share} of {count}: {low} to {high}");
        }
    }
}
