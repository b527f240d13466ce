//! What loaders said of edited folders, and what `verify` says: one line per edit, none of them a false alarm or a miss.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use crate::folders::*;
use quant_checkpoint::formats::{CompressedTensors, Format, VllmAscend};
use quant_checkpoint::verify::judge;
use quant_checkpoint::{Dtype, Rules, Target, VerifyReport, judge_plan, verify, verify_all};
use quant_core::{ActRule, FloatType, KvGranularity};
use quant_graph::{KvScheme, LinearScheme, ModelScheme, ModelSpec};
use serde_json::{Value, json};

/// What is to be said of an edit.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Say {
    Pass,
    /// Passes, with a word of this check.
    Advice(&'static str),
    /// Fails by this check.
    Fail(&'static str),
}
use Say::{Advice, Fail, Pass};

const Q: &str = "model.layers.0.self_attn.q_proj";
const K: &str = "model.layers.0.self_attn.k_proj";
const V: &str = "model.layers.0.self_attn.v_proj";
const O: &str = "model.layers.0.self_attn.o_proj";
const DESCRIPTION: &str = "quant_model_description.json";

fn model() -> ModelSpec {
    ModelSpec { hidden: 64, intermediate: 96, head_dim: 32, ..spec(FloatType::Bf16, false, false) }
}

fn int8(rule: ActRule, dynamic: bool) -> LinearScheme {
    linear(Some(weight(8, true, None)), Some(input(rule, dynamic)))
}

fn c8(scheme: ModelScheme) -> ModelScheme {
    let kv = KvScheme::new(bits(8), ActRule::Symmetric, KvGranularity::ChannelStatic);
    ModelScheme { kv: Some(kv), ..scheme }
}

/// The folder a line of the table begins with.
fn folder(kind: &str, spec: &ModelSpec) -> Folder {
    let (format, scheme): (&dyn Format, ModelScheme) = match kind {
        "dynamic" => (&VllmAscend, uniform(spec, int8(ActRule::Symmetric, true))),
        "static" => (&VllmAscend, uniform(spec, int8(ActRule::Asymmetric, false))),
        "c8" => (&VllmAscend, c8(uniform(spec, int8(ActRule::Symmetric, true)))),
        "packed" => (&CompressedTensors, uniform(spec, linear(Some(weight(4, false, Some(32))), None))),
        "int8" => (&CompressedTensors, uniform(spec, int8(ActRule::SymmetricFull, true))),
        "int8-static" => (&CompressedTensors, uniform(spec, int8(ActRule::Asymmetric, false))),
        other => panic!("{other}"),
    };
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("out");
    write(&dir, spec, format, &scheme, 17);
    Folder::load(&dir)
}

fn remove(f: &mut Folder, name: &str) {
    assert!(f.tensors.remove(name).is_some(), "{name}");
}
fn remove_with_entry(f: &mut Folder, name: &str) {
    remove(f, name);
    assert!(f.description().shift_remove(name).is_some(), "{name}");
}
fn entry(f: &mut Folder, module: &str, kind: &str) {
    f.description().insert(format!("{module}.weight"), json!(kind));
}
fn reshape(f: &mut Folder, name: &str, shape: &[usize]) {
    let tensor = f.tensors.get_mut(name).unwrap();
    assert_eq!(tensor.1.iter().product::<usize>(), shape.iter().product::<usize>());
    tensor.1 = shape.to_vec();
}
fn floats(f: &Folder, name: &str) -> Vec<f32> {
    let (dtype, _, bytes) = &f.tensors[name];
    match *dtype {
        Dtype::F32 => bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        Dtype::BF16 => bytes
            .chunks(2)
            .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
            .collect(),
        Dtype::I8 => bytes.iter().map(|b| f32::from(*b as i8)).collect(),
        other => panic!("{other}"),
    }
}
fn to_f32(f: &mut Folder, name: &str) {
    let bytes = floats(f, name).into_iter().flat_map(f32::to_le_bytes).collect();
    let shape = f.tensors[name].1.clone();
    f.tensors.insert(name.to_owned(), (Dtype::F32, shape, bytes));
}
fn to_bf16(f: &mut Folder, name: &str) {
    let bytes =
        floats(f, name).into_iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect();
    let shape = f.tensors[name].1.clone();
    f.tensors.insert(name.to_owned(), (Dtype::BF16, shape, bytes));
}
fn set(f: &mut Folder, name: &str, value: f32) {
    f.bytes(name)[..4].copy_from_slice(&value.to_le_bytes());
}
fn group(f: &mut Folder) -> &mut Value {
    &mut f.section()["config_groups"]["group_0"]
}
fn cache(f: &mut Folder, scheme: Value) {
    f.section()["kv_cache_scheme"] = scheme;
}
fn dtype(f: &mut Folder, name: &str) {
    f.json.get_mut("config.json").unwrap()["torch_dtype"] = json!(name);
}
fn cache_names(layer: usize) -> Vec<String> {
    ["k_proj.kv_cache_scale", "k_proj.kv_cache_offset", "v_proj.kv_cache_scale", "v_proj.kv_cache_offset"]
        .map(|n| format!("model.layers.{layer}.self_attn.{n}"))
        .to_vec()
}
fn scale(f: &mut Folder, name: &str, shape: &[usize]) {
    let count = shape.iter().product();
    f.tensors.insert(name.to_owned(), (Dtype::BF16, shape.to_vec(), [0_u8, 0x3c].repeat(count)));
}

type Row = (&'static str, &'static str, &'static str, Say, fn(&mut Folder));

/// Id, folder, target, what is said, the edit.
const ROWS: &[Row] = &[
    ("a1", "dynamic", "vllm-ascend", Fail("tensors"), |f| remove(f, &format!("{Q}.weight_scale"))),
    ("a1", "dynamic", "vllm-ascend", Fail("tensors"), |f| remove_with_entry(f, &format!("{Q}.weight_scale"))),
    ("a2", "dynamic", "vllm-ascend", Advice("dynamic-offsets"), |f| {
        remove_with_entry(f, &format!("{Q}.weight_offset"));
    }),
    ("a3", "dynamic", "vllm-ascend", Fail("tensors"), |f| reshape(f, &format!("{Q}.weight_scale"), &[128])),
    ("a4", "dynamic", "vllm-ascend", Pass, |f| to_bf16(f, &format!("{Q}.weight_scale"))),
    ("a4", "dynamic", "vllm-ascend", Pass, |f| to_bf16(f, &format!("{Q}.bias"))),
    ("a4", "dynamic", "vllm-ascend", Pass, |f| to_f32(f, &format!("{Q}.weight"))),
    ("a5", "dynamic", "vllm-ascend", Fail("embedding-and-head"), |f| {
        f.description().shift_remove("lm_head.weight");
    }),
    ("a5", "dynamic", "vllm-ascend", Fail("embedding-and-head"), |f| {
        f.description().shift_remove("model.embed_tokens.weight");
    }),
    ("a5", "dynamic", "vllm-ascend", Fail("fused-layers"), |f| {
        f.description().shift_remove(&format!("{Q}.weight"));
    }),
    ("a5", "dynamic", "vllm-ascend", Fail("fused-layers"), |f| {
        f.description().shift_remove(&format!("{O}.weight"));
    }),
    ("a6", "dynamic", "vllm-ascend", Advice("tensors-have-entries"), |f| {
        f.description().retain(|k, _| k.ends_with(".weight"));
    }),
    ("a6", "dynamic", "vllm-ascend", Advice("tensors-have-entries"), |f| {
        f.description().retain(|k, _| !k.contains("norm"));
    }),
    ("a6", "dynamic", "vllm-ascend", Advice("norm-biases"), |f| {
        f.description().insert("model.layers.0.input_layernorm.bias".into(), json!("FLOAT"));
    }),
    ("a7", "dynamic", "vllm-ascend", Fail("fused-layers"), |f| entry(f, V, "FLOAT")),
    ("a8", "dynamic", "vllm-ascend", Fail("tensors"), |f| [Q, K, V].iter().for_each(|m| entry(f, m, "W8A8"))),
    ("a9", "dynamic", "vllm-ascend", Fail("known-types"), |f| entry(f, O, "W4A8_DYNAMIC")),
    ("a9", "dynamic", "vllm-ascend", Fail("known-types"), |f| entry(f, O, "W8A8_PDMIX")),
    ("a9", "dynamic", "vllm-ascend", Fail("known-types"), |f| entry(f, O, "w8a8_dynamic")),
    ("a10", "dynamic", "vllm-ascend", Advice("310p"), |f| entry(f, O, "W8A16")),
    ("a10", "dynamic", "sglang-npu", Fail("known-types"), |f| entry(f, O, "W8A16")),
    ("a11", "dynamic", "vllm-ascend", Fail("no-quantization-config"), |f| {
        f.json.get_mut("config.json").unwrap()["quantization_config"] = json!({"quant_method": "ascend"});
    }),
    ("a12", "dynamic", "vllm-ascend", Pass, |f| dtype(f, "float16")),
    ("a13", "dynamic", "vllm-ascend", Pass, |f| {
        f.tensors
            .insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), (Dtype::F32, vec![1], vec![0; 4]));
    }),
    ("s1", "static", "vllm-ascend", Fail("tensors"), |f| dtype(f, "float16")),
    ("s1", "static", "vllm-ascend", Fail("tensors"), |f| {
        let name = format!("{Q}.deq_scale");
        let bits = floats(f, &name).into_iter().flat_map(|v| i64::from(v.to_bits()).to_le_bytes()).collect();
        f.tensors.insert(name, (Dtype::I64, vec![128], bits));
    }),
    ("s1", "static", "vllm-ascend", Fail("static-inputs"), |f| set(f, &format!("{Q}.input_offset"), 300.0)),
    ("s1", "static", "vllm-ascend", Fail("static-inputs"), |f| {
        let double = 2.0 * floats(f, &format!("{Q}.input_scale"))[0];
        set(f, &format!("{Q}.input_scale"), double);
    }),
    ("s2", "static", "vllm-ascend", Fail("tensors"), |f| remove(f, &format!("{Q}.quant_bias"))),
    ("s2", "static", "vllm-ascend", Fail("tensors"), |f| remove(f, &format!("{Q}.input_scale"))),
    ("s3", "static", "vllm-ascend", Pass, |f| reshape(f, &format!("{Q}.input_scale"), &[])),
    ("c1", "c8", "vllm-ascend", Fail("kv-cache"), |f| drop(f.description().shift_remove("kv_cache_type"))),
    ("c1", "c8", "vllm-ascend", Fail("kv-cache"), |f| f.description().retain(|k, _| !k.starts_with("kv_"))),
    ("c2", "c8", "vllm-ascend", Pass, |f| drop(f.description().shift_remove("kv_quant_type"))),
    ("c3", "c8", "vllm-ascend", Fail("tensors"), |f| remove(f, &format!("{K}.kv_cache_scale"))),
    ("c3", "c8", "vllm-ascend", Fail("kv-cache"), |f| remove_with_entry(f, &format!("{K}.kv_cache_scale"))),
    ("c4", "c8", "vllm-ascend", Advice("float-cache"), |f| {
        cache_names(0).iter().for_each(|n| remove_with_entry(f, n));
    }),
    ("c5", "c8", "vllm-ascend", Pass, |f| to_f32(f, &format!("{K}.kv_cache_scale"))),
    ("c5", "c8", "vllm-ascend", Pass, |f| reshape(f, &format!("{K}.kv_cache_scale"), &[64, 1])),
    ("c6", "c8", "vllm-ascend", Fail("kv-cache"), |f| scale(f, &format!("{K}.kv_cache_scale"), &[1])),
    ("p1", "packed", "vllm", Fail("tensors"), |f| remove(f, &format!("{Q}.weight_scale"))),
    ("p1", "packed", "vllm", Fail("tensors"), |f| remove(f, &format!("{Q}.weight_zero_point"))),
    ("p1", "packed", "vllm", Fail("tensors"), |f| remove(f, &format!("{Q}.weight_shape"))),
    ("p2", "packed", "vllm", Advice("exact-scales"), |f| to_f32(f, &format!("{Q}.weight_scale"))),
    ("p3", "packed", "vllm", Fail("tensors"), |f| {
        f.tensors.insert(format!("{Q}.weight_zero_point"), (Dtype::I8, vec![128, 2], vec![0; 256]));
    }),
    ("p4", "packed", "vllm", Advice("ignore-head"), |f| f.section()["ignore"] = json!([])),
    ("p4", "packed", "transformers", Fail("ignore-head"), |f| f.section()["ignore"] = json!([])),
    ("p5", "packed", "vllm", Fail("tensors"), |f| group(f)["weights"]["symmetric"] = json!(true)),
    ("p6", "packed", "vllm", Fail("tensors"), |f| group(f)["weights"]["group_size"] = json!(64)),
    ("p6", "packed", "vllm", Fail("tensors"), |f| group(f)["weights"]["num_bits"] = json!(8)),
    ("p6", "packed", "vllm", Fail("formats"), |f| {
        f.section()["format"] = json!("int-quantized");
        group(f)["format"] = json!("int-quantized");
    }),
    ("p6", "packed", "vllm", Fail("quantization-config"), |f| {
        f.section().as_object_mut().unwrap().shift_remove("format");
        group(f).as_object_mut().unwrap().shift_remove("format");
    }),
    ("p7", "packed", "vllm", Pass, |f| drop(group(f).as_object_mut().unwrap().shift_remove("format"))),
    ("p8", "packed", "vllm", Fail("fused-layers"), |f| f.section()["ignore"] = json!(["lm_head", Q])),
    ("p9", "packed", "vllm", Fail("act-order"), |f| ordered(f)),
    ("p9", "packed", "vllm@0.30", Fail("act-order"), |f| ordered(f)),
    ("p9", "packed", "vllm@0.28", Pass, |f| ordered(f)),
    ("p9", "packed", "vllm@0.23", Fail("act-order"), |f| ordered(f)),
    ("p9", "packed", "transformers", Fail("act-order"), |f| ordered(f)),
    ("p10", "packed", "vllm", Fail("kv-cache"), |f| {
        cache(f, json!({"num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": true}));
    }),
    ("p11", "packed", "vllm", Advice("cache-scales"), |f| cache(f, float8("tensor"))),
    // As llm-compressor writes it.
    ("p11", "packed", "vllm", Pass, |f| {
        cache(f, float8("tensor"));
        for layer in 0..2 {
            scale(f, &format!("model.layers.{layer}.self_attn.k_scale"), &[1]);
            scale(f, &format!("model.layers.{layer}.self_attn.v_scale"), &[]);
        }
    }),
    ("p12", "packed", "vllm", Advice("cache-scales"), |f| cache(f, float8("attn_head"))),
    ("p13", "packed", "vllm", Fail("kv-cache"), |f| {
        cache(f, json!({"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": false}));
    }),
    ("p14", "packed", "vllm", Pass, |f| f.section()["quantization_status"] = json!("frozen")),
    ("i1", "int8", "vllm", Fail("tensors"), |f| remove(f, &format!("{Q}.weight_scale"))),
    ("i1", "int8", "vllm", Fail("tensors"), |f| reshape(f, &format!("{Q}.weight_scale"), &[128])),
    ("i2", "int8", "vllm", Pass, |f| group(f)["input_activations"]["symmetric"] = json!(false)),
    ("i2", "int8", "vllm-ascend", Fail("activation-schemes"), |f| {
        group(f)["input_activations"]["symmetric"] = json!(false);
    }),
    ("i3", "int8", "vllm", Fail("tensors"), |f| {
        group(f)["input_activations"]["dynamic"] = json!(false);
        group(f)["input_activations"]["strategy"] = json!("tensor");
    }),
    ("z1", "int8-static", "vllm", Fail("tensors"), |f| remove(f, &format!("{Q}.input_zero_point"))),
    ("z2", "int8-static", "vllm", Pass, |f| {
        let name = format!("{Q}.input_zero_point");
        let zero = i32::from(f.bytes(&name)[0] as i8);
        f.tensors.insert(name, (Dtype::I32, vec![1], zero.to_le_bytes().to_vec()));
    }),
    ("z2", "int8-static", "vllm", Pass, |f| reshape(f, &format!("{Q}.input_scale"), &[])),
];

