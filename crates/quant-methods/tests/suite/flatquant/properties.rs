//! What holds of any block.

use super::case::{Case, HEADS, PAIRS};
use ndarray::{Array1, Array2, Axis};
use quant_core::Bits;
use quant_graph::{EffectiveWeight, Insert, LinearId, Site, Spot};
use quant_kernels::Par;
use quant_methods::flatquant::{
    FlatParameters, FlatScheme, FlatStep, Matrix, PlainSite, Start, mean_squared_error,
};
use quant_model::model_spec;
use quant_rotate::{ClipLogits, Learned, Parametrisation, StraightThrough, clip_weight};
use quant_testkit::{Numbers, random_block};
use serde_json::json;
use std::collections::BTreeMap;

/// A tiny random block of a family, with parameters of everything, moved away from where they begin.
fn random_case(
    architecture: &str,
    scheme: &FlatScheme,
    parametrisation: Parametrisation,
    matrices: &[Matrix],
    clips: bool,
) -> (Case<f64>, FlatParameters<f64>) {
    random_case_in(1, architecture, scheme, parametrisation, matrices, clips)
}

/// The same with the inputs of o and of down in so many parts.
fn random_case_in(
    shards: usize,
    architecture: &str,
    scheme: &FlatScheme,
    parametrisation: Parametrisation,
    matrices: &[Matrix],
    clips: bool,
) -> (Case<f64>, FlatParameters<f64>) {
    let spec = model_spec(&json!({
        "architectures": [architecture], "model_type": "tiny", "hidden_size": 24, "intermediate_size": 40,
        "num_hidden_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4,
        "vocab_size": 10, "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 64,
        "partial_rotary_factor": if architecture.starts_with("Phi3") { 0.5 } else { 1.0 },
    }))
    .unwrap();
    let numbers = &mut Numbers::new(1);
    let params = random_block(&spec, numbers);
    let mut random = || numbers.matrix(14, 24, 1.0).mapv(f64::from);
    let (x, target) = (random(), random());
    let mut case = Case::new(&spec, params, 7, x, target);
    case.shape = case.shape.in_shards(shards);
    let pairs = matrices.contains(&Matrix::InputLeft);
    let sites = [Site::AttentionInput, Site::MlpInput, Site::MlpActivation].into_iter().filter(|_| pairs);
    let scales: BTreeMap<Site, Array1<f32>> =
        sites.map(|site| (site, numbers.vector(spec.site_width(site), 1.0, 0.4))).collect();
    let mut parameters =
        FlatParameters::initial(&case.shape, scheme, start(parametrisation, &scales)).unwrap();
    for matrix in matrices {
        let side = case.shape.side(*matrix).unwrap();
        parameters.matrices.insert(*matrix, Learned::initial(side, parametrisation, 3, matrix.name()));
    }
    parameters.scales = scales.iter().map(|(site, scales)| (*site, scales.mapv(f64::from))).collect();
    if clips {
        let rows = |id: LinearId| case.float[&id].0.nrows();
        parameters.weight_clips = case.float.keys().map(|id| (*id, ClipLogits::initial(rows(*id)))).collect();
    }
    for (_, values) in parameters.tensors_mut() {
        values.iter_mut().for_each(|x| *x += 0.1 * f64::from(numbers.uniform()));
    }
    (case, parameters)
}

fn start(parametrisation: Parametrisation, scales: &BTreeMap<Site, Array1<f32>>) -> Start<'_> {
    Start { parametrisation, scales, weight_clips: true, input_clips: true, seed: 5, name: "model.layers.0" }
}

const FAMILIES: [&str; 3] = ["Qwen2ForCausalLM", "Qwen3ForCausalLM", "Phi3ForCausalLM"];
const BOTH: [Parametrisation; 2] = [Parametrisation::Inverse, Parametrisation::Svd];

