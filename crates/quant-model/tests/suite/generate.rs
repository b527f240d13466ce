//! Generation: the bits of a request depend on the request alone, and are those of the model.

use crate::common::{Scheme, config_with, quantised_model};
use quant_core::FloatType;
use quant_core::operators::Profile;
use quant_graph::ModelSpec;
use quant_model::{
    Arithmetic, Completion, Compute, Finish, GenerateOptions, Generator, InMemoryModel, ModelError, Par,
    Request, ResidentModel, Sampling, StreamedModel, model_spec,
};
use quant_testkit::Numbers;
use serde_json::json;
use std::ops::ControlFlow;

/// Logits of every new token, by the number of the request.
type Logits = Vec<Vec<Vec<f32>>>;

fn arithmetic() -> Arithmetic {
    Arithmetic::from(Compute::F32).of(Profile::Ascend { model: FloatType::Bf16 }).executed()
}

fn resident(model: &InMemoryModel, arithmetic: Arithmetic, par: Par) -> ResidentModel<InMemoryModel> {
    ResidentModel::load(model.clone(), arithmetic, par, &mut |_, _| ControlFlow::Continue(())).unwrap()
}

fn requests(spec: &ModelSpec) -> Vec<Request> {
    let mut numbers = Numbers::new(7);
    let mut token = || ((numbers.uniform() * 0.5 + 0.5) * (spec.vocab - 1) as f32) as u32;
    let lengths = [1, 40, 3, 90, 17, 64, 65, 2, 30, 8, 71, 5, 12, 33, 1, 50, 9];
    let request = |(index, &length): (usize, &usize)| Request {
        index: index as u64,
        prompt: (0..length).map(|_| token()).collect(),
        max_new_tokens: 4 + index % 9,
    };
    lengths.iter().enumerate().map(request).collect()
}

fn run(
    model: &mut ResidentModel<InMemoryModel>,
    requests: &[Request],
    options: &GenerateOptions,
) -> (Vec<Completion>, Logits) {
    let mut logits: Logits = vec![Vec::new(); requests.len()];
    let done = Generator::new(model, options.clone()).run(requests, &mut |new| {
        logits[new.request].push(new.logits.to_vec());
        ControlFlow::Continue(())
    });
    (done.unwrap(), logits)
}

fn specs() -> Vec<(ModelSpec, Scheme)> {
    let model = |architecture, changes| model_spec(&config_with(architecture, changes)).unwrap();
    vec![
        (model("LlamaForCausalLM", json!({})), Scheme::Float),
        (model("Qwen2ForCausalLM", json!({"tie_word_embeddings": true})), Scheme::Halves),
        (model("Qwen2ForCausalLM", json!({})), Scheme::Dynamic),
        (model("Qwen3ForCausalLM", json!({"tie_word_embeddings": true})), Scheme::Static),
        (model("MistralForCausalLM", json!({"sliding_window": 20})), Scheme::Packed),
        (model("LlamaForCausalLM", json!({})), Scheme::Grouped),
    ]
}

#[test]
fn bits_do_not_depend_on_batch_order_chunks_pages_or_threads() {
    let warm = Sampling { temperature: 0.9, top_p: 0.95, top_k: 20, seed: 3 };
    for (spec, scheme) in specs() {
        let model = quantised_model(&spec, scheme, 11);
        let requests = requests(&spec);
        let base = GenerateOptions { sampling: warm, batch: 1, ..GenerateOptions::default() };
        let (texts, logits) = run(&mut resident(&model, arithmetic(), Par::Seq), &requests, &base);
        assert!(texts.iter().zip(&requests).all(|(text, r)| text.tokens.len() == r.max_new_tokens));
        for (batch, chunk, pages, threads) in
            [(7, 512, usize::MAX, 1), (16, 512, usize::MAX, 2), (16, 13, usize::MAX, 2), (16, 40, 5, 1)]
        {
            let options = GenerateOptions { batch, chunk, pages, ..base.clone() };
            let mut model = resident(&model, arithmetic(), Par::new(threads));
            assert_eq!(run(&mut model, &requests, &options), (texts.clone(), logits.clone()), "{scheme:?}");
            // Shuffled, the results come in the new order.
            let order = |i: usize| (i * 5 + 3) % requests.len();
            let shuffled: Vec<Request> = (0..requests.len()).map(|i| requests[order(i)].clone()).collect();
            let (mixed, mixed_logits) = run(&mut model, &shuffled, &options);
            for i in 0..requests.len() {
                assert_eq!(
                    (&mixed[i], &mixed_logits[i]),
                    (&texts[order(i)], &logits[order(i)]),
                    "{scheme:?}"
                );
            }
        }
    }
}

