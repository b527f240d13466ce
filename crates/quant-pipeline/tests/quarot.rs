//! A model that QuaRot has rotated is the model it was.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{distance, logits, model, spec, tokens};
use quant_data::TokenSet;
use quant_graph::{BlockSource, Site};
use quant_kernels::Par;
use quant_model::InMemoryModel;
use quant_pipeline::run::{MemorySink, RunOptions, run};
use quant_pipeline::{Plan, Recipe, Silent};

const ROWS: usize = 4;

fn quantised(model: &InMemoryModel, modifiers: &str) -> (InMemoryModel, Plan) {
    let recipe = Recipe::parse(&format!("version: 1\nmodifiers: [{modifiers}]\n"));
    let plan = Plan::new(&recipe.unwrap_or_else(|e| panic!("{e}")), model.spec()).unwrap();
    let mut sink = MemorySink::default();
    let options = RunOptions::new(Par::Seq);
    let rows = TokenSet::from_sequences(tokens(ROWS), "rows");
    run(&plan, &mut model.clone(), Some(&rows), &mut sink, &mut Silent, &options).unwrap();
    (sink.into_model(plan.stored.clone()).unwrap(), plan)
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
        let expected = logits(float.clone(), ROWS);
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
            let error = distance(&logits(rotated, ROWS), &expected);
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
