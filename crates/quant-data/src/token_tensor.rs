//! Token ids stored as one safetensors tensor `[sequences, length]`.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde::de::Error as _;

use crate::files::{MAX_FILE_BYTES, read_model_file};
use crate::json::refuse_double_keys;
use crate::{DataError, Sampling, TokenSet};

/// Rows taken from a tensor.
pub(crate) struct Rows {
    pub(crate) sequences: Vec<Vec<u32>>,
    pub(crate) sampling: Sampling,
}

impl Rows {
    pub(crate) fn into_set(self, source: String, warnings: Vec<String>) -> TokenSet {
        let Self { sequences, sampling } = self;
        TokenSet { sequences, source, reading: None, longest_text: 0, sampling, warnings }
    }
}

/// Reads the first `max_rows` rows, each cut to its first `max_length` ids, and checks every id taken.
pub(crate) fn read_rows(
    path: &Path,
    tensor: &str,
    max_rows: Option<usize>,
    max_length: Option<usize>,
    vocab_size: usize,
) -> Result<Rows, DataError> {
    let fail =
        |reason: String| DataError::TokenTensor { path: path.to_owned(), tensor: tensor.to_owned(), reason };
    let bytes = read_model_file(path, MAX_FILE_BYTES)?;
    let file =
        SafeTensors::deserialize(&bytes).map_err(|e| fail(format!("not a valid safetensors file: {e}")))?;
    refuse_duplicate_names(&bytes).map_err(|e| fail(format!("not a valid safetensors file: {e}")))?;
    let view = file.tensor(tensor).map_err(|_| {
        let mut names = file.names().iter().map(ToString::to_string).collect::<Vec<_>>();
        names.sort_unstable();
        names.truncate(16);
        fail(format!("the file has no such tensor; it holds: {}", names.join(", ")))
    })?;
    let [rows, stored_length] = *view.shape() else {
        return Err(fail(format!("shape {:?}, expected [sequences, length]", view.shape())));
    };
    let source = format!("{}:{tensor}", path.display());
    let width = match view.dtype() {
        Dtype::I32 => 4,
        Dtype::I64 => 8,
        other => return Err(fail(format!("dtype {other:?}, expected I32 or I64 token ids"))),
    };
    let length = max_length.unwrap_or(stored_length).min(stored_length);
    let taken = max_rows.unwrap_or(rows).min(rows);
    if taken == 0 || length == 0 {
        return Err(DataError::Empty {
            source_name: source,
            found: format!("no token: a tensor of shape [{rows}, {stored_length}]"),
            advice: "at least one row of one token id is needed",
        });
    }
    let mut sequences = Vec::with_capacity(taken);
    for (row, stored) in view.data().chunks_exact(stored_length * width).take(taken).enumerate() {
        let mut ids = Vec::with_capacity(length);
        for (column, raw) in stored.chunks_exact(width).take(length).enumerate() {
            let id = signed(raw);
            match u32::try_from(id) {
                Ok(small) if (small as usize) < vocab_size => ids.push(small),
                _ => {
                    return Err(DataError::OutOfVocabulary {
                        source_name: source,
                        row,
                        column,
                        id,
                        vocab_size,
                    });
                }
            }
        }
        sequences.push(ids);
    }
    Ok(Rows { sequences, sampling: Sampling::Rows { rows, length, stored_length } })
}

/// Little-endian two's complement of 4 or 8 bytes.
fn signed(raw: &[u8]) -> i64 {
    let sign = if raw.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
    let mut wide = [sign; 8];
    for (to, from) in wide.iter_mut().zip(raw) {
        *to = *from;
    }
    i64::from_le_bytes(wide)
}

