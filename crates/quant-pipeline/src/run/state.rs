//! The state of a run between two steps, as one value that can be written and read.
//!
//! It is a list of frames. Some are large and are read when their block is (a rounded linear, some rows of a stream); the
//! others say how far the run has come. A run that begins has an empty state and writes frames as it goes; a run that goes on
//! has read them. Both then do the same.

use super::sink::Keeper;
use crate::PipelineError;
use crate::registry::Registry;
use crate::report::{BlockLesson, CacheReport, LinearReport, RunReport, Seconds, StageFactor};
use ndarray::{Array1, Array2, ArrayView2};
use quant_core::codec::{Bytes, Codec, bad_tag, decoded, encode_matrix};
use quant_core::{ActQuant, CoreError, codec_of_fields};
use quant_graph::{LinearId, LinearParams, LinearWeight, Norm};
use quant_methods::{Scaled, Stream};
use std::collections::BTreeMap;

/// Everything a run knows between two steps, besides what it reads again.
#[derive(Clone, Debug, Default)]
pub struct RunState {
    /// The block with which the run begins: the streams at its input are known.
    pub from: usize,
    /// Blocks that the sink has. Those from [`Self::from`] on are passed by the streams again, nothing else.
    pub closed: usize,
    /// What is reported so far.
    pub report: RunReport,
    /// What is known of the blocks from [`Self::from`] on.
    blocks: BTreeMap<usize, KnownBlock>,
    /// Frames with the rows of the streams at the input of [`Self::from`], in order.
    rows: BTreeMap<Stream, Vec<usize>>,
}

/// Frames of a block.
#[derive(Clone, Debug, Default)]
struct KnownBlock {
    transformed: Option<usize>,
    /// The last state of a training that is under way, and the record of a finished one.
    learning: Option<usize>,
    learned: Option<usize>,
    linears: BTreeMap<LinearId, usize>,
}

/// What the transforms of a recipe did to a block, so that it can be done again without their searches.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Transformed {
    /// By what each divided the activations.
    pub(super) scaled: Vec<Scaled>,
    /// The norms as they are now.
    pub(super) norms: BTreeMap<Norm, Array1<f32>>,
    /// The biases as they are now.
    pub(super) biases: BTreeMap<LinearId, Array1<f32>>,
    /// The weights as they are now, where scaling alone does not make them of what they were.
    pub(super) weights: BTreeMap<LinearId, Array2<f32>>,
}

codec_of_fields!(Transformed { scaled, norms, biases, weights });

/// A linear of a finished stage.
#[derive(Debug, PartialEq)]
pub(super) struct KnownLinear {
    /// As it is stored; none for one that was not rounded.
    pub(super) weight: Option<LinearWeight>,
    pub(super) bias: Option<Array1<f32>>,
    pub(super) input: Option<ActQuant>,
}

codec_of_fields!(KnownLinear { weight, bias, input });

/// How far a run has come, since the last time it was said.
struct Progress {
    from: usize,
    closed: usize,
    /// Reports that are known already, and those behind them.
    before: Reported,
    linears: Vec<LinearReport>,
    factors: Vec<StageFactor>,
    lessons: Vec<BlockLesson>,
    /// All of them, each time: they are few.
    caches: Vec<CacheReport>,
    seconds: Seconds,
}

codec_of_fields!(Progress { from, closed, before, linears, factors, lessons, caches, seconds });

/// How much is reported.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Reported {
    linears: usize,
    factors: usize,
    lessons: usize,
}

codec_of_fields!(Reported { linears, factors, lessons });

/// What a frame holds; the tag is its first byte.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Frame {
    Progress,
    Transformed { block: usize },
    Linear { block: usize, id: LinearId },
    Rows { stream: Stream },
    Sink,
    Learning { block: usize },
    Learned { block: usize },
}

/// Bytes that say which frame it is.
const HEAD: u64 = 64;

impl Codec for Frame {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Progress => out.push(0),
            Self::Transformed { block } => {
                out.push(1);
                block.encode(out);
            }
            Self::Linear { block, id } => {
                out.push(2);
                (*block, *id).encode(out);
            }
            Self::Rows { stream } => {
                out.push(3);
                out.push(u8::from(*stream == Stream::Deployed));
            }
            Self::Sink => out.push(4),
            Self::Learning { block } => {
                out.push(5);
                block.encode(out);
            }
            Self::Learned { block } => {
                out.push(6);
                block.encode(out);
            }
        }
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        match u8::decode(from)? {
            0 => Ok(Self::Progress),
            1 => Ok(Self::Transformed { block: usize::decode(from)? }),
            2 => {
                let (block, id) = <(usize, LinearId)>::decode(from)?;
                Ok(Self::Linear { block, id })
            }
            3 if bool::decode(from)? => Ok(Self::Rows { stream: Stream::Deployed }),
            3 => Ok(Self::Rows { stream: Stream::Float }),
            4 => Ok(Self::Sink),
            5 => Ok(Self::Learning { block: usize::decode(from)? }),
            6 => Ok(Self::Learned { block: usize::decode(from)? }),
            tag => bad_tag("a frame of a run", tag),
        }
    }
}

