//! Layouts that CANN's operators read: FRACTAL_NZ, codes of four bits, scales as words.
//!
//! ```
//! use ascend_kernels::layout::{pack_int4_words, pack_scale};
//!
//! assert_eq!(pack_int4_words(&[-8, -7, -1, 0, 1, 2, 6, 7]).unwrap(), [0x7621_0F98_u32 as i32]);
//! assert_eq!(pack_scale(0.0123, 0), 0x4000_3C49_8000);
//! ```

use quant_core::operators::fp19;

use crate::error::{AscendError, Result};
use crate::tensor::{Typed, nz_storage};

/// Elements of the NZ layout of a matrix, with its padding.
#[must_use]
pub fn nz_length<T: Typed>(rows: usize, columns: usize) -> usize {
    nz_storage(rows, columns, T::TYPE).iter().product()
}

/// Place of an element in the NZ layout: `((c / c0 · ⌈rows/16⌉ + r / 16) · 16 + r % 16) · c0 + c % c0`, with `c0` elements in 32 bytes.
#[must_use]
pub fn nz_index<T: Typed>(row: usize, column: usize, rows: usize) -> usize {
    let c0 = 256 / T::TYPE.bits();
    ((column / c0 * rows.div_ceil(16) + row / 16) * 16 + row % 16) * c0 + column % c0
}

/// A row-major matrix `[rows, columns]` in the NZ layout, padded with zeros.
///
/// # Errors
/// [`AscendError::Shape`] if there are not so many elements.
pub fn to_nz<T: Typed>(matrix: &[T], rows: usize, columns: usize) -> Result<Vec<T>> {
    if rows.checked_mul(columns) != Some(matrix.len()) {
        return Err(AscendError::shape(
            "elements of a matrix",
            format!("{rows} x {columns}"),
            matrix.len().to_string(),
        ));
    }
    let mut out = vec![T::zeroed(); nz_length::<T>(rows, columns)];
    put_nz(matrix, rows, columns, &mut out);
    Ok(out)
}

/// A matrix of so many rows and columns into memory of zeros as long as [`nz_length`] says.
pub(crate) fn put_nz<T: Typed>(matrix: &[T], rows: usize, columns: usize, out: &mut [T]) {
    for (row, values) in matrix.chunks(columns.max(1)).enumerate() {
        for (column, &value) in values.iter().enumerate() {
            out[nz_index::<T>(row, column, rows)] = value;
        }
    }
}

fn check_four_bits(codes: &[i8], each: usize) -> Result<()> {
    if let Some((at, code)) = codes.iter().enumerate().find(|(_, code)| !(-8..=7).contains(*code)) {
        return Err(AscendError::shape("codes of four bits", "-8 to 7", format!("{code} at {at}")));
    }
    if codes.len().is_multiple_of(each) {
        return Ok(());
    }
    Err(AscendError::shape("codes of four bits", format!("a multiple of {each}"), codes.len().to_string()))
}

/// Codes of four bits, two a byte: the first in the lower half.
///
/// # Errors
/// [`AscendError::Shape`] for a code outside of -8 to 7, or an odd number of them.
pub fn pack_int4(codes: &[i8]) -> Result<Vec<u8>> {
    check_four_bits(codes, 2)?;
    let half = |code: i8| code.cast_unsigned() & 0xF;
    Ok(codes.chunks_exact(2).map(|pair| half(pair[0]) | half(pair[1]) << 4).collect())
}

/// Codes of four bits, eight a word: the first in the lowest bits.
///
/// # Errors
/// As [`pack_int4`], for a number of codes that is no multiple of 8.
pub fn pack_int4_words(codes: &[i8]) -> Result<Vec<i32>> {
    check_four_bits(codes, 8)?;
    let bits = |(i, &code): (usize, &i8)| u32::from(code.cast_unsigned() & 0xF) << (4 * i);
    let word = |eight: &[i8]| eight.iter().enumerate().map(bits).fold(0, |word, bits| word | bits);
    Ok(codes.chunks_exact(8).map(|eight| word(eight).cast_signed()).collect())
}

