//! Rounding of the linears of one stage, and what it cost.

use super::measure::{Errors, Measure, errors};
use super::stats::{InputStats, dynamic_kv, scheme_text};
use super::{Run, add_seconds};
use crate::PipelineError;
use crate::events::Event;
use crate::plan::{LinearPlan, Plan};
use crate::report::{LinearReport, StageFactor};
use crate::views;
use ndarray::{Array2, ArrayView2};
use quant_core::{ActQuant, QuantizedMatrix};
use quant_graph::{BlockParams, BlockSource, BoxError, LinearParams, LinearSpec, LinearWeight, Role, Site};
use quant_hessian::{Factor, prepare};
use quant_kernels::Par;
use quant_methods::RowRounding;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

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

    /// Reads and quantises a block in one pass over the rows of its weights, which are never in memory as floats.
    pub(super) fn quantize_by_rows(
        &mut self,
        index: usize,
        source: &mut dyn BlockSource,
        mut pending: BTreeMap<Role, RowByRow<'_>>,
    ) -> Result<BlockParams, PipelineError> {
        self.phase("round")?;
        let started = Instant::now();
        let (plan, par) = (self.plan, self.par());
        let mut visit = |role: Role, first: usize, rows: ArrayView2<'_, f32>| -> Result<(), BoxError> {
            match pending.get_mut(&role) {
                Some(linear) => Ok(linear.rows(first, rows, par)?),
                None => Ok(()),
            }
        };
        let mut frame = source.block_by_rows(index, &mut visit)?;
        let mut worked = Duration::ZERO;
        let mut linears = BTreeMap::new();
        for (role, done) in pending {
            worked += done.rounding + done.measuring;
            add_seconds(&mut self.report.seconds, "round", done.rounding);
            add_seconds(&mut self.report.seconds, "measure", done.measuring);
            let linear_plan = &plan.blocks[index][&role];
            let (seconds, errors) = (done.rounding.as_secs_f64(), done.measure.finish());
            let weight = done.weight.finish();
            let report = linear_report(linear_plan, index, weight.quantized(), errors, None, seconds, self);
            self.events.event(Event::Linear(&report));
            self.report.linears.push(report);
            let input = linear_plan.scheme.input.and_then(|i| i.dynamic());
            linears.insert(role, LinearParams { weight, bias: frame.biases.remove(&role), input });
        }
        add_seconds(&mut self.report.seconds, "read", started.elapsed().saturating_sub(worked));
        Ok(BlockParams { linears, norms: frame.norms, kv: dynamic_kv(plan.scheme.kv) })
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
                let by = |role: &&Role| self.plan.blocks[index][*role].factor().is_some();
                let role = roles.iter().find(by).unwrap_or(&roles[0]);
                let plan = &self.plan.blocks[index][role];
                let settings = plan.factor().copied().unwrap_or_default();
                let factor = prepare(hessian, &settings, self.par())
                    .map_err(PipelineError::hessian(plan.module.clone()))?;
                self.report.factors.push(StageFactor {
                    block: index,
                    module: plan.module.clone(),
                    factor: factor.report().clone(),
                });
                add_seconds(&mut self.report.seconds, "factor", started.elapsed());
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
                    .quantizer
                    .quantize(weight.view(), factor, par)
                    .map_err(PipelineError::method(plan.module.clone()))?;
                (Some(rounded.matrix), rounded.loss)
            }
        };
        let seconds = started.elapsed().as_secs_f64();
        add_seconds(&mut self.report.seconds, "round", started.elapsed());
        let started = Instant::now();
        let errors = errors(weight.view(), rounded.as_ref(), sample, input.as_ref(), par);
        let report = linear_report(plan, index, rounded.as_ref(), errors, loss, seconds, self);
        self.events.event(Event::Linear(&report));
        self.report.linears.push(report);
        add_seconds(&mut self.report.seconds, "measure", started.elapsed());
        let weight = rounded.map_or(LinearWeight::Float(weight), LinearWeight::Quantized);
        Ok(LinearParams { weight, bias: params.bias, input })
    }
}

/// The linears of a block whose weights can be rounded as their rows are read: nothing else has to see them. None where
/// something has.
pub(super) fn row_by_row(plan: &Plan, index: usize) -> Option<BTreeMap<Role, RowByRow<'_>>> {
    if plan.needs.calibration() || !plan.recipe.transforms().is_empty() {
        return None;
    }
    let linears = plan.blocks[index].iter();
    linears.map(|(&role, linear)| Some((role, RowByRow::new(linear, plan.spec.linear(role))?))).collect()
}

/// A linear whose weight arrives some rows at a time.
pub(super) struct RowByRow<'a> {
    module: &'a str,
    weight: PendingWeight,
    measure: Measure,
    rounding: Duration,
    measuring: Duration,
}

enum PendingWeight {
    Rounding(Box<dyn RowRounding>),
    Float(Array2<f32>),
}

impl PendingWeight {
    fn finish(self) -> LinearWeight {
        match self {
            Self::Rounding(rounding) => LinearWeight::Quantized(rounding.finish()),
            Self::Float(values) => LinearWeight::Float(values),
        }
    }
}

impl<'a> RowByRow<'a> {
    /// None for a rounding that wants the whole weight.
    fn new(plan: &'a LinearPlan, linear: LinearSpec) -> Option<Self> {
        let shape = (linear.outputs, linear.inputs);
        let weight = match &plan.rounding {
            Some(rounding) => PendingWeight::Rounding(rounding.quantizer.by_rows(shape)?),
            None => PendingWeight::Float(Array2::zeros(shape)),
        };
        Some(Self {
            module: &plan.module,
            weight,
            measure: Measure::default(),
            rounding: Duration::ZERO,
            measuring: Duration::ZERO,
        })
    }

    fn rows(&mut self, first: usize, rows: ArrayView2<'_, f32>, par: Par) -> Result<(), PipelineError> {
        let started = Instant::now();
        let rounded = match &mut self.weight {
            PendingWeight::Rounding(rounding) => {
                rounding.rows(first, rows, par).map_err(PipelineError::method(self.module))?;
                Some(rounding.matrix())
            }
            PendingWeight::Float(values) => {
                views::rows_mut(values, first..first + rows.nrows()).assign(&rows);
                None
            }
        };
        let after = Instant::now();
        self.measure.rows(first, rows, rounded, par);
        self.rounding += after - started;
        self.measuring += after.elapsed();
        Ok(())
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
    // Scales are stored as wide as the floats of the model, also where they are exact in a narrower type.
    let float_bits = 8 * run.plan.norm_type.size();
    let scheme = plan.scheme;
    LinearReport {
        module: plan.module.clone(),
        block,
        method: plan.rounding.as_ref().map(|r| r.quantizer.method().id),
        scheme: scheme_text(
            scheme.weight.map(|w| w.bits),
            scheme.weight.and_then(|w| w.group),
            scheme.input.map(|i| i.bits),
        ),
        bits_per_weight: rounded.map_or(float_bits as f64, |q| q.bits_per_weight(float_bits)),
        weight_error: errors.weight,
        output_error: errors.output,
        loss,
        seconds,
    }
}
