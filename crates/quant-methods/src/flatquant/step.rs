//! One training step: matrices as they are now, what they make of weights, and gradients put together.

use super::parameters::FlatParameters;
use super::scheme::{FlatScheme, FlatShape, Matrix};
use crate::MethodError;
use ndarray::{Array1, Array2};
use quant_graph::{EffectiveWeights, LinearId, Site, Spot, WeightGradient};
use quant_kernels::{Element, Par};
use quant_rotate::{ClipLogits, Realised};
use std::collections::BTreeMap;

/// The parameters of a block with every matrix and its inverse transpose formed: what a forward and its backward go by.
#[derive(Debug)]
pub struct FlatStep<'a, T> {
    pub(super) shape: &'a FlatShape,
    pub(super) scheme: &'a FlatScheme,
    pub(super) parameters: &'a FlatParameters<T>,
    pub(super) realised: BTreeMap<Matrix, Realised<T>>,
}

impl<'a, T: Element> FlatStep<'a, T> {
    /// Forms the matrices: all that there are, which may be more than the scheme asks for.
    ///
    /// # Errors
    /// [`MethodError::Rotate`] for a matrix without an inverse; [`MethodError::Learned`] and [`MethodError::Channels`] for
    /// parameters that lack a matrix, or whose sizes are not those of the block.
    pub fn new(
        shape: &'a FlatShape,
        scheme: &'a FlatScheme,
        parameters: &'a FlatParameters<T>,
    ) -> Result<Self, MethodError> {
        let there = |matrix: &Matrix| parameters.matrices.contains_key(matrix);
        let needed = |matrix: &Matrix| {
            // A pair is two; what stands before o is undone there together with P_v.
            scheme.has(*matrix) || matrix.comes_with().iter().any(there)
        };
        if let Some(matrix) = Matrix::ALL.into_iter().find(|matrix| needed(matrix) && !there(matrix)) {
            return Err(MethodError::Learned { what: format!("matrix {}", matrix.name()) });
        }
        if there(&Matrix::Output) && there(&Matrix::OutputLeft) {
            return Err(MethodError::Learned {
                what: "one form of what stands before o (o, or o.left and o.right)".into(),
            });
        }
        let mut realised = BTreeMap::new();
        for (matrix, learned) in &parameters.matrices {
            let side = shape.side(*matrix)?;
            if learned.side() != side {
                return Err(channels(format!("the matrix {}", matrix.name()), side, learned.side()));
            }
            realised.insert(*matrix, learned.realise()?);
        }
        for (site, scales) in &parameters.scales {
            if !Matrix::scaled(*site) || !there(&Matrix::pair(*site).0) {
                return Err(MethodError::Learned { what: format!("matrices beside the scale at {site:?}") });
            }
            if scales.len() != shape.width(*site) {
                return Err(channels(format!("the scale at {site:?}"), shape.width(*site), scales.len()));
            }
        }
        Ok(Self { shape, scheme, parameters, realised })
    }

    /// The gradients of all parameters: `weights` are those of the effective weights, `sums` what an insert of this step has summed
    /// ([`FlatInsert::into_sums`](super::FlatInsert::into_sums)).
    ///
    /// # Errors
    /// As [`Self::weights`].
    pub fn backward(
        &self,
        float: &EffectiveWeights<'_, T>,
        weights: &BTreeMap<LinearId, WeightGradient<T>>,
        mut sums: FlatSums<T>,
        par: Par,
    ) -> Result<FlatParameters<T>, MethodError> {
        for (id, gradient) in weights {
            let missing = || MethodError::Learned { what: format!("float weight of {id}") };
            self.merged_back(*id, float.get(id).ok_or_else(missing)?, gradient, &mut sums, par)?;
        }
        let mut matrices = BTreeMap::new();
        for (matrix, realised) in &self.realised {
            let zeros = || Array2::zeros(realised.matrix().dim());
            let direct = sums.matrices.remove(matrix).unwrap_or_else(zeros);
            let inverse = sums.inverses.remove(matrix).unwrap_or_else(zeros);
            matrices.insert(*matrix, realised.backward(direct.view(), inverse.view())?);
        }
        // What nothing flowed to has a gradient all the same.
        let none = |clip: &ClipLogits<T>| {
            let zeros = Array1::zeros(clip.max.len());
            ClipLogits { max: zeros.clone(), min: zeros }
        };
        let parameters = self.parameters;
        let scales = parameters.scales.iter().map(|(site, scales)| {
            (*site, sums.scales.remove(site).unwrap_or_else(|| Array1::zeros(scales.len())))
        });
        let scales = scales.collect();
        let weight_clips = parameters
            .weight_clips
            .iter()
            .map(|(id, clip)| (*id, sums.weight_clips.remove(id).unwrap_or_else(|| none(clip))));
        let weight_clips = weight_clips.collect();
        let input_clips = parameters.input_clips.iter().map(|(spot, clip)| {
            let gradient = sums.input_clips.remove(spot).unwrap_or_else(|| none(clip));
            let tied = self.scheme.tied_clips && matches!(spot, Spot::Site(_) | Spot::Linear(_));
            (*spot, if tied { of_both(&gradient) } else { gradient })
        });
        let input_clips = input_clips.collect();
        Ok(FlatParameters { matrices, scales, weight_clips, input_clips })
    }

