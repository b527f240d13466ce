//! What is deployed: the inverses of the transforms merged into the weights of a block, the transforms as data.

use super::parameters::FlatParameters;
use super::scheme::{FlatScheme, FlatShape, Matrix};
use super::step::{FlatStep, channels};
use crate::MethodError;
use ndarray::{Array1, Array2, ArrayView1, Axis, Slice};
use quant_core::{AxisTransform, FloatType, OnlineKind, OnlineTransform, PairTransform};
use quant_graph::{BlockParams, EdgeSource, EffectiveWeight, LinearSpec, LinearWeight, Online, Site, Spot};
use quant_kernels::Par;
use quant_rotate::{ClipLogits, Learned};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The parameters of a block as a deployment has them.
pub(super) struct Deployed {
    /// Every matrix is free and has the entries that a deployment has, so that what is inverted is what activations are multiplied by.
    pub(super) parameters: FlatParameters<f64>,
    pub(super) online: Online,
}

impl FlatParameters<f32> {
    /// The float block with these transforms in it, which computes what it did but for the clipping of weights (FlatQuant's
    /// reparameterisation): inverses merged into the weights, `P_v` into the rows of v and its bias, the factors of channels into
    /// norms and into the rows of up, and the transforms that a deployment applies while it runs as
    /// [`Online`](quant_graph::Online).
    ///
    /// Matrices are rounded to f32, those of pairs to the type that a deployment has them in ([`FlatShape::held_in`]), and the rounded ones
    /// inverted in f64; so are the gains of norms. Weights are computed in f64 and rounded once. Nothing is
    /// quantised: the weights are to be rounded next, one scale per row, and the clip factors of inputs, keys and values
    /// ([`Self::clip_factors`]) belong to the quantisers of activations.
    ///
    /// ```
    /// use quant_graph::Site;
    /// use quant_methods::flatquant::{FlatParameters, FlatScheme, FlatShape, Start};
    /// use quant_methods::{Bits, Par};
    /// use quant_rotate::Parametrisation;
    /// # use std::collections::BTreeMap;
    /// # let config = serde_json::json!({ "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8,
    /// #     "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10 });
    /// # let spec = quant_model::model_spec(&config)?;
    /// # let block = quant_testkit::random_block(&spec, &mut quant_testkit::Numbers::new(1));
    ///
    /// let four = Bits::new(4)?;
    /// let scheme = FlatScheme::new(Some(four), Some((four, true)), None)?;
    /// let shape = FlatShape::new(&spec, 0);
    /// let start = Start {
    ///     parametrisation: Parametrisation::Inverse,
    ///     scales: &BTreeMap::new(),
    ///     weight_clips: true,
    ///     input_clips: true,
    ///     seed: 0,
    ///     name: "model.layers.0",
    /// };
    /// let parameters = FlatParameters::initial(&shape, &scheme, start)?;
    /// let merged = parameters.merge(&shape, block, Par::Seq)?;
    /// assert_eq!(merged.online.sites[&Site::MlpActivation].width(), 12);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`MethodError::NotFloat`] for a block with a quantised weight, input or cache, with transforms already, or without a linear
    /// or a norm that it should have; [`MethodError::Rotate`] and [`MethodError::Channels`] as
    /// [`FlatStep::new`]; [`MethodError::Core`] where a matrix and its inverse in f32 are not inverse to each other within 1e-3.
    pub fn merge(
        &self,
        shape: &FlatShape,
        mut block: BlockParams,
        par: Par,
    ) -> Result<BlockParams, MethodError> {
        check_float(shape, &block)?;
        let Deployed { mut parameters, online } = self.deployed(shape)?;
        parameters.fit_norms(shape, &block);
        let step = FlatStep::new(shape, &FlatScheme::NONE, &parameters)?;
        for linear in &shape.block.linears {
            let Some(params) = block.linears.get_mut(&linear.id) else {
                return Err(missing(&linear.module));
            };
            let LinearWeight::Float(weight) = &mut params.weight else {
                return Err(not_float(format!("the weight of {} is quantised", linear.module)));
            };
            let bias = params.bias.as_ref().map(|bias| bias.mapv(f64::from));
            let wide = weight.mapv(f64::from);
            let own = EffectiveWeight { weight: wide.view(), bias: bias.as_ref().map(|bias| bias.view()) };
            let mut merged = step.weight(linear, &own, par)?;
            for (rows, scales) in scaled_rows(shape, linear, &parameters) {
                let part = Slice::from(rows);
                let mut weights = merged.weight.slice_axis_mut(Axis(0), part);
                weights *= &scales.insert_axis(Axis(1));
                if let Some(bias) = &mut merged.bias {
                    let mut bias = bias.slice_axis_mut(Axis(0), part);
                    bias *= &scales;
                }
            }
            let cast = |v: f64| shape.cast.round(v as f32);
            weight.zip_mut_with(&merged.weight, |to, from| *to = cast(*from));
            // The program leaves alone the biases that it does not change, and they are of the type anyway.
            params.bias = merged.bias.map(|bias| bias.mapv(cast));
        }
        for edge in &shape.block.edges {
            let (EdgeSource::Norm(norm), Some(scales)) = (edge.from, parameters.scales.get(&edge.to)) else {
                continue;
            };
            let name = || format!("{norm:?} norm of its block");
            let gains = block.norms.get_mut(&norm).ok_or_else(|| missing(&name()))?;
            if gains.len() != scales.len() {
                return Err(channels(name(), scales.len(), gains.len()));
            }
            gains.zip_mut_with(scales, |gain, c| *gain = shape.cast.round((f64::from(*gain) * c) as f32));
        }
        block.online = online;
        Ok(block)
    }

