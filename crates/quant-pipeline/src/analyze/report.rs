//! What an analysis found, as data.

use super::cost::AnalysisCost;
use super::keys::KeyError;
use super::observe::Observed;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where the quantised blocks of an analysis are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlocksFrom {
    /// The recipe was carried out on each block alone, with the statistics of the sample.
    Recipe,
    /// The same, and what the recipe would learn is as training begins with it: nothing is trained here.
    RecipeUntrained,
    /// A finished output holds them.
    Folder,
}

/// One linear of a block.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinearAnalysis {
    /// Full module name.
    pub module: String,
    /// `W4A4` and so on.
    pub scheme: String,
    /// `‖Ŵ − W‖ / ‖W‖` behind the transforms.
    pub weight_error: f64,
    /// `‖Q(X)Ŵᵀ − XWᵀ‖² / ‖XWᵀ‖²` on tokens of the sample; of a finished output, what its run measured.
    pub relative_mse: Option<f64>,
}

/// One block, where it alone is quantised.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BlockAnalysis {
    /// The block.
    pub block: usize,
    /// Mean per predicted token of KL(float model || model with this block quantised), in nats; none where a logit was not finite.
    pub kl: Option<f64>,
    /// Fraction of predicted positions at which both rank the same token first.
    pub top1_agreement: Option<f64>,
    /// `‖ŷ − y‖² / ‖y‖²` of what the block adds to the stream and lets pass, on the float model's activations; none where it is not
    /// finite.
    pub relative_mse: Option<f64>,
    /// Its linears.
    pub linears: Vec<LinearAnalysis>,
    /// Its activations before and after each transform.
    pub activations: Vec<Observed>,
    /// What the quantiser of the cache does to its keys, by position; empty where the cache is not quantised.
    pub keys: Vec<KeyError>,
}

/// How the training in a block went. Numbers that were not finite are none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// The block.
    pub block: usize,
    /// The relative error of what training began with.
    pub before: Option<f64>,
    /// The same after every epoch, where it was measured.
    #[serde(default)]
    pub epochs: Vec<Option<f64>>,
    /// The same of what was kept.
    pub after: Option<f64>,
    /// The epoch it is of, from 1; 0 is what training began with.
    pub kept: usize,
    /// The mean squared error of the batch of every step, before the step.
    #[serde(default)]
    pub losses: Vec<Option<f64>>,
    /// What went wrong and what was done about it.
    #[serde(default)]
    pub repairs: Vec<String>,
    /// What is still wrong.
    #[serde(default)]
    pub alarms: Vec<String>,
}

/// A finished analysis.
#[derive(Clone, Debug, Serialize)]
pub struct Analysis {
    /// The model.
    #[serde(serialize_with = "crate::shown::path")]
    pub model: PathBuf,
    /// What the recipe does before rounding, and the rounding, in words.
    pub recipe: Vec<String>,
    /// What the sample is.
    pub sample: String,
    /// Tokens of the sample that are predicted.
    pub tokens: usize,
    /// Perplexity of the float model on the sample.
    pub float_perplexity: Option<f64>,
    /// Where the quantised blocks are from.
    pub quantised: BlocksFrom,
    /// The blocks, in their order.
    pub blocks: Vec<BlockAnalysis>,
    /// The blocks, those first whose quantisation moves the final logits most; one whose logits are not finite before all others, of
    /// equal ones the earlier.
    pub ranking: Vec<usize>,
    /// Positions that the model was made for; errors of keys beyond it say what would be if it were used there.
    pub max_position_embeddings: usize,
    /// The trainings of the finished output, if one was given and something was trained.
    pub lessons: Vec<Trace>,
    /// What it was expected to take.
    pub cost: AnalysisCost,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Measured peak memory in bytes, where the system tells.
    pub peak_memory: Option<u64>,
    /// The program and its version.
    pub version: String,
    /// What the numbers are not.
    pub notes: Vec<String>,
    /// What the person should know.
    pub warnings: Vec<String>,
}

/// The blocks by what each does to the final logits.
pub(super) fn ranking(blocks: &[BlockAnalysis]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    let effect = |index: &usize| blocks[*index].kl.unwrap_or(f64::INFINITY);
    order.sort_by(|a, b| effect(b).total_cmp(&effect(a)));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_come_first() {
        let block = |(block, kl): (usize, Option<f64>)| BlockAnalysis {
            block,
            kl,
            top1_agreement: None,
            relative_mse: None,
            linears: Vec::new(),
            activations: Vec::new(),
            keys: Vec::new(),
        };
        let of =
            |kls: &[Option<f64>]| ranking(&kls.iter().copied().enumerate().map(block).collect::<Vec<_>>());
        assert_eq!(of(&[Some(0.1), Some(0.3), None, Some(0.3), Some(0.0)]), [2, 1, 3, 0, 4]);
    }
}
