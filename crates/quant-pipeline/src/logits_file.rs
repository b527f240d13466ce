//! The file that `--save-logits` names.

use crate::PipelineError;
use quant_checkpoint::{Dtype, Header};
use quant_graph::BoxError;
use std::fs::{File, Permissions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Name of the only tensor.
const TENSOR: &str = "logits";

/// One tensor `logits`, f32 `[sequences, length, vocabulary]`, written as it is computed into an unfinished file beside its
/// place, and renamed when complete. Dropping it unfinished removes that file.
pub(crate) struct LogitsFile {
    unfinished: NamedTempFile,
    target: PathBuf,
    data_start: u64,
    vocabulary: usize,
}

impl LogitsFile {
    /// Checks the place and opens an unfinished file there. `folders` (the models) must not contain it and `data` (the
    /// tokens) must not be it. All of this happens before anything is computed.
    ///
    /// # Errors
    /// [`PipelineError::Usage`] for a place that would cost the person a file, [`PipelineError::Logits`] for one that
    /// cannot be written.
    pub(crate) fn create(
        path: &Path,
        folders: &[&Path],
        data: &Path,
        sequences: &[Vec<u32>],
        vocabulary: usize,
    ) -> Result<Self, PipelineError> {
        let length = sequences.first().map_or(0, Vec::len);
        if sequences.iter().any(|s| s.len() != length) {
            return Err(PipelineError::Usage(
                "--save-logits writes one rectangular tensor, and these sequences have different lengths"
                    .into(),
            ));
        }
        let (parent, target) = place(path, folders, data)?;
        let bytes = 4 * sequences.len() as u64 * length as u64 * vocabulary as u64;
        let header = serde_json::json!({TENSOR: {
            "dtype": "F32", "shape": [sequences.len(), length, vocabulary], "data_offsets": [0, bytes]}});
        let mut header = header.to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut start = (header.len() as u64).to_le_bytes().to_vec();
        start.extend(header);
        let io = |source| PipelineError::Logits { path: path.to_owned(), source };
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(target.file_name().unwrap_or_default());
        prefix.push(".");
        let unfinished = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".partial")
            // As for any other output: what the umask leaves of it.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(&parent)
            .map_err(io)?;
        let data_start = start.len() as u64;
        // A file of its final size at once: what the file system will not hold is known before the work.
        unfinished.as_file().set_len(data_start + bytes).map_err(io)?;
        unfinished.as_file().write_all_at(&start, 0).map_err(io)?;
        Ok(Self { unfinished, target, data_start, vocabulary })
    }

    /// Writes the logits `[positions, tokens]` of some tokens of the vocabulary at some positions, counted through all
    /// sequences.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn write(
        &self,
        positions: Range<usize>,
        tokens: Range<usize>,
        panel: ndarray::ArrayView2<'_, f32>,
    ) -> Result<(), BoxError> {
        let panel = panel.as_standard_layout();
        for (position, row) in positions.zip(panel.rows()) {
            let offset =
                self.data_start + 4 * (position as u64 * self.vocabulary as u64 + tokens.start as u64);
            let bytes = bytemuck::cast_slice(row.to_slice().unwrap_or_default());
            self.unfinished.as_file().write_all_at(bytes, offset)?;
        }
        Ok(())
    }

    /// Makes the file durable and puts it in its place.
    ///
    /// # Errors
    /// As of [`Self::create`]: the place may have been taken in the meantime.
    pub(crate) fn finish(self) -> Result<(), PipelineError> {
        let io = |source| PipelineError::Logits { path: self.target.clone(), source };
        self.unfinished.as_file().sync_all().map_err(io)?;
        replaceable(&self.target)?;
        self.unfinished.persist(&self.target).map_err(|e| io(e.error))?;
        Ok(())
    }
}

/// The folder of `path` and `path` itself, both with links resolved, if a file may be put there.
fn place(path: &Path, folders: &[&Path], data: &Path) -> Result<(PathBuf, PathBuf), PipelineError> {
    let Some(name) = path.file_name() else {
        return Err(refused(path, "it names no file"));
    };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let parent = match parent.canonicalize() {
        Ok(real) if real.is_dir() => real,
        Err(source) if !matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(PipelineError::Logits { path: path.to_owned(), source });
        }
        _ => return Err(refused(path, &format!("there is no folder {}", parent.display()))),
    };
    let target = parent.join(name);
    for folder in folders {
        let real = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
        if target.starts_with(&real) {
            let reason = format!("it lies in {}, and models are never written to", real.display());
            return Err(refused(path, &reason));
        }
    }
    if data.canonicalize().is_ok_and(|data| data == target) {
        return Err(refused(path, "it is the file of the data to score"));
    }
    replaceable(&target)?;
    Ok((parent, target))
}

/// Lets nothing be replaced but logits that were saved before.
fn replaceable(target: &Path) -> Result<(), PipelineError> {
    let io = |source| PipelineError::Logits { path: target.to_owned(), source };
    let kind = match target.symlink_metadata() {
        Ok(metadata) => metadata.file_type(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(io(source)),
    };
    if !kind.is_file() {
        let what = if kind.is_dir() { "it is a folder" } else { "it exists and is not a plain file" };
        return Err(refused(target, what));
    }
    let file = File::open(target).map_err(io)?;
    let saved_before = Header::read(target, TENSOR, &file)
        .is_ok_and(|h| h.tensors.len() == 1 && h.tensors.get(TENSOR).is_some_and(|t| t.dtype == Dtype::F32));
    if saved_before {
        return Ok(());
    }
    Err(refused(
        target,
        "it exists and holds something other than saved logits; remove it or choose another name",
    ))
}

fn refused(path: &Path, reason: &str) -> PipelineError {
    PipelineError::Usage(format!("--save-logits {}: {reason}", path.display()))
}
