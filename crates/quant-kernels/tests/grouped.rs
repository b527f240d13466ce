//! Codes with weights of 4 bits in groups: every level this machine has against the reference, bit for bit.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use half::{bf16, f16};
use ndarray::{Array1, Array2, ArrayViewMut2, s};
use quant_core::operators::{
    GroupedLinear, GroupedMatmul, MAX_DEPTH, Output, QuantizedActivations, Reference,
};
use quant_core::{Bits, Groups, QuantizedMatrix};
use quant_kernels::{Cpu, IntegerLevel, Par};

fn codes(rows: usize, cols: usize, mut state: u32) -> Array2<i8> {
    Array2::from_shape_simple_fn((rows, cols), || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 24) as u8).cast_signed()
    })
}

fn linear(bits: u32, (out, inputs): (usize, usize), groups: Groups, bias: bool) -> GroupedLinear {
    let bits = Bits::new(bits).unwrap();
    let top = bits.max_level() as u8;
    let levels = codes(out, inputs, 5).mapv(|code| code.cast_unsigned() & top);
    let count = groups.count(inputs);
    let scales = Array2::from_shape_fn((out, count), |(i, g)| 0.001 + (i * 3 + g) as f32 * 1.7e-4);
    let zeros = Array2::from_shape_fn((out, count), |(i, g)| ((i + 3 * g) % (usize::from(top) + 1)) as f32);
    let matrix = QuantizedMatrix::new(bits, levels, scales, zeros, groups).unwrap();
    let bias = bias.then(|| Array1::from_shape_fn(out, |i| i as f32 * 0.3 - 2.0));
    GroupedLinear::new(matrix, bias).unwrap()
}

fn activations(tokens: usize, inputs: usize, zeros: bool) -> QuantizedActivations {
    let mut scales = Array1::from_shape_fn(tokens, |t| 0.01 + t as f32 * 0.003);
    if tokens > 2 {
        scales[1] = f32::NAN;
    }
    let zeros = zeros.then(|| Array1::from_shape_fn(tokens, |t| [-128, 127, 5][t % 3]));
    QuantizedActivations { codes: codes(tokens, inputs, 9), scales, zeros }
}

/// The levels of this machine; those it lacks are named among the skipped tests.
fn levels_present() -> Vec<IntegerLevel> {
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

/// Results in one type, in rows and by columns that are not adjacent.
fn results<T: Copy + Default>(
    operators: &dyn GroupedMatmul,
    linear: &GroupedLinear,
    x: &QuantizedActivations,
    par: Par,
    output: for<'v> fn(ArrayViewMut2<'v, T>) -> Output<'v>,
) -> [Array2<T>; 2] {
    let shape = (x.codes.nrows(), linear.matrix().dim().0);
    let prepared = operators.prepare_groups(linear, par).unwrap();
    assert_eq!(prepared.shape(), linear.matrix().dim());
    let mut rows = Array2::from_elem(shape, T::default());
    prepared.forward(x, output(rows.view_mut()), par).unwrap();
    let mut columns = Array2::from_elem((shape.1, shape.0), T::default());
    prepared.forward(x, output(columns.view_mut().reversed_axes()), par).unwrap();
    [rows, columns.reversed_axes()]
}

