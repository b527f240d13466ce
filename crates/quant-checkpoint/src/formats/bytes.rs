//! Numbers to little-endian bytes and back, with every loss named.

use ndarray::{Array2, ArrayD, ArrayView2};
use quant_core::FloatType;
use quant_graph::LinearWeight;
use rayon::prelude::*;
use safetensors::Dtype;

use crate::error::{CheckpointError, Result};
use crate::source::{Checkpoint, TensorInfo};

/// The safetensors type of a float type.
pub(crate) fn float_dtype(kind: FloatType) -> Dtype {
    match kind {
        FloatType::F32 => Dtype::F32,
        FloatType::F16 => Dtype::F16,
        FloatType::Bf16 => Dtype::BF16,
    }
}

/// What is allowed to happen to a value on its way into a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Rounding to the nearest stored value.
    Rounding,
    /// Nothing: levels were computed with this very number.
    None,
}

/// Values as bytes of `kind`.
///
/// # Errors
/// [`CheckpointError::NotEncodable`] for a value that becomes infinite or NaN, or that changes where it may not.
pub(crate) fn float_bytes(
    format: &'static str,
    name: &str,
    values: impl IntoIterator<Item = f32>,
    kind: FloatType,
    loss: Loss,
) -> Result<Vec<u8>> {
    let values = values.into_iter();
    let mut out = Vec::with_capacity(values.size_hint().0 * kind.size());
    for (at, value) in values.enumerate() {
        let stored = kind.round(value);
        if !stored.is_finite() || (loss == Loss::None && stored != value) {
            return Err(CheckpointError::NotEncodable {
                format,
                subject: format!("{name}, element {at}"),
                expected: format!("a number that {} holds", float_dtype(kind)),
                found: format!("{value:e}, stored as {stored:e}"),
            });
        }
        match kind {
            FloatType::F32 => out.extend_from_slice(&stored.to_le_bytes()),
            FloatType::F16 => out.extend_from_slice(&half::f16::from_f32(stored).to_le_bytes()),
            FloatType::Bf16 => out.extend_from_slice(&half::bf16::from_f32(stored).to_le_bytes()),
        }
    }
    Ok(out)
}

/// [`int8_bytes`] in the memory of the levels.
pub(crate) fn levels_into_int8(levels: Array2<u8>, bits: quant_core::Bits) -> Vec<u8> {
    if !levels.is_standard_layout() {
        return int8_bytes(levels.view(), bits);
    }
    let (middle, count) = (1 << (bits.get() - 1), levels.len());
    let (mut bytes, first) = levels.into_raw_vec_and_offset();
    bytes.drain(..first.unwrap_or(0));
    bytes.truncate(count);
    bytes.iter_mut().for_each(|level| *level = level.wrapping_sub(middle));
    bytes
}

/// 8-bit levels as int8 values `level - 128`; flipping the top bit is that subtraction in two's complement.
pub(crate) fn int8_bytes(levels: ArrayView2<'_, u8>, bits: quant_core::Bits) -> Vec<u8> {
    let middle = 1 << (bits.get() - 1);
    // The slice's loop is vectorised, the general one is not.
    match levels.as_slice() {
        Some(slice) => slice.iter().map(|level| level.wrapping_sub(middle)).collect(),
        None => levels.iter().map(|level| level.wrapping_sub(middle)).collect(),
    }
}

/// 32-bit words as bytes.
pub(crate) fn word_bytes(words: impl IntoIterator<Item = i32>) -> Vec<u8> {
    words.into_iter().flat_map(i32::to_le_bytes).collect()
}

/// The values of a weight as f32 bytes, rows in parallel.
pub(crate) fn dequantized_bytes(weight: &LinearWeight) -> Vec<u8> {
    let (rows, columns) = weight.dim();
    let mut out = vec![0_u8; rows * columns * 4];
    out.par_chunks_mut((columns * 4).max(1)).enumerate().for_each(|(row, bytes)| {
        let mut values = vec![0.0_f32; columns];
        weight.write_row(row, &mut values);
        for (target, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
            *target = value.to_le_bytes();
        }
    });
    out
}

