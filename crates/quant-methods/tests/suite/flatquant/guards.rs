//! Trainings that really go wrong, and the guards that see it.

use super::case::Case;
use super::train::{LENGTH, few, four_bits, outliers, trained};
use quant_core::Bits;
use quant_graph::{EffectiveWeights, LinearId, LinearWeight};
use quant_kernels::Par;
use quant_methods::flatquant::{Alarm, FlatBlock, FlatScheme, FlatSettings, Matrix, Sequences, Trained};
use quant_model::BlockTrainer;

/// One step an epoch, as long as the way to the minimum: the error goes down, up and down again. At the published rate it does not.
#[test]
fn steps_too_large_oscillate() {
    let trainings = |learning_rate| {
        let train =
            |seed| trained(&FlatSettings { learning_rate, batch_size: 9, seed, ..few(4) }).unwrap().report;
        (0..8).map(train).collect::<Vec<_>>()
    };
    let spread = |alarms: &[Alarm]| {
        alarms.iter().find_map(|alarm| match alarm {
            Alarm::Oscillating { spread } => Some(*spread),
            _ => None,
        })
    };
    let mut found = 0;
    for report in trainings(0.05).into_iter().chain(trainings(0.1)) {
        let Some(spread) = spread(&report.alarms) else { continue };
        // What the guard sees is what went on: of the last two epochs, and one of them worse than the one before.
        let last = &report.epochs[2..];
        assert!((spread - (last[0] - last[1]).abs() / (last[0] + last[1])).abs() < 1e-9, "{spread} {last:?}");
        found += usize::from(report.epochs.windows(2).any(|pair| pair[1] > 1.2 * pair[0]));
    }
    assert!(found >= 3, "{found} of 16");
    for report in trainings(0.005) {
        assert!(report.alarms.is_empty(), "{:?} {:?}", report.epochs, report.alarms);
    }
}

/// A pair of channels of keys that outgrows the others shrinks the rows of `P_k` that it meets, by as much: forty times, sixteen hundred
/// times, and when the training goes on from there once more, to a matrix whose inverse has lost its bits. The guard says so then, and
/// not before.
#[test]
fn outliers_that_grow_ruin_the_inverse() {
    const GROWTH: f32 = 40.0;
    let cache = FlatScheme::new(None, None, Some((Bits::new(4).unwrap(), false))).unwrap();
    let mut known: Option<Trained> = None;
    for stage in 1..=3 {
        let (spec, mut params, x) = outliers(LENGTH);
        let factor = GROWTH.powi(stage);
        for (id, factor) in [(LinearId::K, factor), (LinearId::Q, factor.recip())] {
            let LinearWeight::Float(weight) = &mut params.linears.get_mut(&id).unwrap().weight else {
                panic!("float")
            };
            // Channels 1 and 1 + head_dim / 2 of every head turn together.
            for row in (0..weight.nrows()).filter(|row| row % (spec.head_dim / 2) == 1) {
                weight.row_mut(row).mapv_inplace(|w| w * factor);
            }
        }
        // The same for every token, which no transform is needed for.
        for linear in params.linears.values_mut() {
            linear.bias = linear.bias.take().map(|bias| bias * 0.0);
        }
        let case = Case::<f32>::new(&spec, params, LENGTH, x.clone(), x);
        let rope = |_| &case.table;
        let trainer = BlockTrainer::new(&case.block, &rope, EffectiveWeights::new()).unwrap();
        let float = case.own();
        let block =
            FlatBlock { training: &trainer, shape: &case.shape, float: &float, name: "model.layers.0" };
        let sequences = Sequences { x: case.x.view(), starts: &case.starts };
        // Rows that have become small move by as much less.
        let settings = FlatSettings { learning_rate: 0.05 / 10.0_f64.powi(stage - 1), ..few(60) };
        let trained = match known.take() {
            None => block.train(&cache, &settings, sequences, Par::Seq),
            Some(before) => block.train_from(before.parameters, &cache, &settings, sequences, Par::Seq),
        };
        let trained = trained.unwrap();
        let condition = |alarm: &Alarm| match alarm {
            Alarm::Condition { matrix: Matrix::Key, condition } => Some(*condition),
            _ => None,
        };
        let found = trained.report.alarms.iter().filter_map(condition).next();
        if stage < 3 {
            assert!(found.is_none(), "{:?}", trained.report.alarms);
            assert!(trained.report.after < trained.report.before / 10.0, "{:?}", trained.report);
        } else {
            assert!(found.is_some_and(|condition| condition > 1e4), "{:?}", trained.report.alarms);
        }
        known = Some(trained);
    }
}

/// The scheme of the other tests does nothing of the kind at the published rate.
#[test]
fn a_calm_training_alarms_nobody() {
    let calm = trained(&few(6)).unwrap();
    assert!(calm.report.alarms.is_empty() && calm.scheme == four_bits(), "{:?}", calm.report.alarms);
}
