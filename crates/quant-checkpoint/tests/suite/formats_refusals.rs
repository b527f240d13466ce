//! Schemes that a format does not hold, blocks that are not what their scheme says, folders that are not what they say.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use crate::folders::*;
use quant_checkpoint::formats::{CompressedTensors, Dequantized, FORMATS, Format, VllmAscend, format};
use quant_checkpoint::{Checkpoint, CheckpointError, Dtype, ErrorClass, FolderSource};
use quant_core::{ActRule, EntryQuant, FloatType, KvGranularity};
use quant_graph::{
    ActOrder, Clipping, InputScheme, KvScheme, LinearId, LinearScheme, LinearWeight, ModelScheme, WeightForm,
    WeightScheme,
};

#[test]
fn refusals_name_the_module_and_the_alternatives() {
    let spec = spec(FloatType::Bf16, false, false);
    let dynamic = Some(input(ActRule::Symmetric, true));
    let full = Some(input(ActRule::SymmetricFull, true));
    let clipped = |rule| Some(InputScheme { clip_ratio: 0.9.into(), ..input(rule, true) });
    let learned = |rule| Some(InputScheme { clip_ratio: Clipping::Learned, ..input(rule, true) });
    let narrow = |rule| Some(InputScheme { bits: bits(4), ..input(rule, true) });
    let mut ordered = weight(4, true, Some(8));
    ordered.act_order = ActOrder::Dynamic;
    let mut ordered8 = weight(8, true, None);
    ordered8.act_order = ActOrder::Dynamic;
    let mut binary = weight(1, false, None);
    binary.form = WeightForm::Binary;
    let w8 = Some(weight(8, true, None));
    let of_form = |form, n| linear(Some(WeightScheme { form, ..weight(n, false, Some(8)) }), None);
    let refused: [(&dyn Format, LinearScheme, &[&str]); 24] = [
        (
            &VllmAscend,
            of_form(WeightForm::MixedInteger, 8),
            &["different bit widths", "q_proj", "dequantized"],
        ),
        (&VllmAscend, of_form(WeightForm::BinaryResidual, 1), &["binary residual codes", "dequantized"]),
        (
            &CompressedTensors,
            of_form(WeightForm::MixedInteger, 4),
            &["different bit widths", "dequantized", "gptq"],
        ),
        (
            &CompressedTensors,
            of_form(WeightForm::BinaryResidual, 1),
            &["binary residual codes", "dequantized"],
        ),
        (
            &VllmAscend,
            linear(Some(weight(4, true, None)), None),
            &["4-bit", "compressed-tensors", "dequantized", "q_proj"],
        ),
        (&VllmAscend, linear(Some(weight(8, true, Some(8))), None), &["groups of 8", "per channel"]),
        (&VllmAscend, linear(Some(weight(8, false, None)), dynamic), &["asymmetric weights"]),
        (&VllmAscend, linear(w8, full), &["SymmetricFull", "static"]),
        (&VllmAscend, linear(w8, Some(input(ActRule::Asymmetric, true))), &["Asymmetric"]),
        (&VllmAscend, linear(w8, clipped(ActRule::Symmetric)), &["clip_ratio of 0.9"]),
        (&VllmAscend, linear(w8, learned(ActRule::Symmetric)), &["learned", "lac: false"]),
        (&VllmAscend, linear(w8, narrow(ActRule::Symmetric)), &["4-bit activations"]),
        (&VllmAscend, linear(None, dynamic), &["float weight"]),
        (&VllmAscend, linear(Some(ordered8), None), &["act-order"]),
        (&CompressedTensors, linear(Some(binary), None), &["1-bit", "dequantized"]),
        (&CompressedTensors, linear(Some(ordered), None), &["act-order", "static"]),
        (
            &CompressedTensors,
            linear(Some(weight(4, true, Some(16))), None),
            &["groups of 16", "q_proj", "24 inputs", "8, 24"],
        ),
        (&CompressedTensors, linear(w8, dynamic), &["Symmetric"]),
        (&CompressedTensors, linear(w8, clipped(ActRule::SymmetricFull)), &["clip_ratio"]),
        (&CompressedTensors, linear(w8, learned(ActRule::SymmetricFull)), &["learned", "lac: false"]),
        (&CompressedTensors, linear(w8, narrow(ActRule::SymmetricFull)), &["4-bit activations"]),
        (
            &CompressedTensors,
            linear(Some(weight(8, true, Some(8))), full),
            &["in groups of 8", "W8A8 per channel"],
        ),
        (&CompressedTensors, linear(Some(weight(4, true, None)), full), &["4-bit weights"]),
        (&CompressedTensors, linear(None, full), &["float weight"]),
    ];
    for (format, scheme, words) in refused {
        let error = format.supports(&spec, &uniform(&spec, scheme)).unwrap_err();
        let text = error.to_string();
        assert!(words.iter().all(|w| text.contains(w)), "{text}");
        assert!(Dequantized.supports(&spec, &uniform(&spec, scheme)).is_ok());
    }
    // 8 divides 24 and 40; 24 divides only the first.
    let wide = uniform(&spec, linear(Some(weight(4, true, Some(24))), None));
    let text = CompressedTensors.supports(&spec, &wide).unwrap_err().to_string();
    assert!(text.contains("down_proj") && text.contains("8, 40"), "{text}");
    let c8 = KvScheme::new(bits(8), ActRule::Symmetric, KvGranularity::ChannelStatic);
    let (head, asymmetric) = (KvGranularity::TokenHead, ActRule::Asymmetric);
    for (format, kv, word) in [
        (
            &VllmAscend as &dyn Format,
            KvScheme::new(bits(8), ActRule::Symmetric, head),
            "keys quantised per token",
        ),
        (&VllmAscend, KvScheme { values: head, ..c8 }, "values quantised per token"),
        (&VllmAscend, KvScheme { before_rope: true, ..c8 }, "before rope"),
        (&VllmAscend, KvScheme { rule: asymmetric, ..c8 }, "asymmetric"),
        (&VllmAscend, KvScheme { bits: bits(4), ..c8 }, "4 bits"),
        (&VllmAscend, KvScheme { bits: bits(2), ..c8 }, "2 bits"),
        (&CompressedTensors, c8, "KV8"),
        (&CompressedTensors, KvScheme { before_rope: true, ..c8 }, "KV8"),
    ] {
        let scheme = ModelScheme { kv: Some(kv), ..uniform(&spec, linear(None, None)) };
        let text = format.supports(&spec, &scheme).unwrap_err();
        assert!(text.what.contains(word) && text.alternatives.contains("dequantized"), "{text}");
        assert!(Dequantized.supports(&spec, &scheme).is_ok());
    }
    // Cut into shards, an input takes its weights along as groups: the shards are what is named.
    for (format, rule) in
        [(&VllmAscend as &dyn Format, ActRule::Symmetric), (&CompressedTensors, ActRule::SymmetricFull)]
    {
        let sharded = Some(InputScheme { shards: 4, ..input(rule, true) });
        let scheme = uniform(&spec, linear(Some(weight(8, true, Some(6))), sharded));
        let text = format.supports(&spec, &scheme).unwrap_err();
        assert!(text.what.contains("4 shards") && text.alternatives.contains("input_shards: 1"), "{text}");
        assert!(text.alternatives.contains("dequantized"), "{text}");
    }
    for (format, rule) in
        [(&VllmAscend as &dyn Format, ActRule::Symmetric), (&CompressedTensors, ActRule::SymmetricFull)]
    {
        let mut scheme = uniform(&spec, linear(w8, Some(input(rule, true))));
        scheme.blocks[1].insert(LinearId::V, linear(None, None));
        let text = format.supports(&spec, &scheme).unwrap_err().to_string();
        assert!(text.contains("fused layer of model.layers.1.self_attn"), "{text}");
        assert!(format.activation_rule(true, Some(false)).is_err());
        assert_eq!(format.activation_rule(true, None).unwrap(), rule);
        assert_eq!(format.activation_rule(false, None).unwrap(), ActRule::Asymmetric);
        assert_eq!(format.activation_rule(false, Some(true)).unwrap(), rule);
    }
}

