//! All rows of a weight, block of columns by block: for methods that look at all rows of a block before they round one.
//!
//! The column loop of GPTQ finishes a tile of rows before it starts the next; here all tiles finish a block before any starts
//! the next. The arithmetic is the same ([`crate::solve`]): with `R Rᵀ = H_d`, `Ũ = R diag(R)⁻¹` and `f` for what finished columns
//! have gained (`Ŵ − W` of GPTQ), columns k of the next block are rounded from `w_k − Σ_j f_j Ũ_jk`, the sum over all columns
//! before k. What that sum has of the finished blocks alone is [`Tile::fed_back`]; the weight as they left it, which is what
//! looking at a block means, is [`Tile::block`]: `W + δ` with `δ Ũ_bb` = that sum, a forward substitution inside the block.

use std::ops::Range;

use ndarray::ArrayView2;
use quant_core::matrix::check_finite;
use quant_kernels::{Par, tasks, vectorized};

use crate::feedback::add_feedback;
use crate::panels::PANEL;
use crate::{Factor, HessianError, lanes};

/// Rows of a tile; a fixed number, so that nothing depends on the threads.
pub(crate) const ROWS: usize = 128;
/// A column of a tile.
pub(crate) type Lanes = [f32; ROWS];

/// Some rows of the weight, stored by columns.
pub(crate) struct Tile {
    /// Index of its first row.
    pub(crate) first_row: usize,
    /// Rows it has; the others are zeros.
    pub(crate) rows: usize,
    /// The original weight of the block, dead columns zeroed.
    pub(crate) origin: Vec<Lanes>,
    /// What the finished blocks add to its columns one by one, before any of its own does.
    pub(crate) fed_back: Vec<Lanes>,
    /// The weight as the finished blocks left it.
    pub(crate) block: Vec<Lanes>,
    /// `f` of finished columns.
    gained: Vec<Lanes>,
    /// What columns before the super-block add to it.
    ahead: Vec<Lanes>,
    /// `Σ e²/2` by row.
    pub(crate) losses: [f64; ROWS],
}

/// A weight on its way through its blocks.
pub(crate) struct Blockwise<'a> {
    weight: ArrayView2<'a, f32>,
    factor: &'a Factor,
    block: usize,
    feedback: bool,
    par: Par,
    tiles: Vec<Tile>,
    /// `−Ũ_jk` inside the block, `[k][j]` with `j < k`.
    minus: Vec<Vec<f32>>,
}

impl<'a> Blockwise<'a> {
    /// Checks that a weight and a factor fit. Without `feedback` no column knows of another.
    ///
    /// # Errors
    /// [`HessianError::Shape`], [`HessianError::Order`] for a factor with act-order, [`HessianError::Setting`] for blocks of 0
    /// columns, [`HessianError::Core`] for a NaN or infinity in the weight.
    pub(crate) fn new(
        what: &'static str,
        weight: ArrayView2<'a, f32>,
        factor: &'a Factor,
        block: usize,
        feedback: bool,
        par: Par,
    ) -> Result<Self, HessianError> {
        let n = factor.n();
        if weight.ncols() != n {
            return Err(HessianError::Shape {
                what,
                expected: format!("[out, {n}]"),
                found: format!("{:?}", weight.dim()),
            });
        }
        if factor.order().is_some() {
            return Err(HessianError::Order { factor: true, asked: false });
        }
        if block == 0 {
            return Err(HessianError::Setting {
                name: "block",
                value: "0".to_owned(),
                expected: "at least 1",
            });
        }
        check_finite(weight)?;
        let out = weight.nrows();
        let tile = |first_row: usize| Tile {
            first_row,
            rows: ROWS.min(out - first_row),
            origin: Vec::new(),
            fed_back: Vec::new(),
            block: Vec::new(),
            gained: if feedback { vec![[0.0; ROWS]; n] } else { Vec::new() },
            ahead: Vec::new(),
            losses: [0.0; ROWS],
        };
        let tiles = (0..out).step_by(ROWS).map(tile).collect();
        Ok(Self { weight, factor, block, feedback, par, tiles, minus: Vec::new() })
    }

