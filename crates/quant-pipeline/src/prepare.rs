//! A job that has been checked, before any work.

use crate::PipelineError;
use crate::disk::DiskPlan;
use crate::job::QuantizeJob;
use crate::keeping::Keeping;
use crate::memory::{self, MemoryPlan};
use crate::open::{OpenFolder, open_folder_with};
use crate::plan::Plan;
use crate::shared::text_identity;
use quant_checkpoint::{TargetVerdict, broken_side_files, judge_plan};
use quant_core::Bytes;
use quant_data::{CalibrationSpec, LoadOptions, TokenSet};
use quant_graph::{ModelSpec, Outer, Unsupported};
use quant_kernels::return_freed_memory;
use std::sync::Arc;

/// A job that has been checked: nothing has been written and no weight read.
#[derive(Debug)]
pub struct PreparedJob {
    /// The input.
    pub folder: OpenFolder,
    /// What happens to every linear.
    pub plan: Plan,
    /// What every target that reads the format will say of the output.
    pub verdicts: Vec<TargetVerdict>,
    /// Calibration tokens, if the recipe needs any and they were given.
    pub tokens: Option<TokenSet>,
    /// Predicted memory.
    pub memory: MemoryPlan,
    /// Disk the job needs.
    pub disk: DiskPlan,
    /// How it keeps what it takes to go on after a break.
    pub keeping: Keeping,
    /// Whether activations go to disk.
    pub spill: bool,
    /// What the person should know.
    pub warnings: Vec<String>,
}

/// Checks everything about a job that can be checked without reading weights.
///
/// # Errors
/// All of [`PipelineError`] but those of running.
pub fn prepare(job: &QuantizeJob) -> Result<PreparedJob, PipelineError> {
    let folder = open_folder_with(&job.model, job.recipe.registry())?;
    if let Some(format) = folder.format {
        return Err(PipelineError::QuantisedAlready { path: job.model.clone(), format: format.id() });
    }
    let plan = Plan::new(&job.recipe, &folder.spec)?;
    let mut warnings = folder.warnings.clone();
    warnings.extend(plan.warnings.iter().cloned());
    let broken = broken_side_files(&job.model).into_iter();
    warnings.extend(
        broken
            .map(|what| format!("{what}; it is copied as it is, and what loads the output will fail on it")),
    );
    let verdicts = judge_plan(&plan.spec, &plan.scheme, plan.recipe.format());
    warnings.extend(check_targets(&verdicts, &plan, job)?);
    let tokens = match &job.calibration {
        Some(_) if !plan.streams.calibration() => {
            warnings.push("this recipe needs no calibration data; --calibration is not read".into());
            None
        }
        Some(spec) => Some(load_tokens(job, spec, &folder.spec)?),
        None => None,
    };
    if let Some(tokens) = &tokens {
        warnings.extend(tokens.warnings.iter().cloned());
        warnings.extend(too_few_tokens(&plan, tokens.tokens()));
        if let Some(learner) = plan.recipe.learner().filter(|_| plan.learned.contains(&true)) {
            let checked = learner.check_sequences(tokens.sequences.len());
            warnings.extend(checked.map_err(PipelineError::method("the calibration data"))?);
        }
    }
    let lengths: Vec<usize> = tokens.iter().flat_map(|t| t.sequences.iter().map(Vec::len)).collect();
    let text_bytes = tokens.as_ref().map_or(0, |t| t.longest_text as u64);
    let memory = memory::predict(&plan, &lengths, text_bytes, job.threads);
    let spill = match job.memory {
        Some(allowed) if memory.bound(false) > allowed => {
            if memory.bound(true) > allowed {
                return Err(PipelineError::Memory {
                    needed: Bytes(memory.bound(true)),
                    allowed: Bytes(allowed),
                    advice: memory.advice(),
                });
            }
            true
        }
        _ => false,
    };
    let keeping = Keeping::new(&plan, lengths.iter().sum());
    let disk = DiskPlan::new(&folder, &plan, if spill { memory.spilled_to_disk() } else { 0 }, keeping)?;
    Ok(PreparedJob { folder, plan, verdicts, tokens, memory, disk, keeping, spill, warnings })
}

