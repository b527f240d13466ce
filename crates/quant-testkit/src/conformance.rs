//! What every implementation of the operators of integer execution must do: be equal to the reference, bit for bit.

use half::{bf16, f16};
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2};
use quant_core::operators::{
    Bias, DynamicNumerics, DynamicQuant, IntegerLinear, Output, Processor, QuantMatmul, QuantizedActivations,
    Reference, StaticNumerics, StaticQuant,
};
use quant_core::{ActRule, Bits, FloatType, Par, QParams};

/// The suite. The CPU, the specification and an NPU or its simulator run the same.
#[derive(Clone, Debug)]
pub struct Conformance {
    /// Ways of making codes that the implementation has.
    pub profiles: Vec<DynamicNumerics>,
    /// Ways of making them under a fixed scale.
    pub fixed: Vec<StaticNumerics>,
    /// The type that activations have when they arrive: a device's model has one of 16 bits.
    pub inputs: FloatType,
}

/// Every way of making codes.
#[must_use]
pub fn profiles() -> Vec<DynamicNumerics> {
    let (eight, four) = (Bits::new(8).unwrap(), Bits::new(4).unwrap());
    let divided = |bits, rule| DynamicNumerics::Divided { bits, rule, clip_ratio: 0.95.into() };
    vec![
        DynamicNumerics::Ascend { bits: eight },
        DynamicNumerics::Ascend { bits: four },
        DynamicNumerics::CompressedTensors { bits: eight },
        divided(eight, ActRule::Asymmetric),
        divided(four, ActRule::Symmetric),
    ]
}

fn codes(rows: usize, cols: usize, mut state: u32) -> Array2<i8> {
    Array2::from_shape_simple_fn((rows, cols), || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 24) as u8).cast_signed()
    })
}

fn linears(n: usize, k: usize) -> Vec<IntegerLinear> {
    let scales = Array1::from_shape_fn(n, |i| 0.001 + i as f32 * 1.7e-5);
    let integer = Array1::from_shape_fn(n, |i| i32::try_from(i).unwrap() * 977 - 4000);
    let float = Array1::from_shape_fn(n, |i| i as f32 * 0.3 - 2.0);
    [Bias::None, Bias::Integer(integer), Bias::Float(float)]
        .into_iter()
        .map(|bias| IntegerLinear::new(codes(n, k, 5), scales.clone(), bias).unwrap().with_fp19_scales())
        .collect()
}

/// One type of results of an implementation, into rows and into columns that are not adjacent.
fn results<T: Copy + Default + Send>(
    operators: &dyn QuantMatmul,
    linear: &IntegerLinear,
    x: &QuantizedActivations,
    par: Par,
    output: for<'v> fn(ArrayViewMut2<'v, T>) -> Output<'v>,
) -> Vec<Array2<T>> {
    let shape = (x.codes.nrows(), linear.codes().nrows());
    let prepared = operators.prepare(linear, par).unwrap();
    let mut rows = Array2::from_elem(shape, T::default());
    prepared.forward(x, output(rows.view_mut()), par).unwrap();
    let mut columns = Array2::from_elem((shape.1, shape.0), T::default());
    prepared.forward(x, output(columns.view_mut().reversed_axes()), par).unwrap();
    vec![rows, columns.reversed_axes()]
}

fn sums(a: ArrayView2<'_, i8>, w: ArrayView2<'_, i8>) -> Array2<i32> {
    Array2::from_shape_fn((a.nrows(), w.nrows()), |(i, j)| {
        a.row(i).iter().zip(w.row(j)).map(|(&a, &w)| i32::from(a) * i32::from(w)).sum()
    })
}

