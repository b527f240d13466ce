//! What the quantiser of the cache does to keys far from where they were calibrated.

use crate::PipelineError;
use crate::layout::Layout;
use ndarray::{ArrayView2, Axis, Slice};
use quant_graph::ModelSpec;
use quant_kernels::Par;
use quant_model::{Block, RopeTables};
use serde::Serialize;

/// Where the first token of every sequence of the sample is put.
pub const KEY_POSITIONS: [usize; 5] = [0, 8192, 16_384, 24_576, 32_768];

/// What is lost of the keys of a block at one position.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KeyError {
    /// Position of the first token of each sequence.
    pub position: usize,
    /// `‖k̂ − k‖ / ‖k‖` of what attention reads, over all tokens and heads; none where it is not finite.
    pub relative_error: Option<f64>,
}

/// Measures the keys of blocks at all positions.
pub(super) struct KeyProbe {
    rope: RopeTables,
    longest: usize,
    sums: [Sums; KEY_POSITIONS.len()],
}

#[derive(Clone, Copy, Default)]
struct Sums {
    noise: f64,
    signal: f64,
}

impl KeyProbe {
    /// For sequences of these lengths. The rotary tables are those of a sequence that reaches from the start to the position, as far
    /// as the model's frequencies depend on its length.
    pub(super) fn new(spec: &ModelSpec, layout: &Layout) -> Self {
        let longest = layout.longest();
        let rope = RopeTables::new(spec, Self::lengths(longest));
        Self { rope, longest, sums: [Sums::default(); KEY_POSITIONS.len()] }
    }

    fn lengths(longest: usize) -> impl Iterator<Item = usize> {
        KEY_POSITIONS.into_iter().map(move |position| position + longest)
    }

    /// Bytes of its tables.
    pub(super) fn bytes(spec: &ModelSpec, longest: usize) -> u64 {
        RopeTables::bytes(spec, Self::lengths(longest)) as u64
    }

    /// Takes in the keys that `block` makes of whole sequences `x` `[tokens, hidden]`, its input behind the norm, that begin at
    /// `starts`, counted from the first of them.
    pub(super) fn add(
        &mut self,
        block: &Block<f32>,
        x: ArrayView2<'_, f32>,
        starts: &[usize],
        par: Par,
    ) -> Result<(), PipelineError> {
        let begin = starts.first().copied().unwrap_or(0);
        for ends in starts.windows(2) {
            let rows = x.slice_axis(Axis(0), Slice::from(ends[0] - begin..ends[1] - begin));
            for (&position, sums) in KEY_POSITIONS.iter().zip(&mut self.sums) {
                let rope = self.rope.table(position + self.longest);
                let [exact, held] = block.keys_at(rows, rope, position, par)?;
                for (&exact, &held) in exact.iter().zip(&held) {
                    let (exact, held) = (f64::from(exact), f64::from(held));
                    sums.noise += (held - exact) * (held - exact);
                    sums.signal += exact * exact;
                }
            }
        }
        Ok(())
    }

    /// What was found since it was asked last.
    pub(super) fn finish(&mut self) -> Vec<KeyError> {
        let sums = std::mem::take(&mut self.sums);
        let of = |(&position, sums): (&usize, &Sums)| {
            let error = (sums.noise / sums.signal).sqrt();
            KeyError { position, relative_error: Some(error).filter(|e| e.is_finite()) }
        };
        KEY_POSITIONS.iter().zip(&sums).map(of).collect()
    }
}