/// Nothing is rounded, so the loss has a slope: that of finite differences, for every parameter.
#[test]
fn gradients_are_those_of_finite_differences() {
    let none = FlatScheme::new(None, None, None).unwrap();
    let kinds: [(&[Matrix], bool, usize); 7] = [
        (&HEADS, true, 1),
        (&HEADS, false, 1),
        (&PAIRS, true, 1),
        (&PAIRS, false, 1),
        (&PAIRS, true, 2),
        (&PAIRS, false, 2),
        (&[Matrix::Key, Matrix::Value], false, 1),
    ];
    for (architecture, parametrisation, (matrices, clips, shards)) in FAMILIES
        .into_iter()
        .flat_map(|family| BOTH.map(|way| (family, way)))
        .flat_map(|(family, way)| kinds.map(|kind| (family, way, kind)))
    {
        let (case, parameters) =
            random_case_in(shards, architecture, &none, parametrisation, matrices, clips);
        let (_, _, gradients) = case.step(&none, &parameters, Par::Seq);
        let gradients = gradients.tensors();
        assert_eq!(gradients.len(), parameters.tensors().len());
        // Clipping has kinks, where weights meet a bound: steps must be short enough to meet none, and what rounding of the loss
        // makes of them is larger.
        let (step, tolerance) = if clips { (2e-6, 1e-5) } else { (1e-4, 1e-6) };
        let numbers = &mut Numbers::new(2);
        for (index, (name, _, gradient)) in gradients.iter().enumerate() {
            let direction: Vec<f64> = gradient.iter().map(|_| f64::from(numbers.uniform())).collect();
            let loss = |step: f64| {
                let mut moved = parameters.clone();
                let (_, values) = moved.tensors_mut().swap_remove(index);
                values.iter_mut().zip(&direction).for_each(|(x, d)| *x += step * d);
                mean_squared_error(case.forward(&none, &moved).view(), case.target.view()).value
            };
            let central = |h: f64| (loss(h) - loss(-h)) / (2.0 * h);
            let want = (4.0 * central(step) - central(2.0 * step)) / 3.0;
            let got: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
            assert!(
                (got - want).abs() <= tolerance * want.abs().max(1e-3),
                "{architecture}, {parametrisation:?}, {name}: {got} is not {want}"
            );
        }
    }
}

/// Transforms alone change nothing.
#[test]
fn transforms_keep_the_function() {
    let none = FlatScheme::new(None, None, None).unwrap();
    for (architecture, parametrisation) in FAMILIES.into_iter().flat_map(|f| BOTH.map(|way| (f, way))) {
        for (matrices, shards) in [
            (&HEADS[..], 1),
            (&PAIRS, 1),
            (&PAIRS, 2),
            (&[Matrix::Key, Matrix::Value], 1),
            (&[Matrix::Value], 1),
        ] {
            let (case, parameters) =
                random_case_in(shards, architecture, &none, parametrisation, matrices, false);
            let plain =
                FlatParameters { matrices: BTreeMap::new(), scales: BTreeMap::new(), ..parameters.clone() };
            assert!(plain.tensors().is_empty());
            let (float, same) = (case.forward(&none, &plain), case.forward(&none, &parameters));
            let size = float.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
            let worst = (&float - &same).iter().fold(0.0_f64, |m, x| m.max(x.abs()));
            assert!(worst < 1e-10 * size, "{architecture}, {matrices:?}: {worst}");
        }
    }
}

/// Each part of what enters o and down has a scale of its own: what one has does not depend on the others.
#[test]
fn parts_are_quantised_alone() {
    let four = Bits::new(4).unwrap();
    let scheme = FlatScheme::new(None, Some((four, true)), None).unwrap();
    let scheme = FlatScheme { output_pair: true, ..scheme };
    let way = Parametrisation::Inverse;
    let (case, parameters) = random_case_in(2, FAMILIES[0], &scheme, way, &PAIRS, false);
    let step = FlatStep::new(&case.shape, &scheme, &parameters).unwrap();
    let run = |spot, x: Array2<f64>| step.insert().forward(spot, x, false, Par::Seq).unwrap();
    for (site, width) in [(Site::MlpActivation, 40), (Site::AttentionOutput, 24), (Site::MlpInput, 24)] {
        let x = Numbers::new(4).matrix(3, width, 1.0).mapv(f64::from);
        let mut other = x.clone();
        other.slice_axis_mut(Axis(1), (width / 2..).into()).mapv_inplace(|v| v * 9.0);
        let [found, changed] = [x, other].map(|x| run(Spot::Site(site), x));
        let half = |x: &Array2<f64>| x.slice_axis(Axis(1), (..width / 2).into()).to_owned();
        assert_eq!(half(&found) == half(&changed), site != Site::MlpInput, "{site:?}");
    }
}

