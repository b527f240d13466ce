//! From a Hessian to the factor GPTQ runs on: dead columns, order, damping, Cholesky, residual check.

use quant_core::codec_of_fields;
use quant_kernels::{Element, Par, tasks};
use serde::{Deserialize, Serialize};

use crate::attempt::{Attempt, Outcome, Precision};
use crate::cholesky::BLOCK;
use crate::panels::Panels;
use crate::residual::residual;
use crate::triangle::{largest_eigenvalue, triangle_bytes};
use crate::{Hessian, HessianError};

/// Which library computes the Cholesky factor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FactorBackend {
    /// Ours, on the product kernels of `quant-kernels`: pure Rust, nothing to install.
    #[default]
    Native,
    /// `potrf` of the LAPACK this program is linked with (feature `lapack`).
    #[cfg(feature = "lapack")]
    Lapack,
}

/// What a damping is a fraction of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DampingUnit {
    /// The mean diagonal entry, after dead columns were set to 1: GPTQ.
    #[default]
    MeanDiagonal,
    /// The largest eigenvalue of `H`, by power iteration: Qronos. A damping that fails is repeated with ten times as much.
    LargestEigenvalue,
}

/// How [`prepare`] turns a Hessian into a factor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FactorSettings {
    /// λ is this fraction of [`damping_unit`](Self::damping_unit); `percdamp` of the published GPTQ.
    pub damping: f64,
    /// What it is a fraction of.
    pub damping_unit: DampingUnit,
    /// Added to a fraction of the mean diagonal after every failure; 0.0015 in Quantized-Reasoning-Models. The sum must stay
    /// below 1.
    pub damping_step: f64,
    /// Dampings tried at most.
    pub max_dampings: usize,
    /// Process columns in the order of decreasing `H_jj`, ties by index.
    pub act_order: bool,
    /// Arithmetic of the first try.
    pub precision: Precision,
    /// Whether a failed f32 factorisation is repeated in f64 with the same damping before more damping is tried.
    pub f64_retry: bool,
    /// Largest residual accepted at any damping, in units of the mean diagonal; a small damping accepts less.
    ///
    /// A factor with residual r is the exact factor of a matrix whose eigenvalues differ from those of `H_d` by r (root
    /// mean square, same unit as `damping`). A tenth of the damping that is tried is accepted: the codes then answer
    /// a problem that differs less from the one posed than the choice of the damping does. The default 1e-3 is that tenth
    /// at the default damping. Below a damping of 1e-4, 1e-5 stays accepted, which rounding alone takes of f32 factors
    /// of ten thousand columns.
    pub residual_tolerance: f64,
    /// Library of the factorisation.
    pub backend: FactorBackend,
    /// Keep `H_d` beside its factor, for [sweeps](crate::GptqConfig::sweeps).
    pub keep_matrix: bool,
}

impl Default for FactorSettings {
    fn default() -> Self {
        Self {
            damping: 0.01,
            damping_unit: DampingUnit::MeanDiagonal,
            damping_step: 0.0015,
            max_dampings: 32,
            act_order: false,
            precision: Precision::F32,
            f64_retry: true,
            residual_tolerance: 1e-3,
            backend: FactorBackend::Native,
            keep_matrix: false,
        }
    }
}

impl FactorSettings {
    /// The fraction of the k-th try.
    fn damping_at(&self, k: usize) -> f64 {
        match self.damping_unit {
            DampingUnit::MeanDiagonal => self.damping + self.damping_step * k as f64,
            DampingUnit::LargestEigenvalue if k == 0 => self.damping,
            DampingUnit::LargestEigenvalue => self.damping.max(1e-9) * 10_f64.powi(k as i32),
        }
    }

    /// The residual accepted at a damping that is this fraction of the mean diagonal; see [`residual_tolerance`](Self::residual_tolerance).
    pub(crate) fn tolerance(&self, damping: f64) -> f64 {
        (0.1 * damping).max(1e-5).min(self.residual_tolerance)
    }

