//! Extremes of slices, in fixed lanes so that loops over them vectorise, and what a NaN does to them.

use crate::Real;
use ndarray::{Array1, ArrayView1, ArrayView2, ArrayViewMut1, Axis};

const LANES: usize = 16;

/// `(min(0, min x), max(0, max x))`. A NaN is passed over.
#[inline(always)]
pub(crate) fn range_with_zero<T: Real>(values: &[T]) -> (T, T) {
    let (mut lo, mut hi) = ([T::zero(); LANES], [T::zero(); LANES]);
    let mut chunks = values.chunks_exact(LANES);
    for chunk in &mut chunks {
        for i in 0..LANES {
            lo[i] = if chunk[i] < lo[i] { chunk[i] } else { lo[i] };
            hi[i] = if chunk[i] > hi[i] { chunk[i] } else { hi[i] };
        }
    }
    for (i, &v) in chunks.remainder().iter().enumerate() {
        lo[i] = lo[i].min(v);
        hi[i] = hi[i].max(v);
    }
    (lo.into_iter().fold(T::zero(), T::min), hi.into_iter().fold(T::zero(), T::max))
}

/// Whether every value is finite. Magnitudes are compared as integers: infinity and NaN are above all numbers there.
#[must_use]
#[inline(always)]
pub fn all_finite(values: &[f32]) -> bool {
    values.iter().fold(0, |largest, v| magnitude(*v).max(largest)) < f32::INFINITY.to_bits()
}

/// `|x|` as an integer of the same order, in which NaN is largest.
#[inline(always)]
fn magnitude(x: f32) -> u32 {
    x.abs().to_bits()
}

/// Largest `|x|` of every channel, `A_j = max |x_j|` over all tokens seen.
///
/// A maximum is the same for every order and division of the tokens. A NaN in a channel stays its maximum.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelMaxima(Array1<f32>);

impl ChannelMaxima {
    /// Zeros, `[channels]`: nothing seen.
    #[must_use]
    pub fn new(channels: usize) -> Self {
        Self(Array1::zeros(channels))
    }

    /// Takes in a batch `[tokens, channels]`.
    ///
    /// # Panics
    /// If the batch has another number of channels.
    #[inline(always)]
    pub fn observe(&mut self, x: ArrayView2<'_, f32>) {
        self.strips(x, x.ncols().max(1)).for_each(|strip| strip.observe());
    }

    /// A batch cut into strips of so many channels, each of which may be taken in by another thread.
    ///
    /// # Panics
    /// If the batch has another number of channels; for strips without any.
    #[inline(always)]
    pub fn strips<'a>(
        &'a mut self,
        x: ArrayView2<'a, f32>,
        channels: usize,
    ) -> impl Iterator<Item = ChannelStrip<'a, f32>> + Send {
        assert_eq!(x.ncols(), self.0.len(), "channels of a batch and of its maxima");
        ChannelStrip::all(&mut self.0, x, channels)
    }

    /// The maxima of activations that are divided by `factors` `[channels]`.
    ///
    /// # Panics
    /// If there is another number of factors.
    pub fn divide(&mut self, factors: ArrayView1<'_, f32>) {
        assert_eq!(factors.len(), self.0.len(), "factors and channels");
        self.0.iter_mut().zip(factors).for_each(|(max, &c)| *max /= c.abs());
    }

    /// The maxima, `[channels]`.
    #[must_use]
    pub fn view(&self) -> ArrayView1<'_, f32> {
        self.0.view()
    }
}

/// Some neighbouring channels of a batch and what is kept of them: channels know nothing of each other, so that strips can be taken in at
/// once, to the same bits.
///
/// ```
/// use ndarray::array;
/// use quant_core::ChannelMaxima;
///
/// let x = array![[1.0_f32, -5.0, 2.0], [-3.0, 4.0, 0.0]];
/// let mut maxima = ChannelMaxima::new(3);
/// maxima.strips(x.view(), 2).for_each(|strip| strip.observe());
/// assert_eq!(maxima.view(), array![3.0, 5.0, 2.0]);
/// ```
#[derive(Debug)]
pub struct ChannelStrip<'a, A> {
    kept: ArrayViewMut1<'a, A>,
    x: ArrayView2<'a, f32>,
}

impl<'a, A: Send> ChannelStrip<'a, A> {
    #[inline(always)]
    fn all(
        kept: &'a mut Array1<A>,
        x: ArrayView2<'a, f32>,
        channels: usize,
    ) -> impl Iterator<Item = Self> + Send {
        let columns = (0..x.ncols()).step_by(channels);
        kept.axis_chunks_iter_mut(Axis(0), channels).zip(columns).map(move |(kept, first)| {
            let mut x = x;
            x.slice_axis_inplace(Axis(1), (first..first + kept.len()).into());
            Self { kept, x }
        })
    }