/// A block of one form under a scheme of another is no block of that scheme.
#[test]
fn a_form_that_is_not_the_schemes_is_refused() {
    let spec = spec(FloatType::Bf16, false, false);
    let schemes = [WeightForm::Integer, WeightForm::MixedInteger, WeightForm::BinaryResidual]
        .map(|form| uniform(&spec, linear(Some(WeightScheme { form, ..weight(2, false, Some(8)) }), None)));
    for (i, scheme) in schemes.iter().enumerate() {
        let block = block(&spec, &Dequantized, scheme, 0, 3);
        for (j, other) in schemes.iter().enumerate() {
            let encoded = Dequantized.encode_block(&spec, other, 0, block.clone());
            assert_eq!(encoded.is_ok(), i == j, "{i} {j}");
            // What is stored takes what the scheme says, at most.
            let linears = block.linears.values();
            let stored: u64 = linears.map(|l| l.weight.storage_bits(FloatType::Bf16)).sum();
            let of_scheme = |(id, s): (&LinearId, &LinearScheme)| {
                let linear = spec.block(0).linear(*id).unwrap().clone();
                s.weight.unwrap().bits_per_weight(linear.shape(), 16) * linear.weights() as f64
            };
            let predicted: f64 = scheme.blocks[0].iter().map(of_scheme).sum();
            let excess = predicted - stored as f64;
            let most = if i == 1 { 0.4 * predicted } else { 1e-6 };
            assert!((-1e-6..=most).contains(&excess), "{i}: {stored} stored, {predicted} predicted");
        }
    }
}

