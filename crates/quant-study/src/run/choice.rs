//! Items whose continuations are compared.

use super::kept::Kept;
use crate::StudyError;
use crate::passes::passes;
use crate::record::Record;
use quant_data::{ChoiceItem, Continuation};
use quant_eval::{LanguageModel, PositionOptions, PositionScore, score_positions};
use quant_pipeline::{Event, Events};

/// Tokens that are taken through the model at a time: blocks are read once for so many.
const PASS: usize = 32_768;

/// Log-likelihood of a choice in nats, none where a logit was not finite; and whether the model would say it.
pub(super) type Likelihood = (Option<f64>, bool);

/// The lengths of the sequences of the pass that holds the most tokens, for the prediction of memory.
pub(super) fn largest_pass(items: &[ChoiceItem]) -> Vec<usize> {
    let lengths = items.iter().flat_map(|item| &item.choices).map(|c| c.context.len() + c.continuation.len());
    let mut lengths: Vec<usize> = lengths.collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    let mut sum = 0;
    let count = lengths.iter().take_while(|&&length| {
        sum += length;
        sum <= PASS.max(length)
    });
    let count = count.count();
    lengths.truncate(count);
    lengths
}

/// The items that have no record yet.
pub(super) fn missing<'a>(items: &'a [ChoiceItem], kept: &Kept) -> Vec<&'a ChoiceItem> {
    items.iter().filter(|item| !kept.done.contains_key(&(0, item.number))).collect()
}

/// Scores the items that are not there yet, with so many tokens before the last one at most.
pub(super) fn run(
    longest: usize,
    items: &[ChoiceItem],
    model: &mut dyn LanguageModel,
    kept: &mut Kept,
    events: &mut dyn Events,
) -> Result<(), StudyError> {
    let missing = missing(items, kept);
    let tokens = |item: &&ChoiceItem| {
        item.choices.iter().map(|c| c.context.len() + c.continuation.len()).sum::<usize>()
    };
    let mut done = 0;
    for batch in passes(&missing, PASS, tokens) {
        let scored = scores(longest, model, batch, events)?;
        kept.add(batch.iter().zip(scored).map(|(item, scores)| judged(item, &scores)).collect())?;
        done += batch.len();
        events.event(Event::Evaluated { what: "item", done, of: missing.len(), inside: 0.0 });
    }
    Ok(())
}

/// What each choice of each item is like.
fn scores(
    longest: usize,
    model: &mut dyn LanguageModel,
    items: &[&ChoiceItem],
    events: &mut dyn Events,
) -> Result<Vec<Vec<Likelihood>>, StudyError> {
    let choices: Vec<&Continuation> = items.iter().flat_map(|item| &item.choices).collect();
    let mut sequences = Vec::with_capacity(choices.len());
    let mut wanted = Vec::with_capacity(choices.len());
    for choice in &choices {
        let (ids, range) = fitting(choice, longest);
        sequences.push(ids);
        wanted.push(range);
    }
    let mut progress = |_, _, _| events.flow();
    let options = PositionOptions { progress: Some(&mut progress), ..PositionOptions::default() };
    let scored = score_positions(model, &sequences, &wanted, options)?;
    let of = |scores: &Vec<PositionScore>| {
        let total = scores.iter().map(|score| score.nll).sum::<Option<f64>>();
        (total.map(|nll| -nll), scores.iter().all(|score| score.greedy))
    };
    let mut rest = scored.iter().map(of);
    Ok(items.iter().map(|item| rest.by_ref().take(item.choices.len()).collect()).collect())
}

/// The tokens of a choice, the first of them left out where the model's context is shorter, and those that are scored.
pub(super) fn fitting(choice: &Continuation, longest: usize) -> (Vec<u32>, std::ops::Range<usize>) {
    let mut ids = [choice.context.as_slice(), &choice.continuation].concat();
    // The last token is predicted and never read.
    ids.drain(..ids.len().saturating_sub(longest.saturating_add(1)));
    let scored = choice.continuation.len().min(ids.len() - 1);
    let range = ids.len() - scored..ids.len();
    (ids, range)
}

/// What is said of an item whose choices are so likely.
pub(super) fn judged(item: &ChoiceItem, scores: &[Likelihood]) -> Record {
    // The first of equal ones; a choice without a number is never the best.
    let best = |value: &dyn Fn(usize) -> Option<f64>| {
        let mut best: Option<(usize, f64)> = None;
        for (index, value) in (0..scores.len()).filter_map(|index| Some((index, value(index)?))) {
            if best.is_none_or(|(_, most)| value > most) {
                best = Some((index, value));
            }
        }
        best.map(|(index, _)| index)
    };
    let finite = scores.iter().all(|(total, _)| total.is_some());
    let characters = |index: usize| item.choices[index].characters.max(1) as f64;
    Record::Choice {
        number: item.number,
        id: item.id.clone(),
        gold: item.gold,
        log_likelihoods: scores.iter().map(|(total, _)| *total).collect(),
        greedy: scores.iter().map(|(_, greedy)| *greedy).collect(),
        acc: finite && best(&|index| scores[index].0) == Some(item.gold),
        acc_norm: finite && best(&|index| Some(scores[index].0? / characters(index))) == Some(item.gold),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(characters: &[usize], gold: usize) -> ChoiceItem {
        let choice =
            |&characters: &usize| Continuation { context: vec![1], continuation: vec![2], characters };
        ChoiceItem { number: 0, id: "0".into(), choices: characters.iter().map(choice).collect(), gold }
    }

    fn right(item: &ChoiceItem, totals: &[f64]) -> (bool, bool) {
        let scores: Vec<_> = totals.iter().map(|&total| (Some(total), false)).collect();
        match judged(item, &scores) {
            Record::Choice { acc, acc_norm, .. } => (acc, acc_norm),
            _ => unreachable!(),
        }
    }

    /// A long choice is less likely as a whole and more likely for its length: the two figures differ.
    #[test]
    fn characters_decide_between_the_figures() {
        assert_eq!(right(&item(&[4, 20], 0), &[-4.0, -10.0]), (true, false));
        assert_eq!(right(&item(&[4, 20], 1), &[-4.0, -10.0]), (false, true));
        // The first of equal ones.
        assert_eq!(right(&item(&[4, 4], 0), &[-4.0, -4.0]), (true, true));
        assert_eq!(right(&item(&[4, 4], 1), &[-4.0, -4.0]), (false, false));
        let broken = judged(&item(&[4, 4], 0), &[(Some(-1.0), false), (None, false)]);
        assert!(matches!(broken, Record::Choice { acc: false, acc_norm: false, .. }), "{broken:?}");
    }

    #[test]
    fn what_is_too_long_loses_its_beginning() {
        let choice = Continuation { context: (0..10).collect(), continuation: vec![10, 11], characters: 2 };
        assert_eq!(fitting(&choice, 100), ((0..12).collect(), 10..12));
        assert_eq!(fitting(&choice, 4), ((7..12).collect(), 3..5));
        assert_eq!(
            fitting(&choice, 1),
            (vec![10, 11], 1..2),
            "of a continuation longer than the context, its end"
        );
    }
}
