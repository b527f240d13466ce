//! The training of one block.

use super::guard::{Alarm, of_errors};
use super::loss::mean_squared_error;
use super::parameters::{FlatParameters, Start};
use super::scheme::{FlatScheme, FlatShape, Matrix};
use super::settings::{FlatSettings, FlatVariant};
use super::step::FlatStep;
use super::weights::MergedWeight;
use crate::MethodError;
use ndarray::{Array1, Array2, ArrayView2, Axis, Slice};
use quant_graph::{
    BlockTraining, BoxError, EffectiveWeight, EffectiveWeights, Insert, LinearId, NoInsert, Site, Spot,
};
use quant_kernels::Par;
use quant_rotate::{AdamW, AdamWSettings, CosineSchedule, Learned, RotateError, initial_scales};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// The smallest magnitude that a channel is taken to have.
const FLOOR: f32 = 1e-5;

/// A float block that is trained in.
#[derive(Clone, Copy)]
pub struct FlatBlock<'a, 'w> {
    /// Runs it, in as much memory as it was given.
    pub training: &'a dyn BlockTraining<f32>,
    /// Its sizes.
    pub shape: &'a FlatShape,
    /// Its weights.
    pub float: &'a EffectiveWeights<'w, f32>,
    /// Its name, which random numbers are keyed by: `model.layers.0`.
    pub name: &'a str,
}

impl fmt::Debug for FlatBlock<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlatBlock")
            .field("name", &self.name)
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

/// What a block reads: inputs of some sequences behind each other.
#[derive(Clone, Copy, Debug)]
pub struct Sequences<'a> {
    /// The residual stream, `[tokens, hidden]`.
    pub x: ArrayView2<'a, f32>,
    /// The first row of every sequence, and the number of rows at the end.
    pub starts: &'a [usize],
}

impl Sequences<'_> {
    pub(super) fn count(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }
}

/// What a training ends with.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// The parameters.
    pub parameters: FlatParameters<f32>,
    /// The scheme they are for, with the sharing of inputs of the settings.
    pub scheme: FlatScheme,
    /// How it went.
    pub report: FlatReport,
}

/// How a training went. Errors are relative, the mean squared error over the mean square of the float output, over all
/// sequences and in deployed form: transforms merged, everything rounded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FlatReport {
    /// The mean squared error of the batch of every step, before the step.
    pub losses: Vec<f64>,
    /// The error of the parameters with which training began.
    pub before: f64,
    /// The error after every epoch, of [`FlatVariant::Stable`]; NaN for one that lost its numbers, which is the last.
    pub epochs: Vec<f64>,
    /// The error of the parameters that were kept.
    pub after: f64,
    /// The epoch, from 1, they are of; 0 are those it began with.
    pub kept: usize,
    /// Sequences at the end that made no whole batch and were not trained on.
    pub dropped: usize,
    /// What the guards of [`FlatVariant::Stable`] found: in the errors, and in the parameters of the last epoch and of the one
    /// that was kept.
    pub alarms: Vec<Alarm>,
}

