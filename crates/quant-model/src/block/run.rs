//! Parts of a block for methods that cannot see it.

use super::{Block, Walk};
use crate::linear::FloatLinear;
use crate::{ModelError, RopeTables, StageScratch};
use ndarray::{Array2, ArrayView2};
use quant_graph::{BlockForward, ForwardError, LinearId, Part, Site};
use quant_kernels::Par;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A block with rotary tables for the sequences that will be run: what [`BlockForward`] needs.
#[derive(Debug)]
pub struct BlockRunner<'a> {
    /// The block, its linears set.
    pub block: &'a Block<f32>,
    /// Tables for the lengths of the sequences.
    pub rope: &'a RopeTables,
}

impl BlockForward for BlockRunner<'_> {
    fn part(
        &self,
        part: Part,
        x: ArrayView2<'_, f32>,
        starts: &[usize],
        with: &BTreeMap<LinearId, ArrayView2<'_, f32>>,
        par: Par,
    ) -> Result<Array2<f32>, ForwardError> {
        let what = || format!("{part:?} of block {}", self.block.index);
        self.run(part, x, starts, with, par).map_err(|cause| ForwardError::new(what(), cause))
    }
}

impl BlockRunner<'_> {
    fn run(
        &self,
        part: Part,
        x: ArrayView2<'_, f32>,
        starts: &[usize],
        with: &BTreeMap<LinearId, ArrayView2<'_, f32>>,
        par: Par,
    ) -> Result<Array2<f32>, ModelError> {
        let table = |length| self.rope.table(length);
        let walk = Walk { starts, rope: &table };
        let block = self.block.with_weights(with, par)?;
        let (first, width) = match part {
            Part::Attention => (Site::AttentionInput, block.shape.query_width()),
            Part::Mlp => (Site::MlpInput, block.intermediate),
        };
        let (mut wide, mut out) =
            (Array2::zeros((x.nrows(), width)), Array2::zeros((x.nrows(), block.hidden)));
        let scratch = &mut StageScratch::default();
        block.advance(first, x, &walk, None, wide.view_mut(), scratch, par)?;
        if let super::Output::Next(second) = super::Output::of(first) {
            block.advance(second, wide.view(), &walk, None, out.view_mut(), scratch, par)?;
        }
        Ok(out)
    }
}

impl Block<f32> {
    /// The same block with other weights in some of its linears, whose inputs stay float; the rest is shared.
    fn with_weights(
        &self,
        with: &BTreeMap<LinearId, ArrayView2<'_, f32>>,
        par: Par,
    ) -> Result<Self, ModelError> {
        let mut block = self.clone();
        for (id, weight) in with {
            let Some(linear) = self.linear(*id) else {
                let module = self.spec.linear(*id).map_or_else(|| id.to_string(), |l| l.module.clone());
                return Err(ModelError::MissingLinear { block: self.index, module });
            };
            let shape = [linear.out_features(), linear.in_features()];
            self.check(&format!("weight of {id}"), &shape, weight.shape())?;
            let bias = linear.bias().map(|b| b.to_owned());
            block.linears.insert(*id, Arc::new(FloatLinear::of_view(*weight, bias, self.compute(), par)));
        }
        Ok(block)
    }
}
