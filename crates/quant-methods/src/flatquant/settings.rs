//! What a training goes by.

use super::scheme::FlatScheme;
use crate::MethodError;
use quant_rotate::{Parametrisation, RotateError};
use serde::Deserialize;

/// Which parameters a training ends with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlatVariant {
    /// Those with the least error of all epochs, or those it began with if no epoch is better.
    #[default]
    Stable,
    /// Those of the last step, as published.
    Exact,
    /// The same, and what is deployed has what the authors' program does to it ([`FlatShape::cast_to`](super::FlatShape::cast_to)).
    Official,
}

impl FlatVariant {
    /// In one word.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Exact => "exact",
            Self::Official => "official",
        }
    }
}

/// Settings of a training; the defaults are those of the official scripts for Qwen models.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlatSettings {
    /// Which parameters are kept.
    pub variant: FlatVariant,
    /// How parameters stand for matrices.
    pub parametrisation: Parametrisation,
    /// Passes over the sequences; 0 leaves the parameters as they begin.
    pub epochs: usize,
    /// Of matrices and factors of channels; clip factors have ten times as much.
    pub learning_rate: f64,
    /// Sequences of a step.
    pub batch_size: usize,
    /// Of the random matrices, together with the name of the block.
    pub seed: u64,
    /// Whether the linears of a site share the quantiser of their input.
    pub share_inputs: bool,
    /// Whether the clipping of weights is learned.
    pub lwc: bool,
    /// Whether the clipping of activations and of the cache is learned.
    pub lac: bool,
    /// Whether channels have learned factors.
    pub diag: bool,
    /// The exponent of activations in the factors that they begin with, from 0 to 1.
    pub diag_alpha: f32,
    /// Whether the learning rate rises over the first 16 steps.
    pub warmup: bool,
}

impl Default for FlatSettings {
    fn default() -> Self {
        Self {
            variant: FlatVariant::Stable,
            parametrisation: Parametrisation::Inverse,
            epochs: 15,
            learning_rate: 5e-3,
            batch_size: 4,
            seed: 0,
            share_inputs: true,
            lwc: true,
            lac: true,
            diag: true,
            diag_alpha: 0.3,
            warmup: false,
        }
    }
}

impl FlatSettings {
    /// Learning rates of the groups, in their order, and that of all of them at the end.
    pub(super) fn rates(&self) -> ([f64; 4], f64) {
        let rate = self.learning_rate;
        ([rate, rate, 10.0 * rate, 10.0 * rate], 1e-3 * rate)
    }

    /// Batches that so many sequences make, and those left over.
    pub(super) fn batches(&self, sequences: usize) -> Result<(usize, usize), MethodError> {
        if self.batch_size == 0 {
            let (name, value, expected) = ("batch_size", "0".into(), "at least 1");
            return Err(RotateError::Setting { name, value, expected }.into());
        }
        if sequences < self.batch_size {
            let (method, found, batch) = ("flatquant", sequences, self.batch_size);
            return Err(MethodError::Sequences { method, found, batch });
        }
        Ok((sequences / self.batch_size, sequences % self.batch_size))
    }

    /// A scheme with the sharing of inputs that is asked for.
    pub(super) fn scheme(&self, scheme: &FlatScheme) -> FlatScheme {
        FlatScheme { share_inputs: self.share_inputs, ..*scheme }
    }
}
