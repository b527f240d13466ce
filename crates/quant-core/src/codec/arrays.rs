//! Arrays: their shape, and their elements in row-major order.

use super::{Bytes, Codec};
use crate::CoreError;
use ndarray::{Array1, Array2, Array3, ArrayView2};

impl Codec for Array1<f32> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.len().encode(out);
        self.iter().for_each(|v| v.encode(out));
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        let count = from.count(size_of::<f32>())?;
        Ok(floats(from.take(count * size_of::<f32>())?).collect())
    }
}

/// Appends the bytes of a matrix, as of an [`Array2`].
pub fn encode_matrix(matrix: ArrayView2<'_, f32>, out: &mut Vec<u8>) {
    matrix.nrows().encode(out);
    matrix.ncols().encode(out);
    let from = out.len();
    out.resize(from + matrix.len() * size_of::<f32>(), 0);
    let to = out[from..].as_chunks_mut::<4>().0;
    match matrix.as_slice() {
        // A loop over two slices is a copy.
        Some(values) => to.iter_mut().zip(values).for_each(|(to, v)| *to = v.to_le_bytes()),
        None => to.iter_mut().zip(matrix).for_each(|(to, v)| *to = v.to_le_bytes()),
    }
}

impl Codec for Array2<f32> {
    fn encode(&self, out: &mut Vec<u8>) {
        encode_matrix(self.view(), out);
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        let (shape, bytes) = matrix(from, size_of::<f32>())?;
        shaped(shape, floats(bytes).collect())
    }
}

impl Codec for Array2<u8> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.nrows().encode(out);
        self.ncols().encode(out);
        match self.as_slice() {
            Some(values) => out.extend_from_slice(values),
            None => out.extend(self.iter()),
        }
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        let (shape, bytes) = matrix(from, 1)?;
        shaped(shape, bytes.to_vec())
    }
}

impl Codec for Array3<f32> {
    fn encode(&self, out: &mut Vec<u8>) {
        let (a, b, c) = self.dim();
        (a, (b, c)).encode(out);
        self.iter().for_each(|v| v.encode(out));
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        let (a, (b, c)) = <(usize, (usize, usize))>::decode(from)?;
        let none =
            || CoreError::Encoded { expected: "an array that is there", found: format!("{a} x {b} x {c}") };
        let bytes = [a, b, c].into_iter().try_fold(size_of::<f32>(), usize::checked_mul);
        let bytes = bytes.filter(|&bytes| bytes <= from.left()).ok_or_else(none)?;
        Self::from_shape_vec((a, b, c), floats(from.take(bytes)?).collect()).map_err(|_| none())
    }
}

/// The shape of a matrix whose elements have `size` bytes, and their bytes.
fn matrix<'a>(from: &mut Bytes<'a>, size: usize) -> Result<((usize, usize), &'a [u8]), CoreError> {
    let shape = (usize::decode(from)?, usize::decode(from)?);
    let bytes = shape.0.checked_mul(shape.1).and_then(|n| n.checked_mul(size));
    let bytes = bytes.filter(|&bytes| bytes <= from.left()).ok_or_else(|| CoreError::Encoded {
        expected: "a matrix that is there",
        found: format!("{} x {}", shape.0, shape.1),
    })?;
    Ok((shape, from.take(bytes)?))
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four))
}

fn shaped<T>(shape: (usize, usize), values: Vec<T>) -> Result<Array2<T>, CoreError> {
    Array2::from_shape_vec(shape, values).map_err(|_| CoreError::Encoded {
        expected: "the elements of a matrix",
        found: format!("others than {shape:?}"),
    })
}
