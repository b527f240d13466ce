//! SmoothQuant: the properties of `smoothquant.md` section 7.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ndarray::{Array1, Array2, ArrayView2, Axis};
use proptest::prelude::*;
use quant_core::{ActQuant, ActRule, Bits, ChannelMaxima, ClipSearch, Convention, FloatType, Grid, Variant};
use quant_hessian::{FactorSettings, GptqConfig, Hessian, gptq, prepare};
use quant_kernels::Par;
use quant_methods::rtn::{Rtn, round};
use quant_methods::smoothquant::{SmoothQuant, apply, factors};
use quant_testkit::Numbers;

fn noise(seed: u64, rows: usize, columns: usize) -> Array2<f32> {
    Numbers::new(seed).matrix(rows, columns, 1.0)
}

fn absmax(x: &Array2<f32>) -> Array1<f32> {
    x.fold_axis(Axis(0), 0.0_f32, |m, v| m.max(v.abs()))
}

fn smooth(alpha: f32, x: &Array2<f32>, w: &Array2<f32>) -> (Array1<f32>, Array2<f32>, Array2<f32>) {
    let settings = SmoothQuant { alpha, variant: Variant::Exact };
    let c = factors(&settings, absmax(x).view(), &[w.view()]).unwrap();
    let mut norm = Array1::ones(x.ncols());
    let mut weight = w.clone();
    apply(c.view(), &mut norm, &mut [&mut weight], FloatType::F32).unwrap();
    (c, x * &norm, weight)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_product_is_kept(seed: u64, alpha in 0.0_f32..=1.0) {
        let (x, w) = (noise(seed, 12, 16), noise(seed ^ 7, 5, 16));
        let (_, xs, ws) = smooth(alpha, &x, &w);
        let (before, after) = (x.dot(&w.t()), xs.dot(&ws.t()));
        for (a, b) in before.iter().zip(&after) {
            prop_assert!((a - b).abs() <= 1e-4 * before.iter().fold(0.0_f32, |m, v| m.max(v.abs())));
        }
    }

    #[test]
    fn rounding_the_norm_keeps_the_product_too(seed: u64, alpha in 0.0_f32..=1.0) {
        let (x, w) = (noise(seed, 12, 16), noise(seed ^ 7, 5, 16));
        let c = factors(&SmoothQuant { alpha, variant: Variant::Exact }, absmax(&x).view(), &[w.view()]).unwrap();
        let gamma = noise(seed ^ 3, 1, 16).row(0).mapv(|v| FloatType::Bf16.round(v + 1.5));
        for norm_type in [FloatType::Bf16, FloatType::F16] {
            let (mut norm, mut weight) = (gamma.clone(), w.clone());
            apply(c.view(), &mut norm, &mut [&mut weight], norm_type).unwrap();
            prop_assert!(norm.iter().all(|&v| norm_type.round(v) == v), "the norm is representable");
            let before = (&x * &gamma).dot(&w.t());
            let after = (&x * &norm).dot(&weight.t());
            for (a, b) in before.iter().zip(&after) {
                prop_assert!((a - b).abs() <= 1e-4 * before.iter().fold(0.0_f32, |m, v| m.max(v.abs())));
            }
        }
    }

    #[test]
    fn the_ends_of_alpha(seed: u64) {
        let (x, w) = (noise(seed, 9, 12), noise(seed ^ 5, 7, 12));
        let (_, _, ws) = smooth(0.0, &x, &w);
        prop_assert!(absmax(&ws).iter().all(|v| (v - 1.0).abs() < 1e-5));
        let (_, xs, _) = smooth(1.0, &x, &w);
        prop_assert!(absmax(&xs).iter().all(|v| (v - 1.0).abs() < 1e-5));
        let (_, xs, ws) = smooth(0.5, &x, &w);
        for (a, b) in absmax(&xs).iter().zip(absmax(&ws)) {
            prop_assert!((a / b - 1.0).abs() < 1e-4, "alpha 0.5 balances: {a} vs {b}");
        }
    }

    #[test]
    fn the_product_of_maxima_is_kept(seed: u64, alpha in 0.0_f32..=1.0) {
        let (x, w) = (noise(seed, 9, 12), noise(seed ^ 5, 7, 12));
        let (_, xs, ws) = smooth(alpha, &x, &w);
        let (before, after) = (absmax(&x) * absmax(&w), absmax(&xs) * absmax(&ws));
        for (a, b) in before.iter().zip(&after) {
            prop_assert!((a / b - 1.0).abs() < 1e-4);
        }
    }

    /// Section 7.5, through the statistic the pipeline gathers.
    #[test]
    fn the_maximum_does_not_depend_on_batches(seed: u64, cuts in prop::collection::vec(1_usize..8, 1..6)) {
        let x = noise(seed, cuts.iter().sum(), 37);
        let mut batches = Vec::new();
        let mut rest = x.view();
        for cut in cuts {
            let (batch, tail) = rest.split_at(Axis(0), cut);
            batches.push(batch);
            rest = tail;
        }
        let maxima = |batches: &mut dyn Iterator<Item = ArrayView2<'_, f32>>| {
            let mut maxima = ChannelMaxima::new(37);
            batches.for_each(|batch| maxima.observe(batch));
            maxima
        };
        let forwards = maxima(&mut batches.iter().copied());
        prop_assert_eq!(&forwards, &maxima(&mut batches.iter().rev().copied()));
        prop_assert_eq!(forwards.view(), absmax(&x));
    }
}

