//! Transforms that a block applies while the model runs: held by `dequantized`, refused by formats whose loaders apply none.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use crate::folders::{Folder, input, linear, spec, uniform, weight, write};
use quant_checkpoint::formats::{CompressedTensors, Dequantized, Format, VllmAscend};
use quant_checkpoint::{Checkpoint, FolderSource};
use quant_core::{ActRule, AxisShape, FloatType, OnlineShape};
use quant_graph::{BlockSource as _, ModelScheme, ModelSpec, OnlineScheme, Site};
use serde_json::json;

/// The second block mixes heads and, in two shards, what enters down; its keys are rotated.
fn scheme(model: &ModelSpec) -> ModelScheme {
    let (heads, width) = (model.heads, model.head_dim);
    let across = OnlineShape::new([AxisShape::Dense(heads), AxisShape::Identity(width)]);
    let half = model.intermediate / 2;
    let down = OnlineShape { shards: 2, ..OnlineShape::new([AxisShape::Dense(half)]) };
    let sites = [(Site::AttentionOutput, across), (Site::MlpActivation, down)].into();
    let pair = OnlineShape::new([AxisShape::Identity(width / 2), AxisShape::Walsh(2)]);
    let online = OnlineScheme { sites, pair: Some([pair; 2]) };
    let dynamic = linear(Some(weight(4, true, None)), Some(input(ActRule::Asymmetric, true)));
    ModelScheme { online: vec![OnlineScheme::default(), online], ..uniform(model, dynamic) }
}

#[test]
fn a_folder_gives_back_its_transforms() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("out");
    let model = spec(FloatType::Bf16, false, true);
    let scheme = scheme(&model);
    Dequantized.supports(&model, &scheme).unwrap();
    let blocks = write(&dir, &model, &Dequantized, &scheme, 3);
    let checkpoint = Checkpoint::open(&dir).unwrap();
    assert_eq!(Dequantized.scheme(&checkpoint, &model).unwrap(), scheme);
    let mut source = FolderSource::open(checkpoint, model.clone()).unwrap();
    for (index, block) in blocks.iter().enumerate() {
        assert_eq!(source.block(index).unwrap().online, block.online);
        assert_eq!(block.online.is_empty(), index == 0);
    }
    // A tensor too few, and a transform that does not fit the site.
    let name = format!("{}.transform.attention_output.0", model.block_prefix(1));
    let mut folder = Folder::load(&dir);
    let entry = &mut folder.json.get_mut("ptq_scheme.json").unwrap()["blocks"][1]["online"]["sites"];
    entry["attention-output"]["axes"][1] = serde_json::json!({ "identity": 1 });
    folder.save(&parent.path().join("narrow"));
    let open = |name: &str| Checkpoint::open(parent.path().join(name)).unwrap();
    let text = Dequantized.decode(&open("narrow"), &model, 1).unwrap_err().to_string();
    assert!(text.contains("attention_output: expected rows of 24"), "{text}");
    let mut folder = Folder::load(&dir);
    folder.tensors.remove(&name).unwrap();
    folder.save(&parent.path().join("few"));
    let text = FolderSource::open(open("few"), model).unwrap_err().to_string();
    assert!(text.contains(&name), "{text}");
}

#[test]
fn formats_of_deployments_refuse_them() {
    let model = spec(FloatType::Bf16, false, false);
    for (format, rule) in
        [(&VllmAscend as &dyn Format, ActRule::Symmetric), (&CompressedTensors, ActRule::SymmetricFull)]
    {
        let plain = uniform(&model, linear(Some(weight(8, true, None)), Some(input(rule, true))));
        format.supports(&model, &plain).unwrap();
        let rotated = ModelScheme { online: scheme(&model).online, ..plain };
        let text = format.supports(&model, &rotated).unwrap_err().to_string();
        assert!(text.contains("attention_output") && text.contains("export to dequantized"), "{text}");
    }
}