fn frame(what: Frame, content: &impl Codec) -> Vec<u8> {
    let mut out = Vec::new();
    what.encode(&mut out);
    content.encode(&mut out);
    out
}

/// The content of a frame, which is all that stands behind its head.
fn content<T: Codec>(bytes: &[u8]) -> Result<T, CoreError> {
    let mut from = Bytes::new(bytes);
    Frame::decode(&mut from)?;
    decoded(from.take(from.left())?)
}

/// The frame of a linear of a finished stage; the weight of one that is not rounded is what is read.
pub(super) fn linear_frame(block: usize, id: LinearId, linear: &LinearParams, rounded: bool) -> Vec<u8> {
    let LinearParams { weight, bias, input } = linear;
    let mut out = Vec::new();
    Frame::Linear { block, id }.encode(&mut out);
    // As a `KnownLinear`, without a copy of it.
    rounded.encode(&mut out);
    if rounded {
        weight.encode(&mut out);
    }
    bias.encode(&mut out);
    input.encode(&mut out);
    out
}

/// The frame of what transforms did to a block.
pub(super) fn transformed_frame(block: usize, transformed: &Transformed) -> Vec<u8> {
    frame(Frame::Transformed { block }, transformed)
}

/// The frame of a training under way, or of what a finished one learned.
pub(super) fn lesson_frame(block: usize, finished: bool, state: &Vec<u8>) -> Vec<u8> {
    frame(if finished { Frame::Learned { block } } else { Frame::Learning { block } }, state)
}

/// A frame of rows `[rows, hidden]` of a stream, which come in order.
pub(super) fn rows_frame(stream: Stream, rows: ArrayView2<'_, f32>) -> Vec<u8> {
    let mut out = Vec::new();
    Frame::Rows { stream }.encode(&mut out);
    encode_matrix(rows, &mut out);
    out
}

/// A frame of the sink's own.
pub(crate) fn sink_frame(content: &impl Codec) -> Vec<u8> {
    frame(Frame::Sink, content)
}

/// The content of a frame, if it is one of the sink's.
pub(crate) fn of_sink<T: Codec>(keeper: &dyn Keeper, index: usize) -> Result<Option<T>, PipelineError> {
    let senseless = |e: CoreError| keeper.senseless(format!("frame {index}: {e}"));
    let head = keeper.beginning(index, HEAD)?;
    if Frame::decode(&mut Bytes::new(&head)).map_err(senseless)? != Frame::Sink {
        return Ok(None);
    }
    content(&keeper.beginning(index, u64::MAX)?).map(Some).map_err(senseless)
}

impl RunState {
    /// The state that a keeper has; empty where it has none.
    ///
    /// # Errors
    /// Frames that cannot be read or make no sense for a run over so many `layers`.
    pub fn read(keeper: &dyn Keeper, registry: &Registry, layers: usize) -> Result<Self, PipelineError> {
        let mut state = Self::default();
        for index in 0..keeper.frames() {
            let senseless = |e: CoreError| keeper.senseless(format!("frame {index}: {e}"));
            let head = keeper.beginning(index, HEAD)?;
            match Frame::decode(&mut Bytes::new(&head)).map_err(senseless)? {
                Frame::Progress => {
                    let progress = content(&keeper.beginning(index, u64::MAX)?).map_err(senseless)?;
                    state.come(progress, registry, layers).map_err(|e| keeper.senseless(e))?;
                }
                Frame::Transformed { block } => {
                    state.blocks.entry(block).or_default().transformed = Some(index);
                }
                Frame::Linear { block, id } => {
                    state.blocks.entry(block).or_default().linears.insert(id, index);
                }
                Frame::Rows { stream } => state.rows.entry(stream).or_default().push(index),
                Frame::Sink => {}
                Frame::Learning { block } => state.blocks.entry(block).or_default().learning = Some(index),
                Frame::Learned { block } => state.blocks.entry(block).or_default().learned = Some(index),
            }
        }
        Ok(state)
    }

