//! Tables as the Hugging Face hub publishes them.
#![allow(clippy::unwrap_used, reason = "tests")]

use quant_data::{DataError, Tokenizer, built_in_task};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn tokenizer() -> Tokenizer {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-reasoner");
    Tokenizer::from_dir(&model).unwrap()
}

#[test]
fn nested_lists_and_both_packings() {
    let (task, tokenizer) = (built_in_task("arc-easy").unwrap(), tokenizer());
    let read = |name: &str| task.choices(&[fixture(name)], &tokenizer, None).unwrap();
    let items = read("arc.snappy.parquet");
    assert_eq!(items.len(), 3);
    assert_eq!(items, read("arc.zstd.parquet"));
    assert_eq!(items, read("arc.jsonl.gz"));
    assert_eq!((items[0].id.as_str(), items[0].choices.len(), items[0].gold), ("q0", 3, 1));
    assert_eq!((items[2].choices.len(), items[2].gold), (4, 3));
}

#[test]
fn damaged_tables_are_refused() {
    let (task, tokenizer) = (built_in_task("arc-easy").unwrap(), tokenizer());
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(fixture("arc.snappy.parquet")).unwrap();
    let path = folder.path().join("t.parquet");
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        task.choices(std::slice::from_ref(&path), &tokenizer, None)
    };
    // 6 bytes are less than a table can have.
    for cut in [6, 40, whole.len() / 2, whole.len() - 3] {
        let error = read(&whole[..cut]).unwrap_err();
        assert!(matches!(error, DataError::NotText { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("a parquet file") && text.contains("cut off"), "{text}");
    }
    for at in (4..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        // Refused, or read as something else: never a panic.
        drop(read(&bytes));
    }
}