#[test]
fn numbers_that_a_file_would_change_are_refused() {
    let spec = spec(FloatType::Bf16, false, false);
    let scheme = uniform(&spec, linear(Some(weight(4, true, None)), None));
    let good = block(&spec, &CompressedTensors, &scheme, 0, 3);
    let edit = |id: LinearId, change: &dyn Fn(&mut quant_core::QuantizedMatrix)| {
        let mut bad = good.clone();
        if let LinearWeight::Quantized(m) = &mut bad.linears.get_mut(&id).unwrap().weight {
            change(m);
        }
        CompressedTensors.encode_block(&spec, &scheme, 0, bad.clone()).unwrap_err()
    };
    // Not a bf16 number.
    let error = edit(LinearId::O, &|m| m.fill_rows(2..3, |mut to| to.scales[(0, 0)] = 0.1).unwrap());
    assert!(error.to_string().contains("o_proj.weight_scale, element 2"), "{error}");
    assert_eq!(error.class(), ErrorClass::Usage);
    assert!(
        edit(LinearId::UP, &|m| m.fill_rows(0..1, |mut to| to.zeros[(0, 0)] = 3.0).unwrap())
            .to_string()
            .contains("up_proj")
    );
    assert!(
        edit(LinearId::UP, &|m| m.fill_rows(0..1, |mut to| to.scales[(0, 0)] = -1.0).unwrap())
            .to_string()
            .contains("positive")
    );

    let kv = KvScheme::new(bits(8), ActRule::Symmetric, KvGranularity::ChannelStatic);
    let scheme = ModelScheme {
        kv: Some(kv),
        ..uniform(&spec, linear(Some(weight(8, true, None)), Some(input(ActRule::Asymmetric, false))))
    };
    let good = block(&spec, &VllmAscend, &scheme, 0, 4);
    VllmAscend.encode_block(&spec, &scheme, 0, good.clone()).unwrap();
    let mut bad = good.clone();
    let EntryQuant::Channel { scales, .. } = &mut bad.kv.as_mut().unwrap().keys else { panic!() };
    scales[1] = 0.1;
    assert!(
        VllmAscend
            .encode_block(&spec, &scheme, 0, bad.clone())
            .unwrap_err()
            .to_string()
            .contains("kv_cache_scale")
    );
    let mut bad = good.clone();
    let q = bad.linears.get_mut(&LinearId::Q).unwrap();
    q.input = bad_input(q.input);
    assert!(
        VllmAscend
            .encode_block(&spec, &scheme, 0, bad.clone())
            .unwrap_err()
            .to_string()
            .contains("input parameters")
    );
    let mut bad = good;
    bad.linears.remove(&LinearId::K);
    assert!(VllmAscend.encode_block(&spec, &scheme, 0, bad.clone()).is_err());
}

