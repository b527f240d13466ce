//! What several test files need.
#![allow(dead_code, reason = "every test binary uses its own part")]
#![allow(clippy::expect_used, reason = "a test helper fails by panicking")]

use ndarray::{Array1, Array2};
use quant_core::matrix::round_matrix;
use quant_core::{ActQuant, ActRule, Bits, ClipRatio, EntryQuant, Grid, Groups, KvQuant, QParams};
use quant_graph::{BlockSource, LinearWeight, ModelSpec};
use quant_model::{InMemoryModel, model_spec};
use quant_testkit::{Numbers, Tensors, block_from_tensors, load_safetensors, random_block};
use serde_json::{Value, json};
use std::path::Path;

/// A small valid config of an architecture.
pub(crate) fn config(architecture: &str) -> Value {
    json!({
        "architectures": [architecture], "model_type": "tiny", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "vocab_size": 50, "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": false, "torch_dtype": "float32",
    })
}

/// That config with some keys replaced.
pub(crate) fn config_with(architecture: &str, changes: Value) -> Value {
    let mut config = config(architecture);
    for (key, value) in changes.as_object().expect("an object") {
        config[key] = value.clone();
    }
    config
}

pub(crate) fn spec(architecture: &str) -> ModelSpec {
    model_spec(&config(architecture)).expect("a valid config")
}

/// A random model of that shape.
pub(crate) fn random_model(spec: &ModelSpec, seed: u64) -> InMemoryModel {
    let mut numbers = Numbers::new(seed);
    let blocks = (0..spec.layers).map(|_| random_block(spec, &mut numbers)).collect();
    let embedding = numbers.matrix(spec.vocab, spec.hidden, 1.0);
    let norm = numbers.vector(spec.hidden, 1.0, 0.2);
    let head = (!spec.tied).then(|| numbers.matrix(spec.vocab, spec.hidden, 0.3));
    InMemoryModel::new(spec.clone(), blocks, embedding, norm, head).expect("shapes of the spec")
}

pub(crate) fn read_config(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("config.json")).expect("JSON")
}

/// A float checkpoint folder with one shard.
pub(crate) fn load_model(dir: &Path) -> InMemoryModel {
    let spec = model_spec(&read_config(&dir.join("config.json"))).expect("a supported config");
    model_from(spec, &load_safetensors(&dir.join("model.safetensors")))
}

/// A model out of the tensors of its checkpoint.
pub(crate) fn model_from(spec: ModelSpec, tensors: &Tensors) -> InMemoryModel {
    for tensor in spec.tensors() {
        assert_eq!(tensors[&tensor.name].shape, tensor.shape, "{}", tensor.name);
    }
    let blocks = (0..spec.layers).map(|i| block_from_tensors(&spec, i, tensors)).collect();
    let embedding = tensors[ModelSpec::EMBEDDING].matrix();
    let norm = tensors[ModelSpec::FINAL_NORM].vector();
    let head = (!spec.tied).then(|| tensors[ModelSpec::HEAD].matrix());
    InMemoryModel::new(spec, blocks, embedding, norm, head).expect("a complete model")
}

/// `|a − b| / |b|`, Frobenius norms.
pub(crate) fn relative<T: Into<f64> + Copy>(a: &Array2<T>, b: &Array2<f32>) -> f64 {
    assert_eq!(a.dim(), b.dim());
    let difference: f64 = a.iter().zip(b).map(|(&x, &y)| (x.into() - f64::from(y)).powi(2)).sum();
    let size: f64 = b.iter().map(|&y| f64::from(y).powi(2)).sum();
    (difference / size).sqrt()
}

pub(crate) fn head(model: &mut InMemoryModel) -> Array2<f32> {
    let vocab = model.spec().vocab;
    model.head(0..vocab).expect("in memory")
}

/// How the linears of a test model are quantised.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scheme {
    Float,
    /// Float, every number of linears and embedding one of bf16.
    Halves,
    /// 8-bit weights and dynamic inputs, the cache with parameters of tokens and heads.
    Dynamic,
    /// 8-bit weights and inputs with fixed zero points, the cache with parameters of channels.
    Static,
    /// 4-bit weights in groups of 8 columns.
    Packed,
    /// The same with dynamic inputs.
    Grouped,
}

/// A random model under a scheme.
pub(crate) fn quantised_model(spec: &ModelSpec, scheme: Scheme, seed: u64) -> InMemoryModel {
    let mut model = random_model(spec, seed);
    let eight = Bits::new(8).expect("a width");
    let width = spec.kv_heads * spec.head_dim;
    let half = |x: f32| f32::from_bits(x.to_bits() & 0xFFFF_0000);
    if matches!(scheme, Scheme::Halves) {
        model.embedding_mut().mapv_inplace(half);
    }
    for block in model.blocks_mut() {
        for linear in block.linears.values_mut() {
            let (grid, groups) = match scheme {
                Scheme::Float => continue,
                Scheme::Halves => {
                    linear.weight = LinearWeight::Float(linear.weight.clone().into_values().mapv(half));
                    continue;
                }
                Scheme::Packed | Scheme::Grouped => (Grid::int4_asym(), Groups::Size(8)),
                Scheme::Dynamic | Scheme::Static => (Grid::int8_sym(), Groups::Channel),
            };
            let float = linear.weight.clone().into_values();
            let rounded = round_matrix(&grid, None, groups, float.view()).expect("finite weights");
            linear.weight = LinearWeight::Quantized(rounded);
            linear.input = match scheme {
                Scheme::Float | Scheme::Halves | Scheme::Packed => None,
                Scheme::Dynamic | Scheme::Grouped => Some(ActQuant::Dynamic {
                    bits: eight,
                    rule: ActRule::Symmetric,
                    clip_ratio: ClipRatio::NONE,
                    shards: 1,
                }),
                Scheme::Static => {
                    Some(ActQuant::Static { bits: eight, params: QParams { scale: 0.03, zero: 120.0 } })
                }
            };
        }
        block.kv = match scheme {
            Scheme::Float | Scheme::Halves | Scheme::Packed | Scheme::Grouped => None,
            Scheme::Dynamic => Some(KvQuant::both(EntryQuant::TokenHead {
                bits: eight,
                rule: ActRule::Asymmetric,
                clip_ratio: ClipRatio::NONE,
            })),
            Scheme::Static => Some(KvQuant::both(EntryQuant::Channel {
                bits: eight,
                scales: Array1::from_elem(width, 0.04),
                zeros: Array1::from_elem(width, 128.0),
            })),
        };
    }
    model
}
