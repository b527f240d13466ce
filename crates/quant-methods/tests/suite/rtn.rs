//! The parallel round-to-nearest equals the scalar specification in every bit.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use ndarray::Array2;
use proptest::prelude::*;
use quant_core::matrix::round_matrix;
use quant_core::{Bits, ClipSearch, Convention, FloatType, Grid, Groups, Variant};
use quant_kernels::Par;
use quant_methods::rtn::{Rtn, round};
use quant_testkit::Numbers;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn parallel_rtn_is_the_specification(
        rows in 1_usize..40, columns in 1_usize..90, group in proptest::option::of(1_usize..50), bits in 1_u32..=8,
        convention in prop::sample::select(Convention::ALL.to_vec()), search: bool, seed: u64,
    ) {
        let w = Numbers::new(seed).matrix(rows, columns, 1.0);
        let grid = Grid::new(convention, Bits::new(bits).unwrap(), Variant::Exact, FloatType::Bf16).unwrap();
        let clip = search.then(ClipSearch::default);
        let rtn = Rtn { grid, group, clip };
        let expected = round_matrix(&grid, clip.as_ref(), Groups::from_size(group), w.view()).unwrap();
        for threads in [1, 2, 3, 50] {
            prop_assert_eq!(&round(&rtn, w.view(), Par::new(threads)).unwrap(), &expected);
        }
        // A view that is not contiguous gives the same.
        let transposed = w.t().as_standard_layout().into_owned();
        prop_assert_eq!(&round(&rtn, transposed.t(), Par::Seq).unwrap(), &expected);
    }
}

#[test]
fn a_nan_is_named() {
    let mut w = Array2::<f32>::zeros((20, 8));
    w[(17, 3)] = f32::NAN;
    let grid = Grid::new(Convention::QSym, Bits::new(8).unwrap(), Variant::Exact, FloatType::F32).unwrap();
    let error = round(&Rtn { grid, group: None, clip: None }, w.view(), Par::Seq).unwrap_err();
    assert!(error.to_string().contains("row 17, column 3"), "{error}");
}

#[test]
fn a_scale_beyond_its_type_is_named() {
    let mut w = Array2::<f32>::ones((20, 8));
    w[(17, 6)] = 1e6;
    let grid = Grid::new(Convention::QSym, Bits::new(4).unwrap(), Variant::Exact, FloatType::F16).unwrap();
    for par in [Par::Seq, Par::new(3)] {
        let error = round(&Rtn { grid, group: Some(4), clip: None }, w.view(), par).unwrap_err();
        assert!(error.to_string().contains("row 17, group 1"), "{error}");
        assert!(error.to_string().contains("f16"), "{error}");
    }
}

#[test]
fn empty_matrices_are_rounded() {
    let grid = Grid::new(Convention::QSym, Bits::new(4).unwrap(), Variant::Exact, FloatType::F32).unwrap();
    for shape in [(0, 8), (3, 0), (0, 0)] {
        for par in [Par::Seq, Par::new(2)] {
            let q =
                round(&Rtn { grid, group: Some(4), clip: None }, Array2::zeros(shape).view(), par).unwrap();
            assert_eq!(q.dim(), shape);
        }
    }
}
