//! Whether requests were answered, each by one version and one plan, and by a version that was in force.

use edgent_link::{Answer, Codec, Digest, Direction, Placement};
use serde::Serialize;
use std::collections::HashMap;
use std::time::Instant;

/// What became of a request.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) asked: Instant,
    pub(super) answered: Option<Instant>,
    pub(super) epoch: u64,
    pub(super) model: Option<Digest>,
    pub(super) crossing: Option<Crossing>,
}

/// Where an answer's two halves met: exit, cut, order, codec.
pub(super) type Crossing = (u16, u16, Direction, Codec);

/// Of an answer to which both hosts came; what a device answers alone is no matter of agreement.
pub(super) fn crossing(answer: &Answer) -> Option<Crossing> {
    let together = answer.placement != Placement::DeviceOnly && answer.degraded.is_none();
    together.then_some((answer.exit, answer.cut, answer.direction, answer.codec))
}

/// When a version may have answered: from the push that brought it to the answer to the push that replaced it.
#[derive(Clone, Debug)]
pub(super) struct InForce {
    pub(super) digest: Digest,
    pub(super) from: Instant,
    pub(super) until: Option<Instant>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Verdict {
    /// Requests without an answer.
    pub(super) lost: usize,
    /// Epochs under which two versions answered, or two plans were run.
    pub(super) mixed_epochs: usize,
    /// Answers by a version that was not in force when they were asked for.
    pub(super) of_another_version: usize,
}

pub(super) fn check(records: &[Record], in_force: &[InForce]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut epochs: HashMap<u64, Epoch> = HashMap::new();
    for record in records {
        let Some(answered) = record.answered else {
            verdict.lost += 1;
            continue;
        };
        let epoch = epochs.entry(record.epoch).or_insert(Epoch { model: record.model, ..Epoch::default() });
        epoch.is_mixed |= epoch.model != record.model;
        if let Some(crossing) = record.crossing {
            epoch.is_mixed |= *epoch.crossing.get_or_insert(crossing) != crossing;
        }
        let could = |version: &InForce| {
            Some(version.digest) == record.model
                && version.from <= answered
                && version.until.is_none_or(|until| record.asked <= until)
        };
        // The first one was in force before anybody looked.
        let is_first = in_force.first().is_some_and(|first| {
            Some(first.digest) == record.model && first.until.is_none_or(|until| record.asked <= until)
        });
        verdict.of_another_version += usize::from(!is_first && !in_force.iter().any(could));
    }
    verdict.mixed_epochs = epochs.values().filter(|epoch| epoch.is_mixed).count();
    verdict
}

#[derive(Default)]
struct Epoch {
    model: Option<Digest>,
    crossing: Option<Crossing>,
    is_mixed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn planted_faults_are_found() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let (a, b) = (Digest([1; 32]), Digest([2; 32]));
        let in_force = [
            InForce { digest: a, from: at(0), until: Some(at(110)) },
            InForce { digest: b, from: at(100), until: None },
        ];
        let record = |asked, answered: Option<u64>, epoch, model| Record {
            asked: at(asked),
            answered: answered.map(at),
            epoch,
            model: Some(model),
            crossing: Some((1, epoch as u16, Direction::DeviceFirst, Codec::Raw)),
        };
        let good = [
            record(10, Some(20), 1, a),
            record(95, Some(105), 1, a),
            record(105, Some(130), 1, a),
            record(105, Some(109), 2, b),
            record(150, Some(160), 2, b),
            // The device alone, meanwhile.
            Record { crossing: None, ..record(155, Some(156), 2, b) },
        ];
        assert_eq!(check(&good, &in_force), Verdict::default());
        let cases = [
            (record(120, None, 2, b), Verdict { lost: 1, ..Verdict::default() }),
            (record(150, Some(160), 1, b), Verdict { mixed_epochs: 1, ..Verdict::default() }),
            // The right version, cut elsewhere than the epoch's plan says.
            (
                Record { crossing: record(0, None, 7, b).crossing, ..record(150, Some(160), 2, b) },
                Verdict { mixed_epochs: 1, ..Verdict::default() },
            ),
            // Asked for after the new version was in force.
            (record(120, Some(130), 1, a), Verdict { of_another_version: 1, ..Verdict::default() }),
            // Answered before it was pushed.
            (record(50, Some(60), 2, b), Verdict { of_another_version: 1, ..Verdict::default() }),
            (record(50, Some(60), 3, Digest([3; 32])), Verdict { of_another_version: 1, ..Verdict::default() }),
        ];
        for (fault, found) in cases {
            assert_eq!(check(&[&good[..], std::slice::from_ref(&fault)].concat(), &in_force), found, "{fault:?}");
        }
    }
}
