//! Activations of all calibration tokens between two stages, in memory or spilled to a file.

use crate::PipelineError;
use crate::views;
use ndarray::{Array2, ArrayViewMut2, CowArray, Ix2};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// `[tokens, features]` of f32, written and read by row ranges.
#[derive(Debug)]
pub(crate) struct Store {
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

impl Store {
    /// Zeros. `spill` names a folder to hold an unnamed file instead of memory.
    pub(crate) fn new(rows: usize, width: usize, spill: Option<&Path>) -> Result<Self, PipelineError> {
        let backing = match spill {
            None => Backing::Memory(Array2::zeros((rows, width))),
            Some(folder) => {
                let io = |source| PipelineError::Io { path: folder.to_owned(), source };
                let file = tempfile::tempfile_in(folder).map_err(io)?;
                file.set_len((rows * width * size_of::<f32>()) as u64).map_err(io)?;
                Backing::File(Spilled { file, folder: folder.to_owned(), scratch: Vec::new() })
            }
        };
        Ok(Self { rows, width, backing })
    }

    /// Rows `range`, borrowed from memory or read from the file.
    pub(crate) fn read(&self, range: Range<usize>) -> Result<CowArray<'_, f32, Ix2>, PipelineError> {
        match &self.backing {
            Backing::Memory(data) => Ok(views::rows(data, range).into()),
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
    pub(crate) fn overwrite(
        &mut self,
        range: Range<usize>,
        f: impl FnOnce(ArrayViewMut2<'_, f32>) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        self.work_on(range, false, f)
    }

    /// Changes rows `range` in place.
    pub(crate) fn modify(
        &mut self,
        range: Range<usize>,
        f: impl FnOnce(ArrayViewMut2<'_, f32>) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        self.work_on(range, true, f)
    }

    fn work_on(
        &mut self,
        range: Range<usize>,
        read: bool,
        f: impl FnOnce(ArrayViewMut2<'_, f32>) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        debug_assert!(range.end <= self.rows, "rows outside the store");
        let shape = (range.len(), self.width);
        match &mut self.backing {
            Backing::Memory(data) => f(views::rows_mut(data, range)),
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
    fn read(&self, first: usize, out: &mut [f32]) -> Result<(), PipelineError> {
        let offset = (first * size_of::<f32>()) as u64;
        self.file.read_exact_at(bytemuck::cast_slice_mut(out), offset).map_err(|e| self.failed(e))
    }
    /// Writes the scratch rows.
    fn write(&self, first: usize) -> Result<(), PipelineError> {
        let offset = (first * size_of::<f32>()) as u64;
        self.file.write_all_at(bytemuck::cast_slice(&self.scratch), offset).map_err(|e| self.failed(e))
    }
    fn failed(&self, source: std::io::Error) -> PipelineError {
        PipelineError::Io { path: self.folder.clone(), source }
    }
}

/// How calibration sequences are laid out as rows, and the chunks they are processed in.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// First row of every sequence, and the number of rows at the end.
    pub(crate) starts: Vec<usize>,
    /// Runs of whole sequences of about [`CHUNK`] rows.
    pub(crate) chunks: Vec<Range<usize>>,
}

/// Rows processed at a time: enough for full matrix-product speed, few enough that temporaries stay small.
pub(crate) const CHUNK: usize = 1024;

impl Layout {
    pub(crate) fn new(lengths: impl Iterator<Item = usize>) -> Self {
        let mut starts = vec![0];
        let mut rows = 0;
        for length in lengths {
            rows += length;
            starts.push(rows);
        }
        let mut chunks = Vec::new();
        let mut first = 0;
        for i in 1..starts.len() {
            let is_last = i + 1 == starts.len();
            if is_last || starts[i + 1] - starts[first] > CHUNK {
                chunks.push(first..i);
                first = i;
            }
        }
        Self { starts, chunks }
    }
    pub(crate) fn rows(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }
    /// Rows of a chunk of sequences.
    pub(crate) fn rows_of(&self, chunk: &Range<usize>) -> Range<usize> {
        self.starts[chunk.start]..self.starts[chunk.end]
    }
    /// Rows of the longest sequence.
    pub(crate) fn longest(&self) -> usize {
        self.lengths().max().unwrap_or(0)
    }
    /// Rows of every sequence.
    pub(crate) fn lengths(&self) -> impl Iterator<Item = usize> + '_ {
        self.starts.windows(2).map(|pair| pair[1] - pair[0])
    }
    /// Rows of the largest chunk.
    pub(crate) fn largest_chunk(&self) -> usize {
        self.chunks.iter().map(|c| self.rows_of(c).len()).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_whole_sequences_that_cover_everything() {
        for lengths in [vec![512; 16], vec![5000, 10, 10, 3000], vec![1], vec![2048, 2048], vec![700; 7]] {
            let layout = Layout::new(lengths.iter().copied());
            assert_eq!(layout.rows(), lengths.iter().sum::<usize>());
            let covered: Vec<usize> = layout.chunks.iter().cloned().flatten().collect();
            assert_eq!(covered, (0..lengths.len()).collect::<Vec<_>>(), "{lengths:?}");
            for chunk in &layout.chunks {
                assert!(chunk.len() == 1 || layout.rows_of(chunk).len() <= CHUNK, "{lengths:?}: {chunk:?}");
            }
        }
        assert_eq!(Layout::new(vec![512; 16].into_iter()).chunks.len(), 8);
    }

    #[test]
    fn a_spilled_store_holds_what_memory_holds() {
        let folder = tempfile::tempdir().unwrap();
        let mut memory = Store::new(10, 3, None).unwrap();
        let mut spilled = Store::new(10, 3, Some(folder.path())).unwrap();
        for store in [&mut memory, &mut spilled] {
            for start in [4, 0, 7] {
                let x = Array2::from_shape_fn((3, 3), |(i, j)| (start * 10 + i * 3 + j) as f32);
                let written = store.overwrite(start..start + 3, |mut rows| {
                    rows.assign(&x);
                    Ok(())
                });
                written.unwrap();
            }
            let changed = store.modify(1..6, |mut rows| {
                rows += 0.5;
                Ok(())
            });
            changed.unwrap();
            let failed = store.modify(0..2, |_| Err(PipelineError::Interrupted));
            assert!(failed.is_err());
            assert_eq!(store.read(1..2).unwrap()[(0, 0)], 3.5);
        }
        assert_eq!(memory.read(0..10).unwrap(), spilled.read(0..10).unwrap());
        assert_eq!(memory.read(5..6).unwrap(), spilled.read(5..6).unwrap());
    }
}
