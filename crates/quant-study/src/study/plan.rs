//! What a study will do, before it does it.

use super::job::StudyJob;
use super::place::{SERVER, model_folder, word};
use super::scoring::ScoringCost;
use crate::StudyError;
use crate::blame::BlameCost;
use crate::files::slug;
use crate::grid::{Grid, GridModel, GridRecipe, GridServer, RecipeText};
use quant_data::{CalibrationSpec, Task, TaskKind, built_in_task};
use quant_graph::{ModelScheme, ModelSpec};
use quant_model::Execution;
use quant_pipeline::{
    AnalysisCost, Forecast, PipelineError, Plan, QuantizeJob, Recipe, Registry, Sample, Shared,
    open_folder_with, prepare, read_recipe_with, run::SharedStatistics,
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A row of a study: a recipe on a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedVariant {
    /// Name of the model.
    pub model: String,
    /// Name of the recipe or of the server; none is the float model.
    pub recipe: Option<String>,
    /// Its methods, in the order in which they work.
    pub method: String,
    /// Bits of weights, activations and cache.
    pub bits: String,
    /// Stored bits per weight, as planned.
    pub weight_bits: Option<f64>,
    /// Seconds that quantising is expected to take.
    pub seconds: Option<f64>,
    /// Bytes of its folder, which exists while it is scored.
    pub disk: u64,
    /// Predicted peak memory of quantising, in bytes.
    pub memory: u64,
    /// Bytes of the statistics of the float stream that it leaves to other rows.
    #[serde(default)]
    pub shared: u64,
    /// What looking at its activations takes, before and behind its transforms; none where nothing transforms them, there is no
    /// calibration data to see them on, or the memory budget is too small for it.
    #[serde(default)]
    pub ranges: Option<AnalysisCost>,
    /// What looking for the causes of its loss takes, where the grid asks for them.
    #[serde(default)]
    pub blame: Option<BlameCost>,
    /// Why it cannot be made.
    pub illegal: Option<String>,
    /// What is not there, so that the row cannot be run here although it is legal.
    pub absent: Option<String>,
    /// Ways to run it: `sim`, `int8`, or `server`; and why one is impossible.
    pub executions: Vec<(String, Option<String>)>,
}

impl PlannedVariant {
    /// Why it is not run in any way; none where it is.
    pub(super) fn refusal(&self) -> Option<&str> {
        let problems = || self.executions.iter().map(|(_, problem)| problem.as_deref());
        let first = problems().flatten().next().filter(|_| problems().all(|problem| problem.is_some()));
        self.illegal.as_deref().or(first)
    }

    /// The ways in which it can be run.
    pub fn runs(&self) -> impl Iterator<Item = &str> {
        let possible = self.executions.iter().filter(|(_, problem)| problem.is_none());
        possible.map(|(word, _)| word.as_str())
    }

    /// Predicted peak memory of quantising it and of looking at its activations, in bytes.
    fn peak(&self) -> u64 {
        self.memory.max(self.ranges.map_or(0, |cost| cost.memory))
    }
}

/// What a study will do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StudyPlan {
    /// Name of the study.
    pub study: String,
    /// Rows in the order of the grid.
    pub variants: Vec<PlannedVariant>,
    /// Names of the tasks.
    pub tasks: Vec<String>,
    /// Cells that will be run.
    pub cells: usize,
    /// Most bytes on disk at a time: the largest folder.
    pub disk: u64,
    /// Predicted peak memory of quantising, in bytes, with what rows share.
    pub memory: u64,
    /// Bytes of that for what rows share, at most: statistics of the float stream, and tokens.
    #[serde(default)]
    pub shared: u64,
    /// Seconds that quantising is expected to take; scoring is not in it.
    pub seconds: f64,
    /// What scoring takes; only a plan that is asked for has it.
    #[serde(default)]
    pub scoring: Option<ScoringCost>,
}

/// The recipe of a row.
pub(super) fn recipe(recipe: &GridRecipe, registry: &Registry) -> Result<Recipe, StudyError> {
    Ok(match &recipe.text {
        RecipeText::Named(name) => read_recipe_with(name, registry)?,
        RecipeText::Written(text) => Recipe::parse_with(text, registry)
            .map_err(|error| StudyError::grid(format!("recipe {:?}", recipe.name), error.to_string()))?,
    })
}

