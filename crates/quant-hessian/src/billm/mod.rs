//! BiLLM: one-bit weights (arXiv 2402.04291, `billm.md`).
//!
//! Within a block of columns every weight belongs to one of three groups: salient columns, which get a binary code and a second
//! one for what it leaves, and the small and the large ones of the others, with a binary code each
//! ([`quant_core::binary`]). How many columns are salient and where small ends and large begins is searched over all rows of a
//! block; then the block is coded at once, and the columns behind it make up for the error as in GPTQ. Inside the block nothing
//! makes up for anything.

mod code;
mod quantiles;
mod search;

use ndarray::{Array2, Array3, ArrayView2};
use quant_core::{BinaryMatrix, Variant};
use quant_kernels::Par;
use serde::{Deserialize, Serialize};

use crate::blockwise::{Blockwise, Lanes, ROWS, workspace_bytes};
use crate::{Factor, HessianError};
use code::Coded;
use search::Search;

/// What makes a column salient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SalientMetric {
    /// `w²/U_jj²`, what the output loses with a weight and cannot make up for.
    #[default]
    Hessian,
    /// `|w|`.
    Magnitude,
}

/// What [`billm`] does to one linear.
#[derive(Clone, Debug, PartialEq)]
pub struct BillmConfig {
    /// What makes a column salient.
    pub metric: SalientMetric,
    /// Columns of a block.
    pub block: usize,
    /// Which matrix the two searches code. The published code codes the matrix of saliences; the paper's equations, and
    /// [`Variant::Exact`], code the weight and only rank columns by their salience. With [`SalientMetric::Magnitude`] both are the
    /// weight.
    pub variant: Variant,
    /// Whether columns behind a block make up for its error; `disable_gptq` of the published code is without.
    pub feedback: bool,
}

impl Default for BillmConfig {
    /// As published with its scripts' settings: blocks of 128, salience from the Hessian.
    fn default() -> Self {
        Self { metric: SalientMetric::Hessian, block: 128, variant: Variant::Exact, feedback: true }
    }
}

/// What the searches of one block found.
#[derive(Clone, Debug, PartialEq)]
pub struct BillmBlock {
    /// Salient columns, most salient first, by their index in the weight.
    pub salient: Vec<usize>,
    /// Mean squared error with 1, 2, … salient columns.
    pub salient_errors: Vec<f64>,
    /// Thresholds between small and large that were tried.
    pub thresholds: Vec<f32>,
    /// Mean squared error with each.
    pub threshold_errors: Vec<f64>,
    /// The threshold that was taken: what is below it is small.
    pub threshold: f32,
}

/// A weight in binary residual codes, and how it came to them.
#[derive(Clone, Debug, PartialEq)]
pub struct BillmResult {
    /// The codes.
    pub matrix: BinaryMatrix,
    /// `Σ (w̃ − q)²/U_kk² / 2` by row, `[out]`.
    pub row_losses: Vec<f64>,
    /// Per block, what was searched.
    pub blocks: Vec<BillmBlock>,
}

impl BillmResult {
    /// `Σ (w̃ − q)²/U_kk² / 2` over the matrix.
    #[must_use]
    pub fn loss(&self) -> f64 {
        self.row_losses.iter().sum()
    }
}

/// Bytes [`billm`] holds besides its arguments and its result, for a weight `(out, in)` and blocks of `block` columns.
#[must_use]
pub fn billm_workspace_bytes(shape: (usize, usize), block: usize) -> usize {
    let columns = block.min(shape.1);
    let rows = shape.0.next_multiple_of(ROWS);
    // The search's matrix and its order, the codes, and the sizes that are sorted with room for as many again.
    workspace_bytes(shape, block)
        + rows * columns * (2 * size_of::<Lanes>() / ROWS + 1 + 2 * size_of::<u32>())
}

/// Operations of the two searches on each weight, as many as a product does in their time (measured).
const SEARCH: f64 = 4500.0;

