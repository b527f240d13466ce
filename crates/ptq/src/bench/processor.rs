//! The operators of a linear on a processor, the copies to and from it included.

use super::kernels::floats;
use super::{KernelRate, Product, best};
use half::bf16;
use quant_core::ndarray::Array2;
use quant_core::operators::{Bias, DynamicNumerics, IntegerLinear, Processor, StaticNumerics};
use quant_core::{Bits, CoreError, FloatType, Grid, Groups, Par, QParams, matrix::round_matrix};

/// Measures them; `by` is the time of the integer product of this shape here.
///
/// # Errors
/// What went wrong on the processor.
pub(super) fn measure(
    product: &Product,
    processor: &dyn Processor,
    by: f64,
    par: Par,
) -> Result<Vec<KernelRate>, CoreError> {
    let (m, k, n) = (product.tokens, product.inputs, product.outputs);
    let bits = Bits::new(8)?;
    let dynamic = DynamicNumerics::Ascend { bits };
    let fixed = StaticNumerics::Ascend { model: processor.float_type().unwrap_or(FloatType::Bf16) };
    let params = QParams { scale: 0.01, zero: 128.0 };
    let x = floats(m, k, 1);
    let rounded = round_matrix(&Grid::int8_sym(), None, Groups::Channel, floats(n, k, 2).view())?;
    let prepared = processor.prepare(&IntegerLinear::from_matrix(&rounded, Bias::None)?, par)?;
    let codes = processor.quantize(&dynamic, x.view(), par)?;
    let mut y = Array2::from_elem((m, n), bf16::ZERO);
    // The first failure ends the measurement; later rounds are then of no interest.
    let mut failed = None;
    let mut seconds = |work: &mut dyn FnMut() -> Result<(), CoreError>| {
        best(|| {
            if failed.is_none() {
                failed = work().err();
            }
        })
    };
    let moved = (5 * m * k) as f64;
    let found = [
        (
            "int8 product on the backend, results bf16, copies included",
            seconds(&mut || prepared.forward(&codes, y.view_mut().into(), par)),
            2.0 * (m * n) as f64 * k as f64,
            "GOP/s",
        ),
        (
            "dynamic quantisation on the backend, copies included",
            seconds(&mut || processor.quantize(&dynamic, x.view(), par).map(drop)),
            moved,
            "GB/s",
        ),
        (
            "static quantisation on the backend, copies included",
            seconds(&mut || processor.quantize_static(fixed, bits, params, x.view(), par).map(drop)),
            moved,
            "GB/s",
        ),
    ];
    if let Some(error) = failed {
        return Err(error);
    }
    let rate = |(kernel, seconds, amount, unit)| KernelRate {
        shape: product.name.clone(),
        size: (m, k, n),
        kernel,
        seconds,
        rate: amount / seconds / 1e9,
        unit,
        share_of_peak: None,
        by_product: seconds / by,
        level: processor.name(),
        threads: par.threads(),
    };
    Ok(found.into_iter().map(rate).collect())
}
