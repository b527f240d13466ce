//! FlatQuant as a recipe: what it keeps, what it learns, what it refuses, and that a broken run goes on as if nothing was.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use crate::common::{distance, logits, model, spec, tokens};
use quant_checkpoint::{Target, judge_plan};
use quant_core::{ActQuant, AxisShape, ClipRatio, FloatType, OnlineShape};
use quant_data::TokenSet;
use quant_graph::{BlockParams, BlockSource, Clipping, LinearId, ModelSpec, Norm, Site};
use quant_kernels::Par;
use quant_model::{InMemoryModel, model_spec};
use quant_pipeline::run::{MemorySink, RunOptions, run};
use quant_pipeline::{PipelineError, Plan, Recipe, RunReport, Silent};
use serde_json::json;

pub(crate) const ROWS: usize = 5;

pub(crate) fn recipe(flatquant: &str, rest: &str) -> Recipe {
    let text = format!("version: 1\nmodifiers: [flatquant: {{ {flatquant} }}]\n{rest}\n");
    Recipe::parse(&text).unwrap_or_else(|e| panic!("{e}"))
}

pub(crate) fn plan(flatquant: &str, rest: &str, model: &InMemoryModel) -> Plan {
    Plan::new(&recipe(flatquant, rest), model.spec()).unwrap_or_else(|e| panic!("{e}"))
}

fn run_with(
    plan: &Plan,
    model: &InMemoryModel,
    sink: &mut MemorySink,
    par: Par,
) -> Result<RunReport, PipelineError> {
    let rows = TokenSet::from_sequences(tokens(ROWS), "rows");
    run(plan, &mut model.clone(), Some(&rows), sink, &mut Silent, &RunOptions::new(par))
}

pub(crate) fn quantised(plan: &Plan, model: &InMemoryModel, par: Par) -> (InMemoryModel, RunReport) {
    let mut sink = MemorySink::default();
    let report = run_with(plan, model, &mut sink, par).unwrap();
    (sink.into_model(plan.stored.clone()).unwrap(), report)
}

pub(crate) fn blocks(model: &InMemoryModel) -> Vec<BlockParams> {
    let mut model = model.clone();
    (0..model.spec().layers).map(|index| model.block(index).unwrap()).collect()
}

pub(crate) const SHORT: &str = "epochs: 3, batch_size: 2";

/// At 16 bits of weights and 8 of everything else little is lost, whatever the family; without any quantiser of linears the
/// transforms of the cache alone are there.
#[test]
fn every_family_computes_what_it_did() {
    for family in ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Phi3ForCausalLM"] {
        let float = model(&spec(family, false));
        let expected = logits(float.clone(), ROWS);
        for (scheme, sites, limit) in [("W16A8KV8", 4, 0.03), ("W16A16KV8", 1, 0.02), ("W16A8", 4, 0.03)] {
            let plan = plan(&format!("scheme: {scheme}, {SHORT}"), "", &float);
            assert_eq!(plan.scheme.online[1].sites.len(), sites, "{family} {scheme}");
            assert_eq!(plan.scheme.online[1].pair.is_some(), scheme.contains("KV"), "{family} {scheme}");
            let (found, report) = quantised(&plan, &float, Par::Seq);
            for (block, params) in blocks(&found).into_iter().enumerate() {
                assert_eq!(params.online.scheme().unwrap(), plan.scheme.online[block]);
            }
            let distance = distance(&logits(found, ROWS), &expected);
            assert!(distance < limit, "{family} {scheme}: {distance}");
            assert_eq!(report.lessons.len(), 2);
            for lesson in report.lessons.iter().map(|l| &l.lesson) {
                assert!(
                    lesson.after <= lesson.before && lesson.epochs.len() == 3 && lesson.losses.len() == 6
                );
            }
        }
    }
}

/// Training and what is rounded behind it have the same bits on any number of threads, in every variant.
#[test]
fn same_bytes_on_any_number_of_threads() {
    let float = model(&spec("Qwen2ForCausalLM", false));
    for (keys, rest) in [
        ("", ""),
        ("variant: exact, parametrisation: svd, share_inputs: false", "activations: { symmetric: true }"),
        ("inputs: quantised, weights: gptq, warmup: true", "activations: { in_calibration: true }"),
        ("lac: false, lwc: false, diag: false, window: 2", ""),
    ] {
        let plan = plan(&format!("scheme: W4A4KV4, {SHORT}, {keys}"), rest, &float);
        let learned = !keys.contains("lac: false");
        let clipping = if learned { Clipping::Learned } else { Clipping::NONE };
        assert_eq!(plan.scheme.kv.unwrap().clip_ratio, clipping, "{keys}");
        let [one, two] = [1, 3].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            blocks(&pool.install(|| quantised(&plan, &float, Par::new(threads))).0)
        });
        assert!(one == two, "{keys}");
    }
}

