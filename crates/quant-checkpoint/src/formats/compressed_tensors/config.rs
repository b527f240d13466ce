//! `quantization_config` of `config.json`: which linear is stored how.

use std::collections::BTreeMap;

use quant_core::{ActRule, Bits, FloatType};
use quant_graph::{
    ActOrder, Clipping, InputScheme, LinearScheme, LinearSpec, ModelSpec, WeightForm, WeightScheme,
};
use regex::Regex;
use safetensors::Dtype;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::ID;
use crate::error::{CheckpointError, Result};
use crate::formats::Unsupported;
use crate::formats::bytes::float_dtype;
use crate::formats::layout::{Part, modules};
use crate::source::Checkpoint;

/// Where the section stands, for messages.
pub(crate) const SECTION: &str = "config.json: quantization_config";

pub(crate) fn bad(
    subject: impl Into<String>,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> CheckpointError {
    CheckpointError::bad_format(ID, subject, expected, found)
}

fn unread(what: impl Into<String>) -> CheckpointError {
    CheckpointError::Unsupported(Unsupported {
        format: ID,
        what: format!("{} in a form this program reads", what.into()),
        alternatives:
            "integer weights of 1 to 8 bits per tensor, channel or group, int-quantized or pack-quantized, \
                       are read"
                .to_owned(),
    })
}

/// How a weight is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    /// One int8 per value.
    Int,
    /// Dense in 32-bit words.
    Packed,
}

impl Storage {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Int => "int-quantized",
            Self::Packed => "pack-quantized",
        }
    }
    /// What a scheme is written as: packed where nothing but the weight is quantised.
    pub(crate) fn of(scheme: &LinearScheme) -> Self {
        if scheme.input.is_some() { Self::Int } else { Self::Packed }
    }
}

/// A quantised linear as stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Layout {
    pub(crate) storage: Storage,
    pub(crate) scheme: LinearScheme,
    pub(crate) weight: WeightScheme,
    /// One scale for the whole weight.
    pub(crate) per_tensor: bool,
}

impl Layout {
    /// Of a scheme to be written; none for a float linear.
    pub(crate) fn of(scheme: &LinearScheme) -> Option<Self> {
        let weight = scheme.weight?;
        Some(Self { storage: Storage::of(scheme), scheme: *scheme, weight, per_tensor: false })
    }
    /// Columns of the scales.
    pub(crate) fn groups(&self, columns: usize) -> usize {
        quant_core::Groups::from_size(self.weight.group).count(columns)
    }
    /// The tensors of the linear.
    pub(crate) fn parts(&self, linear: &LinearSpec, model: FloatType) -> Vec<Part> {
        let (out, columns) = (linear.outputs, linear.inputs);
        let (float, groups) = (float_dtype(model), self.groups(columns));
        let words = |count| quant_core::packing::words(count, self.weight.bits);
        let mut parts = Vec::new();
        match self.storage {
            Storage::Int => parts.push(Part::new("weight", Dtype::I8, [out, columns])),
            Storage::Packed => {
                parts.push(Part::new("weight_packed", Dtype::I32, [out, words(columns)]));
                parts.push(Part::new("weight_shape", Dtype::I64, [2]));
            }
        }
        let scales = if self.per_tensor { vec![1] } else { vec![out, groups] };
        parts.push(Part::new("weight_scale", float, scales.clone()));
        if !self.weight.symmetric {
            parts.push(match self.storage {
                Storage::Int => Part::new("weight_zero_point", Dtype::I8, scales),
                Storage::Packed => Part::new("weight_zero_point", Dtype::I32, [words(out), groups]),
            });
        }
        if self.weight.act_order == ActOrder::Dynamic {
            parts.push(Part::new("weight_g_idx", Dtype::I32, [columns]));
        }
        if let Some(input) = self.scheme.input.filter(|i| !i.dynamic) {
            parts.push(Part::new("input_scale", float, [1]));
            if input.rule == ActRule::Asymmetric {
                parts.push(Part::new("input_zero_point", Dtype::I8, [1]));
            }
        }
        if linear.bias {
            parts.push(Part::new("bias", float, [out]));
        }
        parts
    }
}

/// A module name, class name or `re:` pattern.
#[derive(Clone, Debug)]
pub(crate) enum Pattern {
    /// A name: of a module, or of the class of all linears.
    Name(String),
    /// Matched from the beginning of a module's name.
    Regex(Regex),
}

impl Pattern {
    fn parse(text: &str) -> Result<Self> {
        let Some(pattern) = text.strip_prefix("re:") else { return Ok(Self::Name(text.to_owned())) };
        // The library calls `re.match`, which anchors the beginning only.
        let regex = Regex::new(&format!("^(?:{pattern})"))
            .map_err(|e| bad(SECTION, "a pattern without look-around", format!("{text:?}: {e}")))?;
        Ok(Self::Regex(regex))
    }
    /// How precisely it names a linear: 3 by name, 2 by pattern, 1 by class, 0 not at all.
    pub(crate) fn rank(&self, module: &str) -> u8 {
        match self {
            Self::Name(name) if name == module => 3,
            Self::Regex(regex) if regex.is_match(module) => 2,
            Self::Name(name) if name == "Linear" => 1,
            _ => 0,
        }
    }
}