/// The tasks of a grid.
pub(super) fn tasks(grid: &Grid) -> Result<Vec<Task>, StudyError> {
    let read = |name: &String| {
        let path = Path::new(name);
        Ok(if path.extension().is_some() || path.is_file() {
            Task::from_file(path)?
        } else {
            built_in_task(name)?
        })
    };
    let tasks = grid.tasks.iter().map(read).collect::<Result<Vec<Task>, StudyError>>()?;
    if let Some(name) = &grid.blame {
        let known: Vec<&str> = tasks.iter().map(Task::name).collect();
        let is_text = |task: &Task| matches!(task.kind(), TaskKind::Text(_));
        let reason = match tasks.iter().find(|task| task.name() == name) {
            Some(task) if is_text(task) => None,
            Some(_) => {
                Some("it is no task of the kind text, on whose windows blocks could be put back".to_owned())
            }
            None => {
                let meant = quant_core::meant(name, &known);
                Some(format!("it is none of the tasks of the grid{meant}; they are {}", known.join(", ")))
            }
        };
        if let Some(reason) = reason {
            return Err(StudyError::grid("blame", format!("{name:?}: {reason}")));
        }
    }
    for (index, task) in tasks.iter().enumerate() {
        // What is found of each lies in a folder of its name.
        let before = tasks[..index].iter().map(Task::name).find(|other| slug(other) == slug(task.name()));
        if let Some(before) = before {
            let twice = format!("{before:?} and {:?} stand there: two tasks of one name", task.name());
            return Err(StudyError::grid("tasks", twice));
        }
    }
    Ok(tasks)
}

/// The calibration data of a model, beside it where it is found there.
pub(super) fn calibration(model: &GridModel, folder: &Path) -> Result<Option<CalibrationSpec>, StudyError> {
    let Some(written) = model.calibration.as_deref() else { return Ok(None) };
    let (path, _) = written.rsplit_once(':').unwrap_or((written, ""));
    let beside = folder.join(written);
    let there = folder.join(path).exists() || beside.exists();
    if !there && !Path::new(path).exists() && !Path::new(written).exists() {
        let missing = format!("{path}: there is no such file, neither here nor in {}", folder.display());
        return Err(StudyError::grid("calibration", missing));
    }
    let written = if there { beside.display().to_string() } else { written.to_owned() };
    Ok(Some(CalibrationSpec::parse(&written)?))
}

/// The job that makes a row.
pub(super) fn quantize_job(
    job: &StudyJob,
    model: &GridModel,
    folder: &Path,
    recipe: Recipe,
    output: PathBuf,
    shared: &Shared,
) -> Result<QuantizeJob, StudyError> {
    Ok(QuantizeJob {
        calibration: calibration(model, folder)?,
        num_samples: model.num_samples,
        max_seq_len: model.max_seq_len,
        seed: model.seed,
        threads: job.threads,
        memory: job.memory_of_work(),
        shared: shared.clone(),
        resume: true,
        force_unsupported: true,
        ..QuantizeJob::new(folder, recipe, output)
    })
}

/// What looking at the activations of a row takes, if that is done; `bytes` are those of the weights of the model and of the row.
fn ranges_cost(job: &StudyJob, model: &GridModel, plan: &Plan, bytes: [u64; 2]) -> Option<AnalysisCost> {
    let shown = plan.recipe.rewrites() && model.calibration.is_some();
    let cost = shown.then(|| AnalysisCost::of_activations(plan, Sample::default(), job.threads, bytes));
    cost.filter(|cost| job.memory_of_work().is_none_or(|allowed| cost.memory <= allowed))
}

/// What looking for the causes of the loss of a row takes, if that is asked for.
fn blame_cost(
    job: &StudyJob,
    planned: &PlannedVariant,
    spec: &ModelSpec,
) -> Result<Option<BlameCost>, StudyError> {
    let Some(name) = &job.grid.blame else { return Ok(None) };
    let tasks = tasks(&job.grid)?;
    let asked = tasks.iter().find(|task| task.name() == name).map(Task::kind);
    let Some(TaskKind::Text(ask)) = asked else { return Ok(None) };
    let ways = planned.runs().count();
    let seconds = Forecast::seconds_of_tokens(spec, 1, job.grid.compute, job.threads);
    Ok(Some(BlameCost::new(spec, ask.window, ways, seconds)))
}

/// A row of which nothing is known yet but its recipe.
fn row(job: &StudyJob, model: &GridModel, given: &GridRecipe, recipe: &Recipe) -> PlannedVariant {
    let codes = recipe.format().stores_codes();
    let executions = job.grid.execution.iter().map(|&execution| {
        let problem = (execution == Execution::Integer && !codes).then(|| {
            format!("the format {} stores floats, and there are no codes to execute", recipe.format().id())
        });
        (word(execution).to_owned(), problem)
    });
    PlannedVariant {
        model: model.name.clone(),
        recipe: Some(given.name.clone()),
        method: method_of(recipe),
        bits: String::new(),
        weight_bits: None,
        seconds: None,
        disk: 0,
        memory: 0,
        shared: 0,
        ranges: None,
        blame: None,
        illegal: None,
        absent: None,
        executions: executions.collect(),
    }
}

