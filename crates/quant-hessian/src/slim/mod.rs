//! SliM-LLM: groups of columns with bit widths of their own (arXiv 2405.14917, `slim_llm.md`).
//!
//! Every group of columns gets one bit less than the nominal width, that width, or one bit more, as many of the first as of the
//! last, by its salience; how many is a search over the divergence of the linear's outputs ([`allocate`]). Then the columns are
//! rounded with the feedback of GPTQ, each group with a range that is searched on its updated weight ([`fit`]).

mod allocate;
mod fit;
mod official;

use ndarray::{Array2, ArrayView1, ArrayView2};
use quant_core::convention::level_byte;
use quant_core::{Bits, CoreError, FloatType, Groups, QParams, QuantizedMatrix, Variant, Widths};
use quant_kernels::{Par, Work, vectorized};

use crate::blockwise::{Blockwise, Lanes, ROWS, Tile, workspace_bytes};
use crate::feedback::add_feedback;
use crate::{Factor, FactorReport, FactorSettings, Hessian, HessianError, prepare};
use allocate::{Allocation, salience};
use fit::{Fit, Salient};
use official::Rules;

/// What [`slim`] does to one linear.
#[derive(Clone, Debug, PartialEq)]
pub struct SlimConfig {
    /// Nominal width, 2 to 7.
    pub bits: Bits,
    /// Columns of a group. The last group may be shorter.
    pub group: usize,
    /// How much more the error of a salient weight counts in the search for a range.
    pub lambda: f32,
    /// The mathematics, or the published code. That one damps absolutely where it searches and keeps that damping, rounds dead
    /// columns, takes `mean|w|` for the spread of one-bit groups around their mean, fixes the zero level of narrow groups before
    /// the first other one, and leaves the bias out of the candidates' outputs.
    pub variant: Variant,
    /// What the loader will hold scales in.
    pub scale_type: FloatType,
}

impl SlimConfig {
    /// As published: no extra weight for salient weights.
    #[must_use]
    pub fn new(bits: Bits, group: usize) -> Self {
        Self { bits, group, lambda: 1.0, variant: Variant::Exact, scale_type: FloatType::F32 }
    }
    fn check(&self) -> Result<(), HessianError> {
        let bad = |name, value: String, expected| Err(HessianError::Setting { name, value, expected });
        if !(2..=7).contains(&self.bits.get()) {
            return bad(
                "bits",
                self.bits.get().to_string(),
                "2 to 7, so that a bit less and a bit more exist",
            );
        }
        if self.group == 0 {
            return bad("group", "0".to_owned(), "at least 1");
        }
        if !self.lambda.is_finite() || self.lambda < 0.0 {
            return bad("lambda", self.lambda.to_string(), "a finite number that is not negative");
        }
        Ok(())
    }
}

/// What all linears with one input share: the factor, and what the search for widths weighs weights with.
#[derive(Clone, Debug)]
pub struct SlimFactor {
    factor: Factor,
    /// `R_jj` of the search, where it is another.
    searched: Option<Vec<f32>>,
}

impl SlimFactor {
    /// Factorises a Hessian: once, or for the published code, which searches with another damping, twice.
    ///
    /// # Errors
    /// As [`prepare`].
    pub fn new(
        hessian: Hessian,
        settings: &FactorSettings,
        variant: Variant,
        par: Par,
    ) -> Result<Self, HessianError> {
        match variant {
            Variant::Exact => Ok(Self { factor: prepare(hessian, settings, par)?, searched: None }),
            Variant::Official => {
                let shifted = official::damped(hessian)?;
                let search = FactorSettings { damping: 0.0, ..*settings };
                let searched = prepare(shifted.clone(), &search, par)?.panels.diagonal().to_vec();
                Ok(Self { factor: prepare(shifted, settings, par)?, searched: Some(searched) })
            }
        }
    }
    /// What happened on the way.
    #[must_use]
    pub fn report(&self) -> &FactorReport {
        self.factor.report()
    }
    /// Number of input channels.
    #[must_use]
    pub fn n(&self) -> usize {
        self.factor.n()
    }
    fn searched(&self) -> &[f32] {
        self.searched.as_deref().unwrap_or_else(|| self.factor.panels.diagonal())
    }
}

