//! A quantised model with single parts of the float one in their place.

use super::{Carrier, Heads, score};
use crate::PipelineError;
use crate::events::{Event, Events};
use crate::layout::Layout;
use quant_eval::EvalReport;
use quant_graph::{BlockParams, BlockSource, LinearId, ModelSpec};
use quant_kernels::{Par, return_freed_memory};
use quant_model::{Arithmetic, RowStore};
use std::fmt;
use std::path::PathBuf;

/// Puts parts of a float model into the place of the quantised ones, one at a time, and compares the logits of each such mixture with
/// those of the float model on one sample: where a loss comes from is where putting back regains it.
///
/// The mixtures go through the blocks together: each block of either model is read once for all of them, and what lies in front of the
/// part is computed once. It is for models between whose blocks flows the same, and, for linears, inside whose blocks too: a recipe that
/// rotates or scales what flows leaves no place for a float part.
///
/// ```
/// use quant_kernels::{Compute, Par};
/// use quant_pipeline::{PutBack, Silent, open_folder};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/tiny-reasoner");
/// let (mut quantised, mut float) = (open_folder(model.as_ref())?.into_source()?, open_folder(model.as_ref())?.into_source()?);
/// let sample = vec![(0..32).collect::<Vec<u32>>()];
/// let mut mixtures = PutBack::new(&mut quantised, &mut float, &sample, Compute::F32, Par::Seq);
/// let (whole, blocks) = mixtures.blocks(&mut Silent)?;
/// // Nothing was quantised here, so nothing is regained.
/// assert_eq!(whole.comparison, blocks[0].comparison);
/// # Ok(())
/// # }
/// ```
pub struct PutBack<'a> {
    quantised: &'a mut dyn BlockSource,
    float: &'a mut dyn BlockSource,
    sequences: &'a [Vec<u32>],
    layout: Layout,
    arithmetic: Arithmetic,
    spill: Option<PathBuf>,
    par: Par,
    /// The float model's stream behind its final norm, once it is known.
    reference: Option<RowStore>,
}

impl fmt::Debug for PutBack<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PutBack")
            .field("sequences", &self.sequences.len())
            .field("arithmetic", &self.arithmetic)
            .finish_non_exhaustive()
    }
}

/// Which parts are put back.
#[derive(Clone, Copy)]
enum Parts {
    /// None: the quantised model alone.
    None,
    /// Every block.
    Blocks,
    /// Every linear of this one.
    Linears(usize),
}

impl Parts {
    /// Those of one block.
    fn of(self, spec: &ModelSpec, index: usize) -> Vec<Part> {
        match self {
            Self::Blocks => vec![Part::Block],
            Self::Linears(block) if block == index => {
                spec.block(index).linears.iter().map(|linear| Part::Linear(linear.id)).collect()
            }
            Self::None | Self::Linears(_) => Vec::new(),
        }
    }
    /// What is counted.
    fn what(self) -> &'static str {
        match self {
            Self::None => "block of both models",
            Self::Blocks => "block put back",
            Self::Linears(_) => "block behind linears put back",
        }
    }
}

/// A part of a block that is put back.
#[derive(Clone, Copy)]
enum Part {
    /// All of it.
    Block,
    /// One linear.
    Linear(LinearId),
}

impl Part {
    /// A quantised block with this part of the float one.
    fn in_place_of(self, own: &BlockParams, original: &BlockParams) -> BlockParams {
        match self {
            // The cache is no part of a block's weights.
            Self::Block => BlockParams { kv: own.kv.clone(), ..original.clone() },
            Self::Linear(id) => {
                let mut mixed = own.clone();
                if let Some(linear) = original.linears.get(&id) {
                    mixed.linears.insert(id, linear.clone());
                }
                mixed
            }
        }
    }
}

impl<'a> PutBack<'a> {
    /// Of two models with the same blocks and linears, on `sequences` of two tokens or more, in this arithmetic.
    #[must_use]
    pub fn new(
        quantised: &'a mut dyn BlockSource,
        float: &'a mut dyn BlockSource,
        sequences: &'a [Vec<u32>],
        arithmetic: impl Into<Arithmetic>,
        par: Par,
    ) -> Self {
        let (layout, arithmetic) = (Layout::new(sequences.iter().map(Vec::len)), arithmetic.into());
        Self { quantised, float, sequences, layout, arithmetic, spill: None, par, reference: None }
    }

    /// Keeps the streams in unnamed files of this folder instead of memory, where they take [`Self::stream_bytes`]. Results are the same.
    #[must_use]
    pub fn spilled_to(mut self, folder: Option<PathBuf>) -> Self {
        self.spill = folder;
        self
    }

    /// Bytes of all streams at once: of both models, and of one mixture for every block, or for every linear of one.
    #[must_use]
    pub fn stream_bytes(spec: &ModelSpec, tokens: usize) -> u64 {
        let mixtures = spec.layers.max(Self::linears_of(spec));
        (2 + mixtures) as u64 * tokens as u64 * spec.hidden as u64 * size_of::<f32>() as u64
    }