/// A row of a server.
fn served(model: &GridModel, server: &GridServer) -> PlannedVariant {
    let problem = (!cfg!(feature = "server")).then(|| {
        "this program was built without servers: build it with `--features server`, or `tls` for https://"
            .to_owned()
    });
    PlannedVariant {
        model: model.name.clone(),
        recipe: Some(server.name.clone()),
        method: "server".to_owned(),
        bits: server.bits.clone().unwrap_or_else(|| "-".to_owned()),
        weight_bits: None,
        seconds: None,
        disk: 0,
        memory: 0,
        shared: 0,
        ranges: None,
        blame: None,
        illegal: problem,
        absent: None,
        executions: vec![(SERVER.to_owned(), None)],
    }
}

/// Methods of a recipe in the order in which they work.
fn method_of(recipe: &Recipe) -> String {
    recipe.modifiers().iter().map(|(id, _)| *id).collect::<Vec<_>>().join(" + ")
}

impl StudyPlan {
    /// With `anywhere` models that are not there are planned by the shape that the grid states, and data may be missing.
    pub(super) fn new(
        job: &StudyJob,
        registry: &Registry,
        anywhere: bool,
        shared: &Shared,
    ) -> Result<Self, StudyError> {
        let grid = &job.grid;
        let tasks = tasks(grid)?;
        let mut variants = Vec::new();
        for model in &grid.models {
            let folder = model_folder(model, &job.output)?;
            let mut absent = None;
            // Where nothing runs here, a folder with the tokenizer will do.
            let opened =
                if grid.is_served(model) { Ok(()) } else { open_folder_with(&folder, registry).map(|_| ()) };
            let found = tasks
                .iter()
                .try_for_each(|task| task.source().find(task.name(), &job.data_folders(&folder)).map(|_| ()));
            match opened.map_err(StudyError::from).and_then(|()| Ok(found?)) {
                Ok(()) => {}
                Err(error) if anywhere => absent = Some(error.to_string()),
                Err(error) => return Err(error),
            }
            let shape = model.config.as_ref().filter(|_| !folder.exists());
            let float = model.float_server().map(|server| served(model, server));
            let float = float.map(|row| PlannedVariant { recipe: None, method: "float".to_owned(), ..row });
            variants.push(float.unwrap_or_else(|| PlannedVariant {
                model: model.name.clone(),
                recipe: None,
                method: "float".to_owned(),
                bits: "-".to_owned(),
                weight_bits: None,
                seconds: None,
                disk: 0,
                memory: 0,
                shared: 0,
                ranges: None,
                blame: None,
                illegal: None,
                absent: None,
                executions: vec![("sim".to_owned(), None)],
            }));
            variants.last_mut().into_iter().for_each(|row| row.absent.clone_from(&absent));
            for given in &grid.recipes {
                let planned = match shape {
                    Some(config) => Self::by_shape(job, model, config, given, registry)?,
                    None => Self::variant(job, model, &folder, given, registry, shared)?,
                };
                variants.push(PlannedVariant { absent: absent.clone(), ..planned });
            }
            for server in model.servers.iter().filter(|&server| Some(server) != model.float_server()) {
                variants.push(PlannedVariant { absent: absent.clone(), ..served(model, server) });
            }
        }
        let legal = || variants.iter().filter(|variant| variant.illegal.is_none());
        // Tokens are few beside everything else.
        let left: u64 = legal().map(|v| v.shared).sum::<u64>() + shared.bytes();
        let held = left.min(job.shared_bytes());
        Ok(Self {
            study: grid.name.clone(),
            cells: legal().map(|v| v.runs().count() * tasks.len()).sum(),
            tasks: tasks.iter().map(|task| task.name().to_owned()).collect(),
            disk: legal().map(|v| v.disk).max().unwrap_or(0),
            memory: legal().map(PlannedVariant::peak).max().unwrap_or(0) + held,
            shared: held,
            seconds: legal().filter_map(|v| v.seconds).sum(),
            scoring: None,
            variants,
        })
    }

    /// In how many ways the rows of a model are run, here and on servers.
    pub(super) fn ways(&self, model: &GridModel) -> [u64; 2] {
        let mut counts = [0; 2];
        for row in self.variants.iter().filter(|row| row.model == model.name && row.illegal.is_none()) {
            row.runs().for_each(|word| counts[usize::from(word == SERVER)] += 1);
        }
        counts
    }

