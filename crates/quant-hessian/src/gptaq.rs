//! The public solver of asymmetric calibration.

use ndarray::ArrayView2;
use quant_core::Variant;
use quant_kernels::{Par, tasks};

use crate::coupling::Coupling;
use crate::gptq::{WIDEST_TILE, check_factor, solve};
use crate::solve::{Aim, Asymmetry, SUPER};
use crate::{CrossGram, Factor, GptqConfig, GptqResult, HessianError, workspace_bytes};

/// What [`gptaq`] does to one linear.
#[derive(Clone, Debug, PartialEq)]
pub struct GptaqConfig {
    /// Grid, groups, clip search, order and block size, as for [`gptq`](crate::gptq).
    pub gptq: GptqConfig,
    /// Strength of the correction, at least 0. 0 is GPTQ; 1 is the paper's equation, 0.25 what its code uses.
    pub alpha: f64,
    /// What a finished block passes on to later ones: the weights before rounding, which no block size changes, or, as the
    /// published code has it, those after. Independent of the grid's own variant.
    pub variant: Variant,
}

impl GptaqConfig {
    /// α = 0.25, the default of the published code, and the exact update.
    #[must_use]
    pub fn new(gptq: GptqConfig) -> Self {
        Self { gptq, alpha: 0.25, variant: Variant::Exact }
    }
}

/// What the column loop of [`gptaq`] needs of the cross product `D`; prepared once and shared by all linears with that input.
///
/// Holds one strictly triangular matrix, about `n²/2` floats: `M̃ = α striu(D Uᵀ) diag(R)⁻¹`, with `U = R⁻¹` GPTQ's Cholesky
/// factor of the inverse, or for [`Variant::Official`] `P = α striu(D Uᵀ) U`; nothing where that is zero.
#[derive(Clone, Debug)]
pub struct Correction {
    pub(crate) coupling: Option<Coupling<f32>>,
    n: usize,
    /// Column order of the factor.
    order: Option<Vec<u32>>,
    alpha: f64,
    variant: Variant,
}

impl Correction {
    /// Prepares the correction from the cross product, which is consumed, and the factor of the Hessian of the same
    /// calibration tokens: columns of dead channels become 0, act-order permutes both axes, then triangular solves with the
    /// factor (`gptaq.md` section 2 step 3). `n³/6` multiply-adds, twice that for [`Variant::Official`].
    ///
    /// # Errors
    /// [`HessianError::Shape`] if the cross product is not of the factor's channels, [`HessianError::Setting`] for an `alpha`
    /// that is negative or not finite, [`HessianError::HalfCross`] if the factor has act-order and the cross product only its
    /// upper half, [`HessianError::Empty`] without calibration data, [`HessianError::NotFiniteCross`] for NaN or infinity in it.
    pub fn new(
        cross: CrossGram,
        factor: &Factor,
        alpha: f64,
        variant: Variant,
        par: Par,
    ) -> Result<Self, HessianError> {
        let n = factor.n();
        cross.check_channels(n)?;
        if !(alpha >= 0.0 && alpha.is_finite()) {
            return Err(HessianError::Setting {
                name: "alpha",
                value: alpha.to_string(),
                expected: "a number of at least 0",
            });
        }
        if factor.order.is_some() && !cross.is_whole() {
            return Err(HessianError::HalfCross { columns: n });
        }
        let scale = alpha * cross.scale()?;
        let sum = in_processing_order(cross.into_finite_transposed_sum(par)?, factor, par);
        let zero = alpha == 0.0
            || sum.chunks(n.max(1)).enumerate().all(|(k, row)| row[..k].iter().all(|&x| x == 0.0));
        let coupling = (!zero).then(|| Coupling::new(sum, scale, &factor.panels, variant, par));
        Ok(Self { coupling, n, order: factor.order.clone(), alpha, variant })
    }

    /// Number of input channels.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }
    /// The α it was prepared with.
    #[must_use]
    pub fn alpha(&self) -> f64 {
        self.alpha
    }
    /// The variant it was prepared for.
    #[must_use]
    pub fn variant(&self) -> Variant {
        self.variant
    }
    /// Whether there is nothing to correct, because both streams agree or α is 0: [`gptaq`] is then
    /// [`gptq`](crate::gptq), to the bit and to the second.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.coupling.is_none()
    }
    /// Bytes held, counted as [`Self::bytes_for`].
    #[must_use]
    pub fn bytes(&self) -> usize {
        if self.coupling.is_some() { Self::bytes_for(self.n) } else { 0 }
    }
    /// Bytes held for `n` input channels unless [`Self::is_zero`]: the touched pages of a square of which half is used.
    #[must_use]
    pub fn bytes_for(n: usize) -> usize {
        Coupling::<f32>::bytes_for(n)
    }
    /// Bytes [`Self::new`] holds at its peak for `n` input channels, the cross product included, the factor not. Without
    /// act-order it works in place. Not counted: the packed operands of the products, about 20 MiB.
    #[must_use]
    pub fn peak_bytes(n: usize, act_order: bool) -> usize {
        let cross = CrossGram::bytes_for(n, act_order);
        if act_order { cross + Self::bytes_for(n) } else { cross.max(Self::bytes_for(n)) }
    }

    pub(crate) fn aim(&self) -> Aim<'_, f32> {
        let asymmetry = |coupling| Aim::Asymmetric(Asymmetry { coupling, variant: self.variant });
        self.coupling.as_ref().map_or(Aim::Weight, asymmetry)
    }

    fn check(&self, factor: &Factor, config: &GptaqConfig) -> Result<(), HessianError> {
        factor.check_prepared(self.n, self.order.as_deref())?;
        // Bits, not values: what was asked is what was prepared, or it is not.
        if self.alpha.to_bits() != config.alpha.to_bits() || self.variant != config.variant {
            return Err(HessianError::Correction {
                expected: format!("alpha {} and variant {:?}", config.alpha, config.variant),
                found: format!("alpha {} and variant {:?}", self.alpha, self.variant),
            });
        }
        Ok(())
    }
}

