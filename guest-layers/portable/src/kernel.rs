//! The inner loop of matrix products that the host's operators (`fast`) leave to tract, for the registers that there are.
//!
//! tract's own kernel for WebAssembly keeps a tile of 8 × 8 in 16 registers, which is right for ARM's 32. On x86-64
//! Cranelift has 16, of which the factors need some too, so that tile is spilled to the stack and back for each step.
//! A tile of 6 × 8 takes twelve. The steps are unrolled by four, since each turn of a loop pays for the host's counting of
//! fuel and its looking at the clock; what that still costs in spills, `vector.rs` says.

use std::arch::wasm32::*;
use tract_linalg::isa::{Arch, IsaSet};
use tract_linalg::mmm::{DynKernel, FusedKerSpec, FusedSpec, MatMatMul, OutputStoreKer, Query, Suitable};
use tract_linalg::mmm_routines::MmmRoutine;
use tract_linalg::mmm_tiers::MmmTier;
use tract_linalg::pack::Packing;
use tract_nnef::internal::*;

const NAME: &str = "edgent_f32_6x8";
const ROWS: usize = 6;
/// Vectors of four columns each.
const PARTS: usize = 2;
const COLUMNS: usize = 4 * PARTS;
const UNROLLED: usize = 4;

/// What one call of the kernel computes; all of it in registers.
type Tile = [[v128; PARTS]; ROWS];

inventory::submit! { MmmRoutine { make } }
inventory::submit! {
    MmmTier { arch: Some(Arch::Wasm32Simd128), precedence: 2, name: "edgent", applies: |_| true, preferred }
}

fn make() -> Box<dyn MatMatMul> {
    let mut kernel = DynKernel::<ROWS, COLUMNS, f32>::new(NAME, kernel, f32::packing(ROWS), f32::packing(COLUMNS));
    kernel.arch = Some(Arch::Wasm32Simd128);
    kernel.with_can_fuse(can_fuse).mmm()
}

/// For products of matrices; those with a vector are tract's, which has kernels for them that fit.
fn preferred(_: &IsaSet, accumulator: DatumType, query: &Query, _: &[Suitable]) -> Option<&'static str> {
    (accumulator == DatumType::F32 && query.n != Some(1)).then_some(NAME)
}

/// What quantised networks do is left to other kernels.
fn can_fuse(spec: &FusedSpec) -> bool {
    use FusedSpec::{LeakyRelu, QScale, RoundingShiftRight, ShiftLeft};
    !matches!(spec, LeakyRelu(..) | QScale(..) | RoundingShiftRight(..) | ShiftLeft(..))
}

/// Does what it is told, step by step, until `Done`; anything else than 0 is refused by tract.
///
/// # Safety
///
/// The pointers are tract's: to as many rows, columns, and steps of packed factors as the tile and the steps say.
unsafe fn kernel(specs: &[FusedKerSpec<f32>]) -> isize {
    use FusedKerSpec::*;
    let mut tile: Tile = [[f32x4_splat(0.0); PARTS]; ROWS];
    // A slice in name: how many there are, the last of them says.
    let mut next = specs.as_ptr();
    // SAFETY: as above.
    unsafe {
        loop {
            match *next {
                Done => return 0,
                Clear => tile = [[f32x4_splat(0.0); PARTS]; ROWS],
                LoadTile(_, rows) => each(&mut tile, |row, part, _| load(rows, row * PARTS + part)),
                ScalarMin(x) => each(&mut tile, |_, _, y| f32x4_min(f32x4_splat(x), y)),
                ScalarMax(x) => each(&mut tile, |_, _, y| f32x4_max(f32x4_splat(x), y)),
                ScalarAdd(x) => each(&mut tile, |_, _, y| f32x4_add(f32x4_splat(x), y)),
                ScalarMul(x) => each(&mut tile, |_, _, y| f32x4_mul(f32x4_splat(x), y)),
                ScalarSub(x) => each(&mut tile, |_, _, y| f32x4_sub(f32x4_splat(x), y)),
                ScalarSubF(x) => each(&mut tile, |_, _, y| f32x4_sub(y, f32x4_splat(x))),
                PerRowMin(xs) => each(&mut tile, |row, _, y| f32x4_min(splat(xs, row), y)),
                PerRowMax(xs) => each(&mut tile, |row, _, y| f32x4_max(splat(xs, row), y)),
                PerRowAdd(xs) => each(&mut tile, |row, _, y| f32x4_add(splat(xs, row), y)),
                PerRowMul(xs) => each(&mut tile, |row, _, y| f32x4_mul(splat(xs, row), y)),
                PerRowSub(xs) => each(&mut tile, |row, _, y| f32x4_sub(splat(xs, row), y)),
                PerRowSubF(xs) => each(&mut tile, |row, _, y| f32x4_sub(y, splat(xs, row))),
                PerColMin(xs) => each(&mut tile, |_, part, y| f32x4_min(load(xs, part), y)),
                PerColMax(xs) => each(&mut tile, |_, part, y| f32x4_max(load(xs, part), y)),
                PerColAdd(xs) => each(&mut tile, |_, part, y| f32x4_add(load(xs, part), y)),
                PerColMul(xs) => each(&mut tile, |_, part, y| f32x4_mul(load(xs, part), y)),
                PerColSub(xs) => each(&mut tile, |_, part, y| f32x4_sub(load(xs, part), y)),
                PerColSubF(xs) => each(&mut tile, |_, part, y| f32x4_sub(y, load(xs, part))),
                AddRowColProducts(rows, columns) => {
                    each(&mut tile, |row, part, y| f32x4_relaxed_madd(splat(rows, row), load(columns, part), y));
                }
                AddUnicast(from) => each(&mut tile, |row, part, y| f32x4_add(gather(&from, row, part), y)),
                Store(to) => each(&mut tile, |row, part, y| {
                    scatter(&to, row, part, y);
                    y
                }),
                AddMatMul { k, pa, pb, .. } => multiply(&mut tile, k, pa.cast(), pb.cast()),
                LeakyRelu(_) | QScale(..) | RoundingShiftRight(..) | ShiftLeft(_) => return 1,
            }
            next = next.add(1);
        }
    }
}

