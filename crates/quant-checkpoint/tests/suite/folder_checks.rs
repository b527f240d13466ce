//! Whole folders against the model: which tensors there are, of which type, and whether they are the ones written.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use crate::folders::*;
use quant_checkpoint::formats::{CompressedTensors, Dequantized, Format, VllmAscend};
use quant_checkpoint::{
    Checkpoint, CheckpointError as E, Dtype, ErrorClass, FolderSource, Target, TensorHash, check_tensors,
    read_config, redundant_head_equals, stored_float_type, verify,
};
use quant_core::{ActRule, FloatType};
use quant_graph::{LinearScheme, ModelSpec};
use serde_json::{Map, Value, json};

const NORM: &str = "model.layers.0.input_layernorm.weight";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";

fn dtype(kind: FloatType) -> Dtype {
    match kind {
        FloatType::F32 => Dtype::F32,
        FloatType::F16 => Dtype::F16,
        FloatType::Bf16 => Dtype::BF16,
    }
}

/// A float checkpoint of small numbers.
fn float(spec: &ModelSpec) -> Folder {
    let tensor = |t: quant_graph::TensorSpec| {
        let kind = dtype(spec.dtype);
        // 0x3c.. is a small positive number in every float type.
        let bytes = vec![0x3c; t.shape.iter().product::<usize>() * kind.bitsize() / 8];
        (t.name, (kind, t.shape, bytes))
    };
    let mut config = config(spec);
    config.as_object_mut().unwrap().remove("quantization_config");
    Folder {
        tensors: spec.tensors().into_iter().map(tensor).collect(),
        json: [("config.json".to_owned(), config)].into(),
    }
}

