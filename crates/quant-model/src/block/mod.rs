//! The decoder block, runnable stage by stage.

mod flow;
mod heads;
mod made;
mod run;
mod step;
mod train;

pub use flow::{MLP_ROWS, Output, See, StageScratch, Walk};
pub use run::BlockRunner;
pub use step::Span;
pub use train::{BlockTrainer, BlockWindow, ForwardMemory, TrainingMemory, forward_memory, training_memory};

use crate::linear::{Arithmetic, LinearOp, linear_op};
use crate::ops::attention::AttentionShape;
use crate::{ModelError, PagedCache, RopeTable};
use ndarray::{Array1, ArrayView1, ArrayViewMut2};
use quant_core::{CoreError, EntryQuant, KvQuant};
use quant_graph::{BlockParams, BlockSpec, LinearId, LinearParams, ModelSpec, Norm, Online};
use quant_kernels::{Compute, Element, Par};
use std::collections::BTreeMap;
use std::sync::Arc;

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
/// All arrays are `[tokens, features]`. Linears can be replaced one by one ([`Self::set_linear`]), so that a pipeline can run
/// a stage, quantise what its output feeds, and go on with what the deployed model will compute; the order of the stages and
/// what they read and write stand in one place, [`Self::input`] and [`Self::advance`]. Which matrices there are comes from
/// the model's [`BlockSpec`]: rows of a fused one are taken apart after the product. [`Arithmetic`] concerns the linears; norms,
/// rope and attention are in `T`.
#[derive(Clone, Debug)]
pub struct Block<T: Element> {
    index: usize,
    spec: BlockSpec,
    shape: AttentionShape,
    intermediate: usize,
    hidden: usize,
    eps: T,
    arithmetic: Arithmetic,
    linears: BTreeMap<LinearId, Arc<dyn LinearOp<T>>>,
    norms: [Option<Array1<T>>; 4],
    online: Online,
    kv: Option<KvQuant>,
}

impl<T: Element> Block<T> {
    /// Block `index` of a model. Norms must be complete; linears that `params` does not have can be set later, before
    /// their stage runs, which keeps a pipeline that replaces them all from holding them twice.
    ///
    /// # Errors
    /// [`ModelError::Part`] if a norm is missing or there is a norm or linear too many, or the model has no such block;
    /// [`ModelError::Shape`] if an array does not fit.
    pub fn new(
        spec: &ModelSpec,
        index: usize,
        params: BlockParams,
        arithmetic: impl Into<Arithmetic>,
        par: Par,
    ) -> Result<Self, ModelError> {
        let part = |what: String, problem| ModelError::Part { block: index, what, problem };
        if index >= spec.layers {
            return Err(part(spec.block_prefix(index), "does not exist in this model"));
        }
        let topology = spec.block(index);
        let mut block = Self {
            index,
            shape: AttentionShape {
                heads: spec.heads,
                kv_heads: spec.kv_heads,
                head_dim: spec.head_dim,
                window: topology.window,
            },
            spec: topology,
            intermediate: spec.intermediate,
            hidden: spec.hidden,
            eps: T::from_f64(spec.norm_eps),
            arithmetic: arithmetic.into(),
            linears: BTreeMap::new(),
            norms: [const { None }; 4],
            online: Online::default(),
            kv: None,
        };
        block.set_online(spec, params.online)?;
        let widths = block.spec.norms.clone();
        for (norm, weight) in params.norms {
            let name = spec.layout.norm(norm);
            let Some(&(_, width)) = widths.iter().find(|(known, _)| *known == norm) else {
                return Err(part(name.into(), "does not exist in this model"));
            };
            block.check(name, &[width], weight.shape())?;
            block.norms[norm as usize] = Some(weight.mapv_into_any(T::from_f32));
        }
        for (norm, _) in widths {
            if block.norms[norm as usize].is_none() {
                return Err(part(spec.layout.norm(norm).into(), "is missing"));
            }
        }
        for (id, linear) in params.linears {
            // By value: the floats of one linear go before the next is prepared.
            block.set_linear(id, &linear, par)?;
        }
        block.set_kv(params.kv)?;
        Ok(block)
    }

