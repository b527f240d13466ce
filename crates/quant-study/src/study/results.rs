//! What a study found; built from the folders of its cells, so that a report can be made at any time.

use super::cells::{LayerError, Status, VariantFacts};
use super::compare::{Answers, Cell, compare};
use super::plan::{PlannedVariant, StudyPlan, slug};
use crate::StudyError;
use crate::blame::Blame;
use crate::files::read_json;
use crate::run::home::finished_in;
use crate::run::{SignCounts, TaskOutcome, TaskRun};
use crate::verdict::{Prediction, Verdict};
use quant_data::Task;
use quant_eval::statistics::{MeanDeviation, mean_deviation};
use serde::Serialize;
use std::path::{Path, PathBuf};

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
    /// Why numbers are missing or not what they should be, by task.
    pub problems: Vec<String>,
    /// Tasks that are not finished.
    pub missing: Vec<String>,
    /// Seconds and speed of the tasks; no part of the written results.
    #[serde(skip)]
    pub runs: Vec<TaskRun>,
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

/// The folder of a row.
pub(super) fn variant_folder(output: &Path, model: &str, recipe: Option<&str>) -> PathBuf {
    output.join("cells").join(slug(model)).join(slug(recipe.unwrap_or("float")))
}

/// The columns of tasks with accuracies.
fn columns(tasks: &[Task]) -> Vec<Column> {
    let mut columns: Vec<Column> = Vec::new();
    for task in tasks.iter().filter(|task| !matches!(task.kind(), quant_data::TaskKind::Text(_))) {
        let (name, weight) = task.group().unwrap_or((task.name(), 1.0));
        let entry = (task.name().to_owned(), weight);
        match columns.iter_mut().find(|column| column.name == name) {
            Some(column) => column.tasks.push(entry),
            None => columns.push(Column { name: name.to_owned(), tasks: vec![entry] }),
        }
    }
    for column in &mut columns {
        // A column of one task is that task, whatever weight it has beside others.
        let sum: f64 = column.tasks.iter().map(|(_, weight)| weight).sum();
        column.tasks.iter_mut().for_each(|(_, weight)| *weight /= sum);
    }
    columns
}

impl StudyResults {
    /// Reads the cells of a study.
    pub(super) fn read(output: &Path, plan: &StudyPlan, tasks: &[Task]) -> Result<Self, StudyError> {
        let columns = columns(tasks);
        let mut models: Vec<ModelResults> = Vec::new();
        for planned in &plan.variants {
            let at = match models.iter().position(|m| m.model == planned.model) {
                Some(at) => at,
                None => {
                    models.push(ModelResults { model: planned.model.clone(), variants: Vec::new() });
                    models.len() - 1
                }
            };
            for (execution, problem) in &planned.executions {
                let row = Self::row(output, planned, execution, problem.as_deref(), tasks, &columns)?;
                models[at].variants.push(row);
            }
        }
        for model in &mut models {
            compare(output, plan, model, tasks, &columns)?;
        }
        Ok(Self {
            study: plan.study.clone(),
            version: crate::run::version(),
            columns,
            wordings: tasks.iter().map(|t| (t.name().to_owned(), t.wording().to_owned())).collect(),
            models,
            statistics: "intervals: 95 %, 10,000 resamples of items by a keyed generator, all seeds of an item together; p: exact \
                         paired test on items, corrected by Holm's method for the number of rows; classes by the loss of the average \
                         in points: lossless <= 1, fair < 3, risky"
                .to_owned(),
        })
    }