fn conforms(levels: &[IntegerLevel], linear: &GroupedLinear, x: &QuantizedActivations, case: &str) {
    // NaN has many bit patterns, all of which are NaN.
    let float = |out: Array2<f32>| out.mapv(|x| if x.is_nan() { u32::MAX } else { x.to_bits() });
    let want =
        results(&Reference, linear, x, Par::Seq, |out: ArrayViewMut2<'_, f32>| Output::F32(out)).map(float);
    for &level in levels {
        for par in [Par::Seq, Par::new(3)] {
            let cpu = Cpu::for_level(level);
            let got =
                results(&cpu, linear, x, par, |out: ArrayViewMut2<'_, f32>| Output::F32(out)).map(float);
            assert_eq!(got, want, "{case} {level} {par}");
        }
    }
}

/// Groups of whole words, of others, one for all, and of every column.
fn groups(inputs: usize) -> Vec<Groups> {
    let of_column = (0..inputs).map(|c| ((c * 5 + c / 3) % inputs.div_ceil(16).max(1)) as u32).collect();
    vec![
        Groups::Channel,
        Groups::Size(32),
        Groups::Size(128),
        Groups::Size(20),
        Groups::Size(3),
        Groups::Index { size: 16, of_column },
    ]
}

#[test]
fn every_level_conforms_to_the_reference() {
    let present = levels_present();
    for (tokens, out, inputs) in [
        (1, 1, 1),
        (1, 70, 136),
        (2, 33, 64),
        (3, 5, 40),
        (5, 31, 300),
        (12, 32, 128),
        (29, 40, 200),
        (3, 5, 0),
        (0, 4, 8),
    ] {
        for (i, groups) in groups(inputs).into_iter().enumerate() {
            for bits in [2, 4] {
                let linear = linear(bits, (out, inputs), groups.clone(), i % 2 == 0);
                for zeros in [false, true] {
                    let case = format!("{tokens} {out} {inputs} {groups:?} {bits} {zeros}");
                    conforms(&present, &linear, &activations(tokens, inputs, zeros), &case);
                }
            }
        }
    }
}

#[test]
fn every_type_of_result_and_the_bare_sums() {
    let x = activations(14, 264, true);
    let linear = linear(4, (45, 264), Groups::Size(128), true);
    for level in levels_present() {
        let cpu = Cpu::for_level(level);
        for par in [Par::Seq, Par::new(2)] {
            macro_rules! equal {
                ($output:expr, $bits:expr) => {
                    let of = |operators: &dyn GroupedMatmul| {
                        results(operators, &linear, &x, par, $output).map(|out| out.mapv($bits))
                    };
                    assert_eq!(of(&cpu), of(&Reference), "{level} {par}");
                };
            }
            equal!(|out| Output::Bf16(out), |x: bf16| if x.is_nan() { u16::MAX } else { x.to_bits() });
            equal!(|out| Output::F16(out), |x: f16| if x.is_nan() { u16::MAX } else { x.to_bits() });
            equal!(|codes| Output::Codes { codes, offset: -3 }, |x: i8| x);
            let (mut got, mut want) = (Array2::from_elem((14, 90), 7), Array2::zeros((14, 45)));
            cpu.prepare_groups(&linear, par)
                .unwrap()
                .sums(x.codes.view(), got.slice_mut(s![.., ..;2]), par)
                .unwrap();
            Reference
                .prepare_groups(&linear, par)
                .unwrap()
                .sums(x.codes.view(), want.view_mut(), par)
                .unwrap();
            assert_eq!(got.slice(s![.., ..;2]), want, "{level} {par}");
            let prepared = cpu.prepare_groups(&linear, par).unwrap();
            let mut wrong = Array2::<f32>::zeros((14, 46));
            let error = prepared.forward(&x, wrong.view_mut().into(), par).unwrap_err().to_string();
            assert!(error.contains("[14, 45]") && error.contains("[14, 46]"), "{error}");
        }
    }
}

/// The largest sums there are, of one sign and of signs that change from byte to byte.
#[test]
fn extremes_do_not_saturate() {
    let present = levels_present();
    let bits = Bits::new(4).unwrap();
    for inputs in [8, 4096, MAX_DEPTH] {
        for (level, zero) in [(15, 0.0), (0, 15.0), (15, 15.0)] {
            for code in [-128_i8, 127] {
                let levels = Array2::from_elem((33, inputs), level);
                let (scales, zeros) = (Array2::ones((33, 1)), Array2::from_elem((33, 1), zero));
                let matrix = QuantizedMatrix::new(bits, levels, scales, zeros, Groups::Channel).unwrap();
                let linear = GroupedLinear::new(matrix, None).unwrap();
                let want =
                    i32::from(code) * (i32::from(level) - zero as i32) * i32::try_from(inputs).unwrap();
                for &instructions in &present {
                    let prepared = Cpu::for_level(instructions).prepare_groups(&linear, Par::Seq).unwrap();
                    let (x, mut sums) = (Array2::from_elem((3, inputs), code), Array2::zeros((3, 33)));
                    prepared.sums(x.view(), sums.view_mut(), Par::Seq).unwrap();
                    assert!(
                        sums.iter().all(|&sum| sum == want),
                        "{instructions} {level} {zero} {code} {inputs}"
                    );
                }
            }
        }
    }
    let sign = |i: usize, j: usize| (i + j).is_multiple_of(2);
    let levels = Array2::from_shape_fn((17, 512), |(i, j)| if sign(i, j) { 0 } else { 15 });
    let (scales, zeros) = (Array2::from_elem((17, 2), 0.5), Array2::from_elem((17, 2), 7.0));
    let matrix = QuantizedMatrix::new(bits, levels, scales, zeros, Groups::Size(256)).unwrap();
    let codes = Array2::from_shape_fn((13, 512), |(i, j)| if sign(i, j) { -128 } else { 127 });
    for zero in [-128, 127] {
        let (scales, zeros) = (Array1::ones(1), Some(Array1::from_elem(1, zero)));
        let x = QuantizedActivations { codes: codes.clone(), scales, zeros };
        conforms(&present, &GroupedLinear::new(matrix.clone(), None).unwrap(), &x, "signs that change");
    }
}

/// Several tasks of each kind.
#[test]
fn large_products_conform() {
    let x = activations(40, 1152, false);
    conforms(&levels_present(), &linear(4, (300, 1152), Groups::Size(128), false), &x, "large");
}
