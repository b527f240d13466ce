//! Properties of `gptaq.md` section 7, and GPTAQ against the published formulation in f64, where the codes must be the same.

use ndarray::{Array2, Axis, Slice};
use proptest::prelude::*;
use quant_core::{ClipSearch, Convention, Variant};
use quant_kernels::{Compute, Par};
use quant_testkit::Numbers;

use super::reference::{Asymmetric, Prepared, published_with};
use super::{factor, grid, hessian};
use crate::coupling::Coupling;
use crate::gptq::{run_tiles, solve};
use crate::solve::{Aim, Asymmetry, GroupPlan, Problem};
use crate::{
    ActOrder, Correction, CrossGram, Factor, GptaqConfig, GptqConfig, GptqResult, HessianError, gptaq,
    gptaq_workspace_bytes, gptq, workspace_bytes,
};

/// Activations `x` of the quantised model and those of the float model: mixed a little, and noise.
fn streams(noise: &mut Numbers, tokens: usize, n: usize, strength: f32) -> (Array2<f32>, Array2<f32>) {
    let x = noise.activations(tokens, n);
    let mix = noise.normals(n, n) * (strength / (n as f32).sqrt());
    let float = &x + &x.dot(&mix) + &(noise.normals(tokens, n) * (0.5 * strength));
    (float, x)
}

fn cross(float: &Array2<f32>, x: &Array2<f32>, all: bool) -> CrossGram {
    let mut cross = CrossGram::new(x.ncols(), all);
    cross.add(float.view(), x.view(), 1, Compute::F32, Par::Seq).unwrap();
    cross
}

fn ours(
    weight: &Array2<f32>,
    problem: &Prepared,
    coupling: &Coupling<f64>,
    variant: Variant,
    config: &GptqConfig,
) -> GptqResult {
    let aim = Aim::Asymmetric(Asymmetry { coupling, variant });
    let order = problem.order.as_deref();
    solve(weight.view(), &problem.panels(), aim, order, &problem.dead, config, Par::Seq).unwrap()
}

/// `‖W X_f − Ŵ X‖² / ‖W X_f‖²`.
fn error(weight: &Array2<f32>, quantised: &Array2<f32>, float: &Array2<f32>, x: &Array2<f32>) -> f64 {
    let target = float.mapv(f64::from).dot(&weight.mapv(f64::from).t());
    let got = x.mapv(f64::from).dot(&quantised.mapv(f64::from).t());
    (&target - &got).mapv(|e| e * e).sum() / target.mapv(|e| e * e).sum()
}