    fn check(&self) -> Result<(), HessianError> {
        let bad = |name, value: f64, expected| {
            Err(HessianError::Setting { name, value: value.to_string(), expected })
        };
        if !(0.0..1.0).contains(&self.damping) {
            return bad("damping", self.damping, "a fraction in [0, 1)");
        }
        if !(self.damping_step >= 0.0 && self.damping_step < 1.0) {
            return bad("damping_step", self.damping_step, "a fraction in [0, 1)");
        }
        if self.residual_tolerance.is_nan() || self.residual_tolerance <= 0.0 {
            return bad("residual_tolerance", self.residual_tolerance, "a positive number");
        }
        if self.max_dampings == 0 {
            return bad("max_dampings", 0.0, "at least 1");
        }
        Ok(())
    }
}

/// What happened while a factor was prepared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FactorReport {
    /// Every factorisation in order; the last one was accepted.
    pub attempts: Vec<Attempt>,
    /// Input channels whose diagonal entry is exactly 0, ascending.
    pub dead_columns: Vec<usize>,
    /// Smallest diagonal entry after dead ones were set to 1, before damping.
    pub min_diagonal: f64,
    /// Largest diagonal entry.
    pub max_diagonal: f64,
    /// Mean diagonal entry, the unit of residuals and, unless the settings say otherwise, of the damping.
    pub mean_diagonal: f64,
    /// Largest eigenvalue, where it is the unit of the damping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub largest_eigenvalue: Option<f64>,
    /// Smallest and largest `R_kk²`: their ratio bounds the condition of `H_d` from below.
    pub pivot_range: (f64, f64),
}

codec_of_fields!(FactorReport {
    attempts,
    dead_columns,
    min_diagonal,
    max_diagonal,
    mean_diagonal,
    pivot_range,
    largest_eigenvalue
});

impl FactorReport {
    fn accepted(&self) -> Option<&Attempt> {
        self.attempts.last()
    }
    /// The damping in the end, as a fraction of its unit.
    #[must_use]
    pub fn damping_used(&self) -> f64 {
        self.accepted().map_or(0.0, |a| a.damping)
    }
    /// λ, what was added to the diagonal.
    #[must_use]
    pub fn lambda(&self) -> f64 {
        self.accepted().map_or(0.0, |a| a.lambda)
    }
    /// Arithmetic of the accepted factorisation.
    #[must_use]
    pub fn precision_used(&self) -> Precision {
        self.accepted().map_or_else(Precision::default, |a| a.precision)
    }
    /// Residual of the accepted factorisation, in units of the mean diagonal.
    #[must_use]
    pub fn residual(&self) -> f64 {
        match self.accepted().map(|a| a.outcome) {
            Some(Outcome::Accepted { residual }) => residual,
            _ => 0.0,
        }
    }
}

/// Everything the column loop needs from a Hessian; prepared once and shared by all linears with that input.
///
/// Holds the upper-triangular `R` with `R Rᵀ = H_d` (columns in processing order), normalised by its diagonal and packed:
/// about `n²/2` floats. GPTQ's `U`, the upper Cholesky factor of `H_d⁻¹`, is `R⁻¹`; it is never formed.
#[derive(Clone, Debug)]
pub struct Factor {
    pub(crate) panels: Panels<f32>,
    pub(crate) order: Option<Vec<u32>>,
    pub(crate) dead: Vec<bool>,
    /// `H_jj` of the column that is processed first, before damping; 0 if it is dead.
    pub(crate) first_diagonal: f64,
    /// `H_d`, row-major in original column order, if it was to be kept.
    pub(crate) matrix: Option<Vec<f32>>,
    report: FactorReport,
}