/// The inverse of [`pack_int4`].
#[must_use]
pub fn unpack_int4(bytes: &[u8]) -> Vec<i8> {
    let signed = |half: u8| (half << 4).cast_signed() >> 4;
    bytes.iter().flat_map(|&byte| [signed(byte), signed(byte >> 4)]).collect()
}

/// A scale as the word that the fix-pipe reads: f32 cut to 19 bits ([`fp19`]), the offset in bits 37 to 45, bit 46 set.
///
/// The offset is held in −256..=255.
#[must_use]
pub fn pack_scale(scale: f32, offset: i32) -> u64 {
    let nine = (offset.clamp(-256, 255) & 0x1FF).cast_unsigned();
    u64::from(fp19(scale).to_bits()) | u64::from(nine) << 37 | 1 << 46
}

/// The argument `groupSize` of QuantMatmul: how many rows of x1, columns of x2 and inputs share a scale; 0 for none.
///
/// # Errors
/// [`AscendError::Shape`] for a size that has no room.
pub fn group_size(m: usize, n: usize, k: usize) -> Result<i64> {
    let part = |size: usize| u16::try_from(size).map(i64::from).ok();
    match (part(m), part(n), part(k)) {
        (Some(m), Some(n), Some(k)) => Ok(k | n << 16 | m << 32),
        _ => Err(AscendError::shape("sizes of a group", "at most 65535 each", format!("[{m}, {n}, {k}]"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn places_of_the_documents() {
        for ((row, column), place) in [((0, 32), 1024), ((16, 0), 512), ((17, 33), 1569)] {
            assert_eq!(nz_index::<i8>(row, column, 32), place);
        }
        assert_eq!(
            [nz_length::<i8>(17, 33), nz_length::<f16>(17, 33), nz_length::<f32>(1, 1)],
            [2048, 1536, 128]
        );
        let matrix: Vec<i8> = (0..17 * 33).map(|i| (i % 100) as i8).collect();
        let nz = to_nz(&matrix, 17, 33).unwrap();
        assert_eq!(nz[nz_index::<i8>(16, 32, 17)], matrix[16 * 33 + 32]);
        assert_eq!(nz.iter().map(|&x| i32::from(x)).sum::<i32>(), matrix.iter().map(|&x| i32::from(x)).sum());
        assert!(to_nz(&matrix, 17, 32).unwrap_err().to_string().contains("17 x 32"));
    }

    #[test]
    fn codes_of_four_bits() {
        let codes = [-8, -7, -1, 0, 1, 2, 6, 7];
        assert_eq!(pack_int4(&codes).unwrap(), [0x98, 0x0F, 0x21, 0x76]);
        assert_eq!(unpack_int4(&[0x98, 0x0F, 0x21, 0x76]), codes);
        assert_eq!(pack_int4_words(&codes).unwrap(), [0x7621_0F98]);
        assert!(pack_int4(&[8, 0]).unwrap_err().to_string().contains("8 at 0"));
        assert!(pack_int4(&[0]).is_err() && pack_int4_words(&[0; 4]).is_err());
    }

    #[test]
    fn words_of_scales_and_sizes_of_groups() {
        for (scale, offset, word) in [
            (1.0, 0, 0x4000_3F80_0000),
            (0.0123, 0, 0x4000_3C49_8000),
            (0.001, 0, 0x4000_3A83_0000),
            (0.001, 5, 0x40A0_3A83_0000),
            (0.001, -3, 0x7FA0_3A83_0000),
        ] {
            assert_eq!(pack_scale(scale, offset), word, "{scale} {offset}");
        }
        for (size, number) in
            [((1, 128, 128), 4_303_356_032), ((128, 128, 128), 549_764_202_624), ((1, 1, 32), 4_295_032_864)]
        {
            assert_eq!(group_size(size.0, size.1, size.2).unwrap(), number);
        }
        assert!(group_size(1, 70_000, 1).is_err());
    }
}
