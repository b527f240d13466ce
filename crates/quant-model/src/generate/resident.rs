//! A model whose blocks are all in memory.

use super::head::Head;
use crate::error::expect_shape;
use crate::ops::norm::normed;
use crate::{Arithmetic, Block, ModelError, PagedCache, Span, StageScratch};
use ndarray::{Array1, Array2, Axis};
use quant_graph::{BlockSource, ModelSpec};
use quant_kernels::Par;
use std::ops::ControlFlow;

/// Told (blocks read, blocks in all) while a model is read, and asked whether to go on.
pub type LoadProgress<'a> = dyn FnMut(usize, usize) -> ControlFlow<()> + 'a;

/// All blocks, ready to run, the head, and a source of embeddings.
#[derive(Debug)]
pub struct ResidentModel<S> {
    source: S,
    spec: ModelSpec,
    blocks: Vec<Block<f32>>,
    final_norm: Array1<f32>,
    head: Head,
    scratch: StageScratch<f32>,
    par: Par,
}

impl<S: BlockSource> ResidentModel<S> {
    /// Reads a model. Float weights whose numbers are all bf16 are held as such ([`Arithmetic::narrow`]).
    ///
    /// # Errors
    /// [`ModelError::Stopped`] after `progress` has said `Break`; [`ModelError::Source`], [`ModelError::Shape`], [`ModelError::Part`] for
    /// a source that does not hold what its spec says.
    pub fn load(
        mut source: S,
        arithmetic: impl Into<Arithmetic>,
        par: Par,
        progress: &mut LoadProgress<'_>,
    ) -> Result<Self, ModelError> {
        let (spec, arithmetic) = (source.spec().clone(), arithmetic.into().narrow());
        let mut blocks = Vec::with_capacity(spec.layers);
        for index in 0..spec.layers {
            if progress(index, spec.layers).is_break() {
                return Err(ModelError::Stopped);
            }
            let params = source.block(index)?;
            blocks.push(Block::new(&spec, index, params, arithmetic.clone(), par)?);
        }
        let final_norm = source.final_norm()?;
        expect_shape(ModelSpec::FINAL_NORM, &[spec.hidden], final_norm.shape())?;
        let head = Head::read(&mut source, arithmetic.compute, par)?;
        Ok(Self { source, spec, blocks, final_norm, head, scratch: StageScratch::default(), par })
    }

    /// The shape of the model.
    #[must_use]
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }
    /// Its blocks.
    #[must_use]
    pub fn blocks(&self) -> &[Block<f32>] {
        &self.blocks
    }
    /// Bytes of the weights it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let linears = |block: &Block<f32>| {
            let of = |l: &quant_graph::LinearSpec| block.linear(l.id).map_or(0, |linear| linear.bytes());
            block.spec().linears.iter().map(of).sum::<usize>()
        };
        self.head.bytes() + self.blocks.iter().map(linears).sum::<usize>()
    }
    /// An empty cache of every block.
    ///
    /// # Errors
    /// As of [`Block::paged_cache`].
    pub fn caches(&self) -> Result<Vec<PagedCache>, ModelError> {
        self.blocks.iter().map(|block| block.paged_cache(&self.spec)).collect()
    }

    /// Takes tokens `ids` through the model: those of `spans` behind what `caches`, one of every block, hold of their sequences. Logits
    /// `[rows, vocab]` of the rows `rows` come back; each predicts the token behind its own.
    ///
    /// # Errors
    /// [`ModelError::Source`] for ids outside the vocabulary; as of [`Block::step`].
    pub fn step(
        &mut self,
        ids: &[u32],
        spans: &[Span<'_>],
        caches: &mut [PagedCache],
        rows: &[usize],
    ) -> Result<Array2<f32>, ModelError> {
        let mut h = self.source.embed(ids)?;
        expect_shape(ModelSpec::EMBEDDING, &[ids.len(), self.spec.hidden], h.shape())?;
        for (block, cache) in self.blocks.iter().zip(caches) {
            block.step(h.view_mut(), spans, cache, &mut self.scratch, self.par)?;
        }
        let last = h.select(Axis(0), rows);
        let eps = self.spec.norm_eps as f32;
        let last = normed(last.view(), self.final_norm.view(), eps, Par::Seq);
        Ok(self.head.logits(last.view(), self.par))
    }
}