/// The input of down is multiplied by blocks, permuted and multiplied by blocks again, whole or in two shards.
fn permuted(model: &ModelSpec, shards: usize) -> ModelScheme {
    let blocks = [AxisShape::Identity(model.intermediate / shards / 4), AxisShape::Dense(4)];
    let down = OnlineShape { shards, ..OnlineShape::new(blocks).and_permuted(blocks) };
    let online = OnlineScheme { sites: [(Site::MlpActivation, down)].into(), pair: None };
    ModelScheme { online: vec![online; model.layers], ..scheme(model) }
}

/// A permutation between two products is a tensor of indices. What is no permutation is refused, and so are sizes that would have to be
/// believed.
#[test]
fn a_folder_gives_back_its_permutations() {
    let model = spec(FloatType::Bf16, false, true);
    let parent = tempfile::tempdir().unwrap();
    for shards in [1, 2] {
        let (dir, scheme) = (parent.path().join(shards.to_string()), permuted(&model, shards));
        let blocks = write(&dir, &model, &Dequantized, &scheme, 3);
        let checkpoint = Checkpoint::open(&dir).unwrap();
        assert_eq!(Dequantized.scheme(&checkpoint, &model).unwrap(), scheme);
        let mut source = FolderSource::open(checkpoint, model.clone()).unwrap();
        for (index, block) in blocks.iter().enumerate() {
            let down = &block.online.sites[&Site::MlpActivation];
            assert_eq!((down.orders().len(), down.matrices().len()), (shards, 2 * shards));
            assert_eq!(source.block(index).unwrap().online, block.online);
        }
    }
    let good = Folder::load(&parent.path().join("1"));
    let order = format!("{}.transform.mlp_activation.order.0", model.block_prefix(1));
    let decoded = |name: &str, edit: &dyn Fn(&mut Folder)| {
        let mut folder = good.clone();
        edit(&mut folder);
        folder.save(&parent.path().join(name));
        let checkpoint = Checkpoint::open(parent.path().join(name)).unwrap();
        Dequantized.decode(&checkpoint, &model, 1).unwrap_err().to_string()
    };
    for (name, index) in [("twice", 1_i32), ("negative", -1), ("large", 1000)] {
        let text = decoded(name, &|folder| {
            let bytes = folder.bytes(&order);
            let first: Vec<u8> = if index == 1 { bytes[4..8].to_vec() } else { index.to_le_bytes().to_vec() };
            bytes[..4].copy_from_slice(&first);
        });
        assert!(text.contains("mlp_activation: expected an invertible transform"), "{text}");
    }
    let text = decoded("absent", &|folder| drop(folder.tensors.remove(&order)));
    assert!(text.contains(&order), "{text}");
    let shape = |folder: &mut Folder, key: &str, value: serde_json::Value| {
        let file = folder.json.get_mut("ptq_scheme.json").unwrap();
        file["blocks"][1]["online"]["sites"]["mlp-activation"][key] = value;
    };
    for (name, key, value) in [
        ("shards", "shards", json!(usize::MAX)),
        ("axes", "axes", json!([{ "dense": 1_u64 << 40 }, { "identity": 1 }, { "identity": 1 }])),
    ] {
        let text = decoded(name, &|folder| shape(folder, key, value.clone()));
        assert!(text.contains("mlp_activation: expected rows of"), "{text}");
    }
    let text = decoded("wider", &|folder| {
        shape(folder, "permuted", json!([{ "identity": 1000 }, { "dense": 4 }, { "identity": 1 }]));
    });
    assert!(text.contains("mlp_activation: expected an invertible transform"), "{text}");
    for (format, rule) in
        [(&VllmAscend as &dyn Format, ActRule::Symmetric), (&CompressedTensors, ActRule::SymmetricFull)]
    {
        let plain = uniform(&model, linear(Some(weight(8, true, None)), Some(input(rule, true))));
        let scheme = ModelScheme { online: permuted(&model, 1).online, ..plain };
        let text = format.supports(&model, &scheme).unwrap_err().to_string();
        assert!(text.contains("mlp_activation") && text.contains("in place of duquant"), "{text}");
    }
}
