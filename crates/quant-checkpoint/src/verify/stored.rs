//! How the linears of a folder or a plan are stored, and what a rule set says of each.

use std::collections::{BTreeMap, BTreeSet};

use quant_core::{ActRule, FloatType};
use quant_graph::{ActOrder, LinearId, LinearScheme, ModelScheme, ModelSpec};

use super::Severity;
use super::cut::partition;
use super::rules::Checks;
use super::targets::{Cache8, Int8, Kernel, Packed, RuleSet, Target};
use crate::formats::ascend_types::AscendType;
use crate::formats::compressed_tensors_config::Layout;
use crate::formats::{CompressedTensors, Format, VllmAscend, ascend_flatquant};

/// One thing a rule set says of a linear or of the model.
#[derive(Clone, Debug)]
pub(super) struct Remark {
    /// Name of the check it belongs to.
    pub(super) check: &'static str,
    pub(super) severity: Severity,
    pub(super) text: String,
}

impl Remark {
    fn rule(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, severity: Severity::Rule, text: text.into() }
    }
    fn advice(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, severity: Severity::Advice, text: text.into() }
    }
}

/// How every linear is stored, by block and role.
pub(super) enum Stored {
    /// Floats.
    Float,
    /// compressed-tensors; absent is float.
    Layouts(BTreeMap<(usize, LinearId), Layout>),
    /// msmodelslim's layout: the types, whether the cache is C8, and the number of devices that transforms of parts of inputs are for.
    Types(BTreeMap<(usize, LinearId), String>, bool, Option<usize>),
}

impl Stored {
    pub(super) fn of(spec: &ModelSpec, scheme: &ModelScheme, format: &dyn Format) -> Self {
        if format.id() == CompressedTensors.id() {
            let layout = |linear: &LinearScheme| {
                let mut layout = Layout::of(linear)?;
                // An order without groups is not written.
                if layout.weight.group.is_none() {
                    layout.weight.act_order = ActOrder::None;
                }
                Some(layout)
            };
            let layouts = scheme.linears().filter_map(|(i, id, l)| Some(((i, id), layout(l)?)));
            return Self::Layouts(layouts.collect());
        }
        if format.id() == VllmAscend.id() {
            let kind = |i, id| AscendType::at(scheme, i, id).name().to_owned();
            let types = scheme.linears().map(|(i, id, _)| ((i, id), kind(i, id)));
            let types = types.filter(|((i, _), _)| *i < spec.layers).collect();
            return Self::Types(types, scheme.kv.is_some(), ascend_flatquant::devices(scheme));
        }
        Self::Float
    }

    /// Everything the set has to say, with the module it is about (empty for the model).
    pub(super) fn judge(&self, set: &RuleSet, spec: &ModelSpec, say: &mut dyn FnMut(&str, Remark)) {
        match self {
            Self::Float => {}
            Self::Layouts(layouts) => {
                for (&(index, id), layout) in layouts {
                    let module = spec.module(index, id);
                    packed_or_int8(set, spec, id, layout, &mut |remark| say(&module, remark));
                }
            }
            Self::Types(types, cache, _) => {
                for (&(index, id), kind) in types {
                    let module = spec.module(index, id);
                    ascend_type(set, kind, &mut |remark| say(&module, remark));
                }
                if *cache {
                    cache8(set, spec, &mut |remark| say("", remark));
                }
            }
        }
    }

    /// The same as checks of a folder, with what is said where nothing is wrong.
    pub(super) fn checks(&self, set: &RuleSet, spec: &ModelSpec, checks: &mut Checks) {
        let mut found: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        self.judge(set, spec, &mut |module, remark| {
            let text = if module.is_empty() { remark.text } else { format!("{module}: {}", remark.text) };
            found.entry(remark.check).or_default().push(text);
        });
        let mut take = |name: &str| found.remove(name).unwrap_or_default();
        match self {
            Self::Float => {}
            Self::Layouts(_) => {
                checks.rule("weight-schemes", take("weight-schemes"), "every weight has a kernel");
                if let Packed::Kernels(kernels) = set.packed {
                    let fast = kernels.iter().find(|k| k.fast).map_or("fast", |k| k.name);
                    let passed = format!(
                        "every packed weight fits the {fast} kernel of {} {}",
                        kernel_owner(set),
                        set.versions()
                    );
                    checks.advice("marlin", take("marlin"), passed);
                }
                checks.rule(
                    "activation-schemes",
                    take("activation-schemes"),
                    "every activation has a kernel",
                );
                if set.unwise.is_some() {
                    checks.advice(
                        "static-activations",
                        take("static-activations"),
                        "none that it mishandles",
                    );
                }
                checks.rule("act-order", take("act-order"), "no order the loader cannot follow");
            }
            Self::Types(types, _, _) => {
                let kinds: BTreeSet<&str> = types.values().map(String::as_str).collect();
                let passed = format!("types {}", kinds.into_iter().collect::<Vec<_>>().join(", "));
                checks.rule("known-types", take("known-types"), passed);
                if set.target == Target::VllmAscend {
                    checks.advice("310p", take("310p"), "every type is loaded on 310P too");
                }
                checks.rule("kv-cache-loaded", take("kv-cache"), "the cache is one that is loaded");
                checks.advice("kv-layers", take("kv-layers"), "the cache is alike in every block");
            }
        }
    }
}

