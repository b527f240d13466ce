//! From finished blocks to tensors of a folder.

use crate::PipelineError;
use crate::plan::Plan;
use crate::run::{BlockSink, Keeper, of_sink, sink_frame};
use ndarray::ArrayView2;
use quant_checkpoint::formats::{BlockSideData, TensorDecl, stored_floats};
use quant_checkpoint::{Checkpoint, CheckpointError, InputHashes, OutputFolder, TensorHash};
use quant_core::{ActQuant, KvQuant, codec_of_fields};
use quant_graph::{BlockParams, LinearId, Outer};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// Whether a tensor has no place before all blocks are made.
pub(crate) type Late<'a> = dyn Fn(&str) -> bool + Send + Sync + 'a;

/// Encodes finished blocks and streams them to a folder; parts outside them are copied from the input where they lie there
/// as they are. Keeps the journal of the run in the folder, with what side files and manifest need of finished blocks.
pub(crate) struct FolderSink<'a> {
    plan: &'a Plan,
    /// The blocks that fell back to more bits.
    fallen: BTreeSet<usize>,
    output: &'a mut OutputFolder,
    input: Option<&'a Checkpoint>,
    declared: &'a [TensorDecl],
    /// Whether a tensor has no place yet.
    late: &'a Late<'a>,
    /// The bytes of those that have none, by name, and whether the final norm is one.
    waiting: Vec<(String, Vec<u8>)>,
    norm_waits: bool,
    side: Vec<BlockSideData>,
    copied: Vec<(&'static str, &'static str)>,
    input_hashes: InputHashes,
    /// Blocks and input tensors that the journal has.
    kept_blocks: usize,
    kept_hashes: BTreeSet<String>,
    kept_waiting: usize,
}

/// What a sink leaves for the end.
pub(crate) struct Left {
    /// What side files need of every block.
    pub(crate) side: Vec<BlockSideData>,
    /// The tensors that were copied: their names in the input and here.
    pub(crate) copied: Vec<(&'static str, &'static str)>,
    /// Tensors that had no place: names and bytes.
    pub(crate) waiting: Vec<(String, Vec<u8>)>,
    /// Whether the final norm had none either, and is to be copied.
    pub(crate) norm_waits: bool,
}

/// What the journal keeps of finished blocks besides the run's own frames.
struct Kept {
    /// Blocks that were kept before.
    before: usize,
    side: Vec<(BTreeMap<LinearId, ActQuant>, Option<KvQuant>)>,
    input_hashes: Vec<(String, TensorHash)>,
    /// Tensors that wait for their place.
    waiting: Vec<(String, Vec<u8>)>,
}

codec_of_fields!(Kept { before, side, input_hashes, waiting });

