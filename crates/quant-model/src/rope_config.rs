//! The rotary embedding of a `config.json`, in the spellings of transformers 4 and 5.

use crate::ModelError;
use crate::families::{Family, RopeRule};
use crate::fields::{Fields, Stated};
use quant_core::elementary::ln;
use quant_graph::{RopeScaling, RopeSpec};
use serde_json::Value;

const MAX_FACTOR: f64 = 1e6;
const MAX_CONTEXT: f64 = 1e9;
/// The length before scaling: in the block, or beside it as Phi-3 has it.
const ORIGINAL: &str = "original_max_position_embeddings";

/// `rope_parameters` (transformers 5, holds `rope_theta` too) or `rope_theta` beside `rope_scaling` (transformers 4).
///
/// Where both blocks stand, transformers 5 replaces the first by the second and 4 never looks at the first.
pub(crate) fn rope_spec(
    config: &Fields<'_>,
    family: &'static Family,
    max_position_embeddings: usize,
    head_dim: usize,
    warnings: &mut Vec<String>,
) -> Result<RopeSpec, ModelError> {
    let (rule, default_theta) = (&family.rope, family.defaults.rope_theta);
    let outer = Outer { config, rule, default_theta, max_position_embeddings, head_dim };
    outer.part(config)?;
    let new = block(&outer, "rope_parameters")?;
    let Some(old) = block(&outer, "rope_scaling")? else {
        return match new {
            Some(new) => read(&outer, &new, warnings),
            None => {
                let rotary_dim = rotary_dim(&outer, None, warnings)?;
                Ok(RopeSpec { theta: outer.theta()?, scaling: RopeScaling::Default, rotary_dim })
            }
        };
    };
    let spec = read(&outer, &old, warnings)?;
    if let Some(new) = new
        && !read(&outer, &new, &mut Vec::new()).is_ok_and(|other| other == spec)
    {
        warnings.push(format!(
            "config.json has {} and {}; `rope_scaling` is used, with a rope_theta of {}, as transformers does",
            config.quote("rope_parameters"),
            config.quote("rope_scaling"),
            spec.theta,
        ));
    }
    Ok(spec)
}

/// A block of rope parameters: the object, and the kind of rope it asks for.
struct Block<'a> {
    fields: Fields<'a>,
    kind: &'a str,
    /// Whether it was found under a layer type; then the length beside it does not count.
    nested: bool,
}

/// What stands around the blocks.
struct Outer<'a, 'b> {
    config: &'b Fields<'a>,
    rule: &'static RopeRule,
    default_theta: f64,
    max_position_embeddings: usize,
    head_dim: usize,
}

impl Outer<'_, '_> {
    fn theta(&self) -> Result<f64, ModelError> {
        theta(self.config, self.default_theta)
    }
    /// What one object says of the part of a head that is rotated.
    fn part(&self, fields: &Fields<'_>) -> Result<Option<f64>, ModelError> {
        const KEY: &str = "partial_rotary_factor";
        match fields.stated_real(KEY, 0.0..=1.0)? {
            Stated::Missing => Ok(None),
            // The class cannot compute with null.
            Stated::Null if self.rule.partial => Err(fields.wrong(KEY, "a number, or no such key")),
            Stated::Null => Ok(None),
            Stated::Value(part) if part < 1.0 && !self.rule.partial => {
                Err(fields.unsupported(KEY, "the whole head is rotated here"))
            }
            Stated::Value(part) => Ok(Some(part)),
        }
    }
}

/// Rotated channels of a head, if not all. What the block says counts before what stands beside it.
fn rotary_dim(
    outer: &Outer<'_, '_>,
    block: Option<&Fields<'_>>,
    warnings: &mut Vec<String>,
) -> Result<Option<usize>, ModelError> {
    const KEY: &str = "partial_rotary_factor";
    let (beside, inside) = (outer.part(outer.config)?, block.map(|b| outer.part(b)).transpose()?.flatten());
    let says = if inside.is_some() { block.unwrap_or(outer.config) } else { outer.config };
    if let (Some(beside), Some(inside)) = (beside, inside)
        && beside != inside
    {
        warnings.push(format!(
            "config.json has {} and {}; the second is used, as transformers 5 does",
            outer.config.quote(KEY),
            says.quote(KEY),
        ));
    }
    let width = (outer.head_dim as f64 * inside.or(beside).unwrap_or(1.0)) as usize;
    if width < 2 || !width.is_multiple_of(2) {
        return Err(says.wrong(
            KEY,
            format!(
                "a part of head_dim = {} that is an even number of channels, not {width}",
                outer.head_dim
            ),
        ));
    }
    Ok((width < outer.head_dim).then_some(width))
}

fn theta(fields: &Fields<'_>, default: f64) -> Result<f64, ModelError> {
    // At or below 1 the frequencies do not fall with the dimension, and logarithms of it are not positive.
    fields.real("rope_theta", 1.000_001..=1e15, Some(default))
}

