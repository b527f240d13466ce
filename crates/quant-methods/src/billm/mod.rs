//! BiLLM: one-bit weights, with a second bit for what salient columns lose.
//!
//! The solver is [`quant_hessian::billm`]; this module gives it a recipe's settings. There is no scheme among them: the method is
//! one for one bit.

use crate::gptq::{DAMPING, FACTOR, factor_workspace, factorised};
use crate::rounding::VARIANT;
use crate::settings::FieldKind;
use crate::{
    Field, Method, MethodError, MethodKind, Modifier, Operations, PlannedRounding, Prepared, Rounded,
    Rounding, Settings, SettingsError, SiteStatistics, Solver, Statistic, Stream, WeightSettings, Workspace,
};
use ndarray::ArrayView2;
use quant_core::{ActOrder, Bits, Convention, CoreError, FloatType, Grid, Scheme, Variant};
use quant_graph::{LinearWeight, WeightForm, WeightScheme, WeightSpec};
use quant_hessian::{
    BillmConfig, Factor, FactorSettings, Precision, SalientMetric, billm, billm_operations,
    billm_workspace_bytes,
};
use quant_kernels::Work;
use std::sync::Arc;

/// Registry line.
pub static METHOD: Method = Method {
    id: "billm",
    summary: "one-bit weights in two sizes, two bits for salient columns, with second-order error feedback between blocks",
    source: "arXiv 2402.04291",
    kind: MethodKind::Rounding,
    build: |settings| Ok(Modifier::rounding(Rounds::read(settings)?)),
    fields: &[
        Field {
            name: "salient_metric",
            kind: FieldKind::Choice(&["hessian", "magnitude"]),
            default: "\"hessian\"",
            help: "what makes a column salient: w²/U_jj² of the Hessian, or |w|",
            run_wide: false,
        },
        Field {
            name: "block_size",
            kind: FieldKind::Integer(2, 1024),
            default: "128",
            help: "columns that share two pairs of mean and spread a row, and among which up to 49 are salient",
            run_wide: false,
        },
        DAMPING,
        VARIANT,
    ],
    tier: 1,
};

/// The modifier of a recipe.
#[derive(Debug)]
struct Rounds {
    weights: WeightSettings,
    config: BillmConfig,
    factor: FactorSettings,
}

impl Rounds {
    fn read(settings: &Settings) -> Result<Self, SettingsError> {
        let variant: Variant = settings.word("variant")?.unwrap_or_default();
        let metric: SalientMetric = settings.word("salient_metric")?.unwrap_or_default();
        let block = settings.integer("block_size")?;
        let scheme =
            Scheme { weights: Some(Bits::ONE), group: Some(block), activations: None, kv_cache: None };
        Ok(Self {
            weights: WeightSettings {
                scheme,
                convention: Convention::QAsym,
                clip: None,
                variant,
                input_shards: 1,
            },
            config: BillmConfig { metric, block, variant, ..BillmConfig::default() },
            factor: FactorSettings { damping: settings.number("damping")?, ..FactorSettings::default() },
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
    /// The published code gathers all Hessians of a block in one pass.
    fn true_sequential(&self) -> bool {
        false
    }
    fn plan(
        &self,
        weight: WeightSpec<'_>,
        scale_type: FloatType,
    ) -> Result<Option<PlannedRounding>, CoreError> {
        let grid = Grid::new(Convention::QAsym, Bits::ONE, Variant::Exact, scale_type)?;
        let inputs = weight.inputs;
        let group = Some(self.config.block).filter(|&block| block < inputs);
        let form = WeightForm::BinaryResidual;
        let weight =
            WeightScheme { bits: Bits::ONE, symmetric: false, group, act_order: ActOrder::None, form };
        // A block is no wider than the row.
        let config = BillmConfig { block: group.unwrap_or(inputs.max(1)), ..self.config.clone() };
        let solver = Arc::new(Billm { config, factor: self.factor });
        Ok(Some(PlannedRounding { weight, grid, solver }))
    }
}

/// Settings of BiLLM on one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Billm {
    /// Settings of the solver.
    pub config: BillmConfig,
    /// How the Hessian of its input becomes a factor.
    pub factor: FactorSettings,
}

impl Solver for Billm {
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
    fn workspace(&self, shape: (usize, usize), _: usize) -> Workspace {
        let weight = billm_workspace_bytes(shape, self.config.block) as u64;
        Workspace { weight, thread: 0, ..factor_workspace(&self.factor, shape.1) }
    }
    fn operations(&self, shape: (usize, usize), _: usize) -> Operations {
        Operations { prepare: FACTOR * (shape.1 as f64).powi(3), round: billm_operations(shape) }
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
        let result = billm(weight, factor, &self.config, par)?;
        let loss = Some(result.loss());
        Ok(Rounded { loss, ..Rounded::new(LinearWeight::Binary(result.matrix)) })
    }
}
