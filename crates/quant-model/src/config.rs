//! `config.json` to [`ModelSpec`].

use crate::families::{BiasRule, COMMON_REFUSALS, Family, SlidingRule, family_among};
use crate::fields::{Fields, Stated};
use crate::rope_config::rope_spec;
use crate::{Families, ModelError};
use quant_core::FloatType;
use quant_graph::ModelSpec;
use serde_json::Value;

// Bounds far beyond any dense model: they keep products of two sizes inside 64 bits and refuse nonsense before
// anything is allocated from it.
const MAX_WIDTH: usize = 1 << 20;
const MAX_HEADS: usize = 1 << 12;
const MAX_LAYERS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 1 << 12;
const MAX_VOCAB: usize = 1 << 24;
const MAX_POSITIONS: usize = 1 << 28;

/// A config as read.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The shape of the model.
    pub spec: ModelSpec,
    /// What the config says twice and differently, or says and nobody reads; each names the keys with their values.
    pub warnings: Vec<String>,
}

/// The shape of a model from its parsed `config.json`, for callers that show no warnings; see [`read_model_config`].
///
/// # Errors
/// As [`read_model_config`].
pub fn model_spec(config: &Value) -> Result<ModelSpec, ModelError> {
    read_model_config(config).map(|reading| reading.spec)
}

/// The same, of a model of one of `families`.
///
/// # Errors
/// As [`read_model_config`].
pub fn model_spec_with(config: &Value, families: &Families) -> Result<ModelSpec, ModelError> {
    read_model_config_with(config, families).map(|reading| reading.spec)
}

/// Reads the shape of a model from its parsed `config.json`, as the family's config class in transformers reads it.
///
/// The family is chosen by `architectures[0]` alone; its table row says how the remaining keys are read. Keys written by
/// transformers 4 (`torch_dtype`, `rope_theta`, `rope_scaling`) and 5 (`dtype`, `rope_parameters`) are both understood.
///
/// - A missing key has the default of the class ([`crate::families::Defaults`]); sizes that are filled in are reported.
/// - Null is a value: no window, as many key heads as heads, the derived head width, false. Where the class could not
///   compute with it, it is refused.
/// - Two statements about one thing are equal, or read as transformers does with a warning that names both, or, where
///   its versions or clients disagree, refused with both named.
///
/// `quantization_config` is not looked at. A config without a type gives `dtype` F32: whoever has the tensors asks
/// [`declared_dtype`] and takes theirs instead.
///
/// Keys that are known to change the forward pass are refused ([`crate::families::COMMON_REFUSALS`] and the family's own). A key that
/// nobody knows here cannot be told from the many that change nothing, and is passed over: a model that changes its
/// attention under the name of one of these families and by a new key alone is not recognised, unless its tensors differ.
///
/// # Errors
/// [`ModelError::UnknownArchitecture`]; [`ModelError::Config`] for a mistyped or out-of-range value;
/// [`ModelError::Unsupported`] for values that ask for arithmetic this crate does not have; [`ModelError::Conflict`] for
/// statements that contradict each other.
pub fn read_model_config(config: &Value) -> Result<Reading, ModelError> {
    read_model_config_with(config, &Families::default())
}

