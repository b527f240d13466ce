//! Measurements of the kernels on this machine beside its own peaks, and a prediction for an Ascend NPU.
//!
//! | what | where |
//! |---|---|
//! | which products: of a size, of a published model, of a folder | [`Shapes`] |
//! | the most this machine does | [`Peaks`] |
//! | the kernels of a quantised linear, one by one, and those that a given processor has, with the copies they cost | [`KernelRate`] |
//! | a folder at prefill and decode | [`EndToEnd`] |
//! | when W8A8 would pay on an NPU | [`ascend`] |
//!
//! Rates are wall time, the best of several rounds; peaks are measured in the same run, since a machine's clock changes from one to
//! the next.

pub mod ascend;
mod kernels;
mod model;
mod peaks;
mod processor;
mod shapes;

pub use kernels::{KernelRate, measure as measure_kernels};
pub use model::{EndToEnd, measure as measure_model};
pub use peaks::Peaks;
pub use shapes::{NAMED, Product, Shapes};

use quant_core::CoreError;
use quant_core::operators::Processor;
use quant_kernels::Par;
use serde::Serialize;
use std::time::Instant;

/// Everything that was measured and predicted.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The program and its version.
    pub version: String,
    /// The most this machine does.
    pub peaks: Peaks,
    /// By product, the kernels of a linear.
    pub kernels: Vec<KernelRate>,
    /// A folder as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_to_end: Option<EndToEnd>,
    /// The prediction, where the products are those of a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction: Option<ascend::Prediction>,
}

/// Measures everything about some products; on a processor too, if one is given.
///
/// # Errors
/// Sizes that no kernel takes, or what went wrong on the processor.
pub fn measure(
    shapes: &Shapes,
    profile: &ascend::Profile,
    processor: Option<&dyn Processor>,
    par: Par,
) -> Result<Report, CoreError> {
    let peaks = Peaks::measure(par);
    let mut kernels = Vec::new();
    for product in &shapes.products {
        let here = measure_kernels(product, shapes.heads, &peaks, par)?;
        let by = here.first().map_or(f64::NAN, |first| first.seconds);
        kernels.extend(here);
        if let Some(processor) = processor {
            kernels.extend(processor::measure(product, processor, by, par)?);
        }
    }
    let prediction = shapes.is_model.then(|| ascend::predict(shapes, profile));
    let version = concat!("ptq ", env!("CARGO_PKG_VERSION")).to_owned();
    Ok(Report { version, peaks, kernels, end_to_end: None, prediction })
}

/// Seconds of the best of some rounds of `work`, after one that counts for nothing.
fn best(mut work: impl FnMut()) -> f64 {
    const ROUNDS: usize = 3;
    const SECONDS: f64 = 0.15;
    work();
    let (mut best, mut all, mut rounds) = (f64::INFINITY, 0.0, 0);
    while rounds < ROUNDS || all < SECONDS {
        let began = Instant::now();
        work();
        let took = began.elapsed().as_secs_f64();
        (best, all, rounds) = (best.min(took), all + took, rounds + 1);
    }
    best
}
