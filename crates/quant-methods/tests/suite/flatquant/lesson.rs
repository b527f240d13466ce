//! FlatQuant as a learner: repairs, and a lesson that is broken off.

use super::train::outliers;
use quant_core::{ActRule, Bits, FloatType, KvGranularity};
use quant_graph::{
    BlockParams, BoxError, Clipping, EffectiveWeights, InputScheme, KvScheme, LinearId, LinearScheme,
    LinearWeight, ModelSpec, OnlineScheme, WeightForm, WeightScheme,
};
use quant_kernels::{Compute, Par};
use quant_methods::{
    BlockPlan, Diary, Fallback, Learned, Learner, Lesson, LessonReport, MethodError, NoDiary, Settings,
    flatquant,
};
use quant_model::{Block, BlockTrainer, RopeTable};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

fn learner(keys: Value) -> Arc<dyn Learner> {
    let mut section = json!({ "scheme": "W4A4KV4", "batch_size": 2, "epochs": 3 });
    section.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    let settings = Settings::new("flatquant", section, flatquant::METHOD.fields).unwrap();
    (flatquant::METHOD.build)(&settings).unwrap().learner.unwrap()
}

/// Four bits of everything, clip ratios learned.
fn with_plan<R>(spec: &ModelSpec, work: impl FnOnce(BlockPlan<'_>) -> R) -> R {
    let bits = Bits::new(4).unwrap();
    let (rule, clip_ratio) = (ActRule::Asymmetric, Clipping::Learned);
    let weight = WeightScheme {
        bits,
        symmetric: true,
        group: None,
        act_order: quant_core::ActOrder::None,
        form: WeightForm::Integer,
    };
    let input = InputScheme { bits, rule, dynamic: true, clip_ratio, shards: 1 };
    let linear = LinearScheme { weight: Some(weight), input: Some(input) };
    let scheme: BTreeMap<_, _> = spec.block(0).linears.iter().map(|l| (l.id, linear)).collect();
    let kv = KvScheme { clip_ratio, ..KvScheme::new(bits, rule, KvGranularity::TokenHead) };
    work(BlockPlan {
        spec,
        index: 0,
        scheme: &scheme,
        kv: Some(kv),
        kernel: None,
        online: &OnlineScheme::default(),
    })
}

fn learn(learner: &dyn Learner, diary: &mut dyn Diary) -> Result<(Learned, BlockParams), MethodError> {
    learn_with(learner, diary, |_, _| ())
}

/// [`learn`] in a block that was changed first.
fn learn_with(
    learner: &dyn Learner,
    diary: &mut dyn Diary,
    change: impl FnOnce(&ModelSpec, &mut BlockParams),
) -> Result<(Learned, BlockParams), MethodError> {
    learn_in(learner, diary, |_| (), change)
}

/// The same in a model that was changed first.
fn learn_in(
    learner: &dyn Learner,
    diary: &mut dyn Diary,
    model: impl FnOnce(&mut ModelSpec),
    change: impl FnOnce(&ModelSpec, &mut BlockParams),
) -> Result<(Learned, BlockParams), MethodError> {
    let (mut spec, mut params, x) = outliers(16);
    model(&mut spec);
    change(&spec, &mut params);
    let mut bare = params.clone();
    bare.linears.clear();
    let block = Block::<f32>::new(&spec, 0, bare, Compute::F32, Par::Seq).unwrap();
    let table = RopeTable::new(&spec.rope, spec.head_dim, spec.max_position_embeddings, 16);
    let rope = |_| &table;
    let trainer = BlockTrainer::new(&block, &rope, EffectiveWeights::new()).unwrap();
    let starts: Vec<usize> = (0..=9).map(|i| i * 16).collect();
    with_plan(&spec, |plan| {
        let lesson =
            Lesson { plan, training: &trainer, x: x.view(), float: None, starts: &starts, par: Par::Seq };
        let learned = learner.learn(&params, &lesson, diary)?;
        let applied = learner.apply(&learned.record, params.clone(), &plan, Par::Seq)?;
        Ok((learned, applied))
    })
}

fn report(keys: Value) -> LessonReport {
    learn(&*learner(keys), &mut NoDiary).unwrap().0.report
}

/// Stops before step `until`.
struct Broken {
    until: usize,
    steps: usize,
    states: Vec<Vec<u8>>,
}

impl Diary for Broken {
    fn last(&self) -> Option<&[u8]> {
        self.states.last().map(Vec::as_slice)
    }
    fn step(&mut self, _: usize, _: usize) -> Result<(), BoxError> {
        self.steps += 1;
        if self.steps > self.until { Err("enough".into()) } else { Ok(()) }
    }
    fn keep(&mut self, state: &dyn Fn() -> Vec<u8>) -> Result<(), BoxError> {
        self.states.push(state());
        Ok(())
    }
}

/// Broken off at any step and gone on with from what the diary has, a lesson teaches the same; with repairs too.
#[test]
fn a_broken_lesson_goes_on() {
    for (keys, repaired) in [(json!({}), false), (json!({ "learning_rate": 0.3 }), true)] {
        let learner = learner(keys);
        let whole = learn(&*learner, &mut NoDiary).unwrap();
        assert_eq!(!whole.0.report.repairs.is_empty(), repaired);
        let mut diary = Broken { until: 0, steps: 0, states: Vec::new() };
        let mut breaks = 0;
        let found = loop {
            match learn(&*learner, &mut diary) {
                Ok(found) => break found,
                Err(error) => {
                    assert!(matches!(&error, MethodError::Diary(_)) && error.to_string() == "enough");
                }
            }
            breaks += 1;
            // Not a whole epoch of four steps further at times, each of which asks three times, so that steps are lost.
            (diary.until, diary.steps) = (diary.until % 19 + 7, 0);
        };
        assert!(breaks > 2 && found == whole, "{breaks} breaks");
        // What a diary has is of this lesson or refused.
        diary.states.push(vec![1, 2, 3]);
        assert!(matches!(learn(&*learner, &mut diary), Err(MethodError::Core(_))));
    }
}

/// Nothing is repaired where nothing is wrong, and every kind of repair is tried where nothing helps.
#[test]
fn repairs_in_their_order() {
    let fine = report(json!({}));
    assert!(fine.repairs.is_empty() && fine.alarms.is_empty() && fine.after < fine.before);
    let ruined = report(json!({ "learning_rate": 1.0, "epochs": 2 }));
    assert!(ruined.repairs[0].contains("diverged") && ruined.repairs[0].contains("a learning rate of 0.5"));
    assert!(ruined.repairs[1].contains("a learning rate of 0.25"), "{:?}", ruined.repairs);
    assert!(
        ruined.repairs.len() > 2 && ruined.repairs[2].contains("other random matrices"),
        "{:?}",
        ruined.repairs
    );
    assert!(ruined.after <= ruined.before);
    // The exact variant has no guards.
    let exact = report(json!({ "learning_rate": 0.3, "variant": "exact" }));
    assert!(exact.repairs.is_empty() && exact.epochs.is_empty() && exact.kept == 3);
}

/// At a learning rate of 1 no attempt repairs anything: the block gets what the recipe allows, rotations in the same bits or eight bits,
/// and the report has the numbers of all that was tried.
#[test]
fn fallbacks_in_their_order() {
    let ruined = |fallback: Value| {
        let keys = json!({ "learning_rate": 1.0, "epochs": 2, "fallback": fallback });
        let (learned, block) = learn(&*learner(keys), &mut NoDiary).unwrap();
        (learned.report, block)
    };
    let bits = |block: &BlockParams| {
        let bits = block.linears.values().map(|linear| match linear.input.unwrap() {
            quant_core::ActQuant::Dynamic { bits, clip_ratio, .. } => (bits.get(), clip_ratio.upper == 1.0),
            quant_core::ActQuant::Static { .. } => panic!("dynamic"),
        });
        bits.collect::<std::collections::BTreeSet<_>>()
    };
    let (kept, _) = ruined(json!(["none"]));
    assert!(kept.fallbacks.is_empty() && !kept.alarms.is_empty() && kept.repairs.len() == 4, "{kept:?}");

    let (rotated, block) = ruined(json!(["rotation"]));
    assert_eq!(bits(&block), [(4, false)].into());
    let [tried] = rotated.fallbacks[..] else { panic!("{:?}", rotated.fallbacks) };
    assert_eq!((tried.to, tried.taken), (Fallback::Rotation, tried.error < kept.after));
    assert_eq!(rotated.after, tried.error.min(kept.after));
    let told = rotated.repairs.last().unwrap();
    assert!(
        told.contains("rotations have the relative error") && told.contains("best of all attempts"),
        "{told}"
    );

    let (wide, block) = ruined(json!(["bits8"]));
    let [tried] = wide.fallbacks[..] else { panic!("{:?}", wide.fallbacks) };
    assert!(tried.to == Fallback::Bits8 && tried.taken && wide.fallback() == Some(Fallback::Bits8));
    // The cache keeps its four bits, which is what is left of the error.
    assert!(wide.after == tried.error && wide.after < 0.5 * kept.after, "{} {}", wide.after, kept.after);
    assert!(wide.alarms.is_empty() && wide.repairs.last().unwrap().starts_with("falls back to 8 bits"));
    // Nothing is clipped any more.
    assert_eq!(bits(&block), [(8, true)].into());
    assert!(block.kv.is_some() && block.online.pair.is_some());

    // Eight bits are not given where rotations do.
    let (both, block) = ruined(json!(["rotation", "bits8"]));
    assert_eq!(both.fallbacks[0].error, rotated.fallbacks[0].error);
    let expected = if rotated.fallbacks[0].taken { 1 } else { 2 };
    assert_eq!(both.fallbacks.len(), expected);
    assert!(both.fallbacks.last().unwrap().taken);
    assert_eq!(bits(&block).first().unwrap().0, if expected == 1 { 4 } else { 8 });
}

/// Where training does what it should nothing is tried, whatever is allowed.
#[test]
fn no_fallback_without_need() {
    let [with, without] = [json!(["rotation", "bits8"]), json!(["none"])]
        .map(|fallback| learn(&*learner(json!({ "fallback": fallback })), &mut NoDiary).unwrap());
    assert!(with.0.report.fallbacks.is_empty() && with == without);
}

/// What rounds to more bits is asked for where the block has the bits of the section, and nowhere else.
#[test]
fn eight_bits_are_rounded_by_the_section() {
    let (spec, ..) = outliers(16);
    let bits = |keys: Value| {
        let learner = learner(keys);
        with_plan(&spec, |plan| {
            learner.fallback(&plan, LinearId::DOWN).map(|r| r.weights().scheme.to_string())
        })
    };
    assert_eq!(bits(json!({ "fallback": ["bits8"] })).as_deref(), Some("W8A8KV4"));
    assert_eq!(bits(json!({})).as_deref(), Some("W8A8KV4"));
    assert_eq!(bits(json!({ "fallback": ["rotation"] })), None);
    // The plan is of four bits, the section of others: an override said so.
    assert_eq!(bits(json!({ "fallback": ["bits8"], "scheme": "W4A8" })), None);
    let refused = |section: Value| {
        let settings = Settings::new("flatquant", section, flatquant::METHOD.fields).unwrap();
        (flatquant::METHOD.build)(&settings).unwrap_err().to_string()
    };
    for (section, words) in [
        (json!({ "scheme": "W8A8KV4", "fallback": ["bits8"] }), "less than 8 bits"),
        (json!({ "fallback": ["bits8"] }), "does not round"),
        (json!({ "scheme": "W4A4", "fallback": ["none", "bits8"] }), "none stands alone"),
        (json!({ "scheme": "W4A4", "variant": "exact", "fallback": ["rotation"] }), "only variant: stable"),
    ] {
        let told = refused(section);
        assert!(told.contains("flatquant.fallback") && told.contains(words), "{told}");
    }
}

/// A pair of channels that keys have 256 times as large, and queries 256 times as small, is as if it were not there, to the last bit;
/// the published algorithm is at its mercy.
#[test]
fn outliers_of_keys_are_balanced() {
    let outliers = |spec: &ModelSpec, block: &mut BlockParams| {
        let dim = spec.head_dim;
        for (id, factor) in [(LinearId::K, 256.0), (LinearId::Q, 1.0 / 256.0)] {
            let linear = block.linears.get_mut(&id).unwrap();
            let LinearWeight::Float(weight) = &mut linear.weight else { panic!("float") };
            // Of every head: channels 1 and 1 + dim / 2 turn together.
            for row in (0..weight.nrows()).filter(|row| row % (dim / 2) == 1) {
                weight.row_mut(row).mapv_inplace(|w| w * factor);
                linear.bias.iter_mut().for_each(|bias| bias[row] *= factor);
            }
        }
    };
    let stable = learner(json!({ "epochs": 1 }));
    let (calm, block) = learn(&*stable, &mut NoDiary).unwrap();
    let (found, with_outliers) = learn_with(&*stable, &mut NoDiary, outliers).unwrap();
    assert_eq!(found.report, calm.report);
    assert_eq!(with_outliers, block);

    let exact = learner(json!({ "epochs": 1, "variant": "exact" }));
    let (calm, _) = learn(&*exact, &mut NoDiary).unwrap();
    let (found, _) = learn_with(&*exact, &mut NoDiary, outliers).unwrap();
    assert!(found.report.after > 2.0 * calm.report.after, "{} {}", found.report.after, calm.report.after);
}

/// The ratios that were learned, and nothing where none are.
#[test]
fn clip_ratios_are_deployed() {
    let (_, block) = learn(&*learner(json!({})), &mut NoDiary).unwrap();
    let inputs: Vec<_> = block.linears.values().map(|linear| linear.input.unwrap()).collect();
    let ratio = |input| match input {
        quant_core::ActQuant::Dynamic { clip_ratio, .. } => clip_ratio,
        quant_core::ActQuant::Static { .. } => panic!("dynamic"),
    };
    assert!(inputs.iter().all(|&input| Clipping::Learned.admits(ratio(input))));
    assert!(inputs.iter().any(|&input| ratio(input).upper != ratio(input).lower));
    assert!(block.kv.is_some() && block.online.pair.is_some());
    let (_, bare) = learn(&*learner(json!({ "lac": false })), &mut NoDiary).unwrap();
    assert!(bare.kv.is_none() && bare.linears.values().all(|linear| linear.input.is_none()));
}

/// `official` trains what `exact` trains, casts what it deploys to the type of the model, and refuses what the authors' program has no case
/// for.
#[test]
fn the_official_variant() {
    let [exact, official] = ["exact", "official"].map(|variant| {
        let keys = json!({ "variant": variant, "epochs": 2 });
        let learner = learner(keys);
        assert!(learner.describe().starts_with(variant), "{}", learner.describe());
        let of_type = |spec: &mut ModelSpec| spec.dtype = FloatType::Bf16;
        learn_in(&*learner, &mut NoDiary, of_type, |_, _| ()).unwrap()
    });
    assert_eq!(exact.0.report.losses, official.0.report.losses);
    assert!(official.0.report.repairs.is_empty() && official.0.report.epochs.is_empty());
    // The error is that of what is deployed.
    assert_ne!(exact.0.report.after, official.0.report.after);
    for (id, linear) in &official.1.linears {
        let (LinearWeight::Float(found), LinearWeight::Float(want)) =
            (&linear.weight, &exact.1.linears[id].weight)
        else {
            panic!("float")
        };
        assert!(*found == want.mapv(|w| FloatType::Bf16.round(w)) && found != want, "{id}");
    }
    let refused = |change: fn(&mut ModelSpec), variant: &str, keys: Value| {
        let (mut spec, ..) = outliers(16);
        change(&mut spec);
        let mut keys = keys;
        keys["variant"] = variant.into();
        with_plan(&spec, |plan| learner(keys).plan(&plan).err().map(|error| error.to_string()))
    };
    let wide = |spec: &mut ModelSpec| spec.head_dim = 16;
    let told = refused(wide, "official", json!({})).unwrap();
    assert!(told.contains("flatquant.variant") && told.contains("6 heads of 16 stand beside 48"), "{told}");
    let told = refused(|_| (), "official", json!({ "transforms": "pairs" })).unwrap();
    assert!(told.contains("takes pairs alone"), "{told}");
    assert_eq!(refused(wide, "exact", json!({})), None);
    assert_eq!(refused(|_| (), "official", json!({})), None);
}
