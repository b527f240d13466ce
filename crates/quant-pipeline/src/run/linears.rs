//! Rounding of the linears of one stage, and what it cost.

use super::measure::{Errors, Measure, errors};
use super::observe::BlockStatistics;
use super::stats::{dynamic_kv, input_quant, scheme_text};
use super::{Run, add_seconds};
use crate::PipelineError;
use crate::events::{Asked, Event};
use crate::plan::{LinearPlan, MEASURED, Plan};
use crate::report::{LinearReport, Named, StageFactor};
use ndarray::{Array2, ArrayView2};
use quant_core::ActQuant;
use quant_graph::{
    BlockParams, BlockSource, BoxError, LinearId, LinearParams, LinearSpec, LinearWeight, StageSpec,
};
use quant_kernels::{Par, Work, return_freed_memory, views};
use quant_methods::{Figures, Prepared, Rounded, RowRounding, SiteStatistics, Solver};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

impl Run<'_> {
    /// Quantises a block whose recipe needs no deployed activations.
    pub(super) fn quantize_alone(
        &mut self,
        index: usize,
        mut block: BlockParams,
        mut statistics: BlockStatistics,
    ) -> Result<BlockParams, PipelineError> {
        let kv = block.kv.take().or_else(|| dynamic_kv(self.plan));
        let mut linears = BTreeMap::new();
        for stage in self.plan.spec.block(index).stages {
            let seen = statistics.remove(&stage.site).unwrap_or_default();
            linears.extend(self.finish_stage(index, &stage, &mut block, seen)?);
        }
        Ok(BlockParams { linears, norms: block.norms, online: block.online, kv })
    }

    /// Reads and quantises a block in one pass over the rows of its weights, which are never in memory as floats.
    pub(super) fn quantize_by_rows(
        &mut self,
        index: usize,
        source: &mut dyn BlockSource,
        pending: BTreeMap<LinearId, RowByRow<'_>>,
    ) -> Result<BlockParams, PipelineError> {
        self.phase("round")?;
        let started = Instant::now();
        let (plan, par) = (self.plan, self.par());
        let pending: BTreeMap<_, _> =
            pending.into_iter().map(|(id, linear)| (id, Mutex::new(linear))).collect();
        let visit = |id: LinearId, first: usize, rows: ArrayView2<'_, f32>| -> Result<(), BoxError> {
            match pending.get(&id) {
                // Nobody else has rows of this linear now.
                Some(linear) => {
                    Ok(linear.lock().unwrap_or_else(PoisonError::into_inner).rows(first, rows, par)?)
                }
                None => Ok(()),
            }
        };
        let mut frame = source.block_by_rows(index, &visit)?;
        let elapsed = started.elapsed();
        let pending: Vec<_> = pending
            .into_iter()
            .map(|(id, done)| (id, done.into_inner().unwrap_or_else(PoisonError::into_inner)))
            .collect();
        let worked: Duration = pending.iter().map(|(_, done)| done.rounding + done.measuring).sum();
        // Linears that were on their way at once share the clock.
        let shared = (worked.as_secs_f64() / elapsed.as_secs_f64()).max(1.0);
        let mut linears = BTreeMap::new();
        for (id, done) in pending {
            add_seconds(&mut self.state.report.seconds, "round", done.rounding.div_f64(shared));
            add_seconds(&mut self.state.report.seconds, "measure", done.measuring.div_f64(shared));
            let linear_plan = &self.linears(index)[&id];
            let (seconds, errors) = (done.rounding.as_secs_f64(), done.measure.finish());
            let weight = done.weight.finish();
            let report = linear_report(linear_plan, index, &weight, errors, seconds, self);
            self.events.event(Event::Linear(&report));
            self.state.report.linears.push(report);
            let input = linear_plan.scheme.input.and_then(|i| i.dynamic());
            linears.insert(id, LinearParams { weight, bias: frame.biases.remove(&id), input });
        }
        add_seconds(&mut self.state.report.seconds, "read", elapsed.saturating_sub(worked));
        Ok(BlockParams { linears, norms: frame.norms, online: frame.online, kv: dynamic_kv(plan) })
    }

    /// The linears of a stage as they are deployed, from `pending` to the returned list: those that are known, or rounded and
    /// then known.
    pub(super) fn finish_stage(
        &mut self,
        index: usize,
        stage: &StageSpec,
        pending: &mut BlockParams,
        seen: SiteStatistics,
    ) -> Result<Vec<(LinearId, LinearParams)>, PipelineError> {
        if let Some(known) = self.known_stage(index, stage, pending)? {
            return Ok(known);
        }
        self.settle()?;
        let done = self.round_stage(index, stage, pending, seen)?;
        self.keep_stage(index, &done)?;
        Ok(done)
    }

    /// Rounds the linears of a stage with the statistics of their input.
    fn round_stage(
        &mut self,
        index: usize,
        stage: &StageSpec,
        pending: &mut BlockParams,
        mut seen: SiteStatistics,
    ) -> Result<Vec<(LinearId, LinearParams)>, PipelineError> {
        let plan = self.plan;
        let linears = self.linears(index);
        let planned = |id: &LinearId| &linears[id];
        let prepares = |group: &[LinearId]| {
            let solver = group.first().and_then(|id| planned(id).solver());
            solver.is_some_and(|s| !s.sharing_key().is_empty())
        };
        let groups = plan.sharing(index, stage);
        let mut done = Vec::new();
        for (at, group) in groups.iter().enumerate() {
            let prepared = if !prepares(group) {
                Prepared::default()
            } else if groups[at + 1..].iter().any(|later| prepares(later)) {
                self.prepare_group(index, group, pending, &mut seen.clone())?
            } else {
                self.prepare_group(index, group, pending, &mut seen)?
            };
            self.phase("round")?;
            for &id in group {
                let Some(params) = pending.linears.remove(&id) else { continue };
                let input = planned(&id).scheme.input;
                let input = input.and_then(|i| input_quant(i, params.input, &seen.deployed, plan.scale_type));
                let sample = seen.deployed.sample(MEASURED).or_else(|| seen.float.any_sample());
                done.push((id, self.round_linear(index, id, params, &prepared, input, sample)?));
            }
        }
        Ok(done)
    }

    /// What linears share that make the same of the statistics of their input.
    fn prepare_group(
        &mut self,
        index: usize,
        group: &[LinearId],
        pending: &BlockParams,
        seen: &mut SiteStatistics,
    ) -> Result<Prepared, PipelineError> {
        let linears = self.linears(index);
        let mut planned = group.iter().map(|id| &linears[id]);
        let Some((linear, solver)) = planned.find_map(|l| Some((l, l.solver()?))) else {
            return Ok(Prepared::default());
        };
        let rows = group.iter().filter_map(|id| pending.linears.get(id)).map(|l| l.weight.dim().0).sum();
        self.prepare(Some(index), &linear.module, solver, seen, rows)
    }

    /// What a solver makes of the statistics for weights of `rows` rows in all, of which `module` is the first.
    pub(super) fn prepare(
        &mut self,
        block: Option<usize>,
        module: &str,
        solver: &dyn Solver,
        seen: &mut SiteStatistics,
        rows: usize,
    ) -> Result<Prepared, PipelineError> {
        self.phase("factor")?;
        let started = Instant::now();
        // What was gathered before it, or the stage before, left holes; a factorisation is as large as all of them.
        return_freed_memory();
        let par = self.par();
        let asked = Asked::new(self.events);
        let stop = || asked.stop();
        let prepared = solver.prepare(seen, rows, Work::until(par, &stop));
        let mut prepared = prepared.map_err(PipelineError::method(module))?;
        if let Some(factor) = prepared.factor.take() {
            self.state.report.factors.push(StageFactor { block, module: module.to_owned(), factor });
        }
        add_seconds(&mut self.state.report.seconds, "factor", started.elapsed());
        Ok(prepared)
    }

    fn round_linear(
        &mut self,
        index: usize,
        id: LinearId,
        params: LinearParams,
        prepared: &Prepared,
        input: Option<ActQuant>,
        sample: Option<ArrayView2<'_, f32>>,
    ) -> Result<LinearParams, PipelineError> {
        self.go_on()?;
        // Searches take as much as a weight or a sample several times over, in other sizes for every linear.
        return_freed_memory();
        let plan = &self.linears(index)[&id];
        let par = self.par();
        let started = Instant::now();
        let float = params.weight.into_values();
        let asked = Asked::new(self.events);
        let stop = || asked.stop();
        let rounded = plan.solver().map(|solver| {
            let bias = params.bias.as_ref().map(|b| b.view());
            solver.round_linear(float.view(), bias, prepared, Work::until(par, &stop))
        });
        let rounded = rounded.transpose().map_err(PipelineError::method(&plan.module))?;
        let seconds = started.elapsed().as_secs_f64();
        add_seconds(&mut self.state.report.seconds, "round", started.elapsed());
        let started = Instant::now();
        let stored = rounded.as_ref().map(|r| &r.weight);
        let errors = errors(float.view(), stored, sample, input.as_ref(), par);
        let Rounded { weight, loss, bias: correction, figures } = match rounded {
            Some(rounded) => {
                // Before anything that stays is allocated above it.
                drop(float);
                rounded
            }
            None => Rounded::new(LinearWeight::Float(float)),
        };
        let report = LinearReport {
            loss,
            figures: named(figures),
            ..linear_report(plan, index, &weight, errors, seconds, self)
        };
        self.events.event(Event::Linear(&report));
        self.state.report.linears.push(report);
        add_seconds(&mut self.state.report.seconds, "measure", started.elapsed());
        let bias = match (params.bias, correction) {
            (Some(bias), Some(correction)) => Some(bias + correction),
            (bias, correction) => bias.or(correction),
        };
        Ok(LinearParams { weight, bias, input })
    }
}

