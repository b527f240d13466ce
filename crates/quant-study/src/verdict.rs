//! What a quantised model will lose, without decoding: it reads the float model's own greedy answers.
//!
//! A greedy answer of the quantised model is the float model's answer, token for token, as long as it ranks each of its tokens first. So
//! an answer all of whose tokens it ranks first is known to the letter, and with it whether it is right. Of the others only how far the
//! model is from the float one is known, the mean KL divergence over the answer; how many of such answers stay right is a curve whose two
//! constants were chosen on round-to-nearest rows of the tiny model (`benchmarks/README.md`).

use crate::StudyError;
use crate::passes::passes;
use crate::run::Reference;
use quant_core::elementary::{exp, ln};
use quant_eval::collapse::repetition;
use quant_eval::{LanguageModel, PositionOptions, PositionScore, score_positions};
use quant_pipeline::Events;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Bytes of hidden states of a model at most: so many tokens are taken through the models at a time.
const PASS: usize = 256 << 20;
/// Mean KL of an answer, in nats per token, at which half of the right answers that are departed from stay right.
const HALF: f64 = 0.0022;
/// How steeply that share falls with KL.
const STEEPNESS: f64 = 1.2;
/// Share of wrong answers that become right where they are departed from at little divergence: what is wrong is close to right.
const LUCK: f64 = 0.65;
/// Tokens that must have stood before to be a repetition.
const REPEATED: usize = 4;
/// Answers that are read at most, taken evenly: more would change the prediction by less than it is off anyway.
const MOST: usize = 400;

/// An answer of the float model.
#[derive(Clone, Debug)]
pub(crate) struct FloatAnswer {
    /// Tokens of prompt and answer.
    pub(crate) tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub(crate) prompt: usize,
    /// Whether it is right.
    pub(crate) right: bool,
}

/// What is expected of a model that was not asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Answers that were read.
    pub answers: usize,
    /// Tokens of them.
    pub tokens: usize,
    /// Percent that are expected to be right.
    pub accuracy: Option<f64>,
    /// Expected drop in points, quantised less float.
    pub drop: Option<f64>,
    /// Percent of answers that the model gives as they are, token for token.
    pub followed: f64,
    /// Mean KL divergence, nats per token.
    pub kl: Option<f64>,
    /// The same where the float model is least certain: the fifth of the tokens with the largest entropy.
    pub kl_uncertain: Option<f64>,
    /// Mean KL where a greedy answer of the model would first part from the float model's, over the answers that it parts from.
    pub kl_at_departure: Option<f64>,
    /// Mean KL in the last quarter of an answer by that in the first.
    pub kl_growth: Option<f64>,
    /// Mean probability of ending where the float model ends, of the model and of the float model.
    pub end: Option<[f64; 2]>,
    /// Mean probability of ending where the float model goes on, of the model and of the float model.
    pub early_end: Option<[f64; 2]>,
    /// Mean probability of going on with a repetition of four tokens where the float model leaves it, of the model and of the float model:
    /// what leads into loops.
    pub repeats: Option<[f64; 2]>,
}

/// An answer of the float model, as a quantised one reads it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Reading {
    /// Whether the model gives it as it is, token for token.
    pub(crate) followed: bool,
    /// Mean KL divergence over it, nats per token.
    pub(crate) kl: Option<f64>,
    /// Whether it is right.
    pub(crate) right: bool,
}

/// What is kept of a prediction: for whoever wants to choose other constants, every answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Prediction {
    pub(crate) verdict: Verdict,
    pub(crate) readings: Vec<Reading>,
}

/// Share of right answers that stay right where they are departed from.
fn stays(kl: f64) -> f64 {
    if kl <= 0.0 {
        return 1.0;
    }
    1.0 / (1.0 + exp(STEEPNESS * ln(kl / HALF)))
}

/// Reads the answers with a model beside the float one.
///
/// # Errors
/// Models that cannot be read; [`quant_pipeline::PipelineError::Interrupted`].
pub(crate) fn predict(
    model: &mut dyn LanguageModel,
    reference: &mut Reference,
    answers: &[FloatAnswer],
    ends: &[u32],
    hidden: usize,
    events: &mut dyn Events,
) -> Result<Prediction, StudyError> {
    let answers = &sample(answers);
    let pass = PASS / (size_of::<f32>() * hidden.max(1));
    let mut scored: Vec<Vec<PositionScore>> = Vec::with_capacity(answers.len());
    for batch in passes(answers, pass, |answer| answer.tokens.len()) {
        let sequences: Vec<Vec<u32>> = batch.iter().map(|answer| answer.tokens.clone()).collect();
        let wanted: Vec<Range<usize>> =
            batch.iter().map(|answer| answer.prompt..answer.tokens.len()).collect();
        let mut progress = |_, _, _| events.flow();
        let asked: Vec<Vec<Option<u32>>> = batch.iter().map(FloatAnswer::left).collect();
        let options = PositionOptions {
            reference: Some(reference as &mut dyn LanguageModel),
            watched: ends,
            asked: &asked,
            progress: Some(&mut progress),
        };
        scored.extend(score_positions(model, &sequences, &wanted, options)?);
    }
    Ok(judge(answers, &scored, ends))
}

