//! Keys and queries made alike before training.
//!
//! `q k` does not change when a pair of channels that rope turns together is multiplied by `c` in keys and by `1/c` in queries. What
//! it costs to round a key behind a random rotation does: the error is proportional to `|k c|`, and it meets `|q / c|`. Their product
//! is least, `sum |k_j q_j|`, where `c_j^2 = |q_j| / |k_j|`. Training cannot find such factors by itself where they are large: its steps
//! are as large for every entry of a matrix. Biases of some Qwen2 models give a pair of channels of keys a hundred times the
//! magnitude of the others; a token's scale is then all theirs.

use super::scheme::FlatShape;
use crate::MethodError;
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut1, ArrayViewMut2};
use quant_core::{codec_of_fields, elementary};
use quant_graph::{
    BlockParams, BlockTraining, BoxError, EffectiveWeight, EffectiveWeights, Insert, LinearId, LinearWeight,
    ModelSpec, Role, Spot,
};
use quant_kernels::Par;
use std::collections::BTreeMap;
use std::ops::Range;

/// What the channels of keys are multiplied by, `[kv_heads · head_dim]`, and those of the queries that meet them divided by: powers
/// of two, so that nothing is rounded, the same for both channels of a pair of rope.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Balance {
    keys: Array1<f32>,
}

codec_of_fields!(Balance { keys });

/// Weights and biases that were changed.
pub(super) type Balanced = BTreeMap<LinearId, (Array2<f32>, Option<Array1<f32>>)>;

impl Balance {
    /// The factors for these sequences; none for a model that normalises queries and keys, whose channels are alike.
    pub(super) fn new(
        spec: &ModelSpec,
        training: &dyn BlockTraining<f32>,
        float: &EffectiveWeights<'_, f32>,
        (x, starts): (ArrayView2<'_, f32>, &[usize]),
        par: Par,
    ) -> Result<Option<Self>, MethodError> {
        if spec.qk_norm {
            return Ok(None);
        }
        let mut squares = Squares::default();
        training.forward(x, starts, float, &mut squares, par)?;
        let (dim, group) = (spec.head_dim, spec.heads / spec.kv_heads.max(1));
        let half = spec.rope.rotary_width(dim) / 2;
        let mut keys = Array1::ones(spec.kv_heads * dim);
        for head in 0..spec.kv_heads {
            for channel in 0..dim {
                // A channel of the first half turns with that of the second; those that pass stand alone.
                let pair = match channel {
                    low if low < half => [low, low + half],
                    high if high < 2 * half => [high - half, high],
                    alone => [alone; 2],
                };
                let of = |sums: &Array1<f64>, first: usize| {
                    pair.iter().map(|c| sums[first * dim + c]).sum::<f64>()
                };
                let key = of(&squares.keys, head);
                let query = (head * group..(head + 1) * group).map(|q| of(&squares.queries, q)).sum::<f64>();
                keys[head * dim + channel] = power_of_two(query / (key * group as f64));
            }
        }
        Ok(Some(Self { keys }))
    }

    /// The weights that change, from those of the block.
    pub(super) fn weights(&self, shape: &FlatShape, float: &EffectiveWeights<'_, f32>) -> Balanced {
        let changed = float.iter().filter(|(id, _)| scaled_parts(shape, **id).next().is_some());
        let changed = changed.map(|(id, own)| {
            let (mut weight, mut bias) = (own.weight.to_owned(), own.bias.map(|bias| bias.to_owned()));
            self.scale(shape, *id, weight.view_mut(), bias.as_mut().map(|bias| bias.view_mut()));
            (*id, (weight, bias))
        });
        changed.collect()
    }

    /// The block with its keys and queries balanced.
    pub(super) fn apply(&self, shape: &FlatShape, mut block: BlockParams) -> BlockParams {
        for (id, linear) in &mut block.linears {
            if let LinearWeight::Float(weight) = &mut linear.weight {
                self.scale(shape, *id, weight.view_mut(), linear.bias.as_mut().map(|bias| bias.view_mut()));
            }
        }
        block
    }

    /// Scales the rows of a linear that make keys or queries.
    fn scale(
        &self,
        shape: &FlatShape,
        id: LinearId,
        mut weight: ArrayViewMut2<'_, f32>,
        mut bias: Option<ArrayViewMut1<'_, f32>>,
    ) {
        for (role, rows) in scaled_parts(shape, id) {
            let group = rows.len() / self.keys.len().max(1);
            for (at, row) in rows.clone().enumerate() {
                let (head, channel) = (at / shape.head_dim, at % shape.head_dim);
                let factor = match role {
                    Role::K => self.keys[at],
                    _ => self.keys[head / group.max(1) * shape.head_dim + channel].recip(),
                };
                weight.row_mut(row).mapv_inplace(|w| w * factor);
                if let Some(bias) = &mut bias {
                    bias[row] *= factor;
                }
            }
        }
    }
}

/// The rows of a linear that make keys or queries.
fn scaled_parts(shape: &FlatShape, id: LinearId) -> impl Iterator<Item = &(Role, Range<usize>)> {
    let parts = shape.block.linear(id).map_or(&[][..], |linear| &linear.parts);
    parts.iter().filter(|(role, _)| matches!(role, Role::K | Role::Q))
}

/// Views of weights with the changed ones in their places.
pub(super) fn with_changed<'w>(
    float: EffectiveWeights<'w, f32>,
    changed: &'w Balanced,
) -> EffectiveWeights<'w, f32> {
    let changed = changed.iter().map(|(id, (weight, bias))| {
        (*id, EffectiveWeight { weight: weight.view(), bias: bias.as_ref().map(|bias| bias.view()) })
    });
    float.into_iter().chain(changed).collect()
}

/// The power of two next to the fourth root of a ratio of squares; 1 where there is none.
fn power_of_two(ratio: f64) -> f32 {
    if !(ratio.is_finite() && ratio > 0.0) {
        return 1.0;
    }
    let exponent = (elementary::ln(ratio) / (4.0 * std::f64::consts::LN_2)).round();
    // Far inside f32, whatever the ratio: its fourth root is below 2^32.
    elementary::pow_f32(2.0, exponent.clamp(-32.0, 32.0) as f32)
}

/// The sums of squares of the channels of queries and keys, of all tokens that come by.
#[derive(Default)]
struct Squares {
    queries: Array1<f64>,
    keys: Array1<f64>,
}

impl Insert<f32> for Squares {
    fn covers(&self, spot: Spot) -> bool {
        matches!(spot, Spot::Query | Spot::Key)
    }
    fn forward(&mut self, spot: Spot, x: Array2<f32>, _: bool, _: Par) -> Result<Array2<f32>, BoxError> {
        let sums = if spot == Spot::Query { &mut self.queries } else { &mut self.keys };
        if sums.is_empty() {
            *sums = Array1::zeros(x.ncols());
        }
        for row in x.rows() {
            sums.zip_mut_with(&row, |sum, x| *sum += f64::from(*x) * f64::from(*x));
        }
        Ok(x)
    }
    fn backward(&mut self, _: Spot, grad: Array2<f32>, _: Par) -> Result<Array2<f32>, BoxError> {
        Ok(grad)
    }
}
