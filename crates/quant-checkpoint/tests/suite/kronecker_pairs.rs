//! Kronecker pairs before four bits, in folders of `vllm-ascend`: `W4A4_FLATQUANT_DYNAMIC`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use crate::folders::{Folder, bits, block, input, linear, spec, uniform, weight, write};
use quant_checkpoint::formats::{Format, VllmAscend};
use quant_checkpoint::verify::judge;
use quant_checkpoint::{
    Checkpoint, CheckpointError, Dtype, FolderSource, Rules, Target, VerifyReport, verify, verify_all,
};
use quant_core::{ActQuant, ActRule, AxisShape, FloatType, KvGranularity, OnlineShape};
use quant_graph::{
    BlockSource as _, Clipping, InputScheme, KvScheme, LinearId, LinearScheme, ModelScheme, ModelSpec,
    OnlineScheme, PairKernel, Site,
};
use serde_json::json;

/// Inputs of 64, 128 and 192 features, of pairs that the kernel takes: 8 x 8, 8 x 16 and 12 x 16.
fn paired(dtype: FloatType, tied: bool, full: bool) -> ModelSpec {
    ModelSpec { hidden: 64, intermediate: 192, head_dim: 32, ..spec(dtype, tied, full) }
}

fn four() -> LinearScheme {
    let clip_ratio = Clipping::Tied;
    let narrow = InputScheme { bits: bits(4), clip_ratio, ..input(ActRule::Symmetric, true) };
    linear(Some(weight(4, true, None)), Some(narrow))
}

/// Four bits behind the pair of every input.
fn pairs(model: &ModelSpec) -> ModelScheme {
    let pair = |site| (site, PairKernel::of(model.dtype).shape(model.site_width(site)).unwrap());
    let online = OnlineScheme { sites: Site::ALL.map(pair).into(), pair: None };
    ModelScheme { online: vec![online; model.layers], ..uniform(model, four()) }
}

fn c8(scheme: ModelScheme) -> ModelScheme {
    let kv = KvScheme::new(bits(8), ActRule::Symmetric, KvGranularity::ChannelStatic);
    ModelScheme { kv: Some(kv), ..scheme }
}

/// The linears of a site in every block without a pair.
fn without_pair(mut scheme: ModelScheme, site: Site, plain: LinearScheme) -> ModelScheme {
    for (block, online) in scheme.blocks.iter_mut().zip(&mut scheme.online) {
        online.sites.remove(&site);
        block.iter_mut().filter(|(id, _)| id.site() == site).for_each(|(_, linear)| *linear = plain);
    }
    scheme
}

#[test]
fn pairs_before_four_bits_are_read_back() {
    let w8a8 = linear(Some(weight(8, true, None)), Some(input(ActRule::Symmetric, true)));
    let w4a4 = InputScheme { clip_ratio: Clipping::NONE, ..four().input.unwrap() };
    let w4a4 = LinearScheme { input: Some(w4a4), ..four() };
    for (dtype, tied, full) in
        [(FloatType::Bf16, false, true), (FloatType::F16, true, false), (FloatType::F32, false, false)]
    {
        let model = paired(dtype, tied, full);
        let whole = pairs(&model);
        for scheme in [
            whole.clone(),
            c8(whole.clone()),
            without_pair(whole.clone(), Site::MlpActivation, w8a8),
            without_pair(whole.clone(), Site::AttentionOutput, w4a4),
            // No clipping was learned.
            ModelScheme { online: whole.online.clone(), ..uniform(&model, w4a4) },
        ] {
            VllmAscend.supports(&model, &scheme).unwrap();
            let parent = tempfile::tempdir().unwrap();
            let dir = parent.path().join("out");
            let blocks = write(&dir, &model, &VllmAscend, &scheme, 5);
            let checkpoint = Checkpoint::open(&dir).unwrap();
            assert_eq!(VllmAscend.scheme(&checkpoint, &model).unwrap(), scheme);
            let mut source = FolderSource::open(checkpoint, model.clone()).unwrap();
            for (index, block) in blocks.into_iter().enumerate() {
                assert_eq!(source.block(index).unwrap(), block);
            }
            let report = verify(&dir, &model, Target::VllmAscend).unwrap();
            assert!(report.passed(), "{:#?}", report.failed().collect::<Vec<_>>());
            assert!(report.check("exact-transforms").unwrap().passed);
        }
    }
}

