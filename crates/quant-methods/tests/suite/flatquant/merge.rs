//! What is deployed beside what was trained, and beside the official reparameterisation.

use super::case::{Case, HEADS, PAIRS};
use super::golden::{golden_block, golden_params, read, scheme_of, varied};
use ndarray::{Array1, Array2, Axis, Slice};
use quant_core::{ActQuant, ActRule, Bits, FloatType};
use quant_graph::{BlockParams, BlockTraining, LinearId, LinearWeight, ModelSpec, Norm, Online, Site, Spot};
use quant_kernels::{Compute, Element, Par};
use quant_methods::flatquant::{FlatParameters, FlatScheme, FlatShape, FlatStep, Matrix, Start};
use quant_model::{Block, BlockTrainer, RopeTable, model_spec};
use quant_rotate::{ClipLogits, Learned, Parametrisation, StraightThrough};
use quant_testkit::{Golden, Numbers, random_block};
use serde_json::json;
use std::collections::BTreeMap;

fn spec_of(architecture: &str) -> ModelSpec {
    model_spec(&json!({
        "architectures": [architecture], "model_type": "tiny", "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
        "vocab_size": 10, "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 64,
        "partial_rotary_factor": if architecture.starts_with("Phi3") { 0.5 } else { 1.0 },
    }))
    .unwrap()
}

fn float_scheme() -> FlatScheme {
    FlatScheme::new(None, None, None).unwrap()
}

/// Parameters with these matrices, moved away from where they begin.
fn parameters(
    shape: &FlatShape,
    spec: &ModelSpec,
    scheme: &FlatScheme,
    matrices: &[Matrix],
    way: Parametrisation,
) -> FlatParameters<f32> {
    let numbers = &mut Numbers::new(9);
    let sites = [Site::AttentionInput, Site::MlpInput, Site::MlpActivation];
    let sites = sites.into_iter().filter(|_| matrices.contains(&Matrix::InputLeft));
    let scales: BTreeMap<Site, Array1<f32>> =
        sites.map(|site| (site, numbers.vector(spec.site_width(site), 1.0, 0.4))).collect();
    let start = Start {
        parametrisation: way,
        scales: &BTreeMap::new(),
        weight_clips: true,
        input_clips: true,
        seed: 5,
        name: "model.layers.0",
    };
    let mut parameters = FlatParameters::initial(shape, scheme, start).unwrap();
    for matrix in matrices {
        let side = shape.side(*matrix).unwrap();
        parameters.matrices.insert(*matrix, Learned::initial(side, way, 3, matrix.name()));
    }
    parameters.scales = scales;
    for (_, values) in parameters.tensors_mut() {
        values.iter_mut().for_each(|x| *x += 0.1 * numbers.uniform());
    }
    parameters
}

fn output<T: Element>(spec: &ModelSpec, params: BlockParams, x: &Array2<T>, length: usize) -> Array2<T> {
    let block = Block::<T>::new(spec, 0, params, Compute::F32, Par::Seq).unwrap();
    let table = RopeTable::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, length);
    let mut y = Array2::zeros(x.dim());
    for first in (0..x.nrows()).step_by(length) {
        let rows = Slice::from(first..first + length);
        let part = x.slice_axis(Axis(0), rows).to_owned();
        y.slice_axis_mut(Axis(0), rows).assign(&block.forward(part, &table, Par::Seq).unwrap());
    }
    y
}

fn worst<T: Element>(found: &Array2<T>, want: &Array2<T>) -> f64 {
    let size = want.iter().fold(0.0_f64, |m, x| m.max(x.to_f64_exact().abs()));
    (found - want).iter().fold(0.0_f64, |m, x| m.max(x.to_f64_exact().abs())) / size
}

const FAMILIES: [&str; 3] = ["Qwen2ForCausalLM", "Qwen3ForCausalLM", "Phi3ForCausalLM"];
const BOTH: [Parametrisation; 2] = [Parametrisation::Inverse, Parametrisation::Svd];

