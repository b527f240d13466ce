//! DuQuant as a recipe: what it keeps, what it fits, what it refuses, and that a broken run goes on as if nothing was.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use crate::common::{distance, logits, model, spec, tokens};
use proptest::prelude::*;
use quant_core::{AxisShape, OnlineShape};
use quant_data::TokenSet;
use quant_graph::{BlockParams, BlockSource, LinearId, ModelSpec, Site};
use quant_kernels::Par;
use quant_model::InMemoryModel;
use quant_pipeline::run::{MemorySink, RunOptions, run};
use quant_pipeline::{Plan, Recipe, RunReport, Silent};

const ROWS: usize = 5;

fn plan(duquant: &str, rest: &str, spec: &ModelSpec) -> Plan {
    let text = format!("version: 1\nmodifiers: [duquant: {{ block: 8, {duquant} }}, {rest}\n");
    let recipe = Recipe::parse(&text).unwrap_or_else(|e| panic!("{e}"));
    Plan::new(&recipe, spec).unwrap_or_else(|e| panic!("{e}"))
}

fn quantised(plan: &Plan, model: &InMemoryModel, par: Par) -> (InMemoryModel, RunReport) {
    let rows = TokenSet::from_sequences(tokens(ROWS), "rows");
    let mut sink = MemorySink::default();
    let options = RunOptions::new(par);
    let report = run(plan, &mut model.clone(), Some(&rows), &mut sink, &mut Silent, &options).unwrap();
    (sink.into_model(plan.stored.clone()).unwrap(), report)
}

fn blocks(model: &InMemoryModel) -> Vec<BlockParams> {
    let mut model = model.clone();
    (0..model.spec().layers).map(|index| model.block(index).unwrap()).collect()
}

/// A model with channels of outliers in what its norms give and in what up makes.
fn with_outliers(spec: &ModelSpec) -> InMemoryModel {
    let float = model(spec);
    let mut parts = float.clone();
    let blocks = blocks(&float).into_iter().map(|mut block| {
        block.norms.values_mut().filter(|norm| norm.len() == spec.hidden).for_each(|norm| norm[5] *= 60.0);
        block
    });
    let rows: Vec<u32> = (0..spec.vocab as u32).collect();
    let (embedding, norm) = (parts.embed(&rows).unwrap(), parts.final_norm().unwrap());
    let head = (!spec.tied).then(|| parts.head(0..spec.vocab).unwrap());
    InMemoryModel::new(spec.clone(), blocks.collect(), embedding, norm, head).unwrap()
}

/// At 16 bits of weights and 8 of everything else little is lost, whatever the family, and every input is transformed.
#[test]
fn every_family_computes_what_it_did() {
    for family in ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Phi3ForCausalLM"] {
        let float = model(&spec(family, false));
        let expected = logits(float.clone(), ROWS);
        let plan = plan("steps: 20", "rtn: { scheme: W16A8KV8 }]", float.spec());
        for online in &plan.scheme.online {
            assert!(online.sites.len() == 4 && online.pair.is_none(), "{family}");
            let axes = [AxisShape::Identity(6), AxisShape::Dense(8)];
            assert_eq!(online.sites[&Site::MlpInput], OnlineShape::new(axes).and_permuted(axes), "{family}");
        }
        let (found, report) = quantised(&plan, &float, Par::Seq);
        for (block, params) in blocks(&found).into_iter().enumerate() {
            assert_eq!(params.online.scheme().unwrap(), plan.scheme.online[block]);
        }
        let distance = distance(&logits(found, ROWS), &expected);
        assert!(distance < 0.03, "{family}: {distance}");
        assert_eq!(report.lessons.len(), 2);
        assert!(plan.warnings.iter().any(|w| w.contains("keys are quantised as they are")));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
    /// Without any quantiser in the way a block with its transforms is the block, whatever they were fitted to: quantisers are taken out
    /// of what the run leaves, whose weights are float.
    #[test]
    fn transforms_keep_the_function(
        seed in 0_u64..1000,
        family in prop::sample::select(vec!["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Phi3ForCausalLM"]),
        official: bool,
        steps in 0_usize..30,
        outliers: bool,
    ) {
        let spec = spec(family, seed % 2 == 0);
        let float = if outliers { with_outliers(&spec) } else { model(&spec) };
        let variant = if official { "official" } else { "exact" };
        let keys = format!("seed: {seed}, steps: {steps}, tokens: {}, variant: {variant}", 1 + seed % 50);
        let plan = plan(&keys, "rtn: { scheme: W16A8 }]", &spec);
        let (found, _) = quantised(&plan, &float, Par::Seq);
        let mut parts = found.clone();
        let free = blocks(&found).into_iter().map(|mut block| {
            block.linears.values_mut().for_each(|linear| linear.input = None);
            block
        });
        let rows: Vec<u32> = (0..spec.vocab as u32).collect();
        let (embedding, norm) = (parts.embed(&rows).unwrap(), parts.final_norm().unwrap());
        let head = (!spec.tied).then(|| parts.head(0..spec.vocab).unwrap());
        let free = InMemoryModel::new(spec.clone(), free.collect(), embedding, norm, head).unwrap();
        let error = distance(&logits(free, 2), &logits(float, 2));
        prop_assert!(error < 1e-4, "{family} {keys}: {error}");
    }
}

