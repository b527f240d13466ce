//! Properties of `billm.md` section 7, and the published formulation in f64 as a reference.

use ndarray::{Array1, Array2, Axis, Slice};
use proptest::prelude::*;
use quant_core::Variant;
use quant_kernels::Par;
use quant_testkit::Numbers;

use super::reference::{Prepared, cholesky, inverse};
use super::{factor, hessian};
use crate::{BillmConfig, BillmResult, FactorSettings, Hessian, HessianError, SalientMetric, billm, prepare};

/// A binary code of the marked numbers.
fn code(v: &[f64], marked: &[bool]) -> Vec<f64> {
    let members: Vec<f64> = v.iter().zip(marked).filter(|(_, m)| **m).map(|(v, _)| *v).collect();
    let count = members.len().max(1) as f64;
    let mean = members.iter().sum::<f64>() / count;
    let spread = members.iter().map(|v| (v - mean).abs()).sum::<f64>() / count;
    let of =
        |(v, m): (&f64, &bool)| if *m { mean + spread * if *v >= mean { 1.0 } else { -1.0 } } else { 0.0 };
    v.iter().zip(marked).map(of).collect()
}

/// As many codes, each of what those before it leave.
fn codes(v: &[f64], marked: &[bool], order: usize) -> Vec<f64> {
    let mut sum = vec![0.0; v.len()];
    for _ in 0..order {
        let rest: Vec<f64> = v.iter().zip(&sum).map(|(v, s)| v - s).collect();
        sum.iter_mut().zip(code(&rest, marked)).for_each(|(s, c)| *s += c);
    }
    sum
}

/// Members of a group, by row and column, and the number of their codes.
type Group<'a> = (&'a dyn Fn(usize, usize) -> bool, usize);

