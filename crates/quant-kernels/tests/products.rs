//! The public products against naive sums in f64.

use ndarray::{Array1, Array2, ArrayView2, s};
use proptest::prelude::*;
use quant_kernels::{
    Compute, Element, Par, PreparedWeight, cross_gram_lower, gram_lower, linear, linear_into, matmul_nn,
    matmul_nt, mirror_lower,
};
use quant_testkit::Numbers;

fn random<T: Element>(rows: usize, cols: usize, seed: u64) -> Array2<T> {
    Numbers::new(seed).matrix(rows, cols, 1.0).mapv(T::from_f32)
}

fn rounded<T: Element>(x: ArrayView2<'_, T>, compute: Compute) -> Array2<f64> {
    x.mapv(|x| {
        let x = x.to_f64_exact();
        if compute == Compute::Bf16 { nearest_bf16(x) } else { x }
    })
}

/// The nearest of the bf16 values around `x`, the even one of two equally near.
fn nearest_bf16(x: f64) -> f64 {
    let bits = ((x.abs() as f32).to_bits() >> 16) as u16;
    let candidates = [bits.saturating_sub(1), bits, bits + 1];
    let distance = |bits: u16| ((half::bf16::from_bits(bits).to_f64() - x.abs()).abs(), bits % 2);
    let nearest = |a: u16, b: u16| if distance(b) < distance(a) { b } else { a };
    half::bf16::from_bits(candidates.into_iter().fold(bits, nearest)).to_f64().copysign(x)
}

/// `alpha a b` in f64, and for each element the sum of magnitudes that bounds its rounding error.
fn reference<T: Element>(
    alpha: f64,
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    compute: Compute,
) -> (Array2<f64>, Array2<f64>) {
    let (a, b) = (rounded(a, compute), rounded(b, compute));
    let element = |i: usize, j: usize, f: fn(f64) -> f64| -> f64 {
        (0..a.ncols()).map(|d| f(alpha * a[(i, d)] * b[(d, j)])).sum()
    };
    let shape = (a.nrows(), b.ncols());
    (
        Array2::from_shape_fn(shape, |(i, j)| element(i, j, |x| x)),
        Array2::from_shape_fn(shape, |(i, j)| element(i, j, f64::abs)),
    )
}

/// The standard bound `gamma_(k + 2)` of a sum of products in any order, with the unit roundoff of `T`.
fn assert_close<T: Element>(got: ArrayView2<'_, T>, want: &Array2<f64>, size: &Array2<f64>, k: usize) {
    let unit = T::epsilon().to_f64_exact() / 2.0;
    for ((g, w), s) in got.iter().zip(want).zip(size) {
        let bound = (k as f64 + 4.0) * unit * (s + w.abs()) + 1e-37;
        assert!((g.to_f64_exact() - w).abs() <= bound, "{g} is not {w} within {bound:e}");
    }
}

const COMPUTE: [Compute; 2] = [Compute::F32, Compute::Bf16];

