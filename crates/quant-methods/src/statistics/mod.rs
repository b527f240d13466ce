//! What methods ask to know about activations, and what is gathered of them in one pass.
//!
//! A method names its [`Need`]s; whoever runs the model makes a [`SiteStatistics`] of them for every site and hands it the
//! activations as they pass. Nobody else knows what is in it: how large it is, how it is shared and what happens to it when
//! a transform scales the channels all follow from the statistics that were asked for.

mod gathered;
mod sample;

pub use gathered::{Batch, Gathered};
pub use sample::{Sample, Sequences, Spacing};

use quant_core::ObserverKind;
use quant_graph::Site;

/// Whose activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    /// Those of the float model.
    Float,
    /// Those of the model with the weights it will be deployed with, as far as they are known.
    Deployed,
}

/// Where the activations that the deployed ones are compared with come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FloatStream {
    /// They are those of the float model.
    #[default]
    Model,
    /// They enter every block as the deployed ones do, and then pass its float weights: what earlier blocks did to them is taken
    /// as it is.
    Block,
}

/// What is gathered of the activations at a site, `[tokens, features]`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Statistic {
    /// Largest `|x|` of every channel.
    ChannelMax,
    /// Mean `|x|` of every channel.
    ChannelMeanAbs,
    /// The range of the whole tensor, as a static quantiser takes it.
    Range(ObserverKind),
    /// `(2/N) Σ XᵀX` over N sequences.
    Gram,
    /// `(2/N) Σ (X_float − X)ᵀ X`: of the deployed stream, with the float one beside it.
    CrossGram {
        /// Whether the entries below the diagonal count, of which some methods only have a use with a permuted order of columns.
        below: bool,
        /// Where the float stream comes from.
        float: FloatStream,
    },
    /// Some tokens, evenly spaced over all of them.
    Sample(Spacing),
    /// Whole sequences, or their beginnings, of so many tokens in all.
    Sequences {
        /// Tokens at most; [`usize::MAX`] is all.
        tokens: usize,
    },
}

impl FloatStream {
    /// The value of the key `float_stream`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Block => "block",
        }
    }
}

impl Statistic {
    /// The float stream that goes beside the deployed one for it, if one does.
    #[must_use]
    pub fn float_beside(self) -> Option<FloatStream> {
        match self {
            Self::CrossGram { float, .. } => Some(float),
            _ => None,
        }
    }
    /// Floating-point operations of gathering it over so many tokens of that width, as far as they weigh.
    #[must_use]
    pub fn operations(self, tokens: usize, width: usize) -> f64 {
        let triangle = tokens as f64 * (width as f64).powi(2);
        match self {
            Self::Gram | Self::CrossGram { below: false, .. } => triangle,
            Self::CrossGram { below: true, .. } => 2.0 * triangle,
            _ => 0.0,
        }
    }
    /// What it is good for, for the person who is asked for calibration data.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::ChannelMax => "the transform reads the largest activations",
            Self::ChannelMeanAbs => "the search for scales reads the mean size of activations",
            Self::Range(_) => "static activations need their range",
            Self::Gram => "rounding against a Hessian reads the inputs of every linear",
            Self::CrossGram { .. } => "the correction reads the inputs of every linear in both models",
            Self::Sample(_) | Self::Sequences { .. } => "the search tries its candidates on sampled tokens",
        }
    }
}

/// A statistic that a method wants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Need {
    /// Where.
    pub site: Site,
    /// Of which activations.
    pub stream: Stream,
    /// What.
    pub statistic: Statistic,
}

/// Everything gathered at one site.
#[derive(Clone, Debug, Default)]
pub struct SiteStatistics {
    /// Of the float model.
    pub float: Gathered,
    /// Of the deployed model.
    pub deployed: Gathered,
}