/// Section 7.2 over a group of linears: at α = 0 every column of [q; k; v] together reaches exactly 1.
#[test]
fn at_alpha_0_the_columns_of_a_group_reach_1() {
    let x = noise(2, 40, 48);
    let mut weights = [noise(3, 24, 48), noise(4, 8, 48), noise(5, 8, 48)];
    let settings = SmoothQuant { alpha: 0.0, variant: Variant::Exact };
    let views: Vec<_> = weights.iter().map(|w| w.view()).collect();
    let c = factors(&settings, absmax(&x).view(), &views).unwrap();
    let mut norm = Array1::ones(48);
    let mut targets: Vec<_> = weights.iter_mut().collect();
    apply(c.view(), &mut norm, &mut targets, FloatType::F32).unwrap();
    let largest =
        weights.iter().map(absmax).reduce(|a, b| Array1::from_shape_fn(48, |j| a[j].max(b[j]))).unwrap();
    assert!(largest.iter().all(|v| (v - 1.0).abs() < 1e-6), "{largest}");
    // No linear alone does: the maximum is the group's.
    assert!(weights.iter().all(|w| absmax(w).iter().any(|v| (v - 1.0).abs() > 0.01)));
}

/// Section 7.7: eight-bit symmetric GPTQ without correlations is round-to-nearest.
#[test]
fn w8_gptq_of_an_identity_is_rtn() {
    let weight = noise(6, 20, 64);
    let hessian = Hessian::from_matrix(Array2::eye(64) * 3.7, 2).unwrap();
    let factor = prepare(hessian, &FactorSettings::default(), Par::Seq).unwrap();
    for clip in [None, Some(ClipSearch::default())] {
        let grid =
            Grid::new(Convention::QSym, Bits::new(8).unwrap(), Variant::Exact, FloatType::F32).unwrap();
        let config = GptqConfig { clip, ..GptqConfig::new(grid) };
        let second_order = gptq(weight.view(), &factor, &config, Par::Seq).unwrap().matrix;
        let nearest = round(&Rtn { grid, group: None, clip }, weight.view(), Par::Seq).unwrap();
        assert_eq!(second_order, nearest);
    }
}

/// Section 7.6: ten channels a hundred times larger than the others.
#[test]
fn planted_outliers_lose_their_damage() {
    let mut x = Numbers::new(4).normals(256, 128);
    let w = Numbers::new(9).normals(64, 128);
    let planted: Vec<usize> = (0..10).map(|j| j * 12 + 3).collect();
    for &j in &planted {
        x.column_mut(j).mapv_inplace(|v| v * 100.0);
    }
    // Sum of squared errors per token quantisation, each channel weighted.
    let error = |x: &Array2<f32>, weights: &dyn Fn(usize) -> f32| -> f64 {
        let quant = ActQuant::Dynamic {
            bits: Bits::new(8).unwrap(),
            rule: ActRule::Asymmetric,
            clip_ratio: 1.0.into(),
            shards: 1,
        };
        let mut q = x.clone();
        quant.fake_quantize(q.view_mut());
        q.indexed_iter().map(|((t, j), v)| f64::from((v - x[(t, j)]) * weights(j)).powi(2)).sum()
    };
    let (c, xs, _) = smooth(0.85, &x, &w);
    let (plain, smoothed) = (error(&x, &|_| 1.0), error(&xs, &|_| 1.0));
    assert!(smoothed * 5.0 < plain, "{smoothed} is not five times below {plain}");
    // Also in the units of the channels that are no outliers, which is how their errors reach the output.
    let ordinary = |j: usize| if planted.contains(&j) { 0.0 } else { 1.0 };
    let (plain, smoothed) = (error(&x, &ordinary), error(&xs, &|j| c[j] * ordinary(j)));
    assert!(smoothed * 5.0 < plain, "{smoothed} is not five times below {plain}");
}

#[test]
fn a_silent_channel_is_left_alone_unless_official() {
    let w = noise(1, 4, 6);
    let mut a = Array1::from_elem(6, 2.0);
    a[2] = 0.0;
    let c = |variant| factors(&SmoothQuant { alpha: 0.5, variant }, a.view(), &[w.view()]).unwrap()[2];
    assert_eq!(c(Variant::Exact), 1.0);
    assert_eq!(c(Variant::Official), 1e-5);
    a[2] = f32::NAN;
    let error =
        factors(&SmoothQuant { alpha: 0.5, variant: Variant::Exact }, a.view(), &[w.view()]).unwrap_err();
    assert!(error.to_string().contains("channel 2"), "{error}");
}

/// A channel that hardly speaks in the calibration data may wake up later: `exact` multiplies it by 100 at most.
#[test]
fn a_quiet_channel_is_not_blown_up() {
    let absmax = ndarray::array![1.0_f32, 1e-20, 0.0];
    let weight = Array2::<f32>::ones((2, 3));
    let of =
        |variant| factors(&SmoothQuant { alpha: 0.5, variant }, absmax.view(), &[weight.view()]).unwrap();
    assert_eq!(of(Variant::Exact).to_vec(), [1.0, 1e-2, 1.0]);
    assert_eq!(of(Variant::Official).to_vec(), [1.0, 1e-5, 1e-5]);
}
