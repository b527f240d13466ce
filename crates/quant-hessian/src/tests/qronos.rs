//! Properties of `qronos.md` section 8, and Qronos against its two steps taken literally: least squares for every column, in f64.

use ndarray::{Array2, Axis, Slice};
use proptest::prelude::*;
use quant_core::{ClipSearch, Convention, QParams, Variant};
use quant_kernels::{Compute, Par};
use quant_testkit::Numbers;

use super::reference::{Prepared, inverse};
use super::{grid, hessian};
use crate::qronos::solve_moved;
use crate::retarget::{Mismatch, Square};
use crate::{
    ActOrder, CrossGram, DampingUnit, Factor, FactorSettings, GptqConfig, HessianError, Precision,
    QronosConfig, QronosResult, Retarget, gptq, prepare, qronos,
};

/// Activations `x` of the quantised model and those of the float model: mixed a little, and noise.
fn streams(noise: &mut Numbers, tokens: usize, n: usize, strength: f32) -> (Array2<f32>, Array2<f32>) {
    let x = noise.activations(tokens, n);
    let mix = noise.normals(n, n) * (strength / (n as f32).sqrt());
    let float = &x + &x.dot(&mix) + &(noise.normals(tokens, n) * (0.5 * strength));
    (float, x)
}

fn cross(float: &Array2<f32>, x: &Array2<f32>) -> CrossGram {
    let mut cross = CrossGram::new(x.ncols(), true);
    cross.add(float.view(), x.view(), 1, Compute::F32, Par::Seq).unwrap();
    cross
}

fn settings(alpha: f64, act_order: bool) -> FactorSettings {
    FactorSettings {
        damping: alpha,
        damping_unit: DampingUnit::LargestEigenvalue,
        act_order,
        precision: Precision::F64,
        ..FactorSettings::default()
    }
}

fn prepared(
    float: &Array2<f32>,
    x: &Array2<f32>,
    alpha: f64,
    act_order: bool,
    rows: usize,
) -> (Factor, Retarget) {
    let factor = prepare(hessian(x), &settings(alpha, act_order), Par::Seq).unwrap();
    let retarget = Retarget::new(cross(float, x), &factor, rows, Par::Seq).unwrap();
    (factor, retarget)
}

/// `‖W X_f − Ŵ X‖² / ‖W X_f‖²`.
fn error(weight: &Array2<f32>, quantised: &Array2<f32>, float: &Array2<f32>, x: &Array2<f32>) -> f64 {
    let target = float.mapv(f64::from).dot(&weight.mapv(f64::from).t());
    let got = x.mapv(f64::from).dot(&quantised.mapv(f64::from).t());
    (&target - &got).mapv(|e| e * e).sum() / target.mapv(|e| e * e).sum()
}