const VARIANTS: [Variant; 2] = [Variant::Exact, Variant::Official];

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every combination of variant, grouping, order, block size, convention, clip search and dead columns.
    #[test]
    fn codes_are_those_of_the_published_formulation(
        seed: u64,
        n in 1_usize..90,
        out in 1_usize..5,
        official: bool,
        alpha in prop_oneof![Just(0.25), Just(1.0), 0.0..1.5],
        group in proptest::option::of(1_usize..100),
        (order, static_groups) in prop_oneof![
            Just((ActOrder::None, false)),
            Just((ActOrder::None, true)),
            Just((ActOrder::Static, true)),
            Just((ActOrder::Dynamic, false)),
        ],
        block in prop_oneof![Just(128_usize), 1_usize..70],
        (convention, bits) in proptest::sample::select(vec![
            (Convention::QAsym, 4), (Convention::QAsym, 2), (Convention::QAsym, 1), (Convention::QSym, 3),
            (Convention::QSymGptq, 4), (Convention::QAwq, 3), (Convention::QAsym, 8),
        ]),
        clip: bool,
        dead in proptest::collection::vec(0_usize..90, 0..3),
    ) {
        let mut noise = Numbers::new(seed);
        let (mut float, mut x) = streams(&mut noise, 2 * n + 3, n, 0.1);
        for (i, &column) in dead.iter().enumerate() {
            x.column_mut(column % n).fill(0.0);
            // A channel may be dead in one model and alive in the other.
            if i == 0 {
                float.column_mut(column % n).fill(0.0);
            }
        }
        let weight = noise.normals(out, n);
        let variant = if official { Variant::Official } else { Variant::Exact };
        let config = GptqConfig {
            group,
            clip: clip.then(ClipSearch::default),
            act_order: order,
            static_groups,
            block,
            ..GptqConfig::new(grid(convention, bits))
        };
        let problem = Prepared::new(&hessian(&x).finish().unwrap(), order.permutes(), 0.01);
        let d = problem.cross(&cross(&float, &x, true).finish().unwrap());
        let p = problem.p(&d, alpha);
        let want = published_with(&weight, &problem, Some(&Asymmetric { p: &p, variant }), &config);
        let got = ours(&weight, &problem, &problem.coupling(&d, alpha, variant), variant, &config);
        prop_assert_eq!(got.matrix.levels(), &want.levels);
        for (got, want) in [(got.matrix.scales(), &want.scales), (got.matrix.zeros(), &want.zeros)] {
            let scale = want.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
            prop_assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() <= 1e-6 * scale));
        }
        for (row, loss) in got.row_losses.iter().enumerate() {
            let want: f64 = want.errors.row(row).iter().map(|e| e * e / 2.0).sum();
            let size = f64::from(weight.row(row).dot(&weight.row(row))) * problem.h.diag().iter().sum::<f64>();
            prop_assert!((loss - want).abs() <= 1e-9 * want + 1e-15 * size, "row {}: {} {}", row, loss, want);
        }
    }

    /// Property 4: with `w̃` passed on, the block size is invisible without groups that look at the block.
    #[test]
    fn block_size_is_invisible_to_the_exact_variant(
        seed: u64, n in 1_usize..150, group in proptest::option::of(1_usize..50), act_order: bool,
    ) {
        let mut noise = Numbers::new(seed);
        let (float, x) = streams(&mut noise, n + 5, n, 0.1);
        let weight = noise.normals(3, n);
        let act = if act_order { ActOrder::Static } else { ActOrder::None };
        let base = GptqConfig { group, static_groups: true, act_order: act, ..GptqConfig::new(grid(Convention::QSym, 3)) };
        let problem = Prepared::new(&hessian(&x).finish().unwrap(), act_order, 0.01);
        let d = problem.cross(&cross(&float, &x, true).finish().unwrap());
        let coupling = problem.coupling(&d, 1.0, Variant::Exact);
        let reference = ours(&weight, &problem, &coupling, Variant::Exact, &base);
        for block in [1, 32, n] {
            let other = ours(&weight, &problem, &coupling, Variant::Exact, &GptqConfig { block, ..base.clone() });
            prop_assert_eq!(&other.matrix, &reference.matrix);
        }
    }

    /// Properties 1 and 2, bit for bit, also where the zeros run through the whole loop.
    #[test]
    fn without_an_asymmetry_it_is_gptq(
        seed: u64, n in 1_usize..200, group in proptest::option::of(1_usize..100), act_order: bool, bits in 1_u32..=8,
        block in proptest::sample::select(vec![1_usize, 32, 128]),
    ) {
        let mut noise = Numbers::new(seed);
        let (float, x) = streams(&mut noise, n + 5, n, 0.1);
        let weight = noise.normals(3, n);
        let factor = factor(&x, act_order);
        let act = if act_order { ActOrder::Dynamic } else { ActOrder::None };
        let base = GptqConfig { group, act_order: act, block, ..GptqConfig::new(grid(Convention::QAsym, bits)) };
        let want = gptq(weight.view(), &factor, &base, Par::Seq).unwrap();
        for variant in VARIANTS {
            for (cross, alpha) in [(cross(&x, &x, act_order), 1.0), (cross(&float, &x, act_order), 0.0)] {
                let correction = Correction::new(cross, &factor, alpha, variant, Par::Seq).unwrap();
                prop_assert!(correction.is_zero() && correction.bytes() == 0);
                let config = GptaqConfig { gptq: base.clone(), alpha, variant };
                prop_assert_eq!(&gptaq(weight.view(), &factor, &correction, &config, Par::Seq).unwrap(), &want);
            }
            let coupling = Coupling::new(vec![0.0; n * n], 1.0, &factor.panels, variant, Par::Seq);
            let aim = Aim::Asymmetric(Asymmetry { coupling: &coupling, variant });
            let got = solve(weight.view(), &factor.panels, aim, factor.order(), &factor.dead, &base, Par::Seq);
            prop_assert_eq!(&got.unwrap(), &want);
        }
    }
}