/// The same, of a model of one of `families`: ours by default, and those a program adds.
///
/// # Errors
/// As [`read_model_config`].
pub fn read_model_config_with(config: &Value, families: &Families) -> Result<Reading, ModelError> {
    let fields = Fields::new(config, "")?;
    let (architecture, family) = architecture(&fields, families)?;
    refuse(&fields, family)?;
    let mut warnings = Vec::new();
    let model_type = model_type(&fields, family, families, &mut warnings)?;

    let defaults = &family.defaults;
    let mut size = |key, max, default| size(&fields, family, key, max, default, &mut warnings);
    let hidden = size("hidden_size", MAX_WIDTH, defaults.hidden)?;
    let intermediate = size("intermediate_size", MAX_WIDTH, defaults.intermediate)?;
    let layers = size("num_hidden_layers", MAX_LAYERS, defaults.layers)?;
    let heads = size("num_attention_heads", MAX_HEADS, defaults.heads)?;
    let vocab = size("vocab_size", MAX_VOCAB, defaults.vocab)?;
    let kv_heads = match (fields.stated_count("num_key_value_heads", 1..=MAX_HEADS)?, defaults.kv_heads) {
        (Stated::Missing, Some(default)) => size("num_key_value_heads", MAX_HEADS, default)?,
        (Stated::Missing, None) | (Stated::Null, _) => heads,
        (Stated::Value(kv_heads), _) => kv_heads,
    };
    if !heads.is_multiple_of(kv_heads) {
        return Err(fields.wrong(
            "num_key_value_heads",
            format!("a divisor of num_attention_heads = {heads} (got {kv_heads} heads)"),
        ));
    }
    let max_position_embeddings =
        fields.count("max_position_embeddings", 1..=MAX_POSITIONS, defaults.max_position_embeddings)?;
    let head_dim = head_dim(&fields, family, hidden, heads)?;
    let spec = ModelSpec {
        family: family.id.into(),
        architecture: architecture.into(),
        model_type: model_type.into(),
        hidden,
        intermediate,
        layers,
        heads,
        kv_heads,
        head_dim,
        vocab,
        norm_eps: fields.real("rms_norm_eps", 1e-30..=0.1, Some(defaults.norm_eps))?,
        rope: rope_spec(&fields, family, max_position_embeddings, head_dim, &mut warnings)?,
        max_position_embeddings,
        tied: fields.flag("tie_word_embeddings")?.unwrap_or(defaults.tied),
        qkv_bias: bias(&fields, family.qkv_bias, &mut warnings)?,
        o_bias: bias(&fields, family.o_bias, &mut warnings)?,
        mlp_bias: bias(&fields, family.mlp_bias, &mut warnings)?,
        qk_norm: family.qk_norm,
        windows: windows(&fields, family, layers, &mut warnings)?,
        layout: family.layout,
        dtype: dtype(&fields)?.unwrap_or(FloatType::F32),
    };
    unread(&fields, family, &mut warnings)?;
    // The rules of several linears may rest on the same two keys.
    let mut seen = std::collections::BTreeSet::new();
    warnings.retain(|w| seen.insert(w.clone()));
    Ok(Reading { spec, warnings })
}

/// The type that `config.json` declares for the tensors (`dtype`, or `torch_dtype` before transformers 5); none if it does
/// not say. Where both are there, `dtype` counts.
///
/// # Errors
/// [`ModelError::Config`] for any other value than float32, float16 and bfloat16.
pub fn declared_dtype(config: &Value) -> Result<Option<FloatType>, ModelError> {
    dtype(&Fields::new(config, "")?)
}

/// `model_type`, which must not name another family than `architectures`: transformers goes by the one, vLLM by the other.
fn model_type<'a>(
    fields: &Fields<'a>,
    family: &'static Family,
    families: &Families,
    warnings: &mut Vec<String>,
) -> Result<&'a str, ModelError> {
    let Some(stated) = fields.text("model_type")? else { return Ok(family.model_type) };
    if stated == family.model_type {
        return Ok(stated);
    }
    if families.iter().any(|f| f.model_type == stated) {
        return Err(fields.conflict(
            "model_type",
            "architectures",
            "transformers chooses the model by the first, vLLM by the second; correct one of them",
        ));
    }
    warnings.push(format!(
        "config.json has {} and {}; it is read as {}, and transformers needs code for that model_type",
        fields.quote("model_type"),
        fields.quote("architectures"),
        family.summary,
    ));
    Ok(stated)
}

/// A size of the model; where the class fills it in, the person should know.
fn size(
    fields: &Fields<'_>,
    family: &Family,
    key: &str,
    max: usize,
    default: usize,
    warnings: &mut Vec<String>,
) -> Result<usize, ModelError> {
    if let Stated::Missing = fields.stated_count(key, 1..=max)? {
        warnings.push(format!(
            "config.json has no `{key}`; {default} is used, the default of {}",
            family.config_class
        ));
    }
    fields.count(key, 1..=max, default)
}

/// Warns of what the config says and the class of the family does not read.
fn unread(fields: &Fields<'_>, family: &Family, warnings: &mut Vec<String>) -> Result<(), ModelError> {
    let mut warn = |key: &str, why: &str| {
        warnings.push(format!(
            "config.json has {}, which {} does not read: {why}",
            fields.quote(key),
            family.config_class
        ));
    };
    if family.sliding == SlidingRule::Never {
        if fields.get("sliding_window").is_some() {
            warn("sliding_window", "every layer has full attention");
        }
        if fields.flag("use_sliding_window")? == Some(true) {
            warn("use_sliding_window", "every layer has full attention");
        }
    }
    for (key, rule) in [("attention_bias", family.qkv_bias), ("mlp_bias", family.mlp_bias)] {
        match rule {
            BiasRule::Always if fields.flag(key)? == Some(false) => {
                warn(key, "these linears always have biases");
            }
            BiasRule::Never if fields.flag(key)? == Some(true) => {
                warn(key, "these linears never have biases");
            }
            _ => {}
        }
    }
    if fields.get("dtype").is_some() && fields.get("torch_dtype").is_some() {
        let old = dtype_of(fields, "torch_dtype").ok().flatten();
        if old != dtype(fields)? {
            warnings.push(format!(
                "config.json has {} and {}; `dtype` is used, as transformers does",
                fields.quote("dtype"),
                fields.quote("torch_dtype"),
            ));
        }
    }
    Ok(())
}

