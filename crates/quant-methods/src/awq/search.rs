//! The search for scales on the output error.

use super::energy::{Energy, dot};
use super::round::scaled_rows;
use super::{candidate, channels, refused};
use crate::{HeadTie, MethodError};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis};
use quant_core::matrix::check_finite;
use quant_core::{Grid, Groups};
use quant_kernels::{Par, Stopped, Work, tasks, vectorized};
use std::borrow::Cow;
use std::fmt;

/// Runs a unit with substituted weights, see [`Loss::Forward`].
pub type Forward<'a> = dyn Fn(&[ArrayView2<'_, f32>], Par) -> Result<Array2<f32>, MethodError> + Sync + 'a;

/// What a candidate costs: how the output error of a unit is computed.
///
/// It is always the mean of the squared difference over all tokens and outputs.
#[derive(Clone, Copy)]
pub enum Loss<'a> {
    /// The unit is its linears (o alone, down alone), with these inputs `[tokens, in]`.
    ///
    /// The product with the tokens or their Gram matrix, whichever is cheaper for this number of candidates; beside the
    /// tokens it holds a packed copy of them, or the Gram matrix and a packed copy of its triangle.
    Tokens(ArrayView2<'a, f32>),
    /// The same from the Gram matrix of the inputs.
    Gram {
        /// `XᵀX`, `[in, in]`, not divided by the number of tokens; only the lower triangle is read.
        gram: ArrayView2<'a, f32>,
        /// Tokens it was summed over, for the mean.
        tokens: usize,
    },
    /// The unit is not linear (attention, MLP): runs that part of the block with these weights in place of its own, in the
    /// order of the unit's linears, and gives its output `[tokens, hidden]`.
    ///
    /// It is called once with the original weights and once for every candidate, always from the calling thread.
    Forward(&'a Forward<'a>),
}

impl fmt::Debug for Loss<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tokens(x) => write!(f, "Tokens {:?}", x.dim()),
            Self::Gram { gram, tokens } => write!(f, "Gram {:?} of {tokens} tokens", gram.dim()),
            Self::Forward(_) => f.write_str("Forward"),
        }
    }
}

/// Settings of the search for scales.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Search {
    /// Ratios tried: `k / n_grid` for `k = 0..n_grid`. 20 in the published code.
    pub n_grid: usize,
    /// How a group is rounded while it is measured: the grid the weights are rounded to afterwards.
    pub grid: Grid,
    /// Columns per group; none is one group per output channel.
    pub group: Option<usize>,
    /// Query heads whose scales are equal, for the unit v to o of grouped-query attention.
    pub tie: Option<HeadTie>,
}

/// A linear of a unit and how it will be rounded.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// `[out, in]`.
    pub weight: ArrayView2<'a, f32>,
    /// How a group is rounded.
    pub grid: Grid,
    /// Columns per group; none is one group per output channel.
    pub group: Option<usize>,
}

/// What the search found.
#[derive(Clone, Debug, PartialEq)]
pub struct FoundScales {
    /// The scales `c` of the best ratio, `[in]`; with a tie, equal over the query heads of a value head.
    pub scales: Array1<f32>,
    /// The best ratio.
    pub ratio: f32,
    /// The mean squared error of every ratio in order, `[n_grid]`; the first is that of rounding without scales.
    pub losses: Vec<f64>,
}

/// Weight rows measured together; a fixed number, so that sums never depend on the thread count. A multiple of the 14 rows
/// of an AVX-512 tile.
const TILE: usize = 56;

/// The scales of one unit: all linears that read the same input.
///
/// `mean_abs` `[in]` is the mean `|x_j|` of every input channel, `weights` are the unit's linears, each `[out, in]`. For every
/// ratio, `Ŵ = Q(W diag(c)) diag(1/c)` with `c` of [`candidate`]; the least `loss` wins, and of equal ones the smallest
/// ratio. So the result is never worse, by this loss, than rounding without scales.
///
/// # Errors
/// No weights, tokens or ratios; channel counts that differ; a mean, weight, input or loss that is not finite, by its
/// place or ratio; whatever a [`Loss::Forward`] returns; [`MethodError::Stopped`], asked for between candidates.
pub fn search_scales<'w>(
    search: &Search,
    mean_abs: ArrayView1<'_, f32>,
    weights: &[ArrayView2<'_, f32>],
    loss: Loss<'_>,
    work: impl Into<Work<'w>>,
) -> Result<FoundScales, MethodError> {
    let Search { n_grid, grid, group, tie } = *search;
    let targets: Vec<Target<'_>> = weights.iter().map(|&weight| Target { weight, grid, group }).collect();
    search_targets((n_grid, tie), mean_abs, &targets, loss, work)
}

