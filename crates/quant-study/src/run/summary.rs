//! From items to figures.

use crate::StudyError;
use crate::record::{Done, Record, Signs};
use quant_core::Par;
use quant_data::{ChoiceMetric, Task, TaskKind};
use quant_eval::statistics::{Bootstrap, Outcomes, mean_deviation};
use quant_eval::{EvalReport, Outcome};
use serde::{Deserialize, Serialize};

/// The figure of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// `acc`, `acc_norm`, `greedy`, `accuracy` (all in percent), or `perplexity`.
    pub name: String,
    /// Its value; null where there is none, for the reason that `problem` of the result gives.
    pub value: Option<f64>,
    /// Of accuracies, the ends of the 95 % interval by resampling items.
    pub interval: Option<[f64; 2]>,
}

/// All figures of a task with choices, in percent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoiceSummary {
    /// The most likely choice is right; none where there is never more than one to choose from.
    pub acc: Option<f64>,
    /// The most likely one for its characters is; none where `acc` is.
    pub acc_norm: Option<f64>,
    /// The right choice is what the model itself would say.
    pub greedy: f64,
    /// `exp` of the mean negative log-likelihood of the right choice.
    pub perplexity: Option<f64>,
}

/// How many answers bear which sign of collapse.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SignCounts {
    /// Answers with any sign of the first four.
    pub collapsed: usize,
    /// Did not end by themselves.
    pub no_end: usize,
    /// Ended in a loop.
    pub loops: usize,
    /// Did not close their thought.
    pub unclosed_thought: usize,
    /// Had nothing behind the thought.
    pub empty: usize,
    /// Had the right answer in the thought and gave another.
    pub seen_not_given: usize,
    /// Prompts that left no room for an answer.
    pub do_not_fit: usize,
    /// Broke off because logits were not finite.
    pub non_finite: usize,
}

impl SignCounts {
    /// Adds those of other answers.
    pub(crate) fn add(&mut self, other: &Self) {
        self.collapsed += other.collapsed;
        self.no_end += other.no_end;
        self.loops += other.loops;
        self.unclosed_thought += other.unclosed_thought;
        self.empty += other.empty;
        self.seen_not_given += other.seen_not_given;
        self.do_not_fit += other.do_not_fit;
        self.non_finite += other.non_finite;
    }
}

/// What answers were like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnswerSummary {
    /// Percent right under each seed.
    pub per_seed: Vec<f64>,
    /// Standard deviation over seeds (n - 1); none for one seed.
    pub deviation: Option<f64>,
    /// Mean number of new tokens.
    pub tokens: f64,
    /// Mean number of tokens of a thought, where thoughts can be told.
    pub thought_tokens: Option<f64>,
    /// Signs of collapse.
    pub signs: SignCounts,
}

/// What a text is like to the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextSummary {
    /// Predicted tokens.
    pub tokens: usize,
    /// Mean negative log-likelihood of a token in nats.
    pub mean_nll: Option<f64>,
    /// Mean KL divergence from the float model in nats per token, where there is one.
    pub kl: Option<f64>,
    /// Share of positions at which both rank the same token first.
    pub top1_agreement: Option<f64>,
    /// Share of positions at which the float model's first token is among the first five.
    #[serde(default)]
    pub top5_agreement: Option<f64>,
    /// The first block after which hidden states were not finite.
    pub first_overflow: Option<String>,
    /// How often `<unk>` stands in the text: 0 in a raw one, more in a tokenised one; none for conversations.
    #[serde(default)]
    pub unknown_words: Option<usize>,
}

impl TextSummary {
    /// What kind of text it is, by its unknown words; none for conversations.
    #[must_use]
    pub fn form(&self) -> Option<String> {
        self.unknown_words.map(form_of)
    }
}

/// What kind of text has so many unknown words.
pub(crate) fn form_of(unknown_words: usize) -> String {
    match unknown_words {
        0 => "raw".to_owned(),
        some => format!("tokenised, {some} <unk>"),
    }
}

/// The result of a task on a model; the same for every number of threads, batch, and way to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// Name of the task.
    pub task: String,
    /// `choice`, `generate` or `text`.
    pub kind: String,
    /// Whose words the prompt has.
    pub wording: String,
    /// Items, or windows of a text.
    pub items: usize,
    /// Seeds of the draws; none where nothing is drawn.
    pub seeds: Vec<u64>,
    /// The figure of the task.
    pub figure: Figure,
    /// Of a task with choices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<ChoiceSummary>,
    /// Of a task that asks for texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<AnswerSummary>,
    /// Of a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextSummary>,
    /// Why numbers are missing, or not what they should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