/// Description and tensors byte by byte, and what is computed with them.
#[test]
fn a_pair_in_a_folder() {
    let model = ModelSpec { layers: 1, ..paired(FloatType::Bf16, false, false) };
    let scheme = pairs(&model);
    let declared = VllmAscend.declare(&model, &scheme, &|_| Some(Dtype::BF16));
    let files = VllmAscend.side_files(&model, &scheme, &declared, &[]);
    let description: serde_json::Value = serde_json::from_slice(&files[0].1).unwrap();
    assert_eq!((files.len(), files[0].0.as_str()), (1, "quant_model_description.json"));
    assert_eq!(description["model_quant_type"], "W4A4_FLATQUANT_DYNAMIC");
    let down = "model.layers.0.mlp.down_proj";
    let parts = ["weight", "weight_scale", "weight_offset", "left_trans", "right_trans", "clip_ratio"];
    for part in parts {
        assert_eq!(description[format!("{down}.{part}")], "W4A4_FLATQUANT_DYNAMIC", "{part}");
    }
    for float in ["lm_head.weight", "model.layers.0.input_layernorm.weight"] {
        assert_eq!(description[float], "FLOAT");
    }

    let mut params = block(&model, &VllmAscend, &scheme, 0, 3);
    let (left, right) = (
        ndarray::Array2::from_shape_fn((12, 12), |(i, j)| (i + 2 * j) as f32 / 8.0 - 2.0),
        ndarray::Array2::from_shape_fn((16, 16), |(i, j)| if i == j { 1.0 } else { (j as f32 - 5.0) / 64.0 }),
    );
    let shape = scheme.online[0].sites[&Site::MlpActivation];
    let pair = shape.build(vec![left.clone(), right.clone()]).unwrap();
    params.online.sites.insert(Site::MlpActivation, pair.into());
    let linear = params.linears.get_mut(&LinearId::DOWN).unwrap();
    let (rule, clip_ratio) = (ActRule::Symmetric, 0.75.into());
    linear.input = Some(ActQuant::Dynamic { bits: bits(4), rule, clip_ratio, shards: 1 });
    let levels = linear.weight.quantized().unwrap().levels().clone();
    let scales = linear.weight.quantized().unwrap().scales().clone();
    let encoded = VllmAscend.encode_block(&model, &scheme, 0, params.clone()).unwrap();
    let found: Vec<_> = encoded.iter().filter(|t| t.name.starts_with(down)).collect();
    let found: Vec<_> = found.iter().map(|t| (&t.name[down.len() + 1..], t.dtype, &t.shape[..])).collect();
    let expected = [
        ("weight", Dtype::I8, &[64, 192][..]),
        ("weight_scale", Dtype::F32, &[64, 1]),
        ("weight_offset", Dtype::F32, &[64, 1]),
        ("left_trans", Dtype::BF16, &[12, 12]),
        ("right_trans", Dtype::BF16, &[16, 16]),
        ("clip_ratio", Dtype::F32, &[1]),
    ];
    assert_eq!(found, expected);
    let bytes = |part: &str| &encoded.iter().find(|t| t.name == format!("{down}.{part}")).unwrap().bytes;
    // 0.75 is 3F400000.
    assert_eq!(bytes("clip_ratio")[..], [0, 0, 0x40, 0x3f]);
    // One value of -8 to 7 to a byte.
    let codes: Vec<u8> = levels.iter().map(|level| level.wrapping_sub(8)).collect();
    assert_eq!(bytes("weight"), &codes);
    assert!(codes.iter().all(|code| (-8..8).contains(&(*code as i8))));
    assert_eq!(bytes("weight_scale"), &scales.iter().flat_map(|s| s.to_le_bytes()).collect::<Vec<_>>());
    assert!(bytes("weight_offset").iter().all(|byte| *byte == 0));
    // Row by row: -2, -1.75, ... are C000, BFE0, ... in bfloat16, and 1, -4/64 are 3F80, BD80.
    assert_eq!(bytes("left_trans")[..4], [0x00, 0xc0, 0xe0, 0xbf]);
    assert_eq!(bytes("right_trans")[..4], [0x80, 0x3f, 0x80, 0xbd]);
    let bf16 = |m: &ndarray::Array2<f32>| {
        m.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect::<Vec<_>>()
    };
    assert_eq!((bytes("left_trans"), bytes("right_trans")), (&bf16(&left), &bf16(&right)));

    // left^T X right.
    let x = ndarray::Array2::from_shape_fn((12, 16), |(i, j)| ((7 * i + 3 * j) % 11) as f64 - 4.0);
    let want = left.mapv(f64::from).t().dot(&x).dot(&right.mapv(f64::from));
    let mut row: Vec<f64> = x.iter().copied().collect();
    params.online.sites[&Site::MlpActivation].apply(&mut row);
    assert!(row.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-9));

    // What the kernel would round is no matrix whose inverse the weights could have.
    let mut rounded = params.clone();
    let loose = shape.build(vec![left.mapv(|v| v * 1.001), right]).unwrap();
    rounded.online.sites.insert(Site::MlpActivation, loose.into());
    let error = VllmAscend.encode_block(&model, &scheme, 0, rounded.clone()).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::NotEncodable { subject, .. } if subject.contains("left_trans")),
        "{error}"
    );
    let mut open = params;
    open.linears.get_mut(&LinearId::DOWN).unwrap().input = Some(ActQuant::Dynamic {
        bits: bits(4),
        rule,
        clip_ratio: quant_core::ClipRatio { upper: 0.5, lower: 0.75 },
        shards: 1,
    });
    assert!(VllmAscend.encode_block(&model, &scheme, 0, open.clone()).is_err());
}