/// The other half of property 4: what the published loop passes on depends on where its blocks end.
#[test]
fn block_size_shows_in_the_official_variant() {
    let mut noise = Numbers::new(17);
    let (n, out) = (96, 64);
    let (float, x) = streams(&mut noise, 2 * n, n, 0.2);
    let weight = noise.normals(out, n);
    let problem = Prepared::new(&hessian(&x).finish().unwrap(), false, 0.01);
    let d = problem.cross(&cross(&float, &x, true).finish().unwrap());
    let levels = |variant, block| {
        let coupling = problem.coupling(&d, 0.25, variant);
        let config = GptqConfig { block, ..GptqConfig::new(grid(Convention::QAsym, 3)) };
        ours(&weight, &problem, &coupling, variant, &config).matrix.levels().clone()
    };
    let differ = |a: &Array2<u8>, b: &Array2<u8>| a.iter().zip(b).filter(|(a, b)| a != b).count();
    let official = levels(Variant::Official, n);
    let shown = differ(&official, &levels(Variant::Official, 1));
    println!("official, blocks of 1 and {n}: {shown} of {} codes differ", official.len());
    assert!(shown * 500 > official.len());
    assert_eq!(differ(&levels(Variant::Exact, n), &levels(Variant::Exact, 1)), 0);
    assert_eq!(differ(&levels(Variant::Exact, n), &official), 0, "in one block there is no later one");
}

/// Several super-blocks and panels, groups that straddle them, rows in several tiles.
#[test]
fn codes_agree_across_panels_and_tiles() {
    let mut noise = Numbers::new(11);
    let (n, out) = (700, 70);
    let (float, x) = streams(&mut noise, n + 50, n, 0.1);
    let weight = noise.normals(out, n);
    let h = hessian(&x).finish().unwrap();
    let d = cross(&float, &x, true).finish().unwrap();
    for (act_order, group, block) in
        [(ActOrder::None, Some(300), 128), (ActOrder::Dynamic, Some(96), 200), (ActOrder::Static, None, 600)]
    {
        let config = GptqConfig { act_order, group, block, ..GptqConfig::new(grid(Convention::QAsym, 4)) };
        let problem = Prepared::new(&h, act_order.permutes(), 0.01);
        let d = problem.cross(&d);
        let p = problem.p(&d, 0.5);
        for variant in VARIANTS {
            let got = ours(&weight, &problem, &problem.coupling(&d, 0.5, variant), variant, &config);
            let sample = weight.select(Axis(0), &[0, 63, 64, 69]);
            let want = published_with(&sample, &problem, Some(&Asymmetric { p: &p, variant }), &config);
            for (i, row) in [0, 63, 64, 69].into_iter().enumerate() {
                let (got, want) = (got.matrix.levels().row(row), want.levels.row(i));
                assert_eq!(got, want, "{variant:?} {act_order:?} {group:?} row {row}");
            }
        }
    }
}

/// The triangular solves in f32 against products with the explicit inverse in f64, and property 5.
#[test]
fn the_coupling_is_that_of_the_definition() {
    let mut noise = Numbers::new(23);
    for n in [1, 2, 40, 256, 257, 600] {
        let (float, x) = streams(&mut noise, n + 20, n, 0.3);
        let d = cross(&float, &x, true).finish().unwrap();
        for act_order in [false, true] {
            let problem = Prepared::new(&hessian(&x).finish().unwrap(), act_order, 0.01);
            let factor = factor(&x, act_order);
            let in_order = problem.cross(&d);
            let p = problem.p(&in_order, 0.5);
            // M̃ = M diag(R)⁻¹ with M = P R and R = U⁻¹, of which the diagonal is that of U inverted.
            let r = super::reference::inverse(&problem.upper_of_inverse());
            let mut m = p.dot(&r);
            m.columns_mut().into_iter().enumerate().for_each(|(k, mut column)| column /= r[(k, k)]);
            for (variant, want) in [(Variant::Exact, &m), (Variant::Official, &p)] {
                let size = want.iter().map(|x| x * x).sum::<f64>().sqrt();
                let below = want.indexed_iter().filter(|((j, k), _)| j >= k);
                assert!(below.fold(0.0_f64, |a, (_, x)| a.max(x.abs())) <= 1e-12 * size);
                let distance = |at: &dyn Fn(usize, usize) -> f64| {
                    let above = want.indexed_iter().filter(|((j, k), _)| j < k);
                    let off = above.map(|((j, k), w)| (at(j, k) - w).powi(2));
                    off.sum::<f64>().sqrt() / size.max(f64::MIN_POSITIVE)
                };
                let reference = problem.coupling(&in_order, 0.5, variant);
                let exact = distance(&|j, k| reference.at(j, k));
                assert!(n == 1 || exact < 1e-9, "{n} {act_order} {variant:?}: {exact:e}");
                let correction =
                    Correction::new(cross(&float, &x, act_order), &factor, 0.5, variant, Par::Seq).unwrap();
                if n == 1 {
                    assert!(correction.is_zero());
                    continue;
                }
                let (alpha, of) = (correction.alpha(), correction.variant());
                assert_eq!((correction.n(), alpha, of), (n, 0.5, variant));
                let coupling = correction.coupling.as_ref().unwrap();
                let rounded = distance(&|j, k| f64::from(coupling.at(j, k)));
                println!(
                    "n {n}, act-order {act_order}, {variant:?}: {exact:.1e} in f64, {rounded:.1e} in f32"
                );
                assert!(rounded < 1e-4, "{n} {act_order} {variant:?}: {rounded:e}");
                for j in 0..n {
                    for k in j / 256 * 256..=j {
                        assert_eq!(coupling.at(j, k), 0.0, "({j}, {k}) is not above the diagonal");
                    }
                }
            }
        }
    }
}