/// The merged block without quantisers is the float block, but for the rounding of its weights to f32, and the training forward
/// without them, clips included, the merged block.
#[test]
fn the_merged_block_is_what_was_trained() {
    let none = float_scheme();
    let kinds: [&[Matrix]; 5] =
        [&HEADS, &PAIRS, &[Matrix::Key, Matrix::Value], &[Matrix::Value], &[Matrix::Key]];
    let length = 7;
    for (architecture, way) in FAMILIES.into_iter().flat_map(|family| BOTH.map(|way| (family, way))) {
        let spec = spec_of(architecture);
        let shape = FlatShape::new(&spec, 0);
        let params = random_block(&spec, &mut Numbers::new(1));
        let x = Numbers::new(2).matrix(2 * length, spec.hidden, 1.0);
        for matrices in kinds {
            let parameters = parameters(&shape, &spec, &none, matrices, way);
            let merged = parameters.merge(&shape, params.clone(), Par::Seq).unwrap();
            let wide = x.mapv(f64::from);
            let [float, same] = [&params, &merged].map(|p| output::<f64>(&spec, p.clone(), &wide, length));
            let error = worst(&same, &float);
            assert!(error < 2e-6, "{architecture}, {way:?}, {matrices:?}: {error}");
            assert_ne!(merged, params);

            let mut clipped = parameters.clone();
            let numbers = &mut Numbers::new(4);
            for linear in spec.block(0).linears {
                let [max, min] = [(); 2].map(|()| numbers.vector(linear.outputs, 1.5, 0.5));
                clipped.weight_clips.insert(linear.id, ClipLogits { max, min });
            }
            let merged = clipped.merge(&shape, params.clone(), Par::new(2)).unwrap();
            assert_eq!(merged, clipped.merge(&shape, params.clone(), Par::Seq).unwrap(), "threads");
            let case = Case::new(&spec, params.clone(), length, x.clone(), x.clone());
            let trained = case.forward(&none, &clipped);
            let deployed = output::<f32>(&spec, merged, &x, length);
            let error = worst(&deployed, &trained);
            assert!(error < 1e-4, "{architecture}, {way:?}, {matrices:?}: {error}");
            assert!(worst(&trained, &float.mapv(|v| v as f32)) > 1e-3, "clipping changes something");
        }
    }
}

/// A deployment has pairs in the type of the model: what the weights take in is the inverse of the rounded ones, so that the block
/// computes what it did although bfloat16 has eight bits.
#[test]
fn pairs_are_rounded_before_they_are_inverted() {
    let none = float_scheme();
    for (architecture, way) in FAMILIES.into_iter().flat_map(|family| BOTH.map(|way| (family, way))) {
        let spec = spec_of(architecture);
        let params = random_block(&spec, &mut Numbers::new(1));
        let x = Numbers::new(2).matrix(14, spec.hidden, 1.0).mapv(f64::from);
        let float = output::<f64>(&spec, params.clone(), &x, 7);
        for (held, shards) in
            [(FloatType::Bf16, 1), (FloatType::F16, 1), (FloatType::Bf16, 2), (FloatType::F16, 2)]
        {
            let shape = FlatShape::new(&spec, 0).held_in(held).in_shards(shards);
            let parameters = parameters(&shape, &spec, &none, &PAIRS, way);
            let merged = parameters.merge(&shape, params.clone(), Par::Seq).unwrap();
            let matrices = || merged.online.sites.values().flat_map(|pair| pair.matrices());
            // Those of o and down once for each part, and the same.
            assert_eq!(matrices().count(), 4 + 4 * shards);
            for site in [Site::AttentionOutput, Site::MlpActivation] {
                let pair = merged.online.sites[&site].matrices();
                assert!(pair.chunks(2).all(|part| part == &pair[..2]), "{site:?}");
            }
            assert!(matrices().flatten().all(|v| held.round(*v) == *v), "{architecture}, {held:?}");
            let gains = [Norm::Input, Norm::PostAttention].map(|norm| &merged.norms[&norm]);
            assert!(gains.into_iter().flatten().all(|v| held.round(*v) == *v), "{architecture}, {held:?}");
            let error = worst(&output::<f64>(&spec, merged.clone(), &x, 7), &float);
            assert!(error < 2e-6, "{architecture}, {way:?}, {held:?}: {error}");
            // Weights with the inverses of the matrices as trained are far from it.
            let exact = FlatShape::new(&spec, 0).in_shards(shards);
            let exact = parameters.merge(&exact, params.clone(), Par::Seq).unwrap();
            let mismatched = BlockParams { online: merged.online, ..exact };
            assert!(worst(&output::<f64>(&spec, mismatched, &x, 7), &float) > 1e-4);
        }
    }
}