impl FloatAnswer {
    /// By token of the answer, the one with which a repetition would have gone on, where it did not.
    fn left(&self) -> Vec<Option<u32>> {
        let answer = self.tokens.get(self.prompt..).unwrap_or_default();
        let repeated = repetition(answer, REPEATED).into_iter().zip(answer);
        repeated.map(|(again, token)| again.filter(|again| again != token)).collect()
    }
}

/// Answers taken evenly, where there are more than are read.
fn sample(answers: &[FloatAnswer]) -> Vec<FloatAnswer> {
    let count = answers.len().min(MOST);
    (0..count).map(|i| answers[i * answers.len() / count].clone()).collect()
}

impl Reading {
    fn of(answer: &FloatAnswer, scores: &[PositionScore]) -> Self {
        let total = scores.iter().map(kl_of).sum::<Option<f64>>();
        Self {
            followed: scores.iter().all(|score| score.greedy),
            kl: total.map(|sum| sum / scores.len().max(1) as f64),
            right: answer.right,
        }
    }

    /// How likely the model's own answer is right.
    fn right(self) -> Option<f64> {
        match (self.followed, self.kl) {
            (true, _) => Some(f64::from(u8::from(self.right))),
            (false, kl) => kl.map(|kl| stays(kl) * if self.right { 1.0 } else { LUCK }),
        }
    }
}

fn kl_of(score: &PositionScore) -> Option<f64> {
    score.compared.and_then(|compared| compared.kl)
}

