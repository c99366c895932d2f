//! Products of a constant matrix with one vector, as fully connected layers are.
//!
//! Each weight is used once, so what they take is to read the matrix from memory. It is read where the network has it, in the
//! order in which it lies there: nothing is copied to get ready.

use crate::vector::{Loops, add_pairs, add_products, wide};
use tract_nnef::internal::*;

/// Rows that are gone through side by side: the vector, or the results, are read once for them.
const ROWS: usize = 4;
/// Elements of a row that are multiplied at once.
const PIECE: usize = 8;

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
            match self.is_by_results {
                true => wide(ByResults { matrix, vector, results }),
                false => wide(ByElements { matrix, vector, results }),
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
        let size = self.vector.len();
        let blocks = self.matrix.chunks(ROWS * size).zip(self.results.chunks_mut(ROWS));
        for (rows, results) in blocks {
            if let Some(results) = results.first_chunk_mut::<ROWS>() {
                *results = sums::<FUSED, ROWS>(rows, self.vector);
            } else {
                for (row, result) in rows.chunks_exact(size).zip(results) {
                    [*result] = sums::<FUSED, 1>(row, self.vector);
                }
            }
        }
    }
}

#[inline(always)]
fn sums<const FUSED: bool, const COUNT: usize>(rows: &[f32], vector: &[f32]) -> [f32; COUNT] {
    let size = vector.len();
    let mut sums = [[0.0; PIECE]; COUNT];
    let pieces: [&[[f32; PIECE]]; COUNT] = std::array::from_fn(|row| rows[row * size..][..size].as_chunks().0);
    let (vector, last) = vector.as_chunks::<PIECE>();
    for (at, values) in vector.iter().enumerate() {
        for row in 0..COUNT {
            add_pairs::<FUSED, PIECE>(&mut sums[row], &pieces[row][at], values);
        }
    }
    std::array::from_fn(|row| {
        let end = &rows[(row + 1) * size - last.len()..(row + 1) * size];
        let rest: f32 = end.iter().zip(last).map(|(weight, x)| weight * x).sum();
        sums[row].iter().sum::<f32>() + rest
    })
}

/// Each row is added to the results, times an element of the vector.
struct ByElements<'a> {
    matrix: &'a [f32],
    vector: &'a [f32],
    results: &'a mut [f32],
}

impl Loops for ByElements<'_> {
    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let size = self.results.len();
        self.results.fill(0.0);
        for (rows, elements) in self.matrix.chunks(ROWS * size).zip(self.vector.chunks(ROWS)) {
            match elements.first_chunk::<ROWS>() {
                Some(elements) => add_rows::<FUSED, ROWS>(rows, elements, self.results),
                None => {
                    for (row, element) in rows.chunks_exact(size).zip(elements) {
                        add_rows::<FUSED, 1>(row, &[*element], self.results);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn add_rows<const FUSED: bool, const COUNT: usize>(rows: &[f32], elements: &[f32; COUNT], results: &mut [f32]) {
    let size = results.len();
    let rows: [&[f32]; COUNT] = std::array::from_fn(|row| &rows[row * size..][..size]);
    let pieces: [&[[f32; PIECE]]; COUNT] = std::array::from_fn(|row| rows[row].as_chunks().0);
    let (whole, last) = results.as_chunks_mut::<PIECE>();
    for (at, sums) in whole.iter_mut().enumerate() {
        for row in 0..COUNT {
            add_products::<FUSED, PIECE>(sums, elements[row], &pieces[row][at]);
        }
    }
    for (at, sum) in (size - last.len()..size).zip(last) {
        *sum += (0..COUNT).map(|row| elements[row] * rows[row][at]).sum::<f32>();
    }
}
