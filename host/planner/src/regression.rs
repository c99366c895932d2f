//! How long a layer takes, from its sizes: the linear regressions of the Edgent paper (its Table 1).
//!
//! Two things differ from plain least squares. Errors are *relative*: a layer of 5 µs counts as much
//! as one of 5 ms, of which plain least squares would see nothing else. And no coefficient is
//! negative: more work never takes less time, not even outside the sizes that were measured.

/// At most so many features; the fit tries every subset of them.
pub const FEATURES_MAX: usize = 8;

/// More samples than this are a mistake.
pub const SAMPLES_MAX: usize = 100_000;

/// What is left of a feature, as a share, once the others explain it: less is rounding.
const INDEPENDENT_MIN: f64 = 1e-9;

/// A line through samples: `constant + Σ coefficient × feature`, in microseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Regression {
    coefficients: Vec<f64>,
    constant_us: f64,
}

/// Something measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its sizes.
    pub features: Vec<f64>,
    /// Its time; more than zero.
    pub us: f64,
}

/// How well predictions meet what was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quality {
    /// The share of the times' variance that is predicted; of relative interest only, since it is made by
    /// the largest times. Zero or less: no better than their mean.
    pub r2: f64,
    /// The median of |predicted − measured| / measured.
    pub median_relative_error: f64,
}

impl Regression {
    /// The least sum of squared relative errors, with no coefficient below zero. It takes more samples
    /// than there are features, and features that vary independently of each other.
    pub fn fit(samples: &[Sample]) -> Result<Self, RegressionError> {
        let features = samples.first().ok_or(RegressionError::Few { got: 0, needed: 2 })?.features.len();
        check(samples, features)?;
        let gram = Gram::of(samples, features);
        let everything: Vec<usize> = (0..=features).collect();
        gram.solve(&everything).ok_or(RegressionError::Dependent)?;
        // The best fit without negative coefficients is the plain best fit of some subset of the features.
        let subsets = (1..1_usize << (features + 1))
            .map(|bits| everything.iter().copied().filter(|column| bits >> column & 1 == 1).collect::<Vec<_>>());
        let fits = subsets.filter_map(|columns| gram.solve(&columns)).filter(|fit| fit.iter().all(|c| *c >= 0.0));
        let best = fits.min_by(|a, b| gram.error(a).total_cmp(&gram.error(b))).ok_or(RegressionError::Dependent)?;
        Self::from_coefficients(best[..features].to_vec(), best[features])
    }

    /// A regression as it was fitted elsewhere: a microsecond count for each unit of each feature, and the constant.
    pub fn from_coefficients(coefficients: Vec<f64>, constant_us: f64) -> Result<Self, RegressionError> {
        if coefficients.len() > FEATURES_MAX {
            return Err(RegressionError::Features { got: coefficients.len(), expected: FEATURES_MAX });
        }
        let sound = coefficients.iter().chain([&constant_us]).all(|c| c.is_finite() && *c >= 0.0);
        if sound { Ok(Self { coefficients, constant_us }) } else { Err(RegressionError::Number) }
    }

    /// The time of something of these sizes: never negative, never NaN. Infinite, which the planner takes
    /// for unknown, if a size is negative or no number, or if there are more or fewer than were fitted.
    pub fn predict(&self, features: &[f64]) -> f64 {
        let sound = features.len() == self.coefficients.len() && features.iter().all(|f| f.is_finite() && *f >= 0.0);
        if !sound {
            return f64::INFINITY;
        }
        self.constant_us + self.coefficients.iter().zip(features).map(|(c, f)| c * f).sum::<f64>()
    }

    /// Microseconds for each unit of each feature.
    pub fn coefficients(&self) -> &[f64] {
        &self.coefficients
    }

    /// Microseconds of something of no size at all.
    pub fn constant_us(&self) -> f64 {
        self.constant_us
    }

    /// How well it predicts these samples. They should be others than those it was fitted to.
    pub fn quality(&self, samples: &[Sample]) -> Quality {
        let pairs: Vec<_> = samples.iter().map(|sample| (self.predict(&sample.features), sample.us)).collect();
        Quality::of(&pairs)
    }

