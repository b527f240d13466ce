//! What can be wrong with the header of a safetensors file.

use safetensors::Dtype;

/// A header that is not what the format says: its length, the entry of a tensor, or how entries and file fit each other.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The file is too short to hold the 8-byte header length.
    #[error("{file}: {found} bytes, a safetensors file has at least 8 for its header length")]
    TooShort {
        /// File name.
        file: String,
        /// Size of the file in bytes.
        found: u64,
    },
    /// The header length exceeds the limit of the format.
    #[error("{file}: header of {found} bytes, the format allows at most {limit}")]
    TooLarge {
        /// File name.
        file: String,
        /// The format's limit in bytes.
        limit: u64,
        /// Length the file claims.
        found: u64,
    },
    /// The header does not fit into the file.
    #[error("{file}: header of {expected} bytes announced, only {found} follow")]
    Truncated {
        /// File name.
        file: String,
        /// Length the file claims.
        expected: u64,
        /// Bytes after the length field.
        found: u64,
    },
    /// A tensor entry lacks a field.
    #[error("{file}: tensor {tensor:?}: field {field:?} is missing")]
    MissingField {
        /// File name.
        file: String,
        /// Tensor name.
        tensor: String,
        /// The absent field.
        field: &'static str,
    },
    /// A tensor entry has a field the format does not define.
    #[error(
        "{file}: tensor {tensor:?}: unknown field {found:?}, expected dtype, shape and data_offsets only"
    )]
    UnknownField {
        /// File name.
        file: String,
        /// Tensor name.
        tensor: String,
        /// The extra field.
        found: String,
    },
    /// A dtype name that the format does not define.
    #[error("{file}: tensor {tensor:?}: unknown dtype {found:?}")]
    UnknownDtype {
        /// File name.
        file: String,
        /// Tensor name.
        tensor: String,
        /// The name found.
        found: String,
    },
    /// A tensor name that is empty, far too long or holds control characters.
    #[error("{file}: tensor name {tensor:?}: {reason}")]
    BadTensorName {
        /// File name.
        file: String,
        /// The name, cut to a printable length.
        tensor: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More dimensions than any tensor has.
    #[error("{file}: tensor {tensor:?}: more than {limit} dimensions")]
    TooManyDimensions {
        /// File name.
        file: String,
        /// Tensor name.
        tensor: String,
        /// Largest accepted rank.
        limit: usize,
    },
    /// `shape x dtype` does not fit into 64 bits.
    #[error(
        "{file}: tensor {tensor:?}: {dtype} of shape {shape:?} overflows the size of anything addressable"
    )]
    SizeOverflow {
        /// File name.
        file: String,
        /// Tensor name.
        tensor: String,
        /// Element type.
        dtype: Dtype,
        /// Claimed shape.
        shape: Vec<usize>,
    },
    /// A sub-byte dtype whose elements do not fill whole bytes.
    #[error("{file}: tensor {tensor:?}: {dtype} of shape {shape:?} does not fill whole bytes")]
    FractionalBytes {
        /// File name.
        file: String,
        /// Tensor name.
        tensor: String,
        /// Element type.
        dtype: Dtype,
        /// Claimed shape.
        shape: Vec<usize>,
    },
    /// The end offset lies before the start offset.
    #[error("{file}: tensor {tensor:?}: data offsets run backwards, from {start} to {end}")]
    OffsetsReversed {
        /// File name.
        file: String,
        /// Tensor name.
        tensor: String,
        /// Claimed start, in bytes after the header.
        start: u64,
        /// Claimed end.
        end: u64,
    },
    /// The offsets span another number of bytes than the shape and dtype need.
    #[error("{file}: tensor {tensor:?}: shape and dtype need {expected} bytes, the offsets span {found}")]
    SizeMismatch {
        /// File name.
        file: String,
        /// Tensor name.
        tensor: String,
        /// Bytes by shape and dtype.
        expected: u64,
        /// Bytes by offsets.
        found: u64,
    },
    /// A tensor starts before the previous one ends.
    #[error("{file}: tensor {tensor:?}: starts at {found}, inside the tensor that ends at {expected}")]
    Overlap {
        /// File name.
        file: String,
        /// Tensor name.
        tensor: String,
        /// End of the previous tensor.
        expected: u64,
        /// Start of this one.
        found: u64,
    },
    /// Bytes between two tensors that belong to none.
    #[error("{file}: tensor {tensor:?}: starts at {found}, leaving a hole after {expected}")]
    Hole {
        /// File name.
        file: String,
        /// Tensor name.
        tensor: String,
        /// End of the previous tensor.
        expected: u64,
        /// Start of this one.
        found: u64,
    },
    /// The last tensor ends before or after the end of the file.
    #[error(
        "{file}: the header describes a file of {expected} bytes, it has {found} (truncated or with a tail)"
    )]
    FileSize {
        /// File name.
        file: String,
        /// Size by the header.
        expected: u64,
        /// Size on disk.
        found: u64,
    },
}
