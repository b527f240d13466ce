//! Statistics of the float stream that runs share.
//!
//! They are those of the model as it was read: what is asked for, the tokens and the arithmetic of products determine them to the bit, and
//! no rounding has been near them. Of the deployed stream nothing is shared, not even what enters its first stage, which is the same in
//! many runs: gathering that is a hundredth of a run (`benchmarks/README.md`, "What the rows of a study share").

use super::Run;
use super::observe::BlockStatistics;
use super::stream::ActivationStream;
use crate::PipelineError;
use crate::layout::Layout;
use crate::plan::Plan;
use crate::shared::Shared;
use quant_checkpoint::TensorHash;
use quant_data::TokenSet;
use quant_graph::BlockSource;
use quant_methods::{FloatStream, Gathered, Stream};
use std::sync::Arc;

/// Where statistics of the float stream are shared, and what tells their model apart.
#[derive(Clone, Debug)]
pub struct SharedStatistics {
    shared: Shared,
    model: String,
}

impl SharedStatistics {
    /// Those of a model that `model` tells apart from all others; none where nothing is shared, or where the statistics of the plan are
    /// not those of the model as it was read: behind a transform of the whole of it, and where a learner or the deployed stream moves the
    /// float one.
    ///
    /// # Errors
    /// That of `model`.
    pub fn new<E>(
        shared: &Shared,
        plan: &Plan,
        model: impl FnOnce() -> Result<String, E>,
    ) -> Result<Option<Self>, E> {
        if shared.most() == 0 || !Self::sharable(plan) {
            return Ok(None);
        }
        Ok(Some(Self { shared: shared.clone(), model: model()? }))
    }

    fn sharable(plan: &Plan) -> bool {
        let moved = plan.streams.together == Some(FloatStream::Model) || plan.recipe.learner().is_some();
        plan.streams.float && !moved && plan.recipe.model_transform().is_none()
    }

    /// Bytes that the statistics of a plan take, of calibration sequences of these lengths; none where they are not shared.
    #[must_use]
    pub fn bytes(plan: &Plan, lengths: &[usize]) -> u64 {
        if Self::sharable(plan) { bytes(plan, &Layout::new(lengths.iter().copied()).starts) } else { 0 }
    }
}

fn bytes(plan: &Plan, starts: &[usize]) -> u64 {
    let of = |block: usize| {
        let stages = plan.spec.block(block).stages;
        let stages = stages
            .iter()
            .map(|stage| Gathered::bytes(&plan.needs_at(block, stage).float, stage.width, starts));
        stages.sum::<usize>() as u64
    };
    (0..plan.spec.layers).map(of).sum()
}

/// What a run has of this.
#[derive(Debug, Default)]
pub(super) struct Lent {
    key: String,
    bytes: u64,
    /// What another run left, by block.
    known: Option<Arc<Vec<BlockStatistics>>>,
    /// What this one gathers to be left, if it does.
    own: Option<Vec<BlockStatistics>>,
}

impl Lent {
    /// Whether another run has gathered everything.
    pub(super) fn is_known(&self) -> bool {
        self.known.is_some()
    }

    /// Takes in what was gathered of a block, before transforms touch it.
    pub(super) fn gathered(&mut self, index: usize, statistics: &BlockStatistics) {
        if let Some(own) = &mut self.own
            && own.len() == index
        {
            own.push(statistics.clone());
        }
    }
}

impl Run<'_> {
    /// Finds what other runs have left, or begins to gather it for them.
    pub(super) fn lend(&mut self, tokens: Option<&TokenSet>) {
        let (Some(place), Some(tokens)) = (&self.options.statistics, tokens) else { return };
        let plan = self.plan;
        let ids = tokens.sequences.iter().flatten().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
        let needs: Vec<_> = (0..plan.spec.layers)
            .flat_map(|block| plan.spec.block(block).stages.into_iter().map(move |stage| (block, stage)))
            .map(|(block, stage)| (block, stage.site, plan.needs_at(block, &stage).float))
            .collect();
        let key = format!(
            "float statistics of {}, {:?}, products in {}, sums in {}, {} in sequences that begin at {:?}: {needs:?}",
            place.model,
            plan.spec,
            plan.recipe.compute(),
            plan.recipe.statistics(),
            TensorHash::of(&ids),
            self.layout.starts,
        );
        let known = place.shared.get(&key);
        let bytes = bytes(plan, &self.layout.starts);
        // A run that goes on in the middle has not seen everything.
        let own = (known.is_none() && self.state.from == 0 && bytes <= place.shared.most()).then(Vec::new);
        self.lent = Lent { key, bytes, known, own };
    }

    /// Leaves what was gathered of all blocks to other runs.
    pub(super) fn leave(&mut self) {
        let Lent { key, bytes, own, .. } = std::mem::take(&mut self.lent);
        if let (Some(place), Some(own)) = (&self.options.statistics, own)
            && own.len() == self.plan.spec.layers
        {
            place.shared.keep(key, Arc::new(own), bytes);
        }
    }

    /// What another run has gathered of a block.
    pub(super) fn known_statistics(&self, index: usize) -> Option<BlockStatistics> {
        self.lent.known.as_ref()?.get(index).cloned()
    }

    /// The float stream at the input of the first block: as it was kept or, where the run that was interrupted had the statistics of
    /// another and carried no such stream, through the blocks before once more.
    pub(super) fn known_float(
        &mut self,
        source: &mut dyn BlockSource,
        tokens: &TokenSet,
    ) -> Result<ActivationStream, PipelineError> {
        if !self.state.rows_of(Stream::Float).is_empty() {
            return self.known_stream(Stream::Float);
        }
        let mut embedded = self.store(self.plan.spec.hidden)?;
        self.layout.embed(source, &tokens.sequences, &mut embedded)?;
        let mut stream = ActivationStream::new(embedded);
        for index in 0..self.state.from {
            let params = source.block(index)?;
            let block = self.float_block(index, &params)?;
            self.observe(index, &block, &mut stream, &mut BlockStatistics::new(), false)?;
        }
        Ok(stream)
    }
}
