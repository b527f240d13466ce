//! FlatQuant in the blocks of a model: what each is trained for, repairs of trainings that went wrong, and what is deployed.

use super::METHOD;
use super::block::{FlatBlock, FlatReport, Sequences};
use super::epochs::{Task, Training, alarms};
use super::guard::Alarm;
use super::parameters::FlatParameters;
use super::scheme::{FlatScheme, FlatShape, Matrix};
use super::settings::{FlatSettings, FlatVariant};
use crate::{
    BlockPlan, Diary, Learned, LearnedScheme, Learner, Lesson, LessonReport, Method, MethodError,
    SettingsError, Stream, float_weights,
};
use ndarray::Array2;
use quant_core::codec::{decoded, encoded};
use quant_core::{ActRule, AxisShape, Bits, ClipRatio, KvQuant, OnlineShape, codec_of_fields};
use quant_graph::{
    BlockParams, Clipping, EffectiveWeights, InputScheme, OnlineScheme, Site, Spot, WeightScheme,
};
use quant_kernels::Par;
use std::sync::Arc;

/// Attempts at half the learning rate of the one before.
const SLOWER: usize = 2;
/// Attempts in all: the first, the slower ones, one from other random matrices.
const ATTEMPTS: usize = 1 + SLOWER + 1;

/// The modifier of a recipe.
#[derive(Clone, Debug)]
pub(super) struct FlatLearner {
    pub(super) settings: FlatSettings,
    pub(super) inputs: Stream,
    pub(super) window: usize,
    /// Of the section, for errors.
    pub(super) path: String,
}

/// Trainings of one block so far.
struct Progress {
    /// Of the training under way.
    attempt: usize,
    /// The error of what the first one began with.
    before: f64,
    /// What to keep of those that are finished, and how it came about; first of all what they begin with.
    best: (FlatParameters<f32>, FlatReport),
    /// What was wrong, and what was done.
    repairs: Vec<String>,
    training: Training,
}

codec_of_fields!(Progress { attempt, before, best, repairs, training });

impl Progress {
    fn new(training: Training) -> Self {
        let best = (training.best.clone(), training.report.clone());
        Self { attempt: 0, before: best.1.before, best, repairs: Vec::new(), training }
    }

    /// Looks at a finished training: what can be inverted before what can hardly be, and then the least error.
    fn judge(&mut self, settings: &FlatSettings) -> Result<Vec<Alarm>, MethodError> {
        let Training { parameters, best, report, .. } = &self.training;
        let alarms = alarms(settings, report, [parameters, best])?;
        let stable = settings.variant == FlatVariant::Stable;
        let key = |parameters: &FlatParameters<f32>, report: &FlatReport| {
            Ok::<_, MethodError>((!parameters.ill_conditioned()?.is_empty(), report.after))
        };
        if !stable || key(best, report)? <= key(&self.best.0, &self.best.1)? {
            self.best = (best.clone(), FlatReport { alarms: alarms.clone(), ..report.clone() });
        }
        Ok(alarms)
    }

    fn repair(&mut self, alarms: &[Alarm], how: &str) {
        let why: Vec<String> = alarms.iter().map(ToString::to_string).collect();
        self.repairs.push(format!("{}: {how}", why.join("; ")));
    }
}

impl FlatLearner {
    fn conflict(&self, key: &str, problem: String) -> SettingsError {
        let path = if key.is_empty() { self.path.clone() } else { format!("{}.{key}", self.path) };
        SettingsError::Conflict { path, problem }
    }

