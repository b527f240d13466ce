//! Dtype names of the safetensors format and checked sizes.

use safetensors::Dtype;

use crate::error::{HeaderError, Result};

/// Every dtype of the format with the name it has in a header.
const NAMES: [(&str, Dtype); 22] = [
    ("BOOL", Dtype::BOOL),
    ("F4", Dtype::F4),
    ("F6_E2M3", Dtype::F6_E2M3),
    ("F6_E3M2", Dtype::F6_E3M2),
    ("U8", Dtype::U8),
    ("I8", Dtype::I8),
    ("F8_E5M2", Dtype::F8_E5M2),
    ("F8_E4M3", Dtype::F8_E4M3),
    ("F8_E8M0", Dtype::F8_E8M0),
    ("F8_E4M3FNUZ", Dtype::F8_E4M3FNUZ),
    ("F8_E5M2FNUZ", Dtype::F8_E5M2FNUZ),
    ("I16", Dtype::I16),
    ("U16", Dtype::U16),
    ("F16", Dtype::F16),
    ("BF16", Dtype::BF16),
    ("I32", Dtype::I32),
    ("U32", Dtype::U32),
    ("F32", Dtype::F32),
    ("C64", Dtype::C64),
    ("F64", Dtype::F64),
    ("I64", Dtype::I64),
    ("U64", Dtype::U64),
];

/// The dtype that a header calls `name`, or `None`.
pub(crate) fn from_name(name: &str) -> Option<Dtype> {
    NAMES.iter().find(|(n, _)| *n == name).map(|(_, d)| *d)
}

/// Bytes taken by a tensor: `product(shape) x bits / 8`, every step checked.
///
/// # Errors
/// [`HeaderError::SizeOverflow`] when a product exceeds 64 bits, [`HeaderError::FractionalBytes`] when a
/// sub-byte dtype does not fill whole bytes.
pub(crate) fn tensor_bytes(file: &str, tensor: &str, dtype: Dtype, shape: &[usize]) -> Result<u64> {
    let bits = shape
        .iter()
        .try_fold(1_usize, |product, &d| product.checked_mul(d))
        .and_then(|elements| u64::try_from(elements).ok())
        .and_then(|elements| elements.checked_mul(dtype.bitsize() as u64))
        .ok_or_else(|| HeaderError::SizeOverflow {
            file: file.to_owned(),
            tensor: tensor.to_owned(),
            dtype,
            shape: shape.to_vec(),
        })?;
    if bits % 8 != 0 {
        return Err(HeaderError::FractionalBytes {
            file: file.to_owned(),
            tensor: tensor.to_owned(),
            dtype,
            shape: shape.to_vec(),
        }
        .into());
    }
    Ok(bits / 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::CheckpointError;

    #[test]
    fn names_match_the_safetensors_crate() {
        for (name, dtype) in NAMES {
            assert_eq!(dtype.to_string(), name);
            assert_eq!(from_name(name), Some(dtype));
        }
        assert_eq!(from_name("F32 "), None);
        assert_eq!(from_name("float32"), None);
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(tensor_bytes("f", "t", Dtype::BF16, &[3, 5]).unwrap(), 30);
        assert_eq!(tensor_bytes("f", "t", Dtype::F32, &[]).unwrap(), 4);
        assert_eq!(tensor_bytes("f", "t", Dtype::F4, &[3, 2]).unwrap(), 3);
        assert!(matches!(
            tensor_bytes("f", "t", Dtype::F4, &[3]),
            Err(CheckpointError::Header(HeaderError::FractionalBytes { .. }))
        ));
        for shape in [&[usize::MAX, 2][..], &[usize::MAX / 8][..], &[1 << 31, 1 << 31, 4]] {
            assert!(matches!(
                tensor_bytes("f", "t", Dtype::F32, shape),
                Err(CheckpointError::Header(HeaderError::SizeOverflow { .. }))
            ));
        }
    }
}