/// What the kernel does not do is refused in the plan, with what to change.
#[test]
fn other_transforms_are_refused() {
    let model = paired(FloatType::Bf16, false, false);
    let good = pairs(&model);
    let with = |change: &dyn Fn(&mut ModelScheme)| {
        let mut scheme = good.clone();
        change(&mut scheme);
        scheme
    };
    let of_site = |site: Site, shape: OnlineShape| {
        with(&|scheme| {
            scheme.online[1].sites.insert(site, shape);
        })
    };
    let inputs = |change: &dyn Fn(&mut InputScheme)| {
        with(&|scheme| {
            let linears = scheme.blocks.iter_mut().flat_map(|block| block.values_mut());
            linears.filter_map(|linear| linear.input.as_mut()).for_each(change);
        })
    };
    let heads = OnlineShape::new([AxisShape::Dense(4), AxisShape::Identity(32)]);
    let other_sides = OnlineShape::new([AxisShape::Dense(4), AxisShape::Dense(48)]);
    let sharded = OnlineShape { shards: 2, ..OnlineShape::new([AxisShape::Dense(8), AxisShape::Dense(12)]) };
    let pair = OnlineShape::new([AxisShape::Dense(32)]);
    let w8a8 = linear(Some(weight(8, true, None)), Some(input(ActRule::Symmetric, true)));
    for (scheme, words) in [
        (
            of_site(Site::AttentionOutput, heads),
            &["attention_output in model.layers.1", "transforms: auto"][..],
        ),
        (of_site(Site::MlpActivation, other_sides), &["mlp_activation", "Kronecker pairs alone"]),
        (of_site(Site::MlpActivation, sharded), &["mlp_activation", "in 2 parts", "the same tp"]),
        (
            with(&|scheme| scheme.online[0].pair = Some([pair; 2])),
            &["transform of key", "KV16", "channel_static"],
        ),
        (
            ModelScheme { online: good.online.clone(), ..uniform(&model, w8a8) },
            &["before anything but W4A4", "q_proj", "scheme: W4A4"],
        ),
        (
            inputs(&|input| input.clip_ratio = Clipping::Learned),
            &["of each end", "share_inputs: true", "lac: false"],
        ),
        (inputs(&|input| input.clip_ratio = Clipping::Fixed(0.9)), &["clip_ratio of 0.9"]),
        (inputs(&|input| input.rule = ActRule::Asymmetric), &["Asymmetric", "symmetric: true"]),
        (
            with(&|scheme| scheme.online[1].sites.clear()),
            &["learned activation clip_ratio", "model.layers.1"],
        ),
        (
            ModelScheme {
                kv: Some(KvScheme::new(bits(4), ActRule::Symmetric, KvGranularity::ChannelStatic)),
                ..good.clone()
            },
            &["4 bits", "KV8"],
        ),
        (
            ModelScheme {
                kv: Some(KvScheme::new(bits(8), ActRule::Symmetric, KvGranularity::TokenHead)),
                ..good.clone()
            },
            &["per token and head", "channel_static"],
        ),
    ] {
        let text = VllmAscend.supports(&model, &scheme).unwrap_err().to_string();
        assert!(
            words.iter().all(|word| text.contains(word)) && text.contains("dequantized"),
            "{words:?}: {text}"
        );
    }
    let differing = with(&|scheme| {
        let value = scheme.blocks[0].get_mut(&LinearId::V).unwrap();
        value.input.as_mut().unwrap().clip_ratio = Clipping::NONE;
    });
    let text = VllmAscend.supports(&model, &differing).unwrap_err().to_string();
    assert!(text.contains("fused layer") && text.contains("v_proj"), "{text}");
    // 128 x 148 and 64 x 76 of Qwen2.5-7B and 0.5B, and a side that is too long.
    for (width, words) in
        [(18_944, "128 x 148"), (4864, "64 x 76"), (66_048, "256 x 258"), (69_632, "256 x 272")]
    {
        let large = ModelSpec { intermediate: width, ..model.clone() };
        let sides = quant_core::kronecker_sides(width).unwrap();
        let shape = OnlineShape::new([sides.0, sides.1].map(AxisShape::Dense));
        let scheme = with(&|scheme| {
            for online in &mut scheme.online {
                online.sites.insert(Site::MlpActivation, shape);
            }
        });
        let text = VllmAscend.supports(&large, &scheme).unwrap_err().to_string();
        let expected = [words, "mlp_activation", "unpaired: w8a8", "scheme: W8A8"];
        assert!(expected.iter().all(|word| text.contains(word)), "{text}");
    }
}

