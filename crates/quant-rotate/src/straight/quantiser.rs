//! Straight-through quantisers of runs of values.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use quant_core::Bits;
use quant_kernels::{Element, Par, tasks, vectorized};

use super::ClipLogits;
use super::extremes::{Factor, LANES, TASK_RUNS, add_where, extremes, for_lanes, total};
use crate::RotateError;
use crate::runs::{as_runs, in_runs};

/// A quantiser whose scale is found from every run of adjacent values, with a gradient.
///
/// Forward it is `y = s (clamp(round(x/s) + z, 0, 2^b - 1) - z)`, the quantisers of QuaRot-derived code: symmetric with
/// `s = A / (2^(b-1) - 1)` and `z = 2^(b-1)`, or asymmetric with `s = (h - l) / (2^b - 1)` and `z = round(-l / s)`, where `h` and `l` are
/// the ends of the range, 0 included, each times its clip factor, and `A` the larger of `h` and `-l`.
///
/// Backward, rounding has the gradient 1 and so has the clamp where the level is inside the range or at its ends; outside, an element
/// has no gradient and the scale takes its place. Scales are differentiated through the ends of the range, to the clip factors and to
/// the first element of the extreme value (both ends by half where a symmetric range has two equal ones). The zero level has no
/// gradient, and neither has an end that is 0 because the range must hold it. Backward keeps nothing of forward: it finds the range
/// again.
///
/// ```
/// use quant_rotate::ndarray::array;
/// use quant_rotate::{Bits, Par, StraightThrough};
///
/// let quantiser = StraightThrough::activations(Bits::new(4)?, true)?;
/// let x = array![[7.0_f32, 0.6, -2.4]];
/// assert_eq!(quantiser.forward(x.view(), 3, None, Par::Seq)?, array![[7.0, 1.0, -2.0]]);
/// let gradient = quantiser.backward(x.view(), array![[0.0, 1.0, 0.0]].view(), 3, None, Par::Seq)?;
/// // Straight through, and through the scale (0.4 a step of it) to the largest value, whose seventh part it is.
/// assert!((gradient.input[(0, 0)] - 0.4 / 7.0).abs() < 1e-6 && gradient.input[(0, 1)] == 1.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StraightThrough {
    bits: Bits,
    symmetric: bool,
    smallest: Smallest,
}

/// What becomes of ranges that are nearly nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Smallest {
    /// A range (of a symmetric one the largest magnitude) is at least 1e-5.
    Weights,
    /// Only a range of nothing at all is replaced.
    Activations,
}

/// Gradients of a [`StraightThrough`] quantiser.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantGradient<T> {
    /// Of its input.
    pub input: Array2<T>,
    /// Of the clip logits, where there are any, in their shape.
    pub clip: Option<ClipLogits<T>>,
}

impl StraightThrough {
    /// For weights: the range of a run is at least 1e-5, and that of zeros (-1, 1) if asymmetric.
    ///
    /// # Errors
    /// [`RotateError::Setting`] for a symmetric quantiser of one bit, which has no level but zero.
    pub fn weights(bits: Bits, symmetric: bool) -> Result<Self, RotateError> {
        Self::new(bits, symmetric, Smallest::Weights)
    }

    /// For activations and cache entries: a run of zeros has the scale 1 (symmetric) or the range (-1, 1).
    ///
    /// # Errors
    /// [`RotateError::Setting`] for a symmetric quantiser of one bit, which has no level but zero.
    pub fn activations(bits: Bits, symmetric: bool) -> Result<Self, RotateError> {
        Self::new(bits, symmetric, Smallest::Activations)
    }

    /// The same with so many bits, or with its own where those are more.
    ///
    /// ```
    /// use quant_rotate::{Bits, StraightThrough};
    ///
    /// let [four, eight] = [4, 8].map(|bits| StraightThrough::weights(Bits::new(bits).unwrap(), true).unwrap());
    /// assert_eq!(four.at_least(Bits::new(8)?), eight);
    /// assert_eq!(eight.at_least(Bits::new(4)?), eight);
    /// # Ok::<(), quant_rotate::RotateError>(())
    /// ```
    #[must_use]
    pub fn at_least(self, bits: Bits) -> Self {
        Self { bits: self.bits.max(bits), ..self }
    }

    fn new(bits: Bits, symmetric: bool, smallest: Smallest) -> Result<Self, RotateError> {
        if symmetric && bits.get() < 2 {
            let value = bits.get().to_string();
            return Err(RotateError::Setting { name: "bits", value, expected: "2 to 8 where symmetric" });
        }
        Ok(Self { bits, symmetric, smallest })
    }

    /// The bit width.
    #[must_use]
    pub fn bits(&self) -> Bits {
        self.bits
    }

    /// Whether ranges are symmetric around zero.
    #[must_use]
    pub fn is_symmetric(&self) -> bool {
        self.symmetric
    }