    /// What a block is trained for; none where nothing of it is quantised.
    fn flat(&self, block: &BlockPlan<'_>) -> Result<Option<FlatScheme>, SettingsError> {
        let spec = block.spec.block(block.index);
        let prefix = block.spec.block_prefix(block.index);
        let scheme = |id| block.scheme.get(&id).copied().unwrap_or_default();
        let linears: Vec<_> = spec.linears.iter().map(|linear| scheme(linear.id)).collect();
        let first = linears.first().copied().unwrap_or_default();
        if let Some(at) = linears.iter().position(|linear| *linear != first) {
            let problem = format!(
                "it trains a block as a whole, and in {prefix} {} and {} are quantised differently: write overrides and ignores for \
                 whole blocks",
                spec.linears[0].module, spec.linears[at].module
            );
            return Err(self.conflict("", problem));
        }
        if first.is_float() && block.kv.is_none() {
            return Ok(None);
        }
        let bits = first.weight.map(|weight| self.weight_bits(weight)).transpose()?;
        let input = first.input.map(|input| self.input(input)).transpose()?;
        let cache = block.kv.map(|kv| {
            if kv.is_static() || kv.before_rope || clips(kv.clip_ratio) {
                let problem = "it learns a cache with a scale per token and head, keys behind rope: use kv_cache: { granularity: \
                               token_head, before_rope: false, clip_ratio: 1.0 }";
                return Err(self.conflict("scheme", problem.into()));
            }
            self.symmetry("kv_cache", kv.bits, kv.rule)
        });
        let flat = FlatScheme::new(bits, input, cache.transpose()?);
        let flat = flat.map_err(|error| self.conflict("scheme", error.to_string()))?;
        Ok(Some(self.settings.scheme(&flat)))
    }

    fn weight_bits(&self, weight: WeightScheme) -> Result<Bits, SettingsError> {
        if weight.group.is_some() || !weight.symmetric {
            let problem = "it learns how the rows of symmetric weights are clipped, one scale per row: use no group and no one-bit weights";
            return Err(self.conflict("scheme", problem.into()));
        }
        Ok(weight.bits)
    }

    fn input(&self, input: InputScheme) -> Result<(Bits, bool), SettingsError> {
        if !input.dynamic || clips(input.clip_ratio) || input.shards != 1 {
            let problem = "it trains with dynamic scales of whole tokens and learns their clipping: use activations: { dynamic: true, \
                           clip_ratio: 1.0 }";
            return Err(self.conflict("scheme", problem.into()));
        }
        self.symmetry("activations", input.bits, input.rule)
    }

    fn symmetry(&self, section: &str, bits: Bits, rule: ActRule) -> Result<(Bits, bool), SettingsError> {
        match rule {
            ActRule::Asymmetric => Ok((bits, false)),
            ActRule::Symmetric => Ok((bits, true)),
            ActRule::SymmetricFull => {
                let problem = format!(
                    "{section} of this format are scaled by the full symmetric range, which it does not train for: export to dequantized"
                );
                Err(self.conflict("scheme", problem))
            }
        }
    }

    /// The settings and the name of an attempt.
    fn attempt(&self, attempt: usize, name: &str) -> (FlatSettings, String) {
        if attempt <= SLOWER {
            let learning_rate = self.settings.learning_rate / f64::from(1 << attempt);
            return (FlatSettings { learning_rate, ..self.settings }, name.to_owned());
        }
        (self.settings, format!("{name}, attempt {attempt}"))
    }
}

/// The block of a lesson.
struct Block<'a, 'l, 'w> {
    lesson: &'a Lesson<'l>,
    shape: FlatShape,
    scheme: FlatScheme,
    float: EffectiveWeights<'w, f32>,
}

impl<'w> Block<'_, '_, 'w> {
    fn named<'b>(&'b self, name: &'b str) -> FlatBlock<'b, 'w> {
        FlatBlock { training: self.lesson.training, shape: &self.shape, float: &self.float, name }
    }
    fn sequences(&self) -> Sequences<'_> {
        Sequences { x: self.lesson.x.reborrow(), starts: self.lesson.starts }
    }
    fn task<'t>(&'t self, settings: &'t FlatSettings, target: &'t Array2<f32>) -> Task<'t> {
        Task { scheme: &self.scheme, settings, sequences: self.sequences(), target: target.view() }
    }
}

