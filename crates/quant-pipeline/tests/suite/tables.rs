//! Embedding and head: quantised by an override with exactly their name, some rows at a time, and by what can be known there.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ndarray::{Array1, Array2, ArrayView2, Axis};
use quant_data::TokenSet;
use quant_graph::{BlockParams, ModelSpec, Outer};
use quant_kernels::{Compute, Par};
use quant_methods::{Batch, Gathered, Prepared, SiteStatistics, Statistic};
use quant_model::{InMemoryModel, StreamedModel, model_spec};
use quant_pipeline::run::{BlockSink, RunOptions, run};
use quant_pipeline::{PipelineError, Plan, Recipe, RunReport, Silent, with_threads};
use quant_testkit::{Numbers, random_block};
use serde_json::json;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Tables of several pieces: a piece of a model in memory has 32 768 rows of 32 columns.
const VOCAB: usize = 70_000;
const HIDDEN: usize = 32;

#[derive(Default)]
struct Collect {
    blocks: Vec<BlockParams>,
    outer: BTreeMap<Outer, Array2<f32>>,
    pieces: usize,
}

impl BlockSink for Collect {
    fn block(&mut self, _: usize, block: BlockParams) -> Result<(), PipelineError> {
        self.blocks.push(block);
        Ok(())
    }
    fn outer_rows(
        &mut self,
        what: Outer,
        first: usize,
        rows: ArrayView2<'_, f32>,
    ) -> Result<(), PipelineError> {
        let part = self.outer.entry(what).or_insert_with(|| Array2::zeros((0, rows.ncols())));
        assert_eq!(part.nrows(), first, "rows come in order");
        part.append(Axis(0), rows).unwrap();
        self.pieces += 1;
        Ok(())
    }
}

struct Parts {
    spec: ModelSpec,
    blocks: Vec<BlockParams>,
    embedding: Array2<f32>,
    norm: Array1<f32>,
    head: Option<Array2<f32>>,
}

