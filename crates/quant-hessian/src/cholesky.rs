//! Blocked Cholesky factorisation whose bulk is the product kernel of `quant-kernels`.

use ndarray::{ArrayViewMut2, Axis, Slice};
use quant_kernels::{
    Compute, Element, Par, PivotError, cholesky_lower_in_place, matmul_nn, matmul_nt, tasks, vectorized,
    views,
};

use crate::feedback::add_feedback;

/// Columns of a block: the inner dimension of the triangular solves, which run slower than products do.
pub(crate) const BLOCK: usize = 256;
/// Rows of one task of the triangular solve.
const ROWS: usize = 256;
/// Columns solved one by one between two products.
const SUB: usize = 32;

/// Replaces the lower triangle of a row-major `[n, n]` matrix by its Cholesky factor, left-looking.
///
/// For every block of columns: subtract the product of the finished columns (one long product, where almost all of the
/// `n³/3` operations are), factorise the diagonal block, solve the rows below it. The triangular solve is a true
/// substitution, not a product with an inverted block, so the factor is backward stable whatever the block's condition.
/// The strict upper triangle is written only inside diagonal blocks; elsewhere it is not touched. Neither the order of any
/// sum nor the shape of any task depends on the thread count.
///
/// # Errors
/// The row of the first pivot that is not positive.
pub(crate) fn cholesky<T: Element>(lower: &mut [T], n: usize, par: Par) -> Result<(), usize> {
    let mut diagonal = Vec::new();
    for start in (0..n).step_by(BLOCK) {
        let end = (start + BLOCK).min(n);
        let width = end - start;
        let matrix = views::matrix_mut(&mut *lower, n, n);
        let (_, rows) = matrix.split_at(Axis(0), start);
        let (finished, mut open) = rows.split_at(Axis(1), start);
        open.slice_axis_inplace(Axis(1), Slice::from(..width));
        // Nothing is finished before the first block.
        if start > 0 {
            let pivots = finished.slice_axis(Axis(0), Slice::from(..width));
            matmul_nt(open.view_mut(), true, -T::one(), finished.view(), pivots, Compute::F32, par);
        }
        let (mut block, below) = open.split_at(Axis(0), width);
        diagonal.clear();
        diagonal.extend(block.iter().copied());
        cholesky_lower_in_place(views::matrix_mut(&mut diagonal, width, width), Par::Seq)
            .map_err(|PivotError { index, .. }| start + index)?;
        block.assign(&views::matrix(&diagonal, width, width));
        solve_below(below, &diagonal, width, par);
    }
    Ok(())
}

/// `X ← X L⁻ᵀ` for the rows of `X` `[rows, width]`, such as those below the diagonal block `L` `[width, width]` of a
/// factorisation. Any strides are accepted; no row knows of the others.
pub(crate) fn solve_below<T: Element>(mut x: ArrayViewMut2<'_, T>, l: &[T], width: usize, par: Par) {
    let sub_blocks: Vec<SubBlock<T>> =
        (0..width).step_by(SUB).map(|start| SubBlock::new(l, width, start)).collect();
    let column_major = x.strides()[0] == 1;
    tasks::for_each(x.axis_chunks_iter_mut(Axis(0), ROWS), par, |mut rows| {
        // Transposed, so that every column operation runs over consecutive rows.
        let mut lanes = vec![[T::zero(); ROWS]; width];
        if column_major {
            for (lanes, column) in lanes.iter_mut().zip(rows.columns()) {
                column.iter().zip(lanes).for_each(|(&x, lane)| *lane = x);
            }
        } else {
            for (r, row) in rows.rows().into_iter().enumerate() {
                for (lanes, &x) in lanes.iter_mut().zip(row) {
                    lanes[r] = x;
                }
            }
        }
        for sub in &sub_blocks {
            let (solved, open) = lanes.split_at_mut(sub.start);
            let open = &mut open[..sub.width];
            if sub.start > 0 {
                let before = views::matrix(&l[sub.start * width..][..sub.width * width], sub.width, width);
                let before = before.split_at(Axis(1), sub.start).0;
                let solved = views::matrix(solved.as_flattened(), sub.start, ROWS);
                let target = views::matrix_mut(open.as_flattened_mut(), sub.width, ROWS);
                matmul_nn(target, true, -T::one(), before, solved, Compute::F32, Par::Seq);
            }
            vectorized(
                #[inline(always)]
                || {
                    for i in 0..open.len() {
                        let (solved, rest) = open.split_at_mut(i);
                        add_feedback(&mut rest[0], solved, &sub.minus[i][..i]);
                        for x in &mut rest[0] {
                            *x /= sub.pivots[i];
                        }
                    }
                },
            );
        }
        if column_major {
            for (lanes, mut column) in lanes.iter().zip(rows.columns_mut()) {
                column.iter_mut().zip(lanes).for_each(|(x, &lane)| *x = lane);
            }
        } else {
            for (r, mut row) in rows.rows_mut().into_iter().enumerate() {
                for (lanes, x) in lanes.iter().zip(&mut row) {
                    *x = lanes[r];
                }
            }
        }
    });
}

