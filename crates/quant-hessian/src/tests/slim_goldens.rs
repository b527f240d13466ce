//! SliM-LLM's published implementation, at the tolerances that come with its numbers.

use ndarray::{Array2, Axis};
use quant_core::{Bits, Variant};
use quant_kernels::Par;
use quant_testkit::Golden;

use super::goldens::hessian;
use crate::{FactorSettings, SlimConfig, SlimFactor, slim};

const SUBSET: &[u8] = include_bytes!("../../tests/data/slimllm_subset.safetensors");

fn check(golden: &Golden, name: &str) {
    let case = &golden.cases()[name];
    let number = |key: &str| case[key].as_f64().unwrap();
    let group = number("groupsize") as usize;
    let bits = Bits::new(number("bit_width") as u32).unwrap();
    let lambda = number("lambda_salience") as f32;
    let config = SlimConfig { lambda, variant: Variant::Official, ..SlimConfig::new(bits, group) };
    let settings = FactorSettings { damping: number("percdamp"), ..FactorSettings::default() };
    let factor = SlimFactor::new(hessian(golden), &settings, Variant::Official, Par::Seq).unwrap();
    let (weight, x) = (golden.matrix("W"), golden.matrix("X"));
    let run = |x: ndarray::ArrayView2<'_, f32>| {
        slim(weight.view(), &factor, x, None, &config, Par::new(2)).unwrap()
    };
    let result = run(x.view());
    let widths: Vec<i64> =
        (0..weight.ncols() / group).map(|g| i64::from(result.matrix.widths().of(g).get())).collect();
    assert_eq!(widths, golden.tensor(&format!("{name}.bits")).i64(), "{name}: widths");

    // Every sample of the search.
    let errors = golden.tensor(&format!("{name}.kl_errors"));
    let samples = errors.shape[0];
    let found = x.axis_chunks_iter(Axis(0), x.nrows() / samples).flat_map(|x| run(x).divergences);
    let divergence = found.zip(errors.f64()).map(|(a, b)| (a - b).abs() / b.abs()).fold(0.0, f64::max);
    assert!(divergence <= 1e-3, "{name}: divergences differ by {divergence:e}");

    let (scales, zeros) = (golden.matrix(&format!("{name}.scale")), golden.matrix(&format!("{name}.zero")));
    let wanted: Array2<f32> = golden.matrix(&format!("{name}.Q"));
    let q = result.matrix.dequantize();
    let (mut steps, mut fitted) = (0, 0);
    for ((i, j), value) in q.indexed_iter() {
        // One-bit groups have twice the golden's scale between their two values.
        let step = scales[(i, j / group)] * if widths[j / group] == 1 { 2.0 } else { 1.0 };
        steps += usize::from((value - wanted[(i, j)]).abs() > 0.5 * step);
    }
    for ((i, g), scale) in scales.indexed_iter() {
        let params = result.matrix.params(i, g);
        let (ours, zero) = match widths[g] {
            1 => (0.5 * params.scale, params.scale * (0.5 - params.zero)),
            _ => (params.scale, params.zero),
        };
        let near = |a: f32, b: f32| (a - b).abs() <= 1e-4 * scale.abs().max(b.abs());
        fitted += usize::from(!near(ours, *scale) || !near(zero, zeros[(i, g)]));
    }
    println!(
        "{name}: {steps} of {} values, {fitted} of {} scales, divergence {divergence:.1e}",
        q.len(),
        scales.len()
    );
    assert!(steps * 1000 <= q.len(), "{name}: {steps} of {} values differ by a step", q.len());
    assert!(fitted * 50 <= scales.len(), "{name}: {fitted} of {} scales differ", scales.len());
}

#[test]
fn subset() {
    let golden = Golden::parse(SUBSET);
    assert_eq!(golden.cases().len(), 1);
    golden.cases().keys().for_each(|name| check(&golden, name));
}

#[test]
fn every_case_of_the_golden_file() {
    let Some(golden) = Golden::shared("slimllm.safetensors") else { return };
    assert_eq!(golden.cases().len(), 4);
    golden.cases().keys().for_each(|name| check(&golden, name));
}
