//! Properties of AWQ on bare matrices and on a block.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ndarray::{Array1, Array2, ArrayView2, Axis, Slice};
use proptest::prelude::*;
use quant_core::matrix::round_matrix;
use quant_core::{Bits, Convention, FloatType, Grid, Groups, Variant};
use quant_kernels::{Compute, Par, matmul_nt};
use quant_methods::awq::{
    Clip, FoundScales, Loss, Search, candidate, clamp_to, clip_ranges, every_token, search_scales,
};
use quant_methods::{HeadTie, MethodError};
use quant_testkit::Numbers;
use std::sync::atomic::{AtomicUsize, Ordering};

fn grid(bits: u32) -> Grid {
    Grid::new(Convention::QAwq, Bits::new(bits).unwrap(), Variant::Exact, FloatType::F32).unwrap()
}

fn search(bits: u32, group: Option<usize>) -> Search {
    Search { n_grid: 20, grid: grid(bits), group, tie: None }
}

fn clip(bits: u32, group: Option<usize>) -> Clip {
    Clip { n_grid: 20, max_shrink: 0.5, grid: grid(bits), group }
}

fn mean_abs(x: &Array2<f32>) -> Array1<f32> {
    let sums = x.fold_axis(Axis(0), 0.0_f64, |sum, &v| sum + f64::from(v.abs()));
    sums.mapv(|sum| (sum / x.nrows() as f64) as f32)
}

fn by_tokens(search: &Search, x: &Array2<f32>, w: &Array2<f32>) -> FoundScales {
    search_scales(search, mean_abs(x).view(), &[w.view()], Loss::Tokens(x.view()), Par::Seq).unwrap()
}

fn rounded(grid: &Grid, group: Option<usize>, w: &Array2<f32>) -> Array2<f32> {
    round_matrix(grid, None, Groups::from_size(group), w.view()).unwrap().dequantize()
}

/// The mean square of `X Dᵀ`, in f64, and the scale against which f32 products round.
fn mean_square(x: ArrayView2<'_, f32>, d: ArrayView2<'_, f32>) -> (f64, f64) {
    let wide = |a: ArrayView2<'_, f32>| a.mapv(f64::from);
    let mean = |y: Array2<f64>| y.mapv(|y| y * y).sum() / y.len() as f64;
    (mean(wide(x).dot(&wide(d).t())), mean(wide(x).mapv(f64::abs).dot(&wide(d).t().mapv(f64::abs))))
}

const WIDTHS: [u32; 4] = [2, 3, 4, 8];