    #[inline(always)]
    fn each(mut self, take: impl Fn(&mut A, f32)) {
        for row in self.x.rows() {
            match (self.kept.as_slice_mut(), row.as_slice()) {
                (Some(kept), Some(row)) => kept.iter_mut().zip(row).for_each(|(kept, &v)| take(kept, v)),
                _ => self.kept.iter_mut().zip(row).for_each(|(kept, &v)| take(kept, v)),
            }
        }
    }
}

impl ChannelStrip<'_, f32> {
    /// Takes its channels into their maxima.
    #[inline(always)]
    pub fn observe(self) {
        self.each(|max, v| *max = f32::from_bits(magnitude(*max).max(magnitude(v))));
    }
}

impl ChannelStrip<'_, f64> {
    /// Takes its channels into their means.
    #[inline(always)]
    pub fn observe(self) {
        self.each(|sum, v| *sum += f64::from(v.abs()));
    }
}

/// Range of every channel, zero included: `min(0, min_t x_tj)` and `max(0, max_t x_tj)` over all tokens seen.
///
/// It is the same for every order and division of the tokens. A NaN in a channel stays both its ends.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelRanges {
    lowest: Array1<f32>,
    highest: Array1<f32>,
}

impl ChannelRanges {
    /// Zeros, `[channels]`: nothing seen.
    #[must_use]
    pub fn new(channels: usize) -> Self {
        Self { lowest: Array1::zeros(channels), highest: Array1::zeros(channels) }
    }

    /// Takes in a batch `[tokens, channels]`.
    ///
    /// # Panics
    /// If the batch has another number of channels.
    #[inline(always)]
    pub fn observe(&mut self, x: ArrayView2<'_, f32>) {
        assert_eq!(x.ncols(), self.lowest.len(), "channels of a batch and of its ranges");
        for row in x.rows() {
            for ((lo, hi), &v) in self.lowest.iter_mut().zip(&mut self.highest).zip(row) {
                // A comparison with NaN is false, so that one which stands there is kept.
                *lo = if v < *lo || v.is_nan() { v } else { *lo };
                *hi = if v > *hi || v.is_nan() { v } else { *hi };
            }
        }
    }

    /// The lower ends, `[channels]`.
    #[must_use]
    pub fn lowest(&self) -> ArrayView1<'_, f32> {
        self.lowest.view()
    }
    /// The upper ends, `[channels]`.
    #[must_use]
    pub fn highest(&self) -> ArrayView1<'_, f32> {
        self.highest.view()
    }
}

/// Mean `|x|` of every channel over all tokens seen.
///
/// Sums are kept in f64 and taken in the order of the tokens, so that the division into batches changes nothing. A NaN in a
/// channel stays its mean.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelMeans {
    sums: Array1<f64>,
    tokens: usize,
}

impl ChannelMeans {
    /// Nothing seen, `[channels]`.
    #[must_use]
    pub fn new(channels: usize) -> Self {
        Self { sums: Array1::zeros(channels), tokens: 0 }
    }

    /// Takes in a batch `[tokens, channels]`.
    ///
    /// # Panics
    /// If the batch has another number of channels.
    #[inline(always)]
    pub fn observe(&mut self, x: ArrayView2<'_, f32>) {
        self.strips(x, x.ncols().max(1)).for_each(|strip| strip.observe());
    }

