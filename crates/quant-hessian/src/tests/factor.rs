//! Preparation of the factor: values, escalation, refusals.

use ndarray::{Array2, array};
use quant_kernels::{Compute, Par};

use super::hessian;
use super::reference::Prepared;
use crate::{Attempt, FactorSettings, Hessian, HessianError, Outcome, Precision, prepare};
use quant_testkit::Numbers;

fn settings() -> FactorSettings {
    FactorSettings::default()
}

#[test]
fn the_factor_reproduces_the_damped_hessian() {
    let mut noise = Numbers::new(1);
    for n in [1, 7, 64, 200, 600] {
        let x = noise.activations(n + 20, n);
        for act_order in [false, true] {
            let want = Prepared::new(&hessian(&x).finish().unwrap(), act_order, 0.01);
            let reference = want.panels();
            for precision in [Precision::F32, Precision::F64] {
                let settings = FactorSettings { act_order, precision, ..settings() };
                let factor = prepare(hessian(&x), &settings, Par::new(2)).unwrap();
                assert_eq!(factor.order(), want.order.as_deref());
                let mut worst = 0.0_f64;
                for k in 0..n {
                    for j in 0..=k {
                        worst = worst.max((f64::from(factor.panels.at(j, k)) - reference.at(j, k)).abs());
                    }
                    let pivot = f64::from(factor.panels.diagonal()[k]) / reference.diagonal()[k] - 1.0;
                    worst = worst.max(pivot.abs());
                }
                let report = factor.report();
                println!(
                    "n {n}, act-order {act_order}, {precision}: residual {:.1e}, factor {worst:.1e}",
                    report.residual()
                );
                assert!(worst < 1e-3, "{worst:e}");
                assert!(report.residual() < 1e-5);
                assert_eq!((report.attempts.len(), report.precision_used()), (1, precision));
                assert_eq!(factor.n(), n);
                assert!(
                    report.min_diagonal <= report.mean_diagonal
                        && report.mean_diagonal <= report.max_diagonal
                );
                assert!(report.pivot_range.0 > 0.0 && report.pivot_range.0 <= report.pivot_range.1);
            }
        }
    }
}

/// Fewer tokens than channels: singular without damping, fine with it.
#[test]
fn a_rank_deficient_hessian_is_carried_by_the_damping() {
    let mut noise = Numbers::new(2);
    let x = noise.activations(20, 300);
    let factor = prepare(hessian(&x), &settings(), Par::Seq).unwrap();
    assert_eq!(factor.report().damping_used(), 0.01);
    assert!(
        (factor.report().lambda() - 0.01 * factor.report().mean_diagonal).abs()
            < 1e-12 * factor.report().lambda().abs()
    );
    let duplicated = Array2::from_shape_fn((64, 40), |(i, _)| (i as f32 - 31.5) / 10.0);
    assert!(prepare(hessian(&duplicated), &settings(), Par::Seq).is_ok());
}

#[test]
fn damping_grows_in_steps_on_a_fresh_copy() {
    // Eigenvalues 2.02 and -0.02: the first fraction above 0.02 on the ladder 0.01 + 0.0015 k is k = 7.
    let h = array![[1.0_f32, 1.02], [1.02, 1.0]];
    let build = || Hessian::from_matrix(h.clone(), 2).unwrap();
    let factor = prepare(build(), &settings(), Par::Seq).unwrap();
    let report = factor.report();
    assert!((report.damping_used() - 0.0205).abs() < 1e-12 && (report.lambda() - 0.0205).abs() < 1e-8);
    assert_eq!(
        report.attempts.len(),
        15,
        "seven dampings failed in both precisions, the eighth worked at once"
    );
    for (i, attempt) in report.attempts.iter().enumerate() {
        assert_eq!(attempt.precision, if i % 2 == 0 { Precision::F32 } else { Precision::F64 });
        assert!((attempt.damping - (0.01 + 0.0015 * (i / 2) as f64)).abs() < 1e-12);
        let accepted = matches!(attempt.outcome, Outcome::Accepted { .. });
        assert_eq!(accepted, i == 14);
        assert!(accepted || matches!(attempt.outcome, Outcome::Pivot { column: 0 }), "{:?}", attempt.outcome);
    }
    let once = FactorSettings { f64_retry: false, ..settings() };
    assert_eq!(prepare(build(), &once, Par::Seq).unwrap().report().attempts.len(), 8);
    let direct = FactorSettings { damping: 0.0205, ..settings() };
    let direct = prepare(build(), &direct, Par::Seq).unwrap();
    assert_eq!(direct.panels.at(0, 1), factor.panels.at(0, 1), "failed dampings must leave nothing behind");
}

