//! Genuine folders of other tools open, and their tensors read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use quant_checkpoint::{Checkpoint, TensorHash, side_files};

fn shared(path: &str) -> Option<PathBuf> {
    let full = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")).join(path);
    if full.exists() {
        return Some(full);
    }
    quant_testkit::skipped(format_args!("{path} not present"));
    None
}

#[test]
fn folders_of_other_tools() {
    let Some(root) = shared("goldens/formats") else { return };
    let mut opened = 0;
    for entry in std::fs::read_dir(root).unwrap() {
        let dir = entry.unwrap().path();
        if !dir.is_dir() {
            continue;
        }
        let model = Checkpoint::open(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        assert!(model.tensors().len() > 10 && model.config().is_object());
        assert!(model.declared_bytes().is_none_or(|b| b == model.total_bytes()), "{}", dir.display());
        for info in model.tensors() {
            let bytes = model.read(&info.name).unwrap();
            assert_eq!(bytes.len() as u64, info.bytes());
        }
        opened += 1;
    }
    assert!(opened >= 10, "{opened}");
}

#[test]
fn the_reference_model() {
    let Some(dir) = shared("models/tiny-reasoner") else { return };
    let model = Checkpoint::open(&dir).unwrap();
    let name = "model.embed_tokens.weight";
    let (all, hash) = model.read_matrix_f32_hashed(name).unwrap();
    assert_eq!(hash, TensorHash::of(&model.read(name).unwrap()));
    assert_eq!(model.read_row_gather(name, &[5]).unwrap().row(0), all.row(5));
    let files = side_files(&dir).unwrap().copied;
    for wanted in ["generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        assert!(files.iter().any(|f| f == wanted), "{wanted}");
    }
    assert!(
        !files.iter().any(|f| f.contains("safetensors") || f == "config.json" || f.starts_with("tasks/"))
    );
}
