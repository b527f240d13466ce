//! Activations of many tokens, in memory or in a file.

use ndarray::{Array2, ArrayViewMut2, Axis, CowArray, Ix2, Slice};
use quant_kernels::views;
use std::fs::File;
use std::ops::Range;
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

/// `[tokens, features]` of f32, written and read by ranges of rows, which are in memory or in an unnamed file.
#[derive(Debug)]
pub struct RowStore {
    rows: usize,
    width: usize,
    backing: Backing,
}

#[derive(Debug)]
enum Backing {
    Memory(Array2<f32>),
    File(Spilled),
}

/// An unnamed file, and the rows of it that are being worked on.
#[derive(Debug)]
struct Spilled {
    file: File,
    folder: PathBuf,
    scratch: Vec<f32>,
}

impl RowStore {
    /// Zeros. `spill` names a folder to hold an unnamed file instead of memory.
    ///
    /// # Errors
    /// A file that cannot be made there.
    pub fn new(rows: usize, width: usize, spill: Option<&Path>) -> Result<Self, StoreError> {
        let backing = match spill {
            None => Backing::Memory(Array2::zeros((rows, width))),
            Some(folder) => {
                let io = |source| StoreError { folder: folder.to_owned(), source };
                let file = tempfile::tempfile_in(folder).map_err(io)?;
                file.set_len((rows * width * size_of::<f32>()) as u64).map_err(io)?;
                Backing::File(Spilled { file, folder: folder.to_owned(), scratch: Vec::new() })
            }
        };
        Ok(Self { rows, width, backing })
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Whether they are in a file.
    #[must_use]
    pub fn is_spilled(&self) -> bool {
        matches!(self.backing, Backing::File(_))
    }

    /// Frees the rows of a file that were worked on last, whose memory is otherwise used again for the next ones: for a store that has to
    /// wait beside many others.
    pub fn rest(&mut self) {
        if let Backing::File(spilled) = &mut self.backing {
            spilled.scratch = Vec::new();
        }
    }

    /// Rows `range`, borrowed from memory or read from the file.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read(&self, range: Range<usize>) -> Result<CowArray<'_, f32, Ix2>, StoreError> {
        match &self.backing {
            Backing::Memory(data) => Ok(views::rows(data.view(), range).into()),
            Backing::File(spilled) => {
                let mut data = Array2::<f32>::zeros((range.len(), self.width));
                if let Some(slice) = data.as_slice_mut() {
                    spilled.read(range.start * self.width, slice)?;
                }
                Ok(data.into())
            }
        }
    }

    /// Replaces rows `range` by what `f` writes into them; it finds old numbers there.
    ///
    /// # Errors
    /// A file that cannot be read or written, and those of `f`.
    pub fn overwrite<E: From<StoreError>>(
        &mut self,
        range: Range<usize>,
        f: impl FnOnce(ArrayViewMut2<'_, f32>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.work_on(range, false, f)
    }

    /// Changes rows `range` in place.
    ///
    /// # Errors
    /// A file that cannot be read or written, and those of `f`.
    pub fn modify<E: From<StoreError>>(
        &mut self,
        range: Range<usize>,
        f: impl FnOnce(ArrayViewMut2<'_, f32>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.work_on(range, true, f)
    }

    fn work_on<E: From<StoreError>>(
        &mut self,
        range: Range<usize>,
        read: bool,
        f: impl FnOnce(ArrayViewMut2<'_, f32>) -> Result<(), E>,
    ) -> Result<(), E> {
        debug_assert!(range.end <= self.rows, "rows outside the store");
        let shape = (range.len(), self.width);
        match &mut self.backing {
            Backing::Memory(data) => f(data.slice_axis_mut(Axis(0), Slice::from(range))),
            Backing::File(spilled) => {
                let mut scratch = std::mem::take(&mut spilled.scratch);
                scratch.resize(shape.0 * shape.1, 0.0);
                let first = range.start * self.width;
                if read {
                    spilled.read(first, &mut scratch)?;
                }
                let mut rows = Array2::from_shape_vec(shape, scratch).unwrap_or_default();
                f(rows.view_mut())?;
                spilled.scratch = rows.into_raw_vec_and_offset().0;
                spilled.write(first)?;
                Ok(())
            }
        }
    }
}

impl Spilled {
    fn read(&self, first: usize, out: &mut [f32]) -> Result<(), StoreError> {
        let offset = (first * size_of::<f32>()) as u64;
        self.file.read_exact_at(bytemuck::cast_slice_mut(out), offset).map_err(|e| self.failed(e))
    }
    /// Writes the scratch rows.
    fn write(&self, first: usize) -> Result<(), StoreError> {
        let offset = (first * size_of::<f32>()) as u64;
        self.file.write_all_at(bytemuck::cast_slice(&self.scratch), offset).map_err(|e| self.failed(e))
    }
    fn failed(&self, source: std::io::Error) -> StoreError {
        StoreError { folder: self.folder.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spilled_store_holds_what_memory_holds() {
        let folder = tempfile::tempdir().unwrap();
        let mut memory = RowStore::new(10, 3, None).unwrap();
        let mut spilled = RowStore::new(10, 3, Some(folder.path())).unwrap();
        for store in [&mut memory, &mut spilled] {
            for start in [4, 0, 7] {
                let x = Array2::from_shape_fn((3, 3), |(i, j)| (start * 10 + i * 3 + j) as f32);
                let written = store.overwrite(start..start + 3, |mut rows| {
                    rows.assign(&x);
                    Ok::<(), StoreError>(())
                });
                written.unwrap();
            }
            let changed = store.modify(1..6, |mut rows| {
                rows += 0.5;
                Ok::<(), StoreError>(())
            });
            changed.unwrap();
            let failed = store.modify(0..2, |_| {
                Err(StoreError { folder: folder.path().into(), source: std::io::ErrorKind::Other.into() })
            });
            assert!(failed.is_err());
            assert_eq!(store.read(1..2).unwrap()[(0, 0)], 3.5);
            store.rest();
        }
        assert_eq!(memory.read(0..10).unwrap(), spilled.read(0..10).unwrap());
        assert_eq!(memory.read(5..6).unwrap(), spilled.read(5..6).unwrap());
    }
}
