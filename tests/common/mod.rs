//! What the end-to-end tests share: the model of the repository, the reference data if present, runs in memory.

#![allow(dead_code, reason = "every test binary uses its own part")]

use ptq::data::{CalibrationSpec, LoadOptions, TokenSet};
use ptq::eval::{EvalOptions, EvalReport, evaluate};
use ptq::graph::{BlockParams, BlockSource, BoxError};
use ptq::model::InMemoryModel;
use ptq::pipeline::run::{BlockSink, RunOptions, run};
use ptq::pipeline::{Plan, Recipe, RunReport, Scored, Silent, open_folder, with_threads};
use quant_kernels::Compute;
use std::path::{Path, PathBuf};

/// The workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The embedded model.
pub(crate) fn tiny_reasoner() -> PathBuf {
    root().join("assets/tiny-reasoner")
}

/// A file of the reference data beside the repository, or none with a note.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let file = root().join("../shared").join(path);
    if file.exists() {
        return Some(file);
    }
    println!("skipped: the reference data ({path}) is not present");
    None
}

/// Rows of a token tensor.
pub(crate) fn tokens(file: &Path, tensor: &str) -> TokenSet {
    let spec = CalibrationSpec::parse(&format!("{}:{tensor}", file.display())).unwrap();
    let options = LoadOptions {
        num_samples: None,
        max_seq_len: None,
        seed: 0,
        vocab_size: 1024,
        max_position_embeddings: 2048,
    };
    ptq::data::load(&spec, &options, Path::new(".")).unwrap()
}

/// A few calibration windows from the embedded tasks.
pub(crate) fn few_windows(samples: usize, length: usize) -> TokenSet {
    let file = tiny_reasoner().join("tasks/calibration.jsonl");
    let options = LoadOptions {
        num_samples: Some(samples),
        max_seq_len: Some(length),
        seed: 3,
        vocab_size: 1024,
        max_position_embeddings: 2048,
    };
    let spec = CalibrationSpec::parse(&file.display().to_string()).unwrap();
    ptq::data::load(&spec, &options, &tiny_reasoner()).unwrap()
}

/// Keeps finished blocks.
#[derive(Default)]
pub(crate) struct Collect(pub(crate) Vec<BlockParams>);

impl BlockSink for Collect {
    fn block(&mut self, _: usize, block: BlockParams) -> Result<(), BoxError> {
        self.0.push(block);
        Ok(())
    }
}

/// Quantises a model in memory.
pub(crate) fn quantize_in_memory(
    model: &Path,
    recipe: &str,
    calibration: Option<&TokenSet>,
    threads: usize,
) -> (InMemoryModel, RunReport) {
    let recipe = Recipe::parse(recipe).unwrap_or_else(|e| panic!("{e}\n{recipe}"));
    let folder = open_folder(model).unwrap();
    let plan = Plan::new(&recipe, &folder.spec).unwrap_or_else(|e| panic!("{e}"));
    let mut source = folder.into_source().unwrap();
    let mut blocks = Collect::default();
    let report = with_threads(threads, |par| {
        let options = RunOptions { par, spill: None };
        run(&plan, &mut source, calibration, &mut blocks, &mut Silent, &options)
    })
    .unwrap()
    .unwrap_or_else(|e| panic!("{e}"));
    let spec = plan.spec.clone();
    let every: Vec<u32> = (0..spec.vocab as u32).collect();
    let embedding = source.embed(&every).unwrap();
    let norm = source.final_norm().unwrap();
    let head = source.head(0..spec.vocab).unwrap();
    (InMemoryModel::new(spec, blocks.0, embedding, norm, Some(head)).unwrap(), report)
}

/// Scores a model in memory.
pub(crate) fn score(model: impl BlockSource, sequences: &[Vec<u32>], threads: usize) -> EvalReport {
    with_threads(threads, |par| {
        let mut model = Scored::new(model, Compute::F32, par);
        evaluate(&mut model, sequences, EvalOptions::default())
    })
    .unwrap()
    .unwrap()
}
