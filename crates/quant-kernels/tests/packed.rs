//! Products with packed levels: every level this machine has, to the bit, against the product with the float matrix and against
//! its sums written out.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, ArrayViewMut1, s};
use quant_core::{Bits, Groups, QuantizedMatrix, Widths};
use quant_kernels::{Compute, Level, PackedWeight, Par, PreparedWeight};
use quant_testkit::Numbers;

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Numbers::new(seed).matrix(rows, cols, 1.0)
}

/// Every level occurs, zeros are whole or, under `broken`, are not.
fn matrix(bits: u32, (out, columns): (usize, usize), groups: Groups, broken: bool) -> QuantizedMatrix {
    let bits = Bits::new(bits).unwrap();
    let top = bits.max_level() as usize;
    let levels = Array2::from_shape_fn((out, columns), |(i, j)| ((i * 7 + j * 13 + i * j) % (top + 1)) as u8);
    let count = groups.count(columns);
    let scales = random(out, count, 5).mapv(|x| 0.01 + x.abs() * 0.013);
    let zeros = Array2::from_shape_fn((out, count), |(i, g)| {
        ((i * 5 + g * 3) % (top + 1)) as f32 + if broken { 0.123_456_79 } else { 0.0 }
    });
    QuantizedMatrix::new(bits, levels, scales, zeros, groups).unwrap()
}

/// Groups of every kind: whole words, words that cross groups, one for all, one of every column.
fn groups(columns: usize) -> Vec<Groups> {
    let of_column = (0..columns).map(|c| ((c * 5 + c / 3) % columns.div_ceil(16).max(1)) as u32).collect();
    vec![
        Groups::Channel,
        Groups::Size(32),
        Groups::Size(128),
        Groups::Size(20),
        Groups::Size(3),
        Groups::Index { size: 16, of_column },
    ]
}

/// One fused multiply-add per column from zero in every block of 384, blocks added in order to the bias.
fn specification(
    x: ArrayView2<'_, f32>,
    weight: ArrayView2<'_, f32>,
    bias: Option<ArrayView1<'_, f32>>,
) -> Array2<f32> {
    Array2::from_shape_fn((x.nrows(), weight.nrows()), |(t, o)| {
        let columns: Vec<usize> = (0..x.ncols()).collect();
        let blocks = columns
            .chunks(384)
            .map(|block| block.iter().fold(0.0, |sum, &j| x[(t, j)].mul_add(weight[(o, j)], sum)));
        blocks
            .fold(bias.map(|bias| bias[o]), |total: Option<f32>, sum| {
                Some(total.map_or(sum, |total| total + sum))
            })
            .unwrap_or(0.0)
    })
}

fn bits_of(x: &Array2<f32>) -> Array2<u32> {
    x.mapv(f32::to_bits)
}

fn check(matrix: &QuantizedMatrix, tokens: &[usize], levels: &[Level], case: &str) {
    let weight = Array2::from_shape_fn(matrix.dim(), |(o, j)| {
        let group = matrix.groups().of(j);
        matrix.scales()[(o, group)] * (f32::from(matrix.levels()[(o, j)]) - matrix.zeros()[(o, group)])
    });
    check_packed(&weight, &|level, par| PackedWeight::for_level(level, matrix, par), tokens, levels, case);
}

