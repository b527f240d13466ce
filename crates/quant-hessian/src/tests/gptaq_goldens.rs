//! The published implementation's numbers (GPTAQ 883afc6), at the tolerances that come with them, where the reference data is
//! present.

use ndarray::{Array2, Axis};
use quant_core::Variant;
use quant_kernels::{Compute, Par};
use quant_testkit::Golden;

use super::goldens::{Case, close, frobenius, hessian};
use super::reference::{Asymmetric, Prepared, inverse, published_with};
use crate::{Correction, CrossGram, GptaqConfig, Precision, gptaq, prepare};

fn cross(golden: &Golden, all: bool) -> CrossGram {
    let sequences = golden.tensor("X").shape[0];
    let (x, float) = (golden.matrix("X"), golden.matrix("X_fp"));
    let mut cross = CrossGram::new(x.ncols(), all);
    let tokens = x.nrows() / sequences;
    for (float, x) in float.axis_chunks_iter(Axis(0), tokens).zip(x.axis_chunks_iter(Axis(0), tokens)) {
        cross.add(float, x, 1, Compute::F32, Par::Seq).unwrap();
    }
    cross
}

fn same(what: &str, got: &Array2<f32>, want: &Array2<f32>, tolerance: f64) {
    let error = frobenius(&(got - want)) / frobenius(want);
    println!("{what}: relative difference {error:.1e}");
    assert!(error <= tolerance, "{what}: {error:e}");
}

/// `‖X_f Wᵀ − X Qᵀ‖² / ‖X_f Wᵀ‖²`.
fn output_error(golden: &Golden, weight: &Array2<f32>, quantised: &Array2<f32>) -> f64 {
    let [x, float] = ["X", "X_fp"].map(|name| golden.matrix(name).mapv(f64::from));
    let target = float.dot(&weight.mapv(f64::from).t());
    let off = &target - &x.dot(&quantised.mapv(f64::from).t());
    off.mapv(|e| e * e).sum() / target.mapv(|e| e * e).sum()
}

fn check(case: &Case<'_>, golden: &Golden, name: &str, weight: &Array2<f32>) {
    let config =
        GptaqConfig { gptq: case.config.clone(), alpha: case.number("alpha"), variant: Variant::Official };
    let factor = prepare(hessian(golden), &case.settings, Par::Seq).unwrap();
    let all = factor.order().is_some();
    let correction =
        Correction::new(cross(golden, all), &factor, config.alpha, config.variant, Par::Seq).unwrap();
    let result = gptaq(weight.view(), &factor, &correction, &config, Par::Seq).unwrap();

    for (column, &group) in golden.vector(&format!("{name}.g_idx")).iter().enumerate() {
        assert_eq!(result.matrix.groups().of(column), group as usize, "{name}: group of column {column}");
    }
    if case.has("perm") {
        let perm = golden.vector(&format!("{name}.perm"));
        assert!(factor.order().unwrap().iter().zip(&perm).all(|(&a, &b)| a as f32 == b), "{name}: order");
    }
    let codes = result.matrix.levels().mapv(|l| f32::from(l) - case.offset);
    let want = case.matrix("codes");
    let wrong = |row: usize| codes.row(row).iter().zip(want.row(row)).filter(|(a, b)| a != b).count();
    let different: usize = (0..weight.nrows()).map(wrong).sum();
    assert!(different * 1000 <= codes.len(), "{name}: {different} of {} codes differ", codes.len());
    same(&format!("{name}: scales"), result.matrix.scales(), &case.matrix("scale"), 1e-5);
    let zeros = result.matrix.zeros().mapv(|z| z - case.offset);
    assert_eq!(zeros, case.matrix("zero"), "{name}: zero levels");

    let loss = close(name, result.loss(), case.number("loss"), 1e-3);
    let rows = golden.vector(&format!("{name}.losses_row"));
    let clean: Vec<usize> = (0..weight.nrows()).filter(|&row| wrong(row) == 0).collect();
    for &row in &clean {
        let what = format!("{name}: loss of row {row}");
        close(&what, result.row_losses[row], f64::from(rows[row]), 1e-3);
    }
    let quantised = result.matrix.dequantize();
    let output = close(name, output_error(golden, weight, &quantised), case.number("out_rel_err"), 1e-3);

    // Where the file has it, the weight as each column was rounded: our reference's, whose codes are ours.
    let problem = Prepared::new(&hessian(golden).finish().unwrap(), all, case.settings.damping);
    let p = problem.p(&problem.cross(&cross(golden, true).finish().unwrap()), config.alpha);
    let asymmetric = Asymmetric { p: &p, variant: Variant::Official };
    let reference = published_with(weight, &problem, Some(&asymmetric), &config.gptq);
    // A row whose codes differ does so first where the weight was within float noise of a half step; what follows there
    // answers another problem.
    for row in (0..weight.nrows()).filter(|row| !clean.contains(row)) {
        let first =
            (0..weight.ncols()).map(|k| problem.column(k)).find(|&c| codes[(row, c)] != want[(row, c)]);
        let column = first.unwrap();
        let scale = result.matrix.scales()[(row, result.matrix.groups().of(column))];
        let steps = reference.updated[(row, column)] / f64::from(scale);
        let distance = (steps - steps.floor() - 0.5).abs();
        assert!(distance < 1e-4, "{name} ({row}, {column}): {distance} of a step from a half step");
    }
    for (part, got) in [("Q", quantised.mapv(f64::from)), ("w_at_quant", reference.updated)] {
        if case.has(part) {
            let want = case.matrix(part).mapv(f64::from);
            let largest = want.iter().fold(0.0_f64, |a, v| a.max(v.abs()));
            for &row in &clean {
                for (j, (a, b)) in got.row(row).iter().zip(want.row(row)).enumerate() {
                    assert!((a - b).abs() <= 1e-4 * largest, "{name} {part} ({row}, {j}): {a} vs {b}");
                }
            }
        }
    }
    println!(
        "{name:24} {} bits, {different} of {} codes in {} rows, loss {loss:.1e}, output {output:.1e}",
        case.bits.get(),
        codes.len(),
        weight.nrows() - clean.len()
    );
}

