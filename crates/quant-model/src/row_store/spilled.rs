//! Numbers in an unnamed file.

use bytemuck::Pod;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A file of activations that cannot be made, read or written.
#[derive(Debug, Error)]
#[error("activations on disk in {}: {source}", .folder.display())]
pub struct StoreError {
    /// Its folder.
    pub folder: PathBuf,
    /// What the system said.
    pub source: std::io::Error,
}

/// An unnamed file of numbers, all of one type.
#[derive(Debug)]
pub(super) struct Spilled {
    file: File,
    folder: PathBuf,
}

impl Spilled {
    /// Zeros, so many bytes of them.
    pub(super) fn new(folder: &Path, bytes: usize) -> Result<Self, StoreError> {
        let io = |source| StoreError { folder: folder.to_owned(), source };
        let file = tempfile::tempfile_in(folder).map_err(io)?;
        file.set_len(bytes as u64).map_err(io)?;
        Ok(Self { file, folder: folder.to_owned() })
    }
    /// The numbers from `first` on.
    pub(super) fn read<N: Pod>(&self, first: usize, out: &mut [N]) -> Result<(), StoreError> {
        let offset = (first * size_of::<N>()) as u64;
        self.file.read_exact_at(bytemuck::cast_slice_mut(out), offset).map_err(|e| self.failed(e))
    }
    /// Replaces the numbers from `first` on.
    pub(super) fn write<N: Pod>(&self, first: usize, numbers: &[N]) -> Result<(), StoreError> {
        let offset = (first * size_of::<N>()) as u64;
        self.file.write_all_at(bytemuck::cast_slice(numbers), offset).map_err(|e| self.failed(e))
    }
    fn failed(&self, source: std::io::Error) -> StoreError {
        StoreError { folder: self.folder.clone(), source }
    }
}
