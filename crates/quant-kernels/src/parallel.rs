//! Pieces of work shared out to threads.

use ndarray::{ArrayViewMut2, Axis};

use crate::Par;

/// Runs `work` on every piece, on the caller's rayon pool; make no more pieces than `par` has threads ([`piece_rows`]).
///
/// For pieces that know nothing of each other: then nothing but time depends on the number of threads.
pub fn for_pieces<I>(pieces: I, par: Par, work: impl Fn(I::Item) + Sync)
where
    I: Iterator<Item: Send> + Send,
{
    if par.threads() <= 1 {
        return pieces.for_each(work);
    }
    let work = &work;
    rayon::scope(|scope| {
        for piece in pieces {
            scope.spawn(move |_| work(piece));
        }
    });
}

/// Rows of a piece where `rows` of them are shared out to `par`; at least 1, as the chunks of an array must have.
#[must_use]
pub fn piece_rows(rows: usize, par: Par) -> usize {
    rows.div_ceil(par.threads()).max(1)
}

/// [`for_pieces`] of adjacent rows of one matrix.
pub(crate) fn for_row_chunks<T: Send>(
    mut x: ArrayViewMut2<'_, T>,
    par: Par,
    work: impl Fn(ArrayViewMut2<'_, T>) + Sync,
) {
    let rows = piece_rows(x.nrows(), par);
    for_pieces(x.axis_chunks_iter_mut(Axis(0), rows), par, work);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    #[test]
    fn every_row_once() {
        for (rows, threads) in [(0, 3), (1, 3), (7, 2), (7, 100)] {
            let mut x = Array2::<f32>::zeros((rows, 2));
            for_row_chunks(x.view_mut(), Par::new(threads), |mut piece| piece += 1.0);
            assert!(x.iter().all(|&v| v == 1.0));
            assert!(rows.div_ceil(piece_rows(rows, Par::new(threads))) <= threads);
        }
    }
}
