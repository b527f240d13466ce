//! Numbers in an unnamed file.

use bytemuck::Pod;
use quant_kernels::{Par, tasks};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Bytes that one thread reads or writes at once: long enough for a disk, short enough that all threads have some of a few sequences.
const PIECE_BYTES: usize = 1 << 20;

/// A file of activations that cannot be made, read or written.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Of its file.
    #[error("activations on disk in {}: {source}", .folder.display())]
    File {
        /// Its folder.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
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
///
/// All threads copy from it and to it: a copy by one would have the others wait. What follows a read is on its way from the disk while
/// the caller works with what was read, and the disk is written to by the system, at its own time.
#[derive(Debug)]
pub(super) struct Spilled {
    file: File,
    folder: PathBuf,
    par: Par,
}

impl Spilled {
    /// Zeros, so many bytes of them.
    pub(super) fn new(folder: &Path, bytes: usize, par: Par) -> Result<Self, StoreError> {
        let io = |source| StoreError::File { folder: folder.to_owned(), source };
        let file = tempfile::tempfile_in(folder).map_err(io)?;
        file.set_len(bytes as u64).map_err(io)?;
        Ok(Self { file, folder: folder.to_owned(), par })
    }
    /// The numbers from `first` on.
    pub(super) fn read<N: Pod>(&self, first: usize, out: &mut [N]) -> Result<(), StoreError> {
        let (offset, bytes) = ((first * size_of::<N>()) as u64, bytemuck::cast_slice_mut::<N, u8>(out));
        let next = offset + bytes.len() as u64;
        let pieces = bytes.chunks_mut(PIECE_BYTES);
        let ahead = 0..pieces.len();
        self.pieces(pieces, |at, piece| self.file.read_exact_at(piece, offset + at))?;
        // Whoever reads goes on with what follows, most of the time as much.
        self.pieces(ahead, |at, _| {
            read_ahead(&self.file, next + at);
            Ok(())
        })
    }
    /// Replaces the numbers from `first` on.
    pub(super) fn write<N: Pod>(&self, first: usize, numbers: &[N]) -> Result<(), StoreError> {
        let (offset, bytes) = ((first * size_of::<N>()) as u64, bytemuck::cast_slice::<N, u8>(numbers));
        self.pieces(bytes.chunks(PIECE_BYTES), |at, piece| self.file.write_all_at(piece, offset + at))
    }
    /// Does `work` for every piece, with the position of its first byte among all.
    fn pieces<P: Send>(
        &self,
        pieces: impl Iterator<Item = P> + Send,
        work: impl Fn(u64, P) -> io::Result<()> + Sync,
    ) -> Result<(), StoreError> {
        let done = tasks::try_for_each(pieces.enumerate(), self.par, |(i, piece)| {
            work((i * PIECE_BYTES) as u64, piece)
        });
        done.map_err(|source| StoreError::File { folder: self.folder.clone(), source })
    }
}

/// Has the system fetch the piece at `offset` without waiting for it: of longer ones it fetches the beginning. One that takes no advice
/// reads it when it is read.
#[cfg(target_os = "linux")]
fn read_ahead(file: &File, offset: u64) {
    use rustix::fs::{Advice, fadvise};
    let _ = fadvise(file, offset, std::num::NonZeroU64::new(PIECE_BYTES as u64), Advice::WillNeed);
}

#[cfg(not(target_os = "linux"))]
fn read_ahead(_: &File, _: u64) {}
