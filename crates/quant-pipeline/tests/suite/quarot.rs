//! A model that QuaRot has rotated is the model it was.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use crate::common::{distance, logits, model, spec, tokens};
use ndarray::{Array1, Array2, Axis};
use quant_data::TokenSet;
use quant_graph::{BlockSource, LinearWeight, Site};
use quant_kernels::{Compute, Par};
use quant_model::{Block, InMemoryModel, RopeTable, model_spec};
use quant_pipeline::run::{MemorySink, RunOptions, run};
use quant_pipeline::{Plan, Recipe, Silent};
use quant_testkit::{Numbers, random_block};
use serde_json::json;

const ROWS: usize = 4;

const FAMILIES: [&str; 6] = [
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "PanguEmbeddedForCausalLM",
];

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
    for (at, family) in FAMILIES.into_iter().enumerate() {
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

/// What a model computes in f64 from the numbers it has in f32.
fn logits_in_f64(mut model: InMemoryModel, rows: usize) -> Array2<f64> {
    let spec = model.spec().clone();
    let (norm, head) = (model.final_norm().unwrap(), model.head(0..spec.vocab).unwrap().mapv(f64::from));
    let mut out = Array2::zeros((0, spec.vocab));
    for row in tokens(rows) {
        let mut x = model.embed(&row).unwrap().mapv(f64::from);
        let table = RopeTable::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, row.len());
        for index in 0..spec.layers {
            let block = model.block(index).unwrap();
            let block = Block::<f64>::new(&spec, index, block, Compute::F32, Par::Seq).unwrap();
            x = block.forward(x, &table, Par::Seq).unwrap();
        }
        for mut x in x.rows_mut() {
            let scale = (x.iter().map(|v| v * v).sum::<f64>() / spec.hidden as f64 + spec.norm_eps).sqrt();
            x.zip_mut_with(&norm, |x, gain| *x *= f64::from(*gain) / scale);
        }
        out.append(Axis(0), x.dot(&head.t()).view()).unwrap();
    }
    out
}

/// Where Hadamard matrices have entries of powers of two (sizes of powers of four) and weights are small whole numbers, rotated weights
/// are exact in f32: then nothing stands between a model and the rotated one but the arithmetic of f64.
#[test]
fn the_function_is_kept_in_f64() {
    for family in FAMILIES {
        let spec = model_spec(&json!({
            "architectures": [family], "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64,
            "max_position_embeddings": 64, "original_max_position_embeddings": 64,
        }));
        let spec = spec.unwrap();
        let mut numbers = Numbers::new(17);
        let mut whole = |rows, columns| numbers.matrix(rows, columns, 8.0).mapv(|v: f32| v.round() / 64.0);
        let blocks = (0..spec.layers).map(|_| {
            let mut block = random_block(&spec, &mut Numbers::new(3));
            for linear in block.linears.values_mut() {
                let LinearWeight::Float(weight) = &mut linear.weight else { unreachable!() };
                *weight = whole(weight.nrows(), weight.ncols());
                linear.bias.iter_mut().for_each(|bias| *bias = whole(1, bias.len()).row(0).to_owned());
            }
            for (at, gain) in block.norms.values_mut().flatten().enumerate() {
                *gain = [0.5, 1.0, 2.0][at % 3];
            }
            block
        });
        let blocks = blocks.collect();
        let norm = Array1::from_iter((0..spec.hidden).map(|at| [1.0, 2.0][at % 2]));
        let (embedding, head) = (whole(64, 64), whole(64, 64));
        let float =
            InMemoryModel::new(spec.clone(), blocks, embedding, norm, (!spec.tied).then_some(head)).unwrap();
        let (rotated, _) = quantised(&float, "quarot: {}, rtn: { scheme: W16A16 }");
        let [expected, found] = [float, rotated].map(|model| logits_in_f64(model, 2));
        let size = expected.iter().fold(0.0_f64, |most, v| most.max(v.abs()));
        let error = (&found - &expected).iter().fold(0.0_f64, |most, v| most.max(v.abs())) / size;
        assert!(error < 1e-8 && size > 0.1, "{family}: {error:e} of {size}");
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
        ("quarot: { tp: 5 }, rtn: { scheme: W4A4 }", "5 devices cannot have equal parts of"),
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