/// Property 3: towards the float model's outputs, the more the larger α; with `D` transposed, away from them.
#[test]
fn the_error_falls_with_alpha_and_rises_with_d_transposed() {
    let (n, out, alphas) = (64, 48, [0.0, 0.25, 0.5, 1.0]);
    let (mut right, mut wrong) = ([0.0; 4], [0.0; 4]);
    for seed in 0..20 {
        let mut noise = Numbers::new(seed);
        let (float, x) = streams(&mut noise, 4 * n, n, 0.15);
        let weight = noise.normals(out, n);
        let factor = factor(&x, false);
        let d = cross(&float, &x, true).finish().unwrap();
        for (i, &alpha) in alphas.iter().enumerate() {
            let run = |d: Array2<f32>| {
                let cross = CrossGram::from_matrix(d, 1).unwrap();
                let config =
                    GptaqConfig { alpha, ..GptaqConfig::new(GptqConfig::new(grid(Convention::QAsym, 3))) };
                let correction = Correction::new(cross, &factor, alpha, config.variant, Par::Seq).unwrap();
                let result = gptaq(weight.view(), &factor, &correction, &config, Par::Seq).unwrap();
                error(&weight, &result.matrix.dequantize(), &float, &x) / 20.0
            };
            right[i] += run(d.clone());
            wrong[i] += run(d.t().to_owned());
        }
    }
    println!("alpha {alphas:?}: {right:.4?}, with D transposed {wrong:.4?}");
    assert!(right.windows(2).all(|w| w[1] < w[0]), "{right:?}");
    assert!(wrong.windows(2).all(|w| w[1] > w[0]), "{wrong:?}");
}

/// Property 8. A group of one column in blocks of one is scaled to the updated weight itself: no rounding error.
#[test]
fn without_rounding_it_corrects_the_asymmetry() {
    let mut noise = Numbers::new(29);
    let n = 64;
    let (float, x) = streams(&mut noise, 4 * n, n, 0.15);
    let weight = noise.normals(16, n);
    let factor = factor(&x, false);
    let base = GptqConfig { group: Some(1), block: 1, ..GptqConfig::new(grid(Convention::QAsym, 8)) };
    let plain = error(&weight, &weight, &float, &x);
    for variant in VARIANTS {
        let mut last = plain;
        for alpha in [0.25, 0.5, 1.0] {
            let config = GptaqConfig { gptq: base.clone(), alpha, variant };
            let cross = cross(&float, &x, false);
            let correction = Correction::new(cross, &factor, alpha, variant, Par::Seq).unwrap();
            let result = gptaq(weight.view(), &factor, &correction, &config, Par::Seq).unwrap();
            let got = error(&weight, &result.matrix.dequantize(), &float, &x);
            println!("{variant:?}, alpha {alpha}: {:.3} of the error of the float weight", got / plain);
            assert!(got < last);
            last = got;
        }
    }
}