    /// Quantises and dequantises `x` `[rows, columns]` in runs of `run` columns: all of them for one scale per row, `head_dim` for one
    /// per token and head. `clip` has one logit of each end for all runs, or one for every run of a row.
    ///
    /// What is not finite becomes NaN and takes its run along.
    ///
    /// # Errors
    /// [`RotateError::Shape`] if a row is no whole number of runs, or the logits are of another number.
    pub fn forward<T: Element>(
        &self,
        x: ArrayView2<'_, T>,
        run: usize,
        clip: Option<&ClipLogits<T>>,
        par: Par,
    ) -> Result<Array2<T>, RotateError> {
        let mut y = x.to_owned();
        self.forward_in_place(y.view_mut(), run, clip, par)?;
        Ok(y)
    }

    /// [`StraightThrough::forward`] in place.
    ///
    /// # Errors
    /// As there; nothing is changed then.
    pub fn forward_in_place<T: Element>(
        &self,
        x: ArrayViewMut2<'_, T>,
        run: usize,
        clip: Option<&ClipLogits<T>>,
        par: Par,
    ) -> Result<(), RotateError> {
        let factors = Factors::new(x.ncols(), run, clip)?;
        in_runs(x, run, |runs| {
            tasks::for_rows(runs, par, |first, mut runs| {
                vectorized(
                    #[inline(always)]
                    || {
                        for (i, mut values) in runs.rows_mut().into_iter().enumerate() {
                            let Some(values) = values.as_slice_mut() else { continue };
                            let (max, min) = factors.of(first + i);
                            let Found { scale, zero, .. } = self.find(values, max, min);
                            let top = T::from_f32(self.bits.max_level());
                            for value in values {
                                let level = clamp((*value / scale).round_half_even() + zero, top);
                                *value = scale * (level - zero);
                            }
                        }
                    },
                );
            });
        });
        Ok(())
    }

    /// The gradients for an input `x` and the gradient `g` of the result; `run` and `clip` as in [`StraightThrough::forward`].
    ///
    /// # Errors
    /// As [`StraightThrough::forward`], and if `g` has another shape than `x`.
    pub fn backward<T: Element>(
        &self,
        x: ArrayView2<'_, T>,
        g: ArrayView2<'_, T>,
        run: usize,
        clip: Option<&ClipLogits<T>>,
        par: Par,
    ) -> Result<QuantGradient<T>, RotateError> {
        let mut input = g.to_owned();
        let clip = self.backward_in_place(x, input.view_mut(), run, clip, par)?;
        Ok(QuantGradient { input, clip })
    }

    /// [`StraightThrough::backward`] that turns the gradient of the result into that of the input, in place, and gives those of the clip
    /// logits.
    ///
    /// # Errors
    /// As there; nothing is changed then.
    pub fn backward_in_place<T: Element>(
        &self,
        x: ArrayView2<'_, T>,
        g: ArrayViewMut2<'_, T>,
        run: usize,
        clip: Option<&ClipLogits<T>>,
        par: Par,
    ) -> Result<Option<ClipLogits<T>>, RotateError> {
        let factors = Factors::new(x.ncols(), run, clip)?;
        if g.dim() != x.dim() {
            return Err(RotateError::shape("gradient of a quantised array", x.dim(), g.dim()));
        }
        let values = as_runs(x, run);
        // Of every run; they are added up in order afterwards, so that threads change no sum.
        let mut ends = Array2::<T>::zeros((values.nrows(), 2));
        in_runs(g, run, |mut gradient| {
            let parts = gradient
                .axis_chunks_iter_mut(Axis(0), TASK_RUNS)
                .zip(ends.axis_chunks_iter_mut(Axis(0), TASK_RUNS))
                .enumerate();
            tasks::for_each(parts, par, |(part, (mut gradients, mut ends))| {
                vectorized(
                    #[inline(always)]
                    || {
                        for (i, mut gradient) in gradients.rows_mut().into_iter().enumerate() {
                            let at = part * TASK_RUNS + i;
                            let values = values.row(at);
                            let (Some(values), Some(gradient)) = (values.to_slice(), gradient.as_slice_mut())
                            else {
                                continue;
                            };
                            let (max, min) = factors.of(at);
                            let found = self.find(values, max, min);
                            let scale = found.through(values, gradient, T::from_f32(self.bits.max_level()));
                            let (high, low) = (scale * found.by_high, scale * found.by_low);
                            if found.highest > T::zero() {
                                add_where(values, found.highest, gradient, high * max.value);
                                ends[(i, 0)] = high * found.highest * max.slope;
                            }
                            if found.lowest < T::zero() {
                                add_where(values, found.lowest, gradient, low * min.value);
                                ends[(i, 1)] = low * found.lowest * min.slope;
                            }
                        }
                    },
                );
            });
        });
        Ok(clip.map(|logits| {
            let count = logits.max.len();
            let mut sums = vec![[0.0_f64; 2]; count];
            for (i, run) in ends.rows().into_iter().enumerate() {
                for (sum, &part) in sums[i % count].iter_mut().zip(run) {
                    *sum += part.to_f64_exact();
                }
            }
            let side = |end: usize| sums.iter().map(|sum| T::from_f64(sum[end])).collect();
            ClipLogits { max: side(0), min: side(1) }
        }))
    }

