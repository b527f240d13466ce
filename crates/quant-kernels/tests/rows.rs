//! The row operations and the factorisation against naive f64 versions.

use approx::assert_relative_eq;
use ndarray::{Array1, Array2, s};
use quant_kernels::{
    CausalSoftmax, Element, Par, PivotError, cholesky_lower_in_place, exp_f32, gram_lower, rms_norm,
    rope_in_place, silu_mul, softmax_rows_causal, vectorized,
};
use quant_testkit::Numbers;

fn random<T: Element>(rows: usize, cols: usize, scale: f32, seed: u64) -> Array2<T> {
    Numbers::new(seed).matrix(rows, cols, scale).mapv(T::from_f32)
}

fn wide<T: Element>(x: &Array2<T>) -> Array2<f64> {
    x.mapv(|x| x.to_f64_exact())
}

fn tolerance<T: Element>() -> f64 {
    16.0 * T::epsilon().to_f64_exact()
}

fn check_rms_norm<T: Element>() {
    for (tokens, n) in [(1, 1), (3, 17), (5, 160), (2, 1536)] {
        let x = random::<T>(tokens, n, 3.0, 1);
        let weight: Array1<T> = random::<T>(1, n, 1.0, 2).row(0).to_owned();
        let eps = T::from_f64(1e-6);
        let y = rms_norm(x.view(), weight.view(), eps);
        for t in 0..tokens {
            let row: Vec<f64> = x.row(t).iter().map(|x| x.to_f64_exact()).collect();
            let mean = row.iter().map(|x| x * x).sum::<f64>() / n as f64;
            for j in 0..n {
                let want = row[j] / (mean + 1e-6).sqrt() * weight[j].to_f64_exact();
                assert_relative_eq!(
                    y[(t, j)].to_f64_exact(),
                    want,
                    max_relative = tolerance::<T>(),
                    epsilon = 1e-30
                );
            }
        }
        let columns = x.t().as_standard_layout().into_owned();
        assert_eq!(rms_norm(columns.t(), weight.view(), eps), y, "column-major input");
    }
    assert_eq!(rms_norm(Array2::<T>::zeros((0, 4)).view(), Array1::ones(4).view(), T::one()).dim(), (0, 4));
}

#[test]
fn rms_norm_in_both_types() {
    check_rms_norm::<f32>();
    check_rms_norm::<f64>();
}

fn check_softmax<T: Element>() {
    for (queries, keys, first, window) in [
        (5, 5, 0, None),
        (3, 40, 37, None),
        (6, 6, 0, Some(2)),
        (4, 70, 66, Some(33)),
        (4, 3, 0, None),
        (2, 4, 9, Some(3)),
    ] {
        let scores = random::<T>(queries, keys, 20.0, 3);
        let mut got = scores.clone();
        softmax_rows_causal(got.view_mut(), first, window);
        for i in 0..queries {
            let position = first + i;
            let seen = |j: usize| j <= position && window.is_none_or(|w| j + w > position);
            let total: f64 =
                (0..keys).filter(|&j| seen(j)).map(|j| scores[(i, j)].to_f64_exact().exp()).sum();
            for j in 0..keys {
                let want = if seen(j) { scores[(i, j)].to_f64_exact().exp() / total } else { 0.0 };
                let got = got[(i, j)].to_f64_exact();
                assert_eq!(got == 0.0, want == 0.0, "masked exactly");
                // The argument of exp, up to 40, is rounded before it is exponentiated.
                assert_relative_eq!(got, want, max_relative = 4.0 * tolerance::<T>());
            }
        }
        let mut columns = scores.t().as_standard_layout().into_owned();
        softmax_rows_causal(columns.view_mut().reversed_axes(), first, window);
        assert_eq!(columns.t(), got, "column-major scores");
    }
}

#[test]
fn softmax_in_both_types() {
    check_softmax::<f32>();
    check_softmax::<f64>();
}

/// Tiles of any width give what whole rows give, whatever the sums held before.
fn check_tiles<T: Element>() {
    for (queries, keys, first, window) in
        [(5, 5, 0, None), (3, 40, 37, None), (40, 40, 0, Some(7)), (4, 70, 66, Some(33)), (2, 4, 9, Some(3))]
    {
        let scores = random::<T>(queries, keys, 20.0, 3);
        let values = random::<T>(keys, 19, 1.0, 4);
        let mut weights = scores.clone();
        softmax_rows_causal(weights.view_mut(), first, window);
        let want = wide(&weights).dot(&wide(&values));
        for width in [1, 3, 16, 100] {
            let mut softmax = CausalSoftmax::default();
            let mut got = Array2::from_elem((queries, 19), T::nan());
            softmax.start(queries);
            for from in (0..keys).step_by(width) {
                let to = (from + width).min(keys);
                let mut tile = scores.slice(ndarray::s![.., from..to]).to_owned();
                softmax.tile(tile.view_mut(), from, first, window, got.view_mut());
                got += &tile.dot(&values.slice(ndarray::s![from..to, ..]));
            }
            softmax.finish(got.view_mut());
            for (got, want) in wide(&got).iter().zip(&want) {
                assert_relative_eq!(*got, *want, epsilon = 8.0 * tolerance::<T>());
            }
        }
    }
}