fn judge(answers: &[FloatAnswer], scored: &[Vec<PositionScore>], ends: &[u32]) -> Prediction {
    let mean =
        |values: &[f64]| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
    let all: Option<Vec<(f64, f64)>> =
        scored.iter().flatten().map(|score| Some((kl_of(score)?, score.compared?.entropy?))).collect();
    let readings: Vec<Reading> = answers.iter().zip(scored).map(|(a, s)| Reading::of(a, s)).collect();
    let expected = readings.iter().map(|reading| reading.right()).sum::<Option<f64>>();
    let followed = readings.iter().filter(|reading| reading.followed).count();
    let (mut early, mut late, mut departures) = (Vec::new(), Vec::new(), Vec::new());
    let (mut at_end, mut before, mut repeats) = (Vec::new(), Vec::new(), Vec::new());
    for (answer, scores) in answers.iter().zip(scored) {
        let quarter = scores.len() / 4;
        early.extend(scores.iter().take(quarter).filter_map(kl_of));
        late.extend(scores.iter().skip(scores.len() - quarter).filter_map(kl_of));
        departures.extend(scores.iter().find(|score| !score.greedy).and_then(kl_of));
        repeats.extend(scores.iter().filter_map(|s| s.asked.zip(s.compared.and_then(|c| c.asked))));
        let answered = answer.tokens.get(answer.prompt..).unwrap_or_default();
        for (token, score) in answered.iter().zip(scores) {
            if let Some(pair) = score.watched.zip(score.compared.and_then(|c| c.watched)) {
                if ends.contains(token) { at_end.push(pair) } else { before.push(pair) }
            }
        }
    }
    let count = answers.len().max(1) as f64;
    let accuracy = expected.map(|sum| 100.0 * sum / count);
    let float = 100.0 * answers.iter().filter(|answer| answer.right).count() as f64 / count;
    let pair = |pairs: &[(f64, f64)]| {
        let of = |side: fn(&(f64, f64)) -> f64| mean(&pairs.iter().map(side).collect::<Vec<_>>());
        of(|p| p.0).zip(of(|p| p.1)).map(|(a, b)| [a, b])
    };
    let verdict = Verdict {
        answers: answers.len(),
        tokens: scored.iter().map(Vec::len).sum(),
        accuracy,
        drop: accuracy.map(|accuracy| accuracy - float),
        followed: 100.0 * followed as f64 / count,
        kl: all.as_ref().and_then(|all| mean(&all.iter().map(|(kl, _)| *kl).collect::<Vec<_>>())),
        kl_uncertain: all.and_then(|mut all| {
            all.sort_by(|a, b| b.1.total_cmp(&a.1));
            all.truncate(all.len().div_ceil(5));
            mean(&all.iter().map(|(kl, _)| *kl).collect::<Vec<_>>())
        }),
        kl_at_departure: mean(&departures),
        kl_growth: mean(&late)
            .zip(mean(&early))
            .filter(|(_, early)| *early > 0.0)
            .map(|(late, early)| late / early),
        end: pair(&at_end),
        early_end: pair(&before),
        repeats: pair(&repeats),
    };
    Prediction { verdict, readings }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quant_eval::Compared;

    fn score(greedy: bool, kl: Option<f64>, entropy: f64) -> PositionScore {
        let compared = Compared { kl, entropy: Some(entropy), watched: Some(0.5), ..Compared::default() };
        PositionScore {
            nll: Some(1.0),
            greedy,
            watched: Some(0.25),
            compared: Some(compared),
            ..PositionScore::default()
        }
    }

    fn answer(right: bool, tokens: usize) -> FloatAnswer {
        FloatAnswer { tokens: (0..=tokens as u32).collect(), prompt: 1, right }
    }

    #[test]
    fn an_answer_that_is_followed_is_known() {
        let answers = [answer(true, 4), answer(false, 4)];
        let same: Vec<_> = (0..4).map(|i| score(true, Some(0.3), f64::from(i))).collect();
        let Prediction { verdict, .. } = judge(&answers, &[same.clone(), same.clone()], &[4]);
        assert_eq!((verdict.accuracy, verdict.drop, verdict.followed), (Some(50.0), Some(0.0), 100.0));
        assert_eq!((verdict.end, verdict.early_end), (Some([0.25, 0.5]), Some([0.25, 0.5])));
        // One departure: the right one loses with the divergence, the wrong one can win little.
        let mut other = same.clone();
        other[1].greedy = false;
        let Prediction { verdict, .. } = judge(&answers, &[other.clone(), same], &[4]);
        assert!((verdict.accuracy.unwrap() - 50.0 * stays(0.3)).abs() < 1e-9);
        assert_eq!(verdict.kl_at_departure, Some(0.3));
        other[3].compared = Some(Compared::default());
        let Prediction { verdict: broken, .. } = judge(&answers, &[other.clone(), other], &[4]);
        assert_eq!((broken.accuracy, broken.kl), (None, None));
    }

    #[test]
    fn a_repetition_is_asked_about_where_it_is_left() {
        let tokens = vec![9, 1, 2, 3, 4, 5, 1, 2, 3, 4, 6, 1, 2, 3, 4, 6];
        let answer = FloatAnswer { tokens, prompt: 1, right: true };
        let mut want = vec![None; 15];
        // 5 came behind 1 2 3 4; the second time 6 did, and again.
        want[9] = Some(5);
        assert_eq!(answer.left(), want);
        let mut scores: Vec<_> = (0..15).map(|_| score(true, Some(0.1), 0.1)).collect();
        scores[9].asked = Some(0.75);
        scores[9].compared = scores[9].compared.map(|c| Compared { asked: Some(0.5), ..c });
        let Prediction { verdict, .. } = judge(&[answer], &[scores], &[99]);
        assert_eq!((verdict.repeats, verdict.kl_at_departure), (Some([0.75, 0.5]), None));
    }

    #[test]
    fn many_answers_are_sampled_evenly() {
        let many: Vec<_> = (0..1000).map(|i| answer(i % 2 == 0, i + 1)).collect();
        let taken = sample(&many);
        assert_eq!((taken.len(), taken[1].tokens.len(), taken[399].tokens.len()), (400, 4, 999));
        assert_eq!(sample(&many[..7]).len(), 7);
    }

    #[test]
    fn divergence_is_told_by_certainty_and_place() {
        let scores: Vec<_> = (0..20)
            .map(|i| score(true, Some(if i == 7 { 1.0 } else { 0.1 }), if i == 7 { 3.0 } else { 0.1 }))
            .collect();
        let Prediction { verdict, .. } = judge(&[answer(true, 20)], &[scores], &[99]);
        assert!((verdict.kl.unwrap() - 0.145).abs() < 1e-12);
        assert!((verdict.kl_uncertain.unwrap() - (1.0 + 0.3) / 4.0).abs() < 1e-12, "{verdict:?}");
        assert!((verdict.kl_growth.unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(verdict.end, None);
    }
}
