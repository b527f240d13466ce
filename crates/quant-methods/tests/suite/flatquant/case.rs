//! A block that is trained in.

use ndarray::{Array1, Array2};
use quant_graph::{
    BlockParams, BlockTraining, EffectiveWeight, EffectiveWeights, LinearId, LinearWeight, ModelSpec,
};
use quant_kernels::{Compute, Element, Par};
use quant_methods::flatquant::{
    FlatParameters, FlatScheme, FlatShape, FlatStep, Loss, Matrix, mean_squared_error,
};
use quant_model::{Block, BlockTrainer, RopeTable};
use std::collections::BTreeMap;

/// All matrices of the published algorithm.
pub(crate) const HEADS: [Matrix; 9] = [
    Matrix::InputLeft,
    Matrix::InputRight,
    Matrix::Key,
    Matrix::Value,
    Matrix::Output,
    Matrix::MlpLeft,
    Matrix::MlpRight,
    Matrix::DownLeft,
    Matrix::DownRight,
];

/// The same with a pair for o in place of a matrix across heads, and floats in the cache.
pub(crate) const PAIRS: [Matrix; 9] = [
    Matrix::InputLeft,
    Matrix::InputRight,
    Matrix::Value,
    Matrix::MlpLeft,
    Matrix::MlpRight,
    Matrix::DownLeft,
    Matrix::DownRight,
    Matrix::OutputLeft,
    Matrix::OutputRight,
];

/// A block, what it reads and what it should give.
pub(crate) struct Case<T: Element> {
    pub(crate) shape: FlatShape,
    pub(crate) block: Block<T>,
    pub(crate) float: BTreeMap<LinearId, (Array2<T>, Option<Array1<T>>)>,
    pub(crate) table: RopeTable<T>,
    pub(crate) starts: Vec<usize>,
    pub(crate) x: Array2<T>,
    pub(crate) target: Array2<T>,
}

impl<T: Element> Case<T> {
    pub(crate) fn new(
        spec: &ModelSpec,
        mut params: BlockParams,
        length: usize,
        x: Array2<T>,
        target: Array2<T>,
    ) -> Self {
        let float = std::mem::take(&mut params.linears).into_iter().map(|(id, linear)| {
            let LinearWeight::Float(weight) = linear.weight else { panic!("float") };
            (id, (weight.mapv(T::from_f32), linear.bias.map(|bias| bias.mapv(T::from_f32))))
        });
        Self {
            float: float.collect(),
            shape: FlatShape::new(spec, 0),
            block: Block::new(spec, 0, params, Compute::F32, Par::Seq).unwrap(),
            table: RopeTable::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, length),
            starts: (0..=x.nrows() / length).map(|i| i * length).collect(),
            x,
            target,
        }
    }

    pub(crate) fn own(&self) -> EffectiveWeights<'_, T> {
        let own = self.float.iter().map(|(id, (weight, bias))| {
            (*id, EffectiveWeight { weight: weight.view(), bias: bias.as_ref().map(|b| b.view()) })
        });
        own.collect()
    }

    /// Output, loss and the gradient of every parameter.
    pub(crate) fn step(
        &self,
        scheme: &FlatScheme,
        parameters: &FlatParameters<T>,
        par: Par,
    ) -> (Array2<T>, Loss<T>, FlatParameters<T>) {
        let rope = |_| &self.table;
        let trainer = BlockTrainer::new(&self.block, &rope, self.own()).unwrap();
        let step = FlatStep::new(&self.shape, scheme, parameters).unwrap();
        let merged = step.weights(&self.own(), par).unwrap();
        let with: EffectiveWeights<'_, T> = merged.iter().map(|(id, w)| (*id, w.view())).collect();
        let mut insert = step.insert();
        let (y, tape) = trainer.record(self.x.view(), &self.starts, &with, &mut insert, par).unwrap();
        let loss = mean_squared_error(y.view(), self.target.view());
        let gradients = tape.backward(loss.gradient.clone(), &mut insert, par).unwrap();
        let gradients = step.backward(&self.own(), &gradients.weights, insert.into_sums(), par).unwrap();
        (y, loss, gradients)
    }

    /// Output alone.
    pub(crate) fn forward(&self, scheme: &FlatScheme, parameters: &FlatParameters<T>) -> Array2<T> {
        let rope = |_| &self.table;
        let trainer = BlockTrainer::new(&self.block, &rope, self.own()).unwrap();
        let step = FlatStep::new(&self.shape, scheme, parameters).unwrap();
        let merged = step.weights(&self.own(), Par::Seq).unwrap();
        let with: EffectiveWeights<'_, T> = merged.iter().map(|(id, w)| (*id, w.view())).collect();
        trainer.forward(self.x.view(), &self.starts, &with, &mut step.insert(), Par::Seq).unwrap()
    }
}
