//! One column of a tile becomes levels.

use quant_core::QParams;
use quant_core::convention::level_byte;
use quant_kernels::Element;

/// One column of a tile, ready to be quantised.
pub(super) struct Column<'a, T, const L: usize> {
    /// The weight as earlier columns left it, `w̃`.
    pub(super) updated: &'a [T; L],
    /// What the levels are found for: `w̃`, but for the first column of another target.
    pub(super) rounded: &'a [T; L],
    pub(super) origin: &'a [T; L],
    pub(super) scale: &'a [f32; L],
    pub(super) zero: &'a [f32; L],
}

impl<T: Element, const L: usize> Column<'_, T, L> {
    #[inline(always)]
    pub(super) fn params(&self, row: usize) -> QParams {
        QParams { scale: self.scale[row], zero: self.zero[row] }
    }

    /// `e = (w̃ − q) R_kk` of one row.
    #[inline(always)]
    pub(super) fn error(&self, row: usize, q: T, pivot: T) -> T {
        (self.updated[row] - q) * pivot
    }

    /// Quantises the column of every row: `diff` becomes `w − q` with the original weight, `losses` gain `e²`.
    #[inline(always)]
    pub(super) fn quantise(
        &self,
        level: impl Fn(f32, QParams) -> f32,
        pivot: T,
        diff: &mut [T; L],
        levels: &mut [u8; L],
        losses: &mut [T; L],
    ) {
        for r in 0..L {
            let l = level(self.rounded[r].to_f32_lossy(), self.params(r));
            let q = T::from_f32(self.params(r).value(l));
            diff[r] = self.origin[r] - q;
            let e = self.error(r, q, pivot);
            losses[r] += e * e;
            levels[r] = level_byte(l);
        }
    }
}
