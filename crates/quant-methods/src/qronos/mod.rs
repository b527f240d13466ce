//! Qronos: GPTQ's loop on the weight that answers the whole mismatch between the float and the quantised model.
//!
//! The solver is [`quant_hessian::qronos`]; this module gives it a recipe's settings (arXiv 2505.11695). It takes the second
//! moments and cross moments that GPTAQ takes, but all of the latter, and where GPTAQ lets the residual of a column move to
//! later columns only, it moves the weight to its least squares optimum before anything is rounded.

use crate::gptq::{FACTOR, SWEEPS, loop_workspace, read_sweeps, sweep_operations};
use crate::rounding::{CONVENTION, INPUT_SHARDS, MSE_CLIP, SCHEME, SYMMETRIC, VARIANT};
use crate::settings::FieldKind;
use crate::{
    Field, Figures, FloatStream, Method, MethodError, MethodKind, Modifier, Operations, PlannedRounding,
    Prepared, Rounded, Rounding, Settings, SettingsError, SiteStatistics, Solver, Statistic, Stream,
    WeightSettings, Workspace,
};
use ndarray::ArrayView2;
use quant_core::{ActOrder, CoreError, FloatType, QuantizedMatrix, Variant};
use quant_graph::WeightSpec;
use quant_hessian::{
    DampingUnit, Factor, FactorSettings, GptqConfig, Precision, QronosConfig, Retarget, prepare, qronos,
    qronos_workspace_bytes,
};
use quant_kernels::{Par, Work};
use std::sync::Arc;

/// Registry line.
pub static METHOD: Method = Method {
    id: "qronos",
    summary: "moves the weight to the optimum for its changed inputs, then rounds it as GPTQ does",
    source: "arXiv 2505.11695",
    kind: MethodKind::Rounding,
    build: |settings| Ok(Modifier::rounding(Rounds::read(settings)?)),
    fields: &[
        SCHEME,
        SYMMETRIC,
        CONVENTION,
        Field {
            name: "alpha",
            kind: FieldKind::Number(0.0, 0.9999),
            default: "null",
            help: "fraction of the largest Hessian eigenvalue added to the diagonal: how little the weight may move; default 1e-3, \
                   1e-6 with variant official; tenfold if the factorisation fails",
            run_wide: false,
        },
        Field {
            name: "float_stream",
            kind: FieldKind::Choice(&["model", "block"]),
            default: "\"model\"",
            help: "activations to answer: those of the float model, or of the block's float weights on its quantised input",
            run_wide: false,
        },
        MSE_CLIP,
        Field {
            name: "actorder",
            kind: FieldKind::Choice(&["none", "static"]),
            default: "\"none\"",
            help: "static: round columns by descending Hessian diagonal, with groups in memory order",
            run_wide: false,
        },
        Field {
            name: "factor",
            kind: FieldKind::Choice(&["f32", "f64"]),
            default: "\"f64\"",
            help: "precision of the factorisation; f32 is checked by a residual and retried in f64",
            run_wide: false,
        },
        SWEEPS,
        INPUT_SHARDS,
        VARIANT,
    ],
    tier: 1,
};

/// The modifier of a recipe.
#[derive(Debug)]
struct Rounds {
    weights: WeightSettings,
    alpha: f64,
    float_stream: FloatStream,
    act_order: ActOrder,
    precision: Precision,
    sweeps: usize,
}

impl Rounds {
    fn read(settings: &Settings) -> Result<Self, SettingsError> {
        let weights = WeightSettings::read(settings)?;
        let usual = if weights.variant == Variant::Official { 1e-6 } else { 1e-3 };
        Ok(Self {
            weights,
            alpha: if settings.given("alpha").is_some() { settings.number("alpha")? } else { usual },
            float_stream: settings.word("float_stream")?.unwrap_or_default(),
            act_order: settings.word("actorder")?.unwrap_or_default(),
            precision: settings.word("factor")?.unwrap_or_default(),
            sweeps: read_sweeps(settings)?,
        })
    }
}