impl Conformance {
    /// Runs the suite; attention over a cache of codes too, where there is one.
    ///
    /// # Panics
    /// Where the implementation differs from the reference, with the case.
    pub fn check(&self, name: &str, operators: &impl Processor) {
        self.check_cache(name, operators);
        for (m, n, k) in [(1, 1, 1), (1, 70, 129), (15, 33, 64), (40, 100, 200), (3, 5, 0), (0, 4, 8)] {
            for numerics in &self.profiles {
                let mut x = codes(m, k, 9).mapv(|code| self.inputs.round(f32::from(code) * 0.031));
                if m > 2 && k > 1 {
                    x.row_mut(0).fill(0.0);
                    x[(1, 1)] = f32::NAN;
                    x[(2, 0)] = f32::INFINITY;
                }
                if m > 3 && k > 1 {
                    // So small that the reciprocal of its scale is none.
                    x.row_mut(3).fill(self.inputs.round(1e-40));
                }
                let want = Reference.quantize(numerics, x.view(), Par::Seq).unwrap();
                for par in [Par::Seq, Par::new(3)] {
                    let got = operators.quantize(numerics, x.view(), par).unwrap();
                    assert_eq!((&got.codes, &got.zeros), (&want.codes, &want.zeros), "{name} {numerics:?}");
                    let bits = |x: &QuantizedActivations| x.scales.mapv(canonical);
                    assert_eq!(bits(&got), bits(&want), "{name} {numerics:?}");
                    for linear in linears(n, k) {
                        let case = format!("{name} {m}x{k}x{n} {numerics:?} {par}");
                        products(&case, operators, &linear, &want, par);
                    }
                }
            }
            for &numerics in &self.fixed {
                self.check_fixed(name, operators, numerics, (m, k));
            }
            // A scale and a zero of all tokens, as static quantisation leaves them.
            for zeros in [None, Some(Array1::from_elem(1, -5))] {
                for scale in [1.0, 0.02] {
                    let x = QuantizedActivations {
                        codes: codes(m, k, 9),
                        scales: Array1::from_elem(1, scale),
                        zeros: zeros.clone(),
                    };
                    for linear in linears(n, k) {
                        let case = format!("{name} {m}x{k}x{n} static {scale} {zeros:?}");
                        products(&case, operators, &linear, &x, Par::Seq);
                    }
                }
            }
        }
    }
}

impl Conformance {
    /// Codes under fixed scales: usual ones, so small that the reciprocal is none, so large that all codes are 0; with numbers beyond the
    /// ends and such that are not finite.
    fn check_fixed(
        &self,
        name: &str,
        operators: &impl Processor,
        numerics: StaticNumerics,
        (m, k): (usize, usize),
    ) {
        let bits = Bits::new(8).unwrap();
        let x = codes(m, k, 11).mapv(|code| self.inputs.round(f32::from(code) * 0.0313));
        let mut infinite = x.clone();
        if let Some(first) = infinite.first_mut() {
            *first = f32::NEG_INFINITY;
        }
        for scale in [0.02, 0.3, 1e-40, 1e30] {
            for zero in [128.0, 0.0, 123.0, 255.0] {
                let params = QParams { scale, zero };
                for x in [&x, &infinite] {
                    let want = Reference.quantize_static(numerics, bits, params, x.view(), Par::Seq).unwrap();
                    let got =
                        operators.quantize_static(numerics, bits, params, x.view(), Par::new(2)).unwrap();
                    let case = format!("{name} {m}x{k} {numerics:?} {params:?}");
                    assert_eq!((&got.codes, &got.zeros), (&want.codes, &want.zeros), "{case}");
                    assert_eq!(got.scales.mapv(canonical), want.scales.mapv(canonical), "{case}");
                }
            }
        }
    }
}

/// NaN has many bit patterns, all of which are NaN.
pub(crate) fn canonical(x: f32) -> u32 {
    if x.is_nan() { u32::MAX } else { x.to_bits() }
}

fn products(
    case: &str,
    operators: &dyn QuantMatmul,
    linear: &IntegerLinear,
    x: &QuantizedActivations,
    par: Par,
) {
    macro_rules! equal {
        ($output:expr, $bits:expr) => {
            let of = |operators: &dyn QuantMatmul| {
                results(operators, linear, x, par, $output)
                    .into_iter()
                    .map(|out| out.mapv($bits))
                    .collect::<Vec<_>>()
            };
            assert_eq!(of(operators), of(&Reference), "{case}");
        };
    }
    equal!(|out| Output::F32(out), canonical);
    equal!(|out| Output::Bf16(out), |x: bf16| if x.is_nan() { u16::MAX } else { x.to_bits() });
    equal!(|out| Output::F16(out), |x: f16| if x.is_nan() { u16::MAX } else { x.to_bits() });
    equal!(|codes| Output::Codes { codes, offset: -3 }, |x: i8| x);
    let prepared = operators.prepare(linear, par).unwrap();
    assert_eq!(prepared.shape(), linear.codes().dim(), "{case}");
    let (m, n) = (x.codes.nrows(), linear.codes().nrows());
    let mut got = Array2::zeros((m, n));
    prepared.sums(x.codes.view(), got.view_mut(), par).unwrap();
    assert_eq!(got, sums(x.codes.view(), linear.codes().view()), "{case}");
    let mut wrong = Array2::<f32>::zeros((m, n + 1));
    assert!(prepared.forward(x, wrong.view_mut().into(), par).is_err(), "{case}");
}
