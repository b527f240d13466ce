//! Analyses of small models in memory, against the same quantities found another way.

use super::pass::{Pass, Quantised};
use super::report::{BlockAnalysis, ranking};
use super::{KEY_POSITIONS, Observed, Place};
use crate::layout::Layout;
use crate::run::{MemorySink, RunOptions, run};
use crate::streams::{Heads, score};
use crate::{Plan, Recipe, Scored, Silent, with_threads};
use quant_data::TokenSet;
use quant_eval::{EvalOptions, EvalReport};
use quant_graph::{BlockParams, BlockSource, LinearWeight, Norm, Role};
use quant_kernels::{Compute, Par};
use quant_model::{InMemoryModel, model_spec};
use quant_testkit::{Numbers, random_block};
use std::path::Path;

/// Where the block with outliers is.
const BAD: usize = 2;

/// Four small random blocks. In one of them an input of gate and up is 64 times smaller behind the norm and its weights as much
/// larger: the function is the same, and the weights are hard to round.
fn model() -> InMemoryModel {
    let spec = model_spec(&serde_json::json!({
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 16384,
    }))
    .unwrap();
    let mut numbers = Numbers::new(11);
    let mut blocks: Vec<BlockParams> = (0..spec.layers).map(|_| random_block(&spec, &mut numbers)).collect();
    blocks[BAD].norms.get_mut(&Norm::PostAttention).unwrap()[5] /= 64.0;
    for (id, linear) in &mut blocks[BAD].linears {
        if let LinearWeight::Float(weight) = &mut linear.weight
            && spec
                .block(BAD)
                .linear(*id)
                .unwrap()
                .parts
                .iter()
                .any(|(r, _)| matches!(r, Role::Gate | Role::Up))
        {
            weight.column_mut(5).mapv_inplace(|w| 64.0 * w);
        }
    }
    let (embedding, head) = (numbers.matrix(64, 32, 1.0), numbers.matrix(64, 32, 1.0));
    let norm = numbers.vector(32, 1.0, 0.2);
    InMemoryModel::new(spec, blocks, embedding, norm, Some(head)).unwrap()
}

fn rows() -> Vec<Vec<u32>> {
    [40, 17, 40].iter().map(|&n| (0..n).map(|t: u32| (t * t * 7 + t + n) % 64).collect()).collect()
}

fn plan(recipe: &str, model: &InMemoryModel) -> Plan {
    let recipe = Recipe::parse(&format!("version: 1\n{recipe}\n")).unwrap_or_else(|e| panic!("{e}"));
    let mut plan = Plan::new(&recipe.untrained(), model.spec()).unwrap_or_else(|e| panic!("{e}"));
    plan.streams.deployed = true;
    plan
}

fn analysed(recipe: &str, threads: usize, spill: Option<&Path>) -> (Vec<BlockAnalysis>, Vec<EvalReport>) {
    let mut model = model();
    let plan = plan(recipe, &model);
    let (rows, mut original) = (rows(), model.clone());
    let layout = Layout::new(rows.iter().map(Vec::len));
    with_threads(threads, |par| {
        let options = RunOptions { spill: spill.map(Path::to_owned), ..RunOptions::new(par) };
        let mut fused;
        let (source, original): (&mut dyn BlockSource, _) = match plan.recipe.model_transform() {
            Some(whole) => {
                fused = whole.fuse(&mut model, par).unwrap();
                (&mut *fused, Some(&mut original as &mut dyn BlockSource))
            }
            None => (&mut model, None),
        };
        let mut silent = Silent;
        let pass = Pass::new(&plan, &layout, &options, &mut silent);
        let (mut blocks, mut hidden) = pass.run(source, original, &mut Quantised::Recipe, &rows).unwrap();
        let by = (Compute::F32, par);
        let heads = Heads { reference: source, others: None };
        let scores = score(heads, (&mut hidden, 0), (&rows, &layout), "rows", by, &mut Silent).unwrap();
        for (block, report) in blocks.iter_mut().zip(&scores) {
            block.kl = report.comparison.unwrap().kl;
        }
        (blocks, scores)
    })
    .unwrap()
}

const RTN: &str = "modifiers: [rtn: { scheme: W4A8KV4 }]";

