//! Rounding of the linears of one stage, and what it cost.

use super::measure::{Errors, errors};
use super::stats::{InputStats, dynamic_kv, scheme_text};
use super::{Run, add_seconds};
use crate::PipelineError;
use crate::events::Event;
use crate::plan::LinearPlan;
use crate::report::{LinearReport, StageFactor};
use ndarray::ArrayView2;
use quant_core::{ActQuant, QuantizedMatrix};
use quant_graph::{BlockParams, LinearParams, LinearWeight, Role, Site};
use quant_hessian::{Factor, prepare};
use std::time::Instant;

impl Run<'_> {
    /// Quantises a block whose recipe needs no activations.
    pub(super) fn quantize_alone(
        &mut self,
        index: usize,
        mut block: BlockParams,
    ) -> Result<BlockParams, PipelineError> {
        self.phase("round")?;
        for role in Role::ALL {
            if let Some(params) = block.linears.remove(&role) {
                let input = self.plan.blocks[index][&role].scheme.input.and_then(|i| i.dynamic());
                block.linears.insert(role, self.round_linear(index, role, params, None, input, None)?);
            }
        }
        block.kv = dynamic_kv(self.plan.scheme.kv);
        Ok(block)
    }

    /// Rounds the linears of a stage with the statistics of their input, from `pending` to the returned list.
    pub(super) fn round_stage(
        &mut self,
        index: usize,
        site: Site,
        pending: &mut BlockParams,
        mut stats: InputStats,
    ) -> Result<Vec<(Role, LinearParams)>, PipelineError> {
        let roles = site.stage().linears;
        let factor = match stats.hessian.take() {
            None => None,
            Some(hessian) => {
                self.phase("factor")?;
                let started = Instant::now();
                let by = |role: &&Role| {
                    let rounding = self.plan.blocks[index][*role].rounding.as_ref();
                    rounding.is_some_and(|r| r.quantizer().method().needs.hessian)
                };
                let role = roles.iter().find(by).unwrap_or(&roles[0]);
                let plan = &self.plan.blocks[index][role];
                let factor = prepare(hessian, &plan.factor, self.par())
                    .map_err(PipelineError::hessian(plan.module.clone()))?;
                self.report.factors.push(StageFactor {
                    block: index,
                    module: plan.module.clone(),
                    factor: factor.report().clone(),
                });
                add_seconds(&mut self.report.seconds, "factor", started);
                Some(factor)
            }
        };
        self.phase("round")?;
        let mut done = Vec::new();
        for &role in roles {
            let Some(params) = pending.linears.remove(&role) else { continue };
            let scheme = self.plan.blocks[index][&role].scheme;
            let input = scheme.input.and_then(|i| stats.input_quant(i, self.plan.scale_type));
            let params =
                self.round_linear(index, role, params, factor.as_ref(), input, Some(stats.sample.view()))?;
            done.push((role, params));
        }
        Ok(done)
    }

    fn round_linear(
        &mut self,
        index: usize,
        role: Role,
        params: LinearParams,
        factor: Option<&Factor>,
        input: Option<ActQuant>,
        sample: Option<ArrayView2<'_, f32>>,
    ) -> Result<LinearParams, PipelineError> {
        self.go_on()?;
        let plan = &self.plan.blocks[index][&role];
        let par = self.par();
        let started = Instant::now();
        let weight = params.weight.into_values();
        let (rounded, loss) = match &plan.rounding {
            None => (None, None),
            Some(rounding) => {
                let rounded = rounding
                    .quantizer()
                    .quantize(weight.view(), factor, par)
                    .map_err(PipelineError::method(plan.module.clone()))?;
                (Some(rounded.matrix), rounded.loss)
            }
        };
        let seconds = started.elapsed().as_secs_f64();
        add_seconds(&mut self.report.seconds, "round", started);
        let started = Instant::now();
        let errors = errors(&weight, rounded.as_ref(), sample, input.as_ref(), par);
        let report = linear_report(plan, index, rounded.as_ref(), errors, loss, seconds, self);
        self.events.event(Event::Linear(&report));
        self.report.linears.push(report);
        add_seconds(&mut self.report.seconds, "measure", started);
        let weight = rounded.map_or(LinearWeight::Float(weight), LinearWeight::Quantized);
        Ok(LinearParams { weight, bias: params.bias, input })
    }
}

fn linear_report(
    plan: &LinearPlan,
    block: usize,
    rounded: Option<&QuantizedMatrix>,
    errors: Errors,
    loss: Option<f64>,
    seconds: f64,
    run: &Run<'_>,
) -> LinearReport {
    let float_bits = 8 * run.plan.norm_type.size();
    let scheme = plan.scheme;
    LinearReport {
        module: plan.module.clone(),
        block,
        method: plan.rounding.as_ref().map(|r| r.quantizer().method().id),
        scheme: scheme_text(
            scheme.weight.map(|w| w.bits),
            scheme.weight.and_then(|w| w.group),
            scheme.input.map(|i| i.bits),
        ),
        bits_per_weight: rounded
            .map_or(float_bits as f64, |q| q.bits_per_weight(8 * run.plan.scale_type.size())),
        weight_error: errors.weight,
        output_error: errors.output,
        loss,
        seconds,
    }
}
