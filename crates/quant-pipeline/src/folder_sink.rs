//! From finished blocks to tensors of a folder.

use crate::PipelineError;
use crate::plan::Plan;
use crate::run::BlockSink;
use ndarray::ArrayView2;
use quant_checkpoint::formats::{BlockSideData, TensorDecl, stored_floats};
use quant_checkpoint::{Checkpoint, OutputFolder};
use quant_graph::{BlockParams, Outer};

/// Encodes finished blocks and streams them to a folder; parts outside them are copied from the input where they lie there
/// as they are.
pub(crate) struct FolderSink<'a> {
    plan: &'a Plan,
    output: &'a mut OutputFolder,
    input: &'a Checkpoint,
    declared: &'a [TensorDecl],
    side: Vec<BlockSideData>,
    copied: Vec<&'static str>,
}

impl<'a> FolderSink<'a> {
    /// `declared` are the tensors of the folder.
    pub(crate) fn new(
        plan: &'a Plan,
        output: &'a mut OutputFolder,
        input: &'a Checkpoint,
        declared: &'a [TensorDecl],
    ) -> Self {
        Self { plan, output, input, declared, side: Vec::new(), copied: Vec::new() }
    }
    /// What side files need of every block, and the names of the tensors that were copied.
    pub(crate) fn into_parts(self) -> (Vec<BlockSideData>, Vec<&'static str>) {
        (self.side, self.copied)
    }
}

impl BlockSink for FolderSink<'_> {
    fn block(&mut self, index: usize, block: BlockParams) -> Result<(), PipelineError> {
        let format = self.plan.recipe.format();
        for tensor in format.encode_block(&self.plan.spec, &self.plan.scheme, index, &block)? {
            self.output.tensor_owned(&tensor.name, tensor.dtype, &tensor.shape, tensor.bytes)?;
        }
        self.side.push(BlockSideData::of(&block));
        Ok(())
    }
    fn copy_stored(&mut self, what: Outer) -> Result<bool, PipelineError> {
        self.output.copy_tensor(self.input, what.tensor(), what.tensor())?;
        self.copied.push(what.tensor());
        Ok(true)
    }
    fn outer_rows(
        &mut self,
        what: Outer,
        first: usize,
        rows: ArrayView2<'_, f32>,
    ) -> Result<(), PipelineError> {
        let Some(decl) = self.declared.iter().find(|decl| decl.name == what.tensor()) else {
            return Ok(());
        };
        if first == 0 {
            self.output.begin_tensor(&decl.name, decl.dtype, &decl.shape)?;
        }
        self.output.write(&stored_floats(&decl.name, rows.iter().copied(), decl.dtype)?)?;
        let all = if what == Outer::FinalNorm { 1 } else { self.plan.spec.vocab };
        if first + rows.nrows() == all {
            self.output.end_tensor()?;
        }
        Ok(())
    }
}
