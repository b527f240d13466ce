//! Agreement with the reference implementation of the families.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test helper fails by panicking")]

use crate::common::{head, load_model, model_from, read_config, relative};
use ndarray::{Array2, Axis};
use quant_graph::{BlockSource, ModelSpec, RopeScaling};
use quant_kernels::{Compute, Element, Par, linear, rms_norm};
use quant_model::families::Tier;
use quant_model::{Block, FAMILIES, InMemoryModel, RopeTable, StreamedModel, model_spec};
use quant_testkit::{Tensor, Tensors, block_from_tensors, load_safetensors, shared_dir};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// The bound of the project for f32 logits: relative Frobenius error over the tensor.
const TOLERANCE: f64 = 1e-4;

/// The sets of `tests/data` and the class of transformers that wrote each: a pair of files with the last block, or a folder
/// with a whole model.
const SETS: [(&str, &str); 8] = [
    ("llama-rope-linear", "LlamaForCausalLM"),
    ("llama-rope-llama3", "LlamaForCausalLM"),
    ("mistral", "MistralForCausalLM"),
    ("pangu-as-llama-bias", "LlamaForCausalLM"),
    ("phi3", "Phi3ForCausalLM"),
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

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn config_of(set: &str) -> serde_json::Value {
    let folder = data().join(set);
    read_config(&if folder.is_dir() { folder.join("config.json") } else { folder.with_extension("json") })
}

/// The last block of a set from its input to the logits, in f32 and in f64.
fn last_block(name: &str) -> (f64, f64) {
    let spec = model_spec(&config_of(name)).unwrap();
    let tensors = load_safetensors(&data().join(format!("{name}.safetensors")));
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
    (narrow, relative(&logits(&spec, &h, &norm, &head), &expected))
}

#[test]
fn the_sets_of_the_repository() {
    let mut ran: BTreeSet<&str> = BTreeSet::new();
    for (name, _) in SETS {
        let folder = data().join(name);
        if folder.is_dir() {
            whole_model(&folder);
        } else {
            let (narrow, wide) = last_block(name);
            println!("{name}: last block to logits, relative error {narrow:.2e} in f32, {wide:.2e} in f64");
            assert!(narrow < TOLERANCE && wide < TOLERANCE, "{name}: {narrow:.2e}, {wide:.2e}");
        }
        ran.insert(name);
    }
    // A family's claim names logits that were run above, in its own architecture; those of the reference tier come from
    // the class of that name and no other.
    for family in FAMILIES {
        let logits = family.tier.logits().unwrap();
        assert!(ran.contains(logits), "{}: {logits:?} is no set that this test runs", family.id);
        let own = family.architectures;
        let config = config_of(logits);
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

/// How far a run is from its reference.
#[derive(Default)]
struct Apart {
    /// Relative error, the worst over the residual streams.
    hidden: f64,
    /// Relative error of the logits.
    logits: f64,
    /// The largest difference of two logits.
    largest: f64,
}

impl Apart {
    fn widen(&mut self, other: &Self) {
        self.hidden = self.hidden.max(other.hidden);
        self.logits = self.logits.max(other.logits);
        self.largest = self.largest.max(other.largest);
    }
}

/// Runs whole sequences of one length in `T`.
fn run<T: Element + Into<f64>>(model: &mut InMemoryModel, reference: &Tensors) -> Apart {
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
    let (logits, expected) = (stack(&all_logits), reference["logits"].matrix());
    let largest = logits.iter().zip(&expected).fold(0.0_f64, |worst, (&a, &b)| {
        let a: f64 = a.into();
        worst.max((a - f64::from(b)).abs())
    });
    Apart { hidden, logits: relative(&logits, &expected), largest }
}

/// Runs every prompt of a folder in f32 and in f64.
fn whole_model(folder: &Path) {
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    let tensors = load_safetensors(&folder.join("model.safetensors"));
    let spec = model_spec(&read_config(&folder.join("config.json"))).unwrap();
    prompts(&name, &mut model_from(spec, &tensors), &load_safetensors(&folder.join("reference.safetensors")));
}

/// One reference per prompt: those of a number each, or all of one length.
fn parts(reference: &Tensors) -> Vec<Tensors> {
    if reference.contains_key("input_ids") {
        return vec![reference.clone()];
    }
    let part = |number: usize| {
        let of = format!("{number}.");
        let named =
            |(name, tensor): (&String, &_)| Some((name.strip_prefix(&of)?.to_owned(), Tensor::clone(tensor)));
        reference.iter().filter_map(named).collect::<Tensors>()
    };
    (0..).map(part).take_while(|part| !part.is_empty()).collect()
}

fn prompts(name: &str, model: &mut InMemoryModel, reference: &Tensors) {
    let (mut narrow, mut wide) = (Apart::default(), Apart::default());
    for reference in &parts(reference) {
        narrow.widen(&run::<f32>(model, reference));
        wide.widen(&run::<f64>(model, reference));
    }
    for (kind, apart) in [("f32", narrow), ("f64", wide)] {
        let Apart { hidden, logits, largest } = apart;
        println!("{name}: {kind} hidden {hidden:.2e}, logits {logits:.2e}, at most {largest:.2e} apart");
        assert!(hidden < TOLERANCE && logits < TOLERANCE, "{name}: {kind} {hidden:.2e}, {logits:.2e}");
    }
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
        whole_model(&folder);
    }
}

#[test]
fn the_window_of_mistral_is_met() {
    let folder = data().join("mistral");
    let reference = load_safetensors(&folder.join("reference.safetensors"));
    let mut spec = model_spec(&config_of("mistral")).unwrap();
    spec.windows.fill(None);
    let mut open = model_from(spec, &load_safetensors(&folder.join("model.safetensors")));
    let [short, long] = &parts(&reference)[..] else { panic!("two prompts") };
    assert!(run::<f32>(&mut open, short).logits < TOLERANCE);
    assert!(run::<f32>(&mut open, long).logits > 0.01);
}

#[test]
fn rope_and_window_of_phi3_are_met() {
    let folder = data().join("phi3");
    let spec = model_spec(&config_of("phi3")).unwrap();
    assert_eq!((spec.head_dim, spec.rope.rotary_dim, &spec.windows[..]), (16, Some(12), &[Some(32); 2][..]));
    let tensors = load_safetensors(&folder.join("model.safetensors"));
    let reference = load_safetensors(&folder.join("reference.safetensors"));
    let mut others = vec![spec.clone(), spec.clone(), spec];
    others[0].windows.fill(None);
    others[1].rope.rotary_dim = Some(8);
    if let RopeScaling::LongRope { original_max_position_embeddings, .. } = &mut others[2].rope.scaling {
        *original_max_position_embeddings = 25.0;
    }
    for (other, wrong) in others.into_iter().zip([[false, false, true], [true; 3], [false, true, false]]) {
        let mut model = model_from(other, &tensors);
        let far =
            parts(&reference).iter().map(|r| run::<f32>(&mut model, r).logits > 0.01).collect::<Vec<_>>();
        assert_eq!(far, wrong, "{:?}", model.spec().rope);
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
