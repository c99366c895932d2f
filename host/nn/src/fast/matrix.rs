//! Products of a constant matrix with one vector, as fully connected layers are.
//!
//! Each weight is used once, so what they take is to read the matrix from memory. It is read where the network has it, in the
//! order in which it lies there: nothing is copied to get ready.

use super::team::{Team, ranges, take};
use crate::vector::{Loops, TILE_COLUMNS, add_pairs, add_products, wide};
use tract_nnef::internal::*;

/// Elements that are gone through at once: a few vectors, so that one need not wait for the other, and too many for the compiler
/// to turn them over.
const PIECE: usize = 2 * TILE_COLUMNS;
/// Rows that are added side by side: the results are read once for them.
const ROWS: usize = 4;

#[derive(Clone, Debug)]
pub(super) struct FastMatrix {
    matrix: Arc<Tensor>,
    /// Whether a row of the matrix has the weights of one result, and not those of one element of the vector.
    is_by_results: bool,
    output: TVec<usize>,
}

impl FastMatrix {
    pub(super) fn new(matrix: Arc<Tensor>, is_by_results: bool, output: TVec<usize>) -> Self {
        Self { matrix, is_by_results, output }
    }
}

// It is what its matrix is; two like ones that are not the same are not looked for.
impl PartialEq for FastMatrix {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.matrix, &other.matrix)
            && self.is_by_results == other.is_by_results
            && self.output == other.output
    }
}

impl Eq for FastMatrix {}

impl Op for FastMatrix {
    fn name(&self) -> StaticName {
        "FastMatrix".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("{:?}, a row for each {}", self.matrix, if self.is_by_results { "result" } else { "element" })])
    }

    op_as_typed_op!();
}

impl EvalOp for FastMatrix {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let mut output = Tensor::zero::<f32>(&self.output)?;
        let (matrix, vector, mut results) =
            (self.matrix.try_as_plain_ram()?, input.try_as_plain_ram()?, output.try_as_plain_ram_mut()?);
        let (matrix, vector, results) = (matrix.as_slice::<f32>()?, vector.as_slice()?, results.as_slice_mut()?);
        ensure!(matrix.len() == vector.len() * results.len(), "{} elements for {:?}", vector.len(), self.matrix);
        if !matrix.is_empty() {
            let (team, size) = (Team::of(matrix.len()), results.len());
            // Each thread has results of its own; what is computed together stays so.
            let together = if self.is_by_results { 1 } else { PIECE };
            let mut left = results;
            let parts = ranges(size.div_ceil(together), team.size()).map(|these| {
                let columns = these.start * together..(these.end * together).min(size);
                (columns.clone(), take(&mut left, columns.len()))
            });
            match self.is_by_results {
                true => team.share(parts, |(rows, results)| {
                    let matrix = &matrix[rows.start * vector.len()..rows.end * vector.len()];
                    wide(ByResults { matrix, vector, results });
                }),
                false => team.share(parts, |(columns, results)| {
                    wide(ByElements { matrix: &matrix[columns.start..], size, vector, results });
                }),
            }
        }
        Ok(tvec!(output.into_tvalue()))
    }
}

impl TypedOp for FastMatrix {
    as_op!();

    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::datum_type().fact(&self.output)))
    }
}

/// Each result is a sum along a row.
struct ByResults<'a> {
    matrix: &'a [f32],
    vector: &'a [f32],
    results: &'a mut [f32],
}

impl Loops for ByResults<'_> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        for (row, result) in self.matrix.chunks_exact(self.vector.len()).zip(self.results) {
            *result = product::<FUSED>(row, self.vector);
        }
    }
}

/// One row at a time: of several, the compiler would make vectors across them.
#[inline(always)]
fn product<const FUSED: bool>(row: &[f32], vector: &[f32]) -> f32 {
    let mut sums = [0.0; PIECE];
    let ((pieces, end), (elements, last)) = (row.as_chunks::<PIECE>(), vector.as_chunks::<PIECE>());
    for (piece, elements) in pieces.iter().zip(elements) {
        add_pairs::<FUSED, PIECE>(&mut sums, piece, elements);
    }
    let rest: f32 = end.iter().zip(last).map(|(weight, x)| weight * x).sum();
    sums.iter().sum::<f32>() + rest
}

/// Each row is added to the results, times an element of the vector.
struct ByElements<'a> {
    /// From the first of these results on.
    matrix: &'a [f32],
    /// Of a whole row.
    size: usize,
    vector: &'a [f32],
    results: &'a mut [f32],
}

impl Loops for ByElements<'_> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Self { matrix, size, vector, results } = self;
        results.fill(0.0);
        for (rows, elements) in matrix.chunks(ROWS * size).zip(vector.chunks(ROWS)) {
            match elements.first_chunk::<ROWS>() {
                Some(elements) => add_rows::<FUSED, ROWS>(rows, size, elements, results),
                None => {
                    for (row, element) in rows.chunks(size).zip(elements) {
                        add_rows::<FUSED, 1>(row, size, &[*element], results);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn add_rows<const FUSED: bool, const COUNT: usize>(
    rows: &[f32],
    size: usize,
    elements: &[f32; COUNT],
    results: &mut [f32],
) {
    let rows: [&[f32]; COUNT] = std::array::from_fn(|row| &rows[row * size..][..results.len()]);
    let pieces: [&[[f32; PIECE]]; COUNT] = std::array::from_fn(|row| rows[row].as_chunks().0);
    let (whole, last) = results.as_chunks_mut::<PIECE>();
    for (at, results) in whole.iter_mut().enumerate() {
        let mut sums = *results;
        for row in 0..COUNT {
            add_products::<FUSED, PIECE>(&mut sums, elements[row], &pieces[row][at]);
        }
        *results = sums;
    }
    for (at, sum) in (whole.len() * PIECE..).zip(last) {
        *sum += (0..COUNT).map(|row| elements[row] * rows[row][at]).sum::<f32>();
    }
}
