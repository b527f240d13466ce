//! Tensors: a description of memory, and numbers in and out of it.

use half::{bf16, f16};

use crate::generated::types::*;
use crate::memory::{Memory, Place};
use crate::refusal::{Answer, refuse, report};

/// What `aclCreateTensor` was given.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) handle: usize,
    pub(crate) dims: Vec<i64>,
    pub(crate) strides: Vec<i64>,
    pub(crate) offset: i64,
    pub(crate) dtype: aclDataType,
    pub(crate) format: aclFormat,
    pub(crate) storage: Vec<i64>,
    pub(crate) data: usize,
}

/// Bits of an element, 0 for a type that is not known here.
pub(crate) fn bits(dtype: aclDataType) -> usize {
    match dtype {
        ACL_INT4 => 4,
        ACL_INT8 => 8,
        ACL_FLOAT16 | ACL_BF16 => 16,
        ACL_FLOAT | ACL_INT32 => 32,
        ACL_INT64 | ACL_UINT64 => 64,
        _ => 0,
    }
}

/// Columns of a block of the NZ layout: 32 bytes.
fn nz_columns(dtype: aclDataType) -> i64 {
    match bits(dtype) {
        0 => 1,
        bits => (256 / bits) as i64,
    }
}

/// Place of an element of a matrix with `rows` rows in the NZ layout with blocks of 16 rows and `c0` columns.
pub(crate) fn nz_index(row: i64, column: i64, rows: i64, c0: i64) -> i64 {
    let blocks_down = (rows + 15) / 16;
    ((column / c0 * blocks_down + row / 16) * 16 + row % 16) * c0 + column % c0
}

fn invalid<T>(message: impl Into<String>) -> Answer<T> {
    refuse(ACLNN_ERR_PARAM_INVALID, message)
}

impl Tensor {
    pub(crate) fn elements(&self) -> usize {
        self.dims.iter().map(|&d| usize::try_from(d).unwrap_or(0)).product()
    }

    /// Length of the last axis.
    pub(crate) fn last(&self) -> usize {
        self.dims.last().map_or(1, |&d| usize::try_from(d).unwrap_or(0))
    }

    /// Product of all axes but the last.
    pub(crate) fn rows(&self) -> usize {
        self.dims
            .split_last()
            .map_or(1, |(_, front)| front.iter().map(|&d| usize::try_from(d).unwrap_or(0)).product())
    }

    pub(crate) fn is_nz(&self) -> bool {
        self.format == ACL_FORMAT_FRACTAL_NZ
    }

    /// Whether the description makes sense.
    pub(crate) fn check(&self) -> Answer<()> {
        if bits(self.dtype) == 0 {
            return invalid(format!("data type {} is not supported", self.dtype));
        }
        if self.dims.len() > 8 || self.dims.iter().chain(&self.storage).any(|&d| d < 0) {
            return invalid(format!("shape {:?} is not supported", self.dims));
        }
        if !matches!(self.format, ACL_FORMAT_ND | ACL_FORMAT_FRACTAL_NZ) {
            return invalid(format!("format {} is not supported", self.format));
        }
        if !self.data.is_multiple_of(32) {
            return refuse(ACL_ERROR_RT_ADDR_UNALIGNED, "the address of a tensor is no multiple of 32");
        }
        if self.is_nz() {
            let c0 = nz_columns(self.dtype);
            let wanted = match self.dims.as_slice() {
                &[rows, columns] if rows > 1 && columns > 1 => {
                    vec![(columns + c0 - 1) / c0, (rows + 15) / 16, 16, c0]
                }
                _ => return invalid("the layout NZ is for matrices with two axes longer than 1"),
            };
            if self.storage != wanted {
                return invalid(format!("storage {:?} of an NZ tensor, expected {wanted:?}", self.storage));
            }
        }
        Ok(())
    }

