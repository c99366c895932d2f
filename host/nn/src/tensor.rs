//! A tensor as a cheap, reference-counted handle.
//!
//! Handles are what crosses the sandbox: cloning, passing and dropping them never touches the
//! elements. The places that do copy elements count them, so that "nothing is copied" is measured
//! rather than believed (see [`bytes_copied`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tract_onnx::prelude::{DatumType, TValue, Tensor as TractTensor};

/// The largest tensor that is accepted from a guest, a peer or a file.
pub const TENSOR_BYTES_MAX: usize = 64 << 20;

/// The most dimensions that a tensor may have.
const RANK_MAX: usize = 8;

/// A tensor handle. Elements are little-endian, row-major.
#[derive(Clone, Debug)]
pub struct Tensor(Arc<TractTensor>);

impl Tensor {
    /// Copies `bytes` into a new tensor of `dims`. Counted by [`bytes_copied`].
    pub fn from_bytes(element_type: ElementType, dims: &[usize], bytes: &[u8]) -> Result<Self, TensorError> {
        let expected = Fact::new(element_type, dims)?.bytes();
        if bytes.len() != expected {
            return Err(TensorError::Length { dims: dims.to_vec(), expected, got: bytes.len() });
        }
        let mut tensor =
            TractTensor::zero_dt(element_type.into(), dims).map_err(|e| TensorError::Unsupported(format!("{e:#}")))?;
        tensor.as_bytes_mut().copy_from_slice(bytes);
        count_copied(bytes.len());
        Ok(Self(Arc::new(tensor)))
    }

    /// A tensor of 32-bit floats, given in row-major order. Counted by [`bytes_copied`].
    pub fn from_f32(dims: &[usize], values: &[f32]) -> Result<Self, TensorError> {
        let expected = Fact::new(ElementType::F32, dims)?.bytes();
        let tensor = TractTensor::from_shape(dims, values).map_err(|_| TensorError::Length {
            dims: dims.to_vec(),
            expected,
            got: size_of_val(values),
        })?;
        count_copied(expected);
        Ok(Self(Arc::new(tensor)))
    }

    /// The same of any elements.
    #[cfg(feature = "onnxruntime")]
    pub(crate) fn from_elements<T: tract_onnx::prelude::Datum + Copy>(
        dims: &[usize],
        values: &[T],
    ) -> Result<Self, TensorError> {
        let tensor = TractTensor::from_shape(dims, values).map_err(|e| TensorError::Unsupported(format!("{e:#}")))?;
        count_copied(size_of_val(values));
        Ok(Self(Arc::new(tensor)))
    }

    /// The elements in place, if they are of that type.
    #[cfg(feature = "onnxruntime")]
    pub(crate) fn elements<T: tract_onnx::prelude::Datum>(&self) -> Option<&[T]> {
        self.0.as_plain_ram().and_then(|view| view.as_slice::<T>().ok())
    }

    /// The type of the elements.
    pub fn element_type(&self) -> ElementType {
        ElementType::of(self.0.datum_type()).unwrap_or(ElementType::U8)
    }

    /// The dimensions; empty for a scalar.
    pub fn dims(&self) -> &[usize] {
        self.0.shape()
    }

    /// Type and dimensions.
    pub fn fact(&self) -> Fact {
        Fact { element_type: self.element_type(), dims: self.dims().to_vec() }
    }

    /// The elements in place, without a copy.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The elements in place, if they are 32-bit floats.
    pub fn as_f32(&self) -> Option<&[f32]> {
        self.0.as_plain_ram().and_then(|view| view.as_slice::<f32>().ok())
    }