/// The block under a key, unless it is missing, null or empty.
fn block<'a>(outer: &Outer<'a, '_>, key: &'static str) -> Result<Option<Block<'a>>, ModelError> {
    let config = outer.config;
    let Some(value) = config.get(key) else { return Ok(None) };
    let (value, nested) = flat(config, key, value)?;
    let fields = Fields::new(value, key)?;
    if fields.is_empty() {
        return Ok(None);
    }
    outer.part(&fields)?;
    // One name for what the class takes as one.
    let one = |name| if outer.rule.longrope.contains(&name) { "longrope" } else { name };
    let kind = match (fields.text("rope_type")?.map(one), fields.text("type")?.map(one)) {
        (Some(new), Some(old)) if new != old => {
            return Err(fields.conflict(
                "rope_type",
                "type",
                "transformers 5 reads the first, 4 the second; correct one of them",
            ));
        }
        (new, old) => new.or(old).unwrap_or("default"),
    };
    Ok(Some(Block { fields, kind, nested }))
}

/// Transformers 5 may keep one dictionary per layer type; they must then say the same.
fn flat<'a>(
    config: &Fields<'a>,
    key: &'static str,
    value: &'a Value,
) -> Result<(&'a Value, bool), ModelError> {
    let entries = Fields::new(value, key)?;
    let Some((_, first)) = entries.entries().find(|(_, v)| v.is_object()) else { return Ok((value, false)) };
    if entries.entries().any(|(_, other)| other != first) {
        return Err(config.unsupported(key, "rope parameters must be the same for every layer type"));
    }
    Ok((first, true))
}

fn read(
    outer: &Outer<'_, '_>,
    block: &Block<'_>,
    warnings: &mut Vec<String>,
) -> Result<RopeSpec, ModelError> {
    let rope = &block.fields;
    let theta = match rope.stated_real("rope_theta", f64::MIN..=f64::MAX)? {
        Stated::Missing => outer.theta()?,
        _ => theta(rope, outer.default_theta)?,
    };
    let above = outer.config.get("rope_theta");
    if above.is_some_and(|above| above.as_f64() != Some(theta)) {
        warnings.push(format!(
            "config.json has {} and {}; the second is used, as transformers 5 does",
            outer.config.quote("rope_theta"),
            rope.quote("rope_theta"),
        ));
    }
    let rotary_dim = rotary_dim(outer, Some(rope), warnings)?;
    let unknown = || {
        let key = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
        Err(rope.unsupported(key, format!("rope type must be one of: {}", outer.rule.kinds.join(", "))))
    };
    if !outer.rule.kinds.contains(&block.kind) {
        return unknown();
    }
    let (scaling, read) = match block.kind {
        "default" => (RopeScaling::Default, &[][..]),
        "linear" => (RopeScaling::Linear { factor: factor(rope)? }, &["factor"][..]),
        "dynamic" => (RopeScaling::Dynamic { factor: factor(rope)? }, &["factor"][..]),
        "llama3" => (llama3(outer, block, warnings)?, LLAMA3_KEYS),
        "yarn" => (yarn(outer, block, warnings)?, YARN_KEYS),
        "longrope" => {
            let width = rotary_dim.unwrap_or(outer.head_dim);
            (longrope(outer, block, width, warnings)?, LONGROPE_KEYS)
        }
        _ => return unknown(),
    };
    let common = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
    for (key, _) in rope.entries().filter(|(key, _)| !common.contains(key) && !read.contains(key)) {
        warnings.push(format!(
            "config.json has {}, which the rope type {} does not read, here as in transformers",
            rope.quote(key),
            block.kind,
        ));
    }
    Ok(RopeSpec { theta, scaling, rotary_dim })
}

fn factor(rope: &Fields<'_>) -> Result<f64, ModelError> {
    rope.real("factor", 1.0..=MAX_FACTOR, None)
}

/// The length before scaling. The one beside the block wins, then the one inside, then the length of the model.
fn original(outer: &Outer<'_, '_>, block: &Block<'_>, warnings: &mut Vec<String>) -> Result<f64, ModelError> {
    let range = 1.0..=MAX_CONTEXT;
    let inside = block.fields.stated_real(ORIGINAL, range.clone())?;
    let beside = match (block.nested, outer.rule.original) {
        (true, _) => Stated::Missing,
        (false, None) => outer.config.stated_real(ORIGINAL, range)?,
        (false, Some(default)) => Stated::Value(outer.config.real(ORIGINAL, range, Some(default as f64))?),
    };
    match (beside, inside) {
        (Stated::Value(beside), inside) => {
            if matches!(inside, Stated::Value(inside) if inside != beside) {
                warnings.push(format!(
                    "config.json has {} and {}; {beside} is used, as transformers 5 does",
                    outer.config.quote(ORIGINAL),
                    block.fields.quote(ORIGINAL),
                ));
            }
            Ok(beside)
        }
        (_, Stated::Value(inside)) => Ok(inside),
        _ => {
            warnings.push(format!(
                "config.json has {}; max_position_embeddings = {} is used, as transformers 5 does",
                block.fields.quote(ORIGINAL),
                outer.max_position_embeddings,
            ));
            Ok(outer.max_position_embeddings as f64)
        }
    }
}

