//! Parts of a block for methods that cannot see it.

use super::{Block, Walk};
use crate::linear::FloatLinear;
use crate::{ModelError, RopeTables, StageScratch};
use ndarray::{Array2, ArrayView2};
use quant_graph::{BlockForward, BoxError, ForwardError, LinearId, Part, Site};
use quant_kernels::{Par, Work, views};
use std::collections::BTreeMap;
use std::ops::Range;
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
        work: Work<'_>,
    ) -> Result<Array2<f32>, ForwardError> {
        let what = || format!("{part:?} of block {}", self.block.index);
        self.run(part, x, starts, with, work).map_err(|cause| ForwardError::new(what(), cause))
    }
}

/// Rows that are run together, before it is asked whether to go on: whole sequences, at least so many rows.
const ROWS: usize = 2048;

/// Sequences that are run together, by their places in `starts`.
fn pieces(starts: &[usize]) -> Vec<Range<usize>> {
    let mut pieces: Vec<Range<usize>> = Vec::new();
    for sequence in 0..starts.len().saturating_sub(1) {
        match pieces.last_mut() {
            Some(piece) if starts[sequence] - starts[piece.start] < ROWS => piece.end = sequence + 1,
            _ => pieces.push(sequence..sequence + 1),
        }
    }
    pieces
}

impl BlockRunner<'_> {
    fn run(
        &self,
        part: Part,
        x: ArrayView2<'_, f32>,
        starts: &[usize],
        with: &BTreeMap<LinearId, ArrayView2<'_, f32>>,
        work: Work<'_>,
    ) -> Result<Array2<f32>, BoxError> {
        let (table, par) = (|length| self.rope.table(length), work.par);
        let block = self.block.with_weights(with, par)?;
        let (first, width) = match part {
            Part::Attention => (Site::AttentionInput, block.shape.query_width()),
            Part::Mlp => (Site::MlpInput, block.intermediate),
        };
        let by_rows: Vec<usize>;
        let starts = match part {
            Part::Attention => starts,
            // No token sees another.
            Part::Mlp => {
                by_rows = (0..x.nrows()).step_by(ROWS).chain([x.nrows()]).collect();
                &by_rows
            }
        };
        let mut out = Array2::zeros((x.nrows(), block.hidden));
        let scratch = &mut StageScratch::default();
        for piece in pieces(starts) {
            work.go_on()?;
            let walk = Walk { starts: &starts[piece.start..=piece.end], rope: &table };
            let rows = starts[piece.start]..starts[piece.end];
            let mut wide = Array2::zeros((rows.len(), width));
            block.advance(first, views::rows(x, rows.clone()), &walk, None, wide.view_mut(), scratch, par)?;
            if let super::Output::Next(second) = super::Output::of(first) {
                let out = views::rows_mut(&mut out, rows);
                block.advance(second, wide.view(), &walk, None, out, scratch, par)?;
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_spec;
    use quant_kernels::{Compute, Stopped};
    use quant_testkit::{Numbers, random_block};
    use std::error::Error as _;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn pieces_are_whole_sequences() {
        assert_eq!(pieces(&[0, 1000, 2000, 2100, 5000, 5001]), [0..3, 3..4, 4..5]);
        assert!(pieces(&[]).is_empty() && pieces(&[0]).is_empty());
    }

    /// Cut into pieces a part has the bits of its sequences alone, and it asks before every piece.
    #[test]
    fn pieces_change_no_bit() {
        let spec = model_spec(&serde_json::json!({
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 32,
        }))
        .unwrap();
        let mut numbers = Numbers::new(3);
        let params = random_block(&spec, &mut numbers);
        let block = Block::new(&spec, 0, params, Compute::F32, Par::Seq).unwrap();
        let starts = [0, 1500, 2600, 2603, 4800];
        let rope = RopeTables::new(&spec, starts.windows(2).map(|ends| ends[1] - ends[0]));
        let runner = BlockRunner { block: &block, rope: &rope };
        let x = numbers.matrix(4800, spec.hidden, 1.0);
        let none = BTreeMap::new();
        for (part, asks) in [(Part::Attention, 2), (Part::Mlp, 3)] {
            let asked = AtomicUsize::new(0);
            let count = || asked.fetch_add(1, Ordering::Relaxed) == usize::MAX;
            let whole =
                runner.part(part, x.view(), &starts, &none, Work::until(Par::new(2), &count)).unwrap();
            assert_eq!(asked.into_inner(), asks, "{part:?}");
            for ends in starts.windows(2) {
                let rows = views::rows(x.view(), ends[0]..ends[1]);
                let alone = runner.part(part, rows, &[0, rows.nrows()], &none, Par::Seq.into()).unwrap();
                assert_eq!(alone, views::rows(whole.view(), ends[0]..ends[1]), "{part:?}");
            }
            let error =
                runner.part(part, x.view(), &starts, &none, Work::until(Par::Seq, &|| true)).unwrap_err();
            assert!(error.source().is_some_and(|cause| cause.is::<Stopped>()), "{error}");
        }
    }
}