#[test]
fn softmax_by_tiles_is_softmax() {
    check_tiles::<f32>();
    check_tiles::<f64>();
    let mut scores = ndarray::array![[1.0_f32, f32::NAN]];
    let mut sums = ndarray::array![[0.0_f32]];
    let mut softmax = CausalSoftmax::default();
    softmax.start(1);
    softmax.tile(scores.view_mut(), 0, 1, None, sums.view_mut());
    sums += &scores.dot(&ndarray::array![[1.0_f32], [1.0]]);
    softmax.finish(sums.view_mut());
    assert!(sums[(0, 0)].is_nan(), "a NaN that is seen stays one");
}

#[test]
fn softmax_survives_huge_and_infinite_scores() {
    let mut scores = ndarray::array![[3e38_f32, -3e38, f32::NEG_INFINITY, 3e38]];
    softmax_rows_causal(scores.view_mut(), 3, None);
    assert_eq!(scores, ndarray::array![[0.5, 0.0, 0.0, 0.5]]);
    let mut scores = ndarray::array![[1.0_f32, f32::NAN]];
    softmax_rows_causal(scores.view_mut(), 0, None);
    assert_eq!(scores, ndarray::array![[1.0, 0.0]], "a masked NaN is not seen");
}

fn check_silu<T: Element>() {
    let gate = random::<T>(7, 172, 30.0, 4);
    let up = random::<T>(7, 172, 2.0, 5);
    let mut got = gate.clone();
    silu_mul(got.view_mut(), up.view());
    for ((g, u), got) in wide(&gate).iter().zip(&wide(&up)).zip(&wide(&got)) {
        assert_relative_eq!(*got, g / (1.0 + (-g).exp()) * u, max_relative = tolerance::<T>());
    }
    let mut columns = gate.t().as_standard_layout().into_owned();
    let up_columns = up.t().as_standard_layout().into_owned();
    silu_mul(columns.view_mut().reversed_axes(), up_columns.t());
    assert_eq!(columns.t(), got, "column-major input");
}

#[test]
fn silu_in_both_types() {
    check_silu::<f32>();
    check_silu::<f64>();
    let mut gate = ndarray::array![[-200.0_f32, 200.0]];
    silu_mul(gate.view_mut(), ndarray::array![[1.0, 1.0]].view());
    assert_eq!(gate, ndarray::array![[0.0, 200.0]]);
}

fn check_rope<T: Element>() {
    let (tokens, heads, half) = (9, 3, 5);
    let x = random::<T>(tokens, heads * 2 * half, 1.0, 6);
    let angle = |t: usize, j: usize| t as f64 * 0.7_f64.powi(j as i32);
    let cos = Array2::from_shape_fn((tokens, half), |(t, j)| T::from_f64(angle(t, j).cos()));
    let sin = Array2::from_shape_fn((tokens, half), |(t, j)| T::from_f64(angle(t, j).sin()));
    let mut y = x.clone();
    rope_in_place(y.view_mut(), heads, cos.view(), sin.view());
    for t in 0..tokens {
        for h in 0..heads {
            for j in 0..half {
                let (first, second) = (h * 2 * half + j, h * 2 * half + half + j);
                let (x1, x2) = (x[(t, first)].to_f64_exact(), x[(t, second)].to_f64_exact());
                let (c, s) = (angle(t, j).cos(), angle(t, j).sin());
                let bound = tolerance::<T>();
                assert_relative_eq!(y[(t, first)].to_f64_exact(), x1 * c - x2 * s, epsilon = bound);
                assert_relative_eq!(y[(t, second)].to_f64_exact(), x2 * c + x1 * s, epsilon = bound);
            }
        }
    }
    // The rotation with the opposite sine undoes it.
    rope_in_place(y.view_mut(), heads, cos.view(), sin.mapv(|s| -s).view());
    for (back, x) in wide(&y).iter().zip(&wide(&x)) {
        assert_relative_eq!(*back, *x, epsilon = tolerance::<T>());
    }
}

