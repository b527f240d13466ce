//! Beside the official implementation.

use super::case::Case;
use ndarray::{Array2, Axis, Slice};
use quant_core::Bits;
use quant_graph::{BlockParams, EffectiveWeights, ModelSpec, Site, Spot};
use quant_kernels::Par;
use quant_methods::flatquant::{
    FlatBlock, FlatParameters, FlatScheme, FlatSettings, FlatVariant, Group, Matrix, Sequences, Trained,
};
use quant_model::{BlockTrainer, model_spec};
use quant_rotate::{ClipLogits, Learned, Parametrisation};
use quant_testkit::{Golden, Numbers, block_from_tensors};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Where the official modules keep the parameters of a matrix, and what follows `linear` in their names.
const MATRICES: [(Matrix, &str, &str); 9] = [
    (Matrix::InputLeft, "self_attn.ln_trans", "_left"),
    (Matrix::InputRight, "self_attn.ln_trans", "_right"),
    (Matrix::Key, "self_attn.kcache_trans", ""),
    (Matrix::Value, "self_attn.vcache_trans", ""),
    (Matrix::Output, "self_attn.o_trans.trans_list.0", ""),
    (Matrix::MlpLeft, "mlp.up_gate_trans", "_left"),
    (Matrix::MlpRight, "mlp.up_gate_trans", "_right"),
    (Matrix::DownLeft, "mlp.down_trans.trans_list.0", "_left"),
    (Matrix::DownRight, "mlp.down_trans.trans_list.0", "_right"),
];
const SCALES: [(Site, &str); 3] = [
    (Site::AttentionInput, "self_attn.ln_trans"),
    (Site::MlpInput, "mlp.up_gate_trans"),
    (Site::MlpActivation, "mlp.down_trans.trans_list.0"),
];
const INPUTS: [(Spot, &[&str]); 6] = [
    (Spot::Site(Site::AttentionInput), &["self_attn.q_proj.act_quantizer"]),
    (Spot::Site(Site::AttentionOutput), &["self_attn.o_proj.act_quantizer"]),
    (Spot::Site(Site::MlpInput), &["mlp.up_gate_quant", "mlp.gate_proj.act_quantizer"]),
    (Spot::Site(Site::MlpActivation), &["mlp.down_proj.act_quantizer"]),
    (Spot::Key, &["self_attn.k_cache_quantizer"]),
    (Spot::Value, &["self_attn.v_cache_quantizer"]),
];

/// The tensors under `prefix` as parameters; gradients are read alike.
pub(crate) fn read(golden: &Golden, prefix: &str, spec: &ModelSpec) -> FlatParameters<f32> {
    let has = |name: &str| golden.has(&format!("{prefix}.{name}"));
    let vector = |name: &str| golden.vector(&format!("{prefix}.{name}"));
    let matrix = |name: &str| golden.matrix(&format!("{prefix}.{name}"));
    let mut matrices = BTreeMap::new();
    for (which, place, side) in MATRICES {
        let (free, raw) = (format!("{place}.linear{side}.weight"), "parametrizations.weight.original");
        if has(&free) {
            matrices.insert(which, Learned::free(matrix(&free).view()).unwrap());
        } else if has(&format!("{place}.linear_diag{side}")) {
            let [u, v] = ["u", "v"].map(|part| matrix(&format!("{place}.linear_{part}{side}.{raw}")));
            let t = vector(&format!("{place}.linear_diag{side}"));
            matrices.insert(which, Learned::svd(u.view(), v.view(), t.view()).unwrap());
        }
    }
    let clip = |max: String, min: String| ClipLogits { max: vector(&max), min: vector(&min) };
    let mut input_clips = BTreeMap::new();
    for (spot, places) in INPUTS {
        if let Some(place) = places.iter().find(|place| has(&format!("{place}.clip_factor_a_max"))) {
            let ends = ["max", "min"].map(|end| format!("{place}.clip_factor_a_{end}"));
            let [max, min] = ends;
            input_clips.insert(spot, clip(max, min));
        }
    }
    let weight_clips = spec.layout.ids().map(|id| {
        let [max, min] = ["max", "min"].map(|end| format!("{}.clip_factor_w_{end}", spec.layout.module(id)));
        (id, clip(max, min))
    });
    FlatParameters {
        matrices,
        weight_clips: weight_clips.collect(),
        scales: SCALES
            .into_iter()
            .map(|(site, place)| (site, format!("{place}.diag_scale")))
            .filter(|(_, name)| has(name))
            .map(|(site, name)| (site, vector(&name)))
            .collect(),
        input_clips,
    }
}

pub(crate) fn scheme_of(case: &Value) -> FlatScheme {
    let bits = |key: &str| {
        let bits = u32::try_from(case[key].as_u64().unwrap()).unwrap();
        (bits < 16).then(|| Bits::new(bits).unwrap())
    };
    let symmetric = case["a_asym"] == json!(false);
    let scheme = FlatScheme::new(
        bits("w_bits"),
        bits("a_bits").map(|bits| (bits, symmetric)),
        bits("k_bits").map(|bits| (bits, false)),
    );
    assert_eq!(case["k_bits"], case["v_bits"]);
    scheme.unwrap()
}

