//! Properties of the public solver in f32.

use ndarray::{Array2, Axis, Slice};
use proptest::prelude::*;
use quant_core::{ClipSearch, Convention, CoreError, Grid, Variant, matrix::round_matrix};
use quant_kernels::{Compute, Par};

use super::reference::Prepared;
use super::{factor, grid, hessian};
use crate::gptq::{run_tiles, solve};
use crate::solve::{Aim, GroupPlan, Problem};
use crate::{ActOrder, FactorSettings, GptqConfig, Hessian, HessianError, gptq, prepare};
use quant_testkit::Numbers;

fn trace_rows(difference: &Array2<f32>, h: &Array2<f32>) -> Vec<f64> {
    let d = difference.mapv(f64::from);
    (&d.dot(&h.mapv(f64::from)) * &d).sum_axis(Axis(1)).to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Section 7, property 1.
    #[test]
    fn a_multiple_of_the_identity_is_round_to_nearest(
        seed: u64, n in 1_usize..140, group in proptest::option::of(1_usize..140), size in 1e-3_f32..1e3, fixed: bool,
        convention in proptest::sample::select(Convention::ALL.to_vec()), bits in 1_u32..=8, official: bool, clip: bool,
        block in proptest::sample::select(vec![1_usize, 32, 128]),
    ) {
        // One of the grids does not exist.
        prop_assume!(!(official && bits == 1 && convention == Convention::QSym));
        let weight = Numbers::new(seed).normals(3, n);
        let h = Hessian::from_matrix(Array2::eye(n) * size, 2).unwrap();
        let factor = prepare(h, &FactorSettings::default(), Par::Seq).unwrap();
        let variant = if official { Variant::Official } else { Variant::Exact };
        let grid = Grid { variant, ..grid(convention, bits) };
        let clip = clip.then(ClipSearch::default);
        let config = GptqConfig { group, static_groups: fixed, clip, block, ..GptqConfig::new(grid) };
        let result = gptq(weight.view(), &factor, &config, Par::Seq).unwrap();
        let groups = quant_core::Groups::from_size(group);
        prop_assert_eq!(result.matrix, round_matrix(&config.grid, clip.as_ref(), groups, weight.view()).unwrap());
    }

    /// Section 7, property 6, in f64 with the same λ on both: not one code of the other columns changes.
    #[test]
    fn a_dead_channel_becomes_zero_and_disturbs_nothing(
        seed: u64, n in 2_usize..60, at in 0_usize..60, bits in 2_u32..=4, act_order: bool,
    ) {
        let at = at % n;
        let mut noise = Numbers::new(seed);
        let mut x = noise.activations(2 * n, n);
        x.column_mut(at).fill(0.0);
        let mut weight = noise.normals(4, n);
        let keep: Vec<usize> = (0..n).filter(|&j| j != at).collect();
        let weight_less = weight.select(Axis(1), &keep);
        // Beside another weight of its row, never its extreme, so that both problems find the same scale.
        let inside = &weight.column(keep[0]) * 0.5;
        weight.column_mut(at).assign(&inside);
        let h = hessian(&x).finish().unwrap();
        let h_less = h.select(Axis(0), &keep).select(Axis(1), &keep);
        let lambda = 0.01 * f64::from(h_less.diag().mean().unwrap());
        let full = Prepared::with_lambda(&h, act_order, |_| lambda);
        let less = Prepared::with_lambda(&h_less, act_order, |_| lambda);
        let act_order = if act_order { ActOrder::Static } else { ActOrder::None };
        let config = GptqConfig { act_order, ..GptqConfig::new(grid(Convention::QAsym, bits)) };
        let run = |weight: &Array2<f32>, p: &Prepared| {
            solve(weight.view(), &p.panels(), Aim::Weight, p.order.as_deref(), &p.dead, &config, Par::Seq).unwrap().matrix
        };
        let (full, less) = (run(&weight, &full), run(&weight_less, &less));
        prop_assert!(full.dequantize().column(at).iter().all(|&w| w == 0.0));
        prop_assert_eq!(full.levels().select(Axis(1), &keep), less.levels());
        prop_assert_eq!((full.scales(), full.zeros()), (less.scales(), less.zeros()));

        // The prepared factor names it.
        let factor = prepare(hessian(&x), &FactorSettings::default(), Par::Seq).unwrap();
        prop_assert_eq!(&factor.report().dead_columns, &vec![at]);
    }

    /// Section 7, property 8, in f64.
    #[test]
    fn act_order_forgets_an_initial_permutation(seed: u64, n in 2_usize..100, bits in 2_u32..=4) {
        let problem = Permuted::new(seed, n);
        let [plain, moved] = problem.levels(bits, true);
        prop_assert_eq!(moved, plain);
    }

    /// Section 7, property 7.
    #[test]
    fn any_split_of_the_sequences_gives_the_same_hessian(seed: u64, n in 1_usize..70, cuts in proptest::collection::vec(1_usize..5, 1..5)) {
        let mut noise = Numbers::new(seed);
        let length = 7;
        let total: usize = cuts.iter().sum();
        let x = noise.activations(total * length, n);
        let mut whole = Hessian::new(n);
        whole.add(x.view(), total, Compute::F32, Par::Seq).unwrap();
        let mut parts = Hessian::new(n);
        let mut ends: Vec<usize> = cuts.iter().scan(0, |end, c| { *end += c; Some(*end) }).collect();
        let mut spans: Vec<(usize, usize)> = std::iter::once(0).chain(ends.drain(..)).collect::<Vec<_>>()
            .windows(2).map(|w| (w[0], w[1])).collect();
        spans.reverse();
        for (start, end) in spans {
            parts.add(x.slice_axis(Axis(0), (start * length..end * length).into()), end - start, Compute::F32, Par::Seq).unwrap();
        }
        prop_assert_eq!((whole.tokens(), whole.sequences()), (parts.tokens(), parts.sequences()));
        let (whole, parts) = (whole.finish().unwrap(), parts.finish().unwrap());
        let size = whole.iter().map(|h| h * h).sum::<f32>().sqrt();
        let error = (&whole - &parts).iter().map(|h| h * h).sum::<f32>().sqrt();
        prop_assert!(error <= 1e-5 * size);
        let exact = x.mapv(f64::from).t().dot(&x.mapv(f64::from)) * (2.0 / total as f64);
        let error = (&whole.mapv(f64::from) - &exact).iter().map(|h| h * h).sum::<f64>().sqrt();
        prop_assert!(error <= 1e-5 * f64::from(size));
    }
}

