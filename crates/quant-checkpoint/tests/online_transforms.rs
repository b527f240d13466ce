//! Transforms that a block applies while the model runs: held by `dequantized`, refused by formats whose loaders apply none.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod folders;

use folders::{Folder, input, linear, spec, uniform, weight, write};
use quant_checkpoint::formats::{CompressedTensors, Dequantized, Format, VllmAscend};
use quant_checkpoint::{Checkpoint, FolderSource};
use quant_core::{ActRule, AxisShape, FloatType, OnlineShape};
use quant_graph::{BlockSource as _, ModelScheme, ModelSpec, OnlineScheme, Site};

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
