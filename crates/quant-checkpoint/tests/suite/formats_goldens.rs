//! Folders written by msmodelslim and llm-compressor from the reference model: read, verified, written again, run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::ops::ControlFlow;
use std::path::Path;

use crate::folders::shared;
use ndarray::{Array2, Axis};
use quant_checkpoint::formats::{ConfigNotes, Format as _, VllmAscend, detect};
use quant_checkpoint::{Checkpoint, FolderSource, Target, verify};
use quant_core::{ActQuant, EntryQuant};
use quant_graph::{BlockSource as _, LinearId, LinearWeight, ModelSpec};
use quant_kernels::{Compute, Par};
use quant_model::{StreamedModel, model_spec};
use serde_json::Value;

const ASCEND: [&str; 3] = ["ascend-w8a8-dynamic", "ascend-w8a8-static-asym", "ascend-w8a8-mix-c8"];
const COMPRESSED: [&str; 6] = [
    "w4a16-channel-sym",
    "w4a16-g32-asym-gptq",
    "w4a16-g32-sym-actorder-weight",
    "w4a16-g32-sym-gptq",
    "w8a8-dynamic",
    "w8a8-static-asym",
];

fn open(dir: &Path) -> (Checkpoint, ModelSpec) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let spec = model_spec(checkpoint.config()).unwrap();
    (checkpoint, spec)
}

/// The float model all of them were made from.
fn float_model() -> FolderSource {
    let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/tiny-reasoner"));
    let (checkpoint, spec) = open(dir);
    FolderSource::open(checkpoint, spec).unwrap()
}

#[test]
fn values_are_those_of_the_float_model() {
    let Some(root) = shared("goldens/formats") else { return };
    let mut float = float_model();
    for name in ASCEND.into_iter().chain(COMPRESSED) {
        let (checkpoint, spec) = open(&root.join(name));
        let mut source = FolderSource::open(checkpoint, spec.clone()).unwrap();
        let rounded_to_nearest = !name.contains("g32");
        let (mut worst, mut sum, mut norm) = (0.0_f32, 0.0_f64, 0.0_f64);
        for index in 0..spec.layers {
            let (block, reference) = (source.block(index).unwrap(), float.block(index).unwrap());
            assert_eq!(block.norms, reference.norms, "{name}");
            for id in spec.layout.ids() {
                let (linear, reference) = (&block.linears[&id], &reference.linears[&id]);
                assert_eq!(linear.bias, reference.bias, "{name} {index} {id}");
                let matrix = linear.weight.quantized().unwrap();
                let values = matrix.dequantize();
                let LinearWeight::Float(wanted) = &reference.weight else { panic!() };
                for ((row, column), wanted) in wanted.indexed_iter() {
                    let step = matrix.params(row, matrix.groups().of(column)).scale;
                    let error = values[(row, column)] - wanted;
                    worst = worst.max(error.abs() / step);
                    sum += f64::from(error).powi(2);
                    norm += f64::from(*wanted).powi(2);
                }
            }
        }
        let relative = (sum / norm).sqrt();
        println!("{name}: worst {worst:.3} steps, relative error {relative:.2e}");
        // Rounding to nearest stays within half a step, and a scale of absmax/127.5 in bfloat16 adds its own error at
        // the ends of the range; GPTQ moves weights further to mend each other.
        if rounded_to_nearest {
            // msmodelslim rounds deq_scale, from which a static weight scale is read back, to bfloat16 once more.
            let limit = if name.contains("static") && name.contains("ascend") { 1.25 } else { 0.85 };
            assert!(worst < limit, "{name}: {worst}");
        }
        assert!(relative < if name.contains("w8a8") { 0.012 } else { 0.2 }, "{name}: {relative}");
    }
}

#[test]
fn schemes_are_what_the_tools_were_asked_for() {
    let Some(root) = shared("goldens/formats") else { return };
    let dir = root.join("ascend-w8a8-static-asym");
    let (checkpoint, spec) = open(&dir);
    let block = VllmAscend.decode(&checkpoint, &spec, 0).unwrap();
    let Some(ActQuant::Static { params, .. }) = block.linears[&LinearId::Q].input else { panic!() };
    assert_eq!((params.scale, params.zero), (0.320_312_5, 116.0));
    let (checkpoint, _) = open(&root.join("ascend-w8a8-mix-c8"));
    let block = VllmAscend.decode(&checkpoint, &spec, 0).unwrap();
    assert!(matches!(block.linears[&LinearId::Q].input, Some(ActQuant::Dynamic { .. })));
    let scale = |entries: &EntryQuant| match entries {
        EntryQuant::Channel { scales, .. } => scales[0],
        EntryQuant::TokenHead { .. } => panic!(),
    };
    let kv = block.kv.unwrap();
    assert_eq!((scale(&kv.keys), scale(&kv.values)), (0.043_212_89, 0.050_537_11));

    let (checkpoint, _) = open(&root.join("w8a8-static-asym"));
    let format = detect(&checkpoint).unwrap();
    let scheme = format.scheme(&checkpoint, &spec).unwrap();
    assert!(!scheme.blocks[5][&LinearId::DOWN].input.unwrap().dynamic);
    let (checkpoint, _) = open(&root.join("w4a16-g32-asym-gptq"));
    let scheme = detect(&checkpoint).unwrap().scheme(&checkpoint, &spec).unwrap();
    let weight = scheme.blocks[0][&LinearId::V].weight.unwrap();
    assert_eq!((weight.bits.get(), weight.group, weight.symmetric), (4, Some(32), false));
}

