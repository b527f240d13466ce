//! What rounding a weight gives.

use ndarray::{ArrayView2, Axis};
use quant_core::QuantizedMatrix;
use quant_kernels::{Par, tasks};

/// Rows measured by one task; a fixed number, so that sums do not depend on the threads.
const ROWS: usize = 64;

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
    /// `‖Ŵ‖ / ‖W‖` (Frobenius), for the `weight` `[out, in]` that was rounded; 1 where that is 0. Rounding alone hardly changes
    /// a norm; a correction for streams that are far apart can blow a weight up (`gptaq.md` section 6).
    ///
    /// # Panics
    /// If the weight is of another shape.
    #[must_use]
    pub fn growth(&self, weight: ArrayView2<'_, f32>, par: Par) -> f64 {
        assert_eq!(weight.dim(), self.matrix.dim(), "shape of the weight");
        let square = |value: f32| f64::from(value) * f64::from(value);
        let tiles = weight.axis_chunks_iter(Axis(0), ROWS).enumerate();
        let sums = tasks::map_with(
            tiles,
            par,
            || vec![0.0; weight.ncols()],
            |values, (tile, rows)| {
                let (mut before, mut after) = (0.0, 0.0);
                for (i, row) in rows.rows().into_iter().enumerate() {
                    self.matrix.dequantize_row(tile * ROWS + i, values);
                    before += row.iter().map(|&w| square(w)).sum::<f64>();
                    after += values.iter().map(|&w| square(w)).sum::<f64>();
                }
                (before, after)
            },
        );
        let (before, after) = sums.iter().fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d));
        if before > 0.0 { (after / before).sqrt() } else { 1.0 }
    }
}
