//! Trainings that really go wrong, and the guards that see it.

use super::case::Case;
use super::train::{LENGTH, few, four_bits, outliers, trained};
use quant_core::Bits;
use quant_graph::{BlockParams, EffectiveWeights, LinearId, LinearWeight, ModelSpec, Norm, Site};
use quant_kernels::Par;
use quant_methods::flatquant::{Alarm, FlatBlock, FlatScheme, FlatSettings, Matrix, Sequences, Trained};
use quant_model::BlockTrainer;
use quant_rotate::Parametrisation;

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

/// A training in a block that changes, from where the one before it ended.
struct Growing {
    scheme: FlatScheme,
    known: Option<Trained>,
}

impl Growing {
    fn new(scheme: FlatScheme) -> Self {
        Self { scheme, known: None }
    }

    fn go_on(
        &mut self,
        settings: &FlatSettings,
        change: impl FnOnce(&ModelSpec, &mut BlockParams),
    ) -> &Trained {
        let (spec, mut params, x) = outliers(LENGTH);
        change(&spec, &mut params);
        let case = Case::<f32>::new(&spec, params, LENGTH, x.clone(), x);
        let rope = |_| &case.table;
        let trainer = BlockTrainer::new(&case.block, &rope, EffectiveWeights::new()).unwrap();
        let float = case.own();
        let block =
            FlatBlock { training: &trainer, shape: &case.shape, float: &float, name: "model.layers.0" };
        let sequences = Sequences { x: case.x.view(), starts: &case.starts };
        let trained = match self.known.take() {
            None => block.train(&self.scheme, settings, sequences, Par::Seq),
            Some(before) => block.train_from(before.parameters, &self.scheme, settings, sequences, Par::Seq),
        };
        self.known.insert(trained.unwrap())
    }
}

/// Makes a pair of channels of keys so many times as large, and those of queries as much smaller; without biases, which are the same for
/// every token, so that no transform is needed for them.
fn outgrow(spec: &ModelSpec, params: &mut BlockParams, factor: f32) {
    for (id, factor) in [(LinearId::K, factor), (LinearId::Q, factor.recip())] {
        let LinearWeight::Float(weight) = &mut params.linears.get_mut(&id).unwrap().weight else {
            panic!("float")
        };
        // Channels 1 and 1 + head_dim / 2 of every head turn together.
        for row in (0..weight.nrows()).filter(|row| row % (spec.head_dim / 2) == 1) {
            weight.row_mut(row).mapv_inplace(|w| w * factor);
        }
    }
    for linear in params.linears.values_mut() {
        linear.bias = linear.bias.take().map(|bias| bias * 0.0);
    }
}

const GROWTH: f32 = 40.0;

fn cache_alone() -> FlatScheme {
    FlatScheme::new(None, None, Some((Bits::new(4).unwrap(), false))).unwrap()
}

/// A pair of channels of keys that outgrows the others shrinks the rows of `P_k` that it meets, by as much: forty times, sixteen hundred
/// times, and when the training goes on from there once more, to a matrix whose inverse has lost its bits. The guard says so then, and
/// not before.
#[test]
fn outliers_that_grow_ruin_the_inverse() {
    let mut growing = Growing::new(cache_alone());
    for stage in 1..=3 {
        // Rows that have become small move by as much less.
        let settings = FlatSettings { learning_rate: 0.05 / 10.0_f64.powi(stage - 1), ..few(60) };
        let trained = growing.go_on(&settings, |spec, params| outgrow(spec, params, GROWTH.powi(stage)));
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
    }
}

/// The same with `P_k` as rotations and a diagonal: the entry of `t` for those channels shrinks by as much, and the guard speaks where it
/// is about to pass zero, not before.
#[test]
fn outliers_that_grow_shrink_an_entry_of_t() {
    let mut growing = Growing::new(cache_alone());
    let mut said = Vec::new();
    for stage in 1..=3 {
        let settings = FlatSettings {
            learning_rate: 0.05 / 10.0_f64.powi(stage - 1),
            parametrisation: Parametrisation::Svd,
            ..few(60)
        };
        let trained = growing.go_on(&settings, |spec, params| outgrow(spec, params, GROWTH.powi(stage)));
        let t = trained.parameters.matrices[&Matrix::Key].conditioning().unwrap().smallest_diagonal.unwrap();
        let diagonal = |alarm: &Alarm| match alarm {
            Alarm::Diagonal { matrix: Matrix::Key, smallest } => Some(*smallest),
            _ => None,
        };
        let found = trained.report.alarms.iter().find_map(diagonal);
        println!(
            "SVD {stage}: {t} {found:?} {:?} {} {}",
            trained.report.alarms, trained.report.before, trained.report.after
        );
        said.push((t, found));
    }
    // As the channels grew, by 40 each time.
    let [(first, no), (second, nor), (third, yes)] = said[..] else { panic!("{said:?}") };
    assert!(first > 1e-2 && second > 1e-3 && no.is_none() && nor.is_none(), "{said:?}");
    assert!(third < 1e-3 && yes.is_some_and(|smallest| smallest < 1e-3), "{said:?}");
}

/// A channel behind a norm that outgrows the others, and is read by weights that are as much smaller, has its factor trained down with it.
/// The guard speaks where the factor is about to pass zero, not before.
#[test]
fn outliers_that_grow_shrink_a_factor() {
    let four = Bits::new(4).unwrap();
    let scheme = FlatScheme::new(Some(four), Some((four, false)), None).unwrap();
    let mut growing = Growing::new(scheme);
    let mut said = Vec::new();
    for stage in 1..=3_i32 {
        let settings = FlatSettings { learning_rate: 0.005 / 30.0_f64.powi(stage - 1), ..few(40) };
        let trained = growing.go_on(&settings, |_, params| {
            let factor = GROWTH.powi(stage - 1);
            params.norms.get_mut(&Norm::PostAttention).unwrap()[7] *= factor;
            for id in [LinearId::GATE, LinearId::UP] {
                let LinearWeight::Float(weight) = &mut params.linears.get_mut(&id).unwrap().weight else {
                    panic!("float")
                };
                weight.column_mut(7).mapv_inplace(|w| w / factor);
            }
        });
        let c = trained.parameters.scales[&Site::MlpInput][7];
        let scale = |alarm: &Alarm| match alarm {
            Alarm::Scale { site: Site::MlpInput, smallest } => Some(*smallest),
            _ => None,
        };
        let found = trained.report.alarms.iter().find_map(scale);
        println!(
            "C {stage}: {c} {found:?} {:?} {} {}",
            trained.report.alarms, trained.report.before, trained.report.after
        );
        said.push((c, found));
    }
    let [(first, no), (second, nor), (third, yes)] = said[..] else { panic!("{said:?}") };
    assert!(first > 1e-3 && second > 1e-4 && no.is_none() && nor.is_none(), "{said:?}");
    assert!(third < 1e-4 && yes.is_some_and(|smallest| smallest < 1e-4), "{said:?}");
}

/// The scheme of the other tests does nothing of the kind at the published rate.
#[test]
fn a_calm_training_alarms_nobody() {
    let calm = trained(&few(6)).unwrap();
    assert!(calm.report.alarms.is_empty() && calm.scheme == four_bits(), "{:?}", calm.report.alarms);
}