    /// A batch cut into strips of so many channels, each of which may be taken in by another thread; it counts as seen.
    ///
    /// # Panics
    /// If the batch has another number of channels; for strips without any.
    #[inline(always)]
    pub fn strips<'a>(
        &'a mut self,
        x: ArrayView2<'a, f32>,
        channels: usize,
    ) -> impl Iterator<Item = ChannelStrip<'a, f64>> + Send {
        assert_eq!(x.ncols(), self.sums.len(), "channels of a batch and of its means");
        self.tokens += x.nrows();
        ChannelStrip::all(&mut self.sums, x, channels)
    }

    /// The means, `[channels]`; zeros before any token.
    #[must_use]
    pub fn means(&self) -> Array1<f32> {
        let tokens = self.tokens.max(1) as f64;
        self.sums.mapv(|sum| (sum / tokens) as f32)
    }

    /// The means of activations that are divided by `factors` `[channels]`.
    ///
    /// # Panics
    /// If there is another number of factors.
    pub fn divide(&mut self, factors: ArrayView1<'_, f32>) {
        assert_eq!(factors.len(), self.sums.len(), "factors and channels");
        self.sums.iter_mut().zip(factors).for_each(|(sum, &c)| *sum /= f64::from(c.abs()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, Axis};

    #[test]
    fn extremes_of_every_length() {
        for n in 0..50 {
            let values: Vec<f32> = (0..n).map(|i| ((i * 37 + 11) % 101) as f32 - 50.0).collect();
            let min = values.iter().fold(0.0_f32, |a, &b| a.min(b));
            let max = values.iter().fold(0.0_f32, |a, &b| a.max(b));
            assert_eq!(range_with_zero(&values), (min, max), "{n}");
            assert!(all_finite(&values));
            for at in 0..n {
                for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut values = values.clone();
                    values[at] = bad;
                    assert!(!all_finite(&values), "{bad} at {at} of {n}");
                }
            }
        }
        assert!(all_finite(&[f32::MAX, f32::MIN, 1e-45]));
    }

    #[test]
    fn channel_maxima_do_not_depend_on_batches_and_keep_a_nan() {
        let mut x = Array2::from_shape_fn((23, 5), |(t, j)| ((t * 31 + j * 17) % 47) as f32 - 20.0);
        let maxima = |x: &Array2<f32>, step: usize| {
            let mut maxima = ChannelMaxima::new(5);
            for batch in x.axis_chunks_iter(Axis(0), step) {
                maxima.observe(batch);
            }
            maxima
        };
        let expected = x.fold_axis(Axis(0), 0.0_f32, |m, v| m.max(v.abs()));
        for step in [1, 2, 7, 23] {
            assert_eq!(maxima(&x, step).view(), expected);
        }
        let backwards = x.slice_axis(Axis(0), ndarray::Slice::new(0, None, -1)).to_owned();
        assert_eq!(maxima(&backwards, 4).view(), expected);
        x[(3, 2)] = f32::NAN;
        for step in [1, 23] {
            let maxima = maxima(&x, step);
            assert!(maxima.view()[2].is_nan(), "a NaN followed by numbers stays");
            assert_eq!(maxima.view()[1], expected[1]);
        }
    }
    #[test]
    fn channel_ranges_do_not_depend_on_batches_and_keep_a_nan() {
        let mut x = Array2::from_shape_fn((23, 5), |(t, j)| ((t * 31 + j * 17) % 47) as f32 - 20.0);
        x.column_mut(4).mapv_inplace(|v| v.abs() + 1.0);
        let ranges = |x: &Array2<f32>, step: usize| {
            let mut ranges = ChannelRanges::new(5);
            x.axis_chunks_iter(Axis(0), step).for_each(|batch| ranges.observe(batch));
            ranges
        };
        for step in [1, 2, 7, 23] {
            assert_eq!(ranges(&x, step).lowest(), x.fold_axis(Axis(0), 0.0_f32, |m, v| m.min(*v)));
            assert_eq!(ranges(&x, step).highest(), x.fold_axis(Axis(0), 0.0_f32, |m, v| m.max(*v)));
        }
        assert_eq!(ranges(&x, 23).lowest()[4], 0.0, "zero is in the range");
        x[(3, 2)] = f32::NAN;
        for step in [1, 23] {
            let ranges = ranges(&x, step);
            assert!(ranges.lowest()[2].is_nan() && ranges.highest()[2].is_nan());
            assert!(ranges.lowest()[1].is_finite());
        }
    }
    #[test]
    fn channel_means_do_not_depend_on_batches_and_follow_a_scaling() {
        let x = Array2::from_shape_fn((23, 5), |(t, j)| ((t * 31 + j * 17) % 47) as f32 - 20.0);
        let means = |x: &Array2<f32>, step: usize| {
            let mut means = ChannelMeans::new(5);
            for batch in x.axis_chunks_iter(Axis(0), step) {
                means.observe(batch);
            }
            means
        };
        let expected = x.mapv(f32::abs).mean_axis(Axis(0)).unwrap();
        for step in [1, 2, 7, 23] {
            assert_eq!(means(&x, step), means(&x, 23));
            assert!((means(&x, step).means() - &expected).iter().all(|d| d.abs() < 1e-5));
        }
        let factors = Array1::from(vec![2.0, 0.5, 4.0, 1.0, 8.0]);
        let (mut scaled, mut largest) = (means(&x, 23), ChannelMaxima::new(5));
        largest.observe(x.view());
        scaled.divide(factors.view());
        largest.divide(factors.view());
        let divided = &x / &factors;
        assert_eq!(scaled.means(), means(&divided, 23).means());
        assert_eq!(largest.view(), divided.fold_axis(Axis(0), 0.0_f32, |m, v| m.max(v.abs())));
        assert_eq!(ChannelMeans::new(3).means(), Array1::<f32>::zeros(3));
    }
}