#[test]
fn a_hopeless_hessian_is_refused_with_its_history() {
    let build = || Hessian::from_matrix(array![[1.0_f32, 5.0], [5.0, 1.0]], 2).unwrap();
    let error = prepare(build(), &FactorSettings { max_dampings: 3, ..settings() }, Par::Seq).unwrap_err();
    let text = error.to_string();
    let HessianError::NotPositiveDefinite { attempts } = error else { panic!("{error}") };
    assert_eq!(attempts.len(), 6);
    assert!(text.contains("0.0130") && text.contains("input channel 0"), "{text}");
    // The ladder ends below 1 however many steps are allowed.
    let steep =
        FactorSettings { damping: 0.5, damping_step: 0.3, max_dampings: 100, f64_retry: false, ..settings() };
    let Err(HessianError::NotPositiveDefinite { attempts }) = prepare(build(), &steep, Par::Seq) else {
        panic!()
    };
    assert_eq!(attempts.len(), 2);
}

#[test]
fn an_inaccurate_f32_factor_is_repeated_in_f64() {
    let mut noise = Numbers::new(4);
    let x = noise.activations(400, 120);
    let strict = FactorSettings { residual_tolerance: 1e-11, ..settings() };
    let factor = prepare(hessian(&x), &strict, Par::Seq).unwrap();
    let report = factor.report();
    assert_eq!(report.attempts.len(), 2);
    assert!(
        matches!(report.attempts[0].outcome, Outcome::Residual { residual, tolerance: 1e-11 } if residual > 1e-11)
    );
    assert_eq!(report.precision_used(), Precision::F64);
    assert_eq!(report.damping_used(), 0.01);
}

/// A damping of 1e-4 with an error of 1e-3 would answer another problem; the default stays 1e-3.
#[test]
fn the_accepted_residual_follows_the_damping() {
    // A Hessian of `units` least numbers: the damped one is no whole number of them, so that f32 is off by a known part.
    let attempts = |damping, most, units| {
        let settings = FactorSettings { damping, residual_tolerance: most, ..settings() };
        let h = Hessian::from_matrix(array![[f32::from_bits(units)]], 2).unwrap();
        prepare(h, &settings, Par::Seq).unwrap().report().attempts.clone()
    };
    for (damping, most, units, accepted) in [
        (0.01, 1e-3, 50, 1e-3),
        (0.2, 1e-3, 3, 1e-3),
        (0.005, 1e-3, 100, 5e-4),
        (1e-3, 1e-3, 500, 1e-4),
        (2e-5, 1e-3, 20_000, 1e-5),
        (0.2, 1e-2, 3, 1e-2),
        (0.2, 1.0, 3, 2e-2),
        (1e-3, 1e-6, 500, 1e-6),
    ] {
        let attempts = attempts(damping, most, units);
        let [first, second] = attempts.as_slice() else { panic!("{damping}: {attempts:?}") };
        let Outcome::Residual { residual, tolerance } = first.outcome else { panic!("{first:?}") };
        assert!(residual > tolerance && (tolerance / accepted - 1.0).abs() < 1e-12, "{damping}: {first:?}");
        assert_eq!(second.precision, Precision::F64);
        let text = first.outcome.to_string();
        assert!(text.ends_with(&format!("at most {accepted:.1e} is accepted")), "{text}");
    }
    // 5405.4 units are 5405 in f32: an error of 7e-5, below a tenth of 1e-3.
    let once = attempts(1e-3, 1e-3, 5400);
    assert!(
        matches!(once.as_slice(), [Attempt { outcome: Outcome::Accepted { residual }, .. }] if *residual > 5e-5),
        "{once:?}"
    );
    assert_eq!(settings().tolerance(0.01), 1e-3, "the default, to the bit");
    assert_eq!(settings().tolerance(0.0), 1e-5);
}

