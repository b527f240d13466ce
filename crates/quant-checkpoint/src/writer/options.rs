//! What an output folder is asked for, and what it reports in the end.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use super::journal::Identity;
use super::pipeline::WriteStats;
use super::storage::{Disk, Storage};
use super::swap::Leftover;
use crate::hash::TensorHash;

/// What an output folder may do and what it must stay away from.
#[derive(Debug, Clone)]
pub struct OutputOptions {
    /// Replace an existing folder that is not empty. One that this program made is deleted once the new one is in
    /// place; any other is kept beside it, as [`Finished::leftover`] tells.
    pub force: bool,
    /// Folders and files that are read; the output may not be one of them, nor lie inside or around one.
    pub inputs: Vec<PathBuf>,
    /// Bytes that will be written in all, compared with what the file system has free before anything is created.
    pub space: u64,
    /// What becomes of an unfinished output that can be gone on with.
    pub unfinished: Unfinished,
    /// What the job is, for its journal: an unfinished output of another is not gone on with.
    pub identity: Identity,
    /// Where files are created.
    pub storage: Arc<dyn Storage>,
}

impl Default for OutputOptions {
    /// No replacing, no inputs, any space, unfinished work refused, no identity, the real disk.
    fn default() -> Self {
        let (inputs, identity, unfinished) = (Vec::new(), Identity::new(), Unfinished::Refuse);
        Self { force: false, inputs, space: 0, unfinished, identity, storage: Arc::new(Disk) }
    }
}

/// What becomes of an unfinished output with the work of a run that was interrupted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Unfinished {
    /// Nothing: it is an error.
    #[default]
    Refuse,
    /// It is gone on with, if it is the same job's.
    Resume,
    /// It is thrown away.
    Discard,
}

/// A file of a finished folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WrittenFile {
    /// Name relative to the folder.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
}

/// What [`OutputFolder::finish`](super::OutputFolder::finish) reports.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The output folder, absolute.
    pub dir: PathBuf,
    /// All files, in the order in which they were written.
    pub files: Vec<WrittenFile>,
    /// SHA-256 of every tensor.
    pub hashes: BTreeMap<String, TensorHash>,
    /// Where the time went.
    pub stats: WriteStats,
    /// What remains of the folder that was replaced.
    pub leftover: Option<Leftover>,
}
