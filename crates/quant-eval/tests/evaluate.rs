//! The protocol on models that are tables.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic like the tests do")]

use std::ops::{ControlFlow, Range};

use approx::assert_relative_eq;
use ndarray::{Array3, ArrayViewMut2, s};
use proptest::prelude::*;
use quant_eval::{
    BoxError, EncodeProgress, EvalError, EvalOptions, EvalReport, LanguageModel, ManyModels, Outcome, Phase,
    SequenceLength, Side, evaluate, evaluate_many,
};

/// Logits `[sequences, positions, vocabulary]` given outright.
struct Table {
    logits: Array3<f32>,
    lengths: Vec<usize>,
    fail: Option<&'static str>,
}

impl Table {
    fn new(logits: Array3<f32>) -> Self {
        Self { logits, lengths: Vec::new(), fail: None }
    }

    /// Fixed pseudo-random logits.
    fn noise(shape: (usize, usize, usize), seed: u32) -> Self {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        Self::new(Array3::from_shape_simple_fn(shape, || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state % 8000) as f32 / 1000.0 - 4.0
        }))
    }
}

impl LanguageModel for Table {
    fn vocab_size(&self) -> usize {
        self.logits.dim().2
    }

    fn encode(&mut self, sequences: &[Vec<u32>], progress: &mut EncodeProgress<'_>) -> Result<(), BoxError> {
        if self.fail == Some("encode") {
            return Err("broken block".into());
        }
        self.lengths = sequences.iter().map(Vec::len).collect();
        if progress(1, 1).is_break() { Err("stopped".into()) } else { Ok(()) }
    }

    fn logits(
        &mut self,
        positions: Range<usize>,
        tokens: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), BoxError> {
        if self.fail == Some("logits") {
            return Err("broken head".into());
        }
        let all = self.lengths.iter().enumerate().flat_map(|(s, &n)| (0..n).map(move |p| (s, p)));
        let places: Vec<_> = all.skip(positions.start).take(positions.len()).collect();
        assert_eq!(places.len(), positions.len(), "only encoded positions are asked for");
        for ((sequence, position), mut row) in places.into_iter().zip(out.rows_mut()) {
            row.assign(&self.logits.slice(s![sequence, position, tokens.clone()]));
        }
        Ok(())
    }
}

/// Tables of the same sequences, the reference first, and the tokens whose logits are ready.
struct Tables(Vec<Table>, Range<usize>);

impl ManyModels for Tables {
    fn vocab_size(&self) -> usize {
        self.0[0].vocab_size()
    }
    fn count(&self) -> usize {
        self.0.len() - 1
    }
    fn panel(&mut self, tokens: Range<usize>) -> Result<(), BoxError> {
        self.1 = tokens;
        Ok(())
    }
    fn logits(
        &mut self,
        which: usize,
        positions: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), BoxError> {
        self.0[which].logits(positions, self.1.clone(), out)
    }
}

fn run(model: &mut Table, sequences: &[Vec<u32>], chunk: usize) -> EvalReport {
    evaluate(model, sequences, EvalOptions { chunk, ..EvalOptions::default() }).unwrap()
}

fn compare(model: &mut Table, reference: &mut Table, sequences: &[Vec<u32>], chunk: usize) -> EvalReport {
    let options = EvalOptions { chunk, reference: Some(reference), ..EvalOptions::default() };
    evaluate(model, sequences, options).unwrap()
}

/// Ragged sequences within a vocabulary of 7 and a length of 9.
fn ragged() -> Vec<Vec<u32>> {
    vec![vec![0, 1, 2, 3, 4, 5, 6, 0, 1], vec![3, 3], vec![6, 5, 4, 3]]
}

#[test]
fn a_uniform_model_has_the_perplexity_of_its_vocabulary() {
    let report = run(&mut Table::new(Array3::from_elem((3, 9, 7), 2.5)), &ragged(), 4);
    assert_relative_eq!(report.perplexity.unwrap(), 7.0, max_relative = 1e-14);
    assert_eq!((report.tokens, report.sequences), (8 + 1 + 3, 3));
    assert_eq!(report.outcome, Outcome::Ok);
    assert_eq!(report.protocol.sequence_length, SequenceLength::Ragged { min: 2, max: 9 });
}

