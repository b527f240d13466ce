//! FlatQuant as a modifier of a recipe, and the rounding behind it.

use super::METHOD;
use super::fallback::Fallbacks;
use super::form::{Form, Unpaired};
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
    let (path, scheme) = (settings.path().to_owned(), settings.given("scheme").is_some());
    let form = Form {
        transforms: settings.word("transforms")?.unwrap_or_default(),
        unpaired: settings.word("unpaired")?.unwrap_or_default(),
        tp: settings.integer("tp")?,
        wide: if scheme { rounding(settings, "W8A8")? } else { None },
        path,
    };
    if !scheme && form.unpaired == Unpaired::W8a8 {
        let problem = "without a scheme FlatQuant does not round; give linears without a pair 8 bits by an override of the rounding after it";
        return Err(form.conflict("unpaired", problem.into()));
    }
    if !scheme && settings.given("weights").is_some() {
        let problem = "without a scheme FlatQuant only learns; give a scheme, or drop it and write the rounding after it";
        return Err(form.conflict("weights", problem.into()));
    }
    let fallbacks = Fallbacks::new(settings, flat.variant, |scheme| rounding(settings, scheme))?;
    let window = settings.integer("window")?;
    let learner = FlatLearner { settings: flat, inputs, window, form, fallbacks };
    let rounding = if scheme { rounding(settings, &settings.text("scheme")?)? } else { None };
    Ok(Modifier { learner: Some(Arc::new(learner)), rounding, ..Modifier::default() })
}

/// What rounds to a scheme, as the section says.
fn rounding(settings: &Settings, scheme: &str) -> Result<Option<Arc<dyn Rounding>>, SettingsError> {
    let with = if settings.text("weights")? == "gptq" { &gptq::METHOD } else { &rtn::METHOD };
    let section = Settings::new(settings.path(), json!({ "scheme": scheme }), with.fields)?;
    let rounding = (with.build)(&section)?.rounding;
    Ok(rounding.map(|rounding| Arc::new(Rounds { rounding }) as Arc<dyn Rounding>))
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
