//! `decode(encode(block)) == block` for every scheme a format claims.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use crate::folders::*;
use proptest::prelude::*;
use quant_checkpoint::formats::{CompressedTensors, ConfigNotes, Dequantized, Format, VllmAscend, detect};
use quant_checkpoint::{Checkpoint, Dtype, FolderSource, Rules, Target, TensorHash, verify};
use quant_core::{ActRule, FloatType, KvGranularity};
use quant_graph::{
    ActOrder, BlockParams, BlockSource as _, Clipping, InputScheme, KvScheme, LinearScheme, LinearWeight,
    ModelScheme, ModelSpec, WeightForm, WeightScheme,
};

/// What a format gives back: itself, or the values where it stores values.
fn stored(format: &dyn Format, mut block: BlockParams) -> BlockParams {
    if format.id() == Dequantized.id() {
        for linear in block.linears.values_mut() {
            linear.weight = LinearWeight::Float(linear.weight.clone().into_values());
        }
    }
    block
}

/// Writes, reads back by block and as a source, and verifies for the given targets.
fn round_trip(
    spec: &ModelSpec,
    format: &'static dyn Format,
    scheme: &ModelScheme,
    seed: u64,
    targets: &[impl Into<Rules> + Copy],
) {
    format.supports(spec, scheme).unwrap();
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("out");
    let blocks = write(&dir, spec, format, scheme, seed);
    let checkpoint = Checkpoint::open(&dir).unwrap();
    assert_eq!(detect(&checkpoint).unwrap().id(), format.id());
    assert_eq!(&format.scheme(&checkpoint, spec).unwrap(), scheme);
    let mut source = FolderSource::open(checkpoint, spec.clone()).unwrap();
    for (index, block) in blocks.into_iter().enumerate() {
        let read = source.block(index).unwrap();
        assert_eq!(read, stored(format, block));
    }
    assert!(source.block(spec.layers).is_err());
    assert_eq!(source.head(0..spec.vocab).unwrap().dim(), (spec.vocab, spec.hidden));
    assert_eq!(source.embed(&[3, 1]).unwrap().dim(), (2, spec.hidden));
    assert!(source.embed(&[spec.vocab as u32]).is_err());
    source.final_norm().unwrap();
    let of_blocks = source.checkpoint().tensors().filter(|t| t.name.starts_with("model.layers")).count();
    assert_eq!(source.input_hashes().len(), of_blocks + 1);
    for (name, hash) in source.input_hashes() {
        assert_eq!(hash, TensorHash::of(&source.checkpoint().read(&name).unwrap()));
    }
    for target in targets {
        let report = verify(&dir, spec, *target).unwrap();
        assert!(report.passed(), "{}: {:#?}", report.rules, report.failed().collect::<Vec<_>>());
        assert_eq!(report.format, format.id());
    }
}

fn any_dtype() -> impl Strategy<Value = FloatType> {
    prop_oneof![Just(FloatType::F32), Just(FloatType::F16), Just(FloatType::Bf16)]
}

/// One scheme per stage, as fused layers want it.
fn by_stage(spec: &ModelSpec, schemes: [LinearScheme; 4]) -> ModelScheme {
    let block: BTreeMap<_, _> = spec.layout.ids().map(|id| (id, schemes[id.site() as usize])).collect();
    ModelScheme { blocks: vec![block; spec.layers], ..ModelScheme::default() }
}

fn ascend_linear() -> impl Strategy<Value = LinearScheme> {
    let w8 = weight(8, true, None);
    let four = InputScheme { bits: bits(4), ..input(ActRule::Symmetric, true) };
    prop_oneof![
        Just(linear(Some(w8), Some(input(ActRule::Symmetric, true)))),
        Just(linear(Some(w8), Some(input(ActRule::Symmetric, false)))),
        Just(linear(Some(w8), Some(input(ActRule::Asymmetric, false)))),
        Just(linear(Some(w8), None)),
        Just(linear(Some(weight(4, true, None)), Some(four))),
        Just(linear(None, None)),
    ]
}

