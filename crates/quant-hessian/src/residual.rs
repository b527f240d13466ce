//! How well a computed factor reproduces its matrix, in `O(n²)`.

use quant_kernels::{Element, Par, vectorized};

use crate::tasks;

/// Probe vectors applied together.
const PROBES: usize = 2;
/// Row ranges of a triangular pass. Fixed, so that sums do not depend on the thread count.
const CHUNKS: usize = 16;

/// Entries of the deterministic ±1 probes, `[n]` each: the top bit of a 64-bit mix (splitmix) of index and probe.
fn probes(n: usize) -> Vec<Probes> {
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

/// One number for every probe.
type Probes = [f64; PROBES];

/// One pass over a lower triangle (row-major `[n, n]`); returns `(A v, Aᵀ v)` for the lower-triangular `A`, diagonal included in both; sums in f64.
fn triangle_times<T: Element>(a: &[T], n: usize, v: &[Probes], par: Par) -> (Vec<Probes>, Vec<Probes>) {
    let bounds = bounds(n);
    let mut parts: Vec<(Vec<Probes>, Vec<Probes>)> =
        bounds.iter().map(|_| (Vec::new(), Vec::new())).collect();
    tasks::run(bounds.iter().zip(&mut parts), par, |(&(start, end), (rows, columns))| {
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

/// `H_d v` and `L Lᵀ v` for the probes, where `order(k)` is the column of `H` that stands at index `k` of `L`, compared.
///
/// Returns the root mean square over the probes of `‖(L Lᵀ − H_d) v‖₂ / ‖v‖₂`, divided by `unit`. For a random sign vector
/// the square is on average `‖L Lᵀ − H_d‖²_F / n`: the root mean square eigenvalue of the error, the same kind of number
/// as the damping λ, which is why both are measured in units of the mean diagonal. NaN in a factor gives NaN. `sum` is the lower triangle of `H / scale`
/// and `diagonal` the diagonal of `H_d`, in columns of `H`.
pub(crate) fn residual<T: Element>(
    sum: &[f32],
    scale: f64,
    diagonal: &[f64],
    lower: &[T],
    order: impl Fn(usize) -> usize,
    unit: f64,
    par: Par,
) -> f64 {
    let n = diagonal.len();
    let v = probes(n);
    let mut in_columns = vec![[0.0; PROBES]; n];
    for (k, &x) in v.iter().enumerate() {
        in_columns[order(k)] = x;
    }
    let (down, across) = triangle_times(sum, n, &in_columns, par);
    let (_, lt_v) = triangle_times(lower, n, &v, par);
    let (l_lt_v, _) = triangle_times(lower, n, &lt_v, par);
    let mut error = [0.0_f64; PROBES];
    for k in 0..n {
        let j = order(k);
        for p in 0..PROBES {
            // Each triangle counted the stored diagonal once; H_d has its own.
            let off = down[j][p] + across[j][p] - 2.0 * f64::from(sum[j * (n + 1)]) * in_columns[j][p];
            let want = off * scale + diagonal[j] * in_columns[j][p];
            error[p] += (l_lt_v[k][p] - want).powi(2);
        }
    }
    (error.iter().sum::<f64>() / (PROBES * n.max(1)) as f64).sqrt() / unit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(n: usize) -> (Vec<f32>, Vec<f64>) {
        let l: Vec<f64> = (0..n * n)
            .map(|at| {
                let (i, j) = (at / n, at % n);
                match i.cmp(&j) {
                    std::cmp::Ordering::Less => 77.0,
                    std::cmp::Ordering::Equal => 3.0,
                    std::cmp::Ordering::Greater => ((i * 31 + j * 17) % 7) as f64 / 8.0,
                }
            })
            .collect();
        let h = (0..n * n)
            .map(|at| {
                let (i, j) = (at / n, at % n);
                if j > i {
                    f32::NAN
                } else {
                    (0..=j).map(|k| l[i * n + k] * l[j * n + k]).sum::<f64>() as f32
                }
            })
            .collect();
        (h, l)
    }

    #[test]
    fn an_exact_factor_has_no_residual_and_a_wrong_one_its_size() {
        for n in [1, 2, 40, 133] {
            let (h, mut l) = problem(n);
            let diagonal: Vec<f64> = (0..n).map(|i| f64::from(h[i * (n + 1)])).collect();
            let clean = residual(&h, 1.0, &diagonal, &l, |k| k, 1.0, Par::Seq);
            assert!(clean < 1e-9 * n as f64, "{n}: {clean}");
            assert_eq!(clean, residual(&h, 1.0, &diagonal, &l, |k| k, 1.0, Par::new(2)));
            // H_d = H + 0.5 I missing from the factor: the error matrix is 0.5 I.
            let damped: Vec<f64> = diagonal.iter().map(|d| d + 0.5).collect();
            let missing = residual(&h, 1.0, &damped, &l, |k| k, 0.25, Par::Seq);
            assert!((missing - 2.0).abs() < 1e-3, "{n}: {missing}");
            l[(n - 1) * n] = f64::NAN;
            assert!(residual(&h, 1.0, &diagonal, &l, |k| k, 1.0, Par::Seq).is_nan());
        }
    }
}