/// Weights and head of bf16 numbers take half the memory.
#[test]
fn halves_are_held_as_halves() {
    let (spec, _) = specs().remove(1);
    let bytes = |scheme| resident(&quantised_model(&spec, scheme, 3), arithmetic(), Par::Seq).bytes();
    // Rows of a weight come up to whole panels, of another number in each form and for other instructions.
    let (halves, floats) = (bytes(Scheme::Halves) as f64, bytes(Scheme::Float) as f64);
    assert!((0.45..0.7).contains(&(halves / floats)), "{halves} {floats}");
}

/// What was generated, given as a prompt, leads to the same logits: a step of one token is the end of a longer prompt.
#[test]
fn a_step_is_the_end_of_a_longer_prompt() {
    for (spec, scheme) in specs() {
        let mut model = resident(&quantised_model(&spec, scheme, 5), arithmetic(), Par::new(2));
        let requests = requests(&spec);
        let options = GenerateOptions::default();
        let (texts, logits) = run(&mut model, &requests, &options);
        let longer = requests.iter().zip(&texts).map(|(request, text)| Request {
            prompt: [&request.prompt[..], &text.tokens[..3]].concat(),
            max_new_tokens: request.max_new_tokens - 3,
            ..request.clone()
        });
        let longer: Vec<Request> = longer.collect();
        let (rest, later) = run(&mut model, &longer, &options);
        for i in 0..requests.len() {
            assert_eq!(rest[i].tokens, texts[i].tokens[3..]);
            assert_eq!(later[i], logits[i][3..]);
        }
    }
}

/// The streamed model, which evaluations run, gives the same logits but for the order of sums; its simulation of codes does.
#[test]
fn logits_are_those_of_an_evaluation() {
    for (spec, scheme) in specs() {
        let model = quantised_model(&spec, scheme, 21);
        let requests = requests(&spec);
        let simulated = Arithmetic { execution: quant_model::Execution::Simulated, ..arithmetic() };
        let (texts, logits) =
            run(&mut resident(&model, arithmetic(), Par::new(2)), &requests, &GenerateOptions::default());
        let sequences: Vec<Vec<u32>> =
            requests.iter().zip(&texts).map(|(r, t)| [&r.prompt[..], &t.tokens[..]].concat()).collect();
        let mut streamed = StreamedModel::new(model, simulated, Par::Seq);
        streamed.encode(&sequences, &mut |_, _| ControlFlow::Continue(())).unwrap();
        for (i, (request, text)) in requests.iter().zip(&texts).enumerate() {
            let first = request.prompt.len() - 1;
            let want = streamed.logits(i, first..first + text.tokens.len()).unwrap();
            // Codes that flip where sums differ in their last bit move a logit by more than rounding does.
            let limit = match scheme {
                Scheme::Float | Scheme::Halves | Scheme::Packed => 2e-5,
                Scheme::Dynamic | Scheme::Static | Scheme::Grouped => 3e-2,
            };
            for (got, want) in logits[i].iter().zip(want.rows()) {
                let size = want.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                for (got, want) in got.iter().zip(want) {
                    assert!((got - want).abs() <= limit * size, "{scheme:?} {got} {want}");
                }
            }
        }
    }
}