    /// A row of a model that is not there.
    fn by_shape(
        job: &StudyJob,
        model: &GridModel,
        config: &serde_json::Value,
        given: &GridRecipe,
        registry: &Registry,
    ) -> Result<PlannedVariant, StudyError> {
        let recipe = recipe(given, registry)?;
        let mut planned = row(job, model, given, &recipe);
        let reading = quant_model::read_model_config_with(config, registry.families());
        let spec = reading.map_err(PipelineError::from)?.spec;
        let lengths = vec![model.max_seq_len.unwrap_or(2048); model.num_samples.unwrap_or(128)];
        match Plan::new(&recipe, &spec) {
            Ok(plan) => {
                planned.bits = bits_of(&plan.scheme);
                let forecast = Forecast::of_shape(&plan, &lengths, job.threads);
                planned.weight_bits = Some(forecast.bits_per_weight);
                planned.seconds = Some(forecast.seconds);
                planned.disk = forecast.output_bytes;
                planned.shared = SharedStatistics::bytes(&plan, &lengths);
                let float = 2 * (plan.spec.layers * plan.spec.block_parameters()) as u64;
                planned.ranges = ranges_cost(job, model, &plan, [float, forecast.output_bytes]);
                planned.blame = blame_cost(job, &planned, &plan.spec)?;
                planned.memory =
                    quant_pipeline::memory::predict(&plan, &lengths, 0, job.threads).bound(false);
            }
            Err(
                error @ (PipelineError::Unsupported(_)
                | PipelineError::Recipe(_)
                | PipelineError::Method { .. }),
            ) => planned.illegal = Some(error.to_string()),
            Err(error) => return Err(error.into()),
        }
        Ok(planned)
    }

    fn variant(
        job: &StudyJob,
        model: &GridModel,
        folder: &Path,
        given: &GridRecipe,
        registry: &Registry,
        shared: &Shared,
    ) -> Result<PlannedVariant, StudyError> {
        let recipe = recipe(given, registry)?;
        let mut planned = row(job, model, given, &recipe);
        let work = job.output.join("work").join("plan");
        let prepared = quantize_job(job, model, folder, recipe, work, shared)
            .and_then(|job| prepare(&job).map_err(StudyError::from));
        match prepared {
            Ok(prepared) if prepared.plan.streams.calibration() && prepared.tokens.is_none() => {
                planned.illegal = Some(
                    "it needs calibration data; write `calibration: FILE` beside the model's path in the grid".to_owned(),
                );
                planned.bits = bits_of(&prepared.plan.scheme);
            }
            Ok(prepared) => {
                planned.bits = bits_of(&prepared.plan.scheme);
                planned.weight_bits = Some(prepared.plan.bits_per_weight());
                let forecast = Forecast::new(&prepared, job.threads);
                planned.seconds = Some(forecast.seconds);
                planned.disk = prepared.disk.weights + prepared.disk.files + prepared.disk.journal;
                planned.memory = prepared.memory.bound(prepared.spill);
                let sequences = prepared.tokens.iter().flat_map(|tokens| &tokens.sequences);
                let lengths: Vec<usize> = sequences.map(Vec::len).collect();
                planned.shared = SharedStatistics::bytes(&prepared.plan, &lengths);
                let float = prepared.folder.checkpoint.total_bytes();
                planned.ranges = ranges_cost(job, model, &prepared.plan, [float, prepared.disk.weights]);
                planned.blame = blame_cost(job, &planned, &prepared.plan.spec)?;
            }
            // What this recipe asks of this model cannot be had; other rows can.
            Err(StudyError::Pipeline(
                error @ (PipelineError::Unsupported(_)
                | PipelineError::Recipe(_)
                | PipelineError::Method { .. }
                | PipelineError::Memory { .. }
                | PipelineError::Exhausted { .. }),
            )) => planned.illegal = Some(error.to_string()),
            Err(error) => return Err(error),
        }
        Ok(planned)
    }
}

/// Bits of weights, activations and cache as the studies write them: `4-16-16`. Of linears that differ the most common count.
fn bits_of(scheme: &ModelScheme) -> String {
    let mut counts = std::collections::BTreeMap::<(u32, u32), usize>::new();
    for (_, _, linear) in scheme.linears() {
        let weight = linear.weight.map_or(16, |weight| weight.bits.get());
        let input = linear.input.map_or(16, |input| input.bits.get());
        *counts.entry((weight, input)).or_default() += 1;
    }
    let (weight, input) =
        counts.into_iter().max_by_key(|(_, count)| *count).map_or((16, 16), |(bits, _)| bits);
    let kv = scheme.kv.map_or(16, |kv| kv.bits.get());
    format!("{weight}-{input}-{kv}")
}