    /// Whether live device memory holds it.
    pub(crate) fn check_memory(&self, memory: &Memory) -> Answer<()> {
        if self.elements() == 0 {
            return Ok(());
        }
        let most = if self.is_nz() {
            self.storage.iter().product::<i64>() - 1
        } else {
            self.offset + self.dims.iter().zip(&self.strides).map(|(d, s)| (d - 1) * s).sum::<i64>()
        };
        let Ok(most) = usize::try_from(most) else { return invalid("a tensor reaches before its memory") };
        let bytes = ((most + 1) * bits(self.dtype)).div_ceil(8);
        memory.holder(self.data, bytes, Some(Place::Device)).map(|_| ())
    }

    /// Place of each element in memory, row-major by the view.
    fn places(&self) -> Vec<usize> {
        let mut places = Vec::with_capacity(self.elements());
        let mut at = vec![0_i64; self.dims.len()];
        for _ in 0..self.elements() {
            let place = if self.is_nz() {
                nz_index(at[0], at[1], self.dims[0], nz_columns(self.dtype))
            } else {
                self.offset + at.iter().zip(&self.strides).map(|(i, s)| i * s).sum::<i64>()
            };
            places.push(usize::try_from(place).unwrap_or(0));
            for axis in (0..at.len()).rev() {
                at[axis] += 1;
                if at[axis] < self.dims[axis] {
                    break;
                }
                at[axis] = 0;
            }
        }
        places
    }