/// The transposed sum with the rows of dead columns zeroed, and with act-order permuted into the lower half of a new buffer.
fn in_processing_order(mut sum: Vec<f32>, factor: &Factor, par: Par) -> Vec<f32> {
    let n = factor.n();
    let Some(order) = &factor.order else {
        for (row, _) in sum.chunks_mut(n.max(1)).zip(&factor.dead).filter(|(_, dead)| **dead) {
            row.fill(0.0);
        }
        return sum;
    };
    let mut permuted = vec![0.0_f32; n * n];
    tasks::for_each(permuted.chunks_mut(n.max(1)).enumerate(), par, |(k, target)| {
        let column = order[k] as usize;
        if !factor.dead[column] {
            let source = &sum[column * n..][..n];
            for (x, &j) in target[..k].iter_mut().zip(order) {
                *x = source[j as usize];
            }
        }
    });
    permuted
}

/// Bytes [`gptaq`] holds besides its arguments and its result, for `n` input channels and blocks of 128.
#[must_use]
pub fn gptaq_workspace_bytes(n: usize, variant: Variant, par: Par) -> usize {
    let twice = if variant == Variant::Official { SUPER } else { 0 };
    workspace_bytes(n, par) + par.threads() * WIDEST_TILE * (n + twice) * size_of::<f32>()
}

/// Quantises a weight `[out, in]` with asymmetric calibration (GPTAQ, `gptaq.md`): where GPTQ asks that the rounded linear
/// answers the inputs of the partly quantised model as the float linear would, `‖W X − Ŵ X‖`, this asks for the answer of the
/// float model to its own, `‖W X_f − Ŵ X‖`.
///
/// Column by column, `w_k −= e_j U_jk − w̃_j P_jk` for `k > j`, with `P = α striu(D Uᵀ) U` and `D = (2/N) Σ (X_f − X)ᵀ X`
/// ([`CrossGram`]). Everything else is [`gptq`](crate::gptq): the grids, groups and their parameters, tiles and threads.
/// Neither the thread count nor the other rows of the matrix change a row's result. Cost: `2 · out · in²` floating-point
/// operations.
///
/// ```
/// use quant_hessian::ndarray::Array2;
/// use quant_hessian::{
///     Compute, Correction, CrossGram, FactorSettings, GptaqConfig, GptqConfig, Grid, Hessian, Par, gptaq, prepare,
/// };
///
/// let noise = |i: usize, j: usize| ((i * 7919 + j * 104_729) % 1009) as f32 / 504.5 - 1.0;
/// let float = Array2::from_shape_fn((64, 16), |(t, j)| noise(t, j));
/// let x = Array2::from_shape_fn((64, 16), |(t, j)| noise(t, j) * 0.9);
/// let weight = Array2::from_shape_fn((8, 16), |(i, j)| noise(i + 64, j));
///
/// // What both streams have in common for all linears with this input.
/// let (mut hessian, mut cross) = (Hessian::new(16), CrossGram::new(16, false));
/// hessian.add(x.view(), 1, Compute::F32, Par::Seq)?;
/// cross.add(float.view(), x.view(), 1, Compute::F32, Par::Seq)?;
/// let config = GptaqConfig { alpha: 1.0, ..GptaqConfig::new(GptqConfig::new(Grid::int4_asym())) };
/// let factor = prepare(hessian, &FactorSettings::default(), Par::Seq)?;
/// let correction = Correction::new(cross, &factor, config.alpha, config.variant, Par::Seq)?;
///
/// let result = gptaq(weight.view(), &factor, &correction, &config, Par::Seq)?;
/// let error = |w: &Array2<f32>| (x.dot(&w.t()) - float.dot(&weight.t())).mapv(|e| e * e).sum();
/// // Better than the float weight itself, which does not know that its inputs have shrunk.
/// assert!(error(&result.matrix.dequantize()) < error(&weight));
/// # Ok::<(), quant_hessian::HessianError>(())
/// ```
///
/// # Errors
/// As [`gptq`](crate::gptq), [`HessianError::Setting`] for any sweeps, and [`HessianError::Correction`] if the correction was prepared for another number of channels,
/// column order, α or variant.
pub fn gptaq(
    weight: ArrayView2<'_, f32>,
    factor: &Factor,
    correction: &Correction,
    config: &GptaqConfig,
    par: Par,
) -> Result<GptqResult, HessianError> {
    check_factor(weight, factor, &config.gptq)?;
    correction.check(factor, config)?;
    if config.gptq.sweeps > 0 {
        return Err(HessianError::Setting {
            name: "sweeps",
            value: config.gptq.sweeps.to_string(),
            expected: "0: the target of GPTAQ moves with the columns; gptq and qronos have them",
        });
    }
    let (order, dead) = (factor.order.as_deref(), &factor.dead);
    solve(weight, &factor.panels, correction.aim(), order, dead, &config.gptq, par)
}
