//! FlatQuant in the blocks of a model: what each is trained for, repairs of trainings that went wrong, and what is deployed.

use super::METHOD;
use super::balance::{Balance, Balanced, with_changed};
use super::block::{FlatBlock, FlatReport, Sequences, not_trained_on};
use super::epochs::{Task, Training, alarms};
use super::fallback::{Fallbacks, Fallen, WIDE};
use super::form::Form;
use super::guard::Alarm;
use super::parameters::FlatParameters;
use super::scheme::{FlatScheme, FlatShape, Matrix};
use super::settings::{FlatSettings, FlatVariant};
use crate::{
    BlockPlan, Diary, Learned, LearnedScheme, Learner, Lesson, LessonReport, Method, MethodError, Rounding,
    SettingsError, Stream, float_weights,
};
use ndarray::Array2;
use quant_core::codec::{decoded, encoded};
use quant_core::{AxisShape, ClipRatio, KvQuant, OnlineShape, codec_of_fields};
use quant_graph::{BlockParams, EffectiveWeights, InputScheme, LinearId, OnlineScheme, Site, Spot};
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
    /// What of the block is trained, and for which deployment.
    pub(super) form: Form,
    /// What becomes of a block whose training cannot be repaired.
    pub(super) fallbacks: Fallbacks,
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

/// What is deployed.
struct Record {
    balance: Option<Balance>,
    parameters: FlatParameters<f32>,
    /// Whether weights and activations have eight bits or more, whatever the plan has.
    wide: bool,
}

codec_of_fields!(Record { balance, parameters, wide });

