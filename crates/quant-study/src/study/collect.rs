//! From the folders of cells to what a study found, so that a report can be made at any time.

use super::compare::{Answers, compare};
use super::depends::{of_answers, of_blame, standing};
use super::place::{BLAME, FAILURES, PREDICTION, RANGES, SERVER, variant_folder};
use super::plan::{PlannedVariant, StudyPlan};
use crate::StudyError;
use crate::files::{read_json, slug};
use crate::results::{
    Column, ColumnResult, FailedPart, ModelResults, Status, StudyResults, TextFigures, VariantFacts,
    VariantResults,
};
use crate::run::home::finished_in;
use crate::run::{SignCounts, TaskOutcome};
use crate::verdict::Prediction;
use quant_data::Task;
use quant_eval::statistics::{MeanDeviation, mean_deviation};
use std::collections::BTreeMap;
use std::path::Path;

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

/// Reads the cells of a study; `blame` is the task on whose text causes are looked for.
pub(super) fn collect(
    output: &Path,
    plan: &StudyPlan,
    tasks: &[Task],
    blame: Option<&str>,
) -> Result<StudyResults, StudyError> {
    let columns = columns(tasks);
    let asked = Asked { tasks, columns: &columns, blame };
    let mut models: Vec<ModelResults> = Vec::new();
    // Of every row of a model, what is known of the items of each task.
    let mut answers = BTreeMap::<usize, Vec<Vec<Option<Answers>>>>::new();
    for planned in &plan.variants {
        let at = match models.iter().position(|m| m.model == planned.model) {
            Some(at) => at,
            None => {
                models.push(ModelResults { model: planned.model.clone(), variants: Vec::new() });
                models.len() - 1
            }
        };
        for (execution, problem) in &planned.executions {
            let (found, own) = row(output, planned, execution, problem.as_deref(), &asked)?;
            models[at].variants.push(found);
            answers.entry(at).or_default().push(own);
        }
    }
    for (at, model) in models.iter_mut().enumerate() {
        compare(model, answers.get(&at).map_or(&[], Vec::as_slice), tasks, &columns)?;
    }
    Ok(StudyResults {
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

/// What every row is asked.
struct Asked<'a> {
    tasks: &'a [Task],
    columns: &'a [Column],
    blame: Option<&'a str>,
}

fn row(
    output: &Path,
    planned: &PlannedVariant,
    execution: &str,
    problem: Option<&str>,
    asked: &Asked<'_>,
) -> Result<(VariantResults, Vec<Option<Answers>>), StudyError> {
    let Asked { tasks, columns, blame } = *asked;
    let folder = variant_folder(output, &planned.model, planned.recipe.as_deref());
    let facts: Option<VariantFacts> = read_json(&folder.join("variant.json"))?;
    let illegal = planned.illegal.as_deref().or(problem).map(|reason| Status::Illegal(reason.to_owned()));
    let status = illegal.or_else(|| facts.as_ref().map(|facts| facts.status.clone())).unwrap_or(Status::Ok);
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
        ranges: Vec::new(),
        problems: Vec::new(),
        failed: Vec::new(),
        missing: Vec::new(),
        runs: Vec::new(),
    };
    if row.status != Status::Ok {
        return Ok((row, tasks.iter().map(|_| None).collect()));
    }
    if planned.executions.first().is_some_and(|(first, _)| first == execution) {
        row.ranges = read_json(&folder.join(RANGES))?.unwrap_or_default();
    }
    row.failed = read_json::<Vec<FailedPart>>(&folder.join(FAILURES))?.unwrap_or_default();
    row.failed.retain(|failed| failed.execution == execution);
    let folder = folder.join(execution);
    let of = of_answers(output, &planned.model, tasks)?;
    // None where the float model gave no answer that could be read.
    let predicted: Option<Option<Prediction>> = standing(&folder.join(PREDICTION), of.as_deref())?;
    row.prediction = predicted.flatten().map(|kept| kept.verdict);
    let of = of_blame(&folder, tasks, blame)?;
    row.blame = standing(&folder.join(BLAME), of.as_deref())?;
    let (mut outcomes, mut answers) = (Vec::new(), Vec::new());
    for task in tasks {
        let outcome = finished_in(&folder.join(slug(task.name())))?;
        answers.push(outcome.as_ref().map(|outcome| Answers::of(task, outcome)));
        match outcome {
            Some(outcome) => outcomes.push((task.name(), outcome)),
            None if row.failed.iter().any(|failed| failed.part == task.name()) => {}
            None => row.missing.push(task.name().to_owned()),
        }
    }
    // What was finished since, or is no part of the study any more, is no failure of it.
    row.failed.retain(|failed| !outcomes.iter().any(|(task, _)| *task == failed.part));
    row.problems
        .extend(row.failed.iter().map(|failed| format!("{}: failed: {}", failed.part, failed.reason)));
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
            if execution == SERVER {
                let words = "KL divergence and agreement are not available: a server gives no logits";
                row.problems.push(format!("{task}: {words}"));
            }
            row.texts.push(TextFigures {
                task: (*task).to_owned(),
                perplexity: result.figure.value,
                kl: text.kl,
                top1_agreement: text.top1_agreement,
                top5_agreement: text.top5_agreement,
                unknown_words: text.unknown_words,
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
    Ok((row, answers))
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