fn bad_input(input: Option<quant_core::ActQuant>) -> Option<quant_core::ActQuant> {
    let Some(quant_core::ActQuant::Static { bits, mut params }) = input else { panic!("{input:?}") };
    params.zero += 1.0;
    Some(quant_core::ActQuant::Static { bits, params })
}

#[test]
fn the_registry() {
    let ids: Vec<_> = FORMATS.iter().map(|f| f.id()).collect();
    assert_eq!(ids, ["compressed-tensors", "dequantized", "vllm-ascend"]);
    assert!(ids.iter().all(|id| format(id).unwrap().id() == *id));
    assert!(format("gguf").is_none());
    for format in FORMATS {
        assert!(!format.summary().is_empty() && !format.schemes().is_empty() && !format.clients().is_empty());
        assert!((1..=2).contains(&format.tier()));
    }
}

/// The side file is read as strictly as it is written: nothing in it can stand for another quantiser than it says.
#[test]
fn schemes_that_contradict_themselves_are_refused() {
    let spec = spec(FloatType::Bf16, false, false);
    let parent = tempfile::tempdir().unwrap();
    let kv = KvScheme {
        before_rope: true,
        values: KvGranularity::TokenHead,
        clip_ratio: Clipping::Learned,
        ..KvScheme::new(bits(4), ActRule::Asymmetric, KvGranularity::ChannelStatic)
    };
    let sharded =
        Some(InputScheme { shards: 4, clip_ratio: Clipping::Learned, ..input(ActRule::Asymmetric, true) });
    let scheme = ModelScheme { kv: Some(kv), ..uniform(&spec, linear(None, sharded)) };
    let dir = parent.path().join("out");
    write(&dir, &spec, &Dequantized, &scheme, 3);
    let good = Folder::load(&dir);
    let entry = "/blocks/1/linears/mlp.down_proj/input";
    for (at, value, word) in [
        ("/kv/before_rope", serde_json::json!(false), None),
        ("/kv/clip_ratio", serde_json::json!(-1.0), Some("positive")),
        ("/kv/clip_ratio", serde_json::json!("own"), Some("did not match")),
        ("/kv/pre_bias", serde_json::json!(true), None),
        ("/blocks/1/kv_clip_ratios/value", serde_json::json!([0.5, 0.0]), Some("positive")),
        ("/blocks/1/kv_clip_ratios/value", serde_json::Value::Null, Some("kv_clip_ratios")),
        ("/blocks/1/kv_clip_ratios", serde_json::Value::Null, Some("kv_clip_ratios")),
        (&format!("{entry}/clip_ratio"), serde_json::json!([0.5, 1.5]), Some("(0, 1]")),
        (&format!("{entry}/clip_ratio"), serde_json::json!([0.5, 0.5, 0.5]), Some("did not match")),
        (&format!("{entry}/clip_ratio"), serde_json::json!([1.5]), Some("(0, 1]")),
        ("/blocks/1/kv_scales/key/3", serde_json::json!(0.0), Some("positive")),
        ("/blocks/1/kv_scales/key_zero/3", serde_json::json!(16), Some("zero levels of 4 bits")),
        ("/blocks/1/kv_scales/key_zero/3", serde_json::json!(1.5), Some("zero levels of 4 bits")),
        ("/blocks/1/kv_scales/key_zero", serde_json::json!([1, 2]), Some("zero levels")),
        ("/blocks/1/kv_scales", serde_json::Value::Null, Some("kv_scales")),
        (&format!("{entry}/shards"), serde_json::json!(7), Some("divide its 40 features")),
        (&format!("{entry}/shards"), serde_json::json!(0), Some("divide its 40 features")),
        (&format!("{entry}/dynamic"), serde_json::json!(false), Some("shards of a dynamic input")),
    ] {
        let mut folder = good.clone();
        let file = folder.json.get_mut("ptq_scheme.json").unwrap();
        let (above, key) = at.rsplit_once('/').unwrap();
        match file.pointer_mut(above).unwrap() {
            serde_json::Value::Array(list) => list[key.parse::<usize>().unwrap()] = value,
            object => object[key] = value,
        }
        let edited = parent.path().join("edited");
        folder.save(&edited);
        let open = || -> Result<_, CheckpointError> {
            let checkpoint = Checkpoint::open(&edited)?;
            Dequantized.scheme(&checkpoint, &spec)?;
            Dequantized.decode(&checkpoint, &spec, 1)
        };
        match (open(), word) {
            (Err(error), Some(word)) => assert!(error.to_string().contains(word), "{at}: {error}"),
            (Ok(block), None) => {
                let kv = block.kv.unwrap();
                assert_eq!((kv.before_rope, kv.pre_bias), (at == "/kv/pre_bias", at == "/kv/pre_bias"));
            }
            (found, _) => panic!("{at}: {found:?}"),
        }
        std::fs::remove_dir_all(&edited).unwrap();
    }
    let mut folder = good;
    folder.json.get_mut("ptq_scheme.json").unwrap()["kv"]["before_rope"] = false.into();
    folder.json.get_mut("ptq_scheme.json").unwrap()["kv"]["pre_bias"] = true.into();
    let edited = parent.path().join("late");
    folder.save(&edited);
    let error = Dequantized.scheme(&Checkpoint::open(&edited).unwrap(), &spec).unwrap_err().to_string();
    assert!(error.contains("pre_bias with before_rope only"), "{error}");
}

