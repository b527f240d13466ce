//! Products of bytes: every level this machine has, against sums in plain loops.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use ndarray::{Array2, ArrayView2, s};
use quant_core::operators::MAX_DEPTH;
use quant_kernels::{IntegerLevel, IntegerWeight, Par};

fn fill(rows: usize, cols: usize, mut state: u32) -> Array2<i8> {
    Array2::from_shape_simple_fn((rows, cols), || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 24) as u8).cast_signed()
    })
}

fn specification(a: ArrayView2<'_, i8>, w: ArrayView2<'_, i8>) -> Array2<i32> {
    Array2::from_shape_fn((a.nrows(), w.nrows()), |(i, j)| {
        let products = a.row(i).into_iter().zip(w.row(j)).map(|(&a, &w)| i64::from(a) * i64::from(w));
        i32::try_from(products.sum::<i64>()).unwrap()
    })
}

/// The levels of this machine; those it lacks are named among the skipped tests.
fn levels() -> Vec<IntegerLevel> {
    IntegerLevel::every()
        .into_iter()
        .filter_map(|(name, level)| {
            if level.is_none() {
                quant_testkit::skipped(format!("level {name} was not run: this machine lacks it"));
            }
            level
        })
        .collect()
}

/// Single elements, tile edges of every kernel, odd words, several tasks of each kind.
const SHAPES: [(usize, usize, usize); 14] = [
    (1, 1, 1),
    (1, 3, 17),
    (3, 1, 160),
    (14, 32, 384),
    (15, 33, 385),
    (13, 31, 767),
    (17, 172, 161),
    (172, 160, 3),
    (29, 65, 2),
    (5, 300, 770),
    (300, 5, 1),
    (4, 8, 0),
    (0, 3, 5),
    (70, 700, 1538),
];

#[test]
fn every_level_gives_the_sums() {
    for level in levels() {
        for (m, n, k) in SHAPES {
            let (a, w) = (fill(m, k, 1), fill(n, k, 2));
            let want = specification(a.view(), w.view());
            for par in [Par::Seq, Par::new(2), Par::new(5)] {
                let weight = IntegerWeight::for_level(level, w.view(), par).unwrap();
                assert_eq!((weight.out_features(), weight.in_features(), weight.level()), (n, k, level));
                let mut got = Array2::from_elem((m, n), i32::MIN);
                weight.sums_into(a.view(), got.view_mut(), par);
                assert_eq!(got, want, "{level} {m}x{k}x{n} {par}");
            }
            let (a_columns, w_columns) =
                (a.t().as_standard_layout().into_owned(), w.t().as_standard_layout().into_owned());
            let weight = IntegerWeight::for_level(level, w_columns.t(), Par::Seq).unwrap();
            assert_eq!(weight.sums(a_columns.t(), Par::Seq), want, "{level} {m}x{k}x{n} transposed operands");
            let (wide_a, wide_w) = (fill(m, 2 * k, 3), fill(n, 2 * k, 4));
            let (a, w) = (wide_a.slice(s![.., ..;2]), wide_w.slice(s![.., ..;2]));
            let weight = IntegerWeight::for_level(level, w, Par::Seq).unwrap();
            assert_eq!(weight.sums(a, Par::Seq), specification(a, w), "{level} {m}x{k}x{n} strided operands");
        }
    }
}

/// What saturating instructions get wrong, and what long sums overflow.
#[test]
fn extremes_do_not_saturate() {
    for level in levels() {
        for k in [4, 4096, 29_568, MAX_DEPTH] {
            for (a, w) in [(-128, -128), (-128, 127), (127, -128), (127, 127)] {
                let (x, weight) = (Array2::from_elem((3, k), a), Array2::from_elem((18, k), w));
                let weight = IntegerWeight::for_level(level, weight.view(), Par::Seq).unwrap();
                let want = i32::from(a) * i32::from(w) * i32::try_from(k).unwrap();
                assert!(
                    weight.sums(x.view(), Par::Seq).iter().all(|&sum| sum == want),
                    "{level} {a} {w} {k}"
                );
            }
            // Signs that change from byte to byte, so that no pair of products has one sign.
            let sign = |i: usize, j: usize| if (i + j).is_multiple_of(2) { -128 } else { 127 };
            let (x, w) = (
                Array2::from_shape_fn((2, k), |(i, j)| sign(i, j)),
                Array2::from_shape_fn((17, k), |(i, j)| sign(i, j)),
            );
            let weight = IntegerWeight::for_level(level, w.view(), Par::Seq).unwrap();
            assert_eq!(weight.sums(x.view(), Par::Seq), specification(x.view(), w.view()), "{level} {k}");
        }
    }
}