    /// How well regressions of this kind predict samples that they were not fitted to: the samples are
    /// dealt into `folds`, and each fold is predicted from the others. Shuffle the samples first.
    pub fn held_out_quality(samples: &[Sample], folds: usize) -> Result<Quality, RegressionError> {
        let folds = folds.clamp(2, samples.len().max(2));
        let mut pairs = Vec::with_capacity(samples.len());
        for fold in 0..folds {
            let split = |held_out: bool| {
                let dealt = samples.iter().enumerate().filter(move |(index, _)| (index % folds == fold) == held_out);
                dealt.map(|(_, sample)| sample)
            };
            let fitted = Self::fit(&split(false).cloned().collect::<Vec<_>>())?;
            pairs.extend(split(true).map(|sample| (fitted.predict(&sample.features), sample.us)));
        }
        Ok(Quality::of(&pairs))
    }
}

impl Quality {
    /// Compares pairs of a predicted and a measured time. Of no pairs: R² zero, an infinite error.
    pub fn of(pairs: &[(f64, f64)]) -> Self {
        let mean = pairs.iter().map(|(_, us)| us).sum::<f64>() / pairs.len().max(1) as f64;
        let squares = |distance: &dyn Fn(&(f64, f64)) -> f64| pairs.iter().map(|pair| distance(pair).powi(2)).sum();
        let (left, all): (f64, f64) = (squares(&|(predicted, us)| predicted - us), squares(&|(_, us)| us - mean));
        let mut errors: Vec<f64> = pairs.iter().map(|(predicted, us)| (predicted - us).abs() / us).collect();
        errors.sort_by(f64::total_cmp);
        Self {
            r2: if all > 0.0 { 1.0 - left / all } else { 0.0 },
            median_relative_error: errors.get(errors.len() / 2).copied().unwrap_or(f64::INFINITY),
        }
    }
}

fn check(samples: &[Sample], features: usize) -> Result<(), RegressionError> {
    if features > FEATURES_MAX {
        return Err(RegressionError::Features { got: features, expected: FEATURES_MAX });
    }
    if samples.len() < features + 2 {
        return Err(RegressionError::Few { got: samples.len(), needed: features + 2 });
    }
    if samples.len() > SAMPLES_MAX {
        return Err(RegressionError::Many { got: samples.len() });
    }
    for Sample { features: given, us } in samples {
        if given.len() != features {
            return Err(RegressionError::Features { got: given.len(), expected: features });
        }
        let sound = us.is_normal() && *us > 0.0 && given.iter().all(|f| f.is_finite() && *f >= 0.0);
        if !sound {
            return Err(RegressionError::Number);
        }
    }
    Ok(())
}

/// The normal equations of the weighted samples, with each column scaled to length one. The last column
/// is the constant.
struct Gram {
    scales: Vec<f64>,
    products: Vec<Vec<f64>>,
    targets: Vec<f64>,
    samples: f64,
}

impl Gram {
    fn of(samples: &[Sample], features: usize) -> Self {
        // Each row is divided by its time: the target is 1 and what is left is the relative error.
        let row = |sample: &Sample| sample.features.iter().chain([&1.0]).map(|f| f / sample.us).collect();
        let rows: Vec<Vec<f64>> = samples.iter().map(row).collect();
        let columns = 0..=features;
        let product = |a: usize, b: usize| rows.iter().map(|row| row[a] * row[b]).sum::<f64>();
        let scales: Vec<f64> = columns.clone().map(|a| product(a, a).sqrt()).collect();
        let scaled = |product: f64, scale: f64| if scale > 0.0 { product / scale } else { 0.0 };
        let along = |a: usize| columns.clone().map(|b| scaled(product(a, b), scales[a] * scales[b])).collect();
        let products = columns.clone().map(along).collect();
        let target = |a: usize| scaled(rows.iter().map(|row| row[a]).sum(), scales[a]);
        let targets = columns.clone().map(target).collect();
        Self { scales, products, targets, samples: samples.len() as f64 }
    }