/// What `pack` packs, of this weight, against the product with it.
fn check_packed(
    weight: &Array2<f32>,
    pack: &dyn Fn(Level, Par) -> PackedWeight,
    tokens: &[usize],
    levels: &[Level],
    case: &str,
) {
    let (out, inputs) = weight.dim();
    let bias = random(1, 2 * out, 9).row(0).slice(s![..;2]).to_owned();
    let floats = PreparedWeight::<f32>::new(weight.view(), Compute::F32, Par::Seq);
    for &tokens in tokens {
        let mut x = random(tokens, inputs, 3);
        // Zeros of both signs, and a token of nothing else.
        x.iter_mut().step_by(5).for_each(|x| *x = -0.0);
        x.rows_mut().into_iter().take(1).for_each(|mut row| row.fill(-0.0));
        for bias in [None, Some(bias.view())] {
            let want = floats.forward(x.view(), bias, Par::Seq);
            assert_eq!(
                bits_of(&want),
                bits_of(&specification(x.view(), weight.view(), bias)),
                "{case} {tokens}"
            );
            for &level in levels {
                for par in [Par::Seq, Par::new(3)] {
                    let packed = pack(level, par);
                    assert_eq!((packed.out_features(), packed.in_features()), (out, inputs));
                    let mut got = Array2::from_elem((tokens, out), f32::NAN);
                    packed.forward_into(x.view(), bias, got.view_mut(), par);
                    let case = format!("{case} {tokens} tokens {level} {par} bias {}", bias.is_some());
                    assert_eq!(bits_of(&got), bits_of(&want), "{case}");
                    // Other strides.
                    let columns = x.t().as_standard_layout().into_owned();
                    let mut wide = Array2::from_elem((out, 2 * tokens), f32::NAN);
                    packed.forward_into(columns.t(), bias, wide.slice_mut(s![.., ..;2]).reversed_axes(), par);
                    assert_eq!(
                        bits_of(&wide.slice(s![.., ..;2]).t().to_owned()),
                        bits_of(&want),
                        "{case}, strided"
                    );
                }
            }
        }
    }
}

#[test]
fn every_width_and_grouping_has_the_bits_of_the_float_product() {
    for bits in 1..=8 {
        for groups in groups(70) {
            for broken in [false, true] {
                let case = format!("{bits} bits {groups:?} {broken}");
                check(
                    &matrix(bits, (37, 70), groups.clone(), broken),
                    &[1, 3, 9],
                    &Level::available(),
                    &case,
                );
            }
        }
    }
}

/// Single elements, tile edges, several panels and blocks of the summed index.
#[test]
fn every_shape_has_the_bits_of_the_float_product() {
    for bits in [4, 8] {
        for (out, inputs) in [(1, 1), (3, 8), (32, 384), (33, 385), (65, 7), (5, 0), (0, 5), (100, 1160)] {
            for groups in [Groups::Channel, Groups::Size(128), groups(inputs).pop().unwrap()] {
                let case = format!("{bits} bits {out} x {inputs} {groups:?}");
                let matrix = matrix(bits, (out, inputs), groups, false);
                check(&matrix, &[0, 1, 2, 4, 5, 7, 8, 9, 33], &Level::available(), &case);
            }
        }
    }
}

/// Numbers of bf16, negative zeros and denormals among them: the shapes from above, and one with several tasks.
#[test]
fn bf16_numbers_have_the_bits_of_the_float_product() {
    for (out, inputs) in
        [(1, 1), (3, 8), (32, 384), (33, 385), (65, 7), (5, 0), (0, 5), (100, 1160), (700, 1537)]
    {
        let mut weight = random(out, inputs, 4).mapv(|x| f32::from_bits(x.to_bits() & 0xFFFF_0000));
        weight.iter_mut().step_by(7).for_each(|x| *x = -0.0);
        weight.iter_mut().step_by(11).for_each(|x| *x = f32::from_bits(0x0001_0000));
        let pack = |level, par| {
            let fill = |i: usize, row: &mut [f32]| weight.row(i).assign_to(ArrayViewMut1::from(row));
            PackedWeight::of_bf16_for_level(level, (out, inputs), par, fill).unwrap()
        };
        let tokens: &[usize] =
            if out == 700 { &[1, 16, 40] } else { &[0, 1, 2, 4, 5, 7, 8, 9, 11, 16, 17, 33] };
        check_packed(&weight, &pack, tokens, &Level::available(), &format!("bf16 {out} x {inputs}"));
        assert_eq!(pack(Level::detect(), Par::Seq).bits(), 16);
    }
}

