//! What a section of a recipe says.

use crate::smoothquant::Smoothing;

/// The modifier of a recipe.
#[derive(Clone, Debug)]
pub(super) struct DuQuantLearner {
    /// Factors of channels, and the variant.
    pub(super) smoothing: Smoothing,
    pub(super) block: usize,
    pub(super) steps: usize,
    pub(super) tokens: usize,
    pub(super) seed: u64,
    /// Of the section, for errors.
    pub(super) path: String,
}
