//! SmoothQuant: move activation outliers into the weights with a positive scale per input channel.
//!
//! `y = (x diag(1/c)) (W diag(c))ᵀ` is exact; `c_j = max(A_j^α / V_j^(1−α), f)` with `A_j` the largest `|x_j|` over the
//! calibration tokens and `V_j` the largest `|W_ij|` over all linears fed from there (arXiv 2211.10438, equation 4). The floor `f` is 1e-5 in `official` and 1e-2 in `exact`.
//!
//! What is divided by `c` is the norm before the linears, as published, or the rows of the linear before them: those of v, whose
//! mixture over the tokens is the input of o, and those of up, in which the gated product is linear ([`Pair`]).

use crate::folding::{divide_norm, fold};
use crate::rounding::VARIANT;
use crate::settings::FieldKind;
use crate::{
    BlockContext, Field, HeadTie, Method, MethodError, MethodKind, Modifier, Need, Scaled, SettingsError,
    SiteStatistics, Statistic, Stream, Transform,
};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2};
use quant_core::elementary::pow_f32;
use quant_core::{FloatType, Variant};
use quant_graph::{BlockParams, BlockSpec, EdgeSource, LinearScheme, LinearWeight, ScaleEdge, Site};
use serde::Deserialize;
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
        let smoothing = Smoothing { scales: SmoothQuant { alpha, variant }, pairs: settings.words("pairs")? };
        Ok(Modifier::transform(smoothing))
    },
    fields: &[
        Field {
            name: "alpha",
            kind: FieldKind::Number(0.0, 1.0),
            default: "0.5",
            help: "migration strength; larger moves more of the difficulty into the weights",
            run_wide: false,
        },
        Field {
            name: "pairs",
            kind: FieldKind::Words(&["norm", "v-o", "up-down"]),
            default: "[\"norm\"]",
            help: "where scales move: from norms into q, k, v and gate, up; from v into o; from up into down",
            run_wide: false,
        },
        VARIANT,
    ],
    tier: 1,
};

/// What a scale is moved from, and into which linears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Pair {
    /// From the norms into q, k, v and into gate, up: the published method.
    #[serde(rename = "norm")]
    Norm,
    /// From the rows of v into o. Query heads that share a value head take one scale: the one of their largest maxima.
    #[serde(rename = "v-o")]
    ValueOutput,
    /// From the rows of up into down.
    #[serde(rename = "up-down")]
    UpDown,
}

impl Pair {
    /// The name in recipes.
    fn name(self) -> &'static str {
        match self {
            Self::Norm => "norm",
            Self::ValueOutput => "v-o",
            Self::UpDown => "up-down",
        }
    }
    /// Which pair an edge of a block is.
    fn of(edge: &ScaleEdge) -> Self {
        match (edge.from, edge.to) {
            (EdgeSource::Norm(_), _) => Self::Norm,
            (EdgeSource::Rows { .. }, Site::AttentionOutput) => Self::ValueOutput,
            (EdgeSource::Rows { .. }, _) => Self::UpDown,
        }
    }
}

/// Lower bound on `V`, and on `c` in `official`.
const FLOOR: f32 = 1e-5;
/// Lower bound on `c` in `exact`: a channel that hardly speaks in the calibration data and wakes up later is multiplied by at
/// most 100, and not by 1e5, which would take the range of every token with it.
const EXACT_FLOOR: f32 = 1e-2;

/// How the scales of a group of linears follow from its maxima.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SmoothQuant {
    /// Migration strength in [0, 1]; larger moves more of the difficulty into the weights.
    pub alpha: f32,
    /// `official` bounds `c` by 1e-5, also for a channel that is never active; `exact` bounds it by 1e-2 and leaves a
    /// channel that is never active alone.
    pub variant: Variant,
}

/// The modifier of a recipe: scales, and the edges of a block along which they move.
#[derive(Clone, Debug, PartialEq)]
pub struct Smoothing {
    /// How large scales are.
    pub scales: SmoothQuant,
    /// Where they move.
    pub pairs: Vec<Pair>,
}

