//! A model that QuaRot has rotated is the model it was.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ndarray::Array2;
use quant_data::TokenSet;
use quant_graph::{BlockSource, ModelSpec, Site};
use quant_kernels::{Compute, Par};
use quant_model::{InMemoryModel, StreamedModel, model_spec};
use quant_pipeline::run::{MemorySink, RunOptions, run};
use quant_pipeline::{Plan, Recipe, Silent};
use quant_testkit::{Numbers, random_block};
use serde_json::json;

fn spec(architecture: &str, tied: bool) -> ModelSpec {
    model_spec(&json!({
        "architectures": [architecture], "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "vocab_size": 64,
        "tie_word_embeddings": tied, "max_position_embeddings": 64, "original_max_position_embeddings": 64,
    }))
    .unwrap()
}

fn model(spec: &ModelSpec) -> InMemoryModel {
    let mut numbers = Numbers::new(11);
    let blocks = (0..spec.layers).map(|_| random_block(spec, &mut numbers)).collect();
    let (embedding, head) = (numbers.matrix(64, 48, 1.0), numbers.matrix(64, 48, 1.0));
    let norm = numbers.vector(48, 1.0, 0.2);
    InMemoryModel::new(spec.clone(), blocks, embedding, norm, (!spec.tied).then_some(head)).unwrap()
}

fn tokens() -> Vec<Vec<u32>> {
    (0..4).map(|s| (0..40).map(|t| (t * 7 + s * 13) % 64).collect()).collect()
}

fn quantised(model: &InMemoryModel, modifiers: &str) -> (InMemoryModel, Plan) {
    let recipe = Recipe::parse(&format!("version: 1\nmodifiers: [{modifiers}]\n"));
    let plan = Plan::new(&recipe.unwrap_or_else(|e| panic!("{e}")), model.spec()).unwrap();
    let mut sink = MemorySink::default();
    let options = RunOptions { par: Par::Seq, spill: None };
    let rows = TokenSet::from_sequences(tokens(), "rows");
    run(&plan, &mut model.clone(), Some(&rows), &mut sink, &mut Silent, &options).unwrap();
    (sink.into_model(plan.stored.clone()).unwrap(), plan)
}

fn logits(model: InMemoryModel) -> Array2<f32> {
    let vocab = model.spec().vocab;
    let mut streamed = StreamedModel::new(model, Compute::F32, Par::Seq);
    let rows = tokens();
    streamed.encode(&rows, &mut |_, _| std::ops::ControlFlow::Continue(())).unwrap();
    let positions = rows.iter().map(Vec::len).sum();
    let mut out = Array2::zeros((positions, vocab));
    streamed.logits_into(0..positions, 0..vocab, out.view_mut()).unwrap();
    out
}

fn distance(a: &Array2<f32>, b: &Array2<f32>) -> f64 {
    let norm = |x: &Array2<f32>| x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    norm(&(a - b)) / norm(b)
}

/// Every family, every rotation alone and all together, under every option.
#[test]
fn the_function_is_kept() {
    let families = [
        "LlamaForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "MistralForCausalLM",
        "Phi3ForCausalLM",
        "PanguEmbeddedForCausalLM",
    ];
    for (at, family) in families.into_iter().enumerate() {
        let spec = spec(family, at % 2 == 0);
        let float = model(&spec);
        let expected = logits(float.clone());
        let options: &[&str] = &[
            "",
            "rotations: [r1]",
            "rotations: [r2], cross_head: off",
            "rotations: [r2]",
            "rotations: [r3]",
            "rotations: [r4]",
            "block: 16",
            "tp: 2, seed: 5",
        ];
        for options in if at < 3 { options } else { &options[..1] } {
            let (rotated, plan) =
                quantised(&float, &format!("quarot: {{ {options} }}, rtn: {{ scheme: W16A16 }}"));
            assert!(!plan.stored.tied);
            let error = distance(&logits(rotated), &expected);
            assert!(error < 1e-5, "{family}, {options}: {error:e}");
        }
    }
}

#[test]
fn plans_say_what_runs_online_and_what_cannot_be() {
    let plan = |modifiers: &str| {
        let recipe =
            Recipe::parse(&format!("version: 1\nmodifiers: [{modifiers}]\n")).map_err(|e| e.to_string())?;
        Plan::new(&recipe, &spec("Qwen2ForCausalLM", true)).map_err(|e| e.to_string())
    };
    let whole = plan("quarot: {}, rtn: { scheme: W4A4KV4 }").unwrap();
    let online = &whole.scheme.online[1];
    assert_eq!(
        online.sites.keys().copied().collect::<Vec<_>>(),
        [Site::AttentionOutput, Site::MlpActivation]
    );
    assert!(online.pair.is_some() && whole.scheme.fused);
    assert!(whole.warnings.iter().any(|w| w.contains("quarot unties them")), "{:?}", whole.warnings);
    let fused = plan("quarot: { rotations: [r1, r2], cross_head: off }, rtn: { scheme: W4A16 }").unwrap();
    assert!(fused.scheme.online.is_empty());
    // Scales cannot pass what is mixed while the model runs.
    assert!(plan("quarot: {}, smoothquant: {}, rtn: { scheme: W8A8 }").is_ok());
    for (modifiers, words) in [
        (
            "quarot: { rotations: [r4], block: 64 }, rtn: { scheme: W4A4 }",
            "64 does not divide the 80 channels",
        ),
        ("quarot: { cross_head: on, tp: 2 }, rtn: { scheme: W4A4 }", "heads lie on different devices"),
        ("quarot: { tp: 3 }, rtn: { scheme: W4A4 }", "3 does not divide the 80 inputs"),
        ("smoothquant: {}, quarot: {}, rtn: { scheme: W4A4 }", "stands first"),
        ("quarot: {}, quarot: {}, rtn: { scheme: W4A4 }", "stands first, and once"),
        ("quarot: {}, smoothquant: { pairs: [up-down] }, rtn: { scheme: W8A8 }", "up-down"),
    ] {
        let error = plan(modifiers).unwrap_err();
        assert!(error.contains(words), "{modifiers}: {error}");
    }
    let recipe = "version: 1\nmodifiers: [quarot: {}, rtn: { scheme: W8A8 }]\nexport: { format: compressed-tensors }\n";
    let recipe = Recipe::parse(recipe).unwrap();
    let error = Plan::new(&recipe, &spec("Qwen2ForCausalLM", false)).unwrap_err().to_string();
    assert!(error.contains("attention_output") && error.contains("rotations: [r1, r2]"), "{error}");
}
