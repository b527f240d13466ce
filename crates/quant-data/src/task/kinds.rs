//! How the kinds of tasks ask, as their files say it.

use super::ask::{Expression, TextTemplate};

/// The figure of a task with choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChoiceMetric {
    /// The most likely choice is right.
    Acc,
    /// The most likely one for its number of characters is.
    AccNorm,
    /// The model itself would go on so.
    Greedy,
}

impl ChoiceMetric {
    pub(super) const ALL: [(&'static str, Self); 3] =
        [("acc", Self::Acc), ("acc_norm", Self::AccNorm), ("greedy", Self::Greedy)];

    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, metric)| *metric == self).map_or("acc", |(name, _)| *name)
    }
}

/// How a task with choices asks.
#[derive(Clone, Debug)]
pub struct Choices {
    pub(super) context: TextTemplate,
    pub(super) choices: Option<Expression>,
    pub(super) continuation: TextTemplate,
    pub(super) gold: Option<Expression>,
    /// The figure of the task.
    pub metric: ChoiceMetric,
}

/// Whether a prompt opens the thought of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// It does where the rendered prompt ends with the opening mark.
    Auto,
    /// It does.
    Open,
    /// It does not.
    None,
}

impl Opening {
    pub(super) const ALL: [(&'static str, Self); 3] =
        [("auto", Self::Auto), ("open", Self::Open), ("none", Self::None)];
}

/// How tokens of an answer are drawn.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct TaskSampling {
    /// Divides the logits; 0 is greedy.
    pub temperature: f64,
    /// Least share of probability that is kept.
    pub top_p: f64,
    /// Most tokens that are kept; none keeps all.
    pub top_k: Option<usize>,
}

/// What is right.
#[derive(Clone, Debug)]
pub(super) enum Right {
    Text(TextTemplate),
    /// Fields, which may be longer than a template prints.
    Fields(Vec<String>),
}

/// How a task asks for a text.
#[derive(Clone, Debug)]
pub struct Generation {
    pub(super) prompt: TextTemplate,
    pub(super) system: Option<TextTemplate>,
    pub(super) chat: bool,
    pub(super) options: Option<Expression>,
    pub(super) shuffle: bool,
    pub(super) gold: Right,
    /// What grades an answer.
    pub scorer: String,
    /// Whether the prompt opens the thought.
    pub opening: Opening,
    /// Marks around a thought.
    pub marks: [String; 2],
    /// Tokens of prompt and answer together at most.
    pub max_tokens: usize,
    /// Tokens of an answer at most.
    pub max_new_tokens: Option<usize>,
    /// How tokens are drawn; none is greedy.
    pub sampling: Option<TaskSampling>,
    /// Seeds of the draws: the items are answered once for each.
    pub seeds: Vec<u64>,
}

/// How a text is made of items and cut.
#[derive(Clone, Debug)]
pub struct TextTask {
    pub(super) text: TextTemplate,
    pub(super) messages: Option<Expression>,
    pub(super) join: String,
    /// Tokens of a window.
    pub window: usize,
    pub(super) documents: Option<usize>,
    pub(super) tokens: Option<usize>,
}