/// Threads, tile heights, other rows beside it, the unused half of `D`: not a bit of a row changes.
#[test]
fn a_row_does_not_know_threads_tiles_or_neighbours() {
    let mut noise = Numbers::new(5);
    let (n, out) = (600, 530);
    let (float, x) = streams(&mut noise, n + 9, n, 0.1);
    let weight = noise.normals(out, n);
    for (act_order, variant) in [
        (ActOrder::None, Variant::Exact),
        (ActOrder::None, Variant::Official),
        (ActOrder::Dynamic, Variant::Exact),
    ] {
        let factor = factor(&x, act_order.permutes());
        let build = |all: bool, par| -> Correction {
            let mut cross = CrossGram::new(n, all);
            cross.add(float.view(), x.view(), 1, Compute::F32, par).unwrap();
            Correction::new(cross, &factor, 0.25, variant, par).unwrap()
        };
        let gptq = GptqConfig {
            group: Some(48),
            act_order,
            clip: (act_order == ActOrder::None).then(ClipSearch::default),
            ..GptqConfig::new(grid(Convention::QAsym, 3))
        };
        let config = GptaqConfig { variant, ..GptaqConfig::new(gptq) };
        let run = |rows: std::ops::Range<usize>, correction: &Correction, par| {
            let rows = weight.slice_axis(Axis(0), Slice::from(rows));
            gptaq(rows, &factor, correction, &config, par).unwrap()
        };
        let one = build(true, Par::Seq);
        let reference = run(0..out, &one, Par::Seq);
        for threads in [2, 3] {
            let two = build(act_order.permutes(), Par::new(threads));
            assert!(run(0..out, &two, Par::new(threads)) == reference, "{variant:?}: {threads} threads");
        }
        let some = run(100..107, &one, Par::Seq);
        assert_eq!(
            some.matrix.levels(),
            reference.matrix.levels().slice_axis(Axis(0), Slice::from(100..107))
        );
        assert_eq!(some.row_losses, reference.row_losses[100..107]);

        let plan = GroupPlan::Dynamic(48);
        let problem = Problem {
            weight: weight.view(),
            panels: &factor.panels,
            aim: one.aim(),
            order: factor.order(),
            dead: &factor.dead,
            grid: config.gptq.grid,
            clip: config.gptq.clip,
            plan,
            block: config.gptq.block,
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
fn bad_input_is_named() {
    let mut noise = Numbers::new(9);
    let (float, x) = streams(&mut noise, 50, 12, 0.1);
    let (plain, permuted) = (factor(&x, false), factor(&x, true));
    let build = |all, factor: &Factor, alpha| {
        Correction::new(cross(&float, &x, all), factor, alpha, Variant::Exact, Par::Seq)
    };
    let half = build(false, &permuted, 0.25).unwrap_err();
    assert_eq!(half, HessianError::HalfCross { columns: 12 });
    assert!(half.to_string().contains("CrossGram::new(12, true)"), "{half}");
    for alpha in [-0.1, f64::NAN, f64::INFINITY] {
        let error = build(false, &plain, alpha).unwrap_err();
        assert!(matches!(error, HessianError::Setting { name: "alpha", .. }), "{error}");
    }
    let other = cross(&noise.normals(9, 7), &noise.normals(9, 7), false);
    let error = Correction::new(other, &plain, 0.25, Variant::Exact, Par::Seq).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cross product of activations: expected [12, 12], as the factor, found [7, 7]"
    );
    let empty = Correction::new(CrossGram::new(12, false), &plain, 0.25, Variant::Exact, Par::Seq);
    assert_eq!(empty.unwrap_err(), HessianError::Empty { columns: 12 });
    for all in [false, true] {
        let mut bad = float.clone();
        bad[(3, 8)] = f32::INFINITY;
        let error =
            Correction::new(cross(&bad, &x, all), &plain, 0.25, Variant::Exact, Par::Seq).unwrap_err();
        assert!(matches!(error, HessianError::NotFiniteCross { row: 8, .. }), "{error}");
    }

    let correction = build(false, &plain, 0.25).unwrap();
    let weight = noise.normals(3, 12);
    let config = GptaqConfig::new(GptqConfig::new(grid(Convention::QAsym, 4)));
    assert!(gptaq(weight.view(), &plain, &correction, &config, Par::Seq).is_ok());
    let run = |weight: &Array2<f32>, factor: &Factor, config: &GptaqConfig| {
        gptaq(weight.view(), factor, &correction, config, Par::Seq).unwrap_err()
    };
    for config in [
        GptaqConfig { alpha: 0.5, ..config.clone() },
        GptaqConfig { variant: Variant::Official, ..config.clone() },
    ] {
        let error = run(&weight, &plain, &config);
        assert!(matches!(error, HessianError::Correction { .. }), "{error}");
        assert!(error.to_string().contains("prepared with alpha 0.25 and variant Exact"), "{error}");
    }
    let act = GptqConfig { act_order: ActOrder::Static, ..config.gptq.clone() };
    let error = run(&weight, &permuted, &GptaqConfig { gptq: act, ..config.clone() });
    assert!(error.to_string().contains("the column order of the factor"), "{error}");
    let small = factor(&noise.activations(9, 7), false);
    let error = run(&noise.normals(2, 7), &small, &config);
    assert!(error.to_string().contains("expected 7 input channels"), "{error}");
    assert!(matches!(run(&noise.normals(3, 11), &plain, &config), HessianError::Shape { .. }));
    let order = GptqConfig { act_order: ActOrder::Static, ..config.gptq.clone() };
    let error = run(&weight, &plain, &GptaqConfig { gptq: order, ..config.clone() });
    assert!(matches!(error, HessianError::Order { .. }), "{error}");

    // A correction that overflows is not a quiet result: the row and a column are named.
    let huge = CrossGram::from_matrix(Array2::from_elem((12, 12), 1e36), 2).unwrap();
    let huge = Correction::new(huge, &plain, 0.25, Variant::Exact, Par::Seq).unwrap();
    let error = gptaq(weight.view(), &plain, &huge, &config, Par::Seq).unwrap_err();
    assert!(matches!(error, HessianError::NotFiniteResult { row: 0..3, .. }), "{error}");
}

#[test]
fn announced_bytes_are_those_of_the_buffers() {
    let one = workspace_bytes(1000, Par::Seq);
    assert_eq!(gptaq_workspace_bytes(1000, Variant::Exact, Par::Seq) - one, 256 * 1000 * 4);
    assert_eq!(gptaq_workspace_bytes(1000, Variant::Official, Par::Seq) - one, 256 * 1512 * 4);
    let (half, square) = (Correction::bytes_for(8960), 8960 * 8960 * 4);
    assert!(half * 2 > square && half * 100 < square * 62);
    assert_eq!(Correction::peak_bytes(8960, false), half);
    assert_eq!(Correction::peak_bytes(8960, true), square + half);
}

/// `gptaq.md` section 6: nothing bounds the correction, so the norm of what comes out is watched.
#[test]
fn streams_far_apart_blow_the_weight_up() {
    let mut noise = Numbers::new(41);
    let (n, out) = (64, 70);
    let weight = noise.normals(out, n);
    let x = noise.activations(4 * n, n);
    let config = GptqConfig { group: Some(16), ..GptqConfig::new(grid(Convention::QAsym, 4)) };
    let growth = |float: &Array2<f32>, alpha: f64| {
        let factor = factor(&x, false);
        let correction =
            Correction::new(cross(float, &x, true), &factor, alpha, Variant::Exact, Par::Seq).unwrap();
        let config = GptaqConfig { alpha, ..GptaqConfig::new(config.clone()) };
        let result = gptaq(weight.view(), &factor, &correction, &config, Par::Seq).unwrap();
        let growth = result.growth(weight.view(), Par::Seq);
        let norm = |w: &Array2<f32>| w.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt();
        assert!((growth - norm(&result.matrix.dequantize()) / norm(&weight)).abs() <= 1e-9 * growth);
        assert_eq!(result.growth(weight.view(), Par::new(3)).to_bits(), growth.to_bits());
        growth
    };
    let near = &x + &(noise.normals(4 * n, n) * 0.05);
    let far = noise.activations(4 * n, n) * 8.0;
    assert!((growth(&near, 0.25) - 1.0).abs() < 0.05, "{}", growth(&near, 0.25));
    assert!((growth(&far, 0.0) - 1.0).abs() < 0.05, "{}", growth(&far, 0.0));
    assert!(growth(&far, 1.0) > 1.5, "{}", growth(&far, 1.0));
}
