//! SmoothQuant along every edge of a block: the function is kept, and what it says of the activations is what became of them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ndarray::{Array1, Array2, Axis};
use proptest::prelude::*;
use quant_core::{ActRule, Bits, FloatType, Variant};
use quant_graph::{
    BlockParams, EdgeSource, InputScheme, LinearId, LinearScheme, LinearWeight, ModelSpec, Site,
};
use quant_kernels::{Compute, Par};
use quant_methods::smoothquant::{Pair, SmoothQuant, Smoothing, tied_factors};
use quant_methods::{Batch, BlockContext, Gathered, HeadTie, Scaled, SiteStatistics, Statistic, Transform};
use quant_model::{Block, ModelError, RopeTable, StageScratch, Walk, model_spec};
use quant_testkit::{Numbers, random_block};
use serde_json::json;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

const ALL: [Pair; 3] = [Pair::Norm, Pair::ValueOutput, Pair::UpDown];

/// Six query heads on `kv_heads` value heads; Qwen2 and Pangu have biases of q, k and v, Phi-3 stores them in one.
const FAMILIES: [(&str, &str); 4] = [
    ("LlamaForCausalLM", "llama"),
    ("Qwen2ForCausalLM", "qwen2"),
    ("PanguEmbeddedForCausalLM", "PanguEmbedded"),
    ("Phi3ForCausalLM", "phi3"),
];

fn spec(family: usize, kv_heads: usize) -> ModelSpec {
    let (architecture, model_type) = FAMILIES[family];
    model_spec(&json!({
        "architectures": [architecture], "model_type": model_type, "hidden_act": "silu", "vocab_size": 16,
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 1, "num_attention_heads": 6,
        "num_key_value_heads": kv_heads, "head_dim": 8, "rms_norm_eps": 1e-6, "max_position_embeddings": 64,
        "tie_word_embeddings": true, "bias": true,
    }))
    .unwrap()
}

/// The block's output, and the inputs of its sites.
fn run(
    spec: &ModelSpec,
    params: &BlockParams,
    h: &Array2<f32>,
) -> (Array2<f32>, BTreeMap<Site, Array2<f32>>) {
    let block = Block::<f32>::new(spec, 0, params.clone(), Compute::F32, Par::Seq).unwrap();
    let rope = RopeTable::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, h.nrows());
    let (starts, table) = ([0, h.nrows()], |_| &rope);
    let walk = Walk { starts: &starts, rope: &table };
    let (mut out, mut inputs) = (h.clone(), BTreeMap::new());
    let mut see = |site, x: ndarray::ArrayView2<'_, f32>| -> Result<_, ModelError> {
        inputs.insert(site, x.to_owned());
        Ok(ControlFlow::Continue(()))
    };
    block.walk(out.view_mut(), &walk, h.nrows(), &mut StageScratch::default(), &mut see, Par::Seq).unwrap();
    (out, inputs)
}

fn absmax(x: &Array2<f32>) -> Array1<f32> {
    x.fold_axis(Axis(0), 0.0_f32, |m, v| m.max(v.abs()))
}

fn statistics(inputs: &BTreeMap<Site, Array2<f32>>) -> BTreeMap<Site, SiteStatistics> {
    let of = |(&site, x): (&Site, &Array2<f32>)| {
        let mut float = Gathered::new(&[Statistic::ChannelMax], x.ncols(), &[0, x.nrows()]);
        float.add(&Batch::new(x.view(), 1), Compute::F32, Par::Seq).unwrap();
        (site, SiteStatistics { float, ..SiteStatistics::default() })
    };
    inputs.iter().map(of).collect()
}

