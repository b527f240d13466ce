//! The clip search: shrink the range of a group until the rounding error is smallest.

use crate::convention::min_max;
use crate::{Grid, QParams};
use serde::Serialize;

/// Grid search over shrink factors `p = 1 − i/grid`, `i = 0..⌊maxshrink·grid⌋`; the error of a candidate is
/// `Σ |ŵ − w|^norm` and a strictly smaller one wins, so a tie keeps the larger `p`.
///
/// Defaults 2.4, 100 and 0.8 (`WeightQuantizer.configure` of the QuaRot-derived code bases, `quant.py` of GPTQ).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ClipSearch {
    /// Exponent of the error.
    pub norm: f32,
    /// Steps per unit of shrinking.
    pub grid: u32,
    /// Largest fraction taken off the range; in f64, as the published code multiplies it by the grid.
    pub max_shrink: f64,
}

/// Values that loops take side by side.
const LANES: usize = 16;
/// Candidates whose bounds are computed before their errors.
const BLOCK: usize = 8 * LANES;

impl Default for ClipSearch {
    fn default() -> Self {
        Self { norm: 2.4, grid: 100, max_shrink: 0.8 }
    }
}

impl ClipSearch {
    /// Candidates tried, `⌊maxshrink·grid⌋`.
    fn steps(&self) -> u32 {
        (self.max_shrink * f64::from(self.grid)) as u32
    }

    /// Factor `p` of a candidate, in the precision of the published code.
    #[inline(always)]
    fn factor(&self, i: usize) -> f32 {
        (1.0 - i as f64 / f64::from(self.grid)) as f32
    }

    /// The best parameters of one group whose extremes are `min` and `max`.
    ///
    /// The unsearched parameters are kept when no candidate has a finite error. The error is computed only of candidates that a
    /// lower bound does not exclude; the result is that of trying all.
    #[must_use]
    #[inline(always)]
    pub fn params(&self, grid: &Grid, group: &[f32], min: f32, max: f32) -> QParams {
        let range = grid.range(min, max);
        let max_level = grid.bits.max_level();
        let mut best = grid.shrunk(range, 1.0, true);
        let mut best_error = f32::INFINITY;
        let mut candidates = [best; BLOCK];
        let steps = self.steps() as usize;
        for start in (0..steps).step_by(BLOCK) {
            let candidates = &mut candidates[..BLOCK.min(steps - start)];
            for (i, candidate) in candidates.iter_mut().enumerate() {
                *candidate = grid.shrunk(range, self.factor(start + i), false);
            }
            let bounds = self.lower_bounds(group, candidates, max_level);
            let mut likely = 0;
            for i in 1..candidates.len() {
                likely = if bounds[i] < bounds[likely] { i } else { likely };
            }
            let likely_error = self.error(group, candidates[likely], max_level);
            for (i, &candidate) in candidates.iter().enumerate() {
                if bounds[i] > likely_error.min(best_error) {
                    continue;
                }
                let error = if i == likely { likely_error } else { self.error(group, candidate, max_level) };
                if error < best_error {
                    best_error = error;
                    best = candidate;
                }
            }
        }
        best
    }

    /// Numbers that the computed [error](Self::error) of each candidate is not below, for a fifth of what errors cost.
    ///
    /// `log Σ|e|^t` is convex in `t`, so that `Σ|e|^norm ≥ M₂ (M₂/M₁)^(norm − 2)` with `M₁ = Σ|e|` and `M₂ = Σe²`, which need no
    /// power of an element: within 4 % where errors are spread evenly. Lanes are candidates. What rounding can add to a bound
    /// (sums of n terms in f32; a product in place of the division, which moves values near the middle of two levels) is taken
    /// off it; where numbers are so small that f32 holds less of them, the bound is 0.
    #[inline(always)]
    fn lower_bounds(&self, group: &[f32], candidates: &[QParams], max_level: f32) -> [f32; BLOCK] {
        let mut bounds = [0.0_f32; BLOCK];
        if self.norm < 2.0 {
            return bounds;
        }
        let kept = 1.0 - self.norm * (5e-4 + group.len() as f32 * 1e-7);
        for (candidates, bounds) in candidates.chunks(LANES).zip(bounds.chunks_exact_mut(LANES)) {
            let (mut scale, mut inverse) = ([1.0_f32; LANES], [1.0_f32; LANES]);
            let (mut low, mut high) = ([0.0_f32; LANES], [0.0_f32; LANES]);
            for (i, candidate) in candidates.iter().enumerate() {
                scale[i] = candidate.scale;
                inverse[i] = 1.0 / candidate.scale;
                low[i] = -candidate.zero;
                high[i] = max_level - candidate.zero;
            }
            let (mut first, mut second) = ([0.0_f32; LANES], [0.0_f32; LANES]);
            for &w in group {
                for i in 0..LANES {
                    let level = (w * inverse[i]).round_ties_even().max(low[i]).min(high[i]);
                    let error = (level * scale[i] - w).abs();
                    first[i] += error;
                    second[i] += error * error;
                }
            }
            for i in 0..LANES {
                let bound = second[i] * pow_ratio(second[i] / first[i], self.norm - 2.0) * kept;
                bounds[i] = if bound > 1e-30 { bound } else { 0.0 };
            }
        }
        bounds
    }

