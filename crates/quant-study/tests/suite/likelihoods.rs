//! Log-likelihoods beside those of lm-eval, on the model and the requests of `shared/parity`.

use crate::{shared, tiny_reasoner};
use quant_data::{Tokenizer, split_continuation};
use quant_eval::{PositionOptions, score_positions};
use quant_kernels::Par;
use quant_model::Arithmetic;
use quant_pipeline::{Scored, open_folder};
use quant_study::Record;
use serde_json::Value;

#[test]
fn every_request_of_the_reference_has_its_likelihood() {
    let Some(path) = shared("parity/lm_eval_loglikelihoods.jsonl") else { return };
    let text = std::fs::read_to_string(path).unwrap();
    let requests: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(requests.len(), 573);
    let dir = tiny_reasoner();
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let (mut sequences, mut wanted) = (Vec::new(), Vec::new());
    for request in &requests {
        let text = |key: &str| request[key].as_str().unwrap();
        let (context, continuation) =
            split_continuation(&tokenizer, text("context"), text("continuation"), false).unwrap();
        let (before, all) = (context.len(), context.len() + continuation.len());
        sequences.push([context, continuation].concat());
        wanted.push(before..all);
    }
    let source = open_folder(&dir).unwrap().into_source().unwrap();
    let mut model = Scored::new(source, Arithmetic::from(quant_kernels::Compute::F32), Par::Seq);
    let scores = score_positions(&mut model, &sequences, &wanted, PositionOptions::default()).unwrap();
    let mut chosen = std::collections::BTreeMap::<(String, u64), Vec<(f64, usize, usize)>>::new();
    for (request, scores) in requests.iter().zip(&scores) {
        let expected = request["loglikelihood"].as_f64().unwrap();
        let found: f64 = -scores.iter().map(|score| score.nll.unwrap()).sum::<f64>();
        let off = (found - expected).abs();
        assert!(off <= 1e-4 || off <= 1e-4 * expected.abs(), "{request}: {found}");
        assert_eq!(scores.iter().all(|s| s.greedy), request["greedy"].as_bool().unwrap(), "{request}");
        let key = (request["task"].as_str().unwrap().to_owned(), request["doc"].as_u64().unwrap());
        let characters = request["continuation"].as_str().unwrap().trim_start().chars().count();
        let gold = request["gold"].as_u64().unwrap_or(0) as usize;
        chosen.entry(key).or_default().push((found, characters, gold));
    }
    for (task, acc, acc_norm) in [("arithmetic_choice", 1.0, 1.0), ("next_sentence", 0.4, 0.5667)] {
        let items: Vec<_> = chosen.iter().filter(|((name, _), _)| name == task).map(|(_, c)| c).collect();
        let share = |value: fn(&(f64, usize, usize)) -> f64| {
            let right = |choices: &&&Vec<(f64, usize, usize)>| {
                let best = (0..choices.len())
                    .fold(0, |best, i| if value(&choices[i]) > value(&choices[best]) { i } else { best });
                best == choices[0].2
            };
            items.iter().filter(right).count() as f64 / items.len() as f64
        };
        assert!((share(|c| c.0) - acc).abs() < 1e-3, "{task}");
        assert!((share(|c| c.0 / c.1 as f64) - acc_norm).abs() < 1e-3, "{task}");
    }
}

/// The first 150 items of LAMBADA by its task file: the figures of lm-eval.
#[test]
fn lambada_by_its_task() {
    let Some(data) = shared("data") else { return };
    let Some(reference) = shared("parity/lm_eval_loglikelihoods.jsonl") else { return };
    let expected: Vec<Value> = std::fs::read_to_string(reference)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|request| request["task"] == "lambada_openai")
        .collect();
    let task = quant_data::built_in_task("lambada").unwrap();
    let job = quant_study::TaskJob {
        limit: Some(150),
        threads: 1,
        data: vec![data],
        ..quant_study::TaskJob::new(tiny_reasoner(), task)
    };
    let outcome =
        quant_study::run_task(&job, None, &mut quant_pipeline::Silent, &quant_pipeline::Registry::default())
            .unwrap();
    assert_eq!(outcome.records.len(), expected.len());
    for (record, request) in outcome.records.iter().zip(&expected) {
        let Record::Choice { log_likelihoods, greedy, .. } = record else { panic!("{record:?}") };
        let (found, expected) = (log_likelihoods[0].unwrap(), request["loglikelihood"].as_f64().unwrap());
        assert!((found - expected).abs() <= 1e-4f64.max(1e-4 * expected.abs()), "{found} {expected}");
        assert_eq!(greedy[0], request["greedy"].as_bool().unwrap());
    }
    let figure = outcome.result.figure;
    assert_eq!(figure.name, "greedy");
    assert!((figure.value.unwrap() - 2.67).abs() < 0.01, "{figure:?}");
}
