//! What a training pass holds, and how its tokens are cut into pieces.

use super::Block;
use crate::ops::attention::AttentionShape;
use crate::ops::attention_backward::attention_backward_bytes;
use quant_graph::{BlockSpec, ModelSpec, Norm};
use quant_kernels::Element;
use std::ops::Range;

/// Tokens that go through a block together in training: enough that packing a weight costs little beside multiplying by it.
const PIECE_TOKENS: usize = 2048;

/// The most that a product packs: a group of rows and one of columns.
const PACKED_BYTES: usize = 18 << 20;

/// What one step of training a block holds beside its weights and the input and output of the step, in bytes. What an
/// insert keeps is not in it, nor the input of a linear that an insert gives one of its own (tokens times its inputs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainingMemory {
    /// Tapes that are there together, when the gradients of all linears are wanted.
    pub tape: usize,
    /// Temporaries of the forward or backward of one piece, packed operands of a product among them.
    pub working: usize,
    /// Gradients of all weights and biases.
    pub gradients: usize,
}

/// The memory of a training step with sequences of these `lengths` in arithmetic of `T`, when [`BlockTrainer`] keeps tapes
/// of at most `bound` bytes; without one it keeps all of them.
///
/// [`BlockTrainer`]: crate::BlockTrainer
///
/// ```
/// # let config = serde_json::json!({ "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 1536,
/// #     "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2 });
/// let spec = quant_model::model_spec(&config)?;
/// let memory = quant_model::training_memory::<f32>(&spec, &[2048; 4], None);
/// let bounded = quant_model::training_memory::<f32>(&spec, &[2048; 4], Some(400 << 20));
/// // One of four pieces is kept at a time.
/// assert_eq!((memory.tape, bounded.tape), (4 * 300_089_344, 300_089_344));
/// # Ok::<(), quant_model::ModelError>(())
/// ```
#[must_use]
pub fn training_memory<T: Element>(
    spec: &ModelSpec,
    lengths: &[usize],
    bound: Option<usize>,
) -> TrainingMemory {
    let (block, shape) = (spec.block(0), shape_of(spec));
    let (most, starts) = widest_piece(lengths);
    let widths = Widths { shape: &shape, hidden: spec.hidden, intermediate: spec.intermediate };
    let pieces = pieces(&starts);
    let tokens = |piece: &Range<usize>| starts[piece.end] - starts[piece.start];
    let sizes: Vec<usize> =
        pieces.iter().map(|piece| widths.tape(&block, tokens(piece)) * size_of::<T>()).collect();
    let kept = kept_pieces(&sizes, bound);
    let again = sizes[kept..].iter().copied().max().unwrap_or(0);
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let parameters: usize =
        block.linears.iter().map(|l| l.weights() + if l.bias { l.outputs } else { 0 }).sum();
    TrainingMemory {
        tape: sizes[..kept].iter().sum::<usize>() + again,
        working: PACKED_BYTES
            + widths.working(&block, most) * size_of::<T>()
            + attention_backward_bytes(&shape, longest, size_of::<T>()),
        gradients: parameters * size_of::<T>(),
    }
}

/// What a pass through a block holds that no backward follows, beside the block's weights and the input and output of all sequences. What
/// an insert holds is not in it, but the input of a linear that an insert gives one of its own is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardMemory {
    /// Tokens that go through together at most: as many as an insert sees at a time.
    pub tokens: usize,
    /// Temporaries, packed operands of a product among them, in bytes.
    pub working: usize,
}

/// The memory of a pass of sequences of these `lengths` in arithmetic of `T` that no backward follows.
///
/// ```
/// # let config = serde_json::json!({ "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 1536,
/// #     "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2 });
/// let spec = quant_model::model_spec(&config)?;
/// // Sequences go through in pieces: more of them take no more.
/// let [few, many] = [4, 128].map(|n| quant_model::forward_memory::<f32>(&spec, &vec![512; n]));
/// assert_eq!((few, few.tokens), (many, 2048));
/// # Ok::<(), quant_model::ModelError>(())
/// ```
#[must_use]
pub fn forward_memory<T: Element>(spec: &ModelSpec, lengths: &[usize]) -> ForwardMemory {
    let (block, shape) = (spec.block(0), shape_of(spec));
    let widths = Widths { shape: &shape, hidden: spec.hidden, intermediate: spec.intermediate };
    let (tokens, _) = widest_piece(lengths);
    ForwardMemory { tokens, working: PACKED_BYTES + widths.forward(&block, tokens) * size_of::<T>() }
}