/// Quantisers of the inputs of linears, shared or one for each, and threads.
#[test]
fn shared_and_separate_inputs() {
    let four = Bits::new(4).unwrap();
    let shared = FlatScheme::new(Some(four), Some((four, false)), Some((four, true))).unwrap();
    let separate = FlatScheme { share_inputs: false, ..shared };
    let site_of = |spot: &Spot| match spot {
        Spot::Linear(id) => Spot::Site(id.site()),
        other => *other,
    };
    for architecture in FAMILIES {
        let way = Parametrisation::Inverse;
        let (case, one) = random_case(architecture, &shared, way, &HEADS, true);
        let (_, mut many) = random_case(architecture, &separate, way, &HEADS, true);
        assert_eq!((one.input_clips.len(), many.input_clips.len()), (4 + 2, case.float.len() + 2));
        // With the clip factors of the site at each of its linears, the same is computed.
        many = FlatParameters { input_clips: many.input_clips, ..one.clone() };
        for (spot, clip) in &mut many.input_clips {
            clip.clone_from(&one.input_clips[&site_of(spot)]);
        }
        let (a, _, together) = case.step(&shared, &one, Par::Seq);
        let (b, _, apart) = case.step(&separate, &many, Par::new(3));
        assert_eq!(a, b);
        for (spot, want) in &together.input_clips {
            let parts = apart.input_clips.iter().filter(|(part, _)| site_of(part) == *spot);
            let (max, min) =
                parts.fold((0.0, 0.0), |(max, min), (_, part)| (max + part.max[0], min + part.min[0]));
            let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b.abs().max(1e-6);
            assert!(near(max, want.max[0]) && near(min, want.min[0]), "{architecture}, {spot:?}");
        }
        assert_eq!(case.step(&shared, &one, Par::new(3)).2, together, "threads change nothing");
    }
}

/// One clip factor of both ends has the gradients of both, and factors that began alike stay so; those of the cache are apart.
#[test]
fn ends_that_are_tied() {
    let four = Bits::new(4).unwrap();
    let apart = FlatScheme::new(Some(four), Some((four, true)), Some((four, true))).unwrap();
    let apart = FlatScheme { output_pair: true, ..apart };
    let tied = FlatScheme { tied_clips: true, ..apart };
    let matrices = [&PAIRS[..], &[Matrix::Key]].concat();
    let (case, mut parameters) = random_case(FAMILIES[0], &apart, Parametrisation::Inverse, &matrices, true);
    parameters.input_clips.values_mut().for_each(|clip| clip.min = clip.max.clone());
    let [ends, both] = [&apart, &tied].map(|scheme| case.step(scheme, &parameters, Par::Seq).2);
    for (spot, clip) in &ends.input_clips {
        let of_both = &both.input_clips[spot];
        if matches!(spot, Spot::Key | Spot::Value) {
            assert_eq!(of_both, clip);
            continue;
        }
        let sum = &clip.max + &clip.min;
        assert!(clip.max != clip.min && of_both.max == sum && of_both.min == sum, "{spot:?}");
    }
    assert_eq!(FlatParameters { input_clips: ends.input_clips.clone(), ..both }, ends);
}

/// A site that is left alone has no matrices, factors or learned clip factors, and its own quantisers; with o goes what is in v.
#[test]
fn sites_that_are_left_alone() {
    let (four, eight) = (Bits::new(4).unwrap(), Bits::new(8).unwrap());
    let whole = FlatScheme::new(Some(four), Some((four, true)), None).unwrap();
    let whole = FlatScheme { output_pair: true, tied_clips: true, ..whole };
    let alone = PlainSite {
        weights: Some(StraightThrough::weights(eight, true).unwrap()),
        activations: Some(StraightThrough::activations(eight, true).unwrap()),
    };
    for site in [Site::AttentionOutput, Site::MlpActivation] {
        let mut scheme = whole;
        scheme.plain[site as usize] = Some(alone);
        let (case, _) = random_case(FAMILIES[0], &whole, Parametrisation::Inverse, &PAIRS, true);
        let scales =
            BTreeMap::from([(Site::MlpActivation, Array1::ones(40)), (Site::MlpInput, Array1::ones(24))]);
        let begin =
            FlatParameters::<f64>::initial(&case.shape, &scheme, start(Parametrisation::Inverse, &scales));
        let parameters = begin.unwrap();
        let (gone, kept) = match site {
            Site::AttentionOutput => ([Matrix::Value, Matrix::OutputLeft, Matrix::OutputRight].as_slice(), 6),
            _ => ([Matrix::DownLeft, Matrix::DownRight].as_slice(), 7),
        };
        assert_eq!(parameters.matrices.len(), kept);
        assert!(gone.iter().all(|matrix| !parameters.matrices.contains_key(matrix)), "{site:?}");
        assert_eq!(parameters.scales.contains_key(&Site::MlpActivation), site == Site::AttentionOutput);
        assert!(!parameters.input_clips.contains_key(&Spot::Site(site)));
        assert_eq!((parameters.input_clips.len(), parameters.weight_clips.len()), (3, 7));

        let step = FlatStep::new(&case.shape, &scheme, &parameters).unwrap();
        let id = case.float.keys().copied().find(|id| id.site() == site).unwrap();
        let found = &step.weights(&case.own(), Par::Seq).unwrap()[&id].weight;
        let clipped =
            clip_weight(case.float[&id].0.view(), found.ncols(), &parameters.weight_clips[&id], Par::Seq);
        let want = alone.weights.unwrap().forward(clipped.unwrap().view(), found.ncols(), None, Par::Seq);
        assert_eq!(*found, want.unwrap());
        // What is eight bits wide is nearer to the float block.
        let [four_bits, eight_bits] = [&whole, &scheme].map(|scheme| {
            let begin =
                FlatParameters::<f64>::initial(&case.shape, scheme, start(Parametrisation::Inverse, &scales));
            let none = FlatScheme::new(None, None, None).unwrap();
            let bare = FlatParameters {
                matrices: BTreeMap::new(),
                scales: BTreeMap::new(),
                weight_clips: BTreeMap::new(),
                input_clips: BTreeMap::new(),
            };
            let float = case.forward(&none, &bare);
            mean_squared_error(case.forward(scheme, &begin.unwrap()).view(), float.view()).value
        });
        assert!(eight_bits < four_bits, "{site:?}: {eight_bits} {four_bits}");
        let (_, loss, gradients) = case.step(&scheme, &parameters, Par::Seq);
        assert!(loss.value.is_finite() && gradients.tensors().len() == parameters.tensors().len());
    }
}

