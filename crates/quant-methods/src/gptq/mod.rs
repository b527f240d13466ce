//! GPTQ: round columns in turn and let the remaining ones make up for the error, weighted by the input's second moments.
//!
//! The solver is [`quant_hessian::gptq`]; this module gives it a recipe's settings.

use crate::rounding::{CONVENTION, MSE_CLIP, SCHEME, SYMMETRIC, VARIANT};
use crate::settings::FieldKind;
use crate::{
    Field, Kind, Method, MethodError, PlannedRounding, Rounded, Rounding, Settings, SettingsError,
    WeightQuantizer, WeightSettings,
};
use ndarray::ArrayView2;
use quant_core::{ActOrder, CoreError, FloatType};
use quant_hessian::{Factor, FactorSettings, GptqConfig, Precision, gptq};
use quant_kernels::Par;
use std::sync::Arc;

/// Registry line.
pub static METHOD: Method = Method {
    id: "gptq",
    summary: "rounds column by column with second-order error feedback from calibration activations",
    source: "arXiv 2210.17323",
    kind: Kind::Rounding(|settings| Ok(Arc::new(Modifier::read(settings)?))),
    fields: &[
        SCHEME,
        SYMMETRIC,
        CONVENTION,
        Field {
            name: "actorder",
            kind: FieldKind::Choice(&["none", "static", "dynamic"]),
            default: "\"none\"",
            help: "round columns by descending Hessian diagonal, with groups in memory order (static) or in that order (dynamic)",
            run_wide: false,
        },
        MSE_CLIP,
        Field {
            name: "true_sequential",
            kind: FieldKind::Bool,
            default: "true",
            help: "later linears of a block see the already quantised earlier ones",
            run_wide: true,
        },
        Field {
            name: "damping",
            kind: FieldKind::Number(0.0, 0.9999),
            default: "0.01",
            help: "fraction of the mean Hessian diagonal added to the diagonal; raised by 0.0015 steps if the factorisation fails",
            run_wide: false,
        },
        Field {
            name: "block_size",
            kind: FieldKind::Integer(1, 4096),
            default: "128",
            help: "columns whose updates are applied together; changes rounding only in the last bits, and stale dynamic groups",
            run_wide: false,
        },
        Field {
            name: "factor",
            kind: FieldKind::Choice(&["f32", "f64"]),
            default: "\"f32\"",
            help: "precision of the factorisation; f32 is checked by a residual and retried in f64",
            run_wide: false,
        },
        VARIANT,
    ],
    tier: 1,
};

/// The modifier of a recipe.
#[derive(Debug)]
struct Modifier {
    weights: WeightSettings,
    act_order: ActOrder,
    true_sequential: bool,
    damping: f64,
    block_size: usize,
    precision: Precision,
}

impl Modifier {
    fn read(settings: &Settings) -> Result<Self, SettingsError> {
        Ok(Self {
            weights: WeightSettings::read(settings)?,
            act_order: settings.word("actorder")?.unwrap_or_default(),
            true_sequential: settings.bool("true_sequential")?,
            damping: settings.number("damping")?,
            block_size: settings.integer("block_size")?,
            precision: settings.word("factor")?.unwrap_or_default(),
        })
    }
}

impl Rounding for Modifier {
    fn method(&self) -> &'static Method {
        &METHOD
    }
    fn weights(&self) -> &WeightSettings {
        &self.weights
    }
    fn true_sequential(&self) -> bool {
        self.true_sequential
    }
    fn plan(&self, inputs: usize, scale_type: FloatType) -> Result<Option<PlannedRounding>, CoreError> {
        let stored = self.weights.stored(inputs, scale_type, self.act_order)?;
        Ok(stored.map(|(grid, weight)| {
            let config = GptqConfig {
                group: weight.group,
                clip: self.weights.clip,
                act_order: self.act_order,
                block: self.block_size,
                ..GptqConfig::new(grid)
            };
            let factor = FactorSettings {
                damping: self.damping,
                act_order: self.act_order.permutes(),
                precision: self.precision,
                ..FactorSettings::default()
            };
            PlannedRounding { weight, quantizer: Arc::new(Gptq { config }), factor: Some(factor) }
        }))
    }
}

/// Settings of GPTQ on one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Gptq {
    /// Grid, groups, order and block size of the solver.
    pub config: GptqConfig,
}

impl WeightQuantizer for Gptq {
    fn method(&self) -> &'static Method {
        &METHOD
    }
    fn quantize(
        &self,
        weight: ArrayView2<'_, f32>,
        factor: Option<&Factor>,
        par: Par,
    ) -> Result<Rounded, MethodError> {
        let factor = factor
            .ok_or(MethodError::MissingStatistic { method: METHOD.id, what: "a factorised Hessian" })?;
        let result = gptq(weight, factor, &self.config, par)?;
        let loss = Some(result.loss());
        Ok(Rounded { matrix: result.matrix, loss })
    }
}
