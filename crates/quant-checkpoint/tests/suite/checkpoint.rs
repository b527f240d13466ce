//! Opening folders and reading tensors.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;

use crate::common::{Folder, index, one, open, valid};
use ndarray::array;
use proptest::prelude::*;
use quant_checkpoint::{Checkpoint, CheckpointError as E, Dtype, ErrorClass, HeaderError as H, MARKER};

const INDEX: &str = "model.safetensors.index.json";

#[test]
fn single_file() {
    let folder = Folder::new(&[("model.safetensors", &one("w"))]);
    folder.put("config.json", b"{\"z\": 1,\n \"a\": {\"rope\": null}}\n");
    let model = Checkpoint::open(folder.dir()).unwrap();
    assert_eq!(model.config().as_object().unwrap().keys().collect::<Vec<_>>(), ["z", "a"]);
    assert_eq!(model.config_text(), "{\"z\": 1,\n \"a\": {\"rope\": null}}\n");
    let info = model.tensor("w").unwrap();
    assert_eq!((info.dtype, info.shape.as_slice(), &*info.file), (Dtype::F32, &[2][..], "model.safetensors"));
    assert_eq!((info.bytes(), info.elements(), model.total_bytes()), (8, 2, 8));
    assert_eq!(model.index_file(), None);
    assert_eq!(model.metadata()["format"], "pt");
}

#[test]
fn shards_in_sorted_order() {
    let model = open(&[
        ("b.safetensors", &one("w1")),
        ("a.safetensors", &one("w2")),
        (INDEX, &index(&[("w2", "a.safetensors"), ("w1", "b.safetensors")])),
    ])
    .unwrap();
    let order: Vec<_> = model.tensors().map(|t| (t.name.as_str(), &*t.file)).collect();
    assert_eq!(order, [("w1", "b.safetensors"), ("w2", "a.safetensors")]);
    assert_eq!((model.declared_bytes(), model.total_bytes()), (Some(16), 16));
    assert_eq!(model.weight_files(), ["a.safetensors", "b.safetensors"]);
    assert_eq!(model.read_f32("w2").unwrap(), array![1.0, 2.0].into_dyn());
}

#[test]
fn msmodelslim_names_are_found() {
    let index = index(&[("w", "quant_model_weights-00001-of-00001.safetensors")]);
    let model = open(&[
        ("quant_model_weights-00001-of-00001.safetensors", &one("w")),
        ("quant_model_weights.safetensors.index.json", &index),
    ])
    .unwrap();
    assert_eq!(model.index_file(), Some("quant_model_weights.safetensors.index.json"));
    assert!(open(&[("quant_model_weights.safetensors", &one("w"))]).is_ok());
    let both = Folder::new(&[
        ("model.safetensors", &one("float")),
        ("quant_model_weights.safetensors", &one("quantised")),
    ]);
    assert!(Checkpoint::open(both.dir()).unwrap().get("float").is_some());
    let named = Checkpoint::open_named(both.dir(), "quant_model_weights").unwrap();
    assert!(named.get("quantised").is_some());
    assert_eq!(named.stray_weight_files().unwrap(), ["model.safetensors"]);
}

#[test]
fn stray_files_are_listed() {
    let folder = Folder::new(&[
        ("a.safetensors", &one("w")),
        ("old.safetensors", b"x"),
        ("other.safetensors.index.json", b"x"),
        (INDEX, &index(&[("w", "a.safetensors")])),
    ]);
    let model = Checkpoint::open(folder.dir()).unwrap();
    assert_eq!(model.stray_weight_files().unwrap(), ["old.safetensors", "other.safetensors.index.json"]);
}

#[test]
fn one_file_alone() {
    let folder = Folder::new(&[("tokens.safetensors", &one("w"))]);
    let file = Checkpoint::open_file(folder.dir().join("tokens.safetensors")).unwrap();
    assert!(file.config().is_null());
    assert_eq!(file.tensors().len(), 1);
    assert_error!(Checkpoint::open_file(folder.dir().join("absent")), E::MissingFile { .. });
    assert_error!(Checkpoint::open_file(folder.dir()), E::NotARegularFile { .. });
}

#[test]
fn not_a_folder() {
    let folder = Folder::new(&[]);
    assert_error!(Checkpoint::open(folder.dir().join("absent")), E::NotAFolder { .. });
    assert_error!(Checkpoint::open(folder.dir().join("config.json")), E::NotAFolder { .. });
}

