//! Checkpoints of random weights in the shape of real models, for measurements of speed and memory.

use quant_checkpoint::{
    DEFAULT_SHARD_BYTES, Dtype, OutputFolder, OutputOptions, ShardNaming, ShardPlan, TensorDecl,
};
use quant_graph::ModelSpec;
use quant_pipeline::{PipelineError, Sample};
use serde_json::json;
use std::path::Path;
use std::str::FromStr;

/// Dimensions of a published model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    name: &'static str,
    hidden: usize,
    intermediate: usize,
    heads: usize,
    kv_heads: usize,
}

/// The shapes on offer.
pub static SHAPES: &[Shape] = &[
    Shape { name: "smollm2-135m", hidden: 576, intermediate: 1536, heads: 9, kv_heads: 3 },
    Shape { name: "qwen2-0.5b", hidden: 896, intermediate: 4864, heads: 14, kv_heads: 2 },
    Shape { name: "qwen2-1.5b", hidden: 1536, intermediate: 8960, heads: 12, kv_heads: 2 },
    Shape { name: "qwen2-7b", hidden: 3584, intermediate: 18944, heads: 28, kv_heads: 4 },
];

impl FromStr for Shape {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let names: Vec<_> = SHAPES.iter().map(|s| s.name).collect();
        let found = SHAPES.iter().find(|s| s.name == text).copied();
        found.ok_or_else(|| format!("expected one of {}", names.join(", ")))
    }
}

/// Every how many channels the weights and norms have an outlier.
const OUTLIER_EVERY: usize = 197;

/// What a checkpoint of random weights is to be.
#[derive(Clone, Copy, Debug)]
pub struct Synthetic {
    /// Of a block.
    pub shape: Shape,
    /// Blocks.
    pub layers: usize,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// Random token ids beside it, to calibrate with.
    pub tokens: Sample,
    /// Of weights and tokens.
    pub seed: u64,
}

/// Positions of the model, more where its tokens need more.
const POSITIONS: usize = 4096;
/// Token ids at most: a GiB of them.
const MOST_TOKENS: usize = 1 << 28;

/// Writes a Qwen2 checkpoint of random bf16 weights with a few outlier channels, and a file of random token ids; returns the
/// bytes of its tensors. The same arguments give the same bytes.
///
/// # Errors
/// More than 2^28 token ids, an output that exists without `force`, a disk that is full.
pub fn synthesize(output: &Path, synthetic: &Synthetic, force: bool) -> Result<u64, PipelineError> {
    let Synthetic { shape, layers, vocab, tokens: sample, seed } = *synthetic;
    if sample.sequences.checked_mul(sample.tokens).is_none_or(|count| count > MOST_TOKENS) {
        return Err(PipelineError::Usage(format!(
            "--tokens {sample} are more than {MOST_TOKENS} token ids; ask for fewer or shorter sequences"
        )));
    }
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate, "num_hidden_layers": layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "vocab_size": vocab, "max_position_embeddings": sample.tokens.max(POSITIONS),
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false,
        "use_sliding_window": false, "torch_dtype": "bfloat16",
    });
    let spec: ModelSpec = quant_model::model_spec(&config)?;
    let tensors = spec.tensors();
    let declared = tensors.iter().map(|t| TensorDecl::new(&t.name, Dtype::BF16, t.shape.clone())).collect();
    let mut folder = OutputFolder::create(output, &OutputOptions { force, ..OutputOptions::default() })?;
    folder.begin_weights(ShardPlan::new(declared, &ShardNaming::hugging_face(), DEFAULT_SHARD_BYTES)?)?;
    let mut total = 0;
    for (at, tensor) in tensors.iter().enumerate() {
        let bytes = values(&tensor.name, &tensor.shape, seed ^ (at as u64) << 32);
        total += bytes.len() as u64;
        folder.tensor(&tensor.name, Dtype::BF16, &tensor.shape, &bytes)?;
    }
    let hashes = folder.end_weights()?.clone();
    // By its manifest a folder is known as ours, so that --force may replace it.
    let tool = concat!("ptq ", env!("CARGO_PKG_VERSION"));
    let manifest = json!({"tool": tool, "hash": "sha256 of the tensor's bytes", "output": hashes});
    folder.write_file("manifest.json", manifest.to_string().as_bytes())?;
    let text = serde_json::to_vec_pretty(&config).map_err(|e| PipelineError::Usage(e.to_string()))?;
    folder.write_file("config.json", &text)?;
    folder.write_file("tokens.safetensors", &tokens(vocab, sample, seed))?;
    folder.finish()?;
    Ok(total)
}

/// One tensor in bf16: norms near 1, biases small, weights with the spread that keeps activations of order 1.
fn values(name: &str, shape: &[usize], seed: u64) -> Vec<u8> {
    let columns = shape.last().copied().unwrap_or(1);
    let norm = name.contains("norm");
    let spread = if shape.len() == 1 { 0.1 } else { 1.0 / (columns as f32).sqrt() };
    let mut random = SplitMix(seed);
    let mut bytes = Vec::with_capacity(2 * shape.iter().product::<usize>());
    for i in 0..shape.iter().product::<usize>() {
        let outlier = if norm && (i % columns).is_multiple_of(OUTLIER_EVERY) { 20.0 } else { 1.0 };
        let value = (f32::from(u8::from(norm)) + spread * random.normal()) * outlier;
        bytes.extend(half::bf16::from_f32(value).to_le_bytes());
    }
    bytes
}

/// A safetensors file with one tensor `calibration`, I32 `[sequences, tokens]`.
fn tokens(vocab: usize, sample: Sample, seed: u64) -> Vec<u8> {
    let mut random = SplitMix(seed ^ 0x70_6b);
    let (shape, count) = ([sample.sequences, sample.tokens], sample.sequences * sample.tokens);
    let header = json!({"calibration": {"dtype": "I32", "shape": shape, "data_offsets": [0, count * 4]}});
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    for _ in 0..count {
        file.extend(((random.next() % vocab as u64) as i32).to_le_bytes());
    }
    file
}

/// Steele, Lea and Flood's SplitMix64.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// Near enough to a normal for weights: the sum of four 16-bit uniforms, standardised.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum: u64 = (0..4).map(|i| (bits >> (16 * i)) & 0xffff).sum();
        (sum as f32 / 65535.0 - 2.0) * 1.732_050_8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quant_checkpoint::Checkpoint;

    fn synthetic(tokens: Sample) -> Synthetic {
        Synthetic { shape: SHAPES[0], layers: 1, vocab: 50, tokens, seed: 3 }
    }

    #[test]
    fn tokens_have_the_shape_asked_for_and_places_in_the_model() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("model");
        synthesize(&folder, &synthetic(Sample { sequences: 3, tokens: 4100 }), false).unwrap();
        let tokens = Checkpoint::open_file(folder.join("tokens.safetensors")).unwrap();
        let ids = tokens.read_i32("calibration").unwrap();
        assert_eq!(ids.shape(), [3, 4100]);
        assert!(ids.iter().all(|id| (0..50).contains(id)));
        let config = quant_checkpoint::read_config(&folder).unwrap();
        assert_eq!(config["max_position_embeddings"], 4100);
    }

    #[test]
    fn more_tokens_than_a_file_should_have_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("model");
        for sequences in [1 << 20, usize::MAX] {
            let error =
                synthesize(&folder, &synthetic(Sample { sequences, tokens: 512 }), false).unwrap_err();
            assert!(matches!(error, PipelineError::Usage(_)), "{error}");
            assert!(!folder.exists());
        }
    }
}
