//! WebAssembly's vectors, of four floats: what the host's module of this name (`host/nn/src/vector.rs`) is for the operators that
//! both are built with.
//!
//! To multiply and add in one instruction is written out, since the compiler makes a call of `f32::mul_add` here. All else
//! it makes vectors of by itself.
//!
//! Cranelift does loads in the order in which they are written, and arithmetic as late as it can: where the next branch needs
//! it. In a loop unrolled without branches, everything is loaded before anything is multiplied, and most of it goes to the
//! stack and back. So there is a way out between steps, whether it is ever taken or not: what goes out there must be in
//! registers by then. Loops are unrolled nevertheless, since each turn pays for the host's counting of fuel and its looking at
//! the clock.

use std::arch::wasm32::*;

/// Floats of a vector.
const LANES: usize = 4;

/// Four rows of two vectors take eight of the 16 registers that Cranelift has on x86-64; of six, some are spilled. A step's
/// weights are one vector.
pub(crate) const TILE_ROWS: usize = LANES;
pub(crate) const TILE_COLUMNS: usize = PARTS * LANES;
const PARTS: usize = 2;

/// Steps of a turn.
const UNROLLED: usize = 8;

/// Comparisons between steps are the ways out.
pub(crate) const COMPARES_ONCE: bool = false;

pub(crate) trait Loops {
    fn run<const FUSED: bool>(self);
}

pub(crate) const fn is_wide() -> bool {
    true
}

#[inline(always)]
pub(crate) fn wide(loops: impl Loops) {
    loops.run::<true>();
}

/// A function of its own: within the loops that call it, the sums of some rows would be spilled in each step.
#[inline(never)]
pub(crate) fn multiply<const FUSED: bool, const ROWS: usize>(
    rows: &[f32],
    panel: &[f32],
) -> [[f32; TILE_COLUMNS]; ROWS] {
    let steps = (rows.len() / ROWS).min(panel.len() / TILE_COLUMNS);
    let mut sums = [[f32x4_splat(0.0); PARTS]; ROWS];
    let (mut row, mut values) = (rows.as_ptr(), panel.as_ptr());
    // SAFETY: there are so many steps of both.
    unsafe {
        let end = row.add(steps * ROWS);
        'steps: while row != end {
            for step in 0..UNROLLED {
                add_step(&mut sums, row, values);
                (row, values) = (row.add(ROWS), values.add(TILE_COLUMNS));
                if step + 1 < UNROLLED && row == end {
                    break 'steps;
                }
            }
        }
    }
    let mut tile = [[0.0; TILE_COLUMNS]; ROWS];
    for (tile, sums) in tile.iter_mut().zip(sums) {
        tile.as_chunks_mut().0.iter_mut().zip(sums).for_each(|(tile, sums)| store(tile, sums));
    }
    tile
}

/// # Safety
///
/// There must be [`TILE_COLUMNS`] values, and as many weights as there are rows.
#[inline(always)]
unsafe fn add_step<const ROWS: usize>(sums: &mut [[v128; PARTS]; ROWS], row: *const f32, values: *const f32) {
    // SAFETY: the caller's.
    let (values, weights) = unsafe {
        let values = [v128_load(values.cast()), v128_load(values.add(LANES).cast())];
        // Of fewer rows, each weight is loaded by itself.
        (values, if ROWS == LANES { v128_load(row.cast()) } else { v128_load32_splat(row.cast()) })
    };
    for (at, sums) in sums.iter_mut().enumerate() {
        let weight = match at {
            0 => i32x4_shuffle::<0, 0, 0, 0>(weights, weights),
            // SAFETY: the caller's.
            _ if ROWS < LANES => unsafe { v128_load32_splat(row.add(at).cast()) },
            1 => i32x4_shuffle::<1, 1, 1, 1>(weights, weights),
            2 => i32x4_shuffle::<2, 2, 2, 2>(weights, weights),
            _ => i32x4_shuffle::<3, 3, 3, 3>(weights, weights),
        };
        for (sum, values) in sums.iter_mut().zip(values) {
            *sum = f32x4_relaxed_madd(weight, values, *sum);
        }
    }
}

#[inline(always)]
pub(crate) fn add_products<const FUSED: bool, const N: usize>(sums: &mut [f32; N], by: f32, values: &[f32; N]) {
    const { assert!(N.is_multiple_of(LANES)) };
    let by = f32x4_splat(by);
    for (sums, values) in sums.as_chunks_mut().0.iter_mut().zip(values.as_chunks().0) {
        store(sums, f32x4_relaxed_madd(by, load(values), load(sums)));
    }
}

#[inline(always)]
pub(crate) fn add_pairs<const FUSED: bool, const N: usize>(sums: &mut [f32; N], a: &[f32; N], b: &[f32; N]) {
    const { assert!(N.is_multiple_of(LANES)) };
    let pairs = a.as_chunks().0.iter().zip(b.as_chunks().0);
    for (sums, (a, b)) in sums.as_chunks_mut().0.iter_mut().zip(pairs) {
        store(sums, f32x4_relaxed_madd(load(a), load(b), load(sums)));
    }
}

#[inline(always)]
fn load(from: &[f32; LANES]) -> v128 {
    // SAFETY: four floats are there; they need not be aligned.
    unsafe { v128_load(from.as_ptr().cast()) }
}

#[inline(always)]
fn store(to: &mut [f32; LANES], vector: v128) {
    // SAFETY: as above.
    unsafe { v128_store(to.as_mut_ptr().cast(), vector) }
}