#[test]
fn memory_is_what_is_announced() {
    let mut noise = Numbers::new(6);
    let n = 1100;
    let h = hessian(&noise.normals(8, n));
    assert_eq!(h.bytes(), Hessian::bytes_for(n));
    let factor = prepare(h, &settings(), Par::Seq).unwrap();
    assert!(factor.bytes() < n * n * 4 * 8 / 10);
    // Pages, not elements, and the f64 retry where it is allowed.
    let once = FactorSettings { f64_retry: false, ..settings() };
    let triangle = |n: usize| n * (n + 1) / 2 * size_of::<f32>();
    let peak = |n: usize, settings: &FactorSettings| crate::Factor::peak_bytes(n, settings) as f64;
    // A row of 1536 floats is one and a half pages: of two triangles 89 % of both squares are touched.
    assert!((peak(1536, &once) / (2 * triangle(1536)) as f64 - 1.78).abs() < 0.05);
    assert!((peak(18944, &once) / (2 * triangle(18944)) as f64 - 1.0).abs() < 0.1);
    assert_eq!(peak(1536, &settings()), peak(1536, &FactorSettings { precision: Precision::F64, ..once }));
    assert!(peak(1536, &settings()) > 1.2 * peak(1536, &once));
}

#[test]
fn bad_hessians_and_settings_are_named() {
    let empty = prepare(Hessian::new(3), &settings(), Par::Seq).unwrap_err();
    assert_eq!(empty, HessianError::Empty { columns: 3 });
    for value in [f32::NAN, f32::INFINITY, 1e30] {
        let mut h = Hessian::new(3);
        h.add(array![[1.0, 2.0, 3.0], [0.5, value, 0.0]].view(), 1, Compute::F32, Par::Seq).unwrap();
        let error = prepare(h, &settings(), Par::Seq).unwrap_err();
        assert!(matches!(error, HessianError::NotFiniteHessian { column: 1, .. }), "{error}");
    }
    let mut h = Hessian::new(3);
    assert!(matches!(
        h.add(Array2::zeros((2, 4)).view(), 1, Compute::F32, Par::Seq),
        Err(HessianError::Shape { .. })
    ));
    assert!(Hessian::from_matrix(Array2::zeros((2, 3)), 1).is_err());
    assert!(Hessian::from_matrix(Array2::zeros((2, 2)), 0).is_err());
    for bad in [
        FactorSettings { damping: 1.0, ..settings() },
        FactorSettings { damping: f64::NAN, ..settings() },
        FactorSettings { damping_step: -0.1, ..settings() },
        FactorSettings { max_dampings: 0, ..settings() },
        FactorSettings { residual_tolerance: 0.0, ..settings() },
    ] {
        let h = Hessian::from_matrix(Array2::eye(2), 2).unwrap();
        assert!(matches!(prepare(h, &bad, Par::Seq), Err(HessianError::Setting { .. })), "{bad:?}");
    }
    // All channels dead: every diagonal entry is 1.
    let dead =
        prepare(Hessian::from_matrix(Array2::zeros((4, 4)), 2).unwrap(), &settings(), Par::Seq).unwrap();
    assert_eq!(dead.report().dead_columns, [0, 1, 2, 3]);
}