impl<'a> FolderSink<'a> {
    /// `declared` are the tensors of the folder, of which `late` says which have no place yet, `input` the checkpoint the source reads, if it
    /// reads one, and `input_hashes` those that the source gathers. What an earlier run left in the folder is taken up.
    ///
    /// # Errors
    /// A journal that cannot be read or makes no sense.
    pub(crate) fn new(
        plan: &'a Plan,
        output: &'a mut OutputFolder,
        input: Option<&'a Checkpoint>,
        (declared, late): (&'a [TensorDecl], &'a Late<'a>),
        input_hashes: InputHashes,
    ) -> Result<Self, PipelineError> {
        let mut sink = Self {
            plan,
            fallen: BTreeSet::new(),
            output,
            input,
            declared,
            late,
            waiting: Vec::new(),
            norm_waits: false,
            side: Vec::new(),
            copied: Vec::new(),
            input_hashes,
            kept_blocks: 0,
            kept_hashes: BTreeSet::new(),
            kept_waiting: 0,
        };
        for frame in 0..sink.frames() {
            let Some(kept) = of_sink::<Kept>(&sink, frame)? else { continue };
            if kept.before != sink.side.len() {
                let found = format!("frame {frame}: {} blocks where {} are", kept.before, sink.side.len());
                return Err(sink.senseless(found));
            }
            sink.side.extend(kept.side.into_iter().map(|(inputs, kv)| BlockSideData { inputs, kv }));
            sink.input_hashes.extend(kept.input_hashes);
            sink.waiting.extend(kept.waiting);
        }
        sink.kept_waiting = sink.waiting.len();
        sink.kept_blocks = sink.side.len();
        for &what in plan.stored.outer().iter().filter(|what| !plan.tables.contains_key(what)) {
            if sink.output.has(what.tensor()) {
                sink.copied.push((plan.spec.stored_in(what).tensor(), what.tensor()));
            }
        }
        sink.kept_hashes = sink.input_hashes.all().into_keys().collect();
        Ok(sink)
    }
    /// How many blocks it has.
    pub(crate) fn blocks(&self) -> usize {
        self.side.len()
    }
    /// What is left when the weights that had their places are written.
    pub(crate) fn into_parts(self) -> Left {
        let Self { side, copied, waiting, norm_waits, .. } = self;
        Left { side, copied, waiting, norm_waits }
    }
}

impl Keeper for FolderSink<'_> {
    fn begin(&mut self) -> Result<(), PipelineError> {
        self.kept_blocks = 0;
        self.kept_hashes.clear();
        self.kept_waiting = 0;
        Ok(self.output.begin_journal()?)
    }
    fn add(&mut self, frame: Vec<u8>) -> Result<(), PipelineError> {
        Ok(self.output.record(frame)?)
    }
    fn commit(&mut self) -> Result<(), PipelineError> {
        let hashes = self.input_hashes.all();
        let new: Vec<_> = hashes.into_iter().filter(|(name, _)| !self.kept_hashes.contains(name)).collect();
        self.kept_hashes.extend(new.iter().map(|(name, _)| name.clone()));
        let side = self.side.iter().skip(self.kept_blocks).map(|s| (s.inputs.clone(), s.kv.clone()));
        let waiting = self.waiting.iter().skip(self.kept_waiting).cloned().collect();
        self.kept_waiting = self.waiting.len();
        let kept = Kept { before: self.kept_blocks, side: side.collect(), input_hashes: new, waiting };
        self.kept_blocks = self.side.len();
        self.output.record(sink_frame(&kept))?;
        Ok(self.output.commit()?)
    }
    fn settle(&mut self) -> Result<(), PipelineError> {
        Ok(self.output.settle()?)
    }
    fn frames(&self) -> usize {
        self.output.kept().map_or(0, quant_checkpoint::Kept::frames)
    }
    fn beginning(&self, frame: usize, bytes: u64) -> Result<Vec<u8>, PipelineError> {
        // Asked for only below `frames`.
        Ok(self.output.kept().map_or(Ok(Vec::new()), |kept| kept.beginning(frame, bytes))?)
    }
    fn senseless(&self, detail: String) -> PipelineError {
        let path = self.output.kept().map_or_else(|| self.output.partial(), quant_checkpoint::Kept::path);
        CheckpointError::DamagedJournal { path: path.to_owned(), detail }.into()
    }
}

