//! The rows of the tables and how they are read.

use crate::common::config;
use quant_graph::{ModelSpec, RopeScaling};
use quant_model::{Reading, read_model_config};
use serde_json::Value;

/// What a variant must come to.
pub(crate) enum Means {
    /// This, with nothing to say.
    Is(fn(&ModelSpec) -> bool),
    /// This, with a warning that names these words.
    Warns(&'static [&'static str], fn(&ModelSpec) -> bool),
    /// An error that names these words.
    Refused(&'static [&'static str]),
}
pub(crate) use Means::{Is, Refused, Warns};

pub(crate) const LLAMA: &str = "LlamaForCausalLM";
pub(crate) const MISTRAL: &str = "MistralForCausalLM";
pub(crate) const PHI3: &str = "Phi3ForCausalLM";
pub(crate) const QWEN2: &str = "Qwen2ForCausalLM";
pub(crate) const QWEN3: &str = "Qwen3ForCausalLM";
pub(crate) const PANGU: &str = "PanguEmbeddedForCausalLM";

/// The small valid config with changes; a value of `"-"` takes the key out.
pub(crate) fn variant(architecture: &str, changes: &Value) -> Value {
    let mut config = config(architecture);
    config.as_object_mut().unwrap().remove("model_type");
    for (key, value) in changes.as_object().unwrap() {
        match value.as_str() {
            Some("-") => drop(config.as_object_mut().unwrap().remove(key)),
            _ => config[key] = value.clone(),
        }
    }
    config
}

pub(crate) fn check(rows: Vec<(&str, Value, Means)>) {
    for (architecture, changes, means) in rows {
        let read = read_model_config(&variant(architecture, &changes));
        let at = format!("{architecture} {changes}");
        let names = |text: &str, words: &[&str]| {
            for word in words {
                assert!(text.contains(word), "{at}: {word:?} is not in {text:?}");
            }
        };
        match (read, means) {
            (Ok(Reading { spec, warnings }), Is(holds)) => {
                assert!(holds(&spec), "{at}: {spec:?}");
                assert!(warnings.is_empty(), "{at}: {warnings:?}");
            }
            (Ok(Reading { spec, warnings }), Warns(words, holds)) => {
                assert!(holds(&spec), "{at}: {spec:?}");
                names(&warnings.join("\n"), words);
            }
            (Err(error), Refused(words)) => names(&error.to_string(), words),
            (Ok(reading), Refused(_)) => panic!("{at} was accepted: {reading:?}"),
            (Err(error), _) => panic!("{at}: {error}"),
        }
    }
}

pub(crate) fn linear(spec: &ModelSpec, by: f64) -> bool {
    spec.rope.scaling == RopeScaling::Linear { factor: by }
}

/// The length before scaling of yarn and llama3.
pub(crate) fn original(spec: &ModelSpec) -> f64 {
    match spec.rope.scaling {
        RopeScaling::Yarn { original_max_position_embeddings: original, .. }
        | RopeScaling::Llama3 { original_max_position_embeddings: original, .. } => original,
        _ => f64::NAN,
    }
}

pub(crate) fn yarn_factors(spec: &ModelSpec) -> (f64, f64) {
    match spec.rope.scaling {
        RopeScaling::Yarn { factor, attention_factor, .. } => (factor, attention_factor),
        _ => panic!("no yarn"),
    }
}