    /// `Σ |ŵ − w|^norm` of a group under given parameters, summed in 16 fixed lanes.
    #[must_use]
    #[inline(always)]
    pub fn error(&self, group: &[f32], params: QParams, max_level: f32) -> f32 {
        let mut sums = [0.0_f32; LANES];
        let mut chunks = group.chunks_exact(LANES);
        for chunk in &mut chunks {
            for i in 0..LANES {
                sums[i] += pow_abs(params.fake(chunk[i], max_level) - chunk[i], self.norm);
            }
        }
        let mut total = 0.0;
        for &w in chunks.remainder() {
            total += pow_abs(params.fake(w, max_level) - w, self.norm);
        }
        for s in sums {
            total += s;
        }
        total
    }
}

impl Grid {
    /// Parameters of one group of weights. The caller has checked that all are finite.
    #[must_use]
    #[inline(always)]
    pub fn params(&self, group: &[f32], clip: Option<&ClipSearch>) -> QParams {
        if self.is_binary() {
            return self.binary(group);
        }
        let (min, max) = min_max(group);
        match clip {
            None => self.from_range(min, max),
            Some(search) => search.params(self, group, min, max),
        }
    }
}

/// `|x|^p` for `p ≥ 2`, branch-free so that loops over it vectorise; relative error below 4e-6 (below 2e-6 at the default 2.4).
///
/// The integer square is exact and only the fractional rest goes through `exp2(r·log2|x|)`, which keeps the error of the
/// logarithm small.
#[must_use]
#[inline(always)]
pub fn pow_abs(x: f32, p: f32) -> f32 {
    let a = x.abs();
    let square = a * a;
    if p == 2.0 {
        return square;
    }
    square * pow_ratio(a, p - 2.0)
}

/// `a^p` of a number that is not negative, as far as `p` is small: relative error below 4e-6 for `p < 1`.
#[inline(always)]
fn pow_ratio(a: f32, p: f32) -> f32 {
    exp2_fast(p * log2_fast(a.max(f32::MIN_POSITIVE)))
}

/// log2 of a positive normal number: exponent plus an odd series in `(m − 1)/(m + 1)`.
#[inline(always)]
fn log2_fast(x: f32) -> f32 {
    let bits = x.to_bits();
    // Shift the exponent so that the mantissa lands in [sqrt(1/2), sqrt(2)).
    let shifted = bits.wrapping_sub(0x3f35_04f3);
    let exponent = (shifted as i32) >> 23;
    let m = f32::from_bits((shifted & 0x007f_ffff).wrapping_add(0x3f35_04f3));
    let t = (m - 1.0) / (m + 1.0);
    let t2 = t * t;
    // 2/ln 2 · (t + t³/3 + t⁵/5 + t⁷/7 + t⁹/9)
    let series =
        t * (2.885_39 + t2 * (0.961_796_7 + t2 * (0.577_078 + t2 * (0.412_198_6 + t2 * 0.320_598_9))));
    exponent as f32 + series
}

