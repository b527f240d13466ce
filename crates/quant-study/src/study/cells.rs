//! What is kept of a row of a study beside the results of its tasks.

use quant_graph::ModelScheme;
use quant_pipeline::QuantizeOutcome;
use serde::{Deserialize, Serialize};

/// Whether a row could be made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", content = "reason", rename_all = "snake_case")]
pub enum Status {
    /// It was.
    Ok,
    /// The recipe cannot be applied, stored or executed so.
    Illegal(String),
    /// Calibration met numbers that are not finite: this is what the setting does to the model.
    NotFinite(String),
    /// Something else went wrong.
    Failed(String),
}

impl Status {
    /// Why there are no figures, if there are none.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Ok => None,
            Self::Illegal(reason) | Self::NotFinite(reason) | Self::Failed(reason) => Some(reason),
        }
    }
}

/// Errors of a linear that was rounded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerError {
    /// Full module name.
    pub module: String,
    /// Block it belongs to.
    pub block: Option<usize>,
    /// Relative error of the weight.
    pub weight_error: f64,
    /// Relative error of the output on calibration tokens, where there were any.
    pub output_error: Option<f64>,
}

/// A recipe on a model: what became of it, whatever is asked of it afterwards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VariantFacts {
    /// What it depends on.
    pub(crate) identity: Vec<(String, String)>,
    /// Whether it could be made.
    pub status: Status,
    /// Stored bits per weight over the linears of all blocks, scales and zero points included.
    pub weight_bits: Option<f64>,
    /// Bytes of its weight files.
    pub bytes: Option<u64>,
    /// Every linear that was rounded.
    pub layers: Vec<LayerError>,
}

impl VariantFacts {
    pub(super) fn of(identity: Vec<(String, String)>, outcome: &QuantizeOutcome) -> Self {
        let rounded = outcome.run.linears.iter().filter(|linear| linear.method.is_some());
        let layers = rounded.map(|linear| LayerError {
            module: linear.module.clone(),
            block: linear.block,
            weight_error: linear.weight_error,
            output_error: linear.output_error,
        });
        Self {
            identity,
            status: Status::Ok,
            weight_bits: Some(outcome.bits_per_weight),
            bytes: Some(outcome.bytes),
            layers: layers.collect(),
        }
    }

    pub(super) fn failed(identity: Vec<(String, String)>, status: Status) -> Self {
        Self { identity, status, weight_bits: None, bytes: None, layers: Vec::new() }
    }
}

/// Bits of weights, activations and cache as the studies write them: `4-16-16`. Of linears that differ the most common count.
pub(super) fn bits_of(scheme: &ModelScheme) -> String {
    let mut counts = std::collections::BTreeMap::<(u32, u32), usize>::new();
    for (_, _, linear) in scheme.linears() {
        let weight = linear.weight.map_or(16, |weight| weight.bits.get());
        let input = linear.input.map_or(16, |input| input.bits.get());
        *counts.entry((weight, input)).or_default() += 1;
    }
    let (weight, input) =
        counts.into_iter().max_by_key(|(_, count)| *count).map_or((16, 16), |(bits, _)| bits);
    let kv = scheme.kv.map_or(16, |kv| kv.bits.get());
    format!("{weight}-{input}-{kv}")
}