/// What `ptq eval` says of the float model with one quantised block in it, to the last bit; and the block with outliers comes first.
#[test]
fn effects_are_those_of_a_model_with_that_block_alone_quantised() {
    let (blocks, scores) = analysed(RTN, 2, None);
    let float = model();
    let plan = plan(RTN, &float);
    let mut sink = MemorySink::default();
    let sample = TokenSet::from_sequences(rows(), "rows");
    let options = RunOptions::new(Par::Seq);
    run(&plan, &mut float.clone(), Some(&sample), &mut sink, &mut Silent, &options).unwrap();
    for (index, found) in scores.iter().enumerate() {
        let mut mixed = float.clone();
        mixed.blocks_mut()[index] = sink.blocks()[index].clone();
        let [mut reference, mut model] =
            [float.clone(), mixed].map(|m| Scored::new(m, Compute::F32, Par::Seq));
        let options = EvalOptions { reference: Some(&mut reference), ..EvalOptions::default() };
        let expected = quant_eval::evaluate(&mut model, &rows(), options).unwrap();
        assert_eq!(found.comparison, expected.comparison, "block {index}");
        assert_eq!(found.nll_per_sequence, expected.nll_per_sequence, "block {index}");
    }
    let order = ranking(&blocks);
    assert_eq!(order[0], BAD, "{:?}", scores.iter().map(|s| s.comparison).collect::<Vec<_>>());
    assert!(blocks[BAD].kl.unwrap() > 2.0 * blocks[order[1]].kl.unwrap());
    // Its output, too, moves most.
    let moved = |index: usize| blocks[index].relative_mse.unwrap();
    assert!(order[1..].iter().all(|&other| moved(BAD) > moved(other)));
}

/// The relative error of the last block is that of the hidden states behind it.
#[test]
fn errors_of_blocks_are_relative_to_the_float_stream() {
    let (blocks, _) = analysed(RTN, 1, None);
    let float = model();
    let last = float.spec().layers - 1;
    let plan = plan(RTN, &float);
    let mut sink = MemorySink::default();
    let sample = TokenSet::from_sequences(rows(), "rows");
    let options = RunOptions::new(Par::Seq);
    run(&plan, &mut float.clone(), Some(&sample), &mut sink, &mut Silent, &options).unwrap();
    let mut mixed = float.clone();
    mixed.blocks_mut()[last] = sink.blocks()[last].clone();
    let behind = |model: &InMemoryModel| {
        let mut model = model.clone();
        let (spec, mut all) = (model.spec().clone(), Vec::new());
        for ids in rows() {
            let mut h = model.embed(&ids).unwrap();
            let rope = quant_model::RopeTable::new(
                &spec.rope,
                spec.head_dim,
                spec.max_position_embeddings,
                ids.len(),
            );
            for index in 0..spec.layers {
                let params = model.block(index).unwrap();
                let block = quant_model::Block::new(&spec, index, params, Compute::F32, Par::Seq).unwrap();
                h = block.forward(h, &rope, Par::Seq).unwrap();
            }
            all.extend(h.iter().map(|&x| f64::from(x)));
        }
        all
    };
    let (found, expected) = (behind(&mixed), behind(&float));
    let norm: f64 = expected.iter().map(|x| x * x).sum();
    let difference: f64 = found.iter().zip(&expected).map(|(a, b)| (a - b).powi(2)).sum();
    let relative = blocks[last].relative_mse.unwrap();
    assert!((relative / (difference / norm) - 1.0).abs() < 1e-12, "{relative} {}", difference / norm);
}

#[test]
fn neither_threads_nor_the_disk_change_a_bit() {
    let folder = tempfile::tempdir().unwrap();
    for recipe in [
        "modifiers: [smoothquant: {}, gptq: { scheme: W4A8KV4 }]",
        "modifiers: [flatquant: { scheme: W4A4KV4 }]",
        "modifiers: [quarot: {}, rtn: { scheme: W4A4KV4 }]",
    ] {
        let one = analysed(recipe, 1, None);
        assert_eq!(one, analysed(recipe, 3, None), "{recipe}");
        assert_eq!(one, analysed(recipe, 2, Some(folder.path())), "{recipe}");
    }
}

fn at(block: &BlockAnalysis, place: Place) -> &Observed {
    block.activations.iter().find(|observed| observed.place == place).unwrap()
}

