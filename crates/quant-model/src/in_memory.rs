//! A model whose numbers are all in memory.

use crate::ModelError;
use ndarray::{Array1, Array2, Axis};
use quant_graph::{BlockParams, BlockSource, ModelSpec, Rows, SourceError};
use quant_kernels::views;

/// A [`BlockSource`] in memory: test models, and models right after fake quantisation.
#[derive(Clone, Debug, PartialEq)]
pub struct InMemoryModel {
    spec: ModelSpec,
    blocks: Vec<BlockParams>,
    embedding: Array2<f32>,
    final_norm: Array1<f32>,
    head: Option<Array2<f32>>,
}

impl InMemoryModel {
    /// `embedding` is `[vocab, hidden]`, `final_norm` `[hidden]`, `head` `[vocab, hidden]` and present exactly when the
    /// model is not tied. Blocks are checked when they are run.
    ///
    /// # Errors
    /// [`ModelError::Shape`] naming what does not fit.
    pub fn new(
        spec: ModelSpec,
        blocks: Vec<BlockParams>,
        embedding: Array2<f32>,
        final_norm: Array1<f32>,
        head: Option<Array2<f32>>,
    ) -> Result<Self, ModelError> {
        let check = |what: &str, expected: &[usize], found: &[usize]| {
            if expected == found {
                return Ok(());
            }
            let (expected, found) = (expected.to_vec(), found.to_vec());
            Err(ModelError::Shape { what: what.into(), expected, found })
        };
        let table = [spec.vocab, spec.hidden];
        check("number of blocks", &[spec.layers], &[blocks.len()])?;
        check(ModelSpec::EMBEDDING, &table, embedding.shape())?;
        check(ModelSpec::FINAL_NORM, &[spec.hidden], final_norm.shape())?;
        let expected: &[usize] = if spec.tied { &[] } else { &table };
        check(ModelSpec::HEAD, expected, head.as_ref().map_or(&[], |h| h.shape()))?;
        Ok(Self { spec, blocks, embedding, final_norm, head })
    }
    /// Reads all of another source.
    ///
    /// # Errors
    /// [`ModelError::Source`] if it fails, and as [`Self::new`].
    pub fn load(source: &mut dyn BlockSource) -> Result<Self, ModelError> {
        let spec = source.spec().clone();
        let blocks = (0..spec.layers).map(|i| source.block(i)).collect::<Result<_, _>>()?;
        // The vocabulary is bounded when the config is read.
        let ids: Vec<u32> = (0..spec.vocab).filter_map(|id| u32::try_from(id).ok()).collect();
        let embedding = source.embed(&ids)?;
        let final_norm = source.final_norm()?;
        let head = if spec.tied { None } else { Some(source.head(0..spec.vocab)?) };
        Self::new(spec, blocks, embedding, final_norm, head)
    }
    /// The embedding `[vocab, hidden]`, for replacing its numbers in place.
    pub fn embedding_mut(&mut self) -> &mut Array2<f32> {
        &mut self.embedding
    }
    /// The blocks, for replacing their numbers in place.
    pub fn blocks_mut(&mut self) -> &mut [BlockParams] {
        &mut self.blocks
    }
}

impl BlockSource for InMemoryModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }
    fn block(&mut self, index: usize) -> Result<BlockParams, SourceError> {
        let count = self.blocks.len();
        let block = self.blocks.get(index).cloned();
        block.ok_or_else(|| missing(self.spec.block_prefix(index), format!("the model has {count} blocks")))
    }
    fn embed(&mut self, ids: &[u32]) -> Result<Array2<f32>, SourceError> {
        let rows: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
        match rows.iter().find(|&&row| row >= self.embedding.nrows()) {
            Some(row) => Err(missing(
                format!("row {row} of {}", ModelSpec::EMBEDDING),
                format!("the vocabulary has {} tokens", self.spec.vocab),
            )),
            None => Ok(self.embedding.select(Axis(0), &rows)),
        }
    }
    fn final_norm(&mut self) -> Result<Array1<f32>, SourceError> {
        Ok(self.final_norm.clone())
    }
    fn head(&mut self, rows: Rows) -> Result<Array2<f32>, SourceError> {
        let table = self.head.as_ref().unwrap_or(&self.embedding);
        if rows.start > rows.end || rows.end > table.nrows() {
            let there = format!("there are {} rows", table.nrows());
            return Err(missing(format!("rows {rows:?} of {}", ModelSpec::HEAD), there));
        }
        Ok(views::rows(table.view(), rows).to_owned())
    }
}

fn missing(what: String, why: String) -> SourceError {
    SourceError::new(what, "the model in memory", why)
}
