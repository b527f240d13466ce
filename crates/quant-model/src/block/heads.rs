//! What happens to queries, keys and values between their products and attention, and to what enters a site.

use super::Block;
use crate::ops::norm::norm_heads;
use crate::{ModelError, RopeTable};
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
    /// Takes keys `[tokens, kv_heads · head_dim]` of the positions from `first` on, behind their norm, to what attention reads of them:
    /// behind rope, their transform, and the quantiser of the cache where it stands.
    pub(super) fn keys_in_cache(&self, k: &mut Array2<T>, rope: &RopeTable<T>, first: usize, par: Par) {
        self.keys_before_rope(k, par);
        self.rotate(k.view_mut(), rope, first, par);
        self.transform_heads(k, PairTransform::key, par);
        self.narrow(&mut k.view_mut());
        if let Some(kv) = self.kv.as_ref().filter(|kv| !kv.before_rope) {
            self.quantise(&kv.keys, k, None, par);
        }
    }
    /// What a quantiser of the cache that stands before rope makes of keys `[tokens, kv_heads · head_dim]`, if there is one.
    pub(super) fn keys_before_rope(&self, k: &mut Array2<T>, par: Par) {
        if let Some(kv) = self.kv.as_ref().filter(|kv| kv.before_rope) {
            let bias = if kv.pre_bias { self.key_bias() } else { None };
            self.quantise(&kv.keys, k, bias, par);
        }
    }
    /// Keys `[tokens, kv_heads · head_dim]` as attention reads them where the first of the rows `x` of [`Site::AttentionInput`]
    /// `[tokens, hidden]` stands at position `first`: exact, and as the quantiser of the cache leaves them. How well a quantiser and a
    /// transform of keys that were found on short sequences serve long ones shows here without a long sequence.
    ///
    /// ```
    /// use quant_model::ndarray::Array2;
    /// use quant_model::{Block, Compute, Par, RopeTable, model_spec};
    /// # let config = serde_json::json!({ "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 12,
    /// #     "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10 });
    /// # let spec = model_spec(&config)?;
    /// # let params = quant_testkit::random_block(&spec, &mut quant_testkit::Numbers::new(1));
    ///
    /// let block = Block::<f32>::new(&spec, 0, params, Compute::F32, Par::Seq)?;
    /// let far = RopeTable::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, 8192 + 3);
    /// let [exact, held] = block.keys_at(Array2::ones((3, 8)).view(), &far, 8192, Par::Seq)?;
    /// // This block has no quantiser of its cache.
    /// assert_eq!(exact, held);
    /// # Ok::<(), quant_model::ModelError>(())
    /// ```
    ///
    /// # Errors
    /// [`ModelError::MissingLinear`], [`ModelError::Shape`], or [`ModelError::Positions`] if `rope` is too short.
    pub fn keys_at(
        &self,
        x: ArrayView2<'_, T>,
        rope: &RopeTable<T>,
        first: usize,
        par: Par,
    ) -> Result<[Array2<T>; 2], ModelError> {
        self.check_positions(rope, first + x.nrows())?;
        let [mut exact] = self.project(Site::AttentionInput, [(Role::K, self.shape.kv_width())], x, par)?;
        self.norm_heads(exact.view_mut(), Norm::Key, par);
        let mut held = exact.clone();
        self.rotate(exact.view_mut(), rope, first, par);
        self.transform_heads(&mut exact, PairTransform::key, par);
        self.keys_in_cache(&mut held, rope, first, par);
        Ok([exact, held])
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
