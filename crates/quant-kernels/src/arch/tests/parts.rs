//! Operands as sums of bf16 values: `bf16x2` and `bf16x3`.

use ndarray::{Array2, ArrayView2};

use super::{SHAPES, exact_everywhere, fill, levels, run};
use crate::arch::Region;
use crate::arch::dispatch::{pack_operand, product, product_packed};
use crate::{Compute, Par};

const SPLIT: [Compute; 2] = [Compute::Bf16x2, Compute::Bf16x3];

#[test]
fn f32_is_bit_identical_below_the_bf16_instructions() {
    let levels: Vec<_> = levels().into_iter().filter(|level| !level.name().ends_with("_bf16")).collect();
    for compute in SPLIT {
        exact_everywhere::<f32>(compute, &levels);
    }
}

#[test]
fn f64_is_bit_identical_on_every_level() {
    exact_everywhere::<f64>(Compute::Bf16x3, &levels());
}

/// What rounding so often leaves.
fn rest(x: &Array2<f32>, roundings: usize) -> Array2<f32> {
    let round = |x: f32| half::bf16::from_f32(x).to_f32();
    (0..roundings).fold(x.clone(), |x, _| x.mapv(|x| x - round(x)))
}

#[test]
fn parts_are_multiplied_one_pair_after_the_other() {
    for (m, n, k) in SHAPES.into_iter().chain([(40, 70, 800)]) {
        let (a, b) = (fill::<f32>(m, k, 1), fill::<f32>(k, n, 2));
        for level in levels() {
            for (compute, terms) in [
                (Compute::Bf16x2, &[(1, 0), (0, 1), (0, 0)][..]),
                (Compute::Bf16x3, &[(2, 0), (1, 1), (0, 2), (1, 0), (0, 1), (0, 0)]),
            ] {
                let mut want = fill(m, n, 7);
                for (term, &(left, right)) in terms.iter().enumerate() {
                    let (a, b) = (rest(&a, left), rest(&b, right));
                    let (whole, dst) = (Region::Full, want.view_mut());
                    product(level, dst, whole, term > 0, 0.75, a.view(), b.view(), Compute::Bf16, Par::Seq);
                }
                let case = format!("{level} {compute} {m}x{k}x{n}");
                assert_eq!(
                    run(level, Region::Full, false, a.view(), b.view(), compute, Par::new(2)),
                    want,
                    "{case}"
                );
                let packed = pack_operand(level, b.view(), compute, Par::new(2));
                let mut got = fill(m, n, 7);
                product_packed(got.view_mut(), false, 0.75, a.view(), &packed, Par::Seq);
                assert_eq!(got, want, "{case} packed");
            }
        }
    }
}

/// The largest error of a product beside `|a| |b|`, over that.
fn worst(got: &Array2<f32>, a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, floor: f64) -> f64 {
    let (a, b) = (a.mapv(f64::from), b.mapv(f64::from));
    let (want, size) = (a.dot(&b), a.mapv(f64::abs).dot(&b.mapv(f64::abs)));
    let errors = got.iter().zip(&want).zip(&size);
    errors
        .map(|((&got, want), size)| ((f64::from(got) - want).abs() - floor).max(0.0) / size)
        .fold(0.0, f64::max)
}

fn multiplied(level: crate::Level, a: &Array2<f32>, b: &Array2<f32>, compute: Compute) -> Array2<f32> {
    let mut dst = Array2::zeros((a.nrows(), b.ncols()));
    product(level, dst.view_mut(), Region::Full, false, 1.0, a.view(), b.view(), compute, Par::Seq);
    dst
}

#[test]
fn errors_are_what_the_settings_promise() {
    let (a, b) = (fill::<f32>(40, 512, 1), fill::<f32>(512, 50, 2));
    for level in levels() {
        let error = |compute| worst(&multiplied(level, &a, &b, compute), a.view(), b.view(), 0.0);
        let [plain, one, two, three] = Compute::ALL.map(error);
        assert!(one > 2.0_f64.powi(-14), "{level}: one part {one:e}, which needs no others");
        assert!(two < 2.0_f64.powi(-17) && two > plain, "{level}: two parts {two:e}");
        assert!(three < 2.0_f64.powi(-22), "{level}: three parts {three:e}");
    }
    // A single product has no sums whose signs cancel.
    let (a, b) = (fill::<f32>(300, 1, 3), fill::<f32>(1, 300, 4));
    for level in levels() {
        // Six products and sums in f32 round.
        for (compute, bound) in
            [(Compute::Bf16x2, 3.0 * 2.0_f64.powi(-16)), (Compute::Bf16x3, 2.0_f64.powi(-21))]
        {
            let error = worst(&multiplied(level, &a, &b, compute), a.view(), b.view(), 0.0);
            assert!(error < bound, "{level} {compute}: {error:e}");
        }
    }
}

/// Parts below the least normal number may count as zero: no more than that is lost, times the other operand.
#[test]
fn the_floor_is_the_least_normal_number() {
    let tiny = 2.0_f32.powi(-118);
    let (mut a, b) = (fill::<f32>(40, 64, 1), fill::<f32>(64, 50, 2));
    a.mapv_inplace(|x| x * tiny);
    for level in levels() {
        for (compute, bound) in [(Compute::Bf16x2, -16), (Compute::Bf16x3, -22)] {
            let got = multiplied(level, &a, &b, compute);
            // Every one of 64 products of either sign, and of sums on the way: all parts together.
            let floor = 64.0 * 6.0 * f64::from(f32::MIN_POSITIVE);
            let error = worst(&got, a.view(), b.view(), floor);
            assert!(error < 2.0_f64.powi(bound), "{level} {compute}: {error:e}");
        }
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX] {
        let (a, b) = (Array2::from_elem((2, 3), value), Array2::from_elem((3, 2), 1.0));
        for level in levels() {
            for compute in SPLIT {
                let got = multiplied(level, &a, &b, compute);
                assert!(got.iter().all(|x| !x.is_finite()), "{level} {compute} {value}: {got}");
            }
        }
    }
}
