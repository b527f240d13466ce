//! The safetensors header, from bytes that nobody vouches for.
//!
//! A file is 8 bytes of little-endian header length `n`, `n` bytes of JSON, and the data. The JSON maps tensor names
//! to `{dtype, shape, data_offsets: [start, end]}` with offsets counted from the end of the header. A file is
//! accepted only if the tensors, ordered by offset, tile the data exactly: no hole, no overlap, the last one ends at
//! end-of-file. Hence nothing can hide in a file, and every size that is later allocated is bounded by the size of
//! the file itself.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use quant_core::Foreign;
use safetensors::Dtype;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::dtype::{from_name, tensor_bytes};
use crate::error::{CheckpointError, HeaderError, Result};
use crate::json::{Fault, foreign_content};

/// Largest header accepted, in bytes (the limit of the format).
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Largest number of dimensions accepted.
pub const MAX_DIMENSIONS: usize = 16;
/// Longest tensor name accepted, in bytes.
pub const MAX_NAME_BYTES: usize = 1024;

/// One tensor of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderEntry {
    /// Element type.
    pub dtype: Dtype,
    /// Shape, row-major; empty for a scalar.
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the file.
    pub start: u64,
    /// One past the last byte, counted from the start of the file. `end - start` is what shape and dtype need.
    pub end: u64,
}

/// A checked safetensors header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Tensors by name.
    pub tensors: BTreeMap<String, HeaderEntry>,
    /// `__metadata__`, usually `{"format": "pt"}`.
    pub metadata: BTreeMap<String, String>,
    /// Where the data begins, in bytes from the start of the file.
    pub data_start: u64,
}

impl Header {
    /// Checks a whole file held in memory. `file` is the name that messages show.
    ///
    /// # Errors
    /// One variant per rule of the format; see the module's text.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let total = bytes.len() as u64;
        let length =
            header_length(file, bytes.first_chunk::<8>().ok_or_else(|| too_short(file, total))?, total)?;
        // `header_length` proved that 8 + length fits into the slice.
        let json = bytes.get(8..).and_then(|rest| rest.get(..usize::try_from(length).ok()?));
        Self::from_json(
            file,
            json.ok_or(HeaderError::Truncated {
                file: file.to_owned(),
                expected: length,
                found: total.saturating_sub(8),
            })?,
            total,
        )
    }

    /// Reads and checks the header of an open file, without touching the data.
    ///
    /// # Errors
    /// As [`Header::parse`], [`CheckpointError::ForeignContent`] for a pointer of Git-LFS, a web page or another file in its
    /// place, and [`CheckpointError::Read`] when the operating system fails.
    pub fn read(path: &Path, name: &str, file: &File) -> Result<Self> {
        Self::read_checked(path, name, file).map_err(|error| {
            // The beginning of another kind of file is always a fault of the header; which one says little.
            let mut beginning = [0_u8; Foreign::BEGINNING];
            let length = file.read_at(&mut beginning, 0).unwrap_or(0);
            let beginning = &beginning[..length];
            // The length of a header that could be read at all has zero bytes.
            let text =
                || length > 0 && beginning.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace());
            foreign_content(path, beginning).unwrap_or_else(|| match text() {
                true => CheckpointError::ForeignContent {
                    path: path.to_path_buf(),
                    what: "text, not a safetensors file",
                    advice: format!("it begins {:?}", String::from_utf8_lossy(&beginning[..length.min(40)])),
                },
                false => error,
            })
        })
    }

    fn read_checked(path: &Path, name: &str, file: &File) -> Result<Self> {
        let io = |e| CheckpointError::read(path, e);
        let total = file.metadata().map_err(io)?.len();
        if total < 8 {
            return Err(too_short(name, total).into());
        }
        let mut first = [0_u8; 8];
        file.read_exact_at(&mut first, 0).map_err(io)?;
        let length = header_length(name, &first, total)?;
        let mut json = vec![0_u8; usize::try_from(length).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut json, 8).map_err(io)?;
        Self::from_json(name, &json, total)
    }

    fn from_json(file: &str, json: &[u8], total: u64) -> Result<Self> {
        // The format demands that the header opens with a brace; leading whitespace would be another dialect.
        if json.first() != Some(&b'{') {
            return Err(CheckpointError::Json {
                file: file.to_owned(),
                detail: "the header must begin with '{'".to_owned(),
            });
        }
        let fault = Fault::new(file);
        let raw = fault.parse(json, HeaderSeed(&fault))?;
        let data_start = 8 + json.len() as u64;
        check_tiling(file, &raw.tensors, data_start, total)?;
        let shift = |(name, mut entry): (String, HeaderEntry)| {
            entry.start += data_start;
            entry.end += data_start;
            (name, entry)
        };
        Ok(Self { tensors: raw.tensors.into_iter().map(shift).collect(), metadata: raw.metadata, data_start })
    }
}

