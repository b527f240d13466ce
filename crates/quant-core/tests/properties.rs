//! The testable properties of `rtn.md` section 7 and `kv_cache.md` section 7 that concern this crate.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ndarray::{Array2, Axis};
use proptest::prelude::*;
use quant_core::matrix::round_matrix;
use quant_core::{
    ActQuant, ActRule, Bits, ChannelRanges, ClipSearch, Convention, EntryQuant, FloatType, Grid, Groups,
    QuantizedMatrix, Variant,
};
use quant_testkit::Numbers;

fn grid(convention: Convention, bits: u32) -> Grid {
    Grid::new(convention, Bits::new(bits).unwrap(), Variant::Exact, FloatType::F32).unwrap()
}

fn normals(seed: u64, rows: usize, columns: usize) -> Array2<f32> {
    Numbers::new(seed).normals(rows, columns)
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
            let step = q.scales()[(i, j / g)];
            prop_assert!((dq[(i, j)] - v).abs() <= 0.5 * step * (1.0 + 1e-5) + 1e-7, "({i}, {j}): {v} -> {}", dq[(i, j)]);
        }
    }

    /// Section 7.1, second half: with a clip ratio p, entries inside the shrunk range are within half a step.
    #[test]
    fn a_searched_clip_costs_only_entries_outside_it(c in conventions(), bits in 2_u32..=8, seed: u64) {
        let w = normals(seed, 4, 64);
        let grid = grid(c, bits);
        let q = round_matrix(&grid, Some(&ClipSearch::default()), Groups::Channel, w.view()).unwrap();
        let dq = q.dequantize();
        let mut outside = 0;
        for (i, row) in w.rows().into_iter().enumerate() {
            let (min, max) = (row.fold(0.0_f32, |a, &b| a.min(b)), row.fold(0.0_f32, |a, &b| a.max(b)));
            let p = q.scales()[(i, 0)] / grid.from_range(min, max).scale;
            prop_assert!((0.2..=1.0 + 1e-6).contains(&p), "{p}");
            let (lo, hi) = if c == Convention::QAsym { (min, max) } else { (-max.max(-min), max.max(-min)) };
            for (j, &v) in row.iter().enumerate() {
                if (p * lo..=p * hi).contains(&v) {
                    let bound = 0.5 * q.scales()[(i, 0)] * (1.0 + 1e-5) + 1e-6;
                    prop_assert!((dq[(i, j)] - v).abs() <= bound, "({i}, {j}): {v} -> {}, p = {p}", dq[(i, j)]);
                } else {
                    outside += 1;
                }
            }
        }
        // At few bits the search does cut.
        prop_assert!(bits > 3 || outside > 0);
    }

    #[test]
    fn rounding_is_idempotent(c in conventions(), bits in 2_u32..=8, seed: u64) {
        let w = normals(seed, 2, 48);
        let grid = grid(c, bits);
        let q = round_matrix(&grid, None, Groups::Size(16), w.view()).unwrap();
        for ((i, j), &v) in q.dequantize().indexed_iter() {
            let level = grid.level(v, q.params(i, j / 16));
            prop_assert_eq!(level as u8, q.levels()[(i, j)]);
        }
    }

    #[test]
    fn levels_are_scale_equivariant_and_rows_commute(c in conventions(), bits in 2_u32..=8, seed: u64, e in -8_i32..8) {
        let w = normals(seed, 4, 32);
        let grid = grid(c, bits);
        let q = round_matrix(&grid, None, Groups::Channel, w.view()).unwrap();
        let scaled = round_matrix(&grid, None, Groups::Channel, (&w * 2.0_f32.powi(e)).view()).unwrap();
        prop_assert_eq!(scaled.levels(), q.levels());
        let swapped = w.select(Axis(0), &[2, 0, 3, 1]);
        let q2 = round_matrix(&grid, None, Groups::Channel, swapped.view()).unwrap();
        prop_assert_eq!(q2.levels(), q.levels().select(Axis(0), &[2, 0, 3, 1]));
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
    fn zero_maps_to_zero(c in prop::sample::select(Convention::ALL.to_vec()), bits in 2_u32..=8, seed: u64) {
        let mut w = normals(seed, 1, 32);
        // Inside the range: `q-awq` promises zero only there.
        w[(0, 7)] = 0.0;
        let q = round_matrix(&grid(c, bits), None, Groups::Channel, w.view()).unwrap();
        prop_assert_eq!(q.dequantize()[(0, 7)], 0.0);
    }

    #[test]
    fn a_rounded_scale_is_representable(bits in 2_u32..=8, seed: u64) {
        for scale_type in [FloatType::Bf16, FloatType::F16] {
            let grid = Grid { scale_type, ..grid(Convention::QSym, bits) };
            let q = round_matrix(&grid, None, Groups::Size(16), normals(seed, 2, 32).view()).unwrap();
            for &s in q.scales() {
                prop_assert_eq!(scale_type.round(s), s);
            }
        }
    }

    #[test]
    fn kv_zero_and_constant_vectors(bits in prop_oneof![Just(2_u32), Just(3), Just(4), Just(8)], c in -50.0_f32..50.0) {
        for rule in [ActRule::Asymmetric, ActRule::Symmetric] {
            let kv = EntryQuant::TokenHead { bits: Bits::new(bits).unwrap(), rule, clip_ratio: 1.0.into() };
            let mut zero = Array2::<f32>::zeros((2, 32));
            kv.fake_quantize(16, zero.view_mut());
            prop_assert!(zero.iter().all(|&v| v == 0.0));
            let mut constant = Array2::from_elem((1, 16), c);
            kv.fake_quantize(16, constant.view_mut());
            let step = c.abs() / if rule == ActRule::Asymmetric { (1 << bits) as f32 - 1.0 } else { (1 << (bits - 1)) as f32 - 1.0 };
            prop_assert!(constant.iter().all(|&v| (v - c).abs() <= 0.5 * step + 1e-6));
        }
    }

    #[test]
    fn permuting_channels_of_a_head_permutes_the_result(seed: u64, bits in prop_oneof![Just(4_u32), Just(8)]) {
        let x = normals(seed, 3, 8);
        let order = [3, 1, 7, 0, 2, 6, 5, 4];
        let quant = ActQuant::Dynamic { bits: Bits::new(bits).unwrap(), rule: ActRule::Asymmetric, clip_ratio: 1.0.into(), shards: 1 };
        let mut whole = x.clone();
        quant.fake_quantize(whole.view_mut());
        let mut permuted = x.select(Axis(1), &order);
        quant.fake_quantize(permuted.view_mut());
        prop_assert_eq!(permuted, whole.select(Axis(1), &order));
    }

    /// `kv_cache.md` 7.8, for every rule.
    #[test]
    fn dynamic_codes_and_zeros_are_levels(seed: u64, bits in 1_u32..=8, shift in -3.0_f32..3.0, clip in 0.3_f32..=1.0) {
        let bits = Bits::new(bits).unwrap();
        for rule in [ActRule::Asymmetric, ActRule::Symmetric, ActRule::SymmetricFull] {
            for row in (normals(seed, 3, 24) + shift).rows() {
                let params = rule.params(bits, clip, &row.to_vec());
                let is_level = |l: f32| l == l.round() && (0.0..=bits.max_level()).contains(&l);
                prop_assert!(params.scale > 0.0 && is_level(params.zero), "{rule:?}: {params:?}");
                for &v in row {
                    prop_assert!(is_level(params.level(v, bits.max_level())));
                }
                // Both ends of the clipped range stay within a step of their values.
                let (min, max) = row.iter().fold((0.0_f32, 0.0_f32), |(a, b), &v| (a.min(v), b.max(v)));
                for end in [min * clip, max * clip] {
                    let step = if bits.get() == 1 { 2.0 } else { 1.0 } * params.scale;
                    prop_assert!((params.fake(end, bits.max_level()) - end).abs() <= step * (1.0 + 1e-5));
                }
            }
        }
    }

    /// `kv_cache.md` 7.5, second half, through the ranges of calibration.
    #[test]
    fn a_channel_scale_follows_its_channel(seed: u64, factor in 0.01_f32..100.0, symmetric: bool) {
        let x = normals(seed, 6, 4);
        let rule = if symmetric { ActRule::Symmetric } else { ActRule::Asymmetric };
        let calibrate = |x: &Array2<f32>| {
            let mut ranges = ChannelRanges::new(4);
            for tokens in x.axis_chunks_iter(Axis(0), 4) {
                ranges.observe(tokens);
            }
            EntryQuant::from_ranges(Bits::new(8).unwrap(), rule, FloatType::F32, &ranges)
        };
        let mut scaled = x.clone();
        scaled.column_mut(1).mapv_inplace(|v| v * factor);
        let (before, after) = (calibrate(&x), calibrate(&scaled));
        let (EntryQuant::Channel { scales: a, .. }, EntryQuant::Channel { scales: b, .. }) = (&before, &after) else { panic!() };
        for channel in 0..4 {
            let (lo, hi) = x.column(channel).fold((0.0_f32, 0.0_f32), |(lo, hi), &v| (lo.min(v), hi.max(v)));
            let expected = if symmetric { hi.max(-lo) / 127.0 } else { (hi - lo) / 255.0 };
            prop_assert_eq!(a[channel], expected);
            let expected = a[channel] * if channel == 1 { factor } else { 1.0 };
            prop_assert!((b[channel] / expected - 1.0).abs() < 1e-6);
        }
        let run = |kv: &EntryQuant, x: &Array2<f32>| {
            let mut y = x.clone();
            kv.fake_quantize(4, y.view_mut());
            y
        };
        let (before, after) = (run(&before, &x), run(&after, &scaled));
        for ((t, channel), &v) in after.indexed_iter() {
            let expected = before[(t, channel)] * if channel == 1 { factor } else { 1.0 };
            // A code may fall the other way at a half step.
            prop_assert!((v - expected).abs() <= 1.001 * b[channel]);
            prop_assert!(channel == 1 || v == expected);
        }
    }

    /// `kv_cache.md` 7.8 and the equation of its variant C, against f64: codes and zero levels are whole numbers in range, also
    /// outside the calibrated range, where the clip is hard.
    #[test]
    fn static_codes_and_zeros_are_levels(
        seed: u64, bits in prop_oneof![Just(2_u32), Just(3), Just(4), Just(8)], shift in -3.0_f32..3.0,
    ) {
        let x = normals(seed, 12, 5) + shift;
        let mut ranges = ChannelRanges::new(5);
        ranges.observe(x.view());
        let (bits, top) = (Bits::new(bits).unwrap(), 2.0_f64.powi(bits as i32) - 1.0);
        let kv = EntryQuant::from_ranges(bits, ActRule::Asymmetric, FloatType::F32, &ranges);
        let EntryQuant::Channel { scales, zeros, .. } = &kv else { panic!() };
        // Zero is a level of every channel (7.4).
        let mut zero = Array2::<f32>::zeros((1, 5));
        kv.fake_quantize(5, zero.view_mut());
        prop_assert!(zero.iter().all(|&v| v == 0.0));
        let wide = &x * 2.0;
        let mut y = wide.clone();
        kv.fake_quantize(5, y.view_mut());
        for ((t, j), &v) in y.indexed_iter() {
            let (s, z) = (f64::from(scales[j]), f64::from(zeros[j]));
            prop_assert!(z == z.round() && (0.0..=top).contains(&z));
            let code = f64::from(v) / s + z;
            prop_assert!((code - code.round()).abs() < 1e-3 && (-1e-3..=top + 1e-3).contains(&code), "{code}");
            let scaled = f64::from(wide[(t, j)]) / s;
            let expected = (scaled.round_ties_even() + z).clamp(0.0, top);
            // Away from half steps f32 and f64 agree on the code.
            prop_assert!((code - expected).abs() < 1e-3 || (scaled.fract().abs() - 0.5).abs() < 1e-3, "{code} {expected}");
        }
    }

    /// Of kv_cache.md 1: both ends of a dynamic range are multiplied by the clip ratio.
    #[test]
    fn a_clip_ratio_cuts_both_ends(seed: u64, ratio in 0.3_f32..1.0) {
        let bits = Bits::new(4).unwrap();
        let x = normals(seed, 3, 8);
        let mut y = x.clone();
        EntryQuant::TokenHead { bits, rule: ActRule::Asymmetric, clip_ratio: ratio.into() }.fake_quantize(8, y.view_mut());
        for (x, y) in x.rows().into_iter().zip(y.rows()) {
            let params = ActRule::Asymmetric.params(bits, ratio, &x.to_vec());
            prop_assert!(x.iter().zip(y).all(|(&x, &y)| y == params.fake(x, 15.0)));
        }
    }

    /// A shard of a token is quantised as if it were all of it.
    #[test]
    fn shards_are_tokens_of_their_own(seed: u64, shards in prop_oneof![Just(1_usize), Just(2), Just(3), Just(4)]) {
        let x = normals(seed, 3, 24);
        let quant = |shards| ActQuant::Dynamic { bits: Bits::new(4).unwrap(), rule: ActRule::Asymmetric, clip_ratio: 0.9.into(), shards };
        let mut whole = x.clone();
        quant(shards).fake_quantize(whole.view_mut());
        let mut apart = x.into_shape_with_order((3 * shards, 24 / shards)).unwrap();
        quant(1).fake_quantize(apart.view_mut());
        prop_assert_eq!(whole, apart.into_shape_with_order((3, 24)).unwrap());
    }
}