/// The format crate keeps the last of two equal header keys; a file that says two things about one tensor is
/// refused.
fn refuse_duplicate_names(bytes: &[u8]) -> Result<(), serde_json::Error> {
    let header = bytes.get(..8).and_then(|n| {
        let length = usize::try_from(u64::from_le_bytes(n.try_into().ok()?)).ok()?;
        bytes.get(8..length.checked_add(8)?)
    });
    let header = header.ok_or_else(|| serde_json::Error::custom("the header is cut off"))?;
    refuse_double_keys(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;
    use std::path::PathBuf;

    fn file(folder: &Path, dtype: Dtype, shape: Vec<usize>, data: &[u8]) -> PathBuf {
        let path = folder.join("t.safetensors");
        let view = TensorView::new(dtype, shape, data).unwrap();
        std::fs::write(&path, safetensors::serialize([("ids", view)], None).unwrap()).unwrap();
        path
    }

    fn i32s(values: &[i32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn rows_are_read_in_order_and_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path(), Dtype::I32, vec![3, 2], &i32s(&[0, 1, 2, 3, 4, 5]));
        let all = read_rows(&path, "ids", None, None, 6).unwrap();
        assert_eq!(all.sequences, [vec![0, 1], vec![2, 3], vec![4, 5]]);
        let cut = read_rows(&path, "ids", Some(2), Some(1), 6).unwrap();
        assert_eq!(cut.sequences, [vec![0], vec![2]]);
        assert_eq!(cut.sampling, Sampling::Rows { rows: 3, length: 1, stored_length: 2 });
        let wide: Vec<u8> = [7_i64, 8].iter().flat_map(|v| v.to_le_bytes()).collect();
        let path = file(folder.path(), Dtype::I64, vec![1, 2], &wide);
        assert_eq!(read_rows(&path, "ids", Some(9), Some(9), 9).unwrap().sequences, [vec![7, 8]]);
    }

    #[test]
    fn bad_ids_name_row_and_column() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path(), Dtype::I32, vec![2, 2], &i32s(&[0, 1, 2, -1]));
        let error = read_rows(&path, "ids", None, None, 6).err().unwrap();
        assert!(matches!(error, DataError::OutOfVocabulary { row: 1, column: 1, id: -1, vocab_size: 6, .. }));
        assert!(read_rows(&path, "ids", Some(1), None, 6).is_ok(), "rows that are not used are not judged");
        let wide: Vec<u8> = [1_i64 << 40].iter().flat_map(|v| v.to_le_bytes()).collect();
        let path = file(folder.path(), Dtype::I64, vec![1, 1], &wide);
        let error = read_rows(&path, "ids", None, None, usize::MAX).err().unwrap();
        assert!(matches!(error, DataError::OutOfVocabulary { id: 1_099_511_627_776, .. }));
    }

    #[test]
    fn malformed_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let message =
            |path: &Path, tensor: &str| read_rows(path, tensor, None, None, 9).err().unwrap().to_string();
        let path = file(folder.path(), Dtype::I32, vec![2], &i32s(&[0, 1]));
        assert!(message(&path, "ids").contains("expected [sequences, length]"));
        assert!(message(&path, "other").contains("it holds: ids"));
        let path = file(folder.path(), Dtype::F32, vec![1, 1], &[0; 4]);
        assert!(message(&path, "ids").contains("expected I32 or I64"));
        for shape in [vec![0, 4], vec![4, 0]] {
            let path = file(folder.path(), Dtype::I32, shape, &[]);
            assert!(message(&path, "ids").contains("no token"));
        }
        std::fs::write(&path, [255; 20]).unwrap();
        assert!(message(&path, "ids").contains("not a valid safetensors file"));
        std::fs::write(&path, []).unwrap();
        assert!(message(&path, "ids").contains("not a valid safetensors file"));
        let header = r#"{"ids":{"dtype":"I32","shape":[1,2],"data_offsets":[0,8]},"ids":{"dtype":"I32","shape":[2,1],"data_offsets":[0,8]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([0; 8]);
        std::fs::write(&path, bytes).unwrap();
        assert!(message(&path, "ids").contains("not a valid safetensors file"));
    }
}
