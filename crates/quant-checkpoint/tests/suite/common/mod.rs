//! Building good and bad safetensors files by hand, independent of the crate's writer.
#![allow(dead_code, unused_macros, reason = "each test program uses a part")]

pub(crate) mod output;

use std::fs;
use std::path::{Path, PathBuf};

use quant_checkpoint::{Checkpoint, CheckpointError};

/// Checks that a result is an error of a pattern, and gives it.
macro_rules! assert_error {
    ($result:expr, $pattern:pat $(if $guard:expr)?) => {{
        let error = $result.map(|_| ()).unwrap_err();
        assert!(matches!(&error, $pattern $(if $guard)?), "{error:?}");
        error
    }};
}

/// A file of the given header text and data; the length field is that of the text.
pub(crate) fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
    out
}

/// A valid file of the tensors `(name, dtype, shape, bytes)`, in this order.
pub(crate) fn valid(tensors: &[(&str, &str, &[usize], &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut entries = vec![r#""__metadata__":{"format":"pt"}"#.to_owned()];
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend_from_slice(bytes);
        entries.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{}]}}"#,
            data.len()
        ));
    }
    raw(&format!("{{{}}}", entries.join(",")), &data)
}

/// Little-endian bytes of f32 values.
pub(crate) fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A temporary folder with `config.json` and the given files.
pub(crate) struct Folder {
    pub(crate) root: tempfile::TempDir,
}

impl Folder {
    pub(crate) fn new(files: &[(&str, &[u8])]) -> Self {
        let out = Self { root: tempfile::tempdir().unwrap() };
        fs::create_dir(out.dir()).unwrap();
        out.put("config.json", br#"{"model_type": "llama", "hidden_size": 4}"#);
        for (name, bytes) in files {
            out.put(name, bytes);
        }
        out
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.root.path().join("model")
    }

    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.dir().join(name), bytes).unwrap();
    }
}

/// All files below `dir` with their contents, sorted by name.
pub(crate) fn snapshot(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut out = Vec::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(at) = pending.pop() {
        for entry in fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_string_lossy().into_owned();
                out.push((name, fs::read(&path).unwrap()));
            }
        }
    }
    out.sort();
    out
}

/// Names of the entries of `dir`, sorted.
pub(crate) fn entries(dir: &Path) -> Vec<String> {
    let mut out: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    out.sort();
    out
}

/// A file with one small tensor.
pub(crate) fn one(name: &str) -> Vec<u8> {
    valid(&[(name, "F32", &[2], &f32s(&[1.0, 2.0]))])
}

/// Opens a folder of these files, which is gone afterwards.
pub(crate) fn open(files: &[(&str, &[u8])]) -> Result<Checkpoint, CheckpointError> {
    let folder = Folder::new(files);
    Checkpoint::open(folder.dir())
}

/// An index file of tensor and file names.
pub(crate) fn index(map: &[(&str, &str)]) -> Vec<u8> {
    let rows: Vec<_> = map.iter().map(|(t, f)| format!("{t:?}: {f:?}")).collect();
    format!(r#"{{"metadata": {{"total_size": 16}}, "weight_map": {{{}}}}}"#, rows.join(", ")).into_bytes()
}