    /// Index in the model.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }
    /// What it consists of.
    #[must_use]
    pub fn spec(&self) -> &BlockSpec {
        &self.spec
    }
    /// The arithmetic of its linears.
    #[must_use]
    pub fn arithmetic(&self) -> &Arithmetic {
        &self.arithmetic
    }
    /// The arithmetic of its float products.
    #[must_use]
    pub fn compute(&self) -> Compute {
        self.arithmetic.compute
    }
    /// A linear, if it has been set.
    #[must_use]
    pub fn linear(&self, id: LinearId) -> Option<&dyn LinearOp<T>> {
        self.linears.get(&id).map(|linear| &**linear)
    }
    /// Replaces a linear.
    ///
    /// # Errors
    /// [`ModelError::Shape`] or [`ModelError::Part`] if weight or bias do not fit the model.
    pub fn set_linear(&mut self, id: LinearId, params: &LinearParams, par: Par) -> Result<(), ModelError> {
        let part = |what: String, problem| ModelError::Part { block: self.index, what, problem };
        let Some(spec) = self.spec.linear(id) else {
            return Err(part(format!("a linear for {id}"), "does not exist in this model"));
        };
        let (out, columns) = params.weight.dim();
        self.check(&spec.module, &[spec.outputs, spec.inputs], &[out, columns])?;
        match &params.bias {
            // A method may add a bias (a correction of the mean error) that the model does not have; never drop one.
            Some(bias) => self.check(&spec.module, &[spec.outputs], bias.shape())?,
            None if !spec.bias => {}
            None => return Err(part(format!("{}.bias", spec.module), "is missing")),
        }
        let made = linear_op(params, self.arithmetic.clone(), par);
        self.linears.insert(id, made.map_err(|cause| self.failed(spec.module.clone(), cause))?.into());
        Ok(())
    }
    /// Removes a linear and frees its memory.
    pub fn clear_linear(&mut self, id: LinearId) {
        self.linears.remove(&id);
    }
    /// A norm weight: `[hidden]`, or `[head_dim]` of the query and key norms, which not every model has.
    #[must_use]
    pub fn norm(&self, norm: Norm) -> Option<ArrayView1<'_, T>> {
        self.norms[norm as usize].as_ref().map(|w| w.view())
    }
    /// What it multiplies activations by while it runs.
    #[must_use]
    pub fn online(&self) -> &Online {
        &self.online
    }
    fn set_online(&mut self, spec: &ModelSpec, online: Online) -> Result<(), ModelError> {
        for (site, transform) in &online.sites {
            self.check(&format!("transform of {site:?}"), &[spec.site_width(*site)], &[transform.width()])?;
        }
        if let Some(pair) = &online.pair {
            self.check("transforms of queries and keys", &[spec.head_dim], &[pair.key().width()])?;
        }
        self.online = online;
        Ok(())
    }
    /// Quantisation of the KV cache.
    #[must_use]
    pub fn kv(&self) -> Option<&KvQuant> {
        self.kv.as_ref()
    }
    /// Sets or removes the quantisation of the KV cache.
    ///
    /// # Errors
    /// [`ModelError::Shape`] if static scales or zero levels are not `[kv_heads · head_dim]`; [`ModelError::Part`] if the bias of
    /// keys is to be taken off behind rope.
    ///
    /// Behind a [`Backend`](crate::Backend) fixed scales are rounded to the type of the model, in which it reads them.
    pub fn set_kv(&mut self, mut kv: Option<KvQuant>) -> Result<(), ModelError> {
        if let (Some(kv), Some(backend)) = (&mut kv, &self.arithmetic.backend) {
            for entries in [&mut kv.keys, &mut kv.values] {
                if let EntryQuant::Channel { scales, .. } = entries {
                    scales.mapv_inplace(|scale| backend.model.round_scale(scale));
                }
            }
        }
        if let Some(kv) = &kv {
            let width = self.shape.kv_width();
            for (entries, what) in [(&kv.keys, "KV cache key"), (&kv.values, "KV cache value")] {
                if let EntryQuant::Channel { scales, zeros, .. } = entries {
                    self.check(&format!("{what} scales"), &[width], scales.shape())?;
                    self.check(&format!("{what} zero levels"), &[width], zeros.shape())?;
                }
            }
            if kv.pre_bias && !kv.before_rope {
                return Err(ModelError::Part {
                    block: self.index,
                    what: "the quantiser of its KV cache".into(),
                    problem: "takes the bias of keys off behind rope, where it depends on the position",
                });
            }
        }
        self.kv = kv;
        Ok(())
    }

    /// An empty cache for generation, held by the backend too where that attends to its codes.
    ///
    /// # Errors
    /// [`ModelError::Operator`] with what the backend says.
    pub fn paged_cache(&self, spec: &ModelSpec) -> Result<PagedCache, ModelError> {
        match &self.arithmetic.backend {
            // Its attention sees the whole cache.
            Some(backend) if self.shape.window.is_none() => {
                PagedCache::on(&*backend.processor, spec, self.kv.as_ref())
                    .map_err(|cause| self.failed("its cache".to_owned(), cause))
            }
            _ => Ok(PagedCache::new(spec, self.kv.as_ref())),
        }
    }
    /// Rounds queries or outputs of attention to the type that they have on a backend.
    fn narrow(&self, x: &mut ArrayViewMut2<'_, T>) {
        if let Some(backend) = &self.arithmetic.backend {
            x.mapv_inplace(|x| T::from_f32(backend.model.round(x.to_f32_lossy())));
        }
    }

    /// An operator's error.
    fn failed(&self, what: String, cause: CoreError) -> ModelError {
        ModelError::Operator { block: self.index, what, cause }
    }
    fn part(&self, what: String, problem: &'static str) -> ModelError {
        ModelError::Part { block: self.index, what, problem }
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
    fn check_positions(&self, rope: &RopeTable<T>, needed: usize) -> Result<(), ModelError> {
        let available = rope.positions();
        if available < needed { Err(ModelError::Positions { available, needed }) } else { Ok(()) }
    }
}
