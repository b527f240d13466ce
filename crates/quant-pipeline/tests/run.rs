//! What a run owes its methods: statistics of the right stream, gathered where they were asked for, behind the transforms.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ndarray::{Array2, ArrayView2};
use quant_data::TokenSet;
use quant_graph::{BlockParams, LinearId, LinearWeight, ModelSpec, Outer};
use quant_kernels::Par;
use quant_methods::{Statistic, Stream};
use quant_model::{InMemoryModel, model_spec};
use quant_pipeline::run::{BlockSink, RunOptions, run};
use quant_pipeline::{PipelineError, Plan, Recipe, RunReport, Silent};
use quant_testkit::{Numbers, random_block};
use serde_json::json;

#[derive(Default)]
struct Collect(Vec<BlockParams>);

impl BlockSink for Collect {
    fn block(&mut self, index: usize, block: BlockParams) -> Result<(), PipelineError> {
        assert_eq!(index, self.0.len(), "blocks come in order");
        self.0.push(block);
        Ok(())
    }
    fn outer_rows(&mut self, _: Outer, _: usize, _: ArrayView2<'_, f32>) -> Result<(), PipelineError> {
        Ok(())
    }
}

fn model() -> InMemoryModel {
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
    });
    let spec = model_spec(&config).unwrap();
    let mut numbers = Numbers::new(11);
    let blocks = (0..spec.layers).map(|_| random_block(&spec, &mut numbers)).collect();
    let (embedding, head) = (numbers.matrix(64, 32, 1.0), numbers.matrix(64, 32, 1.0));
    InMemoryModel::new(spec, blocks, embedding, numbers.vector(32, 1.0, 0.2), Some(head)).unwrap()
}

fn tokens() -> TokenSet {
    let row = |s: u32| (0..40).map(|t| (t * 7 + s * 13) % 64).collect();
    TokenSet::from_sequences((0..6).map(row).collect(), "rows")
}

fn plan(modifiers: &str, rest: &str) -> Plan {
    let recipe = Recipe::parse(&format!("version: 1\nmodifiers: [{modifiers}]\n{rest}\n"));
    Plan::new(&recipe.unwrap_or_else(|e| panic!("{e}")), &spec()).unwrap()
}

fn spec() -> ModelSpec {
    use quant_graph::BlockSource;
    model().spec().clone()
}

fn quantise(modifiers: &str, rest: &str) -> (Vec<BlockParams>, RunReport) {
    let plan = plan(modifiers, rest);
    let mut blocks = Collect::default();
    let options = RunOptions { par: Par::Seq, spill: None };
    let report = run(&plan, &mut model(), Some(&tokens()), &mut blocks, &mut Silent, &options).unwrap();
    (blocks.0, report)
}

fn values(block: &BlockParams, id: LinearId) -> Array2<f32> {
    block.linears[&id].weight.clone().into_values()
}

/// Relative distance of all weights of two models.
fn distance(a: &[BlockParams], b: &[BlockParams]) -> f32 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        for id in a.linears.keys() {
            let (a, b) = (values(a, *id), values(b, *id));
            difference += (&a - &b).mapv(|v| v * v).sum();
            norm += a.mapv(|v| v * v).sum();
        }
    }
    (difference / norm).sqrt()
}

#[test]
fn streams_are_those_that_statistics_ask_for() {
    let streams = |modifiers: &str| {
        let streams = plan(modifiers, "").streams;
        (streams.float, streams.deployed, streams.together)
    };
    assert_eq!(streams("rtn: { scheme: W8A8 }"), (false, false, false));
    assert_eq!(streams("gptq: { scheme: W4A16 }"), (false, true, false));
    assert_eq!(streams("smoothquant: {}, rtn: { scheme: W8A8 }"), (true, false, false));
    assert_eq!(streams("awq: { scheme: W4A16g16 }"), (true, false, false));
    assert_eq!(streams("awq: {}, gptq: { scheme: W4A16g16 }"), (true, true, false));
    assert_eq!(streams("gptaq: { scheme: W4A16g16 }"), (true, true, true));
}