fn float8(strategy: &str) -> Value {
    json!({"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": true})
}

/// Act-order by group indices, the indices that say what holds without them.
fn ordered(f: &mut Folder) {
    group(f)["weights"]["actorder"] = json!("group");
    let packed: Vec<String> = f.tensors.keys().filter(|n| n.ends_with(".weight_packed")).cloned().collect();
    for name in packed {
        let inputs = f.tensors[&name].1[1] * 8;
        let bytes = (0..inputs as i32).flat_map(|c| (c / 32).to_le_bytes()).collect();
        f.tensors.insert(name.replace("packed", "g_idx"), (Dtype::I32, vec![inputs], bytes));
    }
}

fn assert_said(report: &VerifyReport, say: Say, row: &str) {
    let failed: Vec<_> = report.failed().collect();
    let check = match say {
        Pass => return assert!(report.passed(), "{row}: {failed:#?}"),
        Advice(check) | Fail(check) => check,
    };
    assert_eq!(report.passed(), matches!(say, Advice(_)), "{row}: {failed:#?}");
    assert!(failed.iter().any(|c| c.name == check), "{row}: {failed:#?}");
}

#[test]
fn every_mutation_is_judged_as_its_loader_does() {
    for (number, (id, kind, target, say, edit)) in ROWS.iter().enumerate() {
        let mut spec = model();
        let mut folder = folder(kind, &spec);
        edit(&mut folder);
        if folder.json["config.json"]["torch_dtype"] == "float16" {
            spec.dtype = FloatType::F16;
        }
        assert!(folder.json.contains_key(DESCRIPTION) == matches!(*kind, "dynamic" | "static" | "c8"));
        let dir = tempfile::tempdir().unwrap();
        folder.save(dir.path());
        let report = verify(dir.path(), &spec, target.parse::<Rules>().unwrap()).unwrap();
        assert_said(&report, *say, &format!("row {number}, {id}"));
    }
}

