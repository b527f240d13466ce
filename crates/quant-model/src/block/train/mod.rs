//! A block forward and backward: the training side of [`Block`], made of the same operators.

mod linears;
mod memory;
mod online;
mod piece;
mod window;

pub use memory::{ForwardMemory, TrainingMemory, forward_memory, training_memory};
pub use window::BlockWindow;

use super::Block;
use crate::ops::precision::Precision;
use crate::{ModelError, RopeTable};
use memory::{kept_pieces, piece_bytes, pieces};
use ndarray::{Array1, Array2, ArrayView2};
use online::Back;
use piece::Piece;
use quant_graph::{
    BlockGradients, BlockTape, BlockTraining, EffectiveWeights, ForwardError, Insert, LinearId, Recorded,
    Spot, WeightGradient,
};
use quant_kernels::{Element, Par, views};
use std::collections::BTreeMap;
use std::fmt::{self, Debug, Formatter};

/// Sums of the gradients of effective weights.
type WeightGradients<T> = BTreeMap<LinearId, WeightGradient<T>>;

/// [`BlockTraining`] of a [`Block`]: forward with a tape, and backward.
///
/// The operators, their order and so the bits of a forward are those of [`Block::forward`] where no weight is replaced and
/// nothing inserted. Sequences go through in pieces of at most 2048 tokens (or one longer sequence) that are cut by the
/// lengths alone. The tapes of as many pieces as a memory bound has room for are kept, the others are made again in the
/// backward; the bound changes the time and not one bit.
///
/// Norms, rope and what the block multiplies activations by are those of the block, and an insert stands behind the latter. Its linears
/// are not looked at: those without an effective weight multiply by
/// `weights`, which a backward needs as they are.
///
/// ```
/// # use quant_model::{Block, BlockTrainer, Compute, Par, RopeTable, model_spec};
/// # use quant_graph::{BlockParams, BlockTraining, EffectiveWeight, EffectiveWeights, LinearId, NoInsert, Norm};
/// # use quant_graph::ndarray::{Array1, Array2};
/// # use std::collections::BTreeMap;
/// # let config = serde_json::json!({ "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8,
/// #     "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10 });
/// # let spec = model_spec(&config)?;
/// # let norms = spec.norms().into_iter().map(|(norm, width)| (norm, Array1::ones(width))).collect();
/// # let params = BlockParams { norms, linears: BTreeMap::new(), online: Default::default(), kv: None };
/// # let numbers = |rows, columns| Array2::from_shape_fn((rows, columns), |(i, j)| ((i * 7 + j * 5) % 11) as f32 / 22.0);
/// // A block without linears, and the weights [out, in] they would have.
/// let block = Block::<f32>::new(&spec, 0, params, Compute::F32, Par::Seq)?;
/// let weights: BTreeMap<LinearId, Array2<f32>> =
///     block.spec().linears.iter().map(|l| (l.id, numbers(l.outputs, l.inputs))).collect();
/// let view = |id| EffectiveWeight { weight: weights[&id].view(), bias: None };
/// let table = RopeTable::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, 3);
/// let rope = |_| &table;
/// let trainer = BlockTrainer::new(&block, &rope, weights.keys().map(|id| (*id, view(*id))).collect())?;
///
/// // Two sequences of 3 and 2 tokens; the gradient of down is wanted, and the loss is half the sum of squares.
/// let (x, starts) = (numbers(5, 8), [0, 3, 5]);
/// let with: EffectiveWeights<'_, f32> = [(LinearId::DOWN, view(LinearId::DOWN))].into();
/// let (y, tape) = trainer.record(x.view(), &starts, &with, &mut NoInsert, Par::Seq)?;
/// let gradients = tape.backward(y, &mut NoInsert, Par::Seq)?;
/// assert_eq!(gradients.input.dim(), (5, 8));
/// assert_eq!(gradients.weights[&LinearId::DOWN].weight.dim(), (8, 12));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct BlockTrainer<'a, T: Element> {
    block: &'a Block<T>,
    rope: &'a (dyn Fn(usize) -> &'a RopeTable<T> + Sync + 'a),
    weights: EffectiveWeights<'a, T>,
    back: Back,
    precision: Precision,
    memory: Option<usize>,
}

impl<T: Element> Debug for BlockTrainer<'_, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockTrainer")
            .field("block", &self.block.index)
            .field("precision", &self.precision)
            .field("memory", &self.memory)
            .finish_non_exhaustive()
    }
}