/// The quirks of the authors' program: everything that is deployed is cast by itself to the type of the model, after inverses were taken
/// of what was learned. Keys and queries keep matrices that are inverse to each other.
#[test]
fn official_casts_each_part_by_itself() {
    let none = float_scheme();
    for way in BOTH {
        let spec = spec_of("Qwen2ForCausalLM");
        let params = random_block(&spec, &mut Numbers::new(1));
        let x = Numbers::new(2).matrix(14, spec.hidden, 1.0).mapv(f64::from);
        let float = output::<f64>(&spec, params.clone(), &x, 7);
        let plain = FlatShape::new(&spec, 0);
        let parameters = parameters(&plain, &spec, &none, &HEADS, way);
        let exact = parameters.merge(&plain, params.clone(), Par::Seq).unwrap();
        let exactly = worst(&output::<f64>(&spec, exact.clone(), &x, 7), &float);
        assert!(exactly < 2e-6, "{exactly}");
        for (cast, least) in [(FloatType::Bf16, 1e-3), (FloatType::F16, 1e-4)] {
            let shape = plain.clone().cast_to(cast);
            let official = parameters.merge(&shape, params.clone(), Par::Seq).unwrap();
            // Weights, biases and gains: those of exact, cast; so the inverses are of the matrices as they were learned.
            for (id, linear) in &official.linears {
                let exact = &exact.linears[id];
                let (LinearWeight::Float(found), LinearWeight::Float(want)) = (&linear.weight, &exact.weight)
                else {
                    panic!("float")
                };
                assert_eq!(*found, want.mapv(|w| cast.round(w)), "{id}");
                assert_ne!(found, want, "{id}");
                assert_eq!(linear.bias, exact.bias.as_ref().map(|bias| bias.mapv(|b| cast.round(b))));
            }
            for (norm, gains) in &official.norms {
                assert_eq!(*gains, exact.norms[norm].mapv(|gain| cast.round(gain)), "{norm:?}");
            }
            // What multiplies inputs: cast as well; keys and queries: as they are.
            for (site, transform) in &official.online.sites {
                let cast = |matrix: &&Array2<f32>| matrix.mapv(|v| cast.round(v));
                let want: Vec<_> = exact.online.sites[site].matrices().iter().map(cast).collect();
                assert!(transform.matrices().into_iter().eq(&want), "{site:?}");
            }
            assert_eq!(official.online.pair, exact.online.pair);
            let error = worst(&output::<f64>(&spec, official, &x, 7), &float);
            assert!(error > least && error < 100.0 * least, "{way:?}, {cast:?}: {error}");
        }
        // In a float32 model, like that of the goldens, nothing is left of them.
        assert_eq!(parameters.merge(&plain.cast_to(FloatType::F32), params, Par::Seq).unwrap(), exact);
    }
}

/// Integer levels of rows whose largest magnitude is at the last one.
fn codes(weight: &Array2<f32>) -> Array2<i32> {
    let mut codes = Array2::zeros(weight.dim());
    for (row, mut to) in weight.rows().into_iter().zip(codes.rows_mut()) {
        let scale = row.iter().fold(0.0_f32, |m, w| m.max(w.abs())) / 7.0;
        to.zip_mut_with(&row, |code, w| *code = (w / scale).round() as i32);
    }
    codes
}

