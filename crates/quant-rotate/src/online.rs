//! Online transforms of many rows at once.

use ndarray::{ArrayViewMut2, Axis, Slice};
use quant_core::{AxisTransform, OnlineKind, OnlineTransform};
use quant_kernels::{Element, Par, tasks, vectorized, walsh_hadamard_rows};

use crate::runs::in_runs;
use crate::{across_heads, per_head};

/// `x <- x P` for every row of `x` `[rows, width]`, in place: what [`OnlineTransform::apply`] specifies for one row, up to rounding,
/// by the kernels. The same bytes on any number of threads, and a row alone is what it is among others.
///
/// ```
/// use quant_core::{AxisTransform, OnlineTransform};
/// use quant_rotate::ndarray::array;
/// use quant_rotate::{Par, apply_online};
///
/// let transform = OnlineTransform::kronecker(vec![AxisTransform::Identity(2), AxisTransform::Walsh(4)])?;
/// let mut x = array![[2.0_f32, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]];
/// apply_online(&transform, x.view_mut(), Par::Seq);
/// assert_eq!(x, array![[1.0, 1.0, 1.0, 1.0, 2.0, 0.0, 0.0, 0.0]]);
/// # Ok::<(), quant_core::CoreError>(())
/// ```
///
/// # Panics
/// If the rows have another width than the transform.
pub fn apply_online<T: Element>(transform: &OnlineTransform, mut x: ArrayViewMut2<'_, T>, par: Par) {
    assert_eq!(x.ncols(), transform.width(), "columns of x and the width of its transform");
    match transform.kind() {
        OnlineKind::Kronecker(axes) => {
            let mut after = transform.width();
            for axis in axes {
                after /= axis.size();
                in_runs(x.view_mut(), axis.size() * after, |runs| apply_axis(axis, after, runs, par));
            }
        }
        OnlineKind::Permutation(order) => tasks::for_rows(x, par, |_, mut rows| {
            let mut before = Vec::with_capacity(order.len());
            for mut row in rows.rows_mut() {
                before.clear();
                before.extend(row.iter().copied());
                row.iter_mut().zip(order).for_each(|(value, &from)| *value = before[from as usize]);
            }
        }),
        OnlineKind::Blocks(parts) => {
            let mut first = 0;
            for part in parts {
                let columns = Slice::from(first..first + part.width());
                apply_online(part, x.slice_axis_mut(Axis(1), columns), par);
                first += part.width();
            }
        }
        OnlineKind::Chain(links) => links.iter().for_each(|link| apply_online(link, x.view_mut(), par)),
    }
}

/// [`apply_online`] of every run of the transform's width in rows that are several times as wide: of every head.
///
/// ```
/// use quant_core::{AxisTransform, OnlineTransform};
/// use quant_rotate::ndarray::array;
/// use quant_rotate::{Par, apply_online_per_head};
///
/// let transform = OnlineTransform::kronecker(vec![AxisTransform::Dense(array![[0.0, 1.0], [1.0, 0.0]])])?;
/// let mut x = array![[1.0_f32, 2.0, 3.0, 4.0]];
/// apply_online_per_head(&transform, x.view_mut(), Par::Seq);
/// assert_eq!(x, array![[2.0, 1.0, 4.0, 3.0]]);
/// # Ok::<(), quant_core::CoreError>(())
/// ```
///
/// # Panics
/// If the columns of `x` are no multiple of the width.
pub fn apply_online_per_head<T: Element>(transform: &OnlineTransform, x: ArrayViewMut2<'_, T>, par: Par) {
    in_runs(x, transform.width(), |heads| apply_online(transform, heads, par));
}

/// One axis of entries `after` apart; a run is the axis and what comes after it.
fn apply_axis<T: Element>(axis: &AxisTransform, after: usize, mut runs: ArrayViewMut2<'_, T>, par: Par) {
    match axis {
        AxisTransform::Identity(_) => {}
        AxisTransform::Walsh(size) => {
            let scale = T::from_f64(1.0 / (*size as f64).sqrt());
            if after == 1 {
                walsh_hadamard_rows(runs, *size, scale, par);
            } else {
                tasks::for_rows(runs, par, |_, mut rows| {
                    for mut row in rows.rows_mut() {
                        if let Some(row) = row.as_slice_mut() {
                            walsh_apart(row, after, scale);
                        }
                    }
                });
            }
        }
        AxisTransform::Dense(matrix) => {
            let matrix = matrix.mapv(T::from_f32);
            if after == 1 {
                let y = per_head(runs.view(), matrix.view(), par);
                runs.assign(&y);
            } else {
                across_heads(runs, matrix.view(), par);
            }
        }
    }
}

