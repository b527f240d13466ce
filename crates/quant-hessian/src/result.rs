//! What rounding a weight gives.

use quant_core::QuantizedMatrix;

/// A quantised linear and what it cost.
#[derive(Clone, Debug, PartialEq)]
pub struct GptqResult {
    /// Levels, scales, zeros and groups, columns in original order.
    pub matrix: QuantizedMatrix,
    /// `Σ (w̃ − q)²/U_kk² / 2` by row, `[out]`, and after sweeps `½ (w − q) H_d (w − q)ᵀ`, which is the same number: the loss the published code prints, before its sum. For
    /// [`gptaq`](crate::gptaq) as well, whose print leaves out what the asymmetry costs.
    pub row_losses: Vec<f64>,
}

impl GptqResult {
    /// `Σ (w̃ − q)²/U_kk² / 2` over the matrix.
    #[must_use]
    pub fn loss(&self) -> f64 {
        self.row_losses.iter().sum()
    }
    /// `tr((W − Ŵ) H_d (W − Ŵ)ᵀ) = ‖E‖²`, twice the loss, for the weight with dead columns zeroed. Of [`gptq`](crate::gptq) only: with
    /// an asymmetry `Ŵ` answers another target, and this is twice the loss and no more.
    #[must_use]
    pub fn weighted_error(&self) -> f64 {
        2.0 * self.loss()
    }
}