/// Every transform is a step, and the steps before it are the same with and without it.
#[test]
fn activations_are_shown_before_and_behind_each_transform() {
    let plain = analysed("modifiers: [rtn: { scheme: W4A8KV4 }]", 1, None).0;
    for (recipe, names) in [
        ("modifiers: [smoothquant: {}, rtn: { scheme: W4A8KV4 }]", &["float", "smoothquant"][..]),
        ("modifiers: [smoothquant: {}, awq: {}, rtn: { scheme: W4A8KV4 }]", &["float", "smoothquant", "awq"]),
        ("modifiers: [flatquant: { scheme: W4A8KV4 }]", &["float", "flatquant (untrained)"]),
        ("modifiers: [quarot: {}, rtn: { scheme: W4A8KV4 }]", &["float", "quarot"]),
        (
            "modifiers: [quarot: {}, smoothquant: { pairs: [norm] }, rtn: { scheme: W4A8KV4 }]",
            &["float", "quarot", "smoothquant"],
        ),
    ] {
        let blocks = analysed(recipe, 1, None).0;
        for (block, plain) in blocks.iter().zip(&plain) {
            assert_eq!(block.activations.len(), 6, "{recipe}");
            for (found, known) in block.activations.iter().zip(&plain.activations) {
                let steps: Vec<&str> = found.steps.iter().map(|s| &*s.after).collect();
                assert_eq!(steps, names, "{recipe}");
                assert_eq!((found.place, &found.steps[..1]), (known.place, &known.steps[..]), "{recipe}");
                assert!(found.steps.iter().all(|s| s.spread.tokens == 97 && s.spread.kurtosis.is_some()));
            }
        }
        // The channel that was made small behind the norm is what is not flat, and a rotation takes it in; what moves scales alone
        // leaves what attention gives o as it is.
        let [float, .., last] = &at(&blocks[BAD], Place::MlpInput).steps[..] else { panic!("{recipe}") };
        assert!(last.spread.flatness < float.spread.flatness, "{recipe}: {float:?} {last:?}");
    }
}

/// Keys that are quantised before rope, or by scales of their own, do as well anywhere; those by fixed ranges of channels behind rope
/// do not, because rope turns channels into each other.
#[test]
fn keys_are_measured_far_from_the_sample() {
    let of = |rest: &str| {
        let recipe = format!("modifiers: [rtn: {{ scheme: W8A16KV4 }}]\nkv_cache: {{ {rest} }}");
        let blocks = analysed(&recipe, 1, None).0;
        let keys = &blocks[0].keys;
        assert_eq!(keys.iter().map(|k| k.position).collect::<Vec<_>>(), KEY_POSITIONS);
        keys.iter().map(|k| k.relative_error.unwrap()).collect::<Vec<_>>()
    };
    let near = |a: f64, b: f64, within: f64| (a / b - 1.0).abs() < within;
    let before = of("granularity: channel_static, before_rope: true, value_granularity: token_head");
    assert!(before.iter().all(|&e| near(e, before[0], 1e-4)), "{before:?}");
    let head = of("granularity: token_head");
    assert!(head.iter().all(|&e| near(e, head[0], 0.2)), "{head:?}");
    let fixed = of("granularity: channel_static");
    assert!(fixed[1..].iter().all(|&e| e > fixed[0]), "{fixed:?}");
    assert!(analysed("modifiers: [rtn: { scheme: W8A8 }]", 1, None).0[0].keys.is_empty());
}

/// The activations alone are those of the whole analysis.
#[test]
fn activations_alone_are_those_of_an_analysis() {
    for recipe in [
        "modifiers: [smoothquant: {}, rtn: { scheme: W4A8KV4 }]",
        "modifiers: [quarot: {}, rtn: { scheme: W4A8 }]",
        "modifiers: [flatquant: { scheme: W4A4KV4 }]",
    ] {
        let mut model = model();
        let plan = plan(recipe, &model);
        let (rows, mut original) = (rows(), model.clone());
        let layout = Layout::new(rows.iter().map(Vec::len));
        let options = RunOptions::new(Par::Seq);
        let mut fused;
        let (source, original): (&mut dyn BlockSource, _) = match plan.recipe.model_transform() {
            Some(whole) => {
                fused = whole.fuse(&mut model, Par::Seq).unwrap();
                (&mut *fused, Some(&mut original as &mut dyn BlockSource))
            }
            None => (&mut model, None),
        };
        let mut silent = Silent;
        let pass = Pass::new(&plan, &layout, &options, &mut silent);
        let found = pass.activations(source, original, &mut Quantised::Recipe, &rows).unwrap();
        let (blocks, _) = analysed(recipe, 2, None);
        let expected: Vec<Vec<Observed>> = blocks.into_iter().map(|block| block.activations).collect();
        assert!(found.iter().flatten().all(|observed| observed.steps.len() == 2), "{recipe}");
        assert_eq!(found, expected, "{recipe}");
    }
}