/// The two steps of section 1: `q_t` is the rounding of what is best for the column alone, then all remaining columns are
/// solved for at once. Levels in original column order.
fn literal(
    weight: &Array2<f32>,
    problem: &Prepared,
    lambda: f64,
    d: &Array2<f64>,
    config: &QronosConfig,
) -> Array2<u8> {
    let (out, n) = weight.dim();
    let (h, g) = (&problem.h, &problem.h + d);
    let group = config.gptq.group.unwrap_or(n);
    let params = |row: usize, column: usize| -> QParams {
        let first = column / group * group;
        let values: Vec<f32> = (first..(first + group).min(n)).map(|c| weight[(row, c)]).collect();
        config.gptq.grid.params(&values, config.gptq.clip.as_ref())
    };
    let mut levels = Array2::zeros((out, n));
    for row in 0..out {
        let w = Array2::from_shape_fn((1, n), |(_, k)| f64::from(weight[(row, problem.column(k))]));
        let target = w.dot(&g);
        let mut q = Array2::<f64>::zeros((1, n));
        // What a column is rounded from: of the first, G and H are undamped.
        let others: f64 = (1..n).map(|j| w[(0, j)] * h[(j, 0)]).sum();
        let mut v = (target[(0, 0)] - lambda * w[(0, 0)] - others) / (h[(0, 0)] - lambda);
        if problem.dead[problem.column(0)] {
            v = if config.variant == Variant::Official { 0.0 } else { w[(0, 0)] };
        }
        for t in 0..n {
            let column = problem.column(t);
            let p = params(row, column);
            let level = config.gptq.grid.level(v as f32, p);
            levels[(row, column)] = level as u8;
            q[(0, t)] = f64::from(p.value(level));
            if t + 1 < n {
                let (open, fixed) = (Slice::from(t + 1..), Slice::from(..=t));
                let below = h.slice_axis(Axis(1), open);
                let past = q.slice_axis(Axis(1), fixed).dot(&below.slice_axis(Axis(0), fixed));
                let rest = &target.slice_axis(Axis(1), open) - &past;
                v = rest.dot(&inverse(&below.slice_axis(Axis(0), open).to_owned()))[(0, 0)];
            }
        }
    }
    levels
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Properties 1 to 3, 7 and 8: every grouping, order, block size and convention, with dead channels.
    #[test]
    fn codes_are_those_of_the_two_steps_taken_literally(
        seed: u64,
        n in 1_usize..28,
        out in 1_usize..5,
        alpha in prop_oneof![Just(1e-3), Just(1e-2)],
        group in proptest::option::of(1_usize..30),
        act_order: bool,
        block in prop_oneof![Just(128_usize), 1_usize..30],
        (convention, bits) in proptest::sample::select(vec![
            (Convention::QAsym, 4), (Convention::QAsym, 2), (Convention::QSym, 3), (Convention::QAwq, 3), (Convention::QAsym, 8),
        ]),
        clip: bool,
        official: bool,
        together in proptest::sample::select(vec![1_usize, 1000]),
        dead in proptest::collection::vec(0_usize..28, 0..3),
    ) {
        let mut noise = Numbers::new(seed);
        let (mut float, mut x) = streams(&mut noise, 3 * n + 5, n, 0.1);
        for (i, &column) in dead.iter().enumerate() {
            x.column_mut(column % n).fill(0.0);
            // A channel may be dead in one model and alive in the other.
            if i == 0 {
                float.column_mut(column % n).fill(0.0);
            }
        }
        let weight = noise.normals(out, n);
        let order = if act_order { ActOrder::Static } else { ActOrder::None };
        let config = QronosConfig {
            variant: if official { Variant::Official } else { Variant::Exact },
            ..QronosConfig::new(GptqConfig {
                group,
                clip: clip.then(ClipSearch::default),
                act_order: order,
                block,
                ..GptqConfig::new(grid(convention, bits))
            })
        };
        let h = hessian(&x).finish().unwrap();
        // Any positive number will do here; another test is for how it is found.
        let lambda = alpha * f64::from(h.diag().iter().copied().fold(1.0, f32::max));
        let problem = Prepared::with_lambda(&h, act_order, |_| lambda);
        let d = problem.cross(&cross(&float, &x).finish().unwrap());
        let panels = problem.panels();
        // Rows by position, columns in original order.
        let mut values = Array2::zeros((n, n));
        for (k, row) in d.t().rows().into_iter().enumerate() {
            for (j, &x) in row.iter().enumerate() {
                values[(k, problem.column(j))] = x;
            }
        }
        let square = Square::new(values.into_raw_vec_and_offset().0, 1.0, together, &panels, Par::Seq);
        let first = problem.column(0);
        let mismatch = Mismatch {
            square: Some(&square),
            panels: &panels,
            order: problem.order.as_deref(),
            first_diagonal: if problem.dead[first] { 0.0 } else { f64::from(h[(first, first)]) },
        };
        let same = weight.mapv(f64::from);
        let moved = mismatch.retarget(same.view(), config.dead_first(), Par::Seq).unwrap();
        let got = solve_moved(weight.view(), &moved, &mismatch, &problem.dead, &config, Par::Seq).unwrap();
        let want = literal(&weight, &problem, lambda, &d, &config);
        prop_assert_eq!(got.rounded.matrix.levels(), &want);
    }
}