    pub(super) fn realised(&self, matrix: Matrix) -> Result<&Realised<T>, MethodError> {
        let missing = || MethodError::Learned { what: matrix.name().into() };
        self.realised.get(&matrix).ok_or_else(missing)
    }
}

/// The gradient of a factor that both ends have, at each of them.
fn of_both<T: Element>(ends: &ClipLogits<T>) -> ClipLogits<T> {
    let sum = &ends.max + &ends.min;
    ClipLogits { max: sum.clone(), min: sum }
}

pub(super) fn channels(what: String, expected: usize, found: usize) -> MethodError {
    MethodError::Channels { method: "flatquant", what, expected, found }
}

/// Sums of gradients of a step: of matrices and of their inverse transposes apart.
#[derive(Clone, Debug)]
pub struct FlatSums<T> {
    pub(super) matrices: BTreeMap<Matrix, Array2<T>>,
    pub(super) inverses: BTreeMap<Matrix, Array2<T>>,
    pub(super) scales: BTreeMap<Site, Array1<T>>,
    pub(super) weight_clips: BTreeMap<LinearId, ClipLogits<T>>,
    pub(super) input_clips: BTreeMap<Spot, ClipLogits<T>>,
}

impl<T: Element> FlatSums<T> {
    pub(super) fn new() -> Self {
        Self {
            matrices: BTreeMap::new(),
            inverses: BTreeMap::new(),
            scales: BTreeMap::new(),
            weight_clips: BTreeMap::new(),
            input_clips: BTreeMap::new(),
        }
    }
    /// Adds to the gradient of a matrix.
    pub(super) fn matrix(&mut self, matrix: Matrix, part: Array2<T>) {
        add(&mut self.matrices, matrix, part);
    }
    /// Adds to the gradient of the inverse transpose of a matrix.
    pub(super) fn inverse(&mut self, matrix: Matrix, part: Array2<T>) {
        add(&mut self.inverses, matrix, part);
    }
    pub(super) fn scale(&mut self, site: Site, part: Array1<T>) {
        add(&mut self.scales, site, part);
    }
    /// Adds the sums of rows of a weight.
    pub(super) fn add(&mut self, part: Self) {
        part.matrices.into_iter().for_each(|(matrix, sum)| self.matrix(matrix, sum));
        part.inverses.into_iter().for_each(|(matrix, sum)| self.inverse(matrix, sum));
        part.scales.into_iter().for_each(|(site, sum)| self.scale(site, sum));
    }
    pub(super) fn input_clip(&mut self, spot: Spot, part: ClipLogits<T>) {
        match self.input_clips.get_mut(&spot) {
            Some(sum) => {
                sum.max += &part.max;
                sum.min += &part.min;
            }
            None => drop(self.input_clips.insert(spot, part)),
        }
    }
}

fn add<K: Ord, T: Element, D: ndarray::Dimension>(
    sums: &mut BTreeMap<K, ndarray::Array<T, D>>,
    key: K,
    part: ndarray::Array<T, D>,
) {
    match sums.get_mut(&key) {
        Some(sum) => *sum += &part,
        None => drop(sums.insert(key, part)),
    }
}
