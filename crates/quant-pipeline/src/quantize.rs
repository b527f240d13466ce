//! From folder to folder: plan, run, write, describe.

use crate::PipelineError;
use crate::disk::{WeightLayout, declared};
use crate::events::{Event, Events};
use crate::folder_sink::{FolderSink, Left};
use crate::identity::identity;
use crate::job::{QuantizeJob, QuantizeOutcome, ReadSeconds, WriteSeconds};
use crate::manifest::{self, CalibrationFacts, Origin, Provenance};
use crate::open::with_threads;
use crate::plan::Plan;
use crate::prepare::{PreparedJob, prepare};
use crate::recipe::Recipe;
use crate::registry::Registry;
use crate::report::{LinearReport, RunReport, peak_memory};
use crate::run::{RunOptions, SharedStatistics, check_calibration, run};
use crate::serving;
use crate::stood::stands;
use quant_checkpoint::formats::ConfigNotes;
use quant_checkpoint::{
    Checkpoint, CheckpointError, Disk, FolderSource, InputHashes, OutputFolder, OutputOptions, Storage,
    Unfinished, side_files,
};
use quant_core::ObserverKind;
use quant_data::TokenSet;
use quant_graph::{LinearId, LinearScheme, ModelSpec, Outer, WeightForm};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

impl PreparedJob {
    /// Checks whether the output of `job`, from which this was prepared, can be written to its place, without creating
    /// anything. True where nothing is to be written: the job is to go on with what it made before, and that is finished.
    ///
    /// # Errors
    /// Everything that [`OutputFolder::check`] refuses; a finished output that is damaged.
    pub fn check_output(&self, job: &QuantizeJob) -> Result<bool, PipelineError> {
        let options = output_options(job, self, &default_storage())?;
        let (target, unfinished) = OutputFolder::places(&job.output, &options)?;
        if finished_before(job, self, &target, unfinished.as_deref())?.is_some() {
            return Ok(true);
        }
        OutputFolder::check(&job.output, &options)?;
        Ok(false)
    }
}

/// What an earlier run of the same job finished at `target`, for one that is to go on. What is to be replaced and has an unfinished
/// successor is not the end of it: that is what broke off.
fn finished_before(
    job: &QuantizeJob,
    prepared: &PreparedJob,
    target: &Path,
    unfinished: Option<&Path>,
) -> Result<Option<QuantizeOutcome>, PipelineError> {
    if !job.resume || (job.force && unfinished.is_some()) {
        return Ok(None);
    }
    stands(job, prepared, target)
}

fn default_storage() -> Arc<dyn Storage> {
    Arc::new(Disk)
}

/// How the output of a job is made.
fn output_options(
    job: &QuantizeJob,
    prepared: &PreparedJob,
    storage: &Arc<dyn Storage>,
) -> Result<OutputOptions, PipelineError> {
    // The recipe's text goes into the output; its file is not needed again.
    let calibration = job.calibration.iter().map(|c| c.path().to_owned()).filter(|path| path.exists());
    Ok(OutputOptions {
        force: job.force,
        inputs: calibration.chain([job.model.clone()]).collect(),
        space: prepared.disk.peak(),
        unfinished: match (job.resume, job.restart) {
            (true, _) => Unfinished::Resume,
            (false, true) => Unfinished::Discard,
            (false, false) => Unfinished::Refuse,
        },
        identity: identity(job, prepared)?,
        storage: Arc::clone(storage),
    })
}

/// Quantises a checkpoint into a folder.
///
/// The output appears at its place only when it is complete; the input is never written to. A run that pays for statistics
/// or searches keeps a journal beside the unfinished output: one that ends early leaves both, and the same job with
/// [`QuantizeJob::resume`] goes on with them.
///
/// # Errors
/// All of [`PipelineError`]; in [`PipelineError::Kept`] where the work so far is kept.
pub fn quantize(job: &QuantizeJob, events: &mut dyn Events) -> Result<QuantizeOutcome, PipelineError> {
    quantize_on(job, &default_storage(), events)
}