/// Every rule of the type with a folder that breaks it, and the versions that load it.
#[test]
fn rules_of_pairs() {
    let model = paired(FloatType::Bf16, false, false);
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("good");
    write(&dir, &model, &VllmAscend, &c8(pairs(&model)), 11);
    let good = Folder::load(&dir);
    let report = |spec: &ModelSpec, target: &str, edit: &dyn Fn(&mut Folder)| -> VerifyReport {
        let dir = tempfile::tempdir_in(parent.path()).unwrap();
        let mut folder = good.clone();
        edit(&mut folder);
        folder.save(dir.path());
        verify(dir.path(), spec, target.parse::<Rules>().unwrap()).unwrap()
    };
    let fails = |check: &str, word: &str, edit: &dyn Fn(&mut Folder)| {
        let report = report(&model, "vllm-ascend", edit);
        let found = report.check(check).unwrap_or_else(|| panic!("{check}: {report:#?}"));
        assert!(!found.passed && found.detail.contains(word) && !report.passed(), "{check}: {found:?}");
    };
    let (q, k) = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj");
    let (up, down) = ("model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj");
    let float = |value: f32| value.to_le_bytes();
    // A ratio of both ends, in (0, 1].
    for (value, word) in
        [(0.0, "a positive scale"), (-0.5, "a positive scale"), (1.5, "(0, 1]"), (f32::NAN, "NaN")]
    {
        fails("clip-ratios", word, &|f| {
            f.bytes(&format!("{down}.clip_ratio")).copy_from_slice(&float(value));
        });
    }
    fails("tensors", "clip_ratio", &|f| {
        f.tensors.insert(format!("{down}.clip_ratio"), (Dtype::F32, vec![2], float(0.5).repeat(2)));
    });
    // q, k and v, and gate and up, have one pair and one ratio.
    fails("shared-transforms", "k_proj has other transforms than", &|f| {
        f.bytes(&format!("{k}.left_trans"))[1] ^= 0x80;
    });
    fails("shared-transforms", "another clip ratio than model.layers.1.mlp.gate_proj", &|f| {
        f.bytes(&format!("{up}.clip_ratio")).copy_from_slice(&float(0.015_625));
    });
    fails("fused-layers", "W4A4_DYNAMIC", &|f| {
        f.description().insert(format!("{q}.weight"), json!("W4A4_DYNAMIC"));
    });
    // The pair of the spec's sizes, of every input.
    fails("tensors", "left_trans", &|f| drop(f.tensors.remove(&format!("{down}.left_trans"))));
    fails("tensors", "[8, 8]", &|f| {
        f.tensors.get_mut(&format!("{q}.right_trans")).unwrap().1 = vec![4, 16];
    });
    fails("tensors", "belongs to no part", &|f| {
        f.tensors.insert(
            "model.layers.0.self_attn.kcache_trans".into(),
            (Dtype::BF16, vec![32, 32], vec![0; 2048]),
        );
    });
    fails("block-values", "NaN", &|f| {
        f.bytes(&format!("{down}.right_trans"))[..2].copy_from_slice(&[0xc0, 0x7f]);
    });
    fails("weight-offsets", "down_proj", &|f| f.bytes(&format!("{down}.weight_offset"))[3] = 0x3f);
    fails("block-values", "values of 4 bits", &|f| f.bytes(&format!("{down}.weight"))[0] = 8);
    fails("kv-cache", "unknown kv_cache_type", &|f| {
        f.description().insert("kv_cache_type".to_owned(), json!("C4"));
    });
    // Another model, of sides that the kernel does not take.
    let narrow = ModelSpec { intermediate: 96, ..model.clone() };
    let found = report(&narrow, "vllm-ascend", &|_| ());
    let sizes = found.check("pair-sizes").unwrap();
    assert!(!sizes.passed && sizes.detail.contains("8 x 12"), "{sizes:?}");
    // Matrices that the loader rounds are no longer those that the weights have inverted.
    let rounded = report(&model, "vllm-ascend", &|f| {
        let entries = (0..64).flat_map(|i| float(if i % 9 == 0 { 1.001 } else { 0.0 }));
        f.tensors.insert(format!("{q}.left_trans"), (Dtype::F32, vec![8, 8], entries.collect()));
    });
    let advice = rounded.check("exact-transforms").unwrap();
    assert!(!advice.passed && advice.detail.contains("8 entries"), "{advice:?}");

    let plain = pairs(&model);
    for (target, scheme, loads) in [
        ("vllm-ascend", c8(plain.clone()), true),
        ("vllm-ascend@0.18", c8(plain.clone()), true),
        ("vllm-ascend@0.11", c8(plain.clone()), false),
        ("vllm-ascend@0.11", plain.clone(), true),
        ("vllm-ascend@0.13", plain.clone(), true),
        ("sglang-npu", plain, false),
    ] {
        let verdict = judge(target.parse().unwrap(), &model, &scheme, &VllmAscend);
        assert_eq!(verdict.passes(), loads, "{verdict}");
        if loads {
            // On several devices each would have a part of what enters o and down.
            assert_eq!(verdict.tensor_parallel, [1], "{verdict}");
            assert!(verdict.advice.join(" ").contains("310P"), "{verdict:?}");
        }
    }
    let found = report(&model, "sglang-npu", &|_| ());
    assert!(found.check("known-types").unwrap().detail.contains("W4A4_FLATQUANT_DYNAMIC"), "{found:#?}");
    assert_eq!(report(&model, "vllm-ascend", &|_| ()).tensor_parallel, [1]);
}