#[test]
fn the_rest_of_a_partly_rotated_head_passes() {
    let (tokens, heads, head_dim, half) = (5, 3, 14, 4);
    let x = Array2::from_shape_fn((tokens, heads * head_dim), |(t, c)| (t * 7 + c * 3) as f32 * 0.1 - 2.0);
    let turn =
        |shift: f32| Array2::from_shape_fn((tokens, half), |(t, j)| ((t + j) as f32 * 0.3 + shift).sin());
    let (cos, sin) = (turn(1.5), turn(0.0));
    let mut y = x.clone();
    rope_in_place(y.view_mut(), heads, cos.view(), sin.view());
    for h in 0..heads {
        let columns = |from: usize, to: usize| s![.., h * head_dim + from..h * head_dim + to];
        // The rotated part is a head of its own width, bit for bit.
        let mut part = x.slice(columns(0, 2 * half)).to_owned();
        rope_in_place(part.view_mut(), 1, cos.view(), sin.view());
        assert_eq!(y.slice(columns(0, 2 * half)), part);
        assert_eq!(y.slice(columns(2 * half, head_dim)), x.slice(columns(2 * half, head_dim)));
    }
}

#[test]
#[should_panic(expected = "head_dim at least twice the columns of cos")]
fn rope_wider_than_a_head() {
    let turn = Array2::<f32>::zeros((2, 4));
    rope_in_place(Array2::<f32>::zeros((2, 12)).view_mut(), 2, turn.view(), turn.view());
}

#[test]
fn rope_in_both_types() {
    check_rope::<f32>();
    check_rope::<f64>();
    rope_in_place(
        Array2::<f32>::zeros((3, 0)).view_mut(),
        0,
        Array2::zeros((3, 4)).view(),
        Array2::zeros((3, 4)).view(),
    );
}

#[test]
fn vectorised_exp_is_the_scalar_one() {
    let x: Vec<f32> = (-1000..1000).map(|i| i as f32 * 0.101).collect();
    let plain: Vec<f32> = x.iter().map(|&x| exp_f32(x)).collect();
    let wide: Vec<f32> = vectorized(
        #[inline(always)]
        || x.iter().map(|&x| exp_f32(x)).collect(),
    );
    assert_eq!(plain, wide);
}

fn check_cholesky<T: Element>() -> Result<(), PivotError> {
    for n in [0, 1, 3, 17, 160, 172, 600] {
        let x = random::<T>(2 * n, n, 1.0, 7);
        let mut h = Array2::from_elem((n, n), T::from_f64(123.0));
        for i in 0..n {
            for j in 0..=i {
                h[(i, j)] = if i == j { T::from_f64(0.1) } else { T::zero() };
            }
        }
        gram_lower(h.view_mut(), true, T::one(), x.view(), quant_kernels::Compute::F32, Par::Seq);
        let mut factors = Vec::new();
        for par in [Par::Seq, Par::new(2)] {
            let mut l = h.clone();
            cholesky_lower_in_place(l.view_mut(), par)?;
            factors.push(l);
        }
        let mut columns = h.t().as_standard_layout().into_owned();
        cholesky_lower_in_place(columns.view_mut().reversed_axes(), Par::Seq)?;
        factors.push(columns.t().to_owned());
        let mut gaps = Array2::zeros((n, n + 5));
        gaps.slice_mut(s![.., ..n]).assign(&h);
        cholesky_lower_in_place(gaps.slice_mut(s![.., ..n]), Par::Seq)?;
        factors.push(gaps.slice(s![.., ..n]).to_owned());
        for l in &factors {
            assert_eq!(l, &factors[0], "threads and layouts change nothing");
            for i in 0..n {
                for j in i + 1..n {
                    assert_eq!(l[(i, j)].to_f64_exact(), 123.0, "the upper triangle is not touched");
                }
                for j in 0..=i {
                    let product: f64 =
                        (0..=j).map(|d| l[(i, d)].to_f64_exact() * l[(j, d)].to_f64_exact()).sum();
                    let scale = (h[(i, i)] * h[(j, j)]).sqrt().to_f64_exact();
                    let bound = (n as f64 + 4.0) * T::epsilon().to_f64_exact() * scale;
                    assert!((product - h[(i, j)].to_f64_exact()).abs() <= bound, "n = {n}, ({i}, {j})");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn cholesky_in_both_types() -> Result<(), PivotError> {
    check_cholesky::<f32>()?;
    check_cholesky::<f64>()
}

#[test]
fn cholesky_names_the_bad_pivot() {
    for (bad, n) in [(0, 1), (0, 5), (4, 5), (100, 172), (171, 172)] {
        for value in [0.0, -1.0, f64::NAN] {
            let mut h = Array2::<f64>::eye(n);
            h[(bad, bad)] = value;
            let error = cholesky_lower_in_place(h.view_mut(), Par::Seq).unwrap_err();
            assert_eq!(error.index, bad, "pivot {value} of {n}");
            assert!(error.to_string().contains("damping"));
        }
    }
    let mut h = Array2::<f32>::eye(40);
    h[(20, 10)] = f32::NAN;
    assert_eq!(cholesky_lower_in_place(h.view_mut(), Par::Seq).unwrap_err().index, 20);
}