/// 2^x for `|x| < 126`, clamped outside.
#[inline(always)]
fn exp2_fast(x: f32) -> f32 {
    // Adding 1.5·2^23 leaves the nearest integer in the low bits of the mantissa: no float-to-integer cast, whose
    // saturation would keep the loop scalar.
    const MAGIC: f32 = 12_582_912.0;
    let x = x.clamp(-126.0, 126.0);
    let shifted = x + MAGIC;
    let f = (x - (shifted - MAGIC)) * std::f32::consts::LN_2;
    let series = 1.0
        + f * (1.0 + f * (0.5 + f * (1.0 / 6.0 + f * (1.0 / 24.0 + f * (1.0 / 120.0 + f * (1.0 / 720.0))))));
    let exponent = shifted.to_bits().wrapping_sub(MAGIC.to_bits());
    series * f32::from_bits(exponent.wrapping_add(127) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bits, Convention, FloatType, Variant};

    #[test]
    fn steps_are_those_of_the_published_product() {
        for (max_shrink, grid, steps) in
            [(0.8, 100, 80), (0.7, 100, 70), (0.6, 50, 30), (0.3, 10, 3), (0.0, 100, 0)]
        {
            assert_eq!(
                ClipSearch { max_shrink, grid, ..ClipSearch::default() }.steps(),
                steps,
                "{max_shrink} {grid}"
            );
        }
    }

    /// The search as it is published: the error of every candidate, the first of the smallest.
    fn all_candidates(search: &ClipSearch, grid: &Grid, group: &[f32]) -> (QParams, usize) {
        let (min, max) = min_max(group);
        let range = grid.range(min, max);
        let mut best = (grid.shrunk(range, 1.0, true), usize::MAX);
        let mut best_error = f32::INFINITY;
        for i in 0..search.steps() {
            let p = (1.0 - f64::from(i) / f64::from(search.grid)) as f32;
            let candidate = grid.shrunk(range, p, false);
            let error = search.error(group, candidate, grid.bits.max_level());
            if error < best_error {
                best_error = error;
                best = (candidate, i as usize);
            }
        }
        best
    }

    /// Groups of every kind: even, heavy-tailed, one-sided, on a lattice with ties, constant, tiny and huge.
    fn groups() -> Vec<Vec<f32>> {
        let mut state = 7_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        let mut groups = vec![vec![], vec![0.0; 40], vec![-0.75; 33], vec![1e-42, -3e-43, 0.0]];
        for n in [1, 2, 15, 16, 17, 128, 129, 1536] {
            let even: Vec<f32> = (0..n).map(|_| uniform()).collect();
            groups.push(even.iter().map(|v| v * v * v * v * v * 40.0).collect());
            groups.push(even.iter().map(|v| (v * 30.0).round() * 0.125).collect());
            groups.push(even.iter().map(|v| v + 0.6).collect());
            groups.push(even.iter().map(|v| if v.abs() > 0.49 { v * 100.0 } else { v * 0.02 }).collect());
            for scale in [1e-38, 1e-19, 1e-12, 1e18, 1e36] {
                groups.push(even.iter().map(|v| v * scale).collect());
            }
            groups.push((0..n).map(|_| uniform() + uniform() + uniform() + uniform()).collect());
            groups.push(even);
        }
        groups
    }

    #[test]
    fn leaving_out_what_a_bound_excludes_changes_nothing() {
        let groups = groups();
        let searches = [
            ClipSearch::default(),
            ClipSearch { norm: 2.0, ..ClipSearch::default() },
            ClipSearch { norm: 3.5, grid: 37, ..ClipSearch::default() },
            ClipSearch { norm: 1.5, ..ClipSearch::default() },
            ClipSearch { norm: 2.4, grid: 300, max_shrink: 0.99 },
            ClipSearch { max_shrink: 0.0, ..ClipSearch::default() },
        ];
        let mut moved = 0;
        for (k, convention) in Convention::ALL.iter().cycle().take(24).enumerate() {
            let variant = if k % 2 == 0 { Variant::Exact } else { Variant::Official };
            let scale_type = [FloatType::F32, FloatType::F16, FloatType::Bf16][k % 3];
            for bits in [2, 3, 4, 8] {
                let grid = Grid::new(*convention, Bits::new(bits).unwrap(), variant, scale_type).unwrap();
                let search = &searches[k % searches.len()];
                for group in &groups {
                    let (expected, chosen) = all_candidates(search, &grid, group);
                    let found = grid.params(group, Some(search));
                    assert_eq!(
                        (found.scale.to_bits(), found.zero.to_bits()),
                        (expected.scale.to_bits(), expected.zero.to_bits()),
                        "{grid:?} {search:?} {} values, candidate {chosen}",
                        group.len()
                    );
                    moved += usize::from(chosen > 0 && chosen < 1000);
                }
            }
        }
        assert!(moved > 1000, "{moved} searches with a smaller range");
    }

    #[test]
    fn bounds_are_below_errors_and_exclude_most() {
        let mut excluded = (0, 0);
        for group in groups() {
            for bits in [2, 4] {
                let grid =
                    Grid::new(Convention::QAsym, Bits::new(bits).unwrap(), Variant::Exact, FloatType::F32)
                        .unwrap();
                let search = ClipSearch::default();
                let (min, max) = min_max(&group);
                let range = grid.range(min, max);
                let candidates: Vec<QParams> =
                    (0..80).map(|i| grid.shrunk(range, search.factor(i), false)).collect();
                let bounds = search.lower_bounds(&group, &candidates, grid.bits.max_level());
                let errors: Vec<f32> =
                    candidates.iter().map(|c| search.error(&group, *c, grid.bits.max_level())).collect();
                for (bound, error) in bounds.iter().zip(&errors) {
                    // A bound that is no number excludes nothing.
                    let below = bound <= error || bound.is_nan() || error.is_nan();
                    assert!(below, "{bound:e} above {error:e} of {} values", group.len());
                }
                if group.len() == 128 {
                    let least = errors.iter().fold(f32::INFINITY, |a, b| a.min(*b));
                    excluded.0 += bounds.iter().take(80).filter(|b| **b > least).count();
                    excluded.1 += 80;
                }
            }
        }
        assert!(2 * excluded.0 > excluded.1, "{excluded:?}");
    }

    #[test]
    fn pow_abs_is_accurate() {
        for e in -60..40 {
            for k in 0..50 {
                let x = 2.0_f32.powi(e) * (1.0 + k as f32 / 50.0);
                for p in [2.0_f32, 2.4, 2.9] {
                    let exact = f64::from(x).powf(f64::from(p));
                    if !(1e-36..=1e37).contains(&exact) {
                        continue;
                    }
                    let relative = (f64::from(pow_abs(-x, p)) / exact - 1.0).abs();
                    assert!(relative < 4e-6, "{x}^{p}: relative error {relative:e}");
                }
            }
        }
        assert_eq!(pow_abs(0.0, 2.4), 0.0);
    }
}
