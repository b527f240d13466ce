//! What a loader would say to a folder, before it is shipped to one.
//!
//! [`verify`] applies the rules of one loader: names, types and shapes of every tensor, fused layers of one type,
//! entries for embeddings and head, stray files; and it dequantises every block. A rule that fails is a failed
//! [`Check`] with the modules to blame; an error is only returned for a folder that cannot be opened at all.
//!
//! Which program in which version loads what is a table, [`targets`]; [`judge_plan`] applies the same table to a plan,
//! before there is a folder. [`verify_all`] without targets gives one verdict for each that reads the folder's format.
//! Where a folder has a manifest of this program, every tensor is also hashed and compared with it, whatever the target.

mod ascend;
mod compressed;
mod cut;
mod flatquant;
mod judge;
mod parallel;
mod plain;
mod rules;
mod stored;
pub mod targets;

use std::path::Path;

use quant_graph::ModelSpec;
use serde::Serialize;

pub use self::judge::{TargetVerdict, judge, judge_plan, loads_with};
pub use self::parallel::TENSOR_PARALLEL;
use self::rules::Checks;
pub use self::targets::{Rules, Target, TargetError, UnknownTarget};
use crate::copy::broken_side_files;
use crate::error::Result;
use crate::formats::{self, CompressedTensors, Dequantized, Format, Formats, VllmAscend, ascend_description};
use crate::source::{Checkpoint, has_weights, older_prefix};

/// What a failed check means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The loader refuses the folder or computes something else.
    Rule,
    /// It loads; something could be better, or should be known.
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
    /// Program and versions whose rules were applied (`vllm 0.26-0.28`).
    pub rules: String,
    /// Said where there are no rules for the version that was asked for.
    pub notice: Option<String>,
    /// Id of the format of the folder, `float` for none.
    pub format: &'static str,
    /// Tensors in the folder.
    pub tensors: usize,
    /// Bytes of these tensors.
    pub bytes: u64,
    /// Of [`TENSOR_PARALLEL`], the numbers of devices it loads on; empty if it does not load.
    pub tensor_parallel: Vec<usize>,
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

/// Applies the rules of a target to the folder `dir`, which holds a model of shape `spec`: of its newest version, or of
/// the one that [`Rules`] names. Blocks are read one at a time.
///
/// # Errors
/// What [`Checkpoint::open`] can give; faults found after that are failed checks.
pub fn verify(dir: impl AsRef<Path>, spec: &ModelSpec, rules: impl Into<Rules>) -> Result<VerifyReport> {
    verify_with(dir, spec, rules, &Formats::default())
}

/// The same for a folder of one of `formats`. What a loader thinks of a format from outside is that it does not read it; its
/// tensors and blocks are checked all the same.
///
/// # Errors
/// As [`verify`].
pub fn verify_with(
    dir: impl AsRef<Path>,
    spec: &ModelSpec,
    rules: impl Into<Rules>,
    formats: &Formats,
) -> Result<VerifyReport> {
    let folder = Folder::open(dir.as_ref(), spec, formats)?;
    Ok(folder.report(rules.into(), None, &folder.common()))
}

/// As [`verify`] for several targets, reading the weights once: those given, or without any the newest version of every
/// target that reads the folder's format. With `tensor_parallel`, loading on that many devices is a rule.
///
/// # Errors
/// As [`verify`].
pub fn verify_all(
    dir: impl AsRef<Path>,
    spec: &ModelSpec,
    rules: &[Rules],
    tensor_parallel: Option<usize>,
) -> Result<Vec<VerifyReport>> {
    verify_all_with(dir, spec, rules, tensor_parallel, &Formats::default())
}

/// The same for a folder of one of `formats`, by every target where no target reads its format.
///
/// # Errors
/// As [`verify`].
pub fn verify_all_with(
    dir: impl AsRef<Path>,
    spec: &ModelSpec,
    rules: &[Rules],
    tensor_parallel: Option<usize>,
    formats: &Formats,
) -> Result<Vec<VerifyReport>> {
    let folder = Folder::open(dir.as_ref(), spec, formats)?;
    let common = folder.common();
    let mut reading: Vec<Rules>;
    let rules = if rules.is_empty() {
        // A float folder is what a dequantised one is to its clients.
        reading = Rules::reading(folder.format.map_or(Dequantized.id(), |f| f.id())).collect();
        if reading.is_empty() {
            reading = Target::ALL.into_iter().map(Rules::newest).collect();
        }
        &reading
    } else {
        rules
    };
    Ok(rules.iter().map(|rules| folder.report(*rules, tensor_parallel, &common)).collect())
}

/// What is wrong with the numbers of the folder `dir`, a model of shape `spec` that this program wrote: what [`verify`] says of them
/// whoever loads them, and of a folder that cannot be opened why not. Every tensor has the hash of the manifest where this is empty.
#[must_use]
pub fn damage(dir: &Path, spec: &ModelSpec, formats: &Formats) -> Vec<String> {
    let folder = match Folder::open(dir, spec, formats) {
        Ok(folder) => folder,
        Err(error) => return vec![error.to_string()],
    };
    let failed = folder.content().into_iter().filter(|c| !c.passed && c.severity == Severity::Rule);
    failed.map(|check| check.detail).collect()
}

