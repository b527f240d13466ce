//! GPTQ: round columns in turn and let the remaining ones make up for the error, weighted by the input's second moments.
//!
//! The solver is [`quant_hessian::gptq`]; this module gives it a recipe's settings.

use crate::rounding::{CONVENTION, INPUT_SHARDS, MSE_CLIP, SCHEME, SYMMETRIC, VARIANT};
use crate::settings::FieldKind;
use crate::{
    Field, Method, MethodError, MethodKind, Modifier, Operations, PlannedRounding, Prepared, Rounded,
    Rounding, Settings, SettingsError, SiteStatistics, Solver, Statistic, Stream, WeightSettings, Workspace,
};
use ndarray::ArrayView2;
use quant_core::{ActOrder, CoreError, FloatType, Variant};
use quant_graph::{WeightScheme, WeightSpec};
use quant_hessian::{Factor, FactorSettings, GptqConfig, Precision, descent_bytes, gptq, prepare};
use quant_kernels::{Par, Work};
use std::sync::Arc;

/// Registry line.
pub static METHOD: Method = Method {
    id: "gptq",
    summary: "rounds column by column with second-order error feedback from calibration activations",
    source: "arXiv 2210.17323",
    kind: MethodKind::Rounding,
    build: |settings| {
        let sweeps = read_sweeps(settings)?;
        Ok(Modifier::rounding(Rounds { sweeps, ..Rounds::read(settings)? }))
    },
    fields: &[
        SCHEME,
        SYMMETRIC,
        CONVENTION,
        ACTORDER,
        STATIC_GROUPS,
        MSE_CLIP,
        TRUE_SEQUENTIAL,
        DAMPING,
        BLOCK_SIZE,
        FACTOR_PRECISION,
        SWEEPS,
        INPUT_SHARDS,
        VARIANT,
    ],
    tier: 1,
};
/// Column order.
pub(crate) const ACTORDER: Field = Field {
    name: "actorder",
    kind: FieldKind::Choice(&["none", "static", "dynamic"]),
    default: "\"none\"",
    help: "round columns by descending Hessian diagonal, with groups in memory order (static) or in that order (dynamic)",
    run_wide: false,
};
/// When scales are found.
pub(crate) const STATIC_GROUPS: Field = Field {
    name: "static_groups",
    kind: FieldKind::Bool,
    default: "null",
    help: "find scales and zeros of all groups before the column loop; follows actorder, which is true for static and false for \
           dynamic; default false for none",
    run_wide: false,
};
/// What comes after the column loop.
pub(crate) const SWEEPS: Field = Field {
    name: "sweeps",
    kind: FieldKind::Integer(0, 100),
    default: "0",
    help: "sweeps over the rounded weight that look at every level, scale and zero level again given all the others; 0 is the \
           published method, a few gain most at 2 and 3 bits",
    run_wide: false,
};

/// Reads [`SWEEPS`].
pub(crate) fn read_sweeps(settings: &Settings) -> Result<usize, SettingsError> {
    let sweeps = settings.integer("sweeps")?;
    let conflict = |problem: &str| {
        Err(SettingsError::Conflict { path: settings.path().to_owned(), problem: problem.to_owned() })
    };
    if sweeps > 0 && settings.word::<Variant>("variant")? == Some(Variant::Official) {
        return conflict("sweeps are not in the published code; drop them or variant: official");
    }
    if sweeps > 0 && settings.word::<ActOrder>("actorder")? == Some(ActOrder::Dynamic) {
        return conflict("sweeps need groups of consecutive columns; use actorder: static or none");
    }
    Ok(sweeps)
}

