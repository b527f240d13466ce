//! How activations flow through a block: the four stages, what each reads and where its result goes.

use super::Block;
use crate::kv::{KvCache, KvStore};
use crate::linear::Activations;
use crate::ops::attention::causal_attention_into;
use crate::ops::mlp::gated;
use crate::ops::norm::normed;
use crate::ops::project::forward_shared;
use crate::{ModelError, RopeTable};
use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis, CowArray, Ix2};
use quant_core::PairTransform;
use quant_core::operators::QuantizedActivations;
use quant_graph::{KvScheme, LinearSpec, Norm, Role, Site};
use quant_kernels::{Element, Par, tasks, views};
use std::fmt::{self, Debug, Formatter};
use std::ops::ControlFlow;

/// Tokens that go through the MLP together in a forward of the whole block.
pub const MLP_ROWS: usize = 256;

/// Where the result of a stage goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// It is the input of the next stage.
    Next(Site),
    /// It is added to the residual stream.
    Residual,
}

impl Output {
    /// Of the stage that starts at `site`.
    #[must_use]
    pub fn of(site: Site) -> Self {
        match site {
            Site::AttentionInput => Self::Next(Site::AttentionOutput),
            Site::MlpInput => Self::Next(Site::MlpActivation),
            Site::AttentionOutput | Site::MlpActivation => Self::Residual,
        }
    }
}

/// Is shown the input of a stage before it runs: its site and some rows of it, `[rows, features]`; says whether to go on.
pub type See<'a, T, E> = dyn FnMut(Site, ArrayView2<'_, T>) -> Result<ControlFlow<()>, E> + 'a;

/// What rows of activations are: whole sequences one after the other, each alone from its first position on.
#[derive(Clone, Copy)]
pub struct Walk<'a, T> {
    /// First row of every sequence, and the number of rows at the end.
    pub starts: &'a [usize],
    /// The rotary table of a sequence of that many positions.
    pub rope: &'a (dyn Fn(usize) -> &'a RopeTable<T> + Sync + 'a),
}

/// Wide temporaries of the stages. They are worth keeping from chunk to chunk: fresh pages cost more than the numbers
/// written to them.
#[derive(Clone, Debug, Default)]
pub struct StageScratch<T> {
    /// What up computes.
    pub(super) up: Vec<T>,
    /// Input of down, where it is kept nowhere else.
    pub(super) activation: Vec<T>,
    /// Inputs of stages that were never anything but codes.
    pub(super) codes: QuantizedActivations,
}

impl<T> Debug for Walk<'_, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Walk").field("starts", &self.starts).finish_non_exhaustive()
    }
}