impl Smoothing {
    /// The edges of a block that are smoothed.
    pub(crate) fn edges<'b>(&'b self, block: &'b BlockSpec) -> impl Iterator<Item = &'b ScaleEdge> {
        block.edges.iter().filter(|edge| self.pairs.contains(&Pair::of(edge)))
    }
}

impl Transform for Smoothing {
    fn method(&self) -> &'static Method {
        &METHOD
    }
    fn describe(&self) -> String {
        let pairs: Vec<&str> = self.pairs.iter().map(|pair| pair.name()).collect();
        let moved = if pairs == ["norm"] { String::new() } else { format!(", {}", pairs.join(", ")) };
        format!("alpha {}{moved}", self.scales.alpha)
    }
    fn check(&self, block: &BlockSpec) -> Result<(), SettingsError> {
        let has = |pair: &&Pair| block.edges.iter().any(|edge| Pair::of(edge) == **pair);
        match self.pairs.iter().find(|pair| !has(pair)) {
            None => Ok(()),
            Some(pair) => Err(SettingsError::Conflict {
                path: format!("modifiers.{}.pairs", METHOD.id),
                problem: format!(
                    "the blocks of this model have no edge {}, along which a scale could move; leave it out",
                    pair.name()
                ),
            }),
        }
    }
    fn needs(&self, block: &BlockSpec) -> Vec<Need> {
        let need =
            |e: &ScaleEdge| Need { site: e.to, stream: Stream::Float, statistic: Statistic::ChannelMax };
        self.edges(block).map(need).collect()
    }
    fn only_scales(&self) -> bool {
        true
    }
    fn apply(
        &self,
        block: &mut BlockParams,
        statistics: &BTreeMap<Site, SiteStatistics>,
        context: BlockContext<'_>,
    ) -> Result<Scaled, MethodError> {
        // All scales come from the block as it was: dividing rows changes the maxima that another edge looks at.
        let mut found = Vec::new();
        for edge in self.edges(context.block) {
            let fed = context.block.at(edge.to);
            // Nothing to gain where the linears stay float.
            if fed.iter().all(|id| context.scheme.get(id).is_none_or(LinearScheme::is_float)) {
                continue;
            }
            let missing = || MethodError::missing(METHOD.id, "channel maxima");
            let absmax = statistics.get(&edge.to).and_then(|s| s.float.channel_max()).ok_or_else(missing)?;
            let weights = fed.iter().filter_map(|id| match &block.linears.get(id)?.weight {
                LinearWeight::Float(weight) => Some(weight.view()),
                LinearWeight::Quantized(_) | LinearWeight::Binary(_) => None,
            });
            let weights: Vec<_> = weights.collect();
            let tie = HeadTie::of(edge, absmax.view().len());
            found.push((*edge, tied_factors(&self.scales, tie, absmax.view(), &weights)?));
        }
        let mut scaled = Scaled::new();
        for (edge, factors) in found {
            scaled.insert(edge.to, fold(METHOD.id, &edge, factors, block, &context)?);
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
    tied_factors(smooth, None, absmax, weights)
}

/// As [`factors`], `[in]`, equal over the query heads of a `tie`: `A` and `V` are then the largest over those heads.
///
/// # Errors
/// As [`factors`]; a tie of another number of channels.
pub fn tied_factors(
    smooth: &SmoothQuant,
    tie: Option<HeadTie>,
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
    let scale = |a: f32, v: f32| {
        let v = v.max(FLOOR);
        if a == 0.0 && smooth.variant == Variant::Exact {
            return 1.0;
        }
        (pow_f32(a, smooth.alpha) / pow_f32(v, 1.0 - smooth.alpha)).max(floor)
    };
    let scales = |a: ArrayView1<'_, f32>, v: ArrayView1<'_, f32>| {
        a.iter().zip(v).map(|(&a, &v)| scale(a, v)).collect::<Array1<f32>>()
    };
    match tie {
        None => Ok(scales(absmax, largest.view())),
        Some(tie) => {
            let (a, v) = (tie.largest(absmax)?, tie.largest(largest.view())?);
            tie.expand(scales(a.view(), v.view()).view())
        }
    }
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
    divide_norm(METHOD.id, factors, norm, weights, norm_type)
}