/// [`search_scales`] where the linears of a unit are rounded in different ways; `(n_grid, tie)` as of [`Search`].
///
/// # Errors
/// As [`search_scales`].
pub fn search_targets<'w>(
    (n_grid, tie): (usize, Option<HeadTie>),
    mean_abs: ArrayView1<'_, f32>,
    weights: &[Target<'_>],
    loss: Loss<'_>,
    work: impl Into<Work<'w>>,
) -> Result<FoundScales, MethodError> {
    let work: Work<'_> = work.into();
    let par = work.par;
    let n = mean_abs.len();
    if n_grid == 0 {
        return Err(refused("ratios of AWQ's search for scales", "at least 1", "0"));
    }
    if weights.iter().all(|w| w.weight.is_empty()) {
        return Err(refused("weights of AWQ's search for scales", "at least one with elements", "none"));
    }
    if let Some(weight) = weights.iter().find(|w| w.weight.ncols() != n) {
        return Err(channels("a weight", n, weight.weight.ncols()));
    }
    for weight in weights {
        check_finite(weight.weight)?;
    }
    let ratios: Vec<f32> = (0..n_grid).map(|k| (k as f64 / n_grid as f64) as f32).collect();
    let candidates: Vec<Array1<f32>> =
        ratios.iter().map(|&ratio| candidate(mean_abs, ratio, tie)).collect::<Result<_, _>>()?;
    let layouts: Vec<_> = weights.iter().map(|w| w.weight.as_standard_layout()).collect();
    let weights: Vec<Target<'_>> =
        weights.iter().zip(&layouts).map(|(t, weight)| Target { weight: weight.view(), ..*t }).collect();

    let losses = match loss {
        Loss::Tokens(x) => {
            if x.ncols() != n {
                return Err(channels("the inputs", n, x.ncols()));
            }
            check_finite(x)?;
            let rows: usize = weights.iter().map(|w| w.weight.nrows()).sum();
            let energy = Energy::new(x, n_grid * rows, par);
            linear_losses(&candidates, &weights, &energy, x.nrows(), work)?
        }
        Loss::Gram { gram, tokens } => {
            if gram.dim() != (n, n) {
                let found = if gram.nrows() == n { gram.ncols() } else { gram.nrows() };
                return Err(channels("the Gram matrix of the inputs", n, found));
            }
            linear_losses(&candidates, &weights, &Energy::of_gram(gram, par), tokens, work)?
        }
        Loss::Forward(forward) => forward_losses(&candidates, &weights, forward, work)?,
    };
    if let Some(k) = losses.iter().position(|loss| !loss.is_finite()) {
        return Err(refused(
            "output error of AWQ's search for scales",
            format!("a finite number at ratio {}", ratios[k]),
            format!("{}; the calibration activations or a scale overflowed", losses[k]),
        ));
    }
    let mut best = 0;
    for (k, loss) in losses.iter().enumerate() {
        if *loss < losses[best] {
            best = k;
        }
    }
    Ok(FoundScales { scales: candidates[best].clone(), ratio: ratios[best], losses })
}

