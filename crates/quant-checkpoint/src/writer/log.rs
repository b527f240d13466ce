//! The journal as the thread that writes it has it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Sender;

use crate::error::{CheckpointError, Result};
use crate::writer::journal::{self, Kind};
use crate::writer::storage::{Storage, StorageFile};

/// Where records go, and what the next one has to say.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) segment: Option<Segment>,
    /// Segments that the next record makes worthless.
    pub(super) old: Vec<PathBuf>,
    /// Tensors that this segment does not speak of.
    pub(super) unsaid: Vec<String>,
    pub(super) kept: Arc<AtomicBool>,
    pub(super) acknowledge: Sender<()>,
}

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) file: Box<dyn StorageFile>,
    pub(super) at: u64,
    /// Whether its name is still to be made durable.
    pub(super) new: bool,
}

impl Segment {
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, self.at).map_err(|e| CheckpointError::write(&self.path, e))?;
        self.at += bytes.len() as u64;
        Ok(())
    }
    pub(super) fn frame(&mut self, kind: Kind, content: &[u8]) -> Result<u64> {
        let head = journal::head(kind, content);
        self.write(&head)?;
        self.write(content)?;
        Ok((head.len() + content.len()) as u64)
    }
}

impl Log {
    /// Goes on in a segment behind its first `end` bytes.
    pub(super) fn reopen(&mut self, storage: &dyn Storage, path: PathBuf, end: u64) -> Result<()> {
        let fail = |e| CheckpointError::write(&path, e);
        let mut file = storage.reopen(&path).map_err(fail)?;
        // A rest of an unfinished record could pass for the end of the next one.
        file.truncate(end).and_then(|()| file.sync()).map_err(fail)?;
        self.segment = Some(Segment { path, file, at: end, new: false });
        Ok(())
    }
}
