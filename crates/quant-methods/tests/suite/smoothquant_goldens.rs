//! SmoothQuant against the official results: a subset in the repository (`tests/data`), every case where the reference data is
//! present.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use ndarray::Axis;
use quant_core::{ChannelMaxima, FloatType, Variant};
use quant_kernels::{Compute, Par, rms_norm};
use quant_methods::smoothquant::{SmoothQuant, apply, factors};
use quant_model::{Block, KvCache, RopeTable, model_spec};
use quant_testkit::{Golden, Tensors, block_from_tensors};

fn close(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let norm: f64 = theirs.iter().map(|&v| f64::from(v).powi(2)).sum();
    let difference: f64 = ours.iter().zip(theirs).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    assert!((difference / norm).sqrt() <= 1e-5, "{what}: relative error {}", (difference / norm).sqrt());
    for (j, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!((a - b).abs() <= 2e-5 * b.abs().max(1e-12), "{what} [{j}]: {a} vs {b}");
    }
}

/// A norm, the site that measures its output, the linears after it.
const EDGES: [(&str, &str, &[&str]); 2] = [
    ("input_layernorm", "self_attn.q_proj", &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    ("post_attention_layernorm", "mlp.gate_proj", &["mlp.gate_proj", "mlp.up_proj"]),
];

/// Smooths every edge the file holds, for every α; returns how many tensors were compared.
fn smoothed(golden: &Golden) -> usize {
    let mut compared = 0;
    for (case, c) in golden.cases() {
        let (family, _) = case.split_once('.').unwrap();
        let settings = SmoothQuant { alpha: c["alpha"].as_f64().unwrap() as f32, variant: Variant::Official };
        for (norm_name, site, linears) in EDGES {
            if !golden.has(&format!("{family}.w.{site}.weight")) {
                continue;
            }
            let absmax = golden.vector(&format!("{family}.act_scales.{site}"));
            let mut weights: Vec<_> =
                linears.iter().map(|l| golden.matrix(&format!("{family}.w.{l}.weight"))).collect();
            let mut norm = golden.vector(&format!("{family}.w.{norm_name}.weight"));
            let views: Vec<_> = weights.iter().map(|w| w.view()).collect();
            let c = factors(&settings, absmax.view(), &views).unwrap();
            let mut targets: Vec<_> = weights.iter_mut().collect();
            apply(c.view(), &mut norm, &mut targets, FloatType::F32).unwrap();
            let expected = golden.vector(&format!("{case}.{norm_name}.weight"));
            close(norm.as_slice().unwrap(), expected.as_slice().unwrap(), &format!("{case} {norm_name}"));
            compared += 1;
            for (linear, weight) in linears.iter().zip(&weights) {
                let name = format!("{case}.{linear}.weight");
                if golden.has(&name) {
                    close(weight.as_slice().unwrap(), golden.matrix(&name).as_slice().unwrap(), &name);
                    compared += 1;
                }
            }
        }
    }
    println!("{compared} tensors compared");
    compared
}

/// The largest activations at the inputs of q, k and v, from the layer's input and its first norm.
fn attention_maxima(golden: &Golden, family: &str) {
    let x = golden.matrix(&format!("{family}.X"));
    let norm = golden.vector(&format!("{family}.w.input_layernorm.weight"));
    let epsilon = golden.meta["rms_norm_eps"].as_f64().unwrap() as f32;
    let mut maxima = ChannelMaxima::new(x.ncols());
    for batch in x.axis_chunks_iter(Axis(0), 33) {
        maxima.observe(rms_norm(batch, norm.view(), epsilon).view());
    }
    for linear in EDGES[0].2 {
        let name = format!("{family}.act_scales.{linear}");
        close(maxima.view().as_slice().unwrap(), golden.vector(&name).as_slice().unwrap(), &name);
    }
}

/// The largest activations at the inputs of all linears, from the layer's input through our block.
fn block_maxima(golden: &Golden, family: &str, architecture: &str) {
    let count = |key: &str| golden.meta[key].as_u64().unwrap();
    let config = serde_json::json!({
        "architectures": [architecture], "model_type": family, "hidden_act": "silu", "vocab_size": 8,
        "hidden_size": count("hid"), "intermediate_size": count("inter"), "num_hidden_layers": 1,
        "num_attention_heads": count("nh"), "num_key_value_heads": count("nkv"),
        "rms_norm_eps": golden.meta["rms_norm_eps"], "rope_theta": golden.meta["rope_theta"],
        "max_position_embeddings": 64, "tie_word_embeddings": true,
    });
    let spec = model_spec(&config).unwrap();
    let prefix = format!("{family}.w.");
    let tensors: Tensors = golden
        .tensors
        .iter()
        .filter_map(|(name, tensor)| {
            Some((format!("model.layers.0.{}", name.strip_prefix(&prefix)?), tensor.clone()))
        })
        .collect();
    let block =
        Block::<f32>::new(&spec, 0, block_from_tensors(&spec, 0, &tensors), Compute::F32, Par::Seq).unwrap();
    let (x, length) = (golden.matrix(&format!("{family}.X")), count("seq") as usize);
    let rope = RopeTable::<f32>::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, length);
    let mut maxima =
        [spec.hidden, spec.query_width(), spec.hidden, spec.intermediate].map(ChannelMaxima::new);
    for sequence in x.axis_chunks_iter(Axis(0), length) {
        let mut h = sequence.to_owned();
        let input = block.attention_input(h.view(), Par::Seq).unwrap();
        let output = block.attention(input.view(), &rope, &mut KvCache::new(), Par::Seq).unwrap();
        h += &block.attention_output(output.view(), Par::Seq).unwrap();
        let mlp = block.mlp_input(h.view(), Par::Seq).unwrap();
        let activation = block.mlp_activation(mlp.view(), Par::Seq).unwrap();
        for (maxima, x) in maxima.iter_mut().zip([&input, &output, &mlp, &activation]) {
            maxima.observe(x.view());
        }
    }
    let linears: [&[&str]; 4] = [EDGES[0].2, &["self_attn.o_proj"], EDGES[1].2, &["mlp.down_proj"]];
    for (maxima, linears) in maxima.iter().zip(linears) {
        for linear in linears {
            let name = format!("{family}.act_scales.{linear}");
            close(maxima.view().as_slice().unwrap(), golden.vector(&name).as_slice().unwrap(), &name);
        }
    }
}

#[test]
fn official_results_of_the_subset() {
    let golden = Golden::parse(include_bytes!("../data/smoothquant_subset.safetensors"));
    assert_eq!(smoothed(&golden), 8);
    attention_maxima(&golden, "qwen2");
}

#[test]
fn official_results() {
    let Some(golden) = Golden::shared("smoothquant.safetensors") else { return };
    assert_eq!(smoothed(&golden), 26);
    for (family, architecture) in [("llama", "LlamaForCausalLM"), ("qwen2", "Qwen2ForCausalLM")] {
        attention_maxima(&golden, family);
        block_maxima(&golden, family, architecture);
    }
}