#[test]
fn a_small_example_by_hand() {
    // Position 0 gives [1/4, 3/4], position 1 gives [1/2, 1/2]; the last position is not used.
    let logits = Array3::from_shape_vec((1, 3, 2), vec![0.0, 3.0_f32.ln(), 0.0, 0.0, 50.0, 0.0]).unwrap();
    let report = run(&mut Table::new(logits), &[vec![0, 0, 1]], 256);
    // Probabilities 1/4 and 1/2: perplexity sqrt(8).
    assert_relative_eq!(report.perplexity.unwrap(), 8.0_f64.sqrt(), max_relative = 1e-7);
    assert_relative_eq!(report.nll_per_sequence[0].unwrap(), 8.0_f64.ln(), max_relative = 1e-7);
    assert_eq!(report.protocol.sequence_length, SequenceLength::Uniform(3));
}

#[test]
fn sequences_are_pooled_by_token() {
    let mut model = Table::noise((3, 9, 7), 1);
    let report = run(&mut model, &ragged(), 3);
    let sum: f64 = report.nll_per_sequence.iter().map(|n| n.unwrap()).sum();
    assert_relative_eq!(report.perplexity.unwrap(), (sum / 12.0).exp(), max_relative = 1e-14);
    let alone: f64 = (0..3)
        .map(|i| {
            let rows = model.logits.slice(s![i..=i, .., ..]).to_owned();
            run(&mut Table::new(rows), &ragged()[i..=i], 3).nll_per_sequence[0].unwrap()
        })
        .sum();
    assert_eq!(sum, alone, "a sequence is scored alone");
}

/// Also where one of them is the reference, and where one has logits that are not finite.
#[test]
fn many_models_get_what_each_gets_alone() {
    // More tokens than a panel holds.
    let shape = (3, 9, 2500);
    let tables = || {
        let mut tables = [2, 1, 2, 3].map(|seed| Table::noise(shape, seed));
        tables[3].logits[(1, 0, 2400)] = f32::NAN;
        tables
    };
    let [mut reference, others @ ..] = tables();
    let alone = others.map(|mut model| compare(&mut model, &mut reference, &ragged(), 256));
    assert_eq!(alone[1].comparison.unwrap().kl, Some(0.0));
    assert_eq!(alone[2].comparison.unwrap().kl, None);
    let mut together = Tables(tables().into(), 0..0);
    for table in &mut together.0 {
        table.lengths = ragged().iter().map(Vec::len).collect();
    }
    let mut seen = Vec::new();
    let mut progress = |phase: Phase, done: usize, all: usize| {
        assert_eq!((phase, all), (Phase::Score, 15));
        seen.push(done);
        ControlFlow::Continue(())
    };
    let description = &alone[0].protocol.description;
    let found = evaluate_many(&mut together, &ragged(), description, &mut progress).unwrap();
    assert_eq!(found, alone);
    assert_eq!(seen, [0, 12, 15]);
    let mut stop = |_: Phase, _: usize, _: usize| ControlFlow::Break(());
    let stopped = evaluate_many(&mut together, &ragged(), description, &mut stop);
    assert!(matches!(stopped, Err(EvalError::Interrupted)));
    together.0[3].fail = Some("logits");
    let mut go_on = |_: Phase, _: usize, _: usize| ControlFlow::Continue(());
    let failed = evaluate_many(&mut together, &ragged(), description, &mut go_on);
    assert!(matches!(failed, Err(EvalError::Model { side: Side::Model, .. })));
}

#[test]
fn chunks_and_threads_do_not_matter() {
    let expected = compare(&mut Table::noise((3, 9, 7), 1), &mut Table::noise((3, 9, 7), 2), &ragged(), 256);
    assert!(expected.comparison.unwrap().kl.unwrap() > 0.1);
    for chunk in 1..=9 {
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let report = pool.install(|| {
                let mut model = Table::noise((3, 9, 7), 1);
                compare(&mut model, &mut Table::noise((3, 9, 7), 2), &ragged(), chunk)
            });
            assert_eq!(report, expected, "chunk {chunk}, {threads} threads");
        }
    }
}