#[test]
fn texts_end_with_a_stop_token_or_at_their_length() {
    let (spec, scheme) = specs().remove(0);
    let mut model = resident(&quantised_model(&spec, scheme, 3), arithmetic(), Par::Seq);
    let requests = requests(&spec);
    let (free, _) = run(&mut model, &requests, &GenerateOptions::default());
    assert!(free.iter().all(|text| text.finish == Finish::Length));
    let stop = free[3].tokens[1];
    let (cut, _) =
        run(&mut model, &requests, &GenerateOptions { stop: vec![stop], ..GenerateOptions::default() });
    for (cut, free) in cut.iter().zip(&free) {
        match free.tokens.iter().position(|&token| token == stop) {
            Some(at) => assert_eq!((cut.finish, &cut.tokens[..]), (Finish::Stop, &free.tokens[..=at])),
            None => assert_eq!(cut, free),
        }
    }
    assert_eq!(cut[3].finish, Finish::Stop);
    let none = Request { max_new_tokens: 0, ..requests[0].clone() };
    let (empty, _) = run(&mut model, &[none], &GenerateOptions::default());
    assert_eq!(empty, [Completion { tokens: vec![], finish: Finish::Length }]);
}

#[test]
fn requests_that_cannot_be_answered_are_refused() {
    let (spec, scheme) = specs().remove(0);
    let mut model = resident(&quantised_model(&spec, scheme, 3), arithmetic(), Par::Seq);
    let good = Request { index: 0, prompt: vec![1, 2], max_new_tokens: 3 };
    for (bad, words) in [
        (Request { prompt: vec![], ..good.clone() }, "no tokens"),
        (Request { prompt: vec![1, 50], ..good.clone() }, "token 50 is outside the vocabulary of 50"),
        (Request { max_new_tokens: 127, ..good.clone() }, "2 tokens and 127 new ones"),
    ] {
        let refused = Generator::new(&mut model, GenerateOptions::default())
            .run(&[good.clone(), bad], &mut |_| panic!("nothing is generated before all are checked"));
        let error = refused.unwrap_err().to_string();
        assert!(error.starts_with("prompt 1:") && error.contains(words), "{error}");
    }
    let stopped = Generator::new(&mut model, GenerateOptions::default())
        .run(std::slice::from_ref(&good), &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(ModelError::Stopped)));
    let unread =
        ResidentModel::load(quantised_model(&spec, scheme, 3), arithmetic(), Par::Seq, &mut |i, _| {
            if i == 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    assert!(matches!(unread, Err(ModelError::Stopped)));
}

/// A request that breaks the model ends, and its pages poison nobody.
#[test]
fn a_request_whose_logits_are_not_finite_ends_alone() {
    let (spec, scheme) = specs().remove(2);
    let mut model = quantised_model(&spec, scheme, 3);
    let requests = requests(&spec);
    let (want, _) =
        run(&mut resident(&model, arithmetic(), Par::Seq), &requests, &GenerateOptions::default());
    // A token of its own with an embedding that overflows.
    let broken = 49;
    assert!(
        requests.iter().zip(&want).all(|(r, t)| !r.prompt.contains(&broken) && !t.tokens.contains(&broken))
    );
    let mut source = InMemoryModel::load(&mut model).unwrap();
    source.embedding_mut().row_mut(broken as usize).fill(f32::NAN);
    let bad = Request { index: 99, prompt: vec![1, broken, 2], max_new_tokens: 5 };
    let all = [&[bad][..], &requests[..]].concat();
    for pages in [3, usize::MAX] {
        let options = GenerateOptions { pages, batch: 2, ..GenerateOptions::default() };
        let (texts, _) = run(&mut resident(&source, arithmetic(), Par::Seq), &all, &options);
        assert_eq!(texts[0], Completion { tokens: vec![], finish: Finish::NonFinite });
        assert_eq!(texts[1..], want);
    }
}
