//! The testable properties of `rtn.md` section 7 and `kv_cache.md` section 7 that concern this crate.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ndarray::{Array1, Array2, Axis};
use proptest::prelude::*;
use quant_core::activation::KvSide;
use quant_core::matrix::round_matrix;
use quant_core::{
    ActQuant, ActRule, Bits, ClipSearch, Convention, FloatType, Grid, Groups, KvQuant, Observer,
    ObserverKind, Variant,
};

fn grid(convention: Convention, bits: u32) -> Grid {
    Grid::new(convention, Bits::new(bits).unwrap(), Variant::Exact, FloatType::F32).unwrap()
}

/// Reproducible standard normals (Box-Muller over a 64-bit mixer).
fn normals(seed: u64, rows: usize, columns: usize) -> Array2<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    };
    Array2::from_shape_simple_fn((rows, columns), || {
        let (u, v) = (next().max(1e-300), next());
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    })
}

fn relative_error(a: &Array2<f32>, b: &Array2<f32>) -> f64 {
    let diff: f64 = a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2)).sum();
    let norm: f64 = b.iter().map(|&y| f64::from(y).powi(2)).sum();
    (diff / norm).sqrt()
}

fn conventions() -> impl Strategy<Value = Convention> {
    prop_oneof![Just(Convention::QAsym), Just(Convention::QSym), Just(Convention::QSymGptq)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_entry_is_within_half_a_step(c in conventions(), bits in 2_u32..=8, seed: u64, g in 1_usize..40) {
        let w = normals(seed, 3, 70);
        let q = round_matrix(&grid(c, bits), None, Groups::Size(g), w.view()).unwrap();
        let dq = q.dequantize();
        for ((i, j), &v) in w.indexed_iter() {
            let step = q.scales[(i, j / g)];
            prop_assert!((dq[(i, j)] - v).abs() <= 0.5 * step * (1.0 + 1e-5) + 1e-7, "({i}, {j}): {v} -> {}", dq[(i, j)]);
        }
    }

    #[test]
    fn rounding_is_idempotent(c in conventions(), bits in 2_u32..=8, seed: u64) {
        let w = normals(seed, 2, 48);
        let grid = grid(c, bits);
        let q = round_matrix(&grid, None, Groups::Size(16), w.view()).unwrap();
        for ((i, j), &v) in q.dequantize().indexed_iter() {
            let level = grid.level(v, q.params(i, j / 16));
            prop_assert_eq!(level as u8, q.levels[(i, j)]);
        }
    }

    #[test]
    fn levels_are_scale_equivariant_and_rows_commute(c in conventions(), bits in 2_u32..=8, seed: u64, e in -8_i32..8) {
        let w = normals(seed, 4, 32);
        let grid = grid(c, bits);
        let q = round_matrix(&grid, None, Groups::Channel, w.view()).unwrap();
        let scaled = round_matrix(&grid, None, Groups::Channel, (&w * 2.0_f32.powi(e)).view()).unwrap();
        prop_assert_eq!(&scaled.levels, &q.levels);
        let swapped = w.select(Axis(0), &[2, 0, 3, 1]);
        let q2 = round_matrix(&grid, None, Groups::Channel, swapped.view()).unwrap();
        prop_assert_eq!(q2.levels, q.levels.select(Axis(0), &[2, 0, 3, 1]));
    }

    #[test]
    fn the_clip_search_never_loses(c in conventions(), bits in 2_u32..=8, seed: u64) {
        let w = normals(seed, 1, 64);
        let grid = grid(c, bits);
        let search = ClipSearch::default();
        let row = w.row(0).to_vec();
        let (plain, best) = (grid.params(&row, None), grid.params(&row, Some(&search)));
        let top = grid.bits.max_level();
        prop_assert!(search.error(&row, best, top) <= search.error(&row, plain, top));
    }

    #[test]
    fn zero_maps_to_zero(c in conventions(), bits in 2_u32..=8, seed: u64) {
        let mut w = normals(seed, 1, 32);
        w[(0, 7)] = 0.0;
        let q = round_matrix(&grid(c, bits), None, Groups::Channel, w.view()).unwrap();
        prop_assert_eq!(q.dequantize()[(0, 7)], 0.0);
    }

    #[test]
    fn a_rounded_scale_is_representable(bits in 2_u32..=8, seed: u64) {
        for scale_type in [FloatType::Bf16, FloatType::F16] {
            let grid = Grid { scale_type, ..grid(Convention::QSym, bits) };
            let q = round_matrix(&grid, None, Groups::Size(16), normals(seed, 2, 32).view()).unwrap();
            for &s in &q.scales {
                prop_assert_eq!(scale_type.round(s), s);
            }
        }
    }

    #[test]
    fn kv_zero_and_constant_vectors(bits in prop_oneof![Just(4_u32), Just(8)], c in -50.0_f32..50.0) {
        for rule in [ActRule::Asymmetric, ActRule::Symmetric] {
            let kv = KvQuant::TokenHead { bits: Bits::new(bits).unwrap(), rule };
            let mut zero = Array2::<f32>::zeros((2, 32));
            kv.fake_quantize(KvSide::Key, 16, zero.view_mut());
            prop_assert!(zero.iter().all(|&v| v == 0.0));
            let mut constant = Array2::from_elem((1, 16), c);
            kv.fake_quantize(KvSide::Value, 16, constant.view_mut());
            let step = c.abs() / if rule == ActRule::Asymmetric { (1 << bits) as f32 - 1.0 } else { (1 << (bits - 1)) as f32 - 1.0 };
            prop_assert!(constant.iter().all(|&v| (v - c).abs() <= 0.5 * step + 1e-6));
        }
    }

    #[test]
    fn permuting_channels_of_a_head_permutes_the_result(seed: u64, bits in prop_oneof![Just(4_u32), Just(8)]) {
        let x = normals(seed, 3, 8);
        let order = [3, 1, 7, 0, 2, 6, 5, 4];
        let quant = ActQuant::Dynamic { bits: Bits::new(bits).unwrap(), rule: ActRule::Asymmetric, clip_ratio: 1.0 };
        let mut whole = x.clone();
        quant.fake_quantize(whole.view_mut());
        let mut permuted = x.select(Axis(1), &order);
        quant.fake_quantize(permuted.view_mut());
        prop_assert_eq!(permuted, whole.select(Axis(1), &order));
    }

    #[test]
    fn a_channel_scale_follows_its_channel(seed: u64, e in -4_i32..5) {
        let x = normals(seed, 6, 4);
        let factor = 2.0_f32.powi(e);
        let absmax = |x: &Array2<f32>| x.fold_axis(Axis(0), 0.0_f32, |a, &v| a.max(v.abs())) / 127.0;
        let bits = Bits::new(8).unwrap();
        let run = |x: &Array2<f32>| {
            let scales: Array1<f32> = absmax(x);
            let kv = KvQuant::Channel { bits, key: scales.clone(), value: scales };
            let mut y = x.clone();
            kv.fake_quantize(KvSide::Key, 4, y.view_mut());
            y
        };
        let mut scaled = x.clone();
        scaled.column_mut(1).mapv_inplace(|v| v * factor);
        let mut expected = run(&x);
        expected.column_mut(1).mapv_inplace(|v| v * factor);
        prop_assert_eq!(run(&scaled), expected);
    }
}

#[test]
fn gaussian_errors_are_the_measured_ones() {
    let w = normals(11, 64, 4096);
    let cases = [
        (2, 0.505, 0.371, 0.768),
        (3, 0.216, 0.188, 0.275),
        (4, 0.1008, 0.0954, 0.1177),
        (5, 0.0488, 0.0475, 0.0549),
        (6, 0.0240, 0.0236, 0.0266),
        (8, 0.0059, 0.0059, 0.0065),
    ];
    for (bits, asym, searched, sym) in cases {
        for (convention, clip, expected) in [
            (Convention::QAsym, None, asym),
            (Convention::QAsym, Some(ClipSearch::default()), searched),
            (Convention::QSym, None, sym),
        ] {
            let q =
                round_matrix(&grid(convention, bits), clip.as_ref(), Groups::Size(128), w.view()).unwrap();
            let error = relative_error(&q.dequantize(), &w);
            assert!(
                (error / expected - 1.0).abs() < 0.05,
                "b={bits} {convention:?} {clip:?}: {error} vs {expected}"
            );
        }
    }
    let binary = round_matrix(&grid(Convention::QAsym, 1), None, Groups::Size(128), w.view()).unwrap();
    let error = relative_error(&binary.dequantize(), &w);
    assert!((error / 0.598 - 1.0).abs() < 0.05, "binary rule: {error}");
    let official = Grid { variant: Variant::Official, ..grid(Convention::QAsym, 1) };
    let error =
        relative_error(&round_matrix(&official, None, Groups::Size(128), w.view()).unwrap().dequantize(), &w);
    assert!((error / 0.989 - 1.0).abs() < 0.05, "one-bit q-asym: {error}");
    for (bits, convention, expected) in [(4, Convention::QAsym, 0.140), (8, Convention::QSym, 0.0087)] {
        let q = round_matrix(&grid(convention, bits), None, Groups::Channel, w.view()).unwrap();
        let error = relative_error(&q.dequantize(), &w);
        assert!((error / expected - 1.0).abs() < 0.05, "row of 4096, b={bits}: {error} vs {expected}");
    }
}

#[test]
fn mis_grouping_shows_in_the_noise() {
    let w = normals(5, 32, 2048);
    for bits in [2, 3, 4, 6, 8] {
        let q = round_matrix(&grid(Convention::QAsym, bits), None, Groups::Size(128), w.view()).unwrap();
        let predicted: f64 =
            q.scales.iter().map(|&s| f64::from(s).powi(2) / 12.0).sum::<f64>() / q.scales.len() as f64;
        let dq = q.dequantize();
        let measured: f64 =
            dq.iter().zip(&w).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / w.len() as f64;
        assert!((measured / predicted - 1.0).abs() < 0.02, "b={bits}: {measured} vs {predicted}");
    }
}

#[test]
fn kv_errors_are_the_measured_ones() {
    let x = normals(3, 256, 128);
    for (bits, expected) in [(8, 0.0059), (4, 0.101)] {
        let kv = KvQuant::TokenHead { bits: Bits::new(bits).unwrap(), rule: ActRule::Asymmetric };
        let mut y = x.clone();
        kv.fake_quantize(KvSide::Key, 128, y.view_mut());
        let error = relative_error(&y, &x);
        assert!((error / expected - 1.0).abs() < 0.05, "kv{bits}: {error} vs {expected}");
    }
}

#[test]
fn observers_agree_on_plain_data_and_cut_outliers() {
    let mut x = normals(9, 512, 64);
    let bits = Bits::new(8).unwrap();
    let params = |kind, x: &Array2<f32>| {
        let mut observer = Observer::new(kind);
        for chunk in x.axis_chunks_iter(Axis(0), 100) {
            observer.observe(chunk);
        }
        observer.params(bits, ActRule::Symmetric, FloatType::F32)
    };
    let absmax = x.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
    assert_eq!(params(ObserverKind::Minmax, &x).scale, absmax / 127.0);
    x[(17, 3)] = 1000.0;
    assert_eq!(params(ObserverKind::Minmax, &x).scale, 1000.0 / 127.0);
    assert!(params(ObserverKind::Percentile, &x).scale < 10.0 / 127.0);
    // One value in 32768 is worth keeping for the squared error only down to half its size.
    let mse = params(ObserverKind::Mse, &x).scale;
    assert!((499.0 / 127.0..=1000.0 / 127.0).contains(&mse), "{mse}");
    let mut asym = Observer::new(ObserverKind::Minmax);
    asym.observe(Array2::from_elem((2, 2), 3.0).view());
    assert_eq!(asym.extremes(), (0.0, 3.0), "zero is part of every range");
    let p = asym.params(bits, ActRule::Asymmetric, FloatType::Bf16);
    assert_eq!(p.zero, 0.0);
    assert_eq!(p.scale, FloatType::Bf16.round(3.0 / 255.0));
}

#[test]
fn a_constant_group_survives_one_bit() {
    for value in [0.0_f32, 0.37, -2.5, 1e-30] {
        let w = Array2::from_elem((1, 6), value);
        let q = round_matrix(&grid(Convention::QAsym, 1), None, Groups::Size(4), w.view()).unwrap();
        assert_eq!(q.dequantize(), w);
    }
}

#[test]
fn infinities_are_named() {
    let mut w = normals(1, 4, 8);
    w[(2, 5)] = f32::NAN;
    let error = round_matrix(&grid(Convention::QSym, 4), None, Groups::Channel, w.view()).unwrap_err();
    assert!(error.to_string().contains("row 2, column 5"), "{error}");
}