impl BlockSink for FolderSink<'_> {
    fn keeper(&mut self) -> Option<&mut dyn Keeper> {
        Some(self)
    }
    fn block(&mut self, index: usize, block: BlockParams) -> Result<(), PipelineError> {
        let (format, fallen) = (self.plan.recipe.format(), self.fallen.contains(&index));
        let scheme = if fallen {
            Cow::Owned(self.plan.scheme_with(|i| i == index))
        } else {
            Cow::Borrowed(&self.plan.scheme)
        };
        let side = BlockSideData::of(&block);
        for tensor in format.encode_block(&self.plan.spec, &scheme, index, block)? {
            if (self.late)(&tensor.name) {
                self.waiting.push((tensor.name, tensor.bytes));
                continue;
            }
            self.output.tensor_owned(&tensor.name, tensor.dtype, &tensor.shape, tensor.bytes)?;
        }
        self.side.push(side);
        Ok(())
    }
    fn fell_back(&mut self, index: usize) {
        self.fallen.insert(index);
    }
    fn has(&self, what: Outer) -> bool {
        self.output.has(what.tensor())
    }
    fn copy_stored(&mut self, what: Outer) -> Result<bool, PipelineError> {
        let Some(input) = self.input else { return Ok(false) };
        let (from, to) = (self.plan.spec.stored_in(what).tensor(), what.tensor());
        if (self.late)(to) {
            self.norm_waits = true;
        } else {
            self.output.copy_tensor(input, from, to)?;
        }
        self.copied.push((from, to));
        Ok(true)
    }
    fn outer_rows(
        &mut self,
        what: Outer,
        first: usize,
        rows: ArrayView2<'_, f32>,
    ) -> Result<(), PipelineError> {
        let Some(decl) = self.declared.iter().find(|decl| decl.name == what.tensor()) else {
            return Ok(());
        };
        if first == 0 {
            self.output.begin_tensor(&decl.name, decl.dtype, &decl.shape)?;
        }
        self.output.write(&stored_floats(&decl.name, rows.iter().copied(), decl.dtype)?)?;
        let all = if what == Outer::FinalNorm { 1 } else { self.plan.spec.vocab };
        if first + rows.nrows() == all {
            self.output.end_tensor()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{RunOptions, run};
    use crate::{Recipe, Silent};
    use quant_checkpoint::{FolderSource, OutputOptions, ShardPlan};
    use quant_graph::BlockSource;
    use quant_kernels::Par;
    use quant_model::{InMemoryModel, model_spec};
    use quant_testkit::{Numbers, random_block};

    /// A model that lies in no checkpoint becomes a folder too: every part of it comes as numbers, tables some rows at a time.
    #[test]
    fn a_model_in_memory_becomes_a_folder() {
        let config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 70_000, "tie_word_embeddings": false,
            "dtype": "float32",
        });
        let spec = model_spec(&config).unwrap();
        let mut numbers = Numbers::new(5);
        let blocks = (0..2).map(|_| random_block(&spec, &mut numbers)).collect();
        let mut table = || numbers.matrix(spec.vocab, spec.hidden, 1.0);
        let (embedding, head) = (table(), table());
        let norm = numbers.vector(spec.hidden, 1.0, 0.1);
        let model = InMemoryModel::new(spec.clone(), blocks, embedding, norm, Some(head)).unwrap();
        let mut source = model.clone();
        let recipe = Recipe::parse("version: 1\nmodifiers: [rtn: { scheme: W16A16 }]\n").unwrap();
        let plan = Plan::new(&recipe, &spec).unwrap();

        let work = tempfile::tempdir().unwrap();
        let folder = work.path().join("out");
        let declared = recipe.format().declare(&spec, &plan.scheme, &|_| None);
        let mut output = OutputFolder::create(&folder, &OutputOptions::default()).unwrap();
        let shards = ShardPlan::new(declared.clone(), &recipe.format().naming(), 4 << 20).unwrap();
        output.begin_weights(shards).unwrap();
        let hashes = InputHashes::default();
        let mut sink = FolderSink::new(&plan, &mut output, None, (&declared, &|_| false), hashes).unwrap();
        let options = RunOptions::new(Par::Seq);
        run(&plan, &mut source, None, &mut sink, &mut Silent, &options).unwrap();
        let Left { side, copied, waiting, norm_waits } = sink.into_parts();
        assert_eq!((side.len(), copied.len(), waiting.len(), norm_waits), (2, 0, 0, false));
        output.end_weights().unwrap();
        for (name, bytes) in recipe.format().side_files(&spec, &plan.scheme, &declared, &side) {
            output.write_file(&name, &bytes).unwrap();
        }
        output.write_file("config.json", config.to_string().as_bytes()).unwrap();
        output.finish().unwrap();

        let mut read = FolderSource::open(Checkpoint::open(&folder).unwrap(), spec).unwrap();
        assert!(read.is_stored(Outer::Embedding) && !source.is_stored(Outer::Embedding));
        assert_eq!(InMemoryModel::load(&mut read).unwrap(), model);
    }
}