/// What every step of a pass needs to know.
struct Pass<'p, 'w, T> {
    with: &'p EffectiveWeights<'w, T>,
    insert: &'p mut dyn Insert<T>,
    /// Whether a backward follows.
    keep: bool,
    par: Par,
}

impl<'a, T: Element> BlockTrainer<'a, T> {
    /// Trains in `block`, whose sequences of so many positions are rotated by `rope`. `weights` are those of the linears that
    /// a pass gives no effective weight for; a linear that every pass gives one for can be left out.
    ///
    /// # Errors
    /// [`ModelError::Part`] if the block quantises its cache, which has no gradient: put an insert at keys and values;
    /// [`ModelError::Shape`] if a weight does not fit.
    pub fn new(
        block: &'a Block<T>,
        rope: &'a (dyn Fn(usize) -> &'a RopeTable<T> + Sync + 'a),
        weights: EffectiveWeights<'a, T>,
    ) -> Result<Self, ModelError> {
        if block.kv.is_some() {
            let problem = "has no gradient; train without it and with an insert at keys and values";
            return Err(block.part("the quantiser of its KV cache".into(), problem));
        }
        check_weights(block, &weights)?;
        let back = Back::new(&block.online);
        Ok(Self { block, rope, weights, back, precision: Precision::Full, memory: None })
    }
    /// Keeps tapes of at most `bytes` at a time, as far as one piece allows, and makes the others again in the backward.
    #[must_use]
    pub fn with_memory(self, bytes: usize) -> Self {
        Self { memory: Some(bytes), ..self }
    }
    /// Rounds the result of every op.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    fn insert(&self, spot: Spot, x: Array2<T>, pass: &mut Pass<'_, '_, T>) -> Result<Array2<T>, ModelError> {
        let (keep, par) = (pass.keep, pass.par);
        self.inserted(spot, x, pass, |insert, x| insert.forward(spot, x, keep, par))
    }
    fn insert_back(
        &self,
        spot: Spot,
        grad: Array2<T>,
        pass: &mut Pass<'_, '_, T>,
    ) -> Result<Array2<T>, ModelError> {
        let par = pass.par;
        self.inserted(spot, grad, pass, |insert, grad| insert.backward(spot, grad, par))
    }
    fn inserted(
        &self,
        spot: Spot,
        x: Array2<T>,
        pass: &mut Pass<'_, '_, T>,
        run: impl FnOnce(&mut dyn Insert<T>, Array2<T>) -> Result<Array2<T>, quant_graph::BoxError>,
    ) -> Result<Array2<T>, ModelError> {
        if !pass.insert.covers(spot) {
            return Ok(x);
        }
        let (rows, columns) = x.dim();
        let mut y = run(pass.insert, x).map_err(|cause| ModelError::Insert {
            block: self.block.index,
            spot,
            cause,
        })?;
        self.block.check(&format!("what is inserted at {spot:?}"), &[rows, columns], y.shape())?;
        self.precision.round(y.view_mut(), pass.par);
        Ok(y)
    }

    /// The output for `x`, and the tapes of the pieces that were kept, the first ones.
    fn run(
        &self,
        x: ArrayView2<'_, T>,
        starts: &[usize],
        pass: &mut Pass<'_, '_, T>,
        keep: bool,
    ) -> Result<(Array2<T>, Vec<Piece<T>>), ModelError> {
        let block = self.block;
        let (tokens, hidden) = (x.nrows(), block.hidden);
        block.check("residual stream", &[tokens, hidden], x.shape())?;
        if starts.first() != Some(&0) || starts.last() != Some(&tokens) || !starts.is_sorted() {
            block.check("ascending starts of sequences", &[0, tokens], starts)?;
            return Err(block.part("starts of sequences".into(), "are not ascending"));
        }
        check_weights(block, pass.with)?;
        let pieces = pieces(starts);
        let sizes: Vec<usize> =
            pieces.iter().map(|p| piece_bytes::<T>(block, starts[p.end] - starts[p.start])).collect();
        let kept = if keep { kept_pieces(&sizes, self.memory) } else { 0 };
        let (mut h, mut tapes) = (x.to_owned(), Vec::with_capacity(kept));
        for (i, piece) in pieces.into_iter().enumerate() {
            pass.keep = i < kept;
            let rows = starts[piece.start]..starts[piece.end];
            tapes.extend(self.piece(
                views::rows_mut(&mut h, rows),
                &starts[piece.start..=piece.end],
                pass,
            )?);
        }
        Ok((h, tapes))
    }

    fn failed(&self, cause: ModelError) -> ForwardError {
        ForwardError::new(format!("a training pass of block {}", self.block.index), cause)
    }
}