/// A diagonal sub-block of the factor, ready for substitution.
struct SubBlock<T> {
    start: usize,
    width: usize,
    /// `−L_ki` for `i < k`.
    minus: [[T; SUB]; SUB],
    /// `L_kk`.
    pivots: [T; SUB],
}

impl<T: Element> SubBlock<T> {
    fn new(l: &[T], stride: usize, start: usize) -> Self {
        let width = SUB.min(stride - start);
        let mut sub = Self { start, width, minus: [[T::zero(); SUB]; SUB], pivots: [T::one(); SUB] };
        for k in 0..width {
            let row = &l[(start + k) * stride + start..][..=k];
            sub.pivots[k] = row[k];
            for (minus, &x) in sub.minus[k].iter_mut().zip(&row[..k]) {
                *minus = -x;
            }
        }
        sub
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;
    use quant_testkit::Numbers;

    /// `max |L Lᵀ − A| / max A` of the lower triangle.
    fn check<T: Element>(n: usize, tolerance: f64) {
        let mut noise = Numbers::new(n as u64);
        let x = noise.activations(n / 2 + 3, n).mapv(f64::from);
        let mut a = x.t().dot(&x);
        let mean = a.diag().mean().unwrap();
        a.diag_mut().mapv_inplace(|d| d + 0.01 * mean);
        let start: Vec<T> =
            a.indexed_iter().map(|((i, j), &v)| if i >= j { T::from_f64(v) } else { T::zero() }).collect();
        let mut one = start.clone();
        cholesky(&mut one, n, Par::Seq).unwrap();
        let mut two = start;
        cholesky(&mut two, n, Par::new(2)).unwrap();
        assert!(one == two, "threads must not show");
        let l =
            Array2::from_shape_fn((n, n), |(i, j)| if i >= j { one[i * n + j].to_f64_exact() } else { 0.0 });
        let largest = a.diag().iter().copied().fold(0.0, f64::max);
        let error = (l.dot(&l.t()) - &a).iter().fold(0.0_f64, |m, e| m.max(e.abs())) / largest;
        println!("n {n}: {error:.1e}");
        assert!(error < tolerance, "n {n}: {error:e}");
    }

    #[test]
    fn the_factor_multiplies_back() {
        for n in [1, 31, 33, 256, 257, 600, 777] {
            check::<f32>(n, 2e-6);
            check::<f64>(n, 1e-14);
        }
    }

    /// `A = L D Lᵀ` with one negative entry in `D`: every pivot before it is positive, that one is not.
    #[test]
    fn a_bad_pivot_is_located() {
        let n = 520;
        let mut noise = Numbers::new(3);
        let l = Array2::from_shape_fn((n, n), |(i, j)| match i.cmp(&j) {
            std::cmp::Ordering::Less => 0.0,
            std::cmp::Ordering::Equal => 1.0,
            std::cmp::Ordering::Greater => 0.05 * f64::from(noise.uniform()),
        });
        for bad in [0, 40, 255, 256, 500] {
            let mut scaled = l.clone();
            scaled.column_mut(bad).mapv_inplace(|x| -x);
            let mut a = scaled.dot(&l.t()).mapv(|x| x as f32).into_raw_vec_and_offset().0;
            assert!(a[bad * (n + 1)] != -1.0 || bad == 0, "the matrix is not diagonal");
            assert_eq!(cholesky(&mut a, n, Par::Seq), Err(bad));
            let mut a = l.dot(&l.t()).mapv(|x| x as f32).into_raw_vec_and_offset().0;
            assert_eq!(cholesky(&mut a.clone(), n, Par::Seq), Ok(()));
            a[bad * n + bad / 2] = f32::NAN;
            assert_eq!(cholesky(&mut a, n, Par::Seq), Err(bad), "a NaN in row {bad}");
        }
    }
}
