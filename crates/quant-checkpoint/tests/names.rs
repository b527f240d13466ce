//! Checkpoints whose tensors have other names than the model's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

// Not every file of tests uses everything.
#[allow(dead_code, reason = "shared with other tests")]
mod folders;

use folders::*;
use quant_checkpoint::{Checkpoint, Dtype, FolderSource, check_tensors};
use quant_core::FloatType;
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
