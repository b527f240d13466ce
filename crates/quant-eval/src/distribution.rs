//! How activations are distributed: what makes them easy or hard to quantise.

use ndarray::{ArrayView2, Axis, Slice};
use quant_kernels::{Par, tasks, vectorized};
use serde::Serialize;

/// Channels that one task looks at; a fixed number, so that sums do not depend on the threads.
const STRIP: usize = 256;
/// Bits of the pattern of a magnitude that its bin keeps: eight of the exponent, eight of the mantissa.
const KEPT: u32 = 16;
/// Bits that it drops; the sign is none of them.
const DROPPED: u32 = 31 - KEPT;

/// Sums over activations `[tokens, channels]` that come some rows at a time, from which a [`Spread`] is made. Its size depends on
/// the channels alone.
///
/// ```
/// use quant_eval::Distribution;
/// use quant_eval::ndarray::array;
/// use quant_kernels::Par;
///
/// let mut seen = Distribution::new(4);
/// seen.add(array![[1.0, -1.0, 1.0, 1.0], [-1.0, 1.0, 1.0, -1.0]].view(), Par::Seq);
/// let spread = seen.spread();
/// assert_eq!((spread.max, spread.median), (1.0, 1.0));
/// // All channels have the same norm.
/// assert_eq!(spread.flatness, Some(0.0));
/// ```
#[derive(Clone, Debug)]
pub struct Distribution {
    tokens: usize,
    /// `Σx`, `Σx²`, `Σx³`, `Σx⁴` of every channel.
    powers: [Vec<f64>; 4],
    max: f32,
    finite: bool,
    /// How many magnitudes have the first bits of each pattern.
    bins: Vec<u64>,
}

/// What a [`Distribution`] says. Quantiles are those of all `|x|`, up to 0.4 % too large.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Tokens that were seen.
    pub tokens: usize,
    /// The largest magnitude.
    pub max: f64,
    /// The magnitude that half of all do not exceed.
    pub median: f64,
    /// The same of 99 %.
    pub p99: f64,
    /// The same of 99.9 %.
    pub p999: f64,
    /// `E (x − μ)⁴ / σ⁴` over all values: 1.8 of uniform, 3 of normal ones; none where all are equal or one is not finite.
    pub kurtosis: Option<f64>,
    /// How far the norms `d` of the channels are from being equal: `‖d − s‖ / ‖d‖`, where all entries of `s` are `‖d‖ / √n`. From 0,
    /// all equal, to below √2 (FlatQuant, arXiv 2410.09426, of which this is the distance from the flat spectrum, for a spectrum of
    /// norm 1); none where all are zero or one is not finite.
    pub flatness: Option<f64>,
}

impl Distribution {
    /// Of activations with so many channels.
    #[must_use]
    pub fn new(channels: usize) -> Self {
        Self {
            tokens: 0,
            powers: [(); 4].map(|()| vec![0.0; channels]),
            max: 0.0,
            finite: true,
            bins: vec![0; 1 << KEPT],
        }
    }

    /// Bytes that one of so many channels holds.
    #[must_use]
    pub fn bytes(channels: usize) -> usize {
        (4 * channels + (1 << KEPT)) * size_of::<f64>()
    }

    /// Bytes that [`Self::add`] holds besides.
    #[must_use]
    pub fn workspace_bytes(channels: usize) -> usize {
        channels.div_ceil(STRIP) * ((1 << KEPT) * size_of::<u32>() + 4 * STRIP * size_of::<f64>())
    }

    /// Takes in `x` `[tokens, channels]`.
    ///
    /// # Panics
    /// If it has another number of channels.
    pub fn add(&mut self, x: ArrayView2<'_, f32>, par: Par) {
        let channels = self.powers[0].len();
        assert_eq!(x.ncols(), channels, "this distribution is one of {channels} channels");
        let x = x.as_standard_layout();
        let strips: Vec<usize> = (0..channels).step_by(STRIP).collect();
        let strip = |first: usize| {
            let columns = Slice::from(first..channels.min(first + STRIP));
            Strip::of(x.slice_axis(Axis(1), columns))
        };
        for (first, strip) in strips.iter().zip(tasks::map(strips.iter().copied(), par, strip)) {
            for (sums, more) in self.powers.iter_mut().zip(&strip.powers) {
                sums[*first..].iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
            }
            self.bins.iter_mut().zip(&strip.bins).for_each(|(all, &more)| *all += u64::from(more));
            self.max = self.max.max(strip.max);
            self.finite &= strip.finite;
        }
        self.tokens += x.nrows();
    }

