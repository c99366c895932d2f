//! Tensors into the guest's memory, and out of it.

use crate::wasi::nn::tensor::{Tensor as Handle, TensorType};
use tract_nnef::internal::*;

/// As in the host.
pub(crate) const TENSOR_BYTES_MAX: usize = 64 << 20;

/// Pairs of what the two sides call an element's type.
const TYPES: [(TensorType, DatumType); 6] = [
    (TensorType::Fp16, DatumType::F16),
    (TensorType::Fp32, DatumType::F32),
    (TensorType::Fp64, DatumType::F64),
    (TensorType::U8, DatumType::U8),
    (TensorType::I32, DatumType::I32),
    (TensorType::I64, DatumType::I64),
];

/// Copies a tensor of the host's.
pub(crate) fn read(handle: &Handle) -> TractResult<TValue> {
    let dims: Vec<usize> = handle.dimensions().into_iter().map(|dim| dim as usize).collect();
    let ty = handle.ty();
    let (_, datum) = TYPES.iter().find(|(here, _)| *here == ty).context("elements of a type that tract lacks")?;
    let bytes = handle.data();
    // SAFETY: numbers of these types may have any bits, and the function looks whether there are enough of them.
    Ok(unsafe { Tensor::from_raw_dt(*datum, &dims, &bytes)? }.into_tvalue())
}

/// Makes the host a tensor of what is here.
pub(crate) fn write(value: &TValue) -> TractResult<Handle> {
    let dims = value.shape().iter().map(|dim| u32::try_from(*dim)).collect::<Result<Vec<u32>, _>>()?;
    let datum = value.datum_type();
    let (ty, _) = TYPES.iter().find(|(_, here)| *here == datum).context("elements of a type that wasi:nn lacks")?;
    Ok(Handle::new(&dims, *ty, value.try_as_plain_ram()?.as_bytes()))
}