/// A block with learned transforms is nearer to the float one than a block with those that training begins with.
#[test]
fn training_helps() {
    let float = model(&spec("Qwen2ForCausalLM", false));
    let expected = logits(float.clone(), ROWS);
    let at = |epochs: usize| {
        let plan = plan(&format!("scheme: W4A4KV4, batch_size: 2, epochs: {epochs}"), "", &float);
        let (found, report) = quantised(&plan, &float, Par::Seq);
        (distance(&logits(found, ROWS), &expected), report.lessons[0].lesson.after)
    };
    let (before, after) = (at(0), at(12));
    assert!(after.0 < 0.95 * before.0 && after.1 < 0.9 * before.1, "{before:?} {after:?}");
}

const ASCEND: &str = "export: { format: vllm-ascend }";

/// For a kernel that multiplies by Kronecker pairs alone every input has one, in the type of the model (bfloat16, for one in float32),
/// with one clip ratio; what has no pair that it takes is left alone. 80 features would have 8 x 10.
#[test]
fn pairs_for_a_kernel() {
    let float = model(&spec("Qwen2ForCausalLM", false));
    let expected = logits(float.clone(), ROWS);
    for (keys, rest, down, sites) in [
        ("scheme: W4A4, unpaired: w8a8", ASCEND, "W8A8", 3),
        ("scheme: W4A4KV8, unpaired: w4a4, lac: false, weights: gptq", ASCEND, "W4A4", 3),
        ("scheme: W4A4KV4, transforms: pairs", "activations: { symmetric: true }", "W4A4", 4),
    ] {
        let plan = plan(&format!("{keys}, {SHORT}"), rest, &float);
        let (lac, simulated) = (!keys.contains("lac: false"), rest != ASCEND);
        let online = &plan.scheme.online[1];
        assert_eq!((online.sites.len(), online.pair.is_some()), (sites, simulated), "{keys}");
        for (site, shape) in &online.sites {
            let sides = if *site == Site::MlpActivation { [8, 10] } else { [6, 8] };
            assert_eq!(*shape, OnlineShape::new(sides.map(AxisShape::Dense)), "{keys}, {site:?}");
        }
        for (id, linear) in &plan.scheme.blocks[1] {
            let (weight, input) = (linear.weight.unwrap(), linear.input.unwrap());
            let own = if *id == LinearId::DOWN { down } else { "W4A4" };
            assert_eq!(format!("W{}A{}", weight.bits.get(), input.bits.get()), own, "{keys}, {id}");
            let tied = lac && online.sites.contains_key(&id.site());
            assert_eq!(input.clip_ratio, if tied { Clipping::Tied } else { Clipping::NONE }, "{keys}, {id}");
        }
        let told =
            plan.warnings.iter().any(|w| w.contains("in 2 blocks mlp.down_proj") && w.contains("8 x 10"));
        assert_eq!(told, !simulated, "{keys}: {:?}", plan.warnings);
        let (found, report) = quantised(&plan, &float, Par::Seq);
        for block in blocks(&found) {
            assert_eq!(block.online.scheme().as_ref(), Some(online), "{keys}");
            let pairs = block.online.sites.values().flat_map(|pair| pair.matrices()).flatten();
            let gains = [Norm::Input, Norm::PostAttention].map(|norm| &block.norms[&norm]);
            let held: Vec<f32> = pairs.copied().chain(gains.into_iter().flatten().copied()).collect();
            assert!(held.iter().all(|v| FloatType::Bf16.round(*v) == *v), "{keys}");
            let ratio = |id: LinearId| match block.linears[&id].input {
                Some(ActQuant::Dynamic { clip_ratio, .. }) => clip_ratio,
                other => panic!("{other:?}"),
            };
            assert!(block.linears.keys().all(|id| ratio(*id).upper == ratio(*id).lower), "{keys}");
            assert_eq!(ratio(LinearId::Q), ratio(LinearId::V));
            assert_eq!(ratio(LinearId::Q) == ClipRatio::NONE, !lac);
            assert_eq!(block.kv.is_some(), keys.contains("KV"));
        }
        let other = blocks(&quantised(&plan, &float, Par::new(3)).0);
        assert!(other == blocks(&found), "{keys}: threads change nothing");
        for lesson in report.lessons.iter().map(|l| &l.lesson) {
            assert!(lesson.after <= lesson.before && lesson.losses.len() == 6, "{keys}");
        }
        let distance = distance(&logits(found, ROWS), &expected);
        assert!(distance < 0.5, "{keys}: {distance}");
    }
}

