//! How large activations are at each place of each block, before and behind the transforms of a row.
//!
//! What is seen is the activations of the float model, and those of the finished row where each block of it alone takes the place of the
//! float one: quantisers of activations are left out, so that a difference comes of transforms and rounded weights. `ptq analyze` says
//! the same, and more, of a recipe.

use crate::StudyError;
use quant_pipeline::{AnalyzeJob, Events, Spread, prepare_analysis};
use serde::{Deserialize, Serialize};

/// Magnitudes at a place; none where one is not finite.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Extent {
    /// The largest.
    pub largest: Option<f64>,
    /// What 99.9 % of all do not exceed.
    pub p999: Option<f64>,
    /// What half of all do not exceed.
    pub median: Option<f64>,
    /// How far the norms of the channels are from being equal, from 0 to below √2 (see [`Spread::flatness`]).
    pub flatness: Option<f64>,
}

impl Extent {
    fn of(spread: &Spread) -> Self {
        let finite = |value: f64| Some(value).filter(|value| value.is_finite());
        Self {
            largest: finite(spread.max),
            p999: finite(spread.p999),
            median: finite(spread.median),
            flatness: spread.flatness.and_then(finite),
        }
    }
}

/// The activations at a place of a block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ranges {
    /// The block.
    pub block: usize,
    /// What reads them: `q, k, v`, `o`, `gate, up`, `down`, `keys` or `values`.
    pub place: String,
    /// Those of the float model.
    pub float: Extent,
    /// Those in the finished row.
    pub behind: Extent,
}

/// Looks at the activations of a finished row.
///
/// # Errors
/// Models or data that cannot be read; [`quant_pipeline::PipelineError::Interrupted`].
pub(crate) fn ranges(job: &AnalyzeJob, events: &mut dyn Events) -> Result<Vec<Ranges>, StudyError> {
    let blocks = prepare_analysis(job)?.activations(events)?;
    let mut found = Vec::new();
    for (block, observed) in blocks.into_iter().enumerate() {
        for seen in observed {
            if let [first, .., last] = &seen.steps[..] {
                found.push(Ranges {
                    block,
                    place: seen.place.name().to_owned(),
                    float: Extent::of(&first.spread),
                    behind: Extent::of(&last.spread),
                });
            }
        }
    }
    Ok(found)
}
