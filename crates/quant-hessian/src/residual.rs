//! How well a computed factor reproduces its matrix, in `O(n²)`.

use quant_kernels::{Element, Par};

use crate::triangle::{PROBES, probes, triangle_times};

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
