//! The tensors of a float checkpoint: names and shapes.

use crate::spec::{ModelSpec, Outer};

/// Name and shape a checkpoint of this model must contain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Full tensor name.
    pub name: String,
    /// Shape, rows first.
    pub shape: Vec<usize>,
}

impl ModelSpec {
    /// Every tensor of one block in file order: per linear weight then bias, then the norms.
    #[must_use]
    pub fn block_tensors(&self, index: usize) -> Vec<TensorSpec> {
        let mut tensors = Vec::new();
        let block = self.block(index);
        for linear in &block.linears {
            let module = &linear.module;
            tensors.push(TensorSpec {
                name: format!("{module}.weight"),
                shape: vec![linear.outputs, linear.inputs],
            });
            if linear.bias {
                tensors.push(TensorSpec { name: format!("{module}.bias"), shape: vec![linear.outputs] });
            }
        }
        for (norm, width) in block.norms {
            tensors.push(TensorSpec { name: self.norm(index, norm), shape: vec![width] });
        }
        tensors
    }
    /// Every tensor of a float checkpoint of this model.
    #[must_use]
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut tensors: Vec<_> = (0..self.layers).flat_map(|i| self.block_tensors(i)).collect();
        tensors.extend(self.outer_tensors());
        tensors
    }
    /// The tensors outside the blocks.
    #[must_use]
    pub fn outer_tensors(&self) -> Vec<TensorSpec> {
        let shape = |what: Outer| match what {
            Outer::FinalNorm => vec![self.hidden],
            Outer::Embedding | Outer::Head => vec![self.vocab, self.hidden],
        };
        self.outer().iter().map(|&o| TensorSpec { name: o.tensor().into(), shape: shape(o) }).collect()
    }
}