impl Factor {
    /// Number of input channels.
    #[must_use]
    pub fn n(&self) -> usize {
        self.panels.n()
    }
    /// What happened on the way.
    #[must_use]
    pub fn report(&self) -> &FactorReport {
        &self.report
    }
    /// With act-order: the input channel at every processing position, `[n]`.
    #[must_use]
    pub fn order(&self) -> Option<&[u32]> {
        self.order.as_deref()
    }
    /// Whether something was prepared with this factor: for so many input channels in this order.
    pub(crate) fn check_prepared(&self, n: usize, order: Option<&[u32]>) -> Result<(), HessianError> {
        let bad = |expected: String, found: String| Err(HessianError::Correction { expected, found });
        if n != self.n() {
            return bad(format!("{} input channels", self.n()), format!("{n}"));
        }
        if order != self.order() {
            return bad("the column order of the factor".to_owned(), "another one".to_owned());
        }
        Ok(())
    }
    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.panels.bytes() + self.matrix.as_ref().map_or(0, |h| h.len() * size_of::<f32>())
    }
    /// Bytes of the matrix that is kept for `n` input channels.
    #[must_use]
    pub fn matrix_bytes(n: usize, settings: &FactorSettings) -> usize {
        if settings.keep_matrix { n * n * size_of::<f32>() } else { 0 }
    }
    /// Bytes [`prepare`] holds at its peak for `n` input channels, the Hessian included.
    ///
    /// Square buffers are counted as the pages their lower halves touch, which for narrow matrices is most of them. Where
    /// the settings allow an f64 factorisation, at once or as the repetition of a failed f32 one, it is the peak: the
    /// failed factor is freed before. Not counted: vectors of `n`, and the packed operands of the products, about 20 MiB.
    #[must_use]
    pub fn peak_bytes(n: usize, settings: &FactorSettings) -> usize {
        let double = settings.precision == Precision::F64 || settings.f64_retry;
        let lower = triangle_bytes(n, if double { size_of::<f64>() } else { size_of::<f32>() }, BLOCK);
        // The Hessian is freed before the factor is packed.
        Self::matrix_bytes(n, settings)
            + lower
            + triangle_bytes(n, size_of::<f32>(), BLOCK).max(Panels::<f32>::bytes_for(n))
    }
}

/// The damped matrix in processing order, still as its parts.
struct Damped<'a> {
    /// Lower triangle of `H / scale`, `[n, n]` row-major.
    sum: &'a [f32],
    scale: f64,
    /// Diagonal of `H` with dead entries set to 1, by column.
    diagonal: &'a [f32],
    order: Option<&'a [u32]>,
}

impl Damped<'_> {
    fn n(&self) -> usize {
        self.diagonal.len()
    }
    /// Column of `H` at index `a` of the reversed processing order.
    #[inline(always)]
    fn column(&self, a: usize) -> usize {
        let k = self.n() - 1 - a;
        self.order.map_or(k, |order| order[k] as usize)
    }

    /// The lower triangle of `J P H_d Pᵀ J`, `[n, n]` row-major; what lies above the diagonal stays zero and untouched.
    fn reversed<T: Element>(&self, lambda: f64, par: Par) -> Vec<T> {
        const SQUARE: usize = 64;
        let n = self.n();
        let mut out = vec![T::zero(); n * n];
        let scale = T::from_f64(self.scale);
        tasks::for_each(out.chunks_mut(SQUARE * n.max(1)).enumerate(), par, |(chunk, rows)| {
            let first = chunk * SQUARE;
            let last = first + rows.len() / n;
            // Square blocks through a small buffer: without a permutation the source is read along its rows and the result
            // written along its own.
            let mut square = [[0.0_f32; SQUARE]; SQUARE];
            for left in (0..last).step_by(SQUARE) {
                for b in left..(left + SQUARE).min(last) {
                    let target = &mut square[b - left];
                    let q = self.column(b);
                    if self.order.is_none() {
                        // Columns n−last..=n−1−begin of row q, backwards.
                        let begin = first.max(b);
                        let source = &self.sum[q * n + n - last..q * n + n - begin];
                        for (value, &h) in target[begin - first..].iter_mut().zip(source.iter().rev()) {
                            *value = h;
                        }
                        continue;
                    }
                    for a in first.max(b)..last {
                        let p = self.column(a);
                        target[a - first] = self.sum[p.max(q) * n + p.min(q)];
                    }
                }
                for a in first..last {
                    let right = (left + SQUARE).min(a + 1).max(left);
                    let row = &mut rows[(a - first) * n + left..(a - first) * n + right];
                    for (value, column) in row.iter_mut().zip(&square) {
                        *value = T::from_f32(column[a - first]) * scale;
                    }
                }
            }
            for a in first..last {
                rows[(a - first) * n + a] = T::from_f64(f64::from(self.diagonal[self.column(a)]) + lambda);
            }
        });
        out
    }

    /// One factorisation: the accepted Cholesky factor with its residual, or why there is none. `unit` is the mean diagonal.
    fn attempt<T: Backend>(
        &self,
        lambda: f64,
        unit: f64,
        settings: &FactorSettings,
        par: Par,
    ) -> (Outcome, Option<Vec<T>>) {
        let tolerance = settings.tolerance(lambda / unit);
        let n = self.n();
        let mut lower = self.reversed::<T>(lambda, par);
        if let Err(error) = T::factorise(&mut lower, n, settings.backend, par) {
            return (Outcome::Pivot { column: self.column(error) }, None);
        }
        let damped: Vec<f64> = self.diagonal.iter().map(|&d| f64::from(d) + lambda).collect();
        let residual = residual(self.sum, self.scale, &damped, &lower, |a| self.column(a), unit, par);
        if residual <= tolerance {
            (Outcome::Accepted { residual }, Some(lower))
        } else {
            (Outcome::Residual { residual, tolerance }, None)
        }
    }
}