/// An int8 matrix `[rows, columns]` as unsigned levels `value + 2^(bits-1)`.
///
/// # Errors
/// [`CheckpointError::BadFormat`] for a value outside the width; what reading can give.
pub(crate) fn read_levels(
    format: &'static str,
    checkpoint: &Checkpoint,
    name: &str,
    (rows, columns): (usize, usize),
    bits: quant_core::Bits,
) -> Result<Array2<u8>> {
    checkpoint.tensor_shaped(name, &[rows, columns])?;
    let half = 1_i16 << (bits.get() - 1);
    let values = read_int8(checkpoint, name)?.into_raw_vec_and_offset().0;
    if let Some(bad) = values.iter().find(|&&v| !(-half..half).contains(&i16::from(v))) {
        return Err(CheckpointError::BadFormat {
            format,
            subject: name.to_owned(),
            expected: format!("values of {} bits, {} to {}", bits.get(), -half, half - 1),
            found: bad.to_string(),
        });
    }
    let levels = values.into_iter().map(|v| (i16::from(v) + half) as u8).collect();
    shaped(checkpoint, name, (rows, columns), levels)
}

/// A matrix of int8 values, which may be stored as floats: loaders convert them.
///
/// # Errors
/// [`CheckpointError::BadFormat`] for a float that is no int8 value; what reading can give.
pub(crate) fn read_int8(checkpoint: &Checkpoint, name: &str) -> Result<ArrayD<i8>> {
    if checkpoint.tensor(name)?.dtype == Dtype::I8 {
        return checkpoint.read_i8(name);
    }
    let (rows, columns) = match checkpoint.tensor(name)?.shape.as_slice() {
        [rows, columns] => (*rows, *columns),
        shape => (1, shape.iter().product()),
    };
    let values = checkpoint.read_f32(name)?.into_raw_vec_and_offset().0;
    let whole = |v: &f32| v.fract() == 0.0 && (-128.0..=127.0).contains(v);
    if let Some(bad) = values.iter().find(|v| !whole(v)) {
        return Err(CheckpointError::BadFormat {
            format: "int8",
            subject: name.to_owned(),
            expected: "whole numbers from -128 to 127".to_owned(),
            found: bad.to_string(),
        });
    }
    shaped(checkpoint, name, (rows, columns), values.into_iter().map(|v| v as i8).collect())
        .map(Array2::into_dyn)
}

/// The one value of a tensor of shape `[1]` or of none.
///
/// # Errors
/// [`CheckpointError::ShapeMismatch`] for any other shape.
pub(crate) fn single<'a>(checkpoint: &'a Checkpoint, name: &str) -> Result<&'a TensorInfo> {
    let info = checkpoint.tensor(name)?;
    if info.shape.is_empty() { Ok(info) } else { checkpoint.tensor_shaped(name, &[1]) }
}

/// A matrix out of values in row-major order.
///
/// # Errors
/// [`CheckpointError::ShapeMismatch`] if the count is another.
pub(crate) fn shaped<T>(
    checkpoint: &Checkpoint,
    name: &str,
    (rows, columns): (usize, usize),
    values: Vec<T>,
) -> Result<Array2<T>> {
    let found = values.len();
    Array2::from_shape_vec((rows, columns), values).map_err(|_| CheckpointError::ShapeMismatch {
        file: checkpoint.tensor(name).map_or_else(|_| String::new(), |t| t.file.to_string()),
        tensor: name.to_owned(),
        expected: format!("{rows} x {columns} values"),
        found: vec![found],
    })
}

/// Positive scales of the given shape, in row-major order.
///
/// # Errors
/// [`CheckpointError::BadFormat`] for a scale that is zero or negative; what reading can give.
pub(crate) fn read_scales(
    format: &'static str,
    checkpoint: &Checkpoint,
    name: &str,
    shape: &[usize],
) -> Result<Vec<f32>> {
    if shape == [1] {
        single(checkpoint, name)?
    } else {
        checkpoint.tensor_shaped(name, shape)?
    };
    let scales = checkpoint.read_f32(name)?.into_raw_vec_and_offset().0;
    match scales.iter().position(|&s| s <= 0.0) {
        Some(at) => Err(CheckpointError::BadFormat {
            format,
            subject: format!("{name}, element {at}"),
            expected: "a positive scale".to_owned(),
            found: scales[at].to_string(),
        }),
        None => Ok(scales),
    }
}
