//! Every rule of every loader: a good folder, one edit, and the check that must see it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use crate::folders::*;
use quant_checkpoint::formats::{CompressedTensors, Dequantized, Format, VllmAscend};
use quant_checkpoint::verify::Severity;
use quant_checkpoint::{Dtype, ErrorClass, Rules, Target, VerifyReport, verify};
use quant_core::{ActRule, FloatType, KvGranularity};
use quant_graph::{KvScheme, LinearScheme, ModelScheme, ModelSpec};
use serde_json::json;

type Edit<'a> = &'a dyn Fn(&mut Folder);

fn static_asym() -> LinearScheme {
    linear(Some(weight(8, true, None)), Some(input(ActRule::Asymmetric, false)))
}

fn with_cache(spec: &ModelSpec, scheme: LinearScheme) -> ModelScheme {
    let kv = KvScheme::new(bits(8), ActRule::Symmetric, KvGranularity::ChannelStatic);
    ModelScheme { kv: Some(kv), ..uniform(spec, scheme) }
}

/// A good folder and a place for its edited copies.
struct Bench {
    parent: tempfile::TempDir,
    spec: ModelSpec,
    good: Folder,
}

impl Bench {
    fn new(spec: ModelSpec, format: &dyn Format, scheme: &ModelScheme) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("good");
        write(&dir, &spec, format, scheme, 11);
        Self { good: Folder::load(&dir), parent, spec }
    }
    fn verify_with(&self, target: impl Into<Rules>, edit: Edit<'_>, files: &dyn Fn(&Path)) -> VerifyReport {
        let dir = tempfile::tempdir_in(self.parent.path()).unwrap();
        let mut folder = self.good.clone();
        edit(&mut folder);
        folder.save(dir.path());
        files(dir.path());
        verify(dir.path(), &self.spec, target).unwrap()
    }
    /// The edit makes exactly the named check fail among those listed, and the report with it.
    fn fails(&self, target: impl Into<Rules>, check: &str, word: &str, edit: Edit<'_>) {
        let report = self.verify_with(target, edit, &|_| ());
        Self::assert_failed(&report, check, word);
    }
    fn assert_failed(report: &VerifyReport, check: &str, word: &str) {
        let Some(found) = report.check(check) else { panic!("{check} was not applied: {report:#?}") };
        assert!(!found.passed && found.detail.contains(word), "{check}: {found:?}");
        assert!(!report.passed());
    }
    /// The edit is worth a word and no more.
    fn advises(&self, target: impl Into<Rules>, check: &str, word: &str, edit: Edit<'_>) {
        let report = self.verify_with(target, edit, &|_| ());
        let Some(found) = report.check(check) else { panic!("{check} was not applied: {report:#?}") };
        assert!(!found.passed && found.detail.contains(word), "{check}: {found:?}");
        assert!(report.passed(), "{:#?}", report.failed().collect::<Vec<_>>());
    }
    fn passes(&self, target: impl Into<Rules>) {
        let report = self.verify_with(target, &|_| (), &|_| ());
        assert!(report.passed(), "{:#?}", report.failed().collect::<Vec<_>>());
    }
}

const Q: &str = "model.layers.0.self_attn.q_proj";
const K: &str = "model.layers.1.self_attn.k_proj";