/// A problem, and the same with its input channels in another order.
struct Permuted {
    weight: Array2<f32>,
    h: Array2<f32>,
    order: Vec<usize>,
}

impl Permuted {
    fn new(seed: u64, n: usize) -> Self {
        let mut noise = Numbers::new(seed);
        let (x, weight) = (noise.activations(2 * n, n), noise.normals(5, n));
        let mut keys: Vec<(f32, usize)> = (0..n).map(|j| (noise.uniform(), j)).collect();
        keys.sort_by(|a, b| a.0.total_cmp(&b.0));
        let order = keys.into_iter().map(|(_, j)| j).collect();
        Self { weight, h: hessian(&x).finish().unwrap(), order }
    }

    /// Levels of both, the first in the order of the second; `gptq.md` allows a scale per channel only.
    fn levels(&self, bits: u32, act_order: bool) -> [Array2<u8>; 2] {
        let order = if act_order { ActOrder::Static } else { ActOrder::None };
        let config = GptqConfig { act_order: order, ..GptqConfig::new(grid(Convention::QAsym, bits)) };
        let run = |weight: &Array2<f32>, h: &Array2<f32>| {
            let p = Prepared::new(h, act_order, 0.01);
            let result = solve(
                weight.view(),
                &p.panels(),
                Aim::Weight,
                p.order.as_deref(),
                &p.dead,
                &config,
                Par::Seq,
            );
            result.unwrap().matrix.levels().clone()
        };
        let moved = self.h.select(Axis(0), &self.order).select(Axis(1), &self.order);
        let plain = run(&self.weight, &self.h).select(Axis(1), &self.order);
        [plain, run(&self.weight.select(Axis(1), &self.order), &moved)]
    }
}