    /// What was seen.
    #[must_use]
    pub fn spread(&self) -> Spread {
        let (max, [median, p99, p999]) = (f64::from(self.max), [0.5, 0.99, 0.999]);
        let quantile = |share| self.quantile(share).min(max);
        Spread {
            tokens: self.tokens,
            max: if self.finite { max } else { f64::INFINITY },
            median: quantile(median),
            p99: quantile(p99),
            p999: quantile(p999),
            kurtosis: self.kurtosis().filter(|k| k.is_finite()),
            flatness: self.flatness().filter(|f| f.is_finite()),
        }
    }

    /// The upper end of the bin in which so many of all magnitudes have been reached.
    fn quantile(&self, share: f64) -> f64 {
        let all: u64 = self.bins.iter().sum();
        let wanted = (share * all as f64).ceil().max(1.0) as u64;
        let mut reached = 0;
        let bin = self.bins.iter().position(|count| {
            reached += count;
            reached >= wanted
        });
        bin.map_or(0.0, |bin| f64::from(f32::from_bits(((bin as u32) << DROPPED) | ((1 << DROPPED) - 1))))
    }

    /// From the moments about zero, which f64 holds well enough: activations are not far off zero.
    fn kurtosis(&self) -> Option<f64> {
        let count = (self.tokens * self.powers[0].len()) as f64;
        let [m1, m2, m3, m4] = self.powers.each_ref().map(|sums| sums.iter().sum::<f64>() / count);
        let variance = m2 - m1 * m1;
        let fourth = m4 - 4.0 * m1 * m3 + 6.0 * m1 * m1 * m2 - 3.0 * m1.powi(4);
        // Below this nothing but the rounding of the sums is left.
        (variance > 1e-12 * m2).then(|| fourth / (variance * variance))
    }

    /// `‖d − s‖² = 2‖d‖² − 2 (‖d‖ / √n) Σ d`, since `‖s‖ = ‖d‖`.
    fn flatness(&self) -> Option<f64> {
        let squares = &self.powers[1];
        let norm = squares.iter().sum::<f64>().sqrt();
        let sum: f64 = squares.iter().map(|square| square.sqrt()).sum();
        let cosine = sum / ((squares.len() as f64).sqrt() * norm);
        (norm > 0.0).then(|| (2.0 - 2.0 * cosine).max(0.0).sqrt())
    }
}

/// Sums of some channels over some tokens.
struct Strip {
    powers: [Vec<f64>; 4],
    max: f32,
    finite: bool,
    bins: Vec<u32>,
}

impl Strip {
    fn of(x: ArrayView2<'_, f32>) -> Self {
        let mut powers = [(); 4].map(|()| vec![0.0_f64; x.ncols()]);
        let mut bins = vec![0; 1 << KEPT];
        let [first, second, third, fourth] = &mut powers;
        let (mut max, mut finite) = (0.0_f32, true);
        for row in x.rows() {
            let Some(row) = row.to_slice() else { continue };
            vectorized(
                #[inline(always)]
                || {
                    for (channel, &x) in row.iter().enumerate() {
                        let x = f64::from(x);
                        let square = x * x;
                        first[channel] += x;
                        second[channel] += square;
                        third[channel] += square * x;
                        fourth[channel] += square * square;
                    }
                },
            );
            for x in row {
                max = max.max(x.abs());
                finite &= x.is_finite();
                let bin = (x.to_bits() & 0x7fff_ffff) >> DROPPED;
                bins[bin as usize] += 1;
            }
        }
        Self { powers, max, finite, bins }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, array};