#[test]
fn every_row_of_the_reference_has_a_line() {
    let Some(table) = shared("spec/loader_mutations.tsv") else { return };
    let text = std::fs::read_to_string(table).unwrap();
    let ids: BTreeSet<&str> = text.lines().skip(1).filter_map(|l| l.split('\t').next()).collect();
    let mut lines: BTreeSet<&str> = ROWS.iter().map(|row| row.0).collect();
    // Held by the next test.
    lines.insert("t1");
    assert_eq!(ids, lines);
}

#[test]
fn groups_bound_tensor_parallelism() {
    // hidden, MLP, heads, heads of keys, head size; devices with groups of 128.
    for (name, dims, sizes) in [
        ("Qwen2.5-0.5B", (896, 4864, 14, 2, 64), &[1][..]),
        ("Qwen2.5-1.5B", (1536, 8960, 12, 2, 128), &[1, 2]),
        ("Qwen2.5-3B", (2048, 11008, 16, 2, 128), &[1, 2]),
        ("Qwen2.5-7B", (3584, 18944, 28, 4, 128), &[1, 2, 4]),
        ("Qwen2.5-14B", (5120, 13824, 40, 8, 128), &[1, 2, 4]),
        ("Qwen2.5-32B", (5120, 27648, 40, 8, 128), &[1, 2, 4, 8]),
        ("Qwen2.5-72B", (8192, 29568, 64, 8, 128), &[1]),
        ("Llama-2-7B", (4096, 11008, 32, 32, 128), &[1, 2]),
        ("Llama-2-13B", (5120, 13824, 40, 40, 128), &[1, 2, 4]),
        ("Llama-3-8B", (4096, 14336, 32, 8, 128), &[1, 2, 4, 8]),
        ("Qwen3-4B", (2560, 9728, 32, 8, 128), &[1, 2, 4]),
        ("Qwen3-8B", (4096, 12288, 32, 8, 128), &[1, 2, 4, 8]),
    ] {
        let (hidden, intermediate, heads, kv_heads, head_dim) = dims;
        let spec = ModelSpec { hidden, intermediate, heads, kv_heads, head_dim, ..model() };
        let scheme = uniform(&spec, linear(Some(weight(4, false, Some(128))), None));
        let verdicts = judge_plan(&spec, &scheme, &CompressedTensors);
        let vllm = verdicts.iter().find(|v| v.target == Target::Vllm).unwrap();
        assert_eq!((vllm.passes(), vllm.tensor_parallel.as_slice()), (true, sizes), "{name}: {vllm}");
        assert_eq!(vllm.passes_with(8, &spec, &scheme, &CompressedTensors), sizes.contains(&8), "{name}");
        // Nothing but heads bounds whole channels.
        let whole = uniform(&spec, int8(ActRule::Symmetric, true));
        let ascend = &judge_plan(&spec, &whole, &VllmAscend)[0];
        assert_eq!(ascend.tensor_parallel.contains(&8), heads % 8 == 0, "{name}: {ascend}");
    }
}