/// Whether later linears see earlier ones quantised.
pub(crate) const TRUE_SEQUENTIAL: Field = Field {
    name: "true_sequential",
    kind: FieldKind::Bool,
    default: "true",
    help: "later linears of a block see the already quantised earlier ones",
    run_wide: true,
};
/// Damping of the Hessian.
pub(crate) const DAMPING: Field = Field {
    name: "damping",
    kind: FieldKind::Number(0.0, 0.9999),
    default: "0.01",
    help: "fraction of the mean Hessian diagonal added to the diagonal; raised by 0.0015 steps if the factorisation fails",
    run_wide: false,
};
/// Columns of a block.
pub(crate) const BLOCK_SIZE: Field = Field {
    name: "block_size",
    kind: FieldKind::Integer(1, 4096),
    default: "128",
    help: "columns whose updates are applied together; changes rounding only in the last bits, and stale dynamic groups",
    run_wide: false,
};
/// Arithmetic of the factorisation.
pub(crate) const FACTOR_PRECISION: Field = Field {
    name: "factor",
    kind: FieldKind::Choice(&["f32", "f64"]),
    default: "\"f32\"",
    help: "precision of the factorisation; f32 is checked by a residual and retried in f64",
    run_wide: false,
};

/// The modifier of a recipe.
#[derive(Debug)]
pub(crate) struct Rounds {
    pub(crate) weights: WeightSettings,
    pub(crate) act_order: ActOrder,
    static_groups: bool,
    sweeps: usize,
    pub(crate) true_sequential: bool,
    damping: f64,
    block_size: usize,
    precision: Precision,
}

impl Rounds {
    pub(crate) fn read(settings: &Settings) -> Result<Self, SettingsError> {
        let act_order: ActOrder = settings.word("actorder")?.unwrap_or_default();
        let static_groups = settings.bool_opt("static_groups")?;
        let weights = WeightSettings::read(settings)?;
        let sharded = weights.input_shards > 1;
        let contradicted = match (act_order, static_groups) {
            (ActOrder::Dynamic, _) if sharded => {
                Some("the groups of actorder: dynamic run across the shards of input_shards")
            }
            (ActOrder::Static, Some(false)) => Some("static_groups: false contradicts actorder: static"),
            (ActOrder::Dynamic, Some(true)) => Some("static_groups: true contradicts actorder: dynamic"),
            _ => None,
        };
        if let Some(what) = contradicted {
            let (path, problem) = (settings.path().to_owned(), format!("{what}; drop one of them"));
            return Err(SettingsError::Conflict { path, problem });
        }
        Ok(Self {
            weights,
            act_order,
            static_groups: static_groups.unwrap_or(act_order == ActOrder::Static),
            sweeps: 0,
            true_sequential: settings.bool("true_sequential")?,
            damping: settings.number("damping")?,
            block_size: settings.integer("block_size")?,
            precision: settings.word("factor")?.unwrap_or_default(),
        })
    }
}

impl Rounds {
    /// How the weight of a linear is stored, and the settings of solver and factor.
    pub(crate) fn solver_of(
        &self,
        weight: WeightSpec<'_>,
        scale_type: FloatType,
    ) -> Result<Option<(WeightScheme, GptqConfig, FactorSettings)>, CoreError> {
        let stored = self.weights.stored(weight, scale_type, self.act_order)?;
        Ok(stored.map(|(grid, weight)| {
            let config = GptqConfig {
                group: weight.group,
                clip: self.weights.clip,
                act_order: self.act_order,
                static_groups: self.static_groups,
                sweeps: self.sweeps,
                block: self.block_size,
                ..GptqConfig::new(grid)
            };
            let factor = FactorSettings {
                damping: self.damping,
                act_order: self.act_order.permutes(),
                precision: self.precision,
                keep_matrix: self.sweeps > 0,
                ..FactorSettings::default()
            };
            (weight, config, factor)
        }))
    }
}

impl Rounding for Rounds {
    fn method(&self) -> &'static Method {
        &METHOD
    }
    fn weights(&self) -> &WeightSettings {
        &self.weights
    }
    fn true_sequential(&self) -> bool {
        self.true_sequential
    }
    fn plan(
        &self,
        weight: WeightSpec<'_>,
        scale_type: FloatType,
    ) -> Result<Option<PlannedRounding>, CoreError> {
        let solver = self.solver_of(weight, scale_type)?;
        Ok(solver.map(|(weight, config, factor)| PlannedRounding {
            weight,
            grid: config.grid,
            solver: Arc::new(Gptq { config, factor }),
        }))
    }
}

