//! The decoder block, runnable stage by stage.

use crate::attention::{AttentionShape, causal_attention_into};
use crate::linear::{LinearOp, forward_shared, linear_op};
use crate::parallel::for_rows;
use crate::{ModelError, RopeTable, views};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis};
use quant_core::KvQuant;
use quant_core::activation::KvSide;
use quant_graph::{BlockParams, LinearParams, LinearSpec, ModelSpec, Norm, Role, Site};
use quant_kernels::{Compute, Element, Par, rms_norm, rope_in_place, silu_mul, vectorized};

/// Tokens that go through the MLP together in a forward of the whole block.
pub const MLP_ROWS: usize = 256;

/// Sees what would enter the KV cache, before its quantisation: calibration of static scales.
pub trait KvObserver<T> {
    /// `keys` after rope and `values`, both `[tokens, kv_heads · head_dim]`, of one sequence.
    fn observe(&mut self, keys: ArrayView2<'_, T>, values: ArrayView2<'_, T>);
}

/// One pre-norm decoder block:
///
/// ```text
/// x = norm(h)                        attention_input    feeds q, k, v
/// a = attention(rope(q), rope(k), v) attention          feeds o
/// h = h + o(a)                       attention_output
/// x = norm(h)                        mlp_input          feeds gate, up
/// m = silu(gate(x)) · up(x)          mlp_activation     feeds down
/// h = h + down(m)                    mlp_output
/// ```
///
/// All arrays are `[tokens, features]` of one sequence at positions `0..tokens`. Linears can be replaced one by one
/// ([`Self::set_linear`]), so that a pipeline can run a stage, quantise what its output feeds, and go on with what the
/// deployed model will compute. [`Compute`] concerns the linears; norms, rope and attention are in `T`.
#[derive(Debug)]
pub struct Block<T: Element> {
    index: usize,
    shape: AttentionShape,
    eps: T,
    compute: Compute,
    specs: [LinearSpec; 7],
    linears: [Option<Box<dyn LinearOp<T>>>; 7],
    norms: [Option<Array1<T>>; 4],
    kv: Option<KvQuant>,
}

impl<T: Element> Block<T> {
    /// Block `index` of a model. Norms must be complete; linears that `params` does not have can be set later, before
    /// their stage runs, which keeps a pipeline that replaces them all from holding them twice.
    ///
    /// # Errors
    /// [`ModelError::Part`] if a norm is missing or there is one too many, or the model has no such block;
    /// [`ModelError::Shape`] if an array does not fit.
    pub fn new(
        spec: &ModelSpec,
        index: usize,
        params: BlockParams,
        compute: Compute,
        par: Par,
    ) -> Result<Self, ModelError> {
        let part = |what: String, problem| ModelError::Part { block: index, what, problem };
        if index >= spec.layers {
            return Err(part(spec.block_prefix(index), "does not exist in this model"));
        }
        let mut block = Self {
            index,
            shape: AttentionShape {
                heads: spec.heads,
                kv_heads: spec.kv_heads,
                head_dim: spec.head_dim,
                window: spec.windows.get(index).copied().flatten(),
            },
            eps: T::from_f64(spec.norm_eps),
            compute,
            specs: Role::ALL.map(|role| spec.linear(role)),
            linears: [const { None }; 7],
            norms: [const { None }; 4],
            kv: None,
        };
        let widths = spec.norms();
        for (norm, weight) in params.norms {
            let Some(&(_, width)) = widths.iter().find(|(known, _)| *known == norm) else {
                return Err(part(norm.module().into(), "does not exist in this model"));
            };
            block.check(norm.module(), &[width], weight.shape())?;
            block.norms[norm as usize] = Some(weight.mapv_into_any(T::from_f32));
        }
        for (norm, _) in widths {
            if block.norms[norm as usize].is_none() {
                return Err(part(norm.module().into(), "is missing"));
            }
        }
        for (role, linear) in params.linears {
            // By value: the floats of one linear go before the next is prepared.
            block.set_linear(role, &linear, par)?;
        }
        block.set_kv(params.kv)?;
        Ok(block)
    }

