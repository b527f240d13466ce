//! Recipes: what to do to a model, in the vocabulary of compressed-tensors users.

mod glob;
mod place;
mod presets;
mod tables;

pub use glob::Glob;
pub use presets::{PRESETS, Preset, preset};
pub use tables::schema;

use crate::error::{PipelineError, RecipeError};
use quant_checkpoint::formats::{self, Dequantized, Format};
use quant_core::{Foreign, ForeignKind, KvGranularity, ObserverKind};
use quant_graph::ModelSpec;
use quant_kernels::Compute;
use quant_methods::settings::{nearest, one_of, unknown_key};
use quant_methods::{METHODS, Method, Modifier, Rounding, Settings, SettingsError, Transform};
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
    /// Quantise activations while calibrating.
    pub in_calibration: bool,
}

/// The KV cache part of a recipe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvSpec {
    /// None: follows the granularity.
    pub symmetric: Option<bool>,
    /// None: follows the target.
    pub granularity: Option<KvGranularity>,
}

/// A parsed recipe: made from its text alone and not changed afterwards, so that what it does, what reports say of it and
/// the text written beside the output are one thing.
#[derive(Clone, Debug)]
pub struct Recipe {
    transforms: Vec<Arc<dyn Transform>>,
    rounding: Arc<dyn Rounding>,
    overrides: Vec<(Glob, Arc<dyn Rounding>)>,
    modifiers: Vec<(&'static str, Value)>,
    activations: ActivationSpec,
    kv_cache: KvSpec,
    ignore: Vec<Glob>,
    compute: Compute,
    /// None where the recipe leaves it open.
    format: Option<&'static dyn Format>,
    source: String,
    file: Option<PathBuf>,
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// [`RecipeError`] naming section, key, what was expected and what was found.
    pub fn parse(text: &str) -> Result<Self, RecipeError> {
        Self::read(text).map_err(|error| placed(text, None, error))
    }

    /// Reads a recipe from a file.
    ///
    /// # Errors
    /// As [`Recipe::parse`], with the name of the file; a file that cannot be read is an I/O error.
    pub fn from_file(file: impl Into<PathBuf>) -> Result<Self, PipelineError> {
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
        let recipe = Self::read(&text).map_err(|error| placed(&text, Some(&file), error))?;
        Ok(Self { file: Some(file), ..recipe })
    }

    /// An error that was found when the recipe met a model, with its place in the recipe.
    pub(crate) fn placed(&self, error: RecipeError) -> RecipeError {
        placed(&self.source, self.file.as_deref(), error)
    }

    fn read(text: &str) -> Result<Self, RecipeError> {
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
        let Modifiers { transforms, rounding, written, resolved } = parse_modifiers(take("modifiers"))?;
        let mut overrides = Vec::new();
        for (glob, value) in mapping("overrides", take("overrides"))? {
            let path = format!("overrides.{glob:?}");
            overrides.push((Glob::new(&glob), parse_override(&path, rounding.method(), &written, value)?));
        }
        let activations = parse_activations(take("activations"))?;
        let kv_cache = parse_kv(take("kv_cache"))?;
        let compute = match take("compute") {
            Value::Null => Compute::F32,
            Value::String(s) if s == "f32" => Compute::F32,
            Value::String(s) if s == "bf16" => Compute::Bf16,
            other => return Err(RecipeError::value("compute", one_of(&["f32", "bf16"], &other), &other)),
        };
        let ignore = parse_ignore(take("ignore"))?;
        let format = parse_export(take("export"))?;
        Ok(Self {
            transforms,
            rounding,
            overrides,
            modifiers: resolved,
            activations,
            kv_cache,
            ignore,
            compute,
            format,
            source: text.to_owned(),
            file: None,
        })
    }

    /// Reads a preset by name, or the text of a file the caller has read.
    ///
    /// # Errors
    /// [`RecipeError::NoSuchPreset`] naming the nearest one.
    pub fn from_preset(name: &str) -> Result<Self, RecipeError> {
        let known: Vec<&str> = PRESETS.iter().map(|p| p.name).collect();
        let preset = preset(name).ok_or_else(|| RecipeError::NoSuchPreset {
            name: name.into(),
            nearest: nearest(name, &known).map(str::to_owned),
            known: known.join(", "),
        })?;
        Self::parse(preset.text)
    }

    /// Transforms, in the order in which they are applied.
    #[must_use]
    pub fn transforms(&self) -> &[Arc<dyn Transform>] {
        &self.transforms
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
    /// The text it was read from, for provenance.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }
    /// The rounding of a module: the last override that matches, or the modifier itself.
    #[must_use]
    pub fn rounding_of(&self, module: &str) -> &dyn Rounding {
        let matching = self.overrides.iter().rev().find(|(glob, _)| glob.matches(module));
        &**matching.map_or(&self.rounding, |(_, rounding)| rounding)
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

/// What the list of modifiers says.
struct Modifiers {
    transforms: Vec<Arc<dyn Transform>>,
    rounding: Arc<dyn Rounding>,
    /// The rounding's section as written, for overrides to build on.
    written: Value,
    /// All sections with their defaults.
    resolved: Vec<(&'static str, Value)>,
}

fn parse_modifiers(value: Value) -> Result<Modifiers, RecipeError> {
    let Value::Array(modifiers) = value else {
        let expected = "a list such as [smoothquant: {alpha: 0.5}, gptq: {scheme: W8A8}]";
        return Err(RecipeError::value("modifiers", expected, &value));
    };
    let conflict = |problem: &str| RecipeError::conflict("modifiers", problem);
    let (mut transforms, mut rounding) = (Vec::<Arc<dyn Transform>>::new(), None);
    let mut resolved = Vec::new();
    for (i, modifier) in modifiers.into_iter().enumerate() {
        let path = format!("modifiers[{i}]");
        // A bare word is a method with its defaults.
        let entries = match modifier {
            Value::String(name) => Map::from_iter([(name, Value::Null)]),
            other => mapping(&path, other)?,
        };
        for (name, value) in entries {
            let known = || METHODS.iter().map(|m| m.id);
            let method = quant_methods::method(&name).ok_or_else(|| unknown_key(&path, &name, known()))?;
            let settings = Settings::new(&format!("{path}.{name}"), value.clone(), method.fields)?;
            resolved.push((method.id, settings.resolved()));
            let Modifier { transform, rounding: rounds } = (method.build)(&settings)?;
            if transform.is_some() && rounding.is_some() {
                return Err(conflict("a transform must stand before the rounding it prepares"));
            }
            if rounds.is_some() && rounding.is_some() {
                return Err(conflict("there are two rounding modifiers; use overrides for exceptions"));
            }
            if let Some(transform) = transform {
                if transforms.iter().any(|t| t.method().id == method.id) {
                    let problem = format!("{name} appears twice; its scales would undo each other");
                    return Err(conflict(&problem));
                }
                transforms.push(transform);
            }
            if let Some(rounds) = rounds {
                rounding = Some((value, rounds));
            }
        }
    }
    let (written, rounding) = rounding.ok_or_else(|| {
        let roundings = METHODS.iter().filter(|m| m.kind.rounds());
        let ids: Vec<_> = roundings.map(|m| m.id).collect();
        conflict(&format!("there is no rounding modifier; add {} with a scheme", ids.join(" or ")))
    })?;
    Ok(Modifiers { transforms, rounding, written, resolved })
}

/// An override is the modifier with some keys replaced.
fn parse_override(
    path: &str,
    method: &'static Method,
    written: &Value,
    value: Value,
) -> Result<Arc<dyn Rounding>, RecipeError> {
    Settings::new(path, value.clone(), method.fields)?;
    let mut merged = mapping(path, written.clone())?;
    let changes = mapping(path, value)?;
    if let Some(field) = method.fields.iter().find(|f| f.run_wide && changes.contains_key(f.name)) {
        let problem =
            format!("{} is a setting of the whole run; write it in the modifier itself", field.name);
        return Err(RecipeError::conflict(path, problem));
    }
    if changes.get("scheme").and_then(Value::as_str).is_some_and(|s| s.to_ascii_uppercase().contains("KV")) {
        return Err(RecipeError::conflict(
            path,
            "the KV cache belongs to no linear and has one scheme for the model; write the KV part in the modifier's scheme",
        ));
    }
    if changes.contains_key("symmetric") || changes.contains_key("convention") {
        merged.remove("symmetric");
        merged.remove("convention");
    }
    merged.extend(changes);
    let settings = Settings::new(path, Value::Object(merged), method.fields)?;
    let rounding = (method.build)(&settings)?.rounding;
    rounding.ok_or_else(|| RecipeError::conflict(path, "only roundings have exceptions"))
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
    let spec =
        KvSpec { symmetric: section.bool_opt("symmetric")?, granularity: section.word("granularity")? };
    if spec.granularity == Some(KvGranularity::ChannelStatic) && spec.symmetric == Some(false) {
        return Err(RecipeError::conflict(
            "kv_cache",
            "channel_static is symmetric (loaders ignore its offsets); use granularity: token_head for asymmetric",
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

/// None where the recipe leaves the format open.
fn parse_export(value: Value) -> Result<Option<&'static dyn Format>, RecipeError> {
    let mut map = mapping("export", value)?;
    let name = map.remove("format");
    if let Some(key) = map.keys().next() {
        return Err(unknown_key("export", key, ["format"].into_iter()).into());
    }
    let Some(name) = name.filter(|n| !n.is_null()) else { return Ok(None) };
    let known: Vec<&str> = formats::FORMATS.iter().map(|f| f.id()).collect();
    let format = name.as_str().and_then(formats::format);
    format.map(Some).ok_or_else(|| RecipeError::value("export.format", one_of(&known, &name), &name))
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