/// `QuantizationArgs`, the fields that matter here.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Args {
    #[serde(default = "Args::bits")]
    pub(crate) num_bits: u32,
    #[serde(default = "Args::kind", rename = "type")]
    pub(crate) kind: String,
    #[serde(default = "Args::yes")]
    pub(crate) symmetric: bool,
    #[serde(default)]
    pub(crate) group_size: Option<i64>,
    #[serde(default)]
    pub(crate) strategy: Option<String>,
    #[serde(default)]
    pub(crate) dynamic: Value,
    #[serde(default)]
    pub(crate) actorder: Option<String>,
}

impl Args {
    fn bits() -> u32 {
        8
    }
    fn kind() -> String {
        "int".to_owned()
    }
    fn yes() -> bool {
        true
    }
    /// The strategy, which follows from the group size where it is absent.
    pub(crate) fn strategy(&self) -> &str {
        match (&self.strategy, self.group_size) {
            (Some(strategy), _) => strategy,
            (None, Some(size)) if size > 0 => "group",
            (None, Some(_)) => "channel",
            (None, None) => "tensor",
        }
    }
    /// Whether parameters are found at run time.
    pub(crate) fn is_dynamic(&self) -> bool {
        matches!(self.dynamic, Value::Bool(true) | Value::String(_))
    }
}

/// One config group.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) targets: Vec<Pattern>,
    pub(crate) format: String,
    pub(crate) weights: Option<Args>,
    pub(crate) inputs: Option<Args>,
    pub(crate) outputs: bool,
}

impl Group {
    /// The layout of the linears of this group.
    pub(crate) fn layout(&self) -> Result<Option<Layout>> {
        let at = || format!("{SECTION}: {}", self.name);
        let Some(weights) = &self.weights else {
            return match self.inputs {
                Some(_) => Err(unread(format!("{}: activations quantised before float weights", self.name))),
                None => Ok(None),
            };
        };
        if self.outputs {
            return Err(unread(format!("{}: output activations", self.name)));
        }
        let storage = match self.format.as_str() {
            "int-quantized" | "naive-quantized" => Storage::Int,
            "pack-quantized" => Storage::Packed,
            other => return Err(unread(format!("{}: the format {other:?}", self.name))),
        };
        if weights.kind != "int" || weights.is_dynamic() {
            return Err(unread(format!("{}: weights that are not static integers", self.name)));
        }
        let bits = |bits| Bits::new(bits).map_err(|_| bad(at(), "1 to 8 bits", bits.to_string()));
        let (group, per_tensor) = match weights.strategy() {
            "channel" => (None, false),
            "tensor" => (None, true),
            "group" => match weights.group_size.and_then(|g| usize::try_from(g).ok()).filter(|g| *g > 0) {
                Some(size) => (Some(size), false),
                None => return Err(bad(at(), "a positive group_size", format!("{:?}", weights.group_size))),
            },
            other => return Err(unread(format!("{}: the weight strategy {other:?}", self.name))),
        };
        let act_order = match weights.actorder.as_deref() {
            None => ActOrder::None,
            Some("weight" | "static") => ActOrder::Static,
            Some("group" | "dynamic") if group.is_some() => ActOrder::Dynamic,
            Some(other) => return Err(bad(at(), "actorder null, static or group", format!("{other:?}"))),
        };
        let weight = WeightScheme {
            bits: bits(weights.num_bits)?,
            symmetric: weights.symmetric,
            group,
            act_order,
            form: WeightForm::Integer,
        };
        let input =
            self.inputs.as_ref().map(|inputs| self.input(inputs, bits(inputs.num_bits)?)).transpose()?;
        Ok(Some(Layout { storage, scheme: LinearScheme { weight: Some(weight), input }, weight, per_tensor }))
    }

    fn input(&self, inputs: &Args, bits: Bits) -> Result<InputScheme> {
        let dynamic = match (inputs.strategy(), inputs.is_dynamic()) {
            ("token", true) => true,
            ("tensor", false) => false,
            (strategy, dynamic) => {
                let what = format!("{}: {strategy} activations, dynamic: {dynamic},", self.name);
                return Err(unread(what));
            }
        };
        if inputs.kind != "int" {
            return Err(unread(format!("{}: {} activations", self.name, inputs.kind)));
        }
        let rule = if inputs.symmetric { ActRule::SymmetricFull } else { ActRule::Asymmetric };
        Ok(InputScheme { bits, rule, dynamic, clip_ratio: Clipping::NONE, shards: 1 })
    }
}