impl FlatLearner {
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
        let variant = variant.name();
        format!("{variant}, {epochs} epochs at {learning_rate}, seed {seed}")
    }

    fn plan(&self, block: &BlockPlan<'_>) -> Result<Option<LearnedScheme>, SettingsError> {
        let Some(scheme) = self.form.flat(&self.settings, block)? else { return Ok(None) };
        if !block.online.is_empty() {
            let problem = "it learns what inputs, keys and values are multiplied by while the model runs, where quarot has left something \
                 already; give quarot rotations: [r1, r2] and cross_head: \"off\", or leave one of the two out";
            return Err(self.form.conflict("", problem.to_owned()));
        }
        let shape = self.form.shape(&self.settings, block);
        let online = shape.online(&scheme);
        let online = online.map_err(|error| self.form.conflict("", error.to_string()))?;
        let lac = self.settings.lac;
        let linears = shape.block.linears.iter().map(|linear| linear.id);
        let clipped = linears.filter(|id| {
            let site = id.site();
            lac && scheme.plain_at(site).is_none() && scheme.activations_at(site).is_some()
        });
        let clipping = Form::clipping(&scheme);
        let mut notices = self.form.notices(block);
        if !self.settings.diag && self.settings.diag_alpha != FlatSettings::default().diag_alpha {
            notices.push("diag_alpha changes nothing without diag".to_owned());
        }
        notices.extend(self.fallbacks.notices(block, self.form.is_for_kernel(block)));
        Ok(Some(LearnedScheme {
            online,
            clips: clipped.map(|id| (id, clipping)).collect(),
            shards: self.form.shards(&shape, &scheme),
            cache_clips: lac && scheme.keys.is_some(),
            notices,
        }))
    }

    fn rounding(&self, block: &BlockPlan<'_>, id: LinearId) -> Option<&dyn Rounding> {
        self.form.rounding(block, id)
    }

    fn fallback(&self, block: &BlockPlan<'_>, id: LinearId) -> Option<&dyn Rounding> {
        self.fallbacks.rounding(block, id)
    }

    fn plan_fallback(&self, block: &BlockPlan<'_>) -> Option<LearnedScheme> {
        self.form.is_for_kernel(block).then(LearnedScheme::default)
    }

    fn inputs(&self) -> Stream {
        self.inputs
    }

    fn window(&self) -> usize {
        self.window
    }

    fn batch(&self) -> Option<usize> {
        Some(self.settings.batch_size)
    }

    fn check_sequences(&self, sequences: usize) -> Result<Option<String>, MethodError> {
        self.settings.batches(sequences).map(|(_, dropped)| not_trained_on(dropped))
    }

    fn workspace(&self, block: &BlockPlan<'_>, tokens: usize, batch: usize) -> u64 {
        const F32: u64 = 4;
        let spec = block.spec.block(block.index);
        let weights: usize = spec.linears.iter().map(quant_graph::LinearSpec::weights).sum();
        let largest = spec.linears.iter().map(quant_graph::LinearSpec::weights).max().unwrap_or(0);
        // Keys and queries, balanced.
        let changed = (block.spec.query_width() + block.spec.kv_width()) * block.spec.hidden;
        let sites: usize = spec.stages.iter().map(|stage| stage.width).sum();
        let spots = sites + 2 * block.spec.kv_width() + block.spec.heads * block.spec.head_dim;
        // Effective weights; one of them on its way back, in its stages and in f64 while errors are measured; what stood before
        // transforms and quantisers; target, output and difference.
        let kept = weights + changed + 5 * largest + batch * spots + 3 * tokens * block.spec.hidden;
        kept as u64 * F32
    }

    fn passes(&self) -> f64 {
        // A stable training balances keys in one pass and measures errors in one of every epoch.
        let measured = usize::from(self.settings.variant == FlatVariant::Stable) * (self.settings.epochs + 1);
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
        let scheme = self.form.flat(&self.settings, &lesson.plan).ok().flatten();
        let scheme = scheme.ok_or_else(|| MethodError::Learned { what: "scheme of this block".into() })?;
        let shape = self.form.shape(&self.settings, &lesson.plan);
        let mut float = float_weights(params)?;
        // As published, keys stay as they are.
        let wanted = self.settings.variant == FlatVariant::Stable && scheme.has(Matrix::Key);
        let balance = if wanted {
            let sequences = (lesson.float.as_ref().unwrap_or(&lesson.x).reborrow(), lesson.starts);
            Balance::new(lesson.plan.spec, lesson.training, &float, sequences, lesson.par)?
        } else {
            None
        };
        let balanced = balance.as_ref().map_or_else(Balanced::new, |balance| balance.weights(&shape, &float));
        float = with_changed(float, &balanced);
        let block = Block { lesson, shape, scheme, float };
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
        let repaired = loop {
            let (settings, name) = self.attempt(progress.attempt, &base);
            let task = block.task(&settings, &target);
            let mut step = |done| diary.step(done, settings.epochs * batches).map_err(MethodError::Diary);
            if block.named(&name).go_on(&mut progress.training, &task, &mut step, par)? {
                diary.keep(&|| encoded(&progress)).map_err(MethodError::Diary)?;
                continue;
            }
            let alarms = progress.judge(&settings)?;
            if alarms.is_empty() {
                break true;
            }
            progress.attempt += 1;
            let next = self.attempt(progress.attempt, &base);
            let begins = match progress.attempt {
                ATTEMPTS => {
                    progress
                        .repair(&alarms, "the best of all attempts is kept, or what training begins with");
                    break false;
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
        };
        let Progress { best: (parameters, report), before, mut repairs, .. } = progress;
        let fallen = if repaired || self.fallbacks.is_empty() {
            Fallen::default()
        } else {
            let best = (&parameters, report.after);
            let (block, task) = (block.named(&base), block.task(&first.0, &target));
            let bare = self.form.is_for_kernel(&lesson.plan);
            self.fallbacks.fall_back(&block, &task, best, (&start(&first)?.1, bare), par)?
        };
        repairs.extend(fallen.told(report.after));
        let notice = report.notice();
        let FlatReport { losses, epochs, after, kept, alarms, .. } = report;
        let alarms = alarms.iter().map(ToString::to_string).collect();
        let report = LessonReport {
            before,
            epochs,
            after,
            kept,
            losses,
            repairs,
            alarms,
            notice,
            fallbacks: fallen.tried,
        };
        let record = |parameters, wide| encoded(&Record { balance, parameters, wide });
        Ok(match fallen.taken {
            // Of what stands in the block nothing is wrong that would have to be said.
            Some((parameters, error, wide)) => Learned {
                record: record(parameters, wide),
                report: LessonReport { after: error, kept: 0, alarms: Vec::new(), ..report },
            },
            None => Learned { record: record(parameters, false), report },
        })
    }

    fn apply(
        &self,
        record: &[u8],
        block: BlockParams,
        plan: &BlockPlan<'_>,
        par: Par,
    ) -> Result<BlockParams, MethodError> {
        let Record { balance, parameters, wide } = decoded(record)?;
        let shape = self.form.shape(&self.settings, plan);
        let block = match balance {
            Some(balance) => balance.apply(&shape, block),
            None => block,
        };
        let mut block = parameters.merge(&shape, block, par)?;
        // Eight bits that run without transforms have no learned clip ratios either.
        if !self.settings.lac || (wide && self.form.is_for_kernel(plan)) {
            return Ok(block);
        }
        let ratio = |spot: Spot| {
            let factors = parameters.clip_factors(spot);
            let [upper, lower] =
                factors.ok_or_else(|| MethodError::Learned { what: format!("clip ratios at {spot:?}") })?;
            Ok::<_, MethodError>(ClipRatio { upper, lower })
        };
        for (id, linear) in &mut block.linears {
            let input = plan.scheme.get(id).and_then(|scheme| scheme.input);
            let Some(input) = input.filter(|input| input.clip_ratio.fixed().is_none()) else { continue };
            let spot = if self.settings.share_inputs { Spot::Site(id.site()) } else { Spot::Linear(*id) };
            let input = if wide { InputScheme { bits: input.bits.max(WIDE), ..input } } else { input };
            linear.input = input.clipped(ratio(spot)?);
        }
        if let Some(kv) = plan.kv.filter(|kv| kv.clip_ratio.fixed().is_none()) {
            let (keys, values) = (kv.clipped(ratio(Spot::Key)?), kv.clipped(ratio(Spot::Value)?));
            block.kv = Some(KvQuant { keys, values, before_rope: kv.before_rope, pre_bias: kv.pre_bias });
        }
        Ok(block)
    }
}

impl FlatShape {
    /// Kinds and sizes of the transforms that [`FlatParameters::merge`] leaves to the running model.
    fn online(&self, scheme: &FlatScheme) -> Result<OnlineScheme, MethodError> {
        let mut online = OnlineScheme::default();
        for site in Site::ALL {
            let (left, right) = Matrix::pair(site);
            let axes = match site {
                _ if scheme.has(left) => [self.side(left)?, self.side(right)?].map(AxisShape::Dense),
                Site::AttentionOutput if scheme.has(Matrix::Output) => {
                    [AxisShape::Dense(self.heads), AxisShape::Identity(self.head_dim)]
                }
                Site::AttentionOutput if scheme.has(Matrix::Value) => {
                    [AxisShape::Identity(self.heads), AxisShape::Dense(self.head_dim)]
                }
                _ => continue,
            };
            let shards = if scheme.has(left) { self.shards_at(site) } else { 1 };
            online.sites.insert(site, OnlineShape { shards, ..OnlineShape::new(axes) });
        }
        if scheme.has(Matrix::Key) {
            online.pair = Some([OnlineShape::new([AxisShape::Dense(self.head_dim)]); 2]);
        }
        Ok(online)
    }
}