    /// Coefficients of all columns, zero for those not named; `None` if the named ones depend on each
    /// other. By Cholesky's decomposition.
    fn solve(&self, columns: &[usize]) -> Option<Vec<f64>> {
        let n = columns.len();
        let mut lower = vec![vec![0.0; n]; n];
        for row in 0..n {
            for column in 0..=row {
                let known: f64 = (0..column).map(|k| lower[row][k] * lower[column][k]).sum();
                let rest = self.products[columns[row]][columns[column]] - known;
                lower[row][column] = match row == column {
                    // Also false for NaN, from sizes whose squares are no numbers any more.
                    true if rest > INDEPENDENT_MIN => rest.sqrt(),
                    true => return None,
                    false => rest / lower[column][column],
                };
            }
        }
        let mut solution: Vec<f64> = columns.iter().map(|column| self.targets[*column]).collect();
        for row in 0..n {
            let known: f64 = (0..row).map(|k| lower[row][k] * solution[k]).sum();
            solution[row] = (solution[row] - known) / lower[row][row];
        }
        for row in (0..n).rev() {
            let known: f64 = (row + 1..n).map(|k| lower[k][row] * solution[k]).sum();
            solution[row] = (solution[row] - known) / lower[row][row];
        }
        let mut all = vec![0.0; self.scales.len()];
        for (column, value) in columns.iter().zip(solution) {
            all[*column] = value / self.scales[*column];
        }
        all.iter().all(|value| value.is_finite()).then_some(all)
    }

    /// The sum of squared relative errors.
    fn error(&self, coefficients: &[f64]) -> f64 {
        let scaled: Vec<f64> = coefficients.iter().zip(&self.scales).map(|(c, scale)| c * scale).collect();
        let dot = |row: &[f64]| row.iter().zip(&scaled).map(|(a, b)| a * b).sum::<f64>();
        let squared: f64 = self.products.iter().zip(&scaled).map(|(row, c)| c * dot(row)).sum();
        squared - 2.0 * dot(&self.targets) + self.samples
    }
}

