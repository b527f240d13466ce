//! SmoothQuant: the official results (`smoothquant.safetensors`) and the properties of `smoothquant.md` section 7.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ndarray::{Array1, Array2, Axis};
use proptest::prelude::*;
use quant_core::{ActQuant, ActRule, Bits, FloatType, Variant};
use quant_methods::smoothquant::{SmoothQuant, apply, factors};
use safetensors::{Dtype, SafeTensors};
use std::path::Path;

fn read(file: &SafeTensors<'_>, name: &str) -> (Vec<usize>, Vec<f32>) {
    let t = file.tensor(name).unwrap_or_else(|_| panic!("{name} is missing"));
    let values = match t.dtype() {
        Dtype::F32 => t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        Dtype::F16 => t
            .data()
            .chunks_exact(2)
            .map(|b| half::f16::from_le_bytes(b.try_into().unwrap()).to_f32())
            .collect(),
        other => panic!("{name}: {other:?}"),
    };
    (t.shape().to_vec(), values)
}

fn vector(file: &SafeTensors<'_>, name: &str) -> Array1<f32> {
    Array1::from(read(file, name).1)
}

fn matrix(file: &SafeTensors<'_>, name: &str) -> Array2<f32> {
    let (shape, values) = read(file, name);
    Array2::from_shape_vec((shape[0], shape[1]), values).unwrap()
}

fn close(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let norm: f64 = theirs.iter().map(|&v| f64::from(v).powi(2)).sum();
    let difference: f64 = ours.iter().zip(theirs).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    assert!((difference / norm).sqrt() <= 1e-5, "{what}: relative error {}", (difference / norm).sqrt());
    for (j, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!((a - b).abs() <= 2e-5 * b.abs().max(1e-12), "{what} [{j}]: {a} vs {b}");
    }
}

#[test]
fn official_results() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/goldens/smoothquant.safetensors");
    let Ok(bytes) = std::fs::read(Path::new(path)) else {
        quant_testkit::skipped("the reference data (goldens/smoothquant.safetensors) is not present");
        return;
    };
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut compared = 0;
    for family in ["llama", "qwen2"] {
        for alpha in [0.3_f32, 0.5, 0.8] {
            let settings = SmoothQuant { alpha, variant: Variant::Official };
            let edges = [
                (
                    "input_layernorm",
                    "self_attn.q_proj",
                    vec!["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
                ),
                ("post_attention_layernorm", "mlp.gate_proj", vec!["mlp.gate_proj", "mlp.up_proj"]),
            ];
            for (norm_name, site, linears) in edges {
                let absmax = vector(&file, &format!("{family}.act_scales.{site}"));
                let mut weights: Vec<_> =
                    linears.iter().map(|l| matrix(&file, &format!("{family}.w.{l}.weight"))).collect();
                let mut norm = vector(&file, &format!("{family}.w.{norm_name}.weight"));
                let views: Vec<_> = weights.iter().map(|w| w.view()).collect();
                let c = factors(&settings, absmax.view(), &views).unwrap();
                let mut targets: Vec<_> = weights.iter_mut().collect();
                apply(c.view(), &mut norm, &mut targets, FloatType::F32).unwrap();
                let case = format!("{family}.a{alpha}");
                let expected = vector(&file, &format!("{case}.{norm_name}.weight"));
                close(norm.as_slice().unwrap(), expected.as_slice().unwrap(), &format!("{case} {norm_name}"));
                compared += 1;
                for (linear, weight) in linears.iter().zip(&weights) {
                    if file.tensor(&format!("{case}.{linear}.weight")).is_ok() {
                        let expected = matrix(&file, &format!("{case}.{linear}.weight"));
                        close(
                            weight.as_slice().unwrap(),
                            expected.as_slice().unwrap(),
                            &format!("{case} {linear}"),
                        );
                        compared += 1;
                    }
                }
            }
        }
    }
    println!("{compared} tensors compared");
    assert!(compared >= 26, "only {compared} tensors were compared");
}

fn noise(seed: u64, rows: usize, columns: usize) -> Array2<f32> {
    let mut state = seed | 1;
    Array2::from_shape_simple_fn((rows, columns), || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as f32 / (1_u64 << 31) as f32 - 0.5) * 2.0
    })
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

    #[test]
    fn the_maximum_does_not_depend_on_batches(seed: u64, cut in 1_usize..19) {
        let x = noise(seed, 20, 6);
        let (a, b) = x.view().split_at(Axis(0), cut);
        let parts = ndarray::Zip::from(&absmax(&b.to_owned())).and(&absmax(&a.to_owned())).map_collect(|a, b| a.max(*b));
        prop_assert_eq!(parts, absmax(&x));
    }
}

#[test]
fn planted_outliers_lose_their_damage() {
    let mut x = noise(4, 256, 128);
    let w = noise(9, 64, 128);
    for j in 0..10 {
        x.column_mut(j * 12 + 3).mapv_inplace(|v| v * 100.0);
    }
    let quant = ActQuant::Dynamic { bits: Bits::new(8).unwrap(), rule: ActRule::Asymmetric, clip_ratio: 1.0 };
    let error = |x: &Array2<f32>, c: &Array1<f32>| -> f64 {
        let mut q = x.clone();
        quant.fake_quantize(q.view_mut());
        // Back in the units of the unsmoothed activations of ordinary channels, which is what reaches the output.
        let outliers = |j: usize| j % 12 == 3 && j / 12 < 10;
        let ordinary = |((_, j), _): &((usize, usize), &f32)| !outliers(*j);
        q.indexed_iter().filter(ordinary).map(|((i, j), v)| f64::from((v - x[(i, j)]) * c[j]).powi(2)).sum()
    };
    let plain = error(&x, &Array1::ones(128));
    let (c, xs, _) = smooth(0.85, &x, &w);
    let smoothed = error(&xs, &c);
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
