//! GPTAQ: GPTQ towards the outputs of the float model, whose inputs differ from those the quantised model will see.
//!
//! The solver is [`quant_hessian::gptaq`]; this module gives it a recipe's settings. `‖W X_f − Ŵ X‖²` in place of `‖W X − Ŵ X‖²`
//! (arXiv 2504.02692): beside the second moments of the inputs it asks for their cross moments with those of the float model,
//! so that both activation streams go through a block in step.

use crate::gptq::{
    ACTORDER, BLOCK_SIZE, DAMPING, FACTOR, FACTOR_PRECISION, Rounds as GptqRounds, STATIC_GROUPS,
    TRUE_SEQUENTIAL, factor_workspace,
};
use crate::rounding::{CONVENTION, INPUT_SHARDS, MSE_CLIP, SCHEME, SYMMETRIC, VARIANT};
use crate::settings::FieldKind;
use crate::{
    Field, Figures, FloatStream, Method, MethodError, MethodKind, Modifier, Operations, PlannedRounding,
    Prepared, Rounded, Rounding, Settings, SettingsError, SiteStatistics, Solver, Statistic, Stream,
    WeightSettings, Workspace,
};
use ndarray::ArrayView2;
use quant_core::{CoreError, FloatType};
use quant_graph::WeightSpec;
use quant_hessian::{
    Correction, Factor, FactorSettings, GptaqConfig, Precision, gptaq, gptaq_workspace_bytes, prepare,
};
use quant_kernels::{Par, Work};
use std::sync::Arc;

/// Registry line.
pub static METHOD: Method = Method {
    id: "gptaq",
    summary: "GPTQ that also makes up for what earlier rounding did to its inputs, from float and quantised activations",
    source: "arXiv 2504.02692",
    kind: MethodKind::Rounding,
    build: |settings| Ok(Modifier::rounding(Rounds::read(settings)?)),
    fields: &[
        SCHEME,
        SYMMETRIC,
        CONVENTION,
        Field {
            name: "alpha",
            kind: FieldKind::Number(0.0, 4.0),
            default: "0.25",
            help: "strength of the correction; 0 is GPTQ, 1 the paper's equation, 0.25 what its code uses",
            run_wide: false,
        },
        ACTORDER,
        STATIC_GROUPS,
        MSE_CLIP,
        TRUE_SEQUENTIAL,
        DAMPING,
        BLOCK_SIZE,
        FACTOR_PRECISION,
        INPUT_SHARDS,
        VARIANT,
    ],
    tier: 1,
};

/// Name of the figure `‖Ŵ‖ / ‖W‖`.
const GROWTH: &str = "growth";
/// Beyond this the correction does harm: it is large where both streams are far apart, and nothing bounds it.
const LARGEST_GROWTH: f64 = 1.5;

/// The modifier of a recipe.
#[derive(Debug)]
struct Rounds {
    gptq: GptqRounds,
    alpha: f64,
}

impl Rounds {
    fn read(settings: &Settings) -> Result<Self, SettingsError> {
        Ok(Self { gptq: GptqRounds::read(settings)?, alpha: settings.number("alpha")? })
    }
}

impl Rounding for Rounds {
    fn method(&self) -> &'static Method {
        &METHOD
    }
    fn weights(&self) -> &WeightSettings {
        &self.gptq.weights
    }
    fn true_sequential(&self) -> bool {
        self.gptq.true_sequential
    }
    fn plan(
        &self,
        weight: WeightSpec<'_>,
        scale_type: FloatType,
    ) -> Result<Option<PlannedRounding>, CoreError> {
        let solver = self.gptq.solver_of(weight, scale_type)?;
        Ok(solver.map(|(weight, gptq, factor)| {
            let grid = gptq.grid;
            let config = GptaqConfig { gptq, alpha: self.alpha, variant: self.gptq.weights.variant };
            PlannedRounding { weight, grid, solver: Arc::new(Gptaq { config, factor }) }
        }))
    }
}

/// Settings of GPTAQ on one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Gptaq {
    /// Settings of the solver.
    pub config: GptaqConfig,
    /// How the Hessian of its input becomes a factor.
    pub factor: FactorSettings,
}

/// What the linears of a stage share.
struct State {
    factor: Factor,
    correction: Correction,
}

impl Solver for Gptaq {
    fn method(&self) -> &'static Method {
        &METHOD
    }
    fn needs(&self) -> Vec<(Stream, Statistic)> {
        let below = self.factor.act_order;
        vec![
            (Stream::Deployed, Statistic::Gram),
            (Stream::Deployed, Statistic::CrossGram { below, float: FloatStream::Model }),
        ]
    }
    fn sharing_key(&self) -> String {
        format!("{:?}, alpha {}, {:?}", self.factor, self.config.alpha, self.config.variant)
    }
    fn precision(&self) -> Option<Precision> {
        Some(self.factor.precision)
    }
    fn workspace(&self, (_, inputs): (usize, usize), _: usize) -> Workspace {
        let gptq = factor_workspace(&self.factor, inputs);
        let cross = quant_hessian::CrossGram::bytes_for(inputs, self.factor.act_order) as u64;
        let correcting = Correction::peak_bytes(inputs, self.factor.act_order) as u64;
        Workspace {
            // The cross moments wait while the Hessian is factorised, and the factor while they are solved with.
            prepare: (gptq.prepare + cross).max(gptq.prepared + correcting),
            retry: gptq.retry,
            prepared: gptq.prepared + Correction::bytes_for(inputs) as u64,
            weight: 0,
            thread: gptaq_workspace_bytes(inputs, self.config.variant, Par::Seq) as u64,
        }
    }
    fn operations(&self, (outputs, inputs): (usize, usize), _: usize) -> Operations {
        let n = inputs as f64;
        // A triangular solve more, of half a triangle, and a second feedback in the column loop.
        Operations { prepare: (FACTOR + 1.0 / 3.0) * n.powi(3), round: 2.0 * outputs as f64 * n * n }
    }
    fn prepare(
        &self,
        statistics: &mut SiteStatistics,
        _: usize,
        work: Work<'_>,
    ) -> Result<Prepared, MethodError> {
        let par = work.par;
        let cross = statistics.deployed.take_cross(METHOD.id)?;
        let factor = prepare(statistics.deployed.take_gram(METHOD.id)?, &self.factor, par)?;
        let GptaqConfig { alpha, variant, .. } = self.config;
        let correction = Correction::new(cross, &factor, alpha, variant, par)?;
        let report = factor.report().clone();
        Ok(Prepared::new(State { factor, correction }, Some(report)))
    }
    fn round(
        &self,
        weight: ArrayView2<'_, f32>,
        prepared: &Prepared,
        work: Work<'_>,
    ) -> Result<Rounded, MethodError> {
        let par = work.par;
        let State { factor, correction } = prepared.state(&METHOD)?;
        let result = gptaq(weight, factor, correction, &self.config, par)?;
        let (loss, figures) = (Some(result.loss()), Figures::from([(GROWTH, result.growth(weight, par))]));
        Ok(Rounded { loss, figures, ..Rounded::levels(result.matrix) })
    }
    fn doubt(&self, figure: &dyn Fn(&str) -> Option<f64>) -> Option<String> {
        let growth = figure(GROWTH).filter(|&growth| growth > LARGEST_GROWTH)?;
        Some(format!(
            "gptaq made the weight {growth:.1} times as large as it was, to make up for inputs that are far from those of the float \
             model; give it a smaller alpha than {}, more bits, or gptq",
            self.config.alpha
        ))
    }
}
