//! Effective weights: transformed, clipped, mixed by `P_v` and quantised; and the way back.

use super::parts::{cut, joined};
use super::scheme::Matrix;
use super::step::{FlatStep, FlatSums, channels};
use crate::MethodError;
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, Slice};
use quant_graph::{EffectiveWeight, EffectiveWeights, LinearId, LinearSpec, Site, WeightGradient};
use quant_kernels::{Element, Par, tasks};
use quant_rotate::{ClipLogits, Kronecker, clip_weight, clip_weight_gradient, per_head, per_head_gradient};
use std::collections::BTreeMap;
use std::ops::Range;

/// What a linear multiplies by and adds with the transforms merged into it.
#[derive(Clone, Debug, PartialEq)]
pub struct MergedWeight<T> {
    /// `[out, in]`.
    pub weight: Array2<T>,
    /// `[out]`.
    pub bias: Option<Array1<T>>,
}

impl<T> MergedWeight<T> {
    /// For a pass through the block.
    #[must_use]
    pub fn view(&self) -> EffectiveWeight<'_, T> {
        EffectiveWeight { weight: self.weight.view(), bias: self.bias.as_ref().map(|b| b.view()) }
    }
}

/// A weight on its way; a step that does nothing leaves nothing.
struct Stages<T> {
    /// Columns divided by the factors of channels.
    scaled: Option<Array2<T>>,
    /// Of o before a pair: heads times the inverse transpose of `P_v`.
    unmixed: Option<Array2<T>>,
    /// Times the inverse transposes.
    transformed: Option<Array2<T>>,
    clipped: Option<Array2<T>>,
    /// Rows of values mixed.
    mixed: Option<Array2<T>>,
}

/// Some rows of a float weight, with the clip logits of each.
struct Part<'w, T> {
    weight: ArrayView2<'w, T>,
    logits: Option<ClipLogits<T>>,
}

/// What the gradient of some rows is for the parameters, and for their clip logits.
struct Back<T> {
    sums: FlatSums<T>,
    clip: Option<ClipLogits<T>>,
}

/// Bytes of the rows that go through all steps at a time: they stay in a second-level cache with what they are turned into, and nothing
/// large is allocated.
const PART_BYTES: usize = 256 << 10;

impl<T> Stages<T> {
    fn scaled<'s>(&'s self, own: &'s ArrayView2<'_, T>) -> ArrayView2<'s, T> {
        self.scaled.as_ref().map_or_else(|| own.view(), |w| w.view())
    }
    fn unmixed<'s>(&'s self, own: &'s ArrayView2<'_, T>) -> ArrayView2<'s, T> {
        self.unmixed.as_ref().map_or_else(|| self.scaled(own), |w| w.view())
    }
    fn transformed<'s>(&'s self, own: &'s ArrayView2<'_, T>) -> ArrayView2<'s, T> {
        self.transformed.as_ref().map_or_else(|| self.unmixed(own), |w| w.view())
    }
    fn clipped<'s>(&'s self, own: &'s ArrayView2<'_, T>) -> ArrayView2<'s, T> {
        self.clipped.as_ref().map_or_else(|| self.transformed(own), |w| w.view())
    }
    fn mixed<'s>(&'s self, own: &'s ArrayView2<'_, T>) -> ArrayView2<'s, T> {
        self.mixed.as_ref().map_or_else(|| self.clipped(own), |w| w.view())
    }
}