fn set_f32(folder: &mut Folder, name: &str, value: f32) {
    folder.bytes(name)[..4].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn rules_of_vllm_ascend() {
    let spec = spec(FloatType::Bf16, true, false);
    let bench = Bench::new(spec.clone(), &VllmAscend, &with_cache(&spec, static_asym()));
    // The heads of the tiny model are too small for the cache of newer versions.
    let old: Rules = "vllm-ascend@0.25".parse().unwrap();
    let fails = |check: &str, word: &str, edit: Edit<'_>| bench.fails(old, check, word, edit);
    let advises = |check: &str, word: &str, edit: Edit<'_>| bench.advises(old, check, word, edit);
    bench.passes(old);
    bench.fails(Target::VllmAscend, "kv-cache-loaded", "multiples of 32", &|_| ());
    bench.fails("vllm-ascend@0.14".parse::<Rules>().unwrap(), "kv-cache-loaded", "C8", &|_| ());
    let weight = format!("{Q}.weight");

    fails("no-quantization-config", "quantization_config", &|f| {
        f.json.get_mut("config.json").unwrap()["quantization_config"] = json!({"quant_method": "ascend"});
    });
    fails("known-types", "W9A9", &|f| {
        f.description().insert(weight.clone(), json!("W9A9"));
    });
    fails("block-values", "W8A8_MXFP8", &|f| {
        f.description().insert(weight.clone(), json!("W8A8_MXFP8"));
    });
    fails("fused-layers", "types FLOAT, W8A8, W8A8", &|f| {
        f.description().insert(weight.clone(), json!("FLOAT"));
    });
    fails("fused-layers", "no entry", &|f| {
        f.description().shift_remove(&weight);
    });
    for name in ["lm_head.weight", "model.embed_tokens.weight"] {
        fails("embedding-and-head", name, &|f| {
            f.description().shift_remove(name);
        });
        fails("embedding-and-head", "W8A8", &|f| {
            f.description().insert(name.to_owned(), json!("W8A8"));
        });
    }
    advises("entries-have-tensors", "ghost.weight", &|f| {
        f.description().insert("model.layers.0.ghost.weight".to_owned(), json!("FLOAT"));
    });
    advises("tensors-have-entries", &format!("{Q}.deq_scale"), &|f| {
        f.description().shift_remove(&format!("{Q}.deq_scale"));
    });
    advises("norm-biases", "post_attention_layernorm.bias", &|f| {
        f.description().insert("model.layers.0.input_layernorm.bias".to_owned(), json!("FLOAT"));
    });
    fails("tensors", &format!("{Q}.quant_bias"), &|f| {
        f.tensors.remove(&format!("{Q}.quant_bias"));
    });
    fails("tensors", "expected I8", &|f| f.tensors.get_mut(&weight).unwrap().0 = Dtype::U8);
    fails("tensors", "shape", &|f| f.tensors.get_mut(&weight).unwrap().1.reverse_and_bump());
    fails("tensors", "belongs to no part", &|f| {
        f.tensors.insert("model.layers.7.x".to_owned(), (Dtype::U8, vec![1], vec![0]));
    });
    fails("kv-cache", "no kv_cache_type", &|f| {
        f.description().retain(|key, _| !key.starts_with("kv_"));
    });
    fails("kv-cache", "unknown kv_cache_type", &|f| {
        f.description().insert("kv_cache_type".to_owned(), json!("C4"));
    });
    fails("kv-cache", "old versions", &|f| {
        f.description().shift_remove("kv_cache_type");
    });
    fails("kv-cache", "not an entry of type C8", &|f| {
        f.description().insert(format!("{K}.kv_cache_scale"), json!("FLOAT"));
    });
    fails("kv-cache", "offsets must be zero", &|f| f.bytes(&format!("{K}.kv_cache_offset"))[1] = 0x3f);
    fails("kv-cache", "shape", &|f| {
        let tensor = f.tensors.get_mut(&format!("{K}.kv_cache_scale")).unwrap();
        tensor.1 = vec![1, 12];
    });
    fails("static-inputs", "input_scale · weight_scale", &|f| {
        // Stored beside the static tensors, the weight scale must agree with them.
        let rows = f.tensors[&weight].1[0];
        f.tensors.insert(
            format!("{Q}.weight_scale"),
            (Dtype::F32, vec![rows, 1], 0.5_f32.to_le_bytes().repeat(rows)),
        );
        f.description().insert(format!("{Q}.weight_scale"), json!("W8A8"));
    });
    fails("static-inputs", "quant_bias, element 0", &|f| {
        f.bytes(&format!("{Q}.quant_bias"))[..4].copy_from_slice(&9_999_999_i32.to_le_bytes());
    });
    fails("static-inputs", "an integer from -128", &|f| set_f32(f, &format!("{Q}.input_offset"), 0.5));
    fails("static-inputs", "share an input", &|f| {
        // Consistent in itself, another offset than k and v have.
        let (gate, up) = ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj");
        let rows = f.tensors[&format!("{gate}.weight")].1[0];
        for module in [gate, up] {
            f.bytes(&format!("{module}.weight")).fill(0);
            f.bytes(&format!("{module}.quant_bias"))[..rows * 4].fill(0);
        }
        let offset = f32::from_le_bytes(f.bytes(&format!("{up}.input_offset"))[..4].try_into().unwrap());
        set_f32(f, &format!("{up}.input_offset"), offset + 1.0);
    });
    fails("scales", "a scale of -1", &|f| set_f32(f, &format!("{Q}.input_scale"), -1.0));
    fails("block-values", "NaN", &|f| set_f32(f, &format!("{Q}.deq_scale"), f32::NAN));
    fails("block-values", "inf", &|f| {
        f.bytes("model.layers.1.input_layernorm.weight")[..2].copy_from_slice(&[0x80, 0x7f]);
    });
    fails("outer-values", "embed_tokens", &|f| {
        f.bytes("model.embed_tokens.weight")[..2].copy_from_slice(&[0xc0, 0x7f]);
    });

    let report = bench.verify_with(old, &|_| (), &|dir| {
        std::fs::write(dir.join("model.safetensors.index.json"), r#"{"weight_map": {}}"#).unwrap();
    });
    Bench::assert_failed(&report, "stray-files", "model.safetensors.index.json");
    for (text, fault) in [("", "EOF"), ("{\"model\": ", "EOF"), ("\u{feff}{}", "byte-order mark")] {
        let report = bench.verify_with(old, &|_| (), &|dir| {
            std::fs::write(dir.join("tokenizer.json"), text).unwrap();
        });
        Bench::assert_failed(&report, "side-files", fault);
    }
    // A repetition is harmless, other values under the same names are not.
    for (differs, name) in [(false, "other-tensors"), (true, "stray-files")] {
        let report = bench.verify_with(old, &|_| (), &|dir| {
            let mut bytes = std::fs::read(dir.join("quant_model_weights.safetensors")).unwrap();
            let last = bytes.len() - 1;
            bytes[last] ^= u8::from(differs);
            std::fs::write(dir.join("model-00001-of-00001.safetensors"), bytes).unwrap();
        });
        assert_eq!(report.passed(), !differs, "{report:#?}");
        let check = report.check(name).unwrap();
        assert!(!check.passed && check.detail.contains("model-00001-of-00001"), "{check:?}");
    }
    // Any other client would take the int8 weights for floats; a float folder has no description.
    for target in [Target::Vllm, Target::Transformers] {
        Bench::assert_failed(
            &bench.verify_with(target, &|_| (), &|_| ()),
            "quantization-config",
            "vllm-ascend",
        );
    }
    let report = bench.verify_with(old, &|f| f.json.retain(|k, _| k == "config.json"), &|_| ());
    Bench::assert_failed(&report, "description", "quant_model_description.json");
}

/// Turns a shape into one that does not fit the bytes' meaning without changing their number.
trait Bump {
    fn reverse_and_bump(&mut self);
}
impl Bump for Vec<usize> {
    fn reverse_and_bump(&mut self) {
        let count = self.iter().product();
        *self = vec![1, count];
    }
}

#[test]
fn dynamic_linears_and_advice() {
    let spec = spec(FloatType::Bf16, false, false);
    let scheme = linear(Some(weight(8, true, None)), Some(input(ActRule::Symmetric, true)));
    let bench = Bench::new(spec.clone(), &VllmAscend, &uniform(&spec, scheme));
    bench.passes(Target::VllmAscend);
    let report =
        bench.verify_with(Target::VllmAscend, &|f| set_f32(f, &format!("{Q}.weight_scale"), 0.1), &|_| ());
    let advice = report.check("exact-scales").unwrap();
    assert!(!advice.passed && advice.severity == Severity::Advice && report.passed(), "{advice:?}");
    assert_eq!(report.failed().count(), 1);
    bench.fails(Target::VllmAscend, "weight-offsets", "q_proj", &|f| {
        set_f32(f, &format!("{Q}.weight_offset"), 3.0);
    });
    bench.fails(Target::VllmAscend, "scales", "NaN", &|f| set_f32(f, &format!("{Q}.weight_scale"), f32::NAN));
    bench.fails(Target::VllmAscend, "block-values", "overflows", &|f| {
        set_f32(f, &format!("{Q}.weight_scale"), 3e38);
    });
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(
        (json["target"].as_str(), json["format"].as_str()),
        (Some("vllm-ascend"), Some("vllm-ascend"))
    );
    assert_eq!(json["checks"][0]["severity"], "rule");
}

#[test]
fn rules_of_packed_weights() {
    let spec = spec(FloatType::Bf16, false, false);
    let bench = Bench::new(
        spec.clone(),
        &CompressedTensors,
        &uniform(&spec, linear(Some(weight(4, false, Some(8))), None)),
    );
    bench.passes(Target::Vllm);
    bench.passes(Target::Transformers);
    let all = [Target::Vllm, Target::Transformers];
    let fails = |targets: &[Target], check: &str, word: &str, edit: Edit<'_>| {
        for target in targets {
            bench.fails(*target, check, word, edit);
        }
    };
    fails(&all, "quantization-config", "config_groups", &|f| {
        f.section()["config_groups"] = json!([]);
    });
    fails(&all, "quantization-config", "float-quantized", &|f| {
        f.section()["config_groups"]["group_0"]["format"] = json!("float-quantized");
    });
    fails(&all, "quantization-config", "group_size", &|f| {
        f.section()["config_groups"]["group_0"]["weights"]["group_size"] = json!(null);
    });
    fails(&all, "quantization-config", "pattern", &|f| f.section()["ignore"] = json!(["re:("]));
    fails(&all, "formats", "mixed-precision", &|f| {
        let mut second = f.section()["config_groups"]["group_0"].clone();
        second["format"] = json!("int-quantized");
        second["targets"] = json!(["nothing"]);
        f.section()["config_groups"]["group_1"] = second;
    });
    fails(&all, "formats", "root format", &|f| f.section()["format"] = json!("int-quantized"));
    fails(&[Target::Vllm], "formats", "where the loader wants", &|f| {
        f.section()["format"] = json!("int-quantized");
        f.section()["config_groups"]["group_0"]["format"] = json!("int-quantized");
    });
    for (version, loads) in [("vllm@0.23", false), ("vllm@0.30", false), ("vllm", true)] {
        let rules: Rules = version.parse().unwrap();
        let report = bench.verify_with(
            rules,
            &|f| f.section()["config_groups"]["group_0"]["weights"]["num_bits"] = json!(3),
            &|_| (),
        );
        let check = report.check("weight-schemes").unwrap();
        assert_eq!(check.passed, loads, "{version}: {check:?}");
        assert!(loads || check.detail.contains("3-bit asymmetric"), "{check:?}");
    }
    fails(&all, "weight-schemes", "do not divide 40 inputs", &|f| {
        f.section()["config_groups"]["group_0"]["weights"]["group_size"] = json!(24);
    });
    fails(&[Target::Vllm], "weight-schemes", "one scale per tensor", &|f| {
        let weights = &mut f.section()["config_groups"]["group_0"]["weights"];
        weights["strategy"] = json!("tensor");
        weights["group_size"] = json!(null);
    });
    fails(&[Target::VllmAscend], "weight-schemes", "weight-only", &|_| ());
    fails(&[Target::Vllm], "fused-layers", "q_proj", &|f| f.section()["ignore"] = json!(["lm_head", Q]));
    fails(&[Target::Transformers], "act-order", "0.19", &|f| {
        f.section()["config_groups"]["group_0"]["weights"]["actorder"] = json!("group");
    });
    fails(&[Target::Transformers], "ignore-head", "group_0", &|f| f.section()["ignore"] = json!([]));
    bench.advises(Target::Vllm, "ignore-head", "group_0", &|f| f.section()["ignore"] = json!([]));
    fails(&all, "kv-cache", "8-bit float", &|f| {
        f.section()["kv_cache_scheme"] = json!({"num_bits": 8, "type": "int", "strategy": "tensor"});
    });
    fails(&all, "transforms", "transform_config", &|f| {
        f.section()["transform_config"] = json!({"config_groups": {}});
    });
    fails(&all, "tensors", "weight_zero_point", &|f| {
        f.tensors.remove(&format!("{Q}.weight_zero_point"));
    });
    fails(&all, "tensors", "belongs to no part", &|f| {
        f.section()["config_groups"]["group_0"]["weights"]["symmetric"] = json!(true);
    });
    fails(&all, "block-values", "[24, 24]", &|f| f.bytes(&format!("{Q}.weight_shape"))[0] = 9);
    fails(&all, "scales", "a scale of -", &|f| f.bytes(&format!("{Q}.weight_scale"))[1] |= 0x80);
    fails(&all, "outer-values", "lm_head", &|f| {
        f.bytes("lm_head.weight")[..2].copy_from_slice(&[0x80, 0x7f]);
    });
    // Without its section the folder is a float model with strange tensors.
    fails(&all, "tensors", "no tensor", &|f| {
        f.json.get_mut("config.json").unwrap()["quantization_config"] = json!(null);
    });
    fails(&all, "quantization-config", "gptq", &|f| f.section()["quant_method"] = json!("gptq"));
    let report = bench.verify_with(Target::Vllm, &|_| (), &|dir| {
        let mut bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(dir.join("old.safetensors"), bytes).unwrap();
    });
    Bench::assert_failed(&report, "stray-files", "old.safetensors");
}

#[test]
fn rules_of_integer_activations() {
    let spec = spec(FloatType::Bf16, false, false);
    let scheme = linear(Some(weight(8, true, None)), Some(input(ActRule::Asymmetric, false)));
    let bench = Bench::new(spec.clone(), &CompressedTensors, &uniform(&spec, scheme));
    bench.passes(Target::Vllm);
    bench.passes(Target::Transformers);
    bench.fails(Target::VllmAscend, "activation-schemes", "asymmetric", &|_| ());
    bench.fails(Target::Vllm, "activation-schemes", "4-bit activations", &|f| {
        f.section()["config_groups"]["group_0"]["input_activations"]["num_bits"] = json!(4);
    });
    for (field, value, word) in
        [("symmetric", json!(false), "asymmetric weights"), ("num_bits", json!(4), "4-bit weights")]
    {
        bench.fails(Target::Vllm, "weight-schemes", word, &|f| {
            f.section()["config_groups"]["group_0"]["weights"][field] = value.clone();
        });
    }
    bench.fails(Target::Vllm, "weight-schemes", "groups with quantised activations", &|f| {
        let weights = &mut f.section()["config_groups"]["group_0"]["weights"];
        weights["strategy"] = json!("group");
        weights["group_size"] = json!(8);
    });
    bench.fails(Target::Transformers, "quantization-config", "token activations, dynamic: false", &|f| {
        f.section()["config_groups"]["group_0"]["input_activations"]["strategy"] = json!("token");
    });
    bench.fails(Target::VllmAscend, "kv-cache", "not loaded", &|f| {
        f.section()["kv_cache_scheme"] = json!({"num_bits": 8});
    });
    bench.fails(Target::VllmAscend, "act-order", "not loaded", &|f| {
        f.section()["config_groups"]["group_0"]["weights"]["actorder"] = json!("static");
    });
}

#[test]
fn float_folders() {
    let spec = spec(FloatType::Bf16, false, true);
    let bench = Bench::new(spec.clone(), &Dequantized, &with_cache(&spec, static_asym()));
    for target in [Target::Vllm, Target::Transformers] {
        bench.passes(target);
        bench.fails(target, "quantization-config", "awq", &|f| {
            f.json.get_mut("config.json").unwrap()["quantization_config"] = json!({"quant_method": "awq"});
        });
        bench.fails(target, "block-values", "NaN", &|f| set_f32(f, &format!("{Q}.weight"), f32::NAN));
        bench.fails(target, "tensors", "q_norm", &|f| {
            f.tensors.remove("model.layers.0.self_attn.q_norm.weight");
        });
    }
    Bench::assert_failed(
        &bench.verify_with(Target::VllmAscend, &|_| (), &|_| ()),
        "description",
        "the file is missing",
    );
}

#[test]
fn targets_have_names_and_unreadable_folders_are_errors() {
    for target in Target::ALL {
        assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
    }
    assert!("tgi".parse::<Target>().unwrap_err().to_string().contains("transformers"));
    let empty = tempfile::tempdir().unwrap();
    let error = verify(empty.path(), &spec(FloatType::F32, false, false), Target::Vllm).unwrap_err();
    assert_eq!(error.class(), ErrorClass::BadCheckpoint);
}