    /// What the upper and the lower end of the range of a quantiser are multiplied by, if its clipping is learned.
    #[must_use]
    pub fn clip_factors(&self, spot: Spot) -> Option<[f32; 2]> {
        let clip = self.input_clips.get(&spot)?;
        let factor = |logits: &Array1<f32>| {
            let logit = f64::from(*logits.first()?);
            Some((1.0 / (1.0 + quant_core::elementary::exp(-logit))) as f32)
        };
        Some([factor(&clip.max)?, factor(&clip.min)?])
    }

    /// Rounds every matrix to what a deployment has and goes on from there.
    pub(super) fn deployed(&self, shape: &FlatShape) -> Result<Deployed, MethodError> {
        let mut matrices = BTreeMap::new();
        for (which, learned) in &self.matrices {
            let realised = learned.realise()?;
            // Where only the cache is quantised, what runs is the inverse of P_v, behind attention.
            let undone = [Matrix::Output, Matrix::OutputLeft].iter().any(|m| self.matrices.contains_key(m));
            let inverted = *which == Matrix::Value && !undone;
            let held = which.paired_at().map_or(FloatType::F32, |_| shape.held);
            let matrix = if inverted {
                let running = realised.inverse_transpose().t().mapv(f64::from);
                Learned::free(running.view())?.realise()?.inverse_transpose().t().to_owned()
            } else {
                realised.matrix().mapv(|v| f64::from(held.round(v)))
            };
            matrices.insert(*which, Learned::free(matrix.view())?);
        }
        let wide = |values: &Array1<f32>| values.mapv(f64::from);
        let clip = |c: &ClipLogits<f32>| ClipLogits { max: wide(&c.max), min: wide(&c.min) };
        let parameters = FlatParameters {
            matrices,
            scales: self.scales.iter().map(|(site, scales)| (*site, wide(scales))).collect(),
            weight_clips: self.weight_clips.iter().map(|(id, c)| (*id, clip(c))).collect(),
            input_clips: self.input_clips.iter().map(|(spot, c)| (*spot, clip(c))).collect(),
        };
        let online = online(shape, &FlatStep::new(shape, &FlatScheme::NONE, &parameters)?)?;
        Ok(Deployed { parameters, online })
    }
}