/// Tokens of the piece with most of them, and where every sequence starts, and the last one ends.
fn widest_piece(lengths: &[usize]) -> (usize, Vec<usize>) {
    let mut starts = vec![0];
    starts.extend(lengths.iter().scan(0, |end, length| {
        *end += length;
        Some(*end)
    }));
    let tokens = |piece: &Range<usize>| starts[piece.end] - starts[piece.start];
    (pieces(&starts).iter().map(tokens).max().unwrap_or(0), starts)
}

fn shape_of(spec: &ModelSpec) -> AttentionShape {
    let &ModelSpec { heads, kv_heads, head_dim, .. } = spec;
    AttentionShape { heads, kv_heads, head_dim, window: None }
}

/// Bytes of the tape of a piece, when the gradients of all linears are wanted and no linear has an input of its own.
pub(super) fn piece_bytes<T: Element>(block: &Block<T>, tokens: usize) -> usize {
    let widths = Widths { shape: &block.shape, hidden: block.hidden, intermediate: block.intermediate };
    widths.tape(&block.spec, tokens) * size_of::<T>()
}

struct Widths<'a> {
    shape: &'a AttentionShape,
    hidden: usize,
    intermediate: usize,
}

impl Widths<'_> {
    /// Numbers of the tape of so many tokens: inputs of q, k, v, of o, of gate and up and of down; queries, keys and values;
    /// what attention gave and the numbers of its rows; the residual stream between; gate and up; queries and keys before
    /// their norms.
    fn tape(&self, block: &BlockSpec, tokens: usize) -> usize {
        let (queries, keys) = (self.shape.query_width(), self.shape.kv_width());
        let normed =
            |norm, width| if block.norms.iter().any(|(known, _)| *known == norm) { width } else { 0 };
        let unnormed = normed(Norm::Query, queries) + normed(Norm::Key, keys);
        let attention = 3 * queries + 2 * keys + 2 * self.shape.heads + unnormed;
        tokens * (3 * self.hidden + attention + 3 * self.intermediate)
    }
    /// Numbers of a pass without a tape at its widest moments: queries, keys and values with what attention gives, and what entered the
    /// first linear of them; or gate and up with what down multiplies, if that is its own, and gives.
    fn forward(&self, block: &BlockSpec, tokens: usize) -> usize {
        let (queries, keys) = (self.shape.query_width(), self.shape.kv_width());
        let attention = 2 * queries + 2 * keys;
        tokens * (self.hidden + attention.max(3 * self.intermediate) + fused(block))
    }
    /// Numbers beside the tape at the widest moments: the gradient of the activation or of everything around attention,
    /// with those of the residual stream; rows of a fused linear stand beside their parts.
    fn working(&self, block: &BlockSpec, tokens: usize) -> usize {
        let (queries, keys) = (self.shape.query_width(), self.shape.kv_width());
        tokens * (2 * self.hidden + self.intermediate.max(2 * queries + 2 * keys) + fused(block))
    }
}

/// Outputs of the widest linear that makes several parts, which stands beside them for a moment.
fn fused(block: &BlockSpec) -> usize {
    block.linears.iter().filter(|l| l.parts.len() > 1).map(|l| l.outputs).max().unwrap_or(0)
}

/// Pieces as ranges of sequences: as many as stay within [`PIECE_TOKENS`], at least one.
pub(super) fn pieces(starts: &[usize]) -> Vec<Range<usize>> {
    let (mut pieces, mut first) = (Vec::new(), 0);
    for next in 1..starts.len() {
        let last = next + 1 == starts.len();
        if last || starts[next + 1] - starts[first] > PIECE_TOKENS {
            pieces.push(first..next);
            first = next;
        }
    }
    pieces
}

