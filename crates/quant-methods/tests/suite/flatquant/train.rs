//! The training of a block.

use super::case::Case;
use ndarray::Array2;
use quant_core::Bits;
use quant_graph::{
    BlockParams, EffectiveWeights, LinearId, LinearWeight, ModelSpec, NoInsert, Norm, Site, Spot,
};
use quant_kernels::Par;
use quant_methods::MethodError;
use quant_methods::flatquant::{
    Alarm, FlatBlock, FlatParameters, FlatScheme, FlatSettings, FlatVariant, Matrix, Sequences, Trained,
};
use quant_model::{BlockTrainer, model_spec};
use quant_rotate::{Learned, Parametrisation};
use quant_testkit::{Numbers, random_block};
use serde_json::json;

pub(crate) const LENGTH: usize = 16;

/// A random block some of whose channels are much larger than the others, at the inputs of q, k and v and of gate and up by their
/// norms and at that of down by rows of up, and 9 sequences.
pub(crate) fn outliers(length: usize) -> (ModelSpec, BlockParams, Array2<f32>) {
    let spec = model_spec(&json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "tiny", "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
        "vocab_size": 10, "rms_norm_eps": 1e-6, "hidden_act": "silu", "max_position_embeddings": 2048,
    }))
    .unwrap();
    let mut params = random_block(&spec, &mut Numbers::new(1));
    for (norm, channel) in [(Norm::Input, 3), (Norm::Input, 30), (Norm::PostAttention, 7)] {
        params.norms.get_mut(&norm).unwrap()[channel] *= 40.0;
        let site = if norm == Norm::Input { 0 } else { 1 };
        for (id, linear) in &mut params.linears {
            let LinearWeight::Float(weight) = &mut linear.weight else { panic!("float") };
            let reads = match site {
                0 => [LinearId::Q, LinearId::K, LinearId::V].contains(id),
                _ => [LinearId::GATE, LinearId::UP].contains(id),
            };
            if reads {
                weight.column_mut(channel).mapv_inplace(|w| w / 40.0);
            }
        }
    }
    let x = Numbers::new(2).matrix(9 * length, spec.hidden, 1.0);
    (spec, params, x)
}