impl FlatParameters<f64> {
    /// Moves the factors of channels to where the gains of norms that take them in are exact in the type of the deployment: what their
    /// linears are divided by is then what the norms have. Nothing where that is f32, as the official program.
    fn fit_norms(&mut self, shape: &FlatShape, block: &BlockParams) {
        for edge in shape.block.edges.iter().filter(|_| shape.held != FloatType::F32) {
            let EdgeSource::Norm(norm) = edge.from else { continue };
            let (Some(scales), Some(gains)) = (self.scales.get_mut(&edge.to), block.norms.get(&norm)) else {
                continue;
            };
            for (c, gain) in scales.iter_mut().zip(gains.iter().copied().map(f64::from)) {
                let fitted = f64::from(shape.held.round((gain * *c) as f32)) / gain;
                // A gain of zero, or one that would become zero, makes nothing of its channel either way.
                if fitted.is_normal() {
                    *c = fitted;
                }
            }
        }
    }
}

/// The transforms that no weight takes in.
fn online(shape: &FlatShape, step: &FlatStep<'_, f64>) -> Result<Online, MethodError> {
    let there = |matrix: &Matrix| step.realised.contains_key(matrix);
    let dense = |matrix: Array2<f64>| AxisTransform::Dense(matrix.mapv(|v| shape.cast.round(v as f32)));
    let matrix = |which| Ok::<_, MethodError>(dense(step.realised(which)?.matrix().to_owned()));
    let inverse_transpose = |which| step.realised(which).map(|realised| realised.inverse_transpose());
    let mut online = Online::default();
    for site in Site::ALL {
        let (left, right) = Matrix::pair(site);
        let axes = match site {
            _ if there(&left) => vec![matrix(left)?, matrix(right)?],
            Site::AttentionOutput if there(&Matrix::Output) => {
                vec![matrix(Matrix::Output)?, AxisTransform::Identity(shape.head_dim)]
            }
            Site::AttentionOutput if there(&Matrix::Value) => {
                let inverse = inverse_transpose(Matrix::Value)?.t().to_owned();
                vec![AxisTransform::Identity(shape.heads), dense(inverse)]
            }
            _ => continue,
        };
        let part = OnlineTransform::kronecker(axes)?;
        let shards = if there(&left) { shape.shards_at(site) } else { 1 };
        let whole = match shards {
            1 => part,
            shards => OnlineTransform::new(OnlineKind::Blocks(vec![part; shards]))?,
        };
        online.sites.insert(site, Arc::new(whole));
    }
    if there(&Matrix::Key) {
        let key = step.realised(Matrix::Key)?.matrix();
        let [key, query] = [key, inverse_transpose(Matrix::Key)?]
            .map(|matrix| OnlineTransform::kronecker(vec![AxisTransform::Dense(matrix.mapv(|v| v as f32))]));
        online.pair = Some(Arc::new(PairTransform::new(key?, query?)?));
    }
    Ok(online)
}

/// The rows of a linear that make the channels of a site with factors, and the factors.
fn scaled_rows<'p>(
    shape: &FlatShape,
    linear: &LinearSpec,
    parameters: &'p FlatParameters<f64>,
) -> Vec<(std::ops::Range<usize>, ArrayView1<'p, f64>)> {
    let edges = shape.block.edges.iter().filter_map(|edge| match edge.from {
        EdgeSource::Rows { linear: id, first } if id == linear.id => {
            let scales = parameters.scales.get(&edge.to)?.view();
            Some((first..first + scales.len(), scales))
        }
        _ => None,
    });
    edges.collect()
}

fn check_float(shape: &FlatShape, block: &BlockParams) -> Result<(), MethodError> {
    if !block.online.is_empty() {
        return Err(not_float("the block has transforms already".into()));
    }
    if block.kv.is_some() {
        return Err(not_float("the cache of the block is quantised".into()));
    }
    let quantised = |linear: &&LinearSpec| block.linears.get(&linear.id).is_some_and(|p| p.input.is_some());
    match shape.block.linears.iter().find(quantised) {
        Some(linear) => Err(not_float(format!("the input of {} is quantised", linear.module))),
        None => Ok(()),
    }
}

fn not_float(what: String) -> MethodError {
    MethodError::NotFloat { method: "flatquant", what }
}

fn missing(what: &str) -> MethodError {
    MethodError::NotFloat { method: "flatquant", what: format!("the block has no {what}") }
}