impl Parts {
    fn new(tied: bool) -> Self {
        let config = json!({
            "architectures": ["Qwen2ForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCAB, "tie_word_embeddings": tied, "dtype": "bfloat16",
        });
        let spec = model_spec(&config).unwrap();
        let mut numbers = Numbers::new(11);
        let blocks = (0..spec.layers).map(|_| random_block(&spec, &mut numbers)).collect();
        let embedding = numbers.matrix(VOCAB, HIDDEN, 1.0);
        let head = (!tied).then(|| numbers.matrix(VOCAB, HIDDEN, 1.0));
        Self { spec, blocks, embedding, norm: numbers.vector(HIDDEN, 1.0, 0.2), head }
    }
    fn model(self) -> InMemoryModel {
        InMemoryModel::new(self.spec, self.blocks, self.embedding, self.norm, self.head).unwrap()
    }
}

fn tokens() -> TokenSet {
    let row = |s: u32| (0..40).map(|t| (t * 7919 + s * 1301) % VOCAB as u32).collect();
    TokenSet::from_sequences((0..6).map(row).collect(), "rows")
}

fn plan(spec: &ModelSpec, modifier: &str, overrides: &str) -> Result<Plan, PipelineError> {
    let recipe = format!("version: 1\nmodifiers: [{modifier}]\noverrides: {{ {overrides} }}\n");
    Plan::new(&Recipe::parse(&recipe).unwrap_or_else(|e| panic!("{e}")), spec)
}

fn quantise(plan: &Plan, source: &mut InMemoryModel, threads: usize) -> (Collect, RunReport) {
    let mut sink = Collect::default();
    let report = with_threads(threads, |par| {
        let options = RunOptions::new(par);
        run(plan, source, Some(&tokens()), &mut sink, &mut Silent, &options)
    });
    let report = report.unwrap().unwrap_or_else(|e| panic!("{e}"));
    (sink, report)
}

/// A rounded table is what the solver makes of the whole of it; where it needs statistics, of those of the final hidden states
/// of the model as it is deployed: rounded blocks on rounded embeddings.
#[test]
fn tables_are_what_they_are_when_rounded_whole() {
    let parts = || Parts::new(false);
    let (embedding, head, spec) = (parts().embedding, parts().head.unwrap(), parts().spec);
    let overrides = "lm_head: { scheme: W4A16, actorder: static }, model.embed_tokens: { rtn: { scheme: W3A16g8, symmetric: false } }";
    let plan = plan(&spec, "gptq: { scheme: W3A16g16 }", overrides).unwrap();
    let (sink, report) = quantise(&plan, &mut parts().model(), 2);
    // Three pieces of each table, and the norm.
    assert_eq!(sink.pieces, 7);
    let solver = |what: Outer| &*plan.tables[&what].solver;
    let whole =
        solver(Outer::Embedding).round(embedding.view(), &Prepared::default(), Par::Seq.into()).unwrap();
    let bits = whole.weight.bits_per_weight(plan.norm_type);
    let rounded = whole.weight.into_values();
    assert_eq!(sink.outer[&Outer::Embedding], rounded);
    assert_ne!(rounded, embedding);
    assert_eq!(sink.outer[&Outer::FinalNorm].row(0), parts().norm);

    let deployed = Parts { blocks: sink.blocks.clone(), embedding: rounded, ..parts() }.model();
    let mut deployed = StreamedModel::new(deployed, Compute::F32, Par::Seq);
    let sequences = tokens().sequences;
    deployed.encode(&sequences, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let mut states = Array2::zeros((0, HIDDEN));
    for sequence in 0..sequences.len() {
        states.append(Axis(0), deployed.hidden(sequence).unwrap().view()).unwrap();
    }
    let mut seen =
        SiteStatistics { deployed: Gathered::new(&[Statistic::Gram], HIDDEN, &[0]), ..Default::default() };
    seen.deployed.add(&Batch::new(states.view(), sequences.len()), Compute::F32, Par::Seq).unwrap();
    let prepared = solver(Outer::Head).prepare(&mut seen, VOCAB, Par::Seq.into()).unwrap();
    let whole = solver(Outer::Head).round(head.view(), &prepared, Par::Seq.into()).unwrap();
    let values = whole.weight.clone().into_values();
    assert_eq!(sink.outer[&Outer::Head], values);
    let nearest = plan.tables[&Outer::Head].grid;
    let nearest = quant_methods::rtn::Rtn { grid: nearest, group: None, clip: None };
    let nearest = quant_methods::rtn::round(&nearest, head.view(), Par::Seq).unwrap().dequantize();
    assert_ne!(values, nearest, "the Gram matrix has no effect");

    // What the report says of them.
    let of = |what: Outer| report.linears.iter().find(|l| l.module == what.module()).unwrap();
    let (e, h) = (of(Outer::Embedding), of(Outer::Head));
    assert_eq!((e.block, e.method.as_deref(), e.scheme.as_str()), (None, Some("rtn"), "W3A16g8"));
    assert_eq!((h.block, h.method.as_deref(), h.scheme.as_str()), (None, Some("gptq"), "W4A16"));
    assert_eq!((e.bits_per_weight, e.output_error, e.loss), (bits, None, None));
    assert_eq!(h.bits_per_weight, whole.weight.bits_per_weight(plan.norm_type));
    let norm = |m: &Array2<f32>| m.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
    let error = (norm(&(&values - &head)) / norm(&head)).sqrt();
    assert!((h.weight_error / error - 1.0).abs() < 1e-5, "{} and {error}", h.weight_error);
    assert!((h.loss.unwrap() / whole.loss.unwrap() - 1.0).abs() < 1e-9);
    // 240 tokens, every second is sampled.
    let sample = states.slice(ndarray::s![..;2, ..]);
    let error = (norm(&sample.dot(&(&values - &head).t())) / norm(&sample.dot(&head.t()))).sqrt();
    assert!((h.output_error.unwrap() / error - 1.0).abs() < 1e-3, "{h:?} and {error}");
    let factor = report.factors.last().unwrap();
    assert_eq!((factor.block, factor.module.as_str()), (None, "lm_head"));

    let (other, again) = quantise(&plan, &mut parts().model(), 3);
    assert!(other.outer == sink.outer && other.blocks == sink.blocks);
    assert_eq!(again.linears.last().unwrap().loss, h.loss);
}

/// Where nothing needs data none is asked for, blocks are rounded by rows, and tables come behind them.
#[test]
fn rounding_a_table_to_nearest_needs_no_data() {
    let parts = Parts::new(false);
    let head = parts.head.clone().unwrap();
    let plan = plan(&parts.spec, "rtn: { scheme: W4A8 }", "lm_head: { scheme: W8A16 }").unwrap();
    assert!(!plan.streams.calibration());
    let mut sink = Collect::default();
    let options = RunOptions::new(Par::Seq);
    run(&plan, &mut parts.model(), None, &mut sink, &mut Silent, &options).unwrap();
    let whole =
        plan.tables[&Outer::Head].solver.round(head.view(), &Prepared::default(), Par::Seq.into()).unwrap();
    assert_eq!(sink.outer[&Outer::Head], whole.weight.into_values());
    assert_eq!(sink.outer[&Outer::Embedding], Parts::new(false).embedding);
}

/// A tied head is taken from the embedding, and only what is named is rounded.
#[test]
fn a_tied_head_is_taken_apart_only_where_one_is_named() {
    let parts = || Parts::new(true);
    let (spec, table) = (parts().spec, parts().embedding);
    let rtn = "rtn: { scheme: W4A16 }";
    let kept = plan(&spec, rtn, "\"*\": { scheme: W3A16 }").unwrap();
    assert!(kept.stored.tied && kept.tables.is_empty());
    assert!(!kept.warnings.iter().any(|w| w.contains("unties")), "{:?}", kept.warnings);
    for what in Outer::TABLES {
        let plan = plan(&spec, rtn, &format!("{}: {{ scheme: W8A16 }}", what.module())).unwrap();
        assert!(!plan.stored.tied && plan.spec.tied);
        // f32 where it is rounded, in the model's bfloat16 otherwise.
        let bytes = VOCAB * HIDDEN * if what == Outer::Head { 4 } else { 2 };
        let notice = plan.warnings.iter().find(|w| w.contains("unties")).unwrap();
        for word in
            [what.module(), "lm_head.weight", "tie_word_embeddings: false", &format!("({bytes} bytes)")]
        {
            assert!(notice.contains(word), "no {word} in {notice}");
        }
        let (sink, _) = quantise(&plan, &mut parts().model(), 1);
        for other in Outer::TABLES {
            assert_eq!(sink.outer[&other] == table, other != what, "{other:?} beside {what:?}");
        }
    }
    // Nothing is rounded to 16 bits, so nothing is taken apart.
    let plan = plan(&spec, rtn, "lm_head: { scheme: W16A16 }").unwrap();
    assert!(plan.stored.tied && plan.tables.is_empty());
}

#[test]
fn what_cannot_be_rounded_is_refused_with_what_can() {
    let spec = Parts::new(false).spec;
    let (rtn, gptq) = ("{ rtn: { scheme: W8A16 } }", "{ gptq: { scheme: W8A16 } }");
    for (modifier, overrides, words) in [
        ("gptq: { scheme: W8A16 }", "model.embed_tokens: {}", &["the embedding is not multiplied", rtn][..]),
        ("rtn: { scheme: W8A16 }", "model.embed_tokens: { gptaq: {} }", &["gptaq looks at what", rtn]),
        (
            "qronos: { scheme: W8A16 }",
            "lm_head: {}",
            &["qronos", "activations of the float model", rtn, gptq],
        ),
        ("rtn: { scheme: W8A16 }", "lm_head: { gptaq: {} }", &["gptaq", "activations of the float model"]),
        ("awq: { scheme: W8A16 }", "lm_head: {}", &["awq", "activations of the float model"]),
        (
            "rtn: { scheme: W8A16 }",
            "lm_head: { billm: {} }",
            &["billm looks at a whole weight", "{ rtn: {", "{ gptq: {"],
        ),
        (
            "slim-llm: { scheme: W4A16g16 }",
            "lm_head: {}",
            &[
                "slim-llm looks at a whole weight",
                "{ rtn: { scheme: W4A16g16 } }",
                "{ gptq: { scheme: W4A16g16 } }",
            ],
        ),
        ("rtn: { scheme: W8A8 }", "lm_head: {}", &["the scheme is W8A8", "stay floats", "scheme: W8A16"]),
        (
            "rtn: { scheme: W4A8KV8g16 }",
            "model.embed_tokens: {}",
            &["W4A8KV8g16", "no activations", "scheme: W4A16g16"],
        ),
        (
            "rtn: { scheme: W4A16 }",
            "lm_*: { scheme: W8A16 }",
            &["matches no linear", "only where the key is lm_head"],
        ),
        (
            "rtn: { scheme: W4A16 }",
            "\"*embed*\": { scheme: W8A16 }",
            &["only where the key is model.embed_tokens"],
        ),
    ] {
        let text = plan(&spec, modifier, overrides).unwrap_err().to_string();
        assert!(words.iter().all(|w| text.contains(w)), "{words:?} in {text}");
        assert!(text.contains("line 3"), "{text}");
    }
    let embedding = plan(&spec, "gptq: { scheme: W8A16 }", "model.embed_tokens: {}").unwrap_err().to_string();
    assert!(!embedding.contains("{ gptq"), "{embedding}");
    // The same without the clip search is round to nearest, and the deployed stream is enough.
    let fine =
        [("awq: { scheme: W8A16 }", "lm_head: { clip: false }"), ("gptq: { scheme: W8A16 }", "lm_head: {}")];
    for (modifier, overrides) in fine {
        assert_eq!(plan(&spec, modifier, overrides).unwrap().tables.len(), 1, "{modifier}");
    }
    for module in ["lm_head", "model.embed_tokens"] {
        let text = format!(
            "version: 1\nmodifiers: [rtn: {{ scheme: W8A16 }}]\noverrides: {{ {module}: {{}} }}\nignore: [a, {module}]\n"
        );
        let refused = Recipe::parse(&text).unwrap_err().to_string();
        assert!(refused.contains(&format!("ignore leaves {module} in float")), "{refused}");
    }
}

/// Errors name the row of the table, not of the piece it was in.
#[test]
fn a_number_that_is_not_finite_is_named_by_its_row() {
    let mut parts = Parts::new(false);
    let plan = plan(&parts.spec, "rtn: { scheme: W4A16 }", "lm_head: { scheme: W8A16 }").unwrap();
    parts.head.as_mut().unwrap()[[40_000, 7]] = f32::NAN;
    let options = RunOptions::new(Par::Seq);
    let run = run(&plan, &mut parts.model(), None, &mut Collect::default(), &mut Silent, &options);
    let text = run.unwrap_err().to_string();
    assert!(text.contains("lm_head") && text.contains("40000") && text.contains('7'), "{text}");
}