#[test]
fn plans_are_judged_by_versions_and_shapes() {
    let spec = model();
    let plan = |target: &str, scheme: &ModelScheme, format: &dyn Format| {
        judge(target.parse().unwrap(), &spec, scheme, format)
    };
    let packed = |bits, symmetric, group| uniform(&spec, linear(Some(weight(bits, symmetric, group)), None));
    for (target, bits, symmetric, group, loads) in [
        ("vllm@0.23", 4, false, Some(32), true),
        ("vllm@0.11", 4, false, Some(32), false),
        ("vllm@0.23", 8, false, None, false),
        ("vllm@0.26", 8, false, None, true),
        ("vllm@0.23", 3, true, Some(32), false),
        ("vllm@0.26", 3, true, Some(32), true),
        ("vllm@0.30", 3, false, Some(32), false),
        ("vllm", 3, false, Some(32), true),
        ("vllm@0.23", 4, true, Some(16), false),
        ("vllm", 4, true, Some(16), true),
        ("vllm-ascend", 4, true, Some(32), false),
        ("sglang-npu", 4, true, Some(32), false),
        ("transformers", 3, false, Some(16), true),
    ] {
        let verdict = plan(target, &packed(bits, symmetric, group), &CompressedTensors);
        assert_eq!(verdict.passes(), loads, "{target}: {verdict}");
    }
    let misaligned = plan("vllm@0.11", &packed(4, false, Some(32)), &CompressedTensors);
    assert!(misaligned.to_string().contains("inputs in multiples of 128"), "{misaligned}");
    let unwise =
        plan("vllm-ascend", &uniform(&spec, int8(ActRule::SymmetricFull, false)), &CompressedTensors);
    assert!(unwise.passes() && unwise.advice.join(" ").contains("uninitialised"), "{unwise:?}");
    let cached = c8(uniform(&spec, int8(ActRule::Symmetric, true)));
    assert!(plan("vllm-ascend", &cached, &VllmAscend).passes());
    assert!(!plan("vllm-ascend@0.14", &cached, &VllmAscend).passes());
    let narrow = ModelSpec { head_dim: 48, ..spec.clone() };
    let verdict = judge(Target::VllmAscend.into(), &narrow, &cached, &VllmAscend);
    assert!(verdict.to_string().contains("head_dim is 48"), "{verdict}");
    let skipped = plan("sglang-npu", &cached, &VllmAscend);
    assert!(skipped.passes() && skipped.advice.join(" ").contains("skips the scales"), "{skipped:?}");
}