    /// Where the first number stands that is NaN or infinite; there is none among integers.
    pub fn first_not_finite(&self) -> Option<usize> {
        // A number is not finite where all bits of its exponent are set.
        fn find<const N: usize>(bytes: &[u8], exponent: [u8; 2]) -> Option<usize> {
            let is_set = |number: &[u8]| {
                number[N - 2] & exponent[0] == exponent[0] && number[N - 1] & exponent[1] == exponent[1]
            };
            bytes.chunks_exact(N).position(is_set)
        }
        match self.element_type() {
            ElementType::F16 => find::<2>(self.bytes(), [0x00, 0x7c]),
            ElementType::F32 => find::<4>(self.bytes(), [0x80, 0x7f]),
            ElementType::F64 => find::<8>(self.bytes(), [0xf0, 0x7f]),
            ElementType::U8 | ElementType::I32 | ElementType::I64 => None,
        }
    }

    /// Each element as a number, to compare with others. Whole numbers over 2^53 are rounded. Counted by
    /// [`bytes_copied`].
    pub fn to_f64(&self) -> Vec<f64> {
        count_copied(self.bytes().len());
        let cast = self.0.cast_to::<f64>().ok();
        let numbers = cast.as_ref().and_then(|cast| cast.as_plain_ram()?.as_slice::<f64>().ok().map(<[f64]>::to_vec));
        numbers.unwrap_or_default()
    }

    /// Whether both handles point to the same elements in memory.
    pub fn same_memory(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn into_value(self) -> TValue {
        TValue::from_const(self.0)
    }

    /// Takes tract's value as a handle; `None` if its elements are of a kind that has no name here.
    pub(crate) fn from_value(value: TValue) -> Option<Self> {
        let tensor = value.as_arc_tensor()?.clone();
        (tensor.is_plain_ram() && ElementType::of(tensor.datum_type()).is_some()).then_some(Self(tensor))
    }
}

/// The element types that `wasi:nn` names, but for bf16, which tract lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ElementType {
    F16,
    F32,
    F64,
    U8,
    I32,
    I64,
}

impl ElementType {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::F16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }

    /// The name used in manifests and messages, `f32` for instance.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::U8 => "u8",
            Self::I32 => "i32",
            Self::I64 => "i64",
        }
    }

    /// The type of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::F16, Self::F32, Self::F64, Self::U8, Self::I32, Self::I64].into_iter().find(|t| t.name() == name)
    }

    pub(crate) fn of(datum: DatumType) -> Option<Self> {
        Some(match datum {
            DatumType::F16 => Self::F16,
            DatumType::F32 => Self::F32,
            DatumType::F64 => Self::F64,
            DatumType::U8 => Self::U8,
            DatumType::I32 => Self::I32,
            DatumType::I64 => Self::I64,
            _ => return None,
        })
    }
}

impl From<ElementType> for DatumType {
    fn from(element_type: ElementType) -> Self {
        match element_type {
            ElementType::F16 => Self::F16,
            ElementType::F32 => Self::F32,
            ElementType::F64 => Self::F64,
            ElementType::U8 => Self::U8,
            ElementType::I32 => Self::I32,
            ElementType::I64 => Self::I64,
        }
    }
}

/// Type and dimensions of a tensor, checked to be of a size that is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// The type of the elements.
    pub element_type: ElementType,
    /// The dimensions; empty for a scalar.
    pub dims: Vec<usize>,
}

impl Fact {
    /// Checks rank and size (without overflow) against [`TENSOR_BYTES_MAX`].
    pub fn new(element_type: ElementType, dims: &[usize]) -> Result<Self, TensorError> {
        if dims.len() > RANK_MAX {
            return Err(TensorError::Rank(dims.len()));
        }
        dims.iter()
            .try_fold(element_type.bytes(), |bytes, dim| bytes.checked_mul(*dim))
            .filter(|bytes| *bytes <= TENSOR_BYTES_MAX)
            .ok_or_else(|| TensorError::TooLarge(dims.to_vec()))?;
        Ok(Self { element_type, dims: dims.to_vec() })
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Bytes of all elements.
    pub fn bytes(&self) -> usize {
        self.elements() * self.element_type.bytes()
    }
}

impl std::fmt::Display for Fact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dims: Vec<String> = self.dims.iter().map(usize::to_string).collect();
        write!(f, "{}[{}]", self.element_type.name(), dims.join(","))
    }
}

