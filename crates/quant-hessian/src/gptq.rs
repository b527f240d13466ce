//! The public solver.

use ndarray::{Array2, ArrayView2};
use quant_core::{ActOrder, ClipSearch, Grid, Groups, QuantizedMatrix, matrix::check_finite};
use quant_kernels::{Element, Par, tasks};

use crate::descent::{Descent, Lanes};
use crate::panels::Panels;
use crate::solve::{Aim, GroupPlan, Problem, SUPER, TileOut};
use crate::{Factor, GptqResult, HessianError, lanes};

/// Columns of a block in the published code.
const BLOCK: usize = 128;
/// Rows of tiles: the highest, and others for few rows.
pub(crate) const WIDEST_TILE: usize = 256;
const MIDDLE_TILE: usize = WIDEST_TILE / 2;
const NARROWEST_TILE: usize = WIDEST_TILE / 4;

/// What [`gptq`] does to one linear.
#[derive(Clone, Debug, PartialEq)]
pub struct GptqConfig {
    /// Convention, bits, variant and scale type.
    pub grid: Grid,
    /// Columns that share parameters; none is one set per output channel. The last group may be shorter.
    pub group: Option<usize>,
    /// Clip search of every group, none for the plain range.
    pub clip: Option<ClipSearch>,
    /// Column order; must agree with the factor.
    pub act_order: ActOrder,
    /// Find the parameters of all groups before the column loop, also without act-order. [`ActOrder::Static`] implies it,
    /// [`ActOrder::Dynamic`] excludes it.
    pub static_groups: bool,
    /// Columns whose updates reach the rest of the matrix together. Only dynamic groups that do not start at a block start
    /// see a difference: their parameters come from the weight as the finished blocks left it.
    pub block: usize,
    /// Sweeps of block coordinate descent over the rounded weight, which look at every level, scale and zero level again given
    /// all the others. 0 is the published method; the first few gain most of what there is. The factor must have
    /// [kept its matrix](crate::FactorSettings::keep_matrix). Not with [`ActOrder::Dynamic`], and not of [`gptaq`](crate::gptaq), whose
    /// target moves with the columns.
    pub sweeps: usize,
}

impl GptqConfig {
    /// One set of parameters per output channel, no clip search, no act-order, blocks of 128.
    #[must_use]
    pub fn new(grid: Grid) -> Self {
        Self {
            grid,
            group: None,
            clip: None,
            act_order: ActOrder::None,
            static_groups: false,
            block: BLOCK,
            sweeps: 0,
        }
    }

    /// What comes after the column loop, if anything does.
    pub(crate) fn descent<'a>(&self, factor: &'a Factor) -> Result<Option<Descent<'a>>, HessianError> {
        let refused = |expected| {
            Err(HessianError::Setting { name: "sweeps", value: self.sweeps.to_string(), expected })
        };
        match &factor.matrix {
            _ if self.sweeps == 0 => Ok(None),
            _ if self.act_order == ActOrder::Dynamic && self.group.is_some() => {
                refused("0 with act_order dynamic: groups must be consecutive columns")
            }
            None => refused("0, or a factor that was prepared with keep_matrix"),
            Some(h) => Ok(Some(Descent::new(h, factor.n(), self.grid, self.group, self.sweeps))),
        }
    }

    fn plan(&self) -> Result<GroupPlan, HessianError> {
        if self.block == 0 {
            return Err(HessianError::Setting {
                name: "block",
                value: "0".to_owned(),
                expected: "at least 1",
            });
        }
        if self.act_order == ActOrder::Dynamic && self.static_groups {
            return Err(HessianError::Setting {
                name: "static_groups",
                value: "true".to_owned(),
                expected: "false with act_order dynamic; act_order static permutes columns and keeps their groups",
            });
        }
        match self.group {
            Some(0) => {
                Err(HessianError::Setting { name: "group", value: "0".to_owned(), expected: "at least 1" })
            }
            None => Ok(GroupPlan::Channel),
            Some(size) if self.static_groups || self.act_order == ActOrder::Static => {
                Ok(GroupPlan::Static(size))
            }
            Some(size) => Ok(GroupPlan::Dynamic(size)),
        }
    }
}

/// Bytes [`gptq`] holds besides its arguments and its result, for `n` input channels and blocks of 128.
#[must_use]
pub fn workspace_bytes(n: usize, par: Par) -> usize {
    par.threads() * WIDEST_TILE * (n + 2 * SUPER + SUPER / 4) * size_of::<f32>()
}

/// Quantises a weight `[out, in]` against a prepared factor (GPTQ, `gptq.md` section 2 step 7).
///
/// Rows are solved in tiles on up to `par.threads()` threads; neither the thread count nor the other rows of the matrix
/// change a row's result. Cost: `out · in²` floating-point operations.
///
/// # Errors
/// [`HessianError::Shape`] if the weight has not the factor's columns, [`HessianError::Order`] if the factor was prepared
/// for another column order, [`HessianError::Setting`] for a zero block or group, contradicting groups, or sweeps that cannot be made, [`HessianError::Core`] for NaN or
/// infinity in the weight or a scale beyond its type, [`HessianError::NotFiniteResult`] if an update or its loss overflows.
pub fn gptq(
    weight: ArrayView2<'_, f32>,
    factor: &Factor,
    config: &GptqConfig,
    par: Par,
) -> Result<GptqResult, HessianError> {
    check_factor(weight, factor, config)?;
    let descent = config.descent(factor)?;
    let result =
        solve(weight, &factor.panels, Aim::Weight, factor.order.as_deref(), &factor.dead, config, par)?;
    let Some(descent) = descent else { return Ok(result) };
    let target = |first: usize, rows: usize, lanes: &mut [Lanes]| {
        lanes::load(lanes, weight, &factor.dead, 0..factor.n(), first, rows);
    };
    descent.run(&target, result, par)
}