/// A quantised linear and how its groups came to their widths.
#[derive(Clone, Debug, PartialEq)]
pub struct SlimResult {
    /// Levels, scales, zeros and widths.
    pub matrix: QuantizedMatrix,
    /// `Σ (w̃ − q)²/U_kk² / 2` by row, `[out]`.
    pub row_losses: Vec<f64>,
    /// Divergence of the outputs with 1, 2, … groups of a bit less and as many of a bit more, summed over the tokens; empty where
    /// there are fewer than four groups, which keep the nominal width.
    pub divergences: Vec<f64>,
}

impl SlimResult {
    /// `Σ (w̃ − q)²/U_kk² / 2` over the matrix.
    #[must_use]
    pub fn loss(&self) -> f64 {
        self.row_losses.iter().sum()
    }
}

/// Groups of a bit less, and of a bit more, that a row of `groups` groups has at most: none with fewer than four.
#[must_use]
pub fn slim_most(groups: usize) -> usize {
    (groups / 2).saturating_sub(1)
}

/// Bytes [`slim`] holds besides its arguments and its result, for a weight `(out, in)`, groups of `group` columns and that many
/// sampled tokens.
#[must_use]
pub fn slim_workspace_bytes((out, n): (usize, usize), group: usize, tokens: usize) -> usize {
    let searched = allocate::workspace_bytes((out, n), group, tokens);
    // Levels are kept by tiles before they are in rows.
    let rounded = workspace_bytes((out, n), group) + out * group.min(n);
    searched.max(rounded)
}

/// Operations of the search for ranges on each weight, as many as a product does in its time (measured).
const RANGES: f64 = 10_000.0;
/// The same of comparing one output of one token.
const COMPARED: f64 = 40.0;

/// Floating-point operations of [`slim`] on a weight `(out, in)`, as many as a product does in its time, with groups of `group`
/// columns and that many sampled tokens.
#[must_use]
pub fn slim_operations((out, n): (usize, usize), group: usize, tokens: usize) -> f64 {
    let (rows, columns, tokens) = (out as f64, n as f64, tokens as f64);
    let candidates = slim_most(n.div_ceil(group.max(1))) as f64;
    // Outputs of the float weight, of the rounded one, and of what changes from candidate to candidate.
    let searched =
        if candidates > 0.0 { tokens * rows * (6.0 * columns + COMPARED * candidates) } else { 0.0 };
    rows * columns * (columns + RANGES) + searched
}

/// Quantises a weight `[out, in]` against a prepared factor (`slim_llm.md` section 2), with inputs `sample` `[tokens, in]` and the
/// linear's `bias` `[out]` for the outputs that the search for widths compares.
///
/// ```
/// use quant_hessian::ndarray::Array2;
/// use quant_hessian::{Bits, Compute, FactorSettings, Hessian, Par, SlimConfig, SlimFactor, Variant, slim};
///
/// let noise = |i: usize, j: usize| ((i * 7919 + j * 104_729) % 1009) as f32 / 504.5 - 1.0;
/// let inputs = Array2::from_shape_fn((200, 64), |(t, j)| noise(t, j));
/// let weight = Array2::from_shape_fn((8, 64), |(i, j)| noise(i + 200, j));
/// let mut hessian = Hessian::new(64);
/// hessian.add(inputs.view(), 1, Compute::F32, Par::Seq)?;
/// let factor = SlimFactor::new(hessian, &FactorSettings::default(), Variant::Exact, Par::Seq)?;
/// let config = SlimConfig::new(Bits::new(3)?, 8);
/// let result = slim(weight.view(), &factor, inputs.view(), None, &config, Par::Seq)?;
/// let widths = result.matrix.widths().per_group().expect("eight groups");
/// assert_eq!(widths.iter().map(|bits| bits.get()).sum::<u32>(), 3 * 8);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`HessianError::Shape`] if weight, sample or bias do not fit, [`HessianError::Order`] for a factor with act-order,
/// [`HessianError::Setting`] for settings out of range, [`HessianError::Core`] for NaN or infinity in the weight or a scale beyond
/// its type, [`HessianError::NotFiniteResult`] if an update or its loss overflows, [`HessianError::Stopped`], asked for between
/// candidates and between groups.
pub fn slim<'w>(
    weight: ArrayView2<'_, f32>,
    factor: &SlimFactor,
    sample: ArrayView2<'_, f32>,
    bias: Option<ArrayView1<'_, f32>>,
    config: &SlimConfig,
    work: impl Into<Work<'w>>,
) -> Result<SlimResult, HessianError> {
    config.check()?;
    let wanted: Work<'_> = work.into();
    let work = Blockwise::new("SliM-LLM weight", weight, &factor.factor, config.group, true, wanted.par)?;
    let (out, n) = weight.dim();
    let wrong = |what, expected, found| Err(HessianError::Shape { what, expected, found });
    if sample.ncols() != n {
        return wrong("sampled inputs", format!("[tokens, {n}]"), format!("{:?}", sample.dim()));
    }
    if let Some(bias) = bias.filter(|b| b.len() != out) {
        return wrong("bias", format!("[{out}]"), format!("[{}]", bias.len()));
    }
    let rules = Rules::of(config.variant);
    let search = Allocation { weight, dead: &factor.factor.dead, config, rules: &rules };
    let (narrow, divergences) = search.run(factor.searched(), sample, bias, wanted)?;
    // The widths go by the salience of what is rounded.
    let salience = salience(weight, &factor.factor.dead, factor.factor.panels.diagonal(), config.group);
    let widths = allocate::widths(config.bits, &salience, narrow);
    round((work, wanted), (out, n), config, &rules, widths, divergences)
}

