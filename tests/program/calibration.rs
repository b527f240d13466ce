//! What calibration sees of a model.

use crate::common::{copy_of_model, few_windows, quantize_in_memory};
use ptq::core::EntryQuant;
use ptq::data::TokenSet;
use ptq::graph::BlockSource;
use serde_json::{Value, json};
use std::path::Path;

/// Key scales of every block, from calibration on these sequences.
fn key_scales(model: &Path, set: &TokenSet) -> Vec<Vec<f32>> {
    let recipe = "version: 1\nmodifiers:\n  - rtn: { scheme: W8A16KV8 }\nkv_cache: { granularity: channel_static }\n\
                  export: { format: dequantized }\n";
    let (mut quantized, _) = quantize_in_memory(model, recipe, Some(set), 1);
    let scales = |index| match quantized.block(index).unwrap().kv.unwrap().keys {
        EntryQuant::Channel { scales, .. } => scales.to_vec(),
        other => panic!("{other:?}"),
    };
    (0..6).map(scales).collect()
}

/// Under dynamic scaling a sequence beyond the model's context rotates by its own length, whatever it is calibrated with: so the
/// largest keys of a set are the largest of its sequences alone.
#[test]
fn sequences_of_different_lengths_rotate_by_their_own() {
    let work = tempfile::tempdir().unwrap();
    let model = copy_of_model(work.path());
    let path = model.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["max_position_embeddings"] = json!(32);
    config["rope_scaling"] = json!({ "rope_type": "dynamic", "factor": 4.0 });
    std::fs::write(path, config.to_string()).unwrap();

    let all = few_windows(3, 96);
    let mut mixed = all.clone();
    for (sequence, length) in mixed.sequences.iter_mut().zip([20, 48, 96]) {
        sequence.truncate(length);
    }
    let alone = |i: usize| {
        let mut one = mixed.clone();
        one.sequences = vec![mixed.sequences[i].clone()];
        key_scales(&model, &one)
    };
    let alone = [alone(0), alone(1), alone(2)];
    let together = key_scales(&model, &mixed);
    let mut decided = [0; 3];
    for (block, scales) in together.iter().enumerate() {
        for (channel, &scale) in scales.iter().enumerate() {
            let each = [0, 1, 2].map(|i: usize| alone[i][block][channel]);
            let largest = each.into_iter().fold(0.0, f32::max);
            assert_eq!(scale, largest, "block {block}, channel {channel}: {each:?}");
            decided[each.iter().position(|&s| s == largest).unwrap()] += 1;
        }
    }
    assert!(decided.iter().all(|&channels| channels > 10), "every length decides some channels: {decided:?}");
}