fn open(folder: &Folder) -> (tempfile::TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    folder.save(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

fn add(folder: &mut Folder, name: &str, shape: &[usize]) {
    let bytes = vec![0x3c; shape.iter().product::<usize>() * 2];
    folder.tensors.insert(name.to_owned(), (Dtype::BF16, shape.to_vec(), bytes));
}

#[test]
fn every_difference_is_listed() {
    let spec = spec(FloatType::Bf16, false, true);
    let mut folder = float(&spec);
    let (_dir, good) = open(&folder);
    assert!(check_tensors(&good, &spec).unwrap().is_none());

    folder.tensors.remove("model.layers.1.self_attn.q_norm.weight");
    let (_dir, one) = open(&folder);
    let error = check_tensors(&one, &spec).unwrap_err();
    assert!(matches!(&error, E::NoSuchTensor { tensor, .. } if tensor.ends_with("q_norm.weight")), "{error}");

    folder.tensors.get_mut(DOWN).unwrap().1 = vec![40, 24];
    add(&mut folder, "model.layers.2.mlp.up_proj.weight", &[40, 24]);
    let (_dir, three) = open(&folder);
    let error = check_tensors(&three, &spec).unwrap_err();
    assert!(matches!(&error, E::Tensors { faults, .. } if faults.len() == 3), "{error:?}");
    assert_eq!(error.class(), ErrorClass::BadCheckpoint);
    let text = error.to_string();
    for word in ["3 tensors", "[24, 40]", "[40, 24]", "model.layers.1.self_attn.q_norm", "model.layers.2."] {
        assert!(text.contains(word), "{word} is not in {text}");
    }
    assert!(FolderSource::open(three, spec.clone()).is_err());

    folder.tensors.clear();
    add(&mut folder, "other", &[1]);
    let (_dir, none) = open(&folder);
    assert!(check_tensors(&none, &spec).unwrap_err().to_string().contains("and "), "hundreds are counted");
}

#[test]
fn inverse_frequencies_and_a_redundant_head_are_allowed() {
    let spec = spec(FloatType::Bf16, true, false);
    let mut folder = float(&spec);
    add(&mut folder, "model.layers.0.self_attn.rotary_emb.inv_freq", &[3]);
    let (_dir, checkpoint) = open(&folder);
    assert!(check_tensors(&checkpoint, &spec).unwrap().is_none());
    assert_eq!(redundant_head_equals(&checkpoint, &spec).unwrap(), None);

    add(&mut folder, ModelSpec::HEAD, &[spec.vocab, spec.hidden]);
    let (_dir, checkpoint) = open(&folder);
    check_tensors(&checkpoint, &spec).unwrap();
    assert_eq!(redundant_head_equals(&checkpoint, &spec).unwrap(), Some(true));
    *folder.bytes(ModelSpec::HEAD).last_mut().unwrap() ^= 1;
    let (_dir, checkpoint) = open(&folder);
    assert_eq!(redundant_head_equals(&checkpoint, &spec).unwrap(), Some(false));

    add(&mut folder, ModelSpec::HEAD, &[spec.vocab + 1, spec.hidden]);
    let (_dir, checkpoint) = open(&folder);
    assert!(matches!(check_tensors(&checkpoint, &spec), Err(E::ShapeMismatch { .. })));
}

#[test]
fn the_stored_type_is_that_of_most_linears_or_of_the_norms() {
    for kind in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
        let spec = spec(kind, false, false);
        let mut folder = float(&spec);
        // Other types outside the linears, and in one of them, do not decide.
        for name in [ModelSpec::EMBEDDING, NORM, DOWN] {
            let shape = folder.tensors[name].1.clone();
            let other = if kind == FloatType::F32 { Dtype::BF16 } else { Dtype::F32 };
            let bytes = vec![0x3c; shape.iter().product::<usize>() * other.bitsize() / 8];
            folder.tensors.insert(name.to_owned(), (other, shape, bytes));
        }
        let (_dir, checkpoint) = open(&folder);
        assert_eq!(stored_float_type(&checkpoint, &spec), Some(kind));

        let parent = tempfile::tempdir().unwrap();
        let w8a8 = linear(Some(weight(8, true, None)), Some(input(ActRule::Symmetric, true)));
        let dir = parent.path().join("ascend");
        write(&dir, &spec, &VllmAscend, &uniform(&spec, w8a8), 3);
        assert_eq!(stored_float_type(&Checkpoint::open(&dir).unwrap(), &spec), Some(kind));
    }
    let mut empty = float(&spec(FloatType::F32, false, false));
    empty.tensors.clear();
    assert_eq!(stored_float_type(&open(&empty).1, &spec(FloatType::F32, false, false)), None);
}

#[test]
fn foreign_quantisation_is_named_before_any_tensor() {
    let spec = spec(FloatType::F16, false, false);
    let mut folder = float(&spec);
    let shape = folder.tensors.remove(DOWN).unwrap().1;
    folder
        .tensors
        .insert(DOWN.replace("weight", "qweight"), (Dtype::I32, vec![shape[1] / 8, 24], vec![0; 5 * 24 * 4]));
    for (section, found) in [
        (json!({"quant_method": "gptq", "bits": 4}), "gptq"),
        (json!({"quant_method": "awq"}), "awq"),
        (json!({"quant_method": "fp8"}), "fp8"),
        (json!({"bits": 4}), "unnamed"),
        // Early tools wrote a file of their own and nothing into config.json.
        (Value::Null, "qweight"),
    ] {
        folder.json.get_mut("config.json").unwrap()["quantization_config"] = section;
        let (_dir, checkpoint) = open(&folder);
        let error = check_tensors(&checkpoint, &spec).unwrap_err();
        assert!(matches!(error, E::ForeignQuantization { .. }), "{error}");
        assert_eq!(error.class(), ErrorClass::Unsupported);
        let text = error.to_string();
        assert!(text.contains(found) && text.contains("start from the float model"), "{text}");
    }
}

#[test]
fn scales_that_the_loader_would_round_are_not_encoded() {
    let w8a16 = linear(Some(weight(8, true, None)), None);
    let stat = linear(Some(weight(8, true, None)), Some(input(ActRule::Asymmetric, false)));
    for (format, scheme) in
        [(&VllmAscend as &dyn Format, w8a16), (&VllmAscend, stat), (&CompressedTensors, w8a16)]
    {
        let spec = spec(FloatType::Bf16, false, false);
        let scheme = uniform(&spec, scheme);
        let mut good = block(&spec, format, &scheme, 0, 5);
        assert!(format.encode_block(&spec, &scheme, 0, good.clone()).is_ok());
        let down = good.linears.get_mut(&quant_graph::LinearId::DOWN).unwrap();
        let quant_graph::LinearWeight::Quantized(matrix) = &mut down.weight else { panic!("float") };
        match &mut down.input {
            Some(quant_core::ActQuant::Static { params, .. }) => params.scale = 0.012_345_678,
            _ => matrix.fill_rows(0..1, |mut to| to.scales[(0, 0)] = 0.012_345_678).unwrap(),
        }
        let error = format.encode_block(&spec, &scheme, 0, good.clone()).unwrap_err();
        assert!(
            matches!(&error, E::NotEncodable { subject, .. } if subject.contains("down_proj")),
            "{error}"
        );
    }
    // The values themselves are stored there, so any scale will do.
    let spec = spec(FloatType::Bf16, false, false);
    let scheme = uniform(&spec, w8a16);
    let mut rough = block(&spec, &Dequantized, &scheme, 0, 5);
    let down = rough.linears.get_mut(&quant_graph::LinearId::DOWN).unwrap();
    let quant_graph::LinearWeight::Quantized(matrix) = &mut down.weight else { panic!("float") };
    matrix.fill_rows(0..1, |mut to| to.scales[(0, 0)] = 0.012_345_678).unwrap();
    assert!(Dequantized.encode_block(&spec, &scheme, 0, rough.clone()).is_ok());
}

#[test]
fn only_the_configuration_is_read_when_asked_for_it() {
    let folder = float(&spec(FloatType::F32, false, false));
    let (dir, _checkpoint) = open(&folder);
    std::fs::write(dir.path().join("model.safetensors"), "not weights").unwrap();
    assert_eq!(read_config(dir.path()).unwrap(), folder.json["config.json"]);
    std::fs::write(dir.path().join("config.json"), "[]").unwrap();
    assert!(matches!(read_config(dir.path()), Err(E::Json { .. })));
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    assert!(matches!(read_config(dir.path()), Err(E::MissingFile { .. })));
    assert!(matches!(read_config(dir.path().join("absent")), Err(E::NotAFolder { .. })));
}

/// A manifest with the hashes of all tensors of a folder.
fn write_manifest(dir: &Path, change: impl FnOnce(&mut Map<String, Value>)) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let hash = |t: &quant_checkpoint::TensorInfo| {
        (t.name.clone(), json!(TensorHash::of(&checkpoint.read(&t.name).unwrap())))
    };
    let mut output = checkpoint.tensors().map(hash).collect();
    change(&mut output);
    let manifest = json!({"tool": "ptq 0.1.0", "output": output});
    std::fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
}

