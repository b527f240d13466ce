//! What stands in the block: transforms and quantisers of activations, queries, keys and values.

use super::parts::{cut, joined};
use super::scheme::Matrix;
use super::step::{FlatStep, FlatSums};
use crate::MethodError;
use ndarray::{Array1, Array2, ArrayView2, CowArray, Ix2, Zip};
use quant_graph::{BoxError, Insert, Site, Spot};
use quant_kernels::{Element, Par};
use quant_rotate::{
    Kronecker, StraightThrough, across_heads, across_heads_gradient, per_head, per_head_gradient,
};
use std::collections::BTreeMap;

impl<T: Element> FlatStep<'_, T> {
    /// What stands in the block during this step.
    #[must_use]
    pub fn insert(&self) -> FlatInsert<'_, T> {
        FlatInsert { step: self, tape: BTreeMap::new(), sums: FlatSums::new() }
    }
}

/// The [`Insert`] of a [`FlatStep`], which sums gradients of its parameters. Its tape is what came in at every spot; transforms are
/// made again on the way back, which costs some percent of the products of the linears.
#[derive(Debug)]
pub struct FlatInsert<'s, T> {
    step: &'s FlatStep<'s, T>,
    tape: BTreeMap<Spot, Vec<Array2<T>>>,
    sums: FlatSums<T>,
}

/// What a transform does at a spot.
enum Transform {
    /// Factors of channels, then a Kronecker pair.
    Pair(Site, Matrix, Matrix),
    /// Every head from the right: by the matrix, by its inverse transpose, or by its inverse.
    Heads(Matrix),
    InverseTranspose(Matrix),
    Inverse(Matrix),
    /// Across heads.
    Across(Matrix),
}

