//! Keeps wide vector registers from slowing down what comes after them.
//!
//! tract's matrix kernels leave the upper halves of the AVX registers in use. As long as they are, a
//! processor merges every SSE instruction with them, and the code around the kernels, which is compiled
//! for any x86-64, runs up to three times slower (Intel's optimization manual, "Mixing AVX code with SSE
//! code"; AMD's Zen 4 does the same).

/// Tells the processor that the upper halves are free. Called after each operator.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub(crate) fn release() {
    #[target_feature(enable = "avx")]
    fn zero_upper() {
        std::arch::x86_64::_mm256_zeroupper();
    }
    if std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: the processor has AVX; that is all the function needs. The compiler knows that the
        // instruction clears registers, and keeps nothing in them across it.
        unsafe { zero_upper() }
    }
}

/// Nothing to do: other processors have no such halves.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn release() {}

#[cfg(test)]
mod tests {
    use super::release;

    #[test]
    fn it_changes_no_value() {
        let values: Vec<f64> = (0..64).map(|i| f64::from(i) * 0.5).collect();
        let sum = |after_each: fn()| {
            values.iter().fold([0.0; 8], |mut sums, value| {
                sums.iter_mut().zip(1..).for_each(|(sum, weight)| *sum += value * f64::from(weight));
                after_each();
                sums
            })
        };
        assert_eq!(sum(release), sum(|| ()));
    }
}
