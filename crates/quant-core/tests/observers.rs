//! Static ranges: every value of every channel counts, in any division into batches.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ndarray::{Array2, Axis, concatenate};
use quant_core::{ActRule, Bits, FloatType, Observer, ObserverKind, QParams};
use quant_testkit::Numbers;

const KINDS: [ObserverKind; 3] = [ObserverKind::Minmax, ObserverKind::Percentile, ObserverKind::Mse];

fn params(kind: ObserverKind, x: &Array2<f32>, batch: usize) -> QParams {
    let mut observer = Observer::new(kind);
    for batch in x.axis_chunks_iter(Axis(0), batch) {
        observer.observe(batch);
    }
    observer.params(Bits::new(8).unwrap(), ActRule::Symmetric, FloatType::F32)
}

/// The value at rank ⌈0.9999 · count⌉ of all `|x|`.
fn exact_percentile(x: &Array2<f32>) -> f32 {
    let mut sorted: Vec<f32> = x.iter().map(|v| v.abs()).collect();
    sorted.sort_by(f32::total_cmp);
    sorted[(0.9999 * sorted.len() as f64).ceil() as usize - 1]
}

/// The search of the `mse` observer over every value itself.
fn exact_least_squares(x: &Array2<f32>) -> f32 {
    let absmax = x.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
    let error = |scale: f32| -> f64 {
        let level = |v: f32| (v / scale).round_ties_even().clamp(-128.0, 127.0);
        x.iter().map(|&v| f64::from(scale * level(v) - v).powi(2)).sum()
    };
    let mut best = (f64::INFINITY, 0.0);
    for step in 0..100 {
        let scale = absmax * (1.0 - 0.5 * (step as f32) / 99.0) / 127.0;
        let found = error(scale);
        if found < best.0 {
            best = (found, scale);
        }
    }
    best.1
}

/// More values than any sample would keep, with outliers in a few channels whose indices are odd.
fn outlier_channels(tokens: usize, channels: usize, size: f32) -> Array2<f32> {
    let mut x = Numbers::new(5).normals(tokens, channels);
    for channel in [1, 101, 377] {
        x.column_mut(channel).mapv_inplace(|v| v * size);
    }
    x
}

#[test]
fn outliers_in_odd_channels_are_counted() {
    let x = outlier_channels(1024, 384, 100.0);
    assert!(x.len() > 1 << 18);
    // Three of 384 channels are 0.8 % of the values: the percentile lies among them.
    let expected = exact_percentile(&x);
    assert!(expected > 200.0);
    let found = params(ObserverKind::Percentile, &x, 1024).scale * 127.0;
    assert!((found / expected - 1.0).abs() <= 1.0 / 2048.0, "{found} vs {expected}");
    let expected = exact_least_squares(&x);
    let found = params(ObserverKind::Mse, &x, 1024).scale;
    // One of the hundred factors, and the errors of neighbouring ones differ by less than the counting rounds.
    assert!((found / expected - 1.0).abs() <= 0.011, "{found} vs {expected}");
}

#[test]
fn a_single_outlier_is_cut_by_the_percentile() {
    let mut x = Numbers::new(6).normals(1024, 384);
    x[(511, 255)] = 1000.0;
    let expected = exact_percentile(&x);
    assert!(expected < 5.0);
    let found = params(ObserverKind::Percentile, &x, 100).scale * 127.0;
    assert!((found / expected - 1.0).abs() <= 1.0 / 2048.0, "{found} vs {expected}");
    assert_eq!(params(ObserverKind::Minmax, &x, 100).scale, 1000.0 / 127.0);
}

#[test]
fn batches_and_order_do_not_matter() {
    let x = outlier_channels(600, 450, 20.0);
    let (top, bottom) = x.view().split_at(Axis(0), 217);
    let swapped = concatenate(Axis(0), &[bottom, top]).unwrap();
    for kind in KINDS {
        let whole = params(kind, &x, 600);
        for batch in [1, 7, 256] {
            assert_eq!(params(kind, &x, batch), whole, "{kind:?}");
        }
        assert_eq!(params(kind, &swapped, 100), whole, "{kind:?}");
    }
}

#[test]
fn few_values_keep_their_extremes() {
    // 9999 values have no 10 000th to cut. bf16 values are counted as they are.
    let x = Numbers::new(7).normals(99, 101).mapv(|v| FloatType::Bf16.round(v));
    let absmax = x.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
    assert_eq!(params(ObserverKind::Percentile, &x, 10).scale, absmax / 127.0);
    for kind in KINDS {
        let nothing = params(kind, &Array2::zeros((0, 8)), 1);
        assert_eq!(nothing.scale, params(ObserverKind::Minmax, &Array2::zeros((3, 8)), 1).scale, "{kind:?}");
    }
}

#[test]
fn asymmetric_ranges_and_rounded_scales() {
    let mut observer = Observer::new(ObserverKind::Minmax);
    observer.observe(Array2::from_elem((2, 2), 3.0).view());
    assert_eq!(observer.extremes(), (0.0, 3.0), "zero is part of every range");
    let p = observer.params(Bits::new(8).unwrap(), ActRule::Asymmetric, FloatType::Bf16);
    assert_eq!((p.scale, p.zero), (FloatType::Bf16.round(3.0 / 255.0), 0.0));
    // Both ends are cut at the same bound.
    let mut x = Numbers::new(8).normals(300, 100).mapv(|v| v.abs() + 0.1);
    x[(3, 3)] = -0.2;
    x[(5, 7)] = 900.0;
    x[(6, 7)] = 900.0;
    x[(7, 7)] = 900.0;
    let mut observer = Observer::new(ObserverKind::Percentile);
    observer.observe(x.view());
    let p = observer.params(Bits::new(8).unwrap(), ActRule::Asymmetric, FloatType::F32);
    let range = exact_percentile(&x) + 0.2;
    assert!((p.scale * 255.0 / range - 1.0).abs() < 1e-3, "{p:?} vs {range}");
}

#[test]
fn extreme_magnitudes_have_a_bin() {
    for value in [f32::MAX, f32::MIN_POSITIVE, f32::from_bits(1), 0.0, -0.0] {
        for kind in KINDS {
            let p = params(kind, &Array2::from_elem((2, 3), value), 1);
            assert!(p.scale.is_finite() && p.scale > 0.0, "{kind:?} {value:e}: {p:?}");
        }
    }
}
