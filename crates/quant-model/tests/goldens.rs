//! Agreement with the reference implementation of the families.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test helper fails by panicking")]

mod common;

use common::{head, load_model, read_config, relative};
use ndarray::{Array2, Axis};
use quant_graph::{BlockSource, ModelSpec};
use quant_kernels::{Compute, Element, Par, linear, rms_norm};
use quant_model::families::Tier;
use quant_model::{Block, FAMILIES, InMemoryModel, RopeTable, StreamedModel, model_spec};
use quant_testkit::{block_from_tensors, load_safetensors, shared_dir};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

/// The bound of the project for f32 logits: relative Frobenius error over the tensor.
const TOLERANCE: f64 = 1e-4;

/// The sets of `tests/data` and the class of transformers that wrote each.
const SETS: [(&str, &str); 6] = [
    ("llama-rope-linear", "LlamaForCausalLM"),
    ("llama-rope-llama3", "LlamaForCausalLM"),
    ("pangu-as-llama-bias", "LlamaForCausalLM"),
    ("qwen2", "Qwen2ForCausalLM"),
    ("qwen2-rope-yarn", "Qwen2ForCausalLM"),
    ("qwen3", "Qwen3ForCausalLM"),
];

/// Final norm and head in `T`.
fn logits<T: Element>(spec: &ModelSpec, h: &Array2<T>, norm: &[f32], head: &Array2<f32>) -> Array2<T> {
    let norm = norm.iter().map(|&w| T::from_f32(w)).collect::<Vec<_>>();
    let x = rms_norm(h.view(), ndarray::ArrayView1::from(&norm), T::from_f64(spec.norm_eps));
    linear(x.view(), head.mapv(T::from_f32).view(), None, Compute::F32, Par::Seq)
}

#[test]
fn last_block_to_logits_of_the_repository_subset() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut ran: BTreeSet<&str> = BTreeSet::new();
    for (name, _) in SETS {
        let spec = model_spec(&read_config(&data.join(format!("{name}.json")))).unwrap();
        let tensors = load_safetensors(&data.join(format!("{name}.safetensors")));
        let last = spec.layers - 1;
        let params = block_from_tensors(&spec, last, &tensors);
        let norm = tensors[ModelSpec::FINAL_NORM].f32();
        let head = tensors[if spec.tied { ModelSpec::EMBEDDING } else { ModelSpec::HEAD }].matrix();
        let (hidden, expected) = (tensors["hidden"].matrix(), tensors["logits"].matrix());

        let rope = RopeTable::<f32>::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, 32);
        let block = Block::<f32>::new(&spec, last, params.clone(), Compute::F32, Par::Seq).unwrap();
        let h = block.forward(hidden.clone(), &rope, Par::Seq).unwrap();
        let narrow = relative(&logits(&spec, &h, &norm, &head), &expected);

        let rope = RopeTable::<f64>::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, 32);
        let block = Block::<f64>::new(&spec, last, params, Compute::F32, Par::Seq).unwrap();
        let h = block.forward(hidden.mapv(f64::from), &rope, Par::Seq).unwrap();
        let wide = relative(&logits(&spec, &h, &norm, &head), &expected);
        println!("{name}: last block to logits, relative error {narrow:.2e} in f32, {wide:.2e} in f64");
        assert!(narrow < TOLERANCE && wide < TOLERANCE, "{name}: {narrow:.2e}, {wide:.2e}");
        ran.insert(name);
    }
    // A family's claim names logits that were run above, in its own architecture; those of the reference tier come from
    // the class of that name and no other.
    for family in FAMILIES {
        let logits = family.tier.logits().unwrap();
        assert!(ran.contains(logits), "{}: {logits:?} is no set that this test runs", family.id);
        let own = family.architectures;
        let config = read_config(&data.join(format!("{logits}.json")));
        assert!(
            own.iter().any(|a| config["architectures"][0] == **a),
            "{}: {logits:?} is another's",
            family.id
        );
        let (_, class) = SETS.iter().find(|(name, _)| *name == logits).unwrap();
        let reference = matches!(family.tier, Tier::Reference { .. });
        assert_eq!(reference, own.contains(class), "{}: {logits:?} was written by {class}", family.id);
    }
}