fn compressed_linear() -> impl Strategy<Value = LinearScheme> {
    let inputs = prop_oneof![
        Just(input(ActRule::SymmetricFull, true)),
        Just(input(ActRule::SymmetricFull, false)),
        Just(input(ActRule::Asymmetric, false)),
    ];
    // 8 divides 24 and 40.
    let packed =
        (2_u32..=8, any::<bool>(), prop_oneof![Just(None), Just(Some((8, false))), Just(Some((8, true)))]);
    prop_oneof![
        (inputs, any::<bool>()).prop_map(|(i, symmetric)| linear(Some(weight(8, symmetric, None)), Some(i))),
        packed.prop_map(|(bits, symmetric, group)| {
            let mut w = weight(bits, symmetric, group.map(|g| g.0));
            if group.is_some_and(|g| g.1) {
                w.act_order = ActOrder::Static;
            }
            linear(Some(w), None)
        }),
        Just(linear(None, None)),
    ]
}

fn any_clipping() -> impl Strategy<Value = Clipping> {
    prop_oneof![
        Just(Clipping::NONE),
        (0.5_f32..1.0).prop_map(Clipping::Fixed),
        Just(Clipping::Learned),
        Just(Clipping::Tied)
    ]
}

fn any_linear() -> impl Strategy<Value = LinearScheme> {
    let rule = prop_oneof![Just(ActRule::Asymmetric), Just(ActRule::Symmetric), Just(ActRule::SymmetricFull)];
    // Both divide 24 and 40.
    let shards = prop_oneof![Just(1_usize), Just(4)];
    let i = (rule, any::<bool>(), prop_oneof![Just(4_u32), Just(8)], any_clipping(), shards).prop_map(
        |(rule, dynamic, n, clip, shards)| InputScheme {
            bits: bits(n),
            rule,
            dynamic,
            clip_ratio: if dynamic { clip } else { Clipping::NONE },
            shards: if dynamic { shards } else { 1 },
        },
    );
    let order = prop_oneof![Just(ActOrder::None), Just(ActOrder::Static), Just(ActOrder::Dynamic)];
    // 7 leaves a shorter last group.
    let w = (1_u32..=8, any::<bool>(), proptest::option::of(Just(7_usize)), order).prop_map(
        |(n, symmetric, group, order)| {
            let mut w = weight(n, symmetric && n > 1, group);
            w.form = if n == 1 { WeightForm::Binary } else { WeightForm::Integer };
            w.act_order = if group.is_some() { order } else { ActOrder::None };
            w
        },
    );
    let mixed = (2_u32..=7)
        .prop_map(|n| WeightScheme { form: WeightForm::MixedInteger, ..weight(n, false, Some(7)) });
    let residual = proptest::option::of(Just(7_usize))
        .prop_map(|group| WeightScheme { form: WeightForm::BinaryResidual, ..weight(1, false, group) });
    let w = prop_oneof![8 => w, 1 => mixed, 1 => residual];
    (proptest::option::of(w), proptest::option::of(i)).prop_map(|(w, i)| linear(w, i))
}