impl FlatReport {
    /// What the user should know of the data, in words.
    #[must_use]
    pub fn notice(&self) -> Option<String> {
        let dropped = self.dropped;
        (dropped > 0).then(|| {
            format!("flatquant: {dropped} calibration sequences at the end make no whole batch and are not trained on")
        })
    }
}

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
    /// Learns the parameters of a block (FlatQuant, arXiv 2410.09426): AdamW on the logarithm of the mean squared error between
    /// the quantised block and the float one, batches in the order of the sequences, learning rates along a cosine over all
    /// steps.
    ///
    /// The same bits on any number of threads and under any memory bound of [`Self::training`].
    ///
    /// ```
    /// use quant_graph::{BlockTraining, EffectiveWeights, LinearId};
    /// use quant_methods::flatquant::{
    ///     FlatBlock, FlatScheme, FlatSettings, FlatShape, Sequences, Trained,
    /// };
    /// use quant_methods::ndarray::ArrayView2;
    /// use quant_methods::{Bits, MethodError, Par};
    ///
    /// fn four_bits(
    ///     training: &dyn BlockTraining<f32>,
    ///     (shape, name): (&FlatShape, &str),
    ///     float: &EffectiveWeights<'_, f32>,
    ///     (x, starts): (ArrayView2<'_, f32>, &[usize]),
    /// ) -> Result<Trained, Box<dyn std::error::Error>> {
    ///     let four = Bits::new(4)?;
    ///     let scheme = FlatScheme::new(Some(four), Some((four, true)), Some((four, false)))?;
    ///     let settings = FlatSettings { epochs: 2, batch_size: 1, ..FlatSettings::default() };
    ///     let block = FlatBlock { training, shape, float, name };
    ///     let trained = block.train(&scheme, &settings, Sequences { x, starts }, Par::Seq)?;
    ///     assert!(trained.report.after <= trained.report.before);
    ///     Ok(trained)
    /// }
    /// # use quant_methods::ndarray::Array2;
    /// # let config = serde_json::json!({ "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8,
    /// #     "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10 });
    /// # let spec = quant_model::model_spec(&config)?;
    /// # let mut params = quant_testkit::random_block(&spec, &mut quant_testkit::Numbers::new(1));
    /// # let linears = std::mem::take(&mut params.linears);
    /// # let weights: std::collections::BTreeMap<LinearId, Array2<f32>> = linears.into_iter().map(|(id, l)| match l.weight {
    /// #     quant_graph::LinearWeight::Float(w) => (id, w),
    /// #     _ => unreachable!(),
    /// # }).collect();
    /// # let block = quant_model::Block::<f32>::new(&spec, 0, params, quant_kernels::Compute::F32, Par::Seq)?;
    /// # let table = quant_model::RopeTable::new(&spec.rope, spec.head_dim, 64, 3);
    /// # let rope = |_| &table;
    /// # let view = |id| quant_graph::EffectiveWeight { weight: weights[&id].view(), bias: None };
    /// # let float: EffectiveWeights<'_, f32> = weights.keys().map(|id| (*id, view(*id))).collect();
    /// # let trainer = quant_model::BlockTrainer::new(&block, &rope, EffectiveWeights::new())?;
    /// # let x: Array2<f32> = quant_testkit::Numbers::new(2).matrix(6, 8, 1.0);
    /// let shape = FlatShape::new(&spec, 0);
    /// let trained = four_bits(&trainer, (&shape, "model.layers.0"), &float, (x.view(), &[0, 3, 6]))?;
    /// assert_eq!(trained.report.losses.len(), 4);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`MethodError::Sequences`] for fewer sequences than one batch; [`MethodError::Rotate`] for settings out of range, features
    /// without a Kronecker pair, and, of [`FlatVariant::Exact`], a training that lost its numbers; [`MethodError::Forward`],
    /// [`MethodError::Learned`] and [`MethodError::Channels`] where weights or inputs do not fit the block.
    pub fn train(
        &self,
        scheme: &FlatScheme,
        settings: &FlatSettings,
        sequences: Sequences<'_>,
        par: Par,
    ) -> Result<Trained, MethodError> {
        let scheme = settings.scheme(scheme);
        settings.batches(sequences.count())?;
        let (target, parameters) = self.start(&scheme, settings, sequences, par)?;
        self.descend(parameters, scheme, settings, sequences, target.view(), par)
    }

    /// [`Self::train`] from these parameters on, with a fresh optimiser: those of an earlier training, to be gone on with at another
    /// learning rate. Settings of what parameters begin with have no effect.
    ///
    /// ```
    /// use quant_methods::flatquant::{FlatBlock, FlatSettings, Sequences, Trained};
    /// use quant_methods::{MethodError, Par};
    ///
    /// fn again_at_half_the_rate(
    ///     block: &FlatBlock<'_, '_>,
    ///     (sequences, settings): (Sequences<'_>, &FlatSettings),
    ///     Trained { parameters, scheme, .. }: Trained,
    /// ) -> Result<Trained, MethodError> {
    ///     let settings = FlatSettings { learning_rate: settings.learning_rate / 2.0, ..*settings };
    ///     block.train_from(parameters, &scheme, &settings, sequences, Par::Seq)
    /// }
    /// ```
    ///
    /// # Errors
    /// As [`Self::train`]; [`MethodError::Learned`] and [`MethodError::Channels`] also for parameters of another block or scheme.
    pub fn train_from(
        &self,
        parameters: FlatParameters<f32>,
        scheme: &FlatScheme,
        settings: &FlatSettings,
        sequences: Sequences<'_>,
        par: Par,
    ) -> Result<Trained, MethodError> {
        let scheme = settings.scheme(scheme);
        settings.batches(sequences.count())?;
        let Sequences { x, starts } = sequences;
        let target = self.training.forward(x, starts, self.float, &mut NoInsert, par)?;
        self.descend(parameters, scheme, settings, sequences, target.view(), par)
    }

    /// Takes all steps towards `target`. A forward of the float block has seen that the sequences fit it.
    fn descend(
        &self,
        parameters: FlatParameters<f32>,
        scheme: FlatScheme,
        settings: &FlatSettings,
        sequences: Sequences<'_>,
        target: ArrayView2<'_, f32>,
        par: Par,
    ) -> Result<Trained, MethodError> {
        let sequences = Sequences { x: sequences.x.reborrow(), starts: sequences.starts };
        let task = Task { scheme: &scheme, settings, sequences, target: target.reborrow() };
        let mut training = self.begin(parameters, &task, par)?;
        while self.go_on(&mut training, &task, &mut |_| Ok(()), par)? {}
        let Training { best, mut report, parameters, .. } = training;
        report.alarms = alarms(settings, &report, [&parameters, &best])?;
        Ok(Trained { parameters: best, scheme, report })
    }

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

    /// One more epoch; false where there is none. `step` is called before every step with those that were taken.
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

    /// The output of the float block, and the parameters that training on it begins with.
    pub(super) fn start(
        &self,
        scheme: &FlatScheme,
        settings: &FlatSettings,
        sequences: Sequences<'_>,
        par: Par,
    ) -> Result<(Array2<f32>, FlatParameters<f32>), MethodError> {
        let mut maxima = Maxima::default();
        let target = self.training.forward(sequences.x, sequences.starts, self.float, &mut maxima, par)?;
        let parameters = self.initial(scheme, settings, &maxima)?;
        Ok((target, parameters))
    }

    /// The parameters that training begins with.
    fn initial(
        &self,
        scheme: &FlatScheme,
        settings: &FlatSettings,
        maxima: &Maxima,
    ) -> Result<FlatParameters<f32>, MethodError> {
        let mut scales = BTreeMap::new();
        for (site, activations) in &maxima.sites {
            if !settings.diag || Matrix::pair(*site).is_none() {
                continue;
            }
            let mut weights = Array1::zeros(activations.len());
            for id in self.shape.block.at(*site) {
                let own = self.float.get(id);
                let own =
                    own.ok_or_else(|| MethodError::Learned { what: format!("float weight of {id}") })?;
                raise(&mut weights, own.weight);
            }
            let activations = activations.mapv(|x| x.max(FLOOR));
            scales.insert(*site, initial_scales(weights.view(), activations.view(), settings.diag_alpha)?);
        }
        let start = Start {
            parametrisation: settings.parametrisation,
            scales: &scales,
            weight_clips: settings.lwc,
            input_clips: settings.lac,
            seed: settings.seed,
            name: self.name,
        };
        FlatParameters::initial(self.shape, scheme, start)
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
            before(losses.len())?;
            let step = FlatStep::new(self.shape, scheme, parameters)?;
            let merged = step.weights(self.float, par)?;
            let mut with: EffectiveWeights<'_, f32> =
                self.float.iter().map(|(id, own)| (*id, own.view())).collect();
            with.extend(merged.iter().map(|(id, weight)| (*id, weight.view())));
            let mut insert = step.insert();
            let part = Slice::from(batch.rows.clone());
            let (x, target) = (x.slice_axis(Axis(0), part), target.slice_axis(Axis(0), part));
            let (y, tape) = self.training.record(x, &batch.starts, &with, &mut insert, par)?;
            let loss = mean_squared_error(y.view(), target).logarithmic();
            losses.push(loss.value);
            let mut back = tape.backward(loss.gradient, &mut insert, par)?;
            back.weights.retain(|id, _| merged.contains_key(id));
            let gradients = step.backward(self.float, &back.weights, insert.into_sums(), par)?;
            let mut rates = [0.0; 4];
            rates.copy_from_slice(schedule.rates());
            parameters.descend(&gradients, optimiser, rates)?;
            schedule.advance();
        }
        Ok(())
    }

    /// The error of parameters in deployed form: the mean squared error of the block's output against `target`
    /// `[tokens, hidden]`, that of the float block, over the mean square of `target`.
    ///
    /// Weights are those of [`FlatParameters::merge`], rounded by row, but for the factors in the rows of up, which change no
    /// level.
    ///
    /// # Errors
    /// As [`Self::train`].
    ///
    /// # Panics
    /// If `target` is not of the shape of the inputs.
    pub fn relative_error(
        &self,
        scheme: &FlatScheme,
        parameters: &FlatParameters<f32>,
        sequences: Sequences<'_>,
        target: ArrayView2<'_, f32>,
        par: Par,
    ) -> Result<f64, MethodError> {
        let exact = parameters.deployed(self.shape)?.parameters;
        let merged = self.rounded(scheme, &exact, par)?;
        let with = merged.iter().map(|(id, weight)| (*id, weight.view())).collect();
        let matrices = exact.matrices.iter().map(|(which, learned)| {
            Ok((*which, Learned::free(learned.realise()?.matrix().mapv(|v| v as f32).view())?))
        });
        let running = FlatParameters {
            matrices: matrices.collect::<Result<_, RotateError>>()?,
            scales: parameters.scales.clone(),
            weight_clips: BTreeMap::new(),
            input_clips: parameters.input_clips.clone(),
        };
        let step = FlatStep::new(self.shape, scheme, &running)?;
        let y = self.training.forward(sequences.x, sequences.starts, &with, &mut step.insert(), par)?;
        let square = target.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>();
        let mean = square / target.len().max(1) as f64;
        Ok(mean_squared_error(y.view(), target).value / mean.max(f64::MIN_POSITIVE))
    }

    /// Every weight merged in f64, rounded to f32 and to the levels of its rows; and its bias.
    fn rounded(
        &self,
        scheme: &FlatScheme,
        exact: &FlatParameters<f64>,
        par: Par,
    ) -> Result<BTreeMap<LinearId, MergedWeight<f32>>, MethodError> {
        let step = FlatStep::new(self.shape, &FlatScheme::NONE, exact)?;
        let linears = self.shape.block.linears.iter().map(|linear| {
            let missing = || MethodError::Learned { what: format!("float weight of {}", linear.module) };
            let own = self.float.get(&linear.id).ok_or_else(missing)?;
            let (weight, bias) = (own.weight.mapv(f64::from), own.bias.map(|bias| bias.mapv(f64::from)));
            let wide = EffectiveWeight { weight: weight.view(), bias: bias.as_ref().map(|bias| bias.view()) };
            let merged = step.weight(linear, &wide, par)?;
            let weight = merged.weight.mapv(|w| w as f32);
            let weight = match scheme.weights {
                Some(quantiser) => quantiser.forward(weight.view(), weight.ncols(), None, par)?,
                None => weight,
            };
            let bias = merged.bias.map(|bias| bias.mapv(|b| b as f32));
            Ok((linear.id, MergedWeight { weight, bias }))
        });
        linears.collect()
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
fn lost_numbers(error: &MethodError) -> bool {
    matches!(
        error,
        MethodError::Core(_)
            | MethodError::Rotate(RotateError::NotFinite { .. } | RotateError::Singular { .. })
    )
}

/// The largest magnitudes of the channels of every site, of all tokens that come by.
#[derive(Default)]
struct Maxima {
    sites: BTreeMap<Site, Array1<f32>>,
}

impl Insert<f32> for Maxima {
    fn covers(&self, spot: Spot) -> bool {
        matches!(spot, Spot::Site(_))
    }
    fn forward(&mut self, spot: Spot, x: Array2<f32>, _: bool, _: Par) -> Result<Array2<f32>, BoxError> {
        if let Spot::Site(site) = spot {
            raise(self.sites.entry(site).or_insert_with(|| Array1::zeros(x.ncols())), x.view());
        }
        Ok(x)
    }
    fn backward(&mut self, _: Spot, grad: Array2<f32>, _: Par) -> Result<Array2<f32>, BoxError> {
        Ok(grad)
    }
}

/// Raises `maxima` to the magnitudes of columns.
fn raise(maxima: &mut Array1<f32>, x: ArrayView2<'_, f32>) {
    for row in x.rows() {
        maxima.zip_mut_with(&row, |most, x| *most = most.max(x.abs()));
    }
}