/// A vocabulary of several panels, the last one short, against the definition in f64.
#[test]
fn a_wide_vocabulary_is_scored_as_its_definition_says() {
    let shape = (2, 20, 7001);
    let (model, mut reference) = (Table::noise(shape, 3), Table::noise(shape, 4));
    // A model near its reference, as a quantised one is.
    reference.logits = &model.logits + &(&reference.logits * 0.02);
    let sequences: Vec<Vec<u32>> =
        (0..2).map(|s| (0..20 - s).map(|i| (i * 2953 + s * 11) % 7001).collect()).collect();
    let log_softmax = |table: &Table, s: usize, p: usize| -> Vec<f64> {
        let row: Vec<f64> = table.logits.slice(s![s, p, ..]).iter().map(|&x| f64::from(x)).collect();
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let ln_sum = row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln();
        row.iter().map(|x| x - largest - ln_sum).collect()
    };
    let (mut nll, mut kl, mut agree) = (0.0, 0.0, 0.0);
    for (s, ids) in sequences.iter().enumerate() {
        for p in 0..ids.len() - 1 {
            let (own, other) = (log_softmax(&model, s, p), log_softmax(&reference, s, p));
            nll -= own[ids[p + 1] as usize];
            kl += other.iter().zip(&own).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            let first = |row: &[f64]| (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b]));
            agree += f64::from(u8::from(first(&own) == first(&other)));
        }
    }
    let mut reports = [1, 7, 39, 100].map(|chunk| {
        let mut model = Table::new(model.logits.clone());
        compare(&mut model, &mut Table::new(reference.logits.clone()), &sequences, chunk)
    });
    assert!(reports.iter().all(|r| *r == reports[0]), "chunks change nothing");
    let report = &mut reports[0];
    let comparison = report.comparison.unwrap();
    assert_relative_eq!(report.mean_nll.unwrap(), nll / 37.0, max_relative = 1e-7);
    assert!(kl / 37.0 < 1e-2, "a small divergence, {kl}");
    assert_relative_eq!(comparison.kl.unwrap(), kl / 37.0, max_relative = 1e-3);
    assert_eq!(comparison.top1_agreement, Some(agree / 37.0));
}

#[test]
fn a_model_agrees_with_itself_exactly() {
    let report = compare(&mut Table::noise((3, 9, 7), 5), &mut Table::noise((3, 9, 7), 5), &ragged(), 4);
    let comparison = report.comparison.unwrap();
    assert_eq!((comparison.kl, comparison.top1_agreement), (Some(0.0), Some(1.0)));
    assert_eq!(comparison.reference_perplexity, report.perplexity);
}

#[test]
fn divergence_and_agreement_by_hand() {
    // Two predicted positions. Reference [3/4, 1/4] twice; model [1/4, 3/4], then the same as the reference.
    let ln3 = 3.0_f32.ln();
    let table = |first: [f32; 2]| {
        let rows = vec![first[0], first[1], ln3, 0.0, 9.0, -9.0];
        Table::new(Array3::from_shape_vec((1, 3, 2), rows).unwrap())
    };
    let report = compare(&mut table([0.0, ln3]), &mut table([ln3, 0.0]), &[vec![0, 1, 0]], 1);
    let comparison = report.comparison.unwrap();
    // KL of the first position: 3/4 ln 3 - 1/4 ln 3.
    assert_relative_eq!(comparison.kl.unwrap(), 0.25 * 3.0_f64.ln(), max_relative = 1e-7);
    assert_eq!(comparison.top1_agreement, Some(0.5));
}