/// The other half of property 8: without act-order the order of the channels matters.
#[test]
fn without_act_order_a_permutation_shows() {
    for seed in 0..10 {
        let [plain, moved] = Permuted::new(seed, 60).levels(3, false);
        let differ = plain.iter().zip(&moved).filter(|(a, b)| a != b).count();
        assert!(differ * 20 > plain.len(), "seed {seed}: only {differ} of {} codes differ", plain.len());
    }
}

/// Section 7, property 5, and 4 in f32.
#[test]
fn better_than_rounding_and_nearly_blind_to_the_block_size() {
    let mut noise = Numbers::new(3);
    let (n, out) = (384, 300);
    let x = noise.activations(3 * n, n);
    let weight = noise.normals(out, n);
    let h = hessian(&x).finish().unwrap();
    let factor = factor(&x, false);
    for (bits, group) in [(4, None), (3, Some(64)), (2, Some(128))] {
        let config = GptqConfig { group, ..GptqConfig::new(grid(Convention::QAsym, bits)) };
        let result = gptq(weight.view(), &factor, &config, Par::Seq).unwrap();
        let rounded =
            round_matrix(&config.grid, None, quant_core::Groups::from_size(group), weight.view()).unwrap();
        let ours = trace_rows(&(&weight - &result.matrix.dequantize()), &h);
        let rtn = trace_rows(&(&weight - &rounded.dequantize()), &h);
        let better = ours.iter().zip(&rtn).filter(|(a, b)| a <= b).count();
        let ratio = ours.iter().sum::<f64>() / rtn.iter().sum::<f64>();
        println!(
            "{bits} bits, group {group:?}: {better} of {out} rows better, total error {ratio:.3} of rounding"
        );
        assert!(better * 100 >= out * 95 && ratio < 1.0);
    }
    let base =
        GptqConfig { group: Some(96), static_groups: true, ..GptqConfig::new(grid(Convention::QAsym, 4)) };
    let reference = gptq(weight.view(), &factor, &base, Par::Seq).unwrap().matrix.levels().clone();
    for block in [1, 32, 384] {
        let config = GptqConfig { block, ..base.clone() };
        let levels = gptq(weight.view(), &factor, &config, Par::Seq).unwrap().matrix.levels().clone();
        let differ = levels.iter().zip(&reference).filter(|(a, b)| a != b).count();
        println!("block {block}: {differ} of {} codes differ", levels.len());
        assert!(differ * 1000 <= levels.len());
    }
}