    /// Index in the model.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }
    /// The arithmetic of its linears.
    #[must_use]
    pub fn compute(&self) -> Compute {
        self.compute
    }
    /// A linear, if it has been set.
    #[must_use]
    pub fn linear(&self, role: Role) -> Option<&dyn LinearOp<T>> {
        self.linears[role as usize].as_deref()
    }
    /// Replaces a linear.
    ///
    /// # Errors
    /// [`ModelError::Shape`] or [`ModelError::Part`] if weight or bias do not fit the model.
    pub fn set_linear(&mut self, role: Role, params: &LinearParams, par: Par) -> Result<(), ModelError> {
        let spec = self.specs[role as usize];
        let (out, columns) = params.weight.dim();
        self.check(role.module(), &[spec.outputs, spec.inputs], &[out, columns])?;
        match &params.bias {
            // A method may add a bias (a correction of the mean error) that the model does not have; never drop one.
            Some(bias) => self.check(role.module(), &[spec.outputs], bias.shape())?,
            None if !spec.bias => {}
            None => {
                return Err(ModelError::Part {
                    block: self.index,
                    what: format!("{}.bias", role.module()),
                    problem: "is missing",
                });
            }
        }
        self.linears[role as usize] = Some(linear_op(params, self.compute, par));
        Ok(())
    }
    /// Removes a linear and frees its memory.
    pub fn clear_linear(&mut self, role: Role) {
        self.linears[role as usize] = None;
    }
    /// A norm weight: `[hidden]`, or `[head_dim]` of the query and key norms, which not every model has.
    #[must_use]
    pub fn norm(&self, norm: Norm) -> Option<ArrayView1<'_, T>> {
        self.norms[norm as usize].as_ref().map(|w| w.view())
    }
    /// Quantisation of the KV cache.
    #[must_use]
    pub fn kv(&self) -> Option<&KvQuant> {
        self.kv.as_ref()
    }
    /// Sets or removes the quantisation of the KV cache.
    ///
    /// # Errors
    /// [`ModelError::Shape`] if static scales are not `[kv_heads · head_dim]`.
    pub fn set_kv(&mut self, kv: Option<KvQuant>) -> Result<(), ModelError> {
        if let Some(KvQuant::Channel { key, value, .. }) = &kv {
            let width = self.shape.kv_heads * self.shape.head_dim;
            self.check("KV cache key scales", &[width], key.shape())?;
            self.check("KV cache value scales", &[width], value.shape())?;
        }
        self.kv = kv;
        Ok(())
    }

    /// The input norm: `h` `[tokens, hidden]` to [`Site::AttentionInput`].
    ///
    /// # Errors
    /// [`ModelError::Shape`] if `h` is not `[tokens, hidden]`.
    pub fn attention_input(&self, h: ArrayView2<'_, T>, par: Par) -> Result<Array2<T>, ModelError> {
        self.normed(Norm::Input, h, par)
    }
    /// From [`Site::AttentionInput`] `[tokens, hidden]` to [`Site::AttentionOutput`] `[tokens, heads · head_dim]`:
    /// q, k, v, their norms, rope, KV quantisation, causal attention.
    ///
    /// # Errors
    /// As [`Self::attention_into`].
    pub fn attention(
        &self,
        x: ArrayView2<'_, T>,
        rope: &RopeTable<T>,
        observer: Option<&mut dyn KvObserver<T>>,
        par: Par,
    ) -> Result<Array2<T>, ModelError> {
        let mut out = Array2::zeros((x.nrows(), self.shape.heads * self.shape.head_dim));
        self.attention_into(x, rope, observer, out.view_mut(), par)?;
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
        observer: Option<&mut dyn KvObserver<T>>,
        out: ArrayViewMut2<'_, T>,
        par: Par,
    ) -> Result<(), ModelError> {
        let tokens = x.nrows();
        self.check("attention output", &[tokens, self.shape.heads * self.shape.head_dim], out.shape())?;
        if rope.positions() < tokens {
            return Err(ModelError::Positions { available: rope.positions(), needed: tokens });
        }
        let [mut q, mut k, mut v] =
            self.project(Site::AttentionInput, [Role::Q, Role::K, Role::V], x, par)?;
        self.place(&mut q, Norm::Query, rope, par);
        self.place(&mut k, Norm::Key, rope, par);
        if let Some(observer) = observer {
            observer.observe(k.view(), v.view());
        }
        if let Some(kv) = &self.kv {
            for (side, x) in [(KvSide::Key, &mut k), (KvSide::Value, &mut v)] {
                for_rows(x.view_mut(), par, |_, rows| {
                    vectorized(
                        #[inline(always)]
                        || kv.fake_quantize(side, self.shape.head_dim, rows),
                    );
                });
            }
        }
        causal_attention_into(q.view(), k.view(), v.view(), &self.shape, 0, out, par);
        Ok(())
    }
    /// The output projection: `a` `[tokens, heads · head_dim]` to `[tokens, hidden]`, to be added to the residual stream.
    ///
    /// # Errors
    /// [`ModelError::MissingLinear`] or [`ModelError::Shape`].
    pub fn attention_output(&self, a: ArrayView2<'_, T>, par: Par) -> Result<Array2<T>, ModelError> {
        let [y] = self.project(Site::AttentionOutput, [Role::O], a, par)?;
        Ok(y)
    }
    /// The second norm: `h` `[tokens, hidden]` to [`Site::MlpInput`].
    ///
    /// # Errors
    /// [`ModelError::Shape`] if `h` is not `[tokens, hidden]`.
    pub fn mlp_input(&self, h: ArrayView2<'_, T>, par: Par) -> Result<Array2<T>, ModelError> {
        self.normed(Norm::PostAttention, h, par)
    }
    /// `silu(gate(x)) · up(x)`: [`Site::MlpInput`] `[tokens, hidden]` to [`Site::MlpActivation`]
    /// `[tokens, intermediate]`.
    ///
    /// # Errors
    /// [`ModelError::MissingLinear`] or [`ModelError::Shape`].
    pub fn mlp_activation(&self, x: ArrayView2<'_, T>, par: Par) -> Result<Array2<T>, ModelError> {
        let mut out = Array2::zeros((x.nrows(), self.specs[Role::Gate as usize].outputs));
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
        let shape = (x.nrows(), self.specs[Role::Gate as usize].outputs);
        self.check("MLP activation", &[shape.0, shape.1], out.shape())?;
        scratch.resize(shape.0 * shape.1, T::zero());
        let mut up = ArrayViewMut2::from_shape(shape, scratch.as_mut_slice()).map_err(|_| {
            ModelError::Shape { what: "MLP scratch".into(), expected: vec![shape.0, shape.1], found: vec![0] }
        })?;
        let outputs = [out.view_mut(), up.view_mut()];
        self.project_into(Site::MlpInput, [Role::Gate, Role::Up], x, outputs, par)?;
        for_rows(out, par, |first, rows| {
            let up = views::rows(up.view(), first..first + rows.nrows());
            silu_mul(rows, up);
        });
        Ok(())
    }
    /// The down projection: `m` `[tokens, intermediate]` to `[tokens, hidden]`, to be added to the residual stream.
    ///
    /// # Errors
    /// [`ModelError::MissingLinear`] or [`ModelError::Shape`].
    pub fn mlp_output(&self, m: ArrayView2<'_, T>, par: Par) -> Result<Array2<T>, ModelError> {
        let [y] = self.project(Site::MlpActivation, [Role::Down], m, par)?;
        Ok(y)
    }
    /// The whole block on the residual stream `h` `[tokens, hidden]`.
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
        let x = self.attention_input(h.view(), par)?;
        let a = self.attention(x.view(), rope, None, par)?;
        go_on()?;
        h += &self.attention_output(a.view(), par)?;
        let (mut activation, mut scratch) = (Vec::new(), Vec::new());
        for mut rows in h.axis_chunks_iter_mut(Axis(0), MLP_ROWS) {
            go_on()?;
            let x = self.mlp_input(rows.view(), par)?;
            let shape = (x.nrows(), self.specs[Role::Gate as usize].outputs);
            activation.resize(shape.0 * shape.1, T::zero());
            let Ok(mut m) = ArrayViewMut2::from_shape(shape, activation.as_mut_slice()) else {
                return Err(ModelError::Shape {
                    what: "MLP activation".into(),
                    expected: vec![shape.0, shape.1],
                    found: vec![activation.len()],
                });
            };
            self.mlp_activation_into(x.view(), m.view_mut(), &mut scratch, par)?;
            rows += &self.mlp_output(m.view(), par)?;
        }
        Ok(h)
    }

    /// The linears of a site on their common input.
    fn project<const N: usize>(
        &self,
        site: Site,
        roles: [Role; N],
        x: ArrayView2<'_, T>,
        par: Par,
    ) -> Result<[Array2<T>; N], ModelError> {
        let mut outputs = roles.map(|role| Array2::zeros((x.nrows(), self.specs[role as usize].outputs)));
        self.project_into(site, roles, x, outputs.each_mut().map(|y| y.view_mut()), par)?;
        Ok(outputs)
    }
    /// [`Self::project`] into arrays `[tokens, out]`, whose old content is not read.
    fn project_into<const N: usize>(
        &self,
        site: Site,
        roles: [Role; N],
        x: ArrayView2<'_, T>,
        outputs: [ArrayViewMut2<'_, T>; N],
        par: Par,
    ) -> Result<(), ModelError> {
        debug_assert_eq!(site.stage().linears, roles);
        let width = self.specs[roles[0] as usize].inputs;
        self.check(roles[0].module(), &[x.nrows(), width], x.shape())?;
        let mut linears = Vec::with_capacity(N);
        for role in roles {
            linears.push(self.linear(role).ok_or(ModelError::MissingLinear { block: self.index, role })?);
        }
        forward_shared(&linears, x, outputs, par);
        Ok(())
    }
    /// Per-head norm where the model has one, then rope, on queries or keys `[tokens, n · head_dim]`.
    fn place(&self, x: &mut Array2<T>, norm: Norm, rope: &RopeTable<T>, par: Par) {
        let head_dim = self.shape.head_dim;
        let weight = self.norm(norm);
        for_rows(x.view_mut(), par, |first, mut rows| {
            if let Some(weight) = weight {
                norm_heads(rows.view_mut(), weight, self.eps);
            }
            let (tokens, width) = rows.dim();
            rope_in_place(rows, width / head_dim, rope.cos(first, tokens), rope.sin(first, tokens));
        });
    }
    fn normed(&self, norm: Norm, h: ArrayView2<'_, T>, par: Par) -> Result<Array2<T>, ModelError> {
        let Some(weight) = self.norm(norm) else {
            return Err(ModelError::Part {
                block: self.index,
                what: norm.module().into(),
                problem: "is missing",
            });
        };
        self.check(norm.module(), &[h.nrows(), weight.len()], h.shape())?;
        Ok(normed(h, weight, self.eps, par))
    }
    fn check(&self, what: &str, expected: &[usize], found: &[usize]) -> Result<(), ModelError> {
        if expected == found {
            return Ok(());
        }
        Err(ModelError::Shape {
            what: format!("block {}: {what}", self.index),
            expected: expected.to_vec(),
            found: found.to_vec(),
        })
    }
}