/// Settings of GPTQ on one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Gptq {
    /// Grid, groups, order and block size of the solver.
    pub config: GptqConfig,
    /// How the Hessian of its input becomes a factor.
    pub factor: FactorSettings,
}

impl Solver for Gptq {
    fn method(&self) -> &'static Method {
        &METHOD
    }
    fn needs(&self) -> Vec<(Stream, Statistic)> {
        vec![(Stream::Deployed, Statistic::Gram)]
    }
    fn sharing_key(&self) -> String {
        format!("{:?}", self.factor)
    }
    fn precision(&self) -> Option<Precision> {
        Some(self.factor.precision)
    }
    fn workspace(&self, (_, inputs): (usize, usize), _: usize) -> Workspace {
        loop_workspace(&self.config, &self.factor, inputs)
    }
    fn operations(&self, (outputs, inputs): (usize, usize), _: usize) -> Operations {
        let n = inputs as f64;
        let each = outputs as f64 * n * n;
        Operations { prepare: FACTOR * n.powi(3), round: each + sweep_operations(self.config.sweeps) * each }
    }
    fn prepare(
        &self,
        statistics: &mut SiteStatistics,
        _: usize,
        work: Work<'_>,
    ) -> Result<Prepared, MethodError> {
        let par = work.par;
        factorised(METHOD.id, statistics, &self.factor, par)
    }
    fn round(
        &self,
        weight: ArrayView2<'_, f32>,
        prepared: &Prepared,
        work: Work<'_>,
    ) -> Result<Rounded, MethodError> {
        let par = work.par;
        let factor = prepared.state::<Factor>(&METHOD)?;
        let result = gptq(weight, factor, &self.config, par)?;
        let loss = Some(result.loss());
        Ok(Rounded { loss, ..Rounded::levels(result.matrix) })
    }
    fn rows_alone(&self) -> bool {
        true
    }
}

/// The factor of the deployed input's second moments, which are used up.
pub(crate) fn factorised(
    method: &'static str,
    statistics: &mut SiteStatistics,
    settings: &FactorSettings,
    par: Par,
) -> Result<Prepared, MethodError> {
    let factor = prepare(statistics.deployed.take_gram(method)?, settings, par)?;
    let report = factor.report().clone();
    Ok(Prepared::new(factor, Some(report)))
}

/// A factorisation in operations of a product, over `n³`: half the work at the full rate (measured).
pub(crate) const FACTOR: f64 = 0.5;

/// Sweeps and the loss behind them, in column loops of the same weight.
pub(crate) fn sweep_operations(sweeps: usize) -> f64 {
    if sweeps > 0 { 2.0 * (sweeps + 1) as f64 } else { 0.0 }
}

/// What factorising a Hessian, a column loop over its factor and the sweeps behind that hold.
pub(crate) fn loop_workspace(config: &GptqConfig, settings: &FactorSettings, inputs: usize) -> Workspace {
    let workspace = factor_workspace(settings, inputs);
    let sweeping = if config.sweeps > 0 { descent_bytes(inputs, config.group, Par::Seq) as u64 } else { 0 };
    Workspace { thread: workspace.thread + sweeping, ..workspace }
}

/// What factorising a Hessian and a column loop over its factor hold.
pub(crate) fn factor_workspace(settings: &FactorSettings, inputs: usize) -> Workspace {
    let peak = |f64_retry| {
        let settings = FactorSettings { f64_retry, ..*settings };
        Factor::peak_bytes(inputs, &settings) as u64
    };
    Workspace {
        prepare: peak(false),
        retry: peak(settings.f64_retry) - peak(false),
        prepared: (size_of::<f32>() * (inputs * inputs / 2) + Factor::matrix_bytes(inputs, settings)) as u64,
        weight: 0,
        thread: quant_hessian::workspace_bytes(inputs, Par::Seq) as u64,
    }
}
