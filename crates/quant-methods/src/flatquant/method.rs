//! FlatQuant as a modifier of a recipe, and the rounding behind it.

use super::METHOD;
use super::lesson::FlatLearner;
use super::settings::FlatSettings;
use crate::{
    Method, Modifier, PlannedRounding, Rounding, Settings, SettingsError, Stream, WeightSettings, gptq, rtn,
};
use quant_core::{CoreError, FloatType};
use quant_graph::WeightSpec;
use serde_json::json;
use std::sync::Arc;

/// The modifier of a section.
pub(super) fn build(settings: &Settings) -> Result<Modifier, SettingsError> {
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
    let learner = FlatLearner {
        settings: flat,
        inputs,
        window: settings.integer("window")?,
        path: settings.path().to_owned(),
    };
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
