//! Checkpoints whose tensors have other names than the model's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use crate::folders::*;
use quant_checkpoint::formats::VllmAscend;
use quant_checkpoint::{
    Checkpoint, CheckpointError as E, Dtype, FolderSource, Target, check_tensors, verify,
};
use quant_core::{ActRule, FloatType};
use quant_graph::{BlockSource as _, ModelSpec};
use tempfile::TempDir;

/// A float checkpoint, all of whose tensors differ, under the names that `rename` gives; none leaves one out.
fn stored(spec: &ModelSpec, rename: impl Fn(&str) -> Option<String>) -> (TempDir, Checkpoint) {
    let mut config = config(spec);
    config.as_object_mut().unwrap().remove("quantization_config");
    let tensors = spec.tensors().into_iter().enumerate().filter_map(|(i, t)| {
        let bytes = vec![0x30 + (i % 12) as u8; t.shape.iter().product::<usize>() * 2];
        Some((rename(&t.name)?, (Dtype::BF16, t.shape, bytes)))
    });
    let folder = Folder { tensors: tensors.collect(), json: [("config.json".to_owned(), config)].into() };
    save(&folder)
}

fn save(folder: &Folder) -> (TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    folder.save(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

/// The float model's bytes, name by name.
fn bytes(checkpoint: &Checkpoint) -> Vec<(String, Vec<u8>)> {
    checkpoint.tensors().map(|t| (t.name.clone(), checkpoint.read(&t.name).unwrap())).collect()
}

#[test]
fn one_constant_prefix_is_read_and_canonical_from_then_on() {
    for tied in [false, true] {
        let spec = spec(FloatType::Bf16, tied, true);
        let (_dir, plain) = stored(&spec, |name| Some(name.to_owned()));
        type Rename = fn(&str) -> String;
        let forms: [(&str, Rename); 7] = [
            ("_orig_mod.", |name| format!("_orig_mod.{name}")),
            ("module.", |name| format!("module.{name}")),
            ("base_model.model.", |name| format!("base_model.model.{name}")),
            ("_fsdp_wrapped_module.module.", |name| format!("_fsdp_wrapped_module.module.{name}")),
            ("language_model.", |name| format!("language_model.{name}")),
            ("model.language_model.norm", |name| name.replacen("model.", "model.language_model.", 1)),
            ("norm.weight", |name| name.strip_prefix("model.").unwrap_or(name).to_owned()),
        ];
        for (word, form) in forms {
            let (_dir, mut odd) = stored(&spec, |name| Some(form(name)));
            assert!(check_tensors(&odd, &spec).is_err(), "{word}");
            let notices = odd.take_names_of(&spec);
            assert!(notices.len() == 1 && notices[0].contains(word), "{notices:?}");
            check_tensors(&odd, &spec).unwrap();
            assert_eq!(bytes(&odd), bytes(&plain), "{word}");
            assert!(odd.take_names_of(&spec).is_empty(), "once");
            FolderSource::open(odd, spec.clone()).unwrap().block(1).unwrap();
        }
    }
}

#[test]
fn rotary_buffers_are_passed_over_under_any_prefix() {
    let spec = spec(FloatType::Bf16, false, false);
    for prefix in ["", "module."] {
        let (dir, _) = stored(&spec, |name| Some(format!("{prefix}{name}")));
        let mut folder = Folder::load(dir.path());
        for name in [
            "model.rotary_emb.inv_freq",
            "model.rotary_emb.original_inv_freq",
            "model.layers.0.self_attn.rotary_emb.cos_cached",
            "model.layers.1.self_attn.sin_cached",
        ] {
            let tensor = (Dtype::F32, vec![3], vec![0; 12]);
            folder.tensors.insert(format!("{prefix}{name}"), tensor);
        }
        let (_dir, mut checkpoint) = save(&folder);
        assert_eq!(checkpoint.take_names_of(&spec).is_empty(), prefix.is_empty());
        check_tensors(&checkpoint, &spec).unwrap();
    }
}

#[test]
fn names_that_are_not_explained_stay_and_are_shown() {
    let spec = spec(FloatType::Bf16, false, false);
    let missing = "model.layers.1.mlp.up_proj.weight";
    let (dir, mut short) = stored(&spec, |name| (name != missing).then(|| format!("module.{name}")));
    let mut folder = Folder::load(dir.path());
    // Two sets of names at once: which of them is the model is not for us to say.
    let whole = stored(&spec, |name| Some(format!("module.{name}"))).0;
    folder.tensors = Folder::load(whole.path()).tensors;
    folder.tensors.extend(folder.tensors.clone().into_iter().map(|(name, t)| (format!("ema.{name}"), t)));
    let (_dir, mut twice) = save(&folder);
    // Something beside it that the model has no place for.
    let mut folder = Folder::load(whole.path());
    folder.tensors.insert("module.visual.weight".into(), (Dtype::BF16, vec![1], vec![0; 2]));
    let (_dir, mut more) = save(&folder);
    for checkpoint in [&mut short, &mut twice, &mut more] {
        let before = bytes(checkpoint);
        assert!(checkpoint.take_names_of(&spec).is_empty());
        assert_eq!(bytes(checkpoint), before);
        let text = check_tensors(checkpoint, &spec).unwrap_err().to_string();
        for word in ["missing: \"model.layers.0.", "there instead: \"", "module.lm_head.weight\"", " more"] {
            assert!(text.contains(word), "{word} is not in {text}");
        }
    }
}

#[test]
fn a_tied_table_under_the_name_of_the_head_is_the_embedding() {
    let spec = spec(FloatType::Bf16, true, false);
    let (_dir, plain) = stored(&spec, |name| Some(name.to_owned()));
    for prefix in ["", "module."] {
        let head = |name: &str| if name == ModelSpec::EMBEDDING { ModelSpec::HEAD } else { name }.to_owned();
        let (_dir, mut odd) = stored(&spec, |name| Some(format!("{prefix}{}", head(name))));
        let notices = odd.take_names_of(&spec);
        assert_eq!(notices.len(), if prefix.is_empty() { 1 } else { 2 }, "{notices:?}");
        assert!(notices.last().unwrap().contains("only lm_head.weight is stored"), "{notices:?}");
        check_tensors(&odd, &spec).unwrap();
        assert_eq!(bytes(&odd), bytes(&plain));
    }
    // An untied model without an embedding lacks it.
    let untied = ModelSpec { tied: false, ..spec };
    let (_dir, mut odd) = stored(&untied, |name| (name != ModelSpec::EMBEDDING).then(|| name.to_owned()));
    assert!(odd.take_names_of(&untied).is_empty());
    assert!(check_tensors(&odd, &untied).is_err());
}

/// A folder in msmodelslim's layout under the file names given.
fn older(weights: &str, description: &str) -> (TempDir, ModelSpec) {
    let spec = spec(FloatType::Bf16, false, false);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let scheme = linear(Some(weight(8, true, None)), Some(input(ActRule::Symmetric, true)));
    write(&out, &spec, &VllmAscend, &uniform(&spec, scheme), 5);
    let path = |name: &str| out.join(name);
    std::fs::remove_file(path("quant_model_weights.safetensors.index.json")).unwrap();
    std::fs::rename(path("quant_model_weights-00001-of-00001.safetensors"), path(weights)).unwrap();
    std::fs::rename(path("quant_model_description.json"), path(description)).unwrap();
    (dir, spec)
}

#[test]
fn weights_under_older_names_are_read_everywhere() {
    const WEIGHTS: &str = "quant_model_weight_w8a8_dynamic.safetensors";
    let (dir, spec) = older(WEIGHTS, "quant_model_description.json");
    let out = dir.path().join("out");
    let checkpoint = Checkpoint::open(&out).unwrap();
    assert_eq!(checkpoint.weight_files(), [WEIGHTS]);
    assert_eq!(check_tensors(&checkpoint, &spec).unwrap().unwrap().id(), "vllm-ascend");
    FolderSource::open(checkpoint, spec.clone()).unwrap().block(1).unwrap();
    let report = verify(&out, &spec, Target::VllmAscend).unwrap();
    assert!(report.passed(), "{:#?}", report.checks);
    // The description decides which weights are meant where others lie beside them.
    std::fs::copy(out.join(WEIGHTS), out.join("model.safetensors")).unwrap();
    let report = verify(&out, &spec, Target::VllmAscend).unwrap();
    assert!(
        report.check("other-tensors").unwrap().detail.contains("model.safetensors"),
        "{:#?}",
        report.checks
    );
    // Weights of two types are two models.
    std::fs::rename(out.join("model.safetensors"), out.join("quant_model_weight_w8a16.safetensors")).unwrap();
    let error = Checkpoint::open(&out).unwrap_err();
    assert!(matches!(&error, E::SeveralWeights { found, .. } if found.contains("w8a16")), "{error}");
}

#[test]
fn descriptions_under_older_names_are_read_and_fail_verification_by_name() {
    const OLDER: &str = "quant_model_description_w8a8_dynamic.json";
    let (dir, spec) = older("quant_model_weight_w8a8_dynamic.safetensors", OLDER);
    let out = dir.path().join("out");
    let checkpoint = Checkpoint::open(&out).unwrap();
    assert_eq!(check_tensors(&checkpoint, &spec).unwrap().unwrap().id(), "vllm-ascend");
    FolderSource::open(checkpoint, spec.clone()).unwrap().block(0).unwrap();
    let report = verify(&out, &spec, Target::VllmAscend).unwrap();
    let failed: Vec<_> = report.failed().map(|c| c.name).collect();
    assert_eq!(failed, ["description"], "{:#?}", report.checks);
    let detail = &report.check("description").unwrap().detail;
    assert!(detail.contains(OLDER) && detail.contains("quant_model_description.json only"), "{detail}");
    // Of two, neither is meant more than the other.
    std::fs::copy(out.join(OLDER), out.join("quant_model_description_w8a16.json")).unwrap();
    let error = check_tensors(&Checkpoint::open(&out).unwrap(), &spec).unwrap_err().to_string();
    assert!(error.contains("one description") && error.contains("w8a16"), "{error}");
}

#[test]
fn weights_that_no_loader_looks_for_are_named() {
    let spec = spec(FloatType::Bf16, false, false);
    let (dir, _) = stored(&spec, |name| Some(name.to_owned()));
    let path = |name: &str| dir.path().join(name);
    std::fs::rename(path("model.safetensors"), path("adapter_model.safetensors")).unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err();
    assert!(
        matches!(&error, E::UnlistedWeights { found, .. } if found == "adapter_model.safetensors"),
        "{error}"
    );
}

#[test]
fn a_folder_above_the_model_and_an_id_of_the_hub_get_the_hint() {
    let spec = spec(FloatType::Bf16, false, false);
    let (dir, _) = stored(&spec, |name| Some(name.to_owned()));
    let root = tempfile::tempdir().unwrap();
    let cache = root.path().join("models--org--name");
    std::fs::create_dir_all(cache.join("snapshots")).unwrap();
    std::fs::rename(dir.path(), cache.join("snapshots/4f5e")).unwrap();
    std::fs::create_dir(dir.path()).unwrap();
    let error = Checkpoint::open(&cache).unwrap_err();
    assert!(matches!(error, E::NotAModel { .. }), "{error}");
    assert!(error.to_string().ends_with("models--org--name/snapshots/4f5e"), "{error}");
    Checkpoint::open(cache.join("snapshots/4f5e")).unwrap();
    let error = Checkpoint::open("Qwen/Qwen2.5-7B-Instruct").unwrap_err().to_string();
    assert!(error.contains("hf download Qwen/Qwen2.5-7B-Instruct --local-dir"), "{error}");
}
