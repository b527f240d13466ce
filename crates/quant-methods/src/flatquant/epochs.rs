//! A training, epoch by epoch.

use super::block::{FlatBlock, FlatReport, Sequences};
use super::guard::{Alarm, of_errors};
use super::loss::mean_squared_error;
use super::parameters::FlatParameters;
use super::scheme::FlatScheme;
use super::settings::{FlatSettings, FlatVariant};
use super::step::FlatStep;
use crate::MethodError;
use ndarray::{ArrayView2, Axis, Slice};
use quant_graph::EffectiveWeights;
use quant_kernels::Par;
use quant_rotate::{AdamW, AdamWSettings, CosineSchedule, RotateError};
use std::ops::Range;

/// What a training is for.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    /// With the sharing of inputs of the settings.
    pub(super) scheme: &'a FlatScheme,
    pub(super) settings: &'a FlatSettings,
    pub(super) sequences: Sequences<'a>,
    /// The output of the float block.
    pub(super) target: ArrayView2<'a, f32>,
}

/// A training between two epochs: everything that the next one depends on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Training {
    /// Epochs behind it.
    pub(super) epoch: usize,
    pub(super) parameters: FlatParameters<f32>,
    pub(super) optimiser: AdamW<f32>,
    pub(super) schedule: CosineSchedule,
    /// The parameters to keep.
    pub(super) best: FlatParameters<f32>,
    pub(super) report: FlatReport,
}

/// What the guards say of a finished training: in its errors and in these parameters; nothing of [`FlatVariant::Exact`].
pub(super) fn alarms(
    settings: &FlatSettings,
    report: &FlatReport,
    parameters: [&FlatParameters<f32>; 2],
) -> Result<Vec<Alarm>, MethodError> {
    if settings.variant != FlatVariant::Stable {
        return Ok(Vec::new());
    }
    let mut alarms = of_errors(report.before, &report.epochs);
    for found in parameters {
        // Those that lost their numbers have diverged, which was said.
        let more = found.ill_conditioned();
        let more = if more.as_ref().is_err_and(lost_numbers) { Vec::new() } else { more? };
        for alarm in more {
            if !alarms.contains(&alarm) {
                alarms.push(alarm);
            }
        }
    }
    Ok(alarms)
}

/// Some whole sequences.
struct Batch {
    rows: Range<usize>,
    starts: Vec<usize>,
}

impl FlatBlock<'_, '_> {
    /// A training before its first step.
    pub(super) fn begin(
        &self,
        parameters: FlatParameters<f32>,
        task: &Task<'_>,
        par: Par,
    ) -> Result<Training, MethodError> {
        let (count, dropped) = task.settings.batches(task.sequences.count())?;
        let before = self.relative_error(task.scheme, &parameters, task.sequences, task.target, par)?;
        let (rates, floor) = task.settings.rates();
        let steps = task.settings.epochs.saturating_mul(count) as u64;
        Ok(Training {
            epoch: 0,
            schedule: CosineSchedule::new(&rates, floor, steps.max(1), task.settings.warmup)?,
            optimiser: AdamW::new(AdamWSettings::default())?,
            best: parameters.clone(),
            parameters,
            report: FlatReport { before, after: before, dropped, ..FlatReport::default() },
        })
    }

    /// One more epoch; false where there is none. `step` is called before every step with those that were taken, and
    /// again before its backward and its end, so that nobody who wants to stop waits for a whole one.
    pub(super) fn go_on(
        &self,
        training: &mut Training,
        task: &Task<'_>,
        step: &mut dyn FnMut(usize) -> Result<(), MethodError>,
        par: Par,
    ) -> Result<bool, MethodError> {
        let Task { scheme, settings, sequences, target } = *task;
        let stable = settings.variant == FlatVariant::Stable;
        let Training { epoch, parameters, optimiser, schedule, best, report } = training;
        let lost = report.epochs.last().is_some_and(|error| !error.is_finite());
        if *epoch == settings.epochs || lost {
            return Ok(false);
        }
        let (count, _) = settings.batches(sequences.count())?;
        let batches: Vec<Batch> =
            (0..count).map(|i| Batch::new(sequences.starts, settings.batch_size, i)).collect();
        let error = |parameters: &_| self.relative_error(scheme, parameters, sequences, target, par);
        *epoch += 1;
        let state = (&mut *parameters, optimiser, schedule);
        let passed =
            self.epoch(scheme, state, (sequences.x, target), &batches, &mut report.losses, step, par);
        if !stable {
            passed?;
            if *epoch == settings.epochs {
                (report.after, report.kept) = (error(parameters)?, *epoch);
                best.clone_from(parameters);
            }
            return Ok(true);
        }
        let found = passed.and_then(|()| error(parameters));
        let found = if found.as_ref().is_err_and(lost_numbers) { f64::NAN } else { found? };
        report.epochs.push(found);
        if found < report.after {
            (report.after, report.kept) = (found, *epoch);
            best.clone_from(parameters);
        }
        Ok(true)
    }

    /// One pass over the batches; the loss of every step is added to `losses`.
    fn epoch(
        &self,
        scheme: &FlatScheme,
        (parameters, optimiser, schedule): (&mut FlatParameters<f32>, &mut AdamW<f32>, &mut CosineSchedule),
        (x, target): (ArrayView2<'_, f32>, ArrayView2<'_, f32>),
        batches: &[Batch],
        losses: &mut Vec<f64>,
        before: &mut dyn FnMut(usize) -> Result<(), MethodError>,
        par: Par,
    ) -> Result<(), MethodError> {
        for batch in batches {
            let taken = losses.len();
            before(taken)?;
            let step = FlatStep::new(self.shape, scheme, parameters)?;
            let merged = step.weights(self.float, par)?;
            let mut with: EffectiveWeights<'_, f32> =
                self.float.iter().map(|(id, own)| (*id, own.view())).collect();
            with.extend(merged.iter().map(|(id, weight)| (*id, weight.view())));
            let mut insert = step.insert();
            let part = Slice::from(batch.rows.clone());
            let (x, target) = (x.slice_axis(Axis(0), part), target.slice_axis(Axis(0), part));
            let (y, tape) = self.training.record(x, &batch.starts, &with, &mut insert, par)?;
            before(taken)?;
            let loss = mean_squared_error(y.view(), target).logarithmic();
            losses.push(loss.value);
            let mut back = tape.backward(loss.gradient, &mut insert, par)?;
            before(taken)?;
            back.weights.retain(|id, _| merged.contains_key(id));
            let gradients = step.backward(self.float, &back.weights, insert.into_sums(), par)?;
            let mut rates = [0.0; 4];
            rates.copy_from_slice(schedule.rates());
            parameters.descend(&gradients, optimiser, rates)?;
            schedule.advance();
        }
        Ok(())
    }
}

impl Batch {
    fn new(starts: &[usize], size: usize, index: usize) -> Self {
        let starts = &starts[index * size..=(index + 1) * size];
        let (first, last) = (starts[0], starts[size]);
        Self { rows: first..last, starts: starts.iter().map(|start| start - first).collect() }
    }
}

/// Whether numbers were lost on the way, so that there is no block with these parameters (in deployed form `quant-core` refuses
/// what f32 cannot hold), rather than something asked for that cannot be.
pub(super) fn lost_numbers(error: &MethodError) -> bool {
    matches!(
        error,
        MethodError::Core(_)
            | MethodError::Rotate(RotateError::NotFinite { .. } | RotateError::Singular { .. })
    )
}