/// The parsed section.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) groups: Vec<Group>,
    pub(crate) ignore: Vec<Pattern>,
    /// The section itself.
    pub(crate) section: Map<String, Value>,
}

impl Config {
    /// The section of a folder that is of this format.
    pub(crate) fn section(checkpoint: &Checkpoint) -> Option<&Map<String, Value>> {
        let section = checkpoint.config().get("quantization_config")?.as_object()?;
        (section.get("quant_method")?.as_str()? == ID).then_some(section)
    }
    /// Parses the section.
    pub(crate) fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let Some(section) = Self::section(checkpoint) else {
            return Err(bad(SECTION, format!("quant_method {ID:?}"), "none"));
        };
        let root = section.get("format").and_then(Value::as_str).unwrap_or("dense");
        let Some(Value::Object(found)) = section.get("config_groups") else {
            return Err(bad(SECTION, "an object config_groups", "none"));
        };
        let patterns = |value: Option<&Value>, at: &str| -> Result<Vec<Pattern>> {
            let list = match value {
                None | Some(Value::Null) => return Ok(Vec::new()),
                Some(value) => {
                    value.as_array().ok_or_else(|| bad(at, "a list of names", value.to_string()))?
                }
            };
            let name = |v: &Value| {
                Pattern::parse(v.as_str().ok_or_else(|| bad(at, "a list of names", v.to_string()))?)
            };
            list.iter().map(name).collect()
        };
        let mut groups = Vec::new();
        for (name, group) in found {
            let at = format!("{SECTION}: {name}");
            let args = |key: &str| match group.get(key) {
                None | Some(Value::Null) => Ok(None),
                Some(value) => Args::deserialize(value)
                    .map(Some)
                    .map_err(|e| bad(format!("{at}: {key}"), "quantisation arguments", e.to_string())),
            };
            groups.push(Group {
                name: name.clone(),
                targets: patterns(group.get("targets"), &at)?,
                format: group.get("format").and_then(Value::as_str).unwrap_or(root).to_owned(),
                weights: args("weights")?,
                inputs: args("input_activations")?,
                outputs: args("output_activations")?.is_some(),
            });
        }
        let ignore = patterns(section.get("ignore"), SECTION)?;
        Ok(Self { groups, ignore, section: section.clone() })
    }
    /// Whether a module is left alone although a group names it.
    pub(crate) fn ignores(&self, module: &str) -> bool {
        self.ignore.iter().any(|p| p.rank(module) > 0)
    }
    /// The group of a linear: the one that names it most precisely, the first among equals.
    pub(crate) fn group(&self, module: &str) -> Option<&Group> {
        if self.ignores(module) {
            return None;
        }
        let rank = |g: &Group| g.targets.iter().map(|p| p.rank(module)).max().unwrap_or(0);
        self.groups.iter().rev().max_by_key(|g| rank(g)).filter(|g| rank(g) > 0)
    }
    /// The layouts of all linears by module; absent means float.
    pub(crate) fn layouts(&self, spec: &ModelSpec) -> Result<BTreeMap<String, Layout>> {
        // Each group is interpreted once, however many linears it has.
        let mut by_group: BTreeMap<&str, Option<Layout>> = BTreeMap::new();
        let mut layouts = BTreeMap::new();
        for module in modules(spec).into_keys() {
            let Some(group) = self.group(&module) else { continue };
            let layout = match by_group.get(group.name.as_str()) {
                Some(layout) => *layout,
                None => *by_group.entry(&group.name).or_insert(group.layout()?),
            };
            if let Some(layout) = layout {
                layouts.insert(module, layout);
            }
        }
        Ok(layouts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beat_patterns_beat_the_class() {
        let pattern = |t: &str| Pattern::parse(t).unwrap();
        let module = "model.layers.0.mlp.down_proj";
        assert_eq!(pattern(module).rank(module), 3);
        assert_eq!(pattern("re:.*down_proj$").rank(module), 2);
        assert_eq!(pattern("re:model\\.layers\\.0\\.mlp").rank(module), 2);
        // `re.match` anchors the beginning.
        assert_eq!(pattern("re:layers").rank(module), 0);
        assert_eq!(pattern("re:a|.*down").rank(module), 2);
        assert_eq!(pattern("Linear").rank(module), 1);
        assert_eq!(pattern("mlp.down_proj").rank(module), 0);
        assert!(Pattern::parse("re:(?!x)y").is_err());
    }

    #[test]
    fn strategies_follow_from_group_sizes() {
        let args = |text: &str| Args::deserialize(&serde_json::from_str::<Value>(text).unwrap()).unwrap();
        for (text, strategy) in
            [("{}", "tensor"), (r#"{"group_size": 32}"#, "group"), (r#"{"group_size": -1}"#, "channel")]
        {
            assert_eq!(args(text).strategy(), strategy);
        }
        assert!(args(r#"{"dynamic": "local"}"#).is_dynamic());
        assert!(!args("{}").is_dynamic());
    }
}
