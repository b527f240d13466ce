//! What happens to queries, keys and values between their products and attention, and to what enters a site.

use super::Block;
use crate::RopeTable;
use crate::ops::norm::norm_heads;
use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis, Slice};
use quant_core::{EntryQuant, OnlineTransform, PairTransform};
use quant_graph::{LinearSpec, Norm, Role, Site};
use quant_kernels::{Element, Par, rope_in_place, tasks, vectorized};
use quant_rotate::{apply_online, apply_online_per_head};

impl<T: Element> Block<T> {
    /// Per-head norm of queries or keys `[tokens, n · head_dim]`, where the model has one.
    pub(super) fn norm_heads(&self, x: ArrayViewMut2<'_, T>, norm: Norm, par: Par) {
        if let Some(weight) = self.norm(norm) {
            tasks::for_rows(x, par, |_, rows| norm_heads(rows, weight, self.eps));
        }
    }
    /// What the linears behind a site expect its rows `[tokens, features]` to be multiplied by.
    pub(super) fn transform(&self, site: Site, x: ArrayViewMut2<'_, T>, par: Par) {
        if let Some(transform) = self.online.sites.get(&site) {
            apply_online(transform, x, par);
        }
    }
    /// The transform of queries or of keys `[tokens, n · head_dim]`, head by head.
    pub(super) fn transform_heads(
        &self,
        x: &mut Array2<T>,
        side: impl Fn(&PairTransform) -> &OnlineTransform,
        par: Par,
    ) {
        if let Some(pair) = &self.online.pair {
            apply_online_per_head(side(pair), x.view_mut(), par);
        }
    }
    /// Rope on queries or keys `[tokens, n · head_dim]` of the positions from `past` on.
    pub(super) fn rotate(&self, x: ArrayViewMut2<'_, T>, rope: &RopeTable<T>, past: usize, par: Par) {
        tasks::for_rows(x, par, |first, rows| {
            let (first, tokens) = (past + first, rows.nrows());
            self.rotate_by(rows, rope.cos(first, tokens), rope.sin(first, tokens));
        });
    }
    /// The inverse of [`Self::rotate`] from the first position on, which is also its backward.
    pub(super) fn rotate_back(&self, x: ArrayViewMut2<'_, T>, rope: &RopeTable<T>, par: Par) {
        tasks::for_rows(x, par, |first, rows| {
            let tokens = rows.nrows();
            self.rotate_by(rows, rope.cos(first, tokens), rope.sin(first, tokens).mapv(|s| -s).view());
        });
    }
    fn rotate_by(&self, x: ArrayViewMut2<'_, T>, cos: ArrayView2<'_, T>, sin: ArrayView2<'_, T>) {
        let heads = x.ncols() / self.shape.head_dim;
        rope_in_place(x, heads, cos, sin);
    }
    /// What the cache holds of entries `[tokens, kv_heads · head_dim]`, of which `bias` is taken off meanwhile.
    pub(super) fn quantise(
        &self,
        entries: &EntryQuant,
        x: &mut Array2<T>,
        bias: Option<ArrayView1<'_, T>>,
        par: Par,
    ) {
        tasks::for_rows(x.view_mut(), par, |_, mut rows| {
            if let Some(bias) = bias {
                rows -= &bias;
            }
            vectorized(
                #[inline(always)]
                || entries.fake_quantize(self.shape.head_dim, rows.view_mut()),
            );
            if let Some(bias) = bias {
                rows += &bias;
            }
        });
    }
    /// The bias of the rows that make keys, `[kv_heads · head_dim]`, if they have one.
    pub(super) fn key_bias(&self) -> Option<ArrayView1<'_, T>> {
        let keys =
            |l: &LinearSpec| Some((l.id, l.parts.iter().find(|(role, _)| *role == Role::K)?.1.clone()));
        let (id, rows) = self.spec.linears.iter().find_map(keys)?;
        let bias = self.linear(id)?.bias()?;
        Some(bias.slice_axis_move(Axis(0), Slice::from(rows)))
    }
}