const LLAMA3_KEYS: &[&str] = &["factor", "low_freq_factor", "high_freq_factor", ORIGINAL];

fn llama3(
    outer: &Outer<'_, '_>,
    block: &Block<'_>,
    warnings: &mut Vec<String>,
) -> Result<RopeScaling, ModelError> {
    let rope = &block.fields;
    let factor = factor(rope)?;
    let low = rope.real("low_freq_factor", 1e-6..=MAX_FACTOR, None)?;
    let high = rope.real("high_freq_factor", 1e-6..=MAX_FACTOR, None)?;
    if high <= low {
        return Err(rope.wrong("high_freq_factor", format!("more than low_freq_factor = {low}")));
    }
    Ok(RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: original(outer, block, warnings)?,
    })
}

const YARN_KEYS: &[&str] = &[
    "factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    ORIGINAL,
];

fn yarn(
    outer: &Outer<'_, '_>,
    block: &Block<'_>,
    warnings: &mut Vec<String>,
) -> Result<RopeScaling, ModelError> {
    let rope = &block.fields;
    let original = original(outer, block, warnings)?;
    let factor = match rope.stated_real("factor", 1.0..=MAX_FACTOR)? {
        // Only where it is written as null; a missing one is an error in both versions.
        Stated::Null => {
            let ratio = outer.max_position_embeddings as f64 / original;
            warnings.push(format!(
                "config.json has {}; max_position_embeddings / {ORIGINAL} = {ratio} is used, as transformers 5 does",
                rope.quote("factor"),
            ));
            ratio
        }
        _ => factor(rope)?,
    };
    // `or` in the class: null and zero are the default.
    let beta = |key, default| match rope.announces(key) {
        true => rope.real(key, 1e-6..=MAX_FACTOR, None),
        false => Ok(default),
    };
    let (beta_fast, beta_slow) = (beta("beta_fast", 32.0)?, beta("beta_slow", 1.0)?);
    if beta_fast < beta_slow {
        return Err(rope.wrong("beta_fast", format!("at least beta_slow = {beta_slow}")));
    }
    // YaRN section 3.4; DeepSeek's variant divides two of these temperatures.
    let temperature = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * ln(factor) + 1.0 };
    let attention_factor = match rope.stated_real("attention_factor", 1e-6..=MAX_FACTOR)? {
        Stated::Value(factor) => factor,
        _ if rope.announces("mscale") && rope.announces("mscale_all_dim") => {
            let scale = |key| rope.real(key, 1e-6..=MAX_FACTOR, None);
            temperature(scale("mscale")?) / temperature(scale("mscale_all_dim")?)
        }
        _ => temperature(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        attention_factor,
        beta_fast,
        beta_slow,
        truncate: rope.flag("truncate")?.unwrap_or(true),
        original_max_position_embeddings: original,
    })
}

const LONGROPE_KEYS: &[&str] = &["short_factor", "long_factor", "factor", "attention_factor", ORIGINAL];

fn longrope(
    outer: &Outer<'_, '_>,
    block: &Block<'_>,
    width: usize,
    warnings: &mut Vec<String>,
) -> Result<RopeScaling, ModelError> {
    let rope = &block.fields;
    let divisors = |key| rope.reals(key, width / 2, 1e-6..=MAX_FACTOR);
    let (short_factor, long_factor) = (divisors("short_factor")?, divisors("long_factor")?);
    let original = original(outer, block, warnings)?;
    let ratio = outer.max_position_embeddings as f64 / original;
    let factor = match rope.stated_real("factor", 1e-6..=MAX_FACTOR)? {
        Stated::Value(factor) => factor,
        _ => ratio,
    };
    let attention_factor = match rope.stated_real("attention_factor", 1e-6..=MAX_FACTOR)? {
        Stated::Value(factor) => factor,
        _ if factor <= 1.0 => 1.0,
        _ if original <= 1.0 => {
            return Err(rope.wrong(ORIGINAL, "more than 1, because its logarithm divides"));
        }
        // LongRoPE's temperature.
        _ => {
            if factor != ratio {
                warnings.push(format!(
                    "config.json has {}, and max_position_embeddings / {ORIGINAL} = {ratio}; the first is used, as \
                     transformers 5 does",
                    rope.quote("factor"),
                ));
            }
            (1.0 + ln(factor) / ln(original)).sqrt()
        }
    };
    for key in ["short_mscale", "long_mscale"] {
        if let Stated::Value(scale) = rope.stated_real(key, f64::MIN..=f64::MAX)?
            && scale != attention_factor
        {
            return Err(rope.unsupported(
                key,
                format!("vLLM multiplies cosines and sines by it, transformers by {attention_factor}; take it out or make them one"),
            ));
        }
    }
    Ok(RopeScaling::LongRope {
        short_factor,
        long_factor,
        attention_factor,
        original_max_position_embeddings: original,
    })
}