/// Floating-point operations of [`billm`] on a weight `(out, in)`, as many as a product does in its time.
#[must_use]
pub fn billm_operations((out, n): (usize, usize)) -> f64 {
    out as f64 * n as f64 * (n as f64 + SEARCH)
}

/// Codes a weight `[out, in]` against a prepared factor without act-order (`billm.md` section 2).
///
/// Rows are searched and coded in tiles on up to `par.threads()` threads; errors are summed over the tiles in their order, so
/// the thread count changes nothing.
///
/// ```
/// use quant_hessian::ndarray::Array2;
/// use quant_hessian::{BillmConfig, Compute, FactorSettings, Hessian, Par, billm, prepare};
///
/// let noise = |i: usize, j: usize| ((i * 7919 + j * 104_729) % 1009) as f32 / 504.5 - 1.0;
/// let mut hessian = Hessian::new(96);
/// hessian.add(Array2::from_shape_fn((400, 96), |(t, j)| noise(t, j)).view(), 1, Compute::F32, Par::Seq)?;
/// let factor = prepare(hessian, &FactorSettings::default(), Par::Seq)?;
/// let weight = Array2::from_shape_fn((8, 96), |(i, j)| noise(i + 400, j));
/// let config = BillmConfig { block: 64, ..BillmConfig::default() };
/// let result = billm(weight.view(), &factor, &config, Par::Seq)?;
/// assert_eq!(result.matrix.dequantize().dim(), (8, 96));
/// assert_eq!(result.blocks[1].salient.len(), result.matrix.salient_per_block()[1]);
/// # Ok::<(), quant_hessian::HessianError>(())
/// ```
///
/// # Errors
/// [`HessianError::Shape`] if the weight has not the factor's columns, [`HessianError::Order`] for a factor with act-order,
/// [`HessianError::Setting`] for blocks of 0 columns, [`HessianError::Core`] for NaN or infinity in the weight,
/// [`HessianError::NotFiniteResult`] if an update, its salience or its loss overflows.
pub fn billm(
    weight: ArrayView2<'_, f32>,
    factor: &Factor,
    config: &BillmConfig,
    par: Par,
) -> Result<BillmResult, HessianError> {
    let (out, n) = weight.dim();
    let mut work = Blockwise::new("BiLLM weight", weight, factor, config.block, config.feedback, par)?;
    let mut salient = vec![false; n];
    let mut codes = Array2::zeros((out, n));
    let mut numbers = Array3::zeros((out, n.div_ceil(config.block), 8));
    let mut blocks = Vec::new();
    // Without rows nothing is searched.
    for (index, columns) in work.blocks().enumerate().filter(|_| out > 0) {
        work.open(columns.clone());
        let pivots = work.pivots(columns.clone());
        let search = Search { config, pivots };
        let (found, sized) = search.run(&mut work, out, columns.start)?;
        for &column in &found.salient {
            salient[column] = true;
        }
        let (marks, threshold) = (&salient[columns.clone()], found.threshold);
        let coded: Vec<Coded> = work.each(|tile, minus| {
            let sized = sized[tile.index()].as_ref().unwrap_or(&tile.block);
            let mut coded = Coded::new(sized, &tile.block, marks, threshold);
            coded.losses(pivots, &mut tile.losses);
            tile.close_at_once(columns.clone(), &mut coded.change, minus);
            coded.change = Vec::new();
            coded
        });
        let losses = work.row_losses();
        if let Some(row) = losses.iter().position(|loss| !loss.is_finite()) {
            return Err(HessianError::NotFiniteResult { row, column: columns.start });
        }
        for (tile, coded) in coded.iter().enumerate() {
            coded.store(tile * ROWS, columns.start, index, &mut codes, &mut numbers);
        }
        blocks.push(found);
    }
    let matrix = BinaryMatrix::new(config.block, salient, codes, numbers)?;
    Ok(BillmResult { matrix, row_losses: work.row_losses(), blocks })
}
