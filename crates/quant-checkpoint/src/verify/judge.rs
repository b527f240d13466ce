//! What a rule set says of a scheme and its shapes: the part of the rules that needs no folder, so that a plan is
//! judged by the same lines as what comes of it.

use quant_graph::{ModelScheme, ModelSpec};
use serde::Serialize;

use super::Severity;
use super::stored::{Remark, Stored};
use super::targets::{Rules, Target};
use crate::formats::{Dequantized, Format};

/// What one target says of a plan.
#[derive(Clone, Debug, Serialize)]
pub struct TargetVerdict {
    /// The program.
    pub target: Target,
    /// Program and versions whose rules were applied (`vllm 0.33`).
    pub rules: String,
    /// Why it cannot load the folder; empty if it can.
    pub problems: Vec<String>,
    /// What to know although it loads.
    pub advice: Vec<String>,
    /// Of 1, 2, 4 and 8 devices, the numbers with which it loads by tensor parallelism.
    pub tensor_parallel: Vec<usize>,
}

impl TargetVerdict {
    /// Whether the target loads the folder.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.problems.is_empty()
    }
    /// Whether it also loads the plan it is the verdict of on `n` devices, any number.
    #[must_use]
    pub fn passes_with(&self, n: usize, spec: &ModelSpec, scheme: &ModelScheme, format: &dyn Format) -> bool {
        let set = Rules::newest(self.target).set();
        self.passes() && Stored::of(spec, scheme, format).parallel(set, spec, n).is_ok()
    }
}

/// Whether it loads, and with how many devices: `vllm 0.33: loads with TP 1, 2`.
impl std::fmt::Display for TargetVerdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.problems.as_slice() {
            [] => write!(f, "{}: {}", self.rules, loads_with(&self.tensor_parallel)),
            problems => write!(f, "{}: does not load: {}", self.rules, problems.join("; ")),
        }
    }
}

/// `loads with TP 1, 2`.
#[must_use]
pub fn loads_with(sizes: &[usize]) -> String {
    if sizes.is_empty() {
        return "loads with no number of devices that was tried".to_owned();
    }
    format!("loads with TP {}", sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))
}

/// The verdict of every target that reads `format` on a model of shape `spec` stored by `scheme`, newest versions, in
/// the order of [`Target::ALL`]. Nothing is read: this is what `plan` prints before the work, and what the same rules
/// say of the finished folder.
#[must_use]
pub fn judge_plan(spec: &ModelSpec, scheme: &ModelScheme, format: &dyn Format) -> Vec<TargetVerdict> {
    Rules::reading(format.id()).map(|rules| judge(rules, spec, scheme, format)).collect()
}

/// The verdict of one target in one version; see [`judge_plan`].
#[must_use]
pub fn judge(rules: Rules, spec: &ModelSpec, scheme: &ModelScheme, format: &dyn Format) -> TargetVerdict {
    let set = rules.set();
    let mut found = Found::default();
    let stored = Stored::of(spec, scheme, format);
    if set.formats.contains(&format.id()) {
        stored.judge(set, spec, &mut |module, remark| found.add(module, remark));
    } else {
        found.problems.push((format!("the format {} is not read", format.id()), String::new(), 1));
    }
    if scheme.online.iter().any(|online| !online.is_empty()) && format.id() == Dequantized.id() {
        let text =
            "the transforms that run with the model are not applied there: it would compute another model";
        found.problems.push((text.to_owned(), String::new(), 1));
    }
    if format.id() == Dequantized.id()
        && (scheme.kv.is_some() || scheme.linears().any(|(_, _, l)| l.input.is_some()))
    {
        found.advice.push((
            "activation and cache quantisers are not applied there".to_owned(),
            String::new(),
            1,
        ));
    }
    let tensor_parallel =
        if found.problems.is_empty() { stored.tensor_parallel(set, spec) } else { Vec::new() };
    if found.problems.is_empty() && tensor_parallel.is_empty() {
        let why = stored.parallel(set, spec, 1).err().unwrap_or_default();
        found.problems.push((why, String::new(), 1));
    }
    TargetVerdict {
        target: rules.target(),
        rules: rules.to_string(),
        problems: Found::texts(found.problems),
        advice: Found::texts(found.advice),
        tensor_parallel,
    }
}

/// Remarks gathered, equal ones counted.
#[derive(Default)]
struct Found {
    problems: Vec<(String, String, usize)>,
    advice: Vec<(String, String, usize)>,
}

impl Found {
    fn add(&mut self, module: &str, remark: Remark) {
        let list = if remark.severity == Severity::Rule { &mut self.problems } else { &mut self.advice };
        match list.iter_mut().find(|(text, _, _)| *text == remark.text) {
            Some((_, _, count)) => *count += 1,
            None => list.push((remark.text, module.to_owned(), 1)),
        }
    }
    fn texts(list: Vec<(String, String, usize)>) -> Vec<String> {
        let text = |(text, module, count): (String, String, usize)| match (module.as_str(), count) {
            ("", _) => text,
            (module, 1) => format!("{text} ({module})"),
            (module, n) => format!("{text} ({module} and {} more)", n - 1),
        };
        list.into_iter().map(text).collect()
    }
}