/// Two threads, another tile height, other rows beside it: not a bit of a row changes.
#[test]
fn a_row_does_not_know_threads_tiles_or_neighbours() {
    let mut noise = Numbers::new(5);
    let (n, out) = (600, 530);
    let x = noise.activations(n + 9, n);
    let weight = noise.normals(out, n);
    for act_order in [ActOrder::None, ActOrder::Dynamic] {
        let settings = FactorSettings { act_order: act_order.permutes(), ..FactorSettings::default() };
        let build = |par| {
            let mut h = Hessian::new(n);
            h.add(x.view(), 1, Compute::F32, par).unwrap();
            prepare(h, &settings, par).unwrap()
        };
        let (one, two) = (build(Par::Seq), build(Par::new(2)));
        assert_eq!(one.report(), two.report());
        let config = GptqConfig {
            group: Some(48),
            act_order,
            clip: (act_order == ActOrder::None).then(ClipSearch::default),
            ..GptqConfig::new(grid(Convention::QAsym, 3))
        };
        let reference = gptq(weight.view(), &one, &config, Par::Seq).unwrap();
        for threads in [2, 3] {
            assert!(
                gptq(weight.view(), &two, &config, Par::new(threads)).unwrap() == reference,
                "{threads} threads"
            );
        }
        let some = gptq(weight.slice_axis(Axis(0), Slice::from(100..107)), &one, &config, Par::Seq).unwrap();
        assert_eq!(
            some.matrix.levels(),
            reference.matrix.levels().slice_axis(Axis(0), Slice::from(100..107))
        );
        assert_eq!(some.row_losses, reference.row_losses[100..107]);

        let plan = GroupPlan::Dynamic(48);
        let problem = Problem {
            weight: weight.view(),
            panels: &one.panels,
            aim: Aim::Weight,
            order: one.order(),
            dead: &one.dead,
            grid: config.grid,
            clip: config.clip,
            plan,
            block: config.block,
        };
        let groups = plan.groups(n);
        for height in [64, 128, 256] {
            let (mut levels, mut losses) = (vec![0; out * n], vec![0.0; out]);
            let (mut scales, mut zeros) = (vec![0.0; out * groups], vec![0.0; out * groups]);
            let outputs = (&mut *levels, &mut *scales, &mut *zeros, &mut *losses);
            match height {
                64 => run_tiles::<f32, 64>(&problem, outputs, Par::Seq),
                128 => run_tiles::<f32, 128>(&problem, outputs, Par::Seq),
                _ => run_tiles::<f32, 256>(&problem, outputs, Par::Seq),
            }
            .unwrap();
            assert_eq!(reference.matrix.levels().as_slice().unwrap(), levels, "tiles of {height}");
            assert_eq!(reference.row_losses, losses, "tiles of {height}");
        }
    }
}

#[test]
fn layouts_of_the_weight_do_not_matter() {
    let mut noise = Numbers::new(8);
    let factor = factor(&noise.activations(90, 40), false);
    let weight = noise.normals(7, 40);
    let config = GptqConfig { group: Some(16), ..GptqConfig::new(grid(Convention::QAsym, 4)) };
    let want = gptq(weight.view(), &factor, &config, Par::Seq).unwrap();
    let column_major = weight.t().as_standard_layout().into_owned();
    assert_eq!(gptq(column_major.t(), &factor, &config, Par::Seq).unwrap(), want);
    let none = gptq(weight.slice_axis(Axis(0), Slice::from(..0)), &factor, &config, Par::new(2)).unwrap();
    assert_eq!(none.matrix.dim(), (0, 40));
}

#[test]
fn bad_input_is_named() {
    let mut noise = Numbers::new(9);
    let x = noise.activations(50, 12);
    let factor = factor(&x, false);
    let weight = noise.normals(3, 12);
    let config = GptqConfig::new(grid(Convention::QAsym, 4));
    let run = |weight: &Array2<f32>, config: &GptqConfig| gptq(weight.view(), &factor, config, Par::Seq);

    let mut bad = weight.clone();
    bad[(1, 7)] = f32::NAN;
    let error = run(&bad, &config).unwrap_err();
    assert!(matches!(error, HessianError::Core(CoreError::NotFinite { row: 1, column: 7, .. })), "{error}");

    // Finite weights whose errors overflow: the row and a column are named.
    let huge = Array2::from_shape_fn((3, 12), |(i, j)| if i == 2 { 3e38 - j as f32 * 2e37 } else { 0.1 });
    let error = run(&huge, &GptqConfig { group: Some(4), ..config.clone() }).unwrap_err();
    assert!(
        matches!(error, HessianError::NotFiniteResult { row: 2, .. })
            || matches!(error, HessianError::Core(CoreError::Scale { row: 2, .. })),
        "{error}"
    );

    assert!(matches!(run(&noise.normals(3, 11), &config), Err(HessianError::Shape { .. })));
    for config in [
        GptqConfig { act_order: ActOrder::Static, ..config.clone() },
        GptqConfig { block: 0, ..config.clone() },
        GptqConfig { group: Some(0), ..config.clone() },
        GptqConfig { static_groups: true, act_order: ActOrder::Dynamic, ..config.clone() },
    ] {
        let error = run(&weight, &config).unwrap_err();
        assert!(matches!(error, HessianError::Order { .. } | HessianError::Setting { .. }), "{error}");
    }
    let panels = &factor.panels;
    assert!(solve(weight.view(), panels, Aim::Weight, None, &factor.dead, &config, Par::Seq).is_ok());
}