/// The column loop, group by group.
fn round(
    (mut work, wanted): (Blockwise<'_>, Work<'_>),
    (out, n): (usize, usize),
    config: &SlimConfig,
    rules: &Rules,
    widths: Vec<Bits>,
    divergences: Vec<f64>,
) -> Result<SlimResult, HessianError> {
    let mut levels = Array2::zeros((out, n));
    let (mut scales, mut zeros) = (Array2::ones((out, widths.len())), Array2::zeros((out, widths.len())));
    let fixed = rules.fixed_zeros(&widths, config.bits);
    for (g, columns) in work.blocks().enumerate() {
        wanted.go_on()?;
        work.open(columns.clone());
        let pivots = work.pivots(columns.clone());
        let salient = Salient::find(&mut work, pivots, config.lambda);
        let fit = Fit { bits: widths[g], fixed_zero: fixed[g], scale_type: config.scale_type, rules };
        let rounded: Vec<Rounded> = work.each(|tile, minus| {
            let params = fit.params(&tile.block, &salient, pivots);
            Rounded::new(tile, columns.start, params, &fit, pivots, minus)
        });
        for (tile, rounded) in rounded.iter().enumerate() {
            let first = tile * ROWS;
            for r in 0..ROWS.min(out - first) {
                scales[(first + r, g)] = rounded.params[r].scale;
                zeros[(first + r, g)] = rounded.params[r].zero;
                for (c, lanes) in rounded.levels.iter().enumerate() {
                    levels[(first + r, columns.start + c)] = lanes[r];
                }
            }
        }
        if let Some(row) = scales.column(g).iter().position(|scale| !scale.is_finite()) {
            let (scale, scale_type) = (scales[(row, g)], config.scale_type.name());
            return Err(HessianError::Core(CoreError::Scale { scale, scale_type, row, group: g }));
        }
        let losses = work.row_losses();
        if let Some(row) = losses.iter().position(|loss| !loss.is_finite()) {
            return Err(HessianError::NotFiniteResult { row, column: columns.start });
        }
    }
    let groups = if config.group < n { Groups::Size(config.group) } else { Groups::Channel };
    let widths = if divergences.is_empty() { Widths::Uniform(config.bits) } else { Widths::PerGroup(widths) };
    let matrix = QuantizedMatrix::new(widths, levels, scales, zeros, groups)?;
    Ok(SlimResult { matrix, row_losses: work.row_losses(), divergences })
}

/// A tile of a group, rounded.
struct Rounded {
    /// By column.
    levels: Vec<[u8; ROWS]>,
    params: Vec<QParams>,
}