impl<T: Element> Block<T> {
    /// The input of the stage at `site` `[tokens, features]`: the norm of `residual` `[tokens, hidden]`, or `wide`, what
    /// the stage before has written.
    ///
    /// # Errors
    /// [`ModelError::Shape`] if `residual` is not `[tokens, hidden]`.
    pub fn input<'x>(
        &self,
        site: Site,
        residual: ArrayView2<'_, T>,
        wide: ArrayView2<'x, T>,
        par: Par,
    ) -> Result<CowArray<'x, T, Ix2>, ModelError> {
        Ok(match site {
            Site::AttentionInput => self.attention_input(residual, par)?.into(),
            Site::MlpInput => self.mlp_input(residual, par)?.into(),
            Site::AttentionOutput | Site::MlpActivation => wide.into(),
        })
    }

    /// Runs the stage at `site` on its input `x` `[tokens, features]`. Where its [`Output`] is the next stage's input, `out`
    /// `[tokens, features of the next]` is written and its old content not read; otherwise the result is added to `out`
    /// `[tokens, hidden]`, the residual stream. `caches`, one of every sequence, are looked at by attention alone; without
    /// them every sequence begins here and nobody needs its keys afterwards.
    ///
    /// # Errors
    /// [`ModelError::MissingLinear`], [`ModelError::Shape`], [`ModelError::Positions`].
    pub fn advance(
        &self,
        site: Site,
        x: ArrayView2<'_, T>,
        walk: &Walk<'_, T>,
        mut caches: Option<&mut [KvCache<T>]>,
        mut out: ArrayViewMut2<'_, T>,
        scratch: &mut StageScratch<T>,
        par: Par,
    ) -> Result<(), ModelError> {
        match site {
            Site::AttentionInput => {
                let first = walk.starts.first().copied().unwrap_or(0);
                for (i, ends) in walk.starts.windows(2).enumerate() {
                    let rows = ends[0] - first..ends[1] - first;
                    let (x, out) = (views::rows(x, rows.clone()), views::rows_mut(&mut out, rows.clone()));
                    let mut fresh = KvCache::new();
                    let cache = caches.as_mut().and_then(|c| c.get_mut(i)).unwrap_or(&mut fresh);
                    let rope = (walk.rope)(cache.past() + rows.len());
                    self.attention_into(x, rope, cache, out, par)?;
                }
                Ok(())
            }
            Site::MlpInput => self.mlp_activation_into(x, out, &mut scratch.up, par),
            Site::AttentionOutput => {
                add(out, self.attention_output(x, par)?.view(), par);
                Ok(())
            }
            Site::MlpActivation => {
                add(out, self.mlp_output(x, par)?.view(), par);
                Ok(())
            }
        }
    }

    /// Takes the residual stream `h` `[tokens, hidden]` through the block in place. `see` is shown the input of every stage
    /// before it runs, `[rows, features]` of some rows after the other; after `Break` the rest of the block is left out for
    /// those rows. The MLP goes through `mlp_rows` rows at a time.
    ///
    /// # Errors
    /// As the stages, and the first error of `see`.
    pub fn walk<E: From<ModelError>>(
        &self,
        mut h: ArrayViewMut2<'_, T>,
        walk: &Walk<'_, T>,
        mlp_rows: usize,
        scratch: &mut StageScratch<T>,
        see: &mut See<'_, T, E>,
        par: Par,
    ) -> Result<(), E> {
        let mut attended = Array2::zeros((h.nrows(), self.shape.query_width()));
        let half = (Site::AttentionInput, h.view_mut(), attended.view_mut());
        if self.half(half, walk, scratch, see, par)?.is_break() {
            return Ok(());
        }
        drop(attended);
        let mut buffer = std::mem::take(&mut scratch.activation);
        for rows in h.axis_chunks_iter_mut(Axis(0), mlp_rows.max(1)) {
            let wide = views::scratch(&mut buffer, (rows.nrows(), self.intermediate));
            // Whether these rows went through or stopped, nothing comes after.
            let _ends = self.half((Site::MlpInput, rows, wide), walk, scratch, see, par)?;
        }
        scratch.activation = buffer;
        Ok(())
    }

    /// A stage that fills `wide` and the one after it, which adds to `h`.
    fn half<E: From<ModelError>>(
        &self,
        (site, mut h, mut wide): (Site, ArrayViewMut2<'_, T>, ArrayViewMut2<'_, T>),
        walk: &Walk<'_, T>,
        scratch: &mut StageScratch<T>,
        see: &mut See<'_, T, E>,
        par: Par,
    ) -> Result<ControlFlow<()>, E> {
        {
            let x = self.input(site, h.view(), wide.view(), par)?.into_owned();
            if see(site, x.view())?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            self.advance(site, x.view(), walk, None, wide.view_mut(), scratch, par)?;
        }
        if let Output::Next(next) = Output::of(site) {
            if see(next, wide.view())?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            self.advance(next, wide.view(), walk, None, h.view_mut(), scratch, par)?;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The whole block on the residual stream `h` `[tokens, hidden]` of one sequence.
    ///
    /// # Errors
    /// As the stages.
    pub fn forward(&self, h: Array2<T>, rope: &RopeTable<T>, par: Par) -> Result<Array2<T>, ModelError> {
        self.forward_while(h, rope, &|| Ok(()), par)
    }
    /// [`Self::forward`] that asks `go_on` between its parts, none of which takes more than a fraction of a second on a core;
    /// the MLP, the largest, goes through some hundred tokens at a time.
    ///
    /// # Errors
    /// As the stages, and the first error of `go_on`.
    pub fn forward_while(
        &self,
        mut h: Array2<T>,
        rope: &RopeTable<T>,
        go_on: &dyn Fn() -> Result<(), ModelError>,
        par: Par,
    ) -> Result<Array2<T>, ModelError> {
        let (starts, rope) = ([0, h.nrows()], |_| rope);
        let walk = Walk { starts: &starts, rope: &rope };
        let mut see = |_: Site, _: ArrayView2<'_, T>| go_on().map(ControlFlow::Continue);
        self.walk(h.view_mut(), &walk, MLP_ROWS, &mut StageScratch::default(), &mut see, par)?;
        Ok(h)
    }

    /// The input norm: `h` `[tokens, hidden]` to [`Site::AttentionInput`], transformed as its linears expect it.
    ///
    /// # Errors
    /// [`ModelError::Shape`] if `h` is not `[tokens, hidden]`.
    pub fn attention_input(&self, h: ArrayView2<'_, T>, par: Par) -> Result<Array2<T>, ModelError> {
        self.behind_norm(Norm::Input, Site::AttentionInput, h, par)
    }
    /// From [`Site::AttentionInput`] `[tokens, hidden]` to [`Site::AttentionOutput`] `[tokens, heads · head_dim]` of one
    /// sequence: q, k, v, their norms, rope, KV quantisation, causal attention. The new tokens stand behind those of `cache`,
    /// which takes in theirs.
    ///
    /// # Errors
    /// As [`Self::attention_into`].
    pub fn attention(
        &self,
        x: ArrayView2<'_, T>,
        rope: &RopeTable<T>,
        cache: &mut dyn KvStore<T>,
        par: Par,
    ) -> Result<Array2<T>, ModelError> {
        let mut out = Array2::zeros((x.nrows(), self.shape.query_width()));
        self.attention_into(x, rope, cache, out.view_mut(), par)?;
        Ok(out)
    }
    /// [`Self::attention`] into `out` `[tokens, heads · head_dim]`, whose old content is not read.
    ///
    /// # Errors
    /// [`ModelError::MissingLinear`], [`ModelError::Shape`], or [`ModelError::Positions`] if `rope` is too short.
    pub fn attention_into(
        &self,
        x: ArrayView2<'_, T>,
        rope: &RopeTable<T>,
        cache: &mut dyn KvStore<T>,
        mut out: ArrayViewMut2<'_, T>,
        par: Par,
    ) -> Result<(), ModelError> {
        let (past, tokens) = (cache.past(), x.nrows());
        self.check("attention output", &[tokens, self.shape.query_width()], out.shape())?;
        self.check_positions(rope, past + tokens)?;
        let (q, kv) = (self.shape.query_width(), self.shape.kv_width());
        let parts = [(Role::Q, q), (Role::K, kv), (Role::V, kv)];
        let [mut q, mut k, mut v] = self.project(Site::AttentionInput, parts, x, par)?;
        self.norm_heads(q.view_mut(), Norm::Query, par);
        self.rotate(q.view_mut(), rope, past, par);
        self.transform_heads(&mut q, PairTransform::query, par);
        self.narrow(&mut q.view_mut());
        self.norm_heads(k.view_mut(), Norm::Key, par);
        self.keys_in_cache(&mut k, rope, past, par);
        if let Some(kv) = &self.kv {
            self.quantise(&kv.values, &mut v, None, par);
        }
        cache.extend(k, v);
        self.check("keys in the cache", &[past + tokens, self.shape.kv_width()], cache.keys().shape())?;
        self.check("values in the cache", &[past + tokens, self.shape.kv_width()], cache.values().shape())?;
        causal_attention_into(
            q.view(),
            cache.keys(),
            cache.values(),
            &self.shape,
            past,
            out.view_mut(),
            None,
            par,
        );
        self.narrow(&mut out);
        self.transform(Site::AttentionOutput, out, par);
        Ok(())
    }
    /// Keys and values `[tokens, kv_heads · head_dim]` of a sequence as a quantiser of the cache by `scheme` takes them, from
    /// [`Site::AttentionInput`] `[tokens, hidden]`: keys behind their norm, and behind rope or before it and without their
    /// bias, as it says. What the block's own quantiser is does not matter.
    ///
    /// # Errors
    /// As [`Self::attention_into`].
    pub fn cache_entries(
        &self,
        x: ArrayView2<'_, T>,
        rope: &RopeTable<T>,
        scheme: &KvScheme,
        par: Par,
    ) -> Result<[Array2<T>; 2], ModelError> {
        self.check_positions(rope, x.nrows())?;
        let width = self.shape.kv_width();
        let [mut k, v] = self.project(Site::AttentionInput, [(Role::K, width), (Role::V, width)], x, par)?;
        self.norm_heads(k.view_mut(), Norm::Key, par);
        match (scheme.before_rope, self.key_bias()) {
            (false, _) => {
                self.rotate(k.view_mut(), rope, 0, par);
                self.transform_heads(&mut k, PairTransform::key, par);
            }
            (true, Some(bias)) if scheme.pre_bias => k -= &bias,
            _ => {}
        }
        Ok([k, v])
    }
    /// The output projection: `a` `[tokens, heads · head_dim]` to `[tokens, hidden]`, to be added to the residual stream.
    ///
    /// # Errors
    /// [`ModelError::MissingLinear`] or [`ModelError::Shape`].
    pub fn attention_output(&self, a: ArrayView2<'_, T>, par: Par) -> Result<Array2<T>, ModelError> {
        let [y] = self.project(Site::AttentionOutput, [(Role::O, self.hidden)], a, par)?;
        Ok(y)
    }
    /// The second norm: `h` `[tokens, hidden]` to [`Site::MlpInput`].
    ///
    /// # Errors
    /// [`ModelError::Shape`] if `h` is not `[tokens, hidden]`.
    pub fn mlp_input(&self, h: ArrayView2<'_, T>, par: Par) -> Result<Array2<T>, ModelError> {
        self.behind_norm(Norm::PostAttention, Site::MlpInput, h, par)
    }
    /// `silu(gate(x)) · up(x)`: [`Site::MlpInput`] `[tokens, hidden]` to [`Site::MlpActivation`]
    /// `[tokens, intermediate]`.
    ///
    /// # Errors
    /// [`ModelError::MissingLinear`] or [`ModelError::Shape`].
    pub fn mlp_activation(&self, x: ArrayView2<'_, T>, par: Par) -> Result<Array2<T>, ModelError> {
        let mut out = Array2::zeros((x.nrows(), self.intermediate));
        self.mlp_activation_into(x, out.view_mut(), &mut Vec::new(), par)?;
        Ok(out)
    }
    /// [`Self::mlp_activation`] into `out` `[tokens, intermediate]`, whose old content is not read. `scratch` holds what
    /// up computes: the widest temporary of a block, worth keeping from chunk to chunk.
    ///
    /// # Errors
    /// [`ModelError::MissingLinear`] or [`ModelError::Shape`].
    pub fn mlp_activation_into(
        &self,
        x: ArrayView2<'_, T>,
        mut out: ArrayViewMut2<'_, T>,
        scratch: &mut Vec<T>,
        par: Par,
    ) -> Result<(), ModelError> {
        let shape = (x.nrows(), self.intermediate);
        self.check("MLP activation", &[shape.0, shape.1], out.shape())?;
        let mut up = views::scratch(scratch, shape);
        let parts = [(Role::Gate, out.view_mut()), (Role::Up, up.view_mut())];
        self.project_into(Site::MlpInput, parts, x, par)?;
        self.gate(out, up.view(), par);
        Ok(())
    }
    /// What gate has computed becomes the input of down.
    pub(super) fn gate(&self, mut gate: ArrayViewMut2<'_, T>, up: ArrayView2<'_, T>, par: Par) {
        gated(gate.view_mut(), up, par);
        self.transform(Site::MlpActivation, gate, par);
    }
    /// The down projection: `m` `[tokens, intermediate]` to `[tokens, hidden]`, to be added to the residual stream.
    ///
    /// # Errors
    /// [`ModelError::MissingLinear`] or [`ModelError::Shape`].
    pub fn mlp_output<'x>(
        &self,
        m: impl Into<Activations<'x, T>>,
        par: Par,
    ) -> Result<Array2<T>, ModelError> {
        let [y] = self.project(Site::MlpActivation, [(Role::Down, self.hidden)], m, par)?;
        Ok(y)
    }

    /// Some parts of a site in the order in which they are stored, each of its width, from their common input.
    pub(super) fn project<'x, const N: usize>(
        &self,
        site: Site,
        parts: [(Role, usize); N],
        x: impl Into<Activations<'x, T>>,
        par: Par,
    ) -> Result<[Array2<T>; N], ModelError> {
        let x = x.into();
        let mut outputs = parts.map(|(_, width)| Array2::zeros((x.dim().0, width)));
        let mut at = parts.iter().map(|(role, _)| *role);
        let views = outputs.each_mut().map(|y| (at.next().unwrap_or(Role::Q), y.view_mut()));
        self.project_into(site, views, x, par)?;
        Ok(outputs)
    }
    /// [`Self::project`] into arrays `[tokens, rows of the part]`, whose old content is not read.
    pub(super) fn project_into<'x, const N: usize>(
        &self,
        site: Site,
        parts: [(Role, ArrayViewMut2<'_, T>); N],
        x: impl Into<Activations<'x, T>>,
        par: Par,
    ) -> Result<(), ModelError> {
        let x = x.into();
        let (tokens, features) = x.dim();
        let wanted = |l: &&LinearSpec| {
            l.id.site() == site && l.parts.iter().any(|(part, _)| parts.iter().any(|(role, _)| part == role))
        };
        let linears: Vec<&LinearSpec> = self.spec.linears.iter().filter(wanted).collect();
        let mut ops = Vec::with_capacity(linears.len());
        for linear in &linears {
            self.check(&linear.module, &[tokens, linear.inputs], &[tokens, features])?;
            let missing = || ModelError::MissingLinear { block: self.index, module: linear.module.clone() };
            ops.push(self.linear(linear.id).ok_or_else(missing)?);
        }
        let failed = |cause| {
            let what = linears.first().map_or_else(String::new, |linear| linear.module.clone());
            self.failed(what, cause)
        };
        // Rows of a fused matrix are computed side by side and taken apart afterwards.
        let fused = |l: &LinearSpec| l.parts.len() > 1;
        if !linears.iter().any(|l| fused(l)) {
            return forward_shared(&ops, x, parts.into_iter().map(|(_, out)| out), par).map_err(failed);
        }
        let mut whole: Vec<Array2<T>> = linears.iter().map(|l| Array2::zeros((tokens, l.outputs))).collect();
        forward_shared(&ops, x, whole.iter_mut().map(|y| y.view_mut()), par).map_err(failed)?;
        for (role, mut out) in parts {
            for (linear, y) in linears.iter().zip(&whole) {
                if let Some((_, rows)) = linear.parts.iter().find(|(part, _)| *part == role) {
                    out.assign(&views::columns(y.view(), rows.clone()));
                }
            }
        }
        Ok(())
    }
    /// The input of the stage at `site`, which begins with a norm of `h` `[tokens, hidden]`.
    pub(super) fn behind_norm(
        &self,
        norm: Norm,
        site: Site,
        h: ArrayView2<'_, T>,
        par: Par,
    ) -> Result<Array2<T>, ModelError> {
        let mut x = self.normed(norm, h, par)?;
        self.transform(site, x.view_mut(), par);
        Ok(x)
    }
    pub(super) fn normed(&self, norm: Norm, h: ArrayView2<'_, T>, par: Par) -> Result<Array2<T>, ModelError> {
        Ok(normed(h, self.norm_of(norm, h)?, self.eps, par))
    }
    /// The weight of a norm of rows `h` `[tokens, features]`.
    pub(super) fn norm_of(&self, norm: Norm, h: ArrayView2<'_, T>) -> Result<ArrayView1<'_, T>, ModelError> {
        let weight = self.norm(norm).ok_or_else(|| self.part(format!("{norm:?} norm"), "is missing"))?;
        self.check("residual stream", &[h.nrows(), weight.len()], h.shape())?;
        Ok(weight)
    }
}

/// `h += y`, rows in parallel.
pub(super) fn add<T: Element>(h: ArrayViewMut2<'_, T>, y: ArrayView2<'_, T>, par: Par) {
    tasks::for_rows(h, par, |first, mut rows| {
        let y = views::rows(y, first..first + rows.nrows());
        rows += &y;
    });
}
