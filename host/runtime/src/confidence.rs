//! When an early exit is sure enough to be believed.
//!
//! BranchyNet (Teerapittayanon, McDanel and Kung 2016) leaves at an exit whose answer is confident; the
//! Edgent paper leaves by time alone. Both together: a request on its way to the exit that its plan names
//! looks in at the exits it passes, while the deadline leaves time for that, and stays at the first one that
//! is sure. Confidence is the greatest softmax probability; how much of it is enough is calibrated for each
//! exit on held-out samples, so no exit needs to know how well its probabilities are calibrated.

use edgent_bundle::Manifest;

/// A threshold is calibrated on at least so many samples over it.
const SAMPLES_MIN: usize = 30;

/// Of the samples over a threshold, at most this share more may be wrong than at the best exit.
const LOSS_MAX: f64 = 0.002;

/// What an exit said of a held-out sample.
#[derive(Clone, Copy, Debug)]
pub struct Said {
    /// Its greatest probability.
    pub confidence: f32,
    /// Whether its answer was right.
    pub is_right: bool,
    /// Whether the best exit's answer was.
    pub best_is_right: bool,
}

/// The least confidence from which on this exit is right as often as the best one, on the samples that
/// have it; `None` if there is none, or too few samples to tell. Goes down from the most confident sample
/// and stops where the exit first falls behind: looking for the lowest threshold that happens to do well
/// would find luck.
pub fn threshold(mut said: Vec<Said>) -> Option<f64> {
    said.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    let (mut behind, mut least) = (0_i32, None);
    for (index, one) in said.iter().enumerate() {
        behind += i32::from(one.best_is_right) - i32::from(one.is_right);
        let count = index + 1;
        if count < SAMPLES_MIN {
            continue;
        }
        if f64::from(behind) > LOSS_MAX * count as f64 {
            break;
        }
        // Equal confidences stand or fall together.
        if said.get(count).is_none_or(|next| next.confidence < one.confidence) {
            least = Some(f64::from(one.confidence));
        }
    }
    least
}

/// An exit that is passed on the way to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Passed {
    pub(crate) exit: usize,
    /// It branches off after so many segments of both paths.
    pub(crate) after: usize,
    /// The confidence that is enough.
    pub(crate) sure_at: f64,
}

/// The exits that branch off from the first `within` segments of the way to `exit`, in order.
pub(crate) fn passed(manifest: &Manifest, exit: usize, within: usize) -> Vec<Passed> {
    let path = &manifest.exits[exit].path;
    let others = manifest.exits.iter().enumerate().filter(|(other, _)| *other != exit);
    let mut passed: Vec<Passed> = others
        .filter_map(|(other, described)| {
            let after = path.iter().zip(&described.path).take_while(|(a, b)| a == b).count();
            let branches = after > 0 && after <= within && after < path.len();
            described.sure_at.filter(|_| branches).map(|sure_at| Passed { exit: other, after, sure_at })
        })
        .collect();
    passed.sort_by_key(|passed| passed.after);
    passed
}

/// Probabilities of logits.
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|logit| (logit - greatest).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// The greatest probability of logits; 0 of none, or if one is NaN.
pub fn confidence(logits: &[f32]) -> f32 {
    let probabilities = softmax(logits);
    if probabilities.iter().any(|probability| probability.is_nan()) {
        return 0.0;
    }
    probabilities.into_iter().fold(0.0, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` samples of falling confidence; the exit is wrong where `wrong` says, the best exit never.
    fn samples(n: usize, wrong: impl Fn(usize) -> bool) -> Vec<Said> {
        (0..n)
            .map(|i| Said { confidence: 1.0 - i as f32 / n as f32, is_right: !wrong(i), best_is_right: true })
            .collect()
    }

    #[test]
    fn a_threshold_is_where_the_exit_first_falls_behind_the_best() {
        let cases: [(&str, Vec<Said>, Option<f64>); 5] = [
            ("always right", samples(100, |_| false), Some(0.01)),
            ("wrong below one half", samples(100, |i| i > 50), Some(0.5)),
            ("wrong at once", samples(100, |i| i == 3), None),
            ("too few", samples(SAMPLES_MIN - 1, |_| false), None),
            ("lucky again later", samples(100, |i| i == 60 || i == 70), Some(0.41)),
        ];
        for (name, said, expected) in cases {
            let found = threshold(said);
            let same = match (found, expected) {
                (Some(a), Some(b)) => (a - b).abs() < 1e-6,
                (a, b) => a == b,
            };
            assert!(same, "{name}: {found:?} in place of {expected:?}");
        }
        let both_wrong = samples(100, |i| i % 3 == 0).into_iter().map(|s| Said { best_is_right: s.is_right, ..s });
        assert!(threshold(both_wrong.collect()).is_some_and(|at| at < 0.02), "the best is no better");
        let equal = samples(100, |i| i > 50).into_iter().map(|s| Said { confidence: 0.5, ..s });
        assert_eq!(threshold(equal.collect()), None, "equal confidences cannot be told apart");
    }

    #[test]
    fn confidence_is_the_greatest_probability_and_never_of_nonsense() {
        assert!((confidence(&[0.0, 0.0]) - 0.5).abs() < 1e-6);
        assert!(confidence(&[100.0, 0.0]) > 0.999);
        for nonsense in [&[][..], &[f32::NAN, 1.0], &[f32::NEG_INFINITY], &[f32::INFINITY, 0.0]] {
            assert_eq!(confidence(nonsense), 0.0, "{nonsense:?}");
        }
    }
}
