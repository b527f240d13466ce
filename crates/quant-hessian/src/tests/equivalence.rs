//! The solver against the published formulation, in f64, where the codes must be the same.

use ndarray::{Array2, Axis};
use proptest::prelude::*;
use quant_core::{ClipSearch, Convention, Groups, Variant};
use quant_kernels::Par;

use super::reference::{Prepared, elimination, inverse, published};
use super::{grid, hessian};
use crate::gptq::solve;
use crate::solve::Aim;
use crate::{ActOrder, GptqConfig, GptqResult};
use quant_testkit::Numbers;

fn ours(weight: &Array2<f32>, problem: &Prepared, config: &GptqConfig) -> GptqResult {
    let order = problem.order.as_deref();
    solve(weight.view(), &problem.panels(), Aim::Weight, order, &problem.dead, config, Par::Seq).unwrap()
}

fn conventions() -> impl Strategy<Value = (Convention, u32, bool)> {
    prop_oneof![
        Just((Convention::QAsym, 4, true)),
        Just((Convention::QAsym, 2, false)),
        Just((Convention::QAsym, 1, true)),
        Just((Convention::QSym, 3, false)),
        Just((Convention::QSymGptq, 4, false)),
        Just((Convention::QAwq, 3, true)),
        Just((Convention::QAsym, 8, true)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every combination of grouping, order, block size, convention, clip search and dead columns.
    #[test]
    fn codes_are_those_of_the_published_formulation(
        seed: u64,
        n in 1_usize..90,
        out in 1_usize..5,
        group in proptest::option::of(1_usize..100),
        (order, static_groups) in prop_oneof![
            Just((ActOrder::None, false)),
            Just((ActOrder::None, true)),
            Just((ActOrder::Static, true)),
            Just((ActOrder::Dynamic, false)),
        ],
        block in prop_oneof![Just(128_usize), 1_usize..70],
        (convention, bits, exact) in conventions(),
        clip: bool,
        dead in proptest::collection::vec(0_usize..90, 0..3),
    ) {
        let mut noise = Numbers::new(seed);
        let mut x = noise.activations(2 * n + 3, n);
        for &column in &dead {
            x.index_axis_mut(Axis(1), column % n).fill(0.0);
        }
        let weight = noise.normals(out, n);
        let mut grid = grid(convention, bits);
        grid.variant = if exact { Variant::Exact } else { Variant::Official };
        let config = GptqConfig {
            group,
            clip: clip.then(ClipSearch::default),
            act_order: order,
            static_groups,
            block,
            ..GptqConfig::new(grid)
        };
        let h = hessian(&x).finish().unwrap();
        let problem = Prepared::new(&h, order.permutes(), 0.01);
        let want = published(&weight, &problem, &config);
        let got = ours(&weight, &problem, &config);
        prop_assert_eq!(got.matrix.levels(), &want.levels);
        for (got, want) in [(got.matrix.scales(), &want.scales), (got.matrix.zeros(), &want.zeros)] {
            let scale = want.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
            prop_assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() <= 1e-6 * scale));
        }
        for (row, loss) in got.row_losses.iter().enumerate() {
            let want: f64 = want.errors.row(row).iter().map(|e| e * e / 2.0).sum();
            // A loss of pure rounding errors (groups of one column) is compared with what it is made of.
            let size = f64::from(weight.row(row).dot(&weight.row(row))) * problem.h.diag().iter().sum::<f64>();
            prop_assert!((loss - want).abs() <= 1e-9 * want + 1e-15 * size, "row {}: {} {}", row, loss, want);
        }
        match (got.matrix.groups(), group, order) {
            (Groups::Channel, None, _) => {}
            (Groups::Size(size), Some(g), ActOrder::None | ActOrder::Static) => prop_assert_eq!(*size, g),
            (Groups::Index { size, of_column }, Some(g), ActOrder::Dynamic) => {
                prop_assert_eq!(*size, g);
                for k in 0..n {
                    prop_assert_eq!(of_column[problem.column(k)] as usize, k / g);
                }
            }
            (groups, ..) => prop_assert!(false, "unexpected groups {:?}", groups),
        }
    }

    /// Section 7, property 3.
    #[test]
    fn codes_are_those_of_obq_elimination(seed: u64, n in 1_usize..65, act_order: bool) {
        let mut noise = Numbers::new(seed);
        let x = noise.activations(n + 5, n);
        let weight = noise.normals(2, n);
        let act = if act_order { ActOrder::Static } else { ActOrder::None };
        let config = GptqConfig { act_order: act, ..GptqConfig::new(grid(Convention::QAsym, 3)) };
        let problem = Prepared::new(&hessian(&x).finish().unwrap(), act_order, 0.01);
        let ours = ours(&weight, &problem, &config);
        prop_assert_eq!(ours.matrix.levels(), &elimination(&weight, &problem, &config));
    }

    /// Section 7, property 2: `W − Ŵ = E U`, `tr((W − Ŵ) H_d (W − Ŵ)ᵀ) = ‖E‖²`. Ours are `W − Ŵ` and the loss; `E` comes from
    /// the published loop, `U` from the inverse.
    #[test]
    fn differences_are_errors_times_u(seed: u64, n in 1_usize..80, act_order: bool, dead in proptest::option::of(0_usize..80)) {
        let mut noise = Numbers::new(seed);
        let mut x = noise.activations(n + 5, n);
        if let Some(dead) = dead {
            x.column_mut(dead % n).fill(0.0);
        }
        let weight = noise.normals(3, n);
        let act = if act_order { ActOrder::Static } else { ActOrder::None };
        let config = GptqConfig { group: Some(16), act_order: act, ..GptqConfig::new(grid(Convention::QAsym, 2)) };
        let problem = Prepared::new(&hessian(&x).finish().unwrap(), act_order, 0.01);
        let want = published(&weight, &problem, &config);
        let got = ours(&weight, &problem, &config);
        let quantised = got.matrix.dequantize();
        // In processing order, dead columns zeroed.
        let difference = Array2::from_shape_fn((3, n), |(row, k)| {
            let c = problem.column(k);
            f64::from(if problem.dead[c] { 0.0 } else { weight[(row, c)] }) - f64::from(quantised[(row, c)])
        });
        let largest = f64::from(weight.iter().fold(0.0_f32, |a, b| a.max(b.abs())));
        for (a, b) in difference.iter().zip(&want.errors.dot(&problem.upper_of_inverse())) {
            prop_assert!((a - b).abs() < 1e-4 * largest);
        }
        // The other way round, row by row: the errors that our differences imply are those whose squares we report.
        let errors = difference.dot(&inverse(&problem.upper_of_inverse()));
        for (row, &loss) in got.row_losses.iter().enumerate() {
            let sum: f64 = errors.row(row).iter().map(|e| e * e / 2.0).sum();
            prop_assert!((loss - sum).abs() <= 1e-5 * sum, "row {row}: {loss} {sum}");
        }
        let trace = (&difference.dot(&problem.h) * &difference).sum();
        prop_assert!((got.weighted_error() - trace).abs() <= 1e-5 * trace);
    }

    /// Section 7, property 4: without groups that look at the block, the block size is invisible.
    #[test]
    fn block_size_is_invisible_in_f64(seed: u64, n in 1_usize..150, group in proptest::option::of(1_usize..50)) {
        let mut noise = Numbers::new(seed);
        let x = noise.activations(n + 5, n);
        let weight = noise.normals(3, n);
        let base = GptqConfig { group, static_groups: true, ..GptqConfig::new(grid(Convention::QSym, 3)) };
        let problem = Prepared::new(&hessian(&x).finish().unwrap(), false, 0.01);
        let reference = ours(&weight, &problem, &base);
        for block in [1, 32, n] {
            let other = ours(&weight, &problem, &GptqConfig { block, ..base.clone() });
            prop_assert_eq!(&other.matrix, &reference.matrix);
        }
    }
}

/// Several super-blocks and panels, groups that straddle them, rows in several tiles.
#[test]
fn codes_agree_across_panels_and_tiles() {
    let mut noise = Numbers::new(11);
    let (n, out) = (700, 70);
    let x = noise.activations(n + 50, n);
    let weight = noise.normals(out, n);
    let h = hessian(&x).finish().unwrap();
    for (act_order, group, block) in
        [(ActOrder::None, Some(300), 128), (ActOrder::Dynamic, Some(96), 200), (ActOrder::Static, None, 600)]
    {
        let config = GptqConfig { act_order, group, block, ..GptqConfig::new(grid(Convention::QAsym, 4)) };
        let problem = Prepared::new(&h, act_order.permutes(), 0.01);
        let got = ours(&weight, &problem, &config);
        let sample = weight.select(Axis(0), &[0, 63, 64, 69]);
        let want = published(&sample, &problem, &config);
        for (i, row) in [0, 63, 64, 69].into_iter().enumerate() {
            assert_eq!(got.matrix.levels().row(row), want.levels.row(i), "{act_order:?} {group:?} row {row}");
        }
    }
}
