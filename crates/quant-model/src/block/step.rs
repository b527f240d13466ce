//! One pass of some tokens of some sequences through a block with a cache.

use super::Block;
use super::flow::{MLP_ROWS, StageScratch, add};
use crate::paged_cache::PagedCache;
use crate::{ModelError, RopeTable};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use quant_core::PairTransform;
use quant_core::operators::Cached;
use quant_graph::{Norm, Role, Site};
use quant_kernels::{PAGE, PagedQueries, PagedScratch, Par, attend_paged, tasks, views};
use std::ops::Range;

/// Rows of a pass that are neighbouring tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Span<'a> {
    /// The rows.
    pub rows: Range<usize>,
    /// Tokens of the sequence that are in the cache already.
    pub past: usize,
    /// Whether this is one token that was generated, whose attention may run where the cache is held. How a prompt is cut into passes depends on
    /// other requests; that a token was generated does not.
    pub generated: bool,
    /// The pages of the sequence, in the order of its positions; those of the new tokens included.
    pub pages: &'a [u32],
    /// Its rotary table.
    pub rope: &'a RopeTable<f32>,
}

/// Tokens whose queries go through attention in one task.
const TOKENS: usize = 16;
/// Products of a task of attention below which another thread costs more than it gives.
const SEQUENTIAL_WORK: usize = 1 << 19;

impl Block<f32> {
    /// Takes rows `h` `[tokens, hidden]` of the residual stream through the block in place: the tokens of `spans` stand behind those of
    /// their sequences in `cache`, which takes in theirs.
    ///
    /// The bits of a row depend on its own sequence alone.
    ///
    /// # Errors
    /// As of [`Block::attention_into`].
    pub fn step(
        &self,
        mut h: ArrayViewMut2<'_, f32>,
        spans: &[Span<'_>],
        cache: &mut PagedCache,
        scratch: &mut StageScratch<f32>,
        par: Par,
    ) -> Result<(), ModelError> {
        let (query, kv) = (self.shape.query_width(), self.shape.kv_width());
        let parts = [(Role::Q, query), (Role::K, kv), (Role::V, kv)];
        let [mut q, mut k, mut v] = {
            let x = self.made_input(Norm::Input, h.view(), &mut scratch.codes, par)?;
            self.project(Site::AttentionInput, parts, x.activations(), par)?
        };
        self.norm_heads(q.view_mut(), Norm::Query, par);
        self.norm_heads(k.view_mut(), Norm::Key, par);
        for span in spans {
            self.check_positions(span.rope, span.past + span.rows.len())?;
            self.rotate(views::rows_mut(&mut q, span.rows.clone()), span.rope, span.past, par);
        }
        self.transform_heads(&mut q, PairTransform::query, par);
        self.keys_before_rope(&mut k, par);
        for span in spans {
            self.rotate(views::rows_mut(&mut k, span.rows.clone()), span.rope, span.past, par);
        }
        self.transform_heads(&mut k, PairTransform::key, par);
        self.narrow(&mut k.view_mut());
        for span in spans {
            for (i, row) in span.rows.clone().enumerate() {
                let position = span.past + i;
                let (key, value) = (k.row_mut(row), v.row_mut(row));
                if let (Some(key), Some(value)) = (key.into_slice(), value.into_slice()) {
                    let written = cache.write(span.pages[position / PAGE], position % PAGE, key, value);
                    written.map_err(|cause| self.failed("its cache".to_owned(), cause))?;
                }
            }
        }
        drop((k, v));
        let mut attended = q;
        self.narrow(&mut attended.view_mut());
        let spans = self.attend_on_processor(&mut attended, spans, cache)?;
        self.attend(&mut attended, &spans, cache, par);
        self.narrow(&mut attended.view_mut());
        self.transform(Site::AttentionOutput, attended.view_mut(), par);
        add(h.view_mut(), self.attention_output(attended.view(), par)?.view(), par);
        drop(attended);
        let mut buffer = std::mem::take(&mut scratch.activation);
        for mut rows in h.axis_chunks_iter_mut(Axis(0), MLP_ROWS) {
            let wide = views::scratch(&mut buffer, (rows.nrows(), self.intermediate));
            let y = self.made_mlp(rows.view(), wide, scratch, par)?;
            add(rows.view_mut(), y.view(), par);
        }
        scratch.activation = buffer;
        Ok(())
    }

    /// Queries of single tokens become the outputs of attention where the processor that holds the cache does that; the other spans come
    /// back.
    fn attend_on_processor<'a, 's>(
        &self,
        q: &mut Array2<f32>,
        spans: &'s [Span<'a>],
        cache: &mut PagedCache,
    ) -> Result<Vec<&'s Span<'a>>, ModelError> {
        let (there, here): (Vec<_>, Vec<_>) =
            spans.iter().partition(|span| span.generated && cache.is_on_processor(span.pages));
        if !there.is_empty() {
            let rows: Vec<usize> = there.iter().map(|span| span.rows.start).collect();
            let mut queries = q.select(Axis(0), &rows);
            let sequences: Vec<Cached<'_>> =
                there.iter().map(|span| Cached { pages: span.pages, length: span.past + 1 }).collect();
            let done = cache.attend(queries.view_mut(), &sequences);
            done.map_err(|cause| self.failed("attention".to_owned(), cause))?;
            for (row, out) in rows.into_iter().zip(queries.rows()) {
                q.row_mut(row).assign(&out);
            }
        }
        Ok(here)
    }