    /// The blocks, in order.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (n, block) = (self.factor.n(), self.block);
        (0..n).step_by(block).map(move |start| start..(start + block).min(n))
    }
    /// `R_jj`, the reciprocal of GPTQ's `U_jj`, of some columns.
    pub(crate) fn pivots(&self, columns: Range<usize>) -> &'a [f32] {
        &self.factor.panels.diagonal()[columns]
    }

    /// Lets `work` see every tile, and `−Ũ_jk` of the open block, `[k][j]` with `j < k`. Its answers come in the order of the
    /// rows.
    pub(crate) fn each<R: Send>(&mut self, work: impl Fn(&mut Tile, &[Vec<f32>]) -> R + Sync) -> Vec<R> {
        let Self { tiles, minus, .. } = self;
        tasks::map(tiles, self.par, |tile| work(tile, minus))
    }

    /// Opens a block: every tile has its columns as the blocks before left them.
    pub(crate) fn open(&mut self, columns: Range<usize>) {
        let panels = &self.factor.panels;
        let (start, width) = (columns.start, columns.len());
        self.minus.clear();
        if self.feedback {
            self.minus.extend((0..width).map(|k| (0..k).map(|j| -panels.at(start + j, start + k)).collect()));
        }
        let (weight, dead, minus) = (self.weight, &self.factor.dead, &self.minus);
        // As many whole blocks as receive the feedback of all columns before in one product.
        let stride = (PANEL / self.block).max(1) * self.block;
        let left = start / stride * stride;
        let right = (left + stride).min(self.factor.n());
        let feedback = self.feedback;
        tasks::for_each(&mut self.tiles, self.par, |tile| {
            let Tile { first_row, rows, origin, fed_back, block, gained, ahead, .. } = tile;
            origin.resize(width, [0.0; ROWS]);
            lanes::load(origin, weight, dead, columns.clone(), *first_row, *rows);
            block.clone_from(origin);
            if !feedback {
                return;
            }
            if start == left {
                ahead.clear();
                ahead.resize(right - left, [0.0; ROWS]);
                panels.feed_back(ahead, left..right, -1.0, &gained[..left], 0..left);
            }
            fed_back.clear();
            fed_back.extend_from_slice(&ahead[start - left..][..width]);
            panels.feed_back(fed_back, columns.clone(), -1.0, &gained[left..start], left..start);
            let target = &mut gained[columns.clone()];
            target.copy_from_slice(fed_back);
            substitute(target, minus);
            for (block, delta) in block.iter_mut().zip(target) {
                for r in 0..ROWS {
                    block[r] += delta[r];
                }
            }
        });
    }

    /// `Σ e²/2` of every row, `[out]`.
    pub(crate) fn row_losses(&self) -> Vec<f64> {
        self.tiles.iter().flat_map(|tile| tile.losses[..tile.rows].iter().copied()).collect()
    }
}

impl Tile {
    /// Closes a block none of whose columns made up for another: `change` is `q − w` from the weight as the finished blocks
    /// left it, and later columns are to lose `E U` with `e_j = −change_j / U_jj`. Uses `change` up.
    pub(crate) fn close_at_once(&mut self, columns: Range<usize>, change: &mut [Lanes], minus: &[Vec<f32>]) {
        if self.gained.is_empty() {
            return;
        }
        // With f = −E U over all columns, f Ũ_bb = −fed back + change; the first part is there since the block was opened.
        substitute(change, minus);
        for (gained, change) in self.gained[columns].iter_mut().zip(change) {
            for r in 0..ROWS {
                gained[r] += change[r];
            }
        }
    }
    /// Its place among the tiles.
    pub(crate) fn index(&self) -> usize {
        self.first_row / ROWS
    }
    /// `f` of a block's columns, for a method that rounds them one after the other.
    pub(crate) fn gained(&mut self, columns: Range<usize>) -> &mut [Lanes] {
        &mut self.gained[columns]
    }
}

/// Solves `x Ũ_bb = target` in place, column by column.
fn substitute(target: &mut [Lanes], minus: &[Vec<f32>]) {
    vectorized(
        #[inline(always)]
        || {
            for (k, minus) in minus.iter().enumerate() {
                let (solved, rest) = target.split_at_mut(k);
                if let Some(column) = rest.first_mut() {
                    add_feedback(column, solved, minus);
                }
            }
        },
    );
}

/// Bytes that the tiles of a weight `(out, in)` hold, for blocks of `block` columns.
pub(crate) fn workspace_bytes((out, n): (usize, usize), block: usize) -> usize {
    let rows = out.next_multiple_of(ROWS);
    let stride = ((PANEL / block.max(1)).max(1) * block).min(n);
    rows * size_of::<f32>() * (n + stride + 3 * block.min(n))
}
