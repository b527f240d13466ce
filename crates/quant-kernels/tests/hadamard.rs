//! The fast Walsh-Hadamard transform against the matrix it is of.

use ndarray::Array2;
use proptest::prelude::*;
use quant_kernels::{Element, Par, walsh_hadamard_rows};
use quant_testkit::Numbers;

/// The specification: `y[j] = scale * sum_i (-1)^popcount(i & j) x[i]` in every block.
fn dense<T: Element>(x: &Array2<T>, block: usize, scale: f64) -> Array2<f64> {
    Array2::from_shape_fn(x.dim(), |(t, column)| {
        let (first, j) = (column / block * block, column % block);
        let term = |i: usize| {
            let value = x[(t, first + i)].to_f64_exact();
            if (i & j).count_ones().is_multiple_of(2) { value } else { -value }
        };
        scale * (0..block).map(term).sum::<f64>()
    })
}

fn check<T: Element>(tokens: usize, blocks: usize, block: usize) {
    let mut numbers = Numbers::new(block as u64);
    // Whole numbers: every sum is exact, so equality is asked for.
    let whole = numbers.matrix(tokens, blocks * block, 100.0).mapv(|v| T::from_f64(f64::from(v.round())));
    let mut y = whole.clone();
    walsh_hadamard_rows(y.view_mut(), block, T::from_f64(0.5), Par::Seq);
    assert_eq!(y.mapv(|v| v.to_f64_exact()), dense(&whole, block, 0.5), "block {block}");

    let x = numbers.matrix(tokens, blocks * block, 1.0).mapv(T::from_f32);
    let scale = T::from_f64(1.0 / (block as f64).sqrt());
    let mut once = x.clone();
    walsh_hadamard_rows(once.view_mut(), block, scale, Par::Seq);
    let mut shared = x.clone();
    walsh_hadamard_rows(shared.view_mut(), block, scale, Par::new(3));
    let mut columns = x.t().as_standard_layout().into_owned();
    walsh_hadamard_rows(columns.view_mut().reversed_axes(), block, scale, Par::Seq);
    assert!(shared == once && columns.t() == once, "threads and layout");
    walsh_hadamard_rows(once.view_mut(), block, scale, Par::Seq);
    for (back, value) in once.iter().zip(&x) {
        let error = (*back - *value).abs().to_f64_exact();
        assert!(error <= 16.0 * T::epsilon().to_f64_exact(), "block {block}: {back} came back for {value}");
    }
}

#[test]
fn every_power_of_two_to_16384() {
    for exponent in 0..15 {
        let tokens = if exponent < 8 { 40 } else { 1 };
        check::<f32>(tokens, 1 + exponent % 3, 1 << exponent);
        check::<f64>(tokens, 1 + exponent % 2, 1 << exponent);
    }
}

proptest! {
    #[test]
    fn shapes(tokens in 0usize..6, blocks in 0usize..4, exponent in 0u32..8) {
        check::<f32>(tokens, blocks, 1 << exponent);
    }
}

#[test]
#[should_panic(expected = "must be a power of two")]
fn a_block_that_is_none_is_refused() {
    walsh_hadamard_rows(Array2::<f32>::zeros((1, 12)).view_mut(), 12, 1.0, Par::Seq);
}