#[inline(always)]
fn each(tile: &mut Tile, change: impl Fn(usize, usize, v128) -> v128) {
    for row in 0..ROWS {
        for part in 0..PARTS {
            tile[row][part] = change(row, part, tile[row][part]);
        }
    }
}

/// Adds the product of two packed factors: of one, [`ROWS`] numbers a step, of the other [`COLUMNS`].
#[inline(always)]
unsafe fn multiply(tile: &mut Tile, steps: usize, mut a: *const f32, mut b: *const f32) {
    let mut step = || {
        // SAFETY: there is one more step's worth of both.
        unsafe {
            let columns = [load(b, 0), load(b, 1)];
            each(tile, |row, part, sum| f32x4_relaxed_madd(splat(a, row), columns[part], sum));
            (a, b) = (a.add(ROWS), b.add(COLUMNS));
        }
    };
    for _ in 0..steps / UNROLLED {
        for _ in 0..UNROLLED {
            step();
        }
    }
    for _ in 0..steps % UNROLLED {
        step();
    }
}

/// Four numbers.
#[inline(always)]
unsafe fn load(from: *const f32, vector: usize) -> v128 {
    // SAFETY: the caller's.
    unsafe { v128_load(from.add(4 * vector).cast()) }
}

/// One number, four times.
#[inline(always)]
unsafe fn splat(from: *const f32, index: usize) -> v128 {
    // SAFETY: the caller's.
    unsafe { v128_load32_splat(from.add(index).cast()) }
}

/// Where a number of the tile lies in a matrix.
#[inline(always)]
unsafe fn place(matrix: &OutputStoreKer, row: usize, column: usize) -> *mut f32 {
    let offset = matrix.row_byte_stride * row as isize + matrix.col_byte_stride * column as isize;
    // SAFETY: the caller's.
    unsafe { matrix.ptr.offset(offset).cast() }
}

#[inline(always)]
fn is_dense(matrix: &OutputStoreKer) -> bool {
    matrix.col_byte_stride == size_of::<f32>() as isize
}

#[inline(always)]
unsafe fn gather(from: &OutputStoreKer, row: usize, part: usize) -> v128 {
    // SAFETY: the caller's.
    unsafe {
        if is_dense(from) {
            return v128_load(place(from, row, 4 * part).cast());
        }
        let [a, b, c, d] = [0, 1, 2, 3].map(|column| *place(from, row, 4 * part + column));
        f32x4(a, b, c, d)
    }
}

#[inline(always)]
unsafe fn scatter(to: &OutputStoreKer, row: usize, part: usize, numbers: v128) {
    // SAFETY: the caller's.
    unsafe {
        if is_dense(to) {
            return v128_store(place(to, row, 4 * part).cast(), numbers);
        }
        *place(to, row, 4 * part) = f32x4_extract_lane::<0>(numbers);
        *place(to, row, 4 * part + 1) = f32x4_extract_lane::<1>(numbers);
        *place(to, row, 4 * part + 2) = f32x4_extract_lane::<2>(numbers);
        *place(to, row, 4 * part + 3) = f32x4_extract_lane::<3>(numbers);
    }
}
