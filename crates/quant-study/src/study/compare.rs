//! Rows beside the float model: what was lost, and how sure that is.

use crate::StudyError;
use crate::record::Record;
use crate::results::{Column, Loss, ModelResults};
use crate::run::{TaskOutcome, right_by_item};
use quant_core::Par;
use quant_data::{ChoiceMetric, Task, TaskKind};
use quant_eval::statistics::{Bootstrap, LossClass, Outcomes, Part, holm, judge_loss, paired_test};

/// Below this a paired test tells two models apart.
const ALPHA: f64 = 0.05;

/// What is known of the items of a task on a model.
pub(super) struct Answers {
    seeds: usize,
    right: Vec<bool>,
    /// Tokens of greedy answers by item.
    greedy: Vec<Vec<u32>>,
}

impl Answers {
    pub(super) fn of(task: &Task, outcome: &TaskOutcome) -> Self {
        let records: Vec<&Record> = outcome.records.iter().collect();
        match task.kind() {
            TaskKind::Choice(ask) => {
                let right = |record: &&Record| match record {
                    Record::Choice { gold, greedy, acc, acc_norm, .. } => match ask.metric {
                        ChoiceMetric::Acc => *acc,
                        ChoiceMetric::AccNorm => *acc_norm,
                        ChoiceMetric::Greedy => greedy.get(*gold).copied().unwrap_or(false),
                    },
                    _ => false,
                };
                Self { seeds: 1, right: records.iter().map(right).collect(), greedy: Vec::new() }
            }
            TaskKind::Generate(ask) => {
                let seeds = &outcome.result.seeds;
                let tokens = |record: &&Record| match record {
                    Record::Answer { tokens, .. } if ask.sampling.is_none() => Some(tokens.clone()),
                    _ => None,
                };
                let greedy = records.iter().filter_map(tokens).collect();
                Self { seeds: seeds.len(), right: right_by_item(&records, seeds), greedy }
            }
            TaskKind::Text(_) => Self { seeds: 1, right: Vec::new(), greedy: Vec::new() },
        }
    }
}

/// Whether nothing is drawn in the answers of a task.
pub(super) fn is_greedy(task: &Task) -> bool {
    matches!(task.kind(), TaskKind::Generate(ask) if ask.sampling.is_none())
}

/// Fills in the losses of a model's rows; of each, `answers` has what is known of the items of every task.
pub(super) fn compare(
    model: &mut ModelResults,
    answers: &[Vec<Option<Answers>>],
    tasks: &[Task],
    columns: &[Column],
) -> Result<(), StudyError> {
    let Some(at) = model.variants.iter().position(|row| row.recipe == "float") else { return Ok(()) };
    let (float, average) = (&answers[at], model.variants[at].average);
    let (mut estimates, mut p_values, mut compared) = (Vec::new(), Vec::new(), Vec::new());
    for (index, own) in answers.iter().enumerate().filter(|(index, _)| *index != at) {
        model.variants[index].same_prefix = same_prefix(float, own);
        // Averages that are both there have all their tasks.
        if average.is_none() || model.variants[index].average.is_none() {
            continue;
        }
        let Some((estimate, p)) = loss(float, own, tasks, columns)? else { continue };
        estimates.push(estimate);
        p_values.push(p);
        compared.push(index);
    }
    for ((index, estimate), p) in compared.into_iter().zip(estimates).zip(holm(&p_values)) {
        let verdict = judge_loss(&estimate, Some(p), ALPHA);
        model.variants[index].loss = Some(Loss {
            drop: 0.0 - estimate.estimate,
            interval: [0.0 - estimate.high, 0.0 - estimate.low],
            p,
            verdict: verdict.to_string(),
            class: LossClass::of(estimate.estimate).to_string(),
        });
    }
    Ok(())
}

/// The loss of the average in points, and the p-value of the paired test over all items; an item counts the same whatever its seeds.
fn loss(
    float: &[Option<Answers>],
    own: &[Option<Answers>],
    tasks: &[Task],
    columns: &[Column],
) -> Result<Option<(quant_eval::statistics::Interval, f64)>, StudyError> {
    let place = |name: &str| tasks.iter().position(|task| task.name() == name);
    let mut pairs = Vec::new();
    for column in columns {
        for (name, weight) in &column.tasks {
            let cells = place(name).and_then(|at| Some((float.get(at)?.as_ref()?, own.get(at)?.as_ref()?)));
            let same = |(a, b): &(&Answers, &Answers)| (a.seeds, a.right.len()) == (b.seeds, b.right.len());
            let Some((a, b)) = cells.filter(same) else { return Ok(None) };
            let of = |answers: &Answers| Outcomes::new(answers.seeds, answers.right.clone());
            pairs.push((weight / columns.len() as f64, of(a)?, of(b)?));
        }
    }
    if pairs.is_empty() {
        return Ok(None);
    }
    let parts: Vec<Part<'_>> = pairs
        .iter()
        .map(|(weight, float, own)| Part { weight: *weight, float, quantised: Some(own) })
        .collect();
    let estimate = Bootstrap::default().weighted(&parts, Par::Seq)?.times(100.0);
    let most = pairs.iter().fold(1, |most, (_, float, _)| lcm(most, float.seeds()));
    let (mut all_float, mut all_own) = (Vec::new(), Vec::new());
    for cells in [(&mut all_float, float), (&mut all_own, own)] {
        for answers in cells.1.iter().flatten() {
            let again = most / answers.seeds.max(1);
            cells.0.extend(answers.right.iter().flat_map(|&right| std::iter::repeat_n(right, again)));
        }
    }
    let test = paired_test(&Outcomes::new(most, all_float)?, &Outcomes::new(most, all_own)?)?;
    Ok(Some((estimate, test.p)))
}

fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a.max(1), b.max(1));
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a.max(1) / x * b.max(1)
}

/// The mean share of a greedy answer of the float model that another gives token for token before it departs.
fn same_prefix(float: &[Option<Answers>], own: &[Option<Answers>]) -> Option<f64> {
    let both = float.iter().zip(own).filter_map(|(a, b)| Some((a.as_ref()?, b.as_ref()?)));
    let shares: Vec<f64> = both
        .flat_map(|(a, b)| a.greedy.iter().zip(&b.greedy))
        .filter(|(a, _)| !a.is_empty())
        .map(|(a, b)| a.iter().zip(b).take_while(|(a, b)| a == b).count() as f64 / a.len() as f64)
        .collect();
    (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_made_equal() {
        assert_eq!((lcm(1, 3), lcm(2, 3), lcm(0, 4), lcm(6, 4)), (3, 6, 4, 12));
    }

    #[test]
    fn a_prefix_ends_where_answers_part() {
        let cell = |greedy: &[&[u32]]| {
            let greedy = greedy.iter().map(|tokens| tokens.to_vec()).collect();
            Some(Answers { seeds: 1, right: Vec::new(), greedy })
        };
        let float = [cell(&[&[1, 2, 3, 4], &[5, 6]]), None];
        assert_eq!(same_prefix(&float, &[cell(&[&[1, 2, 9, 4], &[5, 6, 7]]), None]), Some(0.75));
        assert_eq!(same_prefix(&float, &[None, cell(&[&[1]])]), None);
    }
}