/// How many of the first pieces keep their tapes, so that there is room for that of any other one beside them.
pub(super) fn kept_pieces(sizes: &[usize], bound: Option<usize>) -> usize {
    let Some(bound) = bound.filter(|bound| sizes.iter().sum::<usize>() > *bound) else { return sizes.len() };
    let room = bound.saturating_sub(sizes.iter().copied().max().unwrap_or(0));
    let mut sum = 0;
    let fits = |size: &&usize| {
        sum += **size;
        sum <= room
    };
    sizes.iter().take_while(fits).count()
}

#[cfg(test)]
mod tests {
    use super::super::{BlockTrainer, Pass};
    use super::*;
    use crate::RopeTable;
    use ndarray::Array2;
    use quant_graph::{EffectiveWeight, EffectiveWeights, LinearWeight, NoInsert};
    use quant_kernels::{Compute, Par};

    #[test]
    fn pieces_hold_whole_sequences() {
        assert!(pieces(&[0]).is_empty());
        assert_eq!(pieces(&[0, 512, 1024, 1536, 2048, 2049]), [0..4, 4..5]);
        assert_eq!(pieces(&[0, 512, 1024, 1536, 2049]), [0..3, 3..4]);
        assert_eq!(pieces(&[0, 5000, 5001, 7048, 9096]), [0..1, 1..3, 3..4]);
    }

    #[test]
    fn what_is_kept_leaves_room_for_one_more() {
        assert_eq!(kept_pieces(&[3, 3, 3], None), 3);
        assert_eq!(kept_pieces(&[3, 3, 3], Some(9)), 3);
        assert_eq!(kept_pieces(&[3, 3, 3], Some(8)), 1);
        assert_eq!(kept_pieces(&[3, 3, 3], Some(2)), 0);
        assert_eq!(kept_pieces(&[3, 5, 3], Some(10)), 1);
        assert_eq!(kept_pieces(&[], Some(0)), 0);
    }

    /// What is said before is what is held.
    #[test]
    fn tapes_are_as_long_as_foretold() {
        for (family, partial) in [("Qwen2", 1.0), ("Qwen3", 1.0), ("Phi3", 0.5)] {
            let config = serde_json::json!({
                "architectures": [format!("{family}ForCausalLM")], "model_type": family.to_lowercase(),
                "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 6,
                "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 10, "partial_rotary_factor": partial,
            });
            let spec = crate::model_spec(&config).unwrap();
            let mut params = quant_testkit::random_block(&spec, &mut quant_testkit::Numbers::new(1));
            let linears = std::mem::take(&mut params.linears);
            let block = Block::<f32>::new(&spec, 0, params, Compute::F32, Par::Seq).unwrap();
            let weights = linears.iter().map(|(id, linear)| {
                let LinearWeight::Float(weight) = &linear.weight else { panic!("float") };
                (*id, EffectiveWeight { weight: weight.view(), bias: linear.bias.as_ref().map(|b| b.view()) })
            });
            let table = RopeTable::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, 1500);
            let (rope, with) = (|_| &table, weights.collect());
            let trainer = BlockTrainer::new(&block, &rope, EffectiveWeights::new()).unwrap();
            let (x, starts) = (Array2::zeros((2300, 24)), [0, 1500, 2300]);
            let mut pass = Pass { with: &with, insert: &mut NoInsert, keep: true, par: Par::Seq };
            let (_, tapes) = trainer.run(x.view(), &starts, &mut pass, true).unwrap();
            let held: Vec<usize> = tapes.iter().map(|tape| tape.bytes()).collect();
            assert_eq!(held, [piece_bytes(&block, 1500), piece_bytes(&block, 800)], "{family}");
            assert_eq!(held.iter().sum::<usize>(), training_memory::<f32>(&spec, &[1500, 800], None).tape);
        }
    }
}