impl<T: Element> BlockTraining<T> for BlockTrainer<'_, T> {
    fn forward(
        &self,
        x: ArrayView2<'_, T>,
        starts: &[usize],
        with: &EffectiveWeights<'_, T>,
        insert: &mut dyn Insert<T>,
        par: Par,
    ) -> Result<Array2<T>, ForwardError> {
        let mut pass = Pass { with, insert, keep: false, par };
        self.run(x, starts, &mut pass, false).map(|(y, _)| y).map_err(|cause| self.failed(cause))
    }
    fn record<'s, 'w: 's>(
        &'s self,
        x: ArrayView2<'s, T>,
        starts: &'s [usize],
        with: &'s EffectiveWeights<'w, T>,
        insert: &mut dyn Insert<T>,
        par: Par,
    ) -> Result<Recorded<'s, T>, ForwardError> {
        let mut pass = Pass { with, insert, keep: true, par };
        let (y, kept) = self.run(x, starts, &mut pass, true).map_err(|cause| self.failed(cause))?;
        Ok((y, Box::new(Tape { trainer: self, x, starts, with, kept })))
    }
}

/// The tapes of a forward.
#[derive(Debug)]
struct Tape<'s, 'a, 'w, T: Element> {
    trainer: &'s BlockTrainer<'a, T>,
    x: ArrayView2<'s, T>,
    starts: &'s [usize],
    with: &'s EffectiveWeights<'w, T>,
    /// Of the first pieces.
    kept: Vec<Piece<T>>,
}

impl<T: Element> BlockTape<T> for Tape<'_, '_, '_, T> {
    fn backward(
        self: Box<Self>,
        grad: Array2<T>,
        insert: &mut dyn Insert<T>,
        par: Par,
    ) -> Result<BlockGradients<T>, ForwardError> {
        let (trainer, mut pass) = (self.trainer, Pass { with: self.with, insert, keep: true, par });
        self.back(grad, &mut pass).map_err(|cause| trainer.failed(cause))
    }
}

impl<T: Element> Tape<'_, '_, '_, T> {
    fn back(
        mut self,
        mut grad: Array2<T>,
        pass: &mut Pass<'_, '_, T>,
    ) -> Result<BlockGradients<T>, ModelError> {
        let block = self.trainer.block;
        block.check("gradient of the output", self.x.shape(), grad.shape())?;
        let mut weights = WeightGradients::new();
        for (i, piece) in pieces(self.starts).into_iter().enumerate().rev() {
            let rows = self.starts[piece.start]..self.starts[piece.end];
            let starts = &self.starts[piece.start..=piece.end];
            let x = views::rows(self.x, rows.clone());
            // The kept ones are the first, and the last of them is next in turn.
            let tape = if i < self.kept.len() { self.kept.pop() } else { None };
            let tape = match tape {
                Some(tape) => Some(tape),
                None => self.trainer.piece(x.to_owned().view_mut(), starts, pass)?,
            };
            let tape = tape.ok_or_else(|| block.part("the tape".into(), "was not kept"))?;
            let grad = views::rows_mut(&mut grad, rows);
            self.trainer.piece_back(tape, x, starts, grad, &mut weights, pass)?;
        }
        for (id, weight) in self.with {
            // Of no tokens at all.
            weights.entry(*id).or_insert_with(|| WeightGradient {
                weight: Array2::zeros(weight.weight.dim()),
                bias: weight.bias.map(|b| Array1::zeros(b.len())),
            });
        }
        Ok(BlockGradients { input: grad, weights })
    }
}

fn check_weights<T: Element>(block: &Block<T>, weights: &EffectiveWeights<'_, T>) -> Result<(), ModelError> {
    for (id, given) in weights {
        let Some(linear) = block.spec.linear(*id) else {
            return Err(block.part(format!("a linear for {id}"), "does not exist in this model"));
        };
        block.check(&linear.module, &[linear.outputs, linear.inputs], given.weight.shape())?;
        if let Some(bias) = &given.bias {
            block.check(&format!("{}.bias", linear.module), &[linear.outputs], bias.shape())?;
        }
    }
    Ok(())
}