/// Whether a weight and a configuration fit a factor.
pub(crate) fn check_factor(
    weight: ArrayView2<'_, f32>,
    factor: &Factor,
    config: &GptqConfig,
) -> Result<(), HessianError> {
    if weight.ncols() != factor.n() {
        return Err(HessianError::Shape {
            what: "GPTQ weight",
            expected: format!("[out, {}]", factor.n()),
            found: format!("{:?}", weight.dim()),
        });
    }
    let (permuted, asked) = (factor.order.is_some(), config.act_order.permutes());
    if permuted != asked {
        return Err(HessianError::Order { factor: permuted, asked });
    }
    Ok(())
}

/// [`gptq`], or by its aim [`gptaq`](crate::gptaq) or [`qronos`](crate::qronos), in the arithmetic of `T`; f64 serves the property
/// tests.
pub(crate) fn solve<T: Element>(
    weight: ArrayView2<'_, f32>,
    panels: &Panels<T>,
    aim: Aim<'_, T>,
    order: Option<&[u32]>,
    dead: &[bool],
    config: &GptqConfig,
    par: Par,
) -> Result<GptqResult, HessianError> {
    let plan = config.plan()?;
    check_finite(weight)?;
    let (out, n) = weight.dim();
    let groups = plan.groups(n);
    let problem = Problem {
        weight,
        panels,
        aim,
        order,
        dead,
        grid: config.grid,
        clip: config.clip,
        plan,
        block: config.block,
    };
    let mut levels = vec![0_u8; out * n];
    let (mut scales, mut zeros) = (vec![0.0_f32; out * groups], vec![0.0_f32; out * groups]);
    let mut row_losses = vec![0.0_f64; out];
    let outputs = (&mut *levels, &mut *scales, &mut *zeros, &mut *row_losses);
    match tile_rows(out, par) {
        WIDEST_TILE => run_tiles::<T, WIDEST_TILE>(&problem, outputs, par)?,
        MIDDLE_TILE => run_tiles::<T, MIDDLE_TILE>(&problem, outputs, par)?,
        _ => run_tiles::<T, NARROWEST_TILE>(&problem, outputs, par)?,
    }
    let (scales, zeros) = (shaped(scales, out, groups), shaped(zeros, out, groups));
    let groups = match (plan, order) {
        (GroupPlan::Channel, _) => Groups::Channel,
        (GroupPlan::Dynamic(size), Some(order)) => {
            let mut of_column = vec![0; n];
            for (position, &column) in order.iter().enumerate() {
                of_column[column as usize] = (position / size) as u32;
            }
            Groups::Index { size, of_column }
        }
        (GroupPlan::Static(size) | GroupPlan::Dynamic(size), _) => Groups::Size(size),
    };
    let matrix = QuantizedMatrix::new(config.grid.bits, shaped(levels, out, n), scales, zeros, groups)?;
    Ok(GptqResult { matrix, row_losses })
}

/// The height of tiles with which all rows are done first: a higher tile copies the factor less often, a lower one leaves work for
/// every thread. No row notices.
fn tile_rows(out: usize, par: Par) -> usize {
    /// What copying the factor takes, in rows that are solved with it.
    const COPY: usize = 64;
    let takes = |tile: usize| out.div_ceil(tile).div_ceil(par.threads()) * (tile + COPY);
    let tiles = [WIDEST_TILE, MIDDLE_TILE, NARROWEST_TILE];
    tiles.into_iter().min_by_key(|&tile| takes(tile)).unwrap_or(WIDEST_TILE)
}

/// Solves all tiles of `L` rows; the slices are levels, scales, zeros and losses.
pub(crate) fn run_tiles<T: Element, const L: usize>(
    problem: &Problem<'_, T>,
    (levels, scales, zeros, losses): (&mut [u8], &mut [f32], &mut [f32], &mut [f64]),
    par: Par,
) -> Result<(), HessianError> {
    let n = problem.weight.ncols();
    let groups = problem.plan.groups(n);
    let tiles = levels
        .chunks_mut((L * n).max(1))
        .zip(scales.chunks_mut(L * groups))
        .zip(zeros.chunks_mut(L * groups))
        .zip(losses.chunks_mut(L))
        .enumerate()
        .map(|(tile, (((levels, scales), zeros), losses))| TileOut {
            first_row: tile * L,
            levels,
            scales,
            zeros,
            losses,
        });
    tasks::try_for_each_with(
        tiles,
        par,
        || problem.scratch::<L>(),
        |scratch, tile| problem.solve(scratch, tile),
    )
}

#[expect(clippy::expect_used, reason = "the buffers were allocated with exactly this size")]
fn shaped<A>(values: Vec<A>, rows: usize, columns: usize) -> Array2<A> {
    Array2::from_shape_vec((rows, columns), values).expect("rows * columns elements")
}
