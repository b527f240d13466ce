//! From folder to folder: plan, run, write, describe.

use crate::PipelineError;
use crate::disk::{DiskPlan, declared, shard_plan};
use crate::events::{Event, Events};
use crate::folder_sink::FolderSink;
use crate::job::{QuantizeJob, QuantizeOutcome, ReadSeconds, WriteSeconds};
use crate::manifest::{self, CalibrationFacts, Origin, Provenance};
use crate::memory::{self, MemoryPlan};
use crate::open::{OpenFolder, open_folder_with, with_threads};
use crate::plan::Plan;
use crate::recipe::Recipe;
use crate::registry::Registry;
use crate::report::{LinearReport, RunReport, peak_memory};
use crate::run::{RunOptions, check_calibration, run};
use crate::serving;
use quant_checkpoint::formats::ConfigNotes;
use quant_checkpoint::{
    Checkpoint, FolderSource, OutputFolder, OutputOptions, TargetVerdict, judge_plan, side_files,
};
use quant_core::{Bytes, ObserverKind};
use quant_data::{CalibrationSpec, LoadOptions, TokenSet};
use quant_graph::{LinearId, LinearScheme, ModelSpec, Outer, Unsupported, WeightForm};
use quant_kernels::return_freed_memory;
use std::path::Path;
use std::time::Instant;

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
    /// Whether activations go to disk.
    pub spill: bool,
    /// What the person should know.
    pub warnings: Vec<String>,
}

impl PreparedJob {
    /// Checks whether the output of `job`, from which this was prepared, can be written to its place, without creating
    /// anything.
    ///
    /// # Errors
    /// Everything that [`OutputFolder::check`] refuses.
    pub fn check_output(&self, job: &QuantizeJob) -> Result<(), PipelineError> {
        Ok(OutputFolder::check(&job.output, &output_options(job, &self.disk))?)
    }
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
    let disk = DiskPlan::new(&folder, &plan, if spill { memory.spilled_to_disk() } else { 0 })?;
    Ok(PreparedJob { folder, plan, verdicts, tokens, memory, disk, spill, warnings })
}

