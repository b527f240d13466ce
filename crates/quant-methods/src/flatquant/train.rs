//! The training of one block from its beginning to its end.

use super::block::{FlatBlock, FlatReport, Sequences};
use super::epochs::{Task, Training, alarms};
use super::parameters::{FlatParameters, Start};
use super::scheme::{FlatScheme, Matrix};
use super::settings::FlatSettings;
use crate::MethodError;
use ndarray::{Array1, Array2, ArrayView2};
use quant_graph::{BoxError, Insert, NoInsert, Site, Spot};
use quant_kernels::Par;
use quant_rotate::initial_scales;
use std::collections::BTreeMap;

/// The smallest magnitude that a channel is taken to have.
const FLOOR: f32 = 1e-5;

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
    /// without a Kronecker pair, and, of [`FlatVariant::Exact`](super::FlatVariant::Exact), a training that lost its numbers; [`MethodError::Forward`],
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
        let (target, parameters) = self.start(&scheme, settings, sequences, None, par)?;
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

    /// The output of the float block, on other inputs where they are given, and the parameters that training begins with.
    pub(super) fn start(
        &self,
        scheme: &FlatScheme,
        settings: &FlatSettings,
        sequences: Sequences<'_>,
        float: Option<&ArrayView2<'_, f32>>,
        par: Par,
    ) -> Result<(Array2<f32>, FlatParameters<f32>), MethodError> {
        let mut maxima = Maxima::default();
        let mut target =
            self.training.forward(sequences.x, sequences.starts, self.float, &mut maxima, par)?;
        if let Some(x) = float {
            target = self.training.forward(x.reborrow(), sequences.starts, self.float, &mut NoInsert, par)?;
        }
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
            if !settings.diag || !Matrix::scaled(*site) {
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