#[test]
fn parameters_of_another_block_are_refused() {
    let four = Bits::new(4).unwrap();
    let scheme = FlatScheme::new(Some(four), Some((four, false)), None).unwrap();
    let (case, good) = random_case(FAMILIES[0], &scheme, Parametrisation::Inverse, &HEADS, true);
    let refused = |change: &dyn Fn(&mut FlatParameters<f64>)| {
        let mut parameters = good.clone();
        change(&mut parameters);
        FlatStep::new(&case.shape, &scheme, &parameters).unwrap_err().to_string()
    };
    let message = refused(&|p| drop(p.matrices.remove(&Matrix::Value)));
    assert!(message.contains("no matrix vcache"), "{message}");
    let left = Learned::initial(4, Parametrisation::Svd, 0, "");
    let message = refused(&|p| drop(p.matrices.insert(Matrix::OutputLeft, left.clone())));
    assert!(message.contains("no matrix o.right"), "{message}");
    let right = Learned::initial(6, Parametrisation::Svd, 0, "");
    let message = refused(&|p| {
        p.matrices.insert(Matrix::OutputLeft, left.clone());
        p.matrices.insert(Matrix::OutputRight, right.clone());
    });
    assert!(message.contains("one form of what stands before o"), "{message}");
    let other = Learned::initial(5, Parametrisation::Svd, 0, "");
    let message = refused(&|p| drop(p.matrices.insert(Matrix::Key, other.clone())));
    assert_eq!(message, "flatquant: the matrix kcache has 5 channels, expected 4");
    let message = refused(&|p| drop(p.scales.insert(Site::MlpInput, Array1::ones(7))));
    assert_eq!(message, "flatquant: the scale at MlpInput has 7 channels, expected 24");
    let message = refused(&|p| drop(p.scales.insert(Site::AttentionOutput, Array1::ones(24))));
    assert!(message.contains("beside the scale at AttentionOutput"), "{message}");
    let singular = Learned::free(Array2::<f64>::zeros((4, 4)).view()).unwrap();
    let message = refused(&|p| drop(p.matrices.insert(Matrix::Key, singular.clone())));
    assert!(message.contains("singular"), "{message}");

    let step = FlatStep::new(&case.shape, &scheme, &good).unwrap();
    let mut own = case.own();
    own.remove(&LinearId::O);
    let message = step.weights(&own, Par::Seq).unwrap_err().to_string();
    assert!(message.contains("float weight of model.layers.0.self_attn.o_proj"), "{message}");
    let wrong = Array2::zeros((24, 23));
    own.insert(LinearId::O, EffectiveWeight { weight: wrong.view(), bias: None });
    let message = step.weights(&own, Par::Seq).unwrap_err().to_string();
    assert!(message.contains("columns of model.layers.0.self_attn.o_proj has 23"), "{message}");

    let scales = BTreeMap::from([(Site::MlpInput, Array1::ones(3))]);
    let begin = FlatParameters::<f32>::initial(&case.shape, &scheme, start(Parametrisation::Svd, &scales));
    assert!(begin.unwrap_err().to_string().contains("scale at MlpInput has 3 channels, expected 24"));
}
