//! What an evaluation says, as JSON and for people.

use std::fmt;

use serde::Serialize;

/// Which of two models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The model under evaluation.
    Model,
    /// The model it is compared with.
    Reference,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Model => "model",
            Self::Reference => "reference model",
        })
    }
}

/// Whether the numbers exist.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// All logits were finite.
    Ok,
    /// A model gave NaN or infinity. The first place in reading order; the model under evaluation is named
    /// when both fail there.
    NonFiniteLogits {
        /// Index of the sequence.
        sequence: usize,
        /// Position whose prediction has the bad logits.
        position: usize,
        /// The model that gave them.
        model: Side,
    },
    /// All logits were finite but `exp(mean_nll)` is larger than any f64.
    PerplexityOverflow,
}

/// Length of the evaluated sequences in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum SequenceLength {
    /// All sequences have this length.
    Uniform(usize),
    /// Lengths differ.
    Ragged {
        /// Shortest.
        min: usize,
        /// Longest.
        max: usize,
    },
}

impl fmt::Display for SequenceLength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform(length) => write!(f, "{length}"),
            Self::Ragged { min, max } => write!(f, "{min} to {max}"),
        }
    }
}

/// The rules by which the numbers were obtained.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Protocol {
    /// Where the sequences come from and how they were cut.
    pub description: String,
    /// Tokens per sequence.
    pub sequence_length: SequenceLength,
    /// Where a sequence starts.
    pub context: &'static str,
    /// Which tokens count.
    pub predicted: &'static str,
    /// Precision of the softmax.
    pub log_softmax: &'static str,
    /// How sequences are combined.
    pub pooling: &'static str,
}

impl Protocol {
    pub(crate) fn new(description: String, sequences: &[Vec<u32>]) -> Self {
        let min = sequences.iter().map(Vec::len).min().unwrap_or(0);
        let max = sequences.iter().map(Vec::len).max().unwrap_or(0);
        Self {
            description,
            sequence_length: if min == max {
                SequenceLength::Uniform(min)
            } else {
                SequenceLength::Ragged { min, max }
            },
            context: "each sequence alone from position 0",
            predicted: "every token but the first of its sequence",
            log_softmax: "f64 sums of f32 exponentials",
            pooling: "exp(sum NLL / predicted tokens) over all sequences",
        }
    }
}

/// Comparison with the reference model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Comparison {
    /// `KL(reference || model)` in nats, mean per predicted token; `None` when a logit was not finite.
    pub kl: Option<f64>,
    /// Fraction of predicted positions at which both models rank the same token first (of equal logits, the
    /// first); `None` when a logit was not finite.
    pub top1_agreement: Option<f64>,
    /// Fraction of predicted positions at which the token that the reference ranks first is among the first five of the model; `None` when
    /// a logit was not finite.
    pub top5_agreement: Option<f64>,
    /// Perplexity of the reference on the same tokens; `None` when a logit was not finite, or on overflow.
    pub reference_perplexity: Option<f64>,
}

/// Result of [`crate::evaluate`]. In JSON the fields of the comparison stand beside the others and are absent
/// without a reference; numbers that do not exist are `null`, for the reason `outcome` gives.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct EvalReport {
    /// `exp(sum NLL / tokens)`; `None` unless `outcome` is [`Outcome::Ok`] or concerns the reference only.
    pub perplexity: Option<f64>,
    /// Number of predicted tokens.
    pub tokens: usize,
    /// Number of sequences.
    pub sequences: usize,
    /// `sum NLL / tokens` in nats, `None` when a logit of the model was not finite.
    pub mean_nll: Option<f64>,
    /// KL divergence and agreement, with a reference.
    #[serde(flatten)]
    pub comparison: Option<Comparison>,
    /// Whether all numbers exist.
    pub outcome: Outcome,
    /// Sum of NLL of every sequence in nats, `None` for a sequence with a logit that was not finite. Absent in JSON when it
    /// has been cleared.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nll_per_sequence: Vec<Option<f64>>,
    /// The rules.
    pub protocol: Protocol,
}

impl fmt::Display for EvalReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: Option<f64>, digits: usize| match value {
            Some(value) => format!("{value:.digits$}"),
            None => "-".to_owned(),
        };
        writeln!(f, "perplexity        {}", number(self.perplexity, 4))?;
        if let Some(comparison) = &self.comparison {
            writeln!(f, "  of reference    {}", number(comparison.reference_perplexity, 4))?;
            writeln!(f, "KL (nats/token)   {}", number(comparison.kl, 6))?;
            let percent = comparison.top1_agreement.map(|fraction| fraction * 100.0);
            writeln!(f, "top-1 agreement   {} %", number(percent, 3))?;
            let percent = comparison.top5_agreement.map(|fraction| fraction * 100.0);
            writeln!(f, "top-5 agreement   {} %", number(percent, 3))?;
        }
        writeln!(f, "predicted tokens  {} in {} sequences", self.tokens, self.sequences)?;
        match self.outcome {
            Outcome::Ok => {}
            Outcome::NonFiniteLogits { sequence, position, model } => {
                writeln!(
                    f,
                    "NOT FINITE        logits of the {model}; first: sequence {sequence}, position {position}"
                )?;
            }
            Outcome::PerplexityOverflow => {
                writeln!(f, "OVERFLOW          mean NLL {} nats", number(self.mean_nll, 1))?;
            }
        }
        let p = &self.protocol;
        writeln!(f, "protocol          {}", p.description)?;
        writeln!(f, "                  sequences of {} tokens, {}", p.sequence_length, p.context)?;
        writeln!(f, "                  {}; log-softmax {}; {}", p.predicted, p.log_softmax, p.pooling)
    }
}
