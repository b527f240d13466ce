//! Values as bytes and back, bit for bit: what a journal holds of a run.
//!
//! The bytes are read by the program that wrote them, so they carry no names and no versions; but they come from a file, so
//! whatever they say is checked, and nothing is allocated that the bytes left could not fill. All numbers are little-endian.
//!
//! ```
//! use quant_core::codec::{Codec, decoded, encoded};
//! use std::collections::BTreeMap;
//!
//! let value = BTreeMap::from([(3_u32, Some("three".to_owned())), (4, None)]);
//! let bytes = encoded(&value);
//! assert_eq!(decoded::<BTreeMap<u32, Option<String>>>(&bytes)?, value);
//! assert!(decoded::<BTreeMap<u32, Option<String>>>(&bytes[1..]).is_err());
//! # Ok::<(), quant_core::CoreError>(())
//! ```

mod arrays;
mod quantisers;

pub use arrays::encode_matrix;

use crate::CoreError;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A value that comes back from its bytes as it was, also a NaN.
pub trait Codec: Sized {
    /// Appends its bytes.
    fn encode(&self, out: &mut Vec<u8>);
    /// Takes its bytes off the front.
    ///
    /// # Errors
    /// [`CoreError::Encoded`] for bytes that are no such value.
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError>;
}

/// The bytes that are left to decode.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    /// All of these.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
    /// How many are left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.0.len()
    }
    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`CoreError::Encoded`] if fewer are left.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], CoreError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(CoreError::Encoded {
            expected: "more bytes",
            found: format!("{} of {count}", self.0.len()),
        })?;
        self.0 = rest;
        Ok(taken)
    }
    /// The next `N` bytes.
    fn array<const N: usize>(&mut self) -> Result<[u8; N], CoreError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }
    /// A count of elements of at least `size` bytes each, which the bytes left can hold.
    fn count(&mut self, size: usize) -> Result<usize, CoreError> {
        let count = usize::decode(self)?;
        if count.checked_mul(size).is_none_or(|bytes| bytes > self.left()) {
            return Err(CoreError::Encoded {
                expected: "a count of elements that are there",
                found: count.to_string(),
            });
        }
        Ok(count)
    }
}

/// The bytes of a value.
#[must_use]
pub fn encoded(value: &impl Codec) -> Vec<u8> {
    let mut out = Vec::new();
    value.encode(&mut out);
    out
}

/// The value of bytes, all of them.
///
/// # Errors
/// [`CoreError::Encoded`] for bytes that are no such value, or hold more than one.
pub fn decoded<T: Codec>(bytes: &[u8]) -> Result<T, CoreError> {
    let mut from = Bytes(bytes);
    let value = T::decode(&mut from)?;
    match from.left() {
        0 => Ok(value),
        more => Err(CoreError::Encoded { expected: "the end", found: format!("{more} more bytes") }),
    }
}

/// The error of a tag that names no variant.
///
/// # Errors
/// Always.
pub fn bad_tag<T>(expected: &'static str, tag: u8) -> Result<T, CoreError> {
    Err(CoreError::Encoded { expected, found: format!("tag {tag}") })
}

/// [`Codec`] of a struct with these fields, in this order.
#[macro_export]
macro_rules! codec_of_fields {
    ($type:ty { $($field:ident),+ $(,)? }) => {
        impl $crate::codec::Codec for $type {
            fn encode(&self, out: &mut Vec<u8>) {
                $($crate::codec::Codec::encode(&self.$field, out);)+
            }
            fn decode(from: &mut $crate::codec::Bytes<'_>) -> Result<Self, $crate::CoreError> {
                Ok(Self { $($field: $crate::codec::Codec::decode(from)?),+ })
            }
        }
    };
}

macro_rules! numbers {
    ($($number:ty),+) => {$(
        impl Codec for $number {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
                Ok(Self::from_le_bytes(from.array()?))
            }
        }
    )+};
}
numbers!(u8, u16, u32, u64, f32, f64);

impl Codec for usize {
    fn encode(&self, out: &mut Vec<u8>) {
        (*self as u64).encode(out);
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        let wide = u64::decode(from)?;
        Self::try_from(wide)
            .map_err(|_| CoreError::Encoded { expected: "a size of this machine", found: wide.to_string() })
    }
}

impl Codec for bool {
    fn encode(&self, out: &mut Vec<u8>) {
        u8::from(*self).encode(out);
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        match u8::decode(from)? {
            0 => Ok(false),
            1 => Ok(true),
            tag => bad_tag("a yes or no", tag),
        }
    }
}

fn encode_text(text: &str, out: &mut Vec<u8>) {
    text.len().encode(out);
    out.extend_from_slice(text.as_bytes());
}

impl Codec for String {
    fn encode(&self, out: &mut Vec<u8>) {
        encode_text(self, out);
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        let length = from.count(1)?;
        let text = std::str::from_utf8(from.take(length)?);
        Ok(text.map_err(|e| CoreError::Encoded { expected: "text", found: e.to_string() })?.to_owned())
    }
}

impl Codec for Cow<'static, str> {
    fn encode(&self, out: &mut Vec<u8>) {
        encode_text(self, out);
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        String::decode(from).map(Self::Owned)
    }
}

impl<T: Codec> Codec for Option<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.is_some().encode(out);
        if let Some(value) = self {
            value.encode(out);
        }
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        Ok(if bool::decode(from)? { Some(T::decode(from)?) } else { None })
    }
}

