//! Rounding a matrix: groups by index, refusals, what is stored.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ndarray::{Array2, Array3, Axis};
use proptest::prelude::*;
use quant_core::matrix::round_matrix;
use quant_core::{
    BinaryMatrix, Bits, Convention, CoreError, FloatType, Grid, Groups, QuantizedMatrix, RowsMut, Variant,
    Widths,
};
use quant_testkit::Numbers;

fn grid(convention: Convention, bits: u32, scale_type: FloatType) -> Grid {
    Grid::new(convention, Bits::new(bits).unwrap(), Variant::Exact, scale_type).unwrap()
}

#[test]
fn a_group_index_is_honoured() {
    let w = Numbers::new(1).normals(3, 12);
    // Positions 0..12 in another order, four to a group.
    let order = [7, 2, 11, 0, 5, 9, 1, 3, 10, 4, 8, 6];
    let mut of_column = vec![0; 12];
    for (position, &column) in order.iter().enumerate() {
        of_column[column] = (position / 4) as u32;
    }
    for convention in Convention::ALL {
        let grid = grid(convention, 3, FloatType::F32);
        let index = Groups::Index { size: 4, of_column: of_column.clone() };
        let indexed = round_matrix(&grid, None, index, w.view()).unwrap();
        let sorted = round_matrix(&grid, None, Groups::Size(4), w.select(Axis(1), &order).view()).unwrap();
        assert_eq!(indexed.levels().select(Axis(1), &order), sorted.levels());
        assert_eq!((indexed.scales(), indexed.zeros()), (sorted.scales(), sorted.zeros()));
        assert_eq!(indexed.dequantize().select(Axis(1), &order), sorted.dequantize());
    }
}

