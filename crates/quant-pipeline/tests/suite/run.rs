//! What a run owes its methods: statistics of the right stream, gathered where they were asked for, behind the transforms.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ndarray::{Array2, ArrayView2};
use quant_data::TokenSet;
use quant_graph::{BlockParams, BlockSpec, LinearId, LinearWeight, ModelSpec, Outer, Site};
use quant_kernels::Par;
use quant_methods::{
    BlockContext, FloatStream, Method, MethodError, MethodKind, Modifier, Need, Scaled, SiteStatistics,
    Statistic, Stream, Transform,
};
use quant_model::{InMemoryModel, model_spec};
use quant_pipeline::run::{BlockSink, Keeper, MemorySink, RunOptions, run};
use quant_pipeline::{Event, Events, PipelineError, Plan, Recipe, Registry, RunReport, Silent};
use quant_testkit::{Numbers, random_block};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

pub(crate) fn model() -> InMemoryModel {
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

pub(crate) fn tokens() -> TokenSet {
    let row = |s: u32| (0..40).map(|t| (t * 7 + s * 13) % 64).collect();
    TokenSet::from_sequences((0..6).map(row).collect(), "rows")
}

pub(crate) fn plan(modifiers: &str, rest: &str) -> Plan {
    let recipe = Recipe::parse(&format!("version: 1\nmodifiers: [{modifiers}]\n{rest}\n"));
    Plan::new(&recipe.unwrap_or_else(|e| panic!("{e}")), &spec()).unwrap()
}

fn spec() -> ModelSpec {
    use quant_graph::BlockSource;
    model().spec().clone()
}

pub(crate) fn quantise(modifiers: &str, rest: &str) -> (Vec<BlockParams>, RunReport) {
    let plan = plan(modifiers, rest);
    let mut blocks = MemorySink::default();
    let options = RunOptions::new(Par::Seq);
    let report = run(&plan, &mut model(), Some(&tokens()), &mut blocks, &mut Silent, &options).unwrap();
    (blocks.blocks().to_vec(), report)
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
    assert_eq!(streams("rtn: { scheme: W8A8 }"), (false, false, None));
    assert_eq!(streams("gptq: { scheme: W4A16 }"), (false, true, None));
    assert_eq!(streams("smoothquant: {}, rtn: { scheme: W8A8 }"), (true, false, None));
    assert_eq!(streams("awq: { scheme: W4A16g16 }"), (true, false, None));
    assert_eq!(streams("awq: {}, gptq: { scheme: W4A16g16 }"), (true, true, None));
    assert_eq!(streams("gptaq: { scheme: W4A16g16 }"), (true, true, Some(FloatStream::Model)));
    assert_eq!(streams("qronos: { scheme: W4A16g16 }"), (true, true, Some(FloatStream::Model)));
    let block = Some(FloatStream::Block);
    assert_eq!(streams("qronos: { scheme: W4A16g16, float_stream: block }"), (false, true, block));
    assert_eq!(
        streams("smoothquant: {}, qronos: { scheme: W4A16g16, float_stream: block }"),
        (true, true, block)
    );
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
        assert!(
            needs.deployed.contains(&Statistic::Gram)
                && needs.deployed.iter().any(|s| s.float_beside().is_some())
        );
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

/// A correction for streams that are far apart can make a weight larger and larger; whoever runs it hears of it, and of what
/// would help.
#[test]
fn gptaq_says_where_it_blew_a_weight_up() {
    let doubts = |modifiers: &str| {
        let (_, report) = quantise(modifiers, "");
        report.doubts(&plan(modifiers, ""))
    };
    assert_eq!(doubts("gptaq: { scheme: W4A16g16 }"), Vec::<String>::new());
    let told = doubts("gptaq: { scheme: W2A16g16, alpha: 4 }");
    let words = ["model.layers.", "other linear", "times as large", "a smaller alpha than 4"];
    assert!(told.len() == 1 && words.iter().all(|w| told[0].contains(w)), "{told:?}");
    // Only a method that corrects has this figure.
    assert_eq!(doubts("gptq: { scheme: W2A16g16 }"), Vec::<String>::new());
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

/// Qronos answers the float model, or the block's own float weights: in the first block that is one and the same, and where its
/// inputs do not differ it is nothing.
#[test]
fn qronos_answers_the_float_stream_it_is_given() {
    for before in ["", "smoothquant: {}, ", "awq: { gqa: true }, "] {
        let run = |stream: &str| {
            quantise(
                &format!("{before}qronos: {{ scheme: W3A16g16, actorder: static, float_stream: {stream} }}"),
                "",
            )
        };
        let ((model, of_model), (block, of_block)) = (run("model"), run("block"));
        let apart = |index: usize, id| values(&model[index], id) != values(&block[index], id);
        assert!(model[0].linears.keys().all(|&id| !apart(0, id)), "{before}");
        assert!(apart(1, LinearId::Q) && apart(1, LinearId::DOWN), "{before}");
        let shift = |report: &RunReport, at: usize| report.linears[at].figures["shift"];
        // q of the first block and, where every block begins anew, of the second; o behind them has something to make up for.
        assert_eq!([shift(&of_model, 0), shift(&of_block, 0), shift(&of_block, 7)], [0.0; 3], "{before}");
        assert!(shift(&of_model, 7) > 0.0 && shift(&of_block, 3) > 0.0, "{before}");
        let ends =
            |report: &RunReport| report.linears.iter().map(|l| l.figures["at_range_ends"]).sum::<f64>();
        assert!(ends(&of_model) > 0.0 && ends(&of_model) < of_model.linears.len() as f64);
    }
}

/// Methods, bits and groups differ within a block, and each linear is what it would be in a run of its own method as long as its
/// input is the same.
#[test]
fn methods_differ_within_a_block() {
    let overrides = "overrides: { '*.0.*.k_proj': { rtn: {} }, '*.0.*.v_proj': { qronos: { scheme: W3A16, actorder: static } }, \
                     '*.0.*.q_proj': { damping: 0.1 }, '*.0.*.down_proj': { gptaq: { alpha: 1 } } }";
    let (mixed, report) = quantise("gptq: { scheme: W4A16g16 }", overrides);
    let method =
        |at: &str| report.linears.iter().find(|l| l.module.ends_with(at)).unwrap().method.as_deref().unwrap();
    let found = [
        "0.self_attn.q_proj",
        "0.self_attn.k_proj",
        "0.self_attn.v_proj",
        "0.mlp.down_proj",
        "1.mlp.down_proj",
    ];
    assert_eq!(found.map(method), ["gptq", "rtn", "qronos", "gptaq", "gptq"]);
    assert_eq!(report.factors.len(), 2 + 3 + 4, "two factors at the first input, one at every other");
    let alone = |modifiers: &str, id| values(&quantise(modifiers, "").0[0], id);
    for (id, modifiers) in [
        (LinearId::K, "rtn: { scheme: W4A16g16 }"),
        (LinearId::V, "qronos: { scheme: W3A16, actorder: static }"),
        (LinearId::Q, "gptq: { scheme: W4A16g16, damping: 0.1 }"),
    ] {
        assert_eq!(values(&mixed[0], id), alone(modifiers, id), "{id:?}");
    }
    let streams = |rest: &str| {
        let recipe = format!("version: 1\nmodifiers: [gptaq: {{ scheme: W4A16g16 }}]\n{rest}\n");
        Plan::new(&Recipe::parse(&recipe).unwrap(), &spec()).unwrap_err().to_string()
    };
    let refused = streams("overrides: { '*.down_proj': { qronos: { float_stream: block } } }");
    assert!(refused.contains("down_proj") && refused.contains("float_stream"), "{refused}");
}

/// AWQ never does worse than rounding to nearest where its search looked, and says so by its output errors.
#[test]
fn awq_lowers_output_errors() {
    let awq = quantise("awq: { scheme: W3A16g16, search_tokens: all }", "").1;
    let rtn = quantise("rtn: { scheme: W3A16g16, convention: q-awq }", "").1;
    assert!(awq.linears.iter().all(|l| l.method.as_deref() == Some("awq")));
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

/// A sink that keeps blocks and journal in memory, and what an earlier run left of both.
#[derive(Default)]
pub(crate) struct Journal {
    pub(crate) blocks: Vec<BlockParams>,
    /// Frames of whole records, and of the record that is being made.
    frames: Vec<Vec<u8>>,
    open: Vec<Vec<u8>>,
    /// Blocks that were taken when the last record was closed.
    kept_blocks: usize,
    pub(crate) records: usize,
    /// What the run begins with.
    before: Vec<Vec<u8>>,
    begun: bool,
    /// How long it takes over a block.
    slow: Duration,
}

impl BlockSink for Journal {
    fn block(&mut self, index: usize, block: BlockParams) -> Result<(), PipelineError> {
        assert_eq!(index, self.blocks.len(), "blocks come in order");
        self.blocks.push(block);
        std::thread::sleep(self.slow);
        Ok(())
    }
    fn outer_rows(&mut self, _: Outer, _: usize, _: ArrayView2<'_, f32>) -> Result<(), PipelineError> {
        Ok(())
    }
    fn keeper(&mut self) -> Option<&mut dyn Keeper> {
        Some(self)
    }
}

impl Keeper for Journal {
    fn begin(&mut self) -> Result<(), PipelineError> {
        self.open.clear();
        self.begun = true;
        Ok(())
    }
    fn add(&mut self, frame: Vec<u8>) -> Result<(), PipelineError> {
        self.open.push(frame);
        Ok(())
    }
    fn commit(&mut self) -> Result<(), PipelineError> {
        if std::mem::take(&mut self.begun) {
            self.frames.clear();
        }
        self.frames.append(&mut self.open);
        (self.kept_blocks, self.records) = (self.blocks.len(), self.records + 1);
        Ok(())
    }
    fn settle(&mut self) -> Result<(), PipelineError> {
        Ok(())
    }
    fn frames(&self) -> usize {
        self.before.len()
    }
    fn beginning(&self, frame: usize, bytes: u64) -> Result<Vec<u8>, PipelineError> {
        Ok(self.before[frame].iter().copied().take(usize::try_from(bytes).unwrap_or(usize::MAX)).collect())
    }
    fn senseless(&self, detail: String) -> PipelineError {
        PipelineError::Usage(detail)
    }
}

/// A run into a journal, stopped after so many linears, and one that goes on from it.
fn stopped_and_resumed(plan: &Plan, stop: usize, slow: Duration) -> (Journal, Journal, RunReport) {
    let options = RunOptions::new(Par::Seq);
    stopped_and_resumed_with(plan, stop, slow, [&options, &options])
}

/// The same, each run with its options.
pub(crate) fn stopped_and_resumed_with(
    plan: &Plan,
    stop: usize,
    slow: Duration,
    options: [&RunOptions; 2],
) -> (Journal, Journal, RunReport) {
    struct Stop(usize);
    impl Events for Stop {
        fn event(&mut self, event: Event<'_>) {
            if let Event::Linear(_) = event {
                self.0 = self.0.saturating_sub(1);
            }
        }
        fn cancelled(&self) -> bool {
            self.0 == 0
        }
    }
    let mut first = Journal { slow, ..Journal::default() };
    let ended = run(plan, &mut model(), Some(&tokens()), &mut first, &mut Stop(stop), options[0]);
    assert!(matches!(ended, Err(PipelineError::Interrupted)));
    let mut second = Journal {
        blocks: first.blocks[..first.kept_blocks].to_vec(),
        frames: first.frames.clone(),
        before: first.frames.clone(),
        ..Journal::default()
    };
    let report = run(plan, &mut model(), Some(&tokens()), &mut second, &mut Silent, options[1]).unwrap();
    (first, second, report)
}

#[test]
fn a_run_goes_on_from_the_state_that_its_keeper_has() {
    let gptq = "smoothquant: {}, gptq: { scheme: W4A8KV8g16 }";
    for (modifiers, rest, stop) in [
        (gptq, "activations: { dynamic: false }\nkv_cache: { granularity: channel_static }", 9),
        ("awq: { scheme: W4A16g16 }", "", 4),
        ("awq: {}, rtn: { scheme: W4A16g16 }", "", 10),
        ("gptaq: { scheme: W4A16g16, true_sequential: false }", "", 12),
    ] {
        let plan = plan(modifiers, rest);
        let (blocks, expected) = quantise(modifiers, rest);
        let (first, second, report) = stopped_and_resumed(&plan, stop, Duration::ZERO);
        assert!(first.records > 0, "{modifiers}");
        assert_eq!(second.blocks, blocks, "{modifiers}");
        let linears = |report: &RunReport| -> Vec<_> {
            report
                .linears
                .iter()
                .map(|l| (l.module.clone(), l.method.clone(), l.weight_error, l.loss))
                .collect()
        };
        assert_eq!(linears(&report), linears(&expected), "{modifiers}");
        assert_eq!(report.factors.len(), expected.factors.len(), "{modifiers}");
    }
}

/// Where nothing is paid for but reading and rounding to nearest, a record is made only when the last one is some seconds old.
#[test]
fn rounding_alone_is_kept_now_and_then() {
    for (modifiers, rest) in [
        ("rtn: { scheme: W8A8 }", ""),
        ("smoothquant: {}, rtn: { scheme: W8A8 }", "activations: { dynamic: false }"),
    ] {
        let plan = plan(modifiers, rest);
        let (hasty, _, _) = stopped_and_resumed(&plan, 10, Duration::ZERO);
        assert_eq!((hasty.blocks.len(), hasty.records), (1, 0), "{modifiers}");
        let (slow, resumed, _) = stopped_and_resumed(&plan, 10, Duration::from_millis(5100));
        assert_eq!((slow.blocks.len(), slow.records, slow.kept_blocks), (1, 1, 1), "{modifiers}");
        assert_eq!(resumed.blocks, quantise(modifiers, rest).0, "{modifiers}");
    }
}

/// A transform of another crate: it turns the signs of up and down, which no scale of the activations tells.
#[derive(Debug)]
struct Mirror;

static MIRROR: Method = Method {
    id: "mirror",
    summary: "turns the signs of what passes from up to down",
    source: "this test",
    kind: MethodKind::Transform,
    build: |_| Ok(Modifier::transform(Mirror)),
    fields: &[],
    tier: 3,
};

impl Transform for Mirror {
    fn method(&self) -> &'static Method {
        &MIRROR
    }
    fn describe(&self) -> String {
        "signs".into()
    }
    fn needs(&self, _: &BlockSpec) -> Vec<Need> {
        Vec::new()
    }
    fn apply(
        &self,
        block: &mut BlockParams,
        _: &BTreeMap<Site, SiteStatistics>,
        _: BlockContext<'_>,
    ) -> Result<Scaled, MethodError> {
        for id in [LinearId::UP, LinearId::DOWN] {
            if let Some(LinearWeight::Float(weight)) = block.linears.get_mut(&id).map(|l| &mut l.weight) {
                weight.mapv_inplace(|w| -w);
            }
        }
        Ok(Scaled::new())
    }
}

/// It says nothing of how it changes weights, so they are kept as they are.
#[test]
fn weights_that_scales_do_not_tell_are_kept() {
    let registry = Registry::default().with_method(&MIRROR).unwrap();
    let text = "version: 1\nmodifiers: [mirror: {}, smoothquant: {}, gptq: { scheme: W4A16g16 }]\n";
    let plan = Plan::new(&Recipe::parse_with(text, &registry).unwrap(), &spec()).unwrap();
    let mut whole = Journal::default();
    let options = RunOptions::new(Par::Seq);
    run(&plan, &mut model(), Some(&tokens()), &mut whole, &mut Silent, &options).unwrap();
    let (first, second, _) = stopped_and_resumed(&plan, 4, Duration::ZERO);
    assert!(first.records > 1 && first.kept_blocks == 0);
    assert_eq!(second.blocks, whole.blocks);
    assert_ne!(second.blocks, quantise("smoothquant: {}, gptq: { scheme: W4A16g16 }", "").0);
}

/// The factors of a transform that only scales make its weights.
#[test]
fn what_a_transform_did_is_repeated_for_those_that_only_scale() {
    let plan = plan("smoothquant: {}, awq: { gqa: true }, rtn: { scheme: W4A16g16 }", "");
    assert!(plan.recipe.transforms().iter().all(|transform| transform.only_scales()));
    let block = plan.spec.block(0);
    let mut numbers = Numbers::new(5);
    let before = random_block(&plan.spec, &mut numbers);
    let mut scaled = Scaled::new();
    for edge in &block.edges {
        let width = plan.spec.site_width(edge.to);
        let mut factors = numbers.vector(width, 1.0, 0.2);
        if let Some((heads, kv_heads)) = edge.heads {
            // Equal over the query heads of a value head.
            let (dim, shared) = (width / heads, heads / kv_heads);
            let of = |i: usize| factors[i / dim / shared * shared * dim + i % dim];
            factors = (0..width).map(of).collect();
        }
        scaled.insert(edge.to, factors);
    }
    let mut after = before.clone();
    quant_methods::scale_weights(&mut after, &block, &scaled).unwrap();
    // What v and up lose per row, o and down gain per column.
    let product = |params: &BlockParams, from, to| values(params, to).dot(&values(params, from));
    let factor = &scaled[&Site::MlpInput];
    let (up, down) = (values(&before, LinearId::UP), values(&before, LinearId::DOWN));
    let expected = down.dot(&(&up * factor));
    let found = product(&after, LinearId::UP, LinearId::DOWN);
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-4 * (1.0 + b.abs())));
    scaled.insert(Site::MlpInput, numbers.vector(3, 1.0, 0.2));
    assert!(quant_methods::scale_weights(&mut after, &block, &scaled).is_err());
}
