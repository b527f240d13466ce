//! Parts of folders that other tools wrote, kept in the repository: decoded, verified and written again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use quant_checkpoint::formats::detect;
use quant_checkpoint::{Checkpoint, FolderSource, Target, verify};
use quant_core::{ActQuant, ActRule};
use quant_graph::{BlockParams, BlockSource as _, LinearId, LinearWeight, ModelSpec};
use quant_model::model_spec;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn open(dir: &Path) -> (Checkpoint, ModelSpec) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let spec = model_spec(checkpoint.config()).unwrap();
    (checkpoint, spec)
}

/// The block, and the relative error and worst error in steps of its linears against the same part of the float model
/// that the other tool was given.
fn decoded(name: &str) -> (BlockParams, f64, f32) {
    let (checkpoint, spec) = open(&data(name));
    let block = FolderSource::open(checkpoint, spec).unwrap().block(0).unwrap();
    let (checkpoint, spec) = open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-reasoner"));
    let float = FolderSource::open(checkpoint, spec).unwrap().block(0).unwrap();
    assert_eq!(block.norms, float.norms);
    let (mut error, mut size, mut worst) = (0.0_f64, 0.0_f64, 0.0_f32);
    for (id, linear) in &block.linears {
        let whole = &float.linears[id];
        assert_eq!(linear.bias, whole.bias, "{id}");
        let LinearWeight::Float(whole) = &whole.weight else { panic!("a float model") };
        let matrix = linear.weight.quantized().unwrap();
        for ((row, column), value) in matrix.dequantize().indexed_iter() {
            let difference = value - whole[(row, column)];
            worst = worst.max(difference.abs() / matrix.params(row, matrix.groups().of(column)).scale);
            error += f64::from(difference).powi(2);
            size += f64::from(whole[(row, column)]).powi(2);
        }
    }
    (block, (error / size).sqrt(), worst)
}

#[test]
fn msmodelslim() {
    let (block, relative, worst) = decoded("ascend-w8a8-dynamic");
    // Half a step of rounding, and what a scale of absmax/127.5 in bfloat16 clips at the ends of the range.
    assert!(relative < 0.012 && worst < 0.85, "{relative} {worst}");
    let input = block.linears[&LinearId::O].input;
    assert!(matches!(input, Some(ActQuant::Dynamic { rule: ActRule::Symmetric, .. })), "{input:?}");
}

#[test]
fn llm_compressor() {
    let (block, relative, _) = decoded("w4a16-g32-asym-gptq");
    // GPTQ leaves the nearest level to mend other weights, so only the whole is bounded.
    assert!(relative < 0.2, "{relative}");
    let matrix = block.linears[&LinearId::DOWN].weight.quantized().unwrap().clone();
    assert_eq!((matrix.bits().get(), matrix.scales().dim()), (4, (192, 2)));
    assert!(!matrix.is_symmetric());
}

#[test]
fn their_loaders_take_them_and_we_write_the_same_bytes() {
    for (name, target) in [
        ("ascend-w8a8-dynamic", Target::VllmAscend),
        ("w4a16-g32-asym-gptq", Target::Vllm),
        ("w4a16-g32-asym-gptq", Target::Transformers),
    ] {
        let (checkpoint, spec) = open(&data(name));
        let report = verify(data(name), &spec, target).unwrap();
        assert!(report.passed(), "{name}: {:#?}", report.failed().collect::<Vec<_>>());
        let format = detect(&checkpoint).unwrap();
        let scheme = format.scheme(&checkpoint, &spec).unwrap();
        let block = format.decode(&checkpoint, &spec, 0).unwrap();
        let encoded = format.encode_block(&spec, &scheme, 0, block.clone()).unwrap();
        assert_eq!(encoded.len() + spec.outer_tensors().len(), checkpoint.tensors().len());
        for tensor in encoded {
            let info = checkpoint.tensor_shaped(&tensor.name, &tensor.shape).unwrap();
            assert_eq!(info.dtype, tensor.dtype, "{}", tensor.name);
            assert!(checkpoint.read(&tensor.name).unwrap() == tensor.bytes, "{name} {}", tensor.name);
        }
    }
}