fn any_cache() -> impl Strategy<Value = KvScheme> {
    let granularity = || prop_oneof![Just(KvGranularity::TokenHead), Just(KvGranularity::ChannelStatic)];
    let rule = prop_oneof![Just(ActRule::Asymmetric), Just(ActRule::Symmetric)];
    let width = prop_oneof![Just(2_u32), Just(3), Just(4), Just(8)];
    (width, rule, granularity(), granularity(), 0_u8..3, any_clipping()).prop_map(
        |(n, rule, keys, values, place, clip_ratio)| KvScheme {
            values,
            before_rope: place > 0,
            pre_bias: place > 1,
            clip_ratio,
            ..KvScheme::new(bits(n), rule, keys)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn vllm_ascend(
        stages in [ascend_linear(), ascend_linear(), ascend_linear(), ascend_linear()],
        kv: bool, dtype in any_dtype(), tied: bool, full: bool, seed: u64,
    ) {
        let spec = spec(dtype, tied, full);
        let mut scheme = by_stage(&spec, stages);
        scheme.kv = kv.then_some(KvScheme::new(bits(8), ActRule::Symmetric, KvGranularity::ChannelStatic));
        round_trip(&spec, &VllmAscend, &scheme, seed, &["vllm-ascend@0.25".parse::<Rules>().unwrap()]);
    }

    #[test]
    fn compressed_tensors(
        stages in [compressed_linear(), compressed_linear(), compressed_linear(), compressed_linear()],
        dtype in any_dtype(), tied: bool, full: bool, seed: u64,
    ) {
        let spec = spec(dtype, tied, full);
        let scheme = by_stage(&spec, stages);
        round_trip(&spec, &CompressedTensors, &scheme, seed, &[Target::Transformers]);
    }

    #[test]
    fn dequantized(
        linears in proptest::collection::vec(any_linear(), 7),
        kv in proptest::option::of(any_cache()), dtype in any_dtype(), tied: bool, full: bool, seed: u64,
    ) {
        let spec = spec(dtype, tied, full);
        let block: BTreeMap<_, _> = spec.layout.ids().zip(linears).collect();
        let scheme = ModelScheme { blocks: vec![block; spec.layers], kv, ..ModelScheme::default() };
        round_trip(&spec, &Dequantized, &scheme, seed, &[Target::Vllm, Target::Transformers]);
    }
}

#[test]
fn what_vllm_loads_of_compressed_tensors() {
    let spec = spec(FloatType::Bf16, false, false);
    let mixed = by_stage(
        &spec,
        [
            linear(Some(weight(4, false, Some(8))), None),
            linear(Some(weight(8, true, None)), Some(input(ActRule::SymmetricFull, true))),
            linear(Some(weight(8, true, None)), None),
            linear(None, None),
        ],
    );
    round_trip(&spec, &CompressedTensors, &mixed, 1, &[Target::Vllm, Target::Transformers]);
    let config = CompressedTensors.config(&spec, &mixed, &config(&spec), &ConfigNotes::default());
    let section = &config["quantization_config"];
    assert_eq!(section["format"], "mixed-precision");
    assert_eq!(section["config_groups"].as_object().unwrap().len(), 3);
    assert_eq!(section["ignore"][0], "model.layers.0.mlp.down_proj");
    assert_eq!(section["ignore"][2], "lm_head");

    let w8a8 = uniform(&spec, linear(Some(weight(8, true, None)), Some(input(ActRule::SymmetricFull, true))));
    round_trip(&spec, &CompressedTensors, &w8a8, 2, &Target::ALL);
}

/// Group indices are read although they are no longer written.
#[test]
fn dynamic_act_order_is_read() {
    let spec = spec(FloatType::Bf16, false, false);
    let mut w = weight(4, false, Some(8));
    let scheme = uniform(&spec, linear(Some(w), None));
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("out");
    let blocks = write(&dir, &spec, &CompressedTensors, &scheme, 5);
    let mut folder = Folder::load(&dir);
    folder.section()["config_groups"]["group_0"]["weights"]["actorder"] = "group".into();
    let mut expected = BTreeMap::new();
    for index in 0..spec.layers {
        for linear in spec.block(index).linears {
            let columns = linear.inputs;
            let groups: Vec<u32> = (0..columns).map(|c| ((c * 5 + 3) % columns / 8) as u32).collect();
            let name = format!("{}.weight_g_idx", linear.module);
            let bytes = groups.iter().flat_map(|g| (*g as i32).to_le_bytes()).collect();
            folder.tensors.insert(name, (Dtype::I32, vec![columns], bytes));
            expected.insert((index, linear.id), groups);
        }
    }
    let edited = parent.path().join("edited");
    folder.save(&edited);
    let checkpoint = Checkpoint::open(&edited).unwrap();
    w.act_order = ActOrder::Dynamic;
    assert_eq!(CompressedTensors.scheme(&checkpoint, &spec).unwrap(), uniform(&spec, linear(Some(w), None)));
    let mut source = FolderSource::open(checkpoint, spec.clone()).unwrap();
    for ((index, role), groups) in expected {
        let read = source.block(index).unwrap();
        let (read, written) = (
            read.linears[&role].weight.quantized().unwrap().clone(),
            blocks[index].linears[&role].weight.quantized().unwrap(),
        );
        assert_eq!(read.levels(), written.levels());
        assert_eq!(read.params(1, read.groups().of(4)), written.params(1, groups[4] as usize));
        assert_eq!(*read.groups(), quant_core::Groups::Index { size: 8, of_column: groups });
    }
    let old: Rules = "vllm@0.28".parse().unwrap();
    assert!(verify(&edited, &spec, old).unwrap().passed());
    for target in [Target::Vllm, Target::Transformers] {
        assert!(!verify(&edited, &spec, target).unwrap().check("act-order").unwrap().passed);
    }
}
