//! The LAPACK backend beside the native one: the same factors to rounding, and with them what every solver makes.

use ndarray::{Array2, array};
use quant_core::{Bits, Convention, Variant};
use quant_kernels::{Compute, Par};
use quant_testkit::Numbers;

use super::{grid, hessian};
use crate::{
    ActOrder, BillmConfig, Correction, CrossGram, DampingUnit, Factor, FactorBackend, FactorSettings,
    GptaqConfig, GptqConfig, Hessian, Outcome, Precision, QronosConfig, Retarget, SlimConfig, SlimFactor,
    billm, gptaq, gptq, prepare, qronos, slim,
};

/// Passes what the native one passes: same factor to rounding, same pivots refused, same codes.
#[test]
fn lapack_agrees_with_the_native_backend() {
    let mut noise = Numbers::new(12);
    for (n, act_order) in [(1, false), (40, true), (300, false), (700, true)] {
        let x = noise.activations(2 * n + 5, n);
        let weight = noise.normals(20, n);
        for precision in [Precision::F32, Precision::F64] {
            let native = FactorSettings { act_order, precision, ..FactorSettings::default() };
            let lapack = FactorSettings { backend: FactorBackend::Lapack, ..native };
            let native = prepare(hessian(&x), &native, Par::Seq).unwrap();
            let lapack = prepare(hessian(&x), &lapack, Par::Seq).unwrap();
            assert_eq!((lapack.report().attempts.len(), lapack.report().precision_used()), (1, precision));
            assert!(lapack.report().residual() < 1e-5);
            let mut worst = 0.0_f32;
            for k in 0..n {
                for j in 0..=k {
                    worst = worst.max((native.panels.at(j, k) - lapack.panels.at(j, k)).abs());
                }
            }
            let act_order = if act_order { ActOrder::Dynamic } else { ActOrder::None };
            let grid = grid(Convention::QAsym, 4);
            let config = GptqConfig { group: Some(64), act_order, ..GptqConfig::new(grid) };
            let solve =
                |factor| gptq(weight.view(), factor, &config, Par::Seq).unwrap().matrix.levels().to_owned();
            let (a, b) = (solve(&native), solve(&lapack));
            let differ = a.iter().zip(&b).filter(|(a, b)| a != b).count();
            println!("n {n}, {precision}: factors differ by {worst:.1e}, {differ} of {} codes", a.len());
            assert!(worst < if precision == Precision::F32 { 1e-3 } else { 1e-6 });
            assert!(differ * 1000 <= a.len());
        }
    }
    let h = Hessian::from_matrix(array![[1.0_f32, 1.02], [1.02, 1.0]], 2).unwrap();
    let lapack = FactorSettings { backend: FactorBackend::Lapack, ..FactorSettings::default() };
    let report = prepare(h, &lapack, Par::Seq).unwrap();
    assert_eq!(report.report().attempts.len(), 15);
    assert!(matches!(report.report().attempts[0].outcome, Outcome::Pivot { column: 0 }));
}

/// Both backends' values of one solver, `[out, in]`.
fn both(settings: &FactorSettings, solve: impl Fn(&FactorSettings) -> Array2<f32>) -> [Array2<f32>; 2] {
    [FactorBackend::Native, FactorBackend::Lapack]
        .map(|backend| solve(&FactorSettings { backend, ..*settings }))
}

/// The solvers that came after GPTQ, each with what it prepares from the factor: few codes may fall the other way, and the error of
/// the outputs is the same.
#[test]
fn every_solver_makes_the_same_of_lapack_factors() {
    let mut noise = Numbers::new(29);
    for n in [64, 300] {
        let x = noise.activations(2 * n + 5, n);
        let float = &x + &(noise.normals(2 * n + 5, n) * 0.1);
        let weight = noise.normals(24, n);
        let config = GptqConfig { group: Some(32), ..GptqConfig::new(grid(Convention::QAsym, 3)) };
        let prepared = |settings: &FactorSettings| prepare(hessian(&x), settings, Par::Seq).unwrap();
        let crossed = |all| {
            let mut cross = CrossGram::new(n, all);
            cross.add(float.view(), x.view(), 1, Compute::F32, Par::Seq).unwrap();
            cross
        };
        let eigen = DampingUnit::LargestEigenvalue;
        let plain = FactorSettings::default();
        let exact = FactorSettings { precision: Precision::F64, ..plain };
        let moved = FactorSettings { damping: 1e-3, damping_unit: eigen, keep_matrix: true, ..exact };
        let sample = noise.activations(40, n);
        let solve_gptaq = |settings: &FactorSettings| {
            let factor: Factor = prepared(settings);
            let correction =
                Correction::new(crossed(false), &factor, 0.25, Variant::Exact, Par::Seq).unwrap();
            let config = GptaqConfig::new(config.clone());
            gptaq(weight.view(), &factor, &correction, &config, Par::Seq).unwrap().matrix.dequantize()
        };
        let solve_qronos = |settings: &FactorSettings| {
            let factor = prepared(settings);
            let retarget = Retarget::new(crossed(true), &factor, weight.nrows(), Par::Seq).unwrap();
            let config = GptqConfig { static_groups: true, sweeps: 2, ..config.clone() };
            let config = QronosConfig::new(config);
            qronos(weight.view(), &factor, &retarget, &config, Par::Seq).unwrap().rounded.matrix.dequantize()
        };
        let solve_billm = |settings: &FactorSettings| {
            let config = BillmConfig { block: 64, ..BillmConfig::default() };
            billm(weight.view(), &prepared(settings), &config, Par::Seq).unwrap().matrix.dequantize()
        };
        let solve_slim = |settings: &FactorSettings| {
            let factor = SlimFactor::new(hessian(&x), settings, Variant::Exact, Par::Seq).unwrap();
            let config = SlimConfig::new(Bits::new(3).unwrap(), 16);
            slim(weight.view(), &factor, sample.view(), None, &config, Par::Seq).unwrap().matrix.dequantize()
        };
        let error =
            |values: &Array2<f32>| (x.dot(&values.t()) - float.dot(&weight.t())).mapv(|e| e * e).sum();
        for (name, [native, lapack]) in [
            ("gptaq, f32", both(&plain, solve_gptaq)),
            ("gptaq, f64", both(&exact, solve_gptaq)),
            ("qronos", both(&moved, solve_qronos)),
            ("billm", both(&plain, solve_billm)),
            ("slim-llm", both(&plain, solve_slim)),
        ] {
            let largest = native.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            let differ = native.iter().zip(&lapack).filter(|(a, b)| (*a - *b).abs() > 1e-4 * largest).count();
            let change = error(&lapack) / error(&native) - 1.0;
            println!("{name}, n {n}: {differ} of {} values differ, error {change:+.1e}", native.len());
            assert!(differ * 100 <= native.len(), "{name}, n {n}: {differ} of {}", native.len());
            assert!(change.abs() < 1e-2, "{name}, n {n}: {change}");
        }
    }
}