/// Rows of merged weights, rounded, have the levels that training rounds to, those of up although a factor is in each row.
#[test]
fn merged_weights_round_to_the_same_levels() {
    let four = Bits::new(4).unwrap();
    let scheme = FlatScheme::new(Some(four), Some((four, false)), Some((four, false))).unwrap();
    let quantiser = StraightThrough::weights(four, true).unwrap();
    let (mut same, mut all) = (0, 0);
    for (architecture, way) in FAMILIES.into_iter().flat_map(|family| BOTH.map(|way| (family, way))) {
        let spec = spec_of(architecture);
        let shape = FlatShape::new(&spec, 0);
        let params = random_block(&spec, &mut Numbers::new(1));
        let x = Numbers::new(2).matrix(7, spec.hidden, 1.0);
        let case = Case::<f32>::new(&spec, params.clone(), 7, x.clone(), x);
        let parameters = parameters(&shape, &spec, &scheme, &HEADS, way);
        let step = FlatStep::new(&shape, &scheme, &parameters).unwrap();
        let trained = step.weights(&case.own(), Par::Seq).unwrap();
        let merged = parameters.merge(&shape, params, Par::Seq).unwrap();
        for (id, linear) in merged.linears {
            let LinearWeight::Float(weight) = linear.weight else { panic!("float") };
            let rounded = quantiser.forward(weight.view(), weight.ncols(), None, Par::Seq).unwrap();
            let (found, want) = (codes(&rounded), codes(&trained[&id].weight));
            same += found.iter().zip(&want).filter(|(a, b)| a == b).count();
            all += found.len();
        }
    }
    assert!(same as f64 >= 0.999 * all as f64, "{same} of {all}");
}

/// The output of a merged block with the transforms and quantisers that a deployment has.
fn deployed(case: &Case<f32>, scheme: &FlatScheme, parameters: &FlatParameters<f32>) -> Array2<f32> {
    // The factors of channels are in the norms and in up.
    let running = FlatParameters { scales: BTreeMap::new(), ..parameters.clone() };
    let rope = |_| &case.table;
    let trainer = BlockTrainer::new(&case.block, &rope, case.own()).unwrap();
    let step = FlatStep::new(&case.shape, scheme, &running).unwrap();
    trainer.forward(case.x.view(), &case.starts, &case.own(), &mut step.insert(), Par::Seq).unwrap()
}

/// Parameters with other last bits.
const TRIES: u64 = 12;

#[test]
fn the_golden_reparameterisation() {
    let Some(golden) = Golden::shared("flatquant.safetensors") else { return };
    let mut seen = 0;
    for (name, case) in golden.cases().iter().filter(|(name, _)| golden.has(&format!("{name}.train_out"))) {
        let (spec, block) = golden_block(&golden, case, 0..2);
        let (parameters, scheme) = (read(&golden, &format!("{name}.final"), &spec), scheme_of(case));
        let error = |what: &str, found: &Array2<f32>| worst(found, &golden.matrix(&format!("{name}.{what}")));
        let close = |what: &str, found: &Array2<f32>| {
            let error = error(what, found);
            assert!(error <= 1e-4, "{name}: {what} is off by {error}");
        };
        // Something next to a tie falls to either side with the last bits of the matrices, which are formed in f64 here: one of
        // some outputs for parameters with other last bits must be the official one.
        let one_is_close = |what: &str, output: &dyn Fn(&FlatParameters<f32>) -> Array2<f32>| {
            let errors = (0..TRIES).map(|seed| error(what, &output(&varied(&parameters, seed))));
            let errors: Vec<f64> = errors.take_while(|error| *error > 1e-4).collect();
            assert!(errors.len() < TRIES as usize, "{name}: {what} is off by {errors:?}");
        };
        one_is_close("train_out", &|parameters| block.forward(&scheme, parameters));

        let (_, plain) = golden_params(&golden, case);
        let merged = parameters.merge(&block.shape, plain, Par::Seq).unwrap();
        for (norm, module) in
            [(Norm::Input, "input_layernorm"), (Norm::PostAttention, "post_attention_layernorm")]
        {
            let want = golden.vector(&format!("{name}.rep.{module}.weight")).insert_axis(Axis(0));
            let error = worst(&merged.norms[&norm].clone().insert_axis(Axis(0)), &want);
            assert!(error < 1e-6, "{name}: {module} is off by {error}");
        }
        let quantiser = scheme.weights.unwrap();
        for (id, linear) in &merged.linears {
            let LinearWeight::Float(weight) = &linear.weight else { panic!("float") };
            let module = spec.layout.module(*id);
            close(&format!("rep.{module}.linear.weight"), weight);
            if let Some(bias) = &linear.bias {
                let want = golden.vector(&format!("{name}.rep.{module}.linear.bias")).insert_axis(Axis(0));
                let error = worst(&bias.clone().insert_axis(Axis(0)), &want);
                assert!(error < 1e-5, "{name}: the bias of {module} is off by {error}");
            }
            let levels = quantiser.forward(weight.view(), weight.ncols(), None, Par::Seq).unwrap();
            if golden.has(&format!("{name}.rtn.{module}.linear.weight")) {
                close(&format!("rtn.{module}.linear.weight"), &levels);
            }
        }
        let merged = |parameters: &FlatParameters<f32>, round: bool| {
            let (_, plain) = golden_params(&golden, case);
            let merged = parameters.merge(&block.shape, plain, Par::Seq).unwrap();
            // What is inserted multiplies by its transforms; the block is not to do so once more.
            let merged = BlockParams { online: Online::default(), ..merged };
            let mut merged = Case::<f32>::new(&spec, merged, 24, block.x.clone(), block.target.clone());
            for (weight, _) in merged.float.values_mut().filter(|_| round) {
                *weight = quantiser.forward(weight.view(), weight.ncols(), None, Par::Seq).unwrap();
            }
            deployed(&merged, &scheme, parameters)
        };
        one_is_close("eval_out_fpw", &|parameters| merged(parameters, false));
        one_is_close("eval_out_rtn", &|parameters| merged(parameters, true));
        seen += 1;
    }
    assert_eq!(seen, 4);
}