/// Losses of a unit that is its linears: `Σ_i e(ŵ_i − w_i)` over the rows of all weights.
fn linear_losses(
    candidates: &[Array1<f32>],
    weights: &[Target<'_>],
    energy: &Energy,
    tokens: usize,
    work: Work<'_>,
) -> Result<Vec<f64>, MethodError> {
    if tokens == 0 {
        return Err(refused("inputs of AWQ's search for scales", "at least one token", "none"));
    }
    let n = candidates[0].len();
    let tiles = weights
        .iter()
        .flat_map(|t| t.weight.axis_chunks_iter(Axis(0), TILE).map(|weight| Target { weight, ..*t }))
        .collect::<Vec<_>>();
    // All candidates of a tile together: its rows and buffers stay in the cache.
    let sums = tasks::map(tiles, work.par, |Target { weight: rows, grid, group }| {
        let size = Groups::from_size(group).size(n);
        let mut differences = Array2::zeros(rows.dim());
        let (mut scratch, mut energies) = (Vec::new(), vec![0.0; rows.nrows()]);
        let mut measure = |scales: &Array1<f32>| -> f64 {
            let scales = slice(scales);
            vectorized(
                // Without it the loops are compiled for the baseline instruction set.
                #[inline(always)]
                || scaled_rows(&grid, size, rows, &scales, differences.view_mut(), true),
            );
            energy.of_rows(differences.view(), &mut scratch, &mut energies);
            energies.iter().sum()
        };
        candidates.iter().map(|scales| work.go_on().map(|()| measure(scales))).collect()
    });
    let sums: Vec<Vec<f64>> = sums.into_iter().collect::<Result<_, Stopped>>()?;
    let outputs: usize = weights.iter().map(|w| w.weight.nrows()).sum();
    let elements = tokens as f64 * outputs as f64;
    Ok((0..candidates.len()).map(|k| sums.iter().map(|tile| tile[k]).sum::<f64>() / elements).collect())
}

/// Losses of a unit that the caller runs.
fn forward_losses(
    candidates: &[Array1<f32>],
    weights: &[Target<'_>],
    forward: &Forward<'_>,
    work: Work<'_>,
) -> Result<Vec<f64>, MethodError> {
    let par = work.par;
    let originals: Vec<_> = weights.iter().map(|w| w.weight).collect();
    let reference = forward(&originals, par)?;
    if reference.is_empty() {
        return Err(refused("output of a unit in AWQ's search for scales", "at least one element", "none"));
    }
    let mut substitutes: Vec<Array2<f32>> = weights.iter().map(|w| Array2::zeros(w.weight.dim())).collect();
    let mut losses = Vec::with_capacity(candidates.len());
    for scales in candidates {
        work.go_on()?;
        for (weight, substitute) in weights.iter().zip(&mut substitutes) {
            substitute_weight(weight, &slice(scales), substitute.view_mut(), par);
        }
        let views: Vec<_> = substitutes.iter().map(|w| w.view()).collect();
        let output = forward(&views, par)?;
        if output.dim() != reference.dim() {
            return Err(refused(
                "output of a unit in AWQ's search for scales",
                format!("{:?} as with the original weights", reference.dim()),
                format!("{:?}", output.dim()),
            ));
        }
        losses.push(mean_square(&reference, &output, par));
    }
    Ok(losses)
}

/// `out = Q(W diag(c)) diag(1/c)`, `[out, in]`.
fn substitute_weight(target: &Target<'_>, scales: &[f32], mut out: ArrayViewMut2<'_, f32>, par: Par) {
    let Target { weight, grid, group } = *target;
    let size = Groups::from_size(group).size(weight.ncols());
    let tiles = weight.axis_chunks_iter(Axis(0), TILE).zip(out.axis_chunks_iter_mut(Axis(0), TILE));
    tasks::for_each(tiles, par, |(weight, out)| {
        vectorized(
            #[inline(always)]
            || scaled_rows(&grid, size, weight, scales, out, false),
        );
    });
}

/// The mean of `(a − b)²`, summed in f64.
fn mean_square(a: &Array2<f32>, b: &Array2<f32>, par: Par) -> f64 {
    /// Rows summed by one task.
    const ROWS: usize = 256;
    let tiles = a.axis_chunks_iter(Axis(0), ROWS).zip(b.axis_chunks_iter(Axis(0), ROWS));
    let sums = tasks::map_with(
        tiles,
        par,
        || vec![0.0; a.ncols()],
        |difference, (a, b)| {
            vectorized(
                #[inline(always)]
                || {
                    let mut sum = 0.0;
                    for (a, b) in a.rows().into_iter().zip(b.rows()) {
                        // In f32, as the published code subtracts.
                        for ((to, &a), &b) in difference.iter_mut().zip(a).zip(b) {
                            *to = a - b;
                        }
                        sum += dot(difference, difference);
                    }
                    sum
                },
            )
        },
    );
    sums.iter().sum::<f64>() / a.len() as f64
}

/// The elements in order.
fn slice(values: &Array1<f32>) -> Cow<'_, [f32]> {
    values.as_slice().map_or_else(|| Cow::Owned(values.to_vec()), Cow::Borrowed)
}
