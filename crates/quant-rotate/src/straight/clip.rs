//! Learned clipping of weights.

use ndarray::{Array2, ArrayView2, Axis};
use quant_kernels::{Element, Par, tasks, vectorized};

use super::ClipLogits;
use super::extremes::{Factor, LANES, TASK_RUNS, add_where, extremes, for_lanes, total};
use crate::RotateError;
use crate::runs::{as_runs, from_runs};

/// Clamps every run of a weight to `[min * sigmoid(c_min), max * sigmoid(c_max)]`, `min` and `max` being its smallest and largest
/// value (FlatQuant's learnable weight clipping).
///
/// `w` is `[out, in]`; a run is a part of a row, `in` of them the whole, and there is one logit of each kind per run, in row-major
/// order. Where the bounds are in the wrong order the upper one is taken, as in PyTorch.
///
/// ```
/// use quant_rotate::ndarray::array;
/// use quant_rotate::{ClipLogits, Par, clip_weight};
///
/// let logits = ClipLogits { max: array![0.0_f32], min: array![0.0] };
/// let clipped = clip_weight(array![[-1.0, 0.25, 2.0]].view(), 3, &logits, Par::Seq)?;
/// assert_eq!(clipped, array![[-0.5, 0.25, 1.0]]);
/// # Ok::<(), quant_rotate::RotateError>(())
/// ```
///
/// # Errors
/// [`RotateError::Shape`] if a row is no whole number of runs or there is not one logit for each.
pub fn clip_weight<T: Element>(
    w: ArrayView2<'_, T>,
    run: usize,
    logits: &ClipLogits<T>,
    par: Par,
) -> Result<Array2<T>, RotateError> {
    check(w, run, logits)?;
    let mut clipped = as_runs(w, run).into_owned();
    tasks::for_rows(clipped.view_mut(), par, |first, mut runs| {
        vectorized(
            #[inline(always)]
            || {
                for (i, mut values) in runs.rows_mut().into_iter().enumerate() {
                    let Some(values) = values.as_slice_mut() else { continue };
                    let (low, high) = Bounds::new(values, logits, first + i).ends();
                    for value in values {
                        let at_least = if *value < low { low } else { *value };
                        *value = if at_least > high { high } else { at_least };
                    }
                }
            },
        );
    });
    Ok(from_runs(clipped, w.dim()))
}

/// The gradients of [`clip_weight`] for the gradient `g` of its result: of the weight, and of the logits.
///
/// Inside the bounds and on them a gradient goes to the element. Outside it goes to the bound, and from there to the logit and to the
/// first element that has the extreme value.
///
/// # Errors
/// As [`clip_weight`], and if `g` has another shape than `w`.
pub fn clip_weight_gradient<T: Element>(
    w: ArrayView2<'_, T>,
    g: ArrayView2<'_, T>,
    run: usize,
    logits: &ClipLogits<T>,
    par: Par,
) -> Result<(Array2<T>, ClipLogits<T>), RotateError> {
    check(w, run, logits)?;
    if g.dim() != w.dim() {
        return Err(RotateError::shape("gradient of a clipped weight", w.dim(), g.dim()));
    }
    let values = as_runs(w, run);
    let mut gradient = as_runs(g, run).into_owned();
    let mut ends = ClipLogits::zeros(logits.max.len());
    let parts = gradient
        .axis_chunks_iter_mut(Axis(0), TASK_RUNS)
        .zip(ends.max.axis_chunks_iter_mut(Axis(0), TASK_RUNS))
        .zip(ends.min.axis_chunks_iter_mut(Axis(0), TASK_RUNS))
        .enumerate();
    tasks::for_each(parts, par, |(part, ((mut gradients, mut of_max), mut of_min))| {
        vectorized(
            #[inline(always)]
            || {
                for (i, mut gradient) in gradients.rows_mut().into_iter().enumerate() {
                    let at = part * TASK_RUNS + i;
                    let values = values.row(at);
                    let (Some(values), Some(gradient)) = (values.to_slice(), gradient.as_slice_mut()) else {
                        continue;
                    };
                    let bounds = Bounds::new(values, logits, at);
                    (of_max[i], of_min[i]) = bounds.backward(values, gradient);
                }
            },
        );
    });
    Ok((from_runs(gradient, w.dim()), ends))
}

/// The extremes of a run and the factors of both.
struct Bounds<T> {
    lowest: T,
    highest: T,
    of_min: Factor<T>,
    of_max: Factor<T>,
}

impl<T: Element> Bounds<T> {
    #[inline(always)]
    fn new(values: &[T], logits: &ClipLogits<T>, run: usize) -> Self {
        let (lowest, highest) = extremes(values);
        let (of_min, of_max) = (Factor::of_logit(logits.min[run]), Factor::of_logit(logits.max[run]));
        Self { lowest, highest, of_min, of_max }
    }

    #[inline(always)]
    fn ends(&self) -> (T, T) {
        (self.lowest * self.of_min.value, self.highest * self.of_max.value)
    }

    /// Turns the gradient of the result into that of the values; gives those of the logits of the upper and the lower end.
    #[inline(always)]
    fn backward(&self, values: &[T], gradient: &mut [T]) -> (T, T) {
        let (low, high) = self.ends();
        let (mut at_high, mut at_low) = ([T::zero(); LANES], [T::zero(); LANES]);
        for_lanes(values, gradient, |l, value, g| {
            let above = value > high || high < low;
            let below = low < high && value < low;
            at_high[l] += if above { *g } else { T::zero() };
            at_low[l] += if below { *g } else { T::zero() };
            *g = if value >= low && value <= high { *g } else { T::zero() };
        });
        let (at_high, at_low) = (total(&at_high), total(&at_low));
        add_where(values, self.highest, gradient, at_high * self.of_max.value);
        add_where(values, self.lowest, gradient, at_low * self.of_min.value);
        (at_high * self.highest * self.of_max.slope, at_low * self.lowest * self.of_min.slope)
    }
}

fn check<T>(w: ArrayView2<'_, T>, run: usize, logits: &ClipLogits<T>) -> Result<(), RotateError> {
    if run == 0 || w.ncols() == 0 || !w.ncols().is_multiple_of(run) {
        return Err(RotateError::Shape {
            what: "columns of a weight to clip",
            expected: format!("a whole number of runs of {run}"),
            found: w.ncols().to_string(),
        });
    }
    let runs = w.nrows() * (w.ncols() / run);
    if logits.max.len() != runs || logits.min.len() != runs {
        return Err(RotateError::Shape {
            what: "clip logits of a weight",
            expected: format!("{runs} of each end, one for every run"),
            found: format!("{} and {}", logits.max.len(), logits.min.len()),
        });
    }
    Ok(())
}