/// The same with the files of the output on `storage`.
///
/// # Errors
/// As [`quantize`].
pub fn quantize_on(
    job: &QuantizeJob,
    storage: &Arc<dyn Storage>,
    events: &mut dyn Events,
) -> Result<QuantizeOutcome, PipelineError> {
    let started = Instant::now();
    events.event(Event::Phase("reading the model and the data"));
    let prepared = prepare(job)?;
    for warning in &prepared.warnings {
        events.event(Event::Warning(warning.clone()));
    }
    check_calibration(&prepared.plan, prepared.tokens.as_ref())?;
    let options = output_options(job, &prepared, storage)?;
    if job.resume {
        OutputFolder::recover(&job.output, &options)?;
        let (target, unfinished) = OutputFolder::places(&job.output, &options)?;
        if let Some(mut outcome) = finished_before(job, &prepared, &target, unfinished.as_deref())? {
            if let Some(folder) = unfinished {
                let warning = format!(
                    "{}: a run that was to replace this output broke off; --resume --force goes on with it; to throw it \
                     away, delete that folder",
                    folder.display()
                );
                events.event(Event::Warning(warning.clone()));
                outcome.warnings.push(warning);
            }
            return Ok(outcome);
        }
    }
    if prepared.spill {
        events.event(Event::Note("activations are kept on disk, to stay within the memory budget"));
    }
    let output = OutputFolder::create(&job.output, &options)?;
    let resumable = output.resumable();
    write(job, prepared, output, events, started).map_err(|source| match resumable.folder() {
        // What cannot be read is not gone on with.
        _ if matches!(source, PipelineError::Checkpoint(CheckpointError::DamagedJournal { .. })) => source,
        Some(folder) => PipelineError::Kept { folder: folder.to_owned(), source: Box::new(source) },
        None => source,
    })
}

/// The output of a job that has been prepared.
fn write(
    job: &QuantizeJob,
    prepared: PreparedJob,
    mut output: OutputFolder,
    events: &mut dyn Events,
    started: Instant,
) -> Result<QuantizeOutcome, PipelineError> {
    let PreparedJob { folder, plan, tokens, memory, spill, mut warnings, .. } = prepared;
    let format = job.recipe.format();
    let checkpoint = &folder.checkpoint;
    let planned = declared(&folder, &plan, &plan.scheme);
    let layout = WeightLayout::new(&folder, &plan)?;
    let mut output_bytes = layout.first.total_bytes();
    output.begin_weights(layout.first.clone())?;
    let input_bytes = checkpoint.total_bytes();
    let input_hashes = InputHashes::default();
    let mut source =
        FolderSource::open_with(folder.reopen()?, plan.spec.clone(), job.recipe.registry().formats())?
            .with_hashes(input_hashes.clone());
    let run_options_spill = spill.then(|| output.partial().to_owned());
    let resumed = output.kept().is_some();
    let late = |tensor: &str| layout.is_late(tensor);
    let mut sink = FolderSink::new(&plan, &mut output, Some(checkpoint), (&planned, &late), input_hashes)?;
    let resumed = resumed.then(|| sink.blocks());
    let told_apart =
        || Ok::<_, PipelineError>(format!("{}: {:?}", job.model.display(), checkpoint.fingerprint()?));
    let statistics = SharedStatistics::new(&job.shared, &plan, told_apart)?;
    let report = with_threads(job.threads, |par| {
        let options = RunOptions { spill: run_options_spill, statistics, ..RunOptions::new(par) };
        run(&plan, &mut source, tokens.as_ref(), &mut sink, events, &options)
    })??;
    let of_cache = plan.scheme.kv.and_then(|kv| report.cache_warning(&kv, plan.key_bias()));
    for warning in of_cache.into_iter().chain(report.doubts(&plan)).chain(report.of_lessons()) {
        events.event(Event::Warning(warning.clone()));
        warnings.push(warning);
    }
    let Left { side, copied, waiting, norm_waits } = sink.into_parts();
    let go_on =
        |events: &dyn Events| if events.cancelled() { Err(PipelineError::Interrupted) } else { Ok(()) };
    let scheme = plan.scheme_with(|index| report.fell_back(index));
    let declared = declared(&folder, &plan, &scheme);
    let mut hashes = output.end_weights()?.clone();
    if let Some(rest) = layout.rest(&plan, &declared)? {
        output_bytes += rest.total_bytes();
        output.begin_rest(rest)?;
        for (name, bytes) in waiting {
            // A block has no tensors but the declared ones.
            if let Some(decl) = declared.iter().find(|decl| decl.name == name) {
                output.tensor_owned(&name, decl.dtype, &decl.shape, bytes)?;
            }
        }
        if norm_waits {
            let norm = plan.spec.stored_in(Outer::FinalNorm).tensor();
            output.copy_tensor(checkpoint, norm, Outer::FinalNorm.tensor())?;
        }
        hashes.clone_from(output.end_weights()?);
    }
    let beside = side_files(&job.model)?;
    for name in &beside.copied {
        output.copy_file(&job.model.join(name), name)?;
    }
    let config = format.config(&plan.stored, &scheme, checkpoint.config(), &notes(&job.recipe));
    output.write_file("config.json", &manifest::pretty(&config))?;
    for (name, bytes) in format.side_files(&plan.stored, &scheme, &declared, &side) {
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
        resumed,
        stood: false,
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
    // A pipe is read as well.
    if path.exists() && !path.is_dir() {
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