/// Which inputs have pairs does not depend on which comes first: here q, k and v, gate and up have none (4 x 10), o and down have.
#[test]
fn the_first_inputs_may_be_without_pairs() {
    let spec = ModelSpec { hidden: 40, intermediate: 64, ..spec("Qwen2ForCausalLM", false) };
    let float = model(&spec);
    for (unpaired, bits) in [("w4a4", 4), ("w8a8", 8)] {
        let plan = plan(&format!("scheme: W4A4, unpaired: {unpaired}, {SHORT}"), ASCEND, &float);
        let sites: Vec<Site> = plan.scheme.online[0].sites.keys().copied().collect();
        assert_eq!(sites, [Site::AttentionOutput, Site::MlpActivation]);
        let scheme = &plan.scheme.blocks[0];
        let found = [LinearId::Q, LinearId::O].map(|id| scheme[&id].weight.unwrap().bits.get());
        assert_eq!(found, [bits, 4]);
        for block in blocks(&quantised(&plan, &float, Par::Seq).0) {
            assert_eq!(block.online.scheme().as_ref(), Some(&plan.scheme.online[0]));
        }
    }
}

/// What the kernel does not do is the format's refusal (exit code 3), and names the key to change.
#[test]
fn what_a_kernel_does_not_do_is_refused() {
    let float = spec("Qwen2ForCausalLM", false);
    for (keys, rest, words) in [
        ("scheme: W4A4", "", &["8 x 10", "mlp_activation", "unpaired: w8a8"][..]),
        ("scheme: W4A4, unpaired: w4a4, share_inputs: false", "", &["share_inputs: true", "lac: false"]),
        ("scheme: W4A4, transforms: free", "", &["of each end", "transforms: auto"]),
        ("scheme: W4A4, transforms: free, lac: false", "", &["attention_output", "transforms: auto"]),
        ("scheme: W4A4KV4, unpaired: w4a4", "", &["4 bits", "KV8"]),
        ("scheme: W4A4KV8, unpaired: w4a4", "kv_cache: { granularity: token_head }", &["channel_static"]),
        ("scheme: W4A4, unpaired: w4a4", "activations: { symmetric: false }", &["symmetric: true"]),
        ("scheme: W8A8", "", &["transform", "dequantized"]),
    ] {
        let error = Plan::new(&recipe(keys, &format!("{rest}\n{ASCEND}")), &float).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, PipelineError::Unsupported(_)), "{keys}: {text}");
        assert!(words.iter().all(|word| text.contains(word)), "{keys}: {text}");
    }
    let fits = "overrides: { \"*.down_proj\": { scheme: W8A8 } }";
    for (keys, rest) in [
        ("scheme: W4A4, share_inputs: false, lac: false, unpaired: w4a4", ""),
        // Given eight bits, floats or no bits at all, down needs no pair.
        ("scheme: W4A4", fits),
        ("scheme: W4A4", "ignore: [lm_head, \"*.down_proj\"]"),
    ] {
        let plan = Plan::new(&recipe(keys, &format!("{rest}\n{ASCEND}")), &float).unwrap();
        assert_eq!(plan.scheme.online[0].sites.len(), 3, "{keys} {rest}");
    }
    for (modifiers, rest, words) in [
        ("flatquant: { unpaired: w8a8 }, rtn: { scheme: W4A4 }", ASCEND, "by an override"),
        ("flatquant: { scheme: W4A4, transforms: pairs }", "", "symmetric: true"),
        (
            "flatquant: { scheme: W4A4 }",
            "overrides: { \"*.v_proj\": { scheme: W8A8 } }\nexport: { format: vllm-ascend }",
            "all linears of an input",
        ),
    ] {
        let text = format!("version: 1\nmodifiers: [{modifiers}]\n{rest}\n");
        let error = Recipe::parse(&text).map_err(PipelineError::from).and_then(|r| Plan::new(&r, &float));
        let told = error.map(|_| panic!("{text}")).unwrap_err();
        let told = format!(
            "{told}: {}",
            std::error::Error::source(&told).map_or(String::new(), ToString::to_string)
        );
        assert!(told.contains(words), "{modifiers}: {told}");
    }
}