/// The linears of a block whose weights can be rounded as their rows are read: nothing else has to see them. None where
/// something has.
pub(super) fn row_by_row(plan: &Plan, index: usize) -> Option<BTreeMap<LinearId, RowByRow<'_>>> {
    if plan.streams.calibration() || plan.recipe.rewrites() {
        return None;
    }
    let linears = plan.blocks[index].iter();
    let spec = plan.spec.block(index);
    linears.map(|(&id, linear)| Some((id, RowByRow::new(linear, spec.linear(id)?)?))).collect()
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
    fn new(plan: &'a LinearPlan, linear: &LinearSpec) -> Option<Self> {
        let shape = linear.shape();
        let weight = match plan.solver() {
            Some(solver) => PendingWeight::Rounding(solver.by_rows(shape)?),
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

/// Figures as a report has them.
fn named(figures: Figures) -> Named {
    figures.into_iter().map(|(name, value)| (name.into(), value)).collect()
}

fn linear_report(
    plan: &LinearPlan,
    block: usize,
    weight: &LinearWeight,
    errors: Errors,
    seconds: f64,
    run: &Run<'_>,
) -> LinearReport {
    let scheme = plan.scheme;
    LinearReport {
        module: plan.module.clone(),
        block: Some(block),
        method: plan.solver().map(|s| s.method().id.into()),
        scheme: scheme_text(
            scheme.weight.map(|w| w.bits),
            scheme.weight.and_then(|w| w.group),
            scheme.input.map(|i| i.bits),
        ),
        // Scales are stored as wide as the floats of the model, also where they are exact in a narrower type.
        bits_per_weight: weight.bits_per_weight(run.plan.norm_type),
        weight_error: errors.weight,
        output_error: errors.output,
        loss: None,
        figures: Named::new(),
        stored_bytes: weight.storage_bits(run.plan.norm_type).div_ceil(8),
        group_bits: weight
            .quantized()
            .and_then(|q| q.widths().per_group())
            .map(|widths| widths.iter().map(|bits| bits.get()).collect()),
        salient_columns: match weight {
            LinearWeight::Binary(binary) => Some(binary.salient_per_block()),
            LinearWeight::Float(_) | LinearWeight::Quantized(_) => None,
        },
        seconds,
    }
}