#[test]
fn a_folder_must_hold_the_model_and_nothing_else() {
    let spec = spec(FloatType::Bf16, false, false);
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("float");
    write(&dir, &spec, &Dequantized, &uniform(&spec, linear(None, None)), 1);
    let mut folder = Folder::load(&dir);
    folder.json.remove("ptq_scheme.json");
    let open = |name: &str, folder: &Folder| {
        let dir = parent.path().join(name);
        folder.save(&dir);
        FolderSource::open(Checkpoint::open(&dir).unwrap(), spec.clone())
    };
    let ok = open("ok", &folder).unwrap();
    assert!(ok.format().is_none());

    let name = "model.layers.1.mlp.up_proj.weight";
    let mut edited = folder.clone();
    let tensor = edited.tensors.remove(name).unwrap();
    assert!(
        matches!(open("a", &edited), Err(CheckpointError::NoSuchTensor { tensor, .. }) if tensor == name)
    );
    let mut edited = folder.clone();
    edited.tensors.get_mut(name).unwrap().1 = vec![24, 40];
    assert!(matches!(open("b", &edited), Err(CheckpointError::ShapeMismatch { .. })));
    let mut edited = folder.clone();
    edited.tensors.get_mut(name).unwrap().0 = Dtype::I32;
    assert!(matches!(open("c", &edited), Err(CheckpointError::DtypeMismatch { .. })));
    let mut edited = folder.clone();
    edited.tensors.insert("model.layers.2.mlp.up_proj.weight".into(), tensor.clone());
    assert!(matches!(open("d", &edited), Err(CheckpointError::UnexpectedTensor { .. })));
    let mut edited = folder.clone();
    edited.tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), tensor);
    assert!(open("e", &edited).is_ok());
    let mut edited = folder;
    edited.json.get_mut("config.json").unwrap()["quantization_config"] =
        serde_json::json!({"quant_method": "awq"});
    let error = open("f", &edited).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Unsupported);
    assert!(error.to_string().contains("\"awq\"") && error.to_string().contains("vllm-ascend"), "{error}");
}
