//! What a study found.

use crate::blame::Blame;
use crate::ranges::Ranges;
use crate::run::{SignCounts, TaskRun};
use crate::verdict::Verdict;
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

/// A part of a row that failed for another reason than its setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedPart {
    /// How the row was run.
    pub execution: String,
    /// The task, or what else was looked at.
    pub part: String,
    /// Why it failed.
    pub reason: String,
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
    pub(crate) fn of(identity: Vec<(String, String)>, outcome: &QuantizeOutcome) -> Self {
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

    pub(crate) fn failed(identity: Vec<(String, String)>, status: Status) -> Self {
        Self { identity, status, weight_bits: None, bytes: None, layers: Vec::new() }
    }
}

/// A column of a report: a task, or several that are weighed together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Column {
    /// Its title.
    pub name: String,
    /// Its tasks and their weights.
    pub tasks: Vec<(String, f64)>,
}

/// A figure in a column.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ColumnResult {
    /// Percent right, the mean over seeds.
    pub value: Option<f64>,
    /// Standard deviation over seeds (n - 1).
    pub deviation: Option<f64>,
    /// Ends of the 95 % interval, of a column that is one task.
    pub interval: Option<[f64; 2]>,
}

/// What a text is like to a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TextFigures {
    /// Name of the task.
    pub task: String,
    /// Perplexity.
    pub perplexity: Option<f64>,
    /// KL divergence from the float model, nats per token.
    pub kl: Option<f64>,
    /// Share of positions at which both rank the same token first.
    pub top1_agreement: Option<f64>,
    /// Share of positions at which the float model's first token is among the first five.
    pub top5_agreement: Option<f64>,
    /// How often `<unk>` stands in the text: 0 in a raw one, more in a tokenised one; none for conversations.
    pub unknown_words: Option<usize>,
}

/// How much of what is lost, and how sure that is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Loss {
    /// Quantised less float average, in points: the sign of the studies.
    pub drop: f64,
    /// Ends of the 95 % interval of the drop.
    pub interval: [f64; 2],
    /// p-value of the paired test, corrected for the number of rows.
    pub p: f64,
    /// `lossless`, `fair` or `risky`, or why it cannot be said.
    pub verdict: String,
    /// The class of the estimate itself.
    pub class: String,
}

/// A row of a report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VariantResults {
    /// Recipe, `float` for the model itself.
    pub recipe: String,
    /// Its methods.
    pub method: String,
    /// Bits of weights, activations and cache.
    pub bits: String,
    /// Stored bits per weight.
    pub weight_bits: Option<f64>,
    /// `sim` or `int8`.
    pub execution: String,
    /// Whether it could be made.
    pub status: Status,
    /// Figures in the order of the columns.
    pub columns: Vec<ColumnResult>,
    /// Mean of the columns, where all are there.
    pub average: Option<f64>,
    /// Beside the float model.
    pub loss: Option<Loss>,
    /// Texts.
    pub texts: Vec<TextFigures>,
    /// Signs of collapse in all answers, and how many there are.
    pub signs: SignCounts,
    /// Answers in all.
    pub answers: usize,
    /// Mean tokens of a thought.
    pub thought_tokens: Option<f64>,
    /// Mean share of a greedy answer that is, token for token, the float model's.
    pub same_prefix: Option<f64>,
    /// What is predicted without decoding.
    pub prediction: Option<Verdict>,
    /// The blocks that cost most.
    pub blame: Option<Blame>,
    /// Errors of every rounded linear.
    pub layers: Vec<LayerError>,
    /// Activations before and behind the transforms, where there are any; of the first way in which it is run.
    pub ranges: Vec<Ranges>,
    /// Why numbers are missing or not what they should be, by task.
    pub problems: Vec<String>,
    /// Parts that failed for other reasons than the setting; the others were run.
    pub failed: Vec<FailedPart>,
    /// Tasks that are not finished.
    pub missing: Vec<String>,
    /// Seconds and speed of the tasks; no part of the written results.
    #[serde(skip)]
    pub runs: Vec<TaskRun>,
}

impl VariantResults {
    /// Why it has no class, where that is not its setting.
    #[must_use]
    pub fn incomplete(&self) -> &'static str {
        match (self.failed.is_empty(), self.missing.is_empty()) {
            (false, _) => "failed",
            (true, false) => "unfinished",
            (true, true) => "",
        }
    }

    /// Its recipe, and how it is run where that is not simulated.
    #[must_use]
    pub fn title(&self) -> String {
        if self.execution == "sim" {
            self.recipe.clone()
        } else {
            format!("{} ({})", self.recipe, self.execution)
        }
    }
}

/// A model's rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelResults {
    /// Its name.
    pub model: String,
    /// Rows, the float model first.
    pub variants: Vec<VariantResults>,
}

/// What a study found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StudyResults {
    /// Name of the study.
    pub study: String,
    /// The program and its version.
    pub version: String,
    /// Columns with accuracies.
    pub columns: Vec<Column>,
    /// Whose words the prompts have, by task.
    pub wordings: Vec<(String, String)>,
    /// Models.
    pub models: Vec<ModelResults>,
    /// How intervals and tests were made.
    pub statistics: String,
}