/// One number that is none of bf16, wherever it stands, and the weight is not packed.
#[test]
fn numbers_that_are_not_of_bf16_are_not_packed() {
    for place in [(0, 0), (0, 6), (36, 3), (69, 6)] {
        for par in [Par::Seq, Par::new(2)] {
            let fill = |odd: f32| {
                move |i: usize, row: &mut [f32]| {
                    row.fill(1.5);
                    if i == place.0 {
                        row[place.1] = odd;
                    }
                }
            };
            assert!(PackedWeight::of_bf16((70, 7), par, fill(1.0 + f32::EPSILON)).is_none(), "{place:?}");
            assert!(PackedWeight::of_bf16((70, 7), par, fill(-2.5)).is_some());
        }
    }
}

/// More work than one thread takes for itself, with several tasks of each kind.
#[test]
fn large_products_have_the_bits_of_the_float_product() {
    for (bits, groups) in [(4, Groups::Size(128)), (8, Groups::Channel)] {
        check(&matrix(bits, (700, 1536), groups, false), &[1, 6, 40], &[Level::detect()], &format!("{bits}"));
    }
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    let matrix = matrix(4, (70, 800), Groups::Size(128), false);
    let x = random(30, 800, 1);
    for level in Level::available() {
        let packed = PackedWeight::for_level(level, &matrix, Par::Seq);
        let run = |rows: std::ops::Range<usize>| {
            let mut y = Array2::zeros((rows.len(), 70));
            packed.forward_into(x.slice(s![rows, ..]), None, y.view_mut(), Par::Seq);
            y
        };
        let whole = run(0..30);
        for rows in [0..1, 3..5, 7..12, 10..18, 11..20, 29..30] {
            assert_eq!(run(rows.clone()), whole.slice(s![rows.clone(), ..]), "{level} {rows:?}");
        }
    }
}

/// Widths that differ by group: the largest decides how levels are stored.
#[test]
fn groups_of_several_widths() {
    let of = |widths: [u32; 3]| {
        let widths: Vec<Bits> = widths.into_iter().map(|bits| Bits::new(bits).unwrap()).collect();
        let levels = Array2::from_shape_fn((9, 48), |(i, j)| {
            ((i * 3 + j * 5) % (widths[j / 16].max_level() as usize + 1)) as u8
        });
        let scales = random(9, 3, 2).mapv(f32::abs);
        let zeros = Array2::from_shape_fn((9, 3), |(_, g)| widths[g].mid_level());
        QuantizedMatrix::new(Widths::PerGroup(widths), levels, scales, zeros, Groups::Size(16)).unwrap()
    };
    for (widths, stored) in [([2, 4, 3], 4), ([2, 5, 1], 8)] {
        let matrix = of(widths);
        assert_eq!(PackedWeight::new(&matrix, Par::Seq).bits(), stored);
        check(&matrix, &[1, 10], &Level::available(), &format!("{widths:?}"));
    }
}

#[test]
fn memory_is_that_of_levels_and_parameters() {
    let matrix = matrix(3, (64, 1024), Groups::Size(128), false);
    let packed = PackedWeight::new(&matrix, Par::Seq);
    assert_eq!(packed.bytes(), 64 * 1024 / 2 + 64 * 8 * 8);
}

#[test]
#[should_panic(expected = "does not fit")]
fn shapes_that_do_not_fit_are_refused() {
    let packed = PackedWeight::new(&matrix(4, (8, 16), Groups::Channel, false), Par::Seq);
    packed.forward_into(Array2::zeros((2, 15)).view(), None, Array2::zeros((2, 8)).view_mut(), Par::Seq);
}

#[test]
#[should_panic(expected = "bias [out]")]
fn a_bias_of_another_length_is_refused() {
    let packed = PackedWeight::new(&matrix(4, (8, 16), Groups::Channel, false), Par::Seq);
    let bias = Array1::zeros(7);
    packed.forward_into(
        Array2::zeros((1, 16)).view(),
        Some(bias.view()),
        Array2::zeros((1, 8)).view_mut(),
        Par::Seq,
    );
}
