//! What a loader would say to a folder, before it is shipped to one.
//!
//! [`verify`] applies the rules of one loader: names, types and shapes of every tensor, fused layers of one type,
//! entries for embeddings and head, stray files; and it dequantises every block. A rule that fails is a failed
//! [`Check`] with the modules to blame; an error is only returned for a folder that cannot be opened at all.
//!
//! | target | accepts |
//! |---|---|
//! | `vllm-ascend` | msmodelslim's layout; compressed-tensors of W8A8, symmetric and per channel |
//! | `vllm` | compressed-tensors: W4A16 and W8A16 (per channel or group), W8A8 with symmetric weights; float folders |
//! | `transformers` | compressed-tensors as the library executes it; float folders |
//!
//! Dequantised folders are float folders to every client.
//!
//! The rules of `vllm` describe version [`VLLM_VERSION`]. Where a folder has a manifest of this program, every tensor is also
//! hashed and compared with it, whatever the target.

mod ascend;
mod compressed;
mod plain;
mod rules;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use quant_graph::ModelSpec;
use serde::{Serialize, Serializer};

use self::rules::Checks;
use crate::error::Result;
use crate::formats::{self, CompressedTensors, Format as _, VllmAscend, ascend_description};
use crate::source::Checkpoint;

/// The version of vLLM whose kernels the rules describe.
pub const VLLM_VERSION: &str = "0.11";

/// A program that loads folders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// vLLM with the Ascend plugin.
    VllmAscend,
    /// vLLM.
    Vllm,
    /// transformers, with the compressed-tensors library where the folder needs it.
    Transformers,
}

impl Target {
    /// All targets.
    pub const ALL: [Self; 3] = [Self::VllmAscend, Self::Vllm, Self::Transformers];

    /// The name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::VllmAscend => "vllm-ascend",
            Self::Vllm => "vllm",
            Self::Transformers => "transformers",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A target name that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown target {0:?}: expected vllm-ascend, vllm or transformers")]
pub struct UnknownTarget(pub String);

impl FromStr for Target {
    type Err = UnknownTarget;
    fn from_str(name: &str) -> std::result::Result<Self, UnknownTarget> {
        Self::ALL.into_iter().find(|t| t.name() == name).ok_or_else(|| UnknownTarget(name.to_owned()))
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// What a failed check means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The loader refuses the folder or computes something else.
    Rule,
    /// It loads, a little less accurately than it could.
    Advice,
}

/// One rule applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Short name of the rule.
    pub name: &'static str,
    /// What failing it means.
    pub severity: Severity,
    /// Whether the folder keeps it.
    pub passed: bool,
    /// What was looked at, or what is wrong and where.
    pub detail: String,
}

/// The answer of [`verify`].
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    /// The loader whose rules were applied.
    pub target: Target,
    /// Id of the format of the folder, `float` for none.
    pub format: &'static str,
    /// Tensors in the folder.
    pub tensors: usize,
    /// Bytes of these tensors.
    pub bytes: u64,
    /// The rules, in the order in which they were applied.
    pub checks: Vec<Check>,
}

impl VerifyReport {
    /// Whether every rule is kept; advice does not count.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|c| c.passed || c.severity == Severity::Advice)
    }
    /// The checks that failed, advice included.
    pub fn failed(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|c| !c.passed)
    }
    /// The check of a name, if it was applied.
    #[must_use]
    pub fn check(&self, name: &str) -> Option<&Check> {
        self.checks.iter().find(|c| c.name == name)
    }
}

/// Applies the rules of `target` to the folder `dir`, which holds a model of shape `spec`. Blocks are read one at a
/// time.
///
/// # Errors
/// What [`Checkpoint::open`] can give; faults found after that are failed checks.
pub fn verify(dir: impl AsRef<Path>, spec: &ModelSpec, target: Target) -> Result<VerifyReport> {
    let checkpoint = open_as_loaded(dir.as_ref())?;
    let format = formats::detect(&checkpoint);
    let mut checks = Checks::default();
    match (target, format.map(|f| f.id())) {
        (Target::VllmAscend, Some(id)) if id == CompressedTensors.id() => {
            compressed::check(&checkpoint, spec, target, &mut checks);
        }
        // Anything else is to have a description; that there is none is the first thing said.
        (Target::VllmAscend, _) => ascend::check(&checkpoint, spec, &mut checks),
        (_, Some(id)) if id == CompressedTensors.id() => {
            compressed::check(&checkpoint, spec, target, &mut checks);
        }
        (_, Some(id)) if id == VllmAscend.id() => {
            let problem = format!(
                "the folder has a {} and no compressed-tensors section: {target} would take its int8 weights for \
                 floats; verify it for vllm-ascend",
                ascend_description::FILE
            );
            checks.rule("quantization-config", vec![problem], "");
        }
        (_, format) => plain::check(&checkpoint, spec, target, format.is_some(), &mut checks),
    }
    rules::manifest(&mut checks, &checkpoint);
    Ok(VerifyReport {
        target,
        format: format.map_or("float", |f| f.id()),
        tensors: checkpoint.tensors().len(),
        bytes: checkpoint.total_bytes(),
        checks: checks.finish(),
    })
}

/// Opens the weights that belong to the folder's description. In a folder of msmodelslim's layout these are
/// `quant_model_weights*`, whatever else lies there: what does is reported by [`verify`], not read.
///
/// # Errors
/// As [`Checkpoint::open`].
pub fn open_as_loaded(dir: &Path) -> Result<Checkpoint> {
    let has = |name: &str| dir.join(name).symlink_metadata().is_ok();
    let weights = ["quant_model_weights.safetensors.index.json", "quant_model_weights.safetensors"];
    if has(ascend_description::FILE) && weights.into_iter().any(has) {
        Checkpoint::open_named(dir, "quant_model_weights")
    } else {
        Checkpoint::open(dir)
    }
}