#[test]
fn bad_logits_are_a_stated_outcome() {
    let mut model = Table::noise((3, 9, 7), 1);
    model.logits[[2, 1, 6]] = f32::NAN;
    model.logits[[2, 2, 0]] = f32::INFINITY;
    let report = run(&mut model, &ragged(), 2);
    assert_eq!(report.outcome, Outcome::NonFiniteLogits { sequence: 2, position: 1, model: Side::Model });
    assert_eq!((report.perplexity, report.mean_nll, report.nll_per_sequence[2]), (None, None, None));
    assert!(report.nll_per_sequence[0].is_some());
    assert!(report.to_string().contains("sequence 2, position 1"), "{report}");
    let json = serde_json::to_value(&report).unwrap();
    assert!(json["perplexity"].is_null());
    assert_eq!(json["outcome"]["state"], "non_finite_logits");

    let report = compare(&mut Table::noise((3, 9, 7), 1), &mut model, &ragged(), 2);
    assert_eq!(report.outcome, Outcome::NonFiniteLogits { sequence: 2, position: 1, model: Side::Reference });
    assert!(report.perplexity.is_some(), "the model's own numbers exist");
    let comparison = report.comparison.unwrap();
    assert_eq!(
        (comparison.kl, comparison.top1_agreement, comparison.reference_perplexity),
        (None, None, None)
    );
    let report = compare(&mut model, &mut Table::noise((3, 9, 7), 1), &ragged(), 2);
    assert!(report.comparison.unwrap().reference_perplexity.is_some() && report.perplexity.is_none());

    // The last position predicts nothing, so what it says does not matter.
    let mut model = Table::noise((3, 9, 7), 1);
    model.logits[[1, 1, 0]] = f32::NAN;
    assert_eq!(run(&mut model, &ragged(), 2).outcome, Outcome::Ok);
}

#[test]
fn an_astronomical_perplexity_is_stated() {
    let logits = Array3::from_shape_vec((1, 2, 2), vec![0.0, 1e6, 0.0, 0.0]).unwrap();
    let report = run(&mut Table::new(logits), &[vec![0, 0]], 1);
    assert_eq!((report.outcome, report.perplexity), (Outcome::PerplexityOverflow, None));
    assert_eq!(report.mean_nll, Some(1e6));
}

#[test]
fn the_sink_sees_every_position_once_in_order() {
    let mut model = Table::noise((3, 9, 7), 1);
    let expected = model.logits.clone();
    let all: Vec<_> =
        ragged().iter().enumerate().flat_map(|(s, r)| (0..r.len()).map(move |p| (s, p))).collect();
    let mut seen = Vec::new();
    let mut sink = |positions: Range<usize>, tokens: Range<usize>, rows: ndarray::ArrayView2<'_, f32>| {
        for (&(sequence, position), row) in all[positions].iter().zip(rows.outer_iter()) {
            assert_eq!(row, expected.slice(s![sequence, position, tokens.clone()]));
            seen.push((sequence, position));
        }
        Ok(())
    };
    let options = EvalOptions { logits_sink: Some(&mut sink), chunk: 4, ..EvalOptions::default() };
    let with_sink = evaluate(&mut model, &ragged(), options).unwrap();
    assert_eq!(seen, all);
    assert_eq!(with_sink, run(&mut model, &ragged(), 4));

    let mut full =
        |_: Range<usize>, _: Range<usize>, _: ndarray::ArrayView2<'_, f32>| Err("disk full".into());
    let options = EvalOptions { logits_sink: Some(&mut full), ..EvalOptions::default() };
    let error = evaluate(&mut model, &ragged(), options).unwrap_err().to_string();
    assert!(error.contains("disk full"), "{error}");
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let model = || Table::noise((3, 9, 7), 1);
    let attempt = |mut model: Table, sequences: &[Vec<u32>], chunk: usize| {
        evaluate(&mut model, sequences, EvalOptions { chunk, ..EvalOptions::default() }).unwrap_err()
    };
    assert!(matches!(attempt(model(), &[], 1), EvalError::NoSequences));
    assert!(matches!(attempt(model(), &ragged(), 0), EvalError::ZeroChunk));
    let short = attempt(model(), &[vec![0, 1], vec![2]], 1);
    assert!(matches!(short, EvalError::TooShort { sequence: 1, length: 1 }));
    assert!(matches!(attempt(model(), &[vec![]], 1), EvalError::TooShort { sequence: 0, length: 0 }));
    let foreign = attempt(model(), &[vec![0, 7]], 1);
    assert!(matches!(foreign, EvalError::OutOfVocabulary { sequence: 0, position: 1, id: 7, vocab_size: 7 }));
    for (fail, expected) in [("encode", "broken block"), ("logits", "broken head")] {
        let mut broken = model();
        broken.fail = Some(fail);
        let error = attempt(broken, &ragged(), 1).to_string();
        assert!(error.contains(expected), "{error}");
    }
    let mut other = Table::noise((3, 9, 8), 1);
    let options = EvalOptions { reference: Some(&mut other), ..EvalOptions::default() };
    let error = evaluate(&mut model(), &ragged(), options).unwrap_err();
    assert!(matches!(error, EvalError::VocabularyMismatch { reference: 8, model: 7 }));
}

