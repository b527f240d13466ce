//! The head of a model whose blocks are all in memory.

use crate::ModelError;
use crate::error::expect_shape;
use ndarray::{Array2, ArrayView2, Axis, Slice};
use quant_graph::{BlockSource, ModelSpec};
use quant_kernels::{Compute, PackedWeight, Par, PreparedWeight};

/// Rows of the head, prepared some at a time, so that the table never exists as a whole in f32.
#[derive(Debug)]
pub(super) struct Head {
    pieces: Vec<Piece>,
}

#[derive(Debug)]
enum Piece {
    /// Numbers of bf16.
    Narrow(PackedWeight),
    Wide(PreparedWeight<f32>),
}

/// Rows of a head with so many features that are read at a time by [`ResidentModel::load`](super::ResidentModel::load): some 64 MB of
/// f32, and whole panels of every product.
#[must_use]
pub fn head_rows(hidden: usize) -> usize {
    const BYTES: usize = 64 << 20;
    const PANELS: usize = 256;
    (BYTES / (size_of::<f32>() * hidden.max(1))).max(1).next_multiple_of(PANELS)
}

impl Head {
    /// Reads the head of a model.
    ///
    /// # Errors
    /// [`ModelError::Source`], [`ModelError::Shape`].
    pub(super) fn read(
        source: &mut impl BlockSource,
        compute: Compute,
        par: Par,
    ) -> Result<Self, ModelError> {
        let (vocab, hidden) = (source.spec().vocab, source.spec().hidden);
        let step = head_rows(hidden);
        let mut pieces = Vec::with_capacity(vocab.div_ceil(step));
        for first in (0..vocab).step_by(step) {
            let rows = first..(first + step).min(vocab);
            let table = source.head(rows.clone())?;
            expect_shape(ModelSpec::HEAD, &[rows.len(), hidden], table.shape())?;
            pieces.push(Piece::new(table.view(), compute, par));
        }
        Ok(Self { pieces })
    }

    /// Bytes that it holds.
    pub(super) fn bytes(&self) -> usize {
        let of = |piece: &Piece| match piece {
            Piece::Narrow(weight) => weight.bytes(),
            Piece::Wide(weight) => weight.bytes(),
        };
        self.pieces.iter().map(of).sum()
    }

    /// Logits `[rows, vocab]` of hidden states `[rows, hidden]` behind the final norm.
    pub(super) fn logits(&self, x: ArrayView2<'_, f32>, par: Par) -> Array2<f32> {
        let widths = self.pieces.iter().map(Piece::rows);
        let mut logits = Array2::zeros((x.nrows(), widths.sum()));
        let mut first = 0;
        for piece in &self.pieces {
            let out = logits.slice_axis_mut(Axis(1), Slice::from(first..first + piece.rows()));
            match piece {
                Piece::Narrow(weight) => weight.forward_into(x, None, out, par),
                Piece::Wide(weight) => weight.forward_into(x, None, out, par),
            }
            first += piece.rows();
        }
        logits
    }
}

impl Piece {
    fn new(table: ArrayView2<'_, f32>, compute: Compute, par: Par) -> Self {
        let fill = |row: usize, out: &mut [f32]| {
            out.iter_mut().zip(table.row(row)).for_each(|(out, &x)| *out = x);
        };
        let narrow =
            (compute == Compute::F32).then(|| PackedWeight::of_bf16(table.dim(), par, fill)).flatten();
        narrow.map_or_else(|| Self::Wide(PreparedWeight::new(table, compute, par)), Self::Narrow)
    }

    fn rows(&self) -> usize {
        match self {
            Self::Narrow(weight) => weight.out_features(),
            Self::Wide(weight) => weight.out_features(),
        }
    }
}