/// At one bit `μ ± a` has no zero: a dead column takes the side of `μ` on which zero lies, and in groups, which see it
/// zeroed, its weight changes nothing at all.
#[test]
fn a_dead_column_at_one_bit_takes_the_side_of_zero() {
    let (rows, n, dead) = (6, 48, 21);
    let mut noise = Numbers::new(31);
    let mut x = noise.activations(3 * n, n);
    x.column_mut(dead).fill(0.0);
    let factor = factor(&x, false);
    let mut weight = noise.normals(rows, n);
    for (row, mut values) in weight.rows_mut().into_iter().enumerate() {
        // Half of the rows lie above zero, half below, with μ well away from it.
        values += if row % 2 == 0 { 0.8 } else { -0.8 };
    }
    for (group, static_groups) in [(None, false), (Some(16), false), (Some(16), true)] {
        let config = GptqConfig { group, static_groups, ..GptqConfig::new(grid(Convention::QAsym, 1)) };
        let solve = |at_dead: f32| {
            let mut weight = weight.clone();
            weight.column_mut(dead).fill(at_dead);
            gptq(weight.view(), &factor, &config, Par::Seq).unwrap().matrix
        };
        // A weight far beyond μ on the side away from zero would round the other way.
        let far = solve(0.25);
        let g = far.groups().of(dead);
        for row in 0..rows {
            let params = far.params(row, g);
            let (low, high) = (params.value(0.0), params.value(1.0));
            let mean = (low + high) / 2.0;
            assert!(low != 0.0 && high != 0.0 && (mean > 0.0) == (row % 2 == 0), "row {row}: {low} {high}");
            let expected = u8::from(mean <= 0.0);
            assert_eq!(far.levels()[(row, dead)], expected, "row {row}, {group:?}");
            assert_eq!(
                far.dequantize()[(row, dead)],
                if expected == 1 { high } else { low },
                "row {row}, {group:?}"
            );
        }
        if group.is_some() {
            assert_eq!(far, solve(0.0));
            assert_eq!(far, solve(-7.5));
        }
    }
}

/// Where a result leaves the finite numbers: the column that did it, not the first of its block nor the last.
#[test]
fn overflow_is_located() {
    let n = 300;
    let factor = factor(&Numbers::new(10).activations(2 * n, n), false);
    let config = GptqConfig::new(grid(Convention::QAsym, 2));
    let mut weight = Numbers::new(11).normals(70, n) * 1e-3;
    // Levels are multiples of 2^70: zero and three of them are met exactly, one and a half is not, and the square of what
    // is missing is beyond f32.
    let step = 2.0_f32.powi(70);
    for (row, column) in [(65, 0), (65, 140), (3, 299), (69, 31)] {
        let mut bad = weight.clone();
        bad.row_mut(row).fill(0.0);
        bad[(row, 7)] = 3.0 * step;
        bad[(row, column)] = 1.5 * step;
        let error = gptq(bad.view(), &factor, &config, Par::Seq).unwrap_err();
        assert_eq!(error, HessianError::NotFiniteResult { row, column }, "{error}");
    }
    weight[(5, 7)] = 1e6;
    let narrow = Grid { scale_type: quant_core::FloatType::F16, ..config.grid };
    for static_groups in [false, true] {
        let config = GptqConfig { grid: narrow, group: Some(4), static_groups, ..config.clone() };
        let error = gptq(weight.view(), &factor, &config, Par::Seq).unwrap_err();
        assert!(matches!(error, HessianError::Core(CoreError::Scale { row: 5, group: 1, .. })), "{error}");
    }
}
