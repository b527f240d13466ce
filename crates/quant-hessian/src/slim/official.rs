//! Where the published code departs from the mathematics: every quirk of [`Variant::Official`] stands here.

use quant_core::{Bits, Convention, FloatType, Grid, QParams, Variant};

use crate::{Hessian, HessianError};

/// What the published code adds to the diagonal of H before it searches, whatever the size of its entries.
const ABSOLUTE_DAMPING: f64 = 0.01;

/// The Hessian as the search of the published code leaves it for the rounding: dead columns have the entry 1 and are no longer
/// recognised as dead, and 0.01 stays on the diagonal.
pub(super) fn damped(hessian: Hessian) -> Result<Hessian, HessianError> {
    hessian.map_diagonal(|entry| if entry == 0.0 { 1.0 + ABSOLUTE_DAMPING } else { entry + ABSOLUTE_DAMPING })
}

/// Scale and zero of a group of one bit.
type OneBit = fn(&[f32], FloatType) -> QParams;

/// Steps of the search for a range in either direction.
pub(super) const STEPS: u32 = 50;

/// The rules in which the variants differ while they search and round.
pub(super) struct Rules {
    /// Factors on the range that are tried beyond 1, and as many below it.
    pub(super) steps: u32,
    /// Parameters of groups of one bit.
    pub(super) one_bit: OneBit,
    /// Whether candidates are compared with the bias in their outputs, as the float linear has it.
    pub(super) bias: bool,
    /// Whether narrow groups before the first other one have their zero level fixed in the middle.
    narrow_first_fixed: bool,
}

impl Rules {
    pub(super) fn of(variant: Variant) -> Self {
        match variant {
            Variant::Exact => {
                Self { steps: STEPS, one_bit: around_the_mean, bias: true, narrow_first_fixed: false }
            }
            Variant::Official => {
                Self { steps: STEPS, one_bit: mean_size, bias: false, narrow_first_fixed: true }
            }
        }
    }
    /// Whether each group's zero level is fixed at `2^(b−1)`, with the scale of the range all the same. The published quantiser
    /// starts as a symmetric one and turns asymmetric for good at the first group of the nominal width or more.
    pub(super) fn fixed_zeros(&self, widths: &[Bits], nominal: Bits) -> Vec<bool> {
        let narrow = widths.iter().take_while(|&&bits| bits < nominal).count();
        (0..widths.len()).map(|g| self.narrow_first_fixed && g < narrow).collect()
    }
}

/// `μ ± mean|w − μ|`, the binary rule.
fn around_the_mean(group: &[f32], scale_type: FloatType) -> QParams {
    let grid = Grid { convention: Convention::QAsym, bits: Bits::ONE, variant: Variant::Exact, scale_type };
    grid.params(group, None)
}

/// `μ ± mean|w|`.
fn mean_size(group: &[f32], scale_type: FloatType) -> QParams {
    let count = group.len().max(1) as f32;
    let mean = group.iter().sum::<f32>() / count;
    let scale = scale_type.round_scale(2.0 * group.iter().map(|w| w.abs()).sum::<f32>() / count);
    // Of zeros only: any scale serves.
    let scale = if scale > 0.0 { scale } else { 1.0 };
    QParams { scale, zero: 0.5 - mean / scale }
}
