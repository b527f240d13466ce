//! Recipes: what to do to a model, in the vocabulary of compressed-tensors users.

mod glob;
mod modifiers;
mod place;
mod tables;

pub use glob::Glob;
pub use tables::{schema, schema_with};

use crate::error::{PipelineError, RecipeError};
use crate::registry::Registry;
use modifiers::{Modifiers, Usual, parse_modifiers, parse_override};
use quant_checkpoint::Formats;
use quant_checkpoint::formats::{Dequantized, Format};
use quant_core::{Foreign, ForeignKind, KvGranularity, ObserverKind};
use quant_graph::{ModelSpec, Outer};
use quant_kernels::{Compute, Level};
use quant_methods::settings::{nearest, one_of, unknown_key};
use quant_methods::{Learner, ModelTransform, Rounding, Settings, SettingsError, Transform};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tables::{ACTIVATIONS, KV_CACHE, TOP};

/// What to do about a file that is no recipe.
fn recipe_advice(found: Foreign, file: &Path) -> String {
    match found.kind {
        ForeignKind::Utf16 => {
            format!("convert it: iconv -f UTF-16 -t UTF-8 '{}' > recipe.yaml", file.display())
        }
        ForeignKind::LfsPointer => "get the real one with: git lfs pull".into(),
        _ => "give a YAML file or the name of a preset (`ptq list`)".into(),
    }
}

/// The activation part of a recipe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActivationSpec {
    /// None: what the target executes.
    pub symmetric: Option<bool>,
    /// Per token, or static.
    pub dynamic: bool,
    /// Factor on dynamic ranges.
    pub clip_ratio: f32,
    /// Range of static scales.
    pub observer: ObserverKind,
    /// Quantise activations and the cache while calibrating.
    pub in_calibration: bool,
}

/// The KV cache part of a recipe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvSpec {
    /// None: follows the granularity.
    pub symmetric: Option<bool>,
    /// None: follows the target, and the place of the keys.
    pub granularity: Option<KvGranularity>,
    /// Of values; none: follows that of keys, and their place.
    pub value_granularity: Option<KvGranularity>,
    /// Quantise keys before rope.
    pub before_rope: bool,
    /// Take their bias off first.
    pub pre_bias: bool,
    /// Factor on dynamic ranges.
    pub clip_ratio: f32,
}