#[test]
fn a_weight_is_held_in_a_byte_each() {
    let (out, inputs) = (640, 4096);
    for level in levels() {
        let weight = IntegerWeight::for_level(level, fill(out, inputs, 1).view(), Par::Seq).unwrap();
        assert!((out * inputs..=out * (inputs + 4)).contains(&weight.bytes()), "{level} {}", weight.bytes());
    }
}

#[test]
fn sums_that_could_overflow_are_refused() {
    let error =
        IntegerWeight::new(Array2::zeros((1, MAX_DEPTH + 1)).view(), Par::Seq).unwrap_err().to_string();
    assert!(error.contains("at most 65536") && error.contains("65537"), "{error}");
}

mod operators {
    use super::*;
    use quant_core::operators::{DynamicQuant, Reference, StaticNumerics};
    use quant_core::{Bits, FloatType, QParams};
    use quant_kernels::{
        Cpu, quantize_static, quantize_tokens, rms_norm, rms_norm_quantize, silu_mul, silu_mul_quantize,
    };
    use quant_testkit::{Conformance, profiles};

    fn numbers(rows: usize, cols: usize, seed: u32) -> Array2<f32> {
        fill(rows, cols, seed).mapv(|code| f32::from(code) * 0.031)
    }

    #[test]
    fn the_processor_conforms_on_every_level() {
        // Inputs of every type that a device's model can have.
        for inputs in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
            let fixed = [StaticNumerics::Divided, StaticNumerics::Ascend { model: FloatType::Bf16 }];
            let suite = Conformance { profiles: profiles(), fixed: fixed.to_vec(), inputs };
            suite.check("reference", &Reference);
            for level in levels() {
                suite.check(level.name(), &Cpu::for_level(level));
            }
        }
    }

    /// Fused passes give the codes and scales of their steps, in old memory and in new.
    #[test]
    fn fused_quantisation_is_that_of_the_steps() {
        for (tokens, features) in [(1, 5), (3, 16), (37, 130), (0, 4)] {
            let (x, up, weight) = (
                numbers(tokens, features, 3),
                numbers(tokens, features, 4),
                numbers(1, features, 5).row(0).to_owned(),
            );
            let by_columns = x.t().as_standard_layout().into_owned();
            for numerics in profiles() {
                let normed = rms_norm(x.view(), weight.view(), 1e-5);
                let mut gated = x.clone();
                silu_mul(gated.view_mut(), up.view());
                let (norm_want, gate_want) = (
                    Reference.quantize(&numerics, normed.view(), Par::Seq).unwrap(),
                    Reference.quantize(&numerics, gated.view(), Par::Seq).unwrap(),
                );
                let mut into = quantize_tokens(numerics, numbers(2, 3, 1).view(), Par::Seq);
                for par in [Par::Seq, Par::new(4)] {
                    for x in [x.view(), by_columns.t()] {
                        rms_norm_quantize(x, weight.view(), 1e-5, numerics, &mut into, par);
                        assert_eq!(into, norm_want, "{numerics:?} {par}");
                        silu_mul_quantize(x, up.view(), numerics, &mut into, par);
                        assert_eq!(into, gate_want, "{numerics:?} {par}");
                    }
                }
            }
        }
    }

    #[test]
    fn static_quantisation_is_that_of_the_specification() {
        let (bits, params) = (Bits::new(8).unwrap(), QParams { scale: 0.027, zero: 101.0 });
        for numerics in [StaticNumerics::Divided, StaticNumerics::Ascend { model: FloatType::Bf16 }] {
            let mut x = numbers(37, 130, 3);
            for poisoned in [false, true] {
                if poisoned {
                    x[(30, 7)] = f32::INFINITY;
                }
                let want = numerics.quantize(bits, params, x.view());
                for par in [Par::Seq, Par::new(3)] {
                    let got = quantize_static(numerics, bits, params, x.view(), par);
                    assert_eq!((&got.codes, &got.zeros), (&want.codes, &want.zeros));
                    assert_eq!(got.scales[0].to_bits(), want.scales[0].to_bits());
                }
            }
        }
    }
}