impl<T: Codec> Codec for Arc<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.as_ref().encode(out);
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        T::decode(from).map(Self::new)
    }
}

impl<A: Codec, B: Codec> Codec for (A, B) {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
        self.1.encode(out);
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        Ok((A::decode(from)?, B::decode(from)?))
    }
}

impl<T: Codec> Codec for Vec<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.len().encode(out);
        self.iter().for_each(|value| value.encode(out));
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        let count = from.count(1)?;
        (0..count).map(|_| T::decode(from)).collect()
    }
}

impl<K: Codec + Ord, V: Codec> Codec for BTreeMap<K, V> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.len().encode(out);
        for (key, value) in self {
            key.encode(out);
            value.encode(out);
        }
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        let count = from.count(1)?;
        (0..count).map(|_| <(K, V)>::decode(from)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binary::{BinaryMatrix, SECOND, UPPER};
    use crate::matrix::{Groups, QuantizedMatrix, round_matrix};
    use crate::{ActQuant, ActRule, Bits, ClipRatio, EntryQuant, Grid, KvQuant, QParams, Widths};
    use ndarray::{Array1, Array2, Array3};

    fn back<T: Codec + PartialEq + std::fmt::Debug>(value: &T) {
        let bytes = encoded(value);
        assert_eq!(&decoded::<T>(&bytes).unwrap(), value);
        for cut in 0..bytes.len() {
            assert!(decoded::<T>(&bytes[..cut]).is_err(), "{cut} of {} bytes: {value:?}", bytes.len());
        }
        assert!(decoded::<T>(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn values_come_back() {
        let weight = Array2::from_shape_fn((5, 7), |(i, j)| ((i * 31 + j * 17) % 13) as f32 - 6.0);
        for groups in [
            Groups::Channel,
            Groups::Size(3),
            Groups::Index { size: 4, of_column: vec![0, 1, 0, 1, 0, 1, 1] },
        ] {
            back(&round_matrix(&Grid::int4_asym(), None, groups, weight.view()).unwrap());
        }
        let widths = Widths::PerGroup([2, 3].map(|bits| Bits::new(bits).unwrap()).to_vec());
        let levels = Array2::from_shape_fn((2, 4), |(i, j)| (i + j) as u8 % 4);
        let (scales, zeros) = (Array2::from_elem((2, 2), 0.1), Array2::zeros((2, 2)));
        back(&QuantizedMatrix::new(widths, levels, scales, zeros, Groups::Size(2)).unwrap());
        let codes = Array2::from_shape_vec((1, 3), vec![0, UPPER, SECOND]).unwrap();
        let numbers = Array3::from_shape_fn((1, 2, 8), |(_, b, i)| (b * 8 + i) as f32);
        back(&BinaryMatrix::new(2, vec![false, true, false], codes, numbers).unwrap());
        let bits = Bits::new(8).unwrap();
        for rule in [ActRule::Asymmetric, ActRule::Symmetric, ActRule::SymmetricFull] {
            back(&ActQuant::Dynamic {
                bits,
                rule,
                clip_ratio: ClipRatio { upper: 0.9, lower: 0.7 },
                shards: 2,
            });
            back(&KvQuant::both(EntryQuant::TokenHead { bits, rule, clip_ratio: 0.8.into() }));
        }
        back(&ActQuant::Static { bits, params: QParams { scale: 0.1, zero: 3.0 } });
        let channel = EntryQuant::Channel { bits, scales: Array1::ones(3), zeros: Array1::zeros(3) };
        back(&KvQuant { before_rope: true, pre_bias: true, ..KvQuant::both(channel) });
        back(&vec![(1_u64, "a".to_owned()), (2, String::new())]);
        // Other orders in memory are the same values.
        back(&weight.t().to_owned());
        assert_eq!(encoded(&weight.clone().reversed_axes()), encoded(&weight.t().to_owned()));
    }

    #[test]
    fn a_nan_keeps_its_bits() {
        let odd = f64::from_bits(0x7ff8_0000_dead_beef);
        assert_eq!(decoded::<f64>(&encoded(&odd)).unwrap().to_bits(), odd.to_bits());
    }

    /// Sizes that lie are refused before anything is allocated for them.
    #[test]
    fn lying_sizes_are_refused() {
        let huge = encoded(&u64::MAX);
        assert!(decoded::<String>(&huge).is_err() && decoded::<Vec<u8>>(&huge).is_err());
        assert!(decoded::<Array1<f32>>(&huge).is_err());
        let cube = encoded(&(1_u64 << 40, (1_u64 << 40, 1_u64 << 40)));
        assert!(decoded::<Array3<f32>>(&cube).is_err());
        for shape in [(u64::MAX, 2_u64), (1 << 40, 1 << 40), (0, 1)] {
            let bytes = [encoded(&shape), vec![0; 3]].concat();
            assert!(decoded::<Array2<u8>>(&bytes).is_err(), "{shape:?}");
            assert!(decoded::<Array2<f32>>(&bytes).is_err(), "{shape:?}");
        }
        let mut matrix = encoded(&QuantizedMatrix::unfilled(Bits::new(2).unwrap(), (2, 3), None));
        // A level that two bits do not hold, behind the width and the shape.
        matrix[5 + 16] = 7;
        assert!(matches!(decoded::<QuantizedMatrix>(&matrix), Err(CoreError::Shape { .. })));
    }
}
