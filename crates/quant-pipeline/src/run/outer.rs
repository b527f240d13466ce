//! What is outside the blocks: handed on as it is, or, where an override asks for it, tables rounded some rows at a time.

use super::measure::Measure;
use super::stats::scheme_text;
use super::{Run, add_seconds};
use crate::PipelineError;
use crate::events::Event;
use crate::report::{LinearReport, Named};
use ndarray::{Array2, ArrayView2, Axis};
use quant_graph::{BlockSource, Outer};
use quant_kernels::{Par, return_freed_memory};
use quant_methods::{Batch, Gathered, PlannedRounding, Prepared, Rounded, SiteStatistics, Solver};
use quant_model::{RowStore, normed};
use std::time::{Duration, Instant};

impl Run<'_> {
    /// Hands on what is outside the blocks, tables some rows at a time. `deployed` is the deployed stream behind the last block,
    /// if one was carried.
    pub(super) fn outer(
        &mut self,
        source: &mut dyn BlockSource,
        deployed: Option<RowStore>,
    ) -> Result<(), PipelineError> {
        let plan = self.plan;
        let mut of_head = self.look_at_head(source, deployed)?;
        for &what in plan.stored.outer() {
            if self.sink.has(what) {
                continue;
            }
            match plan.tables.get(&what) {
                Some(planned) => {
                    let seen = if what == Outer::Head {
                        std::mem::take(&mut of_head)
                    } else {
                        SiteStatistics::default()
                    };
                    self.round_table(what, planned, source, seen)?;
                    self.keep_table(planned)?;
                }
                None => self.hand_on(what, source)?,
            }
        }
        Ok(())
    }

    /// Whether the head is still to be rounded against what comes out of the last block.
    pub(super) fn waits_for_head(&self) -> bool {
        !self.plan.needs_of_head().is_empty() && !self.sink.has(Outer::Head)
    }

    /// Rounds embedded tokens `[tokens, hidden]` as the rows of the table will be, where it is quantised: what the deployed
    /// stream begins with.
    pub(super) fn round_embedded(&self, embedded: &mut RowStore) -> Result<(), PipelineError> {
        let Some(planned) = self.plan.tables.get(&Outer::Embedding) else { return Ok(()) };
        for chunk in &self.layout.chunks {
            self.go_on()?;
            embedded.modify::<PipelineError>(self.layout.rows_of(chunk), |mut rows| {
                let rounded = planned.solver.round(rows.view(), &Prepared::default(), self.par().into());
                let rounded = rounded.map_err(PipelineError::method(Outer::Embedding.module()))?;
                rows.assign(&rounded.weight.into_values());
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Gathers what is asked for of the final hidden states behind the norm.
    fn look_at_head(
        &mut self,
        source: &mut dyn BlockSource,
        deployed: Option<RowStore>,
    ) -> Result<SiteStatistics, PipelineError> {
        let plan = self.plan;
        let needs = plan.needs_of_head();
        let mut seen = SiteStatistics::default();
        let Some(residual) = deployed.filter(|_| self.waits_for_head()) else { return Ok(seen) };
        self.phase("statistics")?;
        let started = Instant::now();
        return_freed_memory();
        seen.deployed = Gathered::new(&needs, plan.spec.hidden, &self.layout.starts);
        let (norm, eps) = (source.final_norm()?, plan.spec.norm_eps as f32);
        for chunk in &self.layout.chunks {
            self.go_on()?;
            let h = residual.read(self.layout.rows_of(chunk))?;
            let x = normed(h.view(), norm.view(), eps, self.par());
            seen.deployed
                .add(&Batch::new(x.view(), chunk.len()), plan.recipe.statistics(), self.par())
                .map_err(PipelineError::hessian(Outer::Head.module()))?;
        }
        self.spent("statistics", started);
        Ok(seen)
    }

    /// Hands a part on as it is: its stored bytes where the sink can copy them, otherwise its numbers.
    fn hand_on(&mut self, what: Outer, source: &mut dyn BlockSource) -> Result<(), PipelineError> {
        self.phase("copy")?;
        let started = Instant::now();
        if source.is_stored(self.plan.spec.stored_in(what)) && self.sink.copy_stored(what)? {
            // Nothing is left to do.
        } else if what == Outer::FinalNorm {
            self.sink.outer_rows(what, 0, source.final_norm()?.insert_axis(Axis(0)).view())?;
        } else {
            source.table_by_rows(what, &mut |first, rows| Ok(self.hand_rows(what, first, rows)?))?;
        }
        self.spent("write", started);
        Ok(())
    }

    fn hand_rows(
        &mut self,
        what: Outer,
        first: usize,
        rows: ArrayView2<'_, f32>,
    ) -> Result<(), PipelineError> {
        self.go_on()?;
        self.sink.outer_rows(what, first, rows)
    }

    /// Rounds a table as its rows are read and hands on their values; `seen` is what was gathered of its input.
    fn round_table(
        &mut self,
        what: Outer,
        planned: &PlannedRounding,
        source: &mut dyn BlockSource,
        mut seen: SiteStatistics,
    ) -> Result<(), PipelineError> {
        let (plan, par) = (self.plan, self.par());
        let solver = &*planned.solver;
        self.settle()?;
        let prepared = if solver.sharing_key().is_empty() {
            Prepared::default()
        } else {
            self.prepare(None, what.module(), solver, &mut seen, plan.spec.vocab)?
        };
        self.phase("round")?;
        let started = Instant::now();
        let sample = seen.deployed.sample(crate::plan::MEASURED);
        let measure = Measure::new(sample, None, par);
        let mut table = Table { what, solver, prepared, measure, loss: None, times: [Duration::ZERO; 2] };
        source.table_by_rows(what, &mut |first, rows| {
            let values = table.rows(first, rows, par)?;
            Ok(self.hand_rows(what, first, values.view())?)
        })?;
        let Table { measure, loss, times: [rounding, measuring], .. } = table;
        let errors = measure.finish();
        let bits = plan.table_bits_per_weight(planned);
        let report = LinearReport {
            module: what.module().to_owned(),
            block: None,
            method: Some(solver.method().id.into()),
            scheme: scheme_text(Some(planned.weight.bits), planned.weight.group, None),
            bits_per_weight: bits,
            weight_error: errors.weight,
            output_error: errors.output,
            loss,
            figures: Named::new(),
            // Whole bits, which the mean per weight hides.
            stored_bytes: ((bits * (plan.spec.vocab * plan.spec.hidden) as f64).round() as u64).div_ceil(8),
            group_bits: None,
            salient_columns: None,
            seconds: rounding.as_secs_f64(),
        };
        self.events.event(Event::Linear(&report));
        self.state.report.linears.push(report);
        let seconds = &mut self.state.report.seconds;
        add_seconds(seconds, "round", rounding);
        add_seconds(seconds, "measure", measuring);
        add_seconds(seconds, "write", started.elapsed().saturating_sub(rounding + measuring));
        Ok(())
    }
}

/// A table that is being rounded.
struct Table<'a> {
    what: Outer,
    solver: &'a dyn Solver,
    prepared: Prepared,
    measure: Measure,
    loss: Option<f64>,
    /// Spent on rounding and on measuring.
    times: [Duration; 2],
}

impl Table<'_> {
    /// The values of rounded rows `[rows, hidden]`, the first of which is row `first` of the table.
    fn rows(
        &mut self,
        first: usize,
        rows: ArrayView2<'_, f32>,
        par: Par,
    ) -> Result<Array2<f32>, PipelineError> {
        let started = Instant::now();
        let rounded = self.solver.round(rows, &self.prepared, par.into());
        let Rounded { weight, loss, .. } = rounded
            .map_err(|error| error.in_rows_from(first))
            .map_err(PipelineError::method(self.what.module()))?;
        if let Some(loss) = loss {
            *self.loss.get_or_insert(0.0) += loss;
        }
        let after = Instant::now();
        self.measure.rows(0, rows, Some(&weight), par);
        self.times[0] += after - started;
        self.times[1] += after.elapsed();
        Ok(weight.into_values())
    }
}
