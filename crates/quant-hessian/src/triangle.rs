//! Passes over a symmetric matrix that is stored as its lower triangle, with a few vectors at a time.

use quant_kernels::{Element, Par, tasks, vectorized};

/// Probe vectors applied together.
pub(crate) const PROBES: usize = 2;
/// Row ranges of a triangular pass. Fixed, so that sums do not depend on the thread count.
const CHUNKS: usize = 16;

/// One number for every probe.
pub(crate) type Probes = [f64; PROBES];

/// Bytes of the pages of a row-major `[n, n]` buffer that hold an element on or below the diagonal, where whole diagonal
/// blocks of `block` columns are written: their entries above the diagonal are counted too.
pub(crate) fn triangle_bytes(n: usize, element: usize, block: usize) -> usize {
    const PAGE: usize = 4096;
    let mut counted = 0;
    let mut pages = 0;
    for row in 0..n {
        let last = ((row / block + 1) * block).min(n);
        let (first, end) = (row * n * element / PAGE, ((row * n + last) * element).div_ceil(PAGE));
        pages += end.saturating_sub(first.max(counted));
        counted = counted.max(end);
    }
    pages * PAGE
}

/// Entries of the deterministic ±1 probes, `[n]` each: the top bit of a 64-bit mix (splitmix) of index and probe.
pub(crate) fn probes(n: usize) -> Vec<Probes> {
    let sign = |i: usize, p: usize| {
        let mut x = (i as u64 ^ ((p as u64 + 1) << 56)).wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        if (x ^ (x >> 31)) >> 63 == 0 { 1.0 } else { -1.0 }
    };
    (0..n).map(|i| std::array::from_fn(|p| sign(i, p))).collect()
}

/// Row bounds that split a lower triangle into parts of about equal area.
fn bounds(n: usize) -> Vec<(usize, usize)> {
    let cut = |c: usize| ((c as f64 / CHUNKS as f64).sqrt() * n as f64).round() as usize;
    (0..CHUNKS).map(|c| (cut(c), cut(c + 1))).filter(|(a, b)| a < b).collect()
}

/// One pass over a lower triangle (row-major `[n, n]`); returns `(A v, Aᵀ v)` for the lower-triangular `A`, diagonal included in both; sums in f64.
pub(crate) fn triangle_times<T: Element>(
    a: &[T],
    n: usize,
    v: &[Probes],
    par: Par,
) -> (Vec<Probes>, Vec<Probes>) {
    let bounds = bounds(n);
    let mut parts: Vec<(Vec<Probes>, Vec<Probes>)> =
        bounds.iter().map(|_| (Vec::new(), Vec::new())).collect();
    tasks::for_each(bounds.iter().zip(&mut parts), par, |(&(start, end), (rows, columns))| {
        *rows = vec![[0.0; PROBES]; end - start];
        // Probes apart from each other, so that the loops below run over consecutive numbers.
        let split: [Vec<f64>; PROBES] = std::array::from_fn(|p| v[..end].iter().map(|x| x[p]).collect());
        let mut sums: [Vec<f64>; PROBES] = std::array::from_fn(|_| vec![0.0; end]);
        vectorized(
            #[inline(always)]
            || {
                for i in start..end {
                    let row = &a[i * n..][..=i];
                    for p in 0..PROBES {
                        rows[i - start][p] = dot_and_axpy(row, &split[p][..=i], v[i][p], &mut sums[p][..=i]);
                    }
                }
            },
        );
        *columns = (0..end).map(|j| std::array::from_fn(|p| sums[p][j])).collect();
    });
    let mut forward = Vec::with_capacity(n);
    let mut transposed = vec![[0.0; PROBES]; n];
    for (rows, columns) in parts {
        forward.extend(rows);
        for (total, part) in transposed.iter_mut().zip(columns) {
            for p in 0..PROBES {
                total[p] += part[p];
            }
        }
    }
    (forward, transposed)
}