/// Decoded and encoded again, every tensor has the same bytes; the side files say the same.
#[test]
fn encoding_what_was_decoded_gives_the_same_bytes() {
    let Some(root) = shared("goldens/formats") else { return };
    for name in ASCEND.into_iter().chain(COMPRESSED) {
        let dir = root.join(name);
        let (checkpoint, spec) = open(&dir);
        let format = detect(&checkpoint).unwrap();
        let scheme = format.scheme(&checkpoint, &spec).unwrap();
        format.supports(&spec, &scheme).unwrap();
        let mix = name.contains("mix");
        let (mut same, mut off, mut ulps) = (0, 0, 0);
        for index in 0..spec.layers {
            let block = format.decode(&checkpoint, &spec, index).unwrap();
            for tensor in format.encode_block(&spec, &scheme, index, block.clone()).unwrap() {
                let info = checkpoint.tensor(&tensor.name).unwrap();
                assert_eq!(
                    (info.dtype, &info.shape),
                    (tensor.dtype, &tensor.shape),
                    "{name} {}",
                    tensor.name
                );
                let stored = checkpoint.read(&tensor.name).unwrap();
                if tensor.name.ends_with("quant_bias") && stored != tensor.bytes {
                    off += bias_difference(&stored, &tensor.bytes);
                    continue;
                }
                if tensor.name.ends_with("deq_scale") && stored != tensor.bytes {
                    ulps += last_bits(&stored, &tensor.bytes);
                    continue;
                }
                assert!(stored == tensor.bytes, "{name} {}", tensor.name);
                same += 1;
            }
        }
        println!(
            "{name}: {same} tensors of the same bytes, {off} of quant_bias and {ulps} of deq_scale apart"
        );
        let source = |tensor: &str| checkpoint.get(tensor).map(|t| t.dtype);
        let declared = format.declare(&spec, &scheme, &source);
        if !mix {
            assert_eq!(declared.len(), checkpoint.tensors().len(), "{name}");
        }
        assert!(
            declared
                .iter()
                .all(|d| checkpoint.tensor_shaped(&d.name, &d.shape).is_ok_and(|t| t.dtype == d.dtype))
        );
        let json = |file: &str| -> Value {
            serde_json::from_slice(&std::fs::read(dir.join(file)).unwrap()).unwrap()
        };
        let config = format.config(&spec, &scheme, checkpoint.config(), &ConfigNotes::default());
        if name.starts_with("ascend") {
            assert_eq!(&config, checkpoint.config());
            let side = format.side_files(&spec, &scheme, &declared, &[]);
            let ours: Value = serde_json::from_slice(&side[0].1).unwrap();
            let theirs = json(&side[0].0);
            if !mix {
                // Same entries in the same order.
                assert_eq!(ours.to_string(), theirs.to_string(), "{name}");
            }
        } else {
            let mut theirs = checkpoint.config()["quantization_config"].clone();
            theirs["version"] = config["quantization_config"]["version"].clone();
            let text = theirs.to_string().replace("\"actorder\":\"weight\"", "\"actorder\":\"static\"");
            assert_eq!(config["quantization_config"].to_string(), text, "{name}");
        }
    }
}

/// msmodelslim computes quant_bias in bfloat16 where there is a bias: the number of elements that differ, each by less
/// than bfloat16 explains.
fn bias_difference(theirs: &[u8], ours: &[u8]) -> usize {
    let words = |b: &[u8]| b.as_chunks::<4>().0.iter().map(|w| i32::from_le_bytes(*w)).collect::<Vec<_>>();
    let pairs: Vec<_> = words(theirs).into_iter().zip(words(ours)).collect();
    for (theirs, ours) in &pairs {
        assert!((theirs - ours).abs() <= 12 + theirs.abs() / 128, "{theirs} {ours}");
    }
    pairs.iter().filter(|(a, b)| a != b).count()
}