#[test]
fn without_a_target_every_reader_gives_a_verdict() {
    let spec = model();
    let dir = tempfile::tempdir().unwrap();
    folder("packed", &spec).save(dir.path());
    let verdict = |tp| {
        let reports = verify_all(dir.path(), &spec, &[], tp).unwrap();
        reports.iter().map(|r| (r.target.name(), r.passed())).collect::<Vec<_>>()
    };
    let names = ["vllm-ascend", "vllm", "sglang-npu", "transformers"];
    let expected = |passed: [bool; 4]| names.into_iter().zip(passed).collect::<Vec<_>>();
    assert_eq!(verdict(None), expected([false, true, false, true]));
    // 96 / 2 inputs are not a whole number of groups of 32.
    assert_eq!(verdict(Some(2)), expected([false, false, false, false]));
    let reports = verify_all(dir.path(), &spec, &[Target::Vllm.into()], None).unwrap();
    assert_eq!(reports[0].tensor_parallel, [1]);
    assert_eq!(reports[0].rules, "vllm 0.33");
}

#[test]
fn configs_without_a_dtype_are_told_and_static_ones_refused() {
    for (kind, target, say) in [
        ("static", "vllm-ascend", Fail("dtype")),
        ("dynamic", "vllm-ascend", Advice("dtype")),
        ("packed", "vllm", Advice("dtype")),
    ] {
        let (spec, dir) = (model(), tempfile::tempdir().unwrap());
        let mut folder = folder(kind, &spec);
        folder.json.get_mut("config.json").unwrap().as_object_mut().unwrap().shift_remove("torch_dtype");
        folder.save(dir.path());
        let report = verify(dir.path(), &spec, target.parse::<Rules>().unwrap()).unwrap();
        assert_said(&report, say, kind);
    }
}
