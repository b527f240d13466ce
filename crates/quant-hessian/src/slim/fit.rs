//! Salience-weighted quantiser calibration: the range of every row of a group, searched on the updated weight.

use quant_core::{Bits, Convention, FloatType, Grid, QParams, Variant};
use quant_kernels::vectorized;

use super::official::{Rules, STEPS};
use crate::blockwise::{Blockwise, Lanes, ROWS};

/// Size of the last of all steps.
const REACH: f64 = 0.1;
/// A sensitivity further than this many standard deviations from the mean is an outlier.
const OUTLIER: f64 = 2.0;
/// Rows at a time whose sums stay in registers.
const PART: usize = 32;

/// From which sensitivity `w²/U_jj²` on a weight is salient, and how much more its error counts.
pub(super) struct Salient {
    lambda: f32,
    threshold: f32,
}

impl Salient {
    /// The smallest outlier among the sensitivities of the open block, over all its rows; none is salient where there is none. With
    /// λ = 1 salient weights are like others, and nothing is looked for.
    pub(super) fn find(work: &mut Blockwise<'_>, pivots: &[f32], lambda: f32) -> Self {
        if lambda == 1.0 {
            return Self { lambda, threshold: f32::INFINITY };
        }
        let of = |block: &[Lanes], rows: usize| -> Vec<f32> {
            let column = |(lanes, &r): (&Lanes, &f32)| lanes.map(|w| w * w * (r * r));
            block.iter().zip(pivots).map(column).flat_map(|lanes| lanes[..rows].to_vec()).collect()
        };
        let moments = work.each(|tile, _| {
            let values = of(&tile.block, tile.rows);
            let sum = |f: fn(f64) -> f64| values.iter().map(|&s| f(f64::from(s))).sum::<f64>();
            (values.len() as f64, sum(|s| s), sum(|s| s * s))
        });
        let (count, sum, squares) =
            moments.into_iter().fold((0.0, 0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2));
        let mean = sum / f64::max(count, 1.0);
        let deviation = ((squares - count * mean * mean).max(0.0) / f64::max(count - 1.0, 1.0)).sqrt();
        let smallest = work.each(|tile, _| {
            let outlier = |s: &f32| (f64::from(*s) - mean).abs() > OUTLIER * deviation;
            of(&tile.block, tile.rows).into_iter().filter(outlier).fold(f32::INFINITY, f32::min)
        });
        Self { lambda, threshold: smallest.into_iter().fold(f32::INFINITY, f32::min) }
    }
    /// What the errors of a column's weights count.
    #[inline(always)]
    fn count(&self, w: &[f32; PART], pivot: f32, counts: &mut [f32; PART]) {
        for r in 0..PART {
            counts[r] = if w[r] * w[r] * (pivot * pivot) >= self.threshold { self.lambda } else { 1.0 };
        }
    }
}

/// How the rows of one group get their parameters and levels.
pub(super) struct Fit<'a> {
    pub(super) bits: Bits,
    /// Whether the zero level is fixed in the middle.
    pub(super) fixed_zero: bool,
    pub(super) scale_type: FloatType,
    pub(super) rules: &'a Rules,
}

/// `|d|^2.4`, the error of the search, within 1e-6 of it and without a division: `x^1.2 = x² z⁴ (1 − r)^−0.8` with `x = d²`, `z`
/// near `x^−0.2` and `r = 1 − x z⁵`.
#[inline(always)]
fn to_the_norm(d: f32) -> f32 {
    // A fifth of the exponent, by the bits of the number: r is below 0.16.
    const MAGIC: f32 = 1.2779e9;
    let x = d * d;
    let z = f32::from_bits((MAGIC - x.to_bits() as i32 as f32 * 0.2) as i32 as u32);
    let rest = |z: f32| {
        let fourth = (z * z) * (z * z);
        let part = x * fourth;
        ((-part).mul_add(z, 1.0), part)
    };
    // (1 − r)^−0.2 to the third order leaves r below 0.002.
    let (r, _) = rest(z);
    let z = (z * r).mul_add(r.mul_add(0.12, 0.2), z);
    let (r, part) = rest(z);
    x * part * (r * r.mul_add(0.72, 0.8) + 1.0)
}

/// Factors on the range, in the order in which they are tried: 1, then some steps up, all of which end at 1.1, then as many
/// down, to 0.9.
fn factors(steps: u32) -> impl Iterator<Item = f32> {
    let step = |i: u32| f64::from(i) * REACH / f64::from(STEPS);
    let up = (1..=steps).map(move |i| 1.0 + step(i));
    let down = (1..=steps).map(move |i| 1.0 - step(i));
    std::iter::once(1.0).chain(up).chain(down).map(|p| p as f32)
}