fn architecture<'a>(
    fields: &Fields<'a>,
    families: &Families,
) -> Result<(&'a str, &'static Family), ModelError> {
    let name = fields.list("architectures")?.and_then(<[Value]>::first).and_then(Value::as_str).ok_or_else(
        || {
            let known: Vec<&str> = families.iter().flat_map(|f| f.architectures).copied().collect();
            fields.wrong("architectures", format!("a list with one of: {}", known.join(", ")))
        },
    )?;
    let family = family_among(name, families).ok_or_else(|| ModelError::UnknownArchitecture {
        found: name.chars().take(80).collect(),
        supported: families
            .iter()
            .map(|f| format!("{} ({})", f.architectures.join(", "), f.summary))
            .collect::<Vec<_>>()
            .join("; "),
    })?;
    Ok((name, family))
}

/// What would silently change the forward pass is refused, not ignored.
fn refuse(fields: &Fields<'_>, family: &Family) -> Result<(), ModelError> {
    for refusal in family.refusals.iter().chain(COMMON_REFUSALS) {
        if fields.announces(refusal.key) {
            return Err(fields.unsupported(refusal.key, refusal.reason));
        }
    }
    if fields.flag("is_causal")? == Some(false) {
        return Err(fields.unsupported("is_causal", "attention is causal here"));
    }
    match fields.text("hidden_act")? {
        None if fields.is_null("hidden_act") => Err(fields.wrong("hidden_act", "\"silu\", or no such key")),
        None | Some("silu" | "swish") => Ok(()),
        Some(_) => Err(fields.unsupported("hidden_act", "the MLP's activation must be silu")),
    }
}

fn head_dim(fields: &Fields<'_>, family: &Family, hidden: usize, heads: usize) -> Result<usize, ModelError> {
    let derived = || {
        hidden.is_multiple_of(heads).then_some(hidden / heads).ok_or_else(|| {
            fields.wrong(
                "num_attention_heads",
                format!("a divisor of hidden_size = {hidden} where head_dim is not given"),
            )
        })
    };
    let width = match (fields.stated_count("head_dim", 2..=MAX_HEAD_DIM)?, family.defaults.head_dim) {
        (Stated::Value(width), _) | (Stated::Missing, Some(width)) => width,
        (Stated::Missing | Stated::Null, None) => derived()?,
        // The class cannot compute with null, and loaders that derive a width instead would not find the default.
        (Stated::Null, Some(default)) => {
            return Err(fields.wrong(
                "head_dim",
                format!("an integer, or no such key for the {default} of {}", family.config_class),
            ));
        }
    };
    if width < 2 || !width.is_multiple_of(2) {
        return Err(fields.wrong(
            "head_dim",
            format!("an even number, because rope pairs its halves (got a width of {width})"),
        ));
    }
    Ok(width)
}

fn bias(fields: &Fields<'_>, rule: BiasRule, warnings: &mut Vec<String>) -> Result<bool, ModelError> {
    match rule {
        BiasRule::Always => Ok(true),
        BiasRule::Never => Ok(false),
        BiasRule::Config { overriding, keys, default } => {
            let stated = |key: &'static str| fields.flag(key).map(|flag| flag.map(|flag| (key, flag)));
            let all = overriding.into_iter().chain(keys.iter().copied());
            let said = all.filter_map(|key| stated(key).transpose()).collect::<Result<Vec<_>, _>>()?;
            let read = match said.first() {
                Some(&(key, flag)) if Some(key) == overriding => flag,
                Some(_) => said.iter().any(|&(_, flag)| flag),
                None => default,
            };
            if let (Some((one, _)), Some((other, _))) =
                (said.iter().find(|(_, flag)| *flag == read), said.iter().find(|(_, flag)| *flag != read))
            {
                warnings.push(format!(
                    "config.json has {} and {}; the first is used",
                    fields.quote(one),
                    fields.quote(other),
                ));
            }
            Ok(read)
        }
    }
}

