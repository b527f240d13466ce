//! Several blocks behind each other, of which the first is trained in.

use super::BlockTrainer;
use ndarray::{Array2, ArrayView2};
use quant_graph::{
    BlockGradients, BlockTape, BlockTraining, EffectiveWeights, ForwardError, Insert, NoInsert, Recorded,
};
use quant_kernels::{Element, Par};
use std::fmt::{self, Debug, Formatter};

/// [`BlockTraining`] of a block whose output goes through the blocks behind it as they are: what is trained in it is judged by what
/// they make of it (the windows of CBQ, arXiv 2312.07950, with one block trained at a time).
///
/// The blocks behind go through once more in the backward, so that of them nothing but their inputs is kept.
///
/// ```
/// use quant_graph::{BlockTraining, EffectiveWeights, ForwardError, NoInsert};
/// use quant_graph::ndarray::{Array2, ArrayView2};
/// use quant_model::{BlockTrainer, BlockWindow, Par};
///
/// /// The output of the second block.
/// fn behind<'a>(
///     first: BlockTrainer<'a, f32>,
///     second: BlockTrainer<'a, f32>,
///     (x, starts): (ArrayView2<'_, f32>, &[usize]),
/// ) -> Result<Array2<f32>, ForwardError> {
///     let window = BlockWindow::new(first, vec![second]);
///     window.forward(x, starts, &EffectiveWeights::new(), &mut NoInsert, Par::Seq)
/// }
/// ```
pub struct BlockWindow<'a, T: Element> {
    first: BlockTrainer<'a, T>,
    behind: Vec<BlockTrainer<'a, T>>,
}

impl<T: Element> Debug for BlockWindow<'_, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockWindow").field("first", &self.first).field("behind", &self.behind).finish()
    }
}

impl<'a, T: Element> BlockWindow<'a, T> {
    /// Of a block and those behind it in their order, which have all their weights.
    #[must_use]
    pub fn new(first: BlockTrainer<'a, T>, behind: Vec<BlockTrainer<'a, T>>) -> Self {
        Self { first, behind }
    }

    /// What the blocks behind make of the output of the first; `inputs` gets what goes into each.
    fn go_on(
        &self,
        mut y: Array2<T>,
        starts: &[usize],
        mut inputs: Option<&mut Vec<Array2<T>>>,
        par: Par,
    ) -> Result<Array2<T>, ForwardError> {
        for block in &self.behind {
            let next = block.forward(y.view(), starts, &EffectiveWeights::new(), &mut NoInsert, par)?;
            if let Some(inputs) = &mut inputs {
                inputs.push(y);
            }
            y = next;
        }
        Ok(y)
    }
}

impl<T: Element> BlockTraining<T> for BlockWindow<'_, T> {
    fn forward(
        &self,
        x: ArrayView2<'_, T>,
        starts: &[usize],
        with: &EffectiveWeights<'_, T>,
        insert: &mut dyn Insert<T>,
        par: Par,
    ) -> Result<Array2<T>, ForwardError> {
        let y = self.first.forward(x, starts, with, insert, par)?;
        self.go_on(y, starts, None, par)
    }

    fn record<'s, 'w: 's>(
        &'s self,
        x: ArrayView2<'s, T>,
        starts: &'s [usize],
        with: &'s EffectiveWeights<'w, T>,
        insert: &mut dyn Insert<T>,
        par: Par,
    ) -> Result<Recorded<'s, T>, ForwardError> {
        let (y, first) = self.first.record(x, starts, with, insert, par)?;
        let mut inputs = Vec::new();
        let y = self.go_on(y, starts, Some(&mut inputs), par)?;
        Ok((y, Box::new(WindowTape { behind: &self.behind, starts, first, inputs })))
    }
}

struct WindowTape<'s, 'a, T: Element> {
    behind: &'s [BlockTrainer<'a, T>],
    starts: &'s [usize],
    first: Box<dyn BlockTape<T> + 's>,
    inputs: Vec<Array2<T>>,
}

impl<T: Element> Debug for WindowTape<'_, '_, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("WindowTape").field("first", &self.first).finish_non_exhaustive()
    }
}

impl<T: Element> BlockTape<T> for WindowTape<'_, '_, T> {
    fn backward(
        self: Box<Self>,
        mut grad: Array2<T>,
        insert: &mut dyn Insert<T>,
        par: Par,
    ) -> Result<BlockGradients<T>, ForwardError> {
        let Self { behind, starts, first, inputs } = *self;
        for (block, x) in behind.iter().zip(&inputs).rev() {
            let frozen = EffectiveWeights::new();
            let (_, tape) = block.record(x.view(), starts, &frozen, &mut NoInsert, par)?;
            grad = tape.backward(grad, &mut NoInsert, par)?.input;
        }
        drop(inputs);
        first.backward(grad, insert, par)
    }
}