/// Why there is no regression.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RegressionError {
    /// Fewer samples than it takes.
    #[error("{got} samples; at least {needed} are needed")]
    Few {
        /// How many there are.
        got: usize,
        /// How many there must be.
        needed: usize,
    },
    /// More than [`SAMPLES_MAX`].
    #[error("{got} samples; at most {SAMPLES_MAX} are taken")]
    Many {
        /// How many there are.
        got: usize,
    },
    /// Samples of different kinds, or more than [`FEATURES_MAX`] features.
    #[error("{got} features instead of {expected}")]
    Features {
        /// How many there are.
        got: usize,
        /// How many there must, or may, be.
        expected: usize,
    },
    /// Something that is no size or no time.
    #[error("a size, a coefficient or a time is negative or no number, or a time is zero")]
    Number,
    /// Features that always vary together: nothing tells what each of them costs.
    #[error("the features depend on each other; measure more varied sizes or leave one out")]
    Dependent,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(features: &[f64], us: f64) -> Sample {
        Sample { features: features.to_vec(), us }
    }

    /// Sizes of every magnitude, and the time that `line` gives them.
    fn samples(line: impl Fn(f64, f64) -> f64) -> Vec<Sample> {
        let sizes = (0..40).map(|i| (f64::from(i * i), 2_f64.powi(i % 11)));
        sizes.map(|(a, b)| sample(&[a, b], line(a, b))).collect()
    }

    #[test]
    fn a_line_is_found_again() {
        let lines = [(0.5, 0.25, 4.0), (1e-6, 2e3, 1.0), (3.0, 0.0, 7.0), (0.0, 0.0, 2.0)];
        for (a, b, constant) in lines {
            let samples = samples(|x, y| a * x + b * y + constant);
            let fitted = Regression::fit(&samples).unwrap();
            let found = [fitted.coefficients()[0], fitted.coefficients()[1], fitted.constant_us()];
            for (found, expected) in found.into_iter().zip([a, b, constant]) {
                assert!((found - expected).abs() <= 1e-5 * expected.max(1e-3), "{found} is not {expected}");
            }
            let quality = Regression::held_out_quality(&samples, 4).unwrap();
            assert!(quality.median_relative_error < 1e-6, "{quality:?}");
        }
    }

    #[test]
    fn small_times_count_as_much_as_large_ones() {
        // Half of the times are off by 10 %, one way or the other, whatever their size.
        let noisy = samples(|x, y| (2.0 * x + y + 10.0) * if (x as u64).is_multiple_of(2) { 1.1 } else { 0.9 });
        let quality = Regression::fit(&noisy).unwrap().quality(&noisy);
        assert!((0.05..0.15).contains(&quality.median_relative_error), "{quality:?}");
        assert!(quality.r2 > 0.9, "{quality:?}");
    }

    #[test]
    fn no_coefficient_is_negative_and_no_prediction() {
        let falling = samples(|x, y| 2_000.0 - x + y);
        let fitted = Regression::fit(&falling).unwrap();
        assert_eq!(fitted.coefficients()[0], 0.0);
        for features in [[0.0, 0.0], [1e300, 1e300], [1e9, 0.0]] {
            assert!(fitted.predict(&features) >= 0.0);
        }
        for features in [&[1.0][..], &[1.0, 2.0, 3.0], &[f64::NAN, 1.0], &[-1.0, 1.0], &[f64::INFINITY, 1.0], &[]] {
            assert_eq!(fitted.predict(features), f64::INFINITY, "{features:?} is unknown");
        }
    }

    #[test]
    fn what_cannot_be_fitted_is_an_error() {
        let good = || samples(|x, y| x + y + 1.0);
        let with = |index: usize, bad: Sample| {
            let mut samples = good();
            samples[index] = bad;
            samples
        };
        let cases = [
            (vec![], RegressionError::Few { got: 0, needed: 2 }),
            (good()[..3].to_vec(), RegressionError::Few { got: 3, needed: 4 }),
            (with(5, sample(&[1.0], 1.0)), RegressionError::Features { got: 1, expected: 2 }),
            (vec![sample(&[1.0; 9], 1.0); 20], RegressionError::Features { got: 9, expected: FEATURES_MAX }),
            (with(5, sample(&[f64::NAN, 1.0], 1.0)), RegressionError::Number),
            (with(5, sample(&[-1.0, 1.0], 1.0)), RegressionError::Number),
            (with(5, sample(&[1.0, 1.0], 0.0)), RegressionError::Number),
            (with(5, sample(&[1.0, 1.0], f64::INFINITY)), RegressionError::Number),
            (with(5, sample(&[1.0, 1.0], f64::NAN)), RegressionError::Number),
            (vec![sample(&[1.0, 2.0], 3.0); 20], RegressionError::Dependent),
            (
                good().iter().map(|s| sample(&[s.features[0], 2.0 * s.features[0]], s.us)).collect(),
                RegressionError::Dependent,
            ),
            (good().iter().map(|s| sample(&[s.features[0], 0.0], s.us)).collect(), RegressionError::Dependent),
            (with(5, sample(&[1e300, 1.0], 1e-300)), RegressionError::Dependent),
        ];
        for (index, (samples, expected)) in cases.into_iter().enumerate() {
            assert!(Regression::held_out_quality(&samples, 4).is_err(), "case {index}");
            assert_eq!(Regression::fit(&samples), Err(expected), "case {index}");
        }
        assert!(Regression::from_coefficients(vec![1.0, f64::NAN], 0.0).is_err());
        assert!(Regression::from_coefficients(vec![1.0], -1.0).is_err());
    }

    #[test]
    fn quality_is_that_of_the_pairs() {
        let quality = Quality::of(&[(1.0, 1.0), (3.0, 2.0), (3.0, 3.0)]);
        assert_eq!((quality.r2, quality.median_relative_error), (0.5, 0.0));
        assert_eq!(Quality::of(&[]).median_relative_error, f64::INFINITY);
        assert_eq!(Quality::of(&[(2.0, 2.0)]).r2, 0.0);
    }
}