/// A folder opened for its verdicts.
struct Folder<'a> {
    checkpoint: Checkpoint,
    spec: &'a ModelSpec,
    format: Option<&'static dyn Format>,
}

impl<'a> Folder<'a> {
    fn open(dir: &Path, spec: &'a ModelSpec, formats: &Formats) -> Result<Self> {
        let checkpoint = open_as_loaded(dir)?;
        let format = formats::detect_with(&checkpoint, formats);
        Ok(Self { checkpoint, spec, format })
    }
    /// Its format, if that is none of this crate.
    fn outside(&self) -> Option<&'static dyn Format> {
        self.format.filter(|f| formats::format(f.id()).is_none())
    }
    fn is(&self, format: &dyn Format) -> bool {
        self.format.is_some_and(|f| f.id() == format.id())
    }

    /// What is true of the folder, whoever loads it.
    fn common(&self) -> Vec<Check> {
        let mut checks = Checks::default();
        let broken = broken_side_files(self.checkpoint.path());
        checks.rule("side-files", broken, "the JSON files of tokenizer and generation can be read");
        checks.add(&self.content());
        checks.finish()
    }

    /// What is true of the numbers.
    fn content(&self) -> Vec<Check> {
        let (checkpoint, spec) = (&self.checkpoint, self.spec);
        let mut checks = Checks::default();
        rules::stray_files(&mut checks, checkpoint, spec);
        if self.is(&CompressedTensors) {
            compressed::content(checkpoint, spec, &mut checks);
        } else if self.is(&VllmAscend) {
            ascend::content(checkpoint, spec, &mut checks);
        } else {
            plain::content(checkpoint, spec, self.outside(), &mut checks);
        }
        rules::manifest(&mut checks, checkpoint);
        checks.finish()
    }

    fn report(&self, rules: Rules, tensor_parallel: Option<usize>, common: &[Check]) -> VerifyReport {
        let (checkpoint, spec, set) = (&self.checkpoint, self.spec, rules.set());
        let mut checks = Checks::default();
        let ascend = set.formats.contains(&VllmAscend.id());
        let stored = if let Some(format) = self.outside() {
            let problem = format!("the format {} is not read by {rules}", format.id());
            checks.rule("format", vec![problem], "");
            rules::tensors(&mut checks, checkpoint, spec, format.expected(checkpoint, spec));
            None
        } else if self.is(&CompressedTensors) {
            compressed::check(checkpoint, spec, set, &mut checks)
        } else if ascend {
            // Anything else is to have a description; that there is none is the first thing said.
            ascend::check(checkpoint, spec, set, &mut checks)
        } else if self.is(&VllmAscend) {
            let problem = format!(
                "the folder has a {} and no compressed-tensors section: {} would take its int8 weights for \
                 floats; verify it for vllm-ascend",
                ascend_description::FILE,
                rules.target()
            );
            checks.rule("quantization-config", vec![problem], "");
            None
        } else {
            Some(plain::check(checkpoint, spec, rules.target(), self.format.is_some(), &mut checks))
        };
        let mut loads_on = Vec::new();
        if let Some(stored) = stored {
            loads_on = stored.tensor_parallel(set, spec);
            let problem = tensor_parallel.and_then(|n| {
                stored.parallel(set, spec, n).err().map(|why| format!("not with TP {n}: {why}"))
            });
            let sizes: Vec<String> = loads_on.iter().map(usize::to_string).collect();
            let passed = format!("heads and groups can be cut for TP {}", sizes.join(", "));
            checks.rule("tensor-parallel", problem.into_iter().collect(), passed);
        }
        checks.add(common);
        let mut report = VerifyReport {
            target: rules.target(),
            rules: rules.to_string(),
            notice: rules.notice(),
            format: self.format.map_or("float", |f| f.id()),
            tensors: checkpoint.tensors().len(),
            bytes: checkpoint.total_bytes(),
            tensor_parallel: loads_on,
            checks: checks.finish(),
        };
        // What is not loaded is not loaded on any number of devices; a requirement of more is no such fault.
        if report.failed().any(|c| c.severity == Severity::Rule && c.name != "tensor-parallel") {
            report.tensor_parallel.clear();
        }
        report
    }
}

/// Opens the weights that belong to the folder's description. In a folder of msmodelslim's layout these are
/// `quant_model_weights*` or, in older ones, `quant_model_weight_<type>*`, whatever else lies there: what does is reported by [`verify`], not read.
///
/// # Errors
/// As [`Checkpoint::open`].
pub fn open_as_loaded(dir: &Path) -> Result<Checkpoint> {
    const WEIGHTS: &str = "quant_model_weights";
    if ascend_description::present(dir) {
        if has_weights(dir, WEIGHTS) {
            return Checkpoint::open_named(dir, WEIGHTS);
        }
        if let Some(older) = older_prefix(dir)? {
            return Checkpoint::open_named(dir, &older);
        }
    }
    Checkpoint::open(dir)
}