/// How the output of a job is made.
fn output_options(job: &QuantizeJob, disk: &DiskPlan) -> OutputOptions {
    // The recipe's text goes into the output; its file is not needed again.
    let calibration = job.calibration.iter().map(|c| c.path().to_owned()).filter(|path| path.exists());
    let inputs = calibration.chain([job.model.clone()]).collect();
    OutputOptions { force: job.force, inputs, space: disk.peak(), ..OutputOptions::default() }
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
    if !job.force_unsupported && !verdicts.iter().any(TargetVerdict::passes) {
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
    let tokens = quant_data::load(spec, &options, &job.model)?;
    // A tokenised text leaves its small pieces behind, which nothing later has a use for.
    return_freed_memory();
    Ok(tokens)
}

/// Quantises a checkpoint into a folder.
///
/// The output appears at its place only when it is complete; the input is never written to.
///
/// # Errors
/// All of [`PipelineError`].
pub fn quantize(job: &QuantizeJob, events: &mut dyn Events) -> Result<QuantizeOutcome, PipelineError> {
    let started = Instant::now();
    events.event(Event::Phase("reading the model and the data"));
    let prepared = prepare(job)?;
    for warning in &prepared.warnings {
        events.event(Event::Warning(warning.clone()));
    }
    if prepared.spill {
        events.event(Event::Note("activations are kept on disk, to stay within the memory budget"));
    }
    let PreparedJob { folder, plan, verdicts: _, tokens, memory, disk, spill, mut warnings } = prepared;
    check_calibration(&plan, tokens.as_ref())?;
    let mut output = OutputFolder::create(&job.output, &output_options(job, &disk))?;
    let format = job.recipe.format();
    let checkpoint = &folder.checkpoint;
    let declared = declared(&folder, &plan);
    let shards = shard_plan(&folder, &plan)?;
    let output_bytes = shards.total_bytes();
    output.begin_weights(shards)?;
    let input_bytes = checkpoint.total_bytes();
    let mut source =
        FolderSource::open_with(folder.reopen()?, plan.spec.clone(), job.recipe.registry().formats())?;
    let run_options_spill = spill.then(|| output.partial().to_owned());
    let mut sink = FolderSink::new(&plan, &mut output, Some(checkpoint), &declared);
    let report = with_threads(job.threads, |par| {
        let options = RunOptions { par, spill: run_options_spill };
        run(&plan, &mut source, tokens.as_ref(), &mut sink, events, &options)
    })??;
    if let Some(warning) = plan.scheme.kv.and_then(|kv| report.cache_warning(&kv, plan.key_bias())) {
        events.event(Event::Warning(warning.clone()));
        warnings.push(warning);
    }
    let (side, copied) = sink.into_parts();
    let go_on =
        |events: &dyn Events| if events.cancelled() { Err(PipelineError::Interrupted) } else { Ok(()) };
    let hashes = output.end_weights()?.clone();
    let beside = side_files(&job.model)?;
    for name in &beside.copied {
        output.copy_file(&job.model.join(name), name)?;
    }
    let config = format.config(&plan.stored, &plan.scheme, checkpoint.config(), &notes(&job.recipe));
    output.write_file("config.json", &manifest::pretty(&config))?;
    for (name, bytes) in format.side_files(&plan.stored, &plan.scheme, &declared, &side) {
        output.write_file(&name, &bytes)?;
    }
    let (read_from, mut input_hashes) = source.into_parts();
    let read = read_from.read_stats();
    for (from, to) in copied {
        if let Some(hash) = hashes.get(to) {
            // Copied byte for byte, so the hash is the same on both sides.
            input_hashes.insert(from.to_owned(), *hash);
        }
    }
    let weights: Vec<(f64, f64)> = report
        .linears
        .iter()
        .map(|l| {
            let size = manifest::linear_size(&plan, l);
            (size * l.bits_per_weight, size)
        })
        .collect();
    let total: f64 = weights.iter().map(|w| w.1).sum();
    let bits_per_weight = weights.iter().map(|w| w.0).sum::<f64>() / total.max(1.0);
    let compact_bytes = compact_bytes(&plan, &report, checkpoint, input_bytes);
    let custom_code = config.get("auto_map").is_some_and(|map| !map.is_null());
    let mut outcome = QuantizeOutcome {
        output: job.output.clone(),
        format: format.id(),
        run: report,
        bits_per_weight,
        bytes: 0,
        input_bytes,
        compact_bytes,
        seconds: started.elapsed().as_secs_f64(),
        read: ReadSeconds { read: read.read_s, hash: read.hash_s },
        write: WriteSeconds::default(),
        predicted_memory: memory.peak(spill),
        peak_memory: peak_memory(),
        spilled: spill,
        calibration: tokens.as_ref().map(TokenSet::describe),
        not_copied: beside.left,
        serve: serving::commands(&plan, &job.output.to_string_lossy(), custom_code),
        warnings,
    };
    let provenance = Provenance {
        job,
        plan: &plan,
        outcome: &outcome,
        input_hashes,
        output_hashes: &hashes,
        output_bytes,
        origin: &Origin::of(&job.model, checkpoint.config()),
        calibration: tokens.as_ref().map(CalibrationFacts::of),
        custom_code,
    };
    for (name, bytes) in provenance.files() {
        output.write_file(name, &bytes)?;
    }
    go_on(events)?;
    let finished = output.finish()?;
    outcome.bytes = finished.files.iter().filter(|f| f.name.ends_with(".safetensors")).map(|f| f.bytes).sum();
    outcome.write = finished.stats.into();
    outcome.seconds = started.elapsed().as_secs_f64();
    outcome.peak_memory = peak_memory();
    if let Some(leftover) = finished.leftover {
        events.event(Event::Warning(leftover.to_string()));
        outcome.warnings.push(leftover.to_string());
    }
    Ok(outcome)
}

/// Bytes of the weights of a folder in which those that no format packs, and the rounded ones beside them, are stored bit by bit;
/// none where there are no such weights.
fn compact_bytes(plan: &Plan, report: &RunReport, input: &Checkpoint, input_bytes: u64) -> Option<u64> {
    let unpacked = |(_, _, linear): (usize, LinearId, &LinearScheme)| {
        linear.weight.is_some_and(|w| matches!(w.form, WeightForm::MixedInteger | WeightForm::BinaryResidual))
    };
    plan.scheme.linears().any(unpacked).then(|| {
        let rounded = || report.linears.iter().filter(|l| l.method.is_some());
        let before = |l: &LinearReport| input.get(&format!("{}.weight", l.module)).map_or(0, |t| t.bytes());
        // A head that is tied no more is the embedding once more, unless it is rounded too.
        let copied = plan.spec.tied && !plan.stored.tied && !plan.tables.contains_key(&Outer::Head);
        let copied = input.get(ModelSpec::EMBEDDING).filter(|_| copied).map_or(0, |t| t.bytes());
        input_bytes.saturating_sub(rounded().map(before).sum())
            + copied
            + rounded().map(|l| l.stored_bytes).sum::<u64>()
    })
}

/// How ranges were found, for the formats that record it.
fn notes(recipe: &Recipe) -> ConfigNotes {
    let weights = if recipe.rounding().weights().clip.is_some() { "mse" } else { "memoryless_minmax" };
    let inputs = match recipe.activations().observer {
        ObserverKind::Minmax => "minmax",
        ObserverKind::Percentile => "percentile",
        ObserverKind::Mse => "mse",
    };
    ConfigNotes { weight_observer: weights.into(), input_observer: inputs.into() }
}

/// Whether a path names a recipe file; otherwise it is a preset.
///
/// # Errors
/// A file that cannot be read, or a recipe that is wrong.
pub fn read_recipe(argument: &str) -> Result<Recipe, PipelineError> {
    read_recipe_with(argument, &Registry::default())
}

/// The same for a recipe, or the name of one, that is read with `registry`.
///
/// # Errors
/// As [`read_recipe`].
pub fn read_recipe_with(argument: &str, registry: &Registry) -> Result<Recipe, PipelineError> {
    let path = Path::new(argument);
    if path.is_file() {
        return Recipe::from_file_with(path, registry);
    }
    // The name of a preset is one even where a folder is called the same.
    if path.is_dir() && registry.presets().get(argument).is_none() {
        return Err(PipelineError::Usage(format!(
            "--recipe {argument}: is a folder; give a YAML file or the name of a preset (`ptq list`)"
        )));
    }
    if argument.contains(['/', '.']) {
        return Err(PipelineError::Usage(format!(
            "--recipe {argument}: the file is missing; give a YAML file that is there, or the name of a preset (`ptq list`)"
        )));
    }
    Ok(Recipe::from_preset_with(argument, registry)?)
}