/// Section 7.5: smaller groups are better on average, and what a bit is worth.
#[test]
fn groups_and_bits_pay_what_they_are_known_to_pay() {
    let w = normals(12, 64, 4096);
    let mse = |bits: u32, group: usize| {
        let q = round_matrix(&grid(Convention::QAsym, bits), None, Groups::Size(group), w.view()).unwrap();
        relative_error(&q.dequantize(), &w).powi(2)
    };
    for bits in 2..=8 {
        assert!(mse(bits, 64) < mse(bits, 128), "{bits} bits");
    }
    for bits in 4..8 {
        let ratio = mse(bits, 128) / mse(bits + 1, 128);
        assert!((4.0..=4.6).contains(&ratio), "from {bits} bits: {ratio}");
    }
    let ratio = mse(2, 128) / mse(3, 128);
    assert!((ratio / 5.4 - 1.0).abs() < 0.05, "from 2 to 3 bits: {ratio}");
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

/// Section 6: the noise of a matrix whose groups were read right is that of uniform rounding, of one read wrong it is not.
#[test]
fn mis_grouping_shows_in_the_noise() {
    let w = normals(5, 64, 4096);
    for bits in [2, 3, 4, 6, 8] {
        let q = round_matrix(&grid(Convention::QAsym, bits), None, Groups::Size(128), w.view()).unwrap();
        let predicted =
            q.scales().iter().map(|&s| f64::from(s).powi(2) / 12.0).sum::<f64>() / q.scales().len() as f64;
        let noise = |q: &QuantizedMatrix| {
            let squares = q.dequantize().iter().zip(&w).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            squares / w.len() as f64 / predicted
        };
        assert!((noise(&q) - 1.0).abs() < 0.01, "b={bits}: {}", noise(&q));
        // The same levels under the parameters of a neighbouring group, as a reader with an offset of one would take them.
        let groups = q.scales().ncols();
        let next: Vec<usize> = (0..groups).map(|g| (g + 1) % groups).collect();
        let (scales, zeros) = (q.scales().select(Axis(1), &next), q.zeros().select(Axis(1), &next));
        let wrong =
            QuantizedMatrix::new(q.bits(), q.levels().clone(), scales, zeros, q.groups().clone()).unwrap();
        assert!(noise(&wrong) > 1.2, "b={bits}: {}", noise(&wrong));
    }
}

#[test]
fn kv_errors_are_the_measured_ones() {
    let x = normals(3, 256, 128);
    for (bits, expected) in [(8, 0.0059), (4, 0.101), (3, 0.216)] {
        let kv = EntryQuant::TokenHead {
            bits: Bits::new(bits).unwrap(),
            rule: ActRule::Asymmetric,
            clip_ratio: 1.0.into(),
        };
        let mut y = x.clone();
        kv.fake_quantize(128, y.view_mut());
        let error = relative_error(&y, &x);
        assert!((error / expected - 1.0).abs() < 0.05, "kv{bits}: {error} vs {expected}");
    }
}

#[test]
fn a_constant_group_survives_one_bit() {
    for value in [0.0_f32, 0.37, -2.5, 1e-30] {
        let w = Array2::from_elem((1, 6), value);
        let q = round_matrix(&grid(Convention::QAsym, 1), None, Groups::Size(4), w.view()).unwrap();
        assert_eq!(q.dequantize(), w);
    }
}

/// Against a fold of `f32::min` and `f32::max`, for every length up to several registers.
#[test]
fn extremes_are_those_of_the_numbers() {
    use quant_core::convention::min_max;
    let value = |i: usize| ((i * 7919 % 1013) as f32 - 500.0) * if i.is_multiple_of(5) { 1e-3 } else { 1.0 };
    for length in 0..100 {
        let mut values: Vec<f32> = (0..length).map(value).collect();
        let fold =
            |values: &[f32]| values.iter().fold((f32::NAN, f32::NAN), |(lo, hi), &v| (lo.min(v), hi.max(v)));
        if length == 0 {
            assert_eq!(min_max(&values), (0.0, 0.0));
            continue;
        }
        assert_eq!(min_max(&values), fold(&values), "{length} values");
        for (at, odd) in
            [(length / 2, f32::NAN), (0, -f32::NAN), (length - 1, f32::INFINITY), (length / 3, f32::MIN)]
        {
            values[at] = odd;
            let (got, wanted) = (min_max(&values), fold(&values));
            let same = |a: f32, b: f32| a == b || a.is_nan() && b.is_nan();
            assert!(same(got.0, wanted.0) && same(got.1, wanted.1), "{values:?}: {got:?}, not {wanted:?}");
        }
    }
    let zeros = min_max(&[0.0, -0.0, 0.0]);
    assert_eq!((zeros.0.to_bits(), zeros.1.to_bits()), ((-0.0_f32).to_bits(), 0.0_f32.to_bits()));
}
