//! Rotary tables against those of transformers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test helper fails by panicking")]

use crate::common::config_with;
use quant_model::{RopeTable, inverse_frequencies, model_spec};
use serde_json::{Value, json};
use std::path::Path;

/// Distance in units of the last place, both signs on one scale.
fn ulps(a: f32, b: f32) -> u64 {
    let order = |x: f32| {
        let bits = i64::from(x.to_bits() & 0x7fff_ffff);
        if x.is_sign_negative() { -bits } else { bits }
    };
    order(a).abs_diff(order(b))
}

fn floats(bits: &Value) -> Vec<f32> {
    let bit = |b: &Value| f32::from_bits(u32::try_from(b.as_u64().unwrap()).unwrap());
    bits.as_array().unwrap().iter().map(bit).collect()
}

fn worst(a: &[f32], b: &[f32]) -> u64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(&a, &b)| ulps(a, b)).max().unwrap()
}

#[test]
fn frequencies_and_turns_are_those_of_transformers() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/rope.json");
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(data).unwrap()).unwrap();
    assert!(cases.len() >= 20);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let mut changes = case["config"].clone();
        let head_dim = usize::try_from(changes["head_dim"].as_u64().unwrap()).unwrap();
        changes["hidden_size"] = json!(4 * head_dim);
        let class = match changes.get("partial_rotary_factor") {
            Some(_) => "Phi3ForCausalLM",
            None => "LlamaForCausalLM",
        };
        let spec = model_spec(&config_with(class, changes)).unwrap();
        let length = usize::try_from(case["length"].as_u64().unwrap()).unwrap();
        let (ours, factor) = inverse_frequencies(&spec.rope, head_dim, spec.max_position_embeddings, length);
        let reference = floats(&case["bits"]);
        let apart = worst(&ours, &reference);
        assert_eq!(factor, case["factor"].as_f64().unwrap() as f32, "{name}");

        let mut turned = 0;
        let table = RopeTable::<f32>::from_frequencies(&reference, factor, 131_072);
        for at in case["at"].as_array().unwrap() {
            let position = usize::try_from(at["position"].as_u64().unwrap()).unwrap();
            let (cos, sin) = (table.cos(position, 1), table.sin(position, 1));
            turned = turned
                .max(worst(&cos.iter().copied().collect::<Vec<_>>(), &floats(&at["cos"])))
                .max(worst(&sin.iter().copied().collect::<Vec<_>>(), &floats(&at["sin"])));
        }
        println!("{name}: frequencies {apart} ulp, cosines and sines {turned} ulp");
        assert!(apart == 0 && turned == 0, "{name}: frequencies {apart} ulp, cosines and sines {turned} ulp");
    }
}