/// Worst relative error over hidden states, and the error of the logits, in `T`.
fn run<T: Element + Into<f64>>(model: &mut InMemoryModel, reference: &quant_testkit::Tensors) -> (f64, f64) {
    let spec = model.spec().clone();
    let sequences = reference["input_ids"].token_rows();
    let length = sequences[0].len();
    let rope = RopeTable::<T>::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, length);
    let blocks: Vec<_> = (0..spec.layers)
        .map(|i| Block::<T>::new(&spec, i, model.block(i).unwrap(), Compute::F32, Par::Seq).unwrap())
        .collect();
    let norm = model.final_norm().unwrap().to_vec();
    let head = head(model);
    let mut layers = vec![Vec::new(); spec.layers + 1];
    let mut all_logits = Vec::new();
    for ids in &sequences {
        let mut h = model.embed(ids).unwrap().mapv(T::from_f32);
        layers[0].push(h.clone());
        for (i, block) in blocks.iter().enumerate() {
            h = block.forward(h, &rope, Par::Seq).unwrap();
            layers[i + 1].push(h.clone());
        }
        all_logits.push(logits(&spec, &h, &norm, &head));
    }
    let stack = |parts: &[Array2<T>]| {
        ndarray::concatenate(Axis(0), &parts.iter().map(|p| p.view()).collect::<Vec<_>>()).unwrap()
    };
    let mut hidden = 0.0_f64;
    for (i, parts) in layers.iter().enumerate() {
        let expected = reference[&format!("hidden.{i}")].matrix();
        let mut got = stack(parts);
        if i == spec.layers {
            // The reference keeps the last hidden state after the final norm.
            let weight = ndarray::Array1::from(norm.clone()).mapv(T::from_f32);
            got = rms_norm(got.view(), weight.view(), T::from_f64(spec.norm_eps));
        }
        hidden = hidden.max(relative(&got, &expected));
    }
    (hidden, relative(&stack(&all_logits), &reference["logits"].matrix()))
}

#[test]
fn whole_models_of_every_family() {
    let Some(dir) = shared_dir().map(|d| d.join("goldens/logits")).filter(|d| d.is_dir()) else {
        quant_testkit::skipped("goldens/logits not present");
        return;
    };
    let mut folders: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 7);
    for folder in folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let mut model = load_model(&folder);
        let reference = load_safetensors(&folder.join("reference.safetensors"));
        let (hidden32, logits32) = run::<f32>(&mut model, &reference);
        let (hidden64, logits64) = run::<f64>(&mut model, &reference);
        println!(
            "{name}: f32 hidden {hidden32:.2e} logits {logits32:.2e}; f64 hidden {hidden64:.2e} logits {logits64:.2e}"
        );
        assert!(hidden32 < TOLERANCE && logits32 < TOLERANCE, "{name}: {hidden32:.2e}, {logits32:.2e}");
        assert!(hidden64 < TOLERANCE && logits64 < TOLERANCE, "{name}: {hidden64:.2e}, {logits64:.2e}");
    }
}

/// Sum of `−log p(next token)` with the softmax in f64.
fn nll(logits: &Array2<f32>, next: &[u32]) -> f64 {
    logits
        .rows()
        .into_iter()
        .zip(next)
        .map(|(row, &token)| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = row.iter().map(|&x| (f64::from(x) - f64::from(max)).exp()).sum();
            total.ln() + f64::from(max) - f64::from(row[token as usize])
        })
        .sum()
}

#[test]
fn trained_model_on_both_evaluation_sets() {
    let Some(dir) =
        shared_dir().filter(|d| d.join("parity").is_dir() && d.join("models/tiny-reasoner").is_dir())
    else {
        quant_testkit::skipped("parity tables or models/tiny-reasoner not present");
        return;
    };
    let tokens = load_safetensors(&dir.join("parity/tiny_reasoner_tokens.safetensors"));
    let reference = load_safetensors(&dir.join("parity/tiny_reasoner_fp_reference.safetensors"));
    let mut source = load_model(&dir.join("models/tiny-reasoner"));
    let spec = source.spec().clone();
    let first_block = Block::<f32>::new(&spec, 0, source.block(0).unwrap(), Compute::F32, Par::Seq).unwrap();
    let rope = RopeTable::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, 256);
    let mut model = StreamedModel::new(source, Compute::F32, Par::new(2));
    for set in ["eval_tasks", "eval_wikitext2"] {
        let sequences = tokens[set].token_rows();
        let h = model.source_mut().embed(&sequences[0]).unwrap();
        let h = first_block.forward(h, &rope, Par::Seq).unwrap();
        let hidden = relative(&h, &reference[&format!("{set}.hidden_after_block0_first1")].matrix());

        model.encode(&sequences, &mut |_, _| ControlFlow::Continue(())).unwrap();
        assert_eq!(model.first_non_finite(), None);
        let expected = reference[&format!("{set}.logits_first2_64pos")].matrix();
        let got =
            ndarray::concatenate![Axis(0), model.logits(0, 0..64).unwrap(), model.logits(1, 0..64).unwrap()];
        let worst = (&got - &expected).iter().fold(0.0_f32, |m, x| m.max(x.abs()));

        let sums = reference[&format!("{set}.nll_sum_per_sequence")].f64();
        let mut worst_nll = 0.0_f64;
        for (i, (ids, &expected)) in sequences.iter().zip(&sums).enumerate() {
            let logits = model.logits(i, 0..ids.len() - 1).unwrap();
            worst_nll = worst_nll.max((nll(&logits, &ids[1..]) / expected - 1.0).abs());
        }
        println!(
            "{set}: block 0 {hidden:.2e} relative, logits {worst:.2e} absolute, NLL {worst_nll:.2e} relative"
        );
        assert!(hidden < 1e-5 && worst < 1e-4 && worst_nll < 1e-5, "{set}");
    }
}