#[test]
fn what_is_not_the_float_block_is_refused() {
    let spec = spec_of(FAMILIES[0]);
    let shape = FlatShape::new(&spec, 0);
    let none = float_scheme();
    let parameters = parameters(&shape, &spec, &none, &HEADS, Parametrisation::Inverse);
    let plain = random_block(&spec, &mut Numbers::new(1));
    let refused = |change: &dyn Fn(&mut BlockParams)| {
        let mut block = plain.clone();
        change(&mut block);
        parameters.merge(&shape, block, Par::Seq).unwrap_err().to_string()
    };
    let merged = parameters.merge(&shape, plain.clone(), Par::Seq).unwrap();
    let message = refused(&|block| *block = merged.clone());
    assert!(message.contains("has transforms already; it needs the float block"), "{message}");
    let message = refused(&|block| drop(block.linears.remove(&LinearId::O)));
    assert!(message.contains("the block has no model.layers.0.self_attn.o_proj"), "{message}");
    let message = refused(&|block| drop(block.norms.remove(&Norm::Input)));
    assert!(message.contains("the block has no Input norm"), "{message}");
    let eight = ActQuant::Dynamic {
        bits: Bits::new(8).unwrap(),
        rule: ActRule::Symmetric,
        clip_ratio: 1.0.into(),
        shards: 1,
    };
    let message = refused(&|block| {
        if let Some(linear) = block.linears.get_mut(&LinearId::O) {
            linear.input = Some(eight);
        }
    });
    assert!(message.contains("the input of model.layers.0.self_attn.o_proj is quantised"), "{message}");

    assert_eq!(parameters.clip_factors(Spot::Key), None);
    let four = Bits::new(4).unwrap();
    let scheme = FlatScheme::new(None, Some((four, false)), None).unwrap();
    let start = Start {
        parametrisation: Parametrisation::Inverse,
        scales: &BTreeMap::new(),
        weight_clips: false,
        input_clips: true,
        seed: 0,
        name: "",
    };
    let parameters = FlatParameters::<f32>::initial(&shape, &scheme, start).unwrap();
    // Two numbers of the specification: sigma(4).
    let factors = parameters.clip_factors(Spot::Site(Site::MlpInput)).unwrap();
    assert!(factors.iter().all(|f| (f - 0.982_013_79).abs() < 1e-7), "{factors:?}");
}