    fn row(
        output: &Path,
        planned: &PlannedVariant,
        execution: &str,
        problem: Option<&str>,
        tasks: &[Task],
        columns: &[Column],
    ) -> Result<VariantResults, StudyError> {
        let folder = variant_folder(output, &planned.model, planned.recipe.as_deref());
        let facts: Option<VariantFacts> = read_json(&folder.join("variant.json"))?;
        let illegal = planned.illegal.as_deref().or(problem).map(|reason| Status::Illegal(reason.to_owned()));
        let status =
            illegal.or_else(|| facts.as_ref().map(|facts| facts.status.clone())).unwrap_or(Status::Ok);
        let mut row = VariantResults {
            recipe: planned.recipe.clone().unwrap_or_else(|| "float".to_owned()),
            method: planned.method.clone(),
            bits: planned.bits.clone(),
            weight_bits: facts.as_ref().and_then(|facts| facts.weight_bits).or(planned.weight_bits),
            execution: execution.to_owned(),
            status,
            columns: vec![ColumnResult::default(); columns.len()],
            average: None,
            loss: None,
            texts: Vec::new(),
            signs: SignCounts::default(),
            answers: 0,
            thought_tokens: None,
            same_prefix: None,
            prediction: None,
            blame: None,
            layers: facts.map(|facts| facts.layers).unwrap_or_default(),
            problems: Vec::new(),
            missing: Vec::new(),
            runs: Vec::new(),
        };
        if row.status != Status::Ok {
            return Ok(row);
        }
        let folder = folder.join(execution);
        row.prediction = read_json::<Prediction>(&folder.join("prediction.json"))?.map(|kept| kept.verdict);
        row.blame = read_json(&folder.join("blame.json"))?;
        let mut outcomes: Vec<(&str, TaskOutcome)> = Vec::new();
        for task in tasks {
            match finished_in(&folder.join(slug(task.name())))? {
                Some(outcome) => outcomes.push((task.name(), outcome)),
                None => row.missing.push(task.name().to_owned()),
            }
        }
        let of = |name: &str| outcomes.iter().find(|(task, _)| *task == name).map(|(_, outcome)| outcome);
        for (column, figure) in columns.iter().zip(&mut row.columns) {
            *figure = column_result(column, &of);
        }
        let values: Option<Vec<f64>> = row.columns.iter().map(|column| column.value).collect();
        row.average = values.filter(|v| !v.is_empty()).and_then(|v| mean_deviation(&v)).map(|m| m.mean);
        let mut thoughts = Vec::new();
        for (task, outcome) in &outcomes {
            let result = &outcome.result;
            row.problems.extend(result.problem.as_ref().map(|problem| format!("{task}: {problem}")));
            row.runs.push(outcome.run.clone());
            if let Some(text) = &result.text {
                row.texts.push(TextFigures {
                    task: (*task).to_owned(),
                    perplexity: result.figure.value,
                    kl: text.kl,
                    top1_agreement: text.top1_agreement,
                });
            }
            if let Some(answers) = &result.answers {
                row.answers += outcome.records.len();
                row.signs.add(&answers.signs);
                thoughts.extend(answers.thought_tokens.map(|mean| (mean, outcome.records.len())));
            }
        }
        let all: usize = thoughts.iter().map(|(_, count)| count).sum();
        row.thought_tokens =
            (all > 0).then(|| thoughts.iter().map(|(mean, n)| mean * *n as f64).sum::<f64>() / all as f64);
        Ok(row)
    }
}

fn column_result<'o>(column: &Column, of: &dyn Fn(&str) -> Option<&'o TaskOutcome>) -> ColumnResult {
    let parts: Option<Vec<(&TaskOutcome, f64)>> =
        column.tasks.iter().map(|(name, weight)| Some((of(name)?, *weight))).collect();
    let Some(parts) = parts else { return ColumnResult::default() };
    let value: Option<f64> =
        parts.iter().map(|(outcome, weight)| Some(outcome.result.figure.value? * weight)).sum();
    // The column under each seed, where its tasks have the same.
    let seeds: Vec<&[f64]> =
        parts.iter().filter_map(|(o, _)| o.result.answers.as_ref()).map(|a| a.per_seed.as_slice()).collect();
    let count = seeds.first().map_or(0, |seeds| seeds.len());
    let together = seeds.len() == parts.len() && seeds.iter().all(|s| s.len() == count);
    let per_seed: Vec<f64> = (0..if together { count } else { 0 })
        .map(|seed| seeds.iter().zip(&parts).map(|(values, (_, weight))| values[seed] * weight).sum())
        .collect();
    ColumnResult {
        value,
        deviation: mean_deviation(&per_seed).and_then(|m: MeanDeviation| m.deviation),
        interval: parts.first().filter(|_| parts.len() == 1).and_then(|(o, _)| o.result.figure.interval),
    }
}

/// The cell of a task in a row, as comparisons see it.
pub(super) fn cell(
    output: &Path,
    planned: &PlannedVariant,
    execution: &str,
    task: &Task,
) -> Result<Option<Cell>, StudyError> {
    let folder = variant_folder(output, &planned.model, planned.recipe.as_deref()).join(execution);
    Ok(finished_in(&folder.join(slug(task.name())))?
        .map(|outcome| Cell { answers: Answers::of(task, &outcome) }))
}
