//! Recipes: what to do to a model, in the vocabulary of compressed-tensors users.

mod fields;
mod glob;
mod presets;
mod tables;

pub use glob::Glob;
pub use presets::{PRESETS, Preset, preset};
pub use tables::schema;

use fields::{Section, nearest, unknown_key};
use quant_checkpoint::formats::{self, Format};
use quant_core::{ClipSearch, Convention, KvGranularity, ObserverKind, Scheme, Variant};
use quant_graph::{ActOrder, ModelSpec};
use quant_hessian::Precision;
use quant_kernels::Compute;
use quant_methods::{Kind as MethodKind, METHODS, Method, smoothquant::SmoothQuant};
use serde_json::{Map, Value};
use tables::{ACTIVATIONS, KV_CACHE, SMOOTHQUANT, TOP, fields_of};
use thiserror::Error;

/// What is wrong with a recipe; exit code 2.
#[derive(Debug, Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum RecipeError {
    /// Not YAML.
    #[error("the recipe is not valid YAML: {0}")]
    Yaml(String),
    /// A key no section has.
    #[error("unknown key {key:?} in {path}{}; known keys: {known}",
        .nearest.as_ref().map_or_else(String::new, |n| format!(" (did you mean {n:?}?)")))]
    UnknownKey {
        /// The section.
        path: String,
        /// The key as written.
        key: String,
        /// The closest known key.
        nearest: Option<String>,
        /// All keys of the section.
        known: String,
    },
    /// A key that has no default.
    #[error("{path} lacks the required key {key:?}; see `ptq quantize --recipe-schema`")]
    MissingKey {
        /// The section.
        path: String,
        /// The key.
        key: String,
    },
    /// A value of the wrong kind or outside its range.
    #[error("{path}: expected {expected}, found {found}")]
    Value {
        /// Section and key.
        path: String,
        /// What may stand there.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// Two keys that contradict each other.
    #[error("{path}: {problem}")]
    Conflict {
        /// The section.
        path: String,
        /// The contradiction and the ways out.
        problem: String,
    },
    /// A name that is neither a file nor a preset.
    #[error("{name:?} is neither a recipe file nor a preset{}; presets: {known}",
        .nearest.as_ref().map_or_else(String::new, |n| format!(" (did you mean {n:?}?)")))]
    NoSuchPreset {
        /// The name as given.
        name: String,
        /// The closest preset.
        nearest: Option<String>,
        /// All presets.
        known: String,
    },
}