    /// Times that the sample goes through a block, at most: [`Self::blocks`] takes both models and all that differs, and
    /// [`Self::linears`] most where the block is the first.
    #[must_use]
    pub fn block_passes(spec: &ModelSpec) -> usize {
        let blocks = spec.layers;
        3 * blocks + blocks * blocks.saturating_sub(1) / 2 + Self::linears_of(spec) * blocks
    }

    fn linears_of(spec: &ModelSpec) -> usize {
        (0..spec.layers).map(|index| spec.block(index).linears.len()).max().unwrap_or(0)
    }

    /// The quantised model as it is.
    ///
    /// # Errors
    /// As [`Self::blocks`].
    pub fn whole(&mut self, events: &mut dyn Events) -> Result<EvalReport, PipelineError> {
        Ok(self.mixtures(Parts::None, events)?.swap_remove(0))
    }

    /// Whether a linear of the float block can stand in the quantised one: norms and online transforms around it are the same.
    ///
    /// # Errors
    /// Blocks that cannot be read.
    pub fn has_places_for_linears(&mut self, block: usize) -> Result<bool, PipelineError> {
        let (own, original) = (self.quantised.block(block)?, self.float.block(block)?);
        Ok(own.norms == original.norms && own.online == original.online)
    }

    /// The quantised model as it is, and with each block put back.
    ///
    /// # Errors
    /// Blocks that cannot be read, a disk that is full, [`PipelineError::Interrupted`]. Numbers that are not finite are in the reports.
    pub fn blocks(
        &mut self,
        events: &mut dyn Events,
    ) -> Result<(EvalReport, Vec<EvalReport>), PipelineError> {
        let mut reports = self.mixtures(Parts::Blocks, events)?;
        let blocks = reports.split_off(1);
        Ok((reports.swap_remove(0), blocks))
    }

    /// The quantised model with each linear of one block put back, in the order of the model's spec.
    ///
    /// # Errors
    /// As [`Self::blocks`].
    pub fn linears(
        &mut self,
        block: usize,
        events: &mut dyn Events,
    ) -> Result<Vec<EvalReport>, PipelineError> {
        self.mixtures(Parts::Linears(block), events)
    }

    /// Reports of all streams but the float model's: first the quantised model's, unless linears are put back.
    fn mixtures(&mut self, parts: Parts, events: &mut dyn Events) -> Result<Vec<EvalReport>, PipelineError> {
        let spec = self.quantised.spec().clone();
        let spill = self.spill.as_deref();
        let mut carrier = Carrier::new(&spec, &self.layout, self.arithmetic.clone(), spill, self.par);
        let (known, mut reference) = match self.reference.take() {
            Some(known) => (Some(known), None),
            None => (None, Some(carrier.embedded(self.float, self.sequences)?)),
        };
        // That of the quantised model, as long as it is needed.
        let mut whole = Some(carrier.embedded(self.quantised, self.sequences)?);
        let mut mixtures: Vec<RowStore> = Vec::new();
        for index in 0..spec.layers {
            events.event(Event::Evaluated { what: parts.what(), done: index, of: spec.layers, inside: 0.0 });
            return_freed_memory();
            let exchanged = parts.of(&spec, index);
            let own = self.quantised.block(index)?;
            let wanted = reference.is_some() || !exchanged.is_empty();
            let original = wanted.then(|| self.float.block(index)).transpose()?;
            let mut begun = Vec::new();
            if let (Some(original), Some(whole)) = (&original, &whole) {
                for part in exchanged {
                    let block = carrier.block(index, part.in_place_of(&own, original))?;
                    let mut stream = carrier.copy(whole)?;
                    carrier.advance(&block, &mut stream, events)?;
                    begun.push(stream);
                }
            }
            if let (Some(original), Some(reference)) = (original, &mut reference) {
                let block = carrier.block(index, original)?;
                carrier.advance(&block, reference, events)?;
            }
            if matches!(parts, Parts::Linears(at) if at == index) {
                whole = None;
            }
            let block = carrier.block(index, own)?;
            for stream in whole.iter_mut().chain(&mut mixtures) {
                carrier.advance(&block, stream, events)?;
            }
            mixtures.append(&mut begun);
        }
        let normed_already = usize::from(known.is_some());
        let mut hidden: Vec<RowStore> =
            known.into_iter().chain(reference).chain(whole).chain(mixtures).collect();
        let reports = score(
            Heads { reference: &mut *self.float, others: Some(&mut *self.quantised) },
            (&mut hidden, normed_already),
            (self.sequences, &self.layout),
            "",
            (self.arithmetic.compute, self.par),
            events,
        )?;
        self.reference = Some(hidden.swap_remove(0));
        Ok(reports)
    }
}