fn too_short(file: &str, found: u64) -> HeaderError {
    HeaderError::TooShort { file: file.to_owned(), found }
}

/// Decodes the length field and checks it against the format's limit and the size of the file, in this order, so
/// that nothing is allocated from an unchecked number.
fn header_length(file: &str, first: &[u8; 8], total: u64) -> Result<u64> {
    let length = u64::from_le_bytes(*first);
    if length > MAX_HEADER_BYTES {
        return Err(
            HeaderError::TooLarge { file: file.to_owned(), limit: MAX_HEADER_BYTES, found: length }.into()
        );
    }
    let available = total.saturating_sub(8);
    if length > available {
        return Err(
            HeaderError::Truncated { file: file.to_owned(), expected: length, found: available }.into()
        );
    }
    Ok(length)
}

/// Checks that the tensors (offsets relative to the data) tile `data_start..total` exactly.
fn check_tiling(
    file: &str,
    tensors: &BTreeMap<String, HeaderEntry>,
    data_start: u64,
    total: u64,
) -> Result<()> {
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|(_, e)| (e.start, e.end));
    let mut position = 0_u64;
    for (name, entry) in order {
        let (file, tensor) = (file.to_owned(), name.clone());
        if entry.start < position {
            return Err(HeaderError::Overlap { file, tensor, expected: position, found: entry.start }.into());
        }
        if entry.start > position {
            return Err(HeaderError::Hole { file, tensor, expected: position, found: entry.start }.into());
        }
        position = entry.end;
    }
    match data_start.checked_add(position) {
        Some(expected) if expected == total => Ok(()),
        expected => Err(HeaderError::FileSize {
            file: file.to_owned(),
            expected: expected.unwrap_or(u64::MAX),
            found: total,
        }
        .into()),
    }
}

/// Refuses tensor names that no model has and that would garble messages and tables.
pub(crate) fn check_name(file: &str, name: &str) -> Result<()> {
    let reason = if name.is_empty() {
        "is empty"
    } else if name.len() > MAX_NAME_BYTES {
        "is longer than 1024 bytes"
    } else if name.chars().any(char::is_control) {
        "holds control characters"
    } else {
        return Ok(());
    };
    Err(HeaderError::BadTensorName { file: file.to_owned(), tensor: name.chars().take(80).collect(), reason }
        .into())
}

/// Header contents with offsets still relative to the data.
struct RawHeader {
    tensors: BTreeMap<String, HeaderEntry>,
    metadata: BTreeMap<String, String>,
}

struct HeaderSeed<'a>(&'a Fault<'a>);

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = RawHeader;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<RawHeader, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let fault = self.0;
        let mut tensors = BTreeMap::new();
        let mut metadata = None;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if metadata.is_some() {
                    return Err(fault.duplicate("the header", &name));
                }
                metadata = Some(map.next_value_seed(StringMapSeed { fault, scope: "__metadata__" })?);
                continue;
            }
            if tensors.contains_key(&name) {
                return Err(fault.duplicate("the header", &name));
            }
            check_name(fault.file, &name).map_err(|e| fault.raise(e))?;
            let entry = map.next_value_seed(EntrySeed { fault, tensor: &name })?;
            tensors.insert(name, entry);
        }
        Ok(RawHeader { tensors, metadata: metadata.unwrap_or_default() })
    }
}

/// A JSON object of strings with unique keys.
pub(crate) struct StringMapSeed<'a> {
    pub(crate) fault: &'a Fault<'a>,
    pub(crate) scope: &'a str,
}

