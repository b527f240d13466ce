//! GPTQ: round columns in turn and let the remaining ones make up for the error, weighted by the input's second moments.
//!
//! The solver is [`quant_hessian::gptq`]; this module gives it a recipe's settings.

use crate::{Kind, Method, MethodError, Needs, Rounded, WeightQuantizer};
use ndarray::ArrayView2;
use quant_hessian::{Factor, GptqConfig, gptq};
use quant_kernels::Par;

/// Registry line.
pub static METHOD: Method = Method {
    id: "gptq",
    summary: "rounds column by column with second-order error feedback from calibration activations",
    source: "arXiv 2210.17323",
    kind: Kind::Rounding,
    needs: Needs { hessian: true, channel_max: false },
    tier: 1,
};

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