#[test]
fn no_weights_and_foreign_weights() {
    assert_error!(open(&[]), E::MissingFile { path, .. } if path.ends_with("model.safetensors"));
    let error = assert_error!(
        open(&[("pytorch_model.bin", b"x")]),
        E::UnsupportedWeights { found, .. } if found == "pytorch_model.bin"
    );
    assert_eq!(error.class(), ErrorClass::Unsupported);
}

#[test]
fn missing_config() {
    let folder = Folder::new(&[("model.safetensors", &one("w"))]);
    fs::remove_file(folder.dir().join("config.json")).unwrap();
    assert_error!(
        Checkpoint::open(folder.dir()),
        E::MissingFile { path, .. } if path.ends_with("config.json")
    );
}

#[test]
fn bad_config() {
    for (text, duplicate) in
        [(&b"{\"a\": 1, \"a\": 2}"[..], true), (b"{", false), (b"[]", false), (b"\xff", false)]
    {
        let folder = Folder::new(&[("model.safetensors", &one("w"))]);
        folder.put("config.json", text);
        let error = Checkpoint::open(folder.dir()).unwrap_err();
        assert_eq!(matches!(error, E::DuplicateKey { .. }), duplicate, "{error}");
        assert_eq!(matches!(error, E::Json { .. }), !duplicate, "{error}");
    }
}

#[test]
fn what_stands_in_place_of_a_file_is_named() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 4976698672\n";
    let index = index(&[("w", "a.safetensors")]);
    for (bytes, parts) in [
        (&pointer[..], ["Git-LFS pointer", "git lfs pull"]),
        (b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>", ["a web page", "hf download"]),
        (b"\xff\xfe{\0}\0", ["UTF-16", "iconv"]),
        (b"\xef\xbb\xbf{}", ["byte-order mark", "sed -i"]),
        (b"Entry not found", ["text, not a safetensors file", "Entry not found"]),
    ] {
        for name in ["model.safetensors", "config.json", INDEX, "a.safetensors"] {
            let weights = name.ends_with(".safetensors");
            // The mark is a matter of JSON, and other text is malformed JSON.
            if (bytes.starts_with(b"\xef") && weights) || (bytes.starts_with(b"Entry") && !weights) {
                continue;
            }
            let folder = if name == "a.safetensors" {
                Folder::new(&[(INDEX, &index)])
            } else {
                Folder::new(&[("model.safetensors", &one("w"))])
            };
            folder.put(name, bytes);
            let error = Checkpoint::open(folder.dir()).unwrap_err();
            assert!(matches!(error, E::ForeignContent { .. }), "{name}: {error}");
            let text = error.to_string();
            assert!(text.contains(name) && parts.iter().all(|part| text.contains(part)), "{text}");
        }
    }
}

#[test]
fn oversized_json_is_not_read() {
    let folder = Folder::new(&[("model.safetensors", &one("w"))]);
    // A sparse file: no disk is used, and reading it would take a terabyte.
    let file = fs::File::create(folder.dir().join("config.json")).unwrap();
    file.set_len(1 << 40).unwrap();
    assert_error!(Checkpoint::open(folder.dir()), E::JsonTooLarge { found, .. } if *found == 1 << 40);
    // Settings are small; only files with an entry per tensor may be larger.
    file.set_len((8 << 20) + 1).unwrap();
    assert_error!(Checkpoint::open(folder.dir()), E::JsonTooLarge { limit, .. } if *limit == 8 << 20);
    folder.put("config.json", b"{}");
    let mut index = br#"{"weight_map": {"w": "model.safetensors"}}"#.to_vec();
    index.resize((8 << 20) + 1, b' ');
    folder.put("model.safetensors.index.json", &index);
    assert!(Checkpoint::open(folder.dir()).is_ok());
}

#[test]
fn partial_output_is_refused() {
    let error = assert_error!(
        open(&[("model.safetensors", &one("w")), (MARKER, b"")]),
        E::PartialOutput { marker: "INCOMPLETE", .. }
    );
    assert_eq!(error.class(), ErrorClass::BadCheckpoint);
}

