//! The linears of a site in a training pass: forward, and back to their inputs and weights.

use super::super::flow::add;
use super::{BlockTrainer, Pass, WeightGradients};
use crate::ModelError;
use ndarray::{Array2, ArrayView2, Axis};
use quant_graph::{
    EffectiveWeight, EffectiveWeights, LinearId, LinearSpec, Role, Site, Spot, WeightGradient,
};
use quant_kernels::{Element, linear_into, matmul_nn, views};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// What the rows of every role give, or the gradients of that, `[tokens, rows]`.
pub(super) type Parts<T> = BTreeMap<Role, Array2<T>>;

/// What the linears of a site multiplied: the common input, and that of linears that had one of their own. Only what the
/// gradient of some weight needs.
#[derive(Debug, Default)]
pub(super) struct Inputs<T> {
    shared: Option<Array2<T>>,
    own: BTreeMap<LinearId, Array2<T>>,
}

#[cfg(test)]
impl<T> Inputs<T> {
    /// Numbers that are kept.
    pub(super) fn len(&self) -> usize {
        self.shared.iter().chain(self.own.values()).map(Array2::len).sum()
    }
}

impl<T: Element> BlockTrainer<'_, T> {
    /// The linears of `site` on `x` `[tokens, features]`, behind the transform of the block and what the insert makes of it.
    pub(super) fn project(
        &self,
        site: Site,
        mut x: Array2<T>,
        pass: &mut Pass<'_, '_, T>,
    ) -> Result<(Parts<T>, Inputs<T>), ModelError> {
        self.transform(site, &mut x, pass);
        let x = self.insert(Spot::Site(site), x, pass)?;
        let (mut parts, mut own) = (Parts::new(), BTreeMap::new());
        let mut wanted = false;
        for id in self.block.spec.at(site) {
            let (linear, weight) = self.linear(*id, pass.with)?;
            self.block.check(&linear.module, &[x.nrows(), linear.inputs], x.shape())?;
            let spot = Spot::Linear(*id);
            let alone =
                if pass.insert.covers(spot) { Some(self.insert(spot, x.clone(), pass)?) } else { None };
            let mut y = Array2::zeros((x.nrows(), linear.outputs));
            let input = alone.as_ref().unwrap_or(&x);
            let compute = self.block.compute();
            linear_into(input.view(), weight.weight, weight.bias, y.view_mut(), compute, pass.par);
            self.precision.round(y.view_mut(), pass.par);
            let trained = pass.keep && pass.with.contains_key(id);
            match alone {
                Some(input) if trained => drop(own.insert(*id, input)),
                Some(_) => {}
                None => wanted |= trained,
            }
            match linear.parts.as_slice() {
                [(role, _)] => drop(parts.insert(*role, y)),
                fused => parts.extend(
                    fused
                        .iter()
                        .map(|(role, rows)| (*role, views::columns(y.view(), rows.clone()).to_owned())),
                ),
            }
        }
        Ok((parts, Inputs { shared: wanted.then_some(x), own }))
    }

    /// From the gradients of the parts of `site` to that of its input; those of weights go to `sums`.
    pub(super) fn project_back(
        &self,
        site: Site,
        mut grads: Parts<T>,
        mut inputs: Inputs<T>,
        sums: &mut WeightGradients<T>,
        pass: &mut Pass<'_, '_, T>,
    ) -> Result<Array2<T>, ModelError> {
        let tokens = grads.values().next().map_or(0, Array2::nrows);
        let mut shared: Option<Array2<T>> = None;
        for id in self.block.spec.at(site).iter().rev() {
            let (linear, weight) = self.linear(*id, pass.with)?;
            let grad = side_by_side(linear, &mut grads, tokens);
            if pass.with.contains_key(id) {
                let own = inputs.own.remove(id);
                let input = own.as_ref().or(inputs.shared.as_ref());
                let input = input.ok_or_else(|| {
                    self.block
                        .part(linear.module.clone(), "has no input, because the forward did not keep it")
                })?;
                self.add_weight_gradient(*id, &weight, grad.view(), input.view(), sums, pass);
            }
            let spot = Spot::Linear(*id);
            let alone = pass.insert.covers(spot);
            let (mut to, accumulate) = match shared.take_if(|_| !alone) {
                Some(sum) => (sum, true),
                None => (Array2::zeros((tokens, linear.inputs)), false),
            };
            let compute = self.block.compute();
            matmul_nn(to.view_mut(), accumulate, T::one(), grad.view(), weight.weight, compute, pass.par);
            self.precision.round(to.view_mut(), pass.par);
            if alone {
                to = self.insert_back(spot, to, pass)?;
                if let Some(sum) = shared.take() {
                    add(to.view_mut(), sum.view(), pass.par);
                    self.precision.round(to.view_mut(), pass.par);
                }
            }
            shared = Some(to);
        }
        let Some(grad) = shared else {
            return Err(self.block.part(format!("{site:?}"), "feeds no linear"));
        };
        let mut grad = self.insert_back(Spot::Site(site), grad, pass)?;
        self.transform_back(site, &mut grad, pass);
        Ok(grad)
    }

    /// `dW += dYᵀ X` and `db += Σ dY`.
    fn add_weight_gradient(
        &self,
        id: LinearId,
        weight: &EffectiveWeight<'_, T>,
        grad: ArrayView2<'_, T>,
        input: ArrayView2<'_, T>,
        sums: &mut WeightGradients<T>,
        pass: &Pass<'_, '_, T>,
    ) {
        let bias = weight.bias.map(|_| grad.sum_axis(Axis(0)));
        let multiply = |to: &mut Array2<T>, accumulate| {
            let compute = self.block.compute();
            matmul_nn(to.view_mut(), accumulate, T::one(), grad.t(), input, compute, pass.par);
            self.precision.round(to.view_mut(), pass.par);
        };
        match sums.entry(id) {
            Entry::Vacant(entry) => {
                let mut product = Array2::zeros(weight.weight.dim());
                multiply(&mut product, false);
                entry.insert(WeightGradient { weight: product, bias });
            }
            Entry::Occupied(entry) => {
                let sum = entry.into_mut();
                multiply(&mut sum.weight, true);
                if let (Some(sum), Some(bias)) = (&mut sum.bias, bias) {
                    *sum += &bias;
                }
            }
        }
    }

    /// What a linear is, and what it multiplies by in this pass.
    fn linear<'l>(
        &'l self,
        id: LinearId,
        with: &'l EffectiveWeights<'_, T>,
    ) -> Result<(&'l LinearSpec, EffectiveWeight<'l, T>), ModelError> {
        let Some(spec) = self.block.spec.linear(id) else {
            return Err(ModelError::MissingLinear { block: self.block.index, module: id.to_string() });
        };
        match (with.get(&id), self.weights.get(&id)) {
            (Some(weight), _) => Ok((spec, weight.view())),
            (None, Some(weight)) => Ok((spec, weight.view())),
            (None, None) => {
                Err(ModelError::MissingLinear { block: self.block.index, module: spec.module.clone() })
            }
        }
    }
}

/// The gradient of all rows of a linear, whose parts came one by one.
fn side_by_side<T: Element>(linear: &LinearSpec, grads: &mut Parts<T>, tokens: usize) -> Array2<T> {
    if let [(role, _)] = linear.parts.as_slice()
        && let Some(grad) = grads.remove(role)
    {
        return grad;
    }
    let mut whole = Array2::zeros((tokens, linear.outputs));
    for (role, rows) in &linear.parts {
        if let Some(grad) = grads.remove(role) {
            views::columns_mut(&mut whole, rows.clone()).assign(&grad);
        }
    }
    whole
}
