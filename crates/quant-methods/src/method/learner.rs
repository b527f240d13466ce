//! The interface of methods that train pieces of their own in a block before it is rounded.

use crate::{Method, MethodError, Rounding, SettingsError, Stream};
use ndarray::ArrayView2;
use quant_core::codec::{Bytes, Codec, bad_tag};
use quant_core::{CoreError, codec_of_fields};
use quant_graph::{
    BlockParams, BlockTraining, BoxError, Clipping, EffectiveWeight, EffectiveWeights, KvScheme, LinearId,
    LinearScheme, LinearWeight, ModelSpec, OnlineScheme, PairKernel,
};
use quant_kernels::Par;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::sync::Arc;

/// A block and what is to become of it.
#[derive(Clone, Copy, Debug)]
pub struct BlockPlan<'a> {
    /// The model.
    pub spec: &'a ModelSpec,
    /// Which of its blocks.
    pub index: usize,
    /// Storage of its linears.
    pub scheme: &'a BTreeMap<LinearId, LinearScheme>,
    /// Storage of its cache.
    pub kv: Option<KvScheme>,
    /// What alone the deployment multiplies inputs by; none for one that runs any transform.
    pub kernel: Option<PairKernel>,
    /// What the block multiplies activations by before anything is learned in it: left by a transform of the whole model.
    pub online: &'a OnlineScheme,
}

/// What a learner leaves in a block besides float weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LearnedScheme {
    /// What it multiplies activations by while the model runs, besides what [`BlockPlan::online`] has there.
    pub online: OnlineScheme,
    /// The linears whose inputs have learned clip ratios, and of which kind.
    pub clips: BTreeMap<LinearId, Clipping>,
    /// The linears whose inputs are quantised in equal parts of a token, each with a scale of its own, and in how many.
    pub shards: BTreeMap<LinearId, usize>,
    /// Whether the clip ratios of the cache are learned.
    pub cache_clips: bool,
    /// What the person should know of this block, in words that are the same for blocks alike.
    pub notices: Vec<String>,
}

/// What a learner works with.
#[derive(Clone, Copy)]
pub struct Lesson<'a> {
    /// The block.
    pub plan: BlockPlan<'a>,
    /// Runs it, and the blocks behind it that its [window](Learner::window) holds.
    pub training: &'a dyn BlockTraining<f32>,
    /// The residual stream at its input that it is to be trained on, `[tokens, hidden]`.
    pub x: ArrayView2<'a, f32>,
    /// That of the float model, where it is another: what the block makes of it is what training aims at.
    pub float: Option<ArrayView2<'a, f32>>,
    /// The first row of every sequence, and the number of rows at the end.
    pub starts: &'a [usize],
    /// Threads.
    pub par: Par,
}

impl Debug for Lesson<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lesson")
            .field("index", &self.plan.index)
            .field("x", &self.x.dim())
            .finish_non_exhaustive()
    }
}

/// Where a learner writes down how far it is.
pub trait Diary {
    /// What was written last, if the lesson was broken off.
    fn last(&self) -> Option<&[u8]>;
    /// Called between steps, with how far it is in all.
    ///
    /// # Errors
    /// If the person has asked to stop.
    fn step(&mut self, done: usize, of: usize) -> Result<(), BoxError>;
    /// Called where the lesson could go on from: the state is made only where it is written.
    ///
    /// # Errors
    /// If it cannot be written.
    fn keep(&mut self, state: &dyn Fn() -> Vec<u8>) -> Result<(), BoxError>;
}

/// A diary that remembers nothing.
#[derive(Clone, Copy, Debug)]
pub struct NoDiary;

impl Diary for NoDiary {
    fn last(&self) -> Option<&[u8]> {
        None
    }
    fn step(&mut self, _: usize, _: usize) -> Result<(), BoxError> {
        Ok(())
    }
    fn keep(&mut self, _: &dyn Fn() -> Vec<u8>) -> Result<(), BoxError> {
        Ok(())
    }
}

/// How a lesson went. Errors are relative: the mean squared error of the output of the block as it will be deployed over the mean
/// square of the float one.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LessonReport {
    /// The error of what training began with.
    pub before: f64,
    /// The error after every epoch, where it was measured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub epochs: Vec<f64>,
    /// The error of what was kept.
    pub after: f64,
    /// The epoch it is of, from 1; 0 is what training began with.
    pub kept: usize,
    /// The mean squared error of the batch of every step, before the step.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub losses: Vec<f64>,
    /// What went wrong and what was done about it, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub repairs: Vec<String>,
    /// What is still wrong, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alarms: Vec<String>,
    /// What was tried in place of a training that could not be repaired, in this order; the one that was taken is the last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fallbacks: Vec<FallbackReport>,
    /// What the person should know of the calibration data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notice: Option<String>,
}

codec_of_fields!(LessonReport { before, epochs, after, kept, losses, repairs, alarms, fallbacks, notice });

impl LessonReport {
    /// What stands in the block in place of what a training would have left, if that could not be repaired.
    ///
    /// ```
    /// use quant_methods::{Fallback, FallbackReport, LessonReport};
    ///
    /// let tried = |to, taken| FallbackReport { to, error: 0.01, taken };
    /// let fallbacks = vec![tried(Fallback::Rotation, false), tried(Fallback::Bits8, true)];
    /// let report = LessonReport { fallbacks, ..LessonReport::default() };
    /// assert_eq!(report.fallback(), Some(Fallback::Bits8));
    /// ```
    #[must_use]
    pub fn fallback(&self) -> Option<Fallback> {
        self.fallbacks.iter().find(|tried| tried.taken).map(|tried| tried.to)
    }
}