    fn come(&mut self, progress: Progress, registry: &Registry, layers: usize) -> Result<(), String> {
        let Progress { from, closed, before, linears, factors, lessons, caches, seconds } = progress;
        let known = self.reported();
        if before != known {
            return Err(format!("reports behind {before:?} where {known:?} are"));
        }
        if from < self.from || closed < self.closed.max(from) || closed > layers {
            return Err(format!("blocks {from} and {closed} of {layers}"));
        }
        (self.from, self.closed) = (from, closed);
        let methods = registry.methods();
        let unknown = linears.iter().filter_map(|l| l.method.as_deref()).find(|id| methods.get(id).is_none());
        if let Some(id) = unknown {
            return Err(format!("a method {id:?}"));
        }
        self.report.linears.extend(linears);
        self.report.factors.extend(factors);
        self.report.lessons.extend(lessons);
        self.report.caches = caches;
        self.report.seconds = seconds;
        Ok(())
    }

    /// How much is reported.
    pub(super) fn reported(&self) -> Reported {
        let RunReport { linears, factors, lessons, .. } = &self.report;
        Reported { linears: linears.len(), factors: factors.len(), lessons: lessons.len() }
    }

    /// The frame that says how far the run has come, with the reports behind those that are known.
    pub(super) fn progress_frame(&self, before: Reported) -> Vec<u8> {
        let RunReport { linears, factors, lessons, caches, seconds, .. } = &self.report;
        let progress = Progress {
            from: self.from,
            closed: self.closed,
            before,
            linears: linears.iter().skip(before.linears).cloned().collect(),
            factors: factors.iter().skip(before.factors).cloned().collect(),
            lessons: lessons.iter().skip(before.lessons).cloned().collect(),
            caches: caches.clone(),
            seconds: seconds.clone(),
        };
        frame(Frame::Progress, &progress)
    }

    /// Whether all of these linears of a block are known.
    pub(super) fn knows(&self, block: usize, linears: &[LinearId]) -> bool {
        let known = self.blocks.get(&block);
        linears.iter().all(|id| known.is_some_and(|known| known.linears.contains_key(id)))
    }

    /// A known linear.
    pub(super) fn linear(
        &self,
        keeper: &dyn Keeper,
        block: usize,
        id: LinearId,
    ) -> Result<Option<KnownLinear>, PipelineError> {
        let frame = self.blocks.get(&block).and_then(|known| known.linears.get(&id));
        frame.map(|frame| self.content(keeper, *frame)).transpose()
    }

    /// What transforms are known to have done to a block.
    pub(super) fn transformed(
        &self,
        keeper: &dyn Keeper,
        block: usize,
    ) -> Result<Option<Transformed>, PipelineError> {
        let frame = self.blocks.get(&block).and_then(|known| known.transformed);
        frame.map(|frame| self.content(keeper, frame)).transpose()
    }

    /// Whether a block's training is finished.
    pub(super) fn has_learned(&self, block: usize) -> bool {
        self.blocks.get(&block).is_some_and(|known| known.learned.is_some())
    }

    /// What is known of the training in a block: its last state, or the record of a finished one.
    pub(super) fn lesson(
        &self,
        keeper: &dyn Keeper,
        block: usize,
        finished: bool,
    ) -> Result<Option<Vec<u8>>, PipelineError> {
        let known = self.blocks.get(&block);
        let frame = known.and_then(|known| if finished { known.learned } else { known.learning });
        frame.map(|frame| self.content(keeper, frame)).transpose()
    }

    /// The frames with the rows of a stream.
    pub(super) fn rows_of(&self, stream: Stream) -> &[usize] {
        self.rows.get(&stream).map_or(&[], Vec::as_slice)
    }