/// Refused before a weight is read, each with what to do.
#[test]
fn what_cannot_be_learned_is_refused() {
    let float = spec("Qwen2ForCausalLM", false);
    for (modifiers, rest, words) in [
        ("flatquant: { scheme: W4A4g16 }", "", &["no group"][..]),
        ("flatquant: { scheme: W1A4 }", "", &["one-bit"]),
        ("flatquant: { scheme: W4A4 }", "activations: { dynamic: false }", &["dynamic: true"]),
        ("flatquant: { scheme: W4A4 }", "activations: { clip_ratio: 0.9 }", &["clip_ratio: 1.0"]),
        ("flatquant: { scheme: W4A4KV4 }", "kv_cache: { clip_ratio: 0.9 }", &["clip_ratio: 1.0"]),
        ("flatquant: { scheme: W4A4KV4 }", "kv_cache: { before_rope: true }", &["before_rope: false"]),
        ("flatquant: { scheme: W4A4KV4 }", "kv_cache: { granularity: channel_static }", &["token_head"]),
        ("flatquant: { scheme: W4A4 }", "ignore: [lm_head, \"*.down_proj\"]", &["whole blocks", "down_proj"]),
        (
            "flatquant: { scheme: W4A4 }",
            "overrides: { \"*.v_proj\": { scheme: W8A8 } }",
            &["whole blocks", "v_proj"],
        ),
        ("smoothquant: {}, flatquant: { scheme: W4A4 }", "", &["drop the other modifiers before it"]),
        ("quarot: {}, flatquant: { scheme: W4A4 }", "", &["rotations: [r1, r2]", "cross_head: \"off\""]),
        ("flatquant: { scheme: W4A4 }, rtn: { scheme: W4A4 }", "", &["two rounding modifiers"]),
        ("flatquant: {}, awq: { scheme: W4A16 }", "", &["between"]),
        ("flatquant: {}", "", &["no rounding modifier"]),
        ("flatquant: { weights: gptq }, rtn: { scheme: W4A4 }", "", &["weights", "rounding after it"]),
        ("flatquant: { scheme: W4A4, epoch: 3 }", "", &["epochs"]),
        ("flatquant: { scheme: W4A4, variant: published }", "", &["stable", "exact", "official"]),
        (
            "flatquant: { scheme: W4A4, variant: official, unpaired: w4a4 }",
            "export: { format: vllm-ascend }",
            &["official", "pairs alone"],
        ),
        ("rtn: { scheme: W4A4 }", "overrides: { \"*.v_proj\": { flatquant: {} } }", &["whole blocks"]),
        ("flatquant: { scheme: W8A8 }", "export: { format: vllm-ascend }", &["vllm-ascend", "dequantized"]),
        ("flatquant: { scheme: W8A8 }", "export: { format: compressed-tensors }", &["export to dequantized"]),
    ] {
        let text = format!("version: 1\nmodifiers: [{modifiers}]\n{rest}\n");
        let error = Recipe::parse(&text).map_err(PipelineError::from).and_then(|r| Plan::new(&r, &float));
        let error = error.map(|_| panic!("{text}")).unwrap_err();
        let told = format!(
            "{error}: {}",
            std::error::Error::source(&error).map_or(String::new(), ToString::to_string)
        );
        assert!(words.iter().all(|word| told.contains(word)), "{text}: {told}");
    }
    // 46 features have no Kronecker pair.
    let odd = model_spec(&json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 46, "intermediate_size": 80, "num_hidden_layers": 1,
        "num_attention_heads": 1, "vocab_size": 64,
    }));
    let error = Plan::new(&recipe("scheme: W4A4", ""), &odd.unwrap()).unwrap_err().to_string();
    assert!(error.contains("46"), "{error}");
}

/// Whole blocks can be left alone or quantised otherwise.
#[test]
fn blocks_may_differ() {
    let float = model(&spec("Qwen2ForCausalLM", false));
    let rest = "ignore: [lm_head, \"model.layers.0.*\"]\n";
    let plan_of = |rest| plan(&format!("scheme: W4A4KV4, {SHORT}"), rest, &float);
    let ignoring = plan_of(rest);
    assert_eq!(ignoring.learned, [false, true]);
    let (found, report) = quantised(&ignoring, &float, Par::Seq);
    let found = blocks(&found);
    assert_eq!(
        (report.lessons.len(), found[0].online.is_empty(), found[1].online.is_empty()),
        (1, true, false)
    );
    let as_read = blocks(&float);
    assert!(found[0].linears == as_read[0].linears && found[0].kv.is_some());
    let wider = plan_of("overrides: { \"model.layers.1.*\": { scheme: W8A8 } }");
    let (_, report) = quantised(&wider, &float, Par::Seq);
    assert_eq!(report.lessons.len(), 2);
    assert!(report.lessons[1].lesson.after < report.lessons[0].lesson.after);
}