/// The Walsh-Hadamard transform of a run whose entries are `after` apart.
fn walsh_apart<T: Element>(run: &mut [T], after: usize, scale: T) {
    vectorized(
        #[inline(always)]
        || {
            let mut stride = after;
            while stride < run.len() {
                for pair in run.chunks_exact_mut(2 * stride) {
                    let (low, high) = pair.split_at_mut(stride);
                    for (a, b) in low.iter_mut().zip(high) {
                        (*a, *b) = (*a + *b, *a - *b);
                    }
                }
                stride *= 2;
            }
            run.iter_mut().for_each(|value| *value *= scale);
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DuQuant, DuQuantSettings, Hadamard, Kronecker};
    use ndarray::Array2;
    use quant_testkit::Numbers;

    fn dense(side: usize, seed: u64) -> AxisTransform {
        AxisTransform::Dense(Numbers::new(seed).matrix(side, side, 1.0))
    }

    /// Every kind, and kinds within each other.
    fn examples() -> Vec<OnlineTransform> {
        use AxisTransform::{Identity, Walsh};
        let kron = |axes| OnlineTransform::kronecker(axes).unwrap();
        let order: Vec<u32> = (0..24).map(|i| i * 7 % 24).collect();
        let permutation = OnlineTransform::new(OnlineKind::Permutation(order)).unwrap();
        vec![
            kron(vec![Identity(5)]),
            kron(vec![Walsh(64)]),
            kron(vec![dense(7, 1)]),
            kron(vec![dense(3, 2), dense(8, 3)]),
            kron(vec![Walsh(8), dense(3, 4)]),
            kron(vec![Walsh(4), Walsh(16)]),
            kron(vec![dense(3, 5), Walsh(32)]),
            kron(vec![Identity(3), dense(4, 6), Walsh(2), dense(2, 7)]),
            permutation.clone(),
            OnlineTransform::new(OnlineKind::Blocks(vec![
                kron(vec![Walsh(8)]),
                kron(vec![dense(3, 8), dense(5, 9)]),
            ]))
            .unwrap(),
            OnlineTransform::chain(vec![
                kron(vec![Identity(3), Walsh(8)]),
                permutation,
                kron(vec![dense(24, 10)]),
            ])
            .unwrap(),
        ]
    }

    fn equals_the_specification<T: Element>(transform: &OnlineTransform, tolerance: f64) {
        let x = Numbers::new(11).matrix(40, transform.width(), 1.0).mapv(T::from_f32);
        let mut want = x.mapv(|v| v.to_f64_exact());
        want.rows_mut().into_iter().for_each(|mut row| transform.apply(row.as_slice_mut().unwrap()));
        let mut got = x.clone();
        apply_online(transform, got.view_mut(), Par::Seq);
        let largest = want.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
        for (at, &found) in got.indexed_iter() {
            let error = (found.to_f64_exact() - want[at]).abs();
            assert!(error <= tolerance * largest, "{transform:?} {at:?}: {found} for {}", want[at]);
        }
        let mut shared = x.clone();
        apply_online(transform, shared.view_mut(), Par::new(3));
        let mut columns = x.t().as_standard_layout().into_owned();
        apply_online(transform, columns.view_mut().reversed_axes(), Par::Seq);
        let mut alone = x.slice_axis(Axis(0), Slice::from(7..8)).to_owned();
        apply_online(transform, alone.view_mut(), Par::Seq);
        assert!(shared == got && columns.t() == got && alone.row(0) == got.row(7), "{transform:?}");
    }

    #[test]
    fn rows_are_those_of_the_specification() {
        for transform in examples() {
            equals_the_specification::<f64>(&transform, 1e-14);
            equals_the_specification::<f32>(&transform, 2e-6);
        }
    }

    #[test]
    fn rotations_as_online_transforms() {
        let x = Numbers::new(12).matrix(20, 96, 1.0).mapv(f64::from);
        let near = |what: &str, transform: &OnlineTransform, want: &Array2<f64>| {
            let mut got = x.clone();
            apply_online(transform, got.view_mut(), Par::Seq);
            let error = (&got - want).iter().fold(0.0_f64, |a, b| a.max(b.abs()));
            assert!(error < 1e-6, "{what}: {error}");
        };
        for size in [96, 48, 32, 12] {
            let hadamard = Hadamard::new(size).unwrap();
            let mut want = x.clone();
            hadamard.apply(want.view_mut(), Par::Seq);
            near("Hadamard", &hadamard.online(96).unwrap(), &want);
        }
        assert!(Hadamard::new(64).unwrap().online(96).is_err());

        let (left, right) = (Numbers::new(1).matrix(8, 8, 1.0), Numbers::new(2).matrix(12, 12, 1.0));
        let (wide_left, wide_right) = (left.mapv(f64::from), right.mapv(f64::from));
        let want = Kronecker::new(wide_left.view(), wide_right.view()).unwrap().apply(x.view(), Par::Seq);
        near("Kronecker", &Kronecker::new(left.view(), right.view()).unwrap().online().unwrap(), &want);

        let settings = DuQuantSettings { block: 16, steps: 10, ..DuQuantSettings::default() };
        let fitted = DuQuant::fit(x.mapv(|v| v as f32).view(), &settings, Par::Seq).unwrap();
        near("DuQuant", &fitted.online().unwrap(), &fitted.apply(x.view(), Par::Seq));
    }
}
