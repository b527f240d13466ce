//! The activations of all calibration tokens on their way through the blocks.

use super::Run;
use super::stats::KvRanges;
use crate::PipelineError;
use ndarray::Array2;
use quant_graph::Site;
use quant_model::{Block, KvCache, KvStore, Output, RowStore, StoredRows, Walk};
use std::ops::Range;
use std::time::Instant;

/// One stream: the residual stream between blocks, and inside a block what its stages hand to each other. The wide arrays
/// keep their memory from block to block: fresh pages cost more than the numbers written to them.
#[derive(Debug)]
pub(super) struct ActivationStream {
    /// `[tokens, hidden]`.
    pub(super) residual: RowStore,
    /// Input of o, `[tokens, heads · head_dim]`.
    attended: Option<RowStore>,
    /// Input of down, `[tokens, intermediate]`.
    activated: Option<RowStore>,
}

impl ActivationStream {
    pub(super) fn new(residual: RowStore) -> Self {
        Self { residual, attended: None, activated: None }
    }

    fn wide(&mut self, site: Site) -> &mut Option<RowStore> {
        if site == Site::AttentionOutput { &mut self.attended } else { &mut self.activated }
    }

    /// A stage's input for one chunk of sequences, `[rows, features]`.
    pub(super) fn input<'s>(
        &'s self,
        run: &Run<'_>,
        site: Site,
        block: &Block<f32>,
        chunk: &Range<usize>,
    ) -> Result<StoredRows<'s>, PipelineError> {
        let rows = run.layout.rows_of(chunk);
        let stored = match site {
            Site::AttentionOutput => self.attended.as_ref(),
            Site::MlpActivation => self.activated.as_ref(),
            Site::AttentionInput | Site::MlpInput => None,
        };
        match stored {
            Some(store) => Ok(store.read(rows)?),
            None => {
                let residual = self.residual.read(rows)?;
                let nothing = Array2::zeros((0, 0));
                Ok(block.input(site, residual.view(), nothing.view(), run.par())?.into_owned().into())
            }
        }
    }

    /// Frees copies of rows that are inputs of o and down.
    pub(super) fn rest(&self) {
        self.attended.iter().chain(&self.activated).for_each(RowStore::rest);
    }

    /// Runs the linears of a stage over all tokens. `kv` sees the keys and values of every sequence.
    pub(super) fn advance(
        &mut self,
        run: &mut Run<'_>,
        index: usize,
        site: Site,
        block: &Block<f32>,
        mut kv: Option<&mut KvRanges>,
    ) -> Result<(), PipelineError> {
        run.phase("forward")?;
        let started = Instant::now();
        let par = run.par();
        let at = format!("block {index}, after {site:?}");
        let mut wide = match Output::of(site) {
            Output::Next(next) => {
                let width = run.plan.spec.site_width(next);
                Some(self.wide(next).take().map_or_else(|| run.store_waiting(width), Ok)?)
            }
            Output::Residual => None,
        };
        let mut scratch = std::mem::take(&mut run.scratch);
        for chunk in &run.layout.chunks {
            run.go_on()?;
            let rows = run.layout.rows_of(chunk);
            let rope = &run.rope;
            let table = |length| rope.table(length);
            let walk = Walk { starts: run.layout.starts_of(chunk), rope: &table };
            if let Some(store) = &mut wide {
                let x = self.input(run, site, block, chunk)?;
                let mut caches: Vec<KvCache<f32>> = Vec::new();
                if kv.is_some() {
                    caches.resize_with(chunk.len(), KvCache::new);
                }
                store.overwrite::<PipelineError>(rows.clone(), |mut out| {
                    let caches = kv.is_some().then_some(&mut *caches);
                    block.advance(site, x.view(), &walk, caches, out.view_mut(), &mut scratch, par)?;
                    run.check_finite(out.view(), rows.start, &at)
                })?;
                if let Some(kv) = &mut kv {
                    caches.iter().for_each(|cache| kv.observe(cache.keys(), cache.values()));
                }
                continue;
            }
            let Self { residual, attended, activated } = &mut *self;
            let source = if site == Site::AttentionOutput { attended } else { activated };
            let x = match source {
                Some(store) => store.read(rows.clone())?,
                None => Array2::zeros((0, 0)).into(),
            };
            residual.modify::<PipelineError>(rows.clone(), |mut h| {
                block.advance(site, x.view(), &walk, None, h.view_mut(), &mut scratch, par)?;
                run.check_finite(h.view(), rows.start, &at)
            })?;
        }
        run.scratch = scratch;
        if let Output::Next(next) = Output::of(site) {
            *self.wide(next) = wide;
        }
        // Rows on their way must not lie beside what is gathered of them.
        self.rest();
        run.spent("forward", started);
        Ok(())
    }
}