/// Behind outliers four bits lose much less with the transforms than without, in the report and in what the model computes.
#[test]
fn outliers_are_spread() {
    let float = with_outliers(&spec("Qwen2ForCausalLM", false));
    let expected = logits(float.clone(), ROWS);
    let lost = |text: &str| {
        let plan = Plan::new(&Recipe::parse(text).unwrap(), float.spec()).unwrap();
        let (found, report) = quantised(&plan, &float, Par::Seq);
        (distance(&logits(found, ROWS), &expected), report)
    };
    let with = |keys: &str| {
        lost(&format!(
            "version: 1\nmodifiers: [duquant: {{ block: 8, steps: 40{keys} }}, rtn: {{ scheme: W4A4 }}]\n"
        ))
    };
    let (none, _) = lost("version: 1\nmodifiers: [rtn: { scheme: W4A4 }]\n");
    let (all, report) = with("");
    let (still, _) = with(", pairs: [norm], alpha: 0.0");
    assert!(all < 0.7 * none && still < none, "{none} without, {all} with, {still} without factors");
    for lesson in report.lessons.iter().map(|l| &l.lesson) {
        assert!(lesson.after < 0.5 * lesson.before && lesson.alarms.is_empty(), "{lesson:?}");
    }
}

/// Transforms that only harm are said to: without steps a permutation changes nothing for a token's scale, and factors that put all of the
/// size into the weights cost their bits.
#[test]
fn transforms_that_cost_more_than_they_gain_are_told() {
    let float = model(&spec("Qwen2ForCausalLM", false));
    let plan = plan("steps: 0, alpha: 1.0", "rtn: { scheme: W4A16 }]", float.spec());
    let (_, report) = quantised(&plan, &float, Par::Seq);
    assert!(report.lessons.iter().all(|l| l.lesson.after > l.lesson.before), "{:?}", report.lessons);
    assert!(report.of_lessons()[0].contains("cost more than they gain"), "{:?}", report.of_lessons());
}

#[test]
fn same_bytes_on_any_number_of_threads() {
    let float = with_outliers(&spec("Qwen2ForCausalLM", false));
    for (keys, rest) in [
        ("steps: 20", "gptq: { scheme: W4A4KV4 }]\nactivations: { in_calibration: true }"),
        ("steps: 9, variant: official, tokens: 7, pairs: [norm]", "qronos: { scheme: W3A8 }]"),
    ] {
        let plan = plan(keys, rest, float.spec());
        let [one, three] = [1, 3].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            blocks(&pool.install(|| quantised(&plan, &float, Par::new(threads))).0)
        });
        assert!(one == three, "{keys}");
    }
}

/// Only what is quantised is transformed: linears that stay float behind a transformed input take part, inputs of floats alone stay.
#[test]
fn what_stays_float_is_left_alone() {
    let float = model(&spec("LlamaForCausalLM", false));
    let rest = "rtn: { scheme: W4A4 }]\nignore: ['*.down_proj', '*.0.self_attn.k_proj']";
    let plan = plan("steps: 5", rest, float.spec());
    let sites: Vec<_> = plan.scheme.online[0].sites.keys().copied().collect();
    assert_eq!(sites, [Site::AttentionInput, Site::AttentionOutput, Site::MlpInput]);
    let (found, _) = quantised(&plan, &float, Par::Seq);
    let (before, after) = (&blocks(&float)[0], &blocks(&found)[0]);
    assert_ne!(before.linears[&LinearId::K], after.linears[&LinearId::K]);
    assert!(after.linears[&LinearId::K].weight.is_float());
    assert_eq!(before.linears[&LinearId::DOWN], after.linears[&LinearId::DOWN]);
}

#[test]
fn what_cannot_work_is_refused_in_the_plan() {
    let model = spec("Qwen2ForCausalLM", false);
    let refused = |modifiers: &str, rest: &str| {
        let text = format!("version: 1\nmodifiers: [{modifiers}]\n{rest}\n");
        let plan = Recipe::parse(&text).map_err(Into::into).and_then(|recipe| Plan::new(&recipe, &model));
        plan.unwrap_err().to_string()
    };
    for (modifiers, rest, words) in [
        (
            "duquant: {}, rtn: { scheme: W4A4 }",
            "",
            &["duquant.block", "128 does not divide", "use block: 16"][..],
        ),
        ("duquant: { block: 1 }, rtn: { scheme: W4A4 }", "", &["a whole number from 2 to 1024"]),
        (
            "duquant: { block: 8 }, rtn: { scheme: W4A4 }",
            "export: { format: vllm-ascend }",
            &["the transform of attention_input", "in place of duquant", "dequantized"],
        ),
        (
            "duquant: { block: 8 }, rtn: { scheme: W8A8 }",
            "export: { format: compressed-tensors }",
            &["the transform of attention_input", "in place of duquant", "dequantized"],
        ),
        (
            "quarot: {}, duquant: { block: 8 }, rtn: { scheme: W4A4 }",
            "",
            &["quarot multiplies", "no r4", "cross_head: \"off\""],
        ),
        (
            "smoothquant: {}, duquant: { block: 8 }, rtn: { scheme: W4A4 }",
            "",
            &["drop the other modifiers before it"],
        ),
        ("duquant: { block: 8 }", "", &["there is no rounding modifier"]),
    ] {
        let told = refused(modifiers, rest);
        assert!(words.iter().all(|word| told.contains(word)), "{words:?}: {told}");
    }
}