#[test]
fn tensors_are_compared_with_the_manifest() {
    let spec = spec(FloatType::Bf16, false, false);
    let w8a8 = |rule| linear(Some(weight(8, true, None)), Some(input(rule, true)));
    let w4a16: LinearScheme = linear(Some(weight(4, true, Some(8))), None);
    let cases: [(&dyn Format, LinearScheme, Target); 4] = [
        (&VllmAscend, w8a8(ActRule::Symmetric), Target::VllmAscend),
        (&CompressedTensors, w8a8(ActRule::SymmetricFull), Target::VllmAscend),
        (&CompressedTensors, w4a16, Target::Vllm),
        (&Dequantized, w4a16, Target::Transformers),
    ];
    for (format, scheme, target) in cases {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("out");
        write(&dir, &spec, format, &uniform(&spec, scheme), 3);
        let check = || verify(&dir, &spec, target).unwrap();
        assert!(check().check("manifest").is_none(), "no manifest, no rule");
        write_manifest(&dir, |_| ());
        let report = check();
        assert!(report.check("manifest").unwrap().passed && report.passed(), "{:#?}", report.checks);

        let broken = |change: &dyn Fn(&mut Map<String, Value>), word: &str| {
            write_manifest(&dir, change);
            let report = check();
            let found = report.check("manifest").unwrap();
            assert!(!found.passed && found.detail.contains(word) && !report.passed(), "{word}: {found:?}");
        };
        broken(&|m| drop(m.shift_remove(NORM)), "is not in the manifest");
        broken(&|m| drop(m.insert("lost".into(), json!("00"))), "not in the folder");
        std::fs::write(dir.join("manifest.json"), r#"{"tool": "ptq 0.1.0"}"#).unwrap();
        assert!(!check().passed());
        // Another program's manifest is its own affair.
        std::fs::write(dir.join("manifest.json"), r#"{"tool": "other", "output": 3}"#).unwrap();
        assert!(check().passed());

        // Every bit counts: one flipped in the last weight byte of one shard, which every other rule accepts.
        write_manifest(&dir, |_| ());
        let checkpoint = Checkpoint::open(&dir).unwrap();
        let victim = checkpoint.tensors().find(|t| t.name.contains("down_proj.weight")).unwrap();
        let (file, at) = (dir.join(&*victim.file), victim.range.end as usize - 1);
        let name = victim.name.clone();
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[at] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let report = check();
        let failed: Vec<_> = report.failed().filter(|c| c.name == "manifest").collect();
        assert!(failed.len() == 1 && failed[0].detail.contains(&name), "{:#?}", report.checks);
        assert!(!report.passed());
    }
}

#[test]
fn what_marlin_does_not_take_is_advice() {
    let spec = spec(FloatType::Bf16, false, false);
    // The sizes of the tiny model are divided by 8 only; the rule looks at the number, not at the model.
    for (scheme, word) in [
        (weight(4, true, Some(8)), "groups of 8"),
        (weight(8, false, None), "asymmetric 8-bit"),
        (weight(4, false, None), ""),
        (weight(8, true, None), ""),
    ] {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("out");
        write(&dir, &spec, &CompressedTensors, &uniform(&spec, linear(Some(scheme), None)), 3);
        let report = verify(&dir, &spec, Target::Vllm).unwrap();
        let marlin = report.check("marlin").unwrap();
        assert_eq!(marlin.passed, word.is_empty(), "{marlin:?}");
        assert!(marlin.detail.contains(word) && marlin.detail.contains("vLLM 0."), "{marlin:?}");
        assert!(report.passed(), "advice fails nothing: {:#?}", report.checks);
        assert!(verify(&dir, &spec, Target::Transformers).unwrap().check("marlin").is_none());
    }
}