/// Returns `row · v` and adds `x · row` to `sums`, in one reading of `row`.
#[inline(always)]
fn dot_and_axpy<T: Element>(row: &[T], v: &[f64], x: f64, sums: &mut [f64]) -> f64 {
    const LANES: usize = 16;
    let mut acc = [0.0_f64; LANES];
    let whole = row.len() / LANES * LANES;
    let chunks =
        row[..whole].chunks_exact(LANES).zip(v.chunks_exact(LANES)).zip(sums.chunks_exact_mut(LANES));
    for ((row, v), sums) in chunks {
        for l in 0..LANES {
            let h = row[l].to_f64_exact();
            acc[l] += h * v[l];
            sums[l] += h * x;
        }
    }
    let mut total: f64 = acc.iter().sum();
    for l in whole..row.len() {
        let h = row[l].to_f64_exact();
        total += h * v[l];
        sums[l] += h * x;
    }
    total
}

/// An estimate from below of the largest eigenvalue of the positive semidefinite matrix with this lower triangle (row-major
/// `[n, n]`), by power iterations from the probes; 0 for the zero matrix.
///
/// The estimate of a step is `‖A v‖ / ‖v‖`, which grows from step to step. It stops where that growth falls below 1e-6, a few
/// steps where one direction dominates, and after 30 at most. Where many directions are nearly as strong as the strongest, it is
/// their common size that is found: what is wanted is the size of a damping.
pub(crate) fn largest_eigenvalue(lower: &[f32], n: usize, par: Par) -> f64 {
    const STEPS: usize = 30;
    let mut v = probes(n);
    let mut largest = 0.0_f64;
    for _ in 0..STEPS {
        let norms: Probes = std::array::from_fn(|p| v.iter().map(|x| x[p] * x[p]).sum::<f64>().sqrt());
        for x in &mut v {
            for p in 0..PROBES {
                x[p] /= norms[p];
            }
        }
        let (down, across) = triangle_times(lower, n, &v, par);
        for (i, x) in v.iter_mut().enumerate() {
            for p in 0..PROBES {
                // Both triangles counted the diagonal.
                x[p] = down[i][p] + across[i][p] - f64::from(lower[i * (n + 1)]) * x[p];
            }
        }
        let estimate = (0..PROBES).map(|p| v.iter().map(|x| x[p] * x[p]).sum::<f64>().sqrt());
        let estimate = estimate.fold(0.0, f64::max);
        let grown = estimate > largest * (1.0 + 1e-6);
        largest = largest.max(estimate);
        if !grown {
            break;
        }
    }
    largest
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;
    use quant_testkit::Numbers;

    #[test]
    fn the_largest_eigenvalue_is_found_whatever_the_gap() {
        for (n, gap) in [(1, 2.0), (40, 10.0), (130, 1.3)] {
            // Eigenvalues 1 and `gap` along orthogonal axes of a reflection.
            let mut noise = Numbers::new(n as u64);
            let u = noise.normals(1, n).mapv(f64::from);
            let square = u.mapv(|x| x * x).sum();
            let q = Array2::from_shape_fn((n, n), |(i, j)| {
                f64::from(u8::from(i == j)) - 2.0 * u[(0, i)] * u[(0, j)] / square
            });
            let d = Array2::from_shape_fn((n, n), |(i, j)| match (i == j, i == 0) {
                (false, _) => 0.0,
                (true, true) => gap,
                (true, false) => 1.0,
            });
            let a = q.dot(&d).dot(&q.t()).mapv(|x| x as f32);
            let lower: Vec<f32> =
                a.indexed_iter().map(|((i, j), &x)| if i >= j { x } else { f32::NAN }).collect();
            let found = largest_eigenvalue(&lower, n, Par::Seq);
            assert!((found / gap - 1.0).abs() < 0.01, "{n}: {found} instead of {gap}");
            assert_eq!(found, largest_eigenvalue(&lower, n, Par::new(2)), "threads must not show");
        }
        assert_eq!(largest_eigenvalue(&[0.0; 9], 3, Par::Seq), 0.0);
        assert_eq!(largest_eigenvalue(&[], 0, Par::Seq), 0.0);
    }
}