#[test]
fn an_index_that_does_not_fit_is_refused() {
    let w = Array2::<f32>::zeros((2, 6));
    for (of_column, said) in [(vec![0; 5], "6 entries"), (vec![0, 0, 0, 1, 1, 2], "groups 0..2")] {
        let groups = Groups::Index { size: 3, of_column };
        let error =
            round_matrix(&grid(Convention::QSym, 4, FloatType::F32), None, groups, w.view()).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[test]
fn what_is_not_finite_is_named() {
    let mut w = Numbers::new(2).normals(4, 8);
    w[(2, 5)] = f32::NAN;
    let q = round_matrix(&grid(Convention::QSym, 4, FloatType::F32), None, Groups::Channel, w.view());
    assert!(q.unwrap_err().to_string().contains("row 2, column 5"));
}

#[test]
fn a_scale_beyond_its_type_is_refused() {
    let mut w = Numbers::new(3).normals(3, 8);
    for (convention, scale_type, value) in [
        // 1e6/7 is beyond the largest f16, 65504.
        (Convention::QSym, FloatType::F16, 1e6),
        (Convention::QAsym, FloatType::F16, 1e7),
        (Convention::QSymGptq, FloatType::F16, 1e6),
        (Convention::QAwq, FloatType::F16, 1e7),
        // The range itself overflows f32.
        (Convention::QAsym, FloatType::F32, 3e38),
        (Convention::QAwq, FloatType::Bf16, 3e38),
    ] {
        (w[(1, 4)], w[(1, 5)]) = (value, -value);
        let error =
            round_matrix(&grid(convention, 4, scale_type), None, Groups::Size(4), w.view()).unwrap_err();
        assert!(matches!(error, CoreError::Scale { row: 1, group: 1, .. }), "{convention:?}: {error}");
        let text = error.to_string();
        assert!(text.contains("row 1, group 1") && text.contains(scale_type.name()), "{text}");
    }
    // The binary rule as well.
    let error = round_matrix(&grid(Convention::QAsym, 1, FloatType::F16), None, Groups::Size(4), w.view());
    assert!(matches!(error, Err(CoreError::Scale { row: 1, group: 1, .. })), "{error:?}");
}

#[test]
fn stored_bits_count_what_is_stored() {
    let w = Numbers::new(4).normals(6, 64);
    let bits = |convention, b| {
        let grid = grid(convention, b, FloatType::F16);
        round_matrix(&grid, None, Groups::Size(32), w.view()).unwrap().bits_per_weight(16)
    };
    assert_eq!(bits(Convention::QSym, 4), 4.0 + 16.0 / 32.0);
    assert_eq!(bits(Convention::QAsym, 4), 4.0 + (16.0 + 4.0) / 32.0);
    // One bit: the zero of the binary rule is a number, as wide as a scale.
    assert_eq!(bits(Convention::QAsym, 1), 1.0 + (16.0 + 16.0) / 32.0);
    let index = Groups::Index { size: 32, of_column: (0..64).map(|c| c % 2).collect() };
    let q = round_matrix(&grid(Convention::QSym, 4, FloatType::F16), None, index, w.view()).unwrap();
    assert!((q.bits_per_weight(16) - (4.0 + 16.0 / 32.0 + 32.0 / 6.0)).abs() < 1e-12);
}

/// Groups of other widths: every level is held to its own, and all of it is counted.
#[test]
fn groups_may_have_widths_of_their_own() {
    let widths = |bits: [u32; 3]| Widths::PerGroup(bits.map(|b| Bits::new(b).unwrap()).to_vec());
    let levels = Array2::from_shape_fn((5, 10), |(i, j)| ((i + j) % [2, 4, 8][j / 4]) as u8);
    let scales = Array2::from_elem((5, 3), 0.5);
    let new = |bits, zero: f32| {
        let zeros = Array2::from_shape_fn((5, 3), |(_, g)| if g == 0 { zero } else { 1.0 });
        QuantizedMatrix::new(widths(bits), levels.clone(), scales.clone(), zeros, Groups::Size(4))
    };
    let matrix = new([1, 2, 3], 0.25).unwrap();
    assert_eq!((matrix.bits().get(), matrix.widths().of(1).get()), (3, 2));
    assert!(!matrix.has_integer_zeros() && new([1, 2, 3], 1.0).unwrap().has_integer_zeros());
    // Levels of 4, 4 and 2 columns; a scale each; a mean, and zeros of 2 and 3 bits; a byte for each width.
    let stored = |zero: u64| 5 * (4 + 8 + 6) + 5 * 3 * 16 + 5 * (zero + 2 + 3) + 3 * 8;
    assert_eq!(matrix.storage_bits(16), stored(16));
    assert_eq!(new([1, 2, 3], 1.0).unwrap().storage_bits(16), stored(1));
    assert_eq!(matrix.dequantize()[(1, 0)], 0.5 * (1.0 - 0.25));
    let refused = new([1, 1, 3], 0.25).unwrap_err().to_string();
    assert!(refused.contains("0..=1 at 1 bits") && refused.contains('3'), "{refused}");
    let parts = |bits: &[u32]| {
        let widths = Widths::PerGroup(bits.iter().map(|&b| Bits::new(b).unwrap()).collect());
        QuantizedMatrix::new(widths, levels.clone(), scales.clone(), scales.clone(), Groups::Size(4))
    };
    assert!(parts(&[3, 3]).unwrap_err().to_string().contains("3 widths"));
    let (widths, levels, scales, zeros, groups) = matrix.clone().into_parts();
    assert_eq!(QuantizedMatrix::new(widths, levels, scales, zeros, groups).unwrap(), matrix);
}

/// Against the definition, one weight at a time, with a last block that is not full.
#[test]
fn binary_codes_are_their_definition() {
    let (out, columns, block) = (3, 7, 4);
    let mut noise = Numbers::new(5);
    let numbers = Array3::from_shape_simple_fn((out, 2, 8), || noise.uniform());
    let codes = Array2::from_shape_fn((out, columns), |(i, j)| ((3 * i + j) % 4) as u8);
    let salient: Vec<bool> = (0..columns).map(|j| j % 3 == 0).collect();
    let new = |codes: &Array2<u8>, salient: &[bool], numbers: &Array3<f32>| {
        BinaryMatrix::new(block, salient.to_vec(), codes.clone(), numbers.clone())
    };
    let matrix = new(&codes, &salient, &numbers).unwrap();
    let dequantised = matrix.dequantize();
    for ((i, j), &value) in dequantised.indexed_iter() {
        let at = |code: usize, upper: bool| {
            let (mean, spread) = (numbers[(i, j / block, 2 * code)], numbers[(i, j / block, 2 * code + 1)]);
            if upper { mean + spread } else { mean - spread }
        };
        let (upper, second) = (codes[(i, j)] & 1 != 0, codes[(i, j)] & 2 != 0);
        let expected = match (salient[j], second) {
            (true, _) => at(2, upper) + at(3, second),
            (false, false) => at(0, upper),
            (false, true) => at(1, upper),
        };
        assert_eq!(value, expected, "{i} {j}");
    }
    assert_eq!(matrix.storage_bits(16), 2 * 21 + 8 * 16 * 3 * 2 + 7);
    assert_eq!(matrix.salient_per_block(), [2, 1]);
    assert_eq!(matrix.row_codes(1, 1).numbers()[..], numbers.as_slice().unwrap()[24..32]);
    let mut wild = numbers.clone();
    wild[(2, 1, 0)] = f32::NAN;
    for (refused, words) in [
        (new(&(&codes + 1), &salient, &numbers), "0..=3"),
        (new(&codes, &salient[1..], &numbers), "7 marks"),
        (new(&codes, &salient, &Array3::zeros((out, 1, 8))), "(3, 2, 8)"),
        (new(&codes, &salient, &wild), "row 2"),
    ] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let part = |rows, columns| Array2::<f32>::ones((rows, columns));
    let new = |levels: Array2<u8>, scales, zeros| {
        QuantizedMatrix::new(Bits::new(3).unwrap(), levels, scales, zeros, Groups::Size(4))
    };
    let levels = Array2::from_elem((2, 8), 7);
    assert!(new(levels.clone(), part(2, 2), part(2, 2)).is_ok());
    assert!(new(levels.clone(), part(2, 1), part(2, 2)).is_err());
    assert!(new(levels.clone(), part(2, 2), part(1, 2)).is_err());
    assert!(new(levels + 1, part(2, 2), part(2, 2)).is_err());
}

/// Rows that are filled one range after the other make the matrix that is made at once, and its parts make it again.
#[test]
fn a_matrix_filled_by_rows_is_the_matrix() {
    let bits = Bits::new(3).unwrap();
    let levels = Array2::from_shape_fn((5, 10), |(i, j)| ((i * 3 + j) % 8) as u8);
    let scales = Array2::from_shape_fn((5, 3), |(i, g)| 1.0 + (i * 3 + g) as f32);
    let zeros = Array2::from_shape_fn((5, 3), |(i, g)| ((i + g) % 8) as f32);
    let whole =
        QuantizedMatrix::new(bits, levels.clone(), scales.clone(), zeros.clone(), Groups::Size(4)).unwrap();
    let mut filled = QuantizedMatrix::unfilled(bits, (5, 10), Some(4));
    assert_eq!(filled.dim(), whole.dim());
    for rows in [0..2, 2..3, 3..5] {
        let part = ndarray::Slice::from(rows.clone());
        let fill = |mut to: RowsMut<'_>| {
            to.levels.assign(&levels.slice_axis(Axis(0), part));
            to.scales.assign(&scales.slice_axis(Axis(0), part));
            to.zeros.assign(&zeros.slice_axis(Axis(0), part));
        };
        filled.fill_rows(rows, fill).unwrap();
    }
    assert_eq!(filled, whole);
    let (bits, levels, scales, zeros, groups) = filled.into_parts();
    assert_eq!(QuantizedMatrix::new(bits, levels, scales, zeros, groups).unwrap(), whole);
}

proptest! {
    /// However rows are filled, no level is above the top of its width afterwards.
    #[test]
    fn no_level_is_above_its_width(bits in 1_u32..=8, rows in 1_usize..6, columns in 1_usize..9, seed: u64) {
        let bits = Bits::new(bits).unwrap();
        let mut matrix = QuantizedMatrix::unfilled(bits, (rows, columns), None);
        let mut numbers = Numbers::new(seed);
        for row in 0..rows {
            let wanted = Array2::from_shape_simple_fn((1, columns), || (numbers.uniform().abs() * 255.0) as u8);
            let before = matrix.clone();
            let filled = matrix.fill_rows(row..row + 1, |mut to| to.levels.assign(&wanted));
            let top = bits.max_level() as u8;
            prop_assert_eq!(filled.is_ok(), wanted.iter().all(|l| *l <= top));
            prop_assert!(matrix.levels().iter().all(|l| *l <= top));
            let others = |m: &QuantizedMatrix| (0..rows).filter(|r| *r != row).map(|r| m.levels().row(r).to_vec()).collect::<Vec<_>>();
            prop_assert_eq!(others(&before), others(&matrix));
        }
        let (bits, levels, scales, zeros, groups) = matrix.into_parts();
        prop_assert!(QuantizedMatrix::new(bits, levels, scales, zeros, groups).is_ok());
    }
}