fn check_products<T: Element>(m: usize, n: usize, k: usize, accumulate: bool, par: Par, seed: u64) {
    let alpha = -1.25;
    for compute in COMPUTE {
        // Views with gaps between rows, and one with gaps between columns.
        let (a_whole, b_whole) = (random::<T>(m, k + 3, seed), random::<T>(n, 2 * k, seed + 1));
        let a = a_whole.slice(s![.., 1..=k]);
        let a = if k == 0 { a_whole.slice(s![.., 0..0]) } else { a };
        let b = b_whole.slice(s![.., ..;2]);
        let start = random::<T>(m, n + 2, seed + 2);
        let (product, mut size) = reference(alpha, a, b.t(), compute);
        let mut want = product.clone();
        if accumulate {
            want += &start.slice(s![.., 1..=n]).mapv(|x| x.to_f64_exact());
            size += &start.slice(s![.., 1..=n]).mapv(|x| x.to_f64_exact().abs());
        }
        let b_rows = b.t().as_standard_layout().into_owned();
        for transposed in [false, true] {
            let mut whole = start.clone();
            let dst = whole.slice_mut(s![.., 1..=n]);
            if transposed {
                matmul_nt(dst, accumulate, T::from_f64(alpha), a, b, compute, par);
            } else {
                matmul_nn(dst, accumulate, T::from_f64(alpha), a, b_rows.view(), compute, par);
            }
            assert_close(whole.slice(s![.., 1..=n]), &want, &size, k);
            assert_eq!(whole.column(0), start.column(0), "outside the destination");
            assert_eq!(whole.column(n + 1), start.column(n + 1), "outside the destination");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn products_of_any_shape(
        m in 0usize..50, n in 0usize..70, k in 0usize..90, accumulate: bool, threads in 1usize..4, seed in 1u64..1000,
    ) {
        check_products::<f32>(m, n, k, accumulate, Par::new(threads), seed);
        check_products::<f64>(m, n, k, accumulate, Par::new(threads), seed);
    }
}

#[test]
fn products_of_odd_shapes() {
    for (m, n, k) in [(1, 3, 17), (3, 160, 172), (17, 1, 160), (160, 172, 3), (172, 17, 1), (5, 33, 1100)] {
        check_products::<f32>(m, n, k, true, Par::Seq, 5);
        check_products::<f64>(m, n, k, false, Par::new(2), 6);
    }
}

/// Shapes that need several groups of rows, of columns and of the summed index.
#[test]
fn products_beyond_one_group() {
    // 4096 rows of f32 are packed 768 deep at a time, of bf16 pairs 1920 deep.
    for (m, n, k) in [(4200, 40, 30), (40, 1200, 800), (4100, 20, 1200), (4096, 10, 2000)] {
        for compute in COMPUTE {
            let (x, w) = (random::<f32>(m, k, 1), random::<f32>(n, k, 2));
            let y = linear(x.view(), w.view(), None, compute, Par::new(2));
            let (want, size) = reference(1.0, x.view(), w.t(), compute);
            assert_close(y.view(), &want, &size, k);
        }
    }
}

#[test]
fn empty_dimensions() {
    for (m, n, k) in [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0)] {
        let (a, b) = (random::<f32>(m, k, 1), random::<f32>(n, k, 2));
        let mut dst = Array2::from_elem((m, n), f32::NAN);
        matmul_nt(dst.view_mut(), false, 1.0, a.view(), b.view(), Compute::F32, Par::new(2));
        assert!(dst.iter().all(|&x| x == 0.0), "{m} {n} {k}");
        let mut dst = Array2::from_elem((m, n), 2.0);
        matmul_nt(dst.view_mut(), true, 1.0, a.view(), b.view(), Compute::Bf16, Par::new(2));
        assert!(dst.iter().all(|&x| x == 2.0), "{m} {n} {k}");
        let prepared = PreparedWeight::new(b.view(), Compute::F32, Par::Seq);
        assert_eq!(prepared.forward(a.view(), None, Par::Seq), Array2::<f32>::zeros((m, n)));
    }
}

#[test]
fn linear_layers_prepared_or_not_are_one_function() {
    let (tokens, inputs, outputs) = (37, 801, 95);
    let (x, w) = (random::<f32>(tokens, inputs, 1), random::<f32>(outputs, inputs, 2));
    let bias: Array1<f32> = random::<f32>(1, outputs, 3).row(0).to_owned();
    for compute in COMPUTE {
        let prepared = PreparedWeight::new(w.view(), compute, Par::new(2));
        assert_eq!((prepared.out_features(), prepared.in_features()), (outputs, inputs));
        assert_eq!(prepared.compute(), compute);
        for bias in [None, Some(bias.view())] {
            let (mut want, size) = reference(1.0, x.view(), w.t(), compute);
            if let Some(bias) = bias {
                want += &bias.mapv(f64::from);
            }
            let y = linear(x.view(), w.view(), bias, compute, Par::Seq);
            assert_close(y.view(), &want, &(size + 1.0), inputs);
            assert_eq!(prepared.forward(x.view(), bias, Par::new(2)), y);
            let by_rows = PreparedWeight::from_rows(w.dim(), compute, Par::new(2), |i, row| {
                row.copy_from_slice(&w.row(i).to_vec());
            });
            assert_eq!(by_rows.forward(x.view(), bias, Par::Seq), y);
            let mut again = Array2::from_elem(y.dim(), f32::NAN);
            linear_into(x.view(), w.view(), bias, again.view_mut(), compute, Par::new(3));
            assert_eq!(again, y);
            for rows in [0, 1, 33, outputs] {
                let (part, start) = (w.slice(s![..rows, ..]), random::<f32>(tokens, rows, 4));
                for accumulate in [false, true] {
                    let (mut want, mut got) = (start.clone(), start.clone());
                    matmul_nt(want.view_mut(), accumulate, 0.3, x.view(), part, compute, Par::Seq);
                    prepared.product_into(got.view_mut(), accumulate, 0.3, x.view(), Par::new(2));
                    assert_eq!(got, want, "the first {rows} rows");
                }
            }
            for t in [0, 17, tokens - 1] {
                let row = prepared.forward(x.slice(s![t..=t, ..]), bias, Par::Seq);
                assert_eq!(row.row(0), y.row(t), "a token alone");
            }
        }
    }
}

#[test]
fn bf16_loses_nothing_on_bf16_operands() {
    let to_bf16 = |x: f32| half::bf16::from_f32(x).to_f32();
    let x = random::<f32>(20, 500, 1).mapv(to_bf16);
    let w = random::<f32>(30, 500, 2).mapv(to_bf16);
    let y = linear(x.view(), w.view(), None, Compute::Bf16, Par::Seq);
    let (want, size) = reference(1.0, x.view(), w.t(), Compute::F32);
    assert_close(y.view(), &want, &size, 500);
}

fn check_gram<T: Element>(tokens: usize, n: usize) {
    let x = random::<T>(tokens, n, 9);
    for compute in COMPUTE {
        let start = random::<T>(n, n, 8);
        let (mut want, mut size) = reference(0.5, x.t(), x.view(), compute);
        want += &start.mapv(|x| x.to_f64_exact());
        size += 1.0;
        let mut first: Option<Array2<T>> = None;
        for par in [Par::Seq, Par::new(2), Par::new(3)] {
            let mut h = start.clone();
            gram_lower(h.view_mut(), true, T::from_f64(0.5), x.view(), compute, par);
            for i in 0..n {
                assert_eq!(
                    h.slice(s![i, i + 1..]),
                    start.slice(s![i, i + 1..]),
                    "the upper triangle is not touched"
                );
                for j in i + 1..n {
                    (want[(i, j)], size[(i, j)]) = (start[(i, j)].to_f64_exact(), 1.0);
                }
            }
            assert_close(h.view(), &want, &size, tokens);
            assert_eq!(first.get_or_insert_with(|| h.clone()), &h, "{par}");
        }
        // Without what was there: the same as onto zeros, and nothing of it is read.
        let mut zeros = Array2::zeros((n, n));
        gram_lower(zeros.view_mut(), true, T::from_f64(0.5), x.view(), compute, Par::Seq);
        let mut anew = Array2::from_elem((n, n), T::from_f64(f64::NAN));
        gram_lower(anew.view_mut(), false, T::from_f64(0.5), x.view(), compute, Par::new(2));
        for ((i, j), value) in anew.indexed_iter() {
            assert!(if i < j { value.is_nan() } else { *value == zeros[(i, j)] }, "({i}, {j}): {value}");
        }
        // A column-major X and a column-major H are the same matrices.
        let x_columns = x.t().as_standard_layout().into_owned();
        let mut h_columns = start.t().as_standard_layout().into_owned();
        gram_lower(
            h_columns.view_mut().reversed_axes(),
            true,
            T::from_f64(0.5),
            x_columns.t(),
            compute,
            Par::Seq,
        );
        assert_eq!(Some(h_columns.t().to_owned()), first);
    }
}

#[test]
fn gram_matrices() {
    for (tokens, n) in [(1, 1), (17, 3), (3, 17), (900, 45), (160, 172), (40, 700), (0, 5), (5, 0)] {
        check_gram::<f32>(tokens, n);
        check_gram::<f64>(tokens, n);
    }
}

fn check_cross_gram<T: Element>(tokens: usize, n: usize) {
    let (a, b) = (random::<T>(tokens, n, 9), random::<T>(tokens, n, 10));
    for compute in COMPUTE {
        let start = random::<T>(n, n, 8);
        let mut full = start.clone();
        matmul_nn(full.view_mut(), true, T::one(), a.t(), b.view(), compute, Par::Seq);
        let want = Array2::from_shape_fn((n, n), |at| if at.0 < at.1 { start[at] } else { full[at] });
        for par in [Par::Seq, Par::new(2), Par::new(3)] {
            let mut d = start.clone();
            cross_gram_lower(d.view_mut(), true, T::one(), a.view(), b.view(), compute, par);
            assert_eq!(d, want, "{par}");
            let mut anew = start.clone();
            cross_gram_lower(anew.view_mut(), false, T::one(), a.view(), b.view(), compute, par);
            matmul_nn(full.view_mut(), false, T::one(), a.t(), b.view(), compute, Par::Seq);
            let want = Array2::from_shape_fn((n, n), |at| if at.0 < at.1 { start[at] } else { full[at] });
            assert_eq!(anew, want, "{par}");
        }
        let (mut twice, mut gram) = (start.clone(), start);
        cross_gram_lower(twice.view_mut(), true, T::from_f64(0.5), a.view(), a.view(), compute, Par::Seq);
        gram_lower(gram.view_mut(), true, T::from_f64(0.5), a.view(), compute, Par::Seq);
        assert_eq!(twice, gram, "of one matrix it is the Gram matrix");
    }
}

/// The lower triangle of the whole product, bit for bit.
#[test]
fn triangles_of_two_operands() {
    for (tokens, n) in
        [(1, 1), (17, 3), (3, 17), (900, 45), (160, 172), (40, 700), (0, 5), (5, 0), (24, 2300)]
    {
        check_cross_gram::<f32>(tokens, n);
        check_cross_gram::<f64>(tokens, n);
    }
}

/// More columns than one group of rows has (4096), and sums over more tokens than one group of the summed index.
#[test]
fn gram_matrices_wider_and_deeper_than_one_group() {
    check_large_gram::<f32>(24, 4300);
    check_large_gram::<f64>(24, 4300);
    check_large_gram::<f32>(2000, 2300);
}

/// Rows around the borders of the groups and every 97th one, each whole; of the others, that the lower triangle is written and
/// the upper is not.
fn check_large_gram<T: Element>(tokens: usize, n: usize) {
    let x = random::<T>(tokens, n, 9);
    let borders = [1, 2047, 2048, 2149, 2150, 2151, 4095, 4096, n - 1].into_iter().filter(|&i| i < n);
    let rows: Vec<usize> = borders.chain((0..n).step_by(97)).collect();
    let some = x.select(ndarray::Axis(1), &rows);
    for compute in COMPUTE {
        let (want, size) = reference(0.5, some.t(), x.view(), compute);
        let start = Array2::from_shape_fn((n, n), |(i, j)| T::from_f32(if i < j { f32::NAN } else { 0.25 }));
        let mut h = start.clone();
        gram_lower(h.view_mut(), true, T::from_f64(0.5), x.view(), compute, Par::new(2));
        for (at, &i) in rows.iter().enumerate() {
            let lower = s![at..=at, ..=i];
            let want = &want.slice(lower) + 0.25;
            assert_close(h.slice(s![i..=i, ..=i]), &want, &(&size.slice(lower) + 0.25), tokens);
        }
        let right = h.indexed_iter().all(|((i, j), h)| h.is_nan() == (i < j));
        assert!(right, "the lower triangle is finite, the upper one is not touched; {compute:?}");
        // A tile has more elements than sums that happen to be zero.
        let zeros = h.iter().zip(&start).filter(|(h, start)| h == start).count();
        assert!(zeros < 16, "{zeros} elements are as they were; {compute:?}");
        let mut again = start;
        gram_lower(again.view_mut(), true, T::from_f64(0.5), x.view(), compute, Par::Seq);
        assert!(h.iter().zip(&again).all(|(a, b)| a == b || (a.is_nan() && b.is_nan())), "threads");
    }
}

#[test]
fn mirroring_copies_the_lower_triangle() {
    for n in [0, 1, 63, 64, 65, 200] {
        let mut h = random::<f32>(n, n, 4);
        let lower = h.clone();
        mirror_lower(h.view_mut());
        for i in 0..n {
            for j in 0..n {
                assert_eq!(h[(i, j)], lower[(i.max(j), i.min(j))]);
            }
        }
    }
}

#[test]
#[should_panic(expected = "does not fit a destination")]
fn shapes_that_do_not_fit_are_refused() {
    let (a, b) = (Array2::<f32>::zeros((2, 3)), Array2::<f32>::zeros((4, 5)));
    matmul_nt(Array2::zeros((2, 4)).view_mut(), false, 1.0, a.view(), b.view(), Compute::F32, Par::Seq);
}