/// The rounding modifier with all defaults resolved.
#[derive(Clone, Debug)]
pub struct RoundingSpec {
    /// `rtn` or `gptq`.
    pub method: &'static Method,
    /// Bits and groups.
    pub scheme: Scheme,
    /// How groups get their parameters.
    pub convention: Convention,
    /// Clip search, if wanted.
    pub clip: Option<ClipSearch>,
    /// Mathematics or official code.
    pub variant: Variant,
    /// Column order (gptq).
    pub act_order: ActOrder,
    /// Whether later linears of a block see quantised earlier ones (gptq).
    pub true_sequential: bool,
    /// Fraction of the mean diagonal (gptq).
    pub damping: f64,
    /// Lazy update width (gptq).
    pub block_size: usize,
    /// Precision of the factorisation (gptq).
    pub factor: Precision,
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

/// A parsed recipe. [`Recipe::source`] is what was written, for provenance.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// SmoothQuant, if asked for.
    pub smoothquant: Option<SmoothQuant>,
    /// The rounding of every linear.
    pub rounding: RoundingSpec,
    /// Exceptions by module glob, in the order written; the last match wins.
    pub overrides: Vec<(Glob, RoundingSpec)>,
    /// Activations.
    pub activations: ActivationSpec,
    /// KV cache.
    pub kv_cache: KvSpec,
    /// Modules left in float.
    pub ignore: Vec<Glob>,
    /// Arithmetic of the calibration products.
    pub compute: Compute,
    /// Output format.
    pub format: &'static dyn Format,
    /// The text the recipe was read from.
    pub source: String,
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// [`RecipeError`] naming section, key, what was expected and what was found.
    pub fn parse(text: &str) -> Result<Self, RecipeError> {
        // Through the YAML value first: it refuses duplicate keys.
        let yaml: serde_yaml_ng::Value =
            serde_yaml_ng::from_str(text).map_err(|e| RecipeError::Yaml(e.to_string()))?;
        let value = serde_json::to_value(yaml).map_err(|e| RecipeError::Yaml(e.to_string()))?;
        let Value::Object(mut top) = value else {
            return Err(RecipeError::Yaml(format!("a mapping with the keys {} is expected", TOP.join(", "))));
        };
        if let Some(key) = top.keys().find(|k| !TOP.contains(&k.as_str())) {
            return Err(unknown_key("the recipe", key, TOP.iter().copied()));
        }
        let mut take = |key: &str| top.remove(key).unwrap_or(Value::Null);
        match take("version") {
            Value::Null => {
                return Err(RecipeError::MissingKey { path: "the recipe".into(), key: "version".into() });
            }
            v if v.as_u64() == Some(1) => {}
            other => {
                return Err(RecipeError::Value {
                    path: "version".into(),
                    expected: "1".into(),
                    found: other.to_string(),
                });
            }
        }
        let (smoothquant, base, rounding) = parse_modifiers(take("modifiers"))?;
        let mut overrides = Vec::new();
        for (glob, value) in mapping("overrides", take("overrides"))? {
            let path = format!("overrides.{glob:?}");
            overrides.push((Glob::new(&glob), parse_override(&path, rounding.method, &base, value)?));
        }
        let activations = parse_activations(take("activations"))?;
        let kv_cache = parse_kv(take("kv_cache"))?;
        let compute = match take("compute") {
            Value::Null => Compute::F32,
            Value::String(s) if s == "f32" => Compute::F32,
            Value::String(s) if s == "bf16" => Compute::Bf16,
            other => {
                return Err(RecipeError::Value {
                    path: "compute".into(),
                    expected: "f32 or bf16".into(),
                    found: other.to_string(),
                });
            }
        };
        let ignore = parse_ignore(take("ignore"))?;
        let format = parse_export(take("export"))?;
        Ok(Self {
            smoothquant,
            rounding,
            overrides,
            activations,
            kv_cache,
            ignore,
            compute,
            format,
            source: text.to_owned(),
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

    /// The rounding of a module: the last override that matches, or the modifier itself.
    #[must_use]
    pub fn rounding_of(&self, module: &str) -> &RoundingSpec {
        let matching = self.overrides.iter().rev().find(|(glob, _)| glob.matches(module));
        matching.map_or(&self.rounding, |(_, rounding)| rounding)
    }
}

fn mapping(path: &str, value: Value) -> Result<Map<String, Value>, RecipeError> {
    match value {
        Value::Null => Ok(Map::new()),
        Value::Object(map) => Ok(map),
        other => Err(RecipeError::Value {
            path: path.into(),
            expected: "a mapping".into(),
            found: other.to_string(),
        }),
    }
}

/// The transforms, the rounding as written (for overrides to build on) and as resolved.
fn parse_modifiers(value: Value) -> Result<(Option<SmoothQuant>, Value, RoundingSpec), RecipeError> {
    let Value::Array(modifiers) = value else {
        return Err(RecipeError::Value {
            path: "modifiers".into(),
            expected: "a list such as [smoothquant: {alpha: 0.5}, gptq: {scheme: W8A8}]".into(),
            found: value.to_string(),
        });
    };
    let conflict =
        |problem: &str| RecipeError::Conflict { path: "modifiers".into(), problem: problem.into() };
    let (mut smooth, mut rounding) = (None, None);
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
            let path = format!("{path}.{name}");
            match method.kind {
                MethodKind::Transform if rounding.is_some() => {
                    return Err(conflict("a transform must stand before the rounding it prepares"));
                }
                MethodKind::Transform if smooth.is_some() => {
                    return Err(conflict("smoothquant appears twice; its scales would undo each other"));
                }
                MethodKind::Transform => {
                    let section = Section::new(&path, value, SMOOTHQUANT)?;
                    let variant = section.word("variant")?.unwrap_or_default();
                    smooth = Some(SmoothQuant { alpha: section.number("alpha")? as f32, variant });
                }
                MethodKind::Rounding if rounding.is_some() => {
                    return Err(conflict("there are two rounding modifiers; use overrides for exceptions"));
                }
                MethodKind::Rounding => {
                    rounding = Some((value.clone(), parse_rounding(&path, method, value)?));
                }
            }
        }
    }
    let (base, rounding) =
        rounding.ok_or_else(|| conflict("there is no rounding modifier; add rtn or gptq with a scheme"))?;
    Ok((smooth, base, rounding))
}

fn parse_rounding(path: &str, method: &'static Method, value: Value) -> Result<RoundingSpec, RecipeError> {
    let section = Section::new(path, value, fields_of(method))?;
    let text = section.text("scheme")?;
    let scheme: Scheme = text.parse().map_err(|e: quant_core::CoreError| RecipeError::Value {
        path: format!("{path}.scheme"),
        expected: "W<bits>A<bits>[KV<bits>][g<size>]".into(),
        found: e.to_string(),
    })?;
    let symmetric = section.given("symmetric").and_then(Value::as_bool);
    let convention = section.word::<Convention>("convention")?;
    let convention = match (symmetric, convention) {
        (Some(symmetric), Some(c)) if c.is_symmetric() != symmetric => {
            return Err(RecipeError::Conflict {
                path: section.path().into(),
                problem: format!(
                    "symmetric: {symmetric} contradicts convention: {}, which is {}; drop one of them",
                    c.name(),
                    if c.is_symmetric() { "symmetric" } else { "asymmetric" }
                ),
            });
        }
        (_, Some(c)) => c,
        (Some(false), None) => Convention::QAsym,
        (_, None) => Convention::QSym,
    };
    let gptq = method.needs.hessian;
    let variant: Variant = section.word("variant")?.unwrap_or_default();
    if let Some(bits) = scheme.weights {
        quant_core::Grid::new(convention, bits, variant, Default::default())
            .map_err(|e| RecipeError::Conflict { path: section.path().into(), problem: e.to_string() })?;
    }
    Ok(RoundingSpec {
        method,
        scheme,
        convention,
        clip: section.bool("mse_clip")?.then(ClipSearch::default),
        variant,
        act_order: if gptq { section.word("actorder")?.unwrap_or_default() } else { ActOrder::None },
        true_sequential: !gptq || section.bool("true_sequential")?,
        damping: if gptq { section.number("damping")? } else { 0.0 },
        block_size: if gptq { section.integer("block_size")? } else { 128 },
        factor: if gptq && section.text("factor")? == "f64" { Precision::F64 } else { Precision::F32 },
    })
}

/// An override is the modifier with some keys replaced.
fn parse_override(
    path: &str,
    method: &'static Method,
    base: &Value,
    value: Value,
) -> Result<RoundingSpec, RecipeError> {
    Section::new(path, value.clone(), fields_of(method))?;
    let mut merged = mapping(path, base.clone())?;
    let changes = mapping(path, value)?;
    let conflict = |problem: &str| RecipeError::Conflict { path: path.into(), problem: problem.into() };
    if changes.contains_key("true_sequential") {
        return Err(conflict(
            "true_sequential is a setting of the whole run; write it in the modifier itself",
        ));
    }
    if changes.get("scheme").and_then(Value::as_str).is_some_and(|s| s.to_ascii_uppercase().contains("KV")) {
        return Err(conflict(
            "the KV cache belongs to no linear and has one scheme for the model; write the KV part in the modifier's scheme",
        ));
    }
    if changes.contains_key("symmetric") || changes.contains_key("convention") {
        merged.remove("symmetric");
        merged.remove("convention");
    }
    merged.extend(changes);
    parse_rounding(path, method, Value::Object(merged))
}

fn parse_activations(value: Value) -> Result<ActivationSpec, RecipeError> {
    let section = Section::new("activations", value, ACTIVATIONS)?;
    let spec = ActivationSpec {
        symmetric: section.bool_opt("symmetric")?,
        dynamic: section.bool("dynamic")?,
        clip_ratio: section.number("clip_ratio")? as f32,
        observer: section.word("observer")?.unwrap_or(ObserverKind::Minmax),
        in_calibration: section.bool("in_calibration")?,
    };
    if !spec.dynamic && spec.clip_ratio != 1.0 {
        return Err(RecipeError::Conflict {
            path: "activations".into(),
            problem:
                "clip_ratio is for dynamic activations; a static range is cut by observer: percentile or mse"
                    .into(),
        });
    }
    Ok(spec)
}

fn parse_kv(value: Value) -> Result<KvSpec, RecipeError> {
    let section = Section::new("kv_cache", value, KV_CACHE)?;
    let spec =
        KvSpec { symmetric: section.bool_opt("symmetric")?, granularity: section.word("granularity")? };
    if spec.granularity == Some(KvGranularity::ChannelStatic) && spec.symmetric == Some(false) {
        return Err(RecipeError::Conflict {
            path: "kv_cache".into(),
            problem: "channel_static is symmetric (loaders ignore its offsets); use granularity: token_head for asymmetric".into(),
        });
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
            other => Err(RecipeError::Value {
                path: "ignore".into(),
                expected: "a list of module globs".into(),
                found: other.to_string(),
            }),
        })
        .collect()
}

fn parse_export(value: Value) -> Result<&'static dyn Format, RecipeError> {
    let mut map = mapping("export", value)?;
    let name = map.remove("format").unwrap_or_else(|| Value::from("dequantized"));
    if let Some(key) = map.keys().next() {
        return Err(unknown_key("export", key, ["format"].into_iter()));
    }
    let known: Vec<&str> = formats::FORMATS.iter().map(|f| f.id()).collect();
    name.as_str().and_then(formats::format).ok_or_else(|| RecipeError::Value {
        path: "export.format".into(),
        expected: format!("one of {}", known.join(", ")),
        found: name.to_string(),
    })
}