#[test]
fn every_case_of_the_golden_file() {
    let Some(golden) = Golden::shared("gptaq.safetensors") else { return };
    assert_eq!(golden.cases().len(), 14);
    same("H", &hessian(&golden).finish().unwrap(), &golden.matrix("H"), 1e-5);
    let d = golden.matrix("dXXT");
    same("D", &cross(&golden, true).finish().unwrap(), &d, 1e-5);
    let weight = golden.matrix("W");
    for precision in [Precision::F32, Precision::F64] {
        for name in golden.cases().keys() {
            check(&Case::new(&golden, name, precision), &golden, name, &weight);
        }
    }

    // P as the published code forms it, from both of ours: the official one as it is, the exact one as P = M̃ diag(R) U.
    let case = Case::new(&golden, "b4.sym", Precision::F32);
    let factor = prepare(hessian(&golden), &case.settings, Par::Seq).unwrap();
    assert_eq!(factor.report().dead_columns, [40]);
    let n = factor.n();
    let r = Array2::from_shape_fn((n, n), |(j, k)| {
        let unit = if j <= k { f64::from(factor.panels.at(j, k)) } else { 0.0 };
        unit * f64::from(factor.panels.diagonal()[k])
    });
    let u = inverse(&r);
    same("U", &u.mapv(|x| x as f32), &golden.matrix("Hinv_upper"), 1e-4);
    for (variant, stored) in [
        (Variant::Exact, false),
        (Variant::Official, false),
        (Variant::Exact, true),
        (Variant::Official, true),
    ] {
        let cross =
            if stored { CrossGram::from_matrix(d.clone(), 6).unwrap() } else { cross(&golden, false) };
        let correction = Correction::new(cross, &factor, 0.25, variant, Par::Seq).unwrap();
        let coupling = correction.coupling.as_ref().unwrap();
        let held = Array2::from_shape_fn((n, n), |(j, k)| {
            let scale = if variant == Variant::Exact { r[(k, k)] } else { 1.0 };
            if j < k { f64::from(coupling.at(j, k)) * scale } else { 0.0 }
        });
        let p = if variant == Variant::Exact { held.dot(&u) } else { held };
        same(&format!("P, {variant:?}"), &p.mapv(|x| x as f32), &golden.matrix("P.alpha0.25"), 1e-4);
    }
}
