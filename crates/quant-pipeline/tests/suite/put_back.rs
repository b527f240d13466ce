//! Mixtures of a quantised and a float model, all at once, beside each of them by itself.

use quant_eval::{EvalOptions, EvalReport, evaluate};
use quant_graph::BlockSource;
use quant_kernels::{Compute, Par};
use quant_model::{Arithmetic, InMemoryModel};
use quant_pipeline::{PutBack, QuantizeJob, Recipe, Scored, Silent, open_folder, quantize, with_threads};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

fn tiny_reasoner() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-reasoner")
}

/// A quantised folder of the small model, once as its floats and once to be executed, and the model it is of.
fn models(recipe: &str) -> (InMemoryModel, InMemoryModel) {
    let output = tempfile::tempdir().unwrap();
    let output = output.path().join("quantised");
    let job = QuantizeJob::new(tiny_reasoner(), Recipe::parse(recipe).unwrap(), &output);
    quantize(&job, &mut Silent).unwrap();
    let load = |folder: &Path| {
        InMemoryModel::load(&mut open_folder(folder).unwrap().into_source().unwrap()).unwrap()
    };
    (load(&output), load(&tiny_reasoner()))
}

fn sequences() -> Vec<Vec<u32>> {
    // Several chunks of them, of different lengths.
    [300, 700, 90, 2, 512].map(|length| (0..length).map(|t| (t * 31 + length) % 300).collect()).to_vec()
}

/// What is said of a model by itself.
fn alone(model: InMemoryModel, float: &InMemoryModel, arithmetic: &Arithmetic) -> EvalReport {
    let mut model = Scored::new(model, arithmetic.clone(), Par::Seq);
    let mut float = Scored::new(float.clone(), arithmetic.clone(), Par::Seq);
    let mut progress = |_, _, _| ControlFlow::Continue(());
    let options =
        EvalOptions { reference: Some(&mut float), progress: Some(&mut progress), ..EvalOptions::default() };
    evaluate(&mut model, &sequences(), options).unwrap()
}

fn same(one: &EvalReport, other: &EvalReport, what: &str) {
    let of = |report: &EvalReport| (report.tokens, report.perplexity, report.comparison);
    assert_eq!(of(one), of(other), "{what}");
}

#[test]
fn mixtures_together_are_what_each_is_alone() {
    let recipe = "version: 1\nmodifiers: [rtn: { scheme: W4A8KV8 }]\nexport: { format: dequantized }\n";
    let (quantised, float) = models(recipe);
    let spec = quantised.spec().clone();
    let arithmetic = Arithmetic::from(Compute::F32);
    let sequences = sequences();
    let with = |block: usize, change: &dyn Fn(&mut quant_graph::BlockParams, &quant_graph::BlockParams)| {
        let (mut mixed, mut float) = (quantised.clone(), float.clone());
        change(&mut mixed.blocks_mut()[block], &float.blocks_mut()[block]);
        mixed
    };
    let whole = alone(quantised.clone(), &float, &arithmetic);
    assert!(whole.comparison.as_ref().unwrap().kl.unwrap() > 0.0);
    let scratch = tempfile::tempdir().unwrap();
    for (threads, spill) in [(1, None), (3, Some(scratch.path().to_owned()))] {
        let (mut own, mut original) = (quantised.clone(), float.clone());
        with_threads(threads, |par| {
            let mut mixtures =
                PutBack::new(&mut own, &mut original, &sequences, arithmetic.clone(), par).spilled_to(spill);
            let (found, blocks) = mixtures.blocks(&mut Silent).unwrap();
            same(&found, &whole, "as it is");
            same(&mixtures.whole(&mut Silent).unwrap(), &whole, "as it is, again");
            assert_eq!(blocks.len(), spec.layers);
            for (block, report) in blocks.iter().enumerate().step_by(2) {
                let mixed = with(block, &|own, float| {
                    own.linears.clone_from(&float.linears);
                    own.norms.clone_from(&float.norms);
                });
                same(report, &alone(mixed, &float, &arithmetic), &format!("block {block}"));
            }
            for block in [0, spec.layers - 1] {
                assert!(mixtures.has_places_for_linears(block).unwrap());
                let linears = mixtures.linears(block, &mut Silent).unwrap();
                let known = spec.block(block).linears;
                assert_eq!(linears.len(), known.len());
                let parts = linears.iter().zip(&known);
                for (report, linear) in parts.skip(1).step_by(3) {
                    let mixed = with(block, &|own, float| {
                        own.linears.insert(linear.id, float.linears[&linear.id].clone());
                    });
                    same(report, &alone(mixed, &float, &arithmetic), &linear.module);
                }
            }
        })
        .unwrap();
    }
}

#[test]
fn mixtures_are_executed_too() {
    let (quantised, float) = models("version: 1\nmodifiers: [rtn: { scheme: W8A8 }]\n");
    let arithmetic = Arithmetic::from(Compute::F32).executed();
    let sequences = sequences();
    let (mut own, mut original) = (quantised.clone(), float.clone());
    let mut mixtures = PutBack::new(&mut own, &mut original, &sequences, arithmetic.clone(), Par::Seq);
    // Linears alone too, without blocks before them.
    let linears = mixtures.linears(1, &mut Silent).unwrap();
    let (whole, blocks) = mixtures.blocks(&mut Silent).unwrap();
    same(&whole, &alone(quantised.clone(), &float, &arithmetic), "as it is");
    let mut mixed = quantised.clone();
    mixed.blocks_mut()[2] = float.clone().blocks_mut()[2].clone();
    same(&blocks[2], &alone(mixed, &float, &arithmetic), "block 2");
    let id = quantised.spec().block(1).linears[6].id;
    let mut mixed = quantised;
    mixed.blocks_mut()[1].linears.insert(id, float.clone().blocks_mut()[1].linears[&id].clone());
    same(&linears[6], &alone(mixed, &float, &arithmetic), "a linear of block 1");
}
