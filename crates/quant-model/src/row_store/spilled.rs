//! Numbers in an unnamed file.

use bytemuck::Pod;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A file of activations that cannot be made, read or written.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Of its file.
    #[error("activations on disk in {}: {source}", .folder.display())]
    File {
        /// Its folder.
        folder: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system has not the memory.
    #[error("activations of {bytes} bytes do not fit in memory; give a folder to keep them on disk")]
    Memory {
        /// How many it takes.
        bytes: u64,
    },
}

/// Refuses zeros `[rows, width]` of `N` that the system would not give: it is asked first, since an array that cannot be had ends the
/// process.
pub(super) fn check_memory<N>(rows: usize, width: usize) -> Result<(), StoreError> {
    let fits = |numbers: &usize| Vec::<N>::new().try_reserve_exact(*numbers).is_ok();
    match rows.checked_mul(width).filter(fits) {
        Some(_) => Ok(()),
        None => {
            Err(StoreError::Memory { bytes: (rows as u64).saturating_mul((width * size_of::<N>()) as u64) })
        }
    }
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
        let io = |source| StoreError::File { folder: folder.to_owned(), source };
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
        StoreError::File { folder: self.folder.clone(), source }
    }
}
