//! How calibration sequences are laid out as rows.

use crate::PipelineError;
use quant_graph::BlockSource;
use quant_model::RowStore;
use std::ops::Range;

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
    /// First row of every sequence of a chunk, and the row after its last.
    pub(crate) fn starts_of(&self, chunk: &Range<usize>) -> &[usize] {
        &self.starts[chunk.start..=chunk.end]
    }
    /// Rows of the longest sequence.
    pub(crate) fn longest(&self) -> usize {
        self.lengths().max().unwrap_or(0)
    }
    /// Rows of every sequence.
    pub(crate) fn lengths(&self) -> impl Iterator<Item = usize> + '_ {
        self.starts.windows(2).map(|pair| pair[1] - pair[0])
    }
    /// Writes the rows of one store into another.
    pub(crate) fn copy(&self, from: &RowStore, to: &mut RowStore) -> Result<(), PipelineError> {
        for chunk in &self.chunks {
            let rows = self.rows_of(chunk);
            let from = from.read(rows.clone())?;
            to.overwrite::<PipelineError>(rows, |mut to| {
                to.assign(&from);
                Ok(())
            })?;
        }
        Ok(())
    }
    /// Writes the embedding rows of all sequences into a store.
    pub(crate) fn embed(
        &self,
        source: &mut dyn BlockSource,
        sequences: &[Vec<u32>],
        to: &mut RowStore,
    ) -> Result<(), PipelineError> {
        for (sequence, ids) in sequences.iter().enumerate() {
            let rows = source.embed(ids)?;
            to.overwrite::<PipelineError>(self.rows_of(&(sequence..sequence + 1)), |mut to| {
                to.assign(&rows);
                Ok(())
            })?;
        }
        Ok(())
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
}
