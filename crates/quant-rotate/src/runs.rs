//! Rows seen as several shorter ones.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, CowArray, Ix2};

/// Hands `x` `[rows, columns]` to `work` as `[rows * columns / run, run]`, through a copy where its rows are not adjacent.
///
/// # Panics
/// If `run` does not divide the number of columns.
pub(crate) fn in_runs<T: Clone>(
    mut x: ArrayViewMut2<'_, T>,
    run: usize,
    work: impl FnOnce(ArrayViewMut2<'_, T>),
) {
    let shape = shape(x.dim(), run);
    if let Some(values) = x.as_slice_mut() {
        if let Ok(runs) = ArrayViewMut2::from_shape(shape, values) {
            work(runs);
        }
        return;
    }
    let mut copy = x.as_standard_layout().into_owned();
    in_runs(copy.view_mut(), run, work);
    x.assign(&copy);
}

/// `x` `[rows, columns]` as `[rows * columns / run, run]`, a copy where its rows are not adjacent.
///
/// # Panics
/// If `run` does not divide the number of columns.
#[expect(clippy::expect_used, reason = "as many elements, and any layout is copied where it must be")]
pub(crate) fn as_runs<'a, T: Clone>(x: ArrayView2<'a, T>, run: usize) -> CowArray<'a, T, Ix2> {
    let shape = shape(x.dim(), run);
    match x.to_slice() {
        Some(values) => ArrayView2::from_shape(shape, values).expect("as many elements").into(),
        None => {
            let copy = x.as_standard_layout().into_owned();
            copy.into_shape_with_order(shape).expect("as many elements in standard layout").into()
        }
    }
}

fn shape((rows, columns): (usize, usize), run: usize) -> (usize, usize) {
    assert!(run > 0 && columns.is_multiple_of(run), "{columns} columns are no whole number of runs of {run}");
    (rows * (columns / run), run)
}

/// Runs put together as rows again, the inverse of [`as_runs`].
#[expect(clippy::expect_used, reason = "an array of our own in standard layout, with as many elements")]
pub(crate) fn from_runs<T>(runs: Array2<T>, shape: (usize, usize)) -> Array2<T> {
    runs.into_shape_with_order(shape).expect("as many elements in standard layout")
}