/// Property 5, and 10: what is aimed at minimises the objective, by the identity of section 1.
#[test]
fn the_loss_is_what_rounding_adds_to_the_objective() {
    let (n, out, alpha) = (40, 6, 1e-3);
    let mut noise = Numbers::new(11);
    let (float, x) = streams(&mut noise, 200, n, 0.2);
    let weight = noise.normals(out, n);
    let (factor, retarget) = prepared(&float, &x, alpha, false, out);
    let config = QronosConfig::new(GptqConfig::new(grid(Convention::QAsym, 3)));
    let result = qronos(weight.view(), &factor, &retarget, &config, Par::Seq).unwrap();

    // `‖W X_f − V X‖² + λ ‖V − W‖²`, in units of H.
    let objective = |v: &Array2<f64>| {
        let w = weight.mapv(f64::from);
        let off = w.dot(&float.mapv(f64::from).t()) - v.dot(&x.mapv(f64::from).t());
        2.0 * off.mapv(|e| e * e).sum() + factor.report().lambda() * (v - &w).mapv(|e| e * e).sum()
    };
    let [h, d] =
        [hessian(&x).finish().unwrap(), cross(&float, &x).finish().unwrap()].map(|m| m.mapv(f64::from));
    let damped = &h + &(Array2::<f64>::eye(n) * factor.report().lambda());
    let w = weight.mapv(f64::from);
    let best = &w + &w.dot(&d).dot(&inverse(&damped));
    let moved = (&best - &w).mapv(|e| e * e).sum().sqrt() / w.mapv(|e| e * e).sum().sqrt();
    assert!((result.shift / moved - 1.0).abs() < 1e-4, "{} {moved}", result.shift);
    let quantised = result.rounded.matrix.dequantize().mapv(f64::from);
    let added = objective(&quantised) - objective(&best);
    let loss = result.rounded.weighted_error();
    assert!((added / loss - 1.0).abs() < 1e-3, "{added} {loss}");
    for step in [-0.01, 0.01] {
        let mut other = best.clone();
        other[(1, 7)] += step;
        assert!(objective(&other) > objective(&best));
    }
}

/// Properties 6 and 14: equal streams leave GPTQ with this damping, dead channels apart, which are rounded and not zeroed.
#[test]
fn equal_streams_are_gptq() {
    let (n, out) = (50, 7);
    let mut noise = Numbers::new(3);
    let mut x = noise.activations(200, n);
    x.column_mut(20).fill(0.0);
    let weight = noise.normals(out, n);
    for act_order in [false, true] {
        let (factor, retarget) = prepared(&x, &x, 1e-3, act_order, out);
        assert!(retarget.is_zero());
        let order = if act_order { ActOrder::Static } else { ActOrder::None };
        let config = GptqConfig { act_order: order, ..GptqConfig::new(grid(Convention::QAsym, 4)) };
        let plain = gptq(weight.view(), &factor, &config, Par::Seq).unwrap();
        let got = qronos(weight.view(), &factor, &retarget, &QronosConfig::new(config), Par::Seq).unwrap();
        assert_eq!(got.shift, 0.0);
        for row in 0..out {
            for column in (0..n).filter(|&c| c != 20) {
                assert_eq!(got.rounded.matrix.levels()[(row, column)], plain.matrix.levels()[(row, column)]);
            }
            let value = got.rounded.matrix.dequantize()[(row, 20)];
            let scale = got.rounded.matrix.scales()[(row, 0)];
            assert!((value - weight[(row, 20)]).abs() <= 0.5001 * scale, "the dead channel is rounded");
        }
    }
}

/// Properties 4, 9 and 11: on streams that differ it is the best, far from the transpose, whatever the scale of the activations.
#[test]
fn it_makes_up_for_a_mismatch() {
    let (n, out) = (64, 24);
    let (mut better, mut total) = (0, [0.0; 3]);
    for seed in 0..10 {
        let mut noise = Numbers::new(100 + seed);
        let (float, x) = streams(&mut noise, 512, n, 0.25);
        let weight = noise.normals(out, n);
        let config = GptqConfig::new(grid(Convention::QAsym, 3));
        let solve = |factor: &Factor, retarget: &Retarget| -> QronosResult {
            qronos(weight.view(), factor, retarget, &QronosConfig::new(config.clone()), Par::Seq).unwrap()
        };
        let (factor, retarget) = prepared(&float, &x, 1e-6, false, out);
        let ours = solve(&factor, &retarget);
        let transposed = cross(&float, &x).finish().unwrap().reversed_axes();
        let transposed = CrossGram::from_matrix(transposed, 1).unwrap();
        let wrong = solve(&factor, &Retarget::new(transposed, &factor, out, Par::Seq).unwrap());
        let plain = gptq(weight.view(), &factor, &config, Par::Seq).unwrap();
        let errors = [&plain.matrix, &ours.rounded.matrix, &wrong.rounded.matrix]
            .map(|m| error(&weight, &m.dequantize(), &float, &x));
        better += usize::from(errors[1] < errors[0]);
        (0..3).for_each(|i| total[i] += errors[i]);

        let (factor, retarget) = prepared(&(&float * 32.0), &(&x * 32.0), 1e-6, false, out);
        assert_eq!(solve(&factor, &retarget).rounded.matrix, ours.rounded.matrix, "lambda is relative");
    }
    println!("gptq, qronos, transposed: {total:?}");
    assert!(better == 10 && total[1] < 0.6 * total[0] && total[2] > 2.0 * total[0]);
}