/// Every need of a method has a place, and none is gathered twice for two linears.
#[test]
fn stages_gather_what_their_linears_and_transforms_need() {
    let plan = plan("smoothquant: {}, gptaq: { scheme: W4A8g16 }", "activations: { dynamic: false }");
    let block = plan.spec.block(0);
    for stage in &block.stages {
        let needs = plan.needs_at(0, stage);
        let norm = block.norm_edges().any(|(_, site)| site == stage.site);
        assert_eq!(needs.float.contains(&Statistic::ChannelMax), norm, "{:?}", stage.site);
        assert!(needs.deployed.contains(&Statistic::Gram) && needs.deployed.iter().any(|s| s.of_both()));
        assert!(needs.deployed.iter().any(|s| matches!(s, Statistic::Range(_))));
    }
    let (stream, _) = plan.blocks[0][&LinearId::Q].solver().unwrap().needs()[0];
    assert_eq!(stream, Stream::Deployed);
}

/// Without a correction GPTAQ is GPTQ, whatever the streams and transforms are.
#[test]
fn gptaq_without_correction_is_gptq() {
    for (before, rest) in [
        ("", ""),
        ("smoothquant: {}, ", ""),
        ("awq: { gqa: true }, ", ""),
        ("", "activations: { in_calibration: true }"),
    ] {
        for sequential in [true, false] {
            let settings = format!("scheme: W4A8g16, true_sequential: {sequential}");
            let (gptq, _) = quantise(&format!("{before}gptq: {{ {settings} }}"), rest);
            let (gptaq, _) = quantise(&format!("{before}gptaq: {{ {settings}, alpha: 0 }}"), rest);
            if before.is_empty() {
                assert_eq!(gptq, gptaq, "{rest} {sequential}");
            }
            // Behind a transform the float stream of later blocks has come by the scaled weights: the same but for rounding.
            let levels = distance(&gptq, &gptaq);
            assert!(levels < 1e-2, "{before} {rest} {sequential}: {levels}");
            let (corrected, _) = quantise(&format!("{before}gptaq: {{ {settings}, alpha: 1 }}"), rest);
            // Nothing differs between the streams before the first rounding.
            let same = |id| values(&gptq[0], id) == values(&corrected[0], id);
            assert_eq!(same(LinearId::Q), rest.is_empty(), "{before} {rest} {sequential}");
            assert!(!same(LinearId::O) || !sequential, "{before} {rest} {sequential}");
            assert_ne!(values(&gptq[1], LinearId::Q), values(&corrected[1], LinearId::Q));
        }
    }
}

/// The float stream of GPTAQ goes through the transformed block: with weights that are not rounded at all both streams agree
/// to rounding, so that the correction is nothing. A float stream through the block as it was read would differ by the scales.
#[test]
fn the_float_stream_goes_through_the_transformed_block() {
    for before in ["smoothquant: { alpha: 0.9 }", "awq: { gqa: true, search_tokens: all }"] {
        let eight = |method: &str| quantise(&format!("{before}, {method}: {{ scheme: W8A16g16 }}"), "").0;
        let (gptq, gptaq) = (eight("gptq"), eight("gptaq"));
        let found = distance(&gptq, &gptaq);
        assert!(found < 2e-2, "{before}: {found}");
    }
}

/// AWQ never does worse than rounding to nearest where its search looked, and says so by its output errors.
#[test]
fn awq_lowers_output_errors() {
    let awq = quantise("awq: { scheme: W3A16g16, search_tokens: all }", "").1;
    let rtn = quantise("rtn: { scheme: W3A16g16, convention: q-awq }", "").1;
    assert!(awq.linears.iter().all(|l| l.method == Some("awq")));
    let weight = |report: &RunReport| report.linears.iter().map(|l| l.weight_error).sum::<f64>();
    assert!(weight(&awq).is_finite() && weight(&rtn) > 0.0);
    let measured = awq.linears.iter().filter_map(|l| l.output_error).count();
    assert!(measured > 0, "sampled tokens measure outputs");
}

/// A rounding that needs no statistic gets none, and its floats never exist as a block.
#[test]
fn rows_are_rounded_as_they_are_read() {
    let (blocks, report) = quantise("rtn: { scheme: W8A8 }", "");
    assert_eq!(report.calibration_tokens, 0);
    let levels = |b: &BlockParams| b.linears.values().all(|l| matches!(l.weight, LinearWeight::Quantized(_)));
    assert!(blocks.iter().all(levels));
}