/// What may stand in a block whose training cannot be repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fallback {
    /// Rotations that are not learned, in the same bits.
    Rotation,
    /// Eight bits of weights and activations, by [`Learner::fallback`].
    Bits8,
}

impl Codec for Fallback {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(*self as u8);
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        match u8::decode(from)? {
            0 => Ok(Self::Rotation),
            1 => Ok(Self::Bits8),
            tag => bad_tag("a fallback", tag),
        }
    }
}

/// A fallback that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct FallbackReport {
    /// Which.
    pub to: Fallback,
    /// The relative error of the block with it.
    pub error: f64,
    /// Whether it is in the block now.
    pub taken: bool,
}

codec_of_fields!(FallbackReport { to, error, taken });

/// What a lesson ends with.
#[derive(Clone, Debug, PartialEq)]
pub struct Learned {
    /// Everything that [`Learner::apply`] needs to know.
    pub record: Vec<u8>,
    /// How it went.
    pub report: LessonReport,
}

/// A modifier that trains pieces of its own in a float block, and then rewrites it.
pub trait Learner: Debug + Send + Sync {
    /// Its registry line.
    fn method(&self) -> &'static Method;
    /// Its settings in a few words, for model cards.
    fn describe(&self) -> String;
    /// What it will leave in a block; none where it has nothing to do. It is not asked of a block whose linears stay float where
    /// others are quantised: that one is left alone.
    ///
    /// # Errors
    /// A block or a scheme that it cannot work on.
    fn plan(&self, block: &BlockPlan<'_>) -> Result<Option<LearnedScheme>, SettingsError>;
    /// What rounds a linear of a block in place of the recipe's rounding, with a scheme of its own; asked before [`Self::plan`].
    fn rounding(&self, block: &BlockPlan<'_>, id: LinearId) -> Option<&dyn Rounding> {
        let _ = (block, id);
        None
    }
    /// What rounds a linear in a block that [falls back](LessonReport::fallback) to more bits, in place of what [`Self::plan`] was shown; none
    /// where it never does. The scheme has the clip ratios and parts of inputs of [`Self::plan_fallback`].
    fn fallback(&self, block: &BlockPlan<'_>, id: LinearId) -> Option<&dyn Rounding> {
        let _ = (block, id);
        None
    }
    /// What it leaves in a block that falls back to more bits, where that is not what [`Self::plan`] says.
    fn plan_fallback(&self, block: &BlockPlan<'_>) -> Option<LearnedScheme> {
        let _ = block;
        None
    }
    /// The stream that it trains on: that of the float model, or that of the quantised blocks before.
    fn inputs(&self) -> Stream;
    /// Blocks whose output its loss is taken behind: the block that it trains in and, float, those that follow, as far as there are any.
    fn window(&self) -> usize {
        1
    }
    /// Sequences of a step; none for one that only runs the block, and asks for no gradient.
    fn batch(&self) -> Option<usize>;
    /// What the person should know of so many calibration sequences, before anything is trained on them.
    ///
    /// # Errors
    /// [`MethodError::Sequences`] where they are too few for one step.
    fn check_sequences(&self, sequences: usize) -> Result<Option<String>, MethodError> {
        let _ = sequences;
        Ok(None)
    }
    /// Bytes it holds at its peak besides the float block, the calibration tokens at its input and what a pass of the block takes: a
    /// step with a batch of `batch` tokens, or all tokens forward, in pieces of at most `batch`.
    fn workspace(&self, block: &BlockPlan<'_>, tokens: usize, batch: usize) -> u64;
    /// How often all tokens pass a block, a backward as two passes.
    fn passes(&self) -> f64;
    /// Floating-point operations on one block besides [`Self::passes`], given the calibration tokens, as far as they weigh.
    fn operations(&self, block: &BlockPlan<'_>, tokens: usize) -> f64 {
        let _ = (block, tokens);
        0.0
    }
    /// The same without any training: what it leaves in a block is what training begins with.
    fn untrained(&self) -> Arc<dyn Learner>;
    /// Learns in the float `block`.
    ///
    /// # Errors
    /// Too few sequences for a step; numbers that were lost; whatever the diary says.
    fn learn(
        &self,
        block: &BlockParams,
        lesson: &Lesson<'_>,
        diary: &mut dyn Diary,
    ) -> Result<Learned, MethodError>;
    /// Rewrites the float block by what was learned: weights, norms, transforms that stand before products, and, where their clip
    /// ratios are learned, the quantisers of inputs and cache.
    ///
    /// # Errors
    /// [`MethodError::Core`] for a record of something else.
    fn apply(
        &self,
        record: &[u8],
        block: BlockParams,
        plan: &BlockPlan<'_>,
        par: Par,
    ) -> Result<BlockParams, MethodError>;
}

/// The weights and biases of a float block, to run it by.
///
/// # Errors
/// [`MethodError::NotFloat`] for a quantised weight.
pub fn float_weights(params: &BlockParams) -> Result<EffectiveWeights<'_, f32>, MethodError> {
    let mut weights = EffectiveWeights::new();
    for (id, linear) in &params.linears {
        let LinearWeight::Float(weight) = &linear.weight else {
            return Err(MethodError::NotFloat {
                method: "training",
                what: format!("the weight of {id} is quantised"),
            });
        };
        let bias = linear.bias.as_ref().map(|bias| bias.view());
        weights.insert(*id, EffectiveWeight { weight: weight.view(), bias });
    }
    Ok(weights)
}
