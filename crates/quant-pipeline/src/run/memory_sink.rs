//! Finished blocks as a model in memory.

use crate::PipelineError;
use crate::run::BlockSink;
use ndarray::{Array1, Array2, ArrayView2, Axis};
use quant_graph::{BlockParams, ModelSpec, Outer};
use quant_model::InMemoryModel;
use std::collections::BTreeMap;

/// Keeps what a run makes, for whoever wants to go on with it and needs no folder: a search over recipes, an experiment, a test.
///
/// ```
/// use quant_pipeline::run::{MemorySink, RunOptions, run};
/// use quant_pipeline::{Plan, Recipe, Silent, open_folder};
/// use quant_kernels::Par;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/tiny-reasoner");
/// let folder = open_folder(model.as_ref())?;
/// let plan = Plan::new(&Recipe::from_preset("w8a8-ascend")?, &folder.spec)?;
/// let mut sink = MemorySink::default();
/// let options = RunOptions::new(Par::Seq);
/// run(&plan, &mut folder.into_source()?, None, &mut sink, &mut Silent, &options)?;
/// let mut quantised = sink.into_model(plan.stored.clone())?;
/// assert_eq!(quantised.blocks_mut().len(), plan.spec.layers);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemorySink {
    blocks: Vec<BlockParams>,
    outer: BTreeMap<Outer, Array2<f32>>,
}

impl MemorySink {
    /// The blocks that have come.
    #[must_use]
    pub fn blocks(&self) -> &[BlockParams] {
        &self.blocks
    }
    /// The model, when everything has come. `spec` is that of the plan as it is stored ([`Plan::stored`](crate::Plan::stored)).
    ///
    /// # Errors
    /// [`PipelineError::Model`] if a part has not come.
    pub fn into_model(mut self, spec: ModelSpec) -> Result<InMemoryModel, PipelineError> {
        let mut take = |what| self.outer.remove(&what);
        // A part that has not come is refused for its shape.
        let embedding = take(Outer::Embedding).unwrap_or_default();
        let norm = take(Outer::FinalNorm).unwrap_or_default();
        let norm = Array1::from_iter(norm.iter().copied());
        let head = take(Outer::Head);
        Ok(InMemoryModel::new(spec, self.blocks, embedding, norm, head)?)
    }
}

impl BlockSink for MemorySink {
    fn block(&mut self, index: usize, block: BlockParams) -> Result<(), PipelineError> {
        let there = self.blocks.len();
        if index != there {
            return Err(PipelineError::Sink(
                format!("block {there} was expected, block {index} came").into(),
            ));
        }
        self.blocks.push(block);
        Ok(())
    }
    fn outer_rows(
        &mut self,
        what: Outer,
        first: usize,
        rows: ArrayView2<'_, f32>,
    ) -> Result<(), PipelineError> {
        let part = self.outer.entry(what).or_insert_with(|| Array2::zeros((0, rows.ncols())));
        let there = part.nrows();
        let taken = if first == there { part.append(Axis(0), rows).ok() } else { None };
        taken.ok_or_else(|| {
            let found = format!("rows {:?} from row {first} on", rows.dim());
            PipelineError::Sink(format!("{}: row {there} was expected, {found} came", what.tensor()).into())
        })
    }
}