/// Hands that block and its sequences to `work`.
fn with_block<R>(work: impl FnOnce(&FlatBlock<'_, '_>, Sequences<'_>) -> R) -> R {
    with_long_block(LENGTH, None, work)
}

/// The same with sequences of another length, trained in so many bytes.
fn with_long_block<R>(
    length: usize,
    memory: Option<usize>,
    work: impl FnOnce(&FlatBlock<'_, '_>, Sequences<'_>) -> R,
) -> R {
    let (spec, params, x) = outliers(length);
    let case = Case::<f32>::new(&spec, params, length, x.clone(), x);
    let rope = |_| &case.table;
    let trainer = BlockTrainer::new(&case.block, &rope, EffectiveWeights::new()).unwrap();
    let trainer = match memory {
        Some(bytes) => trainer.with_memory(bytes),
        None => trainer,
    };
    let float = case.own();
    let block = FlatBlock { training: &trainer, shape: &case.shape, float: &float, name: "model.layers.0" };
    work(&block, Sequences { x: case.x.view(), starts: &case.starts })
}

pub(crate) fn trained(settings: &FlatSettings) -> Result<Trained, MethodError> {
    with_block(|block, sequences| block.train(&four_bits(), settings, sequences, Par::Seq))
}

pub(crate) fn four_bits() -> FlatScheme {
    let four = Bits::new(4).unwrap();
    FlatScheme::new(Some(four), Some((four, false)), Some((four, false))).unwrap()
}

/// The error of some parameters.
fn error_of(parameters: &FlatParameters<f32>) -> f64 {
    with_block(|block, sequences| {
        let Sequences { x, starts } = sequences;
        let target = block.training.forward(x, starts, block.float, &mut NoInsert, Par::Seq).unwrap();
        block.relative_error(&four_bits(), parameters, sequences, target.view(), Par::Seq).unwrap()
    })
}

pub(crate) fn few(epochs: usize) -> FlatSettings {
    FlatSettings { batch_size: 2, epochs, ..FlatSettings::default() }
}

/// At 4 bits, where outliers ruin a block that nothing is done to.
#[test]
fn training_lowers_the_error() {
    for parametrisation in [Parametrisation::Inverse, Parametrisation::Svd] {
        let settings = FlatSettings { parametrisation, ..few(15) };
        let Trained { parameters, report, scheme } = trained(&settings).unwrap();
        assert!(scheme.share_inputs && report.alarms.is_empty(), "{:?}", report.alarms);
        assert_eq!((report.losses.len(), report.epochs.len(), report.dropped), (15 * 4, 15, 1));
        assert!(report.notice().unwrap().contains("1 calibration sequences at the end"));
        assert!(report.after < 0.9 * report.before, "{} to {}", report.before, report.after);
        assert_eq!(report.after, report.epochs[report.kept - 1]);
        assert_eq!(report.after, error_of(&parameters));
        assert!(report.epochs.iter().all(|error| *error >= report.after));
        // Beside no transforms.
        let mut plain = parameters;
        for learned in plain.matrices.values_mut() {
            *learned = Learned::free(Array2::eye(learned.side()).view()).unwrap();
        }
        plain.scales.clear();
        plain.weight_clips.clear();
        plain.input_clips.clear();
        let plain = error_of(&plain);
        assert!(report.after < plain / 10.0, "{plain} to {}", report.after);
    }
    // Random matrices alone do not help this block, training does.
    let report = trained(&FlatSettings { diag: false, ..few(15) }).unwrap().report;
    assert!(report.after < report.before / 3.0, "{} to {}", report.before, report.after);
}

/// Of threads, and of a memory bound under which all tapes but one are made again: a batch is four pieces of one sequence each.
#[test]
fn the_same_bits() {
    let settings = FlatSettings { batch_size: 4, ..few(1) };
    let outcome = |memory, par| {
        let train = |block: &FlatBlock<'_, '_>, sequences: Sequences<'_>| {
            block.train(&four_bits(), &settings, sequences, par).unwrap()
        };
        with_long_block(1025, memory, train)
    };
    let one = outcome(None, Par::Seq);
    assert!(one.report.losses.len() == 2 && one.report.kept == 1);
    assert!(outcome(None, Par::new(2)) == one, "threads change something");
    assert!(outcome(Some(1), Par::Seq) == one, "a memory bound changes something");

    let [a, b] = [0, 1].map(|seed| trained(&FlatSettings { seed, ..few(1) }).unwrap().parameters);
    assert_ne!(a, b);
}

/// What a setting asks for is learned, and nothing else.
#[test]
fn settings_say_what_is_learned() {
    let none = FlatSettings { lwc: false, lac: false, diag: false, share_inputs: false, ..few(1) };
    let bare = trained(&none).unwrap().parameters;
    assert!(bare.scales.is_empty() && bare.weight_clips.is_empty() && bare.input_clips.is_empty());
    let separate = trained(&FlatSettings { lac: true, ..none }).unwrap();
    assert!(!separate.scheme.share_inputs);
    assert!(separate.parameters.input_clips.contains_key(&Spot::Linear(LinearId::Q)));

    // No epoch: what training begins with, the official program's baseline.
    let begin = trained(&few(0)).unwrap();
    assert_eq!((begin.report.kept, begin.report.after), (0, begin.report.before));
    assert!(begin.report.losses.is_empty() && begin.parameters.scales.len() == 3);
    let warm = trained(&FlatSettings { warmup: true, ..few(1) }).unwrap();
    let cold = trained(&few(1)).unwrap();
    assert_eq!(warm.report.losses[0], cold.report.losses[0]);
    assert_ne!(warm.report.losses[3], cold.report.losses[3]);
}

/// Going on from what was kept, as a repair does, cannot lose it.
#[test]
fn a_training_goes_on() {
    let first = trained(&few(3)).unwrap();
    let settings = FlatSettings { learning_rate: 2.5e-3, ..few(3) };
    let again = with_block(|block, sequences| {
        block.train_from(first.parameters.clone(), &first.scheme, &settings, sequences, Par::Seq)
    });
    let again = again.unwrap().report;
    assert_eq!(again.before, first.report.after);
    assert!(again.after <= again.before && again.losses.len() == 12);
    let mut lacking = first.parameters;
    lacking.matrices.remove(&Matrix::Value);
    let refused = with_block(|block, sequences| {
        block.train_from(lacking, &first.scheme, &settings, sequences, Par::Seq).unwrap_err().to_string()
    });
    assert!(refused.contains("no matrix vcache"), "{refused}");
}

/// The last step, whatever it is like.
#[test]
fn the_exact_variant_ends_where_it_ends() {
    let stable = trained(&few(3)).unwrap();
    let exact = trained(&FlatSettings { variant: FlatVariant::Exact, ..few(3) }).unwrap();
    assert_eq!(exact.report.losses, stable.report.losses);
    assert_eq!((exact.report.after, exact.report.kept), (stable.report.epochs[2], 3));
    assert!(exact.report.epochs.is_empty() && exact.report.alarms.is_empty());
    assert_eq!(error_of(&exact.parameters), exact.report.after);
}

/// A learning rate that ruins the block: the guards say so, and nothing worse than the beginning is kept.
#[test]
fn a_diverged_training_is_caught() {
    for learning_rate in [0.5, 1e30] {
        let settings = FlatSettings { learning_rate, ..few(3) };
        let report = trained(&settings).unwrap().report;
        assert!(matches!(report.alarms[0], Alarm::Diverged { .. }), "{:?}", report.alarms);
        assert!(report.alarms[0].to_string().starts_with("diverged: the relative error is"));
        assert!(report.after <= report.before);
        let exact = trained(&FlatSettings { variant: FlatVariant::Exact, ..settings });
        assert!(exact.is_ok_and(|t| t.report.after > 2.0 * report.before) || learning_rate > 1.0);
    }
    let lost = FlatSettings { learning_rate: 1e30, variant: FlatVariant::Exact, ..few(3) };
    assert!(matches!(trained(&lost), Err(MethodError::Rotate(_) | MethodError::Core(_))));
}

#[test]
fn ill_conditioned_parameters_are_named() {
    let good = trained(&FlatSettings { parametrisation: Parametrisation::Svd, ..few(1) }).unwrap().parameters;
    assert_eq!(good.ill_conditioned().unwrap(), []);
    // Condition numbers of 200 and 100: no side of the pair is bad alone.
    let mut bad = good.clone();
    for (matrix, first) in [(Matrix::MlpLeft, 200.0), (Matrix::MlpRight, 100.0)] {
        let mut diagonal = Array2::<f32>::eye(bad.matrices[&matrix].side());
        diagonal[(0, 0)] = first;
        bad.matrices.insert(matrix, Learned::free(diagonal.view()).unwrap());
    }
    let alarms = bad.ill_conditioned().unwrap();
    let [Alarm::Condition { matrix: Matrix::MlpLeft, condition }] = alarms[..] else { panic!("{alarms:?}") };
    assert!((condition - 2e4).abs() < 1.0);

    let mut bad = good.clone();
    for (name, values) in bad.matrices.get_mut(&Matrix::Key).unwrap().tensors_mut() {
        if name == "t" {
            values[2] = -5e-4;
        }
    }
    let alarms = bad.ill_conditioned().unwrap();
    assert!(matches!(alarms[..], [Alarm::Diagonal { matrix: Matrix::Key, .. }]), "{alarms:?}");

    let mut bad = good;
    bad.scales.get_mut(&Site::MlpInput).unwrap()[5] = -9e-5;
    let alarms = bad.ill_conditioned().unwrap();
    assert_eq!(alarms[..], [Alarm::Scale { site: Site::MlpInput, smallest: 9e-5 }]);
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let refused = |settings: FlatSettings| trained(&settings).unwrap_err().to_string();
    let message = refused(FlatSettings { batch_size: 10, ..few(1) });
    assert!(message.contains("9 calibration sequences make no batch of 10"), "{message}");
    let message = refused(FlatSettings { batch_size: 0, ..few(1) });
    assert!(message.contains("`batch_size` is 0: expected at least 1"), "{message}");
    let message = refused(FlatSettings { diag_alpha: 1.5, ..few(1) });
    assert!(message.contains("`diag_alpha` is 1.5"), "{message}");
    let message = refused(FlatSettings { learning_rate: f64::NAN, ..few(1) });
    assert!(message.contains("`learning_rate` is NaN"), "{message}");
    let message = with_block(|block, sequences| {
        let float = EffectiveWeights::new();
        let block = FlatBlock { float: &float, ..*block };
        block.train(&four_bits(), &few(1), sequences, Par::Seq).unwrap_err().to_string()
    });
    assert!(message.contains("block 0"), "{message}");
}