/// msmodelslim rounds deq_scale to bfloat16; not each such number is a product of input_scale and some f32 weight scale.
/// The number of elements in which the nearest product differs, each in its last bit.
fn last_bits(theirs: &[u8], ours: &[u8]) -> usize {
    let words = |b: &[u8]| b.as_chunks::<4>().0.iter().map(|w| i32::from_le_bytes(*w)).collect::<Vec<_>>();
    let pairs: Vec<_> = words(theirs).into_iter().zip(words(ours)).collect();
    assert!(pairs.iter().all(|(a, b)| (a - b).abs() <= 1));
    pairs.iter().filter(|(a, b)| a != b).count()
}

#[test]
fn their_clients_load_them() {
    let Some(root) = shared("goldens/formats") else { return };
    for name in ASCEND {
        let (_, spec) = open(&root.join(name));
        let report = verify(root.join(name), &spec, Target::VllmAscend).unwrap();
        assert!(report.passed(), "{name}: {:#?}", report.failed().collect::<Vec<_>>());
        for target in [Target::Vllm, Target::Transformers] {
            assert!(!verify(root.join(name), &spec, target).unwrap().passed(), "{name} {target}");
        }
    }
    for name in COMPRESSED {
        let (_, spec) = open(&root.join(name));
        for target in [Target::Vllm, Target::Transformers] {
            let report = verify(root.join(name), &spec, target).unwrap();
            assert!(report.passed(), "{name} {target}: {:#?}", report.failed().collect::<Vec<_>>());
        }
        // Of these, vLLM-Ascend has only dynamic W8A8.
        assert_eq!(
            verify(root.join(name), &spec, Target::VllmAscend).unwrap().passed(),
            name == "w8a8-dynamic"
        );
    }
    for name in ["gptq-w4-g32-sym", "awq-w4-g32"] {
        let (checkpoint, spec) = open(&root.join(name));
        assert!(!verify(root.join(name), &spec, Target::Transformers).unwrap().passed());
        assert!(FolderSource::open(checkpoint, spec).unwrap_err().to_string().contains("quantised as"));
    }
}

/// Logits of the reference kernels, which transformers ran over the same folders.
#[test]
fn logits_are_those_of_transformers() {
    let Some(root) = shared("goldens/formats") else { return };
    for name in COMPRESSED {
        let dir = root.join(name);
        let (checkpoint, spec) = open(&dir);
        let reference = Checkpoint::open_file(dir.join("reference.safetensors")).unwrap();
        let ids = reference.read_i32("input_ids").unwrap();
        let rows: Vec<Vec<u32>> = ids.outer_iter().map(|r| r.iter().map(|i| *i as u32).collect()).collect();
        let wanted = reference.read_f32("logits").unwrap();
        let source = FolderSource::open(checkpoint, spec).unwrap().without_hashes();
        let mut model = StreamedModel::new(source, Compute::F32, Par::new(1));
        model.encode(&rows, &mut |_, _| ControlFlow::Continue(())).unwrap();
        let (mut error, mut norm, mut kl, mut agree, mut positions) = (0.0_f64, 0.0_f64, 0.0, 0, 0);
        for (sequence, wanted) in wanted.axis_iter(Axis(0)).enumerate() {
            let got = model.logits(sequence, 0..rows[sequence].len()).unwrap();
            let wanted: Array2<f32> = wanted.into_dimensionality().unwrap().to_owned();
            for (got, wanted) in got.rows().into_iter().zip(wanted.rows()) {
                let (p, q) = (log_softmax(wanted.iter()), log_softmax(got.iter()));
                kl += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
                agree += usize::from(top(&p) == top(&q));
                positions += 1;
                for (g, w) in got.iter().zip(&wanted) {
                    error += f64::from(g - w).powi(2);
                    norm += f64::from(*w).powi(2);
                }
            }
        }
        let (relative, kl) = ((error / norm).sqrt(), kl / positions as f64);
        println!("{name}: relative {relative:.2e}, KL {kl:.2e}, top token {agree}/{positions}");
        if name.starts_with("w4a16") {
            assert!(relative < 1e-4, "{name}: {relative}");
        } else {
            assert!(kl < 3e-3 && agree * 100 >= 95 * positions, "{name}: {kl} {agree}");
        }
    }
}

fn log_softmax<'a>(logits: impl Iterator<Item = &'a f32>) -> Vec<f64> {
    let logits: Vec<f64> = logits.map(|&l| f64::from(l)).collect();
    let max = logits.iter().copied().fold(f64::MIN, f64::max);
    let sum = logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln() + max;
    logits.into_iter().map(|l| l - sum).collect()
}

fn top(values: &[f64]) -> usize {
    (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap()
}