impl Rounding for Rounds {
    fn method(&self) -> &'static Method {
        &METHOD
    }
    fn weights(&self) -> &WeightSettings {
        &self.weights
    }
    fn plan(
        &self,
        weight: WeightSpec<'_>,
        scale_type: FloatType,
    ) -> Result<Option<PlannedRounding>, CoreError> {
        let stored = self.weights.stored(weight, scale_type, self.act_order)?;
        Ok(stored.map(|(grid, weight)| {
            let gptq = GptqConfig {
                group: weight.group,
                clip: self.weights.clip,
                act_order: self.act_order,
                sweeps: self.sweeps,
                ..GptqConfig::new(grid)
            };
            let config = QronosConfig { variant: self.weights.variant, ..QronosConfig::new(gptq) };
            let factor = FactorSettings {
                damping: self.alpha,
                damping_unit: DampingUnit::LargestEigenvalue,
                act_order: self.act_order.permutes(),
                precision: self.precision,
                keep_matrix: self.sweeps > 0,
                ..FactorSettings::default()
            };
            let solver = Qronos { config, factor, float_stream: self.float_stream };
            PlannedRounding { weight, grid, solver: Arc::new(solver) }
        }))
    }
}

/// Settings of Qronos on one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Qronos {
    /// Settings of the solver.
    pub config: QronosConfig,
    /// How the Hessian of its input becomes a factor.
    pub factor: FactorSettings,
    /// Whose outputs it answers.
    pub float_stream: FloatStream,
}

/// What the linears of a stage share.
struct State {
    factor: Factor,
    retarget: Retarget,
}

impl Solver for Qronos {
    fn method(&self) -> &'static Method {
        &METHOD
    }
    fn needs(&self) -> Vec<(Stream, Statistic)> {
        let cross = Statistic::CrossGram { below: true, float: self.float_stream };
        vec![(Stream::Deployed, Statistic::Gram), (Stream::Deployed, cross)]
    }
    fn sharing_key(&self) -> String {
        format!("{:?}", self.factor)
    }
    fn precision(&self) -> Option<Precision> {
        Some(self.factor.precision)
    }
    fn tokens_wanted(&self, inputs: usize) -> usize {
        // `D H_d⁻¹` is a regression with as many unknowns per output as there are inputs.
        10 * inputs
    }
    fn workspace(&self, shape: (usize, usize), _: usize) -> Workspace {
        let (_, inputs) = shape;
        let gptq = loop_workspace(&self.config.gptq, &self.factor, inputs);
        let square = Retarget::bytes_for(inputs) as u64;
        let solving = Retarget::peak_bytes(inputs, self.factor.act_order) as u64;
        let own = qronos_workspace_bytes(shape, Par::Seq) - quant_hessian::workspace_bytes(inputs, Par::Seq);
        Workspace {
            // The cross moments wait while the Hessian is factorised, and the factor while they are solved with.
            prepare: (gptq.prepare + square).max(gptq.prepared + solving),
            retry: gptq.retry,
            prepared: gptq.prepared + square,
            weight: own as u64,
            thread: gptq.thread,
        }
    }
    fn operations(&self, (outputs, inputs): (usize, usize), _: usize) -> Operations {
        let (n, rows) = (inputs as f64, outputs as f64);
        // A product with `D`, and two triangular solves: of the weight, or once for all weights.
        let solves = 2.0 * n * n * rows.min(n);
        let sweeping = sweep_operations(self.config.gptq.sweeps);
        Operations { prepare: FACTOR * n.powi(3), round: (1.0 + 2.0 + sweeping) * rows * n * n + solves }
    }
    fn prepare(
        &self,
        statistics: &mut SiteStatistics,
        rows: usize,
        work: Work<'_>,
    ) -> Result<Prepared, MethodError> {
        let par = work.par;
        let cross = statistics.deployed.take_cross(METHOD.id)?;
        let factor = prepare(statistics.deployed.take_gram(METHOD.id)?, &self.factor, par)?;
        let retarget = Retarget::new(cross, &factor, rows, par)?;
        let report = factor.report().clone();
        Ok(Prepared::new(State { factor, retarget }, Some(report)))
    }
    fn round(
        &self,
        weight: ArrayView2<'_, f32>,
        prepared: &Prepared,
        work: Work<'_>,
    ) -> Result<Rounded, MethodError> {
        let par = work.par;
        let State { factor, retarget } = prepared.state(&METHOD)?;
        let result = qronos(weight, factor, retarget, &self.config, par)?;
        let (loss, matrix) = (Some(result.rounded.loss()), result.rounded.matrix);
        let figures = Figures::from([("shift", result.shift), ("at_range_ends", at_range_ends(&matrix))]);
        Ok(Rounded { loss, figures, ..Rounded::levels(matrix) })
    }
}

/// Share of the codes that are the lowest or the highest of their grid: where many are, the weight has left the range that its
/// grid was laid for.
fn at_range_ends(matrix: &QuantizedMatrix) -> f64 {
    let top = matrix.bits().max_level() as u8;
    let levels = matrix.levels();
    let ends = levels.iter().filter(|&&level| level == 0 || level == top).count();
    ends as f64 / levels.len().max(1) as f64
}