/// A parsed recipe: made from its text alone and not changed afterwards, so that what it does, what reports say of it and
/// the text written beside the output are one thing.
#[derive(Clone, Debug)]
pub struct Recipe {
    model: Option<Arc<dyn ModelTransform>>,
    transforms: Vec<Arc<dyn Transform>>,
    learner: Option<Arc<dyn Learner>>,
    rounding: Arc<dyn Rounding>,
    overrides: Vec<(Glob, Arc<dyn Rounding>)>,
    modifiers: Vec<(&'static str, Value)>,
    activations: ActivationSpec,
    kv_cache: KvSpec,
    /// Sections and keys as written, of activations and cache.
    written: Vec<(&'static str, String)>,
    ignore: Vec<Glob>,
    compute: Compute,
    statistics: Compute,
    /// None where the recipe leaves it open.
    format: Option<&'static dyn Format>,
    source: String,
    file: Option<PathBuf>,
    registry: Registry,
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// [`RecipeError`] naming section, key, what was expected and what was found.
    pub fn parse(text: &str) -> Result<Self, RecipeError> {
        Self::parse_with(text, &Registry::default())
    }

    /// Reads a recipe that may name what is in `registry`, which it keeps.
    ///
    /// # Errors
    /// As [`Recipe::parse`].
    pub fn parse_with(text: &str, registry: &Registry) -> Result<Self, RecipeError> {
        Self::read(text, registry).map_err(|error| placed(text, None, error))
    }

    /// Reads a recipe from a file.
    ///
    /// # Errors
    /// As [`Recipe::parse`], with the name of the file; a file that cannot be read is an I/O error.
    pub fn from_file(file: impl Into<PathBuf>) -> Result<Self, PipelineError> {
        Self::from_file_with(file, &Registry::default())
    }

    /// Reads a recipe that may name what is in `registry` from a file.
    ///
    /// # Errors
    /// As [`Recipe::from_file`].
    pub fn from_file_with(file: impl Into<PathBuf>, registry: &Registry) -> Result<Self, PipelineError> {
        let file = file.into();
        let failed = |source| PipelineError::Io { path: file.clone(), source };
        let bytes = std::fs::read(&file).map_err(failed)?;
        let no_recipe = |what: String| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
        if let Some(found) = Foreign::recognise(&bytes) {
            let advice = recipe_advice(found, &file);
            return Err(no_recipe(format!("it is {}, not a recipe; {advice}", found.what)));
        }
        // Editors of some systems begin every text with a mark that means nothing.
        let text = bytes.strip_prefix(Foreign::UTF8_MARK).unwrap_or(&bytes).to_vec();
        let text = String::from_utf8(text).map_err(|e| {
            no_recipe(format!("it is not UTF-8 text ({}); convert it to UTF-8", e.utf8_error()))
        })?;
        let recipe = Self::read(&text, registry).map_err(|error| placed(&text, Some(&file), error))?;
        Ok(Self { file: Some(file), ..recipe })
    }

    /// An error that was found when the recipe met a model, with its place in the recipe.
    pub(crate) fn placed(&self, error: RecipeError) -> RecipeError {
        placed(&self.source, self.file.as_deref(), error)
    }

    fn read(text: &str, registry: &Registry) -> Result<Self, RecipeError> {
        // Through the YAML value first: it refuses duplicate keys.
        let yaml: serde_yaml_ng::Value =
            serde_yaml_ng::from_str(text).map_err(|e| RecipeError::Yaml(e.to_string()))?;
        refuse_non_finite("", &yaml)?;
        let value = serde_json::to_value(yaml).map_err(|e| RecipeError::Yaml(e.to_string()))?;
        let Value::Object(mut top) = value else {
            return Err(RecipeError::Yaml(format!("a mapping with the keys {} is expected", TOP.join(", "))));
        };
        if let Some(key) = top.keys().find(|k| !TOP.contains(&k.as_str())) {
            return Err(unknown_key("the recipe", key, TOP.iter().copied()).into());
        }
        let mut take = |key: &str| top.remove(key).unwrap_or(Value::Null);
        match take("version") {
            Value::Null => {
                let (path, key) = ("the recipe".into(), "version".into());
                return Err(SettingsError::MissingKey { path, key }.into());
            }
            v if v.as_u64() == Some(1) => {}
            other => return Err(RecipeError::value("version", "1", &other)),
        }
        let Modifiers { model, transforms, learner, rounding, written, resolved } =
            parse_modifiers(take("modifiers"), registry.methods())?;
        let usual = Usual { method: rounding.method(), written: &written };
        let mut overrides = Vec::new();
        for (glob, value) in mapping("overrides", take("overrides"))? {
            let path = format!("overrides.{glob:?}");
            overrides.push((Glob::new(&glob), parse_override(&path, &usual, registry.methods(), value)?));
        }
        let sections = ["activations", "kv_cache"].map(|section| (section, take(section)));
        let mut written_keys = Vec::new();
        for (section, value) in &sections {
            let keys = value.as_object().into_iter().flat_map(Map::keys);
            written_keys.extend(keys.map(|key| (*section, key.clone())));
        }
        let [(_, activations), (_, kv_cache)] = sections;
        let (activations, kv_cache) = (parse_activations(activations)?, parse_kv(kv_cache)?);
        let compute = parse_compute("compute", take("compute"), Compute::F32)?;
        let statistics = parse_compute("statistics", take("statistics"), compute)?;
        let ignore = take("ignore");
        refuse_both(&overrides, &ignore)?;
        let ignore = parse_ignore(ignore)?;
        let format = parse_export(take("export"), registry.formats())?;
        Ok(Self {
            model,
            transforms,
            learner,
            rounding,
            overrides,
            modifiers: resolved,
            activations,
            kv_cache,
            written: written_keys,
            ignore,
            compute,
            statistics,
            format,
            source: text.to_owned(),
            file: None,
            registry: registry.clone(),
        })
    }

    /// Reads a preset by name, or the text of a file the caller has read.
    ///
    /// # Errors
    /// [`RecipeError::NoSuchPreset`] naming the nearest one.
    pub fn from_preset(name: &str) -> Result<Self, RecipeError> {
        Self::from_preset_with(name, &Registry::default())
    }

    /// Reads a preset of `registry` by name.
    ///
    /// # Errors
    /// As [`Recipe::from_preset`].
    pub fn from_preset_with(name: &str, registry: &Registry) -> Result<Self, RecipeError> {
        let preset = registry.presets().get(name).ok_or_else(|| {
            let known = registry.presets().ids();
            RecipeError::NoSuchPreset {
                name: name.into(),
                nearest: nearest(name, &known).map(str::to_owned),
                known: known.join(", "),
            }
        })?;
        Self::parse_with(preset.text, registry)
    }

    /// What rewrites the whole model before anything else, if something does.
    #[must_use]
    pub fn model_transform(&self) -> Option<&dyn ModelTransform> {
        self.model.as_deref()
    }
    /// Transforms of blocks, in the order in which they are applied.
    #[must_use]
    pub fn transforms(&self) -> &[Arc<dyn Transform>] {
        &self.transforms
    }
    /// What trains in every block before it is rounded, if something does; there are no transforms then.
    #[must_use]
    pub fn learner(&self) -> Option<&dyn Learner> {
        self.learner.as_deref()
    }
    /// Whether anything rewrites float weights, which must be whole for that.
    #[must_use]
    pub fn rewrites(&self) -> bool {
        self.model.is_some() || !self.transforms.is_empty() || self.learner.is_some()
    }
    /// What happens before anything is rounded, in words and in its order.
    pub fn before_rounding(&self) -> impl Iterator<Item = String> {
        let model = self.model.iter().map(|t| format!("{} ({})", t.method().id, t.describe()));
        let transforms = self.transforms.iter().map(|t| format!("{} ({})", t.method().id, t.describe()));
        let learner = self.learner.iter().map(|t| format!("{} ({})", t.method().id, t.describe()));
        model.chain(transforms).chain(learner)
    }
    /// The rounding of every linear without an override.
    #[must_use]
    pub fn rounding(&self) -> &dyn Rounding {
        &*self.rounding
    }
    /// Exceptions by module glob, in the order written; the last match wins.
    #[must_use]
    pub fn overrides(&self) -> &[(Glob, Arc<dyn Rounding>)] {
        &self.overrides
    }
    /// Every modifier by its method's id, with the settings it has after defaults, for reports.
    #[must_use]
    pub fn modifiers(&self) -> &[(&'static str, Value)] {
        &self.modifiers
    }
    /// Activations.
    #[must_use]
    pub fn activations(&self) -> &ActivationSpec {
        &self.activations
    }
    /// KV cache.
    #[must_use]
    pub fn kv_cache(&self) -> &KvSpec {
        &self.kv_cache
    }
    /// The keys that are written in `activations` or `kv_cache`.
    pub(crate) fn written(&self, section: &str) -> impl Iterator<Item = &str> {
        self.written.iter().filter(move |(of, _)| *of == section).map(|(_, key)| key.as_str())
    }
    /// The level whose instructions multiply here, where that decides bits: see [`Level::that_decides`].
    #[must_use]
    pub fn instructions(&self) -> Option<Level> {
        Level::that_decides(self.compute).or(Level::that_decides(self.statistics))
    }
    /// Modules left in float.
    #[must_use]
    pub fn ignore(&self) -> &[Glob] {
        &self.ignore
    }
    /// Arithmetic of the calibration products.
    #[must_use]
    pub fn compute(&self) -> Compute {
        self.compute
    }
    /// Arithmetic of the sums over calibration tokens, Hessians and their like: that of the other products unless the recipe says otherwise.
    #[must_use]
    pub fn statistics(&self) -> Compute {
        self.statistics
    }
    /// Output format; `dequantized` where the recipe names none.
    #[must_use]
    pub fn format(&self) -> &'static dyn Format {
        self.format.unwrap_or(&Dequantized)
    }
    /// Whether the recipe names its format.
    #[must_use]
    pub fn names_format(&self) -> bool {
        self.format.is_some()
    }
    /// The same recipe for another format, to ask what that could hold.
    pub(crate) fn with_format(&self, format: &'static dyn Format) -> Self {
        Self { format: Some(format), ..self.clone() }
    }
    /// The same recipe with nothing trained: what a learner leaves in a block is what its training begins with.
    pub(crate) fn untrained(&self) -> Self {
        Self { learner: self.learner.as_ref().map(|learner| learner.untrained()), ..self.clone() }
    }
    /// What it was read with, and what whoever carries it out goes by.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }
    /// The text it was read from, for provenance.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }
    /// The rounding of the embedding or the head: that of the override with exactly its name. No glob means them.
    #[must_use]
    pub fn rounding_of_table(&self, table: Outer) -> Option<&dyn Rounding> {
        let named = self.overrides.iter().find(|(glob, _)| glob.pattern() == table.module());
        named.map(|(_, rounding)| &**rounding)
    }
    /// The rounding of a linear of a block: the last override that matches, or the modifier itself.
    #[must_use]
    pub fn rounding_of(&self, module: &str) -> &dyn Rounding {
        let matching = self.overrides.iter().rev().find(|(glob, _)| glob.matches(module));
        &**matching.map_or(&self.rounding, |(_, rounding)| rounding)
    }
}

/// Refuses a table that is written down to be left alone and to be rounded. Otherwise an override needs no word about the
/// `ignore` that is meant where nothing is written.
fn refuse_both(overrides: &[(Glob, Arc<dyn Rounding>)], ignore: &Value) -> Result<(), RecipeError> {
    let written = |table: &Outer| match ignore {
        Value::Array(entries) => entries.iter().any(|entry| entry == table.module()),
        other => other == table.module(),
    };
    let overridden = |table: &Outer| overrides.iter().any(|(glob, _)| glob.pattern() == table.module());
    match Outer::TABLES.iter().find(|table| written(table) && overridden(table)) {
        None => Ok(()),
        Some(table) => Err(RecipeError::conflict(
            format!("overrides.{:?}", table.module()),
            format!("ignore leaves {} in float; take it out of one of the two", table.module()),
        )),
    }
}

fn mapping(path: &str, value: Value) -> Result<Map<String, Value>, RecipeError> {
    match value {
        Value::Null => Ok(Map::new()),
        Value::Object(map) => Ok(map),
        other => Err(RecipeError::value(path, "a mapping", &other)),
    }
}

/// JSON has no NaN and no infinity: they would become null, and null is a key left at its default.
fn refuse_non_finite(path: &str, value: &serde_yaml_ng::Value) -> Result<(), RecipeError> {
    use serde_yaml_ng::Value as Yaml;
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Yaml::Number(n) if n.as_f64().is_some_and(|v| !v.is_finite()) => {
            Err(RecipeError::value(path, "a finite number", &Value::from(n.to_string())))
        }
        Yaml::Sequence(items) => {
            items.iter().enumerate().try_for_each(|(i, v)| refuse_non_finite(&format!("{path}[{i}]"), v))
        }
        Yaml::Mapping(map) => {
            map.iter().try_for_each(|(key, v)| refuse_non_finite(&below(key.as_str().unwrap_or("?")), v))
        }
        _ => Ok(()),
    }
}

fn parse_activations(value: Value) -> Result<ActivationSpec, RecipeError> {
    let section = Settings::new("activations", value, ACTIVATIONS)?;
    let spec = ActivationSpec {
        symmetric: section.bool_opt("symmetric")?,
        dynamic: section.bool("dynamic")?,
        clip_ratio: section.number("clip_ratio")? as f32,
        observer: section.word("observer")?.unwrap_or(ObserverKind::Minmax),
        in_calibration: section.bool("in_calibration")?,
    };
    if !spec.dynamic && spec.clip_ratio != 1.0 {
        return Err(RecipeError::conflict(
            "activations",
            "clip_ratio is for dynamic activations; a static range is cut by observer: percentile or mse",
        ));
    }
    Ok(spec)
}

fn parse_kv(value: Value) -> Result<KvSpec, RecipeError> {
    let section = Settings::new("kv_cache", value, KV_CACHE)?;
    let spec = KvSpec {
        symmetric: section.bool_opt("symmetric")?,
        granularity: section.word("granularity")?,
        value_granularity: section.word("value_granularity")?,
        before_rope: section.bool("before_rope")?,
        pre_bias: section.bool("pre_bias")?,
        clip_ratio: section.number("clip_ratio")? as f32,
    };
    if spec.pre_bias && !spec.before_rope {
        return Err(RecipeError::conflict(
            "kv_cache.pre_bias",
            "behind rope the bias of keys depends on the position, and nothing constant can be taken off; use before_rope: true",
        ));
    }
    Ok(spec)
}

fn parse_ignore(value: Value) -> Result<Vec<Glob>, RecipeError> {
    let list = match value {
        Value::Null => vec![Value::from(ModelSpec::HEAD_MODULE)],
        Value::Array(list) => list,
        other => vec![other],
    };
    list.into_iter()
        .map(|entry| match entry {
            Value::String(text) => Ok(Glob::new(&text)),
            other => Err(RecipeError::value("ignore", "a list of module globs", &other)),
        })
        .collect()
}

/// A setting of arithmetic, or what stands in its place where none is given.
fn parse_compute(key: &str, value: Value, usual: Compute) -> Result<Compute, RecipeError> {
    match &value {
        Value::Null => Ok(usual),
        Value::String(name) => name.parse().map_err(|_| value.clone()),
        _ => Err(value.clone()),
    }
    .map_err(|found| RecipeError::value(key, one_of(&Compute::ALL.map(Compute::name), &found), &found))
}

/// None where the recipe leaves the format open.
fn parse_export(value: Value, formats: &Formats) -> Result<Option<&'static dyn Format>, RecipeError> {
    let mut map = mapping("export", value)?;
    let name = map.remove("format");
    if let Some(key) = map.keys().next() {
        return Err(unknown_key("export", key, ["format"].into_iter()).into());
    }
    let Some(name) = name.filter(|n| !n.is_null()) else { return Ok(None) };
    let format = name.as_str().and_then(|id| formats.get(id));
    format.map(Some).ok_or_else(|| RecipeError::value("export.format", one_of(&formats.ids(), &name), &name))
}

/// An error with its place in the text, and with the file.
fn placed(text: &str, file: Option<&Path>, error: RecipeError) -> RecipeError {
    let error = match place::line_of(text, &error) {
        Some(line) => RecipeError::At { line, problem: Box::new(error) },
        None => error,
    };
    match file {
        Some(file) => RecipeError::In { file: file.to_owned(), problem: Box::new(error) },
        None => error,
    }
}
