//! The parameters of a block, which are also the shape of their gradients.

use super::scheme::{FlatScheme, FlatShape, Matrix};
use crate::MethodError;
use ndarray::Array1;
use quant_graph::{LinearId, Site, Spot};
use quant_kernels::Element;
use quant_rotate::{AdamW, ClipLogits, Learned, Parametrisation, Update};
use std::collections::BTreeMap;

/// Parameters that share a learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// Of learned matrices.
    Matrices,
    /// Factors of channels.
    Scales,
    /// Clip factors of weights.
    WeightClips,
    /// Clip factors of activations and of the cache.
    InputClips,
}

/// With what training begins.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// How parameters stand for matrices.
    pub parametrisation: Parametrisation,
    /// The factors of channels by site, for [`initial_scales`](quant_rotate::initial_scales); a site without stays without.
    pub scales: &'a BTreeMap<Site, Array1<f32>>,
    /// Whether the clipping of weights is learned.
    pub weight_clips: bool,
    /// Whether the clipping of activations is learned.
    pub input_clips: bool,
    /// Of the random matrices, together with the name.
    pub seed: u64,
    /// Of the block.
    pub name: &'a str,
}

/// What is learned in a block, or gradients of it. What a block does not have has no entry.
#[derive(Clone, Debug, PartialEq)]
pub struct FlatParameters<T> {
    /// The matrices.
    pub matrices: BTreeMap<Matrix, Learned<T>>,
    /// Factors of channels `c` at the input of q, k and v, of gate and up, and of down.
    pub scales: BTreeMap<Site, Array1<T>>,
    /// Of the rows of a weight.
    pub weight_clips: BTreeMap<LinearId, ClipLogits<T>>,
    /// One of each end for a quantiser of activations, keys or values.
    pub input_clips: BTreeMap<Spot, ClipLogits<T>>,
}

impl<T: Element> FlatParameters<T> {
    /// Random matrices by seed and name, the given scales, clip logits of 4.
    ///
    /// # Errors
    /// [`MethodError::Rotate`] where the features of a site have no Kronecker pair; [`MethodError::Channels`] for scales of another
    /// number than there are channels, or at the attention output, which has none.
    pub fn initial(shape: &FlatShape, scheme: &FlatScheme, start: Start<'_>) -> Result<Self, MethodError> {
        let mut matrices = BTreeMap::new();
        for matrix in Matrix::ALL.into_iter().filter(|matrix| scheme.has(*matrix)) {
            let name = format!("{}.{}", start.name, matrix.name());
            let side = shape.side(matrix)?;
            matrices.insert(matrix, Learned::initial(side, start.parametrisation, start.seed, &name));
        }
        let mut scales = BTreeMap::new();
        for (site, values) in start.scales {
            let expected = if Matrix::scaled(*site) { shape.width(*site) } else { 0 };
            if values.len() != expected {
                return Err(MethodError::Channels {
                    method: "flatquant",
                    what: format!("the scale at {site:?}"),
                    expected,
                    found: values.len(),
                });
            }
            if scheme.has(Matrix::pair(*site).0) {
                scales.insert(*site, values.mapv(T::from_f32));
            }
        }
        let rounded = |id: LinearId| start.weight_clips && scheme.weights_at(id.site()).is_some();
        let linears = shape.block.linears.iter().filter(|linear| rounded(linear.id));
        let spots = shape.quantised(scheme).filter(|spot| start.input_clips && scheme.clips(*spot));
        Ok(Self {
            matrices,
            scales,
            weight_clips: linears.map(|l| (l.id, ClipLogits::initial(l.outputs))).collect(),
            input_clips: spots.map(|spot| (spot, ClipLogits::initial(1))).collect(),
        })
    }

    /// All arrays with their names and groups, groups after each other: what an optimiser takes, in this order at every step.
    #[must_use]
    pub fn tensors(&self) -> Vec<(String, Group, &[T])> {
        let mut tensors = Vec::new();
        for (matrix, learned) in &self.matrices {
            let arrays = learned.tensors().into_iter();
            tensors.extend(arrays.map(|(part, x)| (format!("{}.{part}", matrix.name()), Group::Matrices, x)));
        }
        for (site, scales) in &self.scales {
            tensors.push((format!("{site:?}.scale"), Group::Scales, scales.as_slice().unwrap_or_default()));
        }
        let weights = self.weight_clips.iter().map(|(id, c)| (id.to_string(), Group::WeightClips, c));
        let inputs = self.input_clips.iter().map(|(spot, c)| (format!("{spot:?}"), Group::InputClips, c));
        for (name, group, clip) in weights.chain(inputs) {
            for (end, values) in [("max", &clip.max), ("min", &clip.min)] {
                tensors.push((format!("{name}.clip_{end}"), group, values.as_slice().unwrap_or_default()));
            }
        }
        tensors
    }

    /// [`Self::tensors`], to be changed by an optimiser, without the names.
    #[must_use]
    pub fn tensors_mut(&mut self) -> Vec<(Group, &mut [T])> {
        let mut tensors = Vec::new();
        for learned in self.matrices.values_mut() {
            tensors.extend(learned.tensors_mut().into_iter().map(|(_, x)| (Group::Matrices, x)));
        }
        for scales in self.scales.values_mut() {
            tensors.push((Group::Scales, scales.as_slice_mut().unwrap_or_default()));
        }
        let weights = self.weight_clips.values_mut().map(|c| (Group::WeightClips, c));
        let inputs = self.input_clips.values_mut().map(|c| (Group::InputClips, c));
        for (group, clip) in weights.chain(inputs) {
            for values in [&mut clip.max, &mut clip.min] {
                tensors.push((group, values.as_slice_mut().unwrap_or_default()));
            }
        }
        tensors
    }

    /// One step of an optimiser; `rates` are those of the groups in their order, as a
    /// [`CosineSchedule`](quant_rotate::CosineSchedule) of four rates gives them.
    ///
    /// # Errors
    /// [`MethodError::Rotate`] if the gradients are those of other parameters.
    pub fn descend(
        &mut self,
        gradients: &Self,
        optimiser: &mut AdamW<T>,
        rates: [f64; 4],
    ) -> Result<(), MethodError> {
        let gradients = gradients.tensors();
        let updates = self.tensors_mut().into_iter().zip(&gradients).map(|((group, parameters), given)| {
            Update { parameters, gradient: given.2, learning_rate: rates[group as usize] }
        });
        Ok(optimiser.step(updates)?)
    }
}