impl Rounded {
    /// Rounds the columns of a tile one after the other, each from what the columns before it left.
    fn new(
        tile: &mut Tile,
        first: usize,
        params: Vec<QParams>,
        fit: &Fit<'_>,
        pivots: &[f32],
        minus: &[Vec<f32>],
    ) -> Self {
        let width = pivots.len();
        let mut levels = vec![[0; ROWS]; width];
        let (origin, fed_back) = (std::mem::take(&mut tile.origin), std::mem::take(&mut tile.fed_back));
        let mut losses = [0.0_f32; ROWS];
        let gained = tile.gained(first..first + width);
        vectorized(
            #[inline(always)]
            || {
                for k in 0..width {
                    let (solved, rest) = gained.split_at_mut(k);
                    let mut updated: Lanes = std::array::from_fn(|r| origin[k][r] + fed_back[k][r]);
                    add_feedback(&mut updated, solved, &minus[k]);
                    for r in 0..ROWS {
                        let level = fit.level(updated[r], params[r]);
                        let q = params[r].value(level);
                        rest[0][r] = q - origin[k][r];
                        let error = (updated[r] - q) * pivots[k];
                        losses[r] += error * error;
                        levels[k][r] = level_byte(level);
                    }
                }
            },
        );
        for (total, loss) in tile.losses.iter_mut().zip(losses) {
            *total += 0.5 * f64::from(loss);
        }
        (tile.origin, tile.fed_back) = (origin, fed_back);
        Self { levels, params }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GptqConfig, gptq};
    use quant_core::{Convention, Grid};
    use quant_kernels::Compute;
    use quant_testkit::Numbers;

    /// `slim_llm.md` section 7, property 3: with one width and the range as it is, what is left is GPTQ with the min-max
    /// parameters of a group's updated weight.
    #[test]
    fn one_width_and_no_search_is_gptq() {
        let (n, out, group) = (96, 300, 16);
        let mut noise = Numbers::new(17);
        let x = noise.activations(4 * n, n);
        let weight = noise.normals(out, n) * 0.3;
        let mut hessian = Hessian::new(n);
        hessian.add(x.view(), 1, Compute::F32, Par::Seq).unwrap();
        let factor = prepare(hessian, &FactorSettings::default(), Par::Seq).unwrap();
        for width in [2, 3, 4] {
            let bits = Bits::new(width).unwrap();
            let config = SlimConfig::new(bits, group);
            let mut rules = Rules::of(Variant::Exact);
            rules.steps = 0;
            let work = Blockwise::new("weight", weight.view(), &factor, group, true, Par::Seq).unwrap();
            let widths = vec![bits; n / group];
            let slim = round((work, Par::Seq.into()), (out, n), &config, &rules, widths, Vec::new()).unwrap();
            let grid = Grid::new(Convention::QAsym, bits, Variant::Exact, FloatType::F32).unwrap();
            // Blocks as wide as groups: GPTQ looks at a group when its block is opened.
            let same = GptqConfig { group: Some(group), block: group, ..GptqConfig::new(grid) };
            let gptq = gptq(weight.view(), &factor, &same, Par::Seq).unwrap();
            // Both loops add up feedback in an order of their own: a weight on a half step may fall on either side, and then
            // changes its row and no other.
            let (ours, theirs) = (slim.matrix.levels(), gptq.matrix.levels());
            let rows = ours.rows().into_iter().zip(theirs.rows()).filter(|(a, b)| a != b).count();
            assert!(rows <= 2, "{width} bits: {rows} of {out} rows differ");
            assert!((slim.loss() - gptq.loss()).abs() <= 1e-4 * gptq.loss(), "{width} bits");
            // The search is what was left out.
            let work = Blockwise::new("weight", weight.view(), &factor, group, true, Par::Seq).unwrap();
            let widths = vec![bits; n / group];
            let searched = round(
                (work, Par::Seq.into()),
                (out, n),
                &config,
                &Rules::of(Variant::Exact),
                widths,
                Vec::new(),
            )
            .unwrap();
            let rows = searched.matrix.levels().rows().into_iter().zip(theirs.rows());
            assert!(rows.filter(|(a, b)| a != b).count() > out / 2, "{width} bits");
        }
    }
}