fn smoothed(
    spec: &ModelSpec,
    params: &BlockParams,
    h: &Array2<f32>,
    smooth: &Smoothing,
) -> (BlockParams, Scaled) {
    let block = spec.block(0);
    let bits = Bits::new(8).unwrap();
    let input =
        InputScheme { bits, rule: ActRule::Asymmetric, dynamic: true, clip_ratio: 1.0.into(), shards: 1 };
    let scheme = LinearScheme { weight: None, input: Some(input) };
    let scheme = block.linears.iter().map(|l| (l.id, scheme)).collect();
    let context = BlockContext {
        block: &block,
        scheme: &scheme,
        grids: &BTreeMap::new(),
        norm_type: FloatType::F32,
        forward: None,
        work: Par::Seq.into(),
    };
    let mut out = params.clone();
    let scaled = smooth.apply(&mut out, &statistics(&run(spec, params, h).1), context).unwrap();
    (out, scaled)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_pair_keeps_the_function_and_says_what_it_divided(
        seed in any::<u64>(), family in 0..FAMILIES.len(), kv_heads in prop_oneof![Just(1_usize), Just(2), Just(6)],
        alpha in 0.0_f32..=1.0, which in 0..4_usize,
    ) {
        let spec = spec(family, kv_heads);
        let mut numbers = Numbers::new(seed);
        let params = random_block(&spec, &mut numbers);
        let mut h = numbers.matrix(20, spec.hidden, 1.0);
        h.column_mut(7).mapv_inplace(|v| 30.0 * v);
        let pairs = ALL.get(which).map_or(ALL.to_vec(), |pair| vec![*pair]);
        let smooth = Smoothing { scales: SmoothQuant { alpha, variant: Variant::Exact }, pairs };
        let (after, scaled) = smoothed(&spec, &params, &h, &smooth);
        prop_assert_eq!(scaled.len(), [2, 1, 1, 4][which]);
        prop_assert!(after != params);
        let ((a, before), (b, divided)) = (run(&spec, &params, &h), run(&spec, &after, &h));
        let size = a.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let worst = (&a - &b).iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        prop_assert!(worst <= 1e-4 * size, "{worst:.2e} of {size:.2e}");
        for (site, x) in &before {
            let expected = scaled.get(site).map_or_else(|| x.clone(), |factors| x / factors);
            let size = absmax(&expected);
            for ((&found, &wanted), j) in divided[site].iter().zip(&expected).zip((0..x.ncols()).cycle()) {
                prop_assert!((found - wanted).abs() <= 1e-3 * size[j].max(1e-6), "{site:?}, channel {j}");
            }
            // The statistics that were gathered follow by the same factors.
            let mut seen = statistics(&before).remove(site).unwrap().float;
            if let Some(factors) = scaled.get(site) {
                seen.divide(factors.view()).unwrap();
            }
            for (a, b) in seen.channel_max().unwrap().view().iter().zip(absmax(&divided[site])) {
                prop_assert!((a - b).abs() <= 1e-3 * b.max(1e-6), "{site:?}");
            }
        }
    }

    /// α = 1 makes the largest activation of a value head's channel, over its query heads, exactly one.
    #[test]
    fn heads_that_share_values_share_scales(seed in any::<u64>(), family in 0..FAMILIES.len()) {
        let spec = spec(family, 2);
        let mut numbers = Numbers::new(seed);
        let params = random_block(&spec, &mut numbers);
        let h = numbers.matrix(20, spec.hidden, 1.0);
        let smooth = Smoothing {
            scales: SmoothQuant { alpha: 1.0, variant: Variant::Official },
            pairs: vec![Pair::ValueOutput],
        };
        let (after, scaled) = smoothed(&spec, &params, &h, &smooth);
        let tie = HeadTie { heads: 6, kv_heads: 2, head_dim: 8 };
        let factors = &scaled[&Site::AttentionOutput];
        let merged = tie.largest(factors.view()).unwrap();
        prop_assert_eq!(&tie.expand(merged.view()).unwrap(), factors);
        let x = &run(&spec, &after, &h).1[&Site::AttentionOutput];
        for largest in tie.largest(absmax(x).view()).unwrap() {
            prop_assert!((largest - 1.0).abs() < 1e-4, "{largest}");
        }
    }
}

/// The rows of v are divided, its bias with them, and nothing else of a matrix that holds q and k too.
#[test]
fn the_bias_of_v_is_divided_and_its_neighbours_are_not() {
    for (family, kv_heads) in [(1, 2), (3, 2)] {
        let spec = spec(family, kv_heads);
        let mut numbers = Numbers::new(8);
        let params = random_block(&spec, &mut numbers);
        let h = numbers.matrix(20, spec.hidden, 1.0);
        let smooth = Smoothing {
            scales: SmoothQuant { alpha: 0.5, variant: Variant::Exact },
            pairs: vec![Pair::ValueOutput],
        };
        let (after, scaled) = smoothed(&spec, &params, &h, &smooth);
        let edge = spec.block(0).edges.into_iter().find(|e| e.to == Site::AttentionOutput).unwrap();
        let EdgeSource::Rows { linear, first } = edge.from else { panic!("{edge:?}") };
        let tie = HeadTie { heads: 6, kv_heads, head_dim: 8 };
        let divisors = tie.largest(scaled[&edge.to].view()).unwrap();
        let (old, new) = (&params.linears[&linear], &after.linears[&linear]);
        let (LinearWeight::Float(w), LinearWeight::Float(divided)) = (&old.weight, &new.weight) else {
            panic!()
        };
        for (row, (a, b)) in w.rows().into_iter().zip(divided.rows()).enumerate() {
            let c = if row < first { 1.0 } else { divisors[row - first] };
            assert_eq!(a.mapv(|v| v / c), b, "row {row}");
            if let (Some(a), Some(b)) = (&old.bias, &new.bias) {
                assert_eq!(a[row] / c, b[row], "bias {row}");
            }
        }
        assert_eq!(old.bias.is_some(), family == 1);
        let others = |id: &LinearId| *id != linear && *id != LinearId::O;
        for id in params.linears.keys().filter(|id| others(id)) {
            assert_eq!(params.linears[id], after.linears[id]);
        }
    }
}

#[test]
fn a_block_without_such_an_edge_is_refused() {
    let mut block = spec(0, 2).block(0);
    let smooth =
        Smoothing { scales: SmoothQuant { alpha: 0.5, variant: Variant::Exact }, pairs: ALL.to_vec() };
    smooth.check(&block).unwrap();
    block.edges.retain(|edge| edge.to != Site::MlpActivation);
    let error = smooth.check(&block).unwrap_err().to_string();
    assert!(error.contains("modifiers.smoothquant.pairs") && error.contains("edge up-down"), "{error}");
}

#[test]
fn maxima_that_are_not_finite_are_named_before_they_are_merged() {
    let tie = Some(HeadTie { heads: 2, kv_heads: 1, head_dim: 1 });
    let smooth = SmoothQuant { alpha: 0.5, variant: Variant::Exact };
    let absmax = ndarray::array![1.0, f32::NAN];
    let error = tied_factors(&smooth, tie, absmax.view(), &[ndarray::array![[1.0, 1.0]].view()]).unwrap_err();
    assert!(error.to_string().contains("channel 1"), "{error}");
}