#[test]
fn progress_runs_through_the_phases() {
    let (mut model, mut reference) = (Table::noise((3, 9, 7), 1), Table::noise((3, 9, 7), 2));
    let mut seen = Vec::new();
    let mut progress = |phase: Phase, done: usize, all: usize| {
        seen.push((phase, done, all));
        ControlFlow::Continue(())
    };
    let options = EvalOptions {
        reference: Some(&mut reference),
        progress: Some(&mut progress),
        chunk: 8,
        ..EvalOptions::default()
    };
    evaluate(&mut model, &ragged(), options).unwrap();
    assert_eq!(
        seen,
        [
            (Phase::Encode(Side::Reference), 1, 1),
            (Phase::Encode(Side::Model), 1, 1),
            (Phase::Score, 0, 15),
            (Phase::Score, 8, 15),
            (Phase::Score, 15, 15)
        ]
    );
}

#[test]
fn progress_can_stop_the_work_in_every_phase() {
    for last in [
        (Phase::Encode(Side::Reference), 1, 1),
        (Phase::Encode(Side::Model), 1, 1),
        (Phase::Score, 0, 15),
        (Phase::Score, 8, 15),
    ] {
        let (mut model, mut reference) = (Table::noise((3, 9, 7), 1), Table::noise((3, 9, 7), 2));
        let mut seen = Vec::new();
        let mut progress = |phase: Phase, done: usize, all: usize| {
            seen.push((phase, done, all));
            if seen.ends_with(&[last]) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let options = EvalOptions {
            reference: Some(&mut reference),
            progress: Some(&mut progress),
            chunk: 8,
            ..EvalOptions::default()
        };
        let error = evaluate(&mut model, &ragged(), options).unwrap_err();
        assert!(matches!(error, EvalError::Interrupted), "{error}");
        assert_eq!(seen.last(), Some(&last), "nothing is done after the stop");
    }
}

#[test]
fn the_json_is_flat() {
    let report = compare(&mut Table::noise((3, 9, 7), 1), &mut Table::noise((3, 9, 7), 2), &ragged(), 4);
    let json = serde_json::to_value(&report).unwrap();
    for key in ["perplexity", "kl", "top1_agreement", "mean_nll"] {
        assert!(json[key].is_f64(), "{key}: {json}");
    }
    assert_eq!(json["tokens"], 12);
    assert_eq!(json["protocol"]["log_softmax"], "f64 sums of f32 exponentials");
    assert_eq!(json["outcome"]["state"], "ok");
    let json = serde_json::to_value(run(&mut Table::noise((3, 9, 7), 1), &ragged(), 4)).unwrap();
    assert!(json.get("kl").is_none() && json.get("top1_agreement").is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn perplexity_is_bounded_below_by_one_and_chunk_free(
        lengths in prop::collection::vec(2_usize..12, 1..4),
        seed in 1_u32..1000,
        chunk in 1_usize..14,
    ) {
        let sequences: Vec<Vec<u32>> =
            lengths.iter().map(|&n| (0..n as u32).map(|i| (i * seed) % 5).collect()).collect();
        let shape = (lengths.len(), 12, 5);
        let report = compare(&mut Table::noise(shape, seed), &mut Table::noise(shape, seed + 1), &sequences, chunk);
        prop_assert!(report.perplexity.unwrap() >= 1.0);
        prop_assert!(report.comparison.unwrap().kl.unwrap() >= 0.0);
        let whole = compare(&mut Table::noise(shape, seed), &mut Table::noise(shape, seed + 1), &sequences, 256);
        prop_assert_eq!(report, whole);
    }
}