#[test]
fn index_with_path_traversal() {
    let root = Folder::new(&[]);
    fs::write(root.root.path().join("secret.safetensors"), one("w")).unwrap();
    let absolute = root.root.path().join("secret.safetensors").to_string_lossy().into_owned();
    for entry in [
        "../secret.safetensors",
        "sub/../../secret.safetensors",
        absolute.as_str(),
        "..",
        "a\\\\b.safetensors",
    ] {
        root.put(INDEX, format!(r#"{{"weight_map": {{"w": "{entry}"}}}}"#).as_bytes());
        assert_error!(Checkpoint::open(root.dir()), E::BadIndexEntry { tensor, .. } if tensor == "w");
    }
}

#[test]
fn index_with_repeated_keys() {
    let text = br#"{"weight_map": {"w": "a.safetensors", "w": "b.safetensors"}}"#;
    assert_error!(open(&[(INDEX, text)]), E::DuplicateKey { key, .. } if key == "w");
    let text = br#"{"weight_map": {"w": "a.safetensors"}, "weight_map": {}}"#;
    assert_error!(open(&[(INDEX, text)]), E::DuplicateKey { key, .. } if key == "weight_map");
}

#[test]
fn missing_shard_is_named() {
    let error = assert_error!(
        open(&[
            ("a.safetensors", &one("v")),
            (INDEX, &index(&[("v", "a.safetensors"), ("w", "b.safetensors")])),
        ]),
        E::MissingShard { shard, tensor, .. } if shard == "b.safetensors" && tensor == "w"
    );
    assert_eq!(error.class(), ErrorClass::BadCheckpoint);
}

#[test]
fn tensor_absent_from_its_shard() {
    assert_error!(
        open(&[
            ("a.safetensors", &one("v")),
            (INDEX, &index(&[("v", "a.safetensors"), ("w", "a.safetensors")])),
        ]),
        E::TensorNotInShard { tensor, shard, .. } if tensor == "w" && shard == "a.safetensors"
    );
}

#[test]
fn tensor_absent_from_the_index() {
    let two = valid(&[("v", "U8", &[1], &[0]), ("x", "U8", &[1], &[0]), ("y", "U8", &[1], &[0])]);
    assert_error!(
        open(&[("a.safetensors", &two), (INDEX, &index(&[("v", "a.safetensors")]))]),
        E::TensorNotInIndex { tensor, count: 2, .. } if tensor == "x"
    );
}

#[test]
fn tensor_in_two_shards() {
    let both = valid(&[("v", "U8", &[1], &[0]), ("w", "U8", &[1], &[0])]);
    assert_error!(
        open(&[
            ("a.safetensors", &both),
            ("b.safetensors", &valid(&[("w", "U8", &[1], &[1])])),
            (INDEX, &index(&[("v", "a.safetensors"), ("w", "b.safetensors")])),
        ]),
        E::TensorNotInIndex { tensor, shard, .. } if tensor == "w" && shard == "a.safetensors"
    );
}

#[test]
fn single_file_beside_a_foreign_index() {
    assert_error!(
        open(&[
            ("model.safetensors", &one("v")),
            ("a.safetensors", &one("w")),
            (INDEX, &index(&[("w", "a.safetensors")])),
        ]),
        E::AmbiguousWeights { .. }
    );
    // An index that lists the single file is consistent.
    let listed = index(&[("w", "model.safetensors")]);
    assert!(open(&[("model.safetensors", &one("w")), (INDEX, &listed)]).is_ok());
}

#[test]
fn links_are_followed_to_regular_files_only() {
    let folder = Folder::new(&[]);
    let blob = folder.root.path().join("blob");
    fs::write(&blob, one("w")).unwrap();
    let link = folder.dir().join("model.safetensors");
    std::os::unix::fs::symlink("../blob", &link).unwrap();
    assert!(Checkpoint::open(folder.dir()).is_ok(), "the Hugging Face cache links to blobs");
    fs::remove_file(&blob).unwrap();
    assert_error!(Checkpoint::open(folder.dir()), E::NotARegularFile { .. });
    fs::create_dir(&blob).unwrap();
    assert_error!(Checkpoint::open(folder.dir()), E::NotARegularFile { .. });
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
    assert_error!(Checkpoint::open(folder.dir()), E::NotARegularFile { .. });
}

#[test]
fn truncated_shard() {
    let mut bytes = one("w");
    bytes.pop();
    assert_error!(open(&[("model.safetensors", &bytes)]), E::Header(H::FileSize { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn mutated_indices_never_panic_or_leave_the_folder(
        at in any::<prop::sample::Index>(), value in any::<char>(), cut in any::<bool>(),
    ) {
        let mut text: Vec<char> =
            String::from_utf8(index(&[("w", "a.safetensors")])).unwrap().chars().collect();
        let at = at.index(text.len());
        if cut { text.truncate(at); } else { text[at] = value; }
        let text: String = text.into_iter().collect();
        if let Ok(parsed) = quant_checkpoint::ShardIndex::parse("i", text.as_bytes()) {
            for file in parsed.weight_map.values() {
                prop_assert!(!file.contains('/') && file.ends_with(".safetensors"));
            }
        }
    }
}
