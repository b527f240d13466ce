//! The rotary embedding of a `config.json`, in the spellings of transformers 4 and 5.

use crate::ModelError;
use crate::fields::Fields;
use quant_graph::{RopeScaling, RopeSpec};
use serde_json::Value;

const SUPPORTED: &str = "default, linear, dynamic, yarn or llama3";
const MAX_FACTOR: f64 = 1e6;
const MAX_CONTEXT: f64 = 1e9;

/// `rope_parameters` (transformers 5, holds `rope_theta` too) or `rope_theta` beside `rope_scaling` (transformers 4).
pub(crate) fn rope_spec(
    config: &Fields<'_>,
    default_theta: f64,
    max_position_embeddings: usize,
) -> Result<RopeSpec, ModelError> {
    whole_head(config)?;
    let outer = theta(config, default_theta)?;
    let (key, value) = match (config.get("rope_parameters"), config.get("rope_scaling")) {
        (Some(value), _) => ("rope_parameters", value),
        (None, Some(value)) => ("rope_scaling", value),
        (None, None) => return Ok(RopeSpec { theta: outer, scaling: RopeScaling::Default }),
    };
    let rope = Fields::new(flat(config, key, value)?, key)?;
    whole_head(&rope)?;
    let theta = theta(&rope, outer)?;
    let kind = match rope.text("rope_type")? {
        Some(kind) => kind,
        None => rope.text("type")?.unwrap_or("default"),
    };
    let factor = || rope.real("factor", 1.0..=MAX_FACTOR, None);
    let original = || {
        rope.real("original_max_position_embeddings", 1.0..=MAX_CONTEXT, Some(max_position_embeddings as f64))
    };
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: factor()? },
        "dynamic" => RopeScaling::Dynamic { factor: factor()? },
        "llama3" => llama3(&rope, factor()?)?,
        "yarn" => yarn(&rope, factor()?, original()?)?,
        _ => {
            let key = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
            return Err(rope.unsupported(key, format!("rope type must be {SUPPORTED}")));
        }
    };
    Ok(RopeSpec { theta, scaling })
}

fn theta(fields: &Fields<'_>, default: f64) -> Result<f64, ModelError> {
    // At or below 1 the frequencies do not fall with the dimension, and logarithms of it are not positive.
    fields.real("rope_theta", 1.000_001..=1e15, Some(default))
}

fn whole_head(fields: &Fields<'_>) -> Result<(), ModelError> {
    if fields.real("partial_rotary_factor", 0.0..=1.0, Some(1.0))? < 1.0 {
        return Err(fields.unsupported("partial_rotary_factor", "the whole head is rotated here"));
    }
    Ok(())
}

/// Transformers 5 may keep one dictionary per layer type; they must then say the same.
fn flat<'a>(config: &Fields<'a>, key: &'static str, value: &'a Value) -> Result<&'a Value, ModelError> {
    let mut inner = Fields::new(value, key)?.values().filter(|v| !v.is_null()).peekable();
    match inner.peek() {
        Some(first @ Value::Object(_)) => {
            let first: &'a Value = first;
            if inner.all(|other| other == first) {
                Ok(first)
            } else {
                Err(config.unsupported(key, "rope parameters must be the same for every layer type"))
            }
        }
        _ => Ok(value),
    }
}

fn llama3(rope: &Fields<'_>, factor: f64) -> Result<RopeScaling, ModelError> {
    let low = rope.real("low_freq_factor", 1e-6..=MAX_FACTOR, None)?;
    let high = rope.real("high_freq_factor", 1e-6..=MAX_FACTOR, None)?;
    if high <= low {
        return Err(rope.wrong("high_freq_factor", format!("more than low_freq_factor = {low}")));
    }
    Ok(RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: rope.real(
            "original_max_position_embeddings",
            1.0..=MAX_CONTEXT,
            None,
        )?,
    })
}

fn yarn(rope: &Fields<'_>, factor: f64, original: f64) -> Result<RopeScaling, ModelError> {
    let beta_fast = rope.real("beta_fast", 1e-6..=MAX_FACTOR, Some(32.0))?;
    let beta_slow = rope.real("beta_slow", 1e-6..=MAX_FACTOR, Some(1.0))?;
    if beta_fast < beta_slow {
        return Err(rope.wrong("beta_fast", format!("at least beta_slow = {beta_slow}")));
    }
    // YaRN section 3.4; DeepSeek's variant divides two of these temperatures.
    let temperature = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let default = match (rope.announces("mscale"), rope.announces("mscale_all_dim")) {
        (true, true) => {
            let scale = |key| rope.real(key, 1e-6..=MAX_FACTOR, None);
            temperature(scale("mscale")?) / temperature(scale("mscale_all_dim")?)
        }
        _ => temperature(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        attention_factor: rope.real("attention_factor", 1e-6..=MAX_FACTOR, Some(default))?,
        beta_fast,
        beta_slow,
        truncate: rope.flag("truncate")?.unwrap_or(true),
        original_max_position_embeddings: original,
    })
}