    /// The content of a frame.
    pub(super) fn content<T: Codec>(&self, keeper: &dyn Keeper, frame: usize) -> Result<T, PipelineError> {
        let bytes = keeper.beginning(frame, u64::MAX)?;
        content(&bytes).map_err(|e| keeper.senseless(format!("frame {frame}: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Named;
    use quant_core::codec::encoded;
    use quant_graph::Site;
    use quant_hessian::{FactorReport, Outcome, Precision};

    /// Frames in memory.
    #[derive(Default)]
    pub(crate) struct Frames(Vec<Vec<u8>>);

    impl Keeper for Frames {
        fn begin(&mut self) -> Result<(), PipelineError> {
            self.0.clear();
            Ok(())
        }
        fn add(&mut self, frame: Vec<u8>) -> Result<(), PipelineError> {
            self.0.push(frame);
            Ok(())
        }
        fn commit(&mut self) -> Result<(), PipelineError> {
            Ok(())
        }
        fn settle(&mut self) -> Result<(), PipelineError> {
            Ok(())
        }
        fn frames(&self) -> usize {
            self.0.len()
        }
        fn beginning(&self, frame: usize, bytes: u64) -> Result<Vec<u8>, PipelineError> {
            Ok(self.0[frame].iter().copied().take(usize::try_from(bytes).unwrap_or(usize::MAX)).collect())
        }
        fn senseless(&self, detail: String) -> PipelineError {
            PipelineError::Usage(detail)
        }
    }

    fn state() -> RunState {
        let mut state = RunState { from: 1, closed: 2, ..RunState::default() };
        for (block, method) in [(Some(0), Some("gptq")), (None, None)] {
            state.report.linears.push(LinearReport {
                module: format!("model.{block:?}"),
                block,
                method: method.map(Into::into),
                scheme: "W4A16".into(),
                bits_per_weight: 4.1,
                weight_error: 0.1 + 0.2,
                output_error: Some(f64::MIN_POSITIVE / 3.0),
                loss: None,
                figures: Named::from([("shift".into(), 0.25)]),
                stored_bytes: 12,
                group_bits: Some(vec![3, 4]),
                salient_columns: Some(vec![7]),
                seconds: 1.5,
            });
        }
        let attempts = vec![quant_hessian::Attempt {
            damping: 0.01,
            lambda: 1.0 / 3.0,
            precision: Precision::F64,
            outcome: Outcome::Accepted { residual: 1e-9 },
        }];
        let factor = FactorReport {
            attempts,
            dead_columns: vec![3],
            min_diagonal: 0.1,
            max_diagonal: 2.0,
            mean_diagonal: 0.7,
            pivot_range: (0.25, 0.5),
            largest_eigenvalue: None,
        };
        state.report.factors.push(StageFactor { block: Some(0), module: "m".into(), factor });
        state.report.caches.push(CacheReport { block: 0, key_outliers: 3.5, key_snr_db: None });
        state.report.seconds.insert("round".into(), 0.3);
        state
    }

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let mut frames = Frames::default();
        let state = state();
        let first = RunState {
            from: 1,
            closed: 1,
            report: RunReport { linears: state.report.linears[..1].to_vec(), ..RunReport::default() },
            ..RunState::default()
        };
        frames.0.push(first.progress_frame(Reported::default()));
        frames.0.push(sink_frame(&7_u64));
        let rows = Array2::from_elem((2, 3), 0.1);
        frames.0.push(rows_frame(Stream::Float, rows.view()));
        frames.0.push(state.progress_frame(first.reported()));
        let read = RunState::read(&frames, &Registry::default(), 2).unwrap();
        let json = |state: &RunState| serde_json::to_string(&state.report).unwrap();
        assert_eq!((read.from, read.closed, json(&read)), (1, 2, json(&state)));
        assert_eq!(read.rows_of(Stream::Float), [2]);
        assert_eq!(read.content::<Array2<f32>>(&frames, 2).unwrap(), rows);
        assert_eq!(of_sink::<u64>(&frames, 1).unwrap(), Some(7));
        assert_eq!(of_sink::<u64>(&frames, 0).unwrap(), None);
        // A model of fewer blocks, reports that do not follow, a method that nobody has.
        assert!(RunState::read(&frames, &Registry::default(), 1).is_err());
        assert!(RunState::read(&frames, &Registry::empty(), 2).is_err());
        frames.0.swap(0, 3);
        assert!(RunState::read(&frames, &Registry::default(), 2).is_err());
    }

    #[test]
    fn a_linear_that_is_not_rounded_is_kept_without_its_weight() {
        let weight = LinearWeight::Float(Array2::from_elem((2, 3), 0.1));
        let linear = LinearParams { weight: weight.clone(), bias: Some(Array1::ones(2)), input: None };
        for rounded in [true, false] {
            let known: KnownLinear = content(&linear_frame(1, LinearId::UP, &linear, rounded)).unwrap();
            assert_eq!(known.weight, rounded.then(|| weight.clone()));
            assert_eq!((known.bias, known.input), (linear.bias.clone(), None));
        }
    }

    #[test]
    fn frames_that_make_no_sense_are_errors() {
        let whole = state().progress_frame(Reported::default());
        for bytes in
            [vec![], vec![9], vec![2, 0], whole[..whole.len() - 1].to_vec(), [whole, vec![0]].concat()]
        {
            let frames = Frames(vec![bytes]);
            assert!(RunState::read(&frames, &Registry::default(), 2).is_err());
        }
    }

    #[test]
    fn what_transforms_did_comes_back() {
        let factors = Array1::from(vec![0.1_f32, 3.0]);
        let transformed = Transformed {
            scaled: vec![Scaled::from([(Site::MlpInput, factors.clone())]), Scaled::new()],
            norms: BTreeMap::from([(Norm::PostAttention, factors.clone())]),
            biases: BTreeMap::from([(LinearId::Q, factors)]),
            weights: BTreeMap::from([(LinearId::UP, Array2::ones((1, 2)))]),
        };
        assert_eq!(decoded::<Transformed>(&encoded(&transformed)).unwrap(), transformed);
    }
}