/// Too few sequences for a step are an error before anything is trained, and sequences left over are a notice.
#[test]
fn sequences_make_batches() {
    let float = model(&spec("Qwen2ForCausalLM", false));
    let plan_of = |batch| plan(&format!("scheme: W4A4, epochs: 1, batch_size: {batch}"), "", &float);
    let error = run_with(&plan_of(6), &float, &mut MemorySink::default(), Par::Seq).unwrap_err();
    let told =
        format!("{error}: {}", std::error::Error::source(&error).map_or(String::new(), ToString::to_string));
    assert!(told.contains("5 calibration sequences make no batch of 6"), "{told}");
    let (_, report) = quantised(&plan_of(2), &float, Par::Seq);
    let notices: Vec<_> = report.lessons.iter().filter_map(|block| block.lesson.notice.as_deref()).collect();
    assert!(!notices.is_empty(), "{report:?}");
    assert!(
        notices.iter().all(|notice| notice.contains("1 calibration sequences at the end")),
        "{notices:?}"
    );
}

/// For a deployment on several devices each part of what enters o and down has the pair of a part, which is the same for all, and scales
/// of its own; nothing else changes, and the folder loads on that many devices alone.
#[test]
fn pairs_of_a_part() {
    let wide =
        ModelSpec { hidden: 64, heads: 4, kv_heads: 2, head_dim: 16, ..spec("Qwen2ForCausalLM", false) };
    let wide = ModelSpec { intermediate: 128, ..wide };
    let float = model(&wide);
    let expected = logits(float.clone(), ROWS);
    for (tp, output, down) in [(1, [8, 8], [8, 16]), (2, [4, 8], [8, 8])] {
        let plan = plan(&format!("scheme: W4A4, tp: {tp}, {SHORT}"), ASCEND, &float);
        let pair = |shards, sides: [usize; 2]| OnlineShape {
            shards,
            ..OnlineShape::new(sides.map(AxisShape::Dense))
        };
        let sites = &plan.scheme.online[1].sites;
        assert_eq!(sites[&Site::AttentionOutput], pair(tp, output));
        assert_eq!(sites[&Site::MlpActivation], pair(tp, down));
        assert_eq!(sites[&Site::MlpInput], pair(1, [8, 8]));
        for (id, linear) in &plan.scheme.blocks[0] {
            let cut = [LinearId::O, LinearId::DOWN].contains(id);
            assert_eq!(linear.input.unwrap().shards, if cut { tp } else { 1 }, "{id}");
        }
        let verdicts = judge_plan(&plan.spec, &plan.scheme, plan.recipe.format());
        let ascend = verdicts.iter().find(|verdict| verdict.target == Target::VllmAscend).unwrap();
        assert_eq!(ascend.tensor_parallel, [tp], "{ascend}");
        let (found, report) = quantised(&plan, &float, Par::Seq);
        for block in blocks(&found) {
            assert_eq!(block.online.scheme().as_ref(), Some(&plan.scheme.online[1]));
            match block.linears[&LinearId::DOWN].input {
                Some(ActQuant::Dynamic { shards, .. }) => assert_eq!(shards, tp),
                other => panic!("{other:?}"),
            }
        }
        assert!(report.lessons.iter().all(|l| l.lesson.after <= l.lesson.before));
        let distance = distance(&logits(found, ROWS), &expected);
        assert!(distance < 0.5, "{tp}: {distance}");
    }
    for (keys, rest, words) in [
        ("scheme: W4A4, tp: 3", ASCEND, "equal parts of 4 heads"),
        ("scheme: W4A4, tp: 2", "", "transforms: pairs"),
        ("scheme: W4A4, tp: 2, transforms: free", ASCEND, "transforms: pairs"),
        ("scheme: W8A8, tp: 2", "", "transforms: pairs"),
        // 4 x 4: the kernel wants a right side in multiples of 8.
        ("scheme: W4A4, tp: 4", ASCEND, "4 x 4"),
    ] {
        let told = Plan::new(&recipe(keys, rest), &wide).unwrap_err().to_string();
        assert!(told.contains(words), "{keys}: {told}");
    }
    let unpaired = plan(&format!("scheme: W4A4, tp: 4, unpaired: w4a4, {SHORT}"), ASCEND, &float);
    assert!(!unpaired.scheme.online[0].sites.contains_key(&Site::AttentionOutput));
    assert_eq!(unpaired.scheme.blocks[0][&LinearId::O].input.unwrap().shards, 1);
}