/// Why bytes are no tensor.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TensorError {
    /// Bytes and dimensions disagree.
    #[error("a tensor of dimensions {dims:?} takes {expected} bytes, but {got} were given")]
    Length {
        /// The dimensions that were given.
        dims: Vec<usize>,
        /// The bytes they take.
        expected: usize,
        /// The bytes that came.
        got: usize,
    },
    /// Over [`TENSOR_BYTES_MAX`].
    #[error("a tensor of dimensions {0:?} is over the limit of {TENSOR_BYTES_MAX} bytes")]
    TooLarge(Vec<usize>),
    /// Over the limit of dimensions.
    #[error("a tensor of {0} dimensions is over the limit of {RANK_MAX}")]
    Rank(usize),
    /// tract has no such tensor.
    #[error("no such tensor can be made: {0}")]
    Unsupported(String),
}

static BYTES_COPIED: AtomicU64 = AtomicU64::new(0);

/// Tensor bytes that this process has copied since its start: into new tensors, and out of tensors
/// into guests. Handing handles over counts nothing.
pub fn bytes_copied() -> u64 {
    BYTES_COPIED.load(Ordering::Relaxed)
}

/// Adds to [`bytes_copied`]: whoever copies a tensor's elements elsewhere calls this.
pub fn count_copied(bytes: usize) {
    BYTES_COPIED.fetch_add(bytes as u64, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_must_fit_the_dimensions() {
        let cases: [(&[usize], usize, bool); 6] = [
            (&[2, 3], 24, true),
            (&[], 4, true),
            (&[0, 3], 0, true),
            (&[2, 3], 23, false),
            (&[usize::MAX, 2], 8, false),
            (&[1, 1, 1, 1, 1, 1, 1, 1, 1], 4, false),
        ];
        for (dims, len, good) in cases {
            let made = Tensor::from_bytes(ElementType::F32, dims, &vec![0; len]);
            assert_eq!(made.is_ok(), good, "{dims:?} with {len} bytes: {made:?}");
        }
    }

    #[test]
    fn numbers_that_are_none_are_found() {
        let odd = [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        for odd in odd {
            let f32s = Tensor::from_f32(&[3], &[f32::MAX, odd as f32, 0.0]).unwrap();
            assert_eq!(f32s.first_not_finite(), Some(1), "{odd}");
            let f64s: Vec<u8> = [f64::MIN, 5e-324, odd].iter().flat_map(|number| number.to_le_bytes()).collect();
            let f64s = Tensor::from_bytes(ElementType::F64, &[3], &f64s).unwrap();
            assert_eq!(f64s.first_not_finite(), Some(2), "{odd}");
        }
        let f16 = |bits: u16| Tensor::from_bytes(ElementType::F16, &[1], &bits.to_le_bytes()).unwrap();
        assert_eq!(
            [0x7c00, 0xfc01, 0x7bff, 0x8000].map(|bits| f16(bits).first_not_finite()),
            [Some(0), Some(0), None, None]
        );
        let all_bits = Tensor::from_bytes(ElementType::I32, &[1], &[0xff; 4]).unwrap();
        assert_eq!(all_bits.first_not_finite(), None);
        assert_eq!(Tensor::from_f32(&[2], &[-0.0, f32::MIN]).unwrap().first_not_finite(), None);
    }

    #[test]
    fn a_copy_is_counted_and_a_clone_is_not() {
        let before = bytes_copied();
        let tensor = Tensor::from_bytes(ElementType::U8, &[1024], &[7; 1024]).unwrap();
        let after = bytes_copied();
        assert!(after >= before + 1024);
        assert!(tensor.clone().same_memory(&tensor));
    }
}
