//! `config.json` to [`ModelSpec`].

use crate::families::{BiasRule, COMMON_REFUSALS, Family, SlidingRule, family_of, supported_architectures};
use crate::fields::Fields;
use crate::rope_config::rope_spec;
use crate::{FAMILIES, ModelError};
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

/// Reads the shape of a model from its parsed `config.json`.
///
/// The family is chosen by `architectures[0]` alone; its table row says how the remaining keys are read. Keys written by
/// transformers 4 (`torch_dtype`, `rope_theta`, `rope_scaling`) and 5 (`dtype`, `rope_parameters`) are both understood.
/// A missing `tie_word_embeddings` is false, the default of all four config classes; a missing `num_key_value_heads` is
/// the number of heads. `quantization_config` is not looked at.
///
/// A config without a type gives `dtype` F32: whoever has the tensors asks [`declared_dtype`] and takes theirs instead.
///
/// Keys that are known to change the forward pass are refused ([`crate::families::COMMON_REFUSALS`] and the family's own). A key that
/// nobody knows here cannot be told from the many that change nothing, and is passed over: a model that changes its
/// attention under the name of one of these families and by a new key alone is not recognised, unless its tensors differ.
///
/// # Errors
/// [`ModelError::UnknownArchitecture`]; [`ModelError::Config`] for a missing, mistyped or out-of-range value;
/// [`ModelError::Unsupported`] for values that ask for arithmetic this crate does not have.
pub fn model_spec(config: &Value) -> Result<ModelSpec, ModelError> {
    let fields = Fields::new(config, "")?;
    let (architecture, family) = architecture(&fields)?;
    refuse(&fields, family)?;

    let hidden = fields.count("hidden_size", 1..=MAX_WIDTH, None)?;
    let intermediate = fields.count("intermediate_size", 1..=MAX_WIDTH, None)?;
    let layers = fields.count("num_hidden_layers", 1..=MAX_LAYERS, None)?;
    let heads = fields.count("num_attention_heads", 1..=MAX_HEADS, None)?;
    let kv_heads = fields.count("num_key_value_heads", 1..=MAX_HEADS, Some(heads))?;
    if !heads.is_multiple_of(kv_heads) {
        return Err(
            fields.wrong("num_key_value_heads", format!("a divisor of num_attention_heads = {heads}"))
        );
    }
    let max_position_embeddings = fields.count(
        "max_position_embeddings",
        1..=MAX_POSITIONS,
        Some(family.defaults.max_position_embeddings),
    )?;
    Ok(ModelSpec {
        family: family.id.into(),
        architecture: architecture.into(),
        model_type: fields.text("model_type")?.unwrap_or(family.id).into(),
        hidden,
        intermediate,
        layers,
        heads,
        kv_heads,
        head_dim: head_dim(&fields, family, hidden, heads)?,
        vocab: fields.count("vocab_size", 1..=MAX_VOCAB, None)?,
        norm_eps: fields.real("rms_norm_eps", 1e-30..=0.1, Some(family.defaults.norm_eps))?,
        rope: rope_spec(&fields, family.defaults.rope_theta, max_position_embeddings)?,
        max_position_embeddings,
        tied: fields.flag("tie_word_embeddings")?.unwrap_or(family.defaults.tied),
        qkv_bias: bias(&fields, family.qkv_bias)?,
        o_bias: bias(&fields, family.o_bias)?,
        mlp_bias: bias(&fields, family.mlp_bias)?,
        qk_norm: family.qk_norm,
        windows: windows(&fields, family.sliding, layers)?,
        dtype: dtype(&fields)?.unwrap_or(FloatType::F32),
    })
}

/// The type that `config.json` declares for the tensors (`dtype`, or `torch_dtype` before transformers 5); none if it does
/// not say.
///
/// # Errors
/// [`ModelError::Config`] for any other value than float32, float16 and bfloat16.
pub fn declared_dtype(config: &Value) -> Result<Option<FloatType>, ModelError> {
    dtype(&Fields::new(config, "")?)
}

fn architecture<'a>(fields: &Fields<'a>) -> Result<(&'a str, &'static Family), ModelError> {
    let name = fields.list("architectures")?.and_then(<[Value]>::first).and_then(Value::as_str).ok_or_else(
        || fields.wrong("architectures", format!("a list with one of: {}", supported_architectures())),
    )?;
    let family = family_of(name).ok_or_else(|| ModelError::UnknownArchitecture {
        found: name.chars().take(80).collect(),
        supported: FAMILIES
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
    match fields.text("hidden_act")?.unwrap_or("silu") {
        "silu" | "swish" => Ok(()),
        _ => Err(fields.unsupported("hidden_act", "the MLP's activation must be silu")),
    }
}

fn head_dim(fields: &Fields<'_>, family: &Family, hidden: usize, heads: usize) -> Result<usize, ModelError> {
    let derived = match family.defaults.head_dim {
        Some(width) => Some(width),
        None => hidden.is_multiple_of(heads).then_some(hidden / heads),
    };
    if derived.is_none() && fields.get("head_dim").is_none() {
        return Err(fields.wrong(
            "num_attention_heads",
            format!("a divisor of hidden_size = {hidden} where head_dim is not given"),
        ));
    }
    let width = fields.count("head_dim", 2..=MAX_HEAD_DIM, derived)?;
    if !width.is_multiple_of(2) {
        return Err(fields.wrong(
            "head_dim",
            format!("an even number, because rope pairs its halves (got a width of {width})"),
        ));
    }
    Ok(width)
}

fn bias(fields: &Fields<'_>, rule: BiasRule) -> Result<bool, ModelError> {
    match rule {
        BiasRule::Always => Ok(true),
        BiasRule::Never => Ok(false),
        BiasRule::Config { overriding, keys, default } => {
            if let Some(key) = overriding
                && let Some(flag) = fields.flag(key)?
            {
                return Ok(flag);
            }
            let mut stated = None;
            for key in keys {
                if let Some(flag) = fields.flag(key)? {
                    stated = Some(stated.unwrap_or(false) || flag);
                }
            }
            Ok(stated.unwrap_or(default))
        }
    }
}

fn windows(fields: &Fields<'_>, rule: SlidingRule, layers: usize) -> Result<Vec<Option<usize>>, ModelError> {
    let types = layer_types(fields, layers)?;
    if rule == SlidingRule::Never {
        if types.is_some_and(|t| t.contains(&true)) {
            return Err(fields.unsupported("layer_types", "this family has no sliding windows"));
        }
        return Ok(vec![None; layers]);
    }
    if !fields.flag("use_sliding_window")?.unwrap_or(false) {
        return Ok(vec![None; layers]);
    }
    // The config classes default both keys; a null window means none even with `use_sliding_window`.
    if fields.get("sliding_window").is_none() {
        return Ok(vec![None; layers]);
    }
    let window = fields.count("sliding_window", 1..=MAX_POSITIONS, None)?;
    let from = fields.count("max_window_layers", 0..=MAX_LAYERS, Some(28))?;
    let sliding = types.unwrap_or_else(|| (0..layers).map(|i| i >= from).collect());
    Ok(sliding.into_iter().map(|s| s.then_some(window)).collect())
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
    let key = if fields.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    match fields.text(key)?.map(|name| name.trim_start_matches("torch.")) {
        None => Ok(None),
        Some("float32") => Ok(Some(FloatType::F32)),
        Some("float16") => Ok(Some(FloatType::F16)),
        Some("bfloat16") => Ok(Some(FloatType::Bf16)),
        Some(_) => Err(fields.wrong(key, "float32, float16 or bfloat16")),
    }
}
