//! FlatQuant as a modifier of a recipe: its keys, and what it plans for a block.

use super::lesson::FlatLearner;
use super::settings::FlatSettings;
use crate::rounding::SCHEME;
use crate::settings::FieldKind;
use crate::{
    Field, Method, MethodKind, Modifier, PlannedRounding, Rounding, Settings, SettingsError, Stream,
    WeightSettings, gptq, rtn,
};
use quant_core::{CoreError, FloatType};
use quant_graph::WeightSpec;
use serde_json::json;
use std::sync::Arc;

/// A key that concerns whole blocks.
const fn key(name: &'static str, kind: FieldKind, default: &'static str, help: &'static str) -> Field {
    Field { name, kind, default, help, run_wide: true }
}

/// Registry line.
pub static METHOD: Method = Method {
    id: "flatquant",
    summary: "learns in every block the transforms behind which weights, activations and cache need few bits",
    source: "arXiv 2410.09426",
    kind: MethodKind::Both,
    build,
    fields: &[
        Field {
            default: "null",
            help: "bits of weights, activations and cache, W4A4KV4; left out, FlatQuant only learns, for the rounding after it",
            ..SCHEME
        },
        key(
            "variant",
            FieldKind::Choice(&["stable", "exact"]),
            "\"stable\"",
            "stable keeps the best parameters, repairs trainings that go wrong and says so; exact keeps the last, as published",
        ),
        key(
            "parametrisation",
            FieldKind::Choice(&["inverse", "svd"]),
            "\"inverse\"",
            "matrices free and inverted in f64, or as rotation, diagonal and rotation",
        ),
        key("epochs", FieldKind::Integer(0, 1000), "15", "passes over the calibration sequences"),
        key(
            "learning_rate",
            FieldKind::Number(1e-7, 1.0),
            "0.005",
            "of matrices and factors of channels; clip ratios have ten times as much",
        ),
        key("batch_size", FieldKind::Integer(1, 1024), "4", "sequences of a step"),
        key(
            "seed",
            FieldKind::Integer(0, u32::MAX as u64),
            "0",
            "of the random matrices that training begins with",
        ),
        key(
            "inputs",
            FieldKind::Choice(&["float", "quantised"]),
            "\"float\"",
            "what blocks are trained on: what the float model feeds them, or the quantised blocks before; what they aim at is the float \
             model's output either way",
        ),
        key(
            "weights",
            FieldKind::Choice(&["rtn", "gptq"]),
            "\"rtn\"",
            "what rounds the weights behind the transforms",
        ),
        key(
            "share_inputs",
            FieldKind::Bool,
            "true",
            "one quantiser of the input of q, k and v, and of gate and up; loaders that multiply them as one matrix need it",
        ),
        key("lwc", FieldKind::Bool, "true", "learn how the rows of weights are clipped"),
        key("lac", FieldKind::Bool, "true", "learn how activations and cache are clipped"),
        key("diag", FieldKind::Bool, "true", "learn factors of channels"),
        key(
            "diag_alpha",
            FieldKind::Number(0.0, 1.0),
            "0.3",
            "exponent of activations in the factors that training begins with",
        ),
        key("warmup", FieldKind::Bool, "false", "let the learning rate rise over the first 16 steps"),
    ],
    tier: 1,
};

fn build(settings: &Settings) -> Result<Modifier, SettingsError> {
    let flat = FlatSettings {
        variant: settings.word("variant")?.unwrap_or_default(),
        parametrisation: settings.word("parametrisation")?.unwrap_or(FlatSettings::default().parametrisation),
        epochs: settings.integer("epochs")?,
        learning_rate: settings.number("learning_rate")?,
        batch_size: settings.integer("batch_size")?,
        seed: settings.integer("seed")? as u64,
        share_inputs: settings.bool("share_inputs")?,
        lwc: settings.bool("lwc")?,
        lac: settings.bool("lac")?,
        diag: settings.bool("diag")?,
        diag_alpha: settings.number("diag_alpha")? as f32,
        warmup: settings.bool("warmup")?,
    };
    let quantised = settings.text("inputs")? == "quantised";
    let inputs = if quantised { Stream::Deployed } else { Stream::Float };
    let learner = FlatLearner { settings: flat, inputs, path: settings.path().to_owned() };
    let modifier = Modifier { learner: Some(Arc::new(learner)), ..Modifier::default() };
    if settings.given("scheme").is_none() {
        if settings.given("weights").is_some() {
            let (path, problem) = (
                format!("{}.weights", settings.path()),
                "without a scheme FlatQuant only learns; give a scheme, or drop it and write the rounding after it",
            );
            return Err(SettingsError::Conflict { path, problem: problem.into() });
        }
        return Ok(modifier);
    }
    let with = if settings.text("weights")? == "gptq" { &gptq::METHOD } else { &rtn::METHOD };
    let section = json!({ "scheme": settings.text("scheme")? });
    let rounding = (with.build)(&Settings::new(settings.path(), section, with.fields)?)?.rounding;
    let rounding = rounding.map(|rounding| Arc::new(Rounds { rounding }) as Arc<dyn Rounding>);
    Ok(Modifier { rounding, ..modifier })
}

/// The rounding behind the transforms, with the keys of this method.
#[derive(Debug)]
struct Rounds {
    rounding: Arc<dyn Rounding>,
}

impl Rounding for Rounds {
    fn method(&self) -> &'static Method {
        &METHOD
    }
    fn weights(&self) -> &WeightSettings {
        self.rounding.weights()
    }
    fn true_sequential(&self) -> bool {
        self.rounding.true_sequential()
    }
    fn plan(
        &self,
        weight: WeightSpec<'_>,
        scale_type: FloatType,
    ) -> Result<Option<PlannedRounding>, CoreError> {
        self.rounding.plan(weight, scale_type)
    }
}