/// A matrix coded in groups.
fn coded(t: &Array2<f64>, groups: &[Group<'_>]) -> Array2<f64> {
    let mut sum = Array2::zeros(t.dim());
    for (i, row) in t.rows().into_iter().enumerate() {
        for (member, order) in groups {
            let marked: Vec<bool> = (0..row.len()).map(|j| member(i, j)).collect();
            sum.row_mut(i).iter_mut().zip(codes(&row.to_vec(), &marked, *order)).for_each(|(s, c)| *s += c);
        }
    }
    sum
}

fn mean_square(d: &Array2<f64>) -> f64 {
    d.iter().map(|v| v * v).sum::<f64>() / d.len() as f64
}

struct Reference {
    q: Array2<f64>,
    salient: Vec<usize>,
    salient_errors: Vec<Vec<f64>>,
    threshold_errors: Vec<Vec<f64>>,
}

/// Section 2, word for word: everything from its definition, the inverse formed.
fn reference(weight: &Array2<f32>, h: &Array2<f32>, config: &BillmConfig) -> Reference {
    let problem = Prepared::new(h, false, 0.01);
    let u = cholesky(&inverse(&problem.h)).reversed_axes();
    let mut w = weight.mapv(f64::from);
    (0..w.ncols()).filter(|&j| problem.dead[j]).for_each(|j| w.column_mut(j).fill(0.0));
    let mut found = Reference {
        q: Array2::zeros(w.dim()),
        salient: Vec::new(),
        salient_errors: Vec::new(),
        threshold_errors: Vec::new(),
    };
    for start in (0..w.ncols()).step_by(config.block) {
        let end = (start + config.block).min(w.ncols());
        let block = w.slice_axis(Axis(1), Slice::from(start..end)).to_owned();
        let salience = match config.metric {
            SalientMetric::Magnitude => block.clone(),
            SalientMetric::Hessian => Array2::from_shape_fn(block.dim(), |(i, j)| {
                (block[(i, j)] / u[(start + j, start + j)]).powi(2)
            }),
        };
        let t = if config.variant == Variant::Official { &salience } else { &block };
        let scores: Vec<f64> =
            salience.columns().into_iter().map(|c| c.iter().map(|v| v.abs()).sum()).collect();
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let most = 49.min(order.len() - 1).max(1);
        let errors: Vec<f64> = (1..=most)
            .map(|c| {
                let top = &order[..c];
                let salient = |_: usize, j: usize| top.contains(&j);
                let rest = |_: usize, j: usize| !top.contains(&j);
                mean_square(&(t - &coded(t, &[(&salient, 2), (&rest, 2)])))
            })
            .collect();
        let smallest = |e: &[f64]| (0..e.len()).fold(0, |best, i| if e[i] < e[best] { i } else { best });
        let top = order[..=smallest(&errors)].to_vec();
        let mut sizes: Vec<f64> =
            t.indexed_iter().map(|((_, j), v)| if top.contains(&j) { 0.0 } else { v.abs() }).collect();
        sizes.sort_by(f64::total_cmp);
        let thresholds: Vec<f64> = (10..=90)
            .map(|p| {
                let rank = f64::from(p) / 100.0 * (sizes.len() - 1) as f64;
                let below = rank.floor() as usize;
                let above = (below + 1).min(sizes.len() - 1);
                sizes[below] + (sizes[above] - sizes[below]) * (rank - below as f64)
            })
            .collect();
        let salient = |_: usize, j: usize| top.contains(&j);
        let split = |threshold: f64, of: &Array2<f64>| {
            let small = |i: usize, j: usize| !top.contains(&j) && t[(i, j)].abs() < threshold;
            let large = |i: usize, j: usize| !top.contains(&j) && t[(i, j)].abs() >= threshold;
            coded(of, &[(&small, 1), (&large, 1), (&salient, 2)])
        };
        let split_errors: Vec<f64> = thresholds.iter().map(|&p| mean_square(&(t - &split(p, t)))).collect();
        let q = split(thresholds[smallest(&split_errors)], &block);
        if config.feedback {
            for j in start..end {
                let error = Array1::from_shape_fn(w.nrows(), |i| {
                    (block[(i, j - start)] - q[(i, j - start)]) / u[(j, j)]
                });
                for k in end..w.ncols() {
                    w.column_mut(k).scaled_add(-u[(j, k)], &error);
                }
            }
        }
        found.q.slice_axis_mut(Axis(1), Slice::from(start..end)).assign(&q);
        found.salient.push(top.len());
        found.salient_errors.push(errors);
        found.threshold_errors.push(split_errors);
    }
    found
}

/// Correlated inputs `[tokens, n]`, the fourth dead if `dead`.
fn inputs(n: usize, dead: bool) -> Array2<f32> {
    let mut x = Numbers::new(n as u64).activations(3 * n, n);
    if dead {
        x.column_mut(3).fill(0.0);
    }
    x
}

fn config(metric: SalientMetric, block: usize, variant: Variant) -> BillmConfig {
    BillmConfig { metric, block, variant, feedback: true }
}

fn solve(weight: &Array2<f32>, x: &Array2<f32>, config: &BillmConfig) -> BillmResult {
    billm(weight.view(), &factor(x, false), config, Par::Seq).unwrap()
}

const KINDS: [(SalientMetric, Variant); 3] = [
    (SalientMetric::Hessian, Variant::Official),
    (SalientMetric::Hessian, Variant::Exact),
    (SalientMetric::Magnitude, Variant::Official),
];

/// Every error of both searches, what they choose, and the weight, also with a narrow last block.
#[test]
fn it_is_the_published_formulation() {
    let (n, out) = (90, 17);
    let x = inputs(n, true);
    let weight = Numbers::new(8).normals(out, n);
    let h = hessian(&x).finish().unwrap();
    for (metric, variant) in KINDS {
        for (block, feedback) in [(64, true), (64, false), (30, true), (128, true)] {
            let config = BillmConfig { feedback, ..config(metric, block, variant) };
            let (got, want) = (solve(&weight, &x, &config), reference(&weight, &h, &config));
            for (b, found) in got.blocks.iter().enumerate() {
                let what = format!("{metric:?} {variant:?}, block {b} of {block}");
                for (got, want) in [
                    (&found.salient_errors, &want.salient_errors[b]),
                    (&found.threshold_errors, &want.threshold_errors[b]),
                ] {
                    assert_eq!(got.len(), want.len(), "{what}");
                    for (i, (a, b)) in got.iter().zip(want).enumerate() {
                        assert!((a - b).abs() <= 2e-3 * b, "{what}, {i}: {a} instead of {b}");
                    }
                }
                // The error at what was chosen is the smallest, by the reference as well.
                assert_eq!(found.salient.len(), want.salient[b], "{what}");
            }
            let q = got.matrix.dequantize().mapv(f64::from);
            let error = (mean_square(&(&q - &want.q)) / mean_square(&want.q)).sqrt();
            assert!(error < 1e-3, "{metric:?} {variant:?} {block}: {error:e}");
        }
    }
}

/// Without correlations nothing is fed back.
#[test]
fn a_diagonal_hessian_is_no_feedback() {
    let weight = Numbers::new(9).normals(20, 128);
    let h = Hessian::from_matrix(Array2::eye(128) * 3.0, 2).unwrap();
    let factor = prepare(h, &FactorSettings::default(), Par::Seq).unwrap();
    for (metric, variant) in KINDS {
        let config = config(metric, 64, variant);
        let without = BillmConfig { feedback: false, ..config.clone() };
        let run = |config| billm(weight.view(), &factor, config, Par::Seq).unwrap();
        assert_eq!(run(&config), run(&without));
    }
}

/// A weight twice as large has a code twice as large, to the bit.
#[test]
fn codes_scale_with_the_weight() {
    let x = inputs(128, false);
    let weight = Numbers::new(10).normals(30, 128);
    for (metric, variant) in KINDS {
        let config = config(metric, 64, variant);
        let (once, twice) = (solve(&weight, &x, &config), solve(&(&weight * 2.0), &x, &config));
        assert_eq!(once.matrix.codes(), twice.matrix.codes());
        assert_eq!(once.matrix.dequantize() * 2.0, twice.matrix.dequantize());
    }
}

/// No code is better with another spread, and a second code never makes a row worse.
#[test]
fn codes_are_the_best_around_their_mean() {
    let weight = Numbers::new(11).normals(40, 100);
    let x = inputs(100, false);
    let config = BillmConfig { feedback: false, ..config(SalientMetric::Hessian, 50, Variant::Exact) };
    let result = solve(&weight, &x, &config);
    let matrix = &result.matrix;
    for (row, w) in weight.rows().into_iter().enumerate() {
        for block in 0..2 {
            let codes = matrix.row_codes(row, block);
            let columns = || (50 * block..50 * (block + 1)).filter(|&j| !matrix.salient()[j]);
            for (large, code) in [(false, codes.small), (true, codes.large)] {
                let error = |factor: f32| {
                    let members = columns().filter(|&j| (matrix.codes()[(row, j)] & 2 != 0) == large);
                    let part = |j: usize| {
                        let size = factor * code.spread;
                        let q = if w[j] >= code.mean { code.mean + size } else { code.mean - size };
                        f64::from(w[j] - q).powi(2)
                    };
                    members.map(part).sum::<f64>()
                };
                assert!(error(1.0) <= error(1.01) + 1e-9 && error(1.0) <= error(0.99) + 1e-9);
            }
            let salient = || (50 * block..50 * (block + 1)).filter(|&j| matrix.salient()[j]);
            let q = matrix.dequantize();
            let twice: f64 = salient().map(|j| f64::from(w[j] - q[(row, j)]).powi(2)).sum();
            let first = |j: usize| codes.salient.value(w[j] >= codes.salient.mean);
            let once: f64 = salient().map(|j| f64::from(w[j] - first(j)).powi(2)).sum();
            assert!(twice <= once + 1e-6, "{row} {block}: {twice} after {once}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = inputs(60, false);
    let weight = Numbers::new(12).normals(5, 60);
    let plain = factor(&x, false);
    let run = |weight: &Array2<f32>, factor: &crate::Factor, block| {
        let config = config(SalientMetric::Hessian, block, Variant::Exact);
        billm(weight.view(), factor, &config, Par::Seq)
    };
    let ordered = factor(&x, true);
    assert!(matches!(run(&weight, &ordered, 60), Err(HessianError::Order { .. })));
    assert!(matches!(run(&weight, &plain, 0), Err(HessianError::Setting { name: "block", .. })));
    let narrow = weight.slice_axis(Axis(1), Slice::from(..59)).to_owned();
    assert!(matches!(run(&narrow, &plain, 60), Err(HessianError::Shape { what: "BiLLM weight", .. })));
    let mut wild = weight.clone();
    wild[(3, 50)] = f32::NAN;
    assert!(matches!(run(&wild, &plain, 60), Err(HessianError::Core(_))));
    wild[(3, 50)] = 3e38;
    assert!(matches!(run(&wild, &plain, 20), Err(HessianError::NotFiniteResult { row: 3, .. })));
    // One column, no rows.
    assert_eq!(run(&weight, &plain, 1).unwrap().matrix.dim(), (5, 60));
    assert_eq!(run(&Array2::zeros((0, 60)), &plain, 20).unwrap().matrix.dim(), (0, 60));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// Any number of threads, any shape: the same bytes, of finite numbers, and columns beside a dead one do not know of it.
    #[test]
    fn threads_do_not_matter(out in 1_usize..300, n in 2_usize..100, block in 2_usize..80, threads in 2_usize..6, seed: u64) {
        let x = inputs(n, n > 4);
        let weight = Numbers::new(seed).normals(out, n);
        let factor = factor(&x, false);
        for (metric, variant) in KINDS {
            let config = config(metric, block, variant);
            let one = billm(weight.view(), &factor, &config, Par::Seq).unwrap();
            prop_assert_eq!(&one, &billm(weight.view(), &factor, &config, Par::new(threads)).unwrap());
            prop_assert!(one.matrix.dequantize().iter().all(|v| v.is_finite()));
            prop_assert!(one.blocks.iter().all(|b| (1..=49).contains(&b.salient.len())));
        }
    }
}
