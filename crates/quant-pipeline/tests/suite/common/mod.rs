//! A small model of any family, and what it computes.

use ndarray::Array2;
use quant_graph::{BlockSource, ModelSpec};
use quant_kernels::{Compute, Par};
use quant_model::{InMemoryModel, StreamedModel, model_spec};
use quant_testkit::{Numbers, random_block};
use serde_json::json;

pub(crate) fn spec(architecture: &str, tied: bool) -> ModelSpec {
    model_spec(&json!({
        "architectures": [architecture], "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "vocab_size": 64,
        "tie_word_embeddings": tied, "max_position_embeddings": 64, "original_max_position_embeddings": 64,
    }))
    .unwrap()
}

pub(crate) fn model(spec: &ModelSpec) -> InMemoryModel {
    let mut numbers = Numbers::new(11);
    let blocks = (0..spec.layers).map(|_| random_block(spec, &mut numbers)).collect();
    let hidden = spec.hidden;
    let (embedding, head) = (numbers.matrix(64, hidden, 1.0), numbers.matrix(64, hidden, 1.0));
    let norm = numbers.vector(hidden, 1.0, 0.2);
    InMemoryModel::new(spec.clone(), blocks, embedding, norm, (!spec.tied).then_some(head)).unwrap()
}

pub(crate) fn tokens(rows: usize) -> Vec<Vec<u32>> {
    (0..rows as u32).map(|s| (0..40).map(|t| (t * 7 + s * 13) % 64).collect()).collect()
}

/// Of some rows of tokens.
pub(crate) fn logits(model: InMemoryModel, rows: usize) -> Array2<f32> {
    let vocab = model.spec().vocab;
    let mut streamed = StreamedModel::new(model, Compute::F32, Par::Seq);
    let rows = tokens(rows);
    streamed.encode(&rows, &mut |_, _| std::ops::ControlFlow::Continue(())).unwrap();
    let positions = rows.iter().map(Vec::len).sum();
    let mut out = Array2::zeros((positions, vocab));
    streamed.logits_into(0..positions, 0..vocab, out.view_mut()).unwrap();
    out
}

/// Relative, of all numbers.
pub(crate) fn distance(a: &Array2<f32>, b: &Array2<f32>) -> f64 {
    let norm = |x: &Array2<f32>| x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    norm(&(a - b)) / norm(b)
}