/// Element types that every backend can factorise.
pub(crate) trait Backend: Element {
    /// Replaces the lower triangle of a row-major `[n, n]` matrix by its Cholesky factor; the error is the bad row.
    fn factorise(lower: &mut [Self], n: usize, backend: FactorBackend, par: Par) -> Result<(), usize>;
}

macro_rules! backend {
    ($($ty:ty),*) => {$(
        impl Backend for $ty {
            fn factorise(lower: &mut [Self], n: usize, backend: FactorBackend, par: Par) -> Result<(), usize> {
                match backend {
                    FactorBackend::Native => crate::cholesky::cholesky(lower, n, par),
                    #[cfg(feature = "lapack")]
                    FactorBackend::Lapack => crate::lapack::factorise(lower, n),
                }
            }
        }
    )*};
}
backend!(f32, f64);

/// Columns by decreasing diagonal, ties by index (`torch.argsort` leaves ties open).
pub(crate) fn descending(diagonal: &[f32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..diagonal.len() as u32).collect();
    order.sort_by(|&a, &b| diagonal[b as usize].total_cmp(&diagonal[a as usize]));
    order
}

/// Prepares the factor of a Hessian, which is consumed and freed on the way.
///
/// Steps 2 and 4 to 6 of `gptq.md` section 2, with one Cholesky factorisation (`n³/3` multiply-adds) where the published
/// code needs four times as much: with `J` reversing the order of the indices, `J H_d J = L Lᵀ` gives `R = J L J`, upper
/// triangular with `H_d = R Rᵀ`, and `U = R⁻¹` is GPTQ's Cholesky factor of the inverse. The solver works on `R` itself.
///
/// # Damping escalation
/// `λ_k = (damping + damping_step · k) · mean(diag H)` for `k = 0, 1, …`, always on a fresh copy of `H`; each is tried in
/// [`FactorSettings::precision`] and, when that is f32 and `f64_retry` is set, again in f64. A try fails on a pivot that is
/// not positive or on a residual above a tenth of the damping ([`FactorSettings::residual_tolerance`]). All tries are in the report.
///
/// # Errors
/// [`HessianError::Empty`] without calibration data, [`HessianError::NotFiniteHessian`] for NaN or infinity in it,
/// [`HessianError::Setting`] for settings out of range, [`HessianError::NotPositiveDefinite`] when every damping failed.
pub fn prepare(hessian: Hessian, settings: &FactorSettings, par: Par) -> Result<Factor, HessianError> {
    settings.check()?;
    let mut diagonal = hessian.diagonal()?.to_vec();
    let n = diagonal.len();
    let dead: Vec<bool> = diagonal.iter().map(|&d| d == 0.0).collect();
    for (value, &dead) in diagonal.iter_mut().zip(&dead) {
        if dead {
            *value = 1.0;
        }
    }
    let order = settings.act_order.then(|| descending(&diagonal));
    let mean = diagonal.iter().map(|&d| f64::from(d)).sum::<f64>() / n.max(1) as f64;
    let mut attempts = Vec::new();
    let largest_eigenvalue = match settings.damping_unit {
        DampingUnit::MeanDiagonal => None,
        DampingUnit::LargestEigenvalue => {
            Some(hessian.scale()? * largest_eigenvalue(hessian.lower_sum(), n, par))
        }
    };
    let units = (largest_eigenvalue.unwrap_or(mean), mean);
    let kept = if settings.keep_matrix { Some(hessian.clone().finish()?) } else { None };
    let panels = factorise(hessian, &diagonal, order.as_deref(), units, settings, &mut attempts, par);
    let Some(panels) = panels? else {
        return Err(HessianError::NotPositiveDefinite { attempts });
    };
    let squares = panels.diagonal().iter().map(|&r| f64::from(r) * f64::from(r));
    let report = FactorReport {
        attempts,
        dead_columns: dead.iter().enumerate().filter_map(|(j, &dead)| dead.then_some(j)).collect(),
        min_diagonal: f64::from(diagonal.iter().copied().fold(f32::INFINITY, f32::min)),
        max_diagonal: f64::from(diagonal.iter().copied().fold(0.0, f32::max)),
        mean_diagonal: mean,
        largest_eigenvalue,
        pivot_range: squares.fold((f64::INFINITY, 0.0), |(lo, hi), s| (s.min(lo), s.max(hi))),
    };
    let first = order.as_ref().map_or(0, |order| order.first().map_or(0, |&column| column as usize));
    let alive = dead.get(first).is_some_and(|dead| !dead);
    let first_diagonal = if alive { f64::from(diagonal[first]) } else { 0.0 };
    let matrix = kept.map(|mut h| {
        for (entry, &value) in h.diag_mut().iter_mut().zip(&diagonal) {
            *entry = (f64::from(value) + report.lambda()) as f32;
        }
        h.into_raw_vec_and_offset().0
    });
    Ok(Factor { panels, order, dead, first_diagonal, matrix, report })
}