/// Refuses what no target loads; what some do not load is a warning, as is what they load and should not be given.
fn check_targets(
    verdicts: &[TargetVerdict],
    plan: &Plan,
    job: &QuantizeJob,
) -> Result<Vec<String>, PipelineError> {
    let format = plan.recipe.format();
    let all = || verdicts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if verdicts.is_empty() && job.tensor_parallel.is_none() {
        // A format from outside has its own readers.
        return Ok(vec![format!("no program whose rules are known here reads the format {}", format.id())]);
    }
    // Transforms that run online are for `ptq eval`; the format that holds them was asked for by that.
    let simulated = !plan.scheme.online.is_empty();
    if !job.force_unsupported && !simulated && !verdicts.iter().any(TargetVerdict::passes) {
        let what = format!("this model by this recipe in a form that is loaded anywhere ({})", all());
        let alternatives =
            "change the scheme, export to dequantized, or write it all the same with --force-unsupported";
        return Err(Unsupported { format: format.id(), what, alternatives: alternatives.into() }.into());
    }
    if let Some(n) = job.tensor_parallel
        && !verdicts.iter().any(|v| v.passes_with(n, &plan.spec, &plan.scheme, format))
    {
        let what = format!("this model by this recipe for tensor parallelism over {n} devices ({})", all());
        let alternatives = "use smaller groups or whole channels, or fewer devices";
        return Err(Unsupported { format: format.id(), what, alternatives: alternatives.into() }.into());
    }
    let failing = verdicts.iter().filter(|v| !v.passes()).map(ToString::to_string);
    let advised = verdicts.iter().filter(|v| v.passes());
    let advised = advised.flat_map(|v| v.advice.iter().map(move |a| format!("{}: {a}", v.rules)));
    Ok(failing.chain(advised).collect())
}

/// What the person should know where calibration has fewer tokens than a planned linear has inputs: its second moments
/// cannot have full rank, and ranges rest on little. Methods may want more.
fn too_few_tokens(plan: &Plan, tokens: usize) -> Option<String> {
    let linears = plan.blocks.iter().flatten();
    let linears = linears.filter_map(|(id, linear)| {
        Some((plan.spec.site_width(id.site()), &*linear.module, linear.solver()?))
    });
    let head = plan.tables.get(&Outer::Head);
    let head = head.map(|head| (plan.spec.hidden, Outer::Head.module(), &*head.solver));
    let wanted = linears
        .chain(head)
        .map(|(inputs, module, solver)| (solver.tokens_wanted(inputs), inputs, module, solver.method().id));
    let (wanted, inputs, module, method) =
        wanted.reduce(|most, next| if next.0 > most.0 { next } else { most }).filter(|w| tokens < w.0)?;
    Some(if tokens < inputs {
        format!(
            "calibration has {tokens} tokens, fewer than the {inputs} inputs of {module}: what it measures is uncertain; give \
             more or longer sequences"
        )
    } else {
        format!(
            "calibration has {tokens} tokens for the {inputs} inputs of {module}: {method} fits them more than other text with \
             fewer than {wanted}; give more or longer sequences"
        )
    })
}

fn load_tokens(
    job: &QuantizeJob,
    spec: &CalibrationSpec,
    model: &ModelSpec,
) -> Result<TokenSet, PipelineError> {
    let options = LoadOptions {
        num_samples: job.num_samples,
        max_seq_len: job.max_seq_len,
        seed: job.seed,
        vocab_size: model.vocab,
        max_position_embeddings: model.max_position_embeddings,
    };
    let key = || {
        let files = text_identity(&[spec.path().to_owned()], &job.model)?;
        Ok::<_, PipelineError>(format!("calibration {spec}: {options:?}; {files}"))
    };
    let bytes = |tokens: &TokenSet| 4 * tokens.tokens() as u64;
    let tokens = job.shared.or_make(key, bytes, || Ok(quant_data::load(spec, &options, &job.model)?))?;
    // A tokenised text leaves its small pieces behind, which nothing later has a use for.
    return_freed_memory();
    Ok(Arc::unwrap_or_clone(tokens))
}