/// Whether a kernel has the width, symmetry, group size and number type of a linear.
fn fits(kernel: &Kernel, spec: &ModelSpec, layout: &Layout) -> bool {
    let weight = layout.weight;
    let widths = if weight.symmetric { kernel.symmetric } else { kernel.asymmetric };
    widths.contains(&weight.bits.get())
        && weight.group.is_none_or(|g| kernel.groups.is_none_or(|groups| groups.contains(&g)))
        && (!kernel.float16 || spec.dtype == FloatType::F16)
}

/// Whether a kernel also has the shape of a linear on one of `n` devices.
pub(super) fn takes(kernel: &Kernel, spec: &ModelSpec, id: LinearId, layout: &Layout, n: usize) -> bool {
    let (inputs, outputs) = partition(spec, id, n);
    fits(kernel, spec, layout)
        && inputs.is_multiple_of(kernel.inputs)
        && outputs.is_multiple_of(kernel.outputs)
}

/// A linear of compressed-tensors.
fn packed_or_int8(
    set: &RuleSet,
    spec: &ModelSpec,
    id: LinearId,
    layout: &Layout,
    say: &mut dyn FnMut(Remark),
) {
    let weight = layout.weight;
    let (columns, bits) = (spec.site_width(id.site()), weight.bits.get());
    order(set, layout, say);
    if let Some(group) = weight.group.filter(|g| !columns.is_multiple_of(*g)) {
        return say(Remark::rule(
            "weight-schemes",
            format!("groups of {group} do not divide {columns} inputs"),
        ));
    }
    if layout.scheme.input.is_some() {
        return int8(set, layout, say);
    }
    let kernels = match set.packed {
        Packed::Unpacked => return,
        Packed::Refused => return say(Remark::rule("weight-schemes", "weight-only linears are not loaded")),
        Packed::Kernels(kernels) => kernels,
    };
    if layout.per_tensor {
        let text = "one scale per tensor; packed weights want channels or groups";
        return say(Remark::rule("weight-schemes", text));
    }
    let symmetry = if weight.symmetric { "symmetric" } else { "asymmetric" };
    let group = weight.group.map_or_else(|| "whole channels".to_owned(), |g| format!("groups of {g}"));
    let (name, versions) = (kernel_owner(set), set.versions());
    let Some(kernel) = kernels.iter().find(|k| takes(k, spec, id, layout, 1)) else {
        let text = match kernels.iter().find(|k| fits(k, spec, layout)) {
            Some(kernel) => {
                let (inputs, outputs) = partition(spec, id, 1);
                format!(
                    "{} of {name} {versions} wants inputs in multiples of {} and fused outputs in multiples of {}; found {inputs} and {outputs}",
                    kernel.name, kernel.inputs, kernel.outputs
                )
            }
            None => format!("no kernel of {name} {versions} for {bits}-bit {symmetry} weights in {group}"),
        };
        return say(Remark::rule("weight-schemes", text));
    };
    if !kernel.fast {
        let fast = kernels.iter().find(|k| k.fast).map_or("a fast kernel", |k| k.name);
        say(Remark::advice(
            "marlin",
            format!(
                "{symmetry} {bits}-bit weights in {group}: {fast} of {name} {versions} does not take them, {} does",
                kernel.name
            ),
        ));
    }
}

/// The program whose kernels are meant.
fn kernel_owner(set: &RuleSet) -> &'static str {
    if set.target == Target::Vllm { "vLLM" } else { set.target.name() }
}