fn windows(
    fields: &Fields<'_>,
    family: &Family,
    layers: usize,
    warnings: &mut Vec<String>,
) -> Result<Vec<Option<usize>>, ModelError> {
    let types = layer_types(fields, layers)?;
    let (window, from) = match family.sliding {
        SlidingRule::Qwen { window, from } => (window, from),
        SlidingRule::Every { window } => return every_window(fields, window, layers, types.as_deref()),
        SlidingRule::Never => {
            if types.is_some_and(|t| t.contains(&true)) {
                return Err(fields.unsupported("layer_types", "this family has no sliding windows"));
            }
            return Ok(vec![None; layers]);
        }
    };
    let on = fields.flag("use_sliding_window")?.unwrap_or(false);
    let window = match on {
        false => None,
        true => match fields.stated_count("sliding_window", 1..=MAX_POSITIONS)? {
            Stated::Missing => Some(window),
            Stated::Null => None,
            Stated::Value(window) => Some(window),
        },
    };
    let Some(window) = window else {
        // The class has no window for the layers that the list makes slide: transformers stops at the first forward pass.
        if types.is_some_and(|t| t.contains(&true)) {
            let other = if on { "sliding_window" } else { "use_sliding_window" };
            return Err(fields.conflict(
                "layer_types",
                other,
                "transformers builds no mask for these layers; correct one of them",
            ));
        }
        return Ok(vec![None; layers]);
    };
    let from = fields.count("max_window_layers", 0..=MAX_LAYERS, from)?;
    let ruled: Vec<_> = (0..layers).map(|i| i >= from).collect();
    let sliding = match types {
        None => ruled,
        Some(types) => {
            if types != ruled && fields.get("max_window_layers").is_some() {
                warnings.push(format!(
                    "config.json has {} and {}; `layer_types` is used, as transformers does",
                    fields.quote("layer_types"),
                    fields.quote("max_window_layers"),
                ));
            }
            types
        }
    };
    Ok(sliding.into_iter().map(|s| s.then_some(window)).collect())
}

/// One window for all layers. The classes of these families read neither of the two other keys, vLLM reads both.
fn every_window(
    fields: &Fields<'_>,
    default: Option<usize>,
    layers: usize,
    types: Option<&[bool]>,
) -> Result<Vec<Option<usize>>, ModelError> {
    let window = match fields.stated_count("sliding_window", 1..=MAX_POSITIONS)? {
        Stated::Missing => default,
        Stated::Null => None,
        Stated::Value(window) => Some(window),
    };
    let disagree = |key| {
        let advice = "transformers does not read the first and gives every layer the second, vLLM reads both; correct one of them";
        Err(fields.conflict(key, "sliding_window", advice))
    };
    if types.is_some_and(|types| types.iter().any(|&slides| slides != window.is_some())) {
        return disagree("layer_types");
    }
    if window.is_some() && fields.flag("use_sliding_window")? == Some(false) {
        return disagree("use_sliding_window");
    }
    Ok(vec![window; layers])
}

/// Per layer whether its attention slides; none if the config does not say.
fn layer_types(fields: &Fields<'_>, layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
    let Some(types) = fields.list("layer_types")? else { return Ok(None) };
    if types.len() != layers {
        return Err(
            fields.wrong("layer_types", format!("{layers} entries, one per layer, not {}", types.len()))
        );
    }
    types
        .iter()
        .map(|t| match t.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => {
                Err(fields.unsupported("layer_types", "entries must be full_attention or sliding_attention"))
            }
        })
        .collect::<Result<_, _>>()
        .map(Some)
}

fn dtype(fields: &Fields<'_>) -> Result<Option<FloatType>, ModelError> {
    dtype_of(fields, if fields.get("dtype").is_some() { "dtype" } else { "torch_dtype" })
}

/// The type a key names, in the spellings that are attributes of `torch`.
fn dtype_of(fields: &Fields<'_>, key: &str) -> Result<Option<FloatType>, ModelError> {
    match fields.text(key)?.map(|name| name.trim_start_matches("torch.")) {
        None => Ok(None),
        Some("float32" | "float") => Ok(Some(FloatType::F32)),
        Some("float16" | "half") => Ok(Some(FloatType::F16)),
        Some("bfloat16") => Ok(Some(FloatType::Bf16)),
        Some(_) => Err(fields.wrong(key, "float32, float16 or bfloat16")),
    }
}
