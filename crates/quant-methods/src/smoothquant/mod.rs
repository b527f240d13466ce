//! SmoothQuant: move activation outliers into the weights with a positive scale per input channel.
//!
//! `y = (x diag(1/c)) (W diag(c))ᵀ` is exact; `c_j = max(A_j^α / V_j^(1−α), f)` with `A_j` the largest `|x_j|` over the
//! calibration tokens and `V_j` the largest `|W_ij|` over all linears fed by the norm (arXiv 2211.10438, equation 4). The floor `f` is 1e-5 in `official` and 1e-2 in `exact`.

use crate::rounding::VARIANT;
use crate::settings::FieldKind;
use crate::{
    BlockContext, Field, Method, MethodError, MethodKind, Modifier, Need, Scaled, SiteStatistics, Statistic,
    Stream, Transform,
};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2};
use quant_core::elementary::pow_f32;
use quant_core::{FloatType, Variant};
use quant_graph::{BlockParams, BlockSpec, LinearScheme, LinearWeight, Site};
use std::collections::BTreeMap;

/// Registry line.
pub static METHOD: Method = Method {
    id: "smoothquant",
    summary: "divides norm weights and multiplies the linears after them so that activation outliers shrink",
    source: "arXiv 2211.10438",
    kind: MethodKind::Transform,
    build: |settings| {
        let alpha = settings.number("alpha")? as f32;
        let variant = settings.word("variant")?.unwrap_or_default();
        Ok(Modifier::transform(SmoothQuant { alpha, variant }))
    },
    fields: &[
        Field {
            name: "alpha",
            kind: FieldKind::Number(0.0, 1.0),
            default: "0.5",
            help: "migration strength; larger moves more of the difficulty into the weights",
            run_wide: false,
        },
        VARIANT,
    ],
    tier: 1,
};

/// Lower bound on `V`, and on `c` in `official`.
const FLOOR: f32 = 1e-5;
/// Lower bound on `c` in `exact`: a channel that hardly speaks in the calibration data and wakes up later is multiplied by at
/// most 100, and not by 1e5, which would take the range of every token with it.
const EXACT_FLOOR: f32 = 1e-2;

/// Settings of SmoothQuant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SmoothQuant {
    /// Migration strength in [0, 1]; larger moves more of the difficulty into the weights.
    pub alpha: f32,
    /// `official` bounds `c` by 1e-5, also for a channel that is never active; `exact` bounds it by 1e-2 and leaves a
    /// channel that is never active alone.
    pub variant: Variant,
}

impl Transform for SmoothQuant {
    fn method(&self) -> &'static Method {
        &METHOD
    }
    fn describe(&self) -> String {
        format!("alpha {}", self.alpha)
    }
    fn needs(&self, block: &BlockSpec) -> Vec<Need> {
        let need = |(_, site)| Need { site, stream: Stream::Float, statistic: Statistic::ChannelMax };
        block.norm_edges().map(need).collect()
    }
    fn apply(
        &self,
        block: &mut BlockParams,
        statistics: &BTreeMap<Site, SiteStatistics>,
        context: BlockContext<'_>,
    ) -> Result<Scaled, MethodError> {
        let mut scaled = Scaled::new();
        for (norm, site) in context.block.norm_edges() {
            let fed = context.block.at(site);
            // Nothing to gain where the linears stay float.
            if fed.iter().all(|id| context.scheme.get(id).is_none_or(LinearScheme::is_float)) {
                continue;
            }
            let missing = |what| MethodError::MissingStatistic { method: METHOD.id, what };
            let absmax = statistics.get(&site).and_then(|s| s.float.channel_max());
            let absmax = absmax.ok_or_else(|| missing("channel maxima"))?;
            let norm = block.norms.get_mut(&norm).ok_or_else(|| missing("the norm before it"))?;
            let mut weights: Vec<&mut Array2<f32>> = Vec::new();
            for (id, linear) in &mut block.linears {
                if let (true, LinearWeight::Float(w)) = (fed.contains(id), &mut linear.weight) {
                    weights.push(w);
                }
            }
            let views: Vec<_> = weights.iter().map(|w| w.view()).collect();
            let factors = factors(self, absmax.view(), &views)?;
            drop(views);
            scaled.insert(site, apply(factors.view(), norm, &mut weights, context.norm_type)?);
        }
        Ok(scaled)
    }
}

