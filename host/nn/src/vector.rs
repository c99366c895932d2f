//! Wide vector registers: loops that use them, and what they leave behind.
//!
//! The portable guest, which is compiled with this crate's fast operators, too, has a module of the same name for
//! WebAssembly's vectors in this one's place (`guest-layers/portable/src/vector.rs`).
//!
//! This program is compiled for any x86-64, which has vectors of four floats. Loops that are worth it are compiled a
//! second time, for processors with AVX2 and FMA, and which of the two runs is decided when the program does.
//!
//! tract's matrix kernels leave the upper halves of the AVX registers in use. As long as they are, a
//! processor merges every SSE instruction with them, and the code around the kernels, which is compiled
//! for any x86-64, runs up to three times slower (Intel's optimization manual, "Mixing AVX code with SSE
//! code"; AMD's Zen 4 does the same).

/// A tile of results: six rows of them take twelve of 16 registers of eight lanes.
pub(crate) const TILE_ROWS: usize = 6;
pub(crate) const TILE_COLUMNS: usize = 16;

/// Whether one comparison is to tell that all that a loop reads is there, and none between its steps.
pub(crate) const COMPARES_ONCE: bool = true;

/// Loops over floats. All that `run` calls must be inlined into it, or it is compiled for any processor.
pub(crate) trait Loops {
    /// `FUSED`: the processor multiplies and adds in one instruction; where it does not, `f32::mul_add` is a slow call.
    fn run<const FUSED: bool>(self);
}

/// Whether [`wide`] has more than four lanes, or fused multiply-adds: without them tract's own kernels are as good.
pub(crate) fn is_wide() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    cfg!(target_arch = "aarch64")
}

/// Runs loops as this processor does them best.
#[allow(unsafe_code)]
pub(crate) fn wide(loops: impl Loops) {
    #[cfg(target_arch = "x86_64")]
    if is_wide() {
        #[target_feature(enable = "avx2,fma")]
        fn with_avx2(loops: impl Loops) {
            loops.run::<true>();
        }
        // SAFETY: the processor has AVX2 and FMA; that is all the function needs.
        return unsafe { with_avx2(loops) };
    }
    if cfg!(target_arch = "aarch64") { loops.run::<true>() } else { loops.run::<false>() }
}

/// The product of some rows with a panel; of both, what belongs to a step lies side by side.
#[inline(always)]
pub(crate) fn multiply<const FUSED: bool, const ROWS: usize>(
    rows: &[f32],
    panel: &[f32],
) -> [[f32; TILE_COLUMNS]; ROWS] {
    let mut tile = [[0.0; TILE_COLUMNS]; ROWS];
    for (row, values) in rows.as_chunks::<ROWS>().0.iter().zip(panel.as_chunks().0) {
        for (sums, weight) in tile.iter_mut().zip(row) {
            add_products::<FUSED, TILE_COLUMNS>(sums, *weight, values);
        }
    }
    tile
}

/// Adds a number times each value.
#[inline(always)]
pub(crate) fn add_products<const FUSED: bool, const N: usize>(sums: &mut [f32; N], by: f32, values: &[f32; N]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum = if FUSED { by.mul_add(*value, *sum) } else { by * value + *sum };
    }
}

/// Adds the products of pairs.
#[inline(always)]
pub(crate) fn add_pairs<const FUSED: bool, const N: usize>(sums: &mut [f32; N], a: &[f32; N], b: &[f32; N]) {
    for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
        *sum = if FUSED { a.mul_add(*b, *sum) } else { a * b + *sum };
    }
}

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
    use super::{Loops, release, wide};

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

    #[test]
    fn loops_run_once() {
        struct Count<'a>(&'a mut usize);
        impl Loops for Count<'_> {
            fn run<const FUSED: bool>(self) {
                *self.0 += 1;
            }
        }
        let mut runs = 0;
        wide(Count(&mut runs));
        assert_eq!(runs, 1);
    }
}