fn percent(count: usize, of: usize) -> f64 {
    100.0 * count as f64 / of.max(1) as f64
}

impl TaskResult {
    fn new(task: &Task, items: usize, seeds: &[u64], figure: Figure) -> Self {
        let kind = match task.kind() {
            TaskKind::Choice(_) => "choice",
            TaskKind::Generate(_) => "generate",
            TaskKind::Text(_) => "text",
        };
        Self {
            task: task.name().to_owned(),
            kind: kind.to_owned(),
            wording: task.wording().to_owned(),
            items,
            seeds: seeds.to_vec(),
            figure,
            choice: None,
            answers: None,
            text: None,
            problem: None,
        }
    }

    pub(super) fn of_choices(task: &Task, metric: ChoiceMetric, done: &Done) -> Result<Self, StudyError> {
        let (mut acc, mut acc_norm, mut said) = (Vec::new(), Vec::new(), Vec::new());
        let (mut total, mut broken, mut compared) = (Some(0.0), 0, false);
        for record in done.values() {
            if let Record::Choice { gold, log_likelihoods, greedy, acc: is, acc_norm: normed, .. } = record {
                let right = *gold;
                acc.push(*is);
                acc_norm.push(*normed);
                said.push(greedy.get(right).copied().unwrap_or(false));
                compared |= log_likelihoods.len() > 1;
                broken += usize::from(log_likelihoods.iter().any(Option::is_none));
                total = total.zip(log_likelihoods.get(right).copied().flatten()).map(|(a, b)| a + b);
            }
        }
        let items = acc.len();
        let share = |flags: &[bool]| percent(flags.iter().filter(|flag| **flag).count(), items);
        let summary = ChoiceSummary {
            acc: compared.then(|| share(&acc)),
            acc_norm: compared.then(|| share(&acc_norm)),
            greedy: share(&said),
            perplexity: total
                .map(|sum| quant_core::elementary::exp(-sum / items.max(1) as f64))
                .filter(|p| p.is_finite()),
        };
        let (value, flags) = match metric {
            ChoiceMetric::Acc => (share(&acc), acc),
            ChoiceMetric::AccNorm => (share(&acc_norm), acc_norm),
            ChoiceMetric::Greedy => (summary.greedy, said),
        };
        let figure =
            Figure { name: metric.name().to_owned(), value: Some(value), interval: interval(1, flags)? };
        let problem = (broken > 0)
            .then(|| format!("logits were not finite for {broken} of {items} items, which count as wrong"));
        Ok(Self { choice: Some(summary), problem, ..Self::new(task, items, &[], figure) })
    }

    pub(super) fn of_answers(task: &Task, seeds: &[u64], done: &Done) -> Result<Self, StudyError> {
        let records: Vec<&Record> = done.values().collect();
        let summary = summarise_answers(&records, seeds);
        let items = records.len() / seeds.len().max(1);
        let mean = mean_deviation(&summary.per_seed);
        let figure = Figure {
            name: "accuracy".to_owned(),
            value: mean.map(|m| m.mean),
            interval: interval(seeds.len(), right_by_item(&records, seeds))?,
        };
        let mut problems = Vec::new();
        if summary.signs.non_finite > 0 {
            problems.push(format!(
                "logits were not finite in {} answers, which count as wrong",
                summary.signs.non_finite
            ));
        }
        if summary.signs.do_not_fit > 0 {
            problems.push(format!(
                "{} prompts leave no room for an answer and count as wrong",
                summary.signs.do_not_fit
            ));
        }
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        Ok(Self { answers: Some(summary), problem, ..Self::new(task, items, seeds, figure) })
    }

    /// Of windows that a server has predicted.
    #[cfg(feature = "server")]
    pub(super) fn of_windows(task: &Task, done: &Done, unknown_words: Option<usize>) -> Self {
        let (mut all, mut sum) = (0, 0.0);
        for record in done.values() {
            if let Record::Window { tokens, log_likelihood, .. } = record {
                all += tokens;
                sum -= log_likelihood;
            }
        }
        let mean = (all > 0).then(|| sum / all as f64);
        let perplexity = mean.map(quant_core::elementary::exp).filter(|value| value.is_finite());
        let problem = (mean.is_some() && perplexity.is_none())
            .then(|| "the perplexity is larger than any number".to_owned());
        let figure = Figure { name: "perplexity".to_owned(), value: perplexity, interval: None };
        let text = TextSummary {
            tokens: all,
            mean_nll: mean,
            kl: None,
            top1_agreement: None,
            top5_agreement: None,
            first_overflow: None,
            unknown_words,
        };
        Self { text: Some(text), problem, ..Self::new(task, done.len(), &[], figure) }
    }