    /// Values of every size, one channel far above the others.
    fn activations(tokens: usize, channels: usize) -> Array2<f32> {
        Array2::from_shape_fn((tokens, channels), |(t, c)| {
            let x = ((t * 7919 + c * 104_729) as f32 * 0.618).sin() + 0.1;
            if c == 3 { 40.0 * x } else { x * x * x }
        })
    }

    struct Naive {
        kurtosis: f64,
        flatness: f64,
        magnitudes: Vec<f64>,
    }

    /// By the definitions, in f64.
    fn naive(x: &Array2<f32>) -> Naive {
        let x = x.mapv(f64::from);
        let mean = x.mean().unwrap();
        let central = |power: i32| x.mapv(|v| (v - mean).powi(power)).mean().unwrap();
        let norms: Vec<f64> = x.columns().into_iter().map(|c| c.dot(&c).sqrt()).collect();
        let norm = norms.iter().map(|d| d * d).sum::<f64>().sqrt();
        let flat = norm / (norms.len() as f64).sqrt();
        let distance = norms.iter().map(|d| (d - flat).powi(2)).sum::<f64>().sqrt();
        let mut magnitudes: Vec<f64> = x.iter().map(|v| v.abs()).collect();
        magnitudes.sort_by(f64::total_cmp);
        Naive { kurtosis: central(4) / central(2).powi(2), flatness: distance / norm, magnitudes }
    }

    #[test]
    fn a_spread_is_its_definition() {
        for (tokens, channels) in [(50, 300), (7, 5), (1, 600), (300, 4)] {
            let x = activations(tokens, channels);
            let expected = naive(&x);
            let mut seen = Distribution::new(channels);
            for rows in x.axis_chunks_iter(Axis(0), 13) {
                seen.add(rows, Par::Seq);
            }
            let spread = seen.spread();
            let near = |found: f64, expected: f64, within: f64| {
                assert!(
                    (found - expected).abs() <= within * expected.abs(),
                    "{found} {expected} {tokens}x{channels}"
                );
            };
            near(spread.kurtosis.unwrap(), expected.kurtosis, 1e-9);
            near(spread.flatness.unwrap(), expected.flatness, 1e-9);
            assert_eq!((spread.tokens, spread.max), (tokens, *expected.magnitudes.last().unwrap()));
            for (share, found) in [(0.5, spread.median), (0.99, spread.p99), (0.999, spread.p999)] {
                let at = (share * expected.magnitudes.len() as f64).ceil() as usize - 1;
                assert!(found >= expected.magnitudes[at], "{share} {tokens}x{channels}");
                near(found, expected.magnitudes[at], 1.0 / 256.0);
            }
        }
    }

    #[test]
    fn threads_change_no_bit() {
        let x = activations(40, 1500);
        let [one, four] = [Par::Seq, Par::new(4)].map(|par| {
            let mut seen = Distribution::new(1500);
            seen.add(x.view(), par);
            seen.spread()
        });
        assert_eq!(one, four);
    }

    #[test]
    fn what_has_no_shape_has_none() {
        let of = |x: Array2<f32>| {
            let mut seen = Distribution::new(x.ncols());
            seen.add(x.view(), Par::Seq);
            seen.spread()
        };
        let nothing = of(Array2::zeros((3, 4)));
        assert_eq!((nothing.kurtosis, nothing.flatness, nothing.max, nothing.p99), (None, None, 0.0, 0.0));
        // All equal, but not zero: no kurtosis, and as flat as can be.
        let equal = of(Array2::from_elem((3, 4), 0.3));
        assert_eq!((equal.kurtosis, equal.flatness.map(|f| f < 1e-6)), (None, Some(true)));
        let broken = of(array![[1.0, f32::NAN], [2.0, f32::INFINITY]]);
        assert_eq!((broken.kurtosis, broken.flatness, broken.max), (None, None, f64::INFINITY));
        let empty = Distribution::new(3).spread();
        assert_eq!((empty.tokens, empty.kurtosis, empty.median), (0, None, 0.0));
        // One channel of n is all there is: as far from flat as it gets.
        let single = of(array![[0.0, 5.0, 0.0, 0.0]]);
        assert!((single.flatness.unwrap() - (2.0_f64 - 2.0 / 4.0_f64.sqrt()).sqrt()).abs() < 1e-12);
    }
}