/// The escalation; takes the Hessian so that it is freed before the factor is packed. The units are that of the damping and
/// the mean diagonal.
fn factorise(
    hessian: Hessian,
    diagonal: &[f32],
    order: Option<&[u32]>,
    (unit, mean): (f64, f64),
    settings: &FactorSettings,
    attempts: &mut Vec<Attempt>,
    par: Par,
) -> Result<Option<Panels<f32>>, HessianError> {
    let n = diagonal.len();
    let scale = hessian.scale()?;
    for k in 0..settings.max_dampings {
        let damping = settings.damping_at(k);
        if damping >= 1.0 {
            break;
        }
        let lambda = damping * unit;
        let damped = Damped { sum: hessian.lower_sum(), scale, diagonal, order };
        let mut record = |precision, outcome| {
            attempts.push(Attempt { damping, lambda, precision, outcome });
        };
        if settings.precision == Precision::F32 {
            let (outcome, lower) = damped.attempt::<f32>(lambda, mean, settings, par);
            record(Precision::F32, outcome);
            if let Some(lower) = lower {
                drop(hessian);
                return Ok(Some(Panels::from_reversed_lower(&lower, n, par)));
            }
        }
        if settings.precision == Precision::F64 || settings.f64_retry {
            let (outcome, lower) = damped.attempt::<f64>(lambda, mean, settings, par);
            record(Precision::F64, outcome);
            if let Some(lower) = lower {
                drop(hessian);
                return Ok(Some(Panels::from_reversed_lower(&lower, n, par)));
            }
        }
    }
    Ok(None)
}