fn group_size() -> impl Strategy<Value = Option<usize>> {
    prop_oneof![Just(None), (1_usize..50).prop_map(Some)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Losses are what their definition says, whichever way they are computed; the least is found, and it is no worse than
    /// rounding alone.
    #[test]
    fn losses_are_the_mean_squared_output_error(
        bits in 0_usize..4, group in group_size(), tokens in 1_usize..80, n in 1_usize..100, out in 1_usize..70,
        seed in any::<u64>(),
    ) {
        let mut numbers = Numbers::new(seed);
        let (x, w) = (numbers.activations(tokens, n), numbers.matrix(out, n, 0.3));
        let search = search(WIDTHS[bits], group);
        let mean = mean_abs(&x);
        let found = by_tokens(&search, &x, &w);
        prop_assert_eq!(found.losses.len(), 20);

        let gram = x.t().dot(&x);
        // Nothing above the diagonal is read.
        let lower = Array2::from_shape_fn((n, n), |(i, j)| if j <= i { gram[(i, j)] } else { f32::NAN });
        let run = |weights: &[ArrayView2<'_, f32>], par: Par| {
            let mut y = Array2::zeros((tokens, out));
            matmul_nt(y.view_mut(), false, 1.0, x.view(), weights[0], Compute::F32, par);
            Ok(y)
        };
        let others = [Loss::Gram { gram: lower.view(), tokens }, Loss::Forward(&run)]
            .map(|loss| search_scales(&search, mean.view(), &[w.view()], loss, Par::Seq).unwrap());
        for k in 0..20 {
            let c = candidate(mean.view(), (k as f64 / 20.0) as f32, None).unwrap();
            let d = rounded(&search.grid, group, &(&w * &c)) / &c - &w;
            let (loss, size) = mean_square(x.view(), d.view());
            for (form, losses) in [&found.losses, &others[0].losses, &others[1].losses].into_iter().enumerate() {
                // A forward subtracts two outputs, each rounded at its own size.
                let outputs = if form == 2 { mean_square(x.view(), w.view()).1 } else { 0.0 };
                let bound = 1e-4 * loss + 1e-6 * size + 1e-12 * outputs;
                prop_assert!((losses[k] - loss).abs() <= bound, "{form} {k}: {} {loss}", losses[k]);
            }
        }
        let least = found.losses.iter().copied().fold(f64::INFINITY, f64::min);
        let best = found.losses.iter().position(|&l| l == least).unwrap();
        prop_assert_eq!(found.ratio, (best as f64 / 20.0) as f32, "the smallest ratio with the least loss");
        prop_assert_eq!(&found.scales, &candidate(mean.view(), found.ratio, None).unwrap());
    }

    #[test]
    fn no_bit_depends_on_the_threads(
        bits in 0_usize..4, group in group_size(), tokens in 1_usize..80, n in 1_usize..100, out in 1_usize..200,
        threads in 2_usize..6, seed in any::<u64>(),
    ) {
        let mut numbers = Numbers::new(seed);
        let (x, w) = (numbers.activations(tokens, n), numbers.matrix(out, n, 0.3));
        let (search, clip, mean) = (search(WIDTHS[bits], group), clip(WIDTHS[bits], group), mean_abs(&x));
        let gram = x.t().dot(&x);
        let run = |weights: &[ArrayView2<'_, f32>], _: Par| Ok(x.dot(&weights[0].t()));
        for loss in [Loss::Tokens(x.view()), Loss::Gram { gram: gram.view(), tokens }, Loss::Forward(&run)] {
            let run = |par| search_scales(&search, mean.view(), &[w.view()], loss, par).unwrap();
            prop_assert_eq!(run(Par::Seq), run(Par::new(threads)));
        }
        let run = |par| clip_ranges(&clip, w.view(), x.view(), par).unwrap();
        prop_assert_eq!(run(Par::Seq), run(Par::new(threads)));
    }

    /// Property 4: candidates of the list only, and never worse than no clipping; also that the choice is the best.
    #[test]
    fn ranges_are_the_best_of_the_list(
        bits in 0_usize..4, group in group_size(), tokens in 1_usize..80, n in 1_usize..60, out in 1_usize..40,
        shift in -1.0_f32..1.0, seed in any::<u64>(),
    ) {
        let mut numbers = Numbers::new(seed);
        let x = numbers.activations(tokens, n);
        // Shifted by more than their size, groups are all-positive or all-negative.
        let mut w = numbers.matrix(out, n, 0.3) + shift;
        w.column_mut(n / 2).fill(0.0);
        let clip = clip(WIDTHS[bits], group);
        let ranges = clip_ranges(&clip, w.view(), x.view(), Par::Seq).unwrap();
        let size = group.unwrap_or(n);
        prop_assert_eq!(ranges.dim(), (out, n.div_ceil(size)));
        for ((i, k), &t) in ranges.indexed_iter() {
            let columns = Slice::from(k * size..((k + 1) * size).min(n));
            let x = x.slice_axis(Axis(1), columns);
            let w = w.slice_axis(Axis(0), Slice::from(i..=i)).slice_axis(Axis(1), columns).to_owned();
            let largest = w.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
            let error = |t: f32| {
                let clipped = w.mapv(|w| w.clamp(-t, t));
                mean_square(x, (rounded(&clip.grid, None, &clipped) - &w).view())
            };
            let candidates = (0..10).map(|s| largest * (1.0 - f64::from(s) / 20.0) as f32);
            let errors: Vec<_> = candidates.map(|t| (t, error(t))).collect();
            let (_, (ours, noise)) = errors.iter().find(|(candidate, _)| *candidate == t).expect("a candidate");
            for (other, (error, other_noise)) in &errors {
                let bound = error * (1.0 + 1e-5) + 1e-6 * (noise + other_noise);
                prop_assert!(*ours <= bound, "row {i} group {k}: {t} {ours} but {other} {error}");
            }
        }
        // What a clipped weight is rounded to is what was measured.
        let mut clipped = w.clone();
        clamp_to(clipped.view_mut(), ranges.view(), group).unwrap();
        for ((i, j), &v) in clipped.indexed_iter() {
            let t = ranges[(i, j / size)];
            prop_assert_eq!(v, w[(i, j)].clamp(-t, t));
        }
    }

    /// Property 7: the order of tokens is nothing to the search.
    #[test]
    fn tokens_in_another_order(tokens in 2_usize..60, n in 1_usize..60, seed in any::<u64>()) {
        let mut numbers = Numbers::new(seed);
        let (x, w) = (numbers.activations(tokens, n), numbers.matrix(9, n, 0.3));
        let backwards = x.slice_axis(Axis(0), Slice::new(0, None, -1)).to_owned();
        let (a, b) = (by_tokens(&search(3, Some(16)), &x, &w), by_tokens(&search(3, Some(16)), &backwards, &w));
        for (a, b) in a.losses.iter().zip(&b.losses) {
            prop_assert!((a - b).abs() <= 1e-5 * a.abs().max(1e-12), "{a} {b}");
        }
    }

    /// Property 8: what has been rounded stays what it is on its own grid.
    #[test]
    fn rounding_again_on_the_same_grid_changes_nothing(bits in 0_usize..4, seed in any::<u64>(), shift in -1.0_f32..1.0) {
        let grid = grid(WIDTHS[bits]);
        let w = Numbers::new(seed).matrix(4, 40, 0.5) + shift;
        let once = round_matrix(&grid, None, Groups::Size(16), w.view()).unwrap();
        let values = once.dequantize();
        for ((i, j), &v) in values.indexed_iter() {
            let params = once.params(i, once.groups().of(j));
            prop_assert_eq!(params.level(v, grid.bits.max_level()), f32::from(once.levels()[(i, j)]));
            prop_assert_eq!(params.fake(v, grid.bits.max_level()), v);
        }
    }
}

/// Property 5.
#[test]
fn equally_loud_channels_have_nothing_to_move() {
    let mut numbers = Numbers::new(5);
    let w = numbers.matrix(20, 48, 0.3);
    let x = Array2::from_shape_simple_fn((60, 48), || if numbers.uniform() < 0.0 { -1.5 } else { 1.5 });
    let found = by_tokens(&search(3, Some(16)), &x, &w);
    assert_eq!((found.ratio, &found.scales), (0.0, &Array1::ones(48)), "a tie keeps the smallest ratio");
    for loss in &found.losses {
        assert!((loss / found.losses[0] - 1.0).abs() < 1e-6);
    }
}

/// Property 6.
#[test]
fn a_loud_channel_is_protected() {
    let mut numbers = Numbers::new(6);
    let w = numbers.normals(64, 128);
    let mut x = numbers.normals(256, 128);
    x.column_mut(17).mapv_inplace(|v| 50.0 * v);
    for group in [Some(32), Some(128), None] {
        let found = by_tokens(&search(3, group), &x, &w);
        let least = found.losses.iter().copied().fold(f64::INFINITY, f64::min);
        assert!(found.ratio > 0.0 && least < 0.8 * found.losses[0], "{group:?}: {found:?}");
        assert!(found.scales[17] > 1.5 * found.scales.mean().unwrap());
    }
}

#[test]
fn tied_heads_share_scales_and_lose_little() {
    let mut numbers = Numbers::new(8);
    let tie = HeadTie { heads: 6, kv_heads: 2, head_dim: 8 };
    let (x, w) = (numbers.activations(100, 48), numbers.matrix(30, 48, 0.3));
    let found = by_tokens(&Search { tie: Some(tie), ..search(3, Some(16)) }, &x, &w);
    assert_eq!(tie.expand(tie.reduce(found.scales.view()).unwrap().view()).unwrap(), found.scales);
    assert_eq!(found.losses[0], by_tokens(&search(3, Some(16)), &x, &w).losses[0]);
    assert!(found.losses.iter().any(|&loss| loss < found.losses[0]));
}

/// Several linears of one input: the mean over the outputs of all.
#[test]
fn linears_of_one_unit_count_by_their_outputs() {
    let mut numbers = Numbers::new(9);
    let x = numbers.activations(50, 40);
    let (a, b) = (numbers.matrix(70, 40, 0.3), numbers.matrix(10, 40, 0.6));
    let (search, mean) = (search(4, Some(8)), mean_abs(&x));
    let loss = Loss::Tokens(x.view());
    let both = search_scales(&search, mean.view(), &[a.view(), b.view()], loss, Par::Seq).unwrap();
    let (alone_a, alone_b) = (by_tokens(&search, &x, &a), by_tokens(&search, &x, &b));
    for k in 0..20 {
        let expected = (70.0 * alone_a.losses[k] + 10.0 * alone_b.losses[k]) / 80.0;
        assert!((both.losses[k] / expected - 1.0).abs() < 1e-6);
    }
}

#[test]
fn silent_channels_and_empty_groups_are_no_obstacle() {
    let mut numbers = Numbers::new(10);
    let (mut x, mut w) = (numbers.activations(64, 48), numbers.matrix(5, 48, 0.3));
    x.column_mut(3).fill(0.0);
    w.row_mut(2).fill(0.0);
    let found = by_tokens(&search(4, Some(16)), &x, &w);
    assert!(found.losses.iter().all(|loss| loss.is_finite()) && found.scales.iter().all(|c| c.is_finite()));
    let ranges = clip_ranges(&clip(4, Some(16)), w.view(), x.view(), Par::Seq).unwrap();
    assert!(ranges.row(2).iter().all(|&t| t == 0.0));
    // Nothing at all: every candidate ties, and the whole range is kept.
    x.fill(0.0);
    let ranges = clip_ranges(&clip(4, None), w.view(), x.view(), Par::Seq).unwrap();
    assert_eq!(ranges[(0, 0)], w.row(0).iter().fold(0.0_f32, |m, w| m.max(w.abs())));
    assert_eq!(by_tokens(&search(4, None), &x, &w).ratio, 0.0);
}

#[test]
fn strides_are_nothing_to_a_result() {
    let mut numbers = Numbers::new(13);
    let (x, w) = (numbers.activations(80, 40), numbers.matrix(9, 40, 0.3));
    let every = every_token(x.view(), 26);
    assert_eq!(every.dim(), (27, 40));
    let (dense, columns) = (every.to_owned(), w.t().as_standard_layout().into_owned());
    let turned = columns.t();
    let (search, clip, mean) = (search(3, Some(16)), clip(3, Some(16)), mean_abs(&dense));
    let scales = |x, w| search_scales(&search, mean.view(), &[w], Loss::Tokens(x), Par::Seq).unwrap();
    assert_eq!(scales(every, turned), scales(dense.view(), w.view()));
    let ranges = |x, w| clip_ranges(&clip, w, x, Par::Seq).unwrap();
    assert_eq!(ranges(every, turned), ranges(dense.view(), w.view()));
}

#[test]
fn what_cannot_be_searched_is_refused() {
    let mut numbers = Numbers::new(11);
    let (x, w) = (numbers.matrix(8, 6, 1.0), numbers.matrix(4, 6, 1.0));
    let (search, mean) = (search(4, None), mean_abs(&x));
    let refused = |search: &Search, mean: &Array1<f32>, w: &Array2<f32>, loss: Loss<'_>, message: &str| {
        let error = search_scales(search, mean.view(), &[w.view()], loss, Par::Seq).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    };
    let tokens = Loss::Tokens(x.view());
    refused(&Search { n_grid: 0, ..search }, &mean, &w, tokens, "expected at least 1, found 0");
    refused(&search, &mean, &Array2::zeros((0, 6)), tokens, "at least one with elements");
    refused(&search, &mean, &Array2::zeros((4, 5)), tokens, "a weight has 5 channels, expected 6");
    refused(&search, &Array1::ones(5), &w, tokens, "a weight has 6 channels, expected 5");
    refused(&search, &mean, &w, Loss::Tokens(Array2::zeros((8, 5)).view()), "the inputs has 5 channels");
    refused(&search, &mean, &w, Loss::Tokens(Array2::zeros((0, 6)).view()), "at least one token");
    let gram = Array2::zeros((5, 6));
    refused(
        &search,
        &mean,
        &w,
        Loss::Gram { gram: gram.view(), tokens: 8 },
        "the Gram matrix of the inputs has 5",
    );
    let gram = x.t().dot(&x);
    refused(&search, &mean, &w, Loss::Gram { gram: gram.view(), tokens: 0 }, "at least one token");
    let tie = Some(HeadTie { heads: 4, kv_heads: 2, head_dim: 2 });
    refused(&Search { tie, ..search }, &mean, &w, tokens, "over query heads: expected 8 channels, found 6");

    let mut bad = mean.clone();
    bad[4] = f32::NAN;
    refused(&search, &bad, &w, tokens, "the mean activation of channel 4 is NaN");
    let mut bad = w.clone();
    bad[(2, 1)] = f32::INFINITY;
    refused(&search, &mean, &bad, tokens, "row 2, column 1");
    let mut bad = x.clone();
    bad[(7, 5)] = f32::NAN;
    refused(&search, &mean, &w, Loss::Tokens(bad.view()), "row 7, column 5");
    // The first call is for the original weights, the eighth for ratio 0.3.
    let calls = AtomicUsize::new(0);
    let run = |_: &[ArrayView2<'_, f32>], _: Par| -> Result<Array2<f32>, MethodError> {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        Ok(Array2::from_elem((2, 2), if call == 7 { f32::NAN } else { 1.0 }))
    };
    let one = Array2::ones((4, 6));
    refused(&search, &mean, &one, Loss::Forward(&run), "a finite number at ratio 0.3, found NaN");
    let shape = |w: &[ArrayView2<'_, f32>], _: Par| -> Result<Array2<f32>, MethodError> {
        Ok(Array2::zeros((2, if w[0][(0, 0)] == 1.0 { 2 } else { 3 })))
    };
    refused(&search, &mean, &one, Loss::Forward(&shape), "expected (2, 2) as with the original weights");
    let fails = |_: &[ArrayView2<'_, f32>], _: Par| -> Result<Array2<f32>, MethodError> {
        Err(MethodError::MissingStatistic { method: "awq", what: "patience" })
    };
    refused(&search, &mean, &w, Loss::Forward(&fails), "needs patience");

    let refused = |clip: &Clip, w: &Array2<f32>, x: &Array2<f32>, message: &str| {
        let error = clip_ranges(clip, w.view(), x.view(), Par::Seq).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    };
    let clip = clip(4, Some(4));
    refused(&clip, &w, &Array2::zeros((8, 5)), "the inputs has 5 channels, expected 6");
    refused(&clip, &w, &Array2::zeros((0, 6)), "at least one token");
    for (max_shrink, found) in
        [(0.0, "0 · 20"), (f32::NAN, "NaN · 20"), (f32::INFINITY, "inf · 20"), (1.5, "1.5 · 20")]
    {
        refused(&Clip { max_shrink, ..clip }, &w, &x, &format!("of at least 1, found {found}"));
    }
    let mut bad = w.clone();
    bad[(3, 0)] = f32::NAN;
    refused(&clip, &bad, &x, "row 3, column 0");
    let mut bad = x.clone();
    bad[(1, 2)] = f32::INFINITY;
    refused(&clip, &w, &bad, "row 1, column 2");
    refused(&clip, &(&w * 1e18), &(&x * 1e30), "a finite number for row 0, group 0");
}