impl<T: Element> FlatInsert<'_, T> {
    /// What was summed, for [`FlatStep::backward`].
    #[must_use]
    pub fn into_sums(self) -> FlatSums<T> {
        self.sums
    }

    fn transform(&self, spot: Spot) -> Option<Transform> {
        let has = |matrix: &Matrix| self.step.realised.contains_key(matrix);
        let transform = match spot {
            Spot::Site(Site::AttentionOutput) if has(&Matrix::Output) => Transform::Across(Matrix::Output),
            Spot::Site(site) if has(&Matrix::pair(site).0) => {
                let (left, right) = Matrix::pair(site);
                Transform::Pair(site, left, right)
            }
            // Nothing merges the inverse of P_v into o where only the cache is quantised.
            Spot::Site(Site::AttentionOutput) if has(&Matrix::Value) => Transform::Inverse(Matrix::Value),
            Spot::Query if has(&Matrix::Key) => Transform::InverseTranspose(Matrix::Key),
            Spot::Key if has(&Matrix::Key) => Transform::Heads(Matrix::Key),
            _ => return None,
        };
        Some(transform)
    }

    /// The quantiser of a spot, and how many columns share a scale.
    fn quantiser(&self, spot: Spot, columns: usize) -> Option<(StraightThrough, usize)> {
        let shape = self.step.shape;
        let run = match spot {
            Spot::Key | Spot::Value => shape.head_dim,
            // Only what is transformed in parts is quantised in parts.
            Spot::Site(site) if self.step.scheme.plain_at(site).is_none() => {
                columns / shape.shards_at(site).max(1)
            }
            Spot::Linear(id) if self.step.scheme.plain_at(id.site()).is_none() => {
                columns / shape.shards_at(id.site()).max(1)
            }
            _ => columns,
        };
        Some((self.step.scheme.quantiser(spot)?, run))
    }

    fn pair(&self, left: Matrix, right: Matrix) -> Result<Kronecker<'_, T>, MethodError> {
        let matrix = |matrix| self.step.realised(matrix).map(|realised| realised.matrix());
        Ok(Kronecker::new(matrix(left)?, matrix(right)?)?)
    }

    fn scaled<'x>(&self, site: Site, x: ArrayView2<'x, T>) -> CowArray<'x, T, Ix2> {
        self.step.scales(site).map_or_else(|| x.into(), |scales| (&x * &scales).into())
    }

    fn transformed<'x>(
        &self,
        spot: Spot,
        x: ArrayView2<'x, T>,
        par: Par,
    ) -> Result<CowArray<'x, T, Ix2>, MethodError> {
        let realised = |matrix| self.step.realised(matrix);
        Ok(match self.transform(spot) {
            None => x.into(),
            Some(Transform::Pair(site, left, right)) => {
                let scaled = self.scaled(site, x);
                let parts = cut(scaled.view(), self.step.shape.shards_at(site))?;
                joined(self.pair(left, right)?.apply(parts.view(), par), scaled.ncols())?.into()
            }
            Some(Transform::Heads(matrix)) => per_head(x, realised(matrix)?.matrix(), par).into(),
            Some(Transform::InverseTranspose(matrix)) => {
                per_head(x, realised(matrix)?.inverse_transpose(), par).into()
            }
            Some(Transform::Inverse(matrix)) => {
                per_head(x, realised(matrix)?.inverse_transpose().reversed_axes(), par).into()
            }
            Some(Transform::Across(matrix)) => {
                let mut y = x.to_owned();
                across_heads(y.view_mut(), realised(matrix)?.matrix(), par);
                y.into()
            }
        })
    }

    fn transformed_back(
        &mut self,
        spot: Spot,
        x: ArrayView2<'_, T>,
        grad: Array2<T>,
        par: Par,
    ) -> Result<Array2<T>, MethodError> {
        let step = self.step;
        let side = |matrix| step.realised(matrix).map(|realised| (realised, realised.matrix().nrows()));
        Ok(match self.transform(spot) {
            None => grad,
            Some(Transform::Pair(site, left, right)) => {
                let (scaled, shards) = (self.scaled(site, x), step.shape.shards_at(site));
                let parts = cut(scaled.view(), shards)?;
                let back =
                    self.pair(left, right)?.backward(parts.view(), cut(grad.view(), shards)?.view(), par);
                self.sums.matrix(left, back.left);
                self.sums.matrix(right, back.right);
                let input = joined(back.input, x.ncols())?;
                match step.scales(site) {
                    None => input,
                    Some(scales) => {
                        let mut sums = Array1::zeros(x.ncols());
                        for (x, g) in x.rows().into_iter().zip(input.rows()) {
                            Zip::from(&mut sums).and(x).and(g).for_each(|sum, &x, &g| *sum += x * g);
                        }
                        self.sums.scale(site, sums);
                        input * scales
                    }
                }
            }
            Some(Transform::Heads(matrix)) => {
                let (realised, side) = side(matrix)?;
                self.sums.matrix(matrix, per_head_gradient(x, grad.view(), side, par));
                per_head(grad.view(), realised.matrix().reversed_axes(), par)
            }
            Some(Transform::InverseTranspose(matrix)) => {
                let (realised, side) = side(matrix)?;
                self.sums.inverse(matrix, per_head_gradient(x, grad.view(), side, par));
                per_head(grad.view(), realised.inverse_transpose().reversed_axes(), par)
            }
            Some(Transform::Inverse(matrix)) => {
                let (realised, side) = side(matrix)?;
                // y = x M^T, so that the gradient of M is that of M^T transposed.
                self.sums.inverse(matrix, per_head_gradient(grad.view(), x, side, par));
                per_head(grad.view(), realised.inverse_transpose(), par)
            }
            Some(Transform::Across(matrix)) => {
                let (realised, side) = side(matrix)?;
                self.sums.matrix(matrix, across_heads_gradient(x, grad.view(), side, par));
                let mut back = grad;
                across_heads(back.view_mut(), realised.matrix().reversed_axes(), par);
                back
            }
        })
    }
}

impl<T: Element> Insert<T> for FlatInsert<'_, T> {
    fn covers(&self, spot: Spot) -> bool {
        self.step.scheme.quantiser(spot).is_some() || self.transform(spot).is_some()
    }

    fn forward(&mut self, spot: Spot, x: Array2<T>, keep: bool, par: Par) -> Result<Array2<T>, BoxError> {
        let mut y = self.transformed(spot, x.view(), par)?.into_owned();
        if let Some((quantiser, run)) = self.quantiser(spot, x.ncols()) {
            let clip = self.step.parameters.input_clips.get(&spot);
            quantiser.forward_in_place(y.view_mut(), run, clip, par)?;
        }
        if keep {
            self.tape.entry(spot).or_default().push(x);
        }
        Ok(y)
    }

    fn backward(&mut self, spot: Spot, mut grad: Array2<T>, par: Par) -> Result<Array2<T>, BoxError> {
        let x = self.tape.get_mut(&spot).and_then(Vec::pop);
        let x = x.ok_or_else(|| format!("there was no forward at {spot:?} that this backward belongs to"))?;
        if let Some((quantiser, run)) = self.quantiser(spot, x.ncols()) {
            let y = self.transformed(spot, x.view(), par)?;
            let clip = self.step.parameters.input_clips.get(&spot);
            if let Some(clip) = quantiser.backward_in_place(y.view(), grad.view_mut(), run, clip, par)? {
                self.sums.input_clip(spot, clip);
            }
        }
        Ok(self.transformed_back(spot, x.view(), grad, par)?)
    }
}