impl Fit<'_> {
    #[inline(always)]
    fn grid(&self) -> Grid {
        let (variant, scale_type) = (Variant::Exact, self.scale_type);
        Grid { convention: Convention::QAsym, bits: self.bits, variant, scale_type }
    }
    /// The level of a weight.
    #[inline(always)]
    pub(super) fn level(&self, w: f32, params: QParams) -> f32 {
        self.grid().level(w, params)
    }
    /// Parameters of a range, `mn <= 0 <= mx`.
    #[inline(always)]
    fn of_range(&self, mn: f32, mx: f32) -> QParams {
        let params = self.grid().from_range(mn, mx);
        if self.fixed_zero { QParams { zero: self.bits.mid_level(), ..params } } else { params }
    }

    /// Parameters of every row of a tile of the group.
    pub(super) fn params(&self, block: &[Lanes], salient: &Salient, pivots: &[f32]) -> Vec<QParams> {
        if self.bits == Bits::ONE {
            let row = |r: usize| -> Vec<f32> { block.iter().map(|lanes| lanes[r]).collect() };
            return (0..ROWS).map(|r| (self.rules.one_bit)(&row(r), self.scale_type)).collect();
        }
        vectorized(
            #[inline(always)]
            || {
                let mut params = Vec::with_capacity(ROWS);
                // A loop, not an iterator: what it calls has to be inlined here to use wide registers.
                for p in 0..ROWS / PART {
                    params.extend(self.searched(block, p, salient, pivots));
                }
                params
            },
        )
    }

    /// The search for some rows: a strictly smaller error wins.
    #[inline(always)]
    fn searched(&self, block: &[Lanes], p: usize, salient: &Salient, pivots: &[f32]) -> [QParams; PART] {
        let mut columns = vec![[0.0_f32; PART]; block.len()];
        let mut counts = vec![[1.0_f32; PART]; block.len()];
        let (mut mn, mut mx) = ([0.0_f32; PART], [0.0_f32; PART]);
        for ((column, counts), (lanes, &pivot)) in
            columns.iter_mut().zip(&mut counts).zip(block.iter().zip(pivots))
        {
            column.copy_from_slice(&lanes[p * PART..(p + 1) * PART]);
            salient.count(column, pivot, counts);
            for r in 0..PART {
                mn[r] = mn[r].min(column[r]);
                mx[r] = mx[r].max(column[r]);
            }
        }
        let top = self.bits.max_level();
        let mut best = [self.of_range(0.0, 0.0); PART];
        let mut least = [f32::INFINITY; PART];
        let (mut scale, mut zero, mut inverse) = ([0.0_f32; PART], [0.0_f32; PART], [0.0_f32; PART]);
        for (tried, factor) in factors(self.rules.steps).enumerate() {
            for r in 0..PART {
                let params = self.of_range(factor * mn[r], factor * mx[r]);
                (scale[r], zero[r], inverse[r]) = (params.scale, params.zero, params.scale.recip());
            }
            let mut errors = [0.0_f32; PART];
            for (w, counts) in columns.iter().zip(&counts) {
                for r in 0..PART {
                    // A level beside a half step differs from that of a division, its error does not.
                    let level = ((w[r] * inverse[r]).round_ties_even() + zero[r]).max(0.0).min(top);
                    errors[r] += counts[r] * to_the_norm(scale[r] * (level - zero[r]) - w[r]);
                }
            }
            for r in 0..PART {
                // The range as it is stays where no error is a number.
                if tried == 0 || errors[r] < least[r] {
                    least[r] = if errors[r].is_nan() { f32::INFINITY } else { errors[r] };
                    best[r] = QParams { scale: scale[r], zero: zero[r] };
                }
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_is_a_power() {
        for i in -2000..=1500 {
            let d = 10_f64.powf(f64::from(i) / 100.0) as f32;
            let (got, want) = (f64::from(to_the_norm(-d)), f64::from(d).powf(2.4));
            // What is too small for f32 is nothing.
            let error = (got - want).abs() - f64::from(f32::MIN_POSITIVE);
            assert!(error <= 1e-6 * want, "{d}: {got} {want}");
        }
        assert_eq!(to_the_norm(0.0), 0.0);
    }

    #[test]
    fn a_hundred_factors_beside_one() {
        let all: Vec<f32> = factors(STEPS).collect();
        assert_eq!(
            (all.len(), all[0], all[1], all[50], all[51], all[100]),
            (101, 1.0, 1.002, 1.1, 0.998, 0.9)
        );
    }
}