/// The scales `c` of one group of linears, `[in]`, from `A` (`absmax`, `[in]`) and the weights `[out, in]`.
///
/// # Errors
/// Channel counts that differ, or an `A` that is not finite.
pub fn factors(
    smooth: &SmoothQuant,
    absmax: ArrayView1<'_, f32>,
    weights: &[ArrayView2<'_, f32>],
) -> Result<Array1<f32>, MethodError> {
    let n = absmax.len();
    let mut largest = Array1::<f32>::zeros(n);
    for weight in weights {
        if weight.ncols() != n {
            return Err(MethodError::Channels {
                method: METHOD.id,
                what: "a weight".into(),
                expected: n,
                found: weight.ncols(),
            });
        }
        for row in weight.rows() {
            for (m, &w) in largest.iter_mut().zip(row) {
                *m = m.max(w.abs());
            }
        }
    }
    if let Some((channel, &value)) = absmax.iter().enumerate().find(|(_, a)| !a.is_finite()) {
        return Err(MethodError::NotFinite {
            method: METHOD.id,
            what: "the activation maximum",
            channel,
            value,
        });
    }
    let floor = match smooth.variant {
        Variant::Exact => EXACT_FLOOR,
        Variant::Official => FLOOR,
    };
    Ok(Array1::from_shape_fn(n, |j| {
        let (a, v) = (absmax[j], largest[j].max(FLOOR));
        if a == 0.0 && smooth.variant == Variant::Exact {
            return 1.0;
        }
        (pow_f32(a, smooth.alpha) / pow_f32(v, 1.0 - smooth.alpha)).max(floor)
    }))
}

/// Folds `c` into the norm and the weights after it: `γ ← γ/c`, `W ← W · c` per column.
///
/// `norm_type` is what the folder will store norms in. The divided norm is rounded to it first and the columns take the
/// factor that rounding really produced, `γ / γ'`, so the block's function is kept however coarse the type. A norm entry
/// that would leave the type's range keeps its channel unscaled. Gives the factors that the columns really took, `[in]`.
///
/// # Errors
/// Channel counts that differ.
pub fn apply(
    factors: ArrayView1<'_, f32>,
    norm: &mut Array1<f32>,
    weights: &mut [&mut Array2<f32>],
    norm_type: FloatType,
) -> Result<Array1<f32>, MethodError> {
    let n = factors.len();
    let wrong = |what: &str, found| MethodError::Channels {
        method: METHOD.id,
        what: what.into(),
        expected: n,
        found,
    };
    if norm.len() != n {
        return Err(wrong("the norm", norm.len()));
    }
    if let Some(weight) = weights.iter().find(|w| w.ncols() != n) {
        return Err(wrong("a weight", weight.ncols()));
    }
    let mut columns = Array1::<f32>::ones(n);
    for j in 0..n {
        let gamma = norm[j];
        let divided = norm_type.round(gamma / factors[j]);
        if norm_type == FloatType::F32 {
            columns[j] = factors[j];
            norm[j] = divided;
        } else if gamma == 0.0 {
            // The channel carries nothing through the norm: any factor keeps the function.
            columns[j] = factors[j];
        } else if divided.is_finite() && divided != 0.0 {
            columns[j] = gamma / divided;
            norm[j] = divided;
        }
    }
    for weight in weights {
        for mut row in weight.rows_mut() {
            row *= &columns;
        }
    }
    Ok(columns)
}