    /// Queries `[tokens, heads · head_dim]` become the outputs of attention.
    fn attend(&self, q: &mut Array2<f32>, spans: &[&Span<'_>], cache: &PagedCache, par: Par) {
        let shape = &self.shape;
        let (head_dim, group) = (shape.head_dim, shape.heads / shape.kv_heads);
        let mut pieces = Vec::new();
        let mut work = 0;
        for &span in spans {
            for first in (0..span.rows.len()).step_by(TOKENS) {
                let tokens = first..(first + TOKENS).min(span.rows.len());
                work += 2 * tokens.len() * group * head_dim * (span.past + tokens.end) * shape.kv_heads;
                pieces.extend((0..shape.kv_heads).map(|head| (span, tokens.clone(), head)));
            }
        }
        // The longest first, or the last worker finishes alone.
        pieces.sort_by_key(|(span, tokens, _)| std::cmp::Reverse(span.past + tokens.end));
        let par = if work < SEQUENTIAL_WORK { Par::Seq } else { par };
        let queries = q.view();
        let done = tasks::map_with(&pieces, par, PagedScratch::default, |scratch, (span, tokens, head)| {
            let columns = head * group * head_dim..(head + 1) * group * head_dim;
            let rows = span.rows.start + tokens.start..span.rows.start + tokens.end;
            let gathered: Vec<f32> =
                views::columns(views::rows(queries, rows), columns).iter().copied().collect();
            let positions: Vec<usize> =
                tokens.clone().flat_map(|token| std::iter::repeat_n(span.past + token, group)).collect();
            let of =
                PagedQueries { queries: &gathered, positions: &positions, head_dim, window: shape.window };
            let mut out = vec![0.0; gathered.len()];
            attend_paged(&of, &|page| cache.page(span.pages[page], *head), scratch, &mut out);
            out
        });
        for ((span, tokens, head), out) in pieces.into_iter().zip(done) {
            let width = group * head_dim;
            let rows = span.rows.start + tokens.start..span.rows.start + tokens.end;
            let out = ArrayView2::from_shape((tokens.len(), width), &out);
            if let Ok(out) = out {
                let mut rows = views::rows_mut(q, rows);
                views::columns_mut(&mut rows, head * width..(head + 1) * width).assign(&out);
            }
        }
    }
}
