//! What streams of hidden states are carried with.

use crate::PipelineError;
use crate::events::Events;
use crate::layout::Layout;
use ndarray::{ArrayView2, ArrayViewMut2};
use quant_graph::{BlockParams, BlockSource, ModelSpec, Site};
use quant_kernels::Par;
use quant_model::{Arithmetic, Block, MLP_ROWS, RopeTables, RowStore, StageScratch, Walk};
use std::ops::ControlFlow;
use std::path::Path;

/// Is shown the input of every stage of a block: its site, some rows, and where the sequences begin that they are.
pub(crate) type Watch<'w> =
    dyn FnMut(Site, ArrayView2<'_, f32>, (&[usize], &RopeTables)) -> Result<(), PipelineError> + 'w;

/// Carries streams through the blocks of a model.
pub(crate) struct Carrier<'a> {
    spec: &'a ModelSpec,
    layout: &'a Layout,
    arithmetic: Arithmetic,
    /// Folder for streams that should not stay in memory.
    spill: Option<&'a Path>,
    par: Par,
    rope: RopeTables,
    scratch: StageScratch<f32>,
}

impl<'a> Carrier<'a> {
    pub(crate) fn new(
        spec: &'a ModelSpec,
        layout: &'a Layout,
        arithmetic: impl Into<Arithmetic>,
        spill: Option<&'a Path>,
        par: Par,
    ) -> Self {
        let rope = RopeTables::new(spec, layout.lengths());
        Self {
            spec,
            layout,
            arithmetic: arithmetic.into(),
            spill,
            par,
            rope,
            scratch: StageScratch::default(),
        }
    }

    /// A block that is ready to run.
    pub(crate) fn block(&self, index: usize, params: BlockParams) -> Result<Block<f32>, PipelineError> {
        Ok(Block::new(self.spec, index, params, self.arithmetic.clone(), self.par)?)
    }

    /// The stream in front of the first block.
    pub(crate) fn embedded(
        &self,
        source: &mut dyn BlockSource,
        sequences: &[Vec<u32>],
    ) -> Result<RowStore, PipelineError> {
        let mut store = self.store()?;
        self.layout.embed(source, sequences, &mut store)?;
        store.rest();
        Ok(store)
    }

    /// A stream that begins where another is.
    pub(crate) fn copy(&self, from: &RowStore) -> Result<RowStore, PipelineError> {
        let mut copy = self.store()?;
        self.layout.copy(from, &mut copy)?;
        Ok(copy)
    }

    fn store(&self) -> Result<RowStore, PipelineError> {
        Ok(RowStore::new(self.layout.rows(), self.spec.hidden, self.spill, self.par)?)
    }

    /// Takes a stream through a block.
    pub(crate) fn advance(
        &mut self,
        block: &Block<f32>,
        stream: &mut RowStore,
        events: &mut dyn Events,
    ) -> Result<(), PipelineError> {
        self.advance_watched(block, stream, events, None)
    }

    /// The same while `watch` is shown what passes.
    pub(crate) fn advance_watched(
        &mut self,
        block: &Block<f32>,
        stream: &mut RowStore,
        events: &mut dyn Events,
        mut watch: Option<&mut Watch<'_>>,
    ) -> Result<(), PipelineError> {
        let (par, layout) = (self.par, self.layout);
        let mut scratch = std::mem::take(&mut self.scratch);
        let rope = &self.rope;
        let table = |length| rope.table(length);
        for chunk in &layout.chunks {
            events.go_on()?;
            let starts = layout.starts_of(chunk);
            let walk = Walk { starts, rope: &table };
            stream.modify::<PipelineError>(layout.rows_of(chunk), |h: ArrayViewMut2<'_, f32>| {
                let see = &mut |site, x: ArrayView2<'_, f32>| {
                    if let Some(watch) = watch.as_deref_mut() {
                        watch(site, x, (starts, rope))?;
                    }
                    Ok(ControlFlow::Continue(()))
                };
                block.walk(h, &walk, MLP_ROWS, &mut scratch, see, par)
            })?;
        }
        self.scratch = scratch;
        stream.rest();
        Ok(())
    }
}