/// Parameters with other last bits; seed 0 leaves them.
pub(crate) fn varied(parameters: &FlatParameters<f32>, seed: u64) -> FlatParameters<f32> {
    let (mut varied, mut numbers) = (parameters.clone(), Numbers::new(seed));
    for (_, values) in varied.tensors_mut().into_iter().filter(|_| seed > 0) {
        values.iter_mut().for_each(|x| *x *= 1.0 + f32::EPSILON * numbers.uniform());
    }
    varied
}

fn distance(found: &[f32], want: &[f32]) -> f64 {
    assert_eq!(found.len(), want.len());
    let square = |x: f64| x * x;
    let difference: f64 = found.iter().zip(want).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    (difference / want.iter().map(|b| square(f64::from(*b))).sum::<f64>()).sqrt()
}

/// The float block of a case.
pub(crate) fn golden_params(golden: &Golden, case: &Value) -> (ModelSpec, BlockParams) {
    let kind = case["kind"].as_str().unwrap();
    let architecture = if kind == "qwen2" { "Qwen2ForCausalLM" } else { "LlamaForCausalLM" };
    let spec = model_spec(&json!({
        "architectures": [architecture], "model_type": kind, "hidden_size": 96, "intermediate_size": 160,
        "num_hidden_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 10,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    }))
    .unwrap();
    let prefix = format!("{kind}.w.");
    let stored = golden.tensors.iter().filter_map(|(key, tensor)| {
        Some((format!("{}.{}", spec.block_prefix(0), key.strip_prefix(&prefix)?), tensor.clone()))
    });
    let params = block_from_tensors(&spec, 0, &stored.collect());
    (spec, params)
}

/// The block of a case with some of its samples.
pub(crate) fn golden_block(
    golden: &Golden,
    case: &Value,
    samples: std::ops::Range<usize>,
) -> (ModelSpec, Case<f32>) {
    let (spec, params) = golden_params(golden, case);
    let kind = case["kind"].as_str().unwrap();
    let rows = Slice::from(24 * samples.start..24 * samples.end);
    let part = |name: &str| golden.matrix(&format!("{kind}.{name}")).slice_axis(Axis(0), rows).to_owned();
    let block = Case::new(&spec, params, 24, part("X"), part("fp_out"));
    (spec, block)
}

/// How many gradients of a file there are: all of them are as published.
fn official_gradients(golden: &Golden) -> usize {
    let mut seen = 0;
    for (name, case) in golden.cases().iter().filter(|(name, _)| name.starts_with("grad.")) {
        let (spec, block) = golden_block(golden, case, 0..2);
        let (parameters, scheme) = (read(golden, &format!("{name}.param"), &spec), scheme_of(case));
        let want = golden.matrix(&format!("{name}.out"));
        let size = want.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        let close = |out: &Array2<f32>| (out - &want).iter().all(|x| x.abs() <= 1e-4 * size);
        // One case has a weight within 5e-6 of a step of a tie: on which side it falls, and all that follows from it, is a
        // matter of the last bits of its matrices, which are formed in f64 here. There, the last bits of the parameters are
        // varied.
        let tries = if name == "grad.qwen2.w8a8kv8.svd" { 12 } else { 1 };
        let mut found = (0..tries).map(|seed| block.step(&scheme, &varied(&parameters, seed), Par::Seq));
        let Some((_, loss, got)) = found.find(|(out, ..)| close(out)) else {
            panic!("{name}: the output is another");
        };

        let want = f64::from(golden.vector(&format!("{name}.loss"))[0]);
        assert!((loss.value - want).abs() <= 1e-4 * want, "{name}: loss {} for {want}", loss.value);

        let want = read(golden, &format!("{name}.grad"), &spec);
        let (got, want) = (got.tensors(), want.tensors());
        assert_eq!(got.len(), case["n_params"].as_u64().unwrap() as usize);
        for ((tensor, group, found), (other, same, want)) in got.into_iter().zip(want) {
            assert_eq!((&tensor, group), (&other, same));
            let error = distance(found, want);
            assert!(error < 1e-3, "{name}: {tensor} is off by {error}");
        }
        seen += 1;
    }
    seen
}

#[test]
fn gradients_of_the_subset() {
    let golden = Golden::parse(include_bytes!("../../data/flatquant_subset.safetensors"));
    assert_eq!(official_gradients(&golden), 2);
}

#[test]
fn gradients_of_the_golden_file() {
    let Some(golden) = Golden::shared("flatquant.safetensors") else { return };
    assert_eq!(official_gradients(&golden), 6);
}

/// The losses of the official training, and where it ends, from these parameters or those that it begins with.
fn trained(
    block: &Case<f32>,
    case: &Value,
    begin: Option<FlatParameters<f32>>,
    epochs: Option<usize>,
) -> (Vec<f64>, FlatParameters<f32>) {
    let number = |key: &str| usize::try_from(case[key].as_u64().unwrap()).unwrap();
    let on = |key: &str| case.get(key) != Some(&json!(false));
    let settings = FlatSettings {
        variant: FlatVariant::Exact,
        epochs: epochs.unwrap_or(number("epochs")),
        learning_rate: case["flat_lr"].as_f64().unwrap(),
        batch_size: number("cali_bsz"),
        diag: on("add_diag"),
        lac: on("lac"),
        warmup: case["warmup"] == json!(true),
        parametrisation: if on("direct_inv") { Parametrisation::Inverse } else { Parametrisation::Svd },
        ..FlatSettings::default()
    };
    let (rope, float, scheme) = (|_| &block.table, block.own(), scheme_of(case));
    let training = BlockTrainer::new(&block.block, &rope, EffectiveWeights::new()).unwrap();
    let flat = FlatBlock { training: &training, shape: &block.shape, float: &float, name: "model.layers.0" };
    let sequences = Sequences { x: block.x.view(), starts: &block.starts };
    let outcome = match begin {
        Some(begin) => flat.train_from(begin, &scheme, &settings, sequences, Par::Seq),
        None => flat.train(&scheme, &settings, sequences, Par::Seq),
    };
    let Trained { parameters, report, .. } = outcome.unwrap();
    (report.losses, parameters)
}

/// Whether a training went as in the official program.
fn check_trace(
    golden: &Golden,
    (name, case): (&str, &Value),
    spec: &ModelSpec,
    (losses, parameters): &(Vec<f64>, FlatParameters<f32>),
) -> Result<(), String> {
    let stable = usize::try_from(case["stable_steps"].as_u64().unwrap()).unwrap();
    let want = golden.vector(&format!("{name}.trace_loss")).mapv(f64::from);
    assert_eq!(want.len(), losses.len());
    for (step, (loss, want)) in losses.iter().zip(&want).take(stable).enumerate() {
        if (loss / want - 1.0).abs() > 1e-3 {
            return Err(format!("step {step} has the loss {loss} for {want}"));
        }
    }
    let level = |losses: &[f64]| losses[losses.len() - 4..].iter().sum::<f64>() / 4.0;
    let (found, want) = (level(losses), level(&want.to_vec()));
    if (found / want - 1.0).abs() > 0.25 {
        return Err(format!("it ends at {found} for {want}"));
    }
    if stable == losses.len() {
        let [begin, end] = ["init", "final"].map(|when| read(golden, &format!("{name}.{when}"), spec));
        let mut ways: BTreeMap<Group, [Vec<f32>; 2]> = BTreeMap::new();
        let tensors = parameters.tensors().into_iter().zip(end.tensors()).zip(begin.tensors());
        for (((_, group, found), (_, _, want)), (_, _, begin)) in tensors {
            let [of_found, of_want] = ways.entry(group).or_default();
            of_found.extend(found.iter().zip(begin).map(|(x, b)| x - b));
            of_want.extend(want.iter().zip(begin).map(|(x, b)| x - b));
        }
        for (group, [found, want]) in ways {
            let error = distance(&found, &want);
            if error > 0.01 {
                return Err(format!("{group:?} are off by {error} of their way"));
            }
        }
    }
    Ok(())
}

/// 20 steps of AdamW. Rounding in the loop amplifies last bits, so losses are compared strictly over the steps that did not
/// move in the official program when its input was varied, and final parameters where all 20 did not. A weight next to a tie
/// falls to either side even so: one of some trainings that begin with other last bits must go the official way.
#[test]
fn traces_of_the_golden_file() {
    let Some(golden) = Golden::shared("flatquant.safetensors") else { return };
    let mut tries = Vec::new();
    for (name, case) in golden.cases().iter().filter(|(name, _)| name.starts_with("trace.")) {
        let samples = usize::try_from(case["nsamples"].as_u64().unwrap()).unwrap();
        let (spec, block) = golden_block(&golden, case, 0..samples);
        let initial = read(&golden, &format!("{name}.init"), &spec);
        // All but the random matrices is what the official program begins with.
        let (_, begin) = trained(&block, case, None, Some(0));
        assert_eq!(begin.tensors().len(), initial.tensors().len());
        for ((tensor, group, found), (other, same, want)) in
            begin.tensors().into_iter().zip(initial.tensors())
        {
            assert_eq!((&tensor, group), (&other, same));
            let error = distance(found, want);
            assert!(group == Group::Matrices || error < 1e-5, "{name}: {tensor} is off by {error}");
        }
        let outcome = |seed| {
            let training = trained(&block, case, Some(varied(&initial, seed)), None);
            check_trace(&golden, (name, case), &spec, &training)
        };
        let first = (0..TRIES).position(|seed| outcome(seed).is_ok());
        tries.push(first.unwrap_or_else(|| panic!("{name}: {:?}", outcome(0))));
    }
    assert_eq!(tries.len(), 12);
    let at_once = tries.iter().filter(|first| **first == 0).count();
    assert!(at_once >= 6, "{tries:?}");
}

/// Trainings of a case.
const TRIES: u64 = 8;
