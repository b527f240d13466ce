//! Each operator on the simulator: numbers of CANN's documents, results of plain loops, and a deliberate fault that is seen.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod attention;
mod documents;
mod kronecker;
mod npu;
mod products;
mod quantise;
mod weight_only;

use ascend_sim::Mistake;
use npu::WRONG;

/// A deliberate fault in each operator makes the comparisons of that operator fail.
#[test]
fn faults_of_arithmetic_are_seen() {
    let tests: [(Mistake, fn()); 22] = [
        (Mistake::QuantMatmul, products::products_of_every_version_and_type),
        (Mistake::QuantMatmul, products::products_of_four_bits),
        (Mistake::TokenCodes, quantise::tokens_are_quantised_in_every_version),
        (Mistake::TokenScales, quantise::tokens_are_quantised_in_every_version),
        (Mistake::StaticQuant, quantise::static_codes_and_numbers_of_codes),
        (Mistake::AntiQuant, quantise::static_codes_and_numbers_of_codes),
        (Mistake::PackScales, quantise::scales_as_words),
        (Mistake::PackScalesOnHost, quantise::scales_as_words),
        (Mistake::PackInt4, products::products_of_four_bits),
        (Mistake::Matmul, products::products_of_floats),
        (Mistake::WeightOnly, weight_only::weight_only_products),
        (Mistake::WeightOnly, weight_only::weight_only_products_of_four_bits),
        (Mistake::Kronecker, kronecker::kronecker_codes),
        (Mistake::Kronecker, kronecker::kronecker_codes_rounded_between),
        (Mistake::TokenCodes, products::numbers_that_do_not_fit),
        (Mistake::Attention, attention::attention_over_a_cache_of_codes),
        (Mistake::QuantMatmul, documents::types_of_products),
        (Mistake::PackInt4, documents::packing_of_four_bits),
        (Mistake::PackScalesOnHost, documents::words_of_the_host),
        (Mistake::PackScales, documents::words_of_the_device),
        (Mistake::TokenCodes, documents::tokens_in_four_bits),
        (Mistake::Matmul, documents::factors_rounded_to_half),
    ];
    for fault in Mistake::ALL {
        assert!(tests.iter().any(|(other, _)| *other == fault), "{fault:?} is in no comparison");
    }
    for (fault, test) in tests {
        WRONG.set(fault as i64);
        let ended = std::panic::catch_unwind(test);
        WRONG.set(0);
        assert!(ended.is_err(), "{fault:?} is not seen");
    }
}