/// Four bits behind the pair of every input, of o and down behind that of a part in so many.
fn pairs_of_parts(model: &ModelSpec, devices: usize) -> ModelScheme {
    let mut scheme = pairs(model);
    for site in [Site::AttentionOutput, Site::MlpActivation] {
        let part = PairKernel::of(model.dtype).shape(model.site_width(site) / devices).unwrap();
        for (block, online) in scheme.blocks.iter_mut().zip(&mut scheme.online) {
            online.sites.insert(site, OnlineShape { shards: devices, ..part });
            for linear in block.iter_mut().filter(|(id, _)| id.site() == site).map(|(_, linear)| linear) {
                linear.input.as_mut().unwrap().shards = devices;
            }
        }
    }
    scheme
}

/// A folder for several devices says so by the sizes of its matrices: it is read back with them, loads on that many devices alone, and a
/// folder whose parts belong to different numbers of devices loads on none.
#[test]
fn pairs_of_parts_load_on_their_devices_alone() {
    let model = paired(FloatType::Bf16, false, false);
    let parent = tempfile::tempdir().unwrap();
    let [one, four] = [1, 4].map(|devices| {
        let scheme = if devices == 1 { pairs(&model) } else { pairs_of_parts(&model, devices) };
        VllmAscend.supports(&model, &scheme).unwrap();
        let dir = parent.path().join(devices.to_string());
        let blocks = write(&dir, &model, &VllmAscend, &scheme, 7);
        let checkpoint = Checkpoint::open(&dir).unwrap();
        assert_eq!(VllmAscend.scheme(&checkpoint, &model).unwrap(), scheme);
        let mut source = FolderSource::open(checkpoint, model.clone()).unwrap();
        for (index, block) in blocks.into_iter().enumerate() {
            assert_eq!(source.block(index).unwrap(), block);
        }
        let report = verify(&dir, &model, Target::VllmAscend).unwrap();
        assert!(report.passed(), "{:#?}", report.failed().collect::<Vec<_>>());
        assert_eq!(report.tensor_parallel, [devices]);
        let verdict = judge("vllm-ascend".parse().unwrap(), &model, &scheme, &VllmAscend);
        assert_eq!(verdict.tensor_parallel, [devices], "{verdict}");
        Folder::load(&dir)
    });
    let on = |devices: usize, folder: &str| {
        verify_all(parent.path().join(folder), &model, &["vllm-ascend".parse().unwrap()], Some(devices))
            .unwrap()
    };
    for (devices, folder, words) in [
        (1, "4", "so it loads on 4 devices alone"),
        (2, "4", "so it loads on 4 devices alone"),
        (4, "1", "not of a part in 4"),
    ] {
        let report = &on(devices, folder)[0];
        let rule = report.check("tensor-parallel").unwrap();
        assert!(!rule.passed && rule.detail.contains(words), "{rule:?}");
    }
    assert!(on(4, "4")[0].passed() && on(1, "1")[0].passed());

    // The transform of one down is that of all of its inputs.
    let down = "model.layers.1.mlp.down_proj";
    let mut mixed = four.clone();
    for part in ["left_trans", "right_trans"] {
        let name = format!("{down}.{part}");
        mixed.tensors.insert(name.clone(), one.tensors[&name].clone());
    }
    mixed.save(&parent.path().join("mixed"));
    let report = verify(parent.path().join("mixed"), &model, Target::VllmAscend).unwrap();
    let rule = report.check("pair-devices").unwrap();
    assert!(!rule.passed && rule.detail.contains("no number of devices"), "{rule:?}");
    assert!(report.tensor_parallel.is_empty());
    // Sizes of no part at all.
    let mut senseless = four;
    for part in ["left_trans", "right_trans"] {
        senseless.tensors.insert(format!("{down}.{part}"), (Dtype::BF16, vec![5, 5], vec![0; 50]));
    }
    senseless.save(&parent.path().join("senseless"));
    let report = verify(parent.path().join("senseless"), &model, Target::VllmAscend).unwrap();
    assert!(!report.check("tensors").unwrap().passed && !report.passed());

    // One pair for all parts, in the plan and in the block.
    let scheme = pairs_of_parts(&model, 4);
    let mut several = scheme.clone();
    let half = OnlineShape { shards: 2, ..scheme.online[0].sites[&Site::MlpActivation] };
    several.online[1].sites.insert(Site::MlpActivation, half);
    let told = VllmAscend.supports(&model, &several).unwrap_err().to_string();
    assert!(told.contains("in 2 parts") && told.contains("the same tp"), "{told}");
    let mut whole = scheme.clone();
    whole.blocks[0].get_mut(&LinearId::DOWN).unwrap().input.as_mut().unwrap().shards = 1;
    let told = VllmAscend.supports(&model, &whole).unwrap_err().to_string();
    assert!(told.contains("activations in 1 parts behind a transform in 4"), "{told}");
    let mut params = block(&model, &VllmAscend, &scheme, 0, 3);
    let shape = scheme.online[0].sites[&Site::MlpActivation];
    let matrices = shape.matrices().into_iter().enumerate();
    let different = matrices.map(|(at, side)| ndarray::Array2::eye(side) * (1 + at / 2) as f32).collect();
    params.online.sites.insert(Site::MlpActivation, shape.build(different).unwrap().into());
    let told = VllmAscend.encode_block(&model, &scheme, 0, params.clone()).unwrap_err().to_string();
    assert!(told.contains("one pair for all parts"), "{told}");
}