impl<'de> DeserializeSeed<'de> for StringMapSeed<'_> {
    type Value = BTreeMap<String, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for StringMapSeed<'_> {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a map of strings in {}", self.scope)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut out = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            if out.contains_key(&key) {
                return Err(self.fault.duplicate(self.scope, &key));
            }
            out.insert(key, value);
        }
        Ok(out)
    }
}

struct EntrySeed<'a> {
    fault: &'a Fault<'a>,
    tensor: &'a str,
}

impl EntrySeed<'_> {
    fn check(
        &self,
        dtype: Option<Dtype>,
        shape: Option<Vec<usize>>,
        offsets: Option<[u64; 2]>,
    ) -> Result<HeaderEntry> {
        let (file, tensor) = (self.fault.file, self.tensor);
        let missing =
            |field| HeaderError::MissingField { file: file.to_owned(), tensor: tensor.to_owned(), field };
        let dtype = dtype.ok_or_else(|| missing("dtype"))?;
        let shape = shape.ok_or_else(|| missing("shape"))?;
        let [start, end] = offsets.ok_or_else(|| missing("data_offsets"))?;
        let expected = tensor_bytes(file, tensor, dtype, &shape)?;
        let found = end.checked_sub(start).ok_or_else(|| HeaderError::OffsetsReversed {
            file: file.to_owned(),
            tensor: tensor.to_owned(),
            start,
            end,
        })?;
        if found != expected {
            return Err(HeaderError::SizeMismatch {
                file: file.to_owned(),
                tensor: tensor.to_owned(),
                expected,
                found,
            }
            .into());
        }
        Ok(HeaderEntry { dtype, shape, start, end })
    }
}

impl<'de> DeserializeSeed<'de> for EntrySeed<'_> {
    type Value = HeaderEntry;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<HeaderEntry, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EntrySeed<'_> {
    type Value = HeaderEntry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with dtype, shape and data_offsets for tensor {:?}", self.tensor)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HeaderEntry, A::Error> {
        let fault = self.fault;
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let repeated = match key.as_str() {
                "dtype" => {
                    let name = map.next_value::<String>()?;
                    let value = from_name(&name).ok_or_else(|| {
                        fault.raise(HeaderError::UnknownDtype {
                            file: fault.file.to_owned(),
                            tensor: self.tensor.to_owned(),
                            found: name.chars().take(80).collect(),
                        })
                    })?;
                    dtype.replace(value).is_some()
                }
                "shape" => {
                    shape.replace(map.next_value_seed(ShapeSeed { fault, tensor: self.tensor })?).is_some()
                }
                "data_offsets" => offsets.replace(map.next_value::<[u64; 2]>()?).is_some(),
                _ => {
                    return Err(fault.raise(HeaderError::UnknownField {
                        file: fault.file.to_owned(),
                        tensor: self.tensor.to_owned(),
                        found: key.chars().take(80).collect(),
                    }));
                }
            };
            if repeated {
                return Err(fault.duplicate(&format!("tensor {:?}", self.tensor), &key));
            }
        }
        self.check(dtype, shape, offsets).map_err(|e| fault.raise(e))
    }
}

/// A shape, read no further than [`MAX_DIMENSIONS`], so that a header of a hundred million digits costs nothing.
struct ShapeSeed<'a> {
    fault: &'a Fault<'a>,
    tensor: &'a str,
}

impl<'de> DeserializeSeed<'de> for ShapeSeed<'_> {
    type Value = Vec<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<usize>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ShapeSeed<'_> {
    type Value = Vec<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of non-negative integers as the shape of tensor {:?}", self.tensor)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<usize>, A::Error> {
        let mut shape = Vec::new();
        while let Some(dimension) = seq.next_element::<usize>()? {
            if shape.len() == MAX_DIMENSIONS {
                return Err(self.fault.raise(HeaderError::TooManyDimensions {
                    file: self.fault.file.to_owned(),
                    tensor: self.tensor.to_owned(),
                    limit: MAX_DIMENSIONS,
                }));
            }
            shape.push(dimension);
        }
        Ok(shape)
    }
}