impl Learner for FlatLearner {
    fn method(&self) -> &'static Method {
        &METHOD
    }

    fn describe(&self) -> String {
        let FlatSettings { variant, epochs, learning_rate, seed, .. } = self.settings;
        let variant = if variant == FlatVariant::Stable { "stable" } else { "exact" };
        format!("{variant}, {epochs} epochs at {learning_rate}, seed {seed}")
    }

    fn plan(&self, block: &BlockPlan<'_>) -> Result<Option<LearnedScheme>, SettingsError> {
        let Some(scheme) = self.flat(block)? else { return Ok(None) };
        let online = FlatShape::new(block.spec, block.index).online(&scheme);
        let online = online.map_err(|error| self.conflict("", error.to_string()))?;
        Ok(Some(LearnedScheme { online, clips: self.settings.lac }))
    }

    fn inputs(&self) -> Stream {
        self.inputs
    }

    fn window(&self) -> usize {
        self.window
    }

    fn batch(&self) -> usize {
        self.settings.batch_size
    }

    fn workspace(&self, block: &BlockPlan<'_>, tokens: usize, batch: usize) -> u64 {
        const F32: u64 = 4;
        let spec = block.spec.block(block.index);
        let weights: usize = spec.linears.iter().map(quant_graph::LinearSpec::weights).sum();
        let largest = spec.linears.iter().map(quant_graph::LinearSpec::weights).max().unwrap_or(0);
        let sites: usize = spec.stages.iter().map(|stage| stage.width).sum();
        let spots = sites + 2 * block.spec.kv_width() + block.spec.heads * block.spec.head_dim;
        // Effective weights; one of them on its way back, in its stages and in f64 while errors are measured; what stood before
        // transforms and quantisers; target, output and difference.
        let kept = weights + 5 * largest + batch * spots + 3 * tokens * block.spec.hidden;
        kept as u64 * F32
    }

    fn passes(&self) -> f64 {
        let measured = usize::from(self.settings.variant == FlatVariant::Stable) * self.settings.epochs;
        // Of a block behind it: forward, forward again, and one product of two in the backward.
        (self.window * (3 * self.settings.epochs + measured + 2)) as f64
    }

    fn untrained(&self) -> Arc<dyn Learner> {
        let settings = FlatSettings { epochs: 0, batch_size: 1, ..self.settings };
        Arc::new(Self { settings, window: 1, ..self.clone() })
    }

    fn learn(
        &self,
        params: &BlockParams,
        lesson: &Lesson<'_>,
        diary: &mut dyn Diary,
    ) -> Result<Learned, MethodError> {
        let scheme = self.flat(&lesson.plan).ok().flatten();
        let scheme = scheme.ok_or_else(|| MethodError::Learned { what: "scheme of this block".into() })?;
        let shape = FlatShape::new(lesson.plan.spec, lesson.plan.index);
        let block = Block { lesson, shape, scheme, float: float_weights(params)? };
        let base = lesson.plan.spec.block_prefix(lesson.plan.index);
        let par = lesson.par;
        let start = |(settings, name): &(FlatSettings, String)| {
            block.named(name).start(&scheme, settings, block.sequences(), lesson.float.as_ref(), par)
        };
        let first = self.attempt(0, &base);
        let (batches, _) = first.0.batches(block.sequences().count())?;
        let (target, initial) = start(&first)?;
        let begin = |(settings, name): &(FlatSettings, String), parameters| {
            block.named(name).begin(parameters, &block.task(settings, &target), par)
        };
        let mut progress = match diary.last() {
            Some(bytes) => decoded(bytes)?,
            None => Progress::new(begin(&first, initial)?),
        };
        loop {
            let (settings, name) = self.attempt(progress.attempt, &base);
            let task = block.task(&settings, &target);
            let mut step = |done| diary.step(done, settings.epochs * batches).map_err(MethodError::Diary);
            if block.named(&name).go_on(&mut progress.training, &task, &mut step, par)? {
                diary.keep(&|| encoded(&progress)).map_err(MethodError::Diary)?;
                continue;
            }
            let alarms = progress.judge(&settings)?;
            if alarms.is_empty() {
                break;
            }
            progress.attempt += 1;
            let next = self.attempt(progress.attempt, &base);
            let begins = match progress.attempt {
                ATTEMPTS => {
                    progress
                        .repair(&alarms, "the best of all attempts is kept, or what training begins with");
                    break;
                }
                attempt if attempt <= SLOWER => {
                    let rate = next.0.learning_rate;
                    progress
                        .repair(&alarms, &format!("again from the best so far at a learning rate of {rate}"));
                    progress.best.0.clone()
                }
                _ => {
                    progress.repair(&alarms, "again from other random matrices");
                    start(&next)?.1
                }
            };
            progress.training = begin(&next, begins)?;
        }
        let Progress { best: (parameters, report), before, repairs, .. } = progress;
        let notice = report.notice();
        let FlatReport { losses, epochs, after, kept, alarms, .. } = report;
        let alarms = alarms.iter().map(ToString::to_string).collect();
        let report = LessonReport { before, epochs, after, kept, losses, repairs, alarms, notice };
        Ok(Learned { record: encoded(&parameters), report })
    }

    fn apply(
        &self,
        record: &[u8],
        block: BlockParams,
        plan: &BlockPlan<'_>,
        par: Par,
    ) -> Result<BlockParams, MethodError> {
        let parameters: FlatParameters<f32> = decoded(record)?;
        let shape = FlatShape::new(plan.spec, plan.index);
        let mut block = parameters.merge(&shape, block, par)?;
        if !self.settings.lac {
            return Ok(block);
        }
        let ratio = |spot: Spot| {
            let factors = parameters.clip_factors(spot);
            let [upper, lower] =
                factors.ok_or_else(|| MethodError::Learned { what: format!("clip ratios at {spot:?}") })?;
            Ok::<_, MethodError>(ClipRatio { upper, lower })
        };
        for (id, linear) in &mut block.linears {
            let Some(input) = plan.scheme.get(id).and_then(|scheme| scheme.input) else { continue };
            let spot = if self.settings.share_inputs { Spot::Site(id.site()) } else { Spot::Linear(*id) };
            linear.input = input.clipped(ratio(spot)?);
        }
        if let Some(kv) = plan.kv {
            let (keys, values) = (kv.clipped(ratio(Spot::Key)?), kv.clipped(ratio(Spot::Value)?));
            block.kv = Some(KvQuant { keys, values, before_rope: kv.before_rope, pre_bias: kv.pre_bias });
        }
        Ok(block)
    }
}

/// Whether a recipe clips what is to be learned.
fn clips(ratio: Clipping) -> bool {
    !matches!(ratio, Clipping::NONE | Clipping::Learned)
}

impl FlatShape {
    /// Kinds and sizes of the transforms that [`FlatParameters::merge`] leaves to the running model.
    fn online(&self, scheme: &FlatScheme) -> Result<OnlineScheme, MethodError> {
        let mut online = OnlineScheme::default();
        for site in Site::ALL {
            let axes = match Matrix::pair(site) {
                Some((left, right)) if scheme.has(left) => {
                    [self.side(left)?, self.side(right)?].map(AxisShape::Dense)
                }
                None if scheme.has(Matrix::Output) => {
                    [AxisShape::Dense(self.heads), AxisShape::Identity(self.head_dim)]
                }
                None if scheme.has(Matrix::Value) => {
                    [AxisShape::Identity(self.heads), AxisShape::Dense(self.head_dim)]
                }
                _ => continue,
            };
            online.sites.insert(site, OnlineShape::new(axes));
        }
        if scheme.has(Matrix::Key) {
            online.pair = Some([OnlineShape::new([AxisShape::Dense(self.head_dim)]); 2]);
        }
        Ok(online)
    }
}
