//! Activations of all calibration tokens between two stages, in memory or spilled to a file.

use crate::PipelineError;
use crate::views;
use ndarray::{Array2, ArrayView2, CowArray, Ix2};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

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
    File { file: File, folder: std::path::PathBuf },
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
                Backing::File { file, folder: folder.to_owned() }
            }
        };
        Ok(Self { rows, width, backing })
    }

    /// Rows `range`, borrowed from memory or read from the file.
    pub(crate) fn read(&self, range: Range<usize>) -> Result<CowArray<'_, f32, Ix2>, PipelineError> {
        match &self.backing {
            Backing::Memory(data) => Ok(views::rows(data, range).into()),
            Backing::File { file, folder } => {
                let mut data = Array2::<f32>::zeros((range.len(), self.width));
                if let Some(slice) = data.as_slice_mut() {
                    let offset = (range.start * self.width * size_of::<f32>()) as u64;
                    file.read_exact_at(bytemuck::cast_slice_mut(slice), offset)
                        .map_err(|source| PipelineError::Io { path: folder.clone(), source })?;
                }
                Ok(data.into())
            }
        }
    }

    /// Replaces the rows from `start` on.
    pub(crate) fn write(&mut self, start: usize, x: ArrayView2<'_, f32>) -> Result<(), PipelineError> {
        debug_assert!(start + x.nrows() <= self.rows && x.ncols() == self.width, "rows outside the store");
        match &mut self.backing {
            Backing::Memory(data) => views::rows_mut(data, start..start + x.nrows()).assign(&x),
            Backing::File { file, folder } => {
                let x = x.as_standard_layout();
                if let Some(slice) = x.as_slice() {
                    let offset = (start * self.width * size_of::<f32>()) as u64;
                    file.write_all_at(bytemuck::cast_slice(slice), offset)
                        .map_err(|source| PipelineError::Io { path: folder.clone(), source })?;
                }
            }
        }
        Ok(())
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
        for start in [4, 0, 7] {
            let x = Array2::from_shape_fn((3, 3), |(i, j)| (start * 10 + i * 3 + j) as f32);
            memory.write(start, x.view()).unwrap();
            spilled.write(start, x.view()).unwrap();
        }
        assert_eq!(memory.read(0..10).unwrap(), spilled.read(0..10).unwrap());
        assert_eq!(memory.read(5..6).unwrap(), spilled.read(5..6).unwrap());
    }
}
