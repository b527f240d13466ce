//! Checks that several operators share.

use crate::error::{AscendError, Result};
use crate::tensor::{DataType, Layout, Tensor};

/// An error unless something holds.
pub(super) fn want(
    holds: bool,
    what: &'static str,
    expected: impl FnOnce() -> String,
    found: impl FnOnce() -> String,
) -> Result<()> {
    if holds { Ok(()) } else { Err(AscendError::shape(what, expected(), found())) }
}

/// A type among some.
pub(super) fn want_type(tensor: &Tensor, what: &'static str, allowed: &[DataType]) -> Result<()> {
    want(
        allowed.contains(&tensor.data_type()),
        what,
        || format!("a tensor of {allowed:?}"),
        || format!("{:?}", tensor.data_type()),
    )
}

/// A shape among some.
pub(super) fn want_dims(tensor: &Tensor, what: &'static str, allowed: &[Vec<usize>]) -> Result<()> {
    want(
        allowed.iter().any(|dims| dims == tensor.dims()),
        what,
        || allowed.iter().map(|dims| format!("{dims:?}")).collect::<Vec<_>>().join(" or "),
        || format!("{:?}", tensor.dims()),
    )
}

/// Row-major memory.
pub(super) fn want_plain(tensors: &[&Tensor]) -> Result<()> {
    for tensor in tensors {
        want(
            tensor.layout() == Layout::RowMajor,
            "layout of an argument that is no weight",
            || "row-major".to_owned(),
            || "FRACTAL_NZ".to_owned(),
        )?;
    }
    Ok(())
}

/// The shape of codes for a tensor of numbers, in a type of codes.
pub(super) fn want_codes_of(codes: &Tensor, what: &'static str, numbers: &Tensor) -> Result<()> {
    want_type(codes, what, &[DataType::I8, DataType::I4, DataType::I4x8])?;
    want(
        codes.code_dims() == numbers.dims(),
        what,
        || format!("codes {:?}", numbers.dims()),
        || format!("{:?}", codes.code_dims()),
    )?;
    want(
        !codes.data_type().is_four_bits() || numbers.dims().last().is_some_and(|last| last % 2 == 0),
        "last axis of codes of four bits",
        || "an even length".to_owned(),
        || format!("{:?}", numbers.dims()),
    )
}

/// The number that CANN has for a type of codes (`dstType`).
pub(super) fn destination(codes: &Tensor) -> i32 {
    codes.data_type().raw()
}
