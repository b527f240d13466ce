//! Levels in 32-bit words: dense, least significant bits first, running on across word boundaries.
//!
//! The layout of compressed-tensors' `pack-quantized` and of GPTQ (which packs the other axis).

use crate::{Bits, CoreError};
use ndarray::{Array2, ArrayView2, Axis};

/// Words needed for `count` values.
#[must_use]
pub fn words(count: usize, bits: Bits) -> usize {
    (count * bits.get() as usize).div_ceil(32)
}

fn pack_into(levels: impl Iterator<Item = u8>, bits: Bits, words: &mut [i32]) {
    let width = bits.get();
    let (mut buffer, mut filled, mut at) = (0_u64, 0, 0);
    for level in levels {
        buffer |= u64::from(level) << filled;
        filled += width;
        if filled >= 32 {
            words[at] = buffer as u32 as i32;
            at += 1;
            buffer >>= 32;
            filled -= 32;
        }
    }
    if filled > 0 {
        words[at] = buffer as u32 as i32;
    }
}

fn unpack_from(words: impl Iterator<Item = i32>, bits: Bits, levels: &mut [u8]) {
    let width = bits.get();
    let mask = (1_u64 << width) - 1;
    let (mut buffer, mut filled) = (0_u64, 0);
    let mut words = words;
    for level in levels {
        if filled < width {
            buffer |= u64::from(words.next().unwrap_or(0) as u32) << filled;
            filled += 32;
        }
        *level = (buffer & mask) as u8;
        buffer >>= width;
        filled -= width;
    }
}

/// Packs each row: `[rows, n]` to `[rows, ⌈n·bits/32⌉]`.
#[must_use]
pub fn pack_rows(levels: ArrayView2<'_, u8>, bits: Bits) -> Array2<i32> {
    let mut out = Array2::zeros((levels.nrows(), words(levels.ncols(), bits)));
    for (row, mut target) in levels.axis_iter(Axis(0)).zip(out.axis_iter_mut(Axis(0))) {
        if let Some(target) = target.as_slice_mut() {
            pack_into(row.iter().copied(), bits, target);
        }
    }
    out
}

/// Packs each column downwards: `[n, columns]` to `[⌈n·bits/32⌉, columns]` (zero points of compressed-tensors).
#[must_use]
pub fn pack_columns(levels: ArrayView2<'_, u8>, bits: Bits) -> Array2<i32> {
    pack_rows(levels.t(), bits).reversed_axes().as_standard_layout().into_owned()
}

/// The inverse of [`pack_rows`] for rows of `n` values.
///
/// # Errors
/// [`CoreError::Shape`] if a row has not exactly the words `n` values need.
pub fn unpack_rows(packed: ArrayView2<'_, i32>, n: usize, bits: Bits) -> Result<Array2<u8>, CoreError> {
    if packed.ncols() != words(n, bits) {
        return Err(CoreError::Shape {
            what: "packed words",
            expected: format!("{} words for {n} values of {} bits", words(n, bits), bits.get()),
            found: format!("{} words", packed.ncols()),
        });
    }
    let mut out = Array2::zeros((packed.nrows(), n));
    for (row, mut target) in packed.axis_iter(Axis(0)).zip(out.axis_iter_mut(Axis(0))) {
        if let Some(target) = target.as_slice_mut() {
            unpack_from(row.iter().copied(), bits, target);
        }
    }
    Ok(out)
}

/// The inverse of [`pack_columns`] for columns of `n` values.
///
/// # Errors
/// As [`unpack_rows`].
pub fn unpack_columns(packed: ArrayView2<'_, i32>, n: usize, bits: Bits) -> Result<Array2<u8>, CoreError> {
    Ok(unpack_rows(packed.t(), n, bits)?.reversed_axes().as_standard_layout().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr2;
    use proptest::prelude::*;

    fn levels(signed: &[i32], bits: u32) -> Array2<u8> {
        let half = 1 << (bits - 1);
        Array2::from_shape_vec((1, signed.len()), signed.iter().map(|v| (v + half) as u8).collect()).unwrap()
    }

    #[test]
    fn words_of_the_format_specification() {
        let four = Bits::new(4).unwrap();
        let packed = pack_rows(levels(&[-8, -7, -1, 0, 1, 2, 6, 7], 4).view(), four);
        assert_eq!(packed, arr2(&[[0xFEA9_8710_u32 as i32]]));
        let three = Bits::new(3).unwrap();
        let packed = pack_rows(levels(&[-4, -3, -2, -1, 0, 1, 2, 3, -4, 3, 1, -2], 3).view(), three);
        assert_eq!(packed, arr2(&[[0x78FA_C688, 0x0000_0005]]));
        let zeros = levels(&[0, -8, 7, 1, -1, 3, -4, 2], 4);
        assert_eq!(pack_columns(zeros.t(), four), arr2(&[[0xA4B7_9F08_u32 as i32]]));
    }

    proptest! {
        #[test]
        fn packing_round_trips(
            bits in 1_u32..=8, rows in 1_usize..4, columns in 1_usize..70, bytes in prop::collection::vec(any::<u8>(), 4 * 70),
        ) {
            let bits = Bits::new(bits).unwrap();
            let levels = Array2::from_shape_fn((rows, columns), |(i, j)| bytes[i * columns + j] & (bits.max_level() as u8));
            let packed = pack_rows(levels.view(), bits);
            prop_assert_eq!(&unpack_rows(packed.view(), columns, bits).unwrap(), &levels);
            let packed = pack_columns(levels.view(), bits);
            prop_assert_eq!(unpack_columns(packed.view(), rows, bits).unwrap(), levels);
        }
    }
}