fn order(set: &RuleSet, layout: &Layout, say: &mut dyn FnMut(Remark)) {
    if layout.weight.act_order != ActOrder::Dynamic {
        // Of weight-only linears it is said that they are not loaded at all.
        let loadable = layout.scheme.input.is_some() && matches!(set.packed, Packed::Refused);
        if layout.weight.act_order == ActOrder::Static && loadable {
            say(Remark::rule("act-order", "actorder is not loaded"));
        }
        return;
    }
    let taken = set.group_index.is_none_or(|groups| layout.weight.group.is_some_and(|g| groups.contains(&g)));
    if !taken {
        let text = format!(
            "actorder group (weight_g_idx) is not loaded by {} {}{}",
            set.target,
            set.versions(),
            if set.target == Target::Transformers { "; its library refuses it since 0.19" } else { "" }
        );
        say(Remark::rule("act-order", text));
    } else if layout.storage == crate::formats::compressed_tensors_config::Storage::Int {
        say(Remark::rule("act-order", "actorder group needs packed weights"));
    }
}

/// An 8-bit linear with an 8-bit input.
fn int8(set: &RuleSet, layout: &Layout, say: &mut dyn FnMut(Remark)) {
    let (weight, Some(input)) = (layout.weight, layout.scheme.input) else { return };
    // The library executes whatever the arguments say.
    if matches!(set.packed, Packed::Unpacked) {
        return;
    }
    let bits = weight.bits.get();
    let problem = if bits != 8 {
        Some(format!("{bits}-bit weights with quantised activations; 8 are wanted"))
    } else if weight.group.is_some() {
        Some("groups with quantised activations; one scale per channel is wanted".to_owned())
    } else if !weight.symmetric {
        Some("asymmetric weights with quantised activations".to_owned())
    } else if layout.per_tensor && matches!(set.packed, Packed::Refused) {
        Some("one scale per tensor; channels are wanted".to_owned())
    } else {
        None
    };
    if let Some(problem) = problem {
        say(Remark::rule("weight-schemes", problem));
    }
    if input.bits.get() != 8 {
        say(Remark::rule(
            "activation-schemes",
            format!("{}-bit activations; 8 are wanted", input.bits.get()),
        ));
        return;
    }
    let asymmetric = input.rule == ActRule::Asymmetric;
    let (kind, text) = match (input.dynamic, asymmetric) {
        (true, false) => (Int8::Dynamic, "dynamic symmetric activations"),
        (true, true) => (Int8::DynamicAsymmetric, "dynamic asymmetric activations"),
        (false, false) => (Int8::Static, "static symmetric activations"),
        (false, true) => (Int8::StaticAsymmetric, "static asymmetric activations"),
    };
    if set.int8.is_some_and(|kinds| !kinds.contains(&kind)) {
        say(Remark::rule("activation-schemes", format!("{text} are not loaded")));
    } else if let Some((_, why)) = set.unwise.filter(|(unwise, _)| *unwise == kind) {
        say(Remark::advice("static-activations", format!("{text}: {why}")));
    }
}

/// A type of msmodelslim's layout.
fn ascend_type(set: &RuleSet, kind: &str, say: &mut dyn FnMut(Remark)) {
    if !set.types.contains(&kind) {
        let text = format!("the type {kind} is not loaded by {} {}", set.target, set.versions());
        return say(Remark::rule("known-types", text));
    }
    // A smaller device of the same plugin.
    if set.target == Target::VllmAscend
        && !["FLOAT", "W8A8", "W8A8_DYNAMIC", "W8A8S", "W8A8SC"].contains(&kind)
    {
        say(Remark::advice(
            "310p",
            format!("the type {kind} is not loaded on 310P, which has W8A8 and W8A8_DYNAMIC"),
        ));
    }
}

/// An 8-bit cache of msmodelslim's layout.
fn cache8(set: &RuleSet, spec: &ModelSpec, say: &mut dyn FnMut(Remark)) {
    match set.cache8 {
        Cache8::Refused => say(Remark::rule(
            "kv-cache",
            format!("a C8 cache is not loaded by {} {}", set.target, set.versions()),
        )),
        Cache8::Skipped => say(Remark::advice(
            "kv-layers",
            format!("{} skips the scales of the C8 cache with a warning: its cache is float", set.target),
        )),
        Cache8::Loaded { head_dim } if !spec.head_dim.is_multiple_of(head_dim) => say(Remark::rule(
            "kv-cache",
            format!("a C8 cache wants heads in multiples of {head_dim}; head_dim is {}", spec.head_dim),
        )),
        Cache8::Loaded { .. } => {}
    }
}
