//! A float block that is trained in, and the error of what stands for it.

use super::guard::Alarm;
use super::loss::mean_squared_error;
use super::parameters::FlatParameters;
use super::scheme::{FlatScheme, FlatShape, Matrix};
use super::step::FlatStep;
use super::weights::MergedWeight;
use crate::MethodError;
use ndarray::ArrayView2;
use quant_core::FloatType;
use quant_graph::{BlockTraining, EffectiveWeight, EffectiveWeights, LinearId};
use quant_kernels::Par;
use quant_rotate::{Learned, RotateError};
use std::collections::BTreeMap;
use std::fmt;

/// A float block that is trained in.
#[derive(Clone, Copy)]
pub struct FlatBlock<'a, 'w> {
    /// Runs it, in as much memory as it was given.
    pub training: &'a dyn BlockTraining<f32>,
    /// Its sizes.
    pub shape: &'a FlatShape,
    /// Its weights.
    pub float: &'a EffectiveWeights<'w, f32>,
    /// Its name, which random numbers are keyed by: `model.layers.0`.
    pub name: &'a str,
}

impl fmt::Debug for FlatBlock<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlatBlock")
            .field("name", &self.name)
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

/// What a block reads: inputs of some sequences behind each other.
#[derive(Clone, Copy, Debug)]
pub struct Sequences<'a> {
    /// The residual stream, `[tokens, hidden]`.
    pub x: ArrayView2<'a, f32>,
    /// The first row of every sequence, and the number of rows at the end.
    pub starts: &'a [usize],
}

impl Sequences<'_> {
    pub(super) fn count(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }
}

/// How a training went. Errors are relative, the mean squared error over the mean square of the float output, over all
/// sequences and in deployed form: transforms merged, everything rounded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FlatReport {
    /// The mean squared error of the batch of every step, before the step.
    pub losses: Vec<f64>,
    /// The error of the parameters with which training began.
    pub before: f64,
    /// The error after every epoch, of [`FlatVariant::Stable`](super::FlatVariant::Stable); NaN for one that lost its numbers, which is the last.
    pub epochs: Vec<f64>,
    /// The error of the parameters that were kept.
    pub after: f64,
    /// The epoch, from 1, they are of; 0 are those it began with.
    pub kept: usize,
    /// Sequences at the end that made no whole batch and were not trained on.
    pub dropped: usize,
    /// What the guards of [`FlatVariant::Stable`](super::FlatVariant::Stable) found: in the errors, and in the parameters of the last epoch and of the one
    /// that was kept.
    pub alarms: Vec<Alarm>,
}

impl FlatReport {
    /// What the user should know of the data, in words.
    #[must_use]
    pub fn notice(&self) -> Option<String> {
        not_trained_on(self.dropped)
    }
}

/// What is said of sequences that make no whole batch.
pub(super) fn not_trained_on(dropped: usize) -> Option<String> {
    (dropped > 0).then(|| {
        format!(
            "flatquant: {dropped} calibration sequences at the end make no whole batch and are not trained on"
        )
    })
}

impl FlatBlock<'_, '_> {
    /// The error of parameters in deployed form: the mean squared error of the block's output against `target`
    /// `[tokens, hidden]`, that of the float block, over the mean square of `target`.
    ///
    /// Weights are those of [`FlatParameters::merge`], rounded by row, but for the factors in the rows of up, which change no
    /// level, and for the rounding of the gains of norms, which hardly does.
    ///
    /// # Errors
    /// As [`Self::train`].
    ///
    /// # Panics
    /// If `target` is not of the shape of the inputs.
    pub fn relative_error(
        &self,
        scheme: &FlatScheme,
        parameters: &FlatParameters<f32>,
        sequences: Sequences<'_>,
        target: ArrayView2<'_, f32>,
        par: Par,
    ) -> Result<f64, MethodError> {
        let exact = parameters.deployed(self.shape)?.parameters;
        let merged = self.rounded(scheme, &exact, par)?;
        let with = merged.iter().map(|(id, weight)| (*id, weight.view())).collect();
        let matrices = exact.matrices.iter().map(|(which, learned)| {
            let cast = if *which == Matrix::Key { FloatType::F32 } else { self.shape.cast };
            Ok((*which, Learned::free(learned.realise()?.matrix().mapv(|v| cast.round(v as f32)).view())?))
        });
        let running = FlatParameters {
            matrices: matrices.collect::<Result<_, RotateError>>()?,
            scales: parameters.scales.clone(),
            weight_clips: BTreeMap::new(),
            input_clips: parameters.input_clips.clone(),
        };
        let step = FlatStep::new(self.shape, scheme, &running)?;
        let y = self.training.forward(sequences.x, sequences.starts, &with, &mut step.insert(), par)?;
        let square = target.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>();
        let mean = square / target.len().max(1) as f64;
        Ok(mean_squared_error(y.view(), target).value / mean.max(f64::MIN_POSITIVE))
    }

    /// Every weight merged in f64, rounded to f32 and to the levels of its rows; and its bias.
    fn rounded(
        &self,
        scheme: &FlatScheme,
        exact: &FlatParameters<f64>,
        par: Par,
    ) -> Result<BTreeMap<LinearId, MergedWeight<f32>>, MethodError> {
        let step = FlatStep::new(self.shape, &FlatScheme::NONE, exact)?;
        let linears = self.shape.block.linears.iter().map(|linear| {
            let missing = || MethodError::Learned { what: format!("float weight of {}", linear.module) };
            let own = self.float.get(&linear.id).ok_or_else(missing)?;
            let (weight, bias) = (own.weight.mapv(f64::from), own.bias.map(|bias| bias.mapv(f64::from)));
            let wide = EffectiveWeight { weight: weight.view(), bias: bias.as_ref().map(|bias| bias.view()) };
            let merged = step.weight(linear, &wide, par)?;
            let cast = |v: f64| self.shape.cast.round(v as f32);
            let weight = merged.weight.mapv(cast);
            let weight = match scheme.weights_at(linear.id.site()) {
                Some(quantiser) => quantiser.forward(weight.view(), weight.ncols(), None, par)?,
                None => weight,
            };
            let bias = merged.bias.map(|bias| bias.mapv(cast));
            Ok((linear.id, MergedWeight { weight, bias }))
        });
        linears.collect()
    }
}