/// Whether `D` is solved with once for all linears or for each of them, and whatever the threads and the rows beside: the same
/// numbers up to rounding, and to the bit.
#[test]
fn neither_threads_nor_other_rows_show_and_both_ways_agree() {
    let (n, out) = (300, 90);
    let mut noise = Numbers::new(5);
    let (float, x) = streams(&mut noise, 700, n, 0.1);
    let weight = noise.normals(out, n);
    let config =
        QronosConfig::new(GptqConfig { group: Some(64), ..GptqConfig::new(grid(Convention::QAsym, 4)) });
    let mut both = Vec::new();
    for rows in [out, 1000] {
        let (factor, retarget) = prepared(&float, &x, 1e-3, false, rows);
        let one = qronos(weight.view(), &factor, &retarget, &config, Par::Seq).unwrap();
        let again = Retarget::new(cross(&float, &x), &factor, rows, Par::new(2)).unwrap();
        assert_eq!(qronos(weight.view(), &factor, &again, &config, Par::new(2)).unwrap(), one);
        let part = weight.slice_axis(Axis(0), Slice::from(10..30));
        let part = qronos(part, &factor, &retarget, &config, Par::Seq).unwrap();
        assert_eq!(
            part.rounded.matrix.levels(),
            one.rounded.matrix.levels().slice_axis(Axis(0), Slice::from(10..30))
        );
        both.push(one);
    }
    let different = both[0].rounded.matrix.levels().iter().zip(both[1].rounded.matrix.levels());
    let different = different.filter(|(a, b)| a != b).count();
    assert!(different * 200 <= out * n, "{different} of {} codes", out * n);
    assert!((both[0].shift / both[1].shift - 1.0).abs() < 1e-4);
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut noise = Numbers::new(8);
    let (float, x) = streams(&mut noise, 40, 6, 0.1);
    let weight = noise.normals(3, 6);
    let (factor, retarget) = prepared(&float, &x, 1e-3, false, 3);
    let plain = GptqConfig::new(grid(Convention::QAsym, 4));
    let dynamic =
        QronosConfig { gptq: GptqConfig { group: Some(2), ..plain.clone() }, variant: Variant::Exact };
    let refused = |config: &QronosConfig, factor: &Factor| {
        qronos(weight.view(), factor, &retarget, config, Par::Seq).unwrap_err()
    };
    assert!(matches!(refused(&dynamic, &factor), HessianError::Setting { name: "static_groups", .. }));
    let ordered = prepare(hessian(&x), &settings(1e-3, true), Par::Seq).unwrap();
    let config = QronosConfig::new(GptqConfig { act_order: ActOrder::Static, ..plain });
    assert!(matches!(refused(&config, &ordered), HessianError::Correction { .. }));
    let mut half = CrossGram::new(6, false);
    half.add(float.view(), x.view(), 1, Compute::F32, Par::Seq).unwrap();
    let half = Retarget::new(half, &factor, 3, Par::Seq).unwrap_err();
    assert_eq!(half, HessianError::HalfCross { columns: 6 });
    let narrow = CrossGram::new(5, true);
    assert!(matches!(Retarget::new(narrow, &factor, 3, Par::Seq), Err(HessianError::Shape { .. })));
    let empty = CrossGram::new(6, true);
    assert!(matches!(Retarget::new(empty, &factor, 3, Par::Seq), Err(HessianError::Empty { .. })));
}

/// A damping that fails is raised tenfold, and λ is what the largest eigenvalue makes of it.
#[test]
fn damping_is_a_fraction_of_the_largest_eigenvalue() {
    let mut noise = Numbers::new(2);
    let x = noise.activations(100, 30);
    let report = prepare(hessian(&x), &settings(1e-3, false), Par::Seq).unwrap().report().clone();
    let largest = report.largest_eigenvalue.unwrap();
    assert!(largest > report.mean_diagonal && (report.lambda() / (1e-3 * largest) - 1.0).abs() < 1e-12);
    // Two equal channels, and nothing that keeps them apart.
    let mut x = x;
    let first = x.column(0).to_owned();
    x.column_mut(1).assign(&first);
    let report = prepare(hessian(&x), &settings(0.0, false), Par::Seq).unwrap().report().clone();
    assert!(report.attempts.len() > 1, "{report:?}");
    let dampings: Vec<f64> = report.attempts.iter().map(|a| a.damping).collect();
    assert!(
        dampings[0] == 0.0 && dampings.windows(2).skip(1).all(|d| (d[1] / d[0] - 10.0).abs() < 1e-9),
        "{dampings:?}"
    );
}