    fn bytes<'w>(&self, memory: &'w Memory, places: &[usize]) -> Answer<&'w [u8]> {
        let most = places.iter().max().map_or(0, |most| most + 1);
        memory.read(self.data, (most * bits(self.dtype)).div_ceil(8))
    }

    /// Floating-point elements, row-major.
    pub(crate) fn floats(&self, memory: &Memory) -> Answer<Vec<f32>> {
        let places = self.places();
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let bytes = self.bytes(memory, &places)?;
        let two = |p: usize| [bytes[2 * p], bytes[2 * p + 1]];
        let number = |&p: &usize| match self.dtype {
            ACL_FLOAT16 => f16::from_le_bytes(two(p)).to_f32(),
            ACL_BF16 => bf16::from_le_bytes(two(p)).to_f32(),
            _ => f32::from_le_bytes([bytes[4 * p], bytes[4 * p + 1], bytes[4 * p + 2], bytes[4 * p + 3]]),
        };
        Ok(places.iter().map(number).collect())
    }

    /// Whole elements of up to 32 bits, row-major.
    pub(crate) fn integers(&self, memory: &Memory) -> Answer<Vec<i32>> {
        let places = self.places();
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let bytes = self.bytes(memory, &places)?;
        let number = |&p: &usize| match self.dtype {
            // The lower half of a byte comes first.
            ACL_INT4 => i32::from(((bytes[p / 2] >> (p % 2 * 4)) << 4).cast_signed() >> 4),
            ACL_INT8 => i32::from(bytes[p].cast_signed()),
            _ => i32::from_le_bytes([bytes[4 * p], bytes[4 * p + 1], bytes[4 * p + 2], bytes[4 * p + 3]]),
        };
        Ok(places.iter().map(number).collect())
    }

    /// Elements of a quantised operand; an INT32 tensor holds eight along its last axis.
    pub(crate) fn codes(&self, memory: &Memory) -> Answer<Vec<i32>> {
        let words = self.integers(memory)?;
        if self.dtype != ACL_INT32 {
            return Ok(words);
        }
        Ok(words.into_iter().flat_map(|word| (0..8).map(move |i| word << (28 - 4 * i) >> 28)).collect())
    }

    /// The shape of [`Tensor::codes`].
    pub(crate) fn code_dims(&self) -> Vec<usize> {
        self.code_dims_if(self.dtype == ACL_INT32)
    }

    /// The shape of what the tensor holds, if an element of it is eight codes.
    pub(crate) fn code_dims_if(&self, packed: bool) -> Vec<usize> {
        let mut dims: Vec<usize> = self.dims.iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect();
        if let (true, Some(last)) = (packed, dims.last_mut()) {
            *last *= 8;
        }
        dims
    }

    /// Elements of 64 bits.
    pub(crate) fn words(&self, memory: &Memory) -> Answer<Vec<u64>> {
        let places = self.places();
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let bytes = self.bytes(memory, &places)?;
        let word = |&p: &usize| {
            bytes[8 * p..8 * p + 8].iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
        };
        Ok(places.iter().map(word).collect())
    }

    fn store<const N: usize>(
        &self,
        memory: &mut Memory,
        values: impl Iterator<Item = [u8; N]>,
    ) -> Answer<()> {
        let places = self.places();
        let most = places.iter().max().map_or(0, |most| most + 1);
        if most == 0 {
            return Ok(());
        }
        let bytes = memory.write(self.data, most * N)?;
        for (place, value) in places.into_iter().zip(values) {
            bytes[place * N..(place + 1) * N].copy_from_slice(&value);
        }
        Ok(())
    }

    /// Writes floating-point elements, each rounded once to the type, half to even.
    pub(crate) fn put_floats(&self, memory: &mut Memory, values: &[f32]) -> Answer<()> {
        let saturates = memory.saturates;
        let held = |x: f32, largest: f32| match saturates {
            true if x.is_nan() => 0.0,
            true => x.clamp(-largest, largest),
            false => x,
        };
        let half = |&x: &f32| f16::from_f32(held(x, f16::MAX.to_f32())).to_le_bytes();
        let brain = |&x: &f32| bf16::from_f32(held(x, bf16::MAX.to_f32())).to_le_bytes();
        match self.dtype {
            ACL_FLOAT16 => self.store(memory, values.iter().map(half)),
            ACL_BF16 => self.store(memory, values.iter().map(brain)),
            ACL_FLOAT => self.store(memory, values.iter().map(|&x| held(x, f32::MAX).to_le_bytes())),
            other => report(format!("numbers are written to a tensor of type {other}")),
        }
    }

    /// Writes whole elements; codes of four bits may go to INT4 or, eight a word, to INT32.
    pub(crate) fn put_codes(&self, memory: &mut Memory, values: &[i32], packed: bool) -> Answer<()> {
        match self.dtype {
            ACL_INT8 => self.store(memory, values.iter().map(|&x| [(x as i8).cast_unsigned()])),
            ACL_INT32 if packed => {
                let word = |eight: &[i32]| {
                    let bits = |(i, &x): (usize, &i32)| (x.cast_unsigned() & 0xF) << (4 * i);
                    eight.iter().enumerate().map(bits).fold(0, |word, bits| word | bits).to_le_bytes()
                };
                self.store(memory, values.chunks(8).map(word))
            }
            ACL_INT32 => self.store(memory, values.iter().map(|&x| x.to_le_bytes())),
            ACL_INT4 => {
                let places = self.places();
                let most = places.iter().max().map_or(0, |most| most + 1);
                if most == 0 {
                    return Ok(());
                }
                let bytes = memory.write(self.data, most.div_ceil(2))?;
                for (place, &x) in places.into_iter().zip(values) {
                    let shift = place % 2 * 4;
                    let byte = &mut bytes[place / 2];
                    *byte = *byte & !(0xF << shift) | ((x.cast_unsigned() & 0xF) as u8) << shift;
                }
                Ok(())
            }
            other => report(format!("codes are written to a tensor of type {other}")),
        }
    }

    pub(crate) fn put_words(&self, memory: &mut Memory, values: &[u64]) -> Answer<()> {
        self.store(memory, values.iter().map(|x| x.to_le_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check of `ascend.md` section 4.
    #[test]
    fn nz_places_of_the_documents() {
        for ((row, column), place) in [((0, 32), 1024), ((16, 0), 512), ((17, 33), 1569)] {
            assert_eq!(nz_index(row, column, 32, 32), place);
        }
        assert_eq!(
            [ACL_INT8, ACL_FLOAT16, ACL_BF16, ACL_FLOAT, ACL_INT4, ACL_INT32].map(nz_columns),
            [32, 16, 16, 8, 64, 8]
        );
    }
}