    pub(super) fn of_text(
        task: &Task,
        report: &EvalReport,
        first_overflow: Option<String>,
        unknown_words: Option<usize>,
    ) -> Self {
        let figure = Figure { name: "perplexity".to_owned(), value: report.perplexity, interval: None };
        let problem = match &report.outcome {
            Outcome::Ok => None,
            Outcome::NonFiniteLogits { sequence, position, model } => Some(format!(
                "logits of the {model} are not finite, first in window {sequence} at position {position}{}",
                first_overflow
                    .as_ref()
                    .map_or_else(String::new, |at| format!("; hidden states are not, {at}"))
            )),
            _ => Some("the perplexity is larger than any number".to_owned()),
        };
        let comparison = report.comparison;
        let text = TextSummary {
            tokens: report.tokens,
            mean_nll: report.mean_nll,
            kl: comparison.and_then(|c| c.kl),
            top1_agreement: comparison.and_then(|c| c.top1_agreement),
            top5_agreement: comparison.and_then(|c| c.top5_agreement),
            first_overflow,
            unknown_words,
        };
        Self { text: Some(text), problem, ..Self::new(task, report.sequences, &[], figure) }
    }
}

/// What answers were like under seeds.
#[must_use]
pub fn summarise_answers(records: &[&Record], seeds: &[u64]) -> AnswerSummary {
    let (mut signs, mut tokens, mut thoughts) = (SignCounts::default(), 0, Vec::new());
    let mut right = vec![(0_usize, 0_usize); seeds.len()];
    for record in records {
        let Record::Answer { seed, right: is, finish, tokens: new, signs: s, .. } = record else { continue };
        if let Some(at) = seeds.iter().position(|other| other == seed) {
            right[at].0 += usize::from(*is);
            right[at].1 += 1;
        }
        tokens += new.len();
        count(&mut signs, s, finish);
        thoughts.extend(s.thought);
    }
    let per_seed: Vec<f64> = right.into_iter().map(|(right, all)| percent(right, all)).collect();
    AnswerSummary {
        deviation: mean_deviation(&per_seed).and_then(|m| m.deviation),
        per_seed,
        tokens: tokens as f64 / records.len().max(1) as f64,
        thought_tokens: (!thoughts.is_empty())
            .then(|| thoughts.iter().sum::<usize>() as f64 / thoughts.len() as f64),
        signs,
    }
}

fn count(counts: &mut SignCounts, signs: &Signs, finish: &str) {
    counts.collapsed += usize::from(signs.collapsed());
    counts.no_end += usize::from(signs.no_end);
    counts.loops += usize::from(signs.loops);
    counts.unclosed_thought += usize::from(signs.unclosed_thought);
    counts.empty += usize::from(signs.empty);
    counts.seen_not_given += usize::from(signs.seen_not_given);
    counts.do_not_fit += usize::from(finish == "does_not_fit");
    counts.non_finite += usize::from(finish == "non_finite");
}

/// Whether each item was answered rightly, all seeds of an item together.
pub(crate) fn right_by_item(records: &[&Record], seeds: &[u64]) -> Vec<bool> {
    let of = |seed: u64| {
        records.iter().filter_map(move |record| match record {
            Record::Answer { seed: own, right, .. } if *own == seed => Some(*right),
            _ => None,
        })
    };
    let columns: Vec<Vec<bool>> = seeds.iter().map(|&seed| of(seed).collect()).collect();
    let items = columns.iter().map(Vec::len).min().unwrap_or(0);
    (0..items).flat_map(|item| columns.iter().map(move |column| column[item])).collect()
}

fn interval(seeds: usize, right: Vec<bool>) -> Result<Option<[f64; 2]>, StudyError> {
    if right.is_empty() {
        return Ok(None);
    }
    let outcomes = Outcomes::new(seeds, right)?;
    let interval = Bootstrap::default().accuracy(&outcomes, Par::Seq)?.times(100.0);
    Ok(Some([interval.low, interval.high]))
}