impl<T: Element> FlatStep<'_, T> {
    /// The effective weights of all linears that anything is done to, from their float ones.
    ///
    /// # Errors
    /// [`MethodError::Learned`] if `float` lacks one, [`MethodError::Channels`] if one does not fit the block,
    /// [`MethodError::Rotate`] if clip factors do not.
    pub fn weights(
        &self,
        float: &EffectiveWeights<'_, T>,
        par: Par,
    ) -> Result<BTreeMap<LinearId, MergedWeight<T>>, MethodError> {
        let changed = self.shape.block.linears.iter().filter(|linear| self.changes(linear.id));
        changed
            .map(|linear| {
                let missing = || MethodError::Learned { what: format!("float weight of {}", linear.module) };
                let own = float.get(&linear.id).ok_or_else(missing)?;
                Ok((linear.id, self.weight(linear, own, par)?))
            })
            .collect()
    }

    /// The effective weight of one linear.
    pub(super) fn weight(
        &self,
        linear: &LinearSpec,
        own: &EffectiveWeight<'_, T>,
        par: Par,
    ) -> Result<MergedWeight<T>, MethodError> {
        for (what, expected, found) in [
            ("rows of", linear.outputs, own.weight.nrows()),
            ("columns of", linear.inputs, own.weight.ncols()),
            ("bias of", linear.outputs, own.bias.map_or(linear.outputs, |bias| bias.len())),
        ] {
            if expected != found {
                return Err(channels(format!("{what} {}", linear.module), expected, found));
            }
        }
        self.merged(linear.id, own, par)
    }

    /// Whether anything is done to a weight.
    pub(super) fn changes(&self, id: LinearId) -> bool {
        self.scheme.weights_at(id.site()).is_some()
            || self.weight_pair(id).is_some()
            || self.parameters.weight_clips.contains_key(&id)
            || self.value_mix(id).is_some()
    }

    /// The matrices whose inverse transposes multiply the columns of a weight.
    fn weight_pair(&self, id: LinearId) -> Option<(Matrix, Matrix)> {
        let there = |pair: &(Matrix, Matrix)| {
            self.realised.contains_key(&pair.0) && self.realised.contains_key(&pair.1)
        };
        // Where only the cache is quantised, the attention output gets the inverse of P_v instead.
        let heads = (id.site() == Site::AttentionOutput).then_some((Matrix::Output, Matrix::Value));
        [Some(Matrix::pair(id.site())), heads].into_iter().flatten().find(there)
    }

    /// Parts of a row that a pair multiplies one by one; what stands before o across heads multiplies it whole.
    fn shards_of(&self, pair: (Matrix, Matrix), id: LinearId) -> usize {
        if pair == Matrix::pair(id.site()) { self.shape.shards_at(id.site()) } else { 1 }
    }

    /// The inverse transpose of `P_v`, where the heads of the columns of a weight are multiplied by it alone: in o before its pair.
    fn unmixed(&self, id: LinearId) -> Option<ArrayView2<'_, T>> {
        let own = self.weight_pair(id)?.0 == Matrix::OutputLeft;
        Some(self.realised.get(&Matrix::Value).filter(|_| own)?.inverse_transpose())
    }

    /// The rows of a weight that `P_v` mixes, and `P_v`.
    fn value_mix(&self, id: LinearId) -> Option<(Range<usize>, ArrayView2<'_, T>)> {
        Some((self.shape.value_rows(id)?, self.realised.get(&Matrix::Value)?.matrix()))
    }

    /// The transform of the columns of a weight.
    fn columns(&self, (left, right): (Matrix, Matrix)) -> Result<Kronecker<'_, T>, MethodError> {
        let inverse = |matrix| self.realised(matrix).map(|realised| realised.inverse_transpose());
        Ok(Kronecker::new(inverse(left)?, inverse(right)?)?)
    }

    fn stages(&self, id: LinearId, own: &Part<'_, T>, par: Par) -> Result<Stages<T>, MethodError> {
        let mut stages =
            Stages { scaled: None, unmixed: None, transformed: None, clipped: None, mixed: None };
        stages.scaled = self.scales(id.site()).map(|scales| &own.weight / &scales);
        stages.unmixed = self.unmixed(id).map(|matrix| per_head(stages.scaled(&own.weight), matrix, par));
        if let Some(pair) = self.weight_pair(id) {
            let unmixed = stages.unmixed(&own.weight);
            let parts = cut(unmixed, self.shards_of(pair, id))?;
            let transformed = self.columns(pair)?.apply(parts.view(), par);
            stages.transformed = Some(joined(transformed, own.weight.ncols())?);
        }
        if let Some(logits) = &own.logits {
            let w = stages.transformed(&own.weight);
            stages.clipped = Some(clip_weight(w, w.ncols(), logits, par)?);
        }
        if let Some((rows, matrix)) = self.value_mix(id) {
            let mut mixed = stages.clipped(&own.weight).to_owned();
            let part = Slice::from(rows);
            let values = per_head(mixed.slice_axis(Axis(0), part).reversed_axes(), matrix, par);
            mixed.slice_axis_mut(Axis(0), part).assign(&values.t());
            stages.mixed = Some(mixed);
        }
        Ok(stages)
    }

    /// The effective weight of a linear that has `own`.
    fn merged(
        &self,
        id: LinearId,
        own: &EffectiveWeight<'_, T>,
        par: Par,
    ) -> Result<MergedWeight<T>, MethodError> {
        let mut bias = own.bias.map(|bias| bias.to_owned());
        if let (Some(bias), Some((rows, matrix))) = (&mut bias, self.value_mix(id)) {
            let mut part = bias.slice_axis_mut(Axis(0), Slice::from(rows));
            let mixed = per_head(as_row(part.view()), matrix, par);
            part.assign(&mixed.row(0));
        }
        let mut weight = Array2::zeros(own.weight.dim());
        let (rows, inner, outer) = self.parts(id, own, par);
        let parts = weight.axis_chunks_iter_mut(Axis(0), rows).enumerate();
        tasks::try_for_each(parts, outer, |(part, mut to)| {
            let own = self.part(id, own, part * rows..part * rows + to.nrows());
            let stages = self.stages(id, &own, inner)?;
            to.assign(&stages.mixed(&own.weight));
            if let Some(quantiser) = self.scheme.weights_at(id.site()) {
                let columns = to.ncols();
                quantiser.forward_in_place(to, columns, None, inner)?;
            }
            Ok::<_, MethodError>(())
        })?;
        Ok(MergedWeight { weight, bias })
    }

    /// What the gradient of an effective weight is for the parameters. The steps of the weight are made again.
    pub(super) fn merged_back(
        &self,
        id: LinearId,
        own: &EffectiveWeight<'_, T>,
        gradient: &WeightGradient<T>,
        sums: &mut FlatSums<T>,
        par: Par,
    ) -> Result<(), MethodError> {
        let (rows, inner, outer) = self.parts(id, own, par);
        let parts = gradient.weight.axis_chunks_iter(Axis(0), rows).enumerate();
        let parts = tasks::map(parts, outer, |(part, g)| {
            let own = self.part(id, own, part * rows..part * rows + g.nrows());
            self.part_back(id, &own, g, inner)
        });
        let mut logits = [Vec::new(), Vec::new()];
        for part in parts {
            let Back { sums: of_part, clip } = part?;
            sums.add(of_part);
            for (ends, of_part) in
                logits.iter_mut().zip(clip.map(|clip| [clip.max, clip.min]).into_iter().flatten())
            {
                ends.extend(of_part);
            }
        }
        if self.parameters.weight_clips.contains_key(&id) {
            let [max, min] = logits.map(Array1::from);
            sums.weight_clips.insert(id, ClipLogits { max, min });
        }
        if let (Some((rows, matrix)), Some(bias), Some(of_bias)) =
            (self.value_mix(id), &own.bias, &gradient.bias)
        {
            let part = Slice::from(rows);
            let (bias, of_bias) = (bias.slice_axis(Axis(0), part), of_bias.slice_axis(Axis(0), part));
            let of_matrix = per_head_gradient(as_row(bias), as_row(of_bias), matrix.nrows(), par);
            sums.matrix(Matrix::Value, of_matrix);
        }
        Ok(())
    }

    /// [`Self::merged_back`] of some rows.
    fn part_back(
        &self,
        id: LinearId,
        own: &Part<'_, T>,
        gradient: ArrayView2<'_, T>,
        par: Par,
    ) -> Result<Back<T>, MethodError> {
        let mut sums = FlatSums::new();
        let stages = self.stages(id, own, par)?;
        let mut g = gradient.as_standard_layout().into_owned();
        if let Some(quantiser) = self.scheme.weights_at(id.site()) {
            let w = stages.mixed(&own.weight);
            quantiser.backward_in_place(w, g.view_mut(), w.ncols(), None, par)?;
        }
        if let Some((rows, matrix)) = self.value_mix(id) {
            let part = Slice::from(rows);
            let clipped = stages.clipped(&own.weight);
            let values = clipped.slice_axis(Axis(0), part).reversed_axes();
            let behind = g.slice_axis(Axis(0), part).reversed_axes();
            sums.matrix(Matrix::Value, per_head_gradient(values, behind, matrix.nrows(), par));
            let before = per_head(behind, matrix.t(), par);
            g.slice_axis_mut(Axis(0), part).assign(&before.t());
        }
        let mut clip = None;
        if let Some(logits) = &own.logits {
            let w = stages.transformed(&own.weight);
            let (of_weight, of_logits) = clip_weight_gradient(w, g.view(), w.ncols(), logits, par)?;
            clip = Some(of_logits);
            g = of_weight;
        }
        if let Some(pair) = self.weight_pair(id) {
            let shards = self.shards_of(pair, id);
            let parts = cut(stages.unmixed(&own.weight), shards)?;
            let back = self.columns(pair)?.backward(parts.view(), cut(g.view(), shards)?.view(), par);
            sums.inverse(pair.0, back.left);
            sums.inverse(pair.1, back.right);
            g = joined(back.input, own.weight.ncols())?;
        }
        if let Some(matrix) = self.unmixed(id) {
            let of_matrix = per_head_gradient(stages.scaled(&own.weight), g.view(), matrix.nrows(), par);
            sums.inverse(Matrix::Value, of_matrix);
            g = per_head(g.view(), matrix.t(), par);
        }
        if let (Some(scales), Some(scaled)) = (self.scales(id.site()), &stages.scaled) {
            // Of w / c: -w / c^2.
            let sum = (&g * scaled).sum_axis(Axis(0));
            sums.scale(id.site(), -sum / scales);
        }
        Ok(Back { sums, clip })
    }

    /// Rows of a weight that go through all steps at a time, with the threads of a part and those that take parts. Where rows are
    /// mixed all go together, as where there are not as many clip factors, which is refused.
    fn parts(&self, id: LinearId, own: &EffectiveWeight<'_, T>, par: Par) -> (usize, Par, Par) {
        let (rows, columns) = own.weight.dim();
        let fits = |logits: &ClipLogits<T>| logits.max.len() == rows && logits.min.len() == rows;
        let alone = self.value_mix(id).is_none() && self.parameters.weight_clips.get(&id).is_none_or(fits);
        if !alone {
            return (rows.max(1), par, Par::Seq);
        }
        ((PART_BYTES / size_of::<T>() / columns.max(1)).max(1), Par::Seq, par)
    }

    /// Some rows of a weight.
    fn part<'w>(&self, id: LinearId, own: &'w EffectiveWeight<'_, T>, rows: Range<usize>) -> Part<'w, T> {
        let (whole, part) = (rows.len() == own.weight.nrows(), Slice::from(rows));
        let logits = self.parameters.weight_clips.get(&id).map(|logits| {
            let of = |ends: &Array1<T>| {
                if whole { ends.clone() } else { ends.slice_axis(Axis(0), part).to_owned() }
            };
            ClipLogits { max: of(&logits.max), min: of(&logits.min) }
        });
        Part { weight: own.weight.slice_axis(Axis(0), part), logits }
    }

    /// The factors of channels at a site.
    pub(super) fn scales(&self, site: Site) -> Option<ArrayView1<'_, T>> {
        self.parameters.scales.get(&site).map(|scales| scales.view())
    }
}

fn as_row<T>(x: ArrayView1<'_, T>) -> ArrayView2<'_, T> {
    x.insert_axis(Axis(0))
}