    /// Scale and zero level of a run, and what its scale owes to the ends of the range.
    #[inline(always)]
    fn find<T: Element>(&self, values: &[T], max: Factor<T>, min: Factor<T>) -> Found<T> {
        let (zero, one) = (T::zero(), T::one());
        let (lowest, highest) = extremes(values);
        let high = if highest > zero { highest } else { zero } * max.value;
        let low = if lowest < zero { lowest } else { zero } * min.value;
        let (mid, top) = (T::from_f32(self.bits.mid_level()), T::from_f32(self.bits.max_level()));
        let floor = match self.smallest {
            Smallest::Weights => T::from_f64(1e-5),
            Smallest::Activations => zero,
        };
        let fixed =
            |scale: T, zero: T| Found { lowest, highest, scale, zero, by_high: T::zero(), by_low: T::zero() };
        if self.symmetric {
            let step = mid - one;
            let size = if high > -low { high } else { -low };
            if size < floor {
                return fixed(floor / step, mid);
            }
            if size == zero {
                return fixed(one, mid);
            }
            let half = T::from_f32(0.5);
            let of_high = if high > -low {
                one
            } else if high == -low {
                half
            } else {
                zero
            };
            let scale = positive(size / step);
            Found {
                lowest,
                highest,
                scale,
                zero: mid,
                by_high: of_high / step,
                by_low: (of_high - one) / step,
            }
        } else {
            let nothing = high == zero && low == zero;
            let (high, low) = if nothing { (one, -one) } else { (high, low) };
            let floored = high - low < floor;
            let scale = positive(if floored { floor } else { high - low } / top);
            let level = (-low / scale).round_half_even();
            let level = if level > top { top } else { level };
            if nothing || floored {
                return fixed(scale, level);
            }
            Found { lowest, highest, scale, zero: level, by_high: one / top, by_low: -one / top }
        }
    }
}

/// What a run is quantised with.
struct Found<T> {
    lowest: T,
    highest: T,
    scale: T,
    zero: T,
    /// Derivatives of the scale by the clipped ends of the range.
    by_high: T,
    by_low: T,
}

impl<T: Element> Found<T> {
    /// Turns the gradient of the result into that of the values, but for what goes through the scale; gives the gradient of the scale.
    #[inline(always)]
    fn through(&self, values: &[T], gradient: &mut [T], top: T) -> T {
        let mut sums = [T::zero(); LANES];
        for_lanes(values, gradient, |l, value, g| {
            let steps = value / self.scale;
            let rounded = steps.round_half_even();
            let level = rounded + self.zero;
            let inside = level >= T::zero() && level <= top;
            let by_scale = if inside { rounded - steps } else { clamp(level, top) - self.zero };
            sums[l] += *g * by_scale;
            *g = if inside { *g } else { T::zero() };
        });
        total(&sums)
    }
}

/// `level` held in `0..=top`; a NaN stays one.
#[inline(always)]
fn clamp<T: Element>(level: T, top: T) -> T {
    let level = if level < T::zero() { T::zero() } else { level };
    if level > top { top } else { level }
}

/// A range so small that its step underflows keeps the smallest positive step.
#[inline(always)]
fn positive<T: Element>(scale: T) -> T {
    if scale > T::zero() { scale } else { T::min_positive_value() }
}

/// Factors of the runs of a row.
struct Factors<T>(Vec<(Factor<T>, Factor<T>)>);

impl<T: Element> Factors<T> {
    fn new(columns: usize, run: usize, clip: Option<&ClipLogits<T>>) -> Result<Self, RotateError> {
        if run == 0 || columns == 0 || !columns.is_multiple_of(run) {
            return Err(RotateError::Shape {
                what: "columns to quantise",
                expected: format!("a whole number of runs of {run}"),
                found: columns.to_string(),
            });
        }
        let Some(clip) = clip else { return Ok(Self(vec![(Factor::one(), Factor::one())])) };
        let runs = columns / run;
        if clip.max.len() != clip.min.len() || (clip.max.len() != 1 && clip.max.len() != runs) {
            return Err(RotateError::Shape {
                what: "clip logits of a quantiser",
                expected: format!("1 or {runs} of each end"),
                found: format!("{} and {}", clip.max.len(), clip.min.len()),
            });
        }
        let pairs = clip.max.iter().zip(&clip.min);
        Ok(Self(pairs.map(|(&max, &min)| (Factor::of_logit(max), Factor::of_logit(min))).collect()))
    }

    /// Those of the upper and the lower end of a run, counted through all rows.
    #[inline(always)]
    fn of(&self, run: usize) -> (Factor<T>, Factor<T>) {
        self.0[run % self.0.len()]
    }
}