/// RMS norm of rows `[tokens, features]`, in blocks of tokens.
pub(crate) fn normed<T: Element>(
    h: ArrayView2<'_, T>,
    weight: ArrayView1<'_, T>,
    eps: T,
    par: Par,
) -> Array2<T> {
    if par == Par::Seq {
        return rms_norm(h, weight, eps);
    }
    let mut out = Array2::zeros(h.dim());
    for_rows(out.view_mut(), par, |first, mut rows| {
        let part = views::rows(h, first..first + rows.nrows());
        rows.assign(&rms_norm(part, weight, eps));
    });
    out
}

/// RMS norm of every head of `x` `[tokens, heads · head_dim]` in place.
fn norm_heads<T: Element>(mut x: ArrayViewMut2<'_, T>, weight: ArrayView1<'_, T>, eps: T) {
    let head_dim = weight.len();
    for mut heads in x.axis_chunks_iter_mut(Axis(1), head_dim) {
        let normed = rms_norm(heads.view(), weight, eps);
        heads.assign(&normed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quant_core::{ActRule, Bits};
    use quant_testkit::{Numbers, random_block};

    /// What a cache of one block holds.
    struct Cache<T> {
        key: Array2<T>,
        value: Array2<T>,
    }

    impl<T: Element> Block<T> {
        /// Tokens `h` `[tokens, hidden]` that stand after those of `cache`, which takes in theirs: the block as a
        /// server runs it.
        fn step(&self, h: &Array2<T>, cache: &mut Cache<T>, rope: &RopeTable<T>) -> Array2<T> {
            let (past, tokens) = (cache.key.nrows(), h.nrows());
            let x = self.attention_input(h.view(), Par::Seq).unwrap();
            let [mut q, mut k, mut v] =
                self.project(Site::AttentionInput, [Role::Q, Role::K, Role::V], x.view(), Par::Seq).unwrap();
            for (x, norm) in [(&mut q, Norm::Query), (&mut k, Norm::Key)] {
                if let Some(weight) = self.norm(norm) {
                    norm_heads(x.view_mut(), weight, self.eps);
                }
                let heads = x.ncols() / self.shape.head_dim;
                rope_in_place(x.view_mut(), heads, rope.cos(past, tokens), rope.sin(past, tokens));
            }
            // Quantised once, when they arrive; what the cache holds already is never touched again.
            let kv = self.kv().unwrap();
            kv.fake_quantize(KvSide::Key, self.shape.head_dim, k.view_mut());
            kv.fake_quantize(KvSide::Value, self.shape.head_dim, v.view_mut());
            cache.key.append(Axis(0), k.view()).unwrap();
            cache.value.append(Axis(0), v.view()).unwrap();
            let mut a = Array2::zeros(q.dim());
            let (keys, values) = (cache.key.view(), cache.value.view());
            causal_attention_into(q.view(), keys, values, &self.shape, past, a.view_mut(), Par::Seq);
            let mut h = h + &self.attention_output(a.view(), Par::Seq).unwrap();
            let x = self.mlp_input(h.view(), Par::Seq).unwrap();
            let m = self.mlp_activation(x.view(), Par::Seq).unwrap();
            h += &self.mlp_output(m.view(), Par::Seq).unwrap();
            h
        }
    }

    /// Property 3 of the KV cache: prefill of n tokens and one step of decoding equal the prefill of n + 1, because a
    /// token and head has its own scale and so never changes when others arrive.
    #[test]
    fn prefill_and_one_step_equal_a_longer_prefill() {
        for (architecture, window) in
            [("LlamaForCausalLM", None), ("Qwen2ForCausalLM", Some(9)), ("Qwen3ForCausalLM", None)]
        {
            let config = serde_json::json!({
                "architectures": [architecture], "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 50,
            });
            let mut spec = crate::model_spec(&config).unwrap();
            spec.windows = vec![window; spec.layers];
            for (seed, (bits, rule)) in
                [(8, ActRule::Symmetric), (4, ActRule::Asymmetric), (4, ActRule::SymmetricFull)]
                    .into_iter()
                    .enumerate()
            {
                let mut numbers = Numbers::new(seed as u64 + 70);
                let bits = Bits::new(bits).unwrap();
                let blocks: Vec<_> = (0..spec.layers)
                    .map(|index| {
                        let mut params = random_block(&spec, &mut numbers);
                        params.kv = Some(KvQuant::TokenHead { bits, rule });
                        Block::<f64>::new(&spec, index, params, Compute::F32, Par::Seq).unwrap()
                    })
                    .collect();
                let tokens = 21;
                let rope = RopeTable::<f64>::new(&spec.rope, spec.head_dim, 128, tokens);
                let h = numbers.matrix(tokens, spec.hidden, 1.0).mapv(f64::from);
                let whole = blocks.iter().fold(h.clone(), |h, b| b.forward(h, &rope, Par::Seq).unwrap());

                let width = spec.kv_width();
                let mut caches: Vec<_> = blocks
                    .iter()
                    .map(|_| Cache { key: Array2::zeros((0, width)), value: Array2::zeros((0, width)) })
                    .collect();
                let mut run = |part: Array2<f64>| {
                    blocks.iter().zip(&mut caches).fold(part, |h, (b, cache)| b.step(&h, cache, &rope))
                };
                let prefill = run(views::rows(h.view(), 0..tokens - 1).to_owned());
                let last = run(views::rows(h.view(), tokens - 1..tokens).to_owned());
                let kept = views::rows(whole.view(), 0..tokens - 1);
                assert_eq!(prefill, kept, "{architecture} {rule:?}");
                assert_eq!(last.row(0), whole.row(tokens - 1), "{architecture} {rule:?}");
            }
        }
    }
}
